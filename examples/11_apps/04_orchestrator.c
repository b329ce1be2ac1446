/* Microservice orchestrator. A user's dashboard needs four services. The orchestrator asks all of
   them concurrently, with a time limit, retries, a cache and a circuit breaker for each; for a
   failing service it uses a fallback. Every call carries a W3C traceparent header, and every
   process writes its spans to one file, as OpenTelemetry JSON.

   cc 04_orchestrator.c -o orchestrator -lcurl -lhttp_parser -lcjson
   ./orchestrator                          # a service dies and returns; a chart of a request
   ./orchestrator --goal                   # 2 s one after another, 0.5 s concurrently
   ./orchestrator --gateway 127.0.0.1:8080 # then: curl localhost:8080/dashboard/7, or /health
   ./orchestrator --chart traces.jsonl     # the last request in this file, or: --chart FILE TRACE
   ./orchestrator --service orders 127.0.0.1:8002 delay=0.1

   It starts the services itself, as processes of this program, unless given an address:
   orders=127.0.0.1:8002. More options, in seconds: delay (of the services), timeout (of an
   attempt), deadline (of all attempts for a service), ttl (of the cache), open (until a circuit is
   half open). trace=FILE names the file to which spans are appended. It needs the real clock: the
   virtual one leaves other processes no time to answer. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/fetch.h"
#include "../common/http.h"
#include <cjson/cJSON.h>
#include <sys/random.h>
#include <time.h>

enum {
    SERVICES = 4,
    ATTEMPTS = 3,
    THRESHOLD = 5, /* failures in a row that open a circuit */
    SLOTS = 64,    /* of a service's cache */
    ANSWER_LIMIT = 64 * 1024,
    CONNECTIONS = 256 /* of the gateway at once, and so to each service */
};

static struct {
    double delay, timeout, deadline, ttl, open;
    const char *trace, *address[SERVICES];
} options = {0.5, 1, 3, 30, 1, "traces.jsonl", {0}};

static const struct {
    const char *name, *items, *fallback;
} catalogue[SERVICES] = {
    {"users", "[\"Ada\"]", "[\"Guest\"]"},
    {"orders", "[\"tea\", \"cups\"]", "[]"},
    {"recommendations", "[\"a kettle\"]", "[\"the bestsellers\"]"},
    {"notifications", "[\"Your tea is on its way\"]", "[]"},
};

typedef struct {
    int failures; /* in a row */
    double opened;
    enum { CLOSED, OPEN, HALF_OPEN } state;
} circuit_breaker;

/* The newest answer for a user whose number falls on this slot. */
typedef struct {
    conc_lock lock;
    int user;
    double expires;
    cJSON *data; /* NULL: empty */
} cache_slot;

typedef struct {
    const char *name;
    char address[64];
    int index, calls; /* calls: requests that were sent */
    circuit_breaker breaker;
    cache_slot cache[SLOTS];
    conc_child process; /* if it is ours */
} service;

typedef struct {
    fetch_client client;
    service services[SERVICES];
    int in_flight, most_in_flight;
} orchestrator;

/* One service's part of a dashboard. */
typedef struct {
    orchestrator *of;
    service *service;
    int user, status;
    enum { NOTHING, LIVE, CACHED, STALE, FALLBACK } source;
    cJSON *data;
} part;

static const char *const source_names[] = {"nothing", "live", "cached", "stale", "fallback"};
static const char *const state_names[] = {"closed", "open", "half open"};

/* A span of time in a trace. The spans of one request in one process hang on its root. */
typedef struct span {
    struct span *root;
    char trace_id[33], id[17], parent_id[17]; /* in hex; parent_id "": there is none */
    const char *name;
    enum { INTERNAL = 1, SERVER, CLIENT } kind;
    int64_t start;
    cJSON *attributes;
    cJSON *finished; /* of the root: the spans that have ended */
} span;

static conc_local current_span = {"span"}; /* tasks inherit it: their spans find their parent */

static int root_begin(span *s, const char *name, const char *traceparent);
static void span_begin(span *s, const char *name, int kind);
static void span_set(span *s, const char *key, const char *type, const char *value);
static void span_end(span *s, int rc);
static int export_spans(span *root, const char *process);

