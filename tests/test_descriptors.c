/* Descriptors of every kind: waiting, reading and writing without blocking the loop, closing while
 * tasks wait, and cancelling without losing a byte.
 *
 * Seeds: 5 (some take real time)
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#define _GNU_SOURCE 1 /* posix_openpt */
#include "io_test.h"

#include <sys/mman.h>
#include <sys/time.h>

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#ifdef __linux__
#include <sys/epoll.h>
#include <sys/eventfd.h>
#endif

enum { BOTH = CONC_READABLE | CONC_WRITABLE };

/* Each call that waits for a descriptor, as a function of the descriptor alone, which returns 1 on
 * success. */
static char op_room[16];

static ssize_t op_wait(int fd, int event)
{
    int rc = conc_wait_fd(fd, event);
    return rc > 0 ? rc == event : rc;
}

static ssize_t op_wait_readable(int fd) { return op_wait(fd, CONC_READABLE); }
static ssize_t op_read(int fd) { return conc_read(fd, op_room, 1); }
static ssize_t op_readv(int fd) { return conc_readv(fd, &(struct iovec){op_room, 1}, 1); }
static ssize_t op_recv(int fd) { return conc_recv(fd, op_room, 1, 0); }
static ssize_t op_recvfrom(int fd) { return conc_recvfrom(fd, op_room, 1, 0, NULL, NULL); }
static ssize_t op_read_full(int fd) { return conc_read_full(fd, op_room, 1); }
static ssize_t op_wait_writable(int fd) { return op_wait(fd, CONC_WRITABLE); }
static ssize_t op_write(int fd) { return conc_write(fd, "x", 1); }
static ssize_t op_writev(int fd) { return conc_writev(fd, &(struct iovec){op_room, 1}, 1); }
static ssize_t op_send(int fd) { return conc_send(fd, "x", 1, 0); }
static ssize_t op_sendto(int fd) { return conc_sendto(fd, "x", 1, 0, NULL, 0); }
static ssize_t op_write_full(int fd) { return conc_write_full(fd, "x", 1); }

typedef struct op {
    const char *name;
    ssize_t (*call)(int fd);
    bool writes, moves, for_sockets;
} op;

static const op ops[] = {
    {"conc_wait_fd(CONC_READABLE)", op_wait_readable, false, false, false},
    {"conc_read", op_read, false, true, false},
    {"conc_readv", op_readv, false, true, false},
    {"conc_recv", op_recv, false, true, true},
    {"conc_recvfrom", op_recvfrom, false, true, true},
    {"conc_read_full", op_read_full, false, true, false},
    {"conc_wait_fd(CONC_WRITABLE)", op_wait_writable, true, false, false},
    {"conc_write", op_write, true, true, false},
    {"conc_writev", op_writev, true, true, false},
    {"conc_send", op_send, true, true, true},
    {"conc_sendto", op_sendto, true, true, true},
    {"conc_write_full", op_write_full, true, true, false},
};
enum { OPS = CONC_LEN(ops), READ = 1, RECV = 3, WRITE = 7, SEND = 9 };

static bool fits(const op *o, io_kind kind) { return io_is_socket(kind) || !o->for_sockets; }

static void check_op(int line, const op *o, ssize_t rc, ssize_t expected)
{
    if (rc != expected)
        test_fail(__FILE__, line, "%s returned %zd, not %zd", o->name, rc, expected);
}

#define CHECK_OP(o, rc, expected) check_op(__LINE__, (o), (rc), (expected))

typedef struct op_task {
    const op *op;
    int fd;
    ssize_t rc;
    bool done;
} op_task;

static int does_op(void *arg)
{
    op_task *t = arg;
    t->rc = t->op->call(t->fd);
    t->done = true;
    return 0;
}

static int does_op_to_its_result(void *arg)
{
    op_task *t = arg;
    return (int)t->op->call(t->fd);
}

/* Starts each call on one end of a pair of sockets that is neither readable nor writable: all
 * wait. */
static void start_ops(conc_group *g, op_task *tasks, int fd)
{
    io_fill(fd);
    for (size_t i = 0; i < OPS; i++) {
        tasks[i] = (op_task){&ops[i], fd, 0, false};
        CHECK_INT(conc_spawn(g, does_op, &tasks[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
    for (size_t i = 0; i < OPS; i++)
        if (tasks[i].done)
            test_fail(__FILE__, __LINE__, "%s returned %zd instead of waiting", ops[i].name,
                      tasks[i].rc);
}

static void check_ops(const op_task *tasks, ssize_t expected)
{
    for (size_t i = 0; i < OPS; i++)
        CHECK_OP(tasks[i].op, tasks[i].rc, expected);
}

/* ---- waiting for readiness ---- */

IO_TEST(a_wait_returns_its_ready_events)
{
    int s[2];
    io_open(IO_SOCKET, s);
    CHECK_INT(conc_wait_fd(s[0], BOTH), CONC_WRITABLE);
    CHECK_INT(conc_wait_fd(s[0], CONC_WRITABLE), CONC_WRITABLE);
    io_send(s[1], "x");
    CHECK_INT(conc_wait_fd(s[0], CONC_READABLE), CONC_READABLE);
    CHECK_INT(conc_wait_fd(s[0], CONC_WRITABLE), CONC_WRITABLE);
    CHECK_INT(conc_wait_fd(s[0], BOTH), BOTH);
    io_fill(s[0]);
    CHECK_INT(conc_wait_fd(s[0], BOTH), CONC_READABLE);
    io_close(s);
}

IO_TEST(a_wait_lasts_until_bytes_come)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        io_waiter w = {.fd = end[0], .events = CONC_READABLE};
        CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!w.done);
        io_send(end[1], "x");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(w.rc, CONC_READABLE);
        io_expect(end[0], "x");
        io_close(end);
    }
}

IO_TEST(a_wait_lasts_until_there_is_room)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        io_waiter w = {.fd = end[1], .events = CONC_WRITABLE};
        io_fill(end[1]);
        CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!w.done);
        io_drain(end[0]);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(w.rc, CONC_WRITABLE);
        io_close(end);
    }
}

IO_TEST(a_ready_descriptor_stays_ready_until_it_is_used)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        char buf[8];
        io_open(kind, end);
        io_send(end[1], "12345");
        for (int i = 0; i < 3; i++)
            CHECK_INT(conc_wait_fd(end[0], CONC_READABLE), CONC_READABLE);
        CHECK_INT(conc_read(end[0], buf, 2), 2);
        CHECK_INT(conc_wait_fd(end[0], CONC_READABLE), CONC_READABLE);
        CHECK_INT(read(end[0], buf, 2), 2); /* as a library does that does not know conc */
        CHECK_INT(conc_wait_fd(end[0], CONC_READABLE), CONC_READABLE);
        CHECK_INT(conc_read(end[0], buf, 8), 1);
        io_close(end);
    }
}

IO_TEST(a_descriptor_that_others_used_is_no_longer_ready)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        io_waiter w = {.fd = end[0], .events = CONC_READABLE};
        io_send(end[1], "12345");
        CHECK_INT(conc_wait_fd(end[0], CONC_READABLE), CONC_READABLE);
        CHECK_INT(io_drain(end[0]), 5);
        CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!w.done);
        io_send(end[1], "6");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(w.rc, CONC_READABLE);
        io_close(end);
    }
}

IO_TEST(room_that_others_filled_is_no_longer_there)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        io_waiter w = {.fd = end[1], .events = CONC_WRITABLE};
        CHECK_INT(conc_wait_fd(end[1], CONC_WRITABLE), CONC_WRITABLE);
        io_fill(end[1]);
        CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!w.done);
        io_drain(end[0]);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(w.rc, CONC_WRITABLE);
        io_close(end);
    }
}

/* LP-14, which requires -EBUSY; here any number may wait */
IO_TEST(a_reader_and_a_writer_of_one_descriptor_wake_for_their_own_event_only)
{
    for (int writer_first = 0; writer_first < 2; writer_first++) {
        int s[2];
        conc_group g = {0};
        io_open(IO_FREE_SOCKET, s);
        io_fill(s[0]);
        io_waiter r = {.fd = s[0], .events = CONC_READABLE},
                  w = {.fd = s[0], .events = CONC_WRITABLE};
        CHECK_INT(conc_spawn(&g, io_waits, &r), 0);
        CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
        CHECK_INT(conc_settle(), 0);
        writer_first ? (void)io_drain(s[1]) : io_send(s[1], "x");
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(r.done, !writer_first);
        CHECK_INT(w.done, writer_first);
        writer_first ? io_send(s[1], "x") : (void)io_drain(s[1]);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, CONC_READABLE);
        CHECK_INT(w.rc, CONC_WRITABLE);
        io_close(s);
    }
}

enum { CROWD = 20 };

IO_TEST(all_waiters_of_a_descriptor_continue_when_it_is_ready)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        io_waiter w[CROWD];
        io_open(kind, end);
        for (int i = 0; i < CROWD; i++) {
            w[i] = (io_waiter){.fd = end[0], .events = CONC_READABLE};
            CHECK_INT(conc_spawn(&g, io_waits, &w[i]), 0);
        }
        CHECK_INT(conc_settle(), 0);
        io_send(end[1], "x");
        CHECK_INT(conc_group_wait(&g), 0);
        for (int i = 0; i < CROWD; i++)
            CHECK_INT(w[i].rc, CONC_READABLE);
        io_close(end);
    }
}

/* Readers of one byte each; the bytes arrive one by one or all at once. */
static void crowd_reads(io_kind kind, int pieces)
{
    int end[2], seen[CROWD] = {0};
    conc_group g = {0};
    io_reader r[CROWD];
    io_open(kind, end);
    for (int i = 0; i < CROWD; i++) {
        r[i] = (io_reader){.fd = end[0], .n = 1};
        CHECK_INT(conc_spawn(&g, io_reads, &r[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
    for (int i = 0; i < CROWD; i += CROWD / pieces) {
        char bytes[CROWD + 1] = "";
        for (int k = 0; k < CROWD / pieces; k++)
            bytes[k] = (char)('a' + i + k);
        io_send(end[1], bytes);
        CHECK_INT(conc_yield(), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < CROWD; i++) {
        CHECK_INT(r[i].rc, 1);
        seen[r[i].buf[0] - 'a']++;
    }
    for (int i = 0; i < CROWD; i++)
        CHECK_INT(seen[i], 1);
    io_close(end);
}

IO_TEST(readers_of_one_descriptor_share_the_bytes_and_none_waits_while_there_are_some)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        crowd_reads(kind, 1);
        crowd_reads(kind, 4);
        crowd_reads(kind, CROWD);
    }
}

IO_TEST(one_of_two_readers_gets_the_byte_and_the_other_keeps_waiting)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        io_reader r[2] = {{.fd = end[0]}, {.fd = end[0]}};
        CHECK_INT(conc_spawn(&g, io_reads, &r[0]), 0);
        CHECK_INT(conc_spawn(&g, io_reads, &r[1]), 0);
        CHECK_INT(conc_settle(), 0);
        io_send(end[1], "1");
        while (!r[0].done && !r[1].done) /* a reader that comes too late must not block the loop */
            CHECK_INT(conc_yield(), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(r[0].done + r[1].done, 1);
        io_send(end[1], "2");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r[0].rc + r[1].rc, 2);
        CHECK_INT(r[0].buf[0] + r[1].buf[0], '1' + '2');
        io_close(end);
    }
}

IO_TEST(two_numbers_of_one_pipe_are_two_descriptors)
{
    int p[2];
    conc_group g = {0};
    io_open(IO_PIPE, p);
    int copy = dup(p[0]);
    io_waiter w[] = {{.fd = p[0], .events = CONC_READABLE}, {.fd = copy, .events = CONC_READABLE}};
    CHECK_INT(conc_spawn(&g, io_waits, &w[0]), 0);
    CHECK_INT(conc_spawn(&g, io_waits, &w[1]), 0);
    CHECK_INT(conc_settle(), 0);
    io_send(p[1], "x");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w[0].rc, CONC_READABLE);
    CHECK_INT(w[1].rc, CONC_READABLE);
    CHECK_INT(conc_close(copy), 0);
    io_close(p);
}

/* ---- end of file, hang-ups and errors ---- */

/* Reads all bytes, and then finds more at once. */
static int reads_and_has_more_sent(void *arg)
{
    const int *s = arg;
    char bytes[64];
    CHECK_INT(conc_read(s[0], bytes, sizeof bytes), 3);
    io_send(s[1], "more");
    return 0;
}

static int reads_what_came_last(void *arg)
{
    const int *s = arg;
    char bytes[64];
    conc_scope limit = {0};
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    ssize_t n = conc_read(s[0], bytes, sizeof bytes);
    CHECK_INT(conc_scope_end(&limit, (int)n), 4);
    return 0;
}

static void body_of_bytes_between_readers(void)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int s[2];
        conc_group g = {0};
        io_open(kind, s);
        CHECK_INT(conc_spawn(&g, reads_and_has_more_sent, s), 0);
        CHECK_INT(conc_spawn(&g, reads_what_came_last, s), 0);
        CHECK_INT(conc_settle(), 0);
        io_send(s[1], "all");
        CHECK_INT(conc_group_wait(&g), 0);
        io_close(s);
    }
}

/* Both readers wake for the same event, and the second one's bytes arrive before any other
 * event. */
ORDERED_TEST(bytes_that_come_between_two_woken_readers_go_to_the_second)
{
    io_run_each(body_of_bytes_between_readers);
}

