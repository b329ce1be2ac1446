/* test_interrupt.c - SIGINT and SIGTERM under .interrupt: what they do to a run, its result, and
 * conc_main's. Each program runs in its own process, because a second signal, or a mistake, would
 * kill it.
 *
 * Seeds: 3 (each starts processes and waits for them)
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#include "conc_test.h"

#include <pthread.h>
#include <sched.h>

/* ---- running a program ---- */

static conc_fn *program;            /* main_fn */
static int wanted;                  /* its run's result */
static int number;                  /* the tested signal */
static void (*handler_before)(int); /* the action installed for it before the run */
static bool virtual_clock;
static char output[16384]; /* what the program wrote to stderr */

static volatile sig_atomic_t handled;

static void count_it(int n)
{
    (void)n;
    handled = handled + 1;
}

static void install(int n, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    CHECK_INT(sigaction(n, &action, NULL), 0);
}

/* Restores default signal actions, because Check has its own handlers, and sets an alarm. */
static void forget_handlers(void)
{
    sigset_t none;
    sigemptyset(&none);
    unsetenv("CONC_CLOCK");
    install(SIGALRM, SIG_DFL);
    alarm(TEST_SECONDS);
    install(SIGINT, SIG_DFL);
    install(SIGTERM, SIG_DFL);
    CHECK_INT(pthread_sigmask(SIG_SETMASK, &none, NULL), 0);
}

typedef struct settings {
    struct sigaction interrupt, terminate;
    sigset_t mask;
} settings;

static void look_around(settings *s)
{
    CHECK_INT(sigaction(SIGINT, NULL, &s->interrupt), 0);
    CHECK_INT(sigaction(SIGTERM, NULL, &s->terminate), 0);
    CHECK_INT(pthread_sigmask(SIG_BLOCK, NULL, &s->mask), 0);
}

static bool same_set(const sigset_t *a, const sigset_t *b)
{
    for (int n = 1; n <= 64; n++)
        if (sigismember(a, n) != sigismember(b, n))
            return false;
    return true;
}

static bool same_action(const struct sigaction *a, const struct sigaction *b)
{
    /* flags that a program can set; libc adds its own to each action */
    int flags = SA_NOCLDSTOP | SA_NOCLDWAIT | SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_NODEFER |
                (int)SA_RESETHAND;
    return (a->sa_flags & flags) == (b->sa_flags & flags) && a->sa_handler == b->sa_handler &&
           same_set(&a->sa_mask, &b->sa_mask);
}

static void check_unchanged_since(const settings *before)
{
    settings now;
    look_around(&now);
    CHECK(same_action(&now.interrupt, &before->interrupt));
    CHECK(same_action(&now.terminate, &before->terminate));
    CHECK(same_set(&now.mask, &before->mask));
}

static int run_interruptible(conc_fn *fn, void *arg)
{
    conc_options o = {.interrupt = true, .virtual_clock = virtual_clock};
    return conc_run_with(&o, fn, arg);
}

static void run_program(void)
{
    settings before;
    forget_handlers();
    if (handler_before)
        install(number, handler_before);
    look_around(&before);
    CHECK_INT(run_interruptible(program, NULL), wanted);
    check_unchanged_since(&before);
}

static void check_process(void (*fn)(void))
{
    int status = test_in_process(fn, output, sizeof output);
    if (status)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, output);
    CHECK(!strstr(output, "conc:") || getenv("CONC_DEBUG"));
}

/* Runs fn as main_fn, once for each of the two signals. Both must be treated alike and restored,
 * and nothing may be printed. */
static void check_result(conc_fn *fn, int result)
{
    program = fn;
    wanted = result;
    for (int i = 0; i < 2; i++) {
        number = i ? SIGTERM : SIGINT;
        check_process(run_program);
    }
}

/* The same for a program that is killed by a signal: the tested one, or the other of the two. */
static void check_killed(conc_fn *fn, bool by_the_other)
{
    program = fn;
    for (int i = 0; i < 2; i++) {
        number = i ? SIGTERM : SIGINT;
        CHECK_DIES(run_program, by_the_other ? SIGINT + SIGTERM - number : number, "");
    }
}

