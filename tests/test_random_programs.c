/* test_random_programs.c - random programs, compared with a model that predicts what every call
 * returns, and when.
 *
 * A program is a tree of tasks that sleep, yield, block the loop, open scopes and groups, spawn,
 * start, gather, join, cancel each other, move limits and shields, and use generators and locals;
 * its seed determines it. The model is no scheduler: it follows the program step by step, so it
 * holds under any order of ready tasks. After each call it knows
 *   - whether the caller is cancelled, and its deadline: conc_cancelled and conc_deadline must
 *   agree;
 *   - for each wait, whether it was granted or cancelled first;
 *   - when time may move: only when no task is ready, and then to the next timer;
 *   - what a scope's or group's end returns, and which errors are counted.
 * Where the order of two events is open (an error that cancels a waiter at the moment that grants
 * its wait), both results are correct. No task makes more than three checkpoints in a row that are
 * cut short: conc treats more as ignoring the cancel. random_test.h tells how to repeat one by
 * hand.
 */
#include "random_test.h"

/* ns; all times are multiples of it, which a double represents exactly */
#define EIGHTH INT64_C(125000000)

enum {
    MAX_TASKS = 48,
    MAX_SCOPES = 256,
    MAX_GROUPS = 64,
    MAX_DEPTH = 4,
    KEYS = 2,
    MAX_CUT_SHORT = 3
};

typedef struct task task;
typedef struct group group;

typedef struct scope {
    conc_scope real;
    bool open, named; /* named: other tasks may access it */
    bool cancelled, expired, shielded;
    int64_t at; /* its time limit, NEVER when not armed */
    uint64_t armed;
    struct scope *outer;
    task *owner;
} scope;

struct group {
    conc_group real;
    scope scope; /* the real one is inside the group's */
    task *owner;
    int limit, live, error, errors;
    bool keep_going, by_next, opened, closing, closed, cut_short, gathers;
    bool cancelled_around; /* was the owner cancelled when the last child ended? */
    task *finished[MAX_TASKS];
    int finished_count, taken;
    task *room[MAX_TASKS]; /* tasks that wait for a slot under the limit, in order */
    int room_count;
    int starved; /* waits for a slot that will run out of memory */
};

typedef enum kind { NO_WAIT, SLEEP, YIELD, JOIN, ROOM, NEXT, CLOSE, START } kind;
/* COMING: its conc_start waits for a slot, or has one and has not continued yet */
typedef enum state { UNUSED, COMING, SPAWNED, RUNNING, ENDED } state;

struct task {
    conc_task handle;
    state state;
    int index;
    bool has_handle, joinable, joined, asked, counted;
    group *group;
    scope *inner;
    uint64_t random;
    int result, cut_short;
    const void *locals[KEYS];
    /* its wait */
    kind wait;
    bool decided, either; /* either: two outcomes are right */
    int outcome;
    int64_t at;
    uint64_t armed;
    task *target; /* of a join or start */
    group *wants; /* the group in which it wants a slot */
    /* conc_start */
    task *starter;
    bool says, said, given_up;
};

static struct model {
    int64_t now;
    uint64_t arms;
    task tasks[MAX_TASKS];
    int task_count;
    scope scopes[MAX_SCOPES];
    int scope_count;
    group groups[MAX_GROUPS];
    int group_count;
    int generators, hook_calls, hook_least, hook_most;
    int starved; /* of all groups */
    long steps;
} m;

/* How often the allocator failed, in test_random_faults.c. */
static struct random_faults {
    bool on;
    uint64_t random; /* 0: never */
    long refused;
} random_faults;

static conc_local keys[KEYS];
static struct {
    long programs, steps, cut_short, timed_out, granted_late, joins, spawns, items, failures;
    long late_starts, refused, without_memory;
} total;

static void log_step(const task *t, const char *what, long long value)
{
    m.steps++;
    total.steps++;
    random_log(m.now, t->index, what, 0, value);
}

/* Did the call return -ENOMEM? Only if an allocation failed since `before`. */
static bool lacks_memory(int rc, long before)
{
    if (rc != -ENOMEM)
        return false;
    EXPECT(random_faults.refused > before || m.starved);
    total.without_memory++;
    return true;
}

static uint64_t draw(task *t) { return random_draw(&t->random); }
static int pick(task *t, int n) { return random_pick(&t->random, n); }
static bool one_in(task *t, int n) { return pick(t, n) == 0; }

/* ---- the model: cancels */

static bool cancelled_from(const task *t, const scope *s)
{
    for (;;) {
        for (; s; s = s->outer) {
            if (s->cancelled)
                return true;
            if (s->shielded)
                return false;
        }
        if (t->asked)
            return true;
        if (!t->group)
            return false;
        s = &t->group->scope;
        t = t->group->owner;
    }
}

static bool cancelled(const task *t) { return cancelled_from(t, t->inner); }
static bool group_cancelled(const group *g) { return cancelled_from(g->owner, &g->scope); }
static bool cancelled_around(const group *g) { return cancelled_from(g->owner, g->scope.outer); }

static int64_t deadline(const task *t)
{
    int64_t nearest = NEVER;
    const scope *s = t->inner;
    for (;;) {
        for (; s; s = s->outer) {
            if (s->at < nearest)
                nearest = s->at;
            if (s->shielded)
                return nearest;
        }
        if (!t->group)
            return nearest;
        s = &t->group->scope;
        t = t->group->owner;
    }
}

static bool waits(const task *t)
{
    return t->state == RUNNING && t->wait != NO_WAIT && !t->decided;
}

static void decide(task *t, int outcome)
{
    if (!waits(t))
        return;
    t->decided = true;
    t->outcome = outcome;
    t->at = NEVER;
}

static void leave_room_line(const task *t)
{
    group *g = t->wants;
    int kept = 0;
    for (int i = 0; i < g->room_count; i++)
        if (g->room[i] != t)
            g->room[kept++] = g->room[i];
    g->room_count = kept;
}

