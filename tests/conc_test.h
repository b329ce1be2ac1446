/* conc_test.h - what every test file includes: the implementation, Check, and macros to write
 * tests with.
 *
 *     TEST(a_join_returns_the_result) { CHECK_INT(conc_run(f, NULL), 42); }
 *         runs outside any run
 *     TASK_TEST(a_sleep_takes_its_time) { conc_sleep(2); CHECK_TIME(2); }
 *         is the main_fn of a run on the virtual clock
 *     ORDERED_TEST(..), ORDERED_TASK_TEST(..)
 *         the same for tests that depend on FIFO order: omitted under CONC_SEED
 *     VARIANT_TEST(..)
 *         repeats a test in another way: omitted under CONC_SEED and if TEST_ONCE is set
 *
 * #define TEST_SYNC before the include also includes conc_sync.h, and TEST_POOL conc_pool.h. Tests
 * register themselves; this header has main(). Each runs in its own process, with its own time
 * limit. With CONC_TEST_PLAIN the tests do not need Check, for machines that lack it; tests,
 * processes and limits are the same. With CONC_TEST_LINKED another file has the implementation.
 */
#ifndef CONC_TEST_H
#define CONC_TEST_H

#if !defined CONC_STATIC && !defined CONC_TEST_LINKED
#define CONC_IMPLEMENTATION
#endif
#if defined TEST_SYNC && __has_include("conc_sync.h") /* else conc.h is the single file, with it */
#include "conc_sync.h"
#endif
#if defined TEST_POOL && __has_include("conc_pool.h")
#include "conc_pool.h"
#endif
#include "conc.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The best way of waiting for descriptors in this build, by its CONC_POLL name; poll(2) alone has
 * no descriptor that another loop could wait for. */
#if defined CONC_NO_EPOLL
#define TEST_POLLER "poll"
#define TEST_ONLY_POLL 1
#elif defined CONC__KQUEUE || defined __APPLE__
#define TEST_POLLER "kqueue"
#define TEST_ONLY_POLL 0
#else
#define TEST_POLLER "epoll"
#define TEST_ONLY_POLL 0
#endif

#ifndef TEST_SECONDS
/* the time limit of a test; multiplied by CK_TIMEOUT_MULTIPLIER from the environment */
#define TEST_SECONDS 20
#endif

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SANITIZED true
#elif defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define SANITIZED true
#endif
#endif
#ifndef SANITIZED
#define SANITIZED false
#endif

typedef struct test_case {
    const char *name;
    void (*body)(void);
    struct test_case *next;
} test_case;

static test_case *test_first, **test_last = &test_first;

static inline bool test_seeded(void) { return getenv("CONC_SEED") != NULL; }

static inline void test_add(test_case *t, bool left_out)
{
    if (left_out)
        return;
    *test_last = t;
    test_last = &t->next;
}

