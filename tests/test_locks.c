/* test_locks.c - conc_lock and CONC_LOCKED: one owner at a time, in FIFO order, whatever is
 * cancelled meanwhile, and reports of a lock that stays held.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <pthread.h>

enum { WAITING = 1 }; /* no call returns it */

/* A task that acquires the lock, holds it, and releases it. */
typedef struct user {
    conc_lock *lock;
    const char *name;
    double keeps;   /* seconds */
    double timeout; /* time limit of its acquire; 0: none */
    int rounds;     /* how many times; 0: once */
    int acquired;   /* result of its last acquire */
    int next;       /* result of its next checkpoint */
    double at;      /* when it continued */
    conc_task task;
} user;

/* clang-format off */
#define USER(l, n, ...) {.lock = (l), .name = (n), .keeps = __VA_ARGS__}
/* clang-format on */

static int acquires(void *arg)
{
    user *u = arg;
    CONC_TRY(conc_lock_acquire(u->lock));
    return 0;
}

static int uses(void *arg)
{
    user *u = arg;
    u->acquired = WAITING;
    for (int i = 0; i <= u->rounds - (u->rounds > 0); i++) {
        u->acquired = conc_timeout(u->timeout > 0 ? u->timeout : CONC_FOREVER, acquires, u);
        u->at = conc_now();
        CHECK((u->acquired == 0) == (conc_lock_owner(u->lock) == conc_self()));
        if (u->acquired < 0)
            return 0;
        note(u->name);
        u->next = conc_sleep(u->keeps);
        CHECK(conc_lock_owner(u->lock) == conc_self());
        CHECK_INT(conc_lock_release(u->lock), 0);
        CHECK(conc_lock_owner(u->lock) != conc_self());
    }
    return 0;
}

/* Spawns the users one by one and lets each run until it waits: that fixes their order. */
static void arrive(conc_group *g, user *users, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        CHECK_INT(conc_spawn_task(g, &users[i].task, uses, &users[i]), 0);
        CHECK_INT(conc_settle(), 0);
    }
}

#define ARRIVE(g, users) arrive((g), (users), CONC_LEN(users))

static void check_free(conc_lock *l)
{
    CHECK(conc_lock_owner(l) == NULL);
    CHECK_INT(conc_lock_try_acquire(l), 0);
    CHECK_INT(conc_lock_release(l), 0);
    CHECK(conc_lock_owner(l) == NULL);
}

static uint64_t switches(void)
{
    conc_stats s;
    conc_get_stats(&s);
    return s.switches;
}

/* ---- acquiring and releasing ---- */

TASK_TEST(a_zeroed_lock_is_free_is_acquired_and_is_free_again)
{
    conc_lock l = {0};
    CHECK(conc_lock_owner(&l) == NULL);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_lock_acquire(&l), 0);
        CHECK(conc_lock_owner(&l) == conc_self());
        CHECK_INT(conc_lock_release(&l), 0);
        check_free(&l);
    }
    CHECK_TIME(0);
}

TASK_TEST(an_owner_cannot_acquire_its_lock_again)
{
    conc_lock l = {0};
    for (int i = 0; i < 2; i++) {
        CHECK_INT(i ? conc_lock_acquire(&l) : conc_lock_try_acquire(&l), 0);
        CHECK_INT(conc_lock_acquire(&l), -EDEADLK);
        CHECK_INT(conc_lock_try_acquire(&l), -EDEADLK);
        CHECK(conc_lock_owner(&l) == conc_self());
        CHECK_INT(conc_lock_release(&l), 0);
        CHECK_INT(conc_lock_release(&l), -EPERM);
    }
    check_free(&l);
}

static int meddles(void *arg)
{
    conc_task *owner = conc_lock_owner(arg);
    CHECK_INT(conc_lock_release(arg), -EPERM);
    CHECK_INT(conc_lock_try_acquire(arg), -EAGAIN);
    CHECK(conc_lock_owner(arg) == owner);
    return 0;
}

