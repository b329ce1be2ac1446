/* A library with conc inside, which a program loads while it is running. */
#define CONC_IMPLEMENTATION
#include "all.h"

#include <string.h>

__attribute__((visibility("default"))) int late_work(void);

static int nothing(void *arg)
{
    (void)arg;
    return 0;
}

static int app(void *arg)
{
    conc_procs pool = {.workers = 1};
    (void)arg;
    CONC_TRY(conc_procs_open(&pool));
    int rc = conc_procs_run(&pool, nothing, NULL, 0);
    bool refused = rc == -ENOTRECOVERABLE && strstr(conc_last_error(), "loaded late");
    if (!refused)
        printf("late workers: %d (%s)\n", rc, conc_last_error());
    conc_procs_close(&pool);
    return refused ? 0 : -EIO;
}

/* 0 if the pool is refused with an error text */
int late_work(void) { return conc_run(app, NULL); }
