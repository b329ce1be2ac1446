/* Event. Three tasks wait until a fourth gives the signal, after 2 s: it wakes them all. Diana
   arrives later and need not wait. When the event is cleared, Eve waits again.

   cc 05_event_signal.c -o event
   ./event
   CONC_CLOCK=virtual ./event     # without waiting

   It prints ../expected/04_sync/05_event_signal.txt.
   Hint: conc_event_wait, conc_event_set. The woken tasks run when the setter ends or waits, not
   before. */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_event event;
static double start;

/* Your turn: print "0 s: Alice is waiting for the event...", wait for it, and print
   "2 s: Alice received it!". */
static int waiter(void *name)
{
    printf("%.0f s: %s is waiting for the event...\n", conc_now() - start, (char *)name);
    CONC_TRY(conc_event_wait(&event));
    printf("%.0f s: %s received it!\n", conc_now() - start, (char *)name);
    return 0;
}

/* Your turn: wait for 2 s, print "2 s: setting the event...", set it, print "2 s: it is set". */
static int setter(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(2));
    printf("%.0f s: setting the event...\n", conc_now() - start);
    conc_event_set(&event);
    printf("%.0f s: it is set\n", conc_now() - start);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    CONC_TRY(CONC_GATHER(CONC_CALL(waiter, "Alice"), CONC_CALL(waiter, "Bob"),
                         CONC_CALL(waiter, "Charlie"), CONC_CALL(setter, NULL)));
    CONC_TRY(waiter("Diana"));

    conc_event_clear(&event);
    printf("%.0f s: the event is cleared\n", conc_now() - start);
    return CONC_GATHER(CONC_CALL(waiter, "Eve"), CONC_CALL(setter, NULL));
}

int main(void) { return conc_main(app, NULL); }
