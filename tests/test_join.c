/* Joining: every joiner gets the result, and none disturbs the task. */
#include "conc_test.h"

#include <pthread.h>

static int returns(void *arg) { return *(int *)arg; }

typedef struct child {
    double seconds;
    int rc;
    int slept;
    double ended;
} child;

static int works(void *arg)
{
    child *c = arg;
    c->slept = conc_sleep(c->seconds);
    c->ended = conc_now();
    return c->slept < 0 ? c->slept : c->rc;
}

typedef struct joiner {
    conc_task *target;
    int rc, result;
    double at;
    char text[128];
} joiner;

static int joins(void *arg)
{
    joiner *j = arg;
    j->result = 12345;
    j->rc = conc_join(j->target, &j->result);
    j->at = conc_now();
    snprintf(j->text, sizeof j->text, "%s", conc_last_error());
    return j->rc;
}

TASK_TEST(a_join_waits_and_returns_the_result)
{
    int result = -1;
    conc_task t;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, works, (&(child){.seconds = 3, .rc = 7})), 0);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, 7);
    CHECK_TIME(3);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_finished_task_returns_its_result_again_and_again)
{
    int result = 0;
    conc_task t;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, returns, &(int){7}), 0);
    CHECK_INT(conc_sleep(1), 0);
    for (int i = 0; i < 3; i++) {
        result = 0;
        CHECK_INT(conc_join(&t, &result), 0);
        CHECK_INT(result, 7);
        CHECK_INT(conc_join(&t, NULL), 0);
    }
    CHECK_TIME(1);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(the_result_stays_readable_when_the_group_closed)
{
    int result = 0;
    conc_task t;
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &t, returns, &(int){-EIO}), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, -EIO);
    CHECK_STR(conc_error_text(&t), conc_strerror(-EIO));
}

TASK_TEST(any_number_of_tasks_may_join_one)
{
    conc_task t;
    conc_group g = {0};
    joiner joiners[10];
    CHECK_INT(conc_spawn_task(&g, &t, works, (&(child){.seconds = 2, .rc = 42})), 0);
    for (int i = 0; i < 10; i++)
        joiners[i] = (joiner){.target = &t};
    CHECK_INT(CONC_MAP(joins, joiners), 0);
    CHECK_INT(joins(&joiners[0]), 0);
    for (int i = 0; i < 10; i++) {
        CHECK_INT(joiners[i].rc, 0);
        CHECK_INT(joiners[i].result, 42);
        CHECK(joiners[i].at == 2);
    }
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_task_that_has_not_started_can_be_joined)
{
    int result = -1;
    conc_task t;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, returns, &(int){3}), 0);
    CHECK(!conc_done(&t));
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK(conc_done(&t));
    CHECK_INT(result, 3);
    CHECK_TIME(0);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int joins_itself(void *arg)
{
    int result = 5;
    CHECK_INT(conc_join(conc_self(), &result), -EDEADLK);
    CHECK_INT(conc_join(arg, NULL), -EDEADLK);
    CHECK_INT(result, 5);
    return 9;
}

TASK_TEST(a_task_that_joins_itself_is_a_reported_deadlock)
{
    int result = 0;
    conc_task t;
    conc_group g = {0};
    CHECK_INT(conc_join(conc_self(), NULL), -EDEADLK);
    CHECK_INT(conc_spawn_task(&g, &t, joins_itself, &t), 0);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, 9);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_join_of_a_null_task_is_refused)
{
    int result = 5;
    conc_task never_spawned = {0};
    CHECK_INT(conc_join(NULL, &result), -EINVAL);
    CHECK_INT(conc_join(&never_spawned, &result), -EINVAL);
    CHECK_INT(result, 5);
}

TASK_TEST(a_join_that_timed_out_leaves_the_task_alone)
{
    conc_task t;
    conc_group g = {0};
    child c = {.seconds = 5, .rc = 8};
    CHECK_INT(conc_spawn_task(&g, &t, works, &c), 0);
    joiner j = {.target = &t};
    CHECK_INT(conc_timeout(2, joins, &j), -ETIMEDOUT);
    CHECK_TIME(2);
    CHECK_INT(j.rc, -ECANCELED);
    CHECK_INT(j.result, 12345);
    CHECK(!conc_done(&t));
    CHECK_INT(joins(&j), 0);
    CHECK_INT(j.result, 8);
    CHECK_INT(c.slept, 0);
    CHECK_TIME(5);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_cancelled_joiner_leaves_the_task_and_the_other_joiners_alone)
{
    conc_task t, first, second;
    conc_group g = {0};
    child c = {.seconds = 5, .rc = 8};
    CHECK_INT(conc_spawn_task(&g, &t, works, &c), 0);
    joiner one = {.target = &t}, other = {.target = &t};
    CHECK_INT(conc_spawn_task(&g, &first, joins, &one), 0);
    CHECK_INT(conc_spawn_task(&g, &second, joins, &other), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&first), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(one.rc, -ECANCELED);
    CHECK(one.at == 1);
    CHECK_INT(other.rc, 0);
    CHECK_INT(other.result, 8);
    CHECK(other.at == 5);
    CHECK_INT(c.slept, 0);
}

