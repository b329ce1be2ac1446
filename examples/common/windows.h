/* windows.h - event-time windows over a stream of events: tumbling, sliding, session
 *
 *     #include "windows.h"
 *
 *     static void print(const window *w, void *arg)
 *     {
 *         (void)arg;
 *         printf("%s %.0f to %.0f: the 95th percentile is %.1f, %.0f users\n", w->key, w->start,
 *                w->end, summary_percentile(&w->values, 95), distinct_count(&w->items));
 *     }
 *
 *     windows minute = {.size = 60, .lateness = 10, .closed = print};
 *
 *     windows_advance(&minute, mark); // the watermark: see watermark.h
 *     windows_add(&minute, "login", time, milliseconds, user);
 *     ...
 *     windows_close(&minute);
 *
 * Compile with -lm. It does not need conc, never waits, and belongs to one thread. Times are in
 * seconds, stored in microseconds; the end is not part of the window.
 *
 * Windows. A tumbling window has .size. A sliding window has .size and .slide: one begins at each
 *   multiple of slide, and an event is in size / slide of them. A session has .gap: it contains
 *   events of one key that are less than gap apart, and lasts from the first event to the last plus
 *   gap. Each key has its own windows, and a window without events does not exist.
 * Closing. When the watermark reaches a window's end, the window is closed: .closed is called.
 *   Until the watermark reaches its end plus .lateness, late events may still be added. If any
 *   were, .closed is then called once more, with `revised` true. If late events extend a session
 *   beyond the watermark, or join it to another, it reopens, and closes again with `revised` true:
 *   it replaces the sessions of its key within its span.
 * Late events. `late` counts the events that were added to a closed window. `too_late` counts lost
 *   ones, which arrived after their window's lateness; with sliding windows, an event counts once
 *   for each expired window. So the sum of count over all final windows, plus too_late, is the
 *   number of events times the windows per event.
 * Memory. Whatever the number of events, a window takes about 4 KiB for values that differ by a
 *   factor of 1000, 18 KiB for any values, and 4 KiB more if it has more than 64 items. `max_keys`
 *   limits the keys. The watermark limits the windows of a key: let it follow the clock.
 */
#ifndef WINDOWS_H
#define WINDOWS_H

#include "distinct.h"
#include "summary.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    WINDOWS__BUCKETS = 4096,
    WINDOWS__OVERLAPS = 10000 /* maximum number of windows per event */
};
#define WINDOWS_LARGEST 1e12 /* magnitude of a value or a time */

/* A window, valid until .closed returns. */
typedef struct window {
    const char *key;
    double start, end;
    summary values;
    distinct items;
    bool revised; /* it has changed since it was closed before */
    /* private */
    int64_t start_us, end_us;
    bool emitted, changed; /* changed: since it was emitted */
} window;

typedef struct windows__key windows__key;

typedef struct windows {
    /* Options, to be set before the first call */
    double size, slide; /* slide 0: equals size, so the windows tumble */
    double gap;         /* over 0: sessions; size and slide are not used */
    double lateness;
    size_t max_keys; /* maximum number of keys at the same time; 0: 1000 */
    void (*closed)(const window *w, void *arg);
    void *arg;

    uint64_t late, too_late; /* see above */
    uint64_t refused;        /* events of new keys while there were max_keys */

    /* private */
    int64_t mark; /* the watermark */
    bool began;
    windows__key **table, **heap; /* by name, and by the time due */
    size_t key_count;
} windows;

/* Adds an event to its windows. Returns 0, even if it is too late. item is counted in the windows'
 * distinct items; NULL: none. -EINVAL: time or value is not a number or too large, or the options
 * are invalid; -ENOSPC: max_keys; -ENOMEM: some of its windows may lack the event. */
static inline int windows_add(windows *w, const char *key, double time, double value,
                              const char *item);

/* Sets the watermark and closes the windows that end at or before it. A lower watermark than before
 * is ignored. .closed must not call these functions. INFINITY closes all open windows. */
static inline void windows_advance(windows *w, double mark);