TASK_TEST(only_its_owner_releases_a_lock)
{
    conc_lock l = {0};
    conc_group g = {0};
    CHECK_INT(conc_lock_release(&l), -EPERM);
    CHECK_INT(conc_lock_acquire(&l), 0);
    CHECK_INT(conc_spawn(&g, meddles, &l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(conc_lock_owner(&l) == conc_self());
    CHECK_INT(conc_lock_release(&l), 0);
    check_free(&l);
}

TASK_TEST(a_null_lock_is_refused)
{
    CHECK_INT(conc_lock_acquire(NULL), -EINVAL);
    CHECK_INT(conc_lock_try_acquire(NULL), -EINVAL);
    CHECK_INT(conc_lock_release(NULL), -EINVAL);
    CHECK(conc_lock_owner(NULL) == NULL);
}

TASK_TEST(calls_that_need_not_wait_do_not_switch)
{
    conc_lock l = {0};
    user other = USER(&l, "other", 0);
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &other.task, uses, &other), 0);
    uint64_t before = switches();
    for (int i = 0; i < 10; i++) {
        CHECK_INT(conc_lock_acquire(&l), 0);
        CHECK_INT(conc_lock_release(&l), 0);
        CHECK_INT(conc_lock_try_acquire(&l), 0);
        CHECK_INT(conc_lock_release(&l), 0);
    }
    CHECK_INT(switches(), before);
    CHECK_STR(noted, "");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "other");
}

static int takes_again_and_again(void *arg)
{
    for (int i = 0; i < 1000; i++) {
        CONC_TRY(conc_lock_acquire(arg));
        CHECK_INT(conc_lock_release(arg), 0);
    }
    note("done");
    return 0;
}

static int notes_neighbour(void *arg)
{
    (void)arg;
    note("neighbour");
    return 0;
}

ORDERED_TASK_TEST(a_task_that_keeps_acquiring_a_free_lock_lets_others_run)
{
    conc_lock l = {0};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, takes_again_and_again, &l), 0);
    CHECK_INT(conc_spawn(&g, notes_neighbour, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "neighbour done");
}

/* ---- order ---- */

TASK_TEST(waiters_get_the_lock_in_fifo_order)
{
    conc_lock l = {0};
    user users[] = {USER(&l, "a", 1), USER(&l, "b", 2), USER(&l, "c", 3), USER(&l, "d", 0)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a b c d");
    CHECK(users[0].at == 0 && users[1].at == 1 && users[2].at == 3 && users[3].at == 6);
    check_free(&l);
}

TASK_TEST(one_release_wakes_one_waiter)
{
    conc_lock l = {0};
    user users[] = {USER(&l, "a", 10), USER(&l, "b", 10), USER(&l, "c", 10)};
    conc_group g = {0};
    CHECK_INT(conc_lock_acquire(&l), 0);
    ARRIVE(&g, users);
    CHECK_STR(noted, "");
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "a");
    CHECK_INT(users[1].acquired + users[2].acquired, 2 * WAITING);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(30);
}

TASK_TEST(a_task_that_asks_again_is_behind_the_waiters)
{
    conc_lock l = {0};
    user users[] = {USER(&l, "a", 0, .rounds = 5), USER(&l, "b", 0, .rounds = 5),
                    USER(&l, "c", 0, .rounds = 5)};
    conc_group g = {0};
    CHECK_INT(conc_lock_acquire(&l), 0);
    ARRIVE(&g, users);
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a b c a b c a b c a b c a b c");
}

typedef struct room {
    conc_lock lock;
    int inside, entered;
} room;

static int enters_ten_times(void *arg)
{
    room *r = arg;
    for (int i = 0; i < 10; i++) {
        CONC_TRY(conc_lock_acquire(&r->lock));
        CHECK_INT(r->inside++, 0);
        CONC_TRY(conc_yield());
        CONC_TRY(conc_yield());
        CHECK_INT(r->inside--, 1);
        r->entered++;
        CHECK_INT(conc_lock_release(&r->lock), 0);
    }
    return 0;
}

