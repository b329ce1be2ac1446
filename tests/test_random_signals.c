/* test_random_signals.c - random programs that receive signals and post to their own loop,
 * compared with a model of what must have arrived.
 *
 * Tasks open and close conc_signals, sometimes several for one number, wait for the next signal
 * under time limits and cancels, and raise signals at any moment: while no task waits, between a
 * grant and its task's next step, just before a close, from posted functions. The model knows
 *   - that each open conc_signals receives a signal at least once, and no more often than it was
 *     raised, because equal ones may be merged;
 *   - that a signal which no task received goes to the previous handler, and so does one that is
 *     raised while no conc_signals has its number;
 *   - that a close wakes the waiters with -EPIPE, and that handlers and mask are restored at the
 *     end.
 * In the programs with floods, posted functions post themselves and each other, by thousands; a
 * task that a descriptor, a timer, a signal or a cancel makes ready must continue after a bounded
 * number of them. random_test.h tells how to repeat a program by hand.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, seeds (the programs have their own
 * seeds)
 */
#include "random_test.h"

#include <poll.h>

#define EIGHTH INT64_C(125000000) /* ns */

enum { TASKS = 6, RECEIVERS = 4, NUMBERS = 4, STEPS_OF_A_TASK = 20, ROUNDS = 8 };

static const int numbers[NUMBERS] = {SIGUSR1, SIGUSR2, SIGHUP, SIGWINCH};

typedef struct receiver {
    conc_signals real;
    bool open, has[NUMBERS];
    int life;
    int least[NUMBERS], most[NUMBERS]; /* signals that it has still to return */
    int handed[NUMBERS];
    bool alone[NUMBERS]; /* no other conc_signals has had the number meanwhile */
} receiver;

typedef struct task {
    conc_task handle;
    int index;
    uint64_t random;
    bool spawned, ended;
    receiver *waits_at; /* NULL: not in conc_signals_next */
} task;

static struct model {
    receiver receivers[RECEIVERS];
    task tasks[TASKS];
    /* signals of closed receivers that were handed to a waiter which has not continued: the least
     * and the greatest possible number */
    int owed[NUMBERS], owed_at_most[NUMBERS];
    /* since no task received this number: how often it was raised, and how many of these one
     * receiver has returned; the others may be passed on */
    int raised[NUMBERS], handed[NUMBERS];
    long steps;
} m;

static struct {
    long programs, raised, handed_out, waited, passed_on, cut_short, closed;
} total;

static volatile sig_atomic_t handled[NUMBERS]; /* by the previous handler */

static int pick(task *t, int n) { return random_pick(&t->random, n); }
static bool one_in(task *t, int n) { return pick(t, n) == 0; }

static void log_step(const task *t, const char *what, int which, long long value)
{
    m.steps++;
    random_log(random_now(), t->index, what, which, value);
}

static void count_signal(int number)
{
    for (int i = 0; i < NUMBERS; i++)
        handled[i] += numbers[i] == number;
}

static int index_of(int number)
{
    for (int i = 0; i < NUMBERS; i++)
        if (numbers[i] == number)
            return i;
    EXPECT_INT(number, 0);
    return 0;
}

/* ---- steps ---- */

static void step_raise(task *t)
{
    int i = pick(t, NUMBERS), before = handled[i], receivers = 0;
    for (receiver *r = m.receivers; r < m.receivers + RECEIVERS; r++) {
        if (!r->open || !r->has[i])
            continue;
        r->least[i] = 1;
        r->most[i]++;
        receivers++;
    }
    m.raised[i] += receivers > 0;
    EXPECT_INT(raise(numbers[i]), 0);
    EXPECT_INT(handled[i], before + (receivers == 0));
    total.raised++;
    log_step(t, "raise", i, receivers);
}

static void raise_when_posted(void *arg) { step_raise(arg); }

