/* test_post.c - conc_post, conc_loop_hold and conc_loop_release: calls into a loop from elsewhere.
 * Tests that depend on how the loop waits run three times: with its default poller, with poll(2)
 * and with the best one by name.
 *
 * Seeds: 20 (other threads take real time)
 */
#include "conc_test.h"

#include <pthread.h>
#include <sched.h>

/* A test whose body is main_fn of a run on the real clock. */
static void run_real(void (*body)(void), const char *poll)
{
    test_task t = {body};
    unsetenv("CONC_CLOCK");
    if (poll)
        setenv("CONC_POLL", poll, 1);
    int fds = test_count_fds();
    CHECK_INT(conc_run(test_call_body, &t), 0);
    CHECK_INT(test_count_fds(), fds);
}

#define POST_TEST(name)                                                   \
    static void body_of_##name(void);                                     \
    TEST(name) { run_real(body_of_##name, NULL); }                        \
    TEST(name##_with_poll) { run_real(body_of_##name, "poll"); }          \
    TEST(name##_with_the_best) { run_real(body_of_##name, TEST_POLLER); } \
    static void body_of_##name(void)

static void start_thread(pthread_t *t, void *(*fn)(void *), void *arg)
{
    CHECK_INT(pthread_create(t, NULL, fn, arg), 0);
}

static void join_thread(pthread_t t) { CHECK_INT(pthread_join(t, NULL), 0); }

static void pause_for(double s)
{
    struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
}

static void nothing(void *arg) { (void)arg; }

static void note_it(void *word) { note(word); }

static void cancel_scope(void *scope) { conc_scope_cancel(scope); }

/* A thread's orders: wait, post fn(arg), and release its hold on the loop. */
typedef struct poster {
    conc_loop *loop;
    double wait;
    void (*fn)(void *);
    void *arg;
    int posted, released;
} poster;

static void *post_one(void *arg)
{
    poster *p = arg;
    pause_for(p->wait);
    p->posted = conc_post(p->loop, p->fn, p->arg);
    p->released = conc_loop_release(p->loop);
    return NULL;
}

TASK_TEST(posts_run_in_the_order_of_posting)
{
    char words[50][4];
    char expected[200] = "";
    for (int i = 0; i < 50; i++) {
        snprintf(words[i], sizeof words[i], "%d", i);
        snprintf(expected + strlen(expected), sizeof expected - strlen(expected), i ? " %d" : "%d",
                 i);
        CHECK_INT(conc_post(conc_loop_self(), note_it, words[i]), 0);
    }
    CHECK_STR(noted, "");
    CHECK_INT(conc_sleep(0), 0);
    CHECK_STR(noted, expected);
    CHECK_TIME(0);
}

static void post_a_cancel(void *scope)
{
    CHECK_INT(conc_post(conc_loop_self(), cancel_scope, scope), 0);
}

TASK_TEST(the_virtual_clock_waits_for_a_post_that_a_posted_function_made)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_post(conc_loop_self(), post_a_cancel, &s), 0);
    CHECK_INT(conc_sleep(10), -ECANCELED);
    CHECK_TIME(0);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
}

TASK_TEST(a_post_runs_before_a_sleep_of_zero_returns)
{
    bool cancelled = false;
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_post(conc_loop_self(), cancel_scope, &s), 0);
    (void)conc_sleep(0);
    cancelled = conc_cancelled();
    CHECK(cancelled);
    CHECK_INT(conc_scope_end(&s, conc_yield()), 0);
}

static void post_again(void *arg)
{
    int *left = arg;
    if (--*left > 0)
        CHECK_INT(conc_post(conc_loop_self(), post_again, left), 0);
}

static int count_turns(void *arg)
{
    for (int i = 0; i < 100; i++) {
        CONC_TRY(conc_yield());
        ++*(int *)arg;
    }
    return 0;
}

TASK_TEST(a_function_that_posts_itself_starves_no_task)
{
    int left = 1000000, turns = 0;
    CHECK_INT(conc_post(conc_loop_self(), post_again, &left), 0);
    CHECK_INT(count_turns(&turns), 0);
    CHECK_INT(turns, 100);
    CHECK(left > 0);
    left = 1;
    while (left > 0)
        CHECK_INT(conc_yield(), 0);
}

TASK_TEST(tasks_that_are_ready_all_the_time_starve_no_post)
{
    int left = 100, turns = 0;
    CHECK_INT(conc_post(conc_loop_self(), post_again, &left), 0);
    for (; left > 0 && turns < 100000; turns++)
        CHECK_INT(conc_yield(), 0);
    CHECK_INT(left, 0);
}

POST_TEST(a_post_from_a_thread_wakes_a_loop_that_sleeps)
{
    pthread_t t;
    conc_scope s = {0};
    poster p = {conc_loop_self(), 0.02, cancel_scope, &s, 1, 1};
    double start = test_real_seconds();
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_loop_hold(p.loop), 0);
    start_thread(&t, post_one, &p);
    CHECK_INT(conc_sleep(10), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK(test_real_seconds() - start < 5);
    join_thread(t);
    CHECK_INT(p.posted, 0);
    CHECK_INT(p.released, 0);
}

POST_TEST(a_hold_keeps_a_loop_that_waits_for_a_post_from_being_a_deadlock)
{
    pthread_t t;
    conc_scope s = {0};
    poster p = {conc_loop_self(), 0.03, cancel_scope, &s, 1, 1};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_loop_hold(p.loop), 0);
    start_thread(&t, post_one, &p);
    CHECK_INT(conc_sleep(CONC_FOREVER), -ECANCELED);
    CHECK(s.cancel_called);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    join_thread(t);
    CHECK_INT(conc_yield(), 0);
}

