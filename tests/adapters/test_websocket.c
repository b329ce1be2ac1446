/* test_websocket.c - websocket.h: raw bytes against both halves for every rule of RFC 6455, its
 * own client and server against each other, over sockets and TLS, with cancels and limits in each
 * call that waits; and Python's websockets as a foreign peer.
 *
 * Needs -lwslay -lcrypto -lhttp_parser -lssl
 */
#define TEST_SYNC
#include "server.h"
#include "tls.h"
#include "websocket.h"

#include <sys/resource.h>

enum { BIG = 300000 };

static char pattern[BIG + 1];

__attribute__((constructor)) static void set_up(void)
{
    for (size_t i = 0; i < BIG; i++)
        pattern[i] = (char)('a' + (i * 2654435761u >> 16) % 26);
}

/* Runs it on the virtual clock, in debug mode, which reports steps of more than 10 ms. No error may
 * remain, and no descriptor may be leaked. */
static int expected_failure;

static void told(const conc_failure *f, void *user)
{
    (void)user;
    if (f->rc == expected_failure)
        expected_failure = 0;
    else
        test_fail(__FILE__, __LINE__, "%s (%s): %s", f->task, f->place, f->text);
}

static void run_checked(void (*body)(void), bool virtual_clock)
{
    test_task t = {body};
    conc_options options = {.virtual_clock = virtual_clock, .slow_step = 0.01, .on_error = told};
    int fds = test_count_fds();
    CHECK_INT(conc_run_with(&options, test_call_body, &t), 0);
    CHECK_INT(test_count_fds(), fds);
    CHECK_INT(expected_failure, 0);
}

