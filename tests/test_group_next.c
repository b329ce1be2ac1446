/* conc_group_next: children with handles, one by one, in the order in which they finish. */
#include "conc_test.h"

typedef struct child {
    double seconds;
    int rc;
    int slept;
} child;

static int works(void *arg)
{
    child *c = arg;
    c->slept = conc_sleep(c->seconds);
    return c->slept < 0 ? c->slept : c->rc;
}

static int returns(void *arg) { return *(int *)arg; }

static int result_of(conc_task *t)
{
    int result = 12345;
    CHECK(conc_done(t));
    CHECK_INT(conc_join(t, &result), 0);
    return result;
}

TASK_TEST(children_are_returned_in_the_order_in_which_they_finish)
{
    child c[] = {{.seconds = 3, .rc = 30}, {.seconds = 1, .rc = 10}, {.seconds = 2, .rc = 20}};
    conc_task t[3], *next = NULL;
    conc_group g = {0};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn_task(&g, &t[i], works, &c[i]), 0);
    for (int i = 1; i <= 3; i++) {
        CHECK_INT(conc_group_next(&g, &next), 1);
        CHECK_TIME(i);
        CHECK(next == &t[i % 3]);
        CHECK_INT(result_of(next), i * 10);
    }
    CHECK_INT(conc_group_next(&g, &next), 0);
    CHECK_INT(conc_group_next(&g, &next), 0);
    CHECK_TIME(3);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(children_that_finished_before_are_returned_at_once)
{
    child c[] = {{.seconds = 2}, {.seconds = 1}, {.seconds = 9}};
    conc_task t[3], *next = NULL;
    conc_group g = {0};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn_task(&g, &t[i], works, &c[i]), 0);
    CHECK_INT(conc_sleep(5), 0);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK(next == &t[1]);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK(next == &t[0]);
    CHECK_TIME(5);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK(next == &t[2]);
    CHECK_TIME(9);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(children_that_finish_at_the_same_moment_are_each_returned_once)
{
    child c[8];
    bool seen[8] = {false};
    conc_task t[8], *next = NULL;
    conc_group g = {0};
    for (int i = 0; i < 8; i++) {
        c[i] = (child){.seconds = 1, .rc = i};
        CHECK_INT(conc_spawn_task(&g, &t[i], works, &c[i]), 0);
    }
    for (int i = 0; i < 8; i++) {
        CHECK_INT(conc_group_next(&g, &next), 1);
        int at = (int)(next - t);
        CHECK(!seen[at]);
        seen[at] = true;
        CHECK_INT(result_of(next), at);
    }
    CHECK_INT(conc_group_next(&g, &next), 0);
    CHECK_TIME(1);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(children_without_a_handle_are_not_waited_for)
{
    child silent = {.seconds = 9}, named = {.seconds = 1};
    conc_task t, *next = NULL;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, works, &silent), 0);
    CHECK_INT(conc_group_next(&g, &next), 0);
    CHECK_TIME(0);
    CHECK_INT(conc_spawn_task(&g, &t, works, &named), 0);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK(next == &t);
    CHECK_INT(conc_group_next(&g, &next), 0);
    CHECK_TIME(1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(9);
}

TASK_TEST(an_open_group_without_children_has_no_next)
{
    conc_task *next = NULL;
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_group_next(&g, &next), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(null_arguments_are_refused)
{
    child c = {.seconds = 1};
    conc_task t, *next = NULL;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, works, &c), 0);
    CHECK_INT(conc_group_next(NULL, &next), -EINVAL);
    CHECK_INT(conc_group_next(&g, NULL), -EINVAL);
    CHECK_TIME(0);
    CHECK_INT(conc_group_next(&g, &next), 1); /* it was not lost */
    CHECK(next == &t);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_returned_handle_can_be_used_again)
{
    int sum = 0, spawned = 3;
    child c[12];
    conc_task t[3], *next = NULL;
    conc_group g = {0};
    for (int i = 0; i < 12; i++)
        c[i] = (child){.seconds = 1 + i % 3, .rc = i};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn_task(&g, &t[i], works, &c[i]), 0);
    while (conc_group_next(&g, &next) == 1) {
        sum += result_of(next);
        if (spawned < 12) {
            CHECK_INT(conc_spawn_task(&g, next, works, &c[spawned]), 0);
            spawned++;
        }
    }
    CHECK_INT(spawned, 12);
    CHECK_INT(sum, 66);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(g.error_count, 0);
}