TASK_TEST(two_tasks_are_never_inside)
{
    room r = {0};
    conc_group g = {0};
    for (int i = 0; i < 5; i++)
        CHECK_INT(conc_spawn(&g, enters_ten_times, &r), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(r.entered, 50);
    check_free(&r.lock);
}

TASK_TEST(a_release_hands_the_lock_over_at_once)
{
    conc_lock l = {0};
    user b = USER(&l, "b", 5);
    conc_group g = {0};
    CHECK_INT(conc_lock_acquire(&l), 0);
    arrive(&g, &b, 1);
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK(conc_lock_owner(&l) == &b.task);
    CHECK_INT(b.acquired, WAITING); /* it has not run yet, but owns the lock */
    CHECK_INT(conc_lock_try_acquire(&l), -EAGAIN);
    CHECK_INT(conc_lock_release(&l), -EPERM);
    CHECK_INT(conc_lock_acquire(&l), 0); /* behind b */
    CHECK_TIME(5);
    CHECK_STR(noted, "b");
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_free(&l);
}

static int uses_and_frees(void *arg)
{
    CONC_TRY(conc_lock_acquire(arg));
    CHECK_INT(conc_lock_release(arg), 0);
    free(arg);
    return 0;
}

TASK_TEST(the_last_owner_may_free_the_lock)
{
    conc_lock *l = calloc(1, sizeof *l);
    conc_group g = {0};
    CHECK(l != NULL);
    CHECK_INT(conc_lock_acquire(l), 0);
    CHECK_INT(conc_spawn(&g, uses_and_frees, l), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_lock_release(l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- cancels and time limits ---- */

TASK_TEST(a_cancel_after_the_hand_over_leaves_the_lock_with_its_owner)
{
    conc_lock l = {0};
    user users[] = {USER(&l, "b", 5), USER(&l, "c", 1)};
    conc_group g = {0};
    CHECK_INT(conc_lock_acquire(&l), 0);
    ARRIVE(&g, users);
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK_INT(conc_cancel(&users[0].task), 0);
    CHECK(conc_lock_owner(&l) == &users[0].task);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[0].acquired, 0);
    CHECK_INT(users[0].next, -ECANCELED);
    CHECK_INT(users[1].acquired, 0);
    CHECK_INT(users[1].next, 0);
    CHECK_STR(noted, "b c");
    CHECK_TIME(1); /* b did not sleep */
    check_free(&l);
}

TASK_TEST(a_cancelled_waiter_is_passed_over)
{
    conc_lock l = {0};
    user users[] = {USER(&l, "b", 1), USER(&l, "c", 1), USER(&l, "d", 1)};
    conc_group g = {0};
    CHECK_INT(conc_lock_acquire(&l), 0);
    ARRIVE(&g, users);
    CHECK_INT(conc_cancel(&users[0].task), 0);
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK(conc_lock_owner(&l) == &users[1].task);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[0].acquired, -ECANCELED);
    CHECK_STR(noted, "c d");
    check_free(&l);
}

/* Cancels some of five waiters in this order; the others then get the lock in theirs. */
static void check_cancels(const char *cancelled, const char *expected)
{
    conc_lock l = {0};
    user users[] = {USER(&l, "a", 0), USER(&l, "b", 0), USER(&l, "c", 0), USER(&l, "d", 0),
                    USER(&l, "e", 0)};
    conc_group g = {0};
    noted[0] = 0;
    CHECK_INT(conc_lock_acquire(&l), 0);
    ARRIVE(&g, users);
    for (const char *c = cancelled; *c; c++) {
        CHECK_INT(conc_cancel(&users[*c - 'a'].task), 0);
        CHECK_INT(conc_cancel(&users[*c - 'a'].task), 0);
    }
    CHECK_INT(conc_settle(), 0);
    CHECK(conc_lock_owner(&l) == conc_self());
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, expected);
    for (size_t i = 0; i < CONC_LEN(users); i++)
        CHECK_INT(users[i].acquired, strchr(cancelled, users[i].name[0]) ? -ECANCELED : 0);
    check_free(&l);
}

TASK_TEST(any_waiters_may_be_cancelled_while_the_lock_stays_held)
{
    static const struct {
        const char *cancelled, *left;
    } rows[] = {{"a", "b c d e"}, {"c", "a b d e"}, {"e", "a b c d"}, {"ab", "c d e"},
                {"ba", "c d e"},  {"ed", "a b c"},  {"bd", "a c e"},  {"aec", "b d"},
                {"bcd", "a e"},   {"cadbe", ""}};
    for (size_t i = 0; i < CONC_LEN(rows); i++)
        check_cancels(rows[i].cancelled, rows[i].left);
}

TASK_TEST(a_waiter_that_timed_out_leaves_and_the_others_keep_their_order)
{
    conc_lock l = {0};
    user users[] = {USER(&l, "a", 10), USER(&l, "b", 1, .timeout = 3), USER(&l, "c", 1),
                    USER(&l, "d", 1, .timeout = 11.5)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[1].acquired, -ETIMEDOUT);
    CHECK(users[1].at == 3);
    CHECK_STR(noted, "a c d");
    CHECK_TIME(12);
    check_free(&l);
}

TASK_TEST(the_first_of_a_release_and_a_time_limit_decides)
{
    for (int release_first = 0; release_first < 2; release_first++) {
        conc_lock l = {0};
        user users[] = {USER(&l, "b", 1, .timeout = 3), USER(&l, "c", 1)};
        conc_group g = {0};
        noted[0] = 0;
        CHECK_INT(conc_lock_acquire(&l), 0);
        ARRIVE(&g, users);
        if (!release_first)
            CHECK_INT(conc_block(4), 0);
        CHECK_INT(conc_lock_release(&l), 0);
        if (release_first)
            CHECK_INT(conc_block(4), 0);
        CHECK(conc_lock_owner(&l) == &users[release_first ? 0 : 1].task);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(users[0].acquired, release_first ? 0 : -ETIMEDOUT);
        CHECK_STR(noted, release_first ? "b c" : "c");
        check_free(&l);
    }
}

TASK_TEST(in_a_cancelled_scope_not_even_a_free_lock_is_acquired)
{
    conc_lock l = {0};
    conc_scope s = {0}, shield = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_lock_acquire(&l), -ECANCELED);
    CHECK(conc_lock_owner(&l) == NULL);
    CHECK_INT(conc_lock_try_acquire(&l), 0); /* no checkpoint, and neither is the release */
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK_INT(conc_scope_begin(&shield, CONC_FOREVER), 0);
    conc_scope_shield(&shield, true);
    CHECK_INT(conc_lock_acquire(&l), 0);
    CHECK(conc_lock_owner(&l) == conc_self());
    CHECK_INT(conc_scope_end(&shield, 0), 0);
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    check_free(&l);
}

