/* router.h - routes, middleware and dependencies for the requests of http.h
 *
 *     static int get_user(router_request *r) // GET /users/7
 *     {
 *         session *s = router_value(r, &a_session);
 *         return http_printf(r->http, 200, "%s\n", find_name(s, router_int(r, "id")));
 *     }
 *     static const router_route routes[] = {
 *         ROUTE("GET", "/users/{id:int}", get_user, .needs = {&a_session}),
 *     };
 *     static const router site = {
 *         .routes = routes,
 *         .route_count = CONC_LEN(routes),
 *         .middleware = {ROUTER(identify), ROUTER(log_access)},
 *     };
 *     static int answer(http_connection *http, void *arg) // for http_serve
 *     {
 *         router_request r = {.router = &site, .http = http, .fd = -1, .app = arg};
 *         return router_answer(&r);
 *     }
 *
 * Routes. The first route in the array whose method and pattern match is used. A pattern is a path
 *   whose segments are words or parameters: {name} is any nonempty text, {name:int} a 64-bit
 *   integer, and {name:path}, at the end, the rest with its slashes, or nothing. Segments are
 *   decoded one by one, so an encoded slash is no separator. A GET route also serves HEAD. If only
 *   the method does not match, the response is 405 with Allow, or 204 with Allow for OPTIONS; if
 *   nothing matches, it is 404.
 * Middleware. The functions are called in order. Each calls router_next, which calls the next one
 *   and finally the route's handler. So code before router_next runs on the way in, and code after
 *   it on the way out, in reverse order. A function that does not call router_next must respond
 *   itself. The router's middleware surrounds everything, including 404; the route's surrounds its
 *   handler. router_next returns the handler's error; by then the client has a response.
 * Dependencies. A route's dependencies are opened in order before its handler is called; one may
 *   need another, which router_need opens if necessary. All are closed in reverse order after the
 *   response, even if the handler failed, was cancelled or its client left. Closing is shielded
 *   from cancels, for at most .close_limit seconds each.
 * Errors. If a handler or middleware returns a negative errno before any byte of a response was
 *   sent, the client gets 500, or 503 for -ETIMEDOUT. It does not get the error's text, which is
 *   for a log (conc_last_error). A response that has begun is cut short, and the connection ends.
 *
 * Everything runs in the task that calls router_answer. */
#ifndef ROUTER_H
#define ROUTER_H

#ifndef HTTP_H
#error "router.h: include conc.h and http.h first"
#endif

#include <poll.h>

/* ---- what you call -------------------------------------------------------------------------- */

enum {
    ROUTER_MOST = 6,      /* maximum number of middlewares, and of a route's dependencies */
    ROUTER_SEGMENTS = 16, /* maximum number of segments of a pattern */
    ROUTER_TEXT = 1024    /* maximum size of a decoded path, else 414 */
};

typedef struct router_request router_request;

/* A handler or a middleware. Returns 0 or more, or a negative errno. ROUTER(f) is f with its name;
 * ROUTE makes a router_route: ROUTE("GET", "/users", list_users, .needs = {&a_session}). */
typedef int router_fn(router_request *r);
typedef struct router_step {
    const char *name;
    router_fn *fn;
} router_step;
/* clang-format off */
#define ROUTER(f) {#f, f}
#define ROUTE(method_, pattern_, ...) ROUTER__ROUTE(method_, pattern_, __VA_ARGS__, )
#define ROUTER__ROUTE(method_, pattern_, f, ...) \
    {.method = method_, .pattern = pattern_, .handler = ROUTER(f), __VA_ARGS__}
/* clang-format on */

/* Something that is opened for a request and passed to its handler: a session, a transaction, a
 * permit. */
typedef struct router_dependency {
    const char *name;
    /* Opens it and sets *value, which router_value returns. An error counts as the handler's. */
    int (*open)(router_request *r, void **value);
    /* Closes it. rc is the handler's result: if it is negative, undo the handler's work. An error
     * becomes the request's, unless the handler has failed; the client already has its response. */
    int (*close)(router_request *r, void *value, int rc);
} router_dependency;

typedef struct router_route {
    const char *method, *pattern;
    router_step handler;
    router_step middleware[ROUTER_MOST];         /* the first is the outermost */
    const router_dependency *needs[ROUTER_MOST]; /* opened before the handler is called */
} router_route;

