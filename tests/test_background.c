/* Background tasks: only the end of the run waits for them, and it reports errors that no call has
 * collected. */
#include "conc_test.h"

typedef struct report {
    int rc;
    char task[64], place[128], text[128];
} report;

typedef struct reports {
    int count;
    report last, all[128];
} reports;

static void remember(const conc_failure *f, void *user)
{
    reports *r = user;
    r->last.rc = f->rc;
    snprintf(r->last.task, sizeof r->last.task, "%s", f->task);
    snprintf(r->last.place, sizeof r->last.place, "%s", f->place);
    snprintf(r->last.text, sizeof r->last.text, "%s", f->text);
    CHECK(r->count < 128);
    r->all[r->count++] = r->last;
}

static reports seen;
static bool hooked;      /* receives the errors */
static conc_task handle; /* main_fn's variables are gone when the last of its tasks end */

static int run_reported(conc_fn *fn, void *arg)
{
    conc_options options = {.virtual_clock = true, .on_error = remember, .user = &seen};
    seen.count = 0;
    hooked = true;
    return conc_run_with(&options, fn, arg);
}

static int sleeps_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int returns(void *arg) { return *(int *)arg; }

static int breaks_a_cup(void *arg)
{
    CONC_TRY(conc_sleep(1));
    return conc_fail(-EPROTO, "cup %d fell", *(int *)arg);
}

/* ---- reported ---- */

static int lets_a_cup_fall(void *arg)
{
    static int three = 3;
    CHECK_INT(conc_spawn(NULL, breaks_a_cup, &three), 0);
    CHECK_INT(conc_sleep(0.5), 0);
    CHECK_INT(seen.count, 0);
    CHECK_INT(conc_sleep(5), 0); /* it does not cancel main_fn */
    CHECK_INT(seen.count, hooked);
    return *(int *)arg;
}

TEST(an_error_of_a_background_task_is_reported_when_it_ends)
{
    CHECK_INT(run_reported(lets_a_cup_fall, &(int){7}), 7);
    CHECK_INT(seen.count, 1);
    CHECK_INT(seen.last.rc, -EPROTO);
    CHECK_STR(seen.last.text, "cup 3 fell");
    CHECK_CONTAINS(seen.last.task, "breaks_a_cup");
    CHECK_CONTAINS(seen.last.place, "test_background.c:");
}

TEST(the_error_of_main_fn_is_its_result_and_not_reported)
{
    CHECK_INT(run_reported(lets_a_cup_fall, &(int){-EIO}), -EIO);
    CHECK_INT(seen.count, 1);
    CHECK_INT(seen.last.rc, -EPROTO);
}

static int names_itself_and_fails(void *arg)
{
    conc_set_name(conc_self(), arg);
    return -ENOSPC;
}

static int spawns_a_named_failure(void *arg)
{
    CHECK_INT(conc_spawn(NULL, names_itself_and_fails, arg), 0);
    return conc_sleep(1);
}

TEST(a_report_has_the_name_that_a_task_was_given)
{
    CHECK_INT(run_reported(spawns_a_named_failure, "the waiter"), 0);
    CHECK_INT(seen.count, 1);
    CHECK_STR(seen.last.task, "the waiter");
    CHECK_STR(seen.last.text, conc_strerror(-ENOSPC));
    CHECK_CONTAINS(seen.last.place, "test_background.c:");
}

static int fails_by_itself(void *arg)
{
    static int codes[100];
    (void)arg;
    for (int i = 0; i < 100; i++) {
        codes[i] = -1000 - i;
        CHECK_INT(conc_spawn(NULL, returns, &codes[i]), 0);
    }
    return conc_sleep(1);
}

TEST(every_error_is_reported_once)
{
    bool reported[100] = {false};
    CHECK_INT(run_reported(fails_by_itself, NULL), 0);
    CHECK_INT(seen.count, 100);
    for (int i = 0; i < 100; i++) {
        int which = -1000 - seen.all[i].rc;
        CHECK(which >= 0 && which < 100);
        CHECK(!reported[which]);
        reported[which] = true;
    }
}

