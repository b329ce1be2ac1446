/* test_semaphores.c - conc_sem and CONC_PERMIT: permits go to waiters in FIFO order, none is lost
 * or created, and what ten thousand waiters cost.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 * Seeds: 40 (tens of thousands of waiters)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <limits.h>
#include <pthread.h>

enum { WAITING = 1, MANY = 10000 }; /* no call returns WAITING */

/* A task that acquires a permit, holds it, and releases it. */
typedef struct user {
    conc_sem *sem;
    const char *name;
    double keeps;   /* seconds; negative: forever, without releasing it */
    double timeout; /* time limit of its acquire; 0: none */
    int rounds;     /* how many times; 0: once */
    int acquired;   /* result of its last acquire */
    int next;       /* result of its next checkpoint */
    double at;      /* when it continued */
    conc_task task;
} user;

/* clang-format off */
#define USER(s, n, ...) {.sem = (s), .name = (n), .keeps = __VA_ARGS__}
/* clang-format on */

static int acquires(void *arg)
{
    user *u = arg;
    return conc_sem_acquire(u->sem);
}

static int uses(void *arg)
{
    user *u = arg;
    u->acquired = WAITING;
    for (int i = 0; i <= u->rounds - (u->rounds > 0); i++) {
        u->acquired = conc_timeout(u->timeout > 0 ? u->timeout : CONC_FOREVER, acquires, u);
        u->at = conc_now();
        if (u->acquired < 0)
            return 0;
        note(u->name);
        if (u->keeps < 0)
            return 0;
        u->next = conc_sleep(u->keeps);
        CHECK_INT(conc_sem_release(u->sem), 0);
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

static void release(conc_sem *s, int n)
{
    for (int i = 0; i < n; i++)
        CHECK_INT(conc_sem_release(s), 0);
}

/* Checks the number of free permits, by the field and by acquiring them. */
static void check_permits(conc_sem *s, int n)
{
    CHECK_INT(s->permits, n);
    for (int i = 0; i < n; i++)
        CHECK_INT(conc_sem_try_acquire(s), 0);
    CHECK_INT(conc_sem_try_acquire(s), -EAGAIN);
    CHECK_INT(s->permits, 0);
    release(s, n);
    CHECK_INT(s->permits, n);
}

static conc_stats stats(void)
{
    conc_stats s;
    conc_get_stats(&s);
    return s;
}

/* ---- counting ---- */

TASK_TEST(a_semaphore_counts_its_permits)
{
    conc_sem s = CONC_SEM(3);
    CHECK_INT(s.permits, 3);
    CHECK_INT(s.max, 0);
    CHECK_INT(conc_sem_acquire(&s), 0);
    CHECK_INT(conc_sem_try_acquire(&s), 0);
    CHECK_INT(s.permits, 1);
    CHECK_INT(conc_sem_acquire(&s), 0);
    CHECK_INT(s.permits, 0);
    CHECK_INT(conc_sem_try_acquire(&s), -EAGAIN);
    CHECK_INT(s.permits, 0);
    release(&s, 3);
    check_permits(&s, 3);
    CHECK_TIME(0);
}

TASK_TEST(a_zeroed_semaphore_has_no_permits_and_no_maximum)
{
    conc_sem s = {0}, same = CONC_SEM(0);
    check_permits(&s, 0);
    check_permits(&same, 0);
    release(&s, 1000);
    check_permits(&s, 1000);
}

TASK_TEST(a_task_without_a_permit_may_release_one)
{
    conc_sem s = {0};
    user u = USER(&s, "u", -1);
    conc_group g = {0};
    arrive(&g, &u, 1);
    CHECK_INT(u.acquired, WAITING);
    release(&s, 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(u.acquired, 0);
    check_permits(&s, 0);
}

TASK_TEST(a_release_above_the_maximum_is_refused)
{
    conc_sem s = CONC_SEM(2, .max = 2), empty = CONC_SEM(0, .max = 1);
    CHECK_INT(conc_sem_release(&s), -EOVERFLOW);
    check_permits(&s, 2);
    CHECK_INT(conc_sem_acquire(&s), 0);
    release(&s, 1);
    CHECK_INT(conc_sem_release(&s), -EOVERFLOW);
    check_permits(&s, 2);
    release(&empty, 1);
    CHECK_INT(conc_sem_release(&empty), -EOVERFLOW);
    check_permits(&empty, 1);
}

TASK_TEST(a_permit_that_goes_to_a_waiter_does_not_count_for_the_maximum)
{
    conc_sem s = CONC_SEM(0, .max = 1);
    user users[] = {USER(&s, "a", -1), USER(&s, "b", -1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    release(&s, 3);
    CHECK_INT(conc_sem_release(&s), -EOVERFLOW);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[0].acquired + users[1].acquired, 0);
    check_permits(&s, 1);
}

TASK_TEST(permits_do_not_overflow)
{
    conc_sem s = CONC_SEM(INT_MAX - 1), full = CONC_SEM(INT_MAX, .max = INT_MAX);
    CHECK_INT(conc_sem_release(&s), 0);
    CHECK_INT(s.permits, INT_MAX);
    CHECK_INT(conc_sem_release(&s), -EOVERFLOW);
    CHECK_INT(s.permits, INT_MAX);
    CHECK_INT(conc_sem_release(&full), -EOVERFLOW);
    CHECK_INT(conc_sem_acquire(&full), 0);
    CHECK_INT(full.permits, INT_MAX - 1);
}

TASK_TEST(invalid_semaphores_are_refused)
{
    conc_sem rows[] = {CONC_SEM(-1), CONC_SEM(INT_MIN), CONC_SEM(1, .max = -1),
                       CONC_SEM(3, .max = 2)};
    for (size_t i = 0; i < CONC_LEN(rows); i++) {
        int permits = rows[i].permits;
        CHECK_INT(conc_sem_acquire(&rows[i]), -EINVAL);
        CHECK_INT(conc_sem_try_acquire(&rows[i]), -EINVAL);
        CHECK(conc_sem_release(&rows[i]) < 0);
        CHECK_INT(rows[i].permits, permits);
    }
    CHECK_INT(conc_sem_acquire(NULL), -EINVAL);
    CHECK_INT(conc_sem_try_acquire(NULL), -EINVAL);
    CHECK_INT(conc_sem_release(NULL), -EINVAL);
}

typedef struct crowd {
    conc_sem sem;
    int inside, most, entered, late;
} crowd;

static void enter(crowd *c)
{
    c->inside++;
    c->entered++;
    c->most = c->inside > c->most ? c->inside : c->most;
}

static int enters_for_a_second(void *arg)
{
    crowd *c = arg;
    CONC_TRY(conc_sem_acquire(&c->sem));
    enter(c);
    CONC_TRY(conc_sleep(1));
    c->inside--;
    return conc_sem_release(&c->sem);
}

TASK_TEST(no_more_tasks_are_inside_than_there_are_permits)
{
    crowd c = {.sem = CONC_SEM(3)};
    conc_group g = {0};
    for (int i = 0; i < 10; i++)
        CHECK_INT(conc_spawn(&g, enters_for_a_second, &c), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.most, 3);
    CHECK_INT(c.entered, 10);
    CHECK_TIME(4);
    check_permits(&c.sem, 3);
}

TASK_TEST(calls_that_need_not_wait_do_not_switch)
{
    conc_sem s = CONC_SEM(1);
    user u = USER(&s, "u", 0);
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &u.task, uses, &u), 0);
    uint64_t before = stats().switches;
    for (int i = 0; i < 10; i++) {
        CHECK_INT(conc_sem_acquire(&s), 0);
        release(&s, 1);
    }
    CHECK_INT(stats().switches, before);
    CHECK_STR(noted, "");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "u");
}

/* ---- order ---- */

TASK_TEST(waiters_get_permits_in_fifo_order)
{
    conc_sem s = CONC_SEM(1);
    user users[] = {USER(&s, "a", 1), USER(&s, "b", 2), USER(&s, "c", 3), USER(&s, "d", 0)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a b c d");
    CHECK(users[0].at == 0 && users[1].at == 1 && users[2].at == 3 && users[3].at == 6);
    check_permits(&s, 1);
}

TASK_TEST(a_task_that_asks_again_is_behind_the_waiters)
{
    conc_sem s = {0};
    user users[] = {USER(&s, "a", 0, .rounds = 4), USER(&s, "b", 0, .rounds = 4),
                    USER(&s, "c", 0, .rounds = 4)};
    conc_group g = {0};
    ARRIVE(&g, users);
    release(&s, 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a b c a b c a b c a b c");
    check_permits(&s, 1);
}

TASK_TEST(a_permit_belongs_to_the_waiter_as_soon_as_it_is_released)
{
    conc_sem s = {0};
    user users[] = {USER(&s, "a", -1), USER(&s, "b", -1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    release(&s, 1);
    CHECK_INT(s.permits, 0);
    CHECK_INT(users[0].acquired, WAITING); /* it has not run yet, but owns the permit */
    CHECK_INT(conc_sem_try_acquire(&s), -EAGAIN);
    release(&s, 2);
    CHECK_INT(s.permits, 1); /* one for b, and one that is free */
    CHECK_INT(conc_sem_try_acquire(&s), 0);
    CHECK_INT(conc_sem_try_acquire(&s), -EAGAIN);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[0].acquired + users[1].acquired, 0);
    check_permits(&s, 0);
}

static int releases_three_and_takes_one(void *arg)
{
    release(arg, 3);
    CHECK_INT(((conc_sem *)arg)->permits, 2); /* the third belongs to the waiter */
    CONC_TRY(conc_sem_acquire(arg));
    note("t2");
    return 0;
}

TASK_TEST(three_permits_serve_the_waiter_the_releasing_task_and_a_third)
{
    conc_sem s = {0};
    user t1 = USER(&s, "t1", -1), t3 = USER(&s, "t3", -1);
    conc_group g = {0};
    arrive(&g, &t1, 1);
    CHECK_INT(conc_spawn(&g, releases_three_and_takes_one, &s), 0);
    CHECK_INT(conc_settle(), 0);
    arrive(&g, &t3, 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(t1.acquired + t3.acquired, 0);
    CHECK_CONTAINS(noted, "t2");
    check_permits(&s, 0);
}

/* ---- cancels and time limits ---- */

/* Of four waiters some are cancelled in this order, then n permits are released. Notes the waiters
 * that acquired one. */
static void check_cancels(const char *cancelled, int n, const char *granted)
{
    conc_sem s = {0};
    user users[] = {USER(&s, "a", -1), USER(&s, "b", -1), USER(&s, "c", -1), USER(&s, "d", -1)};
    conc_group g = {0};
    noted[0] = 0;
    ARRIVE(&g, users);
    for (const char *c = cancelled; *c; c++)
        CHECK_INT(conc_cancel(&users[*c - 'a'].task), 0);
    for (int i = 0; i < n; i++) {
        release(&s, 1);
        CHECK_INT(conc_settle(), 0);
    }
    CHECK_STR(noted, granted);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    for (size_t i = 0; i < CONC_LEN(users); i++)
        CHECK_INT(users[i].acquired, strchr(granted, users[i].name[0]) ? 0 : -ECANCELED);
    check_permits(&s, 0);
}

TASK_TEST(a_permit_passes_over_cancelled_waiters)
{
    check_cancels("ab", 1, "c");
    check_cancels("ba", 1, "c");
    check_cancels("a", 1, "b");
    check_cancels("b", 2, "a c");
    check_cancels("bc", 2, "a d");
    check_cancels("d", 3, "a b c");
    check_cancels("acd", 1, "b");
    check_cancels("cadb", 0, "");
}

TASK_TEST(a_permit_released_after_all_waiters_were_cancelled_is_free)
{
    conc_sem s = {0};
    user users[] = {USER(&s, "a", -1), USER(&s, "b", -1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    conc_group_cancel(&g);
    release(&s, 1);
    CHECK_INT(s.permits, 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "");
    check_permits(&s, 1);
}

TASK_TEST(a_cancel_after_the_grant_leaves_the_permit_with_its_owner)
{
    conc_sem s = {0};
    user users[] = {USER(&s, "a", 5), USER(&s, "b", 1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    release(&s, 1);
    CHECK_INT(conc_cancel(&users[0].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[0].acquired, 0);
    CHECK_INT(users[0].next, -ECANCELED);
    CHECK_INT(users[1].acquired, 0);
    CHECK_INT(users[1].next, 0);
    CHECK_TIME(1);
    check_permits(&s, 1);
}

TASK_TEST(the_first_of_a_release_and_a_time_limit_decides)
{
    for (int release_first = 0; release_first < 2; release_first++) {
        conc_sem s = {0};
        user u = USER(&s, "u", -1, .timeout = 3);
        conc_group g = {0};
        arrive(&g, &u, 1);
        if (!release_first)
            CHECK_INT(conc_block(4), 0);
        release(&s, 1);
        if (release_first)
            CHECK_INT(conc_block(4), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(u.acquired, release_first ? 0 : -ETIMEDOUT);
        check_permits(&s, !release_first);
    }
}

TASK_TEST(a_waiter_that_timed_out_leaves_and_the_others_keep_their_order)
{
    conc_sem s = CONC_SEM(1);
    user users[] = {USER(&s, "a", 10), USER(&s, "b", 1, .timeout = 3), USER(&s, "c", 1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[1].acquired, -ETIMEDOUT);
    CHECK(users[1].at == 3 && users[2].at == 10);
    check_permits(&s, 1);
}

TASK_TEST(in_a_cancelled_scope_not_even_a_free_permit_is_acquired)
{
    conc_sem s = CONC_SEM(1);
    conc_scope scope = {0}, shield = {0};
    CHECK_INT(conc_scope_begin(&scope, CONC_FOREVER), 0);
    conc_scope_cancel(&scope);
    CHECK_INT(conc_sem_acquire(&s), -ECANCELED);
    check_permits(&s, 1); /* try and release are no checkpoints */
    CHECK_INT(conc_scope_begin(&shield, CONC_FOREVER), 0);
    conc_scope_shield(&shield, true);
    CHECK_INT(conc_sem_acquire(&s), 0);
    CHECK_INT(conc_scope_end(&shield, 0), 0);
    CHECK_INT(conc_scope_end(&scope, -ECANCELED), 0);
    check_permits(&s, 0);
}

static int enters_as_it_comes(void *arg)
{
    crowd *c = arg;
    conc_scope s = {0};
    CONC_TRY(conc_sleep(conc_random(0, 10)));
    CHECK_INT(conc_scope_begin(&s, conc_random(0, 5)), 0);
    int rc = conc_sem_acquire(&c->sem);
    if (rc == 0) {
        enter(c);
        rc = conc_sleep(conc_random(0, 0.5));
        c->inside--;
        release(&c->sem, 1);
    } else {
        c->late++;
    }
    rc = conc_scope_end(&s, rc);
    CHECK(rc == 0 || rc == -ETIMEDOUT || rc == -ECANCELED);
    return 0;
}

static int cancels_every_third(void *arg)
{
    conc_task *tasks = arg;
    for (int i = 0; i < 999; i += 3) {
        CONC_TRY(conc_sleep(conc_random(0, 0.04)));
        (void)conc_cancel(&tasks[i]);
    }
    return 0;
}

TASK_TEST(a_thousand_users_with_time_limits_and_cancels_lose_no_permit)
{
    static conc_task tasks[1000];
    crowd c = {.sem = CONC_SEM(5)};
    conc_group g = {.stack_size = 65536};
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_spawn_task(&g, &tasks[i], enters_as_it_comes, &c), 0);
    CHECK_INT(conc_spawn(&g, cancels_every_third, tasks), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.inside, 0);
    CHECK_INT(c.most, 5);
    CHECK(c.entered > 50 && c.late > 50);
    check_permits(&c.sem, 5);
}

/* ---- ten thousand waiters ---- */

static conc_sem scarce;
static conc_task waiting[MANY];
static int order[MANY], granted, cancelled;

static int waits_for_its_permit(void *arg)
{
    int rc = conc_sem_acquire(&scarce);
    if (rc == 0)
        order[granted++] = (int)((conc_task *)arg - waiting);
    else
        cancelled++;
    return rc;
}

static void spawn_many(conc_group *g)
{
    for (int i = 0; i < MANY; i++)
        CHECK_INT(conc_spawn_task(g, &waiting[i], waits_for_its_permit, &waiting[i]), 0);
    CHECK_INT(conc_settle(), 0);
}

TASK_TEST(a_grant_wakes_one_of_ten_thousand_waiters)
{
    conc_group g = {.stack_size = 16384};
    spawn_many(&g);
    uint64_t before = stats().switches;
    for (int i = 0; i < 100; i++) {
        release(&scarce, 1);
        CHECK_INT(stats().ready, 1);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(granted, i + 1);
    }
    CHECK(stats().switches - before <= 4 * 100); /* there and back, and some to settle */
    before = stats().switches;
    release(&scarce, MANY - 100);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(stats().switches - before <= 2 * MANY);
    CHECK_INT(granted, MANY);
    check_permits(&scarce, 0);
}

ORDERED_TASK_TEST(ten_thousand_waiters_get_their_permits_in_fifo_order)
{
    conc_group g = {.stack_size = 16384};
    spawn_many(&g);
    release(&scarce, MANY);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(granted, MANY);
    for (int i = 0; i < MANY; i++)
        CHECK_INT(order[i], i);
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void shuffle(int *numbers, int n)
{
    for (int i = 0; i < n; i++)
        numbers[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int other = (int)conc_random(0, i + 1), number = numbers[i];
        numbers[i] = numbers[other];
        numbers[other] = number;
    }
}

/* Searching the list for each of them would take some fifty million steps. */
TASK_TEST(cancelling_ten_thousand_waiters_in_any_order_is_faster_than_spawning_them)
{
    static int numbers[MANY];
    conc_group g = {.stack_size = 16384};
    double start = cpu_seconds();
    spawn_many(&g);
    double spawned = cpu_seconds();
    shuffle(numbers, MANY);
    double shuffled = cpu_seconds();
    for (int i = 0; i < MANY; i++)
        CHECK_INT(conc_cancel(&waiting[numbers[i]]), 0);
    double taken = cpu_seconds() - shuffled;
    if (taken > spawned - start)
        test_fail(__FILE__, __LINE__, "the spawns took %.3f s, the cancels %.3f s", spawned - start,
                  taken);
    release(&scarce, 1);
    check_permits(&scarce, 1); /* no task waits any more, although none has run yet */
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(cancelled, MANY);
    check_permits(&scarce, 1);
}

TASK_TEST(the_rest_of_ten_thousand_waiters_is_served)
{
    static int numbers[MANY];
    conc_group g = {.stack_size = 16384};
    spawn_many(&g);
    shuffle(numbers, MANY);
    for (int i = 0; i < MANY - 10; i++)
        CHECK_INT(conc_cancel(&waiting[numbers[i]]), 0);
    CHECK_INT(conc_settle(), 0);
    release(&scarce, 11);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(granted, 10);
    CHECK_INT(cancelled, MANY - 10);
    check_permits(&scarce, 1);
}

/* ---- CONC_PERMIT ---- */

static conc_sem sem = CONC_SEM(2);

static int leaves_at_the_end(void)
{
    CONC_PERMIT(&sem) {
        CHECK_INT(sem.permits, 1);
        note("inside");
    }
    CHECK_INT(sem.permits, 2);
    return 0;
}

static int leaves_by_return(void)
{
    CONC_PERMIT(&sem) {
        note("inside");
        return sem.permits;
    }
    return -EIO;
}

static int leaves_by_break(void)
{
    CONC_PERMIT(&sem) {
        note("inside");
        if (sem.permits == 1)
            break;
        note("beyond");
    }
    CHECK_INT(sem.permits, 2);
    return 2;
}

static int leaves_by_try(void)
{
    CONC_PERMIT(&sem) {
        note("inside");
        CONC_TRY(sem.permits == 1 ? -ENOENT : -EIO);
    }
    return -EIO;
}

static int nests(void)
{
    CONC_PERMIT(&sem) {
        CONC_PERMIT(&sem)
            note(sem.permits == 0 ? "inside" : "beyond");
        CHECK_INT(sem.permits, 1);
    }
    CONC_PERMIT(&sem)
        CHECK_INT(sem.permits, 1);
    return 3;
}

TASK_TEST(a_block_with_a_permit_releases_it_on_every_exit)
{
    static const struct {
        int (*fn)(void);
        int rc;
    } rows[] = {{leaves_at_the_end, 0},
                {leaves_by_return, 1},
                {leaves_by_break, 2},
                {leaves_by_try, -ENOENT},
                {nests, 3}};
    for (size_t i = 0; i < CONC_LEN(rows); i++) {
        noted[0] = 0;
        CHECK_INT(rows[i].fn(), rows[i].rc);
        CHECK_STR(noted, "inside");
        check_permits(&sem, 2);
    }
}

static int enters_without_a_semaphore(void)
{
    CONC_PERMIT(NULL) {
        note("beyond");
    }
    return 0;
}

TASK_TEST(a_block_that_does_not_get_its_permit_returns_the_error)
{
    conc_scope s = {0};
    CHECK_INT(enters_without_a_semaphore(), -EINVAL);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(leaves_by_return(), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_STR(noted, "");
    check_permits(&sem, 2);
}

static int sleeps_with_a_permit(void *arg)
{
    CONC_PERMIT(&sem) {
        note(arg);
        CONC_TRY(conc_sleep(1));
    }
    return 0;
}

TASK_TEST(blocks_wait_for_permits_and_release_them_when_they_are_cancelled)
{
    static char names[][2] = {"a", "b", "c", "d", "e"};
    conc_task tasks[5];
    conc_group g = {0};
    for (int i = 0; i < 5; i++) {
        CHECK_INT(conc_spawn_task(&g, &tasks[i], sleeps_with_a_permit, names[i]), 0);
        CHECK_INT(conc_settle(), 0);
    }
    CHECK_INT(conc_sleep(0.5), 0);
    CHECK_INT(conc_cancel(&tasks[0]), 0);
    CHECK_INT(conc_cancel(&tasks[3]), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a b c e"); /* c at 0.5, e at 1 */
    CHECK_TIME(2);
    check_permits(&sem, 2);
}

/* ---- outside tasks, and in other loops ---- */

static void counts_without_waiting(void *arg)
{
    conc_sem *s = arg;
    int before = s->permits;
    CHECK_INT(conc_sem_acquire(s), -EPERM);
    CHECK_INT(s->permits, before);
    release(s, 3);
    check_permits(s, before + 3);
    note("counted");
}

static void takes_three(void)
{
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_sem_acquire(&sem), 0);
    check_permits(&sem, 2);
}

TEST(permits_are_acquired_and_released_before_and_after_a_run)
{
    counts_without_waiting(&sem);
    test_in_task(takes_three);
    counts_without_waiting(&sem);
    test_in_task(takes_three);
    check_permits(&sem, 2);
}

TASK_TEST(a_posted_function_acquires_and_releases_permits_without_waiting)
{
    conc_sem s = CONC_SEM(1);
    CHECK_INT(conc_post(conc_loop_self(), counts_without_waiting, &s), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "counted");
    check_permits(&s, 4);
}

static void releases_one(void *arg) { release(arg, 1); }

TASK_TEST(a_posted_release_wakes_the_first_waiter)
{
    conc_sem s = {0};
    user users[] = {USER(&s, "a", -1), USER(&s, "b", -1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_post(conc_loop_self(), releases_one, &s), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "a");
    CHECK_INT(users[1].acquired, WAITING);
    CHECK_INT(conc_post(conc_loop_self(), releases_one, &s), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a b");
    check_permits(&s, 0);
}

static int meddles_from_elsewhere(void *arg)
{
    CHECK_INT(conc_sem_acquire(arg), -EPERM);
    CHECK(conc_sem_try_acquire(arg) < 0);
    CHECK_INT(conc_sem_release(arg), -EPERM);
    return 0;
}

static void *runs_elsewhere(void *arg)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, meddles_from_elsewhere, arg), 0);
    CHECK_INT(conc_sem_release(arg), -EPERM); /* nor from outside a run, while a task waits */
    return NULL;
}

TASK_TEST(another_loop_cannot_use_a_semaphore_that_a_loop_waits_for)
{
    conc_sem s = {0};
    user u = USER(&s, "u", -1);
    pthread_t thread;
    conc_group g = {0};
    arrive(&g, &u, 1);
    CHECK_INT(pthread_create(&thread, NULL, runs_elsewhere, &s), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(u.acquired, WAITING);
    release(&s, 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(u.acquired, 0);
}

/* ---- reports ---- */

static int waits_for_a_permit(void *arg)
{
    conc_set_name(conc_self(), "the patient one");
    return conc_sem_acquire(arg);
}

static int waits_for_nobody(void *arg)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, waits_for_a_permit, arg), 0);
    return conc_group_wait(&g);
}

static void run_into_deadlock(void)
{
    conc_sem s = {0};
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, waits_for_nobody, &s), -EDEADLK);
    check_permits(&s, 0);
}

TEST(a_permit_that_no_task_can_release_is_a_reported_deadlock)
{
    static char report[16384];
    CHECK_INT(test_in_process(run_into_deadlock, report, sizeof report), 0);
    CHECK_CONTAINS(report, "deadlock");
    CHECK_CONTAINS(report, "the patient one: waits for a ");
    CHECK_CONTAINS(report, "semaphore");
}
