/* test_scopes.c - conc_scope: begin, end, cancel, and what the end turns -ECANCELED into. */
#include "conc_test.h"

static conc_scope shared;

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

/* Cancels the shared scope after *seconds. */
static int cancel_shared_after(void *seconds)
{
    CONC_TRY(conc_sleep(*(double *)seconds));
    conc_scope_cancel(&shared);
    return 0;
}

static int set_flag(void *flag)
{
    *(bool *)flag = true;
    return 0;
}

static void check_flags(const conc_scope *s, bool called, bool caught, bool expired)
{
    CHECK_INT(s->cancel_called, called);
    CHECK_INT(s->cancel_caught, caught);
    CHECK_INT(s->expired, expired);
}

TASK_TEST(an_uncancelled_scope_returns_the_result_of_its_block)
{
    int results[] = {0, 7, -EIO, -ETIMEDOUT};
    for (size_t i = 0; i < CONC_LEN(results); i++) {
        conc_scope s = {0};
        CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
        CHECK_INT(conc_sleep(1), 0);
        CHECK_INT(conc_scope_end(&s, results[i]), results[i]);
        check_flags(&s, false, false, false);
    }
    CHECK_TIME(4);
}

TASK_TEST(every_checkpoint_in_a_cancelled_scope_is_cut_short_until_it_is_left)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK(!conc_cancelled());
    conc_scope_cancel(&s);
    CHECK(conc_cancelled());
    CHECK_INT(conc_sleep(5), -ECANCELED);
    CHECK_INT(conc_sleep(0), -ECANCELED);
    CHECK_INT(conc_yield(), -ECANCELED);
    CHECK_INT(conc_sleep_until(3), -ECANCELED);
    CHECK(conc_cancelled());
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_sleep(1), 0);
    CHECK_TIME(1);
}

TASK_TEST(the_end_of_a_cancelled_scope_catches_its_cancel)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    check_flags(&s, true, false, false);
    CHECK_INT(conc_scope_end(&s, conc_sleep(1)), 0);
    check_flags(&s, true, true, false);
}

TASK_TEST(a_result_outranks_a_cancel)
{
    int results[] = {0, 42, -EIO, -ETIMEDOUT};
    for (size_t i = 0; i < CONC_LEN(results); i++) {
        conc_scope s = {0};
        CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
        conc_scope_cancel(&s);
        CHECK_INT(conc_sleep(1), -ECANCELED);
        CHECK_INT(conc_scope_end(&s, results[i]), results[i]);
        check_flags(&s, true, false, false);
    }
}

TASK_TEST(a_cancelled_scope_that_is_left_without_a_checkpoint_leaves_nothing_pending)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_scope_end(&s, 3), 3);
    check_flags(&s, true, false, false);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_yield(), 0);
}

TASK_TEST(an_ecanceled_that_no_scope_caused_passes_unchanged)
{
    conc_scope outer = {0}, inner = {0};
    CHECK_INT(conc_scope_begin(&outer, 5), 0);
    CHECK_INT(conc_scope_begin(&inner, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_end(&inner, -ECANCELED), -ECANCELED);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), -ECANCELED);
    check_flags(&inner, false, false, false);
    check_flags(&outer, false, false, false);
}

TASK_TEST(the_cancel_of_an_outer_scope_passes_through_the_inner_one)
{
    conc_scope outer = {0}, inner = {0};
    CHECK_INT(conc_scope_begin(&outer, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&inner, CONC_FOREVER), 0);
    conc_scope_cancel(&outer);
    CHECK_INT(conc_sleep(1), -ECANCELED);
    CHECK_INT(conc_scope_end(&inner, -ECANCELED), -ECANCELED);
    CHECK_INT(conc_yield(), -ECANCELED);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), 0);
    check_flags(&inner, false, false, false);
    check_flags(&outer, true, true, false);
}

TASK_TEST(the_outer_one_of_two_cancelled_scopes_catches)
{
    conc_scope outer = {0}, inner = {0};
    CHECK_INT(conc_scope_begin(&outer, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&inner, CONC_FOREVER), 0);
    conc_scope_cancel(&inner);
    CHECK_INT(conc_sleep(1), -ECANCELED);
    conc_scope_cancel(&outer);
    CHECK_INT(conc_scope_end(&inner, -ECANCELED), -ECANCELED);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), 0);
    check_flags(&inner, true, false, false);
    check_flags(&outer, true, true, false);
}

TASK_TEST(the_cancel_of_an_inner_scope_stays_inside)
{
    conc_scope outer = {0}, inner = {0};
    CHECK_INT(conc_scope_begin(&outer, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&inner, CONC_FOREVER), 0);
    conc_scope_cancel(&inner);
    CHECK_INT(conc_scope_end(&inner, conc_sleep(1)), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_scope_end(&outer, 0), 0);
    check_flags(&outer, false, false, false);
}

TASK_TEST(the_cancel_of_the_middle_of_three_is_caught_by_the_middle)
{
    conc_scope s[3] = {{0}};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_scope_begin(&s[i], CONC_FOREVER), 0);
    conc_scope_cancel(&s[1]);
    CHECK_INT(conc_scope_end(&s[2], conc_yield()), -ECANCELED);
    CHECK_INT(conc_scope_end(&s[1], -ECANCELED), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_scope_end(&s[0], 9), 9);
    CHECK_INT(s[1].cancel_caught, true);
    CHECK_INT(s[2].cancel_caught, false);
}

