/* Real-time analytics. Events come as lines over TCP, UDP and WebSockets. They are put into windows
   by the time at which they happened, in whatever order they arrive; alerts watch the windows; and
   a page in the browser shows all of it while it happens.

   cc 03_analytics.c -o analytics -lhttp_parser -lwslay -lcrypto -lcjson -lm
   ./analytics                      # with three simulated sources; open the page that it names
   ./analytics --serve              # without them: send your own events
   echo "checkout;user=ada 83.5 $(date +%s)" | nc -q 1 localhost 2003
   echo "search;user=bob 12 -1" | nc -q 1 -u localhost 2003
   ./analytics --record events.txt  # keeps the events that arrive
   ./analytics --replay events.txt  # puts them through the same windows again, and prints those
   ./analytics --goal               # how many events a second? with cc -O2 more
   ./analytics --help

   A line is Graphite's plaintext protocol: SERIES;user=NAME VALUE TIME. TIME is in seconds since
   1970, or -1 for now; ;user=NAME may be missing. Each series has tumbling and sliding windows,
   each user has sessions; ../common/windows.h says what these, watermarks and late events are. An
   event that is more than a minute ahead of the clock is refused, and the watermark never passes
   the clock: no event from the future makes the events of others late. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/alert.h"
#include "../common/graphite.h"
#include "../common/http.h"
#include "../common/log.h"
#include "../common/options.h"
#include "../common/udp.h"
#include "../common/watermark.h"
#include "../common/websocket.h"
#include "../common/windows.h"
#include <cjson/cJSON.h>
#include <time.h>

enum {
    NAME = GRAPHITE_NAME,
    LINE = GRAPHITE_LINE,
    QUEUE = 1024,     /* events between the sources and the engine; when it is full, sources wait */
    CONNECTIONS = 64, /* over TCP, and over HTTP */
    SOURCES = 2 * CONNECTIONS + 1 + QUEUE, /* with those whose end is still in the queue */
    SERIES = 64,                           /* with windows at one time, */
    USERS = 10000,                         /* and users with sessions */
    ALERTS = 8,
    ROWS = 600, /* closed windows of each kind, and */
    PAST = 30,  /* alerts, that are kept for the page */
    GOAL = 1000000
};

typedef enum { TCP, UDP, WEBSOCKET, TRANSPORTS } transport_kind;
typedef enum { TUMBLING, SLIDING, SESSION, KINDS } window_kind;
typedef enum { COUNT, SUM, MIN, MAX, MEAN, P50, P95, P99, DISTINCT, FIGURES } figure;
static const char *const transport_names[] = {"tcp", "udp", "websocket"};
static const char *const kind_names[] = {"tumbling", "sliding", "session"};
static const char *const figure_names[] = {"count", "sum", "min", "max",     "mean",
                                           "p50",   "p95", "p99", "distinct"};

typedef struct {
    transport_kind kind;
    char name[NAME]; /* "": this one is free */
    bool has_failed; /* to send an event, which is reported once */
    watermark_source mark;
} source; /* a connection, or all UDP packets */

typedef struct {
    source *from;
    graphite_line line; /* name: the series, "": the source has ended; tag: the user, "": unknown */
} event;

typedef struct {
    char key[NAME];
    double start, end, figures[FIGURES];
    bool revised;
} row; /* a window that was closed */

typedef struct {
    struct engine *of;
    window_kind kind;
    windows windows;
    row rows[ROWS];  /* a ring */
    uint64_t closed; /* rows that there were */
    double total;    /* events in them */
} window_operator;

typedef struct {
    char address[64];
    double connections, opened, events, malformed, ahead, before; /* counts */
    uint64_t dropped;                                             /* packets */
    double rate, held; /* events a second; seconds in which the full queue held sources up */
} transport;

typedef struct engine {
    double epoch; /* of a replay: Unix time when conc_now() is 0 */
    conc_queue queue;
    conc_limiter limiter;
    watermark mark;
    window_operator operators[KINDS];
    transport transports[TRANSPORTS];
    source sources[SOURCES];
    alert alerts[ALERTS], past[PAST]; /* past: a ring of copies, each of when it cleared */
    uint64_t past_count;
    FILE *record;
    void *page;
    size_t page_size;
    char *state;        /* what the page shows, as JSON */
    conc_event changed; /* set for a moment when there is a new one */
} engine;

static struct {
    const char *listen, *tcp, *udp, *page, *record, *replay, *source, *alerts;
    double tumbling, sliding, slide, gap, delay, idle, ahead, lateness, limit, refresh, rate, count;
    bool serve, goal;
} options = {.listen = "127.0.0.1:8080",
             .tcp = "127.0.0.1:2003",
             .udp = "127.0.0.1:2003",
             .alerts = "checkout p95 250 150",
             .tumbling = 5,
             .sliding = 10,
             .slide = 1,
             .gap = 4,
             .delay = 1,
             .idle = 2,
             .ahead = 60,
             .lateness = 3,
             .refresh = 1,
             .rate = 40};

static log_writer lines = {.fd = STDOUT_FILENO};

static void say(const engine *e, const char *format, ...)
    __attribute__((__format__(__printf__, 2, 3)));
static void record(engine *e, double now, const event *v);
static void keep_record(engine *e);