typedef struct router {
    const router_route *routes;
    size_t route_count;
    router_step middleware[ROUTER_MOST]; /* around every request; the first is the outermost */
    double close_limit;                  /* seconds to close a dependency; 0: 5 */
    /* responds with an error: 400, 404, 405, 414, 500 or 503. NULL: as text */
    int (*answer_error)(router_request *r, int status, const char *reason);
    /* called for each event: "in" or "out" of a middleware or handler, "open" or "close" of a
     * dependency, with its name. NULL: not called */
    void (*trace)(router_request *r, const char *event, const char *name);
} router;

typedef struct router__parameter {
    const char *name; /* in the pattern, n bytes */
    size_t n;
    const char *text;
    int64_t number; /* of {name:int} */
} router__parameter;

struct router_request {
    /* To be set before router_answer; the rest is zero */
    const router *router;
    http_connection *http;
    int fd;    /* the connection's socket, for router_watch_client; -1: none */
    void *app; /* yours */

    /* For handlers and middleware */
    const router_route *route; /* NULL: none matches */

    /* private */
    int refusal; /* the status to respond with if there is no route */
    const router_step *steps[2 * ROUTER_MOST];
    size_t step, step_count;
    int result, open_count; /* result: the handler's */
    struct {
        const router_dependency *of;
        void *value;
    } open[ROUTER_MOST];
    router__parameter parameters[ROUTER_SEGMENTS];
    size_t parameter_count, segment_count, text_used;
    const char *segments[ROUTER_SEGMENTS + 1]; /* decoded, in text */
    const char *raw[ROUTER_SEGMENTS + 1];      /* where each begins in the path */
    const char *rest;                          /* of {name:path}, else NULL */
    char text[ROUTER_TEXT];
};

/* Answers one request. Returns 0 if the connection may continue with http_next. After an error it
 * must end: the response was cut short, or the task cancelled. Waits as the handler does. */
static inline int router_answer(router_request *r);

/* Called by a middleware, once: runs what it surrounds. Returns the handler's result. -EINVAL:
 * called twice. */
static inline int router_next(router_request *r);

/* Return the value of a parameter of the route: its decoded text, or NULL; its number, or 0. */
static inline const char *router_text(const router_request *r, const char *name);
static inline int64_t router_int(const router_request *r, const char *name);

/* Opens the dependency if it is not open in this request, and stores its value in *value unless
 * value is NULL. -ENOSPC: there are too many. */
static inline int router_need(router_request *r, const router_dependency *d, void **value);

/* Returns the value of an open dependency, else NULL. */
static inline void *router_value(const router_request *r, const router_dependency *d);

/* Responds with an error, like the router itself: with .answer_error if it is set. */
static inline int router_refuse(router_request *r, int status, const char *reason);

/* A middleware for handlers that wait for long: when the client leaves, it cancels what it
 * surrounds and returns -ECONNRESET. Like Go's net/http, it regards a client that has shut down its
 * sending side as gone. Needs .fd. */
static inline int router_watch_client(router_request *r);

/* Checks that all patterns are well-formed, at the start of a program. -EINVAL: one is not; see
 * conc_last_error. */
static inline int router_check(const router *t);

/* ---- parameters ----------------------------------------------------------------------------- */

static inline const router__parameter *router__find(const router_request *r, const char *name)
{
    for (size_t i = 0; i < r->parameter_count; i++) {
        const router__parameter *p = &r->parameters[i];
        if (strncmp(p->name, name, p->n) == 0 && name[p->n] == 0)
            return p;
    }
    return NULL;
}

static inline const char *router_text(const router_request *r, const char *name)
{
    const router__parameter *p = router__find(r, name);
    return p ? p->text : NULL;
}

static inline int64_t router_int(const router_request *r, const char *name)
{
    const router__parameter *p = router__find(r, name);
    return p ? p->number : 0;
}

/* ---- matching ------------------------------------------------------------------------------- */

enum router__kind { ROUTER__WORD, ROUTER__TEXT, ROUTER__INT, ROUTER__PATH, ROUTER__BAD };

/* Returns the kind of a pattern's segment of n bytes. Sets *name to the length of a parameter's
 * name. */
static inline enum router__kind router__kind_of(const char *segment, size_t n, size_t *name)
{
    if (n == 0 || *segment != '{')
        return memchr(segment, '{', n) ? ROUTER__BAD : ROUTER__WORD;
    *name = strcspn(segment + 1, ":}/");
    const char *type = segment + 1 + *name;
    size_t left = n - 1 - *name;
    if (*name == 0 || segment[n - 1] != '}')
        return ROUTER__BAD;
    if (left == 1)
        return ROUTER__TEXT;
    if (left == sizeof ":int}" - 1 && strncmp(type, ":int}", left) == 0)
        return ROUTER__INT;
    if (left == sizeof ":path}" - 1 && strncmp(type, ":path}", left) == 0)
        return ROUTER__PATH;
    return ROUTER__BAD;
}