/* ---- one call: a time limit, a circuit breaker, retries ------------------------------------- */

/* 4xx is no failure of the service: it answers, and would answer the same again. */
static int read_answer(part *p, const fetch_response *r)
{
    p->status = r->status;
    if (r->status >= 400 && r->status < 500)
        return 0;
    if (r->status != 200)
        return conc_fail(-EREMOTEIO, "%s: status %d", p->service->name, r->status);
    p->data = cJSON_ParseWithLength(r->body, r->size);
    return p->data ? 0 : conc_fail(-EPROTO, "%s: the answer is not JSON", p->service->name);
}

static int call(void *arg)
{
    part *p = arg;
    orchestrator *o = p->of;
    char url[128], header[80], status[12];
    const char *headers[] = {header, NULL};
    const fetch_options request = {
        .headers = headers, .timeout = options.timeout, .limit = ANSWER_LIMIT, .redirects = -1};
    CONC_AUTO(fetch_response, r) = {0};
    span s;
    span_begin(&s, "GET", CLIENT);
    snprintf(url, sizeof url, "http://%s/%s/%d", p->service->address, p->service->name, p->user);
    snprintf(header, sizeof header, "traceparent: 00-%s-%s-01", s.trace_id, s.id);
    p->service->calls++;
    if (++o->in_flight > o->most_in_flight)
        o->most_in_flight = o->in_flight;
    int rc = fetch(&o->client, url, &request, &r);
    o->in_flight--;
    if (rc >= 0)
        rc = read_answer(p, &r);
    snprintf(status, sizeof status, "%d", r.status);
    span_set(&s, "http.response.status_code", "intValue", status);
    span_end(&s, rc);
    return rc;
}

/* Refuses with -EAGAIN, or calls fn(arg) and learns from what it returns. When the circuit has been
 * open for long enough, one call tries the service, and decides for all. */
static int breaker_call(circuit_breaker *b, conc_fn *fn, void *arg)
{
    bool trial = b->state == OPEN && conc_now() >= b->opened + options.open;
    if (b->state != CLOSED && !trial)
        return conc_fail(-EAGAIN, "the circuit is open");
    b->state = trial ? HALF_OPEN : CLOSED;
    int rc = fn(arg);
    if (!trial && b->state != CLOSED)
        return rc; /* it began before the circuit opened: old news */
    if (rc == -ECANCELED) {
        b->state = trial ? OPEN : CLOSED; /* it says nothing: the next call is the trial */
    } else if (rc >= 0) {
        b->failures = 0;
        b->state = CLOSED;
    } else if (++b->failures >= THRESHOLD) {
        b->opened = conc_now();
        b->state = OPEN;
    }
    return rc;
}

/* The pause doubles, and is random, so that callers do not come back all at the same moment. */
static int call_with_retries(part *p)
{
    double pause = 0.1;
    for (int attempt = 1;; attempt++) {
        int rc = breaker_call(&p->service->breaker, call, p);
        if (rc >= 0 && !p->data)
            return conc_fail(-ENOENT, "%s: status %d", p->service->name, p->status);
        bool final = rc >= 0 || rc == -ECANCELED || rc == -EAGAIN || attempt == ATTEMPTS;
        if (final)
            return rc;
        CONC_TRY(conc_sleep(pause * conc_random(0.5, 1)));
        pause *= 2;
    }
}

/* ---- a dashboard: the cache, all services at once, fallbacks -------------------------------- */

static cache_slot *slot_of(part *p) { return &p->service->cache[p->user % SLOTS]; }

static bool is_cached(part *p) { return slot_of(p)->data && slot_of(p)->user == p->user; }

static void use(part *p, int source, cJSON *data)
{
    p->source = source;
    p->data = data;
}

static int look_up(void *arg)
{
    part *p = arg;
    cache_slot *slot = slot_of(p);
    CONC_LOCKED(&slot->lock) /* a second request for this user waits, and finds the answer */
    {
        if (is_cached(p) && conc_now() < slot->expires) {
            use(p, CACHED, cJSON_Duplicate(slot->data, true));
            break;
        }
        CONC_TRY(call_with_retries(p));
        cJSON_Delete(slot->data);
        slot->user = p->user;
        slot->data = cJSON_Duplicate(p->data, true);
        slot->expires = conc_now() + options.ttl;
        p->source = LIVE;
    }
    return 0;
}

