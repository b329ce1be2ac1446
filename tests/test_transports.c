/* test_transports.c - conc_stream_open_on: a stream on the program's own functions. The tests of
 * test_streams.c run on a transport too; these tests cover what only a transport can do: be slow
 * in each of its functions, fail with its own error texts, break its rules.
 *
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <stdlib.h>
#include <sys/socket.h>

/* ---- a transport in memory ---- */

enum { ROOM = 64, BIG = 200000 };

/* Bytes in transit in one direction. */
typedef struct lane {
    char bytes[ROOM];
    size_t n;
    bool ended;
    conc_event changed;
} lane;

/* One of two connected ends, each freed by its close. */
typedef struct wire {
    lane *in, *out;
    int reading, writing, closes, *closed;
    int read_rc, write_rc, shutdown_rc, close_rc; /* errors to return */
    int delays;                                   /* how often it first returns -EAGAIN */
    conc_event *hold_close;                       /* close waits for it */
} wire;

static char pattern[BIG];

__attribute__((constructor)) static void make_pattern(void)
{
    for (size_t i = 0; i < BIG; i++)
        pattern[i] = (char)('a' + (i * 2654435761u >> 16) % 26);
}

static int wait_for_change(lane *l)
{
    conc_event_clear(&l->changed);
    return conc_event_wait(&l->changed);
}

static ssize_t wire_read(void *self, void *buf, size_t n)
{
    wire *w = self;
    CHECK_INT(w->reading, 0);
    if (w->delays && w->delays--)
        return -EAGAIN;
    if (w->read_rc)
        return conc_fail(w->read_rc, "the wire was cut at byte %d", 7);
    while (!w->in->n && !w->in->ended) {
        w->reading++;
        int rc = wait_for_change(w->in);
        w->reading--;
        if (rc)
            return rc;
    }
    size_t count = n < w->in->n ? n : w->in->n;
    memcpy(buf, w->in->bytes, count);
    memmove(w->in->bytes, w->in->bytes + count, w->in->n - count);
    w->in->n -= count;
    conc_event_set(&w->in->changed);
    return (ssize_t)count;
}

static ssize_t wire_write(void *self, const void *buf, size_t n)
{
    wire *w = self;
    CHECK_INT(w->writing, 0);
    if (w->delays && w->delays--)
        return -EAGAIN;
    while (w->out->n == ROOM && !w->write_rc) {
        w->writing++;
        int rc = wait_for_change(w->out);
        w->writing--;
        if (rc)
            return rc;
    }
    if (w->write_rc)
        return conc_fail(w->write_rc, "the wire is full of water");
    size_t room = ROOM - w->out->n, count = n < room ? n : room;
    memcpy(w->out->bytes + w->out->n, buf, count);
    w->out->n += count;
    conc_event_set(&w->out->changed);
    return (ssize_t)count;
}

static int wire_shutdown(void *self)
{
    wire *w = self;
    CHECK_INT(w->writing, 0);
    if (w->shutdown_rc)
        return conc_fail(w->shutdown_rc, "the farewell was refused");
    int rc = conc_yield();
    if (rc)
        return rc;
    w->out->ended = true;
    conc_event_set(&w->out->changed);
    return 0;
}

static int wire_close(void *self)
{
    wire *w = self;
    CHECK_INT(w->reading + w->writing, 0);
    if (w->hold_close)
        CHECK_INT(conc_event_wait(w->hold_close), 0);
    w->out->ended = true;
    conc_event_set(&w->out->changed);
    if (w->closed)
        ++*w->closed;
    int rc = w->close_rc;
    free(w);
    return rc ? conc_fail(rc, "the wire could not be wound up") : 0;
}

static const conc_transport wires = {wire_read, wire_write, wire_shutdown, wire_close};

static wire *open_wire(conc_stream *s, lane *in, lane *out)
{
    wire *w = calloc(1, sizeof *w);
    *w = (wire){.in = in, .out = out};
    CHECK_INT(conc_stream_open_on(s, &wires, w), 0);
    return w;
}

static void say(lane *l, const char *text)
{
    size_t n = strlen(text);
    memcpy(l->bytes + l->n, text, n);
    l->n += n;
    conc_event_set(&l->changed);
}

