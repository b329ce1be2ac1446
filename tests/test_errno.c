/* test_errno.c - every call of the three headers preserves errno, whether it succeeds or fails: in
 * a task, in a posted function, in a job, and on a thread without a run.
 *
 * Before each call, errno is set to a value that no system call sets. Other tasks, posted
 * functions and jobs change theirs meanwhile.
 *
 * Not under: save-fpu, aarch64, aarch64-bti, riscv64, valgrind, single, clang, static, gcc-asan
 * (how tasks switch is tested elsewhere; emulators and Valgrind start no processes)
 */
#define _GNU_SOURCE 1 /* pipe2 */
#define TEST_POOL
#define TEST_SYNC
#include "io_test.h"

#include <limits.h>
#include <netdb.h>
#include <pthread.h>
#include <sys/resource.h>

enum { OWN = 4711, ANY = -9999 };

/* ---- one call ---- */

static void check_kept(int line, const char *call, long long actual, long long expected)
{
    int after = errno;
    if (after != OWN)
        test_fail(__FILE__, line, "errno is %d after %s, which returned %lld", after, call, actual);
    if (expected != ANY && actual != expected)
        test_fail(__FILE__, line, "%s is %lld, not %lld", call, actual, expected);
}

/* The call preserves errno, and returns the expected result, or any result, or none. */
#define GIVES(expected, call) \
    check_kept(__LINE__, #call, (errno = OWN, (long long)(call)), (expected))
#define KEEPS(call) GIVES(ANY, call)
#define DOES(call) (errno = OWN, (void)(call), check_kept(__LINE__, #call, 0, 0))
/* The same, with a result of 0 or more that is stored in `to`. */
#define OPENS(to, call) \
    (errno = OWN, (to) = (call), check_kept(__LINE__, #call, (to), (to)), CHECK((to) >= 0))

/* ---- what other tasks do meanwhile ---- */

static int spoils(void *arg)
{
    (void)arg;
    for (errno = 1; conc_sleep(0.01) == 0;)
        errno = errno % 100 + 1;
    return 0;
}

static int returns(void *arg)
{
    errno = 11;
    return *(int *)arg;
}

static int keeps_and_returns(void *arg) { return *(int *)arg; }

static int takes_two_turns(void *arg)
{
    errno = 12;
    int rc = conc_yield();
    errno = 13;
    return rc ? rc : *(int *)arg;
}

static int lasts(void *arg)
{
    (void)arg;
    errno = 14;
    return conc_sleep(CONC_FOREVER);
}

/* Runs in the caller's own task. */
static int waits(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static void posted(void *arg)
{
    errno = 15;
    ++*(int *)arg;
}

static void frees(void *arg) { ++*(int *)arg; }

/* Another task in g, whose errno changes with each of its turns. */
static void begin_spoiling(conc_group *g) { CHECK_INT(conc_spawn(g, spoils, NULL), 0); }

static void end_spoiling(conc_group *g)
{
    conc_group_cancel(g);
    CHECK_INT(conc_group_wait(g), 0);
}

static int zero = 0, seven = 7, minus = -EIO;

/* ---- calls that are invalid everywhere ---- */

static bool less(const void *a, const void *b) { return *(const int *)a < *(const int *)b; }

static void all_of_conc_are_wrong(void)
{
    conc_scope fresh = {0};
    conc_task none = {0};
    KEEPS(conc_sleep(NAN));
    KEEPS(conc_sleep_until(NAN));
    KEEPS(conc_block(NAN));
    KEEPS(conc_scope_begin(NULL, 1));
    KEEPS(conc_scope_end(NULL, 0));
    KEEPS(conc_scope_end(&fresh, 0));
    DOES(conc_scope_cancel(NULL));
    KEEPS(conc_scope_set_timeout(NULL, 1));
    DOES(conc_scope_shield(NULL, true));
    KEEPS(conc_timeout(1, NULL, NULL));
    KEEPS(conc_shield(NAN, waits, NULL));
    KEEPS(conc_group_begin(NULL));
    KEEPS(conc_spawn(NULL, NULL, NULL));
    KEEPS(conc_spawn_task(NULL, NULL, NULL, NULL));
    KEEPS(conc_start(NULL, NULL, NULL));
    KEEPS(conc_started(-1));
    KEEPS(conc_group_wait(NULL));
    KEEPS(conc_group_end(NULL, -EIO));
    DOES(conc_group_cancel(NULL));
    KEEPS(conc_group_next(NULL, NULL));
    KEEPS(conc_gather(NULL, 1));
    KEEPS(conc_gather_all(NULL, 1));
    KEEPS(conc_map(NULL, NULL, 1, 1));
    KEEPS(conc_map_all(NULL, NULL, 1, 1, NULL));
    KEEPS(conc_join(NULL, NULL));
    KEEPS(conc_join(&none, NULL));
    KEEPS(conc_cancel(NULL));
    KEEPS(conc_done(NULL));
    KEEPS(conc_name(NULL) != NULL);
    DOES(conc_set_name(NULL, NULL));
    GIVES(-EIO, conc_fail(-EIO, NULL));
    KEEPS(conc_error_text(NULL) != NULL);
    KEEPS(conc_strerror(-4000) != NULL);
    KEEPS(conc_local_set(NULL, NULL));
    KEEPS(conc_local_get(NULL) != NULL);
    KEEPS(conc_gen_open(NULL, NULL, NULL, 0));
    KEEPS(conc_gen_emit(NULL, NULL));
    KEEPS(conc_gen_next(NULL, NULL));
    KEEPS(conc_gen_close(NULL));
    KEEPS(conc_loop_hold(NULL));
    KEEPS(conc_loop_release(NULL));
    KEEPS(conc_post(NULL, NULL, NULL));
    DOES(conc_free(NULL));
    GIVES(-EINVAL, conc_embed_begin(NULL, NULL, NULL, NULL));
    KEEPS(conc_embed_fd(NULL));
    KEEPS(conc_embed_timeout(NULL) > 0);
    KEEPS(conc_embed_step(NULL));
    KEEPS(conc_embed_end(NULL));
}

static void all_descriptors_are_wrong(void)
{
    char buf[8] = "";
    conc_stream s = {0};
    conc_signals signals = {0};
    conc_server server = {.fd = -1};
    struct iovec part = {buf, sizeof buf};
    int fds[] = {-1, 1000, INT_MAX};
    for (size_t i = 0; i < CONC_LEN(fds); i++) {
        int fd = fds[i];
        KEEPS(conc_wait_fd(fd, CONC_READABLE));
        KEEPS(conc_wait_fd(fd, 99));
        KEEPS(conc_read(fd, buf, 8));
        KEEPS(conc_write(fd, buf, 8));
        KEEPS(conc_readv(fd, &part, 1));
        KEEPS(conc_writev(fd, &part, 1));
        KEEPS(conc_recv(fd, buf, 8, 0));
        KEEPS(conc_send(fd, buf, 8, 0));
        KEEPS(conc_recvfrom(fd, buf, 8, 0, NULL, NULL));
        KEEPS(conc_sendto(fd, buf, 8, 0, NULL, 0));
        KEEPS(conc_read_full(fd, buf, 8));
        KEEPS(conc_write_full(fd, buf, 8));
        KEEPS(conc_accept(fd));
        GIVES(-EBADF, conc_address(fd, false, buf, sizeof buf));
        GIVES(-EBADF, conc_close(fd));
    }
    KEEPS(conc_readv(0, NULL, -1));
    KEEPS(conc_address(0, true, NULL, 0));
    KEEPS(conc_serve(NULL));
    KEEPS(conc_serve(&server));
    KEEPS(conc_stream_open(NULL, -1));
    KEEPS(conc_stream_open(&s, -1));
    KEEPS(conc_stream_open(&s, 1000));
    KEEPS(conc_stream_read(&s, buf, 1));
    KEEPS(conc_stream_read_full(NULL, buf, 1));
    KEEPS(conc_stream_read_until(&s, NULL, 0, NULL));
    KEEPS(conc_stream_read_line(&s, NULL));
    KEEPS(conc_stream_write(&s, buf, 1));
    KEEPS(conc_stream_printf(&s, "%d", 1));
    KEEPS(conc_stream_flush(&s));
    KEEPS(conc_stream_close(&s));
    KEEPS(conc_stream_close(NULL));
    KEEPS(conc_signals_open(NULL, NULL, 0));
    KEEPS(conc_signals_open(&signals, (const int[]){SIGKILL}, 1));
    KEEPS(conc_signals_open(&signals, (const int[]){12345}, 1));
    KEEPS(conc_signals_next(&signals));
    KEEPS(conc_signals_close(&signals));
    KEEPS(conc_wait_signal(SIGKILL));
}

static void all_addresses_are_wrong(void)
{
    static const char *const texts[] = {NULL,          "",          "nope",
                                        "unix:",       "1.2.3.4:x", "[fe80::1%nope]:80",
                                        "unix:/no/x",  "[::g]:1",   "255.255.255.255:1",
                                        "127.0.0.1:1", "no such:1", "unix:/dev/null/x"};
    struct sockaddr_storage found;
    conc_listen_options reuse = {.reuse_port = true, .backlog = -1};
    for (size_t i = 0; i < CONC_LEN(texts); i++) {
        KEEPS(conc_dial(texts[i]));
        KEEPS(conc_listen_with(texts[i], &reuse));
    }
    KEEPS(conc_listen("203.0.113.1:1"));
    KEEPS(conc_resolve(NULL, NULL, NULL, 0));
    KEEPS(conc_resolve("127.0.0.1", "no-such-port", &found, 1));
    KEEPS(conc_resolve("", "80", &found, 1));
}

static void all_of_sync_are_wrong(void)
{
    conc_lock lock = {0};
    conc_rwlock rwlock = {0};
    conc_sem sem = CONC_SEM(1, .max = 1), empty = CONC_SEM(0), senseless = CONC_SEM(-1);
    conc_queue q = {.kind = CONC_QUEUE_PRIORITY}, closed = {.item_size = 4};
    conc_case cases[] = {CONC_CASE_FD(-1, CONC_READABLE)};
    conc_latch latch = {0};
    conc_limiter senseless_limiter = {0}, limiter = {.rate = 1};
    KEEPS(conc_lock_acquire(NULL));
    KEEPS(conc_lock_try_acquire(NULL));
    KEEPS(conc_lock_release(NULL));
    KEEPS(conc_lock_release(&lock));
    KEEPS(conc_lock_owner(NULL) != NULL);
    KEEPS(conc_rwlock_acquire_read(NULL));
    KEEPS(conc_rwlock_acquire_write(NULL));
    KEEPS(conc_rwlock_try_acquire_read(NULL));
    KEEPS(conc_rwlock_try_acquire_write(NULL));
    KEEPS(conc_rwlock_release(&rwlock));
    KEEPS(conc_sem_acquire(&senseless));
    KEEPS(conc_sem_try_acquire(&empty));
    KEEPS(conc_sem_release(&sem));
    KEEPS(conc_event_wait(NULL));
    DOES(conc_event_set(NULL));
    DOES(conc_event_clear(NULL));
    KEEPS(conc_event_is_set(NULL));
    KEEPS(conc_cond_wait(NULL, &lock));
    DOES(conc_cond_notify(NULL, 1));
    DOES(conc_cond_notify_all(NULL));
    KEEPS(conc_barrier_wait(NULL));
    KEEPS(conc_latch_add(&latch, -1));
    KEEPS(conc_latch_done(&latch));
    KEEPS(conc_latch_wait(NULL));
    KEEPS(conc_future_set(NULL, 0, NULL));
    KEEPS(conc_future_wait(NULL, NULL));
    KEEPS(conc_future_is_set(NULL));
    conc_queue_close(&closed);
    KEEPS(conc_queue_put(&q, NULL));
    KEEPS(conc_queue_try_put(&closed, &zero));
    KEEPS(conc_queue_get(&closed, &(int){0}));
    KEEPS(conc_queue_try_get(&q, NULL));
    KEEPS(conc_queue_len(NULL));
    KEEPS(conc_queue_task_done(&closed));
    KEEPS(conc_queue_join(NULL));
    DOES(conc_queue_close(NULL));
    DOES(conc_queue_destroy(NULL));
    KEEPS(conc_select(NULL, 1));
    KEEPS(conc_select(cases, 1));
    KEEPS(conc_limiter_acquire(&senseless_limiter, 1));
    KEEPS(conc_limiter_acquire(&limiter, 2));
    KEEPS(conc_limiter_try_acquire(NULL, 1));
}

static void all_of_pool_are_wrong(void)
{
    conc_pool pool = {0};
    conc_procs procs = {0};
    conc_job job = {0};
    conc_channel c = {0};
    conc_child child = {0};
    char buf[8];
    void *data;
    int freed = 0;
    KEEPS(conc_pool_open(&(conc_pool){.threads = -1}));
    KEEPS(conc_pool_close(&pool));
    KEEPS(conc_pool_run(&pool, keeps_and_returns, &zero));
    KEEPS(conc_pool_submit(&pool, &job, keeps_and_returns, &zero));
    KEEPS(conc_pool_map(&pool, keeps_and_returns, &zero, 1, 0));
    KEEPS(conc_pool_map_all(NULL, keeps_and_returns, &zero, 1, 0, NULL));
    KEEPS(conc_job_wait(&job, NULL));
    KEEPS(conc_job_cancel(&job));
    KEEPS(conc_job_done(&job));
    KEEPS(conc_job_cancelled());
    KEEPS(conc_offload(NULL, NULL));
    KEEPS(conc_offload_abandon(NULL, &freed, frees));
    KEEPS(conc_procs_open(&(conc_procs){.workers = -1}));
    KEEPS(conc_procs_close(&procs));
    KEEPS(conc_procs_run(&procs, keeps_and_returns, NULL, 0));
    KEEPS(conc_procs_submit(&procs, &job, keeps_and_returns, NULL, 0));
    KEEPS(conc_procs_map(&procs, keeps_and_returns, &zero, 1, 4));
    KEEPS(conc_procs_map_all(&procs, keeps_and_returns, &zero, 1, 4, NULL));
    KEEPS(conc_procs_call(&procs, NULL, NULL, 0, NULL, 0));
    KEEPS(conc_channel_send(&c, &zero));
    KEEPS(conc_channel_recv(&c, buf));
    KEEPS(conc_channel_try_send(NULL, &zero));
    KEEPS(conc_channel_try_recv(&c, buf));
    DOES(conc_channel_close(&c));
    DOES(conc_channel_destroy(NULL));
    KEEPS(conc_shared_alloc(0) != NULL);
    KEEPS(conc_shared_alloc(SIZE_MAX / 4) != NULL);
    DOES(conc_shared_free(NULL));
    KEEPS(conc_file_read("/no/such/file", &data, NULL));
    KEEPS(conc_file_read("/", &data, NULL));
    KEEPS(conc_file_read(NULL, NULL, NULL));
    KEEPS(conc_file_write("/no/such/file", "x", 1));
    KEEPS(conc_file_write("", "x", 1));
    KEEPS(conc_file_write("/dev/full", "x", 1));
    KEEPS(conc_file_append("/dev/full", "x", 1));
    KEEPS(conc_file_append("/", "x", 1));
    KEEPS(conc_child_start(NULL));
    KEEPS(conc_child_start(&child));
    child.argv = (const char *const[]){"/no/such/program", NULL};
    KEEPS(conc_child_start(&child));
    KEEPS(conc_child_wait(&child, NULL));
    KEEPS(conc_child_kill(&child, SIGTERM));
    KEEPS(conc_child_close(&child));
}

/* Calls that succeed everywhere. */
static void all_that_needs_no_run_works(void)
{
    conc_latch latch = {0};
    conc_event event = {0};
    conc_future future = {0};
    conc_cond cond = {0};
    conc_queue q = CONC_QUEUE(int, 0, .less = less);
    conc_channel c = CONC_CHANNEL(int, 2);
    conc_sem sem = CONC_SEM(1);
    conc_stats stats;
    int item, ends[2];
    KEEPS(conc_version() != NULL);
    KEEPS(conc_random(0, 1) > 2);
    KEEPS(conc_now());
    KEEPS(conc_deadline() > 0);
    KEEPS(conc_cancelled());
    KEEPS(conc_self() != NULL);
    KEEPS(conc_loop_self() != NULL);
    KEEPS(conc_last_error() != NULL);
    KEEPS(conc_strerror(-EPERM) != NULL);
    KEEPS(conc_fail(-EIO, "%d", 1));
    DOES(conc_get_stats(&stats));
    GIVES(0, conc_latch_add(&latch, 1));
    GIVES(0, conc_latch_done(&latch));
    DOES(conc_event_set(&event));
    DOES(conc_event_clear(&event));
    GIVES(0, conc_event_is_set(&event));
    DOES(conc_cond_notify(&cond, 1));
    DOES(conc_cond_notify_all(&cond));
    GIVES(0, conc_future_set(&future, 0, NULL));
    GIVES(-EALREADY, conc_future_set(&future, 0, NULL));
    GIVES(0, conc_sem_try_acquire(&sem));
    GIVES(0, conc_sem_release(&sem));
    GIVES(0, conc_queue_try_put(&q, &seven));
    GIVES(1, conc_queue_len(&q));
    GIVES(0, conc_queue_try_get(&q, &item));
    GIVES(0, conc_queue_task_done(&q));
    DOES(conc_queue_close(&q));
    DOES(conc_queue_destroy(&q));
    GIVES(0, conc_channel_try_send(&c, &seven));
    GIVES(0, conc_channel_try_recv(&c, &item));
    GIVES(-EAGAIN, conc_channel_try_recv(&c, &item));
    DOES(conc_channel_destroy(&c));
    CHECK_INT(pipe(ends), 0);
    GIVES(0, conc_close(ends[0]));
    GIVES(0, conc_close(ends[1]));
#ifdef __linux__
    void *shared = NULL;
    KEEPS((shared = conc_shared_alloc(100)) != NULL);
    DOES(conc_shared_free(shared));
#endif
}

static void all_are_tried(void)
{
    struct rlimit few = {0, 0}, many;
    all_of_conc_are_wrong();
    all_descriptors_are_wrong();
    all_addresses_are_wrong();
    all_of_sync_are_wrong();
    all_of_pool_are_wrong();
    all_that_needs_no_run_works();
    /* again, where no call gets a descriptor */
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &many), 0);
    few.rlim_max = many.rlim_max;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &few), 0);
    all_descriptors_are_wrong();
    all_addresses_are_wrong();
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &many), 0);
}

