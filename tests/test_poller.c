/* How a loop waits: system calls that a sandbox refuses, waits that fail, descriptors that only
 * seem ready, and files that stay open elsewhere after they were closed here.
 *
 * Seeds: 5 (some take real time)
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#define _GNU_SOURCE 1 /* posix_openpt */
#include "io_test.h"

#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <termios.h>
#ifdef __linux__
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#endif

/* Emulators have neither system call filters nor socket time stamps. */
#ifdef CONC_TEST_PLAIN
enum { EMULATED = true };
#else
enum { EMULATED = false };
#endif

/* fn() must succeed in its own process, which writes `text` to stderr. */
static char text[16384];

static void check_ends_well(void (*fn)(void))
{
    int status = test_in_process(fn, text, sizeof text);
    if (status)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, text);
}

/* ---- refused system calls ---- */

#if defined __linux__ && defined SYS_epoll_pwait2 && defined SYS_preadv2

static int refused_with;

/* From here on the newer system calls that a loop uses for waiting and moving bytes fail. */
static bool refuse_newer_calls(void)
{
    static const long calls[] = {SYS_epoll_pwait2, SYS_preadv2, SYS_pwritev2, SYS_accept4};
    enum { CALLS = CONC_LEN(calls) };
    struct sock_filter rules[CALLS + 3];
    rules[0] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < CALLS; i++)
        rules[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i],
                                                    (uint8_t)(CALLS - i), 0);
    rules[CALLS + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    rules[CALLS + 2] =
        (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)refused_with);
    struct sock_fprog program = {CONC_LEN(rules), rules};
    CHECK_INT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static int waits_and_moves(void *arg)
{
    (void)arg;
    int p[2], c[2];
    conc_group g = {0};
    io_open(IO_PIPE, p);
    io_open(IO_CONC, c);
    io_reader from_pipe = {.fd = p[0]}, from_socket = {.fd = c[0]};
    CHECK_INT(conc_spawn(&g, io_reads, &from_pipe), 0);
    CHECK_INT(conc_spawn(&g, io_reads, &from_socket), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_write(p[1], "x", 1), 1);
    CHECK_INT(conc_write(c[1], "y", 1), 1);
    CHECK_INT(conc_group_wait(&g), 0);
    io_close(p);
    io_close(c);
    return 0;
}

static int waits_beside_a_timer(void *arg)
{
    conc_scope s = {0};
    uint64_t before = io_polls();
    CHECK_INT(conc_scope_begin(&s, 20), 0);
    CHECK_INT(conc_scope_end(&s, waits_and_moves(arg)), 0);
    CHECK_INT(conc_sleep(0.05), 0);
    CHECK(io_polls() - before < 50);
    return 0;
}

static void runs_where_calls_are_refused(void)
{
    unsetenv("CONC_CLOCK");
    bool refused = refuse_newer_calls();
    CHECK(refused || EMULATED);
    CHECK_INT(conc_run(waits_beside_a_timer, NULL), 0);
}

TEST(system_calls_that_a_sandbox_refuses_have_a_way_round)
{
    static const int errors[] = {EPERM, ENOSYS, EACCES};
    for (size_t i = 0; i < CONC_LEN(errors); i++) {
        refused_with = errors[i];
        check_ends_well(runs_where_calls_are_refused);
    }
}
#endif

/* ---- a wait that fails ---- */

static bool reopen;

/* Like a library that wants to start afresh: closes the loop's descriptors too. */
static void close_everything(void)
{
    for (int fd = 3; fd < 256; fd++)
        close(fd);
    for (int i = 0; reopen && i < 20; i++)
        CHECK(open("/dev/null", O_RDWR) >= 0);
}

