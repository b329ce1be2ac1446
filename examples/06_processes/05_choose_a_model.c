/* Choose a model: the same requests and the same sums by tasks, by threads and by processes,
 * with the same results.
 *   cc 05_choose_a_model.c -o choose && ./choose        (CONC_CLOCK=virtual: no times, as
 *   computing takes none)
 *
 *              run             memory           a crash ends   use them for
 *   tasks      one at a time   shared           everything     what waits: network, timers,
 *              100,000 at once
 *   threads    at once         shared: locks    everything     what computes, and libraries that
 *              only block
 *   processes  at once         a copy for each  its own job    what may crash or must be killed
 *
 * Python's GIL lets one thread compute at a time, so that computing needs processes there; C has
 * no GIL. What holds in both: tasks do not compute faster, a call that blocks stops them all,
 * what computes gains nothing from more threads than processors, and a process takes its time to
 * start.
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include <inttypes.h>

enum { JOBS = 4 };

typedef struct {
    int64_t n, result;
    char address[64];
} job;

static int ask(void *arg) /* waits: asks a server for the square of n */
{
    job *j = arg;
    int fd = CONC_TRY(conc_dial(j->address));
    ssize_t size = conc_write_full(fd, &j->n, sizeof j->n);
    if (size >= 0)
        size = conc_read_full(fd, &j->result, sizeof j->result);
    conc_close(fd);
    return size < 0 ? (int)size : 0;
}

/* a thread or worker has no loop yet */
static int request(void *j) { return conc_self() ? ask(j) : conc_run(ask, j); }

static int sum_of_squares(void *arg) /* computes: the squares below n, added up */
{
    job *j = arg;
    for (int64_t i = 0; i < j->n; i++)
        j->result += i * i;
    return 0;
}

static int nothing(void *arg) { return (void)arg, 0; }

static int answer(int fd, void *all)
{
    int64_t n;
    CONC_TRY(conc_read_full(fd, &n, sizeof n));
    /* until all have asked: requests one after the other would hang */
    CONC_TRY(conc_barrier_wait(all));
    n *= n;
    return (int)CONC_TRY(conc_write_full(fd, &n, sizeof n));
}

static int serve(void *server) { return conc_serve(server); }

static conc_pool *threads;
static conc_procs *processes;

static int by_tasks(conc_fn *fn, job *jobs) { return conc_map(fn, jobs, JOBS, sizeof *jobs); }
static int by_threads(conc_fn *fn, job *jobs)
{
    return conc_pool_map(threads, fn, jobs, JOBS, sizeof *jobs);
}
static int by_processes(conc_fn *fn, job *jobs)
{
    return conc_procs_map(processes, fn, jobs, JOBS, sizeof *jobs);
}

typedef struct {
    job requests[JOBS], sums[JOBS];
    double start_ms, requests_ms, sums_ms;
} outcome;

static int measure(outcome *o, int (*map)(conc_fn *fn, job *jobs), const char *address)
{
    for (int i = 0; i < JOBS; i++) {
        o->requests[i] = (job){.n = i + 1};
        o->sums[i] = (job){.n = (i + 3) * 500000};
        snprintf(o->requests[i].address, sizeof o->requests[i].address, "%s", address);
    }
    double begin = conc_now();
    CONC_TRY(map(nothing, o->sums)); /* the first jobs of a pool start its threads or workers */
    double started = conc_now();
    CONC_TRY(map(request, o->requests));
    double asked = conc_now();
    CONC_TRY(map(sum_of_squares, o->sums));
    o->start_ms = (started - begin) * 1000;
    o->requests_ms = (asked - started) * 1000;
    o->sums_ms = (conc_now() - asked) * 1000;
    return 0;
}

static int report(const char *model, const outcome *o, const outcome *tasks)
{
    for (int i = 0; i < JOBS; i++)
        if (o->requests[i].result != tasks->requests[i].result ||
            o->sums[i].result != tasks->sums[i].result)
            return conc_fail(-EIO, "%s have other results", model);
    printf("%s: the same results\n", model);
    if (o->sums_ms > 0)
        printf("  %.2f ms to start, %.2f ms for the requests, %.2f ms for the sums: %.1f times as "
               "fast as tasks\n",
               o->start_ms, o->requests_ms, o->sums_ms, tasks->sums_ms / o->sums_ms);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    static conc_barrier all = CONC_BARRIER(JOBS);
    static conc_server server = {.handler = answer, .arg = &all};
    static outcome by[3];
    char address[64];
    CONC_AUTO(conc_pool, pool) = {.threads = JOBS};
    CONC_AUTO(conc_procs, procs) = {.workers = JOBS};
    CONC_TRY(conc_pool_open(threads = &pool));
    CONC_TRY(conc_procs_open(processes = &procs));
    server.fd = CONC_TRY(conc_listen("localhost:0"));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    CONC_TRY(conc_spawn(NULL, serve, &server)); /* in the background, until the run ends */

    CONC_TRY(measure(&by[0], by_tasks, address));
    CONC_TRY(measure(&by[1], by_threads, address));
    CONC_TRY(measure(&by[2], by_processes, address));
    for (int i = 0; i < JOBS; i++)
        printf("The square of %" PRId64 " is %" PRId64 "; the squares below %" PRId64
               " sum up to %" PRId64 "\n",
               by[0].requests[i].n, by[0].requests[i].result, by[0].sums[i].n,
               by[0].sums[i].result);
    CONC_TRY(report("Tasks", &by[0], &by[0]));
    CONC_TRY(report("Threads", &by[1], &by[0]));
    return report("Processes", &by[2], &by[0]);
}

int main(void) { return conc_main(app, NULL); }
