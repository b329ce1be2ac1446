/* test_lost_scope.c - a scope or group that is still open when its function returns is lost
 * memory: conc reports which one, and aborts. */
#include "conc_test.h"

static conc_scope kept;
static conc_group kept_group;

/* Prints the line of the begin on stderr, just before it. */
static void opening(int line) { fprintf(stderr, "opened on line %d\n", line); }

/* AddressSanitizer may keep locals in its own heap, where no object is lost when a function
 * returns. */
__attribute__((noinline)) static bool locals_are_on_the_stack(void)
{
    char local = 0, *volatile p = &local;
    intptr_t distance = (intptr_t)p - (intptr_t)__builtin_frame_address(0);
    return distance > -100000 && distance < 100000;
}

static void check_lost(void (*fn)(void), const char *what)
{
    if (!locals_are_on_the_stack())
        return;
    static char text[16384];
    char place[512];
    int line = 0, status = test_in_process(fn, text, sizeof text);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
        test_fail(__FILE__, __LINE__, "it should have aborted; status 0x%x, stderr:\n%s",
                  (unsigned)status, text);
    const char *opened = strstr(text, "opened on line ");
    CHECK(opened && sscanf(opened, "opened on line %d", &line) == 1);
    snprintf(place, sizeof place, "%s:%d", TEST_FILE, line);
    CHECK_CONTAINS(text, place);
    CHECK_CONTAINS(text, what);
}

static void run(conc_fn *fn)
{
    conc_options o = {.virtual_clock = true};
    (void)conc_run_with(&o, fn, NULL);
}

static void run_debugging(conc_fn *fn)
{
    conc_options o = {.virtual_clock = true, .debug = true};
    (void)conc_run_with(&o, fn, NULL);
}

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

/* The functions that lose an object do so far below their caller, so that the next call does not
 * overwrite it. */
__attribute__((noinline)) static int below(int (*fn)(void))
{
    volatile char room[16384];
    room[0] = room[sizeof room - 1] = 1;
    int rc = fn();
    return rc + room[0] - 1;
}

__attribute__((noinline)) static int lose_a_scope(void)
{
    conc_scope s = {0};
    opening(__LINE__ + 1);
    int rc = conc_scope_begin(&s, 1000);
    return rc;
}

__attribute__((noinline)) static int lose_a_group(void)
{
    conc_group g = {0};
    opening(__LINE__ + 1);
    int rc = conc_group_begin(&g);
    return rc;
}

__attribute__((noinline)) static int lose_a_group_with_a_child(void)
{
    conc_group g = {0};
    opening(__LINE__ + 1);
    int rc = conc_spawn(&g, sleep_forever, NULL);
    return rc;
}

static int lose_scope_and_wait(void *arg)
{
    (void)arg;
    CHECK_INT(below(lose_a_scope), 0);
    return conc_sleep(1);
}

static int lose_scope_and_begin(void *arg)
{
    conc_scope next = {0};
    (void)arg;
    CHECK_INT(below(lose_a_scope), 0);
    (void)conc_scope_begin(&next, 5);
    return conc_scope_end(&next, 0);
}

static int lose_scope_in_scope(void *arg)
{
    conc_scope outer = {0};
    (void)arg;
    CHECK_INT(conc_scope_begin(&outer, 5), 0);
    CHECK_INT(below(lose_a_scope), 0);
    return conc_scope_end(&outer, 0);
}

