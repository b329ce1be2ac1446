/* Coffee shop, the bonus challenges: random times, a customer for each drink, and a queue of
 * orders for two baristas.
 *   cc 02_coffee_shop_bonus.c -o coffee_shop && ./coffee_shop
 *   CONC_CLOCK=virtual ./coffee_shop                   takes no time
 *   CONC_RANDOM=2 CONC_CLOCK=virtual ./coffee_shop     other random numbers
 */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <stdlib.h>

typedef struct {
    const char *drink, *customer;
    double seconds;
} order;

/* 1. Random preparation times */

static int make_drink(void *arg)
{
    order *o = arg;
    o->seconds = conc_random(2, 6);
    printf("Starting to make %s...\n", o->drink);
    CONC_TRY(conc_sleep(o->seconds));
    printf("%s is ready! (%.1fs)\n", o->drink, o->seconds);
    return 0;
}

static int random_times(void)
{
    order orders[] = {{.drink = "Espresso"}, {.drink = "Latte"}, {.drink = "Cappuccino"}};
    double start = conc_now(), longest = 0;
    printf("=== Random Times ===\n");
    CONC_TRY(CONC_MAP(make_drink, orders));
    for (size_t i = 0; i < CONC_LEN(orders); i++)
        longest = orders[i].seconds > longest ? orders[i].seconds : longest;
    printf("All drinks prepared in %.1f seconds, the longest took %.1f\n", conc_now() - start,
           longest);
    return 0;
}

/* 2. A customer for each drink */

static int make_drink_for(void *arg)
{
    order *o = arg;
    printf("Starting to make %s for %s...\n", o->drink, o->customer);
    CONC_TRY(conc_sleep(o->seconds));
    printf("%s, your %s is ready!\n", o->customer, o->drink);
    return 0;
}

static int customer_names(void)
{
    order orders[] = {{"Espresso", "Alice", 3}, {"Latte", "Bob", 5}, {"Espresso", "Charlie", 2}};
    printf("\n=== Customers ===\n");
    return CONC_MAP(make_drink_for, orders);
}

/* 3. A queue of orders */

typedef struct {
    const char *name;
    conc_queue *orders;
    int served;
} barista;

static int work(void *arg)
{
    barista *b = arg;
    order o;
    int rc;
    while ((rc = conc_queue_get(b->orders, &o)) == 0) {
        printf("%s takes the order of %s\n", b->name, o.customer);
        CONC_TRY(make_drink_for(&o));
        b->served++;
    }
    return rc == -EPIPE ? 0 : rc; /* closed, and every order is taken */
}

static int order_queue(void)
{
    CONC_AUTO(conc_queue, queue) = CONC_QUEUE(order, 0); /* any number of orders may lie in it */
    barista baristas[] = {{"Mia", &queue, 0}, {"Noah", &queue, 0}};
    order orders[] = {{"Espresso", "Alice", 3},
                      {"Latte", "Bob", 5},
                      {"Cappuccino", "Charlie", 4},
                      {"Espresso", "Diana", 3},
                      {"Latte", "Eve", 5}};
    double start = conc_now();
    conc_group g = {0};
    printf("\n=== Order Queue ===\n");
    for (size_t i = 0; i < CONC_LEN(baristas); i++)
        CONC_TRY_IN(&g, conc_spawn(&g, work, &baristas[i]));
    for (size_t i = 0; i < CONC_LEN(orders); i++)
        CONC_TRY_IN(&g, conc_queue_put(&queue, &orders[i]));
    conc_queue_close(&queue); /* the baristas go home after the last order */
    CONC_TRY(conc_group_wait(&g));
    for (size_t i = 0; i < CONC_LEN(baristas); i++)
        printf("%s served %d\n", baristas[i].name, baristas[i].served);
    printf("Closed after %.1f seconds\n", conc_now() - start);
    return 0;
}

static int coffee_shop(void *arg)
{
    (void)arg;
    CONC_TRY(random_times());
    CONC_TRY(customer_names());
    return order_queue();
}

int main(void) { return conc_main(coffee_shop, NULL); }
