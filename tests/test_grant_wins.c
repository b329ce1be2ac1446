/* test_grant_wins.c - a grant belongs to its waiter, whatever happens between the grant and the
 * waiter's next step.
 *
 * One table covers all primitives: a row sets up an object, waits for it, grants, and checks what
 * is left. Each row runs with each way to cut a wait short (a cancel of the task or of a scope,
 * the end of a shield, a time limit), in both orders of {grant; cancel} with no wait in between,
 * alone and with a second waiter behind the first, which must not be stranded. 0 means the whole
 * effect, -ECANCELED means none, and after a grant the next checkpoint reports the cancel.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#include "conc_test.h"

typedef struct waiter waiter;

/* How far one grant reaches. */
typedef enum reach {
    ONE,          /* the first waiter */
    ALL,          /* all waiters */
    ALL_BY_TURNS, /* all waiters, each when the one before has released it */
    ALL_OR_NONE   /* all waiters, but none if one is missing */
} reach;

typedef struct row {
    const char *name;
    void (*set_up)(void);
    int (*wait)(waiter *w);
    void (*grant)(void);
    /* checks what is left; got has the grant, NULL: no waiter has */
    void (*check)(const waiter *got);
    int (*wait_behind)(waiter *w); /* the second waiter's, if it differs */
    void (*give_back)(waiter *w);
    void (*before)(void), (*after)(void); /* around the race */
    void (*end)(const waiter *first, const waiter *second);
    reach reach;
    bool always_holds; /* there is something to release even after a refusal */
    bool hands_on;     /* giving it back is a grant to the next waiter */
    int rc;            /* of a wait that was granted */
    conc_queue queue;
} row;

typedef enum way { CANCEL_TASK, CANCEL_SCOPE, UNSHIELD, TIME_LIMIT, WAYS } way;
static const char *const way_names[] = {"cancel of the task", "cancel of the scope",
                                        "end of the shield", "time limit"};

struct waiter {
    const row *row;
    int (*wait)(waiter *w);
    way way;
    double limit;
    int number, item, rc, next, end;
    bool over;
    void *value;
    conc_task task;
    conc_scope outer, inner;
    conc_event leave;
};

typedef struct plan {
    const row *row;
    way way;
    bool grant_first, two;
} plan;

static struct world {
    conc_lock lock;
    conc_rwlock rwlock;
    conc_sem sem;
    conc_event event, never;
    conc_cond cond;
    conc_barrier barrier;
    conc_latch latch;
    conc_future future;
    conc_queue queue, never_filled;
    conc_limiter limiter;
    int got[8], got_count;
    const plan *plan;
} w0;

/* The limiter's token and the timer's expiry come at 2 s; the waiter's time limit is just before or
 * after that. */
enum { EARLY = 1, MOMENT = 2, LATE = 3 };

/* ---- reports that name the row */

