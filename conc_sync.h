/* conc_sync.h - v0.1.0 - locks, semaphores, events, queues and select for the tasks of conc.h -
 * MIT licence
 *
 * What asyncio and trio call synchronization: lock, rwlock, semaphore, event, condition,
 * barrier, latch, future, queue, limiter, and a select over them. For the tasks of one loop:
 * between threads there is conc_channel in conc_pool.h.
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
 * Include it where you include conc.h, which it includes itself; CONC_IMPLEMENTATION and
 * CONC_STATIC are the same: the file that defines CONC_IMPLEMENTATION includes this one, too, or
 * the linker finds none of its functions.
 *
 * Conventions, beside conc.h's
 *   Objects   all zero or from their macro (CONC_SEM, CONC_BARRIER, CONC_QUEUE) they are ready,
 *             also before a run and after it. They own no memory and need no destroy call; only
 *             a queue has a storage.
 *   Order     first come, first served. What is released goes to the first waiter at once:
 *             nobody overtakes it, a try_ call neither, and whoever releases and asks again
 *             stands behind those who wait.
 *   Grants    0 means the whole effect, -ECANCELED none. What was handed to a waiter is its own
 *             even if a cancel or a time limit comes before it runs; the cancel is then seen at
 *             its next checkpoint.
 *   Calling   what may wait, from tasks; so are locks and rwlocks, which belong to tasks. The
 *             others (set, notify, close, a semaphore's release, try_) from posted functions
 *             too, and outside a run as long as nobody waits. -EPERM: not so, or a task of
 *             another loop waits. A try_ call that would have to wait returns -EAGAIN.
 *   Errors    NULL is -EINVAL; with a function that returns nothing, nothing happens.
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
    uint64_t serial; /* the owner's: it may have ended, and another task be in its place */
    conc__waits waits;
    const char *place; /* where the owner acquired it */
} conc_lock;

/* The lock belongs to the calling task when it returns 0. Waits.
 *     int conc_lock_acquire(conc_lock *l);
 * Errors: -EDEADLK (the task has it already), -EPERM (a task of another run has it, which may be
 * over), -ECANCELED. */
#define conc_lock_acquire(...) conc__lock_acquire((__VA_ARGS__), CONC__PLACE)
CONC_API int conc__lock_acquire(conc_lock *l, const char *place) CONC_NODISCARD;

/* The same without waiting: -EAGAIN when another task has it, -EDEADLK when this one has.
 *     int conc_lock_try_acquire(conc_lock *l); */
#define conc_lock_try_acquire(...) conc__lock_try_acquire((__VA_ARGS__), CONC__PLACE)
CONC_API int conc__lock_try_acquire(conc_lock *l, const char *place) CONC_NODISCARD;

/* Hands the lock to the first who waits for it. Not a checkpoint. -EPERM: the calling task does
 * not have it. */
CONC_API int conc_lock_release(conc_lock *l);

/* Who has it; NULL: nobody. When its owner may have ended without a release, the pointer is only
 * good to be compared. */
CONC_API conc_task *conc_lock_owner(const conc_lock *l);

/* CONC_LOCKED(&l) { ... }: the block has the lock. A failed acquire returns its error from the
 * calling function; break and continue leave the block; return, goto and CONC_TRY leave it too,
 * and the lock is released. Inside an open scope or group acquire by hand, as the early return
 * would leave that open. */
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

/* Either one writer has it or any number of readers. Who comes later waits behind those who
 * wait, so that neither readers nor writers starve. */
typedef struct conc_rwlock {
    /* private */
    conc_task *writer;
    uint64_t serial; /* the writer's, or a reader's */
    int readers;
    conc__waits waits;
    const char *place; /* where it was acquired last */
} conc_rwlock;

/* Waits.
 *     int conc_rwlock_acquire_read(conc_rwlock *l), conc_rwlock_acquire_write(conc_rwlock *l);
 * Errors: -EDEADLK (the task has it for writing already), -EPERM (a task of another run has it,
 * which may be over), -ECANCELED. A task that reads
 * releases it before it writes, and does not acquire it twice, as a writer may be waiting in
 * between: it would wait for itself. */
#define conc_rwlock_acquire_read(...) conc__rwlock_acquire((__VA_ARGS__), CONC__READER, CONC__PLACE)
#define conc_rwlock_acquire_write(...) \
    conc__rwlock_acquire((__VA_ARGS__), CONC__WRITER, CONC__PLACE)
enum { CONC__READER, CONC__WRITER };
CONC_API int conc__rwlock_acquire(conc_rwlock *l, int how, const char *place) CONC_NODISCARD;

/* The same without waiting: -EAGAIN if it would have to wait.
 *     int conc_rwlock_try_acquire_read(conc_rwlock *l),
 *     conc_rwlock_try_acquire_write(conc_rwlock *l); */
#define conc_rwlock_try_acquire_read(...) \
    conc__rwlock_try_acquire((__VA_ARGS__), CONC__READER, CONC__PLACE)
#define conc_rwlock_try_acquire_write(...) \
    conc__rwlock_try_acquire((__VA_ARGS__), CONC__WRITER, CONC__PLACE)
CONC_API int conc__rwlock_try_acquire(conc_rwlock *l, int how, const char *place) CONC_NODISCARD;

/* Either kind, by the task that acquired it. -EPERM: another task has it for writing, or nobody
 * has it; which tasks read it is not known. Not a checkpoint. */
CONC_API int conc_rwlock_release(conc_rwlock *l);

/* ---- >>semaphore ---------------------------------------------------------------------------- */