static void check_line(conc_stream *s, const char *expected)
{
    char *line = NULL;
    CHECK_INT(conc_stream_read_line(s, &line), strlen(expected));
    CHECK_STR(line, expected);
}

/* ---- calls in separate tasks ---- */

typedef struct io {
    conc_stream *s;
    enum { READ, WRITE, BIG_WRITE, FLUSH, SHUTDOWN, CLOSE } call;
    ssize_t rc;
    bool done;
    conc_task task;
} io;

static ssize_t do_io(io *c)
{
    char *line;
    switch (c->call) {
    case READ: return conc_stream_read_line(c->s, &line);
    case WRITE: return conc_stream_write(c->s, "word\n", 5);
    case BIG_WRITE: return conc_stream_write(c->s, pattern, BIG);
    case FLUSH: return conc_stream_flush(c->s);
    case SHUTDOWN: return conc_stream_shutdown(c->s);
    default: return conc_stream_close(c->s);
    }
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

/* ---- opening ---- */

TASK_TEST(a_transport_needs_a_stream_and_functions_that_read_and_write)
{
    conc_stream s = {0};
    CHECK_INT(conc_stream_open_on(NULL, &wires, NULL), -EINVAL);
    CHECK_INT(conc_stream_open_on(&s, NULL, NULL), -EINVAL);
    CHECK_INT(conc_stream_open_on(&s, &(conc_transport){.read = wire_read}, NULL), -EINVAL);
    CHECK_INT(conc_stream_open_on(&s, &(conc_transport){.write = wire_write}, NULL), -EINVAL);
    lane a = {0}, b = {0};
    wire *w = open_wire(&s, &a, &b);
    CHECK_INT(conc_stream_open_on(&s, &wires, w), -EINVAL);
    CHECK_INT(conc_stream_close(&s), 0);
    CHECK_INT(conc_stream_close(&s), 0);
}

TEST(a_transport_is_not_opened_outside_of_a_run)
{
    conc_stream s = {0};
    CHECK_INT(conc_stream_open_on(&s, &wires, NULL), -EPERM);
}

TASK_TEST(a_transport_without_shutdown_and_close_has_no_halves_and_releases_nothing)
{
    lane a = {0}, b = {0};
    wire w = {.in = &a, .out = &b};
    conc_stream s = {0};
    CHECK_INT(conc_stream_open_on(&s, &(conc_transport){wire_read, wire_write, NULL, NULL}, &w), 0);
    CHECK_INT(conc_stream_write(&s, "x", 1), 1);
    CHECK_INT(conc_stream_shutdown(&s), -ENOTSOCK);
    CHECK_CONTAINS(conc_last_error(), "no separate writing half");
    CHECK_INT(b.n, 1);
    CHECK_INT(conc_stream_write(&s, "y", 1), 1);
    CHECK_INT(conc_stream_close(&s), 0);
    CHECK_INT(b.n, 2);
}

/* ---- both ways ---- */

static int writes_much_then_reads(void *arg)
{
    conc_stream *s = arg;
    char *got = malloc(BIG);
    CHECK_INT(conc_stream_write(s, pattern, BIG), BIG);
    CHECK_INT(conc_stream_read_full(s, got, BIG), BIG);
    CHECK(memcmp(got, pattern, BIG) == 0);
    free(got);
    return 0;
}

TASK_TEST(two_peers_that_write_a_lot_and_then_read_do_not_wait_for_each_other)
{
    lane a = {0}, b = {0};
    conc_stream x = {.buffer_size = BIG}, y = {.buffer_size = BIG};
    open_wire(&x, &a, &b);
    open_wire(&y, &b, &a);
    CHECK_INT(
        CONC_GATHER(CONC_CALL(writes_much_then_reads, &x), CONC_CALL(writes_much_then_reads, &y)),
        0);
    CHECK_INT(conc_stream_close(&x), 0);
    CHECK_INT(conc_stream_close(&y), 0);
}

TASK_TEST(an_unflushed_question_is_written_before_the_answer_is_read)
{
    lane loop = {0}; /* a wire back to itself */
    conc_stream s = {0};
    open_wire(&s, &loop, &loop);
    loop.ended = true; /* a read that came first would find the end */
    CHECK_INT(conc_stream_printf(&s, "%s\n", "echo"), 5);
    check_line(&s, "echo");
    CHECK_INT(conc_stream_close(&s), 0);
}

TASK_TEST(bytes_written_while_another_task_reads_are_sent_and_make_room_for_more)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    conc_group g = {0};
    io reader = {.s = &s, .call = READ};
    open_wire(&s, &a, &b);
    begin_io(&g, &reader);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_stream_write(&s, "hello", 5), 5);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(b.n, 5);
    for (int i = 0; i < 100; i++) /* more than the wire holds, and less than the buffer */
        CHECK_INT(conc_stream_write(&s, "0123456789", 10), 10);
    CHECK_TIME(0);
    CHECK(!reader.done);
    for (size_t total = 0; total < 1005; total += b.n, b.n = 0) {
        conc_event_set(&b.changed);
        CHECK_INT(conc_settle(), 0);
    }
    say(&a, "thanks\n");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(reader.rc, 6);
    CHECK_INT(conc_stream_close(&s), 0);
}