static int tries_all(void *arg)
{
    (void)arg;
    all_are_tried();
    return 0;
}

static void posts_all(void *arg)
{
    all_are_tried();
    conc_event_set(arg);
}

IO_TEST(invalid_calls_of_a_task_preserve_errno)
{
    conc_group g = {0};
    begin_spoiling(&g);
    all_are_tried();
    end_spoiling(&g);
}

IO_TEST(calls_of_a_task_that_is_cancelled_preserve_errno)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 0), 0);
    all_are_tried();
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
}

IO_TEST(calls_of_posted_functions_preserve_errno)
{
    conc_event done = {0};
    CHECK_INT(conc_post(conc_loop_self(), posts_all, &done), 0);
    CHECK_INT(conc_event_wait(&done), 0);
}

IO_TEST(calls_of_jobs_preserve_errno)
{
    CONC_AUTO(conc_pool, pool) = {.threads = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_run(&pool, tries_all, NULL), 0);
    CHECK_INT(conc_offload(tries_all, NULL), 0);
    CHECK_INT(conc_offload_abandon(tries_all, NULL, NULL), 0);
}

TEST(calls_on_a_thread_without_a_run_preserve_errno) { all_are_tried(); }

/* Writing to standard error fails. */
static void fill_standard_error(void)
{
    int full = open("/dev/full", O_WRONLY);
    CHECK(full >= 0 && dup2(full, 2) == 2);
    close(full);
}

