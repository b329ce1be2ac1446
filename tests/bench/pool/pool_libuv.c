/* pool_libuv NAME [COUNT]: the benchmarks of pool_conc.c with the thread pool of libuv, as many
 * threads as processors. Its timers count whole milliseconds of a time that it reads once per
 * iteration, so a heartbeat may come up to 1 ms too early.
 *   cc -O2 pool_libuv.c -o pool_libuv -luv
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum { BATCH = 10000, WARM_UP = 10000, COMPUTERS = 2 };

static uv_loop_t *loop;

static void check(int rc)
{
    if (rc >= 0)
        return;
    fprintf(stderr, "pool_libuv: %s\n", uv_strerror(rc));
    exit(1);
}

static double seconds(void) { return (double)uv_hrtime() * 1e-9; }

/* ---- what a thing takes, each time ---------------------------------------------------------- */

static double *samples;
static long taken, wanted;

static void room_for(long n)
{
    samples = calloc((size_t)n, sizeof *samples);
    if (!samples)
        check(UV_ENOMEM);
    wanted = n;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(int percent)
{
    qsort(samples, (size_t)taken, sizeof *samples, compare);
    return taken ? samples[(taken - 1) * percent / 100] : 0;
}

/* ---- round trips ---------------------------------------------------------------------------- */

static uv_work_t work;
static uv_timer_t timer;
static double begun;
static long to_warm_up;
static bool idling;

static void nothing(uv_work_t *w) { (void)w; }

static void came_back(uv_work_t *w, int status);

static void go(uv_timer_t *t)
{
    (void)t;
    begun = seconds();
    check(uv_queue_work(loop, &work, nothing, came_back));
}

/* Back to back, so the clock is read once for each. */
static void came_back(uv_work_t *w, int status)
{
    double now = seconds();
    check(status);
    if (to_warm_up > 0)
        to_warm_up--;
    else
        samples[taken++] = now - begun;
    begun = now;
    if (taken == wanted)
        return;
    if (idling)
        check(uv_timer_start(&timer, go, 2, 0));
    else
        check(uv_queue_work(loop, w, nothing, came_back));
}

static void time_trips(const char *name, long n)
{
    room_for(n);
    check(uv_timer_init(loop, &timer));
    go(NULL);
    uv_run(loop, UV_RUN_DEFAULT);
    printf("%s %.3f us\n", name, percentile(50) * 1e6);
}

static void trip(long n)
{
    to_warm_up = n / 10 + 1;
    time_trips("trip", n);
}

static void trip_idle(long n)
{
    idling = true;
    to_warm_up = 1;
    time_trips("trip_idle", n);
}

/* ---- many jobs ------------------------------------------------------------------------------ */

static void ended(uv_work_t *w, int status)
{
    (void)w;
    check(status);
}

static void do_in_batches(uv_work_t *all, long n)
{
    for (long done = 0; done < n; done += BATCH) {
        for (long i = 0; i < BATCH && done + i < n; i++)
            check(uv_queue_work(loop, &all[i], nothing, ended));
        uv_run(loop, UV_RUN_DEFAULT);
    }
}

static void jobs(long n)
{
    static uv_work_t all[BATCH];
    do_in_batches(all, n < WARM_UP ? n : WARM_UP);
    double start = seconds();
    do_in_batches(all, n);
    printf("jobs %.4f us\n", (seconds() - start) * 1e6 / (double)n);
}

/* ---- a heartbeat while others compute ------------------------------------------------------- */

static atomic_int computing;
static atomic_bool stop;
static double last_beat;

static void compute(uv_work_t *w)
{
    (void)w;
    atomic_fetch_add(&computing, 1);
    for (unsigned x = 1; !atomic_load_explicit(&stop, memory_order_relaxed);)
        for (int i = 0; i < 1000; i++)
            __asm__ volatile("" : "+r"(x));
}

static void on_beat(uv_timer_t *t)
{
    double now = seconds();
    if (taken < wanted)
        samples[taken++] = now - begun - 0.001;
    begun = now;
    uv_update_time(loop);
    if (now < last_beat)
        check(uv_timer_start(t, on_beat, 1, 0));
    else
        atomic_store(&stop, true);
}

static void beat(const char *name, long milliseconds)
{
    room_for(4 * milliseconds);
    check(uv_timer_init(loop, &timer));
    uv_update_time(loop);
    begun = seconds();
    last_beat = begun + (double)milliseconds * 1e-3;
    check(uv_timer_start(&timer, on_beat, 1, 0));
    uv_run(loop, UV_RUN_DEFAULT);
    printf("%s_p50 %.4f ms\n", name, percentile(50) * 1e3);
    printf("%s_p99 %.4f ms\n", name, percentile(99) * 1e3);
    printf("%s_max %.4f ms\n", name, percentile(100) * 1e3);
}

static void beat_idle(long milliseconds)
{
    check(uv_queue_work(loop, &work, nothing, ended));
    uv_run(loop, UV_RUN_DEFAULT);
    beat("beat_idle", milliseconds);
}

static void beat_threads(long milliseconds)
{
    static uv_work_t all[COMPUTERS];
    for (int i = 0; i < COMPUTERS; i++)
        check(uv_queue_work(loop, &all[i], compute, ended));
    while (atomic_load(&computing) < COMPUTERS)
        uv_sleep(1);
    beat("beat_threads", milliseconds);
}

/* ---- the benchmarks ------------------------------------------------------------------------- */

static const struct {
    const char *name;
    long count;
    void (*measure)(long n);
    int least_threads;
} benchmarks[] = {
    {"trip", 100000, trip, 1},
    {"trip_idle", 500, trip_idle, 1},
    {"jobs", 1000000, jobs, 1},
    {"beat_idle", 2000, beat_idle, COMPUTERS},
    {"beat_threads", 2000, beat_threads, COMPUTERS},
};

static void set_threads(int least)
{
    char text[16];
    int n = (int)uv_available_parallelism();
    snprintf(text, sizeof text, "%d", n < least ? least : n);
    check(uv_os_setenv("UV_THREADPOOL_SIZE", text));
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof benchmarks / sizeof *benchmarks; i++)
        if (argc < 2)
            puts(benchmarks[i].name);
        else if (strcmp(argv[1], benchmarks[i].name) == 0) {
            set_threads(benchmarks[i].least_threads);
            loop = uv_default_loop();
            benchmarks[i].measure(argc > 2 ? atol(argv[2]) : benchmarks[i].count);
            return 0;
        }
    return argc < 2 ? 0 : 2;
}
