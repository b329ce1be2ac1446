/* test_offload.c - conc_offload and conc_offload_abandon: the pool that all runs share, from its
 * first use to the end of the last run, and abandoned jobs.
 *
 * Seeds: 2 (jobs are threads)
 * Not under: ucontext, no-epoll, save-fpu, aarch64, aarch64-bti, riscv64, poll, single, clang,
 * static, gcc-asan, valgrind (how tasks switch and wait is tested elsewhere; threads make these
 * configurations slow)
 */
/* These options give this file its own implementation, whose allocations can fail. */
#define CONC_MALLOC(n) test_realloc(NULL, (n))
#define CONC_REALLOC(p, n) test_realloc((p), (n))
#define CONC_FREE(p) test_free(p)
#define TEST_THREADS
#include "pool_test.h"

#include <dlfcn.h>
#include <poll.h>
#include <sched.h>

/* ---- threads and runs ---- */

static void (*body_in_task)(void);

static void call_and_look(void)
{
    conc_stats s;
    body_in_task();
    conc_get_stats(&s);
    /* the thread of an ended job releases the loop soon after */
    for (int i = 0; i < 20000 && s.holds; i++) {
        nap();
        conc_get_stats(&s);
    }
    check_loop();
}

static void call_in_task(void (*body)(void))
{
    body_in_task = body;
    test_in_task(call_and_look);
}

#define OFFLOAD_TEST(name) CLEAN_TEST(name, call_in_task) /* in a task, on the virtual clock */

/* Returns how many threads the shared pool has: four more than there are processors, at most 32. */
static int shared_threads(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN) + 4;
    return n > 32 ? 32 : (int)n;
}

/* ---- jobs ---- */

/* A job that waits at a gate, and whose argument is to be freed. */
typedef struct held {
    int rc;
    const char *words;
    counter entered, gate, freed;
    atomic_bool asked, freed_too_soon; /* asked: it was asked to stop when the gate opened */
    atomic_int runs, ends;
    pthread_t thread, freed_on;
} held;

#define HELD(...)                                                                \
    {                                                                            \
        .rc = __VA_ARGS__, .entered = COUNTER, .gate = COUNTER, .freed = COUNTER \
    }

static int holds(void *arg)
{
    held *h = arg;
    h->runs++;
    if (count_up(&h->entered) == 1)
        h->thread = pthread_self();
    count_wait(&h->gate, 1);
    h->asked = conc_job_cancelled();
    h->ends++;
    return h->words ? conc_fail(h->rc, "%s", h->words) : h->rc;
}

static void frees(void *arg)
{
    held *h = arg;
    h->freed_on = pthread_self();
    h->freed_too_soon = h->runs != h->ends;
    count_up(&h->freed);
}

static void let_go(held *h) { count_up(&h->gate); }

/* It was freed once, after it ran this many times. */
static void check_freed(held *h, int runs)
{
    count_wait(&h->freed, 1);
    CHECK_INT(count_now(&h->freed), 1);
    CHECK_INT(h->runs, runs);
    CHECK_INT(h->ends, runs);
    CHECK(!h->freed_too_soon);
}

/* A task that offloads one job. */
typedef struct caller {
    conc_fn *how, *fn;
    void *arg;
    void (*free_arg)(void *);
    int rc, next;
    int kind; /* by_kind: of the jobs that conc itself offloads, too */
    double at;
    char text[128];
    conc_task task;
} caller;

static int by_offload(void *arg)
{
    caller *c = arg;
    return conc_offload(c->fn, c->arg);
}

static int by_abandon(void *arg)
{
    caller *c = arg;
    return conc_offload_abandon(c->fn, c->arg, c->free_arg);
}

static int by_kind(void *arg)
{
    caller *c = arg;
    return conc__offload(c->kind, c->fn, c->arg, "by_kind");
}

#define OFFLOADS(h) ((caller){.how = by_offload, .fn = holds, .arg = (h)})
#define ABANDONS(h) ((caller){.how = by_abandon, .fn = holds, .arg = (h), .free_arg = frees})

static int calls_once(void *arg)
{
    caller *c = arg;
    c->rc = WAITING;
    c->rc = c->how(c);
    c->at = conc_now();
    snprintf(c->text, sizeof c->text, "%s", conc_last_error());
    c->next = conc_sleep(0);
    return 0;
}

static void start(conc_group *g, caller *c)
{
    CHECK_INT(conc_spawn_task(g, &c->task, calls_once, c), 0);
    CHECK_INT(conc_settle(), 0);
}

static void start_held(conc_group *g, caller *c, held *h)
{
    start(g, c);
    count_wait(&h->entered, 1);
    CHECK_INT(c->rc, WAITING);
}

static void cancel(caller *c)
{
    CHECK_INT(conc_cancel(&c->task), 0);
    CHECK_INT(conc_settle(), 0);
}

static void end(conc_group *g) { CHECK_INT(conc_group_wait(g), 0); }

/* Starts as many waiting jobs as the shared pool has threads, so that the next one has to wait in
 * the queue. */
typedef struct crowd {
    held hold;
    conc_group group;
    caller callers[32];
    int n;
} crowd;

static void fill_shared_pool(crowd *c)
{
    *c = (crowd){.hold = HELD(0), .n = shared_threads()};
    for (int i = 0; i < c->n; i++) {
        c->callers[i] = OFFLOADS(&c->hold);
        start(&c->group, &c->callers[i]);
    }
    count_wait(&c->hold.entered, c->n);
}

static void empty_shared_pool(crowd *c)
{
    let_go(&c->hold);
    end(&c->group);
    CHECK_INT(c->hold.ends, c->n);
}

/* ---- the shared pool ---- */

typedef struct place {
    pthread_t thread;
    bool no_task, no_loop, not_asked;
    int slept;
} place;

static int looks_around(void *arg)
{
    place *p = arg;
    p->thread = pthread_self();
    p->no_task = conc_self() == NULL;
    p->no_loop = conc_loop_self() == NULL;
    p->not_asked = !conc_job_cancelled();
    p->slept = conc_sleep(1);
    return 42;
}

static void check_place(const place *p)
{
    CHECK(!pthread_equal(p->thread, pthread_self()));
    CHECK(p->no_task && p->no_loop && p->not_asked);
    CHECK_INT(p->slept, -EPERM);
}

OFFLOAD_TEST(a_job_runs_on_another_thread_and_is_no_task)
{
    place p = {0};
    CHECK_INT(conc_offload(looks_around, &p), 42);
    check_place(&p);
    p = (place){0};
    CHECK_INT(conc_offload_abandon(looks_around, &p, NULL), 42);
    check_place(&p);
    CHECK_TIME(0);
}

