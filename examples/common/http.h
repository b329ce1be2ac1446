/* http.h - the server half of HTTP/1.1 on a conc_stream, parsed by http-parser
 *
 *     #define CONC_STATIC
 *     #include "conc.h"
 *     #include "http.h"
 *
 *     static int answer(http_connection *http, void *arg)
 *     {
 *         (void)arg;
 *         return http_printf(http, 200, "You asked for %s\n", http->path);
 *     }
 *     static int serve(int fd, void *arg)
 *     {
 *         conc_stream stream = {0};
 *         CONC_AUTO(http_connection, http) = {.stream = &stream};
 *         CONC_TRY(conc_stream_open(&stream, fd)); // or on a transport: TLS
 *         return http_serve(&http, answer, arg);
 *     }
 *     static int app(void *arg)
 *     {
 *         conc_server server = {.handler = serve, .arg = arg};
 *         server.fd = CONC_TRY(conc_listen("127.0.0.1:8080"));
 *         return conc_serve(&server);
 *     }
 *     int main(void) { return conc_main(app, NULL); }
 *
 * Compile with: cc server.c -lhttp_parser (Debian: libhttp-parser-dev). Debian builds http-parser
 * without its strict mode, so this file checks each line before the parser sees it.
 *
 * Requests. http_next finishes the current request and waits for the next one on the connection,
 *   with keep-alive and pipelining. `http` then holds the request; its strings and the body are
 *   valid until the next http_next or http_close. http_body reads the body into memory, http_read
 *   reads it in pieces; an unread rest is skipped. Expect: 100-continue is answered on the first
 *   read of the body.
 * Responses. http_respond and http_printf send a whole response. http_begin, http_write and
 *   http_end send it in pieces: with a Content-Length, else chunked, or, for HTTP/1.0, ended by
 *   closing the connection. Call http_set_header before them. Responses to HEAD, and those with
 *   status 204 or 304, are sent without a body.
 * Refusals. A malformed, too large or too slow request is answered with 400, 408, 413, 414, 417,
 *   431, 501 or 505, and the connection ends: `refused` holds the status and `error` the reason.
 *   http_next then returns 0, as if the client had left; http_body and http_read return an error.
 *   Anything that two servers may parse differently is refused with 400: Content-Length twice or
 *   with Transfer-Encoding, bad chunk sizes, folded lines, lines that end without CRLF, a space
 *   before a colon, control characters, no Host or two.
 * Errors. All calls return 0 or a count, or a negative errno, with a text in conc_last_error;
 *   connection failures stay in `error`. -EINVAL: a wrong argument, or a call out of order (a
 *   response before a request, two responses), which changes nothing. -EPIPE: the connection is
 *   already broken. -EBUSY: another task is in such a call. -EPERM: not in a task. -ENOMEM and the
 *   stream's errors are possible, too.
 * Waiting. http_next, http_serve, http_body, http_read, http_respond, http_printf, http_begin,
 *   http_write, http_flush, http_end, http_upgrade and http_close wait. After a cancel in
 *   http_next, http_body or http_read nothing is lost, and the call may be repeated. A cancelled
 *   response is cut short, with two exceptions: if none of its bytes was accepted yet, the call had
 *   no effect; if all were, http_next and http_flush send them. After a response that was cut short
 *   the connection sends no more responses. -ETIMEDOUT comes from the limits below, or from the
 *   system's own TCP limit.
 * Tasks. One task may read a body while another sends the response; other concurrent calls return
 *   -EBUSY. conc_server's .limit limits the connections.
 * Stopping. Without .answer_timeout, cancelling conc_serve cuts all connections. With it,
 *   http_serve shields each answer: a cancel ends idle connections at once, and conc_serve returns
 *   when the running answers have been sent or have timed out. To accept no more connections but
 *   leave idle ones open for a while, close the listener first: see "Stopping a server" in conc's
 *   README.
 *
 * Not covered: HTTP/2, CONNECT tunnels, compression, content codings, trailers (checked and
 * dropped), a Date header (use http_date).
 */
#ifndef HTTP_H
#define HTTP_H

#ifndef CONC_VERSION
#error "http.h: include conc.h first"
#endif

#include <ctype.h>
#include <errno.h>
#include <http_parser.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* ---- a connection and its request ----------------------------------------------------------- */

/* A header of a request; the value has no spaces around it. */
typedef struct http_field {
    const char *name, *value;
} http_field;

/* A growing text, followed by a NUL. */
typedef struct http__text {
    char *data;
    size_t n, room;
} http__text;

typedef struct http_connection {
    /* Options, to be set before the first call. 0: the default. CONC_FOREVER: no time limit */
    conc_stream *stream;     /* open, on anything; borrowed until http_close, which closes it */
    size_t max_request_line; /* bytes, else 414; 8192, at most 65,535 */
    size_t max_head;         /* bytes of request line and headers, else 431; 16,384, at most 80 KiB.
                                A line over the stream's own .limit is too long, too */
    size_t max_headers;      /* else 431; 100 */
    size_t max_body;         /* bytes for http_body, else 413; 1 MiB. http_read has no limit */
    double idle_timeout;     /* seconds until a request begins, else the connection ends; 60 */
    double head_timeout;     /* seconds from its first byte to the end of its head, else 408; 10 */
    double stall_timeout;    /* seconds without a byte of the body received or of the response sent,
                                else -ETIMEDOUT, and the client gets 408; 60 */
    double answer_timeout;   /* http_serve: seconds for a whole answer, which is shielded from
                                cancels; 0: no limit, no shield */

    /* The request, until the next one. Strings are never NULL unless noted */
    const char *method;  /* "GET" */
    const char *target;  /* as sent: "/a%20b?c=d"; also "*" or "http://host/a" */
    const char *path;    /* the target's, still encoded; "/" if it has none */
    const char *query;   /* the target's, still encoded, without '?'; "" if it has none */
    const char *host;    /* the target's, else the Host header; "" if there is none */
    const char *upgrade; /* the protocol to change to, if the client asks for one; else NULL */
    int minor;           /* of HTTP/1.x: 0 or 1 */
    int64_t length;      /* bytes of its body; -1: unknown, the body is chunked */
    http_field *headers; /* all of them, in order of arrival */
    size_t header_count;

    /* The response to it, for logs */
    int status;    /* 0: not begun */
    uint64_t sent; /* bytes of its body accepted so far */
    bool ended;    /* it is complete */

    /* The connection */
    bool keep_alive; /* more requests may follow; set it to false before the response to make it the
                        last */
    int refused;     /* the status with which a request was refused; 0: none was */
    char error[160]; /* why it was refused, broke or failed; "": it did not */

    /* private */
    http_parser parser;
    int state, part, inside;
    http__text head, out, body;
    char *strings;              /* of the request */
    size_t strings_used, lines; /* lines: of the head so far */
    double head_deadline;
    uint64_t left;       /* unread bytes of the body, or of its chunk */
    size_t trailer_size; /* bytes of trailers so far */
    uint64_t to_write;   /* bytes of the response's body still to be written, if it has a length */
    bool expects, blank, chunked, bodyless, typed, sized, handed_over;
} http_connection;

