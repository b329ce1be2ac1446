/* Queue system: producers, a queue of 10 places, 3 workers who take the most urgent task first;
 * and how long it takes.
 *   cc 08_queue_system.c -o queue && ./queue
 *   ./queue --goal                               100 tasks of 5 producers: only the figures
 *   CONC_CLOCK=virtual ./queue                   takes no time
 *   CONC_RANDOM=2 CONC_CLOCK=virtual ./queue     other random numbers
 */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_SIZE = 10, WORKERS = 3 };

typedef struct {
    int producer, number, priority; /* 1 comes first */
    double created;
} task;

static bool more_urgent(const void *a, const void *b)
{
    /* equal ones keep their order */
    return ((const task *)a)->priority < ((const task *)b)->priority;
}

static conc_queue queue = CONC_QUEUE(task, MAX_SIZE, .less = more_urgent);
static bool goal;
static int producers = 3, tasks_each = 5;
static double start;

static struct {
    int processed, failed, blocked, times_done[100];
    size_t max_size;
    double wait, processing, latency;
} metrics;

static int producer(void *number)
{
    task t = {.producer = *(int *)number};
    for (t.number = 0; t.number < tasks_each; t.number++) {
        t.priority = (int)conc_random(1, 4);
        t.created = conc_now(); /* so the time until there is a place counts as waiting, too */
        metrics.blocked += conc_queue_len(&queue) == MAX_SIZE;
        CONC_TRY(conc_queue_put(&queue, &t)); /* waits for a place: backpressure */
        if (conc_queue_len(&queue) > metrics.max_size)
            metrics.max_size = conc_queue_len(&queue);
    }
    return 0;
}

static int worker(void *number)
{
    task t;
    int rc;
    while ((rc = conc_queue_get(&queue, &t)) == 0) {
        double taken = conc_now();
        CONC_TRY(conc_sleep(conc_random(0.1, 0.5)));
        bool failed = conc_random(0, 1) < 0.1; /* the worker goes on all the same */
        double done = conc_now();
        metrics.processed += !failed;
        metrics.failed += failed;
        metrics.wait += taken - t.created;
        metrics.processing += done - taken;
        metrics.latency += done - t.created;
        metrics.times_done[t.producer * tasks_each + t.number]++;
        if (!goal)
            printf("%.2f-%.2f s: worker %d, task %d.%d, priority %d%s\n", taken - start,
                   done - start, *(int *)number, t.producer, t.number, t.priority,
                   failed ? ", failed" : "");
        CONC_TRY(conc_queue_task_done(&queue));
    }
    return rc == -EPIPE ? 0 : rc; /* closed, and nothing is left */
}

static int report(double seconds)
{
    int total = producers * tasks_each, once = 0;
    for (int i = 0; i < total; i++)
        once += metrics.times_done[i] == 1;
    printf("%d tasks: %d processed, %d failed, %d done exactly once\n", total, metrics.processed,
           metrics.failed, once);
    printf("At most %zu in the queue, %d puts had to wait\n", metrics.max_size, metrics.blocked);
    printf("Average: %.3f s waiting + %.3f s processing = %.3f s latency\n", metrics.wait / total,
           metrics.processing / total, metrics.latency / total);
    printf("Throughput: %d tasks in %.2f s, %.2f a second\n", total, seconds, total / seconds);
    if (metrics.processed + metrics.failed != total || once != total || metrics.max_size > MAX_SIZE)
        return conc_fail(-EPROTO, "the counts are wrong");
    return goal ? printf("The goal, 100 tasks with 5 producers and 3 workers, is reached\n") : 0;
}

static int run(void *arg)
{
    (void)arg;
    int numbers[] = {0, 1, 2, 3, 4};
    start = conc_now();
    conc_group workers = {0};
    for (int i = 0; i < WORKERS; i++)
        CONC_TRY_IN(&workers, conc_spawn(&workers, worker, &numbers[i]));
    CONC_TRY_IN(&workers, conc_map(producer, numbers, (size_t)producers, sizeof numbers[0]));
    CONC_TRY_IN(&workers, conc_queue_join(&queue)); /* until every task is done with */
    conc_queue_close(&queue);                       /* sends the workers home */
    CONC_TRY(conc_group_wait(&workers));
    conc_queue_destroy(&queue);
    return report(conc_now() - start);
}

int main(int argc, char **argv)
{
    goal = argc > 1 && strcmp(argv[1], "--goal") == 0;
    if (goal)
        producers = 5, tasks_each = 20;
    return conc_main(run, NULL);
}