OFFLOAD_TEST(a_result_is_handed_over_whatever_it_is)
{
    int values[] = {0, 1, 42, INT_MAX, -1, -EIO, -ECANCELED, -ETIMEDOUT, INT_MIN};
    for (size_t i = 0; i < CONC_LEN(values); i++) {
        CHECK_INT(conc_offload(returns, &values[i]), values[i]);
        CHECK_INT(conc_offload_abandon(returns, &values[i], NULL), values[i]);
        CHECK_INT(conc_yield(), 0);
    }
}

OFFLOAD_TEST(the_error_text_comes_with_the_result)
{
    held h[3] = {HELD(-EPROTO), HELD(-EPROTO), HELD(-EPROTO)};
    h[0].words = h[1].words = "line 12: no colon";
    for (int i = 0; i < 3; i++)
        let_go(&h[i]);
    caller c[] = {OFFLOADS(&h[0]), ABANDONS(&h[1]), OFFLOADS(&h[2])};
    for (int i = 0; i < 3; i++) {
        CHECK_INT(calls_once(&c[i]), 0);
        CHECK_INT(c[i].rc, -EPROTO);
        CHECK_STR(c[i].text, i < 2 ? "line 12: no colon" : conc_strerror(-EPROTO));
    }
    check_freed(&h[1], 1);
}

static int fails_in_words(void *arg) { return conc_fail(-EPROTO, "%s", (const char *)arg); }

static void frees_in_vain(void *arg)
{
    (void)arg;
    conc_fail(-EIO, "of freeing");
    conc_fail(-EPROTO, "of freeing");
}

static int abandons_and_looks(void *words)
{
    CHECK_INT(conc_offload_abandon(fails_in_words, words, frees_in_vain), -EPROTO);
    CHECK_STR(conc_last_error(), words);
    return 0;
}

OFFLOAD_TEST(freeing_an_argument_keeps_the_jobs_error_text)
{
    static char words[] = "of the job";
    CHECK_INT(abandons_and_looks(words), 0);
    CHECK_INT(conc_offload(abandons_and_looks, words), 0);
}

OFFLOAD_TEST(the_shared_pool_has_four_threads_more_than_there_are_processors)
{
    static crowd c;
    static held h = HELD(7);
    conc_group g = {0};
    CHECK_INT(count_threads(), base); /* none before the first job */
    fill_shared_pool(&c);
    CHECK_INT(count_threads(), base + c.n);
    caller next = OFFLOADS(&h);
    start(&g, &next);
    CHECK_INT(count_threads(), base + c.n);
    CHECK_INT(count_now(&h.entered), 0);
    let_go(&c.hold);
    let_go(&h);
    end(&g);
    empty_shared_pool(&c);
    CHECK_INT(next.rc, 7);
    CHECK_INT(count_threads(), base + c.n);
}

static atomic_int threads_seen;
static pthread_t last_thread;

static int notes_thread(void *arg)
{
    (void)arg;
    threads_seen += threads_seen == 0 || !pthread_equal(last_thread, pthread_self());
    last_thread = pthread_self();
    return 0;
}

OFFLOAD_TEST(jobs_one_after_another_use_one_thread)
{
    for (int i = 0; i < 100; i++)
        CHECK_INT(conc_offload(notes_thread, NULL), 0);
    CHECK_INT(threads_seen, 1);
    CHECK_INT(count_threads(), base + 1);
}

static int offloads_count(void *arg)
{
    int rc = conc_offload(counts, arg);
    return rc > 0 ? 0 : rc;
}

static int offloads_in_many_tasks(void *arg)
{
    (void)arg;
    return conc_map(offloads_count, NULL, 50, 0);
}

THREAD_TEST(the_shared_pool_ends_with_each_run_and_starts_again)
{
    for (int i = 0; i < 50; i++) {
        CHECK_INT(run_virtual(offloads_in_many_tasks, NULL), 0);
        check_threads(base);
    }
    CHECK_INT(calls, 50 * 50);
}

static int offloads_nothing(void *arg)
{
    (void)arg;
    return conc_sleep(1);
}

THREAD_TEST(a_run_that_offloads_nothing_has_no_threads)
{
    CHECK_INT(run_virtual(offloads_nothing, NULL), 0);
    CHECK_INT(count_threads(), base);
}

/* Two runs at a time: the one that ends first leaves the pool to the other. */
static counter inner_used = COUNTER, outer_used = COUNTER;

static int uses_and_leaves(void *arg)
{
    CONC_TRY(conc_offload(counts, arg));
    count_up(&inner_used);
    count_wait(&outer_used, 1);
    return 0;
}

static int uses_and_stays(void *arg)
{
    int threads = 0;
    side s = {.fn = uses_and_leaves, .in_run = true};
    (void)arg;
    side_start(&s);
    count_wait(&inner_used, 1);
    CONC_TRY(conc_offload(counts, NULL));
    count_up(&outer_used);
    CONC_TRY(side_end(&s));
    for (int i = 0; i < 10; i++)
        CONC_TRY(conc_offload(counts, NULL));
    threads = count_threads();
    return threads > base ? threads : -EPROTO;
}

THREAD_TEST(the_shared_pool_lasts_until_the_last_run_ends)
{
    CHECK(run_virtual(uses_and_stays, NULL) > base);
    CHECK_INT(calls, 12);
}

/* A run that does not offload is still a run. */
static int lets_others_offload(void *arg)
{
    (void)arg;
    side s = {.fn = offloads_count, .in_run = true};
    for (int i = 0; i < 3; i++) {
        side_start(&s);
        CHECK_INT(side_end(&s), 0);
    }
    return conc_offload(counts, NULL);
}

THREAD_TEST(runs_begin_and_end_beside_one_that_lasts)
{
    CHECK_INT(run_virtual(lets_others_offload, NULL), 4);
}

static int runs_again_and_again(void *arg)
{
    for (int i = 0; i < 60; i++)
        CONC_TRY(run_virtual(offloads_count, arg));
    return 0;
}

THREAD_TEST(runs_of_several_threads_begin_and_end_the_shared_pool_at_any_moment)
{
    side s[4];
    for (int i = 0; i < 4; i++) {
        s[i] = (side){.fn = runs_again_and_again};
        side_start(&s[i]);
    }
    for (int i = 0; i < 4; i++)
        CHECK_INT(side_end(&s[i]), 0);
    CHECK_INT(calls, 240);
}

/* ---- outside a task ---- */

THREAD_TEST(in_a_plain_thread_an_offload_is_a_call)
{
    place p;
    held h = HELD(-EIO);
    let_go(&h);
    CHECK_INT(conc_offload(looks_around, &p), 42);
    CHECK(pthread_equal(p.thread, pthread_self()));
    CHECK_INT(conc_offload_abandon(looks_around, &p, NULL), 42);
    CHECK(pthread_equal(p.thread, pthread_self()));
    CHECK_INT(conc_offload_abandon(holds, &h, frees), -EIO);
    check_freed(&h, 1);
    CHECK(pthread_equal(h.thread, pthread_self()) && pthread_equal(h.freed_on, pthread_self()));
    CHECK_INT(count_threads(), base);
}

