/* The heavy calculator: a server answers "Pong" at once, but for as long as it computes on the
 * loop it answers nobody. In a process of its own, or in a thread, the computation leaves the
 * loop free.
 *   cc 02_heavy_calculator.c -o calculator && ./calculator
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include <inttypes.h>

typedef struct {
    /* high * 10^18 + low: the sum has 21 digits, and 64 bits hold no more than 20 */
    uint64_t high, low;
} big;

static int calculate(void *arg)
{
    big *sum = arg;
    const uint64_t base = 1000000000000000000;
    for (uint64_t i = 0; i < 10000000; i++) {
        sum->low += i * i;
        if (sum->low >= base) {
            sum->low -= base;
            sum->high++;
        }
    }
    return 0;
}

static conc_procs *processes;

/* the bug */
static int on_the_loop(big *sum) { return calculate(sum); }
/* the fix */
static int in_a_process(big *sum) { return conc_procs_run(processes, calculate, sum, sizeof *sum); }
/* C has no GIL: this will do as well */
static int in_a_thread(big *sum) { return conc_offload(calculate, sum); }

static int (*heavy)(big *sum);

static int ping(void *arg)
{
    (void)arg;
    printf("  A: Pong\n");
    return 0;
}

static int heavy_sum(void *arg)
{
    (void)arg;
    big sum = {0};
    CONC_TRY(heavy(&sum));
    printf("  B: %" PRIu64 "%018" PRIu64 "\n", sum.high, sum.low);
    return 0;
}

static int server(void *arg)
{
    conc_queue *requests = arg;
    conc_fn *handler;
    int rc;
    conc_group handlers = {0};
    while ((rc = conc_queue_get(requests, &handler)) == 0)
        CONC_TRY_IN(&handlers, conc_spawn(&handlers, handler, NULL));
    return conc_group_end(&handlers, rc == -EPIPE ? 0 : rc); /* closed: no more requests */
}

static int client(void *arg)
{
    conc_queue *requests = arg;
    conc_fn *in_order[] = {heavy_sum, ping}; /* B first, so that A has something to wait for */
    for (size_t i = 0; i < CONC_LEN(in_order); i++)
        CONC_TRY(conc_queue_put(requests, &in_order[i]));
    conc_queue_close(requests);
    return 0;
}

static int demonstrate(const char *where, int (*how)(big *sum))
{
    CONC_AUTO(conc_queue, requests) = CONC_QUEUE(conc_fn *, 10);
    heavy = how;
    printf("%s:\n", where);
    return CONC_GATHER(CONC_CALL(server, &requests), CONC_CALL(client, &requests));
}

static int app(void *arg)
{
    (void)arg;
    CONC_AUTO(conc_procs, pool) = {.workers = 1};
    CONC_TRY(conc_procs_open(processes = &pool));
    CONC_TRY(demonstrate("On the loop", on_the_loop));
    CONC_TRY(demonstrate("In a process", in_a_process));
    return demonstrate("In a thread", in_a_thread);
}

int main(void) { return conc_main(app, NULL); }
