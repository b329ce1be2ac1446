/* See unit_a.c. */
#include "all.h"

int unit_b(void *arg);

int unit_b(void *arg)
{
    *(conc_loop **)arg = conc_loop_self();
    return conc_sleep(0.001);
}
