/* A run seen from outside: its result, options and environment, leaks, and calls outside it. */
#include "conc_test.h"

#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>

static int calls; /* calls of returns() */

static int returns(void *arg)
{
    calls++;
    return *(int *)arg;
}

static int run_virtual(conc_fn *fn, void *arg)
{
    conc_options options = {.virtual_clock = true};
    return conc_run_with(&options, fn, arg);
}

/* ---- results ---- */

TEST(a_run_returns_what_its_function_returned)
{
    int values[] = {0, 1, 42, INT_MAX, -1, -EIO, -ECANCELED, -EDEADLK, -INT_MAX};
    for (size_t i = 0; i < CONC_LEN(values); i++) {
        CHECK_INT(conc_run(returns, &values[i]), values[i]);
        CHECK_INT(run_virtual(returns, &values[i]), values[i]);
    }
    CHECK_INT(calls, 2 * CONC_LEN(values));
}

static int waits_and_returns(void *arg)
{
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_sleep(3), 0);
    CHECK_TIME(3);
    return *(int *)arg;
}

TEST(a_result_survives_a_wait)
{
    CHECK_INT(run_virtual(waits_and_returns, &(int){42}), 42);
    CHECK_INT(run_virtual(waits_and_returns, &(int){-EIO}), -EIO);
}

TEST(a_run_without_a_function_is_refused)
{
    conc_options options = {.virtual_clock = true};
    CHECK_INT(conc_run(NULL, NULL), -EINVAL);
    CHECK_INT(conc_run_with(&options, NULL, NULL), -EINVAL);
    CHECK(conc_loop_self() == NULL);
    CHECK_INT(conc_run(returns, &(int){5}), 5);
}

/* ---- one after another, inside each other, side by side ---- */

static int sleeps_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int looks_around_and_leaves_a_mess(void *arg)
{
    (void)arg;
    conc_stats stats;
    CHECK_TIME(0);
    CHECK_STR(conc_last_error(), "");
    CHECK(!conc_cancelled());
    conc_get_stats(&stats);
    CHECK_INT(stats.tasks, 1);
    CHECK_INT(stats.ready, 0);
    CHECK_INT(stats.timers, 0);
    CHECK_INT(stats.generators, 0);
    CHECK_INT(stats.holds, 0);

    CHECK_INT(conc_spawn(NULL, sleeps_forever, NULL), 0);
    CHECK_INT(conc_sleep(10), 0);
    CHECK_INT(conc_cancel(conc_self()), 0);
    return conc_fail(-EIO, "left over");
}

TEST(runs_follow_each_other_and_each_starts_clean)
{
    for (int i = 0; i < 100; i++) {
        CHECK_INT(run_virtual(looks_around_and_leaves_a_mess, NULL), -EIO);
        CHECK(conc_loop_self() == NULL);
        CHECK(conc_self() == NULL);
    }
}

TASK_TEST(a_run_inside_a_run_is_refused)
{
    conc_options options = {.virtual_clock = true};
    conc_task *self = conc_self();
    conc_loop *loop = conc_loop_self();
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_run(returns, &(int){1}), -EBUSY);
    CHECK_INT(conc_run_with(&options, returns, &(int){1}), -EBUSY);
    CHECK_INT(conc_main(returns, &(int){1}), 1);
    CHECK_INT(calls, 0);
    CHECK(conc_self() == self);
    CHECK(conc_loop_self() == loop);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_TIME(2);
}

static void *runs_seven(void *arg)
{
    (void)arg;
    static int result;
    CHECK(conc_loop_self() == NULL);
    CHECK(conc_self() == NULL);
    result = run_virtual(waits_and_returns, &(int){7});
    return &result;
}

TASK_TEST(another_thread_may_run_during_a_run)
{
    pthread_t thread;
    void *result;
    conc_task *self = conc_self();
    CHECK_INT(pthread_create(&thread, NULL, runs_seven, NULL), 0);
    CHECK_INT(pthread_join(thread, &result), 0);
    CHECK_INT(*(int *)result, 7);
    CHECK(conc_self() == self);
    CHECK_TIME(0);
}

