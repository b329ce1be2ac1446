/* test_http.c - http.h: the server half of HTTP/1.1, with raw bytes for malicious requests, over
 * Unix sockets, TCP and a transport, and with curl and Python's http.client as real clients.
 *
 * Needs -lhttp_parser
 */
#define TEST_SYNC
#define TEST_POOL
#include "../conc_test.h"

#include "http.h"

#include <sys/resource.h>
#include <sys/socket.h>

static int expected_failure; /* of one task, which clears it */

static void told(const conc_failure *f, void *user)
{
    (void)user;
    if (f->rc == expected_failure)
        expected_failure = 0;
    else
        test_fail(__FILE__, __LINE__, "%s (%s): %s", f->task, f->place, f->text);
}

/* Runs it on the virtual clock; no error may remain, and no descriptor may be leaked. */
static void http_test_run(void (*body)(void))
{
    test_task t = {body};
    conc_options options = {.virtual_clock = true, .on_error = told};
    int fds = test_count_fds();
    CHECK_INT(conc_run_with(&options, test_call_body, &t), 0);
    CHECK_INT(test_count_fds(), fds);
    CHECK_INT(expected_failure, 0);
}

#define HTTP_TEST(name)                           \
    static void body_of_##name(void);             \
    TEST(name) { http_test_run(body_of_##name); } \
    static void body_of_##name(void)

/* ---- a server in a task, and its client ---- */

enum { PLENTY = 300000 };

/* One connection: the server's half runs in a task, the client's in the test. */
typedef struct peer {
    http_connection http; /* options may be set before peer_open */
    conc_stream stream;
    int fd; /* the client's end */
    int (*answer)(http_connection *h, void *arg);
    void *arg;
    conc_group group;
    conc_task task;
    int rc;            /* result of http_serve */
    int refused;       /* as http_close found it */
    char error[160];   /* the same */
    int close_rc;      /* result of http_close */
    int server_fd;     /* the server's end */
    bool on_transport; /* the stream is on `pipes` */
} peer;

static ssize_t pass_read(void *self, void *buf, size_t n)
{
    return conc_read(*(int *)self, buf, n);
}
static ssize_t pass_write(void *self, const void *buf, size_t n)
{
    return conc_write(*(int *)self, buf, n < 100 ? n : 100);
}
static int pass_shutdown(void *self) { return shutdown(*(int *)self, SHUT_WR) ? -errno : 0; }
static int pass_close(void *self) { return conc_close(*(int *)self); }
static const conc_transport pipes = {pass_read, pass_write, pass_shutdown, pass_close};

static int serve_peer(void *arg)
{
    peer *p = arg;
    p->rc = http_serve(&p->http, p->answer, p->arg);
    p->refused = p->http.refused;
    memcpy(p->error, p->http.error, sizeof p->error);
    p->close_rc = http_close(&p->http);
    return 0;
}

/* Connects, but does not serve. */
static void peer_connect(peer *p)
{
    int ends[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    p->fd = ends[0];
    p->server_fd = ends[1];
    p->http.stream = &p->stream;
    if (p->on_transport)
        CHECK_INT(conc_stream_open_on(&p->stream, &pipes, &p->server_fd), 0);
    else
        CHECK_INT(conc_stream_open(&p->stream, ends[1]), 0);
}

static void peer_open(peer *p)
{
    peer_connect(p);
    CHECK_INT(conc_spawn_task(&p->group, &p->task, serve_peer, p), 0);
}

static void peer_say(peer *p, const char *text)
{
    CHECK_INT(conc_write_full(p->fd, text, strlen(text)), strlen(text));
}

/* Returns what the server has sent when it sends no more for now. */
static const char *peer_hear(peer *p)
{
    static char heard[PLENTY];
    size_t n = 0;
    CHECK_INT(conc_settle(), 0);
    for (;;) {
        ssize_t got = recv(p->fd, heard + n, sizeof heard - 1 - n, MSG_DONTWAIT);
        if (got <= 0)
            break;
        n += (size_t)got;
        CHECK_INT(conc_settle(), 0);
    }
    heard[n] = 0;
    return heard;
}

/* Returns what the server sends until it closes, after the client has ended its half. */
static const char *peer_finish(peer *p)
{
    static char heard[PLENTY];
    shutdown(p->fd, SHUT_WR);
    ssize_t n = conc_read_full(p->fd, heard, sizeof heard - 1);
    if (n == -ECONNRESET)
        n = 0;
    CHECK(n >= 0);
    heard[n] = 0;
    CHECK_INT(conc_close(p->fd), 0);
    CHECK_INT(conc_group_wait(&p->group), 0);
    return heard;
}

/* Sends this on a new connection, and returns all answers. */
static const char *peer_exchange(peer *p, const char *bytes, size_t n)
{
    peer_open(p);
    ssize_t said = conc_write_full(p->fd, bytes, n);
    CHECK(said == (ssize_t)n || said == -EPIPE);
    return peer_finish(p);
}

static int count_of(const char *text, const char *part)
{
    int n = 0;
    for (; (text = strstr(text, part)); text++)
        n++;
    return n;
}

static const char *body_of(const char *response)
{
    const char *end = strstr(response, "\r\n\r\n");
    CHECK(end != NULL);
    return end + 4;
}

/* ---- answers ---- */

/* "METHOD path|query|body" */
static int echo(http_connection *h, void *arg)
{
    char *body;
    (void)arg;
    CONC_TRY(http_body(h, &body));
    note(h->target);
    return http_printf(h, 200, "%s %s|%s|%s", h->method, h->path, h->query, body);
}

/* Answers without reading the body. */
static int hello(http_connection *h, void *arg)
{
    (void)arg;
    note(h->target);
    return http_respond(h, 200, "hello", 5);
}

static const char *echoed(const char *request)
{
    peer p = {.answer = echo};
    const char *response = peer_exchange(&p, request, strlen(request));
    CHECK_INT(p.rc, 0);
    CHECK_INT(p.close_rc, 0);
    CHECK_STR(p.error, "");
    return response;
}

/* ---- requests that are served ---- */

HTTP_TEST(a_request_has_its_parts_and_gets_its_answer)
{
    const char *r =
        echoed("POST /a%20b/c?d=e&f HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    CHECK_STR(r, "HTTP/1.1 200 OK\r\n"
                 "Content-Type: text/plain; charset=utf-8\r\n"
                 "Content-Length: 25\r\n"
                 "\r\n"
                 "POST /a%20b/c|d=e&f|hello");
}

HTTP_TEST(requests_come_one_after_the_other_and_all_at_once)
{
    peer p = {.answer = echo};
    peer_open(&p);
    peer_say(&p, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n");
    CHECK_STR(body_of(peer_hear(&p)), "GET /1||");
    peer_say(&p, "POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
                 "POST /3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                 "3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n"
                 "\r\nGET /4 HTTP/1.1\r\nHost: x\r\n\r\n");
    const char *heard = peer_hear(&p);
    CHECK_INT(count_of(heard, "HTTP/1.1 200 OK\r\n"), 3);
    CHECK_CONTAINS(heard, "POST /2||abcHTTP/1.1");
    CHECK_CONTAINS(heard, "POST /3||abc0123456789HTTP/1.1");
    CHECK_CONTAINS(heard, "GET /4||");
    CHECK_STR(peer_finish(&p), "");
    CHECK_INT(p.rc, 0);
    CHECK_STR(noted, "/1 /2 /3 /4");
}

HTTP_TEST(a_request_may_arrive_in_any_pieces)
{
    static const char request[] =
        "\r\nPOST /a?b HTTP/1.1\r\nHost:x \r\nTransfer-Encoding: chunked\r\n"
        "Empty:\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\nT: t\r\n\r\n";
    peer p = {.answer = echo};
    peer_open(&p);
    for (size_t i = 0; i < sizeof request - 1; i++) {
        CHECK_INT(conc_write(p.fd, request + i, 1), 1);
        CHECK_INT(conc_settle(), 0);
    }
    CHECK_STR(body_of(peer_finish(&p)), "POST /a|b|hello!");
    CHECK_INT(p.rc, 0);
}

HTTP_TEST(a_transport_works_like_a_descriptor)
{
    peer p = {.answer = echo, .on_transport = true};
    const char request[] = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
                           "GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    const char *heard = peer_exchange(&p, request, sizeof request - 1);
    CHECK_CONTAINS(heard, "POST /a||hello");
    CHECK_STR(strstr(heard, "GET /b"), "GET /b||");
    CHECK_INT(p.rc, 0);
    CHECK_INT(p.close_rc, 0);
}

static int see_head(http_connection *h, void *arg)
{
    (void)arg;
    CHECK_INT(h->header_count, 4);
    CHECK_STR(h->headers[1].name, "X-Thing");
    CHECK_STR(h->headers[1].value, "one \t two");
    CHECK_STR(h->headers[3].value, "");
    CHECK_STR(http_header(h, "x-thing"), "one \t two");
    CHECK_STR(http_header(h, "HOST"), "h:1");
    CHECK(http_header(h, "x-thin") == NULL);
    CHECK(http_header(h, NULL) == NULL);
    CHECK(h->upgrade == NULL);
    CHECK_INT(h->minor, 1);
    CHECK_INT(h->length, 0);
    CHECK_STR(h->host, "h:1");
    return hello(h, arg);
}

HTTP_TEST(headers_are_found_in_any_case)
{
    peer p = {.answer = see_head};
    const char request[] =
        "GET / HTTP/1.1\r\nHost: h:1\r\nX-Thing: \t one \t two \t \r\nx-thing: 2\r\nEmpty:\r\n\r\n";
    CHECK_STR(body_of(peer_exchange(&p, request, sizeof request - 1)), "hello");
    CHECK_INT(p.rc, 0);
}

static int see_target(http_connection *h, void *arg)
{
    (void)arg;
    return http_printf(h, 200, "%s %s %s %s", h->method, h->host, h->path, h->query);
}

static const char *target_seen(const char *method, const char *target)
{
    char request[300];
    peer p = {.answer = see_target};
    int n = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: h\r\n\r\n", method, target);
    const char *heard = peer_exchange(&p, request, (size_t)n);
    return body_of(heard);
}

HTTP_TEST(targets_of_all_forms)
{
    CHECK_STR(target_seen("GET", "/"), "GET h / ");
    CHECK_STR(target_seen("GET", "/?"), "GET h / ");
    CHECK_STR(target_seen("GET", "//a?b?c"), "GET h //a b?c");
    CHECK_STR(target_seen("OPTIONS", "*"), "OPTIONS h * ");
    CHECK_STR(target_seen("GET", "http://other:80/p?q"), "GET other:80 /p q");
    CHECK_STR(target_seen("GET", "http://[::1]:80?q"), "GET [::1]:80 / q");
    CHECK_STR(target_seen("CONNECT", "other:443"), "CONNECT other:443 / ");
    CHECK_STR(target_seen("M-SEARCH", "/x#fragment"), "M-SEARCH h /x ");
    CHECK_CONTAINS(target_seen("GET", "http://user@other/"), "the target is malformed");
    CHECK_CONTAINS(target_seen("GET", "http:///x"), "the target is malformed");
    CHECK_CONTAINS(target_seen("GET", "x"), "invalid URL");
    CHECK_CONTAINS(target_seen("CONNECT", "other"), "the target is malformed");
}

HTTP_TEST(the_connection_ends_when_the_client_says_so_and_with_HTTP_1_0)
{
    const char *more = "GET /2 HTTP/1.1\r\nHost: x\r\n\r\n";
    const char *const last[] = {"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n",
                                "GET /1 HTTP/1.0\r\n\r\n",
                                "CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n"};
    for (size_t i = 0; i < CONC_LEN(last); i++) {
        char request[300];
        snprintf(request, sizeof request, "%s%s", last[i], more);
        const char *heard = echoed(request);
        CHECK_INT(count_of(heard, "HTTP/1.1 200 OK"), 1);
        CHECK_CONTAINS(heard, "\r\nConnection: close\r\n");
    }
    const char *heard = echoed("GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
                               "GET /2 HTTP/1.0\r\n\r\n");
    CHECK_INT(count_of(heard, "HTTP/1.1 200 OK"), 2);
    CHECK_INT(count_of(heard, "Connection: keep-alive"), 1);
    CHECK_INT(count_of(heard, "Connection: close"), 1);
}

HTTP_TEST(an_unread_body_is_skipped_if_it_is_small)
{
    static char request[200000];
    const char *next = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";
    peer small = {.answer = hello}, chunked = {.answer = hello}, large = {.answer = hello};
    size_t n =
        (size_t)sprintf(request, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n");
    memset(request + n, 'x', 20000);
    strcpy(request + n + 20000, next);
    CHECK_INT(count_of(peer_exchange(&small, request, strlen(request)), "hello"), 2);
    n = (size_t)sprintf(request,
                        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                        "5\r\nGET /\r\n0\r\n\r\n%s",
                        next);
    CHECK_INT(count_of(peer_exchange(&chunked, request, n), "hello"), 2);
    n = (size_t)sprintf(request, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
    memset(request + n, 'x', 100000);
    strcpy(request + n + 100000, next);
    const char *heard = peer_exchange(&large, request, strlen(request));
    CHECK_INT(count_of(heard, "hello"), 1);
    CHECK_CONTAINS(heard, "Connection: close\r\n");
    CHECK_STR(noted, "/ /next / /next /");
}

static int nothing(http_connection *h, void *arg)
{
    (void)h, (void)arg;
    return 0;
}

HTTP_TEST(an_unanswered_request_is_an_error_and_its_client_gets_500)
{
    peer p = {.answer = nothing};
    const char *heard = peer_exchange(&p, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n", 28);
    CHECK_CONTAINS(heard, "HTTP/1.1 500 Internal Server Error\r\n");
    CHECK_CONTAINS(heard, "Connection: close\r\n");
    CHECK_INT(p.rc, -EINVAL);
    CHECK_STR(p.error, "GET /a was not answered");
}

static int fails(http_connection *h, void *arg)
{
    (void)h;
    return conc_fail(*(int *)arg, "the database is gone");
}

HTTP_TEST(an_answer_that_fails_is_500_or_503_and_its_error_is_returned)
{
    int error = -EIO;
    peer p = {.answer = fails, .arg = &error};
    const char *two = "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n";
    const char *heard = peer_exchange(&p, two, strlen(two));
    CHECK_INT(count_of(heard, "HTTP/1.1 500 Internal"), 1);
    CHECK_CONTAINS(heard, "Connection: close\r\n");
    CHECK_INT(p.rc, -EIO);
    CHECK_STR(conc_last_error(), "");
    error = -ETIMEDOUT;
    peer q = {.answer = fails, .arg = &error};
    CHECK_CONTAINS(peer_exchange(&q, two, strlen(two)), "HTTP/1.1 503 Service Unavailable\r\n");
    CHECK_INT(q.rc, -ETIMEDOUT);
}

/* ---- refused requests ---- */

#define HEAD "POST /first HTTP/1.1\r\nHost: x\r\n"
#define CHUNKED HEAD "Transfer-Encoding: chunked\r\n\r\n"
#define SMUGGLED "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

typedef struct evil {
    const char *bytes;
    size_t n; /* 0: a string */
    int status;
    const char *why;
} evil;

#define EVIL(text, status, why)            \
    {                                      \
        text, sizeof text - 1, status, why \
    }

static const evil evils[] = {
    /* where the body ends */
    EVIL(HEAD "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
         "content-length"),
    EVIL(HEAD "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400,
         "content-length"),
    EVIL(HEAD "Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", 400,
         "content-length"),
    EVIL(HEAD "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "content-length"),
    EVIL(HEAD "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400, "content-length"),
    EVIL(HEAD "Content-Length: 5, 5\r\n\r\nhello", 400, "content-length"),
    EVIL(HEAD "Content-Length: +5\r\n\r\nhello", 400, "content-length"),
    EVIL(HEAD "Content-Length: -5\r\n\r\nhello", 400, "content-length"),
    EVIL(HEAD "Content-Length: 0x5\r\n\r\nhello", 400, "content-length"),
    EVIL(HEAD "Content-Length: 5 5\r\n\r\nhello", 400, "content-length"),
    EVIL(HEAD "Content-Length: \r\n\r\nhello", 400, "content-length"),
    EVIL(HEAD "Content-Length: 5;\r\n\r\nhello", 400, "content-length"),
    EVIL(HEAD "Content-Length: 99999999999999999999999\r\n\r\nhello", 400, "content-length"),
    EVIL(HEAD "Content-Length: 18446744073709551600\r\n\r\nhello", 413, "too large"),
    EVIL(HEAD "Content-Length : 5\r\n\r\nhello", 400, "no name, or a bad one"),
    EVIL(HEAD "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400, "no name, or a bad one"),
    EVIL(HEAD "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400, "no name, or a bad one"),
    EVIL(HEAD "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
         "twice"),
    EVIL(HEAD "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n", 400,
         "transfer-encoding"),
    EVIL(HEAD "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "twice"),
    EVIL(HEAD "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400, "transfer-encoding"),
    EVIL(HEAD "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "transfer-encoding"),
    EVIL(HEAD "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400, "transfer-encoding"),
    EVIL(HEAD "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400, "folded"),
    EVIL(HEAD "Transfer-Encoding: \x0b"
              "chunked\r\n\r\n0\r\n\r\n",
         400, "control characters"),
    EVIL(HEAD "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "other than chunked"),
    EVIL(HEAD "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400, "transfer-encoding"),
    EVIL("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "HTTP/1.0"),
    /* lines */
    EVIL("GET / HTTP/1.1\nHost: x\r\n\r\n", 400, "CRLF"),
    EVIL("GET / HTTP/1.1\r\nHost: x\n\r\n", 400, "CRLF"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\n\n", 400, "CRLF"),
    EVIL("\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "control characters"),
    EVIL("\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "no method"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400, "control characters"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\r\n\r\n", 400, "control characters"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", 400, "control characters"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\nA: b\x7f\r\n\r\n", 400, "control characters"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\nA\0b: c\r\n\r\n", 400, "control characters"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n", 400, "no name, or a bad one"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\nA\nb: c\r\n\r\n", 400, "CRLF"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", 400, "no name, or a bad one"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\n: c\r\n\r\n", 400, "no name, or a bad one"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\n\xc3\xa4: c\r\n\r\n", 400, "no name, or a bad one"),
    EVIL("GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400, "folded"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\n\tfolded\r\n\r\n", 400, "folded"),
    /* the request line */
    EVIL("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad target"),
    EVIL("GET /  HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad target"),
    EVIL("GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400, "version"),
    EVIL(" GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "no method"),
    EVIL("GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "no method"),
    EVIL("GET /\t HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad target"),
    EVIL("GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad target"),
    EVIL("GET /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad target"),
    EVIL("GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "control characters"),
    EVIL("GET /\r\n\r\n", 400, "no version"),
    EVIL("GET / HTTX/1.1\r\nHost: x\r\n\r\n", 400, "no version"),
    EVIL("GET / http/1.1\r\nHost: x\r\n\r\n", 400, "no version"),
    EVIL("GET / HTTP/1.10\r\nHost: x\r\n\r\n", 400, "version"),
    EVIL("GET / HTTP/1,1\r\nHost: x\r\n\r\n", 400, "version"),
    EVIL("GET / HTTP/x.1\r\nHost: x\r\n\r\n", 400, "version"),
    EVIL("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, "version"),
    EVIL("SOURCE / ICE/1.1\r\nHost: x\r\n\r\n", 400, "no version"),
    EVIL("BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", 501, "method"),
    EVIL("get / HTTP/1.1\r\nHost: x\r\n\r\n", 501, "method"),
    EVIL("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400, "CRLF"),
    /* hosts and expectations */
    EVIL("GET / HTTP/1.1\r\n\r\n", 400, "no Host"),
    EVIL("GET / HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n", 400, "more than one"),
    EVIL("GET / HTTP/1.0\r\nHost: x\r\nhost: x\r\n\r\n", 400, "more than one"),
    EVIL(HEAD "Expect: coffee\r\n\r\n", 417, "Expect"),
    /* chunks */
    EVIL(CHUNKED "5 \r\nhello\r\n0\r\n\r\n", 400, "bad size"),
    EVIL(CHUNKED " 5\r\nhello\r\n0\r\n\r\n", 400, "bad size"),
    EVIL(CHUNKED "+5\r\nhello\r\n0\r\n\r\n", 400, "bad size"),
    EVIL(CHUNKED "-5\r\nhello\r\n0\r\n\r\n", 400, "bad size"),
    EVIL(CHUNKED "0x5\r\nhello\r\n0\r\n\r\n", 400, "bad size"),
    EVIL(CHUNKED "\r\nhello\r\n0\r\n\r\n", 400, "bad size"),
    EVIL(CHUNKED ";x\r\nhello\r\n0\r\n\r\n", 400, "bad size"),
    EVIL(CHUNKED "g\r\nhello\r\n0\r\n\r\n", 400, "bad size"),
    EVIL(CHUNKED "5\nhello\r\n0\r\n\r\n", 400, "CRLF"),
    EVIL(CHUNKED "5;a\nhello\r\n0\r\n\r\n", 400, "CRLF"),
    EVIL(CHUNKED "5;a\rb\r\nhello\r\n0\r\n\r\n", 400, "control characters"),
    EVIL(CHUNKED "5\r\nhello0\r\n\r\n", 400, "does not end where it should"),
    EVIL(CHUNKED "5\r\nhello\n0\r\n\r\n", 400, "CRLF"),
    EVIL(CHUNKED "4\r\nhello\r\n0\r\n\r\n", 400, "does not end where it should"),
    EVIL(CHUNKED "5\r\nhell\r\n0\r\n\r\n", 400, "CRLF"),
    EVIL(CHUNKED "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n", 400, "content-length"),
    EVIL(CHUNKED "10000000000000005\r\nhello\r\n0\r\n\r\n", 400, "content-length"),
    EVIL(CHUNKED "0\r\n folded\r\n\r\n", 400, "folded"),
    EVIL(CHUNKED "0\r\nno colon\r\n\r\n", 400, "no name, or a bad one"),
    EVIL(CHUNKED "0\r\nA: \0\r\n\r\n", 400, "control characters"),
    EVIL(CHUNKED "0\r\nA: b\n\r\n", 400, "CRLF"),
};

static void check_refused(const evil *e, const char *heard, const peer *p)
{
    char status[40], words[80];
    snprintf(status, sizeof status, "HTTP/1.1 %d ", e->status);
    snprintf(words, sizeof words, "refused with %d: ", e->status);
    bool right = strncmp(heard, status, strlen(status)) == 0 && strstr(heard, e->why);
    if (!right)
        test_fail(__FILE__, __LINE__, "not %d for\n%s\nbut\n%s", e->status, e->bytes, heard);
    CHECK_CONTAINS(body_of(heard), e->why);
    CHECK_INT(count_of(heard, "HTTP/1.1 "), 1);
    CHECK_CONTAINS(heard, "Connection: close\r\n");
    CHECK_INT(p->rc, 0);
    CHECK_INT(p->close_rc, 0);
    CHECK_INT(p->refused, e->status);
    CHECK_CONTAINS(p->error, words);
    CHECK_CONTAINS(p->error, e->why);
}

static void check_evil(const evil *e, bool on_transport)
{
    char request[1000];
    peer p = {.answer = echo, .on_transport = on_transport};
    memcpy(request, e->bytes, e->n);
    memcpy(request + e->n, SMUGGLED, sizeof SMUGGLED - 1);
    check_refused(e, peer_exchange(&p, request, e->n + sizeof SMUGGLED - 1), &p);
}

HTTP_TEST(ambiguous_requests_are_refused)
{
    for (size_t i = 0; i < CONC_LEN(evils); i++)
        check_evil(&evils[i], i % 2);
    CHECK_STR(noted, "");
}

/* A body that the handler does not read is checked before the next request. */
HTTP_TEST(an_unread_malformed_body_ends_the_connection)
{
    peer p = {.answer = hello};
    static const char request[] = CHUNKED "5 \r\nhello\r\n0\r\n\r\n" SMUGGLED;
    const char *heard = peer_exchange(&p, request, sizeof request - 1);
    CHECK_INT(count_of(heard, "HTTP/1.1 "), 1);
    CHECK_INT(p.rc, 0);
    CHECK_INT(p.refused, 400);
    CHECK_STR(noted, "/first");
}

HTTP_TEST(a_request_that_is_cut_short_is_refused_and_one_that_never_came_is_not)
{
    static const char whole[] = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                                "5\r\nhello\r\n0\r\n\r\n";
    for (size_t n = 0; n < sizeof whole - 1; n++) {
        peer p = {.answer = echo};
        const char *heard = peer_exchange(&p, whole, n);
        CHECK_INT(p.rc, 0);
        CHECK_INT(p.refused, n ? 400 : 0);
        CHECK_INT(count_of(heard, "HTTP/1.1 400 Bad Request"), n != 0);
        CHECK_INT(count_of(heard, "HTTP/1.1 "), n != 0);
    }
    CHECK_STR(noted, "");
}

/* ---- size limits ---- */

/* A request whose line, headers or body have exactly this size. */
static size_t sized_request(char *to, size_t line, size_t header, size_t headers, size_t body)
{
    char *at = to;
    at += sprintf(at, "POST /");
    for (size_t i = strlen("POST / HTTP/1.1\r\n"); i < line; i++)
        *at++ = 'x';
    at += sprintf(at, " HTTP/1.1\r\nHost: x\r\n");
    for (size_t i = 0; i < headers; i++) {
        at += sprintf(at, "X: ");
        memset(at, 'y', header);
        at += header;
        at += sprintf(at, "\r\n");
    }
    if (body)
        at += sprintf(at, "Content-Length: %zu\r\n", body);
    at += sprintf(at, "\r\n");
    memset(at, 'z', body);
    return (size_t)(at + body - to);
}

static int sized_status(peer p, size_t line, size_t header, size_t headers, size_t body)
{
    static char request[400000];
    int status = 0;
    p.answer = echo;
    size_t n = sized_request(request, line, header, headers, body);
    const char *heard = peer_exchange(&p, request, n);
    CHECK_INT(sscanf(heard, "HTTP/1.1 %d ", &status), 1);
    CHECK_INT(p.rc, 0);
    CHECK_INT(p.refused, status == 200 ? 0 : status);
    return status;
}

HTTP_TEST(each_size_has_a_limit)
{
    const peer plain = {.fd = 0}, strict = {.http = {.max_request_line = 50,
                                                     .max_head = 200,
                                                     .max_headers = 3,
                                                     .max_body = 10}};
    CHECK_INT(sized_status(plain, 8192, 0, 0, 0), 200);
    CHECK_INT(sized_status(plain, 8193, 0, 0, 0), 414);
    CHECK_INT(sized_status(plain, 20, 0, 99, 0), 200);
    CHECK_INT(sized_status(plain, 20, 0, 100, 0), 431);
    CHECK_INT(sized_status(plain, 20, 16384 - 20 - 9 - 2 - 5, 1, 0), 200);
    CHECK_INT(sized_status(plain, 20, 16384 - 20 - 9 - 2 - 4, 1, 0), 431);
    CHECK_INT(sized_status(plain, 20, 100000, 1, 0), 431);
    CHECK_INT(sized_status(plain, 100000, 0, 0, 0), 414);
    CHECK_INT(sized_status(plain, 20, 0, 0, 200000), 200);
    CHECK_INT(sized_status(strict, 50, 0, 2, 0), 200);
    CHECK_INT(sized_status(strict, 51, 0, 0, 0), 414);
    CHECK_INT(sized_status(strict, 20, 0, 3, 0), 431);
    CHECK_INT(sized_status(strict, 20, 200, 1, 0), 431);
    CHECK_INT(sized_status(strict, 20, 0, 0, 10), 200);
    CHECK_INT(sized_status(strict, 20, 0, 0, 11), 413);
    const peer roomy = {.http = {.max_request_line = 100000, .max_head = 300000}};
    CHECK_INT(sized_status(roomy, 65000, 0, 0, 0), 200);
    CHECK_INT(sized_status(roomy, 20, 60000, 1, 0), 200);
    CHECK_INT(sized_status(roomy, 20, 60000, 2, 0), 431); /* the parser's own limit */
    const peer narrow = {.stream = {.limit = 100}};
    CHECK_INT(sized_status(narrow, 90, 80, 1, 0), 200);
    CHECK_INT(sized_status(narrow, 110, 0, 0, 0), 414);
    CHECK_INT(sized_status(narrow, 20, 110, 1, 0), 431);
}

HTTP_TEST(a_chunked_body_has_the_same_limit_and_so_do_its_lines)
{
    static char request[200000];
    peer body = {.http.max_body = 10, .answer = echo}, just = body, line = {.answer = echo},
         trailers = {.answer = echo};
    static const char eleven[] = CHUNKED "6\r\n123456\r\n5\r\n78901\r\n0\r\n\r\n",
                      ten[] = CHUNKED "6\r\n123456\r\n4\r\n7890\r\n0\r\n\r\n";
    check_refused(&(evil){"", 0, 413, "too large"}, peer_exchange(&body, eleven, sizeof eleven - 1),
                  &body);
    CHECK_STR(body_of(peer_exchange(&just, ten, sizeof ten - 1)), "POST /first||1234567890");
    size_t n = (size_t)sprintf(request, CHUNKED "5;");
    memset(request + n, 'x', 300);
    strcpy(request + n + 300, "\r\nhello\r\n0\r\n\r\n");
    check_refused(&(evil){"", 0, 400, "bad size"}, peer_exchange(&line, request, strlen(request)),
                  &line);
    n = (size_t)sprintf(request, CHUNKED "0\r\n");
    for (int i = 0; i < 3000; i++)
        n += (size_t)sprintf(request + n, "T: t\r\n");
    n += (size_t)sprintf(request + n, "\r\n");
    check_refused(&(evil){"", 0, 400, "trailers"}, peer_exchange(&trailers, request, n), &trailers);
}

HTTP_TEST(expect_100_continue_is_answered_only_if_the_body_is_wanted)
{
    const char *head = "POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\n"
                       "Content-Length: 5\r\n\r\n";
    peer wanted = {.answer = echo}, unwanted = {.answer = hello},
         too_large = {.http.max_body = 4, .answer = echo};
    peer_open(&wanted);
    peer_say(&wanted, head);
    CHECK_STR(peer_hear(&wanted), "HTTP/1.1 100 Continue\r\n\r\n");
    peer_say(&wanted, "hello");
    CHECK_STR(body_of(peer_hear(&wanted)), "POST /a||hello");
    CHECK_STR(peer_finish(&wanted), "");
    peer_open(&unwanted);
    peer_say(&unwanted, head);
    const char *heard = peer_finish(&unwanted);
    CHECK_INT(count_of(heard, "HTTP/1.1 "), 1);
    CHECK_CONTAINS(heard, "HTTP/1.1 200 OK\r\n");
    CHECK_CONTAINS(heard, "Connection: close\r\n");
    peer_open(&too_large);
    peer_say(&too_large, head);
    heard = peer_finish(&too_large);
    CHECK_INT(count_of(heard, "HTTP/1.1 "), 1);
    CHECK_CONTAINS(heard, "HTTP/1.1 413 Payload Too Large\r\n");
}

/* ---- time limits, on the virtual clock ---- */

HTTP_TEST(a_connection_without_a_request_ends_after_the_idle_limit)
{
    peer p = {.answer = hello};
    peer_open(&p);
    CHECK_INT(conc_join(&p.task, NULL), 0);
    CHECK_TIME(60);
    CHECK_INT(p.rc, 0);
    CHECK_INT(p.refused, 0);
    CHECK_STR(peer_finish(&p), "");
    peer q = {.http.idle_timeout = 5, .answer = hello};
    peer_open(&q);
    CHECK_INT(conc_sleep(4), 0);
    peer_say(&q, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    CHECK_STR(body_of(peer_hear(&q)), "hello");
    CHECK_INT(conc_join(&q.task, NULL), 0);
    CHECK_TIME(69);
    CHECK_STR(peer_finish(&q), "");
}

HTTP_TEST(a_client_that_sends_its_head_byte_by_byte_is_refused_in_time)
{
    peer p = {.answer = hello};
    peer_open(&p);
    for (int i = 0; i < 9; i++) {
        CHECK_INT(conc_write(p.fd, &"GET /lor"[i % 8], 1), 1);
        CHECK_INT(conc_sleep(1), 0);
    }
    CHECK(!conc_done(&p.task));
    CHECK_INT(conc_sleep(1.5), 0);
    CHECK_CONTAINS(peer_finish(&p), "HTTP/1.1 408 Request Timeout\r\n");
    CHECK_INT(p.refused, 408);
    CHECK_INT(p.rc, 0);
}

HTTP_TEST(the_limit_of_a_head_covers_all_its_lines)
{
    peer p = {.http.head_timeout = 3, .answer = hello};
    peer_open(&p);
    peer_say(&p, "GET / HTTP/1.1\r\n");
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_sleep(1), 0);
        peer_say(&p, "A: b\r\n");
    }
    CHECK_INT(conc_sleep(0.9), 0);
    CHECK_STR(peer_hear(&p), "");
    CHECK_INT(conc_sleep(0.2), 0);
    CHECK_CONTAINS(peer_finish(&p), "HTTP/1.1 408 Request Timeout\r\n");
}

HTTP_TEST(a_body_that_stalls_is_refused_and_one_that_is_slow_is_not)
{
    peer p = {.http.stall_timeout = 5, .answer = echo}, q = p;
    peer_open(&p);
    peer_say(&p, HEAD "Content-Length: 4\r\n\r\n");
    for (int i = 0; i < 4; i++) {
        CHECK_INT(conc_sleep(4), 0);
        peer_say(&p, "x");
    }
    CHECK_STR(body_of(peer_finish(&p)), "POST /first||xxxx");
    peer_open(&q);
    peer_say(&q, CHUNKED "4\r\nxx");
    CHECK_INT(conc_sleep(5.5), 0);
    CHECK_CONTAINS(peer_finish(&q), "HTTP/1.1 408 Request Timeout\r\n");
    CHECK_INT(q.refused, 408);
}

static int large(http_connection *h, void *arg)
{
    static char data[PLENTY - 1000];
    (void)arg;
    memset(data, 'L', sizeof data);
    int rc = http_respond(h, 200, data, sizeof data);
    note(conc_strerror(rc));
    return rc;
}

HTTP_TEST(a_client_that_does_not_read_is_dropped_and_one_that_is_slow_is_not)
{
    static char some[10000];
    peer p = {.http.stall_timeout = 5, .answer = large}, q = p;
    size_t total = 0;
    peer_open(&p);
    peer_say(&p, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    for (ssize_t n; (n = conc_read(p.fd, some, sizeof some)) > 0; total += (size_t)n)
        CHECK_INT(conc_sleep(1), 0);
    CHECK(total > PLENTY - 1000);
    CHECK(conc_now() > 10);
    CHECK_STR(peer_finish(&p), "");
    CHECK_INT(p.rc, 0);
    CHECK_STR(noted, "success");
    peer_open(&q);
    peer_say(&q, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    double start = conc_now();
    CHECK_INT(conc_join(&q.task, NULL), 0);
    CHECK(conc_now() >= start + 5 && conc_now() <= start + 15);
    CHECK_INT(q.rc, 0);
    CHECK_STR(q.error, "sending a response: the client stalled");
    conc_close(q.fd);
    CHECK_INT(conc_group_wait(&q.group), 0);
}

/* ---- responses ---- */

static int in_pieces(http_connection *h, void *arg)
{
    int64_t length = *(int64_t *)arg;
    CHECK_INT(http_set_header(h, "X-A", "1"), 0);
    CHECK_INT(http_set_header(h, "Set-Cookie", "a=b"), 0);
    CHECK_INT(http_set_header(h, "Set-Cookie", "c=d"), 0);
    CHECK_INT(http_begin(h, 201, length), 0);
    CHECK_INT(http_set_header(h, "X-Late", "1"), -EINVAL);
    CHECK_INT(http_write(h, "hello", 5), 0);
    CHECK_INT(http_write(h, NULL, 0), 0);
    CHECK_INT(http_write(h, " world and all", 14), 0);
    return 0; /* http_serve ends it */
}

static const char *pieces(const char *method, const char *version, int64_t length)
{
    char request[200];
    peer p = {.answer = in_pieces, .arg = &length};
    int n = snprintf(request, sizeof request,
                     "%s / HTTP/%s\r\nHost: x\r\n\r\n%s / HTTP/%s\r\n"
                     "Host: x\r\nConnection: close\r\n\r\n",
                     method, version, method, version);
    const char *heard = peer_exchange(&p, request, (size_t)n);
    CHECK_INT(p.rc, 0);
    return heard;
}

#define FIELDS "HTTP/1.1 201 Created\r\nX-A: 1\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n"
#define LAST "Connection: close\r\n"

HTTP_TEST(a_response_in_pieces_has_a_length_or_chunks_or_the_end_of_the_connection)
{
    CHECK_STR(pieces("GET", "1.1", 19),
              FIELDS "Content-Length: 19\r\n\r\nhello world and all" FIELDS
                     "Content-Length: 19\r\n" LAST "\r\nhello world and all");
    CHECK_STR(
        pieces("GET", "1.1", -1), FIELDS
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\ne\r\n world and all\r\n0\r\n\r\n" FIELDS
        "Transfer-Encoding: chunked\r\n" LAST "\r\n5\r\nhello\r\ne\r\n world and all\r\n0\r\n\r\n");
    CHECK_STR(pieces("GET", "1.0", -1), FIELDS LAST "\r\nhello world and all");
    CHECK_STR(pieces("HEAD", "1.1", 19),
              FIELDS "Content-Length: 19\r\n\r\n" FIELDS "Content-Length: 19\r\n" LAST "\r\n");
    CHECK_STR(pieces("HEAD", "1.1", -1), FIELDS "Transfer-Encoding: chunked\r\n\r\n" FIELDS
                                                "Transfer-Encoding: chunked\r\n" LAST "\r\n");
}

static int with_status(http_connection *h, void *arg)
{
    return http_respond(h, *(int *)arg, "text", 4);
}

HTTP_TEST(some_responses_have_no_body)
{
    const char *two = "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const char *const expected[] = {"HTTP/1.1 204 No Content\r\n\r\n",
                                    "HTTP/1.1 304 Not Modified\r\n\r\n",
                                    "HTTP/1.1 299 \r\nContent-Length: 4\r\n\r\ntext"};
    const int statuses[] = {204, 304, 299};
    for (size_t i = 0; i < 3; i++) {
        int status = statuses[i];
        char twice[200];
        peer p = {.answer = with_status, .arg = &status};
        snprintf(twice, sizeof twice, "%s%s", expected[i], expected[i]);
        CHECK_STR(peer_exchange(&p, two, strlen(two)), twice);
        CHECK_INT(p.rc, 0);
    }
}

static int wrong_length(http_connection *h, void *arg)
{
    bool too_many = *(bool *)arg;
    CHECK_INT(http_begin(h, 200, 5), 0);
    CHECK_INT(http_write(h, "1234", 4), 0);
    CHECK_INT(http_write(h, "567", 3), -EMSGSIZE);
    if (too_many)
        CHECK_INT(http_write(h, "5", 1), 0);
    int rc = http_end(h);
    CHECK_INT(rc, too_many ? 0 : -EINVAL);
    CHECK_INT(http_end(h), too_many ? -EINVAL : -EPIPE);
    note(h->error);
    return rc;
}

HTTP_TEST(a_length_is_kept)
{
    bool enough = true, missing = false;
    const char *two = "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n";
    peer p = {.answer = wrong_length, .arg = &enough},
         q = {.answer = wrong_length, .arg = &missing};
    CHECK_INT(count_of(peer_exchange(&p, two, strlen(two)), "\r\n\r\n12345"), 2);
    noted[0] = 0;
    CHECK_STR(peer_exchange(&q, two, strlen(two)), "");
    CHECK_INT(q.rc, -EINVAL);
    CHECK_STR(noted, "GET /: 1 bytes of the response are missing");
}

static int splits_responses(http_connection *h, void *arg)
{
    (void)arg;
    const char *const names[] = {"", "A:", "A B", "A\r\nB", "A\n", "\xc3\xa4", "A\x7f"};
    const char *const values[] = {"a\r\nSet-Cookie: evil", "a\nb", "a\rb", "\x01", "\x7f"};
    const char *const ours[] = {"content-length", "Transfer-Encoding", "CONNECTION"};
    for (size_t i = 0; i < CONC_LEN(names); i++)
        CHECK_INT(http_set_header(h, names[i], "v"), -EINVAL);
    for (size_t i = 0; i < CONC_LEN(values); i++)
        CHECK_INT(http_set_header(h, "A", values[i]), -EINVAL);
    for (size_t i = 0; i < CONC_LEN(ours); i++)
        CHECK_INT(http_set_header(h, ours[i], "1"), -EINVAL);
    CHECK_INT(http_set_header(h, NULL, "v"), -EINVAL);
    CHECK_INT(http_set_header(h, "A", NULL), -EINVAL);
    CHECK_INT(http_set_header(h, "A", ""), 0);
    CHECK_INT(http_set_header(h, "B", "\xc3\xa4 \t x"), 0);
    return http_respond(h, 200, NULL, 0);
}

HTTP_TEST(headers_of_a_response_cannot_split_it)
{
    peer p = {.answer = splits_responses};
    CHECK_STR(peer_exchange(&p, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27),
              "HTTP/1.1 200 OK\r\nA: \r\nB: \xc3\xa4 \t x\r\nContent-Length: 0\r\n\r\n");
    CHECK_INT(p.rc, 0);
}

static int out_of_order(http_connection *h, void *arg)
{
    char buf[8], *body;
    (void)arg;
    CHECK_INT(http_write(h, "x", 1), -EINVAL);
    CHECK_INT(http_end(h), -EINVAL);
    CHECK_INT(http_begin(h, 199, 0), -EINVAL);
    CHECK_INT(http_begin(h, 101, 0), -EINVAL);
    CHECK_INT(http_respond(h, 600, NULL, 0), -EINVAL);
    CHECK_STR(h->error, "");
    CHECK_CONTAINS(conc_last_error(), "the status is 600");
    CHECK_INT(http_respond(h, 200, NULL, 5), -EINVAL);
    CHECK_INT(http_upgrade(h, "x"), -EINVAL);
    CHECK_INT(http_upgrade(h, NULL), -EINVAL);
    CHECK_INT(http_read(h, NULL, 5), -EINVAL);
    CHECK_INT(http_read(h, buf, 0), -EINVAL);
    CHECK_INT(http_body(h, NULL), -EINVAL);
    CHECK_INT(http_read(h, buf, 2), 2);
    CHECK_INT(http_body(h, &body), 3);
    CHECK_STR(body, "llo");
    CHECK_INT(http_body(h, &body), 3);
    CHECK_INT(http_read(h, buf, 2), 0);
    CHECK_INT(http_begin(h, 200, -1), 0);
    CHECK_INT(http_begin(h, 200, -1), -EINVAL);
    CHECK_INT(http_respond(h, 200, "x", 1), -EINVAL);
    CHECK_INT(http_printf(h, 200, "x"), -EINVAL);
    CHECK_INT(http_write(h, NULL, 1), -EINVAL);
    CHECK_INT(http_write(h, "x", 1), 0);
    CHECK_INT(http_end(h), 0);
    CHECK_INT(http_write(h, "x", 1), -EINVAL);
    CHECK_INT(http_respond(h, 200, "x", 1), -EINVAL);
    return 0;
}

HTTP_TEST(invalid_arguments_and_calls_out_of_order_change_nothing)
{
    char *body, buf[4];
    http_connection none = {.stream = NULL};
    peer p = {.answer = out_of_order};
    const char request[] = HEAD "Content-Length: 5\r\n\r\nhello";
    CHECK_CONTAINS(peer_exchange(&p, request, sizeof request - 1), "\r\n\r\n1\r\nx\r\n0\r\n\r\n");
    CHECK_INT(p.rc, 0);
    CHECK_INT(http_next(NULL), -EINVAL);
    CHECK_INT(http_next(&none), -EINVAL);
    CHECK_INT(http_body(&none, &body), -EINVAL);
    CHECK_INT(http_printf(NULL, 200, "x"), -EINVAL);
    CHECK_INT(http_serve(&none, hello, NULL), -EINVAL);
    CHECK_INT(http_serve(&none, NULL, NULL), -EINVAL);
    CHECK_INT(http_close(NULL), 0);
    CHECK_INT(http_close(&none), 0);
    peer q = {.fd = 0};
    peer_connect(&q);
    CHECK_INT(http_read(&q.http, buf, 4), -EINVAL);
    CHECK_INT(http_respond(&q.http, 200, "x", 1), -EINVAL);
    CHECK_INT(http_set_header(&q.http, "A", "b"), -EINVAL);
    CHECK_INT(http_flush(&q.http), -EINVAL);
    CHECK(http_header(&q.http, "A") == NULL);
    CHECK_INT(http_close(&q.http), 0);
    CHECK_INT(http_close(&q.http), 0);
    CHECK_INT(http_next(&q.http), -EINVAL);
    CHECK_INT(conc_close(q.fd), 0);
}

TEST(a_connection_can_be_closed_outside_a_run)
{
    http_connection h = {0};
    conc_stream s = {0};
    CHECK_INT(http_close(&h), 0);
    h.stream = &s;
    CHECK_INT(http_next(&h), -EPERM);
    CHECK_INT(http_close(&h), 0);
}

/* ---- decoding ---- */

static void check_value(const char *form, const char *name, const char *expected)
{
    char value[32] = "";
    CHECK_INT(http_value(form, name, value, sizeof value), strlen(expected));
    CHECK_STR(value, expected);
}

HTTP_TEST(values_of_queries_and_forms_are_decoded)
{
    char value[4];
    check_value("a=1&b=2&a=3", "a", "1");
    check_value("a=1&b=2&a=3", "b", "2");
    check_value("ab=1&&a=2&", "a", "2");
    check_value("a&b", "a", "");
    check_value("a=&b", "a", "");
    check_value("q=a+b%2Bc%26%3D%c3%A4", "q", "a b+c&=\xc3\xa4");
    check_value("a%5B%5d=x=y", "a[]", "x=y");
    check_value("a=100%25", "a", "100%");
    CHECK_INT(http_value("a=1", "b", value, 4), -ENOENT);
    CHECK_STR(conc_last_error(), "there is no b");
    CHECK_INT(http_value("", "a", value, 4), -ENOENT);
    CHECK_INT(http_value("a%", "a", value, 4), -ENOENT);
    CHECK_INT(http_value("a=%", "a", value, 4), -EINVAL);
    CHECK_INT(http_value("a=%4", "a", value, 4), -EINVAL);
    CHECK_INT(http_value("a=%4&41", "a", value, 4), -EINVAL);
    CHECK_INT(http_value("a=%+1", "a", value, 4), -EINVAL);
    CHECK_INT(http_value("a=%00", "a", value, 4), -EINVAL);
    CHECK_STR(conc_last_error(), "a broken escape, or an encoded NUL");
    CHECK_INT(http_value("a=abc", "a", value, 4), 3);
    CHECK_INT(http_value("a=abcd", "a", value, 4), -ENOSPC);
    CHECK_INT(http_value("a=", "a", value, 0), -ENOSPC);
    CHECK_INT(http_value(NULL, "a", value, 4), -EINVAL);
    CHECK_INT(http_value("a", NULL, value, 4), -EINVAL);
    CHECK_INT(http_value("a", "a", NULL, 4), -EINVAL);
}

static int decoded(const char *path, char *out, size_t size)
{
    http_connection h = {.path = path};
    return (int)http_decode_path(&h, out, size);
}

HTTP_TEST(paths_are_decoded_and_cannot_escape_the_root)
{
    char out[16];
    CHECK_INT(decoded("/a%20b+c", out, sizeof out), 6);
    CHECK_STR(out, "/a b+c");
    CHECK_INT(decoded("/..a/a../...", out, sizeof out), 12);
    CHECK_INT(decoded("/..", out, sizeof out), -EINVAL);
    CHECK_INT(decoded("/a/%2e%2E/b", out, sizeof out), -EINVAL);
    CHECK_INT(decoded("/a%2f..%2fb", out, sizeof out), -EINVAL);
    CHECK_INT(decoded("/a/..", out, sizeof out), -EINVAL);
    CHECK_INT(decoded("../a", out, sizeof out), -EINVAL);
    CHECK_INT(decoded("/a%00", out, sizeof out), -EINVAL);
    CHECK_INT(decoded("/a%zz", out, sizeof out), -EINVAL);
    CHECK_INT(decoded("/123456789012345", out, sizeof out), -ENOSPC);
    CHECK_INT(decoded("/12345678901234", out, sizeof out), 15);
    CHECK_INT(decoded(NULL, out, sizeof out), -EINVAL);
}

HTTP_TEST(parts_of_paths_are_decoded)
{
    char out[8];
    CHECK_INT(http_decode("a%2Fb/c", 5, out, sizeof out), 3);
    CHECK_STR(out, "a/b");
    CHECK_INT(http_decode("..", 2, out, sizeof out), 2);
    CHECK_INT(http_decode("", 0, out, sizeof out), 0);
    CHECK_STR(out, "");
    CHECK_INT(http_decode("a%2F", 3, out, sizeof out), -EINVAL);
    CHECK_INT(http_decode("12345678", 8, out, sizeof out), -ENOSPC);
    CHECK_INT(http_decode(NULL, 0, out, sizeof out), -EINVAL);
    CHECK_INT(http_decode("a", 1, NULL, 0), -EINVAL);
}

HTTP_TEST(dates_are_written_as_http_does)
{
    char date[HTTP_DATE];
    CHECK_STR(http_date(784111777, date), "Sun, 06 Nov 1994 08:49:37 GMT");
    CHECK_STR(http_date(0, date), "Thu, 01 Jan 1970 00:00:00 GMT");
}

/* ---- values for a log ---- */

static int is_counted(http_connection *h, void *arg)
{
    (void)arg;
    bool is_sized = strcmp(h->path, "/sized") == 0;
    CHECK_INT(h->status, 0);
    CHECK(!h->ended);
    CONC_TRY(http_begin(h, 201, is_sized ? 5 : -1));
    CHECK_INT(h->status, 201);
    CONC_TRY(http_write(h, "hel", 3));
    CHECK_INT(http_write(h, "loooooo", 7) == -EMSGSIZE, is_sized);
    CHECK_INT(h->sent, is_sized ? 3 : 10);
    CHECK(!h->ended);
    CONC_TRY(is_sized ? http_write(h, "lo", 2) : 0);
    CONC_TRY(http_end(h));
    CHECK(h->ended);
    CHECK_INT(h->sent, is_sized ? 5 : 10);
    return 0;
}

HTTP_TEST(the_connection_records_what_was_sent)
{
    static const char requests[] = "GET /sized HTTP/1.1\r\nHost: x\r\n\r\n"
                                   "GET /chunks HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n";
    peer p = {.answer = is_counted};
    const char *response = peer_exchange(&p, requests, sizeof requests - 1);
    CHECK_INT(count_of(response, "HTTP/1.1 201 "), 2);
    CHECK_INT(p.refused, 400);
}

/* ---- upgrades ---- */

/* A line protocol that echoes each line, until "bye". */
static int upgrades(http_connection *h, void *arg)
{
    char *line;
    (void)arg;
    CHECK_STR(h->upgrade, "lines");
    CHECK_INT(http_upgrade(h, "a b"), -EINVAL);
    CHECK_INT(http_upgrade(h, ""), -EINVAL);
    CONC_TRY(http_set_header(h, "X-Accept", http_header(h, "X-Key")));
    CONC_TRY(http_upgrade(h, "lines"));
    CHECK_INT(http_respond(h, 200, "x", 1), -EINVAL);
    while (CONC_TRY(conc_stream_read_line(h->stream, &line)) >= 0 && line &&
           strcmp(line, "bye") != 0)
        CONC_TRY(conc_stream_printf(h->stream, "<%s>\n", line));
    return 0;
}

static void check_upgrade(bool on_transport)
{
    peer p = {.answer = upgrades, .on_transport = on_transport};
    peer_open(&p);
    peer_say(
        &p, "GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: lines\r\nConnection: keep-alive, Upgrade\r\n"
            "X-Key: k\r\n\r\none\ntwo\n");
    CHECK_STR(peer_hear(&p), "HTTP/1.1 101 Switching Protocols\r\nX-Accept: k\r\nUpgrade: lines\r\n"
                             "Connection: Upgrade\r\n\r\n<one>\n<two>\n");
    peer_say(&p, "three\nbye\nmore\n");
    CHECK_STR(peer_hear(&p), ""); /* it was not flushed, and the next read did not have to wait */
    CHECK(conc_done(&p.task));
    CHECK_INT(p.rc, 0);
    char *line; /* http_close has left the stream open */
    CHECK_INT(conc_stream_read_line(&p.stream, &line), 4);
    CHECK_STR(line, "more");
    CHECK_INT(conc_stream_close(&p.stream), 0);
    CHECK_STR(peer_finish(&p), "<three>\n");
}

HTTP_TEST(an_upgrade_hands_over_the_stream_with_all_later_bytes)
{
    check_upgrade(false);
    check_upgrade(true);
}

static int declines(http_connection *h, void *arg)
{
    char *body;
    (void)arg;
    if (h->length)
        CHECK_INT(http_upgrade(h, "lines"), -EINVAL);
    CONC_TRY(http_body(h, &body));
    return http_printf(h, 200, "%s,%s", h->upgrade ? h->upgrade : "none", body);
}

HTTP_TEST(an_upgrade_may_be_declined)
{
    const char request[] = "POST / HTTP/1.1\r\nHost: x\r\nUpgrade: a\r\nConnection: "
                           "upgrade\r\nContent-Length: 2\r\n\r\nhi"
                           "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: b\r\nConnection: upgrade\r\n\r\n"
                           "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: c\r\n\r\n";
    peer p = {.answer = declines};
    const char *heard = peer_exchange(&p, request, sizeof request - 1);
    CHECK_INT(count_of(heard, "HTTP/1.1 200 OK"), 3);
    CHECK_CONTAINS(heard, "\r\n\r\na,hi");
    CHECK_CONTAINS(heard, "\r\n\r\nb,");
    CHECK_CONTAINS(heard, "\r\n\r\nnone,");
}

/* ---- cancels ---- */

static int call_next(void *h) { return http_next(h); }
static int call_respond(void *h) { return http_respond(h, 200, "hello", 5); }
static int call_printf(void *h) { return http_printf(h, 200, "hello"); }
static int call_begin(void *h) { return http_begin(h, 200, 5); }
static int call_write(void *h) { return http_write(h, "hello", 5); }
static int call_flush(void *h) { return http_flush(h); }
static int call_end(void *h) { return http_end(h); }
static int call_upgrade(void *h) { return http_upgrade(h, "x"); }
static int call_close(void *h) { return http_close(h); }
static int call_body(void *h)
{
    char *data;
    return (int)http_body(h, &data);
}
static int call_read(void *h)
{
    char data[3];
    return (int)http_read(h, data, sizeof data);
}

HTTP_TEST(a_cancel_while_a_request_arrives_loses_nothing)
{
    static const char whole[] =
        "POST /a?b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        "3\r\nabc\r\n2;e\r\nde\r\n0\r\nT: t\r\n\r\n";
    peer p = {.fd = 0};
    char *body;
    int ends = 0;
    peer_connect(&p);
    for (size_t n = 0; n < sizeof whole; n++) {
        CHECK_INT(conc_write_full(p.fd, whole, n), n);
        int rc = conc_timeout(1, call_next, &p.http);
        if (rc == 1)
            rc = conc_timeout(1, call_body, &p.http);
        ends += rc == 5;
        CHECK_INT(rc, n == sizeof whole - 1 ? 5 : -ETIMEDOUT);
        CHECK_INT(conc_write_full(p.fd, whole + n, sizeof whole - 1 - n), sizeof whole - 1 - n);
        if (strcmp(p.http.target ? p.http.target : "", "/a?b") != 0)
            CHECK_INT(http_next(&p.http), 1);
        CHECK_INT(http_body(&p.http, &body), 5);
        CHECK_STR(body, "abcde");
        CHECK_STR(p.http.query, "b");
        CHECK_INT(http_respond(&p.http, 200, NULL, 0), 0);
        CHECK_STR(peer_hear(&p), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        if (n + 1 < sizeof whole)
            CHECK_INT(conc_timeout(0, call_next, &p.http), -ETIMEDOUT);
    }
    CHECK_INT(ends, 1);
    CHECK_INT(http_close(&p.http), 0);
    CHECK_INT(conc_close(p.fd), 0);
}

HTTP_TEST(a_cancel_before_a_read_in_pieces_takes_nothing)
{
    char data[8];
    peer p = {.fd = 0};
    peer_connect(&p);
    peer_say(&p, HEAD "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    CHECK_INT(http_next(&p.http), 1);
    CHECK_INT(conc_timeout(0, call_read, &p.http), -ETIMEDOUT);
    CHECK_STR(peer_hear(&p), "");
    CHECK_INT(conc_timeout(1, call_read, &p.http), -ETIMEDOUT);
    CHECK_STR(peer_hear(&p), "HTTP/1.1 100 Continue\r\n\r\n");
    peer_say(&p, "hello");
    CHECK_INT(conc_timeout(0, call_read, &p.http), -ETIMEDOUT);
    CHECK_INT(http_read(&p.http, data, sizeof data), 5);
    CHECK_INT(http_read(&p.http, data, sizeof data), 0);
    CHECK_INT(http_close(&p.http), 0);
    CHECK_INT(conc_close(p.fd), 0);
}

/* A request has arrived, and the first `calls` of these have been made for it. */
static void peer_asked(peer *p, conc_fn *const *calls, int n)
{
    peer_connect(p);
    peer_say(p, "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
    CHECK_INT(http_next(&p->http), 1);
    for (int i = 0; i < n; i++)
        CHECK_INT(calls[i](&p->http), 0);
}

/* Returns all that the client receives until the end. */
static const char *peer_rest(peer *p, size_t junk)
{
    static char heard[PLENTY];
    ssize_t n = conc_read_full(p->fd, heard, sizeof heard - 1);
    CHECK(n >= (ssize_t)junk);
    heard[n] = 0;
    CHECK_INT(conc_close(p->fd), 0);
    return heard + junk;
}

static int close_soon(void *arg)
{
    peer *p = arg;
    CHECK_INT(http_close(&p->http), 0);
    return conc_stream_close(&p->stream); /* after an upgrade */
}

/* Ends the response, whatever it still lacks, and compares what the client received. */
static void check_whole(peer *p, const char *expected, size_t junk)
{
    CHECK_INT(conc_spawn(&p->group, close_soon, p), 0);
    CHECK_STR(peer_rest(p, junk), expected);
    CHECK_INT(conc_group_wait(&p->group), 0);
}

typedef struct step {
    conc_fn *calls[4];
    int before; /* this one is cancelled */
    const char *expected;
} step;

#define HELLO "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
#define TYPED \
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\n\r\nhello"
#define SWITCHING "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"

static const step steps[] = {
    {{call_respond}, 0, HELLO},
    {{call_printf}, 0, TYPED},
    {{call_begin, call_write, call_end}, 0, HELLO},
    {{call_begin, call_write, call_end}, 1, HELLO},
    {{call_begin, call_write, call_end}, 2, HELLO},
    {{call_begin, call_flush, call_write, call_end}, 1, HELLO},
    {{call_upgrade}, 0, SWITCHING},
};

HTTP_TEST(a_cancel_before_a_call_that_writes_has_had_no_effect)
{
    for (size_t i = 0; i < CONC_LEN(steps); i++) {
        const step *s = &steps[i];
        peer p = {.fd = 0};
        peer_asked(&p, s->calls, s->before);
        int rc = conc_timeout(0, s->calls[s->before], &p.http);
        CHECK_INT(rc, -ETIMEDOUT);
        bool ended = s->calls[s->before] == call_end;
        for (int k = s->before + ended; k < 4 && s->calls[k]; k++)
            CHECK_INT(s->calls[k](&p.http), 0);
        check_whole(&p, s->expected, 0);
    }
}

/* Sends bytes until no more fit, and returns their number. */
static size_t fill(int fd)
{
    static const char junk[1000];
    size_t n = 0;
    for (ssize_t rc; (rc = send(fd, junk, sizeof junk, MSG_DONTWAIT)) > 0;)
        n += (size_t)rc;
    for (ssize_t rc; (rc = send(fd, junk, 1, MSG_DONTWAIT)) > 0;)
        n += (size_t)rc;
    return n;
}

typedef struct rest {
    peer *p;
    const step *s;
    int next;
} rest;

static int go_on(void *arg)
{
    rest *r = arg;
    for (int i = r->next; i < 4 && r->s->calls[i]; i++)
        CHECK_INT(r->s->calls[i](&r->p->http), 0);
    return close_soon(r->p);
}

/* The client reads nothing until the call was cancelled, and then everything. */
static void check_not_cut(const step *s)
{
    peer p = {.fd = 0};
    peer_asked(&p, NULL, 0);
    size_t junk = fill(p.server_fd);
    for (int i = 0; i < s->before; i++)
        CHECK_INT(s->calls[i](&p.http), 0);
    double start = conc_now();
    CHECK_INT(conc_timeout(1, s->calls[s->before], &p.http), -ETIMEDOUT);
    CHECK_INT((conc_now() - start) * 1000, 1000);
    rest r = {&p, s, s->before + 1};
    CHECK_INT(conc_spawn(&p.group, go_on, &r), 0);
    CHECK_STR(peer_rest(&p, junk), s->expected);
    CHECK_INT(conc_group_wait(&p.group), 0);
}

HTTP_TEST(a_cancel_while_a_whole_response_waits_to_be_sent_cuts_nothing)
{
    static const step waiting[] = {
        {{call_respond}, 0, HELLO},
        {{call_printf}, 0, TYPED},
        {{call_begin, call_flush, call_write, call_end}, 1, HELLO},
        {{call_begin, call_write, call_end}, 2, HELLO},
        {{call_upgrade}, 0, SWITCHING},
    };
    for (size_t i = 0; i < CONC_LEN(waiting); i++)
        check_not_cut(&waiting[i]);
}

static int begin_chunks(void *h) { return http_begin(h, 200, -1); }
static int write_much(void *h)
{
    static const char much[1000];
    return http_write(h, much, sizeof much);
}

static int begin_with_more(void *h)
{
    CHECK_INT(http_set_header(h, "X", "a header that does not fit into the buffer, too"), 0);
    return http_begin(h, 200, 5);
}

/* The stream's buffer has room for only 50 bytes. */
static void check_cut(const step *s)
{
    peer p = {.stream.buffer_size = 50};
    peer_asked(&p, NULL, 0);
    fill(p.server_fd);
    for (int i = 0; i < s->before; i++)
        CHECK_INT(s->calls[i](&p.http), 0);
    CHECK_INT(conc_timeout(1, s->calls[s->before], &p.http), -ETIMEDOUT);
    conc_fn *const calls[] = {call_next,  call_respond, call_printf,  call_begin, call_write,
                              call_flush, call_end,     call_upgrade, call_read,  call_body};
    for (size_t i = 0; i < CONC_LEN(calls); i++)
        CHECK_INT(calls[i](&p.http), -EPIPE);
    CHECK_INT(http_set_header(&p.http, "A", "b"), -EPIPE);
    CHECK_CONTAINS(conc_last_error(), "broke before");
    double start = conc_now();
    http_close(&p.http);
    CHECK(conc_now() <= start);
    conc_close(p.fd);
}

HTTP_TEST(a_cancel_in_the_middle_of_a_response_cuts_it_and_ends_the_connection)
{
    static const step cut[] = {
        {{call_printf}, 0, NULL},
        {{begin_with_more}, 0, NULL},
        {{begin_chunks, write_much}, 1, NULL},
        {{call_upgrade}, 0, NULL},
    };
    for (size_t i = 0; i < CONC_LEN(cut); i++)
        check_cut(&cut[i]);
}

HTTP_TEST(a_write_that_timed_out_without_effect_may_be_repeated)
{
    static const step s = {{call_begin, call_write, call_end}, 1, HELLO};
    peer p = {.stream.buffer_size = 38}; /* just the head */
    peer_asked(&p, NULL, 0);
    size_t junk = fill(p.server_fd);
    CHECK_INT(http_begin(&p.http, 200, 5), 0);
    CHECK_INT(conc_timeout(1, call_write, &p.http), -ETIMEDOUT);
    CHECK_TIME(1);
    rest r = {&p, &s, 1};
    CHECK_INT(conc_spawn(&p.group, go_on, &r), 0);
    CHECK_STR(peer_rest(&p, junk), HELLO);
    CHECK_INT(conc_group_wait(&p.group), 0);
}

HTTP_TEST(a_close_waits_for_the_client_as_long_as_its_limits_allow)
{
    double start = conc_now();
    for (int limit = 0; limit < 3; limit++) {
        peer p = {.http.stall_timeout = 5};
        peer_asked(&p, NULL, 0);
        fill(p.server_fd);
        CHECK_INT(conc_timeout(0, call_respond, &p.http), -ETIMEDOUT);
        CHECK_INT(conc_timeout(1, call_respond, &p.http), -ETIMEDOUT);
        start = conc_now();
        int rc = limit < 2 ? conc_timeout(limit, call_close, &p.http) : http_close(&p.http);
        CHECK_INT(rc, limit ? -ETIMEDOUT : 0);
        CHECK_INT((conc_now() - start) * 1000, limit < 2 ? limit * 1000 : 5000);
        CHECK_INT(http_close(&p.http), 0);
        conc_close(p.fd);
    }
}

HTTP_TEST(a_cancel_of_a_server_cuts_it)
{
    static const char *const said[] = {"", "GET", "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                                       CHUNKED "5\r\nhel"};
    for (size_t i = 0; i < CONC_LEN(said); i++) {
        peer p = {.answer = echo};
        peer_open(&p);
        peer_say(&p, said[i]);
        CHECK_INT(count_of(peer_hear(&p), "200 OK"), i == 2);
        CHECK_INT(conc_cancel(&p.task), 0);
        CHECK_INT(conc_join(&p.task, NULL), 0);
        CHECK_TIME(0);
        CHECK_INT(p.rc, -ECANCELED);
        CHECK_STR(peer_finish(&p), "");
    }
}

/* ---- several tasks ---- */

typedef struct helper {
    conc_fn *call;
    http_connection *h;
    int rc;
    bool done;
} helper;

static int help(void *arg)
{
    helper *c = arg;
    c->rc = c->call(c->h);
    c->done = true;
    return 0;
}

HTTP_TEST(two_tasks_cannot_use_one_connection_at_once)
{
    peer p = {.fd = 0};
    conc_group g = {0};
    peer_connect(&p);
    helper next = {call_next, &p.http, 0, false};
    CHECK_INT(conc_spawn(&g, help, &next), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(http_next(&p.http), -EBUSY);
    CHECK_INT(call_read(&p.http), -EBUSY);
    CHECK_INT(http_respond(&p.http, 200, NULL, 0), -EBUSY);
    CHECK_INT(http_set_header(&p.http, "A", "b"), -EBUSY);
    CHECK_INT(http_close(&p.http), -EBUSY);
    peer_say(&p, HEAD "Content-Length: 5\r\n\r\n");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(next.rc, 1);
    CHECK_INT(http_close(&p.http), 0);
    conc_close(p.fd);
}

HTTP_TEST(one_task_may_read_the_body_while_another_sends_the_response)
{
    peer p = {.fd = 0};
    conc_group g = {0};
    peer_connect(&p);
    peer_say(&p, CHUNKED "1\r\na\r\n");
    CHECK_INT(http_next(&p.http), 1);
    helper reader = {call_body, &p.http, 0, false};
    CHECK_INT(conc_spawn(&g, help, &reader), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(call_body(&p.http), -EBUSY);
    CHECK_INT(http_next(&p.http), -EBUSY);
    CHECK_INT(call_upgrade(&p.http), -EBUSY);
    CHECK_INT(http_begin(&p.http, 200, -1), 0);
    CHECK_INT(http_write(&p.http, "early", 5), 0);
    CHECK_INT(http_flush(&p.http), 0);
    CHECK_CONTAINS(peer_hear(&p), "5\r\nearly\r\n");
    peer_say(&p, "1\r\nb\r\n0\r\n\r\nGET /next HTTP/1.1\r\nHost: x\r\n\r\n");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(reader.rc, 2);
    CHECK_INT(http_next(&p.http), 1);
    CHECK_STR(p.http.path, "/next");
    CHECK_STR(peer_hear(&p), "0\r\n\r\n");
    CHECK_INT(http_close(&p.http), 0);
    conc_close(p.fd);
}

HTTP_TEST(a_malformed_body_breaks_the_response_that_another_task_sends)
{
    peer p = {.fd = 0};
    conc_group g = {0};
    peer_connect(&p);
    peer_say(&p, CHUNKED);
    CHECK_INT(http_next(&p.http), 1);
    helper reader = {call_body, &p.http, 0, false};
    CHECK_INT(conc_spawn(&g, help, &reader), 0);
    CHECK_INT(http_begin(&p.http, 200, -1), 0);
    peer_say(&p, "x\r\n");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(reader.rc, -EPROTO);
    CHECK_INT(http_write(&p.http, "x", 1), -EPIPE);
    CHECK_INT(p.http.refused, 400);
    CHECK_INT(http_close(&p.http), 0);
    CHECK_INT(conc_read(p.fd, (char[1]){0}, 1), 0);
    conc_close(p.fd);
}

HTTP_TEST(a_malformed_body_does_not_mix_its_refusal_with_a_response_that_begins)
{
    static const step s = {{begin_with_more, call_write, call_end}, 0, NULL};
    peer p = {.stream.buffer_size = 20};
    rest writer = {&p, &s, 0};
    peer_connect(&p);
    peer_say(&p, CHUNKED);
    CHECK_INT(http_next(&p.http), 1);
    size_t junk = fill(p.server_fd);
    CHECK_INT(conc_spawn(&p.group, go_on, &writer), 0);
    CHECK_INT(conc_settle(), 0);
    peer_say(&p, "x\r\n");
    CHECK_INT(call_body(&p.http), -EPROTO);
    CHECK_INT(p.http.refused, 400);
    const char *heard = peer_rest(&p, junk);
    CHECK_INT(count_of(heard, "HTTP/1.1 "), 1);
    CHECK_STR(body_of(heard), "hello");
    CHECK_INT(conc_group_wait(&p.group), 0);
}

/* ---- servers on TCP ---- */

static int upload_size(http_connection *h)
{
    char piece[10000];
    size_t total = 0;
    for (ssize_t n; (n = CONC_TRY(http_read(h, piece, sizeof piece))) > 0; total += (size_t)n)
        for (ssize_t i = 0; i < n; i++)
            if (piece[i] != 'u')
                return conc_fail(-EBADMSG, "byte %zu is wrong", total + (size_t)i);
    return http_printf(h, 200, "%zu bytes", total);
}

static int download(http_connection *h, int64_t size, bool chunks)
{
    char piece[7000];
    memset(piece, 'd', sizeof piece);
    CONC_TRY(http_begin(h, 200, chunks ? -1 : size));
    while (size > 0) {
        size_t n = size < (int64_t)sizeof piece ? (size_t)size : sizeof piece;
        CONC_TRY(http_write(h, piece, n));
        size -= (int64_t)n;
    }
    return http_end(h);
}

static int number_of(http_connection *h)
{
    char value[32];
    CONC_TRY(http_value(h->query, "n", value, sizeof value));
    return atoi(value);
}

static int site(http_connection *h, void *arg)
{
    char value[64];
    if (strcmp(h->path, "/count") == 0)
        return upload_size(h);
    if (strcmp(h->path, "/chunks") == 0)
        return download(h, CONC_TRY(number_of(h)), true);
    if (strcmp(h->path, "/sized") == 0)
        return download(h, CONC_TRY(number_of(h)), false);
    if (strcmp(h->path, "/status") == 0)
        return http_respond(h, CONC_TRY(number_of(h)), NULL, 0);
    if (strcmp(h->path, "/value") == 0) {
        CONC_TRY(http_value(h->query, "q", value, sizeof value));
        return http_printf(h, 200, "<%s>", value);
    }
    return echo(h, arg);
}

typedef struct http_server {
    conc_server tcp;
    char address[64];
    http_connection options;
    int (*answer)(http_connection *h, void *arg);
    void *arg;
    conc_group group;
    conc_task task;
} http_server;

static int serve_connection(int fd, void *arg)
{
    http_server *s = arg;
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = s->options;
    http.stream = &stream;
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, s->answer, s->arg);
}

static int serve_tcp(void *arg)
{
    http_server *s = arg;
    return conc_serve(&s->tcp);
}

static void server_begin(http_server *s, const char *address)
{
    s->tcp = (conc_server){.handler = serve_connection, .arg = s, .fd = conc_listen(address)};
    CHECK(s->tcp.fd >= 0);
    CHECK_INT(conc_address(s->tcp.fd, false, s->address, sizeof s->address), 0);
    CHECK_INT(conc_spawn_task(&s->group, &s->task, serve_tcp, s), 0);
}

static void server_stop(http_server *s)
{
    CHECK_INT(conc_cancel(&s->task), 0);
    CHECK_INT(conc_group_wait(&s->group), 0);
    CHECK_INT(conc_close(s->tcp.fd), 0);
}

static int dialled(const char *address, const char *text)
{
    int fd = conc_dial(address);
    CHECK(fd >= 0);
    CHECK_INT(conc_write_full(fd, text, strlen(text)), strlen(text));
    return fd;
}

#define GET "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

static int slow(http_connection *h, void *arg)
{
    note("begun");
    CONC_TRY(conc_sleep(*(double *)arg));
    note("ended");
    return http_respond(h, 200, "hello", 5);
}

HTTP_TEST(a_server_that_stops_finishes_the_running_answers_and_drops_idle_connections)
{
    double seconds = 3;
    char heard[200] = "";
    http_server s = {.options.answer_timeout = 10, .answer = slow, .arg = &seconds};
    server_begin(&s, "127.0.0.1:0");
    int idle = dialled(s.address, ""), running = dialled(s.address, GET GET);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&s.task), 0);
    CHECK_INT(conc_read(idle, heard, sizeof heard), 0);
    CHECK_TIME(1);
    ssize_t n = conc_read_full(running, heard, sizeof heard - 1);
    CHECK(n == -ECONNRESET || n > 0); /* the second request was never read */
    CHECK_TIME(3);
    CHECK_INT(conc_group_wait(&s.group), 0);
    CHECK_TIME(3);
    CHECK_STR(noted, "begun ended");
    CHECK_INT(conc_close(idle) + conc_close(running) + conc_close(s.tcp.fd), 0);
}

HTTP_TEST(an_answer_has_its_limit_even_without_a_stop)
{
    double seconds = 3;
    char heard[200] = "";
    http_server s = {.options.answer_timeout = 2, .answer = slow, .arg = &seconds};
    expected_failure = -ETIMEDOUT;
    server_begin(&s, "127.0.0.1:0");
    int fd = dialled(s.address, GET);
    ssize_t n = conc_read_full(fd, heard, sizeof heard - 1);
    CHECK(n > 0);
    CHECK_TIME(2);
    CHECK_CONTAINS(heard, "HTTP/1.1 503 Service Unavailable\r\n");
    CHECK_STR(noted, "begun");
    CHECK_INT(conc_close(fd), 0);
    server_stop(&s);
}

HTTP_TEST(without_a_limit_a_stop_cuts_the_answers)
{
    double seconds = 3;
    char heard[200];
    http_server s = {.answer = slow, .arg = &seconds};
    server_begin(&s, "127.0.0.1:0");
    int fd = dialled(s.address, GET);
    CHECK_INT(conc_sleep(1), 0);
    server_stop(&s);
    CHECK_TIME(1);
    CHECK_INT(conc_read(fd, heard, sizeof heard), 0);
    CHECK_STR(noted, "begun");
    CHECK_INT(conc_close(fd), 0);
}

HTTP_TEST(a_server_can_stop_and_start_again_at_its_address)
{
    char heard[200] = "";
    http_server first = {.answer = echo};
    server_begin(&first, "127.0.0.1:0");
    int fd = dialled(first.address, GET);
    CHECK(conc_read(fd, heard, sizeof heard - 1) > 0);
    CHECK_CONTAINS(heard, "200 OK");
    server_stop(&first);
    CHECK_INT(conc_read(fd, heard, sizeof heard), 0);
    CHECK_INT(conc_close(fd), 0);
    http_server second = {.answer = echo};
    server_begin(&second, first.address);
    fd = dialled(first.address, GET);
    CHECK(conc_read(fd, heard, sizeof heard - 1) > 0);
    CHECK_CONTAINS(heard, "200 OK");
    CHECK_INT(conc_close(fd), 0);
    server_stop(&second);
}

/* A client that reads only after it has sent everything: the connection must not be reset
 * before. */
HTTP_TEST(a_client_in_the_middle_of_a_large_upload_gets_its_refusal)
{
    static char body[3000000];
    char heard[400] = "";
    http_server s = {.answer = echo};
    server_begin(&s, "127.0.0.1:0");
    int fd = dialled(s.address, HEAD "Content-Length: 60000000\r\n\r\n");
    for (int i = 0; i < 20; i++)
        CHECK_INT(conc_write_full(fd, body, sizeof body), sizeof body);
    CHECK_INT(shutdown(fd, SHUT_WR), 0);
    CHECK(conc_read_full(fd, heard, sizeof heard - 1) > 0);
    CHECK_CONTAINS(heard, "HTTP/1.1 413 Payload Too Large\r\n");
    CHECK_CONTAINS(heard, "Connection: close\r\n");
    CHECK_INT(conc_close(fd), 0);
    server_stop(&s);
}

static void leave_with_reset(int fd)
{
    const struct linger at_once = {1, 0};
    CHECK_INT(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    CHECK_INT(conc_close(fd), 0);
}

/* None of these is an error of the server: on_error would receive it, and end the test. */
HTTP_TEST(clients_that_disconnect_at_any_time_cause_no_errors)
{
    static const char whole[] = "POST /count HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nuuuuu"
                                "GET /chunks?n=9000000 HTTP/1.1\r\nHost: x\r\n\r\n";
    http_server s = {.answer = site};
    server_begin(&s, "127.0.0.1:0");
    for (size_t n = 0; n < sizeof whole; n += 7) {
        char part[sizeof whole] = "";
        memcpy(part, whole, n);
        int fd = dialled(s.address, part);
        CHECK_INT(conc_settle(), 0);
        leave_with_reset(fd);
        fd = dialled(s.address, part);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(conc_close(fd), 0);
    }
    int fd = dialled(s.address, whole);
    CHECK_INT(conc_settle(), 0);
    leave_with_reset(fd);
    CHECK_INT(conc_settle(), 0);
    server_stop(&s);
}

/* ---- a thousand clients at once ---- */

enum { MANY = 1000 };

typedef struct crowd {
    conc_event all;
    int waiting, most;
} crowd;

/* Answers once all of them are waiting for it. */
static int together(http_connection *h, void *arg)
{
    crowd *c = arg;
    char *body;
    CONC_TRY(http_body(h, &body));
    if (++c->waiting == c->most)
        conc_event_set(&c->all);
    CONC_TRY(conc_event_wait(&c->all));
    return http_printf(h, 200, "%s of %s", body, h->path);
}

static char many_address[64];

static int one_of_many(void *arg)
{
    int number = *(int *)arg;
    char request[200], expected[60], heard[400] = "";
    snprintf(request, sizeof request,
             "POST /%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
             "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
             number);
    snprintf(expected, sizeof expected, "\r\n\r\nbody of /%d", number);
    int fd = CONC_TRY(conc_dial(many_address));
    CONC_TRY(conc_write_full(fd, request, strlen(request)));
    ssize_t n = CONC_TRY(conc_read_full(fd, heard, sizeof heard - 1));
    CONC_TRY(conc_close(fd));
    return n > 0 && strstr(heard, expected) ? 0 : conc_fail(-EPROTO, "%d: %s", number, heard);
}

HTTP_TEST(a_thousand_connections_are_served_at_once)
{
    struct rlimit limit;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    crowd c = {.most = limit.rlim_max > 2 * MANY + 100 ? MANY : (int)limit.rlim_max / 2 - 50};
    static int numbers[MANY];
    http_server s = {.answer = together, .arg = &c};
    server_begin(&s, "127.0.0.1:0");
    strcpy(many_address, s.address);
    for (int i = 0; i < MANY; i++)
        numbers[i] = i;
    CHECK_INT(conc_map(one_of_many, numbers, (size_t)c.most, sizeof *numbers), 0);
    CHECK_INT(c.waiting, c.most);
    server_stop(&s);
}

/* ---- real clients, on the real clock ---- */

/* Returns the output of this shell command, in which %s is the server's address. */
static const char *shell(const char *address, const char *format)
{
    static char out[2000];
    char command[2000];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(command, sizeof command, format, address, address);
#pragma GCC diagnostic pop
    const char *const argv[] = {"/bin/sh", "-c", command, NULL};
    conc_child child = {.argv = argv, .input = CONC_NULL, .output = CONC_PIPE, .error = CONC_PIPE};
    conc_child_io io = {.limit = 1000};
    int status = -1;
    CHECK_INT(conc_child_start(&child), 0);
    CHECK_INT(conc_child_communicate(&child, &io, &status), 0);
    snprintf(out, sizeof out, "%s%s", io.out, io.error);
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        test_fail(__FILE__, __LINE__, "status 0x%x of %s: %s", (unsigned)status, command, out);
    conc_free(io.out);
    conc_free(io.error);
    CHECK_INT(conc_child_close(&child), 0);
    return out;
}

static int with_curl(void *arg)
{
    http_server s = {.answer = site, .options.answer_timeout = 60};
    (void)arg;
    server_begin(&s, "127.0.0.1:0");
    const char *a = s.address;
    CHECK_STR(shell(a, "curl -sS 'http://%s/a%%20b?c=d'"), "GET /a%20b|c=d|");
    CHECK_STR(shell(a, "curl -sS -d hello 'http://%s/x'"), "POST /x||hello");
    CHECK_STR(shell(a, "curl -sS -0 -d hello 'http://%s/x'"), "POST /x||hello");
    CHECK_STR(shell(a, "curl -sS -X DELETE 'http://%s/x'"), "DELETE /x||");
    CHECK_STR(shell(a, "curl -sSI 'http://%s/sized?n=9' | tr -d '\\r'"),
              "HTTP/1.1 200 OK\nContent-Length: 9\n\n");
    CHECK_STR(shell(a, "curl -sS -w ' %%{num_connects} ' 'http://%s/1' 'http://%s/2'"),
              "GET /1|| 1 GET /2|| 0 ");
    CHECK_STR(shell(a, "curl -sSG --data-urlencode 'q=a b&c=\xc3\xa4+' 'http://%s/value'"),
              "<a b&c=\xc3\xa4+>");
    CHECK_STR(shell(a, "curl -sS -H 'Expect: 100-continue' -d hello 'http://%s/x'"),
              "POST /x||hello");
    CHECK_STR(shell(a, "head -c 20000000 /dev/zero | tr '\\0' u | curl -sS -T - 'http://%s/count'"),
              "20000000 bytes");
    CHECK_STR(shell(a, "head -c 2000000 /dev/zero | tr '\\0' u | "
                       "curl -sS --data-binary @- 'http://%s/count'"),
              "2000000 bytes");
    CHECK_STR(shell(a, "head -c 2000000 /dev/zero | "
                       "curl -s -o /dev/null -w '%%{http_code}' -T - 'http://%s/x' || true"),
              "413");
    CHECK_STR(shell(a, "curl -sS 'http://%s/chunks?n=5000000' | tr -d d | wc -c"), "0\n");
    CHECK_STR(shell(a, "curl -sS 'http://%s/chunks?n=5000000' | wc -c"), "5000000\n");
    CHECK_STR(shell(a, "curl -sS0 'http://%s/chunks?n=5000000' | wc -c"), "5000000\n");
    CHECK_STR(shell(a, "curl -sS 'http://%s/sized?n=5000000' | wc -c"), "5000000\n");
    CHECK_STR(shell(a, "curl -sS -o /dev/null -w '%%{http_code}' 'http://%s/status?n=204'"), "204");
    CHECK_STR(shell(a, "curl -s -m 5 -o /dev/null -w '%%{http_code}' \"http://%s/"
                       "$(head -c 9000 /dev/zero | tr '\\0' x)\""),
              "414");
    server_stop(&s);
    return 0;
}

TEST(curl_is_served)
{
    int fds = test_count_fds();
    CHECK_INT(conc_run(with_curl, NULL), 0);
    CHECK_INT(test_count_fds(), fds);
}

static int with_python(void *arg)
{
    http_server s = {.answer = site};
    (void)arg;
    server_begin(&s, "127.0.0.1:0");
    CHECK_STR(shell(s.address,
                    "exec python3 - %s <<'end'\n"
                    "import http.client, sys\n"
                    "c = http.client.HTTPConnection(sys.argv[1], timeout=10)\n"
                    "def ask(*request, **more):\n"
                    "    c.request(*request, **more)\n"
                    "    r = c.getresponse()\n"
                    "    return r.status, r.read().decode()\n"
                    "assert ask('GET', '/a?b') == (200, 'GET /a|b|')\n"
                    "mine = c.sock.getsockname()\n"
                    "assert ask('POST', '/p', b'hello') == (200, 'POST /p||hello')\n"
                    "assert ask('PUT', '/p', iter([b'one', b'two'])) == (200, 'PUT /p||onetwo')\n"
                    "assert ask('HEAD', '/sized?n=7') == (200, '')\n"
                    "assert ask('GET', '/status?n=204') == (204, '')\n"
                    "assert ask('GET', '/status?n=304') == (304, '')\n"
                    "assert ask('GET', '/status?n=404') == (404, '')\n"
                    "assert ask('POST', '/count', b'u' * 3000000) == (200, '3000000 bytes')\n"
                    "assert ask('GET', '/chunks?n=3000000') == (200, 'd' * 3000000)\n"
                    "assert c.sock.getsockname() == mine, 'another connection'\n"
                    "assert ask('GET', '/', headers={'X': 'x' * 20000})[0] == 431\n"
                    "assert ask('GET', '/', headers={'Connection': 'close'}) == (200, 'GET /||')\n"
                    "assert ask('GET', '/again') == (200, 'GET /again||')\n"
                    "print('all is well')\n"
                    "end\n"),
              "all is well\n");
    server_stop(&s);
    return 0;
}

TEST(pythons_http_client_is_served)
{
    int fds = test_count_fds();
    CHECK_INT(conc_run(with_python, NULL), 0);
    CHECK_INT(test_count_fds(), fds);
}

/* ---- the loop ---- */

static int in_debug_mode(void *arg)
{
    http_server s = {.answer = site};
    static char upload[500000];
    static char heard[600000];
    (void)arg;
    server_begin(&s, "127.0.0.1:0");
    memset(upload, 'u', sizeof upload);
    int fd =
        dialled(s.address, "POST /count HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n");
    CHECK_INT(conc_write_full(fd, upload, sizeof upload), sizeof upload);
    CHECK_INT(conc_write_full(fd, GET, sizeof GET - 1), sizeof GET - 1);
    const char *last = "GET /chunks?n=500000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    CHECK_INT(conc_write_full(fd, last, strlen(last)), strlen(last));
    CHECK(conc_read_full(fd, heard, sizeof heard) > 500000);
    CHECK_INT(conc_close(fd), 0);
    server_stop(&s);
    return 0;
}

static void run_in_debug_mode(void)
{
    conc_options o = {.debug = true, .slow_step = SANITIZED ? 0.1 : 0.01};
    CHECK_INT(conc_run_with(&o, in_debug_mode, NULL), 0);
}

/* Ignores the lines about stacks, which are no complaint. A step's limit is on the real clock, and
 * another process may have had the processor, so there are five tries. */
TEST(debug_mode_reports_nothing)
{
    char text[8000] = "blocked the loop";
    for (int i = 0; i < 5 && strstr(text, "the loop"); i++)
        CHECK_INT(test_in_process(run_in_debug_mode, text, sizeof text), 0);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (strncmp(line, "conc: stacks: ", 14) != 0)
            test_fail(__FILE__, __LINE__, "debug mode said: %s", line);
}