static int offloads_inside(void *arg)
{
    place *p = arg;
    p->thread = pthread_self();
    CONC_TRY(conc_offload(looks_around, &p[1]));
    CONC_TRY(conc_offload_abandon(looks_around, &p[2], NULL));
    return 6;
}

static void check_same_thread(const place *p)
{
    CHECK(!pthread_equal(p[0].thread, pthread_self()));
    CHECK(pthread_equal(p[0].thread, p[1].thread));
    CHECK(pthread_equal(p[0].thread, p[2].thread));
    check_place(&p[1]);
}

OFFLOAD_TEST(in_a_job_an_offload_is_a_call)
{
    place p[3];
    CHECK_INT(conc_offload(offloads_inside, p), 6);
    check_same_thread(p);
    CHECK_INT(conc_offload_abandon(offloads_inside, p, NULL), 6);
    check_same_thread(p);
    CHECK_INT(count_threads(), base + 2);
    CONC_AUTO(conc_pool, pool) = {.threads = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_run(&pool, offloads_inside, p), 6);
    check_same_thread(p);
    CHECK_INT(count_threads(), base + 3);
}

OFFLOAD_TEST(many_jobs_that_offload_have_room)
{
    CHECK_INT(conc_map_all(offloads_count, NULL, 100, 0, NULL), 0);
    static place p[100][3];
    caller c[100];
    conc_group g = {0};
    for (int i = 0; i < 100; i++) {
        c[i] = (caller){.how = by_offload, .fn = offloads_inside, .arg = p[i]};
        CHECK_INT(conc_spawn_task(&g, &c[i].task, calls_once, &c[i]), 0);
    }
    end(&g);
    for (int i = 0; i < 100; i++) {
        CHECK_INT(c[i].rc, 6);
        check_same_thread(p[i]);
    }
}

static int runs_and_offloads(void *arg) { return run_virtual(offloads_count, arg); }

OFFLOAD_TEST(a_run_inside_a_job_offloads_too_and_its_end_is_not_the_pools)
{
    for (int i = 0; i < 10; i++)
        CHECK_INT(conc_offload(runs_and_offloads, NULL), 0);
    CHECK_INT(calls, 10);
    CHECK_INT(conc_offload(counts, NULL), 11);
}

static int offloads_a_run(void *arg) { return conc_offload(runs_and_offloads, arg); }

OFFLOAD_TEST(as_many_runs_inside_jobs_as_there_are_threads_and_more_offload_at_once)
{
    int n = 2 * shared_threads();
    CHECK_INT(conc_map(offloads_a_run, NULL, (size_t)n, 0), 0);
    CHECK_INT(calls, n);
}

/* Runs in jobs in runs in jobs. */
static int nests(void *arg);

static int nests_in_run(void *arg) { return conc_offload(nests, arg); }

static int nests(void *arg)
{
    int less = *(int *)arg - 1;
    return less < 0 ? counts(NULL) : run_virtual(nests_in_run, &less);
}

OFFLOAD_TEST(runs_and_jobs_nest_deeper_than_there_are_threads)
{
    int depth = shared_threads() + 3;
    CHECK_INT(conc_offload(nests, &depth), 1);
}

static bool posted;

static void try_in_post(void *arg)
{
    held *h = arg;
    CHECK_INT(conc_offload(counts, NULL), -EPERM);
    CHECK_INT(conc_offload_abandon(counts, NULL, NULL), -EPERM);
    CHECK_INT(conc_offload_abandon(holds, h, frees), -EPERM);
    posted = true;
}

OFFLOAD_TEST(a_posted_function_cannot_offload)
{
    held h = HELD(0);
    CHECK_INT(conc_post(conc_loop_self(), try_in_post, &h), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(posted);
    check_freed(&h, 0);
    CHECK_INT(calls, 0);
    CHECK_INT(count_threads(), base);
}

static void offload_no_function(void)
{
    held h = HELD(0);
    CHECK_INT(conc_offload(NULL, NULL), -EINVAL);
    CHECK_INT(conc_offload_abandon(NULL, NULL, NULL), -EINVAL);
    CHECK_INT(conc_offload_abandon(NULL, &h, frees), -EINVAL);
    check_freed(&h, 0);
    CHECK_INT(count_threads(), base);
}

OFFLOAD_TEST(without_a_function_nothing_is_called) { offload_no_function(); }
THREAD_TEST(without_a_function_nothing_is_called_in_a_thread_either) { offload_no_function(); }

/* ---- the loop continues ---- */

OFFLOAD_TEST(the_loop_continues_and_virtual_time_stands_still_while_a_job_runs)
{
    held h = HELD(7);
    conc_group g = {0};
    caller c = OFFLOADS(&h);
    start_held(&g, &c, &h);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_yield(), 0);
    CHECK_TIME(0);
    CHECK_INT(c.rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK_INT(c.rc, 7);
    CHECK_TIME(0);
}

static int ticks_and_opens(void *arg)
{
    for (int i = 0; i < 5; i++)
        CONC_TRY(conc_sleep(0.001));
    let_go(arg);
    return 0;
}

static int ticks_beside_a_job(void *arg)
{
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, ticks_and_opens, arg));
    return conc_group_end(&g, conc_offload(holds, arg));
}

THREAD_TEST(on_the_real_clock_the_loop_ticks_while_a_job_runs)
{
    held h = HELD(7);
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(ticks_beside_a_job, &h), 7);
}

/* A job that calls back into the loop, and waits for the reply. */
typedef struct call_back {
    conc_loop *loop;
    pthread_t loop_thread, called_on;
    counter replied;
    bool spawns;
} call_back;

static int replies(void *arg)
{
    call_back *b = arg;
    int rc = conc_offload(counts, NULL); /* from the loop back to another thread */
    b->called_on = pthread_self();
    count_up(&b->replied);
    return rc < 0 ? rc : 0;
}

static void called_back(void *arg)
{
    call_back *b = arg;
    if (b->spawns) {
        CHECK_INT(conc_spawn(NULL, replies, b), 0);
        return;
    }
    b->called_on = pthread_self();
    count_up(&b->replied);
}

static int calls_back(void *arg)
{
    call_back *b = arg;
    for (int i = 0; i < 20; i++) {
        b->spawns = i % 2;
        CONC_TRY(conc_post(b->loop, called_back, b));
        count_wait(&b->replied, i + 1);
        if (!pthread_equal(b->called_on, b->loop_thread))
            return -EPROTO;
    }
    return 0;
}

static int offloads_call_backs(void *arg)
{
    (void)arg;
    call_back b = {conc_loop_self(), pthread_self(), pthread_self(), COUNTER, false};
    return conc_offload(calls_back, &b);
}

OFFLOAD_TEST(jobs_call_back_into_the_loop_which_offloads_again)
{
    CHECK_INT(conc_map(offloads_call_backs, NULL, 4, 0), 0);
    CHECK_INT(calls, 40);
}

