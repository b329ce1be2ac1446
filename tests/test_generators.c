/* test_generators.c - conc_gen: items one by one from a function that can wait, and its
 * closing. */
#include "conc_test.h"

#include <pthread.h>

static int cleaned; /* how many bodies ran their clean-up */

/* Emits 1 to *n. */
static int count_to(conc_gen *g, void *n)
{
    for (int i = 1; i <= *(int *)n; i++)
        CONC_TRY(conc_gen_emit(g, &i));
    return 0;
}

/* Emits 1, 2, ... a second apart, and cleans up afterwards; arg: what the clean-up returns, or
 * NULL. */
static int tick(conc_gen *g, void *arg)
{
    int rc = 0;
    for (int i = 1; rc == 0; i++) {
        rc = conc_sleep(1);
        if (rc == 0)
            rc = conc_gen_emit(g, &i);
    }
    cleaned++;
    return arg ? *(int *)arg : rc;
}

static int sleep_forever(conc_gen *g, void *arg)
{
    (void)g, (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static size_t open_generators(void)
{
    conc_stats s;
    conc_get_stats(&s);
    return s.generators;
}

TASK_TEST(items_come_in_order_and_then_the_end_again_and_again)
{
    int n = 3, item = 0;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, count_to, &n, sizeof item), 0);
    for (int i = 1; i <= 3; i++) {
        CHECK_INT(conc_gen_next(&g, &item), 1);
        CHECK_INT(item, i);
    }
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_gen_next(&g, &item), 0);
    CHECK_INT(item, 3);
    CHECK_INT(conc_gen_close(&g), 0);
}

TASK_TEST(an_empty_generator_ends_at_once)
{
    int n = 0, item = 77;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, count_to, &n, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 0);
    CHECK_INT(item, 77);
    CHECK_INT(conc_gen_close(&g), 0);
}

TASK_TEST(closing_is_harmless_after_the_end_twice_and_when_never_opened)
{
    int n = 1, item;
    conc_gen g = {0}, never = {0};
    CHECK_INT(conc_gen_open(&g, count_to, &n, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_gen_next(&g, &item), 0);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK_INT(conc_gen_close(&never), 0);
    CHECK_INT(conc_gen_next(&g, &item), -EINVAL);
    CHECK_INT(conc_gen_next(&never, &item), -EINVAL);
}

static int must_not_run(conc_gen *g, void *arg)
{
    (void)g;
    *(bool *)arg = true;
    return -EIO;
}

TASK_TEST(a_generator_closed_before_the_first_next_never_ran)
{
    bool ran = false;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, must_not_run, &ran, sizeof(int)), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK(!ran);
}

TASK_TEST(a_closed_generator_can_be_opened_again)
{
    int n = 2, item = 0;
    conc_gen g = {0};
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_gen_open(&g, count_to, &n, sizeof item), 0);
        CHECK_INT(conc_gen_open(&g, count_to, &n, sizeof item), -EINVAL);
        CHECK_INT(conc_gen_next(&g, &item), 1);
        CHECK_INT(item, 1);
        CHECK_INT(conc_gen_close(&g), 0);
    }
}

static int fail_after_one(conc_gen *g, void *arg)
{
    CONC_TRY(conc_gen_emit(g, arg));
    return conc_fail(-EPROTO, "no more");
}

TASK_TEST(next_returns_the_bodys_error)
{
    int one = 1, item = 0;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, fail_after_one, &one, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_gen_next(&g, &item), -EPROTO);
    CHECK_INT(item, 1);
    CHECK_INT(conc_gen_close(&g), 0);
}

typedef struct big_item {
    char text[500];
    int number;
} big_item;

static int emit_big(conc_gen *g, void *arg)
{
    big_item item;
    for (item.number = 0; item.number < 3; item.number++) {
        memset(item.text, 'a' + item.number, sizeof item.text);
        CONC_TRY(conc_gen_emit(g, &item));
        CHECK(item.text[499] == 'a' + item.number);
    }
    (void)arg;
    return 0;
}

TASK_TEST(an_item_is_copied_whole_and_nothing_behind_it)
{
    struct {
        big_item item;
        int guard;
    } got = {.guard = 4711};
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, emit_big, NULL, sizeof got.item), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_gen_next(&g, &got.item), 1);
        CHECK_INT(got.item.number, i);
        CHECK_INT(got.item.text[0], 'a' + i);
        CHECK_INT(got.item.text[499], 'a' + i);
        CHECK_INT(got.guard, 4711);
        memset(&got.item, 0, sizeof got.item);
    }
    CHECK_INT(conc_gen_close(&g), 0);
}

TASK_TEST(a_body_may_wait_between_items)
{
    int item = 0;
    CONC_AUTO(conc_gen, g) = {0};
    CHECK_INT(conc_gen_open(&g, tick, NULL, sizeof item), 0);
    CHECK_TIME(0);
    for (int i = 1; i <= 3; i++) {
        CHECK_INT(conc_gen_next(&g, &item), 1);
        CHECK_INT(item, i);
        CHECK_TIME(i);
    }
}

static int emit_self(conc_gen *g, void *arg)
{
    (void)arg;
    for (;;) {
        conc_task *self = conc_self();
        CONC_TRY(conc_gen_emit(g, &self));
    }
}

