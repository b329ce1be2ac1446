/* test_random_sync.c - random programs over all primitives of conc_sync.h, compared with a model
 * that predicts what each call does.
 *
 * A program is a few tasks that acquire, release, wait, set, notify, put, get, close, select and
 * limit, with time limits, shields and cancels, and a main task that interferes and checks
 * whenever all others wait. Its seed determines it. The model knows which tasks wait in which
 * queue of waiters. It learns of each call just before it is made, and decides each wait at the
 * moment of the grant, the cancel or the time limit, whichever comes first; so it holds under any
 * order of ready tasks:
 *   - all or nothing: a call returns what was decided, and has had its effect or none;
 *   - conservation: permits held and free, items put, got and queued, owners and readers add up;
 *   - the order of waiters, and that no try_ call overtakes them;
 *   - no lost wake-up: when all tasks wait, none waits for something available or already granted;
 *   - no leaks: at the end no task, timer, stack or waiter is left.
 * random_test.h tells how to repeat one by hand.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, seeds, riscv64, gcc-asan (the
 * programs have their own seeds)
 */
#define TEST_SYNC
#include "random_test.h"

enum {
    TASKS = 9, /* 0 is main */
    LOCKS = 2,
    SEMS = 2,
    EVENTS = 2,
    CONDS = 2,
    FUTURES = 3,
    QUEUES = 4,
    LIMITERS = 3,
    CASES = 4,
    PARTIES = 3,
    GROUPS_OF_PRIORITY = 4,
    MAX_ITEMS = 512,
    MAX_TIMES = 2048
};

/* the queues in which tasks wait */
enum {
    LOCK,
    RWLOCK = LOCK + LOCKS,
    SEM,
    EVENT = SEM + SEMS,
    COND = EVENT + EVENTS,
    BARRIER = COND + CONDS,
    LATCH,
    FUTURE,
    GET = FUTURE + FUTURES,
    PUT = GET + QUEUES,
    FINISH = PUT + QUEUES,
    LIMITER = FINISH + QUEUES,
    JOIN = LIMITER + LIMITERS,
    LINES = JOIN + TASKS,
    SLEEP,
    SELECT
};

typedef struct task {
    conc_task handle;
    int index;
    uint64_t random;
    bool started, ended;
    int result;
    /* its wait */
    bool waits, decided, relocking;
    /* line: -1 if there are several, or none */
    int called, line, lock, amount, outcome, chosen, item, relocked;
    int puts[CASES];
    int64_t due; /* of a sleep or the earliest AFTER */
    int due_case;
    /* its cancels */
    conc_scope scope;
    bool asked, open, cancelled, expired, shielded;
    int64_t limit;
    int cut_short;
    /* what it holds, according to its calls' results */
    bool locks[LOCKS], writes;
    int reads, permits[SEMS], got[QUEUES], put[QUEUES];
} task;

typedef struct entry {
    task *t;
    int index; /* the index of the case */
} entry;

typedef struct line {
    entry entries[TASKS * CASES];
    int count;
} line;

typedef struct item {
    int value, came;
} item;

typedef struct queue {
    conc_queue real;
    bool counts, closed;
    int kind, capacity, count, unfinished, arrivals, dropped;
    item items[MAX_ITEMS];
} queue;

/* Its time is in fractions of a nanosecond, of which a quarter of a token takes an integral
 * number. */
typedef struct limiter {
    conc_limiter real;
    int64_t parts;   /* fractions in a nanosecond */
    int64_t quarter; /* fractions that a quarter of a token takes */
    int64_t full_at; /* when the bucket is full again */
    int quarters;    /* its capacity */
} limiter;

static struct model {
    int64_t now;
    int64_t times[MAX_TIMES]; /* of all timers so far: no two are the same */
    int time_count, steps, items;
    bool closing;
    task tasks[TASKS];
    int task_count;
    line lines[LINES];
    task *owners[LOCKS], *writer;
    int readers, permits[SEMS], released[SEMS];
    bool set[EVENTS], future_set[FUTURES];
    int latch, future_rc[FUTURES];
    queue queues[QUEUES];
    limiter limiters[LIMITERS];
    /* the real objects */
    conc_lock real_locks[LOCKS];
    conc_rwlock real_rwlock;
    conc_sem real_sems[SEMS];
    conc_event real_events[EVENTS];
    conc_cond real_conds[CONDS];
    conc_barrier real_barrier;
    conc_latch real_latch;
    conc_future real_futures[FUTURES];
} m;

static struct {
    long programs, steps, waited, granted, cut_short, expired, late, relocked, selected, items;
} total;

static void log_step(const task *t, const char *what, int which, long long value)
{
    m.steps++;
    random_log(m.now, t->index, what, which, value);
}

static uint64_t draw(task *t) { return random_draw(&t->random); }
static int pick(task *t, int n) { return random_pick(&t->random, n); }
static bool one_in(task *t, int n) { return pick(t, n) == 0; }

/* A time from now, in ns, at which no other timer ends, so that the order of their ends is
 * known. */
static int64_t pick_time(task *t)
{
    int64_t time = (1 + pick(t, 16)) * INT64_C(62500000) + pick(t, 1000000);
    EXPECT(m.time_count < MAX_TIMES);
    for (int i = 0; i < m.time_count; i++)
        if (m.times[i] == m.now + time) {
            time++;
            i = -1;
        }
    m.times[m.time_count++] = m.now + time;
    return time;
}

/* ---- the model: queues of waiters */

static bool cancelled(const task *t) { return t->cancelled || (t->asked && !t->shielded); }

static void append(int line, task *t, int index)
{
    struct line *l = &m.lines[line];
    EXPECT(l->count < TASKS * CASES);
    l->entries[l->count++] = (entry){t, index};
    t->line = line;
}

static entry *first(int line) { return m.lines[line].count ? &m.lines[line].entries[0] : NULL; }