enum { THREADS = 4, CHILDREN = 50 };

typedef struct thread_run {
    int result;
    int sum;
    double ended;
    conc_loop *loop;
} thread_run;

static int threads_inside; /* atomic: all are in their runs at the same time */

static int adds_one_every_second(void *arg)
{
    thread_run *t = arg;
    for (int i = 0; i < 10; i++) {
        CONC_TRY(conc_sleep(1));
        t->sum++;
        if (conc_loop_self() != t->loop)
            return -EPROTO;
    }
    return 0;
}

static int meets_the_other_threads(void *arg)
{
    thread_run *t = arg;
    t->loop = conc_loop_self();
    __atomic_add_fetch(&threads_inside, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&threads_inside, __ATOMIC_SEQ_CST) < THREADS)
        sched_yield();
    int rc = conc_map(adds_one_every_second, t, CHILDREN, 0);
    t->ended = conc_now();
    return rc < 0 ? rc : 9;
}

static void *runs_in_a_thread(void *arg)
{
    thread_run *t = arg;
    t->result = run_virtual(meets_the_other_threads, t);
    return NULL;
}

TEST(runs_in_several_threads_at_once_do_not_interfere)
{
    pthread_t threads[THREADS];
    static thread_run runs[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, runs_in_a_thread, &runs[i]), 0);
    for (int i = 0; i < THREADS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < THREADS; i++) {
        CHECK_INT(runs[i].result, 9);
        CHECK_INT(runs[i].sum, CHILDREN * 10);
        CHECK(runs[i].ended == 10);
        for (int j = 0; j < i; j++)
            CHECK(runs[i].loop != runs[j].loop);
    }
}

/* ---- options ---- */

TEST(invalid_options_are_refused_before_anything_runs)
{
    conc_options bad[] = {{.stack_size = 1},        {.stack_size = 16383},
                          {.slow_step = -1},        {.slow_step = NAN},
                          {.slow_step = -INFINITY}, {.debug = true, .slow_step = -0.5}};
    for (size_t i = 0; i < CONC_LEN(bad); i++)
        CHECK_INT(conc_run_with(&bad[i], returns, &(int){1}), -EINVAL);
    CHECK_INT(calls, 0);

    conc_options good = {.stack_size = 16384, .slow_step = 0.5};
    CHECK_INT(conc_run_with(&good, returns, &(int){1}), 1);
}

static int uses_stack(size_t bytes)
{
    volatile char block[16 * 1024];
    block[0] = 1;
    block[sizeof block - 1] = 2;
    int below = bytes > sizeof block ? uses_stack(bytes - sizeof block) : 0;
    return block[0] + block[sizeof block - 1] + (below < 0 ? below : 0);
}

static int uses_700_kib(void *arg)
{
    (void)arg;
    CHECK_INT(uses_stack((size_t)700 * 1024), 3);
    return 5;
}

static int spawns_a_hungry_child(void *arg)
{
    (void)arg;
    conc_task t;
    conc_group g = {0};
    int result = 0;
    CHECK_INT(conc_spawn_task(&g, &t, uses_700_kib, NULL), 0);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    return result;
}

TEST(the_stack_size_of_a_run_is_that_of_its_tasks)
{
    conc_options options = {.stack_size = (size_t)1024 * 1024};
    CHECK_INT(conc_run_with(&options, spawns_a_hungry_child, NULL), 5);
}

static int uses_100_kib(void *arg)
{
    (void)arg;
    return uses_stack((size_t)100 * 1024);
}

TEST(main_fn_gets_a_full_stack_whatever_its_tasks_get)
{
    conc_options options = {.stack_size = 16384};
    CHECK_INT(conc_run_with(&options, uses_100_kib, NULL), 3);
}

/* ---- seeds and random numbers ---- */

typedef struct runner {
    char *order;
    char name;
} runner;

static int writes_its_name(void *arg)
{
    runner *r = arg;
    r->order[strlen(r->order)] = r->name;
    return 0;
}

static int lets_eight_race(void *arg)
{
    runner runners[8];
    for (int i = 0; i < 8; i++)
        runners[i] = (runner){arg, (char)('a' + i)};
    return CONC_MAP(writes_its_name, runners);
}