typedef struct late {
    held hold;
    conc_loop *loop;
    atomic_int posted;
} late;

static void never(void *arg)
{
    (void)arg;
    test_fail(__FILE__, __LINE__, "this must not run");
}

static int posts_late(void *arg)
{
    late *l = arg;
    holds(&l->hold);
    l->posted = conc_post(l->loop, never, NULL);
    conc_loop_release(l->loop);
    return 0;
}

static void frees_late(void *arg) { frees(&((late *)arg)->hold); }

static int abandons_late(void *arg)
{
    late *l = arg;
    conc_group g = {0};
    caller c = {.how = by_abandon, .fn = posts_late, .arg = l, .free_arg = frees_late};
    l->loop = conc_loop_self();
    CHECK_INT(conc_loop_hold(l->loop), 0);
    start_held(&g, &c, &l->hold);
    cancel(&c);
    end(&g);
    return 3;
}

THREAD_TEST(a_job_that_calls_back_after_the_run_gets_an_error)
{
    static late l = {.hold = HELD(0)};
    CHECK_INT(run_virtual(abandons_late, &l), 3);
    let_go(&l.hold);
    check_freed(&l.hold, 1);
    CHECK_INT(l.posted, -ESHUTDOWN);
}

/* ---- cancels and time limits of conc_offload ---- */

OFFLOAD_TEST(a_cancelled_task_waits_for_its_running_job_and_gets_the_result)
{
    held h = HELD(7);
    conc_group g = {0};
    caller c = OFFLOADS(&h);
    start_held(&g, &c, &h);
    cancel(&c);
    CHECK_INT(c.rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK_INT(c.rc, 7);
    CHECK_INT(c.next, -ECANCELED);
    CHECK(h.asked);
}

OFFLOAD_TEST(a_job_without_a_cancel_is_not_asked_to_stop)
{
    held h = HELD(7);
    let_go(&h);
    CHECK_INT(conc_offload(holds, &h), 7);
    CHECK(!h.asked);
    CHECK(!conc_job_cancelled());
}

OFFLOAD_TEST(a_queued_job_is_taken_back_when_its_task_is_cancelled)
{
    static crowd c;
    held h = HELD(7);
    conc_group g = {0};
    caller queued = OFFLOADS(&h);
    fill_shared_pool(&c);
    start(&g, &queued);
    cancel(&queued);
    CHECK_INT(queued.rc, -ECANCELED);
    end(&g);
    empty_shared_pool(&c);
    CHECK_INT(conc_offload(counts, NULL), 1);
    CHECK_INT(h.runs, 0);
}

static int offloads_when_cancelled(void *arg)
{
    held *h = arg;
    CHECK_INT(conc_cancel(conc_self()), 0);
    CHECK_INT(conc_offload(counts, NULL), -ECANCELED);
    CHECK_INT(conc_offload_abandon(counts, NULL, NULL), -ECANCELED);
    CHECK_INT(conc_offload_abandon(holds, h, frees), -ECANCELED);
    CHECK_INT(count_now(&h->freed), 1); /* at once */
    return 0;
}

OFFLOAD_TEST(an_already_cancelled_task_starts_nothing)
{
    held h = HELD(0);
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, offloads_when_cancelled, &h), 0);
    end(&g);
    CHECK_INT(calls, 0);
    check_freed(&h, 0);
    CHECK_INT(count_threads(), base);
}

static int blocks(void *arg) { return conc_block(*(double *)arg); }

static int blocks_until_asked(void *arg)
{
    (void)arg;
    for (int n = 0; n < 100; n++) {
        CONC_TRY(conc_block(0.5));
        if (conc_job_cancelled())
            return -ECANCELED;
    }
    return -EPROTO;
}

OFFLOAD_TEST(jobs_that_block_take_virtual_time_and_obey_limits_when_they_ask)
{
    double seconds = 5;
    caller asks = {.fn = blocks_until_asked}, blocking = {.fn = blocks, .arg = &seconds};
    CHECK_INT(conc_timeout(1.75, by_offload, &asks), -ETIMEDOUT);
    CHECK_TIME(1.75);
    CHECK_INT(conc_timeout(1, by_offload, &blocking), -ETIMEDOUT);
    CHECK_TIME(2.75);
}

static conc_local colour = {"colour"};
static int red, green;

static int paints(void *found)
{
    *(void **)found = conc_local_get(&colour);
    return conc_local_set(&colour, &green);
}

OFFLOAD_TEST(a_job_sees_the_locals_of_its_task_and_keeps_its_own)
{
    void *found = NULL;
    CHECK_INT(conc_local_set(&colour, &red), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_offload(paints, &found), 0);
        CHECK(found == &red);
        CHECK_INT(conc_offload_abandon(paints, &found, NULL), 0);
        CHECK(found == &red);
        CHECK(conc_local_get(&colour) == &red);
    }
}

/* ---- abandon ---- */

OFFLOAD_TEST(the_argument_of_a_job_that_ends_is_freed_once)
{
    for (int i = 0; i < 100; i++) {
        held h = HELD(i % 2 ? i : -EIO);
        let_go(&h);
        CHECK_INT(conc_offload_abandon(holds, &h, frees), h.rc);
        check_freed(&h, 1);
    }
}

OFFLOAD_TEST(an_abandoned_job_continues_long_after_its_task_returned)
{
    held h = HELD(7);
    conc_group g = {0};
    caller c = ABANDONS(&h);
    start_held(&g, &c, &h);
    cancel(&c);
    CHECK_INT(c.rc, -ECANCELED);
    CHECK_INT(c.next, -ECANCELED);
    end(&g);
    CHECK_INT(count_now(&h.freed), 0);
    let_go(&h);
    check_freed(&h, 1);
    CHECK_INT(conc_offload(counts, NULL), 1);
}

OFFLOAD_TEST(an_abandoned_job_can_see_that_it_should_end)
{
    held h = HELD(7);
    conc_group g = {0};
    caller c = ABANDONS(&h);
    start_held(&g, &c, &h);
    cancel(&c);
    end(&g);
    let_go(&h);
    check_freed(&h, 1);
    CHECK(h.asked);
}

OFFLOAD_TEST(time_passes_while_an_abandoned_job_hangs)
{
    held h = HELD(7);
    conc_group g = {0};
    caller c = ABANDONS(&h);
    start_held(&g, &c, &h);
    cancel(&c);
    end(&g);
    CHECK_INT(conc_sleep(10), 0);
    CHECK_TIME(10);
    let_go(&h);
    check_freed(&h, 1);
}

OFFLOAD_TEST(a_time_limit_abandons_a_job_that_blocks)
{
    double seconds = 5;
    caller c = {.fn = blocks, .arg = &seconds};
    CHECK_INT(conc_timeout(2, by_abandon, &c), -ETIMEDOUT);
    CHECK_TIME(2);
    CHECK_INT(conc_sleep(10), 0);
    CHECK_TIME(12);
}

