/* See copy_a.c. */
#define CONC_STATIC
#include "all.h"

int copy_b(void);

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(0.001));
    return 5;
}

int copy_b(void) { return conc_loop_self() ? -EBUSY : conc_run(app, NULL); }
