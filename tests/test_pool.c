/* test_pool.c - conc_pool and conc_job: threads that run plain functions for tasks, for other
 * jobs and for plain threads.
 *
 * Jobs wait at gates, so that every interleaving that matters is forced; each test must leave as
 * many threads and descriptors as before.
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

#include <math.h>
#include <sched.h>

/* ---- threads, counters and gates ---- */

/* Does the counter get there within some seconds? For events that should happen, where the test
 * would otherwise hang. */
static bool count_reaches(counter *c, int n)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    pthread_mutex_lock(&c->lock);
    for (int rc = 0; c->n < n && rc == 0;)
        rc = pthread_cond_timedwait(&c->changed, &c->lock, &until);
    bool reached = c->n >= n;
    pthread_mutex_unlock(&c->lock);
    return reached;
}

static void (*body_in_task)(void);

static void call_and_look(void)
{
    body_in_task();
    check_loop();
}

static void call_in_task(void (*body)(void))
{
    body_in_task = body;
    test_in_task(call_and_look);
}

#define POOL_TEST(name) CLEAN_TEST(name, call_in_task) /* in a task, on the virtual clock */

/* ---- jobs ---- */

/* A job that waits at a gate. */
typedef struct held {
    int rc;
    counter entered, gate;
    atomic_bool asked; /* it was asked to stop when the gate opened */
    conc_job job;
} held;

#define HELD(...)                                              \
    {                                                          \
        .rc = __VA_ARGS__, .entered = COUNTER, .gate = COUNTER \
    }

static int holds(void *arg)
{
    held *h = arg;
    count_up(&h->entered);
    count_wait(&h->gate, 1);
    h->asked = conc_job_cancelled();
    return h->rc;
}

/* Submits it, and returns when it runs. */
static void occupy(conc_pool *p, held *h)
{
    CHECK_INT(conc_pool_submit(p, &h->job, holds, h), 0);
    count_wait(&h->entered, 1);
}

static void let_go(held *h) { count_up(&h->gate); }

/* Waits on this thread without letting the loop run. */
static void spin_until_done(const conc_job *j)
{
    while (!conc_job_done(j))
        sched_yield();
}

/* The numbers that jobs recorded, in order. */
static struct {
    pthread_mutex_t lock;
    int n, numbers[1000];
} written = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int writes(void *arg)
{
    pthread_mutex_lock(&written.lock);
    written.numbers[written.n++] = *(int *)arg;
    pthread_mutex_unlock(&written.lock);
    return *(int *)arg;
}

static void check_written(int n)
{
    CHECK_INT(written.n, n);
    for (int i = 0; i < n; i++)
        CHECK_INT(written.numbers[i], i);
}

static int numbers[1000]; /* 0, 1, 2, ... */

__attribute__((constructor)) static void fill_numbers(void)
{
    for (int i = 0; i < 1000; i++)
        numbers[i] = i;
}

/* A caller of one function: a task, a thread or a job. */
typedef struct caller {
    conc_fn *how;
    conc_pool *pool;
    conc_job *job;
    conc_fn *fn;
    void *arg;
    double limit; /* time limit, in seconds; 0: none */
    int rc, result;
    int next; /* result of its next checkpoint */
    double at;
    char text[128];
    counter begun;
    conc_task task;
} caller;

static int by_run(void *arg)
{
    caller *c = arg;
    return conc_pool_run(c->pool, c->fn, c->arg);
}

static int by_submit(void *arg)
{
    caller *c = arg;
    return conc_pool_submit(c->pool, c->job, c->fn, c->arg);
}

static int by_wait(void *arg)
{
    caller *c = arg;
    return conc_job_wait(c->job, &c->result);
}

static int by_close(void *arg)
{
    caller *c = arg;
    return conc_pool_close(c->pool);
}

static int calls_once(void *arg)
{
    caller *c = arg;
    c->rc = c->result = WAITING;
    count_up(&c->begun);
    c->rc = c->limit > 0 ? conc_timeout(c->limit, c->how, c) : c->how(c);
    c->at = conc_now();
    snprintf(c->text, sizeof c->text, "%s", conc_last_error());
    c->next = conc_sleep(0);
    return 0;
}

/* Starts it as a task, and lets it run until it waits. */
static void start(conc_group *g, caller *c)
{
    CHECK_INT(conc_spawn_task(g, &c->task, calls_once, c), 0);
    CHECK_INT(conc_settle(), 0);
}

/* Cancels it, and lets it run until it waits. */
static void cancel(caller *c)
{
    CHECK_INT(conc_cancel(&c->task), 0);
    CHECK_INT(conc_settle(), 0);
}

static void end(conc_group *g) { CHECK_INT(conc_group_wait(g), 0); }

static void close_pool(conc_pool *p) { CHECK_INT(conc_pool_close(p), 0); }

#define WITH_POOL(name, n)                         \
    CONC_AUTO(conc_pool, name) = {.threads = (n)}; \
    CHECK_INT(conc_pool_open(&name), 0)
#define OPEN_POOL(name, n)             \
    conc_pool name = {.threads = (n)}; \
    CHECK_INT(conc_pool_open(&name), 0)

/* ---- results ---- */

/* Facts about where a job runs. */
typedef struct place {
    pthread_t thread;
    bool no_task, no_loop, not_cancelled, not_asked, no_deadline;
    int slept, yielded, spawned;
} place;

static int looks_around(void *arg)
{
    place *p = arg;
    p->thread = pthread_self();
    p->no_task = conc_self() == NULL;
    p->no_loop = conc_loop_self() == NULL;
    p->not_cancelled = !conc_cancelled();
    p->not_asked = !conc_job_cancelled();
    p->no_deadline = conc_deadline() == CONC_FOREVER;
    p->slept = conc_sleep(1);
    p->yielded = conc_yield();
    p->spawned = conc_spawn(NULL, returns, NULL);
    return 42;
}

static void check_place(const place *p)
{
    CHECK(p->no_task && p->no_loop && p->not_cancelled && p->not_asked && p->no_deadline);
    CHECK_INT(p->slept, -EPERM);
    CHECK_INT(p->yielded, -EPERM);
    CHECK_INT(p->spawned, -EPERM);
}

POOL_TEST(a_job_runs_on_another_thread_and_is_no_task)
{
    place p = {0};
    WITH_POOL(pool, 2);
    CHECK_INT(conc_pool_run(&pool, looks_around, &p), 42);
    CHECK(!pthread_equal(p.thread, pthread_self()));
    check_place(&p);
    CHECK_TIME(0);
}

THREAD_TEST(a_plain_thread_uses_a_pool_too)
{
    place p = {0};
    conc_job j;
    int results[3];
    WITH_POOL(pool, 2);
    CHECK_INT(conc_pool_run(&pool, looks_around, &p), 42);
    CHECK(!pthread_equal(p.thread, pthread_self()));
    check_place(&p);
    CHECK_INT(conc_pool_submit(&pool, &j, returns, &(int){-EIO}), 0);
    CHECK_INT(result_of(&j), -EIO);
    CHECK_INT(conc_pool_map(&pool, counts, NULL, 3, 0), 0);
    CHECK_INT(conc_pool_map_all(&pool, returns, numbers, 3, sizeof(int), results), 0);
    CHECK_INT(results[2], 2);
    CHECK_INT(calls, 3);
}

POOL_TEST(a_result_is_handed_over_whatever_it_is)
{
    int values[] = {0, 1, 42, INT_MAX, -1, -EIO, -ECANCELED, -ETIMEDOUT, INT_MIN};
    WITH_POOL(pool, 2);
    for (size_t i = 0; i < CONC_LEN(values); i++) {
        conc_job j;
        CHECK_INT(conc_pool_run(&pool, returns, &values[i]), values[i]);
        CHECK_INT(conc_pool_submit(&pool, &j, returns, &values[i]), 0);
        CHECK_INT(result_of(&j), values[i]);
        CHECK_INT(conc_yield(), 0);
    }
}

typedef struct failure {
    int rc, rc_of_words;
    const char *words;
} failure;

static int fails(void *arg)
{
    failure *f = arg;
    if (f->words)
        conc_fail(f->rc_of_words, "%s", f->words);
    return f->rc;
}

#define LONG_WORDS                                                                                 \
    "a hundred bytes: 6789 123456789 123456789 123456789 123456789 123456789 123456789 123456789 " \
    "123456789"

static failure failures[] = {{-EPROTO, -EPROTO, "line 12: no colon"},
                             {-EIO, 0, NULL},
                             {-EIO, -EPROTO, "for another error"},
                             {-EIO, -EIO, LONG_WORDS},
                             {7, 0, NULL}};

static void check_words(int i, const char *text)
{
    if (i == 0)
        CHECK_STR(text, "line 12: no colon");
    else if (i == 3)
        CHECK(strlen(text) >= 90 && strncmp(text, LONG_WORDS, strlen(text)) == 0);
    else
        CHECK_STR(text, i == 4 ? "" : conc_strerror(-EIO));
}

POOL_TEST(the_error_text_comes_with_the_result_and_stays_with_its_job)
{
    conc_group g = {0};
    conc_job jobs[CONC_LEN(failures)];
    caller c[3 * CONC_LEN(failures)] = {0};
    WITH_POOL(pool, 1);
    for (int i = 0; i < (int)CONC_LEN(failures); i++) {
        CHECK_INT(conc_pool_submit(&pool, &jobs[i], fails, &failures[i]), 0);
        c[3 * i] =
            (caller){by_run, .pool = &pool, .fn = fails, .arg = &failures[i], .begun = COUNTER};
        c[3 * i + 1] = (caller){by_wait, .job = &jobs[i], .begun = COUNTER};
        c[3 * i + 2] = (caller){by_wait, .job = &jobs[i], .begun = COUNTER};
        for (int k = 0; k < 3; k++)
            start(&g, &c[3 * i + k]);
    }
    end(&g);
    for (int i = 0; i < (int)CONC_LEN(c); i++) {
        CHECK_INT(i % 3 ? c[i].result : c[i].rc, failures[i / 3].rc);
        check_words(i / 3, c[i].text);
    }
}

POOL_TEST(an_earlier_jobs_error_text_does_not_stick_to_its_storage)
{
    conc_job j;
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &j, fails, &failures[0]), 0);
    CHECK_INT(result_of(&j), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
    CHECK_INT(conc_pool_submit(&pool, &j, returns, &(int){-EPROTO}), 0);
    CHECK_INT(result_of(&j), -EPROTO);
    CHECK_STR(conc_last_error(), conc_strerror(-EPROTO));
    CHECK_INT(conc_pool_run(&pool, returns, &(int){-EPROTO}), -EPROTO);
    CHECK_STR(conc_last_error(), conc_strerror(-EPROTO));
}

static conc_pool *outer_pool;

static int fails_inside(void *arg) { return conc_pool_run(outer_pool, fails, arg); }

POOL_TEST(the_error_text_of_a_call_inside_a_job_is_the_jobs)
{
    WITH_POOL(pool, 1);
    outer_pool = &pool;
    CHECK_INT(conc_pool_run(&pool, fails_inside, &failures[0]), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
}

POOL_TEST(a_jobs_result_can_be_read_any_number_of_times)
{
    int result = 0;
    conc_job j;
    OPEN_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &j, returns, &(int){5}), 0);
    CHECK_INT(conc_job_wait(&j, NULL), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(result_of(&j), 5);
    close_pool(&pool);
    CHECK_INT(result_of(&j), 5); /* even when the pool is gone */
    CHECK_INT(conc_job_cancel(&j), -EALREADY);
    memset(&pool, 0x55, sizeof pool);
    CHECK_INT(conc_job_wait(&j, &result), 0);
    CHECK_INT(result, 5);
}

/* Two waiters for one job in its own memory, and what the first one then does with it. */
typedef struct shared_job {
    conc_pool *pool;
    conc_job *job;
    held hold;
    bool frees;
} shared_job;

static int fails_in_another_way(void *arg)
{
    (void)arg;
    return conc_fail(-EIO, "another job");
}

static int fails_when_let_go(void *arg)
{
    held *h = arg;
    holds(h);
    return conc_fail(h->rc, "the job");
}

static int waits_and_uses_the_job_again(void *arg)
{
    shared_job *s = arg;
    CHECK_INT(result_of(s->job), s->hold.rc);
    CHECK_STR(conc_last_error(), "the job");
    if (s->frees) {
        memset(s->job, 0, sizeof *s->job);
        free(s->job);
    } else {
        CHECK_INT(conc_pool_submit(s->pool, s->job, fails_in_another_way, NULL), 0);
        spin_until_done(s->job);
    }
    return 0;
}

static int waits_for_it_too(void *arg)
{
    shared_job *s = arg;
    int result = WAITING;
    CHECK_INT(conc_job_wait(s->job, &result), 0);
    CHECK_INT(result, s->hold.rc);
    CHECK_STR(conc_last_error(), "the job");
    return 0;
}

static void wait_in_two_tasks(bool frees)
{
    conc_group g = {0};
    WITH_POOL(pool, 1);
    shared_job s = {&pool, malloc(sizeof *s.job), HELD(-EPROTO), frees};
    CHECK(s.job != NULL);
    CHECK_INT(conc_pool_submit(&pool, s.job, fails_when_let_go, &s.hold), 0);
    CHECK_INT(conc_spawn(&g, waits_and_uses_the_job_again, &s), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&g, waits_for_it_too, &s), 0);
    CHECK_INT(conc_settle(), 0);
    let_go(&s.hold);
    end(&g);
    if (!frees)
        free(s.job);
}

POOL_TEST(each_waiter_of_a_job_gets_its_result_although_the_job_is_reused)
{
    wait_in_two_tasks(false);
}

POOL_TEST(each_waiter_of_a_job_gets_its_result_although_the_job_is_freed)
{
    wait_in_two_tasks(true);
}

static int waits_and_frees(void *arg)
{
    shared_job *s = arg;
    CHECK_INT(result_of(s->job), -EPROTO);
    free(s->job);
    return 0;
}

/* A job of the pool runs the queued one itself, for which a thread waits too. */
POOL_TEST(a_job_that_runs_another_itself_gets_its_result_although_that_is_freed)
{
    for (int i = 0; i < 50; i++) {
        held first = HELD(0);
        conc_job outer;
        WITH_POOL(pool, 1);
        shared_job s = {&pool, malloc(sizeof *s.job), HELD(-EPROTO), true};
        CHECK(s.job != NULL);
        occupy(&pool, &first);
        CHECK_INT(conc_pool_submit(&pool, &outer, waits_for_it_too, &s), 0);
        CHECK_INT(conc_pool_submit(&pool, s.job, fails_when_let_go, &s.hold), 0);
        let_go(&s.hold);
        side waiter = {.fn = waits_and_frees, .arg = &s};
        side_start(&waiter);
        for (bool waits = false; !waits; sched_yield()) {
            pthread_mutex_lock(&pool.queue->mutex);
            waits = s.job->waiters != NULL;
            pthread_mutex_unlock(&pool.queue->mutex);
        }
        let_go(&first);
        side_end(&waiter);
        CHECK_INT(result_of(&outer), 0);
    }
}

POOL_TEST(the_storage_of_a_job_may_hold_anything_before_the_submit)
{
    static const int patterns[] = {0x00, 0x01, 0x02, 0x5a, 0x80, 0xff};
    held h = HELD(7);
    conc_job j;
    WITH_POOL(pool, 2);
    for (size_t i = 0; i < CONC_LEN(patterns); i++) {
        memset(&j, patterns[i], sizeof j);
        CHECK_INT(conc_pool_submit(&pool, &j, returns, &numbers[i]), 0);
        CHECK_INT(result_of(&j), (int)i);
    }
    occupy(&pool, &h);
    j = h.job; /* a running job's bytes in another place are not that job */
    CHECK_INT(conc_pool_submit(&pool, &j, returns, &(int){3}), 0);
    CHECK_INT(result_of(&j), 3);
    let_go(&h);
    CHECK_INT(result_of(&h.job), 7);
}

POOL_TEST(a_job_can_be_submitted_again_once_it_has_ended_and_not_before)
{
    held h = HELD(7);
    conc_job queued;
    OPEN_POOL(pool, 1);
    OPEN_POOL(other, 1);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    CHECK_INT(conc_pool_submit(&pool, &h.job, counts, NULL), -EBUSY);
    CHECK_INT(conc_pool_submit(&other, &h.job, counts, NULL), -EBUSY);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), -EBUSY);
    CHECK_INT(conc_pool_submit(&other, &queued, counts, NULL), -EBUSY);
    CHECK(!conc_job_done(&h.job) && !conc_job_done(&queued));
    let_go(&h);
    CHECK_INT(result_of(&h.job), 7);
    CHECK_INT(result_of(&queued), 1);
    CHECK_INT(calls, 1);
    CHECK_INT(conc_pool_submit(&other, &queued, counts, NULL), 0);
    CHECK_INT(result_of(&queued), 2);
    close_pool(&pool);
    close_pool(&other);
}

POOL_TEST(the_remains_of_an_ended_job_may_be_overwritten_in_part)
{
    conc_job j;
    unsigned char *bytes = (unsigned char *)&j;
    WITH_POOL(pool, 1);
    for (size_t i = 0; i < sizeof j; i++)
        for (int value = 0; value <= 4; value++) {
            CHECK_INT(conc_pool_submit(&pool, &j, returns, &(int){7}), 0);
            CHECK_INT(result_of(&j), 7);
            bytes[i] = (unsigned char)value;
        }
}

/* ---- threads ---- */

/* Jobs that count how many of them run at once, and on which threads. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int begun, now, most, threads;
    pthread_t thread[64];
} crowd = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void crowd_note_thread(void)
{
    for (int i = 0; i < crowd.threads; i++)
        if (pthread_equal(crowd.thread[i], pthread_self()))
            return;
    crowd.thread[crowd.threads++] = pthread_self();
}

/* The first ones wait until there are as many as arg says. */
static int joins_the_crowd(void *arg)
{
    pthread_mutex_lock(&crowd.lock);
    crowd_note_thread();
    crowd.begun++;
    crowd.now++;
    crowd.most = crowd.now > crowd.most ? crowd.now : crowd.most;
    pthread_cond_broadcast(&crowd.changed);
    while (crowd.begun < *(int *)arg)
        pthread_cond_wait(&crowd.changed, &crowd.lock);
    pthread_mutex_unlock(&crowd.lock);
    sched_yield();
    pthread_mutex_lock(&crowd.lock);
    crowd.now--;
    pthread_mutex_unlock(&crowd.lock);
    return 0;
}

POOL_TEST(as_many_jobs_run_at_once_as_there_are_threads_and_never_more)
{
    enum { N = 4 };
    static conc_job jobs[15 * N];
    int meet = N;
    WITH_POOL(pool, N);
    for (int i = 0; i < 15 * N; i++)
        CHECK_INT(conc_pool_submit(&pool, &jobs[i], joins_the_crowd, &meet), 0);
    CHECK(count_threads() <= base + N);
    for (int i = 0; i < 15 * N; i++)
        CHECK_INT(result_of(&jobs[i]), 0);
    CHECK_INT(count_threads(), base + N);
    CHECK_INT(crowd.begun, 15 * N);
    CHECK_INT(crowd.most, N);
    CHECK_INT(crowd.threads, N);
}

static int meets_three_others(void *arg)
{
    count_up(arg);
    count_wait(arg, 4);
    return 0;
}

static void begin_four_jobs(void)
{
    for (int i = 0; i < 20; i++) {
        counter here = COUNTER;
        conc_job jobs[4];
        WITH_POOL(pool, 4);
        for (int k = 0; k < 4; k++)
            CHECK_INT(conc_pool_submit(&pool, &jobs[k], meets_three_others, &here), 0);
        for (int k = 0; k < 4; k++)
            CHECK_INT(result_of(&jobs[k]), 0);
    }
}

POOL_TEST(as_many_jobs_as_there_are_threads_all_begin) { begin_four_jobs(); }
THREAD_TEST(as_many_jobs_of_a_plain_thread_as_there_are_threads_all_begin) { begin_four_jobs(); }

POOL_TEST(jobs_one_after_another_use_one_thread)
{
    WITH_POOL(pool, 8);
    for (int i = 0; i < 100; i++) {
        conc_job j;
        CHECK_INT(conc_pool_run(&pool, joins_the_crowd, &(int){0}), 0);
        CHECK_INT(conc_pool_submit(&pool, &j, joins_the_crowd, &(int){0}), 0);
        CHECK_INT(result_of(&j), 0);
    }
    CHECK_INT(crowd.threads, 1);
    CHECK_INT(count_threads(), base + 1);
}

THREAD_TEST(jobs_of_a_plain_thread_one_after_another_use_one_thread)
{
    WITH_POOL(pool, 8);
    for (int i = 0; i < 100; i++)
        CHECK_INT(conc_pool_run(&pool, joins_the_crowd, &(int){0}), 0);
    CHECK_INT(crowd.threads, 1);
    CHECK_INT(count_threads(), base + 1);
}

POOL_TEST(threads_start_when_they_are_first_needed)
{
    held h[3] = {HELD(0), HELD(1), HELD(2)};
    WITH_POOL(pool, 8);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(count_threads(), base);
    for (int i = 0; i < 3; i++) {
        occupy(&pool, &h[i]);
        CHECK_INT(count_threads(), base + i + 1);
    }
    for (int i = 0; i < 3; i++)
        let_go(&h[i]);
}

