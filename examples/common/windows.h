/* windows.h - windows over a stream of events by the events' own time: tumbling, sliding, session
 *
 *     #include "windows.h"
 *
 *     static void print(const window *w, void *arg)
 *     {
 *         (void)arg;
 *         printf("%s %.0f to %.0f: %llu events, the 95th percentile is %.1f, %.0f users\n", w->key,
 *                w->start, w->end, (unsigned long long)w->count, window_percentile(w, 95),
 *                window_distinct(w));
 *     }
 *
 *     windows minute = {.size = 60, .lateness = 10, .closed = print};
 *     watermark mark = {.delay = 2, .idle = 30, .ahead = 5};
 *     watermark_source source = {0};
 *
 *     windows_advance(&minute, watermark_advance(&mark, now)); // also each second without events
 *     if (watermark_see(&mark, &source, time, now) == 0)
 *         windows_add(&minute, "login", time, milliseconds, user);
 *     ...
 *     windows_close(&minute);
 *
 * To compile: -lm. It does not need conc, waits for nothing, and belongs to one thread. Times are
 * seconds, kept in microseconds; from start to end means that end is not part of the window.
 *
 * Windows. A tumbling window has .size. A sliding one has .size and .slide: one begins at each
 *   multiple of slide, and an event is in size / slide of them. A session has .gap: events of one
 *   key that are less than gap apart, from the first to the last plus gap. Each key has windows of
 *   its own, and a window without events does not exist.
 * Closing. When the watermark reaches the end of a window, it is closed: .closed is called. After
 *   that, events may still come for it as long as the watermark has not reached its end plus
 *   .lateness. If any came, .closed is called once more at that time, with `revised` true. A
 *   session that late events continue beyond the watermark, or join to another, is open again, and
 *   closes again, `revised`: it replaces the sessions of its key that lie within it.
 * Late events. `late` counts the events that went into a window which had been closed. `too_late`
 *   counts what was lost: an event that came after the lateness of its window; of a sliding window,
 *   one for each window of the event that is gone. So over all final windows, the sum of count, plus
 *   too_late, is the number of events times the number of windows that an event is in.
 * Aggregates. count, sum, min and max are exact (sum: up to the rounding of doubles).
 *   window_percentile is a DDSketch (Masson, Rim, Lee: DDSketch, VLDB 2019, algorithms 1 and 2): at
 *   most 1 % from the exact value of that rank, or 1e-6 for values that close to zero.
 *   window_distinct is exact up to 64 different items, and a HyperLogLog with 4096 registers above
 *   (Flajolet et al., 2007), read by Ertl's estimator ("New cardinality estimation algorithms for
 *   HyperLogLog sketches", 2017, algorithm 6): its standard error is 1.04 / sqrt(4096) = 1.6 %.
 * Memory. A window takes about 3 KiB for values that differ by a factor of 1000, 17 KiB for any,
 *   and 4 KiB for more than 64 items, whatever the number of events. `max_keys` limits the keys.
 *   How many windows a key has is limited by the watermark: let it follow the clock, as below.
 *
 * The watermark is the time before which no event is expected any more. It is the least of what the
 *   sources promise, minus .delay, by which events of one source may be out of order. A source
 *   promises its newest event, or the clock minus .idle, whichever is later: so a source that is
 *   silent, or sends old events, holds the others back by at most idle. Without sources the
 *   watermark is the clock minus idle and delay. It never falls, and never passes the clock minus
 *   delay: an event from the future promises no more than the clock. One that is more than .ahead
 *   beyond the clock is refused, has no effect at all, and is counted in `ahead_count`.
 */
#ifndef WINDOWS_H
#define WINDOWS_H

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- windows -------------------------------------------------------------------------------- */

enum {
    WINDOW__ITEMS = 64,
    WINDOW__REGISTERS = 4096,
    WINDOWS__BUCKETS = 4096,
    WINDOWS__OVERLAPS = 10000 /* windows that an event may be in */
};
#define WINDOWS_LARGEST 1e12 /* of a value or a time, without its sign */

/* How many values fell into the buckets from `first` on. */
typedef struct window__sketch {
    uint64_t *counts;
    int first, size;
} window__sketch;

