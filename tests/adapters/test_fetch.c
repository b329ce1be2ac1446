/* test_fetch.c - examples/common/fetch.h: requests to a real server, Python's http.server, and
 * to tasks of the test that act as servers which hang, lie, break off or send too much.
 *
 * Needs -lcurl */
#define TEST_SYNC
#include "../conc_test.h"

#include <curl/curl.h>

/* The longest time that curl kept the processor, in seconds, without time in which another process
 * had it. */
static double longest_step;

static double processor_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static CURLMcode timed_socket_action(CURLM *multi, curl_socket_t fd, int events, int *running)
{
    double start = processor_seconds();
    CURLMcode code = curl_multi_socket_action(multi, fd, events, running);
    double step = processor_seconds() - start;
    longest_step = step > longest_step ? step : longest_step;
    return code;
}
#define curl_multi_socket_action timed_socket_action

#include "fetch.h"
#include "server.h"

#include <libgen.h>
#include <limits.h>
#include <netdb.h>
#include <pthread.h>
#include <semaphore.h>

/* ---- runs ---- */

static server python;
static int failures; /* errors that no task collected */

static void count_failure(const conc_failure *f, void *user)
{
    (void)user;
    fprintf(stderr, "%s: %s\n", f->task, f->text);
    failures++;
}

static void run_body(void (*body)(void))
{
    test_task t = {body};
    conc_options options = {.on_error = count_failure};
    int fds = test_count_fds();
    setenv("no_proxy", "*", 1);
    CHECK_INT(conc_run_with(&options, test_call_body, &t), 0);
    CHECK_INT(test_count_fds(), fds);
    CHECK_INT(failures, 0);
}

static void start_python(const char *mode)
{
    static char file[] = __FILE__, script[PATH_MAX + 32], port[16];
    static const char *argv[] = {"python3", "-u", script, port, NULL, NULL};
    char *folder = realpath(dirname(file), NULL); /* the folder that the compiler ran in */
    CHECK(folder != NULL);
    python = (server){.argv = argv, .port = server_free_port()};
    snprintf(script, sizeof script, "%s/fetch_server.py", folder);
    snprintf(port, sizeof port, "%d", python.port);
    argv[4] = mode;
    free(folder);
    server_make_folder(&python);
    server_start(&python);
}

/* A test in a run; SERVED_TEST with Python's server beside it. */
#define RUN_TEST(name)                       \
    static void body_of_##name(void);        \
    TEST(name) { run_body(body_of_##name); } \
    static void body_of_##name(void)
#define SERVED_TEST(name)             \
    static void body_of_##name(void); \
    TEST(name)                        \
    {                                 \
        start_python(NULL);           \
        run_body(body_of_##name);     \
        server_end(&python);          \
    }                                 \
    static void body_of_##name(void)

static const char *at(const char *path)
{
    static char urls[4][128];
    static unsigned next;
    char *url = urls[next++ % 4];
    snprintf(url, sizeof urls[0], "http://127.0.0.1:%d%s", python.port, path);
    return url;
}

/* ---- requests ---- */

static void check_body(const fetch_response *r, const char *expected)
{
    CHECK_STR(r->body, expected);
    CHECK_INT(r->size, strlen(expected));
}

static void check_get(fetch_client *c, const char *url, const char *expected)
{
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch(c, url, NULL, &r), 0);
    CHECK_INT(r.status, 200);
    CHECK_STR(r.error, "");
    check_body(&r, expected);
}

static int state_of_python(fetch_client *c, const char *format, int *count)
{
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch(c, at("/state"), NULL, &r), 0);
    return sscanf(r.body, format, count);
}

static void check_error(const fetch_response *r, const char *words)
{
    CHECK_CONTAINS(r->error, words);
    CHECK_STR(conc_last_error(), r->error);
    CHECK(r->body == NULL && r->size == 0 && r->curl == NULL);
}

/* A call of fetch in its own task. */
typedef struct job {
    fetch_client *client;
    char url[128];
    fetch_options options;
    fetch_response r;
    int rc;
    conc_task task;
} job;

static int do_job(void *arg)
{
    job *j = arg;
    j->rc = fetch(j->client, j->url, &j->options, &j->r);
    return 0;
}

static void begin(conc_group *g, job *j, fetch_client *c, const char *url)
{
    j->client = c;
    snprintf(j->url, sizeof j->url, "%s", url);
    CHECK_INT(conc_spawn_task(g, &j->task, do_job, j), 0);
}

/* Checks that it ended with this. */
static void check_job(job *j, int rc)
{
    CHECK_INT(conc_join(&j->task, NULL), 0);
    CHECK_INT(j->rc, rc);
    fetch_response_free(&j->r);
}

/* ---- the test's own servers ---- */

typedef struct peer {
    const char *answer;
    size_t size;             /* length of the answer; 0: it is a string */
    bool hangs;              /* after the answer; otherwise it closes */
    bool endless;            /* sends the answer forever */
    conc_event *go;          /* what it waits for before the answer */
    conc_event asked, stuck; /* a request has arrived; the client reads no more */
    conc_server server;
    char url[80];
} peer;

static int send_for_ever(peer *p, int fd)
{
    for (;;) {
        ssize_t n = conc_send(fd, p->answer, p->size, MSG_DONTWAIT);
        if (n == -EAGAIN) {
            conc_event_set(&p->stuck);
            CONC_TRY(conc_wait_fd(fd, CONC_WRITABLE));
        } else if (n < 0) {
            return 0; /* the client is gone */
        }
        CONC_TRY(conc_yield());
    }
}

static int handle(int fd, void *arg)
{
    peer *p = arg;
    char request[4096];
    CONC_TRY(conc_read(fd, request, sizeof request)); /* a short one arrives in one piece */
    conc_event_set(&p->asked);
    if (p->go)
        CONC_TRY(conc_event_wait(p->go));
    if (p->answer)
        conc_write_full(fd, p->answer, p->size ? p->size : strlen(p->answer));
    if (p->endless)
        return send_for_ever(p, fd);
    return p->hangs ? conc_sleep(CONC_FOREVER) : 0;
}

static int serve_peer(void *arg)
{
    const peer *p = arg;
    return conc_serve(&p->server);
}

static void start_peer(conc_group *g, peer *p)
{
    char address[64];
    int fd = conc_listen("127.0.0.1:0");
    CHECK(fd >= 0);
    CHECK_INT(conc_address(fd, false, address, sizeof address), 0);
    snprintf(p->url, sizeof p->url, "http://%s/", address);
    p->server = (conc_server){.fd = fd, .handler = handle, .arg = p};
    CHECK_INT(conc_spawn(g, serve_peer, p), 0);
}

/* Checks that only peers and ended jobs are left in the group. */
static void stop(conc_group *g, peer *p)
{
    CHECK_INT(conc_close(p->server.fd), 0);
    conc_group_cancel(g);
    CHECK_INT(conc_group_wait(g), 0);
}

#define HELLO "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
#define ENDLESS "HTTP/1.1 200 OK\r\n\r\n"

/* ---- ordinary requests ---- */

SERVED_TEST(a_get_returns_status_headers_and_body)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch(&c, at("/hello"), NULL, &r), 0);
    CHECK_INT(r.status, 200);
    check_body(&r, "hello, world\n");
    CHECK_STR(fetch_header(&r, "content-LENGTH"), "13");
    CHECK(fetch_header(&r, "X-None") == NULL);
    CHECK(fetch_header(&r, NULL) == NULL);
    CHECK_STR(r.error, "");
    curl_off_t sent = 0;
    CHECK_INT(curl_easy_getinfo(r.curl, CURLINFO_SIZE_DOWNLOAD_T, &sent), 0);
    CHECK_INT(sent, 13);
}

