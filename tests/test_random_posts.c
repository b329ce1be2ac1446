/* test_random_posts.c - random programs into which other threads post.
 *
 * Threads post functions alone, in bursts or in floods, and wait in between until the loop has run
 * them, so that it often sleeps when the next one arrives. The functions put items, wake tasks,
 * release permits, cancel scopes, spawn, and post again. Tasks wait for all of these, with or
 * without time limits, on the virtual or the real clock, in a plain or an embedded run. Some
 * threads continue until the loop refuses, after main_fn's end. The tests check
 *   - that each accepted post runs, once, in the loop's thread, in the order of its thread, and
 *     soon; none runs after the run;
 *   - that no effect of a post is lost: items, permits, wake-ups, spawned tasks;
 *   - that a descriptor is served after a bounded number of posts;
 *   - that a held loop does not report a deadlock, and can be released after its run.
 * Threads differ from run to run, so steps need not repeat; a seed still determines what each
 * thread does. random_test.h tells how to repeat one by hand.
 *
 * Not under: ucontext, save-fpu, aarch64-bti, poll, seeds (the programs have their own seeds and
 * ways of waiting)
 */
#define TEST_SYNC
#include "random_test.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define MILLISECOND INT64_C(1000000)

enum {
    POSTERS = 3,
    TASKS = 5,
    MOST_POSTS = 4000,
    LARGEST_BURST = 1500,
    MOST_SPINS = 1000,
    MAX_ITEMS = POSTERS * MOST_POSTS,
    CASES = 3,
    BOUND = 2500, /* posts that may run before a ready descriptor */
    PATIENCE = 10 /* seconds within which a post must run */
};

typedef enum kind { COUNT, ITEM, PULSE, PERMIT, CANCEL, SPAWN, AGAIN, KINDS } kind;

typedef struct poster poster;

typedef struct post {
    poster *by;
    int number; /* its number among its thread's posts */
    kind kind;
    int which;
} post;

struct poster {
    pthread_t id;
    int index;
    uint64_t random;
    bool straggles; /* it posts until the loop refuses */
    int accepted;
    atomic_int ran;
    post posts[MOST_POSTS];
};

typedef struct task {
    conc_task handle;
    int index;
    uint64_t random;
    conc_scope scope;
    bool open, told, ended;
    bool gets, takes, listens; /* what it waits for */
    int pulses;                /* how many there were when it began to wait */
} task;

static struct model {
    uint64_t random;
    bool real_clock, embedded, probes, straggles;
    bool shuffled; /* then a ready task may continue late */
    bool quiet;    /* one post at a time, and no other event wakes the loop */
    conc_loop *loop;
    pthread_t thread;
    poster posters[POSTERS];
    int poster_count;
    task tasks[TASKS];
    conc_group group;
    conc_latch working; /* threads that have not reported that they are done */
    conc_queue queue;
    conc_event event;
    conc_sem permits;
    bool received[MAX_ITEMS];
    int items, gets, pulses, released, taken, spawned, children, again, ran_again;
    atomic_long ran;
    atomic_bool ending, over;
    int pipe[2];
    atomic_long probe; /* 1 + the number of posts run when its byte was written; 0: no byte */
    atomic_int probed; /* bytes read */
} m;

static struct {
    long programs, posts, items, heard, taken, cut_short, probes, late, children;
} total;

static const char *backend;

static int pick(uint64_t *source, int n) { return random_pick(source, n); }
static bool one_in(uint64_t *source, int n) { return pick(source, n) == 0; }

/* ---- posted functions ---- */

static int run_child(void *arg)
{
    (void)arg;
    (void)conc_yield();
    m.children++;
    return 0;
}

static void run_again(void *arg)
{
    EXPECT(arg == &m && !m.over);
    m.ran_again++;
}

static void pulse(void)
{
    m.pulses++;
    conc_event_set(&m.event);
    conc_event_clear(&m.event);
}

static void spawn_child(void)
{
    int rc = conc_spawn(m.ending ? NULL : &m.group, run_child, NULL);
    EXPECT(rc == 0 || m.ending);
    m.spawned += rc == 0;
}

static void post_again(void)
{
    int rc = conc_post(m.loop, run_again, &m);
    EXPECT(rc == 0 || (rc == -ESHUTDOWN && m.ending));
    m.again += rc == 0;
}

static void cancel_scope_of(task *t)
{
    if (!t->open || t->scope.expired)
        return;
    conc_scope_cancel(&t->scope);
    t->told = true;
}

