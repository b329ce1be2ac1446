/* Coordination, latch and barrier. Three runners get ready in 1, 2 and 3 s; the starter waits for
   all of them (a latch), but they do not wait for the starter. Then each takes as long again to
   walk to the line; there all wait for the last one (a barrier), and start together.

   cc 06_coordination.c -o coordination
   ./coordination
   CONC_CLOCK=virtual ./coordination     # without waiting

   It prints ../expected/04_sync/06_coordination.txt.
   Hint: conc_latch_done does not wait, conc_latch_wait and conc_barrier_wait do. */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_latch not_ready; /* how many are not: 0, until it is set */
static conc_barrier line = CONC_BARRIER(3);
static double start;

/* Your turn: after the seconds print "1 s: runner 1 is ready", and count down the latch. After as
   many more print "2 s: runner 1 is at the line". When all are there, "6 s: runner 1 is off". */
static int runner(void *arg)
{
    int seconds = *(int *)arg;
    CONC_TRY(conc_sleep(seconds));
    printf("%.0f s: runner %d is ready\n", conc_now() - start, seconds);
    CONC_TRY(conc_latch_done(&not_ready));
    CONC_TRY(conc_sleep(seconds));
    printf("%.0f s: runner %d is at the line\n", conc_now() - start, seconds);
    CONC_TRY(conc_barrier_wait(&line));
    printf("%.0f s: runner %d is off\n", conc_now() - start, seconds);
    return 0;
}

/* Your turn: wait until all runners are ready, and print "3 s: all are ready". */
static int starter(void *arg)
{
    (void)arg;
    CONC_TRY(conc_latch_wait(&not_ready));
    printf("%.0f s: all are ready\n", conc_now() - start);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    int seconds[] = {3, 1, 2};
    start = conc_now();
    CONC_TRY(conc_latch_add(&not_ready, 3));
    return CONC_GATHER(CONC_CALL(starter, NULL), CONC_CALL(runner, &seconds[0]),
                       CONC_CALL(runner, &seconds[1]), CONC_CALL(runner, &seconds[2]));
}

int main(void) { return conc_main(app, NULL); }
