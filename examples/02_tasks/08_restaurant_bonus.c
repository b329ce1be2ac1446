/* Restaurant, the bonus challenges: two main courses at once, VIPs first, orders that change,
 * and a load balancer.
 *   cc 08_restaurant_bonus.c -o restaurant && ./restaurant        (CONC_CLOCK=virtual
 *   ./restaurant takes no time)
 */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    const char *name;
    double seconds;
    int vip;
} order;

static double opening;

static void heading(const char *text)
{
    printf("%s\n", text);
    opening = conc_now();
}

static int cook(void *arg)
{
    order *o = arg;
    printf("%.1fs: preparing %s...\n", conc_now() - opening, o->name);
    CONC_TRY(conc_sleep(o->seconds));
    printf("%.1fs: ✓ %s ready\n", conc_now() - opening, o->name);
    return 0;
}

/* 1. Two main courses at once */

static conc_sem stoves = CONC_SEM(2);

static int prepare_main_course(void *o)
{
    CONC_PERMIT(&stoves) {
        CONC_TRY(cook(o));
    }
    return 0;
}

static int capacity(void)
{
    order mains[] = {{"steak", 4, 0}, {"fish", 3, 0}, {"roast", 5, 0}, {"pasta", 3.5, 0}};
    heading("=== Kitchen Capacity ===");
    return CONC_MAP(prepare_main_course, mains);
}

/* 2. VIPs first */

static bool comes_first(const void *a, const void *b)
{
    return ((const order *)a)->vip > ((const order *)b)->vip;
}

static int cook_all(void *queue)
{
    order o;
    int rc;
    while ((rc = conc_queue_get(queue, &o)) == 0)
        CONC_TRY(cook(&o));
    return rc == -EPIPE ? 0 : rc; /* closed, and every order is cooked */
}

static int vips_first(void)
{
    /* equal ones stay in their order */
    CONC_AUTO(conc_queue, queue) = CONC_QUEUE(order, 0, .less = comes_first);
    order orders[] = {{"Alice's order", 5, 0},
                      {"Bob's order", 1, 0},
                      {"VIP Charlie's order", 2, 1},
                      {"VIP Diana's order", 2, 1},
                      {"Eve's order", 1, 0}};
    conc_group g = {0};
    heading("\n=== VIP Customers ===");
    CONC_TRY_IN(&g, conc_spawn(&g, cook_all, &queue));
    for (size_t i = 0; i < CONC_LEN(orders); i++) {
        CONC_TRY_IN(&g, conc_queue_put(&queue, &orders[i]));
        CONC_TRY_IN(&g, conc_sleep(0.5)); /* until the next customer comes */
    }
    conc_queue_close(&queue);
    return conc_group_wait(&g);
}

/* 3. Orders that change during preparation */

static int change(conc_group *kitchen, conc_task *dish, order *to)
{
    int rc = conc_cancel(dish);
    printf("%.1fs: change to %s %s\n", conc_now() - opening, to->name,
           rc == 0 ? "accepted" : "refused, too late");
    if (rc == -EALREADY) /* the dish is done */
        return 0;
    CONC_TRY(rc);
    CONC_TRY(conc_join(dish, NULL));
    return conc_spawn_task(kitchen, dish, cook, to);
}

static int modification(void)
{
    order steak = {"steak", 4, 0}, fish = {"fish", 3, 0}, soup = {"soup", 1, 0},
          salad = {"salad", 1, 0};
    conc_task starter = {0}, main_course = {0};
    conc_group kitchen = {0};
    heading("\n=== Changed Orders ===");
    CONC_TRY_IN(&kitchen, conc_spawn_task(&kitchen, &starter, cook, &soup));
    CONC_TRY_IN(&kitchen, conc_spawn_task(&kitchen, &main_course, cook, &steak));
    CONC_TRY_IN(&kitchen, conc_sleep(2));
    CONC_TRY_IN(&kitchen, change(&kitchen, &starter, &salad));
    CONC_TRY_IN(&kitchen, change(&kitchen, &main_course, &fish));
    return conc_group_wait(&kitchen);
}

/* 4. A load balancer: each dish goes to the station that will be done first */

typedef struct {
    conc_queue *queue;
    double seconds; /* of work that it was given; all dishes come at the start */
    int dishes;
} station;

static int balance(order *dishes, size_t count)
{
    CONC_AUTO(conc_queue, first) = CONC_QUEUE(order, 0);
    CONC_AUTO(conc_queue, second) = CONC_QUEUE(order, 0);
    station a = {&first, 0, 0}, b = {&second, 0, 0};
    conc_group kitchen = {0};
    CONC_TRY_IN(&kitchen, conc_spawn(&kitchen, cook_all, a.queue));
    CONC_TRY_IN(&kitchen, conc_spawn(&kitchen, cook_all, b.queue));
    for (size_t i = 0; i < count; i++) {
        station *least = a.seconds <= b.seconds ? &a : &b;
        least->seconds += dishes[i].seconds;
        least->dishes++;
        CONC_TRY_IN(&kitchen, conc_queue_put(least->queue, &dishes[i]));
    }
    conc_queue_close(a.queue);
    conc_queue_close(b.queue);
    CONC_TRY(conc_group_wait(&kitchen));
    printf("Station A: %d dishes in %.1fs, station B: %d in %.1fs\n", a.dishes, a.seconds, b.dishes,
           b.seconds);
    return 0;
}

static int load_balancer(void)
{
    order pizza = {"pizza", 2, 0}, equal[] = {pizza, pizza, pizza, pizza, pizza};
    order different[] = {
        {"roast", 4, 0}, {"soup", 1, 0}, {"salad", 1.5, 0}, {"pasta", 2, 0}, {"cake", 1, 0}};
    heading("\n=== Load Balancer, Equal Dishes ===");
    CONC_TRY(balance(equal, CONC_LEN(equal)));
    heading("\n=== Load Balancer, Different Dishes ===");
    return balance(different, CONC_LEN(different));
}

static int restaurant(void *arg)
{
    (void)arg;
    CONC_TRY(capacity());
    CONC_TRY(vips_first());
    CONC_TRY(modification());
    return load_balancer();
}

int main(void) { return conc_main(restaurant, NULL); }
