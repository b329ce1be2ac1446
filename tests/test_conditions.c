/* test_conditions.c - conc_cond: which waiters are notified, in which order, and that every wait
 * returns with its lock.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <limits.h>
#include <pthread.h>

enum { WAITING = 1, END = 1000 }; /* no call returns WAITING */

static conc_lock lock;
static conc_cond cond, other_cond;

/* A task that waits for a condition once, and holds the lock a little longer. */
typedef struct waiter {
    const char *name;
    conc_cond *cond;
    double timeout; /* time limit of its wait; 0: none */
    double keeps;   /* seconds */
    int waited;     /* result of its wait */
    int next;       /* result of its next checkpoint */
    double at;      /* when it continued */
    conc_task task;
} waiter;

/* clang-format off */
#define WAITER(...) {.name = __VA_ARGS__}
/* clang-format on */

static int acquire(conc_lock *l) { return conc_lock_acquire(l); }

static void take(void) { CHECK_INT(acquire(&lock), 0); }

static void give(void) { CHECK_INT(conc_lock_release(&lock), 0); }

static bool mine(void) { return conc_lock_owner(&lock) == conc_self(); }

static int waits_once(void *arg)
{
    waiter *w = arg;
    int rc = conc_cond_wait(w->cond ? w->cond : &cond, &lock);
    CHECK(mine());
    return rc;
}

static int waits(void *arg)
{
    waiter *w = arg;
    w->waited = WAITING;
    take();
    w->waited = conc_timeout(w->timeout > 0 ? w->timeout : CONC_FOREVER, waits_once, w);
    w->at = conc_now();
    CHECK(mine());
    note(w->name);
    w->next = conc_sleep(w->keeps);
    CHECK(mine());
    give();
    return 0;
}

/* Spawns the waiters one by one and lets each run until it waits: that fixes the order of
 * arrival. */
static void arrive(conc_group *g, waiter *waiters, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        CHECK_INT(conc_spawn_task(g, &waiters[i].task, waits, &waiters[i]), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(waiters[i].waited, WAITING);
    }
}

#define ARRIVE(g, waiters) arrive((g), (waiters), CONC_LEN(waiters))

static void check_waiting(const waiter *waiters, size_t n, int expected)
{
    int waiting = 0;
    for (size_t i = 0; i < n; i++)
        waiting += waiters[i].waited == WAITING;
    CHECK_INT(waiting, expected);
}

#define CHECK_WAITING(waiters, expected) check_waiting((waiters), CONC_LEN(waiters), (expected))

static void notify_locked(conc_cond *c, int n)
{
    take();
    conc_cond_notify(c, n);
    give();
    CHECK_INT(conc_settle(), 0);
}

/* Notifies the remaining waiters; then the lock is free. */
static void finish(conc_group *g)
{
    conc_cond_notify_all(&cond);
    conc_cond_notify_all(&other_cond);
    CHECK_INT(conc_group_wait(g), 0);
    CHECK_INT(conc_lock_try_acquire(&lock), 0);
    give();
}

/* ---- waiting ---- */

TASK_TEST(a_wait_leaves_the_lock_to_others_and_has_it_again_on_its_return)
{
    waiter w = WAITER("w");
    conc_group g = {0};
    arrive(&g, &w, 1);
    CHECK(conc_lock_owner(&lock) == NULL);
    CHECK_INT(conc_sleep(2), 0);
    notify_locked(&cond, 1);
    CHECK_INT(w.waited, 0);
    CHECK(w.at == 2);
    finish(&g);
}

TASK_TEST(a_wait_hands_the_lock_to_its_first_waiter)
{
    waiter waiters[] = {WAITER("a"), WAITER("b")};
    conc_group g = {0};
    take();
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_spawn_task(&g, &waiters[i].task, waits, &waiters[i]), 0);
        CHECK_INT(conc_settle(), 0);
    }
    /* both acquire the lock, and wait too */
    CHECK_INT(conc_timeout(1, waits_once, &(waiter){0}), -ETIMEDOUT);
    CHECK_TIME(1);
    CHECK(mine());
    CHECK_WAITING(waiters, 2);
    give();
    finish(&g);
    CHECK_STR(noted, "a b");
}