static int lose_scope_and_spawn(void *arg)
{
    conc_group g = {0};
    (void)arg;
    CHECK_INT(below(lose_a_scope), 0);
    (void)conc_spawn(&g, sleep_forever, NULL);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static int lose_group_and_wait(void *arg)
{
    (void)arg;
    CHECK_INT(below(lose_a_group), 0);
    return conc_yield();
}

static int lose_group_with_child_and_wait(void *arg)
{
    (void)arg;
    CHECK_INT(below(lose_a_group_with_a_child), 0);
    return conc_yield();
}

static int call_below(void *arg)
{
    (void)arg;
    return below(lose_a_scope);
}

static int lose_under_a_timeout(void *arg)
{
    int rc = conc_timeout(5, call_below, arg);
    return rc ? rc : conc_yield();
}

static void scope_then_wait(void) { run(lose_scope_and_wait); }
static void scope_then_begin(void) { run(lose_scope_and_begin); }
static void scope_in_scope(void) { run(lose_scope_in_scope); }
static void scope_then_spawn(void) { run(lose_scope_and_spawn); }
static void group_then_wait(void) { run(lose_group_and_wait); }
static void group_with_child_then_wait(void) { run(lose_group_with_child_and_wait); }
static void scope_under_a_timeout(void) { run(lose_under_a_timeout); }

TEST(a_scope_left_open_by_a_function_is_found_at_the_next_wait)
{
    check_lost(scope_then_wait, "scope");
}

static int count_forever(conc_gen *g, void *arg)
{
    (void)arg;
    for (int i = 0;; i++)
        CONC_TRY(conc_gen_emit(g, &i));
}

static int start_and_sleep(void *arg)
{
    CONC_TRY(conc_started(0));
    return sleep_forever(arg);
}

/* The calls that wait in their own way; the others share their waits with these. */
enum { JOIN, NEXT_CHILD, START, SETTLE, OPEN, NEXT, CLOSE, READ, SIGNAL, CALLS };

static int call_after_a_loss(void *arg)
{
    static conc_task t;
    static conc_gen g, other;
    static conc_signals s;
    conc_task *next;
    int item, call = *(int *)arg, ends[2];
    CHECK(pipe(ends) == 0);
    CHECK_INT(conc_spawn_task(&kept_group, &t, sleep_forever, NULL), 0);
    CHECK_INT(conc_gen_open(&g, count_forever, NULL, sizeof item), 0);
    CHECK_INT(conc_signals_open(&s, &(int){SIGUSR1}, 1), 0);
    CHECK_INT(below(lose_a_scope), 0);
    switch (call) {
    case JOIN: return conc_join(&t, NULL);
    case NEXT_CHILD: return conc_group_next(&kept_group, &next);
    case START: return conc_start(NULL, start_and_sleep, NULL);
    case SETTLE: return conc_settle();
    case OPEN: return conc_gen_open(&other, count_forever, NULL, sizeof item);
    case NEXT: return conc_gen_next(&g, &item);
    case CLOSE: return conc_gen_close(&g);
    case READ: return (int)conc_read(ends[0], &item, 1);
    default: return conc_signals_next(&s);
    }
}

static int call_made;

static void make_the_call(void)
{
    conc_options o = {.virtual_clock = true};
    (void)conc_run_with(&o, call_after_a_loss, &call_made);
}

TEST(a_scope_left_open_by_a_function_is_found_by_every_call_that_waits)
{
    for (call_made = 0; call_made < CALLS; call_made++)
        check_lost(make_the_call, "a function returned");
}

TEST(a_scope_left_open_by_a_function_is_found_when_the_next_one_begins)
{
    check_lost(scope_then_begin, "scope");
}

TEST(a_scope_left_open_by_a_function_is_found_when_the_one_around_it_ends)
{
    check_lost(scope_in_scope, "scope");
}

TEST(a_scope_left_open_by_a_function_is_found_when_a_group_opens)
{
    check_lost(scope_then_spawn, "scope");
}

TEST(a_scope_left_open_under_a_timeout_is_found) { check_lost(scope_under_a_timeout, "scope"); }

TEST(a_group_left_open_by_a_function_is_found) { check_lost(group_then_wait, "group"); }

TEST(a_group_left_open_with_a_child_is_found) { check_lost(group_with_child_then_wait, "group"); }

TEST(if_no_error_led_to_the_return_the_missing_call_is_named)
{
    check_lost(group_with_child_then_wait, "conc_group_wait, conc_group_end or conc_scope_end");
}

__attribute__((noinline)) static int leave_a_block_with_a_scope(void)
{
    CONC_AUTO(conc_group, g) = {0};
    conc_scope s = {0};
    CONC_TRY(conc_spawn(&g, sleep_forever, NULL));
    opening(__LINE__ + 1);
    CONC_TRY(conc_scope_begin(&s, 1000));
    CONC_TRY(-EIO);
    return conc_scope_end(&s, 0);
}

static int leave_a_block(void *arg)
{
    (void)arg;
    CHECK_INT(below(leave_a_block_with_a_scope), -EIO);
    return 0;
}

static void automatic_group_around_a_scope(void) { run(leave_a_block); }

TEST(a_scope_left_open_in_the_block_of_an_automatic_group_is_found)
{
    check_lost(automatic_group_around_a_scope, "scope");
    check_lost(automatic_group_around_a_scope, "CONC_AUTO");
}

/* ---- a task that ends with something open, even in memory that lasts */

static int end_with_scope(void *arg)
{
    (void)arg;
    opening(__LINE__ + 1);
    CHECK_INT(conc_scope_begin(&kept, 7), 0);
    return 0;
}

static int end_with_group(void *arg)
{
    (void)arg;
    opening(__LINE__ + 1);
    CHECK_INT(conc_group_begin(&kept_group), 0);
    return 0;
}

static int end_with_group_and_child(void *arg)
{
    (void)arg;
    opening(__LINE__ + 1);
    CHECK_INT(conc_spawn(&kept_group, sleep_forever, NULL), 0);
    return conc_yield();
}

static int spawn_and_wait(conc_fn *fn)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, fn, NULL), 0);
    CHECK_INT(conc_spawn(&g, sleep_forever, NULL), 0);
    return conc_group_wait(&g);
}

