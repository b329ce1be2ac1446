/* test_random_io.c - random programs over pipes and sockets, compared with a model that knows
 * every byte.
 *
 * A few tasks read, write and wait at the ends of a few pipes and socket pairs, directly or
 * through streams, with every kind of call, under time limits and cancels; they select among
 * several ends, a queue and a time; they close ends with conc_close and with close(2) while others
 * wait, open new ones that get the same numbers, and shut down one half of a connection. Buffers
 * are small, so that writers wait too. The model knows
 *   - which bytes each direction carries: each byte holds its writer and a sequence number, which
 *     reveal bytes that a cancel loses, duplicates or reorders;
 *   - how many bytes are between the ends, as the kernel counts them;
 *   - which results are possible: -ECANCELED only for a task that is cancelled, -EBADF only after
 *     a close, the end of file only after the last byte, nothing from a new file for a task that
 *     waited for an old one;
 *   - that no task hangs: when all tasks wait, poll(2) reports that no descriptor is ready for its
 *     waiters;
 *   - that a select does one thing: no item of the queue is lost or duplicated.
 * Some programs use TCP on the loopback device too. The network has its own pace, so their steps
 * need not repeat, and bytes may stay in the kernel for a moment. random_test.h tells how to
 * repeat one by hand.
 *
 * Not under: ucontext, save-fpu, aarch64-bti, poll, seeds (the programs have their own seeds and
 * ways of waiting)
 */
#define TEST_SYNC
#include "random_test.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define EIGHTH INT64_C(125000000) /* ns */

enum { TASKS = 7, PAIRS = 4, STEPS_OF_A_TASK = 24, LARGEST = 12000, SEQUENCE = 32, ROUNDS = 6 };
enum { SET_PIPE_SIZE = 1031 }; /* F_SETPIPE_SZ, which needs _GNU_SOURCE */

enum { CASES = 4, CAPACITY = 3, MAX_ITEMS = 1024 };

/* FREE: in non-blocking mode; CONC: opened by conc */
typedef enum kind {
    PIPE,
    FREE_PIPE,
    SOCKET,
    FREE_SOCKET,
    CONC_SOCKET,
    TCP,
    FREE_TCP,
    CONC_TCP,
    KINDS
} kind;

typedef struct direction { /* what one end writes and the other reads */
    long in, out;
    int sent[TASKS], seen[TASKS]; /* bytes of each writer, modulo SEQUENCE */
    bool shut;                    /* the writer has shut it down */
    bool lossy;                   /* bytes may be missing at its end */
    int partly;                   /* calls in progress that may have moved some bytes */
    int reads_at_once;            /* calls that read and wait; -1: one that must be alone */
} direction;

typedef struct end {
    int fd;
    bool open, reads, writes;
    bool reset; /* the peer was closed with unread bytes: the next call may return that */
    bool has_stream, stream_closing;
    conc_stream stream;
} end;

typedef struct pair {
    kind kind;
    int life;
    bool opening;
    end ends[2];
    direction from[2]; /* what ends[i] writes */
} pair;

typedef enum way { READ, READV, RECV, READ_FULL, WRITE, WRITEV, SEND, WRITE_FULL, WAIT } way;

typedef struct watch { /* what a call waits for at an end */
    pair *pair;
    int life, side, events;
} watch;

typedef struct task {
    conc_task handle;
    int index;
    uint64_t random;
    bool spawned, ended, asked;
    conc_scope scope;
    bool in_scope;
    int64_t limit;
    /* its call: at how many ends it waits, and at which */
    long calls;
    int watched;
    watch watches[CASES];
    bool gets, puts; /* for a select that waits at the queue */
    unsigned char bytes[LARGEST];
} task;

static struct model {
    pair pairs[PAIRS];
    task tasks[TASKS];
    long steps;
    bool ending;
    bool closes_behind; /* close(2) may close a descriptor behind its waiters */
    conc_queue queue;
    int items, puts, gets;
    bool received[MAX_ITEMS];
} m;

static bool with_tcp;

static struct {
    long programs, read, written, cut_short, closed, ended, waited, broken, lines, reused;
    long selected, chosen_late, items, connections;
} total;

static int pick(task *t, int n) { return random_pick(&t->random, n); }
static bool one_in(task *t, int n) { return pick(t, n) == 0; }

static void log_step(const task *t, const char *what, int which, long long value)
{
    m.steps++;
    random_log(random_now(), t->index, what, which, value);
}

/* ---- bytes ---- */

static unsigned char byte_of(const task *t, int sequence)
{
    return (unsigned char)(t->index << 5 | sequence % SEQUENCE);
}

static void make_bytes(task *t, const direction *d, size_t n)
{
    for (size_t i = 0; i < n; i++)
        t->bytes[i] = byte_of(t, d->sent[t->index] + (int)(i % SEQUENCE));
}

static void count_sent(task *t, direction *d, ssize_t n)
{
    if (n <= 0)
        return;
    d->in += n;
    d->sent[t->index] = (int)((d->sent[t->index] + n) % SEQUENCE);
    total.written += n;
}