static const char *order_under(uint64_t seed)
{
    static char orders[4][16];
    static int next;
    char *order = memset(orders[next++ % 4], 0, sizeof orders[0]);
    conc_options options = {.seed = seed};
    CHECK_INT(conc_run_with(&options, lets_eight_race, order), 0);
    CHECK_INT(strlen(order), 8);
    for (char name = 'a'; name <= 'h'; name++)
        CHECK(strchr(order, name));
    return order;
}

TEST(a_seed_shuffles_the_ready_tasks_and_repeats_itself)
{
    int shuffled = 0;
    unsetenv("CONC_SEED");
    CHECK_STR(order_under(0), "abcdefgh");
    for (uint64_t seed = 1; seed <= 20; seed++) {
        const char *order = order_under(seed);
        CHECK_STR(order_under(seed), order);
        shuffled += strcmp(order, order_under(seed + 1)) != 0;
    }
    CHECK(shuffled > 10);
}

enum { DRAWS = 32 };

static int draws(void *arg)
{
    double *out = arg;
    for (int i = 0; i < DRAWS; i++)
        out[i] = conc_random(0, 1);
    return 0;
}

static bool same_draws(const conc_options *one, const conc_options *other)
{
    double a[DRAWS], b[DRAWS];
    int same = 0;
    CHECK_INT(conc_run_with(one, draws, a), 0);
    CHECK_INT(conc_run_with(other, draws, b), 0);
    for (int i = 0; i < DRAWS; i++)
        same += a[i] == b[i];
    CHECK(same == DRAWS || same < DRAWS / 2);
    return same == DRAWS;
}

TEST(random_numbers_repeat_under_a_seed_and_on_the_virtual_clock)
{
    conc_options virtual_clock = {.virtual_clock = true}, seven = {.seed = 7}, eight = {.seed = 8};
    unsetenv("CONC_SEED");
    CHECK(same_draws(&virtual_clock, &virtual_clock));
    CHECK(same_draws(&seven, &seven));
    CHECK(!same_draws(&seven, &eight));
}

TEST(options_or_environment_seed_the_random_numbers)
{
    conc_options virtual_clock = {.virtual_clock = true}, one = {.random = 1};
    conc_options seven = {.seed = 7}, other = {.seed = 7, .random = 8, .virtual_clock = true};
    conc_options eight = {.random = 8}, real = {0};
    unsetenv("CONC_SEED");
    unsetenv("CONC_CLOCK");
    CHECK(same_draws(&virtual_clock, &one));
    CHECK(same_draws(&seven, &(conc_options){.random = 7}));
    CHECK(same_draws(&other, &eight)); /* .random outranks the seed and the clock */
    CHECK(!same_draws(&other, &seven));
    CHECK(!same_draws(&real, &real)); /* the clock */
    setenv("CONC_SEED", "7", 1);
    CHECK(same_draws(&virtual_clock, &seven));
    CHECK(!same_draws(&eight, &seven));
    setenv("CONC_RANDOM", "8", 1);
    CHECK(same_draws(&real, &eight));
    CHECK(same_draws(&one, &eight));
    setenv("CONC_RANDOM", "0", 1); /* as if the option were not set */
    CHECK(same_draws(&eight, &seven));
    setenv("CONC_RANDOM", "many", 1);
    CHECK_INT(conc_run(draws, NULL), -EINVAL);
    unsetenv("CONC_SEED");
    unsetenv("CONC_RANDOM");
}

TASK_TEST(random_numbers_stay_in_their_range_and_fill_it)
{
    double sum = 0, lowest = 3, highest = -2;
    for (int i = 0; i < 20000; i++) {
        double x = conc_random(-2, 3);
        CHECK(x >= -2 && x < 3);
        sum += x;
        lowest = x < lowest ? x : lowest;
        highest = x > highest ? x : highest;
    }
    CHECK(lowest < -1.98 && highest > 2.98);
    CHECK(sum / 20000 > 0.4 && sum / 20000 < 0.6);
    CHECK(conc_random(5, 5) == 5);
    CHECK(conc_random(5, 4) == 5);
    CHECK(conc_random(5, NAN) == 5);
}