static void fall_back(part *p)
{
    if (is_cached(p))
        use(p, STALE, cJSON_Duplicate(slot_of(p)->data, true));
    else
        use(p, FALLBACK, cJSON_Parse(catalogue[p->service->index].fallback));
}

static int get_part(void *arg)
{
    part *p = arg;
    span s;
    span_begin(&s, p->service->name, INTERNAL);
    int rc = conc_local_set(&current_span, &s);
    if (rc >= 0)
        rc = conc_timeout(options.deadline, look_up, p);
    if (rc < 0 && rc != -ECANCELED)
        fall_back(p);
    span_set(&s, "dashboard.source", "stringValue", source_names[p->source]);
    span_end(&s, rc);
    return rc;
}

static int ask_services(conc_call *calls, bool at_once)
{
    if (at_once)
        return conc_gather_all(calls, SERVICES); /* an error of one does not cancel the others */
    int rc = 0;
    for (int i = 0; i < SERVICES && rc >= 0; i++) {
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "\r%d of %d\r", i + 1, SERVICES);
        rc = conc_gather_all(&calls[i], 1);
    }
    return rc;
}

static cJSON *dashboard_json(const span *root, int user, const part *parts, const conc_call *calls)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "user", user);
    cJSON_AddStringToObject(json, "traceId", root->trace_id);
    for (int i = 0; i < SERVICES; i++) {
        cJSON *item = cJSON_AddObjectToObject(json, parts[i].service->name);
        cJSON_AddStringToObject(item, "source", source_names[parts[i].source]);
        if (calls[i].result < 0)
            cJSON_AddStringToObject(item, "why", calls[i].text);
        cJSON_AddItemToObject(item, "data", parts[i].data);
    }
    return json;
}

/* 0, and the dashboard in *json, whatever services fail. Errors: -ECANCELED, -ENOMEM. */
static int get_dashboard(orchestrator *o, int user, const char *traceparent, bool at_once,
                         cJSON **json)
{
    part parts[SERVICES] = {0};
    conc_call calls[SERVICES] = {0};
    span root;
    for (int i = 0; i < SERVICES; i++) {
        parts[i] = (part){.of = o, .service = &o->services[i], .user = user};
        calls[i] = (conc_call)CONC_CALL(get_part, &parts[i]);
    }
    CONC_TRY(root_begin(&root, "dashboard", traceparent));
    int rc = ask_services(calls, at_once);
    span_end(&root, rc);
    *json = dashboard_json(&root, user, parts, calls);
    export_spans(&root, "orchestrator");
    if (rc < 0) {
        cJSON_Delete(*json);
        *json = NULL;
    }
    return rc;
}

/* ---- tracing: W3C trace context in, OpenTelemetry JSON out ---------------------------------- */

static int64_t unix_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void random_hex(char *out, size_t bytes)
{
    unsigned char raw[16] = {0};
    while (getrandom(raw, bytes, 0) != (ssize_t)bytes)
        continue;
    for (size_t i = 0; i < bytes; i++)
        sprintf(out + 2 * i, "%02x", raw[i]);
}

/* 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01: version, trace, span, flags */
static bool parse_traceparent(const char *text, span *s)
{
    static const char hex[] = "0123456789abcdef";
    if (!text || strlen(text) != 55 || strncmp(text, "00-", 3) != 0)
        return false;
    const char *trace = text + 3, *parent = text + 36, *flags = text + 53;
    bool is_hex = strspn(trace, hex) == 32 && strspn(parent, hex) == 16 && strspn(flags, hex) == 2;
    bool is_zero = strspn(trace, "0") >= 32 || strspn(parent, "0") >= 16;
    if (!is_hex || is_zero || trace[32] != '-' || parent[16] != '-')
        return false;
    memcpy(s->trace_id, trace, 32);
    memcpy(s->parent_id, parent, 16);
    return true;
}

