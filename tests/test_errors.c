/* test_errors.c - error texts, from conc_fail to conc_strerror; on_error; CONC_TRY and
 * CONC_AUTO. */
#include "conc_test.h"

/* What on_error received, in order. */
typedef struct told {
    char task[512], place[512], text[256];
    int rc;
} told;

static told hooked[32];
static int hook_calls;
static char hook_user;

static void hook(const conc_failure *f, void *user)
{
    CHECK(user == &hook_user);
    CHECK(hook_calls < 32);
    told *t = &hooked[hook_calls++];
    snprintf(t->task, sizeof t->task, "%s", f->task);
    snprintf(t->place, sizeof t->place, "%s", f->place);
    snprintf(t->text, sizeof t->text, "%s", f->text);
    t->rc = f->rc;
}

static int run_hooked(conc_fn *fn)
{
    conc_options o = {.virtual_clock = true, .on_error = hook, .user = &hook_user};
    return conc_run_with(&o, fn, NULL);
}

static int fail_with_words(void *arg)
{
    (void)arg;
    return conc_fail(-EPROTO, "line %d: no %s", 12, "colon");
}

static int return_it(void *value) { return *(int *)value; }

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

/* Waits for a second, then fails; or, if cancelled, ends with a different error. */
static int fail_after_one(void *arg)
{
    if (conc_sleep(1) < 0)
        return conc_fail(-EIO, "%s", (char *)arg);
    return conc_fail(-EPROTO, "%s", (char *)arg);
}

/* ---- error texts */

TASK_TEST(conc_fail_returns_its_code_and_sets_its_text)
{
    int rc = 0;
    conc_group g = {.keep_going = true};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, fail_with_words, NULL), 0);
    CHECK_STR(conc_error_text(&t), "");
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_INT(rc, -EPROTO);
    CHECK_STR(conc_error_text(&t), "line 12: no colon");
    CHECK_STR(conc_last_error(), "line 12: no colon");
    CHECK_INT(conc_group_wait(&g), -EPROTO);
    CHECK_STR(conc_error_text(&t), "line 12: no colon");
}

static int fail_in_other_words(void *arg)
{
    (void)conc_fail(-EPROTO, "not these");
    return arg ? *(int *)arg : conc_fail(-EIO, "but these");
}

TASK_TEST(an_error_text_belongs_to_its_result)
{
    int results[] = {-EIO, 0, 3};
    conc_group g = {.keep_going = true};
    conc_task t[4] = {{0}};
    for (int i = 0; i < 4; i++)
        CHECK_INT(conc_spawn_task(&g, &t[i], fail_in_other_words, i < 3 ? &results[i] : NULL), 0);
    for (int i = 0; i < 4; i++)
        CHECK_INT(conc_join(&t[i], NULL), 0);
    CHECK_STR(conc_error_text(&t[0]), conc_strerror(-EIO));
    CHECK_STR(conc_error_text(&t[1]), "");
    CHECK_STR(conc_error_text(&t[2]), "");
    CHECK_STR(conc_error_text(&t[3]), "but these");
    CHECK_INT(conc_group_wait(&g), -EIO);
}

TASK_TEST(an_error_without_a_text_gets_that_of_its_code)
{
    int rc = -ENOENT;
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, return_it, &rc), 0);
    CHECK_INT(conc_group_wait(&g), -ENOENT);
    CHECK_STR(conc_error_text(&t), conc_strerror(-ENOENT));
    CHECK_STR(conc_last_error(), conc_strerror(-ENOENT));
}

static int fail_at_length(void *arg)
{
    (void)arg;
    return conc_fail(-EIO, "%0300d", 0);
}

TASK_TEST(error_texts_are_cut_at_127_bytes)
{
    char zeros[128];
    memset(zeros, '0', 127);
    zeros[127] = 0;
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_fail(-EIO, "%0500d", 0), -EIO);
    CHECK_STR(conc_last_error(), zeros);
    CHECK_INT(conc_fail(-EIO, "%s", zeros), -EIO);
    CHECK_STR(conc_last_error(), zeros);
    CHECK_INT(conc_spawn_task(&g, &t, fail_at_length, NULL), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_STR(conc_error_text(&t), zeros);
    CHECK_STR(conc_last_error(), zeros);
}

