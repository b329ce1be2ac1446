/* test_shield.c - shields: what they hide and what they do not, changing them while a task waits,
 * grace and clean-up. */
#include "conc_test.h"

#include <math.h>

static int sleep_for(void *seconds) { return conc_sleep(*(double *)seconds); }

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int return_it(void *value) { return *(int *)value; }

static int set_flag(void *flag)
{
    *(bool *)flag = true;
    return 0;
}

/* A task that waits in inner, which is nested in outer; others cancel and shield. */
typedef struct waiter {
    conc_scope outer, inner;
    bool shielded;
    double sleep;
    int slept, next, inner_end, after, outer_end;
    double woke;
} waiter;

static int wait_inside(void *arg)
{
    waiter *w = arg;
    CONC_TRY(conc_scope_begin(&w->outer, CONC_FOREVER));
    CONC_TRY(conc_scope_begin(&w->inner, CONC_FOREVER));
    conc_scope_shield(&w->inner, w->shielded);
    w->slept = conc_sleep(w->sleep);
    w->woke = conc_now();
    w->next = conc_yield();
    w->inner_end = conc_scope_end(&w->inner, w->slept);
    w->after = conc_yield();
    w->outer_end = conc_scope_end(&w->outer, w->after);
    return 0;
}

static void check_woke(const waiter *w, int slept, double woke)
{
    CHECK_INT(w->slept, slept);
    CHECK_INT(w->woke * 1e9 + 0.5, woke * 1e9 + 0.5);
}

static void start_waiter(conc_group *g, waiter *w)
{
    CHECK_INT(conc_spawn(g, wait_inside, w), 0);
    CHECK_INT(conc_sleep(1), 0);
}

TASK_TEST(a_shield_hides_the_cancel_from_outside_and_nothing_is_forgotten)
{
    double three = 3;
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_sleep(1), -ECANCELED);
    CHECK_INT(conc_shield(10, sleep_for, &three), 0);
    CHECK_TIME(3);
    CHECK_INT(conc_sleep(1), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
}

TASK_TEST(the_grace_bounds_the_clean_up)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_shield(5, sleep_forever, NULL), -ETIMEDOUT);
    CHECK_TIME(5);
    CHECK_INT(conc_scope_end(&s, conc_yield()), 0);
}

TASK_TEST(a_grace_of_zero_leaves_no_time_to_wait)
{
    double one = 1;
    int value = 6;
    CHECK_INT(conc_shield(0, sleep_for, &one), -ETIMEDOUT);
    CHECK_INT(conc_shield(-3, sleep_for, &one), -ETIMEDOUT);
    CHECK_INT(conc_shield(0, return_it, &value), 6);
    CHECK_TIME(0);
}

TASK_TEST(a_shielded_call_returns_the_result_and_refuses_nonsense)
{
    int results[] = {0, 5, -EIO, -ECANCELED};
    bool ran = false;
    for (size_t i = 0; i < CONC_LEN(results); i++)
        CHECK_INT(conc_shield(1, return_it, &results[i]), results[i]);
    CHECK_INT(conc_shield((double)NAN, set_flag, &ran), -EINVAL);
    CHECK_INT(conc_shield(1, NULL, &ran), -EINVAL);
    CHECK(!ran);
}

TASK_TEST(inside_a_shield_nothing_is_pending_and_only_inner_limits_count)
{
    conc_scope outer = {0}, shield = {0};
    CHECK_INT(conc_scope_begin(&outer, 5), 0);
    CHECK_INT(conc_scope_begin(&shield, 30), 0);
    conc_scope_shield(&shield, true);
    CHECK_INT(conc_deadline(), 30);
    conc_scope_cancel(&outer);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_deadline(), 30);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_scope_end(&shield, 0), 0);
    CHECK(conc_cancelled());
    CHECK(conc_deadline() == -CONC_FOREVER);
    CHECK_INT(conc_scope_end(&outer, conc_yield()), 0);
}

TASK_TEST(a_shielded_scope_is_still_cancelled_by_its_own_cancel)
{
    conc_scope outer = {0}, shield = {0};
    CHECK_INT(conc_scope_begin(&outer, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&shield, CONC_FOREVER), 0);
    conc_scope_shield(&shield, true);
    conc_scope_cancel(&outer);
    CHECK_INT(conc_yield(), 0);
    conc_scope_cancel(&shield);
    CHECK_INT(conc_yield(), -ECANCELED);
    CHECK_INT(conc_scope_end(&shield, -ECANCELED), 0);
    CHECK(shield.cancel_caught);
    CHECK_INT(conc_yield(), -ECANCELED);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), 0);
    CHECK(outer.cancel_caught);
}

