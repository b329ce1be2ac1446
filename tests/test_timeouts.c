/* test_timeouts.c - time limits: conc_timeout, scopes with a timeout, and moving a limit while
 * its task waits. */
#include "conc_test.h"

#include <math.h>

static int sleep_for(void *seconds) { return conc_sleep(*(double *)seconds); }

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int return_it(void *value) { return *(int *)value; }

static void check_deadline(double t) { CHECK_INT(conc_deadline() * 1e9 + 0.5, t * 1e9 + 0.5); }

/* A task that waits in a scope, whose limit others move. */
typedef struct waiter {
    conc_scope scope;
    double timeout, sleep;
    int slept, ended;
    double woke;
} waiter;

static int wait_in_scope(void *arg)
{
    waiter *w = arg;
    CONC_TRY(conc_scope_begin(&w->scope, w->timeout));
    w->slept = conc_sleep(w->sleep);
    w->woke = conc_now();
    w->ended = conc_scope_end(&w->scope, w->slept);
    return 0;
}

static void check_waiter(const waiter *w, int slept, int ended, double woke, bool expired)
{
    CHECK_INT(w->slept, slept);
    CHECK_INT(w->ended, ended);
    CHECK_INT(w->woke * 1e9 + 0.5, woke * 1e9 + 0.5);
    CHECK_INT(w->scope.expired, expired);
}

TASK_TEST(a_block_that_times_out_is_cut_short_and_its_end_returns_etimedout)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 2), 0);
    CHECK_INT(conc_sleep(100), -ECANCELED);
    CHECK_TIME(2);
    CHECK(s.expired && s.cancel_called && !s.cancel_caught);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    CHECK(s.expired && s.cancel_called && s.cancel_caught);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_TIME(3);
}

TASK_TEST(a_block_that_ends_in_time_keeps_its_result_and_leaves_no_timer)
{
    conc_stats stats;
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 5), 0);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(conc_scope_end(&s, 11), 11);
    CHECK(!s.expired && !s.cancel_called);
    conc_get_stats(&stats);
    CHECK_INT(stats.timers, 0);
    CHECK_INT(conc_sleep(10), 0);
    CHECK(!s.expired);
}

TASK_TEST(a_timeout_of_zero_or_less_cuts_the_first_checkpoint_short)
{
    double timeouts[] = {0, -0.0, -1, -1e9, -CONC_FOREVER, -INFINITY};
    for (size_t i = 0; i < CONC_LEN(timeouts); i++) {
        conc_scope s = {0};
        CHECK_INT(conc_scope_begin(&s, timeouts[i]), 0);
        CHECK(conc_cancelled());
        CHECK_INT(conc_sleep(0), -ECANCELED);
        CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
        CHECK(s.expired);
    }
    CHECK_TIME(0);
}

TASK_TEST(without_a_checkpoint_even_a_timeout_of_zero_keeps_the_result)
{
    int seven = 7, error = -EIO;
    CHECK_INT(conc_timeout(0, return_it, &seven), 7);
    CHECK_INT(conc_timeout(-5, return_it, &error), -EIO);
    CHECK_INT(conc_yield(), 0);
}

TASK_TEST(a_timeout_in_the_call_form_returns_the_result_or_etimedout)
{
    double three = 3;
    CHECK_INT(conc_timeout(5, sleep_for, &three), 0);
    CHECK_TIME(3);
    CHECK_INT(conc_timeout(2, sleep_for, &three), -ETIMEDOUT);
    CHECK_TIME(5);
    CHECK_INT(conc_timeout(0, sleep_for, &three), -ETIMEDOUT);
    CHECK_INT(conc_timeout(-1, sleep_for, &three), -ETIMEDOUT);
    CHECK_TIME(5);
    CHECK_INT(conc_timeout(CONC_FOREVER, sleep_for, &three), 0);
    CHECK_TIME(8);
}

