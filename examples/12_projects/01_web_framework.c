/* Web framework. A small HTTP API in the style of FastAPI: routes with typed parameters,
   middleware, dependencies, validation, streams, files, WebSockets; a loop per processor. Use it as
   a starting point for your own: the reusable parts are in ../common/.

   cc 01_web_framework.c -o web -lhttp_parser -lcjson -lwslay -lssl -lcrypto
   ./web                        # serves http://127.0.0.1:8080 until Ctrl+C; --help: the options
   curl -i localhost:8080/users/2
   curl -i localhost:8080/users --json '{"name": "Alan", "age": 200}'
   curl -N localhost:8080/numbers/1000000
   ./web --goal                 # checks 20,000 responses; then the rate, by wrk if installed
   ./web --verbose              # shows when each middleware and dependency is called
   openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem
   ./web --certificate cert.pem --key key.pem */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/http.h"
#include "../common/load.h"
#include "../common/log.h"
#include "../common/options.h"
#include "../common/router.h"
#include "../common/schema.h"
#include "../common/static_files.h"
#include "../common/tls.h"
#include "../common/websocket.h"
#include <pthread.h>
#include <stdatomic.h>

enum {
    MOST_USERS = 1000,
    MOST_LOOPS = 64,
    SESSIONS = 100,    /* at once, in each loop */
    CONNECTIONS = 4096 /* the same */
};

static struct {
    const char *address, *files, *page, *token;
    double loops, grace, timeout;
    bool quiet, verbose, goal;
    tls_context tls;
} options = {.files = ".", .token = "secret", .grace = 5, .timeout = 10};

/* One connection of a loop. */
typedef struct connection {
    struct loop *loop;
    int fd;
    char peer[120];
    http_connection http;
    conc_scope idle; /* while it waits for a request */
    bool is_idle;
    struct connection *next, **link;
} connection;

/* A thread's event loop, with all that its tasks share. No other thread touches it. */
typedef struct loop {
    int index, listener;
    conc_loop *handle;
    connection *connections;
    conc_sem sessions;
    unsigned requests;
    conc_event stopping;
    conc_scope limit; /* around all connections */
    log_writer log;
} loop;

/* ---- middleware: around each request, from the outside in ----------------------------------- */

static conc_local request_id; /* each task's own; a task that a handler spawns inherits it */

/* A line of the log, with the id of the request that the task works for. */
__attribute__((__format__(__printf__, 2, 3))) static void say(loop *l, const char *format, ...)
{
    char text[LOG_LINE];
    const char *id = conc_local_get(&request_id);
    va_list args;
    if (options.quiet)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (id)
        log_line(&l->log, "%s %s", id, text);
    else
        log_line(&l->log, "%s", text);
}

static bool is_word(const char *text)
{
    static const char allowed[] =
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_.";
    size_t n = text ? strlen(text) : 0;
    return n > 0 && n <= 40 && strspn(text, allowed) == n;
}

/* Gives the request an id, the client's or a new one: every line of the log has it from here on. */
static int identify(router_request *r)
{
    connection *c = r->app;
    char id[48], date[HTTP_DATE];
    const char *given = http_header(r->http, "X-Request-Id");
    if (is_word(given))
        snprintf(id, sizeof id, "%s", given);
    else
        snprintf(id, sizeof id, "%d-%u", c->loop->index, ++c->loop->requests);
    CONC_TRY(http_set_header(r->http, "X-Request-Id", id));
    CONC_TRY(http_set_header(r->http, "Date", http_date(time(NULL), date)));
    CONC_TRY(conc_local_set(&request_id, id));
    int rc = router_next(r);
    conc_local_set(&request_id, NULL);
    return rc;
}

static int log_access(router_request *r)
{
    connection *c = r->app;
    const http_connection *http = r->http;
    double began = conc_now();
    int rc = router_next(r);
    char why[140] = "";
    if (rc < 0)
        snprintf(why, sizeof why, "; %s", rc == -ECANCELED ? "cancelled" : conc_last_error());
    say(c->loop, "%s %s %.200s: %d, %llu bytes, %.3f ms%s", c->peer, http->method, http->target,
        http->status, (unsigned long long)http->sent, (conc_now() - began) * 1e3, why);
    return rc;
}