SERVED_TEST(an_error_status_is_an_answer)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch(&c, at("/status/429"), NULL, &r), 0);
    CHECK_INT(r.status, 429);
    check_body(&r, "no");
    CHECK_STR(fetch_header(&r, "retry-after"), "7");
    CHECK_STR(fetch_header(&r, "Set-Cookie"), "a=1");
    struct curl_header *second;
    CHECK_INT(curl_easy_header(r.curl, "set-cookie", 1, CURLH_HEADER, -1, &second), CURLHE_OK);
    CHECK_STR(second->value, "b=2");
    CHECK_INT(fetch(&c, at("/hello"), NULL, &r), 0); /* the same response, again */
    CHECK_INT(r.status, 200);
    check_body(&r, "hello, world\n");
    CHECK(fetch_header(&r, "retry-after") == NULL);
}

/* Sends it, and compares what the server received: the first line, and parts of the rest. */
static void check_echo(fetch_client *c, const fetch_options *o, const char *line, const char *part)
{
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch(c, at("/echo"), o, &r), 0);
    CHECK(r.size > strlen(line));
    CHECK(strncmp(r.body, line, strlen(line)) == 0);
    CHECK_CONTAINS(r.body, part);
}

SERVED_TEST(methods_headers_and_bodies_arrive)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    static const char *const headers[] = {"X-A: 1", "content-type: text/x", NULL};
    check_echo(&c, NULL, "GET /echo\n", "Accept-Encoding: ");
    check_echo(&c, &(fetch_options){.body = "b=1"}, "POST /echo\n", "Content-Length: 3\n\nb=1");
    check_echo(&c, &(fetch_options){.method = "POST"}, "POST /echo\n", "Content-Length: 0\n");
    check_echo(&c, &(fetch_options){.method = "PUT"}, "PUT /echo\n", "Content-Length: 0\n");
    check_echo(&c, &(fetch_options){.method = "PUT", .body = "xyz", .body_size = 2}, "PUT /echo\n",
               "Content-Length: 2\n\nxy");
    check_echo(&c, &(fetch_options){.method = "PATCH", .body = "x"}, "PATCH /echo\n", "\n\nx");
    check_echo(&c, &(fetch_options){.method = "DELETE"}, "DELETE /echo\n", "Host: ");
    check_echo(&c, &(fetch_options){.method = "PURGE", .body = "x"}, "PURGE /echo\n", "\n\nx");
    check_echo(&c, &(fetch_options){.method = "GET", .body = "x"}, "GET /echo\n", "\n\nx");
    check_echo(&c, &(fetch_options){.headers = headers, .body = "x"}, "POST /echo\n", "X-A: 1\n");
    check_echo(&c, &(fetch_options){.headers = headers, .body = "x"}, "POST", "type: text/x\n");
    CHECK_INT(fetch(&c, at("/echo"), &(fetch_options){.body = "a\0b", .body_size = 3}, &r), 0);
    CHECK(memcmp(r.body + r.size - 4, "\na\0b", 4) == 0);
    CHECK(strstr(r.body, "Content-Type") == NULL && strstr(r.body, "Expect") == NULL);
    CHECK_INT(fetch(&c, at("/hello"), &(fetch_options){.method = "HEAD"}, &r), 0);
    check_body(&r, "");
    CHECK_STR(fetch_header(&r, "Content-Length"), "13");
}

static void name_agent(CURL *curl, void *agent)
{
    curl_easy_setopt(curl, CURLOPT_USERAGENT, (char *)agent);
}

SERVED_TEST(configure_sets_any_option_of_curl)
{
    CONC_AUTO(fetch_client, c) = {.configure = name_agent, .arg = "tester/7"};
    check_echo(&c, NULL, "GET", "User-Agent: tester/7\n");
    check_echo(&c, NULL, "GET", "User-Agent: tester/7\n");
}

static void check_redirect(fetch_client *c, const char *path, const fetch_options *o, int status,
                           const char *line)
{
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch(c, at(path), o, &r), 0);
    CHECK_INT(r.status, status);
    CHECK(strncmp(r.body, line, strlen(line)) == 0);
}

