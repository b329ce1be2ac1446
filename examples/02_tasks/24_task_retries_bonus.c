/* Priority scheduler, retries. Each task gets three attempts. One that fails three times has
   failed; the rest of the batch continues anyway.

   cc 24_task_retries_bonus.c -o scheduler
   ./scheduler
   CONC_CLOCK=virtual ./scheduler     # without waiting

   It prints ../expected/02_tasks/24_task_retries_bonus.txt.
   Hint: CONC_MAP cancels the rest after an error; CONC_MAP_ALL does not, and stores all results. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *id;
    double duration;
    int failures; /* so many attempts fail */
} task;

static double start;

static int process_task(task *t)
{
    CONC_TRY(conc_sleep(t->duration));
    return t->failures-- > 0 ? -EIO : 0;
}

/* Your turn: process the task until that does not return -EIO, three times at most. Print
   "4.5s: flaky completed, attempts: 3" or "3.0s: broken failed, attempts: 3", and return the last
   result. */
static int process_with_retries(void *arg)
{
    task *t = arg;
    int attempts = 1, rc = process_task(t);
    while (rc == -EIO && attempts < 3) {
        rc = process_task(t);
        attempts++;
    }
    printf("%.1fs: %s %s, attempts: %d\n", conc_now() - start, t->id,
           rc == 0 ? "completed" : "failed", attempts);
    return rc;
}

/* Your turn: process all tasks at once. Print "2 of 3 completed". */
static int app(void *arg)
{
    (void)arg;
    task tasks[] = {{"stable", 2, 0}, {"flaky", 1.5, 2}, {"broken", 1, 9}};
    int results[CONC_LEN(tasks)], completed = 0;
    start = conc_now();
    CONC_TRY(CONC_MAP_ALL(process_with_retries, tasks, results));
    for (size_t i = 0; i < CONC_LEN(tasks); i++)
        completed += results[i] == 0;
    printf("%d of 3 completed\n", completed);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
