/* test_reports.c - every report contains the task's current name, and where it was spawned.
 *
 * Not under: no-epoll, save-fpu, aarch64-bti, poll (which change nothing here)
 * Seeds: 5 (processes) */
#define TEST_SYNC
#define TEST_POOL
#include "conc_test.h"

#include <pthread.h>

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

/* ---- errors that no call collected ---- */

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

ORDERED_TEST(on_error_receives_the_current_name_and_the_spawn_location)
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

static int closes_in_a_task(void *fn)
{
    conc_group g = {0};
    line_of_spawn = __LINE__ + 1;
    CHECK_INT(conc_spawn(&g, *(conc_fn **)fn, NULL), 0);
    return conc_group_wait(&g);
}

TEST(an_error_at_a_close_is_reported_with_the_closing_task)
{
    conc_fn *closers[] = {flushes_into_a_closed_pipe};
    static const char *const words[] = {"a stream"};
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

/* Runs fn as main_fn in its own process; stores its stderr in report. */
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

TEST(conc_main_calls_the_task_by_its_current_name)
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

TEST(reports_of_debug_mode_use_the_current_name)
{
    const conc_options debugging = {.debug = true, .virtual_clock = true};
    CHECK_INT(run_for_report(renames_itself_and_holds_the_loop_in_a_task, debugging), 0);
    expect("conc: ", "slow one", LINE_OF_renames_itself_and_holds_the_loop,
           " blocked the loop for 1.000 s\n");
    CHECK_INT(run_for_report(is_out_of_order_in_a_task, debugging), 0);
    expect("conc: ", "disorderly", LINE_OF_is_out_of_order, ": conc_scope_end: ");
    CHECK_INT(run_for_report(keeps_the_lock_in_a_task, debugging), 0);
    expect("conc: ", "greedy", LINE_OF_keeps_the_lock, " ended while holding a lock acquired at ");
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

TEST(a_lost_scope_is_reported_with_the_current_name)
{
    int status = run_for_report(leaves_a_scope_in_a_task, (conc_options){.virtual_clock = true});
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    expect("conc: ", "careless", LINE_OF_leaves_a_scope, ": it ended, with the scope opened at ");
}

/* ---- awkward names ---- */

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

/* an expression of more than 400 characters */
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

TEST(a_long_name_keeps_its_location)
{
    char place[300];
    snprintf(place, sizeof place, " at %s:%d: ready\n", TEST_FILE, LINE_OF_LONG);
    CHECK_INT(run_for_report(has_a_long_name, (conc_options){.virtual_clock = true}), 0);
    CHECK_CONTAINS(report, "wild[(((((((0 + 0)");
    CHECK_CONTAINS(report, place);
}

/* ---- public names ---- */

static conc_gen gen;
static conc_stream stream;
static conc_queue queue;
static conc_rwlock rwlock;
static conc_sem permits;
static conc_event event;
static conc_cond cond;
static conc_latch latch = {.count = 1};
static conc_future future;
static conc_limiter limiter = {.rate = 1};
static char *line_read;
static char one_byte[1];
static conc_scope a_scope;
static conc_group a_group;
static conc_signals signals;
static conc_local local;
static conc_pool pool;
static conc_procs procs;
static conc_channel channel = CONC_CHANNEL(int, 1);
static void *data;

static int yields_one(conc_gen *g, void *arg) { return conc_gen_emit(g, arg); }

static int closes_fd(int fd, void *arg)
{
    (void)arg;
    return fd;
}

static ssize_t copies(const void *in, size_t in_size, void *out, size_t out_size)
{
    (void)in, (void)in_size, (void)out;
    return (ssize_t)out_size;
}

/* Calls it, between marks that delimit its reports. */
#define CALL(call)                        \
    do {                                  \
        fprintf(stderr, "<%s>\n", #call); \
        (void)!(int)(call);               \
    } while (0)

/* Every function of conc_pool.h that is refused in a posted function. */
static void calls_all_of_pool(void)
{
    static const char *const argv[] = {"true", NULL};
    int item = 0;
    conc_child child = {.argv = argv};
    struct sockaddr_storage address;
    CALL(conc_pool_close(&pool));
    CALL(conc_pool_run(&pool, fails_renamed, NULL));
    CALL(conc_pool_map(&pool, fails_renamed, &item, 1, sizeof item));
    CALL(conc_pool_map_all(&pool, fails_renamed, &item, 1, sizeof item, NULL));
    CALL(conc_offload(fails_renamed, NULL));
    CALL(conc_offload_abandon(fails_renamed, NULL, NULL));
    CALL(conc_procs_run(&procs, fails_renamed, &item, sizeof item));
    CALL(conc_procs_map(&procs, fails_renamed, &item, 1, sizeof item));
    CALL(conc_procs_map_all(&procs, fails_renamed, &item, 1, sizeof item, NULL));
    CALL(conc_procs_call(&procs, copies, NULL, 0, NULL, 0));
    CALL(conc_channel_send(&channel, &item));
    CALL(conc_channel_recv(&channel, &item));
    CALL(conc_file_read("/dev/null", &data, NULL));
    CALL(conc_file_write("/dev/null", "", 0));
    CALL(conc_file_append("/dev/null", "", 0));
    CALL(conc_resolve("a.name", "1", &address, 1));
    CALL(conc_child_start(&child));
    CALL(conc_child_wait(&child, NULL));
#ifdef __linux__
    CALL(conc_procs_close(&procs));
#endif
}

static void calls_everything(void *arg)
{
    static conc_barrier barrier = CONC_BARRIER(2);
    int item = 0;
    conc_task *t;
    conc_call calls[] = {CONC_CALL(fails_renamed, NULL)};
    conc_case cases[] = {CONC_CASE_EVENT(&event)};
    conc_server server = {.fd = 0, .handler = closes_fd};
    struct iovec part = {one_byte, 1};
    (void)arg;
    CALL(conc_sleep(0));
    CALL(conc_sleep_until(0));
    CALL(conc_yield());
    CALL(conc_settle());
    CALL(conc_scope_begin(&a_scope, 1));
    CALL(conc_scope_end(&a_scope, 0));
    CALL(conc_timeout(1, fails_renamed, NULL));
    CALL(conc_shield(1, fails_renamed, NULL));
    CALL(conc_group_begin(&a_group));
    CALL(conc_group_wait(&a_group));
    CALL(conc_group_end(&a_group, 0));
    CALL(conc_group_next(&a_group, &t));
    CALL(conc_start(&a_group, fails_renamed, NULL));
    CALL(conc_started(1));
    CALL(conc_join(NULL, NULL));
    CALL(conc_gather(calls, 1));
    CALL(conc_gather_all(calls, 1));
    CALL(conc_map(fails_renamed, &item, 1, sizeof item));
    CALL(conc_map_all(fails_renamed, &item, 1, sizeof item, NULL));
    CALL(conc_local_set(&local, &item));
    CALL(conc_gen_open(&gen, yields_one, &item, sizeof item));
    CALL(conc_gen_emit(&gen, NULL));
    CALL(conc_gen_next(&gen, &item));
    CALL(conc_wait_fd(0, CONC_READABLE));
    CALL(conc_read(0, one_byte, 1));
    CALL(conc_write(0, one_byte, 1));
    CALL(conc_readv(0, &part, 1));
    CALL(conc_writev(0, &part, 1));
    CALL(conc_recv(0, one_byte, 1, 0));
    CALL(conc_send(0, one_byte, 1, 0));
    CALL(conc_recvfrom(0, one_byte, 1, 0, NULL, NULL));
    CALL(conc_sendto(0, one_byte, 1, 0, NULL, 0));
    CALL(conc_read_full(0, one_byte, 1));
    CALL(conc_write_full(0, one_byte, 1));
    CALL(conc_read_full(0, NULL, 1));
    CALL(conc_accept(0));
    CALL(conc_dial("127.0.0.1:1"));
    CALL(conc_dial("a.name:1"));
    CALL(conc_listen("a.name:1"));
    CALL(conc_serve(&server));
    CALL(conc_stream_read(&stream, one_byte, 1));
    CALL(conc_stream_read_full(&stream, one_byte, 1));
    CALL(conc_stream_read_until(&stream, "x", 1, &line_read));
    CALL(conc_stream_read_line(&stream, &line_read));
    CALL(conc_stream_write(&stream, "x", 1));
    CALL(conc_stream_printf(&stream, "x"));
    CALL(conc_stream_flush(&stream));
    CALL(conc_signals_next(&signals));
    CALL(conc_wait_signal(SIGUSR1));
    CALL(conc_lock_acquire(&kept));
    CALL(conc_lock_try_acquire(&kept));
    CALL(conc_lock_release(&kept));
    CALL(conc_rwlock_acquire_read(&rwlock));
    CALL(conc_rwlock_acquire_write(&rwlock));
    CALL(conc_rwlock_try_acquire_read(&rwlock));
    CALL(conc_rwlock_try_acquire_write(&rwlock));
    CALL(conc_rwlock_release(&rwlock));
    CALL(conc_sem_acquire(&permits));
    CALL(conc_event_wait(&event));
    CALL(conc_cond_wait(&cond, &kept));
    CALL(conc_barrier_wait(&barrier));
    CALL(conc_latch_wait(&latch));
    CALL(conc_future_wait(&future, NULL));
    CALL(conc_queue_put(&queue, &item));
    CALL(conc_queue_get(&queue, &item));
    CALL(conc_queue_join(&queue));
    CALL(conc_select(cases, 1));
    CALL(conc_limiter_acquire(&limiter, 1));
    calls_all_of_pool();
    fprintf(stderr, "<>\n");
}

static int returns_at_once(void *arg) { return arg ? 1 : 0; }

static int posts_it(void *arg)
{
    CHECK_INT(conc_post(conc_loop_self(), calls_everything, arg), 0);
    return conc_sleep(1);
}

/* However slow the machine is, nothing else is reported. */
static const conc_options for_mistakes = {.debug = true, .slow_step = 1000};

TEST(each_mistake_is_reported_once_with_the_public_name)
{
    conc_options o = for_mistakes;
    o.virtual_clock = true;
    CHECK_INT(run_for_report(posts_it, o), 0);
    for (char *at = strstr(report, "<"), *next; at && at[1] != '>'; at = next) {
        char call[64], expected[128];
        next = strstr(at + 1, "\n<");
        CHECK(next != NULL);
        *next++ = 0;
        CHECK(sscanf(at, "<%63[a-z_]", call) == 1);
        snprintf(expected, sizeof expected, ">\nconc: the loop: %s: only a task may call it", call);
        const char *told_of = strstr(at, ">\n");
        if (!told_of || strcmp(told_of, expected) != 0)
            test_fail(__FILE__, __LINE__, "not once, or not as %s:\n%s", call, at);
    }
}

/* ---- other mistakes also name the public function ---- */

static conc_job running, queued, refused;
static int calls_refused;

static int receives(void *arg) { return conc_channel_recv(&channel, arg); }

static void finds_the_pool_full(void *arg)
{
    calls_refused += conc_pool_submit(&pool, &refused, fails_renamed, arg) == -EPERM;
    calls_refused += conc_job_wait(&running, NULL) == -EPERM;
    calls_refused += conc_spawn(&(conc_group){0}, fails_renamed, arg) == -EPERM;
    calls_refused += conc_spawn(&a_group, fails_renamed, arg) == -EPERM;
}

static int posts_into_a_full_pool(void *arg)
{
    static int received, item = 1;
    a_group = (conc_group){.limit = 1};
    pool = (conc_pool){.threads = 1, .queue_limit = 1};
    CONC_TRY(conc_pool_open(&pool));
    CONC_TRY(conc_pool_submit(&pool, &running, receives, &received));
    CONC_TRY(conc_pool_submit(&pool, &queued, receives, &received));
    CONC_TRY(conc_spawn(&a_group, renames_itself_and_holds_the_loop, arg));
    CHECK_INT(conc_post(conc_loop_self(), finds_the_pool_full, arg), 0);
    (void)!conc_yield();
    while (calls_refused < 4)
        (void)!conc_yield();
    CHECK_INT(conc_pool_submit(&pool, &queued, receives, arg), -EBUSY);
    CHECK_INT(conc_channel_send(&channel, &item), 0);
    CHECK_INT(conc_channel_send(&channel, &item), 0);
    CHECK_INT(conc_group_wait(&a_group), 0);
    return conc_pool_close(&pool);
}

static void count_below_zero(conc_latch *l) { CHECK_INT(conc_latch_done(l), -EOVERFLOW); }

static int makes_mistakes(void *arg)
{
    conc_group g = {0}, inner = {0}, closed = {0};
    conc_latch none = {0};
    conc_task t;
    (void)arg;
    CHECK_INT(conc_group_wait(&closed), 0);
    CHECK_INT(conc_spawn(&closed, returns_at_once, NULL), -EINVAL);
    CHECK_INT(conc_spawn_task(&closed, &t, returns_at_once, NULL), -EINVAL);
    CHECK_INT(conc_start(&closed, returns_at_once, NULL), -EINVAL);
    CHECK_INT(conc_group_wait(&closed), -EINVAL);
    CHECK_INT(conc_group_end(&closed, 0), -EINVAL);
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_group_begin(&inner), 0);
    CHECK_INT(conc_group_wait(&g), -EINVAL);
    CHECK_INT(conc_group_end(&g, 0), -EINVAL);
    CHECK_INT(conc_group_wait(&inner), 0);
    count_below_zero(&none);
    return conc_group_wait(&g);
}

TEST(mistakes_name_the_public_function)
{
    static const char *const words[] = {
        "conc_spawn: the group is already closed",
        "conc_spawn_task: the group is already closed",
        "conc_start: the group is already closed",
        "conc_group_wait: the group is already closed",
        "conc_group_end: the group is already closed",
        "conc_group_wait: something inside is still open",
        "conc_group_end: something inside is still open",
        "conc_latch_done: the count would leave its range",
    };
    CHECK_INT(run_for_report(makes_mistakes, for_mistakes), 0);
    for (size_t i = 0; i < CONC_LEN(words); i++)
        CHECK_CONTAINS(report, words[i]);
}

TEST(mistakes_of_posted_functions_name_the_public_function)
{
    static const char *const words[] = {
        "conc: the loop: conc_pool_submit: only a task may call it\n",
        "conc: the loop: conc_job_wait: only a task may call it\n",
        "conc: the loop: conc_spawn: only a task may open a group: ",
        "conc: the loop: conc_spawn: the group is full, and only a task may wait: ",
        ": conc_pool_submit: the job is in use\n",
    };
    CHECK_INT(run_for_report(posts_into_a_full_pool, for_mistakes), 0);
    for (size_t i = 0; i < CONC_LEN(words); i++)
        CHECK_CONTAINS(report, words[i]);
}

static void *changes_another_loop(void *arg)
{
    (void)arg;
    conc_scope_cancel(&a_scope);
    conc_group_cancel(&a_group);
    conc_scope_shield(&a_scope, true);
    (void)!conc_scope_set_timeout(&a_scope, 1);
    (void)!conc_spawn(&a_group, fails_renamed, NULL);
    (void)!conc_spawn_task(&a_group, &(conc_task){0}, fails_renamed, NULL);
    (void)!conc_stream_open(&stream, 0);
    (void)!conc_signals_open(&signals, &(int){SIGUSR1}, 1);
    (void)!conc_listen("127.0.0.1:0");
    (void)!conc_limiter_try_acquire(&limiter, 1);
    (void)!conc_block(0);
    return NULL;
}

static int is_changed_by_another_thread(void *arg)
{
    pthread_t thread;
    (void)arg;
    a_group = (conc_group){0};
    CHECK_INT(conc_group_begin(&a_group), 0);
    CHECK_INT(conc_scope_begin(&a_scope, 1), 0);
    CHECK_INT(pthread_create(&thread, NULL, changes_another_loop, NULL), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(conc_scope_end(&a_scope, 0), 0);
    return conc_group_wait(&a_group);
}

TEST(mistakes_of_other_threads_name_the_public_function)
{
    static const char *const names[] = {
        "conc_scope_cancel",        "conc_group_cancel", "conc_scope_shield",
        "conc_scope_set_timeout",   "conc_spawn",        "conc_spawn_task",
        "conc_stream_open",         "conc_signals_open", "conc_listen",
        "conc_limiter_try_acquire", "conc_block",
    };
    CHECK_INT(run_for_report(is_changed_by_another_thread, for_mistakes), 0);
    for (size_t i = 0; i < CONC_LEN(names); i++) {
        char expected[128];
        snprintf(expected, sizeof expected, "conc: a thread without a run: %s: ", names[i]);
        CHECK_CONTAINS(report, expected);
    }
}
