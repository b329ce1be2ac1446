/* bench_conc NAME [COUNT [ARMED]]: one round of one benchmark, printed as "NAME value unit";
 * without arguments, the names.
 *   cc -O2 bench_conc.c -o bench_conc && ./bench_conc switch2
 * COUNT is how often the measured thing is done, in thousands (sleepers: how many tasks); ARMED
 * is how many timers stand by in timer_arm. The programs for other libraries work the same way;
 * run.sh runs them all.
 */
#define CONC_NO_ENV
#define CONC_IMPLEMENTATION
#include "../../conc_sync.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { WARM_UP = 10000, BATCH = 100, TIMEOUTS = 1024, PRIORITIES = 100000 };

static long count, armed = 1000000;
static long alive, most_alive; /* sleepers that have begun and not ended */
static double timeouts[TIMEOUTS];
static conc_scope *scopes;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Of a process, since it started. */
static double peak_gigabytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss * 1024 * 1e-9;
}

static void check(int rc)
{
    if (rc >= 0)
        return;
    fprintf(stderr, "bench_conc: %s\n", conc_strerror(rc));
    exit(1);
}

/* ---- what is measured: each function does it n times ---------------------------------------- */

static int yielder(void *arg)
{
    long n = *(long *)arg;
    for (long i = 0; i < n; i++)
        check(conc_yield());
    return 0;
}

static void yielders(int tasks, long n)
{
    conc_group g = {0};
    long each = n / tasks;
    for (int i = 0; i < tasks; i++)
        check(conc_spawn(&g, yielder, &each));
    check(conc_group_wait(&g));
}

static void switch2(long n) { yielders(2, n); }
static void switch1000(long n) { yielders(1000, n); }

static int nothing(void *arg)
{
    (void)arg;
    return 0;
}

static void spawn_join(long n)
{
    conc_group g = {0};
    conc_task t = {0};
    for (long i = 0; i < n; i++) {
        check(conc_spawn_task(&g, &t, nothing, NULL));
        check(conc_join(&t, NULL));
    }
    check(conc_group_wait(&g));
}

static void spawn_group(long n)
{
    for (long i = 0; i < n; i += BATCH) {
        conc_group g = {0};
        for (int j = 0; j < BATCH; j++)
            check(conc_spawn(&g, nothing, NULL));
        check(conc_group_wait(&g));
    }
}

__attribute__((noinline)) static int call_that_does_not_wait(void)
{
    __asm__ volatile("");
    return 0;
}

static void timeout(long n)
{
    for (long i = 0; i < n; i++) {
        conc_scope s = {0};
        check(conc_scope_begin(&s, 1));
        check(conc_scope_end(&s, call_that_does_not_wait()));
    }
}

static void clock_reading(long n)
{
    struct timespec t;
    for (long i = 0; i < n; i++)
        clock_gettime(CLOCK_MONOTONIC, &t);
}

static double random_timeout(void) { return 100 + 9900.0 * rand() / RAND_MAX; }

static void arm_many(void)
{
    for (int i = 0; i < TIMEOUTS; i++)
        timeouts[i] = random_timeout();
    scopes = calloc((size_t)armed, sizeof *scopes);
    if (!scopes)
        check(-ENOMEM);
    for (long i = 0; i < armed; i++)
        check(conc_scope_begin(&scopes[i], random_timeout()));
}

static void disarm_many(void)
{
    for (long i = armed; i-- > 0;)
        check(conc_scope_end(&scopes[i], 0));
    free(scopes);
}

static void timer_arm(long n)
{
    for (long i = 0; i < n; i++) {
        conc_scope s = {0};
        check(conc_scope_begin(&s, timeouts[i % TIMEOUTS]));
        check(conc_scope_end(&s, 0));
    }
}

static conc_lock lock;

static void lock_free(long n)
{
    for (long i = 0; i < n; i++) {
        check(conc_lock_acquire(&lock));
        check(conc_lock_release(&lock));
    }
}

/* The other one waits whenever this one releases. */
static int lock_passer(void *arg)
{
    long n = *(long *)arg;
    check(conc_lock_acquire(&lock));
    for (long i = 0; i < n; i++) {
        check(conc_lock_release(&lock));
        check(conc_lock_acquire(&lock));
    }
    return conc_lock_release(&lock);
}

static void lock_pass(long n)
{
    long each = n / 2;
    check(CONC_GATHER(CONC_CALL(lock_passer, &each), CONC_CALL(lock_passer, &each)));
}

static conc_queue queue1 = CONC_QUEUE(int, 1), queue1000 = CONC_QUEUE(int, 1000);
static long items;

static int producer(void *queue)
{
    for (int i = 0; i < items; i++)
        check(conc_queue_put(queue, &i));
    return 0;
}

