/* A thousand jobs on ten threads. A thread per job would be too many. Ten threads do a thousand
   jobs of 0.01 s each in a second. Count the jobs, and the threads that did them.

   cc 15_thousand_jobs.c -o thousand
   ./thousand
   CONC_CLOCK=virtual ./thousand     # without waiting

   It prints ../expected/05_threads/15_thousand_jobs.txt.
   Hint: counters shared by several threads must be atomic; each thread has its own copy of a
   _Thread_local variable. With size 0, conc_pool_map passes the same argument to each call. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <stdatomic.h>

static atomic_int jobs, threads;
static _Thread_local bool is_counted; /* false in each thread, until it sets its own */

/* Your turn: count this job, and this thread if it is not counted; block for 0.01 s. */
static int work(void *arg)
{
    (void)arg;
    jobs++;
    if (!is_counted)
        threads++;
    is_counted = true;
    return conc_block(0.01);
}

/* Your turn: call work a thousand times in a pool of ten threads. */
static int a_thousand_times(void)
{
    CONC_AUTO(conc_pool, pool) = {.threads = 10};
    CONC_TRY(conc_pool_open(&pool));
    return conc_pool_map(&pool, work, NULL, 1000, 0);
}

static int app(void *arg)
{
    (void)arg;
    double start = conc_now();
    CONC_TRY(a_thousand_times());
    printf("%d jobs on %d threads: %.1f seconds\n", jobs, threads, conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