static int shielded_sleep(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int closes_everything(void *arg)
{
    int p[2];
    conc_group g = {0};
    io_open(IO_PIPE, p);
    io_reader r = {.fd = p[0]};
    CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
    CHECK_INT(conc_settle(), 0);
    close_everything();
    int rc = conc_shield(CONC_FOREVER, shielded_sleep, arg);
    CHECK(rc == -ECANCELED);
    rc = conc_group_end(&g, rc);
    CHECK(r.rc == -ECANCELED || r.rc == -EBADF);
    return rc;
}

static void runs_without_its_descriptors_under_the_best(void)
{
    setenv("CONC_POLL", TEST_POLLER, 1);
    unsetenv("CONC_CLOCK");
    for (int again = 0; again < 2; again++) {
        reopen = again;
        int rc = conc_run(closes_everything, NULL);
        CHECK(rc == -EBADF || rc == -EINVAL);
    }
    for (int fd = 3; fd < 23; fd++)
        CHECK_INT(fcntl(fd, F_GETFD), 0); /* these are the program's now, and none was closed */
}

static void runs_without_its_descriptors_under_poll(void)
{
    setenv("CONC_POLL", "poll", 1);
    unsetenv("CONC_CLOCK");
    reopen = false;
    CHECK_INT(conc_run(closes_everything, NULL), -EBADF);
}

TEST(a_run_whose_descriptors_were_closed_ends_with_an_error_text)
{
    if (SANITIZED)
        return; /* they have their own descriptors */
    if (!TEST_ONLY_POLL)
        check_ends_well(runs_without_its_descriptors_under_the_best);
    check_ends_well(runs_without_its_descriptors_under_poll);
    CHECK_CONTAINS(text, "the wait for descriptors failed");
    CHECK_CONTAINS(text, "Bad file descriptor");
}

/* ---- a descriptor limit below the number that is open ---- */

static int reads_under_a_limit(void *limit)
{
    int p[4][2];
    io_reader r[4];
    conc_group g = {0};
    for (int i = 0; i < 4; i++) {
        io_open(IO_PIPE, p[i]);
        r[i] = (io_reader){.fd = p[i][0]};
        CHECK_INT(conc_spawn(&g, io_reads, &r[i]), 0);
    }
    struct rlimit few;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &few), 0);
    few.rlim_cur = *(rlim_t *)limit;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &few), 0);
    CHECK_INT(conc_settle(), 0);
    uint64_t before = io_polls();
    CHECK_INT(conc_sleep(0.05), 0);
    CHECK(io_polls() - before < 20);
    for (int i = 0; i < 4; i++) {
        CHECK(!r[i].done);
        CHECK_INT(conc_wait_fd(p[i][1], CONC_READABLE | CONC_WRITABLE), CONC_WRITABLE);
        CHECK_INT(conc_write(p[i][1], "x", 1), 1);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_wait_fd(99, CONC_READABLE), -EBADF);
    io_reader late = {.fd = p[0][0]};
    conc_group h = {0};
    CHECK_INT(conc_spawn(&h, io_reads, &late), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(close(p[0][0]), 0);
    CHECK_INT(conc_group_wait(&h), 0);
    CHECK_INT(late.rc, -EBADF);
    return 0;
}

static rlim_t limit_of_descriptors;

static void runs_under_a_limit(void)
{
    static const char *const backends[] = {"poll", TEST_POLLER};
    unsetenv("CONC_CLOCK");
    for (int i = 0; i < 2; i++) {
        struct rlimit enough;
        CHECK_INT(getrlimit(RLIMIT_NOFILE, &enough), 0);
        enough.rlim_cur = 256;
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &enough), 0);
        setenv("CONC_POLL", backends[i], 1);
        CHECK_INT(conc_run(reads_under_a_limit, &limit_of_descriptors), 0);
    }
}

TEST(a_limit_below_the_open_descriptors_neither_hangs_nor_spins)
{
    for (limit_of_descriptors = 0; limit_of_descriptors < 2; limit_of_descriptors++)
        check_ends_well(runs_under_a_limit);
}

/* ---- descriptors that only seem ready ---- */

typedef struct mover {
    ssize_t (*call)(int fd);
    int fd;
    ssize_t rc;
    bool done;
} mover;

static int moves(void *arg)
{
    mover *m = arg;
    m->rc = m->call(m->fd);
    m->done = true;
    return 0;
}

/* The call has to wait for ten seconds, in each of which the loop tries about six times. */
static void check_patience(ssize_t (*call)(int fd), int fd, void (*release)(int fd))
{
    conc_group g = {0};
    mover m = {.call = call, .fd = fd};
    CHECK_INT(conc_spawn(&g, moves, &m), 0);
    CHECK_INT(conc_settle(), 0);
    uint64_t before = io_polls();
    double start = conc_now();
    CHECK_INT(conc_sleep(10), 0);
    CHECK(!m.done);
    CHECK(conc_now() - start >= 10);
    CHECK(io_polls() - before < 1000);
    release(fd);
    start = conc_now();
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(m.rc > 0);
    CHECK(conc_now() - start <= 0.0641);
}

#ifdef __linux__
static ssize_t adds_ten(int fd)
{
    uint64_t ten = 10;
    return conc_write(fd, &ten, sizeof ten);
}

static ssize_t adds_ten_by_parts(int fd)
{
    uint64_t ten = 10;
    return conc_writev(fd, &(struct iovec){&ten, sizeof ten}, 1);
}

