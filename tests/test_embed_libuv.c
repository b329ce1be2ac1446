/* test_embed_libuv.c - conc_embed_* inside a libuv loop. Needs -luv; without <uv.h> it reports
 * that it is skipped.
 *
 * Not under: aarch64, aarch64-bti, riscv64 (the cross compilers find libuv's header but have no
 * library)
 *
 * Seeds: 5 (real time)
 */
#include "conc_test.h"

#if defined __has_include
#if __has_include(<uv.h>) && !TEST_ONLY_POLL
#define HAS_LIBUV 1
#endif
#endif
#ifndef HAS_LIBUV
#define HAS_LIBUV 0
#endif

#if !HAS_LIBUV

TEST(without_libuv_or_with_poll_alone_these_tests_are_skipped)
{
    fprintf(stderr, "test_embed_libuv: skipped: <uv.h> is missing, or there is only poll(2)\n");
}

#else

#include <pthread.h>
#include <uv.h>

#define UV_TEST(name)            \
    static void uv_##name(void); \
    TEST(name)                   \
    {                            \
        unsetenv("CONC_POLL");   \
        unsetenv("CONC_CLOCK");  \
        uv_##name();             \
    }                            \
    static void uv_##name(void)

/* ---- conc in libuv: all that is needed ---- */

typedef struct host {
    uv_loop_t loop;
    uv_poll_t ready;      /* conc's descriptor is readable */
    uv_timer_t due;       /* conc's time to wait is over */
    uv_prepare_t prepare; /* before libuv waits: how long may it wait? */
    conc_embed e;
    int steps, left; /* handles that are not closed yet */
} host;

static void note_closed(uv_handle_t *handle) { ((host *)handle->data)->left--; }

static void stop_host(host *h)
{
    uv_close((uv_handle_t *)&h->ready, note_closed);
    uv_close((uv_handle_t *)&h->due, note_closed);
    uv_close((uv_handle_t *)&h->prepare, note_closed);
}

static void step_host(host *h)
{
    h->steps++;
    int rc = conc_embed_step(&h->e);
    CHECK(rc == 0 || rc == 1);
    if (rc == 0)
        stop_host(h);
}

static void on_ready(uv_poll_t *handle, int status, int events)
{
    CHECK_INT(status, 0);
    CHECK(events & UV_READABLE);
    step_host(handle->data);
}

static void on_due(uv_timer_t *handle) { step_host(handle->data); }

/* This runs after libuv's callbacks, so the time to wait includes whatever they did to conc's
 * tasks. */
static void on_prepare(uv_prepare_t *handle)
{
    host *h = handle->data;
    double timeout = conc_embed_timeout(&h->e);
    uv_update_time(&h->loop);
    if (timeout > 1e6)
        CHECK_INT(uv_timer_stop(&h->due), 0);
    else
        CHECK_INT(
            uv_timer_start(&h->due, on_due, timeout > 0 ? (uint64_t)(timeout * 1e3) + 1 : 0, 0), 0);
}

static void begin(host *h, const conc_options *o, conc_fn *fn, void *arg)
{
    *h = (host){.left = 3};
    CHECK_INT(conc_embed_begin(&h->e, o, fn, arg), 0);
    CHECK_INT(uv_loop_init(&h->loop), 0);
    CHECK_INT(uv_poll_init(&h->loop, &h->ready, conc_embed_fd(&h->e)), 0);
    CHECK_INT(uv_timer_init(&h->loop, &h->due), 0);
    CHECK_INT(uv_prepare_init(&h->loop, &h->prepare), 0);
    h->ready.data = h->due.data = h->prepare.data = h;
    CHECK_INT(uv_poll_start(&h->ready, UV_READABLE, on_ready), 0);
    CHECK_INT(uv_prepare_start(&h->prepare, on_prepare), 0);
}

static int finish(host *h)
{
    CHECK_INT(uv_run(&h->loop, UV_RUN_DEFAULT), 0);
    CHECK_INT(h->left, 0);
    CHECK_INT(uv_loop_close(&h->loop), 0);
    return conc_embed_end(&h->e);
}

static int host_run(conc_fn *fn, void *arg)
{
    host h;
    begin(&h, NULL, fn, arg);
    return finish(&h);
}

