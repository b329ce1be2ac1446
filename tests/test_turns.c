/* test_turns.c - how many steps, or posted functions, run before the loop checks timers,
 * descriptors, posts and signals: few if they are slow, and never all of a flood.
 *
 * Seeds: 20 (slow steps take real time) */
#include "conc_test.h"

#include <poll.h>
#include <pthread.h>

/* ---- floods of posted functions */

typedef struct flood {
    conc_loop *loop;
    void (*other)(void *); /* a post posts this function next */
    int left, after;       /* posts to come; how many ran since the awaited event */
    int ends[2];
    bool there, over;
} flood;

static flood now;

enum { LEAST = 10, MANY = 200000, BOUND = 20000 };

static void post_next(void (*fn)(void *))
{
    if (now.left-- > 0 && !now.over && fn)
        CHECK_INT(conc_post(now.loop, fn, NULL), 0);
    if (now.there)
        now.after++;
}

static void ping(void *arg)
{
    (void)arg;
    if (now.left == MANY - LEAST) {
        CHECK_INT(write(now.ends[1], "x", 1), 1);
        raise(SIGUSR1);
        now.there = true;
    }
    post_next(now.other);
}

static void pong(void *arg)
{
    (void)arg;
    post_next(ping);
}

static void post_all(void)
{
    now.left = MANY;
    for (int i = 0; i < MANY; i++)
        CHECK_INT(conc_post(now.loop, ping, NULL), 0);
}

static void *flood_from_a_thread(void *arg)
{
    for (int i = 0; i < MANY; i++)
        if (conc_post(now.loop, ping, NULL))
            break; /* the run is over */
    CHECK_INT(conc_loop_release(now.loop), 0);
    return arg;
}

static int wait_for_a_byte(void)
{
    char c;
    return (int)conc_read(now.ends[0], &c, 1);
}

static int wait_for_a_signal(void) { return conc_wait_signal(SIGUSR1) == SIGUSR1 ? 1 : -EIO; }

static int wait_for_a_timer(void) { return conc_sleep(0.001) == 0 ? 1 : -EIO; }

static int wait_until_all_wait(void) { return conc_settle() == 0 ? 1 : -EIO; }

static int (*wait_for_it)(void);

static int wait_in_a_flood(void *arg)
{
    int rc = wait_for_it();
    now.over = true;
    (void)arg;
    return rc;
}

static int begin_flood(void *arg)
{
    now.loop = conc_loop_self();
    now.left = MANY;
    CHECK_INT(conc_post(now.loop, ping, NULL), 0);
    return wait_in_a_flood(arg);
}

static void host(const conc_options *o)
{
    conc_embed e = {0};
    CHECK_INT(conc_embed_begin(&e, o, begin_flood, NULL), 0);
    while (conc_embed_step(&e) == 1) {
        struct pollfd p = {conc_embed_fd(&e), POLLIN, 0};
        double wait = conc_embed_timeout(&e);
        poll(&p, 1, wait > 1 ? 1000 : (int)(wait * 1000 + 0.999));
    }
    CHECK_INT(conc_embed_end(&e), 1);
}

static void check_flood(int (*waiting)(void), void (*other)(void *), bool is_virtual, bool embedded)
{
    conc_options o = {.virtual_clock = is_virtual};
    signal(SIGUSR1, SIG_IGN);
    memset(&now, 0, sizeof now);
    now.other = other;
    wait_for_it = waiting;
    CHECK_INT(pipe(now.ends), 0);
    if (embedded)
        host(&o);
    else
        CHECK_INT(conc_run_with(&o, begin_flood, NULL), 1);
    CHECK(now.left > 0);
    close(now.ends[0]);
    close(now.ends[1]);
}