THREAD_TEST(a_pool_has_one_thread_for_each_processor_by_default)
{
    int n = (int)sysconf(_SC_NPROCESSORS_ONLN), meet = n < 64 ? n : 64;
    static conc_job jobs[256];
    OPEN_POOL(pool, 0);
    for (int i = 0; i < 256; i++)
        CHECK_INT(conc_pool_submit(&pool, &jobs[i], joins_the_crowd, &meet), 0);
    close_pool(&pool);
    CHECK(crowd.most == meet || n > 64);
}

static int name_thread(void *arg)
{
    FILE *f = fopen("/proc/thread-self/comm", "r");
    bool read = f && fgets(arg, 64, f);
    if (f)
        fclose(f);
    return read ? 0 : -EIO;
}

static void check_name(const char *name, const char *expected)
{
    char seen[64] = "";
    conc_pool pool = {.threads = 1, .name = name};
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_run(&pool, name_thread, seen), 0);
    seen[strcspn(seen, "\n")] = 0;
    CHECK_STR(seen, expected);
    close_pool(&pool);
}

VARIANT_TEST(the_threads_have_the_pools_name)
{
    check_name("crunchers", "crunchers");
    check_name(NULL, "conc");
    check_name("a name of more than fifteen bytes", "a name of more ");
}

/* ---- order and the limit of the queue ---- */

POOL_TEST(jobs_start_in_submit_order)
{
    static conc_job jobs[1000];
    held h = HELD(0);
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_pool_submit(&pool, &jobs[i], writes, &numbers[i]), 0);
    let_go(&h);
    CHECK_INT(result_of(&jobs[999]), 999);
    check_written(1000);
}

POOL_TEST(a_submit_above_the_limit_waits_for_a_slot)
{
    held h[3] = {HELD(0), HELD(1), HELD(2)};
    conc_group g = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    occupy(&pool, &h[0]);
    CHECK_INT(conc_pool_submit(&pool, &h[1].job, holds, &h[1]), 0);
    caller c = {by_submit, &pool, &h[2].job, holds, &h[2], .begun = COUNTER};
    start(&g, &c);
    CHECK_INT(c.rc, WAITING);
    let_go(&h[0]);
    CHECK_INT(conc_join(&c.task, NULL), 0);
    CHECK_INT(c.rc, 0);
    count_wait(&h[1].entered, 1); /* it freed the slot */
    CHECK_INT(count_now(&h[2].entered), 0);
    let_go(&h[1]);
    let_go(&h[2]);
    for (int i = 0; i < 3; i++)
        CHECK_INT(result_of(&h[i].job), i);
    end(&g);
}

POOL_TEST(submits_get_slots_in_fifo_order)
{
    enum { N = 20 };
    static conc_job jobs[N];
    static caller c[N];
    held h = HELD(0);
    conc_group g = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 3};
    CHECK_INT(conc_pool_open(&pool), 0);
    occupy(&pool, &h);
    for (int i = 0; i < N; i++) {
        c[i] = (caller){by_submit, &pool, &jobs[i], writes, &numbers[i], .begun = COUNTER};
        start(&g, &c[i]);
        CHECK_INT(c[i].rc, i < 3 ? 0 : WAITING);
    }
    let_go(&h);
    end(&g);
    for (int i = 0; i < N; i++)
        CHECK_INT(result_of(&jobs[i]), i);
    check_written(N);
}

POOL_TEST(a_run_above_the_limit_waits_for_a_slot_first)
{
    held h[2] = {HELD(0), HELD(1)};
    conc_group g = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    occupy(&pool, &h[0]);
    CHECK_INT(conc_pool_submit(&pool, &h[1].job, holds, &h[1]), 0);
    caller c = {by_run, &pool, .fn = counts, .begun = COUNTER}, cancelled = c;
    start(&g, &cancelled);
    start(&g, &c);
    cancel(&cancelled);
    CHECK_INT(cancelled.rc, -ECANCELED);
    CHECK_INT(c.rc, WAITING);
    let_go(&h[0]);
    let_go(&h[1]);
    end(&g);
    CHECK_INT(c.rc, 1);
    CHECK_INT(calls, 1);
}

POOL_TEST(a_cancelled_submit_has_submitted_nothing_and_strands_no_waiter)
{
    held h = HELD(0);
    conc_job jobs[4];
    caller c[4];
    conc_group g = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    memset(jobs, 0, sizeof jobs);
    occupy(&pool, &h);
    for (int i = 0; i < 4; i++) {
        c[i] = (caller){by_submit,       &pool, &jobs[i], writes, &numbers[i == 3 ? 1 : i],
                        .begun = COUNTER};
        start(&g, &c[i]);
    }
    cancel(&c[1]);
    cancel(&c[2]);
    for (int i = 1; i <= 2; i++) {
        CHECK_INT(c[i].rc, -ECANCELED);
        CHECK_INT(conc_job_wait(&jobs[i], NULL), -EINVAL);
        CHECK_INT(conc_job_cancel(&jobs[i]), -EINVAL);
        CHECK(!conc_job_done(&jobs[i]));
    }
    CHECK_INT(c[3].rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK_INT(c[3].rc, 0);
    CHECK_INT(result_of(&jobs[3]), 1);
    check_written(2);
}

/* Until then its storage may hold anything. */
POOL_TEST(a_job_whose_submit_waits_for_a_slot_does_not_exist_yet)
{
    held h = HELD(0);
    conc_job queued, j;
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    memset(&j, 0xff, sizeof j);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    for (int i = 0; i < 2; i++) {
        conc_group g = {0};
        caller c = {by_submit, &pool, &j, counts, .begun = COUNTER};
        start(&g, &c);
        CHECK_INT(conc_job_cancel(&j), -EINVAL);
        CHECK_INT(conc_job_wait(&j, NULL), -EINVAL);
        CHECK(!conc_job_done(&j));
        CHECK_INT(conc_pool_submit(&pool, &j, counts, NULL), -EBUSY);
        if (i == 0)
            cancel(&c);
        else
            let_go(&h);
        end(&g);
        CHECK_INT(c.rc, i == 0 ? -ECANCELED : 0);
    }
    CHECK_INT(result_of(&j), 2);
}

POOL_TEST(a_submit_whose_limit_has_passed_does_not_wait_for_a_slot)
{
    conc_job jobs[3];
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    held h = HELD(0);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &jobs[0], counts, NULL), 0);
    caller c = {by_submit, &pool, &jobs[1], counts, .begun = COUNTER};
    CHECK_INT(conc_timeout(-1, by_submit, &c), -ETIMEDOUT);
    CHECK_INT(calls, 0);
    let_go(&h);
    CHECK_INT(result_of(&jobs[0]), 1);
    CHECK_INT(conc_pool_submit(&pool, &jobs[1], counts, NULL), 0);
    CHECK_INT(result_of(&jobs[1]), 2);
}

/* Several tasks, and threads in a run and without one, that submit more than the queue holds. */
typedef struct flood {
    conc_pool *pool;
    conc_job jobs[30];
} flood;

static int floods(void *arg)
{
    flood *f = arg;
    for (size_t i = 0; i < CONC_LEN(f->jobs); i++)
        CONC_TRY(conc_pool_submit(f->pool, &f->jobs[i], counts, NULL));
    for (size_t i = 0; i < CONC_LEN(f->jobs); i++)
        CONC_TRY(conc_job_wait(&f->jobs[i], NULL));
    return 0;
}

POOL_TEST(tasks_of_two_loops_and_plain_threads_wait_for_slots_together)
{
    static flood f[6];
    side s[4];
    conc_group g = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 2, .queue_limit = 2};
    CHECK_INT(conc_pool_open(&pool), 0);
    for (int i = 0; i < 6; i++)
        f[i].pool = &pool;
    for (int i = 0; i < 4; i++) {
        s[i] = (side){floods, &f[i], .in_run = i % 2};
        side_start(&s[i]);
    }
    CHECK_INT(conc_spawn(&g, floods, &f[4]), 0);
    CHECK_INT(conc_spawn(&g, floods, &f[5]), 0);
    end(&g);
    for (int i = 0; i < 4; i++)
        CHECK_INT(side_end(&s[i]), 0);
    CHECK_INT(calls, 6 * CONC_LEN(f[0].jobs));
}

POOL_TEST(a_plain_thread_that_waits_for_a_slot_gets_it)
{
    held h[3] = {HELD(0), HELD(1), HELD(2)};
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    occupy(&pool, &h[0]);
    CHECK_INT(conc_pool_submit(&pool, &h[1].job, holds, &h[1]), 0);
    caller c = {by_submit, &pool, &h[2].job, holds, &h[2], .begun = COUNTER};
    side s = {.fn = calls_once, .arg = &c};
    side_start(&s);
    count_wait(&c.begun, 1);
    let_go(&h[2]);
    let_go(&h[1]);
    CHECK_INT(count_now(&h[2].entered), 0);
    let_go(&h[0]);
    side_end(&s);
    CHECK_INT(c.rc, 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(result_of(&h[i].job), i);
}

POOL_TEST(a_job_of_the_pool_submits_above_the_limit_without_waiting)
{
    static flood f;
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 2};
    CHECK_INT(conc_pool_open(&pool), 0);
    f.pool = &pool;
    CHECK_INT(conc_pool_run(&pool, floods, &f), 0);
    CHECK_INT(calls, CONC_LEN(f.jobs));
    CHECK_INT(count_threads(), base + 1);
}

/* A job that submits others while it holds a mutex, which each of them locks. */
typedef struct guarded {
    conc_pool *pool;
    pthread_mutex_t lock;
    int submitted, done, refused;
    conc_job jobs[30];
} guarded;

static int submits_under_a_lock(void *arg)
{
    guarded *g = arg;
    if (pthread_mutex_trylock(&g->lock) != 0) /* one thread: another job runs inside this one */
        return -EDEADLK;
    for (int i = 0; i < 3 && g->submitted < (int)CONC_LEN(g->jobs); i++) {
        conc_job *j = &g->jobs[g->submitted++];
        g->refused += conc_pool_submit(g->pool, j, submits_under_a_lock, g) != 0;
    }
    g->done++;
    pthread_mutex_unlock(&g->lock);
    return 0;
}

static int submits_under_a_lock_in_a_run(void *arg)
{
    return run_virtual(submits_under_a_lock, arg);
}

static int submits_inside_another(void *g)
{
    return conc_pool_run(((guarded *)g)->pool, submits_under_a_lock, g);
}

static void submit_under_a_lock(conc_fn *first)
{
    guarded g = {.lock = PTHREAD_MUTEX_INITIALIZER};
    conc_pool pool = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    g.pool = &pool;
    CHECK_INT(conc_pool_run(&pool, first, &g), 0);
    close_pool(&pool);
    CHECK_INT(g.refused, 0);
    CHECK_INT(g.done, 1 + CONC_LEN(g.jobs));
    for (size_t i = 0; i < CONC_LEN(g.jobs); i++)
        CHECK_INT(result_of(&g.jobs[i]), 0);
}

POOL_TEST(a_submit_in_a_job_of_the_pool_runs_no_other_job_inside_it)
{
    submit_under_a_lock(submits_under_a_lock);
}

POOL_TEST(a_submit_in_a_run_inside_a_job_of_the_pool_does_not_wait_either)
{
    submit_under_a_lock(submits_under_a_lock_in_a_run);
}

POOL_TEST(a_submit_in_a_function_that_a_job_calls_runs_no_other_job_either)
{
    submit_under_a_lock(submits_inside_another);
}

POOL_TEST(a_submit_from_outside_waits_until_the_queue_is_below_its_limit_again)
{
    static flood f;
    held h = HELD(1);
    conc_group g = {0};
    conc_job j, flooding, last;
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 2};
    CHECK_INT(conc_pool_open(&pool), 0);
    f.pool = &pool;
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &flooding, floods, &f), 0);
    CHECK_INT(conc_pool_submit(&pool, &j, counts, NULL), 0);
    caller c = {by_submit, &pool, &last, counts, .begun = COUNTER};
    start(&g, &c);
    CHECK_INT(c.rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK_INT(c.rc, 0);
    CHECK_INT(result_of(&flooding), 0);
    CHECK(result_of(&last) >= (int)CONC_LEN(f.jobs));
}

/* A tree of jobs, each of which submits three others, and does not wait for them. */
typedef struct tree {
    conc_pool *pool;
    int depth;
    conc_job job;
    struct tree *branches;
} tree;

static tree forest[3 + 9 + 27 + 81];
static atomic_int planted, tree_failures;

static int grows(void *arg)
{
    tree *t = arg;
    atomic_fetch_add(&calls, 1);
    for (int i = 0; i < 3 && t->depth; i++) {
        tree *b = &forest[atomic_fetch_add(&planted, 1)];
        *b = (tree){.pool = t->pool, .depth = t->depth - 1};
        tree_failures += conc_pool_submit(b->pool, &b->job, grows, b) != 0;
    }
    return 0;
}

static void grow_trees(int threads, int limit)
{
    conc_pool pool = {.threads = threads, .queue_limit = limit};
    tree root = {.pool = &pool, .depth = 4};
    calls = 0;
    planted = 0;
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_submit(&pool, &root.job, grows, &root), 0);
    close_pool(&pool);
    CHECK_INT(tree_failures, 0);
    CHECK_INT(calls, 1 + CONC_LEN(forest));
}

POOL_TEST(jobs_may_submit_above_the_limit_and_all_run_even_while_the_pool_closes)
{
    grow_trees(1, 1);
    grow_trees(1, 2);
    grow_trees(3, 1);
    grow_trees(3, 0);
}

POOL_TEST(jobs_that_were_taken_back_leave_no_room_in_the_queue)
{
    enum { KEPT = 40, ROUNDS = 10000 };
    static conc_job kept[KEPT];
    held h = HELD(0);
    conc_job j;
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    for (int i = 0; i < KEPT; i++)
        CHECK_INT(conc_pool_submit(&pool, &kept[i], writes, &numbers[i]), 0);
    long before = 0;
    for (int i = 0; i < ROUNDS; i++) {
        before = i == ROUNDS / 10 ? allocations : before;
        CHECK_INT(conc_pool_submit(&pool, &j, counts, NULL), 0);
        CHECK_INT(conc_job_cancel(&j), 0);
    }
    CHECK_INT(allocations, before);
    for (int i = KEPT - 1; i > 0; i -= 2) /* those that were moved can be taken back, too */
        CHECK_INT(conc_job_cancel(&kept[i]), 0);
    let_go(&h);
    CHECK_INT(result_of(&h.job), 0);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), 1);
    CHECK_INT(written.n, KEPT / 2);
    for (int i = 0; i < KEPT; i++)
        CHECK_INT(result_of(&kept[i]), i % 2 ? -ECANCELED : i);
    for (int i = 0; i < KEPT / 2; i++)
        CHECK_INT(written.numbers[i], 2 * i);
}

POOL_TEST(without_memory_a_queue_uses_the_room_of_jobs_that_were_taken_back)
{
    held h = HELD(0);
    static conc_job jobs[64];
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    for (int i = 0; i < 64; i++)
        CHECK_INT(conc_pool_submit(&pool, &jobs[i], counts, NULL), 0);
    CHECK_INT(conc_job_cancel(&jobs[30]), 0);
    failing_allocation = allocations + 1;
    failing_forever = true;
    CHECK_INT(conc_pool_submit(&pool, &jobs[30], counts, NULL), 0);
    CHECK_INT(conc_job_cancel(&jobs[30]), 0);
    failing_allocation = 0;
    failing_forever = false;
    let_go(&h);
    CHECK_INT(result_of(&jobs[63]), 63);
}

/* ---- opening and closing ---- */

POOL_TEST(a_pool_that_cannot_be_opened_is_refused)
{
    conc_pool pool = {.threads = -1}, other = {.queue_limit = -1};
    CHECK_INT(conc_pool_open(NULL), -EINVAL);
    CHECK_INT(conc_pool_open(&pool), -EINVAL);
    CHECK_INT(conc_pool_open(&other), -EINVAL);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), -EINVAL);
    close_pool(&pool);
    pool.threads = 1;
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_open(&pool), -EBUSY);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), 1);
    CHECK_INT(conc_pool_open(&pool), -EBUSY);
    close_pool(&pool);
}

/* All calls that a pool can refuse; none may call its function. */
static void check_refused(conc_pool *p, int rc)
{
    int results[2] = {WAITING, WAITING};
    conc_job j = {0};
    CHECK_INT(conc_pool_run(p, counts, NULL), rc);
    CHECK_INT(conc_pool_submit(p, &j, counts, NULL), rc);
    CHECK_INT(conc_pool_map(p, counts, NULL, 2, 0), rc);
    CHECK_INT(conc_pool_map_all(p, counts, NULL, 2, 0, results), rc);
    for (int i = 0; i < 2; i++)
        CHECK_INT(results[i], p ? rc : WAITING);
    CHECK_INT(conc_job_wait(&j, NULL), -EINVAL);
    CHECK(!conc_job_done(&j));
    CHECK_INT(calls, 0);
}

static void close_and_reopen(void)
{
    conc_pool pool = {.threads = 2};
    check_refused(NULL, -EINVAL);
    check_refused(&pool, -EINVAL);
    close_pool(&pool);
    check_refused(&pool, -EINVAL); /* still never opened */
    for (int i = 0; i < 20; i++) {
        CHECK_INT(conc_pool_open(&pool), 0);
        CHECK_INT(pool.threads, 2);
        CHECK_INT(conc_pool_run(&pool, counts, NULL), 1);
        CHECK_INT(conc_pool_map(&pool, counts, NULL, 5, 0), 0);
        close_pool(&pool);
        check_threads(base);
        calls = 0;
        check_refused(&pool, -EPIPE);
        close_pool(&pool);
    }
}

POOL_TEST(a_closed_pool_refuses_jobs_until_it_is_opened_again) { close_and_reopen(); }
THREAD_TEST(a_closed_pool_refuses_jobs_of_plain_threads_too) { close_and_reopen(); }

static int forgets_to_close(void *arg)
{
    conc_job *j = arg;
    WITH_POOL(pool, 1);
    return conc_pool_submit(&pool, j, counts, NULL);
}

POOL_TEST(a_pool_is_closed_when_its_block_is_left)
{
    conc_job j;
    CHECK_INT(forgets_to_close(&j), 0);
    CHECK_INT(calls, 1);
    check_threads(base);
    CHECK_INT(result_of(&j), 1);
    CONC_AUTO(conc_pool, never_opened) = {.threads = 1};
    (void)never_opened;
}

/* Fifty queued jobs, all but the first of which have to wait until it is released. */
static conc_job fifty[50];

static void queue_fifty(conc_pool *p, held *h)
{
    occupy(p, h);
    for (int i = 0; i < 50; i++)
        CHECK_INT(conc_pool_submit(p, &fifty[i], counts, NULL), 0);
}

POOL_TEST(a_close_waits_for_fifty_queued_jobs)
{
    held h = HELD(7);
    conc_group g = {0};
    OPEN_POOL(pool, 1);
    queue_fifty(&pool, &h);
    caller c = {by_close, &pool, .begun = COUNTER};
    start(&g, &c);
    CHECK_INT(c.rc, WAITING);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), -EPIPE);
    CHECK_INT(calls, 0);
    let_go(&h);
    end(&g);
    CHECK_INT(c.rc, 0);
    CHECK_INT(calls, 50);
    for (int i = 0; i < 50; i++)
        CHECK(conc_job_done(&fifty[i]));
    CHECK_INT(result_of(&h.job), 7);
    CHECK(!h.asked);
}

THREAD_TEST(a_close_by_a_plain_thread_waits_for_fifty_queued_jobs)
{
    held h = HELD(7);
    OPEN_POOL(pool, 1);
    queue_fifty(&pool, &h);
    caller c = {by_close, &pool, .begun = COUNTER};
    side s = {.fn = calls_once, .arg = &c};
    side_start(&s);
    count_wait(&c.begun, 1);
    let_go(&h);
    side_end(&s);
    CHECK_INT(c.rc, 0);
    CHECK_INT(calls, 50);
}

POOL_TEST(two_tasks_may_close_a_pool_at_the_same_time)
{
    held h = HELD(7);
    conc_group g = {0};
    OPEN_POOL(pool, 2);
    caller c[2] = {{by_close, &pool, .begun = COUNTER}, {by_close, &pool, .begun = COUNTER}};
    occupy(&pool, &h);
    start(&g, &c[0]);
    start(&g, &c[1]);
    CHECK_INT(c[0].rc, WAITING);
    CHECK_INT(c[1].rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK_INT(c[0].rc, 0);
    CHECK_INT(c[1].rc, 0);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), -EPIPE);
}

/* Stores in result whether the job had ended. */
static int closes_and_looks(void *arg)
{
    caller *c = arg;
    int rc = conc_pool_close(c->pool);
    c->result = conc_job_done(c->job);
    return rc;
}