static int child_with_scope(void *arg)
{
    (void)arg;
    return spawn_and_wait(end_with_scope);
}

static int child_with_group(void *arg)
{
    (void)arg;
    return spawn_and_wait(end_with_group_and_child);
}

static void main_ends_with_scope(void) { run(end_with_scope); }
static void main_ends_with_group(void) { run(end_with_group); }
static void child_ends_with_scope(void) { run(child_with_scope); }
static void child_ends_with_group(void) { run(child_with_group); }

TEST(a_main_function_that_ends_with_a_scope_open_is_reported)
{
    check_lost(main_ends_with_scope, "scope");
}

TEST(a_main_function_that_ends_with_a_group_open_is_reported)
{
    check_lost(main_ends_with_group, "group");
}

TEST(a_task_that_ends_with_a_scope_open_is_reported) { check_lost(child_ends_with_scope, "scope"); }

TEST(a_task_that_ends_with_a_group_open_is_reported) { check_lost(child_ends_with_group, "group"); }

static int body_with_scope(conc_gen *g, void *arg)
{
    (void)g, (void)arg;
    opening(__LINE__ + 1);
    CHECK_INT(conc_scope_begin(&kept, 7), 0);
    return 0;
}

static int use_body_with_scope(void *arg)
{
    int item;
    conc_gen g = {0};
    (void)arg;
    CHECK_INT(conc_gen_open(&g, body_with_scope, NULL, sizeof item), 0);
    (void)conc_gen_next(&g, &item);
    (void)conc_gen_close(&g);
    return conc_yield();
}

static void body_ends_with_scope(void) { run(use_body_with_scope); }

TEST(a_generator_that_ends_with_a_scope_open_is_reported)
{
    check_lost(body_ends_with_scope, "scope");
}

/* ---- an object that is initialized again while open, as in a loop */

static int set_a_scope_anew(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2; i++) {
        kept = (conc_scope){0};
        if (i == 0)
            opening(__LINE__ + 1);
        CHECK_INT(conc_scope_begin(&kept, 1000), 0);
        CHECK_INT(conc_yield(), 0);
    }
    return 0;
}

static int set_a_scope_anew_inside(void *arg)
{
    conc_scope outer = {0};
    CHECK_INT(conc_scope_begin(&outer, 1000), 0);
    opening(__LINE__ + 1);
    CHECK_INT(conc_scope_begin(&kept, 1000), 0);
    kept = (conc_scope){0};
    return conc_timeout(1, sleep_forever, arg);
}

static int set_a_group_anew(void *arg)
{
    for (int i = 0; i < 2; i++) {
        kept_group = (conc_group){0};
        if (i == 0)
            opening(__LINE__ + 1);
        CHECK_INT(conc_spawn(&kept_group, sleep_forever, arg), 0);
        CHECK_INT(conc_yield(), 0);
    }
    return 0;
}

static int set_signals_anew(void *arg)
{
    static conc_signals signals;
    static const int numbers[] = {SIGUSR1};
    (void)arg;
    for (int i = 0; i < 2; i++) {
        signals = (conc_signals){0};
        if (i == 0)
            opening(__LINE__ + 1);
        CHECK_INT(conc_signals_open(&signals, numbers, 1), 0);
    }
    return 0;
}

static void scope_set_anew(void) { run(set_a_scope_anew); }
static void scope_set_anew_inside(void) { run(set_a_scope_anew_inside); }
static void group_set_anew(void) { run(set_a_group_anew); }
static void signals_set_anew(void) { run(set_signals_anew); }

