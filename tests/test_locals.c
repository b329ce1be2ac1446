/* test_locals.c - conc_local: a value for each task, inherited at the spawn, invisible to each
 * other after it. */
#include "conc_test.h"

static conc_local colour = {"colour"}, size = {NULL}, never_set = {"never set"};
static int red, green, blue;

/* What a task finds, and what it then sets. */
typedef struct looker {
    const void *set;
    double wait;
    void *before, *after;
} looker;

static int look(void *arg)
{
    looker *l = arg;
    l->before = conc_local_get(&colour);
    if (l->set)
        CHECK_INT(conc_local_set(&colour, l->set), 0);
    CONC_TRY(conc_sleep(l->wait));
    l->after = conc_local_get(&colour);
    return 0;
}

TASK_TEST(a_local_that_was_never_set_is_null)
{
    CHECK(conc_local_get(&never_set) == NULL);
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK(conc_local_get(&never_set) == NULL);
}

TASK_TEST(a_local_keeps_its_value_until_it_is_set_again)
{
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_local_set(&size, &blue), 0);
    CHECK(conc_local_get(&colour) == &red);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(conc_local_get(&colour) == &red);
    CHECK_INT(conc_local_set(&colour, &green), 0);
    CHECK(conc_local_get(&colour) == &green);
    CHECK(conc_local_get(&size) == &blue);
    CHECK_INT(conc_local_set(&colour, NULL), 0);
    CHECK(conc_local_get(&colour) == NULL);
    CHECK(conc_local_get(&size) == &blue);
}

TASK_TEST(the_address_of_a_local_is_the_key_not_its_name)
{
    conc_local a = {"same"}, b = {"same"};
    CHECK_INT(conc_local_set(&a, &red), 0);
    CHECK(conc_local_get(&b) == NULL);
    CHECK_INT(conc_local_set(&b, &green), 0);
    CHECK(conc_local_get(&a) == &red);
}

TASK_TEST(a_child_starts_with_the_values_at_its_spawn)
{
    looker l = {0}, other = {0};
    conc_group g = {0};
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_spawn(&g, look, &l), 0);
    CHECK_INT(conc_local_set(&colour, &green), 0);
    CHECK_INT(conc_spawn(&g, look, &other), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(l.before == &red && l.after == &red);
    CHECK(other.before == &green && other.after == &green);
}

TASK_TEST(a_childs_values_are_invisible_to_its_parent_and_siblings)
{
    looker first = {.set = &green, .wait = 2}, second = {.set = &blue, .wait = 2},
           third = {.wait = 2};
    conc_group g = {0};
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_spawn(&g, look, &first), 0);
    CHECK_INT(conc_spawn(&g, look, &second), 0);
    CHECK_INT(conc_spawn(&g, look, &third), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(conc_local_get(&colour) == &red);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(conc_local_get(&colour) == &red);
    CHECK(first.before == &red && second.before == &red && third.before == &red);
    CHECK(first.after == &green && second.after == &blue && third.after == &red);
}

TASK_TEST(a_parents_later_values_are_invisible_to_the_child)
{
    looker l = {.wait = 2};
    conc_group g = {0};
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_spawn(&g, look, &l), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_local_set(&colour, &green), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(l.before == &red && l.after == &red);
}

TASK_TEST(a_child_of_a_parent_without_values_can_set_its_own)
{
    looker l = {.set = &green};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, look, &l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(l.before == NULL && l.after == &green);
    CHECK(conc_local_get(&colour) == NULL);
}

static int set_and_spawn(void *arg)
{
    looker *grandchild = arg;
    conc_group g = {0};
    CHECK(conc_local_get(&colour) == &red);
    CHECK_INT(conc_local_set(&colour, &green), 0);
    CONC_TRY(conc_spawn(&g, look, grandchild));
    return conc_group_wait(&g);
}

TASK_TEST(grandchildren_inherit_from_their_parent)
{
    looker l = {0};
    conc_group g = {0};
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_local_set(&size, &blue), 0);
    CHECK_INT(conc_spawn(&g, set_and_spawn, &l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(l.before == &green);
    CHECK(conc_local_get(&colour) == &red);
}

TASK_TEST(gather_map_start_and_background_tasks_inherit_too)
{
    looker l[4] = {{0}};
    conc_task t = {0};
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(CONC_GATHER(CONC_CALL(look, &l[0]), CONC_CALL(look, &l[1])), 0);
    CHECK_INT(conc_map(look, &l[2], 1, sizeof l[2]), 0);
    CHECK_INT(conc_spawn_task(NULL, &t, look, &l[3]), 0);
    CHECK_INT(conc_local_set(&colour, &blue), 0);
    CHECK_INT(conc_join(&t, NULL), 0);
    for (int i = 0; i < 4; i++)
        CHECK(l[i].before == &red);
}

static int set_here(void *arg)
{
    (void)arg;
    return conc_local_set(&colour, &green);
}

TASK_TEST(a_call_under_a_timeout_or_a_shield_is_the_same_task)
{
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_timeout(1, set_here, NULL), 0);
    CHECK(conc_local_get(&colour) == &green);
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_shield(1, set_here, NULL), 0);
    CHECK(conc_local_get(&colour) == &green);
}