#define RUN_TEST(name, virtual_clock)                          \
    static void body_of_##name(void);                          \
    TEST(name) { run_checked(body_of_##name, virtual_clock); } \
    static void body_of_##name(void)
#define WEBSOCKET_TEST(name) RUN_TEST(name, true)
#define REAL_TEST(name) RUN_TEST(name, false)

/* ---- the server's half in a task, raw bytes for the client's ---- */

typedef struct peer {
    websocket w; /* options may be set before */
    int (*answer)(struct peer *p);
    http_connection http;
    conc_stream stream;
    int fd; /* the client's end */
    conc_group group;
    conc_task task;
    int accepted, rc, code;
    char reason[124], error[160], got[400];
} peer;

static int echo(peer *p)
{
    websocket_message m;
    int rc;
    while ((rc = websocket_receive(&p->w, &m)) > 0) {
        size_t n = strlen(p->got);
        snprintf(p->got + n, sizeof p->got - n, "%d:%.20s;", m.type, m.data);
        CHECK_INT(m.data[m.size], 0);
        CHECK_INT(websocket_send(&p->w, m.type, m.data, m.size), 0);
    }
    return rc;
}

static int answer(http_connection *http, void *arg)
{
    peer *p = arg;
    p->accepted = websocket_accept(&p->w, http);
    if (p->accepted)
        return 0;
    p->rc = p->answer ? p->answer(p) : echo(p);
    p->code = p->w.close_code;
    memcpy(p->reason, p->w.close_reason, sizeof p->reason);
    memcpy(p->error, p->w.error, sizeof p->error);
    CHECK_INT(websocket_close(&p->w), 0);
    CHECK_INT(websocket_close(&p->w), 0);
    return 0;
}

static int serve_peer(void *arg)
{
    peer *p = arg;
    CONC_AUTO(http_connection, http) = {.stream = &p->stream};
    return http_serve(&http, answer, p);
}

static void peer_serve(peer *p)
{
    int ends[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    p->fd = ends[0];
    CHECK_INT(conc_stream_open(&p->stream, ends[1]), 0);
    CHECK_INT(conc_spawn_task(&p->group, &p->task, serve_peer, p), 0);
}

static void say(peer *p, const void *bytes, size_t n)
{
    CHECK_INT(conc_write_full(p->fd, bytes, n), n);
}
#define SAY(p, text) say((p), text, sizeof text - 1)

/* Stores what the server has sent when it sends no more for now; returns the length. */
static char heard[BIG];
static size_t hear(peer *p)
{
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
    return n;
}

static void hears(int line, peer *p, const char *bytes, size_t n)
{
    size_t got = hear(p);
    bool same = got == n && memcmp(heard, bytes, n) == 0;
    if (!same)
        test_fail(__FILE__, line, "heard %zu bytes, not %zu: %02x %02x %02x %02x \"%s\"", got, n,
                  heard[0] & 255, heard[1] & 255, heard[2] & 255, heard[3] & 255, heard);
}
#define HEARS(p, text) hears(__LINE__, (p), text, sizeof text - 1)

#define ASKS(more)                                            \
    "GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n" \
    "Connection: keep-alive, Upgrade\r\n" more "\r\n"
#define KEY "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
#define VERSION "Sec-WebSocket-Version: 13\r\n"
#define ACCEPTED                                                                   \
    "HTTP/1.1 101 Switching Protocols\r\n"                                         \
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nUpgrade: websocket\r\n" \
    "Connection: Upgrade\r\n\r\n"

/* Accepted. */
static void peer_open(peer *p)
{
    peer_serve(p);
    SAY(p, ASKS(KEY VERSION));
    HEARS(p, ACCEPTED);
}

/* A client's frame, masked: first is FIN and the opcode, 0x81 for a single text. */
static void say_frame(peer *p, int first, const char *data, size_t n)
{
    static char frame[BIG + 20];
    static const char mask[] = {1, 2, 3, 4};
    size_t at = 0;
    frame[at++] = (char)first;
    frame[at++] = (char)(0x80 | (n < 126 ? n : n < 65536 ? 126 : 127));
    for (int shift = n < 126 ? 0 : n < 65536 ? 16 : 64; shift > 0; shift -= 8)
        frame[at++] = (char)((uint64_t)n >> (shift - 8));
    memcpy(frame + at, mask, 4);
    at += 4;
    for (size_t i = 0; i < n; i++)
        frame[at++] = (char)(data[i] ^ mask[i % 4]);
    say(p, frame, at);
}
#define FRAME(p, first, text) say_frame((p), (first), text, sizeof text - 1)

/* The client ends its half; returns the rest of the server's output. */
static void peer_end(peer *p)
{
    shutdown(p->fd, SHUT_WR);
    CHECK_INT(conc_group_wait(&p->group), 0);
    CHECK_INT(hear(p), 0);
    CHECK_INT(conc_close(p->fd), 0);
}

/* Checks that the server answers a violation with this close, ends, and that its handler gets
 * rc. */
static void peer_is_refused(int line, peer *p, int code, int rc)
{
    char close_frame[] = {(char)0x88, 2, (char)(code >> 8), (char)code};
    hears(line, p, close_frame, sizeof close_frame);
    peer_end(p);
    CHECK_INT(p->rc, rc);
    CHECK_INT(p->code, code);
}
#define IS_REFUSED(p, code, rc) peer_is_refused(__LINE__, (p), (code), (rc))

/* ---- the handshake ---- */

WEBSOCKET_TEST(a_server_answers_the_handshake_of_the_rfc)
{
    peer p = {0};
    peer_open(&p);
    peer_end(&p);
    CHECK_INT(p.accepted, 0);
    CHECK_INT(p.rc, 0);
    CHECK_INT(p.code, 1006);
}

static void is_rejected(const char *request, const char *status, const char *words)
{
    peer p = {0};
    peer_serve(&p);
    say(&p, request, strlen(request));
    hear(&p);
    CHECK_CONTAINS(heard, status);
    CHECK_CONTAINS(heard, words);
    peer_end(&p);
    CHECK_INT(p.accepted, -EPROTO);
}

WEBSOCKET_TEST(a_request_that_is_not_a_handshake_is_rejected)
{
    is_rejected("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 426 ", "Sec-WebSocket-Version: 13");
    is_rejected("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
                "HTTP/1.1 426 ", "WebSocket clients");
    is_rejected(ASKS(KEY), "HTTP/1.1 426 ", "Sec-WebSocket-Version: 13");
    is_rejected(ASKS(KEY "Sec-WebSocket-Version: 8\r\n"), "HTTP/1.1 426 ", "version 13");
    is_rejected(ASKS(VERSION), "HTTP/1.1 400 ", "Key is missing");
    is_rejected(ASKS(VERSION "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n"), "400 ", "malformed");
    is_rejected(ASKS(VERSION "Sec-WebSocket-Key: dGhlIHNhbXBs!SBub25jZQ==\r\n"), "400 ",
                "malformed");
    is_rejected(ASKS(VERSION "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQQQ\r\n"), "400 ",
                "malformed");
    is_rejected("POST / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Content-Length: 0\r\n" KEY VERSION "\r\n",
                "HTTP/1.1 400 ", "GET");
}

WEBSOCKET_TEST(frames_may_come_with_the_handshake)
{
    peer p = {0};
    peer_serve(&p);
    SAY(&p, ASKS(KEY VERSION) "\x81\x82\0\0\0\0hi");
    HEARS(&p, ACCEPTED "\x81\x02hi");
    peer_end(&p);
}

/* A client on one end of a socket, and bytes for the server's half on the other. */
static int open_client(websocket *w, conc_stream *stream, const char *server_says, int *fd)
{
    int ends[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    CHECK_INT(conc_stream_open(stream, ends[0]), 0);
    CHECK_INT(conc_write_full(ends[1], server_says, strlen(server_says)), strlen(server_says));
    CHECK_INT(shutdown(ends[1], SHUT_WR), 0);
    w->stream = stream;
    int rc = websocket_connect(w, "/chat", "localhost:1");
    *fd = ends[1];
    return rc;
}

static void is_no_server(const char *answer_text, const char *words)
{
    int fd;
    conc_stream stream = {0};
    CONC_AUTO(websocket, w) = {0};
    CHECK_INT(open_client(&w, &stream, answer_text, &fd), -EPROTO);
    CHECK_CONTAINS(w.error, "localhost:1: ");
    CHECK_CONTAINS(w.error, words);
    CHECK_CONTAINS(conc_last_error(), words);
    ssize_t n = conc_read(fd, heard, sizeof heard - 1);
    CHECK(n > 0);
    heard[n] = 0;
    CHECK_CONTAINS(heard, "GET /chat HTTP/1.1\r\nHost: localhost:1\r\n");
    CHECK_INT(websocket_send(&w, 1, "x", 1), -EINVAL);
    CHECK_INT(conc_close(fd), 0);
}

WEBSOCKET_TEST(a_client_refuses_invalid_answers)
{
    is_no_server("", "ended the connection");
    is_no_server("SSH-2.0-garbage\r\n\r\n", "does not speak HTTP");
    is_no_server("HTTP/1.1 101 Switching", "refused");
    is_no_server("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "403 Forbidden");
    is_no_server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200 OK");
    is_no_server(ACCEPTED, "the server's handshake is wrong"); /* the proof of another key */
    is_no_server("HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", "is wrong");
    is_no_server("HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n", "refused");
}

WEBSOCKET_TEST(a_client_refuses_an_endless_answer)
{
    int fd;
    conc_stream stream = {.limit = 1000};
    CONC_AUTO(websocket, w) = {0};
    pattern[5000] = 0;
    CHECK_INT(open_client(&w, &stream, pattern, &fd), -EMSGSIZE);
    pattern[5000] = 'x';
    CHECK_INT(conc_close(fd), 0);
}

WEBSOCKET_TEST(invalid_arguments_change_nothing)
{
    websocket w = {0};
    websocket_message m;
    http_connection http = {0};
    conc_stream stream = {0};
    CHECK_INT(websocket_close(&w), 0);
    CHECK_INT(websocket_close(NULL), 0);
    CHECK_INT(websocket_accept(NULL, &http), -EINVAL);
    CHECK_INT(websocket_accept(&w, NULL), -EINVAL);
    CHECK_INT(websocket_receive(&w, &m), -EINVAL);
    CHECK_INT(websocket_receive(NULL, &m), -EINVAL);
    CHECK_INT(websocket_send(&w, 1, "x", 1), -EINVAL);
    CHECK_INT(websocket_printf(&w, "x"), -EINVAL);
    CHECK_INT(websocket_end(&w, 1000, NULL), -EINVAL);
    CHECK_INT(websocket_connect(&w, "/", "h"), -EINVAL);
    w.stream = &stream;
    CHECK_INT(websocket_connect(&w, "/ HTTP/1.1\r\nX: y", "h"), -EINVAL);
    CHECK_INT(websocket_connect(&w, "x", "h"), -EINVAL);
    CHECK_INT(websocket_connect(&w, "/", "h\r\n"), -EINVAL);
    CHECK_INT(websocket_connect(&w, "/", ""), -EINVAL);
    CHECK_INT(websocket_close(&w), 0);
}

/* ---- incoming frames ---- */

WEBSOCKET_TEST(messages_of_all_lengths_come_and_go)
{
    static const size_t lengths[] = {0, 1, 125, 126, 127, 65535, 65536, 200000};
    peer p = {0};
    peer_open(&p);
    for (size_t i = 0; i < CONC_LEN(lengths); i++) {
        size_t n = lengths[i], head = n < 126 ? 2 : n < 65536 ? 4 : 10;
        say_frame(&p, 0x82, pattern, n);
        CHECK_INT(hear(&p), n + head);
        CHECK_INT(heard[0] & 255, 0x82);
        CHECK(memcmp(heard + head, pattern, n) == 0);
    }
    peer_end(&p);
}

WEBSOCKET_TEST(fragments_are_joined_around_control_frames)
{
    peer p = {0};
    peer_open(&p);
    FRAME(&p, 0x01, "one, ");
    FRAME(&p, 0x89, "ping");
    HEARS(&p, "\x8a\x04ping");
    FRAME(&p, 0x00, "two, ");
    FRAME(&p, 0x8a, "unasked");
    FRAME(&p, 0x00, "");
    FRAME(&p, 0x80, "three");
    HEARS(&p, "\x81\x0fone, two, three");
    peer_end(&p);
    CHECK_STR(p.got, "1:one, two, three;");
}

WEBSOCKET_TEST(messages_of_one_segment_come_one_by_one)
{
    peer p = {0};
    peer_open(&p);
    SAY(&p, "\x81\x81\0\0\0\0a\x89\x80\0\0\0\0\x82\x81\0\0\0\0b\x88\x82\0\0\0\0\x03\xe8");
    HEARS(&p, "\x81\1a\x8a\0\x82\001"
              "b\x88\2\x03\xe8");
    peer_end(&p);
    CHECK_STR(p.got, "1:a;2:b;");
    CHECK_INT(p.rc, 0);
    CHECK_INT(p.code, 1000);
}

WEBSOCKET_TEST(a_message_may_come_byte_by_byte)
{
    static const char bytes[] = "\x81\xfe\0\x80\1\2\3\4";
    peer p = {0};
    peer_open(&p);
    for (size_t i = 0; i < 8; i++) {
        say(&p, bytes + i, 1);
        CHECK_INT(hear(&p), 0);
    }
    for (size_t i = 0; i < 128; i++) {
        CHECK_INT(hear(&p), 0);
        char c = (char)('a' ^ (i % 4 + 1));
        say(&p, &c, 1);
    }
    CHECK_INT(hear(&p), 4 + 128);
    CHECK(strcmp(heard + 4 + 126, "aa") == 0);
    peer_end(&p);
}

WEBSOCKET_TEST(text_that_is_not_utf8_is_closed_with_1007)
{
    static const char *const bad[] = {"\xff", "a\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                      "\xe2\x82"};
    for (size_t i = 0; i < CONC_LEN(bad); i++) {
        peer p = {0};
        peer_open(&p);
        say_frame(&p, 0x81, bad[i], strlen(bad[i]));
        IS_REFUSED(&p, 1007, -EPROTO);
        CHECK_CONTAINS(p.error, "not UTF-8");
    }
}

WEBSOCKET_TEST(a_character_may_be_cut_by_a_fragment)
{
    peer p = {0};
    peer_open(&p);
    FRAME(&p, 0x01, "\xe2\x82");
    FRAME(&p, 0x80, "\xac");
    HEARS(&p, "\x81\x03\xe2\x82\xac");
    FRAME(&p, 0x01, "a\xe2\x28"); /* and violations are refused before the message ends */
    IS_REFUSED(&p, 1007, -EPROTO);
    CHECK_STR(p.got, "1:\xe2\x82\xac;");
}

WEBSOCKET_TEST(a_message_over_the_limit_is_closed_with_1009)
{
    peer p = {.w.max_message = 200};
    peer_open(&p);
    say_frame(&p, 0x82, pattern, 200);
    CHECK_INT(hear(&p), 204);
    SAY(&p, "\x82\xfe\0\xc9\0\0\0\0a"); /* 201 bytes are announced */
    IS_REFUSED(&p, 1009, -EMSGSIZE);
    CHECK_CONTAINS(p.error, "too long");
}

WEBSOCKET_TEST(fragments_over_the_limit_are_closed_with_1009)
{
    peer p = {.w.max_message = 200};
    peer_open(&p);
    say_frame(&p, 0x01, pattern, 150);
    say_frame(&p, 0x00, pattern, 50);
    CHECK_INT(hear(&p), 0);
    say_frame(&p, 0x80, pattern, 1);
    IS_REFUSED(&p, 1009, -EMSGSIZE);
    CHECK_STR(p.got, "");
}

WEBSOCKET_TEST(a_refused_client_that_keeps_sending_still_gets_the_reason)
{
    peer p = {.w.max_message = 200};
    peer_open(&p);
    for (int i = 0; i < 3; i++)
        say_frame(&p, 0x82, pattern, 50000);
    IS_REFUSED(&p, 1009, -EMSGSIZE);
}

WEBSOCKET_TEST(frames_that_break_the_protocol_are_closed_with_1002)
{
    static const struct {
        const char *bytes;
        size_t n;
    } bad[] = {
#define BAD(text) {text, sizeof text - 1}
        BAD("\x81\x01x"),                             /* not masked */
        BAD("\xc1\x81\0\0\0\0x"),                     /* a reserved bit */
        BAD("\x83\x80\0\0\0\0"),                      /* a reserved opcode */
        BAD("\x8b\x80\0\0\0\0"),                      /* and of a control frame */
        BAD("\x09\x80\0\0\0\0"),                      /* a ping in fragments */
        BAD("\x89\xfe\0\x7e\0\0\0\0"),                /* a ping of 126 bytes */
        BAD("\x80\x80\0\0\0\0"),                      /* nothing to continue */
        BAD("\x01\x81\0\0\0\0x\x81\x81\0\0\0\0y"),    /* text inside of text */
        BAD("\x81\xfe\0\x01\0\0\0\0x"),               /* a length in too many bytes */
        BAD("\x81\xff\0\0\0\0\0\0\0\x01\0\0\0\0x"),   /* the same */
        BAD("\x81\xff\xff\0\0\0\0\0\0\x01\0\0\0\0x"), /* a negative length */
        BAD("\x88\x81\0\0\0\0\x03"),                  /* half a close code */
        BAD("\x88\x82\0\0\0\0\x03\xe7"),              /* 999 */
        BAD("\x88\x82\0\0\0\0\x03\xec"),              /* 1004 */
        BAD("\x88\x82\0\0\0\0\x03\xed"),              /* 1005 */
        BAD("\x88\x82\0\0\0\0\x03\xee"),              /* 1006 */
        BAD("\x88\x82\0\0\0\0\x03\xf7"),              /* 1015 */
        BAD("\x88\x82\0\0\0\0\x07\xd0"),              /* 2000 */
        BAD("\x88\x82\0\0\0\0\x13\x88"),              /* 5000 */
        BAD("\x88\x82\0\0\0\0\xff\xff"),
    };
    for (size_t i = 0; i < CONC_LEN(bad); i++) {
        peer p = {0};
        peer_open(&p);
        say(&p, bad[i].bytes, bad[i].n);
        IS_REFUSED(&p, 1002, -EPROTO);
        CHECK_CONTAINS(p.error, "protocol");
    }
}

WEBSOCKET_TEST(messages_before_a_violation_are_returned_first)
{
    peer p = {0};
    peer_open(&p);
    SAY(&p, "\x81\x81\0\0\0\0a\x81\x81\0\0\0\0b\x89\xfe\0\x7e");
    CHECK_INT(hear(&p), 3 + 3 + 4);
    CHECK(memcmp(heard, "\x81\1a\x81\1b\x88\2\x03\xea", 10) == 0);
    peer_end(&p);
    CHECK_STR(p.got, "1:a;1:b;");
    CHECK_INT(p.rc, -EPROTO);
}

/* ---- closes ---- */

WEBSOCKET_TEST(valid_close_codes_are_answered_with_the_same)
{
    static const int codes[] = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4999};
    for (size_t i = 0; i < CONC_LEN(codes); i++) {
        peer p = {0};
        char body[] = {(char)(codes[i] >> 8), (char)codes[i], 'b', 'y', 'e'};
        char reply[] = {(char)0x88, 5, body[0], body[1], 'b', 'y', 'e'};
        peer_open(&p);
        say_frame(&p, 0x88, body, sizeof body);
        hears(__LINE__, &p, reply, sizeof reply);
        peer_end(&p);
        CHECK_INT(p.rc, 0);
        CHECK_INT(p.code, codes[i]);
        CHECK_STR(p.reason, "bye");
    }
}

WEBSOCKET_TEST(a_close_may_have_no_code_and_a_long_reason)
{
    char body[125];
    peer p = {0}, q = {0}, r = {0};
    peer_open(&p);
    FRAME(&p, 0x88, "");
    HEARS(&p, "\x88\0");
    peer_end(&p);
    CHECK_INT(p.code, 1005);
    CHECK_STR(p.reason, "");
    memcpy(body, pattern, sizeof body);
    memcpy(body, "\x03\xe8", 2);
    peer_open(&q);
    say_frame(&q, 0x88, body, sizeof body);
    CHECK_INT(hear(&q), 127);
    peer_end(&q);
    CHECK_INT(strlen(q.reason), 123);
    peer_open(&r);
    FRAME(&r, 0x88, "\x03\xe8\xff");
    IS_REFUSED(&r, 1007, -EPROTO);
}

WEBSOCKET_TEST(a_close_may_come_in_parts)
{
    static const char bytes[] = "\x88\x87\0\0\0\0\x03\xe8\xe2\x82\xac\xc3\xa4";
    for (size_t cut = 1; cut < sizeof bytes - 1; cut++) {
        peer p = {0};
        peer_open(&p);
        say(&p, bytes, cut);
        CHECK_INT(hear(&p), 0);
        say(&p, bytes + cut, sizeof bytes - 1 - cut);
        HEARS(&p, "\x88\x07\x03\xe8\xe2\x82\xac\xc3\xa4");
        peer_end(&p);
        CHECK_STR(p.reason, "\xe2\x82\xac\xc3\xa4");
    }
}

static int end_it(peer *p)
{
    websocket_message m;
    CHECK_INT(websocket_end(&p->w, 1005, NULL), -EINVAL);
    CHECK_INT(websocket_end(&p->w, 999, NULL), -EINVAL);
    CHECK_INT(websocket_end(&p->w, 1015, NULL), -EINVAL);
    CHECK_INT(websocket_end(&p->w, 1000, pattern), -EINVAL);
    int rc = websocket_end(&p->w, 1001, "off");
    CHECK_INT(websocket_send(&p->w, 1, "x", 1), p->w.failure ? p->w.failure : -EPIPE);
    CHECK_INT(websocket_receive(&p->w, &m), p->w.failure);
    CHECK_INT(websocket_end(&p->w, 1000, NULL), 0);
    return rc;
}

WEBSOCKET_TEST(an_end_waits_for_the_peers_close)
{
    peer p = {.answer = end_it};
    peer_serve(&p);
    SAY(&p, ASKS(KEY VERSION));
    HEARS(&p, ACCEPTED "\x88\x05\x03\xe9off");
    FRAME(&p, 0x81, "dropped");
    FRAME(&p, 0x88, "\x03\xe9");
    peer_end(&p);
    CHECK_INT(p.rc, 0);
    CHECK_INT(p.code, 1001);
    CHECK_TIME(0);
}

WEBSOCKET_TEST(an_end_does_not_wait_forever)
{
    peer p = {.answer = end_it, .w.close_timeout = 3};
    peer_serve(&p);
    SAY(&p, ASKS(KEY VERSION));
    HEARS(&p, ACCEPTED "\x88\x05\x03\xe9off");
    CHECK_INT(conc_join(&p.task, NULL), 0);
    CHECK_TIME(3);
    CHECK_INT(p.rc, -ETIMEDOUT);
    CHECK_INT(p.code, 1006);
    CHECK_CONTAINS(p.error, "did not answer the close within 3 s");
    peer_end(&p);
}

WEBSOCKET_TEST(the_peer_may_leave_instead_of_closing)
{
    peer p = {.answer = end_it}, q = {0};
    peer_serve(&p);
    SAY(&p, ASKS(KEY VERSION));
    HEARS(&p, ACCEPTED "\x88\x05\x03\xe9off");
    peer_end(&p);
    CHECK_INT(p.rc, 0);
    CHECK_INT(p.code, 1006);
    peer_open(&q);
    SAY(&q, "\x81\x85\0\0\0\0hel");
    peer_end(&q); /* in the middle of a frame */
    CHECK_INT(q.rc, 0);
    CHECK_INT(q.code, 1006);
    CHECK_STR(q.got, "");
}

/* ---- pings and silence ---- */

WEBSOCKET_TEST(a_silent_peer_gets_a_ping_and_is_given_up)
{
    peer p = {.w.ping_interval = 10};
    peer_open(&p);
    CHECK_INT(conc_sleep(9), 0);
    CHECK_INT(hear(&p), 0);
    CHECK_INT(conc_sleep(1.5), 0);
    HEARS(&p, "\x89\0");
    CHECK_INT(conc_join(&p.task, NULL), 0);
    CHECK_TIME(20);
    CHECK_INT(p.rc, -ETIMEDOUT);
    CHECK_INT(p.code, 1006);
    CHECK_CONTAINS(p.error, "silent");
    peer_end(&p);
}

WEBSOCKET_TEST(a_pong_is_a_sign_of_life)
{
    peer p = {0};
    peer_open(&p);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_sleep(31), 0);
        HEARS(&p, "\x89\0");
        CHECK_INT(conc_sleep(15), 0);
        FRAME(&p, 0x8a, "");
    }
    FRAME(&p, 0x81, "still here");
    HEARS(&p, "\x81\x0astill here");
    peer_end(&p);
    CHECK_INT(p.rc, 0);
}

/* ---- our own client against our own server ---- */

typedef struct session {
    peer p; /* its server's half */
    conc_stream stream;
    websocket w;
} session;

static void session_open(session *s)
{
    peer_serve(&s->p);
    CHECK_INT(conc_stream_open(&s->stream, s->p.fd), 0);
    s->w.stream = &s->stream;
    CHECK_INT(websocket_connect(&s->w, "/chat", "h"), 0);
}

static void session_close(session *s)
{
    CHECK_INT(websocket_close(&s->w), 0);
    CHECK_INT(conc_group_wait(&s->p.group), 0);
}

WEBSOCKET_TEST(a_client_and_a_server_talk_and_end)
{
    session s = {0};
    websocket_message m;
    session_open(&s);
    CHECK_INT(websocket_printf(&s.w, "number %d", 7), 0);
    CHECK_INT(websocket_receive(&s.w, &m), 1);
    CHECK_INT(m.type, WEBSOCKET_TEXT);
    CHECK_STR(m.data, "number 7");
    CHECK_INT(websocket_send(&s.w, WEBSOCKET_BINARY, pattern, BIG), 0);
    CHECK_INT(websocket_receive(&s.w, &m), 1);
    CHECK_INT(m.type, WEBSOCKET_BINARY);
    CHECK_INT(m.size, BIG);
    CHECK(memcmp(m.data, pattern, BIG) == 0);
    CHECK_INT(websocket_send(&s.w, WEBSOCKET_TEXT, NULL, 0), 0);
    CHECK_INT(websocket_receive(&s.w, &m), 1);
    CHECK_INT(m.size, 0);
    CHECK_STR(m.data, "");
    CHECK_INT(websocket_send(&s.w, 3, "x", 1), -EINVAL);
    CHECK_INT(websocket_send(&s.w, 1, NULL, 1), -EINVAL);
    CHECK_INT(websocket_receive(&s.w, NULL), -EINVAL);
    CHECK_INT(websocket_connect(&s.w, "/", "h"), -EINVAL);
    CHECK_INT(websocket_end(&s.w, 4000, "enough"), 0);
    CHECK_INT(s.w.close_code, 4000);
    CHECK_INT(websocket_receive(&s.w, &m), 0);
    CHECK_INT(websocket_send(&s.w, 1, "x", 1), -EPIPE);
    session_close(&s);
    CHECK_INT(s.p.rc, 0);
    CHECK_INT(s.p.code, 4000);
    CHECK_STR(s.p.reason, "enough");
}

static int receive_till_the_end(void *arg)
{
    websocket_message m;
    int n = 0, rc;
    while ((rc = websocket_receive(arg, &m)) > 0)
        n++;
    return rc < 0 ? rc : n;
}

WEBSOCKET_TEST(an_end_leaves_the_receiving_to_the_task_that_does_it)
{
    session s = {0};
    websocket_message m;
    conc_group g = {0};
    conc_task t = {0};
    int n = 0;
    session_open(&s);
    CHECK_INT(conc_spawn_task(&g, &t, receive_till_the_end, &s.w), 0);
    CHECK_INT(websocket_printf(&s.w, "a"), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(websocket_receive(&s.w, &m), -EBUSY);
    CHECK_INT(websocket_end(&s.w, 1000, NULL), 0);
    CHECK_INT(conc_join(&t, &n), 0);
    CHECK_INT(n, 1);
    CHECK_INT(conc_group_wait(&g), 0);
    session_close(&s);
}

WEBSOCKET_TEST(a_client_refuses_masked_frames)
{
    /* A server that echoes a client's bytes, including the mask. */
    session s = {0};
    websocket_message m;
    session_open(&s);
    int raw = s.p.stream.fd;
    CHECK_INT(conc_write_full(raw, "\x81\x81\0\0\0\0x", 7), 7);
    CHECK_INT(websocket_receive(&s.w, &m), -EPROTO);
    CHECK_INT(s.w.close_code, 1002);
    session_close(&s);
    CHECK_INT(s.p.code, 1002);
}

typedef struct sender {
    websocket *w;
    char name;
    int rc;
} sender;

static int send_ten(void *arg)
{
    sender *s = arg;
    static const size_t sizes[] = {1, 70000, 3, 126, 40000};
    char *text = malloc(70000);
    CHECK(text != NULL);
    memset(text, s->name, 70000);
    for (int i = 0; i < 10 && s->rc == 0; i++)
        s->rc = websocket_send(s->w, WEBSOCKET_TEXT, text, sizes[i % 5]);
    free(text);
    return 0;
}

WEBSOCKET_TEST(messages_of_several_tasks_stay_whole)
{
    session s = {0};
    sender senders[5];
    conc_group g = {0};
    websocket_message m;
    session_open(&s);
    for (int i = 0; i < 5; i++) {
        senders[i] = (sender){&s.w, (char)('a' + i), 0};
        CHECK_INT(conc_spawn(&g, send_ten, &senders[i]), 0);
    }
    int counts[5] = {0};
    for (int i = 0; i < 50; i++) {
        static const size_t sizes[] = {1, 70000, 3, 126, 40000};
        CHECK_INT(websocket_receive(&s.w, &m), 1);
        int who = m.data[0] - 'a';
        CHECK(who >= 0 && who < 5);
        CHECK_INT(m.size, sizes[counts[who]++ % 5]);
        CHECK_INT(strspn(m.data, (char[]){m.data[0], 0}), m.size);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 5; i++)
        CHECK_INT(senders[i].rc, 0);
    session_close(&s);
}

/* ---- a peer that does not read ---- */

static int send_big(void *arg)
{
    sender *s = arg;
    s->rc = websocket_send(s->w, WEBSOCKET_BINARY, pattern, BIG);
    return 0;
}

static int flood(peer *p)
{
    conc_group g = {0};
    sender big = {&p->w, 0, 0};
    int rc = 0;
    websocket_message m;
    CHECK_INT(conc_spawn(&g, send_big, &big), 0); /* waits, because its peer does not read */
    CHECK_INT(conc_settle(), 0);
    rc = websocket_send(&p->w, WEBSOCKET_BINARY, pattern, p->w.max_unsent - BIG + 1);
    CHECK_INT(rc, -ENOBUFS);
    CHECK_CONTAINS(conc_last_error(), "300000 bytes wait");
    CHECK_INT(p->w.state, WEBSOCKET__OPEN);
    while ((rc = websocket_receive(&p->w, &m)) > 0)
        continue;
    CHECK_INT(big.rc, rc < 0 ? -EINPROGRESS : 0);
    CHECK_INT(conc_group_wait(&g), 0);
    return rc;
}

WEBSOCKET_TEST(the_send_queue_is_bounded)
{
    peer p = {.answer = flood, .w.max_unsent = 310000};
    peer_serve(&p);
    SAY(&p, ASKS(KEY VERSION));
    CHECK_INT(conc_sleep(1), 0); /* and reads, from now on */
    CHECK_INT(hear(&p), sizeof heard - 1);
    CHECK_INT(hear(&p), sizeof ACCEPTED - 1 + 10 + BIG - (sizeof heard - 1));
    FRAME(&p, 0x88, "");
    HEARS(&p, "\x88\0");
    peer_end(&p);
    CHECK_INT(p.rc, 0);
}

static int give_up(peer *p)
{
    sender big = {&p->w, 0, -EINPROGRESS};
    websocket_message m;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, send_big, &big), 0);
    int rc = websocket_receive(&p->w, &m);
    CHECK_INT(websocket_close(&p->w), 0); /* which ends the send, too */
    CHECK_INT(big.rc, -EPIPE);
    CHECK_INT(conc_group_wait(&g), 0);
    return rc;
}

WEBSOCKET_TEST(a_peer_that_neither_reads_nor_writes_is_given_up)
{
    peer p = {.answer = give_up};
    peer_serve(&p);
    SAY(&p, ASKS(KEY VERSION));
    CHECK_INT(conc_join(&p.task, NULL), 0);
    CHECK_INT(p.rc, -ETIMEDOUT);
    CHECK_TIME(60);
    CHECK(hear(&p) > 1000);
    peer_end(&p);
}

static int receive_one(peer *p)
{
    websocket_message m;
    return websocket_receive(&p->w, &m);
}

WEBSOCKET_TEST(a_peer_that_pings_and_does_not_read_is_given_up)
{
    peer p = {.answer = receive_one};
    char ping[131] = "\x89\xfd";
    bool full = false;
    peer_open(&p);
    while (!full && !conc_done(&p.task)) {
        full = send(p.fd, ping, sizeof ping, MSG_DONTWAIT) < 0;
        CHECK_INT(conc_yield(), 0);
    }
    CHECK(full);
    CHECK_INT(conc_join(&p.task, NULL), 0);
    CHECK_INT(p.rc, -ETIMEDOUT);
    CHECK_CONTAINS(p.error, "does not read");
    CHECK(hear(&p) > 1000);
    peer_end(&p);
}

/* ---- cancels and limits ---- */

typedef struct limited {
    websocket *w;
    const void *data;
    size_t size;
} limited;

static int limited_receive(void *arg)
{
    websocket_message m;
    return websocket_receive(((limited *)arg)->w, &m);
}
static int limited_send(void *arg)
{
    limited *l = arg;
    return websocket_send(l->w, WEBSOCKET_BINARY, l->data, l->size);
}
static int limited_end(void *arg) { return websocket_end(((limited *)arg)->w, 1000, NULL); }

static int receive_with_limits(peer *p)
{
    limited l = {&p->w, NULL, 0};
    websocket_message m;
    CHECK_INT(conc_timeout(1, limited_receive, &l), -ETIMEDOUT);
    CHECK_INT(conc_timeout(0, limited_receive, &l), -ETIMEDOUT);
    CHECK_INT(conc_timeout(2, limited_receive, &l), -ETIMEDOUT);
    CHECK_INT(websocket_receive(&p->w, &m), 1);
    CHECK_STR(m.data, "hello");
    return 0;
}

WEBSOCKET_TEST(a_receive_that_is_cut_short_loses_nothing)
{
    peer p = {.answer = receive_with_limits};
    peer_open(&p);
    SAY(&p, "\x01\x82\0\0\0\0he");
    CHECK_INT(conc_sleep(1.5), 0);
    SAY(&p, "\x80\x83\0\0\0\0l");
    CHECK_INT(conc_sleep(2), 0);
    SAY(&p, "lo");
    peer_end(&p);
    CHECK_INT(p.rc, 0);
}

static int send_with_limits(peer *p)
{
    limited big = {&p->w, pattern, BIG}, small = {&p->w, "small", 5};
    CHECK_INT(conc_timeout(0, limited_send, &small), -ETIMEDOUT); /* no byte of it was sent */
    CHECK_INT(conc_timeout(1, limited_send, &big), 0);            /* some of it was */
    CHECK_TIME(1);
    CHECK_INT(conc_timeout(1, limited_send, &small), -ETIMEDOUT); /* nothing */
    CHECK_TIME(2);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(websocket_printf(&p->w, "last"), 0);
    return 0;
}

WEBSOCKET_TEST(a_send_that_is_cut_short_leaves_whole_frames)
{
    static char all[BIG + 1000];
    size_t n = 0;
    peer p = {.answer = send_with_limits};
    peer_serve(&p);
    SAY(&p, ASKS(KEY VERSION));
    CHECK_INT(conc_sleep(2.5), 0);
    for (ssize_t got = 1; got > 0; n += (size_t)got)
        got = CONC_LEN(all) > n ? conc_read(p.fd, all + n, sizeof all - n) : 0;
    size_t head = sizeof ACCEPTED - 1;
    CHECK_INT(n, head + 10 + BIG + 6);
    CHECK(memcmp(all + head + 10, pattern, BIG) == 0);
    CHECK(memcmp(all + n - 6, "\x81\x04last", 6) == 0);
    peer_end(&p);
}

static int end_with_limits(peer *p)
{
    limited l = {&p->w, NULL, 0};
    CHECK_INT(conc_timeout(1, limited_end, &l), -ETIMEDOUT);
    CHECK_TIME(1);
    CHECK_INT(p->w.state, WEBSOCKET__OPEN);
    return limited_receive(&l);
}

WEBSOCKET_TEST(an_end_can_have_a_shorter_limit)
{
    peer p = {.answer = end_with_limits};
    peer_serve(&p);
    SAY(&p, ASKS(KEY VERSION));
    HEARS(&p, ACCEPTED "\x88\x02\x03\xe8");
    CHECK_INT(conc_sleep(2), 0);
    FRAME(&p, 0x88, "\x03\xe8");
    peer_end(&p);
    CHECK_INT(p.rc, 0);
    CHECK_INT(p.code, 1000);
}

static int hangs(peer *p)
{
    websocket_message m;
    CHECK_INT(websocket_receive(&p->w, &m), -ECANCELED);
    CHECK_INT(websocket_send(&p->w, 1, "x", 1), -ECANCELED);
    CHECK_INT(websocket_end(&p->w, 1000, NULL), -ECANCELED);
    return -ECANCELED;
}

WEBSOCKET_TEST(a_cancelled_server_leaves_nothing)
{
    peer p = {.answer = hangs}, q = {0};
    peer_open(&p);
    CHECK_INT(conc_cancel(&p.task), 0);
    peer_end(&p);
    CHECK_INT(p.rc, -ECANCELED);
    peer_serve(&q); /* which waits for the handshake */
    SAY(&q, "GET /chat HT");
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&q.task), 0);
    peer_end(&q);
}

