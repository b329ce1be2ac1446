/* test_trace.c - the trace: a file in Chrome's trace event format whose spans nest, whose arrows
 * pair, and whose sums are the run's own statistics.
 *
 * Not under: save-fpu, aarch64-bti, poll, gcc-asan (which change nothing here)
 * Seeds: 3 (files of many kilobytes) */
#define TEST_SYNC
#include "conc_test.h"

#include <pthread.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ---- reading a trace ---- */

typedef struct event {
    char name[300], phase;
    long long at, took; /* ns */
    unsigned row;
    unsigned long id;
} event;

enum { MOST_EVENTS = 60000, MOST_ROWS = 4096, SECOND_RUN = 4000 };

static event events[MOST_EVENTS];
static int event_count;
static char row_names[MOST_ROWS][300];
static char path[256];

/* Skips a JSON value; returns where it ends, or NULL. */
static const char *skip_json(const char *p)
{
    p += strspn(p, " \t\r\n");
    if (*p == '"') {
        for (p++; *p && *p != '"'; p++) {
            if ((unsigned char)*p < ' ')
                return NULL;
            if (*p == '\\') {
                p++;
                if (*p == 'u' && strspn(p + 1, "0123456789abcdefABCDEF") >= 4)
                    p += 4;
                else if (!*p || !strchr("\"\\/bfnrt", *p))
                    return NULL;
            }
        }
        return *p ? p + 1 : NULL;
    }
    if (*p == '{' || *p == '[') {
        char close = *p == '{' ? '}' : ']';
        p++;
        for (bool first = true;; first = false) {
            p += strspn(p, " \t\r\n");
            if (*p == close && first)
                return p + 1;
            if (close == '}') {
                if (*p != '"' || !(p = skip_json(p)))
                    return NULL;
                p += strspn(p, " \t\r\n");
                if (*p++ != ':')
                    return NULL;
            }
            p = skip_json(p);
            if (!p)
                return NULL;
            p += strspn(p, " \t\r\n");
            if (*p == close)
                return p + 1;
            if (*p++ != ',')
                return NULL;
        }
    }
    size_t n = strspn(p, "-+.eE0123456789");
    return n ? p + n : NULL;
}

static char *read_file(const char *name, size_t *size)
{
    struct stat st;
    FILE *f = fopen(name, "r");
    if (!f || fstat(fileno(f), &st))
        test_fail(__FILE__, __LINE__, "%s cannot be read", name);
    char *text = malloc((size_t)st.st_size + 1);
    CHECK(text != NULL);
    *size = fread(text, 1, (size_t)st.st_size, f);
    text[*size] = 0;
    fclose(f);
    return text;
}

static long long ns_of(const char *line, const char *field)
{
    const char *p = strstr(line, field);
    long long us = 0;
    int rest = 0;
    if (!p || sscanf(p + strlen(field), "%lld.%3d", &us, &rest) != 2)
        test_fail(__FILE__, __LINE__, "%s is missing in %s", field, line);
    return us * 1000 + rest;
}

static unsigned long number_of(const char *line, const char *field)
{
    const char *p = strstr(line, field);
    return p ? strtoul(p + strlen(field), NULL, 10) : 0;
}

static void read_event(const char *line)
{
    event e = {.phase = 0};
    CHECK(sscanf(line, "{\"name\":\"%299[^\"]\"", e.name) == 1);
    const char *phase = strstr(line, "\"ph\":\"");
    CHECK(phase != NULL);
    e.phase = phase[6];
    e.row = (unsigned)number_of(line, "\"tid\":");
    if (e.row >= 10000000) /* of the second run in the file */
        e.row = e.row % 10000000 + SECOND_RUN;
    CHECK(e.row < MOST_ROWS);
    CHECK_INT(number_of(line, "\"pid\":"), getpid());
    if (e.phase == 'M') {
        const char *name = strstr(line, "\"args\":{\"name\":\"");
        CHECK(name != NULL);
        snprintf(row_names[e.row], sizeof row_names[0], "%s", name + 16);
        char *end = strstr(row_names[e.row], e.row ? "\"}" : "\"");
        CHECK(end != NULL);
        *end = 0;
        return;
    }
    e.at = ns_of(line, "\"ts\":");
    e.took = e.phase == 'X' ? ns_of(line, "\"dur\":") : 0;
    e.id = number_of(line, "\"id\":");
    if (e.id >> 30)
        e.id = (e.id & 0x3fffffff) % 10000000 + MOST_EVENTS / 2;
    CHECK(event_count < MOST_EVENTS);
    events[event_count++] = e;
}