/* ---- parts of the programs ---- */

static void raise_it(void) { CHECK_INT(raise(number), 0); }

static void raise_the_other(void) { CHECK_INT(raise(SIGINT + SIGTERM - number), 0); }

static void pause_for(double s)
{
    struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
}

/* Within this time after the first, a second signal counts as the first. */
static void let_the_first_pass(void) { pause_for(0.1); }

static void let_it_come_after(double s)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        pause_for(s);
        kill(getppid(), number);
        _exit(0);
    }
}

/* Another process sends it soon. Most likely the loop is then where the test wants it; the result
 * is the same either way. */
static void let_it_come_soon(void) { let_it_come_after(0.03); }

static void let_the_second_come(void) { let_it_come_after(0.1); }

static int sleep_long(void *arg)
{
    (void)arg;
    return conc_sleep(1000);
}

static int sleep_shortly(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(0.01));
    note("slept");
    return 0;
}

/* ---- where the signal finds main ---- */

static int raise_and_sleep(void *arg)
{
    raise_it();
    CHECK_INT(conc_sleep(1000), -ECANCELED);
    CHECK_INT(conc_yield(), -ECANCELED);
    CHECK(conc_cancelled());
    return sleep_long(arg);
}

TEST(a_signal_before_the_first_wait_cancels_main) { check_result(raise_and_sleep, -EINTR); }

TEST(a_signal_under_the_virtual_clock_cancels_main)
{
    virtual_clock = true;
    check_result(raise_and_sleep, -EINTR);
}

static int raise_and_sleep_forever(void *arg)
{
    (void)arg;
    raise_it();
    return conc_sleep(CONC_FOREVER);
}

TEST(a_received_signal_precedes_a_deadlock) { check_result(raise_and_sleep_forever, -EINTR); }

/* ---- a main that only waits for the signal ---- */

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int wait_for_the_signal(void *arg)
{
    let_it_come_soon();
    return sleep_forever(arg);
}

static int wait_for_the_signal_until_forever(void *arg)
{
    (void)arg;
    let_it_come_soon();
    return conc_sleep_until(CONC_FOREVER);
}

static int wait_beside_tasks_that_sleep(void *arg)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, sleep_forever, arg));
    CONC_TRY_IN(&g, conc_spawn(NULL, sleep_forever, arg));
    let_it_come_soon();
    return conc_group_end(&g, conc_sleep(CONC_FOREVER));
}

TEST(a_main_that_sleeps_forever_waits_for_the_signal)
{
    check_result(wait_for_the_signal, -EINTR);
    check_result(wait_for_the_signal_until_forever, -EINTR);
    check_result(wait_beside_tasks_that_sleep, -EINTR);
}

TEST(a_main_that_sleeps_forever_waits_for_the_signal_in_poll)
{
    setenv("CONC_POLL", "poll", 1);
    check_result(wait_for_the_signal, -EINTR);
}

static conc_task crossed[2];

static int join_the_other(void *arg)
{
    CONC_TRY(conc_yield());
    return conc_join(arg, NULL);
}

static int sleep_beside_a_circle(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < 2; i++)
        CONC_TRY_IN(&g, conc_spawn_task(&g, &crossed[i], join_the_other, &crossed[!i]));
    return conc_group_end(&g, sleep_forever(arg));
}

static int sleep_in_a_shield(void *arg) { return conc_shield(CONC_FOREVER, sleep_forever, arg); }

static int wait_for_sleepers(void *arg)
{
    (void)arg;
    return CONC_GATHER(CONC_CALL(sleep_forever, NULL), CONC_CALL(sleep_forever, NULL));
}

static void check_deadlock(conc_fn *fn)
{
    program = fn;
    wanted = -EDEADLK;
    number = SIGINT;
    int status = test_in_process(run_program, output, sizeof output);
    CHECK_INT(status, 0);
    CHECK_CONTAINS(output, "conc: deadlock");
}

TEST(a_cycle_beside_a_main_that_sleeps_forever_is_a_deadlock)
{
    check_deadlock(sleep_beside_a_circle);
    CHECK_CONTAINS(output, "a cycle");
}

