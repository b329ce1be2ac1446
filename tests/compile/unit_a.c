/* One implementation (impl.c) for two files, this and unit_b.c, which run tasks of the same
 * loop. */
#include "all.h"

int unit_b(void *arg);

static int unit_a(void *arg)
{
    CONC_AUTO(conc_group, g) = {0};
    CONC_TRY(conc_spawn(&g, unit_b, arg));
    return conc_group_end(&g, conc_yield());
}

int main(void)
{
    conc_loop *seen = NULL;
    int rc = conc_run(unit_a, &seen);
    return rc != 0 || !seen;
}
