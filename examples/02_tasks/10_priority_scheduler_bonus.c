/* Priority scheduler, a medium level. One list holds tasks of three levels, in any order: run the
   high-priority ones concurrently, then the medium ones, then the low ones.

   cc 10_priority_scheduler_bonus.c -o scheduler
   ./scheduler
   CONC_CLOCK=virtual ./scheduler     # without waiting

   It prints ../expected/02_tasks/10_priority_scheduler_bonus.txt.
   Hint: a group per level. conc_group_wait returns when all tasks of the group have ended. */
#define CONC_STATIC
#include "../../conc.h"

enum { LOW, MEDIUM, HIGH };

typedef struct {
    const char *id;
    int priority;
    double duration;
} task;

static double start;

static int process_task(void *arg)
{
    task *t = arg;
    printf("%.1fs: starting %s\n", conc_now() - start, t->id);
    CONC_TRY(conc_sleep(t->duration));
    printf("%.1fs: ✓ %s completed\n", conc_now() - start, t->id);
    return 0;
}

/* Your turn: run those of the tasks that have this priority at once, and wait for them. */
static int process_priority(task *tasks, size_t count, int priority)
{
    conc_group g = {0};
    for (size_t i = 0; i < count; i++)
        if (tasks[i].priority == priority)
            CONC_TRY_IN(&g, conc_spawn(&g, process_task, &tasks[i]));
    return conc_group_wait(&g);
}

static int task_scheduler(void *arg)
{
    (void)arg;
    task tasks[] = {{"LOW-1", LOW, 2.5},   {"HIGH-1", HIGH, 1.5},     {"MEDIUM-1", MEDIUM, 0.8},
                    {"HIGH-2", HIGH, 1.2}, {"MEDIUM-2", MEDIUM, 2.0}, {"LOW-2", LOW, 1.0}};
    start = conc_now();
    for (int priority = HIGH; priority >= LOW; priority--)
        CONC_TRY(process_priority(tasks, CONC_LEN(tasks), priority));
    return 0;
}

int main(void) { return conc_main(task_scheduler, NULL); }
