/* fetch.h - HTTP requests from tasks of conc.h, by libcurl
 *
 * fetch() is a plain call that waits for the whole response while other tasks run. The task's time
 * limits and cancels reach it. Any number of tasks may share a client; it keeps connections open
 * and reuses them.
 *
 *     #define CONC_STATIC
 *     #include "conc_sync.h"
 *     #include "fetch.h"
 *
 *     static int app(void *url)
 *     {
 *         CONC_AUTO(fetch_client, client) = {0};
 *         CONC_AUTO(fetch_response, r) = {0};
 *         CONC_TRY(fetch(&client, url, NULL, &r));
 *         return printf("%d, %zu bytes: %s\n", r.status, r.size, r.body) < 0;
 *     }
 *     int main(int argc, char **argv) { return argc > 1 ? conc_main(app, argv[1]) : 2; }
 *
 * Needs libcurl 7.87 or later (Debian: libcurl4-openssl-dev) and Linux: cc app.c -lcurl
 *
 * Features
 *   Requests   any method, headers, a body; HTTP/1.1, and HTTP/2 over TLS if the server supports
 *              it; redirects; responses are decompressed. http: and https: only. curl reads
 *              http_proxy etc. from the environment. If a reused connection turns out to be dead,
 *              curl resends the request on a new one.
 *   Limits     on the time (300 s) and the response size (64 MiB): see fetch_options. The client
 *              limits its connections (32 per host, 256 in all); further requests wait for one,
 *              which counts towards their time.
 *   TLS        certificates and host names are verified against the system's authorities, or
 *              against those of a file.
 *   Streaming  options.piece gets the response piece by piece, and may wait, which makes the server
 *              wait.
 *   The rest   client.configure sets any curl option: proxies, cookies, client certificates.
 *
 * Waiting and cancels
 *   fetch() is the only call that waits. If it returns -ECANCELED or another error, it has closed
 *   the connection of this request (in HTTP/2: its stream), and the server may or may not have
 *   acted on it. Other requests of the client continue, and the client stays usable. A response
 *   that is complete when the cancel arrives is returned.
 *   There is no background thread or task: one of the tasks in fetch() waits for all sockets of the
 *   client, and another takes over when it leaves. curl runs on the stack of that task, so each
 *   task that fetches needs at least 64 KiB; conc's default is 256 KiB.
 *   curl looks up host names in threads. After a cancel such a thread runs until its lookup ends. A
 *   client's first https: request reads the authorities' certificates, which blocks the loop: 3 ms
 *   for a file with one, 40 ms for Debian's 140.
 *   On the virtual clock a time limit expires as soon as every task waits, even for the network:
 *   run such tests on the real clock, or with .timeout = CONC_FOREVER.
 *
 * Errors are a negative errno, with texts in response.error and conc_last_error, which name the URL
 *   -EINVAL          a bad argument or URL, or an unreadable certificate file
 *   -EPROTONOSUPPORT neither http: nor https:, or the response is not HTTP
 *   -EADDRNOTAVAIL   no such host
 *   -ECONNREFUSED    and others of connect(2)
 *   -ECONNRESET      the connection broke, or curl gave up on it, before the response was complete
 *   -EPROTO          the response violates HTTP, TLS or its compression
 *   -EACCES          the server's certificate was refused
 *   -ELOOP           too many redirects
 *   -EMSGSIZE        the response is larger than options.limit
 *   -ETIMEDOUT       options.timeout expired, or a time limit that you set for curl, or the
 *                    system's own for connecting
 *   -EPIPE           the client was closed during the call
 *   -EPERM           not in a task, or another thread's loop has requests of the client in progress
 *   -ENOMEM, -EMFILE, and -EIO for anything else: an error of a curl option that you set
 * A status such as 404 or 503 is not an error: check response.status.
 *
 * Speed: about that of curl's multi interface in its own loop. A small request on an open
 * connection takes about 20 us of processor time with either; fetch adds about 4 us.
 *
 * Not covered: streamed request bodies, WebSockets, other protocols, retries (fetch_header(&r,
 * "retry-after") returns the server's wish). A forked child opens its own client. */