typedef struct conc_sem {
    int permits; /* free ones */
    int max;     /* a release above it is -EOVERFLOW; 0: no maximum */
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

/* Gives a permit to the first who waits, or back. -EOVERFLOW: there would be more than max, or
 * than an int holds. Not a checkpoint. */
CONC_API int conc_sem_release(conc_sem *s);

/* CONC_PERMIT(&sem) { ... }: the block has a permit, as with CONC_LOCKED. */
#define CONC_PERMIT(...) CONC__GUARDED(conc__sem_enter(__VA_ARGS__), conc__sem_leave, __COUNTER__)
CONC_API conc__entered conc__sem_enter(conc_sem *s);
CONC_API void conc__sem_leave(conc__entered *g);

/* ---- >>event -------------------------------------------------------------------------------- */

typedef struct conc_event {
    /* private */
    bool set;
    conc__waits waits;
} conc_event;

/* Returns 0 when the event is set, or was set meanwhile. Waits. Errors: -ECANCELED. */
CONC_API int conc_event_wait(conc_event *e) CONC_NODISCARD;

/* Wakes all who wait, even if a clear follows at once; who comes later does not wait. Afterwards
 * nobody needs the event any more: who was woken may free it. Not a checkpoint. */
CONC_API void conc_event_set(conc_event *e);

/* Who comes from now on waits. Not a checkpoint. */
CONC_API void conc_event_clear(conc_event *e);

CONC_API bool conc_event_is_set(const conc_event *e);

/* ---- >>condition ---------------------------------------------------------------------------- */

typedef struct conc_cond {
    /* private */
    conc__waits waits;
} conc_cond;

/* Releases the lock, waits to be notified, and acquires the lock again. The task has the lock
 * whatever is returned, so a return can come later than a time limit. Others may have run in
 * between: test what you wait for in a loop. Waits. Errors: -EPERM (the task does not have the
 * lock), -ECANCELED (and no notify was taken). */
CONC_API int conc_cond_wait(conc_cond *c, conc_lock *l) CONC_NODISCARD;

/* Notifies the first n who wait, or all. They go on when they have their lock again; the caller
 * needs none. Without anybody who waits nothing is remembered. Not a checkpoint. */
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

/* Waits until `parties` tasks are here, which then all go on, and the next come to a fresh
 * barrier. Returns the caller's index, each of 0 to parties - 1 once, the last to arrive with
 * the highest. A party that is cancelled before that leaves the barrier as if it had not come.
 * Errors: -EINVAL (parties not positive), -ECANCELED. */
CONC_API int conc_barrier_wait(conc_barrier *b) CONC_NODISCARD;

/* ---- >>latch -------------------------------------------------------------------------------- */

/* Counts what is still to be done: Go's WaitGroup. */
typedef struct conc_latch {
    /* private */
    int count;
    conc__waits waits;
} conc_latch;

/* Adds n, which may be negative; at 0 all who wait go on. -EOVERFLOW: below 0, or above what an
 * int holds; nothing changes. Not checkpoints. done adds -1. */
CONC_API int conc_latch_add(conc_latch *l, int n);
CONC_API int conc_latch_done(conc_latch *l);

/* Waits until the count is 0. Errors: -ECANCELED. */
CONC_API int conc_latch_wait(conc_latch *l) CONC_NODISCARD;

/* ---- >>future ------------------------------------------------------------------------------- */

/* A result that comes once. */
typedef struct conc_future {
    /* private */
    bool set;
    int rc;
    void *value;
    char text[128];
    conc__waits waits;
} conc_future;

/* Sets the result: rc, and a value (borrowed); the words of an error (conc_fail, in this task or
 * posted function) go with it to all that wait. Once; then -EALREADY. A task that was woken may
 * free the future. Not a checkpoint. */
CONC_API int conc_future_set(conc_future *f, int rc, void *value);

/* Waits for the result: the rc that was set, the value in *value (NULL: not wanted). -ECANCELED
 * of the caller's own leaves *value as it was. */
CONC_API int conc_future_wait(conc_future *f, void **value) CONC_NODISCARD;

CONC_API bool conc_future_is_set(const conc_future *f);

/* ---- >>queue -------------------------------------------------------------------------------- */

enum {
    CONC_QUEUE_FIFO,
    CONC_QUEUE_LIFO,
    /* the least item first, equal ones in the order of their puts; needs less */
    CONC_QUEUE_PRIORITY
};

typedef struct conc_queue {
    size_t item_size; /* bytes; 0: items are only counted */
    size_t capacity;  /* items; a put above it waits; 0: no limit */
    int kind;
    /* does a come before b? Alone it means CONC_QUEUE_PRIORITY. It does not wait. Items are
     * aligned as max_align_t, no more */
    bool (*less)(const void *a, const void *b);
    /* private */
    bool closed, checked;
    char *items;      /* FIFO: a ring; LIFO: a stack; priority: a binary heap */
    uint64_t *orders; /* priority: when each item came */
    size_t room, head, count;
    size_t limit; /* of an open FIFO queue of small items, else 0: below it a put only stores */
    uint64_t arrivals;
    conc__waits getters, putters, joiners;
    /* apart from count, or both would be written by one vector store, which a read waits for */
    size_t unfinished;
} conc_queue;

/* conc_queue q = CONC_QUEUE(int, 10); or CONC_QUEUE(job, 10, .less = more_urgent) */
#define CONC_QUEUE(type, ...)                              \
    {                                                      \
        .item_size = sizeof(type), .capacity = __VA_ARGS__ \
    }

/* Puts a copy of the item, for the first who waits or into the queue. item is borrowed until the
 * call returns. Waits while the queue is full; else the task goes on, so consumers have their
 * turn when the producer waits or calls conc_yield. Errors: -EPIPE (closed), -ENOMEM (and the queue
 * is as before), -EINVAL (a kind without less, or less with another kind), -ECANCELED.
 * conc_queue_try_put never waits: -EAGAIN when the queue is full. That does not mean that the
 * consumer is slow: it may not have had its turn since the producer runs. */
CONC_API int conc_queue_put(conc_queue *q, const void *item) CONC_NODISCARD;
CONC_API int conc_queue_try_put(conc_queue *q, const void *item) CONC_NODISCARD;

/* conc_queue_put of a value, which is copied: CONC_PUT(&jobs, n + 1), or with commas in it:
 * CONC_PUT(&jobs, (job){url, 3}); into a queue of pointers CONC_PUT(&names, name), where
 * conc_queue_put takes &name. The value's size has to be item_size: else it does not compile
 * where the compiler knows both (it optimizes, and sees the queue being set), and is -EINVAL
 * elsewhere. An array or a string is the pointer to its first element. */
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

/* Takes the next item, into *item. Waits while there is none. Errors: -EPIPE (closed, and all
 * items taken), -EINVAL as above, -ECANCELED. */
CONC_API int conc_queue_get(conc_queue *q, void *item) CONC_NODISCARD;
CONC_API int conc_queue_try_get(conc_queue *q, void *item) CONC_NODISCARD;

/* Items that lie in the queue. */
CONC_API size_t conc_queue_len(const conc_queue *q);

/* One of the items that were taken is done with, also after the queue was destroyed. -EOVERFLOW:
 * as many were done as were put. Not a checkpoint. */
CONC_API int conc_queue_task_done(conc_queue *q);

/* Waits until every item that was put is done with. Errors: -ECANCELED, -EPIPE (destroyed
 * meanwhile). */
CONC_API int conc_queue_join(conc_queue *q) CONC_NODISCARD;

/* No more puts: who waits in one gets -EPIPE, as does who waits in a get. What lies in the queue
 * can still be taken. Closing twice does nothing. Not a checkpoint. */
CONC_API void conc_queue_close(conc_queue *q);

/* Closes it for good, drops what lies in it, and frees the storage. Items that were taken still
 * count: conc_queue_task_done and conc_queue_join go on working. CONC_AUTO(conc_queue, q) =
 * CONC_QUEUE(int, 10); does it when the block ends. */
CONC_API void conc_queue_destroy(conc_queue *q);
CONC_API void conc__auto_conc_queue(conc_queue *q);

/* ---- >>select ------------------------------------------------------------------------------- */

struct conc__choice;

/* One thing that conc_select may do. Made by the macros below. */
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
    /* in the case that happened: what its call would have returned; of JOIN, which collects it
     * as conc_join does, what the task returned, and of JOB what the job returned */
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

/* Of conc_pool.h; they wait in the same lines as conc_channel_recv, conc_channel_send and
 * conc_job_wait, but a cancel of the select does not cancel the job. */
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

/* Waits until one of the cases can happen, does that one and no other, and returns its index;
 * its result field has what the call would have returned: a closed queue is ready with -EPIPE.
 * When several are ready at the call, the first in the array; else the first to happen. The
 * array and what it points to is borrowed until the call returns, and may be used again.
 *     conc_case c[] = {CONC_CASE_GET(&jobs, &job), CONC_CASE_EVENT(&stop), CONC_CASE_AFTER(1.5)};
 *     switch (conc_select(c, CONC_LEN(c))) { case 0: ...
 * A descriptor with events 0 is waited for to hang up, and the result is 0 then.
 * Errors, and none has happened: -EINVAL (no cases, one that is not valid), -EDEADLK (the join
 * of oneself), -EBADF (a negative descriptor), -EPERM (another run's), -ENOMEM (only with a
 * channel or a job), -EAGAIN (no thread for the job can be started), -ECANCELED. */
CONC_API int conc_select(conc_case *cases, size_t n) CONC_NODISCARD;

/* ---- >>limiter ------------------------------------------------------------------------------ */

/* A token bucket: it holds `burst` tokens, starts full, and gets `rate` more each `per` seconds,
 * evenly. So in any time t at most burst + t * rate / per are taken: with rate 3 and burst 1 one
 * every third of a second. */
typedef struct conc_limiter {
    double rate, per, burst; /* per 0: 1 s; burst 0: 1 */
    /* private */
    uint64_t run;       /* whose clock was read last; 0: none */
    bool virtual_clock; /* it had */
    int64_t seen;       /* ns: then */
    int64_t start;      /* when the bucket was last full */
    double taken;       /* since then */
    conc__waits waits;
    conc__timer timer; /* for the first who waits */
} conc_limiter;

/* Takes n tokens, in the order of the calls. Waits. Errors: -EINVAL (rate not positive, per or
 * burst negative, n not positive or more than the burst), -ECANCELED. */
CONC_API int conc_limiter_acquire(conc_limiter *l, int n) CONC_NODISCARD;

/* The same without waiting: also -EAGAIN while somebody waits. -EPERM outside a run, where there
 * is no clock. */
CONC_API int conc_limiter_try_acquire(conc_limiter *l, int n) CONC_NODISCARD;

#ifdef __cplusplus
}

