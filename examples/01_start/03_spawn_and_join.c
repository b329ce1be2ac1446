/* Spawn and join: a group starts any number of tasks, a handle waits for one of them; gather
 * gives the same results.
 *   cc 03_spawn_and_join.c -o spawn && ./spawn        (CONC_CLOCK=virtual ./spawn takes no time)
 */
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
    printf("Task %s starting\n", j->name);
    CONC_TRY(conc_sleep(j->delay));
    printf("Task %s completed\n", j->name);
    snprintf(j->result, sizeof j->result, "Result from %s", j->name);
    return 0;
}

static int by_spawn(job *jobs, size_t count)
{
    conc_group g = {0};
    for (size_t i = 0; i < count; i++) /* create_task: each begins when we wait next */
        CONC_TRY_IN(&g, conc_spawn_task(&g, &jobs[i].task, work, &jobs[i]));
    for (size_t i = 0; i < count; i++)
        CONC_TRY_IN(&g, conc_join(&jobs[i].task, NULL)); /* await task */
    return conc_group_wait(&g);
}

static int by_gather(job *jobs, size_t count) { return conc_map(work, jobs, count, sizeof *jobs); }

static void print_results(const job *jobs, size_t count)
{
    printf("Results:");
    for (size_t i = 0; i < count; i++)
        printf(" [%s]", jobs[i].result);
    printf("\n");
}

static int app(void *arg)
{
    (void)arg;
    job one[] = {{.name = "A", .delay = 2}, {.name = "B", .delay = 1}, {.name = "C", .delay = 3}};
    job two[] = {{.name = "A", .delay = 2}, {.name = "B", .delay = 1}, {.name = "C", .delay = 3}};
    CONC_TRY(by_spawn(one, CONC_LEN(one)));
    print_results(one, CONC_LEN(one));
    CONC_TRY(by_gather(two, CONC_LEN(two)));
    print_results(two, CONC_LEN(two));
    return 0;
}

int main(void) { return conc_main(app, NULL); }
