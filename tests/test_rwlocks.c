/* test_rwlocks.c - conc_rwlock: readers together, writers alone, neither starved, and which
 * waiters a cancelled waiter unblocks.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <pthread.h>

enum { WAITING = 1 }; /* no call returns it */

/* A task that acquires the lock for reading or writing, holds it, and releases it. */
typedef struct user {
    const char *name; /* "r1" reads, "w1" writes */
    double keeps;     /* seconds */
    double timeout;   /* time limit of its acquire; 0: none */
    double starts;    /* seconds after its spawn */
    int rounds;       /* how many times; 0: once */
    int acquired;     /* result of its last acquire */
    int next;         /* result of its next checkpoint */
    double at;        /* when it continued */
    conc_task task;
} user;

/* clang-format off */
#define USER(n, ...) {.name = (n), .keeps = __VA_ARGS__}
/* clang-format on */

static conc_rwlock lock;
static int readers, writers, most_readers; /* inside */

static bool writes(const user *u) { return u->name[0] == 'w'; }

static int take(bool write)
{
    return write ? conc_rwlock_acquire_write(&lock) : conc_rwlock_acquire_read(&lock);
}

static int try(bool write)
{
    return write ? conc_rwlock_try_acquire_write(&lock) : conc_rwlock_try_acquire_read(&lock);
}

/* Undoes a try that succeeds: it only asks whether the lock is available now. */
static int could_have(bool write)
{
    int rc = try(write);
    if (rc == 0)
        CHECK_INT(conc_rwlock_release(&lock), 0);
    return rc;
}

static void check_free(void)
{
    CHECK_INT(readers + writers, 0);
    CHECK_INT(could_have(true), 0);
    CHECK_INT(could_have(false), 0);
    CHECK_INT(conc_rwlock_release(&lock), -EPERM);
}

static void enter(bool write)
{
    CHECK_INT(writers, 0);
    CHECK(!write || readers == 0);
    *(write ? &writers : &readers) += 1;
    most_readers = readers > most_readers ? readers : most_readers;
}

static void leave(bool write)
{
    *(write ? &writers : &readers) -= 1;
    CHECK_INT(conc_rwlock_release(&lock), 0);
}

static int takes(void *arg) { return take(writes(arg)); }

