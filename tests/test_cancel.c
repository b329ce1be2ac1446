/* test_cancel.c - conc_cancel and conc_group_cancel: which tasks they reach, when, and what is
 * returned. */
#include "conc_test.h"

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int sleep_for(void *seconds) { return conc_sleep(*(double *)seconds); }

static int return_it(void *value) { return *(int *)value; }

static int join_it(void *task)
{
    int rc = conc_join(task, NULL);
    return rc;
}

static int yield_forever(void *arg)
{
    (void)arg;
    for (;;)
        CONC_TRY(conc_yield());
}

/* What a cancelled task observed: the results of two waits, and the time. */
typedef struct witness {
    bool ran;
    int first, second, result;
    double at;
} witness;

static int sleep_twice(void *arg)
{
    witness *w = arg;
    w->ran = true;
    w->first = conc_sleep(100);
    w->at = conc_now();
    w->second = conc_sleep(100);
    return w->result ? w->result : w->first;
}

static void check_cancelled(const witness *w, double at)
{
    CHECK(w->ran);
    CHECK_INT(w->first, -ECANCELED);
    CHECK_INT(w->second, -ECANCELED);
    CHECK_INT(w->at * 1e9 + 0.5, at * 1e9 + 0.5);
}

static void check_result(conc_task *t, int expected)
{
    int rc = 12345;
    CHECK_INT(conc_join(t, &rc), 0);
    CHECK_INT(rc, expected);
}

TASK_TEST(cancelling_a_task_that_sleeps_wakes_it_at_once)
{
    witness w = {0};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, sleep_twice, &w), 0);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK(!conc_done(&t));
    check_result(&t, -ECANCELED);
    check_cancelled(&w, 2);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_cancelled_sleep_has_no_timer_from_the_moment_of_the_cancel)
{
    double hundred = 100;
    conc_stats before, after;
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, sleep_for, &hundred), 0);
    CHECK_INT(conc_settle(), 0);
    conc_get_stats(&before);
    CHECK_INT(before.timers, 1);
    CHECK_INT(before.ready, 0);
    CHECK_INT(conc_cancel(&t), 0);
    conc_get_stats(&after);
    CHECK_INT(after.timers, 0);
    CHECK_INT(after.ready, 1);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int start_it(void *arg)
{
    conc_group g = {0};
    return conc_group_end(&g, conc_start(&g, sleep_forever, arg));
}

static int next_of_sleepers(void *arg)
{
    conc_group g = {0};
    conc_task t = {0}, *next = NULL;
    (void)arg;
    CONC_TRY(conc_spawn_task(&g, &t, sleep_forever, NULL));
    return conc_group_end(&g, conc_group_next(&g, &next));
}

static int wait_for_room(void *arg)
{
    conc_group g = {.limit = 1};
    CONC_TRY(conc_spawn(&g, sleep_forever, arg));
    return conc_group_end(&g, conc_spawn(&g, sleep_forever, arg));
}

static int wait_for_a_group(void *arg)
{
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, sleep_forever, arg));
    return conc_group_wait(&g);
}

static int gather_it(void *arg)
{
    return CONC_GATHER(CONC_CALL(sleep_forever, arg), CONC_CALL(sleep_forever, arg));
}

