/* test_dump.c - conc_dump: the tree of groups and tasks, what each waits for, and where it was
 * spawned. */
#include "conc_test.h"

static char dumped[1 << 20];
static conc_task target;

static void dump(void)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    CHECK(out != NULL);
    conc_dump(out);
    CHECK_INT(fclose(out), 0);
    CHECK(size < sizeof dumped);
    memcpy(dumped, text, size);
    dumped[size] = 0;
    free(text);
}

/* Returns the column of the first occurrence of a name, which must exist. */
static long column_of(const char *name)
{
    const char *at = strstr(dumped, name);
    CHECK_CONTAINS(dumped, name);
    long column = 0;
    while (at > dumped && at[-1] != '\n')
        at--, column++;
    return column;
}

static void check_before(const char *first, const char *second)
{
    CHECK_CONTAINS(dumped, first);
    CHECK_CONTAINS(dumped, second);
    CHECK(strstr(dumped, first) < strstr(dumped, second));
}

static void check_place(int line)
{
    char place[512];
    snprintf(place, sizeof place, "%s:%d", TEST_FILE, line);
    CHECK_CONTAINS(dumped, place);
}

static int mentions(const char *name)
{
    int n = 0;
    for (const char *p = dumped; (p = strstr(p, name)); p++)
        n++;
    return n;
}

static int zeta(void *seconds) { return conc_sleep(*(double *)seconds); }

static int omega(void *name)
{
    conc_set_name(conc_self(), name);
    return conc_sleep(CONC_FOREVER);
}

static int kappa(void *task) { return conc_join(task, NULL); }

static int theta(void *arg)
{
    (void)arg;
    dump();
    return 0;
}

static int lambda(void *arg)
{
    (void)arg;
    return 0;
}

TASK_TEST(tasks_are_listed_with_their_function_and_spawn_location)
{
    double ten = 10;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, zeta, &ten), 0);
    int line = __LINE__ - 1;
    CHECK_INT(conc_spawn(&g, lambda, NULL), 0);
    dump();
    CHECK_CONTAINS(dumped, "zeta");
    CHECK_CONTAINS(dumped, "lambda");
    check_place(line);
    check_place(line + 2);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(names_that_were_given_are_shown)
{
    conc_group g = {0};
    conc_set_name(conc_self(), "captain");
    CHECK_INT(conc_spawn(&g, omega, "first mate"), 0);
    CHECK_INT(conc_settle(), 0);
    dump();
    CHECK_CONTAINS(dumped, "captain");
    CHECK_CONTAINS(dumped, "first mate");
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(the_dump_says_that_a_task_sleeps)
{
    double ten = 10;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, zeta, &ten), 0);
    dump();
    CHECK(strstr(dumped, "sleep") == NULL);
    CHECK_INT(conc_settle(), 0);
    dump();
    CHECK_CONTAINS(dumped, "sleep");
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(the_dump_says_which_task_a_task_joins)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &target, omega, "much wanted"), 0);
    CHECK_INT(conc_settle(), 0);
    dump();
    int alone = mentions("much wanted");
    CHECK_INT(conc_spawn(&g, kappa, &target), 0);
    CHECK_INT(conc_settle(), 0);
    dump();
    CHECK_CONTAINS(dumped, "join");
    CHECK(mentions("much wanted") > alone);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(running_and_ready_tasks_are_distinguished)
{
    conc_group g = {0};
    conc_set_name(conc_self(), "runner");
    CHECK_INT(conc_spawn(&g, lambda, NULL), 0);
    dump();
    CHECK_CONTAINS(dumped, "running");
    CHECK_CONTAINS(dumped, "ready");
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(the_dump_says_that_a_task_waits_for_its_group)
{
    conc_group g = {0};
    conc_set_name(conc_self(), "owner");
    CHECK_INT(conc_spawn(&g, theta, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_CONTAINS(dumped, "owner");
    CHECK_CONTAINS(dumped, "theta");
    CHECK_CONTAINS(dumped, "group");
}

TASK_TEST(a_group_is_shown_with_the_location_where_it_was_opened)
{
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    int line = __LINE__ - 1;
    CHECK_INT(conc_spawn(&g, lambda, NULL), 0);
    dump();
    check_place(line);
    check_place(line + 2);
    CHECK_INT(conc_group_wait(&g), 0);
}

static int nest(void *depth)
{
    static char names[5][16];
    int d = *(int *)depth;
    snprintf(names[d], sizeof names[d], "level %d", d);
    conc_set_name(conc_self(), names[d]);
    if (d == 4) {
        dump();
        return 0;
    }
    int next = d + 1;
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, nest, &next));
    return conc_group_wait(&g);
}

TASK_TEST(nested_groups_are_nested_in_the_tree)
{
    int depth = 0;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, nest, &depth), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_before("level 0", "level 1");
    check_before("level 1", "level 2");
    check_before("level 2", "level 3");
    check_before("level 3", "level 4");
    for (int d = 0; d < 4; d++) {
        char above[16], below[16];
        snprintf(above, sizeof above, "level %d", d);
        snprintf(below, sizeof below, "level %d", d + 1);
        CHECK(column_of(above) < column_of(below));
    }
}