static int step_open(task *t, receiver *r)
{
    int wanted[NUMBERS], n = 0;
    if (r->open) {
        EXPECT_INT(conc_signals_open(&r->real, numbers, 1), -EINVAL);
        return 0;
    }
    for (int i = 0; i < NUMBERS; i++) {
        r->has[i] = one_in(t, 2) || (i == NUMBERS - 1 && n == 0);
        r->least[i] = r->most[i] = r->handed[i] = 0;
        r->alone[i] = true;
        if (r->has[i])
            wanted[n++] = numbers[i];
    }
    for (receiver *other = m.receivers; other < m.receivers + RECEIVERS; other++)
        for (int i = 0; i < NUMBERS; i++)
            if (other->open && other->has[i] && r->has[i])
                r->alone[i] = other->alone[i] = false;
    EXPECT_INT(conc_signals_open(&r->real, wanted, (size_t)n), 0);
    r->open = true;
    r->life++;
    log_step(t, "open", (int)(r - m.receivers), n);
    return 0;
}

static bool is_received(int i)
{
    for (const receiver *r = m.receivers; r < m.receivers + RECEIVERS; r++)
        if (r->open && r->has[i])
            return true;
    return false;
}

static bool has_waiters(const receiver *r)
{
    for (const task *t = m.tasks; t < m.tasks + TASKS; t++)
        if (t->waits_at == r)
            return true;
    return false;
}

static int step_close(task *t, receiver *r)
{
    int before[NUMBERS];
    bool open = r->open;
    for (int i = 0; i < NUMBERS; i++)
        before[i] = handled[i];
    r->open = false;
    EXPECT_INT(conc_signals_close(&r->real), 0);
    for (int i = 0; i < NUMBERS && open; i++) {
        int passed_on = handled[i] - before[i];
        EXPECT(passed_on <= m.raised[i] - m.handed[i]);
        m.raised[i] -= passed_on;
        if (!is_received(i))
            m.raised[i] = m.handed[i] = 0;
        if (r->alone[i] && passed_on < r->least[i]) {
            EXPECT(has_waiters(r));
            m.owed[i]++;
        }
        m.owed_at_most[i] += r->most[i];
        total.passed_on += passed_on;
        r->least[i] = r->most[i] = 0;
    }
    EXPECT_INT(conc_signals_close(&r->real), 0);
    total.closed += open;
    log_step(t, "close", (int)(r - m.receivers), open);
    return 0;
}

static bool has_some(const receiver *r)
{
    for (int i = 0; i < NUMBERS; i++)
        if (r->least[i])
            return true;
    return false;
}

static void hand_out(receiver *r, int number)
{
    int i = index_of(number);
    EXPECT(r->open && r->has[i]);
    EXPECT(r->most[i] > 0);
    r->most[i]--;
    r->least[i] = 0;
    r->handed[i]++;
    if (m.handed[i] < r->handed[i])
        m.handed[i] = r->handed[i];
    total.handed_out++;
}

static int step_next(task *t, receiver *r)
{
    int life = r->life;
    bool cut = conc_cancelled(), some = r->open && has_some(r);
    if (!r->open && !cut) {
        EXPECT_INT(conc_signals_next(&r->real), -EPIPE);
        return 0;
    }
    t->waits_at = r;
    int rc = conc_signals_next(&r->real);
    t->waits_at = NULL;
    total.waited += !some;
    log_step(t, "next", (int)(r - m.receivers), rc);
    if (cut || rc == -ECANCELED) {
        EXPECT_INT(rc, -ECANCELED);
        EXPECT(conc_cancelled());
        total.cut_short++;
    } else if (rc == -EPIPE) {
        EXPECT(!r->open || r->life != life);
    } else if (r->open && r->life == life) {
        hand_out(r, rc);
    } else { /* a signal granted before the close belongs to the task */
        int i = index_of(rc);
        m.owed[i] -= m.owed[i] > 0;
        EXPECT(m.owed_at_most[i]-- > 0);
    }
    return rc == -ECANCELED ? rc : 0;
}