POOL_TEST(a_task_and_threads_that_close_a_pool_at_the_same_time_all_wait)
{
    enum { THREADS = 3 };
    held h = HELD(7);
    conc_group g = {0};
    OPEN_POOL(pool, 2);
    caller task = {by_close, &pool, .begun = COUNTER}, c[THREADS];
    side s[THREADS];
    occupy(&pool, &h);
    start(&g, &task);
    for (int i = 0; i < THREADS; i++) {
        c[i] = (caller){closes_and_looks, &pool, &h.job, .begun = COUNTER};
        s[i] = (side){.fn = calls_once, .arg = &c[i]};
        side_start(&s[i]);
        count_wait(&c[i].begun, 1);
    }
    let_go(&h);
    end(&g);
    CHECK_INT(task.rc, 0);
    for (int i = 0; i < THREADS; i++) {
        side_end(&s[i]);
        CHECK_INT(c[i].rc, 0);
        CHECK_INT(c[i].result, true);
    }
}

/* A pool thread that takes long to end: the first close is still in progress. */
static pthread_key_t slow_key;

static void ends_slowly(void *arg)
{
    held *h = arg;
    count_up(&h->entered);
    count_wait(&h->gate, 1);
}

static int makes_its_thread_slow(void *h) { return -pthread_setspecific(slow_key, h); }

/* second: it closes while the first waits for the thread's end. */
static void close_late(bool second_is_thread)
{
    held h = HELD(0);
    conc_group g = {0};
    OPEN_POOL(pool, 1);
    caller first = {by_close, &pool, .begun = COUNTER}, second = first;
    side a = {.fn = calls_once, .arg = &first}, b = {.fn = calls_once, .arg = &second};
    CHECK_INT(pthread_key_create(&slow_key, ends_slowly), 0);
    CHECK_INT(conc_pool_run(&pool, makes_its_thread_slow, &h), 0);
    side_start(&a);
    count_wait(&h.entered, 1);
    if (second_is_thread)
        side_start(&b);
    else
        start(&g, &second);
    count_wait(&second.begun, 1);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), -EPIPE);
    if (!second_is_thread)
        CHECK_INT(second.rc, WAITING);
    CHECK_INT(conc_pool_open(&pool), -EBUSY);
    let_go(&h);
    end(&g);
    if (second_is_thread)
        side_end(&b);
    side_end(&a);
    CHECK_INT(first.rc, 0);
    CHECK_INT(second.rc, 0);
    CHECK_INT(pthread_key_delete(slow_key), 0);
    CHECK_INT(conc_pool_open(&pool), 0);
    close_pool(&pool);
}

POOL_TEST(a_late_close_waits_until_the_pool_is_the_owners_again) { close_late(false); }
POOL_TEST(a_late_close_by_a_thread_waits_too) { close_late(true); }

static int closes_and_frees(void *arg)
{
    conc_pool **pool = arg;
    CHECK_INT(conc_pool_close(*pool), 0);
    memset(*pool, 0xee, sizeof **pool);
    free(*pool);
    return 0;
}

/* The first to return from a close frees the pool: the other must not access it. */
POOL_TEST(a_pool_may_be_freed_when_one_of_two_closes_has_returned)
{
    for (int i = 0; i < 50; i++) {
        held h = HELD(7);
        conc_group g = {0};
        conc_pool *pool = calloc(1, sizeof *pool);
        CHECK(pool != NULL);
        pool->threads = 1 + i % 3;
        CHECK_INT(conc_pool_open(pool), 0);
        occupy(pool, &h);
        caller second = {by_close, pool, .begun = COUNTER};
        side owner = {.fn = closes_and_frees, .arg = &pool};
        start(&g, &second);
        side_start(&owner);
        /* until both are inside: closes lock this mutex */
        for (bool inside = false; !inside; sched_yield()) {
            pthread_mutex_lock(&pool->queue->mutex);
            inside = pool->queue->references >= 4; /* the pool's, the thread's, and their own */
            pthread_mutex_unlock(&pool->queue->mutex);
        }
        let_go(&h);
        end(&g);
        side_end(&owner);
        CHECK_INT(second.rc, 0);
    }
}

POOL_TEST(the_second_close_of_a_pool_can_be_cancelled_and_still_waits)
{
    held h = HELD(7);
    conc_group g = {0};
    OPEN_POOL(pool, 1);
    queue_fifty(&pool, &h);
    caller c[2] = {{by_close, &pool, .begun = COUNTER}, {by_close, &pool, .begun = COUNTER}};
    start(&g, &c[0]);
    start(&g, &c[1]);
    cancel(&c[1]);
    CHECK_INT(result_of(&fifty[0]), -ECANCELED);
    CHECK_INT(c[0].rc, WAITING);
    CHECK_INT(c[1].rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK(h.asked);
    CHECK_INT(c[0].rc, 0);
    CHECK_INT(c[0].next, 0);
    CHECK_INT(c[1].rc, 0);
    CHECK_INT(c[1].next, -ECANCELED);
}

static int sleeps_first(void *arg)
{
    CHECK_INT(conc_sleep(100), -ECANCELED);
    return calls_once(arg);
}

POOL_TEST(a_pool_is_closed_in_the_same_turn_in_which_cancelled_tasks_use_it)
{
    conc_job j;
    conc_group g = {0};
    OPEN_POOL(pool, 1);
    caller c[] = {{by_run, &pool, .fn = counts, .begun = COUNTER},
                  {by_submit, &pool, &j, counts, .begun = COUNTER},
                  {by_close, &pool, .begun = COUNTER}};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&g, sleeps_first, &c[i]), 0);
    CHECK_INT(conc_settle(), 0);
    conc_group_cancel(&g);
    end(&g);
    for (int i = 0; i < 2; i++) /* in which order they run is not guaranteed */
        CHECK(c[i].rc == -ECANCELED || c[i].rc == -EPIPE);
    CHECK_INT(c[2].rc, 0);
    CHECK_INT(calls, 0);
}

static int closes(void *pool) { return conc_pool_close(pool); }
static int runs_closes(void *pool) { return conc_run(closes, pool); }

POOL_TEST(a_job_cannot_close_its_own_pool)
{
    OPEN_POOL(pool, 2);
    OPEN_POOL(other, 1);
    CHECK_INT(conc_pool_run(&pool, closes, &pool), -EDEADLK);
    CHECK_INT(conc_pool_run(&pool, runs_closes, &pool), -EDEADLK);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), 1);
    CHECK_INT(conc_pool_run(&pool, closes, &other), 0); /* but another one */
    CHECK_INT(conc_pool_run(&other, counts, NULL), -EPIPE);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), 2);
    close_pool(&pool);
}

POOL_TEST(a_cancelled_task_that_closes_takes_the_queue_back_and_waits_for_what_runs)
{
    held h = HELD(7);
    conc_group g = {0};
    OPEN_POOL(pool, 1);
    queue_fifty(&pool, &h);
    caller run = {by_run, &pool, .fn = counts, .begun = COUNTER},
           wait = {by_wait, .job = &fifty[20], .begun = COUNTER};
    caller close = {by_close, &pool, .begun = COUNTER};
    start(&g, &run);
    start(&g, &wait);
    start(&g, &close);
    cancel(&close);
    CHECK_INT(run.rc, -ECANCELED);
    CHECK_INT(wait.rc, 0);
    CHECK_INT(wait.result, -ECANCELED);
    CHECK_INT(wait.next, 0); /* not its own cancel */
    for (int i = 0; i < 50; i++)
        CHECK_INT(result_of(&fifty[i]), -ECANCELED);
    CHECK_INT(close.rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK_INT(close.rc, 0);
    CHECK_INT(close.next, -ECANCELED);
    CHECK(h.asked);
    CHECK_INT(result_of(&h.job), 7);
    CHECK_INT(calls, 0);
}

static int calls_when_cancelled(void *arg)
{
    caller *c = arg;
    CHECK_INT(conc_cancel(conc_self()), 0);
    return calls_once(c);
}

POOL_TEST(an_already_cancelled_task_closes_in_the_same_way)
{
    held h = HELD(7);
    conc_group g = {0};
    OPEN_POOL(pool, 1);
    queue_fifty(&pool, &h);
    caller c = {by_close, &pool, .begun = COUNTER};
    CHECK_INT(conc_spawn(&g, calls_when_cancelled, &c), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(c.rc, WAITING);
    CHECK_INT(result_of(&fifty[0]), -ECANCELED);
    let_go(&h);
    end(&g);
    CHECK_INT(c.rc, 0);
    CHECK_INT(c.next, -ECANCELED);
    CHECK(h.asked);
    CHECK_INT(calls, 0);
    check_threads(base);
}

POOL_TEST(a_submit_that_waits_for_a_slot_when_the_pool_closes_is_decided)
{
    held h = HELD(7);
    conc_job jobs[2];
    conc_group g = {0};
    conc_pool pool = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &jobs[0], counts, NULL), 0);
    caller c = {by_submit, &pool, &jobs[1], counts, .begun = COUNTER},
           close = {by_close, &pool, .begun = COUNTER};
    caller thread = {by_run, &pool, .fn = counts, .begun = COUNTER};
    side s = {.fn = calls_once, .arg = &thread};
    side_start(&s);
    count_wait(&thread.begun, 1);
    start(&g, &c);
    start(&g, &close);
    let_go(&h);
    end(&g);
    side_end(&s);
    CHECK_INT(close.rc, 0);
    CHECK(c.rc == 0 || c.rc == -EPIPE);
    CHECK(thread.rc > 0 || thread.rc == -EPIPE);
    CHECK_INT(calls, 1 + (c.rc == 0) + (thread.rc > 0));
}

/* A job that uses its pool in every way when the gate opens. */
static int uses_its_pool(void *arg)
{
    held *h = arg;
    conc_job j;
    int result = 0;
    holds(h);
    CONC_TRY(conc_pool_run(outer_pool, counts, NULL));
    CONC_TRY(conc_pool_map(outer_pool, counts, NULL, 5, 0));
    CONC_TRY(conc_pool_submit(outer_pool, &j, counts, NULL));
    CONC_TRY(conc_job_wait(&j, &result));
    CONC_TRY(result);
    return conc_pool_submit(outer_pool, &fifty[0], counts, NULL);
}

POOL_TEST(the_pools_own_jobs_may_submit_while_it_closes)
{
    for (int threads = 1; threads <= 3; threads++) {
        held h = HELD(0);
        conc_group g = {0};
        OPEN_POOL(pool, threads);
        outer_pool = &pool;
        calls = 0;
        CHECK_INT(conc_pool_submit(&pool, &h.job, uses_its_pool, &h), 0);
        count_wait(&h.entered, 1);
        caller c = {by_close, &pool, .begun = COUNTER};
        start(&g, &c);
        CHECK_INT(conc_pool_run(&pool, counts, NULL), -EPIPE);
        let_go(&h);
        end(&g);
        CHECK_INT(c.rc, 0);
        CHECK_INT(result_of(&h.job), 0);
        CHECK(conc_job_done(&fifty[0]));
        CHECK_INT(calls, 8);
    }
}

/* A job, or a run inside it, submits three jobs to its own pool with one thread and one queue
 * slot. */
typedef struct own_jobs {
    conc_pool pool;
    held hold;
    conc_job outer, jobs[2];
} own_jobs;

static int submits_three(void *arg)
{
    own_jobs *o = arg;
    CONC_TRY(conc_pool_submit(&o->pool, &o->hold.job, holds, &o->hold));
    CONC_TRY(conc_pool_submit(&o->pool, &o->jobs[0], counts, NULL));
    return conc_pool_submit(&o->pool, &o->jobs[1], counts, NULL);
}

static int submits_three_in_a_run(void *arg) { return run_virtual(submits_three, arg); }

static void close_with_own_jobs_above_the_limit(conc_fn *submits, bool cancelled)
{
    own_jobs o = {.pool = {.threads = 1, .queue_limit = 1}, .hold = HELD(0)};
    conc_group g = {0};
    caller close = {by_close, &o.pool, .begun = COUNTER};
    CHECK_INT(conc_pool_open(&o.pool), 0);
    CHECK_INT(conc_pool_submit(&o.pool, &o.outer, submits, &o), 0);
    count_wait(&o.hold.entered, 1);
    start(&g, &close);
    if (cancelled)
        cancel(&close);
    let_go(&o.hold);
    end(&g);
    CHECK_INT(close.rc, 0);
    CHECK_INT(result_of(&o.outer), 0);
    CHECK_INT(result_of(&o.jobs[0]), cancelled ? -ECANCELED : 1);
    CHECK_INT(result_of(&o.jobs[1]), cancelled ? -ECANCELED : 2);
}

POOL_TEST(a_close_waits_for_jobs_that_the_pools_own_jobs_submitted_above_the_limit)
{
    close_with_own_jobs_above_the_limit(submits_three, false);
    calls = 0;
    close_with_own_jobs_above_the_limit(submits_three_in_a_run, false);
}

POOL_TEST(a_cancelled_close_takes_back_what_the_pools_own_jobs_submitted_above_the_limit)
{
    close_with_own_jobs_above_the_limit(submits_three, true);
    close_with_own_jobs_above_the_limit(submits_three_in_a_run, true);
}

/* Submits until the pool is closed; every accepted job has to run. */
typedef struct submitter {
    conc_pool *pool;
    counter *accepted;
    int ran;
} submitter;

static int submits_until_closed(void *arg)
{
    submitter *s = arg;
    for (;;) {
        conc_job j;
        int result = 0, rc = conc_pool_submit(s->pool, &j, returns, &(int){5});
        if (rc < 0)
            return rc;
        count_up(s->accepted);
        if (conc_job_wait(&j, &result) != 0 || result != 5)
            return -EPROTO;
        s->ran++;
        rc = conc_pool_run(s->pool, returns, &(int){6});
        if (rc != 6)
            return rc;
        rc = conc_pool_map(s->pool, returns, &(int){7}, 3, 0);
        if (rc < 0)
            return rc;
    }
}

static void submit_while_closing(int threads, int limit)
{
    counter accepted = COUNTER;
    submitter s[4];
    side sides[4];
    conc_pool pool = {.threads = threads, .queue_limit = limit};
    CHECK_INT(conc_pool_open(&pool), 0);
    for (int i = 0; i < 4; i++) {
        s[i] = (submitter){.pool = &pool, .accepted = &accepted};
        sides[i] = (side){submits_until_closed, &s[i], .in_run = i % 2};
        side_start(&sides[i]);
    }
    count_wait(&accepted, 20);
    close_pool(&pool);
    for (int i = 0; i < 4; i++)
        CHECK_INT(side_end(&sides[i]), -EPIPE);
}

THREAD_TEST(threads_that_submit_while_another_closes_get_their_jobs_done_or_epipe)
{
    for (int i = 0; i < 10; i++)
        submit_while_closing(1 + i % 3, i % 4);
}

POOL_TEST(threads_that_submit_while_a_task_closes_get_their_jobs_done_or_epipe)
{
    for (int i = 0; i < 10; i++)
        submit_while_closing(1 + i % 3, i % 4);
}

POOL_TEST(a_job_is_cancelled_and_its_pool_closed_without_a_hang)
{
    for (int i = 0; i < 100; i++) {
        conc_job j;
        OPEN_POOL(pool, 1);
        calls = 0;
        CHECK_INT(conc_pool_submit(&pool, &j, counts, NULL), 0);
        (void)conc_job_cancel(&j);
        close_pool(&pool);
        CHECK_INT(result_of(&j), calls ? 1 : -ECANCELED);
    }
}

/* ---- jobs that use their own pool ---- */

typedef struct fibonacci {
    conc_pool *pool;
    int n;
} fibonacci;

static int adds_two_jobs(void *arg)
{
    fibonacci *f = arg, less = {f->pool, f->n - 1}, least = {f->pool, f->n - 2};
    conc_job a, b;
    int x, y;
    if (f->n < 2)
        return f->n;
    CONC_TRY(conc_pool_submit(f->pool, &a, adds_two_jobs, &less));
    int rc = conc_pool_submit(f->pool, &b, adds_two_jobs, &least);
    CONC_TRY(conc_job_wait(&a, &x));
    CONC_TRY(rc);
    CONC_TRY(conc_job_wait(&b, &y));
    return x + y;
}

POOL_TEST(jobs_submit_jobs_and_wait_for_them)
{
    for (int threads = 1; threads <= 4; threads++)
        for (int limit = 0; limit <= 2; limit++) {
            conc_pool pool = {.threads = threads, .queue_limit = limit};
            fibonacci f = {&pool, 12};
            CHECK_INT(conc_pool_open(&pool), 0);
            CHECK_INT(conc_pool_run(&pool, adds_two_jobs, &f), 144);
            close_pool(&pool);
        }
}

/* Maps in maps, down to depth 0. */
static int maps(void *arg)
{
    fibonacci *f = arg, rest = {f->pool, f->n - 1};
    return f->n ? conc_pool_map(f->pool, maps, &rest, 4, 0) : counts(NULL);
}

POOL_TEST(maps_in_maps_end)
{
    for (int threads = 1; threads <= 3; threads++)
        for (int limit = 0; limit <= 1; limit++) {
            conc_pool pool = {.threads = threads, .queue_limit = limit};
            fibonacci f = {&pool, 4};
            CHECK_INT(conc_pool_open(&pool), 0);
            calls = 0;
            CHECK_INT(maps(&f), 0);
            CHECK_INT(calls, 256);
            CHECK_INT(conc_pool_run(&pool, maps, &f), 0);
            CHECK_INT(calls, 512);
            close_pool(&pool);
        }
}

static int runs_deeper(void *arg)
{
    fibonacci *f = arg, rest = {f->pool, f->n - 1};
    place p;
    looks_around(&p);
    if (!p.no_task || p.slept != -EPERM)
        return -EPROTO;
    return f->n ? conc_pool_run(f->pool, runs_deeper, &rest) : counts(NULL);
}

POOL_TEST(a_run_in_a_job_of_the_pool_is_a_call)
{
    WITH_POOL(pool, 1);
    fibonacci f = {&pool, 100};
    CHECK_INT(conc_pool_run(&pool, runs_deeper, &f), 1);
    CHECK_INT(count_threads(), base + 1);
}

static int looks_from_inside(void *arg) { return conc_pool_run(outer_pool, looks_around, arg); }

POOL_TEST(a_run_in_a_job_of_another_pool_is_a_job)
{
    place p;
    OPEN_POOL(pool, 1);
    OPEN_POOL(other, 1);
    outer_pool = &other;
    CHECK_INT(conc_pool_run(&pool, looks_from_inside, &p), 42);
    check_place(&p);
    CHECK_INT(count_threads(), base + 2);
    outer_pool = &pool;
    CHECK_INT(conc_pool_run(&pool, looks_from_inside, &p), 42);
    CHECK_INT(count_threads(), base + 2);
    close_pool(&pool);
    close_pool(&other);
}

static int waits_for_job(void *j)
{
    int result = 0;
    CONC_TRY(conc_job_wait(j, &result));
    return result;
}

POOL_TEST(a_job_that_waits_for_a_queued_one_runs_it_itself)
{
    held h = HELD(0);
    conc_job waiting, queued[2];
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &waiting, waits_for_job, &queued[1]), 0);
    CHECK_INT(conc_pool_submit(&pool, &queued[0], writes, &numbers[1]), 0);
    CHECK_INT(conc_pool_submit(&pool, &queued[1], writes, &numbers[0]), 0);
    let_go(&h);
    CHECK_INT(result_of(&waiting), 0);
    CHECK_INT(result_of(&queued[0]), 1);
    check_written(2);
}

POOL_TEST(a_job_that_waits_for_a_running_one_gets_its_result)
{
    held h = HELD(7);
    conc_job waiting, last;
    WITH_POOL(pool, 2);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &waiting, waits_for_job, &h.job), 0);
    CHECK_INT(conc_pool_submit(&pool, &last, counts, NULL), 0);
    let_go(&h);
    CHECK_INT(result_of(&waiting), 7);
    CHECK_INT(result_of(&last), 1);
}

/* Waits for another job first. */
typedef struct follower {
    conc_job *before;
    held hold;
} follower;

static int follows(void *arg)
{
    follower *f = arg;
    CONC_TRY(conc_job_wait(f->before, NULL));
    return holds(&f->hold);
}

POOL_TEST(jobs_that_wait_for_running_ones_do_not_make_more_threads)
{
    held first = HELD(0), others = HELD(0);
    follower f = {&first.job, HELD(0)};
    conc_job jobs[4];
    WITH_POOL(pool, 2);
    occupy(&pool, &first);
    CHECK_INT(conc_pool_submit(&pool, &f.hold.job, follows, &f), 0);
    for (int i = 0; i < 4; i++)
        CHECK_INT(conc_pool_submit(&pool, &jobs[i], holds, &others), 0);
    CHECK(count_threads() <= base + 2);
    let_go(&first);
    count_wait(&f.hold.entered, 1);
    count_wait(&others.entered, 1);
    for (int i = 0; i < 20; i++) { /* gives the others the chance to arrive, wrongly */
        nap();
        CHECK_INT(count_now(&others.entered), 1);
        CHECK(count_threads() <= base + 2);
    }
    let_go(&f.hold);
    let_go(&others);
    CHECK_INT(result_of(&f.hold.job), 0);
}

static int waits_for_itself(void *j) { return conc_job_wait(j, NULL); }

POOL_TEST(a_job_that_waits_for_itself_gets_an_error)
{
    conc_job j;
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &j, waits_for_itself, &j), 0);
    CHECK_INT(result_of(&j), -EDEADLK);
}