static void run_post(void *arg)
{
    post *p = arg;
    EXPECT(!m.over && pthread_equal(pthread_self(), m.thread));
    EXPECT_INT(p->number, p->by->ran);
    switch (p->kind) {
    case ITEM:
        EXPECT_INT(conc_queue_try_put(&m.queue, &m.items), 0);
        m.items++;
        break;
    case PULSE: pulse(); break;
    case PERMIT:
        EXPECT_INT(conc_sem_release(&m.permits), 0);
        m.released++;
        break;
    case CANCEL: cancel_scope_of(&m.tasks[p->which % TASKS]); break;
    case SPAWN: spawn_child(); break;
    case AGAIN: post_again(); break;
    default: break;
    }
    m.ran++;
    p->by->ran++;
}

static void finish(void *arg)
{
    (void)arg;
    EXPECT_INT(conc_latch_done(&m.working), 0);
}

/* ---- threads that post ---- */

/* Posts one function, if the loop accepts it. */
static bool make_post(poster *p, kind kind)
{
    post *next = &p->posts[p->accepted];
    *next = (post){p, p->accepted, kind, pick(&p->random, TASKS)};
    int rc = conc_post(m.loop, run_post, next);
    if (rc == 0)
        p->accepted++;
    else
        EXPECT(rc == -ESHUTDOWN && m.ending && p->straggles);
    return rc == 0;
}

/* Waits until the loop has done its work, which is otherwise lost. */
static void wait_until(const atomic_int *count, int wanted, const char *what)
{
    const char *factor = getenv("CK_TIMEOUT_MULTIPLIER");
    double limit = test_real_seconds() + PATIENCE * (factor ? atoi(factor) : 1);
    while (*count < wanted) {
        if (test_real_seconds() > limit)
            random_fail(__FILE__, __LINE__, what);
        sched_yield();
    }
}

static void wait_for_own_posts(const poster *p)
{
    wait_until(&p->ran, p->accepted, "a post does not run");
}

/* Writes a byte, and records how many posts the reader may be late. */
static void probe(void)
{
    int before = m.probed;
    EXPECT_INT(write(m.pipe[1], "x", 1), 1);
    m.probe = m.ran + 1;
    wait_until(&m.probed, before + 1, "a byte is not read");
    m.probe = 0;
}

static void make_burst(poster *p)
{
    static const kind often[] = {COUNT, ITEM, PULSE, PERMIT};
    int n = 1 + pick(&p->random, one_in(&p->random, 2) ? 3 : LARGEST_BURST);
    for (int i = 0; i < n && p->accepted < MOST_POSTS; i++) {
        bool any = one_in(&p->random, 3);
        (void)make_post(p, any ? (kind)pick(&p->random, KINDS) : often[pick(&p->random, 4)]);
    }
}

static void pause_between_bursts(poster *p)
{
    switch (pick(&p->random, 6)) {
    case 0: break;
    case 1: sched_yield(); break;
    case 2: usleep((useconds_t)pick(&p->random, 300)); break;
    default: wait_for_own_posts(p); break;
    }
    if (m.probes && p->index == 0 && one_in(&p->random, 2))
        probe();
}

/* The next post arrives at any moment while the loop falls asleep. */
static void post_one_by_one(poster *p)
{
    for (int i = 0; i < 1500; i++) {
        (void)make_post(p, one_in(&p->random, 2) ? COUNT : PERMIT);
        wait_for_own_posts(p);
        int spins = pick(&p->random, MOST_SPINS);
        for (atomic_int n = 0; n < spins; n++)
            continue;
    }
}

static void *run_poster(void *arg)
{
    poster *p = arg;
    int bursts = 1 + pick(&p->random, 10);
    if (p->straggles) {
        while (p->accepted < MOST_POSTS && make_post(p, COUNT))
            if (one_in(&p->random, 8))
                sched_yield();
    } else {
        if (m.quiet)
            post_one_by_one(p);
        for (int i = 0; i < bursts && !m.quiet; i++) {
            make_burst(p);
            pause_between_bursts(p);
        }
        EXPECT_INT(conc_post(m.loop, finish, NULL), 0);
    }
    EXPECT_INT(conc_loop_release(m.loop), 0);
    return NULL;
}

/* ---- tasks ---- */

static void receive(int item)
{
    EXPECT(item >= 0 && item < m.items && !m.received[item]);
    m.received[item] = true;
    m.gets++;
    total.items++;
}

static void begin_to_listen(task *t)
{
    t->listens = true;
    t->pulses = m.pulses;
}