enum { THREADS = 8, POSTS = 10000 };

/* Posts from many threads, each with a number and a count. */
typedef struct flood {
    conc_loop *loop;
    int sent, got;
    conc_scope *scope;
    int *all;
} flood;

typedef struct flood_post {
    flood *from;
    int number;
} flood_post;

static void receive(void *arg)
{
    flood_post *p = arg;
    CHECK_INT(p->number, p->from->got);
    p->from->got++;
    if (++*p->from->all == THREADS * POSTS)
        conc_scope_cancel(p->from->scope);
    free(p);
}

static void *send_flood(void *arg)
{
    flood *f = arg;
    for (f->sent = 0; f->sent < POSTS; f->sent++) {
        flood_post *p = malloc(sizeof *p);
        CHECK(p != NULL);
        *p = (flood_post){f, f->sent};
        CHECK_INT(conc_post(f->loop, receive, p), 0);
    }
    CHECK_INT(conc_loop_release(f->loop), 0);
    return NULL;
}

POST_TEST(eighty_thousand_posts_from_eight_threads_all_run_in_their_threads_order)
{
    pthread_t t[THREADS];
    flood f[THREADS];
    conc_scope s = {0};
    int all = 0;
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    for (int i = 0; i < THREADS; i++) {
        f[i] = (flood){conc_loop_self(), 0, 0, &s, &all};
        CHECK_INT(conc_loop_hold(f[i].loop), 0);
        start_thread(&t[i], send_flood, &f[i]);
    }
    CHECK_INT(conc_scope_end(&s, conc_sleep(CONC_FOREVER)), 0);
    CHECK_INT(all, THREADS * POSTS);
    for (int i = 0; i < THREADS; i++) {
        join_thread(t[i]);
        CHECK_INT(f[i].got, POSTS);
    }
}

