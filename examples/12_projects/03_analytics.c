/* Real-time analytics. Events come as lines over TCP, UDP and WebSockets. They are put into windows
   by the time at which they happened, whatever the order in which they arrive; alerts watch the
   windows; and a page in the browser shows all of it while it happens.

   cc 03_analytics.c -o analytics -O2 -lhttp_parser -lwslay -lcrypto -lcjson -lm
   ./analytics                      # with three simulated sources: open the page that it names
   ./analytics --serve              # without them; send your own events:
   echo "checkout;user=ada 83.5 $(date +%s)" | nc -q 1 localhost 2003
   echo "search;user=bob 12 -1" | nc -q 1 -u localhost 2003
   ./analytics --record events.txt  # keeps the events that arrive
   ./analytics --replay events.txt  # puts them through the same windows again, and prints these
   ./analytics --goal               # how many events a second, through all windows?
   ./analytics --help

   A line is Graphite's plaintext protocol: SERIES;user=NAME VALUE TIME. TIME is in seconds since
   1970, or -1: now; ;user=NAME may be missing. Each series has tumbling and sliding windows, each
   user has sessions; ../common/windows.h says what these, watermarks and late events are. An event
   more than a minute ahead of the clock is refused, and the watermark never passes the clock: no
   event from the future makes the events of others late. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/graphite.h"
#include "../common/http.h"
#include "../common/options.h"
#include "../common/udp.h"
#include "../common/websocket.h"
#include "../common/windows.h"
#include <cjson/cJSON.h>
#include <time.h>

enum {
    NAME = GRAPHITE_NAME,
    LINE = GRAPHITE_LINE,
    QUEUE = 1024,     /* events between the sources and the engine; a full queue holds sources up */
    CONNECTIONS = 64, /* over TCP, and as many over HTTP */
    SOURCES = 2 * CONNECTIONS + 1,
    ROWS = 200, /* closed windows of each kind, and */
    FIRED = 30, /* alerts, that the page shows */
    ALERTS = 8,
    GOAL = 1000000 /* events */
};
#define TICK 0.2

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
    bool has_failed; /* to send an event; it is reported once */
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

/* It fires when the figure rises above `above`, and again only after it fell below `below`. */
typedef struct {
    char series[NAME];
    figure figure;
    double above, below;
    bool firing;
    uint64_t number; /* of its newest row in `fired` */
} alert;

typedef struct {
    const alert *alert;
    double since, until, peak; /* until 0: not yet */
} fired;

typedef struct {
    char address[64];
    uint64_t connections, opened, events, malformed, ahead, dropped, before;
    double rate, held; /* events a second; seconds in which the full queue held sources up */
} transport;

typedef struct engine {
    double epoch; /* Unix time when conc_now() is 0 */
    conc_queue queue;
    conc_limiter limiter;
    watermark mark;
    window_operator operators[KINDS];
    transport transports[TRANSPORTS];
    source sources[SOURCES];
    alert alerts[ALERTS];
    fired fired[FIRED];          /* a ring */
    uint64_t fired_count, ended; /* ended: sources */
    FILE *record;
    char *page, *state; /* state: what the page shows, as JSON */
    size_t page_size;
    conc_event changed; /* set for a moment when state has changed */
} engine;

static struct {
    const char *listen, *tcp, *udp, *page, *record, *replay, *source, *alerts;
    double tumbling, sliding, slide, gap, delay, idle, ahead, lateness, limit, rate, count;
    bool serve, goal, child;
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
             .rate = 40};

/* ---- the engine: one task that all events go through ---------------------------------------- */

/* In whole microseconds, so that a recorded time is the same when it is replayed. */
static double unix_now(const engine *e) { return rint((e->epoch + conc_now()) * 1e6) / 1e6; }

static void say(const engine *e, const char *format, ...)
    __attribute__((__format__(__printf__, 2, 3)));
static void keep_record(engine *e);
static int read_page(engine *e);
static int open_record(engine *e);
static void close_all(engine *e);

static void advance(engine *e, double now)
{
    double mark = watermark_advance(&e->mark, now);
    for (int i = 0; i < KINDS; i++)
        windows_advance(&e->operators[i].windows, mark);
}

static void record(engine *e, double now, const event *v)
{
    if (!e->record)
        return;
    fprintf(e->record, "%.6f %s", now, v->from->name);
    if (v->line.name[0])
        fprintf(e->record, " %s%s%s %.17g %.17g", v->line.name, v->line.tag[0] ? ";user=" : "",
                v->line.tag, v->line.value, v->line.time);
    putc('\n', e->record);
}

static void end_source(engine *e, source *s)
{
    watermark_forget(&e->mark, &s->mark);
    *s = (source){0};
    e->ended++;
}