static ssize_t adds_ten_by_stream(int fd)
{
    uint64_t ten = 10;
    conc_stream s = {0};
    int copy = dup(fd);
    CHECK_INT(conc_stream_open(&s, copy), 0);
    CHECK_INT(conc_stream_write(&s, &ten, sizeof ten), sizeof ten);
    int rc = conc_stream_flush(&s);
    CHECK_INT(conc_stream_close(&s), 0);
    return rc == 0 ? 8 : rc;
}

static void empty_eventfd(int fd)
{
    uint64_t sum;
    CHECK_INT(read(fd, &sum, sizeof sum), sizeof sum);
}

IO_TEST(a_number_that_does_not_fit_into_an_eventfd_neither_spins_nor_blocks_the_loop)
{
    static ssize_t (*const calls[])(int) = {adds_ten, adds_ten_by_parts, adds_ten_by_stream};
    for (int flags = 0; flags <= EFD_NONBLOCK; flags += EFD_NONBLOCK) {
        for (size_t i = 0; i < CONC_LEN(calls); i++) {
            int fd = eventfd(0, flags);
            uint64_t nearly = UINT64_MAX - 3;
            CHECK_INT(write(fd, &nearly, sizeof nearly), sizeof nearly);
            check_patience(calls[i], fd, empty_eventfd);
            CHECK_INT(fcntl(fd, F_GETFL) & O_NONBLOCK, flags ? O_NONBLOCK : 0);
            CHECK_INT(conc_close(fd), 0);
        }
    }
}

/* The largest number never fits: an error, and no wait. */
IO_TEST(the_largest_number_is_refused_by_an_eventfd_at_once)
{
    uint64_t largest = UINT64_MAX;
    for (int flags = 0; flags <= EFD_NONBLOCK; flags += EFD_NONBLOCK) {
        int fd = eventfd(1, flags);
        CHECK_INT(conc_write(fd, &largest, sizeof largest), -EINVAL);
        CHECK_INT(conc_close(fd), 0);
    }
}

/* -- a device may treat each part of a vector as a separate call, the second of which waits -- */

IO_TEST(the_first_of_two_numbers_that_do_not_both_fit_into_an_eventfd_is_written)
{
    uint64_t first = UINT64_MAX - 1, second = 5, sum;
    struct iovec parts[] = {{&first, sizeof first}, {NULL, 0}, {&second, sizeof second}};
    int fd = eventfd(0, 0);
    CHECK_INT(conc_writev(fd, parts, 3), sizeof first);
    CHECK_INT(read(fd, &sum, sizeof sum), sizeof sum);
    CHECK(sum == first);
    CHECK_INT(conc_close(fd), 0);
}

IO_TEST(a_part_that_one_event_of_inotify_fills_does_not_make_the_next_part_wait)
{
    char name[64], events[2][sizeof(struct inotify_event) + 16];
    struct iovec parts[] = {
        {NULL, 0}, {events[0], sizeof events[0]}, {events[1], sizeof events[1]}};
    snprintf(name, sizeof name, "/tmp/conc_test_%d", (int)getpid());
    CHECK_INT(mkdir(name, 0700), 0);
    int fd = inotify_init1(0);
    CHECK(inotify_add_watch(fd, name, IN_CREATE) >= 0);
    strcat(name, "/file");
    close(open(name, O_WRONLY | O_CREAT, 0600));
    CHECK_INT(conc_readv(fd, parts, 3), sizeof events[0]);
    CHECK_STR(events[0] + sizeof(struct inotify_event), "file");
    CHECK_INT(unlink(name), 0);
    *strrchr(name, '/') = 0;
    CHECK_INT(rmdir(name), 0);
    CHECK_INT(conc_close(fd), 0);
}

/* Does the system have calls that do not wait, and does it report their results distinctly? */
static bool has_calls_that_do_not_wait(void)
{
    enum { NO_WAIT = 8 }; /* RWF_NOWAIT */
    int p[2];
    char byte;
    struct iovec part = {&byte, 1};
    io_open(IO_PIPE, p);
    int saved = errno;
    long n = syscall(SYS_preadv2, p[0], &part, 1L, -1L, -1L, NO_WAIT);
    bool has = n < 0 && (errno == EAGAIN || errno == EOPNOTSUPP);
    errno = saved;
    io_close(p);
    return has;
}

