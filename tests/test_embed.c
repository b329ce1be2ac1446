/* test_embed.c - conc_embed_*: a run inside a program that has its own loop, here one that waits
 * in poll(2).
 *
 * Seeds: 5 (real time)
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#define TEST_POOL
#include "conc_test.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

/* Skipped where a loop has no descriptor; where it can have one, it must. */
#define EMBED_TEST(name)                                           \
    static void name(void);                                        \
    static void embed_##name(void)                                 \
    {                                                              \
        unsetenv("CONC_POLL");                                     \
        unsetenv("CONC_CLOCK");                                    \
        name();                                                    \
    }                                                              \
    __attribute__((constructor)) static void test_add_##name(void) \
    {                                                              \
        static test_case t = {#name, embed_##name, NULL};          \
        if (!TEST_ONLY_POLL)                                       \
            test_add(&t, false);                                   \
    }                                                              \
    static void name(void)

/* ---- the host ---- */

typedef struct host {
    conc_embed e;
    int steps;
} host;

static void begin_with(host *h, const conc_options *o, conc_fn *fn, void *arg)
{
    *h = (host){.steps = 0};
    CHECK_INT(conc_embed_begin(&h->e, o, fn, arg), 0);
}

static void begin(host *h, conc_fn *fn, void *arg) { begin_with(h, NULL, fn, arg); }

static int step(host *h)
{
    h->steps++;
    return conc_embed_step(&h->e);
}

static bool is_readable(int fd, int milliseconds)
{
    struct pollfd p = {fd, POLLIN, 0};
    int n = poll(&p, 1, milliseconds);
    CHECK(n >= 0 || errno == EINTR);
    return n > 0;
}

/* Waits as long as conc says, and no shorter: poll(2) counts whole milliseconds. */
static int turn(host *h)
{
    double timeout = conc_embed_timeout(&h->e);
    CHECK(timeout >= 0);
    is_readable(conc_embed_fd(&h->e), timeout > 1e6 ? -1
                                      : timeout > 0 ? (int)(timeout * 1e3) + 1
                                                    : 0);
    return step(h);
}

static int finish(host *h)
{
    int rc;
    while ((rc = turn(h)) == 1)
        continue;
    CHECK_INT(rc, 0);
    return conc_embed_end(&h->e);
}

static int host_run(conc_fn *fn, void *arg)
{
    host h;
    begin(&h, fn, arg);
    return finish(&h);
}

/* Steps until the run has nothing more to do now, without waiting. */
static void step_until_idle(host *h)
{
    while (conc_embed_timeout(&h->e) == 0 && step(h) == 1)
        continue;
}

static void check_process(void (*fn)(void))
{
    static char text[16384];
    int status = test_in_process(fn, text, sizeof text);
    if (status)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, text);
    CHECK(!strstr(text, "conc:"));
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
    if (arg)
        *(conc_task **)arg = conc_self();
    return conc_sleep(CONC_FOREVER);
}

static int notes(void *word)
{
    note(word);
    return 0;
}

static int must_not_run(void *arg)
{
    test_fail(__FILE__, __LINE__, "this must not run");
    return arg != NULL;
}

/* ---- results ---- */

EMBED_TEST(the_end_returns_what_main_returned)
{
    int values[] = {0, 1, 42, -1, -EIO, -ECANCELED};
    for (size_t i = 0; i < CONC_LEN(values); i++)
        CHECK_INT(host_run(returns, &values[i]), values[i]);
    CHECK(conc_loop_self() == NULL);
}

EMBED_TEST(main_starts_with_the_first_step)
{
    host h;
    static char word[] = "main";
    begin(&h, notes, word);
    CHECK_STR(noted, "");
    CHECK(conc_embed_timeout(&h.e) == 0);
    CHECK_STR(noted, "");
    CHECK_INT(finish(&h), 0);
    CHECK_STR(noted, "main");
}

EMBED_TEST(a_sleep_takes_its_time)
{
    double seconds[] = {0.05, 0.0101, 0.0005, 0.000001, 0, -1};
    for (size_t i = 0; i < CONC_LEN(seconds); i++) {
        double start = test_real_seconds();
        CHECK_INT(host_run(sleeps, &seconds[i]), 5);
        CHECK(test_real_seconds() - start >= seconds[i] - 1e-9);
    }
}

static int waits_for_many(void *arg)
{
    double seconds[] = {0.03, 0.001, 0.02, 0.01, 0.015};
    (void)arg;
    CONC_TRY(CONC_MAP(sleeps, seconds));
    return 6;
}

EMBED_TEST(tasks_that_sleep_sleep_at_the_same_time)
{
    CHECK_INT(host_run(waits_for_many, NULL), 6);
}

static int times_out(void *arg)
{
    (void)arg;
    CHECK_INT(conc_timeout(0.02, sleeps_forever, NULL), -ETIMEDOUT);
    return 7;
}

EMBED_TEST(time_limits_work) { CHECK_INT(host_run(times_out, NULL), 7); }

EMBED_TEST(a_hundred_runs_follow_each_other_and_leave_nothing_open)
{
    int fds = test_count_fds();
    double seconds = 0.0001;
    for (int i = 0; i < 100; i++) {
        CHECK_INT(i % 2 ? host_run(sleeps, &seconds) : host_run(returns, &i), i % 2 ? 5 : i);
        CHECK(conc_loop_self() == NULL);
        CHECK_INT(test_count_fds(), fds);
    }
    CHECK_INT(conc_run(returns, &(int){9}), 9);
}

static int leaves_a_task(void *arg)
{
    CHECK_INT(conc_spawn(NULL, sleeps_forever, NULL), 0);
    CHECK_INT(conc_yield(), 0);
    return returns(arg);
}