static int connect_to_nobody(void *arg)
{
    (void)arg;
    int ends[2];
    conc_stream stream = {0};
    websocket w = {.stream = &stream};
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    CHECK_INT(conc_stream_open(&stream, ends[0]), 0);
    int rc = websocket_connect(&w, "/", "h");
    CHECK(w.stream == NULL);
    CHECK_INT(conc_close(ends[1]), 0);
    return rc;
}

WEBSOCKET_TEST(a_connect_can_be_cut_short)
{
    CHECK_INT(conc_timeout(3, connect_to_nobody, NULL), -ETIMEDOUT);
    CHECK_TIME(3);
    CHECK_INT(conc_timeout(0, connect_to_nobody, NULL), -ETIMEDOUT);
}

static int close_it(void *arg) { return websocket_close(arg); }

WEBSOCKET_TEST(a_close_ends_the_calls_of_other_tasks)
{
    session s = {0};
    conc_group g = {.keep_going = true};
    conc_task t = {0};
    int rc = 0;
    session_open(&s);
    CHECK_INT(conc_spawn_task(&g, &t, receive_till_the_end, &s.w), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_timeout(0, close_it, &s.w), 0);
    CHECK(conc_done(&t));
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_INT(rc, -EPIPE);
    CHECK_INT(conc_group_wait(&g), -EPIPE);
    session_close(&s);
    CHECK_INT(s.p.code, 1006);
}

