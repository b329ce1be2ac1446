/* test_last_error.c - a failing call sets the latest error of its caller, whatever it was
 * before; debug mode reports invalid calls, under their public names, and no others.
 *
 * Not under: no-epoll, save-fpu, aarch64-bti, poll (which change nothing here)
 * Seeds: 5 (processes) */
#define TEST_SYNC
#define TEST_POOL
#include "conc_test.h"

#include <math.h>
#include <netdb.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>

static char report[1 << 20];

#define STALE "an older error"

/* The call fails with this error and its own text, even after an older error with the same number.
 * `text` goes to stderr before the call's reports. */
#define TRIES(call, expected, text)                                \
    do {                                                           \
        const int before[] = {-EXDEV, (expected)};                 \
        fprintf(stderr, "%s\n", text);                             \
        for (int i_ = 0; i_ < 2; i_++) {                           \
            (void)conc_fail(before[i_], STALE);                    \
            CHECK_INT(call, expected);                             \
            if (strstr(conc_last_error(), STALE))                  \
                test_fail(TEST_FILE, __LINE__, "stale: %s", text); \
        }                                                          \
    } while (0)
/* the call is invalid: debug mode reports it */
#define MISUSE(call, expected) TRIES(call, expected, "<wrong>" #call)
/* the call is valid, but fails: debug mode reports nothing */
#define FAILS(call, expected) TRIES(call, expected, "<right>" #call)

static int nothing(void *arg) { return arg ? 1 : 0; }

static int is_out_of_order(void *arg)
{
    (void)arg;
    return -EIO;
}

static void misuse_time_and_scopes(void)
{
    conc_scope s = {0};
    MISUSE(conc_sleep((double)NAN), -EINVAL);
    MISUSE(conc_sleep_until((double)NAN), -EINVAL);
    MISUSE(conc_block((double)NAN), -EINVAL);
    MISUSE(conc_timeout((double)NAN, nothing, NULL), -EINVAL);
    MISUSE(conc_timeout(1, NULL, NULL), -EINVAL);
    MISUSE(conc_shield((double)NAN, nothing, NULL), -EINVAL);
    MISUSE(conc_shield(1, NULL, NULL), -EINVAL);
    MISUSE(conc_scope_begin(NULL, 1), -EINVAL);
    MISUSE(conc_scope_begin(&s, (double)NAN), -EINVAL);
    MISUSE(conc_scope_end(NULL, 0), -EINVAL);
    MISUSE(conc_scope_end(&s, 0), -EINVAL);
    MISUSE(conc_scope_set_timeout(NULL, 1), -EINVAL);
    MISUSE(conc_scope_set_timeout(&s, 1), -EINVAL);
    CHECK_INT(conc_scope_begin(&s, 1), 0);
    MISUSE(conc_scope_begin(&s, 1), -EINVAL);
    MISUSE(conc_scope_set_timeout(&s, (double)NAN), -EINVAL);
    conc_scope_cancel(&s);
    MISUSE(conc_scope_set_timeout(&s, 1), -EINVAL);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    MISUSE(conc_scope_end(&s, 0), -EINVAL);
    FAILS(conc_timeout(1, is_out_of_order, NULL), -EIO);
    FAILS(conc_shield(1, is_out_of_order, NULL), -EIO);
}

static void misuse_groups(void)
{
    conc_group g = {.limit = -1}, thin = {.stack_size = 1}, none = {0};
    conc_group wide = {.stack_size = (size_t)1 << (sizeof(size_t) * 8 - 17)};
    conc_task t = {0}, *next;
    MISUSE(conc_run(nothing, NULL), -EBUSY);
    MISUSE(conc_run(NULL, NULL), -EBUSY);
    MISUSE(conc_group_begin(NULL), -EINVAL);
    MISUSE(conc_group_begin(&g), -EINVAL);
    MISUSE(conc_group_begin(&thin), -EINVAL);
    MISUSE(conc_spawn(&g, nothing, NULL), -EINVAL);
    MISUSE(conc_spawn(&thin, nothing, NULL), -EINVAL);
    MISUSE(conc_spawn(NULL, NULL, NULL), -EINVAL);
    MISUSE(conc_spawn_task(&none, NULL, nothing, NULL), -EINVAL);
    MISUSE(conc_spawn_task(&none, &t, NULL, NULL), -EINVAL);
    MISUSE(conc_spawn_task(&none, conc_self(), nothing, NULL), -EBUSY);
    MISUSE(conc_start(&none, NULL, NULL), -EINVAL);
    MISUSE(conc_started(1), -EINVAL);
    FAILS(conc_spawn(&wide, nothing, NULL), -ENOMEM);
    FAILS(conc_spawn_task(&wide, &t, nothing, NULL), -ENOMEM);
    FAILS(conc_start(&wide, nothing, NULL), -ENOMEM);
    MISUSE(conc_join(NULL, NULL), -EINVAL);
    MISUSE(conc_join(conc_self(), NULL), -EDEADLK);
    MISUSE(conc_cancel(NULL), -EINVAL);
    MISUSE(conc_group_next(NULL, &next), -EINVAL);
    MISUSE(conc_group_next(&none, NULL), -EINVAL);
    MISUSE(conc_group_wait(NULL), -EINVAL);
    MISUSE(conc_group_end(NULL, 0), -EINVAL);
    CHECK_INT(conc_group_wait(&none), 0);
    MISUSE(conc_group_begin(&none), -EINVAL);
    MISUSE(conc_group_next(&none, &next), -EINVAL);
    MISUSE(conc_group_wait(&none), -EINVAL);
    MISUSE(conc_local_set(NULL, NULL), -EINVAL);
}