static void *tries_all_in_a_thread(void *arg)
{
    all_are_tried();
    return arg;
}

static int tries_all_here_and_in_a_thread(void *arg)
{
    pthread_t thread;
    CHECK_INT(pthread_create(&thread, NULL, tries_all_in_a_thread, NULL), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    return tries_all(arg);
}

TEST(reports_of_debug_mode_that_cannot_be_written_preserve_errno)
{
    conc_options options = {.debug = true};
    fill_standard_error();
    GIVES(0, conc_run_with(&options, tries_all_here_and_in_a_thread, NULL));
}

/* ---- calls that succeed in a task, from top to bottom ---- */

IO_TEST(time_and_scopes_preserve_errno)
{
    conc_scope s = {0}, again = {0};
    conc_group g = {0};
    begin_spoiling(&g);
    GIVES(0, conc_sleep(1));
    GIVES(0, conc_sleep_until(conc_now() + 1));
    GIVES(0, conc_yield());
    GIVES(0, conc_block(0.001));
    GIVES(0, conc_scope_begin(&s, 1));
    GIVES(0, conc_scope_set_timeout(&s, 2));
    DOES(conc_scope_shield(&s, true));
    GIVES(-ECANCELED, conc_sleep(3));
    GIVES(-ETIMEDOUT, conc_scope_end(&s, -ECANCELED));
    GIVES(0, conc_scope_begin(&again, CONC_FOREVER));
    DOES(conc_scope_cancel(&again));
    GIVES(-ECANCELED, conc_yield());
    GIVES(0, conc_scope_end(&again, -ECANCELED));
    GIVES(7, conc_timeout(1, keeps_and_returns, &seven));
    GIVES(-ETIMEDOUT, conc_timeout(1, waits, NULL));
    GIVES(7, conc_shield(1, keeps_and_returns, &seven));
    end_spoiling(&g);
    GIVES(0, conc_settle());
}

static int starts(void *arg)
{
    errno = 17;
    int rc = conc_started(*(int *)arg);
    return rc ? rc : conc_sleep(CONC_FOREVER);
}

IO_TEST(groups_and_tasks_preserve_errno)
{
    conc_group g = {.limit = 2, .keep_going = true}, empty = {0}, failing = {0};
    conc_task t[2], *next;
    int result;
    GIVES(0, conc_group_begin(&g));
    GIVES(0, conc_spawn_task(&g, &t[0], takes_two_turns, &seven));
    GIVES(0, conc_spawn(&g, takes_two_turns, &zero));
    GIVES(0, conc_spawn_task(&g, &t[1], takes_two_turns, &minus)); /* waits for room */
    GIVES(0, conc_join(&t[0], &result));
    GIVES(1, conc_group_next(&g, &next));
    GIVES(0, conc_group_next(&g, &next));
    KEEPS(conc_error_text(&t[1]) != NULL);
    KEEPS(conc_name(&t[1]) != NULL);
    GIVES(-EALREADY, conc_cancel(&t[1]));
    GIVES(1, conc_done(&t[1]));
    GIVES(7, conc_start(&g, starts, &seven));
    GIVES(-EINVAL, conc_start(&g, takes_two_turns, &zero));
    GIVES(0, conc_spawn_task(&g, &t[0], lasts, NULL));
    DOES(conc_set_name(&t[0], "a name"));
    DOES(conc_set_name(conc_self(), "another"));
    GIVES(0, conc_cancel(&t[0]));
    DOES(conc_group_cancel(&g));
    KEEPS(conc_group_wait(&g));
    GIVES(0, conc_group_begin(&empty));
    GIVES(7, conc_group_end(&empty, 7));
    CHECK_INT(conc_spawn(&failing, lasts, NULL), 0);
    GIVES(-EIO, conc_group_end(&failing, -EIO));
}

static int tries(void *arg)
{
    CONC_TRY(*(int *)arg);
    return 1;
}

IO_TEST(batches_and_errors_preserve_errno)
{
    int args[] = {1, -EIO, 3}, results[3];
    static conc_local key = {"key"};
    conc_call calls[] = {CONC_CALL(takes_two_turns, &zero), CONC_CALL(takes_two_turns, &minus)};
    GIVES(-EIO, conc_gather(calls, 2));
    GIVES(0, conc_gather_all(calls, 2));
    GIVES(-EIO, conc_map(takes_two_turns, args, 3, sizeof args[0]));
    GIVES(0, conc_map_all(takes_two_turns, args, 3, sizeof args[0], results));
    GIVES(0, CONC_GATHER(CONC_CALL(returns, &zero), CONC_CALL(returns, &zero)));
    GIVES(-EIO, CONC_MAP(returns, args));
    GIVES(0, CONC_MAP_ALL(returns, args, results));
    GIVES(-EIO, tries(&minus));
    KEEPS(strcmp(conc_last_error(), ""));
    GIVES(0, conc_local_set(&key, &seven));
    GIVES(1, conc_local_get(&key) == &seven);
    /* no task collects its error */
    GIVES(0, conc_spawn(NULL, returns, &minus));
    io_failures.expected = 1;
    GIVES(0, conc_settle());
}

static int emits(conc_gen *g, void *arg)
{
    (void)arg;
    for (int i = 0;; i++) {
        int rc = conc_gen_emit(g, &i);
        if (rc)
            return rc;
    }
}

static void uses_autos(int fd)
{
    CONC_AUTO(conc_group, g) = {0};
    CONC_AUTO(conc_gen, gen) = {0};
    CONC_AUTO(conc_queue, q) = CONC_QUEUE(int, 1);
    CONC_AUTO(conc_channel, c) = CONC_CHANNEL(int, 1);
    CONC_AUTO(conc_stream, s) = {0};
    CONC_AUTO(conc_signals, signals) = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 1};
    CONC_AUTO(conc_procs, procs) = {.workers = 1};
    CONC_AUTO(conc_child, child) = {0};
    int item;
    GIVES(0, conc_spawn(&g, lasts, NULL));
    GIVES(0, conc_gen_open(&gen, emits, NULL, sizeof item));
    GIVES(1, conc_gen_next(&gen, &item));
    GIVES(0, conc_queue_put(&q, &item));
    GIVES(0, conc_channel_send(&c, &item));
    GIVES(0, conc_stream_open(&s, fd));
    GIVES(1, conc_stream_write(&s, "x", 1));
    GIVES(0, conc_signals_open(&signals, (const int[]){SIGUSR1}, 1));
    GIVES(0, conc_pool_open(&pool));
    GIVES(7, conc_pool_run(&pool, returns, &seven));
    (void)procs;
    (void)child;
    errno = OWN;
}