TEST(outside_a_task_nothing_happens)
{
    websocket w = {.state = WEBSOCKET__OPEN};
    websocket_message m;
    CHECK_INT(websocket_receive(&w, &m), -EPERM);
    CHECK_INT(websocket_send(&w, 1, "x", 1), -EPERM);
}

/* ---- many, TLS, debug mode, a foreign peer ---- */

typedef struct crowd {
    conc_barrier all;
    const char *address;
    int served, talked;
} crowd;

static int crowd_answer(http_connection *http, void *arg)
{
    crowd *c = arg;
    websocket_message m;
    CONC_AUTO(websocket, w) = {0};
    if (websocket_accept(&w, http))
        return 0;
    while (CONC_TRY(websocket_receive(&w, &m)) > 0)
        CONC_TRY(websocket_send(&w, m.type, m.data, m.size));
    c->served += w.close_code == 1000;
    return 0;
}

static int crowd_serve(int fd, void *arg)
{
    conc_stream stream = {.buffer_size = 1024};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, crowd_answer, arg);
}

static int serve_crowd(void *server) { return conc_serve(server); }

static int crowd_talk(void *arg)
{
    crowd *c = arg;
    websocket_message m;
    conc_stream stream = {.buffer_size = 1024};
    CONC_AUTO(websocket, w) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, CONC_TRY(conc_dial(c->address))));
    CONC_TRY(websocket_connect(&w, "/", c->address));
    CONC_TRY(conc_barrier_wait(&c->all)); /* all are connected */
    CONC_TRY(websocket_printf(&w, "hello"));
    if (CONC_TRY(websocket_receive(&w, &m)) > 0 && strcmp(m.data, "hello") == 0)
        c->talked++;
    return websocket_end(&w, 1000, NULL);
}

