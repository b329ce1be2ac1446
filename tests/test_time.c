/* Sleeping, yielding, blocking and settling: exact on the virtual clock, never early on the real
 * one. */
#include "conc_test.h"

#include <math.h>

#define YEAR (365.25 * 24 * 3600)

static uint64_t random_state = 88172645463325252u;

static uint64_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static int sleeps(void *arg) { return conc_sleep(*(double *)arg); }
static int sleeps_until(void *arg) { return conc_sleep_until(*(double *)arg); }

static int counts(void *arg)
{
    ++*(int *)arg;
    return 0;
}

static int counts_its_turns(void *arg)
{
    for (;;) {
        ++*(int *)arg;
        CONC_TRY(conc_yield());
    }
}

/* ---- sleep ---- */

TASK_TEST(a_sleep_takes_exactly_its_time)
{
    CHECK_TIME(0);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_TIME(2);
    CHECK_INT(conc_sleep(0.5), 0);
    CHECK_TIME(2.5);
    CHECK_INT(conc_sleep_until(10), 0);
    CHECK_TIME(10);
    CHECK_INT(conc_sleep_until(10.25), 0);
    CHECK_TIME(10.25);
}

TASK_TEST(a_time_is_rounded_up_to_whole_nanoseconds)
{
    CHECK_INT(conc_sleep(1e-9), 0);
    CHECK_TIME(1e-9);
    CHECK_INT(conc_sleep(1e-10), 0);
    CHECK_TIME(2e-9);
    CHECK_INT(conc_sleep(1.5e-9), 0);
    CHECK_TIME(4e-9);
    CHECK_INT(conc_sleep(5e-324), 0);
    CHECK_TIME(5e-9);
}

static void sleeps_until_and_not_less(double t)
{
    int sleeps_needed = 0;
    while (conc_now() < t && sleeps_needed < 10) {
        CHECK_INT(conc_sleep_until(t), 0);
        sleeps_needed++;
    }
    CHECK(conc_now() >= t);
    CHECK(sleeps_needed <= 1);
}

TASK_TEST(a_sleep_until_a_time_never_returns_before_it)
{
    sleeps_until_and_not_less(0.1 + 0.2);
    for (int i = 0; i < 500; i++) /* 1e-9 to 1e5 s ahead */
        sleeps_until_and_not_less(conc_now() +
                                  ldexp((double)(random_bits() >> 11), -53 - 30 + i / 11));
}

/* From 2^53 ns on, after 104 days, the clock as a double is coarser than a nanosecond. */
TASK_TEST(a_sleep_until_a_time_years_ahead_never_returns_before_it)
{
    for (int i = 0; i < 500; i++)
        sleeps_until_and_not_less(conc_now() +
                                  ldexp((double)(random_bits() >> 11), -53) * YEAR / 10);
}

TASK_TEST(a_sleep_that_is_already_due_takes_no_time)
{
    static const double due[] = {0, -0.0, -1, -5e-324, -1e18, -CONC_FOREVER, -INFINITY};
    CHECK_INT(conc_sleep(3), 0);
    for (size_t i = 0; i < CONC_LEN(due); i++) {
        CHECK_INT(conc_sleep(due[i]), 0);
        CHECK_INT(conc_sleep_until(due[i]), 0);
    }
    CHECK_INT(conc_sleep_until(2), 0);
    CHECK_INT(conc_sleep_until(3), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_TIME(3);
}

ORDERED_TASK_TEST(a_sleep_that_is_already_due_yields_once)
{
    int turns = 0;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, counts_its_turns, &turns), 0);
    CHECK_INT(turns, 0);
    CHECK_INT(conc_sleep(0), 0);
    CHECK_INT(turns, 1);
    CHECK_INT(conc_sleep(-1), 0);
    CHECK_INT(turns, 2);
    CHECK_INT(conc_sleep_until(-1), 0);
    CHECK_INT(turns, 3);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(turns, 4);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
}