static void misuse_gathering(void)
{
    int item = 0;
    conc_call call = {0};
    MISUSE(conc_gather(NULL, 1), -EINVAL);
    MISUSE(conc_gather_all(NULL, 1), -EINVAL);
    MISUSE(conc_gather(&call, 1), -EINVAL);
    MISUSE(conc_gather(&call, SIZE_MAX), -EINVAL);
    MISUSE(conc_gather_all(&call, SIZE_MAX / sizeof call), -EINVAL);
    MISUSE(conc_map(NULL, &item, 1, sizeof item), -EINVAL);
    MISUSE(conc_map(nothing, NULL, 1, sizeof item), -EINVAL);
    MISUSE(conc_map(nothing, &item, SIZE_MAX, sizeof item), -EINVAL);
    MISUSE(conc_map(nothing, &item, 2, SIZE_MAX), -EINVAL);
    MISUSE(conc_map_all(nothing, &item, SIZE_MAX / 4, sizeof item, NULL), -EINVAL);
    MISUSE(conc_map_all(nothing, &item, SIZE_MAX / 4, 0, &item), -EINVAL);
    FAILS(conc_map(nothing, &item, SIZE_MAX, 0), -ENOMEM);
    FAILS(conc_map_all(nothing, &item, PTRDIFF_MAX, 1, NULL), -ENOMEM);
    call.fn = is_out_of_order;
    FAILS(conc_gather(&call, 1), -EIO);
    FAILS(conc_map(is_out_of_order, &item, 1, sizeof item), -EIO);
}

static int misuses_emit(conc_gen *g, void *arg)
{
    int item = 1;
    conc_scope s = {0};
    MISUSE(conc_gen_emit(NULL, &item), -EINVAL);
    MISUSE(conc_gen_emit(g, NULL), -EINVAL);
    MISUSE(conc_gen_next(g, &item), -EBUSY);
    MISUSE(conc_gen_close(g), -EBUSY);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    MISUSE(conc_gen_emit(g, &item), -EINVAL);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    return arg ? 1 : conc_gen_emit(g, &item);
}

static int fails_to_generate(conc_gen *g, void *arg)
{
    (void)g;
    return *(int *)arg;
}

static int conc_gen_next_of(int rc)
{
    int item;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, fails_to_generate, &rc, sizeof item), 0);
    int result = conc_gen_next(&g, &item);
    CHECK_INT(conc_gen_close(&g), 0);
    return result;
}

static void misuse_generators(void)
{
    int item;
    conc_gen g = {0};
    MISUSE(conc_gen_open(NULL, misuses_emit, NULL, sizeof item), -EINVAL);
    MISUSE(conc_gen_open(&g, NULL, NULL, sizeof item), -EINVAL);
    MISUSE(conc_gen_open(&g, misuses_emit, NULL, SIZE_MAX), -EINVAL);
    MISUSE(conc_gen_next(NULL, &item), -EINVAL);
    MISUSE(conc_gen_next(&g, &item), -EINVAL);
    MISUSE(conc_gen_close(NULL), -EINVAL);
    CHECK_INT(conc_gen_open(&g, misuses_emit, NULL, sizeof item), 0);
    MISUSE(conc_gen_open(&g, misuses_emit, NULL, sizeof item), -EINVAL);
    MISUSE(conc_gen_next(&g, NULL), -EINVAL);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_gen_close(&g), 0);
    FAILS(conc_gen_next_of(-EIO), -EIO);
}

static int misuses_core(void *arg)
{
    (void)arg;
    misuse_time_and_scopes();
    misuse_groups();
    misuse_gathering();
    misuse_generators();
    fprintf(stderr, "<>\n");
    return 0;
}

/* ---- descriptors, streams, signals, other threads ---- */

static void misuse_descriptors(const int fds[2])
{
    char byte = 0, text[100];
    struct iovec part = {&byte, 1};
    int closed = dup(0);
    CHECK_INT(close(closed), 0);
    MISUSE(conc_wait_fd(fds[0], 77), -EINVAL);
    FAILS(conc_wait_fd(-1, CONC_READABLE), -EBADF);
    MISUSE(conc_readv(fds[0], &part, -1), -EINVAL);
    MISUSE(conc_readv(fds[0], NULL, 1), -EINVAL);
    MISUSE(conc_writev(fds[1], &part, 1 << 20), -EINVAL);
    MISUSE(conc_read(fds[0], NULL, 1), -EINVAL);
    MISUSE(conc_write(fds[1], NULL, 1), -EINVAL);
    MISUSE(conc_recv(fds[0], NULL, 1, 0), -EINVAL);
    MISUSE(conc_sendto(fds[1], NULL, 1, 0, NULL, 0), -EINVAL);
    MISUSE(conc_read_full(fds[0], NULL, 1), -EINVAL);
    MISUSE(conc_read_full(fds[0], &byte, SIZE_MAX), -EINVAL);
    MISUSE(conc_write_full(fds[1], NULL, 1), -EINVAL);
    MISUSE(conc_write_full(fds[1], &byte, SIZE_MAX), -EINVAL);
    FAILS(conc_recv(fds[0], &byte, 1, MSG_DONTWAIT), -EAGAIN);
    FAILS(conc_read(closed, &byte, 1), -EBADF);
    FAILS(conc_close(-1), -EBADF);
    FAILS(conc_close(closed), -EBADF);
    MISUSE(conc_listen(NULL), -EINVAL);
    MISUSE(conc_dial(NULL), -EINVAL);
    MISUSE(conc_serve(NULL), -EINVAL);
    MISUSE(conc_address(fds[0], false, NULL, 0), -EINVAL);
    FAILS(conc_address(fds[0], false, text, 2), -ENOSPC);
    FAILS(conc_address(closed, true, text, sizeof text), -EBADF);
}

