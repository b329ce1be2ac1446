/* Priority scheduler, dependencies. A task starts when the tasks that it needs are completed;
   otherwise all run concurrently. Cyclic dependencies are refused: no task would start.

   cc 21_dependencies_bonus.c -o scheduler
   ./scheduler
   CONC_CLOCK=virtual ./scheduler     # without waiting

   It prints ../expected/02_tasks/21_dependencies_bonus.txt.
   Hint: conc_join waits until a task has ended, and any number of tasks may join the same one. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct job {
    const char *id;
    double duration;
    struct job *needs[2];
    enum { NEW, SEARCHING, SEARCHED } mark;
    conc_task task;
} job;

static double start;

/* Your turn: join the tasks of the jobs that this one needs, then run it: print
   "1.5s: compile A started", wait for its duration, print "2.5s: compile A completed". */
static int process(void *arg)
{
    job *j = arg;
    for (int i = 0; i < 2 && j->needs[i]; i++)
        CONC_TRY(conc_join(&j->needs[i]->task, NULL));
    printf("%.1fs: %s started\n", conc_now() - start, j->id);
    CONC_TRY(conc_sleep(j->duration));
    printf("%.1fs: %s completed\n", conc_now() - start, j->id);
    return 0;
}

/* Does a way along the needs come back to a job that is on it? */
static bool leads_to_circle(job *j)
{
    if (!j || j->mark == SEARCHED)
        return false;
    if (j->mark == SEARCHING)
        return true;
    j->mark = SEARCHING;
    bool found = leads_to_circle(j->needs[0]) || leads_to_circle(j->needs[1]);
    j->mark = SEARCHED;
    return found;
}

/* Your turn: if a job leads to a circle, print "hen would never start" and run none of the jobs.
   Else start a task for each (with its handle), and wait for all. */
static int run_all(job *jobs, size_t count)
{
    conc_group g = {0};
    for (size_t i = 0; i < count; i++)
        if (leads_to_circle(&jobs[i]))
            return printf("%s would never start\n", jobs[i].id);
    for (size_t i = 0; i < count; i++)
        CONC_TRY_IN(&g, conc_spawn_task(&g, &jobs[i].task, process, &jobs[i]));
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    (void)arg;
    job jobs[] = {{.id = "link", .duration = 0.5, .needs = {&jobs[1], &jobs[2]}},
                  {.id = "compile A", .duration = 1, .needs = {&jobs[3]}},
                  {.id = "compile B", .duration = 2, .needs = {&jobs[3]}},
                  {.id = "configure", .duration = 1.5}};
    job circle[] = {
        {.id = "farm"}, {.id = "hen", .needs = {&circle[2]}}, {.id = "egg", .needs = {&circle[1]}}};
    start = conc_now();
    CONC_TRY(run_all(jobs, CONC_LEN(jobs)));
    return run_all(circle, CONC_LEN(circle));
}

int main(void) { return conc_main(app, NULL); }
