/* Supervisor. Retry a failing function: at most three calls, with a pause of 1 s after the first
   failure and 2 s after the second. The caller gets the last error. Try it with a service that
   recovers, one that does not, and a caller in a hurry.

   cc 07_supervisor_retry.c -o supervisor
   ./supervisor

   It prints ../expected/03_errors/07_supervisor_retry.txt.
   Hint: there is no pause after the last failure. Cancellation is not a failure: never retry after
   it, whether it ended fn or the pause. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    int down; /* how many calls fail before one succeeds */
    int calls;
    double start;
} service;

static int fetch(void *arg)
{
    service *s = arg;
    s->calls++;
    bool fails = s->calls <= s->down;
    printf("%.0f s: attempt %d %s\n", conc_now() - s->start, s->calls,
           fails ? "fails" : "succeeds");
    return fails ? conc_fail(-EIO, "503 Service Unavailable, call %d", s->calls) : 42;
}

/* Your turn: call fn(arg) up to max_retries times, until it returns no error or -ECANCELED, with
   pauses of 1, 2, 4, ... s. Return the last result. */
static int supervisor(conc_fn *fn, void *arg, int max_retries)
{
    for (int attempt = 0;; attempt++) {
        int rc = fn(arg);
        bool last = attempt == max_retries - 1;
        if (rc >= 0 || rc == -ECANCELED || last)
            return rc;
        CONC_TRY(conc_sleep(1 << attempt));
    }
}

static int fetch_supervised(void *s) { return supervisor(fetch, s, 3); }

static int is_cancelled(void *arg)
{
    (void)arg;
    printf("cancelled\n");
    return -ECANCELED;
}

static int app(void *arg)
{
    (void)arg;
    service hiccup = {.down = 2, .start = conc_now()};
    printf("Result %d\n\n", CONC_TRY(fetch_supervised(&hiccup)));

    service broken = {.down = 99, .start = conc_now()};
    if (fetch_supervised(&broken) == -EIO)
        printf("%.0f s: gave up: %s\n\n", conc_now() - broken.start, conc_last_error());

    service hurry = {.down = 99, .start = conc_now()};
    if (conc_timeout(2.5, fetch_supervised, &hurry) == -ETIMEDOUT) /* ends the pause as well */
        printf("%.1f s: timed out after %d attempts\n", conc_now() - hurry.start, hurry.calls);

    if (supervisor(is_cancelled, NULL, 3) == -ECANCELED)
        printf("a cancel is not tried again\n");
    return 0;
}

int main(void) { return conc_main(app, NULL); }