TASK_TEST(a_cancel_reaches_every_kind_of_wait)
{
    conc_fn *waits[] = {sleep_forever, start_it,         next_of_sleepers,
                        wait_for_room, wait_for_a_group, gather_it};
    conc_task t[CONC_LEN(waits)] = {{0}}, target = {0}, joiner = {0};
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &target, sleep_forever, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, &joiner, join_it, &target), 0);
    for (size_t i = 0; i < CONC_LEN(waits); i++)
        CHECK_INT(conc_spawn_task(&g, &t[i], waits[i], NULL), 0);
    CHECK_INT(conc_sleep(1), 0);
    for (size_t i = 0; i < CONC_LEN(waits); i++)
        CHECK_INT(conc_cancel(&t[i]), 0);
    CHECK_INT(conc_cancel(&joiner), 0);
    for (size_t i = 0; i < CONC_LEN(waits); i++)
        check_result(&t[i], -ECANCELED);
    check_result(&joiner, -ECANCELED);
    CHECK(!conc_done(&target));
    CHECK_TIME(1);
    CHECK_INT(conc_cancel(&target), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int settle_it(void *arg)
{
    (void)arg;
    return conc_settle();
}

TASK_TEST(a_cancel_reaches_tasks_that_yield_or_settle_while_others_are_ready)
{
    conc_fn *waits[] = {yield_forever, settle_it};
    for (size_t i = 0; i < CONC_LEN(waits); i++) {
        conc_group g = {0};
        conc_task t = {0};
        CHECK_INT(conc_spawn_task(&g, &t, waits[i], NULL), 0);
        CHECK_INT(conc_yield(), 0);
        CHECK_INT(conc_yield(), 0);
        CHECK_INT(conc_cancel(&t), 0);
        check_result(&t, -ECANCELED);
        CHECK_INT(conc_group_wait(&g), 0);
    }
}

TASK_TEST(a_task_may_cancel_itself)
{
    conc_scope s = {0};
    CHECK_INT(conc_cancel(conc_self()), 0);
    CHECK(conc_cancelled());
    CHECK_INT(conc_sleep(5), -ECANCELED);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_sleep(5), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ECANCELED);
    CHECK_INT(conc_sleep(5), -ECANCELED);
    CHECK_TIME(0);
}

TASK_TEST(cancelling_a_task_that_ended_changes_nothing)
{
    int seven = 7;
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, return_it, &seven), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(conc_done(&t));
    CHECK_INT(conc_cancel(&t), -EALREADY);
    check_result(&t, 7);
    CHECK_INT(conc_cancel(&t), -EALREADY);
    check_result(&t, 7);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(cancelling_twice_is_like_cancelling_once)
{
    witness w = {0};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, sleep_twice, &w), 0);
    CHECK_INT(conc_sleep(1), 0);
    for (int i = 0; i < 100; i++)
        CHECK_INT(conc_cancel(&t), 0);
    check_result(&t, -ECANCELED);
    check_cancelled(&w, 1);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_task_that_is_cancelled_before_it_started_still_runs)
{
    witness w = {0};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, sleep_twice, &w), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK(!w.ran);
    check_result(&t, -ECANCELED);
    check_cancelled(&w, 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int sleep_one_then_two(void *arg)
{
    int *results = arg;
    results[0] = conc_sleep(1);
    results[1] = conc_sleep(1);
    return 0;
}

TASK_TEST(a_wait_that_was_granted_before_the_cancel_stays_granted)
{
    int results[2] = {1, 1};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, sleep_one_then_two, results), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_block(2), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(results[0], 0);
    CHECK_INT(results[1], -ECANCELED);
    CHECK_TIME(2);
}

TASK_TEST(a_wait_that_was_cancelled_before_the_grant_stays_cancelled)
{
    int results[2] = {1, 1};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, sleep_one_then_two, results), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_block(2), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(results[0], -ECANCELED);
    CHECK_INT(results[1], -ECANCELED);
}

static int say_started_and_cancel_the_starter(void *starter)
{
    CHECK_INT(conc_started(5), 0);
    CHECK_INT(conc_cancel(starter), 0);
    return 0;
}

static int cancel_the_starter_and_say_started(void *starter)
{
    CHECK_INT(conc_cancel(starter), 0);
    CHECK_INT(conc_started(5), -ECANCELED);
    return 0;
}

static int start_first_granted(void *arg)
{
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_start(&g, say_started_and_cancel_the_starter, conc_self()), 5);
    CHECK_INT(conc_sleep(1), -ECANCELED);
    return conc_group_end(&g, -ECANCELED);
}

