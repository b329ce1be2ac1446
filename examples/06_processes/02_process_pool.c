/* Process pool. Three worker processes compute the squares of 1 to 5, a second each: print
   "Computing square of 1" in the worker, and the results in order. Check that the workers did the
   work.

   cc 02_process_pool.c -o squares
   ./squares     # takes 2 s, on the virtual clock, too: a process is outside it

   It prints what ../expected/06_processes/02_process_pool.awk allows, in any order.
   Hint: conc_procs_map_all(&pool, fn, array, count, size, results) is executor.map. A worker gets a
   copy of its element; changes to it are copied back. Pointers in it would be meaningless. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <unistd.h>

typedef struct {
    int n, worker;
} number;

/* Your turn: print "Computing square of 1" with the number, block for a second, set worker to this
   process's number (getpid), and return the square. */
static int compute_square(void *arg)
{
    number *x = arg;
    printf("Computing square of %d\n", x->n);
    CONC_TRY(conc_block(1)); /* simulates a long computation */
    x->worker = getpid();
    return x->n * x->n;
}

/* Your turn: compute all five in a pool of three workers. An error is passed on. */
static int five_squares(number *numbers, int *results)
{
    CONC_AUTO(conc_procs, pool) = {.workers = 3}; /* with ProcessPoolExecutor(max_workers=3) */
    CONC_TRY(conc_procs_open(&pool));
    return conc_procs_map_all(&pool, compute_square, numbers, 5, sizeof numbers[0], results);
}

static int app(void *arg)
{
    (void)arg;
    number numbers[5] = {{1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}};
    int results[5] = {0}, here = 0;
    CONC_TRY(five_squares(numbers, results));
    for (int i = 0; i < 5; i++) {
        printf("Result: %d\n", CONC_TRY(results[i]));
        here += numbers[i].worker == 0 || numbers[i].worker == getpid();
    }
    printf("%d of 5 by workers\n", 5 - here);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