/* ---- cancels ---- */

TASK_TEST(a_cancelled_read_loses_nothing_and_a_cancelled_write_keeps_what_it_took)
{
    lane a = {0}, b = {0};
    conc_stream s = {.buffer_size = 100};
    char *line;
    open_wire(&s, &a, &b);
    say(&a, "half");
    conc_scope limit = {0};
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    CHECK_INT(conc_scope_end(&limit, (int)conc_stream_read_line(&s, &line)), -ETIMEDOUT);
    CHECK_TIME(1);
    say(&a, " and half\n");
    check_line(&s, "half and half");
    limit = (conc_scope){0};
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    ssize_t took = conc_stream_write(&s, pattern, 1000);
    CHECK(took >= ROOM && took < 1000);
    CHECK_INT(conc_scope_end(&limit, 0), 0);
    char got[1000];
    size_t n = 0;
    conc_group g = {0};
    io rest = {.s = &s, .call = FLUSH};
    begin_io(&g, &rest);
    while (!rest.done || b.n) {
        memcpy(got + n, b.bytes, b.n);
        n += b.n;
        b.n = 0;
        conc_event_set(&b.changed);
        CHECK_INT(conc_settle(), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(rest.rc, 0);
    CHECK_INT(n, took);
    CHECK(memcmp(got, pattern, n) == 0);
    CHECK_INT(conc_stream_close(&s), 0);
}

/* ---- closing ---- */

TASK_TEST(a_close_beside_a_reader_and_writers_wakes_them_and_then_calls_close_once)
{
    lane a = {0}, b = {0};
    conc_stream s = {.buffer_size = 100};
    conc_group g = {0};
    int closed = 0;
    io calls[] = {{.s = &s, .call = READ},
                  {.s = &s, .call = BIG_WRITE},
                  {.s = &s, .call = BIG_WRITE},
                  {.s = &s, .call = FLUSH}};
    open_wire(&s, &a, &b)->closed = &closed;
    for (size_t i = 0; i < CONC_LEN(calls); i++) {
        begin_io(&g, &calls[i]);
        CHECK_INT(conc_settle(), 0);
    }
    conc_scope cancelled = {0};
    CHECK_INT(conc_scope_begin(&cancelled, CONC_FOREVER), 0);
    conc_scope_cancel(&cancelled);
    CHECK_INT(conc_stream_close(&s), 0);
    CHECK_INT(conc_scope_end(&cancelled, -ECANCELED), 0);
    CHECK_INT(closed, 1);
    memset(&s, 0x55, sizeof s); /* it may be freed */
    CHECK_INT(conc_group_wait(&g), 0);
    for (size_t i = 0; i < CONC_LEN(calls); i++)
        CHECK_INT(calls[i].rc, -EPIPE);
}

TASK_TEST(two_closes_both_return_after_the_transports_close)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    conc_event go = {0};
    conc_group g = {0};
    int closed = 0;
    io reader = {.s = &s, .call = READ}, first = {.s = &s, .call = CLOSE}, second = first;
    wire *w = open_wire(&s, &a, &b);
    w->closed = &closed;
    w->hold_close = &go;
    w->close_rc = -EIO;
    begin_io(&g, &reader);
    CHECK_INT(conc_settle(), 0);
    begin_io(&g, &first);
    begin_io(&g, &second);
    CHECK_INT(conc_settle(), 0);
    CHECK(reader.done && !first.done && !second.done);
    CHECK_INT(conc_stream_open_on(&s, &wires, w), -EBUSY);
    CHECK_INT(closed, 0);
    conc_event_set(&go);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(closed, 1);
    CHECK_INT(first.rc + second.rc, -EIO); /* the other end has closed nothing */
    CHECK_INT(reader.rc, -EPIPE);
    open_wire(&s, &a, &b);
    CHECK_INT(conc_stream_close(&s), 0);
}

static void close_posted(void *arg) { CHECK_INT(conc_stream_close(arg), 0); }

TASK_TEST(after_a_close_in_a_posted_function_the_last_task_to_leave_calls_close)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    conc_group g = {0};
    int closed = 0;
    io reader = {.s = &s, .call = READ};
    open_wire(&s, &a, &b)->closed = &closed;
    begin_io(&g, &reader);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_post(conc_loop_self(), close_posted, &s), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(reader.rc, -EPIPE);
    CHECK_INT(closed, 1);
    open_wire(&s, &a, &b)->closed = &closed; /* no task is inside */
    CHECK_INT(conc_post(conc_loop_self(), close_posted, &s), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(closed, 2);
}

static int closes_in_main(void *arg)
{
    lane *l = arg;
    CONC_AUTO(conc_stream, s) = {0};
    open_wire(&s, &l[0], &l[1]);
    CHECK_INT(conc_stream_printf(&s, "at the end"), 10);
    return 0;
}

TEST(a_stream_on_a_transport_is_flushed_and_closed_at_the_end_of_its_block)
{
    lane lanes[2] = {{{0}, 0, false, {0}}, {{0}, 0, false, {0}}};
    CHECK_INT(conc_run(closes_in_main, lanes), 0);
    CHECK_INT(lanes[1].n, 10);
    CHECK(lanes[1].ended);
}

/* ---- errors ---- */

TASK_TEST(each_call_that_returns_a_transports_error_has_its_text)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    char byte;
    wire *w = open_wire(&s, &a, &b);
    w->read_rc = -EPROTO;
    w->write_rc = -ECONNRESET;
    CHECK_INT(conc_stream_write(&s, "x", 1), 1);
    for (int i = 0; i < 2; i++) {
        conc_fail(-EIO, "something else");
        CHECK_INT(conc_stream_read(&s, &byte, 1), -EPROTO);
        CHECK_STR(conc_last_error(), "the wire was cut at byte 7");
    }
    w->read_rc = 0;
    CHECK_INT(conc_stream_read(&s, &byte, 1), -EPROTO);
    for (int i = 0; i < 2; i++) { /* the read sent it, in one of the stream's tasks */
        conc_fail(-EIO, "something else");
        CHECK_INT(conc_stream_write(&s, "x", 1), -ECONNRESET);
        CHECK_STR(conc_last_error(), "the wire is full of water");
    }
    w->close_rc = -EIO;
    CHECK_INT(conc_stream_close(&s), -EIO);
    CHECK_STR(conc_last_error(), "the wire could not be wound up");
}