static void check_floods(bool is_virtual, bool embedded)
{
    int (*waits[])(void) = {wait_for_a_byte, wait_for_a_signal, wait_for_a_timer,
                            wait_until_all_wait};
    unsetenv("CONC_CLOCK");
    for (size_t i = 0; i < CONC_LEN(waits); i++) {
        check_flood(waits[i], ping, is_virtual, embedded);
        check_flood(waits[i], pong, is_virtual, embedded);
    }
}

TEST(posts_that_post_themselves_or_each_other_keep_nothing_waiting) { check_floods(false, false); }

TEST(posts_keep_nothing_waiting_on_the_virtual_clock) { check_floods(true, false); }

static bool embeds(void)
{
    const char *poll_by = getenv("CONC_POLL");
    return !TEST_ONLY_POLL && (!poll_by || strcmp(poll_by, "poll") != 0);
}

TEST(posts_keep_nothing_waiting_in_a_hosts_loop)
{
    if (!embeds())
        return;
    check_floods(false, true);
    check_floods(true, true);
}

static int wait_behind_a_list(void *arg)
{
    now.loop = conc_loop_self();
    post_all();
    CHECK_INT(wait_in_a_flood(arg), 1);
    CHECK(now.after < BOUND);
    return 0;
}

TEST(a_long_list_of_posts_is_run_in_parts)
{
    for (int is_virtual = 0; is_virtual < 2; is_virtual++) {
        conc_options o = {.virtual_clock = is_virtual};
        memset(&now, 0, sizeof now);
        CHECK_INT(pipe(now.ends), 0);
        wait_for_it = wait_for_a_byte;
        signal(SIGUSR1, SIG_IGN);
        CHECK_INT(conc_run_with(&o, wait_behind_a_list, NULL), 0);
    }
}

static int wait_beside_a_thread(void *arg)
{
    now.loop = conc_loop_self();
    now.left = MANY;
    CHECK_INT(conc_loop_hold(now.loop), 0);
    CHECK_INT(pthread_create(arg, NULL, flood_from_a_thread, NULL), 0);
    return wait_in_a_flood(NULL);
}

TEST(posts_of_another_thread_keep_no_descriptor_waiting)
{
    pthread_t t;
    conc_options o = {.virtual_clock = false};
    now.other = ping;
    wait_for_it = wait_for_a_byte;
    signal(SIGUSR1, SIG_IGN);
    CHECK_INT(pipe(now.ends), 0);
    CHECK_INT(conc_run_with(&o, wait_beside_a_thread, &t), 1);
    pthread_join(t, NULL);
}

/* The order, across the parts of a list. */
static int last_seen;

static void in_order(void *number)
{
    CHECK_INT((int)(intptr_t)number, last_seen + 1);
    last_seen++;
    if (last_seen <= 300) /* refused once main has ended */
        (void)conc_post(conc_loop_self(), in_order, (void *)(intptr_t)(1000 + last_seen));
}

static int post_a_thousand(void *arg)
{
    for (intptr_t i = 1; i <= 1000; i++)
        CHECK_INT(conc_post(conc_loop_self(), in_order, (void *)i), 0);
    return arg ? conc_yield() : 0;
}

TEST(parts_of_a_list_run_in_the_order_of_posting)
{
    for (int wait = 0; wait < 2; wait++) {
        last_seen = 0;
        CHECK_INT(conc_run(post_a_thousand, wait ? &wait : NULL), 0);
        CHECK(last_seen >= 1000);
    }
}

static void fails_again(const conc_failure *f, void *user)
{
    (void)f, (void)user;
    post_next(ping);
}

static int fails(void *arg)
{
    (void)arg;
    return -EIO;
}

static void spawn_failing(void *arg)
{
    (void)arg;
    int rc = conc_spawn(NULL, fails, NULL);
    CHECK(rc == 0 || rc == -ECANCELED); /* cancelled: the run is ending */
}

