/* test_loop_run.c - conc_loop_run: a function runs as a task of another thread's loop, and its
 * result comes back to a thread, to a job or to a task of another loop.
 *
 * Seeds: 20 (other threads take real time)
 */
#define TEST_POOL
#include "conc_test.h"

#include <pthread.h>
#include <sched.h>

/* ---- from a plain thread ---- */

/* A function that a thread runs on a loop that it holds, and the result. */
typedef struct caller {
    conc_loop *loop;
    conc_fn *fn;
    void *arg;
    int result;
    char words[128];
} caller;

static void *call_it(void *arg)
{
    caller *c = arg;
    c->result = conc_loop_run(c->loop, c->fn, c->arg);
    snprintf(c->words, sizeof c->words, "%s", conc_last_error());
    CHECK_INT(conc_loop_release(c->loop), 0);
    return NULL;
}

static pthread_t start_caller(caller *c, conc_fn *fn, void *arg)
{
    pthread_t t;
    *c = (caller){.loop = conc_loop_self(), .fn = fn, .arg = arg, .result = 77};
    CHECK_INT(conc_loop_hold(c->loop), 0);
    CHECK_INT(pthread_create(&t, NULL, call_it, c), 0);
    return t;
}

static pthread_t the_thread;

static int sleep_and_add(void *arg)
{
    int *n = arg;
    CHECK(pthread_equal(pthread_self(), the_thread)); /* of the loop */
    CHECK_CONTAINS(conc_name(conc_self()), "c->fn at ");
    CHECK_INT(conc_sleep(1), 0);
    return *n += 5;
}

static int fail_with_words(void *arg)
{
    (void)arg;
    CHECK_INT(conc_sleep(1), 0);
    return conc_fail(-EPROTO, "line 12: no colon");
}

static int nothing(void *arg)
{
    (void)arg;
    return 0;
}

static int unseen;

static void count_unseen(const conc_failure *f, void *user)
{
    (void)user;
    unseen++;
    fprintf(stderr, "%s: %s\n", f->task, f->text);
}

