/* test_forks.c - a forked child has only the tasks of its own runs: objects that the parent's
 * tasks held, waited for or had open are free, empty or fresh in the child's runs, and the
 * parent continues as if nothing had happened. */
/* the default; such an option gives this file its own implementation, whose internals it sees */
#define CONC_STACK_SIZE (256 * 1024)
#define TEST_SYNC
#define TEST_POOL
#include "conc_test.h"

static conc_task handle, ended, reader;
static conc_group group, other_group;
static conc_scope scope;
static conc_lock lock, cond_lock;
static conc_rwlock read_locked, write_locked;
static conc_sem sem;
static conc_event event, selected;
static conc_cond cond;
static conc_barrier barrier = CONC_BARRIER(2);
static conc_latch latch;
static conc_future future;
static conc_queue empty = CONC_QUEUE(int, 1), full = CONC_QUEUE(int, 1);
static conc_limiter limiter = {.rate = 1};
static conc_gen gen;

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

static int waits_for_cond(void *arg)
{
    (void)arg;
    CONC_TRY(conc_lock_acquire(&cond_lock));
    int rc = conc_cond_wait(&cond, &cond_lock);
    conc_lock_release(&cond_lock);
    return rc;
}

static int waits_at_barrier(void *arg)
{
    (void)arg;
    return conc_barrier_wait(&barrier);
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

static int waits_to_get(void *arg)
{
    int item;
    (void)arg;
    return conc_queue_get(&empty, &item);
}

static int waits_to_put(void *arg)
{
    int item = 2;
    (void)arg;
    return conc_queue_put(&full, &item);
}

static int waits_for_tokens(void *arg)
{
    (void)arg;
    CONC_TRY(conc_limiter_acquire(&limiter, 1));
    return conc_limiter_acquire(&limiter, 1);
}

static int selects(void *arg)
{
    conc_case c[] = {CONC_CASE_EVENT(&selected), CONC_CASE_AFTER(1000)};
    (void)arg;
    return conc_select(c, 2);
}

static int reads_and_opens_a_group(void *arg)
{
    (void)arg;
    CONC_TRY(conc_rwlock_acquire_read(&read_locked));
    CONC_TRY(conc_group_begin(&other_group));
    CONC_TRY(conc_scope_begin(&scope, 1000));
    int rc = conc_scope_end(&scope, conc_sleep(1000));
    conc_rwlock_release(&read_locked);
    return conc_group_end(&other_group, rc);
}

static int emits(conc_gen *g, void *arg)
{
    int rc = 0;
    (void)arg;
    for (int i = 1; rc == 0; i++)
        rc = conc_gen_emit(g, &i);
    return rc;
}

static int returns_three(void *arg)
{
    (void)arg;
    return 3;
}

typedef int call(void *arg);
static call *const waiters[] = {waits_for_sem,    waits_for_event, waits_for_cond,
                                waits_at_barrier, waits_for_latch, waits_for_future,
                                waits_to_get,     waits_to_put,    waits_for_tokens,
                                selects,          waits_for_cond};

/* Everything is in use. */
static void occupy_all(void)
{
    int item = 1;
    CHECK_INT(conc_group_begin(&group), 0);
    CHECK_INT(conc_latch_add(&latch, 1), 0);
    CHECK_INT(conc_queue_try_put(&full, &item), 0);
    CHECK_INT(conc_lock_acquire(&lock), 0);
    CHECK_INT(conc_rwlock_acquire_write(&write_locked), 0);
    CHECK_INT(conc_spawn_task(&group, &handle, waiters[0], NULL), 0);
    CHECK_INT(conc_spawn_task(&group, &ended, returns_three, NULL), 0);
    CHECK_INT(conc_spawn_task(&group, &reader, reads_and_opens_a_group, NULL), 0);
    for (size_t i = 1; i < CONC_LEN(waiters); i++)
        CHECK_INT(conc_spawn(&group, waiters[i], NULL), 0);
    CHECK_INT(conc_gen_open(&gen, emits, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&gen, &item), 1);
    CHECK_INT(conc_settle(), 0);
}

static void free_all(void)
{
    conc_group_cancel(&group);
    conc_lock_release(&lock);
    conc_rwlock_release(&write_locked);
    CHECK_INT(conc_group_wait(&group), 0);
    CHECK_INT(conc_gen_close(&gen), 0);
}

/* In the child: the same again, and each waiter gets what it waits for. */
static int uses_all(void *arg)
{
    int item = 0, result = 0;
    (void)arg;
    CHECK(conc_lock_owner(&lock) == NULL);
    CHECK(!conc_done(&handle));
    CHECK_INT(conc_queue_try_get(&full, &item), 0);
    CHECK_INT(item, 1);
    CHECK_INT(conc_latch_done(&latch), 0);
    occupy_all();
    CHECK_INT(conc_group_next(&group, &(conc_task *){NULL}), 1);
    CHECK_INT(conc_sem_release(&sem), 0);
    CHECK_INT(conc_join(&handle, &result), 0);
    CHECK_INT(result, 0);
    CHECK_INT(conc_lock_acquire(&cond_lock), 0);
    conc_lock_release(&cond_lock);
    conc_event_set(&event);
    conc_event_set(&selected);
    conc_cond_notify_all(&cond);
    CHECK_INT(conc_barrier_wait(&barrier), 1);
    CHECK_INT(conc_latch_done(&latch), 0);
    CHECK_INT(conc_future_set(&future, 0, NULL), 0);
    CHECK_INT(conc_queue_put(&empty, &item), 0);
    CHECK_INT(conc_queue_get(&full, &item), 0);
    CHECK_INT(conc_sleep(10), 0); /* for the tokens */
    CHECK_INT(conc_cancel(&reader), 0);
    conc_lock_release(&lock);
    conc_rwlock_release(&write_locked);
    CHECK_INT(conc_rwlock_acquire_write(&write_locked), 0);
    conc_rwlock_release(&write_locked);
    CHECK_INT(conc_group_wait(&group), 0);
    CHECK_INT(conc_rwlock_try_acquire_write(&read_locked), 0);
    conc_rwlock_release(&read_locked);
    return conc_gen_close(&gen);
}

static void in_the_child(void)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_sleep(1), -EPERM);
    CHECK_INT(conc_spawn(&group, returns_three, NULL), -EPERM);
    alarm(10);
    CHECK_INT(conc_run_with(&o, uses_all, NULL), 0);
}

