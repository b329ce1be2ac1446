/* Profiler. It reads a run's trace, and reports how long each task ran and waited, the loop's
   latency, which tasks blocked it, and the longest waits; and it draws a timeline.

   cc 04_profiler.c -o profiler
   ./profiler
   ./profiler --trace trace.json     # keeps the trace: open it in ui.perfetto.dev
   ./profiler trace.json             # of any program, after CONC_TRACE=trace.json ./program

   It prints ../expected/10_patterns/04_profiler.txt.
   Hint: conc_sleep_until(due) returns at due if nothing blocks the loop; check with conc_now(). */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the program that is profiled: orders share a database, a poster is drawn on the loop ---- */

static conc_lock database;

static int order(void *name)
{
    conc_set_name(conc_self(), name);
    CONC_TRY(conc_sleep(0.010));
    CONC_LOCKED(&database) {
        CONC_TRY(conc_sleep(0.040));
    }
    return conc_block(0.005); /* computes the sum */
}

static int poster(void *name)
{
    conc_set_name(conc_self(), name);
    CONC_TRY(conc_block(0.010)); /* a short step */
    CONC_TRY(conc_sleep(0.020));
    CONC_TRY(conc_block(0.120)); /* the culprit */
    return conc_sleep(0.050);
}

/* Your turn: name the task "probe", and sleep 10 ms again and again. Each time see how long after
   the due time it woke up: so late was the loop. Keep the most in *late, a double. */
static int probe(void *late)
{
    conc_set_name(conc_self(), "probe");
    for (;;) {
        double due = conc_now() + 0.010;
        CONC_TRY(conc_sleep_until(due));
        if (conc_now() - due > *(double *)late)
            *(double *)late = conc_now() - due;
    }
}

static int app(void *late)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, poster, "poster"));
    CONC_TRY_IN(&g, conc_spawn(&g, order, "order 1"));
    CONC_TRY_IN(&g, conc_spawn(&g, order, "order 2"));
    CONC_TRY_IN(&g, conc_spawn(&g, order, "order 3"));
    CONC_TRY_IN(&g, conc_spawn(NULL, probe, late)); /* in the background: it ends with the run */
    return conc_group_wait(&g);
}

/* ---- the trace: an event a line, its fields always in the same order ---- */

typedef struct {
    char name[128];
    int task;
    double start, length; /* in microseconds */
} span;

typedef enum { END, NAME, SPAN } event;

static event next_event(FILE *trace, span *s)
{
    char line[1024];
    while (fgets(line, sizeof line, trace)) {
        if (sscanf(line,
                   "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%*d,\"tid\":%d,\"args\":{"
                   "\"name\":\"%127[^\"]",
                   &s->task, s->name) == 2)
            return NAME;
        if (sscanf(line,
                   "{\"name\":\"%127[^\"]\",\"ph\":\"X\",\"ts\":%lf,\"dur\":%lf,\"pid\":%*d,"
                   "\"tid\":%d",
                   s->name, &s->start, &s->length, &s->task) == 4)
            return SPAN;
    }
    return END;
}

/* ---- the report ---- */

enum { TASKS = 50, REASONS = 30, WORST = 5, COLUMNS = 60 }; /* what is more is left out */

typedef struct {
    char name[128];
    int spans;
    double running, waiting, born, died;
    char line[COLUMNS + 1]; /* of the picture */
} row;

typedef struct {
    char name[128];
    double time;
    int count;
} total;

typedef struct {
    row tasks[TASKS];
    total reasons[REASONS]; /* of waiting, in the order of their first appearance */
    span steps[WORST];      /* the longest, sorted */
    double end;
} profile;

/* Your turn: put the span into p->steps if it is one of the longest: steps[0] is the longest, then
   the next. What has no room any more is forgotten. */
static void add_step(profile *p, span s)
{
    for (int i = 0; i < WORST; i++)
        if (s.length > p->steps[i].length) {
            span shorter = p->steps[i];
            p->steps[i] = s;
            s = shorter;
        }
}

/* Your turn: add the span's length and 1 to the total of its reason (its name) in p->reasons. If it
   is new, it takes the first place whose count is 0. "sleeps" is no reason. */
static void add_wait(profile *p, const span *s)
{
    if (strcmp(s->name, "sleeps") == 0)
        return;
    for (int i = 0; i < REASONS; i++) {
        total *t = &p->reasons[i];
        if (t->count == 0)
            memcpy(t->name, s->name, sizeof t->name);
        if (strcmp(t->name, s->name) == 0) {
            t->time += s->length;
            t->count++;
            return;
        }
    }
}

static bool is_running(const span *s) { return strcmp(s->name, "running") == 0; }