/* An abandoned job that blocks longer than the run lasts. */
typedef struct sleeper {
    double seconds;
    counter freed;
} sleeper;

static int blocks_sleeper(void *arg) { return conc_block(((sleeper *)arg)->seconds); }
static void frees_sleeper(void *arg) { count_up(&((sleeper *)arg)->freed); }

static int abandons_sleeper(void *arg)
{
    caller c = {.fn = blocks_sleeper, .arg = arg, .free_arg = frees_sleeper};
    CHECK_INT(conc_timeout(2, by_abandon, &c), -ETIMEDOUT);
    CHECK_TIME(2);
    return 3;
}

THREAD_TEST(a_virtual_block_of_an_abandoned_job_does_not_outlast_its_run)
{
    static sleeper s = {1e6, COUNTER};
    CHECK_INT(run_virtual(abandons_sleeper, &s), 3);
    count_wait(&s.freed, 1);
}

/* The run ends while a job of one of the program's pools blocks, which began before the run had
 * used the shared pool. */
static int leaves_a_job_that_blocks(void *arg)
{
    static conc_job job;
    static double seconds = 1e6;
    CHECK_INT(conc_pool_submit(arg, &job, blocks, &seconds), 0);
    CHECK_INT(conc_sleep(1), 0); /* the clock stands still until the job blocks */
    CHECK_INT(conc_offload(counts, NULL), 1);
    return 3;
}

