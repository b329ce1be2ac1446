/* Queue system. Producers put tasks into a queue of capacity 10, and wait while it is full; 3
   workers process them, each in 0.1 to 0.5 s, and 10 % fail. Measure wait and run times.

   cc 08_queue_system.c -o queue
   ./queue
   CONC_CLOCK=virtual CONC_RANDOM=2 ./queue     # without waiting; 3: other numbers
   ./queue --goal                               # 100 tasks of 5 producers

   It prints something else in each run; ../expected/04_sync/08_queue_system.awk checks it.
   Hint: conc_queue_join waits until conc_queue_task_done has been called for each task put. */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    int producer, number;
    double created;
} task;

enum { WORKERS = 3, TASKS_EACH = 20 };
static conc_queue tasks = CONC_QUEUE(task, 10);
static int done, failed;           /* tasks; failed ones are done, too */
static double waiting, processing; /* seconds, of all tasks together */

static int producer(void *number)
{
    task t = {.producer = *(int *)number};
    for (t.number = 1; t.number <= TASKS_EACH; t.number++) {
        t.created = conc_now();
        CONC_TRY(conc_queue_put(&tasks, &t));
    }
    return 0;
}

/* Your turn: until the queue is closed and empty, take a task, process it for its random time, find
   out whether it failed, add to the four figures, print "task 2.5: processed" or "task 2.5: failed"
   (producer 2, number 5), and tell the queue that the task is done. */
static int worker(void *queue)
{
    task t;
    int rc;
    while ((rc = conc_queue_get(queue, &t)) == 0) {
        double taken = conc_now();
        CONC_TRY(conc_sleep(conc_random(0.1, 0.5)));
        bool ok = conc_random(0, 1) < 0.9;
        done++;
        failed += !ok;
        waiting += taken - t.created;
        processing += conc_now() - taken;
        printf("task %d.%d: %s\n", t.producer, t.number, ok ? "processed" : "failed");
        CONC_TRY(conc_queue_task_done(queue));
    }
    return rc == -EPIPE ? 0 : rc;
}

/* Your turn: start the workers, and so many producers, with the numbers 1, 2, ... When the
   producers have ended and all tasks are done, close the queue, and wait for the workers. */
static int run(int producers)
{
    int numbers[] = {1, 2, 3, 4, 5};
    conc_group workers = {0};
    for (int i = 0; i < WORKERS; i++)
        CONC_TRY_IN(&workers, conc_spawn(&workers, worker, &tasks));
    CONC_TRY_IN(&workers, conc_map(producer, numbers, (size_t)producers, sizeof numbers[0]));
    CONC_TRY_IN(&workers, conc_queue_join(&tasks));
    conc_queue_close(&tasks);
    return conc_group_wait(&workers);
}

static int app(void *arg)
{
    int producers = arg ? 5 : 3; /* 5: --goal */
    double start = conc_now();
    CONC_TRY(run(producers));
    double seconds = conc_now() - start;
    printf("%d processed, %d failed: %d in %.2f s, %.2f a second\n", done - failed, failed, done,
           seconds, done / seconds);
    printf("Average: %.3f s waiting + %.3f s processing = %.3f s latency\n", waiting / done,
           processing / done, (waiting + processing) / done);
    return done == producers * TASKS_EACH ? 0 : conc_fail(-EPROTO, "tasks are missing");
}

int main(int argc, char **argv) { return conc_main(app, argc > 1 ? argv[1] : NULL); }