/* ---- the engine: one task that all events go through ---------------------------------------- */

static double unix_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* In whole microseconds, so that a recorded time is the same when it is replayed. */
static double unix_now(const engine *e)
{
    double now = options.replay ? e->epoch + conc_now() : unix_time();
    return rint(now * 1e6) / 1e6;
}

static int figure_of(const char *name)
{
    int i = 0;
    while (i < FIGURES && strcmp(name, figure_names[i]) != 0)
        i++;
    return i;
}

static void advance(engine *e, double mark)
{
    for (int i = 0; i < KINDS; i++)
        windows_advance(&e->operators[i].windows, mark);
}

/* A window has no memory, or there are too many series or users, which the windows count. */
static int add(window_operator *o, const char *key, const graphite_line *line, const char *item)
{
    int rc = windows_add(&o->windows, key, line->time, line->value, item);
    return rc == -ENOSPC ? 0 : rc;
}

static int process_line(engine *e, source *from, graphite_line *line, double now)
{
    transport *t = &e->transports[from->kind];
    window_operator *o = e->operators;
    const char *user = line->tag[0] ? line->tag : NULL;
    if (line->time == -1)
        line->time = now;
    if (watermark_see(&e->mark, &from->mark, line->time, now) < 0) {
        t->ahead++;
        return 0;
    }
    t->events++;
    CONC_TRY(add(&o[TUMBLING], line->name, line, user));
    CONC_TRY(add(&o[SLIDING], line->name, line, user));
    return user ? add(&o[SESSION], user, line, line->name) : 0;
}

/* The watermark moves first: an event cannot be late because of itself. */
static int process(engine *e, event *v)
{
    double now = unix_now(e);
    advance(e, watermark_advance(&e->mark, now));
    record(e, now, v);
    if (v->line.name[0])
        return process_line(e, v->from, &v->line, now);
    watermark_forget(&e->mark, &v->from->mark);
    *v->from = (source){0};
    return 0;
}

static int run_engine(void *arg)
{
    engine *e = arg;
    for (event v;;) {
        CONC_TRY(conc_queue_get(&e->queue, &v));
        if (e->limiter.rate > 0)
            CONC_TRY(conc_limiter_acquire(&e->limiter, 1));
        CONC_TRY(process(e, &v));
        conc_queue_task_done(&e->queue);
    }
}

/* Hands an event to the engine. While the queue is full its source waits, and reads no more: then
 * TCP holds the sender up, and of UDP packets the kernel drops those that it has no room for. */
static int put(engine *e, const event *v)
{
    int rc = conc_queue_try_put(&e->queue, v);
    if (rc != -EAGAIN)
        return rc;
    double start = conc_now();
    rc = conc_queue_put(&e->queue, v);
    e->transports[v->from->kind].held += conc_now() - start;
    return rc;
}

/* ---- windows that close, and alerts: once a crossing ---------------------------------------- */

static void watch(engine *e, alert *a, const row *r)
{
    int i = figure_of(a->figure);
    if (strcmp(a->key, r->key) != 0)
        return;
    alert_change change = alert_see(a, r->end, r->figures[i]);
    if (change == ALERT_CLEARS)
        e->past[e->past_count++ % PAST] = *a;
    if (change != ALERT_NOTHING)
        say(e, "alert %s: %s %s is %.10g at %.3f", change == ALERT_FIRES ? "fires" : "clears",
            a->key, a->figure, r->figures[i], r->end);
}

static void fill_row(row *r, const window *w)
{
    *r = (row){.start = w->start, .end = w->end, .revised = w->revised};
    snprintf(r->key, sizeof r->key, "%s", w->key);
    r->figures[COUNT] = (double)w->values.count;
    r->figures[SUM] = w->values.sum;
    r->figures[MIN] = w->values.min;
    r->figures[MAX] = w->values.max;
    r->figures[MEAN] = w->values.sum / (double)w->values.count;
    r->figures[P50] = summary_percentile(&w->values, 50);
    r->figures[P95] = summary_percentile(&w->values, 95);
    r->figures[P99] = summary_percentile(&w->values, 99);
    r->figures[DISTINCT] = distinct_count(&w->items);
}

/* Where the window goes: a revised one takes the place of those of its key within it. */
static row *row_of(window_operator *o, const window *w)
{
    row *found = NULL;
    for (size_t i = 0; w->revised && i < ROWS; i++) {
        row *r = &o->rows[i];
        bool replaced = strcmp(r->key, w->key) == 0 && w->start <= r->start && r->end <= w->end;
        if (replaced && found)
            r->key[0] = 0;
        else if (replaced)
            found = r;
    }
    return found ? found : &o->rows[o->closed++ % ROWS];
}

static void print_row(window_kind kind, const row *r)
{
    printf("%s %s %.3f %.3f", kind_names[kind], r->key, r->start, r->end);
    for (int i = 0; i < FIGURES; i++)
        printf(" %s %.10g", figure_names[i], r->figures[i]);
    printf("%s\n", r->revised ? " revised" : "");
}

static void close_window(const window *w, void *arg)
{
    window_operator *o = arg;
    row *r = row_of(o, w);
    fill_row(r, w);
    o->total += r->figures[COUNT];
    if (options.replay)
        print_row(o->kind, r);
    for (int i = 0; o->kind == SLIDING && i < ALERTS; i++)
        watch(o->of, &o->of->alerts[i], r);
}