/* The watermark moves first: an event cannot be late because of itself. */
static void process(engine *e, event *v)
{
    double now = unix_now(e);
    transport *t = &e->transports[v->from->kind];
    window_operator *to = e->operators;
    advance(e, now);
    record(e, now, v);
    if (!v->line.name[0]) {
        end_source(e, v->from);
        return;
    }
    if (v->line.time == -1)
        v->line.time = now;
    if (watermark_see(&e->mark, &v->from->mark, v->line.time, now) < 0) {
        t->ahead++;
        return;
    }
    t->events++;
    const char *user = v->line.tag[0] ? v->line.tag : NULL;
    windows_add(&to[TUMBLING].windows, v->line.name, v->line.time, v->line.value, user);
    windows_add(&to[SLIDING].windows, v->line.name, v->line.time, v->line.value, user);
    if (user)
        windows_add(&to[SESSION].windows, user, v->line.time, v->line.value, v->line.name);
}

static int run_engine(void *arg)
{
    engine *e = arg;
    for (event v;;) {
        CONC_TRY(conc_queue_get(&e->queue, &v));
        if (e->limiter.rate > 0)
            CONC_TRY(conc_limiter_acquire(&e->limiter, 1));
        process(e, &v);
        conc_queue_task_done(&e->queue);
    }
}

/* Hands an event to the engine. While the queue is full its source waits, and reads no more: TCP
 * then holds the sender up, and UDP drops packets. */
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
    double value = r->figures[a->figure];
    if (!a->series[0] || strcmp(a->series, r->key) != 0)
        return;
    bool fires = !a->firing && value > a->above, clears = a->firing && value < a->below;
    if (fires) {
        a->number = e->fired_count++;
        e->fired[a->number % FIRED] = (fired){a, r->end, 0, value};
    }
    fired *f = &e->fired[a->number % FIRED];
    bool is_kept = a->firing && e->fired_count - a->number <= FIRED;
    if (is_kept && value > f->peak)
        f->peak = value;
    if (is_kept && clears)
        f->until = r->end;
    if (!fires && !clears)
        return;
    a->firing = fires;
    say(e, "alert %s: %s %s is %.10g at %.3f", fires ? "fires" : "clears", a->series,
        figure_names[a->figure], value, r->end);
}

static void fill_row(row *r, const window *w)
{
    double figures[FIGURES] = {(double)w->count,
                               w->sum,
                               w->min,
                               w->max,
                               w->sum / (double)w->count,
                               window_percentile(w, 50),
                               window_percentile(w, 95),
                               window_percentile(w, 99),
                               window_distinct(w)};
    *r = (row){.start = w->start, .end = w->end, .revised = w->revised};
    snprintf(r->key, sizeof r->key, "%s", w->key);
    memcpy(r->figures, figures, sizeof figures);
}

/* Where the window goes: a revised one takes the place of those of its key within it. */
static row *row_of(window_operator *o, const window *w)
{
    row *found = NULL;
    for (size_t i = 0; w->revised && i < ROWS; i++) {
        row *r = &o->rows[i];
        if (strcmp(r->key, w->key) != 0)
            continue;
        bool replaced = w->start <= r->start && r->end <= w->end;
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
    for (int i = 0; o->kind == SLIDING && !r->revised && i < ALERTS; i++)
        watch(o->of, &o->of->alerts[i], r); /* what was known then counts: no revised windows */
}

/* ---- lines ---------------------------------------------------------------------------------- */

/* The first wrong line of a source is reported, and all of them are counted. */
static void report_line(engine *e, source *s, const char *line, size_t n)
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
    report_line(e, s, line, n);
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

/* ---- sources -------------------------------------------------------------------------------- */

static int source_begin(engine *e, transport_kind kind, const char *name, source **out)
{
    transport *t = &e->transports[kind];
    source *s = e->sources;
    while (s < e->sources + SOURCES && s->name[0])
        s++;
    if (s == e->sources + SOURCES)
        return conc_fail(-EMFILE, "there are too many sources");
    *s = (source){.kind = kind};
    t->connections++;
    t->opened++;
    if (name)
        snprintf(s->name, sizeof s->name, "%s", name);
    else
        snprintf(s->name, sizeof s->name, "%s/%llu", transport_names[kind],
                 (unsigned long long)t->opened);
    *out = s;
    return 0;
}

/* The engine lets go of a source when all of its events have been processed. */
static int source_end(engine *e, source *s, int rc)
{
    const event end = {.from = s};
    e->transports[s->kind].connections--;
    if (rc == -ECANCELED)
        return rc;
    say(e, "%s has ended%s%s", s->name, rc < 0 ? ": " : "", rc < 0 ? conc_last_error() : "");
    return put(e, &end);
}

static ssize_t read_lines(engine *e, source *s, conc_stream *stream)
{
    for (;;) {
        char *line;
        ssize_t n = CONC_TRY(conc_stream_read_until(stream, "\n", 1, &line));
        if (n == 0)
            return 0;
        if (line[n - 1] == '\n')
            CONC_TRY(take_line(e, s, line, (size_t)n - 1));
        else
            report_line(e, s, line, (size_t)n); /* its sender has gone in the middle of it */
    }
}

static int serve_tcp(int fd, void *arg)
{
    engine *e = arg;
    source *s;
    CONC_AUTO(conc_stream, stream) = {.limit = LINE};
    CONC_TRY(conc_stream_open(&stream, fd));
    CONC_TRY(source_begin(e, TCP, NULL, &s));
    say(e, "%s has connected", s->name);
    return source_end(e, s, (int)read_lines(e, s, &stream));
}

static int serve_udp(void *arg)
{
    engine *e = arg;
    source *s;
    int fd = CONC_TRY(udp_listen(options.udp));
    transport *t = &e->transports[UDP];
    CONC_TRY(conc_address(fd, false, t->address, sizeof t->address));
    CONC_TRY(source_begin(e, UDP, "udp", &s));
    CONC_TRY(conc_started(0));
    for (char packet[65536];;) {
        ssize_t n = CONC_TRY(udp_receive(fd, packet, sizeof packet, &t->dropped));
        CONC_TRY(take_lines(e, s, packet, (size_t)n));
    }
}

static int serve_events(engine *e, websocket *w)
{
    source *s;
    websocket_message m;
    CONC_TRY(source_begin(e, WEBSOCKET, NULL, &s));
    say(e, "%s has connected", s->name);
    int rc;
    while ((rc = websocket_receive(w, &m)) > 0) {
        rc = take_lines(e, s, m.data, m.size);
        if (rc < 0)
            break;
    }
    return source_end(e, s, rc);
}

/* ---- the page and its state ----------------------------------------------------------------- */

static cJSON *transport_json(const transport *t, const char *name)
{
    const struct {
        const char *name;
        double value;
    } numbers[] = {{"connections", (double)t->connections},
                   {"events", (double)t->events},
                   {"malformed", (double)t->malformed},
                   {"ahead", (double)t->ahead},
                   {"dropped", (double)t->dropped},
                   {"rate", t->rate},
                   {"held", t->held}};
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "name", name);
    cJSON_AddStringToObject(json, "address", t->address);
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        cJSON_AddNumberToObject(json, numbers[i].name, numbers[i].value);
    return json;
}

