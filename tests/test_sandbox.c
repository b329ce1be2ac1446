/* test_sandbox.c - system calls that a sandbox or an old kernel refuses: each part of a program
 * either works in another way, or fails with an error text that names the call; nothing spins,
 * hangs or crashes.
 *
 * Seeds: 2 (each starts processes and waits for them)
 * Not under: valgrind, asan, gcc-asan, tsan (these make system calls of their own)
 */
#define TEST_SYNC
#include "pool_test.h"

#ifdef __linux__

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* ---- the sandbox ---- */

enum { LIMIT = 20, MOST_POLLS = 5000 };

static bool refuse(long call, int error)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {CONC_LEN(filter), filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* ---- the parts of the program ---- */

static int naps(void *arg)
{
    (void)arg;
    return conc_sleep(0.002);
}

static int tasks_and_timers(void *arg)
{
    conc_group g = {0};
    for (int i = 0; i < 20; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, naps, arg));
    CONC_TRY(conc_group_wait(&g));
    CHECK_INT(conc_timeout(0.01, naps, arg), 0);
    return 0;
}

static int send_a_byte(void *fd)
{
    CONC_TRY(conc_sleep(0.01));
    return (int)conc_write(*(int *)fd, "x", 1);
}

static int pipe_ends[2];

/* While a timer is armed and while none is; on a blocking pipe, which conc did not create. */
static int pipes(void *arg)
{
    int *ends = pipe_ends;
    char byte = 0;
    (void)arg;
    CHECK_INT(conc_wait_fd(ends[1], CONC_READABLE | CONC_WRITABLE), CONC_WRITABLE);
    for (int i = 0; i < 2; i++) {
        conc_group g = {0};
        conc_scope s = {0};
        CONC_TRY(conc_spawn(&g, send_a_byte, &ends[1]));
        CONC_TRY_IN(&g, conc_scope_begin(&s, i ? 10 : CONC_FOREVER));
        int rc = conc_scope_end(&s, (int)conc_read(ends[0], &byte, 1));
        CHECK_INT(conc_group_end(&g, rc < 0 ? rc : 0), 0);
        CHECK_INT(rc, 1);
        CHECK_INT(byte, 'x');
    }
    return 0;
}

static int echo(int fd, void *arg)
{
    conc_stream s = {0};
    char *line;
    (void)arg;
    CONC_TRY(conc_stream_open(&s, fd));
    while (conc_stream_read_line(&s, &line) >= 0 && line) {
        CONC_TRY(conc_stream_printf(&s, "%s again\n", line));
        CONC_TRY(conc_stream_flush(&s));
    }
    return conc_stream_close(&s);
}

static int serve(void *server) { return conc_serve(server); }

static int talk(const char *address)
{
    conc_stream s = {0};
    char *line = NULL;
    CONC_TRY(conc_stream_open(&s, CONC_TRY(conc_dial(address))));
    for (int i = 0; i < 3; i++) {
        CONC_TRY(conc_stream_printf(&s, "hello\n"));
        CONC_TRY(conc_stream_flush(&s));
        CONC_TRY((int)conc_stream_read_line(&s, &line));
        CHECK_STR(line, "hello again");
    }
    return conc_stream_close(&s);
}

static int sockets_and_streams(void *arg)
{
    char address[64];
    conc_group g = {0};
    (void)arg;
    int fd = CONC_TRY(conc_listen("127.0.0.1:0"));
    conc_server server = {.fd = fd, .handler = echo};
    CHECK(conc_address(fd, false, address, sizeof address) >= 0);
    CONC_TRY(conc_spawn(&g, serve, &server));
    for (int i = 0; i < 2; i++)
        CONC_TRY_IN(&g, talk(address));
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    return conc_close(fd);
}

static void send_sigusr1(void)
{
    int saved = errno;
    if (kill(getpid(), SIGUSR1))
        CHECK_INT(raise(SIGUSR1), 0);
    errno = saved;
}

static void *send_a_signal(void *arg)
{
    nanosleep(&(struct timespec){0, 10000000}, NULL);
    send_sigusr1();
    return arg;
}

