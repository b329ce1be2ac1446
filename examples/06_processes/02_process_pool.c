/* A process pool: three workers compute the squares of five numbers. The results come in the
 * order of the numbers, also when 3 is done before 1. A worker that dies costs its own job and
 * nothing else: that is what processes are for.
 *   cc 02_process_pool.c -o pool && ./pool
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

typedef struct {
    sem_t three_is_done;
    atomic_int done;
} board; /* all processes see it: 04_shared_data.c */

typedef struct {
    int n, place, worker;
    board *board;
} number;

static int compute_square(void *arg) /* in a worker, on a copy of the number that comes back */
{
    number *x = arg;
    if (x->n == 1)
        sem_wait(&x->board->three_is_done); /* blocks this worker; another one computes 3 */
    x->place = ++x->board->done;
    x->worker = getpid();
    if (x->n == 3)
        sem_post(&x->board->three_is_done);
    return x->n * x->n;
}

static int crash(void *arg)
{
    (void)arg;
    return raise(SIGKILL); /* as the system does it when memory runs out */
}

static int app(void *arg)
{
    board *b = arg;
    number numbers[] = {{1, 0, 0, b}, {2, 0, 0, b}, {3, 0, 0, b}, {4, 0, 0, b}, {5, 0, 0, b}};
    int results[CONC_LEN(numbers)];
    /* with ProcessPoolExecutor(max_workers=3) as pool: */
    CONC_AUTO(conc_procs, pool) = {.workers = 3};
    CONC_TRY(conc_procs_open(&pool));
    CONC_TRY(conc_procs_map_all(&pool, compute_square, numbers, CONC_LEN(numbers),
                                sizeof numbers[0], results));
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        printf("Result: %d\n", CONC_TRY(results[i]));
    if (numbers[2].place < numbers[0].place && numbers[2].worker != numbers[0].worker)
        printf("3 was done before 1, by another worker\n");

    if (conc_procs_run(&pool, crash, NULL, 0) == -EOWNERDEAD)
        printf("Crashed: %s\n", conc_last_error());
    printf("The pool goes on: the square of 5 is %d\n",
           CONC_TRY(conc_procs_run(&pool, compute_square, &numbers[4], sizeof numbers[4])));
    return 0;
}

int main(void)
{
    board *b = conc_shared_alloc(sizeof *b);
    if (!b || sem_init(&b->three_is_done, 1, 0) < 0) /* 1: for several processes */
        return 1;
    int status = conc_main(app, b);
    conc_shared_free(b);
    return status;
}