static int cleans_up_slowly(void *arg)
{
    static double shortly = 0.5;
    int rc = sleeps_forever(NULL);
    CHECK_INT(conc_shield(CONC_FOREVER, sleeps, &shortly), 5);
    note(arg);
    return rc;
}

static int leaves_a_slow_task(void *word)
{
    CHECK_INT(conc_spawn(NULL, cleans_up_slowly, word), 0);
    CHECK_INT(conc_yield(), 0);
    return 8;
}

EMBED_TEST(stepping_continues_until_the_background_tasks_have_cleaned_up)
{
    host h;
    static char word[] = "cleaned";
    CHECK_INT(host_run(leaves_a_task, &(int){4}), 4);
    begin(&h, leaves_a_slow_task, word);
    CHECK_INT(finish(&h), 8);
    CHECK_STR(noted, "cleaned");
}

static int fails(void *arg)
{
    (void)arg;
    return conc_fail(-EPROTO, "a background failure");
}

static int leaves_a_failure(void *arg)
{
    CHECK_INT(conc_spawn(NULL, fails, arg), 0);
    CHECK_INT(conc_yield(), 0);
    return 0;
}

static void count_failure(const conc_failure *f, void *user)
{
    CHECK_INT(f->rc, -EPROTO);
    CHECK_STR(f->text, "a background failure");
    ++*(int *)user;
}

EMBED_TEST(uncollected_errors_go_to_on_error)
{
    host h;
    int count = 0;
    conc_options o = {.on_error = count_failure, .user = &count};
    begin_with(&h, &o, leaves_a_failure, NULL);
    CHECK_INT(finish(&h), 0);
    CHECK_INT(count, 1);
}

/* ---- the descriptor and the time to wait ---- */

static int reads(void *fd)
{
    char c = 0;
    ssize_t n = conc_read(*(int *)fd, &c, 1);
    return n == 1 ? c : (int)n;
}

EMBED_TEST(the_descriptor_becomes_readable_when_a_task_can_continue)
{
    host h;
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    begin(&h, reads, &ends[0]);
    int fd = conc_embed_fd(&h.e);
    CHECK(fd >= 0);
    step_until_idle(&h);
    CHECK(conc_embed_timeout(&h.e) > 0); /* it checks now and then whether ends[0] was closed */
    CHECK_INT(conc_embed_fd(&h.e), fd);
    CHECK(!is_readable(fd, 20));
    CHECK_INT(write(ends[1], "x", 1), 1);
    CHECK(is_readable(fd, 5000));
    CHECK_INT(finish(&h), 'x');
    close(ends[0]);
    close(ends[1]);
}

/* The host sleeps as long as conc allows, and nothing runs that could notify the loop. */
EMBED_TEST(a_descriptor_that_the_host_closes_wakes_its_task)
{
    host h;
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    begin(&h, reads, &ends[0]);
    step_until_idle(&h);
    for (int i = 0; i < 3; i++)
        CHECK_INT(turn(&h), 1);
    close(ends[0]);
    CHECK_INT(finish(&h), -EBADF);
    CHECK(h.steps < 20);
    close(ends[1]);
}

static void *closes_in_a_while(void *fd)
{
    poll(NULL, 0, 400); /* the host waits by then; if this came earlier, it would wait less often */
    syscall(SYS_close, *(int *)fd); /* ThreadSanitizer would report a race, which it is */
    return NULL;
}

static int reads_beside_a_timer(void *fd)
{
    conc_group g = {0};
    double day = 86400;
    CHECK_INT(conc_spawn(&g, sleeps, &day), 0);
    int rc = reads(fd);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    return rc;
}

EMBED_TEST(a_descriptor_that_another_thread_closes_wakes_its_task)
{
    static conc_fn *const fns[] = {reads, reads_beside_a_timer};
    for (size_t i = 0; i < CONC_LEN(fns); i++) {
        host h;
        int ends[2], fd;
        pthread_t thread;
        CHECK_INT(pipe(ends), 0);
        fd = ends[0];
        begin(&h, fns[i], &ends[0]);
        CHECK_INT(pthread_create(&thread, NULL, closes_in_a_while, &fd), 0);
        CHECK_INT(finish(&h), -EBADF);
        CHECK(h.steps < 30);
        CHECK_INT(pthread_join(thread, NULL), 0);
        close(ends[1]);
    }
}

#ifdef __linux__
static int adds_ten(void *fd)
{
    uint64_t ten = 10;
    return (int)conc_write(*(int *)fd, &ten, sizeof ten);
}

/* It waits about a millisecond each time, although the virtual clock jumps. */
EMBED_TEST(a_host_takes_few_steps_while_a_task_tries_again_on_the_virtual_clock)
{
    host h;
    conc_options o = {.virtual_clock = true};
    int fd = eventfd(0, EFD_NONBLOCK);
    uint64_t nearly = UINT64_MAX - 3;
    CHECK_INT(write(fd, &nearly, sizeof nearly), sizeof nearly);
    begin_with(&h, &o, adds_ten, &fd);
    double start = test_real_seconds();
    while (test_real_seconds() - start < 0.2)
        CHECK_INT(turn(&h), 1);
    CHECK(h.steps < 400);
    CHECK_INT(read(fd, &nearly, sizeof nearly), sizeof nearly);
    CHECK_INT(finish(&h), sizeof nearly);
    close(fd);
}

static int adds_ten_for_a_second(void *fd) { return conc_timeout(1, adds_ten, fd); }

EMBED_TEST(before_each_try_on_the_virtual_clock_a_host_waits)
{
    host h;
    conc_options o = {.virtual_clock = true};
    int fd = eventfd(0, EFD_NONBLOCK), tries = 0, at_once = 0;
    uint64_t nearly = UINT64_MAX - 3;
    CHECK_INT(write(fd, &nearly, sizeof nearly), sizeof nearly);
    begin_with(&h, &o, adds_ten_for_a_second, &fd);
    while (turn(&h) == 1) {
        tries++;
        at_once += conc_embed_timeout(&h.e) == 0;
    }
    CHECK(tries > 10);
    CHECK(at_once <= tries / 2);
    CHECK_INT(conc_embed_end(&h.e), -ETIMEDOUT);
    close(fd);
}
#endif

