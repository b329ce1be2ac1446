/* Queue system: producers put tasks into a queue of 10 places and wait when it is full; workers take the most urgent one
 * first. Measured: how long tasks wait, how long they take, and how many are done in a second.
 *   cc 08_queue_system.c -o queue && ./queue        (CONC_CLOCK=virtual ./queue takes no time)
 *   ./queue --goal                                  100 tasks, 5 producers, 3 workers: only the figures
 *   EX_SEED=1 CONC_CLOCK=virtual ./queue            other random numbers
 */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_SIZE = 10, NUM_WORKERS = 3, MOST_PRODUCERS = 5, MOST_TASKS = 20 };

typedef struct {
    int producer, number, priority; /* 1: urgent, 3: can wait */
    double created;
} task;

static bool more_urgent(const void *a, const void *b)
{
    return ((const task *)a)->priority < ((const task *)b)->priority; /* equal ones stay in their order */
}

static conc_queue queue = CONC_QUEUE(task, MAX_SIZE, .less = more_urgent);
static int producers = 3, tasks_each = 5;
static bool quiet;
static double start;

static struct {
    int processed, failed, blocked, deepest;
    double wait_time, processing_time, latency;
    int seen[MOST_PRODUCERS][MOST_TASKS];
} metrics;

static int producer(void *arg)
{
    task t = {.producer = *(int *)arg};
    for (t.number = 0; t.number < tasks_each; t.number++) {
        t.priority = (int)conc_random(1, 4);
        t.created = conc_now();
        if (conc_queue_len(&queue) == MAX_SIZE)
            metrics.blocked++;
        CONC_TRY(conc_queue_put(&queue, &t)); /* waits while the queue is full: backpressure */
        if ((int)conc_queue_len(&queue) > metrics.deepest)
            metrics.deepest = (int)conc_queue_len(&queue);
    }
    return 0;
}

static int process(void)
{
    CONC_TRY(conc_sleep(conc_random(0.1, 0.5)));
    return conc_random(0, 1) < 0.1 ? conc_fail(-EIO, "bad luck") : 0;
}

static int worker(void *arg)
{
    task t;
    int rc;
    while ((rc = conc_queue_get(&queue, &t)) == 0) {
        double taken = conc_now();
        rc = process();
        if (rc == -ECANCELED)
            return rc;
        double done = conc_now();
        metrics.processed += rc == 0;
        metrics.failed += rc < 0; /* the worker goes on with the next */
        metrics.wait_time += taken - t.created;
        metrics.processing_time += done - taken;
        metrics.latency += done - t.created;
        metrics.seen[t.producer][t.number]++;
        if (!quiet)
            printf("%.2f-%.2f s: worker %d, task %d.%d, priority %d%s\n", taken - start, done - start, *(int *)arg,
                   t.producer, t.number, t.priority, rc < 0 ? ": failed" : "");
        CONC_TRY(conc_queue_task_done(&queue));
    }
    return rc == -EPIPE ? 0 : rc; /* closed, and nothing is left */
}

static int report(void)
{
    int total = producers * tasks_each, wrong = metrics.processed + metrics.failed != total;
    double elapsed = conc_now() - start, drift = metrics.wait_time + metrics.processing_time - metrics.latency;
    for (int p = 0; p < producers; p++)
        for (int n = 0; n < tasks_each; n++)
            wrong |= metrics.seen[p][n] != 1;
    wrong |= metrics.deepest > MAX_SIZE || drift > 1e-6 || drift < -1e-6;
    printf("%d processed + %d failed = %d of %d tasks, each once: %s\n", metrics.processed, metrics.failed,
           metrics.processed + metrics.failed, total, wrong ? "NO" : "yes");
    printf("%d producers, %d workers, at most %d in the queue, %d puts had to wait\n", producers, NUM_WORKERS,
           metrics.deepest, metrics.blocked);
    printf("Average: %.3f s waiting + %.3f s processing = %.3f s latency\n", metrics.wait_time / total,
           metrics.processing_time / total, metrics.latency / total);
    printf("Throughput: %.2f tasks a second, %.2f seconds in all\n", total / elapsed, elapsed);
    return wrong ? conc_fail(-EPROTO, "the counts are wrong") : 0;
}

static int run(void *arg)
{
    (void)arg;
    const char *seed = getenv("EX_SEED");
    for (int skip = seed ? atoi(seed) : 0; skip > 0; skip--)
        conc_random(0, 1);
    int numbers[] = {0, 1, 2, 3, 4};
    start = conc_now();
    conc_group workers = {0};
    for (int i = 0; i < NUM_WORKERS; i++)
        CONC_TRY_IN(&workers, conc_spawn(&workers, worker, &numbers[i]));
    CONC_TRY_IN(&workers, conc_map(producer, numbers, (size_t)producers, sizeof numbers[0]));
    CONC_TRY_IN(&workers, conc_queue_join(&queue)); /* every task that was put is done */
    conc_queue_close(&queue);
    CONC_TRY(conc_group_wait(&workers));
    conc_queue_destroy(&queue);
    return report();
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--goal") == 0) {
        producers = MOST_PRODUCERS;
        tasks_each = MOST_TASKS;
        quiet = true;
    }
    return conc_main(run, NULL);
}