static int sleeps_with_the_lock(void *arg)
{
    CONC_TRY(conc_lock_acquire(arg));
    int rc = conc_sleep(100);
    CHECK_INT(conc_lock_release(arg), 0);
    return rc;
}

static int sleeps_with_the_lock_for_two_seconds(void *arg)
{
    return conc_timeout(2, sleeps_with_the_lock, arg);
}

TASK_TEST(an_owner_that_timed_out_releases_while_unwinding)
{
    conc_lock l = {0};
    int rc = 0;
    user next = USER(&l, "next", 1);
    conc_task t;
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &t, sleeps_with_the_lock_for_two_seconds, &l), 0);
    CHECK_INT(conc_settle(), 0);
    arrive(&g, &next, 1);
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_INT(rc, -ETIMEDOUT);
    CHECK_INT(conc_group_wait(&g), -ETIMEDOUT);
    CHECK_INT(next.acquired, 0);
    CHECK(next.at == 2);
    check_free(&l);
}

TASK_TEST(a_cancelled_group_leaves_a_free_lock)
{
    conc_lock l = {0};
    user users[] = {USER(&l, "a", 10), USER(&l, "b", 10), USER(&l, "c", 10)};
    conc_group g = {0};
    ARRIVE(&g, users);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[0].next, -ECANCELED);
    CHECK_INT(users[1].acquired, -ECANCELED);
    CHECK_INT(users[2].acquired, -ECANCELED);
    CHECK_TIME(0);
    check_free(&l);
}