static int passed_on; /* a copy, as another process would have */
static bool is_passed_on;

static int passes_a_connection_on(void *arg)
{
    char where[64], c;
    int l = CONC_TRY(conc_listen("127.0.0.1:0"));
    CHECK_INT(conc_address(l, false, where, sizeof where), 0);
    int *peer = arg, fd;
    *peer = CONC_TRY(conc_dial(where));
    fd = CONC_TRY(conc_accept(l));
    CHECK_INT(write(*peer, "x", 1), 1);
    CHECK_INT(conc_wait_fd(fd, CONC_READABLE), CONC_READABLE);
    CHECK_INT(conc_read(fd, &c, 1), 1);
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 0.001), 0);
    CHECK_INT(conc_scope_end(&s, conc_wait_fd(fd, CONC_READABLE)), -ETIMEDOUT);
    passed_on = dup(fd);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(l), 0);
    is_passed_on = true;
    return conc_sleep(CONC_FOREVER);
}

EMBED_TEST(a_change_of_a_file_that_was_closed_here_is_no_event)
{
    host h;
    int peer = -1;
    begin(&h, passes_a_connection_on, &peer);
    while (!is_passed_on)
        CHECK_INT(turn(&h), 1);
    CHECK(!is_readable(conc_embed_fd(&h.e), 0));
    CHECK_INT(write(peer, "y", 1), 1);
    CHECK(is_readable(passed_on, 5000));
    CHECK(!is_readable(conc_embed_fd(&h.e), 0));
    CHECK_INT(conc_embed_end(&h.e), -ECANCELED);
    close(passed_on);
    close(peer);
}

static int reads_from_a_named_pipe(void *arg)
{
    char c;
    CHECK_INT(conc_read(*(int *)arg, &c, 1), 1);
    return (int)conc_read(*(int *)arg, &c, 1);
}

/* The host may miss the event; then it waits no longer than the event may be late. */
EMBED_TEST(a_named_pipe_is_read_in_a_hosts_loop)
{
    char name[64];
    host h;
    snprintf(name, sizeof name, "/tmp/conc_test_%d", (int)getpid());
    CHECK_INT(mkfifo(name, 0600), 0);
    int fd = open(name, O_RDONLY | O_NONBLOCK), writer = open(name, O_WRONLY | O_NONBLOCK);
    CHECK_INT(unlink(name), 0);
    begin(&h, reads_from_a_named_pipe, &fd);
    step_until_idle(&h);
    CHECK_INT(write(writer, "x", 1), 1);
    double start = test_real_seconds();
    CHECK_INT(turn(&h), 1);
    CHECK(test_real_seconds() - start < 0.2);
    step_until_idle(&h);
    CHECK_INT(close(writer), 0);
    while (turn(&h) > 0)
        continue;
    CHECK(h.steps < 100);
    CHECK_INT(conc_embed_end(&h.e), 0);
    CHECK_INT(close(fd), 0);
}

static void loses_its_descriptors(void)
{
    host h;
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    begin(&h, reads, &ends[0]);
    step_until_idle(&h);
    for (int fd = 3; fd < 64; fd++)
        close(fd);
    CHECK_INT(finish(&h), -EBADF);
}

EMBED_TEST(a_host_that_closes_the_loop_s_descriptors_ends_the_run_with_that_error)
{
    static char text[16384];
    if (SANITIZED)
        return; /* they have their own descriptors */
    int status = test_in_process(loses_its_descriptors, text, sizeof text);
    if (status)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, text);
    CHECK(strstr(text, "the wait for descriptors failed: Bad file descriptor"));
}

EMBED_TEST(the_time_to_wait_lasts_until_the_next_deadline)
{
    host h;
    double seconds = 0.05;
    begin(&h, sleeps, &seconds);
    double start = test_real_seconds();
    step_until_idle(&h);
    double timeout = conc_embed_timeout(&h.e), elapsed = test_real_seconds() - start;
    CHECK(timeout > 0.05 - elapsed - 1e-6 && timeout < 0.05 + 1e-6);
    CHECK(conc_embed_timeout(&h.e) <= timeout);
    CHECK_INT(finish(&h), 5);
}

EMBED_TEST(a_host_that_steps_too_often_gets_nothing_early)
{
    host h;
    double seconds = 0.03;
    int rc;
    begin(&h, sleeps, &seconds);
    while ((rc = step(&h)) == 1)
        continue;
    CHECK_INT(rc, 0);
    CHECK_INT(conc_embed_end(&h.e), 5);
}

EMBED_TEST(a_host_that_steps_too_late_gets_what_is_due)
{
    host h;
    double seconds = 0.01;
    begin(&h, sleeps, &seconds);
    step_until_idle(&h);
    poll(NULL, 0, 30);
    CHECK(conc_embed_timeout(&h.e) == 0);
    CHECK_INT(finish(&h), 5);
}

static int sleeps_ten_times(void *arg)
{
    (void)arg;
    for (int i = 0; i < 10; i++)
        CONC_TRY(conc_sleep(0.005));
    return 0;
}

EMBED_TEST(a_host_that_waits_as_long_as_conc_says_takes_few_steps)
{
    host h;
    begin(&h, sleeps_ten_times, NULL);
    CHECK_INT(finish(&h), 0);
    CHECK(h.steps <= 40);
}

static int reads_with_a_limit(void *fd) { return conc_timeout(0.1, reads, fd); }