IO_TEST(the_end_of_file_wakes_a_reader_and_can_be_read_again_and_again)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        char buf[4];
        conc_group g = {0};
        io_open(kind, end);
        io_reader r = {.fd = end[0], .rc = 1};
        io_waiter w = {.fd = end[0], .events = CONC_READABLE};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!r.done && !w.done);
        CHECK_INT(conc_close(end[1]), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, 0);
        CHECK_INT(w.rc, CONC_READABLE);
        for (int i = 0; i < 3; i++) {
            CHECK_INT(conc_read(end[0], buf, sizeof buf), 0);
            CHECK_INT(conc_read_full(end[0], buf, sizeof buf), 0);
            CHECK_INT(conc_wait_fd(end[0], CONC_READABLE), CONC_READABLE);
        }
        CHECK_INT(conc_close(end[0]), 0);
    }
}

IO_TEST(bytes_and_the_end_of_file_that_came_together_are_both_read)
{
    /* a read that returned less than requested does not mean that there is nothing more */
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        io_reader r = {.fd = end[0]};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_settle(), 0);
        io_send(end[1], "abc");
        CHECK_INT(conc_close(end[1]), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, 3);
        CHECK_STR(r.buf, "abc");
        CHECK_INT(conc_read(end[0], r.buf, sizeof r.buf), 0);
        CHECK_INT(conc_close(end[0]), 0);
    }
}

/* Waits for each event on fd while neither is ready, closes the peer, and checks that both waits
 * ended. */
static void hang_up(int fd, int peer, int events)
{
    conc_group g = {0};
    io_waiter w[] = {{.fd = fd, .events = CONC_READABLE}, {.fd = fd, .events = CONC_WRITABLE}};
    for (int i = 0; i < 2; i++)
        if (events & w[i].events)
            CHECK_INT(conc_spawn(&g, io_waits, &w[i]), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!w[0].done && !w[1].done);
    CHECK_INT(conc_close(peer), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 2; i++)
        if (events & w[i].events)
            CHECK_INT(w[i].rc, w[i].events);
    CHECK_INT(conc_close(fd), 0);
}

IO_TEST(a_hang_up_and_an_error_wake_both_directions)
{
    for (io_kind kind = 0; kind < IO_SOCKET; kind++) {
        int p[2];
        io_open(kind, p);
        hang_up(p[0], p[1], BOTH); /* when reading from a pipe: POLLHUP */
        io_open(kind, p);
        hang_up(p[1], p[0], CONC_READABLE);
        io_open(kind, p);
        io_fill(p[1]);
        hang_up(p[1], p[0], BOTH); /* when writing to a pipe: POLLERR */
    }
    int s[2];
    io_open(IO_SOCKET, s);
    io_fill(s[0]);
    hang_up(s[0], s[1], BOTH);
}

IO_TEST(the_end_of_one_direction_does_not_end_the_other)
{
    int s[2];
    conc_group g = {0};
    io_open(IO_FREE_SOCKET, s);
    io_fill(s[0]);
    io_waiter r = {.fd = s[0], .events = CONC_READABLE}, w = {.fd = s[0], .events = CONC_WRITABLE};
    CHECK_INT(conc_spawn(&g, io_waits, &r), 0);
    CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(shutdown(s[1], SHUT_WR), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(r.done && !w.done);
    CHECK_INT(conc_read(s[0], op_room, 1), 0);
    io_drain(s[1]);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, CONC_WRITABLE);
    CHECK_INT(conc_write(s[0], "x", 1), 1);
    io_close(s);
}

REAL_IO_TEST(a_reset_connection_is_an_error_and_no_hang)
{
    int s[2];
    conc_group g = {0};
    io_open(IO_CONC, s);
    io_reader r = {.fd = s[0]};
    struct linger at_once = {1, 0};
    CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(setsockopt(s[1], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    CHECK_INT(conc_close(s[1]), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(r.rc, -ECONNRESET);
    CHECK_INT(conc_read(s[0], op_room, 1), 0);
    CHECK_INT(conc_write(s[0], "x", 1), -EPIPE);
    CHECK_INT(conc_close(s[0]), 0);
}

/* ---- files and devices ---- */

IO_TEST(a_regular_file_is_always_ready)
{
    char buf[8] = "";
    FILE *file = tmpfile();
    CHECK(file != NULL);
    int fd = fileno(file);
    CHECK_INT(conc_wait_fd(fd, BOTH), BOTH);
    CHECK_INT(conc_wait_fd(fd, CONC_READABLE), CONC_READABLE);
    CHECK_INT(conc_read(fd, buf, 8), 0);
    CHECK_INT(conc_write(fd, "hello", 5), 5);
    CHECK_INT(conc_write_full(fd, "!", 1), 1);
    CHECK_INT(lseek(fd, 1, SEEK_SET), 1);
    CHECK_INT(conc_read(fd, buf, 2), 2);
    CHECK_INT(conc_read_full(fd, buf + 2, 6), 3);
    CHECK_STR(buf, "ello!");
    io_bulk out = {.fd = fd, .n = 1000000, .step = 1000000}, in = out;
    CHECK_INT(io_writes_bulk(&out), 0);
    CHECK_INT(lseek(fd, 6, SEEK_SET), 6);
    CHECK_INT(io_reads_bulk(&in), 0);
    CHECK_INT(fclose(file), 0);
    CHECK_TIME(0);
}

/* epoll refuses these, and poll(2) has no event for them. */
static const char *const without_events[] = {"/proc/self/exe", "/dev/null", "/"};

IO_TEST(a_wait_for_a_hang_up_of_a_file_that_has_none_ends_when_it_is_closed)
{
    for (size_t i = 0; i < CONC_LEN(without_events); i++) {
        int fd = open(without_events[i], O_RDONLY);
        conc_group g = {0};
        io_waiter w[2] = {{.fd = fd, .rc = 77}, {.fd = fd, .rc = 77}};
        CHECK_INT(conc_spawn(&g, io_waits, &w[0]), 0);
        CHECK_INT(conc_sleep(1), 0);
        CHECK_INT(conc_spawn(&g, io_waits, &w[1]), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(conc_wait_fd(fd, CONC_READABLE), CONC_READABLE);
        CHECK(!w[0].done && !w[1].done);
        CHECK_INT(conc_close(fd), 0);
        double start = conc_now();
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK(conc_now() == start);
        CHECK_INT(w[0].rc, -EBADF);
        CHECK_INT(w[1].rc, -EBADF);
    }
}

IO_TEST(a_wait_for_a_hang_up_of_a_file_that_has_none_ends_when_it_is_plainly_closed)
{
    int fd = open("/proc/self/exe", O_RDONLY);
    conc_group g = {0};
    io_waiter w = {.fd = fd};
    CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(close(fd), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(w.done);
    CHECK_INT(w.rc, -EBADF);
    CHECK_INT(conc_group_wait(&g), 0);
}

IO_TEST(null_is_always_ready)
{
    int fd = open("/dev/null", O_RDWR);
    CHECK(fd >= 0);
    CHECK_INT(conc_wait_fd(fd, BOTH), BOTH);
    for (size_t i = 0; i < OPS; i++)
        if (!ops[i].for_sockets)
            CHECK_OP(&ops[i], ops[i].call(fd), ops[i].writes || !ops[i].moves);
    CHECK_INT(conc_close(fd), 0);
}

IO_TEST(a_directory_is_an_error_and_no_wait)
{
    int fd = open(".", O_RDONLY | O_DIRECTORY);
    CHECK(fd >= 0);
    CHECK_INT(conc_wait_fd(fd, CONC_READABLE), CONC_READABLE); /* as poll(2) does */
    CHECK_INT(conc_read(fd, op_room, 1), -EISDIR);
    CHECK_INT(conc_write(fd, "x", 1), -EBADF);
    CHECK_INT(conc_close(fd), 0);
}

#ifdef __linux__

IO_TEST(a_full_device_is_an_error)
{
    int fd = open("/dev/full", O_WRONLY);
    CHECK(fd >= 0);
    CHECK_INT(conc_write(fd, "x", 1), -ENOSPC);
    CHECK_INT(conc_write_full(fd, "x", 1), -ENOSPC);
    CHECK_INT(conc_close(fd), 0);
}

static int reads_eight_bytes(void *arg)
{
    io_reader *r = arg;
    uint64_t n = 0;
    r->rc = conc_read(r->fd, &n, sizeof n);
    r->n = (size_t)n;
    r->done = true;
    return 0;
}

IO_TEST(an_eventfd_does_not_block_the_loop_either)
{
    uint64_t five = 5;
    conc_group g = {0};
    io_reader r = {.fd = eventfd(0, 0)};
    CHECK(r.fd >= 0);
    CHECK_INT(conc_spawn(&g, reads_eight_bytes, &r), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!r.done);
    CHECK_INT(conc_write(r.fd, &five, sizeof five), sizeof five);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(r.rc, sizeof five);
    CHECK_INT(r.n, 5);
    CHECK_INT(conc_close(r.fd), 0);
}

IO_TEST(an_epoll_descriptor_can_be_waited_for)
{
    int p[2], set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    conc_group g = {0};
    io_waiter w = {.fd = set, .events = CONC_READABLE};
    io_open(IO_PIPE, p);
    CHECK_INT(epoll_ctl(set, EPOLL_CTL_ADD, p[0], &event), 0);
    CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!w.done);
    io_send(p[1], "x");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, CONC_READABLE);
    CHECK_INT(conc_close(set), 0);
    io_close(p);
}

#endif

/* ---- blocking mode ---- */

IO_TEST(a_descriptor_keeps_its_flags_before_while_and_after_it_is_used)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2], flags[2];
        conc_group g = {0};
        op_task t[2];
        io_open(kind, end);
        for (int i = 0; i < 2; i++)
            flags[i] = fcntl(end[i], F_GETFL);
        t[0] = (op_task){&ops[READ], end[0], 0, false};
        CHECK_INT(conc_spawn(&g, does_op, &t[0]), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(fcntl(end[0], F_GETFL), flags[0]);
        CHECK_INT(conc_write(end[1], "x", 1), 1);
        CHECK_INT(conc_settle(), 0);
        CHECK(t[0].done);
        io_fill(end[1]);
        t[1] = (op_task){&ops[WRITE], end[1], 0, false};
        CHECK_INT(conc_spawn(&g, does_op, &t[1]), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!t[1].done);
        CHECK_INT(fcntl(end[1], F_GETFL), flags[1]);
        io_drain(end[0]);
        CHECK_INT(conc_group_wait(&g), 0);
        for (int i = 0; i < 2; i++) {
            CHECK_OP(t[i].op, t[i].rc, 1);
            CHECK_INT(fcntl(end[i], F_GETFL), flags[i]);
        }
        io_close(end);
    }
}

/* Writers of `n` bytes each to end[1], and a reader of all the bytes. */
static void write_much(io_kind kind, int (*writes)(void *arg), int writers, size_t n)
{
    int end[2];
    conc_group g = {0};
    io_bulk w[4];
    size_t sum = 0;
    io_open(kind, end);
    for (int i = 0; i < writers; i++) {
        w[i] = (io_bulk){.fd = end[1], .n = n, .step = n};
        CHECK_INT(conc_spawn(&g, writes, &w[i]), 0);
    }
    while (sum < n * (size_t)writers) {
        char buf[7777];
        ssize_t rc = conc_read(end[0], buf, sizeof buf);
        CHECK(rc > 0);
        sum += (size_t)rc;
    }
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(sum, n * (size_t)writers);
    io_close(end);
}

static int writes_by_the_piece(void *arg)
{
    static const char big[200000];
    io_bulk *b = arg;
    while (b->moved < b->n) {
        ssize_t rc = conc_write(b->fd, big, b->n - b->moved);
        CHECK(rc > 0);
        b->moved += (size_t)rc;
    }
    return 0;
}

static int writes_parts_by_the_piece(void *arg)
{
    static char big[80000];
    io_bulk *b = arg;
    while (b->moved < b->n) {
        struct iovec parts[] = {{big, 3},     {big, 0},     {big, 5000},
                                {big, 70000}, {big, 70000}, {big, 70000}};
        size_t left = b->n - b->moved;
        for (size_t i = 0; i < CONC_LEN(parts); i++) {
            parts[i].iov_len = parts[i].iov_len < left ? parts[i].iov_len : left;
            left -= parts[i].iov_len;
        }
        ssize_t rc = conc_writev(b->fd, parts, CONC_LEN(parts));
        CHECK(rc > 0);
        b->moved += (size_t)rc;
    }
    return 0;
}

static int accepts(void *fd)
{
    int rc = conc_accept(*(int *)fd);
    return rc < 0 ? rc : conc_close(rc);
}

/* Another process that shares the listener accepts the connection, and leaves it in blocking
 * mode. */
static int takes_the_connection(void *fd)
{
    int l = *(int *)fd;
    CHECK_INT(conc_sleep(1), 0);
    io_set_blocking(l, true);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in where;
    socklen_t size = sizeof where;
    CHECK_INT(getsockname(l, (void *)&where, &size), 0);
    CHECK_INT(connect(s, (void *)&where, size), 0);
    int taken = accept(l, NULL, NULL);
    CHECK(taken >= 0);
    CHECK_INT(close(taken), 0);
    CHECK_INT(close(s), 0);
    return 0;
}

IO_TEST(a_listener_that_the_program_set_to_blocking_does_not_block_the_loop)
{
    int l = conc_listen("127.0.0.1:0");
    conc_group g = {0};
    CHECK(l >= 0);
    io_set_blocking(l, true);
    CHECK_INT(conc_spawn(&g, takes_the_connection, &l), 0);
    CHECK_INT(conc_timeout(5, accepts, &l), -ETIMEDOUT);
    CHECK_TIME(5);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(a_write_larger_than_a_pipe_does_not_block_the_loop)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        write_much(kind, io_writes_bulk, 1, 200000);
        write_much(kind, writes_by_the_piece, 1, 200000);
        write_much(kind, writes_parts_by_the_piece, 1, 200000);
    }
}

IO_TEST(several_writers_that_wake_for_the_same_room_do_not_block_the_loop)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        write_much(kind, io_writes_bulk, 4, 100000);
        write_much(kind, writes_parts_by_the_piece, 4, 100000);
    }
}

