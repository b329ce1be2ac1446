/* test_net_faults.c - network system calls that fail, or that other events interleave with:
 * accept's errors, a socket that connects to itself, and several processes that listen on one
 * path.
 *
 * Seeds: 3 (hardly anything depends on the order of tasks)
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What the next calls do instead of their work, or before it. */
static struct {
    int accept_error; /* the next accepts fail with this, */
    long accept_times;
    int self_connects; /* this many sockets are bound to the address that they connect to */
    int connect_error; /* the next connect fails with this */
    int flock_error;   /* every flock fails with this */
    int option_level, option, option_error; /* setsockopt of this option fails with this */
    void (*before_bind)(void);
    void (*before_listen)(void);
    void (*before_unlink)(void);
} faults;

static void happen(void (**what)(void))
{
    void (*call)(void) = *what;
    *what = NULL;
    if (call)
        call();
}

static long faulty_accept(long number, int fd, void *address, void *size, int flags)
{
    if (faults.accept_times > 0) {
        faults.accept_times--;
        errno = faults.accept_error;
        return -1;
    }
    return syscall(number, fd, address, size, flags);
}

/* Replaces the call where accept4(2) is forbidden. */
static int plain_accept(int fd, struct sockaddr *address, socklen_t *size)
{
    if (faults.accept_times > 0) {
#ifndef __linux__ /* there, accept4(2) has counted it */
        faults.accept_times--;
#endif
        errno = faults.accept_error;
        return -1;
    }
    return accept(fd, address, size);
}

static int faulty_connect(int fd, const struct sockaddr *address, socklen_t size)
{
    if (faults.connect_error) {
        errno = faults.connect_error;
        faults.connect_error = 0;
        return -1;
    }
    if (faults.self_connects > 0 && address->sa_family == AF_INET) {
        faults.self_connects--;
        if (bind(fd, address, size))
            return -1;
    }
    return connect(fd, address, size);
}

static int faulty_flock(int fd, int operation)
{
    if (faults.flock_error) {
        errno = faults.flock_error;
        return -1;
    }
    return flock(fd, operation);
}

static int faulty_setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
    if (faults.option == option && faults.option_level == level) {
        errno = faults.option_error;
        return -1;
    }
    return setsockopt(fd, level, option, value, size);
}

static int late_bind(int fd, const struct sockaddr *address, socklen_t size)
{
    happen(&faults.before_bind);
    return bind(fd, address, size);
}

static int late_listen(int fd, int backlog)
{
    happen(&faults.before_listen);
    return listen(fd, backlog);
}

static int late_unlink(const char *path)
{
    happen(&faults.before_unlink);
    return unlink(path);
}

static long faulty_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    if (number == SYS_accept4)
        return faulty_accept(number, (int)a, (void *)b, (void *)c, (int)d);
    return syscall(number, a, b, c, d, e, f);
}