EMBED_TEST(a_host_takes_few_steps_while_nothing_happens)
{
    host h;
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    begin(&h, reads_with_a_limit, &ends[0]);
    CHECK_INT(conc_post(conc_loop_self(), free, NULL), 0);
    CHECK_INT(finish(&h), -ETIMEDOUT);
    CHECK(h.steps <= 20);
    close(ends[0]);
    close(ends[1]);
}

static int echoes(void *arg)
{
    int *ends = arg;
    char c;
    for (int i = 0; i < 100; i++) {
        CHECK_INT(conc_read(ends[0], &c, 1), 1);
        CHECK_INT(conc_write(ends[1], &c, 1), 1);
    }
    return 0;
}

EMBED_TEST(a_task_talks_to_the_host)
{
    host h;
    int to_task[2], to_host[2], ends[2];
    char c;
    CHECK_INT(pipe(to_task) | pipe(to_host), 0);
    ends[0] = to_task[0];
    ends[1] = to_host[1];
    begin(&h, echoes, ends);
    for (int i = 0; i < 100; i++) {
        char sent = (char)('a' + i % 26);
        CHECK_INT(write(to_task[1], &sent, 1), 1);
        while (!is_readable(to_host[0], 0))
            turn(&h);
        CHECK_INT(read(to_host[0], &c, 1), 1);
        CHECK_INT(c, sent);
    }
    CHECK_INT(finish(&h), 0);
    for (int i = 0; i < 2; i++)
        close(to_task[i]), close(to_host[i]);
}

static int yields(void *turns)
{
    for (int i = 0; i < 10000; i++) {
        CONC_TRY(conc_yield());
        ++*(int *)turns;
    }
    return 0;
}

EMBED_TEST(a_task_that_is_always_ready_does_not_keep_the_host_from_its_turn)
{
    host h;
    int turns = 0;
    begin(&h, yields, &turns);
    CHECK_INT(step(&h), 1);
    CHECK(turns < 10000);
    CHECK(conc_embed_timeout(&h.e) == 0);
    CHECK_INT(finish(&h), 0);
    CHECK_INT(turns, 10000);
}

static void pause_for(double s)
{
    struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
}

typedef struct poster {
    conc_loop *loop;
    conc_scope *scope;
} poster;

static void cancel_scope(void *scope) { conc_scope_cancel(scope); }

static void *post_soon(void *arg)
{
    poster *p = arg;
    pause_for(0.03);
    CHECK_INT(conc_post(p->loop, cancel_scope, p->scope), 0);
    CHECK_INT(conc_loop_release(p->loop), 0);
    return NULL;
}

static int waits_for_a_post(void *arg)
{
    pthread_t t;
    conc_scope s = {0};
    poster p = {conc_loop_self(), &s};
    (void)arg;
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_loop_hold(p.loop), 0);
    CHECK_INT(pthread_create(&t, NULL, post_soon, &p), 0);
    CHECK_INT(conc_sleep(CONC_FOREVER), -ECANCELED);
    CHECK(s.cancel_called);
    CHECK_INT(pthread_join(t, NULL), 0);
    return conc_scope_end(&s, 3);
}

EMBED_TEST(a_post_from_a_thread_wakes_a_host_that_waits)
{
    CHECK_INT(host_run(waits_for_a_post, NULL), 3);
}

typedef struct flood {
    conc_loop *loop;
    conc_scope scope;
    int got;
} flood;

static void count_post(void *arg)
{
    flood *f = arg;
    if (++f->got == 10000)
        conc_scope_cancel(&f->scope);
}

static void *post_ten_thousand(void *arg)
{
    flood *f = arg;
    for (int i = 0; i < 10000; i++) {
        CHECK_INT(conc_post(f->loop, count_post, f), 0);
        if (i % 100 == 0)
            sched_yield();
    }
    CHECK_INT(conc_loop_release(f->loop), 0);
    return NULL;
}

static int takes_the_flood(void *arg)
{
    flood *f = arg;
    pthread_t t;
    f->loop = conc_loop_self();
    CHECK_INT(conc_scope_begin(&f->scope, CONC_FOREVER), 0);
    CHECK_INT(conc_loop_hold(f->loop), 0);
    CHECK_INT(pthread_create(&t, NULL, post_ten_thousand, f), 0);
    CHECK_INT(conc_scope_end(&f->scope, conc_sleep(CONC_FOREVER)), 0);
    CHECK_INT(pthread_join(t, NULL), 0);
    return f->got;
}

EMBED_TEST(none_of_many_posts_is_missed)
{
    flood f = {0};
    CHECK_INT(host_run(takes_the_flood, &f), 10000);
}

static void *raise_soon(void *arg)
{
    pause_for(0.03);
    CHECK_INT(raise(SIGUSR1), 0);
    return arg;
}

static int waits_for_a_signal(void *arg)
{
    conc_signals s = {0};
    pthread_t t;
    (void)arg;
    CHECK_INT(conc_signals_open(&s, &(int){SIGUSR1}, 1), 0);
    CHECK_INT(pthread_create(&t, NULL, raise_soon, NULL), 0);
    int rc = conc_signals_next(&s);
    CHECK_INT(conc_signals_close(&s), 0);
    CHECK_INT(pthread_join(t, NULL), 0);
    return rc;
}

EMBED_TEST(a_signal_wakes_a_host_that_waits)
{
    CHECK_INT(host_run(waits_for_a_signal, NULL), SIGUSR1);
}

/* ---- the host's code between the steps ---- */

EMBED_TEST(the_host_spawns_before_and_between_the_steps)
{
    host h;
    conc_task *main_task = NULL;
    static char before[] = "before", between[] = "between";
    begin(&h, sleeps_forever, &main_task);
    CHECK_INT(conc_spawn(NULL, notes, before), 0);
    step_until_idle(&h);
    CHECK_STR(noted, "before");
    CHECK(conc_embed_timeout(&h.e) == CONC_FOREVER);
    CHECK_INT(conc_spawn(NULL, notes, between), 0);
    CHECK_STR(noted, "before");
    CHECK(conc_embed_timeout(&h.e) == 0);
    step_until_idle(&h);
    CHECK_STR(noted, "before between");
    CHECK_INT(conc_cancel(main_task), 0);
    CHECK_INT(finish(&h), -ECANCELED);
}

