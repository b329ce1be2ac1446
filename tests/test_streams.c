/* test_streams.c - conc_stream_*: buffers, both ways, over any descriptor. On the virtual clock a
 * sleep ends only when no descriptor is ready any more, which is how these tests wait until every
 * task has done what it can. Tests that depend on the way of waiting run several times: with the
 * loop's default poller, with poll(2), with the best one by name, and on a socket in blocking
 * mode. Each of them checks for leaked memory and descriptors.
 *
 *     RANDOM_PROGRAMS=10000 RANDOM_FIRST=1 ./test_streams      many random programs, starting with
 *                                                              this seed
 *
 * Seeds: 15 (they are many)
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#define MAYBE_UNUSED __attribute__((unused))

/* ---- memory that is counted, and can run out ---- */

static struct {
    long calls; /* since the last reset */
    long at;    /* the call that fails; 0: none */
    bool forever;
    long injected;
} fault;
static long live_allocations;

static bool fails(void)
{
    fault.calls++;
    if (fault.at == 0 || fault.calls < fault.at || (fault.calls > fault.at && !fault.forever))
        return false;
    fault.injected++;
    errno = ENOMEM;
    return true;
}

MAYBE_UNUSED static void *faulty_malloc(size_t n)
{
    void *p = fails() ? NULL : malloc(n);
    live_allocations += p != NULL;
    return p;
}

MAYBE_UNUSED static void *faulty_realloc(void *old, size_t n)
{
    void *p = fails() ? NULL : realloc(old, n);
    live_allocations += p != NULL && old == NULL;
    return p;
}

MAYBE_UNUSED static void counting_free(void *p)
{
    live_allocations -= p != NULL;
    free(p);
}

#define CONC_MALLOC(n) faulty_malloc(n)
#define CONC_REALLOC(p, n) faulty_realloc((p), (n))
#define CONC_FREE(p) counting_free(p)

#define TEST_SECONDS 60
#include "conc_test.h"

#include <inttypes.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>

#define KB ((size_t)1024)
#define MB (KB * 1024)

/* ---- descriptors ---- */

/* TRANSPORT: the stream runs on the test's own functions, which use a socket. */
typedef enum kind { SOCKETS, BLOCKING_SOCKETS, TCP, TRANSPORT, KINDS } kind;

static kind usual_kind = SOCKETS;

static void set_blocking(int fd, bool blocking)
{
    int flags = fcntl(fd, F_GETFL);
    CHECK(flags >= 0);
    CHECK_INT(fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK), 0);
}

static void connect_tcp(int ends[2])
{
    char address[120];
    int listener = conc_listen("127.0.0.1:0");
    CHECK(listener >= 0);
    CHECK_INT(conc_address(listener, false, address, sizeof address), 0);
    ends[0] = conc_dial(address);
    CHECK(ends[0] >= 0);
    ends[1] = conc_accept(listener);
    CHECK(ends[1] >= 0);
    CHECK_INT(conc_close(listener), 0);
}

/* Two connected descriptors; the second is in non-blocking mode. */
static void connect_two(kind k, int ends[2])
{
    if (k == TCP) {
        connect_tcp(ends);
        return;
    }
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    set_blocking(ends[0], k == BLOCKING_SOCKETS);
    set_blocking(ends[1], false);
}

/* A stream, and the other end of its descriptor, which the test uses with plain system calls. */
typedef struct pair {
    conc_stream s;
    int peer;
} pair;

/* ---- a transport that uses a socket ---- */

typedef struct wire {
    int fd;
    int reads, writes; /* calls in progress */
} wire;

static ssize_t wire_read(void *self, void *buf, size_t n)
{
    wire *w = self;
    CHECK_INT(w->reads++, 0);
    ssize_t got = conc_read(w->fd, buf, n);
    w->reads--;
    return got;
}

static ssize_t wire_write(void *self, const void *buf, size_t n)
{
    wire *w = self;
    CHECK_INT(w->writes++, 0);
    ssize_t sent = conc_write(w->fd, buf, n);
    w->writes--;
    return sent;
}

static int wire_shutdown(void *self)
{
    wire *w = self;
    CHECK_INT(w->writes, 0);
    return shutdown(w->fd, SHUT_WR) ? -errno : 0;
}

static int wire_close(void *self)
{
    wire *w = self;
    CHECK_INT(w->reads, 0);
    CHECK_INT(w->writes, 0);
    int rc = conc_close(w->fd);
    free(w);
    return rc;
}

static const conc_transport wire_transport = {wire_read, wire_write, wire_shutdown, wire_close};

static int open_on_wire(conc_stream *s, int fd)
{
    wire *w = calloc(1, sizeof *w);
    w->fd = fd;
    return conc_stream_open_on(s, &wire_transport, w);
}

static int open_stream(conc_stream *s, int fd, kind k)
{
    return k == TRANSPORT ? open_on_wire(s, fd) : conc_stream_open(s, fd);
}

static int descriptor_of(const conc_stream *s) { return s->on ? ((wire *)s->on->self)->fd : s->fd; }

static void open_pair_of(pair *p, kind k)
{
    int ends[2];
    connect_two(k, ends);
    p->peer = ends[1];
    CHECK_INT(open_stream(&p->s, ends[0], k), 0);
}

static void open_pair(pair *p) { open_pair_of(p, usual_kind); }

static void hang_up(pair *p)
{
    if (p->peer >= 0)
        CHECK_INT(conc_close(p->peer), 0);
    p->peer = -1;
}

static void close_pair(pair *p)
{
    hang_up(p);
    CHECK(conc_stream_close(&p->s) <= 0);
}

static void say_bytes(int fd, const void *bytes, size_t n) { CHECK_INT(write(fd, bytes, n), n); }

static void say(int fd, const char *text) { say_bytes(fd, text, strlen(text)); }

/* What the other end of fd sent, and is available now. */
static size_t hear(int fd, char *buf, size_t size)
{
    size_t heard = 0;
    for (ssize_t n; heard < size && (n = read(fd, buf + heard, size - heard)) > 0;)
        heard += (size_t)n;
    return heard;
}

static void check_heard(int fd, const char *expected)
{
    char buf[512];
    size_t n = hear(fd, buf, sizeof buf - 1);
    buf[n] = 0;
    CHECK_STR(buf, expected);
}

static void check_bytes_at(int line, const char *actual, const char *expected, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (actual[i] != expected[i])
            test_fail(__FILE__, line, "byte %zu of %zu is %d, not %d", i, n, actual[i],
                      expected[i]);
}

#define CHECK_BYTES(actual, expected, n) check_bytes_at(__LINE__, (actual), (expected), (n))

/* Bytes that reveal where some were lost, duplicated or moved; they contain no newline. */
static char pattern[4 << 20];

__attribute__((constructor)) static void make_pattern(void)
{
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (char)(32 + ((uint32_t)i * UINT32_C(2654435761) >> 24) % 90);
}

static void write_text(conc_stream *s, const char *text)
{
    CHECK_INT(conc_stream_write(s, text, strlen(text)), strlen(text));
}

static void check_line(conc_stream *s, const char *expected)
{
    char *line = NULL;
    CHECK_INT(conc_stream_read_line(s, &line), strlen(expected));
    CHECK_STR(line, expected);
}

static void check_end_of_file(conc_stream *s)
{
    char byte = 0, *data = &byte;
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_stream_read(s, &byte, 1), 0);
        CHECK_INT(conc_stream_read_full(s, &byte, 1), 0);
        data = &byte;
        CHECK_INT(conc_stream_read_until(s, "\n", 1, &data), 0);
        CHECK(data == NULL);
        data = &byte;
        CHECK_INT(conc_stream_read_line(s, &data), 0);
        CHECK(data == NULL);
    }
}

/* ---- tests in runs ---- */

/* A test whose body is main_fn of a run on the virtual clock. */
static void run_io(void (*body)(void), const char *way, kind k)
{
    test_task t = {body};
    conc_options o = {.virtual_clock = true};
    if (way)
        setenv("CONC_POLL", way, 1);
    usual_kind = k;
    int fds = test_count_fds();
    CHECK_INT(conc_run_with(&o, test_call_body, &t), 0);
    CHECK_INT(test_count_fds(), fds);
    CHECK_INT(live_allocations, 0);
}