static void leave_lines(const task *t)
{
    for (line *l = m.lines; l < m.lines + LINES; l++) {
        int kept = 0;
        for (int i = 0; i < l->count; i++)
            if (l->entries[i].t != t)
                l->entries[kept++] = l->entries[i];
        l->count = kept;
    }
}

static void decide(task *t, int chosen, int outcome, int item)
{
    EXPECT(t->waits && !t->decided);
    leave_lines(t);
    t->decided = true;
    t->relocking = false;
    t->chosen = chosen;
    t->outcome = outcome;
    t->item = item;
    t->due = NEVER;
}

static void serve_all(int line, int outcome)
{
    for (entry *e; (e = first(line));)
        decide(e->t, e->index, outcome, 0);
}

static void pass_lock(int i)
{
    entry *e = first(LOCK + i);
    m.owners[i] = e ? e->t : NULL;
    if (e)
        decide(e->t, 0, e->t->relocking ? e->t->relocked : 0, 0);
}

static void relock(task *t, int outcome)
{
    leave_lines(t);
    total.relocked++;
    t->relocking = true;
    t->relocked = outcome;
    append(LOCK + t->lock, t, 0);
    if (!m.owners[t->lock])
        pass_lock(t->lock);
}

static void serve_rwlock(void)
{
    for (entry *e; (e = first(RWLOCK)) && !m.writer && (!e->t->amount || !m.readers);) {
        if (e->t->amount)
            m.writer = e->t;
        else
            m.readers++;
        decide(e->t, 0, 0, 0);
    }
}

/* When n tokens will be available, in ns: the bucket was or will be full at full_at. */
static int64_t limiter_due(const limiter *k, int n)
{
    int64_t at = k->full_at - (k->quarters - 4 * n) * k->quarter;
    return at / k->parts + (at % k->parts > 0);
}

static bool limiter_take(limiter *k, int n)
{
    if (k->full_at + k->parts <= m.now * k->parts) /* full for a nanosecond or longer */
        k->full_at = m.now * k->parts;
    if (limiter_due(k, n) > m.now)
        return false;
    k->full_at += 4 * n * k->quarter;
    return true;
}

static void serve_limiter(int i)
{
    for (entry *e; (e = first(LIMITER + i)) && limiter_take(&m.limiters[i], e->t->amount);)
        decide(e->t, 0, 0, 0);
}

static void notify(int i, int n)
{
    for (entry *e; n > 0 && (e = first(COND + i)); n--)
        relock(e->t, 0);
}

/* A cancel is in force for the task: ends its wait, if it can be cancelled. */
static void cut_wait_short(task *t)
{
    if (!cancelled(t) || !t->waits || t->decided || t->relocking)
        return;
    int line = t->line;
    bool was_first = line >= 0 && first(line) && first(line)->t == t;
    if (line >= COND && line < COND + CONDS) {
        relock(t, -ECANCELED);
        return;
    }
    decide(t, -1, -ECANCELED, 0);
    if (line == RWLOCK)
        serve_rwlock();
    /* otherwise the clock has not reached the first one's token yet */
    if (line >= LIMITER && line < JOIN && was_first)
        serve_limiter(line - LIMITER);
}

/* ---- the model: queues */

static bool before(const queue *q, const item *a, const item *b)
{
    int x = a->value % GROUPS_OF_PRIORITY, y = b->value % GROUPS_OF_PRIORITY;
    if (q->kind == CONC_QUEUE_LIFO)
        return a->came > b->came;
    return q->kind == CONC_QUEUE_PRIORITY && x != y ? x < y : a->came < b->came;
}

static void store(queue *q, int value)
{
    EXPECT(q->count < MAX_ITEMS);
    q->items[q->count++] = (item){value, q->arrivals++};
    q->unfinished++;
}

static int model_put(int i, int value)
{
    queue *q = &m.queues[i];
    entry *e = first(GET + i);
    if (q->closed)
        return -EPIPE;
    if (e) {
        q->unfinished++;
        decide(e->t, e->index, 0, value);
        return 0;
    }
    if (q->capacity && q->count >= q->capacity)
        return -EAGAIN;
    store(q, value);
    return 0;
}

static int model_get(int i, int *value)
{
    queue *q = &m.queues[i];
    entry *e = first(PUT + i);
    int best = 0;
    if (!q->count)
        return q->closed ? -EPIPE : -EAGAIN;
    for (int k = 1; k < q->count; k++)
        if (before(q, &q->items[k], &q->items[best]))
            best = k;
    *value = q->items[best].value;
    q->items[best] = q->items[--q->count];
    if (e) {
        store(q, e->t->puts[e->index]);
        decide(e->t, e->index, 0, 0);
    }
    return 0;
}

static void model_close(int i)
{
    if (m.queues[i].closed)
        return;
    m.queues[i].closed = true;
    serve_all(GET + i, -EPIPE);
    serve_all(PUT + i, -EPIPE);
}

/* ---- the model: time */

/* The next time at which something is due; whose: a task's, or NULL: this limiter's. */
static int64_t next_timer(task **whose, int *limiter)
{
    int64_t next = NEVER;
    *whose = NULL;
    for (int i = 0; i < LIMITERS; i++) {
        const entry *e = first(LIMITER + i);
        int64_t at = e ? limiter_due(&m.limiters[i], e->t->amount) : NEVER;
        if (at < next) {
            next = at;
            *limiter = i;
        }
    }
    for (task *t = m.tasks; t < m.tasks + TASKS; t++) {
        int64_t at = t->open && t->limit < t->due ? t->limit : t->due;
        if (at < next) {
            next = at;
            *whose = t;
        }
    }
    return next;
}

