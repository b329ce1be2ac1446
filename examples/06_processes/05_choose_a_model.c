/* Choose a model. Four requests that wait for a second, and four sums to compute: with tasks,
   threads and processes. All produce the same results; the times show what each is good for.

   cc 05_choose_a_model.c -o choose
   ./choose

   It prints what ../expected/06_processes/05_choose_a_model.awk allows: times differ.
   Hint: all three have a map: conc_map(fn, jobs, count, size) for tasks, conc_pool_map and
   conc_procs_map with a pool as first argument. The course's README.md explains when to choose
   which. */
#define CONC_STATIC
#include "../../conc_pool.h"

enum { JOBS = 4 };

typedef struct {
    int64_t n, result;
} job;

static int nothing(void *arg) { return (void)arg, 0; }

static int request(void *arg) /* waits: the answer is the square, after a second */
{
    job *j = arg;
    j->result = j->n * j->n;
    return conc_self() ? conc_sleep(1) : conc_block(1); /* a task lets others run meanwhile */
}

static int sum_of_squares(void *arg) /* computes: the squares below n, added up, 20 times */
{
    job *j = arg;
    for (int round = 0; round < 20; round++) {
        j->result = 0;
        for (int64_t i = 0; i < j->n; i++)
            j->result += i * i;
    }
    return 0;
}

/* Your turn: call fn with each of the jobs, each in a task. */
static int by_tasks(conc_fn *fn, job *jobs) { return conc_map(fn, jobs, JOBS, sizeof *jobs); }

/* Your turn: the same in a pool of threads, one for each job. */
static int by_threads(conc_fn *fn, job *jobs)
{
    CONC_AUTO(conc_pool, pool) = {.threads = JOBS};
    CONC_TRY(conc_pool_open(&pool));
    return conc_pool_map(&pool, fn, jobs, JOBS, sizeof *jobs);
}

/* Your turn: the same in a pool of processes, one for each job. */
static int by_processes(conc_fn *fn, job *jobs)
{
    CONC_AUTO(conc_procs, pool) = {.workers = JOBS};
    CONC_TRY(conc_procs_open(&pool));
    return conc_procs_map(&pool, fn, jobs, JOBS, sizeof *jobs);
}

static int measure(const char *model, int (*map)(conc_fn *fn, job *jobs))
{
    job asked[JOBS] = {{1, 0}, {2, 0}, {3, 0}, {4, 0}};
    job sums[JOBS] = {{1000000, 0}, {1500000, 0}, {2000000, 0}, {3000000, 0}};
    double t0 = conc_now();
    CONC_TRY(map(nothing, asked));
    double t1 = conc_now();
    CONC_TRY(map(request, asked));
    double t2 = conc_now();
    CONC_TRY(map(sum_of_squares, sums));
    printf("%s: started in %.2f ms, requests %.2f s, sums %.3f s\n", model, (t1 - t0) * 1000,
           t2 - t1, conc_now() - t2);
    for (int i = 0; i < JOBS; i++)
        printf("  %lld, %lld\n", (long long)asked[i].result, (long long)sums[i].result);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(measure("Tasks", by_tasks));
    CONC_TRY(measure("Threads", by_threads));
    return measure("Processes", by_processes);
}

int main(void) { return conc_main(app, NULL); }