/* Ends the wait of a cancelled task. Returns true if that cancelled another one. */
static bool cut_wait_short(task *t)
{
    bool refused = t->wait == ROOM && group_cancelled(t->wants);
    if (!waits(t) || t->wait == CLOSE || !(cancelled(t) || refused))
        return false;
    decide(t, -ECANCELED);
    if (t->wait == ROOM)
        leave_room_line(t);
    t->given_up = t->wait == START;
    if (t->given_up)
        t->target->asked = true;
    return t->given_up;
}

/* After anything that may have cancelled a task. */
static void wake_cancelled(void)
{
    for (int i = 0; i < m.task_count; i++)
        if (cut_wait_short(&m.tasks[i]))
            i = -1;
}

static void cancel_scope(scope *s)
{
    if (!s->open || s->cancelled)
        return;
    s->cancelled = true;
    s->at = NEVER;
    wake_cancelled();
}

/* ---- the model: time */

static void expire(scope *s)
{
    s->at = NEVER;
    s->cancelled = s->expired = true;
    wake_cancelled();
}

static void set_limit(scope *s, int64_t after)
{
    s->at = NEVER;
    if (after <= 0)
        expire(s);
    else if (after != NEVER) {
        s->at = m.now + after;
        s->armed = ++m.arms;
    }
}

/* The first timer: a scope's or a sleeping task's. Returns its time. */
static int64_t first_timer(scope **of_scope, task **of_task)
{
    int64_t at = NEVER;
    uint64_t armed = 0;
    *of_scope = NULL;
    *of_task = NULL;
    for (int i = 0; i < m.scope_count; i++) {
        scope *s = &m.scopes[i];
        if (s->open && s->at != NEVER && (s->at < at || (s->at == at && s->armed < armed)))
            at = s->at, armed = s->armed, *of_scope = s;
    }
    for (int i = 0; i < m.task_count; i++) {
        task *t = &m.tasks[i];
        if (waits(t) && t->at != NEVER && (t->at < at || (t->at == at && t->armed < armed)))
            at = t->at, armed = t->armed, *of_task = t, *of_scope = NULL;
    }
    return at;
}

static void fire_until(int64_t now)
{
    scope *s;
    task *t;
    m.now = now;
    while (first_timer(&s, &t) <= now) {
        if (s)
            expire(s);
        else
            decide(t, 0);
    }
}

/* Called whenever a task continues. Time may have moved, but only while no task was ready, and only
 * from timer to timer. */
static void follow_time(void)
{
    scope *s;
    task *t;
    int64_t now = random_now();
    while (m.now < now) {
        for (int i = 0; i < m.task_count; i++) {
            task *other = &m.tasks[i];
            bool waits_for_started =
                other->wait == START && other->given_up && other->target->state != ENDED;
            bool exists = other->state == SPAWNED || other->state == RUNNING;
            if (exists && !waits(other) && !waits_for_started)
                test_fail(__FILE__, __LINE__,
                          "program %" PRIu64 ": time moved to %" PRId64
                          " while task %d (state %d, wait %d) was ready",
                          random_program.seed, now, i, (int)other->state, (int)other->wait);
        }
        int64_t next = first_timer(&s, &t);
        EXPECT(next <= now);
        fire_until(next);
    }
    EXPECT_INT(now, m.now);
}

/* ---- the model: scopes and waits */

static void open_scope(task *t, scope *s, int64_t limit)
{
    s->open = true;
    s->owner = t;
    s->outer = t->inner;
    t->inner = s;
    set_limit(s, limit);
}

/* What the end of the scope turns rc into. */
static int close_scope(task *t, scope *s, int rc)
{
    bool outside = !s->shielded && cancelled_from(t, s->outer);
    EXPECT(t->inner == s);
    t->inner = s->outer;
    s->open = false;
    s->at = NEVER;
    if (rc != -ECANCELED || !s->cancelled || outside)
        return rc;
    total.timed_out += s->expired;
    return s->expired ? -ETIMEDOUT : 0;
}

/* After each call: checks that model and conc agree on the caller. */
static void check_task(const task *t)
{
    EXPECT(conc_self() != NULL);
    EXPECT(t->state == RUNNING && t->wait == NO_WAIT);
    EXPECT(!t->group || !t->group->closed);
    EXPECT_INT(conc_cancelled(), cancelled(t));
    int64_t d = deadline(t);
    double said = conc_deadline();
    if (cancelled(t))
        EXPECT(said == -CONC_FOREVER);
    else if (d == NEVER)
        EXPECT(said == CONC_FOREVER);
    else
        EXPECT_INT(said * 1e9 + 0.5, d);
    for (int i = 0; i < KEYS; i++)
        EXPECT(conc_local_get(&keys[i]) == t->locals[i]);
}

static void begin_wait(task *t, kind k)
{
    t->wait = k;
    t->decided = t->either = t->given_up = false;
    t->outcome = 0;
    t->at = NEVER;
}

/* The call returned rc, and the wait's outcome is known; returns it. */
static int end_wait(task *t)
{
    follow_time();
    EXPECT(t->decided);
    t->wait = NO_WAIT;
    t->cut_short = t->outcome == -ECANCELED ? t->cut_short + 1 : 0;
    total.cut_short += t->outcome == -ECANCELED;
    total.granted_late += t->outcome >= 0 && cancelled(t);
    return t->outcome;
}

/* A checkpoint that was cut short on entry. */
static void check_cut_short(task *t, int rc)
{
    EXPECT_INT(rc, -ECANCELED);
    follow_time();
    t->cut_short++;
    total.cut_short++;
}

/* ---- steps; each returns 0 or more, or the error to continue with */

static int run_block(task *t, int depth);
static int run_task(void *arg);