TASK_TEST(a_shielded_limit_ends_the_clean_up_of_a_cancelled_block)
{
    conc_scope outer = {0}, shield = {0};
    CHECK_INT(conc_scope_begin(&outer, 2), 0);
    CHECK_INT(conc_sleep(9), -ECANCELED);
    CHECK_INT(conc_scope_begin(&shield, 5), 0);
    conc_scope_shield(&shield, true);
    CHECK_INT(conc_sleep(100), -ECANCELED);
    CHECK_INT(conc_scope_end(&shield, -ECANCELED), -ETIMEDOUT);
    CHECK_TIME(7);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), -ETIMEDOUT);
}

TASK_TEST(a_limit_that_passes_outside_a_shield_is_seen_after_it)
{
    double nine = 9;
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 4), 0);
    CHECK_INT(conc_shield(CONC_FOREVER, sleep_for, &nine), 0);
    CHECK_TIME(9);
    CHECK(s.expired && conc_cancelled());
    CHECK_INT(conc_scope_end(&s, conc_yield()), -ETIMEDOUT);
}

TASK_TEST(removing_a_shield_wakes_waits_behind_it)
{
    waiter w = {.shielded = true, .sleep = 100};
    conc_group g = {0};
    start_waiter(&g, &w);
    conc_scope_cancel(&w.outer);
    CHECK_INT(conc_sleep(1), 0);
    conc_scope_shield(&w.inner, false);
    CHECK_INT(conc_group_wait(&g), 0);
    check_woke(&w, -ECANCELED, 2);
    CHECK_INT(w.inner_end, -ECANCELED);
    CHECK_INT(w.outer_end, 0);
}

TASK_TEST(a_shield_set_before_the_cancel_hides_it)
{
    waiter w = {.sleep = 10};
    conc_group g = {0};
    start_waiter(&g, &w);
    conc_scope_shield(&w.inner, true);
    conc_scope_cancel(&w.outer);
    CHECK_INT(conc_group_wait(&g), 0);
    check_woke(&w, 0, 10);
    CHECK_INT(w.next, 0);
    CHECK_INT(w.inner_end, 0);
    CHECK_INT(w.after, -ECANCELED);
    CHECK_INT(w.outer_end, 0);
}

TASK_TEST(a_shield_set_after_the_cancel_is_too_late_for_the_wait_but_not_for_the_next)
{
    waiter w = {.sleep = 10};
    conc_group g = {0};
    start_waiter(&g, &w);
    conc_scope_cancel(&w.outer);
    conc_scope_shield(&w.inner, true);
    CHECK_INT(conc_group_wait(&g), 0);
    check_woke(&w, -ECANCELED, 1);
    CHECK_INT(w.next, 0);
    CHECK_INT(w.after, -ECANCELED);
}

TASK_TEST(a_shield_set_and_removed_around_a_cancel_leaves_the_cancel)
{
    waiter w = {.sleep = 10};
    conc_group g = {0};
    start_waiter(&g, &w);
    conc_scope_shield(&w.inner, true);
    conc_scope_cancel(&w.outer);
    conc_scope_shield(&w.inner, false);
    CHECK_INT(conc_group_wait(&g), 0);
    check_woke(&w, -ECANCELED, 1);
    CHECK_INT(w.next, -ECANCELED);
}

TASK_TEST(a_shield_that_is_switched_without_a_cancel_disturbs_no_task)
{
    waiter w = {.sleep = 10};
    conc_group g = {0};
    start_waiter(&g, &w);
    for (int i = 0; i < 100; i++)
        conc_scope_shield(&w.inner, i % 2 == 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_woke(&w, 0, 10);
    CHECK_INT(w.after, 0);
}

TASK_TEST(an_outer_limit_that_passed_reaches_the_wait_when_the_shield_is_removed)
{
    waiter w = {.shielded = true, .sleep = 100};
    conc_group g = {0};
    start_waiter(&g, &w);
    CHECK_INT(conc_scope_set_timeout(&w.outer, 3), 0);
    CHECK_INT(conc_sleep(5), 0);
    CHECK(w.outer.expired);
    conc_scope_shield(&w.inner, false);
    CHECK_INT(conc_group_wait(&g), 0);
    check_woke(&w, -ECANCELED, 6);
    CHECK_INT(w.outer_end, -ETIMEDOUT);
}

static void unshield_posted(void *scope) { conc_scope_shield(scope, false); }

TASK_TEST(a_posted_function_switches_a_shield)
{
    waiter w = {.shielded = true, .sleep = 100};
    conc_group g = {0};
    start_waiter(&g, &w);
    conc_scope_cancel(&w.outer);
    CHECK_INT(conc_post(conc_loop_self(), unshield_posted, &w.inner), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_woke(&w, -ECANCELED, 1);
}

TASK_TEST(a_shield_switched_by_its_own_task_works_at_once)
{
    conc_scope outer = {0}, inner = {0};
    CHECK_INT(conc_scope_begin(&outer, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&inner, CONC_FOREVER), 0);
    conc_scope_cancel(&outer);
    CHECK_INT(conc_yield(), -ECANCELED);
    conc_scope_shield(&inner, true);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_yield(), 0);
    conc_scope_shield(&inner, false);
    CHECK(conc_cancelled());
    CHECK_INT(conc_yield(), -ECANCELED);
    CHECK_INT(conc_scope_end(&inner, -ECANCELED), -ECANCELED);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), 0);
}