static int sleeps_a_second(void *arg)
{
    CONC_TRY(conc_sleep(1));
    return conc_self() != NULL && conc_now() == 1 ? *(int *)arg : -EPROTO;
}

static int runs_a_loop(void *arg)
{
    conc_options options = {.virtual_clock = true};
    return conc_run_with(&options, sleeps_a_second, arg);
}

POOL_TEST(a_job_may_have_its_own_run)
{
    int values[] = {5, 6, 7}, results[3];
    WITH_POOL(pool, 3);
    CHECK_INT(conc_pool_run(&pool, runs_a_loop, &values[0]), 5);
    CHECK_INT(conc_pool_map_all(&pool, runs_a_loop, values, 3, sizeof(int), results), 0);
    CHECK_INT(results[0] + results[1] + results[2], 18);
    CHECK_TIME(0);
}

/* The same, but in a task of a run in a job of the pool. */
static int works_in_a_loop(void *arg)
{
    conc_options options = {.virtual_clock = true};
    return conc_run_with(&options, *(conc_fn **)arg, arg);
}

typedef struct looped {
    conc_fn *fn;
    conc_pool *pool;
} looped;

static int looped_run(void *arg)
{
    return conc_pool_run(((looped *)arg)->pool, returns, &(int){8});
}
static int looped_map(void *arg)
{
    CONC_TRY(conc_pool_map(((looped *)arg)->pool, counts, NULL, 5, 0));
    return 8;
}
static int looped_submit(void *arg)
{
    conc_job j[5];
    int value = 8, result = 0;
    for (int i = 0; i < 5; i++)
        CONC_TRY(conc_pool_submit(((looped *)arg)->pool, &j[i], returns, &value));
    for (int i = 0; i < 5; i++)
        CONC_TRY(conc_job_wait(&j[i], &result));
    return result;
}

static void check_looped(conc_fn *fn)
{
    for (int limit = 0; limit <= 1; limit++) {
        conc_pool pool = {.threads = 1, .queue_limit = limit};
        looped l = {fn, &pool};
        CHECK_INT(conc_pool_open(&pool), 0);
        CHECK_INT(conc_pool_run(&pool, works_in_a_loop, &l), 8);
        close_pool(&pool);
    }
}

POOL_TEST(a_task_inside_a_job_runs_a_job_on_the_only_thread) { check_looped(looped_run); }
POOL_TEST(a_task_inside_a_job_maps_on_the_only_thread) { check_looped(looped_map); }
POOL_TEST(a_task_inside_a_job_submits_and_waits_on_the_only_thread) { check_looped(looped_submit); }

/* ---- cancels ---- */

POOL_TEST(a_cancelled_task_waits_for_its_running_job_and_gets_the_result)
{
    held h = HELD(7);
    conc_group g = {0};
    WITH_POOL(pool, 1);
    caller c = {by_run, &pool, .fn = holds, .arg = &h, .begun = COUNTER};
    start(&g, &c);
    count_wait(&h.entered, 1);
    cancel(&c);
    CHECK_INT(c.rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK_INT(c.rc, 7);
    CHECK_INT(c.next, -ECANCELED);
    CHECK(h.asked);
}

POOL_TEST(a_queued_job_whose_task_is_cancelled_is_taken_back)
{
    held h = HELD(7);
    conc_group g = {0};
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    caller c = {by_run, &pool, .fn = counts, .begun = COUNTER}, other = c;
    start(&g, &c);
    start(&g, &other);
    cancel(&c);
    CHECK_INT(c.rc, -ECANCELED);
    CHECK_INT(c.next, -ECANCELED);
    CHECK_INT(other.rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK_INT(other.rc, 1);
    CHECK_INT(calls, 1);
    CHECK(!h.asked);
}

static int runs_when_cancelled(void *arg)
{
    caller *c = arg;
    conc_job j = {0};
    CHECK_INT(conc_cancel(conc_self()), 0);
    CHECK_INT(conc_pool_run(c->pool, counts, NULL), -ECANCELED);
    CHECK_INT(conc_pool_map(c->pool, counts, NULL, 3, 0), -ECANCELED);
    int results[] = {1, 1, 1};
    CHECK_INT(conc_pool_map_all(c->pool, counts, NULL, 3, 0, results), -ECANCELED);
    for (int i = 0; i < 3; i++)
        CHECK_INT(results[i], -ECANCELED);
    CHECK_INT(calls, 0);
    int rc = conc_pool_submit(c->pool, &j, counts, NULL), result = 0;
    CHECK(rc == 0 || rc == -ECANCELED);
    CHECK_INT(conc_job_wait(&j, &result), rc ? -EINVAL : 0);
    CHECK(rc || result == (calls ? 1 : -ECANCELED));
    return 0;
}

POOL_TEST(an_already_cancelled_task_starts_nothing)
{
    conc_group g = {0};
    WITH_POOL(pool, 2);
    caller c = {.pool = &pool};
    CHECK_INT(conc_spawn(&g, runs_when_cancelled, &c), 0);
    end(&g);
}

POOL_TEST(a_wait_by_a_cancelled_task_takes_the_job_back_or_asks_it_to_stop)
{
    held h = HELD(7);
    conc_job queued;
    conc_group g = {0};
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    caller first = {by_wait, .job = &h.job, .begun = COUNTER},
           second = {by_wait, .job = &queued, .begun = COUNTER};
    start(&g, &first);
    start(&g, &second);
    cancel(&first);
    cancel(&second);
    CHECK_INT(first.rc, WAITING);
    CHECK_INT(second.rc, 0);
    CHECK_INT(second.result, -ECANCELED);
    CHECK_INT(second.next, -ECANCELED);
    CHECK(conc_job_done(&queued));
    let_go(&h);
    end(&g);
    CHECK_INT(first.rc, 0);
    CHECK_INT(first.result, 7);
    CHECK_INT(first.next, -ECANCELED);
    CHECK(h.asked);
    CHECK_INT(calls, 0);
}

static int waits_when_cancelled(void *arg)
{
    CHECK_INT(conc_cancel(conc_self()), 0);
    return calls_once(arg);
}

POOL_TEST(an_already_cancelled_task_waits_in_the_same_way)
{
    held h = HELD(7);
    conc_job queued, done;
    conc_group g = {0};
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &done, returns, &(int){5}), 0);
    spin_until_done(&done);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    caller c[] = {{by_wait, .job = &h.job, .begun = COUNTER},
                  {by_wait, .job = &queued, .begun = COUNTER},
                  {by_wait, .job = &done, .begun = COUNTER}};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&g, waits_when_cancelled, &c[i]), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(c[0].rc, WAITING);
    CHECK_INT(c[1].result, -ECANCELED);
    CHECK_INT(c[2].result, 5);
    let_go(&h);
    end(&g);
    CHECK_INT(c[0].result, 7);
    CHECK(h.asked);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(c[i].rc, 0);
        CHECK_INT(c[i].next, -ECANCELED);
    }
    CHECK_INT(calls, 0);
}

POOL_TEST(a_cancel_of_one_waiter_does_not_end_the_job_while_others_wait)
{
    held h = HELD(7);
    conc_job queued;
    conc_group g = {0};
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    caller c[4];
    for (int i = 0; i < 4; i++) {
        c[i] = (caller){by_wait, .job = i < 2 ? &h.job : &queued, .begun = COUNTER};
        start(&g, &c[i]);
    }
    cancel(&c[0]);
    cancel(&c[2]);
    for (int i = 0; i < 4; i++)
        CHECK_INT(c[i].rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK(!h.asked);
    for (int i = 0; i < 4; i++) {
        CHECK_INT(c[i].rc, 0);
        CHECK_INT(c[i].result, i < 2 ? 7 : 1);
        CHECK_INT(c[i].next, i % 2 ? 0 : -ECANCELED);
    }
}

static int receives_forever(void *arg)
{
    int item;
    count_up(arg);
    CONC_AUTO(conc_channel, empty) = CONC_CHANNEL(int, 1);
    return conc_channel_recv(&empty, &item);
}

/* Three wait for each of two jobs, of which one is queued. When the others are cancelled, the last
 * one is cancelled already, or has not arrived yet. */
static void cancel_all_waiters(bool last_comes_first)
{
    counter begun = COUNTER;
    conc_job running, queued;
    conc_group g = {0};
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &running, receives_forever, &begun), 0);
    count_wait(&begun, 1);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    caller c[6];
    for (int i = 0; i < 6; i++)
        c[i] = (caller){by_wait, .job = i % 2 ? &running : &queued, .begun = COUNTER};
    for (int i = 0; i < 4; i++)
        start(&g, &c[i]);
    for (int i = 4; i < 6 && last_comes_first; i++)
        CHECK_INT(conc_spawn(&g, calls_when_cancelled, &c[i]), 0);
    cancel(&c[0]);
    cancel(&c[1]);
    CHECK(!conc_job_done(&running) && !conc_job_done(&queued));
    cancel(&c[2]);
    cancel(&c[3]);
    for (int i = 4; i < 6 && !last_comes_first; i++)
        CHECK_INT(conc_spawn(&g, calls_when_cancelled, &c[i]), 0);
    end(&g);
    for (int i = 0; i < 6; i++) {
        CHECK_INT(c[i].rc, 0);
        CHECK_INT(c[i].result, -ECANCELED);
        CHECK_INT(c[i].next, -ECANCELED);
    }
    CHECK_INT(calls, 0);
}

POOL_TEST(a_job_is_cancelled_when_all_its_waiters_are) { cancel_all_waiters(false); }

POOL_TEST(an_already_cancelled_waiter_does_not_keep_a_job_from_its_cancel)
{
    cancel_all_waiters(true);
}

static int waits_for_its_result(void *arg) { return result_of(arg); }

/* A job that waits for another runs that one itself. */
POOL_TEST(a_cancel_of_one_waiter_does_not_end_the_job_that_another_job_runs_itself)
{
    held first = HELD(0), inner = HELD(7);
    conc_job outer;
    conc_group g = {0};
    WITH_POOL(pool, 1);
    occupy(&pool, &first);
    CHECK_INT(conc_pool_submit(&pool, &outer, waits_for_its_result, &inner.job), 0);
    CHECK_INT(conc_pool_submit(&pool, &inner.job, holds, &inner), 0);
    let_go(&first);
    count_wait(&inner.entered, 1);
    caller c = {by_wait, .job = &inner.job, .begun = COUNTER};
    start(&g, &c);
    cancel(&c);
    let_go(&inner);
    end(&g);
    CHECK(!inner.asked);
    CHECK_INT(c.result, 7);
    CHECK_INT(result_of(&outer), 7);
}

POOL_TEST(a_job_that_another_runs_itself_is_asked_to_stop_when_both_waiters_are_cancelled)
{
    counter begun = COUNTER;
    held first = HELD(0);
    conc_job outer, inner;
    conc_group g = {0};
    WITH_POOL(pool, 1);
    occupy(&pool, &first);
    CHECK_INT(conc_pool_submit(&pool, &outer, waits_for_its_result, &inner), 0);
    CHECK_INT(conc_pool_submit(&pool, &inner, receives_forever, &begun), 0);
    let_go(&first);
    count_wait(&begun, 1);
    caller c = {by_wait, .job = &inner, .begun = COUNTER};
    start(&g, &c);
    cancel(&c);
    CHECK(!conc_job_done(&inner));
    CHECK_INT(conc_job_cancel(&outer), 0);
    end(&g);
    CHECK_INT(c.result, -ECANCELED);
    CHECK_INT(result_of(&outer), -ECANCELED);
}

POOL_TEST(an_already_cancelled_task_does_not_end_a_job_for_which_others_wait)
{
    held h = HELD(7);
    conc_job queued;
    conc_group g = {0};
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    caller c[4];
    for (int i = 0; i < 4; i++)
        c[i] = (caller){by_wait, .job = i < 2 ? &h.job : &queued, .begun = COUNTER};
    start(&g, &c[0]);
    start(&g, &c[2]);
    CHECK_INT(conc_spawn(&g, calls_when_cancelled, &c[1]), 0);
    CHECK_INT(conc_spawn(&g, calls_when_cancelled, &c[3]), 0);
    CHECK_INT(conc_settle(), 0);
    for (int i = 0; i < 4; i++)
        CHECK_INT(c[i].rc, WAITING);
    let_go(&h);
    end(&g);
    CHECK(!h.asked);
    for (int i = 0; i < 4; i++)
        CHECK_INT(c[i].result, i < 2 ? 7 : 1);
}

POOL_TEST(a_plain_thread_that_waits_too_keeps_the_job_from_being_taken_back)
{
    held h = HELD(7);
    conc_group g = {0};
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    caller c = {by_wait, .job = &h.job, .begun = COUNTER}, thread = c;
    side s = {.fn = calls_once, .arg = &thread};
    side_start(&s);
    count_wait(&thread.begun, 1);
    start(&g, &c);
    cancel(&c);
    let_go(&h);
    end(&g);
    side_end(&s);
    CHECK_INT(c.result, 7);
    CHECK_INT(thread.result, 7);
}

/* ---- conc_job_cancel and conc_job_cancelled ---- */

static void check_cancelled_elsewhere(void *arg)
{
    (void)arg;
    CHECK(!conc_job_cancelled());
}

static void cancel_posted(void *j) { CHECK_INT(conc_job_cancel(j), 0); }

static int cancels_job(void *j) { return conc_job_cancel(j); }

POOL_TEST(a_job_can_be_cancelled_in_each_of_its_states)
{
    held h = HELD(7);
    conc_job queued[3], never = {0};
    WITH_POOL(pool, 1);
    CHECK_INT(conc_job_cancel(&never), -EINVAL);
    occupy(&pool, &h);
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_pool_submit(&pool, &queued[i], counts, NULL), 0);
    CHECK_INT(conc_job_cancel(&queued[1]), 0);
    CHECK(conc_job_done(&queued[1]));
    int again = conc_job_cancel(&queued[1]);
    CHECK(again == 0 || again == -EALREADY);
    CHECK_INT(result_of(&queued[1]), -ECANCELED);
    CHECK_INT(conc_job_cancel(&h.job), 0);
    CHECK_INT(conc_job_cancel(&h.job), 0);
    CHECK(!conc_job_done(&h.job));
    let_go(&h);
    CHECK_INT(result_of(&h.job), 7);
    CHECK(h.asked);
    CHECK_INT(conc_job_cancel(&h.job), -EALREADY);
    CHECK_INT(result_of(&queued[2]), 2);
    CHECK_INT(conc_job_cancel(&queued[2]), -EALREADY);
    CHECK_INT(result_of(&queued[2]), 2);
    CHECK_INT(calls, 2);
    CHECK_INT(conc_pool_submit(&pool, &queued[1], counts, NULL), 0);
    CHECK_INT(result_of(&queued[1]), 3); /* the cancel was meant for the previous one */
}

/* {a job waits in a run: there is a second thread}; {that thread takes several jobs, and waits in
 * the first}; {the run ends, and its job runs the second of them}; {the thread ends}. */
static struct {
    conc_pool pool;
    held first, second;
    conc_job outer, rest[10];
} claimed = {.pool = {.threads = 1}, .first = HELD(0), .second = HELD(0)};

static int submits_twelve(void *arg)
{
    (void)arg;
    CONC_TRY(conc_pool_submit(&claimed.pool, &claimed.first.job, holds, &claimed.first));
    CONC_TRY(conc_pool_submit(&claimed.pool, &claimed.second.job, holds, &claimed.second));
    for (int i = 0; i < 10; i++)
        CONC_TRY(conc_pool_submit(&claimed.pool, &claimed.rest[i], counts, NULL));
    return 0;
}

/* A task blocks the loop while the other one waits: until then the second thread may exist. */
static int holds_the_loop(void *arg)
{
    conc__job_queue *c = claimed.pool.queue;
    (void)arg;
    for (bool waits = false; !waits; CONC_TRY(conc_yield())) {
        pthread_mutex_lock(&c->mutex);
        waits = c->nested > 0;
        pthread_mutex_unlock(&c->mutex);
    }
    count_wait(&claimed.first.entered, 1);
    return 0;
}

static int has_twelve_submitted(void *arg)
{
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, holds_the_loop, NULL));
    int rc = conc_pool_run(&claimed.pool, submits_twelve, arg);
    return conc_group_end(&g, rc);
}

static int claims_the_second(void *arg)
{
    int result = WAITING;
    CONC_TRY(conc_run(has_twelve_submitted, arg));
    CONC_TRY(conc_job_wait(&claimed.second.job, &result));
    return result;
}

THREAD_TEST(a_job_can_be_cancelled_when_the_thread_that_would_have_run_it_has_ended)
{
    CHECK_INT(conc_pool_open(&claimed.pool), 0);
    CHECK_INT(conc_pool_submit(&claimed.pool, &claimed.outer, claims_the_second, NULL), 0);
    count_wait(&claimed.second.entered, 1);
    let_go(&claimed.first);
    check_threads(base + 1);
    CHECK_INT(conc_job_cancel(&claimed.second.job), 0);
    let_go(&claimed.second);
    CHECK_INT(result_of(&claimed.outer), 0);
    CHECK(claimed.second.asked);
    close_pool(&claimed.pool);
}

POOL_TEST(a_job_can_be_cancelled_from_anywhere)
{
    held h = HELD(7);
    conc_job queued[4];
    OPEN_POOL(pool, 1);
    OPEN_POOL(other, 1);
    occupy(&pool, &h);
    for (int i = 0; i < 4; i++)
        CHECK_INT(conc_pool_submit(&pool, &queued[i], counts, NULL), 0);
    CHECK_INT(conc_post(conc_loop_self(), cancel_posted, &queued[0]), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_pool_run(&other, cancels_job, &queued[1]), 0);
    side s[2] = {{cancels_job, &queued[2], .in_run = true}, {.fn = cancels_job, .arg = &queued[3]}};
    for (int i = 0; i < 2; i++) {
        side_start(&s[i]);
        CHECK_INT(side_end(&s[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        CHECK_INT(result_of(&queued[i]), -ECANCELED);
    let_go(&h);
    close_pool(&pool);
    close_pool(&other);
    CHECK_INT(calls, 0);
}

POOL_TEST(a_cancel_of_a_job_is_no_checkpoint)
{
    held h = HELD(7);
    conc_job queued;
    conc_scope s = {0};
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_job_cancel(&queued), 0);
    CHECK_INT(conc_job_cancel(&h.job), 0);
    CHECK(conc_job_done(&queued) && !conc_job_done(&h.job));
    CHECK_INT(conc_scope_end(&s, conc_sleep(0)), 0);
    let_go(&h);
    CHECK_INT(result_of(&h.job), 7);
    CHECK(h.asked);
}

POOL_TEST(outside_a_job_nothing_was_asked_to_stop)
{
    conc_scope s = {0};
    CHECK(!conc_job_cancelled());
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK(!conc_job_cancelled());
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(conc_post(conc_loop_self(), check_cancelled_elsewhere, NULL), 0);
    CHECK_INT(conc_settle(), 0);
}

/* Cancels itself, checks, and checks again with another job around. */
typedef struct inner_cancel {
    conc_pool *pool;
    conc_job outer, inner;
    atomic_bool inner_before, inner_after, outer_after, called;
} inner_cancel;

static int cancels_itself(void *arg)
{
    inner_cancel *c = arg;
    c->inner_before = conc_job_cancelled();
    CONC_TRY(conc_job_cancel(&c->inner));
    c->inner_after = conc_job_cancelled();
    return 3;
}

static int asks(void *arg)
{
    inner_cancel *c = arg;
    c->called = conc_job_cancelled();
    return 0;
}

static int has_an_inner_job(void *arg)
{
    inner_cancel *c = arg;
    int result = 0;
    CONC_TRY(conc_pool_submit(c->pool, &c->inner, cancels_itself, c));
    CONC_TRY(conc_job_wait(&c->inner, &result));
    c->outer_after = conc_job_cancelled();
    CONC_TRY(conc_job_cancel(&c->outer));
    CONC_TRY(conc_pool_run(c->pool, asks, c));
    return result + conc_job_cancelled();
}

POOL_TEST(each_job_on_a_thread_is_asked_for_itself)
{
    static inner_cancel c;
    WITH_POOL(pool, 1);
    c.pool = &pool;
    CHECK_INT(conc_pool_submit(&pool, &c.outer, has_an_inner_job, &c), 0);
    CHECK_INT(result_of(&c.outer), 4);
    CHECK(!c.inner_before && c.inner_after && !c.outer_after);
    (void)c.called; /* a call inside a cancelled job sees the cancel, or is refused */
}

/* ---- races: two events with no wait between, in both orders ---- */

POOL_TEST(a_cancel_in_the_moment_after_the_jobs_end_leaves_the_result)
{
    held h = HELD(7);
    conc_group g = {0};
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &h.job, holds, &h), 0);
    caller c = {by_wait, .job = &h.job, .begun = COUNTER};
    start(&g, &c);
    let_go(&h);
    spin_until_done(&h.job); /* the loop does not know it yet */
    CHECK_INT(c.rc, WAITING);
    cancel(&c);
    end(&g);
    CHECK_INT(c.rc, 0);
    CHECK_INT(c.result, 7);
    CHECK_INT(c.next, -ECANCELED);
    CHECK(!h.asked);
}

POOL_TEST(a_cancel_in_the_moment_before_the_jobs_end_leaves_the_result)
{
    held h = HELD(7);
    conc_group g = {0};
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &h.job, holds, &h), 0);
    caller c = {by_wait, .job = &h.job, .begun = COUNTER};
    start(&g, &c);
    count_wait(&h.entered, 1);
    CHECK_INT(conc_cancel(&c.task), 0);
    let_go(&h);
    spin_until_done(&h.job);
    end(&g);
    CHECK_INT(c.rc, 0);
    CHECK_INT(c.result, 7);
    CHECK_INT(c.next, -ECANCELED);
}

