/* io_test.h - shared by the descriptor tests: runs with each way of waiting, pairs of connected
 * descriptors of every kind, and tasks that use them.
 *
 *     IO_TEST(a_write_wakes_a_reader) { ... }    -- the main_fn of a run on the virtual clock
 *     REAL_IO_TEST(..)                           the same on the real clock
 *     SLOW_IO_TEST(..)                           the same, but slow: omitted under CONC_SEED
 *
 * Each runs three times (once under CONC_SEED): with the loop's default poller, with poll(2), and
 * with the best poller by name. Each run must leave open descriptors, signal mask and pending
 * signals unchanged, and must have called on_error io_failures.expected times.
 */
#ifndef IO_TEST_H
#define IO_TEST_H

#include "conc_test.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { IO_SMALLEST_STACK = 16384 };

/* ---- runs ---- */

static struct io_failures {
    int expected, count, rc;
    char task[64], place[128], text[128];
} io_failures;

static inline void io_remember(const conc_failure *f, void *user)
{
    (void)user;
    io_failures.count++;
    io_failures.rc = f->rc;
    snprintf(io_failures.task, sizeof io_failures.task, "%s", f->task);
    snprintf(io_failures.place, sizeof io_failures.place, "%s", f->place);
    snprintf(io_failures.text, sizeof io_failures.text, "%s", f->text);
}

typedef struct io_state {
    int fds;
    sigset_t mask, pending;
} io_state;

static inline io_state io_look(void)
{
    io_state s;
    sigemptyset(&s.mask);
    sigemptyset(&s.pending);
    s.fds = test_count_fds();
    pthread_sigmask(SIG_BLOCK, NULL, &s.mask);
    sigpending(&s.pending);
    return s;
}

static inline void io_compare(const io_state *before, const io_state *after)
{
    CHECK_INT(after->fds, before->fds);
    for (int i = 1; i < 32; i++) {
        CHECK_INT(sigismember(&after->mask, i), sigismember(&before->mask, i));
        CHECK_INT(sigismember(&after->pending, i), sigismember(&before->pending, i));
    }
}

/* A run whose main_fn is body; poll is NULL, "poll" or TEST_POLLER. */
static inline void io_run(void (*body)(void), const char *poll, bool virtual_clock)
{
    test_task t = {body};
    conc_options options = {.virtual_clock = virtual_clock, .on_error = io_remember};
    if (!virtual_clock)
        unsetenv("CONC_CLOCK");
    if (poll)
        setenv("CONC_POLL", poll, 1);
    io_failures = (struct io_failures){.expected = 0};
    io_state before = io_look();
    CHECK_INT(conc_run_with(&options, test_call_body, &t), 0);
    io_state after = io_look();
    io_compare(&before, &after);
    CHECK_INT(io_failures.count, io_failures.expected);
}

static inline void io_run_each(void (*body)(void))
{
    io_run(body, NULL, true);
    io_run(body, "poll", true);
    io_run(body, TEST_POLLER, true);
}