/* ---- the environment ---- */

#ifndef CONC_NO_ENV
TEST(the_environment_overrides_the_options)
{
    conc_options options = {.virtual_clock = false, .stack_size = 64 * 1024, .seed = 1};
    unsetenv("CONC_SEED");
    char order[16];
    strcpy(order, order_under(7));

    setenv("CONC_CLOCK", "virtual", 1);
    CHECK_INT(conc_run_with(&options, waits_and_returns, &(int){42}), 42);
    CHECK_INT(conc_run(waits_and_returns, &(int){42}), 42);
    setenv("CONC_STACK", "1048576", 1);
    CHECK_INT(conc_run_with(&options, spawns_a_hungry_child, NULL), 5);
    setenv("CONC_SEED", "7", 1);
    CHECK_STR(order_under(1), order);
}

TEST(either_poller_can_be_requested)
{
    setenv("CONC_CLOCK", "virtual", 1);
    setenv("CONC_POLL", "poll", 1);
    CHECK_INT(conc_run(waits_and_returns, &(int){42}), 42);
    setenv("CONC_POLL", TEST_POLLER, 1);
    CHECK_INT(conc_run(waits_and_returns, &(int){42}), 42);
}

static void asks_for_the_others_poller(void)
{
    bool is_kqueue = strcmp(TEST_POLLER, "kqueue") == 0;
    setenv("CONC_POLL", is_kqueue ? "epoll" : "kqueue", 1);
    CHECK_INT(conc_run(returns, &(int){1}), -EINVAL);
}

TEST(another_systems_poller_is_refused_with_an_error_text)
{
    char output[1024];
    CHECK_INT(test_in_process(asks_for_the_others_poller, output, sizeof output), 0);
    CHECK_CONTAINS(output, "conc: CONC_POLL=");
    CHECK_CONTAINS(output, TEST_ONLY_POLL ? "has only poll" : "is neither poll nor " TEST_POLLER);
}

TEST(an_invalid_environment_fails_the_run)
{
    static const char *bad[][2] = {
        {"CONC_DEBUG", "maybe"},  {"CONC_CLOCK", "sundial"},
        {"CONC_POLL", "select"},  {"CONC_SEED", "seven"},
        {"CONC_SEED", "7 seven"}, {"CONC_SEED", "-7"},
        {"CONC_STACK", "big"},    {"CONC_SEED", "99999999999999999999999"},
        {"CONC_STACK", "16383"},  {"CONC_STACK", "-65536"},
        {"CONC_STACK", "64k"},    {"CONC_STACK", "99999999999999999999999"}};
    conc_options options = {.virtual_clock = true, .seed = 7, .stack_size = 65536};
    for (size_t i = 0; i < CONC_LEN(bad); i++) {
        setenv(bad[i][0], bad[i][1], 1);
        if (conc_run(returns, &(int){1}) != -EINVAL ||
            conc_run_with(&options, returns, &(int){1}) != -EINVAL)
            test_fail(__FILE__, __LINE__, "%s=%s was accepted", bad[i][0], bad[i][1]);
        unsetenv(bad[i][0]);
    }
    CHECK_INT(calls, 0);
    CHECK_INT(conc_run(returns, &(int){1}), 1);
}
#endif

/* ---- the end ---- */

typedef struct leftover {
    bool ran, cleaned;
    int slept, spawned;
    double ended;
} leftover;

static leftover left;

static int cleans_up(void *arg)
{
    leftover *l = arg;
    CONC_TRY(conc_sleep(2));
    l->spawned = conc_spawn(NULL, returns, &(int){0});
    l->cleaned = true;
    return 0;
}

static int is_left_over(void *arg)
{
    leftover *l = arg;
    l->ran = true;
    l->slept = conc_sleep(100);
    conc_shield(CONC_FOREVER, cleans_up, l);
    l->ended = conc_now();
    return l->slept;
}

static int leaves_a_task(void *arg)
{
    CHECK_INT(conc_spawn(NULL, is_left_over, &left), 0);
    CONC_TRY(conc_sleep(*(double *)arg));
    CHECK(left.ran && !left.cleaned);
    return 123;
}

