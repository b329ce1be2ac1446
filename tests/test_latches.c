/* test_latches.c - conc_latch: waiting for a count to reach zero.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <limits.h>
#include <pthread.h>

enum { UNDECIDED = 1000 }; /* what no call returns */

typedef struct waiter {
    conc_latch *latch;
    conc_task task;
    int rc, next; /* results of the wait, and of the checkpoint after it */
    double at;
} waiter;

static int waits(void *arg)
{
    waiter *w = arg;
    w->rc = conc_latch_wait(w->latch);
    w->at = conc_now();
    w->next = conc_yield();
    return 0;
}

static void arrive(conc_group *g, conc_latch *l, waiter *waiters, int n)
{
    for (int i = 0; i < n; i++) {
        waiters[i] = (waiter){.latch = l, .rc = UNDECIDED, .next = UNDECIDED};
        CHECK_INT(conc_spawn_task(g, &waiters[i].task, waits, &waiters[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
}

static int wait_here(void *latch) { return conc_latch_wait(latch); }

typedef struct work {
    conc_latch *latch;
    double seconds;
} work;

static int works(void *arg)
{
    work *w = arg;
    CONC_TRY(conc_sleep(w->seconds));
    return conc_latch_done(w->latch);
}

TASK_TEST(a_wait_lasts_until_all_work_is_done)
{
    conc_latch l = {0};
    work items[] = {{&l, 3}, {&l, 1}, {&l, 2}};
    waiter w[2];
    conc_group g = {0};
    CHECK_INT(conc_latch_add(&l, 3), 0);
    arrive(&g, &l, w, 2);
    for (size_t i = 0; i < CONC_LEN(items); i++)
        CHECK_INT(conc_spawn(&g, works, &items[i]), 0);
    CHECK_INT(conc_latch_wait(&l), 0);
    CHECK_TIME(3);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(w[i].rc, 0);
        CHECK(w[i].at == 3);
    }
}

TASK_TEST(a_latch_at_zero_is_not_waited_for)
{
    conc_latch l = {0};
    CHECK_INT(conc_latch_wait(&l), 0);
    CHECK_INT(conc_latch_add(&l, 0), 0);
    CHECK_INT(conc_latch_wait(&l), 0);
    CHECK_INT(conc_latch_add(&l, 2), 0);
    CHECK_INT(conc_timeout(1, wait_here, &l), -ETIMEDOUT);
    CHECK_INT(conc_latch_add(&l, -2), 0);
    CHECK_INT(conc_latch_wait(&l), 0);
    CHECK_TIME(1);
}

TASK_TEST(only_zero_wakes_the_waiters_not_each_step)
{
    conc_latch l = {0};
    waiter w;
    conc_group g = {0};
    CHECK_INT(conc_latch_add(&l, 2), 0);
    arrive(&g, &l, &w, 1);
    int steps[] = {-1, 3, 0, -3};
    for (size_t i = 0; i < CONC_LEN(steps); i++) {
        CHECK_INT(conc_latch_add(&l, steps[i]), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(w.rc, UNDECIDED);
    }
    CHECK_INT(conc_latch_done(&l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, 0);
}

TASK_TEST(a_count_below_zero_or_beyond_an_int_is_refused_and_changes_nothing)
{
    conc_latch l = {0};
    CHECK_INT(conc_latch_done(&l), -EOVERFLOW);
    CHECK_INT(conc_latch_add(&l, -1), -EOVERFLOW);
    CHECK_INT(conc_latch_add(&l, INT_MIN), -EOVERFLOW);
    CHECK_INT(conc_latch_wait(&l), 0);
    CHECK_INT(conc_latch_add(&l, 2), 0);
    CHECK_INT(conc_latch_add(&l, -3), -EOVERFLOW);
    CHECK_INT(conc_latch_add(&l, INT_MAX - 1), -EOVERFLOW);
    CHECK_INT(conc_latch_add(&l, INT_MAX - 2), 0);
    CHECK_INT(conc_latch_add(&l, 1), -EOVERFLOW);
    CHECK_INT(conc_latch_add(&l, -INT_MAX), 0);
    CHECK_INT(conc_latch_wait(&l), 0);
    CHECK_TIME(0);
}

TASK_TEST(a_refused_step_leaves_waiters_waiting)
{
    conc_latch l = {0};
    waiter w;
    conc_group g = {0};
    CHECK_INT(conc_latch_add(&l, 1), 0);
    arrive(&g, &l, &w, 1);
    CHECK_INT(conc_latch_add(&l, -2), -EOVERFLOW);
    CHECK_INT(conc_latch_add(&l, INT_MAX), -EOVERFLOW);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(w.rc, UNDECIDED);
    CHECK_INT(conc_latch_done(&l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, 0);
}

TASK_TEST(more_work_right_after_the_last_was_done_undoes_no_wake_up)
{
    conc_latch l = {0};
    waiter w[3];
    conc_group g = {0};
    CHECK_INT(conc_latch_add(&l, 1), 0);
    arrive(&g, &l, w, 3);
    CHECK_INT(conc_latch_done(&l), 0);
    CHECK_INT(conc_latch_add(&l, 1), 0);
    /* a later task waits for the new work */
    CHECK_INT(conc_timeout(1, wait_here, &l), -ETIMEDOUT);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(w[i].rc, 0);
        CHECK(w[i].at == 0);
    }
    CHECK_INT(conc_latch_done(&l), 0);
    CHECK_INT(conc_latch_wait(&l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_cancel_before_zero_takes_effect_and_one_after_it_does_not)
{
    conc_latch l = {0};
    waiter w[3];
    conc_group g = {0};
    CHECK_INT(conc_latch_add(&l, 1), 0);
    arrive(&g, &l, w, 3);
    CHECK_INT(conc_cancel(&w[0].task), 0);
    CHECK_INT(conc_latch_done(&l), 0);
    CHECK_INT(conc_cancel(&w[1].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w[0].rc, -ECANCELED);
    CHECK_INT(w[1].rc, 0);
    CHECK_INT(w[1].next, -ECANCELED);
    CHECK_INT(w[2].rc, 0);
    CHECK_INT(w[2].next, 0);
}

TASK_TEST(a_cancelled_task_may_not_even_pass_a_latch_at_zero)
{
    conc_latch l = {0};
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 0), 0);
    CHECK_INT(conc_latch_add(&l, 1), 0); /* no checkpoints */
    CHECK_INT(conc_latch_done(&l), 0);
    CHECK_INT(conc_latch_wait(&l), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
}

/* ---- outside tasks, and misuse ---- */

static void count_down(void *latch) { CHECK_INT(conc_latch_done(latch), 0); }

static int refused = UNDECIDED;

static void wait_in_a_post(void *latch) { refused = conc_latch_wait(latch); }

TASK_TEST(posted_functions_count_but_do_not_wait)
{
    conc_latch l = {0};
    waiter w;
    conc_group g = {0};
    CHECK_INT(conc_latch_add(&l, 2), 0);
    arrive(&g, &l, &w, 1);
    CHECK_INT(conc_post(conc_loop_self(), wait_in_a_post, &l), 0);
    CHECK_INT(conc_post(conc_loop_self(), count_down, &l), 0);
    CHECK_INT(conc_post(conc_loop_self(), count_down, &l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, 0);
    CHECK_INT(refused, -EPERM);
}

static int passes_when_the_rest_is_done(void *latch)
{
    CHECK_INT(conc_timeout(1, wait_here, latch), -ETIMEDOUT);
    CHECK_INT(conc_latch_done(latch), 0);
    CHECK_INT(conc_latch_wait(latch), 0);
    return 0;
}

TEST(a_latch_works_before_between_and_after_runs)
{
    static conc_latch l;
    conc_options o = {.virtual_clock = true};
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_latch_add(&l, 2), 0);
        CHECK_INT(conc_latch_done(&l), 0);
        CHECK_INT(conc_latch_wait(&l), -EPERM);
        CHECK_INT(conc_run_with(&o, passes_when_the_rest_is_done, &l), 0);
        CHECK_INT(conc_latch_done(&l), -EOVERFLOW);
    }
}

TASK_TEST(a_null_latch_is_refused)
{
    CHECK_INT(conc_latch_add(NULL, 1), -EINVAL);
    CHECK_INT(conc_latch_done(NULL), -EINVAL);
    CHECK_INT(conc_latch_wait(NULL), -EINVAL);
}

static void *done_in_a_thread(void *latch)
{
    refused = conc_latch_done(latch);
    return NULL;
}

TASK_TEST(another_thread_may_not_release_waiters)
{
    pthread_t thread;
    conc_latch l = {0};
    waiter w;
    conc_group g = {0};
    CHECK_INT(conc_latch_add(&l, 1), 0);
    arrive(&g, &l, &w, 1);
    CHECK_INT(pthread_create(&thread, NULL, done_in_a_thread, &l), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(refused, -EPERM);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(w.rc, UNDECIDED);
    CHECK_INT(conc_latch_done(&l), 0); /* it was not counted */
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, 0);
}
