/* Growth: ten times as many tasks take about ten times as much work, not a hundred times. The work
 * is counted in basic blocks of conc's own code, so nothing else on the machine matters.
 *
 * Needs -fsanitize-coverage=trace-pc
 * Not under: seeds, poll, valgrind, asan, gcc-asan, tsan, ucontext, no-epoll, save-fpu, static,
 * single, aarch64, aarch64-bti, riscv64 (the same is counted in all of them)
 */
#define CONC_STACK_SIZE (32 * 1024) /* and its own implementation, which counts */
#define TEST_SYNC
#define TEST_POOL
#include "conc_test.h"

#include <pthread.h>
#include <sched.h>

#ifdef __linux__
#include <sys/eventfd.h>
#include <sys/socket.h>
#endif

static _Thread_local long blocks; /* the loop's thread */

/* The compiler inserts a call of this at the start of each basic block. */
void __sanitizer_cov_trace_pc(void);
#ifdef __clang__
__attribute__((no_sanitize("coverage")))
#else
__attribute__((no_sanitize_coverage))
#endif
void __sanitizer_cov_trace_pc(void)
{
    blocks++;
}

enum { MOST = 10000 };
static int result; /* blocks of each run */
static int many;   /* how many objects of each kind to create; at most MOST */
static bool debug;

static void ignore_failure(const conc_failure *f, void *user)
{
    (void)f;
    (void)user;
}

static long count_blocks(conc_fn *fn, int n)
{
    conc_options options = {.virtual_clock = true, .on_error = ignore_failure, .debug = debug};
    many = n;
    blocks = 0;
    CHECK_INT(conc_run_with(&options, fn, NULL), result);
    return blocks;
}

static void check_grows_evenly(conc_fn *fn, int n)
{
    long few = count_blocks(fn, n), more = count_blocks(fn, 10 * n);
    CHECK(few > n);
    if (more > 20 * few)
        test_fail(__FILE__, __LINE__, "%d take %ld blocks, and %d take %ld", n, few, 10 * n, more);
}

#define GROWTH_TEST(name, fn, n) \
    TEST(name) { check_grows_evenly((fn), (n)); }

/* ---- cancels and statistics requested again and again ---- */

static int opens_many_scopes(void *arg)
{
    static conc_scope scopes[MOST];
    (void)arg;
    memset(scopes, 0, sizeof scopes);
    for (int i = 0; i < many; i++)
        CHECK_INT(conc_scope_begin(&scopes[i], CONC_FOREVER), 0);
    int rc = conc_sleep(CONC_FOREVER);
    for (int i = many; i--;)
        rc = conc_scope_end(&scopes[i], rc);
    return rc;
}

static int cancels_again_and_again(void *arg)
{
    conc_group g = {0};
    conc_task t;
    CHECK_INT(conc_spawn_task(&g, &t, opens_many_scopes, arg), 0);
    CHECK_INT(conc_settle(), 0);
    for (int i = 0; i < many; i++)
        CHECK_INT(conc_cancel(&t), 0);
    return conc_group_wait(&g);
}

static int sleeps_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static void see_statistics(int stacks, int kept)
{
    conc_stats s;
    for (int i = 0; i < many; i++)
        conc_get_stats(&s);
    CHECK_INT(s.stacks, stacks);
    CHECK(s.stacks_kept >= (size_t)kept);
}

static int sees_statistics(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < many; i++)
        CHECK_INT(conc_spawn(&g, sleeps_forever, arg), 0);
    CHECK_INT(conc_settle(), 0);
    see_statistics(many + 1, 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    see_statistics(1, many);
    return 0;
}

GROWTH_TEST(a_task_in_many_scopes_is_cancelled_many_times, cancels_again_and_again, 1000)
GROWTH_TEST(statistics_of_many_tasks_are_seen_many_times, sees_statistics, 1000)

/* ---- stacks of any size ---- */

static int returns_soon(void *arg)
{
    (void)arg;
    return 0;
}

