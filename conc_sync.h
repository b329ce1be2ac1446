/* conc_sync.h - v0.1.0 - locks, semaphores, events, queues and select for the tasks of conc.h -
 * MIT licence
 *
 * Synchronization, as in asyncio and trio: lock, rwlock, semaphore, event, condition, barrier,
 * latch, future, queue, limiter, and a select over them. They serve the tasks of one loop; between
 * threads, use conc_channel of conc_pool.h.
 *
 *     static conc_lock lock;                              // all zero: ready
 *     static conc_queue jobs = CONC_QUEUE(int, 10);       // of ints, at most 10
 *
 *     static int transfer(void *arg)
 *     {
 *         CONC_LOCKED(&lock) {                            // released on every way out
 *             CONC_TRY(conc_sleep(1));
 *         }
 *         return 0;
 *     }
 *     static int worker(void *arg)
 *     {
 *         int job, rc;
 *         while ((rc = conc_queue_get(&jobs, &job)) == 0)
 *             CONC_TRY(conc_queue_task_done(&jobs));
 *         return rc == -EPIPE ? 0 : rc;                   // closed and empty
 *     }
 *
 * Include it instead of conc.h, which it includes itself. CONC_IMPLEMENTATION and CONC_STATIC
 * work as they do there: the file that defines CONC_IMPLEMENTATION must include this header too, or
 * the linker will not find its functions.
 *
 * Conventions, in addition to conc.h's
 *   Objects   An object is ready when it is all zero or initialized by its macro (CONC_SEM,
 *             CONC_BARRIER, CONC_QUEUE), even before and after a run. Only a queue allocates
 *             memory; the other objects need no destroy call.
 *   Order     First come, first served. A release hands over to the first waiter immediately. No
 *             other task can overtake that waiter, not even with a try_ call, and a task that
 *             releases and reacquires queues behind the waiters.
 *   Grants    A result of 0 means that the call had its full effect, -ECANCELED that it had none. A
 *             waiter keeps what it was handed even if a cancel or a timeout occurs before it runs;
 *             it sees the cancel at its next checkpoint.
 *   Calling   Calls that may wait, and all calls on locks and rwlocks, are for tasks. The other
 *             calls (set, notify, close, a semaphore's release, try_) also work in posted
 *             functions, and outside a run if no task is waiting. A call anywhere else, or while a
 *             task of another loop is waiting, returns -EPERM. A try_ call that would have to wait
 *             returns -EAGAIN.
 *   Errors    A NULL argument results in -EINVAL; a function that returns nothing ignores it.
 *
 * Contents: >>lock >>rwlock >>semaphore >>event >>condition >>barrier >>latch >>future >>queue
 * >>select >>limiter, then the implementation of each under the same name, and the licence. */
#ifndef CONC_SYNC_H
#define CONC_SYNC_H

#include "conc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- >>lock --------------------------------------------------------------------------------- */

typedef struct conc_lock {
    /* private */
    conc_task *owner;
    uint64_t serial; /* the owner's; distinguishes it from a later task at the same address */
    conc__waits waits;
    const char *place; /* where the owner acquired it */
} conc_lock;

/* Acquires the lock for the calling task. Waits.
 *     int conc_lock_acquire(conc_lock *l);
 * Errors: -EDEADLK (the caller already holds it), -EPERM (a task of another run, perhaps an ended
 * one, holds it), -ECANCELED. */
#define conc_lock_acquire(...) conc__lock_acquire((__VA_ARGS__), CONC__PLACE)
CONC_API int conc__lock_acquire(conc_lock *l, const char *place) CONC_NODISCARD;

/* Acquires the lock without waiting. Returns -EAGAIN if another task holds it, -EDEADLK if the
 * caller does.
 *     int conc_lock_try_acquire(conc_lock *l); */
#define conc_lock_try_acquire(...) conc__lock_try_acquire((__VA_ARGS__), CONC__PLACE)
CONC_API int conc__lock_try_acquire(conc_lock *l, const char *place) CONC_NODISCARD;

/* Releases the lock, or hands it to its first waiter. Not a checkpoint. Errors: -EPERM (the caller
 * does not hold the lock). */
CONC_API int conc_lock_release(conc_lock *l);

/* Returns the task that holds the lock, or NULL. If that task might have ended without releasing
 * the lock, compare the pointer but do not dereference it. */
CONC_API conc_task *conc_lock_owner(const conc_lock *l);

/* CONC_LOCKED(&l) { ... }: the block runs with the lock held, and every way out of it (its end,
 * break, continue, return, goto, CONC_TRY) releases it. If the lock cannot be acquired, the calling
 * function returns the error. That would leave open any scope or group that the function has begun,
 * so inside a scope or group, use conc_lock_acquire. */
#define CONC_LOCKED(...) \
    CONC__GUARDED(conc__lock_enter((__VA_ARGS__), CONC__PLACE), conc__lock_leave, __COUNTER__)
#define CONC__GUARDED(enter, leave, n) CONC__GUARDED2(enter, leave, CONC__JOIN(conc__guard, n))
#define CONC__GUARDED2(enter, leave, guard)                                               \
    for (__attribute__((__cleanup__(leave))) conc__entered guard = enter; __extension__({ \
             if (guard.rc < 0)                                                            \
                 return guard.rc;                                                         \
             !guard.over;                                                                 \
         });                                                                              \
         leave(&guard))
typedef struct conc__entered {
    void *object;
    int rc;
    bool over;
} conc__entered;
CONC_API conc__entered conc__lock_enter(conc_lock *l, const char *place);
CONC_API void conc__lock_leave(conc__entered *g);

/* ---- >>rwlock ------------------------------------------------------------------------------- */

/* Held by one writer or by any number of readers. A task that arrives while others are waiting
 * queues behind them, so neither readers nor writers starve. */
typedef struct conc_rwlock {
    /* private */
    conc_task *writer;
    uint64_t serial; /* of the writer, or of the latest reader */
    int readers;
    conc__waits waits;
    const char *place; /* where it was last acquired */
} conc_rwlock;

/* Acquires the rwlock for reading or for writing. Waits.
 *     int conc_rwlock_acquire_read(conc_rwlock *l), conc_rwlock_acquire_write(conc_rwlock *l);
 * Errors: -EDEADLK (the caller already holds it for writing), -EPERM (a task of another run,
 * perhaps an ended one, holds it), -ECANCELED. A reader must release the rwlock before it acquires
 * it again, or it can deadlock with itself or with a writer that has queued in between. */
#define conc_rwlock_acquire_read(...) conc__rwlock_acquire((__VA_ARGS__), CONC__READER, CONC__PLACE)
#define conc_rwlock_acquire_write(...) \
    conc__rwlock_acquire((__VA_ARGS__), CONC__WRITER, CONC__PLACE)
enum { CONC__READER, CONC__WRITER };
CONC_API int conc__rwlock_acquire(conc_rwlock *l, int how, const char *place) CONC_NODISCARD;

/* Acquires the rwlock without waiting. Returns -EAGAIN if it would have to wait.
 *     int conc_rwlock_try_acquire_read(conc_rwlock *l),
 *     conc_rwlock_try_acquire_write(conc_rwlock *l); */
#define conc_rwlock_try_acquire_read(...) \
    conc__rwlock_try_acquire((__VA_ARGS__), CONC__READER, CONC__PLACE)
#define conc_rwlock_try_acquire_write(...) \
    conc__rwlock_try_acquire((__VA_ARGS__), CONC__WRITER, CONC__PLACE)
CONC_API int conc__rwlock_try_acquire(conc_rwlock *l, int how, const char *place) CONC_NODISCARD;

/* Releases what the calling task acquired, for reading or for writing. Not a checkpoint. Errors:
 * -EPERM (another task holds it for writing, or no task holds it). The rwlock only counts its
 * readers, so a release by a task that is not a reader goes unnoticed. */
CONC_API int conc_rwlock_release(conc_rwlock *l);

/* ---- >>semaphore ---------------------------------------------------------------------------- */

typedef struct conc_sem {
    int permits; /* how many are free */
    int max;     /* a release beyond it returns -EOVERFLOW; 0: no maximum */
    /* private */
    conc__waits waits;
} conc_sem;

/* conc_sem s = CONC_SEM(3); or CONC_SEM(3, .max = 3) */
#define CONC_SEM(...)          \
    {                          \
        .permits = __VA_ARGS__ \
    }

/* Takes a permit. Waits. Errors: -EINVAL (permits or max negative, permits above max),
 * -ECANCELED. */
CONC_API int conc_sem_acquire(conc_sem *s) CONC_NODISCARD;
CONC_API int conc_sem_try_acquire(conc_sem *s) CONC_NODISCARD;

/* Gives a permit back, to the first waiter if there is one. Not a checkpoint. Errors: -EOVERFLOW
 * (the permits would exceed max, or INT_MAX). */
CONC_API int conc_sem_release(conc_sem *s);

/* CONC_PERMIT(&sem) { ... }: like CONC_LOCKED, but the block runs with a permit held. */
#define CONC_PERMIT(...) CONC__GUARDED(conc__sem_enter(__VA_ARGS__), conc__sem_leave, __COUNTER__)
CONC_API conc__entered conc__sem_enter(conc_sem *s);
CONC_API void conc__sem_leave(conc__entered *g);

/* ---- >>event -------------------------------------------------------------------------------- */

typedef struct conc_event {
    /* private */
    bool set;
    conc__waits waits;
} conc_event;

/* Waits until the event is set. Errors: -ECANCELED. */
CONC_API int conc_event_wait(conc_event *e) CONC_NODISCARD;

/* Sets the event. Wakes all waiters, even if conc_event_clear follows immediately; waits that begin
 * before such a clear return immediately. Neither this call nor the waiters use the event
 * afterwards, so a woken task may free it. Not a checkpoint. */
CONC_API void conc_event_set(conc_event *e);

/* Clears the event, so that conc_event_wait waits from then on. Not a checkpoint. */
CONC_API void conc_event_clear(conc_event *e);

CONC_API bool conc_event_is_set(const conc_event *e);

/* ---- >>condition ---------------------------------------------------------------------------- */

typedef struct conc_cond {
    /* private */
    conc__waits waits;
} conc_cond;

/* Releases the lock, waits to be notified, and reacquires the lock. The task holds the lock
 * whatever the result, so the call may overrun a timeout. Other tasks may run between the
 * notification and the return: test the condition in a loop. Errors: -EPERM (the task does not hold
 * the lock), -ECANCELED (the wait consumed no notification). */
CONC_API int conc_cond_wait(conc_cond *c, conc_lock *l) CONC_NODISCARD;

/* Notifies the first n waiters, or all. Each continues once it holds its lock again. The caller
 * need not hold a lock. Without waiters, has no effect. Not a checkpoint. */
CONC_API void conc_cond_notify(conc_cond *c, int n);
CONC_API void conc_cond_notify_all(conc_cond *c);

/* ---- >>barrier ------------------------------------------------------------------------------ */

typedef struct conc_barrier {
    int parties;
    /* private */
    int arrived;
    conc__waits waits;
} conc_barrier;

/* conc_barrier b = CONC_BARRIER(3); */
#define CONC_BARRIER(...)        \
    {                            \
        .parties = (__VA_ARGS__) \
    }

/* Waits until `parties` tasks have arrived; then all of them continue, and the barrier starts over.
 * Returns the caller's index in the order of arrival, from 0 to parties - 1. A task that is
 * cancelled while waiting no longer counts as arrived. Errors: -EINVAL (parties not positive),
 * -ECANCELED. */
CONC_API int conc_barrier_wait(conc_barrier *b) CONC_NODISCARD;

/* ---- >>latch -------------------------------------------------------------------------------- */

/* Counts outstanding work, like Go's WaitGroup. */
typedef struct conc_latch {
    /* private */
    int count;
    conc__waits waits;
} conc_latch;

/* Adds n, which may be negative, to the count; conc_latch_done adds -1. A count of 0 wakes all
 * waiters. Not checkpoints. Errors: -EOVERFLOW (the count would leave the range 0 to INT_MAX, and
 * is unchanged). */
CONC_API int conc_latch_add(conc_latch *l, int n);
CONC_API int conc_latch_done(conc_latch *l);

/* Waits until the count is 0. Errors: -ECANCELED. */
CONC_API int conc_latch_wait(conc_latch *l) CONC_NODISCARD;

/* ---- >>future ------------------------------------------------------------------------------- */

/* A result that is set once. */
typedef struct conc_future {
    /* private */
    bool set;
    int rc;
    void *value;
    char text[128];
    conc__waits waits;
} conc_future;