/* A named pipe in blocking mode takes both at once, even where it cannot be reopened. */
IO_TEST(a_named_pipe_accepts_several_parts_at_once_without_free_descriptors)
{
    struct iovec parts[] = {{(char[]){"ab"}, 2}, {(char[]){"cd"}, 2}};
    char name[64], both[2][4] = {"", ""};
    struct iovec room[] = {{both[0], 2}, {both[1], 2}};
    struct rlimit before, none;
    if (!has_calls_that_do_not_wait()) /* one part at a time */
        return;
    snprintf(name, sizeof name, "/tmp/conc_test_%d", (int)getpid());
    CHECK_INT(mkfifo(name, 0600), 0);
    int fd = open(name, O_RDWR);
    CHECK_INT(unlink(name), 0);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = (rlim_t)fd + 1;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &none), 0);
    ssize_t out = conc_writev(fd, parts, 2), in = conc_readv(fd, room, 2);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
    CHECK_INT(out, 4);
    CHECK_INT(in, 4);
    CHECK_STR(both[0], "ab");
    CHECK_STR(both[1], "cd");
    CHECK_INT(conc_close(fd), 0);
}

/* -- an impossible call is an error, not a wait, on a descriptor in blocking mode too -- */

IO_TEST(data_that_a_device_never_accepts_is_refused_at_once)
{
    uint64_t number = 1;
    int timer = timerfd_create(CLOCK_MONOTONIC, 0), set = epoll_create1(0);
    int event = eventfd(0, 0);
    if (has_calls_that_do_not_wait()) {
        CHECK_INT(conc_write(timer, &number, sizeof number), -EINVAL);
        CHECK_INT(conc_read(set, &number, sizeof number), -EINVAL);
        CHECK_INT(conc_write(set, &number, sizeof number), -EINVAL);
        CHECK_INT(conc_read(event, &number, 1), -EINVAL);
    }
    CHECK_INT(conc_close(timer), 0);
    CHECK_INT(conc_close(set), 0);
    CHECK_INT(conc_close(event), 0);
}

static int bound_udp(struct sockaddr_in *address)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    socklen_t size = sizeof *address;
    CHECK_INT(bind(fd, (void *)address, sizeof *address), 0);
    CHECK_INT(getsockname(fd, (void *)address, &size), 0);
    return fd;
}

/* A UDP socket with an error in its queue, which poll(2) reports forever. */
static struct sockaddr_in udp_address, udp_peer;

static int open_udp(bool stamped)
{
    enum { TIMESTAMPING = 37, TX_SOFTWARE = 2, SOFTWARE = 16 };
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int stamps = TX_SOFTWARE | SOFTWARE, on = 1;
    udp_address = udp_peer = any;
    int fd = bound_udp(&udp_address), nobody = bound_udp(&udp_peer);
    CHECK_INT(close(nobody), 0);
    if (stamped)
        CHECK_INT(setsockopt(fd, SOL_SOCKET, TIMESTAMPING, &stamps, sizeof stamps), 0);
    else
        CHECK_INT(setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof on), 0);
    CHECK_INT(connect(fd, (void *)&udp_peer, sizeof udp_peer), 0);
    CHECK_INT(send(fd, "x", 1, 0), 1);
    struct pollfd p = {fd, 0, 0};
    CHECK_INT(poll(&p, 1, 5000), 1);
    char c;
    CHECK_INT(recv(fd, &c, 1, MSG_DONTWAIT), -1); /* the error itself */
    return fd;
}

static ssize_t receives(int fd)
{
    char c;
    return conc_recv(fd, &c, 1, 0);
}

static ssize_t reads_a_byte(int fd)
{
    char c;
    return conc_read(fd, &c, 1);
}

static void send_udp(int fd)
{
    int peer = bound_udp(&udp_peer);
    (void)fd;
    CHECK_INT(sendto(peer, "x", 1, 0, (void *)&udp_address, sizeof udp_address), 1);
    CHECK_INT(close(peer), 0);
}

IO_TEST(an_error_queue_that_is_not_empty_does_not_make_a_reader_spin)
{
    static ssize_t (*const calls[])(int) = {receives, reads_a_byte};
    for (int stamped = 0; stamped < (EMULATED ? 1 : 2); stamped++) {
        for (size_t i = 0; i < CONC_LEN(calls); i++) {
            int fd = open_udp(stamped);
            check_patience(calls[i], fd, send_udp);
            CHECK_INT(conc_close(fd), 0);
        }
    }
}

static struct sockaddr_un full_peer = {.sun_family = AF_UNIX, .sun_path = "\0conc-full-peer"};
static int full_reader;

static ssize_t sends_to_the_full_peer(int fd)
{
    return conc_sendto(fd, "x", 1, 0, (void *)&full_peer, sizeof full_peer);
}

