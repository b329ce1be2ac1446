/* test_signals.c - conc_signals_* and conc_wait_signal: signals that tasks receive, and how
 * everything is restored.
 *
 * Seeds: 5 (real signals take real time)
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#include "conc_test.h"

#include <pthread.h>
#include <sched.h>

#if defined __SANITIZE_THREAD__
#define THREAD_SANITIZER true
#elif defined __has_feature
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER true
#endif
#endif
#ifndef THREAD_SANITIZER
#define THREAD_SANITIZER false
#endif

#if defined __SANITIZE_ADDRESS__
#define SANITIZED true
#elif defined __has_feature
#if __has_feature(address_sanitizer)
#define SANITIZED true
#endif
#endif
#ifndef SANITIZED
#define SANITIZED THREAD_SANITIZER
#endif

enum { LAST_SIGNAL = 64, SMALLEST_STACK = 16384, STORM = SANITIZED ? 1000 : 10000 };

/* ---- parts of the tests ---- */

static _Atomic int handled[LAST_SIGNAL + 1];

static void count_it(int number) { handled[number]++; }

static void install(int number, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    CHECK_INT(sigaction(number, &action, NULL), 0);
}

static bool is_blocked(int number)
{
    sigset_t mask;
    CHECK_INT(pthread_sigmask(SIG_BLOCK, NULL, &mask), 0);
    return sigismember(&mask, number) == 1;
}

static bool is_pending(int number)
{
    sigset_t set;
    CHECK_INT(sigpending(&set), 0);
    return sigismember(&set, number) == 1;
}

static void change_mask(int how, int number)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    CHECK_INT(pthread_sigmask(how, &set, NULL), 0);
}

/* The action of each signal, and this thread's mask. */
typedef struct dispositions {
    struct sigaction of[LAST_SIGNAL + 1];
    sigset_t mask;
} dispositions;

static void look_around(dispositions *d)
{
    memset(d, 0, sizeof *d);
    for (int n = 1; n <= LAST_SIGNAL; n++)
        sigaction(n, NULL, &d->of[n]); /* fails for those that libc reserves */
    CHECK_INT(pthread_sigmask(SIG_BLOCK, NULL, &d->mask), 0);
}

static bool same_set(const sigset_t *a, const sigset_t *b)
{
    for (int n = 1; n <= LAST_SIGNAL; n++)
        if (sigismember(a, n) != sigismember(b, n))
            return false;
    return true;
}

static bool same_action(const struct sigaction *a, const struct sigaction *b)
{
    /* flags that a program can set; libc adds its own to each action */
    int flags = SA_NOCLDSTOP | SA_NOCLDWAIT | SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_NODEFER |
                (int)SA_RESETHAND;
    if ((a->sa_flags & flags) != (b->sa_flags & flags))
        return false;
    if (a->sa_flags & SA_SIGINFO)
        return a->sa_sigaction == b->sa_sigaction && same_set(&a->sa_mask, &b->sa_mask);
    /* so its mask, if any, means nothing */
    bool no_handler = a->sa_handler == SIG_DFL || a->sa_handler == SIG_IGN;
    return a->sa_handler == b->sa_handler && (no_handler || same_set(&a->sa_mask, &b->sa_mask));
}

static void check_unchanged_since(const dispositions *before)
{
    dispositions now;
    look_around(&now);
    for (int n = 1; n <= LAST_SIGNAL; n++)
        if (!same_action(&before->of[n], &now.of[n]))
            test_fail(__FILE__, __LINE__, "the disposition of signal %d has changed", n);
    CHECK(same_set(&before->mask, &now.mask));
}

static void open_for(conc_signals *s, int number)
{
    CHECK_INT(conc_signals_open(s, &number, 1), 0);
}

static void open_for_both(conc_signals *s)
{
    int numbers[] = {SIGUSR1, SIGUSR2};
    CHECK_INT(conc_signals_open(s, numbers, 2), 0);
}

static void close_it(conc_signals *s) { CHECK_INT(conc_signals_close(s), 0); }

static int next_of(void *s) { return conc_signals_next(s); }

/* The next signal, or -ETIMEDOUT if none arrived. Call it on the virtual clock, where that takes no
 * time. */
static int next_if_any(conc_signals *s) { return conc_timeout(1, next_of, s); }

static void pause_for(double s)
{
    struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
}

/* A child process that runs fn(arg), and must exit with status 0. */
static pid_t start_process(void (*fn)(int), int arg)
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        fn(arg);
        fflush(NULL);
        _exit(0);
    }
    return child;
}

static int status_of(pid_t child)
{
    int status = -1;
    while (waitpid(child, &status, 0) < 0)
        CHECK_INT(errno, EINTR);
    return status;
}

static void in_process(void (*fn)(int), int arg)
{
    CHECK_INT(status_of(start_process(fn, arg)), 0);
}

static void check_process(void (*fn)(void))
{
    static char text[16384];
    int status = test_in_process(fn, text, sizeof text);
    if (status)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, text);
}

static void kill_parent(int number) { CHECK_INT(kill(getppid(), number), 0); }

/* Most likely not before the parent's loop sleeps; the result does not depend on it. */
static void kill_parent_soon(int number)
{
    pause_for(0.03);
    kill_parent(number);
}

static void *raise_here(void *number)
{
    CHECK_INT(raise(*(int *)number), 0);
    return NULL;
}

static void *raise_here_soon(void *number)
{
    pause_for(0.03);
    return raise_here(number);
}

static void start_thread(pthread_t *t, void *(*fn)(void *), void *arg)
{
    CHECK_INT(pthread_create(t, NULL, fn, arg), 0);
}

static void join_thread(pthread_t t) { CHECK_INT(pthread_join(t, NULL), 0); }

static void in_thread(void *(*fn)(void *), void *arg)
{
    pthread_t t;
    start_thread(&t, fn, arg);
    join_thread(t);
}

/* A task that waits for one signal. */
typedef struct receiver {
    conc_signals *from;
    int got;
    conc_task task;
} receiver;

static int receive_one(void *arg)
{
    receiver *r = arg;
    r->got = conc_signals_next(r->from);
    return 0;
}

static void start_receiver(conc_group *g, receiver *r, conc_signals *from)
{
    *r = (receiver){.from = from};
    CHECK_INT(conc_spawn_task(g, &r->task, receive_one, r), 0);
}

/* main_fn of a run on the real clock, of one with each way of waiting, and of one on the virtual
 * clock. */
static void run_body(void (*body)(void), const char *poll, const char *clock)
{
    test_task t = {body};
    dispositions before;
    setenv("CONC_CLOCK", clock, 1);
    if (poll)
        setenv("CONC_POLL", poll, 1);
    look_around(&before);
    int fds = test_count_fds();
    CHECK_INT(conc_run(test_call_body, &t), 0);
    CHECK_INT(test_count_fds(), fds);
    check_unchanged_since(&before);
}

