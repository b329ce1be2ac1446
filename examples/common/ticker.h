/* ticker.h - a loop at a fixed rate, and how late it is
 *
 *     static ticker_lateness late;                         // over all loops
 *     ticker t = {.interval = 0.05, .late = &late};
 *     ticker_start(&t, 1);                                 // the first tick is due in 1 s
 *     while (running) {
 *         CONC_TRY(ticker_wait(&t));
 *         step();
 *     }
 *     printf("%.1f ms\n", 1000 * ticker_percentile(&late, 0.99));
 *
 * Ticks are due at fixed times: after a late tick the pause is shorter, so nothing drifts. If the
 * machine stood still for more than .patience seconds, the missed ticks are dropped, and the next
 * ones follow at the normal rate, not in a burst. ticker_wait is a checkpoint even if a tick is
 * due; it returns 0, or -ECANCELED, which consumes no tick.
 */
#ifndef TICKER_H
#define TICKER_H

#ifndef CONC_VERSION
#error "ticker.h: include conc.h first"
#endif

enum { TICKER__STEPS = 10000 }; /* of 0.1 ms */

/* Counts ticks by how late they were; all zero at first. */
typedef struct ticker_lateness {
    long ticks;
    /* private */
    long counts[TICKER__STEPS];
} ticker_lateness;

typedef struct ticker {
    /* options */
    double interval;       /* seconds */
    double patience;       /* seconds; 0: 0.5 */
    ticker_lateness *late; /* NULL: not counted */

    double skipped; /* total seconds of dropped ticks */

    /* private */
    double start;
    long count;
} ticker;

/* Starts the ticker. The first tick is due in `delay` seconds. */
static inline void ticker_start(ticker *t, double delay)
{
    t->start = conc_now() + delay - t->interval;
    t->count = 0;
    if (!(t->patience > 0))
        t->patience = 0.5;
}

static inline void ticker__count(ticker_lateness *l, double late)
{
    double step = late * 1e4;
    if (step > TICKER__STEPS - 1)
        step = TICKER__STEPS - 1;
    l->counts[(int)step]++;
    l->ticks++;
}

/* Waits for the next tick. */
static inline int ticker_wait(ticker *t)
{
    double due = t->start + (double)(t->count + 1) * t->interval;
    CONC_TRY(conc_sleep_until(due));
    double late = conc_now() - due;
    t->count++;
    if (late > t->patience) {
        t->start += late;
        t->skipped += late;
    }
    if (t->late)
        ticker__count(t->late, late);
    return 0;
}

/* Returns the lateness in seconds that this share of the ticks did not exceed, rounded up to 0.1
 * ms; 0 if there were no ticks. More than a second counts as a second. */
static inline double ticker_percentile(const ticker_lateness *l, double part)
{
    long seen = 0;
    for (int i = 0; i < TICKER__STEPS; i++) {
        seen += l->counts[i];
        if (seen > 0 && (double)seen >= part * (double)l->ticks)
            return (i + 1) / 1e4;
    }
    return 0;
}

#endif
