/* test_signal_races.c - a signal at every step of opening and closing a conc_signals, of a run and
 * of a fork: it is received, or interrupts, or has its previous effect; exactly one of these.
 *
 * The implementation's calls between two steps go through functions of this file, which raise the
 * signal there; so does the clock.
 *
 * Seeds: 10 (it hardly depends on the order of tasks)
 * Not under: aarch64, aarch64-bti, riscv64, valgrind (emulators crash in a storm of signals while
 * threads start and end, and Valgrind does not know a handler's stack)
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static _Thread_local int seam_signal;               /* the signal to raise at a point; 0: none */
static _Thread_local int seam_points;               /* points passed so far */
static _Thread_local int seam_at;                   /* the point at which it is raised */
static _Thread_local void (*seam_in_handler)(void); /* called once, when a handler starts */
static int64_t seam_time;                           /* the clock's value, if it is not 0 */

static void seam_point(void)
{
    if (seam_signal && seam_points++ == seam_at)
        raise(seam_signal);
}

static int seam_sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    seam_point();
    int rc = sigaction(number, action, old);
    seam_point();
    return rc;
}

static int seam_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    seam_point();
    int rc = pthread_sigmask(how, set, old);
    seam_point();
    return rc;
}

static int seam_kill(pid_t process, int number)
{
    seam_point();
    int rc = kill(process, number);
    seam_point();
    return rc;
}

static int seam_lock(pthread_mutex_t *mutex)
{
    seam_point();
    int rc = pthread_mutex_lock(mutex);
    seam_point();
    return rc;
}

static int seam_unlock(pthread_mutex_t *mutex)
{
    seam_point();
    int rc = pthread_mutex_unlock(mutex);
    seam_point();
    return rc;
}

static pid_t seam_getpid(void)
{
    void (*call)(void) = seam_in_handler;
    seam_in_handler = NULL;
    if (call)
        call();
    else
        seam_point();
    return getpid();
}

static int seam_clock(clockid_t id, struct timespec *t)
{
    if (!seam_time)
        return clock_gettime(id, t);
    t->tv_sec = (time_t)(seam_time / 1000000000);
    t->tv_nsec = (long)(seam_time % 1000000000);
    return 0;
}

#define sigaction(number, action, old) seam_sigaction(number, action, old)
#define pthread_sigmask(how, set, old) seam_sigmask(how, set, old)
#define pthread_mutex_lock(mutex) seam_lock(mutex)
#define pthread_mutex_unlock(mutex) seam_unlock(mutex)
#define kill(process, number) seam_kill(process, number)
#define getpid() seam_getpid()
#define clock_gettime(id, t) seam_clock(id, t)

#define CONC_STATIC
#include "conc_test.h"

#undef sigaction
#undef pthread_sigmask
#undef pthread_mutex_lock
#undef pthread_mutex_unlock
#undef kill
#undef getpid
#undef clock_gettime

/* ---- parts of the tests ---- */

static _Atomic int handled;

static void count_it(int number)
{
    (void)number;
    handled++;
}

static void install(int number, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    CHECK_INT(sigaction(number, &action, NULL), 0);
}

/* Check has its own handlers, and the mask may be inherited. */
static void forget_everything(void)
{
    int numbers[] = {SIGINT, SIGTERM, SIGCHLD, SIGWINCH, SIGURG, SIGUSR1, SIGUSR2};
    sigset_t none;
    sigemptyset(&none);
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        install(numbers[i], SIG_DFL);
    CHECK_INT(pthread_sigmask(SIG_SETMASK, &none, NULL), 0);
    unsetenv("CONC_CLOCK");
    unsetenv("CONC_DEBUG"); /* which reserves signals for itself */
}

static void (*handler_of(int number))(int)
{
    struct sigaction now;
    CHECK_INT(sigaction(number, NULL, &now), 0);
    return now.sa_handler;
}

static void raise_at(int point, int number)
{
    seam_points = 0;
    seam_at = point;
    seam_signal = number;
}

/* Returns true if the point was reached. */
static bool raised(void)
{
    bool reached = seam_points > seam_at;
    seam_signal = 0;
    return reached;
}

static int next_of(void *s) { return conc_signals_next(s); }

/* Returns how many signals it still has. Call it on the virtual clock, where that takes no time. */
static int take_all(conc_signals *s)
{
    int n = 0;
    while (conc_timeout(1, next_of, s) > 0)
        n++;
    return n;
}

static int run_plainly(conc_fn *fn, void *arg)
{
    conc_options o = {.virtual_clock = true};
    return conc_run_with(&o, fn, arg);
}

static int run_interruptible(conc_fn *fn, void *arg)
{
    conc_options o = {.virtual_clock = true, .interrupt = true};
    return conc_run_with(&o, fn, arg);
}