static conc_scope open_scope;
static conc_group open_group;
static conc_task child;

static int opens_scopes(void *arg)
{
    (void)arg;
    CHECK_INT(conc_scope_begin(&open_scope, CONC_FOREVER), 0);
    CHECK_INT(conc_spawn_task(&open_group, &child, sleeps_forever, NULL), 0);
    int rc = conc_group_end(&open_group, conc_sleep(CONC_FOREVER));
    return conc_scope_end(&open_scope, rc);
}

EMBED_TEST(the_host_cancels_a_scope)
{
    host h;
    begin(&h, opens_scopes, NULL);
    step_until_idle(&h);
    conc_scope_cancel(&open_scope);
    CHECK(conc_embed_timeout(&h.e) == 0);
    CHECK_INT(finish(&h), 0);
    CHECK(open_scope.cancel_caught);
}

EMBED_TEST(the_host_sets_a_time_limit)
{
    host h;
    begin(&h, opens_scopes, NULL);
    step_until_idle(&h);
    CHECK_INT(conc_scope_set_timeout(&open_scope, 0.02), 0);
    CHECK(conc_embed_timeout(&h.e) <= 0.02);
    double start = test_real_seconds();
    CHECK_INT(finish(&h), -ETIMEDOUT);
    CHECK(test_real_seconds() - start >= 0.02 - 0.001);
}

static void note_it(void *word) { note(word); }

EMBED_TEST(the_host_posts_to_its_own_loop)
{
    host h;
    static char word[] = "posted";
    begin(&h, sleeps, &(double){0.01});
    CHECK_INT(conc_post(conc_loop_self(), note_it, word), 0);
    CHECK_STR(noted, "");
    CHECK(conc_embed_timeout(&h.e) == 0 || is_readable(conc_embed_fd(&h.e), 0));
    CHECK_INT(finish(&h), 5);
    CHECK_STR(noted, "posted");
}