static int spawns_at_the_very_end(void *arg) { return conc_spawn(NULL, returns, arg); }

TEST(an_error_after_main_fn_ended_is_reported_too)
{
    static int code = -EIO;
    CHECK_INT(run_reported(spawns_at_the_very_end, &code), 0);
    CHECK_INT(seen.count, 1);
    CHECK_INT(seen.last.rc, -EIO);
}

static int fails_in_its_clean_up(void *arg)
{
    (void)arg;
    CHECK_INT(conc_sleep(100), -ECANCELED);
    return conc_fail(-EIO, "could not save");
}

static int leaves_one_that_fails_in_its_clean_up(void *arg)
{
    CHECK_INT(conc_spawn(NULL, fails_in_its_clean_up, NULL), 0);
    CHECK_INT(conc_sleep(1), 0);
    return *(int *)arg;
}

TEST(an_error_in_the_clean_up_is_reported_and_the_result_unchanged)
{
    CHECK_INT(run_reported(leaves_one_that_fails_in_its_clean_up, &(int){4}), 4);
    CHECK_INT(seen.count, 1);
    CHECK_STR(seen.last.text, "could not save");
}

static int spawns_and_sleeps(void *arg)
{
    CHECK_INT(conc_spawn(NULL, returns, arg), 0);
    return conc_sleep(1);
}

TEST(a_cancelled_result_that_was_not_collected_is_reported)
{
    static int code = -ECANCELED;
    CHECK_INT(run_reported(spawns_and_sleeps, &code), 0);
    CHECK_INT(seen.count, 1);
    CHECK_INT(seen.last.rc, -ECANCELED);
}

static int passes_on_the_error_of_a_group(void *arg)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, breaks_a_cup, arg));
    return conc_group_wait(&g);
}

static int spawns_a_group_in_the_background(void *arg)
{
    CHECK_INT(conc_spawn(NULL, passes_on_the_error_of_a_group, arg), 0);
    return conc_sleep(5);
}

TEST(an_error_that_was_passed_on_is_reported_once)
{
    static int four = 4;
    CHECK_INT(run_reported(spawns_a_group_in_the_background, &four), 0);
    CHECK_INT(seen.count, 1);
    CHECK_INT(seen.last.rc, -EPROTO);
    CHECK_CONTAINS(seen.last.task, "passes_on_the_error_of_a_group");
}

static conc_task handles[5];

static int joins_all_but_the_second(void *arg)
{
    static int codes[5] = {-1001, -1002, -1003, -1004, -1005};
    static const int order[] = {4, 0, 3, 2}; /* of the joins */
    (void)arg;
    for (int i = 0; i < 5; i++)
        CHECK_INT(conc_spawn_task(NULL, &handles[i], returns, &codes[i]), 0);
    CHECK_INT(conc_sleep(1), 0);
    for (size_t i = 0; i < CONC_LEN(order); i++) {
        int result = 0;
        CHECK_INT(conc_join(&handles[order[i]], &result), 0);
        CHECK_INT(result, codes[order[i]]);
    }
    CHECK_INT(seen.count, 0);
    return 0;
}

TEST(with_a_handle_an_error_is_reported_at_the_end_unless_it_was_joined)
{
    CHECK_INT(run_reported(joins_all_but_the_second, NULL), 0);
    CHECK_INT(seen.count, 1);
    CHECK_INT(seen.last.rc, -1002);
}

static int uses_a_failed_handle_again(void *arg)
{
    static int codes[2] = {-1001, -1002};
    (void)arg;
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_spawn_task(NULL, &handle, returns, &codes[i]), 0);
        CHECK_INT(conc_sleep(1), 0);
    }
    return conc_join(&handle, NULL);
}

TEST(a_handle_that_is_used_again_leaves_its_first_error_to_the_end)
{
    CHECK_INT(run_reported(uses_a_failed_handle_again, NULL), 0);
    CHECK_INT(seen.count, 1);
    CHECK_INT(seen.last.rc, -1001);
}

