/* A worker that crashes. A dying process takes only its own job with it, unlike a thread: the
   caller gets -EOWNERDEAD with a text, and the pool continues with a new worker.

   cc 06_worker_crash.c -o worker_crash
   ./worker_crash

   It prints ../expected/06_processes/06_worker_crash.txt.
   Hint: conc_procs_run(pool, fn, &x, sizeof x) runs one job, and returns its result or an error;
   conc_last_error() returns the error's text. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <signal.h>

static int square(void *arg)
{
    int n = *(int *)arg;
    if (n == 3)
        raise(SIGKILL); /* as the system does when memory runs out; a segmentation fault is alike */
    return n * n;
}

/* Your turn: run a square of n in the pool. Print "The square of 1 is 1", or, when the worker has
   died, "No square of 3: " and the words of the error. Other errors are passed on. */
static int print_square(conc_procs *pool, int n)
{
    int result = conc_procs_run(pool, square, &n, sizeof n);
    if (result == -EOWNERDEAD) {
        printf("No square of %d: %s\n", n, conc_last_error());
        return 0;
    }
    printf("The square of %d is %d\n", n, CONC_TRY(result));
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_AUTO(conc_procs, pool) = {.workers = 1};
    CONC_TRY(conc_procs_open(&pool));
    for (int n = 1; n <= 5; n++)
        CONC_TRY(print_square(&pool, n));
    return 0;
}

int main(void) { return conc_main(app, NULL); }
