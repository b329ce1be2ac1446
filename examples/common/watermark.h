/* watermark.h - the time before which no more events are expected
 *
 *     watermark mark = {.delay = 2, .idle = 30, .ahead = 5};
 *     watermark_source source = {0};
 *
 *     windows_advance(&minute, watermark_advance(&mark, now)); // also each second without events
 *     if (watermark_see(&mark, &source, time, now) == 0)
 *         windows_add(&minute, "login", time, milliseconds, user);
 *     ...
 *     watermark_forget(&mark, &source);
 *
 * Compile with -lm. Times are in seconds; now is the clock's time. It belongs to one thread.
 *
 * The watermark is the minimum of the sources' promises, minus .delay, by which events of one
 *   source may be out of order. A source promises the time of its newest event, or the clock minus
 *   .idle, whichever is later. So a source that is silent, or sends old events, delays the others
 *   by at most .idle. Without sources the watermark is the clock minus .idle and .delay.
 * The watermark never falls, and never passes the clock minus .delay, because an event from the
 *   future promises no more than the clock. An event more than .ahead beyond the clock is refused,
 *   has no effect, and is counted in `ahead_count`.
 */
#ifndef WATERMARK_H
#define WATERMARK_H

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

/* A source of events. The caller owns it, and keeps it until watermark_forget. */
typedef struct watermark_source {
    double newest; /* event */
    /* private */
    bool known;
    struct watermark_source *next, **link;
} watermark_source;

typedef struct watermark {
    double delay, idle, ahead; /* options, in seconds; see above */
    double time;               /* the watermark, once advanced */
    uint64_t ahead_count;
    /* private */
    bool began;
    watermark_source *sources;
} watermark;

/* Notes an event of this source at the clock's time now. Returns 0, or -ERANGE if it is too far
 * ahead. Advance the watermark before, so that an event cannot be late because of itself. */
static inline int watermark_see(watermark *m, watermark_source *s, double time, double now);

/* Returns the watermark at the clock's time now. */
static inline double watermark_advance(watermark *m, double now);

/* Removes a source that has ended, so that it does not delay the others. Harmless if repeated. */
static inline void watermark_forget(watermark *m, watermark_source *s);

/* ---- implementation ------------------------------------------------------------------------- */

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
