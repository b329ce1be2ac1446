/* Groups: waiting for children, opening and closing, limits, and cancelling deliberately. */
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

typedef struct child {
    double seconds;
    int rc;
    int slept;
    double ended;
} child;

static int works(void *arg)
{
    child *c = arg;
    c->slept = conc_sleep(c->seconds);
    c->ended = conc_now();
    return c->slept < 0 ? c->slept : c->rc;
}

static int counts(void *arg)
{
    ++*(int *)arg;
    return 0;
}

static int sleeps(void *arg) { return conc_sleep(*(double *)arg); }

static int sleeps_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int cancels_a_scope_after_a_second(void *arg)
{
    CONC_TRY(conc_sleep(1));
    conc_scope_cancel(arg);
    return 0;
}

/* ---- waiting ---- */

TASK_TEST(a_group_waits_for_all_its_children)
{
    child one = {.seconds = 1, .rc = 42}, two = {.seconds = 2, .rc = 11};
    int result = 0;
    conc_task first, second;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &first, works, &one), 0);
    CHECK_INT(conc_spawn_task(&g, &second, works, &two), 0);
    CHECK_INT(conc_group_wait(&g), 0); /* any success will do, whatever its value */
    CHECK_TIME(2);
    CHECK(one.ended == 1 && two.ended == 2);
    CHECK_INT(g.error, 0);
    CHECK_INT(g.error_count, 0);
    CHECK_INT(conc_join(&first, &result), 0);
    CHECK_INT(result, 42);
    CHECK_INT(conc_join(&second, &result), 0);
    CHECK_INT(result, 11);
}

TASK_TEST(a_group_without_children_is_done_at_once)
{
    conc_group never_opened = {0}, empty = {0};
    CHECK_INT(conc_group_wait(&never_opened), 0);
    CHECK_INT(conc_group_begin(&empty), 0);
    CHECK_INT(conc_group_wait(&empty), 0);
    CHECK_TIME(0);
}

TASK_TEST(a_group_whose_children_have_ended_is_done_at_once)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, sleeps, &(double){1}), 0);
    CHECK_INT(conc_sleep(5), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(5);
}

typedef struct chain {
    conc_group *group;
    int left;
} chain;

static int sleeps_and_spawns_the_next(void *arg)
{
    chain *c = arg;
    CONC_TRY(conc_sleep(1));
    return --c->left ? conc_spawn(c->group, sleeps_and_spawns_the_next, c) : 0;
}

TASK_TEST(children_may_spawn_siblings_while_the_owner_waits)
{
    conc_group g = {0};
    chain c = {&g, 10};
    CHECK_INT(conc_spawn(&g, sleeps_and_spawns_the_next, &c), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.left, 0);
    CHECK_TIME(10);
}

TASK_TEST(a_long_lived_group_forgets_its_finished_children)
{
    int ran = 0;
    conc_stats early, late;
    conc_group g = {0};
    for (int i = 0; i < MANY; i++) {
        CHECK_INT(conc_spawn(&g, counts, &ran), 0);
        CHECK_INT(conc_settle(), 0);
        if (i == 99)
            conc_get_stats(&early);
    }
    conc_get_stats(&late);
    CHECK_INT(ran, MANY);
    CHECK_INT(late.tasks, 1);
    CHECK_INT(late.stacks, early.stacks);
    CHECK_INT(late.stack_bytes, early.stack_bytes);
    CHECK_INT(late.stacks_kept, early.stacks_kept);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- opening and closing ---- */

TASK_TEST(a_group_can_be_opened_once)
{
    conc_group g = {0}, by_spawn = {0}, closed = {0};
    CHECK_INT(conc_group_begin(NULL), -EINVAL);
    CHECK_INT(conc_group_begin(&closed), 0);
    CHECK_INT(conc_group_wait(&closed), 0);
    CHECK_INT(conc_group_begin(&closed), -EINVAL);
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_group_begin(&g), -EINVAL);
    CHECK_INT(conc_spawn(&by_spawn, sleeps, &(double){1}), 0);
    CHECK_INT(conc_group_begin(&by_spawn), -EINVAL);
    CHECK_INT(conc_group_wait(&by_spawn), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(1);
}

TASK_TEST(a_closed_group_accepts_no_more_children)
{
    int ran = 0;
    conc_task t, *next = NULL;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, sleeps, &(double){1}), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_spawn(&g, counts, &ran), -EINVAL);
    CHECK_INT(conc_spawn_task(&g, &t, counts, &ran), -EINVAL);
    CHECK_INT(conc_start(&g, counts, &ran), -EINVAL);
    CHECK_INT(conc_group_wait(&g), -EINVAL);
    CHECK_INT(conc_group_end(&g, 3), -EINVAL);
    CHECK_INT(conc_group_next(&g, &next), -EINVAL);
    conc_group_cancel(&g);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(ran, 0);
    CHECK_TIME(2);
}