TASK_TEST(an_error_text_may_quote_the_previous_one)
{
    CHECK_INT(conc_fail(-EIO, "disk on fire"), -EIO);
    CHECK_INT(conc_fail(-EIO, "cannot save: %s", conc_last_error()), -EIO);
    CHECK_STR(conc_last_error(), "cannot save: disk on fire");
}

TASK_TEST(the_last_error_is_each_tasks_own_latest)
{
    conc_group g = {.keep_going = true};
    conc_task t = {0};
    CHECK_STR(conc_last_error(), "");
    CHECK_INT(conc_fail(-EIO, "mine"), -EIO);
    CHECK_INT(conc_spawn_task(&g, &t, fail_with_words, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(conc_done(&t));
    CHECK_STR(conc_last_error(), "mine");
    CHECK_INT(conc_join(&t, NULL), 0);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    CHECK_INT(conc_fail(-EIO, "mine again"), -EIO);
    CHECK_STR(conc_last_error(), "mine again");
    CHECK_INT(conc_group_wait(&g), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
}

TASK_TEST(a_group_a_gather_and_a_map_have_the_text_of_the_first_error)
{
    char early[] = "early", late[] = "late";
    conc_call calls[] = {CONC_CALL(fail_after_one, late), CONC_CALL(fail_with_words, NULL),
                         CONC_CALL(return_it, &(int){5})};
    CHECK_INT(conc_gather(calls, 3), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    CHECK_STR(calls[0].text, "late");
    CHECK_INT(calls[0].result, -EIO);
    CHECK_STR(calls[1].text, "line 12: no colon");
    CHECK_STR(calls[2].text, "");
    CHECK_INT(calls[2].result, 5);
    CHECK_INT(conc_map(fail_after_one, early, 1, sizeof early), -EPROTO);
    CHECK_STR(conc_last_error(), "early");
}

TASK_TEST(a_gathered_text_is_cut_to_its_buffer)
{
    conc_call call[] = {CONC_CALL(fail_at_length, NULL)};
    CHECK_INT(conc_gather_all(call, 1), 0);
    CHECK_INT(call[0].result, -EIO);
    CHECK_INT(strlen(call[0].text), sizeof call[0].text - 1);
    CHECK_INT(strspn(call[0].text, "0"), sizeof call[0].text - 1);
}

TEST(each_of_concs_codes_has_its_own_text)
{
    int codes[] = {ECANCELED, ETIMEDOUT, EINVAL,   EPERM,      EDEADLK, EBUSY,
                   EAGAIN,    ENOMEM,    EALREADY, ESHUTDOWN,  EPIPE,   EOVERFLOW,
                   EINTR,     ENOTSUP,   EMSGSIZE, EOWNERDEAD, EBADF,   EADDRNOTAVAIL};
    const char *texts[CONC_LEN(codes)];
    for (size_t i = 0; i < CONC_LEN(codes); i++) {
        texts[i] = conc_strerror(-codes[i]);
        CHECK(texts[i] != NULL && strlen(texts[i]) > 2);
        CHECK(strstr(texts[i], "nknown") == NULL);
    }
    CHECK(strcmp(conc_strerror(-EOVERFLOW), strerror(EOVERFLOW)) != 0);
    for (size_t i = 0; i < CONC_LEN(codes); i++) {
        CHECK_STR(texts[i], conc_strerror(-codes[i]));
        for (size_t j = 0; j < i; j++)
            CHECK(strcmp(texts[i], texts[j]) != 0);
    }
}

TEST(any_other_code_has_the_systems_text)
{
    int codes[] = {ENOENT, EIO, ENOSPC, EACCES};
    for (size_t i = 0; i < CONC_LEN(codes); i++)
        CHECK_STR(conc_strerror(-codes[i]), strerror(codes[i]));
    CHECK(conc_strerror(-99999) != NULL && conc_strerror(-99999)[0] != 0);
}

TEST(an_invalid_code_is_unknown_and_texts_stay_unchanged_when_others_are_requested)
{
    char copies[200][128];
    const char *texts[200];
    CHECK_STR(conc_strerror(-4000), "unknown error");
    CHECK_STR(conc_strerror(-100000), "unknown error");
    for (int i = 0; i < 200; i++) {
        texts[i] = conc_strerror(-i);
        snprintf(copies[i], sizeof copies[i], "%s", texts[i]);
    }
    (void)conc_strerror(-4000);
    for (int i = 0; i < 200; i++)
        CHECK_STR(texts[i], copies[i]);
}

/* ---- on_error */

static int return_error(void *arg)
{
    (void)arg;
    return conc_fail(-EPROTO, "the main problem");
}

TEST(an_error_of_main_is_the_result_of_the_run_and_nothing_else)
{
    CHECK_INT(run_hooked(return_error), -EPROTO);
    CHECK_INT(hook_calls, 0);
}

static int line_of_background;

static int fail_in_background(void *arg)
{
    (void)arg;
    CHECK_INT(conc_spawn(NULL, fail_with_words, NULL), 0), line_of_background = __LINE__;
    CHECK_INT(conc_sleep(1), 0);
    return 2;
}

TEST(an_error_of_a_background_task_is_reported_once_with_name_location_text_and_code)
{
    char place[512];
    CHECK_INT(run_hooked(fail_in_background), 2);
    CHECK_INT(hook_calls, 1);
    snprintf(place, sizeof place, "%s:%d", TEST_FILE, line_of_background);
    CHECK_CONTAINS(hooked[0].task, "fail_with_words");
    CHECK_CONTAINS(hooked[0].place, place);
    CHECK_STR(hooked[0].text, "line 12: no colon");
    CHECK_INT(hooked[0].rc, -EPROTO);
}

static int join_background(void *arg)
{
    int rc = 0;
    conc_task t[2] = {{0}};
    (void)arg;
    CHECK_INT(conc_spawn_task(NULL, &t[0], fail_with_words, NULL), 0);
    CHECK_INT(conc_join(&t[0], &rc), 0);
    CHECK_INT(rc, -EPROTO);
    CHECK_INT(conc_spawn_task(NULL, &t[1], fail_with_words, NULL), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(conc_done(&t[1]));
    CHECK_INT(conc_join(&t[1], &rc), 0);
    CHECK_INT(rc, -EPROTO);
    return 0;
}

TEST(an_error_of_a_background_task_that_was_joined_is_not_reported)
{
    CHECK_INT(run_hooked(join_background), 0);
    CHECK_INT(hook_calls, 0);
}

static conc_task never_joined;

static int leave_unjoined(void *arg)
{
    (void)arg;
    CHECK_INT(conc_spawn_task(NULL, &never_joined, fail_with_words, NULL), 0);
    return conc_sleep(1);
}

TEST(an_error_of_a_background_task_with_an_unjoined_handle_is_reported)
{
    CHECK_INT(run_hooked(leave_unjoined), 0);
    CHECK_INT(hook_calls, 1);
    CHECK_STR(hooked[0].text, "line 12: no colon");
}

static int three_fail(void *arg)
{
    char a[] = "a", b[] = "b", c[] = "c";
    conc_group g = {.keep_going = true};
    (void)arg;
    CHECK_INT(conc_spawn(&g, fail_after_one, a), 0);
    CHECK_INT(conc_spawn(&g, fail_after_one, b), 0);
    CHECK_INT(conc_spawn(&g, fail_after_one, c), 0);
    CHECK_INT(conc_group_wait(&g), -EPROTO);
    CHECK_INT(g.error_count, 3);
    note(conc_last_error());
    return 0;
}

TEST(the_errors_of_a_group_that_are_not_its_result_are_reported_once_each)
{
    CHECK_INT(run_hooked(three_fail), 0);
    CHECK_INT(hook_calls, 2);
    for (int i = 0; i < 2; i++)
        note(hooked[i].text);
    CHECK_INT(strlen(noted), 5);
    CHECK(strchr(noted, 'a') && strchr(noted, 'b') && strchr(noted, 'c'));
}

static int one_fails_and_one_in_its_clean_up(void *arg)
{
    char late[] = "late";
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_spawn(&g, fail_after_one, late), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn(&g, fail_with_words, NULL), 0);
    CHECK_INT(conc_spawn(&g, sleep_forever, NULL), 0);
    CHECK_INT(conc_group_wait(&g), -EPROTO);
    CHECK_INT(g.error, -EPROTO);
    CHECK_INT(g.error_count, 2);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    return 0;
}

TEST(a_clean_up_that_fails_is_reported_and_a_cancelled_sibling_is_not)
{
    CHECK_INT(run_hooked(one_fails_and_one_in_its_clean_up), 0);
    CHECK_INT(hook_calls, 1);
    CHECK_INT(hooked[0].rc, -EIO);
    CHECK_STR(hooked[0].text, "late");
}

static int body_fails_too(void *arg)
{
    conc_group g = {.keep_going = true};
    (void)arg;
    CHECK_INT(conc_spawn(&g, fail_with_words, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_group_end(&g, conc_fail(-EIO, "the body")), -EPROTO);
    CHECK_INT(g.error_count, 2);
    return 0;
}

TEST(a_bodys_later_error_is_counted_and_reported)
{
    CHECK_INT(run_hooked(body_fails_too), 0);
    CHECK_INT(hook_calls, 1);
    CHECK_INT(hooked[0].rc, -EIO);
    CHECK_STR(hooked[0].text, "the body");
}

static conc_task watched;

static int watch(void *arg)
{
    int rc = 0;
    (void)arg;
    CHECK_INT(conc_join(&watched, &rc), 0);
    CHECK_INT(rc, -EPROTO);
    CHECK_STR(conc_last_error(), "seen");
    return 0;
}

static int second_is_joined(void *arg)
{
    char seen[] = "seen";
    conc_group g = {.keep_going = true};
    (void)arg;
    CHECK_INT(conc_spawn_task(&g, &watched, fail_after_one, seen), 0);
    CHECK_INT(conc_spawn(&g, watch, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn(&g, fail_with_words, NULL), 0);
    CHECK_INT(conc_group_wait(&g), -EPROTO);
    CHECK_INT(g.error_count, 2);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    return 0;
}

TEST(an_error_that_a_join_collected_is_not_reported)
{
    CHECK_INT(run_hooked(second_is_joined), 0);
    CHECK_INT(hook_calls, 0);
}

static int gather_failures(void *arg)
{
    char a[] = "a", b[] = "b";
    conc_call calls[] = {CONC_CALL(fail_after_one, a), CONC_CALL(fail_after_one, b),
                         CONC_CALL(sleep_forever, NULL)};
    (void)arg;
    CHECK_INT(conc_gather(calls, 3), -EPROTO);
    CHECK_INT(conc_timeout(1, sleep_forever, NULL), -ETIMEDOUT);
    calls[2] = (conc_call)CONC_CALL(fail_with_words, NULL);
    CHECK_INT(conc_gather_all(calls, 3), 0);
    CHECK_INT(calls[2].result, -EPROTO);
    return 0;
}

TEST(errors_of_a_gather_are_in_its_calls_and_not_reported)
{
    CHECK_INT(run_hooked(gather_failures), 0);
    CHECK_INT(hook_calls, 0);
}

static int map_failures(void *arg)
{
    char words[3][2] = {"a", "b", "c"};
    (void)arg;
    CHECK_INT(CONC_MAP(fail_after_one, words), -EPROTO);
    note(conc_last_error());
    return 0;
}

TEST(the_errors_of_a_map_that_are_not_its_result_are_reported_once_each)
{
    CHECK_INT(run_hooked(map_failures), 0);
    CHECK_INT(hook_calls, 2);
    for (int i = 0; i < 2; i++)
        note(hooked[i].text);
    CHECK(strchr(noted, 'a') && strchr(noted, 'b') && strchr(noted, 'c'));
}

static int start_a_failure(void *arg)
{
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_start(&g, fail_with_words, NULL), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(g.error_count, 0);
    return 0;
}

TEST(the_error_of_a_start_is_returned_and_not_reported)
{
    CHECK_INT(run_hooked(start_a_failure), 0);
    CHECK_INT(hook_calls, 0);
}

static int cancel_everything(void *arg)
{
    conc_group g = {0};
    conc_task t = {0};
    conc_scope s = {0};
    (void)arg;
    CHECK_INT(conc_spawn(NULL, sleep_forever, NULL), 0);
    CHECK_INT(conc_spawn(&g, sleep_forever, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, &t, sleep_forever, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&t), 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_scope_begin(&s, 1), 0);
    conc_group h = {0};
    CHECK_INT(conc_spawn(&h, sleep_forever, NULL), 0);
    CHECK_INT(conc_group_wait(&h), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    return 0;
}

TEST(cancelled_tasks_are_never_reported)
{
    CHECK_INT(run_hooked(cancel_everything), 0);
    CHECK_INT(hook_calls, 0);
}

static int leave_a_group_behind(void *arg)
{
    CONC_AUTO(conc_group, g) = {.keep_going = true};
    (void)arg;
    CHECK_INT(conc_spawn(&g, fail_with_words, NULL), 0);
    CHECK_INT(conc_spawn(&g, sleep_forever, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    return 3;
}

static int call_leave_a_group_behind(void *arg)
{
    CHECK_INT(leave_a_group_behind(arg), 3);
    return conc_yield();
}

TEST(an_error_of_a_group_that_closed_itself_is_reported_once)
{
    CHECK_INT(run_hooked(call_leave_a_group_behind), 0);
    CHECK_INT(hook_calls, 1);
    CHECK_INT(hooked[0].rc, -EPROTO);
    CHECK_STR(hooked[0].text, "line 12: no colon");
}

/* ---- a hook that uses conc */

static int hook_spawned, hook_posted;

static int count_spawned(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(1));
    hook_spawned++;
    return 0;
}

static void count_posted(void *arg)
{
    (void)arg;
    hook_posted++;
}

static void busy_hook(const conc_failure *f, void *user)
{
    conc_stats s;
    conc_scope *scope = user;
    hook_calls++;
    CHECK_INT(f->rc, -EPROTO);
    CHECK(conc_self() == NULL);
    CHECK_INT(conc_sleep(1), -EPERM);
    CHECK_INT(conc_yield(), -EPERM);
    CHECK_INT(conc_timeout(1, sleep_forever, NULL), -EPERM);
    CHECK_INT(conc_run(sleep_forever, NULL), -EBUSY);
    CHECK_INT(conc_spawn(NULL, count_spawned, NULL), 0);
    CHECK_INT(conc_post(conc_loop_self(), count_posted, NULL), 0);
    conc_get_stats(&s);
    CHECK(s.tasks >= 1);
    conc_scope_cancel(scope);
    CHECK_STR(f->text, "line 12: no colon");
}

static conc_scope hook_scope;

static int fail_twice_and_wait(void *arg)
{
    conc_group g = {.keep_going = true};
    (void)arg;
    CHECK_INT(conc_scope_begin(&hook_scope, CONC_FOREVER), 0);
    CHECK_INT(conc_spawn(&g, fail_with_words, NULL), 0);
    CHECK_INT(conc_spawn(&g, fail_with_words, NULL), 0);
    CHECK_INT(conc_group_wait(&g), -EPROTO);
    CHECK_INT(conc_scope_end(&hook_scope, conc_sleep(100)), 0);
    CHECK_TIME(0);
    CHECK_INT(conc_sleep(5), 0);
    CHECK_TIME(5);
    return 0;
}

TEST(a_hook_may_call_whatever_a_posted_function_may)
{
    conc_options o = {.virtual_clock = true, .on_error = busy_hook, .user = &hook_scope};
    CHECK_INT(conc_run_with(&o, fail_twice_and_wait, NULL), 0);
    CHECK_INT(hook_calls, 1);
    CHECK_INT(hook_spawned, 1);
    CHECK_INT(hook_posted, 1);
}

/* ---- without a hook, and conc_main */

static void run_without_hook(void)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, fail_in_background, NULL), 2);
    fprintf(stderr, "line %d", line_of_background);
}

TEST(without_a_hook_errors_are_printed)
{
    static char text[16384];
    char place[512];
    int line = 0;
    CHECK_INT(test_in_process(run_without_hook, text, sizeof text), 0);
    const char *said = strstr(text, "line ");
    while (said && sscanf(said, "line %d", &line) == 1 && strstr(said + 1, "line "))
        said = strstr(said + 1, "line ");
    snprintf(place, sizeof place, "%s:%d", TEST_FILE, line);
    CHECK_CONTAINS(text, "fail_with_words");
    CHECK_CONTAINS(text, place);
    CHECK_CONTAINS(text, "line 12: no colon");
}

static void main_that_fails(void) { exit(conc_main(return_error, NULL)); }

static int succeed(void *arg)
{
    (void)arg;
    return 7;
}

static void main_that_succeeds(void) { exit(conc_main(succeed, NULL)); }

TEST(conc_main_makes_an_exit_status_and_prints_the_error)
{
    static char text[16384];
    int status = test_in_process(main_that_fails, text, sizeof text);
    CHECK(WIFEXITED(status));
    CHECK_INT(WEXITSTATUS(status), 1);
    CHECK_CONTAINS(text, "the main problem");
    status = test_in_process(main_that_succeeds, text, sizeof text);
    CHECK(WIFEXITED(status));
    CHECK_INT(WEXITSTATUS(status), 0);
    CHECK(strstr(text, "rror") == NULL);
}

typedef struct ending {
    int first, then; /* statuses to set, -1000: none */
    int rc;
    bool in_a_task;
} ending;

static ending how_main_ends;

static int set_status(void *arg)
{
    conc_set_exit_status(*(int *)arg);
    return 0;
}

static int end_main(void *arg)
{
    ending *e = arg;
    if (e->first != -1000)
        conc_set_exit_status(e->first);
    if (e->then != -1000 && e->in_a_task)
        CONC_TRY(CONC_GATHER(CONC_CALL(set_status, &e->then)));
    else if (e->then != -1000)
        conc_set_exit_status(e->then);
    return e->rc < 0 ? conc_fail(e->rc, "the main problem") : e->rc;
}

static void run_main_that_ends(void) { exit(conc_main(end_main, &how_main_ends)); }

static void check_status(ending e, int status, bool prints)
{
    static char text[16384];
    how_main_ends = e;
    int got = test_in_process(run_main_that_ends, text, sizeof text);
    CHECK(WIFEXITED(got));
    CHECK_INT(WEXITSTATUS(got), status);
    CHECK_INT(strstr(text, "the main problem") != NULL, prints);
}

TEST(a_program_chooses_what_conc_main_returns)
{
    check_status((ending){3, -1000, 0, false}, 3, false);
    check_status((ending){3, 4, 7, false}, 4, false);
    check_status((ending){3, 255, 0, true}, 255, false);
    check_status((ending){3, 0, 0, false}, 0, false);
    check_status((ending){2, -1000, -EIO, false}, 2, true);
    check_status((ending){0, -1000, -EIO, false}, 0, true);
    check_status((ending){5, 256, 0, false}, 5, false); /* no such status */
    check_status((ending){5, -1, 0, false}, 5, false);
    conc_set_exit_status(7); /* not one of the run's */
    check_status((ending){-1000, -1000, 0, false}, 0, false);
    check_status((ending){-1000, -1000, -EIO, false}, 1, true);
}

TEST(a_status_belongs_to_one_run_and_only_conc_main_uses_it)
{
    how_main_ends = (ending){9, -1000, 0, false};
    CHECK_INT(conc_run(end_main, &how_main_ends), 0);
    check_status((ending){-1000, -1000, 0, false}, 0, false);
}

/* ---- CONC_TRY, CONC_TRY_IN, CONC_AUTO */

static int evaluated;

static ssize_t value_or_error(ssize_t value)
{
    evaluated++;
    return value;
}

static int try_it(void *value)
{
    int got = (int)CONC_TRY(value_or_error(*(int *)value));
    ssize_t sum = CONC_TRY(value_or_error(got)) + CONC_TRY(value_or_error(1));
    return (int)sum;
}

TEST(try_is_the_value_or_returns_the_error_and_evaluates_once)
{
    int good = 41, bad = -EIO;
    CHECK_INT(try_it(&good), 42);
    CHECK_INT(evaluated, 3);
    CHECK_INT(try_it(&bad), -EIO);
    CHECK_INT(evaluated, 4);
}

static int try_in_scope(void *value)
{
    conc_scope s = {0};
    CONC_TRY(conc_scope_begin(&s, 2));
    int got = CONC_TRY_IN(&s, return_it(value));
    CONC_TRY_IN(&s, conc_sleep(got));
    return conc_scope_end(&s, got);
}

TASK_TEST(try_in_a_scope_ends_it_with_the_error)
{
    int good = 1, bad = -EIO, long_ = 9;
    CHECK_INT(try_in_scope(&good), 1);
    CHECK_INT(try_in_scope(&bad), -EIO);
    CHECK_INT(try_in_scope(&long_), -ETIMEDOUT);
    CHECK_TIME(3);
    CHECK_INT(conc_sleep(5), 0);
}

static int try_in_group(void *value)
{
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, sleep_forever, NULL));
    int got = CONC_TRY_IN(&g, return_it(value));
    conc_group_cancel(&g);
    return conc_group_end(&g, got);
}

TASK_TEST(try_in_a_group_cancels_the_children_and_ends_it_with_the_error)
{
    int good = 6, bad = -EIO;
    conc_stats before, after;
    conc_get_stats(&before);
    CHECK_INT(try_in_group(&good), 6);
    CHECK_INT(try_in_group(&bad), -EIO);
    conc_get_stats(&after);
    CHECK_INT(after.tasks, before.tasks);
    CHECK_TIME(0);
}

static int note_when_cancelled(void *word)
{
    int rc = conc_sleep(CONC_FOREVER);
    note(word);
    return rc;
}

static int note_when_closed(conc_gen *g, void *word)
{
    int one = 1, rc = conc_gen_emit(g, &one);
    note(word);
    return rc;
}

static int open_three(void *arg)
{
    int item;
    CONC_AUTO(conc_group, first) = {.limit = 5};
    CONC_AUTO(conc_gen, second) = {0};
    CONC_AUTO(conc_group, third) = {0};
    CONC_TRY(conc_spawn(&first, note_when_cancelled, "first"));
    CONC_TRY(conc_gen_open(&second, note_when_closed, "second", sizeof item));
    CONC_TRY(conc_gen_next(&second, &item));
    CONC_TRY(conc_spawn(&third, note_when_cancelled, "third"));
    CONC_TRY(conc_settle());
    return *(int *)arg;
}

TASK_TEST(automatic_objects_close_the_last_declared_first)
{
    int results[] = {7, -EIO};
    for (int i = 0; i < 2; i++) {
        noted[0] = 0;
        CHECK_INT(open_three(&results[i]), results[i]);
        CHECK_STR(noted, "third second first");
    }
    CHECK_INT(conc_yield(), 0);
}

TASK_TEST(an_automatic_group_that_was_closed_or_never_opened_closes_nothing)
{
    CONC_AUTO(conc_group, never) = {0};
    CONC_AUTO(conc_group, closed) = {0};
    CHECK_INT(conc_spawn(&closed, return_it, &(int){3}), 0);
    CHECK_INT(conc_group_wait(&closed), 0);
    CHECK_INT(never.error_count, 0);
}

/* ---- CONC_AUTO_TYPE */

typedef struct closes {
    const char *name;
} closes;

static char closed_names[64];

static int close_it(closes *c)
{
    if (c->name)
        strcat(closed_names, c->name);
    c->name = NULL;
    return conc_fail(-EPIPE, "not closed well");
}

CONC_AUTO_TYPE(closes, close_it)

typedef int number;
static void add_ten(number *n) { *n += 10; }
CONC_AUTO_TYPE(number, add_ten);

static int use_own_types(void *arg)
{
    CONC_AUTO(closes, first) = {"1"};
    CONC_AUTO(closes, never) = {0};
    (void)never;
    for (int i = 0; i < 3; i++) {
        CONC_AUTO(closes, inner) = {"i"};
        if (i == 1)
            break;
        CHECK_STR(inner.name, "i");
    }
    CONC_AUTO(closes, last) = {"2"};
    CHECK_INT(close_it(&last), -EPIPE); /* closing twice is harmless, as documented */
    if (arg)
        return conc_fail(-EIO, "disk on fire");
    CONC_AUTO(number, n) = 5;
    return n;
}

TASK_TEST(a_users_type_is_closed_automatically)
{
    closed_names[0] = 0;
    CHECK_INT(use_own_types(NULL), 5);
    CHECK_STR(closed_names, "ii21");
    closed_names[0] = 0;
    CHECK_INT(use_own_types(closed_names), -EIO);
    CHECK_STR(closed_names, "ii21");
    CHECK_STR(conc_last_error(), "disk on fire");
}