static int is_called_by_threads(void *arg)
{
    caller c[3];
    int n = 1;
    (void)arg;
    the_thread = pthread_self();
    pthread_t threads[] = {start_caller(&c[0], sleep_and_add, &n),
                           start_caller(&c[1], fail_with_words, NULL),
                           start_caller(&c[2], NULL, NULL)};
    for (conc_stats s = {.holds = 3}; s.holds; conc_get_stats(&s))
        CHECK_INT(conc_sleep(0.001), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    CHECK_INT(c[0].result, 6);
    CHECK_STR(c[0].words, "");
    CHECK_INT(c[1].result, -EPROTO);
    CHECK_STR(c[1].words, "line 12: no colon");
    CHECK_INT(c[2].result, -EINVAL);
    CHECK_STR(c[2].words, "conc_loop_run: no function");
    return 0;
}

TEST(a_thread_gets_the_tasks_result_and_error_text)
{
    conc_options o = {.virtual_clock = true, .on_error = count_unseen};
    CHECK_INT(conc_run_with(&o, is_called_by_threads, NULL), 0);
    o.virtual_clock = false;
    CHECK_INT(conc_run_with(&o, is_called_by_threads, NULL), 0);
    CHECK_INT(unseen, 0); /* the caller has the error */
}

static int sleeps_forever(void *arg)
{
    int rc = conc_sleep(CONC_FOREVER);
    *(bool *)arg = true;
    return rc;
}

static pthread_t left_thread;

static int ends_while_it_is_called(void *arg)
{
    conc_stats s = {0};
    left_thread = start_caller(arg, sleeps_forever, ((caller *)arg)->arg);
    for (; s.tasks < 2; conc_get_stats(&s))
        CHECK_INT(conc_sleep(0.001), 0);
    return 0;
}

TEST(the_runs_end_cancels_the_task_and_its_caller_gets_ecanceled)
{
    bool cancelled = false;
    caller c = {.arg = &cancelled};
    CHECK_INT(conc_run(ends_while_it_is_called, &c), 0);
    CHECK_INT(pthread_join(left_thread, NULL), 0);
    CHECK_INT(c.result, -ECANCELED);
    CHECK(cancelled);
}

static int keep_the_loop(void *arg)
{
    *(conc_loop **)arg = conc_loop_self();
    return conc_loop_hold(conc_loop_self());
}

TEST(a_run_that_is_over_runs_nothing)
{
    conc_loop *l;
    CHECK_INT(conc_run(keep_the_loop, &l), 0);
    CHECK_INT(conc_loop_run(l, nothing, NULL), -ESHUTDOWN);
    CHECK_STR(conc_last_error(), conc_strerror(-ESHUTDOWN));
    CHECK_INT(conc_loop_release(l), 0);
    CHECK_INT(conc_loop_run(NULL, nothing, NULL), -EINVAL);
}

/* Calls a loop that may end at any moment: each call has run its function, or has not. */
typedef struct racer {
    conc_loop *loop;
    int ran, returned;
} racer;

static int count_it(void *arg) { return ++*(int *)arg; }

static void *race(void *arg)
{
    racer *r = arg;
    int rc;
    while ((rc = conc_loop_run(r->loop, count_it, &r->ran)) > 0)
        r->returned++;
    CHECK_INT(rc, -ESHUTDOWN);
    CHECK_INT(conc_loop_release(r->loop), 0);
    return NULL;
}

static racer racers[2];

static int starts_racers(void *arg)
{
    pthread_t *threads = arg;
    for (int i = 0; i < 2; i++) {
        racers[i] = (racer){.loop = conc_loop_self()};
        CHECK_INT(conc_loop_hold(racers[i].loop), 0);
        CHECK_INT(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
    }
    return conc_sleep(0.002);
}

TEST(each_call_that_races_with_the_end_of_the_run_ran_or_did_not)
{
    conc_options o = {.virtual_clock = false};
    for (int i = 0; i < 20; i++) {
        pthread_t threads[2];
        CHECK_INT(conc_run_with(&o, starts_racers, threads), 0);
        for (int k = 0; k < 2; k++)
            CHECK_INT(pthread_join(threads[k], NULL), 0);
        for (int k = 0; k < 2; k++)
            CHECK_INT(racers[k].ran, racers[k].returned);
    }
}

/* ---- refused callers ---- */

static void call_posted(void *arg)
{
    conc_loop *l = conc_loop_self();
    *(int *)arg = conc_loop_run(l, nothing, NULL);
}

TASK_TEST(a_loop_does_not_wait_for_itself)
{
    int rc = 0;
    CHECK_INT(conc_loop_run(conc_loop_self(), nothing, NULL), -EDEADLK);
    CHECK_INT(conc_post(conc_loop_self(), call_posted, &rc), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(rc, -EDEADLK);
}

/* ---- from a task of another loop ---- */

/* A run on its own thread, which lasts until it is told to end. */
typedef struct neighbour {
    pthread_t thread;
    bool virtual_clock;
    pthread_mutex_t mutex;
    pthread_cond_t begun;
    conc_loop *loop;
    conc_task *main;
    int result;
} neighbour;

static int neighbour_main(void *arg)
{
    neighbour *n = arg;
    CHECK_INT(conc_loop_hold(conc_loop_self()), 0);
    pthread_mutex_lock(&n->mutex);
    n->main = conc_self();
    n->loop = conc_loop_self();
    pthread_cond_signal(&n->begun);
    pthread_mutex_unlock(&n->mutex);
    return conc_sleep(CONC_FOREVER);
}

static void *neighbour_thread(void *arg)
{
    neighbour *n = arg;
    conc_options o = {.virtual_clock = n->virtual_clock, .on_error = count_unseen};
    n->result = conc_run_with(&o, neighbour_main, n);
    return NULL;
}

static void open_neighbour(neighbour *n, bool virtual_clock)
{
    *n = (neighbour){.virtual_clock = virtual_clock};
    pthread_mutex_init(&n->mutex, NULL);
    pthread_cond_init(&n->begun, NULL);
    CHECK_INT(pthread_create(&n->thread, NULL, neighbour_thread, n), 0);
    pthread_mutex_lock(&n->mutex);
    while (!n->loop)
        pthread_cond_wait(&n->begun, &n->mutex);
    pthread_mutex_unlock(&n->mutex);
}

static void cancel_main(void *task) { CHECK_INT(conc_cancel(task), 0); }

static void close_neighbour(neighbour *n)
{
    CHECK_INT(conc_post(n->loop, cancel_main, n->main), 0);
    CHECK_INT(conc_loop_release(n->loop), 0);
    CHECK_INT(pthread_join(n->thread, NULL), 0);
    CHECK_INT(n->result, -ECANCELED);
}

static int sleeps_a_little(void *arg)
{
    CHECK_INT(conc_sleep(*(double *)arg), 0);
    return conc_fail(-EPROTO, "line 12: no colon");
}

typedef struct visit {
    neighbour *at;
    conc_fn *fn;
    void *arg;
} visit;

static int visits(void *arg)
{
    visit *v = arg;
    return conc_loop_run(v->at->loop, v->fn, v->arg);
}

TASK_TEST(a_task_waits_for_a_task_of_another_loop_and_its_clock_stands_still)
{
    neighbour n;
    double seconds = 0.01;
    open_neighbour(&n, false);
    visit v = {&n, sleeps_a_little, &seconds};
    double start = conc_now();
    CHECK_INT(conc_timeout(60, visits, &v), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    CHECK(conc_now() == start || !getenv("CONC_CLOCK") || strcmp(getenv("CONC_CLOCK"), "virtual"));
    int counted = 0;
    v = (visit){&n, count_it, &counted};
    for (int i = 1; i <= 100; i++)
        CHECK_INT(visits(&v), i);
    close_neighbour(&n);
}

static int visits_cancelled(void *arg)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 0), 0);
    CHECK_INT(visits(arg), -ECANCELED);
    return conc_scope_end(&s, 0);
}

static int waits_for_its_cancel(void *arg)
{
    bool *begun = arg;
    __atomic_store_n(&begun[0], true, __ATOMIC_SEQ_CST);
    begun[1] = conc_sleep(CONC_FOREVER) == -ECANCELED;
    return conc_fail(-EIO, "cleaned up badly");
}

static int visits_forever(void *arg)
{
    int rc = visits(arg);
    CHECK_INT(rc, -EIO);
    CHECK_STR(conc_last_error(), "cleaned up badly");
    return 0;
}

TASK_TEST(a_cancel_of_the_caller_cancels_the_task_and_waits_for_it)
{
    neighbour n;
    conc_group g = {0};
    bool begun[2] = {false, false};
    open_neighbour(&n, true);
    visit v = {&n, waits_for_its_cancel, begun};
    CHECK_INT(visits_cancelled(&v), 0);
    CHECK(!begun[0]);
    CHECK_INT(conc_spawn(&g, visits_forever, &v), 0);
    while (!__atomic_load_n(&begun[0], __ATOMIC_SEQ_CST))
        CHECK_INT(conc_yield(), 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(begun[1]);
    close_neighbour(&n);
}

static int is_out_of_time_meanwhile(void *arg)
{
    bool ended = false;
    visit v = {arg, sleeps_forever, &ended};
    CHECK_INT(conc_timeout(0.005, visits, &v), -ETIMEDOUT);
    CHECK(ended);
    return 0;
}

TEST(on_the_real_clock_the_timers_of_the_callers_loop_keep_firing)
{
    neighbour n;
    open_neighbour(&n, false);
    conc_options o = {.virtual_clock = false};
    CHECK_INT(conc_run_with(&o, is_out_of_time_meanwhile, &n), 0);
    close_neighbour(&n);
}

/* A cancel that comes just as the task may have ended, or may not have begun. */
TASK_TEST(a_cancel_meets_the_end_of_the_task_in_any_order)
{
    neighbour n;
    int counted = 0;
    open_neighbour(&n, true);
    visit v = {&n, count_it, &counted};
    for (int i = 0; i < 200; i++) {
        conc_group g = {0};
        CHECK_INT(conc_spawn(&g, visits, &v), 0);
        for (int k = 0; k < i % 7; k++)
            CHECK_INT(conc_yield(), 0);
        conc_group_cancel(&g);
        CHECK_INT(conc_group_wait(&g), 0);
    }
    close_neighbour(&n);
}

/* ---- from a job ---- */

static int sleeps_a_second(void *arg)
{
    CHECK_INT(conc_sleep(1), 0);
    return *(int *)arg;
}

static conc_loop *here;

static int job_calls(void *arg)
{
    CHECK(!conc_loop_self());
    int rc = conc_loop_run(here, sleeps_a_second, arg);
    CHECK_INT(conc_loop_run(here, fail_with_words, NULL), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    return rc;
}

TASK_TEST(a_job_calls_back_and_does_not_hold_the_virtual_clock)
{
    int nine = 9;
    here = conc_loop_self();
    CHECK_INT(conc_offload(job_calls, &nine), 9);
    CHECK_TIME(2);
}

TASK_TEST(jobs_behind_one_that_calls_back_do_not_hold_the_virtual_clock)
{
    CONC_AUTO(conc_pool, p) = {.threads = 1};
    int numbers[] = {1, 2, 3}, results[3];
    here = conc_loop_self();
    CHECK_INT(conc_pool_open(&p), 0);
    CHECK_INT(conc_pool_map_all(&p, job_calls, numbers, 3, sizeof numbers[0], results), 0);
    CHECK_INT(results[2], 3);
    CHECK_TIME(6);
}

static bool job_began;

static int task_of_a_job(void *arg)
{
    __atomic_store_n(&job_began, true, __ATOMIC_SEQ_CST);
    *(bool *)arg = conc_sleep(CONC_FOREVER) == -ECANCELED;
    return conc_fail(-EIO, "cleaned up badly");
}

static int job_calls_forever(void *arg)
{
    CHECK_INT(conc_loop_run(here, task_of_a_job, arg), -EIO);
    CHECK(conc_job_cancelled());
    CHECK_INT(conc_loop_run(here, nothing, NULL), -ECANCELED);
    return 5;
}

TASK_TEST(a_job_that_is_asked_to_stop_passes_that_on)
{
    CONC_AUTO(conc_pool, p) = {.threads = 1};
    conc_job j;
    bool cancelled = false;
    int result = 0;
    here = conc_loop_self();
    job_began = false;
    CHECK_INT(conc_pool_open(&p), 0);
    CHECK_INT(conc_pool_submit(&p, &j, job_calls_forever, &cancelled), 0);
    while (!__atomic_load_n(&job_began, __ATOMIC_SEQ_CST))
        CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_job_cancel(&j), 0);
    CHECK_INT(conc_job_wait(&j, &result), 0);
    CHECK_INT(result, 5);
    CHECK(cancelled);
}