static int signals(void *arg)
{
    pthread_t t;
    conc_signals s = {0};
    (void)arg;
    CONC_TRY(conc_signals_open(&s, &(int){SIGUSR1}, 1));
    CHECK_INT(pthread_create(&t, NULL, send_a_signal, NULL), 0);
    CHECK_INT(conc_signals_next(&s), SIGUSR1);
    CHECK_INT(pthread_join(t, NULL), 0);
    return conc_signals_close(&s);
}

static int broken_end;

static int broken_pipes(void *arg)
{
    int saved = errno;
    (void)arg;
    CHECK_INT(conc_write(broken_end, "x", 1), -EPIPE);
    CHECK_INT(write(broken_end, "x", 1), -1);
    errno = saved;
    return 0;
}

static int handled;

static void handle(int number)
{
    (void)number;
    handled++;
}

/* It goes to the previous handler. */
static int a_signal_nobody_takes(void *arg)
{
    conc_signals s = {0};
    (void)arg;
    int saved = errno;
    handled = 0;
    signal(SIGUSR1, handle);
    int rc = conc_signals_open(&s, &(int){SIGUSR1}, 1);
    if (rc == 0) {
        send_sigusr1();
        CHECK_INT(conc_signals_close(&s), 0);
        CHECK_INT(conc_yield(), 0);
        CHECK_INT(handled, 1);
    }
    signal(SIGUSR1, SIG_DFL);
    errno = saved;
    return rc;
}

static void set_event(void *event) { conc_event_set(event); }

static conc_loop *here;

static void *post(void *event)
{
    nanosleep(&(struct timespec){0, 10000000}, NULL);
    CHECK_INT(conc_post(here, set_event, event), 0);
    return NULL;
}

static int posts(void *arg)
{
    pthread_t t;
    conc_event event = {0};
    (void)arg;
    here = conc_loop_self();
    CHECK_INT(conc_loop_hold(here), 0);
    int saved = errno;
    CHECK_INT(pthread_create(&t, NULL, post, &event), 0);
    errno = saved; /* the C library tries its own signal call */
    CHECK_INT(conc_event_wait(&event), 0);
    CHECK_INT(pthread_join(t, NULL), 0);
    return conc_loop_release(here);
}

static int add_one(void *number) { return ++*(int *)number; }

static int threads_and_files(void *arg)
{
    conc_pool p = {.threads = 2};
    int numbers[20] = {0};
    char path[] = "/tmp/conc_test_XXXXXX";
    void *data = NULL;
    size_t size = 0;
    (void)arg;
    CONC_TRY(conc_pool_open(&p));
    CHECK_INT(conc_pool_map(&p, add_one, numbers, 20, sizeof numbers[0]), 0);
    CHECK_INT(conc_pool_close(&p), 0);
    for (int i = 0; i < 20; i++)
        CHECK_INT(numbers[i], 1);
    CHECK_INT(conc_offload(add_one, &numbers[0]), 2);
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    int rc = conc_file_write(path, "hello", 5);
    if (rc == 0)
        rc = conc_file_read(path, &data, &size);
    unlink(path);
    if (rc == 0)
        CHECK_INT(size, 5);
    conc_free(data);
    return rc;
}

static int children(void *arg)
{
    const char *const argv[] = {"sh", "-c", "read x; echo got $x", NULL};
    conc_child c = {.argv = argv, .input = CONC_PIPE, .output = CONC_PIPE};
    char text[32] = {0};
    int status = -1;
    (void)arg;
    CONC_TRY(conc_child_start(&c));
    CHECK_INT(conc_write_full(c.input, "it\n", 3), 3);
    CHECK_INT(conc_read_full(c.output, text, sizeof text - 1), 7);
    CHECK_STR(text, "got it\n");
    int rc = conc_child_wait(&c, &status);
    CHECK_INT(conc_child_close(&c), 0);
    if (rc == 0)
        CHECK_INT(status, 0);
    return rc;
}

static int wait_for_child(void *child) { return conc_child_wait(child, NULL); }