/* One window. It is valid until .closed returns. */
typedef struct window {
    const char *key;
    double start, end;
    uint64_t count;
    double sum, min, max;
    bool revised; /* it was closed before, and has changed since */
    /* private */
    int64_t start_us, end_us;
    bool emitted, changed;             /* changed: since it was emitted */
    window__sketch positive, negative; /* negative: of the values without their sign */
    uint64_t *items;                   /* hashes, while there are at most WINDOW__ITEMS */
    int item_count;
    unsigned char *registers; /* afterwards */
} window;

/* The value of which p percent of the window's values are not above: that of rank
 * floor(p / 100 * (count - 1)), counted from 0 in ascending order. */
static inline double window_percentile(const window *w, double p);

/* How many different items there were. */
static inline double window_distinct(const window *w);

typedef struct windows__key windows__key;

typedef struct windows {
    /* Options, to be set before the first call */
    double size, slide; /* slide 0: size, so the windows tumble */
    double gap;         /* over 0: sessions; size and slide are not used */
    double lateness;
    size_t max_keys; /* with windows at the same time; 0: 1000 */
    void (*closed)(const window *w, void *arg);
    void *arg;

    uint64_t late, too_late; /* above */
    uint64_t refused;        /* events that came when there were max_keys */

    /* private */
    int64_t mark; /* the watermark */
    bool began;
    windows__key **table, **heap; /* by name, and by what is due first */
    size_t key_count, heap_room;
} windows;

/* Puts an event into its windows: 0, also if it is too late. item: what window_distinct counts, or
 * NULL. -EINVAL: time or value is not a number or too large, or the options make no sense; -ENOSPC:
 * max_keys; -ENOMEM: some of its windows may lack the event. */
static inline int windows_add(windows *w, const char *key, double time, double value,
                              const char *item);

/* Sets the watermark and closes what ends at it or before. One that is lower than before does
 * nothing. .closed must not call back. INFINITY closes all that is open. */
static inline void windows_advance(windows *w, double mark);

/* Frees all windows without closing them. All-zero or twice: does nothing. */
static inline void windows_close(windows *w);

/* ---- the watermark -------------------------------------------------------------------------- */

/* A source of events; the caller's, until watermark_forget. */
typedef struct watermark_source {
    double newest; /* event */
    /* private */
    bool known;
    struct watermark_source *next, **link;
} watermark_source;

typedef struct watermark {
    double delay, idle, ahead; /* options; above */
    double time;               /* the watermark, once it was advanced */
    uint64_t ahead_count;
    /* private */
    bool began;
    watermark_source *sources;
} watermark;

/* Notes an event of this source, at the clock's time now: 0, or -ERANGE if it is too far ahead.
 * Advance the watermark before: an event cannot be late because of itself. */
static inline int watermark_see(watermark *m, watermark_source *s, double time, double now);

/* The watermark at the clock's time now. */
static inline double watermark_advance(watermark *m, double now);

/* The source has ended, and holds nothing back any more. Twice: does nothing. */
static inline void watermark_forget(watermark *m, watermark_source *s);

/* ---- implementation: percentiles ------------------------------------------------------------ */

/* Bucket i has the values v with gamma^(i-1) < v <= gamma^i, where gamma = (1 + 1 %) / (1 - 1 %),
 * and stands for the value 2 gamma^i / (gamma + 1), which is at most 1 % from all of them. */
#define WINDOW__GAMMA (1.01 / 0.99)
#define WINDOW__SMALLEST 1e-6

static inline int window__bucket(double magnitude)
{
    return (int)ceil(log(magnitude) / log(WINDOW__GAMMA));
}

static inline double window__value(int bucket)
{
    return 2 * pow(WINDOW__GAMMA, bucket) / (WINDOW__GAMMA + 1);
}

static inline int window__floor_to(int n, int step)
{
    int rest = n % step;
    return rest < 0 ? n - rest - step : n - rest;
}

/* Makes room for the buckets from first to last. */
static inline int window__reserve(window__sketch *s, int first, int last)
{
    if (s->size && s->first <= first && last < s->first + s->size)
        return 0;
    if (s->size && s->first < first)
        first = s->first;
    if (s->size && s->first + s->size - 1 > last)
        last = s->first + s->size - 1;
    first = window__floor_to(first, 32);
    int size = window__floor_to(last, 32) + 32 - first;
    uint64_t *counts = calloc((size_t)size, sizeof *counts);
    if (!counts)
        return -ENOMEM;
    if (s->size)
        memcpy(counts + (s->first - first), s->counts, (size_t)s->size * sizeof *counts);
    free(s->counts);
    *s = (window__sketch){counts, first, size};
    return 0;
}