TASK_TEST(a_close_returns_an_error_of_writing_that_no_call_has_returned)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    wire *w = open_wire(&s, &a, &b);
    w->write_rc = -ECONNRESET;
    w->close_rc = -EIO;
    CHECK_INT(conc_stream_write(&s, "x", 1), 1);
    CHECK_INT(conc_stream_close(&s), -ECONNRESET);
    CHECK_STR(conc_last_error(), "the wire is full of water");
}

/* The error of writing was returned: the next read waits, and writes still return the error. */
static void check_error_was_told(conc_stream *s, lane *in)
{
    conc_group g = {0};
    io reader = {.s = s, .call = READ};
    begin_io(&g, &reader);
    CHECK_INT(conc_settle(), 0);
    CHECK(!reader.done);
    say(in, "on\n");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(reader.rc, 2);
    CHECK_INT(conc_stream_write(s, "x", 1), -ECONNRESET);
    CHECK_STR(conc_last_error(), "the wire is full of water");
    CHECK_INT(conc_stream_close(s), 0);
}

TASK_TEST(a_read_that_has_to_wait_returns_the_error_of_a_write_that_fails_at_once)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    char *line;
    wire *w = open_wire(&s, &a, &b);
    w->write_rc = -ECONNRESET;
    say(&a, "first\npart");
    CHECK_INT(conc_stream_printf(&s, "question\n"), 9);
    check_line(&s, "first");
    CHECK_INT(conc_stream_read_line(&s, &line), -ECONNRESET);
    CHECK_STR(conc_last_error(), "the wire is full of water");
    CHECK_TIME(0);
    say(&a, "ing\n");
    check_line(&s, "parting");
    check_error_was_told(&s, &a);
}