/* ---- sources: their lines become events ----------------------------------------------------- */

static int source_begin(engine *e, transport_kind kind, const char *name, source **out)
{
    transport *t = &e->transports[kind];
    source *s = e->sources;
    while (s < e->sources + SOURCES && s->name[0])
        s++;
    if (s == e->sources + SOURCES)
        return conc_fail(-EMFILE, "there are too many sources");
    t->connections++;
    t->opened++;
    *s = (source){.kind = kind};
    snprintf(s->name, sizeof s->name, "%s/%.0f", transport_names[kind], t->opened);
    if (name)
        snprintf(s->name, sizeof s->name, "%s", name);
    *out = s;
    return 0;
}

/* The engine lets go of a source when it has processed all of its events. */
static int source_end(engine *e, source *s, int rc)
{
    const event end = {.from = s};
    e->transports[s->kind].connections--;
    if (rc == -ECANCELED)
        return rc;
    say(e, "%s has ended%s%s", s->name, rc < 0 ? ": " : "", rc < 0 ? conc_last_error() : "");
    return put(e, &end);
}

/* The first wrong line of a source is reported, and all of them are counted. */
static void refuse(engine *e, source *s, const char *line, size_t n)
{
    char shown[64];
    e->transports[s->kind].malformed++;
    if (s->has_failed)
        return;
    s->has_failed = true;
    snprintf(shown, sizeof shown, "%.*s", (int)(n < LINE ? n : LINE), line);
    for (char *c = shown; *c; c++)
        if (!isprint((unsigned char)*c))
            *c = '?';
    say(e, "%s: this is no event: \"%s\"", s->name, shown);
}

static int take_line(engine *e, source *s, const char *line, size_t n)
{
    event v = {.from = s};
    if (graphite_read(line, n, &v.line))
        return put(e, &v);
    refuse(e, s, line, n);
    return 0;
}

/* The end of the last line may be missing. */
static int take_lines(engine *e, source *s, const char *text, size_t size)
{
    while (size > 0) {
        const char *end = memchr(text, '\n', size);
        size_t n = end ? (size_t)(end - text) : size, used = n + (end != NULL);
        if (n > 0)
            CONC_TRY(take_line(e, s, text, n));
        text += used;
        size -= used;
    }
    return 0;
}

static int read_lines(engine *e, source *s, conc_stream *stream)
{
    for (;;) {
        char *line;
        size_t n = (size_t)CONC_TRY(conc_stream_read_until(stream, "\n", 1, &line));
        if (n == 0)
            return 0;
        if (line[n - 1] == '\n')
            CONC_TRY(take_line(e, s, line, n - 1));
        else
            refuse(e, s, line, n); /* half a line: its sender has gone in the middle of it */
    }
}

static int serve_tcp(int fd, void *arg)
{
    engine *e = arg;
    source *s;
    char peer[64] = "";
    CONC_AUTO(conc_stream, stream) = {.limit = LINE};
    CONC_TRY(conc_stream_open(&stream, fd));
    CONC_TRY(source_begin(e, TCP, NULL, &s));
    conc_address(fd, true, peer, sizeof peer);
    say(e, "%s has connected from %s", s->name, peer);
    return source_end(e, s, read_lines(e, s, &stream));
}

static int serve_udp(void *arg)
{
    engine *e = arg;
    source *s;
    transport *t = &e->transports[UDP];
    int fd = CONC_TRY(udp_listen(options.udp));
    CONC_TRY(conc_address(fd, false, t->address, sizeof t->address));
    CONC_TRY(source_begin(e, UDP, "udp", &s));
    CONC_TRY(conc_started(0));
    for (char packet[65536];;) {
        size_t n = (size_t)CONC_TRY(udp_receive(fd, packet, sizeof packet, &t->dropped));
        CONC_TRY(take_lines(e, s, packet, n));
    }
}

static int serve_events(engine *e, websocket *w)
{
    source *s;
    websocket_message m;
    int rc;
    CONC_TRY(source_begin(e, WEBSOCKET, NULL, &s));
    say(e, "%s has connected", s->name);
    while ((rc = websocket_receive(w, &m)) > 0) {
        rc = take_lines(e, s, m.data, m.size);
        if (rc < 0)
            break;
    }
    return source_end(e, s, rc);
}

/* ---- what the page shows, as JSON ----------------------------------------------------------- */

static cJSON *transport_json(const transport *t, const char *name)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "name", name);
    cJSON_AddStringToObject(json, "address", t->address);
    cJSON_AddNumberToObject(json, "connections", t->connections);
    cJSON_AddNumberToObject(json, "events", t->events);
    cJSON_AddNumberToObject(json, "rate", t->rate);
    cJSON_AddNumberToObject(json, "malformed", t->malformed);
    cJSON_AddNumberToObject(json, "ahead", t->ahead);
    cJSON_AddNumberToObject(json, "dropped", (double)t->dropped);
    cJSON_AddNumberToObject(json, "held", t->held);
    return json;
}