ORDERED_TASK_TEST(a_yield_lets_every_ready_task_run_once)
{
    int turns[5] = {0};
    conc_group g = {0};
    for (int i = 0; i < 5; i++)
        CHECK_INT(conc_spawn(&g, counts_its_turns, &turns[i]), 0);
    for (int round = 1; round <= 100; round++) {
        CHECK_INT(conc_yield(), 0);
        for (int i = 0; i < 5; i++)
            CHECK_INT(turns[i], round);
    }
    CHECK_TIME(0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_nan_time_is_refused_without_a_wait)
{
    int ran = 0;
    conc_group g = {0};
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_spawn(&g, counts, &ran), 0);
    CHECK_INT(conc_sleep(NAN), -EINVAL);
    CHECK_INT(conc_sleep_until(NAN), -EINVAL);
    CHECK_INT(conc_block(NAN), -EINVAL);
    CHECK_INT(ran, 0);
    CHECK_TIME(1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, 1);
}

TASK_TEST(huge_times_do_not_wrap_around)
{
    double huge[] = {CONC_FOREVER, INFINITY, 1.7e308, 1e18, 2e10, 9.3e9, 300 * YEAR};
    double now = 0;
    for (size_t i = 0; i < CONC_LEN(huge); i++) {
        CHECK_INT(conc_timeout(7, sleeps, &huge[i]), -ETIMEDOUT);
        CHECK_TIME(now += 7);
        CHECK_INT(conc_timeout(7, sleeps_until, &huge[i]), -ETIMEDOUT);
        CHECK_TIME(now += 7);
        CHECK_INT(conc_timeout(huge[i], sleeps, &(double){1}), 0);
        CHECK_TIME(now += 1);
    }
}

TASK_TEST(time_passes_after_centuries)
{
    CHECK_INT(conc_sleep(290 * YEAR), 0);
    double late = conc_now();
    CHECK(late >= 290 * YEAR && late < 290 * YEAR + 1e-4);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(conc_now() > late + 0.999 && conc_now() < late + 1.001);
    CHECK_INT(conc_timeout(1, sleeps, &(double){290 * YEAR}), -ETIMEDOUT);
    CHECK(conc_now() > late + 1.999 && conc_now() < late + 2.001);
}

/* ---- many timers ---- */

TASK_TEST(sleepers_wake_in_the_order_of_their_deadlines)
{
    static const int seconds[] = {3, 1, 2, 9, 5, 8, 4, 7, 6, 0};
    static double lengths[CONC_LEN(seconds)];
    conc_task tasks[CONC_LEN(seconds)], *t = NULL;
    conc_group g = {0};
    for (size_t i = 0; i < CONC_LEN(seconds); i++) {
        lengths[i] = seconds[i];
        CHECK_INT(conc_spawn_task(&g, &tasks[i], sleeps, &lengths[i]), 0);
    }
    for (int expected = 0; expected < 10; expected++) {
        CHECK_INT(conc_group_next(&g, &t), 1);
        CHECK_INT(seconds[t - tasks], expected);
        CHECK_TIME(expected);
    }
    CHECK_INT(conc_group_wait(&g), 0);
}

enum { ARMED = 60 };

typedef struct late_sleeper {
    double start, deadline;
    int number;
} late_sleeper;

static int woken[ARMED], woken_count;

static int sleeps_late(void *arg)
{
    late_sleeper *l = arg;
    CONC_TRY(conc_sleep_until(l->start));
    CONC_TRY(conc_sleep_until(l->deadline));
    woken[woken_count++] = l->number;
    return 0;
}

