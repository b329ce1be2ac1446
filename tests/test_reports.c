/* test_reports.c - every report calls a task by its name of that moment, and says where it was
 * spawned.
 *
 * Not under: no-epoll, save-fpu, aarch64-bti, poll (which change nothing here)
 * Seeds: 5 (processes) */
#define TEST_SYNC
#define TEST_POOL
#include "conc_test.h"

static char report[1 << 20];

static void expect(const char *before, const char *name, int line, const char *after)
{
    char text[512];
    snprintf(text, sizeof text, "%s%s (spawned at %s:%d)%s", before, name, TEST_FILE, line, after);
    CHECK_CONTAINS(report, text);
}

static int fails_renamed(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "first name");
    conc_set_name(conc_self(), "second name");
    (void)!conc_yield();
    return conc_fail(-EIO, "no more tea");
}

/* ---- errors that nobody collected ---- */

static struct {
    char task[64], place[256], text[160];
    int count;
} told;

static void keeps(const conc_failure *f, void *user)
{
    (void)user;
    snprintf(told.task, sizeof told.task, "%s", f->task);
    snprintf(told.place, sizeof told.place, "%s", f->place);
    snprintf(told.text, sizeof told.text, "%s", f->text);
    told.count++;
}

static int line_of_spawn;

static int in_auto_group(void *arg)
{
    CONC_AUTO(conc_group, g) = {0};
    CHECK_INT(conc_spawn(&g, fails_renamed, arg), 0), line_of_spawn = __LINE__;
    return conc_sleep(1) == -ECANCELED ? 0 : -EPROTO;
}

static int in_map(void *arg)
{
    int x = 0;
    (void)arg;
    line_of_spawn = __LINE__ + 1;
    return conc_map_all(fails_renamed, &x, 1, sizeof x, NULL);
}

static int as_second(void *arg)
{
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn(&g, fails_renamed, arg), 0);
    CHECK_INT(conc_spawn(&g, fails_renamed, arg), 0), line_of_spawn = __LINE__;
    CHECK_INT(conc_group_wait(&g), -EIO);
    return 0;
}

static int in_background(void *arg)
{
    CHECK_INT(conc_spawn(NULL, fails_renamed, arg), 0), line_of_spawn = __LINE__;
    return conc_sleep(1);
}

static int in_background_with_handle(void *arg)
{
    static conc_task t;
    CHECK_INT(conc_spawn_task(NULL, &t, fails_renamed, arg), 0), line_of_spawn = __LINE__;
    return conc_sleep(1);
}

static int passes_it_on(void *arg)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, fails_renamed, arg), 0), line_of_spawn = __LINE__;
    return conc_group_wait(&g);
}

static int joins_it(void *arg)
{
    conc_group g = {0};
    conc_task t;
    int rc;
    CHECK_INT(conc_spawn_task(&g, &t, fails_renamed, arg), 0), line_of_spawn = __LINE__;
    CHECK_INT(conc_join(&t, &rc), 0);
    return conc_group_end(&g, rc);
}

static int in_a_group_in_an_auto_group(void *arg)
{
    CONC_AUTO(conc_group, g) = {0};
    CHECK_INT(conc_spawn(&g, passes_it_on, arg), 0);
    return conc_sleep(1) == -ECANCELED ? 0 : -EPROTO;
}

static int in_a_gather(void *arg)
{
    CONC_AUTO(conc_group, g) = {0};
    (void)arg;
    CHECK_INT(conc_spawn(&g, passes_it_on, NULL), 0);
    return conc_sleep(1) == -ECANCELED ? 0 : -EPROTO;
}

TEST(on_error_is_told_the_name_of_the_moment_and_the_place_of_the_spawn)
{
    static conc_fn *const mains[] = {in_auto_group,
                                     in_map,
                                     as_second,
                                     in_background,
                                     in_a_gather,
                                     in_background_with_handle,
                                     in_a_group_in_an_auto_group};
    for (size_t i = 0; i < CONC_LEN(mains); i++) {
        conc_options o = {.virtual_clock = true, .on_error = keeps};
        char place[300];
        memset(&told, 0, sizeof told);
        CHECK_INT(conc_run_with(&o, mains[i], NULL), 0);
        snprintf(place, sizeof place, "%s:%d", TEST_FILE, line_of_spawn);
        CHECK_INT(told.count, 1);
        CHECK_STR(told.task, "second name");
        CHECK_STR(told.place, place);
        CHECK_STR(told.text, "no more tea");
    }
}

