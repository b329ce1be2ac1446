/* Errors in groups: the first one is the group's, the others are counted and reported, and no
 * cancel from outside is swallowed. */
#include "conc_test.h"

typedef struct child {
    double seconds; /* seconds to sleep */
    double cleanup; /* seconds of shielded clean-up if the sleep was cut short */
    int rc;         /* to return after the sleep */
    int cut_rc;     /* to return if it was cut short; 0: -ECANCELED */
    int slept;
    double cut, ended;
} child;

static int sleeps(void *arg) { return conc_sleep(*(double *)arg); }

static int works(void *arg)
{
    child *c = arg;
    c->slept = conc_sleep(c->seconds);
    c->cut = conc_now();
    if (c->slept < 0 && c->cleanup > 0)
        conc_shield(CONC_FOREVER, sleeps, &c->cleanup);
    c->ended = conc_now();
    if (c->slept < 0)
        return c->cut_rc ? c->cut_rc : c->slept;
    return c->rc;
}

static int returns(void *arg) { return *(int *)arg; }

typedef struct report {
    int count, rc;
    char task[64], place[128], text[128];
} report;

static report reported;

static void remember(const conc_failure *f, void *user)
{
    report *r = user;
    r->count++;
    r->rc = f->rc;
    snprintf(r->task, sizeof r->task, "%s", f->task);
    snprintf(r->place, sizeof r->place, "%s", f->place);
    snprintf(r->text, sizeof r->text, "%s", f->text);
}

/* Runs fn, and records in `reported` what on_error receives. */
static int run_reported(conc_fn *fn)
{
    conc_options options = {.virtual_clock = true, .on_error = remember, .user = &reported};
    return conc_run_with(&options, fn, NULL);
}

/* ---- one failure ---- */

TASK_TEST(a_failed_child_cancels_its_siblings_and_the_body)
{
    child failing = {.seconds = 1, .rc = -EIO}, other = {.seconds = 100};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, works, &failing), 0);
    CHECK_INT(conc_spawn(&g, works, &other), 0);
    CHECK_INT(conc_sleep(100), -ECANCELED);
    CHECK_TIME(1);
    CHECK_INT(conc_sleep(0), -ECANCELED); /* until the group is closed */
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_INT(other.slept, -ECANCELED);
    CHECK(other.ended == 1);
    CHECK_INT(g.error, -EIO);
    CHECK_INT(g.error_count, 1);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_sleep(1), 0);
    CHECK_TIME(2);
}

TASK_TEST(a_child_that_fails_while_the_owner_waits_cancels_its_siblings)
{
    child failing = {.seconds = 1, .rc = -EIO}, other = {.seconds = 100};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, works, &other), 0);
    CHECK_INT(conc_spawn(&g, works, &failing), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_TIME(1);
    CHECK_INT(other.slept, -ECANCELED);
    CHECK_INT(g.error_count, 1);
}

static int fails_with_words(void *arg)
{
    CONC_TRY(conc_sleep(1));
    return conc_fail(-EPROTO, "cup %d fell", *(int *)arg);
}

TASK_TEST(the_owner_gets_the_text_of_the_first_error)
{
    child late = {.seconds = 100, .cut_rc = -EIO};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, fails_with_words, &(int){3}), 0);
    CHECK_INT(conc_spawn(&g, works, &late), 0);
    CHECK_STR(conc_last_error(), "");
    CHECK_INT(conc_group_wait(&g), -EPROTO);
    CHECK_STR(conc_last_error(), "cup 3 fell");
}

TASK_TEST(a_group_returns_only_when_all_its_clean_up_is_done)
{
    child failing = {.seconds = 1, .rc = -EIO}, slow = {.seconds = 100, .cleanup = 2},
          slower = {.seconds = 100, .cleanup = 4};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, works, &slow), 0);
    CHECK_INT(conc_spawn(&g, works, &failing), 0);
    CHECK_INT(conc_spawn(&g, works, &slower), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK(slow.cut == 1 && slow.ended == 3);
    CHECK(slower.cut == 1 && slower.ended == 5);
    CHECK_TIME(5);
}

/* ---- several failures ---- */