/* Finishes the current request and waits for the next one. Returns 1, with the request in *h, or 0
 * if there will be none. -EINVAL: the current request was not answered; its client got 500. */
static inline int http_next(http_connection *h);

/* Returns the value of the first header of this name, in any case, or NULL. */
static inline const char *http_header(const http_connection *h, const char *name);

/* Reads the whole body, or what http_read has left of it. Returns its length and sets *data to it;
 * a NUL follows. A second call returns the same. Errors: -EMSGSIZE (over max_body, the client got
 * 413), and those of http_read. */
static inline ssize_t http_body(http_connection *h, char **data);

/* Reads available bytes of the body, at most n, and returns how many; 0: the end. Errors: -EPROTO
 * (malformed, the client got 400), -ECONNRESET (the client left), -ETIMEDOUT (the client got
 * 408). */
static inline ssize_t http_read(http_connection *h, void *buf, size_t n);

/* Decodes n bytes of a path, such as one of its segments, and adds a NUL. Returns the length.
 * Errors: -EINVAL (a broken escape, an encoded NUL), -ENOSPC. */
static inline ssize_t http_decode(const char *text, size_t n, char *out, size_t size);

/* Decodes the path and adds a NUL. Returns the length. Errors: -EINVAL (a broken escape, an encoded
 * NUL, a segment ".."), -ENOSPC. */
static inline ssize_t http_decode_path(http_connection *h, char *out, size_t size);

/* Decodes the first value of a name in a query, or in the body of a form
 * (application/x-www-form-urlencoded), and adds a NUL. Returns the length. form is http.query or a
 * string of the caller's. Errors, in conc_last_error: -ENOENT (no such name), -EINVAL (a broken
 * escape, an encoded NUL), -ENOSPC. */
static inline ssize_t http_value(const char *form, const char *name, char *out, size_t size);

/* ---- a response ----------------------------------------------------------------------------- */

/* Adds a header to the next response; copies both strings. -EINVAL: the name is no token, the value
 * has control characters (such as line ends), http_begin sends this header itself (Content-Length,
 * Transfer-Encoding, Connection), or there is no request to answer. */
static inline int http_set_header(http_connection *h, const char *name, const char *value);

/* Sends a whole response. Returns 0 when the system has accepted all of it. status is 200 to
 * 599. */
static inline int http_respond(http_connection *h, int status, const void *body, size_t size);

/* Sends text as a whole response. Its Content-Type is text/plain in UTF-8 unless one was set. */
static inline int http_printf(http_connection *h, int status, const char *fmt, ...)
    __attribute__((__format__(__printf__, 3, 4)));

/* Begins a response whose body is written in pieces: length bytes in all, or any number if length
 * is negative. */
static inline int http_begin(http_connection *h, int status, int64_t length);

/* Writes n bytes of the body. They are buffered until the stream's buffer is full, or until
 * http_flush or http_end. Waits while the client is slow. -EMSGSIZE: more than length; nothing was
 * written. */
static inline int http_write(http_connection *h, const void *data, size_t n);

/* Sends buffered data. For long-lived bodies, such as event streams. */
static inline int http_flush(http_connection *h);

/* Ends the response and sends buffered data. -EINVAL: the body is shorter than length; the response
 * is cut short. http_next does this, too. */
static inline int http_end(http_connection *h);

/* Answers a request whose .upgrade is not NULL with 101 and the headers that were set. From then on
 * the caller owns the stream, speaks the new protocol on it, and closes it. Bytes that the client
 * sent after the request are still in it, and http_next returns 0. After an error, close the stream
 * as well: a second close does nothing. -EINVAL: no upgrade was requested, or the body was not
 * read. */
static inline int http_upgrade(http_connection *h, const char *protocol);

/* Formats a time for HTTP, in any locale: "Sun, 06 Nov 1994 08:49:37 GMT". Returns out. */
enum { HTTP_DATE = 30 };
static inline char *http_date(time_t t, char out[HTTP_DATE]);

/* ---- serving -------------------------------------------------------------------------------- */

/* Calls answer(h, arg) for each request until there are no more. Returns 0, even if the connection
 * broke (.error) or a request was refused (.refused). If answer itself fails, returns its error,
 * and the client gets 500, or 503 for -ETIMEDOUT, unless part of its response was already sent. */
static inline int http_serve(http_connection *h, int (*answer)(http_connection *h, void *arg),
                             void *arg);

/* Sends buffered data, closes the stream and frees everything. If the client may still be sending,
 * it first waits at most a second for the client to read the response and leave. In a cancelled
 * task it closes at once. Closing twice, or closing an all-zero object, does nothing. Returns 0 or
 * the error of the stream's close; the stream is closed all the same. -EBUSY: another task is
 * inside a call; nothing was done. */
static inline int http_close(http_connection *h);
CONC_AUTO_TYPE(http_connection, http_close);

/* ---- implementation: state and errors ------------------------------------------------------- */

/* The state of a connection. Each call is allowed in some of them only. */
enum http__state {
    HTTP__WAITING,   /* for a request, or for the rest of its head; http_next -> ASKED, OVER */
    HTTP__ASKED,     /* no byte of the response was accepted yet; http_begin -> ANSWERING */
    HTTP__ANSWERING, /* http_end -> ANSWERED */
    HTTP__ANSWERED,  /* http_next -> WAITING, OVER */
    HTTP__OVER,      /* no more requests: the client left, was refused, or got its last response */
    HTTP__BROKEN     /* a response was cut short, or the stream failed */
};

/* Which part of the request comes next on the stream. */
enum http__part {
    HTTP__HEAD,
    HTTP__DATA,       /* `left` bytes of the body */
    HTTP__CHUNK_SIZE, /* the line before a chunk's data */
    HTTP__CHUNK_END,  /* the line end after it */
    HTTP__TRAILERS,
    HTTP__COMPLETE
};

/* Bits of `inside`: a task is in a call that does this. */
enum { HTTP__READS = 1, HTTP__WRITES = 2 };

enum {
    HTTP__CHUNK_LINE = 256, /* maximum size of a chunk's first line, with its extensions */
    HTTP__SKIPPED = 65536,  /* maximum size of a body's rest to skip before the next request */
    HTTP__LINGER = 1        /* seconds for the client to read the last response */
};

static const char http__token[] =
    "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

__attribute__((__format__(__printf__, 3, 4))) static inline int
http__fail(http_connection *h, int rc, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(h->error, sizeof h->error, fmt, args);
    va_end(args);
    return conc_fail(rc, "%s", h->error);
}

/* The stream failed, or a time limit expired. Marks the connection as broken and returns the error.
 * Passes a cancel on as it is. */
