/* Priority queue. Six tasks arrive together, but the queue has three slots: the producer must wait
   for one. The worker takes the most urgent task in the queue; equally urgent ones keep their
   order.

   cc 10_priority_queue.c -o queue
   ./queue
   CONC_CLOCK=virtual ./queue     # without waiting

   It prints ../expected/04_sync/10_priority_queue.txt.
   Hint: a queue with .less returns first the item that less puts before all others. */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    char name;
    int priority; /* 1 is the most urgent */
} task;

/* Your turn: does task a come before task b? */
static bool more_urgent(const void *a, const void *b)
{
    const task *x = a, *y = b;
    return x->priority < y->priority;
}

static conc_queue queue = CONC_QUEUE(task, 3, .less = more_urgent);
static double start;

static int producer(void *arg)
{
    (void)arg;
    task tasks[] = {{'A', 3}, {'B', 1}, {'C', 2}, {'D', 1}, {'E', 3}, {'F', 2}};
    for (size_t i = 0; i < CONC_LEN(tasks); i++) {
        CONC_TRY(conc_queue_put(&queue, &tasks[i])); /* waits while the queue is full */
        printf("%.1f s: %c is in the queue, %zu in all\n", conc_now() - start, tasks[i].name,
               conc_queue_len(&queue));
    }
    conc_queue_close(&queue);
    return 0;
}

/* Your turn: begin after half a second. Until the queue is closed and empty take a task, print
   "0.5 s: B is taken, priority 1", and work on it for 1 s. */
static int worker(void *arg)
{
    (void)arg;
    task t;
    int rc;
    CONC_TRY(conc_sleep(0.5));
    while ((rc = conc_queue_get(&queue, &t)) == 0) {
        printf("%.1f s: %c is taken, priority %d\n", conc_now() - start, t.name, t.priority);
        CONC_TRY(conc_sleep(1));
    }
    return rc == -EPIPE ? 0 : rc;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    return CONC_GATHER(CONC_CALL(producer, NULL), CONC_CALL(worker, NULL));
}

int main(void) { return conc_main(app, NULL); }