static void read_from_the_full_peer(int fd)
{
    char c;
    (void)fd;
    CHECK_INT(recv(full_reader, &c, 1, MSG_DONTWAIT), 1);
}

IO_TEST(a_datagram_for_a_full_peer_does_not_make_its_sender_spin)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    full_reader = socket(AF_UNIX, SOCK_DGRAM, 0);
    snprintf(full_peer.sun_path + 1, sizeof full_peer.sun_path - 1, "conc-full-%d", (int)getpid());
    CHECK_INT(bind(full_reader, (void *)&full_peer, sizeof full_peer), 0);
    while (sendto(fd, "x", 1, MSG_DONTWAIT, (void *)&full_peer, sizeof full_peer) == 1)
        continue;
    CHECK_INT(errno, EAGAIN);
    check_patience(sends_to_the_full_peer, fd, read_from_the_full_peer);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(full_reader), 0);
}

IO_TEST(a_pause_ends_when_its_descriptor_is_closed_or_its_task_cancelled)
{
    for (int cancels = 0; cancels < 2; cancels++) {
        int fd = eventfd(0, EFD_NONBLOCK);
        uint64_t nearly = UINT64_MAX - 3;
        conc_group g = {0};
        conc_task t;
        mover m = {.call = adds_ten, .fd = fd};
        CHECK_INT(write(fd, &nearly, sizeof nearly), sizeof nearly);
        CHECK_INT(conc_spawn_task(&g, &t, moves, &m), 0);
        CHECK_INT(conc_sleep(1), 0);
        CHECK_INT(cancels ? conc_cancel(&t) : conc_close(fd), 0);
        double start = conc_now();
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK(conc_now() == start);
        CHECK_INT(m.rc, cancels ? -ECANCELED : -EBADF);
        if (cancels)
            CHECK_INT(conc_close(fd), 0);
    }
}

/* The task waits for another thread: the loop leaves the processor to it. */
static void *empties_in_a_while(void *fd)
{
    poll(NULL, 0, 300);
    empty_eventfd(*(int *)fd);
    return NULL;
}

static void *accepts_in_a_while(void *fd)
{
    poll(NULL, 0, 300);
    int accepted = accept(*(int *)fd, NULL, NULL);
    CHECK(accepted >= 0);
    CHECK_INT(close(accepted), 0);
    return NULL;
}

/* The loop tries about twice in each millisecond of real time, although the virtual clock jumps. */
static ssize_t poll_in_measure(ssize_t (*call)(int fd), void *(*release)(void *fd), int fd)
{
    pthread_t thread;
    uint64_t before = io_polls();
    double start = test_real_seconds();
    CHECK_INT(pthread_create(&thread, NULL, release, &fd), 0);
    ssize_t rc = call(fd);
    double took = test_real_seconds() - start;
    CHECK((double)(io_polls() - before) < 100 + took * 5000);
    CHECK_INT(pthread_join(thread, NULL), 0);
    return rc;
}

static char full_listener[108];

static ssize_t dials_the_full_one(int fd)
{
    (void)fd;
    return conc_dial(full_listener);
}

IO_TEST(a_pause_on_the_virtual_clock_leaves_others_the_processor)
{
    int fd = eventfd(0, EFD_NONBLOCK);
    uint64_t nearly = UINT64_MAX - 3;
    CHECK_INT(write(fd, &nearly, sizeof nearly), sizeof nearly);
    CHECK_INT(poll_in_measure(adds_ten, empties_in_a_while, fd), sizeof nearly);
    CHECK_INT(conc_close(fd), 0);
    snprintf(full_listener, sizeof full_listener, "unix:@conc-backlog-%d", (int)getpid());
    int l = conc_listen_with(full_listener, &(conc_listen_options){.backlog = 1});
    int first = conc_dial(full_listener), second = conc_dial(full_listener);
    CHECK(l >= 0 && first >= 0 && second >= 0);
    ssize_t third = poll_in_measure(dials_the_full_one, accepts_in_a_while, l);
    CHECK(third >= 0);
    CHECK_INT(conc_close(first), 0);
    CHECK_INT(conc_close(second), 0);
    CHECK_INT(conc_close((int)third), 0);
    CHECK_INT(conc_close(l), 0);
}

/* /proc/self/autogroup does not support poll(2), and accepts one write in 100 ms from an ordinary
 * user. */
static int autogroup;

static int beats(void *count)
{
    for (;;) {
        CONC_TRY(conc_sleep(0.001));
        ++*(int *)count;
    }
}