static void check_bytes(direction *d, const void *data, ssize_t n)
{
    const unsigned char *bytes = data;
    for (ssize_t i = 0; i < n; i++) {
        int writer = bytes[i] >> 5;
        EXPECT(writer < TASKS);
        EXPECT_INT(bytes[i] % SEQUENCE, d->seen[writer]);
        d->seen[writer] = (d->seen[writer] + 1) % SEQUENCE;
    }
    if (n <= 0)
        return;
    d->out += n;
    total.read += n;
}

/* ---- pairs ---- */

static bool is_socket(const pair *l) { return l->kind >= SOCKET; }
static bool is_tcp(const pair *l) { return l->kind >= TCP; }

static void set_free(int fd) { CHECK_INT(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK), 0); }

#ifdef __linux__
#define LOCAL "unix:@"
#else
#define LOCAL "unix:/tmp/"
#endif

/* Two sockets that conc has opened. Connecting by TCP takes a moment. */
static void connect_by_conc(int fds[2], bool by_tcp)
{
    static int count;
    char address[64] = "127.0.0.1:0";
    conc_scope s = {0};
    EXPECT_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    if (by_tcp)
        conc_scope_shield(&s, true);
    else
        snprintf(address, sizeof address, LOCAL "conc-random-%d-%d", (int)getpid(), count++);
    int listener = conc_listen(address);
    EXPECT(listener >= 0);
    if (by_tcp)
        EXPECT_INT(conc_address(listener, false, address, sizeof address), 0);
    fds[0] = conc_dial(address);
    EXPECT(fds[0] >= 0);
    fds[1] = conc_accept(listener);
    EXPECT(fds[1] >= 0);
    EXPECT_INT(conc_close(listener), 0);
    EXPECT_INT(conc_scope_end(&s, 0), 0);
}

static void connect_by_hand(task *t, int fds[2])
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT(listener >= 0 && fds[0] >= 0);
    EXPECT_INT(bind(listener, (struct sockaddr *)&a, size), 0);
    EXPECT_INT(listen(listener, 1), 0);
    EXPECT_INT(getsockname(listener, (struct sockaddr *)&a, &size), 0);
    EXPECT_INT(connect(fds[0], (struct sockaddr *)&a, size), 0);
    fds[1] = accept(listener, NULL, NULL);
    EXPECT(fds[1] >= 0);
    EXPECT_INT(close(listener), 0);
    for (int i = 0; i < 2 && !one_in(t, 6); i++)
        EXPECT_INT(setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), 0);
}