static int two_children_fail(void *arg)
{
    (void)arg;
    child first = {.seconds = 1, .rc = -EIO},
          second = {.seconds = 100, .cleanup = 1, .cut_rc = -EPIPE};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, works, &second), 0);
    CHECK_INT(conc_spawn(&g, works, &first), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_INT(g.error, -EIO);
    CHECK_INT(g.error_count, 2);
    return 0;
}

TEST(an_error_that_is_not_the_groups_result_is_reported_once)
{
    CHECK_INT(run_reported(two_children_fail), 0);
    CHECK_INT(reported.count, 1);
    CHECK_INT(reported.rc, -EPIPE);
    CHECK_STR(reported.text, conc_strerror(-EPIPE));
    CHECK_CONTAINS(reported.task, "works");
    CHECK_CONTAINS(reported.place, "test_group_errors.c:");
}

static int all_children_fail(void *arg)
{
    (void)arg;
    child children[10], fine = {.seconds = 20, .rc = 5};
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn(&g, works, &fine), 0);
    for (int i = 0; i < 10; i++) {
        children[i] = (child){.seconds = 10 - i, .rc = -100 - i};
        CHECK_INT(conc_spawn(&g, works, &children[i]), 0);
    }
    CHECK_INT(conc_sleep(15), 0);
    CHECK_INT(g.error, -109); /* the first in time */
    CHECK_INT(g.error_count, 10);
    CHECK_INT(conc_group_wait(&g), -109);
    CHECK_INT(fine.slept, 0);
    CHECK_TIME(20);
    return 0;
}

TEST(a_group_that_keeps_going_counts_every_error)
{
    CHECK_INT(run_reported(all_children_fail), 0);
    CHECK_INT(reported.count, 9);
}

typedef struct joiner {
    conc_task *target;
    int result;
} joiner;

static int joins(void *arg)
{
    joiner *j = arg;
    return conc_join(j->target, &j->result);
}

static int one_error_is_joined(void *arg)
{
    (void)arg;
    child first = {.seconds = 1, .rc = -EIO}, second = {.seconds = 2, .rc = -EPIPE};
    conc_task t;
    conc_group outer = {0}, g = {.keep_going = true};
    joiner j = {.target = &t};
    CHECK_INT(conc_group_begin(&outer), 0);
    CHECK_INT(conc_spawn(&g, works, &first), 0);
    CHECK_INT(conc_spawn_task(&g, &t, works, &second), 0);
    CHECK_INT(conc_spawn(&outer, joins, &j), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_INT(g.error_count, 2);
    CHECK_INT(conc_group_wait(&outer), 0);
    CHECK_INT(j.result, -EPIPE);
    return 0;
}

TEST(an_error_that_a_task_waited_for_is_not_reported)
{
    CHECK_INT(run_reported(one_error_is_joined), 0);
    CHECK_INT(reported.count, 0);
}

static conc_group *closing;
static int late_children;

static int comes_late(void *arg)
{
    CONC_TRY(conc_sleep(1));
    ++*(int *)arg;
    return 0;
}

static void spawns_into_the_closing_group(const conc_failure *f, void *user)
{
    remember(f, user);
    CHECK_INT(conc_spawn(closing, comes_late, &late_children), 0);
}

static int two_fail_uncollected(void *arg)
{
    int rc = -EIO;
    conc_task t[2] = {0};
    conc_group g = {.keep_going = true};
    (void)arg;
    closing = &g;
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_spawn_task(&g, &t[i], returns, &rc), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_INT(late_children, 1);
    CHECK_TIME(1);
    return 0;
}

TEST(a_group_waits_for_tasks_that_on_error_spawns_into_it_while_it_closes)
{
    conc_options options = {
        .virtual_clock = true, .on_error = spawns_into_the_closing_group, .user = &reported};
    CHECK_INT(conc_run_with(&options, two_fail_uncollected, NULL), 0);
    CHECK_INT(reported.count, 1);
}

/* ---- the body's own result ---- */

TASK_TEST(an_end_returns_the_bodys_result_when_nothing_failed)
{
    for (int rc = 0; rc < 3; rc++) {
        child c = {.seconds = 1, .rc = 9};
        conc_group g = {0};
        CHECK_INT(conc_spawn(&g, works, &c), 0);
        CHECK_INT(conc_group_end(&g, rc), rc);
        CHECK_INT(c.slept, 0);
        CHECK_INT(g.error_count, 0);
    }
    CHECK_TIME(3);
}

static int body_fails_at_once(child *c)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, works, &c[0]));
    CONC_TRY_IN(&g, conc_spawn(&g, works, &c[1]));
    CONC_TRY_IN(&g, returns(&(int){-ENOENT}));
    return conc_group_end(&g, 5);
}

