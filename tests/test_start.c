/* conc_start: the caller continues when the child reports that it is ready. */
#include "conc_test.h"

typedef struct service {
    double before;  /* seconds until it reports that it is ready */
    double after;   /* and seconds after that */
    double cleanup; /* seconds of shielded clean-up, if it was cancelled before */
    int value;      /* the value that it reports; negative: it ends with it instead */
    int rc;         /* its final result */
    int slept, said, slept_after;
    double ended;
} service;

static int sleeps(void *arg) { return conc_sleep(*(double *)arg); }

static int serves(void *arg)
{
    service *s = arg;
    s->slept = conc_sleep(s->before);
    s->slept_after = 1;
    if (s->slept < 0 && s->cleanup > 0)
        conc_shield(CONC_FOREVER, sleeps, &s->cleanup);
    s->ended = conc_now();
    if (s->slept < 0)
        return s->slept;
    if (s->value < 0)
        return conc_fail(s->value, "not today");
    s->said = conc_started(s->value);
    s->slept_after = conc_sleep(s->after);
    s->ended = conc_now();
    return s->slept_after < 0 ? s->slept_after : s->rc;
}

static int counts(void *arg)
{
    ++*(int *)arg;
    return 0;
}

TASK_TEST(a_start_returns_when_the_child_is_ready_and_the_child_continues)
{
    service s = {.before = 1, .after = 2, .value = 5};
    conc_group g = {0};
    CHECK_INT(conc_start(&g, serves, &s), 5);
    CHECK_TIME(1);
    CHECK_INT(s.said, 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(3);
    CHECK_INT(s.slept_after, 0);
}

TASK_TEST(a_child_may_be_ready_at_once_with_the_value_zero)
{
    service s = {.value = 0};
    conc_group g = {0};
    CHECK_INT(conc_start(&g, serves, &s), 0);
    CHECK_TIME(0);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_failed_start_leaves_the_group_unchanged)
{
    service failing = {.before = 1, .value = -ENOENT}, sibling = {.before = 3};
    conc_stats before, after;
    conc_group g = {0};
    CHECK_INT(conc_start(&g, serves, &(service){.after = 2}), 0);
    conc_get_stats(&before);
    CHECK_INT(conc_start(&g, serves, &failing), -ENOENT);
    CHECK_STR(conc_last_error(), "not today");
    CHECK_TIME(1);
    conc_get_stats(&after);
    CHECK_INT(after.tasks, before.tasks);
    CHECK_INT(g.error, 0);
    CHECK_INT(g.error_count, 0);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_start(&g, serves, &sibling), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(4);
}

static void must_not_report(const conc_failure *f, void *user)
{
    ++*(int *)user;
    fprintf(stderr, "reported: %s\n", f->text);
}

static int starts_a_failure(void *arg)
{
    service failing = {.value = -EIO}, also = {.value = -EPIPE};
    conc_group g = {0};
    CHECK_INT(conc_start(&g, serves, &failing), -EIO);
    CHECK_INT(conc_start(NULL, serves, &also), -EPIPE);
    *(bool *)arg = true;
    return conc_group_wait(&g);
}

TEST(only_the_caller_gets_the_error_of_a_failed_start)
{
    int reports = 0;
    bool done = false;
    conc_options options = {.virtual_clock = true, .on_error = must_not_report, .user = &reports};
    CHECK_INT(conc_run_with(&options, starts_a_failure, &done), 0);
    CHECK(done);
    CHECK_INT(reports, 0);
}

TASK_TEST(a_child_that_ends_without_conc_started_is_an_error_of_the_start)
{
    int ran = 0;
    conc_group g = {0};
    CHECK_INT(conc_start(&g, counts, &ran), -EINVAL);
    CHECK_INT(ran, 1);
    CHECK_INT(g.error_count, 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_start_without_a_function_or_into_a_cancelled_group_is_refused)
{
    int ran = 0;
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_start(&g, NULL, NULL), -EINVAL);
    conc_group_cancel(&g);
    CHECK_INT(conc_start(&g, counts, &ran), -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(ran, 0);
}

/* ---- conc_started ---- */

static int says_all_sorts_of_things(void *arg)
{
    CHECK_INT(conc_started(-1), -EINVAL);
    CHECK_INT(conc_started(-ECANCELED), -EINVAL);
    CHECK_INT(conc_started(3), 0);
    CHECK_INT(conc_started(4), -EINVAL);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_started(5), -EINVAL);
    ++*(int *)arg;
    return 0;
}

TASK_TEST(ready_is_reported_once_and_not_with_an_error)
{
    int ended = 0;
    conc_group g = {0};
    CHECK_INT(conc_start(&g, says_all_sorts_of_things, &ended), 3);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ended, 1);
}

