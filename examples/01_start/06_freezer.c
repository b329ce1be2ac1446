/* The Freezer. Two tasks tick, a third blocks for 5 s: all freeze. Never block the loop! Fix
   wait_for_reply with conc_sleep, and make_report with conc_offload.

   cc 06_freezer.c -o freezer
   ./freezer
   cc -DBROKEN 06_freezer.c -o frozen
   CONC_DEBUG=1 ./frozen     # with the bugs; reports the task that held the loop

   It prints ../expected/01_start/06_freezer.txt.
   Hint: conc_offload(function, arg) calls the function in a thread; only the calling task waits. */
#define CONC_STATIC
#include "../../conc_pool.h"

static double start;
static double seconds(void) { return conc_now() - start; }

static int ticker(void *name)
{
    conc_set_name(conc_self(), name);
    for (int i = 0; i < 3; i++) {
        printf("%.0f s  %s%d\n", seconds(), (char *)name, i);
        CONC_TRY(conc_sleep(1));
    }
    return 0;
}

/* A handler that waits for 5 s. */
static int wait_for_reply(void *arg)
{
    (void)arg;
    printf("%.0f s  handler begins\n", seconds());
#ifdef BROKEN
    CONC_TRY(conc_block(5)); /* as sleep(5) of the C library: it holds the whole loop */
#else
    CONC_TRY(conc_sleep(5));
#endif
    printf("%.0f s  handler is done\n", seconds());
    return 0;
}

/* A function of a library: it blocks, and cannot be changed. */
static int library_call(void *arg)
{
    (void)arg;
    CONC_TRY(conc_block(5));
    return 42;
}

/* A handler that needs that function. */
static int make_report(void *arg)
{
    printf("%.0f s  handler begins\n", seconds());
#ifdef BROKEN
    int pages = CONC_TRY(library_call(arg));
#else
    int pages = CONC_TRY(conc_offload(library_call, arg)); /* a thread blocks, the loop does not */
#endif
    printf("%.0f s  handler is done: %d pages\n", seconds(), pages);
    return 0;
}

static int three_tasks(conc_fn *handler)
{
    conc_group g = {0};
    start = conc_now();
    CONC_TRY_IN(&g, conc_spawn(&g, ticker, "a"));
    CONC_TRY_IN(&g, conc_spawn(&g, handler, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, ticker, "b"));
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(three_tasks(wait_for_reply));
    printf("\n");
    return three_tasks(make_report);
}

int main(void) { return conc_main(app, NULL); }
