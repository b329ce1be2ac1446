/* test_debug.c - debug mode: slow steps, and their backtraces; leaks; ignored
 * cancels; calls from the wrong thread; stack usage; SIGUSR2; deadlock cycles; a run's
 * statistics.
 *
 * Not under: no-epoll, save-fpu, aarch64-bti, poll, gcc-asan (which change nothing here)
 * Seeds: 5 (real time, and processes) */
#define TEST_SYNC
#define TEST_POOL
#include "conc_test.h"

#include <poll.h>
#include <pthread.h>

#ifdef CONC_TEST_PLAIN
enum { PLAIN = true }; /* run by an emulator of another processor */
#else
enum { PLAIN = false };
#endif

static char report[1 << 20];
static conc_fn *body;
static conc_options options;

static void run_body(void) { CHECK(conc_run_with(&options, body, NULL) > -1000); }

/* Runs fn as main_fn in its own process; stores its stderr in report. */
static void run_for_report(conc_fn *fn, conc_options o)
{
    body = fn;
    options = o;
    int status = test_in_process(run_body, report, sizeof report);
    if (status)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, report);
}

static const conc_options debugging = {.debug = true, .virtual_clock = true};

static int count_in(const char *text, const char *part)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, part)); p++)
        n++;
    return n;
}

static const char *placed(const char *before, int line, const char *after)
{
    static char text[512];
    snprintf(text, sizeof text, "%s%s:%d%s", before, TEST_FILE, line, after);
    return text;
}

/* ---- slow steps ---- */

static int holds(void *seconds) { return conc_block(*(double *)seconds); }

static int holds_with_a_name(void *seconds)
{
    conc_set_name(conc_self(), "the sluggard");
    CONC_TRY(conc_sleep(1));
    return conc_block(*(double *)seconds);
}

static int one_slow_one_fast(void *arg)
{
    static double slow = 0.3, fast = 0.05;
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_spawn(&g, holds, &slow), 0);
    CHECK_INT(conc_spawn(&g, holds, &fast), 0);
    CHECK_INT(conc_spawn(&g, holds_with_a_name, &slow), 0);
    return conc_group_wait(&g);
}

enum { LINE_OF_SLOW = __LINE__ - 6, LINE_OF_NAMED = __LINE__ - 4 };

TEST(a_slow_step_is_reported_once_with_task_location_and_duration)
{
    run_for_report(one_slow_one_fast, debugging);
    CHECK_CONTAINS(report,
                   placed("conc: holds at ", LINE_OF_SLOW, " blocked the loop for 0.300 s\n"));
    CHECK_CONTAINS(report, placed("conc: the sluggard (spawned at ", LINE_OF_NAMED,
                                  ") blocked the loop for 0.300 s\n"));
    CHECK_INT(count_in(report, " blocked the loop"), 2);
}

static void holds_in_a_post(void *seconds) { (void)conc_block(*(double *)seconds); }

static void holds_in_a_hook(const conc_failure *f, void *seconds)
{
    CHECK_INT(f->rc, -EIO);
    (void)conc_block(*(double *)seconds);
}

static int fails_in_the_end(void *arg)
{
    (void)arg;
    return -EIO;
}