/* Passes as many arguments as a system call can have. */
#define syscall(...) SYSCALL_(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
#define SYSCALL_(number, a, b, c, d, e, f, ...) \
    faulty_syscall((number), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define accept(fd, address, size) plain_accept((fd), (address), (size))
#define connect faulty_connect
#define flock(fd, operation) faulty_flock((fd), (operation))
#define setsockopt faulty_setsockopt
#define bind late_bind
#define listen late_listen
#define unlink late_unlink
/* the default; such an option gives this file its own implementation */
#define CONC_STACK_SIZE (256 * 1024)

#define TEST_SYNC
#include "io_test.h"

#include <sys/un.h>

#undef syscall
#undef accept
#undef flock
#undef setsockopt
#undef connect
#undef bind
#undef listen
#undef unlink

/* ---- accept's errors ---- */

static int ends_at_once(int fd, void *arg)
{
    (void)fd;
    ++*(int *)arg;
    return 0;
}

typedef struct serving {
    conc_server server;
    conc_group group;
    conc_task task;
    int rc, served;
    bool done;
    char where[128];
} serving;

static int serves(void *arg)
{
    serving *v = arg;
    v->rc = conc_serve(&v->server);
    v->done = true;
    return 0;
}

static void start_serving(serving *v)
{
    *v = (serving){.rc = 77};
    v->server = (conc_server){.fd = conc_listen("127.0.0.1:0"), ends_at_once, &v->served};
    CHECK(v->server.fd >= 0);
    CHECK_INT(conc_address(v->server.fd, false, v->where, sizeof v->where), 0);
    CHECK_INT(conc_spawn_task(&v->group, &v->task, serves, v), 0);
}

static void stop_serving(serving *v)
{
    CHECK(!v->done);
    CHECK_INT(conc_close(v->server.fd), 0);
    CHECK_INT(conc_group_wait(&v->group), 0);
    CHECK_INT(v->rc, 0);
}

/* Returns when the server has closed the connection. */
static void be_served(const serving *v)
{
    char c;
    int fd = conc_dial(v->where);
    CHECK(fd >= 0);
    CHECK_INT(conc_read(fd, &c, 1), 0);
    CHECK_INT(conc_close(fd), 0);
}

static const int passing[] = {
    ECONNABORTED,    ECONNRESET, EPERM,       EPROTO,    ENOPROTOOPT,  EPROTONOSUPPORT,
    EOPNOTSUPP,      ENETDOWN,   ENETUNREACH, EHOSTDOWN, EHOSTUNREACH, ETIMEDOUT,
#ifdef ENONET
    ENONET,
#endif
#ifdef ESOCKTNOSUPPORT
    ESOCKTNOSUPPORT,
#endif
};

IO_TEST(an_error_of_one_connection_does_not_end_the_serving)
{
    for (size_t i = 0; i < CONC_LEN(passing); i++)
        for (int times = 1; times <= 100; times *= 10) {
            serving v;
            start_serving(&v);
            faults.accept_error = passing[i];
            faults.accept_times = times;
            be_served(&v);
            be_served(&v);
            CHECK_INT(faults.accept_times, 0);
            CHECK_INT(v.served, 2);
            stop_serving(&v);
        }
}

IO_TEST(an_accept_that_always_fails_is_reported_once_and_does_not_spin)
{
    serving v;
    io_failures.expected = 1;
    start_serving(&v);
    faults.accept_error = EPERM;
    faults.accept_times = LONG_MAX;
    CHECK_INT(conc_sleep(100), 0);
    CHECK(LONG_MAX - faults.accept_times <= 100 * 1000 + 16);
    CHECK_INT(io_failures.count, 1);
    CHECK_INT(io_failures.rc, -EPERM);
    CHECK_INT(conc_cancel(&v.task), 0);
    CHECK_INT(conc_group_wait(&v.group), 0);
    CHECK_INT(v.rc, -ECANCELED);
    CHECK_INT(conc_close(v.server.fd), 0);
    faults.accept_times = 0;
}

static const int lasting[] = {EBADF, EINVAL, EFAULT, EACCES};

IO_TEST(an_error_of_the_listener_ends_the_serving)
{
    for (size_t i = 0; i < CONC_LEN(lasting); i++) {
        serving v;
        start_serving(&v);
        faults.accept_error = lasting[i];
        faults.accept_times = LONG_MAX;
        CHECK_INT(conc_group_wait(&v.group), 0);
        faults.accept_times = 0;
        CHECK_INT(v.rc, -lasting[i]);
        CHECK_INT(conc_close(v.server.fd), 0);
    }
}

static const int lacks[] = {EMFILE, ENFILE, ENOBUFS, ENOMEM};

/* At the limit: connections are alternately accepted and refused. */
IO_TEST(a_shortage_at_the_limit_is_reported_once_until_accepting_has_worked_for_a_second)
{
    for (size_t i = 0; i < CONC_LEN(lacks); i++) {
        serving v;
        io_failures.count = 0;
        io_failures.expected = 2;
        start_serving(&v);
        faults.accept_error = lacks[i];
        for (int k = 0; k < 50; k++) {
            faults.accept_times = 1 + k % 3;
            be_served(&v);
        }
        CHECK_INT(io_failures.count, 1);
        CHECK_INT(io_failures.rc, -lacks[i]);
        CHECK_INT(conc_sleep(0.8), 0);
        faults.accept_times = 1;
        be_served(&v); /* it has worked for less than a second */
        CHECK_INT(io_failures.count, 1);
        CHECK_INT(conc_sleep(1), 0);
        be_served(&v);
        faults.accept_times = 2;
        be_served(&v);
        CHECK_INT(io_failures.count, 2);
        stop_serving(&v);
    }
}

/* If a shortage lasts while no client connects, it is still the same one. */
IO_TEST(a_shortage_is_not_reported_again_before_a_connection_was_accepted)
{
    serving v;
    io_failures.expected = 1;
    start_serving(&v);
    for (int i = 0; i < 3; i++) {
        faults.accept_error = EMFILE;
        faults.accept_times = 100;
        int fd = conc_dial(v.where);
        CHECK(fd >= 0);
        CHECK_INT(conc_sleep(5), 0);
        CHECK_INT(io_failures.count, 1);
        CHECK_INT(conc_close(fd), 0);
    }
    faults.accept_times = 0;
    CHECK_INT(conc_sleep(1), 0);
    stop_serving(&v);
}

/* ---- a socket that connects to itself ---- */

static void unused_port(char *where, size_t size)
{
    int l = conc_listen("127.0.0.1:0");
    CHECK(l >= 0);
    CHECK_INT(conc_address(l, false, where, size), 0);
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(a_dial_of_a_port_without_a_listener_does_not_connect_to_itself)
{
    char where[128];
    int fds = test_count_fds();
    for (int times = 0; times < 10; times++) {
        unused_port(where, sizeof where);
        faults.self_connects = times;
        CHECK_INT(conc_dial(where), -ECONNREFUSED);
        CHECK_INT(test_count_fds(), fds);
    }
    faults.self_connects = 0;
    CHECK_CONTAINS(conc_last_error(), where);
}

IO_TEST(a_dial_of_all_addresses_is_no_connection_with_itself_either)
{
    char where[128], any[160];
    unused_port(where, sizeof where);
    snprintf(any, sizeof any, "0.0.0.0:%s", strrchr(where, ':') + 1);
    faults.self_connects = 1000;
    CHECK_INT(conc_dial(any), -ECONNREFUSED);
    faults.self_connects = 0;
}

/* ---- several processes that listen on one path ---- */

static char directory[64], path[100], address[160];

static void make_path(void)
{
    snprintf(directory, sizeof directory, "%s/conc_XXXXXX", P_tmpdir);
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/socket", directory);
    snprintf(address, sizeof address, "unix:%s", path);
}

/* Only the socket was left behind. */
static void remove_path(void)
{
    CHECK_INT(unlink(path), 0);
    CHECK_INT(rmdir(directory), 0);
}

static void make_stale(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK_INT(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    CHECK_INT(close(fd), 0);
}

static int listens_here(void *arg)
{
    (void)arg;
    int fd = conc_listen(address);
    return fd < 0 ? fd : 1;
}

static int other_result;

/* Another process listens on the path and ends; returns its result. */
static void listen_in_another_process(void)
{
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        int rc = conc_run(listens_here, NULL);
        _exit(rc == 1 ? 1 : rc == -EADDRINUSE ? 2 : 3);
    }
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    other_result = WEXITSTATUS(status);
}

static void check_that_one_listens(void (**when)(void), bool stale)
{
    make_path();
    if (stale)
        make_stale();
    other_result = 77;
    *when = listen_in_another_process;
    int l = conc_listen(address);
    CHECK(l >= 0);
    CHECK_INT(other_result, 2);
    int fd = conc_dial(address), got = conc_accept(l);
    CHECK(fd >= 0 && got >= 0);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(got), 0);
    CHECK_INT(conc_close(l), 0);
    remove_path();
}

IO_TEST(while_one_process_is_about_to_listen_on_a_path_another_finds_it_in_use)
{
    check_that_one_listens(&faults.before_bind, false);
    check_that_one_listens(&faults.before_listen, false);
    check_that_one_listens(&faults.before_bind, true);
    check_that_one_listens(&faults.before_unlink, true);
    check_that_one_listens(&faults.before_listen, true);
}

/* A process dies between two steps. */
static void check_that_the_next_listens(void (**when)(void), bool stale)
{
    int status;
    make_path();
    if (stale)
        make_stale();
    pid_t child = fork();
    if (child == 0) {
        *when = abort;
        signal(SIGABRT, SIG_DFL);
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        conc_run(listens_here, NULL);
        _exit(0);
    }
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status));
    listen_in_another_process();
    CHECK_INT(other_result, 1);
    int l = conc_listen(address);
    CHECK(l >= 0);
    CHECK_INT(conc_close(l), 0);
    remove_path();
}