static void try_all_that_waits(void)
{
    char c;
    conc_task *next;
    conc_group g = {0};
    conc_scope s = {0};
    conc_call call[] = {CONC_CALL(must_not_run, NULL)};
    CHECK(conc_self() == NULL);
    CHECK_INT(conc_sleep(0), -EPERM);
    CHECK_INT(conc_sleep(1), -EPERM);
    CHECK_INT(conc_sleep_until(0), -EPERM);
    CHECK_INT(conc_yield(), -EPERM);
    CHECK_INT(conc_settle(), -EPERM);
    CHECK_INT(conc_join(&child, NULL), -EPERM);
    CHECK_INT(conc_group_wait(&open_group), -EPERM);
    CHECK_INT(conc_group_next(&open_group, &next), -EPERM);
    CHECK_INT(conc_start(&open_group, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_gather(call, 1), -EPERM);
    CHECK_INT(conc_timeout(1, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_shield(1, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_scope_begin(&s, 1), -EPERM);
    CHECK_INT(conc_group_begin(&g), -EPERM);
    CHECK_INT(conc_wait_fd(0, CONC_READABLE), -EPERM);
    CHECK_INT(conc_read(0, &c, 1), -EPERM);
    CHECK_INT(conc_wait_signal(SIGUSR1), -EPERM);
    CHECK(!conc_cancelled());
    CHECK(conc_deadline() == CONC_FOREVER);
}

EMBED_TEST(between_the_steps_nothing_waits)
{
    host h;
    begin(&h, opens_scopes, NULL);
    CHECK(conc_loop_self() != NULL);
    step_until_idle(&h);
    try_all_that_waits();
    conc_scope_cancel(&open_scope);
    CHECK_INT(finish(&h), 0);
}

EMBED_TEST(between_the_steps_no_other_run_begins)
{
    host h;
    conc_embed other = {0};
    conc_task *main_task = NULL;
    begin(&h, sleeps_forever, &main_task);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_run(must_not_run, NULL), -EBUSY);
        CHECK_INT(conc_embed_begin(&other, NULL, must_not_run, NULL), -EBUSY);
        CHECK_INT(conc_embed_begin(&h.e, NULL, must_not_run, NULL), -EBUSY);
        CHECK_INT(conc_embed_end(&other), 0);
        CHECK_INT(step(&h), 1);
    }
    CHECK_INT(conc_cancel(main_task), 0);
    CHECK_INT(finish(&h), -ECANCELED);
}

static void sleep_without_end(void)
{
    host h;
    conc_task *main_task = NULL;
    begin(&h, sleeps_forever, &main_task);
    for (int i = 0; i < 10; i++) {
        CHECK_INT(step(&h), 1);
        CHECK(!is_readable(conc_embed_fd(&h.e), 0) || i == 0);
    }
    CHECK(conc_embed_timeout(&h.e) == CONC_FOREVER);
    CHECK_INT(conc_cancel(main_task), 0);
    CHECK_INT(finish(&h), -ECANCELED);
}

EMBED_TEST(an_embedded_run_does_not_look_for_deadlocks) { check_process(sleep_without_end); }

static void be_interrupted(void)
{
    host h;
    double seconds = 1000;
    conc_options o = {.interrupt = true};
    signal(SIGINT, SIG_DFL);
    begin_with(&h, &o, sleeps, &seconds);
    CHECK_INT(step(&h), 1);
    CHECK_INT(raise(SIGINT), 0);
    CHECK_INT(finish(&h), -EINTR);
    CHECK(signal(SIGINT, SIG_IGN) == SIG_DFL);
}

EMBED_TEST(an_interrupt_cancels_main_and_wakes_the_host) { check_process(be_interrupted); }

static void end_after_an_interrupt(void)
{
    host h;
    conc_options o = {.interrupt = true};
    signal(SIGTERM, SIG_DFL);
    begin_with(&h, &o, sleeps_forever, NULL);
    CHECK_INT(step(&h), 1);
    CHECK_INT(raise(SIGTERM), 0);
    CHECK_INT(conc_embed_end(&h.e), -EINTR);
    begin_with(&h, &o, sleeps_forever, NULL);
    CHECK_INT(raise(SIGTERM), 0);
    CHECK_INT(conc_embed_end(&h.e), -EINTR);
    begin_with(&h, &o, sleeps_forever, NULL);
    CHECK_INT(conc_embed_end(&h.e), -ECANCELED);
}

EMBED_TEST(an_interrupt_between_the_last_step_and_the_end_is_the_result)
{
    check_process(end_after_an_interrupt);
}

/* ---- the virtual clock ---- */

static int sleeps_a_day(void *arg)
{
    double seconds[] = {86400, 1, 3600, 60};
    (void)arg;
    CONC_TRY(CONC_MAP(sleeps, seconds));
    CHECK_TIME(86400);
    return 5;
}

EMBED_TEST(the_virtual_clock_jumps)
{
    host h;
    conc_options o = {.virtual_clock = true};
    begin_with(&h, &o, sleeps_a_day, NULL);
    CHECK(conc_now() == 0);
    double last = 0;
    int rc;
    while ((rc = turn(&h)) == 1) {
        CHECK(conc_now() >= last);
        last = conc_now();
    }
    CHECK_INT(rc, 0);
    CHECK_INT(conc_embed_end(&h.e), 5);
}

static atomic_bool job_began;

static int waits_for_the_host(void *fd)
{
    char c = 0;
    atomic_store(&job_began, true);
    while (read(*(int *)fd, &c, 1) < 0 && errno == EINTR)
        continue;
    return c;
}

static int offloads(void *fd) { return conc_offload(waits_for_the_host, fd); }
static int offloads_with_a_limit(void *fd) { return conc_timeout(1000, offloads, fd); }

EMBED_TEST(while_a_job_holds_the_virtual_clock_the_host_has_its_turn)
{
    host h;
    int ends[2];
    conc_options o = {.virtual_clock = true};
    CHECK_INT(pipe(ends), 0);
    begin_with(&h, &o, offloads_with_a_limit, &ends[0]);
    step_until_idle(&h);
    CHECK(conc_embed_timeout(&h.e) == CONC_FOREVER);
    for (int i = 0; i < 5; i++)
        CHECK_INT(step(&h), 1);
    CHECK(conc_embed_timeout(&h.e) == CONC_FOREVER);
    CHECK(conc_now() == 0);
    CHECK_INT(write(ends[1], "x", 1), 1);
    CHECK_INT(finish(&h), 'x');
    CHECK(h.steps < 20);
    close(ends[0]);
    close(ends[1]);
}

EMBED_TEST(an_end_waits_for_a_job_that_holds_the_virtual_clock)
{
    host h;
    int ends[2];
    conc_options o = {.virtual_clock = true};
    CHECK_INT(pipe(ends), 0);
    begin_with(&h, &o, offloads_with_a_limit, &ends[0]);
    step_until_idle(&h);
    while (!atomic_load(&job_began))
        sched_yield();
    CHECK_INT(write(ends[1], "x", 1), 1);
    CHECK_INT(conc_embed_end(&h.e), 'x');
    close(ends[0]);
    close(ends[1]);
}

static int reads_while_a_job_runs(void *arg)
{
    int *fds = arg; /* the job's and the task's */
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, offloads_with_a_limit, &fds[0]));
    int rc = reads(&fds[1]);
    note("woken");
    CHECK(conc_group_end(&g, 0) == 0);
    return rc;
}

EMBED_TEST(while_a_job_holds_the_virtual_clock_closed_descriptors_are_found)
{
    host h;
    int to_job[2], to_task[2];
    conc_options o = {.virtual_clock = true};
    CHECK_INT(pipe(to_job) | pipe(to_task), 0);
    begin_with(&h, &o, reads_while_a_job_runs, (int[]){to_job[0], to_task[0]});
    step_until_idle(&h);
    for (int i = 0; i < 3; i++)
        CHECK_INT(turn(&h), 1);
    close(to_task[0]);
    while (!noted[0])
        CHECK_INT(turn(&h), 1);
    CHECK_INT(write(to_job[1], "x", 1), 1);
    CHECK_INT(finish(&h), -EBADF);
    CHECK(h.steps < 30);
    close(to_job[0]);
    close(to_job[1]);
    close(to_task[1]);
}

/* ---- the end ---- */

EMBED_TEST(a_step_after_the_run_is_over_returns_0)
{
    host h;
    begin(&h, returns, &(int){3});
    while (turn(&h) == 1)
        continue;
    for (int i = 0; i < 3; i++)
        CHECK_INT(step(&h), 0);
    CHECK_INT(conc_embed_end(&h.e), 3);
}

static int catches(void *arg)
{
    CHECK_INT(sleeps_forever(NULL), -ECANCELED);
    note("caught");
    return returns(arg);
}

EMBED_TEST(an_early_end_cancels_main)
{
    host h;
    begin(&h, sleeps_forever, NULL);
    step_until_idle(&h);
    CHECK_INT(conc_embed_end(&h.e), -ECANCELED);
    CHECK(conc_loop_self() == NULL);
    begin(&h, catches, &(int){6});
    step_until_idle(&h);
    CHECK_INT(conc_embed_end(&h.e), 6);
    CHECK_STR(noted, "caught");
}