static void check_heard(const task *t)
{
    EXPECT(m.pulses > t->pulses);
    total.heard++;
}

static int get_item(task *t)
{
    int item = -1;
    t->gets = true;
    int rc = conc_queue_get(&m.queue, &item);
    if (rc == 0)
        receive(item);
    else
        EXPECT_INT(item, -1);
    return rc;
}

static int listen_to_event(task *t)
{
    begin_to_listen(t);
    int rc = conc_event_wait(&m.event);
    if (rc == 0)
        check_heard(t);
    return rc;
}

static int take_permit(task *t)
{
    t->takes = true;
    int rc = conc_sem_acquire(&m.permits);
    m.taken += rc == 0;
    total.taken += rc == 0;
    return rc;
}

static int select_one(task *t, double limit)
{
    int item = -1;
    t->gets = true;
    begin_to_listen(t);
    conc_case c[CASES] = {CONC_CASE_EVENT(&m.event), CONC_CASE_GET(&m.queue, &item),
                          CONC_CASE_AFTER(limit)};
    int rc = conc_select(c, CASES);
    EXPECT(rc >= 0 || rc == -ECANCELED);
    if (rc == 0)
        check_heard(t);
    if (rc == 1)
        receive(item);
    else
        EXPECT_INT(item, -1);
    return rc < 0 ? rc : 0;
}

static int wait_for_something(task *t, double limit)
{
    switch (pick(&t->random, 6)) {
    case 0: return get_item(t);
    case 1: return listen_to_event(t);
    case 2:
    case 3: return take_permit(t);
    case 4: return conc_yield();
    default: return select_one(t, limit);
    }
}

/* Time costs nothing on the virtual clock, so after a while only posts end the waits. */
static double pick_limit(task *t, int step)
{
    enum { MOST_LIMITS = 40 };
    if (m.quiet || one_in(&t->random, 2) || (!m.real_clock && step > MOST_LIMITS))
        return CONC_FOREVER;
    return random_seconds(pick(&t->random, 30) * MILLISECOND / 10);
}

static int run_task(void *arg)
{
    task *t = arg;
    for (int i = 0; !m.ending; i++) {
        double limit = pick_limit(t, i);
        memset(&t->scope, 0, sizeof t->scope);
        t->told = false;
        EXPECT_INT(conc_scope_begin(&t->scope, limit), 0);
        t->open = true;
        int rc = wait_for_something(t, limit);
        t->gets = t->takes = t->listens = false;
        EXPECT(rc == 0 || rc == -ECANCELED);
        if (rc)
            EXPECT(t->told || t->scope.expired || m.ending);
        total.cut_short += rc != 0;
        t->open = false;
        int ended = conc_scope_end(&t->scope, rc);
        if (rc == 0 || t->told)
            EXPECT(ended == 0 || (rc && m.ending));
        else
            EXPECT_INT(ended, m.ending ? -ECANCELED : -ETIMEDOUT);
    }
    t->ended = true;
    return 0;
}

static int run_reader(void *arg)
{
    char byte;
    (void)arg;
    while (conc_read(m.pipe[0], &byte, 1) == 1) {
        long since = m.probe, late = m.ran + 1 - since;
        if (since) {
            EXPECT(late <= BOUND || m.shuffled);
            total.late = late > total.late ? late : total.late;
        }
        total.probes++;
        m.probed++;
    }
    return 0;
}

/* ---- programs ---- */

static void start_thread(int i)
{
    poster *p = &m.posters[i];
    p->index = i;
    p->random = random_draw(&m.random);
    p->straggles = m.straggles && i == m.poster_count - 1 && i > 0;
    if (!p->straggles)
        EXPECT_INT(conc_latch_add(&m.working, 1), 0);
    EXPECT_INT(conc_loop_hold(m.loop), 0);
    EXPECT_INT(pthread_create(&p->id, NULL, run_poster, p), 0);
}

/* All tasks wait: nothing that they wait for may be there. */
static void check_settled(void)
{
    EXPECT_INT(conc_settle(), 0);
    EXPECT_INT(m.gets + (int)conc_queue_len(&m.queue), m.items);
    EXPECT_INT(m.taken + m.permits.permits, m.released);
    EXPECT_INT(m.children, m.spawned);
    EXPECT_INT(m.ran_again, m.again);
    for (const task *t = m.tasks; t < m.tasks + TASKS; t++) {
        EXPECT(!t->ended);
        EXPECT(!t->gets || conc_queue_len(&m.queue) == 0);
        EXPECT(!t->takes || m.permits.permits == 0);
        EXPECT(!t->listens || t->pulses == m.pulses);
    }
}