#ifndef FETCH_H
#define FETCH_H

#ifndef CONC_SYNC_H
#error "fetch.h: include conc_sync.h first (single_include/conc.h has it)"
#endif
#ifndef __linux__
#error "fetch.h: it waits with epoll, which this system does not have"
#endif

#include <curl/curl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#if LIBCURL_VERSION_NUM < 0x075700
#error "fetch.h: libcurl 7.87 or later is needed"
#endif

/* Connections, and settings common to all requests. Set the options before the first fetch; they
 * are borrowed until the close. */
typedef struct fetch_client {
    int per_host;        /* connections to one host; 0: 32 */
    int connections;     /* in all, idle ones included; 0: 256 */
    const char *ca_file; /* certificates of authorities to trust, PEM; NULL: the system's */
    bool insecure;       /* does not verify certificates: anybody may pose as the server */
    /* called for each request after all other options are set; it calls curl_easy_setopt(curl,
     * ...). It must not wait, nor change the callbacks, CURLOPT_PRIVATE or CURLOPT_ERRORBUFFER */
    void (*configure)(CURL *curl, void *arg);
    void *arg;
    /* private */
    struct fetch__core *core; /* NULL: closed, or never used */
} fetch_client;

/* The options of one request. Everything is borrowed until fetch returns. */
typedef struct fetch_options {
    const char *method;         /* NULL: GET, or POST if there is a body */
    const char *const *headers; /* "Name: value" each, terminated by NULL; NULL: none */
    const void *body;           /* NULL: none. Set its Content-Type in the headers */
    size_t body_size;           /* bytes; 0: body is a string */
    double timeout;             /* seconds for the whole request; 0: 300; CONC_FOREVER: none */
    size_t limit;               /* bytes of the response's body, decompressed; 0: 64 MiB */
    /* Maximum number of redirects to follow; 0: 10; negative: none. Redirects of GET, HEAD and POST
     * are followed; a POST becomes a GET, as in a browser, except for 307 and 308. With other
     * methods the redirect is the response. curl does not send Authorization and Cookie to another
     * host */
    int redirects;
    /* Gets the body in pieces of at least 1 byte, as the server sent it, not decompressed;
     * response->body stays empty, and there is no default limit. It runs in the task that fetches,
     * and may wait: 128 KiB are buffered meanwhile, then the server must wait. When it is called,
     * response->status is set and fetch_header works. A negative result ends fetch with that
     * error */
    int (*piece)(const void *bytes, size_t size, void *arg);
    void *arg;
} fetch_options;

/* A response. All zero before the first use; it may be reused, even with another client. */
typedef struct fetch_response {
    int status;      /* 200; 0: there was none */
    char *body;      /* followed by a NUL; NULL after an error */
    size_t size;     /* bytes of the body */
    char error[340]; /* what went wrong, with the URL; "" if nothing did */
    CURL *curl;      /* for curl_easy_getinfo and curl_easy_header; NULL after an error */
} fetch_response;

/* Requests url and waits for the whole response. Frees what r held, and opens the client if
 * necessary. Errors: see above. */
static inline int fetch(fetch_client *c, const char *url, const fetch_options *o,
                        fetch_response *r);

/* Returns the value of the first header of the response with this name, in any case, or NULL.
 * curl_easy_header(r->curl, ...) finds the others, too. Borrowed until the next call with r. Not a
 * checkpoint. */
static inline const char *fetch_header(const fetch_response *r, const char *name);

/* Frees what r holds; its status and error stay. Harmless if repeated, or without a response. Not a
 * checkpoint. May be called anywhere. */
static inline void fetch_response_free(fetch_response *r);

/* Closes all connections and frees everything. Requests in progress in other tasks end with -EPIPE.
 * Closing it twice, or unused, does nothing; the next fetch reopens the client. Not a checkpoint.
 * May be called outside a run. -EPERM: another thread's loop has requests in progress; nothing is
 * closed. */
static inline int fetch_close(fetch_client *c);

CONC_AUTO_TYPE(fetch_client, fetch_close);
CONC_AUTO_TYPE(fetch_response, fetch_response_free);