EMBED_TEST(an_end_before_the_first_step_cancels_a_main_that_still_runs)
{
    host h;
    int fds = test_count_fds();
    begin(&h, catches, &(int){6});
    CHECK_INT(conc_embed_end(&h.e), 6);
    CHECK_STR(noted, "caught");
    CHECK_INT(test_count_fds(), fds);
}

static int cleans_up_and_leaves_a_task(void *word)
{
    CHECK_INT(conc_spawn(NULL, cleans_up_slowly, word), 0);
    return cleans_up_slowly(word);
}

EMBED_TEST(an_early_end_waits_for_all_clean_up)
{
    host h;
    static char word[] = "cleaned";
    begin(&h, cleans_up_and_leaves_a_task, word);
    step_until_idle(&h);
    CHECK_INT(conc_embed_end(&h.e), -ECANCELED);
    CHECK_STR(noted, "cleaned cleaned");
}

EMBED_TEST(an_end_while_background_tasks_clean_up_returns_mains_result)
{
    host h;
    static char word[] = "cleaned";
    begin(&h, leaves_a_slow_task, word);
    step_until_idle(&h);
    CHECK_STR(noted, "");
    CHECK_INT(conc_embed_end(&h.e), 8);
    CHECK_STR(noted, "cleaned");
}

static conc_gen left_open;

static int emits_and_cleans_up(conc_gen *g, void *arg)
{
    static double shortly = 0.5;
    int rc = conc_gen_emit(g, arg);
    note(sleeps(&shortly) == 5 ? "cleaned" : "cut short");
    return rc;
}

static int leaves_a_generator_open(void *arg)
{
    int item;
    CHECK_INT(conc_gen_open(&left_open, emits_and_cleans_up, arg, sizeof item), 0);
    CHECK_INT(conc_gen_next(&left_open, &item), 1);
    return 8;
}

EMBED_TEST(an_end_while_a_generator_cleans_up_waits_for_it)
{
    host h;
    int item = 1;
    begin(&h, leaves_a_generator_open, &item);
    step_until_idle(&h);
    CHECK_STR(noted, "");
    CHECK_INT(conc_embed_end(&h.e), 8);
    CHECK_STR(noted, "cleaned");
}

EMBED_TEST(after_the_end_nothing_is_left_of_the_run)
{
    host h;
    begin(&h, returns, &(int){3});
    CHECK_INT(finish(&h), 3);
    CHECK_INT(conc_embed_step(&h.e), -EINVAL);
    CHECK_INT(conc_embed_fd(&h.e), -EINVAL);
    CHECK_INT(conc_embed_end(&h.e), 0);
    CHECK_INT(conc_embed_begin(&h.e, NULL, returns, &(int){4}), 0);
    CHECK_INT(finish(&h), 4);
}

/* ---- misuse ---- */

EMBED_TEST(an_object_that_was_never_begun_is_refused)
{
    conc_embed e = {0};
    CHECK_INT(conc_embed_fd(&e), -EINVAL);
    CHECK_INT(conc_embed_step(&e), -EINVAL);
    CHECK_INT(conc_embed_end(&e), 0);
}

EMBED_TEST(an_invalid_begin_is_refused_and_begins_nothing)
{
    conc_embed e = {0};
    conc_options bad = {.stack_size = 1};
    int fds = test_count_fds();
    CHECK_INT(conc_embed_begin(NULL, NULL, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_embed_begin(&e, NULL, NULL, NULL), -EINVAL);
    CHECK_INT(conc_embed_begin(&e, &bad, must_not_run, NULL), -EINVAL);
    CHECK_INT(conc_embed_step(&e), -EINVAL);
    CHECK_INT(conc_embed_end(&e), 0);
    CHECK(conc_loop_self() == NULL);
    CHECK_INT(test_count_fds(), fds);
}

static int calls_its_own_host(void *arg)
{
    host *h = arg;
    conc_embed other = {0};
    CHECK_INT(conc_embed_step(&h->e), -EPERM);
    CHECK_INT(conc_embed_end(&h->e), -EPERM);
    CHECK_INT(conc_embed_begin(&other, NULL, must_not_run, NULL), -EBUSY);
    CONC_TRY(conc_sleep(0.001));
    CHECK_INT(conc_embed_step(&h->e), -EPERM);
    return 7;
}

EMBED_TEST(a_task_cannot_step_or_end_its_own_loop)
{
    host h;
    begin(&h, calls_its_own_host, &h);
    CHECK_INT(finish(&h), 7);
}

static void call_its_own_host(void *arg)
{
    host *h = arg;
    CHECK(conc_embed_step(&h->e) < 0);
    CHECK(conc_embed_end(&h->e) < 0);
    note("refused");
}

EMBED_TEST(a_posted_function_cannot_step_or_end_its_own_loop)
{
    host h;
    double seconds = 0.01;
    begin(&h, sleeps, &seconds);
    CHECK_INT(conc_post(conc_loop_self(), call_its_own_host, &h), 0);
    CHECK_INT(finish(&h), 5);
    CHECK_STR(noted, "refused");
}

/* Passes the host, whose run continues, to fn. */
static void while_another_thread_calls(void *(*fn)(void *))
{
    host h;
    pthread_t t;
    double seconds = 0.01;
    begin(&h, sleeps, &seconds);
    CHECK_INT(pthread_create(&t, NULL, fn, &h), 0);
    CHECK_INT(pthread_join(t, NULL), 0);
    CHECK_INT(finish(&h), 5);
}

static void *call_from_afar(void *arg)
{
    host *h = arg;
    CHECK_INT(conc_embed_fd(&h->e), -EPERM);
    CHECK(conc_embed_timeout(&h->e) == -EPERM);
    CHECK_INT(conc_embed_step(&h->e), -EPERM);
    CHECK_INT(conc_embed_end(&h->e), -EPERM);
    return NULL;
}

EMBED_TEST(another_thread_cannot_step_or_end_it) { while_another_thread_calls(call_from_afar); }

static void *begin_from_afar(void *arg)
{
    host *h = arg, own;
    conc_options bad = {.stack_size = 1};
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_embed_begin(&h->e, NULL, must_not_run, NULL), -EBUSY);
        CHECK_INT(conc_embed_begin(&h->e, &bad, must_not_run, NULL), -EBUSY);
        CHECK(conc_embed_begin(&h->e, NULL, NULL, NULL) < 0);
        if (i == 0)
            begin(&own, sleeps_forever, NULL);
    }
    CHECK_INT(conc_embed_end(&own.e), -ECANCELED);
    return NULL;
}