static int uses(void *arg)
{
    user *u = arg;
    u->acquired = WAITING;
    CHECK_INT(conc_sleep(u->starts), 0);
    for (int i = 0; i <= u->rounds - (u->rounds > 0); i++) {
        u->acquired = conc_timeout(u->timeout > 0 ? u->timeout : CONC_FOREVER, takes, u);
        u->at = conc_now();
        if (u->acquired < 0)
            return 0;
        enter(writes(u));
        note(u->name);
        u->next = conc_sleep(u->keeps);
        leave(writes(u));
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

/* "r1@0 r2@0 w1@1": which users acquired the lock, and when, in the order of the array */
static void check_times(const user *users, size_t n, const char *expected)
{
    char text[512] = "";
    for (size_t i = 0; i < n; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 users[i].acquired < 0 ? "%s%s@%g:%d" : "%s%s@%g", i ? " " : "", users[i].name,
                 users[i].at, users[i].acquired);
    CHECK_STR(text, expected);
}

#define CHECK_TIMES(users, expected) check_times((users), CONC_LEN(users), (expected))

/* All arrive in this order while the lock is free, and must acquire it at these times. */
static void check_all(user *users, size_t n, const char *expected)
{
    conc_group g = {0};
    arrive(&g, users, n);
    CHECK_INT(conc_group_wait(&g), 0);
    check_times(users, n, expected);
    check_free();
}

#define CHECK_ALL(users, expected) check_all((users), CONC_LEN(users), (expected))

/* ---- together and alone ---- */

TASK_TEST(readers_are_inside_together)
{
    user users[] = {USER("r1", 1), USER("r2", 2), USER("r3", 1)};
    CHECK_ALL(users, "r1@0 r2@0 r3@0");
    CHECK_INT(most_readers, 3);
    CHECK_TIME(2);
}

TASK_TEST(writers_are_inside_alone_and_in_turn)
{
    user users[] = {USER("w1", 1), USER("w2", 2), USER("w3", 1)};
    CHECK_ALL(users, "w1@0 w2@1 w3@3");
    CHECK_TIME(4);
}

TASK_TEST(a_writer_waits_for_the_last_reader)
{
    user users[] = {USER("r1", 3), USER("r2", 1), USER("r3", 2), USER("w1", 1)};
    CHECK_ALL(users, "r1@0 r2@0 r3@0 w1@3");
}

TASK_TEST(readers_wait_for_a_writer_and_enter_together)
{
    user users[] = {USER("w1", 3), USER("r1", 1), USER("r2", 1), USER("r3", 1)};
    CHECK_ALL(users, "w1@0 r1@3 r2@3 r3@3");
    CHECK_INT(most_readers, 3);
    CHECK_TIME(4);
}

TASK_TEST(a_free_lock_is_acquired_at_once)
{
    for (int write = 0; write < 2; write++) {
        CHECK_INT(take(write), 0);
        CHECK_INT(conc_rwlock_release(&lock), 0);
        CHECK_INT(try(write), 0);
        CHECK_INT(conc_rwlock_release(&lock), 0);
        check_free();
    }
    CHECK_TIME(0);
}

TASK_TEST(a_task_may_read_twice_and_releases_twice)
{
    user w = USER("w1", 1);
    conc_group g = {0};
    CHECK_INT(take(false), 0);
    CHECK_INT(take(false), 0);
    arrive(&g, &w, 1);
    CHECK_INT(conc_rwlock_release(&lock), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(w.acquired, WAITING);
    CHECK_INT(conc_rwlock_release(&lock), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.acquired, 0);
    check_free();
}

/* ---- no starvation ---- */

TASK_TEST(readers_wait_behind_a_waiting_writer)
{
    user users[] = {USER("r1", 2), USER("w1", 2), USER("r2", 1), USER("r3", 1)};
    CHECK_ALL(users, "r1@0 w1@2 r2@4 r3@4");
}

TASK_TEST(writers_wait_behind_waiting_readers)
{
    user users[] = {USER("w1", 2), USER("r1", 1), USER("r2", 1), USER("w2", 1), USER("r3", 1)};
    CHECK_ALL(users, "w1@0 r1@2 r2@2 w2@3 r3@4");
}

TASK_TEST(readers_on_both_sides_of_a_writer_are_not_together)
{
    user users[] = {USER("w1", 1), USER("r1", 1), USER("r2", 5),
                    USER("w2", 1), USER("r3", 1), USER("w3", 1)};
    CHECK_ALL(users, "w1@0 r1@1 r2@1 w2@6 r3@7 w3@8");
    CHECK_INT(most_readers, 2);
}

TASK_TEST(a_stream_of_readers_does_not_starve_a_writer)
{
    user users[] = {USER("r1", 2),
                    USER("r2", 2, .starts = 1),
                    USER("w1", 2, .starts = 2.5),
                    USER("r3", 2, .starts = 2.75),
                    USER("r4", 2, .starts = 4),
                    USER("r5", 2, .starts = 6)};
    CHECK_ALL(users, "r1@0 r2@1 w1@3 r3@5 r4@5 r5@6");
}

TASK_TEST(a_stream_of_writers_does_not_starve_a_reader)
{
    user users[] = {USER("w1", 2), USER("w2", 2, .starts = 1), USER("r1", 1, .starts = 1.5),
                    USER("w3", 2, .starts = 1.75), USER("r2", 1, .starts = 1.875)};
    CHECK_ALL(users, "w1@0 w2@2 r1@4 w3@5 r2@7");
}

TASK_TEST(a_task_that_asks_again_is_behind_the_waiters)
{
    user users[] = {USER("w1", 1, .rounds = 3), USER("r1", 1, .rounds = 3),
                    USER("w2", 1, .rounds = 3)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "w1 r1 w2 w1 r1 w2 w1 r1 w2");
    check_free();
}

TASK_TEST(a_try_does_not_overtake_waiters)
{
    user users[] = {USER("w1", 1), USER("r1", 1)};
    conc_group g = {0};
    CHECK_INT(take(false), 0);
    CHECK_INT(try(false), 0); /* no user waits */
    CHECK_INT(conc_rwlock_release(&lock), 0);
    CHECK_INT(try(true), -EAGAIN);
    ARRIVE(&g, users);
    CHECK_INT(try(false), -EAGAIN); /* w1 waits */
    CHECK_INT(try(true), -EAGAIN);
    CHECK_INT(conc_rwlock_release(&lock), 0);
    CHECK_INT(users[0].acquired, WAITING); /* it has not run yet, but owns the lock */
    CHECK_INT(try(false), -EAGAIN);
    CHECK_INT(try(true), -EAGAIN);
    CHECK_INT(conc_rwlock_release(&lock), -EPERM);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIMES(users, "w1@0 r1@1");
    check_free();
}

TASK_TEST(a_writers_release_hands_the_lock_to_the_readers_at_once)
{
    user users[] = {USER("r1", 1), USER("r2", 1)};
    conc_group g = {0};
    CHECK_INT(take(true), 0);
    ARRIVE(&g, users);
    CHECK_INT(conc_rwlock_release(&lock), 0);
    CHECK_INT(try(true), -EAGAIN);
    CHECK_INT(try(false), 0); /* no user waits any more */
    CHECK_INT(conc_rwlock_release(&lock), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIMES(users, "r1@0 r2@0");
    check_free();
}

/* ---- cancels and time limits ---- */

TASK_TEST(readers_enter_at_once_when_the_writer_before_them_is_cancelled)
{
    user users[] = {USER("r1", 10), USER("w1", 1), USER("r2", 1),
                    USER("r3", 1),  USER("w2", 1), USER("r4", 1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(conc_cancel(&users[1].task), 0);
    CHECK_INT(users[1].acquired + users[2].acquired, 2 * WAITING); /* no other task has run yet */
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(readers, 3); /* r1, r2, r3; r4 is behind w2 */
    CHECK_INT(try(false), -EAGAIN);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[1].acquired, -ECANCELED);
    users[1].acquired = 0;
    CHECK_TIMES(users, "r1@0 w1@2 r2@2 r3@2 w2@10 r4@11");
    check_free();
}

TASK_TEST(readers_enter_at_once_when_the_writer_before_them_times_out)
{
    user users[] = {USER("r1", 10), USER("w1", 1, .timeout = 2), USER("r2", 1),
                    USER("w2", 1, .timeout = 4), USER("r3", 1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[1].acquired, -ETIMEDOUT);
    CHECK_INT(users[3].acquired, -ETIMEDOUT);
    users[1].acquired = users[3].acquired = 0;
    CHECK_TIMES(users, "r1@0 w1@2 r2@2 w2@4 r3@4");
    check_free();
}

TASK_TEST(a_cancelled_writer_lets_no_reader_in_while_another_writes)
{
    user users[] = {USER("w1", 10), USER("w2", 1), USER("r1", 1), USER("r2", 1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_cancel(&users[1].task), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(writers, 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(users[2].at == 10 && users[3].at == 10);
    check_free();
}

TASK_TEST(a_cancelled_reader_between_two_writers_changes_nothing_for_them)
{
    user users[] = {USER("r1", 3), USER("w1", 1), USER("r2", 1), USER("w2", 1), USER("r3", 1)};
    conc_group g = {0};
    ARRIVE(&g, users);
    CHECK_INT(conc_cancel(&users[2].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[2].acquired, -ECANCELED);
    CHECK(users[1].at == 3 && users[3].at == 4 && users[4].at == 5);
    check_free();
}

/* Two users wait for the caller to release the lock, and the first is cancelled before or after
 * that. */
static void check_race(bool mine_writes, const char *first, const char *second, bool cancel_first,
                       const char *granted)
{
    user users[] = {USER(first, 1), USER(second, 1)};
    conc_group g = {0};
    noted[0] = 0;
    CHECK_INT(take(mine_writes), 0);
    ARRIVE(&g, users);
    if (cancel_first)
        CHECK_INT(conc_cancel(&users[0].task), 0);
    CHECK_INT(conc_rwlock_release(&lock), 0);
    CHECK_INT(conc_cancel(&users[0].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, granted);
    CHECK_INT(users[0].acquired, cancel_first ? -ECANCELED : 0);
    if (!cancel_first)
        CHECK_INT(users[0].next, -ECANCELED);
    CHECK_INT(users[1].acquired, 0);
    CHECK_INT(users[1].next, 0);
    check_free();
}

TASK_TEST(the_first_of_a_release_and_a_cancel_decides)
{
    static const struct {
        bool mine_writes;
        const char *first, *second, *granted;
    } rows[] = {{true, "w1", "w2", "w1 w2"},
                {true, "w1", "r1", "w1 r1"},
                {true, "r1", "w1", "r1 w1"},
                {false, "w1", "w2", "w1 w2"},
                {false, "w1", "r1", "w1 r1"}};
    for (size_t i = 0; i < CONC_LEN(rows); i++)
        for (int cancel_first = 0; cancel_first < 2; cancel_first++)
            check_race(rows[i].mine_writes, rows[i].first, rows[i].second, cancel_first,
                       cancel_first ? rows[i].second : rows[i].granted);
}

TASK_TEST(readers_that_were_granted_the_lock_keep_it_although_they_are_cancelled)
{
    user users[] = {USER("r1", 5), USER("r2", 5), USER("w1", 1)};
    conc_group g = {0};
    CHECK_INT(take(true), 0);
    ARRIVE(&g, users);
    CHECK_INT(conc_rwlock_release(&lock), 0);
    CHECK_INT(conc_cancel(&users[0].task), 0);
    CHECK_INT(conc_cancel(&users[1].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(users[i].acquired, 0);
        CHECK_INT(users[i].next, -ECANCELED);
    }
    CHECK_INT(users[2].acquired, 0);
    CHECK_TIME(1);
    check_free();
}

TASK_TEST(in_a_cancelled_scope_not_even_a_free_lock_is_acquired)
{
    for (int write = 0; write < 2; write++) {
        conc_scope s = {0};
        CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
        conc_scope_cancel(&s);
        CHECK_INT(take(write), -ECANCELED);
        CHECK_INT(conc_rwlock_release(&lock), -EPERM);
        CHECK_INT(try(write), 0); /* no checkpoint, and neither is the release */
        CHECK_INT(conc_rwlock_release(&lock), 0);
        CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    }
    check_free();
}

TASK_TEST(a_cancelled_group_leaves_a_free_lock)
{
    user users[] = {USER("r1", 9), USER("r2", 9), USER("w1", 9), USER("r3", 9), USER("w2", 9)};
    conc_group g = {0};
    ARRIVE(&g, users);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(users[0].next, -ECANCELED);
    CHECK_INT(users[2].acquired, -ECANCELED);
    CHECK_TIME(0);
    check_free();
}

static int uses_as_it_comes(void *arg)
{
    int *entered = arg;
    conc_scope s = {0};
    bool write = conc_random(0, 1) < 0.25;
    CHECK_INT(conc_sleep(conc_random(0, 10)), 0);
    CHECK_INT(conc_scope_begin(&s, conc_random(0, 3)), 0);
    int rc = take(write);
    if (rc == 0) {
        enter(write);
        rc = conc_sleep(conc_random(0, 0.1));
        leave(write);
        ++*entered;
    }
    rc = conc_scope_end(&s, rc);
    CHECK(rc == 0 || rc == -ETIMEDOUT);
    return 0;
}

TASK_TEST(a_lock_survives_a_thousand_users_with_time_limits)
{
    int entered = 0;
    conc_group g = {.stack_size = 65536};
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_spawn(&g, uses_as_it_comes, &entered), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(entered > 100 && entered < 1000);
    CHECK(most_readers > 1);
    check_free();
}

/* ---- misuse ---- */

TASK_TEST(a_null_lock_is_refused)
{
    CHECK_INT(conc_rwlock_acquire_read(NULL), -EINVAL);
    CHECK_INT(conc_rwlock_acquire_write(NULL), -EINVAL);
    CHECK_INT(conc_rwlock_try_acquire_read(NULL), -EINVAL);
    CHECK_INT(conc_rwlock_try_acquire_write(NULL), -EINVAL);
    CHECK_INT(conc_rwlock_release(NULL), -EINVAL);
}

TASK_TEST(a_writer_that_asks_again_gets_edeadlk)
{
    CHECK_INT(take(true), 0);
    for (int write = 0; write < 2; write++) {
        CHECK_INT(take(write), -EDEADLK);
        CHECK_INT(try(write), -EDEADLK);
    }
    CHECK_INT(conc_rwlock_release(&lock), 0);
    CHECK_INT(conc_rwlock_release(&lock), -EPERM);
    check_free();
}

static int meddles(void *arg)
{
    (void)arg;
    CHECK_INT(conc_rwlock_release(&lock), -EPERM);
    CHECK_INT(try(false), -EAGAIN);
    CHECK_INT(try(true), -EAGAIN);
    return 0;
}

TASK_TEST(only_the_writer_releases_its_lock)
{
    conc_group g = {0};
    CHECK_INT(take(true), 0);
    CHECK_INT(conc_spawn(&g, meddles, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_rwlock_release(&lock), 0);
    check_free();
}

TASK_TEST(a_reader_cannot_get_the_write_lock_by_trying)
{
    CHECK_INT(take(false), 0);
    CHECK_INT(try(true), -EAGAIN);
    CHECK_INT(conc_rwlock_release(&lock), 0);
    check_free();
}

static void check_refused(void *arg)
{
    (void)arg;
    for (int write = 0; write < 2; write++)
        CHECK_INT(take(write), -EPERM);
    CHECK_INT(try(true), -EPERM);
    CHECK_INT(conc_rwlock_release(&lock), -EPERM);
    note("refused");
}

TEST(outside_a_task_the_write_lock_is_refused)
{
    check_refused(NULL);
    check_refused(NULL);
}

TASK_TEST(a_posted_function_can_neither_write_nor_release_a_writers_lock)
{
    CHECK_INT(conc_post(conc_loop_self(), check_refused, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    check_free();
    CHECK_INT(take(true), 0);
    CHECK_INT(conc_post(conc_loop_self(), check_refused, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "refused refused");
    CHECK_INT(conc_rwlock_release(&lock), 0);
    check_free();
}

static int releases(void *arg)
{
    (void)arg;
    return conc_rwlock_release(&lock);
}

TASK_TEST(any_task_may_release_a_read_lock)
{
    user w = USER("w1", 1);
    conc_group g = {0};
    CHECK_INT(take(false), 0);
    arrive(&g, &w, 1);
    CHECK_INT(conc_spawn(&g, releases, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.acquired, 0);
    check_free();
}

static void uses_it_in_turns(void)
{
    user users[] = {USER("r1", 1), USER("w1", 1), USER("r2", 1)};
    CHECK_ALL(users, "r1@0 w1@1 r2@2");
}

TEST(a_lock_works_in_one_run_after_another)
{
    for (int i = 0; i < 3; i++)
        test_in_task(uses_it_in_turns);
}

static int meddles_from_elsewhere(void *arg)
{
    (void)arg;
    for (int write = 0; write < 2; write++) {
        CHECK_INT(take(write), -EPERM);
        CHECK(try(write) < 0);
    }
    CHECK_INT(conc_rwlock_release(&lock), -EPERM);
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
    user users[] = {USER("r1", 1), USER("w1", 1)};
    pthread_t thread;
    conc_group g = {0};
    CHECK_INT(take(true), 0);
    ARRIVE(&g, users);
    CHECK_INT(pthread_create(&thread, NULL, runs_elsewhere, NULL), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(conc_rwlock_release(&lock), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIMES(users, "r1@0 w1@1");
    check_free();
}

/* ---- reports ---- */

static char report[16384];
static conc_rwlock forks[2];

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
}

static void check_reported(const char *words, int line)
{
    char place[256];
    snprintf(place, sizeof place, "%s:%d", TEST_FILE, line);
    CHECK_CONTAINS(report, words);
    CHECK_CONTAINS(report, place);
}

static int eats(void *arg)
{
    int i = *(int *)arg;
    conc_set_name(conc_self(), i ? "Kant" : "Plato");
    CONC_TRY(conc_rwlock_acquire_write(&forks[i]));
    CONC_TRY(conc_sleep(1));
    int rc = i ? conc_rwlock_acquire_read(&forks[0]) : conc_rwlock_acquire_write(&forks[1]);
    CHECK_INT(rc, -ECANCELED);
    CHECK_INT(conc_rwlock_release(&forks[i]), 0);
    return rc;
}

enum { LINE_OF_THE_FIRST_FORK = __LINE__ - 8 };

static int dines(void *arg)
{
    (void)arg;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, eats, &(int){0}), 0);
    CHECK_INT(conc_spawn(&g, eats, &(int){1}), 0);
    return conc_group_wait(&g);
}

TEST(a_deadlock_is_reported_with_the_writers_and_where_they_acquired_their_locks)
{
    run_for_report(dines, false, -EDEADLK);
    check_reported("deadlock", LINE_OF_THE_FIRST_FORK);
    check_reported("Plato: ", LINE_OF_THE_FIRST_FORK);
    check_reported("Kant: ", LINE_OF_THE_FIRST_FORK);
    CHECK_CONTAINS(report, "rwlock");
}

static int upgrades(void *arg)
{
    (void)arg;
    CHECK_INT(take(false), 0);
    int rc = take(true);
    CHECK_INT(conc_rwlock_release(&lock), 0);
    check_free();
    return rc;
}

TEST(a_reader_that_waits_to_write_is_a_deadlock_that_unwinds)
{
    run_for_report(upgrades, false, -EDEADLK);
    CHECK_CONTAINS(report, "rwlock");
}

static int hoards(void *arg)
{
    conc_set_name(conc_self(), "the hoarder");
    CHECK_INT(arg ? conc_rwlock_acquire_write(&forks[0]) : 0, 0);
    return 0;
}

enum { LINE_OF_THE_HOARD = __LINE__ - 4 };

static int loses_a_lock(void *arg)
{
    (void)arg;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, hoards, &forks[0]), 0);
    return conc_group_wait(&g);
}

TEST(debug_mode_reports_the_writer_that_ended_with_its_lock)
{
    run_for_report(loses_a_lock, true, 0);
    check_reported("the hoarder", LINE_OF_THE_HOARD);
}

static int finds_it_taken(void *arg)
{
    CHECK_INT(conc_rwlock_try_acquire_read(arg), -EAGAIN);
    CHECK_INT(conc_rwlock_try_acquire_write(arg), -EAGAIN);
    CHECK_INT(conc_rwlock_release(arg), -EPERM);
    return 0;
}

TASK_TEST(a_lock_that_a_writer_ended_with_is_not_the_next_ones_with_the_same_handle)
{
    conc_task t = {0};
    for (int i = 0; i < 2; i++) {
        conc_group g = {0};
        CHECK_INT(conc_spawn_task(&g, &t, i ? finds_it_taken : hoards, &forks[0]), 0);
        CHECK_INT(conc_group_wait(&g), 0);
    }
}

static int runs_users(void *arg)
{
    (void)arg;
    uses_it_in_turns();
    return 0;
}

TEST(debug_mode_does_not_report_released_locks)
{
    run_for_report(runs_users, true, 0);
    CHECK(strstr(report, "rwlock that") == NULL && strstr(report, "ended with") == NULL);
}

/* ---- another run ---- */

static conc_rwlock left_behind;

static int keeps_it(void *arg)
{
    return *(int *)arg == CONC__READER ? conc_rwlock_acquire_read(&left_behind)
                                       : conc_rwlock_acquire_write(&left_behind);
}

static int wants_what_an_ended_run_has(void *arg)
{
    (void)arg;
    CHECK_INT(conc_rwlock_try_acquire_write(&left_behind), -EPERM);
    CHECK_INT(conc_rwlock_try_acquire_read(&left_behind), -EPERM);
    CHECK_INT(conc_rwlock_acquire_write(&left_behind), -EPERM);
    CHECK_INT(conc_rwlock_acquire_read(&left_behind), -EPERM);
    CHECK_INT(conc_rwlock_release(&left_behind), -EPERM);
    return 0;
}

TEST(a_rwlock_that_a_task_of_an_ended_run_holds_is_refused)
{
    conc_options o = {.virtual_clock = true};
    int hows[] = {CONC__READER, CONC__WRITER};
    for (int i = 0; i < 2; i++) {
        left_behind = (conc_rwlock){0};
        CHECK_INT(conc_run_with(&o, keeps_it, &hows[i]), 0);
        CHECK_INT(conc_run_with(&o, wants_what_an_ended_run_has, NULL), 0);
    }
}

static void *wants_it_in_a_thread(void *arg)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, wants_what_an_ended_run_has, arg), 0);
    return NULL;
}

TASK_TEST(a_rwlock_stays_with_its_tasks_when_another_loop_tries_it)
{
    pthread_t thread;
    for (int i = 0; i < 2; i++) {
        CHECK_INT(i ? conc_rwlock_acquire_read(&left_behind)
                    : conc_rwlock_acquire_write(&left_behind),
                  0);
        CHECK_INT(pthread_create(&thread, NULL, wants_it_in_a_thread, NULL), 0);
        CHECK_INT(pthread_join(thread, NULL), 0);
        CHECK_INT(conc_rwlock_release(&left_behind), 0);
    }
}
