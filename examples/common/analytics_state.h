/* analytics_state.h - the state that the analytics show: sources, closed windows and alerts
 *
 *     char *text = analytics_json(&state, now, watermark); // for the page; free it
 *     analytics_print_window(SLIDING, closed);             // a line on stdout
 *     analytics_print_summary(&state);
 *
 * Include conc.h before. Compile with -lcjson -lm. */
#ifndef ANALYTICS_STATE_H
#define ANALYTICS_STATE_H

#include "alert.h"
#include "closed_windows.h"

enum { ANALYTICS_ALERTS = 8, ANALYTICS_PAST = 30 /* cleared alerts kept */ };

typedef enum { TCP, UDP, WEBSOCKET, TRANSPORTS } transport_kind;
typedef enum { TUMBLING, SLIDING, SESSION, KINDS } window_kind;
static const char *const transport_names[] = {"tcp", "udp", "websocket"};
static const char *const kind_names[] = {"tumbling", "sliding", "session"};

typedef struct {
    char address[64];
    double connections, opened, events, malformed, ahead, before; /* counts */
    uint64_t dropped;                                             /* packets */
    double rate, held; /* events per second; seconds that the full queue delayed sources */
} transport;

typedef struct {
    struct analytics_state *of;
    window_kind kind;
    windows windows;
    closed_windows closed;
    double total; /* events in them */
} window_operator;

typedef struct analytics_state {
    transport transports[TRANSPORTS];
    window_operator operators[KINDS];
    /* past: a ring of copies, each made when the alert cleared */
    alert alerts[ANALYTICS_ALERTS], past[ANALYTICS_PAST];
    uint64_t past_count;
} analytics_state;

static inline cJSON *analytics__transport(const transport *t, const char *name)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "name", name);
    cJSON_AddStringToObject(json, "address", t->address);
    JSON_ADD(json, {"connections", t->connections}, {"events", t->events}, {"rate", t->rate},
             {"malformed", t->malformed}, {"ahead", t->ahead}, {"dropped", (double)t->dropped},
             {"held", t->held});
    return json;
}

static inline cJSON *analytics__operator(const window_operator *o)
{
    const windows *w = &o->windows;
    uint64_t shown = o->kind == SLIDING ? CLOSED_WINDOWS : 100; /* the page charts these */
    cJSON *json = cJSON_CreateObject();
    JSON_ADD(json, {"size", w->size}, {"slide", w->slide}, {"gap", w->gap},
             {"late", (double)w->late}, {"tooLate", (double)w->too_late},
             {"refused", (double)w->refused});
    cJSON_AddItemToObject(json, "rows", closed_windows_json(&o->closed, shown));
    return json;
}

static inline cJSON *analytics__alert(const alert *a)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "series", a->key);
    cJSON_AddStringToObject(json, "figure", a->figure);
    cJSON_AddBoolToObject(json, "firing", a->firing);
    JSON_ADD(json, {"above", a->above}, {"below", a->below}, {"since", a->since},
             {"until", a->until}, {"peak", a->peak});
    return json;
}

static inline char *analytics_json(const analytics_state *s, double now, double watermark)
{
    uint64_t first = s->past_count > ANALYTICS_PAST ? s->past_count - ANALYTICS_PAST : 0;
    cJSON *json = cJSON_CreateObject();
    JSON_ADD(json, {"now", now}, {"watermark", watermark});
    cJSON_AddItemToObject(json, "figures", cJSON_CreateStringArray(figure_names, FIGURES));
    cJSON *transports = cJSON_AddArrayToObject(json, "transports");
    for (int i = 0; i < TRANSPORTS; i++)
        cJSON_AddItemToArray(transports,
                             analytics__transport(&s->transports[i], transport_names[i]));
    for (int i = 0; i < KINDS; i++)
        cJSON_AddItemToObject(json, kind_names[i], analytics__operator(&s->operators[i]));
    cJSON *alerts = cJSON_AddArrayToObject(json, "alerts");
    for (int i = 0; i < ANALYTICS_ALERTS && s->alerts[i].key[0]; i++)
        cJSON_AddItemToArray(alerts, analytics__alert(&s->alerts[i]));
    cJSON *past = cJSON_AddArrayToObject(json, "past");
    for (uint64_t i = first; i < s->past_count; i++)
        cJSON_AddItemToArray(past, analytics__alert(&s->past[i % ANALYTICS_PAST]));
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}

static inline void analytics_print_window(window_kind kind, const closed_window *w)
{
    printf("%s %s %.3f %.3f", kind_names[kind], w->key, w->start, w->end);
    for (int i = 0; i < FIGURES; i++)
        printf(" %s %.10g", figure_names[i], w->figures[i]);
    printf("%s\n", w->revised ? " revised" : "");
}

static inline void analytics_print_summary(const analytics_state *s)
{
    for (int i = 0; i < TRANSPORTS; i++) {
        const transport *t = &s->transports[i];
        printf("%s: %.0f sources, %.0f events, %.0f malformed, %.0f ahead, %.0f packets dropped\n",
               transport_names[i], t->opened, t->events, t->malformed, t->ahead,
               (double)t->dropped);
    }
    for (int i = 0; i < KINDS; i++) {
        const windows *w = &s->operators[i].windows;
        printf("%s: %.0f windows; events: %.0f late, %.0f too late, %.0f refused\n", kind_names[i],
               (double)s->operators[i].closed.count, (double)w->late, (double)w->too_late,
               (double)w->refused);
    }
}

/* Reads rules: "SERIES FIGURE ABOVE BELOW, ...". Returns 0 or -EINVAL. */
static inline int analytics_read_alerts(analytics_state *s, const char *text)
{
    char rules[1024], *rest;
    snprintf(rules, sizeof rules, "%s", text);
    char *rule = strtok_r(rules, ",", &rest);
    for (int i = 0; rule; rule = strtok_r(NULL, ",", &rest), i++) {
        if (i == ANALYTICS_ALERTS)
            return conc_fail(-EINVAL, "--alerts: more than %d", ANALYTICS_ALERTS);
        alert *a = &s->alerts[i];
        if (!alert_read(rule, a) || figure_find(a->figure) == FIGURES)
            return conc_fail(-EINVAL, "--alerts: \"%s\" is not: SERIES FIGURE ABOVE BELOW", rule);
    }
    return 0;
}

/* Checks that each of the events is in all of its windows, of which `overlap` are sliding ones, or
 * was counted as too late. */
static inline bool analytics_check_totals(const analytics_state *s, double events, double overlap)
{
    const double expected[] = {events, events * overlap, events};
    bool is_right = s->transports[TCP].events == events;
    for (int i = 0; i < KINDS; i++) {
        const window_operator *o = &s->operators[i];
        double late = (double)o->windows.too_late;
        printf("%s: %.0f events counted in windows, %.0f too late; %.0f expected\n", kind_names[i],
               o->total, late, expected[i]);
        is_right = is_right && o->total + late == expected[i];
    }
    return is_right;
}

#endif