static inline int window__merge_sketch(window__sketch *to, const window__sketch *from)
{
    if (!from->size)
        return 0;
    int rc = window__reserve(to, from->first, from->first + from->size - 1);
    for (int i = 0; rc == 0 && i < from->size; i++)
        to->counts[from->first + i - to->first] += from->counts[i];
    return rc;
}

static inline uint64_t window__total(const window__sketch *s)
{
    uint64_t total = 0;
    for (int i = 0; i < s->size; i++)
        total += s->counts[i];
    return total;
}

/* The magnitude of this rank, counted from 0. */
static inline double window__at(const window__sketch *s, uint64_t rank)
{
    int i = 0;
    for (uint64_t below = s->counts[0]; below <= rank; below += s->counts[i])
        i++;
    return window__value(s->first + i);
}

static inline double window_percentile(const window *w, double p)
{
    if (!w->count)
        return 0;
    uint64_t negative = window__total(&w->negative), positive = window__total(&w->positive);
    uint64_t rank = (uint64_t)floor(fmin(fmax(p, 0), 100) / 100 * (double)(w->count - 1));
    double value = 0; /* between the two: those too small to tell apart from zero */
    if (rank < negative)
        value = -window__at(&w->negative, negative - 1 - rank);
    else if (rank >= w->count - positive)
        value = window__at(&w->positive, rank - (w->count - positive));
    return fmin(fmax(value, w->min), w->max);
}

/* ---- implementation: distinct items --------------------------------------------------------- */

/* FNV-1a, and the last step of MurmurHash3, because HyperLogLog needs all bits to be as good as
 * random. */
static inline uint64_t windows__hash(const char *text)
{
    uint64_t h = 14695981039346656037u;
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 1099511628211u;
    h = (h ^ h >> 33) * 0xff51afd7ed558ccdu;
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 33;
}

/* A register keeps the longest run of zeros, plus 1, that its hashes have begun with. */
static inline void window__register(unsigned char *registers, uint64_t hash)
{
    uint64_t rest = hash << 12 | (uint64_t)1 << 11; /* the first 12 bits choose the register */
    unsigned char run = (unsigned char)(__builtin_clzll(rest) + 1);
    if (registers[hash >> 52] < run)
        registers[hash >> 52] = run;
}

static inline int window__begin_registers(window *w)
{
    if (w->registers)
        return 0;
    w->registers = calloc(WINDOW__REGISTERS, 1);
    if (!w->registers)
        return -ENOMEM;
    for (int i = 0; i < w->item_count; i++)
        window__register(w->registers, w->items[i]);
    free(w->items);
    w->items = NULL;
    w->item_count = 0;
    return 0;
}

static inline int window__add_item(window *w, uint64_t hash)
{
    for (int i = 0; i < w->item_count; i++)
        if (w->items[i] == hash)
            return 0;
    if (w->registers || w->item_count == WINDOW__ITEMS) {
        int rc = window__begin_registers(w);
        if (rc == 0)
            window__register(w->registers, hash);
        return rc;
    }
    if ((w->item_count & (w->item_count - 1)) == 0) { /* 0, 1, 2, 4...: the room is used up */
        size_t room = w->item_count ? 2 * (size_t)w->item_count : 1;
        uint64_t *items = realloc(w->items, room * sizeof *items);
        if (!items)
            return -ENOMEM;
        w->items = items;
    }
    w->items[w->item_count++] = hash;
    return 0;
}

static inline int window__merge_items(window *to, const window *from)
{
    int rc = from->registers ? window__begin_registers(to) : 0;
    for (int i = 0; rc == 0 && i < from->item_count; i++)
        rc = window__add_item(to, from->items[i]);
    for (int i = 0; rc == 0 && from->registers && i < WINDOW__REGISTERS; i++)
        if (to->registers[i] < from->registers[i])
            to->registers[i] = from->registers[i];
    return rc;
}

static inline double window__sigma(double x)
{
    double y = 1, z = x, before;
    do {
        x *= x;
        before = z;
        z += x * y;
        y += y;
    } while (z != before);
    return z;
}