TASK_TEST(a_notified_waiter_continues_when_the_notifier_releases_the_lock)
{
    waiter waiters[] = {WAITER("a"), WAITER("b"), WAITER("c")};
    conc_group g = {0};
    ARRIVE(&g, waiters);
    take();
    conc_cond_notify(&cond, 2);
    CHECK_INT(conc_sleep(3), 0);
    CHECK_STR(noted, "");
    give();
    CHECK(conc_lock_owner(&lock) == &waiters[0].task);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "a b");
    CHECK(waiters[0].at == 3 && waiters[1].at == 3);
    finish(&g);
    CHECK_STR(noted, "a b c");
}

TASK_TEST(a_condition_is_tested_in_a_loop)
{
    waiter w = WAITER("w");
    conc_group g = {0};
    arrive(&g, &w, 1);
    notify_locked(&cond, 1);
    CHECK_INT(w.waited, 0);
    take(); /* the condition is like new */
    CHECK_INT(conc_timeout(1, waits_once, &w), -ETIMEDOUT);
    give();
    finish(&g);
}

TASK_TEST(a_wait_keeps_the_other_locks_of_its_task)
{
    conc_lock outer = {0};
    CHECK_INT(conc_lock_acquire(&outer), 0);
    take();
    CHECK_INT(conc_timeout(1, waits_once, &(waiter){0}), -ETIMEDOUT);
    CHECK(conc_lock_owner(&outer) == conc_self());
    give();
    CHECK_INT(conc_lock_release(&outer), 0);
}

/* ---- notifying ---- */

/* Five wait; each of the numbers is a notify. */
static void check_notifies(const int *numbers, const char *expected)
{
    waiter waiters[] = {WAITER("a"), WAITER("b"), WAITER("c"), WAITER("d"), WAITER("e")};
    conc_group g = {0};
    noted[0] = 0;
    ARRIVE(&g, waiters);
    for (; *numbers != END; numbers++)
        notify_locked(&cond, *numbers);
    CHECK_STR(noted, expected);
    finish(&g);
    CHECK_STR(noted, "a b c d e");
}

TASK_TEST(a_notify_is_for_the_first_n_waiters)
{
    static const struct {
        int numbers[4];
        const char *expected;
    } rows[] = {{{END}, ""},
                {{1, END}, "a"},
                {{1, 1, END}, "a b"},
                {{2, 1, END}, "a b c"},
                {{3, 0, 1, END}, "a b c d"},
                {{4, END}, "a b c d"},
                {{5, END}, "a b c d e"},
                {{6, END}, "a b c d e"},
                {{INT_MAX, END}, "a b c d e"},
                {{0, END}, ""},
                {{-1, END}, ""},
                {{INT_MIN, 1, END}, "a"}};
    for (size_t i = 0; i < CONC_LEN(rows); i++)
        check_notifies(rows[i].numbers, rows[i].expected);
}

TASK_TEST(two_consecutive_notifies_are_for_two_waiters)
{
    waiter waiters[] = {WAITER("a"), WAITER("b"), WAITER("c")};
    conc_group g = {0};
    ARRIVE(&g, waiters);
    take();
    conc_cond_notify(&cond, 1);
    conc_cond_notify(&cond, 1);
    give();
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "a b");
    finish(&g);
}

TASK_TEST(all_waiters_are_notified_in_fifo_order)
{
    waiter waiters[] = {WAITER("a", .keeps = 1), WAITER("b", .keeps = 1), WAITER("c", .keeps = 1)};
    conc_group g = {0};
    ARRIVE(&g, waiters);
    conc_cond_notify_all(&cond);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a b c");
    CHECK_TIME(3); /* one after the other */
}

TASK_TEST(a_notify_without_waiters_has_no_effect)
{
    take();
    conc_cond_notify(&cond, 3);
    conc_cond_notify_all(&cond);
    CHECK_INT(conc_timeout(1, waits_once, &(waiter){0}), -ETIMEDOUT);
    CHECK_TIME(1);
    give();
}