TASK_TEST(a_group_that_was_never_opened_ends_with_the_error_of_its_body)
{
    conc_group g = {0};
    CHECK_INT(conc_group_end(&g, -EIO), -EIO);
    CHECK_INT(g.error, -EIO);
    CHECK_INT(g.error_count, 1);
    CHECK_INT(conc_group_end(&g, -EIO), -EINVAL);
    CHECK_INT(conc_sleep(1), 0);
}

TASK_TEST(a_zeroed_group_can_be_used_again)
{
    conc_group g = {0};
    for (int i = 1; i <= 5; i++) {
        g = (conc_group){0};
        CHECK_INT(conc_spawn(&g, sleeps, &(double){1}), 0);
        conc_group_cancel(&g);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(conc_sleep(1), 0);
    }
    CHECK_TIME(5);
}

TASK_TEST(invalid_options_of_a_group_are_refused)
{
    int ran = 0;
    conc_group negative = {.limit = -1}, tiny = {.stack_size = 16383};
    CHECK_INT(conc_group_begin(&negative), -EINVAL);
    CHECK_INT(conc_spawn(&negative, counts, &ran), -EINVAL);
    CHECK_INT(conc_spawn(&tiny, counts, &ran), -EINVAL);
    CHECK_INT(conc_group_wait(&tiny), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(ran, 0);
}

static int tries_to_close_it(void *arg)
{
    CHECK_INT(conc_group_wait(arg), -EPERM);
    CHECK_INT(conc_group_end(arg, 0), -EPERM);
    return conc_sleep(1);
}

TASK_TEST(only_its_owner_may_close_a_group)
{
    conc_group g = {0}, other = {0};
    CHECK_INT(conc_spawn(&g, tries_to_close_it, &g), 0);
    CHECK_INT(conc_spawn(&other, tries_to_close_it, &g), 0);
    CHECK_INT(conc_group_wait(&other), 0);
    CHECK_INT(conc_spawn(&g, sleeps, &(double){1}), 0); /* still open */
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(2);
}

TASK_TEST(only_the_innermost_group_or_scope_can_be_left)
{
    conc_group outer = {0}, inner = {0};
    conc_scope s = {0};
    CHECK_INT(conc_spawn(&outer, sleeps, &(double){3}), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    CHECK_INT(conc_group_wait(&outer), -EINVAL);
    CHECK_INT(conc_spawn(&inner, sleeps, &(double){1}), 0);
    CHECK_INT(conc_group_end(&outer, -EIO), -EINVAL);
    CHECK_INT(conc_scope_end(&s, 0), -EINVAL);
    CHECK_TIME(0);
    CHECK_INT(conc_group_wait(&inner), 0);
    CHECK_TIME(1);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    CHECK_INT(conc_group_wait(&outer), 0);
    CHECK_TIME(3);
    CHECK_INT(outer.error_count, 0);
}

/* ---- cancelling ---- */

TASK_TEST(the_cancel_of_one_child_leaves_the_others_alone)
{
    child one = {.seconds = 5}, two = {.seconds = 5, .rc = 1};
    conc_task first;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &first, works, &one), 0);
    CHECK_INT(conc_spawn(&g, works, &two), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&first), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(one.slept, -ECANCELED);
    CHECK(one.ended == 1);
    CHECK_INT(two.slept, 0);
    CHECK(two.ended == 5);
    CHECK_INT(g.error_count, 0);
}

TASK_TEST(a_group_cancelled_by_its_body_ends_with_success)
{
    child one = {.seconds = 5}, two = {.seconds = 5};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, works, &one), 0);
    CHECK_INT(conc_spawn(&g, works, &two), 0);
    CHECK_INT(conc_sleep(1), 0);
    conc_group_cancel(&g);
    conc_group_cancel(&g);
    CHECK(conc_cancelled());
    CHECK_INT(conc_sleep(1), -ECANCELED);
    CHECK_INT(conc_yield(), -ECANCELED);
    CHECK_INT(conc_group_end(&g, -ECANCELED), 0);
    CHECK(one.ended == 1 && two.ended == 1);
    CHECK_INT(one.slept + two.slept, 2 * -ECANCELED);
    CHECK_INT(g.error_count, 0);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_sleep(1), 0);
    CHECK_TIME(2);
}