static int uses_as_it_comes(void *arg)
{
    room *r = arg;
    conc_scope s = {0};
    CHECK_INT(conc_sleep(conc_random(0, 10)), 0);
    CHECK_INT(conc_scope_begin(&s, conc_random(0, 10)), 0);
    int rc = conc_lock_acquire(&r->lock);
    CHECK((rc == 0) == (conc_lock_owner(&r->lock) == conc_self()));
    if (rc == 0) {
        CHECK_INT(r->inside++, 0);
        rc = conc_sleep(conc_random(0, 0.1));
        CHECK_INT(r->inside--, 1);
        r->entered++;
        CHECK_INT(conc_lock_release(&r->lock), 0);
    }
    rc = conc_scope_end(&s, rc);
    CHECK(rc == 0 || rc == -ETIMEDOUT);
    return 0;
}

TASK_TEST(a_lock_survives_a_thousand_users_with_time_limits)
{
    room r = {0};
    conc_group g = {.stack_size = 65536};
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_spawn(&g, uses_as_it_comes, &r), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(r.entered > 100 && r.entered < 1000);
    check_free(&r.lock);
}

/* ---- CONC_LOCKED ---- */

static conc_lock locked, inner;

static bool held(const conc_lock *l) { return conc_lock_owner(l) == conc_self(); }

static int leaves_at_the_end(void)
{
    CONC_LOCKED(&locked) {
        CHECK(held(&locked));
        note("inside");
    }
    CHECK(!held(&locked));
    return 0;
}

static int leaves_by_return(void)
{
    CONC_LOCKED(&locked) {
        note("inside");
        return held(&locked);
    }
    return -EIO;
}

static int leaves_by_break(void)
{
    CONC_LOCKED(&locked) {
        note("inside");
        if (held(&locked))
            break;
        note("beyond");
    }
    CHECK(!held(&locked));
    return 2;
}

static int leaves_by_continue(void)
{
    CONC_LOCKED(&locked) {
        note("inside");
        if (held(&locked))
            continue; /* the block runs once, so this is the same as break */
        note("beyond");
    }
    CHECK(!held(&locked));
    return 3;
}

static int leaves_by_goto(void)
{
    CONC_LOCKED(&locked) {
        note("inside");
        goto out;
    }
    return -EIO;
out:
    CHECK(!held(&locked));
    return 4;
}

static int leaves_by_try(void)
{
    CONC_LOCKED(&locked) {
        note("inside");
        CONC_TRY(held(&locked) ? -ENOENT : -EIO);
    }
    return -EIO;
}

static int nests(void)
{
    CONC_LOCKED(&locked) {
        CONC_LOCKED(&inner) {
            CHECK(held(&locked) && held(&inner));
            note("inside");
        }
        CHECK(held(&locked) && !held(&inner));
    }
    CONC_LOCKED(&inner)
        CHECK(!held(&locked) && held(&inner));
    return 5;
}

static int nests_and_returns(void)
{
    CONC_LOCKED(&locked) {
        CONC_LOCKED(&inner) {
            note("inside");
            return 6;
        }
    }
    return -EIO;
}

static int nests_the_same(void)
{
    CONC_LOCKED(&locked) {
        note("inside");
        CONC_LOCKED(&locked) {
            note("beyond");
        }
        note("beyond");
    }
    return -EIO;
}

static int repeats(void)
{
    int i = 0;
    for (; i < 3; i++) {
        CONC_LOCKED(&locked) {
            if (i == 0)
                note("inside");
        }
        CHECK(!held(&locked));
    }
    return i + 4;
}