TASK_TEST(siblings_are_indented_alike_and_more_than_their_parent)
{
    conc_group g = {0};
    conc_set_name(conc_self(), "the parent");
    CHECK_INT(conc_spawn(&g, omega, "child one"), 0);
    CHECK_INT(conc_spawn(&g, omega, "child two"), 0);
    CHECK_INT(conc_settle(), 0);
    dump();
    CHECK_INT(column_of("child one"), column_of("child two"));
    CHECK(column_of("the parent") < column_of("child one"));
    check_before("the parent", "child one");
    check_before("the parent", "child two");
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(two_open_groups_of_one_task_are_both_shown)
{
    conc_group outer = {0}, inner = {0};
    CHECK_INT(conc_spawn(&outer, omega, "in the outer"), 0);
    CHECK_INT(conc_spawn(&inner, omega, "in the inner"), 0);
    CHECK_INT(conc_settle(), 0);
    dump();
    CHECK_INT(mentions("in the outer"), 1);
    CHECK_INT(mentions("in the inner"), 1);
    conc_group_cancel(&outer);
    CHECK_INT(conc_group_wait(&inner), -ECANCELED);
    CHECK_INT(conc_group_wait(&outer), 0);
}

TASK_TEST(background_tasks_are_shown)
{
    CHECK_INT(conc_spawn(NULL, omega, "in the background"), 0);
    CHECK_INT(conc_settle(), 0);
    dump();
    CHECK_CONTAINS(dumped, "in the background");
}

TASK_TEST(ended_tasks_are_not_listed)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, lambda, NULL), 0);
    CHECK_INT(conc_spawn(&g, omega, "still there"), 0);
    CHECK_INT(conc_settle(), 0);
    dump();
    CHECK(strstr(dumped, "lambda") == NULL);
    CHECK_CONTAINS(dumped, "still there");
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
}

static void dump_posted(void *arg)
{
    (void)arg;
    dump();
}

TASK_TEST(a_posted_function_may_dump)
{
    conc_set_name(conc_self(), "the sleeper");
    CHECK_INT(conc_post(conc_loop_self(), dump_posted, NULL), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_CONTAINS(dumped, "the sleeper");
    CHECK_CONTAINS(dumped, "sleep");
}

static int spawn_one_too_many(void *group) { return conc_spawn(group, lambda, NULL); }

static int never_say(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int start_one(void *name)
{
    conc_group g = {0};
    conc_set_name(conc_self(), name);
    return conc_group_end(&g, conc_start(&g, never_say, NULL));
}

TASK_TEST(waits_for_a_start_and_for_room_are_shown_with_their_tasks)
{
    conc_group full = {.limit = 1}, g = {0};
    CHECK_INT(conc_spawn(&full, omega, "the only one"), 0);
    CHECK_INT(conc_spawn(&g, spawn_one_too_many, &full), 0);
    CHECK_INT(conc_spawn(&g, start_one, "the starter"), 0);
    CHECK_INT(conc_settle(), 0);
    dump();
    CHECK_CONTAINS(dumped, "spawn_one_too_many");
    CHECK_CONTAINS(dumped, "the starter");
    CHECK_CONTAINS(dumped, "never_say");
    conc_group_cancel(&full);
    CHECK_INT(conc_group_wait(&g), -ECANCELED);
    CHECK_INT(conc_group_wait(&full), 0);
}

TASK_TEST(a_dump_changes_nothing_and_is_no_checkpoint)
{
    conc_stats before, after;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, lambda, NULL), 0);
    conc_get_stats(&before);
    dump();
    char *first = malloc(strlen(dumped) + 1);
    CHECK(first != NULL);
    memcpy(first, dumped, strlen(dumped) + 1);
    dump();
    CHECK_STR(dumped, first);
    conc_get_stats(&after);
    CHECK_INT(after.tasks, before.tasks);
    CHECK_INT(after.switches, before.switches);
    CHECK_INT(after.passes, before.passes);
    free(first);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_task_that_yields_alone_is_switched_to_once_each_time)
{
    conc_stats before, after;
    conc_get_stats(&before);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_yield(), 0);
    conc_get_stats(&after);
    CHECK_INT(after.switches - before.switches, 1000);
}

TASK_TEST(a_dump_of_a_thousand_tasks_lists_every_one)
{
    static char names[1000][16];
    conc_group g = {0};
    for (int i = 0; i < 1000; i++) {
        snprintf(names[i], sizeof names[i], "<task %d>", i);
        CHECK_INT(conc_spawn(&g, omega, names[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
    dump();
    for (int i = 0; i < 1000; i++)
        CHECK_INT(mentions(names[i]), 1);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
}

TEST(a_dump_outside_a_run_is_harmless)
{
    dump();
    CHECK(strstr(dumped, TEST_FILE) == NULL);
}

static int dump_at_the_end(void *arg)
{
    intptr_t depth = (intptr_t)arg;
    conc_group g = {0};
    if (depth == 0) {
        dump();
        return 0;
    }
    CHECK_INT(conc_spawn(&g, dump_at_the_end, (void *)(depth - 1)), 0);
    return conc_group_wait(&g);
}

TASK_TEST(the_dump_of_a_deep_chain_is_linear_in_bytes)
{
    CHECK_INT(dump_at_the_end((void *)(intptr_t)100), 0);
    size_t few = strlen(dumped);
    CHECK_INT(dump_at_the_end((void *)(intptr_t)1000), 0);
    CHECK(strlen(dumped) > few * 5 && strlen(dumped) < few * 12);
}