#define IO_TESTS_(kind_of_test, name, virtual_clock)                                           \
    static void body_of_##name(void);                                                          \
    kind_of_test(name) { io_run(body_of_##name, NULL, virtual_clock); }                        \
    VARIANT_TEST(name##_with_poll) { io_run(body_of_##name, "poll", virtual_clock); }          \
    VARIANT_TEST(name##_with_the_best) { io_run(body_of_##name, TEST_POLLER, virtual_clock); } \
    static void body_of_##name(void)

#define IO_TEST(name) IO_TESTS_(TEST, name, true)
#define REAL_IO_TEST(name) IO_TESTS_(TEST, name, false)
#define SLOW_IO_TEST(name) IO_TESTS_(ORDERED_TEST, name, false)

static inline uint64_t io_polls(void)
{
    conc_stats s;
    conc_get_stats(&s);
    return s.polls;
}

/* ---- pairs of descriptors: bytes written to end[1] are read from end[0]; sockets work both ways
 * ---- */

typedef enum io_kind {
    IO_PIPE,        /* blocking, as pipe(2) creates it */
    IO_FREE_PIPE,   /* non-blocking */
    IO_SOCKET,      /* a blocking Unix stream socket, as socketpair(2) creates it */
    IO_FREE_SOCKET, /* non-blocking */
    IO_CONC,        /* a TCP connection that conc opened */
    IO_KINDS
} io_kind;

static inline bool io_is_socket(io_kind kind) { return kind >= IO_SOCKET; }

static inline void io_set_blocking(int fd, bool blocking)
{
    int flags = fcntl(fd, F_GETFL);
    CHECK(flags >= 0);
    CHECK_INT(fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK), 0);
}

/* Connects a new listening socket to itself: the dialling end and the accepted end. */
static inline void io_connect(const char *address, int *dialled, int *accepted)
{
    char where[128];
    int l = conc_listen(address);
    CHECK(l >= 0);
    CHECK_INT(conc_address(l, false, where, sizeof where), 0);
    *dialled = conc_dial(where);
    CHECK(*dialled >= 0);
    *accepted = conc_accept(l);
    CHECK(*accepted >= 0);
    CHECK_INT(conc_close(l), 0);
}

static inline void io_open(io_kind kind, int end[2])
{
    if (kind == IO_CONC) {
        io_connect("127.0.0.1:0", &end[0], &end[1]);
        return;
    }
    CHECK_INT(io_is_socket(kind) ? socketpair(AF_UNIX, SOCK_STREAM, 0, end) : pipe(end), 0);
    for (int i = 0; i < 2; i++)
        io_set_blocking(end[i], kind == IO_PIPE || kind == IO_SOCKET);
}

static inline void io_close(int end[2])
{
    CHECK_INT(conc_close(end[0]), 0);
    CHECK_INT(conc_close(end[1]), 0);
}

/* ---- plain system calls, with or without available bytes ---- */

static inline void io_send(int fd, const char *text)
{
    CHECK_INT(write(fd, text, strlen(text)), strlen(text));
}

/* Writes until fd is full, and returns the number of bytes. The blocking mode is restored. */
static inline size_t io_fill(int fd)
{
    static const char block[4096];
    size_t sum = 0, size = sizeof block;
    int flags = fcntl(fd, F_GETFL);
    io_set_blocking(fd, false);
    while (size) {
        ssize_t n = write(fd, block, size);
        if (n < 0)
            CHECK_INT(errno, EAGAIN);
        n > 0 ? (void)(sum += (size_t)n) : (void)(size /= 2);
    }
    CHECK_INT(fcntl(fd, F_SETFL, flags), 0);
    return sum;
}

/* Reads all available bytes, and returns their number. The blocking mode is restored. */
static inline size_t io_drain(int fd)
{
    static char block[4096];
    size_t sum = 0;
    int flags = fcntl(fd, F_GETFL);
    io_set_blocking(fd, false);
    for (ssize_t n; (n = read(fd, block, sizeof block)) > 0;)
        sum += (size_t)n;
    CHECK_INT(fcntl(fd, F_SETFL, flags), 0);
    return sum;
}

static inline size_t io_available(int fd)
{
    int n = -1;
    CHECK_INT(ioctl(fd, FIONREAD, &n), 0);
    return (size_t)n;
}

/* Reads until exactly this text has arrived. */
static inline void io_expect(int fd, const char *text)
{
    char buf[64] = "";
    CHECK(strlen(text) < sizeof buf);
    CHECK_INT(conc_read_full(fd, buf, strlen(text)), strlen(text));
    CHECK_STR(buf, text);
}

/* ---- tasks ---- */

typedef struct io_waiter {
    int fd, events, rc;
    bool done;
} io_waiter;

static inline int io_waits(void *arg)
{
    io_waiter *w = arg;
    w->rc = conc_wait_fd(w->fd, w->events);
    w->done = true;
    return 0;
}

typedef struct io_reader {
    int fd;
    size_t n; /* 0: all of buf */
    ssize_t rc;
    bool done;
    char buf[32];
} io_reader;

static inline int io_reads(void *arg)
{
    io_reader *r = arg;
    r->rc = conc_read(r->fd, r->buf, r->n ? r->n : sizeof r->buf - 1);
    r->done = true;
    return 0;
}

/* Transfers `n` bytes, `step` at a time, of a pattern in which no two pages are equal. */
typedef struct io_bulk {
    int fd;
    size_t n, step, moved;
} io_bulk;

static inline unsigned char io_byte(size_t i) { return (unsigned char)(i ^ i >> 8 ^ i >> 16); }

static inline int io_writes_bulk(void *arg)
{
    io_bulk *b = arg;
    unsigned char *data = malloc(b->step);
    CHECK(data != NULL);
    while (b->moved < b->n) {
        size_t part = b->n - b->moved < b->step ? b->n - b->moved : b->step;
        for (size_t i = 0; i < part; i++)
            data[i] = io_byte(b->moved + i);
        CHECK_INT(conc_write_full(b->fd, data, part), part);
        b->moved += part;
    }
    free(data);
    return 0;
}

static inline int io_reads_bulk(void *arg)
{
    io_bulk *b = arg;
    unsigned char *data = malloc(b->step);
    CHECK(data != NULL);
    while (b->moved < b->n) {
        size_t part = b->n - b->moved < b->step ? b->n - b->moved : b->step;
        CHECK_INT(conc_read_full(b->fd, data, part), part);
        for (size_t i = 0; i < part; i++)
            if (data[i] != io_byte(b->moved + i))
                test_fail(__FILE__, __LINE__, "byte %zu is wrong", b->moved + i);
        b->moved += part;
    }
    free(data);
    return 0;
}

#endif