TASK_TEST(objects_in_use_in_the_parent_work_in_a_run_of_a_forked_child)
{
    int status;
    occupy_all();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        in_the_child();
        _exit(0);
    }
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK_INT(status, 0);
    free_all();
}

/* A try is often the first call. */
static int tries_all(void *arg)
{
    int item = 0;
    (void)arg;
    CHECK_INT(conc_lock_try_acquire(&lock), 0);
    CHECK_INT(conc_lock_release(&lock), 0);
    CHECK_INT(conc_lock_try_acquire(&cond_lock), 0);
    CHECK_INT(conc_lock_release(&cond_lock), 0);
    CHECK_INT(conc_rwlock_try_acquire_write(&write_locked), 0);
    CHECK_INT(conc_rwlock_release(&write_locked), 0);
    CHECK_INT(conc_rwlock_try_acquire_write(&read_locked), 0);
    CHECK_INT(conc_rwlock_release(&read_locked), 0);
    CHECK_INT(conc_sem_release(&sem), 0);
    CHECK_INT(conc_sem_try_acquire(&sem), 0);
    CHECK_INT(conc_limiter_try_acquire(&limiter, 1), -EAGAIN);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_limiter_try_acquire(&limiter, 1), 0);
    CHECK_INT(conc_queue_try_put(&empty, &item), 0);
    CHECK_INT(conc_queue_try_get(&full, &item), 0);
    /* no waiting putter of the parent's adds its item */
    CHECK_INT(conc_queue_try_get(&full, &item), -EAGAIN);
    CHECK_INT(conc_spawn_task(NULL, &ended, returns_three, NULL), 0);
    CHECK_INT(conc_group_next(&group, &(conc_task *){NULL}), 0);
    CHECK_INT(conc_group_wait(&group), 0);
    CHECK_INT(conc_spawn(&other_group, returns_three, NULL), 0);
    return conc_group_wait(&other_group);
}

static void tries_in_the_child(void)
{
    conc_options o = {.virtual_clock = true};
    alarm(10);
    CHECK_INT(conc_run_with(&o, tries_all, NULL), 0);
}