/* Under seeds the first one is enough: there are many of them. */
#define IO_TEST(name)                                                                             \
    static void body_of_##name(void);                                                             \
    TEST(name) { run_io(body_of_##name, NULL, SOCKETS); }                                         \
    VARIANT_TEST(name##_with_poll) { run_io(body_of_##name, "poll", SOCKETS); }                   \
    VARIANT_TEST(name##_with_the_best) { run_io(body_of_##name, TEST_POLLER, SOCKETS); }          \
    VARIANT_TEST(name##_on_a_blocking_socket) { run_io(body_of_##name, NULL, BLOCKING_SOCKETS); } \
    TEST(name##_on_a_transport) { run_io(body_of_##name, NULL, TRANSPORT); }                      \
    static void body_of_##name(void)

/* For tests that do not depend on the way of waiting. */
#define PLAIN_IO_TEST(name)                               \
    static void body_of_##name(void);                     \
    TEST(name) { run_io(body_of_##name, NULL, SOCKETS); } \
    static void body_of_##name(void)

/* Waits until all others did what they can: on the virtual clock no descriptor is ready when a
 * second has passed. */
static void let_them_run(void) { CHECK_INT(conc_sleep(1), 0); }

static void begin_cancelled(conc_scope *c)
{
    CHECK_INT(conc_scope_begin(c, CONC_FOREVER), 0);
    conc_scope_cancel(c);
}

static void end_cancelled(conc_scope *c) { CHECK_INT(conc_scope_end(c, -ECANCELED), 0); }

/* ---- calls in separate tasks ---- */

typedef enum call { READ, READ_FULL, READ_UNTIL, READ_LINE, WRITE, FLUSH, SHUTDOWN, CLOSE } call;
enum { READING_CALLS = 4 };

typedef struct io {
    call call;
    conc_stream *s;
    void *buf; /* to read into, or to write from */
    size_t n;
    char *data; /* what read_until and read_line return */
    ssize_t rc;
    bool done;
    conc_task task;
} io;

static ssize_t do_io(io *c)
{
    switch (c->call) {
    case READ: return conc_stream_read(c->s, c->buf, c->n);
    case READ_FULL: return conc_stream_read_full(c->s, c->buf, c->n);
    case READ_UNTIL: return conc_stream_read_until(c->s, "\n", 1, &c->data);
    case READ_LINE: return conc_stream_read_line(c->s, &c->data);
    case WRITE: return conc_stream_write(c->s, c->buf, c->n);
    case FLUSH: return conc_stream_flush(c->s);
    case SHUTDOWN: return conc_stream_shutdown(c->s);
    case CLOSE: break;
    }
    return conc_stream_close(c->s);
}

static int io_task(void *arg)
{
    io *c = arg;
    c->rc = do_io(c);
    c->done = true;
    return 0;
}

static void begin_io(conc_group *g, io *c)
{
    c->done = false;
    CHECK_INT(conc_spawn_task(g, &c->task, io_task, c), 0);
}

static void wait_for(conc_group *g) { CHECK_INT(conc_group_wait(g), 0); }

/* Reads everything from fd until its end, as another program would. */
static char heard[sizeof pattern];

typedef struct listener {
    int fd;
    size_t n;
    conc_task task;
} listener;

static int listen_to_the_end(void *arg)
{
    listener *l = arg;
    ssize_t n;
    while ((n = conc_read(l->fd, heard + l->n, sizeof heard - l->n)) > 0)
        l->n += (size_t)n;
    return (int)n;
}

static void begin_listening(conc_group *g, listener *l, int fd)
{
    l->fd = fd;
    CHECK_INT(conc_spawn_task(g, &l->task, listen_to_the_end, l), 0);
}

/* Waits for the writers, if any, and closes the stream while its peer reads everything into heard.
 * Returns how much. The listener's group was opened before that of the writers. */
static size_t finish_and_hear(pair *p, conc_group *listening, conc_group *writing)
{
    static listener l;
    l = (listener){0};
    begin_listening(listening, &l, p->peer);
    if (writing)
        wait_for(writing);
    CHECK_INT(conc_stream_close(&p->s), 0);
    wait_for(listening);
    hang_up(p);
    return l.n;
}

static size_t close_and_hear(pair *p)
{
    conc_group g = {0};
    return finish_and_hear(p, &g, NULL);
}

/* ---- reading ---- */

IO_TEST(a_read_returns_what_there_is_and_at_most_n_bytes)
{
    pair p = {0};
    char buf[20] = "";
    open_pair(&p);
    say(p.peer, "hello world");
    CHECK_INT(conc_stream_read(&p.s, buf, 5), 5);
    CHECK_BYTES(buf, "hello", 5);
    CHECK_INT(conc_stream_read(&p.s, buf, sizeof buf), 6);
    CHECK_BYTES(buf, " world", 6);
    close_pair(&p);
    CHECK_TIME(0);
}

IO_TEST(a_read_waits_only_while_nothing_is_there)
{
    for (int c = 0; c < READING_CALLS; c++) {
        pair p = {0};
        char buf[3];
        io reader = {.call = (call)c, .s = &p.s, .buf = buf, .n = 3};
        conc_group g = {0};
        open_pair(&p);
        begin_io(&g, &reader);
        let_them_run();
        CHECK(!reader.done);
        say(p.peer, "hi\n");
        wait_for(&g);
        CHECK_INT(reader.rc, c == READ_LINE ? 2 : 3);
        CHECK_BYTES(c < READ_UNTIL ? buf : reader.data, "hi", 2);
        close_pair(&p);
    }
}

IO_TEST(a_read_of_nothing_returns_0_at_once_and_takes_nothing)
{
    pair p = {0};
    char buf[4] = "";
    open_pair(&p);
    CHECK_INT(conc_stream_read(&p.s, buf, 0), 0);
    CHECK_INT(conc_stream_read_full(&p.s, buf, 0), 0);
    CHECK_INT(conc_stream_read(&p.s, NULL, 0), 0);
    say(p.peer, "abc");
    CHECK_INT(conc_stream_read(&p.s, buf, 0), 0);
    CHECK_INT(conc_stream_read(&p.s, buf, 1), 1);
    CHECK_INT(conc_stream_read(&p.s, buf, 0), 0);
    CHECK_INT(conc_stream_read_full(&p.s, buf, 0), 0);
    CHECK_INT(conc_stream_read(&p.s, buf, 4), 2);
    CHECK_BYTES(buf, "bc", 2);
    hang_up(&p);
    CHECK_INT(conc_stream_read(&p.s, buf, 0), 0);
    CHECK_INT(conc_stream_close(&p.s), 0);
    CHECK_TIME(0);
}

IO_TEST(after_the_end_of_file_every_read_returns_0_again_and_again)
{
    pair p = {0};
    char buf[8];
    open_pair(&p);
    say(p.peer, "last");
    hang_up(&p);
    CHECK_INT(conc_stream_read(&p.s, buf, sizeof buf), 4);
    check_end_of_file(&p.s);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

IO_TEST(a_waiting_read_ends_at_the_end_of_file)
{
    for (int c = 0; c < READING_CALLS; c++) {
        pair p = {0};
        char buf[3];
        io reader = {.call = (call)c, .s = &p.s, .buf = buf, .n = 3, .data = buf, .rc = 9};
        conc_group g = {0};
        open_pair(&p);
        begin_io(&g, &reader);
        let_them_run();
        CHECK(!reader.done);
        hang_up(&p);
        wait_for(&g);
        CHECK_INT(reader.rc, 0);
        CHECK(c < READ_UNTIL || reader.data == NULL);
        close_pair(&p);
    }
}

IO_TEST(read_full_gathers_pieces_until_it_has_n_bytes)
{
    pair p = {.s = {.buffer_size = 4}};
    char buf[11];
    io reader = {.call = READ_FULL, .s = &p.s, .buf = buf, .n = 11};
    conc_group g = {0};
    open_pair(&p);
    begin_io(&g, &reader);
    for (const char *text = "hello world, again"; *text && !reader.done; text++) {
        say_bytes(p.peer, text, 1);
        CHECK(!reader.done);
        let_them_run();
    }
    wait_for(&g);
    CHECK_INT(reader.rc, 11);
    CHECK_BYTES(buf, "hello world", 11);
    hang_up(&p);
    check_end_of_file(&p.s);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

IO_TEST(read_full_returns_fewer_bytes_at_the_end_of_file_and_then_0)
{
    pair p = {0};
    char buf[16];
    open_pair(&p);
    say(p.peer, "short");
    hang_up(&p);
    CHECK_INT(conc_stream_read_full(&p.s, buf, sizeof buf), 5);
    CHECK_BYTES(buf, "short", 5);
    check_end_of_file(&p.s);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

/* Writes n bytes of the pattern, flushes and closes. */
typedef struct speaker {
    conc_stream *s;
    size_t n;
} speaker;

static int speak_and_close(void *arg)
{
    speaker *k = arg;
    CHECK_INT(conc_stream_write(k->s, pattern, k->n), k->n);
    CHECK_INT(conc_stream_flush(k->s), 0);
    CHECK_INT(conc_stream_close(k->s), 0);
    return 0;
}

static void open_both(conc_stream *a, conc_stream *b, kind k)
{
    int ends[2];
    connect_two(k, ends);
    CHECK_INT(open_stream(a, ends[0], k), 0);
    CHECK_INT(open_stream(b, ends[1], k), 0);
}

IO_TEST(read_full_of_more_than_limit_and_buffer_size_works)
{
    conc_stream a = {.buffer_size = 100}, b = {.limit = 10, .buffer_size = 16};
    speaker k = {&a, 300 * KB};
    conc_group g = {0};
    open_both(&a, &b, usual_kind);
    CHECK_INT(conc_spawn(&g, speak_and_close, &k), 0);
    CHECK_INT(conc_stream_read_full(&b, heard, 300 * KB), 300 * KB);
    CHECK_BYTES(heard, pattern, 300 * KB);
    check_end_of_file(&b);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&b), 0);
}

IO_TEST(reading_until_the_end_of_file_yields_every_byte_in_order)
{
    for (size_t size = 1; size <= 100000; size = size * 10 + 7) {
        conc_stream a = {0}, b = {.buffer_size = size};
        speaker k = {&a, size < 10 ? 5 * KB : MB};
        conc_group g = {0};
        size_t got = 0;
        open_both(&a, &b, usual_kind);
        CHECK_INT(conc_spawn(&g, speak_and_close, &k), 0);
        for (ssize_t n; (n = conc_stream_read(&b, heard + got, 1 + got % 50000)) != 0;
             got += (size_t)n)
            CHECK(n > 0 && (size_t)n <= 1 + got % 50000);
        CHECK_INT(got, k.n);
        CHECK_BYTES(heard, pattern, got);
        wait_for(&g);
        CHECK_INT(conc_stream_close(&b), 0);
    }
}

IO_TEST(a_peer_that_only_stopped_writing_still_receives)
{
    pair p = {0};
    open_pair(&p);
    say(p.peer, "bye\n");
    CHECK_INT(shutdown(p.peer, SHUT_WR), 0);
    check_line(&p.s, "bye");
    check_end_of_file(&p.s);
    write_text(&p.s, "bye bye\n");
    CHECK_INT(conc_stream_flush(&p.s), 0);
    check_heard(p.peer, "bye bye\n");
    check_end_of_file(&p.s);
    close_pair(&p);
}

/* ---- lines and records ---- */

/* Sends text in two pieces, with time to receive the first one, then hangs up. */
typedef struct feed {
    int fd;
    const char *text;
    size_t n, split;
} feed;

static int say_in_two(void *arg)
{
    feed *f = arg;
    say_bytes(f->fd, f->text, f->split);
    CHECK_INT(conc_sleep(1), 0);
    say_bytes(f->fd, f->text + f->split, f->n - f->split);
    CHECK_INT(conc_close(f->fd), 0);
    return 0;
}

static void begin_feed(conc_group *g, feed *f, pair *p, size_t split)
{
    f->fd = p->peer;
    f->split = split;
    p->peer = -1;
    CHECK_INT(conc_spawn(g, say_in_two, f), 0);
}

typedef struct line {
    const char *text;
    size_t n;
} line;

#define LINE(text)             \
    {                          \
        text, sizeof(text) - 1 \
    }

static void check_lines(feed *f, size_t split, size_t buffer_size, const line *lines, size_t count)
{
    pair p = {.s = {.buffer_size = buffer_size}};
    conc_group g = {0};
    char *data;
    open_pair(&p);
    begin_feed(&g, f, &p, split);
    for (size_t i = 0; i < count; i++) {
        CHECK_INT(conc_stream_read_line(&p.s, &data), lines[i].n);
        CHECK(data != NULL);
        CHECK_BYTES(data, lines[i].text, lines[i].n + 1);
    }
    check_end_of_file(&p.s);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

static void check_lines_at_all_splits(feed *f, const line *lines, size_t count)
{
    static const size_t sizes[] = {1, 2, 3, 7, 4096};
    for (size_t i = 0; i < CONC_LEN(sizes); i++)
        for (size_t split = 0; split <= f->n; split++)
            check_lines(f, split, sizes[i], lines, count);
}

PLAIN_IO_TEST(lines_come_without_their_ends_wherever_the_reads_are_split)
{
    static const char text[] = "one\ntwo\r\n\n\r\nth\rree\r\r\n\r\n\nfour\0and\0\n\0\nlast\n";
    static const line lines[] = {LINE("one"),       LINE("two"), LINE(""), LINE(""),
                                 LINE("th\rree\r"), LINE(""),    LINE(""), LINE("four\0and\0"),
                                 LINE("\0"),        LINE("last")};
    feed f = {-1, text, sizeof text - 1, 0};
    check_lines_at_all_splits(&f, lines, CONC_LEN(lines));
}

PLAIN_IO_TEST(a_last_line_without_an_end_is_a_line)
{
    static const line plain[] = {LINE("one"), LINE("last")},
                      returned[] = {LINE("one"), LINE("last\r")};
    feed f = {-1, "one\nlast", 8, 0}, r = {-1, "one\nlast\r", 9, 0};
    check_lines_at_all_splits(&f, plain, 2);
    check_lines_at_all_splits(&r, returned, 2);
}

PLAIN_IO_TEST(a_file_that_ends_with_an_empty_line_has_that_line_and_no_more)
{
    static const line lines[] = {LINE("one"), LINE("")};
    feed f = {-1, "one\n\n", 5, 0}, empty = {-1, "", 0, 0};
    check_lines_at_all_splits(&f, lines, 2);
    check_lines_at_all_splits(&empty, lines, 0);
}

IO_TEST(a_line_is_put_together_from_chunks_and_the_rest_stays)
{
    static const char *const chunks[] = {"chunk1 ", "chunk2 ", "chunk3 ", "\n chunk4"};
    pair p = {0};
    io reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    open_pair(&p);
    begin_io(&g, &reader);
    for (int i = 0; i < 4; i++) {
        let_them_run();
        CHECK(!reader.done);
        say(p.peer, chunks[i]);
    }
    wait_for(&g);
    CHECK_INT(reader.rc, 21);
    CHECK_STR(reader.data, "chunk1 chunk2 chunk3 ");
    hang_up(&p);
    check_line(&p.s, " chunk4");
    check_end_of_file(&p.s);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

/* The length of the record at the start of text, with its delimiter, or of what is left. */
static size_t record_length(const char *text, size_t n, const char *delimiter, size_t d)
{
    for (size_t i = 0; i + d <= n; i++)
        if (memcmp(text + i, delimiter, d) == 0)
            return i + d;
    return n;
}

static void check_records(feed *f, size_t split, size_t buffer_size, const char *delimiter,
                          size_t d)
{
    pair p = {.s = {.buffer_size = buffer_size}};
    conc_group g = {0};
    char *data;
    open_pair(&p);
    begin_feed(&g, f, &p, split);
    for (size_t at = 0, n; at < f->n; at += n) {
        n = record_length(f->text + at, f->n - at, delimiter, d);
        CHECK_INT(conc_stream_read_until(&p.s, delimiter, d, &data), n);
        CHECK_BYTES(data, f->text + at, n);
        CHECK_INT(data[n], 0);
    }
    CHECK_INT(conc_stream_read_until(&p.s, delimiter, d, &data), 0);
    CHECK(data == NULL);
    check_end_of_file(&p.s);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

static size_t append(char *text, size_t n, const char *more, size_t length)
{
    memcpy(text + n, more, length);
    return n + length;
}

/* Records that begin like the delimiter: after each prefix of it comes something else, or all of
 * it. */
static void check_delimiter(const char *delimiter, size_t d)
{
    static const size_t sizes[] = {1, 3, 4096};
    char text[1024];
    size_t n = 0, beginnings[] = {0, 1, d / 2, d - 1};
    for (size_t i = 0; i < CONC_LEN(beginnings); i++) {
        n = append(text, n, delimiter, beginnings[i]);
        n = append(text, n, delimiter, d);
        n = append(text, n, delimiter, beginnings[i]);
        n = append(text, n, "QWE", 3);
    }
    n = append(text, n, delimiter, d);
    n = append(text, n, delimiter, d);
    n = append(text, n, delimiter, d - 1);
    feed f = {-1, text, n, 0};
    for (size_t i = 0; i < CONC_LEN(sizes); i++)
        for (size_t split = 0; split <= n; split++)
            check_records(&f, split, sizes[i], delimiter, d);
}

#define FORTY "--------------------------------boundary"

PLAIN_IO_TEST(a_delimiter_of_1_byte_is_found_wherever_the_reads_are_split)
{
    check_delimiter(";", 1);
}

PLAIN_IO_TEST(a_delimiter_of_2_bytes_is_found_wherever_the_reads_are_split)
{
    check_delimiter("\r\n", 2);
    check_delimiter("aa", 2);
}

PLAIN_IO_TEST(a_delimiter_of_3_bytes_is_found_wherever_the_reads_are_split)
{
    check_delimiter("aab", 3);
    check_delimiter("aaa", 3);
    check_delimiter("aba", 3);
}

PLAIN_IO_TEST(a_delimiter_that_repeats_itself_is_found_wherever_the_reads_are_split)
{
    check_delimiter("aaab", 4);
    check_delimiter("abcabcabd", 9);
}

PLAIN_IO_TEST(a_delimiter_of_40_bytes_is_found_wherever_the_reads_are_split)
{
    check_delimiter(FORTY, 40);
}

PLAIN_IO_TEST(a_delimiter_of_NUL_bytes_is_found_wherever_the_reads_are_split)
{
    check_delimiter("\0", 1);
    check_delimiter("\0\0", 2);
    check_delimiter("\0\1\0", 3);
}

IO_TEST(a_delimiter_that_arrives_in_three_pieces_after_a_false_start_is_found)
{
    pair p = {0};
    char *data;
    conc_group g = {0};
    feed f = {-1, "QWEaaXYaaa", 10, 0};
    open_pair(&p);
    say(p.peer, "QWEaa");
    f.text += 5;
    f.n -= 5;
    begin_feed(&g, &f, &p, 4);
    CHECK_INT(conc_stream_read_until(&p.s, "aaa", 3, &data), 10);
    CHECK_STR(data, "QWEaaXYaaa");
    wait_for(&g);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

PLAIN_IO_TEST(the_NUL_behind_a_record_does_not_damage_the_next_byte)
{
    for (int c = 0; c < READING_CALLS; c++) {
        for (size_t size = 1; size < 9; size++) {
            pair p = {.s = {.buffer_size = size}};
            char buf[8] = "", *data;
            io next = {.call = (call)c, .s = &p.s, .buf = buf, .n = 3};
            open_pair(&p);
            say(p.peer, "ab|cd\nef\n");
            CHECK_INT(conc_stream_read_until(&p.s, "|", 1, &data), 3);
            CHECK_STR(data, "ab|");
            CHECK_INT(conc_stream_read_until(&p.s, "d", 1, &data), 2);
            CHECK_STR(data, "cd");
            CHECK_INT(conc_stream_read(&p.s, buf, 1), 1);
            CHECK_INT(buf[0], '\n');
            CHECK_INT(conc_stream_read_until(&p.s, "e", 1, &data), 1);
            CHECK_STR(data, "e");
            hang_up(&p);
            ssize_t n = do_io(&next);
            CHECK(n >= 1);
            CHECK_BYTES(c < READ_UNTIL ? buf : next.data, "f\n", c == READ_LINE ? 1 : (size_t)n);
            CHECK_INT(conc_stream_close(&p.s), 0);
        }
    }
}

PLAIN_IO_TEST(a_record_stays_where_it_is_while_the_stream_is_written_to)
{
    pair p = {.s = {.buffer_size = 16}};
    char *data;
    open_pair(&p);
    say(p.peer, "stay,go");
    CHECK_INT(conc_stream_read_until(&p.s, ",", 1, &data), 5);
    for (int i = 0; i < 100; i++) {
        CHECK_INT(conc_stream_printf(&p.s, "number %d\n", i), i < 10 ? 9 : 10);
        CHECK_STR(data, "stay,");
    }
    CHECK_INT(conc_stream_flush(&p.s), 0);
    say(p.peer, " on\n");
    let_them_run();
    CHECK_STR(data, "stay,");
    check_line(&p.s, "go on");
    close_pair(&p);
}

PLAIN_IO_TEST(lines_of_every_length_around_the_buffer_size_are_read)
{
    pair p = {.s = {.buffer_size = 64}};
    conc_group g = {0};
    static char text[200 * 200];
    size_t n = 0;
    char *data;
    for (size_t length = 0; length < 200; length++) {
        n = append(text, n, pattern, length);
        text[n++] = '\n';
    }
    feed f = {-1, text, n, 0};
    open_pair(&p);
    begin_feed(&g, &f, &p, n / 2);
    for (size_t length = 0; length < 200; length++) {
        CHECK_INT(conc_stream_read_line(&p.s, &data), length);
        CHECK_BYTES(data, pattern, length);
        CHECK_INT(data[length], 0);
    }
    check_end_of_file(&p.s);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

IO_TEST(bytes_of_a_cancelled_search_are_searched_again_for_another_delimiter)
{
    pair p = {0};
    char buf[8], *data;
    io reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    open_pair(&p);
    say(p.peer, "a,bb;ccc,d");
    begin_io(&g, &reader);
    let_them_run();
    CHECK_INT(conc_cancel(&reader.task), 0);
    wait_for(&g);
    CHECK_INT(reader.rc, -ECANCELED);
    CHECK_INT(conc_stream_read_until(&p.s, ";", 1, &data), 5);
    CHECK_STR(data, "a,bb;");
    CHECK_INT(conc_stream_read(&p.s, buf, 2), 2);
    CHECK_BYTES(buf, "cc", 2);
    CHECK_INT(conc_stream_read_until(&p.s, ",", 1, &data), 2);
    CHECK_STR(data, "c,");
    say(p.peer, "\n");
    check_line(&p.s, "d");
    close_pair(&p);
}

IO_TEST(a_delimiter_that_begins_in_bytes_of_a_cancelled_search_is_found)
{
    for (size_t taken = 0; taken < 4; taken++) {
        pair p = {0};
        char buf[8], *data;
        conc_scope c = {0};
        open_pair(&p);
        say(p.peer, "12aa");
        CHECK_INT(conc_scope_begin(&c, 1), 0);
        CHECK_INT(conc_scope_end(&c, (int)conc_stream_read_until(&p.s, "aaab", 4, &data)),
                  -ETIMEDOUT);
        CHECK_INT(conc_stream_read_full(&p.s, buf, taken), taken);
        say(p.peer, taken < 3 ? "ab" : "aab");
        CHECK_INT(conc_stream_read_until(&p.s, "aaab", 4, &data), taken < 3 ? 6 - taken : 4);
        CHECK_STR(data + strlen(data) - 4, "aaab");
        close_pair(&p);
    }
}

/* ---- the limit ---- */

typedef struct limits {
    size_t limit, buffer_size;
    const char *delimiter;
    size_t d;
    bool ends; /* the record that is too long has an end */
} limits;

static size_t make_record(char *text, size_t length, const limits *l, bool ends)
{
    memcpy(text, pattern, length);
    if (ends)
        memcpy(text + length, l->delimiter, l->d);
    else
        memset(text + length, '.', l->d);
    return length + l->d;
}

static void check_too_long(conc_stream *s, const limits *l, const char *text, size_t n)
{
    char *data;
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_stream_read_until(s, l->delimiter, l->d, &data), -EMSGSIZE);
    for (size_t got = 0, part; got < n; got += part) {
        ssize_t rc = conc_stream_read(s, heard, n - got < 7 ? n - got : 7);
        CHECK(rc > 0);
        part = (size_t)rc;
        CHECK_BYTES(heard, text + got, part);
    }
}

static void check_limit(const limits *l)
{
    pair p = {.s = {.limit = l->limit, .buffer_size = l->buffer_size}};
    static char text[100000];
    char *data;
    open_pair(&p);
    size_t n = make_record(text, l->limit, l, true);
    say_bytes(p.peer, text, n);
    CHECK_INT(conc_stream_read_until(&p.s, l->delimiter, l->d, &data), n);
    CHECK_BYTES(data, text, n);
    n = make_record(text, l->limit + 1, l, l->ends);
    say_bytes(p.peer, text, n);
    check_too_long(&p.s, l, text, n);
    n = make_record(text, l->limit + 1, l, l->ends);
    size_t whole = n + make_record(text + n, 1, l, true);
    say_bytes(p.peer, text, whole);
    check_too_long(&p.s, l, text, n);
    CHECK_INT(conc_stream_read_until(&p.s, l->delimiter, l->d, &data), whole - n);
    CHECK_BYTES(data, text + n, whole - n);
    CHECK_INT(data[whole - n], 0);
    close_pair(&p);
}

PLAIN_IO_TEST(a_record_of_limit_bytes_is_read_and_a_longer_one_is_EMSGSIZE_and_loses_nothing)
{
    static const size_t some[] = {1, 2, 10, 64, 100, 5000}, sizes[] = {1, 10, 64, 4096};
    static const line delimiters[] = {LINE("\n"), LINE("\1\2"), LINE("\1\1\2"), LINE("\3" FORTY)};
    for (size_t i = 0; i < CONC_LEN(some) * CONC_LEN(sizes) * CONC_LEN(delimiters); i++) {
        const line *d = &delimiters[i % 4];
        limits l = {some[i / 4 % 6], sizes[i / 24], d->text, d->n, true};
        check_limit(&l);
        l.ends = false;
        check_limit(&l);
    }
}

PLAIN_IO_TEST(the_limit_is_65536_bytes_by_default)
{
    pair p = {0};
    char *data;
    conc_group g = {0};
    conc_stream a = {0}, b = {0};
    open_both(&a, &b, usual_kind);
    pattern[65536] = '\n';
    pattern[65537 + 65537] = '\n';
    speaker k = {&a, 65537 + 65538};
    CHECK_INT(conc_spawn(&g, speak_and_close, &k), 0);
    CHECK_INT(conc_stream_read_until(&b, "\n", 1, &data), 65537);
    CHECK_BYTES(data, pattern, 65537);
    CHECK_INT(conc_stream_read_until(&b, "\n", 1, &data), -EMSGSIZE);
    CHECK_INT(conc_stream_read_line(&b, &data), -EMSGSIZE);
    CHECK_INT(conc_stream_read_full(&b, heard, 65538), 65538);
    CHECK_BYTES(heard, pattern + 65537, 65538);
    check_end_of_file(&b);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&b), 0);
    open_pair(&p);
    close_pair(&p);
}

PLAIN_IO_TEST(an_end_of_line_of_two_bytes_does_not_count_against_the_limit)
{
    for (size_t size = 1; size < 20; size += 3) {
        pair p = {.s = {.limit = 5, .buffer_size = size}};
        char buf[8], *data;
        open_pair(&p);
        say(p.peer, "12345\r\n12345\n1234\r\r\n123456\n");
        check_line(&p.s, "12345");
        check_line(&p.s, "12345");
        check_line(&p.s, "1234\r");
        CHECK_INT(conc_stream_read_line(&p.s, &data), -EMSGSIZE);
        CHECK_INT(conc_stream_read_line(&p.s, &data), -EMSGSIZE);
        CHECK_INT(conc_stream_read_full(&p.s, buf, 7), 7);
        CHECK_BYTES(buf, "123456\n", 7);
        say(p.peer, "12345\rX\n");
        CHECK_INT(conc_stream_read_line(&p.s, &data), -EMSGSIZE);
        CHECK_INT(conc_stream_read_full(&p.s, buf, 8), 8);
        CHECK_BYTES(buf, "12345\rX\n", 8);
        close_pair(&p);
    }
}

IO_TEST(at_the_limit_the_rest_of_a_delimiter_is_waited_for)
{
    for (int good = 0; good < 2; good++) {
        pair p = {.s = {.limit = 3}};
        char *data = NULL;
        conc_group g = {0};
        feed f = {-1, good ? "xxxab" : "xxxac", 5, 0};
        open_pair(&p);
        begin_feed(&g, &f, &p, 4);
        CHECK_INT(conc_stream_read_until(&p.s, "ab", 2, &data), good ? 5 : -EMSGSIZE);
        CHECK_INT(conc_stream_read_full(&p.s, heard, 100), good ? 0 : 5);
        wait_for(&g);
        CHECK_INT(conc_stream_close(&p.s), 0);
    }
}

IO_TEST(a_record_of_limit_bytes_whose_end_is_still_to_come_is_waited_for)
{
    pair p = {.s = {.limit = 5, .buffer_size = 5}};
    io reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    open_pair(&p);
    say(p.peer, "12345");
    begin_io(&g, &reader);
    let_them_run();
    CHECK(!reader.done);
    say(p.peer, "\r");
    let_them_run();
    CHECK(!reader.done);
    say(p.peer, "\n");
    wait_for(&g);
    CHECK_INT(reader.rc, 5);
    CHECK_STR(reader.data, "12345");
    close_pair(&p);
}

PLAIN_IO_TEST(the_limit_applies_to_the_rest_at_the_end_of_file)
{
    pair fits = {.s = {.limit = 5}}, longer = {.s = {.limit = 5}};
    char buf[8], *data;
    open_pair(&fits);
    say(fits.peer, "12345");
    hang_up(&fits);
    check_line(&fits.s, "12345");
    check_end_of_file(&fits.s);
    CHECK_INT(conc_stream_close(&fits.s), 0);
    open_pair(&longer);
    say(longer.peer, "123456");
    hang_up(&longer);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_stream_read_line(&longer.s, &data), -EMSGSIZE);
        CHECK_INT(conc_stream_read_until(&longer.s, "\n", 1, &data), -EMSGSIZE);
        CHECK_INT(conc_stream_read_until(&longer.s, "\r\n", 2, &data), -EMSGSIZE);
    }
    CHECK_INT(conc_stream_read(&longer.s, buf, 8), 6);
    CHECK_BYTES(buf, "123456", 6);
    check_end_of_file(&longer.s);
    CHECK_INT(conc_stream_close(&longer.s), 0);
}

PLAIN_IO_TEST(a_buffer_larger_than_all_memory_is_refused)
{
    pair p = {.s = {.buffer_size = SIZE_MAX}};
    int ends[2];
    char *data;
    connect_two(usual_kind, ends);
    int rc = conc_stream_open(&p.s, ends[0]);
    if (rc == 0) {
        say(ends[1], "line\n");
        CHECK_INT(conc_stream_read_line(&p.s, &data), -ENOMEM);
        CHECK_INT(conc_stream_write(&p.s, "line\n", 5), -ENOMEM);
        CHECK_INT(conc_stream_close(&p.s), 0);
    } else {
        CHECK(rc == -EINVAL || rc == -ENOMEM);
        CHECK_INT(conc_close(ends[0]), 0);
    }
    CHECK_INT(conc_close(ends[1]), 0);
}

PLAIN_IO_TEST(with_the_largest_limit_a_record_may_have_any_length)
{
    conc_stream a = {0}, b = {.limit = SIZE_MAX};
    conc_group g = {0};
    char *data;
    speaker k = {&a, 3 * MB};
    pattern[3 * MB - 1] = '\n';
    open_both(&a, &b, usual_kind);
    CHECK_INT(conc_spawn(&g, speak_and_close, &k), 0);
    CHECK_INT(conc_stream_read_line(&b, &data), 3 * MB - 1);
    CHECK_BYTES(data, pattern, 3 * MB - 1);
    check_end_of_file(&b);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&b), 0);
}

/* ---- cancelled reads ---- */

/* One read of any kind, which appends its result to the earlier ones. */
typedef struct taker {
    conc_stream *s;
    call call;
    double limit; /* time limit of all its reads together, in seconds */
    char got[256];
    size_t n;
    int rc; /* of the scope of all its reads */
    conc_task task;
} taker;

static ssize_t take(taker *t)
{
    char buf[7];
    io c = {t->call, t->s, buf, sizeof buf, NULL, 0, false, {0}};
    ssize_t rc = do_io(&c);
    if (rc < 0 || (rc == 0 && !c.data))
        return rc;
    CHECK(t->n + (size_t)rc + 1 < sizeof t->got);
    t->n = append(t->got, t->n, c.data ? c.data : buf, (size_t)rc);
    if (t->call == READ_LINE)
        t->got[t->n++] = '\n';
    return rc + 1;
}

static int take_all(void *arg)
{
    taker *t = arg;
    ssize_t rc;
    conc_scope limit = {0};
    CHECK_INT(conc_scope_begin(&limit, t->limit), 0);
    do
        rc = take(t);
    while (rc > 0);
    t->rc = conc_scope_end(&limit, (int)rc);
    return 0;
}

typedef enum order { CANCEL_FIRST, DATA_FIRST, CANCEL_ALONE, ORDERS } order;

static const char lines_to_take[] = "first line\nsecond\n\nfour\n";
enum { TO_TAKE = sizeof lines_to_take - 1 };

/* Cancels the reader after `before` bytes, while it waits for more or at the moment when more
 * arrive. */
static void check_cancelled_taker(call c, size_t before, order o)
{
    pair p = {.s = {.buffer_size = 8}};
    taker t = {.s = &p.s, .call = c, .limit = CONC_FOREVER};
    conc_group g = {0};
    open_pair(&p);
    CHECK_INT(conc_spawn_task(&g, &t.task, take_all, &t), 0);
    say_bytes(p.peer, lines_to_take, before);
    let_them_run();
    if (o == DATA_FIRST)
        say(p.peer, lines_to_take + before);
    CHECK_INT(conc_cancel(&t.task), 0);
    if (o == CANCEL_FIRST)
        say(p.peer, lines_to_take + before);
    wait_for(&g);
    CHECK_INT(t.rc, -ECANCELED);
    if (o == CANCEL_ALONE)
        say(p.peer, lines_to_take + before);
    hang_up(&p);
    CHECK_INT(take_all(&t), 0);
    CHECK_INT(t.rc, 0);
    CHECK_INT(t.n, TO_TAKE);
    CHECK_BYTES(t.got, lines_to_take, TO_TAKE);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

static void check_cancelled_takers(call c)
{
    for (int o = 0; o < ORDERS; o++)
        for (size_t before = 0; before <= TO_TAKE; before++)
            check_cancelled_taker(c, before, (order)o);
}

IO_TEST(a_cancelled_read_loses_no_byte) { check_cancelled_takers(READ); }

IO_TEST(a_cancelled_read_full_loses_no_byte) { check_cancelled_takers(READ_FULL); }

IO_TEST(a_cancelled_read_until_loses_no_byte) { check_cancelled_takers(READ_UNTIL); }

IO_TEST(a_cancelled_read_line_loses_no_byte) { check_cancelled_takers(READ_LINE); }

/* The rest arrives at the same moment as the time limit, or never before it. */
static void check_late_taker(call c, size_t before, bool same_moment)
{
    pair p = {.s = {.buffer_size = 8}};
    taker t = {.s = &p.s, .call = c, .limit = 2};
    conc_group g = {0};
    open_pair(&p);
    CHECK_INT(conc_spawn_task(&g, &t.task, take_all, &t), 0);
    say_bytes(p.peer, lines_to_take, before);
    CHECK_INT(conc_sleep(same_moment ? 2 : 3), 0);
    say(p.peer, lines_to_take + before);
    wait_for(&g);
    CHECK_INT(t.rc, -ETIMEDOUT);
    hang_up(&p);
    t.limit = CONC_FOREVER;
    CHECK_INT(take_all(&t), 0);
    CHECK_INT(t.rc, 0);
    CHECK_INT(t.n, TO_TAKE);
    CHECK_BYTES(t.got, lines_to_take, TO_TAKE);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

IO_TEST(a_read_that_timed_out_loses_no_byte)
{
    for (int c = 0; c < READING_CALLS; c++)
        for (size_t before = 0; before <= TO_TAKE; before++)
            for (int same_moment = 0; same_moment < 2; same_moment++)
                check_late_taker((call)c, before, same_moment);
}

IO_TEST(in_a_cancelled_scope_no_read_has_an_effect)
{
    for (int c = 0; c < READING_CALLS; c++) {
        pair p = {0};
        conc_scope cancelled = {0};
        char buf[8], *data;
        io reader = {.call = (call)c, .s = &p.s, .buf = buf, .n = 3};
        open_pair(&p);
        say(p.peer, "ab|cd\nef\n");
        /* the rest is in the buffer now */
        CHECK_INT(conc_stream_read_until(&p.s, "|", 1, &data), 3);
        begin_cancelled(&cancelled);
        for (int i = 0; i < 5; i++)
            CHECK_INT(do_io(&reader), -ECANCELED);
        end_cancelled(&cancelled);
        check_line(&p.s, "cd");
        check_line(&p.s, "ef");
        hang_up(&p);
        cancelled = (conc_scope){0};
        begin_cancelled(&cancelled); /* at the end of file it is the same */
        CHECK_INT(do_io(&reader), -ECANCELED);
        end_cancelled(&cancelled);
        check_end_of_file(&p.s);
        CHECK_INT(conc_stream_close(&p.s), 0);
    }
}

IO_TEST(a_cancelled_read_full_returns_how_much_it_has)
{
    pair p = {0};
    char buf[10];
    io reader = {.call = READ_FULL, .s = &p.s, .buf = buf, .n = 10};
    conc_group g = {0};
    open_pair(&p);
    say(p.peer, "12345");
    begin_io(&g, &reader);
    let_them_run();
    CHECK_INT(conc_cancel(&reader.task), 0);
    wait_for(&g);
    CHECK_INT(reader.rc, 5);
    CHECK_BYTES(buf, "12345", 5);
    say(p.peer, "67890");
    CHECK_INT(conc_stream_read_full(&p.s, buf, 5), 5);
    CHECK_BYTES(buf, "67890", 5);
    close_pair(&p);
}

static int read_full_twice(void *arg)
{
    io *c = arg;
    c->rc = do_io(c);
    CHECK_INT(do_io(c), -ECANCELED);
    return 0;
}

IO_TEST(after_a_short_read_full_the_cancel_is_seen_at_the_next_checkpoint)
{
    pair p = {0};
    char buf[10];
    io reader = {.call = READ_FULL, .s = &p.s, .buf = buf, .n = 10};
    conc_group g = {0};
    open_pair(&p);
    say(p.peer, "123");
    CHECK_INT(conc_spawn_task(&g, &reader.task, read_full_twice, &reader), 0);
    let_them_run();
    say(p.peer, "45"); /* at the moment of the cancel: for this call or for the next one */
    CHECK_INT(conc_cancel(&reader.task), 0);
    wait_for(&g);
    CHECK(reader.rc == 3 || reader.rc == 5);
    CHECK_BYTES(buf, "12345", (size_t)reader.rc);
    size_t rest = 5 - (size_t)reader.rc;
    hang_up(&p);
    CHECK_INT(conc_stream_read_full(&p.s, buf, 10), rest);
    CHECK_BYTES(buf, &"12345"[reader.rc], rest);
    CHECK_INT(conc_stream_close(&p.s), 0);
}

IO_TEST(an_error_that_comes_after_the_cancel_of_a_read_does_no_harm)
{
    pair p = {0};
    char buf[4];
    io reader = {.call = READ, .s = &p.s, .buf = buf, .n = 4};
    conc_group g = {0};
    open_pair(&p);
    write_text(&p.s, "unread");
    CHECK_INT(conc_stream_flush(&p.s), 0);
    begin_io(&g, &reader);
    let_them_run();
    CHECK_INT(conc_cancel(&reader.task), 0);
    hang_up(&p); /* with unread bytes: a reset */
    wait_for(&g);
    CHECK_INT(reader.rc, -ECANCELED);
    CHECK(conc_stream_read(&p.s, buf, 4) <= 0);
    CHECK(conc_stream_close(&p.s) <= 0);
}

/* ---- two tasks ---- */

IO_TEST(a_second_task_that_reads_is_busy_and_does_not_disturb_the_first)
{
    for (int first = 0; first < READING_CALLS; first++) {
        pair p = {0};
        char buf[4], other[4], *data;
        io reader = {.call = (call)first, .s = &p.s, .buf = buf, .n = 3};
        conc_group g = {0};
        open_pair(&p);
        begin_io(&g, &reader);
        let_them_run();
        for (int round = 0; round < 2; round++) {
            CHECK_INT(conc_stream_read(&p.s, other, 4), -EBUSY);
            CHECK_INT(conc_stream_read_full(&p.s, other, 4), -EBUSY);
            CHECK_INT(conc_stream_read_until(&p.s, "a", 1, &data), -EBUSY);
            CHECK_INT(conc_stream_read_line(&p.s, &data), -EBUSY);
            /* even while it is there and the reader has not run yet */
            say(p.peer, round == 0 ? "ab\n" : "cd\n");
        }
        wait_for(&g);
        CHECK(reader.rc >= 2);
        CHECK_BYTES(first < READ_UNTIL ? buf : reader.data, "ab\n", first == READ_LINE ? 2 : 3);
        check_line(&p.s, "cd");
        close_pair(&p);
    }
}

IO_TEST(while_one_task_reads_another_can_write)
{
    pair p = {0};
    io reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    open_pair(&p);
    begin_io(&g, &reader);
    let_them_run();
    write_text(&p.s, "question\n");
    CHECK_INT(conc_stream_flush(&p.s), 0);
    check_heard(p.peer, "question\n");
    CHECK(!reader.done);
    say(p.peer, "answer\n");
    wait_for(&g);
    CHECK_STR(reader.data, "answer");
    close_pair(&p);
}

IO_TEST(while_one_task_waits_to_write_another_can_read)
{
    pair p = {.s = {.buffer_size = 4 * KB}};
    io writer = {.call = WRITE, .s = &p.s, .buf = pattern, .n = 2 * MB};
    conc_group g = {0};
    open_pair(&p);
    begin_io(&g, &writer);
    let_them_run();
    CHECK(!writer.done);
    say(p.peer, "still here\n");
    check_line(&p.s, "still here");
    CHECK(!writer.done);
    CHECK_INT(conc_cancel(&writer.task), 0);
    wait_for(&g);
    close_pair(&p);
}

enum { SHARED = 3000 };

/* Takes lines alternately with another task; a line belongs to this task from its call's return
 * on. */
static int read_shared_lines(void *arg)
{
    static bool seen[SHARED];
    char *data, expected[16];
    ssize_t n;
    while ((n = conc_stream_read_line(arg, &data)) == -EBUSY || data) {
        if (n == -EBUSY) {
            CHECK_INT(conc_yield(), 0);
            continue;
        }
        int i = atoi(data);
        CHECK(i >= 0 && i < SHARED && !seen[i]);
        seen[i] = true;
        snprintf(expected, sizeof expected, "%05d", i);
        CHECK_STR(data, expected);
    }
    return (int)n;
}

PLAIN_IO_TEST(two_tasks_that_read_alternately_get_each_line_whole_and_once)
{
    conc_stream s = {.buffer_size = 100};
    conc_group g = {0};
    FILE *f = tmpfile();
    CHECK(f != NULL);
    for (int i = 0; i < SHARED; i++)
        fprintf(f, "%05d\n", i);
    rewind(f);
    CHECK_INT(conc_stream_open(&s, dup(fileno(f))), 0);
    CHECK_INT(conc_spawn(&g, read_shared_lines, &s), 0);
    CHECK_INT(conc_spawn(&g, read_shared_lines, &s), 0);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&s), 0);
    fclose(f);
}

static int count_turns(void *arg)
{
    while (conc_yield() == 0)
        ++*(long *)arg;
    return 0;
}

PLAIN_IO_TEST(a_reader_of_available_lines_starves_no_task)
{
    conc_stream s = {0};
    conc_group g = {0};
    long turns = 0;
    FILE *f = tmpfile();
    CHECK(f != NULL);
    for (int i = 0; i < 20000; i++)
        fputs("line\n", f);
    rewind(f);
    CHECK_INT(conc_stream_open(&s, dup(fileno(f))), 0);
    CHECK_INT(conc_spawn(&g, count_turns, &turns), 0);
    for (int i = 0; i < 20000; i++)
        check_line(&s, "line");
    CHECK(turns > 20);
    check_end_of_file(&s);
    conc_group_cancel(&g);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&s), 0);
    fclose(f);
}

PLAIN_IO_TEST(a_writer_that_need_not_wait_starves_no_task)
{
    pair p = {.s = {.buffer_size = MB}};
    conc_group g = {0};
    long turns = 0;
    open_pair(&p);
    CHECK_INT(conc_spawn(&g, count_turns, &turns), 0);
    for (int i = 0; i < 20000; i++)
        CHECK_INT(conc_stream_write(&p.s, "word ", 5), 5);
    CHECK(turns > 20);
    conc_group_cancel(&g);
    wait_for(&g);
    CHECK_INT(close_and_hear(&p), 100000);
}

/* ---- writing ---- */

IO_TEST(written_bytes_are_kept_until_a_flush)
{
    pair p = {0};
    open_pair(&p);
    write_text(&p.s, "one ");
    write_text(&p.s, "two ");
    CHECK_INT(conc_stream_printf(&p.s, "%s", "three"), 5);
    let_them_run();
    check_heard(p.peer, "");
    CHECK_INT(conc_stream_flush(&p.s), 0);
    check_heard(p.peer, "one two three");
    CHECK_INT(conc_stream_flush(&p.s), 0);
    check_heard(p.peer, "");
    close_pair(&p);
}

IO_TEST(bytes_that_do_not_fit_into_the_buffer_are_sent_without_a_flush)
{
    pair p = {.s = {.buffer_size = 1000}};
    open_pair(&p);
    for (size_t i = 0; i < 10; i++)
        CHECK_INT(conc_stream_write(&p.s, pattern + i * 300, 300), 300);
    size_t n = hear(p.peer, heard, sizeof heard);
    CHECK(n >= 2000 && n <= 3000);
    CHECK_BYTES(heard, pattern, n);
    CHECK_INT(conc_stream_flush(&p.s), 0);
    CHECK_INT(n + hear(p.peer, heard + n, sizeof heard - n), 3000);
    CHECK_BYTES(heard, pattern, 3000);
    close_pair(&p);
}

PLAIN_IO_TEST(blocks_of_every_size_around_the_buffer_size_are_written)
{
    for (size_t size = 1; size < 40; size++) {
        pair p = {.s = {.buffer_size = 16}};
        open_pair(&p);
        for (size_t i = 0; i < 20; i++)
            CHECK_INT(conc_stream_write(&p.s, pattern + i * size, size), size);
        CHECK_INT(close_and_hear(&p), 20 * size);
        CHECK_BYTES(heard, pattern, 20 * size);
    }
}

IO_TEST(a_write_of_nothing_is_0_and_sends_nothing)
{
    pair p = {0};
    open_pair(&p);
    CHECK_INT(conc_stream_write(&p.s, "", 0), 0);
    CHECK_INT(conc_stream_write(&p.s, NULL, 0), 0);
    CHECK_INT(conc_stream_flush(&p.s), 0);
    check_heard(p.peer, "");
    close_pair(&p);
    CHECK_TIME(0);
}

IO_TEST(a_writer_waits_while_the_peer_does_not_read_and_continues_when_it_does)
{
    pair p = {.s = {.buffer_size = 4 * KB}};
    io writer = {.call = WRITE, .s = &p.s, .buf = pattern, .n = 3 * MB};
    conc_group g = {0};
    size_t n = 0;
    int rounds = 0;
    open_pair(&p);
    begin_io(&g, &writer);
    for (; !writer.done; rounds++) {
        let_them_run();
        size_t before = n;
        n += hear(p.peer, heard + n, sizeof heard - n);
        CHECK(n > before); /* it continued */
    }
    wait_for(&g);
    CHECK(rounds > 1); /* it had waited */
    CHECK_INT(writer.rc, 3 * MB);
    CHECK_INT(conc_stream_flush(&p.s), 0);
    n += hear(p.peer, heard + n, sizeof heard - n);
    CHECK_INT(n, 3 * MB);
    CHECK_BYTES(heard, pattern, n);
    close_pair(&p);
}

static void shrink_send_buffer(int fd)
{
    int small = 10000;
    CHECK_INT(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
}

typedef struct both_ways {
    conc_stream *s;
    size_t n;
    char *got;
} both_ways;

static int write_pattern(void *arg)
{
    both_ways *b = arg;
    CHECK_INT(conc_stream_write(b->s, pattern, b->n), b->n);
    CHECK_INT(conc_stream_flush(b->s), 0);
    return 0;
}

static int read_pattern(void *arg)
{
    both_ways *b = arg;
    CHECK_INT(conc_stream_read_full(b->s, b->got, b->n), b->n);
    CHECK_BYTES(b->got, pattern, b->n);
    return 0;
}

IO_TEST(a_megabyte_both_ways_through_small_socket_buffers_arrives)
{
    static char got[2][1 << 20];
    for (int k = 0; k < KINDS; k++) {
        int ends[2];
        conc_stream a = {0}, b = {0};
        conc_group g = {0};
        both_ways x = {&a, MB, got[0]}, y = {&b, MB, got[1]};
        connect_two((kind)k, ends);
        shrink_send_buffer(ends[0]);
        shrink_send_buffer(ends[1]);
        CHECK_INT(open_stream(&a, ends[0], (kind)k), 0);
        CHECK_INT(open_stream(&b, ends[1], (kind)k), 0);
        CHECK_INT(conc_spawn(&g, write_pattern, &x), 0);
        CHECK_INT(conc_spawn(&g, write_pattern, &y), 0);
        CHECK_INT(conc_spawn(&g, read_pattern, &x), 0);
        CHECK_INT(conc_spawn(&g, read_pattern, &y), 0);
        wait_for(&g);
        CHECK_INT(conc_stream_close(&a), 0);
        CHECK_INT(conc_stream_close(&b), 0);
    }
}

IO_TEST(a_cancelled_write_returns_how_much_was_accepted_and_that_arrives_once)
{
    pair p = {.s = {.buffer_size = 5000}};
    io writer = {.call = WRITE, .s = &p.s, .buf = pattern, .n = 2 * MB};
    conc_group g = {0};
    open_pair(&p);
    begin_io(&g, &writer);
    let_them_run();
    CHECK(!writer.done);
    CHECK_INT(conc_cancel(&writer.task), 0);
    wait_for(&g);
    CHECK(writer.rc > 0 && (size_t)writer.rc < 2 * MB);
    size_t taken = (size_t)writer.rc, n = hear(p.peer, heard, sizeof heard);
    CHECK_INT(conc_stream_write(&p.s, pattern + taken, 100), 100);
    CHECK_INT(conc_stream_flush(&p.s), 0);
    n += hear(p.peer, heard + n, sizeof heard - n);
    CHECK_INT(n, taken + 100);
    CHECK_BYTES(heard, pattern, n);
    close_pair(&p);
}

IO_TEST(a_write_cancelled_at_the_moment_when_it_could_continue_loses_and_duplicates_nothing)
{
    for (int cancel_first = 0; cancel_first < 2; cancel_first++) {
        pair p = {.s = {.buffer_size = 5000}};
        io writer = {.call = WRITE, .s = &p.s, .buf = pattern, .n = 2 * MB};
        conc_group g = {0};
        size_t n = 0;
        open_pair(&p);
        begin_io(&g, &writer);
        let_them_run();
        if (cancel_first)
            CHECK_INT(conc_cancel(&writer.task), 0);
        n += hear(p.peer, heard, sizeof heard);
        if (!cancel_first)
            CHECK_INT(conc_cancel(&writer.task), 0);
        wait_for(&g);
        CHECK(writer.rc > 0 && (size_t)writer.rc < 2 * MB);
        CHECK_INT(conc_stream_flush(&p.s), 0);
        n += hear(p.peer, heard + n, sizeof heard - n);
        CHECK_INT(n, writer.rc);
        CHECK_BYTES(heard, pattern, n);
        close_pair(&p);
    }
}

static int write_under_a_limit(void *arg)
{
    io *c = arg;
    conc_scope limit = {0};
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    c->rc = do_io(c);
    CHECK(limit.expired);
    CHECK_INT(do_io(c), -ECANCELED);
    CHECK_INT(conc_scope_end(&limit, -ECANCELED), -ETIMEDOUT);
    return 0;
}

IO_TEST(a_write_that_timed_out_returns_how_much_was_accepted_and_the_next_checkpoint_is_cancelled)
{
    pair p = {.s = {.buffer_size = 5000}};
    io writer = {.call = WRITE, .s = &p.s, .buf = pattern, .n = 2 * MB};
    open_pair(&p);
    CHECK_INT(write_under_a_limit(&writer), 0);
    CHECK(writer.rc > 0 && (size_t)writer.rc < 2 * MB);
    CHECK_INT(close_and_hear(&p), writer.rc);
    CHECK_BYTES(heard, pattern, (size_t)writer.rc);
}

IO_TEST(in_a_cancelled_scope_no_write_and_no_flush_has_an_effect)
{
    pair p = {0};
    conc_scope cancelled = {0};
    open_pair(&p);
    write_text(&p.s, "before ");
    begin_cancelled(&cancelled);
    CHECK_INT(conc_stream_write(&p.s, "inside ", 7), -ECANCELED);
    CHECK_INT(conc_stream_write(&p.s, pattern, MB), -ECANCELED);
    CHECK_INT(conc_stream_printf(&p.s, "inside %d", 1), -ECANCELED);
    CHECK_INT(conc_stream_flush(&p.s), -ECANCELED);
    end_cancelled(&cancelled);
    check_heard(p.peer, "");
    write_text(&p.s, "after");
    CHECK_INT(conc_stream_flush(&p.s), 0);
    check_heard(p.peer, "before after");
    close_pair(&p);
}

/* ---- several writers ---- */

enum { WRITERS = 6, BLOCK = 100000 };

typedef struct block_writer {
    io io;
    char bytes[BLOCK];
} block_writer;

static block_writer writers[WRITERS];
static int arrived[WRITERS], arrivals;

static int write_block(void *arg)
{
    block_writer *w = arg;
    /* from here on it is in the queue: no wait comes in between */
    arrived[arrivals++] = (int)(w - writers);
    return io_task(&w->io);
}

static void begin_blocks(conc_group *g, conc_stream *s)
{
    arrivals = 0;
    for (int i = 0; i < WRITERS; i++) {
        writers[i].io = (io){.call = WRITE, .s = s, .buf = writers[i].bytes, .n = BLOCK};
        memset(writers[i].bytes, 'A' + i, BLOCK);
        CHECK_INT(conc_spawn_task(g, &writers[i].io.task, write_block, &writers[i]), 0);
    }
}

/* Checks what was heard: from each writer as many bytes as its write returned, contiguous, in the
 * writers' order. */
static void check_blocks(size_t n)
{
    size_t at = 0;
    for (int i = 0; i < WRITERS; i++) {
        const io *c = &writers[arrived[i]].io;
        size_t taken = c->rc > 0 ? (size_t)c->rc : 0;
        for (size_t k = 0; k < taken; k++, at++) {
            CHECK(at < n);
            CHECK_INT(heard[at], 'A' + arrived[i]);
        }
    }
    CHECK_INT(at, n);
}

IO_TEST(blocks_that_several_tasks_write_at_once_stay_contiguous_in_order_of_arrival)
{
    pair p = {.s = {.buffer_size = 4 * KB}};
    conc_group g = {0};
    size_t n = 0;
    open_pair(&p);
    begin_blocks(&g, &p.s);
    do {
        let_them_run();
        n += hear(p.peer, heard + n, 20000);
    } while (n < 400000);
    CHECK_INT(conc_spawn(&g, io_task, &(io){.call = FLUSH, .s = &p.s}), 0);
    do {
        let_them_run();
        n += hear(p.peer, heard + n, 20000);
    } while (n < WRITERS * BLOCK);
    wait_for(&g);
    for (int i = 0; i < WRITERS; i++)
        CHECK_INT(writers[i].io.rc, BLOCK);
    check_blocks(n);
    close_pair(&p);
}

/* Cancels the which-th writer in the queue, while the first of them fills the socket. */
static void check_cancelled_writer(int which, bool twice)
{
    pair p = {.s = {.buffer_size = 4 * KB}};
    conc_group g = {0}, listening = {0};
    open_pair(&p);
    CHECK_INT(conc_group_begin(&listening), 0);
    shrink_send_buffer(descriptor_of(&p.s));
    begin_blocks(&g, &p.s);
    let_them_run();
    for (int i = 0; i < WRITERS; i++)
        CHECK(!writers[i].io.done);
    CHECK_INT(conc_cancel(&writers[arrived[which]].io.task), 0);
    if (twice)
        CHECK_INT(conc_cancel(&writers[arrived[which + 1]].io.task), 0);
    size_t n = finish_and_hear(&p, &listening, &g);
    for (int i = 0; i < WRITERS; i++) {
        ssize_t rc = writers[arrived[i]].io.rc;
        if (i == which || (twice && i == which + 1))
            CHECK(i == 0 ? rc > 0 && rc < BLOCK : rc == -ECANCELED);
        else
            CHECK_INT(rc, BLOCK);
    }
    check_blocks(n);
}

IO_TEST(a_writer_that_is_cancelled_while_it_waits_for_its_turn_wrote_nothing_and_holds_up_no_other)
{
    for (int which = 1; which < WRITERS; which++)
        check_cancelled_writer(which, false);
    for (int which = 1; which + 1 < WRITERS; which++)
        check_cancelled_writer(which, true);
}

IO_TEST(a_writer_that_is_cancelled_within_its_block_leaves_the_turn_to_the_next)
{
    check_cancelled_writer(0, false);
    check_cancelled_writer(0, true);
}

IO_TEST(a_small_write_does_not_overtake_a_large_one_that_waits_for_its_turn)
{
    pair p = {.s = {.buffer_size = MB}};
    conc_group g = {0}, listening = {0};
    io flusher = {.call = FLUSH, .s = &p.s},
       large = {.call = WRITE, .s = &p.s, .buf = pattern + MB, .n = 2 * MB};
    io small = {.call = WRITE, .s = &p.s, .buf = pattern + 3 * MB, .n = 9};
    open_pair(&p);
    CHECK_INT(conc_group_begin(&listening), 0);
    CHECK_INT(conc_stream_write(&p.s, pattern, MB), MB);
    begin_io(&g, &flusher);
    let_them_run(); /* it sent a part and waits: the buffer has room, but not for the large block */
    begin_io(&g, &large);
    let_them_run();
    begin_io(&g, &small);
    let_them_run();
    CHECK(!flusher.done && !large.done && !small.done);
    CHECK_INT(finish_and_hear(&p, &listening, &g), 3 * MB + 9);
    CHECK_BYTES(heard, pattern, 3 * MB + 9);
}

static int printf_lines(void *arg)
{
    conc_stream *s = arg;
    for (int i = 0; i < 50; i++)
        CHECK_INT(conc_stream_printf(s, "%05d%s|\n", i, "abcdefghijklmnopqrstuvwxyz"), 33);
    return 0;
}

IO_TEST(lines_that_several_tasks_print_stay_whole)
{
    conc_stream a = {.buffer_size = 10}, b = {.buffer_size = 10};
    conc_group g = {0};
    char *data;
    open_both(&a, &b, usual_kind);
    for (int i = 0; i < 5; i++)
        CHECK_INT(conc_spawn(&g, printf_lines, &a), 0);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&a), 0);
    for (int i = 0; i < 250; i++) {
        CHECK_INT(conc_stream_read_line(&b, &data), 32);
        CHECK_STR(data + 5, "abcdefghijklmnopqrstuvwxyz|");
    }
    check_end_of_file(&b);
    CHECK_INT(conc_stream_close(&b), 0);
}

/* ---- flush ---- */

IO_TEST(ten_tasks_that_flush_at_once_all_return)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    conc_group g = {0};
    io flushers[10];
    size_t n = 0;
    open_pair(&p);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    for (int i = 0; i < 10; i++) {
        flushers[i] = (io){.call = FLUSH, .s = &p.s, .rc = -1};
        begin_io(&g, &flushers[i]);
    }
    let_them_run();
    for (int i = 0; i < 10; i++)
        CHECK(!flushers[i].done);
    while (n < 2 * MB) {
        n += hear(p.peer, heard + n, sizeof heard - n);
        let_them_run();
    }
    wait_for(&g);
    for (int i = 0; i < 10; i++)
        CHECK_INT(flushers[i].rc, 0);
    CHECK_BYTES(heard, pattern, 2 * MB);
    close_pair(&p);
}

IO_TEST(a_cancelled_flush_returns_how_much_it_handed_over_and_the_next_one_continues)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    conc_group g = {0};
    io flusher = {.call = FLUSH, .s = &p.s};
    open_pair(&p);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    begin_io(&g, &flusher);
    let_them_run();
    CHECK(!flusher.done);
    CHECK_INT(conc_cancel(&flusher.task), 0);
    wait_for(&g);
    CHECK(flusher.rc > 0 && (size_t)flusher.rc < 2 * MB);
    conc_group again = {0};
    begin_io(&again, &flusher); /* the socket is full: no more is handed over */
    size_t first = (size_t)flusher.rc;
    let_them_run();
    CHECK_INT(conc_cancel(&flusher.task), 0);
    wait_for(&again);
    CHECK_INT(flusher.rc, -ECANCELED);
    size_t n = hear(p.peer, heard, sizeof heard);
    CHECK_INT(n, first);
    CHECK_INT(n + close_and_hear(&p), 2 * MB);
    CHECK_BYTES(heard, pattern + first, 2 * MB - first);
}

IO_TEST(cancelled_tasks_among_ten_that_flush_hold_up_no_other)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    conc_group g = {0};
    io flushers[10];
    size_t n = 0;
    open_pair(&p);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    for (int i = 0; i < 10; i++) {
        flushers[i] = (io){.call = FLUSH, .s = &p.s, .rc = -1};
        begin_io(&g, &flushers[i]);
    }
    let_them_run();
    for (int i = 0; i < 10; i += 2)
        CHECK_INT(conc_cancel(&flushers[i].task), 0);
    while (n < 2 * MB) {
        let_them_run();
        n += hear(p.peer, heard + n, sizeof heard - n);
    }
    wait_for(&g);
    for (int i = 0; i < 10; i++)
        CHECK(i % 2 ? flushers[i].rc == 0 : flushers[i].rc != 0);
    CHECK_BYTES(heard, pattern, 2 * MB);
    close_pair(&p);
}

IO_TEST(a_flush_includes_earlier_writes_of_others)
{
    pair p = {.s = {.buffer_size = 4 * KB}};
    conc_group g = {0};
    io writer = {.call = WRITE, .s = &p.s, .buf = pattern, .n = MB};
    io flusher = {.call = FLUSH, .s = &p.s, .rc = -1};
    size_t n = 0;
    open_pair(&p);
    begin_io(&g, &writer);
    let_them_run();
    begin_io(&g, &flusher);
    while (!flusher.done) {
        let_them_run();
        n += hear(p.peer, heard + n, 50000);
    }
    n += hear(p.peer, heard + n, sizeof heard - n);
    CHECK_INT(flusher.rc, 0);
    CHECK(n > 0);
    while (!writer.done) {
        let_them_run();
        n += hear(p.peer, heard + n, sizeof heard - n);
    }
    wait_for(&g);
    CHECK_INT(conc_stream_flush(&p.s), 0);
    n += hear(p.peer, heard + n, sizeof heard - n);
    CHECK_INT(n, MB);
    CHECK_BYTES(heard, pattern, MB);
    close_pair(&p);
}

/* ---- shutdown ---- */

IO_TEST(a_shutdown_sends_written_bytes_and_then_the_end_and_reading_continues)
{
    pair p = {0};
    open_pair(&p);
    write_text(&p.s, "question");
    CHECK_INT(conc_stream_shutdown(&p.s), 0);
    check_heard(p.peer, "question");
    char byte;
    CHECK_INT(read(p.peer, &byte, 1), 0);
    say(p.peer, "answer\n");
    check_line(&p.s, "answer");
    CHECK_INT(conc_stream_close(&p.s), 0);
    hang_up(&p);
}

IO_TEST(after_a_shutdown_writes_are_refused_and_a_second_one_and_a_flush_have_nothing_to_do)
{
    pair p = {0};
    open_pair(&p);
    CHECK_INT(conc_stream_shutdown(&p.s), 0);
    CHECK_INT(conc_stream_shutdown(&p.s), 0);
    CHECK_INT(conc_stream_flush(&p.s), 0);
    CHECK_INT(conc_stream_write(&p.s, "x", 1), -EPIPE);
    CHECK_STR(conc_last_error(), "closed");
    CHECK_INT(conc_stream_write(&p.s, "", 0), -EPIPE);
    CHECK_INT(conc_stream_printf(&p.s, "%d", 1), -EPIPE);
    CHECK_INT(conc_stream_close(&p.s), 0);
    CHECK_INT(conc_stream_shutdown(&p.s), -EPIPE);
    hang_up(&p);
}

IO_TEST(a_shutdown_waits_for_writers_before_it_and_refuses_those_behind_it)
{
    pair p = {0};
    conc_group g = {0};
    listener ear = {0};
    open_pair(&p);
    shrink_send_buffer(descriptor_of(&p.s));
    io before = {.call = WRITE, .s = &p.s, .buf = pattern, .n = MB}, end = {SHUTDOWN, .s = &p.s},
       behind = before, flush = {FLUSH, .s = &p.s}, again = end;
    io *const calls[] = {&before, &end, &behind, &flush, &again};
    for (size_t i = 0; i < CONC_LEN(calls); i++) {
        begin_io(&g, calls[i]);
        let_them_run();
    }
    begin_listening(&g, &ear, p.peer);
    wait_for(&g);
    CHECK_INT(ear.n, MB);
    CHECK_BYTES(heard, pattern, MB);
    CHECK_INT(before.rc, MB);
    CHECK_INT(end.rc, 0);
    CHECK_INT(behind.rc, -EPIPE);
    CHECK_INT(flush.rc, 0);
    CHECK_INT(again.rc, 0);
    close_pair(&p);
}

IO_TEST(a_shutdown_whose_flush_is_cancelled_ends_nothing_and_can_be_repeated)
{
    pair p = {.s = {.buffer_size = MB}};
    conc_scope limit = {0};
    conc_group g = {0};
    listener ear = {0};
    open_pair(&p);
    shrink_send_buffer(descriptor_of(&p.s));
    CHECK_INT(conc_stream_write(&p.s, pattern, MB), MB);
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    CHECK_INT(conc_scope_end(&limit, conc_stream_shutdown(&p.s)), -ETIMEDOUT);
    limit = (conc_scope){0};
    begin_cancelled(&limit);
    CHECK_INT(conc_stream_shutdown(&p.s), -ECANCELED);
    end_cancelled(&limit);
    begin_listening(&g, &ear, p.peer);
    CHECK_INT(conc_stream_write(&p.s, pattern, 1), 1);
    CHECK_INT(conc_stream_shutdown(&p.s), 0);
    wait_for(&g);
    CHECK_INT(ear.n, MB + 1);
    CHECK_BYTES(heard, pattern, MB);
    close_pair(&p);
}

IO_TEST(a_close_beside_a_shutdown_that_waits_cuts_it_short)
{
    pair p = {.s = {.buffer_size = MB}};
    conc_group g = {0};
    conc_scope c = {0};
    io end = {SHUTDOWN, .s = &p.s};
    open_pair(&p);
    shrink_send_buffer(descriptor_of(&p.s));
    CHECK_INT(conc_stream_write(&p.s, pattern, MB), MB);
    begin_io(&g, &end);
    let_them_run();
    begin_cancelled(&c);
    CHECK_INT(conc_stream_close(&p.s), 0);
    end_cancelled(&c);
    wait_for(&g);
    CHECK_INT(end.rc, -EPIPE);
    hang_up(&p);
}

PLAIN_IO_TEST(the_writing_end_of_a_pipe_is_closed_by_a_shutdown)
{
    int ends[2];
    char byte;
    conc_stream s = {0};
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(conc_stream_open(&s, ends[1]), 0);
    write_text(&s, "x");
    CHECK_INT(conc_stream_shutdown(&s), 0);
    CHECK_INT(read(ends[0], &byte, 1), 1);
    CHECK_INT(read(ends[0], &byte, 1), 0);
    int taken = dup(ends[0]); /* the number is free */
    CHECK_INT(taken, ends[1]);
    CHECK_INT(conc_stream_shutdown(&s), 0);
    CHECK_INT(conc_stream_write(&s, "x", 1), -EPIPE);
    CHECK_INT(conc_stream_read(&s, &byte, 1), -EBADF);
    CHECK_INT(conc_stream_close(&s), 0);
    CHECK_INT(close(taken), 0);
    CHECK_INT(close(ends[0]), 0);
}

PLAIN_IO_TEST(a_descriptor_without_a_writing_half_stays_open)
{
    int ends[2];
    char byte;
    conc_stream in = {0}, device = {0};
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(conc_stream_open(&in, ends[0]), 0);
    CHECK_INT(conc_stream_shutdown(&in), -ENOTSOCK);
    CHECK_INT(write(ends[1], "x", 1), 1);
    CHECK_INT(conc_stream_read(&in, &byte, 1), 1);
    CHECK_INT(close(ends[1]), 0);
    CHECK_INT(conc_stream_close(&in), 0);
    CHECK_INT(conc_stream_open(&device, open("/dev/null", O_WRONLY)), 0);
    write_text(&device, "x");
    CHECK_INT(conc_stream_shutdown(&device), -ENOTSOCK);
    CHECK_CONTAINS(conc_last_error(), "no separate writing half");
    write_text(&device, "x");
    CHECK_INT(conc_stream_close(&device), 0);
}

PLAIN_IO_TEST(a_shutdown_after_an_error_of_writing_returns_that)
{
    pair p = {0};
    open_pair(&p);
    hang_up(&p);
    write_text(&p.s, "x");
    CHECK_INT(conc_stream_shutdown(&p.s), -EPIPE);
    CHECK_STR(conc_last_error(), "Broken pipe");
    CHECK_INT(conc_stream_shutdown(NULL), -EINVAL);
    CHECK_INT(conc_stream_close(&p.s), 0);
    CHECK_INT(conc_stream_shutdown(&(conc_stream){0}), -EINVAL);
}

/* ---- errors ---- */

static bool is_lost_connection(ssize_t rc) { return rc == -EPIPE || rc == -ECONNRESET; }

/* Repeats {write; flush} until that fails, like a loop that ignores its peer. */
static ssize_t write_until_it_fails(conc_stream *s, bool flush)
{
    for (int round = 0; round < 100000; round++) {
        ssize_t rc = conc_stream_write(s, "some words\n", 11);
        if (rc >= 0 && flush)
            rc = conc_stream_flush(s);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Closes a stream whose error was returned already; the close may return it once more. */
static void close_after(conc_stream *s, ssize_t error)
{
    int rc = conc_stream_close(s);
    CHECK(rc == error || rc == 0);
    CHECK_INT(conc_stream_close(s), 0);
}

static void check_lost_peer(kind k, bool flush)
{
    pair p = {0};
    open_pair_of(&p, k);
    hang_up(&p);
    ssize_t rc = write_until_it_fails(&p.s, flush);
    CHECK(is_lost_connection(rc));
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_stream_write(&p.s, "x", 1), rc);
        CHECK_INT(conc_stream_write(&p.s, pattern, MB), rc);
        CHECK_INT(conc_stream_printf(&p.s, "%d", 1), rc);
        CHECK_INT(conc_stream_flush(&p.s), rc);
    }
    close_after(&p.s, rc);
}

IO_TEST(writing_and_flushing_for_a_peer_that_hung_up_ends_with_an_error_and_no_signal)
{
    sigset_t pending;
    for (int k = 0; k < KINDS; k++) {
        check_lost_peer((kind)k, true);
        check_lost_peer((kind)k, false);
    }
    CHECK_INT(sigpending(&pending), 0);
    CHECK(!sigismember(&pending, SIGPIPE));
}

IO_TEST(when_the_peer_hangs_up_every_waiting_writer_gets_the_error)
{
    pair p = {.s = {.buffer_size = 4 * KB}};
    conc_group g = {0};
    open_pair(&p);
    shrink_send_buffer(descriptor_of(&p.s));
    begin_blocks(&g, &p.s);
    let_them_run();
    for (int i = 0; i < WRITERS; i++)
        CHECK(!writers[i].io.done);
    hang_up(&p);
    wait_for(&g);
    for (int i = 1; i < WRITERS; i++)
        CHECK(is_lost_connection(writers[arrived[i]].io.rc));
    CHECK(is_lost_connection(writers[arrived[0]].io.rc) || writers[arrived[0]].io.rc < BLOCK);
    ssize_t rc = conc_stream_write(&p.s, "x", 1);
    CHECK(is_lost_connection(rc));
    close_after(&p.s, rc);
}

IO_TEST(when_the_peer_hangs_up_every_waiting_flush_gets_the_error)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    conc_group g = {0};
    io flushers[3];
    open_pair(&p);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    for (int i = 0; i < 3; i++) {
        flushers[i] = (io){.call = FLUSH, .s = &p.s};
        begin_io(&g, &flushers[i]);
    }
    let_them_run();
    hang_up(&p);
    wait_for(&g);
    for (int i = 0; i < 3; i++)
        CHECK(is_lost_connection(flushers[i].rc));
    close_after(&p.s, flushers[0].rc);
}