TASK_TEST(a_cancel_is_idempotent)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    for (int i = 0; i < 1000; i++)
        conc_scope_cancel(&s);
    CHECK_INT(conc_yield(), -ECANCELED);
    conc_scope_cancel(&s);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(conc_yield(), 0);
}

TASK_TEST(a_cancel_before_the_begin_or_after_the_end_does_nothing)
{
    conc_scope s = {0};
    conc_scope_cancel(&s);
    check_flags(&s, false, false, false);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    conc_scope_cancel(&s);
    check_flags(&s, false, false, false);
    CHECK_INT(conc_yield(), 0);
}

TASK_TEST(a_scope_is_for_one_use_until_it_is_zeroed)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), -EINVAL);
    conc_scope_cancel(&s);
    CHECK_INT(conc_scope_end(&s, conc_yield()), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), -EINVAL);
    CHECK_INT(conc_yield(), 0);
    s = (conc_scope){0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_end(&s, conc_yield()), 0);
    check_flags(&s, false, false, false);
}

TASK_TEST(another_task_cancels_a_scope_and_waits_in_it_end)
{
    double delay = 3;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, cancel_shared_after, &delay), 0);
    CHECK_INT(conc_scope_begin(&shared, CONC_FOREVER), 0);
    CHECK_INT(conc_sleep(100), -ECANCELED);
    CHECK_TIME(3);
    CHECK_INT(conc_scope_end(&shared, -ECANCELED), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

static void cancel_posted(void *scope) { conc_scope_cancel(scope); }

TASK_TEST(a_posted_function_cancels_a_scope)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_post(conc_loop_self(), cancel_posted, &s), 0);
    CHECK_INT(conc_sleep(100), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_TIME(0);
}

TASK_TEST(begin_cancel_and_end_are_no_checkpoints)
{
    bool ran = false;
    conc_group g = {0};
    conc_scope s = {0};
    CHECK_INT(conc_spawn(&g, set_flag, &ran), 0);
    CHECK_INT(conc_scope_begin(&s, 1), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    CHECK(!ran);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(ran);
}

TASK_TEST(an_end_and_a_cancel_disarm_the_time_limit_at_once)
{
    conc_scope s = {0}, t = {0};
    conc_stats before, with, after;
    conc_get_stats(&before);
    CHECK_INT(conc_scope_begin(&s, 10), 0);
    CHECK_INT(conc_scope_begin(&t, 10), 0);
    conc_get_stats(&with);
    CHECK_INT(with.timers, before.timers + 2);
    conc_scope_cancel(&t);
    conc_get_stats(&after);
    CHECK_INT(after.timers, before.timers + 1);
    CHECK_INT(conc_scope_end(&t, 0), 0);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    conc_get_stats(&after);
    CHECK_INT(after.timers, before.timers);
}

TASK_TEST(a_scope_reaches_the_children_of_groups_that_were_opened_in_it)
{
    conc_task t[2] = {{0}};
    conc_scope s = {0};
    conc_group g = {0};
    int rc = 0;
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_spawn_task(&g, &t[0], sleep_forever, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, &t[1], sleep_forever, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_group_wait(&g), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_join(&t[i], &rc), 0);
        CHECK_INT(rc, -ECANCELED);
    }
}

TASK_TEST(a_scope_does_not_reach_the_children_of_a_group_opened_outside)
{
    double one = 1;
    bool ran = false;
    conc_scope s = {0};
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_spawn(&g, cancel_shared_after, &one), 0);
    CHECK_INT(conc_spawn(&g, set_flag, &ran), 0);
    CHECK_INT(conc_scope_end(&s, conc_yield()), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(1);
    CHECK(ran);
}

static int cancel_own_scope(void *arg)
{
    (void)arg;
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_sleep(1), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_scope_end(&s, conc_sleep(1)), 0);
    return conc_sleep(1);
}

TASK_TEST(the_scopes_of_different_tasks_do_not_touch_each_other)
{
    CHECK_INT(CONC_GATHER(CONC_CALL(cancel_own_scope, NULL), CONC_CALL(cancel_own_scope, NULL)), 0);
    CHECK_TIME(2);
}

TASK_TEST(a_hundred_nested_scopes_unwind_to_the_one_that_was_cancelled)
{
    conc_scope s[100] = {{0}};
    for (int i = 0; i < 100; i++)
        CHECK_INT(conc_scope_begin(&s[i], 1000), 0);
    conc_scope_cancel(&s[20]);
    int rc = conc_sleep(1);
    CHECK_INT(rc, -ECANCELED);
    for (int i = 99; i > 20; i--) {
        CHECK_INT(conc_scope_end(&s[i], rc), -ECANCELED);
        CHECK_INT(s[i].cancel_caught, false);
    }
    rc = conc_scope_end(&s[20], rc);
    CHECK_INT(rc, 0);
    for (int i = 19; i >= 0; i--)
        CHECK_INT(conc_scope_end(&s[i], rc), 0);
    CHECK_TIME(0);
}

__attribute__((noinline)) static int open_shared(void) { return conc_scope_begin(&shared, 2); }

TASK_TEST(a_scope_in_static_storage_may_stay_open_when_the_function_that_began_it_returns)
{
    CHECK_INT(open_shared(), 0);
    CHECK_INT(conc_sleep(5), -ECANCELED);
    CHECK_INT(conc_scope_end(&shared, -ECANCELED), -ETIMEDOUT);
    CHECK_TIME(2);
}