static int runs_shielded(void *arg) { return conc_shield(CONC_FOREVER, by_run, arg); }

POOL_TEST(a_shield_keeps_a_cancel_from_the_job)
{
    held h = HELD(7), queued = HELD(8);
    conc_group g = {0};
    WITH_POOL(pool, 1);
    caller c[] = {{runs_shielded, &pool, .fn = holds, .arg = &h, .begun = COUNTER},
                  {runs_shielded, &pool, .fn = holds, .arg = &queued, .begun = COUNTER}};
    let_go(&queued);
    for (int i = 0; i < 2; i++)
        start(&g, &c[i]);
    count_wait(&h.entered, 1);
    cancel(&c[0]);
    cancel(&c[1]);
    let_go(&h);
    end(&g);
    CHECK(!h.asked && !queued.asked);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(c[i].rc, 7 + i);
        CHECK_INT(c[i].next, -ECANCELED);
    }
}

/* {the job gets its thread; its task is cancelled}, or the other way round. */
static void cancel_at_the_start(bool cancel_first)
{
    held h = HELD(7), next = HELD(8), last = HELD(9);
    conc_group g = {0};
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    caller c = {by_run, &pool, .fn = holds, .arg = &next, .begun = COUNTER};
    start(&g, &c);
    CHECK_INT(conc_pool_submit(&pool, &last.job, holds, &last), 0);
    if (cancel_first) {
        CHECK_INT(conc_cancel(&c.task), 0);
        CHECK_INT(conc_settle(), 0);
    }
    let_go(&h);
    count_wait(cancel_first ? &last.entered : &next.entered, 1);
    if (!cancel_first)
        cancel(&c);
    let_go(&next);
    let_go(&last);
    end(&g);
    CHECK_INT(c.rc, cancel_first ? -ECANCELED : 8);
    CHECK_INT(c.next, -ECANCELED);
    CHECK_INT(count_now(&next.entered), !cancel_first);
    CHECK_INT(result_of(&last.job), 9);
}

POOL_TEST(a_cancel_before_the_job_gets_its_thread_takes_it_back) { cancel_at_the_start(true); }
POOL_TEST(a_cancel_after_the_job_got_its_thread_leaves_it) { cancel_at_the_start(false); }

/* {the job is taken back; a task that waits for it is cancelled}, or the other way round. */
static void take_back_and_cancel(bool cancel_first)
{
    held h = HELD(7);
    conc_job queued;
    conc_group g = {0};
    WITH_POOL(pool, 1);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    caller c = {by_wait, .job = &queued, .begun = COUNTER};
    start(&g, &c);
    if (cancel_first)
        CHECK_INT(conc_cancel(&c.task), 0);
    int rc = conc_job_cancel(&queued);
    CHECK(rc == 0 || (cancel_first && rc == -EALREADY));
    if (!cancel_first)
        CHECK_INT(conc_cancel(&c.task), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(c.rc, 0);
    CHECK_INT(c.result, -ECANCELED);
    CHECK_INT(c.next, -ECANCELED);
    let_go(&h);
    end(&g);
    CHECK_INT(calls, 0);
}

POOL_TEST(a_job_that_is_taken_back_just_before_its_waiter_is_cancelled)
{
    take_back_and_cancel(false);
}
POOL_TEST(a_job_that_is_taken_back_just_after_its_waiter_was_cancelled)
{
    take_back_and_cancel(true);
}

/* {a slot becomes free; the task that waits for it is cancelled}, or the other way round. */
static void free_place_and_cancel(bool cancel_first)
{
    held h = HELD(7), next = HELD(8);
    conc_job jobs[2] = {0};
    conc_group g = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &next.job, holds, &next), 0);
    caller c = {by_submit, &pool, &jobs[0], counts, .begun = COUNTER}, other = c;
    other.job = &jobs[1];
    start(&g, &c);
    start(&g, &other);
    if (cancel_first)
        CHECK_INT(conc_cancel(&c.task), 0);
    let_go(&h);
    count_wait(&next.entered, 1); /* it freed the slot */
    if (!cancel_first)
        CHECK_INT(conc_cancel(&c.task), 0);
    let_go(&next);
    end(&g);
    CHECK_INT(other.rc, 0);
    CHECK(c.rc == -ECANCELED || (c.rc == 0 && !cancel_first));
    CHECK_INT(c.next, -ECANCELED);
    CHECK(result_of(&jobs[1]) > 0);
    if (c.rc == 0)
        CHECK(result_of(&jobs[0]) > 0);
    CHECK_INT(calls, 1 + (c.rc == 0));
}

POOL_TEST(a_slot_that_becomes_free_just_before_the_cancel) { free_place_and_cancel(false); }
POOL_TEST(a_slot_that_becomes_free_just_after_the_cancel) { free_place_and_cancel(true); }

POOL_TEST(an_end_and_a_cancel_of_the_job_meet_in_any_way)
{
    for (int i = 0; i < 200; i++) {
        held h = HELD(7);
        conc_job j;
        WITH_POOL(pool, 1);
        calls = 0;
        occupy(&pool, &h);
        CHECK_INT(conc_pool_submit(&pool, &j, counts, NULL), 0);
        let_go(&h);
        for (volatile int k = 0; k < i * 37 % 1000; k++)
            continue;
        int rc = conc_job_cancel(&j), result = result_of(&j);
        CHECK(rc == 0 || rc == -EALREADY);
        CHECK_INT(result, calls ? 1 : -ECANCELED);
        CHECK(rc == 0 || result == 1);
    }
}

/* ---- several waiters for one job ---- */

static int waits_with_two_tasks(void *arg)
{
    caller *c = arg;
    conc_group g = {0};
    CONC_TRY(conc_spawn_task(&g, &c[0].task, calls_once, &c[0]));
    CONC_TRY_IN(&g, conc_spawn_task(&g, &c[1].task, calls_once, &c[1]));
    return conc_group_wait(&g);
}

POOL_TEST(tasks_of_two_loops_plain_threads_and_jobs_wait_for_one_job)
{
    held h = HELD(-EPROTO);
    caller c[8];
    conc_group g = {0};
    OPEN_POOL(pool, 1);
    OPEN_POOL(other, 1);
    conc_job job;
    occupy(&pool, &h);
    for (int i = 0; i < 8; i++)
        c[i] = (caller){by_wait, .job = &h.job, .begun = COUNTER};
    side s[] = {{waits_with_two_tasks, &c[0], .in_run = true},
                {.fn = calls_once, .arg = &c[2]},
                {.fn = calls_once, .arg = &c[3]}};
    for (int i = 0; i < 3; i++)
        side_start(&s[i]);
    for (int i = 4; i < 7; i++)
        start(&g, &c[i]);
    CHECK_INT(conc_pool_submit(&other, &job, calls_once, &c[7]), 0);
    for (int i = 0; i < 8; i++)
        count_wait(&c[i].begun, 1);
    let_go(&h);
    end(&g);
    CHECK_INT(result_of(&job), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(side_end(&s[i]), 0);
    for (int i = 0; i < 8; i++) {
        CHECK_INT(c[i].rc, 0);
        CHECK_INT(c[i].result, -EPROTO);
    }
    CHECK_INT(result_of(&h.job), -EPROTO);
    close_pool(&pool);
    close_pool(&other);
}

/* A hundred jobs end while threads and tasks begin to wait for them. */
static conc_job hundred[100];

static int waits_for_hundred(void *arg)
{
    (void)arg;
    int result = 0;
    for (int i = 0; i < 100; i++) {
        CONC_TRY(conc_job_wait(&hundred[i], &result));
        if (result != i)
            return -EPROTO;
    }
    return 0;
}

POOL_TEST(waits_that_begin_while_the_jobs_end_never_hang)
{
    WITH_POOL(pool, 2);
    for (int round = 0; round < 100; round++) {
        conc_group g = {0};
        side s[2] = {{.fn = waits_for_hundred}, {.fn = waits_for_hundred, .in_run = true}};
        for (int i = 0; i < 100; i++)
            CHECK_INT(conc_pool_submit(&pool, &hundred[i], returns, &numbers[i]), 0);
        if (round % 10 == 0)
            for (int i = 0; i < 2; i++)
                side_start(&s[i]);
        CHECK_INT(conc_spawn(&g, waits_for_hundred, NULL), 0);
        CHECK_INT(waits_for_hundred(NULL), 0);
        end(&g);
        if (round % 10 == 0)
            for (int i = 0; i < 2; i++)
                CHECK_INT(side_end(&s[i]), 0);
    }
}

/* A job's argument can be freed as soon as the job has ended. */
POOL_TEST(an_argument_is_the_callers_again_when_the_job_is_done)
{
    WITH_POOL(pool, 2);
    for (int i = 0; i < 200; i++) {
        conc_job *j = malloc(sizeof *j);
        int *arg = malloc(sizeof *arg);
        CHECK(j && arg);
        *arg = i;
        CHECK_INT(conc_pool_submit(&pool, j, returns, arg), 0);
        if (i % 2)
            CHECK_INT(result_of(j), i);
        else
            spin_until_done(j);
        memset(arg, 0xee, sizeof *arg);
        memset(j, 0xee, sizeof *j);
        free(arg);
        free(j);
    }
}

/* ---- time ---- */

static int blocks(void *arg) { return conc_block(*(double *)arg); }

/* The only thread of a pool waits. The clock moves on, because a job that is queued behind it does
 * nothing either; once it continues, both hold the clock. */
static void queue_behind_a_wait(conc_pool *pool, conc_fn *waits, void *arg, int (*ends)(void *))
{
    conc_job j;
    conc_group g = {0};
    caller first = {by_run, .pool = pool, .fn = waits, .arg = arg, .begun = COUNTER};
    caller late = {by_run, .pool = pool, .fn = counts, .begun = COUNTER, .limit = 5};
    start(&g, &first);
    start(&g, &late);
    CHECK_INT(conc_pool_submit(pool, &j, counts, NULL), 0);
    double now = conc_now();
    CHECK_INT(conc_sleep(7), 0);
    CHECK_INT(late.rc, -ETIMEDOUT);
    CHECK(late.at == now + 5);
    CHECK_INT(ends(arg), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(conc_job_done(&j)); /* before a second has passed */
    CHECK_INT(result_of(&j), 1);
    end(&g);
    CHECK_INT(first.rc, 0);
    calls = 0;
}

static int receives_item(void *channel)
{
    int item;
    return conc_channel_recv(channel, &item);
}

static int sends_item(void *channel) { return conc_channel_send(channel, &(int){1}); }

static int waits_for_held(void *h) { return result_of(&((held *)h)->job); }

/* The job at the gate has no clock: otherwise conc does not wait for its end. */
static int lets_go(void *arg)
{
    held *h = arg;
    let_go(h);
    spin_until_done(&h->job);
    return 0;
}

static int submits_to_full_pool(void *arg)
{
    caller *c = arg;
    int rc = conc_pool_submit(c->pool, c->job, returns, &(int){0});
    return rc ? rc : result_of(c->job);
}

static int empties_pool(void *arg)
{
    caller *c = arg;
    lets_go(c->arg);
    spin_until_done(c->job - 1); /* it was in the queue: its slot is handed over */
    return 0;
}

POOL_TEST(a_job_queued_behind_one_that_receives_does_not_hold_the_clock)
{
    conc_channel channel = CONC_CHANNEL(int, 1);
    WITH_POOL(pool, 1);
    for (int i = 0; i < 3; i++)
        queue_behind_a_wait(&pool, receives_item, &channel, sends_item);
    conc_channel_destroy(&channel);
}

/* Jobs that a thread has submitted do not hold the clock. */
static int occupies(void *arg)
{
    static int zero;
    caller *c = arg;
    occupy(c->pool, c->arg);
    return c->job ? conc_pool_submit(c->pool, c->job, returns, &zero) : 0;
}

POOL_TEST(a_job_queued_behind_one_that_waits_for_another_pool_does_not_hold_the_clock)
{
    WITH_POOL(pool, 1);
    WITH_POOL(other, 1);
    held h = HELD(0);
    caller c = {.pool = &other, .arg = &h};
    side s = {.fn = occupies, .arg = &c};
    side_start(&s);
    CHECK_INT(side_end(&s), 0);
    queue_behind_a_wait(&pool, waits_for_held, &h, lets_go);
}

POOL_TEST(a_job_queued_behind_one_that_waits_for_a_slot_does_not_hold_the_clock)
{
    conc_job jobs[2];
    held h = HELD(0);
    WITH_POOL(pool, 1);
    CONC_AUTO(conc_pool, full) = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&full), 0);
    caller c = {.pool = &full, .arg = &h, .job = &jobs[0]};
    side s = {.fn = occupies, .arg = &c};
    side_start(&s);
    CHECK_INT(side_end(&s), 0);
    c.job = &jobs[1];
    queue_behind_a_wait(&pool, submits_to_full_pool, &c, empties_pool);
}

static int ticks(void *arg)
{
    for (;;) {
        CONC_TRY(conc_sleep(0.4));
        ++*(int *)arg;
    }
}

static void check_blocks(int threads, double takes, int expected_ticks)
{
    for (int i = 0; i < 30; i++) {
        int ticked = 0;
        double begun = conc_now(), seconds[3] = {1, 1, 1};
        conc_task ticker;
        conc_group g = {0};
        WITH_POOL(pool, threads);
        CHECK_INT(conc_spawn_task(&g, &ticker, ticks, &ticked), 0);
        CHECK_INT(conc_pool_map(&pool, blocks, seconds, 3, sizeof(double)), 0);
        CHECK_TIME(begun + takes);
        CHECK_INT(ticked, expected_ticks);
        CHECK_INT(conc_cancel(&ticker), 0);
        end(&g);
    }
}

POOL_TEST(three_jobs_that_block_for_a_second_take_one_on_three_threads) { check_blocks(3, 1, 2); }
POOL_TEST(three_jobs_that_block_for_a_second_take_three_on_one_thread) { check_blocks(1, 3, 7); }

/* {block; block} of two jobs, and tasks that sleep: time alone determines their order. */
typedef struct blocker {
    double seconds[3];
    conc_pool *pool;
    int number;
} blocker;

static int blocks_and_writes(void *arg)
{
    blocker *b = arg;
    for (int i = 0; i < 3 && b->seconds[i] > 0; i++)
        CONC_TRY(conc_block(b->seconds[i]));
    return writes(&b->number);
}

POOL_TEST(jobs_that_block_end_in_the_order_of_their_times)
{
    for (int round = 0; round < 20; round++) {
        blocker b[] = {{{1, 2, 1}, .number = 3},
                       {{3}, .number = 2},
                       {{0.5, 0.5}, .number = 0},
                       {{2}, .number = 1}};
        double begun = conc_now();
        WITH_POOL(pool, 4);
        written.n = 0;
        CHECK_INT(conc_pool_map(&pool, blocks_and_writes, b, 4, sizeof b[0]), 0);
        CHECK_TIME(begun + 4);
        check_written(4);
    }
}

/* Jobs of jobs: a map, and jobs that are waited for. */
static int maps_blocks(void *arg)
{
    double seconds[3] = {2, 2, 2};
    return conc_pool_map(arg, blocks, seconds, 3, sizeof(double));
}

static int waits_for_blocks(void *arg)
{
    static double seconds[2] = {2, 3};
    conc_job jobs[2];
    for (int i = 0; i < 2; i++)
        CONC_TRY(conc_pool_submit(arg, &jobs[i], blocks, &seconds[i]));
    for (int i = 0; i < 2; i++)
        CONC_TRY(conc_job_wait(&jobs[i], NULL));
    return 0;
}

POOL_TEST(the_jobs_of_a_job_block_on_its_clock)
{
    WITH_POOL(one, 1);
    WITH_POOL(three, 3);
    CHECK_INT(conc_pool_run(&one, maps_blocks, &one), 0);
    CHECK_TIME(6);
    CHECK_INT(conc_pool_run(&three, maps_blocks, &three), 0);
    CHECK_TIME(8);
    CHECK_INT(conc_pool_run(&one, waits_for_blocks, &one), 0);
    CHECK_TIME(13);
    CHECK_INT(conc_pool_run(&one, waits_for_blocks, &three), 0);
    CHECK_TIME(16);
}

/* Gives virtual time the chance to move, wrongly. */
static int works_a_while(void *arg)
{
    (void)arg;
    for (int i = 0; i < 20; i++)
        nap();
    return 0;
}

static conc_job left_job;

static int leaves_work(void *pool)
{
    return conc_pool_submit(pool, &left_job, works_a_while, NULL);
}

POOL_TEST(virtual_time_stands_still_for_a_job_that_another_job_left_behind)
{
    WITH_POOL(pool, 2);
    CHECK_INT(conc_pool_run(&pool, leaves_work, &pool), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(conc_job_done(&left_job));
}

/* In a run inside a job, on the only thread: another thread replaces it, and blocks. */
static int runs_a_block(void *pool)
{
    double seconds = 1000;
    return conc_pool_run(pool, blocks, &seconds);
}

static int sleeps_often(void *arg)
{
    (void)arg;
    for (int i = 0; i < 50; i++)
        CONC_TRY(conc_sleep(1));
    return 0;
}

static int works_behind_a_block(void *pool)
{
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, runs_a_block, pool));
    CONC_TRY(conc_sleep(0.5));
    CHECK_INT(conc_pool_run(pool, works_a_while, NULL), 0);
    CHECK_TIME(1000);
    CHECK_INT(conc_spawn(&g, sleeps_often, NULL), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_pool_run(pool, works_a_while, NULL), 0);
    CHECK_TIME(1000);
    return conc_group_wait(&g);
}

static int works_behind_a_block_in_a_run(void *pool)
{
    return run_virtual(works_behind_a_block, pool);
}

POOL_TEST(virtual_time_stands_still_in_a_run_inside_a_job_whose_pool_was_blocked)
{
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_run(&pool, works_behind_a_block_in_a_run, &pool), 0);
}

POOL_TEST(zero_and_invalid_blocks)
{
    double none = 0, past = -1, nan = __builtin_nan("");
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_run(&pool, blocks, &none), 0);
    CHECK_INT(conc_pool_run(&pool, blocks, &past), 0);
    CHECK_INT(conc_pool_run(&pool, blocks, &nan), -EINVAL);
    CHECK_TIME(0);
}

static int sleeps_and_tells(void *arg)
{
    CONC_TRY(conc_sleep(1));
    *(double *)arg = conc_now();
    return 0;
}

POOL_TEST(virtual_time_stands_still_while_a_job_runs_and_the_loop_continues)
{
    double told = -1;
    held h = HELD(7);
    conc_group g = {0};
    WITH_POOL(pool, 1);
    CHECK_INT(conc_spawn(&g, sleeps_and_tells, &told), 0);
    occupy(&pool, &h);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_TIME(0);
    CHECK(told < 0);
    let_go(&h);
    CHECK_INT(result_of(&h.job), 7);
    CHECK_TIME(0);
    end(&g);
    CHECK(told == 1);
}

/* The task of a job at a gate, and a task that counts on a real clock until it opens the gate. */
static int ticks_and_opens(void *arg)
{
    for (int i = 0; i < 5; i++)
        CONC_TRY(conc_sleep(0.001));
    let_go(arg);
    return 5;
}

static int ticks_beside_a_job(void *arg)
{
    int result = 0;
    conc_task t;
    conc_group g = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 1};
    CONC_TRY(conc_pool_open(&pool));
    CONC_TRY(conc_spawn_task(&g, &t, ticks_and_opens, arg));
    CONC_TRY_IN(&g, conc_pool_run(&pool, holds, arg));
    CONC_TRY_IN(&g, conc_join(&t, &result));
    return conc_group_end(&g, result);
}

THREAD_TEST(on_the_real_clock_the_loop_ticks_while_a_job_runs)
{
    held h = HELD(0);
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(ticks_beside_a_job, &h), 5);
}

static int blocks_until_asked(void *arg)
{
    (void)arg;
    int n = 0;
    while (!conc_job_cancelled() && n < 100) {
        CONC_TRY(conc_block(0.5));
        n++;
    }
    return n == 100 ? -EPROTO : -ECANCELED;
}

POOL_TEST(a_job_that_polls_for_the_request_to_stop_obeys_a_time_limit)
{
    WITH_POOL(pool, 1);
    caller c = {by_run, &pool, .fn = blocks_until_asked};
    CHECK_INT(conc_timeout(1.75, by_run, &c), -ETIMEDOUT);
    CHECK_TIME(1.75);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), 1);
}

static int blocks_whatever_comes(void *arg)
{
    CHECK_INT(conc_block(*(double *)arg), -ECANCELED);
    CHECK_INT(conc_block(*(double *)arg), -ECANCELED); /* and at once */
    CHECK(conc_job_cancelled());
    return 7;
}

