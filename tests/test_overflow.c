/* test_overflow.c - the report of a stack overflow names the task, its location, its stack size
 * and the option to raise; the program's own SIGSEGV action follows.
 *
 * Not under: asan, gcc-asan, tsan, valgrind (they report it in their own way), no-epoll,
 * save-fpu, poll (which change nothing here) Seeds: 2 (each test starts processes) */
#include "conc_test.h"

#include <sys/mman.h>

static char report[65536];

__attribute__((noinline)) static int recurse(int depth)
{
    volatile char room[512];
    room[0] = (char)depth;
    int rc = depth > 0 ? recurse(depth - 1) : 0;
    return rc + room[0];
}

static int overflows(void *name)
{
    if (name)
        conc_set_name(conc_self(), name);
    return recurse(100000000);
}

static int waits(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static size_t size;
static const char *named;

static int spawns_one_that_overflows(void *arg)
{
    (void)arg;
    conc_group g = {.stack_size = size};
    CHECK_INT(conc_spawn(&g, waits, NULL), 0);
    CHECK_INT(conc_spawn(&g, overflows, (void *)(uintptr_t)named), 0);
    CHECK_INT(conc_spawn(&g, waits, NULL), 0);
    return conc_group_wait(&g);
}

enum { LINE_OF_THE_SPAWN = __LINE__ - 5 };

static const conc_options debugging = {.debug = true, .virtual_clock = true, .slow_step = 1000};

static void run_debugging(conc_fn *fn) { (void)conc_run_with(&debugging, fn, NULL); }
static void run_overflow(void) { run_debugging(spawns_one_that_overflows); }
static void run_overflow_of_main(void) { run_debugging(overflows); }

static int run_for_report(void (*fn)(void)) { return test_in_process(fn, report, sizeof report); }

static void check_died(int status, int number)
{
    if (!WIFSIGNALED(status) || WTERMSIG(status) != number)
        test_fail(__FILE__, __LINE__, "it should have died of signal %d; status 0x%x, stderr:\n%s",
                  number, (unsigned)status, report);
}

static void check_place(int line)
{
    char place[256];
    snprintf(place, sizeof place, "%s:%d", TEST_FILE, line);
    CHECK_CONTAINS(report, place);
}

TEST(an_overflow_report_names_the_task_its_location_its_size_and_the_option_to_raise)
{
    static const struct {
        size_t size;
        const char *words, *setting;
    } cases[] = {{16384, "all 16384 bytes", "CONC_STACK=32768"},
                 {65536, "all 65536 bytes", "CONC_STACK=131072"},
                 {1 << 20, "all 1048576 bytes", "CONC_STACK=2097152"}};
    for (size_t i = 0; i < CONC_LEN(cases); i++) {
        size = cases[i].size;
        check_died(run_for_report(run_overflow), SIGSEGV);
        CHECK_CONTAINS(report, "conc: stack overflow: overflows at ");
        check_place(LINE_OF_THE_SPAWN);
        CHECK_CONTAINS(report, cases[i].words);
        CHECK_CONTAINS(report, cases[i].setting);
        CHECK_CONTAINS(report, "conc_group.stack_size");
    }
}

TEST(a_named_task_is_reported_with_its_spawn_location)
{
    size = 65536;
    named = "the deep one";
    check_died(run_for_report(run_overflow), SIGSEGV);
    CHECK_CONTAINS(report, "conc: stack overflow: the deep one (spawned at ");
    check_place(LINE_OF_THE_SPAWN);
}

TEST(an_overflow_of_main_is_reported)
{
    check_died(run_for_report(run_overflow_of_main), SIGSEGV);
    CHECK_CONTAINS(report, "conc: stack overflow: main ");
    CHECK_CONTAINS(report, "conc_options.stack_size");
}

static int overflowing_body(conc_gen *g, void *arg)
{
    (void)g;
    return overflows(arg);
}

static int consumes(void *arg)
{
    int item;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, overflowing_body, arg, sizeof item), 0);
    return conc_gen_next(&g, &item);
}

static void run_overflow_of_a_generator(void) { run_debugging(consumes); }

TEST(an_overflow_of_a_generator_is_reported_with_its_consumers_task)
{
    check_died(run_for_report(run_overflow_of_a_generator), SIGSEGV);
    CHECK_CONTAINS(report, "conc: stack overflow: main ");
    CHECK_CONTAINS(report, "its generator's stack");
}

static int touches_nothing_good(void *arg)
{
    char *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)arg;
    CHECK(page != MAP_FAILED);
    return *(volatile char *)page;
}

static void run_another_fault(void) { run_debugging(touches_nothing_good); }

TEST(another_fault_is_no_overflow)
{
    check_died(run_for_report(run_another_fault), SIGSEGV);
    CHECK(strstr(report, "overflow") == NULL);
}

static void run_quietly(void)
{
    static const conc_options o = {.virtual_clock = true};
    (void)conc_run_with(&o, overflows, NULL);
}

TEST(without_debug_mode_nothing_is_reported)
{
    if (getenv("CONC_DEBUG"))
        return;
    check_died(run_for_report(run_quietly), SIGSEGV);
    CHECK(strstr(report, "conc:") == NULL);
}

static int sends_itself_the_signal(void *arg)
{
    (void)arg;
    raise(SIGSEGV);
    return 0;
}