/* Answers itself instead of going on. */
static int require_token(router_request *r)
{
    char wanted[128];
    const char *given = http_header(r->http, "Authorization");
    snprintf(wanted, sizeof wanted, "Bearer %s", options.token);
    bool is_right = given && strlen(given) == strlen(wanted) &&
                    CRYPTO_memcmp(given, wanted, strlen(wanted)) == 0;
    if (is_right)
        return router_next(r);
    CONC_TRY(http_set_header(r->http, "WWW-Authenticate", "Bearer"));
    return router_refuse(r, 401, "this needs a token");
}

static int next_in_time(void *r) { return router_next(r); }

static int limit_time(router_request *r) { return conc_timeout(2, next_in_time, r); }

/* ---- users, which all loops share, and a session: what a request does to them --------------- */

typedef struct user {
    int64_t id, age;
    char name[41], email[81];
} user;

static struct {
    pthread_mutex_t lock; /* held for microseconds, and never across a wait */
    int64_t count;        /* ids are 1 to count */
    user rows[MOST_USERS];
} users = {PTHREAD_MUTEX_INITIALIZER,
           3,
           {{1, 36, "Ada", "ada@example.org"},
            {2, 85, "Grace", "grace@example.org"},
            {3, 72, "Edsger", "edsger@example.org"}}};

static _Atomic long sessions_opened, sessions_closed;

/* A change is kept until it is committed. */
typedef struct session {
    user changed;
    bool has_change;
} session;

static bool find_user(int64_t id, user *found)
{
    pthread_mutex_lock(&users.lock);
    *found = (user){0};
    if (id >= 1 && id <= users.count)
        *found = users.rows[id - 1];
    pthread_mutex_unlock(&users.lock);
    return found->id > 0;
}

/* A user without an id is new, and one without a name is removed: its id, or -errno. */
static int64_t session_commit(session *s)
{
    user *u = &s->changed;
    int64_t id = u->id;
    pthread_mutex_lock(&users.lock);
    if (id == 0)
        id = users.count < MOST_USERS ? ++users.count : -ENOSPC;
    if (id > 0) {
        u->id = u->name[0] ? id : 0;
        users.rows[id - 1] = *u;
    }
    pthread_mutex_unlock(&users.lock);
    s->has_change = false;
    return id;
}

static int session_open(router_request *r, void **value)
{
    connection *c = r->app;
    session *s = calloc(1, sizeof *s);
    int rc = s ? conc_sem_acquire(&c->loop->sessions) : -ENOMEM; /* waits if there are too many */
    if (rc < 0) {
        free(s);
        return rc;
    }
    sessions_opened++;
    *value = s;
    return 0;
}

/* It is called however the request ends. */
static int session_close(router_request *r, void *value, int rc)
{
    connection *c = r->app;
    session *s = value;
    if (s->has_change)
        say(c->loop, "rolled back: %s", conc_strerror(rc));
    free(s);
    sessions_closed++;
    return conc_sem_release(&c->loop->sessions);
}

static const router_dependency a_session = {"a_session", session_open, session_close};

/* ---- handlers: JSON and validation ---------------------------------------------------------- */

static const schema_field user_fields[] = {
    SCHEMA_TEXT(user, name, .min = 1),
    SCHEMA_TEXT(user, email, .optional = true),
    SCHEMA_INTEGER(user, age, .max = 150),
};

static cJSON *user_json(const user *u)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "id", (double)u->id);
    cJSON_AddStringToObject(json, "name", u->name);
    cJSON_AddStringToObject(json, "email", u->email);
    cJSON_AddNumberToObject(json, "age", (double)u->age);
    return json;
}

static int get_user(router_request *r)
{
    user found;
    if (!find_user(router_int(r, "id"), &found))
        return router_refuse(r, 404, "there is no such user");
    return schema_answer(r->http, 200, user_json(&found));
}

typedef struct {
    int64_t after, limit;
} page_query;

static const schema_field page_fields[] = {
    SCHEMA_INTEGER(page_query, after, .optional = true, .max = MOST_USERS),
    SCHEMA_INTEGER(page_query, limit, .optional = true, .min = 1, .max = 100),
};

static int list_users(router_request *r)
{
    page_query wanted = {0, 10};
    user found;
    int rc = schema_read_query(r->http, page_fields, CONC_LEN(page_fields), &wanted);
    if (rc <= 0)
        return rc;
    cJSON *json = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(json, "users");
    for (int64_t id = wanted.after + 1; id <= MOST_USERS && wanted.limit > 0; id++) {
        if (!find_user(id, &found))
            continue;
        cJSON_AddItemToArray(list, user_json(&found));
        wanted.limit--;
    }
    return schema_answer(r->http, 200, json);
}