/* Closes the peer's end so that the stream's end sees a reset. */
static void reset(pair *p)
{
    struct linger at_once = {1, 0};
    CHECK_INT(setsockopt(p->peer, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    hang_up(p);
}

static void check_reading_after_a_reset(kind k, bool writes_first)
{
    pair p = {.s = {.buffer_size = 8}};
    char buf[32];
    open_pair_of(&p, k);
    write_text(&p.s, "never read");
    CHECK_INT(conc_stream_flush(&p.s), 0);
    say(p.peer, "last words\nand more");
    CHECK_INT(conc_wait_fd(descriptor_of(&p.s), CONC_READABLE), CONC_READABLE);
    reset(&p);
    if (writes_first)
        CHECK(is_lost_connection(write_until_it_fails(&p.s, true)));
    check_line(&p.s, "last words");
    CHECK_INT(conc_stream_read_full(&p.s, buf, 8), 8);
    CHECK_BYTES(buf, "and more", 8);
    ssize_t rc = conc_stream_read(&p.s, buf, 8);
    CHECK(rc == -ECONNRESET || (rc == 0 && writes_first)); /* the system reports it once */
    CHECK(conc_stream_close(&p.s) <= 0);
}

IO_TEST(bytes_before_a_reset_are_read_before_the_error)
{
    for (int k = 0; k < KINDS; k++) {
        check_reading_after_a_reset((kind)k, false);
        check_reading_after_a_reset((kind)k, true);
    }
}

IO_TEST(read_full_returns_bytes_before_a_reset_and_then_the_error)
{
    pair p = {0};
    char buf[32];
    open_pair(&p);
    write_text(&p.s, "never read");
    CHECK_INT(conc_stream_flush(&p.s), 0);
    say(p.peer, "last words");
    hang_up(&p);
    CHECK_INT(conc_stream_read_full(&p.s, buf, 32), 10);
    CHECK_BYTES(buf, "last words", 10);
    CHECK_INT(conc_stream_read_full(&p.s, buf, 32), -ECONNRESET);
    CHECK(conc_stream_close(&p.s) <= 0);
}

IO_TEST(a_part_of_a_record_that_came_before_a_reset_is_not_lost)
{
    pair p = {0};
    char buf[32], *data = NULL;
    open_pair(&p);
    write_text(&p.s, "never read");
    CHECK_INT(conc_stream_flush(&p.s), 0);
    say(p.peer, "last words");
    hang_up(&p);
    ssize_t rc = conc_stream_read_line(&p.s, &data);
    if (rc == -ECONNRESET) {
        CHECK_INT(conc_stream_read(&p.s, buf, 32), 10);
        CHECK_BYTES(buf, "last words", 10);
    } else {
        CHECK_INT(rc, 10);
        CHECK_STR(data, "last words");
        CHECK_INT(conc_stream_read_line(&p.s, &data), -ECONNRESET);
    }
    CHECK(conc_stream_close(&p.s) <= 0);
}

IO_TEST(a_waiting_read_gets_the_error_of_a_reset)
{
    for (int c = 0; c < READING_CALLS; c++) {
        pair p = {0};
        char buf[3];
        io reader = {.call = (call)c, .s = &p.s, .buf = buf, .n = 3};
        conc_group g = {0};
        open_pair(&p);
        write_text(&p.s, "never read");
        CHECK_INT(conc_stream_flush(&p.s), 0);
        begin_io(&g, &reader);
        let_them_run();
        hang_up(&p);
        wait_for(&g);
        CHECK_INT(reader.rc, -ECONNRESET);
        CHECK(conc_stream_close(&p.s) <= 0);
    }
}

static void open_unheard_pair(pair *p)
{
    open_pair(p);
    CHECK_INT(shutdown(p->peer, SHUT_RD), 0);
}

/* Only one read returned the error of writing; writes return it from now on. */
static void check_error_was_told(pair *p)
{
    conc_group g = {0};
    io reader = {.call = READ_LINE, .s = &p->s};
    begin_io(&g, &reader);
    let_them_run();
    CHECK(!reader.done);
    say(p->peer, "but I speak\n");
    wait_for(&g);
    CHECK_INT(reader.rc, 11);
    CHECK_STR(reader.data, "but I speak");
    CHECK_INT(conc_stream_write(&p->s, "x", 1), -EPIPE);
    CHECK_INT(conc_stream_flush(&p->s), -EPIPE);
    close_after(&p->s, -EPIPE);
    hang_up(p);
}

IO_TEST(a_read_that_has_to_wait_returns_the_error_of_its_sending_once)
{
    for (int c = 0; c < READING_CALLS; c++) {
        double start = conc_now();
        pair p = {0};
        char buf[3];
        io reader = {.call = (call)c, .s = &p.s, .buf = buf, .n = 3};
        open_unheard_pair(&p);
        write_text(&p.s, "nobody listens\n");
        conc_fail(-EIO, "something else");
        CHECK_INT(do_io(&reader), -EPIPE);
        CHECK_CONTAINS(conc_last_error(), "Broken pipe");
        CHECK_TIME(start);
        check_error_was_told(&p);
    }
}

IO_TEST(available_bytes_come_before_the_error_of_sending_and_a_partial_record_is_kept)
{
    pair p = {0};
    char buf[8], *data;
    open_unheard_pair(&p);
    say(p.peer, "a line\nand a part");
    write_text(&p.s, "nobody listens\n");
    check_line(&p.s, "a line");
    CHECK_INT(conc_stream_read_line(&p.s, &data), -EPIPE);
    CHECK(data == NULL);
    CHECK_INT(conc_stream_read_full(&p.s, buf, 5), 5);
    CHECK_BYTES(buf, "and a", 5);
    say(p.peer, "\n");
    check_line(&p.s, " part");
    check_error_was_told(&p);
}

IO_TEST(read_full_returns_what_it_has_before_the_error_of_its_sending)
{
    pair p = {0};
    char buf[8];
    open_unheard_pair(&p);
    say(p.peer, "abc");
    write_text(&p.s, "nobody listens\n");
    CHECK_INT(conc_stream_read_full(&p.s, buf, 8), 3);
    CHECK_BYTES(buf, "abc", 3);
    CHECK_INT(conc_stream_read_full(&p.s, buf, 8), -EPIPE);
    check_error_was_told(&p);
}

IO_TEST(the_end_of_file_comes_before_the_error_of_sending_which_close_returns)
{
    pair p = {0};
    open_pair(&p);
    write_text(&p.s, "nobody listens\n");
    hang_up(&p);
    check_end_of_file(&p.s);
    CHECK_INT(conc_stream_close(&p.s), -EPIPE);
}

IO_TEST(a_waiting_read_returns_the_error_of_another_tasks_write)
{
    for (int c = 0; c < READING_CALLS; c++) {
        pair p = {0};
        char buf[3];
        io reader = {.call = (call)c, .s = &p.s, .buf = buf, .n = 3};
        conc_group g = {0};
        open_unheard_pair(&p);
        begin_io(&g, &reader);
        let_them_run();
        write_text(&p.s, "nobody listens\n");
        wait_for(&g);
        CHECK_INT(reader.rc, -EPIPE);
        check_error_was_told(&p);
    }
}

IO_TEST(a_waiting_read_keeps_waiting_if_the_writing_call_returned_its_error)
{
    pair p = {0};
    io reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    open_unheard_pair(&p);
    begin_io(&g, &reader);
    let_them_run();
    write_text(&p.s, "nobody listens\n");
    CHECK_INT(conc_stream_flush(&p.s), -EPIPE);
    let_them_run();
    CHECK(!reader.done);
    say(p.peer, "go on\n");
    wait_for(&g);
    CHECK_STR(reader.data, "go on");
    check_error_was_told(&p);
}

IO_TEST(a_read_that_sends_for_long_returns_the_error_when_the_peer_stops_listening)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    io reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    open_pair(&p);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    begin_io(&g, &reader);
    let_them_run();
    CHECK(!reader.done);
    CHECK(hear(p.peer, heard, 2 * MB) > 0); /* otherwise the system does not wake the sender */
    CHECK_INT(shutdown(p.peer, SHUT_RD), 0);
    wait_for(&g);
    CHECK_INT(reader.rc, -EPIPE);
    check_error_was_told(&p);
}

IO_TEST(a_cancelled_read_does_not_return_the_error_of_sending)
{
    pair p = {0};
    io reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    conc_scope c = {0};
    open_unheard_pair(&p);
    begin_io(&g, &reader);
    let_them_run();
    write_text(&p.s, "nobody listens\n");
    CHECK_INT(conc_cancel(&reader.task), 0);
    wait_for(&g);
    if (reader.rc == -ECANCELED) { /* otherwise the error came first */
        begin_cancelled(&c);
        CHECK_INT(do_io(&reader), -ECANCELED);
        end_cancelled(&c);
        CHECK_INT(do_io(&reader), -EPIPE);
    }
    CHECK_INT(reader.rc, usual_kind == TRANSPORT ? -ECANCELED : -EPIPE);
    check_error_was_told(&p);
}

PLAIN_IO_TEST(close_returns_the_error_that_a_read_met_when_it_sent)
{
    pair p = {0};
    io reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    open_unheard_pair(&p);
    begin_io(&g, &reader);
    let_them_run();
    write_text(&p.s, "nobody will get this\n");
    say(p.peer, "but I speak\n");
    wait_for(&g); /* it was woken for the error, but found bytes */
    CHECK_STR(reader.data, "but I speak");
    CHECK_INT(conc_stream_close(&p.s), -EPIPE);
    hang_up(&p);
}

PLAIN_IO_TEST(calls_preserve_errno)
{
    pair p = {.s = {.limit = 3}};
    char buf[8], *data;
    open_pair(&p);
    errno = 77;
    say(p.peer, "abcdef");
    CHECK_INT(conc_stream_read_line(&p.s, &data), -EMSGSIZE);
    CHECK_INT(conc_stream_read(&p.s, buf, 8), 6);
    CHECK_INT(conc_stream_printf(&p.s, "%d\n", 5), 2);
    CHECK_INT(conc_stream_flush(&p.s), 0);
    CHECK_INT(conc_stream_open(&p.s, -1), -EINVAL);
    hang_up(&p);
    CHECK(write_until_it_fails(&p.s, true) < 0);
    CHECK(conc_stream_close(&p.s) <= 0);
    CHECK_INT(conc_stream_read(&p.s, buf, 8), -EPIPE);
    CHECK_INT(errno, 77);
}

/* ---- a read that has to wait sends what was written ---- */

IO_TEST(a_question_need_not_be_flushed_before_the_answer_is_read)
{
    for (int c = 0; c < READING_CALLS; c++) {
        pair p = {0};
        char buf[4];
        io reader = {.call = (call)c, .s = &p.s, .buf = buf, .n = 4};
        conc_group g = {0};
        open_pair(&p);
        write_text(&p.s, "how many?\n");
        begin_io(&g, &reader);
        let_them_run();
        check_heard(p.peer, "how many?\n");
        CHECK(!reader.done);
        say(p.peer, "two\n");
        wait_for(&g);
        CHECK_INT(reader.rc, c == READ_LINE ? 3 : 4);
        close_pair(&p);
    }
}

IO_TEST(bytes_written_while_another_task_waits_in_a_read_are_sent)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    io reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    size_t n = 0;
    open_pair(&p);
    begin_io(&g, &reader);
    let_them_run();
    write_text(&p.s, "question\n");
    let_them_run();
    check_heard(p.peer, "question\n");
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    for (size_t before = 1; n != before;) {
        before = n;
        let_them_run();
        n += hear(p.peer, heard + n, sizeof heard - n);
    }
    CHECK_INT(n, 2 * MB);
    CHECK_BYTES(heard, pattern, n);
    say(p.peer, "answer\n");
    wait_for(&g);
    CHECK_STR(reader.data, "answer");
    close_pair(&p);
}