/* In debug mode, which measures the usage of the stacks. */
TEST(a_stack_of_any_size_is_measured_with_the_same_work)
{
    long counted[2];
    if (sizeof(void *) < 8)
        return;
    for (int i = 0; i < 2; i++) {
        conc_options o = {.virtual_clock = true, .debug = true};
        o.stack_size = (size_t)1 << (i ? 38 : 31);
        blocks = 0;
        CHECK_INT(conc_run_with(&o, returns_soon, NULL), 0);
        counted[i] = blocks;
    }
    if (counted[1] > 2 * counted[0])
        test_fail(__FILE__, __LINE__, "2 GiB: %ld blocks; 256 GiB: %ld", counted[0], counted[1]);
}

/* ---- failed background tasks ---- */

static conc_task tasks[MOST];

static int fails(void *arg)
{
    (void)arg;
    return -EIO;
}

static int returns_zero(void *arg)
{
    (void)arg;
    return 0;
}

static int spawn_failures(conc_fn *fn)
{
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_spawn_task(NULL, &tasks[i], fn, NULL));
    return conc_settle();
}

static int joins_failures_from_the_last(void *arg)
{
    (void)arg;
    CONC_TRY(spawn_failures(fails));
    for (int i = many; i-- > 0;)
        CONC_TRY(conc_join(&tasks[i], NULL));
    return 0;
}

static int spawns_beside_failures(void *arg)
{
    (void)arg;
    CONC_TRY(spawn_failures(fails));
    for (int i = 0; i < many; i++) {
        conc_task t;
        CONC_TRY(conc_spawn_task(NULL, &t, returns_zero, NULL));
        CONC_TRY(conc_join(&t, NULL));
    }
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_join(&tasks[i], NULL));
    return 0;
}

GROWTH_TEST(joins_of_failed_background_tasks, joins_failures_from_the_last, 1000)
GROWTH_TEST(spawns_and_joins_next_to_failed_background_tasks, spawns_beside_failures, 1000)

/* ---- open generators, each of which consumes the next ---- */

static conc_gen chain[MOST];
static int first_closed;
static bool closed_any;

static int passes_on_from_the_next(conc_gen *g, void *arg)
{
    long i = (long)(intptr_t)arg;
    int item = (int)i, rc = i + 1 < many ? conc_gen_next(&chain[i + 1], &item) : 1;
    while (rc == 1) {
        rc = conc_gen_emit(g, &item);
        if (rc == 0)
            rc = i + 1 < many ? conc_gen_next(&chain[i + 1], &item) : 1;
    }
    if (!closed_any)
        first_closed = (int)i;
    closed_any = true;
    return rc;
}

static int opens_a_chain(int from, int step)
{
    int item;
    closed_any = false;
    first_closed = -1;
    memset(chain, 0, sizeof chain);
    for (int k = 0, i = from; k < many; k++, i += step)
        CONC_TRY(
            conc_gen_open(&chain[i], passes_on_from_the_next, (void *)(intptr_t)i, sizeof item));
    return conc_gen_next(&chain[0], &item) == 1 ? 0 : -EIO;
}

static int opens_a_chain_from_the_first(void *arg) { return arg ? 0 : opens_a_chain(0, 1); }
static int opens_a_chain_from_the_last(void *arg) { return arg ? 0 : opens_a_chain(many - 1, -1); }

TEST(closing_a_chain_of_generators_at_the_runs_end)
{
    check_grows_evenly(opens_a_chain_from_the_first, 100);
    CHECK_INT(first_closed, 0);
    check_grows_evenly(opens_a_chain_from_the_last, 100);
    CHECK_INT(first_closed, 0);
}

/* ---- locals ---- */

static conc_local keys[MOST];

static int gets_them_all(void *arg)
{
    for (int i = 0; i < many; i++)
        if (conc_local_get(&keys[i]) != arg)
            return -EINVAL;
    return 0;
}

static int sets_locals(void *arg)
{
    (void)arg;
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_local_set(&keys[i], &many));
    return gets_them_all(&many);
}

