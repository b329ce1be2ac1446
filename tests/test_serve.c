/* conc_accept and conc_serve: connections taken one by one or by a server, its limit, its
 * errors, and its end.
 *
 * Seeds: 5 (some take real time)
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#include "io_test.h"

#include <pthread.h>
#include <sys/resource.h>
#include <sys/un.h>

static char room[64];

/* ---- accepting ---- */

typedef struct acceptor {
    int fd, got;
    bool done;
} acceptor;

static int accepts(void *arg)
{
    acceptor *a = arg;
    a->got = conc_accept(a->fd);
    a->done = true;
    return 0;
}

/* The kinds of listening sockets. */
typedef enum door_kind { DOOR_CONC, DOOR_FOREIGN, DOOR_BLOCKING, DOOR_KINDS } door_kind;

typedef struct door {
    int l;
    struct sockaddr_in address;
    char where[128];
} door;

static void open_door(door *d, door_kind kind)
{
    socklen_t size = sizeof d->address;
    if (kind == DOOR_CONC) {
        d->l = conc_listen("127.0.0.1:0");
        CHECK(d->l >= 0);
    } else {
        struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        d->l = socket(AF_INET, SOCK_STREAM, 0);
        CHECK_INT(bind(d->l, (struct sockaddr *)&any, size), 0);
        CHECK_INT(listen(d->l, 100), 0);
        io_set_blocking(d->l, kind == DOOR_BLOCKING);
    }
    CHECK_INT(getsockname(d->l, (struct sockaddr *)&d->address, &size), 0);
    CHECK_INT(conc_address(d->l, false, d->where, sizeof d->where), 0);
}

/* A client that conc does not know; it has connected when this returns. */
static int knock(const door *d)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK_INT(connect(fd, (const struct sockaddr *)&d->address, sizeof d->address), 0);
    return fd;
}

/* No connection waits to be accepted. */
static void check_empty(const door *d)
{
    int flags = fcntl(d->l, F_GETFL);
    io_set_blocking(d->l, false);
    CHECK_INT(accept(d->l, NULL, NULL), -1);
    CHECK_INT(errno, EAGAIN);
    CHECK_INT(fcntl(d->l, F_SETFL, flags), 0);
}