/* Sets the result (rc and a borrowed value) and wakes all waiters. If the calling task or posted
 * function raised the error rc with conc_fail, the waiters get its text too. A second call returns
 * -EALREADY. Neither this call nor the waiters use the future afterwards, so a woken task may free
 * it. Not a checkpoint. */
CONC_API int conc_future_set(conc_future *f, int rc, void *value);

/* Waits for the result. Returns its rc, and stores its value in *value unless value is NULL. If the
 * caller is cancelled while waiting, returns -ECANCELED and leaves *value unchanged. */
CONC_API int conc_future_wait(conc_future *f, void **value) CONC_NODISCARD;

CONC_API bool conc_future_is_set(const conc_future *f);

/* ---- >>queue -------------------------------------------------------------------------------- */

enum {
    CONC_QUEUE_FIFO,
    CONC_QUEUE_LIFO,
    /* smallest item first, equal items in the order they were put; needs `less` */
    CONC_QUEUE_PRIORITY
};

typedef struct conc_queue {
    /* in bytes; 0: items are only counted. An item's alignment may be at most that of
     * max_align_t */
    size_t item_size;
    size_t capacity; /* in items; a put into a full queue waits; 0: no limit */
    int kind;
    /* returns whether a comes before b; must not wait. Setting it implies CONC_QUEUE_PRIORITY */
    bool (*less)(const void *a, const void *b);
    /* private */
    bool closed, checked;
    char *items;      /* FIFO: a ring; LIFO: a stack; priority: a heap */
    uint64_t *orders; /* priority: the arrival number of each item */
    size_t room, head, count;
    /* while count is below it, a put only stores its item; 0 if the queue is closed or not FIFO, or
     * if item_size is not 4 or 8 */
    size_t limit;
    uint64_t arrivals;
    conc__waits getters, putters, joiners;
    /* not next to count, because the compiler would then merge both writes into one vector store,
     * which delays the next read of either */
    size_t unfinished;
} conc_queue;

/* conc_queue q = CONC_QUEUE(int, 10); or CONC_QUEUE(job, 10, .less = more_urgent) */
#define CONC_QUEUE(type, ...)                              \
    {                                                      \
        .item_size = sizeof(type), .capacity = __VA_ARGS__ \
    }

/* Hands a copy of the item to the first waiting getter, or appends it. item is borrowed until the
 * call returns. Waits only while the queue is full; consumers run when the producer waits or calls
 * conc_yield. Errors: -EPIPE (closed), -ENOMEM (the queue is unchanged), -EINVAL (a priority queue
 * without less, or less with another kind), -ECANCELED.
 * conc_queue_try_put never waits; it returns -EAGAIN if the queue is full. That does not mean that
 * the consumer is slow: it might simply not have run since the producer started. */
CONC_API int conc_queue_put(conc_queue *q, const void *item) CONC_NODISCARD;
CONC_API int conc_queue_try_put(conc_queue *q, const void *item) CONC_NODISCARD;

/* Puts a value, as conc_queue_put does: CONC_PUT(&jobs, n + 1), CONC_PUT(&jobs, (job){url, 3}), and
 * for a queue of pointers CONC_PUT(&names, name), where conc_queue_put takes &name. The value must
 * have item_size bytes. Otherwise the call returns -EINVAL, or does not compile if the compiler
 * knows both sizes (it optimizes, and the queue's initializer is visible). An array or a string
 * decays to a pointer to its first element. */
