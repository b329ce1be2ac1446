/* test_children.c - conc_child: child programs: what they inherit, how they end, and that neither
 * processes nor descriptors are leaked.
 *
 * Seeds: 3 (it starts programs)
 * Not under: ucontext, no-epoll, save-fpu, poll, aarch64, aarch64-bti, riscv64, valgrind,
 * gcc-asan, single, clang, static (how tasks switch and wait is tested elsewhere; emulators and
 * Valgrind turn vfork(2) into fork(2), so that every start succeeds)
 */
#define _GNU_SOURCE 1 /* pipe2, RTLD_NEXT */
#define TEST_SPAWN
#include "pool_test.h"

#include <poll.h>
#include <sys/resource.h>
#include <sys/time.h>

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define ON_SANITIZER
#elif defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define ON_SANITIZER
#endif
#endif

enum { UNDECIDED = 100000 };

#define ARGV(...) \
    (const char *const[]) { __VA_ARGS__, (const char *)0 }
#define SH(script) ARGV("/bin/sh", "-c", (script))

/* Calls body, in a run or without one, and checks that no child and no descriptor is leaked. */
static void with_children(void (*body)(void), bool in_task)
{
    signal(SIGPIPE, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    int fds = test_count_fds();
    in_task ? test_in_task(body) : body();
    CHECK_INT(test_count_fds(), fds);
    check_no_children();
}

#define CHILD_TESTS_(kind_of_test, name, in_task)                    \
    static void body_of_##name(void);                                \
    kind_of_test(name) { with_children(body_of_##name, (in_task)); } \
    static void body_of_##name(void)
#define CHILD_TEST(name) CHILD_TESTS_(TEST, name, true)
#define ORDERED_CHILD_TEST(name) CHILD_TESTS_(ORDERED_TEST, name, true)
#define THREAD_CHILD_TEST(name) CHILD_TESTS_(TEST, name, false) /* outside any run */

/* ---- helpers ---- */

static void start(conc_child *c)
{
    CHECK_INT(conc_child_start(c), 0);
    CHECK(c->pid > 0);
}

static int wait_status(conc_child *c)
{
    int status = -1;
    CHECK_INT(conc_child_wait(c, &status), 0);
    return status;
}

static void check_exits(conc_child *c, int code)
{
    int status = wait_status(c);
    CHECK(WIFEXITED(status));
    CHECK_INT(WEXITSTATUS(status), code);
}

static void check_killed(conc_child *c, int signal_number)
{
    int status = wait_status(c);
    CHECK(WIFSIGNALED(status));
    CHECK_INT(WTERMSIG(status), signal_number);
}

static bool lives(int pid) { return kill(pid, 0) == 0; }

static void end_input(conc_child *c)
{
    CHECK_INT(conc_close(c->input), 0);
    c->input = -1;
}

/* Reads to the end of the file, as a string. */
static const char *read_all(int fd, char *buf, size_t size)
{
    ssize_t n = conc_read_full(fd, buf, size - 1);
    CHECK(n >= 0 && (size_t)n < size - 1);
    buf[n] = 0;
    return buf;
}

/* Returns the script's output; the script must succeed. */
static const char *output_of(const char *const *argv)
{
    static char text[16384];
    CONC_AUTO(conc_child, c) = {.argv = argv, .input = CONC_NULL, .output = CONC_PIPE};
    start(&c);
    read_all(c.output, text, sizeof text);
    check_exits(&c, 0);
    return text;
}

static void make_text(const char *name, const char *text, mode_t mode)
{
    make_file(path_of(name), text, strlen(text), mode);
}

/* Reads the available bytes of a pipe whose other ends are closed. */
static void check_pipe_has(int fd, const char *expected)
{
    char text[256];
    CHECK_STR(read_all(fd, text, sizeof text), expected);
}

/* ---- pipes ---- */

typedef struct transfer {
    conc_child *child;
    const char *data;
    size_t size;
    ssize_t moved;
} transfer;

static int feeds(void *arg)
{
    transfer *t = arg;
    t->moved = conc_write_full(t->child->input, t->data, t->size);
    end_input(t->child);
    return 0;
}

/* Asks for one byte more than there should be. */
static int drains(void *arg)
{
    transfer *t = arg;
    char *got = malloc(t->size + 1);
    CHECK(got != NULL);
    t->moved = conc_read_full(t->child->output, got, t->size + 1);
    CHECK(t->moved == (ssize_t)t->size && memcmp(got, t->data, t->size) == 0);
    free(got);
    return 0;
}

/* Sends size bytes through the child and back. */
static void pass_through(conc_child *c, size_t size)
{
    char *data = malloc(size);
    CHECK(data != NULL);
    for (size_t i = 0; i < size; i++)
        data[i] = (char)(i ^ i >> 8 ^ i >> 16);
    transfer in = {c, data, size, 0}, out = in;
    CHECK_INT(CONC_GATHER(CONC_CALL(feeds, &in), CONC_CALL(drains, &out)), 0);
    CHECK_INT(in.moved, size);
    free(data);
}

CHILD_TEST(a_megabyte_goes_to_a_program_and_comes_back)
{
    conc_child c = {.argv = ARGV("/bin/cat"), .input = CONC_PIPE, .output = CONC_PIPE};
    start(&c);
    CHECK(c.input > 2 && c.output > 2);
    CHECK_INT(c.error, -1);
    pass_through(&c, MEGABYTE);
    check_exits(&c, 0);
    CHECK_INT(conc_child_close(&c), 0);
}

static int passes_through(void *arg)
{
    conc_child *c = arg;
    *c = (conc_child){.argv = ARGV("cat"), .input = CONC_PIPE, .output = CONC_PIPE};
    start(c);
    pass_through(c, MEGABYTE / 4);
    check_exits(c, 0);
    CHECK_INT(conc_child_close(c), 0);
    return 0;
}

CHILD_TEST(several_programs_are_fed_at_once)
{
    conc_child c[6];
    CHECK_INT(CONC_MAP(passes_through, c), 0);
}

CHILD_TEST(each_of_the_three_has_its_own_pipe)
{
    char text[64];
    conc_child c = {.argv = SH("read x; echo out $x; echo err $x >&2"),
                    .input = CONC_PIPE,
                    .output = CONC_PIPE,
                    .error = CONC_PIPE};
    start(&c);
    CHECK(c.input != c.output && c.output != c.error && c.input != c.error);
    CHECK(fcntl(c.input, F_GETFD) & FD_CLOEXEC);
    CHECK(fcntl(c.output, F_GETFD) & FD_CLOEXEC);
    CHECK(fcntl(c.error, F_GETFD) & FD_CLOEXEC);
    CHECK_INT(conc_write(c.input, "abc\n", 4), 4);
    CHECK_STR(read_all(c.error, text, sizeof text), "err abc\n");
    CHECK_STR(read_all(c.output, text, sizeof text), "out abc\n");
    CHECK_INT(conc_close(c.output), 0);
    c.output = -1;
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(c.error, -1);
    CHECK_INT(c.input, -1);
}

CHILD_TEST(the_null_device_is_empty_and_accepts_everything)
{
    conc_child c = {.argv = SH("cat; echo out; echo err >&2; exit 4"),
                    .input = CONC_NULL,
                    .output = CONC_NULL,
                    .error = CONC_NULL};
    start(&c);
    CHECK_INT(c.input, -1);
    CHECK_INT(c.output, -1);
    CHECK_INT(c.error, -1);
    check_exits(&c, 4);
    CHECK_INT(conc_child_close(&c), 0);
}

CHILD_TEST(a_program_that_does_not_listen_breaks_the_pipe_without_a_signal)
{
    char byte = 'x';
    CONC_AUTO(conc_child, c) = {.argv = ARGV("true"), .input = CONC_PIPE};
    start(&c);
    check_exits(&c, 0);
    CHECK_INT(conc_write(c.input, &byte, 1), -EPIPE);
}

CHILD_TEST(a_programs_pipe_ends_are_blocking)
{
    const char *script = "for i in 0 1 2; do grep flags /proc/$$/fdinfo/$i; done";
    char text[256];
    CONC_AUTO(conc_child, c) = {
        .argv = SH(script), .input = CONC_PIPE, .output = CONC_PIPE, .error = CONC_PIPE};
    start(&c);
    const char *at = read_all(c.output, text, sizeof text);
    for (int i = 0; i < 3; i++, at++) {
        CHECK((at = strpbrk(at, "01234567")) != NULL);
        CHECK_INT(strtol(at, (char **)&at, 8) & O_NONBLOCK, 0);
    }
}

/* ---- given descriptors ---- */

CHILD_TEST(given_descriptors_stay_open)
{
    int in[2], out[2];
    CHECK_INT(pipe2(in, O_CLOEXEC), 0);
    CHECK_INT(pipe2(out, O_CLOEXEC), 0);
    conc_child c = {
        .argv = SH("cat; echo err >&2"), .input = in[0], .output = out[1], .error = out[1]};
    start(&c);
    CHECK_INT(c.input, -1);
    CHECK_INT(c.output, -1);
    CHECK_INT(c.error, -1);
    CHECK_INT(write(in[1], "abc", 3), 3);
    CHECK_INT(close(in[1]), 0);
    check_exits(&c, 0);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK(fcntl(in[0], F_GETFD) & FD_CLOEXEC);
    CHECK(fcntl(out[1], F_GETFD) & FD_CLOEXEC);
    CHECK_INT(close(out[1]), 0);
    check_pipe_has(out[0], "abcerr\n");
    CHECK_INT(close(in[0]), 0);
    CHECK_INT(close(out[0]), 0);
}

/* Meanwhile, the program's descriptors 0, 1 and 2 are other files, or closed. */
typedef struct standard {
    int saved[3];
} standard;

static standard replace_standard(const int with[3])
{
    standard s;
    for (int i = 0; i < 3; i++) {
        s.saved[i] = fcntl(i, F_DUPFD_CLOEXEC, 10);
        if (with[i] >= 0)
            CHECK_INT(dup2(with[i], i), i);
    }
    for (int i = 0; i < 3; i++)
        if (with[i] < 0)
            close(i);
    return s;
}

static void restore_standard(const standard *s)
{
    for (int i = 0; i < 3; i++) {
        if (s->saved[i] < 0)
            close(i);
        else {
            CHECK_INT(dup2(s->saved[i], i), i);
            CHECK_INT(close(s->saved[i]), 0);
        }
    }
}

/* Starts a script that prints "out" and "err" while this program's 1 and 2 are pipes, and returns
 * what the pipes received. */
static void check_what_goes_where(int output, int error, const char *first, const char *second)
{
    int one[2], two[2];
    CHECK_INT(pipe2(one, O_CLOEXEC), 0);
    CHECK_INT(pipe2(two, O_CLOEXEC), 0);
    conc_child c = {
        .argv = SH("echo out; echo err >&2"), .input = CONC_NULL, .output = output, .error = error};
    standard s = replace_standard((int[]){0, one[1], two[1]});
    int rc = conc_child_start(&c);
    restore_standard(&s);
    CHECK_INT(rc, 0);
    CHECK_INT(close(one[1]), 0);
    CHECK_INT(close(two[1]), 0);
    if (c.output >= 0)
        check_pipe_has(c.output, "out\n");
    if (c.error >= 0)
        check_pipe_has(c.error, "err\n");
    check_pipe_has(one[0], first);
    check_pipe_has(two[0], second);
    check_exits(&c, 0);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(close(one[0]), 0);
    CHECK_INT(close(two[0]), 0);
}

CHILD_TEST(this_programs_own_outputs_may_be_given_in_any_order)
{
    check_what_goes_where(0, 0, "out\n", "err\n");
    check_what_goes_where(1, 2, "out\n", "err\n");
    check_what_goes_where(2, 1, "err\n", "out\n");
    check_what_goes_where(2, 2, "", "out\nerr\n");
    check_what_goes_where(1, 1, "out\nerr\n", "");
    check_what_goes_where(0, 1, "out\nerr\n", "");
    check_what_goes_where(2, 0, "", "out\nerr\n");
    check_what_goes_where(CONC_PIPE, 1, "err\n", "");
    check_what_goes_where(CONC_NULL, 1, "err\n", "");
    check_what_goes_where(2, CONC_PIPE, "", "out\n");
    check_what_goes_where(2, CONC_NULL, "", "out\n");
    check_what_goes_where(CONC_PIPE, CONC_PIPE, "", "");
}

CHILD_TEST(an_input_may_be_at_the_number_of_an_output)
{
    for (int number = 1; number <= 2; number++) {
        int in[2], with[3] = {0, 1, 2};
        CHECK_INT(pipe2(in, O_CLOEXEC), 0);
        CHECK_INT(write(in[1], "abc", 3), 3);
        CHECK_INT(close(in[1]), 0);
        conc_child c = {
            .argv = ARGV("cat"), .input = number, .output = CONC_PIPE, .error = CONC_NULL};
        with[number] = in[0];
        standard s = replace_standard(with);
        int rc = conc_child_start(&c);
        restore_standard(&s);
        CHECK_INT(rc, 0);
        check_pipe_has(c.output, "abc");
        check_exits(&c, 0);
        CHECK_INT(conc_child_close(&c), 0);
        CHECK_INT(close(in[0]), 0);
    }
}

CHILD_TEST(pipes_work_while_this_programs_own_descriptors_are_closed)
{
    static const int closed[][3] = {{-1, 1, 2}, {0, -1, 2}, {0, 1, -1}, {-1, -1, 2}, {-1, -1, -1}};
    for (size_t i = 0; i < CONC_LEN(closed); i++) {
        char out[64] = "", err[64] = "";
        conc_child c = {.argv = SH("cat; echo err >&2"),
                        .input = CONC_PIPE,
                        .output = CONC_PIPE,
                        .error = CONC_PIPE};
        standard s = replace_standard(closed[i]);
        int rc = conc_child_start(&c);
        ssize_t written = rc == 0 ? conc_write(c.input, "abc", 3) : -1;
        int ended = conc_close(c.input);
        c.input = -1;
        ssize_t got = conc_read_full(c.output, out, sizeof out - 1);
        ssize_t got_err = conc_read_full(c.error, err, sizeof err - 1);
        int status = -1, waited = conc_child_wait(&c, &status), rest = conc_child_close(&c);
        restore_standard(&s);
        CHECK_INT(rc, 0);
        CHECK_INT(written, 3);
        CHECK_INT(ended, 0);
        CHECK_INT(got, 3);
        CHECK_STR(out, "abc");
        CHECK_INT(got_err, 4);
        CHECK_STR(err, "err\n");
        CHECK_INT(waited, 0);
        CHECK_INT(status, 0);
        CHECK_INT(rest, 0);
    }
}

CHILD_TEST(an_invalid_descriptor_is_an_error_and_nothing_starts)
{
    static const int wrong[] = {-1, -4, -1000, 250, 100000};
    /* opens the descriptors that the module itself keeps */
    CHECK_STR(output_of(ARGV("echo", "first")), "first\n");
    for (size_t i = 0; i < CONC_LEN(wrong); i++)
        for (int which = 0; which < 3; which++) {
            conc_child c = {
                .argv = ARGV("true"), .input = CONC_PIPE, .output = CONC_PIPE, .error = CONC_PIPE};
            *(which == 0 ? &c.input : which == 1 ? &c.output : &c.error) = wrong[i];
            int fds = test_count_fds(), rc = conc_child_start(&c);
            CHECK(rc == -EBADF || rc == -EINVAL);
            CHECK_INT(test_count_fds(), fds);
            check_no_children();
        }
}

/* ---- inheritance ---- */

CHILD_TEST(a_program_inherits_no_descriptor_but_three)
{
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(dup2(ends[0], 100), 100);
    CHECK_INT(dup2(ends[1], 255), 255);
    /* the last one is the listing's own */
    CHECK_STR(output_of(ARGV("ls", "/proc/self/fd")), "0\n1\n2\n3\n");
    CHECK_INT(close(100), 0);
    CHECK_INT(close(255), 0);
    CHECK_INT(close(ends[0]), 0);
    CHECK_INT(close(ends[1]), 0);
}

CHILD_TEST(given_descriptors_are_inherited_once)
{
    int out[2];
    CHECK_INT(pipe(out), 0); /* not close-on-exec */
    conc_child c = {.argv = ARGV("ls", "/proc/self/fd"), .output = out[1], .error = out[1]};
    start(&c);
    CHECK_INT(close(out[1]), 0);
    check_pipe_has(out[0], "0\n1\n2\n3\n");
    check_exits(&c, 0);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(close(out[0]), 0);
}

CHILD_TEST(the_environment_is_this_programs_or_the_given_one)
{
    const char *const env[] = {"A=b", "C=d e", NULL}, *const nothing[] = {NULL};
    char text[256];
    CHECK_INT(setenv("CONC_TEST_WORD", "inherited", 1), 0);
    CHECK_STR(output_of(SH("echo $CONC_TEST_WORD")), "inherited\n");
    conc_child c = {.argv = ARGV("env"), .env = env, .input = CONC_NULL, .output = CONC_PIPE};
    start(&c);
    CHECK_STR(read_all(c.output, text, sizeof text), "A=b\nC=d e\n");
    CHECK_INT(conc_child_close(&c), 0);
    c = (conc_child){.argv = ARGV("env"), .env = nothing, .input = CONC_NULL, .output = CONC_PIPE};
    start(&c);
    CHECK_STR(read_all(c.output, text, sizeof text), "");
    CHECK_INT(conc_child_close(&c), 0);
}

CHILD_TEST(a_program_runs_where_it_is_told_to)
{
    char here[PATH_MAX], text[PATH_MAX], expected[PATH_MAX + 1], real[PATH_MAX];
    make_directory();
    CHECK(getcwd(here, sizeof here) != NULL);
    CHECK(realpath(directory, real) != NULL);
    snprintf(expected, sizeof expected, "%s\n", here);
    CHECK_STR(output_of(ARGV("/bin/pwd")), expected);
    conc_child c = {.argv = ARGV("/bin/pwd"), .dir = directory, .output = CONC_PIPE};
    start(&c);
    snprintf(expected, sizeof expected, "%s\n", real);
    CHECK_STR(read_all(c.output, text, sizeof text), expected);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK(getcwd(text, sizeof text) != NULL);
    CHECK_STR(text, here);
    CHECK_INT(rmdir(directory), 0);
}

CHILD_TEST(arguments_are_passed_unchanged)
{
    CHECK_STR(output_of(ARGV("printf", "[%s]", "", "a b", "$HOME", "\"'\\", "*")),
              "[][a b][$HOME][\"'\\][*]");
}

/* Parses a signal set from /proc/self/status, without the C library's own signals. */
static unsigned long long status_signals(const char *status, const char *name)
{
    const char *at = strstr(status, name);
    return at ? strtoull(at + strlen(name), NULL, 16) & 0x7fffffff : 0xbad00000000;
}

static char own_status[16384];

static void remember_own_status(void)
{
    int fd = open("/proc/self/status", O_RDONLY);
    CHECK(fd >= 0);
    ssize_t n = read(fd, own_status, sizeof own_status - 1);
    CHECK(n > 0);
    own_status[n] = 0;
    CHECK_INT(close(fd), 0);
}

/* Does cat's own status show the same signals as this program's status before the run? */
static int compare_status(void *arg)
{
    char text[8192] = "";
    size_t n = 0;
    conc_child c = {
        .argv = ARGV("cat", "/proc/self/status"), .input = CONC_NULL, .output = CONC_PIPE};
    (void)arg;
    CONC_TRY(conc_child_start(&c));
    while (n < sizeof text - 1) {
        struct pollfd p = {.fd = c.output, .events = POLLIN};
        ssize_t got = poll(&p, 1, -1) == 1 ? read(c.output, text + n, sizeof text - 1 - n) : -1;
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    CONC_TRY(conc_child_close(&c));
    bool same = status_signals(text, "SigBlk:") == status_signals(own_status, "SigBlk:") &&
                status_signals(text, "SigIgn:") == status_signals(own_status, "SigIgn:");
    return same ? 7 : -EPROTO;
}

static int compare_in_a_run(void *arg) { return conc_run(compare_status, arg); }

static void block(int signal_number)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal_number);
    CHECK_INT(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
}

THREAD_CHILD_TEST(signals_are_blocked_and_ignored_as_in_this_program_before_its_run)
{
    signal(SIGUSR1, SIG_IGN);
    for (int i = 0; i < 3; i++) {
        if (i > 0)
            block(i == 1 ? SIGUSR2 : SIGPIPE);
        remember_own_status();
        CHECK_INT(compare_status(NULL), 7);
        CHECK_INT(compare_in_a_run(NULL), 7);
    }
}

CHILD_TEST(from_jobs_signals_are_blocked_and_ignored_as_in_this_program_before_its_run)
{
    /* the run blocks SIGPIPE in its thread, and a pool may block more signals in its threads */
    sigset_t old, pipe_signal;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    CHECK_INT(pthread_sigmask(SIG_UNBLOCK, &pipe_signal, &old), 0);
    remember_own_status();
    CHECK_INT(pthread_sigmask(SIG_SETMASK, &old, NULL), 0);
    CONC_AUTO(conc_pool, pool) = {.threads = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_run(&pool, compare_status, NULL), 7);
    CHECK_INT(conc_pool_run(&pool, compare_in_a_run, NULL), 7);
    CHECK_INT(conc_offload(compare_status, NULL), 7);
}

CHILD_TEST(a_broken_pipe_kills_a_program_as_it_does_outside)
{
    conc_child c = {.argv = SH("kill -PIPE $$; exit 3")};
    start(&c);
    check_killed(&c, SIGPIPE);
    CHECK_INT(conc_child_close(&c), 0);
}

/* ---- the end of a program ---- */

CHILD_TEST(exit_codes_are_returned)
{
    static const int codes[] = {0, 1, 2, 77, 127, 255};
    for (size_t i = 0; i < CONC_LEN(codes); i++) {
        char script[32];
        snprintf(script, sizeof script, "exit %d", codes[i]);
        CONC_AUTO(conc_child, c) = {.argv = SH(script)};
        start(&c);
        check_exits(&c, codes[i]);
        check_exits(&c, codes[i]); /* again */
        CHECK_INT(conc_child_wait(&c, NULL), 0);
    }
}

/* Ends when its input does. */
static conc_child sleeper(void)
{
    static const char *const argv[] = {"/bin/cat", NULL};
    return (conc_child){.argv = argv, .input = CONC_PIPE, .output = CONC_NULL};
}

CHILD_TEST(a_signal_that_kills_is_returned)
{
    static const int signals[] = {SIGTERM, SIGKILL, SIGINT, SIGUSR1};
    for (size_t i = 0; i < CONC_LEN(signals); i++) {
        CONC_AUTO(conc_child, c) = sleeper();
        start(&c);
        CHECK_INT(conc_child_kill(&c, signals[i]), 0);
        check_killed(&c, signals[i]);
        CHECK_INT(conc_child_kill(&c, signals[i]), -EALREADY);
        check_killed(&c, signals[i]);
    }
}

CHILD_TEST(a_signal_that_does_not_kill_is_received)
{
    char text[64];
    conc_child c = {
        .argv = SH(
            "trap 'echo got it; exit 6' TERM; echo ready; while :; do read x || sleep 0.01; done"),
        .input = CONC_NULL,
        .output = CONC_PIPE};
    start(&c);
    CHECK_INT(conc_read_full(c.output, text, 6), 6);
    CHECK_INT(conc_child_kill(&c, SIGTERM), 0);
    CHECK_STR(read_all(c.output, text, sizeof text), "got it\n");
    check_exits(&c, 6);
    CHECK_INT(conc_child_close(&c), 0);
}

/* Returns when the child has ended, without taking its status. */
static void wait_until_dead(int pid)
{
    siginfo_t info;
    CHECK_INT(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
}

CHILD_TEST(an_ended_child_gets_no_signal_even_before_a_wait)
{
    CONC_AUTO(conc_child, c) = {.argv = SH("exit 5")};
    start(&c);
    wait_until_dead(c.pid);
    CHECK_INT(conc_child_kill(&c, SIGTERM), -EALREADY);
    check_exits(&c, 5);
    CHECK_INT(conc_child_kill(&c, SIGTERM), -EALREADY);
}

CHILD_TEST(an_unknown_signal_is_an_error_and_does_no_harm)
{
    CONC_AUTO(conc_child, c) = sleeper();
    start(&c);
    CHECK_INT(conc_child_kill(&c, 1000), -EINVAL);
    CHECK_INT(conc_child_kill(&c, -1), -EINVAL);
    CHECK(lives(c.pid));
    end_input(&c);
    check_exits(&c, 0);
}

static int waits(void *arg) { return conc_child_wait(arg, NULL); }

CHILD_TEST(a_program_that_was_stopped_has_not_ended)
{
    siginfo_t info;
    CONC_AUTO(conc_child, c) = sleeper();
    start(&c);
    CHECK_INT(conc_child_kill(&c, SIGSTOP), 0);
    CHECK_INT(waitid(P_PID, (id_t)c.pid, &info, WSTOPPED | WNOWAIT), 0);
    CHECK_INT(conc_timeout(0.02, waits, &c), -ETIMEDOUT);
    CHECK_INT(conc_child_kill(&c, SIGCONT), 0);
    end_input(&c);
    check_exits(&c, 0);
}

CHILD_TEST(a_program_that_was_stopped_is_closed)
{
    conc_child c = sleeper();
    start(&c);
    CHECK_INT(conc_child_kill(&c, SIGSTOP), 0);
    CHECK_INT(conc_child_close(&c), 0);
    check_no_children();
}

CHILD_TEST(a_wait_that_times_out_leaves_the_program_alone)
{
    CONC_AUTO(conc_child, c) = sleeper();
    start(&c);
    for (int i = 0; i < 100; i++)
        CHECK_INT(conc_timeout(0.001, waits, &c), -ETIMEDOUT);
    CHECK_TIME(0.1);
    CHECK(lives(c.pid));
    end_input(&c);
    check_exits(&c, 0);
}

typedef struct waiter {
    conc_child *child;
    int rc, status;
    conc_task task;
} waiter;

static int waits_for_status(void *arg)
{
    waiter *w = arg;
    w->rc = UNDECIDED;
    w->rc = conc_child_wait(w->child, &w->status);
    return 0;
}

CHILD_TEST(any_number_of_tasks_wait_and_a_cancel_affects_only_one)
{
    enum { N = 10, CANCELLED = 3 };
    waiter w[N];
    conc_group g = {0};
    CONC_AUTO(conc_child, c) = {.argv = SH("read x; exit $x"), .input = CONC_PIPE};
    start(&c);
    for (int i = 0; i < N; i++) {
        w[i].child = &c;
        CHECK_INT(conc_spawn_task(&g, &w[i].task, waits_for_status, &w[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&w[CANCELLED].task), 0);
    CHECK_INT(conc_settle(), 0);
    for (int i = 0; i < N; i++)
        CHECK_INT(w[i].rc, i == CANCELLED ? -ECANCELED : UNDECIDED);
    CHECK(lives(c.pid));
    CHECK_INT(conc_write(c.input, "42\n", 3), 3);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < N; i++)
        if (i != CANCELLED) {
            CHECK_INT(w[i].rc, 0);
            CHECK(WIFEXITED(w[i].status));
            CHECK_INT(WEXITSTATUS(w[i].status), 42);
        }
}

CHILD_TEST(the_end_of_a_program_does_not_wait_for_others_with_its_pipes)
{
    char text[64];
    conc_child c = {
        .argv = SH("sleep 1000 & echo $!; exit 3"), .input = CONC_NULL, .output = CONC_PIPE};
    start(&c);
    check_exits(&c, 3);
    ssize_t n = conc_read(c.output, text, sizeof text - 1);
    CHECK(n > 1);
    text[n] = 0;
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(kill((pid_t)atoi(text), SIGKILL), 0);
}

CHILD_TEST(waiting_for_a_program_alone_is_no_deadlock)
{
    conc_child c = {.argv = SH("sleep 0.1; exit 2"), .input = CONC_NULL};
    start(&c);
    check_exits(&c, 2);
    CHECK_INT(conc_child_close(&c), 0);
}

/* ---- closing ---- */

CHILD_TEST(a_close_kills_and_waits)
{
    static const char *const scripts[] = {"exec cat", "trap '' TERM INT HUP; cat", "exit 3",
                                          "kill -TERM $$"};
    for (size_t i = 0; i < CONC_LEN(scripts); i++) {
        conc_child c = {
            .argv = SH(scripts[i]), .input = CONC_PIPE, .output = CONC_PIPE, .error = CONC_PIPE};
        start(&c);
        int pid = c.pid;
        CHECK_INT(conc_child_close(&c), 0);
        CHECK(!lives(pid));
        check_no_children();
        CHECK_INT(c.input, -1);
        CHECK_INT(c.output, -1);
        CHECK_INT(c.error, -1);
        CHECK_INT(conc_child_close(&c), 0);
    }
}

CHILD_TEST(a_child_that_never_started_can_still_be_closed)
{
    conc_child zero = {0},
               prepared = {
                   .argv = ARGV("true"), .input = CONC_PIPE, .output = CONC_NULL, .error = 1};
    CHECK_INT(conc_child_close(&zero), 0);
    CHECK_INT(conc_child_close(&prepared), 0);
    CHECK(fcntl(1, F_GETFD) >= 0);
}

CHILD_TEST(a_close_is_not_cut_short_by_a_cancel)
{
    conc_scope s = {0};
    conc_child c = sleeper();
    start(&c);
    int pid = c.pid;
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_child_wait(&c, NULL), -ECANCELED);
    CHECK(lives(pid));
    CHECK_INT(conc_child_close(&c), 0);
    CHECK(!lives(pid));
    check_no_children();
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
}

static int leaves_early(int *pid)
{
    CONC_AUTO(conc_child, c) = sleeper();
    CONC_AUTO(conc_child, never_started) = sleeper();
    CONC_TRY(conc_child_start(&c));
    *pid = c.pid;
    return never_started.pid + 7;
}

CHILD_TEST(a_program_of_a_block_is_ended_with_it)
{
    int pid = 0;
    CHECK_INT(leaves_early(&pid), 7);
    CHECK(pid > 0 && !lives(pid));
    check_no_children();
}

CHILD_TEST(a_task_that_waits_for_a_program_continues_when_it_is_closed)
{
    conc_child c = {.argv = ARGV("sleep", "1000")};
    waiter w = {.child = &c};
    conc_group g = {0};
    start(&c);
    CHECK_INT(conc_spawn(&g, waits_for_status, &w), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(w.rc != UNDECIDED);
    CHECK(w.rc < 0 || (WIFSIGNALED(w.status) && WTERMSIG(w.status) == SIGKILL));
}

typedef struct reader {
    int fd;
    ssize_t rc;
} reader;

static int reads(void *arg)
{
    reader *r = arg;
    char byte;
    r->rc = UNDECIDED;
    r->rc = conc_read(r->fd, &byte, 1);
    return 0;
}

CHILD_TEST(a_task_that_reads_from_a_program_continues_when_it_is_closed)
{
    conc_child c = {.argv = ARGV("cat"), .input = CONC_PIPE, .output = CONC_PIPE};
    conc_group g = {0};
    start(&c);
    reader r = {.fd = c.output};
    CHECK_INT(conc_spawn(&g, reads, &r), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(r.rc, UNDECIDED);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(r.rc == -EBADF || r.rc == 0);
}

/* ---- errors at the start ---- */

/* It does not start, and its fields are unchanged: it can be tried again. */
static void check_start_fails(conc_child *c, int expected)
{
    int fds = test_count_fds(), rc = conc_child_start(c);
    if (rc != expected)
        test_fail(__FILE__, __LINE__, "the start of \"%s\" returned %d, not %d", c->argv[0], rc,
                  expected);
    CHECK_INT(test_count_fds(), fds);
    check_no_children();
    CHECK_INT(conc_child_wait(c, NULL), -EINVAL);
    CHECK_INT(conc_child_kill(c, SIGTERM), -EINVAL);
    CHECK_INT(c->input, CONC_PIPE);
    CHECK_INT(c->output, CONC_PIPE);
    c->argv = ARGV("true");
    c->dir = NULL;
    start(c);
    check_exits(c, 0);
    CHECK_INT(conc_child_close(c), 0);
}

#define CHECK_START_FAILS(rc, ...) \
    check_start_fails(&(conc_child){.input = CONC_PIPE, .output = CONC_PIPE, __VA_ARGS__}, (rc))

CHILD_TEST(a_missing_program_or_directory_is_an_error)
{
    make_directory();
    /* no directory in it that must not be searched */
    CHECK_INT(setenv("PATH", "/usr/local/bin:/usr/bin:/bin", 1), 0);
    make_text("file", "", 0644);
    CHECK_STR(output_of(ARGV("echo", "first")), "first\n");
    CHECK_START_FAILS(-ENOENT, .argv = ARGV("/no/such/program"));
    CHECK_START_FAILS(-ENOENT, .argv = ARGV("no-such-program-of-conc"));
    CHECK_START_FAILS(-ENOENT, .argv = ARGV("./no-such-program-of-conc"));
    CHECK_START_FAILS(-ENOENT, .argv = ARGV(""));
    CHECK_START_FAILS(-ENOENT, .argv = ARGV("true"), .dir = path_of("missing"));
    CHECK_START_FAILS(-ENOTDIR, .argv = ARGV("true"), .dir = path_of("file"));
    CHECK_START_FAILS(-ENOTDIR, .argv = ARGV(path_of("file/program")));
    CHECK_INT(unlink(path_of("file")), 0);
    CHECK_INT(rmdir(directory), 0);
}

CHILD_TEST(a_file_that_cannot_be_executed_is_not_started)
{
    make_directory();
    make_text("plain", "#!/bin/sh\nexit 9\n", 0644);
    CHECK_STR(output_of(ARGV("echo", "first")), "first\n");
    CHECK_START_FAILS(-EACCES, .argv = ARGV(path_of("plain")));
    CHECK_START_FAILS(-EACCES, .argv = ARGV(directory));
    CHECK_INT(unlink(path_of("plain")), 0);
    CHECK_INT(rmdir(directory), 0);
}

CHILD_TEST(an_overlong_argument_is_an_error)
{
    char *longest = malloc(MEGABYTE + 1);
    CHECK(longest != NULL);
    memset(longest, 'x', MEGABYTE);
    longest[MEGABYTE] = 0;
    CHECK_STR(output_of(ARGV("echo", "first")), "first\n");
    CHECK_START_FAILS(-E2BIG, .argv = ARGV("echo", longest));
    free(longest);
}

CHILD_TEST(programs_are_searched_for_in_path)
{
    char path[512];
    conc_child c = {.argv = ARGV("conc-test-tool")};
    make_directory();
    CHECK_INT(mkdir(path_of("first"), 0700), 0);
    CHECK_INT(mkdir(path_of("second"), 0700), 0);
    snprintf(path, sizeof path, "%s:%s:/bin:/usr/bin", path_of("first"), path_of("second"));
    CHECK_INT(setenv("PATH", path, 1), 0);
    CHECK_INT(conc_child_start(&c), -ENOENT);
    make_text("first/conc-test-tool", "#!/bin/sh\nexit 8\n", 0644);
    CHECK_INT(conc_child_start(&c), -EACCES);
    make_text("second/conc-test-tool", "#!/bin/sh\nexit 9\n", 0755);
    start(&c);
    check_exits(&c, 9);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(unlink(path_of("first/conc-test-tool")), 0);
    CHECK_INT(unlink(path_of("second/conc-test-tool")), 0);
    CHECK_INT(rmdir(path_of("first")), 0);
    CHECK_INT(rmdir(path_of("second")), 0);
    CHECK_INT(rmdir(directory), 0);
}

CHILD_TEST(invalid_arguments_are_refused)
{
    conc_child nothing = {0}, empty = {.argv = ARGV(NULL)};
    CHECK_INT(conc_child_start(NULL), -EINVAL);
    CHECK_INT(conc_child_start(&nothing), -EINVAL);
    CHECK_INT(conc_child_start(&empty), -EINVAL);
    CHECK_INT(conc_child_wait(NULL, NULL), -EINVAL);
    CHECK_INT(conc_child_wait(&nothing, NULL), -EINVAL);
    CHECK_INT(conc_child_kill(NULL, SIGTERM), -EINVAL);
    CHECK_INT(conc_child_kill(&nothing, SIGTERM), -EINVAL);
    CHECK_INT(conc_child_close(&nothing), 0);
}

CHILD_TEST(a_child_is_started_again_only_once_it_is_closed)
{
    conc_child c = sleeper();
    for (int i = 0; i < 3; i++) {
        start(&c);
        int pid = c.pid, input = c.input;
        CHECK_INT(conc_child_start(&c), -EBUSY);
        CHECK_INT(c.pid, pid);
        CHECK_INT(c.input, input);
        end_input(&c);
        check_exits(&c, 0);
        CHECK_INT(conc_child_start(&c), -EBUSY);
        CHECK_INT(conc_child_close(&c), 0);
        CHECK_INT(conc_child_wait(&c, NULL), -EINVAL);
        CHECK_INT(conc_child_kill(&c, SIGTERM), -EINVAL);
        c.input = CONC_PIPE;
        c.output = CONC_NULL;
        c.error = 0;
    }
}

static conc_child endless(void)
{
    static const char *const argv[] = {"sleep", "1000", NULL};
    return (conc_child){.argv = argv};
}

static int is_killed_meanwhile(void *arg)
{
    check_killed(arg, SIGKILL);
    return 0;
}

static int closes(void *arg)
{
    CHECK_INT(conc_child_close(arg), 0);
    return 0;
}

static int closes_and_starts_another(void *arg)
{
    static const char *const argv[] = {"sh", "-c", "echo another; exit 3", NULL};
    conc_child *c = arg;
    char text[64];
    CHECK_INT(conc_child_close(c), 0);
    *c = (conc_child){.argv = argv, .output = CONC_PIPE};
    start(c);
    CHECK_STR(read_all(c->output, text, sizeof text), "another\n");
    check_exits(c, 3);
    return 0;
}

/* The first to close may be the one that starts another program, or not. */
CHILD_TEST(calls_that_wait_for_a_child_ignore_its_replacement)
{
    for (int i = 0; i < 3; i++) {
        conc_child c = endless();
        conc_group g = {0};
        start(&c);
        CHECK_INT(conc_spawn(&g, is_killed_meanwhile, &c), 0);
        CHECK_INT(conc_spawn(&g, closes_and_starts_another, &c), 0);
        if (i)
            CHECK_INT(conc_spawn(&g, closes, &c), 0);
        if (i == 2)
            CHECK_INT(conc_spawn(&g, is_killed_meanwhile, &c), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(conc_child_close(&c), 0);
    }
}

static int closes_and_frees(void *arg)
{
    CHECK_INT(conc_child_close(arg), 0);
    memset(arg, 0x55, sizeof(conc_child));
    free(arg);
    return 0;
}

/* Its close takes a while, during which another call is made. */
static void start_one_that_ends_slowly(conc_child *c)
{
    char byte;
    *c = (conc_child){.argv = SH("trap 'sleep 0.2; exit' TERM; echo; while :; do sleep 0.02; done"),
                      .output = CONC_PIPE,
                      .grace = 100};
    start(c);
    CHECK_INT(conc_read(c->output, &byte, 1), 1);
}

CHILD_TEST(a_child_may_be_freed_when_one_call_has_closed_it)
{
    conc_fn *const others[] = {is_killed_meanwhile, closes};
    for (size_t i = 0; i < CONC_LEN(others); i++) {
        conc_child *c = malloc(sizeof *c);
        conc_group g = {0};
        if (others[i] == closes) {
            start_one_that_ends_slowly(c);
        } else {
            *c = endless();
            start(c);
        }
        if (others[i] != closes)
            CHECK_INT(conc_spawn(&g, others[i], c), 0);
        CHECK_INT(conc_yield(), 0);
        CHECK_INT(conc_spawn(&g, closes_and_frees, c), 0);
        if (others[i] == closes)
            CHECK_INT(conc_spawn(&g, others[i], c), 0);
        CHECK_INT(conc_group_wait(&g), 0);
    }
}

static void does_nothing(int number) { (void)number; }

/* Of three waits, the rest of the machine leaves at least one undisturbed. */
THREAD_CHILD_TEST(a_signal_does_not_lengthen_a_threads_wait)
{
    struct sigaction a = {.sa_handler = does_nothing}, before;
    bool in_time = false;
    CHECK_INT(sigaction(SIGALRM, &a, &before), 0);
    for (int i = 0; i < 3 && !in_time; i++) {
        conc_child c = {.argv = (const char *[]){"sleep", "0.1", NULL}};
        struct itimerval timer = {{0, 0}, {0, 50000}};
        start(&c);
        double began = conc_now();
        CHECK_INT(setitimer(ITIMER_REAL, &timer, NULL), 0);
        check_exits(&c, 0);
        in_time = conc_now() - began < 0.9;
        CHECK_INT(conc_child_close(&c), 0);
    }
    CHECK_INT(sigaction(SIGALRM, &before, NULL), 0);
    CHECK(in_time);
}

/* Runs while the task that spawned it waits for a start. */
static int changes_the_environment(void *arg)
{
    (void)arg;
    CHECK_INT(setenv("MOMENT", "after the call", 1), 0);
    CHECK_INT(setenv("PATH", "/nowhere", 1), 0);
    return 0;
}

CHILD_TEST(a_child_has_the_environment_and_the_path_of_the_call)
{
    char path[4096];
    snprintf(path, sizeof path, "%s", getenv("PATH"));
    for (int i = 0; i < 50; i++) {
        const char *argv[] = {"sh", "-c", "echo \"$MOMENT\"", NULL};
        conc_group g = {0};
        char text[64];
        CHECK_INT(setenv("MOMENT", "at the call", 1), 0);
        conc_child c = {.argv = argv, .output = CONC_PIPE};
        if (i % 2)
            c.env = (const char *const *)(uintptr_t)environ;
        CHECK_INT(conc_spawn(&g, changes_the_environment, NULL), 0);
        start(&c);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(setenv("PATH", path, 1), 0);
        CHECK_STR(read_all(c.output, text, sizeof text), "at the call\n");
        check_exits(&c, 0);
        CHECK_INT(conc_child_close(&c), 0);
    }
    unsetenv("MOMENT");
}

typedef struct starter {
    conc_child *child;
    int rc;
} starter;

static int starts(void *arg)
{
    starter *s = arg;
    s->rc = conc_child_start(s->child);
    return 0;
}

CHILD_TEST(one_of_two_tasks_that_start_one_child_at_once_is_refused)
{
    conc_child c = sleeper();
    starter s[2] = {{&c, UNDECIDED}, {&c, UNDECIDED}};
    CHECK_INT(CONC_MAP(starts, s), 0);
    CHECK_INT(s[0].rc + s[1].rc, -EBUSY);
    CHECK(lives(c.pid));
    CHECK_INT(conc_child_close(&c), 0);
}

/* Runs while the task that spawned it waits for the child's start. */
static int meddles(void *arg)
{
    starter *s = arg;
    if (s->child->pid > 0)
        return 0; /* the start was over before it had to wait */
    CHECK_INT(conc_child_kill(s->child, SIGKILL), -EINVAL);
    CHECK_INT(conc_child_start(s->child), -EBUSY);
    CHECK_INT(conc_child_wait(s->child, NULL), -EINVAL);
    s->rc = conc_child_close(s->child);
    return 0;
}

ORDERED_CHILD_TEST(a_child_that_is_just_being_started_is_left_alone)
{
    starter s = {NULL, UNDECIDED};
    for (int i = 0; i < 1000 && s.rc == UNDECIDED; i++) {
        conc_child c = sleeper();
        conc_group g = {0};
        s.child = &c;
        CHECK_INT(conc_spawn(&g, meddles, &s), 0);
        start(&c);
        CHECK(lives(c.pid));
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(conc_child_close(&c), 0);
    }
    CHECK_INT(s.rc, -EBUSY);
}

CHILD_TEST(errno_is_preserved)
{
    conc_child c = {.argv = ARGV("/no/such/program")};
    errno = 77;
    CHECK_INT(conc_child_start(&c), -ENOENT);
    c.argv = SH("exit 1");
    CHECK_INT(conc_child_start(&c), 0);
    CHECK_INT(conc_child_wait(&c, NULL), 0);
    CHECK_INT(conc_child_kill(&c, SIGTERM), -EALREADY);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(errno, 77);
}

CHILD_TEST(a_cancel_before_the_start_means_that_nothing_starts)
{
    conc_scope s = {0};
    conc_child c = {.argv = ARGV("cat"), .input = CONC_PIPE, .output = CONC_PIPE};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    int fds = test_count_fds();
    CHECK_INT(conc_child_start(&c), -ECANCELED);
    CHECK_INT(test_count_fds(), fds);
    check_no_children();
    CHECK_INT(conc_child_wait(&c, NULL), -EINVAL);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
}

/* ---- too few descriptors ---- */

CHILD_TEST(without_descriptors_nothing_starts_and_nothing_stays_open)
{
    enum { LIMIT = 64 };
    struct rlimit old, limit;
    int fds[LIMIT], n = 0, failures = 0, rc = -EMFILE;
    conc_child c = {.argv = SH("exit 3")};
    CHECK_STR(output_of(ARGV("echo", "first")), "first\n");
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &old), 0);
    limit = (struct rlimit){LIMIT, old.rlim_max};
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    while (n < LIMIT && (fds[n] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
        n++;
    for (; rc == -EMFILE && n > 0; failures += rc == -EMFILE) {
        int open_before = test_count_fds();
        c.input = c.output = c.error = CONC_PIPE;
        rc = conc_child_start(&c);
        if (rc == -EMFILE) {
            CHECK_INT(test_count_fds(), open_before);
            check_no_children();
            CHECK_INT(close(fds[--n]), 0);
        }
    }
    CHECK_INT(rc, 0);
    CHECK(failures > 3);
    check_exits(&c, 3);
    CHECK_INT(conc_child_close(&c), 0);
    while (n > 0)
        CHECK_INT(close(fds[--n]), 0);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &old), 0);
}

/* ---- many children, from tasks and elsewhere ---- */

typedef struct numbered {
    int number;
    int rc;
} numbered;

static int runs_one(void *arg)
{
    numbered *n = arg;
    char text[16];
    int status = 0;
    CONC_AUTO(conc_child,
              c) = {.argv = SH("read x; exit $x"), .input = CONC_PIPE, .output = CONC_PIPE};
    CONC_TRY(conc_child_start(&c));
    int length = snprintf(text, sizeof text, "%d\n", n->number);
    if (conc_write_full(c.input, text, (size_t)length) != length)
        return -EIO;
    CONC_TRY(conc_child_wait(&c, &status));
    n->rc = WIFEXITED(status) ? WEXITSTATUS(status) : -EIO;
    return 0;
}

CHILD_TEST(fifty_programs_at_once_each_end_in_their_own_way)
{
    numbered n[50];
    for (int i = 0; i < 50; i++)
        n[i] = (numbered){i, UNDECIDED};
    CHECK_INT(CONC_MAP(runs_one, n), 0);
    for (int i = 0; i < 50; i++)
        CHECK_INT(n[i].rc, i);
}

/* A child's whole life without a task: plain calls on the pipes, which may be non-blocking. */
static int lives_and_dies(void *arg)
{
    char text[64] = "";
    size_t n = 0;
    int status = 0;
    CONC_AUTO(conc_child, c) = {.argv = SH("cat; echo and more; exit 5"),
                                .input = CONC_PIPE,
                                .output = CONC_PIPE,
                                .error = CONC_NULL};
    (void)arg;
    CONC_TRY(conc_child_start(&c));
    if (write(c.input, "abc ", 4) != 4 || close(c.input) != 0)
        return -EIO;
    c.input = -1;
    for (struct pollfd p = {.fd = c.output, .events = POLLIN}; poll(&p, 1, -1) == 1;) {
        ssize_t got = read(c.output, text + n, sizeof text - 1 - n);
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    if (strcmp(text, "abc and more\n") != 0)
        return -EPROTO;
    CONC_TRY(conc_child_wait(&c, &status));
    if (conc_child_kill(&c, SIGTERM) != -EALREADY || conc_child_wait(&c, NULL) != 0)
        return -EPROTO;
    CONC_TRY(conc_child_close(&c));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -EIO;
}

static int lives_in_a_run(void *arg) { return conc_run(lives_and_dies, arg); }

/* The same with a child that must be killed. */
static int is_killed(void *arg)
{
    int status = 0;
    conc_child c = sleeper();
    (void)arg;
    CONC_TRY(conc_child_start(&c));
    CONC_TRY(conc_child_kill(&c, SIGTERM));
    CONC_TRY(conc_child_wait(&c, &status));
    CONC_TRY(conc_child_close(&c));
    c = sleeper();
    CONC_TRY(conc_child_start(&c));
    CONC_TRY(conc_child_close(&c));
    return WIFSIGNALED(status) ? WTERMSIG(status) : -EIO;
}

THREAD_CHILD_TEST(outside_a_run_the_calls_block_their_thread)
{
    CHECK_INT(lives_and_dies(NULL), 5);
    CHECK_INT(is_killed(NULL), SIGTERM);
    CHECK_INT(lives_in_a_run(NULL), 5);
}

CHILD_TEST(jobs_start_programs_directly_or_in_their_own_runs)
{
    conc_fn *const jobs[] = {lives_and_dies, lives_in_a_run};
    CONC_AUTO(conc_pool, pool) = {.threads = 2};
    CHECK_INT(conc_pool_open(&pool), 0);
    for (size_t i = 0; i < CONC_LEN(jobs); i++) {
        CHECK_INT(conc_pool_run(&pool, jobs[i], NULL), 5);
        CHECK_INT(conc_offload(jobs[i], NULL), 5);
    }
    CHECK_INT(conc_pool_run(&pool, is_killed, NULL), SIGTERM);
}

typedef struct crowd_member {
    pthread_t thread;
    int number;
    int right;
} crowd_member;

static int starts_often(void *arg)
{
    crowd_member *m = arg;
    for (int i = 0; i < 5; i++)
        m->right += lives_and_dies(NULL) == 5;
    return 0;
}

static void *starts_often_in_a_thread(void *arg)
{
    crowd_member *m = arg;
    if (m->number % 2)
        starts_often(m);
    else
        m->right += conc_run(starts_often, m);
    return NULL;
}

THREAD_CHILD_TEST(threads_that_start_programs_at_once_do_not_keep_each_others_pipes_open)
{
    /* if a child inherited the other end of another's input, that one would never end */
    enum { N = 6 };
    crowd_member m[N];
    for (int i = 0; i < N; i++) {
        m[i] = (crowd_member){.number = i};
        CHECK_INT(pthread_create(&m[i].thread, NULL, starts_often_in_a_thread, &m[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        CHECK_INT(pthread_join(m[i].thread, NULL), 0);
        CHECK_INT(m[i].right, 5);
    }
}

static void lives_of_a_forked_process(void)
{
    alarm(10);
    _exit(conc_run(lives_and_dies, NULL) == 5 && conc_run(is_killed, NULL) == SIGTERM ? 0 : 1);
}

CHILD_TEST(a_forked_process_starts_programs_in_its_own_run)
{
    static char text[4096];
    CONC_AUTO(conc_child, c) = sleeper();
    start(&c);
    CHECK_INT(test_in_process(lives_of_a_forked_process, text, sizeof text), 0);
    CHECK_STR(text, "");
    CHECK(lives(c.pid));
    end_input(&c);
    check_exits(&c, 0);
}

/* Fills the freed memory, as if it had been reused. */
static void overwrite_freed_memory(void)
{
    static char *blocks[1024];
    for (size_t i = 0; i < CONC_LEN(blocks); i++) {
        blocks[i] = malloc(16 * (i + 1));
        CHECK(blocks[i] != NULL);
        memset(blocks[i], 0xff, 16 * (i + 1));
    }
}

static conc_pool pool_of_a_job;

static int asks_where_it_is(void *thread)
{
    *(pthread_t *)thread = pthread_self();
    return conc_job_cancelled();
}

/* In a job of the pool. */
static void closes_its_pool_in_a_forked_process(void)
{
    pthread_t other = pthread_self();
    alarm(10);
    CHECK_INT(conc_pool_close(&pool_of_a_job), 0);
    overwrite_freed_memory();
    CHECK(!conc_job_cancelled());
    CHECK_INT(compare_status(NULL), 7);
    CHECK_INT(conc_pool_open(&pool_of_a_job), 0);
    CHECK_INT(conc_pool_run(&pool_of_a_job, asks_where_it_is, &other), 0);
    CHECK(!pthread_equal(other, pthread_self()));
    CHECK_INT(conc_pool_close(&pool_of_a_job), 0);
}

static int forks(void *arg)
{
    static char text[4096];
    (void)arg;
    CHECK_INT(test_in_process(closes_its_pool_in_a_forked_process, text, sizeof text), 0);
    CHECK_STR(text, "");
    return 0;
}

THREAD_CHILD_TEST(a_job_that_forks_starts_programs_where_its_pool_was_closed)
{
    pool_of_a_job = (conc_pool){.threads = 2};
    remember_own_status();
    CHECK_INT(conc_pool_open(&pool_of_a_job), 0);
    CHECK_INT(conc_pool_run(&pool_of_a_job, forks, NULL), 0);
    CHECK_INT(conc_pool_close(&pool_of_a_job), 0);
}

static bool posted_ran;

static void call_in_a_post(void *arg)
{
    conc_child *running = arg, fresh = {.argv = ARGV("true")};
    CHECK_INT(conc_child_start(&fresh), -EPERM);
    CHECK_INT(conc_child_wait(running, NULL), -EPERM);
    CHECK_INT(conc_child_kill(running, SIGTERM), 0);
    posted_ran = true;
}

CHILD_TEST(a_posted_function_kills_but_neither_starts_nor_waits)
{
    CONC_AUTO(conc_child, c) = sleeper();
    start(&c);
    CHECK_INT(conc_post(conc_loop_self(), call_in_a_post, &c), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(posted_ran);
    check_killed(&c, SIGTERM);
}

/* ---- SIGCHLD ---- */

static void check_disposition(void (*expected)(int))
{
    struct sigaction now;
    CHECK_INT(sigaction(SIGCHLD, NULL, &now), 0);
    CHECK(now.sa_handler == expected);
}

/* Its status is lost, but nothing hangs. */
static void live_without_status(void)
{
    for (int i = 0; i < 2; i++) {
        conc_child c = sleeper();
        start(&c);
        if (i == 0) {
            end_input(&c);
            int rc = conc_child_wait(&c, NULL);
            CHECK(rc == 0 || rc == -ECHILD);
            CHECK(conc_child_kill(&c, SIGTERM) < 0);
        }
        CHECK_INT(conc_child_close(&c), 0);
    }
}

CHILD_TEST(a_program_that_ignores_sigchld_still_waits)
{
    signal(SIGCHLD, SIG_IGN);
    live_without_status();
    check_disposition(SIG_IGN);
}

static atomic_int handled;

static void count_and_reap(int number)
{
    int old = errno;
    (void)number;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        handled++;
    errno = old;
}

static void count_only(int number)
{
    (void)number;
    handled++;
}

CHILD_TEST(a_handler_that_reaps_all_children_keeps_no_call_waiting)
{
    signal(SIGCHLD, count_and_reap);
    live_without_status();
    check_disposition(count_and_reap);
}

CHILD_TEST(the_programs_own_handler_is_called_and_stays)
{
    signal(SIGCHLD, count_only);
    conc_child c = {.argv = SH("exit 3")};
    start(&c);
    check_exits(&c, 3);
    CHECK_INT(conc_child_close(&c), 0);
    for (int i = 0; i < 20000 && !handled; i++)
        nap(); /* another thread's handler may not have run yet */
    CHECK(handled > 0);
    check_disposition(count_only);
}

CHILD_TEST(children_of_other_code_are_left_alone)
{
    int status = 0;
    pid_t own = fork();
    if (own == 0)
        _exit(17);
    wait_until_dead(own);
    CONC_AUTO(conc_child, c) = sleeper();
    start(&c);
    end_input(&c);
    check_exits(&c, 0);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(waitpid(own, &status, 0), own);
    CHECK_INT(WEXITSTATUS(status), 17);
}

CHILD_TEST(a_number_that_another_process_reuses_is_not_signalled)
{
    signal(SIGCHLD, SIG_IGN);
    check_reused_number(false);
    check_reused_number(true);
}

/* ---- the virtual clock ---- */

static int reads_until_the_end(void *fd)
{
    char text[64];
    ssize_t n;
    do
        n = conc_read(*(int *)fd, text, sizeof text);
    while (n > 0);
    return (int)n;
}

CHILD_TEST(a_quick_program_takes_no_virtual_time)
{
    for (int i = 0; i < 3; i++) {
        CONC_AUTO(conc_child, c) = {.argv = SH("sleep 0.05; echo x"), .output = CONC_PIPE};
        start(&c);
        CHECK_INT(conc_timeout(1000, reads_until_the_end, &c.output), 0);
        CHECK_INT(conc_timeout(1000, waits, &c), 0);
        CHECK_TIME(0);
    }
}

/* A limit of 0.05 seconds passes after that much real time, and exactly that much of the loop's. */
static void check_limit_comes(conc_fn *fn, void *arg)
{
    double real = test_real_seconds(), now = conc_now();
    CHECK_INT(conc_timeout(0.05, fn, arg), -ETIMEDOUT);
    CHECK(test_real_seconds() - real >= 0.05);
    CHECK_TIME(now + 0.05);
}

static int reads_a_line(void *stream)
{
    char *line;
    return (int)conc_stream_read_line(stream, &line);
}

static int writes_forever(void *fd)
{
    static char bytes[MEGABYTE];
    ssize_t n;
    do
        n = conc_write(*(int *)fd, bytes, sizeof bytes);
    while (n > 0);
    return (int)n;
}

CHILD_TEST(a_limit_on_a_program_that_hangs_passes_on_time)
{
    CONC_AUTO(conc_child,
              c) = {.argv = ARGV("sleep", "1000"), .input = CONC_PIPE, .output = CONC_PIPE};
    conc_stream s = {0};
    start(&c);
    check_limit_comes(waits, &c);
    check_limit_comes(reads_until_the_end, &c.output);
    check_limit_comes(writes_forever, &c.input);
    CHECK_INT(conc_stream_open(&s, c.output), 0);
    c.output = -1;
    check_limit_comes(reads_a_line, &s);
    CHECK_INT(conc_stream_close(&s), 0);
}

/* The program's output and errors come through this program's own pipe. */
CHILD_TEST(a_pipe_that_a_program_was_given_holds_the_clock_too)
{
    for (int hangs = 0; hangs < 2; hangs++) {
        int ends[2];
        double now = conc_now();
        CHECK_INT(pipe(ends), 0);
        fcntl(ends[0], F_SETFD, FD_CLOEXEC);
        CONC_AUTO(conc_child, c) = {.argv = hangs ? ARGV("sleep", "1000")
                                                  : SH("sleep 0.05; echo x; echo y >&2"),
                                    .output = ends[1],
                                    .error = ends[1]};
        start(&c);
        CHECK_INT(close(ends[1]), 0);
        if (hangs) {
            check_limit_comes(reads_until_the_end, &ends[0]);
        } else {
            CHECK_INT(conc_timeout(1000, reads_until_the_end, &ends[0]), 0);
            CHECK_TIME(now);
        }
        CHECK_INT(conc_close(ends[0]), 0);
    }
}

CHILD_TEST(pipes_that_a_program_inherits_hold_the_clock_too)
{
    int ends[2], error = dup(STDERR_FILENO);
    CHECK_INT(pipe(ends), 0);
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(error, F_SETFD, FD_CLOEXEC);
    CHECK_INT(dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
    CHECK_INT(close(ends[1]), 0);
    conc_child c = {.argv = SH("sleep 0.05; echo x >&2"), .output = CONC_NULL};
    int rc = conc_child_start(&c);
    CHECK_INT(dup2(error, STDERR_FILENO), STDERR_FILENO);
    CHECK_INT(close(error), 0);
    CHECK_INT(rc, 0);
    CHECK_INT(conc_timeout(1000, reads_until_the_end, &ends[0]), 0);
    CHECK_TIME(0);
    CHECK_INT(conc_close(ends[0]), 0);
    CHECK_INT(conc_child_close(&c), 0);
}

CHILD_TEST(an_input_that_a_program_inherits_does_not_hold_the_clock)
{
    int ends[2], input = dup(STDIN_FILENO);
    CHECK_INT(pipe(ends), 0);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    CHECK_INT(dup2(ends[0], STDIN_FILENO), STDIN_FILENO);
    CHECK_INT(close(ends[0]), 0);
    conc_child c = endless();
    start(&c);
    int in = STDIN_FILENO;
    CHECK_INT(conc_timeout(100000, reads_until_the_end, &in), -ETIMEDOUT);
    if (input >= 0) {
        CHECK_INT(dup2(input, STDIN_FILENO), STDIN_FILENO);
        CHECK_INT(close(input), 0);
    }
    CHECK_INT(close(ends[1]), 0);
    CHECK_INT(conc_child_close(&c), 0);
}

CHILD_TEST(a_limit_on_a_program_that_keeps_printing_passes)
{
    CONC_AUTO(conc_child, c) = {.argv = SH("while echo x; do sleep 0.01; done"),
                                .output = CONC_PIPE};
    start(&c);
    check_limit_comes(reads_until_the_end, &c.output);
}

/* Real time passes while the program is idle. */
static int says_a_line_late(void *arg)
{
    conc_child *c = arg;
    char text[8];
    nanosleep(&(struct timespec){.tv_nsec = 600000000}, NULL);
    CONC_TRY(conc_write(c->input, "line\n", 5));
    CHECK_INT(conc_read_full(c->output, text, 5), 5);
    return 0;
}

CHILD_TEST(the_wait_of_one_limit_does_not_shorten_the_next)
{
    CONC_AUTO(conc_child, c) = {.argv = ARGV("cat"), .input = CONC_PIPE, .output = CONC_PIPE};
    start(&c);
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_timeout(1, says_a_line_late, &c), 0);
    CHECK_TIME(0);
}

CHILD_TEST(a_program_that_nobody_waits_for_does_not_hold_the_clock)
{
    double real = test_real_seconds();
    CONC_AUTO(conc_child, c) = sleeper();
    start(&c);
    CHECK_INT(conc_sleep(1000), 0);
    CHECK(test_real_seconds() - real < 500);
    end_input(&c);
    check_exits(&c, 0);
    CHECK_INT(conc_sleep(1000), 0);
    CHECK_TIME(2000);
}

CHILD_TEST(a_pipe_of_a_program_that_has_ended_does_not_hold_the_clock)
{
    char text[64];
    conc_child c = {.argv = SH("sleep 1000 & echo $!"), .output = CONC_PIPE};
    start(&c);
    check_exits(&c, 0);
    ssize_t n = conc_read(c.output, text, sizeof text - 1);
    CHECK(n > 1);
    text[n] = 0;
    CHECK_INT(conc_timeout(10000, reads_until_the_end, &c.output), -ETIMEDOUT);
    CHECK_TIME(10000);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(kill((pid_t)atoi(text), SIGKILL), 0);
}

CHILD_TEST(the_pipe_of_a_group_that_lives_holds_the_clock)
{
    conc_child c = {.argv = SH("(sleep 0.1; echo x) & exit 0"), .output = CONC_PIPE, .group = true};
    start(&c);
    check_exits(&c, 0);
    CHECK_INT(conc_timeout(1000, reads_until_the_end, &c.output), 0);
    CHECK_TIME(0);
    CHECK_INT(conc_child_close(&c), 0);
}

#if !TEST_ONLY_POLL

static int waits_with_a_limit(void *arg)
{
    conc_child *c = arg;
    start(c);
    CHECK_INT(conc_timeout(0.05, waits, c), -ETIMEDOUT);
    CHECK_TIME(0.05);
    return conc_child_close(c);
}

TEST(an_embedded_loops_host_waits_as_long)
{
    conc_child c = {.argv = ARGV("sleep", "1000")};
    conc_embed e = {0};
    conc_options options = {.virtual_clock = true};
    int steps = 0;
    double real = test_real_seconds();
    unsetenv("CONC_POLL");
    CHECK_INT(conc_embed_begin(&e, &options, waits_with_a_limit, &c), 0);
    for (; conc_embed_step(&e) > 0; steps++) {
        struct pollfd p = {.fd = conc_embed_fd(&e), .events = POLLIN};
        double timeout = conc_embed_timeout(&e);
        poll(&p, 1, timeout < 1000 ? (int)(timeout * 1000 + 0.999) : -1);
    }
    CHECK_INT(conc_embed_end(&e), 0);
    CHECK(test_real_seconds() - real >= 0.05);
    CHECK(steps < 1000);
}

#endif

/* ---- process groups ---- */

/* The number that the script prints first. */
static int number_from(conc_child *c)
{
    char text[32] = "";
    size_t n = 0;
    while (n < sizeof text - 1 && (!n || text[n - 1] != '\n'))
        CHECK_INT(conc_read(c->output, text + n++, 1), 1);
    CHECK(atoi(text) > 0);
    return atoi(text);
}

CHILD_TEST(a_group_is_killed_and_closed_as_a_whole)
{
    static const char *const scripts[] = {"sleep 1000 & echo $!; wait", "sleep 1000 & echo $!"};
    for (int i = 0; i < 4; i++) {
        conc_child c = {
            .argv = SH(scripts[i % 2]), .output = CONC_PIPE, .error = CONC_NULL, .group = true};
        start(&c);
        int other = number_from(&c), status = 0;
        CHECK_INT(getpgid(other), c.pid);
        CHECK(getpgid(0) != c.pid);
        if (i % 2) /* the other one is left */
            check_exits(&c, 0);
        if (i < 2) {
            CHECK_INT(conc_child_kill(&c, SIGTERM), 0);
            check_process_ends(other);
            CHECK_INT(conc_timeout(1000, reads_until_the_end, &c.output), 0);
            CHECK_INT(conc_child_wait(&c, &status), 0);
            CHECK(i ? status == 0 : WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
            CHECK_INT(conc_child_kill(&c, SIGTERM), -EALREADY);
        }
        CHECK_INT(conc_child_close(&c), 0);
        check_process_ends(other);
    }
    CHECK_TIME(0);
}

CHILD_TEST(without_a_group_others_are_left_alone)
{
    conc_child c = {.argv = SH("sleep 1000 & echo $!; wait"), .output = CONC_PIPE};
    start(&c);
    int other = number_from(&c);
    CHECK_INT(getpgid(c.pid), getpgid(0));
    CHECK_INT(conc_child_close(&c), 0);
    CHECK(process_lives(other));
    CHECK_INT(kill(other, SIGKILL), 0);
}

/* ---- grace ---- */

#define ASKED(handler) SH("trap '" handler "' TERM; echo $$; while :; do sleep 0.01; done")

/* Closes the child once it is ready, and returns how it ended. */
static int close_with_grace(conc_child *c)
{
    waiter w = {.child = c};
    conc_group g = {0};
    start(c);
    number_from(c);
    CHECK_INT(conc_spawn(&g, waits_for_status, &w), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_child_close(c), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, 0);
    return w.status;
}

CHILD_TEST(a_close_with_grace_asks_first)
{
    for (int group = 0; group < 2; group++) {
        conc_child c = {
            .argv = ASKED("exit 3"), .output = CONC_PIPE, .group = group, .grace = 1000};
        int status = close_with_grace(&c);
        CHECK(WIFEXITED(status));
        CHECK_INT(WEXITSTATUS(status), 3);
        CHECK(conc_now() < 1); /* a process of the group may remain for a moment */
    }
}

CHILD_TEST(after_the_grace_it_is_killed)
{
    conc_child c = {.argv = ASKED(""), .output = CONC_PIPE, .grace = 0.05};
    double real = test_real_seconds();
    int status = close_with_grace(&c);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK_TIME(0.05);
    CHECK(test_real_seconds() - real >= 0.05);
    CHECK_STR(conc_last_error(), "");
}

CHILD_TEST(a_cancel_does_not_shorten_the_grace)
{
    int out[2];
    char text[64] = "";
    conc_scope s = {0};
    CHECK_INT(pipe2(out, O_CLOEXEC), 0);
    conc_child c = {.argv =
                        SH("trap 'sleep 0.05; echo bye; exit' TERM; echo >&2; while :; do sleep "
                           "0.01; done"),
                    .output = out[1],
                    .error = CONC_PIPE,
                    .grace = 1000};
    start(&c);
    CHECK_INT(close(out[1]), 0);
    CHECK_INT(conc_read(c.error, text, 1), 1);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    check_pipe_has(out[0], "bye\n");
    CHECK_INT(close(out[0]), 0);
}

CHILD_TEST(a_stopped_program_receives_the_request_to_end)
{
    for (int group = 0; group < 2; group++) {
        siginfo_t info;
        conc_child c = {.argv = ARGV("sleep", "1000"), .group = group, .grace = 1000};
        start(&c);
        CHECK_INT(conc_child_kill(&c, SIGSTOP), 0);
        CHECK_INT(waitid(P_PID, (id_t)c.pid, &info, WSTOPPED | WNOWAIT), 0);
        CHECK_INT(conc_child_close(&c), 0);
        CHECK(conc_now() < 1);
        check_no_children();
    }
}

CHILD_TEST(the_grace_is_for_the_whole_group)
{
    int out[2];
    CHECK_INT(pipe2(out, O_CLOEXEC), 0);
    conc_child c = {.argv = SH("(trap 'sleep 0.05; echo late; exit' TERM; echo $$ >&2; while :; do "
                               "sleep 0.01; done) & trap 'exit 0' TERM; wait"),
                    .output = out[1],
                    .error = CONC_PIPE,
                    .group = true,
                    .grace = 1000};
    char text[64];
    start(&c);
    CHECK_INT(close(out[1]), 0);
    CHECK(conc_read(c.error, text, sizeof text) > 0);
    CHECK_INT(conc_child_close(&c), 0);
    check_pipe_has(out[0], "late\n");
    CHECK_INT(close(out[0]), 0);
}

THREAD_CHILD_TEST(outside_a_run_there_is_grace_too)
{
    int out[2];
    char text[64] = "";
    for (int i = 0; i < 2; i++) {
        CHECK_INT(pipe2(out, O_CLOEXEC), 0);
        conc_child c = {.argv = i ? ASKED("") : ASKED("echo bye; exit"),
                        .output = out[1],
                        .group = true,
                        .grace = i ? 0.05 : 1000};
        double real = test_real_seconds();
        start(&c);
        CHECK(read(out[0], text, sizeof text) > 0);
        CHECK_INT(conc_child_close(&c), 0);
        CHECK(!i || test_real_seconds() - real >= 0.05);
        CHECK_INT(close(out[1]), 0);
        CHECK_INT(read(out[0], text, sizeof text), i ? 0 : 4);
        CHECK(i || memcmp(text, "bye\n", 4) == 0);
        CHECK_INT(close(out[0]), 0);
    }
}

CHILD_TEST(an_invalid_grace_is_refused)
{
    conc_child c = {.argv = ARGV("true"), .grace = -1};
    CHECK_INT(conc_child_start(&c), -EINVAL);
    c.grace = (double)(0 * (float)1e30f) / 0.0;
    CHECK_INT(conc_child_start(&c), -EINVAL);
    check_no_children();
}

/* ---- communicating ---- */

static void free_io(conc_child_io *io)
{
    conc_free(io->out);
    conc_free(io->error);
    *io = (conc_child_io){0};
}

#define ALL_PIPES .input = CONC_PIPE, .output = CONC_PIPE, .error = CONC_PIPE

CHILD_TEST(a_program_is_fed_and_read_at_once)
{
    char *data = malloc(3 * MEGABYTE);
    CHECK(data != NULL);
    for (int i = 0; i < 3 * MEGABYTE; i++)
        data[i] = (char)(i ^ i >> 8 ^ i >> 16);
    conc_child c = {.argv = SH("tee /dev/stderr; exit 3"), ALL_PIPES};
    conc_child_io io = {.in = data, .in_size = 3 * MEGABYTE};
    int status = 0;
    start(&c);
    CHECK_INT(conc_child_communicate(&c, &io, &status), 0);
    CHECK_INT(WEXITSTATUS(status), 3);
    CHECK(io.in == data);
    CHECK_INT(io.in_size, 3 * MEGABYTE);
    CHECK_INT(io.out_size, 3 * MEGABYTE);
    CHECK_INT(io.error_size, 3 * MEGABYTE);
    CHECK(memcmp(io.out, data, 3 * MEGABYTE) == 0);
    CHECK(memcmp(io.error, data, 3 * MEGABYTE) == 0);
    CHECK_INT(io.out[io.out_size], 0);
    CHECK_INT(io.error[io.error_size], 0);
    free_io(&io);
    CHECK_INT(conc_child_close(&c), 0);
    free(data);
}

/* From a task, a job or a thread. */
static int converses(void *arg)
{
    conc_child c = {.argv = SH("echo err >&2; cat; exit 5"), ALL_PIPES};
    conc_child_io io = {.in = "words", .in_size = 5};
    int status = 0;
    (void)arg;
    CONC_TRY(conc_child_start(&c));
    CONC_TRY(conc_child_communicate(&c, &io, &status));
    bool right = strcmp(io.out, "words") == 0 && strcmp(io.error, "err\n") == 0 &&
                 io.out_size == 5 && io.error_size == 4;
    free_io(&io);
    CONC_TRY(conc_child_close(&c));
    return right && WIFEXITED(status) ? WEXITSTATUS(status) : -EIO;
}

CHILD_TEST(jobs_communicate_too)
{
    CONC_AUTO(conc_pool, pool) = {.threads = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(converses(NULL), 5);
    CHECK_INT(conc_pool_run(&pool, converses, NULL), 5);
    CHECK_INT(conc_offload(converses, NULL), 5);
}

THREAD_CHILD_TEST(threads_communicate_too) { CHECK_INT(converses(NULL), 5); }

CHILD_TEST(only_pipes_are_used)
{
    conc_child c = {.argv = SH("cat; echo out; echo err >&2"),
                    .input = CONC_NULL,
                    .output = CONC_NULL,
                    .error = CONC_PIPE};
    conc_child_io io = {0};
    start(&c);
    CHECK_INT(conc_child_communicate(&c, &io, NULL), 0);
    CHECK(io.out == NULL);
    CHECK_INT(io.out_size, 0);
    CHECK_STR(io.error, "err\n");
    free_io(&io);
    CHECK_INT(conc_child_close(&c), 0);
    c = (conc_child){.argv = ARGV("true"), ALL_PIPES};
    start(&c);
    CHECK_INT(conc_child_communicate(&c, &io, NULL), 0);
    CHECK_STR(io.out, "");
    CHECK_STR(io.error, "");
    free_io(&io);
    CHECK_INT(conc_child_close(&c), 0);
}

CHILD_TEST(input_that_is_not_read_is_no_error)
{
    static char data[MEGABYTE];
    static const char *const scripts[] = {"exit 4", "read x; exit 4", "exec <&-; echo out; exit 4",
                                          "exec 3<&0; sleep 1000 <&3 >/dev/null 2>&1 & exit 4"};
    for (size_t i = 0; i < CONC_LEN(scripts); i++) {
        int status = 0;
        conc_child c = {.argv = SH(scripts[i]), .group = true, ALL_PIPES};
        conc_child_io io = {.in = data, .in_size = sizeof data};
        start(&c);
        CHECK_INT(conc_child_communicate(&c, &io, &status), 0);
        CHECK_INT(WEXITSTATUS(status), 4);
        CHECK_STR(io.out, i == 2 ? "out\n" : "");
        free_io(&io);
        CHECK_INT(conc_child_close(&c), 0);
    }
}

CHILD_TEST(output_after_the_end_of_the_program_is_read)
{
    int out;
    conc_child c = {.argv = SH("exec 3<&0; (read x <&3; echo late) & echo early"), ALL_PIPES};
    conc_child_io io = {0};
    start(&c);
    out = c.input; /* which communicate leaves alone */
    c.input = -1;
    check_exits(&c, 0);
    CHECK_INT(conc_write(out, "x\n", 2), 2);
    CHECK_INT(conc_child_communicate(&c, &io, NULL), 0);
    CHECK_STR(io.out, "early\nlate\n");
    free_io(&io);
    CHECK_INT(conc_close(out), 0);
    CHECK_INT(conc_child_close(&c), 0);
}

CHILD_TEST(more_than_the_limit_closes_the_program)
{
    static const struct {
        const char *script;
        int rc;
    } cases[] = {{"printf 0123456789", 0},
                 {"printf 0123456789 >&2", 0},
                 {"printf 01234567890; sleep 1000", -EMSGSIZE},
                 {"printf 01234567890 >&2; sleep 1000", -EMSGSIZE},
                 {"yes >&2 & yes", -EMSGSIZE}};
    for (size_t i = 0; i < CONC_LEN(cases); i++) {
        conc_child c = {.argv = SH(cases[i].script), .group = true, ALL_PIPES};
        conc_child_io io = {.limit = 10};
        start(&c);
        int pid = c.pid;
        CHECK_INT(conc_child_communicate(&c, &io, NULL), cases[i].rc);
        if (cases[i].rc) {
            CHECK_CONTAINS(conc_last_error(), "more than 10 bytes");
            CHECK(!lives(pid));
            check_no_children();
            CHECK_INT(c.output, -1);
            CHECK_INT(conc_child_wait(&c, NULL), -EINVAL);
        }
        CHECK(io.out_size == 10 || io.error_size == 10);
        CHECK_INT(strlen(io.out), io.out_size);
        CHECK_INT(strlen(io.error), io.error_size);
        free_io(&io);
        CHECK_INT(conc_child_close(&c), 0);
    }
}

typedef struct talk {
    conc_child child;
    conc_child_io io;
    int status;
} talk;

static int communicates(void *arg)
{
    talk *t = arg;
    return conc_child_communicate(&t->child, &t->io, &t->status);
}

/* What the comment of conc_child_communicate advises. */
static int communicates_with_a_limit(talk *t, bool ignores_it)
{
    int rc;
    do { /* until it has printed something */
        rc = conc_timeout(0.05, communicates, t);
        CHECK_INT(rc, -ETIMEDOUT);
    } while (!t->io.out_size);
    CHECK_INT(conc_child_kill(&t->child, SIGTERM), 0);
    rc = conc_timeout(ignores_it ? 0.05 : 1000, communicates, t);
    if (rc == -ETIMEDOUT) {
        CHECK_INT(conc_child_kill(&t->child, SIGKILL), 0);
        rc = communicates(t);
    }
    return rc;
}

CHILD_TEST(the_rest_and_the_status_of_a_program_that_timed_out_are_available)
{
    static const struct {
        const char *script, *out;
        int status;
    } cases[] = {
        {"trap 'echo last; exit 3' TERM; echo first; while :; do sleep 0.01; done", "first\nlast\n",
         3 << 8},
        {"trap '' TERM; echo first; while :; do sleep 0.01; done", "first\n", SIGKILL},
        {"sleep 1000 & echo first; wait", "first\n", SIGTERM},
    };
    static char data[100000];
    for (size_t i = 0; i < 2 * CONC_LEN(cases); i++) {
        talk t = {.child = {.argv = SH(cases[i / 2].script), .output = CONC_PIPE, .group = true}};
        if (i % 2) {
            t.child.input = CONC_PIPE;
            t.io = (conc_child_io){.in = data, .in_size = sizeof data};
        }
        start(&t.child);
        CHECK_INT(communicates_with_a_limit(&t, cases[i / 2].status == SIGKILL), 0);
        CHECK_INT(t.status, cases[i / 2].status);
        CHECK_STR(t.io.out, cases[i / 2].out);
        free_io(&t.io);
        CHECK_INT(conc_child_close(&t.child), 0);
    }
}

CHILD_TEST(output_read_before_a_cancel_stays_and_another_call_continues)
{
    enum { SIZE = 300000, FIRST = 100000 };
    static char data[SIZE];
    talk t = {.io = {.in = data, .in_size = SIZE}};
    conc_group g = {0};
    memset(data, 'x', SIZE);
    make_directory();
    CHECK_INT(mkfifo(path_of("fifo"), 0600), 0);
    t.child = (conc_child){
        .argv = ARGV("sh", "-c", "head -c 100000; echo err >&2; cat $0; cat", path_of("fifo")),
        ALL_PIPES};
    start(&t.child);
    CHECK_INT(conc_spawn(&g, communicates, &t), 0);
    while (t.io.out_size < FIRST || t.io.error_size < 4)
        CHECK_INT(conc_sleep(0.001), 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(t.io.in_size > 0 && t.io.in_size < SIZE);
    CHECK_INT(t.io.out_size, FIRST);
    CHECK_INT(strlen(t.io.out), FIRST);
    CHECK_STR(t.io.error, "err\n");
    CHECK(lives(t.child.pid));
    CHECK_INT(conc_file_write(path_of("fifo"), "-", 1), 0);
    CHECK_INT(communicates(&t), 0);
    CHECK_INT(t.status, 0);
    CHECK_INT(t.io.out_size, SIZE + 1);
    CHECK_INT(strlen(t.io.out), SIZE + 1);
    CHECK_INT(t.io.out[FIRST], '-');
    CHECK_STR(t.io.error, "err\n");
    free_io(&t.io);
    CHECK_INT(conc_child_close(&t.child), 0);
    CHECK_INT(unlink(path_of("fifo")), 0);
    CHECK_INT(rmdir(directory), 0);
}

CHILD_TEST(a_cancel_before_anything_moves_nothing)
{
    conc_scope s = {0};
    talk t = {.child = {.argv = ARGV("cat"), ALL_PIPES}, .io = {.in = "abc", .in_size = 3}};
    start(&t.child);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(communicates(&t), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(t.io.in_size, 3);
    CHECK_INT(communicates(&t), 0);
    CHECK_STR(t.io.out, "abc");
    free_io(&t.io);
    CHECK_INT(conc_child_close(&t.child), 0);
}

CHILD_TEST(output_is_read_although_the_status_is_lost)
{
    signal(SIGCHLD, SIG_IGN);
    conc_child c = {.argv = SH("cat; echo out"), ALL_PIPES};
    conc_child_io io = {.in = "in ", .in_size = 3};
    start(&c);
    CHECK_INT(conc_child_communicate(&c, &io, NULL), -ECHILD);
    CHECK_STR(io.out, "in out\n");
    free_io(&io);
    CHECK_INT(conc_child_close(&c), 0);
}

static void communicate_in_a_post(void *arg)
{
    conc_child_io io = {0};
    CHECK_INT(conc_child_communicate(arg, &io, NULL), -EPERM);
    posted_ran = true;
}

CHILD_TEST(invalid_communication_is_refused)
{
    conc_child never = {0};
    conc_child_io io = {0};
    CHECK_INT(conc_child_communicate(NULL, &io, NULL), -EINVAL);
    CHECK_INT(conc_child_communicate(&never, &io, NULL), -EINVAL);
    CONC_AUTO(conc_child, c) = {.argv = ARGV("true")};
    start(&c);
    CHECK_INT(conc_child_communicate(&c, NULL, NULL), -EINVAL);
    io = (conc_child_io){.in = "x", .in_size = 1}; /* but no pipe */
    CHECK_INT(conc_child_communicate(&c, &io, NULL), -EINVAL);
    CHECK_INT(conc_post(conc_loop_self(), communicate_in_a_post, &c), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(posted_ran);
}

/* ---- error texts ---- */

static void check_words(conc_child c, int rc, const char *words)
{
    CHECK_INT(conc_child_start(&c), rc);
    CHECK_CONTAINS(conc_last_error(), words);
    CHECK_CONTAINS(conc_last_error(), strerror(-rc));
}

CHILD_TEST(an_error_names_what_is_missing)
{
    make_directory();
    make_text("script", "#!/no/such/interpreter\n", 0755);
    make_text("plain", "x", 0644);
    check_words((conc_child){.argv = ARGV("/no/such/program")}, -ENOENT, "/no/such/program: ");
    check_words((conc_child){.argv = ARGV("/no/such/program"), .dir = directory}, -ENOENT,
                "/no/such/program: ");
    check_words((conc_child){.argv = ARGV("true"), .dir = "/no/such/directory"}, -ENOENT,
                "the directory /no/such/directory: ");
    check_words((conc_child){.argv = ARGV("true"), .dir = path_of("plain")}, -ENOTDIR,
                "the directory ");
    check_words((conc_child){.argv = ARGV(path_of("plain")), .dir = directory}, -EACCES, "plain: ");
    check_words((conc_child){.argv = ARGV(path_of("script"))}, -ENOENT, "the interpreter of ");
    check_words((conc_child){.argv = ARGV("true"), .output = 250}, -EBADF, "descriptor 1: ");
    CHECK_INT(unlink(path_of("script")), 0);
    CHECK_INT(unlink(path_of("plain")), 0);
    CHECK_INT(rmdir(directory), 0);
}

/* The caller's strings need not outlive the start of the program. */
CHILD_TEST(an_error_names_the_program_and_its_number)
{
    const char *argv[] = {"sh", "-c", "echo x; exec sleep 1000", NULL};
    char name[64];
    conc_child c = {.argv = argv, .output = CONC_PIPE};
    conc_child_io io = {.limit = 1};
    start(&c);
    snprintf(name, sizeof name, "sh (process %d)", c.pid);
    argv[0] = "gone";
    CHECK_INT(conc_child_kill(&c, 1000), -EINVAL);
    CHECK_CONTAINS(conc_last_error(), name);
    CHECK_INT(conc_child_communicate(&c, &io, NULL), -EMSGSIZE);
    CHECK_CONTAINS(conc_last_error(), name);
    free_io(&io);
    argv[0] = "sh";
    argv[2] = "exit 3";
    c = (conc_child){.argv = argv};
    start(&c);
    snprintf(name, sizeof name, "sh (process %d)", c.pid);
    CHECK_INT(waitpid(c.pid, NULL, 0), c.pid); /* behind conc's back */
    CHECK_INT(conc_child_wait(&c, NULL), -ECHILD);
    CHECK_CONTAINS(conc_last_error(), name);
    CHECK_INT(conc_child_kill(&c, SIGKILL), -EALREADY);
    CHECK_CONTAINS(conc_last_error(), name);
    CHECK_INT(conc_child_close(&c), 0);
    check_words((conc_child){.argv = ARGV("true"), .error = 250}, -EBADF, "true: its descriptor 2");
    check_words((conc_child){.argv = ARGV("true"), .dir = ""}, -ENOENT, "directory \"\"");
}

/* ---- forked processes ---- */

static int uses_the_parents_program(void *arg)
{
    conc_child *c = arg;
    conc_child_io io = {0};
    int pid = c->pid;
    CHECK_INT(conc_child_wait(c, NULL), -EPERM);
    CHECK_CONTAINS(conc_last_error(), "forked");
    CHECK_INT(conc_child_kill(c, SIGKILL), -EPERM);
    CHECK_INT(conc_child_communicate(c, &io, NULL), -EPERM);
    CHECK_INT(conc_child_start(c), -EBUSY);
    CHECK_INT(conc_child_close(c), 0);
    CHECK(lives(pid));
    *c = (conc_child){.argv = SH("exit 3")};
    start(c);
    check_exits(c, 3);
    return conc_child_close(c);
}

static conc_child parents_program;

static void use_the_parents_program(void)
{
    alarm(10);
    unsetenv("CONC_DEBUG");
    CHECK_INT(conc_run(uses_the_parents_program, &parents_program), 0);
}

CHILD_TEST(a_parents_program_continues_when_a_forked_process_closes_it)
{
    static char text[4096];
    parents_program = sleeper();
    start(&parents_program);
    CHECK_INT(test_in_process(use_the_parents_program, text, sizeof text), 0);
    CHECK_STR(text, "");
    CHECK_INT(conc_child_kill(&parents_program, SIGTERM), 0);
    check_killed(&parents_program, SIGTERM);
    CHECK_INT(conc_child_close(&parents_program), 0);
}

CHILD_TEST(a_start_that_fails_names_the_program_or_its_directory)
{
    conc_child nosuch = {.argv = ARGV("nosuch-program")};
    conc_child elsewhere = {.argv = ARGV("true"), .dir = "/nosuch-dir"};
    CHECK_INT(conc_child_start(&nosuch), -ENOENT);
    CHECK_CONTAINS(conc_last_error(), "nosuch-program");
    CHECK_INT(conc_child_start(&elsewhere), -ENOENT);
    CHECK_CONTAINS(conc_last_error(), "/nosuch-dir");
}

static conc_child starting;

/* If `next` is set, the next start writes a byte to `entered` and waits for one from
 * `released`. */
static struct {
    atomic_bool next;
    int entered[2], released[2];
} held_start;

/* Called on a thread of conc's. */
int posix_spawn(SPAWN_PARAMETERS)
{
    if (atomic_exchange(&held_start.next, false)) {
        char byte = 0;
        CHECK_INT(write(held_start.entered[1], &byte, 1), 1);
        CHECK_INT(read(held_start.released[0], &byte, 1), 1);
    }
    return system_spawn(pid, path, actions, attributes, argv, env);
}

static void hold_next_start(void)
{
    CHECK_INT(pipe2(held_start.entered, O_CLOEXEC), 0);
    CHECK_INT(pipe2(held_start.released, O_CLOEXEC), 0);
    atomic_store(&held_start.next, true);
}

static void await_held_start(void)
{
    char byte;
    CHECK_INT(read(held_start.entered[0], &byte, 1), 1);
}

static void release_start(void) { CHECK_INT(write(held_start.released[1], "", 1), 1); }

static void close_held_start(void)
{
    for (int i = 0; i < 2; i++) {
        close(held_start.entered[i]);
        close(held_start.released[i]);
    }
}

static int starts_and_waits(void *arg)
{
    conc_child *c = arg;
    CHECK_INT(conc_child_close(c), 0);
    start(c);
    check_exits(c, 0);
    return conc_child_close(c);
}

static void start_what_is_being_started(void)
{
    alarm(10);
    CHECK_INT(conc_run(starts_and_waits, &starting), 0);
}

CHILD_TEST(a_program_that_the_parent_is_starting_can_be_started_in_a_forked_process)
{
    static char text[4096];
    conc_group g = {0};
    starting = (conc_child){.argv = ARGV("true")};
    hold_next_start();
    CHECK_INT(conc_spawn(&g, starts_and_waits, &starting), 0);
    while (!starting.state)
        CHECK_INT(conc_yield(), 0);
    await_held_start();
    CHECK_INT(starting.pid, 0);
    CHECK_INT(test_in_process(start_what_is_being_started, text, sizeof text), 0);
    release_start();
    CHECK_INT(conc_group_wait(&g), 0);
    close_held_start();
}

/* Not with sanitizers: if another thread allocates during the fork, the child of these versions
 * finds their allocator's locks held. */
#ifndef ON_SANITIZER
static atomic_bool enough;

/* Acquires and releases the locks that guard all children's state, again and again. */
static int asks_forever(void *arg)
{
    conc_child c = {.argv = ARGV("sleep", "1000")};
    (void)arg;
    start(&c);
    while (!enough) {
        CHECK_INT(conc_child_kill(&c, 0), 0);
        conc_shared_free(conc_shared_alloc(1));
    }
    return conc_child_close(&c);
}

static void live_once(void)
{
    conc_child c = {.argv = ARGV("true")};
    alarm(10);
    CHECK_INT(conc_child_start(&c), 0);
    CHECK_INT(conc_child_wait(&c, NULL), 0);
    CHECK_INT(conc_child_close(&c), 0);
    conc_shared_free(conc_shared_alloc(1));
}

THREAD_CHILD_TEST(a_fork_finds_no_lock_held)
{
    static char text[4096];
    side s = {.fn = asks_forever};
    side_start(&s);
    for (int i = 0; i < 50; i++)
        CHECK_INT(test_in_process(live_once, text, sizeof text), 0);
    enough = true;
    CHECK_INT(side_end(&s), 0);
}

/* Forks while another thread uses conc for the first time. */
static int is_first(void *arg)
{
    (void)arg;
    conc_shared_free(conc_shared_alloc(1));
    return 0;
}

static int status_of(pid_t process)
{
    int status = -1;
    CHECK(waitpid(process, &status, 0) == process);
    return status;
}

static void live_and_fork(int generations)
{
    pid_t child = fork();
    if (child == 0) {
        live_once();
        if (generations > 1)
            live_and_fork(generations - 1);
        _exit(0);
    }
    CHECK_INT(status_of(child), 0);
}

static void fork_at_first_use(void)
{
    side s = {.fn = is_first};
    side_start(&s);
    live_and_fork(2);
    CHECK_INT(side_end(&s), 0);
}

THREAD_CHILD_TEST(a_process_that_is_forked_during_the_first_use_does_not_wait_for_it)
{
    static char text[4096];
    for (int i = 0; i < 100; i++)
        CHECK_INT(test_in_process(fork_at_first_use, text, sizeof text), 0);
}
#endif

/* ---- sockets ---- */

static bool blocks(int fd) { return !(fcntl(fd, F_GETFL) & O_NONBLOCK); }

static int reads_a_byte(void *fd)
{
    char c;
    return (int)conc_read(*(int *)fd, &c, 1);
}

/* The child reads a line and answers, like programs that do not know O_NONBLOCK. */
static void talk_through(int given, int far)
{
    static const char *const argv[] = {"sh", "-c", "read x && echo you said $x && echo >&2 done",
                                       NULL};
    conc_child c = {.argv = argv, .input = given, .output = given, .error = given};
    char text[64] = "";
    int status = -1;
    CHECK(!blocks(given));
    CHECK_INT(conc_child_start(&c), 0);
    CHECK(blocks(given)); /* so a child that reads before there is input waits */
    CHECK_INT(conc_write(far, "hello\n", 6), 6);
    CHECK_INT(conc_read_full(far, text, 20), 20);
    CHECK_STR(text, "you said hello\ndone\n");
    CHECK_INT(conc_child_wait(&c, &status), 0);
    CHECK_INT(status, 0);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK(blocks(given));
    /* conc continues without blocking the loop */
    CHECK_INT(conc_timeout(0.01, reads_a_byte, &given), -ETIMEDOUT);
    CHECK_INT(conc_write(given, "x", 1), 1);
    CHECK_INT(conc_read(far, text, sizeof text), 1);
}

static int words_of_sockets(void *arg)
{
    char where[128];
    int l = conc_listen("127.0.0.1:0"), pair[2];
    (void)arg;
    CHECK_INT(conc_address(l, false, where, sizeof where), 0);
    int dialled = conc_dial(where), accepted = conc_accept(l);
    talk_through(dialled, accepted);
    talk_through(accepted, dialled);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    talk_through(pair[0], pair[1]);
    CHECK(!blocks(pair[1]));
    int fds[] = {l, dialled, accepted, pair[0], pair[1]};
    for (size_t i = 0; i < CONC_LEN(fds); i++)
        CHECK_INT(conc_close(fds[i]), 0);
    return 0;
}

TEST(a_socket_that_a_program_gets_is_blocking_and_conc_still_works)
{
    CHECK_INT(conc_run(words_of_sockets, NULL), 0);
}

static int gives_what_stays(void *arg)
{
    static const char *const argv[] = {"true", NULL}, *const none[] = {"/no/such/program", NULL};
    int l = conc_listen("127.0.0.1:0"), pair[2];
    conc_child c = {.argv = argv, .input = l};
    (void)arg;
    CHECK_INT(conc_child_start(&c), 0);
    CHECK(!blocks(l)); /* accept(2) would block the loop */
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    c = (conc_child){.argv = none, .input = pair[0], .output = pair[0]};
    CHECK_INT(conc_child_start(&c), -ENOENT);
    CHECK(!blocks(pair[0])); /* nothing was started */
    CHECK_CONTAINS(conc_last_error(), "/no/such/program");
    CHECK_INT(conc_close(pair[0]), 0);
    CHECK_INT(conc_close(pair[1]), 0);
    return conc_close(l);
}

TEST(a_listener_is_unchanged_and_so_is_a_socket_when_nothing_is_started)
{
    CHECK_INT(conc_run(gives_what_stays, NULL), 0);
}

static int gives_its_own_input(void *arg)
{
    static const char *const argv[] = {"sh", "-c", "read x", NULL};
    conc_child c = {.argv = argv};
    int *far = arg, status = -1;
    CHECK(!blocks(0));
    CHECK_INT(conc_child_start(&c), 0);
    CHECK(blocks(0));
    CHECK_INT(conc_write(*far, "hello\n", 6), 6);
    CHECK_INT(conc_child_wait(&c, &status), 0);
    CHECK_INT(status, 0);
    return conc_child_close(&c);
}

TEST(an_inherited_socket_is_blocking_too)
{
    int pair[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    CHECK_INT(dup2(pair[0], 0), 0);
    CHECK_INT(conc_run(gives_its_own_input, &pair[1]), 0);
}
