/* Timeout and cancel: both end a task at the call where it waits; whoever asked goes on after
 * its clean-up is done.
 *   cc 03_timeout_and_cancel.c -o timeout && ./timeout        (CONC_CLOCK=virtual ./timeout
 *   takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static double start;

static int clean_up(void *resource)
{
    CONC_TRY(conc_sleep(1));
    printf("%.0f s: %s closed\n", conc_now() - start, (char *)resource);
    return 0;
}

static int slow_operation(void *resource)
{
    int rc = conc_sleep(3600);
    if (rc == -ECANCELED && resource)
        /* once cancelled, only a shield still lets it wait */
        CONC_TRY(conc_shield(10, clean_up, resource));
    return rc;
}

static int time_out(char *resource)
{
    start = conc_now();
    int rc = conc_timeout(5, slow_operation, resource); /* wait_for */
    if (rc != -ETIMEDOUT)
        return rc;
    printf("%.0f s: Operation timed out!\n", conc_now() - start);
    return 0;
}

static int cancel(void)
{
    start = conc_now();
    conc_group g = {0};
    conc_task task = {0};
    int result = 0;
    CONC_TRY_IN(&g, conc_spawn_task(&g, &task, slow_operation, NULL));
    CONC_TRY_IN(&g, conc_sleep(2));
    CONC_TRY_IN(&g, conc_cancel(&task)); /* asks, and returns at once */
    CONC_TRY_IN(&g, conc_join(&task, &result));
    printf("%.0f s: Task %s\n", conc_now() - start,
           result == -ECANCELED ? "cancelled" : "finished");
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(time_out(NULL));
    CONC_TRY(time_out("connection"));
    return cancel();
}

int main(void) { return conc_main(app, NULL); }
