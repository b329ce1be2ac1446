/* Real-time analytics. Events arrive as lines over TCP, UDP and WebSockets. They are put into
   windows by event time, in whatever order they arrive; alerts watch the windows; and a page in the
   browser shows everything live.

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
   each user has sessions; ../common/windows.h explains these, watermarks and late events. An event
   more than a minute ahead of the clock is refused, and the watermark never passes the clock: no
   event from the future makes other events late. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/analytics_state.h"
#include "../common/graphite.h"
#include "../common/live_state.h"
#include "../common/log.h"
#include "../common/options.h"
#include "../common/page.h"
#include "../common/recording.h"
#include "../common/traffic.h"
#include "../common/watermark.h"

enum {
    QUEUE = 1024,     /* events between the sources and the engine; when it is full, sources wait */
    CONNECTIONS = 64, /* over TCP, and over HTTP */
    SOURCES = 2 * CONNECTIONS + 1 + QUEUE, /* with those whose end is still in the queue */
    SERIES = 64,                           /* with windows at one time, */
    USERS = 10000                          /* and users with sessions */
};

typedef struct {
    transport_kind kind;
    char name[GRAPHITE_NAME]; /* "": this one is free */
    bool has_failed;          /* to send an event, which is reported once */
    watermark_source mark;
} source; /* a connection, or all UDP packets */

typedef struct {
    source *from;
    graphite_line line; /* name: the series, "": the source has ended; tag: the user, "": unknown */
} event;

typedef struct engine {
    double epoch; /* of a replay: Unix time when conc_now() is 0 */
    conc_queue queue;
    conc_limiter limiter;
    watermark mark;
    analytics_state shown; /* what the page shows */
    source sources[SOURCES];
    FILE *record;
    void *page;
    size_t page_size;
    live_state state; /* what the page shows, as JSON */
} engine;

static struct {
    const char *page, *record, *replay, *alerts;
    double tumbling, sliding, slide, gap, delay, idle, ahead, lateness, limit, refresh;
    bool serve, goal;
} options = {.alerts = "checkout p95 250 150",
             .tumbling = 5,
             .sliding = 10,
             .slide = 1,
             .gap = 4,
             .delay = 1,
             .idle = 2,
             .ahead = 60,
             .lateness = 3,
             .refresh = 1};

/* The simulated sources send to where the engine listens. */
static traffic simulated = {
    .tcp = "127.0.0.1:2003", .udp = "127.0.0.1:2003", .websocket = "127.0.0.1:8080", .rate = 40};

static log_writer lines = {.fd = STDOUT_FILENO, .shows_time = true};

/* A task writes the log: a stopped terminal holds nobody up. A replay has only its output. */
__attribute__((__format__(__printf__, 1, 2))) static void say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!options.replay) {
        log_vline(&lines, format, args);
    } else {
        vprintf(format, args);
        putchar('\n');
    }
    va_end(args);
}

/* ---- the engine: one task that all events go through ---------------------------------------- */

/* In whole microseconds, so that a recorded time is the same when it is replayed. */
static double unix_now(const engine *e)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    double now = (double)t.tv_sec + (double)t.tv_nsec / 1e9;
    if (options.replay)
        now = e->epoch + conc_now();
    return rint(now * 1e6) / 1e6;
}

static void advance(engine *e, double mark)
{
    for (int i = 0; i < KINDS; i++)
        windows_advance(&e->shown.operators[i].windows, mark);
}

static void record(engine *e, double now, const event *v)
{
    char text[GRAPHITE_LINE] = "";
    if (v->line.name[0])
        graphite_write(&v->line, text);
    if (e->record)
        recording_write(e->record, now, v->from->name, text);
}

/* A window has no memory, or there are too many series or users, which the windows count. */
static int add(window_operator *o, const char *key, const graphite_line *line, const char *item)
{
    int rc = windows_add(&o->windows, key, line->time, line->value, item);
    return rc == -ENOSPC ? 0 : rc;
}