static void add_span(profile *p, const span *s)
{
    row *task = &p->tasks[s->task];
    double end = s->start + s->length;
    if (task->spans++ == 0)
        task->born = s->start;
    if (end > task->died)
        task->died = end;
    if (end > p->end)
        p->end = end;
    if (is_running(s)) {
        task->running += s->length;
        add_step(p, *s);
    } else {
        task->waiting += s->length;
        add_wait(p, s);
    }
}

static void measure(profile *p, FILE *trace)
{
    span s;
    for (event e; (e = next_event(trace, &s)) != END;)
        if (s.task < 1 || s.task >= TASKS) /* 0 is the loop */
            continue;
        else if (e == NAME)
            memcpy(p->tasks[s.task].name, s.name, sizeof s.name);
        else
            add_span(p, &s);
}

/* Your turn: put the mark into each column of the line whose middle lies from start to end. There
   are COLUMNS of them for the time from 0 to p->end. */
static void draw(profile *p, char *line, double start, double end, char mark)
{
    for (int i = 0; i < COLUMNS; i++) {
        double middle = (i + 0.5) * p->end / COLUMNS;
        if (middle >= start && middle < end)
            line[i] = mark;
    }
}

static void draw_all(profile *p, FILE *trace)
{
    span s;
    for (row *task = p->tasks; task < p->tasks + TASKS; task++) {
        memset(task->line, ' ', COLUMNS);
        draw(p, task->line, task->born, task->died, '.');
    }
    rewind(trace);
    for (event e; (e = next_event(trace, &s)) != END;)
        if (e == SPAN && s.task > 0 && s.task < TASKS)
            draw(p, p->tasks[s.task].line, s.start, s.start + s.length, is_running(&s) ? '#' : '-');
}

static int longer_first(const void *a, const void *b)
{
    double x = ((const total *)a)->time, y = ((const total *)b)->time;
    return (x < y) - (x > y);
}

static void print(profile *p)
{
    printf("Tasks (ms)          running   waiting     ready\n");
    for (row *task = p->tasks; task < p->tasks + TASKS; task++) {
        double ready = task->died - task->born - task->running - task->waiting;
        if (task->name[0])
            printf("  %-14.14s %10.3f %9.3f %9.3f\n", task->name, task->running / 1e3,
                   task->waiting / 1e3, ready / 1e3);
    }
    printf("\nWho held the loop, the longest step first\n");
    for (span *s = p->steps; s < p->steps + WORST && s->length > 0; s++)
        printf("  %-14.14s %10.3f ms, from %.3f ms\n", p->tasks[s->task].name, s->length / 1e3,
               s->start / 1e3);
    printf("\nBottlenecks: what was waited for, except to sleep\n");
    qsort(p->reasons, REASONS, sizeof p->reasons[0], longer_first);
    for (total *t = p->reasons; t < p->reasons + REASONS && t->time > 0; t++)
        printf("  %9.3f ms in %2d waits: %s\n", t->time / 1e3, t->count, t->name);
    printf("\n0 to %.3f ms: # running, - waiting, . ready to run while another task does\n",
           p->end / 1e3);
    for (row *task = p->tasks; task < p->tasks + TASKS; task++)
        if (task->name[0])
            printf("  %-14.14s |%s|\n", task->name, task->line);
}

static int report(const char *path)
{
    static profile p;
    FILE *trace = fopen(path, "r");
    if (!trace)
        return -errno;
    measure(&p, trace);
    draw_all(&p, trace);
    fclose(trace);
    if (!(p.end > 0))
        return -EINVAL; /* no trace, or one in which nothing took any time */
    print(&p);
    return 0;
}

static int profile_app(const char *path)
{
    double late = 0;
    unsetenv("CONC_SEED"); /* in another order of the tasks there are other figures */
    /* on the virtual clock they are exact */
    conc_options options = {.virtual_clock = true, .trace = path};
    CONC_TRY(conc_run_with(&options, app, &late));
    printf("The loop was late by %.3f ms at most\n\n", late * 1e3);
    return report(path);
}

int main(int argc, char **argv)
{
    char scratch[] = "/tmp/profileXXXXXX";
    int rc, fd;
    if (argc == 2) {
        rc = report(argv[1]);
    } else if (argc == 3 && strcmp(argv[1], "--trace") == 0) {
        rc = profile_app(argv[2]);
    } else {
        fd = mkstemp(scratch);
        rc = fd < 0 ? -errno : profile_app(scratch);
        close(fd);
        unlink(scratch);
    }
    if (rc < 0)
        fprintf(stderr, "profiler: %s\n", rc == -EINVAL ? "this is no trace" : conc_strerror(rc));
    return rc < 0;
}