static int sets_locals_between_spawns(void *arg)
{
    (void)arg;
    for (int i = 0; i < many; i++) {
        CONC_TRY(conc_local_set(&keys[i], &many));
        CONC_TRY(conc_spawn(NULL, returns_zero, NULL)); /* shares the locals */
    }
    CONC_TRY(conc_settle());
    return gets_them_all(&many);
}

GROWTH_TEST(locals, sets_locals, 1000)
GROWTH_TEST(locals_that_every_task_shares, sets_locals_between_spawns, 500)

/* ---- very many waits that are cancelled at once ---- */

static conc_fn *waits;
static conc_lock locks[MOST];
static conc_cond conds[MOST];
static conc_rwlock rwlock;
static conc_sem sem;
static conc_event event;
static conc_latch latch;
static conc_future future;
static conc_barrier barrier = CONC_BARRIER(MOST + 1);
static conc_queue empty = CONC_QUEUE(int, 1), full = CONC_QUEUE(int, 1);
static conc_limiter limiter = {.rate = 1e-6};
static conc_task target;
static conc_group limited;

static int waits_with_lock(conc_cond *c, conc_lock *k)
{
    CONC_LOCKED(k) {
        return conc_cond_wait(c, k);
    }
    return 0;
}

static int waits_for_one_cond(void *arg)
{
    (void)arg;
    return waits_with_lock(&conds[0], &locks[0]);
}

static int waits_for_cond_of_pair(void *arg)
{
    long i = (conc_task *)arg - tasks;
    return waits_with_lock(&conds[i / 2], &locks[i / 2]);
}

static int waits_for_lock(void *arg)
{
    (void)arg;
    CONC_LOCKED(&locks[0]) {
        return conc_sleep(CONC_FOREVER);
    }
    return 0;
}

static int waits_to_read_or_write(void *arg)
{
    bool writes = ((conc_task *)arg - tasks) % 2 == 0;
    int rc = writes ? conc_rwlock_acquire_write(&rwlock) : conc_rwlock_acquire_read(&rwlock);
    if (rc == 0) {
        rc = conc_sleep(CONC_FOREVER);
        conc_rwlock_release(&rwlock);
    }
    return rc;
}

static int waits_for_sem(void *arg)
{
    (void)arg;
    return conc_sem_acquire(&sem);
}

static int waits_for_event(void *arg)
{
    (void)arg;
    return conc_event_wait(&event);
}

static int waits_for_latch(void *arg)
{
    (void)arg;
    return conc_latch_wait(&latch);
}

static int waits_for_future(void *arg)
{
    (void)arg;
    return conc_future_wait(&future, NULL);
}

static int waits_at_barrier(void *arg)
{
    (void)arg;
    return conc_barrier_wait(&barrier);
}

static int waits_to_get(void *arg)
{
    int item;
    (void)arg;
    return conc_queue_get(&empty, &item);
}

static int waits_to_put(void *arg)
{
    int item = 1;
    (void)arg;
    return conc_queue_put(&full, &item);
}

static int waits_for_tokens(void *arg)
{
    (void)arg;
    CONC_TRY(conc_limiter_acquire(&limiter, 1));
    return conc_limiter_acquire(&limiter, 1);
}

static int waits_to_join(void *arg)
{
    (void)arg;
    return conc_join(&target, NULL);
}

static int waits_for_the_first(void *arg)
{
    int item;
    conc_case c[] = {CONC_CASE_EVENT(&event), CONC_CASE_GET(&empty, &item), CONC_CASE_JOIN(&target),
                     CONC_CASE_AFTER(1000)};
    (void)arg;
    return conc_select(c, CONC_LEN(c));
}

static int waits_for_room(void *arg)
{
    (void)arg;
    return conc_spawn(&limited, sleeps_forever, NULL);
}

static int spawn_waiters(conc_group *g)
{
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_spawn_task(g, &tasks[i], waits, &tasks[i]));
    return conc_settle();
}