/* Time has moved: performs what was due meanwhile, in order. */
static void follow_time(void)
{
    task *t;
    int i = 0;
    m.now = random_now();
    for (int64_t at; (at = next_timer(&t, &i)) <= m.now;) {
        if (!t) {
            const entry head = *first(LIMITER + i);
            serve_limiter(i);
            EXPECT(head.t->decided);
        } else if (t->open && t->limit == at) {
            t->limit = NEVER;
            t->expired = !t->cancelled;
            t->cancelled = true;
            total.late += t->decided;
            cut_wait_short(t);
        } else {
            decide(t, t->due_case, 0, 0);
        }
    }
}

/* ---- comparing the real objects with the model */

static void check_world(void)
{
    for (int i = 0; i < LOCKS; i++)
        EXPECT(conc_lock_owner(&m.real_locks[i]) == (m.owners[i] ? &m.owners[i]->handle : NULL));
    for (int i = 0; i < SEMS; i++)
        EXPECT_INT(m.real_sems[i].permits, m.permits[i]);
    for (int i = 0; i < EVENTS; i++)
        EXPECT_INT(conc_event_is_set(&m.real_events[i]), m.set[i]);
    for (int i = 0; i < FUTURES; i++)
        EXPECT_INT(conc_future_is_set(&m.real_futures[i]), m.future_set[i]);
    for (int i = 0; i < QUEUES; i++)
        EXPECT_INT(conc_queue_len(&m.queues[i].real), m.queues[i].count);
}

static void check_nobody_waits_for_what_is_there(void)
{
    for (int i = 0; i < LOCKS; i++)
        EXPECT(m.owners[i] || !first(LOCK + i));
    if (first(RWLOCK))
        EXPECT(m.writer || (first(RWLOCK)->t->amount && m.readers));
    for (int i = 0; i < SEMS; i++)
        EXPECT(!m.permits[i] || !first(SEM + i));
    for (int i = 0; i < EVENTS; i++)
        EXPECT(!m.set[i] || !first(EVENT + i));
    for (int i = 0; i < FUTURES; i++)
        EXPECT(!m.future_set[i] || !first(FUTURE + i));
    for (int i = 0; i < QUEUES; i++) {
        const queue *q = &m.queues[i];
        EXPECT(!first(GET + i) || (!q->count && !q->closed));
        EXPECT(!first(PUT + i) || (q->capacity && q->count == q->capacity && !q->closed));
        EXPECT(!first(FINISH + i) || q->unfinished);
    }
    EXPECT(m.lines[BARRIER].count < PARTIES);
    EXPECT(m.latch || !first(LATCH));
    for (int i = 0; i < LIMITERS; i++) {
        const entry *e = first(LIMITER + i);
        EXPECT(!e || limiter_due(&m.limiters[i], e->t->amount) > m.now);
    }
}

/* All but main wait: granted or cancelled tasks have continued, and what the tasks hold adds up
 * with what is left. */
static void check_settled(void)
{
    int permits[SEMS] = {0}, items[QUEUES] = {0}, readers = 0;
    for (task *t = m.tasks; t < m.tasks + m.task_count; t++) {
        if (t->index)
            EXPECT(!t->started || t->ended || (t->waits && !t->decided));
        for (int i = 0; i < LOCKS; i++)
            EXPECT_INT(t->locks[i] && !(t->waits && t->called == COND && t->lock == i),
                       m.owners[i] == t);
        EXPECT_INT(t->writes, m.writer == t);
        readers += t->reads;
        for (int i = 0; i < SEMS; i++)
            permits[i] += t->permits[i];
        for (int i = 0; i < QUEUES; i++)
            items[i] += t->put[i] - t->got[i];
    }
    EXPECT_INT(readers, m.readers);
    for (int i = 0; i < SEMS; i++)
        EXPECT_INT(permits[i] + m.permits[i], m.released[i]);
    for (int i = 0; i < QUEUES; i++)
        EXPECT_INT(items[i], m.queues[i].count + m.queues[i].dropped);
    check_nobody_waits_for_what_is_there();
    check_world();
}

/* ---- calls that may wait: in the model, the real one, and the required result */

typedef struct call {
    int line;   /* LOCK to JOIN, SLEEP or SELECT: the call */
    int which;  /* indices of the objects */
    int amount; /* to write, tokens, the lock of a condition */
    int value;  /* to put */
    int64_t time;
    /* of a select: the objects of the cases, and where received items are stored */
    conc_case cases[CASES];
    int lines[CASES], n, got[CASES];
    int64_t times[CASES];
    void *pointer;
} call;

static bool select_now(task *t, const call *c, int k)
{
    int which = c->lines[k], item = -1, rc = -EAGAIN;
    if (which == SLEEP)
        rc = c->times[k] <= 0 ? 0 : -EAGAIN;
    else if (which >= JOIN) {
        rc = m.tasks[which - JOIN].ended ? 0 : -EAGAIN;
        item = m.tasks[which - JOIN].result;
    } else if (which >= PUT)
        rc = model_put(which - PUT, t->puts[k]);
    else if (which >= GET)
        rc = model_get(which - GET, &item);
    else
        rc = m.set[which - EVENT] ? 0 : -EAGAIN;
    if (rc != -EAGAIN)
        decide(t, k, rc, item);
    return rc != -EAGAIN;
}

static void model_select(task *t, const call *c)
{
    for (int k = 0; k < c->n; k++)
        if (select_now(t, c, k))
            return;
    for (int k = 0; k < c->n; k++)
        if (c->lines[k] != SLEEP) {
            append(c->lines[k], t, k);
        } else if (m.now + c->times[k] < t->due) {
            t->due = m.now + c->times[k];
            t->due_case = k;
        }
}

static void model_barrier(task *t)
{
    if (m.lines[BARRIER].count + 1 < PARTIES) {
        append(BARRIER, t, 0);
        return;
    }
    for (int i = 0; first(BARRIER); i++)
        decide(first(BARRIER)->t, 0, i, 0);
    decide(t, 0, PARTIES - 1, 0);
}

static void model_queue(task *t, const call *c)
{
    int item = -1, rc = c->line == GET ? model_get(c->which, &item) : model_put(c->which, c->value);
    t->puts[0] = c->value;
    if (rc == -EAGAIN)
        append(c->line + c->which, t, 0);
    else
        decide(t, 0, rc, item);
}