#define LOOP_TEST(name)                                                                   \
    static void body_of_##name(void);                                                     \
    TEST(name) { run_body(body_of_##name, NULL, "real"); }                                \
    VARIANT_TEST(name##_with_poll) { run_body(body_of_##name, "poll", "real"); }          \
    VARIANT_TEST(name##_with_the_best) { run_body(body_of_##name, TEST_POLLER, "real"); } \
    TEST(name##_on_the_virtual_clock) { run_body(body_of_##name, NULL, "virtual"); }      \
    static void body_of_##name(void)

/* ThreadSanitizer holds a signal until the interrupted task calls into libc, and loses it if the
 * task never does. */
#define STORM_TEST(name)                                                          \
    static void body_of_##name(void);                                             \
    static void test_run_##name(void) { run_body(body_of_##name, NULL, "real"); } \
    __attribute__((constructor)) static void test_add_##name(void)                \
    {                                                                             \
        static test_case t = {#name, test_run_##name, NULL};                      \
        if (!THREAD_SANITIZER)                                                    \
            test_add(&t, false);                                                  \
    }                                                                             \
    static void body_of_##name(void)

#define REAL_TEST(name)                                    \
    static void body_of_##name(void);                      \
    TEST(name) { run_body(body_of_##name, NULL, "real"); } \
    static void body_of_##name(void)

/* ---- receiving ---- */

TASK_TEST(a_signal_raised_between_the_opening_and_the_first_next_is_received)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    CHECK_TIME(0);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    close_it(&s);
}

TASK_TEST(a_signal_that_another_thread_raised_before_the_first_next_is_received)
{
    conc_signals s = {0};
    int number = SIGUSR1;
    open_for(&s, SIGUSR1);
    in_thread(raise_here, &number);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    CHECK_TIME(0);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    close_it(&s);
}

TASK_TEST(a_signal_that_another_process_sent_before_the_first_next_is_received)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    in_process(kill_parent, SIGUSR1);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    close_it(&s);
}

TASK_TEST(a_task_that_waits_is_woken_by_a_signal_that_another_raises)
{
    conc_signals s = {0};
    conc_group g = {0};
    receiver r;
    open_for(&s, SIGUSR1);
    start_receiver(&g, &r, &s);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(r.got, 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(r.got, SIGUSR1);
    CHECK_INT(conc_group_wait(&g), 0);
    close_it(&s);
}

TASK_TEST(the_virtual_clock_does_not_jump_over_a_signal_that_came)
{
    conc_signals s = {0};
    conc_group g = {0};
    receiver r;
    open_for(&s, SIGUSR1);
    start_receiver(&g, &r, &s);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(r.got, SIGUSR1);
    CHECK_TIME(0);
    close_it(&s);
}

LOOP_TEST(a_signal_from_another_process_wakes_a_loop_that_has_nothing_else_to_wait_for)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    pid_t child = start_process(kill_parent_soon, SIGUSR1);
    CHECK_INT(conc_signals_next(&s), SIGUSR1);
    CHECK_INT(status_of(child), 0);
    close_it(&s);
}

LOOP_TEST(a_signal_that_another_thread_raises_in_itself_wakes_the_loop)
{
    pthread_t t;
    conc_signals s = {0};
    int number = SIGUSR2;
    open_for_both(&s);
    start_thread(&t, raise_here_soon, &number);
    CHECK_INT(conc_signals_next(&s), SIGUSR2);
    join_thread(t);
    close_it(&s);
}

LOOP_TEST(waiting_for_one_signal_without_a_receiver_is_no_deadlock)
{
    pid_t child = start_process(kill_parent_soon, SIGUSR1);
    CHECK_INT(conc_wait_signal(SIGUSR1), SIGUSR1);
    CHECK_INT(status_of(child), 0);
}

static void end_soon(int arg)
{
    (void)arg;
    pause_for(0.03);
}

LOOP_TEST(the_end_of_a_child_process_is_a_signal)
{
    conc_signals s = {0};
    open_for(&s, SIGCHLD);
    pid_t child = start_process(end_soon, 0);
    CHECK_INT(conc_signals_next(&s), SIGCHLD);
    CHECK_INT(status_of(child), 0);
    close_it(&s);
}

TASK_TEST(each_of_several_raises_is_returned)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    for (int i = 0; i < 3; i++)
        CHECK_INT(raise(SIGUSR1), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(next_if_any(&s), SIGUSR1);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    close_it(&s);
}

static void queue_a_hundred(int number)
{
    for (int i = 0; i < 100; i++)
        CHECK_INT(sigqueue(getppid(), number, (union sigval){.sival_int = i}), 0);
}

TASK_TEST(real_time_signals_which_the_kernel_does_not_merge_all_arrive)
{
    conc_signals s = {0};
    open_for(&s, SIGRTMIN);
    in_process(queue_a_hundred, SIGRTMIN);
    /* which keeps one of each kind, until it is delivered */
    for (int i = 0; i < (THREAD_SANITIZER ? 1 : 100); i++)
        CHECK_INT(next_if_any(&s), SIGRTMIN);
    CHECK(THREAD_SANITIZER || next_if_any(&s) == -ETIMEDOUT);
    close_it(&s);
}

TASK_TEST(every_signal_that_is_not_refused_can_be_received)
{
    int numbers[] = {SIGHUP,    SIGINT,  SIGQUIT,  SIGALRM, SIGTERM,     SIGUSR1, SIGUSR2,
                     SIGCHLD,   SIGCONT, SIGTSTP,  SIGTTIN, SIGTTOU,     SIGURG,  SIGXCPU,
                     SIGVTALRM, SIGPROF, SIGWINCH, SIGIO,   SIGRTMIN + 1};
    for (size_t i = 0; i < CONC_LEN(numbers); i++) {
        conc_signals s = {0};
        open_for(&s, numbers[i]);
        CHECK_INT(raise(numbers[i]), 0);
        CHECK_INT(next_if_any(&s), numbers[i]);
        close_it(&s);
    }
    CHECK_TIME(0);
}

TASK_TEST(a_number_that_is_not_in_the_list_keeps_its_action)
{
    conc_signals s = {0};
    install(SIGUSR2, count_it);
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR2), 0);
    CHECK_INT(handled[SIGUSR2], 1);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    close_it(&s);
    CHECK_INT(handled[SIGUSR2], 1);
}

TASK_TEST(a_signal_that_was_blocked_and_pending_at_the_opening_is_received)
{
    conc_signals s = {0};
    change_mask(SIG_BLOCK, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    open_for(&s, SIGUSR1);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
    CHECK(is_blocked(SIGUSR1));
    CHECK(!is_pending(SIGUSR1));
}

TASK_TEST(a_signal_that_was_blocked_is_let_through_while_it_is_received)
{
    conc_signals s = {0};
    change_mask(SIG_BLOCK, SIGUSR1);
    open_for_both(&s);
    CHECK(!is_blocked(SIGUSR1));
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
    CHECK(is_blocked(SIGUSR1));
    CHECK(!is_blocked(SIGUSR2));
}

TASK_TEST(two_signals_raised_several_times_are_each_received_in_turn)
{
    conc_signals s = {0};
    open_for_both(&s);
    for (int i = 0; i < 6; i++)
        CHECK_INT(raise(i < 3 ? SIGUSR1 : SIGUSR2), 0);
    for (int i = 0, last = 0; i < 6; i++) {
        int number = next_if_any(&s);
        CHECK(number == SIGUSR1 || number == SIGUSR2);
        CHECK(number != last);
        last = number;
    }
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    close_it(&s);
}

static void check_not_starved(int common, int rare)
{
    conc_signals s = {0};
    open_for_both(&s);
    CHECK_INT(raise(rare), 0);
    bool came = false;
    for (int i = 0; i < 2; i++) {
        CHECK_INT(raise(common), 0);
        CHECK_INT(raise(common), 0);
        came |= next_if_any(&s) == rare;
    }
    CHECK(came);
    for (int i = 0; i < 3; i++)
        CHECK_INT(next_if_any(&s), common);
    close_it(&s);
}

TASK_TEST(a_number_that_comes_all_the_time_starves_no_other)
{
    check_not_starved(SIGUSR1, SIGUSR2);
    check_not_starved(SIGUSR2, SIGUSR1);
}

static int count_turns(void *turns)
{
    for (;;) {
        CONC_TRY(conc_yield());
        ++*(int *)turns;
    }
}

TASK_TEST(signals_that_come_all_the_time_starve_no_task)
{
    conc_signals s = {0};
    int turns = 0;
    CHECK_INT(conc_spawn(NULL, count_turns, &turns), 0);
    open_for(&s, SIGUSR1);
    for (int i = 0; i < 10000; i++) {
        CHECK_INT(raise(SIGUSR1), 0);
        CHECK_INT(conc_signals_next(&s), SIGUSR1);
    }
    CHECK(turns > 0);
    close_it(&s);
}

TASK_TEST(one_signal_is_handed_to_one_of_two_tasks_that_wait_in_the_same_receiver)
{
    conc_signals s = {0};
    conc_group g = {0};
    receiver a, b;
    open_for_both(&s);
    start_receiver(&g, &a, &s);
    start_receiver(&g, &b, &s);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(a.got + b.got, SIGUSR1);
    CHECK_INT(raise(SIGUSR2), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(a.got + b.got, SIGUSR1 + SIGUSR2);
    CHECK_INT(conc_group_wait(&g), 0);
    close_it(&s);
}

TASK_TEST(two_signals_that_came_together_wake_two_tasks)
{
    conc_signals s = {0};
    conc_group g = {0};
    receiver a, b;
    open_for_both(&s);
    start_receiver(&g, &a, &s);
    start_receiver(&g, &b, &s);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(raise(SIGUSR2), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(a.got + b.got, SIGUSR1 + SIGUSR2);
    CHECK_TIME(0);
    close_it(&s);
}

ORDERED_TASK_TEST(the_first_waiter_is_handed_the_first_signal)
{
    conc_signals s = {0};
    conc_group g = {0};
    receiver a, b;
    open_for_both(&s);
    start_receiver(&g, &a, &s);
    start_receiver(&g, &b, &s);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(raise(SIGUSR2), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(a.got, SIGUSR2);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(b.got, SIGUSR1);
    close_it(&s);
}

/* ---- several receivers ---- */

TASK_TEST(two_receivers_of_one_signal_both_get_it)
{
    conc_signals a = {0}, b = {0};
    open_for(&a, SIGUSR1);
    open_for_both(&b);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&a), SIGUSR1);
    CHECK_INT(next_if_any(&a), -ETIMEDOUT);
    CHECK_INT(next_if_any(&b), SIGUSR1);
    CHECK_INT(next_if_any(&b), -ETIMEDOUT);
    close_it(&a);
    close_it(&b);
}

TASK_TEST(two_tasks_that_wait_in_two_receivers_are_both_woken)
{
    conc_signals a = {0}, b = {0};
    conc_group g = {0};
    receiver ra, rb;
    open_for(&a, SIGUSR1);
    open_for(&b, SIGUSR1);
    start_receiver(&g, &ra, &a);
    start_receiver(&g, &rb, &b);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ra.got, SIGUSR1);
    CHECK_INT(rb.got, SIGUSR1);
    close_it(&b);
    close_it(&a);
}

TASK_TEST(closing_one_of_two_receivers_keeps_the_other)
{
    for (int i = 0; i < 2; i++) {
        conc_signals s[2] = {{0}, {0}};
        open_for(&s[0], SIGUSR1);
        open_for(&s[1], SIGUSR1);
        close_it(&s[i]);
        CHECK_INT(raise(SIGUSR1), 0);
        CHECK_INT(next_if_any(&s[!i]), SIGUSR1);
        close_it(&s[!i]);
    }
}

TASK_TEST(closing_one_of_two_receivers_keeps_the_other_when_the_signal_was_blocked_before)
{
    change_mask(SIG_BLOCK, SIGUSR1);
    for (int i = 0; i < 2; i++) {
        conc_signals s[2] = {{0}, {0}};
        open_for(&s[0], SIGUSR1);
        open_for(&s[1], SIGUSR1);
        close_it(&s[i]);
        CHECK_INT(raise(SIGUSR1), 0);
        CHECK_INT(next_if_any(&s[!i]), SIGUSR1);
        close_it(&s[!i]);
        CHECK(is_blocked(SIGUSR1));
        CHECK(!is_pending(SIGUSR1));
    }
}

TASK_TEST(a_receiver_gets_nothing_that_came_before_it_was_opened)
{
    conc_signals a = {0}, b = {0};
    open_for(&a, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    open_for(&b, SIGUSR1);
    CHECK_INT(next_if_any(&b), -ETIMEDOUT);
    CHECK_INT(next_if_any(&a), SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&b), SIGUSR1);
    CHECK_INT(next_if_any(&a), SIGUSR1);
    close_it(&a);
    close_it(&b);
}

TASK_TEST(a_hundred_receivers_of_one_signal_all_get_it)
{
    conc_signals s[100] = {{0}};
    for (int i = 0; i < 100; i++)
        open_for(&s[i], SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    for (int i = 0; i < 100; i++) {
        CHECK_INT(next_if_any(&s[i]), SIGUSR1);
        close_it(&s[i]);
    }
    CHECK_TIME(0);
}

/* ---- closing ---- */

TASK_TEST(an_unreceived_signal_goes_to_the_previous_handler)
{
    conc_signals s = {0};
    install(SIGUSR1, count_it);
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(handled[SIGUSR1], 0);
    close_it(&s);
    CHECK_INT(handled[SIGUSR1], 1);
}

TASK_TEST(several_unreceived_signals_go_to_the_previous_handler_at_least_once)
{
    conc_signals s = {0};
    install(SIGUSR1, count_it);
    install(SIGUSR2, count_it);
    open_for_both(&s);
    for (int i = 0; i < 6; i++)
        CHECK_INT(raise(i < 3 ? SIGUSR1 : SIGUSR2), 0);
    CHECK_INT(next_if_any(&s) > 0, 1);
    close_it(&s);
    CHECK(handled[SIGUSR1] >= 1 && handled[SIGUSR1] <= 3);
    CHECK(handled[SIGUSR2] >= 1 && handled[SIGUSR2] <= 3);
}

static void raise_and_close(void)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    if (noted[0])
        fprintf(stderr, "%s\n", noted);
    close_it(&s);
}

static void close_with_the_default_action(void)
{
    install(SIGUSR1, SIG_DFL);
    note("it lives until the close");
    test_in_task(raise_and_close);
}

TEST(an_unreceived_signal_kills_if_that_was_the_action)
{
    CHECK_DIES(close_with_the_default_action, SIGUSR1, "it lives until the close");
}

TASK_TEST(an_unreceived_signal_is_dropped_if_it_was_ignored)
{
    install(SIGUSR1, SIG_IGN);
    raise_and_close();
}

TASK_TEST(an_unreceived_signal_is_pending_again_if_it_was_blocked)
{
    install(SIGUSR1, count_it);
    change_mask(SIG_BLOCK, SIGUSR1);
    raise_and_close();
    CHECK_INT(handled[SIGUSR1], 0);
    CHECK(is_pending(SIGUSR1));
    change_mask(SIG_UNBLOCK, SIGUSR1);
    CHECK_INT(handled[SIGUSR1], 1);
}

TASK_TEST(a_signal_that_one_of_two_receivers_returned_is_not_raised_again)
{
    install(SIGUSR1, count_it);
    for (int i = 0; i < 4; i++) {
        conc_signals s[2] = {{0}, {0}};
        open_for(&s[0], SIGUSR1);
        open_for(&s[1], SIGUSR1);
        CHECK_INT(raise(SIGUSR1), 0);
        CHECK_INT(next_if_any(&s[i / 2]), SIGUSR1);
        close_it(&s[i % 2]);
        close_it(&s[!(i % 2)]);
        CHECK_INT(handled[SIGUSR1], 0);
    }
}

TASK_TEST(a_signal_that_the_other_receiver_can_still_take_is_not_raised_again)
{
    conc_signals a = {0}, b = {0};
    install(SIGUSR1, count_it);
    open_for(&a, SIGUSR1);
    open_for(&b, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    close_it(&a);
    CHECK_INT(handled[SIGUSR1], 0);
    CHECK_INT(next_if_any(&b), SIGUSR1);
    close_it(&b);
    CHECK_INT(handled[SIGUSR1], 0);
}

TASK_TEST(a_signal_that_neither_of_two_receivers_returned_is_raised_again_when_the_last_is_closed)
{
    conc_signals a = {0}, b = {0};
    install(SIGUSR1, count_it);
    open_for(&a, SIGUSR1);
    open_for(&b, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    close_it(&a);
    close_it(&b);
    CHECK_INT(handled[SIGUSR1], 1);
}

TASK_TEST(a_signal_that_came_before_a_second_receiver_was_opened_is_still_raised_again)
{
    conc_signals a = {0}, b = {0};
    install(SIGUSR1, count_it);
    open_for(&a, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    open_for(&b, SIGUSR1);
    close_it(&a);
    close_it(&b);
    CHECK_INT(handled[SIGUSR1], 1);
}

TASK_TEST(a_signal_that_was_taken_is_not_raised_again)
{
    conc_signals s = {0};
    install(SIGUSR1, count_it);
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
    CHECK_INT(handled[SIGUSR1], 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(handled[SIGUSR1], 1);
}

static void count_with_info(int number, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    count_it(number);
}

/* Four kinds of previous actions: an elaborate handler, a plain one, ignored, default; two of them
 * blocked. */
static void install_four_kinds(int numbers[4])
{
    struct sigaction elaborate = {.sa_sigaction = count_with_info,
                                  .sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER};
    sigaddset(&elaborate.sa_mask, SIGHUP);
    sigaddset(&elaborate.sa_mask, SIGRTMIN + 3);
    CHECK_INT(sigaction(numbers[0], &elaborate, NULL), 0);
    install(numbers[1], count_it);
    install(numbers[2], SIG_IGN);
    install(numbers[3], SIG_DFL);
    change_mask(SIG_BLOCK, numbers[1]);
    change_mask(SIG_BLOCK, numbers[3]);
}

TASK_TEST(handlers_and_mask_are_restored_after_the_close)
{
    int numbers[] = {SIGUSR1, SIGUSR2, SIGHUP, SIGWINCH};
    conc_signals s = {0};
    dispositions before;
    install_four_kinds(numbers);
    look_around(&before);
    CHECK_INT(conc_signals_open(&s, numbers, 4), 0);
    for (int i = 0; i < 4; i++)
        CHECK_INT(raise(numbers[i]), 0);
    for (int i = 0; i < 4; i++)
        CHECK(next_if_any(&s) > 0);
    close_it(&s);
    check_unchanged_since(&before);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(handled[SIGUSR1], 1);
}

TASK_TEST(handlers_and_mask_are_restored_when_receivers_overlap)
{
    int numbers[] = {SIGUSR1, SIGUSR2, SIGHUP, SIGWINCH};
    dispositions before;
    install_four_kinds(numbers);
    look_around(&before);
    for (int order = 0; order < 6; order++) {
        conc_signals s[3] = {{0}, {0}, {0}};
        CHECK_INT(conc_signals_open(&s[0], numbers, 2), 0);
        CHECK_INT(conc_signals_open(&s[1], numbers + 1, 2), 0);
        CHECK_INT(conc_signals_open(&s[2], numbers, 4), 0);
        int first = order / 2, second = (first + 1 + order % 2) % 3;
        close_it(&s[first]);
        close_it(&s[second]);
        close_it(&s[3 - first - second]);
        check_unchanged_since(&before);
    }
}

TASK_TEST(a_handler_that_was_installed_meanwhile_stays)
{
    void (*handlers[])(int) = {count_it, SIG_IGN, SIG_DFL};
    for (size_t i = 0; i < CONC_LEN(handlers); i++) {
        conc_signals s = {0};
        dispositions before;
        open_for(&s, SIGUSR1);
        install(SIGUSR1, handlers[i]);
        look_around(&before);
        close_it(&s);
        check_unchanged_since(&before);
    }
}

TASK_TEST(a_handler_that_was_installed_meanwhile_gets_the_signals_and_the_receiver_does_not)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    install(SIGUSR1, count_it);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(handled[SIGUSR1], 1);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    close_it(&s);
    CHECK_INT(handled[SIGUSR1], 1);
}

TASK_TEST(a_receiver_opened_after_a_handler_was_installed_meanwhile_gets_its_signals)
{
    conc_signals a = {0}, b = {0};
    dispositions before;
    open_for(&a, SIGUSR1);
    install(SIGUSR1, count_it);
    look_around(&before);
    open_for(&b, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&b), SIGUSR1);
    close_it(&b);
    close_it(&a);
    check_unchanged_since(&before);
}

TASK_TEST(closing_twice_or_without_an_open_does_nothing)
{
    conc_signals s = {0}, never = {0};
    dispositions before;
    CHECK_INT(conc_signals_close(&never), 0);
    open_for(&s, SIGUSR1);
    CHECK_INT(conc_signals_close(&s), 0);
    install(SIGUSR1, count_it);
    look_around(&before);
    CHECK_INT(conc_signals_close(&s), 0);
    CHECK_INT(conc_signals_close(&never), 0);
    check_unchanged_since(&before);
}

TASK_TEST(a_receiver_that_was_closed_can_be_opened_again)
{
    conc_signals s = {0};
    for (int i = 0; i < 50; i++) {
        int number = i % 2 ? SIGUSR1 : SIGUSR2;
        open_for(&s, number);
        CHECK_INT(raise(number), 0);
        CHECK_INT(next_if_any(&s), number);
        close_it(&s);
    }
    CHECK_TIME(0);
}

TASK_TEST(waiters_get_epipe_when_it_is_closed)
{
    conc_signals s = {0};
    conc_group g = {0};
    receiver a, b;
    open_for_both(&s);
    start_receiver(&g, &a, &s);
    start_receiver(&g, &b, &s);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_signals_close(&s), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(a.got, -EPIPE);
    CHECK_INT(b.got, -EPIPE);
    CHECK_TIME(0);
}

TASK_TEST(next_on_a_closed_receiver_is_epipe)
{
    conc_signals s = {0};
    CHECK_INT(conc_signals_next(&s), -EPIPE);
    open_for(&s, SIGUSR1);
    close_it(&s);
    CHECK_INT(conc_signals_next(&s), -EPIPE);
}

TASK_TEST(a_signal_that_came_just_before_the_close_is_returned_or_raised_again)
{
    conc_signals s = {0};
    conc_group g = {0};
    receiver r;
    install(SIGUSR1, count_it);
    open_for(&s, SIGUSR1);
    start_receiver(&g, &r, &s);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_signals_close(&s), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(r.got == SIGUSR1 || r.got == -EPIPE);
    CHECK_INT(handled[SIGUSR1], r.got == SIGUSR1 ? 0 : 1);
}

TASK_TEST(a_signal_that_came_just_after_the_close_goes_to_the_previous_handler)
{
    conc_signals s = {0};
    conc_group g = {0};
    receiver r;
    install(SIGUSR1, count_it);
    open_for(&s, SIGUSR1);
    start_receiver(&g, &r, &s);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_signals_close(&s), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(handled[SIGUSR1], 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(r.got, -EPIPE);
}

static int receive_in_a_block(void)
{
    CONC_AUTO(conc_signals, s) = {0};
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    return next_if_any(&s);
}

TASK_TEST(a_receiver_closes_itself_at_the_end_of_its_block)
{
    dispositions before;
    look_around(&before);
    CHECK_INT(receive_in_a_block(), SIGUSR1);
    check_unchanged_since(&before);
}

static int receive_until_cancelled(void *arg)
{
    (void)arg;
    CONC_AUTO(conc_signals, s) = {0};
    open_for_both(&s);
    for (;;)
        CONC_TRY(conc_signals_next(&s));
}

static int leave_a_background_receiver(void *arg)
{
    CHECK_INT(conc_spawn(NULL, receive_until_cancelled, arg), 0);
    CHECK_INT(conc_yield(), 0);
    return 0;
}

static int leave_a_receiver_open(void *s)
{
    open_for_both(s);
    return 0;
}

TEST(after_a_run_everything_is_restored_although_a_receiver_was_left_open)
{
    static conc_signals left;
    dispositions before;
    stack_t stack_before, stack_after;
    change_mask(SIG_BLOCK, SIGUSR2);
    look_around(&before);
    CHECK_INT(sigaltstack(NULL, &stack_before), 0);
    int fds = test_count_fds();
    CHECK_INT(conc_run(leave_a_background_receiver, NULL), 0);
    check_unchanged_since(&before);
    CHECK_INT(conc_run(leave_a_receiver_open, &left), 0);
    check_unchanged_since(&before);
    CHECK_INT(sigaltstack(NULL, &stack_after), 0);
    CHECK_INT(stack_after.ss_flags, stack_before.ss_flags);
    CHECK(stack_after.ss_flags & SS_DISABLE || stack_after.ss_sp == stack_before.ss_sp);
    CHECK_INT(test_count_fds(), fds);
}

/* ---- misuse ---- */

static void check_refused(int bad)
{
    int lists[][3] = {{bad, SIGUSR1, SIGUSR2}, {SIGUSR1, bad, SIGUSR2}, {SIGUSR1, SIGUSR2, bad}};
    conc_signals s = {0};
    dispositions before;
    look_around(&before);
    if (conc_signals_open(&s, &bad, 1) != -EINVAL || conc_wait_signal(bad) != -EINVAL)
        test_fail(__FILE__, __LINE__, "signal %d was not refused", bad);
    for (size_t i = 0; i < CONC_LEN(lists); i++) {
        CHECK_INT(conc_signals_open(&s, lists[i], 3), -EINVAL);
        CHECK_INT(conc_signals_next(&s), -EPIPE);
        check_unchanged_since(&before);
    }
    CHECK_INT(conc_signals_close(&s), 0);
    check_unchanged_since(&before);
    open_for(&s, SIGUSR1);
    close_it(&s);
}

TASK_TEST(a_bad_number_anywhere_in_the_list_is_refused_and_nothing_changes)
{
    int bad[] = {0,       -1,      -SIGUSR1, LAST_SIGNAL + 1, 1000,   1 << 30, SIGRTMIN - 1,
                 SIGKILL, SIGSTOP, SIGPIPE,  SIGSEGV,         SIGBUS, SIGFPE,  SIGILL};
    install(SIGUSR1, count_it);
    change_mask(SIG_BLOCK, SIGUSR2);
    for (size_t i = 0; i < CONC_LEN(bad); i++)
        check_refused(bad[i]);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(handled[SIGUSR1], 1);
}

TASK_TEST(an_invalid_opening_is_refused)
{
    conc_signals s = {0};
    int numbers[] = {SIGUSR1};
    dispositions before;
    look_around(&before);
    CHECK_INT(conc_signals_open(NULL, numbers, 1), -EINVAL);
    CHECK_INT(conc_signals_open(&s, NULL, 1), -EINVAL);
    CHECK_INT(conc_signals_open(&s, numbers, 0), -EINVAL);
    CHECK_INT(conc_signals_open(&s, NULL, 0), -EINVAL);
    check_unchanged_since(&before);
}

TASK_TEST(opening_an_open_receiver_is_refused_and_it_stays_open)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    CHECK_INT(conc_signals_open(&s, &(int){SIGUSR1}, 1), -EINVAL);
    CHECK_INT(conc_signals_open(&s, &(int){SIGUSR2}, 1), -EINVAL);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
}

TASK_TEST(a_number_that_is_in_the_list_twice_counts_once)
{
    conc_signals s = {0};
    int numbers[] = {SIGUSR1, SIGUSR2, SIGUSR1, SIGUSR1};
    dispositions before;
    change_mask(SIG_BLOCK, SIGUSR1);
    look_around(&before);
    CHECK_INT(conc_signals_open(&s, numbers, CONC_LEN(numbers)), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    close_it(&s);
    check_unchanged_since(&before);
}

TASK_TEST(a_list_may_be_longer_than_there_are_signals)
{
    conc_signals s = {0};
    int numbers[1000];
    dispositions before;
    look_around(&before);
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        numbers[i] = i % 100 < 50 ? SIGUSR2 : SIGUSR1;
    CHECK_INT(conc_signals_open(&s, numbers, CONC_LEN(numbers)), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(raise(SIGUSR2), 0);
    CHECK_INT(next_if_any(&s), SIGUSR2);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    close_it(&s);
    numbers[CONC_LEN(numbers) - 1] = SIGKILL;
    CHECK_INT(conc_signals_open(&s, numbers, CONC_LEN(numbers)), -EINVAL);
    CHECK_INT(conc_signals_open(&s, numbers, CONC_LEN(numbers) - 1), 0);
    close_it(&s);
    check_unchanged_since(&before);
}

TEST(outside_a_run_nothing_is_opened)
{
    conc_signals s = {0};
    dispositions before;
    look_around(&before);
    CHECK_INT(conc_signals_open(&s, &(int){SIGUSR1}, 1), -EPERM);
    CHECK_INT(conc_wait_signal(SIGUSR1), -EPERM);
    CHECK(conc_signals_next(&s) < 0);
    CHECK_INT(conc_signals_close(&s), 0);
    check_unchanged_since(&before);
}

static void try_to_wait(void *s)
{
    CHECK_INT(conc_signals_next(s), -EPERM);
    CHECK_INT(conc_wait_signal(SIGUSR2), -EPERM);
    note("tried");
}

TASK_TEST(in_a_posted_function_nothing_waits_for_signals)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_post(conc_loop_self(), try_to_wait, &s), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_STR(noted, "tried");
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
}

static int use_anothers(void *s)
{
    CHECK_INT(conc_signals_close(s), -EPERM);
    CHECK_INT(conc_signals_open(s, &(int){SIGUSR2}, 1), -EBUSY);
    return 0;
}

static void *run_and_use(void *s)
{
    CHECK_INT(conc_run(use_anothers, s), 0);
    return NULL;
}

TASK_TEST(another_run_cannot_close_or_open_a_receiver)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    in_thread(run_and_use, &s);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
}

/* ---- cancels and time limits: neither loses a signal ---- */

TASK_TEST(a_cancel_and_a_signal_in_either_order_lose_nothing)
{
    for (int cancel_first = 0; cancel_first < 2; cancel_first++) {
        conc_signals s = {0};
        conc_group g = {0};
        receiver r;
        open_for(&s, SIGUSR1);
        start_receiver(&g, &r, &s);
        CHECK_INT(conc_settle(), 0);
        if (!cancel_first)
            CHECK_INT(raise(SIGUSR1), 0);
        CHECK_INT(conc_cancel(&r.task), 0);
        if (cancel_first)
            CHECK_INT(raise(SIGUSR1), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK(r.got == -ECANCELED || (r.got == SIGUSR1 && !cancel_first));
        CHECK_INT(next_if_any(&s), r.got == SIGUSR1 ? -ETIMEDOUT : SIGUSR1);
        close_it(&s);
    }
}

TASK_TEST(a_cancel_of_one_waiter_leaves_the_signal_to_the_other)
{
    for (int i = 0; i < 4; i++) {
        conc_signals s = {0};
        conc_group g = {0};
        receiver r[2];
        open_for(&s, SIGUSR1);
        start_receiver(&g, &r[0], &s);
        start_receiver(&g, &r[1], &s);
        CHECK_INT(conc_settle(), 0);
        if (i < 2)
            CHECK_INT(raise(SIGUSR1), 0);
        CHECK_INT(conc_cancel(&r[i % 2].task), 0);
        if (i >= 2)
            CHECK_INT(raise(SIGUSR1), 0);
        CHECK_INT(conc_sleep(1), 0);
        CHECK_INT((r[0].got == SIGUSR1) + (r[1].got == SIGUSR1), 1);
        conc_group_cancel(&g);
        CHECK_INT(conc_group_wait(&g), 0);
        close_it(&s);
    }
}

static int receive_within_a_second(void *arg)
{
    receiver *r = arg;
    r->got = conc_timeout(1, next_of, r->from);
    return 0;
}

TASK_TEST(a_time_limit_and_a_signal_at_the_same_moment_lose_nothing)
{
    conc_signals s = {0};
    conc_group g = {0};
    receiver r = {.from = &s};
    open_for(&s, SIGUSR1);
    CHECK_INT(conc_spawn(&g, receive_within_a_second, &r), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_block(1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(r.got == -ETIMEDOUT || r.got == SIGUSR1);
    CHECK_INT(next_if_any(&s), r.got == SIGUSR1 ? -ETIMEDOUT : SIGUSR1);
    close_it(&s);
}

TASK_TEST(a_time_limit_ends_the_wait_on_time_and_the_next_signal_is_received)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    CHECK_INT(conc_timeout(3, next_of, &s), -ETIMEDOUT);
    CHECK_TIME(3);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
}

TASK_TEST(in_a_cancelled_scope_next_takes_no_signal)
{
    conc_signals s = {0};
    conc_scope c = {0};
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_scope_begin(&c, CONC_FOREVER), 0);
    conc_scope_cancel(&c);
    CHECK_INT(conc_signals_next(&s), -ECANCELED);
    CHECK_INT(conc_signals_next(&s), -ECANCELED);
    CHECK_INT(conc_scope_end(&c, -ECANCELED), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
}

TASK_TEST(in_a_cancelled_scope_opening_and_closing_work)
{
    conc_signals s = {0};
    conc_scope c = {0};
    dispositions before;
    install(SIGUSR1, count_it);
    look_around(&before);
    CHECK_INT(conc_scope_begin(&c, 0), 0);
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    close_it(&s);
    CHECK_INT(conc_scope_end(&c, conc_yield()), -ETIMEDOUT);
    CHECK_INT(handled[SIGUSR1], 1);
    check_unchanged_since(&before);
}

/* ---- conc_wait_signal ---- */

typedef struct waiter {
    int number, got;
    conc_task task;
} waiter;

static int wait_for_one(void *arg)
{
    waiter *w = arg;
    w->got = conc_wait_signal(w->number);
    return 0;
}

static void start_waiter(conc_group *g, waiter *w, int number)
{
    *w = (waiter){.number = number};
    CHECK_INT(conc_spawn_task(g, &w->task, wait_for_one, w), 0);
}

static int wait_for_usr1(void *arg)
{
    (void)arg;
    return conc_wait_signal(SIGUSR1);
}

TASK_TEST(waiting_for_one_signal_returns_its_number_and_restores_everything)
{
    conc_group g = {0};
    waiter w;
    dispositions before;
    change_mask(SIG_BLOCK, SIGUSR1);
    look_around(&before);
    start_waiter(&g, &w, SIGUSR1);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.got, SIGUSR1);
    CHECK_TIME(0);
    check_unchanged_since(&before);
}

TASK_TEST(waiting_for_one_signal_ignores_earlier_ones)
{
    install(SIGUSR1, count_it);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_timeout(1, wait_for_usr1, NULL), -ETIMEDOUT);
    CHECK_INT(handled[SIGUSR1], 1);
}

TASK_TEST(all_waiters_for_one_signal_get_it)
{
    conc_group g = {0};
    waiter w[10];
    for (int i = 0; i < 10; i++)
        start_waiter(&g, &w[i], i % 2 ? SIGUSR1 : SIGUSR2);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_sleep(1), 0);
    for (int i = 0; i < 10; i++)
        CHECK_INT(w[i].got, i % 2 ? SIGUSR1 : 0);
    CHECK_INT(raise(SIGUSR2), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 10; i++)
        CHECK_INT(w[i].got, i % 2 ? SIGUSR1 : SIGUSR2);
}

TASK_TEST(a_cancelled_wait_for_one_signal_restores_everything)
{
    conc_scope c = {0};
    dispositions before;
    look_around(&before);
    CHECK_INT(conc_timeout(1, wait_for_usr1, NULL), -ETIMEDOUT);
    check_unchanged_since(&before);
    CHECK_INT(conc_scope_begin(&c, 0), 0);
    CHECK_INT(conc_wait_signal(SIGUSR1), -ECANCELED);
    check_unchanged_since(&before);
    CHECK_INT(conc_scope_end(&c, -ECANCELED), -ETIMEDOUT);
}

TASK_TEST(a_wait_for_one_signal_that_is_cancelled_just_after_it_came_returns_it_or_raises_it_again)
{
    conc_group g = {0};
    waiter w;
    install(SIGUSR1, count_it);
    start_waiter(&g, &w, SIGUSR1);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_cancel(&w.task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(w.got == SIGUSR1 || w.got == -ECANCELED);
    CHECK_INT(handled[SIGUSR1], w.got == SIGUSR1 ? 0 : 1);
}

/* ---- signals and the loop ---- */

static int close_and_sleep_forever(void *arg)
{
    (void)arg;
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
    return conc_sleep(CONC_FOREVER);
}

static void run_into_a_deadlock(void)
{
    CHECK_INT(conc_run(close_and_sleep_forever, NULL), -EDEADLK);
}

TEST(a_receiver_that_is_closed_hides_no_deadlock) { check_process(run_into_a_deadlock); }

static uint64_t polls(void)
{
    conc_stats s;
    conc_get_stats(&s);
    return s.polls;
}

REAL_TEST(a_signal_does_not_make_the_loop_spin)
{
    conc_signals s = {0};
    open_for_both(&s);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(conc_signals_next(&s), SIGUSR1);
    CHECK_INT(raise(SIGUSR2), 0); /* which no task receives for now */
    uint64_t before = polls();
    CHECK_INT(conc_sleep(0.1), 0);
    CHECK(polls() - before < 50);
    CHECK_INT(conc_signals_next(&s), SIGUSR2);
    close_it(&s);
}

TASK_TEST(an_unread_flood_neither_blocks_nor_changes_errno)
{
    conc_signals s = {0};
    install(SIGUSR1, SIG_IGN);
    open_for(&s, SIGUSR1);
    for (int i = 0; i < 100000; i++) { /* more than a pipe holds */
        errno = 77;
        raise(SIGUSR1);
        if (errno != 77)
            test_fail(__FILE__, __LINE__, "raise number %d changed errno to %d", i, errno);
    }
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
}

/* Signals sent to one thread, again and again, until it is told to stop. */
typedef struct storm {
    pthread_t thread, to;
    int number, count;
    double gap;
    _Atomic bool enough;
} storm;

static void *send_storm(void *arg)
{
    storm *s = arg;
    double start = test_real_seconds(); /* a busy machine delivers fewer */
    for (int i = 0; i != s->count && !s->enough && test_real_seconds() - start < 3; i++) {
        CHECK_INT(pthread_kill(s->to, s->number), 0);
        if (s->gap > 0)
            pause_for(s->gap);
        else if (i % 16 == 0)
            sched_yield();
    }
    return NULL;
}

static void start_storm(storm *s)
{
    s->to = pthread_self();
    start_thread(&s->thread, send_storm, s);
}

static void end_storm(storm *s)
{
    s->enough = true;
    join_thread(s->thread);
}

static int read_a_byte(void *fd)
{
    char c = 0;
    CHECK_INT(conc_read(*(int *)fd, &c, 1), 1);
    return c;
}

REAL_TEST(waits_are_not_shortened_by_signals)
{
    int ends[2], result = 0;
    conc_signals s = {0};
    conc_group g = {0};
    conc_task t;
    storm weather = {.number = SIGUSR1, .count = -1, .gap = 0.0002};
    install(SIGUSR1, SIG_IGN);
    CHECK_INT(pipe(ends), 0);
    open_for(&s, SIGUSR1);
    CHECK_INT(conc_spawn_task(&g, &t, read_a_byte, &ends[0]), 0);
    start_storm(&weather);
    double start = test_real_seconds();
    CHECK_INT(conc_sleep(0.1), 0);
    CHECK(test_real_seconds() - start >= 0.1 - 1e-9);
    CHECK(!conc_done(&t));
    CHECK_INT(write(ends[1], "x", 1), 1);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, 'x');
    end_storm(&weather);
    CHECK_INT(conc_signals_next(&s), SIGUSR1);
    close_it(&s);
    CHECK_INT(conc_group_wait(&g), 0);
    install(SIGUSR1, SIG_DFL);
    close(ends[0]);
    close(ends[1]);
}

/* Thousands of signals, then one with another number that marks the end. Another process sends
 * them, because a thread would confuse Valgrind, which assumes all threads to be on one stack, and
 * forgets to note a frame on a task's stack when threads take turns within it. */
static bool storm_is_over;

static pid_t send_the_storm(void)
{
    pid_t receiver = getpid(), sender = fork();
    if (sender != 0)
        return sender;
    double start = test_real_seconds(); /* a busy machine delivers fewer */
    for (int i = 0; i < STORM && test_real_seconds() - start < 3; i++) {
        kill(receiver, SIGUSR1);
        if (i % 16 == 0)
            sched_yield();
    }
    kill(receiver, SIGUSR2);
    _exit(0);
}

static int receive_the_storm(void)
{
    conc_signals s = {0};
    int count = 0, number, status = -1;
    install(SIGUSR1, SIG_IGN);
    open_for_both(&s);
    pid_t sender = send_the_storm();
    CHECK(sender > 0);
    while ((number = conc_signals_next(&s)) == SIGUSR1)
        count++;
    CHECK_INT(number, SIGUSR2);
    CHECK(count >= 1 && count <= STORM);
    storm_is_over = true;
    CHECK_INT(waitpid(sender, &status, 0), sender);
    CHECK_INT(status, 0);
    int rc = conc_signals_close(&s);
    install(SIGUSR1, SIG_DFL);
    return rc;
}

static int do_nothing(void *arg)
{
    (void)arg;
    return 0;
}

/* Allocates and frees memory, switches, and starts tasks, while the storm lasts. */
static int keep_busy(void *arg)
{
    unsigned char mark = (unsigned char)(uintptr_t)arg;
    while (!storm_is_over) {
        size_t size = 1 + (size_t)conc_random(0, 5000);
        unsigned char *p = malloc(size);
        CHECK(p != NULL);
        memset(p, mark, size);
        CONC_TRY(conc_yield());
        CHECK(p[0] == mark && p[size / 2] == mark && p[size - 1] == mark);
        free(p);
        CHECK_INT(conc_map(do_nothing, NULL, 2, 0), 0);
    }
    return 0;
}

STORM_TEST(thousands_of_signals_disturb_no_task_that_allocates_and_switches)
{
    conc_group g = {0};
    for (uintptr_t i = 1; i <= 20; i++)
        CHECK_INT(conc_spawn(&g, keep_busy, (void *)i), 0);
    CHECK_INT(receive_the_storm(), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int turns;

static int count_on_a_small_stack(void *arg)
{
    (void)arg;
    while (!storm_is_over) {
        turns++;
        if (conc_yield() < 0)
            return -ECANCELED;
    }
    return 0;
}

STORM_TEST(thousands_of_signals_find_room_on_the_smallest_stacks)
{
    enum { TASKS = 50 };
    conc_group g = {.stack_size = SMALLEST_STACK};
    turns = 0;
    for (int i = 0; i < TASKS; i++)
        CHECK_INT(conc_spawn(&g, count_on_a_small_stack, NULL), 0);
    while (turns < 2 * TASKS) /* the storm finds them all at work */
        CHECK_INT(conc_yield(), 0);
    CHECK_INT(receive_the_storm(), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- several loops ---- */

typedef struct loop_thread {
    pthread_t thread;
    int got[2], number;
} loop_thread;

static _Atomic int opened, closed;

static int receive_in_a_thread(void *arg)
{
    loop_thread *t = arg;
    conc_signals s = {0};
    open_for_both(&s);
    opened++;
    t->got[0] = conc_signals_next(&s);
    t->got[1] = conc_signals_next(&s);
    close_it(&s);
    return 0;
}

static void *run_receiver(void *t)
{
    CHECK_INT(conc_run(receive_in_a_thread, t), 0);
    return NULL;
}

static void wait_until(_Atomic int *counter, int value)
{
    while (*counter < value)
        sched_yield();
}

TEST(loops_in_several_threads_all_get_a_signal_of_the_process)
{
    loop_thread t[3] = {{0}, {0}, {0}};
    dispositions before;
    unsetenv("CONC_CLOCK");
    look_around(&before);
    for (int i = 0; i < 3; i++)
        start_thread(&t[i].thread, run_receiver, &t[i]);
    wait_until(&opened, 3);
    CHECK_INT(kill(getpid(), SIGUSR1), 0);
    CHECK_INT(kill(getpid(), SIGUSR2), 0);
    for (int i = 0; i < 3; i++) {
        join_thread(t[i].thread);
        CHECK_INT(t[i].got[0] + t[i].got[1], SIGUSR1 + SIGUSR2);
    }
    check_unchanged_since(&before);
}

static void *run_interruptible_receiver(void *t)
{
    conc_options o = {.interrupt = true};
    CHECK_INT(conc_run_with(&o, receive_in_a_thread, t), 0);
    return NULL;
}

TEST(loops_in_very_many_threads_all_get_a_signal_of_the_process)
{
    enum { MANY = 260 };
    static loop_thread t[MANY];
    dispositions before;
    unsetenv("CONC_CLOCK");
    look_around(&before);
    for (int i = 0; i < MANY; i++)
        start_thread(&t[i].thread, run_interruptible_receiver, &t[i]);
    wait_until(&opened, MANY);
    CHECK_INT(kill(getpid(), SIGUSR1), 0);
    CHECK_INT(kill(getpid(), SIGUSR2), 0);
    for (int i = 0; i < MANY; i++) {
        join_thread(t[i].thread);
        CHECK_INT(t[i].got[0] + t[i].got[1], SIGUSR1 + SIGUSR2);
    }
    check_unchanged_since(&before);
}

static int open_and_close(void *arg)
{
    (void)arg;
    for (int i = 0; i < 300; i++) {
        conc_signals s = {0};
        open_for(&s, SIGUSR1);
        if (i % 3)
            CONC_TRY(conc_yield());
        close_it(&s);
    }
    return 0;
}

static void *run_open_and_close(void *arg)
{
    CHECK_INT(conc_run(open_and_close, arg), 0);
    closed++;
    return NULL;
}

TEST(loops_that_open_and_close_under_a_storm_restore_everything)
{
    pthread_t t[3];
    dispositions before;
    unsetenv("CONC_CLOCK");
    install(SIGUSR1, count_it);
    look_around(&before);
    for (int i = 0; i < 3; i++)
        start_thread(&t[i], run_open_and_close, NULL);
    while (closed < 3)
        CHECK_INT(kill(getpid(), SIGUSR1), 0);
    for (int i = 0; i < 3; i++)
        join_thread(t[i]);
    check_unchanged_since(&before);
    int count = handled[SIGUSR1];
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(handled[SIGUSR1], count + 1);
}

/* ---- a broken pipe ---- */

/* A write that conc does not know, like a library's. */
static void write_to_a_broken_pipe(void)
{
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    close(ends[0]);
    CHECK_INT(write(ends[1], "x", 1), -1);
    CHECK_INT(errno, EPIPE);
    close(ends[1]);
}

static int break_a_pipe(void *arg)
{
    (void)arg;
    write_to_a_broken_pipe();
    CHECK(is_pending(SIGPIPE));
    return 5;
}

static void check_pipe_signal(bool blocked, bool pending)
{
    CHECK_INT(is_blocked(SIGPIPE), blocked);
    CHECK_INT(is_pending(SIGPIPE), pending);
}

TEST(a_write_of_a_tasks_own_to_a_broken_pipe_does_not_kill_when_the_run_ends)
{
    install(SIGPIPE, SIG_DFL);
    change_mask(SIG_UNBLOCK, SIGPIPE);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_run(break_a_pipe, NULL), 5);
        check_pipe_signal(false, false);
    }
}

TEST(if_sigpipe_was_blocked_only_the_runs_own_is_consumed)
{
    install(SIGPIPE, count_it);
    change_mask(SIG_BLOCK, SIGPIPE);
    CHECK_INT(conc_run(break_a_pipe, NULL), 5);
    check_pipe_signal(true, false);
    write_to_a_broken_pipe();
    CHECK_INT(conc_run(break_a_pipe, NULL), 5);
    check_pipe_signal(true, true); /* the program's own signal, from before the run */
    CHECK_INT(handled[SIGPIPE], 0);
    change_mask(SIG_UNBLOCK, SIGPIPE);
    CHECK_INT(handled[SIGPIPE], 1);
}

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static void write_between_steps(conc_fn *main_fn, int result)
{
    conc_embed e = {0};
    CHECK_INT(conc_embed_begin(&e, NULL, main_fn, NULL), 0);
    CHECK(conc_embed_step(&e) >= 0);
    write_to_a_broken_pipe();
    CHECK(conc_embed_step(&e) >= 0);
    write_to_a_broken_pipe();
    CHECK_INT(conc_embed_end(&e), result);
    check_pipe_signal(false, false);
}

TEST(a_hosts_write_to_a_broken_pipe_between_steps_does_not_kill_when_the_run_ends)
{
    install(SIGPIPE, SIG_DFL);
    change_mask(SIG_UNBLOCK, SIGPIPE);
    unsetenv("CONC_POLL");
    if (TEST_ONLY_POLL)
        return;
    write_between_steps(sleep_forever, -ECANCELED);
    write_between_steps(do_nothing, 0);
}

static void write_in_a_child(int arg)
{
    (void)arg;
    check_pipe_signal(false, false);
    signal(SIGPIPE, SIG_IGN);
    write_to_a_broken_pipe();
}

static int break_a_pipe_and_fork(void *arg)
{
    (void)arg;
    write_to_a_broken_pipe();
    in_process(write_in_a_child, 0);
    return 0;
}

TEST(a_child_is_not_killed_by_its_parents_broken_pipe)
{
    install(SIGPIPE, SIG_DFL);
    change_mask(SIG_UNBLOCK, SIGPIPE);
    CHECK_INT(conc_run(break_a_pipe_and_fork, NULL), 0);
}

/* ---- forked children ---- */

static void raise_it(int number) { CHECK_INT(raise(number), 0); }

TASK_TEST(a_signal_in_a_forked_child_is_not_its_parents)
{
    conc_signals s = {0};
    install(SIGUSR1, SIG_IGN);
    open_for(&s, SIGUSR1);
    in_process(raise_it, SIGUSR1);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
}

TASK_TEST(a_forked_child_is_killed_by_the_signals_that_its_parent_receives)
{
    conc_signals s = {0};
    install(SIGUSR1, SIG_DFL);
    open_for(&s, SIGUSR1);
    int status = status_of(start_process(raise_it, SIGUSR1));
    CHECK(WIFSIGNALED(status));
    CHECK_INT(WTERMSIG(status), SIGUSR1);
    close_it(&s);
}

static void check_mask_of_before(int number)
{
    CHECK(is_blocked(number));
    CHECK(!is_blocked(SIGUSR2) && !is_blocked(SIGPIPE));
}

TASK_TEST(a_forked_child_has_the_previous_mask)
{
    conc_signals s = {0};
    change_mask(SIG_BLOCK, SIGUSR1);
    open_for_both(&s);
    in_process(check_mask_of_before, SIGUSR1);
    close_it(&s);
}

static void receive_in_a_run_of_its_own(void)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    close_it(&s);
}

static void receive_in_a_child(int arg)
{
    (void)arg;
    test_in_task(receive_in_a_run_of_its_own);
}

TASK_TEST(a_forked_child_receives_in_its_own_run_and_its_parent_continues)
{
    conc_signals s = {0};
    open_for(&s, SIGUSR1);
    in_process(receive_in_a_child, 0);
    CHECK_INT(next_if_any(&s), -ETIMEDOUT);
    CHECK_INT(raise(SIGUSR1), 0);
    CHECK_INT(next_if_any(&s), SIGUSR1);
    close_it(&s);
}

static void call_with_the_parents(int arg)
{
    (void)arg;
    CHECK_INT(conc_wait_signal(SIGUSR1), -EPERM);
    CHECK_INT(conc_signals_open(&(conc_signals){0}, &(int){SIGUSR1}, 1), -EPERM);
}

TASK_TEST(in_a_forked_child_the_parents_loop_receives_nothing)
{
    in_process(call_with_the_parents, 0);
}