/* ---- what runs inside ---- */

static int returns(void *arg) { return *(int *)arg; }

static int sleeps(void *seconds)
{
    double start = conc_now();
    CONC_TRY(conc_sleep(*(double *)seconds));
    CHECK(conc_now() - start >= *(double *)seconds - 1e-9);
    return 5;
}

static int sleeps_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

UV_TEST(a_libuv_loop_runs_main_to_its_result)
{
    int values[] = {0, 42, -EIO};
    for (size_t i = 0; i < CONC_LEN(values); i++)
        CHECK_INT(host_run(returns, &values[i]), values[i]);
}

static int sleeps_many(void *arg)
{
    double seconds[] = {0.03, 0.001, 0.02, 0.0105, 0};
    (void)arg;
    CONC_TRY(CONC_MAP(sleeps, seconds));
    return 6;
}

UV_TEST(tasks_sleep_in_a_libuv_loop)
{
    double start = test_real_seconds();
    CHECK_INT(host_run(sleeps_many, NULL), 6);
    CHECK(test_real_seconds() - start >= 0.03);
}

static int sleeps_ten_times(void *arg)
{
    (void)arg;
    for (int i = 0; i < 10; i++)
        CONC_TRY(conc_sleep(0.005));
    return 0;
}

UV_TEST(a_libuv_loop_takes_few_steps)
{
    host h;
    begin(&h, NULL, sleeps_ten_times, NULL);
    CHECK_INT(finish(&h), 0);
    CHECK(h.steps <= 60);
}

UV_TEST(the_virtual_clock_jumps_in_a_libuv_loop)
{
    host h;
    conc_options o = {.virtual_clock = true};
    begin(&h, &o, sleeps, &(double){86400});
    CHECK_INT(finish(&h), 5);
}

UV_TEST(a_hundred_libuv_loops_follow_each_other_and_leave_nothing_open)
{
    double seconds = 0.0001;
    CHECK_INT(host_run(returns, &(int){1}), 1); /* libuv keeps some descriptors open */
    int fds = test_count_fds();
    for (int i = 0; i < 100; i++)
        CHECK_INT(host_run(sleeps, &seconds), 5);
    CHECK_INT(test_count_fds(), fds);
}

/* ---- libuv's own handles beside conc's ---- */

typedef struct ticker {
    uv_timer_t timer;
    int ticks, wanted;
    void (*then)(void *arg);
    void *arg;
} ticker;

static void on_tick(uv_timer_t *handle)
{
    ticker *t = handle->data;
    if (++t->ticks < t->wanted)
        return;
    uv_close((uv_handle_t *)&t->timer, NULL);
    if (t->then)
        t->then(t->arg);
}

static void start_ticker(host *h, ticker *t)
{
    CHECK_INT(uv_timer_init(&h->loop, &t->timer), 0);
    t->timer.data = t;
    CHECK_INT(uv_timer_start(&t->timer, on_tick, 2, 2), 0);
}

UV_TEST(libuv_timers_and_tasks_run_side_by_side)
{
    host h;
    ticker t = {.wanted = 10};
    begin(&h, NULL, sleeps_ten_times, NULL);
    start_ticker(&h, &t);
    CHECK_INT(finish(&h), 0);
    CHECK_INT(t.ticks, 10);
}

static conc_scope open_scope;

static int waits_in_a_scope(void *arg)
{
    (void)arg;
    CHECK_INT(conc_scope_begin(&open_scope, CONC_FOREVER), 0);
    CHECK_INT(conc_scope_end(&open_scope, conc_sleep(CONC_FOREVER)), 0);
    return 8;
}

static void cancel_scope(void *scope)
{
    CHECK_INT(conc_sleep(0), -EPERM);
    conc_scope_cancel(scope);
}

UV_TEST(a_libuv_callback_cancels_a_scope)
{
    host h;
    ticker t = {.wanted = 3, .then = cancel_scope, .arg = &open_scope};
    begin(&h, NULL, waits_in_a_scope, NULL);
    start_ticker(&h, &t);
    CHECK_INT(finish(&h), 8);
    CHECK(open_scope.cancel_caught);
}

static int spawned_ran;