ORDERED_TASK_TEST(timers_with_one_deadline_fire_in_the_order_of_arming)
{
    static const double deadlines[] = {60, 64, 100, 4096, 1e5, 1e7, 1e9};
    double base = 0;
    for (size_t d = 0; d < CONC_LEN(deadlines); d++, base += 1.1e9) {
        late_sleeper sleepers[ARMED];
        CHECK_INT(conc_sleep_until(base), 0);
        woken_count = 0;
        for (int i = 0; i < ARMED; i++) /* spawned in a different order from that of their timers */
            sleepers[i] = (late_sleeper){base + i * 7 % ARMED, base + deadlines[d], i * 7 % ARMED};
        CHECK_INT(CONC_MAP(sleeps_late, sleepers), 0);
        for (int i = 0; i < ARMED; i++)
            CHECK_INT(woken[i], i);
        CHECK(conc_now() - base > deadlines[d] - 1e-5 && conc_now() - base < deadlines[d] + 1e-5);
    }
}

enum { TIMERS = 600 };

typedef struct timed {
    double deadline, woke;
} timed;

static timed timers[TIMERS], *fired[TIMERS];
static int fired_count;

static int wakes_once(void *arg)
{
    timed *t = arg;
    CONC_TRY(conc_sleep_until(t->deadline));
    t->woke = conc_now();
    fired[fired_count++] = t;
    return 0;
}

TASK_TEST(timers_from_a_nanosecond_to_centuries_are_exact)
{
    for (int i = 0; i < TIMERS; i++) {
        double d = 1e-9 * (1 + (double)(random_bits() % 100000) / 11200);
        for (int decade = i % 19; decade > 0; decade--)
            d *= 10;
        timers[i].deadline = d < 9.2e9 ? d : 9.2e9;
    }
    CHECK_INT(CONC_MAP(wakes_once, timers), 0);
    CHECK_INT(fired_count, TIMERS);
    for (int i = 0; i < TIMERS; i++) {
        double d = fired[i]->deadline, fuzz = d * 1e-15; /* what a double can distinguish */
        CHECK(fired[i]->woke >= d - fuzz);
        CHECK(fired[i]->woke <= d + 1.0001e-9 + fuzz);
        CHECK(i == 0 || fired[i - 1]->woke <= fired[i]->woke);
    }
}

static int sleeps_and_times_out_at_random(void *arg)
{
    for (int *rounds = arg, i = 0; i < *rounds; i++) {
        /* 0 to 1100 s */
        double length = (double)(random_bits() >> (24 + random_bits() % 40)) * 1e-9;
        double limit = (double)(random_bits() >> (24 + random_bits() % 40)) * 1e-9 + 1e-9;
        if (limit - length < 5e-9 && length - limit < 5e-9)
            limit += 1e-6;
        double start = conc_now(), took = length < limit ? length : limit;
        CHECK_INT(conc_timeout(limit, sleeps, &length), length < limit ? 0 : -ETIMEDOUT);
        CHECK(conc_now() - start > took - 3e-10);
        CHECK(conc_now() - start < took + 1.4e-9);
    }
    return 0;
}

TASK_TEST(random_sleeps_under_random_limits_end_when_the_shorter_does)
{
    conc_stats stats;
    CHECK_INT(conc_map(sleeps_and_times_out_at_random, &(int){100}, 40, 0), 0);
    conc_get_stats(&stats);
    CHECK_INT(stats.timers, 0);
}

TASK_TEST(a_timer_is_removed_when_its_sleep_is_cut_short)
{
    conc_stats stats;
    conc_group g = {0};
    double length = 100;
    for (int i = 0; i < 5; i++)
        CHECK_INT(conc_spawn(&g, sleeps, &length), 0);
    CHECK_INT(conc_settle(), 0);
    conc_get_stats(&stats);
    CHECK_INT(stats.timers, 5);
    conc_group_cancel(&g);
    conc_get_stats(&stats);
    CHECK_INT(stats.timers, 0); /* immediately, before any of them ran */
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(0);
}

TASK_TEST(years_of_sleeps_in_short_pieces_take_no_time)
{
    for (int i = 1; i <= 20000; i++)
        CHECK_INT(conc_sleep(4096), 0);
    CHECK_TIME(20000.0 * 4096);
}

