/* measure.h - the output of the C programs of tests/bench/apps.sh: milliseconds on the clock,
 * milliseconds of this process on the processors (user and system), and a result that must be the
 * same for all programs that do this work. */
#ifndef MEASURE_H
#define MEASURE_H

#include <stdio.h>
#include <time.h>

typedef struct measure {
    double wall, processor;
} measure;

static inline double measure_clock(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static inline measure measure_begin(void)
{
    return (measure){measure_clock(CLOCK_MONOTONIC), measure_clock(CLOCK_PROCESS_CPUTIME_ID)};
}

static inline measure measure_end(measure began)
{
    measure now = measure_begin();
    return (measure){now.wall - began.wall, now.processor - began.processor};
}

static inline void measure_print(measure took, int count, long long sum)
{
    printf("%.3f %.3f %d/%lld\n", took.wall, took.processor, count, sum);
}

/* With the time of one piece of the work: the median, and the 99th percentile. */
static inline void measure_print_with(measure took, int count, long long sum, double p50,
                                      double p99)
{
    printf("%.3f %.3f %d/%lld %.3f %.3f\n", took.wall, took.processor, count, sum, p50, p99);
}

#endif