static int answer_the_question(void *arg)
{
    char question[9];
    CHECK_INT(conc_read_full(*(int *)arg, question, 9), 9);
    say(*(int *)arg, "answer\n");
    return 0;
}

static int write_question(void *arg)
{
    write_text(arg, "question\n");
    return 0;
}

IO_TEST(bytes_written_at_the_moment_when_a_read_begins_to_wait_are_sent)
{
    pair p = {0};
    open_pair(&p);
    /* in one of them the wait lets the writer run first */
    for (int quick = 0; quick < 600; quick++) {
        conc_group g = {0};
        char byte;
        CHECK_INT(conc_yield(), 0);
        CHECK_INT(conc_spawn(&g, write_question, &p.s), 0);
        for (int i = 0; i < quick; i++)
            CHECK_INT(conc_stream_read(&p.s, &byte, 0), 0);
        CHECK_INT(conc_spawn(&g, answer_the_question, &p.peer), 0);
        check_line(&p.s, "answer");
        wait_for(&g);
    }
    close_pair(&p);
}

IO_TEST(a_read_that_need_not_wait_sends_nothing)
{
    pair p = {0};
    open_pair(&p);
    say(p.peer, "one\ntwo\n");
    check_line(&p.s, "one");
    write_text(&p.s, "kept");
    check_line(&p.s, "two");
    let_them_run();
    check_heard(p.peer, "");
    CHECK_INT(conc_stream_flush(&p.s), 0);
    check_heard(p.peer, "kept");
    close_pair(&p);
}