SERVED_TEST(redirects_are_followed_within_their_limit)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    const fetch_options three = {.redirects = 3}, none = {.redirects = -1};
    const fetch_options post = {.body = "b"}, put = {.method = "PUT", .body = "b"};
    check_redirect(&c, "/redirect/302/10", NULL, 200, "GET /echo\n");
    check_redirect(&c, "/redirect/301/3", &three, 200, "GET /echo\n");
    check_redirect(&c, "/redirect/303/2", &post, 200, "GET /echo\n");
    check_redirect(&c, "/redirect/307/2", &post, 200, "POST /echo\n");
    check_redirect(&c, "/redirect/302/2", &none, 302, "elsewhere");
    check_redirect(&c, "/redirect/302/2", &put, 302, "elsewhere");
    CHECK_INT(fetch(&c, at("/redirect/302/11"), NULL, &r), -ELOOP);
    check_error(&r, "redirect");
    CHECK_INT(fetch(&c, at("/redirect/302/4"), &three, &r), -ELOOP);
    CHECK_INT(fetch(&c, at("/ftp"), NULL, &r), -EPROTONOSUPPORT);
    check_error(&r, "ftp");
}

SERVED_TEST(a_chunked_or_compressed_body_arrives_unchanged)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    check_get(&c, at("/chunked"), "one two three");
    CHECK_INT(fetch(&c, at("/gzip/100000"), NULL, &r), 0);
    CHECK_INT(r.size, 100000);
    CHECK_INT(strspn(r.body, "x"), 100000);
}

SERVED_TEST(connections_are_reused_even_in_the_next_run)
{
    int accepted = 0;
    CONC_AUTO(fetch_client, c) = {0};
    for (int i = 0; i < 10; i++)
        check_get(&c, at("/hello"), "hello, world\n");
    check_get(&c, at("/state"), "2 1"); /* the first one was server_wait's */
    CHECK_INT(fetch_close(&c), 0);
    CHECK_INT(fetch_close(&c), 0);
    CHECK_INT(state_of_python(&c, "%d %*d", &accepted), 1);
    CHECK_INT(accepted, 3); /* a new one */
}

static fetch_client lasting;
static void use_lasting(void) { check_get(&lasting, at("/state"), "2 1"); }

TEST(a_client_can_be_used_in_several_runs)
{
    int fds = test_count_fds();
    start_python(NULL);
    for (int i = 0; i < 3; i++) {
        test_task t = {use_lasting};
        CHECK_INT(conc_run(test_call_body, &t), 0);
    }
    CHECK_INT(fetch_close(&lasting), 0);
    CHECK_INT(test_count_fds(), fds);
    server_end(&python);
}

/* ---- many requests at once ---- */

enum { MANY = 1000 };

static void get_many(fetch_client *c, int count)
{
    static job jobs[MANY];
    conc_group g = {0};
    char url[32], number[16];
    for (int i = 0; i < count; i++) {
        snprintf(url, sizeof url, "/number/%d", i);
        begin(&g, &jobs[i], c, at(url));
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < count; i++) {
        snprintf(number, sizeof number, "%d", i);
        CHECK_INT(jobs[i].rc, 0);
        check_body(&jobs[i].r, number);
        fetch_response_free(&jobs[i].r);
    }
}

static void get_some(void)
{
    CONC_AUTO(fetch_client, c) = {0};
    get_many(&c, 20);
}

SERVED_TEST(a_thousand_at_once_get_their_own_answers)
{
    int most = 0;
    CONC_AUTO(fetch_client, c) = {0};
    get_many(&c, MANY);
    CHECK_INT(state_of_python(&c, "%*d %d", &most), 1);
    CHECK_INT(most, 32);
    if (!SANITIZED && longest_step > 0.02) /* most are below 1 ms */
        test_fail(__FILE__, __LINE__, "a step took %g s", longest_step);
}

SERVED_TEST(the_client_limits_its_connections)
{
    int most = 0;
    CONC_AUTO(fetch_client, c) = {.per_host = 3};
    get_many(&c, MANY);
    CHECK_INT(state_of_python(&c, "%*d %d", &most), 1);
    CHECK_INT(most, 3);
    CHECK_INT(fetch_close(&c), 0);
    c.per_host = 0;
    c.connections = 5;
    get_many(&c, MANY);
    CHECK_INT(state_of_python(&c, "%*d %d", &most), 1);
    CHECK(most <= 5 + 3); /* the server may not have noticed yet that those three are closed */
}

static void get_some_in_debug_mode(void)
{
    test_task t = {get_some};
    conc_options options = {.debug = true, .slow_step = SANITIZED ? 0.1 : 0.01};
    setenv("no_proxy", "*", 1);
    CHECK_INT(conc_run_with(&options, test_call_body, &t), 0);
}

/* A busy machine may stop a run for longer than that; a step that is slow is slow each time. */
TEST(no_step_of_a_fetch_blocks_the_loop)
{
    static char text[16384];
    bool slow = true;
    start_python(NULL);
    for (int i = 0; slow && i < 20; i++) {
        CHECK_INT(test_in_process(get_some_in_debug_mode, text, sizeof text), 0);
        CHECK_CONTAINS(text, "conc: stacks: "); /* debug mode was on */
        slow = strstr(text, "the loop for") != NULL;
    }
    if (slow)
        test_fail(__FILE__, __LINE__, "%s", text);
    server_end(&python);
}

/* ---- size limits, and pieces ---- */

SERVED_TEST(an_answer_above_the_limit_is_refused)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch(&c, at("/big/50000"), &(fetch_options){.limit = 50000}, &r), 0);
    CHECK_INT(r.size, 50000);
    CHECK_INT(fetch(&c, at("/big/50001"), &(fetch_options){.limit = 50000}, &r), -EMSGSIZE);
    check_error(&r, "larger than 50000 bytes");
    CHECK_INT(fetch(&c, at("/gzip/5000000"), &(fetch_options){.limit = 4999999}, &r), -EMSGSIZE);
    CHECK_INT(fetch(&c, at("/gzip/5000000"), &(fetch_options){.limit = 5000000}, &r), 0);
    CHECK_INT(r.size, 5000000);
    check_get(&c, at("/hello"), "hello, world\n");
}