static int body_fails_after_a_while(child *c)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, works, &c[0]));
    CONC_TRY_IN(&g, conc_spawn(&g, works, &c[1]));
    CONC_TRY_IN(&g, conc_sleep(2));
    return conc_group_end(&g, -ENOENT);
}

TASK_TEST(an_error_of_the_body_cancels_the_children)
{
    child c[] = {{.seconds = 100}, {.seconds = 100, .cleanup = 1}};
    CHECK_INT(body_fails_at_once(c), -ENOENT);
    CHECK_INT(c[0].slept + c[1].slept, 2 * -ECANCELED);
    CHECK_TIME(1);
    CHECK_INT(body_fails_after_a_while(c), -ENOENT);
    CHECK_INT(c[0].slept + c[1].slept, 2 * -ECANCELED);
    CHECK(c[0].ended == 3 && c[1].ended == 4);
    CHECK_TIME(4);
    CHECK_INT(conc_sleep(1), 0);
}

static int body_fails_after_a_child(void *arg)
{
    (void)arg;
    child failing = {.seconds = 1, .rc = -EIO};
    conc_group g = {0};
    conc_set_name(conc_self(), "the owner");
    CHECK_INT(conc_spawn(&g, works, &failing), 0);
    CHECK_INT(conc_sleep(100), -ECANCELED);
    CHECK_INT(conc_group_end(&g, -ENOENT), -EIO);
    CHECK_INT(g.error, -EIO);
    CHECK_INT(g.error_count, 2);
    return 0;
}

TEST(an_error_of_the_body_after_a_childs_is_counted_and_reported)
{
    CHECK_INT(run_reported(body_fails_after_a_child), 0);
    CHECK_INT(reported.count, 1);
    CHECK_INT(reported.rc, -ENOENT);
    CHECK_STR(reported.task, "the owner");
}

static int child_fails_after_the_body(void *arg)
{
    (void)arg;
    child c = {.seconds = 100, .cut_rc = -EPIPE};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, works, &c), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_group_end(&g, -ENOENT), -ENOENT);
    CHECK_INT(g.error, -ENOENT);
    CHECK_INT(g.error_count, 2);
    return 0;
}

TEST(an_error_of_a_child_after_the_bodys_is_counted_and_reported)
{
    CHECK_INT(run_reported(child_fails_after_the_body), 0);
    CHECK_INT(reported.count, 1);
    CHECK_INT(reported.rc, -EPIPE);
}

/* ---- -ECANCELED as a result ---- */

static int cancelled_by_a_failure(void *arg)
{
    (void)arg;
    child failing = {.seconds = 1, .rc = -EIO}, other = {.seconds = 100};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, works, &failing), 0);
    CHECK_INT(conc_spawn(&g, works, &other), 0);
    CHECK_INT(conc_group_end(&g, conc_sleep(100)), -EIO);
    CHECK_INT(g.error_count, 1);
    return 0;
}

TEST(a_task_cancelled_by_a_failure_has_not_failed)
{
    CHECK_INT(run_reported(cancelled_by_a_failure), 0);
    CHECK_INT(reported.count, 0);
}

TASK_TEST(an_ecanceled_result_without_a_cancel_is_a_failure)
{
    child other = {.seconds = 100};
    conc_group by_child = {0}, by_body = {0};
    CHECK_INT(conc_spawn(&by_child, returns, &(int){-ECANCELED}), 0);
    CHECK_INT(conc_spawn(&by_child, works, &other), 0);
    CHECK_INT(conc_group_wait(&by_child), -ECANCELED);
    CHECK_INT(by_child.error, -ECANCELED);
    CHECK_INT(by_child.error_count, 1);
    CHECK_INT(other.slept, -ECANCELED);

    CHECK_INT(conc_spawn(&by_body, works, &other), 0);
    CHECK_INT(conc_group_end(&by_body, -ECANCELED), -ECANCELED);
    CHECK_INT(by_body.error_count, 1);
    CHECK_INT(other.slept, -ECANCELED);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_TIME(1);
}