/* Reads all of a long question, and only then replies. */
static int answer_when_all_was_heard(void *arg)
{
    pair *p = arg;
    CHECK_INT(conc_read_full(p->peer, heard, 2 * MB), 2 * MB);
    say(p->peer, "all heard\n");
    return 0;
}

IO_TEST(a_read_sends_all_of_a_long_question_before_the_peer_answers)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    conc_group g = {0};
    open_pair(&p);
    CHECK_INT(conc_spawn(&g, answer_when_all_was_heard, &p), 0);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    check_line(&p.s, "all heard");
    wait_for(&g);
    CHECK_BYTES(heard, pattern, 2 * MB);
    close_pair(&p);
}

IO_TEST(a_read_receives_bytes_while_the_socket_is_full_of_written_ones)
{
    for (int c = 0; c < READING_CALLS; c++) {
        pair p = {.s = {.buffer_size = 4 * MB}};
        char buf[6];
        io reader = {.call = (call)c, .s = &p.s, .buf = buf, .n = 6};
        conc_group g = {0};
        open_pair(&p);
        CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
        begin_io(&g, &reader);
        let_them_run();
        CHECK(!reader.done);
        say(p.peer, "early\n"); /* and does not read yet */
        wait_for(&g);
        CHECK_INT(reader.rc, c == READ_LINE ? 5 : 6);
        CHECK_BYTES(c < READ_UNTIL ? buf : reader.data, "early", 5);
        CHECK_INT(close_and_hear(&p), 2 * MB);
        CHECK_BYTES(heard, pattern, 2 * MB);
    }
}

IO_TEST(a_cancelled_read_that_was_sending_loses_and_duplicates_nothing)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    io reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    open_pair(&p);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    begin_io(&g, &reader);
    let_them_run();
    CHECK_INT(conc_cancel(&reader.task), 0);
    wait_for(&g);
    CHECK_INT(reader.rc, -ECANCELED);
    CHECK_INT(close_and_hear(&p), 2 * MB);
    CHECK_BYTES(heard, pattern, 2 * MB);
}

/* Writes until neither the socket nor the stream's buffer accepts more, and returns the number of
 * bytes. */
static size_t fill(pair *p)
{
    conc_scope limit = {0};
    CHECK_INT(conc_stream_write(&p->s, pattern, 2 * MB), 2 * MB);
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    int sent = conc_stream_flush(&p->s);
    CHECK_INT(conc_scope_end(&limit, 0), 0);
    CHECK(sent > 0 && (size_t)sent < 2 * MB);
    CHECK_INT(conc_stream_write(&p->s, pattern + 2 * MB, (size_t)sent), sent);
    return 2 * MB + (size_t)sent;
}

/* While another task sends, a read need not; if that task is cancelled, the read has to. */
static void check_read_beside(call c)
{
    pair p = {.s = {.buffer_size = 2 * MB}};
    io sender = {.call = c, .s = &p.s, .buf = pattern, .n = 100},
       reader = {.call = READ_LINE, .s = &p.s};
    conc_group g = {0};
    static listener l;
    open_pair(&p);
    size_t written = fill(&p);
    begin_io(&g, &sender);
    let_them_run();
    CHECK(!sender.done);
    begin_io(&g, &reader);
    let_them_run();
    CHECK_INT(conc_cancel(&sender.task), 0);
    let_them_run();
    CHECK_INT(sender.rc, -ECANCELED);
    CHECK(!reader.done);
    l = (listener){0};
    begin_listening(&g, &l, p.peer);
    let_them_run();
    CHECK_INT(l.n, written);
    CHECK_BYTES(heard, pattern, written);
    say(p.peer, "all heard\n");
    CHECK_INT(conc_join(&reader.task, NULL), 0);
    CHECK_STR(reader.data, "all heard");
    CHECK_INT(conc_stream_close(&p.s), 0);
    wait_for(&g);
    hang_up(&p);
}

IO_TEST(a_read_continues_sending_when_a_concurrent_flush_is_cancelled) { check_read_beside(FLUSH); }

IO_TEST(a_read_continues_sending_when_a_concurrent_write_is_cancelled) { check_read_beside(WRITE); }

/* Writes many bytes, which are buffered, and reads as many. */
static int write_and_read_pattern(void *arg)
{
    both_ways *b = arg;
    CHECK_INT(conc_stream_write(b->s, pattern, b->n), b->n);
    CHECK_INT(read_pattern(b), 0);
    CHECK_INT(conc_stream_flush(b->s), 0);
    return 0;
}

IO_TEST(two_peers_that_both_write_a_lot_and_then_read_do_not_wait_for_each_other)
{
    static char got[2][3 << 20];
    for (int k = 0; k < KINDS; k++) {
        conc_stream a = {.buffer_size = 4 * MB}, b = {.buffer_size = 4 * MB};
        conc_group g = {0};
        both_ways x = {&a, 3 * MB, got[0]}, y = {&b, 3 * MB, got[1]};
        open_both(&a, &b, (kind)k);
        CHECK_INT(conc_spawn(&g, write_and_read_pattern, &x), 0);
        CHECK_INT(conc_spawn(&g, write_and_read_pattern, &y), 0);
        wait_for(&g);
        CHECK_INT(conc_stream_close(&a), 0);
        CHECK_INT(conc_stream_close(&b), 0);
    }
}

static int write_and_read_a_line(void *arg)
{
    both_ways *b = arg;
    char *data;
    CHECK_INT(conc_stream_write(b->s, pattern, b->n), b->n);
    write_text(b->s, "\n");
    CHECK_INT(conc_stream_read_line(b->s, &data), b->n);
    CHECK_BYTES(data, pattern, b->n);
    CHECK_INT(conc_stream_flush(b->s), 0);
    return 0;
}

IO_TEST(two_peers_that_both_write_a_long_line_and_then_read_one_do_not_wait_for_each_other)
{
    conc_stream a = {.buffer_size = 4 * MB, .limit = 4 * MB}, b = a;
    conc_group g = {0};
    both_ways x = {&a, 3 * MB, NULL}, y = {&b, 3 * MB, NULL};
    open_both(&a, &b, usual_kind);
    CHECK_INT(conc_spawn(&g, write_and_read_a_line, &x), 0);
    CHECK_INT(conc_spawn(&g, write_and_read_a_line, &y), 0);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&a), 0);
    CHECK_INT(conc_stream_close(&b), 0);
}

/* ---- printf ---- */

IO_TEST(printf_writes_text_of_every_length_and_returns_it)
{
    static char big[100001];
    pair p = {0};
    open_pair(&p);
    memset(big, 'x', 100000);
    CHECK_INT(conc_stream_printf(&p.s, "%d-%s-%c|", -42, "words", 'c'), 12);
    CHECK_INT(conc_stream_printf(&p.s, "%s", ""), 0);
    CHECK_INT(conc_stream_printf(&p.s, "%s", big), 100000);
    CHECK_INT(conc_stream_printf(&p.s, "%5.2f%%", 3.14159), 6);
    CHECK_INT(close_and_hear(&p), 12 + 100000 + 6);
    CHECK_BYTES(heard, "-42-words-c|", 12);
    CHECK_BYTES(heard + 12, big, 100000);
    CHECK_BYTES(heard + 100012, " 3.14%", 6);
}

PLAIN_IO_TEST(printf_of_every_length_up_to_twice_the_buffer_size_is_whole)
{
    pair p = {.s = {.buffer_size = 64}};
    size_t n = 0;
    open_pair(&p);
    for (int length = 0; length < 130; length++)
        CHECK_INT(conc_stream_printf(&p.s, "%.*s", length, pattern), length);
    CHECK_INT(close_and_hear(&p), 129 * 130 / 2);
    for (size_t length = 0; length < 130; n += length++)
        CHECK_BYTES(heard + n, pattern, length);
}

IO_TEST(a_cancelled_printf_returns_how_much_was_accepted)
{
    static char big[2 << 20];
    pair p = {.s = {.buffer_size = 1000}};
    conc_scope limit = {0};
    open_pair(&p);
    memcpy(big, pattern, sizeof big - 1);
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    ssize_t taken = conc_stream_printf(&p.s, "%s", big);
    CHECK_INT(conc_scope_end(&limit, 0), 0);
    CHECK(taken > 0 && taken < (ssize_t)sizeof big - 1);
    CHECK_INT(close_and_hear(&p), taken);
    CHECK_BYTES(heard, pattern, (size_t)taken);
}

/* ---- small stacks ---- */

typedef struct talk {
    conc_stream *s;
    const char *text;
    ssize_t rc[8];
    char line[5], bytes[4];
} talk;

static int talk_on_a_small_stack(void *arg)
{
    talk *t = arg;
    char *data;
    t->rc[0] = conc_stream_printf(t->s, "%s %d\n", "number", 42);
    t->rc[1] = conc_stream_read_line(t->s, &data);
    for (int i = 0; i < 5; i++)
        t->line[i] = data[i];
    t->rc[2] = conc_stream_read_full(t->s, t->bytes, 4);
    t->rc[3] = conc_stream_write(t->s, pattern, 1000);
    t->rc[4] = conc_stream_printf(t->s, "%s", t->text);
    t->rc[5] = conc_stream_flush(t->s);
    t->rc[6] = conc_stream_read(t->s, t->bytes, 4);
    t->rc[7] = conc_stream_close(t->s);
    return 0;
}

IO_TEST(everything_works_on_the_smallest_stacks)
{
    static char big[100001];
    static pair p;
    static talk t;
    conc_group g = {.stack_size = 16384};
    p = (pair){.s = {.buffer_size = 500}};
    t = (talk){.s = &p.s, .text = memset(big, 'y', 100000)};
    open_pair(&p);
    CHECK_INT(conc_spawn(&g, talk_on_a_small_stack, &t), 0);
    let_them_run();
    check_heard(p.peer, "number 42\n");
    say(p.peer, "good\nbye");
    let_them_run();
    CHECK_STR(t.line, "good");
    say(p.peer, "!");
    CHECK_INT(conc_read_full(p.peer, heard, 101000), 101000);
    CHECK_BYTES(heard, pattern, 1000);
    CHECK_BYTES(heard + 1000, big, 100000);
    CHECK_INT(shutdown(p.peer, SHUT_WR), 0);
    wait_for(&g);
    static const ssize_t expected[] = {10, 4, 4, 1000, 100000, 0, 0, 0};
    for (int i = 0; i < 8; i++)
        CHECK_INT(t.rc[i], expected[i]);
    CHECK_BYTES(t.bytes, "bye!", 4);
    hang_up(&p);
}

/* ---- close ---- */

IO_TEST(close_sends_what_was_written_and_closes)
{
    pair p = {0};
    char byte;
    open_pair(&p);
    int fd = descriptor_of(&p.s);
    write_text(&p.s, "good bye\n");
    CHECK_INT(conc_stream_close(&p.s), 0);
    CHECK_INT(fcntl(fd, F_GETFD), -1);
    check_heard(p.peer, "good bye\n");
    CHECK_INT(read(p.peer, &byte, 1), 0);
    CHECK_INT(conc_stream_close(&p.s), 0);
    hang_up(&p);
}