/* Frees all windows without closing them. Harmless if repeated, or on an all-zero object. */
static inline void windows_close(windows *w);

/* ---- implementation: one window ------------------------------------------------------------- */

/* What an event adds to each of its windows. */
typedef struct window__event {
    int64_t time;
    double value;
    bool has_item;
    uint64_t item; /* its hash */
} window__event;

static inline void window__free(window *w)
{
    summary_free(&w->values);
    distinct_free(&w->items);
    free(w);
}

static inline int window__add(window *w, const window__event *e)
{
    int rc = e->has_item ? distinct_add(&w->items, e->item) : 0;
    if (rc == 0)
        rc = summary_add(&w->values, e->value);
    if (rc == 0)
        w->changed = w->emitted;
    return rc;
}

/* Merges the session `from` into another. */
static inline int window__merge(window *to, const window *from)
{
    int rc = distinct_merge(&to->items, &from->items);
    if (rc == 0)
        rc = summary_merge(&to->values, &from->values);
    to->emitted = to->emitted || from->emitted;
    to->revised = to->revised || from->revised;
    return rc;
}

static inline void window__set_span(window *w, int64_t start, int64_t end)
{
    w->start_us = start;
    w->end_us = end;
    w->start = (double)start / 1e6;
    w->end = (double)end / 1e6;
}

/* ---- implementation: keys ------------------------------------------------------------------- */

struct windows__key {
    window **all; /* by start, ascending */
    size_t count, room;
    windows__key *in_bucket; /* the next one */
    int64_t due;             /* the watermark at which something is to be done */
    size_t at;               /* its index in the heap */
    uint64_t hash;
    char name[];
};

static inline windows__key *windows__find(const windows *w, const char *name, uint64_t hash)
{
    windows__key *k = w->table[hash % WINDOWS__BUCKETS];
    while (k && (k->hash != hash || strcmp(k->name, name) != 0))
        k = k->in_bucket;
    return k;
}

/* Moves the key to its position in the binary heap. */
static inline void windows__sift(windows *w, windows__key *k)
{
    windows__key **heap = w->heap;
    size_t at = k->at, parent, child;
    for (; at > 0 && heap[parent = (at - 1) / 2]->due > k->due; at = parent) {
        heap[at] = heap[parent];
        heap[at]->at = at;
    }
    for (; (child = 2 * at + 1) < w->key_count; at = child) {
        if (child + 1 < w->key_count && heap[child + 1]->due < heap[child]->due)
            child++;
        if (heap[child]->due >= k->due)
            break;
        heap[at] = heap[child];
        heap[at]->at = at;
    }
    heap[at] = k;
    k->at = at;
}

static inline void windows__set_due(windows *w, windows__key *k, int64_t time)
{
    if (time >= k->due)
        return;
    k->due = time;
    windows__sift(w, k);
}

static inline int windows__insert(windows *w, const char *name, uint64_t hash, windows__key **out)
{
    size_t size = strlen(name) + 1;
    if (w->key_count >= w->max_keys) {
        w->refused++;
        return -ENOSPC;
    }
    windows__key *k = calloc(1, sizeof *k + size), **bucket = &w->table[hash % WINDOWS__BUCKETS];
    if (!k)
        return -ENOMEM;
    memcpy(k->name, name, size);
    k->hash = hash;
    k->due = INT64_MAX;
    k->in_bucket = *bucket;
    k->at = w->key_count++;
    w->heap[k->at] = *bucket = *out = k;
    return 0;
}

static inline void windows__remove(windows *w, windows__key *k)
{
    windows__key **link = &w->table[k->hash % WINDOWS__BUCKETS], *last = w->heap[--w->key_count];
    while (*link != k)
        link = &(*link)->in_bucket;
    *link = k->in_bucket;
    if (last != k) {
        last->at = k->at;
        windows__sift(w, last);
    }
    free(k->all);
    free(k);
}

/* Returns how many windows of the key begin at or before this time. */
static inline size_t windows__position(const windows__key *k, int64_t start)
{
    size_t n = k->count;
    while (n > 0 && k->all[n - 1]->start_us > start)
        n--;
    return n;
}