/* decided immediately if the call can succeed, otherwise the task joins the queue */
static void take_or_wait(task *t, const call *c, bool there, int outcome)
{
    if (there)
        decide(t, 0, outcome, 0);
    else
        append(c->line + c->which, t, 0);
}

static void model_call(task *t, const call *c)
{
    int i = c->which;
    bool there;
    t->amount = c->amount;
    switch (c->line) {
    case LOCK:
        there = !m.owners[i];
        if (there)
            m.owners[i] = t;
        take_or_wait(t, c, there, 0);
        break;
    case RWLOCK:
        append(RWLOCK, t, 0);
        serve_rwlock();
        break;
    case SEM:
        there = m.permits[i] > 0;
        m.permits[i] -= there;
        take_or_wait(t, c, there, 0);
        break;
    case EVENT: take_or_wait(t, c, m.set[i], 0); break;
    case COND:
        t->lock = c->amount;
        pass_lock(t->lock);
        append(COND + i, t, 0);
        break;
    case BARRIER: model_barrier(t); break;
    case LATCH: take_or_wait(t, c, m.latch == 0, 0); break;
    case FUTURE: take_or_wait(t, c, m.future_set[i], m.future_rc[i]); break;
    case GET:
    case PUT: model_queue(t, c); break;
    case FINISH: take_or_wait(t, c, m.queues[i].unfinished == 0, 0); break;
    case LIMITER:
        there = !first(LIMITER + i) && limiter_take(&m.limiters[i], c->amount);
        take_or_wait(t, c, there, 0);
        break;
    case JOIN:
        if (m.tasks[i].ended)
            decide(t, 0, 0, m.tasks[i].result);
        else
            append(JOIN + i, t, 0);
        break;
    case SLEEP:
        t->due = m.now + c->time;
        t->due_case = 0;
        break;
    default: model_select(t, c); break;
    }
}

static int real_call(call *c)
{
    int i = c->which;
    switch (c->line) {
    case LOCK: return conc_lock_acquire(&m.real_locks[i]);
    case RWLOCK:
        return c->amount ? conc_rwlock_acquire_write(&m.real_rwlock)
                         : conc_rwlock_acquire_read(&m.real_rwlock);
    case SEM: return conc_sem_acquire(&m.real_sems[i]);
    case EVENT: return conc_event_wait(&m.real_events[i]);
    case COND: return conc_cond_wait(&m.real_conds[i], &m.real_locks[c->amount]);
    case BARRIER: return conc_barrier_wait(&m.real_barrier);
    case LATCH: return conc_latch_wait(&m.real_latch);
    case FUTURE: return conc_future_wait(&m.real_futures[i], &c->pointer);
    case GET: return conc_queue_get(&m.queues[i].real, &c->got[0]);
    case PUT: return conc_queue_put(&m.queues[i].real, &c->value);
    case FINISH: return conc_queue_join(&m.queues[i].real);
    case LIMITER: return conc_limiter_acquire(&m.limiters[i].real, c->amount);
    case JOIN: return conc_join(&m.tasks[i].handle, &c->got[0]);
    case SLEEP: return conc_sleep(random_seconds(c->time));
    default: return conc_select(c->cases, (size_t)c->n);
    }
}

static void check_item(const task *t, const call *c, int line, int got)
{
    bool brings = (line >= GET && line < PUT && !m.queues[line - GET].counts) ||
                  (line >= JOIN && line < LINES);
    if (c->line == SELECT && line >= JOIN && line < LINES)
        got = c->cases[t->chosen].result;
    EXPECT_INT(got, brings && t->outcome == 0 ? t->item : -1);
}

/* Gives the task what the call has acquired, according to its result. */
static void own(task *t, const call *c, int line, int rc)
{
    int i = c->which;
    if (rc < 0)
        return;
    if (line >= LOCK && line < RWLOCK)
        t->locks[i] = true;
    else if (line == RWLOCK)
        c->amount ? (void)(t->writes = true) : (void)t->reads++;
    else if (line >= SEM && line < EVENT)
        t->permits[i]++;
    else if (line >= GET && line < PUT)
        t->got[line - GET]++;
    else if (line >= PUT && line < FINISH)
        t->put[line - PUT]++;
}

static int make_call(task *t, call *c)
{
    for (int k = 0; k < CASES; k++)
        c->got[k] = -1;
    c->pointer = NULL;
    t->waits = true;
    t->decided = false;
    t->called = c->line;
    t->line = -1;
    t->due = NEVER;
    t->chosen = -1;
    if (cancelled(t))
        decide(t, -1, -ECANCELED, 0);
    else
        model_call(t, c);
    total.waited += !t->decided;
    bool waited = !t->decided;
    int rc = real_call(c);
    follow_time();
    EXPECT(t->decided);
    t->waits = false;
    total.cut_short += rc == -ECANCELED;
    total.granted += waited && rc >= 0;
    if (c->line != SELECT || t->chosen < 0) {
        EXPECT_INT(rc, t->outcome);
        for (int k = 0; k < CASES; k++)
            check_item(t, c,
                       k || rc < 0       ? SLEEP
                       : c->line < SLEEP ? c->line + c->which
                                         : SLEEP,
                       c->got[k]);
        own(t, c, c->line < SLEEP ? c->line + c->which : SLEEP, rc);
        EXPECT(c->pointer ==
               (c->line == FUTURE && rc >= 0 ? (void *)&m.real_futures[c->which] : NULL));
    } else {
        EXPECT_INT(rc, t->chosen);
        int line = c->lines[rc];
        EXPECT_INT(c->cases[rc].result, line >= JOIN && line < LINES ? t->item : t->outcome);
        for (int k = 0; k < c->n; k++)
            check_item(t, c, k != rc || (line >= JOIN && line < LINES) ? SLEEP : line, c->got[k]);
        own(t, c, line, c->cases[rc].result);
        total.selected += waited;
    }
    t->cut_short += rc == -ECANCELED;
    total.items += t->chosen >= 0 && t->item > 0;
    check_world();
    return rc;
}