TASK_TEST(a_scope_inside_a_shield_is_protected_too)
{
    conc_scope outer = {0}, shield = {0}, inside = {0};
    CHECK_INT(conc_scope_begin(&outer, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&shield, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&inside, 3), 0);
    conc_scope_shield(&shield, true);
    conc_scope_cancel(&outer);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_scope_end(&inside, conc_sleep(100)), -ETIMEDOUT);
    CHECK_TIME(3);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_scope_end(&shield, 0), 0);
    CHECK_INT(conc_scope_end(&outer, conc_yield()), 0);
}

static int gather_two_sleepers(void *arg)
{
    (void)arg;
    double two = 2, three = 3;
    return CONC_GATHER(CONC_CALL(sleep_for, &two), CONC_CALL(sleep_for, &three));
}

TASK_TEST(children_of_a_group_inside_a_shield_are_protected)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_shield(10, gather_two_sleepers, NULL), 0);
    CHECK_TIME(3);
    CHECK_INT(conc_scope_end(&s, conc_yield()), 0);
}

TASK_TEST(a_shield_in_the_body_of_a_group_does_not_protect_its_children)
{
    double four = 4;
    int rc = 0;
    conc_scope s = {0};
    conc_group g = {0};
    conc_task child = {0};
    CHECK_INT(conc_scope_begin(&s, 2), 0);
    CHECK_INT(conc_spawn_task(&g, &child, sleep_forever, NULL), 0);
    CHECK_INT(conc_shield(CONC_FOREVER, sleep_for, &four), 0);
    CHECK_TIME(4);
    CHECK(conc_done(&child));
    CHECK_INT(conc_sleep(1), -ECANCELED);
    CHECK_INT(conc_group_end(&g, -ECANCELED), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    CHECK_INT(conc_join(&child, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
}

typedef struct clean_up {
    int body, cleaned, after;
    double ended;
} clean_up;

static int clean_up_for_three(void *arg)
{
    clean_up *c = arg;
    double three = 3;
    c->body = conc_sleep(CONC_FOREVER);
    c->cleaned = conc_shield(10, sleep_for, &three);
    c->after = conc_yield();
    c->ended = conc_now();
    return c->body;
}

TASK_TEST(a_cancelled_task_cleans_up_behind_a_shield)
{
    clean_up c = {0};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, clean_up_for_three, &c), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK(!conc_done(&t));
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.body, -ECANCELED);
    CHECK_INT(c.cleaned, 0);
    CHECK_INT(c.after, -ECANCELED);
    CHECK_TIME(4);
}

TASK_TEST(a_shield_of_a_scope_that_was_left_does_nothing)
{
    conc_scope outer = {0}, left = {0};
    CHECK_INT(conc_scope_begin(&outer, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&left, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_end(&left, 0), 0);
    conc_scope_shield(&left, true);
    conc_scope_cancel(&outer);
    CHECK_INT(conc_scope_end(&outer, conc_yield()), 0);
}

TASK_TEST(a_wait_behind_a_shield_is_reached_through_no_other_shield)
{
    /* outer, shield a, shield b: removing b is not enough */
    conc_scope outer = {0}, a = {0}, b = {0};
    CHECK_INT(conc_scope_begin(&outer, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&a, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&b, CONC_FOREVER), 0);
    conc_scope_shield(&a, true);
    conc_scope_shield(&b, true);
    conc_scope_cancel(&outer);
    conc_scope_shield(&b, false);
    CHECK_INT(conc_yield(), 0);
    conc_scope_shield(&a, false);
    CHECK_INT(conc_yield(), -ECANCELED);
    CHECK_INT(conc_scope_end(&b, -ECANCELED), -ECANCELED);
    CHECK_INT(conc_scope_end(&a, -ECANCELED), -ECANCELED);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), 0);
}