static int step_sleep(task *t)
{
    static const int eighths[] = {-8, 0, 1, 2, 3, 4, 6, 8, 8, 12, 16, 24, 80};
    int64_t ns = eighths[pick(t, 13)] * EIGHTH;
    bool until = one_in(t, 4);
    bool cut = cancelled(t);
    begin_wait(t, ns > 0 ? SLEEP : YIELD);
    if (ns > 0)
        t->at = m.now + ns, t->armed = ++m.arms;
    else
        decide(t, 0);
    if (cut)
        t->wait = NO_WAIT, t->at = NEVER;
    double target = random_seconds(m.now + ns);
    int rc = until ? conc_sleep_until(target) : conc_sleep(random_seconds(ns));
    if (cut) {
        check_cut_short(t, rc);
    } else if (ns > 0) {
        EXPECT_INT(rc, end_wait(t));
    } else {
        /* a yield that is cancelled meanwhile may return that */
        t->outcome = rc == -ECANCELED && cancelled(t) ? rc : 0;
        EXPECT_INT(rc, end_wait(t));
    }
    log_step(t, "sleep", rc);
    return rc;
}

static int step_yield(task *t)
{
    bool cut = cancelled(t);
    if (!cut) {
        begin_wait(t, YIELD);
        decide(t, 0);
    }
    int rc = conc_yield();
    if (cut) {
        check_cut_short(t, rc);
    } else {
        t->outcome = rc == -ECANCELED && cancelled(t) ? rc : 0;
        EXPECT_INT(rc, end_wait(t));
    }
    log_step(t, "yield", rc);
    return rc;
}

static int step_block(task *t)
{
    int64_t until = m.now + pick(t, 12) * EIGHTH;
    EXPECT_INT(conc_block(random_seconds(until - m.now)), 0);
    EXPECT_INT(random_now(), until);
    fire_until(until);
    log_step(t, "hold the loop", 0);
    return 0;
}

static int64_t pick_limit(task *t)
{
    static const int eighths[] = {-1, 0, 1, 2, 4, 6, 8, 12, 16, 32};
    int i = pick(t, 14);
    return i < 10 ? eighths[i] * EIGHTH : NEVER;
}

/* An error that a construct returned: swallowed or passed on. A cancel that is still in force is
 * always passed on. */
static int handle(task *t, int rc)
{
    if (rc == -ECANCELED)
        return cancelled(t) ? rc : 0;
    return rc < 0 && one_in(t, 3) ? rc : 0;
}

static scope *new_scope(void)
{
    return m.scope_count < MAX_SCOPES ? &m.scopes[m.scope_count++] : NULL;
}

static int step_scope(task *t, int depth)
{
    scope *s = new_scope();
    if (!s)
        return 0;
    int64_t limit = pick_limit(t);
    EXPECT_INT(conc_scope_begin(&s->real, random_seconds(limit)), 0);
    open_scope(t, s, limit);
    s->named = true;
    if (one_in(t, 4)) {
        conc_scope_shield(&s->real, true);
        s->shielded = true;
    }
    log_step(t, "begin a scope", limit);
    check_task(t);
    int rc = run_block(t, depth + 1);
    bool was_cancelled = s->cancelled, had_expired = s->expired;
    int expected = close_scope(t, s, rc), got = conc_scope_end(&s->real, rc);
    EXPECT_INT(got, expected);
    EXPECT_INT(s->real.cancel_called, was_cancelled);
    EXPECT_INT(s->real.expired, had_expired);
    EXPECT_INT(s->real.cancel_caught, rc == -ECANCELED && expected != rc);
    EXPECT_INT(conc_scope_end(&s->real, 0), -EINVAL);
    log_step(t, "end a scope", got);
    check_task(t);
    return handle(t, got);
}

/* conc_timeout and conc_shield have their own scope. */
typedef struct inside {
    task *t;
    scope *s;
    int64_t limit;
    bool shielded;
    int depth, rc;
} inside;

static int run_inside(void *arg)
{
    inside *i = arg;
    open_scope(i->t, i->s, i->limit);
    i->s->shielded = i->shielded;
    check_task(i->t);
    return i->rc = run_block(i->t, i->depth + 1);
}

static int step_call_inside(task *t, int depth)
{
    inside i = {t, new_scope(), pick_limit(t), one_in(t, 2), depth, 0};
    if (!i.s)
        return 0;
    log_step(t, i.shielded ? "call behind a shield" : "call with a limit", i.limit);
    int got = i.shielded ? conc_shield(random_seconds(i.limit), run_inside, &i)
                         : conc_timeout(random_seconds(i.limit), run_inside, &i);
    EXPECT_INT(got, close_scope(t, i.s, i.rc));
    log_step(t, "back from the call", got);
    check_task(t);
    return handle(t, got);
}

/* ---- tasks */

static task *new_task(task *parent, group *g)
{
    if (m.task_count == MAX_TASKS)
        return NULL;
    task *t = &m.tasks[m.task_count];
    t->index = m.task_count++;
    t->random = draw(parent);
    t->group = g;
    return t;
}

static void spawned(task *t, const task *parent)
{
    t->state = SPAWNED;
    memcpy(t->locals, parent->locals, sizeof t->locals);
    total.spawns++;
    if (t->group)
        t->group->live++;
}

static void open_group(task *t, group *g)
{
    g->opened = true;
    g->owner = t;
    open_scope(t, &g->scope, NEVER);
}

static void count_failure(group *g, int rc, const task *of)
{
    total.failures++;
    g->errors++;
    if (!g->error) {
        g->error = rc;
    } else if (!g->gathers) {
        m.hook_most++;
        if (!of)
            m.hook_least++;
    }
}

/* Free slots go to the first waiters, and count as used from then on. */
static void hand_over_room(group *g)
{
    while (g->room_count && g->live < g->limit) {
        task *t = g->room[0];
        g->live++;
        leave_room_line(t);
        decide(t, 0);
    }
}

/* A child has ended, or a slot that was handed over is not used. */
static void leave_place(group *g)
{
    g->live--;
    hand_over_room(g);
    if (g->live > 0)
        return;
    g->cancelled_around = cancelled_around(g);
    if (g->owner->wait == CLOSE && g->owner->inner == &g->scope)
        decide(g->owner, 0);
}

/* The end of a child, in its group. A waiter that the child's error cancels at that moment may see
 * either result. */
