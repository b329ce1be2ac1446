/* Errors in a pool. Ten jobs get the numbers 0 to 9. The one with 5 fails with "Error!", the others
   return twice their number. Print each result, or the error, in order.

   cc 05_pool_errors.c -o errors
   ./errors

   It prints ../expected/05_threads/05_pool_errors.txt.
   Hint: return conc_fail(-EINVAL, "Error!") is raise ValueError("Error!"). conc_job_wait itself
   then returns 0: the job's error is in its result, the text in conc_last_error(). */
#define CONC_STATIC
#include "../../conc_pool.h"

/* Your turn: fail when the number that arg points to is 5, else return twice the number. */
static int task(void *arg)
{
    int n = *(int *)arg;
    if (n == 5)
        return conc_fail(-EINVAL, "Error!");
    return n * 2;
}

/* Your turn: wait for each of the jobs, print its result, or "Error: " and its words. */
static int print_results(conc_job *jobs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int result;
        CONC_TRY(conc_job_wait(&jobs[i], &result)); /* fails only if the waiting does */
        if (result < 0)
            printf("Error: %s\n", conc_last_error());
        else
            printf("%d\n", result);
    }
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    int numbers[10];
    conc_job futures[CONC_LEN(numbers)];         /* before the pool, whose close waits for them */
    CONC_AUTO(conc_pool, pool) = {.threads = 0}; /* 0: as many threads as processors */
    CONC_TRY(conc_pool_open(&pool));
    for (size_t i = 0; i < CONC_LEN(numbers); i++) {
        numbers[i] = (int)i;
        CONC_TRY(conc_pool_submit(&pool, &futures[i], task, &numbers[i]));
    }
    CONC_TRY(print_results(futures, CONC_LEN(futures)));
    /* a map passes on the first error, and starts nothing after it */
    if (conc_pool_map(&pool, task, numbers, CONC_LEN(numbers), sizeof numbers[0]) < 0)
        printf("The map: %s\n", conc_last_error());
    return 0;
}

int main(void) { return conc_main(app, NULL); }
