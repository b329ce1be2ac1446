/* pool_conc NAME [COUNT]: one round of one benchmark of conc_pool.h, printed as lines "NAME
 * value unit"; without arguments, the names.
 *   cc -O2 -pthread pool_conc.c -o pool_conc && ./pool_conc trip
 * COUNT is how often the measured thing is done (beats: for how many milliseconds). The programs
 * for other libraries work the same way; run_pool.sh runs them all. The baselines without a
 * library, a bare round trip to a thread, a memcpy and a bare sleep, are measured here too,
 * alternately with conc, so that both see the same state of the machine.
 */
#define CONC_NO_ENV
#define CONC_IMPLEMENTATION
#include "../../../conc_pool.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>

enum { ITEM = 64, BIG = 100000000, WARM_UP = 10000, COMPUTERS = 2 };

static conc_pool pool;
static conc_procs procs;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void check(int rc)
{
    if (rc >= 0)
        return;
    fprintf(stderr, "pool_conc: %s\n", conc_strerror(rc));
    exit(1);
}

/* Everything is allocated before the measurement. */
static void *memory(size_t size)
{
    void *p = malloc(size);
    if (!p)
        check(-ENOMEM);
    memset(p, 1, size);
    return p;
}

/* ---- what a thing takes, each time ---------------------------------------------------------- */

typedef struct samples {
    double *at;
    long n, room;
} samples;

static samples room_for(long room)
{
    return (samples){.at = memory((size_t)room * sizeof(double)), .room = room};
}

static void add(samples *s, double value)
{
    if (s->n < s->room)
        s->at[s->n++] = value;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(samples *s, int percent)
{
    qsort(s->at, (size_t)s->n, sizeof *s->at, compare);
    return s->n ? s->at[(s->n - 1) * percent / 100] : 0;
}

/* One after the other, so the clock is read once for each. */
static void time_trips(const char *name, long n, void (*trip)(void))
{
    samples s = room_for(n);
    for (long i = 0; i <= n / 10; i++)
        trip();
    double now, before = seconds();
    for (long i = 0; i < n; i++) {
        trip();
        now = seconds();
        add(&s, now - before);
        before = now;
    }
    printf("%s %.3f us\n", name, percentile(&s, 50) * 1e6);
    free(s.at);
}

/* ---- threads -------------------------------------------------------------------------------- */

static int nothing(void *arg)
{
    (void)arg;
    return 0;
}

static void pool_trip(void) { check(conc_pool_run(&pool, nothing, NULL)); }

static void trip(long n)
{
    check(conc_pool_open(&pool));
    time_trips("trip", n, pool_trip);
    check(conc_pool_close(&pool));
}

/* The least that a round trip can take: a futex wakes the thread, and a descriptor in an epoll
 * wakes this one. */
static struct {
    atomic_int calls, end;
    int answers, epoll;
    pthread_t thread;
} bare;

static void futex(atomic_int *word, int operation, int value)
{
    syscall(SYS_futex, word, operation, value, NULL);
}

static void *answer(void *arg)
{
    uint64_t one = 1;
    for (;;) {
        while (!atomic_load(&bare.calls))
            futex(&bare.calls, FUTEX_WAIT_PRIVATE, 0);
        atomic_store(&bare.calls, 0);
        if (atomic_load(&bare.end))
            return arg;
        if (write(bare.answers, &one, sizeof one) != sizeof one)
            abort();
    }
}

static void bare_call(void)
{
    atomic_store(&bare.calls, 1);
    futex(&bare.calls, FUTEX_WAKE_PRIVATE, 1);
}

static void bare_trip(void)
{
    struct epoll_event event;
    uint64_t answers;
    bare_call();
    while (epoll_wait(bare.epoll, &event, 1, -1) != 1)
        ;
    if (read(bare.answers, &answers, sizeof answers) != sizeof answers)
        check(-errno);
}

static void bare_begin(void)
{
    struct epoll_event event = {.events = EPOLLIN};
    bare.answers = eventfd(0, EFD_CLOEXEC);
    bare.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ctl(bare.epoll, EPOLL_CTL_ADD, bare.answers, &event) < 0)
        check(-errno);
    check(-pthread_create(&bare.thread, NULL, answer, NULL));
}

static void bare_end(void)
{
    atomic_store(&bare.end, 1);
    bare_call();
    pthread_join(bare.thread, NULL);
    close(bare.epoll);
    close(bare.answers);
}

