/* Priority scheduler, a timetable. Each task has a start time. The news task is too late for its
   start time, and starts immediately.

   cc 25_timetable_bonus.c -o scheduler
   ./scheduler
   CONC_CLOCK=virtual ./scheduler     # without waiting

   It prints ../expected/02_tasks/25_timetable_bonus.txt.
   Hint: conc_sleep_until(t) returns when conc_now() is t, or immediately if it is later. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *id;
    double at, duration; /* seconds: at after the start */
} task;

static double start;

/* Your turn: wait until it is time, print "1.0s: breakfast starts", wait for its duration, and
   print "1.5s: breakfast ends". */
static int process_at(void *arg)
{
    task *t = arg;
    CONC_TRY(conc_sleep_until(start + t->at));
    printf("%.1fs: %s starts\n", conc_now() - start, t->id);
    CONC_TRY(conc_sleep(t->duration));
    printf("%.1fs: %s ends\n", conc_now() - start, t->id);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    task day[] = {{"dinner", 3, 1}, {"breakfast", 1, 0.5}, {"lunch", 2, 1.2}};
    task late = {"news", 3.5, 0.1};
    start = conc_now();
    CONC_TRY(CONC_MAP(process_at, day));
    return process_at(&late);
}

int main(void) { return conc_main(app, NULL); }
