/* test_other_loops.c - tasks of one loop cannot use objects of another, and neither can threads
 * without a loop: every call returns -EPERM or does nothing. */
#define TEST_SYNC
#include "conc_test.h"

#include <pthread.h>

static conc_lock lock, cond_lock;
static conc_rwlock read_by_it, written_by_it;
static conc_sem sem;
static conc_event event;
static conc_cond cond;
static conc_barrier barrier = CONC_BARRIER(2);
static conc_latch latch;
static conc_future future;
static conc_queue empty = CONC_QUEUE(int, 1), full = CONC_QUEUE(int, 1),
                  joined = CONC_QUEUE(int, 0);
static conc_limiter limiter = {.rate = 0.001};
static conc_gen gen;
static conc_scope scope;
static conc_group group;
static conc_task sleeper, ended;

static int await_lock(void *arg)
{
    (void)arg;
    CONC_TRY(conc_lock_acquire(&lock));
    return conc_lock_release(&lock);
}

static int await_read(void *arg)
{
    (void)arg;
    CONC_TRY(conc_rwlock_acquire_read(&written_by_it));
    return conc_rwlock_release(&written_by_it);
}

static int await_write(void *arg)
{
    (void)arg;
    CONC_TRY(conc_rwlock_acquire_write(&read_by_it));
    return conc_rwlock_release(&read_by_it);
}

static int await_cond(void *arg)
{
    (void)arg;
    CONC_TRY(conc_lock_acquire(&cond_lock));
    int rc = conc_cond_wait(&cond, &cond_lock);
    conc_lock_release(&cond_lock);
    return rc;
}

static int await_item(void *arg)
{
    int item = 0;
    (void)arg;
    CONC_TRY(conc_queue_get(&empty, &item));
    return item == 7 ? 0 : -EIO;
}

static int await_room(void *arg)
{
    (void)arg;
    return conc_queue_put(&full, &(int){8});
}

static int await_permit(void *arg) { return (void)arg, conc_sem_acquire(&sem); }
static int await_event(void *arg) { return (void)arg, conc_event_wait(&event); }
static int await_party(void *arg) { return (void)arg, conc_barrier_wait(&barrier); }
static int await_latch(void *arg) { return (void)arg, conc_latch_wait(&latch); }
static int await_future(void *arg) { return (void)arg, conc_future_wait(&future, NULL); }
static int await_done(void *arg) { return (void)arg, conc_queue_join(&joined); }
static int await_tokens(void *arg) { return (void)arg, conc_limiter_acquire(&limiter, 1); }
static int sleep_forever(void *arg) { return (void)arg, conc_sleep(CONC_FOREVER); }
static int end_at_once(void *arg) { return (void)arg, 5; }

static int count_up(conc_gen *g, void *arg)
{
    (void)arg;
    for (int i = 1;; i++)
        CONC_TRY(conc_gen_emit(g, &i));
}

static conc_fn *const waiters[] = {
    await_lock,  await_read,  await_write, await_cond,   await_item, await_room,  await_permit,
    await_event, await_party, await_latch, await_future, await_done, await_tokens};