/* A row is [key, start, end, revised, figures...]. */
static cJSON *row_json(const row *r)
{
    cJSON *json = cJSON_CreateArray();
    cJSON_AddItemToArray(json, cJSON_CreateString(r->key));
    cJSON_AddItemToArray(json, cJSON_CreateNumber(r->start));
    cJSON_AddItemToArray(json, cJSON_CreateNumber(r->end));
    cJSON_AddItemToArray(json, cJSON_CreateBool(r->revised));
    for (int i = 0; i < FIGURES; i++)
        cJSON_AddItemToArray(json, cJSON_CreateNumber(r->figures[i]));
    return json;
}

static cJSON *operator_json(const window_operator *o)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "size", o->windows.size);
    cJSON_AddNumberToObject(json, "slide", o->windows.slide);
    cJSON_AddNumberToObject(json, "gap", o->windows.gap);
    cJSON_AddNumberToObject(json, "late", (double)o->windows.late);
    cJSON_AddNumberToObject(json, "tooLate", (double)o->windows.too_late);
    cJSON_AddNumberToObject(json, "refused", (double)o->windows.refused);
    cJSON *rows = cJSON_AddArrayToObject(json, "rows");
    for (uint64_t i = o->closed > ROWS ? o->closed - ROWS : 0; i < o->closed; i++)
        if (o->rows[i % ROWS].key[0])
            cJSON_AddItemToArray(rows, row_json(&o->rows[i % ROWS]));
    return json;
}

static cJSON *alert_json(const alert *a)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "series", a->series);
    cJSON_AddStringToObject(json, "figure", figure_names[a->figure]);
    cJSON_AddNumberToObject(json, "above", a->above);
    cJSON_AddNumberToObject(json, "below", a->below);
    cJSON_AddBoolToObject(json, "firing", a->firing);
    return json;
}

static cJSON *fired_json(const fired *f)
{
    cJSON *json = alert_json(f->alert);
    cJSON_AddNumberToObject(json, "since", f->since);
    cJSON_AddNumberToObject(json, "until", f->until);
    cJSON_AddNumberToObject(json, "peak", f->peak);
    return json;
}

static char *state_json(engine *e)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "now", unix_now(e));
    cJSON_AddNumberToObject(json, "watermark", e->mark.time);
    cJSON *transports = cJSON_AddArrayToObject(json, "transports");
    for (int i = 0; i < TRANSPORTS; i++)
        cJSON_AddItemToArray(transports, transport_json(&e->transports[i], transport_names[i]));
    cJSON *figures = cJSON_CreateStringArray(figure_names, FIGURES);
    cJSON_AddItemToObject(json, "figures", figures);
    for (int i = 0; i < KINDS; i++)
        cJSON_AddItemToObject(json, kind_names[i], operator_json(&e->operators[i]));
    cJSON *alerts = cJSON_AddArrayToObject(json, "alerts");
    for (int i = 0; i < ALERTS && e->alerts[i].series[0]; i++)
        cJSON_AddItemToArray(alerts, alert_json(&e->alerts[i]));
    cJSON *list = cJSON_AddArrayToObject(json, "fired");
    for (uint64_t i = e->fired_count > FIRED ? e->fired_count - FIRED : 0; i < e->fired_count; i++)
        cJSON_AddItemToArray(list, fired_json(&e->fired[i % FIRED]));
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}

