/* test_random_generators.c - random programs with generators, compared with a model that predicts
 * what each call returns.
 *
 * A few tasks and the generators' bodies open, consume and close the same generators, so that
 * bodies consume each other, in trees, chains and cycles. Bodies sleep, fail, emit where they may
 * not, and clean up with waits, scopes and failures. Some ignore being closed: they emit several
 * more times, each of which returns immediately, or forever, until they are stopped. Some
 * generators are left open until the run ends. The model knows
 *   - in whose call each generator is: any other next or close returns -EBUSY;
 *   - what the body did, and therefore what its consumer gets;
 *   - that a closed body runs to its end, or is stopped after 1000 emits, which on_error receives;
 *   - in which order the run's end closes them: a consumer before the generator that it consumes.
 * random_test.h tells how to repeat one by hand.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, seeds (the programs have their own
 * seeds)
 */
#include "random_test.h"

#define EIGHTH INT64_C(125000000) /* ns */

enum { TASKS = 5, GENS = 7, MOST_EMITS = 1000, STEPS_OF_A_TASK = 24, MAX_STEPS = 4000 };

typedef enum state {
    CLOSED,
    FRESH,     /* open; the body has not begun */
    SUSPENDED, /* the body waits in emit */
    INSIDE,    /* the body runs, or waits for something else */
    EXHAUSTED, /* the body has ended */
    CLOSED_BY_THE_RUN
} state;

typedef struct actor { /* a task, or the body of a generator */
    int index;
    uint64_t random;
} actor;

typedef struct gen {
    conc_gen real;
    actor actor;
    state state;
    int life;         /* how often it was opened */
    int items, again; /* how many items it emits, and how many more while it is being closed */
    int emitted, item, ignored;
    bool closing, by_the_run, told; /* told: its emit has returned -ECANCELED */
    bool fails, ended, emitting;    /* emitting: it is in an emit that does not switch */
    int rc;
    struct gen *user; /* the last body that consumed it */
    int user_life;
} gen;

static struct model {
    gen gens[GENS];
    struct task {
        conc_task handle;
        actor actor;
        bool spawned, ended;
    } tasks[TASKS];
    bool ending; /* main_fn returns */
    int hook_calls, hook_expected, stopped;
    long steps;
} m;

static struct {
    long programs, items, closings, ignored, stopped, left_open, busy, failures, cut_short;
} total;

static int pick(actor *a, int n) { return random_pick(&a->random, n); }
static bool one_in(actor *a, int n) { return pick(a, n) == 0; }

static void log_step(const actor *a, const char *what, int which, long long value)
{
    m.steps++;
    random_log(random_now(), a->index, what, which, value);
}

static bool is_open(const gen *g)
{
    return g->state == FRESH || g->state == SUSPENDED || g->state == INSIDE;
}

/* ---- waits ---- */

static int step_sleep(actor *a)
{
    static const int eighths[] = {0, 0, 1, 2, 4, 8};
    bool cut = conc_cancelled();
    int rc = conc_sleep(random_seconds(eighths[pick(a, 6)] * EIGHTH));
    EXPECT(rc == 0 || (rc == -ECANCELED && conc_cancelled()));
    if (cut)
        EXPECT_INT(rc, -ECANCELED);
    total.cut_short += cut;
    log_step(a, "sleep", 0, rc);
    return rc;
}

static int step_sleep_in_scope(actor *a)
{
    conc_scope s = {0};
    EXPECT_INT(conc_scope_begin(&s, random_seconds(pick(a, 4) * EIGHTH)), 0);
    if (one_in(a, 3))
        conc_scope_shield(&s, true);
    int rc = step_sleep(a), ended = conc_scope_end(&s, rc);
    log_step(a, "scope", 0, ended);
    return ended == -ECANCELED ? ended : 0;
}

/* ---- what tasks and bodies do to generators ---- */

static int run_body(conc_gen *face, void *arg);

static int step_open(actor *a, gen *g)
{
    if (g->state != CLOSED && g->state != EXHAUSTED) {
        if (!m.ending)
            EXPECT_INT(conc_gen_open(&g->real, run_body, g, sizeof(int)), -EINVAL);
        return 0;
    }
    static const int again[] = {0, 0, 0, 1, 2, 7, 998, 5000};
    int choice = pick(a, 12);
    EXPECT_INT(conc_gen_open(&g->real, run_body, g, sizeof(int)), 0);
    g->state = FRESH;
    g->life++;
    g->items = pick(a, 8);
    g->again = choice < 8 ? again[choice] : 0;
    g->fails = one_in(a, 4);
    g->emitted = g->ignored = 0;
    g->closing = g->by_the_run = g->told = g->ended = g->emitting = false;
    g->user = NULL;
    g->actor.random = random_draw(&a->random);
    log_step(a, "open", g->actor.index, g->life);
    return 0;
}