static void run_raise(void) { run_debugging(sends_itself_the_signal); }

TEST(a_signal_that_is_sent_kills_as_it_would_without_conc)
{
    check_died(run_for_report(run_raise), SIGSEGV);
    CHECK(strstr(report, "overflow") == NULL);
}

static int forks_a_child_that_overflows(void *arg)
{
    int status;
    (void)arg;
    pid_t child = fork();
    if (child == 0) {
        alarm(10);
        run_overflow();
        _exit(3);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    CHECK_INT(WTERMSIG(status), SIGSEGV);
    return 0;
}

static void run_fork(void) { run_debugging(forks_a_child_that_overflows); }

TEST(a_forked_child_has_its_own_report_and_dies)
{
#ifdef CONC_TEST_PLAIN
    /* QEMU itself fails if a child that was forked from a program with threads starts a thread */
    return;
#endif
    size = 65536;
    CHECK_INT(run_for_report(run_fork), 0);
    CHECK_CONTAINS(report, "conc: stack overflow: overflows at ");
}

/* ---- the program's own handler ---- */

static void says_so(int number)
{
    (void)!write(2, "the program's handler", 21);
    _exit(number == SIGSEGV ? 3 : 4);
}

static void says_more(int number, siginfo_t *info, void *context)
{
    (void)!write(2, info && context ? "the program's handler" : "no information",
                 info && context ? 21 : 14);
    _exit(number == SIGSEGV ? 5 : 6);
}

static void with_a_plain_handler(void)
{
    struct sigaction own = {.sa_handler = says_so};
    sigaction(SIGSEGV, &own, NULL);
    run_overflow();
}

static void with_a_knowing_handler(void)
{
    struct sigaction own = {.sa_flags = SA_SIGINFO};
    own.sa_sigaction = says_more;
    sigaction(SIGSEGV, &own, NULL);
    run_overflow();
}

static void check_then_handler(void (*fn)(void), int exit_code)
{
    int status = run_for_report(fn);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != exit_code)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, report);
    CHECK_CONTAINS(report, "stack overflow");
    CHECK_CONTAINS(report, "the program's handler");
    CHECK(strstr(report, "stack overflow") < strstr(report, "the program's handler"));
}

TEST(a_handler_of_the_program_is_called_afterwards)
{
    size = 65536;
    check_then_handler(with_a_plain_handler, 3);
    check_then_handler(with_a_knowing_handler, 5);
}

static struct sigaction chained;

static void passes_on(int number, siginfo_t *info, void *context)
{
    chained.sa_sigaction(number, info, context);
}

static int installs_a_handler_that_passes_on(void *arg)
{
    struct sigaction own = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    (void)arg;
    own.sa_sigaction = passes_on;
    return sigaction(SIGSEGV, &own, &chained);
}

static void with_handlers_in_a_circle(void)
{
    alarm(10);
    run_debugging(installs_a_handler_that_passes_on);
    run_overflow();
}

TEST(handlers_that_call_each_other_end)
{
    check_died(run_for_report(with_handlers_in_a_circle), SIGSEGV);
    CHECK_CONTAINS(report, "conc: stack overflow: overflows at ");
}

static int returns_0(void *arg)
{
    (void)arg;
    return 0;
}

TEST(after_the_run_everything_is_restored)
{
    struct sigaction own = {.sa_handler = says_so}, now;
    sigaction(SIGSEGV, &own, NULL);
    CHECK_INT(conc_run_with(&debugging, returns_0, NULL), 0);
    CHECK_INT(sigaction(SIGSEGV, NULL, &now), 0);
    CHECK(now.sa_handler == says_so);
    CHECK_INT(sigaction(SIGBUS, NULL, &now), 0);
    CHECK(now.sa_handler == SIG_DFL);
}

/* ---- local arrays that are larger than the stack */

/* Touches only the far end, as reading into the array does first. */
static int touch(char *room)
{
    char *volatile whole = room; /* so that no compiler shrinks the array */
    *whole = 1;
    return *whole;
}

static int has_300_kib(void *arg)
{
    char room[300 * 1024];
    (void)arg;
    return touch(room);
}

static int has_1200_kib(void *arg)
{
    char room[1200 * 1024];
    (void)arg;
    return touch(room);
}

static conc_fn *large;
static bool in_debug_mode;

static int spawns_it_between_others(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < 9; i++)
        CHECK_INT(conc_spawn(&g, i == 4 ? large : waits, arg), 0);
    return conc_group_wait(&g);
}

static void run_large(void)
{
    conc_options o = debugging;
    o.debug = in_debug_mode;
    unsetenv("CONC_STACK");
    unsetenv("CONC_DEBUG");
    (void)conc_run_with(&o, spawns_it_between_others, NULL);
}

TEST(a_local_array_larger_than_the_stack_hits_the_guard_region)
{
    large = has_300_kib;
    check_died(run_for_report(run_large), SIGSEGV);
    in_debug_mode = true;
    check_died(run_for_report(run_large), SIGSEGV);
    CHECK_CONTAINS(report, "conc: stack overflow: ");
    large = has_1200_kib;
    check_died(run_for_report(run_large), SIGSEGV);
    CHECK_CONTAINS(report, "conc: stack overflow: ");
}