static inline int router_check(const router *t)
{
    for (size_t i = 0; i < t->route_count; i++) {
        const router_route *route = &t->routes[i];
        const char *at = route->pattern;
        bool valid = *at == '/' && route->handler.fn && route->method;
        for (int i = 0; valid && *at; i++) {
            size_t n = strcspn(++at, "/"), name;
            enum router__kind kind = router__kind_of(at, n, &name);
            at += n;
            valid = kind != ROUTER__BAD && (kind != ROUTER__PATH || !*at) && i < ROUTER_SEGMENTS;
        }
        if (!valid)
            return conc_fail(-EINVAL, "the route %s %s is malformed", route->method,
                             route->pattern);
    }
    return 0;
}

/* Decodes n bytes of the path and appends them to r->text. Returns the text, or NULL with the
 * status in .refusal. */
static inline const char *router__decode(router_request *r, const char *raw, size_t n)
{
    char *out = r->text + r->text_used;
    ssize_t length = http_decode(raw, n, out, sizeof r->text - r->text_used);
    if (length < 0) {
        r->refusal = length == -ENOSPC ? 414 : 400;
        return NULL;
    }
    r->text_used += (size_t)length + 1;
    return out;
}

/* Splits the path into decoded segments, at most ROUTER_SEGMENTS + 1: one more than a route without
 * {name:path} can have. */
static inline bool router__split(router_request *r)
{
    for (const char *at = r->http->path; *at == '/' && r->segment_count <= ROUTER_SEGMENTS;) {
        size_t n = strcspn(++at, "/"), i = r->segment_count++;
        r->raw[i] = at;
        r->segments[i] = router__decode(r, at, n);
        if (!r->segments[i])
            return false;
        at += n;
    }
    return true;
}

/* Parses a 64-bit number, and nothing else. */
static inline bool router__read_int(const char *text, int64_t *number)
{
    const char *digits = text + (*text == '-');
    bool is_number = *digits && strspn(digits, "0123456789") == strlen(digits);
    int before = errno;
    errno = 0;
    *number = is_number ? strtoll(text, NULL, 10) : 0;
    bool fits = errno == 0;
    errno = before;
    return is_number && fits;
}

/* Does segment i of the path match the n bytes of the pattern? Adds a parameter. */
static inline bool router__fits(router_request *r, size_t i, const char *segment, size_t n)
{
    size_t name = 0;
    enum router__kind kind = router__kind_of(segment, n, &name);
    if (kind == ROUTER__WORD)
        return strncmp(r->segments[i], segment, n) == 0 && r->segments[i][n] == 0;
    router__parameter *p = &r->parameters[r->parameter_count++];
    *p = (router__parameter){segment + 1, name, r->segments[i], 0};
    if (kind == ROUTER__PATH)
        r->rest = r->raw[i];
    if (kind == ROUTER__INT)
        return router__read_int(p->text, &p->number);
    return kind == ROUTER__PATH || *p->text;
}

/* Does the pattern match the path? Sets the parameters. */
static inline bool router__matches(router_request *r, const char *pattern)
{
    size_t i = 0;
    r->parameter_count = 0;
    r->rest = NULL;
    for (const char *at = pattern; *at && !r->rest; i++) {
        size_t n = strcspn(++at, "/");
        if (i == r->segment_count || !router__fits(r, i, at, n))
            return false;
        at += n;
    }
    return r->rest || i == r->segment_count;
}

static inline bool router__has_method(const router_request *r, const router_route *route)
{
    bool head = strcmp(r->http->method, "HEAD") == 0 && strcmp(route->method, "GET") == 0;
    return head || strcmp(route->method, r->http->method) == 0;
}

/* Sets .route, or .refusal: 400, 404, 405 or 414. */
static inline void router__find_route(router_request *r)
{
    if (!router__split(r))
        return;
    r->refusal = 404;
    for (size_t i = 0; i < r->router->route_count && !r->route; i++) {
        const router_route *route = &r->router->routes[i];
        if (!router__matches(r, route->pattern))
            continue;
        r->refusal = 405;
        if (router__has_method(r, route))
            r->route = route;
    }
    if (!r->route)
        return;
    r->refusal = 0;
    if (!r->rest) /* {name:path}: until here its text is only the first segment */
        return;
    router__parameter *last = &r->parameters[r->parameter_count - 1];
    last->text = router__decode(r, r->rest, strlen(r->rest));
    if (!last->text)
        r->route = NULL;
}

