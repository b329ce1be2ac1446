/* The headers, included like those of a library that is written only for C. */
extern "C" {
#include "all.h"
}

static int ends_what_it_has_open(void *arg)
{
    conc_group g{};
    conc_scope s{};
    (void)arg;
    CONC_TRY_IN(&g, conc_group_begin(&g));
    CONC_TRY_IN(&g, conc_scope_begin(&s, 1));
    CONC_TRY_IN(&s, conc_yield());
    CONC_TRY_IN(&g, conc_scope_end(&s, 0));
    return conc_group_wait(&g);
}

int main() { return conc_run(ends_what_it_has_open, nullptr) != 0; }
