/* First of several. A worker waits for three things: the next job in a queue, an event that ends
   its work, and 2 s without a job. Only the first to happen counts.

   cc 11_first_of_several.c -o worker
   ./worker
   CONC_CLOCK=virtual ./worker     # without waiting

   It prints ../expected/04_sync/11_first_of_several.txt.
   Hint: conc_select(cases, n) returns the index of the chosen case. If it is that of
   CONC_CASE_GET(&jobs, &n), the job is in n. */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_queue jobs = CONC_QUEUE(int, 0);
static conc_event stop;
static double start;

/* Your turn: wait for a job, the event or 2 s (CONC_CASE_GET, CONC_CASE_EVENT, CONC_CASE_AFTER),
   again and again. Print "1 s: job 1", "4 s: nothing to do", or "8 s: stopped" and return. */
static int worker(void *arg)
{
    (void)arg;
    for (;;) {
        int job;
        conc_case cases[] = {CONC_CASE_GET(&jobs, &job), CONC_CASE_EVENT(&stop),
                             CONC_CASE_AFTER(2)};
        int which = CONC_TRY(conc_select(cases, CONC_LEN(cases)));
        if (which == 0)
            printf("%.0f s: job %d\n", conc_now() - start, job);
        else if (which == 1)
            return printf("%.0f s: stopped\n", conc_now() - start);
        else
            printf("%.0f s: nothing to do\n", conc_now() - start);
    }
}

static int user(void *arg)
{
    (void)arg;
    for (int job = 1; job <= 3; job++) {
        CONC_TRY(conc_sleep(job == 3 ? 5 : 1));
        CONC_TRY(conc_queue_put(&jobs, &job));
    }
    CONC_TRY(conc_sleep(1));
    conc_event_set(&stop);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    CONC_TRY(CONC_GATHER(CONC_CALL(worker, NULL), CONC_CALL(user, NULL)));
    conc_queue_destroy(&jobs);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