/* Continues the caller's trace, or begins one if there is no valid header. */
static int root_begin(span *s, const char *name, const char *traceparent)
{
    *s = (span){.root = s, .name = name, .kind = SERVER, .start = unix_time()};
    CONC_TRY(conc_local_set(&current_span, s));
    if (!parse_traceparent(traceparent, s))
        random_hex(s->trace_id, 16);
    random_hex(s->id, 8);
    s->attributes = cJSON_CreateArray();
    s->finished = cJSON_CreateArray();
    return 0;
}

/* A child of the task's span. */
static void span_begin(span *s, const char *name, int kind)
{
    const span *parent = conc_local_get(&current_span);
    *s = (span){.root = parent->root, .name = name, .kind = kind, .start = unix_time()};
    memcpy(s->trace_id, parent->trace_id, sizeof s->trace_id);
    memcpy(s->parent_id, parent->id, sizeof s->parent_id);
    random_hex(s->id, 8);
    s->attributes = cJSON_CreateArray();
}

static cJSON *attribute(const char *key, const char *type, const char *value)
{
    cJSON *item = cJSON_CreateObject();
    cJSON_AddStringToObject(item, "key", key);
    cJSON_AddStringToObject(cJSON_AddObjectToObject(item, "value"), type, value);
    return item;
}

static void span_set(span *s, const char *key, const char *type, const char *value)
{
    cJSON_AddItemToArray(s->attributes, attribute(key, type, value));
}

static void add_time(cJSON *item, const char *name, int64_t time)
{
    char text[24]; /* 64-bit numbers are strings in JSON: a double would round them */
    snprintf(text, sizeof text, "%lld", (long long)time);
    cJSON_AddStringToObject(item, name, text);
}

static void span_end(span *s, int rc)
{
    cJSON *item = cJSON_CreateObject();
    cJSON_AddStringToObject(item, "traceId", s->trace_id);
    cJSON_AddStringToObject(item, "spanId", s->id);
    if (s->parent_id[0])
        cJSON_AddStringToObject(item, "parentSpanId", s->parent_id);
    cJSON_AddStringToObject(item, "name", s->name);
    cJSON_AddNumberToObject(item, "kind", s->kind);
    add_time(item, "startTimeUnixNano", s->start);
    add_time(item, "endTimeUnixNano", unix_time());
    cJSON_AddItemToObject(item, "attributes", s->attributes);
    cJSON *status = cJSON_AddObjectToObject(item, "status");
    if (rc < 0) {
        cJSON_AddNumberToObject(status, "code", 2);
        cJSON_AddStringToObject(status, "message", conc_strerror(rc));
    }
    cJSON_AddItemToArray(s->root->finished, item);
}

static int append_line(void *arg)
{
    char *line = arg;
    return conc_file_append(options.trace, line, strlen(line));
}

/* Writes what hangs on the root as one line, so that processes can share the file. Without a trace
 * the service is still of use: an error is reported once, and nothing else fails. */
static int export_spans(span *root, const char *process)
{
    static bool reported;
    cJSON *all = cJSON_CreateObject(), *resource = cJSON_CreateObject();
    cJSON_AddItemToArray(cJSON_AddArrayToObject(all, "resourceSpans"), resource);
    cJSON *about = cJSON_AddObjectToObject(resource, "resource");
    cJSON_AddItemToArray(cJSON_AddArrayToObject(about, "attributes"),
                         attribute("service.name", "stringValue", process));
    cJSON *scope = cJSON_CreateObject();
    cJSON_AddItemToArray(cJSON_AddArrayToObject(resource, "scopeSpans"), scope);
    cJSON_AddStringToObject(cJSON_AddObjectToObject(scope, "scope"), "name", "conc");
    cJSON_AddItemToObject(scope, "spans", root->finished);
    char *text = cJSON_PrintUnformatted(all);
    size_t size = text ? strlen(text) + 3 : 0;
    char *line = malloc(size);
    int rc = text && line ? 0 : -ENOMEM;
    /* after an error a part of a line may be in the file: end that first */
    if (rc == 0) {
        snprintf(line, size, "%s%s\n", reported ? "\n" : "", text);
        rc = conc_shield(2, append_line, line);
    }
    if (rc < 0 && !reported)
        fprintf(stderr, "%s: no trace: %s\n", process, conc_last_error());
    reported = reported || rc < 0;
    cJSON_Delete(all);
    free(text);
    free(line);
    return rc;
}