/* ---- steps that may wait */

static task *pick_other(task *t)
{
    task *other = &m.tasks[1 + pick(t, TASKS - 1)];
    return other != t && other->started ? other : NULL;
}

static int new_item(void) { return ++m.items; }

static void fill_case(task *t, call *c, int k)
{
    int i = pick(t, QUEUES);
    task *other = pick_other(t);
    static const int64_t at_once[] = {0, -1000};
    switch (pick(t, 8)) {
    case 0:
    case 1:
    case 2:
        c->lines[k] = GET + i;
        c->cases[k] = (conc_case)CONC_CASE_GET(&m.queues[i].real, &c->got[k]);
        break;
    case 3:
    case 4:
        c->lines[k] = PUT + i;
        t->puts[k] = new_item();
        c->cases[k] = (conc_case)CONC_CASE_PUT(&m.queues[i].real, &t->puts[k]);
        break;
    case 5:
        i = pick(t, EVENTS);
        c->lines[k] = EVENT + i;
        c->cases[k] = (conc_case)CONC_CASE_EVENT(&m.real_events[i]);
        break;
    case 6:
        if (other && !m.closing) {
            c->lines[k] = JOIN + other->index;
            c->cases[k] = (conc_case)CONC_CASE_JOIN(&other->handle);
            break;
        } /* fall through */
    default:
        c->lines[k] = SLEEP;
        c->times[k] = one_in(t, 6) ? at_once[pick(t, 2)] : pick_time(t);
        c->cases[k] = (conc_case)CONC_CASE_AFTER(random_seconds(c->times[k]));
        break;
    }
}

static int step_select(task *t)
{
    call c = {.line = SELECT, .n = 1 + pick(t, CASES)};
    for (int k = 0; k < c.n; k++) {
        if (k && one_in(t, 5)) { /* the same again */
            c.lines[k] = c.lines[k - 1];
            c.times[k] = c.times[k - 1];
            c.cases[k] = c.cases[k - 1];
            t->puts[k] = t->puts[k - 1];
            if (c.lines[k] >= GET && c.lines[k] < PUT)
                c.cases[k].to = &c.got[k];
        } else {
            fill_case(t, &c, k);
        }
    }
    int rc = make_call(t, &c);
    log_step(t, "select", c.n, rc);
    return rc;
}

static int lock_of(const task *t)
{
    for (int i = 0; i < LOCKS; i++)
        if (t->locks[i])
            return i;
    return -1;
}

/* Asks for what it already has: a reported mistake that changes nothing. */
static bool asks_twice(const task *t, const call *c)
{
    if (c->line == LOCK && t->locks[c->which])
        EXPECT_INT(conc_lock_acquire(&m.real_locks[c->which]), -EDEADLK);
    else if (c->line == RWLOCK && t->writes)
        EXPECT_INT(real_call(&(call){.line = RWLOCK, .amount = c->amount}), -EDEADLK);
    else
        return false;
    return true;
}

static int try_lock(task *t, int i)
{
    int rc = m.owners[i] == t ? -EDEADLK : m.owners[i] ? -EAGAIN : 0;
    EXPECT_INT(conc_lock_try_acquire(&m.real_locks[i]), rc);
    if (rc == 0) {
        m.owners[i] = t;
        t->locks[i] = true;
    }
    return rc;
}

static int step_wait(task *t)
{
    static const struct {
        int line, of;
        const char *name;
    } kinds[] = {{LOCK, LOCKS, "lock"},
                 {LOCK, LOCKS, "lock"},
                 {RWLOCK, 1, "rwlock"},
                 {RWLOCK, 1, "rwlock"},
                 {SEM, SEMS, "semaphore"},
                 {SEM, SEMS, "semaphore"},
                 {EVENT, EVENTS, "event"},
                 {COND, CONDS, "condition"},
                 {COND, CONDS, "condition"},
                 {BARRIER, 1, "barrier"},
                 {LATCH, 1, "latch"},
                 {FUTURE, FUTURES, "future"},
                 {GET, QUEUES, "get"},
                 {GET, QUEUES, "get"},
                 {PUT, QUEUES, "put"},
                 {PUT, QUEUES, "put"},
                 {FINISH, QUEUES, "queue join"},
                 {LIMITER, LIMITERS, "limiter"},
                 {LIMITER, LIMITERS, "limiter"},
                 {JOIN, 0, "join"},
                 {SLEEP, 1, "sleep"}};
    int kind = pick(t, CONC_LEN(kinds)), lock = lock_of(t);
    task *other = pick_other(t);
    call c = {.line = kinds[kind].line, .value = new_item()};
    if (c.line == COND && lock < 0 && try_lock(t, pick(t, LOCKS)) == 0)
        lock = lock_of(t);
    if ((c.line == COND && lock < 0) || (c.line == JOIN && (!other || m.closing)))
        return 0;
    c.which = c.line == JOIN ? other->index : pick(t, kinds[kind].of);
    c.amount = one_in(t, 3);
    if (c.line == COND)
        c.amount = lock;
    else if (c.line == LIMITER)
        c.amount = 1 + pick(t, m.limiters[c.which].quarters / 4);
    c.time = pick_time(t);
    if (asks_twice(t, &c))
        return 0;
    int rc = make_call(t, &c);
    if (c.line == COND)
        EXPECT(m.owners[lock] == t);
    log_step(t, kinds[kind].name, c.which, rc);
    return rc;
}

static int step_yield(task *t)
{
    bool before = cancelled(t);
    int rc = conc_yield();
    follow_time();
    EXPECT(rc == 0 || (rc == -ECANCELED && (before || cancelled(t))));
    if (before)
        EXPECT_INT(rc, -ECANCELED);
    t->cut_short += rc == -ECANCELED;
    log_step(t, "yield", 0, 0);
    return rc;
}