#define CONC_PUT(q, ...)                                              \
    CONC__PUT(q, (__VA_ARGS__), CONC__JOIN(conc__queue, __COUNTER__), \
              CONC__JOIN(conc__item, __COUNTER__), CONC__GIVEN(#__VA_ARGS__))
#define CONC__PUT(q, value, queue, item, given)                                          \
    __extension__({                                                                      \
        CONC__REQUIRE(given, "CONC_PUT(queue, value): the value is missing");            \
        conc_queue *queue = (q);                                                         \
        CONC__AUTO_VALUE item = value;                                                   \
        CONC__REQUIRE(CONC__IS_BYTES(item),                                              \
                      "CONC_PUT copies bytes, and this type is not trivially copyable"); \
        if (__builtin_constant_p(queue->item_size) && queue->item_size != sizeof item)   \
            conc__item_has_another_size();                                               \
        conc__queue_put_sized(queue, &item, sizeof item);                                \
    })
#if defined __has_attribute && !defined __cplusplus
#if __has_attribute(__error__)
void conc__item_has_another_size(void)
    __attribute__((__error__("CONC_PUT: the size of this value is not the queue's item_size")));
#define CONC__CHECKS_ITEMS
#endif
#endif
#ifndef CONC__CHECKS_ITEMS
#define conc__item_has_another_size() (void)0
#endif
CONC_API int conc__queue_put_sized(conc_queue *q, const void *item, size_t size) CONC_NODISCARD;

/* Moves the next item to *item. Waits while there is none. Errors: -EPIPE (closed and empty),
 * -EINVAL (as for conc_queue_put), -ECANCELED. */
CONC_API int conc_queue_get(conc_queue *q, void *item) CONC_NODISCARD;
CONC_API int conc_queue_try_get(conc_queue *q, void *item) CONC_NODISCARD;

/* Returns the number of items in the queue. */
CONC_API size_t conc_queue_len(const conc_queue *q);

/* Marks one of the items taken from the queue as done. Works even after the queue has been
 * destroyed. Not a checkpoint. Errors: -EOVERFLOW (every item put on the queue is already done). */
CONC_API int conc_queue_task_done(conc_queue *q);

/* Waits until every item put on the queue has been marked done. Errors: -ECANCELED, -EPIPE (the
 * queue was destroyed during the wait). */
CONC_API int conc_queue_join(conc_queue *q) CONC_NODISCARD;

/* Closes the queue to puts. All waiting puts and gets return -EPIPE. Items left in the queue can
 * still be taken. A second close does nothing. Not a checkpoint. */
CONC_API void conc_queue_close(conc_queue *q);

/* Closes the queue permanently, drops its items, and frees its memory. Items already taken still
 * count: conc_queue_task_done and conc_queue_join keep working. CONC_AUTO(conc_queue, q) =
 * CONC_QUEUE(int, 10); destroys the queue when the block ends. */
CONC_API void conc_queue_destroy(conc_queue *q);
CONC_API void conc__auto_conc_queue(conc_queue *q);

/* ---- >>select ------------------------------------------------------------------------------- */

struct conc__choice;

/* One alternative for conc_select. Make it with the macros below. */
typedef struct conc_case {
    int what;
    conc_queue *queue;
    conc_event *event;
    conc_task *task;
    int fd, events;
    double seconds;
    struct conc_channel *channel; /* with conc_pool.h */
    struct conc_job *job;
    void *to;
    const void *from;
    /* of the chosen case: what its call would have returned. For JOIN (which collects the task, as
     * conc_join does) and JOB, it is what the task or job returned */
    int result;
    /* private */
    struct conc__choice *choice;
    uint32_t id;
    conc__wait wait;
    struct conc__outside *outside;
} conc_case;

enum {
    CONC__GET = 1,
    CONC__PUT,
    CONC__EVENT,
    CONC__JOINED,
    CONC__FD,
    CONC__AFTER,
    CONC__RECV,
    CONC__SEND,
    CONC__JOB
};
#define CONC_CASE_GET(q, ...)                                \
    {                                                        \
        .what = CONC__GET, .queue = (q), .to = (__VA_ARGS__) \
    }
#define CONC_CASE_PUT(q, ...)                                  \
    {                                                          \
        .what = CONC__PUT, .queue = (q), .from = (__VA_ARGS__) \
    }
#define CONC_CASE_EVENT(...)                        \
    {                                               \
        .what = CONC__EVENT, .event = (__VA_ARGS__) \
    }
#define CONC_CASE_JOIN(...)                         \
    {                                               \
        .what = CONC__JOINED, .task = (__VA_ARGS__) \
    }
#define CONC_CASE_FD(descriptor, ...)                                 \
    {                                                                 \
        .what = CONC__FD, .fd = (descriptor), .events = (__VA_ARGS__) \
    }
#define CONC_CASE_AFTER(...)                          \
    {                                                 \
        .what = CONC__AFTER, .seconds = (__VA_ARGS__) \
    }

/* These need conc_pool.h. They queue with the callers of conc_channel_recv, conc_channel_send and
 * conc_job_wait, but cancelling the select does not cancel the job. */
#define CONC_CASE_RECV(c, ...)                                  \
    {                                                           \
        .what = CONC__RECV, .channel = (c), .to = (__VA_ARGS__) \
    }
#define CONC_CASE_SEND(c, ...)                                    \
    {                                                             \
        .what = CONC__SEND, .channel = (c), .from = (__VA_ARGS__) \
    }
#define CONC_CASE_JOB(...)                      \
    {                                           \
        .what = CONC__JOB, .job = (__VA_ARGS__) \
    }

/* Waits until one of the cases is ready, carries out only that one, and returns its index. The
 * result field of that case holds what its call would have returned. A closed queue is ready, with
 * -EPIPE. If several are ready at the call, the first in the array is chosen. The array and what it
 * points to are borrowed until the call returns; the array may be reused.
 *     conc_case c[] = {CONC_CASE_GET(&jobs, &job), CONC_CASE_EVENT(&stop), CONC_CASE_AFTER(1.5)};
 *     switch (conc_select(c, CONC_LEN(c))) { case 0: ...
 * A CONC_CASE_FD with events 0 is ready, with result 0, when the peer hangs up. Errors, with no
 * case carried out: -EINVAL (no cases, or an invalid one), -EDEADLK (a case joins the caller),
 * -EBADF (a negative descriptor), -EPERM (an object of another run), -ENOMEM (only with a channel
 * or a job), -EAGAIN (no thread can be started for the job), -ECANCELED. */
CONC_API int conc_select(conc_case *cases, size_t n) CONC_NODISCARD;

/* ---- >>limiter ------------------------------------------------------------------------------ */

/* A token bucket: it holds at most `burst` tokens, starts full, and gains `rate` tokens every `per`
 * seconds, evenly. So in any t seconds at most burst + t * rate / per tokens are taken. With rate 3
 * and burst 1, that is one every third of a second. */
typedef struct conc_limiter {
    double rate, per, burst; /* per: in seconds, 0 means 1; burst: 0 means 1 */
    /* private */
    uint64_t run;       /* the run whose clock was last read; 0: none */
    bool virtual_clock; /* did that run have a virtual clock? */
    int64_t seen;       /* the time that was last read, in ns */
    int64_t start;      /* when the bucket was last full */
    double taken;       /* tokens taken since then */
    conc__waits waits;
    conc__timer timer; /* fires when the first waiter's tokens are available */
} conc_limiter;

/* Takes n tokens; callers are served in order. Waits. Errors: -EINVAL (rate not positive, per or
 * burst negative, n not positive or more than the burst), -ECANCELED. */
CONC_API int conc_limiter_acquire(conc_limiter *l, int n) CONC_NODISCARD;

/* Takes n tokens without waiting. Returns -EAGAIN if there are not enough, or if another task is
 * waiting; -EPERM outside a run, where there is no clock. */
CONC_API int conc_limiter_try_acquire(conc_limiter *l, int n) CONC_NODISCARD;

#ifdef __cplusplus
}

/* For C++, the macros call functions: C++17 has no designated initializers, and GCC warns about
 * fields that an initializer omits. They take the same arguments and yield the same values, for
 * static objects too. */
extern "C++" {

struct conc__sem_options {
    int permits = 0, max = 0;
};
constexpr conc_sem conc__make(const conc__sem_options &o)
{
    conc_sem s{};
    s.permits = o.permits;
    s.max = o.max;
    return s;
}

struct conc__queue_options {
    size_t item_size = 0, capacity = 0;
    int kind = 0;
    bool (*less)(const void *a, const void *b) = nullptr;
};
constexpr conc_queue conc__make(const conc__queue_options &o)
{
    conc_queue q{};
    q.item_size = o.item_size;
    q.capacity = o.capacity;
    q.kind = o.kind;
    q.less = o.less;
    return q;
}

constexpr conc_barrier conc__make_barrier(int parties)
{
    conc_barrier b{};
    b.parties = parties;
    return b;
}

constexpr conc_case conc__make_case(int what)
{
    conc_case c{};
    c.what = what;
    return c;
}
constexpr conc_case conc__make_get(conc_queue *q, void *to)
{
    conc_case c = conc__make_case(CONC__GET);
    c.queue = q;
    c.to = to;
    return c;
}
constexpr conc_case conc__make_put(conc_queue *q, const void *from)
{
    conc_case c = conc__make_case(CONC__PUT);
    c.queue = q;
    c.from = from;
    return c;
}
constexpr conc_case conc__make_event(conc_event *e)
{
    conc_case c = conc__make_case(CONC__EVENT);
    c.event = e;
    return c;
}
constexpr conc_case conc__make_join(conc_task *t)
{
    conc_case c = conc__make_case(CONC__JOINED);
    c.task = t;
    return c;
}
constexpr conc_case conc__make_fd(int fd, int events)
{
    conc_case c = conc__make_case(CONC__FD);
    c.fd = fd;
    c.events = events;
    return c;
}
constexpr conc_case conc__make_after(double seconds)
{
    conc_case c = conc__make_case(CONC__AFTER);
    c.seconds = seconds;
    return c;
}
constexpr conc_case conc__make_recv(struct conc_channel *from, void *to)
{
    conc_case c = conc__make_case(CONC__RECV);
    c.channel = from;
    c.to = to;
    return c;
}
constexpr conc_case conc__make_send(struct conc_channel *to, const void *from)
{
    conc_case c = conc__make_case(CONC__SEND);
    c.channel = to;
    c.from = from;
    return c;
}
constexpr conc_case conc__make_job(struct conc_job *job)
{
    conc_case c = conc__make_case(CONC__JOB);
    c.job = job;
    return c;
}
}

#undef CONC_SEM
#undef CONC_BARRIER
#undef CONC_QUEUE
#undef CONC_CASE_GET
#undef CONC_CASE_PUT
#undef CONC_CASE_EVENT
#undef CONC_CASE_JOIN
#undef CONC_CASE_FD
#undef CONC_CASE_AFTER
#undef CONC_CASE_RECV
#undef CONC_CASE_SEND
#undef CONC_CASE_JOB
/* clang-format off */
#define CONC_SEM(...) conc__make(__extension__ conc__sem_options{.permits = __VA_ARGS__})
#define CONC_QUEUE(type, ...) \
    conc__make( \
        __extension__ conc__queue_options{.item_size = sizeof(type), .capacity = __VA_ARGS__})
/* clang-format on */
#define CONC_BARRIER(...) conc__make_barrier((__VA_ARGS__))
#define CONC_CASE_GET(q, ...) conc__make_get((q), (__VA_ARGS__))
#define CONC_CASE_PUT(q, ...) conc__make_put((q), (__VA_ARGS__))
#define CONC_CASE_EVENT(...) conc__make_event((__VA_ARGS__))
#define CONC_CASE_JOIN(...) conc__make_join((__VA_ARGS__))
#define CONC_CASE_FD(descriptor, ...) conc__make_fd((descriptor), (__VA_ARGS__))
#define CONC_CASE_AFTER(...) conc__make_after((__VA_ARGS__))
#define CONC_CASE_RECV(c, ...) conc__make_recv((c), (__VA_ARGS__))
#define CONC_CASE_SEND(c, ...) conc__make_send((c), (__VA_ARGS__))
#define CONC_CASE_JOB(...) conc__make_job((__VA_ARGS__))
#endif

#endif /* CONC_SYNC_H */

/* ==============================================================================================
 *  The implementation: >>sharing, then >>lock to >>limiter. conc.h's glossary applies here too.
 *
 *  waiter          a task that is waiting in an object's list
 *  fast path       code for a call that need not wait, in a function that calls no other; the slow
 *                  path makes all checks, and can park the task
 *  used elsewhere  tasks of another loop are waiting in the object's list: this thread must not
 *                  touch it
 *  case, choice    one conc_case, and the conc_select that is waiting for several
 *  outside         a case on a channel or a job, which conc_pool.h handles
 *  to withdraw     to end the wait of a case that was not chosen
 *  room            the number of slots for which a queue has memory
 *  hole            a slot of a heap whose item has been moved
 * ============================================================================================== */

#if (defined CONC_IMPLEMENTATION || defined CONC_STATIC) && !defined CONC__SYNC_IMPLEMENTED
#define CONC__SYNC_IMPLEMENTED

/* ---- >>sharing ------------------------------------------------------------------------------ */

static const conc__wait_kind conc__candidate;
CONC__PRIVATE const conc__wait *conc__parked_on(const conc__wait *candidate);

/* In a forked child: does the wait belong to one of the parent's tasks? The task's handle might
 * have been reused for a new task that is waiting for something else. */
CONC__COLD bool conc__wait_is_inherited(const conc__wait *w)
{
    const conc__wait *parked = w->kind == &conc__candidate ? conc__parked_on(w) : w;
    return conc__is_inherited(w->task->serial) || w->task->wait != parked;
}

/* Returns true if the list is empty or its waiters are tasks of l. In a forked child, first empties
 * a list that holds tasks of the parent; it holds no others, because a task calls this before
 * joining the list. */
CONC__FAST bool conc__ours(const conc_loop *l, conc__waits *waits)
{
    conc__wait *first = waits->first;
    if (!CONC__UNLIKELY(first != NULL))
        return true;
    if (CONC__UNLIKELY(conc__inherited_runs) && conc__wait_is_inherited(first)) {
        *waits = (conc__waits){NULL, NULL};
        return true;
    }
    return first->task->loop == l;
}

CONC__COLD int conc__used_elsewhere(const char *call)
{
    return conc__misused(-EPERM, call, "a task of another loop is waiting on it", NULL);
}

/* Makes the checks at the start of `call`, which may wait. Returns 0, -EPERM or -ECANCELED. */
CONC__FAST int conc__may_wait(conc_loop *l, conc__waits *waits, const char *call)
{
    if (CONC__UNLIKELY(!conc__ours(l, waits)))
        return conc__used_elsewhere(call);
    return conc__checkpoint(l);
}

/* Returns true if the running task may continue without yielding, and uses up one of its quick
 * checkpoints. The fast paths below call no other function; their slow paths are separate
 * functions, because a function that parks a task saves every register first. */
CONC__FAST bool conc__may_continue(conc_loop *l)
{
    if (CONC__UNLIKELY(!l || !l->self || l->self->pending || l->ready.budget_left <= 1))
        return false;
    l->ready.budget_left--;
    return true;
}

/* Appends w, a wait of the running task, to the list and parks the task. */
CONC__SWITCHES int conc__wait_in(conc_loop *l, conc__waits *list, conc__wait *w)
{
    conc__check_lost(l, __builtin_frame_address(0));
    conc__append(list, w);
    return conc__park(l, w);
}

/* Does what conc__wake does, inlined, for the first wait of a list. */
CONC__FAST void conc__wake_first(conc_loop *l, conc__waits *list, int result)
{
    conc__wait *w = list->first;
    if (CONC__UNLIKELY(w->kind->won)) {
        conc__wake(l, w, result);
        return;
    }
    list->first = w->next;
    if (w->next)
        w->next->prev = NULL;
    else
        list->last = NULL;
    w->list = NULL;
    w->result = result;
    conc__wait_over(l, w->task);
}

/* Implements `call`: waits in the list of `object` unless is_true is set. */
CONC__PRIVATE CONC__CALLED int conc__wait_unless(const char *call, bool is_true, const void *object,
                                                 conc__waits *list, const conc__wait_kind *kind)
{
    conc_loop *l = conc__in_task_of(call);
    if (!l)
        return -EPERM;
    int rc = conc__may_wait(l, list, call);
    if (rc)
        return rc;
    if (!is_true) {
        conc__wait w = {.task = l->self, .kind = kind, .on = object};
        return conc__wait_result(conc__wait_in(l, list, &w));
    }
    conc__spend_budget(l);
    return 0;
}

/* Handles `call` if its object is NULL. */
CONC__COLD int conc__no_object(const char *call)
{
    if (!conc__in_task_of(call))
        return -EPERM;
    return conc__misused(-EINVAL, call, "there is nothing to wait for", NULL);
}

CONC__PRIVATE void conc__wake_all(conc_loop *l, conc__waits *list, int result)
{
    while (list->first) {
        if (result < 0)
            conc__set_error(list->first->task, result, NULL, (conc__source){NULL, NULL});
        conc__wake(l, list->first, result);
    }
}

/* Returns the recorded owner of a lock, or NULL if that task has ended. */
CONC__PRIVATE const conc_task *conc__living_owner(const conc_task *owner, uint64_t serial)
{
    if (!conc__lives(conc__here, owner, serial))
        return NULL;
    return owner;
}

CONC__PRIVATE void conc__print_owner(FILE *out, const conc_task *owner, uint64_t serial,
                                     const char *place)
{
    if (!owner) { /* the program has overwritten the lock: a waiter implies an owner */
        fprintf(out, " that is free");
    } else if (conc__living_owner(owner, serial)) {
        fputs(" that ", out);
        conc__print_name(out, owner);
        fprintf(out, " acquired at %s", place);
    } else if (conc__is_of_run(conc__here, serial)) {
        fprintf(out, " acquired at %s by a task that has ended", place);
    } else {
        fprintf(out, " acquired at %s by a task of another run", place);
    }
}

/* ---- >>lock --------------------------------------------------------------------------------- */

CONC__PRIVATE void conc__lock_details(FILE *out, const conc__wait *w)
{
    const conc_lock *k = w->on;
    conc__print_owner(out, k->owner, k->serial, k->place);
}

/* Returns the task that a deadlock report names next, or NULL if it has ended. */
CONC__PRIVATE const conc_task *conc__lock_owner(const conc__wait *w)
{
    const conc_lock *k = w->on;
    return conc__living_owner(k->owner, k->serial);
}

static const conc__wait_kind conc__locking = {.what = "waits for a lock",
                                              .details = CONC__DETAILS(conc__lock_details),
                                              .cancel = conc__cancel_plainly,
                                              .owner = conc__lock_owner};

CONC__FAST bool conc__lock_is_mine(const conc_loop *l, const conc_lock *k)
{
    return k->owner == l->self && k->serial == l->self->serial;
}

/* Has the owner ended without releasing the lock? */
CONC__PRIVATE bool conc__lock_is_lost(conc_loop *l, const conc_lock *k)
{
    return !conc__lives(l, k->owner, k->serial);
}

/* Returns the error of a try_ call on a lock or rwlock that is not free. */
CONC__COLD int conc__held_by_other(const conc_loop *l, const conc_task *owner, uint64_t serial,
                                   const char *call, const char *place)
{
    if (owner == l->self && serial == l->self->serial)
        return conc__misused(-EDEADLK, call, "the task already holds it, acquired", place);
    if (conc__is_of_run(l, serial))
        return conc__own_error(-EAGAIN);
    return conc__misused(-EPERM, call, "a task of another run holds it, acquired", place);
}

CONC__FAST void conc__lock_grant(conc_loop *l, conc_lock *k, conc_task *t, const char *place)
{
    k->owner = t;
    k->serial = t->serial;
    k->place = place;
    CONC__HOOK(l, acquired(l, t, k, "a lock", place));
}

/* Takes the lock from its owner and grants it to the first waiter, if any. */
CONC__FAST void conc__lock_hand_over(conc_loop *l, conc_lock *k)
{
    conc__wait *w = k->waits.first;
    CONC__HOOK(l, released(k->owner, k));
    k->owner = NULL;
    if (w) {
        conc__lock_grant(l, k, w->task, w->item);
        /* 0, or what conc_cond_wait returns once it holds the lock again */
        conc__wake_first(l, &k->waits, w->value);
    }
}

CONC__PRIVATE CONC__CALLED int conc__lock_wait(conc_loop *l, conc_lock *k, const char *place)
{
    conc__wait w = {
        .task = l->self, .kind = &conc__locking, .on = k, .item = (void *)(uintptr_t)place};
    return conc__wait_in(l, &k->waits, &w);
}

CONC__PRIVATE CONC__CALLED int conc__lock_acquire_slowly(conc_lock *k, const char *place)
{
    conc_loop *l = conc__in_task();
    if (CONC__UNLIKELY(!l))
        return -EPERM;
    if (CONC__UNLIKELY(!k))
        return conc__misused(-EINVAL, __func__, "no lock", NULL);
    if (CONC__UNLIKELY(conc__is_inherited(k->serial)))
        k->owner = NULL;
    if (CONC__UNLIKELY(conc__lock_is_mine(l, k)))
        return conc__misused(-EDEADLK, "conc_lock_acquire",
                             "the task already holds this lock, acquired", k->place);
    int rc = conc__may_wait(l, &k->waits, "conc_lock_acquire");
    if (rc)
        return rc;
    if (k->owner) {
        if (!conc__is_of_run(l, k->serial))
            return conc__misused(-EPERM, "conc_lock_acquire",
                                 "a task of another run holds this lock, acquired", k->place);
        return conc__lock_wait(l, k, place);
    }
    conc__lock_grant(l, k, l->self, place);
    conc__spend_budget(l);
    return 0;
}

/* In this file the public names are macros for the _fast functions, which are inlined: a call would
 * double their cost. */
CONC__FAST int conc__lock_acquire_fast(conc_lock *k, const char *place)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!k || k->owner || !l || CONC__HOOKS(l) || !conc__may_continue(l)))
        return conc__lock_acquire_slowly(k, place);
    k->owner = l->self;
    k->serial = l->self->serial;
    k->place = place;
    return 0;
}

