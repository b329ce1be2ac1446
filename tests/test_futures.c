/* test_futures.c - conc_future: a result that is set once and read by any number of tasks.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <pthread.h>

enum { UNDECIDED = 1000 }; /* what no call returns */

static int a_value, nothing_yet;

typedef struct waiter {
    conc_future *future;
    conc_task task;
    int rc, next; /* results of the wait, and of the checkpoint after it */
    void *value;
    double at;
} waiter;

static int waits(void *arg)
{
    waiter *w = arg;
    w->rc = conc_future_wait(w->future, &w->value);
    w->at = conc_now();
    w->next = conc_yield();
    return 0;
}

static void arrive(conc_group *g, conc_future *f, waiter *waiters, int n)
{
    for (int i = 0; i < n; i++) {
        waiters[i] =
            (waiter){.future = f, .rc = UNDECIDED, .next = UNDECIDED, .value = &nothing_yet};
        CHECK_INT(conc_spawn_task(g, &waiters[i].task, waits, &waiters[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
}

static int wait_here(void *future) { return conc_future_wait(future, NULL); }

TASK_TEST(all_waiters_get_the_result_and_so_do_later_ones)
{
    conc_future f = {0};
    waiter w[3];
    void *value = NULL;
    conc_group g = {0};
    CHECK(!conc_future_is_set(&f));
    arrive(&g, &f, w, 3);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(conc_future_set(&f, 7, &a_value), 0);
    CHECK(conc_future_is_set(&f));
    CHECK_INT(conc_future_wait(&f, &value), 7);
    CHECK(value == &a_value);
    CHECK_INT(conc_future_wait(&f, NULL), 7); /* the value is not wanted */
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(w[i].rc, 7);
        CHECK(w[i].value == &a_value);
        CHECK(w[i].at == 2);
    }
    CHECK_TIME(2);
}

TASK_TEST(a_result_is_set_once)
{
    conc_future f = {0};
    waiter w;
    void *value = NULL;
    conc_group g = {0};
    arrive(&g, &f, &w, 1);
    CHECK_INT(conc_future_set(&f, 1, &a_value), 0);
    CHECK_INT(conc_future_set(&f, 2, &nothing_yet), -EALREADY);
    CHECK_INT(conc_future_set(&f, 1, &a_value), -EALREADY);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, 1);
    CHECK_INT(conc_future_wait(&f, &value), 1);
    CHECK(value == &a_value && w.value == &a_value);
}

TASK_TEST(an_error_is_a_result_like_any_other)
{
    int codes[] = {0, -EIO, -ETIMEDOUT, -ECANCELED, -1};
    for (size_t i = 0; i < CONC_LEN(codes); i++) {
        conc_future f = {0};
        waiter w;
        conc_group g = {0};
        void *value = &nothing_yet;
        arrive(&g, &f, &w, 1);
        CHECK_INT(conc_future_set(&f, codes[i], NULL), 0);
        CHECK_INT(conc_future_wait(&f, &value), codes[i]);
        CHECK(value == NULL);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(w.rc, codes[i]);
        CHECK(w.value == NULL);
        CHECK_INT(w.next, 0); /* no call cancelled the waiter */
    }
}

TASK_TEST(a_cancelled_waiter_gets_nothing_and_disturbs_no_other)
{
    conc_future f = {0};
    waiter w[3];
    conc_group g = {0};
    arrive(&g, &f, w, 3);
    CHECK_INT(conc_cancel(&w[0].task), 0);
    CHECK_INT(conc_future_set(&f, 7, &a_value), 0);
    CHECK_INT(conc_cancel(&w[1].task), 0); /* too late: it has the result */
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w[0].rc, -ECANCELED);
    CHECK(w[0].value == &nothing_yet);
    for (int i = 1; i < 3; i++) {
        CHECK_INT(w[i].rc, 7);
        CHECK(w[i].value == &a_value);
        CHECK_INT(w[i].next, i == 1 ? -ECANCELED : 0);
    }
}

TASK_TEST(a_cancelled_task_may_not_even_read_an_available_result)
{
    conc_future f = {0};
    conc_scope s = {0};
    void *value = &nothing_yet;
    CHECK_INT(conc_scope_begin(&s, 0), 0);
    CHECK_INT(conc_future_set(&f, 7, &a_value), 0); /* no checkpoint */
    CHECK_INT(conc_future_wait(&f, &value), -ECANCELED);
    CHECK(value == &nothing_yet);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    CHECK_INT(conc_future_wait(&f, &value), 7);
}

TASK_TEST(a_wait_that_timed_out_leaves_the_future_open)
{
    conc_future f = {0};
    CHECK_INT(conc_timeout(1, wait_here, &f), -ETIMEDOUT);
    CHECK_TIME(1);
    CHECK(!conc_future_is_set(&f));
    CHECK_INT(conc_future_set(&f, 7, NULL), 0);
    CHECK_INT(conc_timeout(1, wait_here, &f), 7);
}

TASK_TEST(a_zeroed_future_can_be_used_again)
{
    conc_future f = {0};
    for (int i = 0; i < 3; i++) {
        f = (conc_future){0};
        CHECK_INT(conc_timeout(1, wait_here, &f), -ETIMEDOUT);
        CHECK_INT(conc_future_set(&f, i, NULL), 0);
        CHECK_INT(conc_future_wait(&f, NULL), i);
    }
    CHECK_TIME(3);
}

/* ---- outside tasks, and misuse ---- */

static int refused = UNDECIDED;

static void set_in_a_post(void *future) { CHECK_INT(conc_future_set(future, 7, &a_value), 0); }

static void wait_in_a_post(void *future) { refused = conc_future_wait(future, NULL); }

TASK_TEST(a_posted_function_sets_but_does_not_wait)
{
    conc_future f = {0};
    waiter w;
    conc_group g = {0};
    arrive(&g, &f, &w, 1);
    CHECK_INT(conc_post(conc_loop_self(), wait_in_a_post, &f), 0);
    CHECK_INT(conc_post(conc_loop_self(), set_in_a_post, &f), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(refused, -EPERM);
    CHECK_INT(w.rc, 7);
    CHECK(w.value == &a_value);
}

static int sets_the_other(void *arg)
{
    conc_future *f = arg;
    CHECK_INT(conc_future_wait(&f[0], NULL), 3);
    return conc_future_set(&f[1], 4, NULL);
}

static int reads_both(void *arg)
{
    conc_future *f = arg;
    return conc_future_wait(&f[0], NULL) + conc_future_wait(&f[1], NULL);
}

TEST(a_future_works_before_between_and_after_runs)
{
    static conc_future f[2];
    CHECK_INT(conc_future_wait(&f[0], NULL), -EPERM);
    CHECK_INT(conc_future_set(&f[0], 3, NULL), 0);
    CHECK_INT(conc_future_wait(&f[0], NULL), -EPERM);
    CHECK_INT(conc_run(sets_the_other, f), 0);
    CHECK(conc_future_is_set(&f[1]));
    CHECK_INT(conc_run(reads_both, f), 7);
    CHECK_INT(conc_future_set(&f[1], 5, NULL), -EALREADY);
}

TASK_TEST(a_null_future_is_refused)
{
    void *value = &nothing_yet;
    CHECK_INT(conc_future_set(NULL, 0, NULL), -EINVAL);
    CHECK_INT(conc_future_wait(NULL, &value), -EINVAL);
    CHECK(value == &nothing_yet);
    CHECK(!conc_future_is_set(NULL));
}

static void *set_in_a_thread(void *future)
{
    refused = conc_future_set(future, 1, NULL);
    return NULL;
}

TASK_TEST(another_thread_may_not_set_a_future_with_a_waiter)
{
    pthread_t thread;
    conc_future f = {0};
    waiter w;
    conc_group g = {0};
    arrive(&g, &f, &w, 1);
    CHECK_INT(pthread_create(&thread, NULL, set_in_a_thread, &f), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(refused, -EPERM);
    CHECK(!conc_future_is_set(&f));
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(w.rc, UNDECIDED);
    CHECK_INT(conc_future_set(&f, 7, &a_value), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, 7);
}

/* ---- error texts ---- */

static int fails_and_sets(void *future)
{
    return conc_future_set(future, conc_fail(-EPROTO, "line %d: no colon", 12), NULL);
}

static void fails_and_sets_in_a_post(void *future) { CHECK_INT(fails_and_sets(future), 0); }

static void sets_in_a_post(void *future) { CHECK_INT(conc_future_set(future, -EPROTO, NULL), 0); }

static void check_words(conc_future *f, const char *expected)
{
    for (int i = 0; i < 2; i++) { /* the second does not wait */
        conc_fail(-EIO, "something else");
        CHECK_INT(conc_future_wait(f, NULL), -EPROTO);
        CHECK_STR(conc_last_error(), expected);
    }
}

TASK_TEST(a_future_that_a_task_sets_carries_the_error_text)
{
    conc_future f = {0};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, fails_and_sets, &f), 0);
    check_words(&f, "line 12: no colon");
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_future_that_a_posted_function_sets_carries_the_error_text)
{
    conc_future f = {0}, next = {0};
    CHECK_INT(conc_post(conc_loop_self(), fails_and_sets_in_a_post, &f), 0);
    CHECK_INT(conc_post(conc_loop_self(), sets_in_a_post, &next), 0);
    check_words(&f, "line 12: no colon");
    check_words(&next, conc_strerror(-EPROTO)); /* they concerned the other one */
}