static int step_cancel(task *t)
{
    task *other = &m.tasks[1 + pick(t, TASKS - 1)];
    if (other->spawned && other != t)
        EXPECT_INT(conc_cancel(&other->handle), other->ended ? -EALREADY : 0);
    log_step(t, "cancel", other->index, 0);
    return 0;
}

static int step(task *t)
{
    receiver *r = &m.receivers[pick(t, RECEIVERS)];
    switch (pick(t, 16)) {
    case 0:
    case 1: return conc_sleep(random_seconds(pick(t, 4) * EIGHTH));
    case 2: return one_in(t, 2) ? step_cancel(t) : conc_yield();
    case 3: return one_in(t, 2) ? step_close(t, r) : 0;
    case 4: return conc_post(conc_loop_self(), raise_when_posted, t);
    case 5:
    case 6: return step_open(t, r);
    case 7:
    case 8:
    case 9:
    case 10:
        step_raise(t);
        return one_in(t, 6) ? step_close(t, r) : 0; /* between the signal and its receivers */
    default: return step_next(t, r);
    }
}

static int step_in_scope(task *t)
{
    conc_scope s = {0};
    EXPECT_INT(conc_scope_begin(&s, random_seconds(pick(t, 6) * EIGHTH)), 0);
    int rc = conc_scope_end(&s, step(t));
    return rc == -ECANCELED ? rc : 0;
}

static int run_task(void *arg)
{
    task *t = arg;
    int cut_short = 0;
    for (int i = 0; i < STEPS_OF_A_TASK && cut_short < 3; i++)
        cut_short += (one_in(t, 3) ? step(t) : step_in_scope(t)) == -ECANCELED;
    t->ended = true;
    log_step(t, "end", 0, 0);
    return 0;
}

/* ---- programs ---- */

static void check_settled(void)
{
    for (const task *t = m.tasks + 1; t < m.tasks + TASKS; t++)
        if (t->waits_at)
            EXPECT(t->waits_at->open && !has_some(t->waits_at));
}

static int run_main(void *arg)
{
    task *main = arg;
    conc_group g = {0};
    for (int i = 1; i < TASKS; i++) {
        task *t = &m.tasks[i];
        t->random = random_draw(&main->random);
        EXPECT_INT(conc_spawn_task(&g, &t->handle, run_task, t), 0);
        t->spawned = true;
    }
    for (int i = 0; i < ROUNDS; i++) {
        EXPECT_INT(conc_settle(), 0);
        check_settled();
        for (int n = pick(main, 3); n > 0; n--)
            step_raise(main);
        EXPECT_INT(conc_sleep(random_seconds(EIGHTH)), 0);
    }
    conc_group_cancel(&g);
    EXPECT_INT(conc_group_wait(&g), 0);
    for (receiver *r = m.receivers; r < m.receivers + RECEIVERS; r++)
        (void)step_close(main, r);
    for (int i = 0; i < NUMBERS; i++)
        EXPECT_INT(m.owed[i], 0);
    return 17;
}

static void check_dispositions(void)
{
    sigset_t mask;
    struct sigaction now;
    EXPECT_INT(pthread_sigmask(SIG_BLOCK, NULL, &mask), 0);
    for (int i = 0; i < NUMBERS; i++) {
        EXPECT_INT(sigaction(numbers[i], NULL, &now), 0);
        EXPECT(now.sa_handler == count_signal);
        EXPECT_INT(sigismember(&mask, numbers[i]), 0);
    }
}

static void run_program(uint64_t seed, uint64_t order)
{
    conc_options o = {.virtual_clock = true, .seed = order};
    struct sigaction counts = {.sa_handler = count_signal};
    memset(&m, 0, sizeof m);
    for (int i = 0; i < TASKS; i++)
        m.tasks[i].index = i;
    m.tasks[0].random = random_source(seed);
    for (int i = 0; i < NUMBERS; i++)
        EXPECT_INT(sigaction(numbers[i], &counts, NULL), 0);
    EXPECT_INT(conc_run_with(&o, run_main, &m.tasks[0]), 17);
    check_dispositions();
    total.programs++;
}

