/* summary.h - count, sum, minimum, maximum and percentiles of any number of values
 *
 *     summary s = {0};
 *     if (summary_add(&s, 83.5) == 0)
 *         printf("%g of %llu\n", summary_percentile(&s, 95), (unsigned long long)s.count);
 *     summary_free(&s);
 *
 * Compile with -lm. count, min and max are exact, and so is sum up to the rounding of doubles.
 * Percentiles come from a DDSketch (Masson, Rim, Lee: DDSketch, VLDB 2019, algorithms 1 and 2):
 * they are within 1 % of the exact value of that rank, or within 1e-6 near zero. It takes 3 KiB for
 * values that differ by a factor of 1000, 17 KiB for values up to 1e12, however many they are.
 */
#ifndef SUMMARY_H
#define SUMMARY_H

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The number of values in each bucket, from bucket `first` on. */
typedef struct summary__buckets {
    uint64_t *counts;
    int first, size;
} summary__buckets;

typedef struct summary {
    uint64_t count;
    double sum, min, max;
    /* private */
    summary__buckets positive, negative; /* negative: by magnitude */
} summary;

/* Adds a value. Returns 0, or -ENOMEM, which changes nothing. */
static inline int summary_add(summary *s, double value);

/* Adds all values of another summary. Returns 0 or -ENOMEM. */
static inline int summary_merge(summary *to, const summary *from);

/* Returns the p-th percentile: the value of rank floor(p / 100 * (count - 1)), counted from 0 in
 * ascending order; 0 if there are no values. */
static inline double summary_percentile(const summary *s, double p);

static inline void summary_free(summary *s);

/* ---- implementation ------------------------------------------------------------------------- */

/* Bucket i counts the values v with gamma^(i-1) < v <= gamma^i, where gamma is 1.01 / 0.99. It is
 * read as 2 gamma^i / (gamma + 1), which is within 1 % of all of them. */
#define SUMMARY__GAMMA (1.01 / 0.99)
#define SUMMARY__SMALLEST 1e-6

/* Rounds down to a multiple of 32. */
static inline int summary__floor(int n) { return n >= 0 ? n / 32 * 32 : -((31 - n) / 32 * 32); }

/* Makes room for the buckets from first to last. */
static inline int summary__reserve(summary__buckets *b, int first, int last)
{
    if (b->size && b->first <= first && last < b->first + b->size)
        return 0;
    if (b->size && b->first < first)
        first = b->first;
    if (b->size && b->first + b->size - 1 > last)
        last = b->first + b->size - 1;
    first = summary__floor(first);
    int size = summary__floor(last) + 32 - first;
    uint64_t *counts = calloc((size_t)size, sizeof *counts);
    if (!counts)
        return -ENOMEM;
    if (b->size)
        memcpy(counts + (b->first - first), b->counts, (size_t)b->size * sizeof *counts);
    free(b->counts);
    *b = (summary__buckets){counts, first, size};
    return 0;
}

static inline int summary_add(summary *s, double value)
{
    double magnitude = fabs(value);
    summary__buckets *b = value > 0 ? &s->positive : &s->negative;
    if (magnitude >= SUMMARY__SMALLEST) {
        int i = (int)ceil(log(magnitude) / log(SUMMARY__GAMMA));
        int rc = summary__reserve(b, i, i);
        if (rc)
            return rc;
        b->counts[i - b->first]++;
    }
    s->min = s->count ? fmin(s->min, value) : value;
    s->max = s->count ? fmax(s->max, value) : value;
    s->sum += value;
    s->count++;
    return 0;
}

static inline int summary__merge_buckets(summary__buckets *to, const summary__buckets *from)
{
    if (!from->size)
        return 0;
    int rc = summary__reserve(to, from->first, from->first + from->size - 1);
    for (int i = 0; rc == 0 && i < from->size; i++)
        to->counts[from->first + i - to->first] += from->counts[i];
    return rc;
}

static inline int summary_merge(summary *to, const summary *from)
{
    int rc = summary__merge_buckets(&to->positive, &from->positive);
    if (rc == 0)
        rc = summary__merge_buckets(&to->negative, &from->negative);
    if (rc || !from->count)
        return rc;
    to->min = to->count ? fmin(to->min, from->min) : from->min;
    to->max = to->count ? fmax(to->max, from->max) : from->max;
    to->sum += from->sum;
    to->count += from->count;
    return 0;
}

static inline uint64_t summary__total(const summary__buckets *b)
{
    uint64_t total = 0;
    for (int i = 0; i < b->size; i++)
        total += b->counts[i];
    return total;
}

/* Returns the magnitude of this rank, counted from 0. */
static inline double summary__at(const summary__buckets *b, uint64_t rank)
{
    int i = 0;
    for (uint64_t below = b->counts[0]; below <= rank; below += b->counts[i])
        i++;
    return 2 * pow(SUMMARY__GAMMA, b->first + i) / (SUMMARY__GAMMA + 1);
}

static inline double summary_percentile(const summary *s, double p)
{
    if (!s->count)
        return 0;
    uint64_t negative = summary__total(&s->negative), positive = summary__total(&s->positive);
    uint64_t rank = (uint64_t)floor(fmin(fmax(p, 0), 100) / 100 * (double)(s->count - 1));
    double value = 0; /* in between are the values too small to distinguish from zero */
    if (rank < negative)
        value = -summary__at(&s->negative, negative - 1 - rank);
    else if (rank >= s->count - positive)
        value = summary__at(&s->positive, rank - (s->count - positive));
    return fmin(fmax(value, s->min), s->max);
}

static inline void summary_free(summary *s)
{
    free(s->positive.counts);
    free(s->negative.counts);
    *s = (summary){0};
}

#endif