/* ---- private: the core of a client ----
 *
 * curl reports which sockets and which time it waits for. They are in an epoll of the client, the
 * time as a timerfd. The task that has the turn waits until this epoll is readable, and lets curl
 * handle what is ready. The turn is an item of a queue, and the tasks that wait for it are its
 * getters. So a task that leaves, for whatever reason, hands the turn to the next in order. */

enum {
    FETCH__BATCH = 8,            /* sockets that curl handles before other tasks run */
    FETCH__PIECE = 64 * 1024,    /* bytes buffered for options.piece before curl pauses */
    FETCH__LIMIT = 64 << 20,     /* bytes: options.limit */
    FETCH__TIMEOUT = 300,        /* seconds: options.timeout */
    FETCH__FIRST_ROOM = 4 * 1024 /* bytes; doubled as needed */
};

typedef struct fetch__core {
    CURLM *multi;
    int epoll, timer;
    long timeout;        /* ms, requested by curl last; -1: none */
    bool timer_is_stale; /* not yet set to `timeout`: fetch__set_timer does that before a wait */
    bool waiting;        /* the task that has the turn is waiting */
    conc_queue turns;    /* one item: the turn, while no task has it */
    conc_loop *loop;     /* the loop of the transfers */
    struct fetch__transfer *first;
    int users; /* the client and the transfers; the last one frees the core */
    bool closed;
} fetch__core;

/* A call of fetch, on the stack of its task. */
typedef struct fetch__transfer {
    struct fetch__transfer *next, **link; /* link: the pointer to this one */
    fetch__core *core;
    const fetch_options *options;
    fetch_response *response;
    CURL *curl;
    struct curl_slist *headers;
    conc_event changed; /* set when it is done, or there is a piece */
    bool done, paused, piece_failed;
    int rc;         /* the result, valid when done or after an error of the body */
    CURLcode setup; /* the first error of curl_easy_setopt */
    char *data;
    size_t size, room; /* of data */
    size_t received, limit;
    char reason[CURL_ERROR_SIZE]; /* why rc is not 0; "": use conc_strerror */
    char curl_error[CURL_ERROR_SIZE];
} fetch__transfer;

/* Stores the reason for the caller of fetch. Returns rc. */
__attribute__((__format__(__printf__, 3, 4))) static inline int
fetch__fail(fetch__transfer *t, int rc, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(t->reason, sizeof t->reason, fmt, args);
    va_end(args);
    return rc;
}

/* Ends a transfer. Only the first call for it counts. */
static inline void fetch__finish(fetch__transfer *t, int rc, const char *words)
{
    if (t->done)
        return;
    t->done = true;
    if (t->rc == 0 && rc < 0)
        t->rc = fetch__fail(t, rc, "%s", words);
    conc_event_set(&t->changed);
}

static inline void fetch__finish_all(fetch__core *core, int rc, const char *words)
{
    for (fetch__transfer *t = core->first; t; t = t->next)
        fetch__finish(t, rc, words);
}

static inline void fetch__release(fetch__core *core)
{
    if (--core->users > 0)
        return;
    conc_queue_destroy(&core->turns);
    free(core);
}

/* curl now waits for these events of a socket. */
static inline int fetch__on_socket(CURL *curl, curl_socket_t fd, int what, void *core_arg,
                                   void *unused)
{
    const fetch__core *core = core_arg;
    struct epoll_event event = {.data.fd = fd};
    (void)curl, (void)unused;
    if (what == CURL_POLL_REMOVE) {
        epoll_ctl(core->epoll, EPOLL_CTL_DEL, fd, NULL); /* it may have been closed already */
        return 0;
    }
    if (what & CURL_POLL_IN)
        event.events |= EPOLLIN;
    if (what & CURL_POLL_OUT)
        event.events |= EPOLLOUT;
    if (epoll_ctl(core->epoll, EPOLL_CTL_MOD, fd, &event) == 0)
        return 0;
    return epoll_ctl(core->epoll, EPOLL_CTL_ADD, fd, &event);
}