IO_TEST(a_descriptor_may_change_its_mode_between_two_calls)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2];
        io_open(kind, end);
        for (int round = 0; round < 6; round++) {
            conc_group g = {0};
            io_reader r = {.fd = end[0]};
            io_set_blocking(end[0], round % 2);
            CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
            CHECK_INT(conc_settle(), 0);
            CHECK(!r.done);
            io_send(end[1], "x");
            CHECK_INT(conc_group_wait(&g), 0);
            CHECK_INT(r.rc, 1);
        }
        io_close(end);
    }
}

/* Opens both ends of a terminal without line editing; returns false if there are none. */
static bool open_terminal(int end[2])
{
    struct termios t;
    end[0] = posix_openpt(O_RDWR | O_NOCTTY);
    if (end[0] < 0 || grantpt(end[0]) || unlockpt(end[0]))
        return false;
    end[1] = open(ptsname(end[0]), O_RDWR | O_NOCTTY);
    CHECK(end[1] >= 0);
    CHECK_INT(tcgetattr(end[1], &t), 0);
    cfmakeraw(&t);
    CHECK_INT(tcsetattr(end[1], TCSANOW, &t), 0);
    return true;
}

REAL_IO_TEST(a_terminal_keeps_its_flags_and_does_not_block_the_loop)
{
    int end[2];
    if (!open_terminal(end))
        return;
    for (int i = 0; i < 2; i++) {
        int flags = fcntl(end[i], F_GETFL);
        conc_group g = {0};
        io_reader r = {.fd = end[i], .n = 1};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!r.done);
        CHECK_INT(fcntl(end[i], F_GETFL), flags);
        CHECK_INT(conc_write(end[!i], "x", 1), 1);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, 1);
        CHECK_INT(r.buf[0], 'x');
        CHECK_INT(fcntl(end[i], F_GETFL), flags);
    }
    io_close(end);
}

/* Like a program's standard output with a slow reader. */
REAL_IO_TEST(writing_much_to_a_terminal_without_a_reader_does_not_block_the_loop)
{
    int end[2];
    conc_group g = {0};
    if (!open_terminal(end))
        return;
    io_bulk out = {.fd = end[1], .n = 50000, .step = 50000},
            in = {.fd = end[0], .n = 50000, .step = 50000};
    CHECK_INT(conc_spawn(&g, io_writes_bulk, &out), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn(&g, io_reads_bulk, &in), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    io_close(end);
}

/* ---- broken pipes ---- */

static void break_pipes(void)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        io_fill(end[1]);
        op_task waiting = {&ops[WRITE], end[1], 0, false};
        CHECK_INT(conc_spawn(&g, does_op, &waiting), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(conc_close(end[0]), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(waiting.rc, -EPIPE);
        for (size_t i = 0; i < OPS; i++)
            if (ops[i].writes && ops[i].moves && fits(&ops[i], kind))
                CHECK_OP(&ops[i], ops[i].call(end[1]), -EPIPE);
        CHECK_INT(conc_close(end[1]), 0);
    }
}

IO_TEST(writing_without_a_reader_is_an_error_and_no_signal) { break_pipes(); }

static void set_sigpipe(int how)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    CHECK_INT(pthread_sigmask(how, &set, NULL), 0);
}

static volatile sig_atomic_t pipe_signals;

static void count_pipe_signal(int number)
{
    (void)number;
    pipe_signals++;
}

TEST(a_program_that_had_blocked_sigpipe_finds_it_blocked_and_not_pending)
{
    set_sigpipe(SIG_BLOCK);
    io_run_each(break_pipes);
}

TEST(a_sigpipe_that_was_pending_before_the_run_is_pending_after_it)
{
    set_sigpipe(SIG_BLOCK);
    CHECK_INT(raise(SIGPIPE), 0);
    io_run_each(break_pipes);
}

TEST(a_handler_of_sigpipe_stays_and_is_not_called)
{
    struct sigaction mine = {.sa_handler = count_pipe_signal}, now;
    CHECK_INT(sigaction(SIGPIPE, &mine, NULL), 0);
    io_run_each(break_pipes);
    CHECK_INT(pipe_signals, 0);
    CHECK_INT(sigaction(SIGPIPE, NULL, &now), 0);
    CHECK(now.sa_handler == count_pipe_signal);
    CHECK_INT(raise(SIGPIPE), 0);
    CHECK_INT(pipe_signals, 1);
}

/* ---- errno ---- */

static int sets_errno(void *arg)
{
    for (int i = 0; i < 20; i++) {
        errno = *(int *)arg;
        CONC_TRY(conc_yield());
        CHECK_INT(errno, *(int *)arg);
    }
    return 0;
}

static void check_errno_of_op(const op *o, int fd, ssize_t expected)
{
    errno = 77;
    ssize_t rc = o->call(fd);
    int number = errno;
    CHECK_OP(o, rc, expected);
    CHECK_OP(o, number, 77);
}

IO_TEST(calls_preserve_errno)
{
    int s[2];
    io_open(IO_SOCKET, s);
    for (size_t i = 0; i < OPS; i++) {
        conc_group g = {0};
        op_task t = {&ops[i], s[0], 0, false};
        check_errno_of_op(&ops[i], -1, -EBADF);
        io_fill(s[0]);
        io_drain(s[0]);
        CHECK_INT(conc_spawn(&g, sets_errno, &(int){5}), 0);
        CHECK_INT(conc_spawn(&g, does_op, &t), 0);
        errno = 78;
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(errno, 78);
        ops[i].writes ? (void)io_drain(s[1]) : io_send(s[1], "xx");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_OP(t.op, t.rc, 1);
        check_errno_of_op(&ops[i], s[0], 1);
    }
    errno = 79;
    CHECK_INT(conc_close(-1), -EBADF);
    CHECK_INT(errno, 79);
    io_close(s);
}

static int keeps_errno_while_it_waits(void *arg)
{
    op_task *t = arg;
    errno = 81;
    t->rc = t->op->call(t->fd);
    CHECK_INT(errno, 81);
    return 0;
}

IO_TEST(errno_is_the_task_s_own_while_it_waits)
{
    int s[2];
    conc_group g = {0};
    op_task t[OPS];
    io_open(IO_FREE_SOCKET, s);
    io_fill(s[0]);
    for (size_t i = 0; i < OPS; i++) {
        t[i] = (op_task){&ops[i], s[0], 0, false};
        CHECK_INT(conc_spawn(&g, keeps_errno_while_it_waits, &t[i]), 0);
    }
    CHECK_INT(conc_spawn(&g, sets_errno, &(int){5}), 0);
    CHECK_INT(conc_settle(), 0);
    io_drain(s[1]);
    io_send(s[1], "123456");
    CHECK_INT(conc_group_wait(&g), 0);
    check_ops(t, 1);
    io_close(s);
}

/* ---- closing ---- */

IO_TEST(conc_close_wakes_all_waiters_in_both_directions)
{
    for (io_kind kind = IO_SOCKET; kind < IO_CONC; kind++) {
        int s[2];
        conc_group g = {0};
        op_task t[OPS];
        io_open(kind, s);
        start_ops(&g, t, s[0]);
        CHECK_INT(conc_close(s[0]), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        check_ops(t, -EBADF);
        CHECK_INT(conc_close(s[0]), -EBADF);
        CHECK_INT(conc_close(s[1]), 0);
        CHECK_TIME(0);
    }
}

IO_TEST(a_waiter_of_a_descriptor_opened_by_conc_is_woken_by_conc_close)
{
    int s[2];
    conc_group g = {0};
    op_task t[OPS];
    io_open(IO_CONC, s);
    for (size_t i = 0; i < OPS; i++) {
        t[i] = (op_task){&ops[i], s[0], 0, ops[i].writes};
        if (!ops[i].writes)
            CHECK_INT(conc_spawn(&g, does_op, &t[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_close(s[0]), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (size_t i = 0; i < OPS; i++)
        CHECK_OP(t[i].op, t[i].rc, ops[i].writes ? 0 : -EBADF);
    CHECK_INT(conc_close(s[1]), 0);
}

IO_TEST(a_close_is_seen_although_bytes_came_just_before_it)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        io_reader r = {.fd = end[0]};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_settle(), 0);
        io_send(end[1], "x");
        CHECK_INT(conc_close(end[0]), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, -EBADF);
        CHECK_INT(conc_close(end[1]), 0);
    }
}

IO_TEST(a_waiter_of_a_closed_descriptor_leaves_the_next_one_with_its_number_alone)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2], next[2];
        conc_group g = {0};
        io_open(kind, end);
        io_open(IO_PIPE, next);
        io_reader r = {.fd = end[0]};
        io_waiter w = {.fd = end[0], .events = CONC_READABLE};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(conc_close(end[0]), 0);
        CHECK_INT(dup2(next[0], end[0]), end[0]);
        io_send(next[1], "new");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, -EBADF);
        CHECK_INT(w.rc, -EBADF);
        io_expect(end[0], "new");
        io_close(end);
        io_close(next);
    }
}

IO_TEST(a_number_of_a_descriptor_of_concs_can_be_reused_for_any_file)
{
    int s[2];
    io_open(IO_CONC, s);
    io_send(s[1], "x");
    io_expect(s[0], "x");
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        if (kind == 0)
            CHECK_INT(conc_close(s[0]), 0);
        /* each dup2 after the first plainly closes the previous descriptor */
        CHECK_INT(dup2(end[0], s[0]), s[0]);
        CHECK_INT(close(end[0]), 0);
        int flags = fcntl(s[0], F_GETFL);
        io_reader r = {.fd = s[0]};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!r.done);
        CHECK_INT(fcntl(s[0], F_GETFL), flags);
        io_send(end[1], "abc");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, 3);
        CHECK_INT(close(end[1]), 0);
    }
    CHECK_INT(close(s[0]), 0);
    CHECK_INT(conc_close(s[1]), 0);
}

/* Closes descriptors that others wait for, like code that does not know conc. */
SLOW_IO_TEST(a_plain_close_wakes_waiters)
{
    int s[2], p[2];
    conc_group g = {0};
    op_task t[OPS];
    io_open(IO_SOCKET, s);
    io_open(IO_PIPE, p);
    double start = test_real_seconds();
    io_reader r = {.fd = p[0]};
    CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
    start_ops(&g, t, s[0]);
    CHECK_INT(close(s[0]), 0);
    CHECK_INT(close(p[0]), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(test_real_seconds() - start < 10);
    check_ops(t, -EBADF);
    CHECK_INT(r.rc, -EBADF);
    CHECK_INT(close(s[1]), 0);
    CHECK_INT(close(p[1]), 0);
}

static int closed_by_handler;

static void close_in_handler(int number)
{
    (void)number;
    close(closed_by_handler);
}

/* The loop sleeps, and no other thread could have closed it. */
SLOW_IO_TEST(a_plain_close_in_a_signal_handler_wakes_waiters)
{
    int p[2];
    struct itimerval later = {{0, 0}, {0, 600000}};
    struct sigaction handler = {.sa_handler = close_in_handler}, before;
    io_open(IO_PIPE, p);
    closed_by_handler = p[0];
    CHECK_INT(sigaction(SIGALRM, &handler, &before), 0);
    CHECK_INT(setitimer(ITIMER_REAL, &later, NULL), 0);
    CHECK_INT(conc_wait_fd(p[0], CONC_READABLE), -EBADF);
    CHECK_INT(sigaction(SIGALRM, &before, NULL), 0);
    CHECK_INT(close(p[1]), 0);
}

/* The clock always moves on, but does not jump over the close. */
static void check_plain_close(double step)
{
    int p[2];
    conc_group g = {0};
    io_open(IO_PIPE, p);
    io_reader r = {.fd = p[0]};
    CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
    CHECK_INT(conc_sleep(100), 0);
    CHECK_INT(close(p[0]), 0);
    double start = conc_now();
    do
        CHECK_INT(conc_sleep(step), 0);
    while (!r.done && conc_now() - start < 10);
    CHECK(r.done);
    CHECK(conc_now() - start <= 0.2501 + step);
    CHECK_INT(r.rc, -EBADF);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(close(p[1]), 0);
}

IO_TEST(a_plain_close_is_seen_on_the_virtual_clock_in_a_quarter_of_a_second_of_its_time)
{
    check_plain_close(0.001);
    check_plain_close(0.3);
    check_plain_close(1000);
}

/* All of them, if the clock jumps so far. */
IO_TEST(a_plain_close_of_one_of_many_is_seen_before_the_virtual_clock_jumps_far)
{
    enum { MANY = 1200 };
    static io_reader r[MANY];
    int p[2];
    conc_group g = {0};
    struct rlimit limit;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    io_open(IO_PIPE, p);
    for (int i = 0; i < MANY; i++) {
        r[i] = (io_reader){.fd = dup(p[0])};
        CHECK(r[i].fd >= 0);
        CHECK_INT(conc_spawn(&g, io_reads, &r[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(close(r[MANY / 2].fd), 0);
    CHECK_INT(conc_sleep(1000), 0);
    CHECK(r[MANY / 2].done);
    CHECK_INT(r[MANY / 2].rc, -EBADF);
    CHECK(!r[0].done && !r[MANY - 1].done);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < MANY; i++)
        if (i != MANY / 2)
            CHECK_INT(close(r[i].fd), 0);
    io_close(p);
}

SLOW_IO_TEST(
    who_waited_for_a_plainly_closed_descriptor_takes_nothing_from_the_next_one_of_its_number)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2], next[2];
        conc_group g = {0};
        io_open(kind, end);
        io_open(kind, next);
        io_reader r = {.fd = end[0]};
        io_waiter w = {.fd = end[0], .events = CONC_READABLE};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(dup2(next[0], end[0]), end[0]); /* closes it, and takes its number */
        io_send(next[1], "new");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, -EBADF);
        CHECK_INT(w.rc, -EBADF);
        io_expect(end[0], "new");
        io_close(end);
        io_close(next);
    }
}

