/* Tasks: when they start, their names, their handles, and what each task has to itself. */
#include "conc_test.h"

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define MANY 10000
#elif defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define MANY 10000
#endif
#endif
#ifndef MANY
#define MANY 100000
#endif

static int counts(void *arg)
{
    ++*(int *)arg;
    return 0;
}

static int returns(void *arg) { return *(int *)arg; }
static int sleeps(void *arg) { return conc_sleep(*(double *)arg); }

static int notes(void *arg)
{
    note(arg);
    return 0;
}

/* ---- starting ---- */

TASK_TEST(a_spawned_task_starts_when_its_spawner_waits)
{
    int started = 0;
    conc_group g = {0};
    conc_scope s = {0};
    conc_stats stats;
    CHECK_INT(conc_spawn(&g, counts, &started), 0);
    CHECK_INT(conc_spawn(&g, counts, &started), 0);

    CHECK_INT(conc_scope_begin(&s, 5), 0); /* none of these is a checkpoint */
    CHECK_INT(conc_scope_set_timeout(&s, 6), 0);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    conc_get_stats(&stats);
    conc_set_name(conc_self(), "main");
    CHECK(!conc_cancelled());
    CHECK_INT(conc_block(1), 0);
    CHECK_INT(started, 0);
    CHECK_INT(stats.tasks, 3);
    CHECK_INT(stats.ready, 2);

    CHECK_INT(conc_settle(), 0);
    CHECK_INT(started, 2);
    CHECK_INT(conc_group_wait(&g), 0);
}

ORDERED_TASK_TEST(tasks_start_in_the_order_of_their_spawns)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, notes, "a"), 0);
    CHECK_INT(conc_spawn(NULL, notes, "b"), 0);
    CHECK_INT(conc_spawn(&g, notes, "c"), 0);
    note("main");
    CHECK_INT(conc_sleep(1), 0);
    CHECK_STR(noted, "main a b c");
    CHECK_INT(conc_group_wait(&g), 0);
}

static int notes_three_times(void *arg)
{
    for (int i = 0; i < 3; i++) {
        note(arg);
        CONC_TRY(conc_yield());
    }
    return 0;
}

ORDERED_TASK_TEST(tasks_that_yield_take_turns)
{
    CHECK_INT(CONC_GATHER(CONC_CALL(notes_three_times, "1"), CONC_CALL(notes_three_times, "2"),
                          CONC_CALL(notes_three_times, "3")),
              0);
    CHECK_STR(noted, "1 2 3 1 2 3 1 2 3");
}

static int spawns_three(void *arg)
{
    conc_group *g = arg;
    CHECK_INT(conc_spawn(g, notes, "b1"), 0);
    CHECK_INT(conc_spawn(g, notes, "b2"), 0);
    note("a");
    return conc_spawn(g, notes, "b3");
}

ORDERED_TASK_TEST(grandchildren_start_after_tasks_that_were_ready_before_them)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, spawns_three, &g), 0);
    CHECK_INT(conc_spawn(&g, notes, "c"), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(noted, "a c b1 b2 b3");
}

static int takes_its_argument(void *arg)
{
    int value = *(int *)arg;
    free(arg);
    return conc_sleep(0) < 0 ? -value : value;
}

TASK_TEST(a_spawn_that_succeeded_runs_even_when_cancelled_before_it_began)
{
    int result = 0, *value = malloc(sizeof *value);
    conc_task t;
    conc_group g = {.keep_going = true};
    CHECK(value != NULL);
    *value = 7;
    CHECK_INT(conc_spawn_task(&g, &t, takes_its_argument, value), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, -7);
    CHECK_INT(conc_group_wait(&g), -7);
}

TASK_TEST(a_spawn_without_a_function_is_refused)
{
    conc_task t = {0};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, NULL, NULL), -EINVAL);
    CHECK_INT(conc_spawn(NULL, NULL, NULL), -EINVAL);
    CHECK_INT(conc_spawn_task(&g, &t, NULL, NULL), -EINVAL);
    CHECK_INT(conc_spawn_task(&g, &t, returns, &(int){0}), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

typedef struct pair {
    int a, b;
} pair;

static int adds(void *arg)
{
    pair *p = arg;
    return p->a + p->b;
}

TASK_TEST(an_argument_may_have_commas)
{
    int result = 0;
    conc_task t;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, adds, &(pair){30, 12}), 0);
    CHECK_INT(conc_spawn(&g, adds, &(pair){1, 2}), 0);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, 42);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- names ---- */