static inline double window__tau(double x)
{
    double y = 1, z = 1 - x, before;
    if (x == 0 || x == 1)
        return 0;
    do {
        x = sqrt(x);
        before = z;
        y *= 0.5;
        z -= (1 - x) * (1 - x) * y;
    } while (z != before);
    return z / 3;
}

static inline double window_distinct(const window *w)
{
    const double m = WINDOW__REGISTERS;
    int runs[54] = {0}; /* how many registers have each value */
    if (!w->registers)
        return w->item_count;
    for (int i = 0; i < WINDOW__REGISTERS; i++)
        runs[w->registers[i]]++;
    double z = m * window__tau(1 - runs[53] / m);
    for (int i = 52; i > 0; i--)
        z = (z + runs[i]) / 2;
    z += m * window__sigma(runs[0] / m);
    return m * m / (2 * log(2) * z);
}

/* ---- implementation: one window ------------------------------------------------------------- */

/* What an event adds to each of its windows; bucket: of the value's magnitude. */
typedef struct window__event {
    double value;
    int bucket;
    bool has_item;
    uint64_t item;
} window__event;

static inline void window__free(window *w)
{
    free(w->positive.counts);
    free(w->negative.counts);
    free(w->items);
    free(w->registers);
    free(w);
}

static inline int window__count_value(window *w, const window__event *e)
{
    window__sketch *s = e->value > 0 ? &w->positive : &w->negative;
    if (fabs(e->value) < WINDOW__SMALLEST)
        return 0;
    int rc = window__reserve(s, e->bucket, e->bucket);
    if (rc == 0)
        s->counts[e->bucket - s->first]++;
    return rc;
}

static inline int window__add(window *w, const window__event *e)
{
    int rc = e->has_item ? window__add_item(w, e->item) : 0;
    if (rc == 0)
        rc = window__count_value(w, e);
    if (rc)
        return rc;
    w->min = w->count ? fmin(w->min, e->value) : e->value;
    w->max = w->count ? fmax(w->max, e->value) : e->value;
    w->sum += e->value;
    w->count++;
    w->changed = w->emitted;
    return 0;
}