static cJSON *row_json(const row *r)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "key", r->key);
    cJSON_AddNumberToObject(json, "start", r->start);
    cJSON_AddNumberToObject(json, "end", r->end);
    cJSON_AddBoolToObject(json, "revised", r->revised);
    cJSON_AddItemToObject(json, "figures", cJSON_CreateDoubleArray(r->figures, FIGURES));
    return json;
}

static cJSON *operator_json(const window_operator *o)
{
    static const uint64_t shown[] = {100, ROWS, 100}; /* the page charts the sliding ones */
    uint64_t first = o->closed > shown[o->kind] ? o->closed - shown[o->kind] : 0;
    cJSON *json = cJSON_CreateObject(), *rows = cJSON_AddArrayToObject(json, "rows");
    cJSON_AddNumberToObject(json, "size", o->windows.size);
    cJSON_AddNumberToObject(json, "slide", o->windows.slide);
    cJSON_AddNumberToObject(json, "gap", o->windows.gap);
    cJSON_AddNumberToObject(json, "late", (double)o->windows.late);
    cJSON_AddNumberToObject(json, "tooLate", (double)o->windows.too_late);
    cJSON_AddNumberToObject(json, "refused", (double)o->windows.refused);
    for (uint64_t i = first; i < o->closed; i++)
        if (o->rows[i % ROWS].key[0])
            cJSON_AddItemToArray(rows, row_json(&o->rows[i % ROWS]));
    return json;
}

static cJSON *alert_json(const alert *a)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "series", a->key);
    cJSON_AddStringToObject(json, "figure", a->figure);
    cJSON_AddNumberToObject(json, "above", a->above);
    cJSON_AddNumberToObject(json, "below", a->below);
    cJSON_AddBoolToObject(json, "firing", a->firing);
    cJSON_AddNumberToObject(json, "since", a->since);
    cJSON_AddNumberToObject(json, "until", a->until);
    cJSON_AddNumberToObject(json, "peak", a->peak);
    return json;
}

static char *state_json(const engine *e)
{
    uint64_t first = e->past_count > PAST ? e->past_count - PAST : 0;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "now", unix_now(e));
    cJSON_AddNumberToObject(json, "watermark", e->mark.time);
    cJSON_AddItemToObject(json, "figures", cJSON_CreateStringArray(figure_names, FIGURES));
    cJSON *transports = cJSON_AddArrayToObject(json, "transports");
    for (int i = 0; i < TRANSPORTS; i++)
        cJSON_AddItemToArray(transports, transport_json(&e->transports[i], transport_names[i]));
    for (int i = 0; i < KINDS; i++)
        cJSON_AddItemToObject(json, kind_names[i], operator_json(&e->operators[i]));
    cJSON *alerts = cJSON_AddArrayToObject(json, "alerts");
    for (int i = 0; i < ALERTS && e->alerts[i].key[0]; i++)
        cJSON_AddItemToArray(alerts, alert_json(&e->alerts[i]));
    cJSON *past = cJSON_AddArrayToObject(json, "past");
    for (uint64_t i = first; i < e->past_count; i++)
        cJSON_AddItemToArray(past, alert_json(&e->past[i % PAST]));
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}

static int publish(engine *e, double seconds)
{
    for (transport *t = e->transports; t < e->transports + TRANSPORTS; t++) {
        t->rate = (t->events - t->before) / seconds;
        t->before = t->events;
    }
    free(e->state);
    e->state = state_json(e);
    conc_event_set(&e->changed);
    conc_event_clear(&e->changed);
    return e->state ? 0 : -ENOMEM;
}

/* Time passes for the windows even if no events come, and the page gets a new state. */
static int run_clock(void *arg)
{
    engine *e = arg;
    double published = conc_now();
    for (;;) {
        CONC_TRY(conc_sleep(0.1));
        advance(e, watermark_advance(&e->mark, unix_now(e)));
        if (conc_now() < published + options.refresh)
            continue;
        CONC_TRY(publish(e, conc_now() - published));
        published = conc_now();
        keep_record(e);
    }
}

/* ---- the dashboard -------------------------------------------------------------------------- */

typedef struct {
    engine *of;
    websocket *socket;
} dashboard;

/* Sends each state that there is time for: a slow dashboard misses some, and holds nobody up. */
static int send_states(void *arg)
{
    dashboard *d = arg;
    for (;;) {
        char *state = strdup(d->of->state);
        int rc = state ? websocket_printf(d->socket, "%s", state) : -ENOMEM;
        free(state);
        CONC_TRY(rc);
        CONC_TRY(conc_event_wait(&d->of->changed));
    }
}

static int serve_dashboard(engine *e, websocket *w)
{
    dashboard d = {e, w};
    websocket_message m;
    conc_group g = {0};
    int rc;
    CONC_TRY_IN(&g, conc_spawn(&g, send_states, &d));
    while ((rc = websocket_receive(w, &m)) > 0)
        continue; /* a dashboard has nothing to say, but its close must be seen */
    conc_group_cancel(&g);
    return conc_group_end(&g, rc);
}

/* A page from elsewhere, open in the same browser, must not send events or read any. */
static bool is_foreign(const http_connection *http)
{
    const char *origin = http_header(http, "Origin"), *host = origin ? strstr(origin, "://") : NULL;
    return origin && !(host && strcmp(host + 3, http->host) == 0);
}