RUN_TEST(an_endless_answer_ends_at_the_limit)
{
    static char block[65536];
    conc_group g = {0};
    peer p = {.answer = block, .size = sizeof block, .endless = true};
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    memcpy(block, ENDLESS, strlen(ENDLESS));
    start_peer(&g, &p);
    CHECK_INT(fetch(&c, p.url, NULL, &r), -EMSGSIZE);
    check_error(&r, "larger than 67108864 bytes");
    stop(&g, &p);
}

/* Receives pieces, and compares them with what /big sends. */
typedef struct sink {
    fetch_response *r;
    size_t received, largest;
    int calls, rc;
    conc_event *stuck; /* the first piece waits for it, and until all tasks wait */
    fetch_client *client;
} sink;

static int take_piece(const void *bytes, size_t n, void *arg)
{
    sink *s = arg;
    const char *text = bytes;
    CHECK(n > 0);
    for (size_t i = 0; i < n; i++)
        if (text[i] != (char)('a' + (s->received + i) % 26))
            test_fail(__FILE__, __LINE__, "byte %zu is wrong", s->received + i);
    s->received += n;
    if (s->calls++)
        s->largest = n > s->largest ? n : s->largest;
    return s->rc < 0 ? conc_fail(s->rc, "the sink is full") : conc_yield();
}

SERVED_TEST(pieces_come_in_order_and_are_not_kept)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    sink s = {.r = &r};
    fetch_options o = {.piece = take_piece, .arg = &s};
    CHECK_INT(fetch(&c, at("/big/3000000"), &o, &r), 0);
    CHECK_INT(s.received, 3000000);
    CHECK(s.calls > 1 && s.largest <= 128 * 1024);
    CHECK_INT(r.status, 200);
    check_body(&r, "");
    CHECK_STR(fetch_header(&r, "Content-Length"), "3000000");
    s = (sink){.r = &r};
    o.limit = 100000;
    CHECK_INT(fetch(&c, at("/big/3000000"), &o, &r), -EMSGSIZE);
    CHECK(s.received <= 100000);
}

SERVED_TEST(an_error_of_the_piece_function_ends_the_fetch)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    sink s = {.r = &r, .rc = -ENOSPC};
    fetch_options o = {.piece = take_piece, .arg = &s};
    CHECK_INT(fetch(&c, at("/big/3000000"), &o, &r), -ENOSPC);
    CHECK_INT(s.calls, 1);
    CHECK_INT(r.status, 200);
    CHECK_STR(conc_last_error(), "the sink is full");
    check_get(&c, at("/hello"), "hello, world\n");
}

static int fetching_piece(const void *bytes, size_t n, void *arg)
{
    sink *s = arg;
    (void)bytes;
    s->received += n;
    check_get(s->client, at("/hello"), "hello, world\n");
    return 0;
}

SERVED_TEST(a_piece_function_may_fetch_with_the_same_client)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    sink s = {.client = &c};
    fetch_options o = {.piece = fetching_piece, .arg = &s};
    CHECK_INT(fetch(&c, at("/big/300000"), &o, &r), 0);
    CHECK_INT(s.received, 300000);
}

/* The first piece waits until the server cannot send any more, while another task drives curl. */
static int slow_piece(const void *bytes, size_t n, void *arg)
{
    sink *s = arg;
    (void)bytes;
    s->largest = n > s->largest ? n : s->largest;
    s->received += n;
    if (s->calls++)
        return -EPIPE;
    CHECK_INT(s->r->status, 200);
    CHECK_STR(fetch_header(s->r, "X-Endless"), "yes");
    CONC_TRY(conc_event_wait(s->stuck));
    return conc_settle();
}

RUN_TEST(a_slow_piece_function_delays_only_the_server)
{
    static const char start[] = "HTTP/1.1 200 OK\r\nX-Endless: yes\r\n\r\n";
    static char block[65536];
    conc_group g = {0}, jobs = {0};
    peer p = {.answer = block, .size = sizeof block, .endless = true};
    peer silent = {.hangs = true};
    sink s = {.stuck = &p.stuck};
    job streaming = {.options = {.piece = slow_piece, .arg = &s}}, waiting = {0};
    CONC_AUTO(fetch_client, c) = {0};
    memcpy(block, start, strlen(start));
    s.r = &streaming.r;
    start_peer(&g, &p);
    start_peer(&g, &silent);
    begin(&jobs, &waiting, &c, silent.url);
    begin(&jobs, &streaming, &c, p.url);
    check_job(&streaming, -EPIPE);
    CHECK_INT(s.calls, 2);
    CHECK(s.largest >= 64 * 1024 && s.largest <= 128 * 1024);
    CHECK_INT(conc_cancel(&waiting.task), 0);
    check_job(&waiting, -ECANCELED);
    CHECK_INT(conc_group_wait(&jobs), 0);
    CHECK_INT(conc_close(silent.server.fd), 0);
    stop(&g, &p);
}

/* ---- servers that misbehave ---- */

/* What the answer of a server that then closes amounts to. */
static void check_answer(const char *answer, int rc, const char *words)
{
    conc_group g = {0};
    peer p = {.answer = answer};
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    start_peer(&g, &p);
    CHECK_INT(fetch(&c, p.url, NULL, &r), rc);
    check_error(&r, words);
    CHECK_CONTAINS(r.error, p.url);
    stop(&g, &p);
}

RUN_TEST(garbage_is_an_error_with_a_text)
{
    check_answer("no HTTP at all", -EPROTONOSUPPORT, "HTTP/0.9");
    check_answer("HTTP/1.1 abc\r\n\r\n", -EPROTONOSUPPORT, "HTTP");
    check_answer("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", -EPROTO, "Content-Length");
    check_answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", -ECONNRESET,
                 "chunk");
    check_answer("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nnot compressed", -EPROTO,
                 "content unencoding");
}

RUN_TEST(a_server_that_closes_early_is_an_error)
{
    check_answer(NULL, -ECONNRESET, "mpty reply");
    check_answer("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", -ECONNRESET, "4 bytes");
    check_answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", -ECONNRESET,
                 "closed");
}