TASK_TEST(a_read_that_waits_returns_the_error_of_a_write_that_fails_later)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    conc_group g = {0};
    io reader = {.s = &s, .call = READ};
    wire *w = open_wire(&s, &a, &b);
    CHECK_INT(conc_stream_write(&s, pattern, 2 * ROOM), 2 * ROOM);
    begin_io(&g, &reader);
    CHECK_INT(conc_settle(), 0);
    CHECK(!reader.done);
    w->write_rc = -ECONNRESET;
    conc_event_set(&b.changed);
    CHECK_INT(conc_settle(), 0);
    CHECK(reader.done);
    CHECK_INT(reader.rc, -ECONNRESET);
    CHECK_INT(conc_group_wait(&g), 0);
    check_error_was_told(&s, &a);
}

TASK_TEST(a_read_that_tries_again_and_again_returns_the_error_of_a_write)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    conc_group g = {0};
    io reader = {.s = &s, .call = READ};
    wire *w = open_wire(&s, &a, &b);
    w->delays = 1000000;
    begin_io(&g, &reader);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(!reader.done);
    w->delays = 0;
    w->write_rc = -ECONNRESET;
    CHECK_INT(conc_stream_write(&s, "x", 1), 1);
    CHECK_INT(conc_settle(), 0);
    CHECK(reader.done);
    CHECK_INT(reader.rc, -ECONNRESET);
    CHECK_INT(conc_group_wait(&g), 0);
    check_error_was_told(&s, &a);
}

TASK_TEST(bytes_that_came_with_the_error_of_a_write_are_read_before_it)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    conc_group g = {0};
    io reader = {.s = &s, .call = READ};
    char *line;
    wire *w = open_wire(&s, &a, &b);
    begin_io(&g, &reader);
    CHECK_INT(conc_settle(), 0);
    w->write_rc = -ECONNRESET;
    CHECK_INT(conc_stream_write(&s, "x", 1), 1);
    say(&a, "all the same\n");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(reader.rc, 12);
    CHECK_INT(conc_stream_read_line(&s, &line), -ECONNRESET);
    check_error_was_told(&s, &a);
}

TASK_TEST(an_interrupted_read_continues_if_another_call_has_returned_the_error)
{
    lane a = {0}, b = {0};
    conc_stream s = {.buffer_size = 2 * ROOM};
    conc_group g = {0};
    io reader = {.s = &s, .call = READ}, flusher = {.s = &s, .call = FLUSH};
    wire *w = open_wire(&s, &a, &b);
    CHECK_INT(conc_stream_write(&s, pattern, 2 * ROOM), 2 * ROOM);
    begin_io(&g, &reader);
    CHECK_INT(conc_settle(), 0);
    begin_io(&g, &flusher); /* waits until the stream's sender has sent */
    CHECK_INT(conc_settle(), 0);
    w->write_rc = -ECONNRESET;
    conc_event_set(&b.changed);
    CHECK_INT(conc_settle(), 0);
    CHECK(flusher.done);
    CHECK_INT(flusher.rc, -ECONNRESET);
    if (!reader.done) /* under a seed it may have been the first */
        say(&a, "on\n");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(reader.rc == 2 || reader.rc == -ECONNRESET);
    check_error_was_told(&s, &a);
}

TASK_TEST(a_read_that_was_interrupted_and_cancelled_is_cancelled)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    conc_scope limit = {0};
    char *line;
    wire *w = open_wire(&s, &a, &b);
    w->write_rc = -ECONNRESET;
    CHECK_INT(conc_stream_write(&s, "x", 1), 1);
    CHECK_INT(conc_scope_begin(&limit, 0), 0);
    CHECK_INT(conc_scope_end(&limit, (int)conc_stream_read_line(&s, &line)), -ETIMEDOUT);
    CHECK_INT(conc_stream_read_line(&s, &line), -ECONNRESET);
    check_error_was_told(&s, &a);
}