/* Reads a whole trace; all of it must be JSON. */
static void read_trace(const char *name)
{
    size_t size;
    char *text = read_file(name, &size);
    const char *end = skip_json(text);
    if (!end || end[strspn(end, "\n")])
        test_fail(__FILE__, __LINE__, "this is no JSON: %.60s", end ? end : text);
    event_count = 0;
    memset(row_names, 0, sizeof row_names);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (line[0] == '{')
            read_event(line);
    free(text);
}

static int row_of(const char *name)
{
    for (int i = 0; i < MOST_ROWS; i++)
        if (strncmp(row_names[i], name, strlen(name)) == 0)
            return i;
    test_fail(__FILE__, __LINE__, "there is no row for %s", name);
    return -1;
}

static long long sum_of(int row, const char *name)
{
    long long sum = 0;
    for (int i = 0; i < event_count; i++)
        if (events[i].phase == 'X' && (row < 0 || events[i].row == (unsigned)row) &&
            strstr(events[i].name, name))
            sum += events[i].took;
    return sum;
}

static int count_of(int row, char phase, const char *name)
{
    int n = 0;
    for (int i = 0; i < event_count; i++)
        n += events[i].phase == phase && (row < 0 || events[i].row == (unsigned)row) &&
             !strcmp(events[i].name, name);
    return n;
}

static int by_row_and_time(const void *a, const void *b)
{
    const event *x = a, *y = b;
    if (x->row != y->row)
        return x->row < y->row ? -1 : 1;
    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    return (x->took > y->took) - (x->took < y->took);
}

static const event *running_around(const event *e)
{
    for (int i = 0; i < event_count; i++)
        if (events[i].phase == 'X' && events[i].row == e->row &&
            !strcmp(events[i].name, "running") && events[i].at <= e->at &&
            e->at <= events[i].at + events[i].took)
            return &events[i];
    return NULL;
}

/* Spans of a row must not overlap; each arrow must have two ends, in order, in two steps. */
static void check_order(void)
{
    static event sorted[MOST_EVENTS];
    static unsigned char begun[MOST_EVENTS], ended[MOST_EVENTS];
    int spans = 0;
    memset(begun, 0, sizeof begun);
    memset(ended, 0, sizeof ended);
    for (int i = 0; i < event_count; i++) {
        const event *e = &events[i];
        if (e->phase == 'X') {
            sorted[spans++] = *e;
            continue;
        }
        CHECK(strchr("sfi", e->phase));
        if (e->phase == 'i')
            continue;
        CHECK(e->id > 0 && e->id < MOST_EVENTS);
        unsigned char *ends = e->phase == 's' ? begun : ended;
        CHECK_INT(ends[e->id]++, 0);
        CHECK(e->phase == 's' || begun[e->id]);
        CHECK(running_around(e) != NULL);
    }
    for (int i = 0; i < MOST_EVENTS; i++)
        CHECK_INT(begun[i], ended[i]);
    qsort(sorted, (size_t)spans, sizeof sorted[0], by_row_and_time);
    for (int i = 1; i < spans; i++)
        if (sorted[i].row == sorted[i - 1].row &&
            sorted[i].at < sorted[i - 1].at + sorted[i - 1].took)
            test_fail(__FILE__, __LINE__, "row %u: \"%s\" at %lld begins before \"%s\" ends",
                      sorted[i].row, sorted[i].name, sorted[i].at, sorted[i - 1].name);
}

/* ---- writing a trace ---- */

static void make_path(void)
{
    snprintf(path, sizeof path, "/tmp/conc_trace_%ld.json", (long)getpid());
}