TEST(sleeping_forever_is_a_deadlock_if_no_signal_could_end_it)
{
    check_deadlock(sleep_in_a_shield);
    check_deadlock(wait_for_sleepers);
    virtual_clock = true;
    check_deadlock(sleep_forever);
}

/* ---- where else the signal finds main ---- */

static int raise_in_a_task(void *arg)
{
    (void)arg;
    raise_it();
    return 0;
}

static int sleep_while_a_task_raises(void *arg)
{
    CHECK_INT(conc_spawn(NULL, raise_in_a_task, NULL), 0);
    return sleep_long(arg);
}

TEST(a_signal_cancels_a_main_that_sleeps) { check_result(sleep_while_a_task_raises, -EINTR); }

static int sleep_until_it_comes(void *arg)
{
    let_it_come_soon();
    return sleep_long(arg);
}

TEST(a_signal_from_another_process_wakes_a_loop_that_sleeps)
{
    check_result(sleep_until_it_comes, -EINTR);
}

TEST(a_signal_from_another_process_wakes_a_loop_that_sleeps_in_poll)
{
    setenv("CONC_POLL", "poll", 1);
    check_result(sleep_until_it_comes, -EINTR);
}

static void *raise_in_itself(void *arg)
{
    pause_for(0.03);
    raise_it();
    return arg;
}

static int sleep_while_a_thread_raises(void *arg)
{
    pthread_t t;
    CHECK_INT(pthread_create(&t, NULL, raise_in_itself, NULL), 0);
    int rc = sleep_long(arg);
    CHECK_INT(pthread_join(t, NULL), 0);
    return rc;
}

TEST(a_signal_that_another_thread_gets_cancels_main)
{
    check_result(sleep_while_a_thread_raises, -EINTR);
}

static int spin_until_it_comes(void *arg)
{
    int rc;
    (void)arg;
    let_it_come_soon();
    while ((rc = conc_yield()) == 0)
        /* ThreadSanitizer delivers signals only in calls to libc */
        CHECK(test_real_seconds() > 0);
    return rc;
}

TEST(a_signal_cancels_a_main_that_spins_on_yield) { check_result(spin_until_it_comes, -EINTR); }

static int read_until_it_comes(void *arg)
{
    int ends[2];
    char c;
    (void)arg;
    CHECK_INT(pipe(ends), 0);
    let_it_come_soon();
    int rc = (int)conc_read(ends[0], &c, 1);
    close(ends[0]);
    close(ends[1]);
    return rc;
}

TEST(a_signal_cancels_a_main_that_waits_on_a_descriptor)
{
    check_result(read_until_it_comes, -EINTR);
}

static int block_until_it_comes(void *arg)
{
    let_it_come_soon();
    double start = test_real_seconds();
    CHECK_INT(conc_block(0.1), 0);
    CHECK(test_real_seconds() - start >= 0.1 - 1e-9);
    return sleep_long(arg);
}

TEST(a_signal_while_main_blocks_the_loop_cancels_it_after_that)
{
    check_result(block_until_it_comes, -EINTR);
}

static int compute_until_it_comes(void *arg)
{
    let_it_come_soon();
    for (double start = test_real_seconds(); test_real_seconds() - start < 0.1;)
        continue;
    return sleep_long(arg);
}

TEST(a_signal_while_main_computes_cancels_it_after_that)
{
    check_result(compute_until_it_comes, -EINTR);
}

static int child_cleaned;

static int child_that_cleans_up(void *arg)
{
    int rc = sleep_long(arg);
    child_cleaned += conc_shield(CONC_FOREVER, sleep_shortly, NULL) == 0;
    return rc;
}

static int wait_for_children(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&g, child_that_cleans_up, arg), 0);
    CHECK_INT(conc_spawn(&g, raise_in_a_task, arg), 0);
    int rc = conc_group_wait(&g);
    CHECK_INT(child_cleaned, 3);
    return rc;
}

TEST(a_signal_cancels_the_children_of_main_and_they_clean_up)
{
    check_result(wait_for_children, -EINTR);
}

static int raise_under_a_time_limit(void *arg)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 1000), 0);
    raise_it();
    int rc = conc_scope_end(&s, sleep_long(arg));
    CHECK_INT(rc, -ECANCELED);
    CHECK(!s.cancel_called && !s.cancel_caught);
    return rc;
}