/* curl wants to be called after so many milliseconds; -1: never. */
static inline int fetch__on_timer(CURLM *multi, long ms, void *core_arg)
{
    fetch__core *core = core_arg;
    (void)multi;
    core->timeout = ms;
    core->timer_is_stale = true;
    return 0;
}

static inline void fetch__set_timer(fetch__core *core)
{
    struct itimerspec when = {.it_value = {core->timeout / 1000, core->timeout % 1000 * 1000000}};
    if (!core->timer_is_stale)
        return;
    core->timer_is_stale = false;
    if (core->timeout < 0)
        when.it_value = (struct timespec){0};
    else if (core->timeout == 0)
        when.it_value.tv_nsec = 1; /* 0 would disarm it */
    timerfd_settime(core->timer, 0, &when, NULL);
}

/* Opens a socket as curl does, but child programs do not inherit it. */
static inline curl_socket_t fetch__on_open(void *unused, curlsocktype type, struct curl_sockaddr *a)
{
    (void)unused, (void)type;
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

static inline int fetch__setup_multi(fetch__core *core, const fetch_client *c)
{
    const long per_host = c->per_host ? c->per_host : 32;
    const long connections = c->connections ? c->connections : 256;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = core->timer};
    if (!core->multi)
        return -ENOMEM;
    if (epoll_ctl(core->epoll, EPOLL_CTL_ADD, core->timer, &event) < 0)
        return -EMFILE; /* a descriptor could not be opened */
    curl_multi_setopt(core->multi, CURLMOPT_SOCKETFUNCTION, fetch__on_socket);
    curl_multi_setopt(core->multi, CURLMOPT_SOCKETDATA, core);
    curl_multi_setopt(core->multi, CURLMOPT_TIMERFUNCTION, fetch__on_timer);
    curl_multi_setopt(core->multi, CURLMOPT_TIMERDATA, core);
    curl_multi_setopt(core->multi, CURLMOPT_MAX_HOST_CONNECTIONS, per_host);
    curl_multi_setopt(core->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, connections);
    curl_multi_setopt(core->multi, CURLMOPT_MAXCONNECTS, connections);
    return conc_queue_try_put(&core->turns, "");
}

/* Closes the core. The client and its calls release it one by one. */
static inline void fetch__close_core(fetch__core *core)
{
    core->closed = true;
    for (fetch__transfer *t = core->first; t; t = t->next)
        curl_multi_remove_handle(core->multi, t->curl);
    fetch__finish_all(core, -EPIPE, "the client was closed");
    curl_multi_cleanup(core->multi);
    conc_close(core->timer);
    conc_close(core->epoll); /* wakes the task that has the turn */
    fetch__release(core);
}

static inline bool fetch__is_elsewhere(const fetch__core *core)
{
    return core->first && core->loop != conc_loop_self();
}

static inline int fetch__open(fetch__transfer *t, fetch_client *c)
{
    if (c->core && fetch__is_elsewhere(c->core))
        return fetch__fail(t, -EPERM, "another loop has requests of this client in progress");
    if (c->core) {
        c->core->loop = conc_loop_self();
        return 0;
    }
    if (c->per_host < 0 || c->connections < 0)
        return fetch__fail(t, -EINVAL, "the client has a negative limit of connections");
    fetch__core *core = calloc(1, sizeof *core);
    if (!core || curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return free(core), -ENOMEM;
    *core = (fetch__core){.multi = curl_multi_init(),
                          .epoll = epoll_create1(EPOLL_CLOEXEC),
                          .timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC),
                          .turns = CONC_QUEUE(char, 1),
                          .loop = conc_loop_self(),
                          .users = 1};
    int rc = fetch__setup_multi(core, c);
    if (rc < 0)
        fetch__close_core(core);
    else
        c->core = core;
    return rc;
}

static inline int fetch_close(fetch_client *c)
{
    if (!c || !c->core)
        return 0;
    if (fetch__is_elsewhere(c->core))
        return conc_fail(-EPERM, "fetch_close: another loop has requests in progress");
    fetch__close_core(c->core);
    c->core = NULL;
    return 0;
}

/* ---- private: the body of an answer ---- */