/* ---- where the run does not handle the signal ---- */

static const int harmless[] = {SIGCHLD, SIGWINCH, SIGURG};

static int receive_and_be_disturbed(void *arg)
{
    for (size_t i = 0; i < CONC_LEN(harmless); i++) {
        bool more = true;
        for (int point = 0; more; point++) {
            conc_signals s = {0};
            raise_at(point, harmless[i]);
            CHECK_INT(conc_signals_open(&s, &harmless[i], 1), 0);
            CHECK_INT(conc_signals_close(&s), 0);
            more = raised();
            CHECK_INT(conc_yield(), 0);
            CHECK(handler_of(harmless[i]) == SIG_DFL);
        }
    }
    *(bool *)arg = true;
    return 7;
}

TEST(only_sigint_and_sigterm_interrupt_whatever_comes_while_a_receiver_opens_or_closes)
{
    bool done = false;
    forget_everything();
    CHECK_INT(run_interruptible(receive_and_be_disturbed, &done), 7);
    CHECK(done);
}

/* ---- the program's own handler ---- */

static void open_it(conc_signals *s)
{
    static const int number = SIGTERM;
    CHECK_INT(conc_signals_open(s, &number, 1), 0);
}

static void close_it(conc_signals *s) { CHECK_INT(conc_signals_close(s), 0); }

/* Each raises one signal at this point, if the point exists, and returns whether it did. */
typedef bool step(int point);

static int at_each_point(void *arg)
{
    step *one = *(step **)arg;
    for (int point = 0, more = true; more; point++) {
        more = one(point);
        CHECK(handler_of(SIGTERM) == count_it);
    }
    return 0;
}

static void check_each_point(step *one)
{
    forget_everything();
    install(SIGTERM, count_it);
    CHECK_INT(run_plainly(at_each_point, &one), 0);
    CHECK(handled > 0);
}

static bool while_it_opens_and_closes(int point)
{
    conc_signals s = {0};
    int before = handled;
    raise_at(point, SIGTERM);
    open_it(&s);
    close_it(&s);
    bool came = raised();
    CHECK_INT(handled - before, came);
    return came;
}

TEST(a_signal_that_no_receiver_took_reaches_the_programs_handler_once)
{
    check_each_point(while_it_opens_and_closes);
}

static bool while_it_opens(int point)
{
    conc_signals s = {0};
    int before = handled;
    raise_at(point, SIGTERM);
    open_it(&s);
    bool came = raised();
    CHECK(handler_of(SIGTERM) != count_it);
    CHECK_INT(raise(SIGTERM), 0);
    int taken = take_all(&s);
    CHECK(taken >= 1);
    close_it(&s);
    CHECK_INT(taken + handled - before, came + 1);
    return came;
}

TEST(after_the_opening_the_next_signal_is_received_whatever_came_during_it)
{
    check_each_point(while_it_opens);
}

static bool while_a_second_opens_and_closes(int point)
{
    conc_signals first = {0}, s = {0};
    int before = handled;
    open_it(&first);
    raise_at(point, SIGTERM);
    open_it(&s);
    close_it(&s);
    bool came = raised();
    CHECK_INT(take_all(&first), came);
    CHECK_INT(raise(SIGTERM), 0);
    CHECK_INT(take_all(&first), 1);
    CHECK_INT(handled, before);
    CHECK_INT(raise(SIGTERM), 0);
    close_it(&first);
    CHECK_INT(handled, before + 1);
    return came;
}

TEST(a_second_receiver_that_opens_and_closes_takes_nothing_from_the_first)
{
    check_each_point(while_a_second_opens_and_closes);
}

static bool while_a_second_opens_and_the_first_closes(int point)
{
    conc_signals first = {0}, s = {0};
    int before = handled;
    open_it(&first);
    raise_at(point, SIGTERM);
    open_it(&s);
    close_it(&first);
    bool came = raised();
    int taken = take_all(&s);
    close_it(&s);
    CHECK_INT(taken + handled - before, came);
    return came;
}

TEST(a_signal_while_one_receiver_follows_another_is_not_lost)
{
    check_each_point(while_a_second_opens_and_the_first_closes);
}

static conc_signals closed_in_handler;

static void close_now(void) { close_it(&closed_in_handler); }

static int close_while_a_handler_begins(void *arg)
{
    (void)arg;
    for (int i = 0; i < 3; i++) {
        open_it(&closed_in_handler);
        seam_in_handler = close_now;
        CHECK_INT(raise(SIGTERM), 0);
        CHECK_INT(handled, i + 1);
        CHECK(handler_of(SIGTERM) == count_it);
    }
    return 0;
}