static int says_what_nobody_asked(void *arg)
{
    CHECK_INT(conc_started(1), -EINVAL);
    ++*(int *)arg;
    return 0;
}

TASK_TEST(conc_started_fails_in_a_task_without_a_starter)
{
    int ended = 0;
    conc_group g = {0};
    CHECK_INT(conc_started(1), -EINVAL);
    CHECK_INT(conc_spawn(&g, says_what_nobody_asked, &ended), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ended, 1);
}

static int says_it_without_waiting(void *arg)
{
    bool *others_ran = arg;
    CHECK_INT(conc_started(1), 0);
    CHECK(!*others_ran); /* no checkpoint */
    return 0;
}

TASK_TEST(conc_started_is_no_checkpoint)
{
    bool went_on = false;
    conc_group g = {0};
    CHECK_INT(conc_start(&g, says_it_without_waiting, &went_on), 1);
    went_on = true;
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- groups ---- */

TASK_TEST(after_it_was_ready_a_childs_error_is_the_groups)
{
    service s = {.before = 1, .after = 1, .value = 2, .rc = -EIO};
    conc_group g = {0};
    CHECK_INT(conc_start(&g, serves, &s), 2);
    CHECK_INT(conc_sleep(10), -ECANCELED);
    CHECK_TIME(2);
    CHECK_INT(conc_group_end(&g, -ECANCELED), -EIO);
    CHECK_INT(g.error_count, 1);
}

typedef struct starter {
    conc_group *group;
    service service;
    int rc;
    double at;
} starter;

static int starts(void *arg)
{
    starter *s = arg;
    s->rc = conc_start(s->group, serves, &s->service);
    s->at = conc_now();
    return 0;
}

TASK_TEST(a_pending_start_keeps_the_group_open)
{
    conc_group outer = {0}, g = {0};
    starter fine = {.group = &g, .service = {.before = 2, .after = 1, .value = 6}};
    starter failing = {.group = &g, .service = {.before = 4, .value = -EIO}};
    CHECK_INT(conc_group_begin(&outer), 0);
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_spawn(&outer, starts, &fine), 0);
    CHECK_INT(conc_spawn(&outer, starts, &failing), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(4);
    CHECK_INT(fine.rc, 6);
    CHECK(fine.at == 2 && fine.service.ended == 3);
    CHECK_INT(conc_group_wait(&outer), 0);
    CHECK_INT(failing.rc, -EIO);
    CHECK(failing.at == 4);
    CHECK_INT(g.error_count + outer.error_count, 0);
}

TASK_TEST(a_start_waits_for_room_under_a_limit)
{
    service first = {.before = 1, .after = 3, .value = 1}, second = {.before = 1, .value = 2};
    conc_group g = {.limit = 1};
    CHECK_INT(conc_start(&g, serves, &first), 1);
    CHECK_TIME(1);
    CHECK_INT(conc_start(&g, serves, &second), 2);
    CHECK_TIME(5);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int starts_another_first(void *arg)
{
    conc_group *g = arg;
    static service s = {.before = 1, .after = 1, .value = 20};
    int value = CONC_TRY(conc_start(g, serves, &s));
    CONC_TRY(conc_sleep(1));
    return conc_started(value + 1);
}

TASK_TEST(a_child_may_start_another_before_it_is_ready)
{
    conc_group g = {0};
    CHECK_INT(conc_start(&g, starts_another_first, &g), 21);
    CHECK_TIME(2);
    CHECK_INT(conc_group_wait(&g), 0);
}

static service background = {.before = 1, .after = 100, .value = 8};

static int starts_in_the_background(void *arg)
{
    (void)arg;
    CHECK_INT(conc_start(NULL, serves, &background), 8);
    CHECK_TIME(1);
    return conc_sleep(1);
}

TEST(a_child_may_be_started_in_the_background)
{
    conc_options options = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&options, starts_in_the_background, NULL), 0);
    CHECK_INT(background.slept_after, -ECANCELED);
    CHECK(background.ended == 2);
}