TEST(background_tasks_are_cancelled_and_waited_for_at_the_end)
{
    CHECK_INT(run_virtual(leaves_a_task, &(double){5}), 123);
    CHECK_INT(left.slept, -ECANCELED);
    CHECK(left.cleaned);
    CHECK(left.ended == 7);
    CHECK_INT(left.spawned, -ECANCELED);
    CHECK_INT(calls, 0);
}

static int leaves_a_new_task(void *arg)
{
    (void)arg;
    return conc_spawn(NULL, is_left_over, &left);
}

TEST(a_background_task_spawned_at_the_very_end_still_runs)
{
    CHECK_INT(run_virtual(leaves_a_new_task, NULL), 0);
    CHECK(left.ran && left.cleaned);
    CHECK_INT(left.slept, -ECANCELED);
    CHECK(left.ended == 2);
}

TEST(descriptors_are_back_to_where_they_were)
{
    static const conc_options bad = {.stack_size = 1};
    int before = test_count_fds();
    for (int i = 0; i < 3; i++) {
        memset(&left, 0, sizeof left);
        CHECK_INT(run_virtual(leaves_a_task, &(double){5}), 123);
        CHECK_INT(conc_run(returns, &(int){-EIO}), -EIO);
        CHECK_INT(conc_run_with(&bad, returns, &(int){1}), -EINVAL);
    }
    CHECK_INT(test_count_fds(), before);
}

/* ---- conc_main ---- */

static int succeeds(void *arg)
{
    (void)arg;
    CONC_TRY(conc_yield());
    return 5;
}

static int breaks_the_kettle(void *arg)
{
    (void)arg;
    CONC_TRY(conc_yield());
    return conc_fail(-EIO, "the kettle number %d is broken", 17);
}

static int fails_without_words(void *arg)
{
    (void)arg;
    return -ENOSPC;
}

static conc_fn *mains_fn;

static void exits_with_conc_main(void)
{
    int status = conc_main(mains_fn, NULL);
    fflush(NULL);
    _exit(status);
}