static int cancels_waiters(void *arg)
{
    int item = 1;
    conc_group g = {0}, targets = {0};
    (void)arg;
    if (!conc_queue_len(&full))
        CONC_TRY(conc_queue_try_put(&full, &item));
    limited = (conc_group){.limit = 1};
    CONC_TRY(conc_latch_add(&latch, 1));
    CONC_TRY(conc_spawn_task(&targets, &target, sleeps_forever, NULL));
    CONC_TRY_IN(&targets, conc_spawn(&limited, sleeps_forever, NULL));
    CONC_TRY(conc_group_begin(&g));
    CONC_TRY(spawn_waiters(&g));
    conc_group_cancel(&g);
    CONC_TRY(conc_group_wait(&g));
    conc_group_cancel(&limited);
    CONC_TRY(conc_group_wait(&limited));
    conc_group_cancel(&targets);
    CONC_TRY(conc_group_wait(&targets));
    return conc_latch_done(&latch);
}

static int leaves_waiters_in_a_deadlock(void *arg)
{
    conc_group g = {0};
    (void)arg;
    CONC_TRY(spawn_waiters(&g));
    return conc_group_wait(&g);
}

TEST(cancels_of_many_waiters)
{
    conc_fn *kinds[] = {waits_for_one_cond,     waits_for_cond_of_pair, waits_for_lock,
                        waits_to_read_or_write, waits_for_sem,          waits_for_event,
                        waits_for_latch,        waits_for_future,       waits_at_barrier,
                        waits_to_get,           waits_to_put,           waits_for_tokens,
                        waits_to_join,          waits_for_the_first,    waits_for_room};
    for (size_t i = 0; i < CONC_LEN(kinds); i++) {
        waits = kinds[i];
        check_grows_evenly(cancels_waiters, 200);
    }
}

TEST(the_end_of_many_condition_waiters_after_a_deadlock)
{
    conc_fn *kinds[] = {waits_for_one_cond, waits_for_cond_of_pair};
    result = -EDEADLK;
    CHECK(freopen("/dev/null", "w", stderr) != NULL); /* the report is long */
    for (size_t i = 0; i < CONC_LEN(kinds); i++) {
        waits = kinds[i];
        check_grows_evenly(leaves_waiters_in_a_deadlock, 200);
    }
}

/* ---- tasks that wait for one descriptor ---- */

#ifdef __linux__
static int stop;

static int waits_for_stop(void *arg)
{
    (void)arg;
    int rc = conc_wait_fd(stop, CONC_READABLE);
    return rc < 0 ? rc : 0;
}

static int selects_stop(void *arg)
{
    (void)arg;
    conc_case c[] = {CONC_CASE_FD(stop, CONC_READABLE), CONC_CASE_AFTER(1000)};
    int rc = conc_select(c, 2);
    return rc < 0 ? rc : c[0].result < 0;
}

static int starts_and_stops(conc_fn *fn)
{
    uint64_t one = 1;
    conc_group g = {0};
    stop = eventfd(0, EFD_NONBLOCK);
    for (int i = 0; i < many; i++) {
        CONC_TRY_IN(&g, conc_spawn(&g, fn, NULL));
        CONC_TRY_IN(&g, conc_yield());
    }
    CONC_TRY_IN(&g, conc_settle());
    CHECK_INT(write(stop, &one, sizeof one), sizeof one);
    int rc = conc_group_wait(&g);
    CHECK_INT(close(stop), 0);
    return rc;
}

static int many_wait_for_one_descriptor(void *arg)
{
    (void)arg;
    return starts_and_stops(waits_for_stop);
}

static int many_select_one_descriptor(void *arg)
{
    (void)arg;
    return starts_and_stops(selects_stop);
}

static int waits_to_send(void *arg)
{
    (void)arg;
    int rc = conc_wait_fd(stop, CONC_WRITABLE);
    return rc < 0 ? rc : 0;
}