IO_TEST(generators_and_automatic_objects_preserve_errno)
{
    conc_gen g = {0};
    int item, end[2];
    GIVES(0, conc_gen_open(&g, emits, NULL, sizeof item));
    GIVES(-EINVAL, conc_gen_open(&g, emits, NULL, sizeof item));
    GIVES(1, conc_gen_next(&g, &item));
    GIVES(-EINVAL, conc_gen_emit(&g, &item));
    GIVES(0, conc_gen_close(&g));
    io_open(IO_SOCKET, end);
    DOES(uses_autos(end[0]));
    GIVES(0, conc_close(end[1]));
}

/* ---- descriptors ---- */

/* Runs in the caller's own task. */
static int reads(void *fd)
{
    char buf[4];
    return (int)conc_read_full(*(int *)fd, buf, sizeof buf);
}

static int writes_late(void *arg)
{
    errno = 19;
    int rc = conc_sleep(1);
    return rc ? rc : (int)conc_write(*(int *)arg, "late", 4);
}

static void all_calls_of(io_kind kind)
{
    int end[2];
    char buf[8];
    conc_group g = {0};
    struct iovec part = {buf, 4};
    io_open(kind, end);
    GIVES(CONC_WRITABLE, conc_wait_fd(end[1], CONC_WRITABLE));
    CHECK_INT(conc_spawn(&g, writes_late, &end[1]), 0);
    GIVES(CONC_READABLE, conc_wait_fd(end[0], CONC_READABLE));
    GIVES(4, conc_read(end[0], buf, sizeof buf));
    CHECK_INT(conc_spawn(&g, writes_late, &end[1]), 0);
    GIVES(4, conc_readv(end[0], &part, 1));
    GIVES(4, conc_writev(end[1], &part, 1));
    GIVES(4, conc_read_full(end[0], buf, 4));
    GIVES(4, conc_write_full(end[1], buf, 4));
    GIVES(4, conc_read(end[0], buf, 4));
    if (io_is_socket(kind)) {
        GIVES(4, conc_send(end[1], buf, 4, 0));
        GIVES(4, conc_recv(end[0], buf, 4, 0));
        GIVES(-EAGAIN, conc_recv(end[0], buf, 4, MSG_DONTWAIT));
        GIVES(4, conc_sendto(end[1], buf, 4, 0, NULL, 0));
        GIVES(4, conc_recvfrom(end[0], buf, 4, 0, NULL, NULL));
    } else {
        GIVES(-ENOTSOCK, conc_recv(end[0], buf, 4, 0));
        GIVES(-ENOTSOCK, conc_send(end[1], buf, 4, 0));
        GIVES(-EBADF, conc_read(end[1], buf, 4));
        GIVES(-EBADF, conc_write(end[0], buf, 4));
    }
    GIVES(-ETIMEDOUT, conc_timeout(1, reads, &end[0]));
    CHECK_INT(conc_group_wait(&g), 0);
    GIVES(0, conc_close(end[0]));
    if (kind != IO_CONC)
        GIVES(-EPIPE, conc_write(end[1], buf, 4));
    GIVES(0, conc_close(end[1]));
}