TEST(a_signal_that_was_delivered_before_the_close_and_is_handled_after_it_is_not_lost)
{
    /* sanitizers object to a close in a handler; here it happens between two statements */
    if (SANITIZED)
        return;
    forget_everything();
    install(SIGTERM, count_it);
    CHECK_INT(run_plainly(close_while_a_handler_begins, NULL), 0);
}

static int keep_concs_handler(void *arg)
{
    struct sigaction *kept = arg;
    conc_signals s = {0};
    open_it(&s);
    CHECK_INT(sigaction(SIGTERM, NULL, kept), 0);
    close_it(&s);
    return 0;
}

TEST(concs_handler_installed_again_by_a_library_restores_the_previous_one)
{
    struct sigaction kept;
    forget_everything();
    install(SIGTERM, count_it);
    CHECK_INT(run_plainly(keep_concs_handler, &kept), 0);
    CHECK_INT(sigaction(SIGTERM, &kept, NULL), 0);
    CHECK_INT(raise(SIGTERM), 0);
    CHECK_INT(handled, 1);
    CHECK(handler_of(SIGTERM) == count_it);
}

/* ---- interrupts ---- */

typedef struct attempt {
    int point, received;
    bool came, ended;
} attempt;

static int receive_and_be_interrupted(void *arg)
{
    attempt *a = arg;
    conc_signals s = {0};
    raise_at(a->point, SIGTERM);
    open_it(&s);
    a->came = raised();
    int rc = conc_yield();
    CHECK_INT(conc_cancelled(), rc != 0);
    if (rc == 0) { /* it still belongs to the receiver, whatever happens next */
        CHECK_INT(raise(SIGTERM), 0);
        CHECK_INT(conc_yield(), 0);
        a->received = take_all(&s) - 1;
    }
    close_it(&s);
    a->ended = true;
    return rc;
}

TEST(a_signal_at_any_step_of_the_opening_is_received_or_interrupts)
{
    int interrupted = 0, received = 0;
    attempt a = {.came = true};
    forget_everything();
    for (; a.came; a.point++) {
        a.received = 0;
        a.ended = false;
        int rc = run_interruptible(receive_and_be_interrupted, &a);
        CHECK(a.ended);
        CHECK(rc == 0 || rc == -EINTR);
        CHECK_INT((rc == -EINTR) + a.received, a.came);
        interrupted += rc == -EINTR;
        received += a.received;
        CHECK(handler_of(SIGTERM) == SIG_DFL);
    }
    CHECK(interrupted > 0 && received > 0);
}

static int close_and_be_interrupted(void *arg)
{
    attempt *a = arg;
    conc_signals s = {0};
    open_it(&s);
    raise_at(a->point, SIGTERM);
    close_it(&s);
    a->came = raised();
    return conc_yield();
}

TEST(a_signal_at_any_step_of_the_closing_interrupts)
{
    attempt a = {.came = true};
    forget_everything();
    for (; a.came; a.point++) {
        int rc = run_interruptible(close_and_be_interrupted, &a);
        CHECK_INT(rc, a.came ? -EINTR : 0);
    }
}

static int return_0(void *arg)
{
    (void)arg;
    return 0;
}

static int point_of_the_end;

/* main_fn has returned; until the run does, a signal interrupts it, or has its previous effect. */
static int raise_while_it_ends(void *arg)
{
    (void)arg;
    raise_at(point_of_the_end, SIGTERM);
    return 0;
}

static void end_a_run(void)
{
    forget_everything();
    int rc = run_interruptible(raise_while_it_ends, NULL);
    int status = rc == -EINTR ? 1 : 2;
    _exit(raised() ? status : 0);
}

TEST(a_signal_at_any_step_of_a_runs_end_interrupts_it_or_kills)
{
    int interrupted = 0, killed = 0, status;
    char text[4096];
    do {
        status = test_in_process(end_a_run, text, sizeof text);
        interrupted += WIFEXITED(status) && WEXITSTATUS(status) == 1;
        killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM;
        point_of_the_end++;
        CHECK_INT(interrupted + killed, point_of_the_end - (status == 0));
    } while (status);
    CHECK(interrupted > 0 && killed > 0);
}

/* ---- the second signal ---- */

static int64_t gap;
static int second_number;

static int raise_two(void *arg)
{
    (void)arg;
    CHECK_INT(raise(SIGINT), 0);
    seam_time += gap;
    CHECK_INT(raise(second_number), 0);
    CHECK_INT(conc_sleep(1000), -ECANCELED);
    return -ECANCELED;
}

static void stop_the_clock(void) { seam_time = 1000000000; }