static int take_self(void *gen)
{
    conc_task *self = NULL;
    CHECK_INT(conc_gen_next(gen, &self), 1);
    CHECK(self == conc_self());
    return 0;
}

TASK_TEST(the_body_runs_in_its_consumers_task)
{
    conc_gen g = {0};
    conc_group group = {0};
    CHECK_INT(conc_gen_open(&g, emit_self, NULL, sizeof(conc_task *)), 0);
    CHECK_INT(take_self(&g), 0);
    CHECK_INT(conc_spawn(&group, take_self, &g), 0);
    CHECK_INT(conc_spawn(&group, take_self, &g), 0);
    CHECK_INT(conc_group_wait(&group), 0);
    CHECK_INT(take_self(&g), 0);
    CHECK_INT(conc_gen_close(&g), 0);
}

static int clean_up_for_two(conc_gen *g, void *arg)
{
    int one = 1, rc = conc_gen_emit(g, &one);
    CHECK_INT(rc, -ECANCELED);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_sleep(2), 0);
    *(bool *)arg = true;
    return rc;
}

TASK_TEST(a_close_in_the_middle_waits_for_the_clean_up)
{
    bool clean = false;
    int item = 0;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, clean_up_for_two, &clean, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK(clean);
    CHECK_TIME(2);
    CHECK_INT(conc_gen_next(&g, &item), -EINVAL);
    CHECK_INT(open_generators(), 0);
}

TASK_TEST(a_close_returns_the_error_of_the_clean_up)
{
    int item, results[] = {0, 5, -EIO, -ECANCELED}, expected[] = {0, 0, -EIO, 0};
    for (size_t i = 0; i < CONC_LEN(results); i++) {
        conc_gen g = {0};
        CHECK_INT(conc_gen_open(&g, tick, &results[i], sizeof item), 0);
        CHECK_INT(conc_gen_next(&g, &item), 1);
        CHECK_INT(conc_gen_close(&g), expected[i]);
        CHECK_INT(conc_gen_close(&g), 0);
    }
    CHECK_INT(cleaned, 4);
}

typedef struct told {
    int count, rc;
    char task[128], place[128], text[256];
} told;

static void keep_failure(const conc_failure *f, void *user)
{
    told *t = user;
    t->count++;
    t->rc = f->rc;
    snprintf(t->task, sizeof t->task, "%s", f->task);
    snprintf(t->place, sizeof t->place, "%s", f->place);
    snprintf(t->text, sizeof t->text, "%s", f->text);
}

/* A run that records what on_error receives. */
static told run_telling(conc_fn *fn, int expected)
{
    told t = {0};
    conc_options o = {.virtual_clock = true, .on_error = keep_failure, .user = &t};
    CHECK_INT(conc_run_with(&o, fn, NULL), expected);
    return t;
}

static int emits; /* how often a body called it */

static int emit_again(conc_gen *g, void *times)
{
    int rc = conc_gen_emit(g, &emits);
    for (emits = 0; emits < *(int *)times; emits++) {
        CHECK_INT(conc_gen_emit(g, &emits), -ECANCELED);
        CHECK_INT(conc_gen_emit(g, &emits), -ECANCELED);
    }
    cleaned++;
    return rc;
}

TASK_TEST(while_it_is_closed_every_emit_returns_at_once_and_the_body_ends)
{
    int times = 499, item = 7;
    conc_stats before, after;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, emit_again, &times, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    conc_get_stats(&before);
    CHECK_INT(conc_gen_close(&g), 0);
    conc_get_stats(&after);
    CHECK_INT(emits, times);
    CHECK_INT(cleaned, 1);
    CHECK_INT(after.switches, before.switches);
    CHECK_INT(after.generators, 0);
    CHECK_INT(after.stacks, before.stacks - 1);
}

static int never_end(conc_gen *g, void *arg)
{
    (void)arg;
    for (emits = 0;; emits++)
        if (conc_gen_emit(g, &emits) > 0)
            return 0;
}