TEST(a_signal_passes_through_the_scopes_of_main) { check_result(raise_under_a_time_limit, -EINTR); }

static int raise_in_a_cancelled_scope(void *arg)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    raise_it();
    int rc = conc_scope_end(&s, sleep_long(arg));
    CHECK(rc == 0 || rc == -ECANCELED);
    return sleep_long(arg);
}

TEST(a_signal_while_a_scope_of_main_is_cancelled_is_not_lost)
{
    check_result(raise_in_a_cancelled_scope, -EINTR);
}

static int clean_up_under_a_shield(void *arg)
{
    raise_it();
    CHECK_INT(sleep_long(arg), -ECANCELED);
    CHECK_INT(conc_shield(CONC_FOREVER, sleep_shortly, NULL), 0);
    CHECK_STR(noted, "slept");
    return -ECANCELED;
}

TEST(clean_up_under_a_shield_still_waits) { check_result(clean_up_under_a_shield, -EINTR); }

static int background_turns;

static int go_on_in_the_background(void *arg)
{
    (void)arg;
    for (;;) {
        CONC_TRY(conc_sleep(0.001));
        background_turns++;
    }
}

static int look_at_the_background(void *arg)
{
    (void)arg;
    int before = background_turns;
    while (background_turns < before + 3)
        CONC_TRY(conc_sleep(0.001));
    return 0;
}

static int clean_up_with_the_background(void *arg)
{
    CHECK_INT(conc_spawn(NULL, go_on_in_the_background, NULL), 0);
    raise_it();
    CHECK_INT(sleep_long(arg), -ECANCELED);
    CHECK_INT(conc_shield(CONC_FOREVER, look_at_the_background, NULL), 0);
    return -ECANCELED;
}

TEST(background_tasks_continue_until_main_has_cleaned_up)
{
    check_result(clean_up_with_the_background, -EINTR);
}

static int cleaner(void *arg)
{
    CHECK_INT(sleep_long(arg), -ECANCELED);
    raise_it();
    return conc_shield(CONC_FOREVER, sleep_shortly, NULL);
}

static int leave_a_cleaner(void *arg)
{
    CHECK_INT(conc_spawn(NULL, cleaner, arg), 0);
    CHECK_INT(conc_yield(), 0);
    return 7;
}

TEST(a_signal_after_main_returned_is_not_lost) { check_result(leave_a_cleaner, -EINTR); }

static int raise_and_return(void *arg)
{
    (void)arg;
    raise_it();
    return 3;
}

TEST(a_signal_that_main_had_no_time_to_notice_is_not_lost)
{
    check_result(raise_and_return, -EINTR);
}

/* ---- which result the run returns ---- */

static int catch_and_return_5(void *arg)
{
    raise_it();
    CHECK_INT(sleep_long(arg), -ECANCELED);
    return 5;
}

TEST(a_main_that_catches_it_has_its_own_result) { check_result(catch_and_return_5, 5); }

static int catch_and_fail(void *arg)
{
    raise_it();
    CHECK_INT(sleep_long(arg), -ECANCELED);
    return -EIO;
}

TEST(a_main_that_fails_while_it_cleans_up_has_its_own_result)
{
    check_result(catch_and_fail, -EIO);
}

static int cancel_itself_before(void *arg)
{
    CHECK_INT(conc_cancel(conc_self()), 0);
    raise_it();
    return sleep_long(arg);
}

TEST(a_main_that_was_cancelled_before_has_its_own_result)
{
    check_result(cancel_itself_before, -ECANCELED);
}

static int cancel_itself_and_unwind(void *arg)
{
    CHECK_INT(conc_cancel(conc_self()), 0);
    CHECK_INT(sleep_long(arg), -ECANCELED);
    raise_it();
    CHECK_INT(conc_shield(CONC_FOREVER, sleep_shortly, NULL), 0);
    return -ECANCELED;
}

TEST(a_main_that_is_already_unwinding_has_its_own_result)
{
    check_result(cancel_itself_and_unwind, -ECANCELED);
}