static inline int http__failed(http_connection *h, int rc, const char *doing)
{
    if (rc == -ECANCELED || rc == -ENOMEM)
        return rc;
    h->state = HTTP__BROKEN;
    h->keep_alive = false;
    if (rc == -ETIMEDOUT)
        return http__fail(h, rc, "%s: the client stalled", doing);
    return http__fail(h, rc, "%s: %s", doing, conc_last_error());
}

static inline int http__no_memory(http_connection *h)
{
    h->state = HTTP__BROKEN;
    return http__fail(h, -ENOMEM, "out of memory");
}

static inline void http__set_defaults(http_connection *h)
{
    h->max_request_line = h->max_request_line ? h->max_request_line : 8192;
    if (h->max_request_line > UINT16_MAX) /* what http_parser_url can count */
        h->max_request_line = UINT16_MAX;
    h->max_head = h->max_head ? h->max_head : 16384;
    h->max_headers = h->max_headers ? h->max_headers : 100;
    h->max_body = h->max_body ? h->max_body : 1 << 20;
    h->idle_timeout = h->idle_timeout > 0 ? h->idle_timeout : 60;
    h->head_timeout = h->head_timeout > 0 ? h->head_timeout : 10;
    h->stall_timeout = h->stall_timeout > 0 ? h->stall_timeout : 60;
}

/* Begins a public call that is allowed in the states from first to last. Returns 0, and the caller
 * must call http__leave(h, bits), or an error. */
static inline int http__enter(http_connection *h, int bits, int first, int last, const char *call)
{
    if (!h || !h->stream)
        return conc_fail(-EINVAL, "%s: no connection, or no stream", call);
    if (h->inside & bits)
        return conc_fail(-EBUSY, "%s: another task is in such a call", call);
    if (h->state == HTTP__BROKEN)
        return conc_fail(-EPIPE, "%s: the connection broke before: %.90s", call, h->error);
    if (h->state < first || h->state > last)
        return conc_fail(-EINVAL, "%s: out of order", call);
    if (!h->inside)
        http__set_defaults(h);
    h->inside |= bits;
    return 0;
}

static inline ssize_t http__leave(http_connection *h, int bits, ssize_t rc)
{
    h->inside &= ~bits;
    return rc;
}

/* ---- implementation: text ------------------------------------------------------------------- */

static inline int http__reserve(http__text *t, size_t n)
{
    if (t->n + n < t->room)
        return 0;
    size_t room = (t->n + n) * 2 + 256;
    char *data = realloc(t->data, room);
    if (!data)
        return -ENOMEM;
    t->data = data;
    t->room = room;
    return 0;
}

static inline int http__append(http__text *t, const void *data, size_t n)
{
    CONC_TRY(http__reserve(t, n));
    if (n)
        memcpy(t->data + t->n, data, n);
    t->n += n;
    t->data[t->n] = 0;
    return 0;
}

static inline int http__vprint(http__text *t, const char *fmt, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    if (n < 0)
        return -EINVAL;
    CONC_TRY(http__reserve(t, (size_t)n));
    vsnprintf(t->data + t->n, (size_t)n + 1, fmt, args);
    t->n += (size_t)n;
    return 0;
}

/* Appends formatted text. An error changes nothing. */
__attribute__((__format__(__printf__, 2, 3))) static inline int http__print(http__text *t,
                                                                            const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int rc = http__vprint(t, fmt, args);
    va_end(args);
    return rc;
}

static inline void http__free(http__text *t)
{
    free(t->data);
    *t = (http__text){NULL, 0, 0};
}

/* Do the first n bytes hold control characters other than tabs? */
static inline bool http__has_controls(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        bool control = c < ' ' || c == 127;
        if (control && c != '\t')
            return true;
    }
    return false;
}

/* ---- implementation: sending ---------------------------------------------------------------- */

/* Writes n bytes, or flushes the stream if data is NULL, as long as the client makes progress. */
static inline int http__send(http_connection *h, const char *data, size_t n)
{
    size_t done = 0;
    ssize_t took;
    do {
        conc_scope limit = {0};
        CONC_TRY(conc_scope_begin(&limit, h->stall_timeout));
        if (data)
            took = conc_stream_write(h->stream, data + done, n - done);
        else
            took = conc_stream_flush(h->stream);
        int rc = conc_scope_end(&limit, took < 0 ? (int)took : 0);
        if (rc && done)
            h->state = HTTP__BROKEN;
        if (rc)
            return http__failed(h, rc, "sending a response");
        done += data ? (size_t)took : 0;
    } while (data ? done < n : took > 0);
    return 0;
}

static inline int http__flush(http_connection *h) { return http__send(h, NULL, 0); }

/* Is the unread rest of the body short enough to skip it for the sake of the next request? */
static inline bool http__may_skip(const http_connection *h)
{
    if (h->part == HTTP__COMPLETE)
        return true;
    return !h->expects && h->left <= HTTP__SKIPPED;
}

/* Appends the status line, the headers that were set, and those that tell where the body ends and
 * whether the connection stays open. */
static inline int http__print_head(http_connection *h, http__text *head, int status, int64_t length)
{
    const char *reason = http_status_str((enum http_status)status), *connection = "";
    if (!h->keep_alive)
        connection = "Connection: close\r\n";
    else if (h->minor == 0)
        connection = "Connection: keep-alive\r\n";
    if (*reason == '<') /* "<unknown>" */
        reason = "";
    CONC_TRY(http__print(head, "HTTP/1.1 %d %s\r\n", status, reason));
    CONC_TRY(http__append(head, h->out.data, h->out.n));
    if (h->sized)
        CONC_TRY(http__print(head, "Content-Length: %lld\r\n", (long long)length));
    else if (h->chunked)
        CONC_TRY(http__print(head, "Transfer-Encoding: chunked\r\n"));
    return http__print(head, "%s\r\n", connection);
}

/* ASKED -> ANSWERING, or an error. */
static inline int http__begin(http_connection *h, int status, int64_t length)
{
    bool no_body = status == 204 || status == 304;
    http__text head = {NULL, 0, 0};
    h->sized = length >= 0 && !no_body;
    h->chunked = length < 0 && !no_body && h->minor > 0;
    h->bodyless = no_body || strcmp(h->method, "HEAD") == 0;
    h->to_write = h->sized ? (uint64_t)length : UINT64_MAX;
    bool ends_by_close = length < 0 && !no_body && h->minor == 0;
    if (ends_by_close || !http__may_skip(h))
        h->keep_alive = false;
    int rc = http__print_head(h, &head, status, length);
    if (rc == 0)
        rc = http__send(h, head.data, head.n);
    http__free(&head);
    if (rc)
        return rc;
    h->state = HTTP__ANSWERING;
    h->status = status;
    h->out.n = 0;
    h->typed = false;
    return 0;
}