TASK_TEST(a_task_is_named_after_its_function_and_location)
{
    char here[32];
    conc_task t;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, sleeps, &(double){1}), 0);
    snprintf(here, sizeof here, "test_tasks.c:%d", __LINE__ - 1);
    CHECK_CONTAINS(conc_name(&t), "sleeps");
    CHECK_CONTAINS(conc_name(&t), here);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_CONTAINS(conc_name(&t), "sleeps");
    CHECK(conc_name(conc_self()) != NULL);
    CHECK(conc_name(NULL) == NULL);
}

static int names_itself(void *arg)
{
    conc_set_name(conc_self(), arg);
    CONC_TRY(conc_sleep(1));
    CHECK_STR(conc_name(conc_self()), arg);
    return 0;
}

TASK_TEST(a_name_is_copied_and_stays_readable)
{
    char name[80] = "tea";
    const char *long_name = "0123456789012345678901234567890123456789012345678901234567890";
    conc_task t;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, names_itself, "without a handle"), 0);
    CHECK_INT(conc_spawn_task(&g, &t, sleeps, &(double){1}), 0);
    conc_set_name(&t, name);
    strcpy(name, "coffee");
    CHECK_STR(conc_name(&t), "tea");
    conc_set_name(&t, long_name);
    CHECK_INT(strlen(conc_name(&t)), 47);
    CHECK_INT(strncmp(conc_name(&t), long_name, 47), 0);
    conc_set_name(&t, "last");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(conc_name(&t), "last");
    conc_set_name(conc_self(), "the main one");
    CHECK_STR(conc_name(conc_self()), "the main one");
}

TASK_TEST(a_handle_used_again_has_a_fresh_name_and_result)
{
    int result = 0;
    conc_task t;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, returns, &(int){1}), 0);
    conc_set_name(&t, "first");
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, 1);
    CHECK_INT(conc_spawn_task(&g, &t, adds, &(pair){2, 3}), 0);
    CHECK(!conc_done(&t));
    CHECK_CONTAINS(conc_name(&t), "adds");
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, 5);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- self and done ---- */

static int knows_itself(void *arg)
{
    conc_task *self = conc_self();
    CHECK(self != NULL);
    CHECK(arg == NULL || self == arg);
    for (int i = 0; i < 5; i++) {
        CONC_TRY(i % 2 ? conc_yield() : conc_sleep(1));
        CHECK(conc_self() == self);
    }
    return 0;
}

TASK_TEST(every_task_knows_itself_after_every_wait)
{
    conc_task *self = conc_self(), tasks[3];
    conc_group g = {0};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn_task(&g, &tasks[i], knows_itself, &tasks[i]), 0);
    CHECK_INT(conc_spawn(&g, knows_itself, NULL), 0);
    CHECK(conc_self() == self);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(conc_self() == self);
    CHECK_TIME(3);
}

TASK_TEST(done_reports_when_a_task_has_ended)
{
    conc_task t, failed;
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &t, sleeps, &(double){2}), 0);
    CHECK_INT(conc_spawn_task(&g, &failed, returns, &(int){-EIO}), 0);
    CHECK(!conc_done(&t) && !conc_done(&failed) && !conc_done(conc_self()));
    CHECK_INT(conc_sleep(1), 0);
    CHECK(!conc_done(&t) && conc_done(&failed));
    CHECK_INT(conc_sleep(2), 0);
    CHECK(conc_done(&t));
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK(conc_done(&t) && conc_done(&failed));
}

/* ---- handles ---- */

TASK_TEST(a_handle_in_use_is_refused)
{
    int ran = 0, result = -1;
    conc_task t;
    conc_group g = {0}, other = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_group_begin(&other), 0);
    CHECK_INT(conc_spawn_task(&g, &t, sleeps, &(double){1}), 0);
    CHECK_INT(conc_spawn_task(&g, &t, counts, &ran), -EBUSY); /* not started */
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn_task(&other, &t, counts, &ran), -EBUSY); /* waiting */
    CHECK_INT(conc_sleep(2), 0);
    CHECK(conc_done(&t));
    CHECK_INT(conc_spawn_task(&g, &t, counts, &ran), -EBUSY); /* ended, but not collected */
    CHECK_INT(ran, 0);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, 0);
    CHECK_INT(conc_spawn_task(&other, &t, counts, &ran), 0);
    CHECK_INT(conc_group_wait(&other), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, 1);
    CHECK_INT(g.error_count + other.error_count, 0);
}