TASK_TEST(a_joined_child_is_not_returned)
{
    child c[] = {{.seconds = 1}, {.seconds = 2}};
    conc_task t[2], *next = NULL;
    conc_group g = {0};
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_spawn_task(&g, &t[i], works, &c[i]), 0);
    CHECK_INT(conc_join(&t[0], NULL), 0);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK(next == &t[1]);
    CHECK_INT(conc_group_next(&g, &next), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(children_that_were_not_returned_are_closed_with_the_group)
{
    child c[] = {{.seconds = 1}, {.seconds = 2}, {.seconds = 3}};
    conc_task t[3], *next = NULL;
    for (int round = 0; round < 2; round++) {
        conc_group g = {0};
        for (int i = 0; i < 3; i++)
            CHECK_INT(conc_spawn_task(&g, &t[i], works, &c[i]), 0);
        CHECK_INT(conc_group_next(&g, &next), 1);
        CHECK(next == &t[0]);
        CHECK_INT(conc_group_wait(&g), 0);
    }
    CHECK_TIME(6);
}

/* ---- limits, cancels, errors ---- */

static int asks(void *arg)
{
    conc_task *next = NULL;
    return conc_group_next(arg, &next);
}

TASK_TEST(a_next_that_timed_out_leaves_the_children_alone_and_can_be_repeated)
{
    child c[] = {{.seconds = 1}, {.seconds = 5}};
    conc_stats before, after;
    conc_task t[2], *next = NULL;
    conc_group g = {0};
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_spawn_task(&g, &t[i], works, &c[i]), 0);
    CHECK_INT(conc_timeout(3, asks, &g), 1);
    CHECK_TIME(1);
    conc_get_stats(&before);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_timeout(1.0 / 512, asks, &g), -ETIMEDOUT);
    conc_get_stats(&after);
    CHECK_INT(after.timers, before.timers);
    CHECK_TIME(1 + 1000.0 / 512);
    CHECK(!conc_done(&t[1]));
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK(next == &t[1]);
    CHECK_INT(c[1].slept, 0);
    CHECK_TIME(5);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(in_a_cancelled_scope_next_returns_no_child_but_nothing_is_lost)
{
    child c = {.seconds = 1, .rc = 6};
    conc_task t, *next = NULL;
    conc_scope s = {0};
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, works, &c), 0);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_group_next(&g, &next), -ECANCELED);
    CHECK(next == NULL);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK(next == &t);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_failed_child_is_returned_if_the_group_keeps_going)
{
    child c[] = {{.seconds = 1, .rc = -EIO}, {.seconds = 3, .rc = 5}, {.seconds = 9}};
    conc_task t[3], *next = NULL;
    conc_group g = {.keep_going = true};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn_task(&g, &t[i], works, &c[i]), 0);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK(next == &t[0]);
    CHECK_INT(result_of(next), -EIO);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&t[2]), 0);
    CHECK_INT(conc_group_next(&g, &next), 1); /* a cancelled one is returned too */
    CHECK(next == &t[2]);
    CHECK_INT(result_of(next), -ECANCELED);
    CHECK_TIME(2);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK_INT(result_of(next), 5);
    CHECK_INT(conc_group_wait(&g), -EIO);
    CHECK_INT(g.error_count, 1);
}

