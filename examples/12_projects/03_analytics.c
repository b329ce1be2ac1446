/* Real-time analytics. Events arrive as lines over TCP, UDP and WebSockets. They are assigned to
   windows by event time, in whatever order they arrive; alerts watch the windows, and a page in the
   browser shows everything live.

   cc 03_analytics.c -o analytics -lhttp_parser -lwslay -lcrypto -lcjson -lm
   ./analytics                      # with three simulated sources; open the address that it prints
   ./analytics --serve              # without them: send your own events
   echo "checkout;user=ada 83.5 $(date +%s)" | nc -q 1 localhost 2003
   echo "search;user=bob 12 -1" | nc -q 1 -u localhost 2003
   ./analytics --record events.txt  # records the events that arrive
   ./analytics --replay events.txt  # passes them through the same windows again, and prints these
   ./analytics --goal               # how many events per second; more with cc -O2
   ./analytics --help

   A line is Graphite's plaintext protocol: SERIES;user=NAME VALUE TIME. TIME is in seconds since
   1970, or -1 for now; ;user=NAME is optional. Each series has tumbling and sliding windows, each
   user has sessions; ../common/windows.h explains these, watermarks and late events. An event more
   than a minute ahead of the clock is refused, and the watermark never passes the clock, so an
   event from the future cannot make other events late. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/analytics_state.h"
#include "../common/graphite.h"
#include "../common/lines.h"
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
    struct engine *of;
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

/* A task writes the log: a stopped terminal holds nobody up. */
static log_writer out = {.fd = STDOUT_FILENO, .shows_time = true};

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
    if (e->record)
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
        log_line(&out, "alert %s: %s %s is %.10g at %.3f",
                 change == ALERT_FIRES ? "fires" : "clears", a->key, a->figure, value, w->end);
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

/* The first wrong line of a source is reported, and all of them are counted. */
static int take_line(const char *line, size_t n, bool is_whole, void *arg)
{
    source *s = arg;
    event v = {.from = s};
    if (is_whole && graphite_read(line, n, &v.line))
        return put(s->of, &v);
    s->of->shown.transports[s->kind].malformed++;
    if (!s->has_failed)
        log_line(&out, "%s has sent a line that is no event", s->name);
    s->has_failed = true;
    return 0;
}

static int source_begin(engine *e, transport_kind kind, source **out)
{
    transport *t = &e->shown.transports[kind];
    source *s = e->sources;
    while (s < e->sources + SOURCES && s->name[0])
        s++;
    if (s == e->sources + SOURCES)
        return conc_fail(-EMFILE, "there are too many sources");
    t->connections++;
    t->opened++;
    *s = (source){.of = e, .kind = kind};
    snprintf(s->name, sizeof s->name, "%s/%.0f", transport_names[kind], t->opened);
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
    log_line(&out, "%s has ended%s%s", s->name, rc < 0 ? ": " : "",
             rc < 0 ? conc_last_error() : "");
    return put(e, &end);
}

static int serve_tcp(int fd, void *arg)
{
    engine *e = arg;
    source *s;
    char peer[64] = "";
    CONC_AUTO(conc_stream, stream) = {.limit = GRAPHITE_LINE};
    CONC_TRY(conc_stream_open(&stream, fd));
    CONC_TRY(source_begin(e, TCP, &s));
    conc_address(fd, true, peer, sizeof peer);
    log_line(&out, "%s has connected from %s", s->name, peer);
    return source_end(e, s, lines_read(&stream, take_line, s));
}

static int serve_udp(void *arg)
{
    engine *e = arg;
    source *s;
    transport *t = &e->shown.transports[UDP];
    int fd = CONC_TRY(udp_listen(simulated.udp));
    CONC_TRY(conc_address(fd, false, t->address, sizeof t->address));
    simulated.udp = t->address;
    CONC_TRY(source_begin(e, UDP, &s));
    CONC_TRY(conc_started(0));
    for (char packet[65536];;) {
        size_t n = (size_t)CONC_TRY(udp_receive(fd, packet, sizeof packet, &t->dropped));
        CONC_TRY(lines_split(packet, n, take_line, s));
    }
}