static int add_user(router_request *r)
{
    session *s = router_value(r, &a_session);
    char location[64];
    int rc = schema_read_body(r->http, user_fields, CONC_LEN(user_fields), &s->changed);
    if (rc <= 0)
        return rc; /* 0: it was answered with 422 */
    s->has_change = true;
    int64_t id = session_commit(s);
    if (id < 0)
        return router_refuse(r, 507, "there are too many users");
    snprintf(location, sizeof location, "/users/%lld", (long long)id);
    CONC_TRY(http_set_header(r->http, "Location", location));
    return schema_answer(r->http, 201, user_json(&s->changed));
}

static int delete_user(router_request *r)
{
    session *s = router_value(r, &a_session);
    user found;
    if (!find_user(router_int(r, "id"), &found))
        return router_refuse(r, 404, "there is no such user");
    s->changed.id = found.id;
    session_commit(s);
    return http_respond(r->http, 204, NULL, 0);
}

/* Waits with a session and a change that is not committed: see what becomes of both when the client
 * leaves, the time is over, or the server stops. */
static int slow_change(router_request *r)
{
    session *s = router_value(r, &a_session);
    s->has_change = true;
    CONC_TRY(conc_sleep((double)router_int(r, "ms") / 1e3));
    s->has_change = false;
    return http_printf(r->http, 200, "slept\n");
}

static int fail(router_request *r)
{
    session *s = router_value(r, &a_session);
    s->has_change = true;
    return conc_fail(-EIO, "this always fails");
}

static int show_stats(router_request *r)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "sessionsOpened", (double)sessions_opened);
    cJSON_AddNumberToObject(json, "sessionsClosed", (double)sessions_closed);
    return schema_answer(r->http, 200, json);
}

/* ---- handlers: streams, files, WebSockets --------------------------------------------------- */

/* Of a client that does not read, http_write waits: nothing piles up. */
static int stream_numbers(router_request *r)
{
    char line[32];
    int64_t count = router_int(r, "count");
    CONC_TRY(http_set_header(r->http, "Content-Type", "text/plain"));
    CONC_TRY(http_begin(r->http, 200, -1)); /* of unknown length: in chunks */
    for (int64_t i = 1; i <= count; i++) {
        int n = snprintf(line, sizeof line, "%lld\n", (long long)i);
        CONC_TRY(http_write(r->http, line, (size_t)n));
    }
    return http_end(r->http);
}

/* The body of any size comes back as it comes in: reading waits for writing. */
static int echo(router_request *r)
{
    char piece[16384];
    ssize_t n;
    CONC_TRY(http_set_header(r->http, "Content-Type", "application/octet-stream"));
    n = CONC_TRY(http_read(r->http, piece, sizeof piece));
    CONC_TRY(http_begin(r->http, 200, r->http->length));
    while (n > 0) {
        CONC_TRY(http_write(r->http, piece, (size_t)n));
        CONC_TRY(http_flush(r->http));
        n = CONC_TRY(http_read(r->http, piece, sizeof piece));
    }
    return http_end(r->http);
}

static int await_stop(void *event) { return conc_event_wait(event); }

/* Server-sent events: one each second, until the client leaves or the server stops. */
static int send_events(router_request *r)
{
    connection *c = r->app;
    char event[64];
    CONC_TRY(http_set_header(r->http, "Content-Type", "text/event-stream"));
    CONC_TRY(http_set_header(r->http, "Cache-Control", "no-store"));
    CONC_TRY(http_begin(r->http, 200, -1));
    for (int i = 1; !conc_event_is_set(&c->loop->stopping); i++) {
        int n = snprintf(event, sizeof event, "data: %d\n\n", i);
        CONC_TRY(http_write(r->http, event, (size_t)n));
        CONC_TRY(http_flush(r->http));
        int rc = conc_timeout(1, await_stop, &c->loop->stopping);
        if (rc < 0 && rc != -ETIMEDOUT)
            return rc;
    }
    return http_end(r->http);
}

typedef struct {
    websocket *socket;
    conc_event *stopping;
} socket_end;

static int end_on_stop(void *arg)
{
    socket_end *e = arg;
    CONC_TRY(conc_event_wait(e->stopping));
    return websocket_end(e->socket, 1001, "the server stops");
}

static int echo_messages(websocket *socket)
{
    websocket_message m;
    int rc;
    while ((rc = websocket_receive(socket, &m)) > 0)
        CONC_TRY(websocket_send(socket, m.type, m.data, m.size));
    return rc;
}