SLOW_IO_TEST(the_new_owner_of_a_number_waits_beside_the_old_one)
{
    int p[2], next[2];
    conc_group g = {0};
    io_open(IO_PIPE, p);
    io_open(IO_PIPE, next);
    io_reader old = {.fd = p[0]}, young = {.fd = p[0]};
    CHECK_INT(conc_spawn(&g, io_reads, &old), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(dup2(next[0], p[0]), p[0]);
    CHECK_INT(conc_spawn(&g, io_reads, &young), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!young.done);
    io_send(next[1], "new");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(old.rc, -EBADF);
    CHECK_INT(young.rc, 3);
    CHECK_STR(young.buf, "new");
    io_close(p);
    io_close(next);
}

REAL_IO_TEST(events_of_a_numbers_former_file_do_not_end_a_wait_of_the_next)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2], next[2];
        conc_group g = {0};
        conc_task task;
        io_open(kind, end);
        io_open(kind, next);
        int copy = dup(end[0]); /* so that the previous file still exists, and still has events */
        io_waiter old = {.fd = end[0], .events = CONC_READABLE}, young = old;
        CHECK_INT(conc_spawn_task(&g, &task, io_waits, &old), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(conc_cancel(&task), 0);
        CHECK_INT(conc_join(&task, NULL), 0);
        CHECK_INT(dup2(next[0], end[0]), end[0]);
        CHECK_INT(conc_spawn(&g, io_waits, &young), 0);
        CHECK_INT(conc_settle(), 0);
        io_send(end[1], "old");
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(conc_sleep(0.02), 0);
        CHECK(!young.done);
        io_send(next[1], "new");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(young.rc, CONC_READABLE);
        CHECK_INT(close(copy), 0);
        io_close(end);
        io_close(next);
    }
}

/* ---- closed by another thread while the loop sleeps ---- */

static void pause_for(double seconds)
{
    struct timespec t = {0, (long)(seconds * 1e9)};
    nanosleep(&t, NULL);
}

typedef struct closer {
    conc_loop *loop;
    int fd;
} closer;

static void closes_plainly(void *fd) { CHECK_INT(close(*(int *)fd), 0); }

/* Late enough for the loop to have checked everything and gone to sleep. */
static void *posts_a_close(void *arg)
{
    closer *c = arg;
    pause_for(0.7);
    CHECK_INT(conc_post(c->loop, closes_plainly, &c->fd), 0);
    CHECK_INT(conc_loop_release(c->loop), 0);
    return NULL;
}

SLOW_IO_TEST(a_plain_close_in_a_posted_function_wakes_waiters)
{
    int p[2];
    pthread_t thread;
    conc_group g = {0};
    io_open(IO_PIPE, p);
    io_reader r = {.fd = p[0]};
    closer c = {conc_loop_self(), p[0]};
    CHECK_INT(conc_loop_hold(c.loop), 0);
    CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
    CHECK_INT(pthread_create(&thread, NULL, posts_a_close, &c), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(r.rc, -EBADF);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(close(p[1]), 0);
}

SLOW_IO_TEST(a_plain_close_wakes_waiters_in_a_loop_that_is_never_idle)
{
    int p[2];
    conc_group g = {0};
    io_open(IO_PIPE, p);
    io_reader r = {.fd = p[0]};
    CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(close(p[0]), 0);
    double start = test_real_seconds();
    while (!r.done && test_real_seconds() - start < 10)
        CHECK_INT(conc_yield(), 0);
    CHECK(r.done);
    CHECK_INT(r.rc, -EBADF);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(close(p[1]), 0);
}

static void *closes_in_a_thread(void *fd)
{
    CHECK_INT(conc_close(*(int *)fd), 0);
    return NULL;
}

/* A connection may be handed over to another thread, which closes it properly there. */
SLOW_IO_TEST(a_number_whose_last_connection_was_closed_in_another_thread_serves_again)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int s[2], next[2];
        pthread_t thread;
        conc_group g = {0};
        io_open(IO_CONC, s);
        io_open(kind, next);
        io_reader r = {.fd = s[0]};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_settle(), 0);
        io_send(s[1], "old");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, 3);
        CHECK_INT(pthread_create(&thread, NULL, closes_in_a_thread, &s[0]), 0);
        CHECK_INT(pthread_join(thread, NULL), 0);
        CHECK_INT(dup2(next[0], s[0]), s[0]);
        io_reader young = {.fd = s[0]};
        conc_group h = {0};
        CHECK_INT(conc_spawn(&h, io_reads, &young), 0);
        CHECK_INT(conc_sleep(0.3), 0);
        CHECK(!young.done);
        io_send(next[1], "new");
        CHECK_INT(conc_group_wait(&h), 0);
        CHECK_INT(young.rc, 3);
        io_close(s);
        io_close(next);
    }
}

static int closes_in_a_task(void *fd)
{
    CHECK_INT(conc_close(*(int *)fd), 0);
    return 0;
}

static void *closes_in_a_loop(void *fd)
{
    CHECK_INT(conc_run(closes_in_a_task, fd), 0);
    return NULL;
}

static void *closes_while_the_loop_sleeps(void *fd)
{
    poll(NULL, 0, 50); /* if it came earlier, the wait would end sooner */
    return closes_in_a_thread(fd);
}