REAL_TEST(a_thousand_connections_at_once)
{
    struct rlimit files;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &files), 0);
    int n = files.rlim_max > 2100 ? 1000 : 400;
    files.rlim_cur = files.rlim_max > 2100 ? 2100 : files.rlim_max;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &files), 0);
    char address[64];
    crowd c = {.all = {.parties = n}, .address = address};
    conc_server server = {.handler = crowd_serve, .arg = &c};
    conc_group clients = {0};
    conc_group background = {0};
    server.fd = conc_listen("127.0.0.1:0");
    CHECK(server.fd >= 0);
    CHECK_INT(conc_address(server.fd, false, address, sizeof address), 0);
    CHECK_INT(conc_spawn(&background, serve_crowd, &server), 0);
    for (int i = 0; i < n; i++)
        CHECK_INT(conc_spawn(&clients, crowd_talk, &c), 0);
    CHECK_INT(conc_group_wait(&clients), 0);
    conc_group_cancel(&background);
    CHECK_INT(conc_group_wait(&background), 0);
    CHECK_INT(conc_close(server.fd), 0);
    CHECK_INT(c.talked, n);
    CHECK_INT(c.served, n);
}

/* An echo by Python's websockets. */
static const char stranger[] =
    "import asyncio, sys, websockets\n"
    "async def echo(ws, path):\n"
    "    async for m in ws:\n"
    "        await ws.send([m[:1], m[1:3], m[3:]] if len(m) > 3 else m)\n"
    "async def main():\n"
    "    async with websockets.serve(echo, '127.0.0.1', int(sys.argv[1]), max_size=2**16):\n"
    "        await asyncio.Future()\n"
    "asyncio.run(main())\n";