CONC_API int conc__lock_acquire(conc_lock *k, const char *place)
{
    return conc__lock_acquire_fast(k, place);
}
#define conc__lock_acquire(k, place) conc__lock_acquire_fast(k, place)

CONC_API int conc__lock_try_acquire(conc_lock *k, const char *place)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!k)
        return conc__misused(-EINVAL, __func__, "no lock", NULL);
    if (k->owner && !conc__is_inherited(k->serial))
        return conc__held_by_other(l, k->owner, k->serial, "conc_lock_try_acquire", k->place);
    conc__lock_grant(l, k, l->self, place);
    return 0;
}

CONC__PRIVATE CONC__CALLED int conc__lock_release_slowly(conc_lock *k)
{
    if (CONC__UNLIKELY(!k))
        return conc__misused(-EINVAL, __func__, "no lock", NULL);
    conc_loop *l = conc__in_task();
    if (CONC__UNLIKELY(!l))
        return -EPERM;
    if (CONC__UNLIKELY(!conc__lock_is_mine(l, k) || !conc__ours(l, &k->waits)))
        return conc__misused(-EPERM, "conc_lock_release", "the task does not hold this lock", NULL);
    conc__lock_hand_over(l, k);
    return 0;
}

CONC__FAST int conc__lock_release_fast(conc_lock *k)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!k || !l || !l->self || !conc__lock_is_mine(l, k) || k->waits.first ||
                       CONC__HOOKS(l)))
        return conc__lock_release_slowly(k);
    k->owner = NULL;
    return 0;
}

CONC_API int conc_lock_release(conc_lock *k) { return conc__lock_release_fast(k); }
#define conc_lock_release(...) conc__lock_release_fast(__VA_ARGS__)

CONC_API conc_task *conc_lock_owner(const conc_lock *k)
{
    conc_loop *l = conc__here;
    if (!k || conc__is_inherited(k->serial))
        return NULL;
    if (l && l->self && k->owner == l->self && !conc__lock_is_mine(l, k))
        return NULL;
    return k->owner;
}

CONC_API conc__entered conc__lock_enter(conc_lock *k, const char *place)
{
    return (conc__entered){k, conc__lock_acquire(k, place), false};
}

CONC_API void conc__lock_leave(conc__entered *g)
{
    if (!g->over && g->rc == 0)
        conc_lock_release(g->object);
    g->over = true;
}

/* ---- >>rwlock ------------------------------------------------------------------------------- */

CONC__PRIVATE void conc__rwlock_details(FILE *out, const conc__wait *w)
{
    const conc_rwlock *k = w->on;
    fprintf(out, w->value == CONC__READER ? " to read" : " to write");
    if (k->writer)
        conc__print_owner(out, k->writer, k->serial, k->place);
    else if (k->readers == 1)
        fprintf(out, ", held by 1 reader");
    else
        fprintf(out, ", held by %d readers", k->readers);
}

CONC__PRIVATE bool conc__rwlock_is_mine(const conc_loop *l, const conc_rwlock *k)
{
    return k->writer && k->writer == l->self && k->serial == l->self->serial;
}

/* In a forked child, frees the rwlock if the parent's tasks hold it. */
CONC__PRIVATE void conc__rwlock_disown_parent(conc_rwlock *k)
{
    if (!conc__is_inherited(k->serial))
        return;
    k->writer = NULL;
    k->readers = 0;
}

/* Is the rwlock held by a task of another run? That run may have ended. */
CONC__PRIVATE bool conc__rwlock_is_foreign(const conc_loop *l, const conc_rwlock *k)
{
    return (k->writer || k->readers) && !conc__is_of_run(l, k->serial);
}

CONC__PRIVATE bool conc__rwlock_is_free(const conc_rwlock *k, int how)
{
    return !k->writer && (how == CONC__READER || !k->readers);
}

CONC__PRIVATE void conc__rwlock_grant(conc_loop *l, conc_rwlock *k, int how, conc_task *t,
                                      const char *place)
{
    if (how == CONC__READER)
        k->readers++;
    else
        k->writer = t;
    k->serial = t->serial;
    k->place = place;
    const char *what = how == CONC__READER ? "a rwlock to read" : "a rwlock to write";
    CONC__HOOK(l, acquired(l, t, k, what, place));
}

/* Grants the rwlock to the first waiters, as many as can share it. */
CONC__PRIVATE void conc__rwlock_grant_waiters(conc_loop *l, conc_rwlock *k)
{
    conc__wait *w = k->waits.first;
    while (w && conc__rwlock_is_free(k, w->value)) {
        conc__rwlock_grant(l, k, w->value, w->task, w->item);
        conc__wake(l, w, 0);
        w = k->waits.first;
    }
}

/* Readers queued behind a cancelled writer can acquire the rwlock now. */
CONC__PRIVATE bool conc__rwlock_cancel(conc__wait *w)
{
    conc__unlink(w);
    conc__rwlock_grant_waiters(conc__here, (conc_rwlock *)(uintptr_t)w->on);
    return true;
}

/* Returns the task that a deadlock report names next. It can only be a writer, because readers are
 * not recorded. */
CONC__PRIVATE const conc_task *conc__rwlock_owner(const conc__wait *w)
{
    const conc_rwlock *k = w->on;
    return conc__living_owner(k->writer, k->serial);
}

static const conc__wait_kind conc__rwlocking = {.what = "waits for a rwlock",
                                                .details = CONC__DETAILS(conc__rwlock_details),
                                                .cancel = conc__rwlock_cancel,
                                                .owner = conc__rwlock_owner};

CONC_API CONC__CALLED int conc__rwlock_acquire(conc_rwlock *k, int how, const char *place)
{
    static const char *const calls[] = {
        [CONC__READER] = "conc_rwlock_acquire_read", [CONC__WRITER] = "conc_rwlock_acquire_write"};
    const char *call = calls[how];
    conc_loop *l = conc__in_task_of(call);
    if (!l)
        return -EPERM;
    if (!k)
        return conc__misused(-EINVAL, call, "no rwlock", NULL);
    conc__rwlock_disown_parent(k);
    if (conc__rwlock_is_mine(l, k))
        return conc__misused(-EDEADLK, call, "the task already holds this rwlock, acquired",
                             k->place);
    int rc = conc__may_wait(l, &k->waits, call);
    if (rc)
        return rc;
    if (conc__rwlock_is_foreign(l, k))
        return conc__misused(-EPERM, call, "a task of another run holds this rwlock, acquired",
                             k->place);
    if (k->waits.first || !conc__rwlock_is_free(k, how)) {
        conc__wait w = {.task = l->self,
                        .kind = &conc__rwlocking,
                        .on = k,
                        .item = (void *)(uintptr_t)place,
                        .value = how};
        return conc__wait_in(l, &k->waits, &w);
    }
    conc__rwlock_grant(l, k, how, l->self, place);
    conc__spend_budget(l);
    return 0;
}

CONC_API int conc__rwlock_try_acquire(conc_rwlock *k, int how, const char *place)
{
    static const char *const calls[] = {[CONC__READER] = "conc_rwlock_try_acquire_read",
                                        [CONC__WRITER] = "conc_rwlock_try_acquire_write"};
    const char *call = calls[how];
    conc_loop *l = conc__in_task_of(call);
    if (!l)
        return -EPERM;
    if (!k)
        return conc__misused(-EINVAL, call, "no rwlock", NULL);
    conc__rwlock_disown_parent(k);
    if (!conc__ours(l, &k->waits))
        return conc__used_elsewhere(call);
    if (k->waits.first || !conc__rwlock_is_free(k, how) || conc__rwlock_is_foreign(l, k))
        return conc__held_by_other(l, k->writer, k->serial, call, k->place);
    conc__rwlock_grant(l, k, how, l->self, place);
    return 0;
}

/* May the running task release the rwlock? Readers are not recorded, so any task could be one. */
CONC__PRIVATE bool conc__rwlock_may_release(const conc_loop *l, conc_rwlock *k)
{
    if (k->writer && !conc__rwlock_is_mine(l, k))
        return false;
    if (!k->writer && k->readers <= 0)
        return false;
    return conc__is_of_run(l, k->serial) && conc__ours(l, &k->waits);
}

CONC_API int conc_rwlock_release(conc_rwlock *k)
{
    if (!k)
        return conc__misused(-EINVAL, __func__, "no rwlock", NULL);
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!conc__rwlock_may_release(l, k))
        return conc__misused(-EPERM, "conc_rwlock_release", "the task does not hold this rwlock",
                             NULL);
    if (k->writer)
        k->writer = NULL;
    else
        k->readers--;
    CONC__HOOK(l, released(l->self, k));
    conc__rwlock_grant_waiters(l, k);
    return 0;
}

/* ---- >>semaphore ---------------------------------------------------------------------------- */

static const conc__wait_kind conc__permitting = {.what = "waits for a semaphore permit",
                                                 .cancel = conc__cancel_plainly};

static const char conc__bad_sem[] =
    "no semaphore, or its permits are outside the range 0 to its maximum";

CONC__FAST bool conc__sem_is_valid(const conc_sem *s)
{
    /* also rejects a negative max: permits, which is never negative, would exceed it */
    return s && s->permits >= 0 && (s->max == 0 || s->permits <= s->max);
}

CONC__PRIVATE CONC__CALLED int conc__sem_acquire_slowly(conc_sem *s)
{
    conc_loop *l = conc__in_task();
    if (CONC__UNLIKELY(!l))
        return -EPERM;
    if (CONC__UNLIKELY(!conc__sem_is_valid(s)))
        return conc__misused(-EINVAL, __func__, conc__bad_sem, NULL);
    int rc = conc__may_wait(l, &s->waits, "conc_sem_acquire");
    if (rc)
        return rc;
    if (s->permits == 0 || s->waits.first) {
        conc__wait w = {.task = l->self, .kind = &conc__permitting, .on = s};
        return conc__wait_in(l, &s->waits, &w);
    }
    s->permits--;
    conc__spend_budget(l);
    return 0;
}

CONC_API int conc_sem_acquire(conc_sem *s)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!conc__sem_is_valid(s) || s->permits == 0 || s->waits.first ||
                       !conc__may_continue(l)))
        return conc__sem_acquire_slowly(s);
    s->permits--;
    return 0;
}

CONC_API int conc_sem_try_acquire(conc_sem *s)
{
    conc_loop *l = conc__here;
    if (!conc__sem_is_valid(s))
        return conc__misused(-EINVAL, __func__, conc__bad_sem, NULL);
    if (!conc__ours(l, &s->waits))
        return conc__used_elsewhere("conc_sem_try_acquire");
    if (s->permits == 0 || s->waits.first)
        return conc__own_error(-EAGAIN);
    s->permits--;
    return 0;
}

CONC_API int conc_sem_release(conc_sem *s)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!conc__sem_is_valid(s)))
        return conc__misused(-EINVAL, __func__, conc__bad_sem, NULL);
    if (CONC__UNLIKELY(!conc__ours(l, &s->waits)))
        return conc__used_elsewhere("conc_sem_release");
    if (s->waits.first) {
        conc__wake(l, s->waits.first, 0);
        return 0;
    }
    int max = s->max ? s->max : INT_MAX;
    if (CONC__UNLIKELY(s->permits == max))
        return conc__misused(-EOVERFLOW, "conc_sem_release", "the permits would exceed the maximum",
                             NULL);
    s->permits++;
    return 0;
}

CONC_API conc__entered conc__sem_enter(conc_sem *s)
{
    return (conc__entered){s, conc_sem_acquire(s), false};
}

CONC_API void conc__sem_leave(conc__entered *g)
{
    if (!g->over && g->rc == 0)
        conc_sem_release(g->object);
    g->over = true;
}