IO_TEST(descriptors_preserve_errno)
{
    int file = open("/proc/self/exe", O_RDONLY), directory = open("/", O_RDONLY);
    char buf[8];
    for (int kind = 0; kind < IO_KINDS; kind++)
        all_calls_of((io_kind)kind);
    GIVES(CONC_READABLE, conc_wait_fd(file, CONC_READABLE));
    GIVES(4, conc_read(file, buf, 4));
    GIVES(-EBADF, conc_write(file, buf, 4));
    GIVES(-EISDIR, conc_read(directory, buf, 4));
    GIVES(0, conc_close(file));
    GIVES(0, conc_close(directory));
}

static int serves(int fd, void *arg)
{
    (void)arg;
    errno = 20;
    return (int)conc_write(fd, "hi", 2) < 0;
}

static int dials(void *where)
{
    errno = 21;
    int rc = conc_sleep(1), fd = rc ? rc : conc_dial(where);
    return fd < 0 ? fd : conc_close(fd);
}

static int closes_late(void *fd)
{
    errno = 22;
    int rc = conc_sleep(2);
    return rc ? rc : conc_close(*(int *)fd);
}

IO_TEST(connections_preserve_errno)
{
    int l, a, d;
    char where[128];
    conc_listen_options reuse = {.reuse_port = true};
    conc_group g = {0};
    OPENS(l, conc_listen_with("127.0.0.1:0", &reuse));
    GIVES(0, conc_address(l, false, where, sizeof where));
    GIVES(-ENOTCONN, conc_address(l, true, where, sizeof where));
    GIVES(-ENOSPC, conc_address(l, false, where, 3));
    GIVES(0, conc_address(l, false, where, sizeof where));
    GIVES(-EADDRINUSE, conc_listen(where));
    CHECK_INT(conc_spawn(&g, dials, where), 0);
    OPENS(a, conc_accept(l));
    GIVES(0, conc_close(a));
    OPENS(d, conc_dial(where));
    GIVES(0, conc_address(d, true, where, sizeof where));
    GIVES(0, conc_close(d));
    conc_server server = {.fd = l, .handler = serves};
    CHECK_INT(conc_spawn(&g, dials, where), 0);
    CHECK_INT(conc_spawn(&g, closes_late, &l), 0);
    GIVES(0, conc_serve(&server));
    CHECK_INT(conc_group_wait(&g), 0);
    OPENS(l, conc_listen("localhost:0"));
    GIVES(0, conc_close(l));
}