static void leave_group(task *t, bool start_failed)
{
    group *g = t->group;
    task *owner = g->owner;
    bool fails = t->result < 0 && t->result != -ECANCELED && !start_failed;
    bool aborts = fails && !g->keep_going;
    bool granted = false;
    if (t->result == -ECANCELED && !start_failed)
        g->cut_short = true;
    if (fails) {
        t->counted = g->error != 0;
        count_failure(g, t->result, t);
    }
    if (g->by_next)
        g->finished[g->finished_count++] = t;
    if (waits(owner) && owner->wait == NEXT && owner->inner == &g->scope) {
        decide(owner, 1);
        granted = true;
    }
    if (aborts)
        cancel_scope(&g->scope);
    leave_place(g);
    if (granted && aborts)
        owner->either = true;
}

static int end_task(task *t, int rc)
{
    bool start_failed = t->starter && !t->said;
    task *joiners[MAX_TASKS];
    int joiner_count = 0;
    EXPECT(t->inner == NULL);
    if (rc == -ECANCELED && !cancelled(t))
        rc = 0;
    if (start_failed && t->starter->given_up)
        rc = cancelled(t) ? -ECANCELED : 0;
    log_step(t, "end", rc);
    t->state = ENDED;
    t->result = rc;
    for (int i = 0; i < m.task_count; i++) {
        task *j = &m.tasks[i];
        if (waits(j) && j->wait == JOIN && j->target == t) {
            decide(j, 0);
            t->joined = true;
            joiners[joiner_count++] = j;
        }
    }
    if (start_failed)
        decide(t->starter, rc < 0 ? rc : -EINVAL);
    if (t->group)
        leave_group(t, start_failed);
    else if (rc < 0 && random_faults.on) /* no memory to record it: perhaps reported immediately */
        m.hook_most++;
    for (int i = 0; i < joiner_count; i++)
        joiners[i]->either = cancelled(joiners[i]) && rc < 0;
    return rc;
}

/* This task's conc_start was granted a slot and has continued, to wait for conc_started. If it was
 * cancelled in between, the cancel reaches the child. */
static void arrive(task *t)
{
    task *starter = t->starter;
    EXPECT(starter->wait == ROOM && starter->decided && starter->outcome == 0);
    t->group->live--;
    spawned(t, starter);
    starter->wait = START;
    starter->decided = false;
    wake_cancelled();
    total.late_starts += starter->given_up;
}

static void set_local(task *t, int i, const void *value)
{
    long before = random_faults.refused;
    int rc = conc_local_set(&keys[i], value);
    if (lacks_memory(rc, before))
        return;
    EXPECT_INT(rc, 0);
    t->locals[i] = value;
}

static int run_task(void *arg)
{
    task *t = arg;
    follow_time();
    if (t->state == COMING)
        arrive(t);
    EXPECT_INT(t->state, SPAWNED);
    EXPECT(!t->has_handle || conc_self() == &t->handle);
    t->state = RUNNING;
    check_task(t);
    log_step(t, "begin", 0);
    if (one_in(t, 2)) {
        set_local(t, 0, t);
    }
    int rc = run_block(t, 0);
    if (t->says && !t->said && rc >= 0) {
        task *starter = t->starter;
        int value = pick(t, 100);
        EXPECT_INT(conc_started(value), starter->given_up ? -ECANCELED : 0);
        if (!starter->given_up) {
            decide(starter, value);
            t->said = true;
            log_step(t, "started", value);
            rc = run_block(t, 0);
        }
    }
    if (rc == 0)
        rc = one_in(t, 8) ? -EIO : pick(t, 50);
    return end_task(t, rc);
}

static bool is_full(const group *g) { return g->limit && (g->live >= g->limit || g->room_count); }

static void wait_for_room(task *t, group *g)
{
    begin_wait(t, ROOM);
    t->wants = g;
    g->room[g->room_count++] = t;
}

/* After a conc_spawn's wait for a slot, which returned rc. */
static void check_room(task *t, group *g, int rc)
{
    int outcome = end_wait(t);
    if (rc == -ENOMEM)
        EXPECT_INT(outcome, 0);
    else if (rc == 0 || outcome < 0 || !group_cancelled(g))
        EXPECT_INT(rc, outcome);
    else
        EXPECT_INT(rc, -ECANCELED);
    if (rc == 0)
        g->live--; /* the child counts instead */
    else if (outcome == 0)
        leave_place(g);
}

/* A child that leaves its slot leaves its stack too, so running out of memory there needs a stack
 * of a size that is not in the cache. */
static void starve(group *g, int by)
{
    g->starved += by;
    m.starved += by;
    g->real.stack_size = g->starved ? (size_t)1 << 50 : 0;
}

static int step_spawn(task *t, group *g)
{
    task *child = new_task(t, g);
    if (!child)
        return 0;
    bool refused = group_cancelled(g), full = is_full(g) && !refused;
    bool cut = full && cancelled(t);
    child->has_handle = g->by_next || one_in(t, 2);
    child->joinable = child->has_handle && !g->by_next;
    bool starves = random_faults.on && full && !cut && one_in(t, 3);
    if (full && !cut)
        wait_for_room(t, g);
    if (starves)
        starve(g, 1);
    long before = random_faults.refused;
    int rc = child->has_handle ? conc_spawn_task(&g->real, &child->handle, run_task, child)
                               : conc_spawn(&g->real, run_task, child);
    bool failed = lacks_memory(rc, before);
    if (starves)
        starve(g, -1);
    if (cut)
        check_cut_short(t, rc);
    else if (full)
        check_room(t, g, rc);
    else if (!failed)
        EXPECT_INT(rc, refused ? -ECANCELED : 0);
    log_step(t, "spawn", rc == 0 ? child->index : rc);
    if (rc == 0)
        spawned(child, t);
    else
        child->has_handle = false;
    check_task(t);
    return rc;
}

/* A conc_start had no memory for its child. */
static int check_start_without_memory(task *t, group *g)
{
    follow_time();
    bool had_room = t->target->state == SPAWNED;
    t->target->state = UNUSED;
    if (had_room)
        g->live--;
    else
        EXPECT_INT(end_wait(t), 0);
    t->wait = NO_WAIT;
    if (!had_room)
        leave_place(g);
    log_step(t, "start had no memory", had_room);
    check_task(t);
    return -ENOMEM;
}

