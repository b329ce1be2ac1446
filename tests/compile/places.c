/* Everything here is reported with its location: tasks, groups, locks, generators, streams,
 * signals, scopes; in a dump, a trace, and debug mode's reports. */
#define CONC_IMPLEMENTATION
#if __has_include("conc_sync.h") /* else conc.h is the single file, with all of it */
#include "conc_sync.h"
#else
#include "conc.h"
#endif

#include <stdio.h>
#include <unistd.h>

static conc_lock lock;
static conc_rwlock rwlock;

static int child(void *arg)
{
    (void)arg;
    CONC_TRY(conc_lock_acquire(&lock));
    CONC_TRY(conc_rwlock_acquire_write(&rwlock));
    return conc_sleep(1);
}

static int element(void *arg) { return arg ? conc_yield() : 0; }

static int fails(void *arg) { return arg ? 0 : conc_fail(-EPROTO, "in vain"); }

static int starts(void *arg)
{
    (void)arg;
    CONC_TRY(conc_started(0));
    return conc_sleep(1);
}

static int emits(conc_gen *g, void *arg) { return conc_gen_emit(g, arg); }

static int waits(void *arg)
{
    int numbers[2] = {0}, ends[2];
    conc_gen g = {0};
    conc_stream s = {0};
    CONC_TRY(conc_gen_open(&g, emits, arg, sizeof numbers[0]));
    if (pipe(ends) != 0)
        return -errno;
    CONC_TRY(conc_stream_open(&s, ends[0]));
    CONC_TRY(conc_map(element, numbers, CONC_LEN(numbers), sizeof numbers[0]));
    conc_call calls[] = {CONC_CALL(element, arg), CONC_CALL(child, arg)};
    return conc_gather(calls, CONC_LEN(calls));
}

static int forgets(void *arg)
{
    (void)arg;
    conc_scope s = {0};
    return conc_scope_begin(&s, 1);
}

static int app(void *arg)
{
    conc_group g = {0};
    conc_task t;
    (void)arg;
    CONC_TRY(conc_group_begin(&g));
    CONC_TRY_IN(&g, conc_spawn(NULL, fails, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, child, NULL));
    CONC_TRY_IN(&g, conc_spawn_task(&g, &t, child, NULL));
    CONC_TRY_IN(&g, conc_start(&g, starts, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, waits, &lock));
    CONC_TRY_IN(&g, conc_settle());
    conc_dump(stderr);
    CONC_TRY_IN(&g, conc_sleep(0.5));
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

int main(int argc, char **argv)
{
    conc_options o = {.debug = true, .virtual_clock = true, .trace = argv[argc - 1]};
    int rc = conc_run_with(&o, app, NULL);
    return rc ? rc : conc_run(forgets, NULL);
}