/* Records that the body has run, in a call of its consumer that wanted an item. */
static void check_next(gen *g, int rc, int item)
{
    if (g->state == SUSPENDED) {
        EXPECT_INT(rc, 1);
        EXPECT_INT(item, g->item);
        total.items++;
        return;
    }
    EXPECT(g->state == INSIDE && g->ended);
    EXPECT_INT(rc, g->rc < 0 ? g->rc : 0);
    EXPECT_INT(item, -1);
    g->state = EXHAUSTED;
}

static bool is_stopped(const gen *g) { return g->closing && g->told && !g->ended; }

/* Once the run's end has begun, other generators may already have been closed. */
static bool is_gone(gen *g, int rc)
{
    if (g->by_the_run && g->emitting) /* otherwise this would not run now: it was stopped */
        g->state = CLOSED_BY_THE_RUN;
    bool may_be_gone = g->state == CLOSED_BY_THE_RUN || (m.ending && g->state == FRESH);
    bool says_so = rc == -EINVAL || rc == 0 || (rc == -EBUSY && is_stopped(g));
    if (!may_be_gone || !says_so)
        return false;
    g->state = CLOSED_BY_THE_RUN;
    return true;
}

static int step_next(actor *a, gen *g)
{
    if (m.ending)
        (void)is_gone(g, 1);
    int item = -1, rc, expected = 0;
    bool runs = g->state == FRESH || g->state == SUSPENDED;
    gen *user = a->index >= TASKS ? &m.gens[a->index - TASKS] : NULL;
    state before = g->state;
    if (conc_cancelled()) {
        EXPECT_INT(conc_gen_next(&g->real, &item), -ECANCELED);
        EXPECT_INT(item, -1);
        total.cut_short++;
        return -ECANCELED;
    }
    if (runs) {
        g->state = INSIDE;
        g->user = user;
        g->user_life = user ? user->life : 0;
    } else if (before == INSIDE) {
        expected = -EBUSY;
    } else if (before == CLOSED) {
        expected = -EINVAL;
    }
    total.busy += before == INSIDE;
    int life = g->life;
    rc = conc_gen_next(&g->real, &item);
    if (runs && m.ending && before == FRESH && g->state == INSIDE && !g->ended)
        g->state = FRESH; /* it did not run */
    if (!is_gone(g, rc)) {
        if (runs)
            check_next(g, rc, item);
        else
            EXPECT_INT(rc, expected);
    }
    EXPECT_INT(g->life, life);
    log_step(a, "next", g->actor.index, rc);
    return rc < 0 && conc_cancelled() ? -ECANCELED : 0;
}

static void count_stopped(const gen *g)
{
    EXPECT(g->ignored >= MOST_EMITS - 1);
    m.hook_expected++;
    m.stopped++;
    total.stopped++;
}

/* Returns the expected result of a close, after a body was asked to clean up. */
static void check_clean_up(const gen *g, int rc)
{
    if (is_stopped(g)) {
        count_stopped(g);
        return;
    }
    EXPECT(g->ended);
    EXPECT_INT(rc, g->rc < 0 && g->rc != -ECANCELED ? g->rc : 0);
    total.failures += rc < 0;
}

static int step_close(actor *a, gen *g)
{
    if (m.ending)
        (void)is_gone(g, 1);
    state before = g->state;
    bool cleans_up = before == SUSPENDED;
    if (before == INSIDE) {
        EXPECT_INT(conc_gen_close(&g->real), -EBUSY);
        total.busy++;
        return 0;
    }
    if (cleans_up) {
        g->closing = true;
        g->state = INSIDE;
    }
    int rc = conc_gen_close(&g->real);
    if (cleans_up)
        check_clean_up(g, rc);
    else
        EXPECT_INT(rc, 0);
    EXPECT(before != FRESH || !g->ended);
    g->state = before == CLOSED_BY_THE_RUN ? before : CLOSED;
    EXPECT_INT(conc_gen_close(&g->real), 0);
    total.closings += cleans_up;
    log_step(a, "close", g->actor.index, rc);
    return 0;
}