IO_TEST(a_process_that_dies_while_it_begins_to_listen_blocks_no_other)
{
    check_that_the_next_listens(&faults.before_bind, false);
    check_that_the_next_listens(&faults.before_listen, false);
    check_that_the_next_listens(&faults.before_bind, true);
    check_that_the_next_listens(&faults.before_unlink, true);
    check_that_the_next_listens(&faults.before_listen, true);
}

static void put_a_file_there(void)
{
    CHECK_INT(unlink(path), 0);
    int fd = open(path, O_CREAT | O_WRONLY | O_EXCL, 0600);
    CHECK(fd >= 0);
    CHECK_INT(close(fd), 0);
}

static void put_a_file_there_and_refuse(void)
{
    put_a_file_there();
    faults.connect_error = ECONNREFUSED;
}

IO_TEST(a_file_that_replaces_a_socket_is_not_removed)
{
    struct stat st;
    make_path();
    make_stale();
    faults.before_bind = put_a_file_there_and_refuse;
    CHECK_INT(conc_listen(address), -EADDRINUSE);
    faults.connect_error = 0;
    CHECK_INT(stat(path, &st), 0);
    CHECK(S_ISREG(st.st_mode));
    remove_path();
}

static bool is_there(const char *suffix)
{
    char name[128];
    struct stat st;
    snprintf(name, sizeof name, "%s%s", path, suffix);
    return lstat(name, &st) == 0;
}