/* ---- errors --------------------------------------------------------------------------------- */

static inline int router_refuse(router_request *r, int status, const char *reason)
{
    if (r->router->answer_error)
        return r->router->answer_error(r, status, reason);
    return http_printf(r->http, status, "%s\n", reason);
}

/* Adds a method to a list unless it is there. */
static inline void router__add_method(char *list, size_t size, const char *method)
{
    size_t n = strlen(method), used = strlen(list);
    for (const char *at = list; (at = strstr(at, method)); at += n) {
        bool whole = (at == list || at[-1] == ' ') && (at[n] == ',' || at[n] == 0);
        if (whole)
            return;
    }
    if (used + n + 3 < size)
        snprintf(list + used, size - used, "%s%s", used ? ", " : "", method);
}

/* Responds with 405, or 204 for OPTIONS, and the methods that the path has. */
static inline int router__answer_allowed(router_request *r)
{
    char allow[256] = "";
    for (size_t i = 0; i < r->router->route_count; i++) {
        const router_route *route = &r->router->routes[i];
        if (!router__matches(r, route->pattern))
            continue;
        router__add_method(allow, sizeof allow, route->method);
        if (strcmp(route->method, "GET") == 0)
            router__add_method(allow, sizeof allow, "HEAD");
    }
    router__add_method(allow, sizeof allow, "OPTIONS");
    CONC_TRY(http_set_header(r->http, "Allow", allow));
    if (strcmp(r->http->method, "OPTIONS") == 0)
        return http_respond(r->http, 204, NULL, 0);
    return router_refuse(r, 405, "this path does not support this method");
}

static inline int router__answer_unrouted(router_request *r)
{
    bool asks_server = strcmp(r->http->target, "*") == 0 && strcmp(r->http->method, "OPTIONS") == 0;
    if (asks_server)
        return http_respond(r->http, 204, NULL, 0);
    if (r->refusal == 405)
        return router__answer_allowed(r);
    if (r->refusal == 414)
        return router_refuse(r, 414, "the path is too long");
    if (r->refusal == 400)
        return router_refuse(r, 400, "the path is malformed");
    return router_refuse(r, 404, "there is nothing at this path");
}

/* The handler failed with rc. Tells the client, without details, if no byte of a response was sent.
 * Keeps the text of the last error. */
static inline void router__apologise(router_request *r, int rc)
{
    char words[128];
    bool can_answer = r->http->status == 0 && rc != -ECANCELED && rc != -ECONNRESET;
    if (!can_answer)
        return;
    snprintf(words, sizeof words, "%s", conc_last_error());
    if (rc == -ETIMEDOUT)
        (void)router_refuse(r, 503, "this took too long");
    else
        (void)router_refuse(r, 500, "the server failed");
    conc_fail(rc, "%s", words);
}

/* ---- dependencies --------------------------------------------------------------------------- */

static inline void router__trace(router_request *r, const char *event, const char *name)
{
    if (r->router->trace)
        r->router->trace(r, event, name);
}

static inline int router__index(const router_request *r, const router_dependency *d)
{
    int i = r->open_count - 1;
    while (i >= 0 && r->open[i].of != d)
        i--;
    return i;
}

static inline void *router_value(const router_request *r, const router_dependency *d)
{
    int i = router__index(r, d);
    return i < 0 ? NULL : r->open[i].value;
}

static inline int router_need(router_request *r, const router_dependency *d, void **value)
{
    void *opened = NULL;
    int i = router__index(r, d);
    if (i < 0) {
        router__trace(r, "open", d->name);
        CONC_TRY(d->open(r, &opened)); /* may open others, which then precede it */
        i = r->open_count;
        bool has_room = i < ROUTER_MOST;
        if (!has_room) {
            d->close(r, opened, -ENOSPC);
            return conc_fail(-ENOSPC, "more than %d dependencies at once", ROUTER_MOST);
        }
        r->open[i].of = d;
        r->open[i].value = opened;
        r->open_count++;
    }
    if (value)
        *value = r->open[i].value;
    return 0;
}