static void misuse_no_streams(void)
{
    char byte = 0, *data;
    conc_stream none = {0};
    MISUSE(conc_stream_open(NULL, 0), -EINVAL);
    FAILS(conc_stream_open(&none, -1), -EBADF);
    MISUSE(conc_stream_read(NULL, &byte, 1), -EINVAL);
    MISUSE(conc_stream_read(&none, &byte, 1), -EINVAL);
    MISUSE(conc_stream_read_full(NULL, &byte, 1), -EINVAL);
    MISUSE(conc_stream_read_line(NULL, &data), -EINVAL);
    MISUSE(conc_stream_read_until(NULL, "x", 1, &data), -EINVAL);
    MISUSE(conc_stream_write(NULL, &byte, 1), -EINVAL);
    MISUSE(conc_stream_write(&none, &byte, 1), -EINVAL);
    MISUSE(conc_stream_printf(NULL, "x"), -EINVAL);
    MISUSE(conc_stream_flush(NULL), -EINVAL);
}

static void misuse_streams(const int fds[2])
{
    char byte = 0, *data;
    conc_stream s = {.limit = 4}, huge = {.buffer_size = SIZE_MAX};
    misuse_no_streams();
    CHECK_INT(conc_stream_open(&s, dup(fds[0])), 0);
    MISUSE(conc_stream_open(&s, 0), -EINVAL);
    MISUSE(conc_stream_read(&s, NULL, 1), -EINVAL);
    MISUSE(conc_stream_read(&s, &byte, SIZE_MAX), -EINVAL);
    MISUSE(conc_stream_read_full(&s, NULL, 1), -EINVAL);
    MISUSE(conc_stream_read_full(&s, &byte, SIZE_MAX), -EINVAL);
    MISUSE(conc_stream_read_line(&s, NULL), -EINVAL);
    MISUSE(conc_stream_read_until(&s, NULL, 1, &data), -EINVAL);
    MISUSE(conc_stream_read_until(&s, "x", 0, &data), -EINVAL);
    MISUSE(conc_stream_read_until(&s, "x", SIZE_MAX, &data), -EINVAL);
    MISUSE(conc_stream_read_until(&s, "x", 1, NULL), -EINVAL);
    MISUSE(conc_stream_write(&s, NULL, 1), -EINVAL);
    MISUSE(conc_stream_write(&s, &byte, SIZE_MAX), -EINVAL);
    CHECK_INT(write(fds[1], "too long\n", 9), 9);
    FAILS(conc_stream_read_line(&s, &data), -EMSGSIZE);
    FAILS(conc_stream_read_until(&s, "xy", 2, &data), -EMSGSIZE);
    CHECK_INT(conc_stream_close(&s), 0);
    FAILS(conc_stream_read(&s, &byte, 1), -EPIPE);
    FAILS(conc_stream_flush(&s), -EPIPE);
    CHECK_INT(conc_stream_open(&huge, dup(fds[0])), 0);
    FAILS(conc_stream_read(&huge, &byte, 1), -ENOMEM);
    FAILS(conc_stream_write(&huge, &byte, 1), -ENOMEM);
    CHECK_INT(conc_stream_close(&huge), 0);
}

static void does_nothing(void *arg) { (void)arg; }

static void misuse_signals_and_loops(void)
{
    const int number = SIGUSR1, killing = SIGKILL;
    conc_signals s = {0};
    MISUSE(conc_signals_open(NULL, &number, 1), -EINVAL);
    MISUSE(conc_signals_open(&s, NULL, 1), -EINVAL);
    MISUSE(conc_signals_open(&s, &number, 0), -EINVAL);
    MISUSE(conc_signals_open(&s, &number, SIZE_MAX), -EINVAL);
    MISUSE(conc_signals_open(&s, &killing, 1), -EINVAL);
    MISUSE(conc_signals_next(NULL), -EINVAL);
    FAILS(conc_signals_next(&s), -EPIPE);
    MISUSE(conc_signals_close(NULL), -EINVAL);
    MISUSE(conc_wait_signal(SIGKILL), -EINVAL);
    MISUSE(conc_wait_signal(-1), -EINVAL);
    MISUSE(conc_post(NULL, does_nothing, NULL), -EINVAL);
    MISUSE(conc_post(conc_loop_self(), NULL, NULL), -EINVAL);
    MISUSE(conc_loop_hold(NULL), -EINVAL);
    MISUSE(conc_loop_release(NULL), -EINVAL);
    MISUSE(conc_loop_release(conc_loop_self()), -EINVAL);
    MISUSE(conc_embed_begin(NULL, NULL, nothing, NULL), -EINVAL);
    MISUSE(conc_embed_step(NULL), -EINVAL);
    MISUSE(conc_embed_end(NULL), -EINVAL);
    MISUSE(conc_embed_fd(NULL), -EINVAL);
}

static int misuses_io(void *arg)
{
    int fds[2];
    (void)arg;
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    misuse_descriptors(fds);
    misuse_streams(fds);
    misuse_signals_and_loops();
    CHECK_INT(conc_close(fds[0]), 0);
    CHECK_INT(conc_close(fds[1]), 0);
    fprintf(stderr, "<>\n");
    return 0;
}

/* ---- conc_sync.h ---- */

static conc_lock lock;
static conc_rwlock rwlock;

static int holds_locks(void *arg)
{
    (void)arg;
    CHECK_INT(conc_lock_acquire(&lock), 0);
    CHECK_INT(conc_rwlock_acquire_write(&rwlock), 0);
    int rc = conc_sleep(CONC_FOREVER);
    CHECK_INT(conc_lock_release(&lock), 0);
    CHECK_INT(conc_rwlock_release(&rwlock), 0);
    return rc;
}