static void measure_rates(engine *e, double seconds)
{
    for (transport *t = e->transports; t < e->transports + TRANSPORTS; t++) {
        t->rate = (double)(t->events - t->before) / seconds;
        t->before = t->events;
    }
}

/* Time passes for the windows even if no events come, and dashboards get a new state. */
static int run_clock(void *arg)
{
    engine *e = arg;
    for (uint64_t ticks = 1;; ticks++) {
        CONC_TRY(conc_sleep(TICK));
        advance(e, unix_now(e));
        if (ticks % 5)
            continue;
        measure_rates(e, 5 * TICK);
        free(e->state);
        e->state = state_json(e);
        conc_event_set(&e->changed);
        conc_event_clear(&e->changed);
        keep_record(e);
    }
}

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
        int rc = websocket_send(d->socket, WEBSOCKET_TEXT, state, strlen(state));
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
        continue; /* pings; a dashboard has nothing to say */
    conc_group_cancel(&g);
    return conc_group_end(&g, rc);
}

/* A page from elsewhere, open in the same browser, must not send events or read any. */
static bool is_foreign(const http_connection *http)
{
    const char *origin = http_header(http, "Origin"), *host = origin ? strstr(origin, "://") : NULL;
    return origin && !(host && strcmp(host + 3, http->host) == 0);
}

static int serve_websocket(engine *e, http_connection *http)
{
    CONC_AUTO(websocket, w) = {.max_message = 65536};
    if (is_foreign(http))
        return http_printf(http, 403, "Only this server's own page may connect\n");
    if (websocket_accept(&w, http) < 0)
        return 0; /* it was answered */
    bool is_source = strcmp(http->path, "/events") == 0;
    int rc = is_source ? serve_events(e, &w) : serve_dashboard(e, &w);
    return rc == -ECANCELED ? rc : 0; /* a client that breaks off is no failure */
}

static int answer(http_connection *http, void *arg)
{
    engine *e = arg;
    bool is_socket = strcmp(http->path, "/events") == 0 || strcmp(http->path, "/live") == 0;
    if (is_socket)
        return serve_websocket(e, http);
    if (strcmp(http->path, "/state") == 0) {
        CONC_TRY(http_set_header(http, "Content-Type", "application/json"));
        return http_respond(http, 200, e->state, strlen(e->state));
    }
    if (strcmp(http->path, "/") != 0)
        return http_printf(http, 404, "There is /, /state, /live and /events\n");
    CONC_TRY(http_set_header(http, "Content-Type", "text/html; charset=utf-8"));
    return http_respond(http, 200, e->page, e->page_size);
}

/* ---- simulated sources: a generator of lines, a link to the engine -------------------------- */

static double unix_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A service whose users come and go. Checkouts are slow for 8 of 30 seconds; events come out of
 * order, and a few of them late. */
static void make_line(char *line, size_t size, transport_kind kind)
{
    static const char *const series[] = {"checkout", "search", "login"};
    static const double typical[] = {80, 25, 50};
    double now = unix_time(), delay = conc_random(0, 0.4), slow = 1;
    if (kind == TCP && fmod(now, 30) < 8)
        slow = 4;
    if (conc_random(0, 100) < 1)
        delay = conc_random(0, 12);
    double noise = conc_random(-1, 1) + conc_random(-1, 1) + conc_random(-1, 1);
    int user = (int)(fmod(floor(now / 6), 20) * 2 + floor(conc_random(0, 6))) % 40;
    snprintf(line, size, "%s;user=user%02d %.2f %.3f", series[kind], user,
             typical[kind] * slow * exp(noise / 3), now - delay);
}

static int simulate(conc_gen *g, void *arg)
{
    const transport_kind *kind = arg;
    char line[LINE];
    for (double i = 0; options.count == 0 || i < options.count; i++) {
        if (options.rate > 0)
            CONC_TRY(conc_sleep(conc_random(0, 2) / options.rate));
        make_line(line, sizeof line, *kind);
        CONC_TRY(conc_gen_emit(g, line));
    }
    return 0;
}

typedef struct {
    transport_kind kind;
    int fd;
    conc_stream stream;
    websocket socket;
} link_to;

static int link_open(link_to *l)
{
    bool is_socket = l->kind == WEBSOCKET;
    if (l->kind == UDP)
        return l->fd = udp_dial(options.udp);
    l->fd = CONC_TRY(conc_dial(is_socket ? options.listen : options.tcp));
    CONC_TRY(conc_stream_open(&l->stream, l->fd));
    l->socket.stream = &l->stream;
    return is_socket ? websocket_connect(&l->socket, "/events", options.listen) : 0;
}

static int link_send(link_to *l, const char *line)
{
    if (l->kind == WEBSOCKET)
        return websocket_printf(&l->socket, "%s\n", line);
    if (l->kind == UDP)
        return (int)conc_send(l->fd, line, strlen(line), 0);
    CONC_TRY(conc_stream_printf(&l->stream, "%s\n", line));
    return options.rate > 0 ? conc_stream_flush(&l->stream) : 0;
}