/* An event for one writer leaves the many readers alone, and each cancel removes only one wait. */
static int others_come_and_go(void *arg)
{
    static char block[8192];
    int ends[2];
    conc_group g = {.keep_going = true};
    conc_task writer;
    (void)arg;
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    stop = ends[0];
    for (int i = 0; i < many; i++)
        CONC_TRY_IN(&g, conc_spawn_task(&g, &tasks[i], waits_for_stop, NULL));
    for (int i = 0; i < many; i++) {
        while (send(stop, block, sizeof block, MSG_DONTWAIT) > 0)
            continue;
        CONC_TRY_IN(&g, conc_spawn_task(&g, &writer, waits_to_send, NULL));
        CONC_TRY_IN(&g, conc_yield());
        while (recv(ends[1], block, sizeof block, MSG_DONTWAIT) > 0)
            continue;
        CONC_TRY_IN(&g, conc_join(&writer, NULL));
    }
    for (int i = 0; i < many; i++) {
        CHECK_INT(conc_cancel(&tasks[i]), 0);
        CONC_TRY_IN(&g, conc_join(&tasks[i], NULL));
    }
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(close(ends[1]), 0);
    return close(stop);
}

GROWTH_TEST(waits_for_one_descriptor, many_wait_for_one_descriptor, 1000)
GROWTH_TEST(selects_of_one_descriptor, many_select_one_descriptor, 1000)
GROWTH_TEST(waits_beside_others_for_one_descriptor, others_come_and_go, 1000)
#endif

/* ---- an idle loop after a burst of tasks, of which one in 64 stays ---- */

static int sleeps_on(void *lives)
{
    CONC_TRY(conc_sleep(0.001));
    return lives ? conc_sleep(CONC_FOREVER) : 0;
}

static int idles_after_a_burst(void *arg)
{
    conc_group g = {.stack_size = 16384};
    for (int i = 0; i < many; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, sleeps_on, i % 64 ? NULL : tasks));
    for (int i = 0; i < many; i++)
        CONC_TRY_IN(&g, conc_sleep(1));
    (void)arg;
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

GROWTH_TEST(an_idle_loop_after_a_burst, idles_after_a_burst, 1000)

/* ---- reports of many tasks, and the search for cycles ---- */

static conc_fn *reported; /* of each task */
static conc_task sleeper;

static int waits_for_the_next_lock(void *arg)
{
    long i = (conc_task *)arg - tasks;
    CONC_TRY(conc_lock_acquire(&locks[i]));
    CONC_TRY(conc_yield()); /* until each task has its own */
    int rc = conc_lock_acquire(&locks[(i + 1) % many]);
    if (rc == 0)
        (void)!conc_lock_release(&locks[(i + 1) % many]);
    (void)!conc_lock_release(&locks[i]);
    return rc;
}

static int joins_the_next(void *arg)
{
    long i = (conc_task *)arg - tasks;
    return conc_join(i + 1 < many ? &tasks[i + 1] : &sleeper, NULL);
}

/* A chain of tasks, each of which waits for its group, and the last one forever. */
static int has_the_next_in_a_group(void *arg)
{
    conc_task *t = arg;
    conc_group g = {0};
    if (t + 1 == tasks + many)
        return conc_event_wait(&event);
    CONC_TRY(conc_spawn_task(&g, t + 1, has_the_next_in_a_group, t + 1));
    return conc_group_wait(&g);
}

static int spawn_reported(conc_group *g)
{
    int n = reported == has_the_next_in_a_group ? 1 : many;
    for (int i = 0; i < n; i++)
        CONC_TRY(conc_spawn_task(g, &tasks[i], reported, &tasks[i]));
    return 0;
}

static int has_a_deadlock_reported(void *arg)
{
    conc_group g = {0};
    CONC_TRY(conc_spawn_task(&g, &sleeper, waits_for_event, arg));
    CONC_TRY(spawn_reported(&g));
    return conc_group_wait(&g);
}