static int serve_websocket(engine *e, http_connection *http, bool is_source)
{
    CONC_AUTO(websocket, w) = {.max_message = 65536};
    if (is_foreign(http))
        return http_printf(http, 403, "Only the page of this server may connect\n");
    if (websocket_accept(&w, http) < 0)
        return 0; /* it was answered */
    int rc = is_source ? serve_events(e, &w) : serve_dashboard(e, &w);
    return rc == -ECANCELED ? rc : 0; /* a client that breaks off is no failure */
}

/* A copy: while it is sent, the next state takes the place of this one. */
static int send_state(http_connection *http, const engine *e)
{
    CONC_TRY(http_set_header(http, "Content-Type", "application/json"));
    char *state = strdup(e->state);
    int rc = state ? http_respond(http, 200, state, strlen(state)) : -ENOMEM;
    free(state);
    return rc;
}

static int answer(http_connection *http, void *arg)
{
    engine *e = arg;
    bool is_source = strcmp(http->path, "/events") == 0;
    if (is_source || strcmp(http->path, "/live") == 0)
        return serve_websocket(e, http, is_source);
    if (strcmp(http->path, "/state") == 0)
        return send_state(http, e);
    if (strcmp(http->path, "/") != 0)
        return http_printf(http, 404, "There are /, /state, /live and /events\n");
    CONC_TRY(http_set_header(http, "Content-Type", "text/html; charset=utf-8"));
    return http_respond(http, 200, e->page, e->page_size);
}

static int serve_http(int fd, void *arg)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, answer, arg);
}

/* ---- simulated sources: a generator of lines, three ways to send them ----------------------- */

/* A service whose users come and go. Checkouts are slow for 8 of 30 seconds; events come out of
 * order, and some of them late. */
static void make_line(transport_kind kind, char *line)
{
    static const char *const series[] = {"checkout", "search", "login"};
    static const double typical[] = {80, 25, 50};
    double now = unix_time(), delay = conc_random(0, 0.4), value = typical[kind];
    if (kind == TCP && fmod(now, 30) < 8)
        value *= 4;
    if (conc_random(0, 100) < 1)
        delay = conc_random(0, 12);
    value *= exp((conc_random(-1, 1) + conc_random(-1, 1) + conc_random(-1, 1)) / 3);
    int user = (int)(fmod(floor(now / 6), 20) * 2 + conc_random(0, 6)) % 40;
    snprintf(line, LINE, "%s;user=user%02d %.2f %.3f\n", series[kind], user, value, now - delay);
}

static int make_lines(conc_gen *g, void *arg)
{
    const transport_kind *kind = arg;
    char line[LINE];
    for (double i = 0; options.count == 0 || i < options.count; i++) {
        if (options.rate > 0)
            CONC_TRY(conc_sleep(conc_random(0, 2) / options.rate));
        make_line(*kind, line);
        CONC_TRY(conc_gen_emit(g, line));
    }
    return 0;
}

static int send_over_tcp(conc_gen *lines)
{
    char line[LINE];
    CONC_AUTO(conc_stream, s) = {0};
    CONC_TRY(conc_stream_open(&s, CONC_TRY(conc_dial(options.tcp))));
    while (CONC_TRY(conc_gen_next(lines, line)) > 0) {
        CONC_TRY(conc_stream_write(&s, line, strlen(line)));
        if (options.rate > 0)
            CONC_TRY(conc_stream_flush(&s));
    }
    return conc_stream_close(&s);
}

static int send_over_udp(conc_gen *lines)
{
    char line[LINE];
    int rc, fd = CONC_TRY(udp_dial(options.udp));
    while ((rc = conc_gen_next(lines, line)) > 0 && rc >= 0)
        rc = (int)conc_send(fd, line, strlen(line), 0);
    conc_close(fd);
    return rc;
}

static int send_over_websocket(conc_gen *lines)
{
    char line[LINE];
    conc_stream s = {0};
    CONC_AUTO(websocket, w) = {.stream = &s};
    CONC_TRY(conc_stream_open(&s, CONC_TRY(conc_dial(options.listen))));
    CONC_TRY(websocket_connect(&w, "/events", options.listen));
    while (CONC_TRY(conc_gen_next(lines, line)) > 0)
        CONC_TRY(websocket_printf(&w, "%s", line));
    return websocket_end(&w, 1000, NULL);
}

/* Sends its lines, and connects again when the engine was away. */
static int run_source(void *arg)
{
    static int (*const send[])(conc_gen *) = {send_over_tcp, send_over_udp, send_over_websocket};
    transport_kind *kind = arg;
    CONC_AUTO(conc_gen, lines) = {0};
    CONC_TRY(conc_gen_open(&lines, make_lines, kind, LINE));
    for (;;) {
        int rc = send[*kind](&lines);
        if (rc >= 0 || rc == -ECANCELED)
            return rc;
        fprintf(stderr, "source %s: %s; it connects again in a second\n", transport_names[*kind],
                conc_last_error());
        CONC_TRY(conc_sleep(1));
    }
}

static int run_sources(void *arg)
{
    transport_kind kinds[] = {TCP, UDP, WEBSOCKET};
    conc_group g = {0};
    (void)arg;
    CONC_TRY(conc_group_begin(&g));
    for (int i = 0; i < TRANSPORTS; i++)
        if (!options.source || strstr(options.source, transport_names[i]))
            CONC_TRY_IN(&g, conc_spawn(&g, run_source, &kinds[i]));
    return conc_group_wait(&g);
}