static int link_close(link_to *l)
{
    if (l->kind == UDP && l->fd > 0)
        return conc_close(l->fd);
    if (l->kind == WEBSOCKET)
        websocket_close(&l->socket);
    return conc_stream_close(&l->stream);
}
CONC_AUTO_TYPE(link_to, link_close);

/* Sends line after line until there are no more (0), or the link breaks. */
static int send_lines(transport_kind kind, conc_gen *lines)
{
    char line[LINE];
    CONC_AUTO(link_to, l) = {.kind = kind};
    CONC_TRY(link_open(&l));
    while (CONC_TRY(conc_gen_next(lines, line)) > 0)
        CONC_TRY(link_send(&l, line));
    if (kind == WEBSOCKET)
        websocket_end(&l.socket, 1000, "");
    return 0;
}

static int run_source(void *arg)
{
    transport_kind *kind = arg;
    CONC_AUTO(conc_gen, lines) = {0};
    CONC_TRY(conc_gen_open(&lines, simulate, kind, LINE));
    for (;;) {
        int rc = send_lines(*kind, &lines);
        if (rc >= 0 || rc == -ECANCELED)
            return rc;
        fprintf(stderr, "source %s: %s; it connects again in a second\n", transport_names[*kind],
                conc_last_error());
        CONC_TRY(conc_sleep(1));
    }
}

/* A source that the engine started ends when its input does: the engine has ended, in any way. */
static int source_app(void *arg)
{
    transport_kind kind = TCP;
    (void)arg;
    while (kind < TRANSPORTS && strcmp(options.source, transport_names[kind]) != 0)
        kind++;
    if (kind == TRANSPORTS)
        return conc_fail(-EINVAL, "--source is tcp, udp or websocket");
    if (!options.child)
        return run_source(&kind);
    conc_group g = {0};
    conc_task sender;
    CONC_TRY_IN(&g, conc_spawn_task(&g, &sender, run_source, &kind));
    conc_case cases[] = {CONC_CASE_JOIN(&sender), CONC_CASE_FD(0, CONC_READABLE)};
    int rc = conc_select(cases, CONC_LEN(cases));
    if (rc == 1)
        conc_group_cancel(&g);
    return conc_group_end(&g, rc);
}

static int start_source(engine *e, transport_kind kind, double rate, double count, conc_child *c)
{
    char rate_text[32], count_text[32];
    const transport *t = e->transports;
    const char *argv[] = {"/proc/self/exe",
                          "--source",
                          transport_names[kind],
                          "--child",
                          "--tcp",
                          t[TCP].address,
                          "--udp",
                          t[UDP].address,
                          "--listen",
                          t[WEBSOCKET].address,
                          "--rate",
                          rate_text,
                          "--count",
                          count_text,
                          NULL};
    snprintf(rate_text, sizeof rate_text, "%.17g", rate);
    snprintf(count_text, sizeof count_text, "%.17g", count);
    *c = (conc_child){.argv = argv, .input = CONC_PIPE, .group = true};
    return conc_child_start(c);
}

typedef struct {
    engine *of;
    transport_kind kind;
} keeper;

static int keep_source(void *arg)
{
    keeper *k = arg;
    for (;;) {
        CONC_AUTO(conc_child, child) = {0};
        CONC_TRY(start_source(k->of, k->kind, options.rate, options.count, &child));
        CONC_TRY(conc_child_wait(&child, NULL));
        if (options.count)
            return 0;
        say(k->of, "the source %s has died; another one starts in a second",
            transport_names[k->kind]);
        CONC_TRY(conc_sleep(1));
    }
}

/* ---- live ----------------------------------------------------------------------------------- */

static int serve_http(int fd, void *arg)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, answer, arg);
}

static int serve(void *server) { return conc_serve(server); }

static int listen_at(const char *address, transport *t)
{
    int fd = CONC_TRY(conc_listen(address));
    CONC_TRY(conc_address(fd, false, t->address, sizeof t->address));
    return fd;
}

/* Starts all that serves, in the group. */
static int start(engine *e, conc_group *g, conc_server *tcp, conc_server *http)
{
    transport *t = e->transports;
    *tcp = (conc_server){.handler = serve_tcp, .arg = e, .limit = CONNECTIONS, .name = "tcp"};
    *http = (conc_server){.handler = serve_http, .arg = e, .limit = CONNECTIONS, .name = "http"};
    tcp->fd = CONC_TRY(listen_at(options.tcp, &t[TCP]));
    http->fd = CONC_TRY(listen_at(options.listen, &t[WEBSOCKET]));
    CONC_TRY(conc_start(g, serve_udp, e));
    CONC_TRY(conc_spawn(g, run_engine, e));
    CONC_TRY(conc_spawn(g, run_clock, e));
    CONC_TRY(conc_spawn(g, serve, tcp));
    CONC_TRY(conc_spawn(g, serve, http));
    printf("Listening: the page is http://%s/; events to tcp %s, udp %s or ws://%s/events\n",
           t[WEBSOCKET].address, t[TCP].address, t[UDP].address, t[WEBSOCKET].address);
    return 0;
}