static int dumps_everything(void *arg)
{
    conc_group g = {0};
    CONC_TRY(conc_spawn_task(&g, &sleeper, waits_for_event, arg));
    CONC_TRY(spawn_reported(&g));
    CONC_TRY(conc_settle());
    for (int i = 0; i < 10; i++)
        conc_dump(stderr);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static conc_fn *const kinds_reported[] = {waits_for_the_next_lock, joins_the_next, waits_for_lock,
                                          waits_to_read_or_write, has_the_next_in_a_group};

TEST(reports_of_deadlocks)
{
    result = -EDEADLK;
    CHECK(freopen("/dev/null", "w", stderr) != NULL);
    for (size_t i = 0; i < CONC_LEN(kinds_reported); i++) {
        reported = kinds_reported[i];
        check_grows_evenly(has_a_deadlock_reported, 150);
        /* with so many, the report lists only kinds */
        check_grows_evenly(has_a_deadlock_reported, 1000);
    }
}

TEST(dumps)
{
    CHECK(freopen("/dev/null", "w", stderr) != NULL);
    for (size_t i = 0; i < CONC_LEN(kinds_reported); i++) {
        reported = kinds_reported[i];
        check_grows_evenly(dumps_everything, 150);
    }
}

/* ---- a loop that is often woken while main_fn waits for the signal that ends it ---- */

static conc_loop *woken;
static void does_nothing(void *arg) { (void)arg; }

static void interrupts(void *arg)
{
    (void)arg;
    raise(SIGTERM);
}

static void wait_until_asleep(void)
{
    for (bool asleep = false; !asleep; sched_yield()) {
        pthread_mutex_lock(&woken->shared.mutex);
        asleep = woken->shared.asleep;
        pthread_mutex_unlock(&woken->shared.mutex);
    }
}

/* As often as there are tasks, each time while the loop sleeps. */
static void *wakes_the_loop(void *arg)
{
    for (int i = 0; i < many; i++) {
        wait_until_asleep();
        conc_post(woken, does_nothing, NULL);
    }
    conc_post(woken, interrupts, NULL);
    return arg;
}

static int waits_for_the_end(void *arg)
{
    pthread_t thread;
    conc_group g = {.stack_size = 16384};
    CONC_TRY(conc_spawn_task(&g, &sleeper, sleeps_forever, arg));
    CONC_TRY(spawn_reported(&g));
    CONC_TRY(conc_settle());
    woken = conc_loop_self();
    CHECK_INT(pthread_create(&thread, NULL, wakes_the_loop, NULL), 0);
    int rc = conc_sleep(CONC_FOREVER);
    CHECK_INT(pthread_join(thread, NULL), 0);
    return conc_group_end(&g, rc);
}

static long count_blocks_until_interrupt(int n)
{
    conc_options options = {.interrupt = true};
    many = n;
    blocks = 0;
    CHECK_INT(conc_run_with(&options, waits_for_the_end, NULL), -EINTR);
    return blocks;
}

TEST(searches_for_cycles_in_a_loop_that_is_woken_often)
{
    signal(SIGTERM, SIG_DFL); /* because the test runner has a handler */
    reported = joins_the_next;
    long few = count_blocks_until_interrupt(500), more = count_blocks_until_interrupt(5000);
    if (more > 20 * few)
        test_fail(__FILE__, __LINE__, "500 take %ld blocks, and 5000 take %ld", few, more);
}

static void deadlocks(void *arg)
{
    (void)arg;
    conc_event_set(&event);
}

static void *wakes_the_loop_into_a_deadlock(void *arg)
{
    for (int i = 0; i < 3; i++) {
        wait_until_asleep();
        conc_post(woken, i < 2 ? does_nothing : deadlocks, NULL);
    }
    return arg;
}

static int joins_the_other(void *arg)
{
    long i = (conc_task *)arg - tasks;
    CONC_TRY(conc_event_wait(&event));
    return conc_join(&tasks[1 - i], NULL);
}

static int waits_beside_a_circle(void *arg)
{
    pthread_t thread;
    conc_group g = {.stack_size = 16384};
    for (int i = 0; i < 1000; i++)
        CONC_TRY(
            conc_spawn_task(&g, &tasks[i], i < 2 ? joins_the_other : sleeps_forever, &tasks[i]));
    CONC_TRY(conc_settle());
    woken = conc_loop_self();
    CHECK_INT(pthread_create(&thread, NULL, wakes_the_loop_into_a_deadlock, arg), 0);
    int rc = conc_sleep(CONC_FOREVER);
    CHECK_INT(pthread_join(thread, NULL), 0);
    return conc_group_end(&g, rc);
}

TEST(a_cycle_of_tasks_is_found_although_the_loop_was_woken_just_before)
{
    conc_options options = {.interrupt = true};
    signal(SIGTERM, SIG_DFL);
    CHECK(freopen("/dev/null", "w", stderr) != NULL);
    event = (conc_event){0};
    CHECK_INT(conc_run_with(&options, waits_beside_a_circle, NULL), -EDEADLK);
}

/* ---- very many signal receivers ---- */

static conc_signals receivers[MOST];

static int open_receivers(void)
{
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_signals_open(&receivers[i], (int[]){SIGUSR1, SIGHUP}, 2));
    return 0;
}

