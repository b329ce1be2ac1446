/* Restaurant, a load balancer. Two kitchen stations have a queue each. Every dish goes to the
   station with less work assigned so far.

   cc 20_load_balancer_bonus.c -o restaurant
   ./restaurant
   CONC_CLOCK=virtual ./restaurant     # without waiting

   It prints ../expected/02_tasks/20_load_balancer_bonus.txt.
   Hint: add each dish's seconds to its station's. */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    const char *name;
    double seconds;
} dish;

typedef struct {
    const char *name;
    conc_queue queue;
    double seconds; /* of all the dishes that it was given */
} station;

static station a = {"station A", CONC_QUEUE(dish, 0), 0}, b = {"station B", CONC_QUEUE(dish, 0), 0};
static double start;

static int work(void *arg)
{
    station *s = arg;
    dish d;
    int rc;
    while ((rc = conc_queue_get(&s->queue, &d)) == 0) {
        printf("%.1fs: %s prepares %s\n", conc_now() - start, s->name, d.name);
        CONC_TRY(conc_sleep(d.seconds));
    }
    printf("%.1fs: %s is done\n", conc_now() - start, s->name);
    return rc == -EPIPE ? 0 : rc; /* closed and empty */
}

/* Your turn: put the dish into the queue of the station with less work; A if both have the same. */
static int balance(dish *d)
{
    station *s = &a;
    if (b.seconds < a.seconds)
        s = &b;
    s->seconds += d->seconds;
    return conc_queue_put(&s->queue, d);
}

/* Your turn: balance all dishes, and close both queues. */
static int take_orders(void *arg)
{
    (void)arg;
    dish dishes[] = {{"roast", 4}, {"soup", 1}, {"salad", 1.5}, {"pasta", 2}, {"cake", 1}};
    for (size_t i = 0; i < CONC_LEN(dishes); i++)
        CONC_TRY(balance(&dishes[i]));
    conc_queue_close(&a.queue);
    conc_queue_close(&b.queue);
    return 0;
}

static int restaurant(void *arg)
{
    (void)arg;
    start = conc_now();
    return CONC_GATHER(CONC_CALL(take_orders, NULL), CONC_CALL(work, &a), CONC_CALL(work, &b));
}

int main(void) { return conc_main(restaurant, NULL); }