/* Its own step is quick: only the function that the loop calls during it is slow. */
static int has_slow_functions_called(void *arg)
{
    static double slow = 0.3, fast = 0.05;
    conc_group g = {.keep_going = true};
    (void)arg;
    CHECK_INT(conc_post(conc_loop_self(), holds_in_a_post, &slow), 0);
    CHECK_INT(conc_post(conc_loop_self(), holds_in_a_post, &fast), 0);
    CHECK_INT(conc_spawn(&g, fails_in_the_end, NULL), 0);
    CHECK_INT(conc_spawn(&g, fails_in_the_end, NULL), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    return 0;
}

TEST(a_slow_function_that_the_loop_calls_is_reported_under_its_own_name)
{
    static double slow = 0.2;
    conc_options o = debugging;
    o.on_error = holds_in_a_hook;
    o.user = &slow;
    run_for_report(has_slow_functions_called, o);
    const char *post =
        PLAIN ? "conc: the posted function " : "conc: the posted function holds_in_a_post blocked";
    const char *hook =
        PLAIN ? "conc: the on_error hook " : "conc: the on_error hook holds_in_a_hook blocked";
    CHECK_INT(count_in(report, post), 1);
    CHECK_CONTAINS(report, " blocked the loop for 0.300 s\n");
    CHECK_INT(count_in(report, hook), 1);
    CHECK_CONTAINS(report, " blocked the loop for 0.200 s\n");
    CHECK_INT(count_in(report, " blocked the loop"), 2);
}

TEST(the_options_define_what_is_slow)
{
    conc_options o = debugging;
    o.slow_step = 0.04;
    run_for_report(one_slow_one_fast, o);
    CHECK_INT(count_in(report, " blocked the loop"), 3);
    o.slow_step = 0.5;
    run_for_report(one_slow_one_fast, o);
    CHECK_INT(count_in(report, " blocked the loop"), 0);
}

TEST(without_debug_mode_nothing_is_reported)
{
    if (getenv("CONC_DEBUG"))
        return;
    run_for_report(one_slow_one_fast, (conc_options){.virtual_clock = true});
    CHECK_STR(report, "");
}

/* ---- the watchdog: stderr is a pipe, and the step lasts until the watchdog's report can be read
 * from it ---- */

static char heard[65536];
static size_t heard_size;
static int ear; /* where stderr can be read */

static void listen_to_stderr(void)
{
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    CHECK(dup2(ends[1], 2) == 2);
    CHECK_INT(close(ends[1]), 0);
    ear = ends[0];
}

static bool has_heard(const char *part)
{
    ssize_t n = read(ear, heard + heard_size, sizeof heard - 1 - heard_size);
    heard_size += n > 0 ? (size_t)n : 0;
    heard[heard_size] = 0;
    return strstr(heard, part) != NULL;
}

__attribute__((noinline)) int computes_until_it_is_told_of(void);
__attribute__((noinline)) int computes_until_it_is_told_of(void)
{
    volatile double x = 1;
    fcntl(ear, F_SETFL, O_NONBLOCK);
    while (!has_heard(PLAIN ? "has blocked the loop" : "is_told_of+0x"))
        for (int i = 0; i < 1000; i++)
            x = x * 1.0000001;
    return (int)(x - x);
}

__attribute__((noinline)) int blocks_until_it_is_told_of(void);
__attribute__((noinline)) int blocks_until_it_is_told_of(void)
{
    struct pollfd p = {.fd = ear, .events = POLLIN};
    int n = 0;
    while (!has_heard(PLAIN ? "has blocked the loop" : "is_told_of+0x"))
        n += poll(&p, 1, -1);
    return n < 0;
}

static int computes(void *arg)
{
    (void)arg;
    int rc = computes_until_it_is_told_of();
    return rc;
}

static int blocks(void *arg)
{
    (void)arg;
    fcntl(ear, F_SETFL, 0);
    int rc = blocks_until_it_is_told_of();
    return rc;
}

static int spawns_the_holder(void *fn)
{
    conc_group g = {0};
    listen_to_stderr();
    CHECK_INT(conc_spawn(&g, (conc_fn *)fn, NULL), 0);
    return conc_group_wait(&g);
}

static int spawns_computing(void *arg)
{
    (void)arg;
    return spawns_the_holder((void *)(uintptr_t)computes);
}

static int spawns_blocking(void *arg)
{
    (void)arg;
    return spawns_the_holder((void *)(uintptr_t)blocks);
}

/* In this process: the report is what was read. */
static void run_watched(conc_fn *fn)
{
    conc_options o = {.debug = true, .slow_step = 0.02};
    CHECK_INT(conc_run_with(&o, fn, NULL), 0);
    CHECK_CONTAINS(heard, " has blocked the loop for 0.");
    CHECK_CONTAINS(heard, " s so far, ");
}

TEST(the_location_is_reported_while_a_step_computes)
{
    run_watched(spawns_computing);
    CHECK_INT(count_in(heard, "has blocked the loop"), 1);
    if (!PLAIN)
        CHECK_CONTAINS(heard, " computes_until_it_is_told_of+0x");
}

TEST(the_location_is_reported_while_a_step_is_blocked_in_a_system_call)
{
    run_watched(spawns_blocking);
    CHECK_INT(count_in(heard, "has blocked the loop"), 1);
    if (!PLAIN)
        CHECK_CONTAINS(heard, " blocks_until_it_is_told_of+0x");
}

static void computes_in_a_post(void *arg)
{
    (void)arg;
    computes_until_it_is_told_of();
}

static int posts_computing(void *arg)
{
    listen_to_stderr();
    CHECK_INT(conc_post(conc_loop_self(), computes_in_a_post, arg), 0);
    return conc_sleep(0.001);
}

TEST(the_location_is_reported_while_a_posted_function_computes)
{
    run_watched(posts_computing);
    CHECK_INT(count_in(heard, "has blocked the loop"), 1);
    CHECK_CONTAINS(heard,
                   PLAIN ? "conc: the posted function "
                         : "conc: the posted function computes_in_a_post has blocked the loop");
    if (!PLAIN)
        CHECK_CONTAINS(heard, " computes_until_it_is_told_of+0x");
}

static int naps(void *arg)
{
    struct timespec nap = {.tv_nsec = 100000000}, left = {0};
    (void)arg;
    listen_to_stderr();
    int rc = nanosleep(&nap, &left);
    fcntl(ear, F_SETFL, O_NONBLOCK);
    CHECK(has_heard("has blocked the loop"));
    return rc;
}

TEST(a_system_sleep_is_not_cut_short_by_the_watchdogs_signal)
{
    conc_options o = {.debug = true, .slow_step = 0.02};
    /* where system calls cannot be inspected, and a signal asks */
    if (!PLAIN && !test_on_valgrind())
        CHECK_INT(conc_run_with(&o, naps, NULL), 0);
}

/* ---- leaks ---- */

static int emits_one(conc_gen *g, void *arg)
{
    int item = 1;
    (void)arg;
    CONC_TRY(conc_gen_emit(g, &item));
    return 0;
}

static int leaves_things_open(void *arg)
{
    static conc_gen left, closed;
    static conc_stream left_stream, closed_stream;
    int item, ends[2];
    (void)arg;
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(conc_gen_open(&left, emits_one, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_open(&closed, emits_one, NULL, sizeof item), 0);
    CHECK_INT(conc_stream_open(&left_stream, ends[0]), 0);
    CHECK_INT(conc_stream_open(&closed_stream, ends[1]), 0);
    CHECK_INT(conc_gen_next(&left, &item), 1);
    CHECK_INT(conc_gen_next(&closed, &item), 1);
    CHECK_INT(conc_gen_close(&closed), 0);
    CHECK_INT(conc_stream_close(&closed_stream), 0);
    return 0;
}

enum { LINE_OF_GENERATOR = __LINE__ - 11, LINE_OF_STREAM = __LINE__ - 9 };

TEST(generators_and_streams_left_open_are_reported_with_the_location_of_their_opening)
{
    run_for_report(leaves_things_open, debugging);
    CHECK_CONTAINS(report,
                   placed("a generator was left open, opened at ", LINE_OF_GENERATOR, "\n"));
    CHECK_CONTAINS(report, placed("a stream was left open, opened at ", LINE_OF_STREAM, "\n"));
    CHECK_INT(count_in(report, "left open"), 2);
}

static int exhausts(void *arg)
{
    conc_gen g = {0};
    int item;
    CHECK_INT(conc_gen_open(&g, emits_one, arg, sizeof item), 0);
    while (conc_gen_next(&g, &item) == 1)
        continue;
    return 0;
}

TEST(a_finished_generator_is_not_left_open)
{
    run_for_report(exhausts, debugging);
    CHECK_INT(count_in(report, "left open"), 0);
}

/* ---- ignored cancels ---- */

static int ignores_its_cancel(void *arg)
{
    for (int i = 0; i < *(int *)arg; i++)
        CHECK_INT(conc_sleep(1), -ECANCELED);
    return -ECANCELED;
}

static int cancel_count;

static int cancels_the_stubborn(void *arg)
{
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_spawn(&g, ignores_its_cancel, &cancel_count), 0);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

enum { LINE_OF_STUBBORN = __LINE__ - 5 };

TEST(a_cancel_that_is_ignored_a_thousand_times_is_reported_once)
{
    cancel_count = 5000;
    run_for_report(cancels_the_stubborn, debugging);
    CHECK_CONTAINS(report, placed("conc: ignores_its_cancel at ", LINE_OF_STUBBORN,
                                  ": it was cancelled: 1000 calls"));
    CHECK_INT(count_in(report, "it was cancelled"), 1);
    cancel_count = 900;
    run_for_report(cancels_the_stubborn, debugging);
    CHECK_INT(count_in(report, "it was cancelled"), 0);
}

/* ---- the wrong thread ---- */

static conc_event bell;

static void *rings(void *arg)
{
    (void)arg;
    conc_event_set(&bell);
    return NULL;
}

static int waits_for_the_bell(void *arg)
{
    (void)arg;
    return conc_event_wait(&bell);
}

static int has_a_thread_ring(void *arg)
{
    conc_group g = {0};
    pthread_t thread;
    (void)arg;
    bell = (conc_event){0};
    CHECK_INT(conc_spawn(&g, waits_for_the_bell, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(pthread_create(&thread, NULL, rings, NULL), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK(!conc_event_is_set(&bell));
    conc_event_set(&bell);
    return conc_group_wait(&g);
}

TEST(a_call_from_another_thread_changes_nothing_and_is_reported)
{
    run_for_report(has_a_thread_ring, debugging);
    CHECK_CONTAINS(
        report,
        "conc: a thread without a run: conc_event_set: a task of another loop is waiting on it");
    if (!getenv("CONC_DEBUG")) {
        run_for_report(has_a_thread_ring, (conc_options){.virtual_clock = true});
        CHECK_STR(report, "");
    }
}

static conc_queue jobs = CONC_QUEUE(int, 1);

static void *destroys(void *arg)
{
    (void)arg;
    conc_queue_destroy(&jobs);
    return NULL;
}

static int waits_for_a_job(void *arg)
{
    int job, rc = conc_queue_get(&jobs, &job);
    (void)arg;
    return rc == -EPIPE ? 0 : rc;
}

static int has_a_thread_destroy(void *arg)
{
    conc_group g = {0};
    pthread_t thread;
    (void)arg;
    CHECK_INT(conc_spawn(&g, waits_for_a_job, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(pthread_create(&thread, NULL, destroys, NULL), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    conc_queue_destroy(&jobs);
    return conc_group_wait(&g);
}

TEST(a_queue_that_another_thread_may_not_destroy_is_reported_by_name)
{
    run_for_report(has_a_thread_destroy, debugging);
    CHECK_CONTAINS(report, "conc_queue_destroy: a task of another loop is waiting on it");
}

static conc_task sleeping;
static conc_group cancelled;

static void *calls_what_only_tasks_may(void *arg)
{
    (void)arg;
    CHECK_INT(conc_sleep(1), -EPERM);
    CHECK_INT(conc_cancel(&sleeping), -EPERM);
    CHECK_INT(conc_spawn(&cancelled, waits_for_the_bell, NULL), -EPERM);
    conc_group_cancel(&cancelled);
    return NULL;
}

static int has_a_thread_call(void *arg)
{
    pthread_t thread;
    bell = (conc_event){0};
    CHECK_INT(conc_spawn_task(&cancelled, &sleeping, waits_for_the_bell, arg), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(pthread_create(&thread, NULL, calls_what_only_tasks_may, NULL), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    conc_event_set(&bell);
    return conc_group_wait(&cancelled);
}

TEST(every_call_from_another_thread_is_reported)
{
    run_for_report(has_a_thread_call, debugging);
    CHECK_CONTAINS(report, "conc: a thread without a run: conc_sleep: only a task may call it");
    CHECK_CONTAINS(report,
                   "conc: a thread without a run: conc_cancel: this is not the task's loop");
    CHECK_CONTAINS(report,
                   "conc: a thread without a run: conc_group_cancel: it belongs to another loop");
    CHECK_INT(count_in(report, "a thread without a run"), 4);
}

/* ---- conc's descriptors, closed by other means ---- */

static int reads_a_byte(void *fd)
{
    char byte;
    CHECK_INT(conc_read(*(int *)fd, &byte, 1), -EBADF);
    return 0;
}

typedef struct line_of_two {
    int listener, dialled, accepted;
} line_of_two;

static void open_line(line_of_two *line)
{
    char address[64];
    line->listener = conc_listen("127.0.0.1:0");
    CHECK_INT(conc_address(line->listener, false, address, sizeof address), 0);
    line->dialled = conc_dial(address);
    line->accepted = conc_accept(line->listener);
    CHECK(line->dialled >= 0 && line->accepted >= 0);
}

static int closes_under_a_reader(void *arg)
{
    line_of_two line;
    conc_group g = {0};
    (void)arg;
    open_line(&line);
    CHECK_INT(conc_spawn(&g, reads_a_byte, &line.dialled), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(close(line.dialled), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_close(line.accepted), 0);
    return conc_close(line.listener);
}

/* Another file reuses the number: what the loop knows of the old one must not matter. */
static int has_the_number_used_again(void *arg)
{
    line_of_two line;
    char byte = 'x';
    int ends[2];
    (void)arg;
    open_line(&line);
    CHECK_INT(conc_write(line.accepted, &byte, 1), 1);
    CHECK_INT(conc_read(line.dialled, &byte, 1), 1);
    CHECK_INT(conc_wait_fd(line.dialled, CONC_WRITABLE), CONC_WRITABLE);
    CHECK_INT(close(line.dialled), 0);
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(dup2(ends[0], line.dialled), line.dialled);
    CHECK_INT(write(ends[1], "y", 1), 1);
    CHECK_INT(conc_read(line.dialled, &byte, 1), 1);
    CHECK(byte == 'y');
    return 0;
}

/* On the real clock: the loop finds a close that no call noticed when it has been quiet for a
 * while. */
TEST(a_descriptor_of_conc_that_is_closed_behind_its_back_is_reported)
{
    conc_options o = {.debug = true, .slow_step = 10};
    for (int i = 0; i < 2; i++) {
        setenv("CONC_POLL", i ? "poll" : TEST_POLLER, 1);
        run_for_report(closes_under_a_reader, o);
        CHECK_INT(count_in(report, ", which conc opened: it was closed, but not with conc_close"),
                  1);
        run_for_report(has_the_number_used_again, o);
        CHECK_INT(count_in(report, ", which conc opened: it was closed, but not with conc_close"),
                  1);
    }
}

/* ---- stacks ---- */

__attribute__((noinline)) static int takes(size_t bytes)
{
    volatile char room[60000];
    for (size_t i = 0; i < bytes; i++)
        room[i] = 1;
    return room[bytes - 1] - 1;
}

static int takes_much(void *arg)
{
    (void)arg;
    return takes(60000);
}

static int takes_little(void *arg)
{
    (void)arg;
    return 0;
}

static int uses_stacks(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_spawn(&g, takes_much, arg), 0);
        CHECK_INT(conc_yield(), 0); /* the next task has the same stack */
        CHECK_INT(conc_spawn(&g, takes_little, arg), 0);
        CHECK_INT(conc_yield(), 0);
    }
    return conc_group_wait(&g);
}

static size_t used_by(const char *name)
{
    for (const char *line = strstr(report, "conc: stacks: "); line;
         line = strstr(line + 1, "conc: stacks: ")) {
        size_t used, size;
        char who[128];
        CHECK_INT(sscanf(line, "conc: stacks: %zu of %zu bytes used by %127s", &used, &size, who),
                  3);
        if (strcmp(who, name) == 0)
            return used;
    }
    test_fail(__FILE__, __LINE__, "%s is missing in\n%s", name, report);
    return 0;
}

TEST(the_end_of_the_run_reports_stack_usage_largest_first)
{
    if (SANITIZED || test_on_valgrind())
        return; /* frames differ, and under Valgrind none is inspected */
    run_for_report(uses_stacks, debugging);
    CHECK(used_by("takes_much") >= 60000);
    CHECK(used_by("takes_much") < 70000);
    CHECK(used_by("takes_little") < 30000);
    CHECK(strstr(report, "takes_much") < strstr(report, "takes_little"));
    CHECK_CONTAINS(report, "(3 of them)");
}

/* ---- memory that does not last long enough, or was never touched ---- */

static int sleeps_a_second(void *arg)
{
    (void)arg;
    return conc_sleep(1);
}

static int ends_with_its_group(void *arg)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, sleeps_a_second, arg));
    return conc_group_wait(&g);
}

static int lends_its_variable(void *arg)
{
    static int lasts;
    int local = 0;
    (void)arg;
    CHECK_INT(conc_spawn(NULL, sleeps_a_second, &lasts), 0);
    CHECK_INT(conc_spawn(NULL, ends_with_its_group, &local), 0);
    CHECK_INT(conc_spawn(NULL, ends_with_its_group, &lasts), 0);
    CHECK_INT(conc_settle(), 0);
    return 0;
}

static int lends_its_variable_to_many(void *arg)
{
    int local = 0;
    (void)arg;
    for (int i = 0; i < 50; i++)
        CHECK_INT(conc_spawn(NULL, sleeps_a_second, &local), 0);
    return 0;
}

TEST(background_tasks_whose_arg_is_on_the_stack_of_a_returned_main_fn_are_reported)
{
    static const char lies[] =
        ": its arg points to a local variable of main_fn, which has returned";
    if (SANITIZED)
        return; /* which may keep locals elsewhere */
    run_for_report(lends_its_variable, debugging);
    CHECK_INT(count_in(report, lies), 2); /* the task, and its child */
    CHECK_CONTAINS(report, "conc: ends_with_its_group at ");
    run_for_report(lends_its_variable_to_many, debugging);
    CHECK_INT(count_in(report, lies), 20);
    CHECK_CONTAINS(report, "conc: so do the args of 30 others\n");
    run_for_report(lends_its_variable, (conc_options){.virtual_clock = true});
    CHECK_STR(report, "");
}

static long resident_pages(void)
{
    long all = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    int read = f ? fscanf(f, "%ld %ld", &all, &resident) : 0;
    if (f)
        fclose(f);
    return read == 2 ? resident : 0;
}

enum { HOLE = 512 * 1024 * 1024 };

static int touches_both_ends(void *arg)
{
    volatile char large[HOLE];
    (void)arg;
    large[0] = large[sizeof large - 1] = 1;
    return large[0] - 1;
}

static int has_large_frames(void *arg)
{
    long before = resident_pages();
    conc_group g = {.stack_size = (size_t)HOLE + 65536};
    CHECK_INT(conc_spawn(&g, touches_both_ends, arg), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK((resident_pages() - before) * sysconf(_SC_PAGESIZE) < HOLE / 4);
    return 0;
}

TEST(debug_mode_does_not_touch_what_a_large_frame_never_touched)
{
    if (SANITIZED || test_on_valgrind() || sizeof(void *) < 8)
        return;
    run_for_report(has_large_frames, debugging);
    CHECK(used_by("touches_both_ends") > HOLE);
    CHECK(used_by("touches_both_ends") < HOLE + 65536);
}

/* ---- SIGUSR2 ---- */

static int sleeps_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int is_asked(void *arg)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, sleeps_forever, arg), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(kill(getpid(), SIGUSR2), 0);
    CHECK_INT(conc_sleep(1), 0);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

TEST(a_signal_prints_the_tasks)
{
    struct sigaction now;
    run_for_report(is_asked, debugging);
    CHECK_CONTAINS(report, "conc: 2 tasks, time ");
    CHECK_CONTAINS(report, "sleeps_forever at ");
    CHECK_CONTAINS(report, ": sleeps forever [");
    CHECK_INT(sigaction(SIGUSR2, NULL, &now), 0);
    CHECK(now.sa_handler == SIG_DFL);
}

static int receives_it_itself(void *arg)
{
    conc_signals s = {0};
    CHECK_INT(conc_signals_open(&s, (int[]){SIGUSR2}, 1), 0);
    CHECK_INT(is_asked(arg), 0);
    CHECK_INT(conc_signals_next(&s), SIGUSR2);
    return conc_signals_close(&s);
}

TEST(a_signal_that_the_program_receives_itself_prints_nothing)
{
    run_for_report(receives_it_itself, debugging);
    CHECK_INT(count_in(report, " tasks, time "), 0);
}

static volatile sig_atomic_t handled;
static void handles(int number) { handled = number; }

static int has_a_handler(void *arg)
{
    int rc = is_asked(arg);
    CHECK_INT(handled, SIGUSR2);
    return rc;
}

static void run_with_a_handler(void)
{
    struct sigaction own = {.sa_handler = handles};
    CHECK_INT(sigaction(SIGUSR2, &own, NULL), 0);
    CHECK_INT(conc_run_with(&debugging, has_a_handler, NULL), 0);
}

TEST(a_handler_of_the_program_stays)
{
    CHECK_INT(test_in_process(run_with_a_handler, report, sizeof report), 0);
    CHECK_INT(count_in(report, " tasks, time "), 0);
}

/* ---- very many tasks ---- */

static conc_lock locked;

static int wants_the_lock(void *arg)
{
    (void)arg;
    CONC_TRY(conc_lock_acquire(&locked));
    return conc_lock_release(&locked);
}

static int crowds(void *arg)
{
    static char text[65536];
    int n = SANITIZED || PLAIN || test_seeded() || test_on_valgrind() ? 5000 : 100000;
    conc_group g = {0};
    CHECK_INT(conc_lock_acquire(&locked), 0);
    for (int i = 0; i < n; i++)
        CHECK_INT(conc_spawn(&g, i % 10 ? sleeps_forever : wants_the_lock, arg), 0);
    CHECK_INT(conc_sleep(1), 0);
    FILE *out = fmemopen(text, sizeof text, "w");
    CHECK(out != NULL);
    conc_dump(out);
    CHECK_INT(fclose(out), 0);
    char expected[128];
    snprintf(expected, sizeof expected, "  %d x i %% 10 ? sleeps_forever : wants_the_lock at ",
             n / 10 * 9);
    CHECK_CONTAINS(text, expected);
    snprintf(expected, sizeof expected, "  %d x ", n / 10);
    CHECK_CONTAINS(text, expected);
    CHECK_CONTAINS(text, "waits for a lock that main acquired at ");
    CHECK_CONTAINS(text, "[1.000 s]");
    CHECK(count_in(text, "\n") < 12);
    CHECK_INT(conc_lock_release(&locked), 0);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

TASK_TEST(a_dump_of_very_many_tasks_counts_tasks_in_the_same_state) { CHECK_INT(crowds(NULL), 0); }

/* ---- deadlock cycles ---- */

static conc_lock forks[5];

static int dines(void *seat)
{
    int i = *(int *)seat;
    char name[32];
    snprintf(name, sizeof name, "philosopher %d", i);
    conc_set_name(conc_self(), name);
    CONC_TRY(conc_lock_acquire(&forks[i]));
    int rc = conc_sleep(1);
    if (rc == 0)
        rc = conc_lock_acquire(&forks[(i + 1) % 5]);
    CHECK_INT(conc_lock_release(&forks[i]), 0);
    return rc;
}

static int has_dinner(void *arg)
{
    int seats[] = {0, 1, 2, 3, 4};
    (void)arg;
    return CONC_MAP(dines, seats);
}

TEST(a_deadlock_shows_the_cycle)
{
    run_for_report(has_dinner, (conc_options){.virtual_clock = true});
    const char *cycle = strstr(report, "conc: a cycle: each waits for the next");
    CHECK(cycle != NULL);
    CHECK_INT(count_in(cycle, "\n  philosopher "), 5);
    CHECK_INT(count_in(cycle, "\n  main"), 0);
    char first[32] = "", last[32] = "";
    const char *p = strstr(cycle, "\n  philosopher ");
    snprintf(first, sizeof first, "%.13s", p + 3);
    for (const char *next; (next = strstr(p + 1, "\n  philosopher ")); p = next) {
        char wanted[64]; /* the next one holds what this one waits for */
        snprintf(wanted, sizeof wanted, "that %.13s acquired", next + 3);
        const char *holder = strstr(p, wanted);
        CHECK(holder && holder < next);
    }
    snprintf(last, sizeof last, "that %.13s", first);
    CHECK_CONTAINS(p, last);
}

static int joins_its_parent(void *parent)
{
    CHECK_INT(conc_join(parent, NULL), -ECANCELED);
    return -ECANCELED;
}

static int waits_for_a_child_that_waits_for_it(void *arg)
{
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_spawn(&g, sleeps_forever, NULL), 0);
    CHECK_INT(conc_spawn(&g, joins_its_parent, conc_self()), 0);
    return conc_group_wait(&g);
}

TEST(a_cycle_through_a_group_is_found)
{
    run_for_report(waits_for_a_child_that_waits_for_it, (conc_options){.virtual_clock = true});
    const char *cycle = strstr(report, "conc: a cycle");
    CHECK(cycle != NULL);
    CHECK_CONTAINS(cycle, "  main: waits for 2 children");
    CHECK_CONTAINS(cycle, "  joins_its_parent at ");
    CHECK_INT(count_in(cycle, "\n  sleeps_forever"), 0);
}

TEST(a_deadlock_without_a_cycle_shows_none)
{
    run_for_report(sleeps_forever, (conc_options){.virtual_clock = true});
    CHECK_CONTAINS(report, "conc: deadlock");
    CHECK_INT(count_in(report, "cycle"), 0);
}

/* ---- statistics ---- */

static int works_and_sleeps(void *arg)
{
    (void)arg;
    CONC_TRY(conc_block(0.5));
    CONC_TRY(conc_sleep(2));
    return conc_block(0.25);
}

static int measures(void *arg)
{
    conc_group g = {0};
    conc_stats s;
    bool exact = *(bool *)arg;
    CHECK_INT(conc_spawn(&g, works_and_sleeps, NULL), 0);
    CHECK_INT(conc_spawn(&g, works_and_sleeps, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    conc_get_stats(&s);
    CHECK_INT(s.peak, 3);
    CHECK_INT(s.tasks, 1);
    CHECK_INT(s.spawned, 3);
    CHECK_INT(s.running * 1e9 + 0.5, 1500000000);
    CHECK_INT(s.idle * 1e9 + 0.5, conc_now() * 1e9 + 0.5 - 1500000000);
    if (exact)
        CHECK(s.waiting >= 4 && s.waiting < 8);
    else
        CHECK_INT(s.waiting, 0);
    return 0;
}

TEST(time_is_running_waiting_or_idle)
{
    bool exact = true;
    CHECK_INT(conc_run_with(&debugging, measures, &exact), 0);
    exact = getenv("CONC_DEBUG") != NULL;
    CHECK_INT(conc_run_with(&(conc_options){.virtual_clock = true}, measures, &exact), 0);
}

static int is_held(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return 0;
}

TASK_TEST(jobs_that_have_not_begun_are_counted)
{
    static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    conc_pool pool = {.threads = 1};
    conc_job jobs[5];
    conc_stats s;
    CHECK_INT(conc_pool_open(&pool), 0);
    pthread_mutex_lock(&gate);
    for (size_t i = 0; i < CONC_LEN(jobs); i++)
        CHECK_INT(conc_pool_submit(&pool, &jobs[i], is_held, &gate), 0);
    do {
        CHECK_INT(conc_yield(), 0);
        conc_get_stats(&s);
        CHECK(s.jobs_queued <= 5);
    } while (s.jobs_queued > 4); /* until the thread has begun the first */
    pthread_mutex_unlock(&gate);
    for (size_t i = 0; i < CONC_LEN(jobs); i++)
        CHECK_INT(conc_job_wait(&jobs[i], NULL), 0);
    conc_get_stats(&s);
    CHECK_INT(s.jobs_queued, 0);
    CHECK_INT(conc_pool_close(&pool), 0);
}