/* Counts n bytes of the body as written. */
static inline void http__count(http_connection *h, size_t n)
{
    h->sent += n;
    h->to_write -= h->sized ? n : 0;
}

static inline int http__write(http_connection *h, const void *data, size_t n)
{
    char size[24];
    if (n > h->to_write)
        return conc_fail(-EMSGSIZE, "http_write: %zu bytes are more than length leaves", n);
    if (n == 0 || h->bodyless)
        return 0;
    if (!h->chunked) {
        int rc = http__send(h, data, n);
        if (rc == 0)
            http__count(h, n);
        return rc;
    }
    snprintf(size, sizeof size, "%zx\r\n", n);
    CONC_TRY(http__send(h, size, strlen(size)));
    int rc = http__send(h, data, n);
    if (rc == 0)
        rc = http__send(h, "\r\n", 2);
    if (rc)
        h->state = HTTP__BROKEN;
    else
        http__count(h, n);
    return rc;
}

/* ANSWERING -> ANSWERED, or an error. */
static inline int http__end(http_connection *h)
{
    bool unfinished = h->sized && !h->bodyless && h->to_write;
    if (unfinished) {
        h->state = HTTP__BROKEN;
        return http__fail(h, -EINVAL, "%s %.80s: %llu bytes of the response are missing", h->method,
                          h->target, (unsigned long long)h->to_write);
    }
    if (h->chunked && !h->bodyless)
        CONC_TRY(http__send(h, "0\r\n\r\n", 5));
    h->state = HTTP__ANSWERED;
    h->ended = true;
    return http__flush(h);
}

static inline int http__respond(http_connection *h, int status, const void *body, size_t size)
{
    CONC_TRY(http__begin(h, status, (int64_t)size));
    int rc = http__write(h, body, size);
    if (rc < 0) {
        h->state = HTTP__BROKEN;
        return rc;
    }
    return http__end(h);
}

/* Ends the connection because of a client error, and tells the client if that is still possible. */
static inline int http__refuse(http_connection *h, int status, int rc, const char *why)
{
    char words[160];
    int length = snprintf(words, sizeof words, "%s\n", why);
    bool others_write = h->state == HTTP__ASKED && h->inside & HTTP__WRITES;
    bool answerable = h->state <= HTTP__ASKED && !others_write;
    h->refused = status;
    h->keep_alive = h->expects = false;
    h->out.n = 0;
    if (answerable) {
        http__print(&h->out, "Content-Type: text/plain\r\n");
        http__respond(h, status, words, (size_t)length);
    }
    if (h->state == HTTP__ANSWERING)
        h->state = HTTP__BROKEN;
    else if (h->state != HTTP__BROKEN && !others_write)
        h->state = HTTP__OVER;
    return http__fail(h, rc, "refused with %d: %s", status, why);
}

/* ---- implementation: reading a head --------------------------------------------------------- */

/* Reads a line and appends it to h->head. Returns its length; 0: the client left. */
static inline ssize_t http__read_line(http_connection *h, double seconds)
{
    conc_scope limit = {0};
    char *line = NULL;
    CONC_TRY(conc_scope_begin(&limit, seconds));
    ssize_t n = conc_stream_read_until(h->stream, "\n", 1, &line);
    int rc = conc_scope_end(&limit, n < 0 ? (int)n : 0);
    if (rc || n == 0)
        return rc;
    rc = http__append(&h->head, line, (size_t)n);
    if (rc)
        h->state = HTTP__BROKEN; /* the line is lost */
    return rc ? rc : n;
}

/* Returns what is wrong with a line of any kind, or NULL. */
static inline const char *http__line_fault(const char *line, size_t n)
{
    bool has_end = n >= 2 && line[n - 2] == '\r' && line[n - 1] == '\n';
    if (!has_end)
        return "a line does not end with CRLF";
    if (http__has_controls(line, n - 2))
        return "a line has control characters";
    return NULL;
}

/* Checks for METHOD SP target SP HTTP/x.y. The parser checks each of the parts. */
static inline const char *http__request_line_fault(const char *line)
{
    const char *target = line + strspn(line, http__token) + 1;
    const char *version = target;
    if (target == line + 1 || target[-1] != ' ')
        return "the request line has no method";
    while (*version > ' ' && *version < 127)
        version++;
    if (version == target || strncmp(version, " HTTP/", 6) != 0)
        return "the request line has a bad target or no version";
    return strlen(version) == strlen(" HTTP/1.1\r\n") ? NULL : "the version is malformed";
}

static inline const char *http__header_fault(const char *line)
{
    size_t name = strspn(line, http__token);
    if (*line == ' ' || *line == '\t')
        return "a header is folded";
    return name && line[name] == ':' ? NULL : "a header has no name, or a bad one";
}

/* Checks the newest line of the head. Returns 1 if it was the last, 0 if more follow; otherwise it
 * refuses the request and returns an error. */
static inline int http__check_head(http_connection *h, const char *line, size_t n)
{
    bool first = h->lines == 0;
    const char *fault = http__line_fault(line, n);
    if (first && n > h->max_request_line)
        return http__refuse(h, 414, -EPROTO, "the request line is too long");
    if (h->head.n > h->max_head)
        return http__refuse(h, 431, -EPROTO, "the head is too large");
    bool last = !fault && n == 2 && !first;
    if (last)
        return 1;
    if (!fault)
        fault = first ? http__request_line_fault(line) : http__header_fault(line);
    if (fault)
        return http__refuse(h, 400, -EPROTO, fault);
    if (h->lines++ > h->max_headers)
        return http__refuse(h, 431, -EPROTO, "there are too many headers");
    return 0;
}

/* Reads the head to its end. Returns 1 or an error. After a cancel the next call continues with
 * what was read. */
static inline int http__read_head(http_connection *h)
{
    for (;;) {
        size_t start = h->lines ? h->head.n : 0; /* http__await has read the first byte */
        ssize_t n = http__read_line(h, h->head_deadline - conc_now());
        if (n == 0)
            return http__refuse(h, 400, -ECONNRESET, "the client left in the middle of the head");
        if (n == -ETIMEDOUT)
            return http__refuse(h, 408, -ETIMEDOUT, "the head did not arrive in time");
        if (n == -EMSGSIZE)
            return http__refuse(h, h->lines ? 431 : 414, -EPROTO, "a line is too long");
        if (n < 0)
            return http__failed(h, (int)n, "reading a request");
        bool empty = h->lines == 0 && strcmp(h->head.data, "\r\n") == 0;
        if (empty && !h->blank) {
            h->blank = true; /* some clients send it after the body of a request */
            h->head.n = 0;
            continue;
        }
        int rc = http__check_head(h, h->head.data + start, h->head.n - start);
        if (rc)
            return rc;
    }
}

