/* closed_windows.h - keeps the newest closed windows of windows.h with their figures; also as JSON
 *
 *     static closed_windows newest; // .closed of windows.h calls:
 *     closed_window *c = closed_windows_add(&newest, window);
 *     printf("%s: %g\n", c->key, c->figures[FIGURE_P95]);
 *     ...
 *     cJSON_AddItemToObject(json, "rows", closed_windows_json(&newest, 100));
 *
 * A revised window replaces those of its key within its span. Compile with -lcjson. */
#ifndef CLOSED_WINDOWS_H
#define CLOSED_WINDOWS_H

#include "json.h"
#include "windows.h"

#include <stdio.h>

typedef enum {
    FIGURE_COUNT,
    FIGURE_SUM,
    FIGURE_MIN,
    FIGURE_MAX,
    FIGURE_MEAN,
    FIGURE_P50,
    FIGURE_P95,
    FIGURE_P99,
    FIGURE_DISTINCT,
    FIGURES
} figure;
static const char *const figure_names[] = {"count", "sum", "min", "max",     "mean",
                                           "p50",   "p95", "p99", "distinct"};

enum { CLOSED_WINDOWS = 600 }; /* windows kept */

typedef struct closed_window {
    char key[48]; /* "": it was replaced */
    double start, end, figures[FIGURES];
    bool revised;
} closed_window;

typedef struct closed_windows {
    uint64_t count;                     /* of all windows so far */
    closed_window rows[CLOSED_WINDOWS]; /* a ring */
} closed_windows;

/* Returns the figure with this name; FIGURES: none. */
static inline figure figure_find(const char *name);

/* Adds a window that closes. */
static inline closed_window *closed_windows_add(closed_windows *c, const window *w);

/* Returns an array of the newest n. */
static inline cJSON *closed_windows_json(const closed_windows *c, uint64_t n);

/* ---- implementation ------------------------------------------------------------------------- */

static inline figure figure_find(const char *name)
{
    int i = 0;
    while (i < FIGURES && strcmp(name, figure_names[i]) != 0)
        i++;
    return i;
}

/* Returns the row for the window. */
static inline closed_window *closed_windows__place(closed_windows *c, const window *w)
{
    closed_window *found = NULL;
    for (size_t i = 0; w->revised && i < CLOSED_WINDOWS; i++) {
        closed_window *r = &c->rows[i];
        bool replaced = strcmp(r->key, w->key) == 0 && w->start <= r->start && r->end <= w->end;
        if (replaced && found)
            r->key[0] = 0;
        else if (replaced)
            found = r;
    }
    return found ? found : &c->rows[c->count++ % CLOSED_WINDOWS];
}

static inline closed_window *closed_windows_add(closed_windows *c, const window *w)
{
    closed_window *r = closed_windows__place(c, w);
    const summary *v = &w->values;
    *r = (closed_window){.start = w->start,
                         .end = w->end,
                         .revised = w->revised,
                         .figures = {(double)v->count, v->sum, v->min, v->max,
                                     v->sum / (double)v->count, summary_percentile(v, 50),
                                     summary_percentile(v, 95), summary_percentile(v, 99),
                                     distinct_count(&w->items)}};
    snprintf(r->key, sizeof r->key, "%s", w->key);
    return r;
}

static inline cJSON *closed_windows__row(const closed_window *r)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "key", r->key);
    JSON_ADD(json, {"start", r->start}, {"end", r->end});
    cJSON_AddBoolToObject(json, "revised", r->revised);
    cJSON_AddItemToObject(json, "figures", cJSON_CreateDoubleArray(r->figures, FIGURES));
    return json;
}

static inline cJSON *closed_windows_json(const closed_windows *c, uint64_t n)
{
    cJSON *json = cJSON_CreateArray();
    for (uint64_t i = c->count > n ? c->count - n : 0; i < c->count; i++)
        if (c->rows[i % CLOSED_WINDOWS].key[0])
            cJSON_AddItemToArray(json, closed_windows__row(&c->rows[i % CLOSED_WINDOWS]));
    return json;
}

#endif