TASK_TEST(a_nan_limit_is_refused_and_nothing_runs)
{
    int value = 5;
    conc_scope s = {0};
    CHECK_INT(conc_timeout((double)NAN, return_it, &value), -EINVAL);
    CHECK_INT(conc_timeout(1, NULL, &value), -EINVAL);
    CHECK_INT(conc_scope_begin(&s, (double)NAN), -EINVAL);
    CHECK_INT(conc_scope_begin(&s, 3), 0);
    CHECK_INT(conc_scope_set_timeout(&s, (double)NAN), -EINVAL);
    check_deadline(3);
    CHECK_INT(conc_scope_end(&s, 0), 0);
}

TASK_TEST(a_limit_beyond_the_clocks_range_is_none)
{
    double timeouts[] = {CONC_FOREVER, INFINITY, 1e19, 1e30};
    for (size_t i = 0; i < CONC_LEN(timeouts); i++) {
        conc_scope s = {0};
        CHECK_INT(conc_scope_begin(&s, timeouts[i]), 0);
        CHECK(!conc_cancelled());
        CHECK_INT(conc_sleep(1), 0);
        CHECK(conc_deadline() >= 9e9);
        CHECK_INT(conc_scope_end(&s, 4), 4);
        CHECK(!s.expired);
    }
    CHECK_TIME(4);
}

TASK_TEST(a_limit_is_rounded_up_to_a_nanosecond)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 1e-10), 0);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_sleep(1), -ECANCELED);
    CHECK_TIME(1e-9);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
}

TASK_TEST(only_ecanceled_becomes_etimedout)
{
    int results[] = {0, 3, -EIO, -EINTR};
    for (size_t i = 0; i < CONC_LEN(results); i++) {
        conc_scope s = {0};
        CHECK_INT(conc_scope_begin(&s, 1), 0);
        CHECK_INT(conc_sleep(9), -ECANCELED);
        CHECK_INT(conc_scope_end(&s, results[i]), results[i]);
        CHECK(s.expired && !s.cancel_caught);
    }
}

TASK_TEST(expired_distinguishes_another_scopes_etimedout)
{
    int rc = -ETIMEDOUT;
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 5), 0);
    CHECK_INT(conc_timeout(9, return_it, &rc), -ETIMEDOUT);
    CHECK_INT(conc_scope_end(&s, -ETIMEDOUT), -ETIMEDOUT);
    CHECK(!s.expired && !s.cancel_called);
}

TASK_TEST(a_cancel_from_outside_before_the_limit_is_no_timeout)
{
    waiter w = {.timeout = 5, .sleep = 100};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, wait_in_scope, &w), 0);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_waiter(&w, -ECANCELED, -ECANCELED, 2, false);
    CHECK(!w.scope.cancel_called);
}

TASK_TEST(a_scope_that_was_cancelled_before_its_limit_never_expires)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 5), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_block(10), 0);
    CHECK_INT(conc_scope_end(&s, conc_sleep(1)), 0);
    CHECK(!s.expired && s.cancel_caught);
}

TASK_TEST(the_outer_one_of_two_equal_deadlines_returns_etimedout)
{
    conc_scope outer = {0}, inner = {0};
    CHECK_INT(conc_scope_begin(&outer, 2), 0);
    CHECK_INT(conc_scope_begin(&inner, 2), 0);
    CHECK_INT(conc_sleep(50), -ECANCELED);
    CHECK_INT(conc_scope_end(&inner, -ECANCELED), -ECANCELED);
    CHECK(!inner.cancel_caught);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), -ETIMEDOUT);
    CHECK(outer.expired && outer.cancel_caught);
    CHECK_TIME(2);
}

TASK_TEST(an_inner_limit_that_was_armed_first_is_still_the_inner_one)
{
    conc_scope outer = {0}, inner = {0};
    CHECK_INT(conc_scope_begin(&outer, 9), 0);
    CHECK_INT(conc_scope_begin(&inner, 2), 0);
    CHECK_INT(conc_scope_set_timeout(&outer, 2), 0);
    CHECK_INT(conc_scope_end(&inner, conc_sleep(50)), -ECANCELED);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), -ETIMEDOUT);
    CHECK_TIME(2);
}