static int step_inside(task *t)
{
    switch (pick(t, 8)) {
    case 0: return step_yield(t);
    case 1:
    case 2:
    case 3: return step_select(t);
    default: return step_wait(t);
    }
}

/* A step in a scope, which others may find. */
static void step_in_scope(task *t)
{
    int64_t limit = one_in(t, 4) ? NEVER : one_in(t, 12) ? 0 : pick_time(t);
    memset(&t->scope, 0, sizeof t->scope);
    t->open = true;
    t->cancelled = t->expired = limit == 0;
    t->limit = limit == NEVER || limit == 0 ? NEVER : m.now + limit;
    t->shielded = !m.closing && one_in(t, 5);
    EXPECT_INT(conc_scope_begin(&t->scope, limit == NEVER ? CONC_FOREVER : random_seconds(limit)),
               0);
    if (t->shielded)
        conc_scope_shield(&t->scope, true);
    EXPECT_INT(conc_cancelled(), cancelled(t));
    int rc = step_inside(t), expected = rc;
    if (rc == -ECANCELED && t->cancelled && !t->asked)
        expected = t->expired ? -ETIMEDOUT : 0;
    EXPECT_INT(conc_cancelled(), cancelled(t));
    int ended = conc_scope_end(&t->scope, rc);
    if (!(t->asked && t->shielded && rc == -ECANCELED)) /* then two causes are correct */
        EXPECT_INT(ended, expected);
    EXPECT_INT(t->scope.expired, t->expired);
    EXPECT_INT(t->scope.cancel_called, t->cancelled);
    total.expired += ended == -ETIMEDOUT;
    t->open = t->cancelled = t->shielded = false;
    t->limit = NEVER;
    log_step(t, "scope", t->expired, ended);
}

/* ---- steps that do not wait: these may be called anywhere, including posted functions */

static int signal_event(task *t, int i)
{
    bool set = one_in(t, 2), pulse = one_in(t, 4);
    if (set || pulse) {
        m.set[i] = true;
        serve_all(EVENT + i, 0);
        conc_event_set(&m.real_events[i]);
    }
    if (!set || pulse) {
        m.set[i] = false;
        conc_event_clear(&m.real_events[i]);
    }
    return set;
}

static int notify_cond(task *t, int i)
{
    int n = pick(t, 4);
    notify(i, n == 3 ? TASKS : n);
    if (n == 3)
        conc_cond_notify_all(&m.real_conds[i]);
    else
        conc_cond_notify(&m.real_conds[i], n);
    return n;
}

static int count_latch(task *t)
{
    int n = pick(t, 4) - 2, rc = m.latch + n < 0 ? -EOVERFLOW : 0;
    if (rc == 0 && (m.latch += n) == 0)
        serve_all(LATCH, 0);
    EXPECT_INT(n == -1 ? conc_latch_done(&m.real_latch) : conc_latch_add(&m.real_latch, n), rc);
    return rc;
}

static int set_future(task *t, int i)
{
    int rc = m.future_set[i] ? -EALREADY : 0, value = pick(t, 100);
    if (rc == 0) {
        m.future_set[i] = true;
        m.future_rc[i] = value;
        serve_all(FUTURE + i, value);
    }
    EXPECT_INT(conc_future_set(&m.real_futures[i], value, &m.real_futures[i]), rc);
    return rc;
}

static int give_permit(task *t, int i)
{
    int rc =
        first(SEM + i) || !m.real_sems[i].max || m.permits[i] < m.real_sems[i].max ? 0 : -EOVERFLOW;
    if (first(SEM + i))
        decide(first(SEM + i)->t, 0, 0, 0);
    else
        m.permits[i] += rc == 0;
    EXPECT_INT(conc_sem_release(&m.real_sems[i]), rc);
    if (t->permits[i])
        t->permits[i] -= rc == 0;
    else
        m.released[i] += rc == 0;
    return rc;
}

static int try_queue(task *t, int i)
{
    int value = new_item(), got = -1, expected = -1, rc;
    if (one_in(t, 2)) {
        rc = model_put(i, value);
        EXPECT_INT(conc_queue_try_put(&m.queues[i].real, &value), rc);
        t->put[i] += rc == 0;
    } else {
        rc = model_get(i, &expected);
        EXPECT_INT(conc_queue_try_get(&m.queues[i].real, &got), rc);
        EXPECT_INT(got, m.queues[i].counts ? -1 : expected);
        t->got[i] += rc == 0;
    }
    return rc;
}

static int finish_item(int i)
{
    queue *q = &m.queues[i];
    int rc = q->unfinished ? 0 : -EOVERFLOW;
    if (rc == 0 && --q->unfinished == 0)
        serve_all(FINISH + i, 0);
    EXPECT_INT(conc_queue_task_done(&q->real), rc);
    return rc;
}

static int close_queue(int i)
{
    model_close(i);
    conc_queue_close(&m.queues[i].real);
    return 0;
}

static int destroy_queue(int i)
{
    queue *q = &m.queues[i];
    model_close(i);
    q->dropped += q->count;
    q->unfinished -= q->count; /* items already taken still need a task_done */
    q->count = 0;
    serve_all(FINISH + i, -EPIPE);
    conc_queue_destroy(&q->real);
    return 1;
}

static int try_limiter(task *t, int i)
{
    limiter *k = &m.limiters[i];
    int n = 1 + pick(t, k->quarters / 4 + 1), rc = 4 * n > k->quarters ? -EINVAL : 0;
    if (rc == 0 && (first(LIMITER + i) || !limiter_take(k, n)))
        rc = -EAGAIN;
    EXPECT_INT(conc_limiter_try_acquire(&k->real, n), rc);
    return rc;
}

