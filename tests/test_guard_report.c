/* test_guard_report.c - CONC_GUARD_REPORT: reports a stack overflow even without debug mode.
 *
 * Not under: asan, gcc-asan, tsan, valgrind (they report it in their own way), no-epoll,
 * save-fpu, poll (which change nothing here) Seeds: 2 (each test starts processes) */
#define CONC_GUARD_REPORT
#include "conc_test.h"

__attribute__((noinline)) static int recurse(int depth)
{
    volatile char room[512];
    room[0] = (char)depth;
    int rc = depth > 0 ? recurse(depth - 1) : 0;
    return rc + room[0];
}

static int overflows(void *arg)
{
    (void)arg;
    return recurse(100000000);
}

static void run_overflow(void) { (void)conc_run(overflows, NULL); }

TEST(an_overflow_is_reported_without_debug_mode)
{
    CHECK_DIES(run_overflow, SIGSEGV, "conc: stack overflow: main used all ");
}

static int returns_7(void *arg)
{
    (void)arg;
    return 7;
}

TEST(a_run_that_does_not_overflow_prints_nothing)
{
    struct sigaction now;
    CHECK_INT(conc_run(returns_7, NULL), 7);
    CHECK_INT(sigaction(SIGSEGV, NULL, &now), 0);
    CHECK(now.sa_handler == SIG_DFL);
}