/* Waits for the first byte of a request. Returns 1, or 0 if none arrives. */
static inline int http__await(http_connection *h)
{
    char first;
    conc_scope limit = {0};
    CONC_TRY(conc_scope_begin(&limit, h->idle_timeout));
    ssize_t n = conc_stream_read(h->stream, &first, 1);
    int rc = conc_scope_end(&limit, n < 0 ? (int)n : 0);
    h->head_deadline = conc_now() + h->head_timeout;
    if (n == 1)
        return http__append(&h->head, &first, 1) == 0 ? 1 : http__no_memory(h);
    bool ends = n == 0 || rc == -ETIMEDOUT || rc == -ECONNRESET;
    if (!ends)
        return http__failed(h, rc, "waiting for a request");
    h->state = HTTP__OVER;
    return 0;
}

/* ---- implementation: parsing a head --------------------------------------------------------- */

/* Makes a copy that lives as long as the request. h->strings has room to copy each byte three
 * times. */
static inline const char *http__keep(http_connection *h, const char *text, size_t n)
{
    char *copy = h->strings + h->strings_used;
    memcpy(copy, text, n);
    copy[n] = 0;
    h->strings_used += n + 1;
    return copy;
}

static inline int http__on_url(http_parser *p, const char *at, size_t n)
{
    http_connection *h = p->data;
    h->target = http__keep(h, at, n);
    return 0;
}

static inline int http__on_name(http_parser *p, const char *at, size_t n)
{
    http_connection *h = p->data;
    if (h->part == HTTP__HEAD)
        h->headers[h->header_count].name = http__keep(h, at, n);
    return 0;
}

static inline int http__on_value(http_parser *p, const char *at, size_t n)
{
    http_connection *h = p->data;
    while (n && (at[n - 1] == ' ' || at[n - 1] == '\t'))
        n--;
    if (h->part == HTTP__HEAD)
        h->headers[h->header_count++].value = http__keep(h, at, n);
    return 0;
}

static inline int http__on_head(http_parser *p)
{
    http_connection *h = p->data;
    bool chunks = p->flags & F_CHUNKED;
    h->keep_alive = http_should_keep_alive(p) && p->method != HTTP_CONNECT;
    h->left = !chunks && p->flags & F_CONTENTLENGTH ? p->content_length : 0;
    h->length = chunks ? -1 : (int64_t)h->left;
    h->part = chunks ? HTTP__CHUNK_SIZE : HTTP__DATA;
    return 0;
}

static inline int http__on_chunk(http_parser *p)
{
    http_connection *h = p->data;
    h->left = p->content_length;
    h->part = h->left ? HTTP__DATA : HTTP__TRAILERS;
    return 0;
}

static inline int http__on_chunk_end(http_parser *p)
{
    http_connection *h = p->data;
    h->part = HTTP__CHUNK_SIZE;
    return 0;
}

static inline int http__on_end(http_parser *p)
{
    http_connection *h = p->data;
    h->part = HTTP__COMPLETE;
    return 0;
}

/* Passes n bytes to the parser. Returns 0, or refuses the request. */
static inline int http__feed(http_connection *h, const char *data, size_t n)
{
    static const http_parser_settings calls = {
        .on_url = http__on_url,
        .on_header_field = http__on_name,
        .on_header_value = http__on_value,
        .on_headers_complete = http__on_head,
        .on_chunk_header = http__on_chunk,
        .on_chunk_complete = http__on_chunk_end,
        .on_message_complete = http__on_end,
    };
    size_t took = http_parser_execute(&h->parser, &calls, data, n);
    enum http_errno error = HTTP_PARSER_ERRNO(&h->parser);
    if (error == HPE_OK && took == n)
        return 0;
    int status = 400;
    if (error == HPE_INVALID_METHOD)
        status = 501;
    if (error == HPE_HEADER_OVERFLOW)
        status = 431;
    return http__refuse(h, status, -EPROTO, http_errno_description(error));
}

/* Splits the target into path, query and host. */
static inline int http__split_target(http_connection *h)
{
    struct http_parser_url u;
    bool connect = h->parser.method == HTTP_CONNECT;
    const char *scheme_end = strstr(h->target, "://");
    http_parser_url_init(&u);
    int rc = http_parser_parse_url(h->target, strlen(h->target), connect, &u);
    if (rc || u.field_set & 1 << UF_USERINFO)
        return http__refuse(h, 400, -EPROTO, "the target is malformed");
    if (u.field_set & 1 << UF_PATH)
        h->path = http__keep(h, h->target + u.field_data[UF_PATH].off, u.field_data[UF_PATH].len);
    if (u.field_set & 1 << UF_QUERY)
        h->query =
            http__keep(h, h->target + u.field_data[UF_QUERY].off, u.field_data[UF_QUERY].len);
    if (connect)
        h->host = h->target;
    else if (u.field_set & 1 << UF_HOST)
        h->host = http__keep(h, scheme_end + 3, strcspn(scheme_end + 3, "/?#"));
    return 0;
}

/* Refuses what the parser accepts but HTTP forbids or this file does not support. */
static inline int http__judge(http_connection *h)
{
    int hosts = 0, codings = 0;
    for (size_t i = 0; i < h->header_count; i++) {
        hosts += strcasecmp(h->headers[i].name, "Host") == 0;
        codings += strcasecmp(h->headers[i].name, "Transfer-Encoding") == 0;
    }
    bool without_host = hosts == 0 && h->minor > 0, too_old = codings && h->minor == 0;
    const char *coding = http_header(h, "Transfer-Encoding"), *expected = http_header(h, "Expect");
    if (h->parser.http_major != 1)
        return http__refuse(h, 505, -EPROTO, "the version is not HTTP/1.x");
    if (without_host || hosts > 1)
        return http__refuse(h, 400, -EPROTO, "there is no Host, or more than one");
    if (codings > 1 || too_old)
        return http__refuse(h, 400, -EPROTO, "Transfer-Encoding twice, or in HTTP/1.0");
    if (coding && strcasecmp(coding, "chunked") != 0)
        return http__refuse(h, 501, -EPROTO, "a Transfer-Encoding other than chunked");
    if (h->left > INT64_MAX)
        return http__refuse(h, 413, -EPROTO, "the body is too large");
    if (expected && strcasecmp(expected, "100-continue") != 0)
        return http__refuse(h, 417, -EPROTO, "Expect is not 100-continue");
    h->expects = expected && h->minor > 0 && h->part != HTTP__COMPLETE;
    return 0;
}

/* Parses a complete head. Returns 1, or refuses the request. */
static inline int http__parse_head(http_connection *h)
{
    http_field *fields = realloc(h->headers, (h->lines + 1) * sizeof *fields);
    if (fields)
        h->headers = fields;
    h->strings = malloc(3 * h->head.n + 3);
    if (!fields || !h->strings)
        return http__no_memory(h);
    http_parser_init(&h->parser, HTTP_REQUEST);
    h->parser.data = h;
    CONC_TRY(http__feed(h, h->head.data, h->head.n));
    h->method = http_method_str((enum http_method)h->parser.method);
    h->minor = h->parser.http_minor > 0;
    const char *host = http_header(h, "Host");
    if (host)
        h->host = host;
    CONC_TRY(http__split_target(h));
    CONC_TRY(http__judge(h));
    if (h->parser.upgrade && h->minor > 0)
        h->upgrade = http_header(h, "Upgrade");
    http__free(&h->head);
    h->state = HTTP__ASKED;
    return 1;
}