/* ---- a service: a process that takes its time ----------------------------------------------- */

static int answer_service(http_connection *http, void *arg)
{
    int index = *(int *)arg, user = 0, end = 0;
    char format[32];
    span s;
    CONC_TRY(root_begin(&s, http->method, http_header(http, "traceparent")));
    snprintf(format, sizeof format, "/%s/%%9d%%n", catalogue[index].name);
    bool found = sscanf(http->path, format, &user, &end) == 1 && !http->path[end] && user >= 0;
    int rc = conc_sleep(options.delay);
    span_end(&s, rc);
    export_spans(&s, catalogue[index].name);
    if (rc < 0)
        return rc;
    if (!found)
        return http_printf(http, 404, "There is nothing at %s\n", http->path);
    CONC_TRY(http_set_header(http, "Content-Type", "application/json"));
    return http_printf(http, 200, "{\"user\": %d, \"items\": %s}\n", user, catalogue[index].items);
}

typedef struct {
    const char *what;
    int (*answer)(http_connection *http, void *arg);
    void *arg;
    double grace; /* for answers that have begun, when the server is stopped */
} site;

static int connection(int fd, void *arg)
{
    site *s = arg;
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream, .answer_timeout = s->grace};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, s->answer, s->arg);
}

static int serve(const char *address, site *s)
{
    char actual[64];
    conc_server server = {.handler = connection, .arg = s, .limit = CONNECTIONS};
    server.fd = CONC_TRY(conc_listen(address));
    CONC_TRY(conc_address(server.fd, false, actual, sizeof actual));
    printf("%s listens on %s\n", s->what, actual);
    fflush(stdout);
    return conc_serve(&server);
}

typedef struct {
    int index;
    const char *address;
    bool is_child; /* it ends when its input does: its parent has ended, however that happened */
} service_job;

static int run_service(void *arg)
{
    service_job *job = arg;
    site s = {catalogue[job->index].name, answer_service, &job->index, 0};
    return serve(job->address, &s);
}

static int service_app(void *arg)
{
    service_job *job = arg;
    char byte;
    conc_group g = {0};
    if (!job->is_child)
        return run_service(job);
    CONC_TRY_IN(&g, conc_spawn(&g, run_service, job));
    while (CONC_TRY_IN(&g, conc_read(0, &byte, 1)) > 0)
        continue;
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

/* ---- starting and stopping the services ----------------------------------------------------- */

static int start_service(service *s)
{
    char delay[32], trace[512], line[128] = "";
    const char *address = s->address[0] ? s->address : "127.0.0.1:0";
    const char *argv[] = {"/proc/self/exe", "--child", s->name, address, delay, trace, NULL};
    snprintf(delay, sizeof delay, "delay=%g", options.delay);
    snprintf(trace, sizeof trace, "trace=%s", options.trace);
    s->process = (conc_child){
        .argv = argv, .input = CONC_PIPE, .output = CONC_PIPE, .group = true, .grace = 1};
    CONC_TRY(conc_child_start(&s->process));
    CONC_TRY(conc_read(s->process.output, line, sizeof line - 1)); /* it is written at once */
    const char *last = strrchr(line, ' ');
    if (!last)
        return conc_fail(-ECHILD, "the service %s does not start", s->name);
    snprintf(s->address, sizeof s->address, "%.*s", (int)strcspn(last + 1, "\n"), last + 1);
    return 0;
}

/* The services are near: no proxy. */
static void go_straight(CURL *curl, void *arg)
{
    (void)arg;
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
}

static int orchestrator_open(orchestrator *o)
{
    o->client.configure = go_straight;
    o->client.per_host = CONNECTIONS;
    o->client.connections = SERVICES * CONNECTIONS;
    for (int i = 0; i < SERVICES; i++) {
        service *s = &o->services[i];
        s->name = catalogue[i].name;
        s->index = i;
        if (options.address[i])
            snprintf(s->address, sizeof s->address, "%s", options.address[i]);
        else
            CONC_TRY(start_service(s));
    }
    return 0;
}

static int orchestrator_close(orchestrator *o)
{
    fetch_close(&o->client);
    for (int i = 0; i < SERVICES; i++) {
        conc_child_close(&o->services[i].process);
        for (int j = 0; j < SLOTS; j++)
            cJSON_Delete(o->services[i].cache[j].data);
    }
    return 0;
}

CONC_AUTO_TYPE(orchestrator, orchestrator_close);

static int count_calls(const orchestrator *o)
{
    int calls = 0;
    for (int i = 0; i < SERVICES; i++)
        calls += o->services[i].calls;
    return calls;
}

/* ---- the chart: a line for each span of a trace, over time ---------------------------------- */

enum { COLUMNS = 44, DEEPEST = 8 };

static const char *text_of(const cJSON *item, const char *name)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(item, name));
    return text ? text : "";
}