static int live(void *arg)
{
    engine *e = arg;
    conc_server tcp, http;
    conc_group g = {0};
    keeper keepers[TRANSPORTS];
    CONC_TRY(read_page(e));
    CONC_TRY(open_record(e));
    CONC_TRY_IN(&g, start(e, &g, &tcp, &http));
    for (int i = 0; i < TRANSPORTS && !options.serve; i++) {
        keepers[i] = (keeper){e, i};
        CONC_TRY_IN(&g, conc_spawn(&g, keep_source, &keepers[i]));
    }
    return conc_group_wait(&g);
}

/* ---- replay: on the virtual clock, exactly as it was ---------------------------------------- */

typedef struct {
    double arrival;
    char source[NAME], line[LINE]; /* line "": the source has ended */
} recorded;

/* TIME SOURCE, and a line if the source has sent one. */
static bool read_recorded(char *text, recorded *r)
{
    char *rest, *time = strtok_r(text, " ", &rest), *source = strtok_r(NULL, " \n", &rest);
    *r = (recorded){0};
    snprintf(r->line, sizeof r->line, "%.*s", (int)strcspn(rest ? rest : "", "\n"),
             rest ? rest : "");
    return source && graphite_number(time, &r->arrival) &&
           graphite_name(source, strcspn(source, "/"), r->source) && strlen(source) < NAME &&
           strcpy(r->source, source);
}

static int read_file(conc_gen *g, void *file)
{
    char text[LINE + 2 * NAME];
    recorded r;
    for (int number = 1; fgets(text, sizeof text, file); number++) {
        bool is_whole = strchr(text, '\n') || feof((FILE *)file);
        if (!is_whole || !read_recorded(text, &r))
            return conc_fail(-EINVAL, "line %d is not: TIME SOURCE [EVENT]", number);
        CONC_TRY(conc_gen_emit(g, &r));
    }
    return ferror((FILE *)file) ? -EIO : 0;
}

static int find_source(engine *e, const char *name, source **out)
{
    int kind = 0;
    size_t n = strcspn(name, "/");
    for (source *s = e->sources; s < e->sources + SOURCES; s++)
        if (strcmp(s->name, name) == 0) {
            *out = s;
            return 0;
        }
    while (kind < TRANSPORTS &&
           (strlen(transport_names[kind]) != n || strncmp(name, transport_names[kind], n) != 0))
        kind++;
    if (kind == TRANSPORTS)
        return conc_fail(-EINVAL, "%s: a source's name begins with tcp, udp or websocket", name);
    return source_begin(e, kind, name, out);
}

static int replay_all(engine *e, conc_gen *g)
{
    recorded r;
    source *from;
    for (bool first = true; CONC_TRY(conc_gen_next(g, &r)) > 0; first = false) {
        if (first)
            e->epoch = r.arrival - conc_now();
        CONC_TRY(conc_sleep_until(r.arrival - e->epoch));
        CONC_TRY(find_source(e, r.source, &from));
        if (r.line[0])
            CONC_TRY(take_line(e, from, r.line, strlen(r.line)));
        else
            CONC_TRY(source_end(e, from, 0));
    }
    return conc_queue_join(&e->queue);
}

static int replay(void *arg)
{
    engine *e = arg;
    FILE *file = fopen(options.replay, "r");
    if (!file)
        return conc_fail(-errno, "%s: %s", options.replay, strerror(errno));
    CONC_AUTO(conc_gen, g) = {0};
    int rc = conc_gen_open(&g, read_file, file, sizeof(recorded));
    if (rc == 0)
        rc = conc_spawn(NULL, run_engine, e);
    if (rc == 0)
        rc = replay_all(e, &g);
    fclose(file);
    if (rc == 0)
        close_all(e);
    return rc;
}

/* ---- the goal: how many events a second ----------------------------------------------------- */

static int show_progress(void *arg)
{
    engine *e = arg;
    bool on_terminal = isatty(STDOUT_FILENO);
    for (;;) {
        CONC_TRY(conc_sleep(on_terminal ? 0.1 : 1));
        double done = (double)e->transports[TCP].events;
        printf(on_terminal ? "\r%.0f events " : "%.0f events\n", done);
        fflush(stdout);
    }
}

/* The events that went into windows of this kind, or came too late, against those expected. */
static bool check_total(const window_operator *o, double expected)
{
    double found = o->total + (double)o->windows.too_late;
    printf("%-8s windows: %.0f events counted, %.0f too late, %.0f expected\n", kind_names[o->kind],
           o->total, (double)o->windows.too_late, expected);
    return found == expected;
}

