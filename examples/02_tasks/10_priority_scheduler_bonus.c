/* Priority scheduler, the bonus challenges: three levels, jobs that need others, cancelling,
 * priorities that change, and retries; also jobs that start at a given time.
 *   cc 10_priority_scheduler_bonus.c -o scheduler && ./scheduler        (CONC_CLOCK=virtual
 *   ./scheduler takes no time)
 */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct job {
    const char *id;
    double duration, at; /* seconds; at: when to start */
    struct job *needs[2];
    int priority, failures; /* failures: the first so many attempts */
    bool started;
    enum { NEW, SEARCHING, SEARCHED } mark;
    conc_task task;
} job;

static double start; /* of the challenge */

static void heading(const char *text)
{
    printf("%s\n", text);
    start = conc_now();
}

static int process_task(void *arg)
{
    job *j = arg;
    printf("%.1fs: %s started\n", conc_now() - start, j->id);
    int rc = conc_sleep(j->duration);
    printf("%.1fs: %s %s\n", conc_now() - start, j->id, rc == 0 ? "completed" : "cancelled");
    return rc;
}

/* 1. A level between high and low */

static int three_levels(void)
{
    job high[] = {{.id = "HIGH-1", .duration = 1.5}, {.id = "HIGH-2", .duration = 1.2}};
    job medium[] = {{.id = "MEDIUM-1", .duration = 0.8}, {.id = "MEDIUM-2", .duration = 2}};
    job low[] = {{.id = "LOW-1", .duration = 2.5}, {.id = "LOW-2", .duration = 1}};
    heading("=== Three Levels ===");
    CONC_TRY(CONC_MAP(process_task, high));
    CONC_TRY(CONC_MAP(process_task, medium));
    return CONC_MAP(process_task, low);
}

/* 2. Dependencies: a job joins those it needs; 3. cancelling */

static bool leads_to_cycle(job *j)
{
    if (!j || j->mark != NEW)
        return j && j->mark == SEARCHING; /* on the way from itself to here */
    j->mark = SEARCHING;
    bool found = leads_to_cycle(j->needs[0]) || leads_to_cycle(j->needs[1]);
    j->mark = SEARCHED;
    return found;
}

static int process_after_needs(void *arg)
{
    job *j = arg;
    for (size_t i = 0; i < CONC_LEN(j->needs) && j->needs[i]; i++) {
        int result = 0;
        CONC_TRY(conc_join(&j->needs[i]->task, &result));
        if (result != 0) {
            printf("%.1fs: %s skipped: %s was not completed\n", conc_now() - start, j->id,
                   j->needs[i]->id);
            return 1;
        }
    }
    return process_task(j);
}

static int spawn_all(conc_group *g, job *jobs, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (leads_to_cycle(&jobs[i]))
            return conc_fail(-EDEADLK, "%s would never start", jobs[i].id);
    for (size_t i = 0; i < count; i++)
        CONC_TRY(conc_spawn_task(g, &jobs[i].task, process_after_needs, &jobs[i]));
    return 0;
}

static int dependencies(void)
{
    job jobs[] = {{.id = "link", .duration = 0.5, .needs = {&jobs[1], &jobs[2]}},
                  {.id = "compile A", .duration = 1, .needs = {&jobs[3]}},
                  {.id = "compile B", .duration = 2, .needs = {&jobs[3]}},
                  {.id = "configure", .duration = 1.5}};
    job cycle[] = {
        {.id = "hen", .needs = {&cycle[1]}}, {.id = "egg", .needs = {&cycle[0]}}, {.id = "farm"}};
    conc_group g = {0}, none = {0};
    heading("\n=== Dependencies ===");
    CONC_TRY_IN(&g, spawn_all(&g, jobs, CONC_LEN(jobs)));
    CONC_TRY(conc_group_wait(&g));
    if (spawn_all(&none, cycle, CONC_LEN(cycle)) == -EDEADLK)
        printf("Refused: %s\n", conc_last_error());
    return conc_group_wait(&none);
}

