/* test_misuse.c - detectable misuse is refused with an error code, and changes nothing. */
#include "conc_test.h"

#include <math.h>
#include <pthread.h>

#define NOT_A_NUMBER ((double)NAN)

static int runs; /* calls of must_not_run, which must stay 0 */

static int must_not_run(void *arg)
{
    (void)arg;
    return ++runs;
}

static int must_not_emit(conc_gen *g, void *arg)
{
    (void)g, (void)arg;
    return ++runs;
}

static int return_it(void *value) { return *(int *)value; }

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

TASK_TEST(a_missing_function_is_refused_everywhere)
{
    conc_group g = {0};
    conc_task t = {0};
    conc_gen gen = {0};
    conc_call calls[] = {CONC_CALL(must_not_run, NULL), CONC_CALL(NULL, NULL)};
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_spawn(&g, NULL, NULL), -EINVAL);
    CHECK_INT(conc_spawn(NULL, NULL, NULL), -EINVAL);
    CHECK_INT(conc_spawn_task(&g, &t, NULL, NULL), -EINVAL);
    CHECK_INT(conc_start(&g, NULL, NULL), -EINVAL);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_timeout(1, NULL, NULL), -EINVAL);
    CHECK_INT(conc_shield(1, NULL, NULL), -EINVAL);
    CHECK_INT(conc_gather(calls, 2), -EINVAL);
    CHECK_INT(conc_gather_all(calls, 2), -EINVAL);
    CHECK_INT(conc_map(NULL, calls, 2, sizeof calls[0]), -EINVAL);
    CHECK_INT(conc_map_all(NULL, calls, 2, sizeof calls[0], NULL), -EINVAL);
    CHECK_INT(conc_gen_open(&gen, NULL, NULL, 4), -EINVAL);
    CHECK_INT(conc_post(conc_loop_self(), NULL, NULL), -EINVAL);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(runs, 0);
}

TASK_TEST(a_missing_object_is_refused_everywhere)
{
    conc_group g = {0};
    conc_task *t;
    int item = 0;
    CHECK_INT(conc_scope_begin(NULL, 1), -EINVAL);
    CHECK_INT(conc_scope_end(NULL, 0), -EINVAL);
    CHECK_INT(conc_scope_set_timeout(NULL, 1), -EINVAL);
    conc_scope_cancel(NULL);
    conc_scope_shield(NULL, true);
    CHECK_INT(conc_group_begin(NULL), -EINVAL);
    CHECK_INT(conc_group_wait(NULL), -EINVAL);
    CHECK_INT(conc_group_end(NULL, 0), -EINVAL);
    CHECK_INT(conc_group_next(NULL, &t), -EINVAL);
    conc_group_cancel(NULL);
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_group_next(&g, NULL), -EINVAL);
    CHECK_INT(conc_spawn_task(&g, NULL, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_join(NULL, NULL), -EINVAL);
    CHECK_INT(conc_cancel(NULL), -EINVAL);
    CHECK(conc_name(NULL) == NULL);
    conc_set_name(NULL, "nobody");
    CHECK_STR(conc_error_text(NULL), "");
    CHECK_INT(conc_gather(NULL, 2), -EINVAL);
    CHECK_INT(conc_gather_all(NULL, 2), -EINVAL);
    CHECK_INT(conc_gen_open(NULL, must_not_emit, NULL, 4), -EINVAL);
    CHECK_INT(conc_gen_next(NULL, &item), -EINVAL);
    CHECK_INT(conc_gen_emit(NULL, &item), -EINVAL);
    CHECK_INT(conc_local_set(NULL, &item), -EINVAL);
    CHECK(conc_local_get(NULL) == NULL);
    CHECK_INT(conc_loop_hold(NULL), -EINVAL);
    CHECK_INT(conc_loop_release(NULL), -EINVAL);
    conc_free(NULL);
    CHECK_INT(runs, 0);
    CHECK_INT(conc_yield(), 0);
}