TASK_TEST(a_notify_needs_no_lock)
{
    waiter waiters[] = {WAITER("a"), WAITER("b"), WAITER("c")};
    conc_group g = {0};
    ARRIVE(&g, waiters);
    conc_cond_notify(&cond, 1);
    CHECK_STR(noted, "");
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "a");
    CHECK(conc_lock_owner(&lock) == NULL);
    conc_cond_notify_all(&cond);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a b c");
}

static int uses_the_lock(void *name)
{
    take();
    note(name);
    CONC_TRY(conc_sleep(1));
    give();
    return 0;
}

TASK_TEST(a_notified_waiter_queues_behind_the_locks_waiters)
{
    waiter w = WAITER("notified");
    conc_group g = {0};
    arrive(&g, &w, 1);
    take();
    CHECK_INT(conc_spawn(&g, uses_the_lock, "before"), 0);
    CHECK_INT(conc_settle(), 0);
    conc_cond_notify(&cond, 1);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn(&g, uses_the_lock, "after"), 0);
    CHECK_INT(conc_settle(), 0);
    give();
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "before notified after");
}

TASK_TEST(two_conditions_of_one_lock_are_notified_separately)
{
    waiter waiters[] = {WAITER("a"), WAITER("x", .cond = &other_cond), WAITER("b"),
                        WAITER("y", .cond = &other_cond)};
    conc_group g = {0};
    ARRIVE(&g, waiters);
    notify_locked(&other_cond, 1);
    CHECK_STR(noted, "x");
    notify_locked(&cond, 5);
    CHECK_STR(noted, "x a b");
    take();
    conc_cond_notify_all(&other_cond);
    CHECK_STR(noted, "x a b");
    give();
    finish(&g);
    CHECK_STR(noted, "x a b y");
}

static int waits_with_a_lock_of_its_own(void *arg)
{
    conc_lock own = {0};
    CHECK_INT(conc_lock_acquire(&own), 0);
    int rc = conc_cond_wait(&cond, &own);
    CHECK(conc_lock_owner(&own) == conc_self());
    CHECK_INT(conc_lock_release(&own), 0);
    note(arg);
    return rc;
}

TASK_TEST(waiters_with_different_locks_do_not_wait_for_each_others)
{
    waiter w = WAITER("w", .keeps = 5);
    conc_group g = {0};
    arrive(&g, &w, 1);
    CHECK_INT(conc_spawn(&g, waits_with_a_lock_of_its_own, "own"), 0);
    CHECK_INT(conc_settle(), 0);
    take();
    conc_cond_notify_all(&cond);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "own");
    give();
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "own w");
}

static int waits_and_goes(void *arg)
{
    take();
    CONC_TRY(waits_once(&(waiter){0}));
    ++*(int *)arg;
    give();
    return 0;
}

TASK_TEST(a_thousand_notified_waiters_acquire_the_lock_in_turn_without_a_stampede)
{
    int went = 0;
    conc_stats before, after;
    conc_group g = {.stack_size = 65536};
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_spawn(&g, waits_and_goes, &went), 0);
    CHECK_INT(conc_settle(), 0);
    take();
    conc_cond_notify_all(&cond);
    give();
    conc_get_stats(&before);
    CHECK_INT(conc_group_wait(&g), 0);
    conc_get_stats(&after);
    CHECK_INT(went, 1000);
    /* once to be notified, once to acquire the lock */
    CHECK(after.switches - before.switches <= 3 * 1000);
}

/* ---- cancels ---- */

TASK_TEST(a_cancelled_wait_has_the_lock_again_although_that_takes_time)
{
    waiter w = WAITER("w");
    conc_group g = {0};
    arrive(&g, &w, 1);
    take();
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_cancel(&w.task), 0);
        CHECK_INT(conc_sleep(1), 0);
        CHECK_INT(w.waited, WAITING);
    }
    give();
    CHECK(conc_lock_owner(&lock) == &w.task);
    finish(&g);
    CHECK_INT(w.waited, -ECANCELED);
    CHECK_INT(w.next, -ECANCELED);
    CHECK(w.at == 3);
}