POST_TEST(a_flood_of_posts_is_accepted_while_the_loop_is_blocked)
{
    /* no task reads meanwhile: a poster must not wait for the loop */
    pthread_t t[THREADS];
    flood f[THREADS];
    conc_scope s = {0};
    int all = 0;
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    for (int i = 0; i < THREADS; i++) {
        f[i] = (flood){conc_loop_self(), 0, 0, &s, &all};
        CHECK_INT(conc_loop_hold(f[i].loop), 0);
        start_thread(&t[i], send_flood, &f[i]);
    }
    for (int i = 0; i < THREADS; i++)
        join_thread(t[i]);
    CHECK_INT(all, 0);
    CHECK_INT(conc_sleep(CONC_FOREVER), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(all, THREADS * POSTS);
}

typedef struct ping {
    conc_loop *loop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int wanted, done;
    conc_scope *scope;
} ping;

static void cancel_ping(void *arg)
{
    ping *p = arg;
    conc_scope_cancel(p->scope);
}

static void *answer_pings(void *arg)
{
    ping *p = arg;
    pthread_mutex_lock(&p->lock);
    while (p->done < 200) {
        while (p->wanted == p->done)
            pthread_cond_wait(&p->changed, &p->lock);
        p->done++;
        CHECK_INT(conc_post(p->loop, cancel_ping, p), 0);
    }
    pthread_mutex_unlock(&p->lock);
    CHECK_INT(conc_loop_release(p->loop), 0);
    return NULL;
}

POST_TEST(two_hundred_wake_ups_one_after_another_are_never_missed)
{
    pthread_t t;
    ping p = {.loop = conc_loop_self()};
    pthread_mutex_init(&p.lock, NULL);
    pthread_cond_init(&p.changed, NULL);
    CHECK_INT(conc_loop_hold(p.loop), 0);
    start_thread(&t, answer_pings, &p);
    for (int i = 0; i < 200; i++) {
        conc_scope s = {0};
        CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
        pthread_mutex_lock(&p.lock);
        p.scope = &s;
        p.wanted++;
        pthread_cond_signal(&p.changed);
        pthread_mutex_unlock(&p.lock);
        CHECK_INT(conc_scope_end(&s, conc_sleep(CONC_FOREVER)), 0);
    }
    join_thread(t);
    pthread_cond_destroy(&p.changed);
    pthread_mutex_destroy(&p.lock);
}

static pthread_t posted_on;

static void note_thread(void *arg)
{
    posted_on = pthread_self();
    CHECK(conc_loop_self() == *(conc_loop **)arg);
    CHECK(conc_self() == NULL);
}

static void *has_no_loop(void *arg)
{
    CHECK(conc_loop_self() == NULL);
    CHECK(conc_self() == NULL);
    CHECK_INT(conc_sleep(0), -EPERM);
    return post_one(arg);
}

POST_TEST(a_post_runs_on_the_thread_of_its_loop_and_in_no_task)
{
    pthread_t t;
    conc_loop *loop = conc_loop_self();
    poster p = {loop, 0, note_thread, &loop, 1, 1};
    CHECK(loop != NULL);
    CHECK_INT(conc_loop_hold(loop), 0);
    start_thread(&t, has_no_loop, &p);
    join_thread(t);
    CHECK_INT(conc_sleep(0), 0);
    CHECK(pthread_equal(posted_on, pthread_self()));
}

static conc_task cancelled_from_afar;

static void cancel_from_afar(void *arg)
{
    (void)arg;
    CHECK_INT(conc_cancel(&cancelled_from_afar), 0);
}

static int sleep_and_note_thread(void *arg)
{
    int rc = conc_sleep(CONC_FOREVER);
    *(pthread_t *)arg = pthread_self();
    return rc;
}

POST_TEST(a_thread_cancels_a_task_through_a_post_and_it_cleans_up_on_its_own_thread)
{
    pthread_t t, cleaned_on;
    int rc = 0;
    conc_group g = {0};
    poster p = {conc_loop_self(), 0.01, cancel_from_afar, NULL, 1, 1};
    CHECK_INT(conc_spawn_task(&g, &cancelled_from_afar, sleep_and_note_thread, &cleaned_on), 0);
    CHECK_INT(conc_loop_hold(p.loop), 0);
    start_thread(&t, post_one, &p);
    CHECK_INT(conc_join(&cancelled_from_afar, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
    CHECK(pthread_equal(cleaned_on, pthread_self()));
    CHECK_INT(conc_group_wait(&g), 0);
    join_thread(t);
}

/* Every call that waits, made in a posted function; g is open and has a child, gen has items. */
static conc_group post_group;
static conc_task post_child;
static conc_gen post_gen;
static bool post_ran;

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int must_not_run(void *arg)
{
    test_fail(__FILE__, __LINE__, "this must not run");
    return arg != NULL;
}

static int emit_forever(conc_gen *g, void *arg)
{
    (void)arg;
    for (int i = 0;; i++)
        CONC_TRY(conc_gen_emit(g, &i));
}

static void try_all_that_waits(void *arg)
{
    int item, *int_arg = arg;
    conc_task *next;
    conc_group unopened = {0};
    conc_scope s = {0};
    conc_call call[] = {CONC_CALL(must_not_run, NULL)};
    CHECK(conc_self() == NULL);
    CHECK_INT(conc_sleep(0), -EPERM);
    CHECK_INT(conc_sleep(1), -EPERM);
    CHECK_INT(conc_sleep_until(0), -EPERM);
    CHECK_INT(conc_yield(), -EPERM);
    CHECK_INT(conc_settle(), -EPERM);
    CHECK_INT(conc_join(&post_child, NULL), -EPERM);
    CHECK_INT(conc_group_wait(&post_group), -EPERM);
    CHECK_INT(conc_group_end(&post_group, 0), -EPERM);
    CHECK_INT(conc_group_next(&post_group, &next), -EPERM);
    CHECK_INT(conc_start(&post_group, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_gather(call, 1), -EPERM);
    CHECK_INT(conc_gather_all(call, 1), -EPERM);
    CHECK_INT(conc_map(must_not_run, int_arg, 1, 0), -EPERM);
    CHECK_INT(conc_map_all(must_not_run, int_arg, 1, 0, NULL), -EPERM);
    CHECK_INT(conc_timeout(1, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_shield(1, must_not_run, NULL), -EPERM);
    CHECK_INT(conc_scope_begin(&s, 1), -EPERM);
    CHECK_INT(conc_group_begin(&unopened), -EPERM);
    CHECK_INT(conc_gen_next(&post_gen, &item), -EPERM);
    CHECK(conc_started(1) < 0);
    CHECK(!conc_cancelled());
    CHECK(conc_deadline() == CONC_FOREVER);
    CHECK_INT(conc_run(must_not_run, NULL), -EBUSY);
    post_ran = true;
}

TASK_TEST(in_a_posted_function_nothing_waits)
{
    int item, arg = 0;
    CHECK_INT(conc_gen_open(&post_gen, emit_forever, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&post_gen, &item), 1);
    CHECK_INT(conc_spawn_task(&post_group, &post_child, sleep_forever, NULL), 0);
    CHECK_INT(conc_post(conc_loop_self(), try_all_that_waits, &arg), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(post_ran);
    CHECK_INT(conc_gen_next(&post_gen, &item), 1);
    CHECK_INT(item, 1);
    CHECK_INT(conc_gen_close(&post_gen), 0);
    conc_group_cancel(&post_group);
    CHECK_INT(conc_group_wait(&post_group), 0);
}

static int note_task(void *word)
{
    CONC_TRY(conc_sleep(1));
    note(word);
    return 0;
}

static void spawn_posted(void *arg)
{
    (void)arg;
    CHECK_INT(conc_spawn(&post_group, note_task, "group"), 0);
    CHECK_INT(conc_spawn(NULL, note_task, "background"), 0);
    CHECK_INT(conc_spawn_task(&post_group, &post_child, note_task, "handle"), 0);
}

ORDERED_TASK_TEST(a_posted_function_spawns_into_an_open_group_and_the_background)
{
    CHECK_INT(conc_group_begin(&post_group), 0);
    CHECK_INT(conc_post(conc_loop_self(), spawn_posted, NULL), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(conc_group_wait(&post_group), 0);
    CHECK_STR(noted, "group background handle");
    CHECK(conc_done(&post_child));
}

static int post_and_leave(void *loop)
{
    static char word[] = "late";
    *(conc_loop **)loop = conc_loop_self();
    CHECK_INT(conc_loop_hold(conc_loop_self()), 0);
    return conc_post(conc_loop_self(), note_it, word);
}

TEST(an_accepted_post_runs_although_main_returned_and_later_ones_are_refused)
{
    conc_loop *loop = NULL;
    CHECK_INT(conc_run(post_and_leave, &loop), 0);
    CHECK_STR(noted, "late");
    CHECK(loop != NULL);
    CHECK_INT(conc_post(loop, note_it, "never"), -ESHUTDOWN);
    CHECK_INT(conc_post(loop, NULL, NULL), -EINVAL);
    CHECK_STR(noted, "late");
    CHECK_INT(conc_loop_hold(loop), 0);
    CHECK_INT(conc_loop_release(loop), 0);
    CHECK_INT(conc_post(loop, note_it, "never"), -ESHUTDOWN);
    CHECK_INT(conc_loop_release(loop), 0);
    CHECK_STR(noted, "late");
}

typedef struct late_poster {
    conc_loop *loop;
    long accepted, ran, refused;
} late_poster;

static void count_ran(void *arg) { ++*(long *)arg; }

static void *post_until_refused(void *arg)
{
    late_poster *p = arg;
    int rc;
    while ((rc = conc_post(p->loop, count_ran, &p->ran)) == 0) {
        if (++p->accepted % 64 == 0)
            pause_for(0.0001);
    }
    CHECK_INT(rc, -ESHUTDOWN);
    p->refused = rc;
    CHECK_INT(conc_loop_release(p->loop), 0);
    return NULL;
}

static int leave_while_posted_to(void *arg)
{
    pthread_t *t = arg;
    static late_poster p[4];
    for (int i = 0; i < 4; i++) {
        p[i].loop = conc_loop_self();
        CHECK_INT(conc_loop_hold(p[i].loop), 0);
        start_thread(&t[i], post_until_refused, &p[i]);
    }
    *(late_poster **)(t + 4) = p;
    return conc_sleep(0.02);
}

TEST(exactly_the_accepted_posts_run_if_they_race_with_the_end_of_the_run)
{
    struct {
        pthread_t t[4];
        late_poster *p;
    } all;
    CHECK(sizeof all == 4 * sizeof(pthread_t) + sizeof(late_poster *));
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(leave_while_posted_to, &all), 0);
    for (int i = 0; i < 4; i++) {
        join_thread(all.t[i]);
        CHECK_INT(all.p[i].refused, -ESHUTDOWN);
        CHECK_INT(all.p[i].ran, all.p[i].accepted);
    }
}

TASK_TEST(holds_are_counted)
{
    conc_stats s;
    conc_loop *loop = conc_loop_self();
    CHECK_INT(conc_loop_release(loop), -EINVAL);
    for (int i = 1; i <= 3; i++) {
        CHECK_INT(conc_loop_hold(loop), 0);
        conc_get_stats(&s);
        CHECK_INT(s.holds, i);
    }
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_loop_release(loop), 0);
    CHECK_INT(conc_loop_release(loop), -EINVAL);
    conc_get_stats(&s);
    CHECK_INT(s.holds, 0);
}

static void *release_after(void *loop)
{
    pause_for(0.02);
    CHECK_INT(conc_loop_release(loop), 0);
    return NULL;
}

static int wait_held(void *arg)
{
    CHECK_INT(conc_loop_hold(conc_loop_self()), 0);
    start_thread(arg, release_after, conc_loop_self());
    return conc_sleep(CONC_FOREVER);
}

static void wait_until_released(void)
{
    pthread_t t;
    double start = test_real_seconds();
    CHECK_INT(conc_run(wait_held, &t), -EDEADLK);
    CHECK(test_real_seconds() - start >= 0.015);
    join_thread(t);
}

TEST(a_loop_that_still_waits_forever_when_the_last_hold_is_released_is_deadlocked)
{
    static char text[16384];
    CHECK_INT(test_in_process(wait_until_released, text, sizeof text), 0);
    CHECK(text[0] != 0);
}

/* A release and the loop's sleep, each after a few idle iterations, so that they meet at every
 * point. */
typedef struct meeting {
    pthread_t thread;
    conc_loop *loop;
    int turns_of_thread, turns_of_loop;
    _Atomic bool started;
} meeting;

static void turn(int n)
{
    for (volatile int i = 0; i < n; i++)
        continue;
}

static void *release_after_turns(void *arg)
{
    meeting *m = arg;
    m->started = true;
    turn(m->turns_of_thread);
    CHECK_INT(conc_loop_release(m->loop), 0);
    return NULL;
}

static int sleep_after_turns(void *arg)
{
    meeting *m = arg;
    m->loop = conc_loop_self();
    CHECK_INT(conc_loop_hold(m->loop), 0);
    start_thread(&m->thread, release_after_turns, m);
    while (!m->started)
        sched_yield();
    turn(m->turns_of_loop);
    return conc_sleep(CONC_FOREVER);
}

TEST(a_last_release_while_the_loop_goes_to_sleep_is_never_missed)
{
    int err = dup(2), null = open("/dev/null", O_WRONLY), other = 0;
    CHECK(err >= 0 && null >= 0);
    unsetenv("CONC_CLOCK");
    dup2(null, 2);
    for (int i = 0; i < (test_seeded() ? 100 : 1000); i++) {
        meeting m = {.turns_of_thread = i * 37 % 3001, .turns_of_loop = i * 53 % 1009};
        other += conc_run(sleep_after_turns, &m) != -EDEADLK;
        pthread_join(m.thread, NULL);
    }
    dup2(err, 2);
    close(err);
    close(null);
    CHECK_INT(other, 0);
}

TASK_TEST(a_post_to_no_loop_or_of_no_function_is_refused)
{
    CHECK_INT(conc_post(NULL, nothing, NULL), -EINVAL);
    CHECK_INT(conc_post(conc_loop_self(), NULL, NULL), -EINVAL);
    CHECK_INT(conc_loop_hold(NULL), -EINVAL);
    CHECK_INT(conc_loop_release(NULL), -EINVAL);
}

TEST(an_unknown_poller_fails_the_run)
{
    setenv("CONC_POLL", "telepathy", 1);
    CHECK_INT(conc_run(must_not_run, NULL), -EINVAL);
}

static int run_other_loop(void *arg)
{
    conc_loop *other = *(conc_loop **)arg;
    CHECK(conc_loop_self() != other);
    CHECK_INT(conc_sleep(0.001), 0);
    return 6;
}

static void *run_in_thread(void *arg)
{
    CHECK_INT(conc_run(run_other_loop, arg), 6);
    return NULL;
}

POST_TEST(runs_in_several_threads_at_once_do_not_interfere)
{
    pthread_t t[4];
    conc_loop *loop = conc_loop_self();
    for (int i = 0; i < 4; i++)
        start_thread(&t[i], run_in_thread, &loop);
    CHECK_INT(conc_sleep(0.01), 0);
    for (int i = 0; i < 4; i++)
        join_thread(t[i]);
    CHECK(conc_loop_self() == loop);
}