static int passes_on_what_it_learnt(void *arg)
{
    int result = 0;
    CONC_TRY(conc_join(arg, &result));
    return result;
}

TASK_TEST(passing_on_another_tasks_cancel_is_a_failure)
{
    child c = {.seconds = 100};
    conc_task t;
    conc_group outer = {0}, g = {0};
    CHECK_INT(conc_spawn_task(&outer, &t, works, &c), 0);
    CHECK_INT(conc_spawn(&g, passes_on_what_it_learnt, &t), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_group_wait(&g), -ECANCELED);
    CHECK_INT(g.error_count, 1);
    CHECK_INT(conc_group_wait(&outer), 0);
    CHECK_INT(outer.error_count, 0);
}

TASK_TEST(a_cancelled_child_decides_whether_it_failed)
{
    child gives_up = {.seconds = 100}, succeeds = {.seconds = 100, .cut_rc = 3},
          fails = {.seconds = 100, .cut_rc = -EIO};
    conc_task t[3];
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &t[0], works, &gives_up), 0);
    CHECK_INT(conc_spawn_task(&g, &t[1], works, &succeeds), 0);
    CHECK_INT(conc_spawn_task(&g, &t[2], works, &fails), 0);
    CHECK_INT(conc_sleep(1), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_cancel(&t[i]), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(g.error_count, 0);
    CHECK_INT(conc_cancel(&t[2]), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_INT(g.error_count, 1);
}

TASK_TEST(a_group_that_cancelled_itself_still_returns_results_and_errors)
{
    child cleaner = {.seconds = 100, .cleanup = 1, .cut_rc = -EIO}, calm = {.seconds = 100};
    conc_group failing = {0}, fine = {0};
    CHECK_INT(conc_spawn(&failing, works, &cleaner), 0);
    CHECK_INT(conc_settle(), 0);
    conc_group_cancel(&failing);
    CHECK_INT(conc_group_wait(&failing), -EIO);
    CHECK_INT(failing.error_count, 1);
    CHECK_TIME(1);
    CHECK_INT(conc_spawn(&fine, works, &calm), 0);
    conc_group_cancel(&fine);
    CHECK_INT(conc_group_end(&fine, 7), 7);
    CHECK_INT(fine.error_count, 0);
}

/* ---- cancelled from outside ---- */

typedef struct host {
    child *children;
    int count;
    double sleeps; /* in the body, before it ends the group */
    int slept, group, after, error_count;
    double ended;
} host;

static int hosts_a_group(void *arg)
{
    host *h = arg;
    conc_group g = {0};
    for (int i = 0; i < h->count; i++)
        CHECK_INT(conc_spawn(&g, works, &h->children[i]), 0);
    if (h->sleeps > 0)
        h->slept = conc_sleep(h->sleeps);
    h->group = conc_group_end(&g, h->slept);
    h->ended = conc_now();
    h->error_count = g.error_count;
    h->after = conc_sleep(1);
    return h->group;
}

/* Runs the host in its own task, cancels that at 1 s, and returns its result. */
static int cancelled_at_1(host *h)
{
    int result = 1;
    conc_task t;
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &t, hosts_a_group, h), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_join(&t, &result), 0);
    int rc = conc_group_wait(&g);
    CHECK_INT(rc, result == -ECANCELED || result > 0 ? 0 : result);
    return result;
}

TASK_TEST(a_cancel_of_the_waiting_owner_reaches_the_children_and_is_passed_on)
{
    child c[5];
    for (int i = 0; i < 5; i++)
        c[i] = (child){.seconds = 100, .cleanup = i};
    host h = {.children = c, .count = 5};
    CHECK_INT(cancelled_at_1(&h), -ECANCELED);
    for (int i = 0; i < 5; i++) {
        CHECK_INT(c[i].slept, -ECANCELED);
        CHECK(c[i].cut == 1 && c[i].ended == 1 + i);
    }
    CHECK(h.ended == 5); /* only after the last has ended */
    CHECK_INT(h.error_count, 0);
    CHECK_INT(h.after, -ECANCELED);
}

TASK_TEST(a_cancel_of_the_body_reaches_the_children_and_is_passed_on)
{
    child c[] = {{.seconds = 100}, {.seconds = 100, .cleanup = 1}};
    host h = {.children = c, .count = 2, .sleeps = 50};
    CHECK_INT(cancelled_at_1(&h), -ECANCELED);
    CHECK_INT(h.slept, -ECANCELED);
    CHECK_INT(c[0].slept + c[1].slept, 2 * -ECANCELED);
    CHECK(h.ended == 2);
    CHECK_INT(h.error_count, 0);
    CHECK_INT(h.after, -ECANCELED);
}