POOL_TEST(a_job_whose_block_was_cut_short_decides_about_its_result)
{
    double seconds = 5;
    WITH_POOL(pool, 1);
    caller c = {by_run, &pool, .fn = blocks_whatever_comes, .arg = &seconds};
    CHECK_INT(conc_timeout(2, by_run, &c), 7);
    CHECK_TIME(2);
}

POOL_TEST(a_queued_job_is_taken_back_at_the_time_limit)
{
    double seconds = 5;
    conc_job busy;
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &busy, blocks, &seconds), 0);
    caller c = {by_run, &pool, .fn = counts}, waiting = {by_wait, .job = &busy};
    CHECK_INT(conc_timeout(2, by_run, &c), -ETIMEDOUT);
    CHECK_TIME(2);
    CHECK_INT(conc_timeout(1, by_wait, &waiting), 0); /* the job ends for that */
    CHECK_INT(waiting.result, -ECANCELED);
    CHECK_TIME(3);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), 1);
}

POOL_TEST(a_queued_job_for_which_no_thread_starts_does_not_hold_the_clock)
{
    double seconds = 5;
    conc_job busy, queued;
    WITH_POOL(pool, 2);
    CHECK_INT(conc_pool_submit(&pool, &busy, blocks, &seconds), 0);
    no_threads = true;
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_TIME(1);
    CHECK_INT(result_of(&queued), 1);
    CHECK_TIME(5);
    no_threads = false;
    CHECK_INT(conc_job_wait(&busy, NULL), 0);
}

POOL_TEST(a_submit_above_the_limit_is_given_up_at_the_time_limit)
{
    double seconds = 5;
    conc_job jobs[3] = {0};
    conc_group g = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_submit(&pool, &jobs[0], blocks, &seconds), 0);
    CHECK_INT(conc_sleep(1), 0); /* now it has left the queue */
    CHECK_INT(conc_pool_submit(&pool, &jobs[1], blocks, &seconds), 0);
    caller c[] = {{by_submit, &pool, &jobs[2], counts, .limit = 2, .begun = COUNTER},
                  {by_submit, &pool, &jobs[2], counts, .limit = 5, .begun = COUNTER}};
    CHECK_INT(calls_once(&c[0]), 0);
    CHECK_INT(c[0].rc, -ETIMEDOUT);
    CHECK_TIME(3);
    start(&g, &c[1]);
    end(&g);
    CHECK_INT(c[1].rc, 0);
    CHECK(c[1].at == 5);
    CHECK_INT(result_of(&jobs[2]), 1);
    CHECK_TIME(10);
}

static int runs_a_job_in_a_pool_of_its_own(void *arg)
{
    (void)arg;
    for (int i = 0; i < 500; i++) {
        conc_pool pool = {.threads = 2};
        CHECK_INT(conc_pool_open(&pool), 0);
        CHECK_INT(conc_pool_run(&pool, counts, NULL), i + 1);
        CHECK_INT(conc_pool_close(&pool), 0);
    }
    return 0;
}

/* The pool's threads may still be between jobs. */
POOL_TEST(a_close_takes_no_virtual_time)
{
    CHECK_INT(conc_timeout(3600, runs_a_job_in_a_pool_of_its_own, NULL), 0);
    CHECK_TIME(0);
}

static conc_pool lasting_pool;
static conc_job lasting_job;

static int leaves_a_job_behind(void *arg)
{
    return conc_pool_submit(&lasting_pool, &lasting_job, blocks, arg);
}

THREAD_TEST(a_pool_and_a_job_that_blocks_may_outlast_the_run)
{
    double seconds = 0.01;
    conc_options options = {.virtual_clock = true};
    lasting_pool = (conc_pool){.threads = 1};
    CHECK_INT(conc_pool_open(&lasting_pool), 0);
    for (int i = 0; i < 20; i++) {
        CHECK_INT(conc_run_with(&options, leaves_a_job_behind, &seconds), 0);
        CHECK_INT(conc_job_wait(&lasting_job, NULL), 0);
    }
    CHECK_INT(conc_pool_run(&lasting_pool, counts, NULL), 1);
    close_pool(&lasting_pool);
}

static int opens_and_leaves(void *arg)
{
    (void)arg;
    CONC_TRY(conc_pool_open(&lasting_pool));
    return conc_pool_run(&lasting_pool, counts, NULL);
}

static int uses_and_closes(void *arg)
{
    (void)arg;
    CONC_TRY(conc_pool_run(&lasting_pool, counts, NULL));
    return conc_pool_close(&lasting_pool);
}

THREAD_TEST(a_pool_belongs_to_no_run_and_no_thread)
{
    side s = {.fn = uses_and_closes, .in_run = true};
    CHECK_INT(conc_run(opens_and_leaves, NULL), 1);
    CHECK_INT(conc_pool_run(&lasting_pool, counts, NULL), 2);
    side_start(&s);
    CHECK_INT(side_end(&s), 0);
    CHECK_INT(calls, 3);
    CHECK_INT(conc_pool_run(&lasting_pool, counts, NULL), -EPIPE);
}

/* Jobs that have ended do not hide a deadlock from the loop. */
static int waits_for_nothing(void *arg)
{
    conc_job j;
    WITH_POOL(pool, 2);
    CONC_TRY(conc_pool_map(&pool, counts, arg, 5, 0));
    CONC_TRY(conc_pool_submit(&pool, &j, counts, arg));
    CONC_TRY(conc_job_wait(&j, NULL));
    return conc_sleep(CONC_FOREVER);
}

static void run_into_a_deadlock(void) { CHECK_INT(conc_run(waits_for_nothing, NULL), -EDEADLK); }

TEST(a_pool_with_nothing_to_do_hides_no_deadlock)
{
    static char text[16384];
    CHECK_INT(test_in_process(run_into_a_deadlock, text, sizeof text), 0);
    CHECK_CONTAINS(text, "deadlock");
}

THREAD_TEST(a_job_of_a_plain_thread_blocks_its_thread)
{
    double seconds = 0.01, begun = test_real_seconds();
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_run(&pool, blocks, &seconds), 0);
    CHECK(test_real_seconds() - begun >= 0.01);
}

/* ---- locals ---- */

static conc_local colour = {"colour"};
static int red, green, blue;

typedef struct painter {
    const void *paint; /* NULL: none */
    void *before, *after;
    int set;
    held *hold;
    conc_pool *pool;
    struct painter *inner;
} painter;

static int paints(void *arg)
{
    painter *p = arg;
    p->before = conc_local_get(&colour);
    if (p->hold)
        holds(p->hold);
    if (p->paint)
        p->set = conc_local_set(&colour, p->paint);
    if (p->inner)
        CONC_TRY(conc_pool_map(p->pool, paints, p->inner, 2, sizeof *p->inner));
    p->after = conc_local_get(&colour);
    return 0;
}

POOL_TEST(a_job_sees_the_locals_at_its_submit)
{
    held h = HELD(0), *hold = &h;
    painter first = {.hold = hold}, queued = {0};
    conc_job a, b;
    WITH_POOL(pool, 1);
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_pool_submit(&pool, &a, paints, &first), 0);
    CHECK_INT(conc_pool_submit(&pool, &b, paints, &queued), 0);
    count_wait(&h.entered, 1);
    CHECK_INT(conc_local_set(&colour, &green), 0); /* later: invisible to both */
    let_go(&h);
    CHECK_INT(result_of(&a), 0);
    CHECK_INT(result_of(&b), 0);
    CHECK(first.before == &red && first.after == &red);
    CHECK(queued.before == &red && queued.after == &red);
    CHECK(conc_local_get(&colour) == &green);
}

POOL_TEST(a_jobs_locals_are_invisible_to_others)
{
    painter p = {.paint = &blue}, next = {0},
            elements[3] = {{.paint = &red}, {0}, {.paint = &blue}};
    WITH_POOL(pool, 1);
    CHECK_INT(conc_local_set(&colour, &green), 0);
    CHECK_INT(conc_pool_run(&pool, paints, &p), 0);
    CHECK_INT(p.set, 0);
    CHECK(p.before == &green && p.after == &blue);
    CHECK(conc_local_get(&colour) == &green);
    CHECK_INT(conc_pool_run(&pool, paints, &next), 0);
    CHECK(next.before == &green);
    CHECK_INT(conc_pool_map(&pool, paints, elements, 3, sizeof(painter)), 0);
    for (int i = 0; i < 3; i++)
        CHECK(elements[i].before == &green);
    CHECK(elements[1].after == &green && elements[2].after == &blue);
    CHECK(conc_local_get(&colour) == &green);
}

POOL_TEST(a_job_hands_its_locals_to_the_jobs_that_it_submits)
{
    for (int threads = 1; threads <= 2; threads++) {
        painter inner[2] = {{.paint = &green}, {.paint = &green}};
        WITH_POOL(pool, threads);
        painter p = {.paint = &blue, .pool = &pool, .inner = inner};
        CHECK_INT(conc_local_set(&colour, &red), 0);
        CHECK_INT(conc_pool_run(&pool, paints, &p), 0);
        CHECK(p.before == &red && p.after == &blue);
        CHECK(inner[0].before == &blue && inner[1].before == &blue);
        CHECK(conc_local_get(&colour) == &red);
    }
}

THREAD_TEST(a_job_of_a_plain_thread_has_no_locals_before_it_sets_some)
{
    painter p[2] = {{.paint = &red}, {.paint = &red}};
    WITH_POOL(pool, 1);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_pool_run(&pool, paints, &p[i]), 0);
        CHECK(p[i].before == NULL && p[i].after == &red);
    }
}

/* ---- maps ---- */

typedef struct element {
    int in, out, called;
    char filling[5];
} element;

static int doubles(void *arg)
{
    element *e = arg;
    e->out = 2 * e->in;
    e->called++;
    return e->in;
}

POOL_TEST(a_map_of_ten_thousand_calls_each_once)
{
    enum { N = 10000 };
    static element e[N];
    static int results[N];
    for (int i = 0; i < N; i++)
        e[i].in = i;
    for (int round = 0; round < 2; round++) {
        CONC_AUTO(conc_pool, pool) = {.threads = 3, .queue_limit = round};
        CHECK_INT(conc_pool_open(&pool), 0);
        CHECK_INT(conc_pool_map(&pool, doubles, e, N, sizeof e[0]), 0);
        CHECK_INT(conc_pool_map_all(&pool, doubles, e, N, sizeof e[0], results), 0);
        CHECK_INT(conc_pool_map_all(&pool, doubles, e, N, sizeof e[0], NULL), 0);
        for (int i = 0; i < N; i++) {
            CHECK_INT(e[i].out, 2 * i);
            CHECK_INT(e[i].called, 3 * (round + 1));
            CHECK_INT(results[i], i);
        }
    }
}

POOL_TEST(a_map_takes_its_elements_in_order)
{
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_map(&pool, writes, numbers, 1000, sizeof(int)), 0);
    check_written(1000);
}

POOL_TEST(a_map_of_nothing_does_nothing)
{
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_map(&pool, counts, NULL, 0, 0), 0);
    CHECK_INT(conc_pool_map(&pool, counts, NULL, 0, 8), 0);
    CHECK_INT(conc_pool_map_all(&pool, counts, numbers, 0, sizeof(int), NULL), 0);
    CHECK_INT(calls, 0);
    CHECK_INT(count_threads(), base);
}

static int adds_seven(void *arg) { return atomic_fetch_add((atomic_int *)arg, 7); }

POOL_TEST(a_map_of_elements_without_a_size_gives_all_the_same_argument)
{
    int results[10];
    atomic_int sum = 0;
    WITH_POOL(pool, 3);
    CHECK_INT(conc_pool_map(&pool, adds_seven, &sum, 100, 0), 0);
    CHECK_INT(sum, 700);
    CHECK_INT(conc_pool_map_all(&pool, adds_seven, &sum, 10, 0, results), 0);
    CHECK_INT(sum, 770);
    for (int i = 0; i < 10; i++)
        CHECK(results[i] >= 700 && results[i] < 770 && results[i] % 7 == 0);
}

POOL_TEST(an_invalid_map_is_refused)
{
    int results[2] = {WAITING, WAITING};
    WITH_POOL(pool, 1);
    size_t half = SIZE_MAX / 2;
    CHECK_INT(conc_pool_map(&pool, NULL, numbers, 2, sizeof(int)), -EINVAL);
    CHECK_INT(conc_pool_map(&pool, counts, NULL, 2, sizeof(int)), -EINVAL);
    CHECK_INT(conc_pool_map(&pool, counts, numbers, half, 3), -EINVAL);
    CHECK_INT(conc_pool_map(&pool, counts, numbers, 3, half), -EINVAL);
    CHECK_INT(conc_pool_map_all(&pool, NULL, numbers, 2, sizeof(int), results), -EINVAL);
    CHECK_INT(conc_pool_map_all(&pool, counts, NULL, 2, sizeof(int), results), -EINVAL);
    CHECK_INT(conc_pool_map_all(&pool, counts, numbers, half, 3, results), -EINVAL);
    CHECK_INT(calls, 0);
    CHECK_INT(results[0], WAITING);
}

typedef struct meeting {
    counter *here;
    int expected;
} meeting;

static int meets(void *arg)
{
    meeting *m = arg;
    count_up(m->here);
    return count_reaches(m->here, m->expected) ? 0 : -ETIMEDOUT;
}

POOL_TEST(as_many_elements_run_at_once_as_there_are_threads)
{
    counter here = COUNTER;
    meeting m = {&here, 4};
    WITH_POOL(pool, 4);
    CHECK_INT(conc_pool_map(&pool, meets, &m, 4, 0), 0);
}

static int maps_a_meeting(void *arg) { return conc_pool_map(outer_pool, meets, arg, 3, 0); }

POOL_TEST(a_map_in_a_job_uses_the_threads_that_are_free)
{
    counter here = COUNTER;
    meeting m = {&here, 3};
    WITH_POOL(pool, 3);
    outer_pool = &pool;
    CHECK_INT(conc_pool_run(&pool, maps_a_meeting, &m), 0);
}

static int fails_at_three(void *arg)
{
    element *e = arg;
    e->called++;
    return e->in == 3 ? conc_fail(-EPROTO, "number %d is odd", e->in) : e->in > 5 ? -EIO : e->in;
}

POOL_TEST(the_first_error_keeps_the_rest_of_a_map_from_starting)
{
    element e[10] = {0};
    WITH_POOL(pool, 1);
    for (int i = 0; i < 10; i++)
        e[i].in = i;
    CHECK_INT(conc_pool_map(&pool, fails_at_three, e, 10, sizeof e[0]), -EPROTO);
    CHECK_STR(conc_last_error(), "number 3 is odd");
    for (int i = 0; i < 10; i++)
        CHECK_INT(e[i].called, i <= 3);
}

POOL_TEST(a_map_of_all_continues_after_errors_and_returns_each)
{
    int results[10];
    element e[10] = {0};
    WITH_POOL(pool, 2);
    for (int i = 0; i < 10; i++)
        e[i].in = i;
    CHECK_INT(conc_pool_map_all(&pool, fails_at_three, e, 10, sizeof e[0], results), 0);
    for (int i = 0; i < 10; i++)
        CHECK_INT(results[i], i == 3 ? -EPROTO : i > 5 ? -EIO : i);
}

/* A map whose first elements wait at a gate, in a task that can be cancelled. */
typedef struct held_map {
    conc_pool *pool;
    held hold;
    int count, fails_at;
    int results[4];
    int called;
    bool all;
} held_map;

static int holds_first(void *arg)
{
    held_map *m = arg;
    return atomic_fetch_add(&calls, 1) < 2 ? holds(&m->hold) : 5;
}

static int by_map(void *arg)
{
    caller *c = arg;
    held_map *m = c->arg;
    return m->all ? conc_pool_map_all(m->pool, holds_first, m, (size_t)m->count, 0, m->results)
                  : conc_pool_map(m->pool, holds_first, m, (size_t)m->count, 0);
}

/* Cancels it while two of its elements run on two threads. */
static caller cancelled_map(held_map *m, bool all, int count, int rc)
{
    conc_group g = {0};
    WITH_POOL(pool, 2);
    *m = (held_map){.pool = &pool, .hold = HELD(rc), .count = count, .all = all};
    caller c = {by_map, .arg = m, .begun = COUNTER};
    calls = 0;
    start(&g, &c);
    count_wait(&m->hold.entered, 2);
    cancel(&c);
    CHECK_INT(c.rc, WAITING);
    let_go(&m->hold);
    end(&g);
    CHECK_INT(calls, 2);
    CHECK_INT(c.next, -ECANCELED);
    CHECK(m->hold.asked);
    return c;
}

POOL_TEST(a_cancelled_map_starts_no_more_and_waits_for_what_runs)
{
    held_map m;
    CHECK_INT(cancelled_map(&m, false, 4, 7).rc, -ECANCELED);
    CHECK_INT(cancelled_map(&m, true, 4, 7).rc, -ECANCELED);
    for (int i = 0; i < 4; i++)
        CHECK_INT(m.results[i], i < 2 ? 7 : -ECANCELED);
}

static int maps_held(void *h) { return conc_pool_map(outer_pool, holds, h, 200, 0); }

POOL_TEST(a_map_in_a_job_ends_when_that_job_is_cancelled)
{
    held h = HELD(0);
    conc_job j;
    WITH_POOL(pool, 2);
    outer_pool = &pool;
    CHECK_INT(conc_pool_submit(&pool, &j, maps_held, &h), 0);
    count_wait(&h.entered, 2);
    CHECK_INT(conc_job_cancel(&j), 0);
    let_go(&h);
    CHECK_INT(result_of(&j), -ECANCELED);
    CHECK_INT(count_now(&h.entered), 2);
    CHECK(h.asked);
}

static int waits_to_be_asked(void *entered)
{
    count_up(entered);
    while (!conc_job_cancelled())
        nap();
    return 0;
}

/* The first one maps once the second has a thread; the second fails once the map's elements have
 * begun. */
typedef struct map_in_map {
    counter *entered, *second;
    bool fails;
} map_in_map;

static int maps_or_fails(void *arg)
{
    map_in_map *m = arg;
    if (!m->fails) {
        count_wait(m->second, 1);
        return conc_pool_map(outer_pool, waits_to_be_asked, m->entered, 200, 0);
    }
    count_up(m->second);
    count_wait(m->entered, 1);
    return -EPROTO;
}

POOL_TEST(a_map_in_a_map_ends_when_the_outer_one_has_failed)
{
    counter entered = COUNTER, second = COUNTER;
    map_in_map m[2] = {{&entered, &second, false}, {&entered, &second, true}};
    WITH_POOL(pool, 2);
    outer_pool = &pool;
    CHECK_INT(conc_pool_map(&pool, maps_or_fails, m, 2, sizeof m[0]), -EPROTO);
    CHECK_INT(count_now(&entered), 1);
}

POOL_TEST(a_map_that_is_cancelled_when_all_have_begun_completes)
{
    held_map m;
    CHECK_INT(cancelled_map(&m, false, 2, 7).rc, 0);
    CHECK_INT(cancelled_map(&m, true, 2, 7).rc, 0);
    CHECK_INT(m.results[0], 7);
    CHECK_INT(m.results[1], 7);
}

POOL_TEST(an_error_outranks_the_cancel_of_a_map)
{
    held_map m;
    CHECK_INT(cancelled_map(&m, false, 4, -EIO).rc, -EIO);
    CHECK_INT(cancelled_map(&m, false, 2, -EIO).rc, -EIO);
}

POOL_TEST(a_map_that_times_out)
{
    double seconds[5] = {1, 1, 1, 1, 1};
    WITH_POOL(pool, 1);
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 2.5), 0);
    int rc = conc_pool_map(&pool, blocks, seconds, 5, sizeof(double));
    CHECK_INT(conc_scope_end(&s, rc), -ETIMEDOUT);
    CHECK_TIME(2.5);
}

POOL_TEST(maps_of_tasks_threads_and_jobs_share_a_pool)
{
    fibonacci f = {NULL, 3};
    side s[2] = {{.fn = maps, .arg = &f}, {.fn = maps, .arg = &f, .in_run = true}};
    conc_group g = {0};
    OPEN_POOL(pool, 2);
    conc_job j;
    f.pool = &pool;
    for (int i = 0; i < 2; i++)
        side_start(&s[i]);
    CHECK_INT(conc_pool_submit(&pool, &j, maps, &f), 0);
    CHECK_INT(conc_spawn(&g, maps, &f), 0);
    CHECK_INT(maps(&f), 0);
    end(&g);
    CHECK_INT(result_of(&j), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(side_end(&s[i]), 0);
    CHECK_INT(calls, 5 * 64);
    close_pool(&pool);
}

/* ---- misuse ---- */

POOL_TEST(calls_without_a_function_or_a_job_are_refused)
{
    int result = WAITING;
    conc_job j = {0};
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_run(&pool, NULL, NULL), -EINVAL);
    CHECK_INT(conc_pool_submit(&pool, &j, NULL, NULL), -EINVAL);
    CHECK_INT(conc_pool_submit(&pool, NULL, counts, NULL), -EINVAL);
    CHECK_INT(conc_job_wait(NULL, &result), -EINVAL);
    CHECK_INT(conc_job_wait(&j, &result), -EINVAL);
    CHECK_INT(conc_job_cancel(NULL), -EINVAL);
    CHECK_INT(conc_job_cancel(&j), -EINVAL);
    CHECK(!conc_job_done(&j) && !conc_job_done(NULL));
    CHECK_INT(result, WAITING);
    CHECK_INT(calls, 0);
    CHECK_INT(count_threads(), base);
}