static void misuse_no_locks(void)
{
    conc_cond cond = {0};
    MISUSE(conc_lock_acquire(NULL), -EINVAL);
    MISUSE(conc_lock_try_acquire(NULL), -EINVAL);
    MISUSE(conc_lock_release(NULL), -EINVAL);
    MISUSE(conc_rwlock_acquire_read(NULL), -EINVAL);
    MISUSE(conc_rwlock_acquire_write(NULL), -EINVAL);
    MISUSE(conc_rwlock_try_acquire_read(NULL), -EINVAL);
    MISUSE(conc_rwlock_try_acquire_write(NULL), -EINVAL);
    MISUSE(conc_rwlock_release(NULL), -EINVAL);
    MISUSE(conc_cond_wait(NULL, &lock), -EINVAL);
    MISUSE(conc_cond_wait(&cond, NULL), -EINVAL);
    MISUSE(conc_cond_wait(&cond, &lock), -EPERM);
}

static void misuse_locks(void)
{
    conc_group g = {0};
    misuse_no_locks();
    CHECK_INT(conc_spawn(&g, holds_locks, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    MISUSE(conc_lock_release(&lock), -EPERM);
    MISUSE(conc_rwlock_release(&rwlock), -EPERM);
    FAILS(conc_lock_try_acquire(&lock), -EAGAIN);
    FAILS(conc_rwlock_try_acquire_read(&rwlock), -EAGAIN);
    FAILS(conc_rwlock_try_acquire_write(&rwlock), -EAGAIN);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_lock_acquire(&lock), 0);
    MISUSE(conc_lock_acquire(&lock), -EDEADLK);
    MISUSE(conc_lock_try_acquire(&lock), -EDEADLK);
    CHECK_INT(conc_lock_release(&lock), 0);
}

static void misuse_counts(void)
{
    conc_sem empty = {0}, full = {.permits = 1, .max = 1}, wrong = {.permits = -1};
    conc_barrier none = {0};
    conc_latch latch = {0};
    conc_limiter limiter = {.rate = 1}, unlimited = {0};
    MISUSE(conc_sem_acquire(NULL), -EINVAL);
    MISUSE(conc_sem_acquire(&wrong), -EINVAL);
    MISUSE(conc_sem_try_acquire(NULL), -EINVAL);
    MISUSE(conc_sem_release(NULL), -EINVAL);
    MISUSE(conc_sem_release(&full), -EOVERFLOW);
    FAILS(conc_sem_try_acquire(&empty), -EAGAIN);
    MISUSE(conc_event_wait(NULL), -EINVAL);
    MISUSE(conc_barrier_wait(NULL), -EINVAL);
    MISUSE(conc_barrier_wait(&none), -EINVAL);
    MISUSE(conc_latch_add(NULL, 1), -EINVAL);
    MISUSE(conc_latch_add(&latch, -1), -EOVERFLOW);
    MISUSE(conc_latch_done(NULL), -EINVAL);
    MISUSE(conc_latch_wait(NULL), -EINVAL);
    MISUSE(conc_limiter_acquire(NULL, 1), -EINVAL);
    MISUSE(conc_limiter_acquire(&unlimited, 1), -EINVAL);
    MISUSE(conc_limiter_acquire(&limiter, 2), -EINVAL);
    MISUSE(conc_limiter_try_acquire(NULL, 1), -EINVAL);
    MISUSE(conc_limiter_try_acquire(&limiter, 0), -EINVAL);
    CHECK_INT(conc_limiter_try_acquire(&limiter, 1), 0);
    FAILS(conc_limiter_try_acquire(&limiter, 1), -EAGAIN);
}

static void misuse_futures(void)
{
    conc_future future = {0};
    MISUSE(conc_future_set(NULL, 0, NULL), -EINVAL);
    MISUSE(conc_future_wait(NULL, NULL), -EINVAL);
    CHECK_INT(conc_future_set(&future, -EIO, NULL), 0);
    FAILS(conc_future_set(&future, 0, NULL), -EALREADY);
    FAILS(conc_future_wait(&future, NULL), -EIO);
}

static void misuse_queues(void)
{
    int item = 1;
    conc_queue queue = CONC_QUEUE(int, 1), odd = {.item_size = sizeof item, .kind = 77};
    conc_queue huge = {.item_size = SIZE_MAX}, less = {.kind = CONC_QUEUE_PRIORITY};
    MISUSE(conc_queue_put(NULL, &item), -EINVAL);
    MISUSE(conc_queue_put(&queue, NULL), -EINVAL);
    MISUSE(conc_queue_put(&odd, &item), -EINVAL);
    MISUSE(conc_queue_put(&less, &item), -EINVAL);
    MISUSE(conc_queue_get(NULL, &item), -EINVAL);
    MISUSE(conc_queue_get(&queue, NULL), -EINVAL);
    MISUSE(conc_queue_try_put(NULL, &item), -EINVAL);
    MISUSE(conc_queue_try_get(NULL, &item), -EINVAL);
    MISUSE(conc_queue_task_done(NULL), -EINVAL);
    MISUSE(conc_queue_task_done(&queue), -EOVERFLOW);
    MISUSE(conc_queue_join(NULL), -EINVAL);
    FAILS(conc_queue_put(&huge, &item), -ENOMEM);
    FAILS(conc_queue_try_put(&huge, &item), -ENOMEM);
    FAILS(conc_queue_try_get(&queue, &item), -EAGAIN);
    CHECK_INT(conc_queue_try_put(&queue, &item), 0);
    FAILS(conc_queue_try_put(&queue, &item), -EAGAIN);
    conc_queue_close(&queue);
    FAILS(conc_queue_put(&queue, &item), -EPIPE);
    FAILS(conc_queue_try_put(&queue, &item), -EPIPE);
    conc_queue_destroy(&queue);
    FAILS(conc_queue_get(&queue, &item), -EPIPE);
}

static int closes(void *queue)
{
    (void)!conc_yield();
    conc_queue_close(queue);
    return 0;
}

static int conc_queue_get_closed_meanwhile(void)
{
    int item;
    conc_queue queue = CONC_QUEUE(int, 1);
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, closes, &queue), 0);
    int rc = conc_queue_get(&queue, &item);
    CHECK_INT(conc_group_wait(&g), 0);
    conc_queue_destroy(&queue);
    return rc;
}