RUN_TEST(endless_headers_are_refused)
{
    static char block[65536];
    conc_group g = {0};
    peer p = {.answer = block, .size = sizeof block, .endless = true};
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    memset(block, 'x', sizeof block);
    memcpy(block, "HTTP/1.1 200 OK\r\nX: ", 20);
    start_peer(&g, &p);
    CHECK_INT(fetch(&c, p.url, NULL, &r), -ECONNRESET);
    check_error(&r, "Too large response headers");
    stop(&g, &p);
}

RUN_TEST(a_port_without_a_listener_is_an_error)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    python.port = server_free_port();
    CHECK_INT(fetch(&c, at("/"), NULL, &r), -ECONNREFUSED);
    check_error(&r, "127.0.0.1");
    CHECK_INT(r.status, 0);
}

/* ---- a server that restarts or hangs ---- */

SERVED_TEST(a_restart_of_the_server_affects_only_requests_in_progress)
{
    conc_group g = {0};
    job j = {0};
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    check_get(&c, at("/hello"), "hello, world\n");
    server_kill(&python);
    server_start(&python);
    check_get(&c, at("/hello"), "hello, world\n"); /* its connection was dead */
    CHECK_INT(fetch(&c, at("/hello"), &(fetch_options){.body = "x"}, &r), 0);
    server_kill(&python);
    server_start(&python);
    CHECK_INT(fetch(&c, at("/hello"), &(fetch_options){.body = "x"}, &r), 0);
    CHECK_INT(fetch_close(&c), 0);
    begin(&g, &j, &c, at("/hang")); /* on a new connection: curl retries if it reused one */
    CHECK_INT(conc_settle(), 0);
    server_kill(&python);
    check_job(&j, -ECONNRESET);
    CHECK_INT(fetch(&c, at("/hello"), NULL, &r), -ECONNREFUSED);
    server_start(&python);
    check_get(&c, at("/hello"), "hello, world\n");
    CHECK_INT(conc_group_wait(&g), 0);
}

SERVED_TEST(time_limits_end_requests_to_a_server_that_hangs)
{
    job j = {0};
    int status;
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    check_get(&c, at("/hello"), "hello, world\n");
    server_signal(&python, SIGSTOP);
    CHECK_INT(waitpid(python.pid, &status, WUNTRACED), python.pid); /* it hangs now */
    CHECK_INT(fetch(&c, at("/hello"), &(fetch_options){.timeout = 0.05}, &r), -ETIMEDOUT);
    check_error(&r, "no complete answer within 0.05 s");
    j.client = &c;
    snprintf(j.url, sizeof j.url, "%s", at("/hello"));
    CHECK_INT(conc_timeout(0.05, do_job, &j), 0); /* do_job returns 0 */
    CHECK_INT(j.rc, -ECANCELED);
    CHECK_STR(conc_last_error(), r.error); /* a cancel keeps the error text */
    server_signal(&python, SIGCONT);
    check_get(&c, at("/hello"), "hello, world\n");
}

RUN_TEST(a_time_limit_applies_to_each_stage)
{
    static const char *const answers[] = {NULL, "HTTP/1.1 200 OK\r\nConte",
                                          "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel"};
    CONC_AUTO(fetch_client, c) = {.per_host = 1};
    CONC_AUTO(fetch_response, r) = {0};
    const fetch_options brief = {.timeout = 0.03}, gone = {.timeout = -1};
    for (size_t i = 0; i < CONC_LEN(answers); i++) {
        conc_group g = {0}, jobs = {0};
        peer p = {.answer = answers[i], .hangs = true};
        job j = {0};
        start_peer(&g, &p);
        CHECK_INT(fetch(&c, p.url, &brief, &r), -ETIMEDOUT);
        begin(&jobs, &j, &c, p.url);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(fetch(&c, p.url, &brief, &r), -ETIMEDOUT); /* waits for a connection */
        CHECK_INT(fetch(&c, p.url, &gone, &r), -ETIMEDOUT);
        CHECK_INT(conc_cancel(&j.task), 0);
        check_job(&j, -ECANCELED);
        CHECK_INT(conc_group_wait(&jobs), 0);
        stop(&g, &p);
    }
}

static void limit_by_curl(CURL *curl, void *ms)
{
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, *(long *)ms);
}

/* A port whose connection queue is full: the system does not answer any more. */
static void fill_port(int fds[3], char *url, size_t size)
{
    struct sockaddr_storage a;
    socklen_t length = sizeof a;
    char address[64];
    fds[0] = conc_listen_with("127.0.0.1:0", &(conc_listen_options){.backlog = 1});
    CHECK_INT(conc_address(fds[0], false, address, sizeof address), 0);
    CHECK_INT(getsockname(fds[0], (struct sockaddr *)&a, &length), 0);
    for (int i = 1; i < 3; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        CHECK_INT(connect(fds[i], (struct sockaddr *)&a, length), 0);
    }
    snprintf(url, size, "http://%s/", address);
}

RUN_TEST(a_pending_connection_can_time_out_and_be_cancelled)
{
    int fds[3];
    long ms = 0;
    char url[80];
    conc_group g = {0}, jobs = {0};
    peer p = {.hangs = true};
    job driver = {0}, j = {0};
    CONC_AUTO(fetch_client, c) = {.configure = limit_by_curl, .arg = &ms};
    CONC_AUTO(fetch_response, r) = {0};
    fill_port(fds, url, sizeof url);
    CHECK_INT(fetch(&c, url, &(fetch_options){.timeout = 0.03}, &r), -ETIMEDOUT);
    start_peer(&g, &p);
    begin(&jobs, &driver, &c, p.url);
    CHECK_INT(conc_event_wait(&p.asked), 0);
    ms = 20;
    begin(&jobs, &j, &c, url); /* a limit of curl's own, while another task drives */
    CHECK_INT(conc_join(&j.task, NULL), 0);
    CHECK_CONTAINS(j.r.error, "timed out after");
    check_job(&j, -ETIMEDOUT);
    ms = 0;
    begin(&jobs, &j, &c, url);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&j.task), 0);
    check_job(&j, -ECANCELED);
    CHECK_INT(conc_cancel(&driver.task), 0);
    check_job(&driver, -ECANCELED);
    CHECK_INT(conc_group_wait(&jobs), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_close(fds[i]), 0);
    stop(&g, &p);
}