TASK_TEST(a_locked_block_is_left_with_the_lock_released_however_that_happens)
{
    static const struct {
        int (*fn)(void);
        int rc;
    } rows[] = {{leaves_at_the_end, 0},
                {leaves_by_return, 1},
                {leaves_by_break, 2},
                {leaves_by_continue, 3},
                {leaves_by_goto, 4},
                {leaves_by_try, -ENOENT},
                {nests, 5},
                {nests_and_returns, 6},
                {repeats, 7},
                {nests_the_same, -EDEADLK}};
    for (size_t i = 0; i < CONC_LEN(rows); i++) {
        noted[0] = 0;
        CHECK_INT(rows[i].fn(), rows[i].rc);
        CHECK_STR(noted, "inside");
        check_free(&locked);
        check_free(&inner);
    }
}

static int enters_no_lock(void)
{
    CONC_LOCKED(NULL) {
        note("beyond");
    }
    return 0;
}

TASK_TEST(a_locked_block_that_does_not_get_its_lock_returns_the_error)
{
    conc_scope s = {0};
    CHECK_INT(enters_no_lock(), -EINVAL);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(leaves_by_return(), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(conc_lock_acquire(&locked), 0);
    CHECK_INT(leaves_by_return(), -EDEADLK);
    CHECK(held(&locked)); /* unchanged: the block had not acquired it */
    CHECK_INT(conc_lock_release(&locked), 0);
    CHECK_STR(noted, "");
    check_free(&locked);
}

static int sleeps_in_a_locked_block(void *arg)
{
    CONC_LOCKED(&locked) {
        note(arg);
        CONC_TRY(conc_sleep(1));
        note(arg);
    }
    return 0;
}

TASK_TEST(locked_blocks_wait_for_each_other)
{
    static char names[][2] = {"a", "b", "c"};
    conc_group g = {0};
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_spawn(&g, sleeps_in_a_locked_block, names[i]), 0);
        CHECK_INT(conc_settle(), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a a b b c c");
    CHECK_TIME(3);
}

TASK_TEST(a_cancel_inside_a_locked_block_releases_the_lock)
{
    conc_task t;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, sleeps_in_a_locked_block, "a"), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(conc_lock_owner(&locked) == &t);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a");
    check_free(&locked);
}

/* ---- outside tasks, and in other loops ---- */

static void check_refused(void *arg)
{
    conc_task *owner = conc_lock_owner(arg);
    CHECK_INT(conc_lock_acquire(arg), -EPERM);
    CHECK_INT(conc_lock_try_acquire(arg), -EPERM);
    CHECK_INT(conc_lock_release(arg), -EPERM);
    CHECK(conc_lock_owner(arg) == owner);
    note("refused");
}

TEST(outside_a_task_a_lock_cannot_be_owned)
{
    conc_lock l = {0};
    check_refused(&l);
}

TASK_TEST(a_posted_function_can_neither_own_nor_release_a_lock)
{
    conc_lock l = {0};
    CHECK_INT(conc_post(conc_loop_self(), check_refused, &l), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_lock_acquire(&l), 0);
    CHECK_INT(conc_post(conc_loop_self(), check_refused, &l), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "refused refused");
    CHECK_INT(conc_lock_release(&l), 0);
    check_free(&l);
}

static void uses_it_in_turns(void)
{
    user users[] = {USER(&locked, "a", 1), USER(&locked, "b", 1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_group_wait(&g), 0);
    check_free(&locked);
}

TEST(a_lock_works_in_one_run_after_another)
{
    for (int i = 0; i < 3; i++) {
        CHECK(conc_lock_owner(&locked) == NULL);
        test_in_task(uses_it_in_turns);
    }
    CHECK(conc_lock_owner(&locked) == NULL);
    CHECK_STR(noted, "a b a b a b");
}

static int meddles_from_elsewhere(void *arg)
{
    conc_task *owner = conc_lock_owner(arg);
    CHECK_INT(conc_lock_acquire(arg), -EPERM);
    CHECK(conc_lock_try_acquire(arg) < 0);
    CHECK_INT(conc_lock_release(arg), -EPERM);
    CHECK(conc_lock_owner(arg) == owner);
    return 0;
}

static void *runs_elsewhere(void *arg)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, meddles_from_elsewhere, arg), 0);
    return NULL;
}