/* The macros again as calls, because C++17 has no designators and GCC warns of fields that a list
 * leaves out: the same arguments, the same values, also for static objects. */
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

/* ============================================ implementation
 * ================================================== *
 *  >>sharing, then >>lock to >>limiter
 * ============================================================================================== */

#if (defined CONC_IMPLEMENTATION || defined CONC_STATIC) && !defined CONC__SYNC_IMPLEMENTED
#define CONC__SYNC_IMPLEMENTED

/* ---- >>sharing ------------------------------------------------------------------------------ */

static const conc__wait_kind conc__candidate;
CONC__PRIVATE const conc__wait *conc__parked_on(const conc__wait *candidate);

/* In a forked child: does the task of a wait still belong to the parent process? A handle may have
 * got a new task since, which then waits for something else. */
CONC__COLD bool conc__wait_is_inherited(const conc__wait *w)
{
    const conc__wait *parked = w->kind == &conc__candidate ? conc__parked_on(w) : w;
    return conc__is_inherited(w->task->serial) || w->task->wait != parked;
}

/* No task waits here, or tasks of this thread's run. In a forked child the parent's tasks leave
 * the list; as no task joins a list before it was looked at here, they are all in it or none. */
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

CONC__COLD int conc__foreign(const char *call)
{
    return conc__misused(-EPERM, call, "a task of another loop waits there", NULL);
}

/* At the start of `call`, which may wait: 0, -EPERM or -ECANCELED. */
CONC__FAST int conc__may_wait(conc_loop *l, conc__waits *waits, const char *call)
{
    if (CONC__UNLIKELY(!conc__ours(l, waits)))
        return conc__foreign(call);
    return conc__checkpoint(l);
}

/* What is done most has a way without a wait in a function of its own, which calls nothing, and
 * the wait itself is in another: the code that parks a task saves every register first. True:
 * the running task may go on without a turn of the others. */
CONC__FAST bool conc__goes_on(conc_loop *l)
{
    if (CONC__UNLIKELY(!l || !l->self || l->self->pending || l->quick <= 1))
        return false;
    l->quick--;
    return true;
}

/* The running task waits in the list. */
CONC__SWITCHES int conc__wait_in(conc_loop *l, conc__waits *list, conc__wait *w)
{
    conc__find_lost(l, __builtin_frame_address(0));
    conc__append(list, w);
    return conc__park(l, w);
}

/* The same as conc__wake for the first of a list, in line. */
CONC__FAST void conc__wake_first(conc_loop *l, conc__waits *list, int result)
{
    conc__wait *w = list->first;
    if (CONC__UNLIKELY(w->kind->won)) {
        conc__wake(l, w, result);
        return;
    }
    list->first = w->next;
    *(w->next ? &w->next->prev : &list->last) = NULL;
    w->list = NULL;
    w->result = result;
    conc__wait_over(l, w->task);
}

/* The whole of a call that waits for something to be so: it waits in the list of `on` unless it
 * is so already. */
CONC__PRIVATE CONC__CALLED int conc__wait_unless(const char *call, bool so, const void *on,
                                                 conc__waits *list, const conc__wait_kind *kind)
{
    conc_loop *l = conc__in_task_of(call);
    if (!l)
        return -EPERM;
    if (!on)
        return conc__misused(-EINVAL, call, "there is nothing to wait for", NULL);
    int rc = conc__may_wait(l, list, call);
    if (rc)
        return rc;
    if (!so) {
        conc__wait w = {.task = l->self, .kind = kind, .on = on};
        return conc__came_to(conc__wait_in(l, list, &w));
    }
    conc__quick(l);
    return 0;
}

CONC__PRIVATE void conc__wake_all(conc_loop *l, conc__waits *list, int result)
{
    while (list->first) {
        if (result < 0)
            conc__tell(list->first->task, result, NULL, (conc__source){NULL, NULL});
        conc__wake(l, list->first, result);
    }
}

/* The owner of a lock, as it was noted, if that task has not ended; else NULL. */
CONC__PRIVATE const conc_task *conc__living_owner(const conc_task *owner, uint64_t serial)
{
    return conc__lives(conc__here, owner, serial) ? owner : NULL;
}

CONC__PRIVATE void conc__whom_owner(FILE *out, const conc_task *owner, uint64_t serial,
                                    const char *place)
{
    if (!owner) { /* a task that was woken has it, and has not run since */
        fprintf(out, " that is free");
    } else if (conc__living_owner(owner, serial)) {
        fputs(" that ", out);
        conc__print_name(out, owner);
        fprintf(out, " acquired at %s", place);
    } else if (conc__is_of_run(conc__here, serial)) {
        fprintf(out, " acquired at %s by a task that is not there any more", place);
    } else {
        fprintf(out, " acquired at %s by a task of another run", place);
    }
}

/* ---- >>lock --------------------------------------------------------------------------------- */

CONC__PRIVATE void conc__lock_whom(FILE *out, const conc__wait *w)
{
    const conc_lock *k = w->on;
    conc__whom_owner(out, k->owner, k->serial, k->place);
}

/* Whom the report of a deadlock goes on to; NULL: not there any more. */
CONC__PRIVATE const conc_task *conc__lock_owner(const conc__wait *w)
{
    const conc_lock *k = w->on;
    return conc__living_owner(k->owner, k->serial);
}

static const conc__wait_kind conc__locking = {.what = "waits for a lock",
                                              .whom = conc__lock_whom,
                                              .cancel = conc__cancel_plainly,
                                              .owner = conc__lock_owner};

CONC__FAST bool conc__lock_is_mine(const conc_loop *l, const conc_lock *k)
{
    return k->owner == l->self && k->serial == l->self->serial;
}

/* Has the owner ended without a release? */
CONC__PRIVATE bool conc__lock_is_lost(conc_loop *l, const conc_lock *k)
{
    return !conc__lives(l, k->owner, k->serial);
}

/* Why a try cannot have a lock or rwlock. */
CONC__COLD int conc__held_by_other(const conc_loop *l, const conc_task *owner, uint64_t serial,
                                   const char *call, const char *place)
{
    if (owner == l->self && serial == l->self->serial)
        return conc__misused(-EDEADLK, call, "the task has it already, acquired", place);
    if (conc__is_of_run(l, serial))
        return conc__own_error(-EAGAIN);
    return conc__misused(-EPERM, call, "a task of another run has it, acquired", place);
}

CONC__FAST void conc__lock_give(conc_loop *l, conc_lock *k, conc_task *t, const char *place)
{
    k->owner = t;
    k->serial = t->serial;
    k->place = place;
    if (CONC__UNLIKELY(l->debug))
        conc__note(&t->held, k, "a lock", place);
}

/* The owner does not want it any more: it goes to the first who waits. */
CONC__FAST void conc__lock_pass(conc_loop *l, conc_lock *k)
{
    conc__wait *w = k->waits.first;
    if (CONC__UNLIKELY(l->debug))
        conc__unnote(&k->owner->held, k);
    k->owner = NULL;
    if (w) {
        conc__lock_give(l, k, w->task, w->item);
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
                             "the task has this lock already, acquired", k->place);
    int rc = conc__may_wait(l, &k->waits, "conc_lock_acquire");
    if (rc)
        return rc;
    if (k->owner) {
        if (!conc__is_of_run(l, k->serial))
            return conc__misused(-EPERM, "conc_lock_acquire",
                                 "a task of another run has this lock, acquired", k->place);
        return conc__lock_wait(l, k, place);
    }
    conc__lock_give(l, k, l->self, place);
    conc__quick(l);
    return 0;
}

/* Compiled in line where they are called in this file: a call would take as long again. */
CONC__FAST int conc__lock_take(conc_lock *k, const char *place)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!k || k->owner || !l || l->debug || !conc__goes_on(l)))
        return conc__lock_acquire_slowly(k, place);
    k->owner = l->self;
    k->serial = l->self->serial;
    k->place = place;
    return 0;
}

