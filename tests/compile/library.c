/* A shared library with conc inside: it exports only library_work, or, with a CONC_API that says
 * so, conc as well. */
#define CONC_IMPLEMENTATION
#include "all.h"

__attribute__((visibility("default"))) int library_work(void *arg);

static int add(void *arg)
{
    CONC_TRY(conc_sleep(0.001));
    ++*(int *)arg;
    return 0;
}

static int work(void *arg) { return CONC_GATHER(CONC_CALL(add, arg), CONC_CALL(add, arg)); }

/* In its own run, or as a task of a user of the same conc. */
int library_work(void *arg) { return conc_loop_self() ? work(arg) : conc_run(work, arg); }