static int writes_to_autogroup(void *arg)
{
    static int beaten; /* the background task outlives this function */
    (void)arg;
    CHECK_INT(conc_spawn(NULL, beats, &beaten), 0);
    /* a slow machine makes two without a wait */
    for (int i = 0; i < 2 || (i < 20 && beaten <= 10); i++)
        CHECK_INT(conc_write(autogroup, "0", 1), 1);
    CHECK(beaten > 10);
    return 0;
}

static void writes_as_an_ordinary_user(void)
{
    unsetenv("CONC_CLOCK");
    autogroup = open("/proc/self/autogroup", O_WRONLY);
    if (autogroup < 0 || (geteuid() == 0 && seteuid(65534)) || write(autogroup, "0", 1) != 1)
        return; /* there is none */
    CHECK_INT(conc_run(writes_to_autogroup, NULL), 0);
}

TEST(a_file_that_epoll_refuses_and_that_is_not_ready_does_not_block_the_loop)
{
    check_ends_well(writes_as_an_ordinary_user);
}
#endif

/* No more descriptors can be opened. */
static struct rlimit open_files;

static void allow_no_more(void)
{
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &open_files), 0);
    struct rlimit none = {0, open_files.rlim_max};
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &none), 0);
}

static void allow_as_before(void) { CHECK_INT(setrlimit(RLIMIT_NOFILE, &open_files), 0); }

#ifdef __linux__
static int frees_descriptors(void *arg)
{
    (void)arg;
    CHECK_INT(conc_sleep(1), 0);
    allow_as_before();
    return 0;
}

IO_TEST(a_number_that_may_not_fit_into_an_eventfd_waits_for_a_descriptor_to_find_out)
{
    int fd = eventfd(0, 0);
    uint64_t nearly = UINT64_MAX - 20;
    conc_group g = {0};
    CHECK_INT(write(fd, &nearly, sizeof nearly), sizeof nearly);
    CHECK_INT(conc_spawn(&g, frees_descriptors, NULL), 0);
    allow_no_more();
    CHECK_INT(adds_ten(fd), sizeof nearly);
    allow_no_more();
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 1), 0);
    int rc = (int)adds_ten(fd); /* this does not fit */
    allow_as_before();
    CHECK_INT(conc_scope_end(&s, rc), -ETIMEDOUT);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_close(fd), 0);
}
#endif

IO_TEST(a_terminal_in_raw_mode_is_read_without_waiting_for_more)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    CHECK(master >= 0);
    CHECK_INT(grantpt(master), 0);
    CHECK_INT(unlockpt(master), 0);
    int fd = open(ptsname(master), O_RDWR | O_NOCTTY);
    CHECK(fd >= 0);
    struct termios t;
    CHECK_INT(tcgetattr(fd, &t), 0);
    cfmakeraw(&t);
    /* a plain read would wait for five bytes, or for two seconds after the first */
    t.c_cc[VMIN] = 5;
    t.c_cc[VTIME] = 20;
    CHECK_INT(tcsetattr(fd, TCSANOW, &t), 0);
    io_send(master, "x");
    char buf[10];
    double start = test_real_seconds();
    CHECK_INT(conc_read(fd, buf, sizeof buf), 1);
    CHECK(test_real_seconds() - start < 1.9);
    io_send(master, "abc"); /* nor where no descriptor can be opened for it */
    struct iovec parts[] = {{buf, 0}, {buf, 2}, {buf + 2, 8}};
    CHECK_INT(conc_wait_fd(fd, CONC_READABLE), CONC_READABLE);
    allow_no_more();
    start = test_real_seconds();
    ssize_t first = conc_readv(fd, parts, 3), second = conc_read(fd, buf + 2, 8);
    double took = test_real_seconds() - start;
    allow_as_before();
    CHECK_INT(first, 2);
    CHECK_INT(second, 1);
    CHECK(memcmp(buf, "abc", 3) == 0);
    CHECK(took < 1.9);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(master), 0);
}

/* ---- a hang-up alone ---- */

IO_TEST(a_wait_for_no_event_ends_when_the_peer_hangs_up)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        io_waiter w = {.fd = end[0], .events = 0, .rc = -1};
        CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
        CHECK_INT(conc_settle(), 0);
        io_send(end[1], "x");
        CHECK_INT(conc_wait_fd(end[0], CONC_READABLE), CONC_READABLE);
        CHECK_INT(conc_settle(), 0);
        CHECK(!w.done);
        if (kind == IO_CONC)
            /* TCP hangs up when both directions have ended */
            CHECK_INT(shutdown(end[0], SHUT_WR), 0);
        CHECK_INT(conc_close(end[1]), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(w.rc, 0);
        if (kind != IO_CONC)
            CHECK_INT(conc_wait_fd(end[0], 0), 0);
        CHECK_INT(conc_close(end[0]), 0);
    }
}