EMBED_TEST(an_object_that_another_thread_has_begun_is_not_begun_again)
{
    while_another_thread_calls(begin_from_afar);
}

static void be_a_child(host *h)
{
    double seconds = 0.001;
    conc_embed other = {0};
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_embed_fd(&h->e), -EPERM);
        CHECK(conc_embed_timeout(&h->e) == -EPERM);
        CHECK_INT(conc_embed_step(&h->e), -EPERM);
        CHECK_INT(conc_embed_end(&h->e), -EPERM);
        CHECK(conc_embed_begin(&h->e, NULL, NULL, NULL) < 0);
        if (i == 0)
            CHECK_INT(conc_embed_begin(&other, NULL, sleeps_forever, NULL), 0);
    }
    CHECK_INT(conc_embed_end(&other), -ECANCELED);
    begin(h, sleeps, &seconds);
    CHECK_INT(finish(h), 5);
    CHECK_INT(conc_embed_begin(&h->e, NULL, sleeps, &seconds), 0);
    CHECK_INT(finish(h), 5);
}

EMBED_TEST(in_a_forked_child_the_parents_run_is_refused_and_another_one_begins)
{
    host h;
    double seconds = 0.01;
    int status = -1;
    begin(&h, sleeps, &seconds);
    CHECK_INT(step(&h), 1);
    pid_t pid = fork();
    if (pid == 0) {
        be_a_child(&h);
        _exit(0);
    }
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
    CHECK_INT(finish(&h), 5);
}

static conc_loop *parents_loop; /* so that it is not reported as lost in the child */

/* The inherited run stays in the child's object. */
static void begin_over_the_parents(void)
{
    conc_embed e = {0};
    int status = -1;
    CHECK_INT(conc_embed_begin(&e, NULL, sleeps_forever, NULL), 0);
    parents_loop = conc_loop_self();
    pid_t pid = fork();
    if (pid == 0) {
        CHECK_INT(conc_embed_begin(&e, NULL, returns, &(int){4}), 0);
        while (conc_embed_step(&e) == 1)
            continue;
        _exit(conc_embed_end(&e) == 4 ? 0 : 1);
    }
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
    CHECK_INT(conc_embed_end(&e), -ECANCELED);
}

EMBED_TEST(a_forked_child_begins_a_run_in_its_parents_object)
{
    check_process(begin_over_the_parents);
}

static int begins_inside(void *arg)
{
    conc_embed e = {0};
    (void)arg;
    CHECK_INT(conc_embed_begin(&e, NULL, must_not_run, NULL), -EBUSY);
    CHECK_INT(conc_embed_end(&e), 0);
    return 7;
}

EMBED_TEST(inside_a_run_no_other_run_begins) { CHECK_INT(conc_run(begins_inside, NULL), 7); }

TEST(a_loop_that_waits_with_poll_has_no_descriptor)
{
    conc_embed e = {0};
    int fds = test_count_fds();
    setenv("CONC_POLL", "poll", 1);
    CHECK_INT(conc_embed_begin(&e, NULL, must_not_run, NULL), -ENOTSUP);
    CHECK_INT(conc_embed_step(&e), -EINVAL);
    CHECK_INT(conc_embed_end(&e), 0);
    CHECK(conc_loop_self() == NULL);
    CHECK_INT(test_count_fds(), fds);
    CHECK_INT(conc_run(returns, &(int){3}), 3);
}

/* ---- threads ---- */

static void *host_in_a_thread(void *result)
{
    for (int i = 0; i < 5; i++) {
        CHECK_INT(host_run(waits_for_many, NULL), 6);
        CHECK_INT(host_run(waits_for_a_post, NULL), 3);
    }
    *(int *)result = 1;
    return NULL;
}

EMBED_TEST(hosts_in_two_threads_do_not_interfere)
{
    pthread_t t[2];
    int results[2] = {0};
    for (int i = 0; i < 2; i++)
        CHECK_INT(pthread_create(&t[i], NULL, host_in_a_thread, &results[i]), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(pthread_join(t[i], NULL), 0);
    CHECK_INT(results[0] + results[1], 2);
}

/* Two loops that talk to each other: one in a host, one in its own run. */
static void *run_the_other(void *ends)
{
    CHECK_INT(conc_run(echoes, ends), 0);
    return NULL;
}

static int asks(void *arg)
{
    int *ends = arg;
    for (int i = 0; i < 100; i++) {
        char c = (char)i;
        CHECK_INT(conc_write(ends[1], &c, 1), 1);
        CHECK_INT(conc_read(ends[0], &c, 1), 1);
        CHECK_INT(c, i);
    }
    return 9;
}

EMBED_TEST(a_host_and_a_run_in_another_thread_talk_through_pipes)
{
    pthread_t t;
    int there[2], back[2];
    CHECK_INT(pipe(there) | pipe(back), 0);
    int theirs[] = {there[0], back[1]}, ours[] = {back[0], there[1]};
    CHECK_INT(pthread_create(&t, NULL, run_the_other, theirs), 0);
    CHECK_INT(host_run(asks, ours), 9);
    CHECK_INT(pthread_join(t, NULL), 0);
}
