/* Restaurant. Serve four orders concurrently. The kitchen also makes an order's three dishes
   concurrently: the appetizer takes 1 to 2 s, the main course 3 to 5 s, the dessert 1 to 3 s.

   cc 07_restaurant.c -o restaurant
   ./restaurant
   CONC_CLOCK=virtual CONC_RANDOM=2 ./restaurant     # without waiting; 3: other times

   It prints other times in each run; ../expected/02_tasks/07_restaurant.awk checks it.
   Hint: a gather in a gather. CONC_GATHER(CONC_CALL(f, x), CONC_CALL(g, x)) returns when both have
   ended. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    int id;
    const char *customer;
    double time; /* seconds from its start until it is complete */
} order;

/* Your turn: print "Preparing dessert for order 2...", wait a random time from low to high, print
   "✓ Dessert ready for order 2 (1.5s)". */
static int prepare(int id, const char *dish, const char *ready, double low, double high)
{
    double start = conc_now();
    printf("Preparing %s for order %d...\n", dish, id);
    CONC_TRY(conc_sleep(conc_random(low, high)));
    printf("✓ %s ready for order %d (%.1fs)\n", ready, id, conc_now() - start);
    return 0;
}

static int prepare_appetizer(void *id)
{
    return prepare(*(int *)id, "appetizer", "Appetizer", 1, 2);
}
static int prepare_main_course(void *id)
{
    return prepare(*(int *)id, "main course", "Main course", 3, 5);
}
static int prepare_dessert(void *id) { return prepare(*(int *)id, "dessert", "Dessert", 1, 3); }

/* Your turn: print "Starting order 2 for Bob", make the three dishes at once, leave the time in
   o->time, and print "🔔 Order 2 complete for Bob! (4.5s)". */
static int process_order(void *arg)
{
    order *o = arg;
    double start = conc_now();
    printf("Starting order %d for %s\n", o->id, o->customer);
    CONC_TRY(CONC_GATHER(CONC_CALL(prepare_appetizer, &o->id),
                         CONC_CALL(prepare_main_course, &o->id),
                         CONC_CALL(prepare_dessert, &o->id)));
    o->time = conc_now() - start;
    printf("🔔 Order %d complete for %s! (%.1fs)\n", o->id, o->customer, o->time);
    return 0;
}

static int restaurant(void *arg)
{
    (void)arg;
    order orders[] = {{1, "Alice", 0}, {2, "Bob", 0}, {3, "Charlie", 0}, {4, "Diana", 0}};
    double start = conc_now(), sum = 0;
    printf("=== Restaurant Opening ===\n");
    CONC_TRY(CONC_MAP(process_order, orders));
    for (size_t i = 0; i < CONC_LEN(orders); i++)
        sum += orders[i].time;
    printf("\n=== Service Complete ===\n");
    printf("All orders served in %.1f seconds\n", conc_now() - start);
    printf("Average order time: %.1f seconds\n", sum / CONC_LEN(orders));
    return 0;
}

int main(void) { return conc_main(restaurant, NULL); }
