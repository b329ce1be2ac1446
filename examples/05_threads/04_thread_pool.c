/* Thread pool. Five tasks of a second each, and three threads for them: submit all, then wait for
   the results, in order. Print each result when available, and the total seconds.

   cc 04_thread_pool.c -o pool
   ./pool
   CONC_CLOCK=virtual ./pool     # without waiting

   It prints what ../expected/05_threads/04_thread_pool.awk allows: threads print in any order.
   Hint: conc_pool_submit(&pool, &job, fn, arg) is executor.submit, and the conc_job is the future;
   conc_job_wait(&job, &result) is result = future.result(). */
#define CONC_STATIC
#include "../../conc_pool.h"

/* Your turn: print "Task 0 starting" with the number that arg points to, block this thread for a
   second, and return the number. */
static int task(void *arg)
{
    int n = *(int *)arg;
    printf("Task %d starting\n", n);
    CONC_TRY(conc_block(1)); /* simulates a blocking call: time.sleep(1) */
    return n;
}

/* Your turn: submit a task for each of the five numbers, then wait for each in turn, and print
   "Task 0 completed" with its result. */
static int five_tasks(conc_pool *pool)
{
    static int numbers[] = {0, 1, 2, 3, 4}; /* static: a job needs them until it has ended */
    static conc_job futures[CONC_LEN(numbers)];
    int result;
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        CONC_TRY(conc_pool_submit(pool, &futures[i], task, &numbers[i]));
    for (size_t i = 0; i < CONC_LEN(numbers); i++) {
        CONC_TRY(conc_job_wait(&futures[i], &result));
        printf("Task %d completed\n", result);
    }
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    double start = conc_now();
    CONC_AUTO(conc_pool,
              pool) = {.threads = 3}; /* with ThreadPoolExecutor(max_workers=3) as pool */
    CONC_TRY(conc_pool_open(&pool));
    CONC_TRY(five_tasks(&pool));
    printf("%.1f seconds\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