IO_TEST(unix_sockets_and_host_names_preserve_errno)
{
    char where[64], again[64];
    struct sockaddr_storage found[4];
    int l, stale;
    snprintf(where, sizeof where, "unix:%s/conc_errno_%d", P_tmpdir, (int)getpid());
    OPENS(l, conc_listen(where));
    GIVES(-EADDRINUSE, conc_listen(where));
    GIVES(0, conc_address(l, false, again, sizeof again));
    stale = l;
    CHECK_INT(conc_close(stale), 0);
    OPENS(l, conc_listen(where)); /* replaces the file, if it is still there */
    GIVES(0, conc_close(l));
    unlink(where + 5);
    OPENS(stale, conc_resolve("127.0.0.1", "80", found, 4));
    OPENS(stale, conc_resolve("localhost", "80", found, 4));
    GIVES(-EADDRNOTAVAIL, conc_resolve("nothing.invalid", "80", found, 4));
    GIVES(-EADDRNOTAVAIL, conc_dial("nothing.invalid:80"));
    GIVES(-EADDRNOTAVAIL, conc_listen("nothing.invalid:80"));
}

/* ---- streams and signals ---- */

IO_TEST(streams_preserve_errno)
{
    int end[2];
    char buf[8], *line;
    conc_stream s = {.limit = 4}, w = {0};
    conc_group g = {0};
    io_open(IO_SOCKET, end);
    GIVES(0, conc_stream_open(&s, end[0]));
    GIVES(-EINVAL, conc_stream_open(&s, end[0]));
    GIVES(0, conc_stream_open(&w, end[1]));
    CHECK_INT(conc_spawn(&g, writes_late, &end[1]), 0);
    GIVES(2, conc_stream_read(&s, buf, 2));
    GIVES(2, conc_stream_read_full(&s, buf, 2));
    GIVES(12, conc_stream_write(&w, "a\nbb,too long", 12));
    GIVES(4, conc_stream_printf(&w, "%d", 1234));
    GIVES(0, conc_stream_flush(&w));
    GIVES(1, conc_stream_read_line(&s, &line));
    GIVES(3, conc_stream_read_until(&s, ",", 1, &line));
    GIVES(-EMSGSIZE, conc_stream_read_line(&s, &line));
    CHECK_INT(conc_group_wait(&g), 0);
    GIVES(0, conc_stream_close(&s));
    GIVES(1, conc_stream_write(&w, "x", 1));
    GIVES(-EPIPE, conc_stream_flush(&w));
    KEEPS(conc_stream_close(&w));
    GIVES(-EPIPE, conc_stream_read(&w, buf, 1));
}

static int kills_late(void *arg)
{
    (void)arg;
    errno = 23;
    int rc = conc_sleep(1);
    return rc ? rc : kill(getpid(), SIGUSR1);
}

IO_TEST(signals_preserve_errno)
{
    conc_signals s = {0};
    conc_group g = {0};
    GIVES(0, conc_signals_open(&s, (const int[]){SIGUSR1, SIGUSR2}, 2));
    GIVES(-EINVAL, conc_signals_open(&s, (const int[]){SIGUSR1}, 1));
    CHECK_INT(conc_loop_hold(conc_loop_self()), 0);
    CHECK_INT(conc_spawn(&g, kills_late, NULL), 0);
    GIVES(SIGUSR1, conc_signals_next(&s));
    GIVES(0, conc_signals_close(&s));
    CHECK_INT(conc_spawn(&g, kills_late, NULL), 0);
    GIVES(SIGUSR1, conc_wait_signal(SIGUSR1));
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_loop_release(conc_loop_self()), 0);
}

/* ---- loops, runs and reports ---- */

IO_TEST(posts_and_reports_preserve_errno)
{
    int count = 0;
    FILE *full = fopen("/dev/full", "w");
    conc_group g = {0};
    CHECK(full != NULL);
    setvbuf(full, NULL, _IONBF, 0);
    begin_spoiling(&g);
    GIVES(0, conc_loop_hold(conc_loop_self()));
    GIVES(0, conc_post(conc_loop_self(), posted, &count));
    GIVES(0, conc_sleep(1));
    GIVES(0, conc_loop_release(conc_loop_self()));
    CHECK_INT(count, 1);
    DOES(conc_dump(full));
    GIVES(-EBUSY, conc_run(returns, NULL));
    GIVES(-EBUSY, conc_embed_begin(&(conc_embed){0}, NULL, returns, &zero));
    end_spoiling(&g);
    fclose(full);
}

static void begins_runs(const char *poll)
{
    char path[64];
    snprintf(path, sizeof path, "%s/conc_errno_%d", P_tmpdir, (int)getpid());
    conc_options all = {.debug = true, .trace = path, .interrupt = true, .seed = 3};
    conc_options no_trace = {.trace = "/no/such/file"}, senseless = {.stack_size = 1};
    setenv("CONC_POLL", poll, 1);
    GIVES(7, conc_run(returns, &seven));
    GIVES(7, conc_run(takes_two_turns, &seven));
    GIVES(-EDEADLK, conc_run(lasts, NULL));
    GIVES(7, conc_run_with(&all, takes_two_turns, &seven));
    GIVES(-ENOENT, conc_run_with(&no_trace, returns, NULL));
    GIVES(-EINVAL, conc_run_with(&senseless, returns, NULL));
    GIVES(-EINVAL, conc_run(NULL, NULL));
    GIVES(0, conc_main(returns, &zero));
    GIVES(1, conc_main(returns, &minus));
    unlink(path);
}

TEST(runs_preserve_errno)
{
    begins_runs("poll");
    begins_runs(TEST_POLLER);
}

TEST(runs_whose_reports_cannot_be_written_preserve_errno)
{
    fill_standard_error();
    begins_runs("poll");
}