/* Signals, a limit, a group and grace. */
static int killed_children(void *arg)
{
    const char *const argv[] = {"sleep", "1000", NULL};
    (void)arg;
    for (int i = 0; i < 4; i++) {
        conc_child c = {.argv = argv, .group = i % 2, .grace = i / 2};
        int status = 0;
        CONC_TRY(conc_child_start(&c));
        CHECK_INT(conc_timeout(0.01, wait_for_child, &c), -ETIMEDOUT);
        if (i < 2) {
            CHECK_INT(conc_child_kill(&c, SIGTERM), 0);
            CHECK_INT(conc_child_wait(&c, &status), 0);
            CHECK_INT(status, SIGTERM);
            CHECK_INT(conc_child_kill(&c, SIGTERM), -EALREADY);
        }
        int pid = c.pid;
        CHECK_INT(conc_child_close(&c), 0);
        CHECK(!process_lives(pid));
    }
    return 0;
}

static int processes(void *arg)
{
    conc_procs p = {.workers = 1};
    int number = 1;
    (void)arg;
    CONC_TRY(conc_procs_open(&p));
    int rc = conc_procs_run(&p, add_one, &number, sizeof number);
    if (rc >= 0)
        CHECK_INT(number, 2);
    const char *words = conc_last_error();
    char text[128];
    snprintf(text, sizeof text, "%s", words);
    CHECK_INT(conc_procs_close(&p), 0);
    return rc < 0 ? conc_fail(rc, "%s", text) : 0;
}

static int shared_memory(void *arg)
{
    (void)arg;
    int *p = conc_shared_alloc(100);
    if (!p)
        return conc_fail(-ENOMEM, "%s", conc_last_error());
    p[0] = 1;
    conc_shared_free(p);
    return 0;
}

typedef struct part {
    const char *name;
    conc_fn *fn;
} part;

static const part parts[] = {
    {"tasks and timers", tasks_and_timers},
    {"pipes", pipes},
    {"sockets and streams", sockets_and_streams},
    {"signals", signals},
    {"broken pipes", broken_pipes},
    {"a signal nobody takes", a_signal_nobody_takes},
    {"posts", posts},
    {"threads and files", threads_and_files},
    {"children", children},
    {"killed children", killed_children},
    {"processes", processes},
    {"shared memory", shared_memory},
};

/* ---- one refused call ---- */

static struct {
    const char *name;
    long call;
    int error;
    const char *fails; /* the parts that may fail, and must then name the call; NULL: none */
} refused;

/* how_many, NULL: all of them. */
static int run_the_parts(void *how_many)
{
    size_t count = how_many ? *(size_t *)how_many : CONC_LEN(parts);
    for (size_t i = 0; i < count; i++) {
        conc_stats before, after;
        conc_get_stats(&before);
        errno = 77;
        int rc = parts[i].fn(NULL);
        if (errno != 77)
            test_fail(__FILE__, __LINE__, "%s: errno is %d", parts[i].name, errno);
        conc_get_stats(&after);
        if (after.polls - before.polls > MOST_POLLS)
            test_fail(__FILE__, __LINE__, "%s: it spins: %llu polls", parts[i].name,
                      (unsigned long long)(after.polls - before.polls));
        if (rc >= 0)
            continue;
        const char *words = conc_last_error();
        if (!refused.fails || !strstr(refused.fails, parts[i].name))
            test_fail(__FILE__, __LINE__, "%s: %d (%s)", parts[i].name, rc, words);
        if (!strstr(words, refused.name))
            test_fail(__FILE__, __LINE__, "%s: %d: the words do not name the call: %s",
                      parts[i].name, rc, words);
    }
    return 0;
}

static void set_up(void)
{
    int broken[2];
    signal(SIGALRM, SIG_DFL);
    alarm(LIMIT);
    CHECK_INT(pipe(pipe_ends), 0);
    CHECK_INT(pipe(broken), 0);
    close(broken[0]);
    broken_end = broken[1];
}

static void run_refused(void)
{
    set_up();
    if (!refuse(refused.call, refused.error))
        return; /* no filters here: in a sandbox that refuses these calls, or an emulator */
    int rc = conc_run(run_the_parts, NULL);
    if (rc)
        test_fail(__FILE__, __LINE__, "conc_run: %d", rc);
}