/* What a posted function may do with a pool, whose thread is busy, and what it may not. */
typedef struct posted {
    conc_pool *pool, fresh;
    conc_job *queued, sent, above;
    bool limited, ran;
} posted;

static void use_pool(void *arg)
{
    posted *p = arg;
    CHECK_INT(conc_pool_open(&p->fresh), 0);
    CHECK_INT(conc_pool_run(p->pool, counts, NULL), -EPERM);
    CHECK_INT(conc_pool_map(p->pool, counts, NULL, 1, 0), -EPERM);
    CHECK_INT(conc_pool_map_all(p->pool, counts, NULL, 1, 0, NULL), -EPERM);
    CHECK_INT(conc_job_wait(p->queued, NULL), -EPERM);
    CHECK_INT(conc_pool_close(p->pool), -EPERM);
    CHECK_INT(conc_pool_submit(p->pool, &p->sent, counts, NULL), 0);
    CHECK_INT(conc_pool_submit(p->pool, &p->above, counts, NULL), -EPERM);
    CHECK(!conc_job_done(&p->above) && !conc_job_done(p->queued));
    CHECK(!conc_job_cancelled());
    CHECK_INT(conc_job_cancel(p->queued), 0);
    CHECK(conc_job_done(p->queued));
    p->ran = true;
}

POOL_TEST(a_posted_function_may_make_calls_that_do_not_wait)
{
    static posted p;
    held h = HELD(7);
    conc_job queued;
    conc_pool pool = {.threads = 1, .queue_limit = 2};
    CHECK_INT(conc_pool_open(&pool), 0);
    occupy(&pool, &h);
    CHECK_INT(conc_pool_submit(&pool, &queued, counts, NULL), 0);
    p = (posted){.pool = &pool, .queued = &queued};
    CHECK_INT(conc_post(conc_loop_self(), use_pool, &p), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(p.ran);
    let_go(&h);
    CHECK_INT(result_of(&p.sent), 1);
    CHECK_INT(result_of(&queued), -ECANCELED);
    CHECK_INT(conc_pool_run(&p.fresh, counts, NULL), 2);
    close_pool(&p.fresh);
    close_pool(&pool);
}

#ifndef CONC_TEST_PLAIN /* emulators cannot fork a process with threads */
static int open_run_close(void *arg)
{
    (void)arg;
    WITH_POOL(pool, 1);
    CHECK_INT(conc_pool_run(&pool, counts, NULL), 1);
    return 4;
}

static conc_pool *inherited_pool;

static void use_inherited_pool(void)
{
    conc_job j = {0};
    CHECK_INT(conc_pool_run(inherited_pool, counts, NULL), -EPERM);
    CHECK_INT(conc_pool_submit(inherited_pool, &j, counts, NULL), -EPERM);
    CHECK_INT(conc_pool_map(inherited_pool, counts, NULL, 2, 0), -EPERM);
    close_pool(inherited_pool);
    CHECK_INT(calls, 0);
    CHECK_INT(conc_run(open_run_close, NULL), 4);
}

THREAD_TEST(in_a_forked_child_a_pool_is_dead_and_a_new_one_works)
{
    static char text[16384];
    int rc = 3;
    held h = HELD(7);
    OPEN_POOL(pool, 2);
    CHECK_INT(conc_pool_run(&pool, returns, &rc), 3);
    for (int held_meanwhile = 0; held_meanwhile <= 1; held_meanwhile++) {
        if (held_meanwhile)
            occupy(&pool, &h);
        inherited_pool = &pool;
        int status = test_in_process(use_inherited_pool, text, sizeof text);
        if (status)
            test_fail(__FILE__, __LINE__, "the child's status is 0x%x, stderr:\n%s",
                      (unsigned)status, text);
    }
    let_go(&h);
    CHECK_INT(conc_pool_run(&pool, returns, &rc), 3);
    close_pool(&pool);
}

static conc_job inherited_jobs[2]; /* the first runs in the parent, the second is in its queue */

static void use_inherited_jobs(void)
{
    OPEN_POOL(pool, 1);
    alarm(10);
    for (int i = 0; i < 4; i++) {
        conc_job *j = &inherited_jobs[i % 2];
        CHECK_INT(conc_job_wait(j, NULL), -EPERM);
        CHECK_INT(conc_job_cancel(j), -EPERM);
        CHECK(!conc_job_done(j));
        if (i == 1)
            close_pool(inherited_pool);
    }
    CHECK_INT(conc_pool_submit(&pool, &inherited_jobs[0], counts, NULL), 0);
    CHECK_INT(result_of(&inherited_jobs[0]), 1);
    close_pool(&pool);
}

static int receives_from_nobody(void *arg)
{
    int item;
    conc_channel *empty = arg;
    return conc_channel_recv(empty, &item);
}

/* In the child of a job: its pool and its virtual clock are the parent's. */
static void use_inherited_job(void)
{
    double second = 0.001;
    conc_channel empty = CONC_CHANNEL(int, 1);
    alarm(10);
    CHECK_INT(conc_pool_run(inherited_pool, counts, NULL), -EPERM);
    CHECK_INT(conc_pool_map(inherited_pool, counts, NULL, 2, 0), -EPERM);
    CHECK_INT(calls, 0);
    CHECK_INT(conc_shield(0.001, receives_from_nobody, &empty), -ETIMEDOUT);
    CHECK_INT(conc_block(second), 0);
    CHECK_INT(conc_run(open_run_close, NULL), 4);
    close_pool(inherited_pool);
    CHECK_INT(conc_pool_open(inherited_pool), 0);
    CHECK_INT(conc_pool_run(inherited_pool, counts, NULL), 2);
    close_pool(inherited_pool);
    conc_channel_destroy(&empty);
}

static sem_t clock_is_held, clock_may_go;

static void *holds_the_clock(void *clock)
{
    conc_loop *l = clock;
    pthread_mutex_lock(&l->shared.mutex);
    sem_post(&clock_is_held);
    sem_wait(&clock_may_go);
    pthread_mutex_unlock(&l->shared.mutex);
    return NULL;
}

/* While another thread holds the clock's mutex. */
static int forks_beside_its_clock(void *clock)
{
    static char text[16384];
    pthread_t holder;
    CHECK_INT(sem_init(&clock_is_held, 0, 0), 0);
    CHECK_INT(sem_init(&clock_may_go, 0, 0), 0);
    CHECK_INT(pthread_create(&holder, NULL, holds_the_clock, clock), 0);
    CHECK_INT(sem_wait(&clock_is_held), 0);
    int status = test_in_process(use_inherited_job, text, sizeof text);
    sem_post(&clock_may_go);
    CHECK_INT(pthread_join(holder, NULL), 0);
    if (status)
        test_fail(__FILE__, __LINE__, "the child's status is 0x%x, stderr:\n%s", (unsigned)status,
                  text);
    return 3;
}

POOL_TEST(in_a_child_that_a_job_forks_its_pool_and_its_clock_are_dead)
{
    OPEN_POOL(pool, 2);
    inherited_pool = &pool;
    CHECK_INT(conc_pool_run(&pool, forks_beside_its_clock, conc_loop_self()), 3);
    close_pool(&pool);
}

THREAD_TEST(in_a_forked_child_a_job_of_the_parent_is_not_waited_for)
{
    static char text[16384];
    held h = HELD(7);
    OPEN_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &inherited_jobs[0], holds, &h), 0);
    count_wait(&h.entered, 1);
    CHECK_INT(conc_pool_submit(&pool, &inherited_jobs[1], counts, NULL), 0);
    inherited_pool = &pool;
    int status = test_in_process(use_inherited_jobs, text, sizeof text);
    if (status)
        test_fail(__FILE__, __LINE__, "the child's status is 0x%x, stderr:\n%s", (unsigned)status,
                  text);
    let_go(&h);
    CHECK_INT(result_of(&inherited_jobs[0]), 7);
    CHECK_INT(result_of(&inherited_jobs[1]), 1);
    close_pool(&pool);
}
#endif

static void use_without_threads(void)
{
    static conc_job jobs[3];
    held h = HELD(7);
    OPEN_POOL(pool, 2);
    no_threads = true;
    CHECK_INT(conc_pool_run(&pool, counts, NULL), -EAGAIN);
    CHECK_INT(conc_pool_submit(&pool, &jobs[0], counts, NULL), -EAGAIN);
    CHECK_INT(conc_pool_map(&pool, counts, NULL, 2, 0), -EAGAIN);
    no_threads = false;
    CHECK_INT(calls, 0);
    CHECK_INT(conc_job_wait(&jobs[0], NULL), -EINVAL);
    occupy(&pool, &h);
    no_threads = true; /* a thread exists, and is busy */
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_pool_submit(&pool, &jobs[i], counts, NULL), 0);
    let_go(&h);
    CHECK_INT(conc_pool_map(&pool, counts, NULL, 5, 0), 0);
    no_threads = false;
    close_pool(&pool);
    CHECK_INT(calls, 8);
}

THREAD_TEST(a_pool_without_threads_is_an_error_and_one_thread_suffices) { use_without_threads(); }
POOL_TEST(in_a_task_too_a_pool_without_threads_is_an_error) { use_without_threads(); }

/* ---- out of memory ---- */

static int due; /* calls promised by functions that returned no error */

static bool refused(int rc)
{
    CHECK(rc == -ENOMEM || rc >= 0);
    return rc < 0;
}

static void submit_some(conc_pool *p)
{
    conc_job jobs[3];
    bool sent[3];
    memset(jobs, 0, sizeof jobs);
    for (int i = 0; i < 3; i++) {
        sent[i] = !refused(conc_pool_submit(p, &jobs[i], counts, NULL));
        due += sent[i];
    }
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_job_wait(&jobs[i], NULL), sent[i] ? 0 : -EINVAL);
}

/* A little of everything; each call returns what it should, or -ENOMEM without having called a
 * function. */
static void use_everything(void)
{
    int results[5];
    conc_pool pool = {.threads = 2, .queue_limit = 2};
    if (refused(conc_pool_open(&pool))) {
        CHECK_INT(conc_pool_run(&pool, counts, NULL), -EINVAL);
        close_pool(&pool);
        return;
    }
    due += !refused(conc_pool_run(&pool, counts, NULL));
    submit_some(&pool);
    due += 5 * !refused(conc_pool_map(&pool, counts, NULL, 5, 0));
    due += 5 * !refused(conc_pool_map_all(&pool, counts, NULL, 5, 0, results));
    close_pool(&pool);
    CHECK_INT(calls, due);
}

static int uses_everything(void *arg)
{
    conc_local_set(&colour, arg);
    use_everything();
    return 0;
}

static void fail_allocations(bool in_run, bool forever)
{
    conc_options options = {.virtual_clock = true};
    bool failed = true;
    for (long n = 1; failed && n < 1000; n++) {
        allocations = 0;
        due = 0;
        calls = 0;
        failing_forever = forever;
        failing_allocation = n;
        int rc = in_run ? conc_run_with(&options, uses_everything, &red) : uses_everything(NULL);
        failed = allocations >= n;
        failing_allocation = 0;
        CHECK(rc == 0 || (rc == -ENOMEM && in_run && failed));
        check_threads(base);
        CHECK_INT(live_allocations, 0);
    }
    CHECK(!failed);
    CHECK_INT(calls, 14);
}

THREAD_TEST(every_allocation_for_a_plain_thread_may_fail) { fail_allocations(false, false); }
THREAD_TEST(from_any_allocation_for_a_plain_thread_on_all_may_fail)
{
    fail_allocations(false, true);
}
THREAD_TEST(every_allocation_for_a_task_may_fail) { fail_allocations(true, false); }
THREAD_TEST(from_any_allocation_for_a_task_on_all_may_fail) { fail_allocations(true, true); }

/* ---- job handles in functions that have returned */

static conc_pool lender;
static atomic_bool begun;

static int never_end(void *arg)
{
    begun = true;
    while (pause() != 0) /* it never is */
        ;
    return arg != NULL;
}

static int end_now(void *arg) { return (void)arg, 3; }

/* The thread has read the handle, so it may be overwritten. */
static int submit_and_see_it_begin(conc_job *j)
{
    CHECK_INT(conc_pool_submit(&lender, j, never_end, NULL), 0);
    while (!begun)
        sched_yield();
    return 0;
}

/* unknown to the compiler, which would otherwise shrink the room */
static volatile size_t somewhere;

/* In these two, the room keeps the next call from overwriting the handle. */
__attribute__((noinline)) static int leave_a_running_job(void)
{
    conc_job j;
    volatile char room[16384];
    room[somewhere] = 0;
    return submit_and_see_it_begin(&j) + room[somewhere];
}

__attribute__((noinline)) static int leave_a_job_that_ended(void)
{
    conc_job j;
    volatile char room[16384];
    room[somewhere] = 0;
    CHECK_INT(conc_pool_submit(&lender, &j, end_now, NULL), 0);
    while (!conc_job_done(&j))
        CHECK_INT(conc_block(0.001), 0);
    return room[somewhere];
}

__attribute__((noinline)) static int deeper(int (*fn)(void))
{
    volatile char room[16384];
    room[somewhere] = 0;
    int rc = fn();
    return rc + room[somewhere];
}

static int leave_and_wait(void *arg)
{
    (void)arg;
    CHECK_INT(deeper(leave_a_running_job), 0);
    return conc_sleep(1);
}

static int leave_and_end(void *arg)
{
    (void)arg;
    return deeper(leave_a_running_job);
}

static int have_a_task_leave_one(void *arg)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, leave_and_end, arg), 0);
    return conc_group_wait(&g);
}

static int leave_only_what_ended(void *arg)
{
    conc_job j;
    (void)arg;
    for (int i = 0; i < 3; i++) {
        CHECK_INT(deeper(leave_a_job_that_ended), 0);
        CHECK_INT(conc_sleep(1), 0);
        CHECK_INT(conc_pool_submit(&lender, &j, end_now, NULL), 0);
        CHECK_INT(conc_job_wait(&j, NULL), 0);
    }
    return conc_pool_run(&lender, end_now, NULL);
}

static conc_fn *leaver;

static void run_the_leaver(void)
{
    conc_options o = {.virtual_clock = true, .debug = true};
    CHECK_INT(conc_pool_open(&lender), 0);
    CHECK_INT(conc_run_with(&o, leaver, NULL), 3);
    CHECK_INT(conc_pool_close(&lender), 0);
}

__attribute__((noinline)) static bool locals_are_on_the_stack(void)
{
    char local = 0, *volatile p = &local;
    intptr_t distance = (intptr_t)p - (intptr_t)__builtin_frame_address(0);
    return distance > -100000 && distance < 100000;
}

TEST(debug_mode_finds_the_handle_of_a_running_job_in_a_function_that_returned)
{
    static char text[4096];
    conc_fn *const leavers[] = {leave_and_wait, have_a_task_leave_one};
    if (!locals_are_on_the_stack())
        return;
    for (size_t i = 0; i < CONC_LEN(leavers); i++) {
        leaver = leavers[i];
        int status = test_in_process(run_the_leaver, text, sizeof text);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
        CHECK_CONTAINS(text, i ? "it ended" : "a function returned");
        CHECK_CONTAINS(text, ", with the handle of a job still in use");
    }
}

TEST(debug_mode_ignores_handles_of_ended_jobs)
{
    leaver = leave_only_what_ended;
    run_the_leaver();
}

/* ---- what a job waits for when it is asked to stop ---- */

static conc_channel empty_channel = CONC_CHANNEL(int, 1), full_channel = CONC_CHANNEL(int, 1);
static conc_pool *other_pool;

/* A job that makes a call that waits, and then the same call again. */
typedef struct waiting {
    conc_fn *call;
    counter begun;
    int rc, again;
    bool asked; /* whether it was asked to stop, in between */
} waiting;

static int waits_twice(void *arg)
{
    waiting *w = arg;
    count_up(&w->begun);
    w->rc = w->call(w);
    w->asked = conc_job_cancelled();
    w->again = w->call(w);
    return w->rc;
}

static int receives(void *arg)
{
    int item;
    (void)arg;
    return conc_channel_recv(&empty_channel, &item);
}

static int sends(void *arg)
{
    int item = 1;
    (void)arg;
    return conc_channel_send(&full_channel, &item);
}

static int blocks_forever(void *arg)
{
    (void)arg;
    return conc_block(1e6);
}

static int wants_a_place(void *arg)
{
    conc_job j;
    return conc_pool_submit(other_pool, &j, counts, arg);
}

static int sleeps_forever(void *arg)
{
    (void)arg;
    return conc_sleep(1e6);
}

static int runs_a_sleep(void *arg) { return conc_run(sleeps_forever, arg); }

static int maps_a_sleep(void *arg) { return conc_map(sleeps_forever, arg, 3, 0); }
static int runs_tasks(void *arg) { return conc_run(maps_a_sleep, arg); }

/* The other pool has one thread, which is busy, and one queue slot, which is full. */
static void with_full_channel_and_pool(void (*body)(conc_fn *call))
{
    static conc_fn *const calls_that_wait[] = {receives,      sends,        blocks_forever,
                                               wants_a_place, runs_a_sleep, runs_tasks};
    int item = 1;
    held h = HELD(0);
    conc_job queued;
    conc_pool other = {.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_channel_try_send(&full_channel, &item), 0);
    CHECK_INT(conc_pool_open(&other), 0);
    other_pool = &other;
    occupy(&other, &h);
    CHECK_INT(conc_pool_submit(&other, &queued, counts, NULL), 0);
    for (size_t i = 0; i < CONC_LEN(calls_that_wait); i++)
        body(calls_that_wait[i]);
    let_go(&h);
    close_pool(&other);
    conc_channel_destroy(&empty_channel);
    conc_channel_destroy(&full_channel);
}

static void check_ended(const waiting *w)
{
    CHECK_INT(w->rc, -ECANCELED);
    CHECK(w->asked);
    CHECK_INT(w->again, -ECANCELED);
}

static void cancel_a_task_whose_job_waits(conc_fn *call)
{
    conc_group g = {0};
    waiting w = {call, COUNTER, WAITING, WAITING, false};
    OPEN_POOL(pool, 1);
    caller c = {by_run, &pool, .fn = waits_twice, .arg = &w, .begun = COUNTER};
    start(&g, &c);
    count_wait(&w.begun, 1);
    cancel(&c);
    end(&g);
    CHECK_INT(c.rc, -ECANCELED);
    check_ended(&w);
    close_pool(&pool);
}

POOL_TEST(a_cancelled_task_ends_what_its_job_waits_for)
{
    with_full_channel_and_pool(cancel_a_task_whose_job_waits);
}

static void limit_a_task_whose_job_waits(conc_fn *call)
{
    double now = conc_now();
    waiting w = {call, COUNTER, WAITING, WAITING, false};
    OPEN_POOL(pool, 1);
    caller c = {by_run, &pool, .fn = waits_twice, .arg = &w};
    CHECK_INT(conc_timeout(3, by_run, &c), -ETIMEDOUT);
    check_ended(&w);
    CHECK_TIME(now + 3);
    close_pool(&pool);
}

POOL_TEST(a_time_limit_ends_what_a_job_waits_for_at_that_time)
{
    int item = 1;
    CHECK_INT(conc_channel_try_send(&full_channel, &item), 0);
    limit_a_task_whose_job_waits(receives);
    limit_a_task_whose_job_waits(sends);
    limit_a_task_whose_job_waits(blocks_forever);
    conc_channel_destroy(&empty_channel);
    conc_channel_destroy(&full_channel);
}

static void cancel_a_job_that_waits(conc_fn *call)
{
    conc_job j;
    waiting w = {call, COUNTER, WAITING, WAITING, false};
    OPEN_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &j, waits_twice, &w), 0);
    count_wait(&w.begun, 1);
    CHECK_INT(conc_job_cancel(&j), 0);
    CHECK_INT(result_of(&j), -ECANCELED);
    check_ended(&w);
    close_pool(&pool);
}

POOL_TEST(a_cancel_of_the_job_ends_what_it_waits_for)
{
    with_full_channel_and_pool(cancel_a_job_that_waits);
}

THREAD_TEST(a_cancel_by_a_plain_thread_ends_what_a_job_waits_for)
{
    unsetenv("CONC_CLOCK");
    with_full_channel_and_pool(cancel_a_job_that_waits);
}

static void cancel_a_close_with_a_job_that_waits(conc_fn *call)
{
    conc_group g = {0};
    conc_job j;
    waiting w = {call, COUNTER, WAITING, WAITING, false};
    OPEN_POOL(pool, 1);
    CHECK_INT(conc_pool_submit(&pool, &j, waits_twice, &w), 0);
    count_wait(&w.begun, 1);
    caller c = {by_close, &pool, .begun = COUNTER};
    start(&g, &c);
    cancel(&c);
    end(&g);
    CHECK_INT(c.rc, 0);
    check_ended(&w);
}

POOL_TEST(a_cancelled_close_ends_what_jobs_wait_for)
{
    with_full_channel_and_pool(cancel_a_close_with_a_job_that_waits);
}