#define EXPECT(condition) \
    ((condition) ? (void)0 : complain(__LINE__, "not true: " #condition, 1, 0))
#define EXPECT_INT(actual, expected) \
    expect_int(__LINE__, #actual, (long long)(actual), (long long)(expected))

static void complain(int line, const char *what, long long actual, long long expected)
{
    const plan *p = w0.plan;
    test_fail(__FILE__, line, "%s, %s, %s, %s: %s: %lld, not %lld", p->row->name, way_names[p->way],
              p->grant_first ? "grant first" : "grant second",
              p->two ? "two waiters" : "one waiter", what, actual, expected);
}

static void expect_int(int line, const char *what, long long actual, long long expected)
{
    if (actual != expected)
        complain(line, what, actual, expected);
}

/* ---- lock, rwlock, semaphore */

static void lock_take(void) { EXPECT_INT(conc_lock_try_acquire(&w0.lock), 0); }
static int lock_wait(waiter *w) { return (void)w, conc_lock_acquire(&w0.lock); }
static void lock_give(void) { EXPECT_INT(conc_lock_release(&w0.lock), 0); }
static void lock_give_back(waiter *w)
{
    EXPECT(conc_lock_owner(&w0.lock) == &w->task);
    lock_give();
}
static void lock_check(const waiter *got)
{
    EXPECT(conc_lock_owner(&w0.lock) == (got ? &got->task : NULL));
}

static void rwlock_take_read(void) { EXPECT_INT(conc_rwlock_try_acquire_read(&w0.rwlock), 0); }
static void rwlock_take_write(void) { EXPECT_INT(conc_rwlock_try_acquire_write(&w0.rwlock), 0); }
static int rwlock_wait_read(waiter *w) { return (void)w, conc_rwlock_acquire_read(&w0.rwlock); }
static int rwlock_wait_write(waiter *w) { return (void)w, conc_rwlock_acquire_write(&w0.rwlock); }
static void rwlock_give(void) { EXPECT_INT(conc_rwlock_release(&w0.rwlock), 0); }
static void rwlock_give_back(waiter *w) { (void)w, rwlock_give(); }
static void rwlock_check(const waiter *got)
{
    int rc = conc_rwlock_try_acquire_write(&w0.rwlock);
    EXPECT_INT(rc, got ? -EAGAIN : 0);
    if (rc == 0)
        rwlock_give();
}

static void sem_none(void) { w0.sem = (conc_sem)CONC_SEM(0, .max = 1); }
static int sem_wait_for(waiter *w) { return (void)w, conc_sem_acquire(&w0.sem); }
static void sem_give(void) { EXPECT_INT(conc_sem_release(&w0.sem), 0); }
static void sem_give_back(waiter *w) { (void)w, sem_give(); }
static void sem_check(const waiter *got) { EXPECT_INT(w0.sem.permits, got ? 0 : 1); }
static void sem_end(const waiter *first, const waiter *second)
{
    (void)first, (void)second;
    EXPECT_INT(w0.sem.permits, 1); /* the one that main released */
    EXPECT_INT(conc_sem_release(&w0.sem), -EOVERFLOW);
}

/* ---- event, condition, barrier, latch, future */

static void nothing(void) {}
static int event_wait_for(waiter *w) { return (void)w, conc_event_wait(&w0.event); }
static void event_set(void) { conc_event_set(&w0.event); }
static void event_pulse(void)
{
    conc_event_set(&w0.event);
    conc_event_clear(&w0.event);
}
static void event_check_set(const waiter *got)
{
    (void)got, EXPECT_INT(conc_event_is_set(&w0.event), true);
}
static void event_check_clear(const waiter *got)
{
    (void)got, EXPECT_INT(conc_event_is_set(&w0.event), false);
}

static int cond_wait_for(waiter *w)
{
    EXPECT_INT(conc_lock_acquire(&w0.lock), 0);
    int rc = conc_cond_wait(&w0.cond, &w0.lock);
    EXPECT(conc_lock_owner(&w0.lock) == &w->task);
    return rc;
}
static void cond_notify_one(void) { conc_cond_notify(&w0.cond, 1); }
static void cond_notify_all(void) { conc_cond_notify_all(&w0.cond); }

static void barrier_set_up(void) { w0.barrier = (conc_barrier)CONC_BARRIER(w0.plan->two ? 3 : 2); }
static int barrier_wait_at(waiter *w)
{
    int rc = conc_barrier_wait(&w0.barrier);
    w->item = rc < 0 ? 0 : 1 + rc;
    return rc < 0 ? rc : 0;
}
static int barrier_arrive(void *arg)
{
    int rc = conc_barrier_wait(&w0.barrier);
    if (arg)
        *(int *)arg = rc;
    return 0;
}
/* The last party arrives, or gives up after a while because a party is missing. */
static void barrier_complete(void)
{
    int index = 4711;
    conc_scope s = {0};
    EXPECT_INT(conc_scope_begin(&s, 5), 0);
    EXPECT_INT(barrier_arrive(&index), 0);
    EXPECT_INT(conc_scope_end(&s, index),
               w0.plan->grant_first ? w0.barrier.parties - 1 : -ETIMEDOUT);
}
/* Other parties replace the cancelled one and complete the barrier, which is not broken. */
static void barrier_after(void)
{
    if (w0.plan->grant_first)
        return;
    conc_group g = {0};
    int indices[2] = {-1, -1};
    for (int i = 0; i < 2; i++) {
        EXPECT_INT(conc_spawn(&g, barrier_arrive, &indices[i]), 0);
        EXPECT_INT(conc_settle(), 0);
    }
    EXPECT_INT(conc_group_wait(&g), 0);
    EXPECT_INT(indices[0], w0.plan->two ? 1 : 0);
    EXPECT_INT(indices[1], w0.plan->two ? 2 : 1);
}
static void barrier_end(const waiter *first, const waiter *second)
{
    EXPECT_INT(first->item, w0.plan->grant_first ? 1 : 0);
    if (second)
        EXPECT_INT(second->item, w0.plan->grant_first ? 2 : 1);
}

static void latch_add_one(void) { EXPECT_INT(conc_latch_add(&w0.latch, 1), 0); }
static int latch_wait_for(waiter *w) { return (void)w, conc_latch_wait(&w0.latch); }
static void latch_open(void) { EXPECT_INT(conc_latch_done(&w0.latch), 0); }
static void latch_pulse(void)
{
    latch_open();
    latch_add_one();
}
static void latch_check(const waiter *got) { (void)got, EXPECT_INT(conc_latch_wait(&w0.latch), 0); }
static void latch_check_up(const waiter *got)
{
    (void)got, EXPECT_INT(conc_latch_done(&w0.latch), 0);
}

static int future_wait_for(waiter *w) { return conc_future_wait(&w0.future, &w->value); }
static void future_set(void) { EXPECT_INT(conc_future_set(&w0.future, 7, &w0), 0); }
static void future_fail(void) { EXPECT_INT(conc_future_set(&w0.future, -EIO, &w0), 0); }
static void future_set_cancelled(void)
{
    EXPECT_INT(conc_future_set(&w0.future, -ECANCELED, &w0), 0);
}
static void future_check(const waiter *got)
{
    EXPECT(conc_future_is_set(&w0.future));
    EXPECT_INT(conc_future_set(&w0.future, 1, NULL), -EALREADY);
    EXPECT(!got || got->value == &w0);
}

/* ---- queue */

/* the items that main puts: 100, 101, ...; waiters put ten times their number */
enum { FIRST_ITEM = 100 };

static bool less_int(const void *a, const void *b) { return *(const int *)a < *(const int *)b; }

static void queue_put_next(void)
{
    int item = FIRST_ITEM + w0.got_count++;
    EXPECT_INT(conc_queue_try_put(&w0.queue, &item), 0);
}
static void queue_put_two(void)
{
    queue_put_next();
    queue_put_next();
}
static void queue_get_next(void)
{
    EXPECT_INT(conc_queue_try_get(&w0.queue, &w0.got[w0.got_count++]), 0);
}
static int queue_wait_get(waiter *w) { return conc_queue_get(&w0.queue, &w->item); }
static int queue_wait_put(waiter *w)
{
    int item = w->number * 10;
    return conc_queue_put(&w0.queue, &item);
}
static void queue_close(void) { conc_queue_close(&w0.queue); }
static void queue_fill(void) { EXPECT_INT(conc_queue_try_put(&w0.queue, &(int){FIRST_ITEM}), 0); }
static void queue_check_get(const waiter *got)
{
    EXPECT_INT(conc_queue_len(&w0.queue), got ? 0 : 1);
    EXPECT_INT(got ? got->item : FIRST_ITEM, FIRST_ITEM);
}
static void queue_end_get(const waiter *first, const waiter *second)
{
    int items[2] = {0, 0}, count = 0, left = 0;
    if (first->rc == 0)
        items[count++] = first->item;
    if (second)
        items[count++] = second->item;
    while (count < w0.got_count && conc_queue_try_get(&w0.queue, &left) == 0)
        items[count++] = left;
    EXPECT_INT(count, w0.got_count);
    for (int i = 0; i < count; i++) {
        EXPECT_INT(items[i], FIRST_ITEM + i);
        EXPECT_INT(conc_queue_task_done(&w0.queue), 0);
    }
    EXPECT_INT(conc_queue_join(&w0.queue), 0);
}
/* {put; put; cancel}: the second item goes to the second waiter, or stays in the queue. */
static void queue_check_two(const waiter *got)
{
    int others = w0.plan->two ? 1 : 0;
    EXPECT_INT(conc_queue_len(&w0.queue), w0.plan->grant_first ? 1 - others : 2 - others);
    EXPECT_INT(got ? got->item : FIRST_ITEM, FIRST_ITEM);
}
static void queue_check_put(const waiter *got)
{
    EXPECT_INT(conc_queue_len(&w0.queue), got ? 1 : 0);
}
static void queue_end_put(const waiter *first, const waiter *second)
{
    int expected = 0;
    while (conc_queue_try_get(&w0.queue, &w0.got[w0.got_count]) == 0)
        w0.got_count++;
    EXPECT_INT(w0.got[expected++], FIRST_ITEM);
    if (first->rc == 0)
        EXPECT_INT(w0.got[expected++], 10);
    if (second)
        EXPECT_INT(w0.got[expected++], 20);
    EXPECT_INT(w0.got_count, expected);
}
static void queue_check_closed(const waiter *got)
{
    (void)got;
    EXPECT_INT(conc_queue_try_put(&w0.queue, &(int){1}), -EPIPE);
}
static void queue_check_closed_full(const waiter *got)
{
    int item = 0;
    queue_check_closed(got);
    EXPECT_INT(conc_queue_try_get(&w0.queue, &item), 0);
    EXPECT_INT(item, FIRST_ITEM); /* a putter's item was not added */
    EXPECT_INT(conc_queue_try_get(&w0.queue, &item), -EPIPE);
}
static void queue_take_one(void)
{
    queue_fill();
    EXPECT_INT(conc_queue_try_get(&w0.queue, &w0.got[0]), 0);
}
static int queue_wait_join(waiter *w) { return (void)w, conc_queue_join(&w0.queue); }
static void queue_done(void) { EXPECT_INT(conc_queue_task_done(&w0.queue), 0); }
static void queue_done_and_put(void)
{
    queue_done();
    queue_fill();
}
static void queue_check_join(const waiter *got)
{
    (void)got, EXPECT_INT(conc_queue_join(&w0.queue), 0);
}
static void queue_check_rejoin(const waiter *got)
{
    (void)got, EXPECT_INT(conc_queue_task_done(&w0.queue), 0);
}
static void queue_destroy(void) { conc_queue_destroy(&w0.queue); }

/* ---- limiter: time grants */

static void block_until(double t) { EXPECT_INT(conc_block(t - conc_now()), 0); }

static void limiter_empty(void)
{
    w0.limiter = (conc_limiter){.rate = 1, .per = MOMENT};
    EXPECT_INT(conc_limiter_try_acquire(&w0.limiter, 1), 0);
}
static int limiter_wait(waiter *w) { return (void)w, conc_limiter_acquire(&w0.limiter, 1); }
static void pass_moment(void) { block_until(conc_now() < MOMENT ? MOMENT : 2 * MOMENT); }
static void limiter_check(const waiter *got)
{
    EXPECT_INT(conc_limiter_try_acquire(&w0.limiter, 1), got ? -EAGAIN : 0);
}

/* ---- select: the tested case is between two that never happen */

static int select_one(conc_case wanted)
{
    int item = 0;
    conc_case c[] = {CONC_CASE_EVENT(&w0.never), wanted, CONC_CASE_GET(&w0.never_filled, &item),
                     CONC_CASE_AFTER(1000)};
    int chosen = conc_select(c, CONC_LEN(c));
    EXPECT(chosen < 0 || chosen == 1);
    return chosen < 0 ? chosen : c[1].result;
}
static int select_get(waiter *w)
{
    return select_one((conc_case)CONC_CASE_GET(&w0.queue, &w->item));
}
static int select_put(waiter *w)
{
    int item = w->number * 10;
    return select_one((conc_case)CONC_CASE_PUT(&w0.queue, &item));
}
static int select_event(waiter *w)
{
    return (void)w, select_one((conc_case)CONC_CASE_EVENT(&w0.event));
}
static int select_after(waiter *w)
{
    return (void)w, select_one((conc_case)CONC_CASE_AFTER(MOMENT));
}
static void check_nothing(const waiter *got) { (void)got; }

/* ---- the table */

#define INTS(n, ...) .queue = CONC_QUEUE(int, n, __VA_ARGS__)
/* clang-format off */
#define GIVES(fn) .give_back = (fn), .hands_on = true
#define COND(notify, how_many) nothing, cond_wait_for, notify, lock_check, .give_back = lock_give_back, \
    .always_holds = true, .reach = (how_many)
#define CONTENDED .before = lock_take, .after = lock_give
static const row rows[] = {
    {"lock", lock_take, lock_wait, lock_give, lock_check, GIVES(lock_give_back)},
    {"rwlock write", rwlock_take_write, rwlock_wait_write, rwlock_give, rwlock_check, GIVES(rwlock_give_back)},
    {"rwlock write behind a reader", rwlock_take_read, rwlock_wait_write, rwlock_give, rwlock_check, rwlock_wait_read,
     GIVES(rwlock_give_back)},
    {"rwlock read", rwlock_take_write, rwlock_wait_read, rwlock_give, rwlock_check, GIVES(rwlock_give_back), .reach = ALL},
    {"rwlock read before a writer", rwlock_take_write, rwlock_wait_read, rwlock_give, rwlock_check, rwlock_wait_write,
     GIVES(rwlock_give_back)},
    {"semaphore", sem_none, sem_wait_for, sem_give, sem_check, GIVES(sem_give_back), .end = sem_end},
    {"event", nothing, event_wait_for, event_set, event_check_set, .reach = ALL},
    {"event set and cleared", nothing, event_wait_for, event_pulse, event_check_clear, .reach = ALL},
    {"condition", COND(cond_notify_one, ONE)},
    {"condition notified by the lock's owner", COND(cond_notify_one, ONE), CONTENDED},
    {"condition, all notified", COND(cond_notify_all, ALL_BY_TURNS)},
    {"condition, all notified by the lock's owner", COND(cond_notify_all, ALL_BY_TURNS), CONTENDED},
    {"barrier", barrier_set_up, barrier_wait_at, barrier_complete, check_nothing, .after = barrier_after,
     .end = barrier_end, .reach = ALL_OR_NONE},
    {"latch", latch_add_one, latch_wait_for, latch_open, latch_check, .reach = ALL},
    {"latch down and up", latch_add_one, latch_wait_for, latch_pulse, latch_check_up, .reach = ALL},
    {"future", nothing, future_wait_for, future_set, future_check, .reach = ALL, .rc = 7},
    {"future that failed", nothing, future_wait_for, future_fail, future_check, .reach = ALL, .rc = -EIO},
    {"future that was cancelled", nothing, future_wait_for, future_set_cancelled, future_check, .reach = ALL,
     .rc = -ECANCELED},
    {"queue get", nothing, queue_wait_get, queue_put_next, queue_check_get, .end = queue_end_get, INTS(1, )},
    {"queue get, no limit", nothing, queue_wait_get, queue_put_next, queue_check_get, .end = queue_end_get, INTS(0, )},
    {"queue get, last in first out", nothing, queue_wait_get, queue_put_next, queue_check_get, .end = queue_end_get,
     INTS(0, .kind = CONC_QUEUE_LIFO)},
    {"queue get by priority", nothing, queue_wait_get, queue_put_next, queue_check_get, .end = queue_end_get,
     INTS(0, .less = less_int)},
    {"queue get, two put", nothing, queue_wait_get, queue_put_two, queue_check_two, .end = queue_end_get, .reach = ALL,
     INTS(0, )},
    {"queue get, two put by priority", nothing, queue_wait_get, queue_put_two, queue_check_two, .end = queue_end_get,
     .reach = ALL, INTS(0, .less = less_int)},
    {"queue put", queue_fill, queue_wait_put, queue_get_next, queue_check_put, .end = queue_end_put, INTS(1, )},
    {"queue put, last in first out", queue_fill, queue_wait_put, queue_get_next, queue_check_put, .end = queue_end_put,
     INTS(1, .kind = CONC_QUEUE_LIFO)},
    {"queue put by priority", queue_fill, queue_wait_put, queue_get_next, queue_check_put, .end = queue_end_put,
     INTS(1, .less = less_int)},
    {"queue get, closed", nothing, queue_wait_get, queue_close, queue_check_closed, .reach = ALL, .rc = -EPIPE, INTS(1, )},
    {"queue put, closed", queue_fill, queue_wait_put, queue_close, queue_check_closed_full, .reach = ALL, .rc = -EPIPE,
     INTS(1, )},
    {"queue get, destroyed", nothing, queue_wait_get, queue_destroy, queue_check_closed, .reach = ALL, .rc = -EPIPE,
     INTS(1, )},
    {"queue join", queue_take_one, queue_wait_join, queue_done, queue_check_join, .reach = ALL, INTS(1, )},
    {"queue join, then put", queue_take_one, queue_wait_join, queue_done_and_put, queue_check_rejoin, .reach = ALL,
     INTS(1, )},
    {"queue join, destroyed", queue_take_one, queue_wait_join, queue_destroy, queue_check_closed, .reach = ALL,
     .rc = -EPIPE, INTS(1, )},
    {"limiter", limiter_empty, limiter_wait, pass_moment, limiter_check, .reach = ONE},
    {"select get", nothing, select_get, queue_put_next, queue_check_get, .end = queue_end_get, INTS(1, )},
    {"select get before get", nothing, select_get, queue_put_next, queue_check_get, queue_wait_get,
     .end = queue_end_get, INTS(1, )},
    {"get before select get", nothing, queue_wait_get, queue_put_next, queue_check_get, select_get,
     .end = queue_end_get, INTS(1, )},
    {"select get, two put", nothing, select_get, queue_put_two, queue_check_two, .end = queue_end_get, .reach = ALL,
     INTS(0, )},
    {"select put", queue_fill, select_put, queue_get_next, queue_check_put, .end = queue_end_put, INTS(1, )},
    {"select put before put", queue_fill, select_put, queue_get_next, queue_check_put, queue_wait_put,
     .end = queue_end_put, INTS(1, )},
    {"put before select put", queue_fill, queue_wait_put, queue_get_next, queue_check_put, select_put,
     .end = queue_end_put, INTS(1, )},
    {"select get, closed", nothing, select_get, queue_close, queue_check_closed, .reach = ALL, .rc = -EPIPE, INTS(1, )},
    {"select put, closed", queue_fill, select_put, queue_close, queue_check_closed_full, .reach = ALL, .rc = -EPIPE,
     INTS(1, )},
    {"select event", nothing, select_event, event_set, event_check_set, .reach = ALL},
    {"select event set and cleared", nothing, select_event, event_pulse, event_check_clear, event_wait_for, .reach = ALL},
    {"select after", nothing, select_after, pass_moment, check_nothing, .reach = ALL},
};
/* clang-format on */

/* ---- one case: a row, a way, an order, one or two waiters */

static int waits(void *arg)
{
    waiter *w = arg;
    conc_scope held = {0};
    EXPECT_INT(conc_scope_begin(&w->outer, CONC_FOREVER), 0);
    EXPECT_INT(conc_scope_begin(&w->inner, w->limit), 0);
    conc_scope_shield(&w->inner, w->way == UNSHIELD);
    w->rc = w->wait(w);
    w->over = true;
    w->next = conc_yield();
    EXPECT_INT(conc_scope_begin(&held, CONC_FOREVER), 0);
    conc_scope_shield(&held, true);
    bool granted = w->rc == w->row->rc;
    if (granted)
        EXPECT_INT(conc_event_wait(&w->leave), 0);
    if (w->row->give_back && (granted || w->row->always_holds))
        w->row->give_back(w);
    EXPECT_INT(conc_scope_end(&held, 0), 0);
    w->end = conc_scope_end(&w->outer, conc_scope_end(&w->inner, w->next));
    return 0;
}

static void start(conc_group *g, waiter *w)
{
    EXPECT_INT(conc_spawn_task(g, &w->task, waits, w), 0);
    EXPECT_INT(conc_settle(), 0);
    EXPECT(!w->over);
}

static void leave(waiter *w)
{
    conc_event_set(&w->leave);
    EXPECT_INT(conc_settle(), 0);
    EXPECT(conc_done(&w->task));
}

static void cut_short(waiter *w)
{
    if (w->way == CANCEL_TASK)
        EXPECT_INT(conc_cancel(&w->task), 0);
    else if (w->way == CANCEL_SCOPE)
        conc_scope_cancel(&w->inner);
    else if (w->way == UNSHIELD)
        conc_scope_shield(&w->inner, false);
    else
        block_until(w->limit);
}

static void race(const plan *p, waiter *w)
{
    if (p->grant_first)
        p->row->grant();
    cut_short(w);
    if (!p->grant_first)
        p->row->grant();
}

static void check_second(const plan *p, waiter *w)
{
    reach reach = p->row->reach;
    if (!w->over) {
        EXPECT(p->grant_first && (reach == ONE || reach == ALL_BY_TURNS));
        EXPECT(!p->row->hands_on && reach != ALL_BY_TURNS);
        p->row->grant();
        EXPECT_INT(conc_settle(), 0);
    }
    EXPECT(w->over);
    EXPECT_INT(w->rc, p->row->rc);
    EXPECT_INT(w->next, 0);
    leave(w);
    EXPECT_INT(w->end, 0);
}

static int run_case(void *arg)
{
    const plan *p = arg;
    const row *r = p->row;
    conc_stats before, after;
    conc_group g = {0};
    waiter first = {r, r->wait, p->way, CONC_FOREVER, .number = 1}, second = first;
    static const int ends[] = {-ECANCELED, 0, 0, -ETIMEDOUT};
    if (p->way == TIME_LIMIT)
        first.limit = p->grant_first ? LATE : EARLY;
    second.way = CANCEL_TASK;
    second.number = 2;
    second.wait = r->wait_behind ? r->wait_behind : r->wait;
    r->set_up();
    conc_get_stats(&before);
    start(&g, &first);
    if (p->two)
        start(&g, &second);
    if (p->way == UNSHIELD)
        conc_scope_cancel(&first.outer);
    EXPECT_INT(conc_settle(), 0);
    EXPECT(!first.over);
    if (r->before)
        r->before();
    race(p, &first);
    if (r->after)
        r->after();
    EXPECT_INT(conc_settle(), 0);

    EXPECT(first.over);
    EXPECT_INT(first.rc, p->grant_first ? r->rc : -ECANCELED);
    EXPECT_INT(first.next, -ECANCELED);
    if (!p->grant_first)
        EXPECT(!first.item && !first.value);
    if (p->two)
        EXPECT_INT(second.over, p->grant_first ? r->reach == ALL || r->reach == ALL_OR_NONE : true);
    r->check(p->grant_first ? &first : p->two ? &second : NULL);
    leave(&first);
    EXPECT_INT(first.end, ends[p->way]);
    if (p->two)
        check_second(p, &second);
    if (r->end)
        r->end(&first, p->two ? &second : NULL);
    EXPECT_INT(conc_group_wait(&g), 0);
    conc_get_stats(&after);
    EXPECT_INT(after.timers, before.timers);
    EXPECT_INT(after.tasks, 1);
    if (r->give_back == lock_give_back)
        lock_check(NULL);
    if (r->give_back == rwlock_give_back)
        rwlock_check(NULL);
    conc_queue_destroy(&w0.queue);
    return 0;
}

static void run_rows(way way, bool debug)
{
    for (size_t i = 0; i < CONC_LEN(rows); i++)
        for (int variant = 0; variant < 4; variant++) {
            plan p = {&rows[i], way, variant & 1, variant & 2};
            conc_options o = {.virtual_clock = true, .debug = debug, .slow_step = 1000};
            w0 = (struct world){
                .plan = &p, .queue = rows[i].queue, .never_filled = CONC_QUEUE(int, 1)};
            EXPECT_INT(conc_run_with(&o, run_case, &p), 0);
        }
}

TEST(a_grant_wins_over_a_later_cancel_of_the_task_and_an_earlier_one_wins)
{
    run_rows(CANCEL_TASK, false);
}
TEST(a_grant_wins_over_a_later_cancel_of_the_scope_and_an_earlier_one_wins)
{
    run_rows(CANCEL_SCOPE, false);
}
TEST(a_grant_wins_over_a_later_end_of_the_shield_and_an_earlier_one_wins)
{
    run_rows(UNSHIELD, false);
}
TEST(a_grant_wins_over_a_later_time_limit_and_an_earlier_one_wins) { run_rows(TIME_LIMIT, false); }

TEST(a_grant_wins_in_debug_mode_too)
{
    for (way way = 0; way < WAYS; way++)
        run_rows(way, true);
}

/* ---- two cancels, and a cancel of each waiter */

typedef struct taker {
    int number, rc;
    conc_task task;
} taker;

static int takes_a_permit(void *arg)
{
    taker *t = arg;
    t->rc = conc_sem_acquire(&w0.sem);
    return 0;
}

/* Of `count` waiters, cancels those whose bit is set in `cut`, with `permits` releases before and
 * as many after. */
static void cancel_some(unsigned cut, int count, int before, int after)
{
    taker takers[4];
    conc_group g = {0};
    int granted = 0, expected = 0;
    w0.sem = (conc_sem){0};
    for (int i = 0; i < count; i++) {
        takers[i] = (taker){i, 4711, {0}};
        CHECK_INT(conc_spawn_task(&g, &takers[i].task, takes_a_permit, &takers[i]), 0);
        CHECK_INT(conc_settle(), 0);
    }
    for (int i = 0; i < before; i++)
        CHECK_INT(conc_sem_release(&w0.sem), 0);
    for (int i = count - 1; i >= 0; i--)
        if (cut & 1U << i)
            CHECK_INT(conc_cancel(&takers[i].task), 0);
    for (int i = 0; i < after; i++)
        CHECK_INT(conc_sem_release(&w0.sem), 0);
    CHECK_INT(conc_settle(), 0);
    for (int i = 0, left = after; i < count; i++) {
        int rc = i < before ? 0 : cut & 1U << i ? -ECANCELED : left-- > 0 ? 0 : 4711;
        CHECK_INT(takers[i].rc, rc);
        granted += rc == 0;
        expected += rc == 4711;
    }
    CHECK_INT(w0.sem.permits, before + after - granted);
    for (int i = 0; i < expected; i++)
        CHECK_INT(conc_sem_release(&w0.sem), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(if_some_waiters_are_cancelled_the_first_of_the_others_are_served)
{
    for (unsigned cut = 0; cut < 16; cut++)
        for (int before = 0; before <= 4; before++)
            for (int after = 0; before + after <= 5; after++)
                cancel_some(cut, 4, before, after);
}