static kind open_kind(task *t, int fds[2])
{
    int kinds = conc_cancelled() ? CONC_SOCKET : TCP;
    kind kind = (enum kind)pick(t, with_tcp ? KINDS : kinds);
    if (kind == CONC_SOCKET && conc_cancelled())
        kind = SOCKET;
    if (kind == CONC_SOCKET || kind == CONC_TCP)
        connect_by_conc(fds, kind == CONC_TCP);
    else if (kind >= TCP)
        connect_by_hand(t, fds);
    else
        EXPECT_INT(kind < SOCKET ? pipe(fds) : socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    total.connections += kind >= TCP;
    return kind;
}

static void make_buffers_small(task *t, const pair *l, int fd)
{
    int size = 1;
    if (!is_socket(l))
        (void)fcntl(fd, SET_PIPE_SIZE, 4096);
    else
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (is_tcp(l) && one_in(t, 2))
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
}

static void open_pair(task *t, pair *l)
{
    int fds[2] = {-1, -1}, life = l->life;
    l->opening = true;
    kind kind = open_kind(t, fds);
    memset(l, 0, sizeof *l);
    l->kind = kind;
    l->life = life + 1;
    for (int i = 0; i < 2; i++) {
        end *e = &l->ends[i];
        e->fd = fds[i];
        e->open = true;
        e->reads = is_socket(l) || i == 0;
        e->writes = is_socket(l) || i == 1;
        if (kind == FREE_PIPE || kind == FREE_SOCKET || kind == FREE_TCP)
            set_free(fds[i]);
        make_buffers_small(t, l, fds[i]);
    }
    log_step(t, "open", (int)(l - m.pairs), kind);
}

static int bytes_between(const end *reader)
{
    int n = -1;
    EXPECT_INT(ioctl(reader->fd, FIONREAD, &n), 0);
    return n;
}

/* Does a call wait there for one of the events? */
static bool is_watched(const pair *l, int side, int events)
{
    for (const task *t = m.tasks; t < m.tasks + TASKS; t++)
        for (const watch *w = t->watches; w < t->watches + t->watched; w++)
            if (w->pair == l && w->life == l->life && w->side == side && w->events & events)
                return true;
    return false;
}

static bool has_waiters(const pair *l, int side)
{
    return is_watched(l, side, CONC_READABLE | CONC_WRITABLE);
}

/* The end is about to be closed: updates the other end. */
static void note_close(pair *l, int side)
{
    end *e = &l->ends[side], *peer = &l->ends[1 - side];
    bool unread = e->reads && peer->open && bytes_between(e) > 0;
    e->open = false;
    l->from[side].shut = true;
    peer->reset |= is_tcp(l) || (is_socket(l) && unread);
    l->from[side].lossy |= is_tcp(l) && (unread || is_watched(l, 1 - side, CONC_WRITABLE));
    total.closed++;
}

/* ---- calls ---- */

static bool is_same(const watch *w) { return w->pair->life == w->life; }
static bool is_open(const watch *w) { return is_same(w) && w->pair->ends[w->side].open; }

/* Bytes sent to a TCP connection whose other end is closed are answered by a reset, which discards
 * bytes still on the way back. */
static void add_watch(task *t, pair *l, int side, int events)
{
    const end *peer = &l->ends[1 - side];
    t->watches[t->watched++] = (watch){l, l->life, side, events};
    if (is_tcp(l) && events & CONC_WRITABLE && (!peer->open || peer->stream_closing))
        l->from[1 - side].lossy = true;
}

static void begin_call(task *t, pair *l, int side, int events)
{
    t->calls++;
    add_watch(t, l, side, events);
}

static bool is_ending(const end *e) { return !e->open || e->stream_closing; }

static void check_cancelled(const task *t)
{
    EXPECT(conc_cancelled());
    if (t->in_scope && t->limit != NEVER && !t->asked && t->scope.expired)
        EXPECT_INT(random_now(), t->limit);
    total.cut_short++;
}

/* The errors that the call at w may return now. */
static void check_error(const task *t, const watch *w, ssize_t rc)
{
    pair *l = w->pair;
    bool same = is_same(w);
    const end *e = &l->ends[w->side], *peer = &l->ends[1 - w->side];
    switch ((int)rc) {
    case -ECANCELED: check_cancelled(t); break;
    case -EBADF: EXPECT(!is_open(w)); break;
    case -EPIPE:
        EXPECT(same && w->events & CONC_WRITABLE);
        EXPECT(is_ending(peer) || l->from[w->side].shut || e->stream_closing);
        total.broken++;
        break;
    case -ECONNRESET: EXPECT(same && (e->reset || peer->stream_closing)); break;
    default: EXPECT_INT(rc, 0);
    }
}

/* What the call knew when it was made. */
static const watch *end_call(task *t)
{
    t->watched = 0;
    return t->watches;
}

static ssize_t call_read(way way, int fd, unsigned char *bytes, size_t n)
{
    struct iovec parts[2] = {{bytes, n / 3}, {bytes + n / 3, n - n / 3}};
    switch (way) {
    case READ: return conc_read(fd, bytes, n);
    case READV: return conc_readv(fd, parts, 2);
    case RECV: return conc_recv(fd, bytes, n, 0);
    default: return conc_read_full(fd, bytes, n);
    }
}

static ssize_t call_write(way way, int fd, unsigned char *bytes, size_t n)
{
    struct iovec parts[2] = {{bytes, n / 3}, {bytes + n / 3, n - n / 3}};
    switch (way) {
    case WRITE: return conc_write(fd, bytes, n);
    case WRITEV: return conc_writev(fd, parts, 2);
    case SEND: return conc_send(fd, bytes, n, 0);
    default: return conc_write_full(fd, bytes, n);
    }
}

static void check_end_of_file(const watch *w, const direction *d)
{
    const end *writer = &w->pair->ends[1 - w->side];
    EXPECT(is_open(w) && (d->shut || is_ending(writer)));
    if (!d->lossy && !d->partly && !writer->stream_closing)
        EXPECT_INT(d->out, d->in);
    total.ended++;
}

static size_t pick_size(task *t)
{
    return (size_t)(one_in(t, 3) ? 1 + pick(t, LARGEST - 1) : 1 + pick(t, 60));
}

/* May a call read here now? One that makes several system calls must be alone, so that the order of
 * the bytes is known. */
static bool begin_reading(direction *d, bool alone)
{
    if (d->reads_at_once < 0 || (alone && d->reads_at_once))
        return false;
    d->reads_at_once = alone ? -1 : d->reads_at_once + 1;
    d->partly += alone;
    return true;
}

static void end_reading(direction *d, bool alone)
{
    d->reads_at_once = alone ? 0 : d->reads_at_once - 1;
    d->partly -= alone;
}

/* After a call that moved fewer bytes than requested. */
static void check_short(const watch *w, const direction *d)
{
    const pair *l = w->pair;
    bool ends = d->shut || is_ending(&l->ends[0]) || is_ending(&l->ends[1]);
    EXPECT(conc_cancelled() || !is_same(w) || ends);
}

static int step_read(task *t, pair *l, int side)
{
    way way = (enum way)pick(t, 4);
    direction *d = &l->from[1 - side];
    int fd = l->ends[side].fd;
    size_t n = pick_size(t);
    if (way == RECV && !is_socket(l))
        way = READ;
    if (!begin_reading(d, way == READ_FULL))
        return 0;
    begin_call(t, l, side, CONC_READABLE);
    bool cut = conc_cancelled();
    ssize_t rc = call_read(way, fd, t->bytes, n);
    const watch *w = end_call(t);
    bool same = is_same(w);
    if (same)
        end_reading(d, way == READ_FULL);
    log_step(t, "read", (int)(l - m.pairs), rc);
    if (cut)
        EXPECT_INT(rc, -ECANCELED);
    if (rc < 0) {
        check_error(t, t->watches, rc);
        return (int)rc;
    }
    EXPECT((size_t)rc <= n);
    EXPECT(same || way == READ_FULL);
    if (!same)
        return 0;
    check_bytes(d, t->bytes, rc);
    if (rc == 0)
        check_end_of_file(t->watches, d);
    else if (way == READ_FULL && (size_t)rc < n)
        check_short(w, d);
    else if (way != READ_FULL)
        EXPECT(is_open(w));
    return 0;
}

static int step_write(task *t, pair *l, int side)
{
    way way = WRITE + (enum way)pick(t, 4);
    direction *d = &l->from[side];
    int fd = l->ends[side].fd;
    size_t n = pick_size(t);
    if (way == SEND && !is_socket(l))
        way = WRITE;
    make_bytes(t, d, n);
    begin_call(t, l, side, CONC_WRITABLE);
    d->partly += way == WRITE_FULL;
    bool cut = conc_cancelled();
    ssize_t rc = call_write(way, fd, t->bytes, n);
    const watch *w = end_call(t);
    bool same = is_same(w);
    if (same)
        d->partly -= way == WRITE_FULL;
    log_step(t, "write", (int)(l - m.pairs), rc);
    if (cut)
        EXPECT_INT(rc, -ECANCELED);
    if (rc < 0) {
        check_error(t, t->watches, rc);
        return (int)rc;
    }
    EXPECT(rc > 0 && (size_t)rc <= n);
    EXPECT(same || way == WRITE_FULL);
    if (!same)
        return 0;
    count_sent(t, d, rc);
    if (way == WRITE_FULL && (size_t)rc < n)
        check_short(w, d);
    else if (way != WRITE_FULL)
        EXPECT(is_open(w));
    return 0;
}

static int poll_now(int fd, int events)
{
    bool reads = events & CONC_READABLE, writes = events & CONC_WRITABLE;
    struct pollfd p = {fd, (short)((reads ? POLLIN : 0) | (writes ? POLLOUT : 0)), 0};
    EXPECT(poll(&p, 1, 0) >= 0);
    return p.revents;
}

/* Is a call in progress there that may have moved bytes since the last step? */
static bool is_moving(const watch *w) { return w->pair->from[0].partly || w->pair->from[1].partly; }

static int step_wait(task *t, pair *l, int side)
{
    int events = 1 + pick(t, 3), fd = l->ends[side].fd;
    bool cut = conc_cancelled(), ready = poll_now(fd, events) != 0;
    long steps = m.steps;
    begin_call(t, l, side, events);
    int rc = conc_wait_fd(fd, events);
    (void)end_call(t);
    if (cut)
        EXPECT_INT(rc, -ECANCELED);
    else if (ready)
        EXPECT(rc > 0);
    if (rc > 0) {
        EXPECT((rc & ~events) == 0);
        if (m.steps == steps && !is_moving(t->watches))
            EXPECT(poll_now(fd, events) != 0);
    } else {
        check_error(t, t->watches, rc);
    }
    total.waited += !ready;
    log_step(t, "wait", (int)(l - m.pairs), rc);
    return rc < 0 ? rc : 0;
}

/* ---- selects: ends, a queue, a time ---- */

typedef struct choice {
    conc_case cases[CASES];
    const watch *watches[CASES]; /* NULL: no descriptor */
    int n, get, put, after;      /* indices of these cases; -1: none */
    int got, value;
    int64_t due;
} choice;

static void receive(int value)
{
    EXPECT(value > 0 && value <= m.items && !m.received[value]);
    m.received[value] = true;
    m.gets++;
    total.items++;
}

/* Puts an item or gets one, without a wait. */
static int step_try_queue(task *t)
{
    int got = 0, rc, len = (int)conc_queue_len(&m.queue);
    if (one_in(t, 2) && m.items + 1 < MAX_ITEMS) {
        int value = ++m.items;
        rc = conc_queue_try_put(&m.queue, &value);
        EXPECT_INT(rc, len < CAPACITY ? 0 : -EAGAIN);
        m.puts += rc == 0;
    } else {
        rc = conc_queue_try_get(&m.queue, &got);
        EXPECT_INT(rc, len ? 0 : -EAGAIN);
        if (rc == 0)
            receive(got);
    }
    log_step(t, "queue", got, rc);
    return 0;
}

static void add_end(task *t, choice *c, int k)
{
    pair *l = &m.pairs[pick(t, PAIRS)];
    int side = pick(t, 2), events = 1 + pick(t, 3);
    const end *e = &l->ends[side];
    if (!e->open || e->has_stream)
        return;
    c->cases[k] = (conc_case)CONC_CASE_FD(e->fd, events);
    c->watches[k] = &t->watches[t->watched];
    add_watch(t, l, side, events);
    c->n++;
}

static void add_case(task *t, choice *c)
{
    int k = c->n;
    switch (pick(t, 6)) {
    case 0:
        if (c->get < 0) {
            c->get = c->n++;
            c->cases[k] = (conc_case)CONC_CASE_GET(&m.queue, &c->got);
        }
        break;
    case 1:
        if (c->put < 0 && m.items + 1 < MAX_ITEMS) {
            c->put = c->n++;
            c->value = ++m.items;
            c->cases[k] = (conc_case)CONC_CASE_PUT(&m.queue, &c->value);
        }
        break;
    case 2:
        if (c->after < 0) {
            int64_t time = (1 + pick(t, 8)) * EIGHTH;
            c->after = c->n++;
            c->due = random_now() + time;
            c->cases[k] = (conc_case)CONC_CASE_AFTER(random_seconds(time));
        }
        break;
    default: add_end(t, c, k); break;
    }
}

/* The first case that is ready now, or n. */
static int first_ready(const choice *c)
{
    size_t len = conc_queue_len(&m.queue);
    for (int k = 0; k < c->n; k++) {
        const watch *w = c->watches[k];
        bool by_queue = (k == c->get && len > 0) || (k == c->put && len < CAPACITY);
        if (by_queue || (w && poll_now(w->pair->ends[w->side].fd, w->events)))
            return k;
    }
    return c->n;
}

static void check_chosen(const task *t, const choice *c, int k, bool nobody_acted)
{
    int result = c->cases[k].result;
    const watch *w = c->watches[k];
    if (w && result > 0) {
        EXPECT((result & ~w->events) == 0);
        if (nobody_acted && !is_moving(w))
            EXPECT(poll_now(w->pair->ends[w->side].fd, w->events) != 0);
    } else if (w) {
        check_error(t, w, result);
        EXPECT(result != -ECANCELED);
    } else {
        EXPECT_INT(result, 0);
        if (k == c->after)
            EXPECT_INT(random_now(), c->due);
    }
    if (k == c->get)
        receive(c->got);
    else
        EXPECT_INT(c->got, 0);
    m.puts += k == c->put;
}

static int step_select(task *t)
{
    choice c = {.get = -1, .put = -1, .after = -1};
    for (int wanted = 1 + pick(t, CASES), tries = 0; c.n < wanted && tries < 8; tries++)
        add_case(t, &c);
    if (c.n == 0)
        return 0;
    t->calls++;
    t->gets = c.get >= 0;
    t->puts = c.put >= 0;
    bool cut = conc_cancelled();
    int ready = first_ready(&c);
    long steps = m.steps;
    int rc = conc_select(c.cases, (size_t)c.n);
    t->gets = t->puts = false;
    (void)end_call(t);
    if (cut || rc < 0) {
        EXPECT_INT(rc, -ECANCELED);
        check_cancelled(t);
        EXPECT_INT(c.got, 0);
    } else {
        EXPECT(rc < c.n);
        if (ready < c.n && m.steps == steps)
            EXPECT(with_tcp ? rc <= ready : rc == ready);
        check_chosen(t, &c, rc, m.steps == steps);
    }
    total.selected++;
    total.chosen_late += rc >= 0 && ready == c.n;
    log_step(t, "select", c.n, rc);
    return rc < 0 ? rc : 0;
}

/* ---- streams ---- */

static void open_stream(task *t, pair *l, int side)
{
    end *e = &l->ends[side];
    memset(&e->stream, 0, sizeof e->stream);
    e->stream.buffer_size = one_in(t, 2) ? 64 : 0;
    e->stream.limit = one_in(t, 2) ? 100 : 0;
    EXPECT_INT(conc_stream_open(&e->stream, e->fd), 0);
    e->has_stream = true;
    log_step(t, "open a stream", (int)(l - m.pairs), side);
}

static void check_record(task *t, direction *d, const char *data, ssize_t n,
                         const unsigned char delimiter[2], size_t size)
{
    bool ends = (size_t)n >= size && memcmp(data + n - size, delimiter, size) == 0;
    EXPECT_INT(data[n], 0);
    for (ssize_t i = 0; i + (ssize_t)size < n; i++)
        EXPECT(memcmp(data + i, delimiter, size) != 0);
    if (!ends)
        EXPECT(d->shut || is_ending(&t->watches->pair->ends[1 - t->watches->side]));
    check_bytes(d, data, n);
    total.lines++;
}

static ssize_t read_record(task *t, direction *d, conc_stream *s, bool *ended)
{
    unsigned char delimiter[2] = {byte_of(t, pick(t, SEQUENCE)), 0};
    size_t size = one_in(t, 4) ? 2 : 1;
    static char marker;
    char *data = &marker;
    delimiter[0] = (unsigned char)(delimiter[0] & 31) | (unsigned char)(pick(t, TASKS) << 5);
    delimiter[1] = (unsigned char)((delimiter[0] & 0xe0) | ((delimiter[0] + 1) & 31));
    ssize_t rc = conc_stream_read_until(s, delimiter, size, &data);
    if (rc > 0)
        check_record(t, d, data, rc, delimiter, size);
    *ended = rc == 0;
    if (rc == 0)
        EXPECT(data == NULL);
    return rc;
}

static ssize_t read_plainly(task *t, direction *d, conc_stream *s, bool full, bool *ended)
{
    size_t n = pick_size(t);
    ssize_t rc = full ? conc_stream_read_full(s, t->bytes, n) : conc_stream_read(s, t->bytes, n);
    if (rc > 0)
        check_bytes(d, t->bytes, rc);
    *ended = rc == 0;
    return rc;
}

static int step_stream_read(task *t, pair *l, int side)
{
    direction *d = &l->from[1 - side];
    end *e = &l->ends[side];
    bool ended = false;
    if (!begin_reading(d, true))
        return 0;
    begin_call(t, l, side, CONC_READABLE | CONC_WRITABLE); /* it may send first */
    ssize_t rc = !one_in(t, 3) ? read_record(t, d, &e->stream, &ended)
                               : read_plainly(t, d, &e->stream, one_in(t, 3), &ended);
    (void)end_call(t);
    end_reading(d, true);
    log_step(t, "stream read", (int)(l - m.pairs), rc);
    if (ended)
        check_end_of_file(t->watches, d);
    if (rc >= 0 || rc == -EMSGSIZE)
        return 0;
    if (rc == -EPIPE && e->stream_closing)
        return 0;
    check_error(t, t->watches, rc);
    return (int)rc;
}

static int step_stream_write(task *t, pair *l, int side)
{
    direction *d = &l->from[side];
    end *e = &l->ends[side];
    size_t n = pick_size(t);
    bool flushes = one_in(t, 5);
    make_bytes(t, d, n);
    begin_call(t, l, side, CONC_WRITABLE);
    d->partly++;
    ssize_t rc =
        flushes ? conc_stream_flush(&e->stream) : conc_stream_write(&e->stream, t->bytes, n);
    (void)end_call(t);
    d->partly--;
    log_step(t, flushes ? "flush" : "stream write", (int)(l - m.pairs), rc);
    if (rc < 0) {
        d->lossy |= rc != -ECANCELED;
        check_error(t, t->watches, rc);
        return (int)rc;
    }
    if (!flushes) {
        EXPECT((size_t)rc <= n && rc > 0);
        count_sent(t, d, rc);
    }
    return 0;
}

static int step_close_stream(task *t, pair *l, int side)
{
    end *e = &l->ends[side];
    if (e->stream_closing)
        return 0;
    e->stream_closing = true;
    if (conc_cancelled())
        l->from[side].lossy = true;
    begin_call(t, l, side, CONC_WRITABLE);
    bool unread = e->reads && bytes_between(e) > 0;
    l->ends[1 - side].reset |= is_socket(l) && unread;
    l->from[side].lossy |= is_tcp(l) && (unread || is_watched(l, 1 - side, CONC_WRITABLE));
    int rc = conc_stream_close(&e->stream);
    (void)end_call(t);
    EXPECT(rc <= 0);
    EXPECT(!has_waiters(l, side)); /* no task is inside it any more */
    l->from[side].lossy |= rc < 0;
    e->open = false;
    e->has_stream = false;
    l->from[side].shut = true;
    l->ends[1 - side].reset |= is_socket(l); /* bytes that arrived meanwhile */
    log_step(t, "close a stream", (int)(l - m.pairs), rc);
    return rc == -ECANCELED ? rc : 0;
}

static int step_stream(task *t, pair *l, int side)
{
    const end *e = &l->ends[side];
    int what = pick(t, 8);
    if (what == 0)
        return step_close_stream(t, l, side);
    if (e->stream_closing)
        return 0;
    if (what < 5 && e->reads)
        return step_stream_read(t, l, side);
    return e->writes && !l->from[side].shut ? step_stream_write(t, l, side) : 0;
}

/* ---- closing and opening ---- */

static bool close_end(task *t, pair *l, int side)
{
    bool waited_for = has_waiters(l, side);
    bool by_conc = l->kind == CONC_SOCKET || l->kind == CONC_TCP || one_in(t, 2);
    if (!by_conc && waited_for && !m.closes_behind)
        by_conc = true;
    note_close(l, side);
    EXPECT_INT(by_conc ? conc_close(l->ends[side].fd) : close(l->ends[side].fd), 0);
    log_step(t, by_conc ? "close" : "close(2)", (int)(l - m.pairs), side);
    return waited_for;
}

static int step_close(task *t, pair *l, int side)
{
    end *peer = &l->ends[1 - side];
    bool waited_for = close_end(t, l, side), again = one_in(t, 2);
    if (again && peer->open && !peer->has_stream)
        waited_for |= close_end(t, l, 1 - side);
    if (!peer->open && again) { /* the numbers are reused immediately */
        total.reused += waited_for;
        open_pair(t, l);
    }
    return 0;
}

static int step_shut(task *t, pair *l, int side)
{
    if (!is_socket(l) || l->from[side].shut)
        return 0;
    (void)shutdown(l->ends[side].fd, SHUT_WR); /* the peer may be gone */
    l->from[side].shut = true;
    log_step(t, "shut", (int)(l - m.pairs), side);
    return 0;
}

static int step_cancel(task *t)
{
    task *other = &m.tasks[1 + pick(t, TASKS - 1)];
    if (!other->spawned || other == t)
        return 0;
    if (one_in(t, 3)) {
        EXPECT_INT(conc_cancel(&other->handle), other->ended ? -EALREADY : 0);
        other->asked = true;
    } else if (other->in_scope) {
        conc_scope_cancel(&other->scope);
    }
    log_step(t, "cancel", other->index, 0);
    return 0;
}

/* ---- programs ---- */

static int step_at(task *t, pair *l, int side)
{
    const end *e = &l->ends[side];
    int what = pick(t, 16);
    if (l->opening)
        return 0;
    if (!e->open)
        return !l->ends[1 - side].open && one_in(t, 2) ? (open_pair(t, l), 0) : 0;
    if (e->has_stream)
        return step_stream(t, l, side);
    if (what == 0)
        return step_close(t, l, side);
    if (what == 1)
        return step_shut(t, l, side);
    if (what == 2 && !has_waiters(l, side)) {
        open_stream(t, l, side);
        return 0;
    }
    if (what < 5)
        return step_wait(t, l, side);
    if (e->reads && (!e->writes || what < 11))
        return step_read(t, l, side);
    return step_write(t, l, side);
}

static int step(task *t)
{
    pair *l = &m.pairs[pick(t, PAIRS)];
    switch (pick(t, 12)) {
    case 0: return conc_sleep(random_seconds(pick(t, 4) * EIGHTH));
    case 1: return step_cancel(t);
    case 2: return step_try_queue(t);
    case 3: return step_select(t);
    default: return step_at(t, l, pick(t, 2));
    }
}

static int step_in_scope(task *t)
{
    int64_t limit = one_in(t, 5) ? NEVER : pick(t, 8) * EIGHTH;
    memset(&t->scope, 0, sizeof t->scope);
    EXPECT_INT(conc_scope_begin(&t->scope, random_seconds(limit)), 0);
    t->in_scope = true;
    t->limit = limit == NEVER ? NEVER : random_now() + limit;
    int rc = step(t);
    t->in_scope = false;
    rc = conc_scope_end(&t->scope, rc);
    return rc == -ECANCELED ? rc : 0;
}

static int run_task(void *arg)
{
    task *t = arg;
    int cut_short = 0;
    for (int i = 0; i < STEPS_OF_A_TASK && cut_short < 5 && !m.ending; i++)
        cut_short += (one_in(t, 3) ? step(t) : step_in_scope(t)) == -ECANCELED;
    t->ended = true;
    log_step(t, "end", 0, 0);
    return 0;
}

/* Longer than any pause of a task that found nothing to do. */
static void pass_pauses(void)
{
    EXPECT_INT(conc_sleep(random_seconds(3 * EIGHTH + 1)), 0);
    EXPECT_INT(conc_settle(), 0);
}

/* The kernel reports that the end is not ready for its waiters. A connection may become ready
 * between conc's poll and this one, and tasks that continue then act elsewhere: then the waiter
 * continues when it is given time. */
static void check_not_ready(const task *t, int i)
{
    const watch *w = &t->watches[i];
    long call = t->calls;
    for (int tries = 0; tries < 200; tries++) {
        bool waits = i < t->watched && t->calls == call && is_open(w);
        if (!waits || !poll_now(w->pair->ends[w->side].fd, w->events))
            return;
        EXPECT(with_tcp);
        if (tries > 4)
            usleep(1000);
        pass_pauses();
    }
    if (random_program.verbose)
        conc_dump(stderr);
    random_fail(__FILE__, __LINE__, "a task waits for something available");
}

static void check_waits(const task *t)
{
    for (int i = 0; i < t->watched; i++) {
        const watch *w = &t->watches[i];
        EXPECT(is_open(w) || m.closes_behind || w->pair->ends[w->side].stream_closing);
        if (is_open(w) && !w->pair->ends[w->side].has_stream)
            check_not_ready(t, i);
    }
    EXPECT(!(t->watched && conc_done(&t->handle)));
}

static void check_queue(void)
{
    size_t len = conc_queue_len(&m.queue);
    EXPECT_INT(len, m.puts - m.gets);
    for (const task *t = m.tasks; t < m.tasks + TASKS; t++) {
        EXPECT(!t->gets || len == 0);
        EXPECT(!t->puts || len == CAPACITY);
    }
}

/* All tasks wait: nothing that they wait for may be ready. */
static void check_settled(void)
{
    for (const task *t = m.tasks; t < m.tasks + TASKS; t++)
        check_waits(t);
    check_queue();
    for (pair *l = m.pairs; l < m.pairs + PAIRS; l++)
        for (int i = 0; i < 2; i++) {
            const direction *d = &l->from[i];
            const end *reader = &l->ends[1 - i], *writer = &l->ends[i];
            bool exact = reader->open && reader->reads && !reader->has_stream;
            if (exact && !writer->has_stream && !d->partly && !d->lossy && is_tcp(l))
                EXPECT(bytes_between(reader) <= d->in - d->out);
            else if (exact && !writer->has_stream && !d->partly && !d->lossy)
                EXPECT_INT(bytes_between(reader), d->in - d->out);
        }
}

static void settle(void)
{
    EXPECT_INT(conc_settle(), 0);
    pass_pauses();
    check_settled();
}

/* No stream is flushed: no task would read it. */
static void close_all(task *main)
{
    conc_scope no_time = {0};
    EXPECT_INT(conc_scope_begin(&no_time, 0), 0);
    for (pair *l = m.pairs; l < m.pairs + PAIRS; l++)
        for (int i = 0; i < 2; i++) {
            end *e = &l->ends[i];
            if (e->open && e->has_stream)
                (void)step_close_stream(main, l, i);
            else if (e->open)
                EXPECT_INT(conc_close(e->fd), 0);
            e->open = false;
        }
    EXPECT_INT(conc_scope_end(&no_time, 0), 0);
}

/* If descriptors are closed behind their waiters, the close alone has to end the waits, after some
 * real time. */
static void end_tasks(conc_group *g)
{
    if (!m.closes_behind)
        conc_group_cancel(g);
    m.ending = true;
    for (task *t = m.tasks + 1; t < m.tasks + TASKS; t++) {
        bool must_be_told = false;
        for (const watch *w = t->watches; w < t->watches + t->watched; w++)
            must_be_told |= m.closes_behind && !is_open(w);
        t->asked = true;
        if (!must_be_told)
            (void)conc_cancel(&t->handle);
    }
}

static int run_main(void *arg)
{
    task *main = arg;
    conc_group g = {0};
    m.closes_behind = one_in(main, 24);
    m.queue = (conc_queue)CONC_QUEUE(int, CAPACITY);
    for (pair *l = m.pairs; l < m.pairs + PAIRS; l++) {
        open_pair(main, l);
        for (int i = 0; i < 2 && l < m.pairs + 2; i++)
            if (one_in(main, 2))
                open_stream(main, l, i);
    }
    for (int i = 1; i < TASKS; i++) {
        task *t = &m.tasks[i];
        t->random = random_draw(&main->random);
        EXPECT_INT(conc_spawn_task(&g, &t->handle, run_task, t), 0);
        t->spawned = true;
    }
    for (int i = 0; i < ROUNDS; i++) {
        settle();
        (void)step_cancel(main);
        pair *l = &m.pairs[pick(main, PAIRS)];
        int side = pick(main, 2);
        if (one_in(main, 2) && l->ends[side].open && !l->ends[side].has_stream)
            (void)step_close(main, l, side);
    }
    end_tasks(&g);
    EXPECT_INT(conc_group_wait(&g), 0);
    check_queue();
    conc_queue_destroy(&m.queue);
    close_all(main);
    return 17;
}

static void run_program(uint64_t seed, uint64_t order)
{
    conc_options o = {.virtual_clock = true, .seed = order};
    memset(&m, 0, sizeof m);
    for (int i = 0; i < TASKS; i++)
        m.tasks[i].index = i;
    m.tasks[0].random = random_source(seed);
    random_program.differs = with_tcp;
    EXPECT_INT(conc_run_with(&o, run_main, &m.tasks[0]), 17);
    total.programs++;
}

static void check_that_programs_do_what_they_are_for(void)
{
    long programs = total.programs;
    CHECK(total.read > 1000 * programs && total.written > total.read);
    CHECK(total.cut_short > programs && total.closed > programs);
    CHECK(total.ended > programs / 2 && total.broken > programs / 8);
    CHECK(total.waited > programs / 2 && total.lines > programs / 8);
    CHECK(total.reused > programs / 50);
    CHECK(total.chosen_late > programs / 2 && total.items > programs / 8);
    CHECK(!with_tcp || total.connections > programs);
}

static void run_programs(const char *backend, bool tcp)
{
    setenv("CONC_POLL", backend, 1);
    with_tcp = tcp;
    uint64_t count = random_repeat(300, RANDOM_MIXED, run_program);
    if (random_program.verbose)
        fprintf(stderr,
                "%ld programs, %ld bytes written, %ld read, %ld cut short, %ld closed, %ld ends of "
                "file, %ld waits, %ld broken pipes, %ld records, %ld numbers used again, "
                "%ld selects, %ld that waited and chose, %ld items, %ld TCP connections\n",
                total.programs, total.written, total.read, total.cut_short, total.closed,
                total.ended, total.waited, total.broken, total.lines, total.reused, total.selected,
                total.chosen_late, total.items, total.connections);
    if (count >= 200)
        check_that_programs_do_what_they_are_for();
}

#if !TEST_ONLY_POLL
TEST(random_programs_with_descriptors_agree_with_the_model_with_the_best)
{
    run_programs(TEST_POLLER, false);
}

TEST(random_programs_with_tcp_agree_with_the_model_with_the_best)
{
    run_programs(TEST_POLLER, true);
}
#endif

TEST(random_programs_with_descriptors_agree_with_the_model_with_poll)
{
    run_programs("poll", false);
}

TEST(random_programs_with_tcp_agree_with_the_model_with_poll) { run_programs("poll", true); }
