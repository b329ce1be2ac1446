/* Errors in a pool: when a job fails the others go on, and whoever waits for it is told, with
 * its words. A map starts no more jobs after the first error, and returns it.
 *   cc 05_pool_errors.c -o errors && ./errors
 */
#define CONC_STATIC
#include "../../conc_pool.h"

static int task(void *arg)
{
    int n = *(int *)arg;
    if (n == 5)
        return conc_fail(-EINVAL, "Error!"); /* raise ValueError("Error!") */
    return n * 2;
}

static int app(void *arg)
{
    (void)arg;
    int numbers[10];
    /* futures: before the pool, as its close waits for jobs that use them */
    conc_job jobs[CONC_LEN(numbers)];
    CONC_AUTO(conc_pool, pool) = {.threads = 0}; /* as many threads as processors */
    CONC_TRY(conc_pool_open(&pool));
    for (size_t i = 0; i < CONC_LEN(jobs); i++) {
        numbers[i] = (int)i;
        CONC_TRY(conc_pool_submit(&pool, &jobs[i], task, &numbers[i]));
    }
    for (size_t i = 0; i < CONC_LEN(jobs); i++) {
        int result;
        /* fails when the waiting does; the job's error is in its result */
        CONC_TRY(conc_job_wait(&jobs[i], &result));
        if (result < 0)
            printf("Error: %s\n", conc_last_error());
        else
            printf("%d\n", result);
    }
    if (conc_pool_map(&pool, task, numbers, CONC_LEN(numbers), sizeof numbers[0]) < 0)
        printf("The map: %s\n", conc_last_error());
    return 0;
}

int main(void) { return conc_main(app, NULL); }