TEST(an_open_object_that_is_initialized_again_is_found_when_the_next_one_opens)
{
    check_lost(scope_set_anew, "memory was overwritten, with the scope opened at");
    check_lost(scope_set_anew_inside, "memory was overwritten, with the scope opened at");
    check_lost(group_set_anew, "memory was overwritten, with the group of sleep_forever at");
    check_lost(group_set_anew, "or the function that declared it returned before conc_group_wait");
    check_lost(signals_set_anew, "memory was overwritten, with the conc_signals opened at");
}

/* In a group of several: debug mode finds each of them, otherwise conc finds the first and last. */
static int set_a_handle_anew(conc_group *g, size_t which)
{
    static conc_task handles[3];
    opening(__LINE__ + 2);
    for (size_t i = 0; i < CONC_LEN(handles); i++)
        CHECK_INT(conc_spawn_task(g, &handles[i], sleep_forever, NULL), 0);
    CHECK_INT(conc_yield(), 0);
    handles[which] = (conc_task){0};
    CHECK_INT(conc_spawn_task(g, &handles[which], sleep_forever, NULL), 0);
    return 0;
}

static int set_the_first_anew(void *arg)
{
    (void)arg;
    return set_a_handle_anew(&kept_group, 0);
}

static int set_the_last_anew(void *arg)
{
    (void)arg;
    return set_a_handle_anew(NULL, 2);
}

static int set_another_anew(void *arg)
{
    (void)arg;
    return set_a_handle_anew(&kept_group, 1);
}

static void first_set_anew(void) { run(set_the_first_anew); }
static void last_set_anew(void) { run(set_the_last_anew); }
static void another_set_anew(void) { run_debugging(set_another_anew); }

TEST(a_handle_that_is_initialized_again_while_its_task_lives_is_found_by_the_next_spawn)
{
    static char text[16384];
    static void (*const programs[])(void) = {first_set_anew, last_set_anew};
    for (size_t i = 0; i < CONC_LEN(programs); i++) {
        int status = test_in_process(programs[i], text, sizeof text);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
        CHECK_CONTAINS(text, "memory was overwritten, with the handle of a task still in use");
    }
    check_lost(another_set_anew, "memory was overwritten, with the handle of sleep_forever at");
    check_lost(another_set_anew, "or the function that declared it returned before the task ended");
}

/* ---- objects that are not lost */