/* In a thread, with a loop of its own: they are no part of the engine. */
static int simulate(void *arg) { return conc_run(run_sources, arg); }

static int run_simulation(void *arg) { return conc_offload(simulate, arg); }

/* ---- live ----------------------------------------------------------------------------------- */

static int serve(void *server) { return conc_serve(server); }

static int listen_at(const char *address, transport *t)
{
    int fd = CONC_TRY(conc_listen(address));
    CONC_TRY(conc_address(fd, false, t->address, sizeof t->address));
    return fd;
}

static int start(engine *e, conc_group *g, conc_server *tcp, conc_server *http)
{
    transport *t = e->transports;
    *tcp = (conc_server){.handler = serve_tcp, .arg = e, .limit = CONNECTIONS};
    *http = (conc_server){.handler = serve_http, .arg = e, .limit = CONNECTIONS};
    tcp->fd = CONC_TRY(listen_at(options.tcp, &t[TCP]));
    http->fd = CONC_TRY(listen_at(options.listen, &t[WEBSOCKET]));
    CONC_TRY(conc_start(g, serve_udp, e));
    options.tcp = t[TCP].address; /* for the simulated sources: a port of 0 has become another */
    options.udp = t[UDP].address;
    options.listen = t[WEBSOCKET].address;
    CONC_TRY(publish(e, 1));
    CONC_TRY(conc_spawn(g, run_engine, e));
    CONC_TRY(conc_spawn(g, run_clock, e));
    CONC_TRY(conc_spawn(g, serve, tcp));
    CONC_TRY(conc_spawn(g, serve, http));
    log_line(&lines,
             "Listening: the page is http://%s/; events to tcp %s, udp %s or ws://%s/events",
             t[WEBSOCKET].address, t[TCP].address, t[UDP].address, t[WEBSOCKET].address);
    return 0;
}

/* It lies beside this source, or in the current folder. */
static int read_page(engine *e)
{
    char beside[1024];
    const char *slash = strrchr(__FILE__, '/'), *name = "03_analytics.html";
    int folder = slash ? (int)(slash + 1 - __FILE__) : 0;
    snprintf(beside, sizeof beside, "%.*s%s", folder, __FILE__, name);
    int rc = conc_file_read(options.page ? options.page : beside, &e->page, &e->page_size);
    if (rc < 0 && !options.page)
        rc = conc_file_read(name, &e->page, &e->page_size);
    if (rc < 0 && rc != -ECANCELED)
        return conc_fail(rc, "no page: %s; --page FILE says where it is", conc_last_error());
    return rc;
}

static int live(engine *e)
{
    conc_server tcp, http;
    conc_group g = {0};
    CONC_TRY(read_page(e));
    e->record = options.record ? fopen(options.record, "w") : NULL;
    if (options.record && !e->record)
        return conc_fail(-errno, "%s: %s", options.record, strerror(errno));
    CONC_TRY_IN(&g, start(e, &g, &tcp, &http));
    if (!options.serve)
        CONC_TRY_IN(&g, conc_spawn(&g, run_simulation, NULL));
    return conc_group_wait(&g);
}

/* ---- record, and replay: on the virtual clock, exactly as it was ---------------------------- */

/* TIME SOURCE LINE, without a line when the source has ended. */
static void record(engine *e, double now, const event *v)
{
    const graphite_line *l = &v->line;
    if (!e->record)
        return;
    fprintf(e->record, "%.6f %s", now, v->from->name);
    if (l->name[0])
        fprintf(e->record, " %s%s%s %.17g %.17g", l->name, l->tag[0] ? ";user=" : "", l->tag,
                l->value, l->time);
    putc('\n', e->record);
}

/* Without a record the engine is still of use: an error is reported, and nothing else fails. */
static void keep_record(engine *e)
{
    if (!e->record || fflush(e->record) == 0)
        return;
    say(e, "%s: %s; nothing more is recorded", options.record, strerror(errno));
    fclose(e->record);
    e->record = NULL;
}

typedef struct {
    double time;
    char source[NAME], line[LINE];
} recorded;

static int read_record(conc_gen *g, void *file)
{
    char text[LINE + 2 * NAME], time[NAME];
    for (int number = 1; fgets(text, sizeof text, file); number++) {
        recorded r = {0};
        int words = sscanf(text, "%47s %47s %511[^\n]", time, r.source, r.line);
        if (words < 2 || !graphite_number(time, &r.time))
            return conc_fail(-EINVAL, "%s: line %d is not: TIME SOURCE LINE", options.replay,
                             number);
        CONC_TRY(conc_gen_emit(g, &r));
    }
    return ferror((FILE *)file) ? -EIO : 0;
}

static int find_source(engine *e, const char *name, source **out)
{
    for (source *s = e->sources; s < e->sources + SOURCES; s++)
        if (strcmp(s->name, name) == 0) {
            *out = s;
            return 0;
        }
    for (int i = 0; i < TRANSPORTS; i++)
        if (strncmp(name, transport_names[i], strcspn(name, "/")) == 0)
            return source_begin(e, i, name, out);
    return conc_fail(-EINVAL, "%s: no source is called %s, but tcp/1", options.replay, name);
}