IO_TEST(close_waits_for_a_peer_that_reads_slowly)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    io closer = {.call = CLOSE, .s = &p.s, .rc = -1};
    conc_group g = {0};
    size_t n = 0;
    open_pair(&p);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    begin_io(&g, &closer);
    let_them_run();
    CHECK(!closer.done);
    while (n < 2 * MB) {
        n += hear(p.peer, heard + n, sizeof heard - n);
        let_them_run();
    }
    wait_for(&g);
    CHECK_INT(closer.rc, 0);
    CHECK_BYTES(heard, pattern, 2 * MB);
    hang_up(&p);
}

IO_TEST(closing_twice_or_without_an_open_does_nothing)
{
    pair p = {0};
    conc_stream never = {0};
    CHECK_INT(conc_stream_close(&never), 0);
    CHECK_INT(conc_stream_close(&never), 0);
    open_pair(&p);
    int fd = descriptor_of(&p.s), other;
    CHECK_INT(conc_stream_close(&p.s), 0);
    other = dup(p.peer); /* reuses the number */
    CHECK_INT(other, fd);
    CHECK_INT(conc_stream_close(&p.s), 0);
    CHECK(fcntl(other, F_GETFD) >= 0);
    CHECK_INT(conc_close(other), 0);
    hang_up(&p);
}

IO_TEST(a_close_in_a_cancelled_task_sends_nothing_and_does_not_wait)
{
    pair small = {0}, full = {.s = {.buffer_size = 4 * MB}};
    conc_scope cancelled = {0};
    open_pair(&small);
    open_pair(&full);
    write_text(&small.s, "never sent");
    CHECK_INT(conc_stream_write(&full.s, pattern, 2 * MB), 2 * MB);
    begin_cancelled(&cancelled);
    CHECK_INT(conc_stream_close(&small.s), 0);
    CHECK_INT(conc_stream_close(&full.s), 0);
    end_cancelled(&cancelled);
    check_heard(small.peer, "");
    CHECK_INT(hear(full.peer, heard, 1), 0);
    hang_up(&small);
    hang_up(&full);
    CHECK_TIME(0);
}

IO_TEST(a_close_that_is_cancelled_while_it_sends_has_closed)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    io closer = {.call = CLOSE, .s = &p.s, .rc = 1};
    conc_group g = {0};
    open_pair(&p);
    int fd = descriptor_of(&p.s);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    begin_io(&g, &closer);
    let_them_run();
    CHECK(!closer.done);
    CHECK_INT(conc_cancel(&closer.task), 0);
    wait_for(&g);
    CHECK(closer.rc <= 0);
    CHECK_INT(fcntl(fd, F_GETFD), -1);
    size_t n = hear(p.peer, heard, sizeof heard);
    CHECK(n > 0 && n < 2 * MB);
    CHECK_BYTES(heard, pattern, n);
    CHECK_INT(conc_stream_close(&p.s), 0);
    hang_up(&p);
}

IO_TEST(a_close_wakes_readers)
{
    for (int c = 0; c < READING_CALLS; c++) {
        pair p = {0};
        char buf[4];
        io reader = {.call = (call)c, .s = &p.s, .buf = buf, .n = 4};
        conc_group g = {0};
        open_pair(&p);
        begin_io(&g, &reader);
        let_them_run();
        write_text(&p.s, "good bye");
        CHECK_INT(conc_stream_close(&p.s), 0);
        wait_for(&g);
        CHECK_INT(reader.rc, -EPIPE);
        check_heard(p.peer, "good bye");
        hang_up(&p);
    }
}

IO_TEST(a_close_in_a_cancelled_task_wakes_readers_and_writers)
{
    pair p = {.s = {.buffer_size = 4 * KB}};
    conc_scope cancelled = {0};
    conc_group g = {0};
    io reader = {.call = READ_LINE, .s = &p.s}, flusher = {.call = FLUSH, .s = &p.s};
    open_pair(&p);
    shrink_send_buffer(descriptor_of(&p.s));
    begin_blocks(&g, &p.s);
    begin_io(&g, &reader);
    let_them_run();
    begin_io(&g, &flusher);
    let_them_run();
    begin_cancelled(&cancelled);
    CHECK_INT(conc_stream_close(&p.s), 0);
    end_cancelled(&cancelled);
    wait_for(&g);
    CHECK_INT(reader.rc, -EPIPE);
    CHECK_INT(flusher.rc, -EPIPE);
    for (int i = 0; i < WRITERS; i++)
        CHECK_INT(writers[i].io.rc, -EPIPE);
    size_t n = hear(p.peer, heard, sizeof heard);
    CHECK(n > 0 && n < BLOCK);
    for (size_t i = 0; i < n; i++)
        CHECK_INT(heard[i], 'A' + arrived[0]);
    hang_up(&p);
}

/* {the first is cancelled and passes the turn to the second; close} before the second runs. */
ORDERED_TASK_TEST(a_writer_whose_turn_comes_in_the_moment_of_a_close_is_EPIPE)
{
    pair p = {.s = {.buffer_size = 4 * KB}};
    conc_group g = {0};
    conc_scope cancelled = {0};
    io first = {.call = WRITE, .s = &p.s, .buf = pattern, .n = MB};
    io second = {.call = WRITE, .s = &p.s, .buf = pattern, .n = 10};
    open_pair(&p);
    begin_io(&g, &first);
    begin_io(&g, &second);
    let_them_run();
    CHECK_INT(conc_cancel(&first.task), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK(first.done && !second.done);
    int number = descriptor_of(&p.s);
    begin_cancelled(&cancelled);
    CHECK_INT(conc_stream_close(&p.s), 0);
    end_cancelled(&cancelled);
    int other = dup(p.peer); /* reuses the number: no task may write there */
    CHECK_INT(other, number);
    wait_for(&g);
    CHECK_INT(second.rc, -EPIPE);
    CHECK_INT(close(other), 0);
    hang_up(&p);
}

IO_TEST(a_close_while_others_write_ends_and_leaves_no_holes)
{
    pair p = {.s = {.buffer_size = 4 * KB}};
    conc_group g = {0}, listening = {0};
    io closer = {.call = CLOSE, .s = &p.s, .rc = 1};
    static listener l;
    open_pair(&p);
    shrink_send_buffer(descriptor_of(&p.s));
    CHECK_INT(conc_group_begin(&listening), 0);
    begin_blocks(&g, &p.s);
    let_them_run();
    begin_io(&g, &closer);
    let_them_run();
    l = (listener){0};
    begin_listening(&listening, &l, p.peer);
    wait_for(&g);
    wait_for(&listening);
    CHECK_INT(closer.rc, 0);
    size_t at = 0;
    for (int i = 0; i < WRITERS; i++) {
        ssize_t rc = writers[arrived[i]].io.rc;
        size_t before = at;
        CHECK(rc == -EPIPE || (rc > 0 && rc <= BLOCK));
        for (; at < l.n && heard[at] == 'A' + arrived[i]; at++)
            continue;
        CHECK(rc < 0 || (size_t)rc == at - before);
    }
    CHECK_INT(at, l.n);
    hang_up(&p);
}

IO_TEST(two_tasks_that_close_at_once_close_once)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    conc_group g = {0};
    io closers[2];
    size_t n = 0;
    open_pair(&p);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    for (int i = 0; i < 2; i++) {
        closers[i] = (io){.call = CLOSE, .s = &p.s, .rc = 1};
        begin_io(&g, &closers[i]);
    }
    let_them_run();
    while (n < 2 * MB) {
        n += hear(p.peer, heard + n, sizeof heard - n);
        let_them_run();
    }
    wait_for(&g);
    CHECK_INT(closers[0].rc, 0);
    CHECK_INT(closers[1].rc, 0);
    CHECK_BYTES(heard, pattern, 2 * MB);
    hang_up(&p);
}

static int writes_three_bytes(void *arg)
{
    return (int)conc_stream_write(arg, "end", 3) == -EPIPE ? 0 : 3;
}

/* The flush of a close may be the call that makes other tasks run. */
IO_TEST(nothing_is_written_between_the_flush_of_a_close_and_its_end)
{
    enum { TURN = 600 };
    for (int i = 0; i < TURN; i++) {
        pair p = {0};
        conc_group g = {0};
        conc_task t = {0};
        char bytes[8];
        int result = -1;
        open_pair(&p);
        write_text(&p.s, "beg");
        CHECK_INT(conc_spawn_task(&g, &t, writes_three_bytes, &p.s), 0);
        for (int k = 0; k < i; k++)
            CHECK_INT(conc_stream_write(&p.s, "", 0), 0);
        CHECK_INT(conc_stream_close(&p.s), 0);
        CHECK_INT(conc_join(&t, &result), 0);
        wait_for(&g);
        CHECK_INT(hear(p.peer, bytes, sizeof bytes), 3 + result);
        hang_up(&p);
    }
}

PLAIN_IO_TEST(after_a_close_every_call_is_EPIPE)
{
    pair p = {0};
    char buf[4], *data;
    open_pair(&p);
    say(p.peer, "ab|still here\n");
    CHECK_INT(conc_stream_read_until(&p.s, "|", 1, &data), 3);
    CHECK_INT(conc_stream_close(&p.s), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_stream_read(&p.s, buf, 4), -EPIPE);
        CHECK_INT(conc_stream_read_full(&p.s, buf, 4), -EPIPE);
        CHECK_INT(conc_stream_read_until(&p.s, "|", 1, &data), -EPIPE);
        CHECK_INT(conc_stream_read_line(&p.s, &data), -EPIPE);
        CHECK_INT(conc_stream_write(&p.s, buf, 4), -EPIPE);
        CHECK_INT(conc_stream_printf(&p.s, "%d", i), -EPIPE);
        CHECK_INT(conc_stream_flush(&p.s), -EPIPE);
        CHECK_INT(conc_stream_close(&p.s), 0);
    }
    hang_up(&p);
}

static int greet(int fd, bool early)
{
    CONC_AUTO(conc_stream, s) = {0};
    CONC_AUTO(conc_stream, never_opened) = {0};
    (void)never_opened;
    CONC_TRY(conc_stream_open(&s, fd));
    CONC_TRY(conc_stream_printf(&s, "hello\n"));
    if (early)
        return -EPROTO;
    CONC_TRY(conc_stream_close(&s));
    return 0;
}

IO_TEST(CONC_AUTO_closes_a_stream_however_the_block_ends)
{
    for (int early = 0; early < 2; early++) {
        int ends[2];
        connect_two(usual_kind, ends);
        CHECK_INT(greet(ends[0], early), early ? -EPROTO : 0);
        CHECK_INT(fcntl(ends[0], F_GETFD), -1);
        check_heard(ends[1], "hello\n");
        CHECK_INT(conc_close(ends[1]), 0);
    }
}

static int greet_and_wait(void *arg)
{
    CONC_AUTO(conc_stream, s) = {0};
    CONC_TRY(conc_stream_open(&s, *(int *)arg));
    CONC_TRY(conc_stream_printf(&s, "never sent\n"));
    return conc_sleep(CONC_FOREVER);
}

IO_TEST(CONC_AUTO_in_a_cancelled_task_closes_without_sending)
{
    int ends[2];
    connect_two(usual_kind, ends);
    CHECK_INT(conc_timeout(1, greet_and_wait, &ends[0]), -ETIMEDOUT);
    CHECK_INT(fcntl(ends[0], F_GETFD), -1);
    check_heard(ends[1], "");
    CHECK_INT(conc_close(ends[1]), 0);
}

static void close_posted(void *s) { CHECK_INT(conc_stream_close(s), 0); }

IO_TEST(a_posted_function_can_close_a_stream_but_not_wait_for_it)
{
    pair p = {0}, unread = {0};
    conc_group g = {0};
    io reader = {.call = READ_LINE, .s = &p.s};
    open_pair(&p);
    begin_io(&g, &reader);
    let_them_run();
    open_pair(&unread);
    write_text(&unread.s, "never sent\n");
    CHECK_INT(conc_post(conc_loop_self(), close_posted, &p.s), 0);
    CHECK_INT(conc_post(conc_loop_self(), close_posted, &unread.s), 0);
    wait_for(&g);
    CHECK_INT(reader.rc, -EPIPE);
    check_heard(unread.peer, "");
    hang_up(&p);
    hang_up(&unread);
}

static void wait_posted(void *arg)
{
    pair *p = arg;
    char byte, *data;
    CHECK_INT(conc_stream_read(&p->s, &byte, 1), -EPERM);
    CHECK_INT(conc_stream_read_line(&p->s, &data), -EPERM);
    CHECK_INT(conc_stream_flush(&p->s), -EPERM);
}

PLAIN_IO_TEST(in_a_posted_function_what_would_wait_is_EPERM)
{
    pair p = {.s = {.buffer_size = 4 * MB}};
    open_pair(&p);
    CHECK_INT(conc_stream_write(&p.s, pattern, 2 * MB), 2 * MB);
    CHECK_INT(conc_post(conc_loop_self(), wait_posted, &p), 0);
    let_them_run();
    say(p.peer, "all is well\n");
    check_line(&p.s, "all is well");
    close_pair(&p);
}

static conc_stream survivors[3];

static int leave_streams_open(void *arg)
{
    int *peers = arg, ends[2];
    char *data;
    for (int i = 0; i < 3; i++) {
        connect_two((kind)i, ends);
        peers[i] = ends[1];
        CHECK_INT(conc_stream_open(&survivors[i], ends[0]), 0);
        say(ends[1], "one|two");
        if (i > 0) {
            CHECK_INT(conc_stream_printf(&survivors[i], "never sent"), 10);
            CHECK_INT(conc_stream_read_until(&survivors[i], "|", 1, &data), 4);
        }
    }
    return 0;
}

TEST(a_stream_can_be_closed_when_its_run_is_over)
{
    int peers[3], fds = test_count_fds();
    char byte;
    CHECK_INT(conc_run(leave_streams_open, peers), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_stream_read(&survivors[i], &byte, 1), -EPERM);
        CHECK_INT(conc_stream_write(&survivors[i], &byte, 1), -EPERM);
        CHECK_INT(conc_stream_close(&survivors[i]), 0);
        CHECK_INT(conc_stream_close(&survivors[i]), 0);
        CHECK_INT(close(peers[i]), 0);
    }
    CHECK_INT(live_allocations, 0);
    CHECK_INT(test_count_fds(), fds);
}

/* ---- misuse ---- */

PLAIN_IO_TEST(a_stream_that_was_never_opened_is_EINVAL)
{
    conc_stream s = {0};
    char byte = 0, *data;
    CHECK_INT(conc_stream_read(&s, &byte, 1), -EINVAL);
    CHECK_INT(conc_stream_read_full(&s, &byte, 1), -EINVAL);
    CHECK_INT(conc_stream_read_until(&s, "x", 1, &data), -EINVAL);
    CHECK_INT(conc_stream_read_line(&s, &data), -EINVAL);
    CHECK_INT(conc_stream_write(&s, &byte, 1), -EINVAL);
    CHECK_INT(conc_stream_printf(&s, "x"), -EINVAL);
    CHECK_INT(conc_stream_flush(&s), -EINVAL);
    CHECK_INT(conc_stream_close(&s), 0);
    CHECK_INT(conc_stream_read(&s, &byte, 1), -EINVAL);
}

PLAIN_IO_TEST(no_stream_is_EINVAL)
{
    char byte = 0, *data;
    CHECK_INT(conc_stream_open(NULL, 0), -EINVAL);
    CHECK_INT(conc_stream_read(NULL, &byte, 1), -EINVAL);
    CHECK_INT(conc_stream_read_full(NULL, &byte, 1), -EINVAL);
    CHECK_INT(conc_stream_read_until(NULL, "x", 1, &data), -EINVAL);
    CHECK_INT(conc_stream_read_line(NULL, &data), -EINVAL);
    CHECK_INT(conc_stream_write(NULL, &byte, 1), -EINVAL);
    CHECK_INT(conc_stream_printf(NULL, "x"), -EINVAL);
    CHECK_INT(conc_stream_flush(NULL), -EINVAL);
}

PLAIN_IO_TEST(no_delimiter_and_no_place_for_the_result_are_EINVAL)
{
    pair p = {0};
    char *data = NULL;
    open_pair(&p);
    say(p.peer, "abc\n");
    CHECK_INT(conc_stream_read_until(&p.s, "\n", 0, &data), -EINVAL);
    CHECK_INT(conc_stream_read_until(&p.s, NULL, 1, &data), -EINVAL);
    CHECK_INT(conc_stream_read_until(&p.s, "\n", 1, NULL), -EINVAL);
    CHECK_INT(conc_stream_read_line(&p.s, NULL), -EINVAL);
    check_line(&p.s, "abc");
    close_pair(&p);
}

PLAIN_IO_TEST(opening_twice_is_EINVAL_and_changes_nothing)
{
    pair p = {0};
    int ends[2];
    open_pair(&p);
    connect_two(usual_kind, ends);
    CHECK_INT(conc_stream_open(&p.s, ends[0]), -EINVAL);
    say(p.peer, "the first\n");
    say(ends[1], "the second\n");
    check_line(&p.s, "the first");
    check_heard(ends[0], "the second\n"); /* still the caller's */
    CHECK_INT(conc_close(ends[0]), 0);
    CHECK_INT(conc_close(ends[1]), 0);
    close_pair(&p);
}

PLAIN_IO_TEST(a_descriptor_that_is_not_open_is_EBADF)
{
    pair p = {0};
    int ends[2];
    connect_two(usual_kind, ends);
    CHECK_INT(close(ends[0]), 0);
    CHECK_INT(conc_stream_open(&p.s, ends[0]), -EBADF);
    CHECK_INT(conc_stream_open(&p.s, -1), -EBADF);
    CHECK_INT(conc_stream_open(&p.s, 1 << 30), -EBADF);
    CHECK_INT(conc_stream_close(&p.s), 0);
    CHECK_INT(close(ends[1]), 0);
    open_pair(&p); /* it is like new */
    say(p.peer, "fine\n");
    check_line(&p.s, "fine");
    close_pair(&p);
}

TEST(outside_a_run_no_stream_can_be_opened)
{
    conc_stream s = {0};
    CHECK_INT(conc_stream_open(&s, 0), -EPERM);
    CHECK_INT(conc_stream_close(&s), 0);
    CHECK(fcntl(0, F_GETFD) >= 0 || errno == EBADF);
}

/* ---- kinds of descriptors ---- */

static void check_pipe(bool blocking)
{
    int ends[2];
    conc_stream in = {0}, out = {.buffer_size = 1000};
    conc_group g = {0};
    speaker k = {&out, MB};
    CHECK_INT(pipe(ends), 0);
    set_blocking(ends[0], blocking);
    set_blocking(ends[1], blocking);
    CHECK_INT(conc_stream_open(&in, ends[0]), 0);
    CHECK_INT(conc_stream_open(&out, ends[1]), 0);
    CHECK_INT(conc_spawn(&g, speak_and_close, &k), 0);
    CHECK_INT(conc_stream_read_full(&in, heard, MB), MB);
    CHECK_BYTES(heard, pattern, MB);
    check_end_of_file(&in);
    wait_for(&g);
    CHECK_INT(conc_stream_close(&in), 0);
}

IO_TEST(a_pipe_is_read_by_one_stream_and_written_by_another)
{
    check_pipe(true);
    check_pipe(false);
}

static void check_readable_end(bool blocking)
{
    int ends[2];
    conc_stream s = {0};
    CHECK_INT(pipe(ends), 0);
    set_blocking(ends[0], blocking);
    CHECK_INT(conc_stream_open(&s, ends[0]), 0);
    say(ends[1], "one\n");
    check_line(&s, "one");
    write_text(&s, "the wrong way");
    CHECK_INT(conc_stream_flush(&s), -EBADF);
    CHECK_INT(conc_stream_write(&s, "x", 1), -EBADF);
    say(ends[1], "two\n");
    check_line(&s, "two");
    CHECK_INT(close(ends[1]), 0);
    check_end_of_file(&s);
    close_after(&s, -EBADF);
}

IO_TEST(the_readable_end_of_a_pipe_cannot_be_written_to_but_still_read)
{
    check_readable_end(false);
}

IO_TEST(the_readable_end_of_a_pipe_in_blocking_mode_cannot_be_written_to_but_still_read)
{
    check_readable_end(true);
}

static void check_writable_end(bool blocking)
{
    int ends[2];
    char byte;
    conc_stream s = {0};
    CHECK_INT(pipe(ends), 0);
    set_blocking(ends[0], false);
    set_blocking(ends[1], blocking);
    CHECK_INT(conc_stream_open(&s, ends[1]), 0);
    CHECK_INT(conc_stream_read(&s, &byte, 1), -EBADF);
    write_text(&s, "the right way");
    CHECK_INT(conc_stream_close(&s), 0);
    check_heard(ends[0], "the right way");
    CHECK_INT(close(ends[0]), 0);
}

IO_TEST(the_writable_end_of_a_pipe_cannot_be_read_but_still_written_to)
{
    check_writable_end(false);
}

IO_TEST(the_writable_end_of_a_pipe_in_blocking_mode_cannot_be_read_but_still_written_to)
{
    check_writable_end(true);
}