static int waits_for_a_signal(void *arg)
{
    (void)arg;
    int rc = conc_wait_signal(SIGUSR1);
    return rc < 0 ? rc : 0;
}

static int cancels_waits_for_signals(void *arg)
{
    conc_group g = {.keep_going = true};
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_spawn(&g, waits_for_a_signal, arg));
    CONC_TRY(conc_settle());
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static int ends_waits_for_signals(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_spawn(&g, waits_for_a_signal, arg));
    CONC_TRY(conc_settle());
    CHECK_INT(raise(SIGUSR1), 0);
    return conc_group_wait(&g);
}

static int closes_receivers_from_the_first(void *arg)
{
    CONC_TRY(open_receivers());
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_signals_close(&receivers[i]));
    return arg != NULL;
}

static int closes_receivers_from_the_last(void *arg)
{
    CONC_TRY(open_receivers());
    for (int i = many; i-- > 0;)
        CONC_TRY(conc_signals_close(&receivers[i]));
    return arg != NULL;
}

/* The end of the run closes them. */
static int leaves_receivers_open(void *arg)
{
    memset(receivers, 0, sizeof receivers);
    return arg ? -EINVAL : open_receivers();
}

static int sleeps_beside_receivers(void *arg)
{
    conc_group g = {0};
    memset(receivers, 0, sizeof receivers);
    CONC_TRY(open_receivers());
    for (int i = 0; i < many; i++) {
        CONC_TRY(conc_sleep(1));
        CONC_TRY(conc_spawn(&g, returns_zero, arg));
    }
    return conc_group_wait(&g);
}

static int receives_and_sleeps(void *arg)
{
    conc_signals s = {0};
    CONC_TRY(conc_signals_open(&s, (int[]){SIGUSR1}, 1));
    int rc = conc_sleep(1);
    CONC_TRY(conc_signals_close(&s));
    return arg ? -EINVAL : rc;
}

static int sleeps_with_receivers(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_spawn(&g, receives_and_sleeps, arg));
    return conc_group_wait(&g);
}

static int receives_others_than_many_wait_for(void *arg)
{
    conc_group g = {0};
    conc_signals s = {0};
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_spawn(&g, waits_for_a_signal, arg));
    CONC_TRY(conc_settle());
    CONC_TRY(conc_signals_open(&s, (int[]){SIGUSR2}, 1));
    for (int i = 0; i < many; i++) {
        CHECK_INT(raise(SIGUSR2), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(conc_signals_next(&s), SIGUSR2);
    }
    CONC_TRY(conc_signals_close(&s));
    CHECK_INT(raise(SIGUSR1), 0);
    return conc_group_wait(&g);
}