TASK_TEST(a_failed_child_cancels_the_task_in_next)
{
    child c[] = {{.seconds = 1, .rc = -EIO}, {.seconds = 3}};
    conc_task t[2], *next = NULL;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, works, &c[0]), 0);
    CHECK_INT(conc_spawn_task(&g, &t[1], works, &c[1]), 0);
    CHECK_INT(conc_group_next(&g, &next), -ECANCELED);
    CHECK_TIME(1);
    CHECK_INT(conc_group_end(&g, -ECANCELED), -EIO);
    CHECK_INT(result_of(&t[1]), -ECANCELED);
}

/* ---- several callers ---- */

typedef struct consumer {
    conc_group *group;
    int got, last;
    double ended;
} consumer;

static int consumes(void *arg)
{
    consumer *c = arg;
    conc_task *next;
    while ((c->last = conc_group_next(c->group, &next)) == 1) {
        c->got += 1 + result_of(next);
        CONC_TRY(conc_yield());
    }
    c->ended = conc_now();
    return c->last;
}

TASK_TEST(each_child_is_returned_to_one_of_the_callers)
{
    child c[10];
    conc_task t[10];
    conc_group outer = {0}, g = {0};
    consumer consumers[] = {{.group = &g}, {.group = &g}, {.group = &g}};
    CHECK_INT(conc_group_begin(&outer), 0);
    for (int i = 0; i < 10; i++) {
        c[i] = (child){.seconds = 1 + i / 4, .rc = 100};
        CHECK_INT(conc_spawn_task(&g, &t[i], works, &c[i]), 0);
    }
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&outer, consumes, &consumers[i]), 0);
    CHECK_INT(conc_sleep(4), 0);
    int got = 0;
    for (int i = 0; i < 3; i++) {
        got += consumers[i].got;
        CHECK_INT(consumers[i].last, 0); /* no caller waits forever */
        CHECK(consumers[i].ended == 3);
    }
    CHECK_INT(got, 1010);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_group_wait(&outer), 0);
}

typedef struct joiner {
    conc_task *target;
    int rc, result;
} joiner;

static int joins(void *arg)
{
    joiner *j = arg;
    return j->rc = conc_join(j->target, &j->result);
}

TASK_TEST(next_does_not_hang_when_the_last_child_is_joined)
{
    child c = {.seconds = 1, .rc = 6};
    conc_task t;
    conc_group outer = {0}, g = {0};
    joiner j = {.target = &t};
    consumer first = {.group = &g}, second = {.group = &g};
    CHECK_INT(conc_group_begin(&outer), 0);
    CHECK_INT(conc_spawn_task(&g, &t, works, &c), 0);
    CHECK_INT(conc_spawn(&outer, consumes, &first), 0);
    CHECK_INT(conc_spawn(&outer, joins, &j), 0);
    CHECK_INT(conc_spawn(&outer, consumes, &second), 0);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(j.rc, 0);
    CHECK_INT(j.result, 6);
    CHECK_INT(first.last + second.last, 0);
    CHECK(first.ended == 1 && second.ended == 1);
    CHECK(first.got + second.got == 7 || first.got + second.got == 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_group_wait(&outer), 0);
}

typedef struct spawner {
    conc_group *group;
    conc_task *handle;
} spawner;

static int spawns_another_with_a_handle(void *arg)
{
    spawner *s = arg;
    static int seventeen = 17;
    CONC_TRY(conc_sleep(1));
    CONC_TRY(conc_spawn_task(s->group, s->handle, returns, &seventeen));
    return conc_sleep(1);
}