static void check_each(const char *name, long call, const char *fails, void (*run)(void))
{
    static char output[8192];
    static const int errors[] = {EPERM, ENOSYS};
    unsetenv("CONC_CLOCK");
    for (size_t i = 0; i < CONC_LEN(errors); i++) {
        refused.name = name;
        refused.call = call;
        refused.error = errors[i];
        refused.fails = fails;
        int status = test_in_process(run, output, sizeof output);
        if (status)
            test_fail(__FILE__, __LINE__, "%s refused with %s: status 0x%x:\n%s", name,
                      strerror(errors[i]), (unsigned)status, output);
    }
}

static void check_refused(const char *name, long call, const char *fails)
{
    check_each(name, call, fails, run_refused);
}

/* SYS_name, if the system's headers have it. */
#define REFUSED(name, fails) \
    TEST(refused_##name) { check_refused(#name, SYS_##name, fails); }

REFUSED(epoll_create1, NULL)
REFUSED(epoll_ctl, NULL)
#ifdef SYS_epoll_wait
REFUSED(epoll_wait, NULL) /* epoll_wait(3) calls one of the two */
#endif
REFUSED(epoll_pwait, NULL)
REFUSED(eventfd2, "processes")
REFUSED(accept4, NULL)
REFUSED(pipe2, NULL)
REFUSED(madvise, NULL)
REFUSED(getrandom, NULL)
REFUSED(sched_getaffinity, NULL)
REFUSED(sched_setaffinity, NULL)
REFUSED(memfd_create, "processes, shared memory")
REFUSED(socketpair, "processes")
REFUSED(ftruncate, "processes, shared memory")
REFUSED(timerfd_create, NULL)
REFUSED(signalfd4, NULL)
REFUSED(rt_sigtimedwait, NULL)
REFUSED(rt_sigpending, NULL)
REFUSED(rt_sigaction, "signals, a signal nobody takes")
REFUSED(kill, NULL)
REFUSED(tgkill, NULL)
REFUSED(prctl, NULL)
REFUSED(sigaltstack, NULL)
REFUSED(preadv2, NULL)
REFUSED(pwritev2, NULL)
#ifdef SYS_epoll_pwait2
REFUSED(epoll_pwait2, NULL)
#endif
#ifdef SYS_close_range
REFUSED(close_range, NULL)
#endif
#ifdef SYS_pidfd_open
REFUSED(pidfd_open, NULL)
#endif
#ifdef SYS_pidfd_send_signal
REFUSED(pidfd_send_signal, NULL)
#endif
#ifdef SYS_waitid
REFUSED(waitid, NULL)
#endif
#ifdef SYS_statx
REFUSED(statx, NULL)
#endif
#ifdef SYS_renameat2
REFUSED(renameat2, NULL)
#endif
#ifdef SYS_copy_file_range
REFUSED(copy_file_range, NULL)
#endif
#ifdef SYS_membarrier
REFUSED(membarrier, NULL)
#endif
#ifdef SYS_faccessat2
REFUSED(faccessat2, NULL)
#endif
#ifdef SYS_futex_waitv
REFUSED(futex_waitv, NULL)
#endif

/* -- calls that the C library and every program need, with an alternative where descriptors are
 * concerned -- */

static void run_the_first_parts(void)
{
    size_t up_to_posts = 7;
    CHECK_STR(parts[up_to_posts - 1].name, "posts");
    CHECK_INT(conc_run(run_the_parts, &up_to_posts), 0);
}

static void run_without_fcntl(void)
{
    set_up();
    if (refuse(SYS_fcntl, refused.error))
        run_the_first_parts();
}

TEST(refused_fcntl) { check_each("fcntl", SYS_fcntl, NULL, run_without_fcntl); }

static void run_without_fstat(void)
{
    bool filters = true;
    set_up();
#ifdef SYS_fstat
    filters = filters && refuse(SYS_fstat, refused.error);
#endif
#ifdef SYS_newfstatat
    filters = filters && refuse(SYS_newfstatat, refused.error);
#endif
#ifdef SYS_statx
    filters = filters && refuse(SYS_statx, refused.error);
#endif
    if (filters)
        run_the_first_parts();
}

TEST(refused_fstat) { check_each("fstat", 0, NULL, run_without_fstat); }

TEST(refused_fstat_with_poll)
{
    setenv("CONC_POLL", "poll", 1);
    check_each("fstat", 0, NULL, run_without_fstat);
}

static void run_without_poll(void)
{
    bool filters = true;
    set_up();
#ifdef SYS_poll
    filters = refuse(SYS_poll, refused.error);
#endif
    if (filters && refuse(SYS_ppoll, refused.error))
        run_the_first_parts();
}

TEST(refused_poll) { check_each("ppoll", SYS_ppoll, NULL, run_without_poll); }

TEST(refused_poll_with_poll)
{
    setenv("CONC_POLL", "poll", 1);
    check_each("ppoll", SYS_ppoll, NULL, run_without_poll);
}

/* -- a run that signals interrupt, and one where they cannot -- */

static int nothing(void *arg)
{
    (void)arg;
    return 0;
}

static void interrupt_without_sigaction(void)
{
    conc_options o = {.interrupt = true};
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    if (!refuse(refused.call, refused.error))
        return;
    CHECK_INT(conc_run_with(&o, nothing, NULL), -refused.error);
    CHECK(strstr(conc_last_error(), "rt_sigaction: ") == conc_last_error());
    CHECK_INT(conc_run(nothing, NULL), 0);
    CHECK_INT(conc_main(nothing, NULL), 1);
}

TEST(an_interrupt_that_the_system_refuses_is_an_error_of_the_run)
{
    check_each("rt_sigaction", SYS_rt_sigaction, NULL, interrupt_without_sigaction);
}

static int reuse_numbers(void *arg)
{
    signal(SIGCHLD, SIG_IGN);
    if (refuse(refused.call, refused.error)) {
        check_reused_number(false);
        check_reused_number(true);
    }
    return arg ? 1 : 0;
}

static void run_reused(void) { CHECK_INT(conc_run(reuse_numbers, NULL), 0); }

TEST(without_process_descriptors_a_reused_number_is_not_signalled)
{
#ifdef SYS_pidfd_open
    check_each("pidfd_open", SYS_pidfd_open, NULL, run_reused);
#endif
#ifdef SYS_pidfd_send_signal
    check_each("pidfd_send_signal", SYS_pidfd_send_signal, NULL, run_reused);
#endif
}

#ifdef SYS_pidfd_open
/* A job whose child is told that the program has just ended. */
static int forks_when_the_program_ends(void *arg)
{
    int status = 0, left = 5000;
    (void)arg;
    pid_t pid = refuse(SYS_pidfd_open, ESRCH) ? fork() : -1;
    if (pid == 0)
        for (;;)
            pause();
    while (pid > 0 && waitpid(pid, &status, WNOHANG) == 0 && left-- > 0)
        usleep(1000);
    if (left <= 0)
        kill(pid, SIGTERM);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static int run_job(void *arg)
{
    conc_procs pool = {.workers = 1};
    (void)arg;
    CONC_TRY(conc_procs_open(&pool));
    int rc = conc_procs_run(&pool, forks_when_the_program_ends, NULL, 0);
    CONC_TRY(conc_procs_close(&pool));
    return rc;
}

TEST(a_process_that_a_job_forks_when_the_program_ends_ends_with_it)
{
    if (refuse(0x7fffffff, EPERM)) /* otherwise the system has no filters */
        CHECK_INT(conc_run(run_job, NULL), SIGKILL);
}
#endif

#ifdef SYS_clone3
static int run_without_threads(void *arg)
{
    conc_procs pool = {.workers = 1};
    (void)arg;
    CONC_TRY(conc_procs_open(&pool));
    if (!refuse(SYS_clone3, EPERM) || !refuse(SYS_clone, EPERM))
        return 0;
    CHECK_INT(conc_procs_run(&pool, nothing, NULL, 0), -EAGAIN);
    CHECK(strstr(conc_last_error(), "start the pool's thread: ") != NULL);
    return conc_procs_close(&pool);
}

static void run_threadless(void) { CHECK_INT(conc_run(run_without_threads, NULL), 0); }

TEST(a_process_pool_without_its_thread_is_an_error)
{
    check_each("clone3", SYS_clone3, NULL, run_threadless);
}
#endif

static int run_without_messages(void *arg)
{
    conc_procs pool = {.workers = 1};
    (void)arg;
    CONC_TRY(conc_procs_open(&pool));
    if (!refuse(refused.call, refused.error))
        return 0;
    CHECK_INT(conc_procs_run(&pool, nothing, NULL, 0), -EAGAIN);
    CHECK(strstr(conc_last_error(), "sendmsg") != NULL);
    return conc_procs_close(&pool);
}

static void run_messageless(void) { CHECK_INT(conc_run(run_without_messages, NULL), 0); }

TEST(a_process_pool_that_cannot_send_messages_is_an_error)
{
    check_each("sendmsg", SYS_sendmsg, NULL, run_messageless);
}

TEST(refused_nothing) { check_refused("nothing", 0x7fffffff, NULL); }

/* -- a sandbox that the program sets up while tasks wait for descriptors -- */

static int read_a_byte(void *fd)
{
    char byte;
    return conc_read(*(int *)fd, &byte, 1) == 1 ? 0 : -EIO;
}

static int refuse_while_tasks_wait(void *arg)
{
    char address[64];
    int ends[2];
    conc_group readers = {0}, servers = {0};
    CHECK_INT(pipe(ends), 0);
    int fd = CONC_TRY(conc_listen("127.0.0.1:0"));
    conc_server server = {.fd = fd, .handler = echo};
    CHECK_INT(conc_address(fd, false, address, sizeof address), 0);
    CONC_TRY(conc_spawn(&servers, serve, &server));
    CONC_TRY_IN(&servers, conc_spawn(&readers, read_a_byte, &ends[0]));
    CONC_TRY_IN(&servers, conc_settle());
    if (refuse(refused.call, refused.error))
        CHECK_INT(run_the_parts(arg), 0);
    CHECK_INT(conc_write(ends[1], "x", 1), 1);
    CHECK_INT(conc_group_wait(&readers), 0);
    CHECK_INT(talk(address), 0);
    conc_group_cancel(&servers);
    CHECK_INT(conc_group_wait(&servers), 0);
    close(ends[0]);
    close(ends[1]);
    return conc_close(fd);
}

static void run_refused_later(void)
{
    set_up();
    int before = test_count_fds();
    CHECK_INT(conc_run(refuse_while_tasks_wait, NULL), 0);
    CHECK_INT(test_count_fds(), before);
}

TEST(epoll_refused_during_the_run_is_replaced)
{
    check_each("epoll_ctl", SYS_epoll_ctl, NULL, run_refused_later);
#ifdef SYS_epoll_wait
    check_each("epoll_wait", SYS_epoll_wait, NULL, run_refused_later);
#endif
    check_each("epoll_pwait", SYS_epoll_pwait, NULL, run_refused_later);
}

#if !TEST_ONLY_POLL /* which an embedded run needs */

static int wait_where_epoll_is_refused(void *arg)
{
    (void)arg;
    if (refuse(SYS_epoll_ctl, EPERM))
        CHECK_INT(conc_wait_fd(pipe_ends[0], CONC_READABLE), -EPERM);
    return 0;
}

static void embed_where_epoll_becomes_refused(void)
{
    conc_embed e = {0};
    signal(SIGALRM, SIG_DFL);
    alarm(LIMIT);
    CHECK_INT(pipe(pipe_ends), 0);
    CHECK_INT(conc_embed_begin(&e, NULL, wait_where_epoll_is_refused, NULL), 0);
    CHECK_INT(conc_embed_step(&e), 0);
    CHECK_INT(conc_embed_end(&e), 0);
}

TEST(epoll_refused_during_an_embedded_run_is_an_error)
{
    static char output[8192];
    unsetenv("CONC_POLL");
    CHECK_INT(test_in_process(embed_where_epoll_becomes_refused, output, sizeof output), 0);
}

#endif

static int return_arg(void *arg) { return arg ? 1 : 0; }

static void embed_without_epoll(void)
{
    conc_embed e = {0};
    if (refuse(SYS_epoll_create1, EPERM))
        CHECK_INT(conc_embed_begin(&e, NULL, return_arg, NULL), -ENOTSUP);
}

TEST(without_epoll_nothing_is_embedded)
{
    static char output[8192];
    unsetenv("CONC_POLL");
    CHECK_INT(test_in_process(embed_without_epoll, output, sizeof output), 0);
}

#else

TEST(nothing_can_be_refused_here) {}

#endif
