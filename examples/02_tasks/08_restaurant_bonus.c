/* Restaurant, kitchen capacity. Four main courses are ordered together, but there are only two
   stoves: the others wait for a free one.

   cc 08_restaurant_bonus.c -o restaurant
   ./restaurant
   CONC_CLOCK=virtual ./restaurant     # without waiting

   It prints ../expected/02_tasks/08_restaurant_bonus.txt.
   Hint: CONC_PERMIT(&stoves) { ... } waits for a permit of the semaphore, and returns it when the
   block is left. */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    const char *name;
    double seconds;
} dish;

static conc_sem stoves = CONC_SEM(2);
static double start;

static int cook(dish *d)
{
    conc_set_name(conc_self(), d->name); /* for reports and pictures */
    printf("%.1fs: preparing %s...\n", conc_now() - start, d->name);
    CONC_TRY(conc_sleep(d->seconds));
    printf("%.1fs: ✓ %s ready\n", conc_now() - start, d->name);
    return 0;
}

/* Your turn: cook the dish, on one of the two stoves. */
static int prepare_main_course(void *arg)
{
    dish *d = arg;
    CONC_PERMIT(&stoves) {
        CONC_TRY(cook(d));
    }
    return 0;
}

static int restaurant(void *arg)
{
    (void)arg;
    dish mains[] = {{"steak", 4}, {"fish", 3}, {"roast", 5}, {"pasta", 3.5}};
    start = conc_now();
    return CONC_MAP(prepare_main_course, mains);
}

int main(void) { return conc_main(restaurant, NULL); }