static int trace(conc_fn *fn, void *arg, bool virtual_clock)
{
    make_path();
    conc_options o = {.virtual_clock = virtual_clock, .trace = path};
    int rc = conc_run_with(&o, fn, arg);
    read_trace(path);
    CHECK_INT(unlink(path), 0);
    return rc;
}

static conc_stats at_the_end;

static int cook(void *seconds)
{
    CONC_TRY(conc_sleep(*(double *)seconds));
    return conc_block(0.25);
}

static int three_cooks(void *arg)
{
    double seconds[] = {2, 1, 3};
    (void)arg;
    int rc = CONC_MAP(cook, seconds);
    conc_get_stats(&at_the_end);
    return rc;
}

TEST(each_task_has_a_row_with_spans_for_its_steps_and_waits)
{
    CHECK_INT(trace(three_cooks, NULL, true), 0);
    CHECK_STR(row_names[0], "loop");
    CHECK_STR(row_names[1], "main");
    for (int row = 2; row < 5; row++) {
        CHECK_CONTAINS(row_names[row], "cook at ");
        CHECK_INT(sum_of(row, "running"), 250000000);
        CHECK_INT(count_of(row, 'X', "sleeps"), 1);
    }
    CHECK_INT(sum_of(2, "sleeps"), 2000000000);
    CHECK_INT(sum_of(3, "sleeps"), 1000000000);
    CHECK_INT(sum_of(4, "sleeps"), 3000000000);
    CHECK_INT(sum_of(1, "waits for"), 3250000000);
    CHECK_INT(count_of(1, 'i', "spawn"), 3);
    CHECK(sum_of(0, "idle") > 0);
    check_order();
}

TEST(the_sums_of_the_spans_are_the_runs_statistics)
{
    CHECK_INT(trace(three_cooks, NULL, true), 0);
    CHECK_INT(sum_of(-1, "running"), (long long)(at_the_end.running * 1e9 + 0.5));
    CHECK_INT(sum_of(-1, "sleeps") + sum_of(-1, "waits"),
              (long long)(at_the_end.waiting * 1e9 + 0.5));
    CHECK_INT(sum_of(0, "idle"), (long long)(at_the_end.idle * 1e9 + 0.5));
    CHECK_INT(at_the_end.peak, 4);
}

/* On the real clock main_fn's last step continues after it has read the statistics. */
TEST(the_sums_agree_on_the_real_clock_too)
{
    static double seconds[] = {0.002, 0.001, 0.003};
    (void)seconds;
    CHECK_INT(trace(three_cooks, NULL, false), 0);
    long long running = sum_of(-1, "running"), last = 0;
    for (int i = 0; i < event_count; i++)
        if (events[i].phase == 'X' && events[i].row == 1 && !strcmp(events[i].name, "running"))
            last = events[i].took;
    CHECK((long long)(at_the_end.running * 1e9) <= running);
    CHECK((long long)(at_the_end.running * 1e9) >= running - last);
    CHECK_INT(sum_of(-1, "sleeps") + sum_of(-1, "waits"),
              (long long)(at_the_end.waiting * 1e9 + 0.5));
    CHECK_INT(sum_of(0, "idle"), (long long)(at_the_end.idle * 1e9 + 0.5));
    check_order();
}

/* ---- arrows and marks ---- */

static conc_event bell;

static int listens(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "listener");
    return conc_event_wait(&bell);
}

static int rings(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "ringer");
    CONC_TRY(conc_sleep(1));
    conc_event_set(&bell);
    return 0;
}

static int listener_and_ringer(void *arg)
{
    conc_group g = {0};
    bell = (conc_event){0};
    CHECK_INT(conc_spawn(&g, listens, arg), 0);
    CHECK_INT(conc_spawn(&g, rings, arg), 0);
    return conc_group_wait(&g);
}