static int return_eintr(void *arg)
{
    (void)arg;
    return -EINTR;
}

TEST(a_main_that_nothing_interrupted_has_its_own_result) { check_result(return_eintr, -EINTR); }

/* ---- the second signal ---- */

static int raise_twice(void *arg)
{
    raise_it();
    let_the_first_pass();
    raise_it();
    return sleep_long(arg);
}

TEST(a_second_signal_kills) { check_killed(raise_twice, false); }

static int raise_both(void *arg)
{
    raise_it();
    let_the_first_pass();
    raise_the_other();
    return sleep_long(arg);
}

TEST(the_other_signal_as_the_second_kills_too) { check_killed(raise_both, true); }

static int clean_up_forever(void *arg)
{
    raise_it();
    CHECK_INT(sleep_long(arg), -ECANCELED);
    let_the_second_come();
    return conc_shield(CONC_FOREVER, sleep_long, arg);
}

TEST(a_second_signal_kills_a_program_that_cleans_up) { check_killed(clean_up_forever, false); }

static int clean_up_forever_after_main(void *arg)
{
    CHECK_INT(sleep_long(arg), -ECANCELED);
    raise_it();
    let_the_second_come();
    return conc_shield(CONC_FOREVER, sleep_long, arg);
}

static int leave_one_that_cleans_up_forever(void *arg)
{
    CHECK_INT(conc_spawn(NULL, clean_up_forever_after_main, arg), 0);
    CHECK_INT(conc_yield(), 0);
    return 7;
}

TEST(a_second_signal_kills_after_main_returned)
{
    check_killed(leave_one_that_cleans_up_forever, false);
}

static int raise_and_hang(void *arg)
{
    (void)arg;
    raise_it();
    let_the_second_come();
    while (test_real_seconds() > 0) /* forever, without a call to conc */
        continue;
    return 0;
}

TEST(a_second_signal_kills_a_program_that_hangs_since_the_first)
{
    check_killed(raise_and_hang, false);
}

/* ---- what stays unchanged ---- */

static int raise_and_go_on(void *arg)
{
    (void)arg;
    raise_it();
    raise_it();
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_sleep(0.001), 0);
    CHECK(!conc_cancelled());
    return 4;
}

TEST(an_ignored_signal_stays_ignored)
{
    handler_before = SIG_IGN;
    check_result(raise_and_go_on, 4);
}

static int have_it_handled(void *arg)
{
    int rc = raise_and_go_on(arg);
    CHECK_INT(handled, 2);
    return rc;
}

TEST(the_users_handler_is_left_alone)
{
    handler_before = count_it;
    check_result(have_it_handled, 4);
}

static int raise_one_ignored_and_one_not(void *arg)
{
    CHECK_INT(raise_and_go_on(arg), 4);
    raise_the_other();
    return sleep_long(arg);
}

TEST(while_one_is_ignored_the_other_still_cancels)
{
    handler_before = SIG_IGN;
    check_result(raise_one_ignored_and_one_not, -EINTR);
}

static void (*meanwhile)(int);

static int install_meanwhile(void *arg)
{
    (void)arg;
    install(number, meanwhile);
    return 4;
}

static void run_with_a_handler_meanwhile(void)
{
    struct sigaction after;
    forget_handlers();
    CHECK_INT(run_interruptible(install_meanwhile, NULL), 4);
    CHECK_INT(sigaction(number, NULL, &after), 0);
    CHECK(after.sa_handler == meanwhile);
    CHECK_INT(sigaction(SIGINT + SIGTERM - number, NULL, &after), 0);
    CHECK(after.sa_handler == SIG_DFL);
}

TEST(a_handler_that_main_installed_stays_after_the_run)
{
    for (int i = 0; i < 4; i++) {
        number = i % 2 ? SIGTERM : SIGINT;
        meanwhile = i / 2 ? SIG_IGN : count_it;
        check_process(run_with_a_handler_meanwhile);
    }
}

static int sleep_uninterruptibly(void *arg)
{
    raise_it();
    return sleep_long(arg);
}

static void run_plainly(void)
{
    forget_handlers();
    conc_run(sleep_uninterruptibly, NULL);
}

