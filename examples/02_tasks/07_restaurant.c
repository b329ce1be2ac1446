/* Restaurant: four orders at once, each a gather of three dishes inside the gather of orders.
 *   cc 07_restaurant.c -o restaurant && ./restaurant
 *   CONC_CLOCK=virtual ./restaurant                   takes no time
 *   CONC_RANDOM=2 CONC_CLOCK=virtual ./restaurant     other random numbers
 */
#define CONC_STATIC
#include "../../conc.h"
#include <stdlib.h>

typedef struct {
    int id;
    const char *customer;
    double time;
} order;

static int prepare(int id, const char *dish, const char *ready, double low, double high)
{
    double start = conc_now();
    printf("Preparing %s for order %d...\n", dish, id);
    CONC_TRY(conc_sleep(conc_random(low, high)));
    printf("✓ %s ready for order %d (%.1fs)\n", ready, id, conc_now() - start);
    return 0;
}

static int prepare_appetizer(void *o)
{
    return prepare(((order *)o)->id, "appetizer", "Appetizer", 1, 2);
}
static int prepare_main_course(void *o)
{
    return prepare(((order *)o)->id, "main course", "Main course", 3, 5);
}
static int prepare_dessert(void *o)
{
    return prepare(((order *)o)->id, "dessert", "Dessert", 1, 3);
}

static int process_order(void *arg)
{
    order *o = arg;
    double start = conc_now();
    printf("Starting order %d for %s\n", o->id, o->customer);
    CONC_TRY(CONC_GATHER(CONC_CALL(prepare_appetizer, o), CONC_CALL(prepare_main_course, o),
                         CONC_CALL(prepare_dessert, o)));
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