/* ---- cancels ---- */

/* Three requests: the first task drives, the others wait for it. */
static void check_cancels(const bool canceled[3])
{
    conc_group g = {0}, jobs = {0};
    conc_event go = {0};
    peer p = {.answer = HELLO, .go = &go};
    job j[3] = {0};
    CONC_AUTO(fetch_client, c) = {0};
    start_peer(&g, &p);
    for (int i = 0; i < 3; i++)
        begin(&jobs, &j[i], &c, p.url);
    CHECK_INT(conc_event_wait(&p.asked), 0);
    for (int i = 0; i < 3; i++)
        if (canceled[i])
            CHECK_INT(conc_cancel(&j[i].task), 0);
    conc_event_set(&go);
    for (int i = 0; i < 3; i++)
        check_job(&j[i], canceled[i] ? -ECANCELED : 0);
    CHECK_INT(conc_group_wait(&jobs), 0);
    stop(&g, &p);
}

RUN_TEST(a_cancel_of_any_tasks_leaves_the_others_their_answers)
{
    for (int i = 0; i < 8; i++)
        check_cancels((bool[3]){i & 1, i & 2, i & 4});
}

static void check_next(bool another_drives)
{
    conc_group g = {0}, jobs = {0};
    peer p = {.hangs = true}, silent = {.hangs = true};
    job driver = {0}, first = {0}, second = {0}, third = {0};
    CONC_AUTO(fetch_client, c) = {.per_host = 1};
    start_peer(&g, &p);
    start_peer(&g, &silent);
    if (another_drives)
        begin(&jobs, &driver, &c, silent.url);
    begin(&jobs, &first, &c, p.url);
    begin(&jobs, &second, &c, p.url);
    begin(&jobs, &third, &c, p.url);
    CHECK_INT(conc_event_wait(&p.asked), 0);
    p.answer = HELLO;
    CHECK_INT(conc_cancel(&second.task), 0);
    CHECK_INT(conc_cancel(&first.task), 0);
    check_job(&first, -ECANCELED);
    check_job(&second, -ECANCELED);
    check_job(&third, 0);
    conc_group_cancel(&jobs);
    CHECK_INT(conc_group_wait(&jobs), 0);
    CHECK_INT(conc_close(silent.server.fd), 0);
    stop(&g, &p);
}

RUN_TEST(a_cancelled_request_leaves_its_connection_to_the_next)
{
    check_next(false);
    check_next(true);
}

/* Cancels the job between the end of its request and the next step of its task. */
static int cancel_when_answered(void *arg)
{
    job *j = arg;
    const fetch__core *core = j->client->core;
    while (!conc_done(&j->task)) {
        for (const fetch__transfer *t = core->first; t; t = t->next)
            if (t->response == &j->r && t->done)
                return conc_cancel(&j->task) == 0 ? 1 : -EINVAL;
        CONC_TRY(conc_yield());
    }
    return 0;
}

static void check_answer_and_cancel(bool another_drives)
{
    int cancelled = -1;
    conc_group g = {0}, jobs = {0};
    conc_event go = {0};
    conc_task canceler;
    peer p = {.answer = HELLO, .go = &go}, silent = {.hangs = true};
    job driver = {0}, j = {0};
    CONC_AUTO(fetch_client, c) = {0};
    start_peer(&g, &p);
    start_peer(&g, &silent);
    if (another_drives)
        begin(&jobs, &driver, &c, silent.url);
    begin(&jobs, &j, &c, p.url);
    CHECK_INT(conc_event_wait(&p.asked), 0);
    CHECK_INT(conc_spawn_task(&jobs, &canceler, cancel_when_answered, &j), 0);
    conc_event_set(&go);
    CHECK_INT(conc_join(&canceler, &cancelled), 0);
    CHECK(cancelled == 1 || test_seeded());
    CHECK_INT(conc_join(&j.task, NULL), 0);
    CHECK_INT(j.rc, 0);
    check_body(&j.r, "hello");
    check_job(&j, 0);
    conc_group_cancel(&jobs);
    CHECK_INT(conc_group_wait(&jobs), 0);
    CHECK_INT(driver.rc, another_drives ? -ECANCELED : 0);
    CHECK_INT(conc_close(silent.server.fd), 0);
    stop(&g, &p);
}

RUN_TEST(an_answer_that_came_before_the_cancel_counts)
{
    check_answer_and_cancel(false);
    check_answer_and_cancel(true);
}

static int fetch_when_cancelled(void *arg)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    do_job(arg);
    return conc_scope_end(&s, 0);
}

RUN_TEST(a_cancelled_task_sends_nothing)
{
    conc_group g = {0};
    peer p = {.answer = HELLO};
    CONC_AUTO(fetch_client, c) = {0};
    job j = {.client = &c};
    start_peer(&g, &p);
    snprintf(j.url, sizeof j.url, "%s", p.url);
    CHECK_INT(fetch_when_cancelled(&j), 0);
    CHECK_INT(j.rc, -ECANCELED);
    CHECK(c.core == NULL); /* it was not even opened */
    CHECK_INT(conc_settle(), 0);
    CHECK(!conc_event_is_set(&p.asked));
    stop(&g, &p);
}

static int waiting_piece(const void *bytes, size_t n, void *arg)
{
    (void)bytes, (void)n;
    conc_event_set(arg);
    return conc_sleep(CONC_FOREVER);
}