/* Two elements of a map: one waits, and the other fails while it does. */
static waiting of_a_map;

static int waits_or_fails(void *arg)
{
    if (*(int *)arg == 0)
        return waits_twice(&of_a_map);
    count_wait(&of_a_map.begun, 1);
    return -EPROTO;
}

static void fail_beside_one_that_waits(conc_fn *call)
{
    OPEN_POOL(pool, 2);
    of_a_map = (waiting){call, COUNTER, WAITING, WAITING, false};
    CHECK_INT(conc_pool_map(&pool, waits_or_fails, numbers, 2, sizeof numbers[0]), -EPROTO);
    check_ended(&of_a_map);
    close_pool(&pool);
}

POOL_TEST(the_first_error_of_a_map_ends_what_other_elements_wait_for)
{
    with_full_channel_and_pool(fail_beside_one_that_waits);
}

static int maps_two(void *arg)
{
    return conc_pool_map(outer_pool, waits_twice, arg, 2, sizeof(waiting));
}

POOL_TEST(a_cancelled_job_that_maps_ends_what_the_elements_wait_for)
{
    static waiting elements[2];
    conc_job j;
    WITH_POOL(pool, 2);
    outer_pool = &pool;
    for (int i = 0; i < 2; i++)
        elements[i] = (waiting){receives, COUNTER, WAITING, WAITING, false};
    CHECK_INT(conc_pool_submit(&pool, &j, maps_two, elements), 0);
    for (int i = 0; i < 2; i++)
        count_wait(&elements[i].begun, 1);
    CHECK_INT(conc_job_cancel(&j), 0);
    CHECK_INT(result_of(&j), -ECANCELED);
    for (int i = 0; i < 2; i++)
        check_ended(&elements[i]);
    conc_channel_destroy(&empty_channel);
}

/* A job that waits for a job in another pool, or in its own, passes the request to stop on, and
 * waits. */
typedef struct passing {
    conc_fn *how;
    conc_pool *to;
    waiting inner; /* not called twice where it is not a separate job */
    held *before;  /* released when the job waits; NULL: none */
    conc_job job;
    int result;
} passing;

static int passes_by_run(void *arg)
{
    passing *p = arg;
    return conc_pool_run(p->to, waits_twice, &p->inner);
}

static int passes_by_map(void *arg)
{
    passing *p = arg;
    return conc_pool_map(p->to, waits_twice, &p->inner, 1, 0);
}

static int passes_by_wait(void *arg)
{
    passing *p = arg;
    CONC_TRY(conc_pool_submit(p->to, &p->job, waits_twice, &p->inner));
    CHECK_INT(conc_job_wait(&p->job, &p->result), 0);
    CHECK_INT(p->result, -ECANCELED);
    return p->result;
}

static int passes_by_close(void *arg)
{
    passing *p = arg;
    CONC_TRY(conc_pool_submit(p->to, &p->job, waits_twice, &p->inner));
    count_wait(&p->inner.begun, 1); /* otherwise it would be taken back */
    CHECK_INT(conc_pool_close(p->to), 0);
    return -ECANCELED;
}

static void pass_on(conc_fn *how, bool same_pool)
{
    conc_job j;
    OPEN_POOL(pool, 1);
    OPEN_POOL(other, 1);
    passing p = {.how = how, .to = same_pool ? &pool : &other};
    p.inner = (waiting){receives, COUNTER, WAITING, WAITING, false};
    CHECK_INT(conc_pool_submit(&pool, &j, how, &p), 0);
    count_wait(&p.inner.begun, 1);
    CHECK_INT(conc_job_cancel(&j), 0);
    CHECK_INT(result_of(&j), -ECANCELED);
    check_ended(&p.inner);
    close_pool(&pool);
    close_pool(&other);
    conc_channel_destroy(&empty_channel);
}

POOL_TEST(a_job_passes_the_request_on_to_a_job_of_another_pool_and_waits)
{
    pass_on(passes_by_run, false);
    pass_on(passes_by_map, false);
    pass_on(passes_by_wait, false);
    pass_on(passes_by_close, false);
}

POOL_TEST(a_job_passes_the_request_on_to_a_job_that_it_runs_itself)
{
    pass_on(passes_by_run, true);
    pass_on(passes_by_map, true);
    pass_on(passes_by_wait, true);
}

POOL_TEST(a_job_of_another_pool_that_is_queued_is_taken_back_with_the_job_that_waits_for_it)
{
    held h = HELD(0), first = HELD(0);
    conc_job j;
    WITH_POOL(pool, 1);
    WITH_POOL(other, 1);
    passing p = {.to = &other};
    p.inner = (waiting){receives, COUNTER, WAITING, WAITING, false};
    occupy(&other, &h);
    occupy(&pool, &first);
    CHECK_INT(conc_pool_submit(&pool, &j, passes_by_run, &p), 0);
    let_go(&first);
    while (!conc__jobs_queued()) /* until it is in the other queue */
        sched_yield();
    CHECK_INT(result_of(&first.job), 0);
    CHECK_INT(conc_job_cancel(&j), 0);
    CHECK_INT(result_of(&j), -ECANCELED);
    CHECK_INT(count_now(&p.inner.begun), 0);
    let_go(&h);
}

/* ---- a shield in a job ---- */

static int looks_and_blocks(void *arg)
{
    CHECK(!conc_job_cancelled());
    CONC_TRY(conc_block(*(double *)arg));
    CHECK(!conc_job_cancelled());
    return 6;
}

static int looks_until_asked(void *arg)
{
    CHECK(!conc_job_cancelled());
    CONC_TRY(conc_block(*(double *)arg));
    return -EPROTO;
}

static int is_in_time(void *arg)
{
    (void)arg;
    return conc_run(returns, &numbers[5]);
}

static int passes_an_item(void *arg)
{
    int item = 8;
    (void)arg;
    CONC_TRY(conc_channel_send(&empty_channel, &item));
    CONC_TRY(conc_channel_recv(&empty_channel, &item));
    return item;
}

static int runs_elsewhere(void *arg) { return conc_pool_run(other_pool, looks_and_blocks, arg); }

static int maps_elsewhere(void *arg)
{
    return conc_pool_map(other_pool, looks_and_blocks, arg, 3, 0);
}

static int runs_a_receive(void *arg) { return conc_run(receives, arg); }

static int runs_a_receive_on_the_virtual_clock(void *arg) { return run_virtual(receives, arg); }

static int runs_a_receive_in_a_longer_shield(void *arg)
{
    return conc_shield(0.004, runs_a_receive, arg);
}

POOL_TEST(a_time_limit_passes_while_a_run_in_a_job_waits_for_a_channel)
{
    conc_job behind;
    WITH_POOL(pool, 1);
    caller c = {by_run, &pool, .fn = runs_a_receive};
    CHECK_INT(conc_timeout(2, by_run, &c), -ETIMEDOUT);
    c.fn = runs_a_receive_on_the_virtual_clock;
    CHECK_INT(conc_timeout(3, by_run, &c), -ETIMEDOUT);
    CHECK_TIME(5);
    conc_job waits;
    CHECK_INT(conc_pool_submit(&pool, &waits, runs_a_receive, NULL), 0);
    CHECK_INT(conc_pool_submit(&pool, &behind, counts, NULL), 0);
    CHECK_INT(conc_sleep(2), 0); /* the job behind it does not hold the clock, either */
    CHECK_INT(conc_channel_send(&empty_channel, &(int){9}), 0);
    CHECK_INT(result_of(&waits), 0);
    CHECK_INT(result_of(&behind), 1);
    CHECK_TIME(7);
    conc_channel_destroy(&empty_channel);
}

/* Waits until it is asked to stop, and then cleans up. */
static int cleans_up(void *arg)
{
    double second = 1, hour = 3600;
    CHECK_INT(blocks_forever(arg), -ECANCELED);
    CHECK_INT(conc_shield(CONC_FOREVER, looks_and_blocks, &second), 6);
    CHECK_INT(conc_shield(10, looks_and_blocks, &second), 6);
    CHECK_INT(conc_shield(10, passes_an_item, NULL), 8);
    CHECK_INT(conc_shield(10, is_in_time, NULL), 5);
    CHECK_INT(conc_shield(10, runs_elsewhere, &second), 6);
    CHECK_INT(conc_shield(CONC_FOREVER, maps_elsewhere, &second), 0);
    CHECK_INT(conc_shield(0.25, looks_until_asked, &hour), -ETIMEDOUT);
    CHECK_INT(conc_shield(0.25, runs_elsewhere, &hour), -ETIMEDOUT);
    CHECK_INT(conc_shield(0.25, maps_elsewhere, &hour), -ETIMEDOUT);
    CHECK_INT(conc_shield(0.25, receives, NULL), -ETIMEDOUT);
    CHECK_INT(conc_shield(0.25, runs_a_receive, NULL), -ETIMEDOUT);
    CHECK_INT(conc_shield(1, NULL, NULL), -EINVAL);
    CHECK_INT(conc_shield((double)NAN, counts, NULL), -EINVAL);
    CHECK(conc_job_cancelled());
    CHECK_INT(blocks_forever(arg), -ECANCELED);
    return 4;
}

POOL_TEST(a_job_cleans_up_in_a_shield)
{
    WITH_POOL(pool, 1);
    WITH_POOL(other, 3);
    other_pool = &other;
    caller c = {by_run, &pool, .fn = cleans_up};
    CHECK_INT(conc_timeout(5, by_run, &c), 4);
    CHECK_TIME(5 + 4 + 5 * 0.25);
    conc_channel_destroy(&empty_channel);
}

/* On the real clock, too: the limits pass although the job waits. */
static int cleans_up_quickly(void *arg)
{
    double hour = 3600;
    CHECK_INT(blocks_forever(arg), -ECANCELED);
    CHECK_INT(conc_shield(CONC_FOREVER, passes_an_item, NULL), 8);
    CHECK_INT(conc_shield(0.002, looks_until_asked, &hour), -ETIMEDOUT);
    CHECK_INT(conc_shield(0.002, runs_elsewhere, &hour), -ETIMEDOUT);
    CHECK_INT(conc_shield(0.002, receives, NULL), -ETIMEDOUT);
    CHECK_INT(conc_shield(0.002, runs_a_sleep, NULL), -ETIMEDOUT);
    CHECK_INT(conc_shield(-1, runs_a_sleep, NULL), -ETIMEDOUT);
    CHECK_INT(conc_shield(0.002, runs_a_receive, NULL), -ETIMEDOUT);
    CHECK_INT(conc_shield(0.002, runs_a_receive_on_the_virtual_clock, NULL), -ETIMEDOUT);
    CHECK_INT(conc_shield(0.002, runs_a_receive_in_a_longer_shield, NULL), -ETIMEDOUT);
    return 4;
}

THREAD_TEST(a_job_of_a_plain_thread_cleans_up_in_a_shield)
{
    conc_job j;
    WITH_POOL(pool, 1);
    WITH_POOL(other, 3);
    other_pool = &other;
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_pool_submit(&pool, &j, cleans_up_quickly, NULL), 0);
    for (bool waits = false; !waits; sched_yield()) {
        pthread_mutex_lock(&conc__cancel_hooks.mutex);
        waits = conc__cancel_hooks.first != NULL;
        pthread_mutex_unlock(&conc__cancel_hooks.mutex);
    }
    CHECK_INT(conc_job_cancel(&j), 0);
    CHECK_INT(result_of(&j), 4);
    conc_channel_destroy(&empty_channel);
}

THREAD_TEST(outside_a_job_and_a_task_there_is_no_shield)
{
    CHECK_INT(conc_shield(1, counts, NULL), -EPERM);
    CHECK_INT(calls, 0);
}

/* ---- signals ---- */

static sigset_t mask_of_job;

static int looks_at_its_mask(void *arg)
{
    (void)arg;
    return -pthread_sigmask(SIG_SETMASK, NULL, &mask_of_job);
}

static void check_mask_of_jobs(bool pipe_is_blocked)
{
    sigset_t wanted;
    CHECK_INT(pthread_sigmask(SIG_SETMASK, NULL, &wanted), 0);
    OPEN_POOL(pool, 1);
    CHECK_INT(conc_pool_run(&pool, looks_at_its_mask, NULL), 0);
    for (int i = 1; i < 32; i++)
        CHECK_INT(sigismember(&mask_of_job, i),
                  i != SIGSEGV && i != SIGFPE && i != SIGTRAP && sigismember(&wanted, i));
    CHECK_INT(sigismember(&mask_of_job, SIGPIPE), pipe_is_blocked);
    close_pool(&pool);
}

static void block_some(void)
{
    static const int some[] = {SIGUSR1, SIGSEGV, SIGFPE, SIGTRAP, SIGCHLD};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < CONC_LEN(some); i++)
        sigaddset(&set, some[i]);
    CHECK_INT(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
}

THREAD_TEST(jobs_run_under_the_signal_mask_of_the_pools_opener_with_faults_open)
{
    check_mask_of_jobs(false);
    block_some();
    check_mask_of_jobs(false);
}

POOL_TEST(jobs_of_a_run_run_under_its_signal_mask) { check_mask_of_jobs(true); }

static void tells_of_the_fault(int number)
{
    static const char text[] = "the program's own handler\n";
    (void)number;
    _exit(write(2, text, sizeof text - 1) < 0 ? 2 : 3);
}

static int faults(void *arg) { return *(volatile int *)arg; }

static int offloads_a_fault(void *arg)
{
    (void)arg;
    return conc_offload(faults, (void *)8);
}

static void fault_in_a_job(void)
{
    signal(SIGSEGV, tells_of_the_fault);
    (void)conc_run(offloads_a_fault, NULL);
}

TEST(a_fault_in_a_job_reaches_the_programs_handler)
{
    static char text[4096];
    int status = test_in_process(fault_in_a_job, text, sizeof text);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
    CHECK_STR(text, "the program's own handler\n");
}

__attribute__((noinline)) static int recurses(int depth)
{
    volatile char room[512];
    room[0] = (char)depth;
    int rc = depth > 0 ? recurses(depth - 1) : 0;
    return rc + room[0];
}

static int overflows(void *arg)
{
    (void)arg;
    return recurses(100000000);
}

static int runs_an_overflow(void *arg)
{
    CONC_AUTO(conc_pool, pool) = {.threads = 1, .name = "deep"};
    CONC_TRY(conc_pool_open(&pool));
    return conc_pool_run(&pool, overflows, arg);
}

static void overflow_in_a_job(void)
{
    conc_options o = {.debug = true, .virtual_clock = true};
    (void)conc_run_with(&o, runs_an_overflow, NULL);
}

TEST(a_job_that_overflows_its_threads_stack_is_reported_with_its_pool)
{
    static char text[16384];
    if (SANITIZED) /* they report it in their own way */
        return;
    int status = test_in_process(overflow_in_a_job, text, sizeof text);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    CHECK_CONTAINS(text, "conc: stack overflow: a job of the pool \"deep\" used all of its");
}

/* ---- random programs ---- */

/* A few actors (tasks, threads in a run, threads without one) use two pools at random, and cancel
 * each other. Each job knows its expected result, and how often it was called. Jobs go from pool 0
 * to pool 1 and never back, so that threads do not wait for each other in a cycle; a job that waits
 * for its own pool helps itself. */
enum { TASKS = 4, THREADS = 2, DEPTH = 3, STEPS = 25 };

static struct {
    conc_pool pool[2];
    atomic_int wrong;
    conc_scope *scope[TASKS]; /* that the others may cancel */
} world;

/* An actor's state: its random numbers, the first pool that it may use, and how deep its jobs may
 * nest. */
typedef struct actor {
    uint64_t state;
    int first_pool, depth, index;
} actor;

typedef struct work {
    actor as;
    int value;
    atomic_int called;
    conc_job job;
    bool sent;
} work;

static unsigned below(actor *a, unsigned n)
{
    a->state ^= a->state << 13;
    a->state ^= a->state >> 7;
    a->state ^= a->state << 17;
    return (unsigned)(a->state >> 33) % n;
}

static void expect(bool right) { atomic_fetch_add(&world.wrong, !right); }

/* The result is correct if the job ran once, or if it was taken back and never ran. */
static void judge(work *w, int result)
{
    int called = atomic_load(&w->called);
    expect(called == 1 ? result == w->value : called == 0 && result == -ECANCELED);
}

static conc_pool *plan(actor *a, work *w, int n)
{
    int pool = a->first_pool ? 1 : (int)below(a, 2);
    for (int i = 0; i < n; i++) {
        memset(&w[i], (int)below(a, 256), sizeof w[i]);
        w[i].as = (actor){a->state + (uint64_t)i + 1, pool, a->depth - 1, -1};
        w[i].value = (int)below(a, 1000);
        atomic_init(&w[i].called, 0);
    }
    return &world.pool[pool];
}

static int works(void *arg);

static void run_one(actor *a)
{
    work w;
    conc_pool *p = plan(a, &w, 1);
    judge(&w, conc_pool_run(p, works, &w));
}

static void map_some(actor *a)
{
    work w[4];
    int n = 1 + (int)below(a, 4), results[4] = {WAITING, WAITING, WAITING, WAITING};
    conc_pool *p = plan(a, w, n);
    int rc = conc_pool_map_all(p, works, w, (size_t)n, sizeof w[0], results);
    expect(rc == 0 || rc == -ECANCELED);
    for (int i = 0; i < n; i++)
        judge(&w[i], results[i]);
}

static void send_some(actor *a)
{
    work w[3];
    int n = 1 + (int)below(a, 3);
    conc_pool *p = plan(a, w, n);
    for (int i = 0; i < n; i++) {
        int rc = conc_pool_submit(p, &w[i].job, works, &w[i]);
        w[i].sent = rc == 0;
        expect(rc == 0 || rc == -ECANCELED);
        if (w[i].sent && below(a, 4) == 0)
            (void)conc_job_cancel(&w[i].job);
    }
    for (int i = n - 1; i >= 0; i--) {
        int result = WAITING;
        if (!w[i].sent)
            continue;
        expect(conc_job_wait(&w[i].job, &result) == 0);
        judge(&w[i], result);
    }
}

static void step(actor *a);

static int steps_in_a_run(void *arg)
{
    step(arg);
    return conc_yield();
}

static void step(actor *a)
{
    conc_options options = {.virtual_clock = true};
    int rc;
    switch (below(a, 5)) {
    case 0: run_one(a); break;
    case 1: send_some(a); break;
    case 2: map_some(a); break;
    case 3:
        rc = conc_run_with(&options, steps_in_a_run, a);
        /* the run of a job that is asked to stop is cancelled */
        expect(conc_loop_self() ? rc == -EBUSY : rc == 0 || rc == -ECANCELED);
        break;
    default: sched_yield(); break;
    }
}

static int works(void *arg)
{
    work *w = arg;
    actor a = w->as;
    if (!a.state)
        a.state = 1;
    atomic_fetch_add(&w->called, 1);
    if (a.depth > 0 && below(&a, 2))
        step(&a);
    if (below(&a, 8) == 0)
        for (int i = 0; i < 100 && !conc_job_cancelled(); i++)
            sched_yield();
    return w->value;
}

static void step_in_scope(actor *a)
{
    conc_scope s = {0}, *victim = world.scope[below(a, TASKS)];
    if (victim && below(a, 3) == 0)
        conc_scope_cancel(victim);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    world.scope[a->index] = &s;
    step(a);
    int rc = conc_yield();
    world.scope[a->index] = NULL;
    CHECK_INT(conc_scope_end(&s, rc), 0);
}

static int acts(void *arg)
{
    actor *a = arg;
    for (int i = 0; i < STEPS; i++)
        a->index >= 0 ? step_in_scope(a) : step(a);
    return 0;
}

static void run_random_program(uint64_t seed)
{
    actor a[TASKS + THREADS];
    side s[THREADS];
    conc_group g = {0};
    for (int i = 0; i < 2; i++) {
        world.pool[i] = (conc_pool){.threads = 1 + (int)(seed >> i) % 3,
                                    .queue_limit = (int)(seed >> (2 + i)) % 4};
        CHECK_INT(conc_pool_open(&world.pool[i]), 0);
    }
    for (int i = 0; i < TASKS + THREADS; i++)
        a[i] = (actor){seed * 1000003 + (uint64_t)i * 7919 + 1, 0, DEPTH, i < TASKS ? i : -1};
    for (int i = 0; i < THREADS; i++) {
        s[i] = (side){acts, &a[TASKS + i], .in_run = i % 2};
        side_start(&s[i]);
    }
    for (int i = 0; i < TASKS; i++)
        CHECK_INT(conc_spawn(&g, acts, &a[i]), 0);
    end(&g);
    for (int i = 0; i < THREADS; i++)
        CHECK_INT(side_end(&s[i]), 0);
    close_pool(&world.pool[0]);
    close_pool(&world.pool[1]);
    if (world.wrong)
        test_fail(__FILE__, __LINE__, "%d wrong results with seed %llu", world.wrong,
                  (unsigned long long)seed);
}

POOL_TEST(in_random_programs_every_job_has_its_result_or_never_ran)
{
    const char *first = getenv("CONC_SEED");
    uint64_t seed = first ? 1000 * (uint64_t)atoi(first) : 1;
    for (double begun = test_real_seconds(); test_real_seconds() - begun < 1.5; seed++)
        run_random_program(seed);
}