/* Readable bytes and room to write are no news for the wait, again and again. */
static void wait_beside_unread_bytes(bool reads_too)
{
    int end[2];
    conc_group g = {0};
    io_open(IO_SOCKET, end);
    io_waiter w = {.fd = end[0], .events = 0, .rc = -1};
    io_reader r = {.fd = end[0], .n = 1};
    if (reads_too)
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
    CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
    CHECK_INT(conc_settle(), 0);
    io_send(end[1], "xyz");
    CHECK_INT(conc_sleep(0.01), 0);
    CHECK(r.done == reads_too && !w.done);
    uint64_t before = io_polls();
    CHECK_INT(conc_sleep(0.05), 0);
    CHECK(io_polls() - before < 20);
    CHECK(!w.done);
    CHECK_INT(conc_close(end[1]), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, 0);
    CHECK_INT(conc_close(end[0]), 0);
}

SLOW_IO_TEST(a_wait_for_no_event_does_not_spin_beside_unread_bytes)
{
    wait_beside_unread_bytes(false);
    wait_beside_unread_bytes(true);
}

/* ---- files that a poller may refuse ---- */

typedef struct named_pipe {
    int reader, writer;
} named_pipe;

static named_pipe open_named_pipe(void)
{
    char name[64];
    named_pipe p;
    snprintf(name, sizeof name, "/tmp/conc_test_%d", (int)getpid());
    CHECK_INT(mkfifo(name, 0600), 0);
    p.reader = open(name, O_RDONLY | O_NONBLOCK);
    p.writer = open(name, O_WRONLY | O_NONBLOCK);
    CHECK(p.reader >= 0 && p.writer >= 0);
    CHECK_INT(unlink(name), 0);
    return p;
}

/* Each wakes while the loop waits for the other, too. */
SLOW_IO_TEST(a_named_pipe_and_another_pipe_wake_their_readers_without_polling)
{
    int end[2];
    io_open(IO_PIPE, end);
    named_pipe p = open_named_pipe();
    for (int i = 0; i < 4; i++) {
        conc_group g = {0};
        io_reader named = {.fd = p.reader, .rc = -1}, other = {.fd = end[0], .rc = -1};
        CHECK_INT(conc_spawn(&g, io_reads, &named), 0);
        CHECK_INT(conc_spawn(&g, io_reads, &other), 0);
        CHECK_INT(conc_settle(), 0);
        uint64_t before = io_polls();
        CHECK_INT(conc_sleep(0.05), 0);
        CHECK(io_polls() - before < 20);
        io_send(i % 2 ? end[1] : p.writer, "x");
        CHECK_INT(conc_settle(), 0);
        CHECK(named.done != other.done);
        io_send(i % 2 ? p.writer : end[1], "y");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(named.rc, 1);
        CHECK_INT(other.rc, 1);
    }
    io_reader last = {.fd = p.reader, .rc = -1};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, io_reads, &last), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(close(p.writer), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(last.rc, 0);
    CHECK_INT(conc_close(p.reader), 0);
    io_close(end);
}

IO_TEST(a_full_named_pipe_wakes_its_writer_and_its_number_may_be_used_again)
{
    named_pipe p = open_named_pipe();
    conc_group g = {0}, h = {0};
    io_waiter writer = {.fd = p.writer, .events = CONC_WRITABLE, .rc = -1};
    io_waiter reader = {.fd = p.reader, .events = CONC_READABLE, .rc = -1};
    io_fill(p.writer);
    CHECK_INT(conc_spawn(&g, io_waits, &writer), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!writer.done);
    io_drain(p.reader);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(writer.rc, CONC_WRITABLE);
    CHECK_INT(conc_spawn(&h, io_waits, &reader), 0);
    CHECK_INT(conc_settle(), 0);
    int end[2];
    io_open(IO_SOCKET, end);
    CHECK_INT(dup2(end[0], p.reader), p.reader);
    io_send(end[1], "x"); /* that is the other file's */
    CHECK_INT(conc_group_wait(&h), 0);
    CHECK_INT(reader.rc, -EBADF);
    CHECK_INT(conc_wait_fd(p.reader, CONC_READABLE), CONC_READABLE);
    CHECK_INT(close(p.writer), 0);
    CHECK_INT(close(p.reader), 0);
    io_close(end);
}

/* ---- files closed where conc cannot see it ---- */