static int replay_all(engine *e, conc_gen *g)
{
    recorded r;
    source *from;
    for (bool first = true; CONC_TRY(conc_gen_next(g, &r)) > 0; first = false) {
        if (first)
            e->epoch = r.time - conc_now();
        CONC_TRY(conc_sleep_until(r.time - e->epoch));
        CONC_TRY(find_source(e, r.source, &from));
        if (r.line[0])
            CONC_TRY(take_line(e, from, r.line, strlen(r.line)));
        else
            CONC_TRY(source_end(e, from, 0));
    }
    return conc_queue_join(&e->queue);
}

static int replay(engine *e)
{
    FILE *file = fopen(options.replay, "r");
    if (!file)
        return conc_fail(-errno, "%s: %s", options.replay, strerror(errno));
    CONC_AUTO(conc_gen, g) = {0};
    int rc = conc_gen_open(&g, read_record, file, sizeof(recorded));
    if (rc == 0)
        rc = conc_spawn(NULL, run_engine, e);
    if (rc == 0)
        rc = replay_all(e, &g);
    fclose(file);
    advance(e, INFINITY);
    return rc;
}

/* ---- the goal: how many events a second ----------------------------------------------------- */

static int show_progress(void *arg)
{
    engine *e = arg;
    bool on_terminal = isatty(STDOUT_FILENO);
    for (;;) {
        CONC_TRY(conc_sleep(on_terminal ? 0.1 : 1));
        printf(on_terminal ? "\r%.0f events " : "%.0f events\n", e->transports[TCP].events);
        fflush(stdout);
    }
}

static int flood(engine *e)
{
    CONC_TRY(run_simulation(NULL));
    while (e->transports[TCP].opened == 0 || e->transports[TCP].connections > 0)
        CONC_TRY(conc_sleep(0.001));
    return conc_queue_join(&e->queue);
}

static bool check_total(const window_operator *o, double expected)
{
    double late = (double)o->windows.too_late;
    printf("%s: %.0f events counted in windows, %.0f too late; %.0f expected\n",
           kind_names[o->kind], o->total, late, expected);
    return o->total + late == expected;
}

static int goal(engine *e)
{
    conc_server tcp, http;
    conc_group g = {0};
    double windows = options.sliding / options.slide, begin = conc_now();
    CONC_TRY_IN(&g, start(e, &g, &tcp, &http));
    CONC_TRY_IN(&g, conc_spawn(&g, show_progress, e));
    CONC_TRY_IN(&g, flood(e));
    double seconds = conc_now() - begin;
    conc_group_cancel(&g);
    CONC_TRY(conc_group_wait(&g));
    advance(e, INFINITY);
    bool right = e->transports[TCP].events == options.count;
    right &= check_total(&e->operators[TUMBLING], options.count);
    right &= check_total(&e->operators[SLIDING], options.count * windows);
    right &= check_total(&e->operators[SESSION], options.count);
    printf("%.0f events a second, each in %.0f windows; the goal is 100000\n",
           options.count / seconds, windows + 2);
    conc_set_exit_status(!right);
    return 0;
}

/* ---- options, and what is said -------------------------------------------------------------- */

/* A task writes the log: a stopped terminal holds nobody up. A replay has only its output. */
static void say(const engine *e, const char *format, ...)
{
    char text[LOG_LINE], clock[16];
    time_t now = (time_t)unix_now(e);
    struct tm local;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    strftime(clock, sizeof clock, "%H:%M:%S", localtime_r(&now, &local));
    if (options.replay)
        puts(text);
    else
        log_line(&lines, "%s %s", clock, text);
}

static void print_summary(const engine *e)
{
    for (int i = 0; i < TRANSPORTS; i++) {
        const transport *t = &e->transports[i];
        printf("%s: %.0f sources, %.0f events, %.0f malformed, %.0f ahead, %.0f packets dropped\n",
               transport_names[i], t->opened, t->events, t->malformed, t->ahead,
               (double)t->dropped);
    }
    for (int i = 0; i < KINDS; i++) {
        const windows *w = &e->operators[i].windows;
        printf("%s: %.0f windows; events: %.0f late, %.0f too late, %.0f refused\n", kind_names[i],
               (double)e->operators[i].closed, (double)w->late, (double)w->too_late,
               (double)w->refused);
    }
}

static int read_alerts(engine *e, char *rules)
{
    char *rest, *rule = strtok_r(rules, ",", &rest);
    for (int i = 0; rule; rule = strtok_r(NULL, ",", &rest), i++) {
        if (i == ALERTS)
            return conc_fail(-EINVAL, "--alerts: more than %d", ALERTS);
        if (!alert_read(rule, &e->alerts[i]) || figure_of(e->alerts[i].figure) == FIGURES)
            return conc_fail(-EINVAL, "--alerts: \"%s\" is not: SERIES FIGURE ABOVE BELOW", rule);
    }
    return 0;
}