TASK_TEST(a_cancel_that_cut_nothing_short_is_still_pending)
{
    child c[] = {{.seconds = 100, .cut_rc = 4}, {.seconds = 100, .cleanup = 1, .cut_rc = 5}};
    host h = {.children = c, .count = 2};
    CHECK_INT(cancelled_at_1(&h), 0);
    CHECK(h.ended == 2);
    CHECK_INT(h.after, -ECANCELED);
}

TASK_TEST(an_error_outranks_a_cancel_from_outside)
{
    child c[] = {{.seconds = 100, .cleanup = 2, .cut_rc = -EIO}, {.seconds = 100}};
    host h = {.children = c, .count = 2};
    CHECK_INT(cancelled_at_1(&h), -EIO);
    CHECK(h.ended == 3);
    CHECK_INT(h.error_count, 1);
    CHECK_INT(h.after, -ECANCELED);
}

TASK_TEST(an_empty_group_in_a_cancelled_scope_ends_with_success)
{
    conc_scope s = {0};
    conc_group g = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_group_begin(&g), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_sleep(0), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(conc_sleep(0), 0);
}

/* ---- nested ---- */

TASK_TEST(an_error_in_the_outer_group_cuts_the_inner_one_short)
{
    child failing = {.seconds = 1, .rc = -EIO}, inside = {.seconds = 100};
    conc_group outer = {0}, inner = {0};
    CHECK_INT(conc_spawn(&outer, works, &failing), 0);
    CHECK_INT(conc_spawn(&inner, works, &inside), 0);
    CHECK_INT(conc_group_wait(&inner), -ECANCELED);
    CHECK_TIME(1);
    CHECK_INT(inside.slept, -ECANCELED);
    CHECK_INT(inner.error_count, 0);
    CHECK_INT(conc_group_end(&outer, -ECANCELED), -EIO);
    CHECK_INT(outer.error_count, 1);
    CHECK_INT(conc_sleep(1), 0);
}

TASK_TEST(an_error_in_the_inner_group_concerns_the_outer_one_when_passed_on)
{
    child failing = {.seconds = 1, .rc = -EIO}, outside = {.seconds = 100};
    conc_group outer = {0}, inner = {0};
    CHECK_INT(conc_spawn(&outer, works, &outside), 0);
    CHECK_INT(conc_spawn(&inner, works, &failing), 0);
    CHECK_INT(conc_group_wait(&inner), -EIO);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(outer.error_count, 0);
    CHECK_INT(conc_group_end(&outer, -EIO), -EIO);
    CHECK(outside.ended == 2);
    CHECK_INT(outer.error_count, 1);
    CHECK_TIME(2);
}

/* ---- left without a wait ---- */

static int leaves_a_failing_group(void *arg)
{
    (void)arg;
    static child first = {.seconds = 100, .cleanup = 1, .cut_rc = -EIO},
                 second = {.seconds = 100, .cleanup = 2, .cut_rc = -EPIPE};
    CONC_AUTO(conc_group, g) = {0};
    CONC_TRY(conc_spawn(&g, works, &first));
    CONC_TRY(conc_spawn(&g, works, &second));
    CONC_TRY(conc_sleep(1));
    return 6;
}

TEST(every_error_of_a_group_left_without_a_wait_is_reported)
{
    CHECK_INT(run_reported(leaves_a_failing_group), 6);
    CHECK_INT(reported.count, 2);
}

static int is_cut_short_and_leaves(void *arg)
{
    (void)arg;
    static child failing = {.seconds = 1, .rc = -EIO};
    CONC_AUTO(conc_group, g) = {0};
    CONC_TRY(conc_spawn(&g, works, &failing));
    return conc_sleep(100) == -ECANCELED ? 6 : 7;
}

TEST(an_error_that_cut_the_body_short_is_reported_when_the_group_is_left)
{
    CHECK_INT(run_reported(is_cut_short_and_leaves), 6);
    CHECK_INT(reported.count, 1);
    CHECK_INT(reported.rc, -EIO);
}
