/* As completed: results in the order of finishing; and a wait with a time limit, which leaves
 * the late ones running.
 *   cc 11_as_completed.c -o completed && ./completed        (CONC_CLOCK=virtual ./completed
 *   takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static int work(void *seconds)
{
    CONC_TRY(conc_sleep(*(int *)seconds));
    return *(int *)seconds;
}

static int as_completed(void)
{
    int seconds[] = {2, 1, 3}, result = 0, done = 0;
    const char *names[] = {"A", "B", "C"};
    conc_task tasks[CONC_LEN(seconds)] = {0}, *t;
    conc_group g = {0};
    for (size_t i = 0; i < CONC_LEN(seconds); i++) {
        CONC_TRY_IN(&g, conc_spawn_task(&g, &tasks[i], work, &seconds[i]));
        conc_set_name(&tasks[i], names[i]);
    }
    while (CONC_TRY_IN(&g, conc_group_next(&g, &t)) > 0) {
        CONC_TRY_IN(&g, conc_join(t, &result)); /* at once: it has ended */
        printf("%d of 3 completed: %s after %d s\n", ++done, conc_name(t), result);
    }
    return conc_group_wait(&g);
}

static int wait_with_timeout(void)
{
    int seconds[] = {1, 2, 30}, rc, done = 0, result = 0;
    conc_task tasks[CONC_LEN(seconds)] = {0}, *t;
    double start = conc_now();
    conc_group g = {0};
    for (size_t i = 0; i < CONC_LEN(seconds); i++)
        CONC_TRY_IN(&g, conc_spawn_task(&g, &tasks[i], work, &seconds[i]));
    conc_scope limit = {0}; /* around the waiting only: the tasks are outside of it */
    CONC_TRY_IN(&g, conc_scope_begin(&limit, 10));
    while ((rc = conc_group_next(&g, &t)) > 0)
        done++;
    rc = conc_scope_end(&limit, rc);
    if (rc != -ETIMEDOUT)
        CONC_TRY_IN(&g, rc);
    printf("After %.0f s: %d done, %d pending\n", conc_now() - start, done, 3 - done);
    CONC_TRY_IN(&g, conc_join(&tasks[2], &result)); /* nobody cancelled it */
    printf("After %.0f s: the pending one finished with %d\n", conc_now() - start, result);
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(as_completed());
    return wait_with_timeout();
}

int main(void) { return conc_main(app, NULL); }