/* A conc_start returned without having started its child: it was cut short while it waited for a
 * slot, or just after it was granted one. */
static int check_start_without_child(task *t, group *g, int rc)
{
    follow_time();
    bool granted = t->outcome == 0;
    t->target->state = UNUSED;
    if (granted)
        EXPECT(cancelled(t) || group_cancelled(g));
    t->outcome = -ECANCELED;
    EXPECT_INT(rc, end_wait(t));
    if (granted)
        leave_place(g);
    total.late_starts += granted;
    log_step(t, "start was cut short", granted);
    check_task(t);
    return rc;
}

static int step_start(task *t, group *g)
{
    task *child = new_task(t, g);
    if (!child)
        return 0;
    if (group_cancelled(g) || cancelled(t)) {
        check_cut_short(t, conc_start(&g->real, run_task, child));
        check_task(t);
        return -ECANCELED;
    }
    child->starter = t;
    child->says = !one_in(t, 4);
    log_step(t, "start", child->index);
    if (is_full(g)) {
        wait_for_room(t, g);
        child->state = COMING;
    } else {
        spawned(child, t);
        begin_wait(t, START);
    }
    t->target = child;
    long before = random_faults.refused;
    int rc = conc_start(&g->real, run_task, child);
    bool is_own = child->state == ENDED; /* the child's own error */
    if (!is_own && lacks_memory(rc, before))
        return check_start_without_memory(t, g);
    if (child->state == COMING)
        return check_start_without_child(t, g, rc);
    bool gave_up = t->given_up;
    EXPECT_INT(rc, end_wait(t));
    EXPECT(!gave_up || child->state == ENDED);
    log_step(t, "start returned", rc);
    check_task(t);
    return rc == -ECANCELED ? rc : 0;
}

static int step_next(task *t, group *g)
{
    conc_task *next = NULL;
    bool cut = cancelled(t);
    if (!cut) {
        begin_wait(t, NEXT);
        if (g->taken < g->finished_count)
            decide(t, 1);
        else if (g->live == 0)
            decide(t, 0);
    }
    int rc = conc_group_next(&g->real, &next);
    if (cut) {
        check_cut_short(t, rc);
    } else {
        int outcome = end_wait(t);
        if (!t->either || rc != -ECANCELED)
            EXPECT_INT(rc, outcome);
    }
    if (rc == 1) {
        EXPECT(next == &g->finished[g->taken]->handle);
        g->taken++;
    }
    log_step(t, "next", rc);
    check_task(t);
    return rc;
}

static int close_group(task *t, group *g, int rc, bool by_end)
{
    if (rc == -ECANCELED && group_cancelled(g))
        g->cut_short = true;
    else if (rc < 0) {
        count_failure(g, rc, NULL);
        cancel_scope(&g->scope);
    }
    g->closing = true;
    begin_wait(t, CLOSE);
    if (g->live == 0) {
        g->cancelled_around = cancelled_around(g);
        decide(t, 0);
    }
    int got = by_end ? conc_group_end(&g->real, rc) : conc_group_wait(&g->real);
    int before = t->cut_short;
    (void)end_wait(t);
    t->cut_short = before;
    EXPECT_INT(g->live, 0);
    bool around = cancelled_around(g);
    t->inner = g->scope.outer;
    g->scope.open = false;
    g->closed = true;
    if (g->error)
        EXPECT_INT(got, g->error);
    else if (!g->cut_short)
        EXPECT_INT(got, by_end && rc > 0 ? rc : 0);
    else if (around == g->cancelled_around || got != -ECANCELED)
        EXPECT_INT(got, around && g->cancelled_around ? -ECANCELED : by_end && rc > 0 ? rc : 0);
    EXPECT_INT(g->real.error, g->error);
    EXPECT_INT(g->real.error_count, g->errors);
    log_step(t, "close a group", got);
    check_task(t);
    return handle(t, got);
}

static group *new_group(void)
{
    return m.group_count < MAX_GROUPS ? &m.groups[m.group_count++] : NULL;
}

/* A refused first spawn leaves a fresh group fresh: it need not be closed, and may be used as if
 * nothing had happened. */
static void refuse_first_spawn(task *t, conc_group *g)
{
    bool cut = cancelled(t), starts = one_in(t, 4);
    conc_task handle = {0};
    int rc;
    g->stack_size = (size_t)1 << 50;
    if (starts)
        rc = conc_start(g, run_task, t);
    else
        rc = one_in(t, 2) ? conc_spawn(g, run_task, t) : conc_spawn_task(g, &handle, run_task, t);
    if (cut && starts)
        check_cut_short(t, rc);
    else
        EXPECT_INT(rc, cut ? -ECANCELED : -ENOMEM);
    g->stack_size = 0;
    EXPECT_INT(g->error, 0);
    EXPECT_INT(g->error_count, 0);
    total.refused++;
    log_step(t, "first spawn refused", rc);
    check_task(t);
}

static int return_early(task *t)
{
    conc_group local = {.limit = pick(t, 2)};
    refuse_first_spawn(t, &local);
    return 0;
}

static int step_group(task *t, int depth)
{
    group *g = new_group();
    if (!g || m.task_count == MAX_TASKS)
        return 0;
    g->real.limit = g->limit = one_in(t, 3) ? 1 + pick(t, 3) : 0;
    g->real.keep_going = g->keep_going = one_in(t, 2);
    g->by_next = one_in(t, 4);
    if (one_in(t, 8))
        refuse_first_spawn(t, &g->real);
    bool begun = one_in(t, 2) || cancelled(t); /* otherwise the first spawn opens it */
    if (begun)
        EXPECT_INT(conc_group_begin(&g->real), 0);
    open_group(t, g);
    log_step(t, "open a group", g->limit);
    int rc = 0, children = 1 + pick(t, 4);
    for (int i = 0; i < children && rc >= 0 && t->cut_short < MAX_CUT_SHORT; i++) {
        bool starts = !g->by_next && (begun || i) && one_in(t, 4);
        rc = starts ? step_start(t, g) : step_spawn(t, g);
        if (rc == -ENOMEM && !begun && i == 0) /* the group is still fresh */
            EXPECT_INT(conc_group_begin(&g->real), 0);
        if (rc >= 0 && one_in(t, 3))
            rc = run_block(t, depth + 2);
    }
    while (rc >= 0 && g->by_next && t->cut_short < MAX_CUT_SHORT)
        if ((rc = step_next(t, g)) == 0)
            break;
    if (rc == -ECANCELED && !group_cancelled(g))
        rc = 0;
    return close_group(t, g, rc, rc < 0 || one_in(t, 2));
}