static int process_line(engine *e, source *from, graphite_line *line, double now)
{
    transport *t = &e->shown.transports[from->kind];
    window_operator *o = e->shown.operators;
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
   TCP holds the sender up, and of UDP packets the kernel drops those that it has no room for. */
static int put(engine *e, const event *v)
{
    int rc = conc_queue_try_put(&e->queue, v);
    if (rc != -EAGAIN)
        return rc;
    double start = conc_now();
    rc = conc_queue_put(&e->queue, v);
    e->shown.transports[v->from->kind].held += conc_now() - start;
    return rc;
}

/* ---- windows that close, and alerts: once a crossing ---------------------------------------- */

static void watch(analytics_state *s, alert *a, const closed_window *w)
{
    double value = w->figures[figure_find(a->figure)];
    alert_change change = alert_see(a, w->end, value);
    if (change == ALERT_CLEARS)
        s->past[s->past_count++ % ANALYTICS_PAST] = *a;
    if (change != ALERT_NOTHING)
        say("alert %s: %s %s is %.10g at %.3f", change == ALERT_FIRES ? "fires" : "clears", a->key,
            a->figure, value, w->end);
}

static void close_window(const window *w, void *arg)
{
    window_operator *o = arg;
    const closed_window *closed = closed_windows_add(&o->closed, w);
    o->total += closed->figures[FIGURE_COUNT];
    if (options.replay)
        analytics_print_window(o->kind, closed);
    for (alert *a = o->of->alerts; o->kind == SLIDING && a < o->of->alerts + ANALYTICS_ALERTS; a++)
        if (strcmp(a->key, closed->key) == 0)
            watch(o->of, a, closed);
}

/* ---- sources: their lines become events ----------------------------------------------------- */

static int source_begin(engine *e, transport_kind kind, const char *name, source **out)
{
    transport *t = &e->shown.transports[kind];
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
    e->shown.transports[s->kind].connections--;
    if (rc == -ECANCELED)
        return rc;
    say("%s has ended%s%s", s->name, rc < 0 ? ": " : "", rc < 0 ? conc_last_error() : "");
    return put(e, &end);
}

/* The first wrong line of a source is reported, and all of them are counted. */
static void refuse(engine *e, source *s)
{
    e->shown.transports[s->kind].malformed++;
    if (!s->has_failed)
        say("%s has sent a line that is no event", s->name);
    s->has_failed = true;
}

static int take_line(engine *e, source *s, const char *line, size_t n)
{
    event v = {.from = s};
    if (graphite_read(line, n, &v.line))
        return put(e, &v);
    refuse(e, s);
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
            refuse(e, s); /* half a line: its sender has gone in the middle of it */
    }
}

static int serve_tcp(int fd, void *arg)
{
    engine *e = arg;
    source *s;
    char peer[64] = "";
    CONC_AUTO(conc_stream, stream) = {.limit = GRAPHITE_LINE};
    CONC_TRY(conc_stream_open(&stream, fd));
    CONC_TRY(source_begin(e, TCP, NULL, &s));
    conc_address(fd, true, peer, sizeof peer);
    say("%s has connected from %s", s->name, peer);
    return source_end(e, s, read_lines(e, s, &stream));
}

static int serve_udp(void *arg)
{
    engine *e = arg;
    source *s;
    transport *t = &e->shown.transports[UDP];
    int fd = CONC_TRY(udp_listen(simulated.udp));
    CONC_TRY(conc_address(fd, false, t->address, sizeof t->address));
    simulated.udp = t->address;
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
    say("%s has connected", s->name);
    while ((rc = websocket_receive(w, &m)) > 0) {
        rc = take_lines(e, s, m.data, m.size);
        if (rc < 0)
            break;
    }
    return source_end(e, s, rc);
}

/* ---- what the page shows -------------------------------------------------------------------- */

static int publish(engine *e, double seconds)
{
    for (transport *t = e->shown.transports; t < e->shown.transports + TRANSPORTS; t++) {
        t->rate = (t->events - t->before) / seconds;
        t->before = t->events;
    }
    return live_state_set(&e->state, analytics_json(&e->shown, unix_now(e), e->mark.time));
}

/* Without a record the engine is still of use. */
static void keep_record(engine *e)
{
    if (!e->record || fflush(e->record) == 0)
        return;
    say("%s: %s; nothing more is recorded", options.record, strerror(errno));
    fclose(e->record);
    e->record = NULL;
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

static int serve_websocket(engine *e, http_connection *http, bool is_source)
{
    CONC_AUTO(websocket, w) = {.max_message = 65536};
    if (page_is_foreign(http))
        return http_printf(http, 403, "Only the page of this server may connect\n");
    if (websocket_accept(&w, http) < 0)
        return 0; /* it was answered */
    int rc = is_source ? serve_events(e, &w) : live_state_push(&e->state, &w);
    return rc == -ECANCELED ? rc : 0; /* a client that breaks off is no failure */
}

static int answer(http_connection *http, void *arg)
{
    engine *e = arg;
    bool is_source = strcmp(http->path, "/events") == 0;
    if (is_source || strcmp(http->path, "/live") == 0)
        return serve_websocket(e, http, is_source);
    if (strcmp(http->path, "/state") == 0)
        return live_state_send(&e->state, http);
    if (strcmp(http->path, "/") != 0)
        return http_printf(http, 404, "There are /, /state, /live and /events\n");
    return page_send(http, e->page, e->page_size);
}

static int serve_http(int fd, void *arg)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, answer, arg);
}