TEST(an_arrow_leads_from_the_waking_task_to_the_woken_one)
{
    CHECK_INT(trace(listener_and_ringer, NULL, true), 0);
    check_order();
    unsigned listener = (unsigned)row_of("listener"), ringer = (unsigned)row_of("ringer");
    bool found = false;
    for (int i = 0; i < event_count; i++)
        for (int k = 0; k < event_count && events[i].phase == 's'; k++)
            found |= events[k].phase == 'f' && events[k].id == events[i].id &&
                     events[i].row == ringer && events[k].row == listener &&
                     events[i].at == 1000000000;
    CHECK(found);
    CHECK_INT(count_of((int)listener, 'X', "waits for an event"), 1);
}

static int outlives(void *arg)
{
    (void)arg;
    return conc_sleep(10);
}

static int cancels_and_limits(void *arg)
{
    conc_group g = {0};
    static conc_task t;
    CHECK_INT(conc_spawn_task(&g, &t, outlives, arg), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_timeout(2, outlives, arg), -ETIMEDOUT);
    return conc_group_wait(&g);
}

TEST(cancels_and_timeouts_are_marked_in_the_row_of_their_task)
{
    CHECK_INT(trace(cancels_and_limits, NULL, true), 0);
    CHECK_INT(count_of(row_of("outlives"), 'i', "cancel"), 1);
    CHECK_INT(count_of(1, 'i', "timeout"), 1);
    CHECK_INT(count_of(-1, 'i', "cancel"), 1);
    check_order();
}

/* ---- names ---- */

static int has_a_wild_name(void *arg)
{
    conc_set_name(conc_self(), arg);
    return conc_yield();
}

TEST(any_name_is_a_valid_string)
{
    static const char *const wild[] = {"quote \" and \\ backslash",
                                       "tab\tand\nline",
                                       "\x01\x1f",
                                       "",
                                       "gr\xc3\xbc zz",
                                       "\xff and \xc3",
                                       "0123456789012345678901234567890123456789012345\xc3\xbc"};
    static const char *const shown[] = {"quote \\",
                                        "tab\\u0009and\\u000aline",
                                        "\\u0001\\u001f",
                                        "",
                                        "gr\xc3\xbc zz",
                                        "? and ?",
                                        "0123456789012345678901234567890123456789012345?"};
    for (size_t i = 0; i < CONC_LEN(wild); i++) {
        CHECK_INT(trace(has_a_wild_name, (void *)(uintptr_t)wild[i], true), 0);
        CHECK(strncmp(row_names[1], shown[i], strlen(shown[i])) == 0);
    }
}

/* ---- many tasks, at random ---- */

static conc_queue line = CONC_QUEUE(int, 3);

static int works(void *arg)
{
    int item, n = (int)(intptr_t)arg;
    for (int i = 0; i < 20; i++) {
        double what = conc_random(0, 4);
        int rc = what < 1   ? conc_sleep(conc_random(0, 0.1))
                 : what < 2 ? conc_block(conc_random(0, 0.01))
                 : n % 2    ? conc_queue_put(&line, &n)
                            : conc_queue_get(&line, &item);
        CONC_TRY(rc);
    }
    return 0;
}

static int works_at_random(void *arg)
{
    conc_group g = {0};
    conc_scope s = {0};
    (void)arg;
    CHECK_INT(conc_scope_begin(&s, 20), 0);
    for (intptr_t i = 0; i < 200; i++)
        CHECK_INT(conc_spawn(&g, works, (void *)i), 0);
    int rc = conc_group_wait(&g);
    rc = conc_scope_end(&s, rc);
    CHECK(rc == 0 || rc == -ETIMEDOUT);
    conc_queue_destroy(&line);
    line = (conc_queue)CONC_QUEUE(int, 3);
    conc_get_stats(&at_the_end);
    return 0;
}

TEST(random_programs_have_spans_that_nest_and_sums_that_agree)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        make_path();
        conc_options o = {.virtual_clock = true, .trace = path, .seed = seed};
        CHECK_INT(conc_run_with(&o, works_at_random, NULL), 0);
        read_trace(path);
        check_order();
        CHECK_INT(sum_of(-1, "running"), (long long)(at_the_end.running * 1e9 + 0.5));
        CHECK_INT(sum_of(-1, "sleeps") + sum_of(-1, "waits"),
                  (long long)(at_the_end.waiting * 1e9 + 0.5));
        CHECK_INT(sum_of(0, "idle"), (long long)(at_the_end.idle * 1e9 + 0.5));
    }
    CHECK_INT(unlink(path), 0);
}