static void misuse_select(void)
{
    int item = 1;
    conc_case late[] = {CONC_CASE_AFTER((double)NAN)}, none[] = {CONC_CASE_JOIN(NULL)};
    conc_case self[] = {CONC_CASE_JOIN(conc_self())}, nowhere[] = {CONC_CASE_FD(-1, CONC_READABLE)};
    conc_case odd[] = {CONC_CASE_FD(0, 77)}, get[] = {CONC_CASE_GET(NULL, &item)};
    conc_case event[] = {CONC_CASE_EVENT(NULL)}, empty[] = {{0}};
    MISUSE(conc_select(NULL, 1), -EINVAL);
    MISUSE(conc_select(event, 0), -EINVAL);
    MISUSE(conc_select(event, SIZE_MAX), -EINVAL);
    MISUSE(conc_select(late, 1), -EINVAL);
    MISUSE(conc_select(none, 1), -EINVAL);
    MISUSE(conc_select(self, 1), -EDEADLK);
    MISUSE(conc_select(odd, 1), -EINVAL);
    MISUSE(conc_select(get, 1), -EINVAL);
    MISUSE(conc_select(event, 1), -EINVAL);
    MISUSE(conc_select(empty, 1), -EINVAL);
    FAILS(conc_select(nowhere, 1), -EBADF);
}

static int misuses_sync(void *arg)
{
    (void)arg;
    misuse_locks();
    misuse_counts();
    misuse_futures();
    misuse_queues();
    FAILS(conc_queue_get_closed_meanwhile(), -EPIPE);
    misuse_select();
    fprintf(stderr, "<>\n");
    return 0;
}

/* ---- conc_pool.h ---- */

static void misuse_maps(conc_pool *p)
{
    int item = 0;
    MISUSE(conc_pool_map(NULL, nothing, &item, 1, sizeof item), -EINVAL);
    MISUSE(conc_pool_map(p, NULL, &item, 1, sizeof item), -EINVAL);
    MISUSE(conc_pool_map(p, nothing, NULL, 1, sizeof item), -EINVAL);
    MISUSE(conc_pool_map(p, nothing, &item, SIZE_MAX, 1), -EINVAL);
    MISUSE(conc_pool_map_all(p, nothing, &item, SIZE_MAX / 4, sizeof item, NULL), -EINVAL);
    MISUSE(conc_pool_map_all(p, nothing, &item, SIZE_MAX / 4, 0, &item), -EINVAL);
    MISUSE(conc_procs_map(NULL, nothing, &item, 1, sizeof item), -EINVAL);
}

static void misuse_jobs(conc_pool *p)
{
    conc_job j = {0};
    conc_pool closed = {0}, negative = {.threads = -1};
    MISUSE(conc_pool_open(NULL), -EINVAL);
    MISUSE(conc_pool_open(&negative), -EINVAL);
    MISUSE(conc_pool_open(p), -EBUSY);
    MISUSE(conc_pool_submit(p, NULL, nothing, NULL), -EINVAL);
    MISUSE(conc_pool_submit(p, &j, NULL, NULL), -EINVAL);
    MISUSE(conc_pool_submit(&closed, &j, nothing, NULL), -EINVAL);
    MISUSE(conc_pool_run(p, NULL, NULL), -EINVAL);
    MISUSE(conc_pool_run(&closed, nothing, NULL), -EINVAL);
    MISUSE(conc_pool_map(&closed, nothing, NULL, 2, 0), -EINVAL);
    MISUSE(conc_job_wait(&j, NULL), -EINVAL);
    MISUSE(conc_job_wait(NULL, NULL), -EINVAL);
    MISUSE(conc_job_cancel(&j), -EINVAL);
    MISUSE(conc_job_cancel(NULL), -EINVAL);
    CHECK_INT(conc_pool_submit(p, &j, nothing, NULL), 0);
    CHECK_INT(conc_job_wait(&j, NULL), 0);
    FAILS(conc_job_cancel(&j), -EALREADY);
    FAILS(conc_pool_run(p, is_out_of_order, NULL), -EIO);
    FAILS(conc_pool_map(p, is_out_of_order, NULL, 2, 0), -EIO);
}

static void misuse_channels(void)
{
    int item = 0;
    conc_channel none = {.item_size = sizeof item}, wide = {.item_size = 2, .capacity = SIZE_MAX};
    conc_channel channel = CONC_CHANNEL(int, 1);
    MISUSE(conc_channel_send(NULL, &item), -EINVAL);
    MISUSE(conc_channel_recv(NULL, &item), -EINVAL);
    MISUSE(conc_channel_try_send(NULL, &item), -EINVAL);
    MISUSE(conc_channel_try_recv(NULL, &item), -EINVAL);
    MISUSE(conc_channel_send(&none, &item), -EINVAL);
    MISUSE(conc_channel_try_recv(&none, &item), -EINVAL);
    MISUSE(conc_channel_recv(&wide, &item), -EINVAL);
    MISUSE(conc_channel_try_send(&channel, NULL), -EINVAL);
    FAILS(conc_channel_try_recv(&channel, &item), -EAGAIN);
    CHECK_INT(conc_channel_try_send(&channel, &item), 0);
    FAILS(conc_channel_try_send(&channel, &item), -EAGAIN);
    conc_channel_close(&channel);
    FAILS(conc_channel_send(&channel, &item), -EPIPE);
    conc_channel_destroy(&channel);
}

