/* feed.h - a resumable feed of lines over TCP
 *
 * The client requests a position with "FROM 17\n", and the server sends the lines from number 17 on
 * (the first is 0), then "END\n".
 *
 *     CONC_AUTO(feed, f) = {.address = "127.0.0.1:7000", .position = 17};
 *     char *line;
 *     ssize_t size;
 *     while ((size = CONC_TRY(feed_next(&f, &line))) > 0)
 *         printf("%lld: %s\n", (long long)f.position - 1, line);
 *
 * If a connection ends before the feed does, the client reconnects, after a pause, and requests the
 * first missing line. The pause grows with each consecutive failure.
 *
 *     static int print(char *line, size_t size, int64_t i, void *arg); // line i; returns its size
 *     feed_server server = {.fd = listener, .count = 100, .print = print};
 *     return feed_serve(&server); // until cancelled
 *
 * A line has at most FEED_LINE bytes. The sockets have small buffers, so a client that pauses soon
 * makes the server wait. Include conc.h before. */
#ifndef FEED_H
#define FEED_H

#ifndef CONC_VERSION
#error "feed.h: include conc.h first"
#endif

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { FEED_LINE = 1 << 20, FEED_ATTEMPTS = 5 /* consecutive failures */, FEED_ROOM = 65536 };

typedef struct feed {
    const char *address;
    double timeout;   /* seconds to connect, and for each line; 0: 5 s */
    int64_t position; /* of the next line */
    /* to read */
    int retries;
    bool is_away; /* the connection is lost */
    /* private */
    int failures; /* consecutive */
    bool is_open;
    conc_stream stream;
} feed;

/* Waits for the next line, without its end, valid until the next call. Returns its size including
 * the end, or 0 if there are no more. A cancel loses nothing. After FEED_ATTEMPTS consecutive
 * failures it returns -ECONNRESET, -ETIMEDOUT, -EMSGSIZE (a line is too long) or an error of
 * conc_dial. */
static inline ssize_t feed_next(feed *f, char **line);

static inline int feed_close(feed *f);
CONC_AUTO_TYPE(feed, feed_close);

typedef struct feed_server {
    int fd; /* of conc_listen */
    int64_t count;
    int (*print)(char *line, size_t size, int64_t i, void *arg); /* prints a line with its "\n";
                                                                    must not wait */
    void *arg;
} feed_server;

/* Serves each client, and logs its requests on stderr. */
static inline int feed_serve(feed_server *s);

/* ---- the client ----------------------------------------------------------------------------- */

static inline int feed_close(feed *f)
{
    f->is_open = false;
    return conc_stream_close(&f->stream);
}

static inline int feed__connect(void *arg)
{
    feed *f = arg;
    const int room = FEED_ROOM;
    int fd = CONC_TRY(conc_dial(f->address));
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    feed_close(f); /* if a cancel interrupted the last attempt */
    f->stream = (conc_stream){.limit = FEED_LINE};
    CONC_TRY(conc_stream_open(&f->stream, fd));
    int rc = (int)conc_stream_printf(&f->stream, "FROM %lld\n", (long long)f->position);
    f->is_open = rc > 0;
    return rc > 0 ? 0 : rc; /* the first read sends the request */
}

typedef struct feed__read {
    feed *from;
    char **line;
} feed__read;

static inline int feed__read_line(void *arg)
{
    feed__read *r = arg;
    return (int)conc_stream_read_until(&r->from->stream, "\n", 1, r->line);
}

/* Tries feed_next once. */
static inline int feed__try(feed *f, char **line)
{
    double timeout = f->timeout > 0 ? f->timeout : 5;
    int rc = f->is_open ? 0 : conc_timeout(timeout, feed__connect, f);
    if (rc == -ETIMEDOUT)
        return conc_fail(rc, "%s: no connection in %g s", f->address, timeout);
    CONC_TRY(rc);
    f->is_away = false;
    int n = conc_timeout(timeout, feed__read_line, &(feed__read){f, line});
    if (n == -ETIMEDOUT)
        return conc_fail(n, "%s: no record for %g s", f->address, timeout);
    if (n == -EMSGSIZE)
        return conc_fail(n, "%s: a line is too long", f->address);
    CONC_TRY(n);
    if (n == 0 || (*line)[n - 1] != '\n') /* an incomplete line does not count */
        return conc_fail(-ECONNRESET, "%s: the connection ended", f->address);
    (*line)[n - 1] = 0;
    return strcmp(*line, "END") == 0 ? 0 : n;
}

static inline ssize_t feed_next(feed *f, char **line)
{
    for (;;) {
        int rc = feed__try(f, line);
        f->position += rc > 0;
        if (rc > 0)
            f->failures = 0;
        if (rc >= 0 || rc == -ECANCELED || rc == -EINVAL)
            return rc;
        feed_close(f);
        f->is_away = true;
        if (++f->failures >= FEED_ATTEMPTS)
            return rc;
        f->retries++;
        CONC_TRY(conc_sleep(0.05 * (1 << f->failures) * conc_random(0.5, 1)));
    }
}

/* ---- the server ----------------------------------------------------------------------------- */

static inline int feed__send(const feed_server *server, conc_stream *s, int64_t from)
{
    char line[4096];
    for (int64_t i = from; i < server->count; i++) {
        int n = server->print(line, sizeof line, i, server->arg);
        CONC_TRY(conc_stream_write(s, line, (size_t)n)); /* waits for a slow client */
    }
    CONC_TRY(conc_stream_printf(s, "END\n"));
    return conc_stream_flush(s);
}

static inline int feed__answer(int fd, void *arg)
{
    const int room = FEED_ROOM;
    char *line;
    long long from;
    CONC_AUTO(conc_stream, s) = {0};
    CONC_TRY(conc_stream_open(&s, fd));
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    CONC_TRY(conc_stream_read_line(&s, &line));
    bool is_valid = line && sscanf(line, "FROM %lld", &from) == 1;
    if (!is_valid || from < 0)
        return conc_fail(-EPROTO, "FROM and a position are missing");
    fprintf(stderr, "feed: lines from %lld on requested\n", from);
    int rc = feed__send(arg, &s, from);
    return rc == -ECANCELED ? rc : 0; /* clients may leave */
}

static inline int feed_serve(feed_server *s)
{
    conc_server server = {.fd = s->fd, .handler = feed__answer, .arg = s};
    return conc_serve(&server);
}

#endif
