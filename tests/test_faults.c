/* test_faults.c - out of memory: the n-th allocation or mapping fails, for n = 1, 2, 3, ... until
 * a program that uses a little of everything completes without a failure. Each time every call
 * returns 0 or -ENOMEM, started functions run, refused ones do not, no wait hangs, and at the end
 * every allocation, mapping and descriptor has been released.
 *
 * Seeds: 30 (hundreds of programs each)
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

#define MAYBE_UNUSED __attribute__((unused))

/* A kind of call that can fail. */
typedef struct fault {
    long calls;   /* since the last reset */
    long at;      /* the call that fails; 0: none */
    bool forever; /* and all after it */
    long injected;
} fault;

static fault malloc_fault, mmap_fault, protect_fault, advise_fault, sigaction_fault;
static bool no_guards;        /* neither mprotect nor madvise makes a guard region */
static long live_allocations; /* malloc'ed and not freed */
static long mapped_bytes;

static bool fails(fault *f)
{
    f->calls++;
    if (f->at == 0 || f->calls < f->at || (f->calls > f->at && !f->forever))
        return false;
    f->injected++;
    errno = ENOMEM;
    return true;
}

MAYBE_UNUSED static void *faulty_malloc(size_t n)
{
    void *p = fails(&malloc_fault) ? NULL : malloc(n);
    live_allocations += p != NULL;
    return p;
}

MAYBE_UNUSED static void *faulty_realloc(void *old, size_t n)
{
    void *p = fails(&malloc_fault) ? NULL : realloc(old, n);
    live_allocations += p != NULL && old == NULL;
    return p;
}

MAYBE_UNUSED static void faulty_free(void *p)
{
    live_allocations -= p != NULL;
    free(p);
}

MAYBE_UNUSED static void *faulty_mmap(void *at, size_t size, int protection, int flags, int fd,
                                      off_t offset)
{
    if (fails(&mmap_fault))
        return MAP_FAILED;
    void *p = mmap(at, size, protection, flags, fd, offset);
    if (p != MAP_FAILED && !(flags & MAP_FIXED))
        mapped_bytes += (long)size;
    return p;
}

MAYBE_UNUSED static int counting_munmap(void *at, size_t size)
{
    int rc = munmap(at, size);
    if (rc == 0)
        mapped_bytes -= (long)size;
    return rc;
}

MAYBE_UNUSED static int faulty_mprotect(void *at, size_t size, int protection)
{
    if (fails(&protect_fault))
        return -1;
    if (no_guards && protection == PROT_NONE) {
        errno = ENOMEM;
        return -1;
    }
    return mprotect(at, size, protection);
}

MAYBE_UNUSED static int faulty_madvise(void *at, size_t size, int advice)
{
    if (fails(&advise_fault))
        return -1;
    if (no_guards) {
        errno = EINVAL;
        return -1;
    }
    return madvise(at, size, advice);
}

MAYBE_UNUSED static int faulty_sigaction(int number, const struct sigaction *now,
                                         struct sigaction *before)
{
    if (now && fails(&sigaction_fault))
        return -1;
    return sigaction(number, now, before);
}

#define CONC_MALLOC(n) faulty_malloc(n)
#define CONC_REALLOC(p, n) faulty_realloc((p), (n))
#define CONC_FREE(p) faulty_free(p)
#define mmap faulty_mmap
#define munmap counting_munmap
#define mprotect faulty_mprotect
#define madvise faulty_madvise
#define sigaction(number, now, before) faulty_sigaction((number), (now), (before))

#define TEST_SECONDS 60
#include "conc_test.h"

/* ---- the program */

static double pace; /* length of one sleep, in seconds */
static bool main_ran, complete;
/* bodies that must have run, because their calls returned 0, and bodies that did */
static int due, ran;
static int posts_due, posts_ran, hook_calls;
static conc_gen abandoned;
static int abandoned_cleaned;

static bool anything_injected(void)
{
    return malloc_fault.injected + mmap_fault.injected + protect_fault.injected +
               advise_fault.injected >
           0;
}

/* Did the call return what it should? It may return -ENOMEM instead, but only after a fault. */
static bool worked(int rc, int expected)
{
    if (rc == -ENOMEM) {
        CHECK(anything_injected());
        complete = false;
        return false;
    }
    CHECK_INT(rc, expected);
    return true;
}

static int body(void *arg)
{
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_sleep(pace), 0);
    ran++;
    return arg ? *(int *)arg : 0;
}

