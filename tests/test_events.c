/* test_events.c - conc_event: set wakes all tasks that wait at that moment, and afterwards none
 * needs the event.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <pthread.h>

enum { UNDECIDED = 1000 }; /* what no call returns */

typedef struct waiter {
    conc_event *event;
    conc_task task;
    int rc, next; /* results of the wait, and of the checkpoint after it */
    double at;
} waiter;

static int waits(void *arg)
{
    waiter *w = arg;
    w->rc = conc_event_wait(w->event);
    w->at = conc_now();
    w->next = conc_yield();
    return 0;
}

/* Makes them wait, in this order. */
static void arrive(conc_group *g, conc_event *e, waiter *waiters, int n)
{
    for (int i = 0; i < n; i++) {
        waiters[i] = (waiter){.event = e, .rc = UNDECIDED, .next = UNDECIDED};
        CHECK_INT(conc_spawn_task(g, &waiters[i].task, waits, &waiters[i]), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(waiters[i].rc, UNDECIDED);
    }
}

static int wait_here(void *event) { return conc_event_wait(event); }

static void set_it(void *event) { conc_event_set(event); }

static void clear_it(void *event) { conc_event_clear(event); }

/* ---- setting and clearing ---- */

TASK_TEST(an_event_that_is_set_is_not_waited_for)
{
    conc_event e = {0};
    CHECK(!conc_event_is_set(&e));
    for (int round = 0; round < 3; round++) {
        conc_event_set(&e);
        conc_event_set(&e);
        CHECK(conc_event_is_set(&e));
        CHECK_INT(conc_event_wait(&e), 0);
        CHECK_INT(conc_event_wait(&e), 0);
        conc_event_clear(&e);
        conc_event_clear(&e);
        CHECK(!conc_event_is_set(&e));
        CHECK_INT(conc_timeout(1, wait_here, &e), -ETIMEDOUT);
        CHECK_TIME(round + 1);
    }
}

TASK_TEST(a_set_wakes_all_waiters_and_later_ones_do_not_wait)
{
    conc_event e = {0};
    waiter w[3];
    conc_group g = {0};
    arrive(&g, &e, w, 3);
    CHECK_INT(conc_sleep(2), 0);
    conc_event_set(&e);
    CHECK_INT(w[0].rc, UNDECIDED); /* it is no checkpoint */
    CHECK_INT(conc_event_wait(&e), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(w[i].rc, 0);
        CHECK_INT(w[i].next, 0);
        CHECK(w[i].at == 2);
    }
    CHECK_TIME(2);
}

typedef struct named {
    conc_event *event;
    const char *name;
} named;

static int notes_its_name(void *arg)
{
    named *n = arg;
    CHECK_INT(conc_event_wait(n->event), 0);
    note(n->name);
    return 0;
}

ORDERED_TASK_TEST(waiters_continue_in_fifo_order)
{
    conc_event e = {0};
    named tasks[] = {{&e, "a"}, {&e, "b"}, {&e, "c"}, {&e, "d"}};
    conc_group g = {0};
    for (size_t i = 0; i < CONC_LEN(tasks); i++)
        CHECK_INT(conc_spawn(&g, notes_its_name, &tasks[i]), 0);
    CHECK_INT(conc_settle(), 0);
    conc_event_set(&e);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a b c d");
}

TASK_TEST(a_clear_right_after_the_set_undoes_no_wake_up)
{
    conc_event e = {0};
    waiter w[2], late;
    conc_group g = {0};
    arrive(&g, &e, w, 2);
    conc_event_set(&e);
    conc_event_clear(&e);
    CHECK(!conc_event_is_set(&e));
    CHECK_INT(conc_timeout(1, wait_here, &e), -ETIMEDOUT);
    CHECK_INT(w[0].rc, 0);
    CHECK_INT(w[1].rc, 0);
    CHECK(w[0].at == 0 && w[1].at == 0);

    arrive(&g, &e, &late, 1);
    conc_event_clear(&e);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(late.rc, UNDECIDED);
    conc_event_set(&e);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(late.rc, 0);
}

static int counts_its_wakes(void *arg)
{
    named *n = arg;
    for (;;) {
        CONC_TRY(conc_event_wait(n->event));
        note(n->name);
        conc_event_clear(n->event);
    }
}

TASK_TEST(several_sets_before_it_runs_wake_a_waiter_once)
{
    conc_event e = {0};
    named n = {&e, "woken"};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, counts_its_wakes, &n), 0);
    CHECK_INT(conc_settle(), 0);
    conc_event_set(&e);
    conc_event_clear(&e);
    conc_event_set(&e);
    conc_event_set(&e);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "woken");
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- cancels and time limits ---- */