#define TEST_REGISTERED(name, run, left_out)                       \
    __attribute__((constructor)) static void test_add_##name(void) \
    {                                                              \
        static test_case t = {#name, run, NULL};                   \
        test_add(&t, left_out);                                    \
    }
#define TEST_PLAIN_(name, left_out)       \
    static void name(void);               \
    TEST_REGISTERED(name, name, left_out) \
    static void name(void)
#define TEST_TASK_(name, left_out)                            \
    static void name(void);                                   \
    static void test_run_##name(void) { test_in_task(name); } \
    TEST_REGISTERED(name, test_run_##name, left_out)          \
    static void name(void)

#define TEST(name) TEST_PLAIN_(name, false)
#define VARIANT_TEST(name) TEST_PLAIN_(name, getenv("TEST_ONCE") || test_seeded())
#define ORDERED_TEST(name) TEST_PLAIN_(name, test_seeded())
#define TASK_TEST(name) TEST_TASK_(name, false)
#define ORDERED_TASK_TEST(name) TEST_TASK_(name, test_seeded())

/* This file's name in conc's locations: without directories. */
#define TEST_FILE (strrchr("/" __FILE__, '/') + 1)

#define CHECK(condition) \
    ((condition) ? (void)0 : test_fail(__FILE__, __LINE__, "not true: %s", #condition))
#define CHECK_INT(actual, expected) \
    test_check_int(__FILE__, __LINE__, #actual, (long long)(actual), (long long)(expected))
#define CHECK_STR(actual, expected) \
    test_check_str(__FILE__, __LINE__, #actual, (actual), (expected))
#define CHECK_CONTAINS(text, part) test_check_contains(__FILE__, __LINE__, #text, (text), (part))
/* Checks that conc_now() is exactly t seconds on the virtual clock, in whole nanoseconds. */
#define CHECK_TIME(t)                                                                           \
    test_check_int(__FILE__, __LINE__, "conc_now() in ns", (long long)(conc_now() * 1e9 + 0.5), \
                   (long long)((t)*1e9 + 0.5))
/* Checks that this signal ends fn()'s process, with this text on stderr. */
#define CHECK_DIES(fn, signal_number, text) \
    test_check_dies(__FILE__, __LINE__, (fn), (signal_number), (text))

#ifdef CONC_TEST_PLAIN
#define TEST_FAIL_NOW(file, line, text) \
    (fprintf(stderr, "%s:%d: %s\n", file, line, text), fflush(NULL), _exit(1))
#else
#include <check.h>
#define TEST_FAIL_NOW(file, line, text) \
    (fprintf(stderr, "%s:%d: %s\n", file, line, text), ck_abort_msg("%s:%d: %s", file, line, text))
#endif

__attribute__((__format__(__printf__, 3, 4))) static inline void
test_fail(const char *file, int line, const char *fmt, ...)
{
    static char text[4096];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    TEST_FAIL_NOW(file, line, text);
}

static inline void test_check_int(const char *file, int line, const char *what, long long actual,
                                  long long expected)
{
    if (actual != expected)
        test_fail(file, line, "%s is %lld, not %lld", what, actual, expected);
}

static inline void test_check_str(const char *file, int line, const char *what, const char *actual,
                                  const char *expected)
{
    if (!actual || strcmp(actual, expected) != 0)
        test_fail(file, line, "%s is \"%s\", not \"%s\"", what, actual ? actual : "(NULL)",
                  expected);
}

static inline void test_check_contains(const char *file, int line, const char *what,
                                       const char *text, const char *part)
{
    if (!text || !strstr(text, part))
        test_fail(file, line, "%s lacks \"%s\":\n%s", what, part, text ? text : "(NULL)");
}

/* Runs fn in its own process and stores its stderr in text, cut to size. Returns the wait
 * status. */
static inline int test_in_process(void (*fn)(void), char *text, size_t size)
{
    int ends[2], status = -1;
    fflush(NULL);
    if (pipe(ends))
        test_fail(__FILE__, __LINE__, "pipe failed");
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        fn();
        fflush(NULL);
        _exit(0);
    }
    close(ends[1]);
    size_t length = 0;
    for (ssize_t n; (n = read(ends[0], text + length, size - 1 - length)) > 0 && length < size - 1;)
        length += (size_t)n;
    text[length] = 0;
    close(ends[0]);
    waitpid(child, &status, 0);
    return status;
}

static inline void test_check_dies(const char *file, int line, void (*fn)(void), int signal_number,
                                   const char *text)
{
    char output[16384];
    int status = test_in_process(fn, output, sizeof output);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != signal_number)
        test_fail(file, line, "it should have died of signal %d; status 0x%x, stderr:\n%s",
                  signal_number, (unsigned)status, output);
    test_check_contains(file, line, "stderr", output, text);
}

typedef struct test_task {
    void (*body)(void);
} test_task;

static inline int test_call_body(void *arg)
{
    test_task *t = arg;
    t->body();
    return 0;
}

static inline void test_in_task(void (*body)(void))
{
    test_task t = {body};
    conc_options options = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&options, test_call_body, &t), 0);
    CHECK(conc_loop_self() == NULL);
}

/* Returns the number of open descriptors, which must be the same before and after a run. */
static inline int test_count_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* A log of short words, for tests of order: note("a"); note("b"); CHECK_STR(noted, "a b"); */
static char noted[8192];
static inline void note(const char *word)
{
    if (noted[0])
        strncat(noted, " ", sizeof noted - strlen(noted) - 1);
    strncat(noted, word, sizeof noted - strlen(noted) - 1);
}

static inline double test_real_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

#ifdef CONC_TEST_PLAIN
static int test_main(void)
{
    int passed = 0, failed = 0;
    const char *factor = getenv("CK_TIMEOUT_MULTIPLIER");
    for (test_case *t = test_first; t; t = t->next) {
        int status = -1;
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            alarm(TEST_SECONDS * (unsigned)(factor ? atoi(factor) : 1));
            t->body();
            exit(0);
        }
        waitpid(child, &status, 0);
        if (status)
            fprintf(stderr, "FAILED: %s (status 0x%x)\n", t->name, (unsigned)status);
        status ? failed++ : passed++;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
#else
static test_case *test_current[1024];

/* Check's own handler of SIGALRM, which tests inherit, would kill the test if a process that it
 * forks reaches its limit; without it that process ends with the signal. */
static void test_call(int i)
{
    signal(SIGALRM, SIG_DFL);
    test_current[i]->body();
}

static int test_main(void)
{
    Suite *suite = suite_create(test_first ? "conc" : "nothing");
    int n = 0;
    for (test_case *t = test_first; t; t = t->next, n++) {
        static TTest descriptors[1024];
        TCase *tc = tcase_create(t->name);
        descriptors[n] = (TTest){t->name, test_call, __FILE__, __LINE__};
        test_current[n] = t;
        tcase_set_timeout(tc, TEST_SECONDS);
        _tcase_add_test(tc, &descriptors[n], 0, 0, n, n + 1);
        suite_add_tcase(suite, tc);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int passed = srunner_ntests_run(runner) - srunner_ntests_failed(runner),
        failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
#endif

static inline bool test_on_valgrind(void)
{
    const char *preloaded = getenv("LD_PRELOAD");
    return preloaded && strstr(preloaded, "vgpreload");
}

/* Grows the main thread's stack: without an alternate stack, Valgrind does not grow it for the
 * signal frame of a handler with SA_ONSTACK. */
__attribute__((noinline)) static void test_grow_stack(void)
{
    volatile char room[64 * 1024];
    for (size_t i = 0; i < sizeof room; i += 1024)
        room[sizeof room - 1 - i] = 0;
}

/* Gives each test the state that a shell would, even if the program was started in the background,
 * by nohup or cron, or with closed descriptors. */
static void test_settle_in(void)
{
    static const int numbers[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGPIPE, SIGALRM, SIGTERM,
                                  SIGUSR1, SIGUSR2, SIGCHLD, SIGCONT, SIGTSTP, SIGTTIN,
                                  SIGTTOU, SIGURG,  SIGXCPU, SIGXFSZ};
    sigset_t none;
    int fd;
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        sigaction(numbers[i], &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= 2)
        continue;
    close(fd);
}

int main(void)
{
    test_settle_in();
    test_grow_stack();
    return test_main();
}

#endif