/* ---- cancels ---- */

TASK_TEST(a_start_that_timed_out_returns_when_the_child_has_cleaned_up)
{
    service s = {.before = 10, .cleanup = 2}, sibling = {.after = 5};
    conc_scope scope = {0};
    conc_group g = {0};
    CHECK_INT(conc_start(&g, serves, &sibling), 0);
    CHECK_INT(conc_scope_begin(&scope, 1), 0);
    CHECK_INT(conc_start(&g, serves, &s), -ECANCELED);
    CHECK_TIME(3);
    CHECK_INT(s.slept, -ECANCELED);
    CHECK(s.ended == 3);
    CHECK_INT(conc_scope_end(&scope, -ECANCELED), -ETIMEDOUT);
    CHECK_INT(conc_group_wait(&g), 0); /* the group was not cancelled */
    CHECK_INT(sibling.slept_after, 0);
    CHECK_INT(g.error_count, 0);
    CHECK_TIME(5);
}

TASK_TEST(a_start_in_a_cancelled_scope_starts_nothing)
{
    int ran = 0;
    service sibling = {.after = 5};
    conc_scope scope = {0};
    conc_group g = {0};
    CHECK_INT(conc_start(&g, serves, &sibling), 0);
    CHECK_INT(conc_scope_begin(&scope, CONC_FOREVER), 0);
    conc_scope_cancel(&scope);
    CHECK_INT(conc_start(&g, counts, &ran), -ECANCELED);
    CHECK_INT(conc_scope_end(&scope, -ECANCELED), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(sibling.slept_after, 0);
    CHECK_INT(ran, 0);
    CHECK_TIME(5);
}

TASK_TEST(the_starters_limit_does_not_apply_to_the_started_task)
{
    service s = {.before = 1, .after = 5};
    conc_scope scope = {0};
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_scope_begin(&scope, 2), 0);
    CHECK_INT(conc_start(&g, serves, &s), 0);
    CHECK_INT(conc_sleep(10), -ECANCELED);
    CHECK_TIME(2);
    CHECK_INT(conc_scope_end(&scope, -ECANCELED), -ETIMEDOUT);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(s.slept_after, 0);
    CHECK_TIME(6);
}

TASK_TEST(a_cancel_of_the_group_ends_another_tasks_pending_start)
{
    conc_group outer = {0}, g = {0};
    starter s = {.group = &g, .service = {.before = 10}};
    CHECK_INT(conc_group_begin(&outer), 0);
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_spawn(&outer, starts, &s), 0);
    CHECK_INT(conc_sleep(1), 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_group_wait(&outer), 0);
    CHECK_INT(s.rc, -ECANCELED);
    CHECK_INT(s.service.slept, -ECANCELED);
    CHECK(s.at == 1);
}

typedef struct race {
    conc_group *group;
    conc_task *starter;
    int started, slept_before, slept_after, value;
} race;

static int is_stubborn(void *arg)
{
    race *r = arg;
    r->slept_before = conc_sleep(10);
    r->started = conc_started(5);
    return 0;
}

TASK_TEST(conc_started_fails_once_the_starter_gave_up)
{
    race r = {0};
    conc_scope scope = {0};
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_scope_begin(&scope, 1), 0);
    CHECK_INT(conc_start(&g, is_stubborn, &r), -ECANCELED);
    CHECK_INT(conc_scope_end(&scope, -ECANCELED), -ETIMEDOUT);
    CHECK_INT(r.slept_before, -ECANCELED);
    CHECK_INT(r.started, -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(g.error_count, 0);
}

static int says_it_then_cancels(void *arg)
{
    race *r = arg;
    r->started = conc_started(4);
    CHECK_INT(conc_cancel(r->starter), 0);
    r->slept_after = conc_sleep(3);
    return 0;
}

static int cancels_then_says_it(void *arg)
{
    race *r = arg;
    CHECK_INT(conc_cancel(r->starter), 0);
    r->started = conc_started(4);
    r->slept_after = conc_sleep(3);
    return 0;
}