static int spawned(void *scope)
{
    CONC_TRY(conc_sleep(0.002));
    spawned_ran++;
    conc_scope_cancel(scope);
    return 0;
}

static void spawn_it(void *scope) { CHECK_INT(conc_spawn(NULL, spawned, scope), 0); }

UV_TEST(a_libuv_callback_spawns_a_task)
{
    host h;
    ticker t = {.wanted = 3, .then = spawn_it, .arg = &open_scope};
    begin(&h, NULL, waits_in_a_scope, NULL);
    start_ticker(&h, &t);
    CHECK_INT(finish(&h), 8);
    CHECK_INT(spawned_ran, 1);
}

static int reads_three(void *fd)
{
    char text[4] = "";
    CHECK_INT(conc_read_full(*(int *)fd, text, 3), 3);
    CHECK_STR(text, "abc");
    return 3;
}

static void write_three(void *fd) { CHECK_INT(write(*(int *)fd, "abc", 3), 3); }

UV_TEST(a_task_reads_what_a_libuv_callback_wrote)
{
    host h;
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    ticker t = {.wanted = 3, .then = write_three, .arg = &ends[1]};
    begin(&h, NULL, reads_three, &ends[0]);
    start_ticker(&h, &t);
    CHECK_INT(finish(&h), 3);
    close(ends[0]);
    close(ends[1]);
}

/* Has libuv's thread pool run a function, and waits for it. */
typedef struct job {
    uv_work_t work;
    uv_loop_t *loop;
    conc_scope done;
    int result;
} job;

static void work(uv_work_t *w) { ((job *)w->data)->result = 17; }

static void after_work(uv_work_t *w, int status)
{
    CHECK_INT(status, 0);
    conc_scope_cancel(&((job *)w->data)->done);
}

static int waits_for_work(void *arg)
{
    job j = {.loop = arg};
    j.work.data = &j;
    CHECK_INT(conc_scope_begin(&j.done, CONC_FOREVER), 0);
    CHECK_INT(uv_queue_work(j.loop, &j.work, work, after_work), 0);
    CHECK_INT(conc_scope_end(&j.done, conc_sleep(CONC_FOREVER)), 0);
    return j.result;
}

static int has_work_done(void *loop)
{
    conc_call calls[10];
    for (int i = 0; i < 10; i++)
        calls[i] = (conc_call)CONC_CALL(waits_for_work, loop);
    CONC_TRY(conc_gather(calls, 10));
    for (int i = 0; i < 10; i++)
        CHECK_INT(calls[i].result, 17);
    return 10;
}

UV_TEST(tasks_wait_for_libuvs_thread_pool)
{
    host h;
    begin(&h, NULL, has_work_done, &h.loop);
    CHECK_INT(finish(&h), 10);
}

static void *post_soon(void *loop)
{
    uv_sleep(20);
    CHECK_INT(conc_post(loop, cancel_scope, &open_scope), 0);
    CHECK_INT(conc_loop_release(loop), 0);
    return NULL;
}

UV_TEST(a_post_from_a_thread_wakes_a_libuv_loop)
{
    host h;
    pthread_t t;
    begin(&h, NULL, waits_in_a_scope, NULL);
    step_host(&h); /* opens the scope that the post cancels */
    CHECK_INT(conc_loop_hold(conc_loop_self()), 0);
    CHECK_INT(pthread_create(&t, NULL, post_soon, conc_loop_self()), 0);
    CHECK_INT(finish(&h), 8);
    CHECK_INT(pthread_join(t, NULL), 0);
}

static int cleans_up(void *arg)
{
    static double shortly = 0.01;
    int rc = sleeps_forever(arg);
    CHECK_INT(conc_shield(CONC_FOREVER, sleeps, &shortly), 5);
    note("cleaned");
    return rc;
}

static void give_up(void *h) { stop_host(h); }

UV_TEST(a_libuv_loop_that_gives_up_cancels_main_at_the_end)
{
    host h;
    ticker t = {.wanted = 3, .then = give_up, .arg = &h};
    begin(&h, NULL, cleans_up, NULL);
    start_ticker(&h, &t);
    CHECK_INT(finish(&h), -ECANCELED);
    CHECK_STR(noted, "cleaned");
}

#endif
