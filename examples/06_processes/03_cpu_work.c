/* Work for the processor: Fibonacci numbers and sums of squares, one after the other on the
 * loop, then in four processes, which is faster when there are several processors. The results
 * are the same.
 *   cc 03_cpu_work.c -o cpu_work && ./cpu_work        (CONC_CLOCK=virtual: no times, as
 *   computing takes none)
 * In Python threads would not help, because of the GIL. C has none: conc_pool_map gains as much,
 * and starts sooner.
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <inttypes.h>
#include <pthread.h>
#include <unistd.h>

enum { WORKERS = 4 };

typedef struct {
    int64_t n, result;
    int worker;
    pthread_barrier_t *all; /* in shared memory; NULL: not in a worker */
} work;

static void begin(work *w)
{
    if (w->all)
        pthread_barrier_wait(w->all); /* until each of the four is in a worker of its own */
    w->worker = getpid();
}

/* slow on purpose; up to 92 it fits */
static int64_t fib(int64_t n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static int fibonacci(void *arg)
{
    work *w = arg;
    begin(w);
    w->result = fib(w->n);
    return 0;
}

static int sum_of_squares(void *arg)
{
    work *w = arg;
    begin(w);
    for (int64_t i = 0; i < w->n; i++)
        w->result += i * i;
    return 0;
}

static int workers_of(const work *pooled)
{
    int different = 0;
    for (int i = 0; i < WORKERS; i++) {
        bool seen = pooled[i].worker == getpid();
        for (int k = 0; k < i; k++)
            seen = seen || pooled[k].worker == pooled[i].worker;
        different += !seen;
    }
    return different;
}

static int compare(const char *what, conc_fn *compute, work *sequential, conc_procs *pool,
                   pthread_barrier_t *all)
{
    work pooled[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        pooled[i] = (work){.n = sequential[i].n, .all = all};
    double start = conc_now();
    for (int i = 0; i < WORKERS; i++)
        CONC_TRY(compute(&sequential[i]));
    double middle = conc_now();
    CONC_TRY(conc_procs_map(pool, compute, pooled, WORKERS, sizeof pooled[0]));
    double end = conc_now();

    for (int i = 0; i < WORKERS; i++) {
        if (pooled[i].result != sequential[i].result)
            return conc_fail(-EIO, "%s(%" PRId64 ") differs", what, pooled[i].n);
        printf("%s(%" PRId64 ") = %" PRId64 "\n", what, pooled[i].n, pooled[i].result);
    }
    printf("the same in %d processes\n", workers_of(pooled));
    if (end > middle)
        printf("%.3f s one after the other, %.3f s in the pool: %.1f times as fast\n",
               middle - start, end - middle, (middle - start) / (end - middle));
    return 0;
}

static int app(void *all)
{
    work numbers[WORKERS] = {{.n = 31}, {.n = 32}, {.n = 33}, {.n = 34}};
    work limits[WORKERS] = {{.n = 1000000}, {.n = 1500000}, {.n = 2000000}, {.n = 3000000}};
    CONC_AUTO(conc_procs, pool) = {.workers = WORKERS};
    CONC_TRY(conc_procs_open(&pool));
    CONC_TRY(compare("fibonacci", fibonacci, numbers, &pool, all));
    return compare("sum_of_squares", sum_of_squares, limits, &pool, all);
}

int main(void)
{
    pthread_barrierattr_t shared;
    pthread_barrier_t *all = conc_shared_alloc(sizeof *all);
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    if (!all || pthread_barrier_init(all, &shared, WORKERS) != 0)
        return 1;
    int status = conc_main(app, all);
    conc_shared_free(all);
    return status;
}