TEST(a_hook_that_posts_keeps_no_descriptor_waiting)
{
    conc_options o = {.on_error = fails_again};
    memset(&now, 0, sizeof now);
    now.other = spawn_failing;
    wait_for_it = wait_for_a_byte;
    signal(SIGUSR1, SIG_IGN);
    CHECK_INT(pipe(now.ends), 0);
    CHECK_INT(write(now.ends[1], "x", 1), 1);
    CHECK_INT(conc_run_with(&o, begin_flood, NULL), 1);
}

/* ---- slow steps */

static double step_time;
static bool by_clock, stop;     /* steps block the loop with conc_block; they end */
static int steps, begun, limit; /* steps so far; at the event; the step that causes it */
static double deadline;         /* the timer's; 0: none */

static void hold(double s)
{
    double until = test_real_seconds() + s;
    if (by_clock)
        CHECK_INT(conc_block(s), 0);
    else
        while (test_real_seconds() < until) {
        }
}

static void make_it_be_there(void)
{
    CHECK_INT(write(now.ends[1], "x", 1), 1);
    raise(SIGUSR1);
    begun = steps;
}

static int slow_steps(void *arg)
{
    (void)arg;
    while (!stop) {
        if (deadline > 0 && !begun && conc_now() >= deadline)
            begun = steps;
        hold(step_time);
        steps++;
        if (steps == limit)
            make_it_be_there();
        if (conc_yield())
            break;
    }
    return 0;
}

static void stop_it(void *arg)
{
    *(int *)arg = steps;
    stop = true;
}

static int wait_beside_slow_steps(int (*waiting)(void))
{
    conc_group g = {0};
    stop = false;
    steps = begun = 0;
    CHECK_INT(conc_spawn(&g, slow_steps, NULL), 0);
    CHECK_INT(conc_spawn(&g, slow_steps, NULL), 0);
    CHECK_INT(waiting(), 1);
    int late = steps - begun;
    stop = true;
    CHECK_INT(conc_group_wait(&g), 0);
    /* the one that ran, the others that were ready before */
    if (late > 5)
        test_fail(__FILE__, __LINE__, "%d steps of %g s ran meanwhile", late, step_time);
    return 0;
}

static int wait_for_a_deadline(void)
{
    deadline = conc_now() + 0.01;
    int rc = conc_sleep_until(deadline);
    deadline = 0;
    return rc == 0 ? 1 : rc;
}

static int wait_beside_all_kinds(void *arg)
{
    limit = 0;
    for (int i = 0; i < (test_seeded() ? 0 : 3); i++)
        (void)wait_beside_slow_steps(wait_for_a_deadline);
    for (int i = 0; i < 3; i++) {
        limit = 10 + 7 * i;
        (void)wait_beside_slow_steps(wait_for_a_byte);
        if (test_seeded())
            break; /* the order of tasks is random then, but not when the loop polls */
        (void)wait_beside_slow_steps(wait_for_a_signal);
    }
    (void)arg;
    return 1;
}

static void run_slow_steps(bool is_virtual, bool blocks, bool debug)
{
    conc_options o = {.virtual_clock = is_virtual, .debug = debug, .slow_step = 10};
    step_time = 0.003;
    by_clock = blocks;
    signal(SIGUSR1, SIG_IGN);
    unsetenv("CONC_CLOCK");
    CHECK_INT(pipe(now.ends), 0);
    CHECK_INT(conc_run_with(&o, wait_beside_all_kinds, NULL), 1);
}

ORDERED_TEST(a_timer_descriptor_or_signal_waits_for_few_slow_steps)
{
    run_slow_steps(false, false, false);
}

ORDERED_TEST(a_timer_waits_for_few_steps_that_block_the_virtual_clock)
{
    run_slow_steps(true, true, false);
}

ORDERED_TEST(a_timer_waits_for_few_steps_that_block_the_real_clock)
{
    run_slow_steps(false, true, false);
}

static int ran_after;