static void meddle(task *t)
{
    follow_time();
    int what = pick(t, 12), rc = 0, q = pick(t, QUEUES);
    switch (what) {
    case 0: rc = signal_event(t, pick(t, EVENTS)); break;
    case 1:
    case 2: rc = notify_cond(t, pick(t, CONDS)); break;
    case 3: rc = count_latch(t); break;
    case 4: rc = set_future(t, pick(t, FUTURES)); break;
    case 5:
        rc = t->index && !t->permits[0] && !t->permits[1] ? 0 : give_permit(t, t->permits[1] > 0);
        break;
    case 6:
    case 7: rc = try_queue(t, q); break;
    case 8:
    case 9: rc = finish_item(q); break;
    case 10: rc = one_in(t, 16) ? close_queue(q) : one_in(t, 24) ? destroy_queue(q) : 0; break;
    default: rc = try_limiter(t, pick(t, LIMITERS)); break;
    }
    log_step(t, "meddle", what, rc);
    check_world();
}

static void meddle_when_posted(void *arg) { meddle(arg); }

/* ---- steps that do not wait, of tasks */

static int release_lock(task *t, int i)
{
    int rc = t->locks[i] ? 0 : -EPERM;
    if (rc == 0)
        pass_lock(i);
    t->locks[i] = false;
    EXPECT_INT(conc_lock_release(&m.real_locks[i]), rc);
    return rc;
}

static int release_rwlock(task *t)
{
    if (!t->writes && !t->reads && m.readers) /* it would count as one of the readers */
        return 0;
    int rc = t->writes || t->reads ? 0 : -EPERM;
    if (t->writes)
        m.writer = NULL;
    else if (t->reads)
        m.readers--, t->reads--;
    t->writes = false;
    serve_rwlock();
    EXPECT_INT(conc_rwlock_release(&m.real_rwlock), rc);
    return rc;
}

static int try_rwlock(task *t)
{
    bool write = one_in(t, 2);
    int rc = m.writer == t                                       ? -EDEADLK
             : m.writer || first(RWLOCK) || (write && m.readers) ? -EAGAIN
                                                                 : 0;
    EXPECT_INT(write ? conc_rwlock_try_acquire_write(&m.real_rwlock)
                     : conc_rwlock_try_acquire_read(&m.real_rwlock),
               rc);
    if (rc == 0 && write)
        t->writes = (m.writer = t) != NULL;
    else if (rc == 0)
        t->reads++, m.readers++;
    return rc;
}

static int try_sem(task *t, int i)
{
    int rc = m.permits[i] && !first(SEM + i) ? 0 : -EAGAIN;
    EXPECT_INT(conc_sem_try_acquire(&m.real_sems[i]), rc);
    m.permits[i] -= rc == 0;
    t->permits[i] += rc == 0;
    return rc;
}

static int cancel_other(task *t, task *other)
{
    if (!other)
        return 0;
    int what = pick(t, 4), rc = 0;
    if (what == 0) {
        EXPECT_INT(conc_done(&other->handle), other->ended);
        EXPECT_INT(conc_cancel(&other->handle), rc = other->ended ? -EALREADY : 0);
        other->asked = true;
    } else if (what == 1 && other->open) {
        conc_scope_cancel(&other->scope);
        other->cancelled = true;
        other->limit = NEVER;
    } else if (what == 2 && other->open) {
        other->shielded = !other->shielded && !m.closing;
        conc_scope_shield(&other->scope, other->shielded);
    } else if (what == 3 && other->open) {
        int64_t limit = pick_time(t);
        rc = other->cancelled ? -EINVAL : 0;
        EXPECT_INT(conc_scope_set_timeout(&other->scope, random_seconds(limit)), rc);
        other->limit = rc ? NEVER : m.now + limit;
    }
    cut_wait_short(other);
    return rc;
}

static int block(task *t)
{
    EXPECT_INT(conc_block(random_seconds(pick_time(t))), 0);
    follow_time();
    return 0;
}

static void act(task *t)
{
    int what = pick(t, 10), rc = 0, i = pick(t, LOCKS);
    switch (what) {
    case 0:
    case 1: rc = t->index ? release_lock(t, i) : 0; break;
    case 2:
    case 3: rc = t->index ? release_rwlock(t) : 0; break;
    case 4: rc = t->index ? try_lock(t, i) : 0; break;
    case 5: rc = t->index ? try_rwlock(t) : 0; break;
    case 6: rc = t->index ? try_sem(t, pick(t, SEMS)) : 0; break;
    case 7: rc = one_in(t, 3) ? block(t) : 0; break;
    default: rc = cancel_other(t, pick_other(t)); break;
    }
    log_step(t, "act", what, rc);
    check_world();
}

/* ---- programs */

static void give_back_everything(task *t)
{
    for (int i = 0; i < LOCKS; i++)
        if (t->locks[i])
            (void)release_lock(t, i);
    while (t->writes || t->reads)
        (void)release_rwlock(t);
    for (int i = 0; i < SEMS; i++)
        while (t->permits[i])
            if (give_permit(t, i) < 0) /* main has filled it meanwhile: this one is lost */
                t->permits[i]--, m.released[i]--;
}

static int run_task(void *arg)
{
    enum { MAX_CUT_SHORT = 4 };
    task *t = arg;
    int steps = 4 + pick(t, 24);
    for (int i = 0; i < steps && t->cut_short < MAX_CUT_SHORT; i++) {
        follow_time();
        switch (pick(t, 6)) {
        case 0: meddle(t); break;
        case 1:
        case 2: act(t); break;
        case 3: (void)step_inside(t); break;
        default: step_in_scope(t); break;
        }
        check_world();
    }
    follow_time();
    give_back_everything(t);
    t->ended = true;
    for (entry *e; (e = first(JOIN + t->index));)
        decide(e->t, e->index, 0, t->result);
    log_step(t, "end", 0, t->result);
    return t->result;
}

static void settle(void)
{
    EXPECT_INT(conc_settle(), 0);
    follow_time();
    check_settled();
}