TEST(runs_in_another_programs_loop_preserve_errno)
{
    conc_embed e = {0};
    setenv("CONC_POLL", TEST_POLLER, 1);
    errno = OWN;
    if (TEST_ONLY_POLL || conc_embed_begin(&e, NULL, takes_two_turns, &seven))
        return;
    GIVES(-EBUSY, conc_embed_begin(&e, NULL, takes_two_turns, &seven));
    GIVES(-EBUSY, conc_embed_begin(&(conc_embed){0}, NULL, takes_two_turns, &seven));
    KEEPS(conc_embed_fd(&e));
    KEEPS(conc_embed_timeout(&e) > 0);
    GIVES(-EPERM, conc_sleep(1));
    GIVES(0, conc_spawn(NULL, returns, &zero));
    while ((errno = OWN, conc_embed_step(&e)))
        CHECK_INT(errno, OWN);
    GIVES(7, conc_embed_end(&e));
    GIVES(0, conc_embed_begin(&e, NULL, lasts, NULL));
    GIVES(1, conc_embed_step(&e));
    GIVES(-ECANCELED, conc_embed_end(&e));
}

/* ---- conc_sync.h ---- */

typedef struct shop {
    conc_lock lock;
    conc_rwlock rwlock;
    conc_sem sem;
    conc_event event;
    conc_cond cond;
    conc_barrier barrier;
    conc_latch latch;
    conc_future future;
    conc_queue queue;
    conc_limiter limiter;
} shop;

/* Does what the other task waits for, one call a second. */
static int works(void *arg)
{
    shop *s = arg;
    errno = 24;
    CHECK_INT(conc_lock_acquire(&s->lock), 0);
    CHECK_INT(conc_rwlock_acquire_write(&s->rwlock), 0);
    CHECK_INT(conc_sem_acquire(&s->sem), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_lock_release(&s->lock), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_rwlock_release(&s->rwlock), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_sem_release(&s->sem), 0);
    CHECK_INT(conc_sleep(1), 0);
    conc_event_set(&s->event);
    CHECK_INT(conc_sleep(1), 0);
    conc_cond_notify(&s->cond, 1);
    CHECK(conc_barrier_wait(&s->barrier) >= 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_latch_done(&s->latch), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_future_set(&s->future, 7, NULL), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_queue_put(&s->queue, &seven), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_queue_task_done(&s->queue), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_queue_task_done(&s->queue), 0);
    return 0;
}

static int enters(shop *s)
{
    CONC_LOCKED(&s->lock) {
        CHECK_INT(errno, OWN);
    }
    CONC_PERMIT(&s->sem) {
        CHECK_INT(errno, OWN);
    }
    return 0;
}

static void all_waits_of_sync(shop *s)
{
    int item;
    GIVES(-EAGAIN, conc_lock_try_acquire(&s->lock));
    GIVES(-EPERM, conc_lock_release(&s->lock));
    GIVES(0, conc_lock_acquire(&s->lock));
    GIVES(-EDEADLK, conc_lock_acquire(&s->lock));
    GIVES(1, conc_lock_owner(&s->lock) == conc_self());
    GIVES(-EAGAIN, conc_rwlock_try_acquire_write(&s->rwlock));
    GIVES(0, conc_rwlock_acquire_read(&s->rwlock));
    GIVES(0, conc_rwlock_release(&s->rwlock));
    GIVES(0, conc_rwlock_acquire_write(&s->rwlock));
    GIVES(-EDEADLK, conc_rwlock_try_acquire_read(&s->rwlock));
    GIVES(0, conc_rwlock_release(&s->rwlock));
    GIVES(0, conc_sem_acquire(&s->sem));
    GIVES(0, conc_sem_release(&s->sem));
    GIVES(0, conc_event_wait(&s->event));
    GIVES(0, conc_cond_wait(&s->cond, &s->lock));
    GIVES(0, conc_lock_release(&s->lock));
    KEEPS(conc_barrier_wait(&s->barrier) < 0);
    GIVES(0, conc_latch_wait(&s->latch));
    GIVES(7, conc_future_wait(&s->future, NULL));
    GIVES(1, conc_future_is_set(&s->future));
    GIVES(0, conc_queue_get(&s->queue, &item));
    GIVES(0, conc_queue_put(&s->queue, &item));
    GIVES(-EAGAIN, conc_queue_try_put(&s->queue, &item));
    GIVES(0, conc_queue_join(&s->queue));
}

IO_TEST(waits_of_conc_sync_preserve_errno)
{
    shop s = {.sem = CONC_SEM(1, .max = 1),
              .barrier = CONC_BARRIER(2),
              .queue = CONC_QUEUE(int, 1),
              .limiter = {.rate = 1}};
    conc_group g = {0};
    CHECK_INT(conc_latch_add(&s.latch, 1), 0);
    CHECK_INT(conc_spawn(&g, works, &s), 0);
    CHECK_INT(conc_settle(), 0); /* it holds what this task will wait for */
    all_waits_of_sync(&s);
    CHECK_INT(conc_group_wait(&g), 0);
    GIVES(0, enters(&s));
    GIVES(0, conc_limiter_try_acquire(&s.limiter, 1));
    GIVES(-EAGAIN, conc_limiter_try_acquire(&s.limiter, 1));
    GIVES(0, conc_limiter_acquire(&s.limiter, 1));
    DOES(conc_queue_destroy(&s.queue));
}

IO_TEST(selects_preserve_errno)
{
    int end[2], item;
    conc_task t;
    conc_group g = {0};
    conc_event event = {0};
    conc_queue q = CONC_QUEUE(int, 1), full = CONC_QUEUE(int, 1);
    io_open(IO_PIPE, end);
    CHECK_INT(conc_queue_put(&full, &seven), 0);
    CHECK_INT(conc_spawn_task(&g, &t, lasts, NULL), 0);
    conc_case all[] = {
        CONC_CASE_GET(&q, &item), CONC_CASE_PUT(&full, &seven),        CONC_CASE_EVENT(&event),
        CONC_CASE_JOIN(&t),       CONC_CASE_FD(end[0], CONC_READABLE), CONC_CASE_AFTER(1)};
    GIVES(5, conc_select(all, 6));
    CHECK_INT(conc_spawn(NULL, writes_late, &end[1]), 0);
    GIVES(4, conc_select(all, 5));
    CHECK_INT(conc_cancel(&t), 0);
    GIVES(3, conc_select(all, 4));
    conc_event_set(&event);
    GIVES(2, conc_select(all, 3));
    GIVES(0, conc_queue_put(&q, &seven));
    GIVES(0, conc_select(all, 6));
    CHECK_INT(conc_group_wait(&g), 0);
    conc_queue_destroy(&q);
    conc_queue_destroy(&full);
    io_close(end);
}

/* ---- conc_pool.h ---- */

static int goes_on(void *arg)
{
    errno = 25;
    while (!conc_job_cancelled())
        continue;
    return *(int *)arg;
}