static int run_main(void *arg)
{
    EXPECT(arg == &m);
    m.loop = conc_loop_self();
    m.thread = pthread_self();
    EXPECT_INT(conc_group_begin(&m.group), 0);
    for (int i = 0; i < TASKS; i++) {
        task *t = &m.tasks[i];
        t->index = i;
        t->random = random_draw(&m.random);
        EXPECT_INT(conc_spawn_task(&m.group, &t->handle, run_task, t), 0);
    }
    if (m.probes)
        EXPECT_INT(conc_spawn(&m.group, run_reader, NULL), 0);
    for (int i = 0; i < m.poster_count; i++)
        start_thread(i);
    EXPECT_INT(conc_latch_wait(&m.working), 0);
    for (const poster *p = m.posters; p < m.posters + m.poster_count; p++)
        EXPECT(p->straggles || p->ran == p->accepted);
    if (!m.straggles)
        check_settled();
    m.ending = true;
    conc_group_cancel(&m.group);
    EXPECT_INT(conc_group_wait(&m.group), 0);
    return 17;
}

static int host(const conc_options *o)
{
    conc_embed e = {0};
    int rc = conc_embed_begin(&e, o, run_main, &m);
    if (rc == -ENOTSUP)
        return conc_run_with(o, run_main, &m);
    EXPECT_INT(rc, 0);
    while (conc_embed_step(&e) == 1) {
        double s = conc_embed_timeout(&e);
        struct pollfd p = {conc_embed_fd(&e), POLLIN, 0};
        EXPECT(poll(&p, 1, s > 60 ? 60000 : (int)(s * 1000)) >= 0 || errno == EINTR);
    }
    return conc_embed_end(&e);
}

static void set_up(uint64_t seed)
{
    memset(&m, 0, sizeof m);
    m.random = random_source(seed);
    m.real_clock = one_in(&m.random, 2);
    m.embedded = one_in(&m.random, 4);
    m.probes = one_in(&m.random, 2);
    m.straggles = one_in(&m.random, 3);
    m.poster_count = 1 + pick(&m.random, POSTERS);
    m.quiet = one_in(&m.random, 10);
    if (m.quiet)
        m.poster_count = 1;
    m.straggles &= m.poster_count > 1;
    m.queue = (conc_queue)CONC_QUEUE(int, 0);
    m.permits = (conc_sem)CONC_SEM(0);
    EXPECT_INT(pipe(m.pipe), 0);
}

static void run_program(uint64_t seed, uint64_t order)
{
    set_up(seed);
    m.shuffled = order != 0;
    conc_options o = {.virtual_clock = !m.real_clock, .seed = order};
    random_program.differs = true;
    EXPECT_INT(m.embedded ? host(&o) : conc_run_with(&o, run_main, &m), 17);
    m.over = true;
    for (poster *p = m.posters; p < m.posters + m.poster_count; p++) {
        EXPECT_INT(pthread_join(p->id, NULL), 0);
        EXPECT_INT(p->ran, p->accepted);
    }
    EXPECT_INT(m.ran_again, m.again);
    EXPECT_INT(m.children, m.spawned);
    conc_queue_destroy(&m.queue);
    EXPECT_INT(close(m.pipe[0]) + close(m.pipe[1]), 0);
    total.posts += m.ran;
    total.children += m.children;
    total.programs++;
}

static void run_programs(const char *by)
{
    backend = by;
    setenv("CONC_POLL", backend, 1);
    uint64_t count = random_repeat(200, RANDOM_MIXED, run_program);
    long programs = total.programs;
    if (random_program.verbose)
        fprintf(stderr,
                "%ld programs, %ld posts, %ld items, %ld pulses heard, %ld permits, %ld cut short, "
                "%ld bytes, %ld posts late, %ld children\n",
                programs, total.posts, total.items, total.heard, total.taken, total.cut_short,
                total.probes, total.late, total.children);
    if (count < 200)
        return;
    CHECK(total.posts > 50 * programs && total.items > 10 * programs);
    CHECK(total.heard > programs && total.taken > 10 * programs);
    CHECK(total.cut_short > programs && total.probes > programs / 4);
    CHECK(total.children > programs);
}

#if !TEST_ONLY_POLL
TEST(posts_from_other_threads_are_run_once_and_in_order_with_the_best)
{
    run_programs(TEST_POLLER);
}
#endif

TEST(posts_from_other_threads_are_run_once_and_in_order_with_poll) { run_programs("poll"); }