RUN_TEST(a_cancel_reaches_the_piece_function)
{
    conc_group g = {0}, jobs = {0};
    conc_event in_piece = {0};
    peer p = {.answer = HELLO};
    job j = {.options = {.piece = waiting_piece, .arg = &in_piece}};
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    start_peer(&g, &p);
    begin(&jobs, &j, &c, p.url);
    CHECK_INT(conc_event_wait(&in_piece), 0);
    check_get(&c, p.url, "hello"); /* others do not block it */
    CHECK_INT(conc_cancel(&j.task), 0);
    check_job(&j, -ECANCELED);
    CHECK_INT(conc_group_wait(&jobs), 0);
    j.options.timeout = 0.03;
    CHECK_INT(fetch(&c, p.url, &j.options, &r), -ETIMEDOUT);
    check_error(&r, "no complete answer within");
    stop(&g, &p);
}

static fetch_client in_background;
static job background_job;
static peer background_peer = {.hangs = true};

static void leave_a_fetch_behind(void)
{
    start_peer(NULL, &background_peer);
    begin(NULL, &background_job, &in_background, background_peer.url);
    CHECK_INT(conc_event_wait(&background_peer.asked), 0);
    CHECK_INT(conc_close(background_peer.server.fd), 0);
}

TEST(the_end_of_the_run_cancels_a_fetch_in_the_background)
{
    int fds = test_count_fds();
    test_task t = {leave_a_fetch_behind};
    CHECK_INT(conc_run(test_call_body, &t), 0);
    CHECK_INT(background_job.rc, -ECANCELED);
    CHECK_INT(fetch_close(&in_background), 0); /* outside a run */
    CHECK_INT(test_count_fds(), fds);
}

/* ---- closing ---- */

/* Two tasks wait when their client is closed and, after or before that, they are cancelled: a
 * request that has ended returns its result. */
static void check_close(bool cancel_first)
{
    conc_group g = {0}, jobs = {0};
    peer p = {.hangs = true};
    job j[2] = {0};
    CONC_AUTO(fetch_client, c) = {0};
    start_peer(&g, &p);
    begin(&jobs, &j[0], &c, p.url);
    begin(&jobs, &j[1], &c, p.url);
    CHECK_INT(conc_event_wait(&p.asked), 0);
    for (int i = 0; cancel_first && i < 2; i++)
        CHECK_INT(conc_cancel(&j[i].task), 0);
    CHECK_INT(fetch_close(&c), 0);
    for (int i = 0; !cancel_first && i < 2; i++)
        CHECK_INT(conc_cancel(&j[i].task), 0);
    p.answer = HELLO;
    p.hangs = false;
    check_get(&c, p.url, "hello"); /* the client is open again before they have left */
    check_job(&j[0], -EPIPE);
    check_job(&j[1], -EPIPE);
    CHECK_INT(conc_group_wait(&jobs), 0);
    stop(&g, &p);
}

RUN_TEST(a_close_ends_requests_in_progress)
{
    check_close(false);
    check_close(true);
}

static int closing_piece(const void *bytes, size_t n, void *arg)
{
    sink *s = arg;
    (void)bytes;
    s->received += n;
    return fetch_close(s->client);
}

SERVED_TEST(a_piece_function_may_close_the_client)
{
    fetch_client c = {0};
    CONC_AUTO(fetch_response, r) = {0};
    sink s = {.client = &c};
    fetch_options o = {.piece = closing_piece, .arg = &s};
    CHECK_INT(fetch(&c, at("/big/3000000"), &o, &r), -EPIPE);
    check_error(&r, "the client was closed");
    CHECK(s.received > 0 && s.received < 3000000);
    CHECK(c.core == NULL);
}

TEST(closing_a_client_that_is_not_open_is_harmless)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch_close(&c), 0);
    CHECK_INT(fetch_close(NULL), 0);
    fetch_response_free(&r);
    fetch_response_free(&r);
    fetch_response_free(NULL);
    CHECK(fetch_header(NULL, "x") == NULL && fetch_header(&r, "x") == NULL);
}

/* ---- arguments ---- */

static void check_refused(const char *url, const fetch_options *o, int rc, const char *words)
{
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch(&c, url, o, &r), rc);
    check_error(&r, words);
}

RUN_TEST(invalid_arguments_are_refused_with_a_text)
{
    const char *url = "http://127.0.0.1:1/";
    static const char *const headers[][2] = {{"X: a\r\nY: b", NULL}, {"X: a\n", NULL}, {"X", NULL}};
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch(NULL, url, NULL, &r), -EINVAL);
    CHECK_INT(fetch(&c, NULL, NULL, &r), -EINVAL);
    CHECK_INT(fetch(&c, url, NULL, NULL), -EINVAL);
    CHECK_CONTAINS(conc_last_error(), "a response");
    for (size_t i = 0; i < CONC_LEN(headers); i++)
        check_refused(url, &(fetch_options){.headers = headers[i]}, -EINVAL, "not a header: \"X");
    check_refused(url, &(fetch_options){.method = ""}, -EINVAL, "not a method");
    check_refused(url, &(fetch_options){.method = "A B"}, -EINVAL, "not a method");
    check_refused(url, &(fetch_options){.method = "HEAD", .body = "x"}, -EINVAL,
                  "HEAD with a body");
    check_refused(url, &(fetch_options){.body_size = 5}, -EINVAL, "body_size without a body");
    check_refused(url, &(fetch_options){.timeout = 0.0 / 0.0}, -EINVAL, "http://127.0.0.1:1/: ");
    check_refused("", NULL, -EINVAL, "");
    check_refused("http://", NULL, -EINVAL, "");
    check_refused("http://a b/", NULL, -EINVAL, "");
    check_refused("http://127.0.0.1:1/\r\nX: y", NULL, -EINVAL, "");
    check_refused("ftp://127.0.0.1:1/", NULL, -EPROTONOSUPPORT, "ftp");
    check_refused("file:///etc/passwd", NULL, -EPROTONOSUPPORT, "file");
    c.per_host = -1;
    CHECK_INT(fetch(&c, url, NULL, &r), -EINVAL);
    check_error(&r, "negative");
}

TEST(a_fetch_outside_a_run_is_refused)
{
    fetch_client c = {0};
    fetch_response r = {0};
    CHECK_INT(fetch(&c, "http://127.0.0.1:1/", NULL, &r), -EPERM);
    CHECK_CONTAINS(r.error, "http://127.0.0.1:1/: ");
    CHECK(c.core == NULL);
}