typedef struct spawner {
    conc_group *into;
    conc_task *handle;
    int rc;
} spawner;

static int spawns_a_sleep(void *arg)
{
    static double second = 1;
    spawner *s = arg;
    s->rc = conc_spawn_task(s->into, s->handle, sleeps, &second);
    return 0;
}

TASK_TEST(one_of_two_spawns_that_wait_for_room_with_one_handle_is_refused)
{
    conc_task t = {0};
    conc_group full = {.limit = 1}, spawners = {0};
    spawner s[2] = {{&full, &t, 1}, {&full, &t, 1}};
    CHECK_INT(conc_spawn(&full, sleeps, &(double){1}), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_spawn(&spawners, spawns_a_sleep, &s[i]), 0);
    CHECK_INT(conc_group_wait(&spawners), 0);
    CHECK_INT(s[0].rc == 0 ? s[1].rc : s[0].rc, -EBUSY);
    CHECK_INT(s[0].rc == 0 ? s[0].rc : s[1].rc, 0);
    CHECK_INT(conc_group_wait(&full), 0);
    CHECK_TIME(2);
}

TASK_TEST(a_handle_is_free_again_when_its_group_closed)
{
    int ran = 0;
    conc_task t;
    for (int i = 0; i < 10; i++) {
        conc_group g = {0};
        CHECK_INT(conc_spawn_task(&g, &t, counts, &ran), 0);
        CHECK_INT(conc_group_wait(&g), 0);
    }
    CHECK_INT(ran, 10);
}

TASK_TEST(a_new_handle_may_hold_anything)
{
    int fill[] = {0x00, 0x01, 0x02, 0x55, 0xA5, 0xFF}; /* 2 is the state of an ended task */
    int result = 0;
    conc_group g = {0};
    for (size_t i = 0; i < CONC_LEN(fill); i++) {
        conc_task t;
        memset(&t, fill[i], sizeof t);
        CHECK_INT(conc_spawn_task(&g, &t, returns, &(int){3}), 0);
        CHECK_INT(conc_join(&t, &result), 0);
        CHECK_INT(result, 3);
    }
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(the_bytes_of_a_joined_handle_may_move)
{
    int result = 0;
    conc_task first, second;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &first, returns, &(int){3}), 0);
    CHECK_INT(conc_join(&first, NULL), 0);
    memcpy(&second, &first, sizeof first);
    memset(&first, 0xA5, sizeof first);
    CHECK_INT(conc_spawn_task(&g, &second, returns, &(int){4}), 0);
    CHECK_INT(conc_join(&second, &result), 0);
    CHECK_INT(result, 4);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_handle_whose_spawn_failed_is_not_in_use)
{
    int ran = 0;
    conc_task t = {0};
    conc_group closed = {0}, g = {0};
    CHECK_INT(conc_group_begin(&closed), 0);
    CHECK_INT(conc_group_wait(&closed), 0);
    CHECK_INT(conc_spawn_task(&closed, &t, counts, &ran), -EINVAL);
    CHECK_INT(conc_spawn_task(&g, &t, counts, &ran), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, 1);
}

/* ---- many ---- */