TASK_TEST(a_cancelled_task_may_not_even_join_a_finished_one)
{
    int result = 5;
    conc_task t;
    conc_scope s = {0};
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, returns, &(int){3}), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_join(&t, &result), -ECANCELED);
    CHECK_INT(result, 5);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, 3);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(the_cancel_of_a_joined_task_is_its_result_and_no_cancel_of_the_joiner)
{
    conc_task t;
    conc_group g = {0};
    joiner j = {.target = &t};
    CHECK_INT(conc_spawn_task(&g, &t, works, (&(child){.seconds = 5})), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(joins(&j), 0);
    CHECK_INT(j.result, -ECANCELED);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(1);
}

/* ---- races: two events with no wait between ---- */

static int cancels_and_ends(void *arg)
{
    conc_task *joiner_task = arg;
    CONC_TRY(conc_sleep(1));
    CHECK_INT(conc_cancel(joiner_task), 0);
    return 6;
}

TASK_TEST(a_cancel_just_before_the_end_takes_the_join_but_not_the_result)
{
    conc_task t, waiting;
    conc_group g = {0};
    joiner j = {.target = &t};
    CHECK_INT(conc_spawn_task(&g, &t, cancels_and_ends, &waiting), 0);
    CHECK_INT(conc_spawn_task(&g, &waiting, joins, &j), 0);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(j.rc, -ECANCELED);
    CHECK_INT(j.result, 12345);
    CHECK_INT(joins(&j), 0);
    CHECK_INT(j.result, 6);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int joins_and_sleeps(void *arg)
{
    joiner *j = arg;
    joins(j);
    int slept = conc_sleep(10);
    return j->rc == 0 && slept == -ECANCELED            ? 1
           : j->rc == -ECANCELED && slept == -ECANCELED ? 2
                                                        : 3;
}

static int cancels(void *arg)
{
    CONC_TRY(conc_sleep(1));
    return conc_cancel(arg);
}

TASK_TEST(neither_a_result_nor_a_simultaneous_cancel_is_lost)
{
    int result = 0, joined = 0;
    conc_task t, waiting;
    conc_group g = {0};
    joiner j = {.target = &t};
    CHECK_INT(conc_spawn_task(&g, &t, works, (&(child){.seconds = 1, .rc = 6})), 0);
    CHECK_INT(conc_spawn(&g, cancels, &waiting), 0);
    CHECK_INT(conc_spawn_task(&g, &waiting, joins_and_sleeps, &j), 0);
    CHECK_INT(conc_join(&waiting, &result), 0);
    CHECK(result == 1 || result == 2);
    CHECK_INT(j.result, result == 1 ? 6 : 12345);
    CHECK_INT(conc_join(&t, &joined), 0);
    CHECK_INT(joined, 6);
    CHECK_TIME(1);
    CHECK_INT(conc_group_wait(&g), 0);
}

ORDERED_TASK_TEST(a_result_available_before_the_cancel_is_kept)
{
    int result = 0;
    conc_task t, waiting;
    conc_group g = {0};
    joiner j = {.target = &t};
    CHECK_INT(conc_spawn_task(&g, &t, works, (&(child){.seconds = 1, .rc = 6})), 0);
    /* runs after t has ended, before the joiner does */
    CHECK_INT(conc_spawn(&g, cancels, &waiting), 0);
    CHECK_INT(conc_spawn_task(&g, &waiting, joins_and_sleeps, &j), 0);
    CHECK_INT(conc_join(&waiting, &result), 0);
    CHECK_INT(result, 1);
    CHECK_INT(j.result, 6);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- other joins ---- */

TASK_TEST(ten_thousand_joins_that_time_out_leave_nothing_behind)
{
    conc_stats before, after;
    conc_task t;
    conc_group g = {0};
    joiner j = {.target = &t};
    CHECK_INT(conc_spawn_task(&g, &t, works, (&(child){.seconds = 1000, .rc = 4})), 0);
    CHECK_INT(conc_settle(), 0);
    conc_get_stats(&before);
    for (int i = 0; i < 10000; i++)
        CHECK_INT(conc_timeout(1.0 / 64, joins, &j), -ETIMEDOUT);
    conc_get_stats(&after);
    CHECK_TIME(156.25);
    CHECK_INT(after.tasks, before.tasks);
    CHECK_INT(after.timers, before.timers);
    CHECK_INT(after.ready, 0);
    CHECK_INT(after.stack_bytes, before.stack_bytes);
    CHECK_INT(joins(&j), 0);
    CHECK_INT(j.result, 4);
    CHECK_TIME(1000);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int fails_with_words(void *arg)
{
    CONC_TRY(conc_sleep(1));
    return conc_fail(-EPROTO, "line %d: no colon", *(int *)arg);
}

static int fails_with_other_words(void *arg)
{
    (void)arg;
    conc_fail(-EPROTO, "never mind");
    return -EIO;
}

TASK_TEST(a_join_returns_the_error_text)
{
    conc_task t, silent, fine;
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &t, fails_with_words, &(int){12}), 0);
    CHECK_INT(conc_spawn_task(&g, &silent, fails_with_other_words, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, &fine, returns, &(int){1}), 0);
    joiner j[] = {{.target = &t}, {.target = &t}, {.target = &silent}, {.target = &fine}};
    CHECK_INT(CONC_MAP(joins, j), 0);
    CHECK_STR(j[0].text, "line 12: no colon");
    CHECK_STR(j[1].text, "line 12: no colon");
    CHECK_STR(j[2].text, conc_strerror(-EIO));
    CHECK_STR(j[3].text, "");
    CHECK_STR(conc_error_text(&t), "line 12: no colon");
    CHECK_STR(conc_error_text(&silent), conc_strerror(-EIO));
    CHECK_STR(conc_error_text(&fine), "");
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_STR(conc_error_text(&t), "line 12: no colon"); /* it is still there */
}

static int shares_itself(void *arg)
{
    conc_task **me = arg;
    *me = conc_self();
    CONC_TRY(conc_sleep(3));
    return conc_fail(-EPIPE, "shared");
}

TASK_TEST(a_task_without_a_handle_can_be_joined_while_it_lives)
{
    joiner j[3] = {0};
    conc_group g = {.keep_going = true};
    conc_task *t = NULL;
    CHECK_INT(conc_spawn(&g, shares_itself, &t), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(t != NULL && !conc_done(t));
    for (int i = 0; i < 3; i++)
        j[i].target = t;
    CHECK_INT(CONC_MAP(joins, j), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(j[i].result, -EPIPE);
        CHECK_STR(j[i].text, "shared");
        CHECK(j[i].at == 3);
    }
    CHECK_INT(conc_group_wait(&g), -EPIPE);
}

TASK_TEST(a_child_may_join_its_siblings_and_other_groups_children)
{
    conc_task a, b;
    conc_group outer = {0}, inner = {0};
    joiner sibling = {.target = &a}, stranger = {.target = &b};
    CHECK_INT(conc_spawn_task(&outer, &a, works, (&(child){.seconds = 1, .rc = 1})), 0);
    CHECK_INT(conc_spawn(&outer, joins, &sibling), 0);
    CHECK_INT(conc_spawn_task(&inner, &b, works, (&(child){.seconds = 2, .rc = 2})), 0);
    CHECK_INT(conc_spawn(&outer, joins, &stranger), 0);
    CHECK_INT(conc_group_wait(&inner), 0);
    CHECK_INT(conc_group_wait(&outer), 0);
    CHECK_INT(sibling.result, 1);
    CHECK(sibling.at == 1);
    CHECK_INT(stranger.result, 2);
    CHECK(stranger.at == 2);
}

/* ---- handles of another run ---- */

typedef struct two_runs {
    conc_task tasks[2];
    int result;
} two_runs;

static int joins_what_is_not_its_own(void *arg)
{
    two_runs *r = arg;
    for (int i = 0; i < 2; i++) {
        r->result = 12345;
        CHECK_INT(conc_join(&r->tasks[i], &r->result), -EPERM);
        CHECK_INT(r->result, 12345);
        CHECK(conc_done(&r->tasks[i]));
        CHECK_STR(conc_error_text(&r->tasks[i]), i ? conc_strerror(-EIO) : "");
    }
    return 0;
}

static void *joins_in_another_run(void *arg)
{
    CHECK_INT(conc_run(joins_what_is_not_its_own, arg), 0);
    return NULL;
}

TASK_TEST(a_handle_of_another_thread_cannot_be_joined_and_stays_in_its_group)
{
    two_runs r = {.result = 0};
    int codes[] = {0, -EIO}, collected = 0;
    conc_task *next;
    conc_group g = {.keep_going = true};
    pthread_t thread;
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_spawn_task(&g, &r.tasks[i], returns, &codes[i]), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(pthread_create(&thread, NULL, joins_in_another_run, &r), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    while (conc_group_next(&g, &next) == 1)
        collected++;
    CHECK_INT(collected, 2);
    CHECK_INT(conc_group_wait(&g), -EIO);
}

static two_runs earlier;

static int leaves_ended_tasks(void *arg)
{
    static int codes[] = {0, -EIO};
    conc_group g = {.keep_going = true};
    (void)arg;
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_spawn_task(&g, &earlier.tasks[i], returns, &codes[i]), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    return 0;
}

TEST(a_handle_of_an_earlier_run_cannot_be_joined_and_its_result_is_readable)
{
    CHECK_INT(conc_run(leaves_ended_tasks, NULL), 0);
    CHECK_INT(conc_run(joins_what_is_not_its_own, &earlier), 0);
}

static void joins_in_debug_mode(void)
{
    conc_options o = {.debug = true, .virtual_clock = true};
    CHECK_INT(conc_run(leaves_ended_tasks, NULL), 0);
    CHECK_INT(conc_run_with(&o, joins_what_is_not_its_own, &earlier), 0);
}

TEST(debug_mode_reports_a_join_of_another_runs_task)
{
    char text[4096];
    CHECK_INT(test_in_process(joins_in_debug_mode, text, sizeof text), 0);
    CHECK_CONTAINS(text, "conc_join: the task belongs to another run");
}