static void meddle_and_look(task *main)
{
    settle();
    for (int i = pick(main, 5); i >= 0; i--) /* several events in one moment */
        one_in(main, 3) ? act(main) : meddle(main);
    if (one_in(main, 3)) /* and limits that pass in it, before any task runs */
        (void)block(main);
    if (one_in(main, 3))
        EXPECT_INT(conc_post(conc_loop_self(), meddle_when_posted, main), 0);
    settle();
    call sleep = {.line = SLEEP, .time = pick_time(main)};
    EXPECT_INT(make_call(main, &sleep), 0);
}

static void end_all(conc_group *g)
{
    m.closing = true;
    for (task *t = m.tasks + 1; t < m.tasks + m.task_count; t++) {
        EXPECT_INT(conc_cancel(&t->handle), t->ended ? -EALREADY : 0);
        t->asked = true;
        if (t->open) {
            t->shielded = false;
            conc_scope_shield(&t->scope, false);
        }
        cut_wait_short(t);
    }
    settle();
    EXPECT_INT(conc_group_wait(g), 0);
    follow_time();
}

static int run_main(void *arg)
{
    task *main = arg;
    conc_group g = {0};
    conc_stats stats;
    int rounds = 4 + pick(main, 12);
    m.task_count = 2 + pick(main, TASKS - 1);
    for (int i = 1; i < m.task_count; i++) {
        task *t = &m.tasks[i];
        t->result = pick(main, 4);
        EXPECT_INT(conc_spawn_task(&g, &t->handle, run_task, t), 0);
        t->started = true;
        if (one_in(main, 4))
            settle();
    }
    for (int i = 0; i < rounds; i++)
        meddle_and_look(main);
    end_all(&g);
    for (line *l = m.lines; l < m.lines + LINES; l++)
        EXPECT_INT(l->count, 0);
    check_settled();
    conc_get_stats(&stats);
    EXPECT_INT(stats.tasks, 1);
    EXPECT_INT(stats.timers, 0);
    EXPECT_INT(stats.descriptors, 0);
    EXPECT_INT(stats.stacks, 1);
    for (int i = 0; i < QUEUES; i++) {
        conc_queue_destroy(&m.queues[i].real);
        EXPECT_INT(conc_queue_len(&m.queues[i].real), 0);
    }
    return 17;
}

static bool before_in_groups(const void *a, const void *b)
{
    return *(const int *)a % GROUPS_OF_PRIORITY < *(const int *)b % GROUPS_OF_PRIORITY;
}

/* Usually its tokens come at fractions of a nanosecond. */
static void set_up_limiter(task *main, limiter *k)
{
    int rate = 1 + pick(main, 12);
    int64_t per = rate * (INT64_C(60000000) + pick(main, 300000000)) + pick(main, rate);
    *k = (limiter){.parts = 4 * rate, .quarter = per, .quarters = 4 + pick(main, 12)};
    k->real =
        (conc_limiter){.rate = rate, .per = random_seconds(per), .burst = (double)k->quarters / 4};
}

static void set_up(uint64_t seed)
{
    memset(&m, 0, sizeof m);
    for (int i = 0; i < TASKS; i++)
        m.tasks[i] = (task){.index = i, .line = -1, .due = NEVER, .limit = NEVER};
    task *main = &m.tasks[0];
    main->random = random_source(seed);
    for (int i = 1; i < TASKS; i++)
        m.tasks[i].random = draw(main);
    for (int i = 0; i < SEMS; i++) {
        m.permits[i] = m.released[i] = pick(main, 3);
        m.real_sems[i] = (conc_sem){.permits = m.permits[i], .max = i ? 4 : 0};
    }
    for (int i = 0; i < QUEUES; i++) {
        queue *q = &m.queues[i];
        q->kind = pick(main, 3);
        q->capacity = pick(main, 4);
        q->counts = one_in(main, 6);
        if (q->counts)
            q->kind = CONC_QUEUE_FIFO;
        q->real = (conc_queue){.item_size = q->counts ? 0 : sizeof(int),
                               .capacity = (size_t)q->capacity,
                               .kind = q->kind,
                               .less = q->kind == CONC_QUEUE_PRIORITY ? before_in_groups : NULL};
    }
    m.latch = 0;
    m.real_barrier = (conc_barrier)CONC_BARRIER(PARTIES);
    for (int i = 0; i < LIMITERS; i++)
        set_up_limiter(main, &m.limiters[i]);
}

static void run_program(uint64_t seed, uint64_t order)
{
    conc_options o = {.virtual_clock = true, .seed = order};
    set_up(seed);
    EXPECT_INT(conc_run_with(&o, run_main, &m.tasks[0]), 17);
    total.programs++;
    total.steps += m.steps;
}

static void check_that_programs_do_what_they_are_for(void)
{
    long programs = total.programs;
    CHECK(total.steps / programs > 20 && total.waited / programs > 5);
    CHECK(total.granted / programs > 2 && total.late > 0);
    CHECK(total.cut_short > programs && total.expired > programs / 4);
    CHECK(total.selected > programs / 2 && total.items > programs);
    CHECK(total.relocked > programs / 4);
}

TEST(random_programs_over_all_primitives_agree_with_the_model_and_repeat_themselves)
{
    if (random_repeat(500, RANDOM_MIXED, run_program) >= 200)
        check_that_programs_do_what_they_are_for();
    if (random_program.verbose)
        fprintf(stderr,
                "%ld programs, %ld steps, %ld waits, %ld granted, %ld cut short, %ld timed out, "
                "%ld limits after a grant, %ld selects that waited, %ld conditions left, "
                "%ld items\n",
                total.programs, total.steps, total.waited, total.granted, total.cut_short,
                total.expired, total.late, total.selected, total.relocked, total.items);
}

TEST(one_random_program_agrees_with_the_model_under_many_orders)
{
    random_repeat_orders(20, run_program);
}