/* Each descriptor that it needs is missing once. */
IO_TEST(a_socket_file_without_a_listener_is_no_address_in_use_if_descriptors_run_short)
{
    struct rlimit before, now;
    int short_of = 0, rc = -EMFILE;
    make_path();
    make_stale();
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &before), 0);
    now = before;
    for (int room = 0; rc == -EMFILE && room < 10; room++) {
        int next = dup(0);
        CHECK_INT(close(next), 0);
        now.rlim_cur = (rlim_t)(next + room);
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &now), 0);
        rc = conc_listen(address);
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
        short_of += rc == -EMFILE;
        CHECK(is_there(""));
        if (!test_on_valgrind()) /* which creates a file, and then denies its descriptor */
            CHECK(!is_there(".conc-lock"));
    }
    CHECK(rc >= 0);
    CHECK(short_of >= 3);
    CHECK_INT(conc_close(rc), 0);
    remove_path();
}

IO_TEST(a_lock_that_the_system_refuses_is_not_mistaken_for_one)
{
    static const int errors[] = {ENOLCK, EPERM, EACCES, ENOSYS, EOPNOTSUPP, EINVAL, EIO};
    for (size_t i = 0; i < CONC_LEN(errors); i++) {
        make_path();
        faults.flock_error = errors[i];
        int l = conc_listen(address); /* there is no file to replace */
        CHECK(l >= 0);
        CHECK(!is_there(".conc-lock"));
        CHECK_INT(conc_listen(address), -EADDRINUSE);
        CHECK_INT(conc_close(l), 0);
        CHECK_INT(conc_listen(address), -errors[i]);
        CHECK(strstr(conc_last_error(), path) != NULL);
        CHECK(is_there(""));
        CHECK(!is_there(".conc-lock"));
        faults.flock_error = 0;
        l = conc_listen(address);
        CHECK(l >= 0);
        CHECK_INT(conc_close(l), 0);
        remove_path();
    }
}