static struct {
    server program;
    const char *argv[5];
    char port[16], address[32];
} python;

static void python_start(void)
{
    python.program.port = server_free_port();
    snprintf(python.port, sizeof python.port, "%d", python.program.port);
    snprintf(python.address, sizeof python.address, "127.0.0.1:%s", python.port);
    const char *const argv[] = {"/usr/bin/python3", "-c", stranger, python.port, NULL};
    memcpy(python.argv, argv, sizeof argv);
    python.program.argv = python.argv;
    server_make_folder(&python.program);
    server_start(&python.program);
}

static void dial_python(websocket *w, conc_stream *stream)
{
    CHECK_INT(conc_stream_open(stream, conc_dial(python.address)), 0);
    w->stream = stream;
    CHECK_INT(websocket_connect(w, "/", python.address), 0);
}

static void talk_to_python(void)
{
    conc_stream stream = {0}, again = {0}, third = {0};
    CONC_AUTO(websocket, w) = {0};
    CONC_AUTO(websocket, v) = {0};
    CONC_AUTO(websocket, u) = {.ping_interval = 0.2};
    websocket_message m;
    dial_python(&w, &stream);
    CHECK_INT(websocket_send(&w, WEBSOCKET_TEXT, pattern, 60000), 0);
    CHECK_INT(websocket_receive(&w, &m), 1); /* it was sent in fragments */
    CHECK(m.size == 60000 && memcmp(m.data, pattern, m.size) == 0);
    CHECK_INT(websocket_printf(&w, "\xff"), 0);
    CHECK_INT(websocket_receive(&w, &m), 0);
    CHECK_INT(w.close_code, 1007);
    dial_python(&v, &again);
    CHECK_INT(websocket_send(&v, WEBSOCKET_BINARY, pattern, 70000), 0);
    CHECK_INT(websocket_receive(&v, &m), 0);
    CHECK_INT(v.close_code, 1009);
    CHECK_INT(websocket_close(&v), 0);
    dial_python(&v, &again);
    CHECK_INT(websocket_end(&v, 4000, "enough"), 0);
    CHECK_INT(v.close_code, 4000);
    dial_python(&u, &third);
    server_signal(&python.program, SIGSTOP); /* it hangs */
    CHECK_INT(websocket_receive(&u, &m), -ETIMEDOUT);
    server_kill(&python.program);
}

