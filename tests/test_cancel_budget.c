/* test_cancel_budget.c - tasks that ignore their cancel, or never need to wait, do not hold up
 * other tasks. */
#include "conc_test.h"

static conc_task ended; /* an ended task: joining it needs no wait */
static bool stop;
static long turns; /* calls of a task that ignores its cancel */

static int return_it(void *value) { return *(int *)value; }

static int do_nothing(void *arg)
{
    (void)arg;
    return 0;
}

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int join_ended(void *arg)
{
    (void)arg;
    return conc_join(&ended, NULL);
}

static int sleep_one(void *arg)
{
    (void)arg;
    return conc_sleep(1);
}

static int yield_once(void *arg)
{
    (void)arg;
    return conc_yield();
}

/* Cancels itself, then repeats the call, a checkpoint, until stop, and ignores the result. */
static int ignore_cancel(void *call)
{
    conc_fn *fn = *(conc_fn **)call;
    CHECK_INT(conc_cancel(conc_self()), 0);
    for (turns = 0; !stop; turns++)
        CHECK_INT(fn(NULL), -ECANCELED);
    return 0;
}

static int stop_after(void *seconds)
{
    CONC_TRY(conc_sleep(*(double *)seconds));
    stop = true;
    return 0;
}

static void make_ended(conc_group *g)
{
    static int three = 3;
    CHECK_INT(conc_spawn_task(g, &ended, return_it, &three), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(conc_done(&ended));
}

static void check_time_goes_on_beside(conc_fn *call)
{
    double ten = 10;
    conc_group g = {0};
    make_ended(&g);
    stop = false;
    CHECK_INT(conc_spawn(&g, ignore_cancel, &call), 0);
    CHECK_INT(conc_spawn(&g, stop_after, &ten), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(10);
    CHECK(turns > 0);
}

TASK_TEST(time_passes_beside_a_task_that_ignores_its_cancelled_sleeps)
{
    check_time_goes_on_beside(sleep_one);
}

TASK_TEST(time_passes_beside_a_task_that_ignores_its_cancelled_yields)
{
    check_time_goes_on_beside(yield_once);
}

TASK_TEST(time_passes_beside_a_task_that_ignores_its_cancelled_joins)
{
    check_time_goes_on_beside(join_ended);
}

TASK_TEST(time_passes_beside_several_tasks_that_ignore_their_cancels)
{
    double ten = 10;
    conc_fn *calls[] = {sleep_one, yield_once, sleep_forever, join_ended};
    conc_group g = {0};
    make_ended(&g);
    for (size_t i = 0; i < CONC_LEN(calls); i++)
        CHECK_INT(conc_spawn(&g, ignore_cancel, &calls[i]), 0);
    CHECK_INT(conc_spawn(&g, stop_after, &ten), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(10);
}

TASK_TEST(time_passes_step_by_step_beside_a_task_that_ignores_its_cancel)
{
    conc_fn *call = sleep_one;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, ignore_cancel, &call), 0);
    for (int i = 1; i <= 20; i++) {
        CHECK_INT(conc_sleep(3), 0);
        CHECK_TIME(3 * i);
    }
    stop = true;
    CHECK_INT(conc_group_wait(&g), 0);
}

static int ignore_timeout(void *arg)
{
    (void)arg;
    long n = 0;
    while (!stop) {
        if (conc_sleep(1) < 0)
            n++;
    }
    CHECK(n > 0);
    return -ECANCELED;
}

static int run_ignore_timeout(void *arg)
{
    return conc_timeout(2, ignore_timeout, arg) == -ETIMEDOUT ? 0 : -EIO;
}

TASK_TEST(time_passes_beside_a_block_that_ignores_its_time_limit)
{
    double ten = 10;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, run_ignore_timeout, NULL), 0);
    CHECK_INT(conc_spawn(&g, stop_after, &ten), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(10);
}

TASK_TEST(a_time_limit_fires_beside_a_task_that_ignores_its_cancel)
{
    conc_fn *call = yield_once;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, ignore_cancel, &call), 0);
    CHECK_INT(conc_timeout(5, sleep_forever, NULL), -ETIMEDOUT);
    CHECK_TIME(5);
    stop = true;
    CHECK_INT(conc_group_wait(&g), 0);
}

static int yield_a_hundred_times(void *arg)
{
    (void)arg;
    for (int i = 0; i < 100; i++)
        CONC_TRY(conc_yield());
    return 0;
}

TASK_TEST(a_task_that_ignores_its_cancel_gets_no_more_turns_than_others)
{
    conc_fn *call = sleep_one;
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn(&g, ignore_cancel, &call), 0);
    CHECK_INT(conc_spawn_task(&g, &t, yield_a_hundred_times, NULL), 0);
    CHECK_INT(conc_join(&t, NULL), 0);
    CHECK(turns <= (test_seeded() ? 2000 : 150));
    CHECK_TIME(0);
    stop = true;
    CHECK_INT(conc_group_wait(&g), 0);
}