IO_TEST(a_lock_that_another_process_has_is_waited_for_and_then_an_address_in_use)
{
    make_path();
    make_stale();
    faults.flock_error = EWOULDBLOCK;
    CHECK_INT(conc_listen(address), -EADDRINUSE);
    faults.flock_error = 0;
    int l = conc_listen(address);
    CHECK(l >= 0);
    CHECK_INT(conc_close(l), 0);
    remove_path();
}

/* ---- a listener that conc did not open ---- */

typedef struct foreign_server {
    int listener, served;
} foreign_server;

static int closes_the_listener(int fd, void *arg)
{
    foreign_server *s = arg;
    (void)fd;
    CHECK_INT(conc_close(s->listener), s->served++ ? -EBADF : 0);
    return 0;
}

/* conc does not know the number, and never waits for it, because all connections are already
 * there. */
IO_TEST(a_foreign_listener_that_its_handler_closes_ends_the_serving_well)
{
    for (int limit = 0; limit < 2; limit++) {
        int l = socket(AF_INET, SOCK_STREAM, 0), fds[3];
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof a;
        CHECK_INT(bind(l, (void *)&a, sizeof a), 0);
        CHECK_INT(listen(l, 10), 0);
        CHECK_INT(getsockname(l, (void *)&a, &size), 0);
        foreign_server s = {fcntl(l, F_DUPFD, 900 + 64 * limit), 0};
        CHECK(s.listener >= 900);
        CHECK_INT(close(l), 0);
        for (int i = 0; i < 3; i++) {
            fds[i] = socket(AF_INET, SOCK_STREAM, 0);
            CHECK_INT(connect(fds[i], (void *)&a, sizeof a), 0);
        }
        conc_server server = {s.listener, closes_the_listener, &s, .limit = limit};
        CHECK_INT(conc_serve(&server), 0);
        CHECK(s.served > 0);
        for (int i = 0; i < 3; i++)
            CHECK_INT(close(fds[i]), 0);
    }
}

/* ---- options of a socket that the system refuses ---- */

IO_TEST(requested_listener_options_are_set_or_an_error)
{
    static const int errors[] = {ENOPROTOOPT, EPERM, ENOSYS};
    conc_listen_options shared = {.reuse_port = true};
    for (size_t i = 0; i < CONC_LEN(errors); i++) {
        faults.option_error = errors[i];
        faults.option_level = SOL_SOCKET;
        faults.option = SO_REUSEPORT;
        CHECK_INT(conc_listen_with("127.0.0.1:0", &shared), -errors[i]);
        int l = conc_listen("127.0.0.1:0");
        CHECK(l >= 0);
        CHECK_INT(conc_close(l), 0);
        faults.option_level = IPPROTO_IPV6;
        faults.option = IPV6_V6ONLY;
        CHECK_INT(conc_listen("[::1]:0"), -errors[i]);
        faults.option_level = faults.option = 0;
    }
}

/* ---- many at once ---- */

enum { PROCESSES = 8, ROUNDS = 100 };

typedef struct field {
    atomic_int arrived, won[ROUNDS], in_use[ROUNDS];
} field;

/* All at once. */
static void line_up(field *f, int n)
{
    atomic_fetch_add(&f->arrived, 1);
    while (atomic_load(&f->arrived) < n * PROCESSES)
        sched_yield();
}