typedef struct runner {
    conc_fn *fn;
    race *race;
} runner;

static int starts_one_that_cancels_it(void *arg)
{
    runner *r = arg;
    r->race->starter = conc_self();
    r->race->value = conc_start(r->race->group, r->fn, r->race);
    r->race->slept_before = conc_sleep(1);
    return 0;
}

TASK_TEST(a_conc_started_before_the_cancel_counts)
{
    conc_group outer = {0}, g = {0};
    race r = {.group = &g};
    CHECK_INT(conc_group_begin(&outer), 0);
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_spawn(&outer, starts_one_that_cancels_it, (&(runner){says_it_then_cancels, &r})),
              0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(r.started, 0);
    CHECK_INT(r.value, 4);
    CHECK_INT(r.slept_before, -ECANCELED); /* and the cancel is not forgotten */
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(r.slept_after, 0); /* the child belongs to the group now */
    CHECK_TIME(3);
    CHECK_INT(conc_group_wait(&outer), 0);
}

TASK_TEST(a_conc_started_after_the_cancel_does_not_count)
{
    conc_group outer = {0}, g = {0};
    race r = {.group = &g};
    CHECK_INT(conc_group_begin(&outer), 0);
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_spawn(&outer, starts_one_that_cancels_it, (&(runner){cancels_then_says_it, &r})),
              0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(r.started, -ECANCELED);
    CHECK_INT(r.value, -ECANCELED);
    CHECK_INT(r.slept_after, -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(0);
    CHECK_INT(conc_group_wait(&outer), 0);
}

/* ---- groups that the start would open ---- */

static int starts_what_fails(void *arg)
{
    conc_group g = {0};
    CONC_TRY(conc_start(&g, serves, arg)); /* leaves with nothing open */
    return conc_group_wait(&g);
}

TASK_TEST(a_failed_start_in_a_fresh_group_leaves_it_fresh)
{
    service s = {.before = 1, .value = -ENOENT};
    CHECK_INT(starts_what_fails(&s), -ENOENT);
    CHECK_STR(conc_last_error(), "not today");
    CHECK_INT(conc_timeout(0.5, starts_what_fails, &s), -ETIMEDOUT);
    CHECK_TIME(1.5);
}

static int spawns_a_sibling_and_fails(void *arg)
{
    static double two = 2;
    CHECK_INT(conc_spawn(arg, sleeps, &two), 0);
    return -ENOENT;
}

TASK_TEST(a_group_in_which_another_child_was_spawned_meanwhile_stays_open)
{
    conc_group g = {0};
    CHECK_INT(conc_start(&g, spawns_a_sibling_and_fails, &g), -ENOENT);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(2);
}

/* ---- a cancel between the wait for room and the wait for the start ---- */

typedef struct full_group {
    conc_group group;
    conc_task starter, child_before;
    service service;
    int rc;
} full_group;

static int starts_when_there_is_room(void *arg)
{
    full_group *f = arg;
    f->rc = conc_start(&f->group, serves, &f->service);
    return f->rc;
}

static int cancels_the_starter(void *arg)
{
    full_group *f = arg;
    CONC_TRY(conc_join(&f->child_before, NULL)); /* the starter was given the slot: it is ready */
    return conc_cancel(&f->starter);
}

ORDERED_TASK_TEST(a_cancel_after_room_was_granted_reaches_the_child)
{
    full_group f = {.group = {.limit = 1}, .service = {.before = 1000, .value = 7}};
    conc_group own = {0};
    CHECK_INT(conc_group_begin(&f.group), 0);
    CHECK_INT(conc_spawn_task(&f.group, &f.child_before, sleeps, &(double){1}), 0);
    CHECK_INT(conc_spawn(&own, cancels_the_starter, &f), 0);
    CHECK_INT(conc_spawn_task(&own, &f.starter, starts_when_there_is_room, &f), 0);
    CHECK_INT(conc_group_wait(&own), 0);
    CHECK_TIME(1);
    CHECK_INT(f.rc, -ECANCELED);
    CHECK_INT(f.service.slept, -ECANCELED);
    CHECK_INT(conc_group_wait(&f.group), 0);
    CHECK_TIME(1);
}