static int echo_socket(router_request *r)
{
    connection *c = r->app;
    CONC_AUTO(websocket, socket) = {.max_message = 65536, .close_timeout = 2};
    conc_group helpers = {0};
    if (!r->http->upgrade)
        return router_refuse(r, 426, "this is a WebSocket");
    CONC_TRY(websocket_accept(&socket, r->http));
    CONC_TRY_IN(&helpers,
                CONC_SPAWN(&helpers, end_on_stop, (socket_end){&socket, &c->loop->stopping}));
    int rc = echo_messages(&socket);
    conc_group_cancel(&helpers);
    return conc_group_end(&helpers, rc);
}

static int get_page(router_request *r)
{
    if (!options.page)
        return router_refuse(r, 404, "the server has no page");
    return static_files_answer_file(r->http, options.page, NULL);
}

static int get_file(router_request *r)
{
    static_files folder = {.folder = options.files, .cache_control = "no-cache"};
    return static_files_answer(&folder, r->http, router_text(r, "path"));
}

/* ---- the site ------------------------------------------------------------------------------- */

static int answer_error(router_request *r, int status, const char *reason)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "error", reason);
    return schema_answer(r->http, status, json);
}

static void trace(router_request *r, const char *event, const char *name)
{
    connection *c = r->app;
    if (options.verbose)
        say(c->loop, "%s %s", event, name);
}

static const router_route routes[] = {
    ROUTE("GET", "/", get_page),
    ROUTE("GET", "/users", list_users),
    ROUTE("POST", "/users", add_user, .needs = {&a_session}),
    ROUTE("GET", "/users/{id:int}", get_user, .needs = {&a_session}),
    ROUTE("DELETE", "/users/{id:int}", delete_user, .middleware = {ROUTER(require_token)},
          .needs = {&a_session}),
    ROUTE("POST", "/slow/{ms:int}", slow_change,
          .middleware = {ROUTER(limit_time), ROUTER(router_watch_client)}, .needs = {&a_session}),
    ROUTE("GET", "/fail", fail, .needs = {&a_session}),
    ROUTE("GET", "/stats", show_stats),
    ROUTE("GET", "/numbers/{count:int}", stream_numbers),
    ROUTE("POST", "/echo", echo),
    ROUTE("GET", "/events", send_events, .middleware = {ROUTER(router_watch_client)}),
    ROUTE("GET", "/socket", echo_socket),
    ROUTE("GET", "/files/{path:path}", get_file),
};

static const router site = {
    .routes = routes,
    .route_count = CONC_LEN(routes),
    .middleware = {ROUTER(identify), ROUTER(log_access)},
    .answer_error = answer_error,
    .trace = trace,
};

/* ---- a connection --------------------------------------------------------------------------- */

/* 1: there is a request; 0: the connection ends, as the client or a stopping server wants it. */
static int await_request(connection *c)
{
    if (conc_event_is_set(&c->loop->stopping))
        return 0;
    c->idle = (conc_scope){0};
    CONC_TRY(conc_scope_begin(&c->idle, CONC_FOREVER));
    c->is_idle = true;
    int rc = http_next(&c->http);
    c->is_idle = false;
    return conc_scope_end(&c->idle, rc);
}

static int answer_requests(connection *c)
{
    int rc;
    while ((rc = await_request(c)) > 0) {
        router_request r = {.router = &site, .http = &c->http, .fd = c->fd, .app = c};
        CONC_TRY(router_answer(&r));
    }
    if (c->http.refused)
        say(c->loop, "%s: %s", c->peer, c->http.error);
    return rc;
}

static int serve_stream(loop *l, int fd, conc_stream *stream)
{
    connection c = {.loop = l, .fd = fd, .next = l->connections, .link = &l->connections};
    c.http = (http_connection){.stream = stream,
                               .head_timeout = options.timeout,
                               .stall_timeout = options.timeout,
                               .max_body = 65536};
    (void)conc_address(fd, true, c.peer, sizeof c.peer);
    l->connections = &c;
    if (c.next)
        c.next->link = &c.next;
    int rc = answer_requests(&c);
    *c.link = c.next;
    if (c.next)
        c.next->link = c.link;
    http_close(&c.http);
    return rc == -ECANCELED ? rc : 0; /* what befell a request is in the log */
}

static int serve_tls(loop *l, int fd)
{
    CONC_AUTO(tls_connection, secure) = {0};
    int rc = tls_accept(&secure, &options.tls, fd);
    if (rc == 0)
        return serve_stream(l, fd, &secure.stream);
    if (rc != -ECANCELED)
        say(l, "no TLS: %s", secure.error);
    return rc == -ECANCELED ? rc : 0;
}