__attribute__((noinline)) static int open_and_close(void)
{
    conc_scope s = {0};
    conc_group g = {0};
    CHECK_INT(conc_scope_begin(&s, 1000), 0);
    CHECK_INT(conc_spawn(&g, sleep_forever, NULL), 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    return conc_scope_end(&s, 0);
}

__attribute__((noinline)) static int wait_deep(int depth)
{
    volatile char room[512];
    room[0] = 1;
    int rc = depth ? wait_deep(depth - 1) : conc_sleep(1);
    return rc + room[0] - 1;
}

TASK_TEST(objects_that_were_closed_or_are_above_are_not_lost)
{
    conc_scope outer = {0};
    CHECK_INT(conc_scope_begin(&outer, 1000), 0);
    CHECK_INT(below(open_and_close), 0);
    CHECK_INT(wait_deep(20), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_scope_end(&outer, 0), 0);
    CHECK_TIME(1);
}

static int open_in_heap(conc_scope **s, conc_group **g)
{
    *s = calloc(1, sizeof **s);
    *g = calloc(1, sizeof **g);
    CHECK(*s && *g);
    CONC_TRY(conc_scope_begin(*s, 3));
    return conc_spawn(*g, sleep_forever, NULL);
}

TASK_TEST(objects_in_the_heap_may_stay_open_when_a_function_returns)
{
    conc_scope *s;
    conc_group *g;
    CHECK_INT(open_in_heap(&s, &g), 0);
    CHECK_INT(wait_deep(5), 0);
    CHECK_INT(conc_group_wait(g), -ECANCELED);
    CHECK_INT(conc_scope_end(s, -ECANCELED), -ETIMEDOUT);
    CHECK_TIME(3);
    free(s);
    free(g);
}

/* ---- signals, which the loop would store in lost memory */

__attribute__((noinline)) static int lose_signals(void)
{
    conc_signals s = {0};
    opening(__LINE__ + 1);
    return conc_signals_open(&s, &(int){SIGUSR1}, 1);
}

static int lose_signals_and_wait(void *arg)
{
    (void)arg;
    CHECK_INT(below(lose_signals), 0);
    return conc_sleep(1);
}

static int end_with_signals(void *arg)
{
    conc_signals s = {0};
    (void)arg;
    opening(__LINE__ + 1);
    return conc_signals_open(&s, &(int){SIGUSR1}, 1);
}

static int child_with_signals(void *arg)
{
    (void)arg;
    return spawn_and_wait(end_with_signals);
}

/* Around the lost objects lie many others, on other stacks and on the heap. */
static int receives_until_cancelled(void *arg)
{
    conc_signals s = {0};
    CONC_TRY(conc_signals_open(&s, &(int){SIGUSR1}, 1));
    int rc = conc_sleep(CONC_FOREVER);
    conc_signals_close(&s);
    return arg ? 0 : rc;
}

static int lose_signals_among_many(void *arg)
{
    static conc_signals others[100];
    conc_group g = {0};
    for (size_t i = 0; i < CONC_LEN(others); i++) {
        CONC_TRY(conc_signals_open(&others[i], &(int){SIGUSR1}, 1));
        CONC_TRY(conc_spawn(&g, receives_until_cancelled, arg));
    }
    for (int i = 0; i < 3; i++)
        CONC_TRY(conc_sleep(0.001));
    CONC_TRY(conc_spawn(&g, lose_signals_and_wait, arg));
    return conc_group_wait(&g);
}

static void signals_among_many(void) { run(lose_signals_among_many); }
static void signals_then_wait(void) { run(lose_signals_and_wait); }
static void main_ends_with_signals(void) { run(end_with_signals); }
static void child_ends_with_signals(void) { run(child_with_signals); }

TEST(signals_left_open_by_a_function_are_found_at_the_next_wait)
{
    check_lost(signals_then_wait, "a function returned, with the conc_signals");
}

TEST(signals_left_open_are_found_among_many)
{
    check_lost(signals_among_many, "a function returned, with the conc_signals");
}

TEST(a_main_function_that_ends_with_signals_open_is_reported)
{
    check_lost(main_ends_with_signals, "conc_signals");
}

TEST(a_task_that_ends_with_signals_open_is_reported)
{
    check_lost(child_ends_with_signals, "ended, with the conc_signals");
}

TASK_TEST(signals_that_were_closed_or_are_above_are_not_lost)
{
    conc_signals s = {0}, *kept_open = calloc(1, sizeof s);
    CHECK(kept_open != NULL);
    CHECK_INT(conc_signals_open(&s, &(int){SIGUSR1}, 1), 0);
    CHECK_INT(conc_signals_open(kept_open, &(int){SIGUSR1}, 1), 0);
    CHECK_INT(wait_deep(20), 0);
    CHECK_INT(conc_signals_close(&s), 0);
    CHECK_INT(wait_deep(5), 0);
    CHECK_INT(conc_signals_close(kept_open), 0);
    free(kept_open);
}

/* ---- the same on a generator's stack */

static int body_that_loses(conc_gen *g, int (*lose)(void))
{
    int item = 1;
    CONC_TRY(conc_gen_emit(g, &item));
    CHECK_INT(below(lose), 0);
    return conc_gen_emit(g, &item);
}

static int body_loses_scope(conc_gen *g, void *arg)
{
    (void)arg;
    return body_that_loses(g, lose_a_scope);
}

static int body_loses_group(conc_gen *g, void *arg)
{
    (void)arg;
    return body_that_loses(g, lose_a_group);
}

static int body_loses_signals(conc_gen *g, void *arg)
{
    (void)g, (void)arg;
    CHECK_INT(below(lose_signals), 0);
    return conc_sleep(1);
}

static int body_ends_with_signals(conc_gen *g, void *arg)
{
    int item = 1;
    conc_signals s = {0};
    (void)arg;
    opening(__LINE__ + 1);
    CONC_TRY(conc_signals_open(&s, &(int){SIGUSR1}, 1));
    return conc_gen_emit(g, &item); /* closing: without conc_signals_close */
}

#define CONSUMER(name, fn)                                      \
    static int name(void *arg)                                  \
    {                                                           \
        int item;                                               \
        conc_gen g = {0};                                       \
        CHECK_INT(conc_gen_open(&g, fn, NULL, sizeof item), 0); \
        (void)conc_gen_next(&g, &item);                         \
        (void)conc_gen_next(&g, &item);                         \
        return arg ? 0 : conc_gen_close(&g);                    \
    }
CONSUMER(consume_lost_scope, body_loses_scope)
CONSUMER(consume_lost_group, body_loses_group)
CONSUMER(consume_lost_signals, body_loses_signals)
CONSUMER(consume_signals, body_ends_with_signals)

static void body_and_scope(void) { run(consume_lost_scope); }
static void body_and_group(void) { run(consume_lost_group); }
static void body_and_signals(void) { run(consume_lost_signals); }
static void body_and_end(void) { run(consume_signals); }

TEST(objects_that_a_generators_function_left_open_are_found)
{
    check_lost(body_and_scope, "scope");
    check_lost(body_and_group, "group");
    check_lost(body_and_signals, "conc_signals");
}

TEST(a_generator_that_ends_with_signals_open_is_reported)
{
    check_lost(body_and_end, "the generator body_ends_with_signals at ");
    check_lost(body_and_end, "ended, with the conc_signals");
}

/* ---- handles of tasks that have not ended */

static conc_group *handles_group;

__attribute__((noinline)) static int lose_a_handle(void)
{
    conc_task t;
    opening(__LINE__ + 1);
    return conc_spawn_task(handles_group, &t, sleep_forever, NULL);
}

static int lose_handle_and_wait(void *arg)
{
    conc_group g = {0};
    (void)arg;
    handles_group = &g;
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(below(lose_a_handle), 0);
    (void)conc_sleep(1);
    return conc_group_wait(&g);
}

static int lose_background_handle(void *arg)
{
    (void)arg;
    handles_group = NULL;
    CHECK_INT(below(lose_a_handle), 0);
    return conc_sleep(1);
}

static int end_with_handle(void *arg)
{
    conc_task t;
    opening(__LINE__ + 1);
    return conc_spawn_task(arg, &t, sleep_forever, NULL);
}

static int child_with_handle(void *arg)
{
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_spawn(&g, end_with_handle, &g), 0);
    return conc_group_wait(&g);
}