/* The same for a job: its error text replaces the stale one. */
static int fails_in_a_job(void *other)
{
    conc_job j;
    int result;
    (void)conc_fail(-EIO, STALE);
    CHECK_INT(conc_pool_run(other, is_out_of_order, NULL), -EIO);
    CHECK(!strstr(conc_last_error(), STALE));
    (void)conc_fail(-EIO, STALE);
    CHECK_INT(conc_pool_submit(other, &j, is_out_of_order, NULL), 0);
    CHECK_INT(conc_job_wait(&j, &result), 0);
    CHECK_INT(result, -EIO);
    CHECK(!strstr(conc_last_error(), STALE));
    return 0;
}

static int quick_one(void *arg)
{
    (void)arg;
    return 1;
}

static int fails_silently(void *arg)
{
    (void)arg;
    return -EIO;
}

static int hides_an_error(void *arg)
{
    (void)arg;
    (void)conc_fail(-EIO, STALE);
    return 0;
}

/* The first of them sets an error that it does not return. */
static int fails_second(void *arg) { return *(int *)arg ? -EIO : hides_an_error(NULL); }

static int fails_in_new_words(void *arg)
{
    (void)arg;
    return conc_fail(-EIO, "new words");
}

/* In a job, and on a plain thread: a function that runs here, not in its own job. */
static void check_functions_called_here(void)
{
    FAILS(conc_offload(fails_silently, NULL), -EIO);
    FAILS(conc_offload_abandon(fails_silently, NULL, NULL), -EIO);
    CHECK_INT(conc_offload(fails_in_new_words, NULL), -EIO);
    CHECK_STR(conc_last_error(), "new words");
    CHECK_INT(conc_offload(quick_one, NULL), 1);
    CHECK_STR(conc_last_error(), "new words");
}

static int fails_in_its_own_pool(void *pool)
{
    int none[2] = {0, 1};
    check_functions_called_here();
    FAILS(conc_pool_run(pool, fails_silently, NULL), -EIO);
    FAILS(conc_pool_map(pool, fails_silently, none, 2, sizeof none[0]), -EIO);
    FAILS(conc_pool_map(pool, fails_second, none, 2, sizeof none[0]), -EIO);
    FAILS(conc_shield(1, fails_silently, NULL), -EIO);
    CHECK_INT(conc_pool_run(pool, fails_in_new_words, NULL), -EIO);
    CHECK_INT(conc_pool_map(pool, quick_one, none, 2, sizeof none[0]), 0);
    CHECK_STR(conc_last_error(), "new words");
    return 0;
}

static int maps_elements_that_fail(void *pool)
{
    int elements[2] = {0, 1};
    FAILS(conc_pool_map(pool, fails_second, elements, 2, sizeof elements[0]), -EIO);
    return 0;
}

TEST(functions_called_on_the_spot_do_not_return_older_error_texts)
{
    conc_pool pool = {.threads = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_run(&pool, fails_in_its_own_pool, &pool), 0);
    CHECK_INT(conc_run(maps_elements_that_fail, &pool), 0);
    check_functions_called_here();
    CHECK_INT(conc_pool_run(&pool, fails_in_new_words, NULL), -EIO);
    CHECK_STR(conc_last_error(), "new words"); /* of a job, on a plain thread */
    FAILS(conc_pool_run(&pool, fails_silently, NULL), -EIO);
    CHECK_INT(conc_pool_close(&pool), 0);
}

static int misuses_pools(void *arg)
{
    int item = 0;
    conc_pool p = {.threads = 1}, other = {.threads = 1};
    struct sockaddr_storage address;
    CHECK_INT(conc_pool_open(&p), 0);
    CHECK_INT(conc_pool_open(&other), 0);
    misuse_maps(&p);
    misuse_jobs(&p);
    misuse_channels();
    CHECK_INT(conc_pool_run(&p, fails_in_a_job, &other), 0);
    CHECK_INT(conc_pool_close(&other), 0);
    CHECK_INT(conc_pool_close(&p), 0);
    MISUSE(conc_pool_close(NULL), -EINVAL);
    MISUSE(conc_pool_run(NULL, nothing, NULL), -EINVAL);
    MISUSE(conc_pool_submit(NULL, arg, nothing, NULL), -EINVAL);
    MISUSE(conc_procs_close(NULL), -EINVAL);
    MISUSE(conc_procs_run(NULL, nothing, &item, sizeof item), -EINVAL);
    MISUSE(conc_offload(NULL, NULL), -EINVAL);
    MISUSE(conc_offload_abandon(NULL, NULL, NULL), -EINVAL);
    MISUSE(conc_resolve(NULL, "80", &address, 1), -EINVAL);
    MISUSE(conc_resolve("localhost", NULL, &address, 1), -EINVAL);
    CHECK_INT(conc_resolve("localhost", "", &address, 1), -EINVAL);
    CHECK_STR(conc_last_error(), "\"\": no such port");
    CHECK_INT(conc_resolve("", "80", &address, 1), -EADDRNOTAVAIL);
    CHECK_STR(conc_last_error(), "\"\": no name");
    MISUSE(conc_child_wait(NULL, NULL), -EINVAL);
    fprintf(stderr, "<>\n");
    return 0;
}