static void talk_after_a_restart(void)
{
    conc_stream stream = {0}, again = {0};
    CONC_AUTO(websocket, w) = {0};
    CONC_AUTO(websocket, v) = {0};
    websocket_message m;
    dial_python(&w, &stream);
    CHECK_INT(websocket_printf(&w, "one"), 0);
    CHECK_INT(websocket_receive(&w, &m), 1);
    server_kill(&python.program);
    int rc = websocket_receive(&w, &m);
    CHECK(rc == 0 || rc == -ECONNRESET);
    CHECK_INT(w.close_code, 1006);
    server_start(&python.program);
    dial_python(&v, &again);
    CHECK_INT(websocket_printf(&v, "two"), 0);
    CHECK_INT(websocket_receive(&v, &m), 1);
    CHECK_STR(m.data, "two");
}

TEST(a_foreign_server_is_understood)
{
    python_start();
    run_checked(talk_to_python, false);
    server_end(&python.program);
}

TEST(a_server_that_dies_and_comes_back_is_noticed)
{
    python_start();
    run_checked(talk_after_a_restart, false);
    server_end(&python.program);
}

/* ---- over TLS ---- */

static const char make_certificate[] =
    "cd \"$0\" && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
    "-subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem "
    ">/dev/null 2>&1";