TASK_TEST(errors_of_writing_and_reading_with_one_number_keep_their_texts)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    char *line;
    wire *w = open_wire(&s, &a, &b);
    w->write_rc = -ECONNRESET;
    CHECK_INT(conc_stream_write(&s, "x", 1), 1);
    CHECK_INT(conc_stream_read_line(&s, &line), -ECONNRESET);
    CHECK_STR(conc_last_error(), "the wire is full of water");
    w->read_rc = -ECONNRESET;
    CHECK_INT(conc_stream_read_line(&s, &line), -ECONNRESET);
    CHECK_STR(conc_last_error(), "the wire was cut at byte 7");
    CHECK_INT(conc_stream_write(&s, "x", 1), -ECONNRESET);
    CHECK_STR(conc_last_error(), "the wire is full of water");
    CHECK_INT(conc_stream_close(&s), 0);
}

TASK_TEST(a_transport_that_returns_eagain_is_retried_after_a_pause)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    wire *w = open_wire(&s, &a, &b);
    say(&a, "late\n");
    w->delays = 3;
    check_line(&s, "late");
    CHECK_TIME(0.007);
    w->delays = 2;
    CHECK_INT(conc_stream_write(&s, "x", 1), 1);
    CHECK_INT(conc_stream_flush(&s), 0);
    CHECK_TIME(0.01);
    CHECK_INT(b.n, 1);
    CHECK_INT(conc_stream_close(&s), 0);
}

static ssize_t reads_too_many(void *self, void *buf, size_t n)
{
    (void)self, (void)buf;
    return (ssize_t)n + 1;
}

static ssize_t writes_nothing(void *self, const void *buf, size_t n)
{
    (void)self, (void)buf, (void)n;
    return 0;
}

TASK_TEST(an_impossible_count_from_a_transport_is_an_error)
{
    conc_stream s = {0};
    char bytes[10];
    CHECK_INT(conc_stream_open_on(&s, &(conc_transport){reads_too_many, writes_nothing, NULL, NULL},
                                  NULL),
              0);
    CHECK_INT(conc_stream_read(&s, bytes, 10), -EINVAL);
    CHECK_INT(conc_stream_write(&s, bytes, 10), 10);
    CHECK_INT(conc_stream_flush(&s), -EINVAL);
    CHECK_INT(conc_stream_close(&s), 0);
}

/* ---- shutdown ---- */

TASK_TEST(a_shutdown_flushes_and_ends_the_transports_writing_half_once)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    open_wire(&s, &a, &b);
    CHECK_INT(conc_stream_write(&s, "bye", 3), 3);
    CHECK_INT(conc_stream_shutdown(&s), 0);
    CHECK_INT(b.n, 3);
    CHECK(b.ended);
    b.ended = false;
    CHECK_INT(conc_stream_shutdown(&s), 0);
    CHECK(!b.ended);
    CHECK_INT(conc_stream_write(&s, "x", 1), -EPIPE);
    say(&a, "farewell\n");
    check_line(&s, "farewell");
    CHECK_INT(conc_stream_close(&s), 0);
}

TASK_TEST(a_shutdown_that_fails_or_is_cancelled_ends_nothing)
{
    lane a = {0}, b = {0};
    conc_stream s = {0};
    conc_scope limit = {0};
    wire *w = open_wire(&s, &a, &b);
    CHECK_INT(conc_stream_write(&s, pattern, 2 * ROOM), 2 * ROOM);
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    CHECK_INT(conc_scope_end(&limit, conc_stream_shutdown(&s)), -ETIMEDOUT);
    CHECK_TIME(1);
    CHECK(!b.ended);
    b.n = 0;
    w->shutdown_rc = -EPROTO;
    CHECK_INT(conc_stream_shutdown(&s), -EPROTO);
    CHECK_STR(conc_last_error(), "the farewell was refused");
    CHECK_INT(b.n, ROOM);
    b.n = 0;
    w->shutdown_rc = 0;
    CHECK_INT(conc_stream_write(&s, "more", 4), 4);
    CHECK_INT(conc_stream_shutdown(&s), 0);
    CHECK_INT(b.n, 4);
    CHECK(b.ended);
    CHECK_INT(conc_stream_close(&s), 0);
}
