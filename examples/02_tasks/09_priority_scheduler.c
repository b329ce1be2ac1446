/* Priority scheduler. Process all high-priority tasks concurrently; when all are completed, process
   the low-priority ones. Print each task as it completes, each batch's time, the total time, and
   each priority's average.

   cc 09_priority_scheduler.c -o scheduler
   ./scheduler
   CONC_CLOCK=virtual ./scheduler     # without waiting

   It prints ../expected/02_tasks/09_priority_scheduler.txt.
   Hint: a batch is a map over its tasks, which returns when all have ended. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *id;
    double duration, time; /* time: what it took */
} task;

/* Your turn: print "Starting LOW-1 (2.5s)", wait, leave the time in t->time, and print
   "✓ LOW-1 completed (2.5s)". */
static int process_task(void *arg)
{
    task *t = arg;
    double start = conc_now();
    printf("Starting %s (%.1fs)\n", t->id, t->duration);
    CONC_TRY(conc_sleep(t->duration));
    t->time = conc_now() - start;
    printf("✓ %s completed (%.1fs)\n", t->id, t->time);
    return 0;
}

/* Your turn: process all tasks at once, print "Low priority batch completed in 3.5s", and leave the
   average of the tasks' times in *average. */
static int process_priority_batch(const char *priority, task *tasks, size_t count, double *average)
{
    double start = conc_now(), sum = 0;
    CONC_TRY(conc_map(process_task, tasks, count, sizeof *tasks));
    printf("%s priority batch completed in %.1fs\n", priority, conc_now() - start);
    for (size_t i = 0; i < count; i++)
        sum += tasks[i].time;
    *average = sum / (double)count;
    return 0;
}

static int task_scheduler(void *arg)
{
    (void)arg;
    task high[] = {{"HIGH-1", 1.5, 0}, {"HIGH-2", 1.8, 0}, {"HIGH-3", 1.2, 0}};
    task low[] = {{"LOW-1", 2.5, 0},
                  {"LOW-2", 3.0, 0},
                  {"LOW-3", 2.2, 0},
                  {"LOW-4", 3.5, 0},
                  {"LOW-5", 2.8, 0}};
    double start = conc_now(), high_average = 0, low_average = 0;
    printf("=== Task Scheduler Started ===\n\n[HIGH PRIORITY BATCH]\n");
    CONC_TRY(process_priority_batch("High", high, CONC_LEN(high), &high_average));
    printf("\n[LOW PRIORITY BATCH]\n");
    CONC_TRY(process_priority_batch("Low", low, CONC_LEN(low), &low_average));
    printf("\n=== Scheduler Summary ===\nTotal tasks: %zu\n", CONC_LEN(high) + CONC_LEN(low));
    printf("Total time: %.1f seconds\n", conc_now() - start);
    printf("High priority avg: %.1fs\nLow priority avg: %.1fs\n", high_average, low_average);
    return 0;
}

int main(void) { return conc_main(task_scheduler, NULL); }