static int cancels_the_group(void *arg)
{
    CONC_TRY(conc_sleep(1));
    conc_group_cancel(arg);
    CHECK_INT(conc_sleep(1), -ECANCELED);
    return 0;
}

TASK_TEST(a_group_cancelled_by_a_child_ends_with_success)
{
    child other = {.seconds = 5};
    conc_group g = {0}, next = {0};
    CHECK_INT(conc_spawn(&g, works, &other), 0);
    CHECK_INT(conc_spawn(&g, cancels_the_group, &g), 0);
    CHECK_INT(conc_sleep(100), -ECANCELED);
    CHECK_TIME(1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(other.slept, -ECANCELED);
    CHECK(other.ended == 1);

    CHECK_INT(conc_spawn(&next, works, &other), 0);
    CHECK_INT(conc_spawn(&next, cancels_the_group, &next), 0);
    CHECK_INT(conc_group_wait(&next), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_TIME(2);
}

TASK_TEST(a_cancel_of_a_group_that_is_not_open_does_nothing)
{
    child c = {.seconds = 1};
    conc_group g = {0};
    conc_group_cancel(&g);
    CHECK_INT(conc_spawn(&g, works, &c), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.slept, 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_TIME(2);
}

TASK_TEST(a_cancelled_group_accepts_no_children)
{
    int ran = 0;
    conc_task t = {0};
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_spawn(&g, counts, &ran), -ECANCELED);
    CHECK_INT(conc_spawn_task(&g, &t, counts, &ran), -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(ran, 0);
}

TASK_TEST(a_spawn_obeys_cancels_around_the_group_not_around_the_caller)
{
    child inside = {.seconds = 1}, shielded = {.seconds = 1};
    int ran = 0;
    conc_scope outer = {0}, shield = {0}, inner = {0};
    conc_group first = {0}, second = {0};

    CHECK_INT(conc_group_begin(&first), 0);
    CHECK_INT(conc_scope_begin(&inner, 0), 0);
    CHECK_INT(conc_sleep(0), -ECANCELED);
    CHECK_INT(conc_spawn(&first, works, &inside), 0); /* the group is outside the scope */
    CHECK_INT(conc_scope_end(&inner, -ECANCELED), -ETIMEDOUT);
    CHECK_INT(conc_group_wait(&first), 0);
    CHECK_INT(inside.slept, 0);

    CHECK_INT(conc_scope_begin(&outer, CONC_FOREVER), 0);
    CHECK_INT(conc_group_begin(&second), 0);
    conc_scope_cancel(&outer);
    CHECK_INT(conc_spawn(&second, counts, &ran), -ECANCELED);
    CHECK_INT(conc_group_wait(&second), 0);
    second = (conc_group){0};
    CHECK_INT(conc_scope_begin(&shield, CONC_FOREVER), 0);
    conc_scope_shield(&shield, true);
    CHECK_INT(conc_spawn(&second, works, &shielded), 0); /* the shield hides the cancel */
    CHECK_INT(conc_group_wait(&second), 0);
    CHECK_INT(conc_scope_end(&shield, 0), 0);
    CHECK_INT(conc_scope_end(&outer, 0), 0);
    CHECK_INT(shielded.slept, 0);
    CHECK_INT(ran, 0);
    CHECK_TIME(2);
}

TASK_TEST(a_shield_of_the_owner_does_not_cover_its_children)
{
    child c = {.seconds = 5};
    conc_scope outer = {0}, shield = {0};
    conc_group g = {0};
    CHECK_INT(conc_spawn(NULL, cancels_a_scope_after_a_second, &outer), 0);
    CHECK_INT(conc_scope_begin(&outer, CONC_FOREVER), 0);
    CHECK_INT(conc_spawn(&g, works, &c), 0);
    CHECK_INT(conc_scope_begin(&shield, CONC_FOREVER), 0);
    conc_scope_shield(&shield, true);
    CHECK_INT(conc_sleep(3), 0);
    CHECK(c.ended == 1); /* at once */
    CHECK_INT(c.slept, -ECANCELED);
    CHECK_INT(conc_scope_end(&shield, 0), 0);
    CHECK_INT(conc_sleep(1), -ECANCELED);
    CHECK_INT(conc_group_end(&g, -ECANCELED), -ECANCELED);
    CHECK_INT(conc_scope_end(&outer, -ECANCELED), 0);
    CHECK_TIME(3);
}

/* ---- limits ---- */

typedef struct crowd {
    int inside, most, total;
} crowd;

static int enters_for_a_second(void *arg)
{
    crowd *c = arg;
    c->inside++;
    c->total++;
    c->most = c->inside > c->most ? c->inside : c->most;
    CONC_TRY(conc_sleep(1));
    c->inside--;
    return 0;
}

TASK_TEST(a_limit_bounds_the_children_at_once)
{
    crowd c = {0};
    conc_group g = {.limit = 3};
    for (int i = 0; i < 10; i++) {
        CHECK_INT(conc_spawn(&g, enters_for_a_second, &c), 0);
        CHECK_TIME(i / 3);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.most, 3);
    CHECK_INT(c.total, 10);
    CHECK_INT(c.inside, 0);
    CHECK_TIME(4);
}

TASK_TEST(a_spawn_that_timed_out_waiting_for_room_changes_nothing)
{
    int ran = 0;
    conc_task t = {0};
    conc_scope s = {0};
    conc_group g = {.limit = 1};
    CHECK_INT(conc_spawn(&g, sleeps, &(double){5}), 0);
    for (int i = 0; i < 3; i++) {
        s = (conc_scope){0};
        CHECK_INT(conc_scope_begin(&s, 1), 0);
        CHECK_INT(conc_spawn_task(&g, &t, counts, &ran), -ECANCELED);
        CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    }
    CHECK_TIME(3);
    CHECK_INT(conc_spawn_task(&g, &t, counts, &ran), 0); /* at 5, when there is room */
    CHECK_TIME(5);
    CHECK_INT(ran, 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(ran, 1);
    CHECK_INT(g.error_count, 0);
}

static int fails_after_a_second(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(1));
    return -EIO;
}

TASK_TEST(a_spawn_that_waits_for_room_is_refused_when_a_child_fails)
{
    int ran = 0;
    conc_group g = {.limit = 2};
    CHECK_INT(conc_spawn(&g, sleeps_forever, NULL), 0);
    CHECK_INT(conc_spawn(&g, fails_after_a_second, NULL), 0);
    CHECK_INT(conc_spawn(&g, counts, &ran), -ECANCELED);
    CHECK_TIME(1);
    CHECK_INT(conc_group_end(&g, -ECANCELED), -EIO);
    CHECK_INT(ran, 0);
    CHECK_INT(g.error_count, 1);
}

static int sleeps_shielded(void *arg) { return conc_shield(CONC_FOREVER, sleeps, arg); }

typedef struct outsider {
    conc_group *into;
    int rc;
    double at;
} outsider;

static int waits_for_room(void *arg)
{
    outsider *o = arg;
    o->rc = conc_spawn(o->into, sleeps_forever, NULL);
    o->at = conc_now();
    return 0;
}

TASK_TEST(a_wait_for_room_from_outside_a_group_is_refused_once_the_group_is_cancelled)
{
    conc_group outside = {0}, full = {.limit = 1};
    outsider o = {.into = &full};
    CHECK_INT(conc_spawn(&outside, waits_for_room, &o), 0);
    CHECK_INT(conc_spawn(&full, sleeps_shielded, &(double){3}), 0);
    CHECK_INT(conc_sleep(1), 0);
    conc_group_cancel(&full);
    CHECK_INT(conc_group_wait(&full), 0);
    CHECK_TIME(3);
    CHECK_INT(conc_group_wait(&outside), 0);
    CHECK_INT(o.rc, -ECANCELED);
    CHECK(o.at == 1);
}

/* ---- stacks ---- */

static int uses_700_kib(void *arg)
{
    volatile char block[700 * 1024];
    for (size_t i = sizeof block; i > 0; i -= 1024)
        block[i - 1] = 1;
    CONC_TRY(conc_yield());
    *(int *)arg += block[sizeof block - 1];
    return 0;
}

TASK_TEST(a_group_may_request_larger_stacks)
{
    int used = 0;
    conc_group large = {.stack_size = (size_t)1024 * 1024}, plain = {0};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&large, uses_700_kib, &used), 0);
    CHECK_INT(conc_group_wait(&large), 0);
    CHECK_INT(used, 3);
    CHECK_INT(conc_spawn(&plain, counts, &used), 0);
    CHECK_INT(conc_group_wait(&plain), 0);
    CHECK_INT(used, 4);
}

/* ---- left open at the end of a block ---- */

static int leaves_early(child *c)
{
    CONC_AUTO(conc_group, g) = {.limit = 5};
    CONC_TRY(conc_spawn(&g, works, &c[0]));
    CONC_TRY(conc_spawn(&g, works, &c[1]));
    CONC_TRY(conc_sleep(2));
    return 77;
}

TASK_TEST(a_group_left_without_a_wait_cancels_its_children_and_waits)
{
    child c[] = {{.seconds = 1}, {.seconds = 10}};
    CHECK_INT(leaves_early(c), 77);
    CHECK_TIME(2);
    CHECK_INT(c[0].slept, 0);
    CHECK_INT(c[1].slept, -ECANCELED);
    CHECK(c[1].ended == 2);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_sleep(1), 0);
}

