/* Coffee shop, a queue of orders. Two baristas serve five customers: each takes the oldest order,
   makes the drink, and takes the next. When the shop closes they finish the remaining orders.

   cc 12_order_queue_bonus.c -o coffee_shop
   ./coffee_shop
   CONC_CLOCK=virtual ./coffee_shop     # without waiting

   It prints ../expected/02_tasks/12_order_queue_bonus.txt.
   Hint: conc_queue_get returns 0 with an order, and -EPIPE when the queue is closed and empty. */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    const char *drink, *customer;
    double seconds;
} order;

static conc_queue queue = CONC_QUEUE(order, 0); /* 0: any number of orders may lie in it */
static double start;

static int make_drink(order *o)
{
    printf("%2.0f s: making %s for %s...\n", conc_now() - start, o->drink, o->customer);
    CONC_TRY(conc_sleep(o->seconds));
    printf("%2.0f s: %s, your %s is ready!\n", conc_now() - start, o->customer, o->drink);
    return 0;
}

/* Your turn: take order after order and make the drink, until the queue is closed and empty. */
static int barista(void *arg)
{
    (void)arg;
    order o;
    int rc;
    while ((rc = conc_queue_get(&queue, &o)) == 0)
        CONC_TRY(make_drink(&o));
    return rc == -EPIPE ? 0 : rc;
}

/* Your turn: start two baristas, put all orders into the queue, close it, and wait until the
   baristas have gone home. Print "12 s: closed". */
static int coffee_shop(void *arg)
{
    (void)arg;
    order orders[] = {{"Espresso", "Alice", 3},
                      {"Latte", "Bob", 5},
                      {"Cappuccino", "Charlie", 4},
                      {"Espresso", "Diana", 3},
                      {"Latte", "Eve", 5}};
    conc_group baristas = {0};
    start = conc_now();
    for (int i = 0; i < 2; i++)
        CONC_TRY_IN(&baristas, conc_spawn(&baristas, barista, NULL));
    for (size_t i = 0; i < CONC_LEN(orders); i++)
        CONC_TRY_IN(&baristas, conc_queue_put(&queue, &orders[i])); /* puts a copy */
    conc_queue_close(&queue);
    CONC_TRY(conc_group_wait(&baristas));
    printf("%2.0f s: closed\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(coffee_shop, NULL); }