static int consumer(void *queue)
{
    int item;
    for (long i = 0; i < items; i++)
        check(conc_queue_get(queue, &item));
    return 0;
}

static void pass_items(conc_queue *q, long n)
{
    items = n;
    check(CONC_GATHER(CONC_CALL(producer, q), CONC_CALL(consumer, q)));
}

static void pass_by_one(long n) { pass_items(&queue1, n); }
static void pass_by_thousand(long n) { pass_items(&queue1000, n); }

static bool int_less(const void *a, const void *b) { return *(const int *)a < *(const int *)b; }

/* Fills a queue of ints and empties it, as often as needed. */
static void priority(long n)
{
    static conc_queue q = CONC_QUEUE(int, 0, .less = int_less);
    int item;
    for (long done = 0; done < n; done += PRIORITIES) {
        for (int i = 0; i < PRIORITIES; i++) {
            item = rand();
            check(conc_queue_put(&q, &item));
        }
        for (int i = 0; i < PRIORITIES; i++)
            check(conc_queue_get(&q, &item));
    }
}

/* ---- the benchmarks ------------------------------------------------------------------------- */

typedef struct benchmark {
    const char *name;
    long count;
    void (*loop)(long n); /* NULL: sleepers, or measure */
    void (*before)(void), (*after)(void);
    void (*measure)(const struct benchmark *b); /* has its own runs */
} benchmark;

/* Processor time of a run in which one task yields, with and without a trace: the difference is the
 * cost of an event. */
static double yielding_seconds(const char *trace)
{
    conc_options o = {.virtual_clock = true, .trace = trace};
    clock_t start = clock();
    check(conc_run_with(&o, yielder, &count));
    return (double)(clock() - start) / CLOCKS_PER_SEC;
}

static void measure_trace(const benchmark *b)
{
    const char *file = "build/bench/trace.json";
    double plainly = yielding_seconds(NULL), traced = yielding_seconds(file);
    printf("%s %.2f ns\n", b->name, (traced - plainly) * 1e9 / (double)count);
    remove(file);
}

static const benchmark benchmarks[] = {
    {.name = "clock", .count = 5000000, .loop = clock_reading},
    {.name = "switch2", .count = 50000000, .loop = switch2},
    {.name = "switch1000", .count = 50000000, .loop = switch1000},
    {.name = "spawn_join", .count = 10000000, .loop = spawn_join},
    {.name = "spawn_group", .count = 10000000, .loop = spawn_group},
    {.name = "timeout", .count = 5000000, .loop = timeout},
    {.name = "timer_arm",
     .count = 5000000,
     .loop = timer_arm,
     .before = arm_many,
     .after = disarm_many},
    {.name = "lock", .count = 50000000, .loop = lock_free},
    {.name = "lock_pass", .count = 20000000, .loop = lock_pass},
    {.name = "queue1", .count = 20000000, .loop = pass_by_one},
    {.name = "queue1000", .count = 50000000, .loop = pass_by_thousand},
    {.name = "priority", .count = 1000000, .loop = priority},
    {.name = "trace_event", .count = 1000000, .measure = measure_trace},
    {.name = "sleepers", .count = 1000000},
};

static int measure(void *arg)
{
    const benchmark *b = arg;
    if (b->before)
        b->before();
    b->loop(WARM_UP);
    double start = seconds();
    b->loop(count);
    printf("%s %.2f ns\n", b->name, (seconds() - start) * 1e9 / (double)count);
    if (b->after)
        b->after();
    return 0;
}

static int sleeper(void *arg)
{
    (void)arg;
    if (++alive > most_alive)
        most_alive = alive;
    check(conc_sleep(1));
    alive--;
    return 0;
}

static int sleep_all(void *arg)
{
    conc_group g = {0};
    (void)arg;
    for (long i = 0; i < count; i++)
        check(conc_spawn(&g, sleeper, NULL));
    return conc_group_wait(&g);
}

/* Measures the whole run, including its end, until only exiting is left. */
static void measure_sleepers(const benchmark *b)
{
    double start = seconds();
    check(conc_run(sleep_all, NULL));
    printf("%s_time %.3f s\n", b->name, seconds() - start);
    printf("%s_memory %.3f GB\n", b->name, peak_gigabytes());
    printf("%s_count %ld tasks\n", b->name, count);
    printf("%s_alive %ld tasks\n", b->name, most_alive);
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < CONC_LEN(benchmarks); i++) {
        const benchmark *b = &benchmarks[i];
        if (argc < 2)
            puts(b->name);
        else if (strcmp(argv[1], b->name) == 0) {
            count = argc > 2 ? atol(argv[2]) : b->count;
            armed = argc > 3 ? atol(argv[3]) : armed;
            if (b->measure)
                b->measure(b);
            else if (b->loop)
                check(conc_run(measure, (void *)b));
            else
                measure_sleepers(b);
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}