static int notes_its_end(void *arg)
{
    CHECK_INT(conc_sleep(CONC_FOREVER), -ECANCELED);
    note(arg);
    return -ECANCELED;
}

TASK_TEST(groups_left_together_close_the_last_declared_first)
{
    {
        CONC_AUTO(conc_group, outer) = {0};
        CONC_AUTO(conc_group, inner) = {0};
        CONC_AUTO(conc_group, never_opened) = {0};
        CONC_AUTO(conc_group, closed) = {0};
        CHECK_INT(conc_spawn(&outer, notes_its_end, "outer"), 0);
        CHECK_INT(conc_spawn(&inner, notes_its_end, "inner"), 0);
        CHECK_INT(conc_spawn(&closed, sleeps, &(double){1}), 0);
        CHECK_INT(conc_group_wait(&closed), 0);
        CHECK_STR(noted, "");
        CHECK_INT(never_opened.error_count, 0);
    }
    CHECK_STR(noted, "inner outer");
    CHECK_TIME(1);
}

/* ---- a refused first spawn ---- */

static const conc_group fresh_options = {.limit = 2, .keep_going = true, .stack_size = 65536};

static bool is_fresh(const conc_group *g) { return memcmp(g, &fresh_options, sizeof *g) == 0; }

static int try_first_spawns(void *arg)
{
    conc_group g;
    conc_task t;
    (void)arg;
    memcpy(&g, &fresh_options, sizeof g);
    CHECK_INT(conc_sleep(10), -ECANCELED);
    CHECK_INT(conc_spawn(&g, sleeps, NULL), -ECANCELED);
    CHECK(is_fresh(&g));
    CHECK_INT(conc_spawn_task(&g, &t, sleeps, NULL), -ECANCELED);
    CHECK(is_fresh(&g));
    CHECK_INT(conc_start(&g, sleeps, NULL), -ECANCELED);
    CHECK(is_fresh(&g));
    CONC_TRY(conc_spawn(&g, sleeps, NULL)); /* leaves with nothing open */
    return conc_group_wait(&g);
}

