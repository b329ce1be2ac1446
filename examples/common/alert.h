/* alert.h - alerts on figures, one per crossing
 *
 *     alert a;
 *     if (!alert_read("checkout p95 250 150", &a))
 *         ...
 *     switch (alert_see(&a, time, value)) { // for each new value of the figure
 *     case ALERT_FIRES: ...
 *     case ALERT_CLEARS: ...
 *     }
 *
 * An alert fires when the value exceeds .above, and clears when it falls below .below. In between
 * it keeps its state (hysteresis), so a value that oscillates around a threshold does not fire
 * repeatedly. Values must arrive in time order: one that is not newer than all before is
 * ignored. */
#ifndef ALERT_H
#define ALERT_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>

typedef struct alert {
    char key[48], figure[16]; /* for the caller only */
    double above, below;
    bool firing;
    double since, until; /* when it last fired, and last cleared */
    double peak;         /* the largest value while firing */
    double newest;       /* time of the newest value */
} alert;

typedef enum { ALERT_NOTHING, ALERT_FIRES, ALERT_CLEARS } alert_change;

/* Reads a rule, KEY FIGURE ABOVE BELOW, with BELOW at most ABOVE. Returns false if it is none. */
static inline bool alert_read(const char *text, alert *a);

/* Passes a value to the alert. Returns whether it fires or clears now. */
static inline alert_change alert_see(alert *a, double time, double value);

/* ---- implementation ------------------------------------------------------------------------- */

static inline bool alert_read(const char *text, alert *a)
{
    char more;
    *a = (alert){.newest = -INFINITY};
    return sscanf(text, "%47s %15s %lf %lf %c", a->key, a->figure, &a->above, &a->below, &more) ==
               4 &&
           a->below <= a->above;
}

static inline alert_change alert_see(alert *a, double time, double value)
{
    if (!(time > a->newest))
        return ALERT_NOTHING;
    a->newest = time;
    if (!a->firing && value > a->above) {
        a->firing = true;
        a->since = time;
        a->peak = value;
        return ALERT_FIRES;
    }
    if (a->firing && value < a->below) {
        a->firing = false;
        a->until = time;
        return ALERT_CLEARS;
    }
    a->peak = a->firing ? fmax(a->peak, value) : a->peak;
    return ALERT_NOTHING;
}

#endif