static double time_of(const cJSON *span, const char *name) { return atof(text_of(span, name)); }

static const cJSON *first_of(const cJSON *item, const char *name)
{
    return cJSON_GetArrayItem(cJSON_GetObjectItem(item, name), 0);
}

/* Adds the spans of a line of the file; a line that was cut short has none. */
static void add_line(cJSON *spans, const char *line)
{
    cJSON *json = cJSON_Parse(line), *span;
    const cJSON *resource = first_of(json, "resourceSpans");
    const cJSON *name = first_of(cJSON_GetObjectItem(resource, "resource"), "attributes");
    const char *process = text_of(cJSON_GetObjectItem(name, "value"), "stringValue");
    cJSON *found = cJSON_GetObjectItem(first_of(resource, "scopeSpans"), "spans");
    while ((span = cJSON_DetachItemFromArray(found, 0))) {
        cJSON_AddStringToObject(span, "process", process);
        cJSON_AddItemToArray(spans, span);
    }
    cJSON_Delete(json);
}

static void draw_span(const cJSON *span, const cJSON *root, int depth)
{
    char bar[COLUMNS + 1] = "", label[64];
    double start = time_of(span, "startTimeUnixNano"), end = time_of(span, "endTimeUnixNano");
    double origin = time_of(root, "startTimeUnixNano");
    double column = (time_of(root, "endTimeUnixNano") - origin) / COLUMNS;
    bool failed = cJSON_GetObjectItem(cJSON_GetObjectItem(span, "status"), "code");
    for (int i = 0; i < COLUMNS; i++) {
        bool is_in = start < origin + (i + 1) * column && end > origin + i * column;
        bar[i] = ' ';
        if (is_in)
            bar[i] = failed ? '!' : '#';
    }
    snprintf(label, sizeof label, "%*s%s: %s", 2 * depth, "", text_of(span, "process"),
             text_of(span, "name"));
    printf("%-29.29s |%s| %7.1f ms\n", label, bar, (end - start) / 1e6);
}

/* The span, and what hangs on it. */
static void draw_tree(const cJSON *spans, const cJSON *span, const cJSON *root, int depth)
{
    const cJSON *child;
    draw_span(span, root, depth);
    cJSON_ArrayForEach(child, spans)
    {
        bool is_child = strcmp(text_of(child, "parentSpanId"), text_of(span, "spanId")) == 0;
        if (is_child && depth < DEEPEST)
            draw_tree(spans, child, root, depth + 1);
    }
}

/* trace_id NULL: the last dashboard in the file. */
static int draw_trace(const char *path, const char *trace_id)
{
    cJSON *spans = cJSON_CreateArray();
    const cJSON *span, *root = NULL;
    char *line = NULL;
    size_t room = 0;
    FILE *file = fopen(path, "r");
    while (file && getline(&line, &room, file) > 0)
        add_line(spans, line);
    int rc = file ? -ENODATA : -errno;
    cJSON_ArrayForEach(span, spans)
    {
        bool is_wanted = !trace_id || strcmp(text_of(span, "traceId"), trace_id) == 0;
        if (is_wanted && strcmp(text_of(span, "name"), "dashboard") == 0)
            root = span;
    }
    if (root) {
        printf("Trace %s\n", text_of(root, "traceId"));
        draw_tree(spans, root, root, 0);
        rc = 0;
    }
    free(line);
    if (file)
        fclose(file);
    cJSON_Delete(spans);
    return rc;
}

/* ---- the gateway: dashboards over HTTP ------------------------------------------------------ */