static void trip_after_idling(void (*one)(void), samples *s)
{
    check(conc_sleep(0.002));
    double before = seconds();
    one();
    add(s, seconds() - before);
}

static void trip_idle(long n)
{
    samples own = room_for(n), least = room_for(n);
    check(conc_pool_open(&pool));
    bare_begin();
    pool_trip();
    bare_trip();
    for (long i = 0; i < n; i++) {
        trip_after_idling(pool_trip, &own);
        trip_after_idling(bare_trip, &least);
    }
    bare_end();
    check(conc_pool_close(&pool));
    printf("trip_idle %.3f us\n", percentile(&own, 50) * 1e6);
    printf("trip_idle_bare %.3f us\n", percentile(&least, 50) * 1e6);
    printf("trip_idle_ratio %.3f x\n", percentile(&own, 50) / percentile(&least, 50));
    free(own.at);
    free(least.at);
}

static void submit_and_wait(conc_job *all, long n)
{
    for (long i = 0; i < n; i++)
        check(conc_pool_submit(&pool, &all[i], nothing, NULL));
    for (long i = 0; i < n; i++)
        check(conc_job_wait(&all[i], NULL));
}

static void jobs(long n)
{
    conc_job *all = memory((size_t)n * sizeof *all);
    check(conc_pool_open(&pool));
    submit_and_wait(all, n < WARM_UP ? n : WARM_UP);
    double start = seconds();
    submit_and_wait(all, n);
    printf("jobs %.4f us\n", (seconds() - start) * 1e6 / (double)n);
    check(conc_pool_close(&pool));
    free(all);
}

/* ---- processes ------------------------------------------------------------------------------ */

static int touch(void *arg)
{
    ++*(unsigned char *)arg;
    return 0;
}

static void proc_trip_once(void)
{
    static unsigned char item[ITEM];
    check(conc_procs_run(&procs, touch, item, sizeof item));
}

static void proc_trip(long n)
{
    check(conc_procs_open(&procs));
    time_trips("proc_trip", n, proc_trip_once);
    check(conc_procs_close(&procs));
}

static void proc_map(long n)
{
    unsigned char *items = memory((size_t)n * ITEM);
    check(conc_procs_open(&procs));
    check(conc_procs_map(&procs, touch, items, (size_t)(n < WARM_UP ? n : WARM_UP), ITEM));
    double start = seconds();
    check(conc_procs_map(&procs, touch, items, (size_t)n, ITEM));
    printf("proc_map %.4f us\n", (seconds() - start) * 1e6 / (double)n);
    check(conc_procs_close(&procs));
    free(items);
}

/* The compiler must not omit the copy although it is never read. */
static double time_copy(unsigned char *to, const unsigned char *from)
{
    double start = seconds();
    memcpy(to, from, BIG);
    __asm__ volatile("" : : "r"(to) : "memory");
    return seconds() - start;
}

static double time_big_job(unsigned char *data)
{
    double start = seconds();
    unsigned char before = *data;
    check(conc_procs_run(&procs, touch, data, BIG));
    if (*data != (unsigned char)(before + 1))
        check(-EIO);
    return seconds() - start;
}

/* As many bytes are copied back and forth as in two copies. */
static void proc_big(long n)
{
    enum { WARM = 2 };
    unsigned char *data = memory(BIG), *from = memory(BIG), *to = memory(BIG);
    samples job = room_for(n), copy = room_for(n);
    check(conc_procs_open(&procs));
    for (long i = -WARM; i < n; i++) {
        double took = time_big_job(data), copied = time_copy(to, from);
        if (i >= 0) {
            add(&job, took);
            add(&copy, copied);
        }
    }
    check(conc_procs_close(&procs));
    printf("proc_big %.2f ms\n", percentile(&job, 50) * 1e3);
    printf("memcpy %.2f ms\n", percentile(&copy, 50) * 1e3);
    printf("proc_big_ratio %.3f x\n", 2 * percentile(&copy, 50) / percentile(&job, 50));
    free(data);
    free(from);
    free(to);
    free(job.at);
    free(copy.at);
}

/* ---- a heartbeat while others compute ------------------------------------------------------- */

/* In memory that processes share. */
typedef struct control {
    atomic_int computing;
    atomic_bool stop;
} control;