TEST(without_the_option_the_signals_have_their_previous_effect)
{
    for (int i = 0; i < 2; i++) {
        number = i ? SIGTERM : SIGINT;
        CHECK_DIES(run_plainly, number, "");
    }
}

/* ---- more than one run ---- */

static void run_three_times(void)
{
    settings before;
    forget_handlers();
    look_around(&before);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(run_interruptible(raise_and_sleep, NULL), -EINTR);
        check_unchanged_since(&before);
    }
    CHECK_INT(run_interruptible(sleep_shortly, NULL), 0);
}

TEST(each_run_has_its_own_first_signal)
{
    number = SIGINT;
    check_process(run_three_times);
}

static void raise_after_a_run(void)
{
    forget_handlers();
    CHECK_INT(run_interruptible(raise_and_sleep, NULL), -EINTR);
    raise_it();
}

TEST(after_an_interrupted_run_the_signals_kill_again)
{
    number = SIGTERM;
    CHECK_DIES(raise_after_a_run, SIGTERM, "");
}

static _Atomic int inside;

/* Two runs overlap, and the first to begin is the first or the last to end. */
static int overlap(void *arg)
{
    int turn = *(int *)arg;
    inside++;
    while (inside < 2 + turn)
        sched_yield();
    return 0;
}

static void *run_overlapping(void *arg)
{
    CHECK_INT(run_interruptible(overlap, arg), 0);
    inside++;
    return NULL;
}

static void run_two_that_overlap(int first, int second)
{
    pthread_t t[2];
    int turns[] = {first, second};
    inside = 0;
    for (int i = 0; i < 2; i++) {
        CHECK_INT(pthread_create(&t[i], NULL, run_overlapping, &turns[i]), 0);
        while (inside < i + 1)
            sched_yield();
    }
    for (int i = 0; i < 2; i++)
        CHECK_INT(pthread_join(t[i], NULL), 0);
}

static void run_in_two_threads(void)
{
    settings before;
    forget_handlers();
    look_around(&before);
    run_two_that_overlap(0, 1);
    check_unchanged_since(&before);
    run_two_that_overlap(1, 0);
    check_unchanged_since(&before);
}

TEST(runs_in_two_threads_restore_everything) { check_process(run_in_two_threads); }

/* ---- with signal receivers ---- */

static void open_it(conc_signals *s) { CHECK_INT(conc_signals_open(s, &number, 1), 0); }

static int receive_then_be_interrupted(void *arg)
{
    conc_signals s = {0};
    open_it(&s);
    for (int i = 0; i < 3; i++) {
        raise_it();
        CHECK_INT(conc_signals_next(&s), number);
        CHECK_INT(conc_sleep(0.001), 0);
    }
    CHECK_INT(conc_signals_close(&s), 0);
    CHECK_INT(conc_sleep(0.001), 0);
    raise_it();
    return sleep_long(arg);
}

TEST(an_open_receiver_gets_the_signal_and_after_it_main_is_cancelled_again)
{
    check_result(receive_then_be_interrupted, -EINTR);
}

static int receive_in_the_background(void *arg)
{
    (void)arg;
    return conc_wait_signal(number);
}