static inline int fetch__make_room(fetch__transfer *t, size_t n)
{
    size_t room = t->room ? t->room : FETCH__FIRST_ROOM;
    while (room - t->size <= n) /* a NUL must fit, too */
        room *= 2;
    char *data = room == t->room ? t->data : realloc(t->data, room);
    if (!data)
        return -ENOMEM;
    t->data = data;
    t->room = room;
    return 0;
}

/* curl has received n bytes of the body. Returns n, or another number, which ends the transfer. */
static inline size_t fetch__on_body(char *bytes, size_t one, size_t n, void *transfer)
{
    fetch__transfer *t = transfer;
    (void)one;
    if (t->options->piece && t->size >= FETCH__PIECE) {
        t->paused = true;
        return CURL_WRITEFUNC_PAUSE; /* curl passes these bytes again later */
    }
    if (n > t->limit - t->received) {
        t->rc = fetch__fail(t, -EMSGSIZE, "the answer is larger than %zu bytes", t->limit);
        return n + 1;
    }
    t->rc = fetch__make_room(t, n);
    if (t->rc < 0)
        return n + 1;
    memcpy(t->data + t->size, bytes, n);
    t->size += n;
    t->received += n;
    if (t->options->piece)
        conc_event_set(&t->changed);
    return n;
}

/* ---- private: a request ---- */

/* Converts curl's errors to conc's. */
static inline int fetch__errno(CURL *curl, CURLcode code)
{
    long system = 0;
    switch (code) {
    case CURLE_OK: return 0;
    case CURLE_URL_MALFORMAT:
    case CURLE_SSL_CACERT_BADFILE: return -EINVAL;
    case CURLE_UNSUPPORTED_PROTOCOL: return -EPROTONOSUPPORT;
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_RESOLVE_HOST: return -EADDRNOTAVAIL;
    case CURLE_COULDNT_CONNECT:
        curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &system);
        return system ? -(int)system : -ECONNREFUSED;
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR: return -ECONNRESET;
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_BAD_CONTENT_ENCODING:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM: return -EPROTO;
    case CURLE_PEER_FAILED_VERIFICATION: return -EACCES;
    case CURLE_TOO_MANY_REDIRECTS: return -ELOOP;
    case CURLE_OPERATION_TIMEDOUT: return -ETIMEDOUT;
    case CURLE_OUT_OF_MEMORY: return -ENOMEM;
    default: return -EIO;
    }
}

/* Lets curl handle a socket or an expired timeout, and finishes the transfers that have ended. */
static inline void fetch__act(fetch__core *core, curl_socket_t fd, int events)
{
    int running, left;
    CURLMsg *m;
    CURLMcode code = curl_multi_socket_action(core->multi, fd, events, &running);
    while ((m = curl_multi_info_read(core->multi, &left))) {
        fetch__transfer *t = NULL;
        CURLcode result = m->data.result;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &t);
        fetch__finish(t, fetch__errno(t->curl, result),
                      t->curl_error[0] ? t->curl_error : curl_easy_strerror(result));
    }
    if (code != CURLM_OK)
        fetch__finish_all(core, -EIO, curl_multi_strerror(code));
    if (core->waiting)
        fetch__set_timer(core);
}