static int answer_json(http_connection *http, cJSON *json)
{
    char *text = cJSON_Print(json);
    cJSON_Delete(json);
    int rc = http_set_header(http, "Content-Type", "application/json");
    if (rc >= 0)
        rc = http_printf(http, 200, "%s\n", text);
    free(text);
    return rc;
}

static cJSON *health_json(const orchestrator *o)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "mostInFlight", o->most_in_flight);
    for (int i = 0; i < SERVICES; i++) {
        const service *s = &o->services[i];
        cJSON *item = cJSON_AddObjectToObject(json, s->name);
        cJSON_AddStringToObject(item, "circuit", state_names[s->breaker.state]);
        cJSON_AddStringToObject(item, "address", s->address);
        cJSON_AddNumberToObject(item, "calls", s->calls);
    }
    return json;
}

static int answer_gateway(http_connection *http, void *arg)
{
    orchestrator *o = arg;
    int user = 0, end = 0;
    cJSON *json = NULL;
    if (strcmp(http->method, "GET") != 0)
        return http_printf(http, 405, "GET only\n");
    if (strcmp(http->path, "/health") == 0)
        return answer_json(http, health_json(o));
    bool valid = sscanf(http->path, "/dashboard/%9d%n", &user, &end) == 1 && !http->path[end];
    if (!valid || user < 0)
        return http_printf(http, 404, "There are /dashboard/USER and /health\n");
    CONC_TRY(get_dashboard(o, user, http_header(http, "traceparent"), true, &json));
    return answer_json(http, json);
}

static int gateway_app(void *address)
{
    CONC_AUTO(orchestrator, o) = {0};
    site s = {"gateway", answer_gateway, &o, options.deadline + 1};
    CONC_TRY(orchestrator_open(&o));
    return serve(address, &s);
}

/* ---- what it shows by itself ---------------------------------------------------------------- */

static int show(orchestrator *o, int user, char *trace_id)
{
    cJSON *json = NULL;
    int before = count_calls(o);
    CONC_TRY(get_dashboard(o, user, NULL, true, &json));
    printf("\nUser %d: %d calls\n", user, count_calls(o) - before);
    for (int i = 0; i < SERVICES; i++) {
        const service *s = &o->services[i];
        const cJSON *item = cJSON_GetObjectItem(json, s->name);
        char *data = cJSON_PrintUnformatted(cJSON_GetObjectItem(item, "data"));
        printf("  %-15s %-8s %-9s %s\n", s->name, text_of(item, "source"),
               state_names[s->breaker.state], data);
        free(data);
    }
    if (trace_id)
        snprintf(trace_id, 33, "%s", text_of(json, "traceId"));
    cJSON_Delete(json);
    fflush(stdout);
    return 0;
}

static int demo(void *arg)
{
    char first[33], failed[33];
    CONC_AUTO(orchestrator, o) = {0};
    (void)arg;
    CONC_TRY(orchestrator_open(&o));
    service *orders = &o.services[1];
    printf("A part of the dashboard, where it is from, the circuit of its service, the data\n");
    CONC_TRY(show(&o, 1, first));
    CONC_TRY(show(&o, 1, NULL));
    printf(
        "\nThe service orders is killed. Calls are tried %d times; %d failures open the circuit\n",
        ATTEMPTS, THRESHOLD);
    CONC_TRY(conc_child_kill(&orders->process, SIGKILL));
    CONC_TRY(conc_child_close(&orders->process));
    CONC_TRY(show(&o, 2, failed));
    CONC_TRY(show(&o, 3, NULL));
    CONC_TRY(show(&o, 4, NULL));
    printf("\nIt is started again. Once the circuit is half open, one call tries it\n");
    CONC_TRY(start_service(orders));
    CONC_TRY(conc_sleep_until(orders->breaker.opened + options.open));
    CONC_TRY(show(&o, 5, NULL));
    printf("\nThe first request, and that with the failures: # ok, ! failed\n\n");
    CONC_TRY(draw_trace(options.trace, first));
    printf("\n");
    return draw_trace(options.trace, failed);
}

/* ---- the goal ------------------------------------------------------------------------------- */