static int body_loses_handle(conc_gen *g, void *arg)
{
    (void)g, (void)arg;
    handles_group = NULL;
    CHECK_INT(below(lose_a_handle), 0);
    return conc_sleep(1);
}
CONSUMER(consume_lost_handle, body_loses_handle)

static void handle_then_wait(void) { run_debugging(lose_handle_and_wait); }
static void background_handle_then_wait(void) { run_debugging(lose_background_handle); }
static void child_ends_with_handle(void) { run_debugging(child_with_handle); }
static void body_and_handle(void) { run_debugging(consume_lost_handle); }

TEST(debug_mode_finds_a_handle_that_a_function_left_to_a_running_task)
{
    check_lost(handle_then_wait, "a function returned, with the handle of sleep_forever at");
    check_lost(background_handle_then_wait, "still in use");
    check_lost(body_and_handle, "the handle of sleep_forever at");
}

TEST(debug_mode_finds_a_handle_that_a_task_left_to_a_running_task)
{
    check_lost(child_ends_with_handle, "ended, with the handle of sleep_forever at");
}

static int spawn_with_handle(void *arg)
{
    opening(__LINE__ + 1);
    return conc_spawn_task(NULL, arg, sleep_forever, NULL);
}

__attribute__((noinline)) static int lend_a_handle(void)
{
    conc_group g = {0};
    conc_task t;
    CHECK_INT(conc_spawn(&g, spawn_with_handle, &t), 0);
    return conc_group_wait(&g);
}

static int lose_lent_handle(void *arg)
{
    (void)arg;
    CHECK_INT(below(lend_a_handle), 0);
    return conc_sleep(1);
}

static void lent_handle_then_wait(void) { run_debugging(lose_lent_handle); }

TEST(debug_mode_finds_a_handle_in_which_another_task_started_one)
{
    check_lost(lent_handle_then_wait, "a function returned, with the handle of sleep_forever at");
}

static int return_with_handle(void *arg)
{
    conc_task t;
    CHECK_INT(spawn_with_handle(&t), 0);
    return arg ? 1 : conc_yield();
}

static int return_with_lost_handle(void *arg)
{
    (void)arg;
    return spawn_with_handle(&(conc_task){0}) ? 1 : conc_yield();
}