static void stop_posted(void *arg)
{
    (void)arg;
    stop = true;
}

TASK_TEST(a_posted_function_runs_beside_a_task_that_ignores_its_cancel)
{
    conc_fn *call = sleep_one;
    CHECK_INT(conc_post(conc_loop_self(), stop_posted, NULL), 0);
    CHECK_INT(conc_timeout(1, ignore_cancel, &call), 0);
    CHECK(stop);
}

static int stop_now(void *arg)
{
    (void)arg;
    stop = true;
    return 0;
}

/* Makes calls that need not wait, at most a million, until another task, which is always ready, has
 * run. */
static void check_another_task_runs_beside(conc_fn *call, void *arg)
{
    long n = 0;
    conc_group g = {0};
    stop = false;
    CHECK_INT(conc_spawn(&g, stop_now, NULL), 0);
    for (n = 0; !stop && n < 1000000; n++)
        CHECK(call(arg) >= 0);
    CHECK(stop);
    CHECK(n < 100000);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(joins_that_need_not_wait_let_others_run)
{
    conc_group g = {0};
    make_ended(&g);
    check_another_task_runs_beside(join_ended, NULL);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int wait_for_empty_group(void *arg)
{
    (void)arg;
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    return conc_group_wait(&g);
}

TASK_TEST(waits_for_empty_groups_let_others_run)
{
    check_another_task_runs_beside(wait_for_empty_group, NULL);
}

static int sleep_zero(void *arg)
{
    (void)arg;
    return conc_sleep(0);
}

static int sleep_until_past(void *arg)
{
    (void)arg;
    return conc_sleep_until(-5);
}

TASK_TEST(sleeps_that_are_due_let_others_run)
{
    check_another_task_runs_beside(sleep_zero, NULL);
    check_another_task_runs_beside(sleep_until_past, NULL);
    CHECK_TIME(0);
}

static int take_next(void *group)
{
    conc_task *t;
    return conc_group_next(group, &t);
}

TASK_TEST(taking_children_that_ended_lets_others_run)
{
    enum { MANY = 4000 };
    conc_group g = {0};
    conc_task *t = calloc(MANY, sizeof *t);
    CHECK(t != NULL);
    for (int i = 0; i < MANY; i++) {
        CHECK_INT(conc_spawn_task(&g, &t[i], do_nothing, NULL), 0);
        if (i % 500 == 0)
            CHECK_INT(conc_settle(), 0);
    }
    CHECK_INT(conc_settle(), 0);
    stop = false;
    CHECK_INT(conc_spawn(NULL, stop_now, NULL), 0);
    int taken = 0;
    while (!stop && take_next(&g) == 1)
        taken++;
    CHECK(stop);
    CHECK(taken < MANY);
    while (take_next(&g) == 1)
        taken++;
    CHECK_INT(taken, MANY);
    CHECK_INT(conc_group_wait(&g), 0);
    free(t);
}

static int join_forever(void *arg)
{
    (void)arg;
    while (!stop)
        CHECK_INT(conc_join(&ended, NULL), 0);
    return 0;
}

static int ignore_beside_real_time(void *arg)
{
    double a_moment = 0.02;
    conc_fn *call = *(conc_fn **)arg;
    conc_group g = {0};
    make_ended(&g);
    if (call == join_forever)
        CHECK_INT(conc_spawn(&g, join_forever, NULL), 0);
    else
        CHECK_INT(conc_spawn(&g, ignore_cancel, &call), 0);
    CHECK_INT(conc_spawn(&g, stop_after, &a_moment), 0);
    return conc_group_wait(&g);
}

TEST(on_the_real_clock_timers_fire_beside_tasks_that_never_wait)
{
    conc_fn *calls[] = {sleep_one, join_ended, join_forever};
    double start = test_real_seconds();
    for (size_t i = 0; i < CONC_LEN(calls); i++) {
        stop = false;
        CHECK_INT(conc_run(ignore_beside_real_time, &calls[i]), 0);
    }
    CHECK(test_real_seconds() - start < 10);
}

static int ignore_at_the_end(void *arg)
{
    conc_fn *call = sleep_one;
    double one = 1;
    (void)arg;
    CHECK_INT(conc_spawn(NULL, ignore_cancel, &call), 0);
    CHECK_INT(conc_yield(), 0);
    return conc_shield(2, stop_after, &one);
}

TASK_TEST(a_shielded_clean_up_continues_beside_a_task_that_ignores_its_cancel)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_task *self = conc_self();
    CHECK(self != NULL);
    CHECK_INT(ignore_at_the_end(NULL), 0);
    CHECK_TIME(1);
    CHECK_INT(conc_scope_end(&s, 0), 0);
}