/* ---- files ---- */

static int yields_often(void *arg)
{
    struct stat st;
    for (int i = 0; i < *(int *)arg; i++)
        CONC_TRY(conc_yield());
    return stat(path, &st) == 0 ? (int)(st.st_size / 1024) : -errno;
}

TEST(the_file_grows_while_the_run_continues)
{
    static int n = 20000;
    make_path();
    conc_options o = {.virtual_clock = true, .trace = path};
    int kilobytes = conc_run_with(&o, yields_often, &n);
    CHECK(kilobytes > 500);
    read_trace(path);
    CHECK_INT(count_of(1, 'X', "running"), n + 1);
    CHECK_INT(unlink(path), 0);
}

static char report[65536];
static const char *written;

static void run_on(void)
{
    static int n = 5000;
    conc_options o = {.virtual_clock = true, .trace = written};
    snprintf(path, sizeof path, "%s", "/");
    CHECK(conc_run_with(&o, yields_often, &n) >= 0);
}

static int lines_of(const char *text, const char *part)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, part)); p++)
        n++;
    return n;
}

TEST(a_full_disk_ends_the_trace_and_not_the_program)
{
    written = "/dev/full";
    CHECK_INT(test_in_process(run_on, report, sizeof report), 0);
    CHECK_CONTAINS(report, "conc: the trace ends here: No space left on device");
    CHECK_INT(lines_of(report, "the trace ends"), 1);
}

static void run_under_a_limit(void)
{
    struct rlimit small = {100000, 100000};
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &small), 0);
    run_on();
    sigset_t pending;
    CHECK_INT(sigpending(&pending), 0);
    CHECK(!sigismember(&pending, SIGXFSZ));
}

TEST(a_file_size_limit_ends_the_trace_and_not_the_program)
{
    static char name[300];
    make_path();
    snprintf(name, sizeof name, "%s", path);
    written = name;
    CHECK_INT(test_in_process(run_under_a_limit, report, sizeof report), 0);
    CHECK_CONTAINS(report, "conc: the trace ends here: File too large");
    CHECK_INT(lines_of(report, "the trace ends"), 1);
    CHECK_INT(unlink(name), 0);
}

static int closes_the_reader_and_yields(void *arg)
{
    static int n = 20000;
    CHECK_INT(close(*(int *)arg), 0);
    return yields_often(&n);
}

static void run_into_a_pipe(void)
{
    int ends[2];
    char name[64];
    CHECK_INT(pipe(ends), 0);
    snprintf(name, sizeof name, "/proc/self/fd/%d", ends[1]);
    conc_options o = {.virtual_clock = true, .trace = name};
    snprintf(path, sizeof path, "%s", "/");
    CHECK(conc_run_with(&o, closes_the_reader_and_yields, &ends[0]) >= 0);
    sigset_t pending;
    CHECK_INT(sigpending(&pending), 0);
    CHECK(!sigismember(&pending, SIGPIPE));
}

TEST(a_pipe_whose_reader_is_gone_ends_the_trace_and_not_the_program)
{
    CHECK_INT(test_in_process(run_into_a_pipe, report, sizeof report), 0);
    CHECK_CONTAINS(report, "conc: the trace ends here: Broken pipe");
}

static int returns_7(void *arg)
{
    (void)arg;
    return 7;
}

static void run_nowhere(void)
{
    conc_options o = {.trace = "/nowhere/at/all/trace.json"};
    CHECK_INT(conc_run_with(&o, returns_7, NULL), -ENOENT);
    CHECK_CONTAINS(conc_last_error(), "/nowhere/at/all/trace.json: No such file");
    CHECK_INT(conc_run(returns_7, NULL), 7);
    CHECK_STR(conc_last_error(), "");
}

TEST(a_file_that_cannot_be_opened_is_an_error_before_anything_runs)
{
    CHECK_INT(test_in_process(run_nowhere, report, sizeof report), 0);
    CHECK_CONTAINS(report, "/nowhere/at/all/trace.json: cannot write a trace there: No such file");
}