IO_TEST(a_pipe_whose_reader_is_gone_is_EPIPE)
{
    int ends[2];
    conc_stream s = {0};
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(conc_stream_open(&s, ends[1]), 0);
    CHECK_INT(close(ends[0]), 0);
    CHECK_INT(write_until_it_fails(&s, true), -EPIPE);
    close_after(&s, -EPIPE);
}

static int greet_back(void *arg)
{
    conc_stream *s = arg;
    char *data;
    ssize_t n;
    while ((n = conc_stream_read_line(s, &data)) >= 0 && data)
        CHECK_INT(conc_stream_printf(s, "hello, %s\n", data), n + 8);
    CHECK_INT(n, 0);
    CHECK_INT(conc_stream_close(s), 0);
    return 0;
}

IO_TEST(a_hundred_questions_are_answered_over_every_kind_of_socket)
{
    for (int k = 0; k < KINDS; k++) {
        conc_stream a = {0}, b = {0};
        conc_group g = {0};
        char expected[32];
        open_both(&a, &b, (kind)k);
        CHECK_INT(conc_spawn(&g, greet_back, &b), 0);
        for (int i = 0; i < 100; i++) {
            CHECK_INT(conc_stream_printf(&a, "%03d\n", i), 4);
            snprintf(expected, sizeof expected, "hello, %03d", i);
            check_line(&a, expected);
        }
        CHECK_INT(conc_stream_close(&a), 0);
        wait_for(&g);
    }
}

IO_TEST(a_regular_file_is_written_and_read)
{
    conc_stream out = {.buffer_size = 100}, in = {.buffer_size = 64};
    char expected[32], *data;
    FILE *f = tmpfile();
    CHECK(f != NULL);
    CHECK_INT(conc_stream_open(&out, dup(fileno(f))), 0);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_stream_printf(&out, "line %04d\n", i), 10);
    CHECK_INT(conc_stream_close(&out), 0);
    CHECK_INT(lseek(fileno(f), 0, SEEK_SET), 0);
    CHECK_INT(conc_stream_open(&in, dup(fileno(f))), 0);
    for (int i = 0; i < 1000; i++) {
        snprintf(expected, sizeof expected, "line %04d", i);
        CHECK_INT(conc_stream_read_line(&in, &data), 9);
        CHECK_STR(data, expected);
    }
    check_end_of_file(&in);
    CHECK_INT(conc_stream_close(&in), 0);
    fclose(f);
}

#ifdef __linux__
/* Returns the terminal end of a pseudo terminal, and in *other the controlling end; -1 if there is
 * none. */
static int open_terminal(int *other)
{
    int unlocked = 0, number = -1;
    char name[32];
    *other = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    if (*other < 0)
        return -1;
    if (ioctl(*other, TIOCSPTLCK, &unlocked) || ioctl(*other, TIOCGPTN, &number)) {
        close(*other);
        return -1;
    }
    snprintf(name, sizeof name, "/dev/pts/%d", number);
    int fd = open(name, O_RDWR | O_NOCTTY);
    if (fd < 0)
        close(*other);
    return fd;
}

static void check_terminal(int fd, int flags, const struct termios *settings)
{
    struct termios now;
    memset(&now, 0, sizeof now);
    CHECK_INT(fcntl(fd, F_GETFL), flags);
    CHECK_INT(tcgetattr(fd, &now), 0);
    CHECK(memcmp(&now, settings, sizeof now) == 0);
}

IO_TEST(a_terminal_is_read_and_written_and_its_flags_are_unchanged)
{
    int keyboard, fd = open_terminal(&keyboard);
    struct termios settings;
    conc_stream s = {0};
    io reader = {.call = READ_LINE, .s = &s};
    conc_group g = {0};
    if (fd < 0)
        return;
    int flags = fcntl(fd, F_GETFL);
    memset(&settings, 0, sizeof settings);
    CHECK_INT(tcgetattr(fd, &settings), 0);
    CHECK_INT(conc_stream_open(&s, dup(fd)), 0);
    check_terminal(fd, flags, &settings);
    write_text(&s, "name? ");
    begin_io(&g, &reader);
    let_them_run();
    check_terminal(fd, flags, &settings);
    CHECK_INT(conc_read_full(keyboard, heard, 6), 6);
    CHECK_BYTES(heard, "name? ", 6);
    say(keyboard, "somebody\n");
    wait_for(&g);
    CHECK_INT(reader.rc, 8);
    CHECK_STR(reader.data, "somebody");
    CHECK_INT(conc_stream_close(&s), 0);
    check_terminal(fd, flags, &settings);
    close(fd);
    close(keyboard);
}
#endif

IO_TEST(the_flags_of_a_shared_descriptor_are_unchanged)
{
    int ends[2];
    for (int blocking = 0; blocking < 2; blocking++) {
        pair p = {0};
        conc_group g = {0};
        io reader = {.call = READ_LINE, .s = &p.s};
        connect_two(blocking ? BLOCKING_SOCKETS : SOCKETS, ends);
        int flags = fcntl(ends[0], F_GETFL);
        p.peer = ends[1];
        CHECK_INT(conc_stream_open(&p.s, dup(ends[0])), 0);
        CHECK_INT(fcntl(ends[0], F_GETFL), flags);
        begin_io(&g, &reader);
        let_them_run();
        CHECK_INT(fcntl(ends[0], F_GETFL), flags);
        say(p.peer, "\n");
        wait_for(&g);
        close_pair(&p);
        CHECK_INT(fcntl(ends[0], F_GETFL), flags);
        CHECK_INT(close(ends[0]), 0);
    }
}

/* ---- another process, on the real clock ---- */

static void echo_and_exit(int fd)
{
    static char bytes[5000];
    ssize_t n;
    while ((n = read(fd, bytes, sizeof bytes)) > 0)
        for (ssize_t done = 0, part; done < n; done += part)
            if ((part = write(fd, bytes + done, (size_t)(n - done))) < 0)
                _exit(1);
    _exit(n < 0);
}

static int talk_with_an_echo(void *arg)
{
    conc_stream s = {.buffer_size = 3 * MB}, lines = {0};
    int *fds = arg;
    char expected[32];
    both_ways b = {&s, 2 * MB, heard};
    CHECK_INT(conc_stream_open(&s, fds[0]), 0);
    CHECK_INT(write_and_read_pattern(&b), 0);
    CHECK_INT(conc_stream_close(&s), 0);
    CHECK_INT(conc_stream_open(&lines, fds[1]), 0);
    for (int i = 0; i < 200; i++) {
        CHECK_INT(conc_stream_printf(&lines, "%03d\n", i), 4);
        snprintf(expected, sizeof expected, "%03d", i);
        check_line(&lines, expected);
    }
    CHECK_INT(conc_stream_close(&lines), 0);
    return 0;
}

static void run_with_echoes(const char *way)
{
    int fds[2], status, before = test_count_fds();
    pid_t child[2];
    unsetenv("CONC_CLOCK");
    if (way)
        setenv("CONC_POLL", way, 1);
    for (int i = 0; i < 2; i++) {
        int ends[2];
        CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
        child[i] = fork();
        if (child[i] == 0) {
            close(ends[0]);
            if (i == 1)
                close(fds[0]);
            echo_and_exit(ends[1]);
        }
        close(ends[1]);
        fds[i] = ends[0];
    }
    CHECK_INT(conc_run(talk_with_an_echo, fds), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(waitpid(child[i], &status, 0), child[i]);
        CHECK_INT(status, 0);
    }
    CHECK_INT(test_count_fds(), before);
    CHECK_INT(live_allocations, 0);
}

TEST(another_process_echoes_two_megabytes_and_lines) { run_with_echoes(NULL); }
VARIANT_TEST(another_process_echoes_two_megabytes_and_lines_with_poll) { run_with_echoes("poll"); }
VARIANT_TEST(another_process_echoes_two_megabytes_and_lines_with_the_best)
{
    run_with_echoes(TEST_POLLER);
}

/* ---- memory ---- */

enum { IDLE = 30 };

static int read_lines_to_the_end(void *arg)
{
    char *data;
    while (CONC_TRY(conc_stream_read_line(arg, &data)) >= 0 && data)
        CHECK_STR(data, "hello");
    return 0;
}

PLAIN_IO_TEST(a_stream_with_a_waiting_read_and_empty_buffers_uses_no_memory)
{
    static pair p[IDLE];
    conc_group g = {0};
    for (int i = 0; i < IDLE; i++) {
        p[i] = (pair){.s = {.buffer_size = 1000}};
        open_pair(&p[i]);
        CHECK_INT(conc_spawn(&g, read_lines_to_the_end, &p[i].s), 0);
    }
    let_them_run();
    long before = live_allocations;
    for (int i = 0; i < IDLE; i++) {
        say(p[i].peer, "hel");
        let_them_run();
        CHECK(live_allocations > before);
        say(p[i].peer, "lo\nhello\n");
        CHECK_INT(conc_stream_write(&p[i].s, pattern, 900), 900);
        CHECK_INT(conc_stream_flush(&p[i].s), 0);
        let_them_run();
        CHECK_INT(live_allocations, before);
    }
    for (int i = 0; i < IDLE; i++) {
        CHECK_INT(hear(p[i].peer, heard, KB), 900);
        hang_up(&p[i]);
    }
    wait_for(&g);
    for (int i = 0; i < IDLE; i++)
        close_pair(&p[i]);
}

/* Repeats the call after an injected -ENOMEM, which must have had no effect. */
#define AGAIN(expr)                        \
    __extension__({                        \
        long long rc_ = (long long)(expr); \
        if (rc_ == -ENOMEM) {              \
            CHECK(fault.injected > 0);     \
            fault.at = 0;                  \
            rc_ = (long long)(expr);       \
        }                                  \
        rc_;                               \
    })

static bool main_ran;

/* Continues a block that was written in part before memory ran out. */
static void write_all(conc_stream *s, size_t n)
{
    for (size_t done = 0; done < n;) {
        long long rc = AGAIN(conc_stream_write(s, pattern + done, n - done));
        CHECK(rc > 0);
        done += (size_t)rc;
    }
}

static int talk_with_little_memory(void *arg)
{
    (void)arg;
    pair p = {.s = {.limit = 2000, .buffer_size = 64}};
    static char text[1501];
    char buf[8], *data;
    int ends[2];
    main_ran = true;
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    p.peer = ends[1];
    CHECK_INT(AGAIN(conc_stream_open(&p.s, ends[0])), 0);
    memset(text, 'z', 1500);
    say(p.peer, "one\n");
    CHECK_INT(AGAIN(conc_stream_read_line(&p.s, &data)), 3);
    CHECK_STR(data, "one");
    say(p.peer, "two\nthree|");
    say_bytes(p.peer, pattern, 1000);
    say(p.peer, "|four");
    CHECK_INT(AGAIN(conc_stream_read(&p.s, buf, 4)), 4);
    CHECK_BYTES(buf, "two\n", 4);
    CHECK_INT(AGAIN(conc_stream_read_until(&p.s, "|", 1, &data)), 6);
    CHECK_STR(data, "three|");
    CHECK_INT(AGAIN(conc_stream_read_until(&p.s, "|", 1, &data)), 1001);
    CHECK_BYTES(data, pattern, 1000);
    CHECK_INT(AGAIN(conc_stream_read_full(&p.s, buf, 4)), 4);
    CHECK_BYTES(buf, "four", 4);
    CHECK_INT(AGAIN(conc_stream_write(&p.s, "five ", 5)), 5);
    CHECK_INT(AGAIN(conc_stream_flush(&p.s)), 0);
    CHECK_INT(AGAIN(conc_stream_printf(&p.s, "%s\n", text)), 1501);
    CHECK_INT(AGAIN(conc_stream_printf(&p.s, "%d\n", 6)), 2);
    write_all(&p.s, 3000);
    CHECK_INT(AGAIN(conc_stream_write(&p.s, "seven", 5)), 5);
    long long rc = conc_stream_close(&p.s); /* not to be repeated */
    CHECK(rc == 0 || (rc == -ENOMEM && fault.injected > 0));
    size_t n = hear(p.peer, heard, sizeof heard);
    CHECK(n == 5 + 1501 + 2 + 3000 + 5 || rc < 0);
    if (rc == 0) {
        CHECK_BYTES(heard, "five zzz", 8);
        CHECK_BYTES(heard + 1506, "6\n", 2);
        CHECK_BYTES(heard + 1508, pattern, 3000);
        CHECK_BYTES(heard + 4508, "seven", 5);
    }
    CHECK_INT(close(p.peer), 0);
    return 0;
}

static void check_every_allocation(bool forever, const char *way)
{
    long n = 0;
    unsetenv("CONC_CLOCK");
    if (way)
        setenv("CONC_POLL", way, 1);
    do {
        memset(&fault, 0, sizeof fault);
        fault.at = ++n;
        fault.forever = forever;
        main_ran = false;
        int fds = test_count_fds(), rc = conc_run(talk_with_little_memory, NULL);
        CHECK(rc == 0 || (rc == -ENOMEM && !main_ran));
        CHECK_INT(live_allocations, 0);
        CHECK_INT(test_count_fds(), fds);
    } while (fault.injected > 0 && n < 10000);
    CHECK(n > 5);
    CHECK_INT(fault.injected, 0);
}

TEST(every_allocation_may_fail_and_nothing_is_lost) { check_every_allocation(false, NULL); }
VARIANT_TEST(every_allocation_may_fail_and_nothing_is_lost_with_poll)
{
    check_every_allocation(false, "poll");
}
TEST(from_any_allocation_on_all_may_fail_and_nothing_is_lost)
{
    check_every_allocation(true, NULL);
}
VARIANT_TEST(from_any_allocation_on_all_may_fail_and_nothing_is_lost_with_poll)
{
    check_every_allocation(true, "poll");
}

PLAIN_IO_TEST(a_write_without_memory_accepts_nothing_or_returns_how_much)
{
    pair p = {.s = {.buffer_size = 100}};
    size_t taken = 0;
    open_pair(&p);
    fault.forever = true;
    for (size_t size = 1; size < 500; size += 7) {
        fault.at = size % 2 ? fault.calls + 1 : 0;
        ssize_t rc = conc_stream_write(&p.s, pattern + taken, size);
        CHECK(rc == -ENOMEM ? fault.at != 0 : rc > 0 && (size_t)rc <= size);
        taken += rc > 0 ? (size_t)rc : 0;
    }
    fault.at = 0;
    CHECK_INT(close_and_hear(&p), taken);
    CHECK_BYTES(heard, pattern, taken);
}

PLAIN_IO_TEST(a_write_that_has_to_wait_without_memory_returns_what_it_sent)
{
    pair p = {.s = {.buffer_size = 1000}};
    conc_scope limit = {0};
    open_pair(&p);
    CHECK_INT(conc_wait_fd(descriptor_of(&p.s), CONC_WRITABLE), CONC_WRITABLE);
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    fault.forever = true;
    fault.at = fault.calls + 1;
    ssize_t rc = conc_stream_write(&p.s, pattern, 2 * MB);
    fault.at = 0;
    CHECK_INT(conc_scope_end(&limit, 0), 0);
    size_t taken = rc > 0 ? (size_t)rc : 0;
    CHECK_INT(conc_stream_write(&p.s, pattern + taken, 2 * MB - taken > 9 ? 9 : 0), 9);
    CHECK_INT(close_and_hear(&p), taken + 9);
    CHECK_BYTES(heard, pattern, taken + 9);
}

/* ---- random operations ---- */

static struct {
    uint64_t seed, random;
    long programs, operations, reads, records, too_long, cut_short;
} r;

static uint64_t random_number(uint64_t below)
{
    r.random = r.random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    uint64_t x = r.random ^ r.random >> 29;
    return (x * UINT64_C(0xbf58476d1ce4e5b9) >> 32) % below;
}

static bool one_in(uint64_t n) { return random_number(n) == 0; }

static size_t random_size(void)
{
    static const uint64_t below[] = {4, 40, 40, 400, 3000, 30000};
    return 1 + (size_t)random_number(one_in(40) ? 600000 : below[random_number(CONC_LEN(below))]);
}

