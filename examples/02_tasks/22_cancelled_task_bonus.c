/* Priority scheduler, cancelling. After 1 s a task is cancelled. The tasks that need it, directly
   or not, are skipped; the others continue.

   cc 22_cancelled_task_bonus.c -o scheduler
   ./scheduler
   CONC_CLOCK=virtual ./scheduler     # without waiting

   It prints ../expected/02_tasks/22_cancelled_task_bonus.txt.
   Hint: in a cancelled task conc_sleep immediately returns -ECANCELED; conc_join(task, &result)
   stores the task's result. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct job {
    const char *id;
    double duration;
    struct job *needs; /* NULL: none */
    conc_task task;
} job;

enum { SKIPPED = 1 };
static double start;

/* Your turn: print "0.0s: fetch started", wait, and print "2.0s: fetch completed" or "1.0s: fetch
   cancelled". Return what conc_sleep returned. */
static int process(job *j)
{
    printf("%.1fs: %s started\n", conc_now() - start, j->id);
    int rc = conc_sleep(j->duration);
    printf("%.1fs: %s %s\n", conc_now() - start, j->id, rc == 0 ? "completed" : "cancelled");
    return rc;
}

/* Your turn: join the job that this one needs. If its result is not 0, print "1.0s: parse skipped"
   and return SKIPPED, else process this one. */
static int process_after_need(void *arg)
{
    job *j = arg;
    int result = 0;
    if (j->needs)
        CONC_TRY(conc_join(&j->needs->task, &result));
    if (result == 0)
        return process(j);
    printf("%.1fs: %s skipped\n", conc_now() - start, j->id);
    return SKIPPED;
}

static int app(void *arg)
{
    (void)arg;
    job jobs[] = {{.id = "fetch", .duration = 2},
                  {.id = "parse", .duration = 1, .needs = &jobs[0]},
                  {.id = "print", .duration = 1, .needs = &jobs[1]},
                  {.id = "backup", .duration = 3}};
    conc_group g = {0};
    start = conc_now();
    for (size_t i = 0; i < CONC_LEN(jobs); i++)
        CONC_TRY_IN(&g, conc_spawn_task(&g, &jobs[i].task, process_after_need, &jobs[i]));
    CONC_TRY_IN(&g, conc_sleep(1));
    CONC_TRY_IN(&g, conc_cancel(&jobs[0].task));
    return conc_group_wait(&g);
}

int main(void) { return conc_main(app, NULL); }
