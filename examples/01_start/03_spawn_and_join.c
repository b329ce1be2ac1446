/* Spawn and join. Start the tasks A, B and C, which take 2, 1 and 3 s, and then wait for each by
   its handle: first for A, then for B, then for C. Make the same calls with one gather, too: the
   results are equal.

   cc 03_spawn_and_join.c -o spawn
   ./spawn
   CONC_CLOCK=virtual ./spawn     # without waiting

   It prints ../expected/01_start/03_spawn_and_join.txt.
   Hint: conc_spawn_task(&group, &handle, work, &job) starts a task, conc_join waits for it. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *name;
    double delay;
    char result[32];
    conc_task task; /* the handle: it must stay where it is while the task runs */
} job;

static int work(void *arg)
{
    job *j = arg;
    conc_set_name(conc_self(), j->name); /* for reports, and for ./course picture */
    printf("Task %s starting\n", j->name);
    CONC_TRY(conc_sleep(j->delay));
    printf("Task %s completed\n", j->name);
    snprintf(j->result, sizeof j->result, "Result from %s", j->name);
    return 0;
}

/* Your turn: start a task for each job, then join them in this order, and print "Joined A" (and so
   on) after each join. Use it where tasks come up one by one. An error must not leave the group
   open: CONC_TRY_IN(&g, call) is CONC_TRY, but ends the group before it returns. */
static int by_spawn(job *jobs, size_t count)
{
    conc_group g = {0}; /* no task of it outlives this function */
    for (size_t i = 0; i < count; i++)
        CONC_TRY_IN(&g, conc_spawn_task(&g, &jobs[i].task, work, &jobs[i]));
    for (size_t i = 0; i < count; i++) {
        CONC_TRY_IN(&g, conc_join(&jobs[i].task, NULL));
        printf("Joined %s\n", jobs[i].name);
    }
    return conc_group_wait(&g);
}

/* Your turn: do the jobs at once with conc_map(function, array, count, size of an element). Use it
   where all calls are known at the start. */
static int by_gather(job *jobs, size_t count) { return conc_map(work, jobs, count, sizeof *jobs); }

static int run_jobs(int (*way)(job *jobs, size_t count))
{
    job jobs[] = {{.name = "A", .delay = 2}, {.name = "B", .delay = 1}, {.name = "C", .delay = 3}};
    double start = conc_now();
    CONC_TRY(way(jobs, CONC_LEN(jobs)));
    printf("Results: %s, %s, %s\n", jobs[0].result, jobs[1].result, jobs[2].result);
    printf("%.1f seconds\n", conc_now() - start);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(run_jobs(by_spawn));
    printf("\n");
    return run_jobs(by_gather);
}

int main(void) { return conc_main(app, NULL); }
