/* Restaurant, VIP customers. One cook works on one order at a time. Orders arrive every 0.5 s; when
   the cook is free, a VIP's order comes before all others, and equal ones are served in order of
   arrival.

   cc 18_vip_orders_bonus.c -o restaurant
   ./restaurant
   CONC_CLOCK=virtual ./restaurant     # without waiting

   It prints ../expected/02_tasks/18_vip_orders_bonus.txt.
   Hint: a queue with .less returns first the item that less puts before all others. */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    const char *customer;
    double seconds;
    bool vip;
} order;

/* Your turn: does order a come before order b? */
static bool comes_first(const void *a, const void *b)
{
    const order *x = a, *y = b;
    return x->vip && !y->vip;
}

static conc_queue queue = CONC_QUEUE(order, 0, .less = comes_first);
static double start;

/* Your turn: until the queue is closed and empty, take an order, print "7.0s: preparing the order
   of Diana (VIP)..." ("0.0s: preparing the order of Alice..."), cook for its seconds, and print
   "9.0s: ✓ Diana is served". */
static int cook(void *arg)
{
    (void)arg;
    order o;
    int rc;
    while ((rc = conc_queue_get(&queue, &o)) == 0) {
        printf("%.1fs: preparing the order of %s%s...\n", conc_now() - start, o.customer,
               o.vip ? " (VIP)" : "");
        CONC_TRY(conc_sleep(o.seconds));
        printf("%.1fs: ✓ %s is served\n", conc_now() - start, o.customer);
    }
    return rc == -EPIPE ? 0 : rc; /* closed and empty */
}

static int take_orders(void *arg)
{
    (void)arg;
    order orders[] = {{"Alice", 5, false},
                      {"Bob", 1, false},
                      {"Charlie", 2, true},
                      {"Diana", 2, true},
                      {"Eve", 1, false}};
    for (size_t i = 0; i < CONC_LEN(orders); i++) {
        CONC_TRY(conc_queue_put(&queue, &orders[i]));
        CONC_TRY(conc_sleep(0.5));
    }
    conc_queue_close(&queue);
    return 0;
}

static int restaurant(void *arg)
{
    (void)arg;
    start = conc_now();
    return CONC_GATHER(CONC_CALL(cook, NULL), CONC_CALL(take_orders, NULL));
}

int main(void) { return conc_main(restaurant, NULL); }
