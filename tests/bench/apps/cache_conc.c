/* cache_conc PASSES: the cache of the course, with a limit of entries (LRU) and of age, in
 * which a task gets each of 1000 keys PASSES times. All are cached. */
#define main cache_main
#include "../../../examples/10_patterns/03_cache.c"
#undef main

#include "measure.h"

enum { BENCH_KEYS = 1000 };

static char bench_keys[BENCH_KEYS][16];

/* Of 1 to 97 bytes. */
static int bench_value(const char *key, void *arg, char *value)
{
    (void)arg;
    int n = 1 + atoi(key + strlen("key:")) % 97;
    memset(value, 'x', (size_t)n);
    value[n] = 0;
    return 0;
}

/* Returns the sum of the values' lengths, or an error. */
static int bench_pass(cache *c, long long *sum)
{
    char value[CACHE_VALUE];
    for (int i = 0; i < BENCH_KEYS; i++) {
        CONC_TRY(cache_get(c, bench_keys[i], bench_value, NULL, value));
        *sum += (long long)strlen(value);
    }
    return 0;
}

static int bench_hits(void *arg)
{
    int passes = *(int *)arg;
    long long sum = 0;
    CONC_AUTO(cache, c) = {.policy = CACHE_LRU, .max_size = BENCH_KEYS, .ttl = 300};
    CONC_TRY(cache_open(&c));
    for (int i = 0; i < BENCH_KEYS; i++)
        snprintf(bench_keys[i], sizeof bench_keys[i], "key:%d", i);
    CONC_TRY(bench_pass(&c, &sum));
    sum = 0;
    measure began = measure_begin();
    for (int pass = 0; pass < passes; pass++)
        CONC_TRY(bench_pass(&c, &sum));
    measure took = measure_end(began);
    measure_print(took, (int)c.stats.hits, sum);
    return 0;
}

int main(int argc, char **argv)
{
    int passes = argc == 2 ? atoi(argv[1]) : 0;
    if (passes > 0)
        return conc_main(bench_hits, &passes);
    fprintf(stderr, "usage: cache_conc PASSES\n");
    return 2;
}
