/* The heavy calculator. A server gets two requests: B wants the sum of the first 10^7 squares, then
   A wants just a "Pong". If B computes on the loop, A waits for it. Fix it in two ways: B computes
   in a process, or in a thread (C has no GIL, so that will do).

   cc 02_heavy_calculator.c -o calculator
   ./calculator

   It prints ../expected/07_offload/02_heavy_calculator.txt.
   Hint: conc_procs_run(&pool, calculate, sum, sizeof(big)) sends a copy of the sum to a worker, and
   gets it back. conc_offload(calculate, sum) uses a thread of this process. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <inttypes.h>
#include <unistd.h>

typedef struct {
    uint64_t high, low; /* high * 10^18 + low: 64 bits alone are too few for the sum */
    int process;
} big;

static int calculate(void *arg)
{
    big *sum = arg;
    const uint64_t base = 1000000000000000000;
    for (uint64_t i = 0; i < 10000000; i++) {
        sum->low += i * i;
        sum->high += sum->low / base;
        sum->low %= base;
    }
    sum->process = getpid();
    return 0;
}

/* Your turn: calculate this sum in a worker of a pool of processes. An error is passed on. */
static int in_a_process(void *sum)
{
    CONC_AUTO(conc_procs, pool) = {.workers = 1};
    CONC_TRY(conc_procs_open(&pool));
    return conc_procs_run(&pool, calculate, sum, sizeof(big));
}

/* Your turn: calculate this sum in a thread. */
static int in_a_thread(void *sum) { return conc_offload(calculate, sum); }

static conc_fn *heavy; /* how request B gets its sum */

static int request_a(void *arg)
{
    (void)arg;
    printf("  A: Pong\n");
    return 0;
}

static int request_b(void *arg)
{
    (void)arg;
    big sum = {0};
    CONC_TRY(heavy(&sum));
    printf("  B: %" PRIu64 "%018" PRIu64 ", from %s process\n", sum.high, sum.low,
           sum.process == getpid() ? "this" : "another");
    return 0;
}

static int server(const char *where, conc_fn *how)
{
    conc_group g = {0};
    heavy = how;
    printf("%s:\n", where);
    CONC_TRY_IN(&g, conc_spawn(&g, request_b, NULL)); /* a task for each request, as they come */
    CONC_TRY_IN(&g, conc_spawn(&g, request_a, NULL));
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(server("On the loop", calculate)); /* the bug */
    CONC_TRY(server("In a process", in_a_process));
    return server("In a thread", in_a_thread);
}

int main(void) { return conc_main(app, NULL); }