static int step_misuse(actor *a, gen *g)
{
    int item = 7;
    bool own = a->index == g->actor.index;
    if (!own)
        EXPECT_INT(conc_gen_emit(&g->real, &item), -EINVAL);
    return 0;
}

static int step_stats(void)
{
    conc_stats s;
    size_t open = 0;
    conc_get_stats(&s);
    for (gen *g = m.gens; g < m.gens + GENS; g++)
        open += is_open(g);
    if (!m.stopped && !m.ending)
        EXPECT_INT(s.generators, open);
    return 0;
}

/* Opens one, takes some items, and closes it by leaving its block, or not at all. */
static int step_use(actor *a, gen *g)
{
    int rc = 0, wanted = pick(a, 6);
    (void)step_open(a, g);
    for (int i = 0; i < wanted && rc == 0; i++)
        rc = step_next(a, g);
    return rc < 0 || one_in(a, 2) ? rc : step_close(a, g);
}

static int step(actor *a)
{
    gen *g = &m.gens[pick(a, GENS)];
    if (m.steps > MAX_STEPS)
        return 0;
    switch (pick(a, 14)) {
    case 0:
    case 1: return step_sleep(a);
    case 2: return step_sleep_in_scope(a);
    case 3:
    case 4: return step_open(a, g);
    case 5:
    case 6:
    case 7:
    case 8: return step_next(a, g);
    case 9: return step_close(a, g);
    case 10: return step_misuse(a, g);
    case 11: return step_stats();
    default: return step_use(a, g);
    }
}

/* ---- bodies ---- */

/* The run's end closes a generator that was left open, after its consumer. */
static void check_order_of_closing(const gen *g)
{
    const gen *at = g;
    for (int n = 0; n < GENS && at; n++)
        at = at->user && at->user->life == at->user_life ? at->user : NULL;
    bool in_a_circle = at != NULL;
    bool has_user = g->user && g->user->life == g->user_life;
    if (has_user && !in_a_circle)
        EXPECT(g->user->state != SUSPENDED);
}

static int emit_in_closing(gen *g, conc_gen *face)
{
    long steps = m.steps;
    int64_t now = random_now();
    g->item = ++g->emitted;
    g->ignored++;
    g->emitting = true;
    EXPECT_INT(conc_gen_emit(face, &g->item), -ECANCELED);
    g->emitting = false;
    EXPECT(g->ignored <= MOST_EMITS);
    EXPECT_INT(m.steps, steps); /* no other task or body has run */
    EXPECT_INT(random_now(), now);
    total.ignored++;
    return -ECANCELED;
}

static int emit(gen *g, conc_gen *face)
{
    g->item = ++g->emitted;
    g->state = SUSPENDED;
    log_step(&g->actor, "emit", g->actor.index, g->item);
    int life = g->life, rc = conc_gen_emit(face, &g->item);
    EXPECT_INT(g->life, life);
    if (rc == -ECANCELED && m.ending && !g->closing) {
        check_order_of_closing(g);
        g->closing = g->by_the_run = true;
        g->state = INSIDE;
        total.left_open++;
    }
    EXPECT_INT(g->state, INSIDE);
    EXPECT_INT(rc, g->closing ? -ECANCELED : 0);
    g->told = g->closing;
    return rc;
}

static void emit_with_open_scope(conc_gen *face)
{
    conc_scope s = {0};
    int item = 7;
    EXPECT_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    EXPECT_INT(conc_gen_emit(face, &item), -EINVAL);
    EXPECT_INT(conc_scope_end(&s, 0), 0);
}

static int clean_up(gen *g, conc_gen *face)
{
    actor *a = &g->actor;
    int rc = 0, steps = pick(a, 4);
    for (int i = 0; i < steps && rc == 0; i++)
        rc = step(a);
    for (int i = 0; i < g->again; i++) {
        (void)emit_in_closing(g, face);
        if (one_in(a, 20))
            (void)step_sleep(a);
    }
    return g->fails ? -EPIPE : rc;
}

static int run_body(conc_gen *face, void *arg)
{
    gen *g = arg;
    actor *a = &g->actor;
    int rc = 0, life = g->life;
    EXPECT_INT(g->state, INSIDE);
    while (g->emitted < g->items && rc == 0) {
        if (one_in(a, 8))
            emit_with_open_scope(face);
        rc = one_in(a, 2) ? emit(g, face) : step(a);
    }
    if (g->told)
        rc = clean_up(g, face);
    else if (rc == 0 && g->fails)
        rc = -EIO;
    EXPECT_INT(g->life, life);
    log_step(a, "end of body", g->actor.index, rc);
    g->ended = true;
    if (g->by_the_run) {
        g->state = CLOSED_BY_THE_RUN;
        m.hook_expected += rc < 0 && rc != -ECANCELED;
    }
    return g->rc = rc;
}