TASK_TEST(nan_is_not_a_time)
{
    conc_scope s = {0};
    CHECK_INT(conc_sleep(NOT_A_NUMBER), -EINVAL);
    CHECK_INT(conc_sleep_until(NOT_A_NUMBER), -EINVAL);
    CHECK_INT(conc_block(NOT_A_NUMBER), -EINVAL);
    CHECK_INT(conc_timeout(NOT_A_NUMBER, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_shield(NOT_A_NUMBER, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_scope_begin(&s, NOT_A_NUMBER), -EINVAL);
    CHECK_INT(conc_scope_begin(&s, 1), 0);
    CHECK_INT(conc_scope_set_timeout(&s, NOT_A_NUMBER), -EINVAL);
    CHECK_INT(conc_scope_end(&s, conc_sleep(2)), -ETIMEDOUT);
    CHECK_TIME(1);
    CHECK_INT(runs, 0);
}

TASK_TEST(scopes_end_in_reverse_order_of_their_begin)
{
    conc_scope a = {0}, b = {0}, c = {0};
    CHECK_INT(conc_scope_end(&a, 3), -EINVAL);
    CHECK_INT(conc_scope_begin(&a, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&b, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_begin(&c, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_end(&a, 3), -EINVAL);
    CHECK_INT(conc_scope_end(&b, 3), -EINVAL);
    conc_scope_cancel(&b);
    CHECK_INT(conc_scope_end(&b, -ECANCELED), -EINVAL);
    CHECK(!b.cancel_caught);
    CHECK_INT(conc_scope_end(&c, conc_yield()), -ECANCELED);
    CHECK_INT(conc_scope_end(&a, -ECANCELED), -EINVAL);
    CHECK_INT(conc_scope_end(&b, -ECANCELED), 0);
    CHECK_INT(conc_scope_end(&b, 4), -EINVAL);
    CHECK_INT(conc_scope_end(&a, conc_yield()), 0);
    CHECK_INT(conc_scope_end(&a, 5), -EINVAL);
}

TASK_TEST(groups_and_scopes_nest_and_a_wait_in_the_wrong_order_is_refused)
{
    double start = conc_now();
    conc_group outer = {0}, inner = {0};
    conc_scope s = {0};
    CHECK_INT(conc_group_begin(&outer), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_spawn(&outer, sleep_forever, NULL), 0);
    CHECK_INT(conc_group_begin(&inner), 0);
    CHECK_INT(conc_group_wait(&outer), -EINVAL);
    CHECK_INT(conc_group_end(&outer, -EIO), -EINVAL);
    CHECK_INT(conc_scope_end(&s, 0), -EINVAL);
    CHECK_INT(outer.error, 0);
    CHECK_INT(outer.error_count, 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_group_wait(&inner), 0);
    CHECK_INT(conc_group_wait(&outer), -EINVAL);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    conc_group_cancel(&outer);
    CHECK_INT(conc_group_wait(&outer), 0);
    CHECK(conc_now() == start);
}

/* Another task's objects, used by a child. */
typedef struct other {
    conc_scope *scope;
    conc_group *group;
} other;

static int meddle(void *arg)
{
    other *o = arg;
    CHECK_INT(conc_scope_end(o->scope, 0), -EPERM);
    CHECK_INT(conc_scope_end(o->scope, -ECANCELED), -EPERM);
    CHECK_INT(conc_group_wait(o->group), -EPERM);
    CHECK_INT(conc_group_end(o->group, -EIO), -EPERM);
    CHECK_INT(conc_scope_begin(o->scope, 1), -EINVAL);
    CHECK_INT(conc_group_begin(o->group), -EINVAL);
    return 0;
}

TASK_TEST(a_task_cannot_end_what_another_one_opened)
{
    conc_scope s = {0};
    conc_group g = {0}, inner = {0};
    other o = {&s, &g};
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_spawn(&g, sleep_forever, NULL), 0);
    CHECK_INT(conc_scope_begin(&s, 5), 0);
    CHECK_INT(conc_spawn(&inner, meddle, &o), 0);
    CHECK_INT(conc_group_wait(&inner), 0);
    CHECK_INT(g.error_count, 0);
    CHECK_INT(conc_scope_end(&s, conc_sleep(9)), -ETIMEDOUT);
    CHECK_TIME(5);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_group_is_for_one_use)
{
    int seven = 7;
    conc_task t = {0};
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_group_begin(&g), -EINVAL);
    CHECK_INT(conc_spawn(&g, return_it, &seven), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_group_wait(&g), -EINVAL);
    CHECK_INT(conc_group_end(&g, 5), -EINVAL);
    CHECK_INT(conc_group_begin(&g), -EINVAL);
    CHECK_INT(conc_spawn(&g, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_spawn_task(&g, &t, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_start(&g, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(runs, 0);
    g = (conc_group){0};
    CHECK_INT(conc_spawn(&g, return_it, &seven), 0);
    CHECK_INT(conc_group_end(&g, 5), 5);
}

TASK_TEST(a_group_that_was_never_opened_is_done)
{
    conc_group g = {0};
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(invalid_options_of_a_group_are_refused)
{
    conc_group negative = {.limit = -1}, narrow = {.stack_size = 16383}, tiny = {.stack_size = 1};
    CHECK_INT(conc_group_begin(&negative), -EINVAL);
    CHECK_INT(conc_spawn(&negative, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_spawn(&narrow, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_group_wait(&narrow), 0);
    CHECK_INT(conc_spawn(&tiny, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_group_wait(&tiny), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(runs, 0);
}

TASK_TEST(a_stack_larger_than_memory_is_refused_by_the_begin_of_a_group)
{
    conc_group g = {.stack_size = SIZE_MAX};
    CHECK_INT(conc_group_begin(&g), -EINVAL);
    CHECK_INT(conc_spawn(&g, must_not_run, NULL), -EINVAL);
    g.stack_size = 0;
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(runs, 0);
}

TASK_TEST(a_handle_is_busy_until_its_task_was_collected)
{
    int seven = 7, rc = 0;
    conc_task t = {0}, *next = NULL;
    conc_group g = {0}, h = {0};
    CHECK_INT(conc_spawn_task(&g, &t, return_it, &seven), 0);
    CHECK_INT(conc_spawn_task(&g, &t, must_not_run, NULL), -EBUSY);
    CHECK_INT(conc_spawn_task(NULL, &t, must_not_run, NULL), -EBUSY);
    CHECK_INT(conc_settle(), 0);
    CHECK(conc_done(&t));
    CHECK_INT(conc_spawn_task(&g, &t, must_not_run, NULL), -EBUSY);
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_INT(rc, 7);
    CHECK_INT(conc_spawn_task(&g, &t, return_it, &seven), 0);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK(next == &t);
    CHECK_INT(conc_spawn_task(&g, &t, return_it, &seven), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_spawn_task(&h, &t, return_it, &seven), 0);
    CHECK_INT(conc_group_wait(&h), 0);
    CHECK_INT(runs, 0);
}

TASK_TEST(a_handle_that_never_was_a_task_cannot_be_joined_or_cancelled)
{
    int rc = 99;
    conc_task t = {0};
    CHECK_INT(conc_join(&t, &rc), -EINVAL);
    CHECK_INT(conc_cancel(&t), -EINVAL);
    CHECK_INT(rc, 99);
}

TASK_TEST(a_task_joining_itself_is_refused)
{
    int rc = 99;
    CHECK_INT(conc_join(conc_self(), &rc), -EDEADLK);
    CHECK_INT(rc, 99);
    CHECK_INT(conc_yield(), 0);
}

static int say_started_wrongly(void *arg)
{
    (void)arg;
    CHECK_INT(conc_started(-1), -EINVAL);
    CHECK_INT(conc_started(3), 0);
    CHECK_INT(conc_started(3), -EINVAL);
    CHECK_INT(conc_started(4), -EINVAL);
    return 0;
}

TASK_TEST(a_start_is_answered_once_and_only_by_the_started_task)
{
    int seven = 7;
    conc_group g = {0};
    CHECK_INT(conc_started(0), -EINVAL);
    CHECK_INT(conc_start(&g, say_started_wrongly, NULL), 3);
    CHECK_INT(conc_start(&g, return_it, &seven), -EINVAL);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(an_empty_gather_is_done_at_once)
{
    int args[1] = {0};
    CHECK_INT(conc_gather(NULL, 0), 0);
    CHECK_INT(conc_gather_all(NULL, 0), 0);
    CHECK_INT(conc_map(must_not_run, args, 0, sizeof args[0]), 0);
    CHECK_INT(conc_map_all(must_not_run, args, 0, sizeof args[0], NULL), 0);
    CHECK_INT(runs, 0);
    CHECK_TIME(0);
}

static int run_nested(void *arg)
{
    conc_options o = {.virtual_clock = true};
    (void)arg;
    CHECK_INT(conc_run(must_not_run, NULL), -EBUSY);
    CHECK_INT(conc_run_with(&o, must_not_run, NULL), -EBUSY);
    CHECK_INT(conc_sleep(1), 0);
    return 6;
}

TEST(a_run_inside_a_run_is_refused_and_the_outer_one_continues)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, run_nested, NULL), 6);
    CHECK_INT(runs, 0);
}

TEST(a_run_without_a_function_is_refused)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run(NULL, NULL), -EINVAL);
    CHECK_INT(conc_run_with(&o, NULL, NULL), -EINVAL);
    CHECK(conc_loop_self() == NULL);
}

TEST(invalid_options_of_a_run_are_refused)
{
    conc_options senseless[] = {
        {.stack_size = 1}, {.stack_size = 16383}, {.slow_step = NOT_A_NUMBER}, {.slow_step = -1}};
    conc_options huge = {.stack_size = SIZE_MAX};
    unsetenv("CONC_STACK");
    for (size_t i = 0; i < CONC_LEN(senseless); i++)
        CHECK_INT(conc_run_with(&senseless[i], must_not_run, NULL), -EINVAL);
    int rc = conc_run_with(&huge, must_not_run, NULL);
    CHECK(rc == -EINVAL || rc == -ENOMEM);
    CHECK_INT(runs, 0);
    CHECK(conc_loop_self() == NULL);
}

TEST(invalid_values_in_the_environment_fail_the_run)
{
    const char *senseless[][2] = {{"CONC_CLOCK", "sundial"}, {"CONC_SEED", "pumpkin"},
                                  {"CONC_POLL", "guess"},    {"CONC_STACK", "12"},
                                  {"CONC_STACK", "large"},   {"CONC_DEBUG", "perhaps"}};
    for (size_t i = 0; i < CONC_LEN(senseless); i++) {
        char *before = getenv(senseless[i][0]);
        setenv(senseless[i][0], senseless[i][1], 1);
        CHECK_INT(conc_run(must_not_run, NULL), -EINVAL);
        if (before)
            setenv(senseless[i][0], before, 1);
        else
            unsetenv(senseless[i][0]);
    }
    CHECK_INT(runs, 0);
}

TEST(outside_a_run_nothing_waits_and_nothing_starts)
{
    int item = 0;
    conc_scope s = {0};
    conc_group g = {0};
    conc_task t = {0};
    conc_gen gen = {0};
    conc_local local = {0};
    conc_call call[] = {CONC_CALL(must_not_run, NULL)};
    CHECK_INT(conc_sleep(0), -EPERM);
    CHECK_INT(conc_sleep_until(0), -EPERM);
    CHECK_INT(conc_yield(), -EPERM);
    CHECK_INT(conc_block(0), -EPERM);
    CHECK_INT(conc_settle(), -EPERM);
    CHECK_INT(conc_scope_begin(&s, 1), -EPERM);
    CHECK_INT(conc_timeout(1, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_shield(1, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_group_begin(&g), -EPERM);
    CHECK_INT(conc_spawn(&g, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_spawn(NULL, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_spawn_task(&g, &t, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_start(&g, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_gather(call, 1), -EPERM);
    CHECK_INT(conc_gather_all(call, 1), -EPERM);
    CHECK_INT(conc_map(must_not_run, &item, 1, 0), -EPERM);
    CHECK_INT(conc_map_all(must_not_run, &item, 1, 0, NULL), -EPERM);
    CHECK_INT(conc_gen_open(&gen, must_not_emit, NULL, sizeof item), -EPERM);
    CHECK_INT(conc_local_set(&local, &item), -EPERM);
    CHECK_INT(runs, 0);
}

TEST(outside_a_run_queries_have_plain_answers)
{
    conc_stats s, zero;
    memset(&s, 0xff, sizeof s);
    memset(&zero, 0, sizeof zero);
    conc_get_stats(&s);
    CHECK_INT(s.tasks + s.ready + s.timers + s.generators + s.holds + s.stacks + s.stacks_kept +
                  s.stack_bytes,
              0);
    CHECK_INT(s.spawned + s.switches + s.passes + s.polls, 0);
    CHECK(conc_self() == NULL);
    CHECK(conc_loop_self() == NULL);
    CHECK(!conc_cancelled());
    CHECK(conc_deadline() == CONC_FOREVER);
    CHECK(conc_random(3, 4) == 3);
    CHECK_STR(conc_version(), CONC_VERSION);
    CHECK_STR(conc_strerror(-ENOENT), strerror(ENOENT));
    conc_free(NULL);
    double before = test_real_seconds(), now = conc_now(), after = test_real_seconds();
    CHECK(before <= now + 1e-6 && now <= after + 1e-6);
}

/* Two loops: each refuses the other's objects. */
static conc_group foreign_group;
static conc_task foreign_task;

static int use_foreign_objects(void *arg)
{
    conc_task t = {0}, *next;
    (void)arg;
    CHECK_INT(conc_spawn(&foreign_group, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_spawn_task(&foreign_group, &t, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_group_wait(&foreign_group), -EPERM);
    CHECK_INT(conc_cancel(&foreign_task), -EPERM);
    CHECK_INT(conc_join(&foreign_task, NULL), -EPERM);
    CHECK_INT(conc_group_next(&foreign_group, &next), -EPERM);
    conc_set_name(&foreign_task, "mine now");
    return 0;
}

static void *run_elsewhere(void *arg)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, use_foreign_objects, arg), 0);
    return NULL;
}

TASK_TEST(another_loops_tasks_and_groups_cannot_be_used)
{
    pthread_t thread;
    int rc = 0;
    CHECK_INT(conc_spawn_task(&foreign_group, &foreign_task, sleep_forever, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(pthread_create(&thread, NULL, run_elsewhere, NULL), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!conc_done(&foreign_task));
    CHECK_CONTAINS(conc_name(&foreign_task), "sleep_forever");
    CHECK_INT(conc_cancel(&foreign_task), 0);
    CHECK_INT(conc_join(&foreign_task, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
    CHECK_INT(conc_group_wait(&foreign_group), 0);
    CHECK_INT(runs, 0);
}

static void misuse_in_a_post(void *arg)
{
    conc_task t = {0};
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_group_begin(&g), -EPERM);
    CHECK_INT(conc_spawn(NULL, NULL, NULL), -EINVAL);
    CHECK_INT(conc_cancel(NULL), -EINVAL);
    CHECK_INT(conc_cancel(&t), -EINVAL);
    CHECK_INT(conc_local_set(NULL, NULL), -EPERM);
    CHECK_INT(conc_sleep(1), -EPERM);
    note("posted");
}

TASK_TEST(a_posted_function_is_refused_what_a_task_is_refused)
{
    CHECK_INT(conc_post(conc_loop_self(), misuse_in_a_post, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "posted");
}

static int end_a_scope_that_is_not_innermost(void *arg)
{
    conc_scope outer = {0}, inner = {0};
    (void)arg;
    CHECK_INT(conc_scope_begin(&outer, 5), 0);
    CHECK_INT(conc_scope_begin(&inner, 5), 0);
    CHECK_INT(conc_scope_end(&outer, 0), -EINVAL);
    CHECK_INT(conc_scope_end(&inner, 0), 0);
    return conc_scope_end(&outer, 0);
}

static void misuse_with_debug(void)
{
    conc_options o = {.debug = true, .virtual_clock = true};
    CHECK_INT(conc_run_with(&o, end_a_scope_that_is_not_innermost, NULL), 0);
}

static void misuse_without_debug(void)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, end_a_scope_that_is_not_innermost, NULL), 0);
}

TEST(debug_mode_reports_where_a_call_was_invalid)
{
    char text[4096];
    CHECK_INT(test_in_process(misuse_with_debug, text, sizeof text), 0);
    CHECK_CONTAINS(text, "conc_scope_end: something inside it is still open");
    CHECK_CONTAINS(text, "test_misuse.c:");
    if (getenv("CONC_DEBUG") == NULL) {
        CHECK_INT(test_in_process(misuse_without_debug, text, sizeof text), 0);
        CHECK_STR(text, "");
    }
}