/* Joins the session `from` to another. */
static inline int window__merge(window *to, const window *from)
{
    int rc = window__merge_items(to, from);
    if (rc == 0)
        rc = window__merge_sketch(&to->positive, &from->positive);
    if (rc == 0)
        rc = window__merge_sketch(&to->negative, &from->negative);
    if (rc)
        return rc;
    to->min = to->count ? fmin(to->min, from->min) : from->min;
    to->max = to->count ? fmax(to->max, from->max) : from->max;
    to->sum += from->sum;
    to->count += from->count;
    to->emitted = to->emitted || from->emitted;
    to->revised = to->revised || from->revised;
    return 0;
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
    int64_t due;             /* nothing is to be done before the watermark gets there */
    size_t at;               /* its place in the heap */
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

/* Moves the key to where it belongs in the heap, a binary one. */
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

static inline int windows__grow_heap(windows *w)
{
    if (w->key_count < w->heap_room)
        return 0;
    size_t room = w->heap_room ? 2 * w->heap_room : 16;
    windows__key **heap = realloc(w->heap, room * sizeof(windows__key *));
    if (!heap)
        return -ENOMEM;
    w->heap = heap;
    w->heap_room = room;
    return 0;
}

static inline int windows__insert(windows *w, const char *name, uint64_t hash, windows__key **out)
{
    size_t limit = w->max_keys ? w->max_keys : 1000, size = strlen(name) + 1;
    if (w->key_count >= limit) {
        w->refused++;
        return -ENOSPC;
    }
    windows__key *k = calloc(1, sizeof *k + size), **bucket = &w->table[hash % WINDOWS__BUCKETS];
    if (!k || windows__grow_heap(w)) {
        free(k);
        return -ENOMEM;
    }
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

/* How many windows of the key begin at this time or before. */
static inline size_t windows__position(const windows__key *k, int64_t start)
{
    size_t n = k->count;
    while (n > 0 && k->all[n - 1]->start_us > start)
        n--;
    return n;
}

/* The window from start to end, a new one if there is none. */
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

static inline int windows__add_fixed(windows *w, windows__key *k, int64_t time,
                                     const window__event *e)
{
    int64_t size = windows__us(w->size), slide = w->slide > 0 ? windows__us(w->slide) : size;
    bool late = false;
    for (int64_t start = windows__floor(time, slide); start > time - size; start -= slide) {
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

/* Joins the windows of the key that overlap the one at [*at], which has grown. */
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

/* An event begins a session, or is part of the one before it, or of the one behind it, or joins
 * these two. */
static inline int windows__add_session(windows *w, windows__key *k, int64_t time,
                                       const window__event *e)
{
    int64_t end = time + windows__us(w->gap);
    size_t at = windows__position(k, time);
    window *before = at > 0 ? k->all[at - 1] : NULL, *into;
    int rc = 0;
    if (before && before->end_us > time) {
        into = before;
        at--;
    } else {
        rc = windows__get(k, time, end, &into);
    }
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
    windows__set_due(w, k, into->end_us + (into->emitted ? windows__us(w->lateness) : 0));
    return 0;
}

/* Whether the event comes after the lateness of all its windows; counts it then. */
static inline bool windows__is_too_late(windows *w, const windows__key *k, int64_t time)
{
    int64_t mark = w->mark - windows__us(w->lateness);
    if (!w->began)
        return false;
    if (w->gap > 0) {
        bool alone = true;
        for (size_t i = 0; k && i < k->count; i++)
            if (k->all[i]->start_us < time + windows__us(w->gap) && time < k->all[i]->end_us)
                alone = false;
        bool too_late = alone && time + windows__us(w->gap) <= mark;
        w->too_late += too_late;
        return too_late;
    }
    int64_t size = windows__us(w->size), slide = w->slide > 0 ? windows__us(w->slide) : size;
    int64_t start = windows__floor(time, slide);
    if (start + size > mark)
        return false;
    for (; start > time - size; start -= slide)
        w->too_late++;
    return true;
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
    w->table = calloc(WINDOWS__BUCKETS, sizeof(windows__key *));
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
    uint64_t hash = windows__hash(key);
    windows__key *k = windows__find(w, key, hash);
    int64_t us = windows__us(time);
    window__event e = {.value = value, .has_item = item != NULL};
    if (windows__is_too_late(w, k, us))
        return 0;
    if (item)
        e.item = windows__hash(item);
    if (fabs(value) >= WINDOW__SMALLEST)
        e.bucket = window__bucket(fabs(value));
    if (!k)
        rc = windows__insert(w, key, hash, &k);
    if (rc)
        return rc;
    rc = w->gap > 0 ? windows__add_session(w, k, us, &e) : windows__add_fixed(w, k, us, &e);
    if (k->count == 0) /* hopping windows have gaps, and memory may be short */
        windows__remove(w, k);
    return rc;
}

/* ---- implementation: closing ---------------------------------------------------------------- */

static inline void windows__emit(windows *w, window *one)
{
    one->emitted = true;
    one->changed = false;
    if (w->closed && one->count) /* 0: there was no memory for its event */
        w->closed(one, w->arg);
}

/* Closes what is due of this key, and frees what is over. */
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
            over = i + 1; /* they end in the order in which they begin */
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
    w->heap_room = 0;
}

/* ---- implementation: the watermark ---------------------------------------------------------- */

static inline int watermark_see(watermark *m, watermark_source *s, double time, double now)
{
    if (!(time <= now + m->ahead)) {
        m->ahead_count++;
        return -ERANGE;
    }
    double promise = fmin(time, now);
    if (!s->known) {
        *s = (watermark_source){promise, true, m->sources, &m->sources};
        if (m->sources)
            m->sources->link = &s->next;
        m->sources = s;
    }
    s->newest = fmax(s->newest, promise);
    return 0;
}

static inline double watermark_advance(watermark *m, double now)
{
    double least = m->sources ? now : now - m->idle;
    for (const watermark_source *s = m->sources; s; s = s->next)
        least = fmin(least, fmax(s->newest, now - m->idle));
    least -= m->delay;
    m->time = m->began ? fmax(m->time, least) : least;
    m->began = true;
    return m->time;
}

static inline void watermark_forget(watermark *m, watermark_source *s)
{
    (void)m;
    if (!s->known)
        return;
    *s->link = s->next;
    if (s->next)
        s->next->link = s->link;
    s->known = false;
}

#endif