TASK_TEST(another_loop_cannot_use_a_lock_that_a_loop_waits_for)
{
    conc_lock l = {0};
    user b = USER(&l, "b", 1);
    pthread_t thread;
    conc_group g = {0};
    CHECK_INT(conc_lock_acquire(&l), 0);
    arrive(&g, &b, 1);
    CHECK_INT(pthread_create(&thread, NULL, runs_elsewhere, &l), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "b");
    check_free(&l);
}

/* ---- reports ---- */

static char report[16384];

static struct {
    conc_fn *fn;
    bool debug;
    int rc;
} reported;

static void run_reported(void)
{
    conc_options o = {.virtual_clock = true, .debug = reported.debug, .slow_step = 1000};
    CHECK_INT(conc_run_with(&o, reported.fn, NULL), reported.rc);
}

/* Runs fn, which must return rc, in its own process; stores its stderr in report. */
static void run_for_report(conc_fn *fn, bool debug, int rc)
{
    reported.fn = fn, reported.debug = debug, reported.rc = rc;
    int status = test_in_process(run_reported, report, sizeof report);
    if (status)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, report);
    /* debug mode's last report is not about locks */
    char *stacks = strstr(report, "conc: stacks: ");
    if (stacks)
        *stacks = 0;
}

/* Checks that the report has a line with both words and the location in this file. */
static void check_line(const char *who, const char *what, int place)
{
    char at[256];
    snprintf(at, sizeof at, "%s:%d", TEST_FILE, place);
    for (char *line = report, *end; *line; line = end + (*end == '\n')) {
        end = line + strcspn(line, "\n");
        char *text = strndup(line, (size_t)(end - line));
        bool found = strstr(text, who) && strstr(text, what) && strstr(text, at);
        free(text);
        if (found)
            return;
    }
    test_fail(__FILE__, __LINE__, "no line with %s, %s and %s:\n%s", who, what, at, report);
}

static conc_lock forks[2];
static int grabs[2]; /* results of each philosopher's second acquire */

enum { LINE_OF_THE_FIRST_FORK = __LINE__ + 6 };

static int eats(void *arg)
{
    int i = *(int *)arg;
    conc_set_name(conc_self(), i ? "Kant" : "Plato");
    CONC_TRY(conc_lock_acquire(&forks[i]));
    CONC_TRY(conc_sleep(1));
    grabs[i] = conc_lock_acquire(&forks[!i]);
    CHECK_INT(conc_lock_release(&forks[i]), 0);
    return grabs[i];
}

static int dines(void *arg)
{
    (void)arg;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, eats, &(int){0}), 0);
    CHECK_INT(conc_spawn(&g, eats, &(int){1}), 0);
    int rc = conc_group_wait(&g);
    CHECK_INT(grabs[0], -ECANCELED);
    CHECK_INT(grabs[1], -ECANCELED);
    check_free(&forks[0]);
    check_free(&forks[1]);
    return rc;
}

TEST(a_deadlock_is_reported_with_the_locks_owners_and_where_they_acquired_them)
{
    run_for_report(dines, false, -EDEADLK);
    CHECK_CONTAINS(report, "deadlock");
    check_line("Plato: ", "lock that Kant", LINE_OF_THE_FIRST_FORK);
    check_line("Kant: ", "lock that Plato", LINE_OF_THE_FIRST_FORK);
}

static int hoards(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "the hoarder");
    CHECK_INT(conc_lock_acquire(&locked), 0);
    CHECK_INT(conc_lock_try_acquire(&inner), 0);
    return 0;
}

enum { LINE_OF_THE_HOARD = __LINE__ - 5 };