static int listens_again_and_again(void *arg)
{
    field *f = arg;
    for (int i = 0; i < ROUNDS; i++) {
        line_up(f, 2 * i + 1);
        int fd = conc_listen(address);
        atomic_fetch_add(&f->won[i], fd >= 0);
        atomic_fetch_add(&f->in_use[i], fd == -EADDRINUSE);
        line_up(f, 2 * i + 2);
        if (fd >= 0)
            CHECK_INT(conc_close(fd), 0);
    }
    return 0;
}

TEST(one_of_many_processes_that_listen_on_one_path_at_once_succeeds)
{
    field *f = mmap(NULL, sizeof *f, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(f != MAP_FAILED);
    make_path();
    make_stale();
    for (int i = 0; i < PROCESSES; i++)
        if (fork() == 0)
            _exit(conc_run(listens_again_and_again, f) != 0);
    for (int i = 0, status; i < PROCESSES; i++) {
        CHECK(wait(&status) > 0);
        CHECK_INT(status, 0);
    }
    for (int i = 0; i < ROUNDS; i++) {
        CHECK_INT(f->won[i], 1);
        CHECK_INT(f->in_use[i], PROCESSES - 1);
    }
    remove_path();
    CHECK_INT(munmap(f, sizeof *f), 0);
}

/* ---- errors that mean something else in conc keep the system's error text ---- */

static const int renamed[] = {EPERM,   EBUSY,   EPIPE,    ETIMEDOUT, EALREADY,
                              EDEADLK, ENOTSUP, EMSGSIZE, ESHUTDOWN, EOWNERDEAD};

IO_TEST(a_dial_that_the_system_refuses_has_its_error_text)
{
    for (size_t i = 0; i < CONC_LEN(renamed); i++) {
        faults.connect_error = renamed[i];
        CHECK_INT(conc_dial("127.0.0.1:1"), -renamed[i]);
        CHECK_CONTAINS(conc_last_error(), "127.0.0.1:1");
        CHECK_CONTAINS(conc_last_error(), strerror(renamed[i]));
    }
}

/* An accept that the system refuses with this error, for which conc has a different text. */
static void fail_in_the_systems_words(int l, int error)
{
    faults.accept_error = error;
    faults.accept_times = 2;
    CHECK_INT(conc_accept(l), -error);
    faults.accept_times = 0;
    CHECK_STR(conc_last_error(), strerror(error));
}

/* Is this one of conc's own error texts: the number's, or the call's name and the reason? */
static bool are_concs_words(const char *words, int rc)
{
    return strcmp(words, conc_strerror(rc)) == 0 || strncmp(words, "conc_", 5) == 0;
}

/* The same error again, this time from conc. */
#define FAILS_IN_CONCS_WORDS(error, call)                    \
    do {                                                     \
        fail_in_the_systems_words(l, (error));               \
        CHECK_INT((call), -(error));                         \
        CHECK(are_concs_words(conc_last_error(), -(error))); \
    } while (0)

static int sleeps_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int closes_late(void *queue)
{
    int rc = conc_sleep(1);
    conc_queue_close(queue);
    return rc;
}

IO_TEST(an_error_of_concs_after_one_of_the_systems_has_concs_text)
{
    int l = conc_listen("127.0.0.1:0"), end[2], item = 0;
    conc_lock lock = {0};
    conc_future future = {0};
    conc_queue closed = CONC_QUEUE(int, 1), open = CONC_QUEUE(int, 1);
    conc_stream stream = {0};
    conc_latch latch = {0};
    conc_task t;
    conc_group g = {0};
    CHECK(l >= 0);
    conc_queue_close(&closed);
    CHECK_INT(conc_future_set(&future, 0, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, &t, sleeps_forever, NULL), 0);
    FAILS_IN_CONCS_WORDS(EPERM, conc_lock_release(&lock));
    FAILS_IN_CONCS_WORDS(ETIMEDOUT, conc_timeout(1, sleeps_forever, NULL));
    FAILS_IN_CONCS_WORDS(EALREADY, conc_future_set(&future, 0, NULL));
    FAILS_IN_CONCS_WORDS(EDEADLK, conc_join(conc_self(), NULL));
    FAILS_IN_CONCS_WORDS(EOVERFLOW, conc_latch_done(&latch));
    FAILS_IN_CONCS_WORDS(EPIPE, conc_queue_try_put(&closed, &item));
    FAILS_IN_CONCS_WORDS(EPIPE, conc_queue_get(&closed, &item));
    FAILS_IN_CONCS_WORDS(EBUSY, conc_spawn_task(&g, &t, sleeps_forever, NULL));
    io_open(IO_SOCKET, end);
    CHECK_INT(conc_stream_open(&stream, end[0]), 0);
    CHECK_INT(conc_stream_close(&stream), 0);
    FAILS_IN_CONCS_WORDS(EPIPE, (int)conc_stream_read(&stream, end, 1));
    CHECK_INT(conc_close(end[1]), 0);
    CHECK_INT(conc_spawn(&g, closes_late, &open), 0);
    FAILS_IN_CONCS_WORDS(EPIPE, conc_queue_get(&open, &item)); /* closed while it waits */
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(an_empty_address_is_reported_in_quotation_marks)
{
    CHECK_INT(conc_dial(""), -EINVAL);
    CHECK_STR(conc_last_error(), "\"\": malformed address");
    CHECK_INT(conc_listen(""), -EINVAL);
    CHECK_STR(conc_last_error(), "\"\": malformed address");
}

IO_TEST(an_invalid_argument_is_not_called_a_malformed_address)
{
    CHECK_INT(conc_dial("nope"), -EINVAL);
    CHECK_CONTAINS(conc_last_error(), "malformed");
    CHECK_INT(conc_sleep(NAN), -EINVAL);
    CHECK_STR(conc_last_error(), "conc_sleep: the time is not a number");
    CHECK_INT(conc_dial("nope"), -EINVAL);
    CHECK_INT(conc_wait_fd(-1, CONC_READABLE), -EBADF);
    CHECK_STR(conc_last_error(), strerror(EBADF));
    CHECK_INT(conc_dial("nope"), -EINVAL);
    CHECK_INT(conc_wait_fd(999, CONC_READABLE), -EBADF);
    CHECK_STR(conc_last_error(), strerror(EBADF));
    CHECK_INT(conc_dial("nope"), -EINVAL);
    CHECK_INT(conc_signals_open(&(conc_signals){0}, (const int[]){SIGKILL}, 1), -EINVAL);
    CHECK_CONTAINS(conc_last_error(), "conc_signals_open: ");
}

IO_TEST(an_accept_that_the_system_refuses_has_its_error_text)
{
    int l = conc_listen("127.0.0.1:0");
    CHECK(l >= 0);
    for (size_t i = 0; i < CONC_LEN(renamed); i++) {
        faults.accept_error = renamed[i];
        faults.accept_times = 2; /* accept(2) is called where accept4(2) is forbidden */
        CHECK_INT(conc_accept(l), -renamed[i]);
        faults.accept_times = 0;
        CHECK_STR(conc_last_error(), strerror(renamed[i]));
    }
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(an_oversized_datagram_and_a_broken_pipe_have_the_systems_text)
{
    static char large[70000];
    int ends[2], fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(9)};
    conc_stream s = {0};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_INT(conc_sendto(fd, large, sizeof large, 0, (struct sockaddr *)&a, sizeof a), -EMSGSIZE);
    CHECK_STR(conc_last_error(), strerror(EMSGSIZE));
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(close(ends[0]), 0);
    CHECK_INT(conc_write(ends[1], "x", 1), -EPIPE);
    CHECK_STR(conc_last_error(), strerror(EPIPE));
    CHECK_INT(conc_stream_open(&s, ends[1]), 0);
    CHECK_INT(conc_stream_write(&s, "x", 1), 1);
    CHECK_INT(conc_stream_flush(&s), -EPIPE);
    CHECK_STR(conc_last_error(), strerror(EPIPE));
    CHECK_INT(conc_stream_close(&s), 0);
}
