/* Event: one task wakes all that wait; who comes later need not wait; after a clear one waits
 * again.
 *   cc 05_event_signal.c -o event && ./event        (CONC_CLOCK=virtual ./event takes no time)
 */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_event event;
static double start;

static int waiter(void *name)
{
    printf("%.0f s: %s is waiting for the event...\n", conc_now() - start, *(const char **)name);
    CONC_TRY(conc_event_wait(&event));
    printf("%.0f s: %s received it!\n", conc_now() - start, *(const char **)name);
    return 0;
}

static int setter(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(2));
    printf("%.0f s: setting the event...\n", conc_now() - start);
    conc_event_set(&event); /* they are ready now, and run when this task ends or waits */
    printf("%.0f s: it is set\n", conc_now() - start);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    const char *names[] = {"Alice", "Bob", "Charlie", "Diana", "Eve"};
    start = conc_now();
    CONC_TRY(CONC_GATHER(CONC_CALL(waiter, &names[0]), CONC_CALL(waiter, &names[1]),
                         CONC_CALL(waiter, &names[2]), CONC_CALL(setter, NULL)));
    CONC_TRY(waiter(&names[3])); /* late: returns at once */

    conc_event_clear(&event);
    printf("%.0f s: the event is cleared\n", conc_now() - start);
    return CONC_GATHER(CONC_CALL(waiter, &names[4]), CONC_CALL(setter, NULL));
}

int main(void) { return conc_main(app, NULL); }