static int flood(engine *e, double *seconds)
{
    CONC_AUTO(conc_child, child) = {0};
    CONC_TRY(start_source(e, TCP, 0, GOAL, &child));
    while (e->transports[TCP].events == 0)
        CONC_TRY(conc_sleep(0.001));
    double start = conc_now();
    CONC_TRY(conc_child_wait(&child, NULL));
    while (e->transports[TCP].connections > 0)
        CONC_TRY(conc_sleep(0.001));
    CONC_TRY(conc_queue_join(&e->queue));
    *seconds = conc_now() - start;
    return 0;
}

static int goal(void *arg)
{
    engine *e = arg;
    conc_server tcp, http;
    conc_group g = {0};
    double seconds = 0, per_event = options.sliding / options.slide;
    CONC_TRY_IN(&g, start(e, &g, &tcp, &http));
    CONC_TRY_IN(&g, conc_spawn(&g, show_progress, e));
    CONC_TRY_IN(&g, flood(e, &seconds));
    conc_group_cancel(&g);
    CONC_TRY(conc_group_wait(&g));
    close_all(e);
    bool right = e->transports[TCP].events == GOAL;
    right &= check_total(&e->operators[TUMBLING], GOAL);
    right &= check_total(&e->operators[SLIDING], GOAL * per_event);
    right &= check_total(&e->operators[SESSION], GOAL);
    printf("%.0f events a second from another process over TCP, each through %.0f windows; the "
           "goal is 100000\n",
           GOAL / seconds, per_event + 2);
    conc_set_exit_status(!right);
    return 0;
}

/* ---- starting, stopping, options ------------------------------------------------------------ */