TASK_TEST(a_child_that_was_spawned_meanwhile_is_returned_too)
{
    conc_task t[2], *next = NULL;
    conc_group g = {0};
    spawner s = {&g, &t[1]};
    CHECK_INT(conc_spawn_task(&g, &t[0], spawns_another_with_a_handle, &s), 0);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK_TIME(1);
    CHECK(next == &t[1]);
    CHECK_INT(result_of(next), 17);
    CHECK_INT(conc_group_next(&g, &next), 1);
    CHECK(next == &t[0]);
    CHECK_TIME(2);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- a race: a child ends and its owner is cancelled at the same moment ---- */

typedef struct owner {
    child child;
    int next, slept, again;
    bool there;
} owner;

static int asks_and_sleeps(void *arg)
{
    owner *o = arg;
    conc_task t, *next = NULL;
    conc_group g = {.keep_going = true};
    conc_scope shield = {0};
    CHECK_INT(conc_spawn_task(&g, &t, works, &o->child), 0);
    o->next = conc_group_next(&g, &next);
    CHECK(next == (o->next == 1 ? &t : NULL));
    o->slept = conc_sleep(10);
    CHECK_INT(conc_scope_begin(&shield, CONC_FOREVER), 0);
    conc_scope_shield(&shield, true);
    o->again = conc_group_next(&g, &next);
    CHECK(next == &t);
    CHECK_INT(conc_scope_end(&shield, 0), 0);
    return conc_group_wait(&g);
}

static int cancels(void *arg)
{
    CONC_TRY(conc_sleep(1));
    return conc_cancel(arg);
}

TASK_TEST(neither_a_next_nor_a_simultaneous_cancel_is_lost)
{
    conc_task t;
    conc_group g = {0};
    owner o = {.child = {.seconds = 1}};
    CHECK_INT(conc_spawn_task(&g, &t, asks_and_sleeps, &o), 0);
    CHECK_INT(conc_spawn(&g, cancels, &t), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(o.slept, -ECANCELED);
    CHECK(o.next == 1 || o.next == -ECANCELED);
    CHECK_INT(o.again, o.next == 1 ? 0 : 1);
    CHECK_TIME(1);
}

static int cancels_its_owner_and_ends(void *arg)
{
    CONC_TRY(conc_sleep(1));
    CHECK_INT(conc_cancel(arg), 0);
    return 9;
}

static int joins_shielded(void *arg) { return result_of(arg); }

static int asks_for_a_traitor(void *arg)
{
    owner *o = arg;
    conc_task t, *next = NULL;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &t, cancels_its_owner_and_ends, conc_self()), 0);
    o->next = conc_group_next(&g, &next);
    CHECK(next == NULL);
    CHECK_INT(conc_group_end(&g, o->next), -ECANCELED);
    o->again = conc_shield(CONC_FOREVER, joins_shielded, &t);
    return 4;
}

TASK_TEST(a_cancel_just_before_the_end_takes_the_next_but_not_the_result)
{
    int result = 0;
    conc_task t;
    conc_group g = {0};
    owner o = {0};
    CHECK_INT(conc_spawn_task(&g, &t, asks_for_a_traitor, &o), 0);
    CHECK_INT(conc_join(&t, &result), 0);
    CHECK_INT(result, 4);
    CHECK_INT(o.next, -ECANCELED);
    CHECK_INT(o.again, 9);
    CHECK_TIME(1);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int breaks(void *arg)
{
    CONC_TRY(conc_sleep(1));
    return conc_fail(-EIO, "disk %d is gone", *(int *)arg);
}

ORDERED_TASK_TEST(a_childs_error_text_is_returned_whether_or_not_the_call_waits)
{
    int disks[] = {1, 2};
    conc_task t[2], *next;
    conc_group g = {.keep_going = true};
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_spawn_task(&g, &t[i], breaks, &disks[i]), 0);
    (void)conc_fail(-EINVAL, "an older error");
    for (int i = 0; i < 2; i++) {
        char words[32];
        snprintf(words, sizeof words, "disk %d is gone", disks[i]);
        CHECK_INT(conc_group_next(&g, &next), 1);
        CHECK(next == &t[i]);
        CHECK_STR(conc_last_error(), words);
    }
    CHECK_INT(conc_group_wait(&g), -EIO);
}