THREAD_TEST(a_virtual_block_that_began_before_the_first_offload_ends_with_its_run)
{
    conc_pool pool = {.threads = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(run_virtual(leaves_a_job_that_blocks, &pool), 3);
    CHECK_INT(conc_pool_close(&pool), 0);
}

static int holds_and_blocks(void *arg)
{
    holds(arg);
    return conc_block(0.01);
}

static int abandons_one(void *arg)
{
    caller *c = arg;
    held *h = c->arg;
    conc_group g = {0};
    start_held(&g, c, h);
    cancel(c);
    end(&g);
    CHECK_INT(c->rc, -ECANCELED);
    return conc_offload(counts, NULL);
}

THREAD_TEST(the_run_ends_while_an_abandoned_job_hangs_and_another_run_works)
{
    static held h = HELD(7);
    caller c = ABANDONS(&h);
    c.fn = holds_and_blocks; /* on a clock that no longer exists */
    CHECK_INT(run_virtual(abandons_one, &c), 1);
    check_threads(base + 1);
    CHECK_INT(count_now(&h.freed), 0);
    for (int i = 0; i < 5; i++) {
        CHECK_INT(run_virtual(offloads_count, NULL), 0);
        check_threads(base + 1);
    }
    let_go(&h);
    check_freed(&h, 1);
    check_threads(base);
}

static int abandons_another(void *arg)
{
    caller *c = arg;
    conc_group g = {0};
    start_held(&g, c, c->arg);
    cancel(c);
    end(&g);
    return c->rc;
}

static int gives_up(void *arg)
{
    CHECK_INT(conc_timeout(2, by_abandon, arg), -ETIMEDOUT);
    CHECK_TIME(2);
    return 0;
}

/* Waits until the job before it ends, which another run has abandoned. */
typedef struct successor {
    caller own;
    held *before;
} successor;

static int succeeds(void *arg)
{
    successor *s = arg;
    held *own = s->own.arg;
    conc_group g = {0};
    start(&g, &s->own);
    CHECK_INT(s->own.rc, WAITING);
    CHECK_INT(own->runs, 0);
    let_go(s->before);
    count_wait(&own->entered, 1);
    let_go(own);
    end(&g);
    return s->own.rc;
}

THREAD_TEST(jobs_that_earlier_runs_have_abandoned_keep_their_threads_too)
{
    static held hold[32], late = HELD(3);
    caller queued = ABANDONS(&late);
    int n = shared_threads();
    for (int i = 0; i < n; i++) {
        hold[i] = (held)HELD(7);
        caller c = ABANDONS(&hold[i]);
        CHECK_INT(run_virtual(abandons_another, &c), -ECANCELED);
        check_threads(base + i + 1);
    }
    CHECK_INT(run_virtual(gives_up, &queued), 0);
    check_freed(&late, 0);
    check_threads(base + n);
    late = (held)HELD(3);
    successor next = {queued, &hold[0]};
    CHECK_INT(run_virtual(succeeds, &next), 3);
    check_freed(&late, 1);
    for (int i = 0; i < n; i++) {
        check_threads(base + n - (i ? i : 1));
        if (i)
            let_go(&hold[i]);
        check_freed(&hold[i], 1);
    }
    check_threads(base);
    CHECK_INT(run_virtual(offloads_count, NULL), 0);
}

static int abandons_and_exits(void *arg)
{
    held *h = arg;
    conc_group g = {0};
    caller c = ABANDONS(h);
    start_held(&g, &c, h);
    cancel(&c);
    end(&g);
    return 0;
}

static void exit_while_a_job_hangs(void)
{
    static held h = HELD(7);
    CHECK_INT(run_virtual(abandons_and_exits, &h), 0);
    exit(7);
}

TEST(the_program_ends_while_an_abandoned_job_hangs)
{
    static char text[16384];
    int status = test_in_process(exit_while_a_job_hangs, text, sizeof text);
    CHECK_STR(text, "");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

/* Jobs that occupy all threads of their kind; their tasks, and those of the jobs behind them, are
 * in one group. */
typedef struct hanging {
    held hold[32];
    caller callers[32];
    conc_group group;
    int n;
} hanging;

static void hang_all(hanging *x)
{
    *x = (hanging){.n = shared_threads()};
    for (int i = 0; i < x->n; i++) {
        x->hold[i] = (held)HELD(7);
        x->callers[i] = ABANDONS(&x->hold[i]);
        start_held(&x->group, &x->callers[i], &x->hold[i]);
    }
}

static void cancel_all(hanging *x)
{
    for (int i = 0; i < x->n; i++)
        cancel(&x->callers[i]);
}

static void abandon_all(hanging *x)
{
    cancel_all(x);
    end(&x->group);
}

static void let_all_go(hanging *x)
{
    for (int i = 0; i < x->n; i++) {
        let_go(&x->hold[i]);
        check_freed(&x->hold[i], 1);
    }
}

OFFLOAD_TEST(an_abandoned_job_keeps_its_thread_and_when_all_hang_the_next_waits)
{
    static hanging x;
    held late = HELD(3);
    caller queued = ABANDONS(&late);
    hang_all(&x);
    start(&x.group, &queued);
    cancel_all(&x);
    CHECK_INT(queued.rc, WAITING);
    CHECK_INT(late.runs, 0);
    CHECK_INT(count_threads(), base + x.n);
    let_go(&x.hold[0]);
    count_wait(&late.entered, 1);
    let_go(&late);
    end(&x.group);
    CHECK_INT(queued.rc, 3);
    check_freed(&late, 1);
    CHECK_INT(count_threads(), base + x.n);
    for (int i = 1; i < x.n; i++)
        let_go(&x.hold[i]);
    for (int i = 0; i < x.n; i++)
        check_freed(&x.hold[i], 1);
}

OFFLOAD_TEST(a_job_behind_abandoned_ones_is_given_up_at_its_time_limit)
{
    static hanging x;
    held late = HELD(3);
    caller queued = ABANDONS(&late);
    hang_all(&x);
    abandon_all(&x);
    for (int i = 1; i < 3; i++) {
        CHECK_INT(conc_timeout(2, by_abandon, &queued), -ETIMEDOUT);
        CHECK_TIME(2 * i);
        count_wait(&late.freed, i);
    }
    CHECK_INT(late.runs, 0);
    CHECK_INT(count_threads(), base + x.n);
    let_all_go(&x);
}

OFFLOAD_TEST(offloaded_jobs_do_not_wait_for_abandoned_ones)
{
    static hanging x;
    hang_all(&x);
    CHECK_INT(conc_offload(counts, NULL), 1);
    abandon_all(&x);
    CHECK_INT(conc_offload(counts, NULL), 2);
    let_all_go(&x);
}

OFFLOAD_TEST(jobs_behind_abandoned_ones_are_refused_if_no_thread_can_start)
{
    held h = HELD(7);
    conc_group g = {0};
    caller hangs = ABANDONS(&h),
           queued[2] = {{.how = by_abandon, .fn = counts}, {.how = by_abandon, .fn = counts}};
    start_held(&g, &hangs, &h);
    no_threads = true;
    start(&g, &queued[0]);
    start(&g, &queued[1]);
    CHECK_INT(queued[1].rc, WAITING);
    cancel(&hangs);
    end(&g);
    no_threads = false;
    CHECK_INT(queued[0].rc, -EAGAIN);
    CHECK_INT(queued[1].rc, -EAGAIN);
    let_go(&h);
    check_freed(&h, 1);
    CHECK_INT(conc_offload_abandon(counts, NULL, NULL), 1);
}

/* ---- calls that have their own threads ---- */

static int reads_a_file(void *arg)
{
    void *data = NULL;
    (void)arg;
    CONC_TRY(conc_file_read("/proc/self/comm", &data, NULL));
    conc_free(data);
    return 1;
}

static int writes_a_file(void *arg)
{
    (void)arg;
    CONC_TRY(conc_file_append("/dev/null", "x", 1));
    return 1 + conc_file_write("/dev/null", "x", 1);
}

static int looks_a_name_up(void *arg)
{
    struct sockaddr_storage found;
    (void)arg;
    return conc_resolve("localhost", "80", &found, 1) > 0;
}

static int starts_a_child(void *arg)
{
    static const char *const argv[] = {"true", NULL};
    conc_child c = {.argv = argv};
    int status = -1;
    (void)arg;
    CONC_TRY(conc_child_start(&c));
    CONC_TRY(conc_child_wait(&c, &status));
    return 1 + conc_child_close(&c);
}

/* Jobs of this kind occupy all its threads: jobs of other kinds continue. */
static void hang_kind(int kind)
{
    static conc_fn *const use[] = {[CONC__OFFLOADED] = offloads_count,
                                   [CONC__FILES] = reads_a_file,
                                   [CONC__NAMES] = looks_a_name_up,
                                   [CONC__STARTS] = starts_a_child};
    conc_group g = {0};
    held h = HELD(0);
    caller c[32];
    int n = shared_threads();
    for (int i = 0; i < n; i++) {
        c[i] = OFFLOADS(&h);
        c[i].how = by_kind;
        c[i].kind = kind;
        start(&g, &c[i]);
    }
    count_wait(&h.entered, n);
    for (size_t i = 0; i < CONC_LEN(use); i++)
        if (use[i] && (int)i != kind)
            CHECK(use[i](NULL) >= 0);
    if (kind != CONC__FILES)
        CHECK_INT(writes_a_file(NULL), 1);
    if (kind != CONC__ABANDONED)
        CHECK(conc_offload_abandon(counts, NULL, NULL) > 0);
    let_go(&h);
    end(&g);
}

OFFLOAD_TEST(files_names_and_children_do_not_wait_for_offloaded_jobs)
{
    hang_kind(CONC__OFFLOADED);
}
OFFLOAD_TEST(nothing_waits_for_jobs_that_may_be_abandoned) { hang_kind(CONC__ABANDONED); }
OFFLOAD_TEST(names_and_children_do_not_wait_for_files) { hang_kind(CONC__FILES); }
OFFLOAD_TEST(files_and_children_do_not_wait_for_names) { hang_kind(CONC__NAMES); }
OFFLOAD_TEST(files_and_names_do_not_wait_for_children_that_start) { hang_kind(CONC__STARTS); }

OFFLOAD_TEST(files_names_and_children_do_not_wait_for_jobs_that_were_abandoned)
{
    static hanging x;
    hang_all(&x);
    abandon_all(&x);
    CHECK_INT(reads_a_file(NULL), 1);
    CHECK_INT(writes_a_file(NULL), 1);
    CHECK_INT(looks_a_name_up(NULL), 1);
    CHECK_INT(starts_a_child(NULL), 1);
    let_all_go(&x);
}

/* ---- the threads' end ---- */

static pthread_key_t end_key;
static atomic_int begun_threads, ended_threads;

/* Counts a thread whose start function has returned. */
static void ends_after_a_while(void *arg)
{
    (void)arg;
    nap();
    ended_threads++;
}

static int marks_its_thread(void *arg)
{
    if (pthread_getspecific(end_key))
        return 0;
    begun_threads++;
    return -pthread_setspecific(end_key, arg ? arg : &end_key);
}

static int offloads_mark(void *arg) { return conc_offload(marks_its_thread, arg); }

static int offloads_some(void *arg)
{
    CONC_TRY(conc_offload_abandon(marks_its_thread, arg, NULL));
    return CONC_GATHER(CONC_CALL(offloads_mark, NULL), CONC_CALL(offloads_mark, NULL));
}

static int nests_some(void *arg) { return run_virtual(offloads_some, arg); }
static int offloads_nests(void *arg) { return conc_offload(nests_some, arg); }

static int uses_a_pool(void *arg)
{
    conc_pool pool = {.threads = 3};
    CONC_TRY(conc_pool_open(&pool));
    CONC_TRY(conc_pool_map(&pool, marks_its_thread, arg, 3, 0));
    return conc_pool_close(&pool);
}

static void check_threads_have_ended(conc_fn *fn, int runs)
{
    CHECK_INT(pthread_key_create(&end_key, ends_after_a_while), 0);
    for (int i = 0; i < runs; i++) {
        CHECK_INT(run_virtual(fn, NULL), 0);
        CHECK(begun_threads > i);
        CHECK_INT(ended_threads, begun_threads);
    }
    CHECK_INT(pthread_key_delete(end_key), 0);
}

/* The run ends before its only thread has gone to sleep. */
THREAD_TEST(at_the_runs_end_a_thread_that_was_busy_until_now_has_ended)
{
    check_threads_have_ended(offloads_mark, 200);
}

THREAD_TEST(at_the_runs_end_the_shared_threads_have_ended)
{
    check_threads_have_ended(offloads_some, 20);
}
THREAD_TEST(at_the_runs_end_threads_of_runs_inside_jobs_have_ended)
{
    check_threads_have_ended(offloads_nests, 20);
}
THREAD_TEST(when_a_pool_is_closed_its_threads_have_ended)
{
    check_threads_have_ended(uses_a_pool, 20);
}

/* ---- an unloaded library ---- */

#ifdef __GLIBC__ /* elsewhere a library is never unloaded */

static const char plugin[] =
    "#define CONC_STATIC\n"
    "#include \"conc_pool.h\"\n"
    "static int says(int fd) { char c = 1; return write(fd, &c, 1) == 1 ? 0 : -1; }\n"
    "static int hears(int fd) { char c; return read(fd, &c, 1) == 1 ? 0 : -1; }\n"
    "static int hangs(void *arg) { int *f = arg; return says(f[1]) || hears(f[2]); }\n"
    "static void leaves(void *arg) { int *f = arg; (void)!says(f[5]); }\n"
    "static int abandons(void *arg) { return conc_offload_abandon(hangs, arg, leaves); }\n"
    "static int app(void *arg)\n"
    "{\n"
    "    conc_group g = {0};\n"
    "    char c;\n"
    "    CONC_TRY(conc_spawn(&g, abandons, arg));\n"
    "    CONC_TRY_IN(&g, (int)conc_read(*(int *)arg, &c, 1));\n"
    "    conc_group_cancel(&g);\n"
    "    return conc_group_wait(&g);\n"
    "}\n"
    "int plugin_main(void *arg) { return conc_run(app, arg); }\n";

/* Returns false if there is no compiler. */
static bool make_plugin(void)
{
    char command[5 * PATH_MAX], here[PATH_MAX];
    make_directory();
    CHECK(getcwd(here, sizeof here) != NULL);
    make_file(path_of("plugin.c"), plugin, sizeof plugin - 1, 0600);
    snprintf(command, sizeof command, "cc -w -pthread -shared -fPIC -I%s -o %s %s 2>%s", here,
             path_of("plugin.so"), path_of("plugin.c"), path_of("errors"));
    return system(command) == 0;
}

static void remove_plugin(void)
{
    static const char *const names[] = {"plugin.c", "plugin.so", "errors"};
    for (size_t i = 0; i < CONC_LEN(names); i++)
        unlink(path_of(names[i]));
    CHECK_INT(rmdir(directory), 0);
}

static bool plugin_is_loaded(void)
{
    char line[2 * PATH_MAX];
    bool loaded = false;
    FILE *f = fopen("/proc/self/maps", "r");
    while (f && fgets(line, sizeof line, f))
        loaded |= strstr(line, "/plugin.so") != NULL;
    if (f)
        fclose(f);
    return loaded;
}

THREAD_TEST(a_library_stays_loaded_until_the_job_that_it_has_abandoned_has_ended)
{
    int pipes[6];
    char c = 1;
    if (make_plugin()) {
        void *library = dlopen(path_of("plugin.so"), RTLD_NOW);
        if (!library)
            test_fail(__FILE__, __LINE__, "%s", dlerror());
        conc_fn *plugin_main = (conc_fn *)(uintptr_t)dlsym(library, "plugin_main");
        for (int i = 0; i < 6; i += 2)
            CHECK_INT(pipe(&pipes[i]), 0);
        unsetenv("CONC_CLOCK");
        CHECK_INT(plugin_main(pipes), 0);
        CHECK_INT(dlclose(library), 0);
        CHECK(plugin_is_loaded());
        CHECK_INT(write(pipes[3], &c, 1), 1);
        CHECK_INT(read(pipes[4], &c, 1), 1);
        for (double end = test_real_seconds() + 10; plugin_is_loaded(); nap())
            CHECK(test_real_seconds() < end);
        for (int i = 0; i < 6; i++)
            CHECK_INT(close(pipes[i]), 0);
    }
    remove_plugin();
}

#endif

/* Gives virtual time the chance to move, wrongly. */
static int works(void *arg)
{
    (void)arg;
    for (int i = 0; i < 20; i++)
        nap();
    return 0;
}

static int sleeps_often(void *arg)
{
    (void)arg;
    for (int i = 0; i < 50; i++)
        CONC_TRY(conc_sleep(1));
    return 0;
}

static void check_time_stands_while_a_job_works(void)
{
    conc_group g = {0};
    double now = conc_now();
    CHECK_INT(conc_spawn(&g, sleeps_often, NULL), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_offload(works, NULL), 0);
    CHECK_TIME(now);
    end(&g);
    CHECK_TIME(now + 50);
}

static int abandons_a_block(void *arg)
{
    static double seconds = 1000;
    (void)arg;
    caller c = {.fn = blocks, .arg = &seconds};
    CHECK_INT(conc_timeout(1, by_abandon, &c), -ETIMEDOUT);
    return 0;
}

OFFLOAD_TEST(virtual_time_stands_still_for_a_job_while_abandoned_ones_block_all_threads)
{
    conc_group g = {0};
    for (int i = 0; i < shared_threads(); i++)
        CHECK_INT(conc_spawn(&g, abandons_a_block, NULL), 0);
    end(&g);
    check_time_stands_while_a_job_works();
    CHECK_INT(conc_sleep(2000), 0);
    check_time_stands_while_a_job_works();
}

/* Cancelled while all threads of the shared pool are busy: it never ran, or it had its own
 * thread. */
OFFLOAD_TEST(a_job_that_is_abandoned_before_it_began_never_runs)
{
    static crowd c;
    static held h = HELD(7);
    conc_group g = {0};
    caller queued = ABANDONS(&h);
    fill_shared_pool(&c);
    start(&g, &queued);
    cancel(&queued);
    CHECK_INT(queued.rc, -ECANCELED);
    end(&g);
    int runs = h.runs;
    CHECK(runs == 1 || count_now(&h.freed) == 1); /* if it had not begun, immediately */
    let_go(&h);
    empty_shared_pool(&c);
    check_freed(&h, runs);
    CHECK_INT(conc_offload(counts, NULL), 1);
    CHECK_INT(h.runs, runs);
}

/* {the job ends; its task is cancelled}, or the other way round: the argument is freed once. */
static void end_and_cancel(bool cancel_first)
{
    held h = HELD(7);
    conc_group g = {0};
    caller c = ABANDONS(&h);
    start_held(&g, &c, &h);
    if (cancel_first)
        CHECK_INT(conc_cancel(&c.task), 0);
    let_go(&h);
    count_wait(&h.freed, 1); /* the loop does not know it yet */
    if (!cancel_first)
        CHECK_INT(conc_cancel(&c.task), 0);
    end(&g);
    CHECK(c.rc == 7 || c.rc == -ECANCELED);
    CHECK_INT(c.next, -ECANCELED);
    check_freed(&h, 1);
}

OFFLOAD_TEST(a_job_ends_just_before_it_would_be_abandoned) { end_and_cancel(false); }
OFFLOAD_TEST(a_job_ends_just_after_it_was_abandoned) { end_and_cancel(true); }

/* Frees memory, so that the sanitizers detect late accesses. */
typedef struct owned {
    int value;
    char text[32];
} owned;

static atomic_int frees_left;

static int uses_owned(void *arg)
{
    owned *o = arg;
    for (int i = 0; i < o->value % 50; i++)
        sched_yield();
    snprintf(o->text, sizeof o->text, "%d", o->value);
    return atoi(o->text);
}

static void frees_owned(void *arg)
{
    frees_left--;
    memset(arg, 0xee, sizeof(owned));
    free(arg);
}

static int abandons_owned(void *arg)
{
    (void)arg;
    owned *o = malloc(sizeof *o);
    CHECK(o != NULL);
    int value = (int)conc_random(0, 1000);
    *o = (owned){value, ""};
    frees_left++;
    int rc = conc_offload_abandon(uses_owned, o, frees_owned);
    CHECK(rc == value || rc == -ECANCELED);
    return 0;
}

OFFLOAD_TEST(each_argument_of_many_randomly_abandoned_jobs_is_freed_once)
{
    for (int i = 0; i < 50; i++) {
        conc_group g = {0};
        for (int k = 0; k < 20; k++)
            CHECK_INT(conc_spawn(&g, abandons_owned, NULL), 0);
        for (int k = (int)conc_random(0, 20); k > 0; k--)
            CHECK_INT(conc_yield(), 0);
        conc_group_cancel(&g);
        end(&g);
    }
    for (int i = 0; i < 20000 && frees_left; i++)
        nap();
    CHECK_INT(frees_left, 0);
}

/* ---- a run inside another program's loop ---- */

static int offloads_thrice(void *arg)
{
    for (int i = 0; i < 3; i++)
        CONC_TRY(conc_offload(returns, arg));
    return conc_offload(returns, arg);
}

static void embed_offload(void)
{
    int value = 5, more = 1;
    conc_embed e = {0};
    if (conc_embed_begin(&e, NULL, offloads_thrice, &value) == -ENOTSUP)
        return;
    for (int i = 0; more && i < 1000; i++) {
        double s = conc_embed_timeout(&e);
        struct pollfd p = {.fd = conc_embed_fd(&e), .events = POLLIN};
        CHECK(poll(&p, 1, s > 10 ? 10000 : (int)(s * 1000) + (s > 0)) >= 0);
        more = conc_embed_step(&e);
        CHECK(more >= 0);
    }
    CHECK_INT(more, 0);
    CHECK_INT(conc_embed_end(&e), 5);
}

THREAD_TEST(an_embedded_run_is_woken_by_the_end_of_a_job)
{
    unsetenv("CONC_CLOCK");
    embed_offload();
}

/* ---- failing threads and allocations, and forks ---- */

static int abandons_without_threads(void *arg)
{
    no_threads = true;
    int rc = conc_offload_abandon(holds, arg, frees);
    no_threads = false;
    return rc;
}

static int abandons_without_threads_in_a_run(void *arg)
{
    return run_virtual(abandons_without_threads, arg);
}

OFFLOAD_TEST(without_a_second_thread_a_run_inside_a_job_has_its_argument_freed)
{
    held h = HELD(0);
    CHECK_INT(conc_offload(abandons_without_threads_in_a_run, &h), -EAGAIN);
    check_freed(&h, 0);
}

OFFLOAD_TEST(without_threads_an_offload_is_an_error)
{
    held h = HELD(0);
    no_threads = true;
    CHECK_INT(conc_offload(counts, NULL), -EAGAIN);
    CHECK_INT(conc_offload_abandon(counts, NULL, NULL), -EAGAIN);
    CHECK_INT(conc_offload_abandon(holds, &h, frees), -EAGAIN);
    no_threads = false;
    check_freed(&h, 0);
    CHECK_INT(conc_offload(counts, NULL), 1);
    CHECK_INT(conc_offload_abandon(counts, NULL, NULL), 2);
}

static int due; /* calls promised by functions that returned no error */

static int offloads_a_little(void *arg)
{
    held h = HELD(5);
    let_go(&h);
    conc_local_set(&colour, arg);
    int rc = conc_offload(counts, NULL);
    due += rc >= 0;
    CHECK(rc >= 0 || rc == -ENOMEM);
    rc = conc_offload_abandon(holds, &h, frees);
    CHECK(rc == 5 || rc == -ENOMEM);
    check_freed(&h, rc == 5);
    rc = conc_offload_abandon(counts, NULL, NULL);
    due += rc >= 0;
    CHECK(rc >= 0 || rc == -ENOMEM);
    CHECK_INT(calls, due);
    return 0;
}

static void fail_allocations(bool forever)
{
    bool failed = true;
    for (long n = 1; failed && n < 1000; n++) {
        allocations = 0;
        due = 0;
        calls = 0;
        failing_forever = forever;
        failing_allocation = n;
        int rc = run_virtual(offloads_a_little, &red);
        failed = allocations >= n;
        failing_allocation = 0;
        CHECK(rc == 0 || (rc == -ENOMEM && failed));
        check_threads(base);
        CHECK_INT(live_allocations, 0);
    }
    CHECK(!failed);
    CHECK_INT(calls, 2);
}

THREAD_TEST(every_allocation_may_fail) { fail_allocations(false); }
THREAD_TEST(from_any_allocation_on_all_may_fail) { fail_allocations(true); }

#ifndef CONC_TEST_PLAIN /* emulators cannot fork a process with threads */
static void offload_in_child(void)
{
    CHECK_INT(run_virtual(offloads_in_many_tasks, NULL), 0);
    CHECK_INT(calls, 50);
}

static int forks_in_a_run(void *arg)
{
    static char text[16384];
    (void)arg;
    int rc = 3;
    CHECK_INT(conc_offload(returns, &rc), 3);
    int status = test_in_process(offload_in_child, text, sizeof text);
    if (status)
        test_fail(__FILE__, __LINE__, "the child's status is 0x%x, stderr:\n%s", (unsigned)status,
                  text);
    return conc_offload(returns, &rc);
}

THREAD_TEST(a_forked_child_has_its_own_shared_pool)
{
    CHECK_INT(run_virtual(forks_in_a_run, NULL), 3);
}
#endif