static int flushes_into_a_closed_pipe(void *arg)
{
    int ends[2];
    (void)arg;
    conc_set_name(conc_self(), "plumber");
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(close(ends[0]), 0);
    CONC_AUTO(conc_stream, s) = {0};
    CONC_TRY(conc_stream_open(&s, ends[1]));
    return (int)conc_stream_write(&s, "x", 1) - 1;
}

static int cleans_up_badly(conc_gen *g, void *arg)
{
    (void)arg;
    CHECK_INT(conc_gen_emit(g, NULL), -ECANCELED);
    return conc_fail(-EIO, "no more soap");
}

static int closes_a_generator(void *arg)
{
    conc_set_name(conc_self(), "plumber");
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, cleans_up_badly, arg, 0));
    CHECK_INT(conc_gen_next(&g, NULL), 1);
    return 0;
}

static int closes_in_a_task(void *fn)
{
    conc_group g = {0};
    line_of_spawn = __LINE__ + 1;
    CHECK_INT(conc_spawn(&g, *(conc_fn **)fn, NULL), 0);
    return conc_group_wait(&g);
}

TEST(what_does_not_close_well_is_told_with_the_task_that_closed_it)
{
    conc_fn *closers[] = {flushes_into_a_closed_pipe, closes_a_generator};
    static const char *const words[] = {"a stream", "no more soap"};
    for (size_t i = 0; i < CONC_LEN(closers); i++) {
        conc_options o = {.virtual_clock = true, .on_error = keeps};
        char place[300];
        memset(&told, 0, sizeof told);
        CHECK_INT(conc_run_with(&o, closes_in_a_task, &closers[i]), 0);
        snprintf(place, sizeof place, "%s:%d", TEST_FILE, line_of_spawn);
        CHECK_INT(told.count, 1);
        CHECK_STR(told.task, "plumber");
        CHECK_STR(told.place, place);
        CHECK_CONTAINS(told.text, words[i]);
    }
}

/* ---- reports on stderr ---- */

static conc_fn *body;
static conc_options options;

static void run_body(void) { (void)conc_run_with(&options, body, NULL); }

/* Runs fn as main_fn in a process of its own; its stderr in report. */
static int run_for_report(conc_fn *fn, conc_options o)
{
    body = fn;
    options = o;
    return test_in_process(run_body, report, sizeof report);
}

static int main_line;

static void run_main(void)
{
    main_line = __LINE__ + 1;
    int rc = conc_main(body, NULL);
    fprintf(stderr, "status %d, lines %d %d\n", rc, main_line, line_of_spawn);
}

static int lines[2];

static void run_main_for_report(conc_fn *fn)
{
    body = fn;
    CHECK_INT(test_in_process(run_main, report, sizeof report), 0);
    const char *found = strstr(report, "status 1, lines ");
    CHECK(found && sscanf(found, "status 1, lines %d %d", &lines[0], &lines[1]) == 2);
}

TEST(conc_main_calls_the_task_by_its_name_of_the_moment)
{
    run_main_for_report(fails_renamed);
    expect("conc: ", "second name", lines[0], " failed: no more tea\n");
    run_main_for_report(passes_it_on);
    expect("conc: ", "second name", lines[1], " failed: no more tea\n");
    run_main_for_report(joins_it);
    expect("conc: ", "second name", lines[1], " failed: no more tea\n");
}

static int line_of_child;
#define IN_A_TASK(fn)                          \
    static int fn##_in_a_task(void *arg)       \
    {                                          \
        conc_group g = {0};                    \
        CHECK_INT(conc_spawn(&g, fn, arg), 0); \
        line_of_child = __LINE__;              \
        return conc_group_wait(&g);            \
    }                                          \
    enum { LINE_OF_##fn = __LINE__ }

static int renames_itself_and_holds_the_loop(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "slow one");
    return conc_block(1);
}
IN_A_TASK(renames_itself_and_holds_the_loop);

static int is_out_of_order(void *arg)
{
    conc_scope s = {0};
    (void)arg;
    conc_set_name(conc_self(), "disorderly");
    CHECK_INT(conc_scope_end(&s, 0), -EINVAL);
    return 0;
}
IN_A_TASK(is_out_of_order);

static conc_lock kept;