static int start_first_cancelled(void *arg)
{
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_start(&g, cancel_the_starter_and_say_started, conc_self()), -ECANCELED);
    return conc_group_end(&g, -ECANCELED);
}

TASK_TEST(the_first_of_a_start_and_a_cancel_wins)
{
    conc_group g = {0};
    conc_task t[2] = {{0}};
    CHECK_INT(conc_spawn_task(&g, &t[0], start_first_granted, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, &t[1], start_first_cancelled, NULL), 0);
    check_result(&t[0], -ECANCELED);
    check_result(&t[1], -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_cancelled_tasks_return_value_is_its_result)
{
    witness value = {.result = 42}, error = {.result = -EIO};
    conc_group g = {.keep_going = true};
    conc_task t[2] = {{0}};
    CHECK_INT(conc_spawn_task(&g, &t[0], sleep_twice, &value), 0);
    CHECK_INT(conc_spawn_task(&g, &t[1], sleep_twice, &error), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&t[0]), 0);
    CHECK_INT(conc_cancel(&t[1]), 0);
    check_result(&t[0], 42);
    check_result(&t[1], -EIO);
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_INT(g.error_count, 1);
}

TASK_TEST(an_ecanceled_without_a_cancel_is_a_failure)
{
    int rc = -ECANCELED;
    witness sibling = {0};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, return_it, &rc), 0);
    CHECK_INT(conc_spawn(&g, sleep_twice, &sibling), 0);
    CHECK_INT(conc_group_wait(&g), -ECANCELED);
    CHECK_INT(g.error, -ECANCELED);
    CHECK_INT(g.error_count, 1);
    check_cancelled(&sibling, 0);
    CHECK_INT(conc_yield(), 0);
}

TASK_TEST(cancelling_one_child_leaves_its_siblings_and_the_group_alone)
{
    double three = 3;
    witness w = {0};
    conc_group g = {0};
    conc_task t[2] = {{0}};
    CHECK_INT(conc_spawn_task(&g, &t[0], sleep_twice, &w), 0);
    CHECK_INT(conc_spawn_task(&g, &t[1], sleep_for, &three), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&t[0]), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(3);
    CHECK_INT(g.error_count, 0);
    check_result(&t[0], -ECANCELED);
    check_result(&t[1], 0);
    CHECK_INT(conc_yield(), 0);
}

typedef struct tree {
    witness leaves[4];
    int branches[2], root;
} tree;

static int run_branch(void *arg)
{
    witness *leaves = arg;
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, sleep_twice, &leaves[0]));
    CONC_TRY_IN(&g, conc_spawn(&g, sleep_twice, &leaves[1]));
    return conc_group_wait(&g);
}

static int run_tree(void *arg)
{
    tree *t = arg;
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, run_branch, &t->leaves[0]));
    CONC_TRY_IN(&g, conc_spawn(&g, run_branch, &t->leaves[2]));
    t->root = conc_group_wait(&g);
    return t->root;
}

TASK_TEST(a_cancel_of_the_root_reaches_all_leaves_of_a_tree_of_groups)
{
    tree all = {.root = 1};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, run_tree, &all), 0);
    CHECK_INT(conc_sleep(5), 0);
    CHECK_INT(conc_cancel(&t), 0);
    check_result(&t, -ECANCELED);
    CHECK_INT(all.root, -ECANCELED);
    for (int i = 0; i < 4; i++)
        check_cancelled(&all.leaves[i], 5);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(5);
}

typedef struct host {
    witness children[5];
    bool in_body;
    int body, waited;
} host;

static int run_host(void *arg)
{
    host *h = arg;
    conc_group g = {0};
    for (int i = 0; i < 5; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, sleep_twice, &h->children[i]));
    if (h->in_body)
        h->body = conc_sleep(1000);
    return h->waited = conc_group_end(&g, h->body);
}