/* ---- >>event -------------------------------------------------------------------------------- */

static const conc__wait_kind conc__awaiting_event = {.what = "waits for an event",
                                                     .cancel = conc__cancel_plainly};

CONC_API int conc_event_wait(conc_event *e)
{
    if (!e)
        return conc__no_object(__func__);
    return conc__wait_unless(__func__, e->set, e, &e->waits, &conc__awaiting_event);
}

CONC_API void conc_event_set(conc_event *e)
{
    conc_loop *l = conc__here;
    if (!e)
        return;
    if (!conc__ours(l, &e->waits)) {
        conc__used_elsewhere("conc_event_set");
        return;
    }
    e->set = true;
    conc__wake_all(l, &e->waits, 0);
}

CONC_API void conc_event_clear(conc_event *e)
{
    if (e)
        e->set = false;
}

CONC_API bool conc_event_is_set(const conc_event *e) { return e && e->set; }

/* ---- >>condition ---------------------------------------------------------------------------- */

/* A waiter that is notified or cancelled moves to its lock's list without running in between. */

/* A waiter in its lock's list ignores a cancel, because it must hold the lock when it returns.
 * After a deadlock has cancelled everything, it takes over the lock if the owner has ended. */
CONC__PRIVATE bool conc__relock_cancel(conc__wait *w)
{
    conc_loop *l = conc__here;
    conc_lock *k = (conc_lock *)(uintptr_t)w->on;
    if (!l->cancels.doomed || !conc__lock_is_lost(l, k))
        return false;
    conc__unlink(w);
    conc__lock_grant(l, k, w->task, w->item);
    return true;
}

static const conc__wait_kind conc__relocking = {.what = "waits to reacquire a lock",
                                                .details = CONC__DETAILS(conc__lock_details),
                                                .cancel = conc__relock_cancel,
                                                .owner = conc__lock_owner};

/* Moves a waiter of a condition to its lock; its conc_cond_wait will return `result`. Returns true
 * if the lock was free: the waiter now holds it. */
CONC__PRIVATE bool conc__cond_relock(conc_loop *l, conc__wait *w, int result)
{
    conc_lock *k = (conc_lock *)(uintptr_t)w->on;
    conc__unlink(w);
    w->value = result;
    /* after a deadlock, every task must unwind, even if its lock will never be released */
    if (k->owner && !(l->cancels.doomed && conc__lock_is_lost(l, k))) {
        CONC__HOOK(l, waited(l, w->task));
        w->kind = &conc__relocking;
        conc__append(&k->waits, w);
        return false;
    }
    conc__lock_grant(l, k, w->task, w->item);
    return true;
}

CONC__PRIVATE bool conc__cond_cancel(conc__wait *w)
{
    return conc__cond_relock(conc__here, w, -ECANCELED);
}

static const conc__wait_kind conc__awaiting_cond = {.what = "waits for a condition",
                                                    .cancel = conc__cond_cancel};

CONC_API CONC__CALLED int conc_cond_wait(conc_cond *c, conc_lock *k)
{
    if (!c || !k)
        return conc__misused(-EINVAL, __func__, "no condition, or no lock", NULL);
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!conc__lock_is_mine(l, k) || !conc__ours(l, &k->waits))
        return conc__misused(-EPERM, "conc_cond_wait", "the task does not hold the lock", NULL);
    int rc = conc__may_wait(l, &c->waits, "conc_cond_wait");
    if (rc)
        return rc;
    conc__wait w = {.task = l->self,
                    .kind = &conc__awaiting_cond,
                    .on = k,
                    .item = (void *)(uintptr_t)k->place};
    conc__lock_hand_over(l, k);
    conc__wait_in(l, &c->waits, &w);
    return w.value;
}

CONC__PRIVATE void conc__cond_notify(conc_cond *c, int n, const char *call)
{
    conc_loop *l = conc__here;
    if (!c)
        return;
    if (!conc__ours(l, &c->waits)) {
        conc__used_elsewhere(call);
        return;
    }
    for (; n > 0 && c->waits.first; n--) {
        conc__wait *w = c->waits.first;
        if (conc__cond_relock(l, w, 0))
            conc__wake(l, w, 0);
    }
}

CONC_API void conc_cond_notify(conc_cond *c, int n) { conc__cond_notify(c, n, "conc_cond_notify"); }

CONC_API void conc_cond_notify_all(conc_cond *c)
{
    conc__cond_notify(c, INT_MAX, "conc_cond_notify_all");
}

/* ---- >>barrier ------------------------------------------------------------------------------ */

CONC__PRIVATE void conc__barrier_details(FILE *out, const conc__wait *w)
{
    const conc_barrier *b = w->on;
    fprintf(out, ", %d of %d have arrived", b->arrived, b->parties);
}

CONC__PRIVATE bool conc__barrier_cancel(conc__wait *w)
{
    ((conc_barrier *)(uintptr_t)w->on)->arrived--;
    return true;
}

static const conc__wait_kind conc__gathering = {.what = "waits at a barrier",
                                                .details = CONC__DETAILS(conc__barrier_details),
                                                .cancel = conc__barrier_cancel};

CONC_API CONC__CALLED int conc_barrier_wait(conc_barrier *b)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!b || b->parties <= 0)
        return conc__misused(-EINVAL, __func__, "no barrier, or no parties", NULL);
    int rc = conc__may_wait(l, &b->waits, "conc_barrier_wait");
    if (rc)
        return rc;
    if (!b->waits.first)
        b->arrived = 0; /* in a forked child, it might have counted the parent's tasks */
    if (b->arrived + 1 < b->parties) {
        conc__wait w = {.task = l->self, .kind = &conc__gathering, .on = b};
        b->arrived++;
        return conc__wait_in(l, &b->waits, &w);
    }
    int index = 0;
    for (; b->waits.first; index++)
        conc__wake(l, b->waits.first, index);
    b->arrived = 0;
    conc__spend_budget(l);
    return index;
}

/* ---- >>latch -------------------------------------------------------------------------------- */

CONC__PRIVATE void conc__latch_details(FILE *out, const conc__wait *w)
{
    fprintf(out, " with a count of %d", ((const conc_latch *)w->on)->count);
}

static const conc__wait_kind conc__awaiting_latch = {.what = "waits for a latch",
                                                     .details = CONC__DETAILS(conc__latch_details),
                                                     .cancel = conc__cancel_plainly};

CONC__PRIVATE int conc__latch_add(conc_latch *k, int n, const char *call)
{
    conc_loop *l = conc__here;
    if (!k)
        return conc__misused(-EINVAL, call, "no latch", NULL);
    if (!conc__ours(l, &k->waits))
        return conc__used_elsewhere(call);
    int64_t count = (int64_t)k->count + n;
    if (count < 0 || count > INT_MAX)
        return conc__misused(-EOVERFLOW, call, "the count would leave its range", NULL);
    k->count = (int)count;
    if (count == 0)
        conc__wake_all(l, &k->waits, 0);
    return 0;
}

CONC_API int conc_latch_add(conc_latch *k, int n)
{
    return conc__latch_add(k, n, "conc_latch_add");
}

CONC_API int conc_latch_done(conc_latch *k) { return conc__latch_add(k, -1, "conc_latch_done"); }

CONC_API int conc_latch_wait(conc_latch *k)
{
    if (!k)
        return conc__no_object(__func__);
    return conc__wait_unless(__func__, !k->count, k, &k->waits, &conc__awaiting_latch);
}

/* ---- >>future ------------------------------------------------------------------------------- */

static const conc__wait_kind conc__awaiting_future = {.what = "waits for a future",
                                                      .cancel = conc__cancel_plainly};

/* Makes the future's error, if it has one, the task's latest error. */
CONC__PRIVATE void conc__future_set_error(conc_task *t, const conc_future *f)
{
    if (f->rc < 0 && f->rc != -ECANCELED)
        conc__set_error(t, f->rc, f->text, (conc__source){NULL, NULL});
}

/* Returns the text that the running task or posted function gave its error rc, or "" if there is
 * none. */
CONC__PRIVATE const char *conc__text_here(const conc_loop *l, int rc)
{
    if (!l || rc >= 0)
        return "";
    if (l->self)
        return conc__error_text(l->self, rc);
    if (l->scheduler.posted_rc != rc)
        return "";
    return conc__thread_text;
}

CONC_API int conc_future_set(conc_future *f, int rc, void *value)
{
    conc_loop *l = conc__here;
    if (!f)
        return conc__misused(-EINVAL, __func__, "no future", NULL);
    if (f->set)
        return conc__own_error(-EALREADY);
    if (!conc__ours(l, &f->waits))
        return conc__used_elsewhere("conc_future_set");
    f->set = true;
    f->rc = rc;
    f->value = value;
    conc__copy(f->text, sizeof f->text, conc__text_here(l, rc));
    conc__wait *w;
    while ((w = f->waits.first)) {
        w->item = value;
        w->value = 1;
        conc__future_set_error(w->task, f);
        conc__wake(l, w, rc);
    }
    return 0;
}

CONC_API CONC__CALLED int conc_future_wait(conc_future *f, void **value)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!f)
        return conc__misused(-EINVAL, __func__, "no future", NULL);
    int rc = conc__may_wait(l, &f->waits, "conc_future_wait");
    if (rc)
        return rc;
    if (!f->set) { /* another waiter may free the future before this one runs: use w, not f */
        conc__wait w = {.task = l->self, .kind = &conc__awaiting_future, .on = f};
        rc = conc__wait_in(l, &f->waits, &w);
        if (value && w.value)
            *value = w.item;
        return rc;
    }
    if (value)
        *value = f->value;
    rc = f->rc;
    conc__future_set_error(l->self, f);
    conc__spend_budget(l); /* other tasks may run, and free the future */
    return rc;
}

CONC_API bool conc_future_is_set(const conc_future *f) { return f && f->set; }

/* ---- >>queue -------------------------------------------------------------------------------- */

/* Getters wait only while the queue is empty, and putters only while it is full. So a put hands its
 * item straight to the first getter, and a get moves the first putter's item into the queue. */

CONC__PRIVATE void conc__queue_details(FILE *out, const conc__wait *w)
{
    const conc_queue *q = w->on;
    fprintf(out, " (%zu items)", q->count);
}

static const conc__wait_kind conc__getting = {.what = "waits to get from a queue",
                                              .details = CONC__DETAILS(conc__queue_details),
                                              .cancel = conc__cancel_plainly};
static const conc__wait_kind conc__putting = {.what = "waits to put into a queue",
                                              .details = CONC__DETAILS(conc__queue_details),
                                              .cancel = conc__cancel_plainly};

CONC__PRIVATE void conc__queue_join_details(FILE *out, const conc__wait *w)
{
    fprintf(out, " (%zu left)", ((const conc_queue *)w->on)->unfinished);
}

static const conc__wait_kind conc__finishing = {.what = "waits for a queue's items to be done",
                                                .details = CONC__DETAILS(conc__queue_join_details),
                                                .cancel = conc__cancel_plainly};

CONC__FAST char *conc__item_at(const conc_queue *q, size_t i)
{
    return q->items + i * q->item_size;
}

/* If item_size is 0, the items may be NULL; GCC sees the NULL, but not that the size is 0. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wnonnull"
CONC__FAST void conc__item_copy(const conc_queue *q, void *to, const void *from)
{
    if (q->item_size == 4)
        memcpy(to, from, 4);
    else if (q->item_size == 8)
        memcpy(to, from, 8);
    else if (q->item_size)
        memcpy(to, from, q->item_size);
}
#pragma GCC diagnostic pop

/* Copies an item inline, for queues with a `limit`, whose items are 4 or 8 bytes. */
CONC__FAST void conc__item_load(const conc_queue *q, void *item, size_t i)
{
    if (q->item_size == 4)
        memcpy(item, q->items + i * 4, 4);
    else
        memcpy(item, q->items + i * 8, 8);
}

CONC__FAST void conc__item_save(const conc_queue *q, size_t i, const void *item)
{
    if (q->item_size == 4)
        memcpy(q->items + i * 4, item, 4);
    else
        memcpy(q->items + i * 8, item, 8);
}

/* Checks the options of a queue, once. */
CONC__COLD int conc__queue_check(conc_queue *q, const char *call)
{
    if (q->kind < CONC_QUEUE_FIFO || q->kind > CONC_QUEUE_PRIORITY)
        return conc__misused(-EINVAL, call, "the queue has an unknown kind", NULL);
    if ((q->kind == CONC_QUEUE_PRIORITY && !q->less) || (q->kind == CONC_QUEUE_LIFO && q->less))
        return conc__misused(-EINVAL, call, "the queue's kind does not match its less", NULL);
    q->checked = true;
    return 0;
}

