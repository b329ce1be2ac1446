/* CONC_NO_DIAGNOSTICS: debug and trace are refused, a deadlock is reported without the tree, and
 * everything else works. run.sh compares its messages. */
#include "all.h"

#include <stdio.h>

static int waits(void *event) { return conc_event_wait(event); }

static int app(void *arg)
{
    conc_event never = {0};
    conc_group g = {0};
    (void)arg;
    CONC_TRY(conc_sleep(3600));
    conc_dump(stderr);
    CONC_TRY_IN(&g, conc_spawn(&g, waits, &never));
    return conc_group_wait(&g);
}

int main(void)
{
    conc_options debug = {.debug = true}, trace = {.trace = "trace.json"},
                 plain = {.virtual_clock = true};
    if (conc_run_with(&debug, app, NULL) != -ENOTSUP ||
        conc_run_with(&trace, app, NULL) != -ENOTSUP)
        return 1;
    return conc_run_with(&plain, app, NULL) == -EDEADLK ? 0 : 2;
}