CONC_API int conc__lock_acquire(conc_lock *k, const char *place)
{
    return conc__lock_take(k, place);
}
#define conc__lock_acquire(k, place) conc__lock_take(k, place)

CONC_API int conc__lock_try_acquire(conc_lock *k, const char *place)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!k)
        return conc__misused(-EINVAL, __func__, "no lock", NULL);
    if (k->owner && !conc__is_inherited(k->serial))
        return conc__held_by_other(l, k->owner, k->serial, "conc_lock_try_acquire", k->place);
    conc__lock_give(l, k, l->self, place);
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
        return conc__misused(-EPERM, "conc_lock_release", "the task does not have this lock", NULL);
    conc__lock_pass(l, k);
    return 0;
}

CONC__FAST int conc__lock_drop(conc_lock *k)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!k || !l || !l->self || !conc__lock_is_mine(l, k) || k->waits.first ||
                       l->debug))
        return conc__lock_release_slowly(k);
    k->owner = NULL;
    return 0;
}

CONC_API int conc_lock_release(conc_lock *k) { return conc__lock_drop(k); }
#define conc_lock_release(...) conc__lock_drop(__VA_ARGS__)

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

CONC__PRIVATE void conc__rwlock_whom(FILE *out, const conc__wait *w)
{
    const conc_rwlock *k = w->on;
    fprintf(out, w->value == CONC__READER ? " to read" : " to write");
    if (k->writer)
        conc__whom_owner(out, k->writer, k->serial, k->place);
    else
        fprintf(out, ", which %d read%s", k->readers, k->readers == 1 ? "s" : "");
}

CONC__PRIVATE bool conc__rwlock_is_mine(const conc_loop *l, const conc_rwlock *k)
{
    return k->writer && k->writer == l->self && k->serial == l->self->serial;
}

/* What tasks of the parent process have does not count in a forked child. */
CONC__PRIVATE void conc__rwlock_take_over(conc_rwlock *k)
{
    if (!conc__is_inherited(k->serial))
        return;
    k->writer = NULL;
    k->readers = 0;
}

/* Does a task of another run have it, which may be over? */
CONC__PRIVATE bool conc__rwlock_is_foreign(const conc_loop *l, const conc_rwlock *k)
{
    return (k->writer || k->readers) && !conc__is_of_run(l, k->serial);
}

CONC__PRIVATE bool conc__rwlock_is_free(const conc_rwlock *k, int how)
{
    return !k->writer && (how == CONC__READER || !k->readers);
}

CONC__PRIVATE void conc__rwlock_give(conc_loop *l, conc_rwlock *k, int how, conc_task *t,
                                     const char *place)
{
    if (how == CONC__READER)
        k->readers++;
    else
        k->writer = t;
    k->serial = t->serial;
    k->place = place;
    if (l->debug)
        conc__note(&t->held, k, how == CONC__READER ? "a rwlock to read" : "a rwlock to write",
                   place);
}

/* To those first in the list who can have it together. */
CONC__PRIVATE void conc__rwlock_serve(conc_loop *l, conc_rwlock *k)
{
    for (conc__wait *w; (w = k->waits.first) && conc__rwlock_is_free(k, w->value);) {
        conc__rwlock_give(l, k, w->value, w->task, w->item);
        conc__wake(l, w, 0);
    }
}

CONC__PRIVATE bool conc__rwlock_cancel(conc__wait *w)
{
    conc__unlink(w);
    conc__rwlock_serve(conc__here,
                       /* those behind a writer need not wait for it now */
                       (conc_rwlock *)(uintptr_t)w->on);
    return true;
}

/* Many may read: only a writer is one whom the report of a deadlock goes on to. */
CONC__PRIVATE const conc_task *conc__rwlock_owner(const conc__wait *w)
{
    const conc_rwlock *k = w->on;
    return conc__living_owner(k->writer, k->serial);
}

static const conc__wait_kind conc__rwlocking = {.what = "waits for a rwlock",
                                                .whom = conc__rwlock_whom,
                                                .cancel = conc__rwlock_cancel,
                                                .owner = conc__rwlock_owner};

CONC_API CONC__CALLED int conc__rwlock_acquire(conc_rwlock *k, int how, const char *place)
{
    const char *call =
        how == CONC__READER ? "conc_rwlock_acquire_read" : "conc_rwlock_acquire_write";
    conc_loop *l = conc__in_task_of(call);
    if (!l)
        return -EPERM;
    if (!k)
        return conc__misused(-EINVAL, call, "no rwlock", NULL);
    conc__rwlock_take_over(k);
    if (conc__rwlock_is_mine(l, k))
        return conc__misused(-EDEADLK, call, "the task has this rwlock already, acquired",
                             k->place);
    int rc = conc__may_wait(l, &k->waits, call);
    if (rc)
        return rc;
    if (conc__rwlock_is_foreign(l, k))
        return conc__misused(-EPERM, call, "a task of another run has this rwlock, acquired",
                             k->place);
    if (k->waits.first || !conc__rwlock_is_free(k, how)) {
        conc__wait w = {.task = l->self,
                        .kind = &conc__rwlocking,
                        .on = k,
                        .item = (void *)(uintptr_t)place,
                        .value = how};
        return conc__wait_in(l, &k->waits, &w);
    }
    conc__rwlock_give(l, k, how, l->self, place);
    conc__quick(l);
    return 0;
}

CONC_API int conc__rwlock_try_acquire(conc_rwlock *k, int how, const char *place)
{
    const char *call =
        how == CONC__READER ? "conc_rwlock_try_acquire_read" : "conc_rwlock_try_acquire_write";
    conc_loop *l = conc__in_task_of(call);
    if (!l)
        return -EPERM;
    if (!k)
        return conc__misused(-EINVAL, call, "no rwlock", NULL);
    conc__rwlock_take_over(k);
    if (!conc__ours(l, &k->waits))
        return conc__foreign(call);
    if (k->waits.first || !conc__rwlock_is_free(k, how) || conc__rwlock_is_foreign(l, k))
        return conc__held_by_other(l, k->writer, k->serial, call, k->place);
    conc__rwlock_give(l, k, how, l->self, place);
    return 0;
}

CONC_API int conc_rwlock_release(conc_rwlock *k)
{
    if (!k)
        return conc__misused(-EINVAL, __func__, "no rwlock", NULL);
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    bool has =
        (k->writer ? conc__rwlock_is_mine(l, k) : k->readers > 0) && conc__is_of_run(l, k->serial);
    if (!has || !conc__ours(l, &k->waits))
        return conc__misused(-EPERM, "conc_rwlock_release", "the task does not have this rwlock",
                             NULL);
    if (k->writer)
        k->writer = NULL;
    else
        k->readers--;
    if (l->debug)
        conc__unnote(&l->self->held, k);
    conc__rwlock_serve(l, k);
    return 0;
}

/* ---- >>semaphore ---------------------------------------------------------------------------- */

static const conc__wait_kind conc__permitting = {.what = "waits for a permit of a semaphore",
                                                 .cancel = conc__cancel_plainly};

static const char conc__bad_sem[] = "no semaphore, or permits outside of 0 and the maximum";

CONC__FAST bool conc__sem_is_valid(const conc_sem *s)
{
    /* a negative max is below them, too */
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
    conc__quick(l);
    return 0;
}

CONC_API int conc_sem_acquire(conc_sem *s)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!conc__sem_is_valid(s) || s->permits == 0 || s->waits.first ||
                       !conc__goes_on(l)))
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
        return conc__foreign("conc_sem_try_acquire");
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
        return conc__foreign("conc_sem_release");
    if (s->waits.first) {
        conc__wake(l, s->waits.first, 0);
        return 0;
    }
    if (CONC__UNLIKELY(s->permits == (s->max ? s->max : INT_MAX)))
        return conc__misused(-EOVERFLOW, "conc_sem_release",
                             "there would be more permits than the maximum", NULL);
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
    return conc__wait_unless(__func__, e && e->set, e, e ? &e->waits : NULL, &conc__awaiting_event);
}