static int wakes_a_task(void *arg) { return CONC_GATHER(CONC_CALL(returns_7, arg)) + 7; }

static void *another_run(void *arg)
{
    conc_options o = {.trace = path};
    *(int *)arg = conc_run_with(&o, wakes_a_task, NULL);
    return NULL;
}

static int runs_in_a_thread(void *arg)
{
    pthread_t thread;
    CHECK_INT(conc_sleep(0.002), 0);
    CHECK_INT(pthread_create(&thread, NULL, another_run, arg), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    return conc_yield();
}

static const event *first_in(int row)
{
    for (int i = 0; i < event_count; i++)
        if (events[i].phase == 'X' && events[i].row == (unsigned)row)
            return &events[i];
    test_fail(__FILE__, __LINE__, "row %d is empty", row);
    return NULL;
}

TEST(two_runs_at_once_share_the_file)
{
    int rc = 0;
    make_path();
    conc_options o = {.trace = path};
    CHECK_INT(conc_run_with(&o, runs_in_a_thread, &rc), 0);
    CHECK_INT(rc, 7);
    read_trace(path);
    check_order();
    CHECK_STR(row_names[0], "loop");
    CHECK_STR(row_names[SECOND_RUN], "loop");
    CHECK(count_of(SECOND_RUN + 1, 's', "wakes") > 0);
    CHECK(first_in(SECOND_RUN + 1)->at >= first_in(1)->at + 2000000); /* the clock is the same */
    CHECK_INT(conc_run_with(&o, returns_7, NULL), 7);
    read_trace(path); /* a later run begins the file again */
    CHECK_STR(row_names[SECOND_RUN], "");
    CHECK_INT(unlink(path), 0);
}

static void check_that_it_is_begun_again(void)
{
    conc_options o = {.trace = path};
    CHECK_INT(conc_run_with(&o, returns_7, NULL), 7);
    read_trace(path);
    CHECK_INT(count_of(1, 'X', "running"), 1);
    CHECK_INT(unlink(path), 0);
}

TEST(a_finished_trace_is_begun_again_even_if_its_last_run_still_holds_the_lock)
{
    make_path();
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    CHECK_INT(write(fd, "[\n{}\n]\n", 7), 7);
    CHECK_INT(flock(fd, LOCK_SH), 0);
    conc_options o = {.trace = path};
    CHECK_INT(conc_run_with(&o, returns_7, NULL), -EBUSY); /* for a second it tries again */
    CHECK_INT(close(fd), 0);
    check_that_it_is_begun_again();
}

static int forks(void *child)
{
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    *(pid_t *)child = pid;
    return 0;
}

TEST(a_forked_child_with_the_descriptor_does_not_keep_the_lock)
{
    pid_t child = 0;
    make_path();
    conc_options o = {.trace = path};
    CHECK_INT(conc_run_with(&o, forks, &child), 0);
    read_trace(path);
    check_that_it_is_begun_again();
    CHECK_INT(kill(child, SIGKILL), 0);
    CHECK_INT(waitpid(child, NULL, 0), child);
}

TEST(the_environment_names_the_file)
{
    make_path();
    CHECK_INT(setenv("CONC_TRACE", path, 1), 0);
    CHECK_INT(conc_run(returns_7, NULL), 7);
    CHECK_INT(unsetenv("CONC_TRACE"), 0);
    read_trace(path);
    CHECK_INT(count_of(1, 'X', "running"), 1);
    CHECK_INT(unlink(path), 0);
}

static int on_the_smallest_stacks(void *arg)
{
    conc_group g = {.stack_size = 16384};
    for (intptr_t i = 0; i < 300; i++)
        CHECK_INT(conc_spawn(&g, outlives, arg), 0);
    return conc_group_wait(&g);
}

TEST(tasks_on_the_smallest_stacks_are_traced)
{
    CHECK_INT(trace(on_the_smallest_stacks, NULL, true), 0);
    CHECK_INT(sum_of(-1, "sleeps"), 3000000000000);
    check_order();
}