/* Calls that need not wait. */
static void try_what_need_not_wait(bool in_a_loop)
{
    int item = 9;
    CHECK_INT(conc_lock_try_acquire(&lock), -EPERM);
    CHECK_INT(conc_lock_release(&lock), -EPERM);
    CHECK_INT(conc_rwlock_try_acquire_read(&read_by_it), -EPERM);
    CHECK_INT(conc_rwlock_try_acquire_write(&read_by_it), -EPERM);
    CHECK_INT(conc_rwlock_try_acquire_read(&written_by_it), -EPERM);
    CHECK_INT(conc_rwlock_try_acquire_write(&written_by_it), -EPERM);
    CHECK_INT(conc_rwlock_release(&read_by_it), -EPERM);
    CHECK_INT(conc_rwlock_release(&written_by_it), -EPERM);
    CHECK_INT(conc_sem_try_acquire(&sem), -EPERM);
    CHECK_INT(conc_sem_release(&sem), -EPERM);
    CHECK_INT(conc_latch_add(&latch, 1), -EPERM);
    CHECK_INT(conc_latch_done(&latch), -EPERM);
    CHECK_INT(conc_future_set(&future, 0, NULL), -EPERM);
    CHECK_INT(conc_queue_try_get(&empty, &item), -EPERM);
    CHECK_INT(conc_queue_try_put(&empty, &item), -EPERM);
    CHECK_INT(conc_queue_try_get(&full, &item), -EPERM);
    CHECK_INT(conc_queue_try_put(&full, &item), -EPERM);
    CHECK_INT(conc_queue_task_done(&joined), -EPERM);
    CHECK_INT(conc_limiter_try_acquire(&limiter, 1), -EPERM);
    CHECK_INT(conc_scope_set_timeout(&scope, 0), -EPERM);
    CHECK_INT(conc_cancel(&sleeper), -EPERM);
    CHECK_INT(conc_spawn(&group, end_at_once, NULL), -EPERM);
    CHECK_INT(conc_gen_close(&gen), -EPERM);
    conc_event_set(&event);
    conc_event_clear(&event);
    conc_cond_notify(&cond, 1);
    conc_cond_notify_all(&cond);
    conc_queue_close(&empty);
    conc_queue_close(&full);
    conc_queue_destroy(&empty);
    conc_queue_destroy(&full);
    conc_queue_destroy(&joined);
    conc_scope_cancel(&scope);
    conc_scope_shield(&scope, true);
    conc_group_cancel(&group);
    conc_set_name(&sleeper, "mine");
    CHECK(!conc_event_is_set(&event) && !conc_future_is_set(&future));
    CHECK(conc_queue_len(&full) == 1 && !conc_done(&sleeper) && item == 9);
    if (in_a_loop) {
        CHECK_INT(conc_spawn_task(NULL, &sleeper, end_at_once, NULL), -EBUSY);
        CHECK_INT(conc_gen_open(&gen, count_up, NULL, sizeof(int)), -EBUSY);
    }
}

/* Calls that would wait, including where they need not. */
static void try_what_waits(void)
{
    int item = 9;
    conc_task *next;
    CHECK_INT(conc_lock_acquire(&lock), -EPERM);
    CHECK_INT(conc_rwlock_acquire_read(&read_by_it), -EPERM);
    CHECK_INT(conc_rwlock_acquire_write(&read_by_it), -EPERM);
    CHECK_INT(conc_rwlock_acquire_read(&written_by_it), -EPERM);
    CHECK_INT(conc_rwlock_acquire_write(&written_by_it), -EPERM);
    CHECK_INT(conc_sem_acquire(&sem), -EPERM);
    CHECK_INT(conc_event_wait(&event), -EPERM);
    CHECK_INT(conc_cond_wait(&cond, &cond_lock), -EPERM);
    CHECK_INT(conc_barrier_wait(&barrier), -EPERM);
    CHECK_INT(conc_latch_wait(&latch), -EPERM);
    CHECK_INT(conc_future_wait(&future, NULL), -EPERM);
    CHECK_INT(conc_queue_get(&empty, &item), -EPERM);
    CHECK_INT(conc_queue_put(&empty, &item), -EPERM);
    CHECK_INT(conc_queue_get(&full, &item), -EPERM);
    CHECK_INT(conc_queue_put(&full, &item), -EPERM);
    CHECK_INT(conc_queue_join(&joined), -EPERM);
    CHECK_INT(conc_limiter_acquire(&limiter, 1), -EPERM);
    CHECK_INT(conc_join(&sleeper, NULL), -EPERM);
    CHECK_INT(conc_join(&ended, NULL), -EPERM);
    CHECK_INT(conc_group_next(&group, &next), -EPERM);
    CHECK_INT(conc_group_wait(&group), -EPERM);
    CHECK_INT(conc_group_end(&group, 0), -EPERM);
    CHECK_INT(conc_start(&group, end_at_once, NULL), -EPERM);
    CHECK_INT(conc_scope_end(&scope, 0), -EPERM);
    CHECK_INT(conc_gen_next(&gen, &item), -EPERM);
    CHECK_INT(conc_gen_emit(&gen, &item), -EPERM);
}

static int try_a_lock_of_its_own(void)
{
    conc_lock own = {0};
    CHECK_INT(conc_lock_acquire(&own), 0);
    CHECK_INT(conc_cond_wait(&cond, &own), -EPERM);
    return conc_lock_release(&own);
}