CONC_API void conc_event_set(conc_event *e)
{
    conc_loop *l = conc__here;
    if (!e)
        return;
    if (!conc__ours(l, &e->waits)) {
        conc__foreign("conc_event_set");
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

/* Who was notified or cancelled goes over to those who wait for the lock, without running in
 * between. */

/* It waits in spite of a cancel; after a deadlock it takes a lock that nobody will release. */
CONC__PRIVATE bool conc__relock_cancel(conc__wait *w)
{
    conc_loop *l = conc__here;
    conc_lock *k = (conc_lock *)(uintptr_t)w->on;
    if (!l->doomed || !conc__lock_is_lost(l, k))
        return false;
    conc__unlink(w);
    conc__lock_give(l, k, w->task, w->item);
    return true;
}

static const conc__wait_kind conc__relocking = {.what = "waits to have a lock again",
                                                .whom = conc__lock_whom,
                                                .cancel = conc__relock_cancel,
                                                .owner = conc__lock_owner};

/* Who waited for a condition wants its lock; result is what its wait will return. True: it has
 * it. */
CONC__PRIVATE bool conc__cond_relock(conc_loop *l, conc__wait *w, int result)
{
    conc_lock *k = (conc_lock *)(uintptr_t)w->on;
    conc__unlink(w);
    w->value = result;
    /* after a deadlock everything unwinds */
    if (k->owner && !(l->doomed && conc__lock_is_lost(l, k))) {
        if (CONC__UNLIKELY(l->stepwise))
            conc__waited(l, w->task);
        w->kind = &conc__relocking;
        conc__append(&k->waits, w);
        return false;
    }
    conc__lock_give(l, k, w->task, w->item);
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
        return conc__misused(-EPERM, "conc_cond_wait", "the task does not have the lock", NULL);
    int rc = conc__may_wait(l, &c->waits, "conc_cond_wait");
    if (rc)
        return rc;
    conc__wait w = {.task = l->self,
                    .kind = &conc__awaiting_cond,
                    .on = k,
                    .item = (void *)(uintptr_t)k->place};
    conc__lock_pass(l, k);
    conc__wait_in(l, &c->waits, &w);
    return w.value;
}

CONC__PRIVATE void conc__cond_notify(conc_cond *c, int n, const char *call)
{
    conc_loop *l = conc__here;
    if (!c)
        return;
    if (!conc__ours(l, &c->waits)) {
        conc__foreign(call);
        return;
    }
    for (conc__wait *w; n > 0 && (w = c->waits.first); n--)
        if (conc__cond_relock(l, w, 0))
            conc__wake(l, w, 0);
}

CONC_API void conc_cond_notify(conc_cond *c, int n) { conc__cond_notify(c, n, "conc_cond_notify"); }

CONC_API void conc_cond_notify_all(conc_cond *c)
{
    conc__cond_notify(c, INT_MAX, "conc_cond_notify_all");
}

/* ---- >>barrier ------------------------------------------------------------------------------ */

CONC__PRIVATE void conc__barrier_whom(FILE *out, const conc__wait *w)
{
    const conc_barrier *b = w->on;
    fprintf(out, ", %d of %d are there", b->arrived, b->parties);
}

CONC__PRIVATE bool conc__barrier_cancel(conc__wait *w)
{
    ((conc_barrier *)(uintptr_t)w->on)->arrived--;
    return true;
}

static const conc__wait_kind conc__gathering = {
    .what = "waits at a barrier", .whom = conc__barrier_whom, .cancel = conc__barrier_cancel};

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
        b->arrived = 0; /* in a forked child: those that had come are the parent's */
    if (b->arrived + 1 < b->parties) {
        conc__wait w = {.task = l->self, .kind = &conc__gathering, .on = b};
        b->arrived++;
        return conc__wait_in(l, &b->waits, &w);
    }
    int index = 0;
    for (; b->waits.first; index++)
        conc__wake(l, b->waits.first, index);
    b->arrived = 0;
    conc__quick(l);
    return index;
}

/* ---- >>latch -------------------------------------------------------------------------------- */

CONC__PRIVATE void conc__latch_whom(FILE *out, const conc__wait *w)
{
    fprintf(out, " that stands at %d", ((const conc_latch *)w->on)->count);
}

static const conc__wait_kind conc__awaiting_latch = {
    .what = "waits for a latch", .whom = conc__latch_whom, .cancel = conc__cancel_plainly};

CONC__PRIVATE int conc__latch_add(conc_latch *k, int n, const char *call)
{
    conc_loop *l = conc__here;
    if (!k)
        return conc__misused(-EINVAL, call, "no latch", NULL);
    if (!conc__ours(l, &k->waits))
        return conc__foreign(call);
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
    return conc__wait_unless(__func__, k && !k->count, k, k ? &k->waits : NULL,
                             &conc__awaiting_latch);
}

/* ---- >>future ------------------------------------------------------------------------------- */

static const conc__wait_kind conc__awaiting_future = {.what = "waits for a future",
                                                      .cancel = conc__cancel_plainly};

/* The task is given the result. */
CONC__PRIVATE void conc__future_tell(conc_task *t, const conc_future *f)
{
    if (f->rc < 0 && f->rc != -ECANCELED)
        conc__tell(t, f->rc, f->text, (conc__source){NULL, NULL});
}

/* The words that go with rc out of the task, or the posted function, that runs; "": none. */
CONC__PRIVATE const char *conc__words_here(const conc_loop *l, int rc)
{
    if (l->self)
        return conc__words(l->self, rc);
    return l->posted_rc == rc ? conc__words_of_thread : "";
}

CONC_API int conc_future_set(conc_future *f, int rc, void *value)
{
    conc_loop *l = conc__here;
    if (!f)
        return conc__misused(-EINVAL, __func__, "no future", NULL);
    if (f->set)
        return conc__own_error(-EALREADY);
    if (!conc__ours(l, &f->waits))
        return conc__foreign("conc_future_set");
    f->set = true;
    f->rc = rc;
    f->value = value;
    conc__copy(f->text, sizeof f->text, rc < 0 && l ? conc__words_here(l, rc) : "");
    for (conc__wait *w; (w = f->waits.first);) {
        w->item = value;
        w->value = 1;
        conc__future_tell(w->task, f);
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
    if (!f->set) { /* whoever runs first when it is set may free it: the result comes in w */
        conc__wait w = {.task = l->self, .kind = &conc__awaiting_future, .on = f};
        rc = conc__wait_in(l, &f->waits, &w);
        if (value && w.value)
            *value = w.item;
        return rc;
    }
    if (value)
        *value = f->value;
    rc = f->rc;
    conc__future_tell(l->self, f);
    conc__quick(l); /* others may run, and free it */
    return rc;
}

CONC_API bool conc_future_is_set(const conc_future *f) { return f && f->set; }

/* ---- >>queue -------------------------------------------------------------------------------- */

/* Who waits in a get is there only while the queue is empty, and who waits in a put only while
 * it is full: so a put hands its item to the first getter, and a get lets the first putter's
 * item in. */

CONC__PRIVATE void conc__queue_whom(FILE *out, const conc__wait *w)
{
    const conc_queue *q = w->on;
    fprintf(out, " (%zu items)", q->count);
}

static const conc__wait_kind conc__getting = {
    .what = "waits to get from a queue", .whom = conc__queue_whom, .cancel = conc__cancel_plainly};
static const conc__wait_kind conc__putting = {
    .what = "waits to put into a queue", .whom = conc__queue_whom, .cancel = conc__cancel_plainly};

CONC__PRIVATE void conc__queue_join_whom(FILE *out, const conc__wait *w)
{
    fprintf(out, ", of which %zu are not", ((const conc_queue *)w->on)->unfinished);
}

static const conc__wait_kind conc__finishing = {.what = "waits for a queue's items to be done",
                                                .whom = conc__queue_join_whom,
                                                .cancel = conc__cancel_plainly};

CONC__FAST char *conc__item_at(const conc_queue *q, size_t i)
{
    return q->items + i * q->item_size;
}

CONC__FAST void conc__item_copy(const conc_queue *q, void *to, const void *from)
{
    if (q->item_size == 4)
        memcpy(to, from, 4);
    else if (q->item_size == 8)
        memcpy(to, from, 8);
    else if (q->item_size)
        memcpy(to, from, q->item_size);
}

/* For queues with a limit: their items are of one of the two usual sizes, which need no call to
 * be copied. */
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

/* Is it a queue that can work, as its options say? */
CONC__COLD int conc__queue_check(conc_queue *q, const char *call)
{
    if (q->kind < CONC_QUEUE_FIFO || q->kind > CONC_QUEUE_PRIORITY)
        return conc__misused(-EINVAL, call, "the queue has an unknown kind", NULL);
    if ((q->kind == CONC_QUEUE_PRIORITY && !q->less) || (q->kind == CONC_QUEUE_LIFO && q->less))
        return conc__misused(-EINVAL, call, "the queue's kind and its less do not fit", NULL);
    q->checked = true;
    return 0;
}

CONC__FAST int conc__queue_valid(conc_queue *q, const void *item, const char *call)
{
    if (CONC__UNLIKELY(!q || (!item && q->item_size)))
        return conc__misused(-EINVAL, call, "no queue, or no item", NULL);
    return CONC__UNLIKELY(!q->checked) ? conc__queue_check(q, call) : 0;
}

/* Twice the room; the items come to lie in their order from the start. 0, or -ENOMEM. */
CONC__COLD int conc__queue_grow(conc_queue *q)
{
    enum { LEAST = 8 };
    size_t room = q->room ? q->room * 2 : LEAST, first = q->room - q->head;
    if (room < q->room || room > SIZE_MAX / 2 / sizeof *q->orders ||
        room > SIZE_MAX / 2 / q->item_size)
        return -ENOMEM;
    char *items = conc__alloc(room * q->item_size);
    uint64_t *orders = q->less ? conc__alloc(room * sizeof *orders) : NULL;
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
    if (!q->kind && !q->less && (q->item_size == 4 || q->item_size == 8))
        q->limit = q->capacity && q->capacity < room ? q->capacity : room;
    return 0;
}

/* Of two items that lie in the heap: a is to be taken before b. One call of less tells, as no
 * two came at the same time; and what to call it with is worked out without a branch, which
 * could not be predicted. */
CONC__FAST bool conc__heap_before(const conc_queue *q, const char *a, uint64_t a_came,
                                  const char *b, uint64_t b_came)
{
    uintptr_t older = a_came < b_came, swap = ((uintptr_t)a ^ (uintptr_t)b) & (0 - older);
    return q->less((const void *)((uintptr_t)a ^ swap), (const void *)((uintptr_t)b ^ swap)) ^
           older;
}

/* children of each place: half the levels of a binary heap, and siblings share a cache line */
enum { CONC__WAYS = 4 };

/* The first of the children of a place, which lie from `below` on. */
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

/* What the next step down looks at, whichever child it goes to, is asked for now: memory is what
 * a large heap waits for. A prefetch may go beyond the end. */
CONC__FAST void conc__heap_fetch(const conc_queue *q, size_t below)
{
    const char *items = (const char *)((uintptr_t)q->items + below * q->item_size);
    const char *orders = (const char *)((uintptr_t)q->orders + below * sizeof *q->orders);
    __builtin_prefetch(items);
    __builtin_prefetch(orders);
    __builtin_prefetch(orders + 64);
}

/* The item and its order find their place between the hole and the top. */
CONC__PRIVATE void conc__heap_up(conc_queue *q, size_t hole, const char *item, uint64_t came)
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

/* Closes the hole at the top: it sinks to the bottom, where the last item goes in and rises,
 * mostly not far, which takes fewer comparisons than letting the last item sink (I. Wegener,
 * Bottom-up heapsort, 1993). */
CONC__PRIVATE void conc__heap_close(conc_queue *q)
{
    size_t last = q->count, hole = 0; /* the last item lies behind the heap now */
    for (size_t below; (below = CONC__WAYS * hole + 1) < last;) {
        conc__heap_fetch(q, CONC__WAYS * below + 1);
        below = conc__heap_child(q, below, last);
        conc__item_copy(q, conc__item_at(q, hole), conc__item_at(q, below));
        q->orders[hole] = q->orders[below];
        hole = below;
    }
    if (hole < last)
        conc__heap_up(q, hole, conc__item_at(q, last), q->orders[last]);
}

/* There is room. */
CONC__FAST void conc__queue_store(conc_queue *q, const void *item)
{
    if (CONC__UNLIKELY(q->less != NULL) && q->item_size)
        conc__heap_up(q, q->count, item, q->arrivals++);
    else if (q->item_size)
        conc__item_copy(q, conc__item_at(q, (q->head + q->count) & (q->room - 1)), item);
    q->count++;
    q->unfinished++;
}

/* There is an item. */
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
            conc__heap_close(q);
        else
            q->head = (q->head + 1) & (q->room - 1);
    }
}