static int keeps_the_lock(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "greedy");
    return conc_lock_acquire(&kept);
}
IN_A_TASK(keeps_the_lock);

static int ignores_its_cancel(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "stubborn");
    CHECK_INT(conc_cancel(conc_self()), 0);
    for (int i = 0; i < 2000; i++)
        CHECK_INT(conc_yield(), -ECANCELED);
    return 0;
}
IN_A_TASK(ignores_its_cancel);

static int fails_quietly(void *arg)
{
    CHECK_INT(conc_spawn(NULL, fails_renamed, arg), 0);
    return conc_sleep(1);
}
enum { LINE_OF_QUIET = __LINE__ - 3 };

TEST(reports_of_debug_mode_use_the_name_of_the_moment)
{
    const conc_options debugging = {.debug = true, .virtual_clock = true};
    CHECK_INT(run_for_report(renames_itself_and_holds_the_loop_in_a_task, debugging), 0);
    expect("conc: ", "slow one", LINE_OF_renames_itself_and_holds_the_loop,
           " held the loop for 1.000 s\n");
    CHECK_INT(run_for_report(is_out_of_order_in_a_task, debugging), 0);
    expect("conc: ", "disorderly", LINE_OF_is_out_of_order, ": conc_scope_end: ");
    CHECK_INT(run_for_report(keeps_the_lock_in_a_task, debugging), 0);
    expect("conc: ", "greedy", LINE_OF_keeps_the_lock, " ended with a lock that it acquired at ");
    CHECK_INT(run_for_report(ignores_its_cancel_in_a_task, debugging), 0);
    expect("conc: ", "stubborn", LINE_OF_ignores_its_cancel, ": it was cancelled: ");
    CHECK_INT(run_for_report(fails_quietly, debugging), 0);
    expect("conc: ", "second name", LINE_OF_QUIET, " failed: no more tea\n");
    if (strstr(report, "bytes used by"))
        expect(" bytes used by ", "second name", LINE_OF_QUIET, " (1 of them)\n");
}

static int leaves_a_scope(void *arg)
{
    conc_scope s = {0};
    (void)arg;
    conc_set_name(conc_self(), "careless");
    return conc_scope_begin(&s, 1);
}
IN_A_TASK(leaves_a_scope);

TEST(a_lost_scope_is_told_with_the_name_of_the_moment)
{
    int status = run_for_report(leaves_a_scope_in_a_task, (conc_options){.virtual_clock = true});
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    expect("conc: ", "careless", LINE_OF_leaves_a_scope, ": it ended, with the scope opened at ");
}

/* ---- names that are hard to print ---- */

static int has_a_wild_name(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "red \x1b[31m at \x07\nconc: forged");
    conc_dump(stderr);
    return conc_fail(-EIO, "in red");
}
IN_A_TASK(has_a_wild_name);

TEST(no_control_character_of_a_name_reaches_the_terminal)
{
    body = has_a_wild_name_in_a_task;
    CHECK_INT(test_in_process(run_main, report, sizeof report), 0);
    expect("conc: ", "red ?[31m at ??conc: forged", LINE_OF_has_a_wild_name, " failed: in red\n");
    CHECK_CONTAINS(report, "    red ?[31m at ??conc: forged: running (spawned at ");
    for (const char *p = report; *p; p++)
        CHECK(*p == '\n' || (unsigned char)*p >= ' ');
}

/* an expression of 400 characters and more */
#define TWICE(x) (x + x)
#define ZERO TWICE(TWICE(TWICE(TWICE(TWICE(TWICE(TWICE(0)))))))
static conc_fn *const wild[] = {has_a_wild_name};

static int has_a_long_name(void *arg)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, wild[ZERO], arg), 0);
    conc_dump(stderr);
    conc_group_cancel(&g);
    return conc_group_wait(&g) == -EIO ? 0 : -EPROTO;
}
enum { LINE_OF_LONG = __LINE__ - 5 };

TEST(a_long_name_keeps_its_place)
{
    char place[300];
    snprintf(place, sizeof place, " at %s:%d: ready\n", TEST_FILE, LINE_OF_LONG);
    CHECK_INT(run_for_report(has_a_long_name, (conc_options){.virtual_clock = true}), 0);
    CHECK_CONTAINS(report, "wild[(((((((0 + 0)");
    CHECK_CONTAINS(report, place);
}