/* ---- block ---- */

TASK_TEST(a_block_moves_time_and_lets_no_task_run)
{
    int ran = 0;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, counts, &ran), 0);
    CHECK_INT(conc_block(3), 0);
    CHECK_TIME(3);
    CHECK_INT(conc_block(0), 0);
    CHECK_INT(conc_block(-1), 0);
    CHECK_TIME(3);
    CHECK_INT(ran, 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, 1);
}

static int sleeps_and_tells_when(void *arg)
{
    double *time = arg;
    CONC_TRY(conc_sleep(*time));
    *time = conc_now();
    return 0;
}

TASK_TEST(a_sleeper_whose_time_passed_in_a_block_wakes_after_it)
{
    double times[] = {1, 2, 7};
    conc_group g = {0};
    for (size_t i = 0; i < CONC_LEN(times); i++)
        CHECK_INT(conc_spawn(&g, sleeps_and_tells_when, &times[i]), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_block(5), 0);
    CHECK(times[0] == 1 && times[1] == 2);
    CHECK_INT(conc_settle(), 0);
    CHECK_TIME(5);
    CHECK(times[0] == 5 && times[1] == 5);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(times[2] == 7);
    CHECK_TIME(7);
}

ORDERED_TASK_TEST(timers_that_expired_in_a_block_still_fire_by_deadline)
{
    late_sleeper sleepers[] = {{0, 3, 3}, {0, 1, 1}, {0, 4, 4}, {0, 2, 2}};
    conc_group g = {0};
    for (size_t i = 0; i < CONC_LEN(sleepers); i++)
        CHECK_INT(conc_spawn(&g, sleeps_late, &sleepers[i]), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_block(10), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 4; i++)
        CHECK_INT(woken[i], i + 1);
    CHECK_TIME(10);
}

TASK_TEST(limits_that_passed_in_a_block_are_in_force)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 2), 0);
    CHECK_INT(conc_block(1.5), 0);
    CHECK(!conc_cancelled() && !s.expired);
    CHECK_INT(conc_block(1.5), 0);
    CHECK(conc_cancelled() && s.expired);
    CHECK_INT(conc_block(1), 0); /* no checkpoint */
    CHECK_TIME(4);
    CHECK_INT(conc_sleep(0), -ECANCELED);
    CHECK_INT(conc_yield(), -ECANCELED);
    CHECK_INT(conc_settle(), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    CHECK_INT(conc_yield(), 0);
    CHECK_TIME(4);
}

/* ---- settle ---- */

static int spawns_a_chain(void *arg)
{
    int *left = arg;
    for (int i = 0; i < 10; i++)
        CONC_TRY(conc_yield());
    return --*left ? conc_spawn(NULL, spawns_a_chain, left) : 0;
}