/* ---- programs ---- */

static void step_cancel(actor *a)
{
    struct task *t = &m.tasks[1 + pick(a, TASKS - 1)];
    if (t->spawned)
        EXPECT_INT(conc_cancel(&t->handle), t->ended ? -EALREADY : 0);
    log_step(a, "cancel", t->actor.index, 0);
}

static int step_with_limit(actor *a)
{
    conc_scope s = {0};
    int rc = 0;
    EXPECT_INT(conc_scope_begin(&s, random_seconds(pick(a, 8) * EIGHTH)), 0);
    for (int i = pick(a, 3); i >= 0 && rc == 0; i--)
        rc = step(a);
    rc = conc_scope_end(&s, rc);
    return rc == -ECANCELED ? rc : 0;
}

static int run_task(void *arg)
{
    struct task *t = arg;
    actor *a = &t->actor;
    int cut_short = 0;
    for (int i = 0; i < STEPS_OF_A_TASK && cut_short < 3; i++) {
        int rc = one_in(a, 3) ? step_with_limit(a) : step(a);
        cut_short += rc == -ECANCELED;
        if (one_in(a, 16))
            step_cancel(a);
    }
    log_step(a, "end", 0, 0);
    t->ended = true;
    return 0;
}

static int run_main(void *arg)
{
    actor *a = &m.tasks[0].actor;
    conc_group g = {0};
    (void)arg;
    EXPECT_INT(conc_group_begin(&g), 0);
    for (int i = 1; i < TASKS; i++) {
        struct task *t = &m.tasks[i];
        conc_group *where = one_in(a, 4) ? NULL : &g;
        EXPECT_INT(conc_spawn_task(where, &t->handle, run_task, t), 0);
        t->spawned = true;
    }
    for (int i = 0; i < STEPS_OF_A_TASK; i++)
        (void)(one_in(a, 3) ? step_with_limit(a) : step(a));
    EXPECT_INT(conc_group_wait(&g), 0);
    (void)step_stats();
    m.ending = true;
    return 17;
}

static void count_error(const conc_failure *f, void *user)
{
    EXPECT(user == &m);
    EXPECT(f->rc < 0);
    m.hook_calls++;
}

static void check_what_the_end_closed(void)
{
    for (gen *g = m.gens; g < m.gens + GENS; g++) {
        EXPECT(g->state != SUSPENDED && (g->state != INSIDE || is_stopped(g)));
        if (g->by_the_run && is_stopped(g))
            count_stopped(g);
    }
    EXPECT_INT(m.hook_calls, m.hook_expected);
}

static void run_program(uint64_t seed, uint64_t order)
{
    conc_options o = {.virtual_clock = true, .seed = order, .on_error = count_error, .user = &m};
    uint64_t source = random_source(seed);
    memset(&m, 0, sizeof m);
    for (int i = 0; i < TASKS; i++)
        m.tasks[i].actor = (actor){i, random_draw(&source)};
    for (int i = 0; i < GENS; i++)
        m.gens[i].actor.index = TASKS + i;
    EXPECT_INT(conc_run_with(&o, run_main, NULL), 17);
    check_what_the_end_closed();
    total.programs++;
}

static void check_that_programs_do_what_they_are_for(void)
{
    long programs = total.programs;
    CHECK(total.items > 5 * programs && total.closings > programs);
    CHECK(total.ignored > 100 * programs && total.stopped > programs / 20);
    CHECK(total.left_open > programs / 4 && total.busy > programs / 4);
    CHECK(total.failures > programs / 8 && total.cut_short > programs / 4);
}

TEST(random_programs_with_generators_agree_with_the_model_and_repeat_themselves)
{
    if (random_repeat(300, RANDOM_MIXED, run_program) >= 200)
        check_that_programs_do_what_they_are_for();
    if (random_program.verbose)
        fprintf(stderr,
                "%ld programs, %ld items, %ld closings, %ld emits ignored their closing, %ld "
                "stopped, %ld left open, %ld busy, %ld failures, %ld cut short\n",
                total.programs, total.items, total.closings, total.ignored, total.stopped,
                total.left_open, total.busy, total.failures, total.cut_short);
}

TEST(one_random_program_with_generators_agrees_with_the_model_under_many_orders)
{
    random_repeat_orders(20, run_program);
}