/* None of the children has run, or ever will. */
static int end_gather_without_memory(task *t, group *g, task *const *children, int n)
{
    follow_time();
    for (int i = 0; i < n; i++) {
        EXPECT_INT(children[i]->state, SPAWNED);
        children[i]->state = UNUSED;
    }
    g->live = 0;
    t->wait = NO_WAIT;
    t->inner = g->scope.outer;
    g->scope.open = false;
    g->closed = true;
    log_step(t, "gather had no memory", n);
    check_task(t);
    return handle(t, -ENOMEM);
}

static int step_gather(task *t)
{
    conc_call calls[3];
    task *children[3];
    int n = 1 + pick(t, 3), rc = 0;
    bool all = one_in(t, 2);
    group *g = cancelled(t) || m.task_count + n > MAX_TASKS ? NULL : new_group();
    if (!g)
        return 0;
    g->gathers = true;
    g->keep_going = all;
    open_group(t, g);
    for (int i = 0; i < n; i++) {
        children[i] = new_task(t, g);
        spawned(children[i], t);
        calls[i] = (conc_call){.fn = run_task, .arg = children[i]};
    }
    log_step(t, "gather", n);
    begin_wait(t, CLOSE);
    long before = random_faults.refused;
    int got = all ? conc_gather_all(calls, (size_t)n) : conc_gather(calls, (size_t)n);
    if (!g->error && lacks_memory(got, before))
        return end_gather_without_memory(t, g, children, n);
    (void)end_wait(t);
    bool around = cancelled_around(g);
    t->inner = g->scope.outer;
    g->scope.open = false;
    g->closed = true;
    rc = around && g->cut_short ? -ECANCELED : 0;
    if (!all && g->error)
        rc = g->error;
    if (rc == 0 || rc == g->error || around == g->cancelled_around)
        EXPECT(got == rc || (all && got == -ECANCELED && around));
    for (int i = 0; i < n; i++) {
        EXPECT_INT(children[i]->state, ENDED);
        EXPECT_INT(calls[i].result, children[i]->result);
        EXPECT_INT(calls[i].text[0] != 0, children[i]->result < 0);
    }
    log_step(t, "gathered", got);
    check_task(t);
    return handle(t, got);
}

/* ---- what tasks do to each other */

static task *pick_handle(task *t)
{
    task *other = &m.tasks[pick(t, m.task_count)];
    return other->state != UNUSED && other->has_handle ? other : NULL;
}

static int step_join_with(task *t, task *target)
{
    int result = 4711;
    bool cut = cancelled(t);
    if (!cut) {
        begin_wait(t, JOIN);
        t->target = target;
        if (target->state == ENDED)
            decide(t, 0);
    }
    int rc = conc_join(&target->handle, &result);
    if (cut) {
        check_cut_short(t, rc);
    } else {
        int outcome = end_wait(t);
        if (!t->either || rc != -ECANCELED)
            EXPECT_INT(rc, outcome);
    }
    if (rc == 0) {
        EXPECT_INT(target->state, ENDED);
        EXPECT_INT(result, target->result);
        EXPECT_INT(conc_error_text(&target->handle)[0] != 0, result < 0);
        target->joined = true;
        total.joins++;
    } else {
        EXPECT_INT(result, 4711);
    }
    log_step(t, "join", rc == 0 ? result : rc);
    check_task(t);
    return rc;
}

/* A task joins only younger ones, so that no tasks wait in a cycle. */
static int step_join(task *t)
{
    task *target = pick_handle(t);
    return target && target->joinable && target->index > t->index ? step_join_with(t, target) : 0;
}

static int step_cancel_task(task *t)
{
    task *target = pick_handle(t);
    if (!target)
        return 0;
    EXPECT_INT(conc_done(&target->handle), target->state == ENDED);
    EXPECT_INT(conc_cancel(&target->handle), target->state == ENDED ? -EALREADY : 0);
    if (target->state != ENDED) {
        target->asked = true;
        wake_cancelled();
    }
    log_step(t, "cancel task", target->index);
    return 0;
}

/* Does a cancelled conc_start still wait for its child, or could a cancel come between its two
 * waits? The model does not decide whether a new shield saves the child. */
static bool start_is_given_up(void)
{
    for (int i = 0; i < m.task_count; i++) {
        const task *t = &m.tasks[i];
        if ((t->wait == START && t->given_up) || t->state == COMING)
            return true;
    }
    return false;
}

static int step_meddle_with_scope(task *t)
{
    scope *s = m.scope_count ? &m.scopes[pick(t, m.scope_count)] : NULL;
    if (!s || !s->named)
        return 0;
    int what = pick(t, 4);
    if (what == 1 && start_is_given_up())
        return 0;
    if (what == 0) {
        conc_scope_cancel(&s->real);
        cancel_scope(s);
    } else if (what == 1 && s->open) {
        s->shielded = !s->shielded;
        conc_scope_shield(&s->real, s->shielded);
        wake_cancelled();
    } else if (what > 1) {
        int64_t limit = pick_limit(t);
        bool can = s->open && !s->cancelled;
        EXPECT_INT(conc_scope_set_timeout(&s->real, random_seconds(limit)), can ? 0 : -EINVAL);
        if (can)
            set_limit(s, limit);
    }
    log_step(t, "meddle with a scope", what);
    return 0;
}