/* Two tasks wait for one of conc's connections, which is closed there. */
static void wait_for_a_close(void *(*closes)(void *), bool joins)
{
    int s[2];
    pthread_t thread;
    conc_group g = {.keep_going = true};
    conc_scope limit = {0};
    io_open(IO_CONC, s);
    io_reader first = {.fd = s[0]}, second = {.fd = s[0]};
    CHECK_INT(conc_scope_begin(&limit, 10), 0);
    CHECK_INT(conc_spawn(&g, io_reads, &first), 0);
    CHECK_INT(conc_spawn(&g, io_reads, &second), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(pthread_create(&thread, NULL, closes, &s[0]), 0);
    if (joins)
        CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(conc_scope_end(&limit, conc_group_wait(&g)), 0);
    CHECK_INT(first.rc, -EBADF);
    CHECK_INT(second.rc, -EBADF);
    if (!joins)
        CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(conc_close(s[1]), 0);
}

IO_TEST(a_conc_close_in_another_thread_wakes_waiters)
{
    wait_for_a_close(closes_in_a_thread, true);
    wait_for_a_close(closes_in_a_loop, true);
}

SLOW_IO_TEST(a_conc_close_in_another_thread_wakes_a_loop_that_sleeps)
{
    wait_for_a_close(closes_while_the_loop_sleeps, false);
}

static int serves_it(void *server) { return conc_serve((conc_server *)server); }

/* Loops in several threads, each of whose connections any thread may close, so that another soon
 * reuses the number. */
enum { CLOSERS = 3, CONNECTIONS = 100 };

static struct closers {
    pthread_mutex_t mutex;
    char where[64];
    int open[CLOSERS * CONNECTIONS], count, working;
    atomic_int lost;
} closers = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void offer_to_close(int fd)
{
    pthread_mutex_lock(&closers.mutex);
    closers.open[closers.count++] = fd;
    pthread_mutex_unlock(&closers.mutex);
}

/* Returns false once every connection was made and has been closed. */
static bool close_one(bool is_done)
{
    pthread_mutex_lock(&closers.mutex);
    closers.working -= is_done;
    int which = closers.count ? rand() % closers.count : -1, fd = -1;
    if (which >= 0) {
        fd = closers.open[which];
        closers.open[which] = closers.open[--closers.count];
    }
    bool more = fd >= 0 || closers.working;
    pthread_mutex_unlock(&closers.mutex);
    if (fd >= 0)
        CHECK_INT(conc_close(fd), 0);
    return more;
}

static int waits_for_its_close(void *fd)
{
    io_reader r = {.fd = *(int *)fd};
    conc_timeout(10, io_reads, &r);
    closers.lost += r.rc != -EBADF;
    return 0;
}

static int connects_and_closes(void *arg)
{
    int fds[CONNECTIONS];
    conc_group g = {0};
    (void)arg;
    for (int i = 0; i < CONNECTIONS; i++) {
        fds[i] = CONC_TRY_IN(&g, conc_dial(closers.where));
        CONC_TRY_IN(&g, conc_spawn(&g, waits_for_its_close, &fds[i]));
        CONC_TRY_IN(&g, conc_yield());
        offer_to_close(fds[i]);
        if (i % 2)
            close_one(false);
    }
    for (bool more = close_one(true); more; more = close_one(false))
        CONC_TRY_IN(&g, conc_sleep(0.0001));
    return conc_group_wait(&g);
}

static void *runs_connects_and_closes(void *arg)
{
    CHECK_INT(conc_run(connects_and_closes, NULL), 0);
    return arg;
}

static int waits_for_the_peers_close(int fd, void *arg)
{
    char c;
    (void)arg;
    CHECK(conc_read(fd, &c, 1) <= 0);
    return 0;
}

SLOW_IO_TEST(connections_that_any_thread_closes_wake_their_waiters_and_are_not_confused)
{
    pthread_t threads[CLOSERS];
    conc_group g = {0};
    int l = conc_listen("127.0.0.1:0");
    conc_server s = {.fd = l, .handler = waits_for_the_peers_close};
    CHECK_INT(conc_address(l, false, closers.where, sizeof closers.where), 0);
    CHECK_INT(conc_spawn(&g, serves_it, &s), 0);
    int working = closers.working = CLOSERS;
    closers.lost = 0;
    for (int i = 0; i < CLOSERS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, runs_connects_and_closes, NULL), 0);
    do {
        CHECK_INT(conc_sleep(0.01), 0);
        pthread_mutex_lock(&closers.mutex);
        working = closers.working;
        pthread_mutex_unlock(&closers.mutex);
    } while (working);
    for (int i = 0; i < CLOSERS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    CHECK_INT(closers.lost, 0);
    CHECK_INT(conc_close(s.fd), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* Closes numbers that are not open but equal fd modulo powers of two. */
static void *closes_strays(void *fd)
{
    for (int shift = 8; shift < 24; shift++)
        CHECK_INT(conc_close(*(int *)fd + (1 << shift)), -EBADF);
    return NULL;
}

static void close_strays(int fd)
{
    pthread_t thread;
    CHECK_INT(pthread_create(&thread, NULL, closes_strays, &fd), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
}

static int reads_after_strays(int fd, void *arg)
{
    char c;
    close_strays(*(int *)arg);
    close_strays(fd);
    ssize_t n = conc_read(fd, &c, 1);
    return n < 0 ? (int)n : 0;
}

/* As many connections are opened and closed while a server runs. */
static void be_served(int l, int times)
{
    char where[128], c;
    CHECK_INT(conc_address(l, false, where, sizeof where), 0);
    for (int i = 0; i < times; i++) {
        int fd = conc_dial(where);
        CHECK(fd >= 0);
        CHECK_INT(conc_write(fd, "x", 1), 1);
        CHECK(conc_read(fd, &c, 1) <= 0); /* the server has closed it */
        CHECK_INT(conc_close(fd), 0);
    }
}

IO_TEST(a_close_of_another_number_in_another_thread_ends_no_serving_and_leaks_nothing)
{
    conc_group g = {0};
    conc_task t;
    int l = conc_listen("127.0.0.1:0"), result = 77;
    conc_server s = {.fd = l, .handler = reads_after_strays, .arg = &l};
    CHECK_INT(conc_spawn_task(&g, &t, serves_it, &s), 0);
    close_strays(l);
    CHECK_INT(conc_settle(), 0);
    int fds = test_count_fds();
    be_served(l, 5);
    CHECK(!conc_done(&t));
    CHECK_INT(test_count_fds(), fds);
    CHECK_INT(conc_close(l), 0);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* The same for numbers beyond those that are counted one by one, if the system allows them. */
#ifdef __linux__
static void serve_high_numbers(void)
{
    enum { FIRST = 65536 };
    struct rlimit limit = {FIRST + 300, FIRST + 300};
    if (setrlimit(RLIMIT_NOFILE, &limit))
        return; /* the system does not allow it */
    int fd = -1, null = open("/dev/null", O_RDONLY);
    while ((fd = fcntl(null, F_DUPFD, 0)) < FIRST - 1)
        CHECK(fd >= 0);
    int last = fd, l = conc_listen("127.0.0.1:0");
    conc_group g = {0};
    conc_task t;
    conc_server s = {.fd = l, .handler = reads_after_strays, .arg = &l};
    CHECK(l >= FIRST);
    CHECK_INT(conc_spawn_task(&g, &t, serves_it, &s), 0);
    close_strays(l);
    CHECK_INT(conc_settle(), 0);
    be_served(l, 3);
    CHECK(!conc_done(&t));
    int next = dup(null);
    CHECK_INT(next, l + 1);
    CHECK_INT(close(next), 0);
    CHECK_INT(conc_close(l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (fd = null; fd <= last; fd++)
        close(fd);
}

TEST(a_close_of_another_number_in_another_thread_ends_no_serving_of_high_numbers_either)
{
    io_run(serve_high_numbers, NULL, true);
}
#endif

/* The connection is handed over to another thread, which closes it; when the handler returns,
 * another file has its number. */
static int hands_over(int fd, void *arg)
{
    pthread_t thread;
    char c;
    bool waits = *(int *)arg & 1;
    if (waits)
        CHECK_INT(conc_read(fd, &c, 1), 1);
    CHECK_INT(pthread_create(&thread, NULL, closes_in_a_thread, &fd), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(dup2(0, fd), fd);
    *(int *)arg = fd;
    return 0;
}

IO_TEST(a_number_that_was_closed_in_another_thread_is_not_closed_after_the_handler)
{
    for (int waits = 0; waits < 2; waits++) {
        conc_group g = {0};
        int l = conc_listen("127.0.0.1:0"), number = waits;
        conc_server s = {.fd = l, .handler = hands_over, .arg = &number};
        CHECK_INT(conc_spawn(&g, serves_it, &s), 0);
        CHECK_INT(conc_settle(), 0);
        be_served(l, 1);
        CHECK_INT(conc_settle(), 0);
        CHECK(fcntl(number, F_GETFD) >= 0);
        CHECK_INT(close(number), 0);
        CHECK_INT(conc_close(l), 0);
        CHECK_INT(conc_group_wait(&g), 0);
    }
}

/* ---- closed within a batch ---- */

/* Two readers whose bytes arrive in one batch; the first to run closes the other's descriptor and
 * opens a new one with its number. */
typedef struct batch_reader {
    io_reader r;
    struct batch_reader *other;
    bool plainly, was_first;
    int next;
} batch_reader;

static int reads_and_closes_the_other(void *arg)
{
    batch_reader *b = arg;
    io_reads(&b->r);
    if (b->other->was_first)
        return 0;
    b->was_first = true;
    CHECK_INT(b->r.rc, 1);
    if (!b->plainly)
        CHECK_INT(conc_close(b->other->r.fd), 0);
    CHECK_INT(dup2(b->next, b->other->r.fd), b->other->r.fd);
    return 0;
}

static void close_within_a_batch(io_kind kind, io_kind next_kind, bool plainly)
{
    int one[2], two[2], next[2];
    conc_group g = {0};
    io_open(kind, one);
    io_open(kind, two);
    io_open(next_kind, next);
    batch_reader b[2] = {{.r.fd = one[0]}, {.r.fd = two[0]}};
    for (int i = 0; i < 2; i++) {
        b[i].other = &b[!i];
        b[i].plainly = plainly;
        b[i].next = next[0];
        CHECK_INT(conc_spawn(&g, reads_and_closes_the_other, &b[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
    io_send(one[1], "1");
    io_send(two[1], "2");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(b[0].was_first + b[1].was_first, 1);
    batch_reader *second = &b[b[0].was_first];
    if (second->r.rc != -EBADF) { /* it was not too late */
        CHECK_INT(second->r.rc, 1);
        CHECK_INT(second->r.buf[0], second == b ? '1' : '2');
    }
    io_send(next[1], "new");
    io_expect(second->r.fd, "new");
    io_close(one);
    io_close(two);
    io_close(next);
}

IO_TEST(a_descriptor_closed_and_replaced_by_a_task_of_the_same_batch_is_not_confused)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++)
        for (io_kind next = 0; next < IO_KINDS; next++)
            close_within_a_batch(kind, next, false);
}

SLOW_IO_TEST(a_descriptor_plainly_replaced_by_a_task_of_the_same_batch_is_not_confused)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++)
        close_within_a_batch(kind, IO_PIPE, true);
}

/* ---- no spinning ---- */

/* The loop sleeps for a while: it may check its descriptors now and then, but not all the time. */
static void check_rest(void)
{
    uint64_t before = io_polls();
    CHECK_INT(conc_sleep(0.05), 0);
    CHECK(io_polls() - before < 20);
}

SLOW_IO_TEST(a_copy_of_a_closed_descriptor_does_not_make_the_loop_spin)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        for (int plainly = 0; plainly <= (kind != IO_CONC); plainly++) {
            int end[2];
            conc_group g = {0};
            io_open(kind, end);
            int copy = dup(end[0]);
            io_reader r = {.fd = end[0]};
            CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
            CHECK_INT(conc_settle(), 0);
            CHECK_INT(plainly ? close(end[0]) : conc_close(end[0]), 0);
            io_send(end[1], "xyz");
            check_rest();
            CHECK_INT(conc_group_wait(&g), 0);
            CHECK_INT(r.rc, -EBADF);
            check_rest();
            io_expect(copy, "xyz");
            CHECK_INT(conc_close(copy), 0);
            CHECK_INT(conc_close(end[1]), 0);
        }
    }
}

SLOW_IO_TEST(unawaited_bytes_do_not_make_the_loop_spin)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        conc_task task;
        io_open(kind, end);
        io_reader r = {.fd = end[0]};
        CHECK_INT(conc_spawn_task(&g, &task, io_reads, &r), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(conc_cancel(&task), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, -ECANCELED);
        io_send(end[1], "xyz");
        check_rest();
        io_expect(end[0], "xy");
        check_rest();
        CHECK_INT(conc_close(end[1]), 0);
        check_rest();
        CHECK_INT(conc_close(end[0]), 0);
    }
}

SLOW_IO_TEST(a_direction_that_is_always_ready_does_not_spin_beside_one_that_is_waited_for)
{
    for (io_kind kind = IO_SOCKET; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        io_reader r = {.fd = end[0]};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_settle(), 0);
        for (int i = 0; i < 3; i++)
            CHECK_INT(conc_wait_fd(end[0], CONC_WRITABLE), CONC_WRITABLE);
        check_rest();
        io_send(end[1], "x");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, 1);
        io_close(end);
    }
}

/* ---- cancelling ---- */

IO_TEST(a_cancelled_wait_has_no_effect)
{
    for (int round = 0; round < 2; round++) {
        int s[2];
        conc_group g = {0};
        op_task t[OPS];
        io_open(IO_FREE_SOCKET, s);
        CHECK_INT(conc_group_begin(&g), 0);
        start_ops(&g, t, s[0]);
        conc_group_cancel(&g);
        if (round) { /* in the same tick, and too late */
            io_send(s[1], "x");
            io_drain(s[1]);
        }
        CHECK_INT(conc_group_wait(&g), 0);
        check_ops(t, -ECANCELED);
        CHECK_INT(io_available(s[0]), round);
        if (round)
            CHECK_INT(io_available(s[1]), 0);
        io_close(s);
    }
}

IO_TEST(a_wait_that_timed_out_has_no_effect)
{
    int s[2];
    double now = 0;
    io_open(IO_SOCKET, s);
    size_t full = io_fill(s[0]);
    for (size_t i = 0; i < OPS; i++) {
        op_task t = {&ops[i], s[0], 0, false};
        CHECK_OP(t.op, conc_timeout(2, does_op_to_its_result, &t), -ETIMEDOUT);
        CHECK_TIME(now += 2);
    }
    CHECK_INT(io_drain(s[1]), full);
    io_send(s[1], "abc");
    io_expect(s[0], "abc");
    io_close(s);
}

IO_TEST(in_a_cancelled_scope_nothing_is_moved)
{
    int s[2];
    conc_scope scope = {0};
    io_open(IO_SOCKET, s);
    io_send(s[1], "abc");
    CHECK_INT(conc_scope_begin(&scope, CONC_FOREVER), 0);
    conc_scope_cancel(&scope);
    for (size_t i = 0; i < OPS; i++)
        CHECK_OP(&ops[i], ops[i].call(s[0]), -ECANCELED);
    CHECK_INT(conc_scope_end(&scope, -ECANCELED), 0);
    CHECK_INT(io_available(s[1]), 0);
    io_expect(s[0], "abc");
    io_close(s);
}

IO_TEST(some_of_many_waiters_of_one_descriptor_may_be_cancelled)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        conc_task tasks[CROWD];
        io_waiter w[CROWD];
        io_open(kind, end);
        for (int i = 0; i < CROWD; i++) {
            w[i] = (io_waiter){.fd = end[0], .events = CONC_READABLE};
            CHECK_INT(conc_spawn_task(&g, &tasks[i], io_waits, &w[i]), 0);
        }
        CHECK_INT(conc_settle(), 0);
        for (int i = 0; i < CROWD; i += 1 + i % 3)
            CHECK_INT(conc_cancel(&tasks[i]), 0);
        io_send(end[1], "x");
        CHECK_INT(conc_group_wait(&g), 0);
        bool cancelled[CROWD] = {false};
        for (int i = 0; i < CROWD; i += 1 + i % 3)
            cancelled[i] = true;
        for (int i = 0; i < CROWD; i++)
            CHECK_INT(w[i].rc, cancelled[i] ? -ECANCELED : CONC_READABLE);
        io_close(end);
    }
}

/* {the byte arrives; some turns pass; cancel}: the reader has the byte, or it can still be read. */
static void race_reader(io_kind kind, const op *o, int turns)
{
    int end[2];
    conc_group g = {0};
    conc_task task;
    io_open(kind, end);
    op_task t = {o, end[0], 0, false};
    CHECK_INT(conc_spawn_task(&g, &task, does_op, &t), 0);
    CHECK_INT(conc_settle(), 0);
    io_send(end[1], "x");
    for (int i = 0; i < turns; i++)
        CHECK_INT(conc_yield(), 0);
    (void)conc_cancel(&task);
    CHECK_INT(conc_group_wait(&g), 0);
    if (t.rc != -ECANCELED)
        CHECK_OP(o, t.rc, 1);
    if (o->moves && t.rc == 1)
        CHECK_INT(io_available(end[0]), 0);
    else
        io_expect(end[0], "x");
    io_close(end);
}

/* {a slot is freed; some turns pass; cancel}: the byte was sent, or it was not. */
static void race_writer(io_kind kind, const op *o, int turns)
{
    int end[2];
    conc_group g = {0};
    conc_task task;
    io_open(kind, end);
    io_fill(end[1]);
    op_task t = {o, end[1], 0, false};
    CHECK_INT(conc_spawn_task(&g, &task, does_op, &t), 0);
    CHECK_INT(conc_settle(), 0);
    io_drain(end[0]);
    for (int i = 0; i < turns; i++)
        CHECK_INT(conc_yield(), 0);
    (void)conc_cancel(&task);
    CHECK_INT(conc_group_wait(&g), 0);
    if (t.rc != -ECANCELED)
        CHECK_OP(o, t.rc, 1);
    CHECK_INT(io_available(end[0]), o->moves && t.rc == 1);
    io_close(end);
}

IO_TEST(if_bytes_and_a_cancel_come_together_none_is_lost)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++)
        for (size_t i = 0; i < OPS; i++)
            for (int turns = 0; turns < 4; turns++)
                if (fits(&ops[i], kind))
                    (ops[i].writes ? race_writer : race_reader)(kind, &ops[i], turns);
    for (size_t i = 0; i < OPS; i++)
        for (int turns = 0; turns < 4; turns++)
            if (!ops[i].writes)
                race_reader(IO_CONC, &ops[i], turns);
}

IO_TEST(a_read_inside_a_scope_that_is_cancelled_from_outside_loses_nothing)
{
    int p[2];
    conc_scope s = {0};
    conc_group g = {0};
    io_open(IO_PIPE, p);
    io_reader other = {.fd = p[0], .n = 1};
    CHECK_INT(conc_spawn(&g, io_reads, &other), 0);
    CHECK_INT(conc_scope_begin(&s, 3), 0);
    CHECK_INT(conc_read(p[0], op_room, 1), -ECANCELED);
    CHECK_INT(conc_read(p[0], op_room, 1), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    CHECK_TIME(3);
    CHECK(!other.done);
    io_send(p[1], "12");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(other.rc, 1);
    io_expect(p[0], "2");
    io_close(p);
}

static int reads_forever(void *arg)
{
    io_reader *r = arg;
    io_reads(r);
    return (int)r->rc;
}

static io_reader left_behind;
static int left_open[2];

static void leave_a_reader(void)
{
    left_behind = (io_reader){.fd = left_open[0]};
    CHECK_INT(conc_spawn(NULL, reads_forever, &left_behind), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!left_behind.done);
}

TEST(the_end_of_the_run_cancels_waiters_and_the_descriptor_works_in_the_next_run)
{
    CHECK_INT(pipe(left_open), 0);
    io_run_each(leave_a_reader);
    CHECK_INT(left_behind.rc, -ECANCELED);
    io_run_each(leave_a_reader);
    CHECK_INT(close(left_open[0]), 0);
    CHECK_INT(close(left_open[1]), 0);
}

static void open_for_later(void) { io_open(IO_CONC, left_open); }

static void use_from_earlier(void)
{
    conc_group g = {0};
    io_reader r = {.fd = left_open[0]};
    CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!r.done);
    CHECK_INT(conc_write(left_open[1], "x", 1), 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(r.rc, 1);
}

static int calls_body(void *body)
{
    (*(void (**)(void))body)();
    return 0;
}

TEST(a_descriptor_opened_in_one_run_works_in_the_next_and_is_closed_after_it)
{
    int fds = test_count_fds();
    void (*body)(void) = open_for_later;
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_run(calls_body, &body), 0);
        io_run_each(use_from_earlier);
        io_close(left_open);
        CHECK_INT(conc_close(left_open[0]), -EBADF);
        CHECK_INT(test_count_fds(), fds);
    }
}

/* ---- full transfers ---- */

typedef struct whole {
    int fd;
    size_t n;
    ssize_t rc, next;
} whole;

static char whole_room[400000];

static int reads_the_whole(void *arg)
{
    whole *w = arg;
    w->rc = conc_read_full(w->fd, whole_room, w->n);
    w->next = conc_read_full(w->fd, whole_room, 1);
    return 0;
}

static int writes_the_whole(void *arg)
{
    whole *w = arg;
    w->rc = conc_write_full(w->fd, whole_room, w->n);
    w->next = conc_write_full(w->fd, whole_room, 1);
    return 0;
}

static int reads_a_part(void *arg)
{
    whole *w = arg;
    w->rc = conc_read_full(w->fd, whole_room, w->n);
    return 0;
}

static int writes_a_part(void *arg)
{
    whole *w = arg;
    w->rc = conc_write_full(w->fd, whole_room, w->n);
    return 0;
}