static int post_beside_slow_steps(void *arg)
{
    conc_group g = {0};
    step_time = 0.002;
    CHECK_INT(conc_spawn(&g, slow_steps, NULL), 0);
    CHECK_INT(conc_spawn(&g, slow_steps, NULL), 0);
    for (int i = 0; i < 20; i++)
        CHECK_INT(conc_yield(), 0);
    int at = steps;
    CHECK_INT(conc_post(conc_loop_self(), stop_it, &ran_after), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    (void)arg;
    return ran_after - at <= 3 ? 0 : -EIO;
}

ORDERED_TEST(a_post_waits_for_few_slow_steps)
{
    for (int is_virtual = 0; is_virtual < 2; is_virtual++) {
        conc_options o = {.virtual_clock = is_virtual};
        by_clock = is_virtual;
        stop = false;
        CHECK_INT(conc_run_with(&o, post_beside_slow_steps, NULL), 0);
    }
}

/* A host gets its turn after a slow step. */
ORDERED_TEST(a_host_waits_for_few_slow_steps)
{
    conc_embed e = {0};
    conc_options o = {.virtual_clock = false};
    if (!embeds())
        return;
    step_time = 0.002;
    by_clock = stop = false;
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_embed_begin(&e, &o, slow_steps, NULL), 0);
    for (int i = 0; i < 20; i++) {
        int before = steps;
        CHECK_INT(conc_embed_step(&e), 1);
        CHECK(steps - before <= 2);
    }
    stop = true;
    CHECK_INT(conc_embed_end(&e), 0);
}

/* Checkpoints that need not wait, with slow code between them. */
static int count_up(conc_gen *g, void *arg)
{
    for (int *i = arg;; ++*i)
        CONC_TRY(conc_gen_emit(g, i));
}

static int slow_items(void *arg)
{
    int i = 0, item;
    conc_gen g = {0};
    (void)arg;
    CHECK_INT(conc_gen_open(&g, count_up, &i, sizeof item), 0);
    while (!stop) {
        if (deadline > 0 && !begun && test_real_seconds() >= deadline)
            begun = steps;
        hold(step_time);
        steps++;
        CHECK_INT(conc_gen_next(&g, &item), 1);
    }
    return conc_gen_close(&g);
}

static int wait_beside_slow_items(void *arg)
{
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_spawn(&g, slow_items, NULL), 0);
    CHECK_INT(conc_spawn(&g, slow_items, NULL), 0);
    for (int i = 0; i < 3; i++) {
        begun = 0;
        CHECK_INT(wait_for_a_deadline(), 1);
        CHECK(i == 0 || steps - begun <= 8);
    }
    stop = true;
    return conc_group_wait(&g);
}

ORDERED_TEST(a_timer_waits_for_few_slow_checkpoints_that_need_not_wait)
{
    conc_options o = {.virtual_clock = false};
    step_time = 0.002;
    by_clock = stop = false;
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run_with(&o, wait_beside_slow_items, NULL), 0);
}

/* Many quick steps run between two polls, however the run began. */
static int yield_often(void *arg)
{
    conc_stats before, after;
    (void)arg;
    for (int i = 0; i < 10000; i++)
        CHECK_INT(conc_yield(), 0);
    conc_get_stats(&before);
    for (int i = 0; i < 10000; i++)
        CHECK_INT(conc_yield(), 0);
    conc_get_stats(&after);
    return (int)(after.passes - before.passes);
}

static int yield_both(void *arg)
{
    conc_group g = {0};
    conc_task a = {0}, b = {0};
    int passes = 0;
    (void)arg;
    CHECK_INT(conc_spawn_task(&g, &a, yield_often, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, &b, yield_often, NULL), 0);
    CHECK_INT(conc_join(&a, &passes), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    return passes;
}

ORDERED_TEST(quick_steps_run_in_large_batches)
{
    conc_options o = {.virtual_clock = true};
    int passes = conc_run_with(&o, yield_both, NULL);
    if (getenv("CONC_DEBUG") || getenv("CONC_TRACE"))
        return;
    CHECK(passes > 0 && passes <= 20000 / 32);
}