TASK_TEST(a_first_spawn_in_a_cancelled_scope_leaves_the_group_fresh)
{
    CHECK_INT(conc_timeout(1, try_first_spawns, NULL), -ETIMEDOUT);
    CHECK_TIME(1);
}

static int needs_too_much_memory(void *arg)
{
    conc_group g = {.stack_size = (size_t)1 << (sizeof(size_t) * 8 - 14)};
    conc_task t;
    (void)arg;
    CHECK_INT(conc_spawn(&g, sleeps, NULL), -ENOMEM);
    CHECK_INT(conc_spawn_task(&g, &t, sleeps, NULL), -ENOMEM);
    CONC_TRY(conc_start(&g, sleeps, NULL));
    return conc_group_wait(&g);
}

TASK_TEST(a_first_spawn_without_memory_leaves_the_group_fresh)
{
    CHECK_INT(needs_too_much_memory(NULL), -ENOMEM);
}

static int makes_mistakes(void *arg)
{
    conc_group g, senseless = {.limit = -1};
    memcpy(&g, &fresh_options, sizeof g);
    CHECK_INT(conc_spawn_task(&g, arg, sleeps, NULL), -EBUSY);
    CHECK(is_fresh(&g));
    CHECK_INT(conc_spawn_task(&g, NULL, sleeps, NULL), -EINVAL);
    CHECK(is_fresh(&g));
    CHECK_INT(conc_spawn(&g, NULL, NULL), -EINVAL);
    CHECK(is_fresh(&g));
    CONC_TRY(conc_spawn(&senseless, sleeps, NULL));
    return conc_group_wait(&g);
}

TASK_TEST(a_first_spawn_that_is_a_mistake_leaves_the_group_fresh)
{
    conc_task busy;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &busy, sleeps, &(double){1}), 0);
    CHECK_INT(makes_mistakes(&busy), -EINVAL);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_group_is_usable_after_its_first_spawn_was_refused)
{
    conc_group g = {0};
    conc_task busy;
    conc_group other = {0};
    CHECK_INT(conc_spawn_task(&other, &busy, sleeps, &(double){1}), 0);
    CHECK_INT(conc_spawn_task(&g, &busy, sleeps, &(double){1}), -EBUSY);
    CHECK_INT(conc_group_wait(&other), 0);
    CHECK_INT(conc_spawn_task(&g, &busy, sleeps, &(double){1}), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(2);
}