IO_TEST(an_accept_waits_for_a_connection_and_its_listener_is_non_blocking_from_then_on)
{
    for (door_kind kind = 0; kind < DOOR_KINDS; kind++) {
        door d;
        conc_group g = {0};
        open_door(&d, kind);
        int flags = fcntl(d.l, F_GETFL);
        acceptor a = {.fd = d.l};
        CHECK_INT(conc_spawn(&g, accepts, &a), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!a.done);
        CHECK_INT(fcntl(d.l, F_GETFL), flags | O_NONBLOCK);
        int fd = conc_dial(d.where);
        CHECK(fd >= 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK(a.got >= 0);
        CHECK_INT(fcntl(d.l, F_GETFL), flags | O_NONBLOCK);
        CHECK(fcntl(a.got, F_GETFL) & O_NONBLOCK);
        CHECK(fcntl(a.got, F_GETFD) & FD_CLOEXEC);
        CHECK_INT(conc_write(fd, "x", 1), 1);
        io_expect(a.got, "x");
        CHECK_INT(conc_close(fd), 0);
        CHECK_INT(conc_close(a.got), 0);
        CHECK_INT(conc_close(d.l), 0);
    }
}

IO_TEST(a_connection_makes_a_listener_readable)
{
    for (door_kind kind = 0; kind < DOOR_KINDS; kind++) {
        door d;
        conc_group g = {0};
        open_door(&d, kind);
        io_waiter w = {.fd = d.l, .events = CONC_READABLE};
        CHECK_INT(conc_spawn(&g, io_waits, &w), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!w.done);
        int fd = knock(&d);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(w.rc, CONC_READABLE);
        int got = conc_accept(d.l);
        CHECK(got >= 0);
        CHECK_INT(conc_close(got), 0);
        CHECK_INT(conc_close(fd), 0);
        CHECK_INT(conc_close(d.l), 0);
    }
}

IO_TEST(one_of_two_accepts_gets_the_connection_and_the_other_keeps_waiting)
{
    for (door_kind kind = 0; kind < DOOR_KINDS; kind++) {
        door d;
        int clients[2];
        conc_group g = {0};
        open_door(&d, kind);
        acceptor a[2] = {{.fd = d.l}, {.fd = d.l}};
        CHECK_INT(conc_spawn(&g, accepts, &a[0]), 0);
        CHECK_INT(conc_spawn(&g, accepts, &a[1]), 0);
        CHECK_INT(conc_settle(), 0);
        clients[0] = knock(&d);
        while (!a[0].done && !a[1].done)
            CHECK_INT(conc_yield(), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(a[0].done + a[1].done, 1);
        clients[1] = knock(&d);
        CHECK_INT(conc_group_wait(&g), 0);
        for (int i = 0; i < 2; i++) {
            CHECK(a[i].got >= 0);
            CHECK_INT(conc_close(a[i].got), 0);
            CHECK_INT(conc_close(clients[i]), 0);
        }
        check_empty(&d);
        CHECK_INT(conc_close(d.l), 0);
    }
}

enum { CROWD = 10 };

IO_TEST(all_accepts_get_a_connection_when_all_arrive_at_once)
{
    for (door_kind kind = 0; kind < DOOR_KINDS; kind++) {
        door d;
        int clients[CROWD];
        acceptor a[CROWD];
        conc_group g = {0};
        open_door(&d, kind);
        for (int i = 0; i < CROWD; i++) {
            a[i] = (acceptor){.fd = d.l};
            CHECK_INT(conc_spawn(&g, accepts, &a[i]), 0);
        }
        CHECK_INT(conc_settle(), 0);
        for (int i = 0; i < CROWD; i++)
            clients[i] = knock(&d);
        CHECK_INT(conc_group_wait(&g), 0);
        for (int i = 0; i < CROWD; i++) {
            CHECK(a[i].got >= 0);
            CHECK_INT(conc_close(a[i].got), 0);
            CHECK_INT(conc_close(clients[i]), 0);
        }
        CHECK_INT(conc_close(d.l), 0);
    }
}

/* ST-12: {a connection arrives; some turns pass; cancel}, or the cancel first. */
static void race_accept(door_kind kind, int turns)
{
    door d;
    conc_group g = {0};
    conc_task task;
    int client = -1, got;
    open_door(&d, kind);
    acceptor a = {.fd = d.l};
    CHECK_INT(conc_spawn_task(&g, &task, accepts, &a), 0);
    CHECK_INT(conc_settle(), 0);
    if (turns >= 0)
        client = knock(&d);
    for (int i = 0; i < turns; i++)
        CHECK_INT(conc_yield(), 0);
    (void)conc_cancel(&task);
    if (turns < 0)
        client = knock(&d);
    CHECK_INT(conc_group_wait(&g), 0);
    if (turns < 0)
        CHECK_INT(a.got, -ECANCELED);
    got = a.got == -ECANCELED ? conc_accept(d.l) : a.got;
    CHECK(got >= 0);
    check_empty(&d);
    CHECK_INT(conc_close(got), 0);
    CHECK_INT(conc_close(client), 0);
    CHECK_INT(conc_close(d.l), 0);
}

IO_TEST(a_connection_that_comes_with_a_cancel_is_returned_or_left_to_the_next_accept)
{
    for (door_kind kind = 0; kind < DOOR_KINDS; kind++)
        for (int turns = -1; turns < 5; turns++)
            race_accept(kind, turns);
}

static int accepts_to_its_result(void *l) { return conc_accept(*(int *)l); }

IO_TEST(an_accept_times_out_or_is_cancelled_without_effect)
{
    for (door_kind kind = 0; kind < DOOR_KINDS; kind++) {
        door d;
        conc_scope s = {0};
        double start = conc_now();
        open_door(&d, kind);
        CHECK_INT(conc_timeout(3, accepts_to_its_result, &d.l), -ETIMEDOUT);
        CHECK_TIME(start + 3);
        int fd = knock(&d);
        CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
        conc_scope_cancel(&s);
        CHECK_INT(conc_accept(d.l), -ECANCELED);
        CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
        int got = conc_accept(d.l);
        CHECK(got >= 0);
        CHECK_INT(conc_close(got), 0);
        CHECK_INT(conc_close(fd), 0);
        CHECK_INT(conc_close(d.l), 0);
    }
}

IO_TEST(conc_close_wakes_all_accepts)
{
    for (door_kind kind = 0; kind < DOOR_KINDS; kind++) {
        door d;
        conc_group g = {0};
        open_door(&d, kind);
        acceptor a[2] = {{.fd = d.l}, {.fd = d.l}};
        CHECK_INT(conc_spawn(&g, accepts, &a[0]), 0);
        CHECK_INT(conc_spawn(&g, accepts, &a[1]), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(conc_close(d.l), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(a[0].got, -EBADF);
        CHECK_INT(a[1].got, -EBADF);
    }
}

IO_TEST(a_socket_that_does_not_listen_accepts_nothing)
{
    for (io_kind kind = IO_SOCKET; kind < IO_KINDS; kind++) {
        int s[2];
        io_open(kind, s);
        CHECK_INT(conc_accept(s[0]), -EINVAL);
        io_close(s);
    }
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_INT(conc_accept(fd), -EINVAL);
    CHECK_INT(conc_close(fd), 0);
}

static int accepts_on_a_small_stack(void *arg)
{
    acceptor *a = arg;
    a->got = conc_accept(a->fd);
    return 0;
}

IO_TEST(a_task_with_the_smallest_stack_accepts)
{
    door d;
    conc_group g = {.stack_size = IO_SMALLEST_STACK};
    open_door(&d, DOOR_CONC);
    acceptor a = {.fd = d.l};
    CHECK_INT(conc_spawn(&g, accepts_on_a_small_stack, &a), 0);
    CHECK_INT(conc_settle(), 0);
    int fd = knock(&d);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(a.got >= 0);
    CHECK_INT(conc_close(a.got), 0);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(d.l), 0);
}

/* ---- a server ---- */

typedef struct serving {
    conc_server server;
    conc_group group;
    conc_task task;
    door door;
    int rc;
    bool done;
} serving;

static int serves(void *arg)
{
    serving *v = arg;
    v->rc = conc_serve(&v->server);
    v->done = true;
    return 0;
}

static void start_serving(serving *v, door_kind kind, int (*handler)(int fd, void *arg), void *arg,
                          int limit)
{
    *v = (serving){.rc = 77};
    open_door(&v->door, kind);
    v->server = (conc_server){.fd = v->door.l, .handler = handler, .arg = arg, .limit = limit};
    CHECK_INT(conc_spawn_task(&v->group, &v->task, serves, v), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!v->done);
}

static void stop_by_close(serving *v)
{
    CHECK_INT(conc_close(v->door.l), 0);
    CHECK_INT(conc_group_wait(&v->group), 0);
    CHECK_INT(v->rc, 0);
}

static void stop_by_cancel(serving *v)
{
    CHECK_INT(conc_cancel(&v->task), 0);
    CHECK_INT(conc_group_wait(&v->group), 0);
    CHECK_INT(v->rc, -ECANCELED);
    CHECK_INT(conc_close(v->door.l), 0); /* it is still open, and still the caller's */
}

/* What handlers record for the tests. */
static struct {
    int inside, most, ended, cancelled;
} seen;

static void enter(void)
{
    seen.inside++;
    seen.most = seen.inside > seen.most ? seen.inside : seen.most;
}

static int leave(int rc)
{
    seen.inside--;
    seen.ended++;
    seen.cancelled += rc == -ECANCELED;
    return rc;
}

/* Echoes each byte, until the end of file. */
static int echo(int fd, void *arg)
{
    char c;
    (void)arg;
    enter();
    ssize_t rc;
    while ((rc = conc_read(fd, &c, 1)) == 1)
        if ((rc = conc_write(fd, &c, 1)) != 1)
            break;
    return leave((int)rc);
}

static void check_echo(int client, const char *text)
{
    CHECK_INT(conc_write_full(client, text, strlen(text)), strlen(text));
    io_expect(client, text);
}

IO_TEST(each_connection_is_served_by_its_own_task)
{
    for (door_kind kind = 0; kind < DOOR_KINDS; kind++) {
        serving v;
        int clients[CROWD];
        seen = (__typeof__(seen)){0};
        start_serving(&v, kind, echo, NULL, 0);
        for (int i = 0; i < CROWD; i++)
            clients[i] = kind == DOOR_CONC ? conc_dial(v.door.where) : knock(&v.door);
        for (int round = 0; round < 3; round++)
            for (int i = 0; i < CROWD; i++)
                check_echo(clients[i], "hello");
        CHECK_INT(seen.inside, CROWD);
        for (int i = 0; i < CROWD; i++)
            CHECK_INT(conc_close(clients[i]), 0);
        stop_by_close(&v);
        CHECK_INT(seen.ended, CROWD);
    }
}

static int says_hello(void *where)
{
    int fd = conc_dial(where);
    if (fd < 0)
        return fd;
    check_echo(fd, "hello");
    return conc_close(fd);
}

/* As many as there may be descriptors for: each needs two. */
IO_TEST(two_hundred_clients_at_once_are_all_served)
{
    serving v;
    struct rlimit limit;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK(limit.rlim_cur >= 200);
    int n = limit.rlim_cur < 600 ? (int)limit.rlim_cur / 3 : 200;
    seen = (__typeof__(seen)){0};
    start_serving(&v, DOOR_CONC, echo, NULL, 0);
    CHECK_INT(conc_map(says_hello, v.door.where, (size_t)n, 0), 0);
    stop_by_close(&v);
    CHECK_INT(seen.ended, n);
}

IO_TEST(a_unix_socket_is_served_too)
{
    char path[64], address[80];
    snprintf(path, sizeof path, "%s/conc_XXXXXX", P_tmpdir);
    CHECK(mkdtemp(path) != NULL);
    snprintf(address, sizeof address, "unix:%s/socket", path);
    serving v = {.rc = 77};
    v.server = (conc_server){.fd = conc_listen(address), .handler = echo};
    CHECK(v.server.fd >= 0);
    CHECK_INT(conc_spawn_task(&v.group, &v.task, serves, &v), 0);
    CHECK_INT(conc_map(says_hello, address, 20, 0), 0);
    CHECK_INT(conc_close(v.server.fd), 0);
    CHECK_INT(conc_group_wait(&v.group), 0);
    CHECK_INT(v.rc, 0);
    CHECK_INT(unlink(address + 5), 0);
    CHECK_INT(rmdir(path), 0);
}

static int returns_what_it_is_told(int fd, void *arg)
{
    char c;
    (void)arg;
    CONC_TRY(conc_read_full(fd, &c, 1));
    return c == '+'   ? 7
           : c == '0' ? 0
           : c == 'c' ? -ECANCELED
                      : conc_fail(-EPROTO, "told to fail by '%c'", c);
}

/* Sends a word to the server, and waits until it has closed the connection. */
static void tell(const serving *v, const char *word)
{
    int fd = knock(&v->door);
    io_send(fd, word);
    CHECK_INT(conc_read(fd, room, 1), 0);
    CHECK_INT(conc_close(fd), 0);
}

IO_TEST(the_connection_is_closed_after_the_handler_whatever_it_returned)
{
    serving v;
    io_failures.expected = 1;
    start_serving(&v, DOOR_CONC, returns_what_it_is_told, NULL, 0);
    tell(&v, "0");
    tell(&v, "+");
    tell(&v, "-");
    stop_by_close(&v);
}

IO_TEST(a_handlers_error_goes_to_on_error_once_and_serving_continues)
{
    serving v;
    io_failures.expected = 3;
    start_serving(&v, DOOR_CONC, returns_what_it_is_told, NULL, 0);
    tell(&v, "0");
    CHECK_INT(io_failures.count, 0);
    tell(&v, "x");
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(io_failures.count, 1);
    CHECK_INT(io_failures.rc, -EPROTO);
    CHECK_STR(io_failures.text, "told to fail by 'x'");
    CHECK_CONTAINS(io_failures.place, "test_serve.c:");
    tell(&v, "0");
    tell(&v, "y");
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(io_failures.count, 2);
    CHECK_STR(io_failures.text, "told to fail by 'y'");
    tell(&v, "c"); /* it was not cancelled: it failed */
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(io_failures.rc, -ECANCELED);
    CHECK(!v.done);
    stop_by_close(&v);
}

REAL_IO_TEST(a_client_that_resets_its_connection_does_no_harm)
{
    serving v;
    struct linger at_once = {1, 0};
    io_failures.expected = 1;
    start_serving(&v, DOOR_CONC, echo, NULL, 0);
    int fd = knock(&v.door);
    CHECK_INT(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    CHECK_INT(close(fd), 0);
    CHECK_INT(says_hello(v.door.where), 0);
    stop_by_close(&v);
    CHECK_INT(io_failures.rc, -ECONNRESET);
}

/* ---- the limit ---- */

static int stays_a_second(int fd, void *arg)
{
    (void)fd;
    (void)arg;
    enter();
    return leave(conc_sleep(1));
}

IO_TEST(at_most_limit_connections_are_served_at_once)
{
    for (int limit = 1; limit <= 3; limit++) {
        serving v;
        int clients[6];
        double start = conc_now();
        seen = (__typeof__(seen)){0};
        start_serving(&v, DOOR_CONC, stays_a_second, NULL, limit);
        for (int i = 0; i < 6; i++)
            clients[i] = knock(&v.door); /* connections over the limit wait in the backlog */
        for (int i = 0; i < 6; i++) {
            CHECK_INT(conc_read(clients[i], room, 1), 0);
            CHECK_INT(conc_close(clients[i]), 0);
        }
        CHECK_TIME(start + 6 / limit);
        CHECK_INT(seen.most, limit);
        CHECK_INT(seen.ended, 6);
        stop_by_close(&v);
    }
}

IO_TEST(a_server_at_its_limit_ends_when_it_is_cancelled_or_closed)
{
    for (int closes = 0; closes < 2; closes++) {
        for (int more = 0; more < 2; more++) {
            serving v;
            seen = (__typeof__(seen)){0};
            start_serving(&v, DOOR_CONC, stays_a_second, NULL, 1);
            int one = knock(&v.door), two = more ? knock(&v.door) : -1;
            while (!seen.inside)
                CHECK_INT(conc_yield(), 0);
            closes ? stop_by_close(&v) : stop_by_cancel(&v);
            CHECK_INT(seen.ended, 1);
            CHECK_INT(seen.cancelled, !closes);
            CHECK_INT(conc_close(one), 0);
            if (more)
                CHECK_INT(conc_close(two), 0);
        }
    }
}

/* ---- the end ---- */

static int cleans_up_slowly(int fd, void *arg)
{
    char c;
    (void)arg;
    enter();
    int rc = (int)conc_read(fd, &c, 1);
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_shield(&s, true);
    CHECK_INT(conc_sleep(5), 0);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    return leave(rc);
}

IO_TEST(a_cancel_reaches_the_handlers_and_the_server_waits_for_them)
{
    serving v;
    int clients[3];
    seen = (__typeof__(seen)){0};
    start_serving(&v, DOOR_CONC, cleans_up_slowly, NULL, 0);
    for (int i = 0; i < 3; i++)
        clients[i] = knock(&v.door);
    while (seen.inside < 3)
        CHECK_INT(conc_yield(), 0);
    double start = conc_now();
    stop_by_cancel(&v);
    CHECK_TIME(start + 5);
    CHECK_INT(seen.ended, 3);
    CHECK_INT(seen.cancelled, 3);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_read(clients[i], room, 1), 0);
        CHECK_INT(conc_close(clients[i]), 0);
    }
}

static int serves_to_its_result(void *server) { return conc_serve((conc_server *)server); }

IO_TEST(a_server_can_time_out)
{
    door d;
    open_door(&d, DOOR_CONC);
    conc_server s = {.fd = d.l, .handler = echo};
    for (int i = 1; i <= 2; i++) { /* the listener serves again */
        int fd = knock(&d);
        CHECK_INT(conc_timeout(3, serves_to_its_result, &s), -ETIMEDOUT);
        CHECK_TIME(3 * i);
        CHECK_INT(conc_read(fd, room, 1), 0);
        CHECK_INT(conc_close(fd), 0);
    }
    CHECK_INT(conc_close(d.l), 0);
}

/* ST-14 */
IO_TEST(after_conc_close_the_handlers_continue_and_new_clients_are_refused)
{
    serving v;
    int clients[3];
    seen = (__typeof__(seen)){0};
    start_serving(&v, DOOR_CONC, echo, NULL, 0);
    for (int i = 0; i < 3; i++) {
        clients[i] = knock(&v.door);
        check_echo(clients[i], "before");
    }
    CHECK_INT(conc_close(v.door.l), 0);
    CHECK_INT(conc_dial(v.door.where), -ECONNREFUSED);
    for (int i = 0; i < 3; i++) {
        check_echo(clients[i], "after");
        CHECK(!v.done);
        CHECK_INT(conc_close(clients[i]), 0);
    }
    CHECK_INT(conc_group_wait(&v.group), 0);
    CHECK_INT(v.rc, 0);
    CHECK_INT(seen.ended, 3);
    CHECK_INT(seen.cancelled, 0);
}

IO_TEST(a_server_whose_listener_is_closed_before_it_runs_or_as_a_client_comes_ends_as_well)
{
    serving v;
    seen = (__typeof__(seen)){0};
    start_serving(&v, DOOR_CONC, echo, NULL, 0);
    int fd = knock(&v.door);
    stop_by_close(&v); /* in the same tick */
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(seen.inside, 0);
}

static int closes_the_door(int fd, void *l)
{
    (void)fd;
    CHECK_INT(conc_close(*(int *)l), 0);
    return leave(conc_sleep(2));
}

IO_TEST(a_handler_may_close_the_listener)
{
    serving v;
    seen = (__typeof__(seen)){0};
    start_serving(&v, DOOR_CONC, closes_the_door, NULL, 0);
    CHECK_INT(conc_cancel(&v.task), 0);
    CHECK_INT(conc_group_wait(&v.group), 0);
    serving w = {.rc = 77, .door = v.door};
    w.server =
        (conc_server){.fd = v.door.l, .handler = closes_the_door, .arg = &w.door.l, .limit = 1};
    CHECK_INT(conc_spawn_task(&w.group, &w.task, serves, &w), 0);
    int fd = knock(&v.door);
    CHECK_INT(conc_group_wait(&w.group), 0);
    CHECK_INT(w.rc, 0);
    CHECK_INT(seen.ended, 1);
    CHECK_TIME(2);
    CHECK_INT(conc_close(fd), 0);
}

static struct {
    int fd;
    bool closed;
} own;

static int closes_its_connection_itself(int fd, void *arg)
{
    (void)arg;
    own.fd = fd;
    CHECK_INT(conc_close(fd), 0);
    own.closed = true;
    return conc_sleep(1);
}

/* Like a handler that opens a conc_stream, which owns its descriptor. */
IO_TEST(a_handler_that_closed_its_connection_itself_loses_no_other_descriptor)
{
    serving v;
    int p[2];
    own.closed = false;
    io_open(IO_PIPE, p);
    start_serving(&v, DOOR_CONC, closes_its_connection_itself, NULL, 0);
    int fd = knock(&v.door);
    while (!own.closed)
        CHECK_INT(conc_yield(), 0);
    CHECK_INT(fcntl(own.fd, F_GETFD), -1);
    CHECK_INT(dup2(p[0], own.fd), own.fd); /* another file has the number now */
    CHECK_INT(conc_sleep(2), 0);
    CHECK(fcntl(own.fd, F_GETFD) >= 0);
    stop_by_close(&v);
    CHECK_INT(conc_close(own.fd), 0);
    CHECK_INT(conc_close(fd), 0);
    io_close(p);
}

static int never_called(int fd, void *arg)
{
    (void)arg;
    test_fail(__FILE__, __LINE__, "this must not be called");
    return fd;
}

IO_TEST(the_server_s_description_is_read_once)
{
    serving v;
    seen = (__typeof__(seen)){0};
    start_serving(&v, DOOR_CONC, echo, NULL, 0);
    v.server = (conc_server){.fd = -1, .handler = never_called, .limit = -1};
    CHECK_INT(says_hello(v.door.where), 0);
    CHECK_INT(says_hello(v.door.where), 0);
    stop_by_close(&v);
}

IO_TEST(invalid_servers_are_refused)
{
    int p[2], s[2];
    door d;
    open_door(&d, DOOR_CONC);
    io_open(IO_FREE_PIPE, p);
    io_open(IO_CONC, s);
    CHECK_INT(conc_serve(NULL), -EINVAL);
    CHECK_INT(conc_serve((&(conc_server){.fd = d.l})), -EINVAL);
    CHECK_INT(conc_serve((&(conc_server){.fd = d.l, .handler = never_called, .limit = -1})),
              -EINVAL);
    CHECK_INT(conc_serve((&(conc_server){.fd = -1, .handler = never_called})), -EBADF);
    CHECK_INT(conc_serve((&(conc_server){.fd = 1 << 20, .handler = never_called})), -EBADF);
    CHECK_INT(conc_serve((&(conc_server){.fd = p[0], .handler = never_called})), -ENOTSOCK);
    CHECK_INT(conc_serve((&(conc_server){.fd = s[0], .handler = never_called})), -EINVAL);
    CHECK_INT(conc_close(d.l), 0);
    CHECK_INT(conc_serve((&(conc_server){.fd = d.l, .handler = never_called})), -EBADF);
    io_close(p);
    io_close(s);
}

static void serves_posted(void *server)
{
    CHECK_INT(conc_serve((conc_server *)server), -EPERM);
    seen.ended++;
}

IO_TEST(in_a_posted_function_nothing_is_served)
{
    door d;
    seen = (__typeof__(seen)){0};
    open_door(&d, DOOR_CONC);
    conc_server s = {.fd = d.l, .handler = never_called};
    CHECK_INT(conc_post(conc_loop_self(), serves_posted, &s), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(seen.ended, 1);
    CHECK_INT(conc_close(d.l), 0);
}

TEST(outside_a_run_nothing_is_served)
{
    CHECK_INT(conc_serve((&(conc_server){.fd = 0, .handler = never_called})), -EPERM);
}

/* ---- no more descriptors ---- */

static rlim_t limit_before;

/* From here on the process can open no more descriptors. */
static void use_up_descriptors(void)
{
    struct rlimit limit;
    int next = dup(0);
    CHECK(next >= 0);
    CHECK_INT(close(next), 0);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit_before = limit.rlim_cur;
    limit.rlim_cur = (rlim_t)next;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK_INT(dup(0), -1);
}

static void give_descriptors_back(void)
{
    struct rlimit limit;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit_before;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* Under Valgrind the system accepts the connection before it finds that descriptors are lacking:
 * the connection is lost. */
static bool loses_connections(void)
{
    door d;
    open_door(&d, DOOR_CONC);
    int fd = knock(&d);
    use_up_descriptors();
    CHECK_INT(accept(d.l, NULL, NULL), -1);
    CHECK_INT(errno, EMFILE);
    give_descriptors_back();
    int got = accept(d.l, NULL, NULL);
    if (got >= 0)
        CHECK_INT(close(got), 0);
    CHECK_INT(close(fd), 0);
    CHECK_INT(conc_close(d.l), 0);
    return got < 0;
}

/* A server, and a client whose connection cannot be accepted. */
static int start_without_descriptors(serving *v, int limit)
{
    seen = (__typeof__(seen)){0};
    io_failures.expected = 1;
    start_serving(v, DOOR_CONC, echo, NULL, limit);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    use_up_descriptors();
    CHECK_INT(connect(fd, (const struct sockaddr *)&v->door.address, sizeof v->door.address), 0);
    while (!io_failures.count)
        CHECK_INT(conc_yield(), 0);
    return fd;
}

/* ST-13 */
IO_TEST(without_descriptors_a_server_reports_it_once_backs_off_and_recovers)
{
    if (loses_connections())
        return;
    for (int limit = 0; limit < 2; limit++) {
        serving v;
        io_failures.count = 0;
        int fd = start_without_descriptors(&v, limit);
        CHECK_INT(io_failures.rc, -EMFILE);
        CHECK_CONTAINS(io_failures.place, "test_serve.c:");
        uint64_t polls = io_polls();
        double start = conc_now();
        CHECK_INT(conc_sleep(2.05), 0);
        CHECK(io_polls() - polls < 100); /* about 20 attempts */
        CHECK_INT(io_failures.count, 1);
        CHECK_INT(seen.inside, 0);
        give_descriptors_back();
        check_echo(fd, "at last");
        CHECK(conc_now() < start + 2.05 + 0.11);
        CHECK_INT(conc_close(fd), 0);
        CHECK_INT(says_hello(v.door.where), 0);
        stop_by_close(&v);
        CHECK_INT(io_failures.count, 1);
    }
}

IO_TEST(a_server_that_backs_off_ends_when_it_is_cancelled_or_closed)
{
    for (int closes = 0; closes < 2; closes++) {
        serving v;
        io_failures.count = 0;
        int fd = start_without_descriptors(&v, 0);
        double start = conc_now();
        closes ? stop_by_close(&v) : stop_by_cancel(&v);
        CHECK(conc_now() < start + 0.11);
        give_descriptors_back();
        CHECK_INT(conc_close(fd), 0);
    }
}

/* {conc_close; another listener gets the number}, and a client connects to that one. */
static void replace_listener(serving *v)
{
    door next;
    open_door(&next, DOOR_CONC);
    CHECK_INT(conc_close(v->door.l), 0);
    CHECK_INT(dup2(next.l, v->door.l), v->door.l);
    int fd = knock(&next);
    CHECK_INT(conc_group_wait(&v->group), 0);
    CHECK_INT(v->rc, 0);
    int got = conc_accept(next.l);
    CHECK(got >= 0);
    CHECK_INT(conc_close(got), 0);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(next.l), 0);
    CHECK_INT(conc_close(v->door.l), 0);
}

IO_TEST(a_closed_server_that_waits_takes_nothing_from_the_next_listener_of_its_number)
{
    serving v;
    seen = (__typeof__(seen)){0};
    start_serving(&v, DOOR_CONC, stays_a_second, NULL, 1);
    int fd = knock(&v.door);
    while (!seen.inside)
        CHECK_INT(conc_yield(), 0);
    replace_listener(&v);
    CHECK_INT(conc_close(fd), 0);
    fd = start_without_descriptors(&v, 0);
    give_descriptors_back();
    replace_listener(&v);
    CHECK_INT(conc_close(fd), 0);
}

IO_TEST(without_descriptors_an_accept_fails_and_the_connection_is_there_for_the_next)
{
    door d;
    if (loses_connections())
        return;
    open_door(&d, DOOR_CONC);
    int fd = knock(&d);
    use_up_descriptors();
    CHECK_INT(conc_accept(d.l), -EMFILE);
    CHECK_INT(conc_dial(d.where), -EMFILE);
    CHECK_INT(conc_listen("127.0.0.1:0"), -EMFILE);
    give_descriptors_back();
    int got = conc_accept(d.l);
    CHECK(got >= 0);
    CHECK_INT(conc_close(got), 0);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(d.l), 0);
}

/* ---- several servers ---- */

IO_TEST(two_servers_share_one_listener)
{
    serving v, w = {.rc = 77};
    seen = (__typeof__(seen)){0};
    start_serving(&v, DOOR_CONC, echo, NULL, 1);
    w.server = v.server;
    CHECK_INT(conc_spawn_task(&w.group, &w.task, serves, &w), 0);
    CHECK_INT(conc_map(says_hello, v.door.where, 20, 0), 0);
    CHECK_INT(conc_close(v.door.l), 0);
    CHECK_INT(conc_group_wait(&w.group), 0);
    CHECK_INT(conc_group_wait(&v.group), 0);
    CHECK_INT(seen.ended, 20);
    CHECK(seen.most <= 2);
    CHECK_INT(v.rc, 0);
    CHECK_INT(w.rc, 0);
}

/* Each loop serves in its own thread, until a client sends "q" to it. */
typedef struct branch {
    pthread_t thread;
    int l, served, rc;
    conc_scope scope;
} branch;

static int serves_a_letter(int fd, void *arg)
{
    branch *b = arg;
    char c;
    CONC_TRY(conc_read_full(fd, &c, 1));
    if (c == 'q')
        conc_scope_cancel(&b->scope);
    else
        b->served++;
    return c == 'q' ? 0 : (int)conc_write(fd, &c, 1);
}

static int serves_in_a_scope(void *arg)
{
    branch *b = arg;
    conc_server s = {.fd = b->l, .handler = serves_a_letter, .arg = b};
    CONC_TRY(conc_scope_begin(&b->scope, CONC_FOREVER));
    b->rc = conc_serve(&s);
    return conc_scope_end(&b->scope, b->rc);
}

static void *runs_a_branch(void *arg)
{
    CHECK_INT(conc_run(serves_in_a_scope, arg), 0);
    return NULL;
}

REAL_IO_TEST(two_loops_in_two_threads_serve_one_listener)
{
    enum { LETTERS = 100 };
    door d;
    branch b[2];
    open_door(&d, DOOR_CONC);
    for (int i = 0; i < 2; i++) {
        b[i] = (branch){.l = d.l};
        CHECK_INT(pthread_create(&b[i].thread, NULL, runs_a_branch, &b[i]), 0);
    }
    for (int i = 0; i < LETTERS + 2; i++) {
        int fd = conc_dial(d.where);
        CHECK(fd >= 0);
        CHECK_INT(conc_write(fd, i < LETTERS ? "x" : "q", 1), 1);
        CHECK_INT(conc_read_full(fd, room, 2), i < LETTERS);
        CHECK_INT(conc_close(fd), 0);
    }
    for (int i = 0; i < 2; i++) {
        CHECK_INT(pthread_join(b[i].thread, NULL), 0);
        CHECK_INT(b[i].rc, -ECANCELED);
    }
    CHECK_INT(b[0].served + b[1].served, LETTERS);
    CHECK_INT(conc_close(d.l), 0);
}

/* ---- names ---- */

static char served_name[64];

static int keeps_its_name(int fd, void *arg)
{
    (void)arg;
    snprintf(served_name, sizeof served_name, "%s", conc_name(conc_self()));
    return conc_fail(-EPROTO, "not a greeting %d", fd);
}

static char failed_task[64];

static void keep_failure(const conc_failure *f, void *user)
{
    (void)user;
    snprintf(failed_task, sizeof failed_task, "%s", f->task);
    CHECK_CONTAINS(f->text, "not a greeting");
}

static int serves_one(void *name)
{
    door d;
    conc_group g = {0};
    serving v = {.server = {.handler = keeps_its_name, .name = name}};
    open_door(&d, DOOR_CONC);
    v.server.fd = d.l;
    CHECK_INT(conc_spawn_task(&g, &v.task, serves, &v), 0);
    int fd = knock(&d);
    while (!*failed_task)
        CHECK_INT(conc_sleep(0.001), 0);
    CHECK_INT(close(fd), 0);
    CHECK_INT(conc_close(d.l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    return 0;
}

static void check_served_name(const char *given, bool debug, const char *name)
{
    conc_options o = {.debug = debug, .on_error = keep_failure};
    served_name[0] = failed_task[0] = 0;
    CHECK_INT(conc_run_with(&o, serves_one, (void *)(uintptr_t)given), 0);
    CHECK_CONTAINS(served_name, name);
    CHECK_STR(failed_task, served_name);
}

TEST(served_tasks_have_a_name)
{
    bool debug = getenv("CONC_DEBUG") != NULL;
    unsetenv("CONC_CLOCK");
    check_served_name("greeter", false, "greeter");
    check_served_name("greeter", true, "greeter");
    check_served_name(NULL, debug, debug ? "keeps_its_name" : "a connection of conc_serve at ");
#ifdef __linux__
    check_served_name(NULL, true, "keeps_its_name");
#endif
}