/* ---- implementation: reading a body --------------------------------------------------------- */

/* Returns what is wrong with the newest line between chunks or of the trailers, or NULL. */
static inline const char *http__frame_fault(http_connection *h, const char *line, size_t n)
{
    const char *fault = http__line_fault(line, n);
    size_t digits = strspn(line, "0123456789abcdefABCDEF");
    bool ends = line[digits] == ';' || line[digits] == '\r';
    h->trailer_size += n;
    if (fault)
        return fault;
    if (h->part == HTTP__CHUNK_END)
        return n == 2 ? NULL : "a chunk does not end where it should";
    if (h->part == HTTP__CHUNK_SIZE) {
        h->trailer_size = 0;
        bool valid = digits && ends && n <= HTTP__CHUNK_LINE;
        return valid ? NULL : "a chunk has a bad size";
    }
    if (h->trailer_size > h->max_head)
        return "the trailers are too large";
    return n == 2 ? NULL : http__header_fault(line);
}

/* A read of the body returned 0 or an error: refuses the request, or fails. */
static inline int http__body_ended(http_connection *h, int rc)
{
    if (rc == 0 || rc == -ECONNRESET)
        return http__refuse(h, 400, -ECONNRESET, "the client left in the middle of the body");
    if (rc == -ETIMEDOUT)
        return http__refuse(h, 408, -ETIMEDOUT, "the body did not arrive in time");
    if (rc == -EMSGSIZE)
        return http__refuse(h, 400, -EPROTO, "a line between chunks is too long");
    return http__failed(h, rc, "reading a body");
}

/* Reads a line between chunks or of the trailers. */
static inline int http__read_frame(http_connection *h)
{
    h->head.n = 0;
    ssize_t n = http__read_line(h, h->stall_timeout);
    if (n <= 0)
        return http__body_ended(h, (int)n);
    const char *fault = http__frame_fault(h, h->head.data, (size_t)n);
    if (fault)
        return http__refuse(h, 400, -EPROTO, fault);
    return http__feed(h, h->head.data, (size_t)n);
}

static inline ssize_t http__read_data(http_connection *h, char *buf, size_t n)
{
    conc_scope limit = {0};
    CONC_TRY(conc_scope_begin(&limit, h->stall_timeout));
    ssize_t got = conc_stream_read(h->stream, buf, n < h->left ? n : (size_t)h->left);
    int rc = conc_scope_end(&limit, got < 0 ? (int)got : 0);
    if (got <= 0)
        return http__body_ended(h, rc);
    h->left -= (uint64_t)got;
    if (h->left == 0 && h->length < 0)
        h->part = HTTP__CHUNK_END;
    CONC_TRY(http__feed(h, buf, (size_t)got));
    return got;
}

/* Sends 100 Continue to a client that waits for it before it sends the body. */
static inline int http__invite(http_connection *h)
{
    static const char words[] = "HTTP/1.1 100 Continue\r\n\r\n";
    bool may_send = h->state == HTTP__ASKED && !(h->inside & HTTP__WRITES);
    if (!h->expects || !may_send)
        return 0;
    CONC_TRY(http__send(h, words, sizeof words - 1));
    h->expects = false;
    return http__flush(h);
}

static inline ssize_t http__read(http_connection *h, char *buf, size_t n)
{
    CONC_TRY(http__invite(h));
    while (h->part != HTTP__DATA && h->part != HTTP__COMPLETE)
        CONC_TRY(http__read_frame(h));
    return h->part == HTTP__COMPLETE ? 0 : http__read_data(h, buf, n);
}

/* Reads the unread rest of the body. Returns 1, or 0 if it is too long. */
static inline int http__skip(http_connection *h)
{
    char waste[4096];
    ssize_t n = 1;
    for (size_t sum = 0; n > 0 && sum <= HTTP__SKIPPED; sum += (size_t)n)
        n = CONC_TRY(http__read(h, waste, sizeof waste));
    return h->part == HTTP__COMPLETE;
}

static inline ssize_t http__body(http_connection *h, char **data)
{
    bool too_large = h->length > 0 && (uint64_t)h->length > h->max_body;
    ssize_t n = 1;
    while (n > 0 && !too_large) {
        if (http__reserve(&h->body, 4096))
            return http__no_memory(h);
        n = CONC_TRY(http__read(h, h->body.data + h->body.n, h->body.room - h->body.n - 1));
        h->body.n += (size_t)n;
        h->body.data[h->body.n] = 0;
        too_large = h->body.n > h->max_body;
    }
    if (too_large)
        return http__refuse(h, 413, -EMSGSIZE, "the body is too large");
    *data = h->body.data;
    return (ssize_t)h->body.n;
}

/* ---- implementation: decoding --------------------------------------------------------------- */

/* Returns the next character of encoded text and advances *at past it; -1: a broken escape, or a
 * NUL. */
static inline int http__decode_char(const char **at, const char *end, bool form)
{
    const char *text = *at;
    ++*at;
    if (*text == '+' && form)
        return ' ';
    if (*text != '%')
        return *text ? (unsigned char)*text : -1;
    bool whole =
        end - text >= 3 && isxdigit((unsigned char)text[1]) && isxdigit((unsigned char)text[2]);
    if (!whole)
        return -1;
    char digits[] = {text[1], text[2], 0};
    int c = (int)strtol(digits, NULL, 16);
    *at += 2;
    return c ? c : -1;
}

static inline ssize_t http__decode(const char *text, size_t n, bool form, char *out, size_t size)
{
    const char *end = text + n;
    size_t length = 0;
    while (text < end && length < size) {
        int c = http__decode_char(&text, end, form);
        if (c < 0)
            return conc_fail(-EINVAL, "a broken escape, or an encoded NUL");
        out[length++] = (char)c;
    }
    if (length >= size)
        return conc_fail(-ENOSPC, "more than %zu bytes, decoded", size);
    out[length] = 0;
    return (ssize_t)length;
}

/* Does an encoded name of a form, decoded, equal this one? */
static inline bool http__is_name(const char *text, size_t n, const char *name)
{
    const char *end = text + n;
    for (; text < end; name++)
        if (http__decode_char(&text, end, true) != (unsigned char)*name)
            return false;
    return *name == 0;
}