TASK_TEST(settle_returns_when_nothing_is_ready_and_time_stands_still)
{
    static int left = 20;
    double length = 5;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, sleeps_and_tells_when, &length), 0);
    CHECK_INT(conc_spawn(NULL, spawns_a_chain, &left), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(left, 0);
    CHECK_TIME(0);
    CHECK_INT(conc_settle(), 0);
    CHECK_TIME(0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(5);
}

static int settles(void *arg)
{
    CONC_TRY(conc_settle());
    ++*(int *)arg;
    CONC_TRY(conc_settle());
    ++*(int *)arg;
    return 0;
}

TASK_TEST(two_tasks_may_settle_at_once)
{
    int settled = 0;
    CHECK_INT(conc_map(settles, &settled, 2, 0), 0);
    CHECK_INT(settled, 4);
    CHECK_INT(conc_map(settles, &settled, 3, 0), 0);
    CHECK_INT(settled, 10);
    CHECK_TIME(0);
}

/* ---- the real clock ---- */

static int naps(void *arg)
{
    (void)arg;
    for (int i = 1; i <= 10; i++) {
        double length = i * 0.00037, real = test_real_seconds(), loop = conc_now();
        CONC_TRY(conc_sleep(length));
        CHECK(conc_now() - loop > length - 1e-9);
        CHECK(test_real_seconds() - real > length - 1e-9);
    }
    return 0;
}

static int sleeps_20_ms(void *arg)
{
    (void)arg;
    double real = test_real_seconds();
    CONC_TRY(conc_sleep(0.02));
    CHECK(test_real_seconds() - real > 0.02 - 1e-9);
    CHECK(test_real_seconds() - real < 5);
    real = test_real_seconds();
    CONC_TRY(conc_sleep_until(conc_now() + 0.02));
    CHECK(test_real_seconds() - real > 0.02 - 1e-9);
    CHECK(test_real_seconds() - real < 5);
    return 0;
}

/* Deadlines pass at any moment, also while a settle ends. */
static bool settling_ends, half_done[64];

static int is_often_half_done(void *arg)
{
    bool *half = arg;
    while (!settling_ends) {
        CONC_TRY(conc_sleep(1e-3 * (double)(1 + half - half_done)));
        *half = true;
        CONC_TRY(conc_yield());
        *half = false;
    }
    return 0;
}

static int settles_among_them(void *arg)
{
    (void)arg;
    conc_group g = {0};
    settling_ends = false;
    for (bool *half = half_done; half < half_done + 64; half++)
        CHECK_INT(conc_spawn(&g, is_often_half_done, half), 0);
    double end = conc_now() + 0.1;
    while (conc_now() < end) {
        CHECK_INT(conc_settle(), 0);
        for (int k = 0; k < 64; k++)
            CHECK(!half_done[k]);
    }
    settling_ends = true;
    return conc_group_wait(&g);
}

TEST(no_task_runs_between_the_end_of_a_settle_and_its_task)
{
    unsetenv("CONC_CLOCK");
    for (uint64_t seed = 0; seed < 4; seed++) {
        conc_options o = {.seed = seed};
        CHECK_INT(conc_run_with(&o, settles_among_them, NULL), 0);
    }
}

TEST(no_sleep_is_early_on_the_real_clock)
{
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(sleeps_20_ms, NULL), 0);
    CHECK_INT(conc_run(naps, NULL), 0);
}

static int computes_and_sleeps(void *arg)
{
    (void)arg;
    double start = test_real_seconds();
    while (test_real_seconds() - start < 0.01)
        continue;
    CONC_TRY(conc_sleep(0.01));
    CHECK(test_real_seconds() - start > 0.02 - 1e-9);
    start = test_real_seconds();
    CHECK_INT(conc_block(0.01), 0);
    CHECK(test_real_seconds() - start > 0.01 - 1e-9);
    return 0;
}

TEST(a_sleep_counts_from_its_call_not_from_the_last_pass)
{
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(computes_and_sleeps, NULL), 0);
}

static int sleeps_among_the_restless(void *arg)
{
    (void)arg;
    int turns[2] = {0};
    conc_group g = {0};
    double start = test_real_seconds();
    CHECK_INT(conc_spawn(&g, counts_its_turns, &turns[0]), 0);
    CHECK_INT(conc_spawn(&g, counts_its_turns, &turns[1]), 0);
    CHECK_INT(conc_sleep(0.1), 0);
    CHECK(test_real_seconds() - start > 0.1 - 1e-9);
    CHECK(test_real_seconds() - start < 5);
    CHECK(turns[0] > 1 && turns[1] > 1);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

TEST(tasks_that_yield_forever_do_not_delay_a_timer)
{
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(sleeps_among_the_restless, NULL), 0);
}

TEST(outside_a_run_the_time_is_the_monotonic_one)
{
    double before = test_real_seconds(), now = conc_now(), after = test_real_seconds();
    CHECK(before - 1e-6 <= now && now <= after + 1e-6);
}