TASK_TEST(a_shorter_inner_limit_fires_first_and_the_outer_one_later)
{
    conc_scope outer = {0}, inner = {0};
    CHECK_INT(conc_scope_begin(&outer, 5), 0);
    CHECK_INT(conc_scope_begin(&inner, 2), 0);
    CHECK_INT(conc_scope_end(&inner, conc_sleep(50)), -ETIMEDOUT);
    CHECK_TIME(2);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_scope_end(&outer, conc_sleep(50)), -ETIMEDOUT);
    CHECK_TIME(5);
}

TASK_TEST(a_longer_inner_limit_never_fires)
{
    conc_scope outer = {0}, inner = {0};
    CHECK_INT(conc_scope_begin(&outer, 2), 0);
    CHECK_INT(conc_scope_begin(&inner, 10), 0);
    CHECK_INT(conc_scope_end(&inner, conc_sleep(50)), -ECANCELED);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), -ETIMEDOUT);
    CHECK(!inner.expired && outer.expired);
    CHECK_TIME(2);
}

TASK_TEST(a_limit_counts_from_the_begin_not_from_the_declaration)
{
    conc_scope s = {0};
    CHECK_INT(conc_sleep(3), 0);
    CHECK_INT(conc_scope_begin(&s, 5), 0);
    check_deadline(8);
    CHECK_INT(conc_scope_end(&s, conc_sleep(50)), -ETIMEDOUT);
    CHECK_TIME(8);
}

TASK_TEST(a_limit_is_moved_while_its_task_waits)
{
    waiter later = {.timeout = 2, .sleep = 100}, earlier = {.timeout = 50, .sleep = 100};
    waiter never = {.timeout = 2, .sleep = 30}, past = {.timeout = 50, .sleep = 100};
    waiter now = {.timeout = 50, .sleep = 100}, given = {.timeout = CONC_FOREVER, .sleep = 100};
    waiter *all[] = {&later, &earlier, &never, &past, &now, &given};
    conc_group g = {0};
    for (size_t i = 0; i < CONC_LEN(all); i++)
        CHECK_INT(conc_spawn(&g, wait_in_scope, all[i]), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_scope_set_timeout(&later.scope, 9), 0);
    CHECK_INT(conc_scope_set_timeout(&earlier.scope, 4), 0);
    CHECK_INT(conc_scope_set_timeout(&never.scope, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_set_timeout(&past.scope, -7), 0);
    CHECK_INT(conc_scope_set_timeout(&now.scope, 0), 0);
    CHECK_INT(conc_scope_set_timeout(&given.scope, 3), 0);
    CHECK(past.scope.expired && now.scope.expired && !given.scope.expired);
    CHECK_INT(conc_group_wait(&g), 0);
    check_waiter(&later, -ECANCELED, -ETIMEDOUT, 10, true);
    check_waiter(&earlier, -ECANCELED, -ETIMEDOUT, 5, true);
    check_waiter(&never, 0, 0, 30, false);
    check_waiter(&past, -ECANCELED, -ETIMEDOUT, 1, true);
    check_waiter(&now, -ECANCELED, -ETIMEDOUT, 1, true);
    check_waiter(&given, -ECANCELED, -ETIMEDOUT, 4, true);
}

static void expire_posted(void *scope) { CHECK_INT(conc_scope_set_timeout(scope, 0), 0); }

TASK_TEST(a_posted_function_moves_a_limit)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_post(conc_loop_self(), expire_posted, &s), 0);
    CHECK_INT(conc_scope_end(&s, conc_sleep(9)), -ETIMEDOUT);
    CHECK_TIME(0);
}