IO_TEST(a_read_full_waits_for_all_of_its_bytes)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        whole w = {.fd = end[0], .n = 6};
        CHECK_INT(conc_spawn(&g, reads_the_whole, &w), 0);
        for (int i = 0; i < 3; i++) {
            CHECK_INT(conc_settle(), 0);
            CHECK_INT(w.rc, 0);
            io_send(end[1], "xy");
        }
        io_send(end[1], "z");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(w.rc, 6);
        CHECK_INT(w.next, 1);
        io_close(end);
    }
}

IO_TEST(a_read_full_returns_what_came_before_the_end_a_cancel_or_an_error)
{
    enum { END, CANCEL, CLOSE, CASES };
    static const ssize_t next[] = {0, -ECANCELED, -EBADF};
    for (int what = 0; what < CASES; what++) {
        for (int bytes = 0; bytes < 2; bytes++) {
            int p[2];
            conc_group g = {0};
            conc_task task;
            io_open(IO_PIPE, p);
            whole w = {.fd = p[0], .n = 10};
            CHECK_INT(conc_spawn_task(&g, &task, reads_the_whole, &w), 0);
            if (bytes)
                io_send(p[1], "abc");
            CHECK_INT(conc_settle(), 0);
            CHECK_INT(what == END     ? conc_close(p[1])
                      : what == CLOSE ? conc_close(p[0])
                                      : conc_cancel(&task),
                      0);
            CHECK_INT(conc_group_wait(&g), 0);
            CHECK_INT(w.rc, bytes ? 3 : next[what]);
            CHECK_INT(w.next, next[what]);
            if (what != CLOSE)
                CHECK_INT(conc_close(p[0]), 0);
            if (what != END)
                CHECK_INT(conc_close(p[1]), 0);
        }
    }
}

IO_TEST(the_error_of_a_file_is_forgotten_when_the_program_opens_the_file_again)
{
    char name[] = "/tmp/conc_test_XXXXXX";
    struct rlimit limit, low;
    int fd = mkstemp(name);
    CHECK(fd >= 0);
    CHECK_INT(getrlimit(RLIMIT_FSIZE, &limit), 0);
    low = limit;
    low.rlim_cur = 4;
    signal(SIGXFSZ, SIG_IGN);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &low), 0);
    ssize_t n = conc_write_full(fd, "123456", 6);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
    CHECK_INT(n, 4);
    close(fd);
    CHECK_INT(open(name, O_WRONLY), fd);
    CHECK_INT(conc_write(fd, "x", 1), 1);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(unlink(name), 0);
}

IO_TEST(a_write_full_returns_what_went_out_before_a_cancel_or_an_error)
{
    enum { GONE, CANCEL, CLOSE, CASES };
    static const ssize_t next[] = {-EPIPE, -ECANCELED, -EBADF};
    for (int what = 0; what < CASES; what++) {
        for (int full = 0; full < 2; full++) {
            int p[2];
            conc_group g = {0};
            conc_task task;
            io_open(IO_PIPE, p);
            if (full)
                io_fill(p[1]);
            whole w = {.fd = p[1], .n = sizeof whole_room};
            CHECK_INT(conc_spawn_task(&g, &task, writes_the_whole, &w), 0);
            CHECK_INT(conc_settle(), 0);
            ssize_t out = (ssize_t)io_available(p[0]);
            CHECK(out > 0);
            CHECK_INT(what == GONE    ? conc_close(p[0])
                      : what == CLOSE ? conc_close(p[1])
                                      : conc_cancel(&task),
                      0);
            CHECK_INT(conc_group_wait(&g), 0);
            CHECK_INT(w.rc, full ? next[what] : out);
            CHECK_INT(w.next, next[what]);
            if (what != GONE)
                CHECK_INT(conc_close(p[0]), 0);
            if (what != CLOSE)
                CHECK_INT(conc_close(p[1]), 0);
        }
    }
}

/* Both sides write and read at once; with small buffers each write waits for the other side's
 * read. */
static void exchange(int s[2], size_t n)
{
    conc_group g = {0};
    io_bulk out[2], in[2];
    for (int i = 0; i < 2; i++) {
        int size = 10000;
        CHECK_INT(setsockopt(s[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    }
    for (int i = 0; i < 2; i++) {
        out[i] = (io_bulk){.fd = s[i], .n = n, .step = n};
        in[i] = (io_bulk){.fd = s[i], .n = n, .step = 65536 + 1};
        CHECK_INT(conc_spawn(&g, io_writes_bulk, &out[i]), 0);
        CHECK_INT(conc_spawn(&g, io_reads_bulk, &in[i]), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(out[i].moved, n);
        CHECK_INT(in[i].moved, n);
    }
}

/* Resets the connection. */
static void reset(int fd)
{
    struct linger at_once = {1, 0};
    CHECK_INT(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    CHECK_INT(conc_close(fd), 0);
}

/* A connection with one of the test's own ends, which conc does not know, or which it opened. */
static void open_near_end(bool foreign, int end[2])
{
    io_open(IO_CONC, end);
    if (foreign) {
        int copy = dup(end[0]);
        CHECK_INT(conc_close(end[0]), 0);
        end[0] = copy;
    }
}

REAL_IO_TEST(an_error_after_some_bytes_were_read_is_returned_by_the_next_call)
{
    static ssize_t (*const calls[])(int fd) = {op_read, op_readv, op_recv, op_recvfrom,
                                               op_read_full};
    for (int foreign = 0; foreign < 2; foreign++) {
        for (size_t i = 0; i < CONC_LEN(calls); i++) {
            int end[2];
            conc_group g = {0};
            open_near_end(foreign, end);
            whole w = {.fd = end[0], .n = 10};
            CHECK_INT(conc_spawn(&g, reads_a_part, &w), 0);
            io_send(end[1], "data");
            CHECK_INT(conc_settle(), 0);
            reset(end[1]);
            CHECK_INT(conc_group_wait(&g), 0);
            CHECK_INT(w.rc, 4);
            CHECK_INT(calls[i](end[0]), -ECONNRESET);
            CHECK_INT(calls[i](end[0]), 0);
            CHECK_INT(conc_close(end[0]), 0);
        }
    }
}

REAL_IO_TEST(an_error_after_some_bytes_were_written_is_returned_by_the_next_call)
{
    for (int foreign = 0; foreign < 2; foreign++) {
        int end[2], small = 4096;
        conc_group g = {0};
        open_near_end(foreign, end);
        CHECK_INT(setsockopt(end[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
        CHECK_INT(setsockopt(end[1], SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
        whole w = {.fd = end[0], .n = sizeof whole_room};
        CHECK_INT(conc_spawn(&g, writes_a_part, &w), 0);
        CHECK_INT(conc_settle(), 0);
        reset(end[1]);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK(w.rc > 0 && w.rc < (ssize_t)sizeof whole_room);
        CHECK_INT(conc_write(end[0], "x", 1), -ECONNRESET);
        CHECK_INT(conc_write(end[0], "x", 1), -EPIPE);
        CHECK_INT(conc_close(end[0]), 0);
    }
}

REAL_IO_TEST(a_kept_error_does_not_belong_to_the_next_file)
{
    int end[2], p[2];
    conc_group g = {0};
    open_near_end(true, end);
    io_open(IO_PIPE, p);
    whole w = {.fd = end[0], .n = 10};
    CHECK_INT(conc_spawn(&g, reads_a_part, &w), 0);
    io_send(end[1], "data");
    CHECK_INT(conc_settle(), 0);
    reset(end[1]);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.rc, 4);
    CHECK_INT(dup2(p[0], end[0]), end[0]);
    io_send(p[1], "x");
    CHECK_INT(op_read(end[0]), 1);
    CHECK_INT(conc_close(end[0]), 0);
    io_close(p);
}

REAL_IO_TEST(a_megabyte_goes_both_ways_at_once_through_small_buffers)
{
    for (io_kind kind = IO_SOCKET; kind < IO_KINDS; kind++) {
        int s[2];
        io_open(kind, s);
        exchange(s, 1000000);
        io_close(s);
    }
}

/* ---- short reads, urgent data, flags, datagrams ---- */

typedef struct words {
    int fd;
    const char *const *text;
    size_t count, got;
} words;

static int reads_words(void *arg)
{
    words *w = arg;
    for (; w->got < w->count; w->got++) {
        char buf[64] = "";
        CHECK_INT(conc_read(w->fd, buf, sizeof buf - 1), strlen(w->text[w->got]));
        CHECK_STR(buf, w->text[w->got]);
    }
    return 0;
}

REAL_IO_TEST(a_short_read_is_followed_by_the_bytes_that_come_later)
{
    static const char *const text[] = {"one", "two", "three", "four"};
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        conc_group g = {0};
        io_open(kind, end);
        words w = {.fd = end[0], .text = text, .count = CONC_LEN(text)};
        CHECK_INT(conc_spawn(&g, reads_words, &w), 0);
        for (size_t i = 0; i < CONC_LEN(text); i++) {
            io_send(end[1], text[i]);
            while (w.got == i)
                CHECK_INT(conc_yield(), 0);
        }
        CHECK_INT(conc_group_wait(&g), 0);
        io_close(end);
    }
}

REAL_IO_TEST(urgent_data_does_not_make_a_reader_hang_or_the_loop_spin)
{
    for (int foreign = 0; foreign < 2; foreign++) {
        int s[2];
        conc_group g = {0};
        io_open(IO_CONC, s);
        int fd = foreign ? dup(s[0]) : s[0];
        io_reader r = {.fd = fd};
        CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(send(s[1], "!", 1, MSG_OOB), 1);
        check_rest();
        CHECK(!r.done);
        io_send(s[1], "c");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, 1);
        CHECK_INT(r.buf[0], 'c');
        io_send(s[1], "ab");
        CHECK_INT(send(s[1], "!", 1, MSG_OOB), 1);
        io_send(s[1], "cd");
        /* the first read ends at the urgent mark, with more to read but no new event */
        io_expect(fd, "abcd");
        if (foreign)
            CHECK_INT(conc_close(fd), 0);
        io_close(s);
    }
}

IO_TEST(with_msg_dontwait_nothing_waits)
{
    char buf[8] = "";
    for (io_kind kind = IO_SOCKET; kind < IO_CONC; kind++) {
        int s[2];
        io_open(kind, s);
        CHECK_INT(conc_recv(s[0], buf, 8, MSG_DONTWAIT), -EAGAIN);
        CHECK_INT(conc_recvfrom(s[0], buf, 8, MSG_DONTWAIT | MSG_PEEK, NULL, NULL), -EAGAIN);
        CHECK_INT(conc_send(s[1], "x", 1, MSG_DONTWAIT), 1);
        CHECK_INT(conc_recv(s[0], buf, 8, MSG_DONTWAIT), 1);
        io_fill(s[0]);
        CHECK_INT(conc_send(s[0], "x", 1, MSG_DONTWAIT), -EAGAIN);
        CHECK_INT(conc_sendto(s[0], "x", 1, MSG_DONTWAIT, NULL, 0), -EAGAIN);
        io_close(s);
    }
}

static int peeks(void *arg)
{
    io_reader *r = arg;
    r->rc = conc_recv(r->fd, r->buf, sizeof r->buf, MSG_PEEK);
    r->done = true;
    return 0;
}

IO_TEST(a_peek_waits_for_bytes_and_leaves_them)
{
    for (io_kind kind = IO_SOCKET; kind < IO_KINDS; kind++) {
        int s[2];
        conc_group g = {0};
        io_open(kind, s);
        io_reader r = {.fd = s[0]};
        CHECK_INT(conc_spawn(&g, peeks, &r), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!r.done);
        io_send(s[1], "abc");
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(r.rc, 3);
        CHECK_INT(conc_recv(s[0], r.buf, 1, MSG_PEEK), 1);
        io_expect(s[0], "abc");
        io_close(s);
    }
}

IO_TEST(nothing_to_read_is_read_at_once)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        io_open(kind, end);
        CHECK_INT(conc_read(end[0], op_room, 0), 0);
        CHECK_INT(conc_read_full(end[0], op_room, 0), 0);
        io_close(end);
    }
}

IO_TEST(nothing_to_write_is_written_at_once)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2];
        io_open(kind, end);
        io_fill(end[1]);
        CHECK_INT(conc_write(end[1], "", 0), 0);
        CHECK_INT(conc_write_full(end[1], "", 0), 0);
        io_close(end);
    }
}

IO_TEST(empty_parts_are_read_and_written_at_once)
{
    for (io_kind kind = 0; kind < IO_CONC; kind++) {
        int end[2];
        struct iovec none[] = {{op_room, 0}, {op_room, 0}};
        io_open(kind, end);
        CHECK_INT(conc_readv(end[0], none, 2), 0);
        CHECK_INT(conc_readv(end[0], none, 0), 0);
        io_fill(end[1]);
        CHECK_INT(conc_writev(end[1], none, 2), 0);
        CHECK_INT(conc_writev(end[1], none, 0), 0);
        io_close(end);
    }
}

IO_TEST(a_read_of_0_bytes_takes_nothing)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        io_open(kind, end);
        io_send(end[1], "abc");
        CHECK_INT(conc_read(end[0], op_room, 0), 0);
        io_expect(end[0], "abc");
        io_close(end);
    }
}

IO_TEST(readv_and_writev_scatter_and_gather)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        char a[2], b[5] = "", c[9] = "";
        struct iovec out[] = {{(char[]){"one"}, 3}, {(char[]){"?"}, 0}, {(char[]){"twothree"}, 8}};
        struct iovec in[] = {{a, 2}, {b, 0}, {b, 4}, {c, 8}};
        io_open(kind, end);
        ssize_t n = conc_writev(end[1], out, 3);
#ifndef __linux__ /* one part at a time if the descriptor is in blocking mode */
        if (n == 3)
            n += conc_writev(end[1], out + 1, 2);
#endif
        CHECK_INT(n, 11);
        n = conc_readv(end[0], in, 4);