static void run_raise_two(void)
{
    forget_everything();
    stop_the_clock();
    CHECK_INT(run_interruptible(raise_two, NULL), -EINTR);
    CHECK(handler_of(SIGINT) == SIG_DFL && handler_of(SIGTERM) == SIG_DFL);
}

TEST(a_second_signal_within_a_tenth_of_a_second_counts_as_the_first)
{
    gap = 99999999;
    second_number = SIGINT;
    run_raise_two();
    second_number = SIGTERM;
    run_raise_two();
}

TEST(a_second_signal_a_tenth_of_a_second_later_kills)
{
    gap = 100000000;
    second_number = SIGINT;
    CHECK_DIES(run_raise_two, SIGINT, "");
    second_number = SIGTERM;
    CHECK_DIES(run_raise_two, SIGTERM, "");
}

static int raise_many(void *arg)
{
    for (int i = 0; i < 3; i++) {
        CHECK_INT(raise(SIGINT), 0);
        seam_time += 40000000;
    }
    CHECK_INT(raise(SIGINT), 0);
    return return_0(arg);
}

static void run_raise_many(void)
{
    forget_everything();
    stop_the_clock();
    run_interruptible(raise_many, NULL);
}

TEST(the_tenth_of_a_second_is_counted_from_the_first) { CHECK_DIES(run_raise_many, SIGINT, ""); }

/* ---- several threads ---- */

enum { THREADS = 3, ROUNDS = 300 };

static _Atomic int ended;

static int open_and_close_under_a_storm(void *arg)
{
    (void)arg;
    for (int i = 0; i < ROUNDS; i++) {
        conc_signals s = {0};
        CHECK_INT(conc_signals_open(&s, harmless, CONC_LEN(harmless)), 0);
        CHECK_INT(conc_yield(), 0);
        close_it(&s);
    }
    return 0;
}

static void *run_under_a_storm(void *arg)
{
    for (int i = 0; i < 3; i++)
        CHECK_INT(run_interruptible(open_and_close_under_a_storm, arg), 0);
    ended++;
    return NULL;
}

TEST(under_a_storm_of_other_signals_no_loop_is_interrupted)
{
    pthread_t threads[THREADS];
    forget_everything();
    for (int i = 0; i < THREADS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, run_under_a_storm, NULL), 0);
    for (int i = 0; ended < THREADS; i++)
        CHECK_INT(kill(getpid(), harmless[(size_t)i % CONC_LEN(harmless)]), 0);
    for (int i = 0; i < THREADS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    for (size_t i = 0; i < CONC_LEN(harmless); i++)
        CHECK(handler_of(harmless[i]) == SIG_DFL);
}

static int receive_under_a_storm(void *arg)
{
    (void)arg;
    for (int i = 0; i < ROUNDS; i++) {
        conc_signals s = {0};
        open_it(&s);
        CHECK(handler_of(SIGTERM) != count_it);
        close_it(&s);
    }
    return 0;
}

static void *run_receiver_under_a_storm(void *arg)
{
    CHECK_INT(run_plainly(receive_under_a_storm, arg), 0);
    ended++;
    return NULL;
}

TEST(under_a_storm_of_its_signal_a_receiver_that_is_open_has_its_handler)
{
    pthread_t threads[THREADS];
    forget_everything();
    install(SIGTERM, count_it);
    for (int i = 0; i < THREADS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, run_receiver_under_a_storm, NULL), 0);
    while (ended < THREADS)
        CHECK_INT(kill(getpid(), SIGTERM), 0);
    for (int i = 0; i < THREADS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    CHECK(handler_of(SIGTERM) == count_it);
}

/* ---- forks ---- */

static bool raise_in_children;

static void raise_in_the_child(void)
{
    if (raise_in_children)
        raise(SIGTERM);
}

static int fork_while_it_is_received(void *arg)
{
    (void)arg;
    int status = -1;
    conc_signals s = {0};
    open_it(&s);
    raise_in_children = true;
    pid_t child = fork();
    if (child == 0) {
        raise(SIGTERM);
        _exit(handled == 2 && handler_of(SIGTERM) == count_it ? 0 : 1);
    }
    CHECK(child > 0);
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK_INT(status, 0);
    CHECK_INT(take_all(&s), 0);
    CHECK_INT(raise(SIGTERM), 0);
    CHECK_INT(take_all(&s), 1);
    close_it(&s);
    return 0;
}

/* This file's fork hook was registered before conc's, so it runs first in the child. */
TEST(a_signal_in_a_child_before_fork_has_returned_has_its_previous_effect)
{
    forget_everything();
    CHECK_INT(pthread_atfork(NULL, NULL, raise_in_the_child), 0);
    install(SIGTERM, count_it);
    CHECK_INT(run_plainly(fork_while_it_is_received, NULL), 0);
    CHECK_INT(handled, 0);
}
