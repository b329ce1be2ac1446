/* Done and pending. Three tasks take 1, 2 and 30 s. Wait for them, but at most 10 s: print how many
   are done and how many are pending. Pending tasks are not cancelled: wait for their results, too.

   cc 26_done_and_pending.c -o pending
   ./pending
   CONC_CLOCK=virtual ./pending     # without waiting

   It prints ../expected/02_tasks/26_done_and_pending.txt.
   Hint: conc_timeout(10, f, x) limits the waits in f. The tasks' group is outside f, so the limit
   does not affect them. */
#define CONC_STATIC
#include "../../conc.h"

static int work(void *seconds)
{
    CONC_TRY(conc_sleep(*(int *)seconds));
    return *(int *)seconds;
}

/* Your turn: wait for all tasks of the group that have a handle, one after the other. */
static int wait_for_all(void *group)
{
    conc_task *t;
    while (CONC_TRY(conc_group_next(group, &t)) > 0)
        ;
    return 0;
}

/* Your turn: start the tasks, wait for all with a limit of 10 s, and print "After 10 s: 2 done, 1
   pending" (conc_done); then join the third task, and print "After 30 s: the third returned 30". */
static int run(int third)
{
    int seconds[] = {1, 2, third}, done = 0, result = 0;
    conc_task tasks[3] = {0};
    conc_group g = {0};
    double start = conc_now();
    for (int i = 0; i < 3; i++)
        CONC_TRY_IN(&g, conc_spawn_task(&g, &tasks[i], work, &seconds[i]));
    int rc = conc_timeout(10, wait_for_all, &g);
    if (rc != -ETIMEDOUT)
        CONC_TRY_IN(&g, rc);
    for (int i = 0; i < 3; i++)
        done += conc_done(&tasks[i]);
    printf("After %.0f s: %d done, %d pending\n", conc_now() - start, done, 3 - done);
    CONC_TRY_IN(&g, conc_join(&tasks[2], &result));
    printf("After %.0f s: the third returned %d\n", conc_now() - start, result);
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(run(30));
    return run(3);
}

int main(void) { return conc_main(app, NULL); }
