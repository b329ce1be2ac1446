/* A call that lacks its last argument, which ../run.sh defines as CALL; or with all of them. */
#include "all.h"

static int nothing(void *arg)
{
    (void)arg;
    return 0;
}

static int emits(conc_gen *gen, void *arg)
{
    (void)gen;
    (void)arg;
    return 0;
}

#ifdef __cplusplus
extern "C" int main(void);
#endif
int main(void)
{
    conc_group g;
    conc_task t;
    conc_gen gen;
    conc_queue q;
    conc_signals s;
    int array[2] = {1, 2};
    (void)nothing, (void)emits, (void)g, (void)t, (void)gen, (void)q, (void)s, (void)array;
#ifdef CALL
    return CALL;
#endif
}