static void say(const engine *e, const char *format, ...)
{
    char clock[16] = "";
    time_t now = (time_t)unix_now(e);
    struct tm local;
    va_list args;
    if (!options.replay)
        strftime(clock, sizeof clock, "%H:%M:%S ", localtime_r(&now, &local));
    fputs(clock, stdout);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

/* The page lies beside the source, or beside the program, or in the current folder. */
static int read_page(engine *e)
{
    const char *name = "03_analytics.html", *slash = strrchr(__FILE__, '/');
    char beside[512], own[512] = "";
    void *page = NULL;
    snprintf(beside, sizeof beside, "%.*s%s", slash ? (int)(slash + 1 - __FILE__) : 0, __FILE__,
             name);
    ssize_t n = readlink("/proc/self/exe", own, sizeof own - 32);
    char *last = n > 0 ? strrchr(own, '/') : NULL;
    if (last)
        strcpy(last + 1, name);
    const char *places[] = {options.page, beside, own, name};
    size_t first = !options.page, last_place = options.page ? 1 : CONC_LEN(places);
    int rc = -ENOENT;
    for (size_t i = first; i < last_place && rc < 0; i++)
        rc = conc_file_read(places[i], &page, &e->page_size);
    e->page = page;
    return rc < 0 ? conc_fail(rc, "no page: %s; --page FILE says where it is", conc_last_error())
                  : 0;
}

static int open_record(engine *e)
{
    if (!options.record)
        return 0;
    e->record = fopen(options.record, "w");
    return e->record ? 0 : conc_fail(-errno, "%s: %s", options.record, strerror(errno));
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

/* Closes all windows, whatever the time, and says what there was. */
static void close_all(engine *e)
{
    for (int i = 0; i < KINDS; i++)
        windows_advance(&e->operators[i].windows, INFINITY);
}

static void print_summary(engine *e)
{
    for (int i = 0; i < TRANSPORTS; i++) {
        const transport *t = &e->transports[i];
        printf("%-9s %llu sources, %llu events, %llu malformed, %llu ahead, %llu packets dropped\n",
               transport_names[i], (unsigned long long)t->opened, (unsigned long long)t->events,
               (unsigned long long)t->malformed, (unsigned long long)t->ahead,
               (unsigned long long)t->dropped);
    }
    for (int i = 0; i < KINDS; i++) {
        const windows *w = &e->operators[i].windows;
        printf("%-9s %llu windows, late %llu, too late %llu, refused %llu\n", kind_names[i],
               (unsigned long long)e->operators[i].closed, (unsigned long long)w->late,
               (unsigned long long)w->too_late, (unsigned long long)w->refused);
    }
}

/* "SERIES FIGURE ABOVE BELOW", separated by commas. */
static int read_alerts(const char *text, alert *a)
{
    for (const alert *end = a + ALERTS; *text; a++) {
        char name[16];
        int used = 0;
        bool is_rule = a < end && sscanf(text, "%47s %15s %lf %lf%n", a->series, name, &a->above,
                                         &a->below, &used) == 4;
        while (is_rule && a->figure < FIGURES && strcmp(name, figure_names[a->figure]) != 0)
            a->figure++;
        const char *next = text + used + strspn(text + used, ", ");
        bool is_valid = is_rule && a->figure < FIGURES && a->below <= a->above &&
                        (!*next || memchr(text + used, ',', (size_t)(next - text) - (size_t)used));
        if (!is_valid)
            return conc_fail(-EINVAL, "this is no alert, or one too many: \"%s\"", text);
        text = next;
    }
    return 0;
}

static int engine_open(engine *e)
{
    e->epoch = unix_time() - conc_now();
    e->queue = (conc_queue)CONC_QUEUE(event, QUEUE);
    e->limiter.rate = options.limit;
    e->mark = (watermark){.delay = options.delay, .idle = options.idle, .ahead = options.ahead};
    for (int i = 0; i < KINDS; i++) {
        window_operator *o = &e->operators[i];
        o->of = e;
        o->kind = i;
        o->windows = (windows){.lateness = options.lateness, .closed = close_window, .arg = o};
    }
    e->operators[TUMBLING].windows.size = options.tumbling;
    e->operators[SLIDING].windows.size = options.sliding;
    e->operators[SLIDING].windows.slide = options.slide;
    e->operators[SESSION].windows.gap = options.gap;
    e->operators[SESSION].windows.max_keys = 10000;
    e->state = state_json(e);
    return read_alerts(options.alerts, e->alerts);
}

static void engine_close(engine *e)
{
    for (int i = 0; i < KINDS; i++)
        windows_close(&e->operators[i].windows);
    conc_queue_destroy(&e->queue);
    if (e->record && fclose(e->record) != 0)
        fprintf(stderr, "%s: %s\n", options.record, strerror(errno));
    conc_free(e->page);
    free(e->state);
}

static const options_field fields[] = {
    OPTIONS_TEXT("listen", "ADDRESS", &options.listen, "the page; default: 127.0.0.1:8080"),
    OPTIONS_TEXT("tcp", "ADDRESS", &options.tcp, "events over TCP; default: 127.0.0.1:2003"),
    OPTIONS_TEXT("udp", "ADDRESS", &options.udp, "events over UDP; default: 127.0.0.1:2003"),
    OPTIONS_FLAG("serve", &options.serve, "without simulated sources"),
    OPTIONS_TEXT("alerts", "RULES", &options.alerts,
                 "of sliding windows: \"SERIES FIGURE ABOVE BELOW, ...\"; FIGURE is count, sum,\n"
                 "                         min, max, mean, p50, p95, p99 or distinct"),
    OPTIONS_NUMBER("tumbling", "SECONDS", &options.tumbling, 0.001, 1e6, "size; default: 5"),
    OPTIONS_NUMBER("sliding", "SECONDS", &options.sliding, 0.001, 1e6, "size; default: 10"),
    OPTIONS_NUMBER("slide", "SECONDS", &options.slide, 0.001, 1e6,
                   "of sliding windows; default: 1"),
    OPTIONS_NUMBER("gap", "SECONDS", &options.gap, 0.001, 1e6, "ends a session; default: 4"),
    OPTIONS_NUMBER("delay", "SECONDS", &options.delay, 0, 1e6,
                   "events of a source are out of order by this; default: 1"),
    OPTIONS_NUMBER("lateness", "SECONDS", &options.lateness, 0, 1e6,
                   "a closed window takes late events; default: 3"),
    OPTIONS_NUMBER("idle", "SECONDS", &options.idle, 0, 1e6,
                   "a silent source holds windows open; default: 2"),
    OPTIONS_NUMBER("ahead", "SECONDS", &options.ahead, 0, 1e6,
                   "an event may be ahead of the clock; default: 60"),
    OPTIONS_NUMBER("limit", "N", &options.limit, 0, 1e9, "events a second; default: all"),
    OPTIONS_TEXT("record", "FILE", &options.record, "keeps all events"),
    OPTIONS_TEXT("replay", "FILE", &options.replay, "prints the windows of kept events"),
    OPTIONS_TEXT("page", "FILE", &options.page, "default: 03_analytics.html"),
    OPTIONS_FLAG("goal", &options.goal, "measures the events a second, and ends"),
    OPTIONS_TEXT("source", "KIND", &options.source, "is a simulated source: tcp, udp, websocket"),
    OPTIONS_NUMBER("rate", "N", &options.rate, 0, 1e9,
                   "events a second of each simulated source; 0: all it can; default: 40"),
    OPTIONS_NUMBER("count", "N", &options.count, 0, 1e12, "events of each; default: no end"),
    OPTIONS_FLAG("child", &options.child, "the source ends when its input does"),
};

static const char about[] =
    "Puts events into windows while they happen, until SIGINT or SIGTERM. Ends with 0, 1 after an\n"
    "error or if --goal has counted wrong, 2 for bad arguments, 130 or 143 after such a signal.";

static int run(void *arg)
{
    if (options.goal) {
        options.listen = options.tcp = options.udp = "127.0.0.1:0";
        options.lateness = 0; /* so that no window is counted twice */
    }
    CONC_TRY(engine_open(arg));
    if (options.replay)
        return replay(arg);
    return options.goal ? goal(arg) : live(arg);
}

int main(int argc, char **argv)
{
    static engine e;
    int status = options_read(fields, CONC_LEN(fields), argc, argv, "analytics [options]", about);
    if (status >= 0)
        return status;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (options.source)
        return conc_main(source_app, NULL);
    if (options.replay)
        setenv("CONC_CLOCK", "virtual", 1);
    status = conc_main(run, &e);
    if (e.state)
        print_summary(&e);
    engine_close(&e);
    return status;
}