/* 0, or why it cannot be done at once: -EAGAIN when the queue is full. */
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

/* 0, or why it cannot be done at once: -EAGAIN when the queue is empty. */
CONC__FAST int conc__queue_pull(conc_loop *l, conc_queue *q, void *item)
{
    conc__wait *putter = q->putters.first;
    if (!q->count)
        return q->closed ? conc__own_error(-EPIPE) : -EAGAIN;
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

CONC__PRIVATE CONC__CALLED int conc__queue_wait(conc_loop *l, conc_queue *q, bool puts,
                                                const void *item)
{
    conc__wait w = {.task = l->self,
                    .kind = puts ? &conc__putting : &conc__getting,
                    .on = q,
                    .item = (void *)(uintptr_t)item};
    return conc__came_to(conc__wait_in(l, puts ? &q->putters : &q->getters, &w));
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
        return conc__foreign("conc_queue_put");
    rc = conc__queue_push(l, q, item);
    if (rc == -EAGAIN)
        return conc__queue_wait(l, q, true, item);
    conc__quick(l);
    return rc;
}

CONC_API CONC__CALLED int conc_queue_put(conc_queue *q, const void *item)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!q || !item || q->count >= q->limit || q->getters.first ||
                       !conc__goes_on(l)))
        return conc__queue_put_slowly(q, item);
    conc__item_save(q, (q->head + q->count) & (q->room - 1), item);
    q->count++;
    q->unfinished++;
    return 0;
}

CONC_API CONC__CALLED int conc__queue_put_sized(conc_queue *q, const void *item, size_t size)
{
    if (CONC__UNLIKELY(q && q->item_size != size)) {
        conc__misused(-EINVAL, "CONC_PUT", "the item's size is not the queue's", NULL);
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
        return conc__foreign("conc_queue_get");
    rc = conc__queue_pull(l, q, item);
    if (rc == -EAGAIN)
        return conc__queue_wait(l, q, false, item);
    conc__quick(l);
    return rc;
}

CONC_API CONC__CALLED int conc_queue_get(conc_queue *q, void *item)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!q || !item || q->count - 1 >= q->limit || q->putters.first ||
                       !conc__goes_on(l)))
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
        return conc__foreign("conc_queue_try_put");
    return conc__came_to(conc__queue_push(l, q, item));
}

CONC_API CONC__CALLED int conc_queue_try_get(conc_queue *q, void *item)
{
    conc_loop *l = conc__here;
    int rc = conc__queue_valid(q, item, __func__);
    if (rc)
        return rc;
    if (!conc__queue_is_ours(l, q))
        return conc__foreign("conc_queue_try_get");
    return conc__came_to(conc__queue_pull(l, q, item));
}

CONC_API size_t conc_queue_len(const conc_queue *q) { return q ? q->count : 0; }

CONC_API int conc_queue_task_done(conc_queue *q)
{
    conc_loop *l = conc__here;
    if (!q)
        return conc__misused(-EINVAL, __func__, "no queue", NULL);
    if (!conc__ours(l, &q->joiners))
        return conc__foreign("conc_queue_task_done");
    if (!q->unfinished)
        return conc__misused(-EOVERFLOW, "conc_queue_task_done", "more items were done than put",
                             NULL);
    if (--q->unfinished == 0)
        conc__wake_all(l, &q->joiners, 0);
    return 0;
}