static int emit_colours(conc_gen *g, void *arg)
{
    (void)arg;
    for (;;) {
        void *value = conc_local_get(&colour);
        CONC_TRY(conc_local_set(&size, &blue));
        CONC_TRY(conc_gen_emit(g, &value));
    }
}

TASK_TEST(a_generator_sees_and_sets_the_values_of_its_consumer)
{
    void *value = NULL;
    CONC_AUTO(conc_gen, g) = {0};
    CHECK_INT(conc_gen_open(&g, emit_colours, NULL, sizeof value), 0);
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_gen_next(&g, &value), 1);
    CHECK(value == &red);
    CHECK(conc_local_get(&size) == &blue);
    CHECK_INT(conc_local_set(&colour, &green), 0);
    CHECK_INT(conc_gen_next(&g, &value), 1);
    CHECK(value == &green);
}

static void spawn_posted(void *arg)
{
    CHECK(conc_local_get(&colour) == NULL);
    CHECK_INT(conc_spawn(NULL, look, arg), 0);
}

TASK_TEST(a_posted_function_has_no_values_and_neither_have_the_tasks_it_spawns)
{
    looker l = {.before = &red, .after = &red};
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_post(conc_loop_self(), spawn_posted, &l), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(l.before == NULL);
    CHECK(conc_local_get(&colour) == &red);
}

static int read_when_cancelled(void *arg)
{
    int rc = conc_sleep(CONC_FOREVER);
    *(void **)arg = conc_local_get(&colour);
    CHECK_INT(conc_local_set(&colour, &blue), 0);
    return rc;
}

TASK_TEST(values_can_be_read_and_set_while_a_cancelled_task_cleans_up)
{
    void *seen = NULL;
    conc_group g = {0};
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(conc_spawn(&g, read_when_cancelled, &seen), 0);
    CHECK_INT(conc_settle(), 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(seen == &red);
    CHECK(conc_local_get(&colour) == &red);
}

TASK_TEST(a_thousand_locals_do_not_mix)
{
    static conc_local keys[1000];
    static int values[1000];
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_local_set(&keys[i], &values[i]), 0);
    for (int i = 0; i < 1000; i += 2)
        CHECK_INT(conc_local_set(&keys[i], NULL), 0);
    for (int i = 0; i < 1000; i++)
        CHECK(conc_local_get(&keys[i]) == (i % 2 ? &values[i] : NULL));
}

static int set_often(void *arg)
{
    int *values = arg;
    for (int i = 0; i < 10; i++) {
        CHECK_INT(conc_local_set(&colour, &values[i]), 0);
        CONC_TRY(conc_sleep(conc_random(0, 3)));
        CHECK(conc_local_get(&colour) == &values[i]);
    }
    return 0;
}

TASK_TEST(a_hundred_tasks_that_set_and_wait_do_not_mix)
{
    static int values[100][10];
    CHECK_INT(conc_local_set(&colour, &red), 0);
    CHECK_INT(CONC_MAP(set_often, values), 0);
    CHECK(conc_local_get(&colour) == &red);
}

TEST(outside_a_run_there_are_no_values)
{
    CHECK(conc_local_get(&colour) == NULL);
    CHECK_INT(conc_local_set(&colour, &red), -EPERM);
    CHECK(conc_local_get(&colour) == NULL);
}

static int set_and_leave(void *arg)
{
    (void)arg;
    CHECK(conc_local_get(&colour) == NULL);
    return conc_local_set(&colour, &red);
}

TEST(a_new_run_starts_without_values)
{
    CHECK_INT(conc_run(set_and_leave, NULL), 0);
    CHECK_INT(conc_run(set_and_leave, NULL), 0);
}

TASK_TEST(a_local_without_a_key_is_refused)
{
    CHECK_INT(conc_local_set(NULL, &red), -EINVAL);
    CHECK(conc_local_get(NULL) == NULL);
}

/* ---- many keys ---- */

enum { KEYS = 300, TASKS = 40 };
static conc_local many_keys[KEYS];
static int numbers[1000];

typedef struct snapshot {
    int *values[KEYS];
} snapshot;

static void set_some(snapshot *s, uint64_t *state)
{
    for (int i = 0; i < 50; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        int key = (int)(*state >> 33) % KEYS, number = (int)(*state >> 45) % 1000;
        s->values[key] = &numbers[number];
        CHECK_INT(conc_local_set(&many_keys[key], &numbers[number]), 0);
    }
}

static void check_all(const snapshot *s)
{
    for (int i = 0; i < KEYS; i++)
        CHECK(conc_local_get(&many_keys[i]) == s->values[i]);
}

static int inherits_and_sets(void *arg)
{
    snapshot *s = arg;
    uint64_t state = (uint64_t)(uintptr_t)s;
    for (int i = 0; i < 3; i++) {
        check_all(s);
        set_some(s, &state);
        CONC_TRY(conc_yield());
    }
    check_all(s);
    return 0;
}

TASK_TEST(each_task_of_many_has_its_own_values_of_many_keys)
{
    static snapshot mine, theirs[TASKS];
    uint64_t state = 1;
    conc_group g = {0};
    for (int i = 0; i < TASKS; i++) {
        set_some(&mine, &state);
        theirs[i] = mine;
        CHECK_INT(conc_spawn(&g, inherits_and_sets, &theirs[i]), 0);
        if (i % 3 == 0)
            CHECK_INT(conc_yield(), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    check_all(&mine);
}