static int wait_for_one_signal(void *arg)
{
    conc_group g = {0};
    conc_task t;
    int got = 0;
    (void)arg;
    CHECK_INT(conc_spawn_task(&g, &t, receive_in_the_background, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    raise_it();
    CHECK_INT(conc_join(&t, &got), 0);
    CHECK_INT(got, number);
    CHECK_INT(conc_sleep(0.001), 0);
    return conc_group_wait(&g);
}

TEST(waiting_for_the_signal_takes_it_too) { check_result(wait_for_one_signal, 0); }

static int close_without_taking_it(void *arg)
{
    conc_signals s = {0};
    open_it(&s);
    raise_it();
    CHECK(!conc_cancelled());
    CHECK_INT(conc_signals_close(&s), 0);
    return sleep_long(arg);
}

TEST(a_signal_that_no_receiver_took_cancels_main) { check_result(close_without_taking_it, -EINTR); }

static int open_after_it_came(void *arg)
{
    conc_signals s = {0};
    raise_it();
    open_it(&s);
    CHECK_INT(conc_signals_next(&s), -ECANCELED);
    CHECK_INT(conc_signals_close(&s), 0);
    return sleep_long(arg);
}

TEST(a_signal_that_came_before_the_receiver_cancels_main)
{
    check_result(open_after_it_came, -EINTR);
}

static int receive_the_other(void *arg)
{
    conc_signals s = {0};
    CHECK_INT(conc_signals_open(&s, &(int){SIGINT + SIGTERM - number}, 1), 0);
    raise_it();
    CHECK_INT(conc_signals_next(&s), -ECANCELED);
    CHECK_INT(conc_signals_close(&s), 0);
    return sleep_long(arg);
}

TEST(a_receiver_of_the_other_signal_does_not_keep_this_one)
{
    check_result(receive_the_other, -EINTR);
}

static int receive_while_it_cleans_up(void *arg)
{
    conc_signals s = {0};
    raise_it();
    CHECK_INT(sleep_long(arg), -ECANCELED);
    open_it(&s);
    CHECK_INT(conc_signals_close(&s), 0);
    let_the_first_pass();
    raise_it();
    return sleep_long(arg);
}

TEST(a_second_signal_kills_although_there_was_a_receiver_in_between)
{
    check_killed(receive_while_it_cleans_up, false);
}

/* ---- conc_main ---- */

static void exit_with_conc_main(void)
{
    forget_handlers();
    int status = conc_main(program, NULL);
    fflush(NULL);
    _exit(status);
}

static int status_of_conc_main(conc_fn *fn)
{
    program = fn;
    int status = test_in_process(exit_with_conc_main, output, sizeof output);
    if (!WIFEXITED(status))
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, output);
    return WEXITSTATUS(status);
}

static void check_nothing_said(void)
{
    CHECK(!output[0] || strstr(output, "makecontext")); /* a sanitizer's note about ucontext */
}

TEST(conc_main_returns_128_plus_the_number_and_prints_nothing)
{
    conc_fn *programs[] = {raise_and_sleep, sleep_until_it_comes, clean_up_under_a_shield,
                           leave_a_cleaner};
    for (size_t i = 0; i < CONC_LEN(programs); i++) {
        number = SIGINT;
        CHECK_INT(status_of_conc_main(programs[i]), 130);
        check_nothing_said();
        number = SIGTERM;
        CHECK_INT(status_of_conc_main(programs[i]), 143);
        check_nothing_said();
    }
}

static int choose_a_status_and_be_interrupted(void *arg)
{
    (void)arg;
    conc_set_exit_status(3);
    raise_it();
    return conc_sleep(CONC_FOREVER);
}

TEST(a_status_that_was_chosen_does_not_replace_128_and_the_number)
{
    number = SIGTERM;
    CHECK_INT(status_of_conc_main(choose_a_status_and_be_interrupted), 143);
}

TEST(conc_main_returns_0_when_main_caught_it)
{
    number = SIGINT;
    CHECK_INT(status_of_conc_main(catch_and_return_5), 0);
    check_nothing_said();
}

TEST(conc_main_prints_the_error_of_a_main_that_failed_while_cleaning_up)
{
    number = SIGINT;
    CHECK_INT(status_of_conc_main(catch_and_fail), 1);
    CHECK_CONTAINS(output, conc_strerror(-EIO));
}

TEST(conc_main_prints_the_error_of_a_main_that_was_cancelled_otherwise)
{
    number = SIGTERM;
    CHECK_INT(status_of_conc_main(cancel_itself_before), 1);
    CHECK_CONTAINS(output, conc_strerror(-ECANCELED));
}

TEST(conc_main_prints_an_eintr_that_no_signal_caused)
{
    CHECK_INT(status_of_conc_main(return_eintr), 1);
    CHECK_CONTAINS(output, conc_strerror(-EINTR));
}

static void be_killed_in_conc_main(void)
{
    forget_handlers();
    _exit(conc_main(raise_twice, NULL));
}

TEST(a_second_signal_kills_a_conc_main)
{
    number = SIGINT;
    CHECK_DIES(be_killed_in_conc_main, SIGINT, "");
}