static int leaves_many_failures(void *arg)
{
    static conc_task many[100];
    static int codes[100];
    (void)arg;
    for (int i = 0; i < 100; i++) {
        codes[i] = -1000 - i;
        CHECK_INT(conc_spawn_task(NULL, &many[i], returns, &codes[i]), 0);
        CHECK_INT(conc_sleep(1), 0);
    }
    for (int i = 0; i < 100; i += 2)
        CHECK_INT(conc_join(&many[i], NULL), 0);
    return 0;
}

TEST(errors_that_no_task_joined_are_reported_in_the_order_of_the_failures)
{
    CHECK_INT(run_reported(leaves_many_failures, NULL), 0);
    CHECK_INT(seen.count, 50);
    for (int i = 0; i < 50; i++)
        CHECK_INT(seen.all[i].rc, -1001 - 2 * i);
}

/* ---- not reported ---- */

static int spawns_what_does_not_fail(void *arg)
{
    static int codes[] = {0, 1, 42};
    for (size_t i = 0; i < CONC_LEN(codes); i++)
        CHECK_INT(conc_spawn(NULL, returns, &codes[i]), 0);
    CHECK_INT(conc_spawn(NULL, sleeps_forever, arg), 0);
    return conc_sleep(1);
}

TEST(success_and_the_cancel_at_the_end_are_not_reported)
{
    CHECK_INT(run_reported(spawns_what_does_not_fail, NULL), 0);
    CHECK_INT(seen.count, 0);
}

static int joins_a_failure(void *arg)
{
    int result = 0;
    CHECK_INT(conc_spawn_task(NULL, &handle, breaks_a_cup, arg), 0);
    CHECK_INT(conc_join(&handle, &result), 0);
    CHECK_INT(result, -EPROTO);
    CHECK_STR(conc_last_error(), "cup 5 fell");
    return 0;
}

static int joins_a_failure_late(void *arg)
{
    int result = 0;
    CHECK_INT(conc_spawn_task(NULL, &handle, breaks_a_cup, arg), 0);
    CHECK_INT(conc_sleep(10), 0);
    CHECK(conc_done(&handle));
    CHECK_INT(conc_join(&handle, &result), 0);
    CHECK_INT(result, -EPROTO);
    CHECK_INT(conc_join(&handle, NULL), 0);
    return 0;
}

TEST(an_error_that_was_joined_is_not_reported)
{
    static int five = 5;
    CHECK_INT(run_reported(joins_a_failure, &five), 0);
    CHECK_INT(seen.count, 0);
    CHECK_INT(run_reported(joins_a_failure_late, &five), 0);
    CHECK_INT(seen.count, 0);
}

static int joins_the_handle(void *arg)
{
    int result = 0;
    CONC_TRY(conc_join(&handle, &result));
    *(int *)arg = result;
    return 0;
}

static int has_another_task_join(void *arg)
{
    static int six = 6;
    CHECK_INT(conc_spawn_task(NULL, &handle, breaks_a_cup, &six), 0);
    CHECK_INT(conc_spawn(NULL, joins_the_handle, arg), 0);
    return conc_sleep(2);
}

TEST(it_does_not_matter_which_task_joined)
{
    int result = 0;
    CHECK_INT(run_reported(has_another_task_join, &result), 0);
    CHECK_INT(result, -EPROTO);
    CHECK_INT(seen.count, 0);
}

static int gives_up_joining(void *arg)
{
    int result = 0;
    CHECK_INT(conc_spawn_task(NULL, &handle, breaks_a_cup, arg), 0);
    CHECK_INT(conc_timeout(0.5, joins_the_handle, &result), -ETIMEDOUT);
    return conc_sleep(5);
}

TEST(a_join_that_timed_out_took_nothing)
{
    static int seven = 7;
    CHECK_INT(run_reported(gives_up_joining, &seven), 0);
    CHECK_INT(seen.count, 1);
    CHECK_STR(seen.last.text, "cup 7 fell");
}

TEST(a_run_reports_no_errors_of_the_run_before)
{
    static int code = -EIO;
    CHECK_INT(run_reported(spawns_and_sleeps, &code), 0);
    CHECK_INT(seen.count, 1);
    CHECK_INT(run_reported(spawns_what_does_not_fail, NULL), 0);
    CHECK_INT(seen.count, 0);
}

