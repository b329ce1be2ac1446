/* bench_st NAME [COUNT]: the benchmarks of bench_conc.c with State Threads, where they apply.
 * There is no yield, and st_usleep(0) is a system call, so each thread wakes the next one in a
 * ring and waits to be woken.
 */
#include <st.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { WARM_UP = 10000, BATCH = 100, RING = 1000 };

static st_cond_t conds[RING];
static long ring, turns;
static long alive, most_alive;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static st_thread_t spawn(void *(*fn)(void *arg), void *arg, int stack_size)
{
    st_thread_t t = st_thread_create(fn, arg, 1, stack_size);
    if (t)
        return t;
    perror("bench_st: st_thread_create");
    exit(1);
}

static void *ring_member(void *arg)
{
    long i = (long)arg;
    for (long j = 0; j < turns; j++) {
        st_cond_signal(conds[(i + 1) % ring]);
        st_cond_wait(conds[i]);
    }
    st_cond_signal(conds[(i + 1) % ring]);
    return NULL;
}

static void yielders(long threads, long n)
{
    st_thread_t all[RING];
    ring = threads;
    turns = n / threads;
    for (long i = 0; i < threads; i++)
        conds[i] = st_cond_new();
    for (long i = 0; i < threads; i++)
        all[i] = spawn(ring_member, (void *)i, 0);
    for (long i = 0; i < threads; i++)
        st_thread_join(all[i], NULL);
    for (long i = 0; i < threads; i++)
        st_cond_destroy(conds[i]);
}

static void switch2(long n) { yielders(2, n); }
static void switch1000(long n) { yielders(1000, n); }

static void *nothing(void *arg) { return arg; }

static void spawn_join(long n)
{
    for (long i = 0; i < n; i++)
        st_thread_join(spawn(nothing, NULL, 0), NULL);
}

static void spawn_group(long n)
{
    st_thread_t all[BATCH];
    for (long i = 0; i < n; i += BATCH) {
        for (int j = 0; j < BATCH; j++)
            all[j] = spawn(nothing, NULL, 0);
        for (int j = 0; j < BATCH; j++)
            st_thread_join(all[j], NULL);
    }
}

static void *sleeper(void *arg)
{
    if (++alive > most_alive)
        most_alive = alive;
    st_sleep(1);
    alive--;
    return arg;
}

static void sleepers(long n)
{
    double start = seconds();
    st_thread_t *all = malloc((size_t)n * sizeof *all);
    if (!all)
        exit(1);
    for (long i = 0; i < n; i++)
        all[i] = spawn(sleeper, NULL, 16384);
    for (long i = 0; i < n; i++)
        st_thread_join(all[i], NULL);
    free(all);
    printf("sleepers_time %.3f s\n", seconds() - start);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("sleepers_memory %.3f GB\n", (double)usage.ru_maxrss * 1024 * 1e-9);
    printf("sleepers_count %ld tasks\n", n);
    printf("sleepers_alive %ld tasks\n", most_alive);
}

static const struct {
    const char *name;
    long count;
    void (*loop)(long n);
} benchmarks[] = {
    {"switch2", 5000000, switch2},       {"switch1000", 5000000, switch1000},
    {"spawn_join", 1000000, spawn_join}, {"spawn_group", 1000000, spawn_group},
    {"sleepers", 1000000, sleepers},
};

int main(int argc, char **argv)
{
    if (st_init() != 0) {
        perror("bench_st: st_init");
        return 1;
    }
    for (size_t i = 0; i < sizeof benchmarks / sizeof benchmarks[0]; i++) {
        if (argc < 2)
            puts(benchmarks[i].name);
        else if (strcmp(argv[1], benchmarks[i].name) == 0) {
            long count = argc > 2 ? atol(argv[2]) : benchmarks[i].count;
            if (benchmarks[i].loop == sleepers) {
                sleepers(count);
                return 0;
            }
            benchmarks[i].loop(WARM_UP);
            double start = seconds();
            benchmarks[i].loop(count);
            printf("%s %.2f ns\n", argv[1], (seconds() - start) * 1e9 / (double)count);
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}