static int status_of_conc_main(conc_fn *fn, char *output, size_t size)
{
    mains_fn = fn;
    int status = test_in_process(exits_with_conc_main, output, size);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

TEST(conc_main_turns_the_result_into_an_exit_status)
{
    char output[8192];
    CHECK_INT(status_of_conc_main(succeeds, output, sizeof output), 0);
    CHECK(!output[0] || strstr(output, "makecontext")); /* a sanitizer's note about ucontext */
    CHECK_INT(status_of_conc_main(breaks_the_kettle, output, sizeof output), 1);
    CHECK_CONTAINS(output, "the kettle number 17 is broken");
    CHECK_INT(status_of_conc_main(fails_without_words, output, sizeof output), 1);
    CHECK_CONTAINS(output, conc_strerror(-ENOSPC));
    CHECK_INT(status_of_conc_main(NULL, output, sizeof output), 1);
    CHECK_CONTAINS(output, conc_strerror(-EINVAL));
}

/* ---- errno and version ---- */

static int changes_errno(void *arg)
{
    (void)arg;
    for (int i = 0; i < 5; i++) {
        errno = 1000 + i;
        CONC_TRY(conc_sleep(1));
        CHECK_INT(errno, 1000 + i);
    }
    return 0;
}

static int calls_this_and_that(void *arg)
{
    (void)arg;
    conc_group g = {0};
    errno = 77;
    CHECK_INT(conc_spawn(&g, changes_errno, NULL), 0);
    CHECK_INT(conc_spawn(&g, NULL, NULL), -EINVAL);
    CHECK_INT(conc_join(conc_self(), NULL), -EDEADLK);
    CHECK_INT(conc_sleep(NAN), -EINVAL);
    CHECK_INT(conc_run(returns, NULL), -EBUSY);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(conc_timeout(1, sleeps_forever, NULL), -ETIMEDOUT);
    CHECK_STR(conc_strerror(-EIO), conc_strerror(-EIO));
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(errno, 77);
    return 0;
}

TEST(errno_is_preserved_and_is_each_tasks_own)
{
    errno = 55;
    CHECK_INT(run_virtual(calls_this_and_that, NULL), 0);
    CHECK_INT(errno, 55);
    CHECK_INT(conc_run(NULL, NULL), -EINVAL);
    CHECK_INT(conc_sleep(1), -EPERM);
    CHECK_INT(errno, 55);
}

static volatile sig_atomic_t signals;

static void counts_signals(int number)
{
    (void)number;
    signals++;
}

typedef struct signaller {
    pthread_t to;
    _Atomic bool enough;
} signaller;

static void *signals_on_and_on(void *arg)
{
    signaller *s = arg;
    while (!s->enough) {
        pthread_kill(s->to, SIGUSR1);
        nanosleep(&(struct timespec){0, 100000}, NULL);
    }
    return NULL;
}

static int blocks_under_signals(void *arg)
{
    (void)arg;
    while (signals < 50) {
        double start = test_real_seconds();
        errno = 77;
        CHECK_INT(conc_block(0.001), 0);
        CHECK_INT(errno, 77);
        CHECK(test_real_seconds() - start > 0.001 - 1e-9);
    }
    return 0;
}

TEST(a_block_that_signals_interrupt_preserves_errno_and_lasts_its_full_time)
{
    pthread_t thread;
    signaller s = {.to = pthread_self()};
    struct sigaction action = {.sa_handler = counts_signals};
    unsetenv("CONC_CLOCK");
    CHECK_INT(sigaction(SIGUSR1, &action, NULL), 0);
    CHECK_INT(pthread_create(&thread, NULL, signals_on_and_on, &s), 0);
    CHECK_INT(conc_run(blocks_under_signals, NULL), 0);
    s.enough = true;
    CHECK_INT(pthread_join(thread, NULL), 0);
}

TEST(the_version_of_the_header_is_that_of_the_implementation)
{
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", CONC_VERSION_MAJOR, CONC_VERSION_MINOR,
             CONC_VERSION_PATCH);
    CHECK_STR(conc_version(), CONC_VERSION);
    CHECK_STR(conc_version(), version);
}

/* ---- outside tasks ---- */

static int emits_nothing(conc_gen *g, void *arg)
{
    (void)g;
    return returns(arg);
}

/* No argument could make this call valid here, so it may return either error. */
static bool refused(int rc) { return rc == -EPERM || rc == -EINVAL; }

TEST(outside_a_run_calls_that_need_a_task_are_refused)
{
    static conc_local key;
    int zero = 0, results[1];
    conc_scope s = {0};
    conc_group g = {0};
    conc_task t = {0}, *next = NULL;
    conc_gen gen = {0};
    conc_call call[] = {CONC_CALL(returns, &zero)};

    CHECK_INT(conc_sleep(1), -EPERM);
    CHECK_INT(conc_sleep(0), -EPERM);
    CHECK_INT(conc_sleep_until(0), -EPERM);
    CHECK_INT(conc_yield(), -EPERM);
    CHECK_INT(conc_block(0), -EPERM);
    CHECK_INT(conc_settle(), -EPERM);
    CHECK_INT(conc_scope_begin(&s, 1), -EPERM);
    CHECK_INT(conc_timeout(1, returns, &zero), -EPERM);
    CHECK_INT(conc_shield(1, returns, &zero), -EPERM);
    CHECK_INT(conc_group_begin(&g), -EPERM);
    CHECK_INT(conc_spawn(&g, returns, &zero), -EPERM);
    CHECK_INT(conc_spawn(NULL, returns, &zero), -EPERM);
    CHECK_INT(conc_spawn_task(&g, &t, returns, &zero), -EPERM);
    CHECK_INT(conc_start(&g, returns, &zero), -EPERM);
    CHECK_INT(conc_started(1), -EPERM);
    CHECK_INT(conc_gather(call, 1), -EPERM);
    CHECK_INT(conc_gather_all(call, 1), -EPERM);
    CHECK_INT(conc_map(returns, &zero, 1, sizeof zero), -EPERM);
    CHECK_INT(conc_map_all(returns, &zero, 1, sizeof zero, results), -EPERM);
    CHECK_INT(conc_local_set(&key, "x"), -EPERM);
    CHECK_INT(conc_gen_open(&gen, emits_nothing, &zero, sizeof zero), -EPERM);

    CHECK(refused(conc_scope_end(&s, 0)));
    CHECK(refused(conc_scope_set_timeout(&s, 1)));
    CHECK(refused(conc_group_end(&g, 0)));
    CHECK(refused(conc_group_next(&g, &next)));
    CHECK(refused(conc_join(&t, NULL)));
    CHECK(refused(conc_cancel(&t)));
    CHECK(refused(conc_gen_emit(&gen, &zero)));
    CHECK(refused(conc_gen_next(&gen, &zero)));
    CHECK_INT(calls, 0);

    CHECK_INT(run_virtual(returns, &(int){3}), 3); /* and nothing of it is kept */
}