/* Closes the dependency that was opened last. */
static inline int router__close_last(void *arg)
{
    router_request *r = arg;
    const router_dependency *d = r->open[--r->open_count].of;
    router__trace(r, "close", d->name);
    return d->close ? d->close(r, r->open[r->open_count].value, r->result) : 0;
}

/* Closes all dependencies. Returns the handler's error, or else the first error of a close. */
static inline int router__close_all(router_request *r)
{
    char words[128] = "";
    double limit = r->router->close_limit > 0 ? r->router->close_limit : 5;
    int first = r->result;
    if (first < 0)
        snprintf(words, sizeof words, "%s", conc_last_error());
    while (r->open_count > 0) {
        int rc = conc_shield(limit, router__close_last, r);
        if (rc < 0 && first >= 0) {
            first = rc;
            snprintf(words, sizeof words, "%s", conc_last_error());
        }
    }
    return first < 0 ? conc_fail(first, "%s", words) : 0;
}

/* ---- from the outermost middleware to the handler ------------------------------------------- */

static inline int router__call_handler(router_request *r)
{
    const router_dependency *const *needs = r->route->needs;
    for (int i = 0; i < ROUTER_MOST && needs[i]; i++)
        CONC_TRY(router_need(r, needs[i], NULL));
    router__trace(r, "in", r->route->handler.name);
    int rc = r->route->handler.fn(r);
    router__trace(r, "out", r->route->handler.name);
    if (rc < 0)
        return rc;
    if (r->http->status == 0 && !r->http->refused)
        return conc_fail(-EINVAL, "%s has not answered", r->route->handler.name);
    bool is_unfinished = r->http->status && !r->http->ended;
    return is_unfinished ? http_end(r->http) : 0;
}

/* Runs the innermost part: the handler with its dependencies, or the response that there is
 * none. */
static inline int router__answer(router_request *r)
{
    if (!r->route)
        return router__answer_unrouted(r);
    r->result = router__call_handler(r);
    if (r->result < 0)
        router__apologise(r, r->result);
    return router__close_all(r);
}

static inline int router_next(router_request *r)
{
    enum { CALLED = 2 * ROUTER_MOST + 1 };
    if (r->step == CALLED)
        return conc_fail(-EINVAL, "router_next: called twice");
    size_t i = r->step++;
    int rc;
    if (i < r->step_count) {
        router__trace(r, "in", r->steps[i]->name);
        rc = r->steps[i]->fn(r);
        router__trace(r, "out", r->steps[i]->name);
        if (rc < 0)
            router__apologise(r, rc);
    } else {
        rc = router__answer(r);
    }
    r->step = CALLED;
    return rc;
}

static inline void router__add_steps(router_request *r, const router_step *steps)
{
    for (int i = 0; i < ROUTER_MOST && steps[i].fn; i++)
        r->steps[r->step_count++] = &steps[i];
}

static inline int router_answer(router_request *r)
{
    router__find_route(r);
    router__add_steps(r, r->router->middleware);
    if (r->route)
        router__add_steps(r, r->route->middleware);
    int rc = router_next(r);
    bool is_silent = rc >= 0 && r->http->status == 0 && !r->http->refused;
    if (is_silent)
        rc = conc_fail(-EINVAL, "a middleware has neither answered nor called router_next");
    if (rc < 0)
        router__apologise(r, rc);
    return rc < 0 && !r->http->ended ? rc : 0;
}

/* ---- a client that leaves ------------------------------------------------------------------- */

/* Waits until the client has shut down its side. Polls while unread bytes of a next request make
 * the socket readable. */
static inline int router__await_hang_up(void *arg)
{
    enum { HANG_UP = 0x2000 /* POLLRDHUP, which <poll.h> hides without _GNU_SOURCE */ };
    router_request *r = arg;
    for (;;) {
        struct pollfd client = {.fd = r->fd, .events = HANG_UP};
        CONC_TRY(conc_wait_fd(r->fd, CONC_READABLE));
        bool has_left = poll(&client, 1, 0) == 1;
        if (has_left)
            return conc_fail(-ECONNRESET, "the client left");
        CONC_TRY(conc_sleep(0.5));
    }
}

static inline int router_watch_client(router_request *r)
{
    conc_group g = {0};
    if (r->fd < 0)
        return router_next(r);
    CONC_TRY_IN(&g, conc_spawn(&g, router__await_hang_up, r));
    int rc = router_next(r); /* cancelled if the watcher fails */
    conc_group_cancel(&g);
    int watched = conc_group_wait(&g);
    return rc == -ECANCELED && watched < 0 ? watched : rc;
}

#endif