static void all_of_a_pool(void)
{
    int args[] = {1, 2, -EIO}, results[3], freed = 0;
    conc_pool pool = {.threads = 2};
    conc_job job;
    GIVES(0, conc_pool_open(&pool));
    GIVES(-EBUSY, conc_pool_open(&pool));
    GIVES(7, conc_pool_run(&pool, returns, &seven));
    GIVES(0, conc_pool_submit(&pool, &job, goes_on, &seven));
    GIVES(-EBUSY, conc_pool_submit(&pool, &job, returns, &seven));
    GIVES(0, conc_job_cancel(&job));
    GIVES(0, conc_job_wait(&job, &results[0]));
    GIVES(1, conc_job_done(&job));
    GIVES(-EALREADY, conc_job_cancel(&job));
    GIVES(-EIO, conc_pool_map(&pool, returns, args, 3, sizeof args[0]));
    GIVES(0, conc_pool_map_all(&pool, returns, args, 3, sizeof args[0], results));
    GIVES(0, conc_pool_close(&pool));
    GIVES(-EPIPE, conc_pool_run(&pool, returns, &seven));
    GIVES(7, conc_offload(keeps_and_returns, &seven));
    GIVES(7, conc_offload_abandon(keeps_and_returns, &seven, NULL));
    GIVES(0, conc_offload_abandon(keeps_and_returns, &zero, frees) + freed);
}

IO_TEST(thread_pools_preserve_errno)
{
    conc_group g = {0};
    all_of_a_pool();
    begin_spoiling(&g);
    GIVES(7, conc_offload(returns, &seven));
    GIVES(7, conc_offload_abandon(returns, &seven, NULL));
    end_spoiling(&g);
}

TEST(thread_pools_preserve_errno_without_a_run) { all_of_a_pool(); }

static int sends(void *c)
{
    errno = 26;
    return conc_channel_send(c, &seven);
}

static void all_of_files_and_channels(void)
{
    char path[64];
    void *data;
    size_t size;
    int item;
    conc_channel c = CONC_CHANNEL(int, 1);
    snprintf(path, sizeof path, "%s/conc_errno_%d", P_tmpdir, (int)getpid());
    GIVES(0, conc_file_write(path, "abc", 3));
    GIVES(0, conc_file_write(path, "abc", 3));
    GIVES(0, conc_file_append(path, "d", 1));
    GIVES(0, conc_file_read(path, &data, &size));
    DOES(conc_free(data));
    GIVES(0, conc_file_write("/dev/null", "abc", 3));
    unlink(path);
    GIVES(0, conc_channel_send(&c, &seven));
    GIVES(0, conc_channel_recv(&c, &item));
    DOES(conc_channel_close(&c));
    GIVES(-EPIPE, conc_channel_recv(&c, &item));
    GIVES(-EPIPE, conc_channel_send(&c, &item));
    DOES(conc_channel_destroy(&c));
}

IO_TEST(files_and_channels_preserve_errno)
{
    int item;
    conc_channel c = CONC_CHANNEL(int, 1);
    conc_job job;
    CONC_AUTO(conc_pool, pool) = {.threads = 1};
    all_of_files_and_channels();
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_submit(&pool, &job, sends, &c), 0);
    GIVES(0, conc_channel_recv(&c, &item));
    GIVES(0, conc_job_wait(&job, NULL));
    GIVES(-ETIMEDOUT, conc_timeout(1, waits, NULL));
    DOES(conc_channel_destroy(&c));
}

TEST(files_and_channels_preserve_errno_without_a_run) { all_of_files_and_channels(); }

static int aborts(void *arg)
{
    (void)arg;
    raise(SIGKILL);
    return 0;
}

static ssize_t echoes(const void *in, size_t in_size, void *out, size_t out_size)
{
    errno = 27;
    memcpy(out, in, in_size < out_size ? in_size : out_size);
    return (ssize_t)in_size;
}

#ifdef __linux__ /* elsewhere there are no pools of processes */
static void all_of_processes(void)
{
    char out[4];
    int args[] = {1, -EIO, 3}, results[3];
    conc_procs procs = {.workers = 1};
    conc_job job;
    GIVES(0, conc_procs_open(&procs));
    GIVES(-EBUSY, conc_procs_open(&procs));
    GIVES(7, conc_procs_run(&procs, returns, &seven, sizeof seven));
    GIVES(-EOWNERDEAD, conc_procs_run(&procs, aborts, NULL, 0));
    GIVES(0, conc_procs_submit(&procs, &job, returns, &seven, sizeof seven));
    GIVES(0, conc_job_wait(&job, NULL));
    GIVES(-EIO, conc_procs_map(&procs, returns, args, 3, sizeof args[0]));
    GIVES(0, conc_procs_map_all(&procs, returns, args, 3, sizeof args[0], results));
    GIVES(2, conc_procs_call(&procs, echoes, "ab", 2, out, sizeof out));
    GIVES(-EMSGSIZE, conc_procs_call(&procs, echoes, "abcdef", 6, out, sizeof out));
    GIVES(0, conc_procs_close(&procs));
    GIVES(-EPIPE, conc_procs_run(&procs, returns, &seven, sizeof seven));
}

IO_TEST(process_pools_preserve_errno) { all_of_processes(); }

TEST(process_pools_preserve_errno_without_a_run) { all_of_processes(); }
#endif

static void all_of_a_child(void)
{
    conc_child c = {
        .argv = (const char *const[]){"cat", NULL}, .input = CONC_PIPE, .output = CONC_NULL};
    int status;
    GIVES(0, conc_child_start(&c));
    GIVES(-EBUSY, conc_child_start(&c));
    GIVES(0, conc_child_kill(&c, SIGTERM));
    GIVES(0, conc_child_wait(&c, &status));
    GIVES(-EALREADY, conc_child_kill(&c, SIGTERM));
    GIVES(0, conc_child_close(&c));
    c = (conc_child){.argv = (const char *const[]){"cat", NULL}, .input = CONC_PIPE};
    GIVES(0, conc_child_start(&c));
    GIVES(-EINVAL, conc_child_kill(&c, 12345));
    GIVES(0, conc_child_close(&c));
    c = (conc_child){.argv = (const char *const[]){"cat", NULL}, .dir = "/no/such"};
    GIVES(-ENOENT, conc_child_start(&c));
}

IO_TEST(children_preserve_errno) { all_of_a_child(); }

TEST(children_preserve_errno_without_a_run) { all_of_a_child(); }