static int close_what_never_ends(void *arg)
{
    int item, three_times = 3;
    conc_stats before, after;
    conc_gen g = {0}, next = {0};
    (void)arg;
    CHECK_INT(conc_gen_open(&g, never_end, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    conc_get_stats(&before);
    CHECK_INT(conc_gen_close(&g), -EINVAL);
    CHECK_INT(emits, 1000);
    CHECK_CONTAINS(conc_last_error(), "and was stopped");
    CHECK_INT(conc_gen_close(&g), 0);
    conc_get_stats(&after);
    CHECK_INT(after.generators, before.generators - 1);
    CHECK_INT(after.stacks, before.stacks); /* the stack is kept */
    CHECK_INT(conc_gen_open(&g, count_to, &three_times, sizeof item), 0);
    CHECK_INT(conc_gen_open(&next, count_to, &three_times, sizeof item), 0);
    for (int i = 1; i <= 3; i++)
        CHECK(conc_gen_next(&g, &item) == 1 && item == i && conc_gen_next(&next, &item) == 1);
    CHECK_INT(emits, 1000);
    CHECK_INT(conc_gen_close(&next), 0);
    return conc_gen_close(&g);
}

static int leave_what_never_ends(void *arg)
{
    static conc_gen left;
    int item;
    (void)arg;
    CONC_AUTO(conc_gen, g) = {0};
    CHECK_INT(conc_gen_open(&left, never_end, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&left, &item), 1);
    CHECK_INT(conc_gen_open(&g, never_end, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    return 0;
}

TEST(a_body_that_emits_1000_times_more_is_stopped_for_good_and_reported)
{
    told t = run_telling(close_what_never_ends, 0);
    CHECK_INT(t.count, 1);
    CHECK_INT(t.rc, -EINVAL);
    CHECK_CONTAINS(t.task, "never_end at ");
    CHECK_CONTAINS(t.text, "emitted 1000 times");
    CHECK_INT(run_telling(leave_what_never_ends, 0).count, 2);
}

static int signal_number = SIGUSR1;

/* Objects that it has open on its stack still exist, because its stack is kept. */
static int never_end_with_signals(conc_gen *g, void *arg)
{
    conc_signals s = {0};
    conc_gen inner = {0};
    int item;
    CONC_TRY(conc_signals_open(&s, &signal_number, 1));
    CONC_TRY(conc_gen_open(&inner, count_to, arg, sizeof item));
    CONC_TRY(conc_gen_next(&inner, &item));
    for (;;)
        (void)conc_gen_emit(g, &item);
}

static int raise_after_the_stop(void *arg)
{
    int item, n = 5;
    conc_gen g = {0};
    (void)arg;
    CHECK_INT(conc_gen_open(&g, never_end_with_signals, &n, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_gen_close(&g), -EINVAL);
    CHECK_INT(open_generators(), 1);
    signal(SIGUSR1, SIG_IGN);
    raise(SIGUSR1);
    return conc_sleep(1);
}

TEST(objects_that_a_stopped_body_had_open_do_no_harm)
{
    CHECK_INT(run_telling(raise_after_the_stop, 0).count, 1);
}

/* ---- error texts of a clean-up that fails */

static int fail_in_words(conc_gen *g, void *arg)
{
    int one = 1, rc = conc_gen_emit(g, &one);
    (void)arg;
    return rc == -ECANCELED ? conc_fail(-EIO, "could not flush the cursor") : rc;
}

static int fail_without_words(conc_gen *g, void *arg)
{
    int one = 1, rc = conc_gen_emit(g, &one);
    (void)arg;
    return rc == -ECANCELED ? -EIO : rc;
}

static int begin(conc_gen *g, conc_gen_fn *fn)
{
    int item;
    CHECK_INT(conc_gen_open(g, fn, NULL, sizeof item), 0);
    return conc_gen_next(g, &item) == 1 ? 0 : -EIO;
}

TASK_TEST(the_clean_ups_error_text_is_the_consumers_latest)
{
    conc_gen g = {0};
    CHECK_INT(begin(&g, fail_in_words), 0);
    CHECK_INT(conc_gen_close(&g), -EIO);
    CHECK_STR(conc_last_error(), "could not flush the cursor");
    CHECK_INT(begin(&g, fail_without_words), 0);
    CHECK_INT(conc_gen_close(&g), -EIO);
    CHECK_STR(conc_last_error(), conc_strerror(-EIO));
}

static int line_of_open;

static int leave_open(void *arg)
{
    static conc_gen left;
    int item;
    line_of_open = __LINE__ + 1;
    CHECK_INT(conc_gen_open(&left, fail_in_words, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&left, &item), 1);
    return arg ? 0 : conc_fail(-EPROTO, "line 12");
}

static int leave_automatic(void *arg)
{
    int item;
    CONC_AUTO(conc_gen, g) = {0};
    line_of_open = __LINE__ + 1;
    CHECK_INT(conc_gen_open(&g, fail_in_words, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    return arg ? 0 : conc_fail(-EIO, "line 12");
}

static int join_both(void *arg)
{
    int rc;
    conc_group group = {.keep_going = true};
    conc_task t = {0};
    (void)arg;
    CHECK_INT(conc_spawn_task(&group, &t, leave_automatic, NULL), 0);
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_STR(conc_error_text(&t), "line 12");
    CHECK_INT(conc_group_wait(&group), -EIO);
    return 0;
}

static void check_told(const told *t)
{
    char place[256];
    snprintf(place, sizeof place, "test_generators.c:%d", line_of_open);
    CHECK_INT(t->count, 1);
    CHECK_STR(t->text, "could not flush the cursor");
    CHECK_CONTAINS(t->place, place);
    CHECK_CONTAINS(t->task, "fail_in_words at ");
}

TEST(a_failing_clean_up_is_reported_with_its_text_and_the_tasks_own_stays)
{
    told t = run_telling(join_both, 0);
    check_told(&t);
    t = run_telling(leave_open, -EPROTO);
    check_told(&t);
}

static int leave_wordless(void *arg)
{
    CONC_AUTO(conc_gen, g) = {0};
    CHECK_INT(begin(&g, fail_without_words), 0);
    return arg ? 0 : conc_fail(-EIO, "line 12");
}

TEST(a_clean_up_without_an_error_text_does_not_get_that_of_its_task)
{
    told t = run_telling(leave_wordless, -EIO);
    CHECK_INT(t.count, 1);
    CHECK_STR(t.text, conc_strerror(-EIO));
}

static int take_one(void *gen)
{
    int item;
    return conc_gen_next(gen, &item);
}

TASK_TEST(while_a_task_is_inside_another_one_gets_ebusy)
{
    int item, rc = 0;
    conc_gen g = {0};
    conc_group group = {0};
    conc_task t = {0};
    CHECK_INT(conc_gen_open(&g, tick, NULL, sizeof item), 0);
    CHECK_INT(conc_spawn_task(&group, &t, take_one, &g), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_gen_next(&g, &item), -EBUSY);
    CHECK_INT(conc_gen_close(&g), -EBUSY);
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_INT(rc, 1);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(item, 2);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK_INT(conc_group_wait(&group), 0);
}

static int emit_forever(conc_gen *g, void *arg)
{
    (void)arg;
    for (int i = 0;; i++)
        CONC_TRY(conc_gen_emit(g, &i));
}

static int close_it(void *gen) { return conc_gen_close(gen); }

/* A next lets others run now and then, even if the body never waits. */
TASK_TEST(a_generator_may_be_closed_by_another_task_while_a_next_yields)
{
    int item = 0, rc;
    conc_gen gen = {0};
    conc_group g = {0};
    conc_stats before, after;
    conc_get_stats(&before);
    CHECK_INT(conc_gen_open(&gen, emit_forever, NULL, sizeof item), 0);
    CHECK_INT(conc_spawn(&g, close_it, &gen), 0);
    do {
        rc = conc_gen_next(&gen, &item);
    } while (rc == 1);
    CHECK(rc == -EINVAL || rc == 0);
    CHECK_INT(conc_group_wait(&g), 0);
    conc_get_stats(&after);
    CHECK_INT(after.generators, before.generators);
    CHECK_INT(after.stacks, before.stacks);
    CHECK_INT(after.tasks, before.tasks);
}

static int use_oneself(conc_gen *g, void *arg)
{
    int item = 0, *results = arg;
    results[0] = conc_gen_next(g, &item);
    results[1] = conc_gen_close(g);
    return conc_gen_emit(g, &item);
}

TASK_TEST(a_body_that_consumes_or_closes_itself_gets_ebusy)
{
    int item = 5, results[2] = {0};
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, use_oneself, results, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(results[0], -EBUSY);
    CHECK_INT(results[1], -EBUSY);
    CHECK_INT(conc_gen_close(&g), 0);
}

TASK_TEST(an_emit_outside_the_body_is_refused)
{
    int n = 2, item = 0;
    conc_gen g = {0}, never = {0};
    CHECK_INT(conc_gen_emit(&never, &item), -EINVAL);
    CHECK_INT(conc_gen_open(&g, count_to, &n, sizeof item), 0);
    CHECK_INT(conc_gen_emit(&g, &item), -EINVAL);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_gen_emit(&g, &item), -EINVAL);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(item, 2);
    CHECK_INT(conc_gen_close(&g), 0);
}

static int emit_in_scope(conc_gen *g, void *arg)
{
    int item = 1, *results = arg;
    conc_scope s = {0};
    conc_group group = {0};
    CHECK_INT(conc_scope_begin(&s, 5), 0);
    results[0] = conc_gen_emit(g, &item);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    CHECK_INT(conc_group_begin(&group), 0);
    results[1] = conc_gen_emit(g, &item);
    CHECK_INT(conc_group_wait(&group), 0);
    item = 2;
    return conc_gen_emit(g, &item);
}

TASK_TEST(an_emit_with_a_scope_or_group_of_the_body_open_is_refused)
{
    int item = 0, results[2] = {0};
    conc_gen g = {0};
    conc_scope around = {0};
    CHECK_INT(conc_scope_begin(&around, 100), 0);
    CHECK_INT(conc_gen_open(&g, emit_in_scope, results, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(results[0], -EINVAL);
    CHECK_INT(results[1], -EINVAL);
    CHECK_INT(item, 2);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK_INT(conc_scope_end(&around, 0), 0);
}

TASK_TEST(scopes_of_the_consumer_may_begin_and_end_between_items)
{
    int item = 0;
    conc_gen g = {0};
    conc_scope s = {0}, t = {0};
    CHECK_INT(conc_gen_open(&g, tick, NULL, sizeof item), 0);
    CHECK_INT(conc_scope_begin(&s, 10), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    CHECK_INT(conc_scope_begin(&t, 10), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK_INT(conc_scope_end(&t, 0), 0);
    CHECK_INT(item, 2);
}

static int take_forever(void *gen)
{
    int item, rc;
    while ((rc = conc_gen_next(gen, &item)) == 1) {
    }
    return rc;
}

TASK_TEST(a_cancel_of_the_consumer_reaches_the_waits_of_the_body)
{
    int rc = 0;
    conc_gen g = {0};
    conc_group group = {0};
    conc_task t = {0};
    CHECK_INT(conc_gen_open(&g, tick, NULL, sizeof(int)), 0);
    CHECK_INT(conc_spawn_task(&group, &t, take_forever, &g), 0);
    CHECK_INT(conc_sleep(2.5), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
    CHECK_TIME(2.5);
    CHECK_INT(cleaned, 1);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK_INT(cleaned, 1);
    CHECK_INT(conc_group_wait(&group), 0);
}

TASK_TEST(a_time_limit_of_the_consumer_reaches_the_waits_of_the_body)
{
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, sleep_forever, NULL, sizeof(int)), 0);
    CHECK_INT(conc_timeout(3, take_one, &g), -ETIMEDOUT);
    CHECK_TIME(3);
    CHECK_INT(conc_gen_close(&g), 0);
}

/* Squares what another generator emits. */
static int square(conc_gen *g, void *source)
{
    int item, rc;
    while ((rc = conc_gen_next(source, &item)) == 1) {
        item *= item;
        CONC_TRY(conc_gen_emit(g, &item));
    }
    return rc;
}

TASK_TEST(generators_nest)
{
    int n = 5, item = 0, sum = 0;
    conc_gen source = {0}, squares = {0}, fourth = {0};
    CHECK_INT(conc_gen_open(&source, count_to, &n, sizeof item), 0);
    CHECK_INT(conc_gen_open(&squares, square, &source, sizeof item), 0);
    CHECK_INT(conc_gen_open(&fourth, square, &squares, sizeof item), 0);
    CHECK_INT(open_generators(), 3);
    while (conc_gen_next(&fourth, &item) == 1)
        sum += item;
    CHECK_INT(sum, 1 + 16 + 81 + 256 + 625);
    CHECK_INT(conc_gen_close(&fourth), 0);
    CHECK_INT(conc_gen_close(&squares), 0);
    CHECK_INT(conc_gen_close(&source), 0);
}

static int own_source(conc_gen *g, void *arg)
{
    int item;
    CONC_AUTO(conc_gen, source) = {0};
    CONC_TRY(conc_gen_open(&source, tick, NULL, sizeof item));
    while (CONC_TRY(conc_gen_next(&source, &item)) == 1)
        CONC_TRY(conc_gen_emit(g, &item));
    (void)arg;
    return 0;
}

TASK_TEST(a_generator_closes_the_one_it_consumes)
{
    int item = 0;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, own_source, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(item, 2);
    CHECK_INT(open_generators(), 2);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK_INT(cleaned, 1);
    CHECK_INT(open_generators(), 0);
}

static int emit_to_the_outer(conc_gen *inner, void *outer)
{
    int item = 9, rc = conc_gen_emit(outer, &item);
    (void)inner;
    return rc;
}

static int open_inner(conc_gen *g, void *arg)
{
    int item = 1;
    CONC_AUTO(conc_gen, inner) = {0};
    CONC_TRY(conc_gen_open(&inner, emit_to_the_outer, g, sizeof item));
    *(int *)arg = conc_gen_next(&inner, &item);
    return 0;
}

TASK_TEST(a_body_cannot_emit_for_another_generator)
{
    int item, rc = 0;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, open_inner, &rc, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 0);
    CHECK_INT(rc, -EINVAL);
    CHECK_INT(conc_gen_close(&g), 0);
}

static int leave_early(void *arg)
{
    int item;
    CONC_AUTO(conc_gen, g) = {0};
    CONC_AUTO(conc_gen, closed) = {0};
    CHECK_INT(conc_gen_close(&closed), 0);
    CONC_TRY(conc_gen_open(&g, tick, NULL, sizeof item));
    CONC_TRY(conc_gen_next(&g, &item));
    (void)arg;
    return -EIO;
}

TASK_TEST(an_automatic_generator_is_closed_however_the_block_is_left)
{
    CHECK_INT(leave_early(NULL), -EIO);
    CHECK_INT(cleaned, 1);
    CHECK_INT(open_generators(), 0);
}

static int sleep_and_add(void *sum)
{
    CONC_TRY(conc_sleep(1));
    (*(int *)sum)++;
    return 0;
}

static int emit_group_results(conc_gen *g, void *arg)
{
    (void)arg;
    for (;;) {
        int sum = 0;
        conc_group group = {0};
        for (int i = 0; i < 4; i++)
            CONC_TRY_IN(&group, conc_spawn(&group, sleep_and_add, &sum));
        CONC_TRY(conc_group_wait(&group));
        CONC_TRY(conc_gen_emit(g, &sum));
    }
}

TASK_TEST(a_body_may_use_groups_between_its_items)
{
    int item = 0;
    CONC_AUTO(conc_gen, g) = {0};
    CHECK_INT(conc_gen_open(&g, emit_group_results, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(item, 4);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_TIME(2);
}

static conc_gen abandoned[3];
static int clean_up_error = -EIO;

static int abandon_three(void *arg)
{
    int item;
    (void)arg;
    CONC_TRY(conc_gen_open(&abandoned[0], tick, NULL, sizeof item));
    CONC_TRY(conc_gen_open(&abandoned[1], tick, &clean_up_error, sizeof item));
    CONC_TRY(conc_gen_open(&abandoned[2], tick, NULL, sizeof item));
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_gen_next(&abandoned[i], &item), 1);
    return 8;
}

static void count_error(const conc_failure *f, void *user)
{
    CHECK_INT(f->rc, -EIO);
    ++*(int *)user;
}

TEST(generators_left_open_are_closed_when_the_run_ends_and_their_errors_reported)
{
    int errors = 0, fds = test_count_fds();
    conc_options o = {.virtual_clock = true, .on_error = count_error, .user = &errors};
    CHECK_INT(conc_run_with(&o, abandon_three, NULL), 8);
    CHECK_INT(cleaned, 3);
    CHECK_INT(errors, 1);
    CHECK_INT(test_count_fds(), fds);
}

static int three = 3;

static int leave_one_open(void *arg)
{
    int item;
    (void)arg;
    CONC_TRY(conc_gen_open(&abandoned[0], count_to, &three, sizeof item));
    return conc_gen_next(&abandoned[0], &item);
}

static int use_it_anew(void *arg)
{
    int item = 0;
    (void)arg;
    CHECK_INT(conc_gen_next(&abandoned[0], &item), -EINVAL);
    CHECK_INT(conc_gen_open(&abandoned[0], count_to, &three, sizeof item), 0);
    CHECK_INT(conc_gen_open(&abandoned[0], count_to, &three, sizeof item), -EINVAL);
    for (int i = 1; i <= 3; i++) {
        CHECK_INT(conc_gen_next(&abandoned[0], &item), 1);
        CHECK_INT(item, i);
    }
    CHECK_INT(conc_gen_next(&abandoned[0], &item), 0);
    CHECK_INT(conc_gen_close(&abandoned[0]), 0);
    CHECK_INT(open_generators(), 0);
    return 5;
}

TEST(a_generator_left_open_in_one_run_can_be_opened_in_the_next)
{
    conc_options o = {.virtual_clock = true};
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_run_with(&o, leave_one_open, NULL), 1);
        CHECK_INT(conc_run_with(&o, use_it_anew, NULL), 5);
    }
}

static int clean_up_with_a_sleep(conc_gen *g, void *arg)
{
    int one = 1, rc = conc_gen_emit(g, &one);
    *(int *)arg = conc_sleep(3);
    cleaned++;
    return rc;
}

static int abandon_in_a_task(void *slept)
{
    int item;
    CONC_TRY(conc_gen_open(&abandoned[0], clean_up_with_a_sleep, slept, sizeof item));
    return conc_gen_next(&abandoned[0], &item);
}

static int run_one_that_abandons(void *slept)
{
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, abandon_in_a_task, slept));
    return conc_group_wait(&g);
}

TEST(a_generator_outlives_its_task_and_may_wait_when_the_run_closes_it)
{
    int slept = 1;
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, run_one_that_abandons, &slept), 0);
    CHECK_INT(slept, 0);
    CHECK_INT(cleaned, 1);
}

/* Closed after the generator that its body uses when it cleans up, and did not consume before. */
static conc_gen used_late[4];

static int uses_what_is_closed(conc_gen *g, void *arg)
{
    static int n = 3;
    int item = 0;
    CHECK_INT(conc_gen_emit(g, &item), -ECANCELED);
    CHECK_INT(conc_gen_next(&used_late[1], &item), -EINVAL);
    CHECK_INT(conc_gen_emit(&used_late[1], &item), -EINVAL);
    CHECK_INT(conc_gen_close(&used_late[1]), 0);
    for (int i = 2; i < 4; i++)
        CHECK_INT(conc_gen_open(&used_late[i], count_to, &n, sizeof item), 0);
    for (int i = 2; i < 4; i++) {
        CHECK_INT(conc_gen_next(&used_late[i], &item), 1);
        CHECK_INT(item, 1);
    }
    *(bool *)arg = true;
    return 0;
}

static int leaves_both_open(void *arg)
{
    static int n = 3;
    int item;
    CHECK_INT(conc_gen_open(&used_late[0], uses_what_is_closed, arg, sizeof item), 0);
    CHECK_INT(conc_gen_open(&used_late[1], count_to, &n, sizeof item), 0);
    CHECK_INT(conc_gen_next(&used_late[0], &item), 1);
    return conc_gen_next(&used_late[1], &item) - 1;
}

TEST(a_body_may_use_a_generator_that_the_end_of_the_run_has_closed)
{
    bool cleaned_up = false;
    CHECK_INT(conc_run(leaves_both_open, &cleaned_up), 0);
    CHECK(cleaned_up);
}

TASK_TEST(a_million_items_come_through)
{
    int n = 1000000, item = 0, expected = 0;
    CONC_AUTO(conc_gen, g) = {0};
    CHECK_INT(conc_gen_open(&g, count_to, &n, sizeof item), 0);
    while (conc_gen_next(&g, &item) == 1)
        CHECK_INT(item, ++expected);
    CHECK_INT(expected, n);
}

TASK_TEST(open_and_close_leave_nothing_behind)
{
    int n = 3, item;
    conc_stats before, after;
    conc_get_stats(&before);
    for (int i = 0; i < 1000; i++) {
        conc_gen g = {0};
        CHECK_INT(conc_gen_open(&g, count_to, &n, sizeof item), 0);
        if (i % 3)
            CHECK_INT(conc_gen_next(&g, &item), 1);
        CHECK_INT(conc_gen_close(&g), 0);
    }
    conc_get_stats(&after);
    CHECK_INT(after.generators, before.generators);
    CHECK_INT(after.stacks, before.stacks);
    CHECK_INT(after.tasks, before.tasks);
    CHECK(after.stacks_kept <= before.stacks_kept + 1);
}

/* ---- generators of other runs ---- */

static int use_what_is_not_its_own(void *arg)
{
    int n = 2, item = 0;
    CHECK_INT(conc_gen_next(arg, &item), -EPERM);
    CHECK_INT(conc_gen_emit(arg, &item), -EPERM);
    CHECK_INT(conc_gen_close(arg), -EPERM);
    CHECK_INT(conc_gen_open(arg, count_to, &n, sizeof item), -EBUSY);
    return 0;
}

static void *use_without_and_in_another_run(void *arg)
{
    CHECK_INT(conc_gen_close(arg), -EPERM);
    CHECK_INT(conc_run(use_what_is_not_its_own, arg), 0);
    return NULL;
}

static void in_thread(void *(*fn)(void *), void *arg)
{
    pthread_t thread;
    CHECK_INT(pthread_create(&thread, NULL, fn, arg), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
}

TASK_TEST(other_threads_runs_cannot_use_a_generator)
{
    int n = 2, item = 0;
    CONC_AUTO(conc_gen, g) = {0};
    CHECK_INT(conc_gen_open(&g, count_to, &n, sizeof item), 0);
    in_thread(use_without_and_in_another_run, &g);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    in_thread(use_without_and_in_another_run, &g);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(item, 2);
}

static int open_one(void *g)
{
    static int n = 2;
    int item = 0;
    CHECK_INT(conc_gen_open(g, count_to, &n, sizeof item), 0);
    CHECK_INT(conc_gen_next(g, &item), 1);
    return item - 1;
}

static void *open_in_another_run(void *g)
{
    CHECK_INT(conc_run(open_one, g), 0);
    return NULL;
}

TASK_TEST(a_generator_whose_run_is_over_can_be_opened_in_another)
{
    int item = 0;
    conc_gen g = {0};
    in_thread(open_in_another_run, &g);
    CHECK_INT(conc_gen_next(&g, &item), -EINVAL);
    CHECK_INT(conc_gen_close(&g), 0);
    in_thread(open_in_another_run, &g);
    CHECK_INT(open_one(&g), 0);
    CHECK_INT(conc_gen_close(&g), 0);
}

TEST(a_close_after_the_run_is_not_an_error)
{
    conc_gen g = {0};
    CHECK_INT(conc_run(open_one, &g), 0);
    CHECK_INT(conc_gen_close(&g), 0);
}

static void close_in_a_post(void *g) { CHECK_INT(conc_gen_close(g), -EPERM); }

TASK_TEST(a_posted_function_cannot_close_a_generator)
{
    int item = 0;
    conc_gen g = {0};
    CHECK_INT(open_one(&g), 0);
    CHECK_INT(conc_post(conc_loop_self(), close_in_a_post, &g), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_gen_close(&g), 0);
}

/* ---- scopes and groups around a generator, and in its body ---- */

typedef struct ending {
    conc_scope *scope;
    conc_group *group;
} ending;

static int end_what_is_around(const ending *e)
{
    if (e->scope)
        return conc_scope_end(e->scope, 0);
    return conc_group_end(e->group, -EIO);
}

/* Ends what its consumer has open, then its own scope, and emits. */
static int end_the_consumers(conc_gen *g, void *arg)
{
    const ending *e = arg;
    int one = 1;
    conc_scope own = {0};
    conc_group empty = {0};
    CHECK_INT(end_what_is_around(e), -EINVAL);
    CHECK_CONTAINS(conc_last_error(), "a generator's body cannot close");
    if (e->group)
        CHECK_INT(conc_group_wait(e->group), -EINVAL);
    CHECK_INT(conc_scope_begin(&own, 5), 0);
    CHECK_INT(end_what_is_around(e), -EINVAL);
    CHECK_INT(conc_group_wait(&empty), 0);
    CHECK_INT(conc_scope_end(&own, 0), 0);
    CHECK_INT(end_what_is_around(e), -EINVAL);
    return conc_gen_emit(g, &one);
}

/* Makes another generator, which it consumes, try the same in its own scope. */
static int end_them_from_within(conc_gen *g, void *arg)
{
    int item = 0;
    CONC_AUTO(conc_gen, inner) = {0};
    conc_scope own = {0};
    const ending *outer = arg;
    ending its = {.scope = &own};
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_gen_open(&inner, end_the_consumers, i ? &its : arg, sizeof item), 0);
        if (i)
            CHECK_INT(conc_scope_begin(&own, 5), 0);
        CHECK_INT(conc_gen_next(&inner, &item), 1);
        CHECK_INT(end_what_is_around(outer), -EINVAL);
        if (i)
            CHECK_INT(conc_scope_end(&own, 0), 0);
        CHECK_INT(conc_gen_close(&inner), 0);
    }
    return conc_gen_emit(g, &item);
}

static int wait_a_second(void *arg)
{
    *(bool *)arg = true;
    return conc_sleep(1);
}

TASK_TEST(a_body_cannot_end_what_its_consumer_has_open)
{
    conc_gen_fn *const bodies[] = {end_the_consumers, end_them_from_within};
    for (int i = 0; i < 4; i++) {
        int item = 0;
        bool ran = false;
        conc_scope s = {0};
        conc_group group = {0};
        ending e = {0};
        CONC_AUTO(conc_gen, g) = {0};
        if (i & 1)
            e.scope = &s;
        else
            e.group = &group;
        CHECK_INT(conc_gen_open(&g, bodies[i / 2], &e, sizeof item), 0);
        CHECK_INT(e.scope ? conc_scope_begin(&s, 5) : conc_spawn(&group, wait_a_second, &ran), 0);
        CHECK_INT(conc_gen_next(&g, &item), 1);
        CHECK_INT(item, 1);
        if (e.scope)
            CHECK_INT(conc_scope_end(&s, -EIO), -EIO);
        else
            CHECK_INT(conc_group_wait(&group), 0);
        CHECK(ran == (e.group != NULL));
    }
}

static int cancel_the_consumers(conc_gen *g, void *arg)
{
    int one = 1;
    conc_scope_cancel(arg);
    CHECK_INT(conc_sleep(1), -ECANCELED);
    return conc_gen_emit(g, &one);
}

TASK_TEST(a_body_may_cancel_the_scope_around_it)
{
    int item = 0;
    conc_gen g = {0};
    conc_scope s = {0};
    CHECK_INT(conc_gen_open(&g, cancel_the_consumers, &s, sizeof item), 0);
    CHECK_INT(conc_scope_begin(&s, 5), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_scope_end(&s, conc_sleep(1)), 0);
    CHECK_INT(conc_gen_close(&g), 0);
}

static int late_emits, late_children;

static int sleep_a_second(void *arg)
{
    (void)arg;
    return conc_sleep(1);
}

static int clean_up_for_a_second(void *arg)
{
    CHECK_INT(conc_sleep(CONC_FOREVER), -ECANCELED);
    CHECK_INT(conc_shield(5, sleep_a_second, arg), 0);
    late_children++;
    return -EIO; /* on_error receives it */
}

/* While it is closed, emits forever, inside its own scopes and groups, and without an item. */
static int never_end_in_a_scope(conc_gen *g, void *arg)
{
    int one = 1;
    conc_scope s = {0}, limit = {0};
    conc_group group = {.keep_going = true};
    (void)arg;
    CHECK_INT(conc_gen_emit(g, &one), -ECANCELED);
    CHECK_INT(conc_scope_begin(&s, 1000), 0);
    CHECK_INT(conc_spawn(&group, clean_up_for_a_second, NULL), 0);
    CHECK_INT(conc_scope_begin(&limit, 500), 0);
    CHECK_INT(conc_sleep(1), 0);
    for (int rc = -ECANCELED; rc == -ECANCELED; late_emits++)
        rc = conc_gen_emit(g, late_emits % 2 ? &one : NULL);
    return 0;
}

static conc_gen scoped;

static int try_to_use_it(void *arg)
{
    int item;
    (void)arg;
    CHECK_INT(conc_sleep(1.5), 0); /* the body is stopped, and its child cleans up */
    CHECK_INT(conc_gen_next(&scoped, &item), -EBUSY);
    CHECK_INT(conc_gen_close(&scoped), -EBUSY);
    return 0;
}

static int close_the_scoped(void *arg)
{
    int item;
    conc_stats before, after;
    conc_scope around = {0};
    CHECK_INT(conc_spawn(NULL, try_to_use_it, NULL), 0);
    conc_get_stats(&before);
    CHECK_INT(conc_gen_open(&scoped, never_end_in_a_scope, arg, sizeof item), 0);
    CHECK_INT(conc_gen_next(&scoped, &item), 1);
    CHECK_INT(conc_scope_begin(&around, CONC_FOREVER), 0);
    CHECK_INT(conc_gen_close(&scoped), -EINVAL);
    CHECK_CONTAINS(conc_last_error(), "and was stopped");
    CHECK_INT(late_emits, 999); /* the last did not return */
    CHECK_INT(late_children, 1);
    conc_get_stats(&after);
    CHECK_INT(after.timers, before.timers);
    CHECK_INT(after.tasks, before.tasks - 1);
    CHECK(!conc_cancelled());
    return conc_scope_end(&around, conc_sleep(1));
}

TEST(emits_in_a_scope_while_closing_are_refused_and_counted)
{
    CHECK_INT(run_telling(close_the_scoped, 0).count, 2);
}

static int end_after_late_emits(conc_gen *g, void *arg)
{
    int one = 1;
    conc_scope s = {0};
    (void)arg;
    CHECK_INT(conc_gen_emit(g, &one), -ECANCELED);
    CHECK_INT(conc_scope_begin(&s, 5), 0);
    for (int i = 0; i < 900; i++)
        CHECK_INT(conc_gen_emit(g, &one), -ECANCELED);
    return conc_scope_end(&s, 0);
}

TASK_TEST(a_body_that_ends_after_emits_in_a_scope_is_closed_well)
{
    int item;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, end_after_late_emits, NULL, sizeof item), 0);
    CHECK_INT(conc_gen_next(&g, &item), 1);
    CHECK_INT(conc_gen_close(&g), 0);
}