/* Spawns or starts in a group that need not be the task's own. A time limit ends the wait for a
 * slot if only the task itself, or one that waits for it, could free one. */
static int step_elsewhere(task *t, group *g)
{
    scope *s = new_scope();
    if (!s)
        return 0;
    int64_t limit = (1 + pick(t, 12)) * EIGHTH;
    EXPECT_INT(conc_scope_begin(&s->real, random_seconds(limit)), 0);
    open_scope(t, s, limit);
    int rc = one_in(t, 2) ? step_start(t, g) : step_spawn(t, g);
    int expected = close_scope(t, s, rc), got = conc_scope_end(&s->real, rc);
    EXPECT_INT(got, expected);
    log_step(t, "spawned elsewhere", got);
    check_task(t);
    return handle(t, got);
}

static int step_meddle_with_group(task *t)
{
    group *g = m.group_count ? &m.groups[pick(t, m.group_count)] : NULL;
    for (int i = 0; i < m.group_count && g->closed; i++) /* preferably one that is open */
        g = &m.groups[i];
    if (!g || !g->opened || g->gathers)
        return 0;
    if (one_in(t, 4)) {
        conc_group_cancel(&g->real);
        cancel_scope(&g->scope);
        log_step(t, "cancel a group", g->closed);
    } else if (!g->by_next && g->live > 0 && !g->closed) {
        return step_elsewhere(t, g);
    } else if (g->closed) {
        EXPECT_INT(conc_spawn(&g->real, run_task, t), -EINVAL);
    }
    return 0;
}

static int step_background(task *t)
{
    task *child = new_task(t, NULL);
    if (!child)
        return 0;
    child->has_handle = child->joinable = true;
    long before = random_faults.refused;
    int rc = conc_spawn_task(NULL, &child->handle, run_task, child);
    if (lacks_memory(rc, before)) {
        child->has_handle = child->joinable = false;
        return 0;
    }
    EXPECT_INT(rc, 0);
    spawned(child, t);
    log_step(t, "spawn in the background", child->index);
    return 0;
}

static int step_local(task *t)
{
    int i = pick(t, KEYS);
    set_local(t, i, one_in(t, 4) ? NULL : &m.tasks[pick(t, MAX_TASKS)]);
    log_step(t, "set a local", i);
    return 0;
}

static int step_stats(task *t)
{
    conc_stats s;
    scope *sc;
    size_t alive = 0, coming = 0, timers = 0;
    conc_get_stats(&s);
    for (int i = 0; i < m.task_count; i++) {
        coming += m.tasks[i].state == COMING && !waits(m.tasks[i].starter);
        alive += m.tasks[i].state == SPAWNED || m.tasks[i].state == RUNNING;
        timers += waits(&m.tasks[i]) && m.tasks[i].at != NEVER;
    }
    for (sc = m.scopes; sc < m.scopes + m.scope_count; sc++)
        timers += sc->open && sc->at != NEVER;
    EXPECT(s.tasks >= alive && s.tasks <= alive + coming);
    EXPECT_INT(s.timers, timers);
    EXPECT_INT(s.generators, m.generators);
    log_step(t, "count", (long long)alive);
    return 0;
}

/* ---- generators: the body's steps are steps of the consumer's task */

typedef struct body {
    task *t;
    int items, emitted, rc;
    bool closing, ended;
} body;

static int run_body(conc_gen *g, void *arg)
{
    body *b = arg;
    int rc = 0;
    while (b->emitted < b->items && rc >= 0 && !b->closing) {
        if (b->t->cut_short < MAX_CUT_SHORT && one_in(b->t, 2))
            rc = step_sleep(b->t);
        if (rc >= 0) {
            b->emitted++;
            int emitted = conc_gen_emit(g, &b->emitted);
            EXPECT_INT(emitted, b->closing ? -ECANCELED : 0);
            follow_time();
        }
    }
    if (b->closing && b->t->cut_short < MAX_CUT_SHORT && one_in(b->t, 2))
        (void)step_sleep(b->t);
    if (rc >= 0)
        rc = one_in(b->t, 6) ? -EPIPE : b->closing && one_in(b->t, 2) ? -ECANCELED : 0;
    b->ended = true;
    return b->rc = rc;
}

/* the call is a checkpoint itself: a pending cancel cuts it short before the body continues */
static int next_cut_short(task *t, conc_gen *g, int *item)
{
    begin_wait(t, YIELD);
    t->wait = NO_WAIT;
    t->at = NEVER;
    int rc = conc_gen_next(g, item);
    check_cut_short(t, rc);
    return rc;
}

static int step_generator(task *t)
{
    conc_gen g = {0};
    body b = {t, pick(t, 6), 0, 0, false, false};
    int take = pick(t, 8), item = 0, rc = 1;
    long before = random_faults.refused;
    int opened = conc_gen_open(&g, run_body, &b, sizeof item);
    if (lacks_memory(opened, before)) {
        EXPECT_INT(conc_gen_close(&g), 0);
        return 0;
    }
    EXPECT_INT(opened, 0);
    m.generators++;
    for (int i = 1; i <= take && rc == 1; i++) {
        if (cancelled(t)) {
            rc = next_cut_short(t, &g, &item);
            break;
        }
        rc = conc_gen_next(&g, &item);
        EXPECT_INT(rc, !b.ended ? 1 : b.rc < 0 ? b.rc : 0);
        if (rc == 1) {
            EXPECT_INT(item, i);
            total.items++;
        }
        check_task(t);
    }
    bool ran = b.emitted > 0, done = b.ended;
    b.closing = true;
    int closed = conc_gen_close(&g);
    m.generators--;
    EXPECT_INT(closed, done || !ran || b.rc == -ECANCELED || b.rc >= 0 ? 0 : b.rc);
    EXPECT_INT(b.ended, ran || done);
    EXPECT_INT(conc_gen_close(&g), 0);
    log_step(t, "use a generator", rc);
    check_task(t);
    return rc < 0 ? handle(t, rc) : 0;
}

/* ---- programs */