TEST(random_programs_lose_and_invent_no_signal)
{
    if (random_repeat(300, RANDOM_MIXED, run_program) >= 200) {
        long programs = total.programs;
        CHECK(total.raised > 10 * programs && total.handed_out > 4 * programs);
        CHECK(total.waited > programs && total.cut_short > programs);
        CHECK(total.passed_on > programs / 4 && total.closed > programs);
    }
    if (random_program.verbose)
        fprintf(stderr,
                "%ld programs, %ld signals raised, %ld handed out, %ld waits, %ld passed on, %ld "
                "cut short, %ld closed\n",
                total.programs, total.raised, total.handed_out, total.waited, total.passed_on,
                total.cut_short, total.closed);
}

/* ---- floods of posted functions ---- */

enum { CHAINS = 4, LONGEST = 6000, BOUND = 2000 };

typedef enum source { BY_PIPE, BY_TIMER, BY_SIGNAL, BY_CANCEL, BY_SPAWN, SOURCES } source;

typedef struct waiter {
    source source;
    long since; /* how many posts had run when its event came; -1: not yet */
    conc_task task;
    conc_signals signals;
} waiter;

typedef struct chain {
    int index, next; /* the function that it posts: itself, or another one */
    long order;
} chain;

static struct flood {
    task driver;
    chain chains[CHAINS];
    waiter waiters[SOURCES];
    conc_loop *loop;
    conc_group group;
    int pipe[2];
    int64_t alarm; /* when the timer is due */
    long posts, length, posted, events, latest;
    bool over;
} f;

static void note_served(waiter *w)
{
    long late = f.posts - w->since;
    EXPECT(w->since >= 0);
    EXPECT(late <= BOUND);
    if (late > f.latest)
        f.latest = late;
    w->since = -1;
    f.events++;
}

static int wait_for(waiter *w)
{
    char byte;
    switch (w->source) {
    case BY_PIPE: return (int)conc_read(f.pipe[0], &byte, 1);
    case BY_TIMER: return conc_sleep_until(random_seconds(f.alarm));
    case BY_SIGNAL: return conc_signals_next(&w->signals);
    default: return conc_sleep(CONC_FOREVER);
    }
}

static int run_waiter(void *arg)
{
    waiter *w = arg;
    int number = SIGUSR1;
    if (w->source == BY_SPAWN) {
        note_served(w);
        return 0;
    }
    if (w->source == BY_SIGNAL)
        EXPECT_INT(conc_signals_open(&w->signals, &number, 1), 0);
    for (;;) {
        int rc = wait_for(w);
        if (rc == -ECANCELED && f.over && w->since < 0)
            break;
        note_served(w);
        if (w->source == BY_CANCEL) {
            EXPECT_INT(rc, -ECANCELED);
            break;
        }
        if (w->source == BY_TIMER)
            f.alarm = random_now() + 1000 * EIGHTH;
    }
    (void)conc_signals_close(&w->signals);
    return 0;
}

/* Triggers the event that a task waits for. */
static void make_event(waiter *w)
{
    bool once = w->source == BY_CANCEL || w->source == BY_SPAWN;
    if (w->since >= 0 || f.over || (once && f.events > SOURCES * 20))
        return;
    w->since = f.posts;
    switch (w->source) {
    case BY_PIPE: EXPECT_INT(write(f.pipe[1], "x", 1), 1); break;
    case BY_TIMER: EXPECT_INT(conc_block(random_seconds(f.alarm - random_now())), 0); break;
    case BY_SIGNAL: EXPECT_INT(raise(SIGUSR1), 0); break;
    case BY_CANCEL:
        if (conc_cancel(&w->task) < 0)
            w->since = -1;
        break;
    default: EXPECT_INT(conc_spawn(&f.group, run_waiter, w), 0); break;
    }
}