static void main_ends_with_handle(void) { run(return_with_handle); }
static void main_ends_with_lost_handle(void) { run(return_with_lost_handle); }
static void main_ends_with_handle_debugging(void) { run_debugging(return_with_handle); }

TEST(the_end_of_main_finds_handles_of_background_tasks)
{
    char text[4096];
    void (*const ends[])(void) = {main_ends_with_handle, main_ends_with_lost_handle};
    check_lost(main_ends_with_handle_debugging,
               "its function returned, with the handle of sleep_forever at");
    for (size_t i = 0; i < CONC_LEN(ends) && locals_are_on_the_stack(); i++) {
        int status = test_in_process(ends[i], text, sizeof text);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
        CHECK_CONTAINS(text, "its function returned, with the handle of ");
    }
}

/* Opens the group, so that its line is the one in the report. */
static int lose_handle_and_close(void *arg)
{
    conc_group g = {0};
    (void)arg;
    handles_group = &g;
    CHECK_INT(below(lose_a_handle), 0);
    return conc_group_wait(&g);
}

static int lose_ended_handle_and_close(void *arg)
{
    conc_group g = {0};
    conc_task first;
    (void)arg;
    handles_group = &g;
    CHECK_INT(conc_spawn_task(&g, &first, sleep_forever, NULL), 0);
    CHECK_INT(below(lose_a_handle), 0);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static void handle_then_close(void) { run(lose_handle_and_close); }

static void handle_after_another_then_close(void) { run(lose_ended_handle_and_close); }

TEST(the_end_of_a_group_finds_handles_that_are_lost)
{
    char text[4096];
    if (getenv("CONC_DEBUG") || !locals_are_on_the_stack()) /* debug mode finds them before that */
        return;
    check_lost(handle_then_close, "a function that held a task's handle has returned");
    int status = test_in_process(handle_after_another_then_close, text, sizeof text);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    CHECK_CONTAINS(text, "a function that held a task's handle has returned");
}

__attribute__((noinline)) static int use_a_handle(void)
{
    conc_task t;
    int rc = 0;
    CHECK_INT(conc_spawn_task(handles_group, &t, sleep_forever, NULL), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_join(&t, &rc), 0);
    return rc == -ECANCELED ? 0 : rc;
}

static int keep_all_handles(void *arg)
{
    conc_task above, *in_heap = calloc(1, sizeof *in_heap);
    conc_group g = {0};
    (void)arg;
    CHECK(in_heap != NULL);
    handles_group = &g;
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_spawn_task(&g, &above, sleep_forever, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, in_heap, sleep_forever, NULL), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(below(use_a_handle), 0);
        CHECK_INT(wait_deep(20), 0);
    }
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    free(in_heap);
    return conc_sleep(1);
}

TEST(handles_of_joined_tasks_and_handles_above_are_not_lost)
{
    conc_options o = {.virtual_clock = true, .debug = true};
    CHECK_INT(conc_run_with(&o, keep_all_handles, NULL), 0);
    o.debug = false;
    CHECK_INT(conc_run_with(&o, keep_all_handles, NULL), 0);
}

/* ---- the backtrace ---- */

static int fail_in_words(void) { return conc_fail(-EPROTO, "line 12: no colon"); }

static int try_in_an_open_group(void)
{
    conc_group g = {0};
    opening(__LINE__ + 1);
    CONC_TRY(conc_group_begin(&g));
    CONC_TRY(fail_in_words());
    return conc_group_wait(&g);
}

static int return_from_a_group(void *arg)
{
    (void)arg;
    CHECK_INT(below(try_in_an_open_group), -EPROTO);
    return conc_sleep(1);
}

static int try_in_a_task(void *arg)
{
    conc_scope s = {0};
    (void)arg;
    opening(__LINE__ + 1);
    CONC_TRY(conc_scope_begin(&s, 1));
    CONC_TRY(conc_sleep(2));
    return conc_scope_end(&s, 0);
}

static void lose_by_a_try(void) { run(return_from_a_group); }
static void lose_by_a_cancelled_try(void) { run(try_in_a_task); }

TEST(the_report_has_the_error_and_the_right_macro_for_the_try)
{
    check_lost(lose_by_a_try, "its latest error: line 12: no colon");
    check_lost(lose_by_a_try, "CONC_TRY_IN");
    check_lost(lose_by_a_cancelled_try, "its latest error: cancelled");
    check_lost(lose_by_a_cancelled_try, "CONC_TRY_IN");
}