/* Finds the window that begins at start, or creates it. */
static inline int windows__get(windows__key *k, int64_t start, int64_t end, window **out)
{
    size_t at = windows__position(k, start);
    if (at > 0 && k->all[at - 1]->start_us == start) {
        *out = k->all[at - 1];
        return 0;
    }
    if (k->count == k->room) {
        size_t room = k->room ? 2 * k->room : 4;
        window **all = realloc(k->all, room * sizeof(window *));
        if (!all)
            return -ENOMEM;
        k->all = all;
        k->room = room;
    }
    window *made = calloc(1, sizeof *made);
    if (!made)
        return -ENOMEM;
    memmove(&k->all[at + 1], &k->all[at], (k->count++ - at) * sizeof(window *));
    made->key = k->name;
    window__set_span(made, start, end);
    *out = k->all[at] = made;
    return 0;
}

/* ---- implementation: adding ----------------------------------------------------------------- */

static inline int64_t windows__us(double seconds) { return (int64_t)llround(seconds * 1e6); }

static inline int64_t windows__floor(int64_t n, int64_t step)
{
    int64_t rest = n % step;
    return rest < 0 ? n - rest - step : n - rest;
}

static inline int windows__add_fixed(windows *w, windows__key *k, const window__event *e)
{
    int64_t size = windows__us(w->size), slide = w->slide > 0 ? windows__us(w->slide) : size;
    bool late = false;
    for (int64_t start = windows__floor(e->time, slide); start > e->time - size; start -= slide) {
        int64_t end = start + size, last = end + windows__us(w->lateness);
        window *into;
        if (w->began && last <= w->mark) {
            w->too_late++;
            continue;
        }
        int rc = windows__get(k, start, end, &into);
        if (rc == 0)
            rc = window__add(into, e);
        if (rc)
            return rc;
        late = late || (w->began && end <= w->mark);
        windows__set_due(w, k, into->emitted ? last : end);
    }
    w->late += late;
    return 0;
}

/* Merges the windows after index `at` that overlap the one there, which has grown. */
static inline int windows__join(windows__key *k, size_t at)
{
    window *into = k->all[at];
    while (at + 1 < k->count && k->all[at + 1]->start_us < into->end_us) {
        window *next = k->all[at + 1];
        int rc = window__merge(into, next);
        if (rc)
            return rc;
        int64_t end = next->end_us > into->end_us ? next->end_us : into->end_us;
        window__set_span(into, into->start_us, end);
        memmove(&k->all[at + 1], &k->all[at + 2], (--k->count - at - 1) * sizeof(window *));
        window__free(next);
    }
    return 0;
}

/* Returns the index of the session that contains this time, or where a new one belongs. */
static inline size_t windows__find_session(const windows__key *k, int64_t time)
{
    size_t at = windows__position(k, time);
    return at > 0 && k->all[at - 1]->end_us > time ? at - 1 : at;
}

/* Adds an event to a session. It begins a new session, extends the one before or after it, or joins
 * both. */
static inline int windows__add_session(windows *w, windows__key *k, const window__event *e)
{
    int64_t end = e->time + windows__us(w->gap), lateness = windows__us(w->lateness);
    size_t at = windows__find_session(k, e->time);
    window *into = at < k->count ? k->all[at] : NULL;
    bool is_alone = !into || into->start_us >= end;
    if (is_alone && w->began && end + lateness <= w->mark) {
        w->too_late++;
        return 0;
    }
    int rc = 0;
    if (!into || into->start_us > e->time)
        rc = windows__get(k, e->time, end, &into);
    if (rc == 0 && end > into->end_us)
        window__set_span(into, into->start_us, end);
    if (rc == 0)
        rc = windows__join(k, at);
    if (rc == 0)
        rc = window__add(into, e);
    if (rc)
        return rc;
    bool is_open = !w->began || into->end_us > w->mark;
    w->late += into->emitted || !is_open;
    if (into->emitted && is_open) { /* again */
        into->emitted = into->changed = false;
        into->revised = true;
    }
    windows__set_due(w, k, into->end_us + (into->emitted ? lateness : 0));
    return 0;
}