static void post(int index);

static void run_chain(void *arg)
{
    chain *c = arg;
    f.posts++;
    f.posted--;
    if (one_in(&f.driver, 300))
        make_event(&f.waiters[pick(&f.driver, SOURCES)]);
    if (f.posts >= f.length)
        return;
    if (one_in(&f.driver, 50))
        c->next = pick(&f.driver, CHAINS);
    post(c->next);
    if (f.posted < CHAINS && one_in(&f.driver, 20))
        post(c->index);
}

static void post(int index)
{
    f.posted++;
    EXPECT_INT(conc_post(f.loop, run_chain, &f.chains[index]), 0);
}

/* Ready tasks beside the flood. */
static int yields(void *arg)
{
    (void)arg;
    while (f.posts < f.length / 2)
        if (conc_yield() < 0)
            break;
    return 0;
}

static int run_flood(void *arg)
{
    (void)arg;
    f.loop = conc_loop_self();
    f.alarm = 1000 * EIGHTH;
    EXPECT_INT(conc_group_begin(&f.group), 0);
    for (int i = 0; i < SOURCES; i++) {
        waiter *w = &f.waiters[i];
        w->source = (source)i;
        w->since = -1;
        if (i != BY_SPAWN)
            EXPECT_INT(conc_spawn_task(&f.group, &w->task, run_waiter, w), 0);
    }
    EXPECT_INT(conc_settle(), 0); /* all of them wait */
    if (one_in(&f.driver, 3))
        EXPECT_INT(conc_spawn(&f.group, yields, NULL), 0);
    for (int i = 0; i < CHAINS; i++) {
        f.chains[i] = (chain){.index = i, .next = pick(&f.driver, CHAINS)};
        if (i == 0 || one_in(&f.driver, 2))
            post(i);
    }
    while (f.posted)
        EXPECT_INT(conc_yield(), 0);
    EXPECT_INT(conc_settle(), 0);
    for (int i = 0; i < SOURCES; i++)
        EXPECT_INT(f.waiters[i].since, -1);
    f.over = true;
    conc_group_cancel(&f.group);
    EXPECT_INT(conc_group_wait(&f.group), 0);
    return 17;
}

static int host(const conc_options *o)
{
    conc_embed e = {0};
    int rc = conc_embed_begin(&e, o, run_flood, NULL);
    if (rc == -ENOTSUP)
        return conc_run_with(o, run_flood, NULL);
    EXPECT_INT(rc, 0);
    while (conc_embed_step(&e) == 1) {
        double s = conc_embed_timeout(&e);
        struct pollfd p = {conc_embed_fd(&e), POLLIN, 0};
        EXPECT(poll(&p, 1, s > 1 ? 1000 : (int)(s * 1000)) >= 0 || errno == EINTR);
    }
    return conc_embed_end(&e);
}

static void run_flood_program(uint64_t seed, uint64_t order)
{
    conc_options o = {.virtual_clock = true, .seed = order};
    memset(&f, 0, sizeof f);
    f.driver.random = random_source(seed);
    f.length = 500 + pick(&f.driver, LONGEST);
    EXPECT_INT(pipe(f.pipe), 0);
    EXPECT_INT(one_in(&f.driver, 3) ? host(&o) : conc_run_with(&o, run_flood, NULL), 17);
    close(f.pipe[0]);
    close(f.pipe[1]);
    random_log(0, 0, "events", (int)f.latest, f.events);
    total.handed_out += f.events;
}

TEST(floods_of_posted_functions_delay_nothing_for_long)
{
    uint64_t count = random_repeat(100, RANDOM_MIXED, run_flood_program);
    if (count >= 100)
        CHECK(total.handed_out > (long)count * 5);
}