/* ---- background tasks among others ---- */

static double slept_until;

static int sleeps_ten(void *arg)
{
    CONC_TRY(conc_sleep(10));
    slept_until = conc_now();
    return *(int *)arg;
}

static int lets_one_of_two_fail(void *arg)
{
    static int zero = 0;
    CHECK_INT(conc_spawn(NULL, sleeps_ten, &zero), 0);
    CHECK_INT(conc_spawn(NULL, returns, arg), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_spawn(NULL, sleeps_ten, &zero), 0); /* still in use */
    return conc_sleep(20);
}

TEST(an_error_of_one_does_not_affect_the_others)
{
    static int code = -EIO;
    CHECK_INT(run_reported(lets_one_of_two_fail, &code), 0);
    CHECK(slept_until == 11);
    CHECK_INT(seen.count, 1);
}

static int spawns_in_a_cancelled_scope(void *arg)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 2), 0);
    CHECK_INT(conc_spawn(NULL, sleeps_ten, arg), 0);
    CHECK_INT(conc_sleep(5), -ECANCELED);
    /* this is no checkpoint, and the limit is not theirs */
    CHECK_INT(conc_spawn(NULL, sleeps_ten, arg), 0);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    return conc_sleep(20);
}

TEST(no_scope_of_the_spawner_reaches_a_background_task)
{
    static int code = -EIO;
    CHECK_INT(run_reported(spawns_in_a_cancelled_scope, &code), 0);
    CHECK(slept_until == 12);
    CHECK_INT(seen.count, 2);
}

/* ---- the hook ---- */

static int hooks_run;

static void tries_to_wait(const conc_failure *f, void *user)
{
    hooks_run++;
    CHECK(user == &hooks_run);
    CHECK(f->rc == -EIO);
    CHECK(conc_self() == NULL);
    CHECK_INT(conc_sleep(1), -EPERM);
    CHECK_INT(conc_yield(), -EPERM);
    CHECK_INT(conc_settle(), -EPERM);
    CHECK_INT(conc_start(NULL, returns, user), -EPERM);
    CHECK_INT(conc_gather((conc_call[]){CONC_CALL(returns, user)}, 1), -EPERM);
    CHECK_INT(conc_run(returns, user), -EBUSY);
}

TEST(the_hook_is_not_a_task)
{
    static int code = -EIO;
    conc_options options = {.virtual_clock = true, .on_error = tries_to_wait, .user = &hooks_run};
    CHECK_INT(conc_run_with(&options, spawns_and_sleeps, &code), 0);
    CHECK_INT(hooks_run, 1);
}

static void runs_without_a_hook(void)
{
    static int nine = 9;
    conc_options options = {.virtual_clock = true};
    fprintf(stderr, "result %d\n", conc_run_with(&options, lets_a_cup_fall, &nine));
}

TEST(without_a_hook_an_error_is_printed)
{
    char output[8192];
    CHECK_INT(test_in_process(runs_without_a_hook, output, sizeof output), 0);
    CHECK_CONTAINS(output, "cup 3 fell");
    CHECK_CONTAINS(output, "breaks_a_cup");
    CHECK_CONTAINS(output, "test_background.c:");
    CHECK_CONTAINS(output, "result 9");
}

static int fails_in_main(void *arg)
{
    static int eight = 8;
    (void)arg;
    CHECK_INT(conc_spawn(NULL, breaks_a_cup, &eight), 0);
    CHECK_INT(conc_yield(), 0);
    return 0;
}

static void runs_conc_main(void)
{
    setenv("CONC_CLOCK", "virtual", 1);
    fprintf(stderr, "status %d\n", conc_main(fails_in_main, NULL));
}

TEST(the_status_of_conc_main_does_not_depend_on_background_tasks)
{
    char output[8192];
    CHECK_INT(test_in_process(runs_conc_main, output, sizeof output), 0);
    CHECK_CONTAINS(output, "status 0\n");
    CHECK(!strstr(output, "breaks_a_cup")); /* it was cancelled, which is no failure */
}