static inline int windows__begin(windows *w)
{
    double slide = w->slide == 0 ? w->size : w->slide;
    bool fixed = w->size >= 1e-6 && w->size <= WINDOWS_LARGEST && slide >= 1e-6 &&
                 slide <= WINDOWS_LARGEST && w->size / slide <= WINDOWS__OVERLAPS;
    bool session = w->gap >= 1e-6 && w->gap <= WINDOWS_LARGEST;
    bool valid = w->gap == 0 ? fixed : session;
    if (!valid || !(w->lateness >= 0 && w->lateness <= WINDOWS_LARGEST))
        return -EINVAL;
    w->max_keys = w->max_keys ? w->max_keys : 1000;
    if (!w->heap)
        w->heap = calloc(w->max_keys, sizeof(windows__key *));
    w->table = w->heap ? calloc(WINDOWS__BUCKETS, sizeof(windows__key *)) : NULL;
    return w->table ? 0 : -ENOMEM;
}

static inline int windows_add(windows *w, const char *key, double time, double value,
                              const char *item)
{
    int rc = w->table ? 0 : windows__begin(w);
    if (!(fabs(time) <= WINDOWS_LARGEST && fabs(value) <= WINDOWS_LARGEST))
        return -EINVAL;
    if (rc)
        return rc;
    uint64_t hash = distinct_hash(key);
    windows__key *k = windows__find(w, key, hash);
    window__event e = {.time = windows__us(time), .value = value, .has_item = item != NULL};
    if (item)
        e.item = distinct_hash(item);
    if (!k)
        rc = windows__insert(w, key, hash, &k);
    if (rc)
        return rc;
    rc = w->gap > 0 ? windows__add_session(w, k, &e) : windows__add_fixed(w, k, &e);
    if (k->count == 0) /* too late, between windows if slide > size, or out of memory */
        windows__remove(w, k);
    return rc;
}

/* ---- implementation: closing ---------------------------------------------------------------- */

static inline void windows__emit(windows *w, window *one)
{
    one->emitted = true;
    one->changed = false;
    if (w->closed && one->values.count) /* 0: no memory for its event */
        w->closed(one, w->arg);
}

/* Closes the windows of this key that are due, and frees those past their lateness. */
static inline void windows__close_due(windows *w, windows__key *k)
{
    int64_t lateness = windows__us(w->lateness), due = INT64_MAX;
    size_t over = 0;
    for (size_t i = 0; i < k->count; i++) {
        window *one = k->all[i];
        int64_t last = one->end_us + lateness;
        bool is_closed = one->end_us <= w->mark, is_over = last <= w->mark;
        if (is_closed && !one->emitted)
            windows__emit(w, one);
        one->revised = one->revised || (is_over && one->changed);
        if (is_over && one->changed)
            windows__emit(w, one);
        int64_t next = is_closed ? last : one->end_us;
        if (is_over) {
            window__free(one);
            over = i + 1; /* they end in the order of their starts */
        } else if (next < due) {
            due = next;
        }
    }
    k->count -= over;
    memmove(k->all, k->all + over, k->count * sizeof(window *));
    k->due = due;
    windows__sift(w, k);
}

static inline void windows_advance(windows *w, double mark)
{
    int64_t us = INT64_MAX;
    if (mark <= WINDOWS_LARGEST)
        us = windows__us(fmax(mark, -WINDOWS_LARGEST));
    if (isnan(mark) || (w->began && us < w->mark))
        return;
    w->began = true;
    w->mark = us;
    while (w->key_count && w->heap[0]->due <= us) {
        windows__key *k = w->heap[0];
        windows__close_due(w, k);
        if (k->count == 0)
            windows__remove(w, k);
    }
}

static inline void windows_close(windows *w)
{
    while (w->key_count) {
        windows__key *k = w->heap[w->key_count - 1];
        for (size_t i = 0; i < k->count; i++)
            window__free(k->all[i]);
        windows__remove(w, k);
    }
    free(w->table);
    free(w->heap);
    w->table = w->heap = NULL;
}

#endif