TASK_TEST(a_limit_cannot_be_moved_before_the_begin_after_expiry_cancel_or_end)
{
    conc_scope s = {0}, cancelled = {0};
    CHECK_INT(conc_scope_set_timeout(&s, 1), -EINVAL);
    CHECK_INT(conc_scope_begin(&s, 1), 0);
    CHECK_INT(conc_scope_begin(&cancelled, CONC_FOREVER), 0);
    conc_scope_cancel(&cancelled);
    CHECK_INT(conc_scope_set_timeout(&cancelled, 5), -EINVAL);
    CHECK_INT(conc_scope_end(&cancelled, conc_yield()), 0);
    CHECK_INT(conc_scope_set_timeout(&cancelled, 5), -EINVAL);
    CHECK_INT(conc_sleep(2), -ECANCELED);
    CHECK_INT(conc_scope_set_timeout(&s, 5), -EINVAL);
    CHECK_INT(conc_sleep(2), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    CHECK_INT(conc_scope_set_timeout(&s, 5), -EINVAL);
    CHECK_TIME(1);
}

TASK_TEST(a_tasks_own_limit_is_in_force_at_once)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 7), 0);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_scope_set_timeout(&s, -1), 0);
    CHECK(conc_cancelled());
    CHECK_INT(conc_scope_end(&s, conc_yield()), -ETIMEDOUT);
    CHECK(!conc_cancelled());
}

TASK_TEST(a_limit_that_passed_while_the_loop_was_blocked_is_in_force_at_once)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 2), 0);
    CHECK_INT(conc_block(1.5), 0);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_block(0.5), 0);
    CHECK(conc_cancelled() && s.expired);
    CHECK_INT(conc_scope_end(&s, conc_sleep(0)), -ETIMEDOUT);
    CHECK_TIME(2);
}

static int compute_too_long(void *arg)
{
    (void)arg;
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 0.01), 0);
    for (double start = test_real_seconds(); test_real_seconds() - start < 0.02;) {
    }
    CHECK_INT(conc_sleep(10), -ECANCELED);
    return conc_scope_end(&s, -ECANCELED);
}

TEST(a_limit_that_passed_during_a_computation_cuts_the_next_wait_short)
{
    unsetenv("CONC_CLOCK");
    double start = test_real_seconds();
    CHECK_INT(conc_run(compute_too_long, NULL), -ETIMEDOUT);
    CHECK(test_real_seconds() - start < 5);
}

static int time_out_twice(void *arg)
{
    double *took = arg, start = conc_now();
    CHECK_INT(conc_timeout(0.02, sleep_forever, NULL), -ETIMEDOUT);
    took[0] = conc_now() - start;
    CHECK_INT(conc_timeout(0.01, sleep_forever, NULL), -ETIMEDOUT);
    took[1] = conc_now() - start;
    return 0;
}

TEST(a_limit_on_the_real_clock_is_never_early)
{
    double took[2] = {0};
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(time_out_twice, took), 0);
    CHECK(took[0] >= 0.02 - 1e-9 && took[0] < 5);
    CHECK(took[1] >= 0.03 - 1e-9 && took[1] < 5);
}

static int wait_for_a_sleeper(void *arg)
{
    conc_group g = {0};
    conc_task *t = arg;
    CONC_TRY(conc_spawn_task(&g, t, sleep_forever, NULL));
    return conc_group_end(&g, conc_sleep(100));
}

TASK_TEST(a_timeout_around_a_group_ends_after_the_children)
{
    conc_task t = {0};
    int rc = 0;
    CHECK_INT(conc_timeout(2, wait_for_a_sleeper, &t), -ETIMEDOUT);
    CHECK_TIME(2);
    CHECK(conc_done(&t));
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
}

static int clean_up_slowly(void *arg)
{
    double three = 3;
    int rc = conc_sleep(CONC_FOREVER);
    CHECK_INT(rc, -ECANCELED);
    CHECK_INT(conc_shield(10, sleep_for, &three), 0);
    *(bool *)arg = true;
    return rc;
}

TASK_TEST(a_timeout_waits_for_the_clean_up)
{
    bool cleaned = false;
    CHECK_INT(conc_timeout(2, clean_up_slowly, &cleaned), -ETIMEDOUT);
    CHECK(cleaned);
    CHECK_TIME(5);
}

static int clean_up_in_vain(void *arg)
{
    int rc = conc_sleep(CONC_FOREVER);
    *(int *)arg = conc_shield(3, sleep_forever, NULL);
    return rc;
}

TASK_TEST(a_limit_on_the_clean_up_of_a_block_that_timed_out_works_by_itself)
{
    int cleaned = 0;
    CHECK_INT(conc_timeout(2, clean_up_in_vain, &cleaned), -ETIMEDOUT);
    CHECK_INT(cleaned, -ETIMEDOUT);
    CHECK_TIME(5);
}