TASK_TEST(a_hundred_thousand_tasks_one_after_another_need_one_stack)
{
    int ran = 0;
    conc_stats early, late;
    conc_task t;
    conc_group g = {0};
    for (int i = 0; i < MANY; i++) {
        CHECK_INT(conc_spawn_task(&g, &t, counts, &ran), 0);
        CHECK_INT(conc_join(&t, NULL), 0);
        if (i == 99)
            conc_get_stats(&early);
    }
    conc_get_stats(&late);
    CHECK_INT(ran, MANY);
    CHECK_INT(late.spawned - early.spawned, MANY - 100);
    CHECK_INT(late.tasks, 1);
    CHECK_INT(late.stacks, early.stacks);
    CHECK_INT(late.stack_bytes, early.stack_bytes);
    CHECK(late.switches > early.switches);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int wakes_later(void *arg)
{
    int *woken = arg;
    CONC_TRY(conc_sleep(1));
    CONC_TRY(conc_yield());
    ++*woken;
    return 0;
}

TASK_TEST(two_thousand_tasks_may_wait_at_once)
{
    int woken = 0;
    conc_stats stats;
    conc_group g = {0};
    for (int i = 0; i < 2000; i++)
        CHECK_INT(conc_spawn(&g, wakes_later, &woken), 0);
    CHECK_INT(conc_settle(), 0);
    conc_get_stats(&stats);
    CHECK_INT(stats.tasks, 2001);
    CHECK_INT(stats.ready, 0);
    CHECK_INT(stats.timers, 2000);
    CHECK(stats.stacks >= 2000);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(woken, 2000);
    CHECK_TIME(1);
    conc_get_stats(&stats);
    CHECK_INT(stats.tasks, 1);
    CHECK_INT(stats.timers, 0);
}

static int grows(void *arg)
{
    int *depth = arg, rest = *depth - 1;
    conc_group g = {0};
    if (rest > 0) {
        CHECK_INT(conc_spawn(&g, grows, &rest), 0);
        CHECK_INT(conc_spawn(&g, grows, &rest), 0);
    }
    CONC_TRY_IN(&g, conc_sleep(1));
    CONC_TRY(conc_group_wait(&g));
    note("x");
    return 0;
}

TASK_TEST(tasks_spawn_tasks_that_spawn_tasks)
{
    CHECK_INT(grows(&(int){7}), 0);
    CHECK_INT(strlen(noted), 2 * 127 - 1); /* 2^7 - 1 of them */
    CHECK_TIME(1);
}

/* ---- separate state ---- */

static int keeps_its_errno(void *arg)
{
    int mine = *(int *)arg;
    errno = mine;
    for (int i = 0; i < 20; i++) {
        CONC_TRY(i % 3 ? conc_yield() : conc_sleep(1));
        CHECK_INT(errno, mine);
        errno = ++mine;
    }
    return 0;
}

TASK_TEST(every_task_has_its_own_errno)
{
    int start[] = {100, 200, 300, 400};
    errno = 99;
    CHECK_INT(CONC_MAP(keeps_its_errno, start), 0);
    CHECK_INT(errno, 99);
}

static int keeps_its_values(void *arg)
{
    double x = *(double *)arg, sum = 0, product = 1;
    long a = 1, b = 2, c = 3, d = 4, e = 5, f = 6;
    for (int i = 0; i < 64; i++) {
        sum += x * i; /* exact: small multiples of a half */
        product *= i % 2 ? 2 : 0.5;
        a += i, b += 2 * i, c += 3 * i, d += 4 * i, e += 5 * i, f += 6 * i;
        CONC_TRY(i % 8 ? conc_yield() : conc_sleep(x));
    }
    CHECK(sum == x * 2016);
    CHECK(product == 1);
    CHECK(a == 1 + 2016 && b == 2 + 2 * 2016 && c == 3 + 3 * 2016);
    CHECK(d == 4 + 4 * 2016 && e == 5 + 5 * 2016 && f == 6 + 6 * 2016);
    return 0;
}

TASK_TEST(values_in_registers_survive_every_switch)
{
    double values[] = {0.5, 1, 1.5, 2, 2.5, 3, 3.5};
    CHECK_INT(CONC_MAP(keeps_its_values, values), 0);
}

static int fills_its_stack(void *arg)
{
    unsigned char block[64 * 1024];
    int mine = *(int *)arg;
    memset(block, mine, sizeof block);
    for (int i = 0; i < 10; i++) {
        CONC_TRY(conc_yield());
        for (size_t at = 0; at < sizeof block; at += 512)
            CHECK_INT(block[at], mine);
        CHECK_INT(block[sizeof block - 1], mine);
    }
    return 0;
}

TASK_TEST(every_task_has_its_own_stack)
{
    int marks[20];
    for (int i = 0; i < 20; i++)
        marks[i] = i + 1;
    CHECK_INT(CONC_MAP(fills_its_stack, marks), 0);
}

TASK_TEST(the_remains_of_a_handle_may_be_overwritten_in_part)
{
    conc_task t;
    int seven = 7, rc;
    unsigned char *bytes = (unsigned char *)&t;
    for (size_t i = 0; i < sizeof t; i++)
        for (int value = 0; value <= 1; value++) {
            CHECK_INT(conc_spawn_task(NULL, &t, returns, &seven), 0);
            CHECK_INT(conc_join(&t, &rc), 0);
            CHECK_INT(rc, 7);
            bytes[i] = (unsigned char)value;
        }
}