static inline ssize_t http_value(const char *form, const char *name, char *out, size_t size)
{
    bool complete = form && name && out;
    if (!complete)
        return conc_fail(-EINVAL, "http_value: no form, name or buffer");
    for (size_t n; *form; form += n + (form[n] == '&')) {
        size_t key = strcspn(form, "=&");
        n = strcspn(form, "&");
        if (http__is_name(form, key, name)) {
            size_t value = key < n ? key + 1 : n;
            return http__decode(form + value, n - value, true, out, size);
        }
    }
    return conc_fail(-ENOENT, "there is no %.80s", name);
}

static inline ssize_t http_decode(const char *text, size_t n, char *out, size_t size)
{
    bool complete = text && out;
    if (!complete)
        return conc_fail(-EINVAL, "http_decode: no text or no buffer");
    return http__decode(text, n, false, out, size);
}

static inline ssize_t http_decode_path(http_connection *h, char *out, size_t size)
{
    bool complete = h && h->path && out;
    if (!complete)
        return conc_fail(-EINVAL, "http_decode_path: no request or no buffer");
    ssize_t length = CONC_TRY(http__decode(h->path, strlen(h->path), false, out, size));
    for (const char *segment = out; segment; segment = strchr(segment, '/')) {
        segment += *segment == '/';
        if (strcspn(segment, "/") == 2 && strncmp(segment, "..", 2) == 0)
            return conc_fail(-EINVAL, "the path has a segment \"..\"");
    }
    return length;
}

static inline char *http_date(time_t t, char out[HTTP_DATE])
{
    static const char days[] = "SunMonTueWedThuFriSat";
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    struct tm g = {0};
    gmtime_r(&t, &g);
    snprintf(out, HTTP_DATE, "%.3s, %02u %.3s %04u %02u:%02u:%02u GMT", days + 3 * g.tm_wday,
             (unsigned)g.tm_mday % 100, months + 3 * g.tm_mon, (unsigned)(g.tm_year + 1900) % 10000,
             (unsigned)g.tm_hour % 100, (unsigned)g.tm_min % 100, (unsigned)g.tm_sec % 100);
    return out;
}

/* ---- implementation: from request to request ------------------------------------------------ */

/* Any state -> WAITING. Frees what belongs to the request. */
static inline void http__forget_request(http_connection *h)
{
    http__free(&h->head);
    http__free(&h->body);
    free(h->strings);
    h->strings = NULL;
    h->strings_used = h->lines = h->header_count = h->trailer_size = 0;
    h->method = h->target = h->query = h->host = "";
    h->path = "/";
    h->upgrade = NULL;
    h->minor = 1;
    h->length = 0;
    h->left = 0;
    h->part = HTTP__HEAD;
    h->status = 0;
    h->sent = 0;
    h->keep_alive = true;
    h->expects = h->blank = h->ended = false;
    h->state = HTTP__WAITING;
}

/* Completes the current request and its response. Returns 1 if another request may follow, else
 * 0. */
static inline int http__finish(http_connection *h)
{
    if (h->state == HTTP__ASKED) {
        h->keep_alive = false;
        CONC_TRY(http__respond(h, 500, NULL, 0));
        h->state = HTTP__OVER;
        return http__fail(h, -EINVAL, "%s %.100s was not answered", h->method, h->target);
    }
    if (h->state == HTTP__ANSWERING)
        CONC_TRY(http__end(h));
    if (h->state == HTTP__ANSWERED && h->keep_alive)
        h->keep_alive = CONC_TRY(http__skip(h));
    if (h->state != HTTP__ANSWERED || !h->keep_alive) {
        h->state = HTTP__OVER;
        return 0;
    }
    http__forget_request(h);
    return 1;
}

static inline int http__next(http_connection *h)
{
    int rc = 1;
    if (h->state == HTTP__OVER)
        return 0;
    if (!h->method)
        http__forget_request(h);
    if (h->state != HTTP__WAITING)
        rc = http__finish(h);
    bool has_begun = h->head.n || h->blank;
    if (rc > 0 && !has_begun)
        rc = http__await(h);
    if (rc > 0)
        rc = http__read_head(h);
    if (rc > 0)
        rc = http__parse_head(h);
    return h->refused ? 0 : rc;
}

typedef struct http__job {
    http_connection *h;
    int (*answer)(http_connection *h, void *arg);
    void *arg;
} http__job;

static inline int http__answer(void *arg)
{
    http__job *job = arg;
    int rc = job->answer(job->h, job->arg);
    if (rc >= 0 && job->h->state == HTTP__ANSWERING)
        rc = http_end(job->h);
    return rc;
}

/* Tells the client that its answer failed, if that is still possible. */
static inline int http__apologise(http_connection *h, int rc)
{
    char words[128];
    bool clients_fault = h->state == HTTP__BROKEN || h->refused;
    if (rc == -ECANCELED || rc == -EINVAL)
        clients_fault = false;
    if (clients_fault)
        return 0;
    if (h->state != HTTP__ASKED || rc == -ECANCELED)
        return rc;
    snprintf(words, sizeof words, "%s", conc_last_error());
    h->keep_alive = false;
    h->out.n = 0;
    if (http__respond(h, rc == -ETIMEDOUT ? 503 : 500, NULL, 0) < 0)
        return conc_fail(rc, "%s", words);
    return rc;
}

/* ---- implementation: closing ---------------------------------------------------------------- */

/* Shuts down the sending side and waits until the client closes: a close while bytes arrive would
 * reset the connection, and the client might lose the last response. */
static inline int http__linger(void *arg)
{
    http_connection *h = arg;
    char waste[4096];
    CONC_TRY(http__flush(h));
    CONC_TRY(conc_stream_shutdown(h->stream));
    while (CONC_TRY(conc_stream_read(h->stream, waste, sizeof waste)) > 0)
        continue;
    return 0;
}

static inline int http__close_stream(void *stream) { return conc_stream_close(stream); }

static inline int http__shut(http_connection *h)
{
    bool last = h->state == HTTP__OVER || h->state == HTTP__ANSWERED;
    if (!conc_self())
        return conc_stream_close(h->stream);
    if (last && !h->keep_alive)
        conc_timeout(HTTP__LINGER, http__linger, h);
    double seconds = h->state == HTTP__BROKEN ? 0 : h->stall_timeout;
    return conc_timeout(seconds, http__close_stream, h->stream);
}

/* ---- implementation: the public calls ------------------------------------------------------- */

static inline int http_next(http_connection *h)
{
    CONC_TRY(http__enter(h, HTTP__READS | HTTP__WRITES, HTTP__WAITING, HTTP__OVER, "http_next"));
    return (int)http__leave(h, HTTP__READS | HTTP__WRITES, http__next(h));
}

static inline const char *http_header(const http_connection *h, const char *name)
{
    size_t count = h && name ? h->header_count : 0;
    for (size_t i = 0; i < count; i++)
        if (strcasecmp(h->headers[i].name, name) == 0)
            return h->headers[i].value;
    return NULL;
}

