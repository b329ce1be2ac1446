/* test_static_variables.c - a task sees what another task wrote after every kind of wait, even
 * if the compiler knows that no function on the way to the switch writes it: a static variable
 * whose address is never taken must not stay in a register. */
#include "conc_test.h"

static int written; /* only accessed by name */

static int write_it(void *arg)
{
    (void)arg;
    written++;
    return 0;
}

static int write_and_start(void *arg)
{
    (void)arg;
    written++;
    return conc_started(0);
}

static int write_later(void *arg)
{
    CONC_TRY(conc_sleep(1));
    return write_it(arg);
}

static void write_in_a_post(void *arg)
{
    (void)arg;
    written++;
}

static void write_on_error(const conc_failure *f, void *user)
{
    (void)f;
    (void)user;
    written++;
}

/* written is 0 before the statement and 1 after it; the compiler must not know */
#define CHECK_WRITTEN(statement) \
    do {                         \
        written = 0;             \
        statement;               \
        CHECK_INT(written, 1);   \
    } while (0)

static conc_group g;

static void spawn(conc_fn *fn) { CHECK_INT(conc_spawn(&g, fn, NULL), 0); }

ORDERED_TASK_TEST(a_yield_shows_what_others_wrote)
{
    spawn(write_it);
    CHECK_WRITTEN(CHECK_INT(conc_yield(), 0));
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_sleep_shows_what_others_wrote)
{
    spawn(write_it);
    CHECK_WRITTEN(CHECK_INT(conc_sleep(1), 0));
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_settle_shows_what_others_wrote)
{
    spawn(write_it);
    CHECK_WRITTEN(CHECK_INT(conc_settle(), 0));
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_join_shows_what_others_wrote)
{
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, write_it, NULL), 0);
    CHECK_WRITTEN(CHECK_INT(conc_join(&t, NULL), 0));
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_group_wait_shows_what_others_wrote)
{
    spawn(write_later);
    CHECK_WRITTEN(CHECK_INT(conc_group_wait(&g), 0));
}

TASK_TEST(a_start_shows_what_others_wrote)
{
    CHECK_WRITTEN(CHECK_INT(conc_start(&g, write_and_start, NULL), 0));
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_gather_shows_what_others_wrote)
{
    CHECK_WRITTEN(CHECK_INT(CONC_GATHER(CONC_CALL(write_it, NULL)), 0));
}

TASK_TEST(a_group_next_shows_what_others_wrote)
{
    conc_task t = {0}, *next;
    CHECK_INT(conc_spawn_task(&g, &t, write_later, NULL), 0);
    CHECK_WRITTEN(CHECK_INT(conc_group_next(&g, &next), 1));
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_spawn_that_waits_for_room_shows_what_others_wrote)
{
    g.limit = 1;
    spawn(write_later);
    CHECK_WRITTEN(spawn(write_later));
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_refused_checkpoint_shows_what_others_wrote)
{
    conc_scope s = {0};
    spawn(write_it);
    CHECK_INT(conc_scope_begin(&s, 0), 0);
    CHECK_WRITTEN(while (!written) CHECK_INT(conc_sleep(1), -ECANCELED));
    CHECK_INT(conc_scope_end(&s, 0), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_posted_function_s_writes_are_seen)
{
    CHECK_INT(conc_post(conc_loop_self(), write_in_a_post, NULL), 0);
    CHECK_WRITTEN(CHECK_INT(conc_yield(), 0));
}

static int write_and_emit(conc_gen *gen, void *arg)
{
    int mine = written; /* it is 0 */
    write_it(arg);
    CONC_TRY(conc_gen_emit(gen, NULL));
    return mine == 0 && written == 7 ? 0 : -EIO;
}

TASK_TEST(a_generator_and_its_consumer_see_each_other_s_writes)
{
    conc_gen gen = {0};
    CHECK_INT(conc_gen_open(&gen, write_and_emit, NULL, 0), 0);
    CHECK_WRITTEN(CHECK_INT(conc_gen_next(&gen, NULL), 1));
    written = 7;
    CHECK_INT(conc_gen_next(&gen, NULL), 0);
    CHECK_INT(conc_gen_close(&gen), 0);
}

static int fails(void *arg)
{
    (void)arg;
    return -EIO;
}

static int collect_nothing(void *arg)
{
    (void)arg;
    CHECK_INT(conc_spawn(NULL, fails, NULL), 0);
    return conc_settle();
}

TEST(a_run_shows_what_its_tasks_wrote)
{
    conc_options o = {.virtual_clock = true, .on_error = write_on_error};
    CHECK_WRITTEN(CHECK_INT(conc_run_with(&o, write_it, NULL), 0));
    CHECK_WRITTEN(CHECK_INT(conc_run_with(&o, collect_nothing, NULL), 0));
}