static int run_step(task *t, int depth)
{
    bool deep = depth >= MAX_DEPTH;
    switch (pick(t, 24)) {
    case 0:
    case 1:
    case 2: return step_sleep(t);
    case 3: return step_yield(t);
    case 4: return one_in(t, 3) ? step_block(t) : step_yield(t);
    case 5:
    case 6:
    case 7: return deep ? step_sleep(t) : step_scope(t, depth);
    case 8:
    case 9: return deep ? step_yield(t) : step_call_inside(t, depth);
    case 10:
    case 11:
    case 12: return deep ? step_sleep(t) : step_group(t, depth);
    case 13: return deep ? 0 : step_gather(t);
    case 14:
    case 15: return step_join(t);
    case 16: return step_cancel_task(t);
    case 17:
    case 18: return one_in(t, 8) ? return_early(t) : step_meddle_with_scope(t);
    case 19: return step_meddle_with_group(t);
    case 20: return step_background(t);
    case 21: return step_local(t);
    case 22: return step_stats(t);
    default: return step_generator(t);
    }
}

static int run_block(task *t, int depth)
{
    int rc = 0, steps = 1 + pick(t, depth == 0 ? 7 : 4);
    for (int i = 0; i < steps && rc >= 0 && t->cut_short < MAX_CUT_SHORT; i++) {
        rc = run_step(t, depth);
        check_task(t);
    }
    if (t->cut_short >= MAX_CUT_SHORT && cancelled(t))
        return -ECANCELED;
    if (rc == -ECANCELED && depth < MAX_DEPTH && t->cut_short < MAX_CUT_SHORT && one_in(t, 3))
        (void)(one_in(t, 2) ? step_sleep(t) : step_call_inside(t, MAX_DEPTH - 1)); /* cleans up */
    if (rc == -ECANCELED && !cancelled(t))
        return 0;
    return rc;
}

static int run_main(void *arg)
{
    task *t = arg;
    conc_stats before, after;
    conc_get_stats(&before);
    t->state = RUNNING;
    check_task(t);
    random_faults.on = random_faults.random != 0;
    for (int i = 0; i < 3; i++)
        (void)run_block(t, 0);
    EXPECT(t->inner == NULL && !cancelled(t));
    for (int i = 1; i < m.task_count; i++) {
        if (m.tasks[i].state != UNUSED && !m.tasks[i].group) {
            task *late = &m.tasks[i];
            EXPECT_INT(conc_cancel(&late->handle), late->state == ENDED ? -EALREADY : 0);
            late->asked = true;
            wake_cancelled();
            EXPECT_INT(step_join_with(t, late), 0);
        }
    }
    for (int i = 1; i < m.task_count; i++)
        EXPECT(m.tasks[i].state == UNUSED || m.tasks[i].state == ENDED);
    random_faults.on = false;
    conc_get_stats(&after);
    EXPECT_INT(after.tasks, 1);
    EXPECT_INT(after.ready, 0);
    EXPECT_INT(after.timers, 0);
    EXPECT_INT(after.generators, 0);
    EXPECT_INT(after.stacks, before.stacks);
    t->state = ENDED;
    return 17;
}

static void count_error(const conc_failure *f, void *user)
{
    EXPECT(user == &m);
    EXPECT(f->rc < 0 && f->rc != -ECANCELED);
    m.hook_calls++;
}

static void run_program(uint64_t seed, uint64_t order)
{
    conc_options o = {.virtual_clock = true, .seed = order, .on_error = count_error, .user = &m};
#ifdef RANDOM_FAULTS
    o.stack_size = (size_t)5 << 20; /* few of them fit into a mapping */
    random_faults.random = random_source(seed) | 1;
#endif
    memset(&m, 0, sizeof m);
    m.task_count = 1;
    m.tasks[0].random = random_source(seed);
    for (int i = 0; i < MAX_TASKS; i++)
        m.tasks[i].at = NEVER;
    for (int i = 0; i < MAX_SCOPES; i++)
        m.scopes[i].at = NEVER;
    for (int i = 0; i < MAX_GROUPS; i++)
        m.groups[i].scope.at = NEVER;
    EXPECT_INT(conc_run_with(&o, run_main, &m.tasks[0]), 17);
    for (int i = 0; i < m.task_count; i++)
        m.hook_least += m.tasks[i].counted && !m.tasks[i].joined && !m.tasks[i].group->by_next &&
                        !m.tasks[i].group->gathers;
    EXPECT(m.hook_calls >= m.hook_least);
    EXPECT(m.hook_calls <= m.hook_most);
    total.programs++;
}

static void run_programs_of(random_fn *run, random_order how)
{
    /* checks that the programs do what they are meant to */
    if (random_repeat(300, how, run) >= 200) {
        CHECK(total.steps / total.programs > 30);
        CHECK(total.cut_short > 1000 && total.timed_out > 50 && total.granted_late > 0);
        CHECK(total.joins > 100 && total.spawns > 1000 && total.items > 100 &&
              total.failures > 100);
        CHECK(total.refused > 100);
        CHECK(!random_faults.random || total.without_memory > 1000);
    }
    if (random_program.verbose)
        fprintf(stderr,
                "%ld programs, %ld steps, %ld spawns, %ld joins, %ld cut short, %ld timed out, "
                "%ld granted late, %ld items, %ld failures, %ld starts cut short when granted, "
                "%ld first spawns refused, %ld calls without memory\n",
                total.programs, total.steps, total.spawns, total.joins, total.cut_short,
                total.timed_out, total.granted_late, total.items, total.failures, total.late_starts,
                total.refused, total.without_memory);
}

#ifndef RANDOM_FAULTS /* test_random_faults.c has its own tests */
TEST(random_programs_agree_with_the_model_and_repeat_themselves)
{
    run_programs_of(run_program, RANDOM_FIFO);
}

TEST(random_programs_in_random_order_agree_with_the_model_and_repeat_themselves)
{
    run_programs_of(run_program, RANDOM_SHUFFLED);
}

TEST(one_random_program_agrees_with_the_model_under_many_orders)
{
    random_repeat_orders(30, run_program);
}
#endif
