/* Priority scheduler: all high tasks at once, then all low ones; a group for each batch, watched
 * as its tasks finish.
 *   cc 09_priority_scheduler.c -o scheduler && ./scheduler        (CONC_CLOCK=virtual
 *   ./scheduler takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    conc_task task; /* first, so that a finished task leads back to its job */
    const char *id;
    double duration, time;
} job;

static int process_task(void *arg)
{
    job *j = arg;
    double start = conc_now();
    printf("Starting %s (%.1fs)\n", j->id, j->duration);
    CONC_TRY(conc_sleep(j->duration));
    j->time = conc_now() - start;
    return 0;
}

static int process_priority_batch(const char *priority, job *jobs, size_t count, double *average)
{
    double start = conc_now(), sum = 0;
    conc_task *t;
    conc_group g = {0};
    for (size_t i = 0; i < count; i++)
        CONC_TRY_IN(&g, conc_spawn_task(&g, &jobs[i].task, process_task, &jobs[i]));
    while (CONC_TRY_IN(&g, conc_group_next(&g, &t)) > 0) { /* as_completed */
        job *j = (job *)t;
        printf("✓ %s completed (%.1fs)\n", j->id, j->time);
        sum += j->time;
    }
    CONC_TRY(conc_group_wait(&g));
    printf("%s priority batch completed in %.1fs\n", priority, conc_now() - start);
    *average = sum / (double)count;
    return 0;
}

static int task_scheduler(void *arg)
{
    (void)arg;
    job high[] = {{.id = "HIGH-1", .duration = 1.5},
                  {.id = "HIGH-2", .duration = 1.8},
                  {.id = "HIGH-3", .duration = 1.2}};
    job low[] = {{.id = "LOW-1", .duration = 2.5},
                 {.id = "LOW-2", .duration = 3.0},
                 {.id = "LOW-3", .duration = 2.2},
                 {.id = "LOW-4", .duration = 3.5},
                 {.id = "LOW-5", .duration = 2.8}};
    double start = conc_now(), high_average, low_average;
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