TASK_TEST(a_cancelled_waiter_is_cancelled_and_the_others_are_woken)
{
    for (int victim = 0; victim < 3; victim++) {
        conc_event e = {0};
        waiter w[3];
        conc_group g = {0};
        arrive(&g, &e, w, 3);
        CHECK_INT(conc_cancel(&w[victim].task), 0);
        conc_event_set(&e);
        CHECK_INT(conc_group_wait(&g), 0);
        for (int i = 0; i < 3; i++)
            CHECK_INT(w[i].rc, i == victim ? -ECANCELED : 0);
    }
}

TASK_TEST(a_waiter_that_is_cancelled_after_the_set_was_woken_by_it)
{
    conc_event e = {0};
    waiter w[3];
    conc_group g = {0};
    arrive(&g, &e, w, 3);
    conc_event_set(&e);
    CHECK_INT(conc_cancel(&w[1].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(w[i].rc, 0);
        CHECK_INT(w[i].next, i == 1 ? -ECANCELED : 0);
    }
}

TASK_TEST(a_cancelled_task_may_not_even_pass_a_set_event)
{
    conc_event e = {0};
    conc_scope s = {0};
    conc_event_set(&e);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_event_wait(&e), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(conc_event_wait(&e), 0);
}

static int waits_for_a_second(void *arg)
{
    waiter *w = arg;
    w->rc = conc_timeout(1, wait_here, w->event);
    return 0;
}

TASK_TEST(the_first_of_a_set_and_a_time_limit_decides)
{
    conc_event first = {0}, second = {0};
    waiter late = {.event = &first}, in_time = {.event = &second};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, waits_for_a_second, &late), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_block(2), 0);
    conc_event_set(&first);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(late.rc, -ETIMEDOUT);

    CHECK_INT(conc_spawn(&g, waits_for_a_second, &in_time), 0);
    CHECK_INT(conc_settle(), 0);
    conc_event_set(&second);
    CHECK_INT(conc_block(2), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(in_time.rc, 0);
}

/* ---- a task that was woken may free the event ---- */

typedef struct owners {
    conc_event *event;
    int back;
} owners;

static int frees_it_when_first(void *arg)
{
    owners *o = arg;
    int rc = conc_event_wait(o->event);
    if (o->back++ == 0)
        free(o->event);
    return rc;
}

static owners shared_by_three(conc_group *g, conc_task *tasks)
{
    static owners o;
    o = (owners){.event = calloc(1, sizeof(conc_event))};
    CHECK(o.event != NULL);
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn_task(g, &tasks[i], frees_it_when_first, &o), 0);
    CHECK_INT(conc_settle(), 0);
    return o;
}