CONC__FAST int conc__queue_valid(conc_queue *q, const void *item, const char *call)
{
    if (CONC__UNLIKELY(!q || (!item && q->item_size)))
        return conc__misused(-EINVAL, call, "no queue, or no item", NULL);
    if (CONC__UNLIKELY(!q->checked))
        return conc__queue_check(q, call);
    return 0;
}

/* Sets `limit`, which enables the fast paths of conc_queue_put and conc_queue_get. */
CONC__COLD void conc__queue_set_limit(conc_queue *q)
{
    bool is_small = q->item_size == 4 || q->item_size == 8;
    if (q->kind != CONC_QUEUE_FIFO || q->less || !is_small)
        return;
    q->limit = q->room;
    if (q->capacity && q->capacity < q->room)
        q->limit = q->capacity;
}

/* Doubles the room and moves the first item to the start of the ring. Returns 0 or -ENOMEM. */
CONC__COLD int conc__queue_grow(conc_queue *q)
{
    enum { LEAST = 8 };
    size_t room = q->room ? q->room * 2 : LEAST;
    size_t first = q->room - q->head; /* number of items up to the end of the ring */
    if (room < q->room || room > SIZE_MAX / 2 / sizeof *q->orders ||
        room > SIZE_MAX / 2 / q->item_size)
        return -ENOMEM;
    char *items = conc__alloc(room * q->item_size);
    uint64_t *orders = NULL;
    if (q->less)
        orders = conc__alloc(room * sizeof *orders);
    if (!items || (q->less && !orders)) {
        conc_free(items);
        conc_free(orders);
        return -ENOMEM;
    }
    if (q->room) {
        memcpy(items, conc__item_at(q, q->head), first * q->item_size);
        memcpy(items + first * q->item_size, q->items, q->head * q->item_size);
    }
    if (q->room && orders)
        memcpy(orders, q->orders, q->room * sizeof *orders);
    conc_free(q->items);
    conc_free(q->orders);
    q->items = items;
    q->orders = orders;
    q->head = 0;
    q->room = room;
    conc__queue_set_limit(q);
    return 0;
}

/* Does item a of the heap come before item b? Arrival numbers are unique, so one call to less is
 * enough: the older item comes first unless less puts the younger before it. The arguments are
 * swapped without a branch, because a branch here would be unpredictable. */
CONC__FAST bool conc__heap_before(const conc_queue *q, const char *a, uint64_t a_came,
                                  const char *b, uint64_t b_came)
{
    uintptr_t older = a_came < b_came;
    uintptr_t swap = ((uintptr_t)a ^ (uintptr_t)b) & (0 - older);
    return q->less((const void *)((uintptr_t)a ^ swap), (const void *)((uintptr_t)b ^ swap)) ^
           older;
}

/* number of children of each slot: the heap has half the levels of a binary one, and siblings share
 * a cache line */
enum { CONC__WAYS = 4 };

/* Returns the slot of the child that comes first. The children start at slot `below`. */
CONC__FAST size_t conc__heap_child(const conc_queue *q, size_t below, size_t end)
{
    const char *item = conc__item_at(q, below);
    const uint64_t *came = q->orders + below;
    size_t size = q->item_size, first = 0, other = 2;
    if (CONC__UNLIKELY(below + CONC__WAYS > end)) {
        for (other = 1; below + other < end; other++)
            if (conc__heap_before(q, item + other * size, came[other], item + first * size,
                                  came[first]))
                first = other;
        return below + first;
    }
    first += conc__heap_before(q, item + size, came[1], item, came[0]);
    other += conc__heap_before(q, item + 3 * size, came[3], item + 2 * size, came[2]);
    return below + first +
           (other - first) * conc__heap_before(q, item + other * size, came[other],
                                               item + first * size, came[first]);
}

/* Prefetches what the next step down reads, whichever child it takes, because operations on large
 * heaps mostly wait for memory. A prefetch past the end does no harm. */
CONC__FAST void conc__heap_prefetch(const conc_queue *q, size_t below)
{
    const char *items = (const char *)((uintptr_t)q->items + below * q->item_size);
    const char *orders = (const char *)((uintptr_t)q->orders + below * sizeof *q->orders);
    __builtin_prefetch(items);
    __builtin_prefetch(orders);
    __builtin_prefetch(orders + 64);
}

/* Puts an item with its arrival number into the hole and moves it up to its slot. */
CONC__PRIVATE void conc__heap_sift_up(conc_queue *q, size_t hole, const char *item, uint64_t came)
{
    while (hole > 0) {
        size_t above = (hole - 1) / CONC__WAYS;
        if (!conc__heap_before(q, item, came, conc__item_at(q, above), q->orders[above]))
            break;
        conc__item_copy(q, conc__item_at(q, hole), conc__item_at(q, above));
        q->orders[hole] = q->orders[above];
        hole = above;
    }
    conc__item_copy(q, conc__item_at(q, hole), item);
    q->orders[hole] = came;
}

/* Closes the hole at the top. Moves it down to the bottom, puts the last item there, and moves that
 * item up, usually not far. This takes fewer comparisons than moving the last item down from the
 * top (I. Wegener, Bottom-up heapsort, 1993). */
CONC__PRIVATE void conc__heap_remove_top(conc_queue *q)
{
    size_t last = q->count; /* the last item is now just past the end of the heap */
    size_t hole = 0, below = 1;
    while (below < last) {
        conc__heap_prefetch(q, CONC__WAYS * below + 1);
        below = conc__heap_child(q, below, last);
        conc__item_copy(q, conc__item_at(q, hole), conc__item_at(q, below));
        q->orders[hole] = q->orders[below];
        hole = below;
        below = CONC__WAYS * hole + 1;
    }
    if (hole < last)
        conc__heap_sift_up(q, hole, conc__item_at(q, last), q->orders[last]);
}

/* Adds an item; there must be room. */
CONC__FAST void conc__queue_store(conc_queue *q, const void *item)
{
    if (CONC__UNLIKELY(q->less != NULL) && q->item_size)
        conc__heap_sift_up(q, q->count, item, q->arrivals++);
    else if (q->item_size)
        conc__item_copy(q, conc__item_at(q, (q->head + q->count) & (q->room - 1)), item);
    q->count++;
    q->unfinished++;
}

/* Removes the next item; there must be one. */
CONC__FAST void conc__queue_take(conc_queue *q, void *item)
{
    q->count--;
    if (!q->item_size)
        return;
    if (q->kind == CONC_QUEUE_LIFO) {
        conc__item_copy(q, item, conc__item_at(q, q->count));
    } else {
        conc__item_copy(q, item, conc__item_at(q, q->head));
        if (CONC__UNLIKELY(q->less != NULL))
            conc__heap_remove_top(q);
        else
            q->head = (q->head + 1) & (q->room - 1);
    }
}

/* Puts an item without waiting. Returns 0, -EAGAIN if the queue is full, or an error. */
CONC__FAST int conc__queue_push(conc_loop *l, conc_queue *q, const void *item)
{
    conc__wait *getter = q->getters.first;
    if (CONC__UNLIKELY(q->closed))
        return conc__own_error(-EPIPE);
    if (getter) {
        conc__item_copy(q, getter->item, item);
        q->unfinished++;
        conc__wake_first(l, &q->getters, 0);
        return 0;
    }
    if ((q->capacity && q->count >= q->capacity) || q->putters.first)
        return -EAGAIN;
    if (CONC__UNLIKELY(q->count == q->room) && q->item_size && conc__queue_grow(q))
        return conc__own_error(-ENOMEM);
    conc__queue_store(q, item);
    return 0;
}

/* Gets an item without waiting. Returns 0, -EAGAIN if the queue is empty, or an error. */
CONC__FAST int conc__queue_pull(conc_loop *l, conc_queue *q, void *item)
{
    conc__wait *putter = q->putters.first;
    if (!q->count && q->closed)
        return conc__own_error(-EPIPE);
    if (!q->count)
        return -EAGAIN;
    conc__queue_take(q, item);
    if (putter) {
        conc__queue_store(q, putter->item);
        conc__wake_first(l, &q->putters, 0);
    }
    return 0;
}

CONC__FAST bool conc__queue_is_ours(const conc_loop *l, conc_queue *q)
{
    return conc__ours(l, &q->getters) && conc__ours(l, &q->putters);
}

CONC__PRIVATE CONC__CALLED int conc__queue_wait_to_put(conc_loop *l, conc_queue *q,
                                                       const void *item)
{
    conc__wait w = {
        .task = l->self, .kind = &conc__putting, .on = q, .item = (void *)(uintptr_t)item};
    return conc__wait_result(conc__wait_in(l, &q->putters, &w));
}

CONC__PRIVATE CONC__CALLED int conc__queue_wait_to_get(conc_loop *l, conc_queue *q, void *item)
{
    conc__wait w = {.task = l->self, .kind = &conc__getting, .on = q, .item = item};
    return conc__wait_result(conc__wait_in(l, &q->getters, &w));
}

CONC__PRIVATE CONC__CALLED int conc__queue_put_slowly(conc_queue *q, const void *item)
{
    conc_loop *l = conc__in_task();
    if (CONC__UNLIKELY(!l))
        return -EPERM;
    int rc = conc__queue_valid(q, item, __func__);
    if (CONC__UNLIKELY(rc))
        return rc;
    rc = conc__may_wait(l, &q->putters, "conc_queue_put");
    if (CONC__UNLIKELY(rc))
        return rc;
    if (CONC__UNLIKELY(!conc__ours(l, &q->getters)))
        return conc__used_elsewhere("conc_queue_put");
    rc = conc__queue_push(l, q, item);
    if (rc == -EAGAIN)
        return conc__queue_wait_to_put(l, q, item);
    conc__spend_budget(l);
    return rc;
}

CONC_API CONC__CALLED int conc_queue_put(conc_queue *q, const void *item)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!q || !item || q->count >= q->limit || q->getters.first ||
                       !conc__may_continue(l)))
        return conc__queue_put_slowly(q, item);
    conc__item_save(q, (q->head + q->count) & (q->room - 1), item);
    q->count++;
    q->unfinished++;
    return 0;
}

CONC_API CONC__CALLED int conc__queue_put_sized(conc_queue *q, const void *item, size_t size)
{
    if (CONC__UNLIKELY(q && q->item_size != size)) {
        conc__misused(-EINVAL, "CONC_PUT", "the item size does not match the queue's", NULL);
        return conc_fail(-EINVAL, "an item of %zu bytes for a queue of items of %zu", size,
                         q->item_size);
    }
    return conc_queue_put(q, item);
}

CONC__PRIVATE CONC__CALLED int conc__queue_get_slowly(conc_queue *q, void *item)
{
    conc_loop *l = conc__in_task();
    if (CONC__UNLIKELY(!l))
        return -EPERM;
    int rc = conc__queue_valid(q, item, __func__);
    if (CONC__UNLIKELY(rc))
        return rc;
    rc = conc__may_wait(l, &q->getters, "conc_queue_get");
    if (CONC__UNLIKELY(rc))
        return rc;
    if (CONC__UNLIKELY(!conc__ours(l, &q->putters)))
        return conc__used_elsewhere("conc_queue_get");
    rc = conc__queue_pull(l, q, item);
    if (rc == -EAGAIN)
        return conc__queue_wait_to_get(l, q, item);
    conc__spend_budget(l);
    return rc;
}

CONC_API CONC__CALLED int conc_queue_get(conc_queue *q, void *item)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!q || !item || q->count - 1 >= q->limit || q->putters.first ||
                       !conc__may_continue(l)))
        return conc__queue_get_slowly(q, item);
    conc__item_load(q, item, q->head);
    q->head = (q->head + 1) & (q->room - 1);
    q->count--;
    return 0;
}

CONC_API CONC__CALLED int conc_queue_try_put(conc_queue *q, const void *item)
{
    conc_loop *l = conc__here;
    int rc = conc__queue_valid(q, item, __func__);
    if (rc)
        return rc;
    if (!conc__queue_is_ours(l, q))
        return conc__used_elsewhere("conc_queue_try_put");
    return conc__wait_result(conc__queue_push(l, q, item));
}

CONC_API CONC__CALLED int conc_queue_try_get(conc_queue *q, void *item)
{
    conc_loop *l = conc__here;
    int rc = conc__queue_valid(q, item, __func__);
    if (rc)
        return rc;
    if (!conc__queue_is_ours(l, q))
        return conc__used_elsewhere("conc_queue_try_get");
    return conc__wait_result(conc__queue_pull(l, q, item));
}