/* ---- the reports ---- */

static conc_fn *body;

static void run_body(void)
{
    /* however slow the machine is, nothing else is reported */
    const conc_options o = {.debug = true, .slow_step = 1000, .virtual_clock = true};
    CHECK_INT(conc_run_with(&o, body, NULL), 0);
}

/* How many reports of this call are in the text? -1: there are others, too. */
static int reports_of(const char *call, size_t length, const char *text)
{
    int n = 0;
    for (const char *at = strstr(text, "conc: "); at; at = strstr(at + 1, "\nconc: ")) {
        const char *name = strstr(at, ": conc_");
        if (!name || strncmp(name + 2, call, length) != 0 || name[2 + length] != ':')
            return -1;
        n++;
    }
    return n;
}

/* Runs fn in debug mode. Each <wrong> call is reported twice, because it was made twice. */
static void check_reports(conc_fn *fn)
{
    body = fn;
    CHECK_INT(test_in_process(run_body, report, sizeof report), 0);
    char *at = strstr(report, "<"), *next;
    CHECK(at != NULL);
    for (; at[1] != '>'; at = next) {
        next = strstr(at, "\n<");
        CHECK(next != NULL);
        *next++ = 0;
        const char *call = strchr(at, '>') + 1;
        int wrong = strncmp(at, "<wrong>", 7) == 0 ? 2 : 0;
        if (reports_of(call, strcspn(call, "("), call) != wrong)
            test_fail(TEST_FILE, __LINE__, "not reported %d times by its name:\n%s", wrong, at);
    }
}

TEST(an_invalid_core_call_is_the_latest_error_and_reported) { check_reports(misuses_core); }

TEST(an_invalid_descriptor_call_is_the_latest_error_and_reported) { check_reports(misuses_io); }

TEST(an_invalid_conc_sync_call_is_the_latest_error_and_reported) { check_reports(misuses_sync); }

TEST(an_invalid_conc_pool_call_is_the_latest_error_and_reported) { check_reports(misuses_pools); }

/* ---- where error texts come from ---- */

static int waits_for_it(void *future)
{
    CHECK_INT(conc_future_wait(future, NULL), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    return 0;
}

TASK_TEST(a_future_carries_the_error_text)
{
    conc_future f = {0};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, waits_for_it, &f), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_future_set(&f, conc_fail(-EPROTO, "line 12: no colon"), NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_fail(-EPROTO, STALE), -EPROTO);
    CHECK_INT(waits_for_it(&f), 0);
}

TASK_TEST(a_wait_for_a_limiter_is_no_error)
{
    conc_limiter limiter = {.rate = 1};
    CHECK_INT(conc_limiter_acquire(&limiter, 1), 0);
    CHECK_INT(conc_limiter_acquire(&limiter, 1), 0);
    CHECK_TIME(1);
    CHECK_STR(conc_last_error(), "");
}

/* ---- outside a run ---- */

static int fails_in_words(void *arg)
{
    (void)arg;
    return conc_fail(-EPROTO, "line 12: no colon");
}

TEST(the_error_text_of_the_last_run_stays_on_its_thread)
{
    const conc_options wrong = {.stack_size = 1};
    CHECK_STR(conc_last_error(), "");
    CHECK_INT(conc_run(fails_in_words, NULL), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    CHECK_INT(conc_run_with(&wrong, nothing, NULL), -EINVAL);
    CHECK_STR(conc_last_error(), conc_strerror(-EINVAL));
    CHECK_INT(conc_run(is_out_of_order, NULL), -EIO);
    CHECK_STR(conc_last_error(), conc_strerror(-EIO));
    CHECK_INT(conc_run(nothing, NULL), 0);
    CHECK_STR(conc_last_error(), "");
}

static void *fail_on_a_thread(void *arg)
{
    CHECK_STR(conc_last_error(), "");
    CHECK_INT(conc_fail(-EPROTO, "line %d: no colon", 13), -EPROTO);
    CHECK_STR(conc_last_error(), "line 13: no colon");
    CHECK_INT(conc_sleep(1), -EPERM);
    CHECK_STR(conc_last_error(), "conc_sleep: only a task may call it");
    CHECK_INT(conc_fail(3, "no error"), 3);
    CHECK_STR(conc_last_error(), "");
    return arg;
}

TEST(each_thread_has_its_own_error_texts)
{
    pthread_t t;
    CHECK_INT(conc_fail(-EIO, "disk on fire"), -EIO);
    CHECK_STR(conc_last_error(), "disk on fire");
    CHECK_INT(pthread_create(&t, NULL, fail_on_a_thread, NULL), 0);
    CHECK_INT(pthread_join(t, NULL), 0);
    CHECK_STR(conc_last_error(), "disk on fire");
    CHECK_INT(conc_run(nothing, NULL), 0); /* a run clears it */
    CHECK_STR(conc_last_error(), "");
}

TEST(an_embedded_runs_error_text_remains_after_its_end)
{
    conc_embed e = {0};
    int rc = conc_embed_begin(&e, NULL, fails_in_words, NULL);
    if (rc == -ENOTSUP) /* poll(2) */
        return;
    CHECK_INT(rc, 0);
    CHECK_INT(conc_sleep(1), -EPERM); /* between two steps */
    CHECK_STR(conc_last_error(), "conc_sleep: only a task may call it");
    while (conc_embed_step(&e) == 1)
        continue;
    CHECK_INT(conc_embed_end(&e), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    CHECK_INT(conc_embed_begin(&e, NULL, nothing, NULL), 0);
    CHECK_INT(conc_embed_end(&e), 0);
    CHECK_STR(conc_last_error(), "");
}

TASK_TEST(a_cancel_keeps_the_previous_error_text)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_fail(-EIO, "disk on fire"), -EIO);
    conc_scope_cancel(&s);
    CHECK_INT(conc_sleep(1), -ECANCELED);
    CHECK_STR(conc_last_error(), "disk on fire");
    CHECK_INT(conc_scope_end(&s, -EIO), -EIO);
    CHECK_STR(conc_last_error(), "disk on fire");
}