#ifndef __linux__
        if (n == 2)
            n += conc_readv(end[0], in + 1, 3);
        if (n == 6)
            n += conc_readv(end[0], in + 3, 1);
#endif
        CHECK_INT(n, 11);
        CHECK(memcmp(a, "on", 2) == 0);
        CHECK_STR(b, "etwo");
        CHECK_STR(c, "three");
        io_close(end);
    }
}

/* As writev(2) does; write(2) and send(2) of no bytes do send one. */
IO_TEST(an_empty_vector_is_no_message)
{
    int s[2];
    struct iovec nothing[] = {{NULL, 0}, {op_room, 0}};
    CHECK_INT(socketpair(AF_UNIX, SOCK_DGRAM, 0, s), 0);
    CHECK_INT(conc_writev(s[1], nothing, 0), 0);
    CHECK_INT(conc_writev(s[1], nothing, 1), 0);
    CHECK_INT(conc_writev(s[1], nothing, 2), 0);
    CHECK_INT(conc_recv(s[0], op_room, 16, MSG_DONTWAIT), -EAGAIN);
    CHECK_INT(conc_write(s[1], op_room, 0), 0);
    CHECK_INT(conc_recv(s[0], op_room, 16, MSG_DONTWAIT), 0);
    io_close(s);
    CHECK_INT(conc_writev(s[1], nothing, 2), -EBADF);
}

IO_TEST(an_empty_datagram_is_a_message)
{
    int s[2];
    conc_group g = {0};
    CHECK_INT(socketpair(AF_UNIX, SOCK_DGRAM, 0, s), 0);
    op_task t = {&ops[RECV], s[0], 77, false};
    CHECK_INT(conc_spawn(&g, does_op, &t), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!t.done);
    CHECK_INT(conc_send(s[1], "", 0, 0), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(t.rc, 0);
    CHECK_INT(conc_send(s[1], "a", 1, 0), 1);
    CHECK_INT(conc_send(s[1], "", 0, 0), 0);
    CHECK_INT(conc_send(s[1], "bc", 2, 0), 2);
    CHECK_INT(conc_recv(s[0], op_room, 16, 0), 1);
    CHECK_INT(conc_recv(s[0], op_room, 16, 0), 0);
    CHECK_INT(conc_recv(s[0], op_room, 16, 0), 2);
    io_close(s);
}

IO_TEST(a_datagram_waits_until_there_is_room_for_it)
{
    int s[2], sent = 0;
    conc_group g = {0};
    CHECK_INT(socketpair(AF_UNIX, SOCK_DGRAM, 0, s), 0);
    while (conc_send(s[1], "full", 4, MSG_DONTWAIT) == 4)
        sent++;
    op_task t[] = {{&ops[SEND], s[1], 0, false}, {&ops[WRITE], s[1], 0, false}};
    CHECK_INT(conc_spawn(&g, does_op, &t[0]), 0);
    CHECK_INT(conc_spawn(&g, does_op, &t[1]), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!t[0].done && !t[1].done);
    for (int i = 0; i < sent; i++)
        CHECK_INT(conc_recv(s[0], op_room, 16, 0), 4);
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_recv(s[0], op_room, 16, 0), 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(t[0].rc + t[1].rc, 2);
    io_close(s);
}

static int receives_all(void *arg)
{
    whole *w = arg;
    for (w->rc = 0; (size_t)w->rc < w->n; w->rc++)
        CHECK_INT(conc_recv(w->fd, op_room, sizeof op_room, 0), 4);
    return 0;
}

/* The sender is not connected: the system calls it writable although the receiver's queue is
 * full. */
REAL_IO_TEST(a_datagram_to_an_address_waits_for_room_too)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    socklen_t size = sizeof where;
    conc_group g = {0};
    int to = socket(AF_UNIX, SOCK_DGRAM, 0), from = socket(AF_UNIX, SOCK_DGRAM, 0);
    /* the system chooses a name: Linux */
    if (bind(to, (struct sockaddr *)&where, sizeof where.sun_family))
        where.sun_family = AF_UNSPEC;
    if (where.sun_family == AF_UNIX) {
        CHECK_INT(getsockname(to, (struct sockaddr *)&where, &size), 0);
        whole w = {.fd = to, .n = 200};
        while (conc_sendto(from, "ping", 4, MSG_DONTWAIT, (struct sockaddr *)&where, size) == 4)
            w.n++;
        CHECK_INT(conc_spawn(&g, receives_all, &w), 0);
        for (int i = 0; i < 200; i++)
            CHECK_INT(conc_sendto(from, "ping", 4, 0, (struct sockaddr *)&where, size), 4);
        CHECK_INT(conc_group_wait(&g), 0);
    }
    CHECK_INT(conc_close(to), 0);
    CHECK_INT(conc_close(from), 0);
}

static int open_udp(struct sockaddr_in *where)
{
    socklen_t size = sizeof *where;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(fd >= 0);
    *where = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK_INT(bind(fd, (struct sockaddr *)where, size), 0);
    CHECK_INT(getsockname(fd, (struct sockaddr *)where, &size), 0);
    return fd;
}

typedef struct receiver {
    int fd;
    ssize_t rc;
    char buf[16];
    struct sockaddr_in from;
    socklen_t size;
} receiver;

static int receives(void *arg)
{
    receiver *r = arg;
    r->size = sizeof r->from;
    r->rc = conc_recvfrom(r->fd, r->buf, sizeof r->buf, 0, (struct sockaddr *)&r->from, &r->size);
    return 0;
}

REAL_IO_TEST(sendto_and_recvfrom_carry_the_address)
{
    struct sockaddr_in where[2];
    int fd[2] = {open_udp(&where[0]), open_udp(&where[1])};
    conc_group g = {0};
    receiver r = {.fd = fd[0]};
    CHECK_INT(conc_spawn(&g, receives, &r), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_sendto(fd[1], "ping", 4, 0, (struct sockaddr *)&where[0], sizeof where[0]), 4);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(r.rc, 4);
    CHECK_STR(r.buf, "ping");
    CHECK_INT(r.size, sizeof r.from);
    CHECK_INT(r.from.sin_port, where[1].sin_port);
    CHECK_INT(conc_sendto(fd[0], "pong", 4, 0, (struct sockaddr *)&r.from, r.size), 4);
    CHECK_INT(conc_recv(fd[1], r.buf, sizeof r.buf, 0), 4);
    CHECK_STR(r.buf, "pong");
    io_close(fd);
}

/* ---- wrong calls ---- */

IO_TEST(a_number_that_is_not_open_is_refused_at_once)
{
    int p[2];
    io_open(IO_PIPE, p);
    io_close(p);
    int bad[] = {-1, -2147483647, p[0], 1 << 20, 2147483647};
    for (size_t k = 0; k < CONC_LEN(bad); k++) {
        for (size_t i = 0; i < OPS; i++)
            CHECK_OP(&ops[i], ops[i].call(bad[k]), -EBADF);
        CHECK_INT(conc_wait_fd(bad[k], BOTH), -EBADF);
        CHECK_INT(conc_close(bad[k]), -EBADF);
        CHECK_INT(conc_accept(bad[k]), -EBADF);
    }
}

IO_TEST(a_pipe_is_not_read_from_its_writing_end_or_written_to_from_its_reading_end)
{
    for (io_kind kind = 0; kind < IO_SOCKET; kind++) {
        int p[2];
        io_open(kind, p);
        for (size_t i = 0; i < OPS; i++)
            if (ops[i].moves && !ops[i].for_sockets)
                CHECK_OP(&ops[i], ops[i].call(p[!ops[i].writes]), -EBADF);
        io_close(p);
    }
}

IO_TEST(a_call_for_sockets_is_refused_on_a_pipe)
{
    int p[2];
    io_open(IO_PIPE, p);
    for (size_t i = 0; i < OPS; i++)
        if (ops[i].for_sockets)
            CHECK_OP(&ops[i], ops[i].call(p[ops[i].writes]), -ENOTSOCK);
    CHECK_INT(conc_accept(p[0]), -ENOTSOCK);
    io_close(p);
}

IO_TEST(events_that_do_not_exist_are_refused)
{
    int p[2];
    io_open(IO_PIPE, p);
    CHECK_INT(conc_wait_fd(p[1], -1), -EINVAL);
    CHECK_INT(conc_wait_fd(p[1], 4), -EINVAL);
    CHECK_INT(conc_wait_fd(p[1], 1 << 30), -EINVAL);
    io_close(p);
}

IO_TEST(more_than_memory_can_hold_is_refused_and_moves_nothing)
{
    int s[2];
    io_open(IO_SOCKET, s);
    io_send(s[1], "abc");
    CHECK_INT(conc_read(s[0], op_room, SIZE_MAX), -EINVAL);
    CHECK_INT(conc_write(s[0], op_room, SIZE_MAX), -EINVAL);
    CHECK_INT(conc_recv(s[0], op_room, SIZE_MAX, 0), -EINVAL);
    CHECK_INT(conc_send(s[0], op_room, SIZE_MAX, 0), -EINVAL);
    CHECK_INT(conc_recvfrom(s[0], op_room, SIZE_MAX, 0, NULL, NULL), -EINVAL);
    CHECK_INT(conc_sendto(s[0], op_room, SIZE_MAX, 0, NULL, 0), -EINVAL);
    CHECK_INT(conc_readv(s[0], &(struct iovec){op_room, SIZE_MAX}, 1), -EINVAL);
    CHECK_INT(conc_writev(s[0], &(struct iovec){op_room, SIZE_MAX}, 1), -EINVAL);
    io_expect(s[0], "abc");
    CHECK_INT(io_available(s[1]), 0);
    io_close(s);
}

IO_TEST(a_null_buffer_is_refused_and_moves_nothing)
{
    int s[2];
    io_open(IO_SOCKET, s);
    io_send(s[1], "abc");
    CHECK_INT(conc_read(s[0], NULL, 3), -EINVAL);
    CHECK_INT(conc_write(s[0], NULL, 3), -EINVAL);
    CHECK_INT(conc_readv(s[0], NULL, 1), -EINVAL);
    CHECK_INT(conc_writev(s[0], NULL, 1), -EINVAL);
    CHECK_INT(conc_readv(s[0], &(struct iovec){op_room, 1}, -1), -EINVAL);
    CHECK_INT(conc_writev(s[0], &(struct iovec){op_room, 1}, -1), -EINVAL);
    CHECK_INT(conc_recv(s[0], NULL, 3, 0), -EINVAL);
    CHECK_INT(conc_send(s[0], NULL, 3, 0), -EINVAL);
    CHECK_INT(conc_recvfrom(s[0], NULL, 3, 0, NULL, NULL), -EINVAL);
    CHECK_INT(conc_sendto(s[0], NULL, 3, 0, NULL, 0), -EINVAL);
    CHECK_INT(conc_read_full(s[0], NULL, 3), -EINVAL);
    CHECK_INT(conc_write_full(s[0], NULL, 3), -EINVAL);
    io_expect(s[0], "abc");
    CHECK_INT(io_available(s[1]), 0);
    io_close(s);
}

TEST(outside_a_run_every_call_is_refused_and_moves_nothing)
{
    int s[2];
    io_open(IO_SOCKET, s);
    io_send(s[1], "abc");
    for (size_t i = 0; i < OPS; i++)
        CHECK_OP(&ops[i], ops[i].call(s[0]), -EPERM);
    CHECK_INT(conc_accept(s[0]), -EPERM);
    CHECK_INT(conc_dial("127.0.0.1:9"), -EPERM);
    CHECK_INT(io_available(s[0]), 3);
    CHECK_INT(io_available(s[1]), 0);
    io_close(s);
    CHECK_INT(conc_close(s[0]), -EBADF);
}

static bool posted_ops_ran;

static void try_ops(void *arg)
{
    int *s = arg;
    for (size_t i = 0; i < OPS; i++)
        CHECK_OP(&ops[i], ops[i].call(s[0]), -EPERM);
    CHECK_INT(conc_accept(s[0]), -EPERM);
    CHECK_INT(conc_dial("127.0.0.1:9"), -EPERM);
    CHECK_INT(io_available(s[0]), 3);
    CHECK_INT(io_available(s[1]), 0);
    io_close(s);
    posted_ops_ran = true;
}

IO_TEST(in_a_posted_function_every_call_but_close_is_refused)
{
    int s[2];
    posted_ops_ran = false;
    io_open(IO_SOCKET, s);
    io_send(s[1], "abc");
    CHECK_INT(conc_post(conc_loop_self(), try_ops, s), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(posted_ops_ran);
}

static void close_posted(void *fd) { CHECK_INT(conc_close(*(int *)fd), 0); }

IO_TEST(a_posted_close_wakes_waiters)
{
    int p[2];
    conc_group g = {0};
    io_open(IO_PIPE, p);
    io_reader r = {.fd = p[0]};
    CHECK_INT(conc_spawn(&g, io_reads, &r), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_post(conc_loop_self(), close_posted, &p[0]), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(r.rc, -EBADF);
    CHECK_INT(conc_close(p[1]), 0);
}

/* ---- fairness and time ---- */

static int yields_until(void *stop)
{
    while (!*(bool *)stop)
        CONC_TRY(conc_yield());
    return 0;
}

typedef struct zero_reader {
    int fd;
    bool *stop;
} zero_reader;

static int reads_zeros_until(void *arg)
{
    zero_reader *z = arg;
    char buf[16];
    while (!*z->stop)
        CHECK_INT(conc_read(z->fd, buf, sizeof buf), sizeof buf);
    return 0;
}

static void posts_itself_until(void *arg)
{
    if (!*(bool *)arg)
        CHECK_INT(conc_post(conc_loop_self(), posts_itself_until, arg), 0);
}

/* LP-05: the reader continues, and so does this task, although others are always ready. */
static void check_not_starved(bool *stop, conc_group *g)
{
    int p[2];
    conc_group readers = {0};
    io_open(IO_PIPE, p);
    io_reader r = {.fd = p[0]};
    CHECK_INT(conc_spawn(&readers, io_reads, &r), 0);
    for (int i = 0; i < 100; i++)
        CHECK_INT(conc_yield(), 0);
    CHECK(!r.done);
    io_send(p[1], "x");
    for (int turns = 0; !r.done && turns < 100000; turns++)
        CHECK_INT(conc_yield(), 0);
    CHECK(r.done);
    CHECK_INT(r.rc, 1);
    CHECK_INT(conc_group_wait(&readers), 0);
    *stop = true;
    CHECK_INT(conc_group_wait(g), 0);
    io_close(p);
}

IO_TEST(tasks_that_yield_forever_starve_no_descriptor)
{
    bool stop = false;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, yields_until, &stop), 0);
    CHECK_INT(conc_spawn(&g, yields_until, &stop), 0);
    check_not_starved(&stop, &g);
}

