/* A call that waits, CALL, and no other, so that the compiler inlines as much as it can: conc must
 * not report objects of active functions as lost, even with CONC_DEBUG=1. */
#define CONC_STATIC
#include "all.h"

static int quick(void *arg)
{
    (void)arg;
    return conc_yield() == -EPERM ? 0 : 0; /* also in a job */
}

static int own(void *arg)
{
    static conc_event never;
    static conc_sem none;
    static conc_latch latch;
    conc_scope s = {0};
    conc_group g = {0};
    conc_task t = {0};
    int rc;
    (void)arg;
    (void)never;
    (void)none;
    (void)latch;
    CONC_TRY(conc_scope_begin(&s, 0.01));
    CONC_TRY_IN(&s, conc_spawn_task(&g, &t, quick, NULL));
    rc = CALL;
    CONC_TRY_IN(&s, conc_group_end(&g, rc));
    return conc_scope_end(&s, 0);
}

int main(void)
{
    int rc = conc_run(own, NULL);
    return rc < 0 && rc != -ETIMEDOUT;
}