static int serve_events(engine *e, websocket *w)
{
    source *s;
    websocket_message m;
    int rc;
    CONC_TRY(source_begin(e, WEBSOCKET, &s));
    log_line(&out, "%s has connected", s->name);
    while ((rc = websocket_receive(w, &m)) > 0) {
        rc = lines_split(m.data, m.size, take_line, s);
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
    log_line(&out, "%s: %s; nothing more is recorded", options.record, strerror(errno));
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
    log_line(&out, "Listening: the page is http://%s/; events to tcp %s, udp %s or ws://%s/events",
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

/* ---- replay: on the virtual clock, exactly as it was ---------------------------------------- */

static int find_source(engine *e, const char *name, source **out)
{
    source *s = e->sources;
    int kind = 0;
    while (s < e->sources + SOURCES && strcmp(s->name, name) != 0)
        s++;
    *out = s;
    if (s < e->sources + SOURCES)
        return 0;
    while (kind < TRANSPORTS && strncmp(name, transport_names[kind], strcspn(name, "/")) != 0)
        kind++;
    if (kind == TRANSPORTS)
        return conc_fail(-EINVAL, "%s: no source is called %s, but tcp/1", options.replay, name);
    CONC_TRY(source_begin(e, kind, out));
    snprintf((*out)->name, sizeof(*out)->name, "%s", name);
    return 0;
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
            CONC_TRY(take_line(r.text, strlen(r.text), true, from));
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
    simulated.tcp = simulated.udp = simulated.websocket = "127.0.0.1:0";
    simulated.kinds = "tcp";
    simulated.rate = 0;
    if (simulated.count == 0)
        simulated.count = 1000000;
    options.lateness = 0; /* so no window is closed, and counted, twice */
}

static int show_progress(void *arg)
{
    engine *e = arg;
    for (;;) {
        CONC_TRY(conc_sleep(1));
        printf("%.0f events\n", e->shown.transports[TCP].events);
    }
}

static int goal(engine *e)
{
    conc_server tcp, http;
    conc_group g = {0};
    const transport *t = &e->shown.transports[TCP];
    double windows = options.sliding / options.slide, begin = conc_now();
    CONC_TRY_IN(&g, start(e, &g, &tcp, &http));
    CONC_TRY_IN(&g, conc_spawn(&g, show_progress, e));
    CONC_TRY_IN(&g, traffic_run(&simulated));
    while (t->opened == 0 || t->connections > 0)
        CONC_TRY_IN(&g, conc_sleep(0.001));
    CONC_TRY_IN(&g, conc_queue_join(&e->queue));
    double seconds = conc_now() - begin;
    conc_group_cancel(&g);
    CONC_TRY(conc_group_wait(&g));
    advance(e, INFINITY);
    conc_set_exit_status(!analytics_check_totals(&e->shown, simulated.count, windows));
    printf("%.0f events a second, each in %.0f windows; the goal is 100000\n",
           simulated.count / seconds, windows + 2);
    return 0;
}

/* ---- options, and what is said -------------------------------------------------------------- */

static int engine_open(engine *e)
{
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
    return analytics_read_alerts(&e->shown, options.alerts);
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
    log_close(&out);
}

static int run(void *arg)
{
    engine *e = arg;
    int (*mode)(engine *) = live;
    if (options.goal)
        mode = goal;
    if (options.replay)
        mode = replay;
    CONC_TRY(engine_open(e));
    CONC_TRY(conc_spawn(NULL, log_write, &out));
    int rc = mode(e);
    conc_shield(1, log_flush, &out);
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
    out.shows_time = !options.replay;
    if (options.goal)
        prepare_goal();
    status = conc_main(run, &e);
    if (status != 1)
        analytics_print_summary(&e.shown);
    engine_close(&e);
    return status;
}