static void *writes_in_a_while(void *fd)
{
    poll(NULL, 0, 50); /* the loop sleeps by then; if this came earlier, it would not sleep */
    io_send(*(int *)fd, "x");
    return NULL;
}

/* Some systems refuse to wait for years. */
SLOW_IO_TEST(a_loop_sleeps_although_its_next_deadline_is_years_away)
{
    int end[2];
    pthread_t thread;
    io_open(IO_CONC, end); /* which the loop does not check now and then */
    io_reader r = {.fd = end[0]};
    CHECK_INT(pthread_create(&thread, NULL, writes_in_a_while, &end[1]), 0);
    CHECK_INT(conc_timeout(5e9, io_reads, &r), 0);
    CHECK_INT(r.rc, 1);
    CHECK_INT(pthread_join(thread, NULL), 0);
    io_close(end);
}

static void *closes_in_a_while(void *fd)
{
    /* the loop sleeps by then; if this came earlier, the wait would end sooner */
    poll(NULL, 0, 600);
    syscall(SYS_close, *(int *)fd); /* ThreadSanitizer would report a race, which it is */
    return NULL;
}

SLOW_IO_TEST(a_descriptor_that_another_thread_closes_wakes_the_task_of_a_sleeping_loop)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2];
        pthread_t thread;
        io_open(kind, end);
        io_reader r = {.fd = end[0]};
        int fd = end[0];
        CHECK_INT(pthread_create(&thread, NULL, closes_in_a_while, &fd), 0);
        CHECK_INT(conc_timeout(10, io_reads, &r), 0);
        CHECK_INT(r.rc, -EBADF);
        CHECK_INT(pthread_join(thread, NULL), 0);
        CHECK_INT(close(end[1]), 0);
    }
}

/* The file changes 20,000 times, as if by another process. */
enum { HAPPENINGS = 20000 };

typedef struct elsewhere {
    int from, to;
    conc_loop *loop;
    bool over;
} elsewhere;

static void is_over(void *arg) { ((elsewhere *)arg)->over = true; }

static void *goes_on_elsewhere(void *arg)
{
    elsewhere *e = arg;
    char c = 0;
    for (int i = 0; i < HAPPENINGS; i++)
        if (write(e->from, &c, 1) != 1 || read(e->to, &c, 1) != 1)
            break;
    conc_post(e->loop, is_over, e);
    return NULL;
}

SLOW_IO_TEST(a_connection_that_was_passed_on_and_closed_here_does_not_wake_the_loop)
{
    for (int plainly = 0; plainly < 2; plainly++) {
        int end[2], p[2];
        pthread_t thread;
        io_open(IO_CONC, end);
        io_open(IO_PIPE, p);
        conc_group g = {0};
        io_reader r = {.fd = end[0]}, other = {.fd = p[0]};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_settle(), 0);
        io_send(end[1], "x");
        CHECK_INT(conc_group_wait(&g), 0);
        elsewhere e = {.from = end[1], .to = dup(end[0]), .loop = conc_loop_self()};
        CHECK_INT(plainly ? close(end[0]) : conc_close(end[0]), 0);
        CHECK_INT(conc_loop_hold(e.loop), 0);
        conc_group h = {0};
        CHECK_INT(conc_spawn(&h, io_reads, &other), 0); /* so that the loop waits for something */
        uint64_t before = io_polls();
        CHECK_INT(pthread_create(&thread, NULL, goes_on_elsewhere, &e), 0);
        while (!e.over)
            CHECK_INT(conc_sleep(0.01), 0);
        CHECK_INT(pthread_join(thread, NULL), 0);
        CHECK(io_polls() - before < HAPPENINGS / 10);
        CHECK_INT(conc_loop_release(e.loop), 0);
        io_send(p[1], "y");
        CHECK_INT(conc_group_wait(&h), 0);
        CHECK_INT(close(e.to), 0);
        CHECK_INT(conc_close(end[1]), 0);
        io_close(p);
    }
}

#ifdef __linux__
/* Reuses the number of a timerfd, which shares its inode with eventfds. */
SLOW_IO_TEST(a_number_that_another_kind_of_file_has_by_now_wakes_its_former_waiter)
{
    conc_group g = {0};
    uint64_t one = 1;
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), next = eventfd(0, EFD_NONBLOCK);
    io_waiter w = {.fd = fd, .events = CONC_READABLE};
    CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(dup2(next, fd), fd);
    CHECK_INT(write(fd, &one, sizeof one), sizeof one);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, -EBADF);
    CHECK_INT(close(fd), 0);
    CHECK_INT(close(next), 0);
}
#endif