/* Another thread's loop. */
static void use_elsewhere(void)
{
    fetch_response r = {0};
    CHECK_INT(fetch(&lasting, "http://127.0.0.1:1/", NULL, &r), -EPERM);
    CHECK_CONTAINS(r.error, "another loop");
    CHECK_INT(fetch_close(&lasting), -EPERM);
}

static void *run_elsewhere(void *arg)
{
    test_task t = {use_elsewhere};
    CHECK_INT(conc_run(test_call_body, &t), 0);
    return arg;
}

RUN_TEST(a_client_in_use_belongs_to_one_loop)
{
    conc_group g = {0}, jobs = {0};
    peer p = {.hangs = true};
    job j = {0};
    pthread_t thread;
    start_peer(&g, &p);
    begin(&jobs, &j, &lasting, p.url);
    CHECK_INT(conc_event_wait(&p.asked), 0);
    CHECK_INT(pthread_create(&thread, NULL, run_elsewhere, NULL), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(fetch_close(&lasting), 0);
    check_job(&j, -EPIPE);
    CHECK_INT(conc_group_wait(&jobs), 0);
    stop(&g, &p);
}

/* ---- host names ---- */

static sem_t looked_up;
static int look_ups;

/* Replaces libc's: the lookup of the name "slow" lasts until looked_up is posted. */
int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                struct addrinfo **result)
{
    (void)port, (void)hints, (void)result;
    if (strcmp(host, "slow") == 0)
        while (sem_wait(&looked_up) < 0)
            continue;
    __atomic_add_fetch(&look_ups, 1, __ATOMIC_SEQ_CST);
    return EAI_NONAME;
}

RUN_TEST(a_name_lookup_delays_neither_the_loop_nor_a_cancel)
{
    conc_group g = {0}, jobs = {0};
    peer p = {.answer = HELLO};
    job j = {0};
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    CHECK_INT(fetch(&c, "http://none.invalid/", NULL, &r), -EADDRNOTAVAIL);
    check_error(&r, "none.invalid");
    CHECK_INT(look_ups, 1);
    start_peer(&g, &p);
    begin(&jobs, &j, &c, "http://slow/");
    CHECK_INT(conc_settle(), 0);
    check_get(&c, p.url, "hello");
    CHECK_INT(conc_cancel(&j.task), 0);
    check_job(&j, -ECANCELED);
    check_get(&c, p.url, "hello");
    CHECK_INT(__atomic_load_n(&look_ups, __ATOMIC_SEQ_CST), 1); /* it is still in progress */
    CHECK_INT(sem_post(&looked_up), 0);
    while (__atomic_load_n(&look_ups, __ATOMIC_SEQ_CST) < 2)
        CHECK_INT(conc_sleep(0.001), 0);
    CHECK_INT(conc_group_wait(&jobs), 0);
    stop(&g, &p);
}

/* ---- sockets ---- */

static int check_socket(const void *bytes, size_t n, void *response)
{
    fetch_response *r = response;
    curl_socket_t fd = CURL_SOCKET_BAD;
    (void)bytes, (void)n;
    CHECK_INT(curl_easy_getinfo(r->curl, CURLINFO_ACTIVESOCKET, &fd), CURLE_OK);
    CHECK_INT(fcntl(fd, F_GETFD), FD_CLOEXEC);
    return 0;
}

RUN_TEST(child_programs_inherit_no_connection)
{
    conc_group g = {0};
    peer p = {.answer = HELLO};
    CONC_AUTO(fetch_client, c) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    start_peer(&g, &p);
    CHECK_INT(fetch(&c, p.url, &(fetch_options){.piece = check_socket, .arg = &r}, &r), 0);
    stop(&g, &p);
}

/* ---- TLS ---- */

static const char *secure(const char *host)
{
    static char url[64];
    snprintf(url, sizeof url, "https://%s:%d/hello", host, python.port);
    return url;
}

static int get_secure(void *client)
{
    return check_get(client, secure("127.0.0.1"), "hello, world\n"), 0;
}

static void use_tls(void)
{
    char file[96];
    conc_group g = {.stack_size = 64 * 1024};
    CONC_AUTO(fetch_client, strange) = {0};
    CONC_AUTO(fetch_client, trusting) = {.insecure = true};
    CONC_AUTO(fetch_client, c) = {.ca_file = file};
    CONC_AUTO(fetch_client, lost) = {.ca_file = "/nowhere/cert.pem"};
    CONC_AUTO(fetch_response, r) = {0};
    snprintf(file, sizeof file, "%s/cert.pem", python.folder);
    CHECK_INT(fetch(&strange, secure("127.0.0.1"), NULL, &r), -EACCES);
    check_error(&r, "certificate");
    check_get(&trusting, secure("127.0.0.1"), "hello, world\n");
    check_get(&c, secure("127.0.0.1"), "hello, world\n");
    CHECK_INT(fetch(&c, secure("127.0.0.2"), NULL, &r), -ECONNREFUSED);
    CHECK_INT(fetch(&lost, secure("127.0.0.1"), NULL, &r), -EINVAL);
    check_error(&r, "/nowhere/cert.pem");
    for (int i = 0; i < 20; i++)
        CHECK_INT(conc_spawn(&g, get_secure, &c), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

TEST(certificates_are_verified)
{
    start_python("tls");
    run_body(use_tls);
    server_end(&python);
}

RUN_TEST(a_server_without_tls_is_an_error)
{
    conc_group g = {0};
    peer p = {.answer = "HTTP/1.1 400 Bad Request\r\n\r\n"};
    CONC_AUTO(fetch_client, c) = {.insecure = true};
    CONC_AUTO(fetch_response, r) = {0};
    char url[128];
    start_peer(&g, &p);
    snprintf(url, sizeof url, "https%s", p.url + 4);
    CHECK_INT(fetch(&c, url, NULL, &r), -EPROTO);
    check_error(&r, "SSL");
    stop(&g, &p);
}
