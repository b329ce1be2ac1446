/* load.h - loads an HTTP server with requests on many connections, and checks each response
 *
 *     static const char *const targets[] = {"/users/1", "/users/2"};
 *     static const char *const expected[] = {"{\"id\":1}", "{\"id\":2}"};
 *     load l = {.address = "127.0.0.1:8080", .targets = targets, .expected = expected,
 *               .target_count = 2, .requests = 20000, .connections = 50};
 *     CONC_TRY(load_run(&l));
 *     printf("%d of %d right, %.0f per second\n", l.right, l.requests, l.requests / l.seconds);
 *
 * Each connection sends its next request as soon as it has the response. A correct response has
 *   status 200, Content-Length, and the expected body. A connection error ends the whole run.
 * load_run_wrk uses wrk instead, if installed, which does not check responses. It is faster, so it
 *   measures the server rather than the client.
 * Include conc_pool.h before. */
#ifndef LOAD_H
#define LOAD_H

#ifndef CONC_POOL_H
#error "load.h: include conc_pool.h first"
#endif

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

typedef struct load {
    const char *address;
    const char *const *targets, *const *expected; /* requested in turn; the expected bodies */
    int target_count, requests, connections;
    bool shows_progress; /* on stdout, if it is a terminal */
    /* results */
    int right;
    double seconds;
    /* private */
    int asked;
} load;

/* Sends the requests, and sets .right and .seconds. Waits. */
static inline int load_run(load *l);

/* Runs wrk for some seconds on 64 connections. Sets *rate to its requests per second. Errors:
 * -ENOENT (wrk is not installed), -EPROTO (its output has no rate). Waits. */
static inline int load_run_wrk(const char *url, int seconds, double *rate);

/* ---- implementation ------------------------------------------------------------------------- */

/* Reads a response. Returns 1 if it is the expected one, else 0. */
static inline int load__compare(conc_stream *stream, const char *expected)
{
    static const char name[] = "Content-Length: ";
    char *line;
    size_t length = 0, n = strlen(expected);
    bool is_ok = false;
    while (CONC_TRY(conc_stream_read_line(stream, &line)) > 0) {
        is_ok = is_ok || strncmp(line, "HTTP/1.1 200 ", 13) == 0;
        if (strncasecmp(line, name, sizeof name - 1) == 0)
            length = strtoul(line + sizeof name - 1, NULL, 10);
    }
    if (!line)
        return conc_fail(-ECONNRESET, "the server closed a connection");
    char *body = malloc(length + 1);
    if (!body)
        return -ENOMEM;
    ssize_t got = conc_stream_read_full(stream, body, length);
    bool is_right = is_ok && length == n && got == (ssize_t)n && memcmp(body, expected, n) == 0;
    free(body);
    return got < 0 ? (int)got : is_right;
}

static inline int load__ask(void *arg)
{
    load *l = arg;
    CONC_AUTO(conc_stream, stream) = {0};
    int fd = CONC_TRY(conc_dial(l->address));
    CONC_TRY(conc_stream_open(&stream, fd));
    while (l->asked < l->requests) {
        int i = l->asked++ % l->target_count;
        CONC_TRY(conc_stream_printf(&stream, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n",
                                    l->targets[i]));
        l->right += CONC_TRY(load__compare(&stream, l->expected[i]));
        if (l->shows_progress && l->asked % 1000 == 0 && isatty(STDOUT_FILENO)) {
            printf("\r%d of %d\r", l->asked, l->requests);
            fflush(stdout);
        }
    }
    return 0;
}

static inline int load_run(load *l)
{
    conc_group g = {0};
    double began = conc_now();
    l->asked = l->right = 0;
    for (int i = 0; i < l->connections; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, load__ask, l));
    int rc = conc_group_wait(&g);
    l->seconds = conc_now() - began;
    return rc;
}

static inline int load_run_wrk(const char *url, int seconds, double *rate)
{
    static const char label[] = "Requests/sec:";
    char duration[24];
    const char *const argv[] = {"wrk", "-t2", "-c64", duration, url, NULL};
    conc_child_io io = {.limit = 65536};
    int status = 0;
    CONC_AUTO(conc_child, wrk) = {.argv = argv, .output = CONC_PIPE, .group = true};
    snprintf(duration, sizeof duration, "-d%ds", seconds);
    CONC_TRY(conc_child_start(&wrk));
    int rc = conc_child_communicate(&wrk, &io, &status);
    const char *found = rc >= 0 && io.out ? strstr(io.out, label) : NULL;
    if (found)
        *rate = atof(found + sizeof label - 1);
    else if (rc >= 0)
        rc = conc_fail(-EPROTO, "wrk did not report its requests per second");
    conc_free(io.out);
    return rc;
}

#endif