static inline ssize_t http_read(http_connection *h, void *buf, size_t n)
{
    CONC_TRY(http__enter(h, HTTP__READS, HTTP__ASKED, HTTP__ANSWERED, "http_read"));
    ssize_t rc = -EINVAL;
    if (buf && n)
        rc = http__read(h, buf, n);
    else
        conc_fail(-EINVAL, "http_read: no buffer");
    return http__leave(h, HTTP__READS, rc);
}

static inline ssize_t http_body(http_connection *h, char **data)
{
    if (data)
        *data = NULL;
    CONC_TRY(http__enter(h, HTTP__READS, HTTP__ASKED, HTTP__ANSWERED, "http_body"));
    ssize_t rc = -EINVAL;
    if (data)
        rc = http__body(h, data);
    else
        conc_fail(-EINVAL, "http_body: no pointer for the data");
    return http__leave(h, HTTP__READS, rc);
}

static inline int http_set_header(http_connection *h, const char *name, const char *value)
{
    CONC_TRY(http__enter(h, HTTP__WRITES, HTTP__ASKED, HTTP__ASKED, "http_set_header"));
    http__leave(h, HTTP__WRITES, 0); /* it does not wait */
    bool valid = name && *name && name[strspn(name, http__token)] == 0 && value &&
                 !http__has_controls(value, strlen(value));
    if (!valid)
        return conc_fail(-EINVAL, "http_set_header: a bad name or value");
    bool ours = strcasecmp(name, "Content-Length") == 0 || strcasecmp(name, "Connection") == 0 ||
                strcasecmp(name, "Transfer-Encoding") == 0;
    if (ours)
        return conc_fail(-EINVAL, "http_set_header: %s is sent by http_begin", name);
    if (strcasecmp(name, "Content-Type") == 0)
        h->typed = true;
    return http__print(&h->out, "%s: %s\r\n", name, value);
}

/* Begins http_begin, or a call that includes it. */
static inline int http__enter_response(http_connection *h, int status, const char *call)
{
    CONC_TRY(http__enter(h, HTTP__WRITES, HTTP__ASKED, HTTP__ASKED, call));
    if (status >= 200 && status <= 599)
        return 0;
    http__leave(h, HTTP__WRITES, 0);
    return conc_fail(-EINVAL, "%s: the status is %d", call, status);
}

static inline int http_respond(http_connection *h, int status, const void *body, size_t size)
{
    CONC_TRY(http__enter_response(h, status, "http_respond"));
    int rc = -EINVAL;
    if (body || !size)
        rc = http__respond(h, status, body, size);
    else
        conc_fail(-EINVAL, "http_respond: no body");
    return (int)http__leave(h, HTTP__WRITES, rc);
}

static inline int http_printf(http_connection *h, int status, const char *fmt, ...)
{
    va_list args;
    http__text body = {NULL, 0, 0};
    CONC_TRY(http__enter_response(h, status, "http_printf"));
    va_start(args, fmt);
    int rc = http__vprint(&body, fmt, args);
    va_end(args);
    if (rc == 0 && !h->typed)
        rc = http__print(&h->out, "Content-Type: text/plain; charset=utf-8\r\n");
    h->typed = true;
    if (rc == 0)
        rc = http__respond(h, status, body.data, body.n);
    http__free(&body);
    return (int)http__leave(h, HTTP__WRITES, rc);
}

static inline int http_begin(http_connection *h, int status, int64_t length)
{
    CONC_TRY(http__enter_response(h, status, "http_begin"));
    return (int)http__leave(h, HTTP__WRITES, http__begin(h, status, length));
}

static inline int http_write(http_connection *h, const void *data, size_t n)
{
    CONC_TRY(http__enter(h, HTTP__WRITES, HTTP__ANSWERING, HTTP__ANSWERING, "http_write"));
    int rc = -EINVAL;
    if (data || !n)
        rc = http__write(h, data, n);
    else
        conc_fail(-EINVAL, "http_write: no data");
    return (int)http__leave(h, HTTP__WRITES, rc);
}

static inline int http_flush(http_connection *h)
{
    CONC_TRY(http__enter(h, HTTP__WRITES, HTTP__ASKED, HTTP__ANSWERED, "http_flush"));
    return (int)http__leave(h, HTTP__WRITES, http__flush(h));
}

static inline int http_end(http_connection *h)
{
    CONC_TRY(http__enter(h, HTTP__WRITES, HTTP__ANSWERING, HTTP__ANSWERING, "http_end"));
    return (int)http__leave(h, HTTP__WRITES, http__end(h));
}

static inline int http__upgrade(http_connection *h, const char *protocol)
{
    http__text head = {NULL, 0, 0};
    int rc = http__print(&head,
                         "HTTP/1.1 101 Switching Protocols\r\n%sUpgrade: %s\r\n"
                         "Connection: Upgrade\r\n\r\n",
                         h->out.n ? h->out.data : "", protocol);
    if (rc == 0)
        rc = http__send(h, head.data, head.n);
    http__free(&head);
    if (rc)
        return rc;
    h->handed_over = h->ended = true;
    h->status = 101;
    h->state = HTTP__OVER;
    return http__flush(h);
}

static inline int http_upgrade(http_connection *h, const char *protocol)
{
    CONC_TRY(http__enter(h, HTTP__READS | HTTP__WRITES, HTTP__ASKED, HTTP__ASKED, "http_upgrade"));
    int rc = 0;
    bool valid = protocol && *protocol && protocol[strspn(protocol, http__token)] == 0;
    if (!valid)
        rc = conc_fail(-EINVAL, "http_upgrade: a bad protocol");
    else if (!h->upgrade || h->part != HTTP__COMPLETE)
        rc = conc_fail(-EINVAL, "http_upgrade: not asked for, or the body is not read");
    else
        rc = http__upgrade(h, protocol);
    return (int)http__leave(h, HTTP__READS | HTTP__WRITES, rc);
}

static inline int http_serve(http_connection *h, int (*answer)(http_connection *h, void *arg),
                             void *arg)
{
    http__job job = {h, answer, arg};
    int rc = 0;
    if (!answer)
        return conc_fail(-EINVAL, "http_serve: no answer");
    while (rc >= 0 && (rc = http_next(h)) > 0) {
        if (h->answer_timeout > 0)
            rc = conc_shield(h->answer_timeout, http__answer, &job);
        else
            rc = http__answer(&job);
    }
    return rc < 0 ? http__apologise(h, rc) : 0;
}

static inline int http_close(http_connection *h)
{
    int rc = 0;
    if (!h)
        return 0;
    if (h->inside)
        return conc_fail(-EBUSY, "http_close: another task is in a call");
    http__set_defaults(h);
    if (h->stream && !h->handed_over)
        rc = http__shut(h);
    http__forget_request(h);
    http__free(&h->out);
    free(h->headers);
    h->headers = NULL;
    h->stream = NULL;
    return rc;
}

#endif
