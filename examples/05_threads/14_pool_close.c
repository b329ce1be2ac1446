/* The close that waits. Ten tasks of a second each are submitted to a pool of five threads, and
   only leaving the pool's block waits for them. Then print the seconds, and the results.

   cc 14_pool_close.c -o pool_close
   ./pool_close
   CONC_CLOCK=virtual ./pool_close     # without waiting

   It prints ../expected/05_threads/14_pool_close.txt.
   Hint: CONC_AUTO(conc_pool, pool) = {...}; closes the pool on every exit from its block, like
   "with ThreadPoolExecutor() as pool:". */
#define CONC_STATIC
#include "../../conc_pool.h"

enum { TASKS = 10 };

typedef struct {
    int numbers[TASKS];
    conc_job futures[TASKS];
} tasks;

static int square(void *arg)
{
    int n = *(int *)arg;
    CONC_TRY(conc_block(1)); /* simulates a blocking call */
    return n * n;
}

/* Your turn: open a pool of five threads and submit a square of each number; leave it to the end
   of this function to close the pool. */
static int run_all(tasks *t)
{
    CONC_AUTO(conc_pool, pool) = {.threads = 5};
    CONC_TRY(conc_pool_open(&pool));
    for (size_t i = 0; i < TASKS; i++)
        CONC_TRY(conc_pool_submit(&pool, &t->futures[i], square, &t->numbers[i]));
    printf("All are submitted\n");
    return 0; /* waits here, until all jobs have ended */
}

static int app(void *arg)
{
    tasks *t = arg;
    for (int i = 0; i < TASKS; i++)
        t->numbers[i] = i;
    double start = conc_now();
    CONC_TRY(run_all(t));
    printf("The pool is closed after %.1f seconds\n", conc_now() - start);
    for (size_t i = 0; i < TASKS; i++) {
        int result;
        CONC_TRY(conc_job_wait(&t->futures[i], &result));
        printf("The square of %d is %d\n", t->numbers[i], result);
    }
    return 0;
}

int main(void)
{
    static tasks t;
    return conc_main(app, &t);
}