static int serve_connection(int fd, void *l)
{
    conc_stream stream = {0};
    if (options.tls.certificate_file)
        return serve_tls(l, fd);
    CONC_TRY(conc_stream_open(&stream, fd));
    return serve_stream(l, fd, &stream);
}

/* ---- a loop in each thread: all listen on one port, and the system deals out the clients ----- */

static loop loops[MOST_LOOPS];
static int loop_count;
static conc_channel started = CONC_CHANNEL(int, MOST_LOOPS);

static int serve(void *arg)
{
    loop *l = arg;
    conc_server server = {
        .fd = l->listener, .handler = serve_connection, .arg = l, .limit = CONNECTIONS};
    l->handle = conc_loop_self();
    CONC_TRY(conc_loop_hold(l->handle));
    CONC_TRY(conc_spawn(NULL, log_write, &l->log));
    CONC_TRY(conc_channel_send(&started, &l->index));
    CONC_TRY(conc_scope_begin(&l->limit, CONC_FOREVER));
    int rc = conc_scope_end(&l->limit, conc_serve(&server));
    if (l->listener >= 0) /* else stop has closed it */
        conc_close(l->listener);
    conc_shield(1, log_flush, &l->log);
    return rc;
}

static void report(const conc_failure *f, void *l) { say(l, "%s: %s", f->task, f->text); }

static int run_loop(void *l)
{
    conc_options o = {.on_error = report, .user = l};
    return conc_run_with(&o, serve, l);
}

static int run_loops(void *arg)
{
    CONC_AUTO(conc_pool, pool) = {.threads = loop_count};
    int results[MOST_LOOPS], rc = 0;
    (void)arg;
    CONC_TRY(conc_pool_open(&pool));
    CONC_TRY(conc_pool_map_all(&pool, run_loop, loops, (size_t)loop_count, sizeof *loops, results));
    for (int i = 0; i < loop_count; i++) {
        rc = rc < 0 ? rc : results[i];
        conc_loop_release(loops[i].handle);
        log_close(&loops[i].log);
    }
    if (rc == -ETIMEDOUT)
        return conc_fail(rc, "requests were cut short after %g s", options.grace);
    return rc;
}

/* Runs on the loop that is to stop, between two of its tasks. No new connection; those that wait
 * for a request end now, the others after their answer or when the time is over. */
static void stop(void *arg)
{
    loop *l = arg;
    conc_close(l->listener);
    l->listener = -1;
    conc_event_set(&l->stopping);
    for (connection *c = l->connections; c; c = c->next) {
        if (c->is_idle)
            conc_scope_cancel(&c->idle);
        c->http.keep_alive = false;
    }
    conc_scope_set_timeout(&l->limit, options.grace);
}

/* With reuse_port alone a second server would share the port with a first that runs already. */
static int listen_all(char *address, size_t size)
{
    const conc_listen_options shared = {.reuse_port = true};
    int probe = CONC_TRY(conc_listen(options.address));
    CONC_TRY(conc_address(probe, false, address, size)); /* a port of 0 filled in */
    conc_close(probe);
    for (int i = 0; i < loop_count; i++) {
        loops[i] = (loop){.index = i, .sessions = CONC_SEM(SESSIONS), .log.fd = STDOUT_FILENO};
        loops[i].listener = CONC_TRY(conc_listen_with(address, &shared));
    }
    return 0;
}

/* ---- the goal: answers that are looked at, and how many come in a second -------------------- */

static int run_goal(const char *address)
{
    static const char *const targets[] = {"/users/1", "/users/2", "/users/3"};
    char *expected[3], url[160];
    const char *by = "these";
    load l = {.address = address, .targets = targets, .target_count = 3, .requests = 20000};
    for (int i = 0; i < 3; i++)
        expected[i] = schema_text(user_json(&users.rows[i]));
    l.expected = (const char *const *)expected;
    l.connections = 50;
    l.shows_progress = true;
    int rc = load_run(&l);
    for (int i = 0; i < 3; i++)
        free(expected[i]);
    if (rc < 0)
        return rc;
    double rate = l.requests / l.seconds;
    printf("answers  goal: %d right; measured: %d\n", l.requests, l.right);
    fflush(stdout);
    snprintf(url, sizeof url, "http://%s/users/2", address);
    rc = load_run_wrk(url, 2, &rate);
    if (rc >= 0)
        by = "by wrk";
    else if (rc != -ENOENT)
        return rc;
    printf("rate     goal: 10000 requests a second; measured: %.0f (%s)\n", rate, by);
    return l.right == l.requests ? 0 : conc_fail(-EBADMSG, "there were wrong answers");
}