static int try_to_select(void)
{
    int item = 9;
    conc_case cases[] = {CONC_CASE_EVENT(&event),      CONC_CASE_GET(&empty, &item),
                         CONC_CASE_PUT(&empty, &item), CONC_CASE_GET(&full, &item),
                         CONC_CASE_PUT(&full, &item),  CONC_CASE_JOIN(&sleeper),
                         CONC_CASE_JOIN(&ended)};
    for (size_t i = 0; i < CONC_LEN(cases); i++) {
        conc_case both[] = {CONC_CASE_AFTER(0), cases[i]};
        CHECK_INT(conc_select(&cases[i], 1), -EPERM);
        CHECK_INT(conc_select(both, 2), -EPERM);
    }
    return 0;
}

static int try_everything(void *arg)
{
    (void)arg;
    try_what_need_not_wait(true);
    try_what_waits();
    CONC_TRY(try_a_lock_of_its_own());
    return try_to_select();
}

static void *in_another_loop(void *arg)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, try_everything, arg), 0);
    return NULL;
}

static void *without_a_loop(void *arg)
{
    try_what_need_not_wait(false);
    try_what_waits();
    return arg;
}

static void hold_everything(void)
{
    int item = 0;
    CHECK_INT(conc_group_begin(&group), 0);
    CHECK_INT(conc_spawn_task(&group, &sleeper, sleep_forever, NULL), 0);
    CHECK_INT(conc_spawn_task(&group, &ended, end_at_once, NULL), 0);
    CHECK_INT(conc_scope_begin(&scope, CONC_FOREVER), 0);
    CHECK_INT(conc_lock_acquire(&lock), 0);
    CHECK_INT(conc_rwlock_acquire_read(&read_by_it), 0);
    CHECK_INT(conc_rwlock_acquire_write(&written_by_it), 0);
    CHECK_INT(conc_latch_add(&latch, 1), 0);
    CHECK_INT(conc_queue_put(&full, &item), 0);
    CHECK_INT(conc_queue_put(&joined, &item), 0);
    CHECK_INT(conc_limiter_acquire(&limiter, 1), 0);
    CHECK_INT(conc_gen_open(&gen, count_up, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&gen, &item), 1);
}

static void give_everything(void)
{
    int item = 7;
    CHECK_INT(conc_lock_release(&lock), 0);
    CHECK_INT(conc_rwlock_release(&read_by_it), 0);
    CHECK_INT(conc_rwlock_release(&written_by_it), 0);
    CHECK_INT(conc_sem_release(&sem), 0);
    conc_event_set(&event);
    conc_cond_notify_all(&cond);
    CHECK_INT(conc_barrier_wait(&barrier), 1);
    CHECK_INT(conc_latch_done(&latch), 0);
    CHECK_INT(conc_future_set(&future, 0, NULL), 0);
    CHECK_INT(conc_queue_try_put(&empty, &item), 0);
    CHECK_INT(conc_queue_try_get(&full, &item), 0);
    CHECK_INT(item, 0);
    CHECK_INT(conc_queue_task_done(&joined), 0);
    CHECK_INT(conc_gen_next(&gen, &item), 1);
    CHECK_INT(item, 2);
    CHECK_INT(conc_gen_close(&gen), 0);
}

/* Another thread tries every call while tasks of this loop wait; then all of them continue. */
static int stay_out_of_reach(void *(*of)(void *))
{
    conc_group all = {0};
    pthread_t thread;
    int rc = 0;
    hold_everything();
    for (size_t i = 0; i < CONC_LEN(waiters); i++)
        CHECK_INT(conc_spawn(&all, waiters[i], NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(pthread_create(&thread, NULL, of, NULL), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK(!conc_cancelled());
    give_everything();
    CHECK_INT(conc_group_wait(&all), 0);
    CHECK_INT(conc_scope_end(&scope, 0), 0);
    CHECK_INT(conc_join(&ended, &rc), 0);
    CHECK_INT(rc, 5);
    CHECK_CONTAINS(conc_name(&sleeper), "sleep_forever");
    CHECK_INT(conc_cancel(&sleeper), 0);
    CHECK_INT(conc_group_wait(&group), 0);
    conc_queue_destroy(&full);
    conc_queue_destroy(&empty);
    conc_queue_destroy(&joined);
    return 0;
}

TASK_TEST(another_loop_cannot_use_what_tasks_wait_for)
{
    CHECK_INT(stay_out_of_reach(in_another_loop), 0);
}

TASK_TEST(a_thread_without_a_loop_cannot_use_what_tasks_wait_for)
{
    CHECK_INT(stay_out_of_reach(without_a_loop), 0);
}