TASK_TEST(a_cancelled_wait_on_a_free_lock_returns_at_once)
{
    waiter w = WAITER("w");
    conc_group g = {0};
    arrive(&g, &w, 1);
    CHECK_INT(conc_cancel(&w.task), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(w.waited, -ECANCELED);
    finish(&g);
}

TASK_TEST(in_a_cancelled_scope_a_wait_keeps_its_lock_all_the_time)
{
    conc_scope s = {0};
    conc_group g = {0};
    take();
    CHECK_INT(conc_spawn(&g, uses_the_lock, "after"), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    for (int i = 0; i < 3; i++)
        CHECK_INT(waits_once(&(waiter){0}), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_STR(noted, "");
    give();
    finish(&g);
    CHECK_STR(noted, "after");
}

/* Three wait; some are cancelled in this order, before or after n are notified. Notes the waiters
 * that succeeded. */
static void check_cancels(const char *cancelled, int n, bool cancel_first, const char *expected)
{
    char woken[8] = "";
    waiter waiters[] = {WAITER("a"), WAITER("b"), WAITER("c")};
    conc_group g = {0};
    ARRIVE(&g, waiters);
    take();
    if (!cancel_first)
        conc_cond_notify(&cond, n);
    for (const char *c = cancelled; *c; c++)
        CHECK_INT(conc_cancel(&waiters[*c - 'a'].task), 0);
    if (cancel_first)
        conc_cond_notify(&cond, n);
    give();
    CHECK_INT(conc_settle(), 0);
    for (size_t i = 0; i < CONC_LEN(waiters); i++) {
        strcat(woken, waiters[i].waited == 0 ? waiters[i].name : "");
        CHECK_INT(waiters[i].next, strchr(cancelled, waiters[i].name[0]) ? -ECANCELED : 0);
    }
    CHECK_STR(woken, expected);
    finish(&g);
}

TASK_TEST(a_cancelled_waiter_uses_up_no_notify)
{
    check_cancels("a", 1, true, "b");
    check_cancels("ab", 1, true, "c");
    check_cancels("ba", 1, true, "c");
    check_cancels("b", 2, true, "ac");
    check_cancels("b", 1, true, "a");
    check_cancels("ca", 3, true, "b");
    check_cancels("cab", 3, true, "");
}

TASK_TEST(a_waiter_that_was_notified_and_then_cancelled_returns_success)
{
    check_cancels("a", 1, false, "a");
    check_cancels("ab", 1, false, "a");
    check_cancels("b", 1, false, "a");
    check_cancels("b", 2, false, "ab");
    check_cancels("cba", 2, false, "ab");
    check_cancels("abc", 3, false, "abc");
}

TASK_TEST(a_cancelled_group_of_waiters_leaves_a_free_lock)
{
    waiter waiters[] = {WAITER("a"), WAITER("b"), WAITER("c")};
    conc_group g = {0};
    ARRIVE(&g, waiters);
    conc_group_cancel(&g);
    conc_cond_notify(&cond, 2);
    finish(&g);
    for (size_t i = 0; i < CONC_LEN(waiters); i++)
        CHECK_INT(waiters[i].waited, -ECANCELED);
    CHECK_TIME(0);
}

/* ---- time limits ---- */

TASK_TEST(a_wait_that_timed_out_has_its_lock_again)
{
    waiter waiters[] = {WAITER("a", .timeout = 2), WAITER("b", .timeout = 5), WAITER("c")};
    conc_group g = {0};
    ARRIVE(&g, waiters);
    CHECK_INT(conc_sleep(3), 0);
    notify_locked(&cond, 1); /* for b, because a is gone */
    CHECK_INT(waiters[0].waited, -ETIMEDOUT);
    CHECK(waiters[0].at == 2);
    CHECK_INT(waiters[1].waited, 0);
    CHECK_WAITING(waiters, 1);
    finish(&g);
}

TASK_TEST(a_wait_that_timed_out_waits_for_its_lock_even_if_that_makes_it_late)
{
    waiter w = WAITER("w", .timeout = 2);
    conc_group g = {0};
    arrive(&g, &w, 1);
    take();
    CHECK_INT(conc_sleep(7), 0);
    CHECK_INT(w.waited, WAITING);
    conc_cond_notify_all(&cond); /* too late */
    give();
    finish(&g);
    CHECK_INT(w.waited, -ETIMEDOUT);
    CHECK(w.at == 7);
}

TASK_TEST(a_wait_that_was_notified_in_time_succeeds_even_if_its_lock_comes_late)
{
    waiter w = WAITER("w", .timeout = 2);
    conc_group g = {0};
    arrive(&g, &w, 1);
    take();
    CHECK_INT(conc_sleep(1), 0);
    conc_cond_notify_all(&cond);
    CHECK_INT(conc_sleep(6), 0);
    CHECK_INT(w.waited, WAITING);
    give();
    finish(&g);
    CHECK_INT(w.waited, 0);
    CHECK(w.at == 7);
}

TASK_TEST(the_first_of_a_notify_and_a_time_limit_decides)
{
    for (int notify_first = 0; notify_first < 2; notify_first++) {
        waiter waiters[] = {WAITER("a", .timeout = 2), WAITER("b")};
        conc_group g = {0};
        ARRIVE(&g, waiters);
        if (!notify_first)
            CHECK_INT(conc_block(3), 0);
        conc_cond_notify(&cond, 1);
        if (notify_first)
            CHECK_INT(conc_block(3), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(waiters[0].waited, notify_first ? 0 : -ETIMEDOUT);
        CHECK_INT(waiters[1].waited, notify_first ? WAITING : 0);
        finish(&g);
    }
}

/* ---- a store of items ---- */

typedef struct store {
    int items, put, taken, given_up, consumers;
} store;

static int waits_for_an_item(void *arg)
{
    store *s = arg;
    while (s->items == 0)
        CONC_TRY(conc_cond_wait(&cond, &lock));
    s->items--;
    s->taken++;
    return 0;
}

static int consumes(void *arg)
{
    store *s = arg;
    take();
    int rc = conc_timeout(conc_random(0.5, 8), waits_for_an_item, s);
    CHECK(rc == 0 || rc == -ETIMEDOUT || rc == -ECANCELED);
    CHECK(mine());
    s->given_up += rc != 0;
    s->consumers--;
    give();
    return 0;
}

static int produces(void *arg)
{
    store *s = arg;
    for (int i = 0; i < 100; i++) {
        CONC_TRY(conc_sleep(conc_random(0, 0.1)));
        take();
        s->items++;
        s->put++;
        conc_cond_notify(&cond, 1);
        if (i % 3 == 0)
            CONC_TRY(conc_sleep(conc_random(0, 0.1)));
        give();
    }
    return 0;
}

static int cancels_some(void *arg)
{
    conc_task *tasks = arg;
    for (int i = 0; i < 300; i += 5) {
        CONC_TRY(conc_sleep(conc_random(0, 0.1)));
        (void)conc_cancel(&tasks[i]);
    }
    return 0;
}

TASK_TEST(no_item_is_left_while_a_task_waits_for_one)
{
    static conc_task tasks[300];
    store s = {.consumers = 300};
    conc_group g = {.stack_size = 65536};
    for (int i = 0; i < 300; i++)
        CHECK_INT(conc_spawn_task(&g, &tasks[i], consumes, &s), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn(&g, produces, &s), 0);
    CHECK_INT(conc_spawn(&g, produces, &s), 0);
    CHECK_INT(conc_spawn(&g, cancels_some, tasks), 0);
    for (int i = 0; i < 1000 && s.consumers > 0; i++) {
        CHECK_INT(conc_sleep(0.01), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(s.items == 0 || s.consumers == 0 || conc_lock_owner(&lock) != NULL);
    }
    finish(&g);
    CHECK_INT(s.put, 200);
    CHECK_INT(s.taken + s.items, s.put);
    CHECK_INT(s.taken + s.given_up, 300);
    CHECK(s.taken > 50 && s.given_up > 50);
}

/* ---- misuse, outside of tasks, and in other loops ---- */

static int waits_without_the_lock(void *arg)
{
    (void)arg;
    conc_task *owner = conc_lock_owner(&lock);
    CHECK_INT(conc_cond_wait(&cond, &lock), -EPERM);
    CHECK(conc_lock_owner(&lock) == owner);
    note("refused");
    return 0;
}

static void is_refused_the_wait(void *arg) { CHECK_INT(waits_without_the_lock(arg), 0); }

TASK_TEST(only_the_owner_of_the_lock_may_wait)
{
    conc_group g = {0};
    CHECK_INT(waits_without_the_lock(NULL), 0);
    take();
    CHECK_INT(conc_spawn(&g, waits_without_the_lock, NULL), 0);
    CHECK_INT(conc_post(conc_loop_self(), is_refused_the_wait, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    give();
    finish(&g);
    CHECK_STR(noted, "refused refused refused");
}

TASK_TEST(a_null_condition_or_lock_is_refused)
{
    take();
    CHECK_INT(conc_cond_wait(NULL, &lock), -EINVAL);
    CHECK_INT(conc_cond_wait(&cond, NULL), -EINVAL);
    CHECK(mine());
    give();
    conc_cond_notify(NULL, 1);
    conc_cond_notify_all(NULL);
}

static void notifies_one(void *arg) { conc_cond_notify(arg, 1); }

TASK_TEST(a_posted_function_may_notify)
{
    waiter waiters[] = {WAITER("a"), WAITER("b")};
    conc_group g = {0};
    ARRIVE(&g, waiters);
    CHECK_INT(conc_post(conc_loop_self(), notifies_one, &cond), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "a");
    finish(&g);
}

static void waits_in_turn(void)
{
    waiter waiters[] = {WAITER("a"), WAITER("b")};
    conc_group g = {0};
    ARRIVE(&g, waiters);
    finish(&g);
}

TEST(a_condition_works_in_one_run_after_another)
{
    for (int i = 0; i < 3; i++) {
        conc_cond_notify(&cond, 1);
        conc_cond_notify_all(&cond);
        CHECK_INT(waits_without_the_lock(NULL), 0);
        noted[0] = 0;
        test_in_task(waits_in_turn);
        CHECK_STR(noted, "a b");
    }
}

static int notifies_from_elsewhere(void *arg)
{
    (void)arg;
    conc_cond_notify(&cond, 1);
    conc_cond_notify_all(&cond);
    return 0;
}

static void *runs_elsewhere(void *arg)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, notifies_from_elsewhere, arg), 0);
    return NULL;
}

TASK_TEST(a_notify_from_another_loop_does_nothing)
{
    waiter waiters[] = {WAITER("a"), WAITER("b")};
    pthread_t thread;
    conc_group g = {0};
    ARRIVE(&g, waiters);
    CHECK_INT(pthread_create(&thread, NULL, runs_elsewhere, NULL), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_WAITING(waiters, 2);
    finish(&g);
    CHECK_STR(noted, "a b");
}

/* ---- deadlock ---- */

static int waits_in_vain(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "the patient one");
    take();
    int rc = waits_once(&(waiter){0});
    CHECK_INT(rc, -ECANCELED);
    give();
    return rc;
}

static int waits_for_nobody(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&g, waits_in_vain, arg), 0);
    return conc_group_wait(&g);
}

static void run_into_deadlock(void)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, waits_for_nobody, NULL), -EDEADLK);
    CHECK(conc_lock_owner(&lock) == NULL);
}

TEST(a_wait_for_an_impossible_notify_is_reported_and_unwinds_with_the_lock)
{
    static char report[16384];
    CHECK_INT(test_in_process(run_into_deadlock, report, sizeof report), 0);
    CHECK_CONTAINS(report, "deadlock");
    CHECK_CONTAINS(report, "the patient one: waits for a condition");
}