static int engine_open(engine *e)
{
    char rules[1024];
    window_operator *o = e->operators;
    e->queue = (conc_queue)CONC_QUEUE(event, QUEUE);
    e->limiter.rate = options.limit;
    e->mark = (watermark){.delay = options.delay, .idle = options.idle, .ahead = options.ahead};
    o[TUMBLING].windows = (windows){.size = options.tumbling, .max_keys = SERIES};
    o[SLIDING].windows =
        (windows){.size = options.sliding, .slide = options.slide, .max_keys = SERIES};
    o[SESSION].windows = (windows){.gap = options.gap, .max_keys = USERS};
    for (int i = 0; i < KINDS; i++) {
        o[i].of = e;
        o[i].kind = i;
        o[i].windows.lateness = options.lateness;
        o[i].windows.closed = close_window;
        o[i].windows.arg = &o[i];
    }
    if (options.sliding > 1000 * options.slide)
        return conc_fail(-EINVAL, "--sliding is more than 1000 times --slide");
    snprintf(rules, sizeof rules, "%s", options.alerts);
    return read_alerts(e, rules);
}

static void engine_close(engine *e)
{
    for (int i = 0; i < KINDS; i++)
        windows_close(&e->operators[i].windows);
    keep_record(e);
    if (e->record)
        fclose(e->record);
    conc_queue_destroy(&e->queue);
    conc_free(e->page);
    free(e->state);
    log_close(&lines);
}

static int run(void *arg)
{
    engine *e = arg;
    CONC_TRY(engine_open(e));
    if (options.replay)
        return replay(e);
    CONC_TRY(conc_spawn(NULL, log_write, &lines));
    int rc = options.goal ? goal(e) : live(e);
    conc_shield(1, log_flush, &lines);
    return rc;
}

static const options_field fields[] = {
    OPTIONS_TEXT("listen", "ADDRESS", &options.listen, "the page; default: 127.0.0.1:8080"),
    OPTIONS_TEXT("tcp", "ADDRESS", &options.tcp, "events over TCP; default: 127.0.0.1:2003"),
    OPTIONS_TEXT("udp", "ADDRESS", &options.udp, "events over UDP; default: 127.0.0.1:2003"),
    OPTIONS_FLAG("serve", &options.serve, "no simulated sources"),
    OPTIONS_TEXT("alerts", "RULES", &options.alerts,
                 "SERIES FIGURE ABOVE BELOW, ...; default: checkout p95 250 150"),
    OPTIONS_NUMBER("tumbling", "SECONDS", &options.tumbling, 0.001, 1e6, "their size; default: 5"),
    OPTIONS_NUMBER("sliding", "SECONDS", &options.sliding, 0.001, 1e6, "their size; default: 10"),
    OPTIONS_NUMBER("slide", "SECONDS", &options.slide, 0.001, 1e6, "one begins each; default: 1"),
    OPTIONS_NUMBER("gap", "SECONDS", &options.gap, 0.001, 1e6, "ends a session; default: 4"),
    OPTIONS_NUMBER("delay", "SECONDS", &options.delay, 0, 1e6,
                   "by which events of a source are out of order; default: 1"),
    OPTIONS_NUMBER("lateness", "SECONDS", &options.lateness, 0, 1e6,
                   "for which closed windows take late events; default: 3"),
    OPTIONS_NUMBER("idle", "SECONDS", &options.idle, 0, 1e6,
                   "for which a silent source holds windows open; default: 2"),
    OPTIONS_NUMBER("ahead", "SECONDS", &options.ahead, 0, 1e6,
                   "an event may be ahead of the clock; default: 60"),
    OPTIONS_NUMBER("limit", "N", &options.limit, 0, 1e9, "events a second; default: no limit"),
    OPTIONS_NUMBER("refresh", "SECONDS", &options.refresh, 0.1, 60, "of the page; default: 1"),
    OPTIONS_TEXT("record", "FILE", &options.record, "keeps all events"),
    OPTIONS_TEXT("replay", "FILE", &options.replay, "prints the windows of kept events, and ends"),
    OPTIONS_TEXT("page", "FILE", &options.page, "default: 03_analytics.html"),
    OPTIONS_FLAG("goal", &options.goal, "counts a million events, or --count, and ends"),
    OPTIONS_TEXT("source", "KINDS", &options.source, "only sends: tcp,udp,websocket"),
    OPTIONS_NUMBER("rate", "N", &options.rate, 0, 1e9,
                   "events a second of a simulated source, 0: all it can; default: 40"),
    OPTIONS_NUMBER("count", "N", &options.count, 0, 1e12, "of its events; default: no end"),
};

static const char about[] = "Puts events into windows while they happen, until SIGINT or SIGTERM. "
                            "Ends with 0; with 1 after\n"
                            "an error, or if --goal counted wrong; with 2 for bad arguments; after "
                            "a signal with 130 or 143.";

int main(int argc, char **argv)
{
    static engine e;
    int status = options_read(fields, CONC_LEN(fields), argc, argv, "analytics [options]", about);
    if (status >= 0)
        return status;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (options.source && !options.goal)
        return conc_main(run_sources, NULL);
    if (options.replay)
        setenv("CONC_CLOCK", "virtual", 1);
    if (options.goal) {
        options.listen = options.tcp = options.udp = "127.0.0.1:0";
        options.lateness = options.rate = 0; /* so no window is closed, and counted, twice */
        options.count = options.count > 0 ? options.count : GOAL;
        options.source = "tcp";
    }
    status = conc_main(run, &e);
    if (status != 1)
        print_summary(&e);
    engine_close(&e);
    return status;
}