static int until_cancelled(void *arg)
{
    (void)arg;
    int rc = conc_sleep(CONC_FOREVER);
    CHECK_INT(rc, -ECANCELED);
    ran++;
    return rc;
}

static void step_plain_group(void)
{
    conc_group g = {0};
    for (int i = 0; i < 8; i++)
        due += worked(conc_spawn(&g, body, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, due);
}

static void step_handles(void)
{
    int values[5] = {3, 4, 5, 6, 7}, rc;
    bool started[5];
    conc_task t[5] = {{0}};
    conc_group g = {0};
    for (int i = 0; i < 5; i++)
        due += started[i] = worked(conc_spawn_task(&g, &t[i], body, &values[i]), 0);
    for (int i = 0; i < 5; i++) {
        if (started[i]) {
            CHECK_INT(conc_join(&t[i], &rc), 0);
            CHECK_INT(rc, values[i]);
        }
    }
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, due);
}

static void step_next(void)
{
    conc_task t[4] = {{0}}, *next;
    conc_group g = {0};
    int started = 0, collected = 0;
    CHECK_INT(conc_group_begin(&g), 0);
    for (int i = 0; i < 4; i++)
        started += worked(conc_spawn_task(&g, &t[i], body, NULL), 0);
    while (conc_group_next(&g, &next) == 1)
        collected++;
    due += started;
    CHECK_INT(collected, started);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, due);
}

static void step_limit_and_small_stacks(void)
{
    conc_group g = {.limit = 2, .stack_size = 32768};
    for (int i = 0; i < 5; i++)
        due += worked(conc_spawn(&g, body, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, due);
}

static void step_cancelled_group(void)
{
    conc_group g = {0};
    for (int i = 0; i < 3; i++)
        due += worked(conc_spawn(&g, until_cancelled, NULL), 0);
    CHECK_INT(conc_yield(), 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, due);
}

static void step_gather_and_map(void)
{
    int values[6] = {1, 2, 3, 4, 5, 6}, results[6] = {0};
    conc_call calls[] = {CONC_CALL(body, &values[0]), CONC_CALL(body, &values[1]),
                         CONC_CALL(body, NULL)};
    if (worked(conc_gather(calls, 3), 0)) {
        due += 3;
        CHECK_INT(calls[1].result, 2);
    }
    CHECK_INT(ran, due);
    due += worked(conc_gather_all(calls, 3), 0) ? 3 : 0;
    CHECK_INT(ran, due);
    due += worked(CONC_MAP(body, values), 0) ? 6 : 0;
    CHECK_INT(ran, due);
    if (worked(CONC_MAP_ALL(body, values, results), 0)) {
        due += 6;
        for (int i = 0; i < 6; i++)
            CHECK_INT(results[i], values[i]);
    }
    CHECK_INT(ran, due);
}

static int say_started(void *arg)
{
    CHECK_INT(conc_sleep(pace), 0);
    CHECK_INT(conc_started(7), 0);
    return body(arg);
}

static void step_start(void)
{
    conc_group g = {0};
    due += worked(conc_start(&g, say_started, NULL), 7);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, due);
}

enum { KEYS = 12 };
static conc_local keys[KEYS];

static int inherit(void *arg)
{
    int other = 0, *values = arg;
    for (int i = 0; i < KEYS; i++) {
        const void *before = conc_local_get(&keys[i]);
        CHECK(before == &values[i] || (before == NULL && anything_injected()));
        if (worked(conc_local_set(&keys[i], &other), 0))
            CHECK(conc_local_get(&keys[i]) == &other);
        else
            CHECK(conc_local_get(&keys[i]) == before);
    }
    return body(NULL);
}

static void step_locals(void)
{
    static int values[KEYS];
    void *after[KEYS];
    conc_group g = {0};
    for (int i = 0; i < KEYS; i++) {
        bool set = worked(conc_local_set(&keys[i], &values[i]), 0);
        after[i] = conc_local_get(&keys[i]);
        CHECK(after[i] == (set ? &values[i] : NULL));
    }
    for (int i = 0; i < 2; i++)
        due += worked(conc_spawn(&g, inherit, values), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < KEYS; i++)
        CHECK(conc_local_get(&keys[i]) == after[i]);
    CHECK_INT(ran, due);
}

static int count_up(conc_gen *g, void *arg)
{
    int rc = 0;
    for (int i = 1; rc == 0; i++) {
        CHECK_INT(conc_sleep(pace), 0);
        rc = conc_gen_emit(g, &i);
    }
    if (arg)
        ++*(int *)arg;
    return rc;
}

