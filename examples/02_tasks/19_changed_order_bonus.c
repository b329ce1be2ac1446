/* Restaurant, changed orders. A soup (1 s) and a steak (4 s) are being prepared. After 2 s the
   customer wants a salad and a fish instead: for the soup it is too late, but the steak is thrown
   away, and the kitchen starts the fish.

   cc 19_changed_order_bonus.c -o restaurant
   ./restaurant
   CONC_CLOCK=virtual ./restaurant     # without waiting

   It prints ../expected/02_tasks/19_changed_order_bonus.txt.
   Hint: conc_cancel(task) returns -EALREADY if the task has ended. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *name;
    double seconds;
} dish;

static double start;

static int cook(void *arg)
{
    dish *d = arg;
    printf("%.1fs: preparing %s...\n", conc_now() - start, d->name);
    CONC_TRY(conc_sleep(d->seconds)); /* a cancel ends the sleep, and the function, here */
    printf("%.1fs: ✓ %s ready\n", conc_now() - start, d->name);
    return 0;
}

/* Your turn: cancel the task that cooks. If it has ended, print "2.0s: too late for salad"; else
   print "2.0s: changed to fish", join the task, and start it again with the new dish. */
static int change(conc_group *kitchen, conc_task *task, dish *to)
{
    if (conc_cancel(task) == -EALREADY) {
        printf("%.1fs: too late for %s\n", conc_now() - start, to->name);
        return 0;
    }
    printf("%.1fs: changed to %s\n", conc_now() - start, to->name);
    CONC_TRY(conc_join(task, NULL));
    return conc_spawn_task(kitchen, task, cook, to);
}

static int restaurant(void *arg)
{
    (void)arg;
    dish soup = {"soup", 1}, steak = {"steak", 4}, salad = {"salad", 1}, fish = {"fish", 3};
    conc_task starter = {0}, main_course = {0};
    conc_group kitchen = {0};
    start = conc_now();
    CONC_TRY_IN(&kitchen, conc_spawn_task(&kitchen, &starter, cook, &soup));
    CONC_TRY_IN(&kitchen, conc_spawn_task(&kitchen, &main_course, cook, &steak));
    CONC_TRY_IN(&kitchen, conc_sleep(2));
    CONC_TRY_IN(&kitchen, change(&kitchen, &starter, &salad));
    CONC_TRY_IN(&kitchen, change(&kitchen, &main_course, &fish));
    return conc_group_wait(&kitchen);
}

int main(void) { return conc_main(restaurant, NULL); }