typedef struct secure {
    tls_context client, server;
    char address[64];
    int served;
} secure;

static int secure_answer(http_connection *http, void *arg)
{
    secure *s = arg;
    websocket_message m;
    CONC_AUTO(websocket, w) = {0};
    if (websocket_accept(&w, http))
        return 0;
    while (CONC_TRY(websocket_receive(&w, &m)) > 0)
        CONC_TRY(websocket_send(&w, m.type, m.data, m.size));
    s->served = w.close_code;
    return 0;
}

static int secure_serve(int fd, void *arg)
{
    secure *s = arg;
    CONC_AUTO(tls_connection, t) = {0};
    CONC_TRY(tls_accept(&t, &s->server, fd));
    CONC_AUTO(http_connection, http) = {.stream = &t.stream};
    return http_serve(&http, secure_answer, s);
}

static void talk_securely(secure *s)
{
    CONC_AUTO(tls_connection, t) = {0};
    CONC_AUTO(websocket, w) = {.stream = &t.stream};
    websocket_message m;
    CHECK_INT(tls_connect(&t, &s->client, s->address), 0);
    CHECK_INT(websocket_connect(&w, "/", s->address), 0);
    CHECK_INT(websocket_send(&w, WEBSOCKET_TEXT, pattern, BIG), 0);
    CHECK_INT(websocket_receive(&w, &m), 1);
    CHECK(m.size == BIG && memcmp(m.data, pattern, BIG) == 0);
    CHECK_INT(websocket_end(&w, 1000, "goodbye"), 0);
}

static secure over_tls;

static void serve_securely(void)
{
    secure *s = &over_tls;
    conc_group background = {0};
    conc_server server = {.handler = secure_serve, .arg = s};
    server.fd = conc_listen("127.0.0.1:0");
    CHECK(server.fd >= 0);
    char bound[64];
    CHECK_INT(conc_address(server.fd, false, bound, sizeof bound), 0);
    snprintf(s->address, sizeof s->address, "localhost%s", strrchr(bound, ':'));
    CHECK_INT(conc_spawn(&background, serve_crowd, &server), 0);
    talk_securely(s);
    conc_group_cancel(&background);
    CHECK_INT(conc_group_wait(&background), 0);
    CHECK_INT(conc_close(server.fd), 0);
    CHECK_INT(s->served, 1000);
}

TEST(it_works_over_tls)
{
    char folder[] = "/tmp/conc-websocket-XXXXXX", cert[64], key[64];
    CHECK(mkdtemp(folder) != NULL);
    snprintf(cert, sizeof cert, "%s/cert.pem", folder);
    snprintf(key, sizeof key, "%s/key.pem", folder);
    pid_t child = fork();
    int status = -1;
    if (child == 0) {
        execlp("sh", "sh", "-c", make_certificate, folder, (char *)NULL);
        _exit(127);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    over_tls.client.ca_file = cert;
    over_tls.server = (tls_context){.certificate_file = cert, .key_file = key};
    CHECK_INT(tls_context_open_client(&over_tls.client), 0);
    CHECK_INT(tls_context_open_server(&over_tls.server), 0);
    run_checked(serve_securely, false);
    tls_context_close(&over_tls.client);
    tls_context_close(&over_tls.server);
    unlink(cert);
    unlink(key);
    CHECK_INT(rmdir(folder), 0);
}

static int debug_session(void *arg)
{
    session s = {0};
    websocket_message m;
    (void)arg;
    session_open(&s);
    CHECK_INT(websocket_send(&s.w, WEBSOCKET_TEXT, pattern, BIG), 0);
    CHECK_INT(websocket_receive(&s.w, &m), 1);
    CHECK_INT(websocket_end(&s.w, 1000, NULL), 0);
    session_close(&s);
    return 0;
}

static void run_in_debug_mode(void)
{
    conc_options o = {.debug = true, .slow_step = SANITIZED ? 0.1 : 0.01};
    CHECK_INT(conc_run_with(&o, debug_session, NULL), 0);
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
