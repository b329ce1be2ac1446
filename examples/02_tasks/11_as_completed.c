/* As completed. Three tasks take 2, 1 and 3 s. Print each result as soon as it is available, in
   order of completion.

   cc 11_as_completed.c -o completed
   ./completed
   CONC_CLOCK=virtual ./completed     # without waiting

   It prints ../expected/02_tasks/11_as_completed.txt.
   Hint: conc_group_next(&g, &t) waits for the next task to finish, and returns 1; 0 when none is
   left. Inside an open group use CONC_TRY_IN(&g, ...) instead of CONC_TRY. */
#define CONC_STATIC
#include "../../conc.h"

static int work(void *seconds)
{
    CONC_TRY(conc_sleep(*(int *)seconds));
    return *(int *)seconds * 10;
}

/* Your turn: start a task for each of the seconds, named A, B and C (conc_set_name). As each
   finishes, join it for its result, and print "1 of 3 completed: B returned 10". */
static int app(void *arg)
{
    (void)arg;
    int seconds[] = {2, 1, 3}, result = 0, completed = 0;
    const char *names[] = {"A", "B", "C"};
    conc_task tasks[3] = {0}, *t;
    conc_group g = {0};
    for (int i = 0; i < 3; i++) {
        CONC_TRY_IN(&g, conc_spawn_task(&g, &tasks[i], work, &seconds[i]));
        conc_set_name(&tasks[i], names[i]);
    }
    while (CONC_TRY_IN(&g, conc_group_next(&g, &t)) > 0) {
        CONC_TRY_IN(&g, conc_join(t, &result)); /* returns at once: the task has ended */
        printf("%d of 3 completed: %s returned %d\n", ++completed, conc_name(t), result);
    }
    return conc_group_wait(&g);
}

int main(void) { return conc_main(app, NULL); }