TASK_TEST(the_first_woken_waiter_may_free_the_event)
{
    conc_task tasks[3];
    conc_group g = {0};
    conc_event_set(shared_by_three(&g, tasks).event);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(an_event_that_a_posted_function_set_may_be_freed_too)
{
    conc_task tasks[3];
    conc_group g = {0};
    CHECK_INT(conc_post(conc_loop_self(), set_it, shared_by_three(&g, tasks).event), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_cancel_of_woken_waiters_does_not_touch_the_freed_event)
{
    conc_task tasks[3];
    conc_group g = {0};
    conc_event_set(shared_by_three(&g, tasks).event);
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_cancel(&tasks[i]), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- many, and in a loop ---- */

TASK_TEST(an_event_can_have_any_number_of_waiters)
{
    enum { N = 2000 };
    static waiter w[N];
    conc_event e = {0};
    conc_group g = {.stack_size = 16384};
    for (int i = 0; i < N; i++) {
        w[i] = (waiter){.event = &e, .rc = UNDECIDED};
        CHECK_INT(conc_spawn_task(&g, &w[i].task, waits, &w[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
    for (int i = 0; i < N; i += 3)
        CHECK_INT(conc_cancel(&w[i].task), 0);
    conc_event_set(&e);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < N; i++)
        CHECK_INT(w[i].rc, i % 3 ? 0 : -ECANCELED);
}

static int raises(void *flag)
{
    *(bool *)flag = true;
    return 0;
}

TASK_TEST(a_loop_over_a_set_event_lets_others_run)
{
    bool flag = false;
    int n = 0;
    conc_event e = {0};
    conc_group g = {0};
    conc_event_set(&e);
    CHECK_INT(conc_spawn(&g, raises, &flag), 0);
    for (; !flag && n < 100000; n++)
        CHECK_INT(conc_event_wait(&e), 0);
    CHECK(flag && n < 10000);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- outside tasks, and misuse ---- */

TASK_TEST(a_posted_function_sets_and_clears_but_does_not_wait)
{
    conc_event e = {0};
    waiter w[2];
    conc_group g = {0};
    arrive(&g, &e, w, 2);
    CHECK_INT(conc_post(conc_loop_self(), set_it, &e), 0);
    CHECK_INT(conc_post(conc_loop_self(), clear_it, &e), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w[0].rc, 0);
    CHECK_INT(w[1].rc, 0);
    CHECK(!conc_event_is_set(&e));
}

static int posted_rc = UNDECIDED;

static void wait_in_a_post(void *event) { posted_rc = conc_event_wait(event); }

TASK_TEST(a_wait_in_a_posted_function_is_refused)
{
    conc_event e = {0};
    CHECK_INT(conc_post(conc_loop_self(), wait_in_a_post, &e), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(posted_rc, -EPERM);
}

static int waits_and_clears(void *event)
{
    CHECK(conc_event_is_set(event));
    CHECK_INT(conc_event_wait(event), 0);
    conc_event_clear(event);
    return 0;
}

TEST(an_event_works_before_between_and_after_runs)
{
    static conc_event e;
    CHECK_INT(conc_event_wait(&e), -EPERM);
    for (int i = 0; i < 3; i++) {
        conc_event_set(&e);
        CHECK_INT(conc_event_wait(&e), -EPERM); /* not a task, although it would not have to wait */
        CHECK_INT(conc_run(waits_and_clears, &e), 0);
        CHECK(!conc_event_is_set(&e));
    }
}

TASK_TEST(a_null_event_is_refused)
{
    CHECK_INT(conc_event_wait(NULL), -EINVAL);
    conc_event_set(NULL);
    conc_event_clear(NULL);
    CHECK(!conc_event_is_set(NULL));
}

static void *set_from_a_thread(void *event)
{
    conc_event_set(event);
    return NULL;
}

TASK_TEST(a_set_from_another_thread_does_nothing_while_a_task_waits)
{
    pthread_t thread;
    conc_event e = {0};
    waiter w;
    conc_group g = {0};
    arrive(&g, &e, &w, 1);
    CHECK_INT(pthread_create(&thread, NULL, set_from_a_thread, &e), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK(!conc_event_is_set(&e));
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(w.rc, UNDECIDED);
    conc_event_set(&e);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, 0);
    CHECK(w.at == 1);
}

static int waits_forever(void *event)
{
    CHECK_INT(conc_event_wait(event), -ECANCELED);
    return 0;
}

static void wait_for_nobody(void)
{
    conc_event e = {0};
    CHECK_INT(conc_run(waits_forever, &e), -EDEADLK);
    conc_event_set(&e); /* no task waits any more */
    CHECK_INT(conc_run(waits_and_clears, &e), 0);
}

TEST(a_wait_that_no_task_can_end_is_a_deadlock)
{
    static char text[16384];
    int status = test_in_process(wait_for_nobody, text, sizeof text);
    if (status != 0)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, text);
    CHECK_CONTAINS(text, "event");
}