static conc_task hoarder;

static int loses_two_locks(void *arg)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &hoarder, hoards, arg), 0);
    return conc_group_wait(&g);
}

TEST(debug_mode_reports_each_lock_that_a_task_ended_with)
{
    run_for_report(loses_two_locks, true, 0);
    check_line("the hoarder", "lock", LINE_OF_THE_HOARD);
    check_line("the hoarder", "lock", LINE_OF_THE_HOARD + 1);
}

TEST(a_lock_that_a_task_ended_with_is_reported_in_debug_mode_only)
{
    if (getenv("CONC_DEBUG"))
        return;
    run_for_report(loses_two_locks, false, 0);
    CHECK_STR(report, "");
}

static int waits_in_vain(void *arg)
{
    conc_group g = {0};
    CHECK_INT(loses_two_locks(arg), 0);
    CHECK_INT(conc_spawn(&g, sleeps_in_a_locked_block, "never"), 0);
    return conc_group_wait(&g);
}

TEST(a_deadlock_for_the_lock_of_an_ended_task_is_reported_with_the_location)
{
    run_for_report(waits_in_vain, false, -EDEADLK);
    check_line("sleeps_in_a_locked_block", "lock", LINE_OF_THE_HOARD);
}

static int finds_it_taken(void *arg)
{
    CHECK(conc_lock_owner(arg) != conc_self());
    CHECK_INT(conc_lock_try_acquire(arg), -EAGAIN);
    CHECK_INT(conc_lock_release(arg), -EPERM);
    return 0;
}

TASK_TEST(a_lock_that_a_task_ended_with_is_not_the_next_ones_with_the_same_handle)
{
    for (int i = 0; i < 2; i++) {
        conc_group g = {0};
        CHECK_INT(conc_spawn_task(&g, &hoarder, i ? finds_it_taken : hoards, &locked), 0);
        CHECK_INT(conc_group_wait(&g), 0);
    }
}

static int hands_on_and_ends(void *arg)
{
    (void)arg;
    CONC_LOCKED(&locked)
        CONC_TRY(conc_sleep(1));
    CONC_TRY(conc_lock_acquire(&inner));
    return conc_lock_release(&inner);
}

static int passes_locks_on(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&g, hands_on_and_ends, arg), 0);
    CHECK_INT(conc_sleep(1), 0);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

TEST(debug_mode_does_not_report_released_locks)
{
    run_for_report(passes_locks_on, true, 0);
    CHECK_STR(report, "");
}

static int waits_and_hoards(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "the heir");
    CONC_TRY(conc_lock_acquire(&locked));
    return 0;
}

enum { LINE_OF_THE_HEIR = __LINE__ - 4 };

static int bequeaths(void *arg)
{
    conc_group g = {0};
    CHECK_INT(conc_lock_acquire(&locked), 0);
    CHECK_INT(conc_spawn(&g, waits_and_hoards, arg), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_lock_release(&locked), 0);
    return conc_group_wait(&g);
}

TEST(reports_name_the_new_owner_of_a_lock_that_was_handed_over)
{
    run_for_report(bequeaths, true, 0);
    check_line("the heir", "lock", LINE_OF_THE_HEIR);
    CHECK(strstr(report, "main") == NULL);
}

TASK_TEST(a_dump_names_the_owner_of_the_lock_that_a_task_waits_for)
{
    conc_lock l = {0};
    user b = USER(&l, "b", 0);
    conc_group g = {0};
    conc_set_name(conc_self(), "the keeper");
    CHECK_INT(conc_lock_acquire(&l), 0);
    int line = __LINE__ - 1;
    arrive(&g, &b, 1);
    FILE *out = tmpfile();
    CHECK(out != NULL);
    conc_dump(out);
    rewind(out);
    report[fread(report, 1, sizeof report - 1, out)] = 0;
    fclose(out);
    check_line("uses", "lock that the keeper", line);
    CHECK_INT(conc_lock_release(&l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}