IO_TEST(posts_that_repost_themselves_starve_no_descriptor)
{
    bool stop = false;
    conc_group g = {0};
    CHECK_INT(conc_post(conc_loop_self(), posts_itself_until, &stop), 0);
    check_not_starved(&stop, &g);
    CHECK_INT(conc_settle(), 0);
}

IO_TEST(tasks_whose_descriptor_is_always_ready_starve_no_other)
{
    bool stop = false;
    conc_group g = {0};
    zero_reader z = {open("/dev/zero", O_RDONLY), &stop};
    CHECK(z.fd >= 0);
    CHECK_INT(conc_spawn(&g, reads_zeros_until, &z), 0);
    CHECK_INT(conc_spawn(&g, reads_zeros_until, &z), 0);
    check_not_starved(&stop, &g);
    CHECK_INT(conc_close(z.fd), 0);
}

REAL_IO_TEST(a_timer_and_a_descriptor_both_wake_among_busy_tasks)
{
    int p[2];
    bool stop = false;
    conc_group g = {0}, readers = {0};
    io_open(IO_PIPE, p);
    io_reader r = {.fd = p[0]};
    CHECK_INT(conc_spawn(&g, yields_until, &stop), 0);
    CHECK_INT(conc_spawn(&readers, io_reads, &r), 0);
    CHECK_INT(conc_sleep(0.005), 0);
    CHECK(!r.done);
    io_send(p[1], "x");
    CHECK_INT(conc_group_wait(&readers), 0);
    CHECK_INT(r.rc, 1);
    stop = true;
    CHECK_INT(conc_group_wait(&g), 0);
    io_close(p);
}

enum { ROUNDS = 300 };

typedef struct player {
    int fd;
    bool serves;
    double ended;
} player;

static int plays(void *arg)
{
    player *p = arg;
    char ball = 'o';
    for (int i = 0; i < ROUNDS; i++) {
        if (p->serves || i > 0)
            CHECK_INT(conc_write(p->fd, &ball, 1), 1);
        CHECK_INT(conc_read(p->fd, &ball, 1), 1);
    }
    if (!p->serves)
        CHECK_INT(conc_write(p->fd, &ball, 1), 1);
    p->ended = conc_now();
    return 0;
}

IO_TEST(the_virtual_clock_stands_still_while_a_descriptor_is_ready)
{
    for (io_kind kind = IO_SOCKET; kind < IO_CONC; kind++) {
        int s[2];
        conc_group g = {0};
        double start = conc_now();
        io_open(kind, s);
        player p[] = {{.fd = s[0], .serves = true, .ended = -1},
                      {.fd = s[1], .serves = false, .ended = -1}};
        CHECK_INT(conc_spawn(&g, plays, &p[0]), 0);
        CHECK_INT(conc_spawn(&g, plays, &p[1]), 0);
        CHECK_INT(conc_sleep(100), 0);
        CHECK(p[0].ended == start && p[1].ended == start);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_TIME(start + 100);
        io_close(s);
    }
}

static int sleeps_and_sends(void *arg)
{
    CONC_TRY(conc_sleep(5));
    io_send(*(int *)arg, "x");
    return (int)conc_sleep(5);
}

IO_TEST(a_descriptor_that_waits_does_not_hold_the_virtual_clock)
{
    int p[2];
    conc_group g = {0};
    io_open(IO_PIPE, p);
    CHECK_INT(conc_spawn(&g, sleeps_and_sends, &p[1]), 0);
    io_expect(p[0], "x");
    CHECK_TIME(5);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(10);
    io_close(p);
}

/* ---- other threads, signals ---- */

typedef struct sender {
    int fd;
    pthread_t loop;
    double wait;
    int signals;
} sender;

static void *sends_later(void *arg)
{
    sender *s = arg;
    struct timespec pause = {0, (long)(s->wait * 1e9)};
    for (int i = 0; i < s->signals; i++) {
        nanosleep(&pause, NULL);
        CHECK_INT(pthread_kill(s->loop, SIGUSR1), 0);
    }
    nanosleep(&pause, NULL);
    io_send(s->fd, "x");
    return NULL;
}

/* A loop without any time limit waits in the system until bytes arrive. */
static void read_what_a_thread_sends(io_kind kind, int signals)
{
    int end[2];
    pthread_t thread;
    io_open(kind, end);
    sender s = {end[1], pthread_self(), signals ? 0.0005 : 0.02, signals};
    CHECK_INT(pthread_create(&thread, NULL, sends_later, &s), 0);
    io_expect(end[0], "x");
    CHECK_INT(pthread_join(thread, NULL), 0);
    io_close(end);
}

REAL_IO_TEST(a_sleeping_loop_is_woken_by_bytes_and_is_no_deadlock)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++)
        read_what_a_thread_sends(kind, 0);
}

static void ignore_signal(int number) { (void)number; }

REAL_IO_TEST(signals_do_not_cut_a_wait_short)
{
    struct sigaction action = {.sa_handler = ignore_signal}, before;
    CHECK_INT(sigaction(SIGUSR1, &action, &before), 0);
    for (io_kind kind = 0; kind < IO_KINDS; kind++)
        read_what_a_thread_sends(kind, 20);
    CHECK_INT(sigaction(SIGUSR1, &before, NULL), 0);
}

typedef struct far_side {
    pthread_t thread;
    int fd;
} far_side;

/* Echoes its input, including the end of file. */
static int echoes(void *arg)
{
    far_side *f = arg;
    for (;;) {
        char buf[5000];
        ssize_t n = CONC_TRY(conc_read(f->fd, buf, sizeof buf));
        if (n == 0)
            return shutdown(f->fd, SHUT_WR);
        CHECK_INT(conc_write_full(f->fd, buf, (size_t)n), n);
    }
}

static void *runs_echo(void *arg)
{
    CHECK_INT(conc_run(echoes, arg), 0);
    return NULL;
}

REAL_IO_TEST(two_loops_in_two_threads_talk_over_a_pair_of_sockets)
{
    for (io_kind kind = IO_SOCKET; kind < IO_KINDS; kind++) {
        int s[2];
        conc_group g = {0};
        io_open(kind, s);
        far_side f = {.fd = s[1]};
        CHECK_INT(pthread_create(&f.thread, NULL, runs_echo, &f), 0);
        for (int i = 0; i < ROUNDS; i++) {
            CHECK_INT(conc_write(s[0], "hello", 5), 5);
            io_expect(s[0], "hello");
        }
        io_bulk out = {.fd = s[0], .n = 1000000, .step = 300000}, in = out;
        CHECK_INT(conc_spawn(&g, io_writes_bulk, &out), 0);
        CHECK_INT(conc_spawn(&g, io_reads_bulk, &in), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(shutdown(s[0], SHUT_WR), 0);
        CHECK_INT(conc_read(s[0], op_room, 1), 0);
        CHECK_INT(pthread_join(f.thread, NULL), 0);
        io_close(s);
    }
}

/* ---- many descriptors, and small buffers ---- */

enum { PAIRS = 1000 };

/* As many pairs as the process may have, at most PAIRS. */
static int raise_limit(void)
{
    struct rlimit limit;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    rlim_t wanted = 2 * PAIRS + 100;
    if (limit.rlim_cur < wanted) {
        limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    }
    return limit.rlim_cur < wanted ? ((int)limit.rlim_cur - 100) / 2 : PAIRS;
}

typedef struct many {
    int fd, number, got;
} many;

static int reads_numbers(void *arg)
{
    many *m = arg;
    for (int round = 0; round < 2; round++) {
        int number = -1;
        CHECK_INT(conc_read_full(m->fd, &number, sizeof number), sizeof number);
        CHECK_INT(number, m->number);
        m->got++;
    }
    return 0;
}

IO_TEST(two_thousand_descriptors_are_waited_for_at_once)
{
    static int s[PAIRS][2];
    static many m[PAIRS][2];
    int pairs = raise_limit();
    conc_group g = {.stack_size = 16384};
    for (int i = 0; i < pairs; i++) {
        io_open(IO_FREE_SOCKET, s[i]);
        for (int k = 0; k < 2; k++) {
            m[i][k] = (many){s[i][k], 2 * i + k, 0};
            CHECK_INT(conc_spawn(&g, reads_numbers, &m[i][k]), 0);
        }
    }
    CHECK_INT(conc_settle(), 0);
    for (int round = 0; round < 2; round++)
        for (int n = 0; n < 2 * pairs; n++) {
            int i = n * 7 % pairs, k = n / pairs;
            CHECK_INT(conc_write(s[i][!k], &m[i][k].number, sizeof(int)), sizeof(int));
        }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < pairs; i++) {
        CHECK_INT(m[i][0].got + m[i][1].got, 4);
        io_close(s[i]);
        CHECK_INT(fcntl(s[i][0], F_GETFD), -1);
    }
}

static int cancels_at_its_turn(void *scope)
{
    conc_scope_cancel(scope);
    return 0;
}

/* No call has to wait, and no page of the gigabyte is touched. */
IO_TEST(a_full_write_that_never_waits_lets_others_have_their_turns)
{
    size_t much = (size_t)1 << 30;
    char *memory = mmap(NULL, much, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    conc_scope s = {0};
    conc_group g = {0};
    CHECK(memory != MAP_FAILED);
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_spawn(&g, cancels_at_its_turn, &s), 0);
    ssize_t done = conc_write_full(fd, memory, much);
    /* a seed may choose this task at every turn of one call, but not of this many */
    for (int calls = test_seeded() ? 64 : 1; done == (ssize_t)much && calls > 1; calls--)
        done = conc_write_full(fd, memory, much);
    CHECK(done > 0 || (test_seeded() && done == -ECANCELED));
    CHECK(done < (ssize_t)much);
    CHECK_INT(conc_scope_end(&s, conc_yield()), 0);
    CHECK(s.cancel_caught);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(close(fd), 0);
    CHECK_INT(munmap(memory, much), 0);
}

typedef struct small {
    int fd;
    bool serves, wrong;
    char buf[4];
} small;

static bool sends_seven(small *s)
{
    struct iovec parts[] = {{s->buf, 1}, {s->buf + 1, 3}};
    return conc_write(s->fd, s->buf, 1) == 1 && conc_writev(s->fd, parts, 2) == 4 &&
           conc_send(s->fd, s->buf, 1, 0) == 1 && conc_write_full(s->fd, s->buf, 1) == 1;
}

static bool gets_seven(small *s)
{
    struct iovec parts[] = {{s->buf, 1}, {s->buf + 1, 3}};
    return conc_wait_fd(s->fd, CONC_READABLE) == CONC_READABLE &&
           conc_read(s->fd, s->buf, 1) == 1 && conc_readv(s->fd, parts, 2) == 4 &&
           conc_recv(s->fd, s->buf, 1, 0) == 1 && conc_read_full(s->fd, s->buf, 1) == 1;
}

static int plays_on_a_small_stack(void *arg)
{
    small *s = arg;
    for (int i = 0; i < 20 && !s->wrong; i++)
        s->wrong =
            s->serves ? !sends_seven(s) || !gets_seven(s) : !gets_seven(s) || !sends_seven(s);
    return 0;
}

IO_TEST(tasks_with_the_smallest_stacks_read_and_write)
{
    for (io_kind kind = IO_SOCKET; kind < IO_KINDS; kind++) {
        int s[2];
        conc_group g = {.stack_size = IO_SMALLEST_STACK};
        io_open(kind, s);
        small players[] = {{.fd = s[0], .serves = true}, {.fd = s[1], .serves = false}};
        CHECK_INT(conc_spawn(&g, plays_on_a_small_stack, &players[0]), 0);
        CHECK_INT(conc_spawn(&g, plays_on_a_small_stack, &players[1]), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK(!players[0].wrong && !players[1].wrong);
        io_close(s);
    }
}

/* ---- generators ---- */

static int emits_bytes(conc_gen *g, void *arg)
{
    for (;;) {
        char c;
        ssize_t n = CONC_TRY(conc_read(*(int *)arg, &c, 1));
        if (n == 0)
            return 0;
        CONC_TRY(conc_gen_emit(g, &c));
    }
}

IO_TEST(the_body_of_a_generator_reads_too)
{
    int p[2];
    char c = 0;
    conc_gen g = {0};
    conc_scope s = {0};
    io_open(IO_PIPE, p);
    CHECK_INT(conc_gen_open(&g, emits_bytes, &p[0], 1), 0);
    io_send(p[1], "ab");
    CHECK_INT(conc_gen_next(&g, &c), 1);
    CHECK_INT(c, 'a');
    CHECK_INT(conc_gen_next(&g, &c), 1);
    CHECK_INT(c, 'b');
    CHECK_INT(conc_scope_begin(&s, 3), 0);
    CHECK_INT(conc_scope_end(&s, conc_gen_next(&g, &c)), -ETIMEDOUT);
    CHECK_TIME(3);
    CHECK_INT(conc_gen_close(&g), 0);
    io_close(p);
}