static int compute(void *arg)
{
    control *c = *(control **)arg;
    atomic_fetch_add(&c->computing, 1);
    for (unsigned x = 1; !atomic_load_explicit(&c->stop, memory_order_relaxed);)
        for (int i = 0; i < 1000; i++)
            __asm__ volatile("" : "+r"(x));
    return 0;
}

static int bare_sleep(double s)
{
    struct timespec t = {.tv_nsec = (long)(s * 1e9)};
    return nanosleep(&t, NULL);
}

static void beat(const char *name, const char *kind, long milliseconds, int (*sleep_for)(double))
{
    samples late = room_for(2 * milliseconds);
    double now = seconds(), end = now + (double)milliseconds * 1e-3;
    while (now < end) {
        check(sleep_for(0.001));
        double then = seconds();
        add(&late, then - now - 0.001);
        now = then;
    }
    printf("%s%s_p50 %.4f ms\n", name, kind, percentile(&late, 50) * 1e3);
    printf("%s%s_p99 %.4f ms\n", name, kind, percentile(&late, 99) * 1e3);
    printf("%s%s_max %.4f ms\n", name, kind, percentile(&late, 100) * 1e3);
    free(late.at);
}

/* The bare one shows how the system treats a thread that sleeps while these compute. */
static void beat_both(const char *name, long milliseconds)
{
    beat(name, "", milliseconds, conc_sleep);
    beat(name, "_bare", milliseconds, bare_sleep);
}

static void beat_while_computing(const char *name, long milliseconds, control *c, conc_job *all)
{
    while (atomic_load(&c->computing) < COMPUTERS)
        check(conc_sleep(0.001));
    beat_both(name, milliseconds);
    atomic_store(&c->stop, true);
    for (int i = 0; i < COMPUTERS; i++)
        check(conc_job_wait(&all[i], NULL));
    conc_shared_free(c);
}

static control *new_control(void)
{
    control *c = conc_shared_alloc(sizeof *c);
    if (!c)
        check(-ENOMEM);
    return c;
}

static void beat_idle(long milliseconds)
{
    pool = (conc_pool){.threads = COMPUTERS};
    check(conc_pool_open(&pool));
    pool_trip();
    beat_both("beat_idle", milliseconds);
    check(conc_pool_close(&pool));
}

static void beat_threads(long milliseconds)
{
    conc_job all[COMPUTERS];
    control *c = new_control();
    pool = (conc_pool){.threads = COMPUTERS};
    check(conc_pool_open(&pool));
    for (int i = 0; i < COMPUTERS; i++)
        check(conc_pool_submit(&pool, &all[i], compute, &c));
    beat_while_computing("beat_threads", milliseconds, c, all);
    check(conc_pool_close(&pool));
}

static void beat_procs(long milliseconds)
{
    conc_job all[COMPUTERS];
    control *c = new_control(), *copies[COMPUTERS];
    procs = (conc_procs){.workers = COMPUTERS};
    check(conc_procs_open(&procs));
    for (int i = 0; i < COMPUTERS; i++) {
        copies[i] = c; /* the bytes belong to the job until it has ended */
        check(conc_procs_submit(&procs, &all[i], compute, &copies[i], sizeof copies[i]));
    }
    beat_while_computing("beat_procs", milliseconds, c, all);
    check(conc_procs_close(&procs));
}

/* ---- the benchmarks ------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    long count;
    void (*measure)(long n);
} benchmark;

static const benchmark benchmarks[] = {
    {"trip", 200000, trip},           {"trip_idle", 500, trip_idle},
    {"jobs", 1000000, jobs},          {"proc_trip", 100000, proc_trip},
    {"proc_map", 1000000, proc_map},  {"proc_big", 10, proc_big},
    {"beat_idle", 2000, beat_idle},   {"beat_threads", 2000, beat_threads},
    {"beat_procs", 2000, beat_procs},
};

static long count;

static int measure(void *arg)
{
    const benchmark *b = arg;
    b->measure(count);
    return 0;
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < CONC_LEN(benchmarks); i++) {
        const benchmark *b = &benchmarks[i];
        if (argc < 2)
            puts(b->name);
        else if (strcmp(argv[1], b->name) == 0) {
            count = argc > 2 ? atol(argv[2]) : b->count;
            check(conc_run(measure, (void *)b));
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}