static int count_on(conc_gen *g, void *arg)
{
    int item, rc = 0;
    conc_gen source = {0};
    (void)arg;
    CONC_TRY(conc_gen_open(&source, count_up, NULL, sizeof item));
    while (rc == 0 && (rc = conc_gen_next(&source, &item)) == 1)
        rc = conc_gen_emit(g, &item);
    CHECK_INT(conc_gen_close(&source), 0);
    return rc;
}

static void step_generators(void)
{
    int item = 0;
    conc_gen g = {0}, nested = {0};
    if (worked(conc_gen_open(&g, count_up, NULL, sizeof item), 0)) {
        for (int i = 1; i <= 3; i++) {
            CHECK_INT(conc_gen_next(&g, &item), 1);
            CHECK_INT(item, i);
        }
    } else
        CHECK_INT(conc_gen_next(&g, &item), -EINVAL);
    CHECK_INT(conc_gen_close(&g), 0);
    if (worked(conc_gen_open(&nested, count_on, NULL, sizeof item), 0)) {
        if (worked(conc_gen_next(&nested, &item), 1))
            CHECK_INT(item, 1);
    }
    CHECK_INT(conc_gen_close(&nested), 0);
    abandoned = (conc_gen){0};
    if (worked(conc_gen_open(&abandoned, count_up, &abandoned_cleaned, sizeof item), 0)) {
        abandoned_cleaned = 0;
        CHECK_INT(conc_gen_next(&abandoned, &item), 1);
    } else
        abandoned_cleaned = 1;
}

static void step_names(void)
{
    char before[256];
    snprintf(before, sizeof before, "%s", conc_name(conc_self()));
    conc_set_name(conc_self(), "a name that was given at run time");
    if (strcmp(conc_name(conc_self()), "a name that was given at run time") != 0) {
        CHECK(anything_injected());
        CHECK_STR(conc_name(conc_self()), before);
        complete = false;
    }
}

static int fail_in_words(void *arg)
{
    ran++;
    return conc_fail(-EPROTO, "words %s", (char *)arg);
}

static void check_words(const char *text)
{
    if (strcmp(text, "words of mine") != 0) {
        CHECK(anything_injected());
        CHECK_STR(text, conc_strerror(-EPROTO));
        complete = false;
    }
}

static void step_errors(void)
{
    conc_task t = {0};
    conc_group g = {.keep_going = true}, h = {.keep_going = true};
    int failures = 0;
    if (worked(conc_spawn_task(&g, &t, fail_in_words, "of mine"), 0)) {
        due++;
        CHECK_INT(conc_join(&t, NULL), 0);
        check_words(conc_error_text(&t));
        CHECK_INT(conc_group_wait(&g), -EPROTO);
        check_words(conc_last_error());
    } else
        CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 2; i++)
        failures += worked(conc_spawn(&h, fail_in_words, "of mine"), 0);
    due += failures;
    CHECK_INT(conc_group_wait(&h), failures ? -EPROTO : 0);
    CHECK_INT(h.error_count, failures);
    CHECK_INT(ran, due);
}

static void count_post(void *arg)
{
    (void)arg;
    posts_ran++;
}

static void step_posts(void)
{
    for (int i = 0; i < 5; i++)
        posts_due += worked(conc_post(conc_loop_self(), count_post, NULL), 0);
    /* a slow loop runs only a few at a time */
    for (int i = 0; i < 100 && posts_ran < posts_due; i++)
        CHECK_INT(conc_sleep(pace), 0);
    CHECK_INT(posts_ran, posts_due);
    posts_due += worked(conc_post(conc_loop_self(), count_post, NULL), 0);
}

static void step_scopes(void)
{
    int five = 5;
    CHECK_INT(conc_timeout(CONC_FOREVER, body, &five), 5);
    due++;
    CHECK_INT(conc_timeout(pace, until_cancelled, NULL), -ETIMEDOUT);
    due++;
    CHECK_INT(conc_shield(CONC_FOREVER, body, &five), 5);
    due++;
}

