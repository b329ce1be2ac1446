/* Work for the processor. Compute four Fibonacci numbers the slow way: one after the other, in a
   process pool, and in threads. Compare the times: with two processors, about half.

   cc 03_cpu_work.c -o cpu_work
   ./cpu_work

   It prints ../expected/06_processes/03_cpu_work.txt, with real times instead of 0:
   on the virtual clock of the check, computing takes no time.
   Hint: conc_procs_map(&pool, fn, list, count, size) and conc_pool_map(&pool, ...). In Python the
   GIL keeps threads from computing at the same time; C has none, and threads start sooner. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <unistd.h>

enum { COUNT = 4 };

typedef struct {
    int n, result, process;
} work;

static int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static int fibonacci(void *arg)
{
    work *w = arg;
    w->result = fib(w->n);
    w->process = getpid();
    return 0;
}

static int one_by_one(work *list)
{
    for (int i = 0; i < COUNT; i++)
        CONC_TRY(fibonacci(&list[i]));
    return 0;
}

/* Your turn: call fibonacci with each of the list in a pool of processes, as many as processors. */
static int in_processes(work *list)
{
    CONC_AUTO(conc_procs, pool) = {.workers = 0};
    CONC_TRY(conc_procs_open(&pool));
    return conc_procs_map(&pool, fibonacci, list, COUNT, sizeof list[0]);
}

/* Your turn: the same in a pool of threads, as many as processors. */
static int in_threads(work *list)
{
    CONC_AUTO(conc_pool, pool) = {.threads = 0};
    CONC_TRY(conc_pool_open(&pool));
    return conc_pool_map(&pool, fibonacci, list, COUNT, sizeof list[0]);
}

static int measure(const char *how, int (*compute)(work *list))
{
    work list[COUNT] = {{.n = 35}, {.n = 34}, {.n = 35}, {.n = 34}};
    double start = conc_now();
    CONC_TRY(compute(list));
    printf("%s: %.2f s\n", how, conc_now() - start);
    for (int i = 0; i < COUNT; i++)
        printf("  fibonacci(%d) = %d, in %s process\n", list[i].n, list[i].result,
               list[i].process == getpid() ? "this" : "another");
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(measure("One by one", one_by_one));
    CONC_TRY(measure("In processes", in_processes));
    return measure("In threads", in_threads);
}

int main(void) { return conc_main(app, NULL); }