TEST(outside_a_run_queries_have_harmless_answers)
{
    static conc_local key;
    conc_scope s = {0};
    conc_group g = {0};
    conc_gen gen = {0};
    conc_stats stats;
    memset(&stats, 1, sizeof stats);

    CHECK(conc_self() == NULL);
    CHECK(conc_loop_self() == NULL);
    CHECK(conc_name(NULL) == NULL);
    CHECK(conc_local_get(&key) == NULL);
    CHECK(conc_deadline() == CONC_FOREVER);
    CHECK(!conc_cancelled());
    CHECK(conc_random(2, 3) == 2);
    CHECK_STR(conc_last_error(), "");
    CHECK_INT(conc_fail(-EIO, "nobody %s", "hears"), -EIO);
    CHECK_INT(conc_gen_close(&gen), 0);
    CHECK_INT(conc_loop_hold(NULL), -EINVAL);
    CHECK_INT(conc_loop_release(NULL), -EINVAL);
    CHECK_INT(conc_post(NULL, conc_free, NULL), -EINVAL);
    conc_free(NULL);
    conc_scope_cancel(&s);
    conc_scope_shield(&s, true);
    conc_group_cancel(&g);
    CHECK(!s.cancel_called);
    conc_get_stats(&stats);
    CHECK_INT(stats.tasks + stats.ready + stats.timers + stats.generators + stats.holds, 0);
    CHECK_INT(stats.stacks + stats.stacks_kept + stats.stack_bytes, 0);
    CHECK_INT(stats.spawned + stats.switches + stats.passes + stats.polls, 0);
    CHECK(strlen(conc_strerror(-ECANCELED)) > 0);
}

static int posts_run;

static void is_no_task(void *arg)
{
    int zero = 0;
    conc_call call[] = {CONC_CALL(returns, &zero)};
    conc_scope s = {0};
    posts_run++;
    CHECK(conc_self() == NULL);
    CHECK(conc_loop_self() != NULL);
    CHECK(!conc_cancelled());
    CHECK(conc_deadline() == CONC_FOREVER);
    CHECK_INT(conc_sleep(1), -EPERM);
    CHECK_INT(conc_sleep_until(0), -EPERM);
    CHECK_INT(conc_yield(), -EPERM);
    CHECK_INT(conc_settle(), -EPERM);
    CHECK_INT(conc_join(arg, NULL), -EPERM);
    CHECK_INT(conc_timeout(1, returns, &zero), -EPERM);
    CHECK_INT(conc_shield(1, returns, &zero), -EPERM);
    CHECK_INT(conc_gather(call, 1), -EPERM);
    CHECK_INT(conc_map(returns, &zero, 1, sizeof zero), -EPERM);
    CHECK_INT(conc_start(NULL, returns, &zero), -EPERM);
    CHECK(refused(conc_started(1)));
    CHECK_INT(conc_scope_begin(&s, 1), -EPERM);
    CHECK_INT(conc_run(returns, &zero), -EBUSY);
    CHECK_INT(calls, 0);
}

TASK_TEST(in_a_posted_function_nothing_may_wait)
{
    CHECK_INT(conc_post(conc_loop_self(), is_no_task, conc_self()), 0);
    CHECK_INT(posts_run, 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(posts_run, 1);
    CHECK_TIME(1);
}