TASK_TEST(objects_in_use_in_the_parent_can_be_tried_in_a_run_of_a_forked_child)
{
    int status;
    occupy_all();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        tries_in_the_child();
        _exit(0);
    }
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK_INT(status, 0);
    free_all();
}

/* ---- channels ---- */

static conc_channel no_items = CONC_CHANNEL(int, 1), no_room = CONC_CHANNEL(int, 1);

static int waits_to_receive(void *arg)
{
    int item;
    (void)arg;
    return conc_channel_recv(&no_items, &item);
}

static int waits_to_send(void *arg)
{
    int item = 2;
    (void)arg;
    return conc_channel_send(&no_room, &item);
}

static int uses_channels(void *arg)
{
    int item = 3;
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_channel_try_recv(&no_items, &item), -EAGAIN);
    CHECK_INT(conc_channel_try_send(&no_items, &item), 0); /* no receiver of the parent's gets it */
    CHECK_INT(conc_channel_recv(&no_items, &item), 0);
    CHECK_INT(item, 3);
    CHECK_INT(conc_channel_recv(&no_room, &item), 0);
    CHECK_INT(item, 1);
    CHECK_INT(conc_channel_try_recv(&no_room, &item), -EAGAIN); /* nor does a sender send it */
    CHECK_INT(conc_spawn(&g, waits_to_receive, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_channel_send(&no_items, &item), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    conc_channel_close(&no_items);
    conc_channel_destroy(&no_items);
    conc_channel_destroy(&no_room);
    return 0;
}

static void uses_channels_in_the_child(void)
{
    conc_options o = {.virtual_clock = true};
    alarm(10);
    CHECK_INT(conc_run_with(&o, uses_channels, NULL), 0);
}

/* As if another thread had been sending when the process forked. */
static pid_t fork_amid_a_send(void)
{
    pthread_mutex_lock(&no_items.inner->mutex);
    pid_t child = fork();
    if (child)
        pthread_mutex_unlock(&no_items.inner->mutex);
    return child;
}

TASK_TEST(channels_of_the_parent_work_in_a_run_of_a_forked_child)
{
    int status, item = 1;
    conc_group g = {0};
    CHECK_INT(conc_channel_try_send(&no_room, &item), 0);
    CHECK_INT(conc_spawn(&g, waits_to_receive, NULL), 0);
    CHECK_INT(conc_spawn(&g, waits_to_send, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    fflush(NULL);
    pid_t child = fork_amid_a_send();
    if (child == 0) {
        uses_channels_in_the_child();
        _exit(0);
    }
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK_INT(status, 0);
    CHECK_INT(conc_channel_try_send(&no_items, &item), 0);
    CHECK_INT(conc_channel_try_recv(&no_room, &item), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    conc_channel_destroy(&no_items);
    conc_channel_destroy(&no_room);
}

/* ---- streams ---- */

static conc_stream stream, closing;

static int reads_stream(void *arg)
{
    char byte;
    return (int)conc_stream_read(arg, &byte, 1);
}

/* More than a socket's buffer holds. */
static int fills_stream(void *arg)
{
    static char bytes[1 << 20];
    return (int)conc_stream_write(arg, bytes, sizeof bytes);
}

static int flushes_stream(void *arg) { return conc_stream_flush(arg); }
static int closes_stream(void *arg) { return conc_stream_close(arg); }

/* main_fn has its own run and limit. */
static void run_in_a_child(conc_fn *main_fn, void *arg)
{
    int status;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(10);
        CHECK_INT(conc_run(main_fn, arg), 0);
        _exit(0);
    }
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK_INT(status, 0);
}

static int reads_and_closes(void *arg)
{
    int *ends = arg;
    char byte;
    conc_group g = {0};
    CHECK_INT(write(ends[1], "xy", 2), 2);
    CHECK_INT(conc_stream_read(&stream, &byte, 1), 1);
    CHECK_INT(conc_spawn(&g, reads_stream, &stream), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn(&g, reads_stream, &stream), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_stream_close(&stream), 0);
    CHECK_INT(conc_group_wait(&g), -EPIPE);
    return 0;
}

TASK_TEST(a_stream_that_a_task_of_the_parent_reads_can_be_read_and_closed_in_a_forked_child)
{
    int ends[2];
    conc_group g = {0};
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(conc_stream_open(&stream, ends[0]), 0);
    CHECK_INT(conc_spawn(&g, reads_stream, &stream), 0);
    CHECK_INT(conc_settle(), 0);
    run_in_a_child(reads_and_closes, ends);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_stream_close(&stream), 0);
    CHECK_INT(close(ends[1]), 0);
}

static int drains(void *arg)
{
    static char bytes[1 << 16];
    ssize_t n;
    do
        n = conc_read(*(int *)arg, bytes, sizeof bytes);
    while (n > 0);
    return (int)n;
}

/* Its own bytes follow those in the buffer. */
static int writes_and_closes(void *arg)
{
    int *ends = arg;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, drains, &ends[1]), 0);
    CHECK_INT(conc_stream_write(&stream, "x", 1), 1);
    CHECK_INT(conc_stream_flush(&stream), 0);
    CHECK_INT(conc_stream_close(&stream), 0);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static int returns_nothing(void *arg)
{
    (void)arg;
    return 0;
}

static void fork_while_tasks_write(conc_fn *main_fn, bool close_before)
{
    int ends[2], status;
    conc_group g = {0};
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    CHECK_INT(conc_stream_open(&stream, ends[0]), 0);
    CHECK_INT(conc_spawn(&g, fills_stream, &stream), 0);
    CHECK_INT(conc_spawn(&g, fills_stream, &stream), 0);
    CHECK_INT(conc_spawn(&g, flushes_stream, &stream), 0);
    CHECK_INT(conc_settle(), 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(10);
        if (close_before)
            CHECK_INT(conc_stream_close(&stream), 0);
        CHECK_INT(conc_run(main_fn, ends), 0);
        _exit(0);
    }
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK_INT(status, 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(close(ends[1]), 0);
    conc_stream_close(&stream);
}

TASK_TEST(a_stream_that_tasks_of_the_parent_write_to_can_be_written_in_a_forked_child)
{
    fork_while_tasks_write(writes_and_closes, false);
}

TASK_TEST(a_stream_that_tasks_of_the_parent_write_to_can_be_closed_in_a_forked_child_before_a_run)
{
    fork_while_tasks_write(returns_nothing, true);
}

static int opens_again(void *arg)
{
    int *ends = arg;
    CHECK_INT(conc_stream_close(&closing), 0);
    CHECK_INT(conc_stream_open(&closing, ends[1]), 0);
    return conc_stream_close(&closing);
}

/* The reader has not run since the close, which waits for it. */
ORDERED_TASK_TEST(a_stream_that_is_closed_in_the_parent_can_be_opened_in_a_forked_child)
{
    int ends[2];
    conc_group g = {0};
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(conc_stream_open(&closing, ends[0]), 0);
    CHECK_INT(conc_spawn(&g, reads_stream, &closing), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn(&g, closes_stream, &closing), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK(closing.inside > 0);
    run_in_a_child(opens_again, ends);
    CHECK_INT(conc_group_wait(&g), -EPIPE);
    CHECK_INT(close(ends[1]), 0);
}

/* ---- loops ---- */

static void is_not_called(void *arg)
{
    (void)arg;
    abort();
}

/* As if another thread had been recording a location when the process forked. */
TASK_TEST(a_location_is_recorded_in_a_forked_child)
{
    int status;
    pthread_mutex_lock(&conc__places);
    pid_t child = fork();
    if (child == 0) {
        static char room[32];
        alarm(10);
        CHECK_STR(conc__at(room, "f at ", "a/b.c:1"), "f at b.c:1");
        _exit(0);
    }
    pthread_mutex_unlock(&conc__places);
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK_INT(status, 0);
}

/* Another thread may hold the loop's mutex when the process forks: no call waits for it. */
TASK_TEST(a_loop_of_the_parent_is_refused_in_a_forked_child)
{
    int status;
    conc_loop *l = conc_loop_self();
    CHECK_INT(conc_loop_hold(l), 0);
    pthread_mutex_lock(&l->shared.mutex);
    pid_t child = fork();
    if (child == 0) {
        alarm(10);
        CHECK_INT(conc_post(l, is_not_called, NULL), -EPERM);
        CHECK_INT(conc_loop_hold(l), -EPERM);
        CHECK_INT(conc_loop_release(l), -EPERM);
        _exit(0);
    }
    pthread_mutex_unlock(&l->shared.mutex);
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK_INT(status, 0);
    CHECK_INT(conc_loop_release(l), 0);
}