CONC_API int conc_queue_join(conc_queue *q)
{
    return conc__wait_unless(__func__, q && !q->unfinished, q, q ? &q->joiners : NULL,
                             &conc__finishing);
}

/* False: it may not be closed from here. */
CONC__PRIVATE bool conc__queue_shut(conc_loop *l, conc_queue *q, const char *call)
{
    if (q->closed)
        return true;
    if (!conc__queue_is_ours(l, q)) {
        conc__foreign(call);
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
        conc__foreign("conc_queue_destroy");
        return;
    }
    if (!conc__queue_shut(l, q, "conc_queue_destroy"))
        return;
    conc__wake_all(l, &q->joiners, -EPIPE);
    conc_free(q->items);
    conc_free(q->orders);
    q->items = NULL;
    q->orders = NULL;
    q->unfinished -= q->count;        /* what was taken and is not done with yet stays in it */
    q->room = q->head = q->count = 0; /* and so is the limit, since it was closed */
}

CONC_API void conc__auto_conc_queue(conc_queue *q) { conc_queue_destroy(q); }

/* ---- >>select ------------------------------------------------------------------------------- */

/* A task that waits for several things has a wait in the list of each. Whoever wakes one of
 * these takes back the others in the same moment (won), so that only one ever happens. The task
 * itself is parked on a wait that is in no list. */
typedef struct conc__choice {
    conc__wait wait;
    conc__wait landing; /* then, until flying is 0 */
    int flying;         /* cases that wait no longer, and that another thread has told of before */
    bool has_outside;   /* a case waits for what is in conc_pool.h */
    conc_case *cases;
    size_t n;
    int chosen;
    int64_t due; /* of the case that comes first by time; CONC__NEVER: none */
    int timed;   /* that case */
    conc__timer timer;
} conc__choice;

CONC__PRIVATE void conc__choice_whom(FILE *out, const conc__wait *w)
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
        } else if (c->what == CONC__FD)
            fprintf(out, "descriptor %d", c->fd);
        else if (c->what == CONC__AFTER && c->seconds >= CONC_FOREVER)
            fprintf(out, "a time that never comes");
        else if (c->what == CONC__AFTER)
            fprintf(out, "%.9g s", c->seconds);
        else
            fprintf(out, "%s", what[c->what]);
    }
}

CONC__PRIVATE bool conc__case_is_outside(const conc_case *c) { return c->what >= CONC__RECV; }

/* A case waits no longer for what is in conc_pool.h. */
CONC__PRIVATE void conc__case_end_outside(conc__choice *s, conc_case *c)
{
    if (c->outside && conc__extended.outside->end(c->outside))
        s->flying++;
    c->outside = NULL;
}

/* Takes back all waits but one. */
CONC__PRIVATE void conc__choice_end(conc__choice *s, const conc_case *but)
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
    conc__choice_end((conc__choice *)(void *)w, NULL);
    return true;
}

CONC__PRIVATE void conc__choice_won(conc__wait *w)
{
    conc_case *c = (conc_case *)(void *)((char *)w - offsetof(conc_case, wait));
    c->choice->chosen = (int)(c - c->choice->cases);
    conc__choice_end(c->choice, c);
}

CONC__PRIVATE void conc__choice_late(conc__timer *t)
{
    conc__choice *s = (conc__choice *)(void *)((char *)t - offsetof(conc__choice, timer));
    s->chosen = s->timed;
    s->cases[s->timed].wait.result = 0;
    conc__choice_end(s, NULL);
    conc__wake(conc__here, &s->wait, 0);
}

static const conc__wait_kind conc__selecting = {.what = "waits for the first of",
                                                .brief = "waits for the first of several",
                                                .whom = conc__choice_whom,
                                                .cancel = conc__choice_cancel};
static const conc__wait_kind conc__candidate = {.what = "", .won = conc__choice_won};

/* The wait that the task of a case's wait is parked on. */
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
        return conc__misused(-EPERM, "conc_select", "the task is another run's", NULL);
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

CONC__PRIVATE int conc__case_check(const conc_loop *l, const conc_case *c)
{
    if (c->what == CONC__GET || c->what == CONC__PUT) {
        int rc = conc__queue_valid(c->queue, c->what == CONC__GET ? c->to : c->from, "conc_select");
        if (rc)
            return rc;
        return conc__queue_is_ours(l, c->queue) ? 0 : conc__foreign("conc_select");
    }
    if (c->what == CONC__EVENT) {
        if (!c->event)
            return conc__misused(-EINVAL, "conc_select", "a case without an event", NULL);
        return conc__ours(l, &c->event->waits) ? 0 : conc__foreign("conc_select");
    }
    if (c->what == CONC__JOINED)
        return conc__case_check_join(l, c->task);
    if (c->what == CONC__FD && c->events & ~(CONC_READABLE | CONC_WRITABLE))
        return conc__misused(-EINVAL, "conc_select", "a case with unknown events", NULL);
    if (c->what == CONC__FD)
        return c->fd < 0 ? conc__own_error(-EBADF) : 0;
    if (conc__case_is_outside(c) && c->what <= CONC__JOB && conc__extended.outside)
        return conc__case_check_outside(c);
    if (c->what != CONC__AFTER)
        return conc__misused(-EINVAL, "conc_select", "a case of no kind", NULL);
    if (__builtin_isnan(c->seconds))
        return conc__misused(-EINVAL, "conc_select", "a time that is not a number", NULL);
    return 0;
}

/* Does it if it can be done at once. -EAGAIN: it cannot. */
CONC__PRIVATE int conc__case_try(conc_loop *l, conc_case *c)
{
    int ready = 0;
    conc__outside o;
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
    case CONC__EVENT: return c->event->set ? 0 : -EAGAIN;
    case CONC__JOINED: return c->task->state == CONC__DONE ? 0 : -EAGAIN;
    case CONC__FD:
        ready = conc__fd_ready(c->fd, c->events);
        return ready > 0 ? ready & c->events : ready ? ready : -EAGAIN;
    default: return c->seconds <= 0 ? 0 : -EAGAIN;
    }
}

/* Another thread has told of the case. */
CONC__PRIVATE void conc__case_told(conc__outside *o, bool happened)
{
    conc_case *c = o->owner;
    conc__choice *s = c->choice;
    if (happened) {
        c->result = o->result;
        c->outside = NULL;
        s->chosen = (int)(c - s->cases);
        conc__choice_end(s, c);
        conc__wake(conc__here, &s->wait, 0);
    } else if (--s->flying == 0 && s->landing.kind) {
        conc__wake(conc__here, &s->landing, 0);
    }
}

CONC__PRIVATE int conc__case_wait_outside(conc_loop *l, conc__choice *s, conc_case *c)
{
    conc__outside o = conc__case_as_outside(c);
    o.task = l->self;
    o.owner = c;
    o.told = conc__case_told;
    if (!s->has_outside)
        l->awaited++;
    s->has_outside = true;
    int rc = conc__extended.outside->begin(l, &o, &c->outside);
    c->result = o.result;
    return rc;
}

/* The case waits: 0; 1: it happened, with *result; or an error. */
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
        conc__fd *f;
        int rc = conc__fd_watch(l, c->fd, c->events, &f);
        if (rc) {
            *result = rc == 1 ? c->events : rc; /* 1: such a file does not hang up */
            return *result != 0;
        }
        c->wait.value = c->events;
        c->id = f->id;
        conc__fd_append(l, f, &c->wait, c->events);
    } else {
        int64_t at = c->seconds >= CONC_FOREVER ? CONC__NEVER
                                                : conc__later(conc__time(l), conc__ns(c->seconds));
        if (at < s->due) {
            s->due = at;
            s->timed = (int)(c - s->cases);
        }
    }
    return 0;
}

/* What the case that was chosen has brought, after the wait. */
CONC__PRIVATE int conc__case_result(conc_loop *l, const conc_case *c)
{
    if (c->what == CONC__FD && c->wait.result == 0)
        return conc__fd_got(l, (conc__fd *)(uintptr_t)c->wait.on, c->id, &c->wait);
    if (conc__case_is_outside(c) && c->wait.result == 0)
        return c->result;
    return c->what == CONC__JOINED ? c->wait.value : c->wait.result;
}