static int sleeps_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

TASK_TEST(another_tasks_cancel_keeps_the_previous_error_text)
{
    conc_group g = {0};
    conc_task first, second, *next;
    int rc = 0;
    CHECK_INT(conc_spawn_task(&g, &first, sleeps_forever, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, &second, sleeps_forever, NULL), 0);
    CHECK_INT(conc_cancel(&first), 0);
    CHECK_INT(conc_join(&first, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
    CHECK_STR(conc_last_error(), "");
    (void)conc_fail(-EIO, "disk on fire");
    CHECK_INT(conc_join(&first, &rc), 0);
    CHECK_STR(conc_last_error(), "disk on fire");
    CHECK_INT(conc_cancel(&second), 0);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK_STR(conc_error_text(next), conc_strerror(-ECANCELED));
    CHECK_STR(conc_last_error(), "disk on fire");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(conc_last_error(), "disk on fire");
}

TASK_TEST(a_cancelled_start_keeps_the_previous_error_text)
{
    conc_scope s = {0};
    conc_group g = {0};
    (void)conc_fail(-EIO, "disk on fire");
    CHECK_INT(conc_scope_begin(&s, 1), 0);
    CHECK_INT(conc_start(&g, sleeps_forever, NULL), -ECANCELED);
    CHECK_STR(conc_last_error(), "disk on fire");
    CHECK_INT(conc_scope_end(&s, 0), 0);
}

/* ---- objects that CONC_AUTO closes after `return conc_fail(...)` */

static char unseen[256];

static void keep_unseen(const conc_failure *f, void *user)
{
    (void)user;
    snprintf(unseen, sizeof unseen, "%s", f->text);
}

static int fails_when_it_is_cancelled(void *arg)
{
    (void)arg;
    CHECK_INT(conc_sleep(CONC_FOREVER), -ECANCELED);
    return conc_fail(-EPROTO, "not cleaned up");
}

static int fails_beside_a_group(void *arg)
{
    CONC_AUTO(conc_group, g) = {0};
    CHECK_INT(conc_spawn(&g, arg ? fails_in_words : fails_when_it_is_cancelled, NULL), 0);
    CHECK_INT(conc_settle(), arg ? -ECANCELED : 0);
    return conc_fail(-EIO, "disk on fire");
}

static int fails_beside_a_stream(void *arg)
{
    CONC_AUTO(conc_stream, s) = {0};
    int ends[2];
    (void)arg;
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(conc_close(ends[0]), 0);
    CHECK_INT(conc_stream_open(&s, ends[1]), 0);
    CHECK_INT(conc_stream_write(&s, "x", 1), 1);
    return conc_fail(-EIO, "disk on fire");
}

static void check_words_beside(conc_fn *fn, void *arg, const char *expected)
{
    conc_options o = {.on_error = keep_unseen};
    CHECK_INT(conc_run_with(&o, fn, arg), -EIO);
    CHECK_STR(conc_last_error(), "disk on fire");
    CHECK_CONTAINS(unseen, expected);
}

TEST(closing_by_conc_auto_keeps_the_returned_error_text)
{
    check_words_beside(fails_beside_a_group, NULL, "not cleaned up");
    check_words_beside(fails_beside_a_group, unseen, "line 12: no colon");
    check_words_beside(fails_beside_a_stream, NULL, "closing a stream failed");
}

static int has_a_silent_error(void *arg)
{
    CONC_AUTO(conc_group, g) = {0};
    CHECK_INT(conc_spawn(&g, nothing, NULL), 0);
    (void)arg;
    return -EIO;
}

TASK_TEST(closing_by_conc_auto_does_not_revive_older_error_texts)
{
    (void)conc_fail(-EIO, STALE);
    CHECK_INT(conc_timeout(1, has_a_silent_error, NULL), -EIO);
    CHECK_STR(conc_last_error(), conc_strerror(-EIO));
}

/* ---- the subject of an error text ---- */

static void check_names(int rc, const char *what)
{
    CHECK(rc < 0);
    CHECK_CONTAINS(conc_last_error(), what);
    conc_fail(-EIO, "something else");
}

TASK_TEST(errors_about_addresses_paths_programs_and_names_say_which)
{
    void *data;
    struct sockaddr_storage found[1];
    conc_child sleeps = {.argv = (const char *const[]){"sleep", "9", NULL}};
    check_names(conc_listen("*:80"), "*:80");
    check_names(conc_listen("unix:/nosuch/x"), "unix:/nosuch/x");
    check_names(conc_dial("127.0.0.1:1"), "127.0.0.1:1");
    check_names(conc_dial("unix:/nosuch/x"), "unix:/nosuch/x");
    check_names(conc_dial(""), "\"\"");
    check_names(conc_resolve("localhost", "nosuch-port", found, 1), "nosuch-port");
    check_names(conc_file_read("/nosuch/x", &data, NULL), "/nosuch/x");
    check_names(conc_file_write("/nosuch/x", "x", 1), "/nosuch/x");
    check_names(conc_file_append("/nosuch/x", "x", 1), "/nosuch/x");
    CHECK_INT(conc_child_start(&sleeps), 0);
    check_names(conc_child_kill(&sleeps, 1000), "sleep (process");
    CHECK_INT(conc_child_close(&sleeps), 0);
}