static int spawn_three(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < 3; i++)
        due += worked(conc_spawn(&g, body, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    return body(arg);
}

static void step_many(void)
{
    conc_group g = {0};
    for (int i = 0; i < 10; i++)
        due += worked(conc_spawn(&g, spawn_three, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, due);
}

static int leave_early(void)
{
    int item;
    CONC_AUTO(conc_group, g) = {0};
    CONC_AUTO(conc_gen, gen) = {0};
    if (worked(conc_spawn(&g, until_cancelled, NULL), 0))
        due++;
    CONC_TRY(conc_gen_open(&gen, count_up, NULL, sizeof item));
    return conc_gen_next(&gen, &item);
}

static void step_background(void)
{
    conc_task t = {0};
    due += worked(conc_spawn(NULL, until_cancelled, NULL), 0);
    if (worked(conc_spawn_task(NULL, &t, body, NULL), 0)) {
        due++;
        CHECK_INT(conc_join(&t, NULL), 0);
    }
}

static int program(void *arg)
{
    (void)arg;
    main_ran = true;
    step_plain_group();
    step_handles();
    step_next();
    step_limit_and_small_stacks();
    step_cancelled_group();
    step_gather_and_map();
    step_start();
    step_locals();
    step_generators();
    step_names();
    step_errors();
    step_posts();
    step_scopes();
    step_many();
    (void)worked(leave_early(), 1);
    CHECK_INT(ran, due);
    step_background();
    return 3;
}

static void count_error(const conc_failure *f, void *user)
{
    (void)user;
    CHECK_INT(f->rc, -EPROTO);
    hook_calls++;
}

/* ---- runs of the program */

static void reset(void)
{
    malloc_fault = mmap_fault = protect_fault = advise_fault = (fault){0};
    main_ran = false;
    complete = true;
    due = ran = posts_due = posts_ran = hook_calls = 0;
    abandoned_cleaned = 1;
}

/* Runs the program; returns whether it completed without an -ENOMEM. */
static bool run_program(bool real)
{
    int fds = test_count_fds();
    conc_options o = {.virtual_clock = !real, .on_error = count_error};
    pace = real ? 1e-6 : 1;
    int rc = conc_run_with(&o, program, NULL);
    CHECK_INT(rc, main_ran ? 3 : -ENOMEM);
    CHECK(main_ran || anything_injected());
    CHECK_INT(ran, due);
    CHECK_INT(posts_ran, posts_due);
    CHECK_INT(abandoned_cleaned, 1);
    CHECK(hook_calls <= 1);
    CHECK_INT(live_allocations, 0);
    CHECK_INT(mapped_bytes, 0);
    CHECK_INT(test_count_fds(), fds);
    CHECK(conc_loop_self() == NULL);
    return main_ran && complete;
}

static void check_every_call(fault *f, bool forever, bool real)
{
    long n = 0;
    bool whole;
    unsetenv("CONC_CLOCK");
    do {
        reset();
        f->at = ++n;
        f->forever = forever;
        whole = run_program(real);
        if (f->injected == 0)
            CHECK(whole);
    } while (f->injected > 0 && n < 100000);
    CHECK_INT(f->injected, 0);
    CHECK(f->calls < n);
}

TEST(without_faults_the_program_completes_and_needs_memory)
{
    for (int i = 0; i < 3; i++) {
        reset();
        CHECK(run_program(false));
        CHECK_INT(hook_calls, 1);
        CHECK(malloc_fault.calls > 0);
        CHECK(mmap_fault.calls > 0);
    }
}

TEST(every_allocation_may_fail) { check_every_call(&malloc_fault, false, false); }

TEST(from_any_allocation_on_all_may_fail) { check_every_call(&malloc_fault, true, false); }

TEST(every_mapping_may_fail) { check_every_call(&mmap_fault, false, false); }

TEST(from_any_mapping_on_all_may_fail) { check_every_call(&mmap_fault, true, false); }

TEST(every_change_of_protection_may_fail) { check_every_call(&protect_fault, false, false); }

TEST(from_any_change_of_protection_on_all_may_fail)
{
    check_every_call(&protect_fault, true, false);
}

TEST(every_advice_may_fail) { check_every_call(&advise_fault, false, false); }

TEST(on_the_real_clock_with_poll_every_allocation_may_fail)
{
    setenv("CONC_POLL", "poll", 1);
    check_every_call(&malloc_fault, false, true);
}

#if !TEST_ONLY_POLL
TEST(on_the_real_clock_every_allocation_may_fail)
{
    setenv("CONC_POLL", TEST_POLLER, 1);
    check_every_call(&malloc_fault, false, true);
}
#endif

TEST(allocations_and_mappings_may_fail_together)
{
    for (long n = 1; n < 60; n++) {
        reset();
        malloc_fault.at = n * 3;
        mmap_fault.at = n;
        malloc_fault.forever = n % 2;
        mmap_fault.forever = n % 3 == 0;
        (void)run_program(false);
    }
}

static void run_without_guards(void)
{
    reset();
    no_guards = true;
    CHECK(run_program(false));
    CHECK_INT(hook_calls, 1);
}

TEST(without_more_guard_regions_spawning_continues_and_one_report_says_so)
{
    static char text[65536];
    int lines = 0, status = test_in_process(run_without_guards, text, sizeof text);
    for (const char *p = text; (p = strchr(p, '\n')); p++)
        lines++;
    if (status != 0 || lines > 5)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, text);
}

/* ---- one call at a time: what a failure leaves unchanged */

static int spawn_and_count(void *arg)
{
    conc_stats before, after;
    conc_group g = {.limit = 1};
    conc_task t = {0};
    fault *f = arg;
    conc_get_stats(&before);
    CHECK_INT(conc_group_begin(&g), 0);
    f->at = 1;
    f->forever = true;
    f->calls = 0;
    int started = 0;
    for (int i = 0; i < 100; i++) {
        int rc = conc_spawn_task(&g, &t, body, NULL);
        if (rc == 0) {
            started++;
            CHECK_INT(conc_join(&t, NULL), 0);
        } else
            CHECK_INT(rc, -ENOMEM);
    }
    f->at = 0;
    conc_get_stats(&after);
    CHECK_INT(after.tasks, before.tasks);
    CHECK_INT(after.stacks, before.stacks);
    CHECK_INT(after.spawned, before.spawned + (uint64_t)started);
    CHECK_INT(ran, started);
    CHECK_INT(g.error_count, 0);
    CHECK_INT(conc_spawn_task(&g, &t, body, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, started + 1);
    return 0;
}

TEST(a_failed_spawn_leaves_counts_limits_and_handle_unchanged)
{
    fault *faults[] = {&malloc_fault, &mmap_fault};
    conc_options o = {.virtual_clock = true};
    pace = 1;
    for (size_t i = 0; i < CONC_LEN(faults); i++) {
        reset();
        CHECK_INT(conc_run_with(&o, spawn_and_count, faults[i]), 0);
        CHECK_INT(live_allocations, 0);
        CHECK_INT(mapped_bytes, 0);
    }
}

static int spawn_and_look_at_errno(void *arg)
{
    fault *f = arg;
    conc_group g = {.stack_size = 100000}; /* not the run's: there is no such stack yet */
    CHECK_INT(conc_group_begin(&g), 0);
    f->at = 1;
    f->forever = true;
    f->calls = 0;
    errno = 77;
    CHECK_INT(conc_spawn(&g, body, NULL), -ENOMEM);
    CHECK_INT(errno, 77);
    CHECK(f->injected > 0);
    f->at = 0;
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, 0);
    return 0;
}

TEST(a_spawn_that_failed_preserves_errno)
{
    fault *faults[] = {&malloc_fault, &mmap_fault};
    conc_options o = {.virtual_clock = true};
    for (size_t i = 0; i < CONC_LEN(faults); i++) {
        reset();
        CHECK_INT(conc_run_with(&o, spawn_and_look_at_errno, faults[i]), 0);
        CHECK_INT(live_allocations, 0);
        CHECK_INT(mapped_bytes, 0);
    }
}

static int spawn_until_it_fails(void *arg)
{
    conc_group g = {0};
    int started = 0, rc = 0;
    (void)arg;
    mmap_fault.at = mmap_fault.calls + 5;
    mmap_fault.forever = true;
    malloc_fault.at = malloc_fault.calls + 500;
    malloc_fault.forever = true;
    while (rc == 0 && started < 100000) {
        rc = conc_spawn(&g, until_cancelled, NULL);
        started += rc == 0;
    }
    CHECK_INT(rc, -ENOMEM);
    CHECK_INT(conc_settle(), 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, started);
    return started;
}

TEST(when_memory_runs_out_tasks_that_have_theirs_continue)
{
    conc_options o = {.virtual_clock = true};
    reset();
    CHECK(conc_run_with(&o, spawn_until_it_fails, NULL) > 0);
    CHECK_INT(live_allocations, 0);
    CHECK_INT(mapped_bytes, 0);
}

static int returns_0(void *arg)
{
    (void)arg;
    return 0;
}

TEST(a_refused_interrupt_leaves_the_signals_as_they_were)
{
    conc_options o = {.interrupt = true};
    reset();
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    for (int at = 1; at <= 2; at++) {
        sigaction_fault = (fault){.at = at};
        CHECK_INT(conc_run_with(&o, returns_0, NULL), -ENOMEM);
        sigaction_fault = (fault){0};
        CHECK_INT(conc_run_with(&o, returns_0, NULL), 0);
        CHECK(signal(SIGINT, SIG_DFL) == SIG_DFL);
        CHECK(signal(SIGTERM, SIG_DFL) == SIG_DFL);
    }
}