/* ---- live ----------------------------------------------------------------------------------- */

static int serve(void *server) { return conc_serve(server); }

/* *address becomes the actual one: a port of 0 is another now. */
static int listen_at(const char **address, transport *t)
{
    int fd = CONC_TRY(conc_listen(*address));
    CONC_TRY(conc_address(fd, false, t->address, sizeof t->address));
    *address = t->address;
    return fd;
}

static int start(engine *e, conc_group *g, conc_server *tcp, conc_server *http)
{
    transport *t = e->shown.transports;
    *tcp = (conc_server){.handler = serve_tcp, .arg = e, .limit = CONNECTIONS};
    *http = (conc_server){.handler = serve_http, .arg = e, .limit = CONNECTIONS};
    tcp->fd = CONC_TRY(listen_at(&simulated.tcp, &t[TCP]));
    http->fd = CONC_TRY(listen_at(&simulated.websocket, &t[WEBSOCKET]));
    CONC_TRY(conc_start(g, serve_udp, e));
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

static int live(engine *e)
{
    conc_server tcp, http;
    conc_group g = {0};
    CONC_TRY(page_read(options.page, __FILE__, &e->page, &e->page_size));
    e->record = options.record ? fopen(options.record, "w") : NULL;
    if (options.record && !e->record)
        return conc_fail(-errno, "%s: %s", options.record, strerror(errno));
    CONC_TRY_IN(&g, start(e, &g, &tcp, &http));
    if (!options.serve)
        CONC_TRY_IN(&g, conc_spawn(&g, traffic_run, &simulated));
    return conc_group_wait(&g);
}

/* ---- replay: on the virtual clock, exactly as it was ---------------------------- */

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

static int replay_lines(engine *e, conc_gen *recorded)
{
    recording_line r;
    source *from;
    for (bool first = true; CONC_TRY(conc_gen_next(recorded, &r)) > 0; first = false) {
        if (first)
            e->epoch = r.time - conc_now();
        CONC_TRY(conc_sleep_until(r.time - e->epoch));
        CONC_TRY(find_source(e, r.source, &from));
        if (r.text[0])
            CONC_TRY(take_line(e, from, r.text, strlen(r.text)));
        else
            CONC_TRY(source_end(e, from, 0));
    }
    return conc_queue_join(&e->queue);
}

static int replay(engine *e)
{
    CONC_AUTO(conc_gen, recorded) = {0};
    CONC_TRY(recording_open(&recorded, options.replay));
    CONC_TRY(conc_spawn(NULL, run_engine, e));
    int rc = replay_lines(e, &recorded);
    advance(e, INFINITY);
    return rc;
}

/* ---- the goal: how many events a second ----------------------------------------------------- */

static void prepare_goal(void)
{
    simulated = (traffic){.tcp = "127.0.0.1:0",
                          .udp = "127.0.0.1:0",
                          .websocket = "127.0.0.1:0",
                          .kinds = "tcp",
                          .count = simulated.count > 0 ? simulated.count : 1000000};
    options.lateness = 0; /* so no window is closed, and counted, twice */
}

static int show_progress(void *arg)
{
    engine *e = arg;
    bool on_terminal = isatty(STDOUT_FILENO);
    for (;;) {
        CONC_TRY(conc_sleep(on_terminal ? 0.1 : 1));
        printf(on_terminal ? "\r%.0f events " : "%.0f events\n", e->shown.transports[TCP].events);
        fflush(stdout);
    }
}

static int flood(engine *e)
{
    CONC_TRY(traffic_run(&simulated));
    while (e->shown.transports[TCP].opened == 0 || e->shown.transports[TCP].connections > 0)
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
    bool right = e->shown.transports[TCP].events == simulated.count;
    right &= check_total(&e->shown.operators[TUMBLING], simulated.count);
    right &= check_total(&e->shown.operators[SLIDING], simulated.count * windows);
    right &= check_total(&e->shown.operators[SESSION], simulated.count);
    printf("%.0f events a second, each in %.0f windows; the goal is 100000\n",
           simulated.count / seconds, windows + 2);
    conc_set_exit_status(!right);
    return 0;
}

/* ---- options, and what is said -------------------------------------------------------------- */

static int read_alerts(engine *e, char *rules)
{
    char *rest, *rule = strtok_r(rules, ",", &rest);
    for (int i = 0; rule; rule = strtok_r(NULL, ",", &rest), i++) {
        if (i == ANALYTICS_ALERTS)
            return conc_fail(-EINVAL, "--alerts: more than %d", ANALYTICS_ALERTS);
        if (!alert_read(rule, &e->shown.alerts[i]) ||
            figure_find(e->shown.alerts[i].figure) == FIGURES)
            return conc_fail(-EINVAL, "--alerts: \"%s\" is not: SERIES FIGURE ABOVE BELOW", rule);
    }
    return 0;
}

static int engine_open(engine *e)
{
    char rules[1024];
    const windows of_kind[] = {
        {.size = options.tumbling, .max_keys = SERIES},
        {.size = options.sliding, .slide = options.slide, .max_keys = SERIES},
        {.gap = options.gap, .max_keys = USERS}};
    for (int i = 0; i < KINDS; i++) {
        window_operator *o = &e->shown.operators[i];
        o->kind = i;
        o->of = &e->shown;
        o->windows = of_kind[i];
        o->windows.lateness = options.lateness;
        o->windows.closed = close_window;
        o->windows.arg = o;
    }
    if (options.sliding > 1000 * options.slide)
        return conc_fail(-EINVAL, "--sliding is more than 1000 times --slide");
    e->queue = (conc_queue)CONC_QUEUE(event, QUEUE);
    e->limiter.rate = options.limit;
    e->mark = (watermark){.delay = options.delay, .idle = options.idle, .ahead = options.ahead};
    snprintf(rules, sizeof rules, "%s", options.alerts);
    return read_alerts(e, rules);
}

static void engine_close(engine *e)
{
    for (int i = 0; i < KINDS; i++)
        windows_close(&e->shown.operators[i].windows);
    keep_record(e);
    if (e->record)
        fclose(e->record);
    conc_queue_destroy(&e->queue);
    conc_free(e->page);
    live_state_close(&e->state);
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

#define SECONDS(name, min, help) OPTIONS_NUMBER(#name, "SECONDS", &options.name, min, 1e6, help)

static const options_field fields[] = {
    OPTIONS_TEXT("listen", "ADDRESS", &simulated.websocket, "the page; default: 127.0.0.1:8080"),
    OPTIONS_TEXT("tcp", "ADDRESS", &simulated.tcp, "events over TCP; default: 127.0.0.1:2003"),
    OPTIONS_TEXT("udp", "ADDRESS", &simulated.udp, "events over UDP; default: 127.0.0.1:2003"),
    OPTIONS_FLAG("serve", &options.serve, "no simulated sources"),
    OPTIONS_TEXT("alerts", "RULES", &options.alerts,
                 "SERIES FIGURE ABOVE BELOW, ...; default: checkout p95 250 150"),
    SECONDS(tumbling, 0.001, "their size; default: 5"),
    SECONDS(sliding, 0.001, "their size; default: 10"),
    SECONDS(slide, 0.001, "one begins each; default: 1"),
    SECONDS(gap, 0.001, "ends a session; default: 4"),
    SECONDS(delay, 0, "by which events of a source are out of order; default: 1"),
    SECONDS(lateness, 0, "for which closed windows take late events; default: 3"),
    SECONDS(idle, 0, "for which a silent source holds windows open; default: 2"),
    SECONDS(ahead, 0, "an event may be ahead of the clock; default: 60"),
    SECONDS(refresh, 0.1, "of the page; default: 1"),
    OPTIONS_NUMBER("limit", "N", &options.limit, 0, 1e9, "events a second; default: no limit"),
    OPTIONS_TEXT("record", "FILE", &options.record, "keeps all events"),
    OPTIONS_TEXT("replay", "FILE", &options.replay, "prints the windows of kept events, and ends"),
    OPTIONS_TEXT("page", "FILE", &options.page, "default: 03_analytics.html"),
    OPTIONS_FLAG("goal", &options.goal, "counts a million events, or --count, and ends"),
    OPTIONS_TEXT("source", "KINDS", &simulated.kinds, "only sends: tcp,udp,websocket"),
    OPTIONS_NUMBER("rate", "N", &simulated.rate, 0, 1e9,
                   "events a second of a simulated source, 0: all it can; default: 40"),
    OPTIONS_NUMBER("count", "N", &simulated.count, 0, 1e12, "of its events; default: no end"),
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
    if (simulated.kinds && !options.goal)
        return conc_main(traffic_send, &simulated);
    if (options.replay)
        setenv("CONC_CLOCK", "virtual", 1);
    if (options.goal)
        prepare_goal();
    status = conc_main(run, &e);
    if (status != 1)
        analytics_print_summary(&e.shown);
    engine_close(&e);
    return status;
}