/* Lets curl handle a few of the ready sockets. */
static inline void fetch__act_on_ready(fetch__core *core)
{
    struct epoll_event ready[FETCH__BATCH];
    uint64_t expirations;
    int n = epoll_wait(core->epoll, ready, FETCH__BATCH, 0);
    for (int i = 0; i < n; i++) {
        int events = 0;
        if (ready[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
            events |= CURL_CSELECT_IN;
        if (ready[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
            events |= CURL_CSELECT_OUT;
        if (ready[i].data.fd != core->timer)
            fetch__act(core, ready[i].data.fd, events);
        else if (read(core->timer, &expirations, sizeof expirations) > 0)
            fetch__act(core, CURL_SOCKET_TIMEOUT, 0); /* else it was set again meanwhile */
    }
}

/* Waits until curl has something to do, lets it do a little, and yields to other tasks. */
static inline int fetch__drive(fetch__core *core)
{
    int rc = 0;
    if (core->timer_is_stale && core->timeout == 0) {
        core->timer_is_stale = false; /* due now: no need for the timer */
        fetch__act(core, CURL_SOCKET_TIMEOUT, 0);
    } else {
        fetch__set_timer(core);
        core->waiting = true;
        rc = conc_wait_fd(core->epoll, CONC_READABLE);
        core->waiting = false;
        if (rc >= 0)
            fetch__act_on_ready(core);
    }
    return rc < 0 ? rc : conc_yield();
}

/* Passes the buffered bytes to options.piece; curl continues meanwhile. */
static inline int fetch__hand_over(fetch__transfer *t)
{
    char *bytes = t->data;
    size_t size = t->size;
    long status = 0;
    t->data = NULL;
    t->size = t->room = 0;
    if (t->paused && !t->done) {
        t->paused = false;
        curl_easy_pause(t->curl, CURLPAUSE_CONT); /* an error ends the transfer */
        fetch__act(t->core, CURL_SOCKET_TIMEOUT, 0);
    }
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    t->response->status = (int)status;
    t->response->curl = t->curl;
    int rc = t->options->piece(bytes, size, t->options->arg);
    t->response->curl = NULL;
    free(bytes);
    t->piece_failed = rc < 0 && rc != -ECANCELED;
    return rc < 0 ? rc : 0;
}

/* Waits until the transfer has changed, and drives curl meanwhile if no other task does. */
static inline int fetch__wait(fetch__transfer *t)
{
    conc_queue *turns = &t->core->turns;
    char turn;
    conc_case cases[] = {CONC_CASE_EVENT(&t->changed), CONC_CASE_GET(turns, &turn)};
    int rc = conc_select(cases, CONC_LEN(cases));
    if (rc == 1) {
        while (rc >= 0 && !conc_event_is_set(&t->changed))
            rc = fetch__drive(t->core);
        int returned = conc_queue_try_put(turns, &turn); /* there is room: the queue is empty */
        rc = rc < 0 ? rc : returned;
    }
    conc_event_clear(&t->changed);
    return t->done ? 0 : rc; /* the response is complete, even if a cancel arrived with it */
}

/* Runs a transfer from start to end, and passes its pieces on. */
static inline int fetch__perform(fetch__transfer *t)
{
    int rc = 0;
    fetch__act(t->core, CURL_SOCKET_TIMEOUT, 0);
    while (rc >= 0 && (!t->done || (t->rc == 0 && t->options->piece && t->size))) {
        if (t->options->piece && t->size)
            rc = fetch__hand_over(t);
        else
            rc = fetch__wait(t);
    }
    return t->done && rc >= 0 ? t->rc : rc;
}

/* ---- private: the options of a request ---- */

/* Sets an option; setup keeps the first error. */
#define FETCH__SET(t, option, value)                                     \
    do {                                                                 \
        if ((t)->setup == CURLE_OK)                                      \
            (t)->setup = curl_easy_setopt((t)->curl, (option), (value)); \
    } while (0)

/* Adds a header to the request. */
static inline int fetch__add_header(fetch__transfer *t, const char *line)
{
    if (!strchr(line, ':') || strpbrk(line, "\r\n"))
        return fetch__fail(t, -EINVAL, "not a header: \"%.40s\"", line);
    struct curl_slist *longer = curl_slist_append(t->headers, line);
    if (!longer)
        return -ENOMEM;
    t->headers = longer;
    return 0;
}

static inline int fetch__set_headers(fetch__transfer *t, bool sends)
{
    const char *const *line = t->options->headers;
    bool typed = false;
    for (; line && *line; line++) {
        typed = typed || strncasecmp(*line, "content-type:", 13) == 0;
        CONC_TRY(fetch__add_header(t, *line));
    }
    if (sends && !typed)
        CONC_TRY(fetch__add_header(t, "Content-Type:")); /* none, instead of an HTML form's */
    if (sends)
        CONC_TRY(fetch__add_header(t, "Expect:")); /* else curl waits a second for 100 Continue */
    FETCH__SET(t, CURLOPT_HTTPHEADER, t->headers);
    return 0;
}

/* Sets the method, the body and the headers. */
static inline int fetch__set_request(fetch__transfer *t)
{
    const fetch_options *o = t->options;
    const char *body = o->body ? o->body : "";
    const char *method = o->method;
    if (!method)
        method = o->body ? "POST" : "GET";
    bool head = strcmp(method, "HEAD") == 0, post = strcmp(method, "POST") == 0;
    bool sends = o->body || post || strcmp(method, "PUT") == 0 || strcmp(method, "PATCH") == 0;
    bool custom = !head && strcmp(method, sends ? "POST" : "GET") != 0;
    long redirects = o->redirects ? o->redirects : 10;
    if (!*method || strpbrk(method, " \t\r\n"))
        return fetch__fail(t, -EINVAL, "not a method: \"%.40s\"", method);
    if ((head && sends) || (o->body_size && !o->body))
        return fetch__fail(t, -EINVAL, "HEAD with a body, or body_size without a body");
    if (sends) {
        size_t size = o->body_size ? o->body_size : strlen(body);
        FETCH__SET(t, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)size);
        FETCH__SET(t, CURLOPT_POSTFIELDS, body);
    }
    if (head)
        FETCH__SET(t, CURLOPT_NOBODY, 1L);
    if (custom)
        FETCH__SET(t, CURLOPT_CUSTOMREQUEST, method);
    FETCH__SET(t, CURLOPT_FOLLOWLOCATION, (long)(redirects > 0 && !custom));
    FETCH__SET(t, CURLOPT_MAXREDIRS, redirects);
    return fetch__set_headers(t, sends);
}

static inline void fetch__set_tls(fetch__transfer *t, const fetch_client *c)
{
    if (c->insecure) {
        FETCH__SET(t, CURLOPT_SSL_VERIFYPEER, 0L);
        FETCH__SET(t, CURLOPT_SSL_VERIFYHOST, 0L);
    }
    if (c->ca_file)
        FETCH__SET(t, CURLOPT_CAINFO, c->ca_file);
    /* curl caches the certificates of a file, but not if it searches a folder, too */
    if (c->ca_file || curl_version_info(CURLVERSION_NOW)->cainfo)
        FETCH__SET(t, CURLOPT_CAPATH, NULL);
}

static inline int fetch__set_options(fetch__transfer *t, const fetch_client *c, const char *url)
{
    FETCH__SET(t, CURLOPT_URL, url);
    FETCH__SET(t, CURLOPT_PRIVATE, t);
    FETCH__SET(t, CURLOPT_ERRORBUFFER, t->curl_error);
    FETCH__SET(t, CURLOPT_WRITEFUNCTION, fetch__on_body);
    FETCH__SET(t, CURLOPT_WRITEDATA, t);
    FETCH__SET(t, CURLOPT_OPENSOCKETFUNCTION, fetch__on_open);
    FETCH__SET(t, CURLOPT_NOSIGNAL, 1L);
    FETCH__SET(t, CURLOPT_CONNECTTIMEOUT_MS, 0x7fffffffL); /* options.timeout is the limit */
    if (!t->options->piece)
        FETCH__SET(t, CURLOPT_ACCEPT_ENCODING, ""); /* all encodings that curl knows */
    FETCH__SET(t, CURLOPT_PROTOCOLS_STR, "http,https");
    FETCH__SET(t, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    FETCH__SET(t, CURLOPT_QUICK_EXIT, 1L); /* a cancel does not wait for a name lookup */
    fetch__set_tls(t, c);
    CONC_TRY(fetch__set_request(t));
    if (t->setup != CURLE_OK)
        return fetch__fail(t, fetch__errno(t->curl, t->setup), "%s", curl_easy_strerror(t->setup));
    if (c->configure)
        c->configure(t->curl, c->arg);
    return 0;
}

/* ---- private: fetch ---- */

/* Adds the transfer to the client. */
static inline int fetch__begin(fetch__transfer *t, const fetch_client *c, const char *url)
{
    t->curl = curl_easy_init();
    if (!t->curl)
        return -ENOMEM;
    CONC_TRY(fetch__set_options(t, c, url));
    CURLMcode code = curl_multi_add_handle(c->core->multi, t->curl);
    if (code != CURLM_OK)
        return fetch__fail(t, -EIO, "%s", curl_multi_strerror(code));
    t->core = c->core;
    t->core->users++;
    t->next = t->core->first;
    t->link = &t->core->first;
    if (t->next)
        t->next->link = &t->next;
    t->core->first = t;
    return 0;
}

static inline void fetch__leave(fetch__transfer *t)
{
    if (!t->core)
        return;
    if (!t->core->closed) {
        curl_multi_remove_handle(t->core->multi, t->curl);
        fetch__act(t->core, CURL_SOCKET_TIMEOUT, 0); /* the next request may get its connection */
    }
    *t->link = t->next;
    if (t->next)
        t->next->link = t->link;
    fetch__release(t->core);
}

/* Moves the result into the response, or drops it after an error. */
static inline int fetch__deliver(fetch__transfer *t, int rc)
{
    fetch_response *r = t->response;
    long status = 0;
    if (t->curl) {
        curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
        curl_easy_setopt(t->curl, CURLOPT_ERRORBUFFER, NULL); /* both end with this call */
        curl_easy_setopt(t->curl, CURLOPT_HTTPHEADER, NULL);
    }
    curl_slist_free_all(t->headers);
    r->status = (int)status;
    rc = rc < 0 ? rc : fetch__make_room(t, 0);
    if (rc < 0) {
        free(t->data);
        curl_easy_cleanup(t->curl);
        return rc;
    }
    t->data[t->size] = 0;
    r->body = t->data;
    r->size = t->size;
    r->curl = t->curl;
    return 0;
}

static inline int fetch__call(fetch__transfer *t, fetch_client *c, const char *url)
{
    if (conc_cancelled())
        return -ECANCELED; /* nothing was sent */
    int rc = fetch__open(t, c);
    if (rc == 0)
        rc = fetch__begin(t, c, url);
    if (rc == 0)
        rc = fetch__perform(t);
    fetch__leave(t);
    return fetch__deliver(t, rc);
}

static inline int fetch(fetch_client *c, const char *url, const fetch_options *o, fetch_response *r)
{
    static const fetch_options defaults;
    conc_scope limit = {0};
    if (!c || !url || !r)
        return conc_fail(-EINVAL, "fetch: a client, a URL and a response are needed");
    fetch_response_free(r);
    o = o ? o : &defaults;
    fetch__transfer t = {.options = o, .response = r, .limit = o->limit};
    if (!o->limit)
        t.limit = o->piece ? SIZE_MAX : FETCH__LIMIT;
    double seconds = o->timeout != 0 ? o->timeout : FETCH__TIMEOUT;
    r->status = 0;
    r->error[0] = 0;
    int rc = conc_scope_begin(&limit, seconds);
    if (rc == 0)
        rc = conc_scope_end(&limit, fetch__call(&t, c, url));
    if (rc == 0)
        return 0;
    if (limit.cancel_caught)
        fetch__fail(&t, rc, "no complete answer within %g s", seconds);
    snprintf(r->error, sizeof r->error, "%.80s: %s", url,
             t.reason[0] ? t.reason : conc_strerror(rc));
    bool told = t.piece_failed || rc == -ECANCELED; /* options.piece has set its own error text */
    return told ? rc : conc_fail(rc, "%s", r->error);
}

static inline const char *fetch_header(const fetch_response *r, const char *name)
{
    struct curl_header *header;
    if (!r || !r->curl || !name)
        return NULL;
    CURLHcode code = curl_easy_header(r->curl, name, 0, CURLH_HEADER, -1, &header);
    return code == CURLHE_OK ? header->value : NULL;
}

static inline void fetch_response_free(fetch_response *r)
{
    if (!r)
        return;
    free(r->body);
    curl_easy_cleanup(r->curl);
    r->body = NULL;
    r->size = 0;
    r->curl = NULL;
}

#undef FETCH__SET
#endif