static int measure(orchestrator *o, int user, bool at_once, double *seconds)
{
    cJSON *json = NULL;
    double start = conc_now();
    o->most_in_flight = 0;
    CONC_TRY(get_dashboard(o, user, NULL, at_once, &json));
    cJSON_Delete(json);
    *seconds = conc_now() - start;
    return 0;
}

static int goal(void *arg)
{
    CONC_AUTO(orchestrator, o) = {0};
    double sequence, at_once, cached;
    (void)arg;
    CONC_TRY(orchestrator_open(&o));
    printf("Four services, %.3f s each\n", options.delay);
    fflush(stdout);
    CONC_TRY(measure(&o, 1, false, &sequence));
    int calls = count_calls(&o);
    bool right = calls == SERVICES && o.most_in_flight == 1;
    printf("in sequence  %.3f s, %d calls, %d at once\n", sequence, calls, o.most_in_flight);
    fflush(stdout);
    CONC_TRY(measure(&o, 2, true, &at_once));
    calls = count_calls(&o) - SERVICES;
    right = right && calls == SERVICES && o.most_in_flight == SERVICES;
    printf("at once      %.3f s, %d calls, %d at once (goal: %.3f s)\n", at_once, calls,
           o.most_in_flight, options.delay);
    CONC_TRY(measure(&o, 2, true, &cached));
    calls = count_calls(&o) - 2 * SERVICES;
    printf("cached       %.3f s, %d calls\n", cached, calls);
    right = right && calls == 0;
    return right ? 0 : conc_fail(-EPROTO, "the counts are wrong");
}

/* ---- main ----------------------------------------------------------------------------------- */

static int find_service(const char *name)
{
    for (int i = 0; i < SERVICES; i++)
        if (strcmp(catalogue[i].name, name) == 0)
            return i;
    return -1;
}

/* Cuts name=value in two: false if there is no such option. */
static bool set_option(char *name)
{
    char *value = strchr(name, '='), *end = NULL;
    *value++ = 0;
    double seconds = strtod(value, &end),
           *times[] = {&options.delay, &options.timeout, &options.deadline, &options.ttl,
                       &options.open};
    static const char *const names[] = {"delay", "timeout", "deadline", "ttl", "open"};
    int index = find_service(name);
    if (index >= 0)
        options.address[index] = value;
    if (strcmp(name, "trace") == 0)
        options.trace = value;
    if (index >= 0 || strcmp(name, "trace") == 0)
        return true;
    bool valid = *value && !*end && seconds >= 0 && seconds <= 1e6;
    for (size_t i = 0; valid && i < CONC_LEN(names); i++)
        if (strcmp(name, names[i]) == 0) {
            *times[i] = seconds;
            return true;
        }
    return false;
}

static int draw(const char *path, const char *trace_id)
{
    int rc = draw_trace(path, trace_id);
    if (rc < 0)
        fprintf(stderr, "%s: %s\n", path,
                rc == -ENODATA ? "there is no such trace" : conc_strerror(rc));
    return rc < 0;
}

static int run(int count, char **words)
{
    const char *command = count ? words[0] : "";
    service_job job = {.is_child = strcmp(command, "--child") == 0};
    if (count == 0)
        return conc_main(demo, NULL);
    if (count == 1 && strcmp(command, "--goal") == 0)
        return conc_main(goal, NULL);
    if (count == 2 && strcmp(command, "--gateway") == 0)
        return conc_main(gateway_app, words[1]);
    if (count > 1 && count < 4 && strcmp(command, "--chart") == 0)
        return draw(words[1], count == 3 ? words[2] : NULL);
    if (count == 3 && (job.is_child || strcmp(command, "--service") == 0)) {
        job.index = find_service(words[1]);
        job.address = words[2];
        if (job.index >= 0)
            return conc_main(service_app, &job);
    }
    fprintf(stderr, "orchestrator: bad arguments: the program's first lines say what there is\n");
    return 2;
}

int main(int argc, char **argv)
{
    int count = 0;
    for (int i = 1; i < argc; i++) {
        bool is_option = argv[i][0] != '-' && strchr(argv[i], '=');
        if (!is_option || !set_option(argv[i]))
            argv[count++] = argv[i]; /* any other argument belongs to the command */
    }
    return run(count, argv);
}