CONC_API size_t conc_queue_len(const conc_queue *q) { return q ? q->count : 0; }

CONC_API int conc_queue_task_done(conc_queue *q)
{
    conc_loop *l = conc__here;
    if (!q)
        return conc__misused(-EINVAL, __func__, "no queue", NULL);
    if (!conc__ours(l, &q->joiners))
        return conc__used_elsewhere("conc_queue_task_done");
    if (!q->unfinished)
        return conc__misused(-EOVERFLOW, "conc_queue_task_done",
                             "more items were marked done than put", NULL);
    if (--q->unfinished == 0)
        conc__wake_all(l, &q->joiners, 0);
    return 0;
}

CONC_API int conc_queue_join(conc_queue *q)
{
    if (!q)
        return conc__no_object(__func__);
    return conc__wait_unless(__func__, !q->unfinished, q, &q->joiners, &conc__finishing);
}

/* Closes the queue. Returns false if tasks of another loop are waiting: this thread must not wake
 * them. */
CONC__PRIVATE bool conc__queue_shut(conc_loop *l, conc_queue *q, const char *call)
{
    if (q->closed)
        return true;
    if (!conc__queue_is_ours(l, q)) {
        conc__used_elsewhere(call);
        return false;
    }
    q->closed = true;
    q->limit = 0;
    conc__wake_all(l, &q->getters, -EPIPE);
    conc__wake_all(l, &q->putters, -EPIPE);
    return true;
}

CONC_API void conc_queue_close(conc_queue *q)
{
    if (q)
        conc__queue_shut(conc__here, q, "conc_queue_close");
}

CONC_API void conc_queue_destroy(conc_queue *q)
{
    conc_loop *l = conc__here;
    if (!q)
        return;
    if (!conc__ours(l, &q->joiners)) {
        conc__used_elsewhere("conc_queue_destroy");
        return;
    }
    if (!conc__queue_shut(l, q, "conc_queue_destroy"))
        return;
    conc__wake_all(l, &q->joiners, -EPIPE);
    conc_free(q->items);
    conc_free(q->orders);
    q->items = NULL;
    q->orders = NULL;
    q->unfinished -= q->count;        /* items taken but not done still count */
    q->room = q->head = q->count = 0; /* the close has set limit to 0 */
}

CONC_API void conc__auto_conc_queue(conc_queue *q) { conc_queue_destroy(q); }

/* ---- >>select ------------------------------------------------------------------------------- */

/* The state of a conc_select. Each case has a wait of its own, shares `timer`, or has an entry in
 * conc_pool.h; the task itself is parked on `wait`, which is in no list. Waking one case withdraws
 * all others before anything else can run (conc__choice_won), so only one is ever carried out.
 *
 * Other threads notify the cases of conc_pool.h by posting to the loop. If such a case is withdrawn
 * while its post is in flight, conc_select waits on `drain` until the post has run, because the
 * post refers to the caller's array. */
typedef struct conc__choice {
    conc__wait wait;
    conc__wait drain; /* the task parks on it until in_flight is 0 */
    int in_flight;    /* number of withdrawn cases whose posts have not run yet */
    bool has_outside; /* a case is or was waiting in conc_pool.h */
    conc_case *cases;
    size_t n;    /* number of cases that are waiting */
    int chosen;  /* index of the chosen case; -1: none yet */
    int64_t due; /* the earliest deadline of a CONC_CASE_AFTER; CONC__NEVER: none */
    int timed;   /* index of the case with that deadline */
    conc__timer timer;
} conc__choice;

CONC__PRIVATE void conc__choice_details(FILE *out, const conc__wait *w)
{
    const conc__choice *s = (const conc__choice *)(const void *)w;
    static const char *const what[] = {
        [CONC__GET] = "a queue's item",     [CONC__PUT] = "room in a queue",
        [CONC__EVENT] = "an event",         [CONC__RECV] = "a channel's item",
        [CONC__SEND] = "room in a channel", [CONC__JOB] = "a job"};
    enum { MOST = 8 };
    for (size_t i = 0; i < s->n; i++) {
        const conc_case *c = &s->cases[i];
        fprintf(out, i ? ", " : " ");
        if (i == MOST) {
            fprintf(out, "and %zu more", s->n - i);
            break;
        }
        if (c->what == CONC__JOINED) {
            conc__print_name(out, c->task);
            fprintf(out, " to end");
        } else if (c->what == CONC__FD) {
            fprintf(out, "descriptor %d", c->fd);
        } else if (c->what == CONC__AFTER && c->seconds >= CONC_FOREVER) {
            fprintf(out, "a time that never comes");
        } else if (c->what == CONC__AFTER) {
            fprintf(out, "%.9g s", c->seconds);
        } else {
            fprintf(out, "%s", what[c->what]);
        }
    }
}

CONC__PRIVATE bool conc__case_is_outside(const conc_case *c) { return c->what >= CONC__RECV; }

/* Withdraws a case that conc_pool.h handles. */
CONC__PRIVATE void conc__case_end_outside(conc__choice *s, conc_case *c)
{
    if (c->outside && conc__extended.outside->end(c->outside))
        s->in_flight++;
    c->outside = NULL;
}

/* Withdraws all cases except `but`, which may be NULL. */
CONC__PRIVATE void conc__choice_withdraw(conc__choice *s, const conc_case *but)
{
    conc__disarm(conc__here, &s->timer);
    for (size_t i = 0; i < s->n; i++) {
        conc_case *c = &s->cases[i];
        if (c != but && conc__case_is_outside(c))
            conc__case_end_outside(s, c);
        if (c == but || !c->wait.list)
            continue;
        if (c->what == CONC__FD)
            conc__fd_cancel(&c->wait);
        else
            conc__unlink(&c->wait);
    }
}

CONC__PRIVATE bool conc__choice_cancel(conc__wait *w)
{
    conc__choice_withdraw((conc__choice *)(void *)w, NULL);
    return true;
}

CONC__PRIVATE void conc__choice_won(conc__wait *w)
{
    conc_case *c = (conc_case *)(void *)((char *)w - offsetof(conc_case, wait));
    c->choice->chosen = (int)(c - c->choice->cases);
    conc__choice_withdraw(c->choice, c);
}

CONC__PRIVATE void conc__choice_timeout(conc__timer *t)
{
    conc__choice *s = (conc__choice *)(void *)((char *)t - offsetof(conc__choice, timer));
    s->chosen = s->timed;
    s->cases[s->timed].wait.result = 0;
    conc__choice_withdraw(s, NULL);
    conc__wake(conc__here, &s->wait, 0);
}

static const conc__wait_kind conc__selecting = {.what = "waits for the first of",
                                                .brief = "waits for the first of several",
                                                .details = CONC__DETAILS(conc__choice_details),
                                                .cancel = conc__choice_cancel};
static const conc__wait_kind conc__candidate = {.what = "", .won = conc__choice_won};

/* Returns the wait on which a candidate's task is parked. */
CONC__PRIVATE const conc__wait *conc__parked_on(const conc__wait *candidate)
{
    const char *at = (const char *)candidate - offsetof(conc_case, wait);
    return &((const conc_case *)(const void *)at)->choice->wait;
}

CONC__PRIVATE int conc__case_check_join(const conc_loop *l, const conc_task *t)
{
    if (!conc__is_task(t))
        return conc__misused(-EINVAL, "conc_select", "no task was spawned with this handle", NULL);
    if (!conc__is_of_run(l, t->serial))
        return conc__misused(-EPERM, "conc_select", "the task belongs to another run", NULL);
    if (t == l->self)
        return conc__misused(-EDEADLK, "conc_select", "a task would wait for itself", NULL);
    return 0;
}

CONC__PRIVATE conc__outside conc__case_as_outside(const conc_case *c)
{
    conc__outside o = {.kind = CONC__CASE_ENDS, .object = c->job};
    if (c->what == CONC__RECV)
        o = (conc__outside){.kind = CONC__CASE_RECEIVES, .object = c->channel, .item = c->to};
    if (c->what == CONC__SEND)
        o = (conc__outside){
            .kind = CONC__CASE_SENDS, .object = c->channel, .item = (void *)(uintptr_t)c->from};
    return o;
}

CONC__PRIVATE int conc__case_check_outside(const conc_case *c)
{
    const conc__outside o = conc__case_as_outside(c);
    return conc__extended.outside->check(&o);
}

CONC__PRIVATE int conc__case_check_queue(const conc_loop *l, const conc_case *c)
{
    const void *item = c->what == CONC__GET ? c->to : c->from;
    int rc = conc__queue_valid(c->queue, item, "conc_select");
    if (rc)
        return rc;
    if (!conc__queue_is_ours(l, c->queue))
        return conc__used_elsewhere("conc_select");
    return 0;
}

CONC__PRIVATE int conc__case_check_event(const conc_loop *l, const conc_case *c)
{
    if (!c->event)
        return conc__misused(-EINVAL, "conc_select", "a case without an event", NULL);
    if (!conc__ours(l, &c->event->waits))
        return conc__used_elsewhere("conc_select");
    return 0;
}

CONC__PRIVATE int conc__case_check_fd(const conc_case *c)
{
    if (c->events & ~(CONC_READABLE | CONC_WRITABLE))
        return conc__misused(-EINVAL, "conc_select", "a case with unknown events", NULL);
    if (c->fd < 0)
        return conc__own_error(-EBADF);
    return 0;
}

CONC__PRIVATE int conc__case_check(const conc_loop *l, const conc_case *c)
{
    switch (c->what) {
    case CONC__GET:
    case CONC__PUT: return conc__case_check_queue(l, c);
    case CONC__EVENT: return conc__case_check_event(l, c);
    case CONC__JOINED: return conc__case_check_join(l, c->task);
    case CONC__FD: return conc__case_check_fd(c);
    case CONC__RECV:
    case CONC__SEND:
    case CONC__JOB:
        if (conc__extended.outside)
            return conc__case_check_outside(c);
        break;
    case CONC__AFTER:
        if (__builtin_isnan(c->seconds))
            return conc__misused(-EINVAL, "conc_select", "a time that is not a number", NULL);
        return 0;
    }
    return conc__misused(-EINVAL, "conc_select", "a case of an unknown kind", NULL);
}

CONC__PRIVATE int conc__case_try_fd(const conc_case *c)
{
    int ready = conc__fd_ready(c->fd, c->events);
    if (ready > 0)
        return ready & c->events;
    if (ready == 0)
        return -EAGAIN;
    return ready;
}

/* Carries out the case without waiting. Returns -EAGAIN if it would have to wait. */
CONC__PRIVATE int conc__case_try(conc_loop *l, conc_case *c)
{
    conc__outside o;
    bool happened;
    switch (c->what) {
    case CONC__RECV:
    case CONC__SEND:
    case CONC__JOB:
        o = conc__case_as_outside(c);
        o.task = l->self;
        if (!conc__extended.outside->attempt(&o))
            return -EAGAIN;
        c->result = o.result;
        return 0;
    case CONC__GET: return conc__queue_pull(l, c->queue, c->to);
    case CONC__PUT: return conc__queue_push(l, c->queue, c->from);
    case CONC__FD: return conc__case_try_fd(c);
    case CONC__EVENT: happened = c->event->set; break;
    case CONC__JOINED: happened = c->task->state == CONC__DONE; break;
    default: happened = c->seconds <= 0;
    }
    return happened ? 0 : -EAGAIN;
}

/* Runs on the loop after another thread has notified the case. `happened` is false if the case was
 * withdrawn while the post was in flight. */
CONC__PRIVATE void conc__case_notified(conc__outside *o, bool happened)
{
    conc_case *c = o->owner;
    conc__choice *s = c->choice;
    if (happened) {
        c->result = o->result;
        c->outside = NULL;
        s->chosen = (int)(c - s->cases);
        conc__choice_withdraw(s, c);
        conc__wake(conc__here, &s->wait, 0);
    } else if (--s->in_flight == 0 && s->drain.kind) {
        conc__wake(conc__here, &s->drain, 0);
    }
}

CONC__PRIVATE int conc__case_wait_outside(conc_loop *l, conc__choice *s, conc_case *c)
{
    conc__outside o = conc__case_as_outside(c);
    o.task = l->self;
    o.owner = c;
    o.notified = conc__case_notified;
    if (!s->has_outside)
        l->outside.awaited++;
    s->has_outside = true;
    int rc = conc__extended.outside->begin(l, &o, &c->outside);
    c->result = o.result;
    return rc;
}