/* The case can happen, and nothing was waited for. */
CONC__PRIVATE int conc__select_at_once(conc_loop *l, conc_case *cases, size_t i, int result)
{
    conc_case *c = &cases[i];
    if (!conc__case_is_outside(c))
        c->result = result;
    if (c->what == CONC__JOINED) {
        c->result = c->task->result;
        conc__collect(l, c->task);
    }
    conc__quick(l);
    return (int)i;
}

static const conc__wait_kind conc__landing = {.what = "waits for another thread in conc_select"};

/* Other threads have told the choice of what it does not wait for any more. That is on its way. */
CONC__PRIVATE void conc__choice_land(conc_loop *l, conc__choice *s)
{
    if (s->flying) {
        s->landing = (conc__wait){.task = l->self, .kind = &conc__landing};
        conc__park(l, &s->landing);
    }
    if (s->has_outside)
        l->awaited--;
}

/* Waits for the first of the cases: 0, a case happened at once; 1, s->chosen was chosen; or an
 * error. */
CONC__PRIVATE int conc__choose(conc_loop *l, conc__choice *s, size_t n, int *result)
{
    for (; s->n < n && s->chosen < 0; s->n++) {
        int rc = conc__case_wait(l, s, &s->cases[s->n], result);
        if (rc != 0 && s->chosen < 0) {
            conc__choice_end(s, NULL);
            return rc < 0 ? rc : 0;
        }
    }
    if (s->chosen >= 0) { /* a look at a descriptor found it closed, and woke an earlier case */
        conc__choice_end(s, NULL);
        conc__leave(l);
        return 1;
    }
    if (s->due != CONC__NEVER)
        conc__arm(l, &s->timer, s->due, conc__choice_late);
    int rc = conc__park(l, &s->wait);
    return rc ? rc : 1;
}

CONC__PRIVATE int conc__select_valid(conc_loop *l, conc_case *cases, size_t n)
{
    int rc, result = 0;
    for (size_t i = 0; i < n; i++)
        if ((rc = conc__case_try(l, &cases[i])) != -EAGAIN)
            return conc__select_at_once(l, cases, i, rc);
    conc__choice s = {.wait = {.task = l->self, .kind = &conc__selecting},
                      .cases = cases,
                      .chosen = -1,
                      .due = CONC__NEVER};
    rc = conc__choose(l, &s, n, &result);
    conc__choice_land(l, &s);
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
        return conc__misused(-EINVAL, __func__, "no cases, or an impossible number of them", NULL);
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = conc__case_check(l, &cases[i]);
    if (rc == 0)
        rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__find_lost(l, __builtin_frame_address(0));
    return conc__select_valid(l, cases, n);
}

/* ---- >>limiter ------------------------------------------------------------------------------ */

/* The bucket is not filled drop by drop: when it was last full, and how much was taken since,
 * tell when the next tokens are there. Multiplying each time instead of adding up keeps every
 * grant exact to the nanosecond. */

CONC__PRIVATE bool conc__limiter_is_valid(const conc_limiter *k, int n)
{
    return k && k->rate > 0 && k->per >= 0 && k->burst >= 0 && n > 0 &&
           n <= (k->burst > 0 ? k->burst : 1);
}

/* The nanoseconds in which so many tokens come; a hair less, as the product of two doubles may
 * be that much too large. */
CONC__PRIVATE double conc__limiter_ns(const conc_limiter *k, double tokens)
{
    double per = k->per > 0 ? k->per : 1,
           each = per < 1e290 ? per * 1e9 / k->rate : per / k->rate * 1e9;
    return tokens > 0 ? tokens * each - 1e-3 : 0;
}

/* When n more tokens are there. */
CONC__PRIVATE int64_t conc__limiter_due(const conc_limiter *k, int n)
{
    double ns = conc__limiter_ns(k, k->taken + n - (k->burst > 0 ? k->burst : 1));
    if (ns <= 0)
        return k->start;
    if (!(ns < 9e18))
        return CONC__NEVER - 1;
    int64_t whole = (int64_t)ns;
    whole += (double)whole < ns;
    return k->start < 0 ? k->start + whole : conc__later(k->start, whole);
}

/* Brings the bucket up to date. One that has become full does not get fuller; and when the clock
 * is another run's, no time has passed since the last look. */
CONC__PRIVATE void conc__limiter_fill(conc_loop *l, conc_limiter *k, int64_t now)
{
    if (k->run != l->run && (k->virtual_clock || l->virtual_clock))
        k->start += now - k->seen;
    if (!k->run || (double)(now - k->start) >= conc__limiter_ns(k, k->taken) + 1) {
        k->start = now;
        k->taken = 0;
    }
    k->run = l->run;
    k->virtual_clock = l->virtual_clock;
    k->seen = now;
}

CONC__PRIVATE void conc__limiter_fire(conc__timer *t);

/* To all whose tokens are there; the clock wakes the limiter for the next. */
CONC__PRIVATE void conc__limiter_serve(conc_loop *l, conc_limiter *k, int64_t now)
{
    conc__wait *w;
    conc__limiter_fill(l, k, now);
    conc__disarm(l, &k->timer);
    while ((w = k->waits.first) && conc__limiter_due(k, w->value) <= now) {
        k->taken += w->value;
        conc__wake(l, w, 0);
    }
    if (w)
        conc__arm(l, &k->timer, conc__limiter_due(k, w->value), conc__limiter_fire);
}

CONC__PRIVATE void conc__limiter_fire(conc__timer *t)
{
    conc__limiter_serve(conc__here,
                        (conc_limiter *)(void *)((char *)t - offsetof(conc_limiter, timer)),
                        conc__here->now);
}

CONC__PRIVATE bool conc__limiter_cancel(conc__wait *w)
{
    conc_limiter *k = (conc_limiter *)(uintptr_t)w->on;
    bool first = k->waits.first == w;
    conc__unlink(w);
    if (first)
        conc__limiter_serve(conc__here, k, conc__time(conc__here));
    return true;
}

CONC__PRIVATE void conc__limiter_whom(FILE *out, const conc__wait *w)
{
    const conc_limiter *k = w->on;
    fprintf(out, " of %.9g in %.9g s, for %d", k->rate, k->per > 0 ? k->per : 1, w->value);
}

static const conc__wait_kind conc__limited = {
    .what = "waits for a limiter", .whom = conc__limiter_whom, .cancel = conc__limiter_cancel};

CONC__PRIVATE bool conc__limiter_is_ours(const conc_loop *l, conc_limiter *k)
{
    if (!conc__ours(l, &k->waits))
        return false;
    if (!k->waits.first)
        k->timer.next = NULL; /* in a forked child: it is armed in the parent's loop */
    return true;
}

/* Takes n tokens if they are there and no task waits. */
CONC__PRIVATE bool conc__limiter_take(conc_loop *l, conc_limiter *k, int n)
{
    int64_t now = conc__time(l);
    conc__limiter_fill(l, k, now);
    if (k->waits.first || conc__limiter_due(k, n) > now)
        return false;
    k->taken += n;
    return true;
}

static const char conc__bad_limiter[] = "no limiter, without a rate, or n not from 1 to the burst";

CONC_API int conc_limiter_try_acquire(conc_limiter *k, int n)
{
    conc_loop *l = conc__here;
    if (!l)
        return conc__misused(-EPERM, "conc_limiter_try_acquire", "there is no loop", NULL);
    if (!conc__limiter_is_valid(k, n))
        return conc__misused(-EINVAL, __func__, conc__bad_limiter, NULL);
    if (!conc__limiter_is_ours(l, k))
        return conc__foreign("conc_limiter_try_acquire");
    return conc__limiter_take(l, k, n) ? 0 : conc__own_error(-EAGAIN);
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
        return conc__foreign("conc_limiter_acquire");
    if (conc__limiter_take(l, k, n)) {
        conc__quick(l);
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