static int serve_until_stopped(void *arg)
{
    const int stops[] = {SIGINT, SIGTERM};
    char address[120];
    int started_loop;
    conc_group g = {0};
    CONC_AUTO(conc_signals, signals) = {0};
    (void)arg;
    CONC_TRY(conc_signals_open(&signals, stops, CONC_LEN(stops)));
    CONC_TRY(listen_all(address, sizeof address));
    CONC_TRY_IN(&g, conc_spawn(&g, run_loops, NULL));
    for (int i = 0; i < loop_count; i++)
        CONC_TRY_IN(&g, conc_channel_recv(&started, &started_loop));
    printf("web listens on %s://%s, %d loops\n", options.tls.certificate_file ? "https" : "http",
           address, loop_count);
    fflush(stdout);
    if (options.goal)
        CONC_TRY_IN(&g, run_goal(address));
    else
        CONC_TRY_IN(&g, conc_signals_next(&signals));
    conc_signals_close(&signals); /* a second Ctrl+C ends the program at once */
    if (!options.goal)
        printf("web stops: %g s for the requests that are running\n", options.grace);
    fflush(stdout);
    for (int i = 0; i < loop_count; i++)
        CONC_TRY_IN(&g, conc_post(loops[i].handle, stop, &loops[i]));
    return conc_group_wait(&g);
}

/* ---- options -------------------------------------------------------------------------------- */

static const options_field fields[] = {
    OPTIONS_TEXT("listen", "ADDRESS", &options.address, "default: 127.0.0.1:8080"),
    OPTIONS_NUMBER("loops", "N", &options.loops, 1, MOST_LOOPS, "default: one per processor"),
    OPTIONS_TEXT("files", "FOLDER", &options.files, "for /files/; default: the current folder"),
    OPTIONS_TEXT("page", "FILE", &options.page, "for /; default: 01_web_framework.html"),
    OPTIONS_TEXT("certificate", "FILE", &options.tls.certificate_file, "serves HTTPS"),
    OPTIONS_TEXT("key", "FILE", &options.tls.key_file, "of the certificate, if it is not in it"),
    OPTIONS_TEXT("token", "WORD", &options.token, "that DELETE wants; default: secret"),
    OPTIONS_NUMBER("timeout", "SECONDS", &options.timeout, 0.01, 1e6,
                   "for a request's head, and for a client that stalls; default: 10"),
    OPTIONS_NUMBER("grace", "SECONDS", &options.grace, 0.01, 1e6,
                   "for running requests when the server is stopped; default: 5"),
    OPTIONS_FLAG("quiet", &options.quiet, "no log"),
    OPTIONS_FLAG("verbose", &options.verbose, "logs each middleware and dependency, too"),
    OPTIONS_FLAG("goal", &options.goal, "checks 20,000 answers, measures the rate, and ends"),
};

static const char about[] =
    "Serves a small API until SIGINT or SIGTERM. Ends with 0 if all requests were answered, 1\n"
    "after an error or if requests were cut short, 2 for bad arguments.";

static int use_defaults(void)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    if (options.loops < 1)
        options.loops = (double)(processors < MOST_LOOPS ? processors : MOST_LOOPS);
    loop_count = (int)options.loops;
    if (!options.address)
        options.address = options.goal ? "127.0.0.1:0" : "127.0.0.1:8080";
    options.quiet = options.quiet || options.goal;
    options.tls.alpn = "http/1.1";
    options.tls.handshake_timeout = options.timeout;
    if (!options.page)
        options.page = static_files_beside(__FILE__, "01_web_framework.html");
    if (!options.page)
        fprintf(stderr, "web: 01_web_framework.html is not here: --page FILE says where it is\n");
    return options.tls.certificate_file ? tls_context_open_server(&options.tls) : 0;
}

int main(int argc, char **argv)
{
    int status = options_read(fields, CONC_LEN(fields), argc, argv, "web [options]", about);
    if (status >= 0)
        return status;
    if (router_check(&site) < 0 || use_defaults() < 0)
        return fprintf(stderr, "web: %s\n", options.tls.error), 1;
    status = conc_main(serve_until_stopped, NULL);
    tls_context_close(&options.tls);
    return status;
}