GROWTH_TEST(cancels_of_waits_for_signals, cancels_waits_for_signals, 1000)
GROWTH_TEST(waits_for_signals, ends_waits_for_signals, 1000)
GROWTH_TEST(receivers_closed_from_the_first, closes_receivers_from_the_first, 1000)
GROWTH_TEST(receivers_closed_from_the_last, closes_receivers_from_the_last, 1000)
GROWTH_TEST(receivers_that_the_run_closes, leaves_receivers_open, 1000)
GROWTH_TEST(sleeps_beside_receivers_of_signals, sleeps_beside_receivers, 1000)
GROWTH_TEST(sleeps_of_tasks_with_receivers_of_signals, sleeps_with_receivers, 1000)
GROWTH_TEST(signals_beside_waits_for_others, receives_others_than_many_wait_for, 1000)

TEST(receivers_of_signals_that_were_blocked)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    check_grows_evenly(closes_receivers_from_the_first, 1000);
    check_grows_evenly(closes_receivers_from_the_last, 1000);
    check_grows_evenly(cancels_waits_for_signals, 1000);
}

/* ---- what debug mode records, released in the order of acquisition ---- */

static int releases_locks(void *arg)
{
    (void)arg;
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_lock_acquire(&locks[i]));
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_lock_release(&locks[i]));
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_rwlock_acquire_read(&rwlock));
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_rwlock_release(&rwlock));
    return 0;
}

static int closes_streams(void *arg)
{
    static conc_stream streams[1000];
    (void)arg;
    for (int i = 0; i < many; i++) {
        int fd = dup(0);
        streams[i] = (conc_stream){0};
        CHECK(fd >= 0);
        CONC_TRY(conc_stream_open(&streams[i], fd));
    }
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_stream_close(&streams[i]));
    return 0;
}

/* ---- jobs on the virtual clock ---- */

static int returns_at_once(void *arg)
{
    (void)arg;
    return 0;
}

/* Each conc_block makes the clock move, and then stand still again, for all queued jobs. */
static int blocks_again_and_again(void *arg)
{
    (void)arg;
    for (int i = 0; i < 300; i++)
        CHECK_INT(conc_block(0.001), 0);
    return 0;
}

static long blocks_of_first;

static int blocks_before_a_queue(void *arg)
{
    static conc_job first, queued[MOST];
    (void)arg;
    conc_pool pool = {.threads = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_submit(&pool, &first, blocks_again_and_again, NULL), 0);
    for (int i = 0; i < many; i++)
        CHECK_INT(conc_pool_submit(&pool, &queued[i], returns_at_once, NULL), 0);
    long before = blocks;
    CHECK_INT(conc_job_wait(&first, NULL), 0);
    blocks_of_first = blocks - before;
    return conc_pool_close(&pool);
}

/* Threads spin for a while before they sleep: that is work, too. */
TEST(a_job_that_blocks_before_many_in_a_queue)
{
    count_blocks(blocks_before_a_queue, MOST / 100);
    long few = blocks_of_first;
    count_blocks(blocks_before_a_queue, MOST);
    if (blocks_of_first > 4 * few)
        test_fail(__FILE__, __LINE__, "%ld blocks before few, %ld before many", few,
                  blocks_of_first);
}

static int opens_many_pools(void *arg)
{
    static conc_pool pools[MOST];
    (void)arg;
    for (int i = 0; i < many; i++)
        CHECK_INT(conc_pool_open(&pools[i]), 0);
    for (int i = 0; i < many; i++)
        CHECK_INT(conc_pool_close(&pools[i]), 0);
    return 0;
}

GROWTH_TEST(pools_closed_from_the_first, opens_many_pools, 500)

TEST(debug_mode)
{
    CHECK(freopen("/dev/null", "r", stdin) != NULL);
    CHECK(freopen("/dev/null", "w", stderr) != NULL);
    debug = true;
    check_grows_evenly(releases_locks, 1000);
    check_grows_evenly(closes_streams, 50);
}