static int cancelling(void)
{
    job jobs[] = {{.id = "fetch", .duration = 2},
                  {.id = "parse", .duration = 1, .needs = {&jobs[0]}},
                  {.id = "report", .duration = 1, .needs = {&jobs[1]}},
                  {.id = "backup", .duration = 3}};
    conc_group g = {0};
    heading("\n=== Cancelling ===");
    CONC_TRY_IN(&g, spawn_all(&g, jobs, CONC_LEN(jobs)));
    CONC_TRY_IN(&g, conc_sleep(1));
    CONC_TRY_IN(&g, conc_cancel(&jobs[0].task));
    return conc_group_wait(&g);
}

/* 4. Priorities that change: the job gets a new ticket, and the old one, still in the queue,
 * does not count any more */

typedef struct {
    job *job;
    int priority;
} ticket;

static bool more_urgent(const void *a, const void *b)
{
    return ((const ticket *)a)->priority > ((const ticket *)b)->priority;
}

static int set_priority(conc_queue *q, job *j, int priority)
{
    printf("%.1fs: %s gets priority %d%s\n", conc_now() - start, j->id, priority,
           j->started ? ": too late" : "");
    if (j->started)
        return 0;
    j->priority = priority;
    return conc_queue_put(q, &(ticket){j, priority});
}

static int worker(void *queue)
{
    ticket t;
    int rc;
    while ((rc = conc_queue_get(queue, &t)) == 0)
        if (!t.job->started && t.priority == t.job->priority) {
            t.job->started = true;
            CONC_TRY(process_task(t.job));
        }
    return rc == -EPIPE ? 0 : rc; /* closed, and all is done */
}

static int dynamic_priorities(void)
{
    /* equal ones stay in their order */
    CONC_AUTO(conc_queue, q) = CONC_QUEUE(ticket, 0, .less = more_urgent);
    job jobs[] = {{.id = "A"}, {.id = "B"}, {.id = "C"}, {.id = "D"}};
    conc_group g = {0};
    heading("\n=== Dynamic Priorities ===");
    CONC_TRY_IN(&g, conc_spawn(&g, worker, &q));
    for (size_t i = 0; i < CONC_LEN(jobs); i++) {
        jobs[i].duration = 2;
        CONC_TRY_IN(&g, set_priority(&q, &jobs[i], 5));
    }
    CONC_TRY_IN(&g, conc_sleep(1));
    CONC_TRY_IN(&g, set_priority(&q, &jobs[0], 1));
    CONC_TRY_IN(&g, set_priority(&q, &jobs[1], 1));
    CONC_TRY_IN(&g, set_priority(&q, &jobs[3], 9));
    conc_queue_close(&q);
    return conc_group_wait(&g);
}

/* 5. Retries */

static int attempt(job *j)
{
    CONC_TRY(conc_sleep(j->duration));
    return j->failures-- > 0 ? -EIO : 0;
}

static int process_with_retries(void *arg)
{
    job *j = arg;
    int rc, attempts = 1;
    while ((rc = attempt(j)) == -EIO && attempts < 3)
        attempts++;
    printf("%.1fs: %s %s, attempts: %d\n", conc_now() - start, j->id,
           rc == 0 ? "completed" : "failed", attempts);
    return rc;
}

static int retries(void)
{
    job jobs[] = {{.id = "stable", .duration = 2},
                  {.id = "flaky", .duration = 1.5, .failures = 2},
                  {.id = "broken", .duration = 1, .failures = 99}};
    int results[CONC_LEN(jobs)];
    heading("\n=== Retries ===");
    /* one that fails does not cancel the others */
    return CONC_MAP_ALL(process_with_retries, jobs, results);
}

/* And: at a given time */

static int process_at(void *arg)
{
    job *j = arg;
    CONC_TRY(conc_sleep_until(start + j->at));
    return process_task(j);
}

static int timetable(void)
{
    job jobs[] = {{.id = "third", .at = 3}, {.id = "first", .at = 1}, {.id = "second", .at = 2}};
    heading("\n=== Timetable ===");
    return CONC_MAP(process_at, jobs);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(three_levels());
    CONC_TRY(dependencies());
    CONC_TRY(cancelling());
    CONC_TRY(dynamic_priorities());
    CONC_TRY(retries());
    return timetable();
}

int main(void) { return conc_main(app, NULL); }