TASK_TEST(a_timeout_after_a_cancel_that_was_handled_works_by_itself)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_scope_end(&s, conc_yield()), 0);
    CHECK_INT(conc_timeout(2, sleep_forever, NULL), -ETIMEDOUT);
    CHECK_INT(conc_timeout(2, sleep_forever, NULL), -ETIMEDOUT);
    CHECK_TIME(4);
}

TASK_TEST(a_wait_that_was_granted_at_the_deadline_keeps_its_result)
{
    /* the sleep's timer was armed before the limit's: at 4 the sleep is granted first, and the
     * limit is seen next */
    waiter w = {.timeout = CONC_FOREVER, .sleep = 4};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, wait_in_scope, &w), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_scope_set_timeout(&w.scope, 3), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_waiter(&w, 0, 0, 4, true);
}

TASK_TEST(a_limit_that_was_armed_before_an_equally_long_wait_comes_first)
{
    waiter w = {.timeout = 4, .sleep = 4};
    CHECK_INT(wait_in_scope(&w), 0);
    check_waiter(&w, -ECANCELED, -ETIMEDOUT, 4, true);
}

static int deadline_of_a_child(void *arg)
{
    *(double *)arg = conc_deadline();
    return 0;
}

TASK_TEST(the_deadline_is_the_nearest_of_all_limits_around)
{
    double seen = 0;
    conc_scope outer = {0}, inner = {0};
    conc_group g = {0};
    CHECK(conc_deadline() == CONC_FOREVER);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_scope_begin(&outer, 5), 0);
    check_deadline(6);
    CHECK_INT(conc_scope_begin(&inner, 10), 0);
    check_deadline(6);
    CHECK_INT(conc_scope_set_timeout(&inner, 2), 0);
    check_deadline(3);
    CHECK_INT(conc_spawn(&g, deadline_of_a_child, &seen), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(seen * 1e9 + 0.5, 3e9 + 0.5);
    conc_scope_shield(&inner, true);
    CHECK_INT(conc_scope_set_timeout(&inner, 20), 0);
    check_deadline(21);
    CHECK_INT(conc_scope_set_timeout(&inner, CONC_FOREVER), 0);
    CHECK(conc_deadline() == CONC_FOREVER);
    conc_scope_cancel(&inner);
    CHECK(conc_deadline() == -CONC_FOREVER);
    CHECK_INT(conc_scope_end(&inner, 0), 0);
    check_deadline(6);
    CHECK_INT(conc_scope_end(&outer, 0), 0);
    CHECK(conc_deadline() == CONC_FOREVER);
}

TASK_TEST(there_is_no_deadline_once_it_passed)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 1), 0);
    CHECK_INT(conc_sleep(2), -ECANCELED);
    CHECK(conc_deadline() == -CONC_FOREVER);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    CHECK(conc_deadline() == CONC_FOREVER);
}

static int nest_timeouts(void *arg)
{
    int depth = *(int *)arg - 1;
    if (depth == 0)
        return conc_sleep(CONC_FOREVER);
    return conc_timeout(depth, nest_timeouts, &depth);
}

TASK_TEST(nested_timeouts_return_etimedout_once_and_it_passes_as_a_plain_error)
{
    int depth = 9;
    CHECK_INT(conc_timeout(100, nest_timeouts, &depth), -ETIMEDOUT);
    CHECK_TIME(1);
}

TASK_TEST(a_thousand_limits_at_once_each_fire_at_their_time)
{
    static waiter w[1000];
    conc_group g = {0};
    for (int i = 0; i < 1000; i++) {
        w[i] = (waiter){.timeout = 1 + i * 7 % 10, .sleep = 50};
        CHECK_INT(conc_spawn(&g, wait_in_scope, &w[i]), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 1000; i++)
        check_waiter(&w[i], -ECANCELED, -ETIMEDOUT, 1 + i * 7 % 10, true);
    CHECK_TIME(10);
}