TASK_TEST(a_cancel_of_the_owner_reaches_the_children_from_the_wait_and_from_the_body)
{
    for (int in_body = 0; in_body < 2; in_body++) {
        host h = {.in_body = in_body};
        conc_group g = {0};
        conc_task t = {0};
        double start = conc_now();
        CHECK_INT(conc_spawn_task(&g, &t, run_host, &h), 0);
        CHECK_INT(conc_sleep(2), 0);
        CHECK_INT(conc_cancel(&t), 0);
        check_result(&t, -ECANCELED);
        CHECK_INT(h.body, in_body ? -ECANCELED : 0);
        CHECK_INT(h.waited, -ECANCELED);
        for (int i = 0; i < 5; i++)
            check_cancelled(&h.children[i], start + 2);
        CHECK_INT(conc_group_wait(&g), 0);
    }
}

static int ignore_the_cancel(void *arg)
{
    (void)arg;
    (void)conc_sleep(CONC_FOREVER);
    return 0;
}

static int wait_for_one_that_ignores(void *arg)
{
    int *results = arg;
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, ignore_the_cancel, NULL));
    results[0] = conc_group_wait(&g);
    results[1] = conc_yield();
    return 0;
}

TASK_TEST(a_group_whose_members_were_not_cut_short_returns_0_and_the_cancel_is_seen_next)
{
    int results[2] = {1, 1};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, wait_for_one_that_ignores, results), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(results[0], 0);
    CHECK_INT(results[1], -ECANCELED);
}

static int cancel_it(void *task) { return conc_cancel(task); }

static int main_cancelled_by_a_child(void *arg)
{
    (void)arg;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, cancel_it, conc_self()), 0);
    CHECK_INT(conc_spawn(&g, sleep_forever, NULL), 0);
    return conc_group_end(&g, conc_sleep(100));
}

TEST(a_run_whose_main_was_cancelled_returns_what_main_returned)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, main_cancelled_by_a_child, NULL), -ECANCELED);
    CHECK_INT(conc_run_with(&o, main_cancelled_by_a_child, NULL), -ECANCELED);
}

static void cancel_posted(void *task) { CHECK_INT(conc_cancel(task), 0); }
static void cancel_group_posted(void *group) { conc_group_cancel(group); }

TASK_TEST(a_posted_function_cancels_tasks_and_groups)
{
    witness w[2] = {{0}};
    conc_group g = {0}, h = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, sleep_twice, &w[0]), 0);
    CHECK_INT(conc_spawn(&h, sleep_twice, &w[1]), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_post(conc_loop_self(), cancel_posted, &t), 0);
    CHECK_INT(conc_post(conc_loop_self(), cancel_group_posted, &h), 0);
    CHECK_INT(conc_group_wait(&h), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_cancelled(&w[0], 1);
    check_cancelled(&w[1], 1);
}

