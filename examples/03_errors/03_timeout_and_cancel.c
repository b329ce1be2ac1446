/* Timeout and cancel. Give a slow operation 5 s, then print "Operation timed out!". Start it as a
   task, and cancel it after 2 s. An interrupted operation can still clean up; the caller continues
   when that is done.

   cc 03_timeout_and_cancel.c -o limits
   CONC_CLOCK=virtual ./limits

   It prints ../expected/03_errors/03_timeout_and_cancel.txt.
   Hint: conc_timeout(5, function, arg) calls function(arg) directly, and returns its result or
   -ETIMEDOUT. conc_cancel(&task) only asks: join the task to see how it ended. */
#define CONC_STATIC
#include "../../conc.h"

static double start;

static int clean_up(void *resource)
{
    CONC_TRY(conc_sleep(1));
    printf("%.0f s: %s closed\n", conc_now() - start, (char *)resource);
    return 0;
}

/* Once cancelled, only a shield still lets it wait. */
static int slow_operation(void *resource)
{
    int rc = conc_sleep(3600);
    if (rc == -ECANCELED && resource)
        CONC_TRY(conc_shield(10, clean_up, resource));
    return rc;
}

/* Your turn: give slow_operation(resource) 5 s; if it does not end in time, print "5 s: Operation
   timed out!" with the time, and return 0. */
static int time_out(char *resource)
{
    int rc = conc_timeout(5, slow_operation, resource);
    if (rc != -ETIMEDOUT)
        return rc;
    printf("%.0f s: Operation timed out!\n", conc_now() - start);
    return 0;
}

/* Your turn: start slow_operation(NULL) as a task of a group, cancel it after 2 s, and join it. If
   its result is -ECANCELED, print "2 s: Task cancelled". */
static int cancel(void)
{
    conc_group g = {0};
    conc_task task = {0};
    int result = 0;
    CONC_TRY_IN(&g, conc_spawn_task(&g, &task, slow_operation, NULL));
    CONC_TRY_IN(&g, conc_sleep(2));
    CONC_TRY_IN(&g, conc_cancel(&task));
    CONC_TRY_IN(&g, conc_join(&task, &result));
    if (result == -ECANCELED)
        printf("%.0f s: Task cancelled\n", conc_now() - start);
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    CONC_TRY(time_out(NULL));
    start = conc_now();
    CONC_TRY(time_out("connection"));
    start = conc_now();
    return cancel();
}

int main(void) { return conc_main(app, NULL); }