/* Makes the case wait for its descriptor, with the same results as conc__case_wait. */
CONC__PRIVATE int conc__case_wait_fd(conc_loop *l, conc_case *c, int *result)
{
    conc__fd *f;
    int rc = conc__fd_watch(l, c->fd, c->events, &f);
    if (rc) {
        *result = rc == 1 ? c->events : rc; /* 1: the file is always ready, and never hangs up */
        return *result != 0;
    }
    c->wait.value = c->events;
    c->id = f->id;
    conc__fd_append(l, f, &c->wait, c->events);
    return 0;
}

CONC__PRIVATE void conc__case_wait_time(conc_loop *l, conc__choice *s, const conc_case *c)
{
    int64_t at = CONC__NEVER;
    if (c->seconds < CONC_FOREVER)
        at = conc__later(conc__time(l), conc__ns(c->seconds));
    if (at < s->due) {
        s->due = at;
        s->timed = (int)(c - s->cases);
    }
}

/* Makes the case wait. Returns 0; 1 if the case was carried out already, with its result in
 * *result; or an error. */
CONC__PRIVATE int conc__case_wait(conc_loop *l, conc__choice *s, conc_case *c, int *result)
{
    c->choice = s;
    c->outside = NULL;
    if (conc__case_is_outside(c))
        return conc__case_wait_outside(l, s, c);
    c->wait = (conc__wait){.task = l->self, .kind = &conc__candidate};
    if (c->what == CONC__GET) {
        c->wait.item = c->to;
        conc__append(&c->queue->getters, &c->wait);
    } else if (c->what == CONC__PUT) {
        c->wait.item = (void *)(uintptr_t)c->from;
        conc__append(&c->queue->putters, &c->wait);
    } else if (c->what == CONC__EVENT) {
        conc__append(&c->event->waits, &c->wait);
    } else if (c->what == CONC__JOINED) {
        conc__append(&c->task->joiners, &c->wait);
    } else if (c->what == CONC__FD) {
        return conc__case_wait_fd(l, c, result);
    } else {
        conc__case_wait_time(l, s, c);
    }
    return 0;
}

/* Returns the result of the case that was chosen after a wait. */
CONC__PRIVATE int conc__case_result(conc_loop *l, const conc_case *c)
{
    if (c->what == CONC__FD && c->wait.result == 0)
        return conc__fd_got(l, (conc__fd *)(uintptr_t)c->wait.on, c->id, &c->wait);
    if (conc__case_is_outside(c) && c->wait.result == 0)
        return c->result;
    if (c->what == CONC__JOINED)
        return c->wait.value;
    return c->wait.result;
}

/* Completes a case that was carried out without waiting. */
CONC__PRIVATE int conc__select_at_once(conc_loop *l, conc_case *cases, size_t i, int result)
{
    conc_case *c = &cases[i];
    if (!conc__case_is_outside(c))
        c->result = result;
    if (c->what == CONC__JOINED) {
        c->result = c->task->result;
        conc__collect(l, c->task);
    }
    conc__spend_budget(l);
    return (int)i;
}

static const conc__wait_kind conc__draining = {.what = "waits for another thread in conc_select"};

/* Waits until no post of a withdrawn case is in flight. */
CONC__PRIVATE void conc__choice_drain(conc_loop *l, conc__choice *s)
{
    if (s->in_flight) {
        s->drain = (conc__wait){.task = l->self, .kind = &conc__draining};
        conc__park(l, &s->drain);
    }
    if (s->has_outside)
        l->outside.awaited--;
}

/* Waits for the first of the cases. Returns 0 if case s->n was carried out immediately, with its
 * result in *result; 1 if s->chosen was chosen; or an error. */
CONC__PRIVATE int conc__choose(conc_loop *l, conc__choice *s, size_t n, int *result)
{
    for (; s->n < n && s->chosen < 0; s->n++) {
        int rc = conc__case_wait(l, s, &s->cases[s->n], result);
        if (rc != 0 && s->chosen < 0) {
            conc__choice_withdraw(s, NULL);
            if (rc < 0)
                return rc;
            return 0;
        }
    }
    if (s->chosen >= 0) { /* a descriptor turned out to be closed, which woke an earlier case */
        conc__choice_withdraw(s, NULL);
        conc__leave(l);
        return 1;
    }
    if (s->due != CONC__NEVER)
        conc__arm(l, &s->timer, s->due, conc__choice_timeout);
    int rc = conc__park(l, &s->wait);
    return rc ? rc : 1;
}

CONC__PRIVATE int conc__select_valid(conc_loop *l, conc_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int tried = conc__case_try(l, &cases[i]);
        if (tried != -EAGAIN)
            return conc__select_at_once(l, cases, i, tried);
    }
    conc__choice s = {.wait = {.task = l->self, .kind = &conc__selecting},
                      .cases = cases,
                      .chosen = -1,
                      .due = CONC__NEVER};
    int result = 0;
    int rc = conc__choose(l, &s, n, &result);
    conc__choice_drain(l, &s);
    if (rc < 0)
        return rc;
    if (rc == 0)
        return conc__select_at_once(l, cases, s.n, result);
    cases[s.chosen].result = conc__case_result(l, &cases[s.chosen]);
    return s.chosen;
}

CONC_API CONC__CALLED int conc_select(conc_case *cases, size_t n)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!cases || !n || n > INT_MAX)
        return conc__misused(-EINVAL, __func__, "no cases, or an invalid number of them", NULL);
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = conc__case_check(l, &cases[i]);
    if (rc == 0)
        rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__check_lost(l, __builtin_frame_address(0));
    return conc__select_valid(l, cases, n);
}

/* ---- >>limiter ------------------------------------------------------------------------------ */

/* The bucket does not count its tokens: the time when it was last full and the tokens taken since
 * then determine when the next ones are available. Because each grant's time is one product, not a
 * sum of rounded steps, it is exact to the nanosecond. */

CONC__PRIVATE double conc__limiter_burst(const conc_limiter *k)
{
    return k->burst > 0 ? k->burst : 1;
}

CONC__PRIVATE double conc__limiter_per(const conc_limiter *k) { return k->per > 0 ? k->per : 1; }

CONC__PRIVATE bool conc__limiter_is_valid(const conc_limiter *k, int n)
{
    if (!k || n <= 0)
        return false;
    return k->rate > 0 && k->per >= 0 && k->burst >= 0 && n <= conc__limiter_burst(k);
}

/* Returns how many nanoseconds the tokens take to accrue, minus 0.001, because the product of two
 * doubles may be that much too large. */
CONC__PRIVATE double conc__limiter_ns(const conc_limiter *k, double tokens)
{
    double per = conc__limiter_per(k);
    double each;
    if (per < 1e290)
        each = per * 1e9 / k->rate;
    else /* per * 1e9 could overflow */
        each = per / k->rate * 1e9;
    return tokens > 0 ? tokens * each - 1e-3 : 0;
}

/* Returns the time at which n more tokens are available. */
CONC__PRIVATE int64_t conc__limiter_due(const conc_limiter *k, int n)
{
    double ns = conc__limiter_ns(k, k->taken + n - conc__limiter_burst(k));
    if (ns <= 0)
        return k->start;
    if (!(ns < 9e18))
        return CONC__NEVER - 1;
    int64_t whole = (int64_t)ns;
    whole += (double)whole < ns;
    if (k->start < 0)
        return k->start + whole;
    return conc__later(k->start, whole);
}

/* Brings the bucket up to date. It never holds more than the burst. In a new run, if its clock or
 * the previous run's is virtual, no time counts as having passed since the last update. */
CONC__PRIVATE void conc__limiter_fill(conc_loop *l, conc_limiter *k, int64_t now)
{
    if (k->run != l->run.number && (k->virtual_clock || l->clock.is_virtual))
        k->start += now - k->seen;
    if (!k->run || (double)(now - k->start) >= conc__limiter_ns(k, k->taken) + 1) {
        k->start = now;
        k->taken = 0;
    }
    k->run = l->run.number;
    k->virtual_clock = l->clock.is_virtual;
    k->seen = now;
}

CONC__PRIVATE void conc__limiter_fire(conc__timer *t);

/* Grants the first waiters whose tokens are available, and sets the timer for the next one. */
CONC__PRIVATE void conc__limiter_grant_waiters(conc_loop *l, conc_limiter *k, int64_t now)
{
    conc__limiter_fill(l, k, now);
    conc__disarm(l, &k->timer);
    conc__wait *w = k->waits.first;
    while (w && conc__limiter_due(k, w->value) <= now) {
        k->taken += w->value;
        conc__wake(l, w, 0);
        w = k->waits.first;
    }
    if (w)
        conc__arm(l, &k->timer, conc__limiter_due(k, w->value), conc__limiter_fire);
}

CONC__PRIVATE void conc__limiter_fire(conc__timer *t)
{
    conc_limiter *k = (conc_limiter *)(void *)((char *)t - offsetof(conc_limiter, timer));
    conc__limiter_grant_waiters(conc__here, k, conc__here->clock.now);
}

CONC__PRIVATE bool conc__limiter_cancel(conc__wait *w)
{
    conc_limiter *k = (conc_limiter *)(uintptr_t)w->on;
    bool first = k->waits.first == w;
    conc__unlink(w);
    if (first)
        conc__limiter_grant_waiters(conc__here, k, conc__time(conc__here));
    return true;
}

CONC__PRIVATE void conc__limiter_details(FILE *out, const conc__wait *w)
{
    const conc_limiter *k = w->on;
    fprintf(out, " of %.9g in %.9g s, for %d", k->rate, conc__limiter_per(k), w->value);
}

static const conc__wait_kind conc__limited = {.what = "waits for a limiter",
                                              .details = CONC__DETAILS(conc__limiter_details),
                                              .cancel = conc__limiter_cancel};

CONC__PRIVATE bool conc__limiter_is_ours(const conc_loop *l, conc_limiter *k)
{
    if (!conc__ours(l, &k->waits))
        return false;
    if (!k->waits.first)
        k->timer.next = NULL; /* in a forked child it might still be armed in the parent's loop */
    return true;
}

/* Takes n tokens if they are available and no other task is waiting. */
CONC__PRIVATE bool conc__limiter_try_take(conc_loop *l, conc_limiter *k, int n)
{
    int64_t now = conc__time(l);
    conc__limiter_fill(l, k, now);
    if (k->waits.first || conc__limiter_due(k, n) > now)
        return false;
    k->taken += n;
    return true;
}

static const char conc__bad_limiter[] =
    "no limiter, no rate, or n is outside the range 1 to the burst";

CONC_API int conc_limiter_try_acquire(conc_limiter *k, int n)
{
    conc_loop *l = conc__here;
    if (!l)
        return conc__misused(-EPERM, "conc_limiter_try_acquire", "there is no loop", NULL);
    if (!conc__limiter_is_valid(k, n))
        return conc__misused(-EINVAL, __func__, conc__bad_limiter, NULL);
    if (!conc__limiter_is_ours(l, k))
        return conc__used_elsewhere("conc_limiter_try_acquire");
    if (!conc__limiter_try_take(l, k, n))
        return conc__own_error(-EAGAIN);
    return 0;
}

CONC_API CONC__CALLED int conc_limiter_acquire(conc_limiter *k, int n)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!conc__limiter_is_valid(k, n))
        return conc__misused(-EINVAL, __func__, conc__bad_limiter, NULL);
    int rc = conc__may_wait(l, &k->waits, "conc_limiter_acquire");
    if (rc)
        return rc;
    if (!conc__limiter_is_ours(l, k))
        return conc__used_elsewhere("conc_limiter_acquire");
    if (conc__limiter_try_take(l, k, n)) {
        conc__spend_budget(l);
        return 0;
    }
    conc__wait w = {.task = l->self, .kind = &conc__limited, .on = k, .value = n};
    if (!k->waits.first)
        conc__arm(l, &k->timer, conc__limiter_due(k, n), conc__limiter_fire);
    return conc__wait_in(l, &k->waits, &w);
}

#endif /* CONC_IMPLEMENTATION */

/* ---- >>licence ------------------------------------------------------------------------------- *
 *
 * MIT License
 *
 * Copyright (c) 2026 the conc authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software
 * and associated documentation files (the "Software"), to deal in the Software without
 * restriction, including without limitation the rights to use, copy, modify, merge, publish,
 * distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
 * Software is furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or
 * substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING
 * BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
 * NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
 * DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 */