#define EXPECT(condition) \
    ((condition)          \
         ? (void)0        \
         : test_fail(__FILE__, __LINE__, "program %" PRIu64 ": not true: %s", r.seed, #condition))
#define EXPECT_INT(actual, expected) \
    expect_int(__LINE__, #actual, (long long)(actual), (long long)(expected))

static void expect_int(int line_number, const char *what, long long actual, long long expected)
{
    if (actual != expected)
        test_fail(__FILE__, line_number, "program %" PRIu64 ": %s is %lld, not %lld", r.seed, what,
                  actual, expected);
}

/* One direction: of the given text, `written` bytes were accepted, at least `sent` are in the
 * system, and `got` were read. */
enum { TEXT = 1 << 20, TEXTS = TEXT + (1 << 18) };

typedef struct way {
    conc_stream *from, *to;
    char *text;
    size_t offered, written, sent, got;
} way;

static char texts[2][TEXTS];

/* Few letters, so that there are many false starts of delimiters; with stretches that have none. */
static void make_text(char *text)
{
    for (size_t i = 0; i < TEXTS;) {
        size_t length = 1 + (size_t)random_number(one_in(10) ? 5000 : 60);
        bool dull = one_in(3);
        for (; length > 0 && i < TEXTS; length--, i++)
            text[i] = dull ? 'x' : "aaaab\n\r\0xy"[random_number(10)];
    }
}

static void check_read(way *w, const char *data, size_t n)
{
    EXPECT(w->got + n <= w->offered);
    for (size_t i = 0; i < n; i++)
        if (data[i] != w->text[w->got + i])
            test_fail(__FILE__, __LINE__, "program %" PRIu64 ": byte %zu is wrong", r.seed,
                      w->got + i);
    w->got += n;
    w->sent = w->sent > w->got ? w->sent : w->got;
    r.reads++;
}

/* Runs c under a time limit, 0: one that has passed. Stores the result in c->rc; returns whether
 * the limit passed. */
static bool run_limited(io *c, const line *delimiter, double seconds)
{
    conc_scope limit = {0};
    EXPECT_INT(conc_scope_begin(&limit, seconds), 0);
    c->data = NULL;
    c->rc = c->call == READ_UNTIL && delimiter
                ? conc_stream_read_until(c->s, delimiter->text, delimiter->n, &c->data)
                : do_io(c);
    bool late = conc_cancelled();
    int rc = conc_scope_end(&limit, c->rc < 0 ? (int)c->rc : 0);
    EXPECT(c->rc == -ECANCELED ? rc == -ETIMEDOUT && late : rc == (c->rc < 0 ? c->rc : 0));
    if (seconds <= 0)
        EXPECT_INT(c->rc, -ECANCELED);
    r.cut_short += late;
    r.operations++;
    return late;
}

static double random_limit(void) { return one_in(12) ? 0 : 1; }

/* So few bytes are in transit that the system has room for them. */
static bool has_room(const way *w, size_t n) { return w->written - w->got + n <= 4096; }

static void random_write(way *w)
{
    size_t n = random_size(), kept = w->from->buffer_size;
    if (n > TEXT - w->written)
        n = TEXT - w->written;
    if (n == 0)
        return;
    io c = {.call = WRITE, .s = w->from, .buf = w->text + w->written, .n = n};
    double seconds = random_limit();
    w->offered = w->written + n;
    bool late = run_limited(&c, NULL, seconds);
    EXPECT(c.rc == -ECANCELED || (c.rc > 0 && (size_t)c.rc <= n));
    EXPECT(late || (size_t)c.rc == n);
    EXPECT(!late || seconds <= 0 || !has_room(w, n));
    w->written += c.rc > 0 ? (size_t)c.rc : 0;
    w->offered = w->written;
    if (!late && w->written > kept && w->written - kept > w->sent)
        w->sent = w->written - kept;
}

static void random_flush(way *w)
{
    io c = {.call = FLUSH, .s = w->from};
    double seconds = random_limit();
    bool late = run_limited(&c, NULL, seconds);
    if (c.rc == 0)
        w->sent = w->written;
    EXPECT(late ? c.rc > 0 || c.rc == -ECANCELED : c.rc == 0);
    EXPECT(c.rc <= (ssize_t)(w->written - w->sent) || c.rc == 0);
    EXPECT(!late || seconds <= 0 || !has_room(w, 0));
}

/* A read that waited has sent what the same stream wrote, as far as there was room. */
static void note_sent(way *other, bool late, double seconds)
{
    if (late && seconds > 0 && has_room(other, 0))
        other->sent = other->written;
}

static void random_read(way *w, way *other)
{
    static char buf[600001];
    size_t n = random_size(), there = w->sent - w->got;
    bool full = one_in(2);
    double seconds = random_limit();
    io c = {.call = full ? READ_FULL : READ, .s = w->to, .buf = buf, .n = n};
    bool late = run_limited(&c, NULL, seconds);
    EXPECT(c.rc == -ECANCELED || (c.rc > 0 && (size_t)c.rc <= n));
    if (c.rc > 0)
        check_read(w, buf, (size_t)c.rc);
    EXPECT(late || !full || (size_t)c.rc == n);
    if (seconds > 0)
        EXPECT(c.rc > 0 ? !full || (size_t)c.rc >= (there < n ? there : n) : there == 0);
    note_sent(other, late, seconds);
}

/* The record that begins at got: its length with and without the delimiter, which may be beyond
 * everything that was sent. */
static size_t next_record(const way *w, const line *delimiter, bool is_line, size_t *body)
{
    size_t n = record_length(w->text + w->got, TEXT - w->got, delimiter->text, delimiter->n);
    *body = n - delimiter->n;
    if (is_line && *body > 0 && w->text[w->got + *body - 1] == '\r')
        --*body;
    return n;
}

static void check_record(way *w, const io *c, size_t whole, size_t body)
{
    EXPECT_INT(c->rc, c->call == READ_LINE ? body : whole);
    EXPECT(body <= w->to->limit);
    EXPECT_INT(c->data[c->rc], 0);
    check_read(w, c->data, (size_t)c->rc);
    w->got += whole - (size_t)c->rc;
    w->sent = w->sent > w->got ? w->sent : w->got;
    EXPECT(w->got <= w->offered);
    r.records++;
}

static void random_record(way *w, way *other)
{
    static const line delimiters[] = {LINE("\n"), LINE("\r\n"), LINE("aab"), LINE("\n\n"),
                                      LINE("a\0")};
    bool is_line = one_in(2);
    const line *delimiter = &delimiters[is_line ? 0 : random_number(CONC_LEN(delimiters))];
    size_t body, there = w->sent - w->got, limit = w->to->limit;
    size_t whole = next_record(w, delimiter, is_line, &body);
    double seconds = random_limit();
    io c = {.call = is_line ? READ_LINE : READ_UNTIL, .s = w->to};
    bool late = run_limited(&c, delimiter, seconds);
    if (c.rc == -EMSGSIZE) {
        EXPECT(body > limit);
        EXPECT(w->offered - w->got > limit);
        r.too_long++;
        for (int i = 0; i < 2; i++)
            random_read(w, other);
    } else if (c.rc == -ECANCELED) {
        EXPECT(seconds <= 0 ||
               (body <= limit ? whole > there : there < limit + delimiter->n + is_line));
    } else {
        check_record(w, &c, whole, body);
    }
    note_sent(other, late, seconds);
}

static void drain(way *w)
{
    while (w->got < w->written) {
        io c = {.call = FLUSH, .s = w->from};
        (void)run_limited(&c, NULL, 1);
        size_t left = w->written - w->got;
        io d = {.call = READ, .s = w->to, .buf = heard, .n = left < 100000 ? left : 100000};
        EXPECT(!run_limited(&d, NULL, 1));
        check_read(w, heard, (size_t)d.rc);
    }
}

static void random_options(conc_stream *s)
{
    static const size_t limits_[] = {5, 30, 1000, 65536},
                        sizes[] = {1, 7, 100, 4096, 16384, 300000};
    s->limit = limits_[random_number(CONC_LEN(limits_))];
    s->buffer_size = sizes[random_number(CONC_LEN(sizes))];
}

static void begin_program(uint64_t seed)
{
    if (r.programs++ == 0) {
        r.random = 1;
        make_text(texts[0]);
        make_text(texts[1]);
    }
    r.seed = seed;
    r.random = seed * UINT64_C(0x2545f4914f6cdd1d);
}

/* Each program begins elsewhere in the texts. */
static way make_way(conc_stream *from, conc_stream *to, int which)
{
    return (way){.from = from, .to = to, .text = texts[which] + random_number(TEXTS - TEXT)};
}

/* One task makes various calls on both streams; the model knows the exact results. */
static void run_one_task_program(int operations)
{
    conc_stream s[2] = {{0}, {0}};
    way ways[2] = {make_way(&s[0], &s[1], 0), make_way(&s[1], &s[0], 1)};
    random_options(&s[0]);
    random_options(&s[1]);
    open_both(&s[0], &s[1], one_in(2) ? SOCKETS : BLOCKING_SOCKETS);
    for (int i = 0; i < operations; i++) {
        int which = (int)random_number(2);
        way *w = &ways[which], *other = &ways[!which];
        switch (random_number(8)) {
        case 0:
        case 1:
        case 2: random_write(w); break;
        case 3: random_flush(w); break;
        case 4:
        case 5: random_read(w, other); break;
        default: random_record(w, other); break;
        }
    }
    drain(&ways[0]);
    drain(&ways[1]);
    EXPECT_INT(conc_stream_close(&s[0]), 0);
    check_end_of_file(&s[1]);
    EXPECT_INT(conc_stream_close(&s[1]), 0);
}

/* Four tasks, a reader and a writer at each end, which are cancelled now and then. */
enum { EACH_WAY = 200000 };

typedef struct worker {
    way *way;
    conc_scope *scope; /* of the current call */
    bool done;
} worker;

static void work_in_scope(worker *k, io *c)
{
    conc_scope limit = {0};
    EXPECT_INT(conc_scope_begin(&limit, one_in(4) ? 0.5 : CONC_FOREVER), 0);
    k->scope = &limit;
    c->rc = do_io(c);
    k->scope = NULL;
    int rc = conc_scope_end(&limit, c->rc < 0 ? (int)c->rc : 0);
    EXPECT(c->rc >= 0 || c->rc == -ECANCELED || c->rc == -EMSGSIZE);
    EXPECT(c->rc != -ECANCELED || rc == 0 || rc == -ETIMEDOUT);
    r.cut_short += c->rc == -ECANCELED;
    r.operations++;
}

static int work_as_writer(void *arg)
{
    worker *k = arg;
    way *w = k->way;
    while (w->written < EACH_WAY) {
        size_t n = random_size() / 8 + 1, left = EACH_WAY - w->written;
        io c = {.call = WRITE, .s = w->from, .buf = w->text + w->written, .n = n < left ? n : left};
        w->offered = w->written + c.n;
        work_in_scope(k, &c);
        w->written += c.rc > 0 ? (size_t)c.rc : 0;
        w->offered = w->written;
        if (one_in(4)) {
            io f = {.call = FLUSH, .s = w->from};
            work_in_scope(k, &f);
        }
        if (one_in(20))
            EXPECT_INT(conc_sleep(conc_random(0, 1)), 0);
    }
    EXPECT_INT(conc_stream_flush(w->from), 0);
    k->done = true;
    return 0;
}

static int work_as_reader(void *arg)
{
    worker *k = arg;
    way *w = k->way;
    bool bytes = false;
    static char buf[2][5000];
    while (w->got < EACH_WAY) {
        size_t body, n = 1 + (size_t)random_number(5000), left = EACH_WAY - w->got;
        size_t whole = next_record(w, &(line)LINE("\n"), true, &body);
        bytes = bytes || one_in(2) || whole > left; /* the last record has no end */
        io c = {.call = bytes ? (one_in(2) ? READ : READ_FULL) : READ_LINE, .s = w->to};
        c.buf = buf[w->text >= texts[1]];
        c.n = n < left ? n : left;
        work_in_scope(k, &c);
        if (c.rc > 0 && bytes)
            check_read(w, c.buf, (size_t)c.rc);
        else if (c.rc >= 0 && !bytes)
            check_record(w, &c, whole, body);
        bytes = c.rc == -EMSGSIZE;
        if (one_in(20))
            EXPECT_INT(conc_sleep(conc_random(0, 1)), 0);
    }
    k->done = true;
    return 0;
}

static int disturb(void *arg)
{
    worker *k = arg;
    while (!k[0].done || !k[1].done || !k[2].done || !k[3].done) {
        worker *one = &k[random_number(4)];
        for (uint64_t turns = random_number(20); turns > 0; turns--)
            EXPECT_INT(conc_yield(), 0);
        if (one->scope)
            conc_scope_cancel(one->scope);
        EXPECT_INT(conc_sleep(one_in(3) ? 0.2 : 0), 0);
    }
    return 0;
}

static void run_four_task_program(void)
{
    conc_stream s[2] = {{0}, {0}};
    way ways[2] = {make_way(&s[0], &s[1], 0), make_way(&s[1], &s[0], 1)};
    worker k[4] = {{&ways[0], NULL, false},
                   {&ways[1], NULL, false},
                   {&ways[0], NULL, false},
                   {&ways[1], NULL, false}};
    conc_group g = {0};
    random_options(&s[0]);
    random_options(&s[1]);
    open_both(&s[0], &s[1], (kind)random_number(KINDS));
    for (int i = 0; i < 4; i++)
        EXPECT_INT(conc_spawn(&g, i < 2 ? work_as_writer : work_as_reader, &k[i]), 0);
    EXPECT_INT(conc_spawn(&g, disturb, k), 0);
    EXPECT_INT(conc_group_wait(&g), 0);
    EXPECT_INT(conc_stream_close(&s[0]), 0);
    check_end_of_file(&s[1]);
    EXPECT_INT(conc_stream_close(&s[1]), 0);
}

static uint64_t number_in_environment(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static void run_programs(uint64_t count, int operations)
{
    uint64_t first = number_in_environment("RANDOM_FIRST", 1);
    count = number_in_environment("RANDOM_PROGRAMS", count);
    for (uint64_t seed = first; seed < first + count; seed++) {
        begin_program(seed);
        if (operations > 0)
            run_one_task_program(operations);
        else
            run_four_task_program();
    }
}

static void check_ten_thousand_operations(void)
{
    run_programs(test_seeded() ? 10 : 50, 200);
    if (r.programs >= 50) {
        CHECK(r.operations >= 10000);
        CHECK(r.reads > 2000 && r.records > 500 && r.too_long > 100 && r.cut_short > 500);
    }
}

IO_TEST(ten_thousand_random_operations_agree_with_the_model) { check_ten_thousand_operations(); }

IO_TEST(random_readers_and_writers_that_are_cancelled_lose_and_duplicate_nothing)
{
    run_programs(test_seeded() ? 2 : 8, 0);
}

/* ---- a stream that is freed as soon as it was closed ---- */

typedef enum inside_call {
    IN_READ,
    IN_READ_FULL,
    IN_READ_UNTIL,
    IN_READ_LINE,
    IN_WRITE,
    IN_PRINTF,
    IN_FLUSH,
    INSIDE_CALLS
} inside_call;

typedef struct insider {
    conc_stream *s;
    inside_call call;
    ssize_t rc;
    bool done;
} insider;

static int goes_inside(void *arg)
{
    static char large[1 << 20];
    insider *i = arg;
    char *data;
    switch (i->call) {
    case IN_READ: i->rc = conc_stream_read(i->s, large, 1); break;
    case IN_READ_FULL: i->rc = conc_stream_read_full(i->s, large, sizeof large); break;
    case IN_READ_UNTIL: i->rc = conc_stream_read_until(i->s, "|", 1, &data); break;
    case IN_READ_LINE: i->rc = conc_stream_read_line(i->s, &data); break;
    case IN_WRITE: i->rc = conc_stream_write(i->s, large, sizeof large); break;
    case IN_PRINTF: i->rc = conc_stream_printf(i->s, "%*d", (int)sizeof large, 1); break;
    default: i->rc = conc_stream_flush(i->s);
    }
    i->done = true;
    return 0;
}

/* A stream in its own memory, whose peer reads nothing. */
static conc_stream *open_on_heap(int ends[2])
{
    conc_stream *s = calloc(1, sizeof *s);
    CHECK(s != NULL);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    CHECK_INT(conc_stream_open(s, ends[0]), 0);
    return s;
}

static void close_and_free(conc_stream *s)
{
    (void)conc_stream_close(s);
    memset(s, 0x55, sizeof *s); /* where no sanitizer checks */
    free(s);
}

/* One reader and two writers, the second of which waits for its turn; they begin `begun` turns of
 * the loop before the close. */
static void close_around(inside_call read, inside_call write, int turns, bool cancelled)
{
    int ends[2];
    conc_stream *s = open_on_heap(ends);
    insider in[3] = {{.s = s, .call = read}, {.s = s, .call = write}, {.s = s, .call = IN_WRITE}};
    conc_group g = {0};
    conc_scope c = {0};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&g, goes_inside, &in[i]), 0);
    for (int i = 0; i < turns; i++)
        CHECK_INT(conc_yield(), 0);
    if (turns < 0)
        let_them_run();
    CHECK_INT(conc_scope_begin(&c, 5), 0); /* the flush waits for a peer that reads nothing */
    if (cancelled)
        conc_scope_cancel(&c);
    CHECK(conc_stream_close(s) <= 0);
    bool inside = false;
    for (int i = 0; i < 3; i++)
        inside |= !in[i].done && turns < 0; /* otherwise it may not have begun */
    CHECK(!inside);
    CHECK_INT(conc_scope_end(&c, 0), 0);
    if (turns < 0) {
        memset(s, 0x55, sizeof *s);
        free(s);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 3; i++)
        CHECK(in[i].rc == -EPIPE || in[i].rc == 0);
    if (turns >= 0)
        free(s);
    CHECK_INT(close(ends[1]), 0);
}

IO_TEST(a_close_returns_when_all_calls_of_other_tasks_have_returned)
{
    for (inside_call read = IN_READ; read <= IN_READ_LINE; read++)
        for (inside_call write = IN_WRITE; write <= IN_FLUSH; write++)
            for (int turns = -1; turns < 4; turns++)
                for (int cancelled = 0; cancelled < 2; cancelled++)
                    close_around(read, write, turns, cancelled);
}

static int closes(void *arg)
{
    (void)conc_stream_close(arg);
    return 0;
}

IO_TEST(several_closes_all_wait_until_no_task_uses_the_stream)
{
    int ends[2];
    conc_stream *s = open_on_heap(ends);
    insider in = {.s = s, .call = IN_READ};
    conc_group g = {0}, closers = {0};
    CHECK_INT(conc_spawn(&g, goes_inside, &in), 0);
    let_them_run();
    CHECK_INT(conc_group_begin(&closers), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&closers, closes, s), 0);
    CHECK_INT(conc_group_wait(&closers), 0);
    CHECK(in.done);
    close_and_free(s);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(close(ends[1]), 0);
}

/* The budget makes a task that need not wait yield in the middle of a call. */
static int uses_until_it_is_closed(void *arg)
{
    insider *i = arg;
    char byte, *data;
    do
        switch (i->call) {
        case IN_READ: i->rc = conc_stream_read(i->s, &byte, 1); break;
        case IN_READ_UNTIL: i->rc = conc_stream_read_until(i->s, "", 1, &data); break;
        case IN_READ_FULL: i->rc = conc_stream_read_full(i->s, &byte, 1); break;
        default: i->rc = conc_stream_printf(i->s, "x");
        }
    while (i->rc >= 0);
    CHECK_INT(i->rc, -EPIPE);
    return 0;
}

IO_TEST(a_call_that_lets_others_have_their_turn_is_inside_too)
{
    static const inside_call calls[] = {IN_READ, IN_READ_UNTIL, IN_READ_FULL, IN_PRINTF};
    for (size_t i = 0; i < CONC_LEN(calls); i++) {
        conc_stream *s = calloc(1, sizeof *s);
        bool writes = calls[i] == IN_PRINTF;
        int fd = open(writes ? "/dev/null" : "/dev/zero", writes ? O_WRONLY : O_RDONLY);
        insider in = {.s = s, .call = calls[i]};
        conc_group g = {0};
        CHECK(s != NULL && fd >= 0);
        CHECK_INT(conc_stream_open(s, fd), 0);
        CHECK_INT(conc_spawn(&g, uses_until_it_is_closed, &in), 0);
        for (int k = 0; k < 3; k++)
            CHECK_INT(conc_yield(), 0);
        close_and_free(s);
        CHECK_INT(conc_group_wait(&g), 0);
    }
}

static void closes_posted(void *arg) { CHECK_INT(conc_stream_close(arg), 0); }

IO_TEST(a_posted_function_closes_without_waiting_and_the_stream_cannot_be_opened_while_in_use)
{
    int ends[2], more[2];
    conc_stream *s = open_on_heap(ends);
    insider in = {.s = s, .call = IN_READ};
    conc_group g = {0}, again = {0};
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, more), 0);
    CHECK_INT(conc_spawn(&g, goes_inside, &in), 0);
    let_them_run();
    CHECK_INT(conc_stream_close(s), 0);
    CHECK(in.done);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_stream_open(s, more[0]), 0);
    in.done = false;
    CHECK_INT(conc_spawn(&again, goes_inside, &in), 0);
    let_them_run();
    CHECK_INT(conc_post(conc_loop_self(), closes_posted, s), 0);
    for (int i = 0; i < 10 && !in.done; i++) {
        int fd = dup(more[1]), rc = conc_stream_open(s, fd);
        CHECK(rc == -EINVAL || rc == -EBUSY); /* it is open, or no task has left it yet */
        CHECK_INT(close(fd), 0);
        CHECK_INT(conc_yield(), 0);
    }
    CHECK_INT(conc_group_wait(&again), 0);
    CHECK_INT(in.rc, -EPIPE);
    free(s);
    CHECK_INT(close(ends[1]), 0);
    CHECK_INT(close(more[1]), 0);
}

/* ---- calls that never have to wait; under a seed it is random how often the others run ---- */

static int counts_its_turns(void *arg)
{
    for (;;) {
        ++*(int *)arg;
        CONC_TRY(conc_yield());
    }
}

enum { MUCH = 64 << 20 };

typedef ssize_t lengthy(conc_stream *s, char *memory);

static ssize_t reads_much(conc_stream *s, char *memory)
{
    return conc_stream_read_full(s, memory, MUCH);
}

static ssize_t reads_a_long_record(conc_stream *s, char *memory)
{
    (void)memory;
    char *data;
    return conc_stream_read_until(s, "x", 1, &data);
}

static ssize_t writes_much(conc_stream *s, char *memory)
{
    return conc_stream_write(s, memory, MUCH);
}

static ssize_t flushes_much(conc_stream *s, char *memory)
{
    CHECK_INT(conc_stream_write(s, memory, s->buffer_size), s->buffer_size);
    return conc_stream_flush(s);
}

static const struct {
    lengthy *call;
    const char *file;
    int mode;
    ssize_t result;
    size_t limit, buffer;
} lengthy_calls[] = {
    {reads_much, "/dev/zero", O_RDONLY, MUCH, 0, 0},
    {reads_a_long_record, "/dev/zero", O_RDONLY, -EMSGSIZE, MUCH, 0},
    {writes_much, "/dev/null", O_WRONLY, MUCH, 0, 0},
    {writes_much, "/dev/null", O_WRONLY | O_NONBLOCK, MUCH, 0, 0},
    {flushes_much, "/dev/null", O_WRONLY, 0, 0, MUCH},
};

PLAIN_IO_TEST(a_call_that_never_waits_lets_others_have_their_turns)
{
    if (test_seeded())
        return;
    char *memory = calloc(1, MUCH);
    CHECK(memory != NULL);
    for (size_t i = 0; i < CONC_LEN(lengthy_calls); i++) {
        conc_stream s = {.limit = lengthy_calls[i].limit, .buffer_size = lengthy_calls[i].buffer};
        conc_group g = {0};
        int turns = 0;
        CHECK_INT(conc_stream_open(&s, open(lengthy_calls[i].file, lengthy_calls[i].mode)), 0);
        CHECK_INT(conc_spawn(&g, counts_its_turns, &turns), 0);
        CHECK_INT(lengthy_calls[i].call(&s, memory), lengthy_calls[i].result);
        if (turns < 3 || turns > 5000)
            test_fail(__FILE__, __LINE__, "call %zu: %d turns of the other task", i, turns);
        conc_group_cancel(&g);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(conc_stream_close(&s), 0);
    }
    free(memory);
}

typedef struct canceller {
    conc_scope *scope;
    int after;
} canceller;

static int cancels_after_some_turns(void *arg)
{
    canceller *c = arg;
    for (int i = 0; i < c->after; i++)
        CONC_TRY(conc_yield());
    conc_scope_cancel(c->scope);
    return 0;
}

PLAIN_IO_TEST(a_call_that_never_waits_can_be_cancelled)
{
    if (test_seeded())
        return;
    char *memory = calloc(1, MUCH);
    CHECK(memory != NULL);
    for (size_t i = 0; i < CONC_LEN(lengthy_calls); i++) {
        conc_stream s = {.limit = lengthy_calls[i].limit, .buffer_size = lengthy_calls[i].buffer};
        conc_scope scope = {0};
        conc_group g = {0};
        canceller c = {&scope, 2};
        CHECK_INT(conc_stream_open(&s, open(lengthy_calls[i].file, lengthy_calls[i].mode)), 0);
        CHECK_INT(conc_spawn(&g, cancels_after_some_turns, &c), 0);
        CHECK_INT(conc_scope_begin(&scope, CONC_FOREVER), 0);
        ssize_t rc = lengthy_calls[i].call(&s, memory);
        CHECK(rc == -ECANCELED || (rc > 0 && rc < MUCH));
        CHECK_INT(conc_scope_end(&scope, -ECANCELED), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(conc_stream_close(&s), 0);
    }
    free(memory);
}

static int writes_much_and_checks(void *arg)
{
    char *memory = calloc(1, MUCH);
    CHECK(memory != NULL);
    CHECK_INT(conc_stream_write(arg, memory, MUCH), MUCH);
    free(memory);
    return 0;
}

PLAIN_IO_TEST(a_close_waits_for_a_write_that_only_lets_others_have_their_turns)
{
    if (test_seeded())
        return;
    conc_stream s = {0};
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_stream_open(&s, open("/dev/null", O_WRONLY)), 0);
    CHECK_INT(conc_spawn_task(&g, &t, writes_much_and_checks, &s), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK(!conc_done(&t));
    CHECK_INT(conc_stream_close(&s), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}