TASK_TEST(a_cancelled_joiner_leaves_its_target_running)
{
    double five = 5;
    conc_group g = {0};
    conc_task target = {0}, joiner = {0};
    CHECK_INT(conc_spawn_task(&g, &target, sleep_for, &five), 0);
    CHECK_INT(conc_spawn_task(&g, &joiner, join_it, &target), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&joiner), 0);
    check_result(&joiner, -ECANCELED);
    CHECK_TIME(1);
    check_result(&target, 0);
    CHECK_TIME(5);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(joining_a_cancelled_task_does_not_cancel_the_joiner)
{
    conc_group g = {0};
    conc_task t = {0};
    int rc = 0;
    CHECK_INT(conc_spawn_task(&g, &t, sleep_forever, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int spawn_when_cancelled(void *arg)
{
    int *results = arg;
    bool ran = false;
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_sleep(CONC_FOREVER), -ECANCELED);
    results[0] = conc_spawn(&g, sleep_forever, &ran);
    results[1] = conc_group_end(&g, -ECANCELED);
    return -ECANCELED;
}

TASK_TEST(a_group_in_a_cancelled_scope_accepts_no_more_children)
{
    int results[2] = {1, 1};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, spawn_when_cancelled, results), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&t), 0);
    check_result(&t, -ECANCELED);
    CHECK_INT(results[0], -ECANCELED);
    CHECK_INT(results[1], -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int cancel_group_after_one(void *group)
{
    CONC_TRY(conc_sleep(1));
    conc_group_cancel(group);
    return conc_sleep(100);
}

TASK_TEST(a_group_cancelled_by_a_child_or_its_body_ends_with_0)
{
    witness w = {0};
    conc_group g = {0}, h = {0};
    CHECK_INT(conc_spawn(&g, cancel_group_after_one, &g), 0);
    CHECK_INT(conc_spawn(&g, sleep_twice, &w), 0);
    CHECK_INT(conc_sleep(100), -ECANCELED);
    CHECK_INT(conc_group_end(&g, -ECANCELED), 0);
    check_cancelled(&w, 1);
    CHECK_INT(g.error_count, 0);
    CHECK_INT(conc_sleep(1), 0);
    w = (witness){0};
    CHECK_INT(conc_spawn(&h, sleep_twice, &w), 0);
    CHECK_INT(conc_sleep(1), 0);
    conc_group_cancel(&h);
    conc_group_cancel(&h);
    CHECK_INT(conc_spawn(&h, sleep_twice, &w), -ECANCELED);
    CHECK_INT(conc_group_wait(&h), 0);
    check_cancelled(&w, 3);
    CHECK_INT(conc_sleep(1), 0);
}

TASK_TEST(cancelling_a_group_that_is_not_open_does_nothing)
{
    double one = 1;
    conc_group g = {0};
    conc_group_cancel(&g);
    CHECK_INT(conc_spawn(&g, sleep_for, &one), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(1);
    conc_group_cancel(&g);
    CHECK_INT(conc_sleep(1), 0);
}

static int run_inner_group(void *arg)
{
    conc_group inner = {0};
    CONC_TRY(conc_spawn(&inner, sleep_twice, arg));
    conc_group_cancel(&inner);
    CONC_TRY(conc_group_wait(&inner));
    return conc_sleep(1);
}

TASK_TEST(cancelling_an_inner_group_does_not_touch_the_outer_one)
{
    witness inner = {0};
    double two = 2;
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, run_inner_group, &inner), 0);
    CHECK_INT(conc_spawn(&g, sleep_for, &two), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_cancelled(&inner, 0);
    check_result(&t, 0);
    CHECK_TIME(2);
}

TASK_TEST(a_background_task_is_cancelled_like_any_other)
{
    witness w = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(NULL, &t, sleep_twice, &w), 0);
    CHECK_INT(conc_sleep(4), 0);
    CHECK_INT(conc_cancel(&t), 0);
    check_result(&t, -ECANCELED);
    check_cancelled(&w, 4);
    CHECK_INT(conc_yield(), 0);
}

/* ---- a task that continues after its cancel ---- */

static int ignores_its_cancel(void *calls)
{
    for (int i = 0; i < *(int *)calls; i++)
        conc_sleep(1);
    return 0;
}

static int cancels_one_that_goes_on(void *calls)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, ignores_its_cancel, calls));
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static int calls_after_the_cancel;

static void run_one_that_goes_on(void)
{
    CHECK_INT(conc_run(cancels_one_that_goes_on, &calls_after_the_cancel), 0);
}

TEST(a_task_that_keeps_ignoring_its_cancel_is_reported_once)
{
    char said[4096];
    unsetenv("CONC_DEBUG");
    calls_after_the_cancel = 900;
    CHECK_INT(test_in_process(run_one_that_goes_on, said, sizeof said), 0);
    CHECK_STR(said, "");
    calls_after_the_cancel = 5000;
    CHECK_INT(test_in_process(run_one_that_goes_on, said, sizeof said), 0);
    CHECK_CONTAINS(said, "1000 calls in a row returned -ECANCELED, but it continues");
    CHECK_CONTAINS(said, "ignores_its_cancel");
    CHECK(strchr(said, '\n') == said + strlen(said) - 1);
}
