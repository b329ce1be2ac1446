/* Priority scheduler, changing priorities. A worker always takes the most urgent job that has not
   started. After 1 s the priorities change: running jobs continue, waiting ones move up or down.

   cc 23_changing_priorities_bonus.c -o scheduler
   ./scheduler
   CONC_CLOCK=virtual ./scheduler     # without waiting

   It prints ../expected/02_tasks/23_changing_priorities_bonus.txt.
   Hint: choose when the worker is free, not before. With few tasks a linear search will do. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *id;
    int priority; /* the highest first; equal ones in the order of the list */
    bool started;
} job;

static job jobs[] = {{"A", 5, false}, {"B", 5, false}, {"C", 5, false}, {"D", 5, false}};
static double start;

/* Your turn: which job is the worker's next? NULL: all have started. */
static job *most_urgent(void)
{
    job *best = NULL;
    for (size_t i = 0; i < CONC_LEN(jobs); i++)
        if (!jobs[i].started && (!best || jobs[i].priority > best->priority))
            best = &jobs[i];
    return best;
}

/* Your turn: take the most urgent job while there is one: print "2.0s: D started", work for 2 s,
   print "4.0s: D completed". */
static int worker(void *arg)
{
    (void)arg;
    job *j;
    while ((j = most_urgent())) {
        j->started = true;
        printf("%.1fs: %s started\n", conc_now() - start, j->id);
        CONC_TRY(conc_sleep(2));
        printf("%.1fs: %s completed\n", conc_now() - start, j->id);
    }
    return 0;
}

static void set_priority(job *j, int priority)
{
    printf("%.1fs: %s gets priority %d%s\n", conc_now() - start, j->id, priority,
           j->started ? ": too late" : "");
    j->priority = priority;
}

static int user(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(1));
    set_priority(&jobs[0], 1);
    set_priority(&jobs[1], 1);
    set_priority(&jobs[3], 9);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    return CONC_GATHER(CONC_CALL(worker, NULL), CONC_CALL(user, NULL));
}

int main(void) { return conc_main(app, NULL); }
