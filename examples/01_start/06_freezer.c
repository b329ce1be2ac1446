/* The Freezer: one task that blocks stops all the others. Fixed, it waits by conc_sleep, and the
 * others go on.
 *   cc 06_freezer.c -o freezer && ./freezer        (CONC_CLOCK=virtual ./freezer takes no time)
 *   CONC_DEBUG=1 ./freezer                         names the task that held the loop
 * What cannot wait in this way, such as a library's blocking call, belongs on a thread of its own.
 */
#define CONC_STATIC
#include "../../conc.h"

static double start;
static double seconds(void) { return conc_now() - start; }

static int ticker(void *name)
{
    for (int i = 0; i < 3; i++) {
        printf("%.0f s  %s%d\n", seconds(), (char *)name, i);
        CONC_TRY(conc_sleep(1));
    }
    return 0;
}

static int bad_handler(void *arg)
{
    (void)arg;
    printf("%.0f s  bad handler begins\n", seconds());
    CONC_TRY(conc_block(5)); /* the bug: it blocks, as sleep(5) or a long computation does */
    printf("%.0f s  bad handler ends\n", seconds());
    return 0;
}

static int good_handler(void *arg)
{
    (void)arg;
    printf("%.0f s  good handler begins\n", seconds());
    CONC_TRY(conc_sleep(5)); /* the fix: a call that lets the others run */
    printf("%.0f s  good handler ends\n", seconds());
    return 0;
}

static int three_tasks(bool bad)
{
    conc_group g = {0};
    start = conc_now();
    CONC_TRY_IN(&g, conc_spawn(&g, ticker, "a"));
    if (bad)
        CONC_TRY_IN(&g, conc_spawn(&g, bad_handler, NULL));
    else
        CONC_TRY_IN(&g, conc_spawn(&g, good_handler, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, ticker, "b"));
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(three_tasks(true));
    printf("\n");
    return three_tasks(false);
}

int main(void) { return conc_main(app, NULL); }
