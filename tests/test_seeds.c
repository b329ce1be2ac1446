/* test_seeds.c - a random order of ready tasks that a seed reproduces, and the virtual clock,
 * which reproduces everything. Each test sets its own seeds, so CONC_SEED is removed from the
 * environment.
 */
#include "conc_test.h"

enum { TASKS = 12, TURNS = 4 };

/* The order of events, as letters. */
typedef struct record {
    char order[4096];
    size_t length;
    double numbers[8];
} record;

static record *recording;

static void log_letter(int letter)
{
    if (recording->length + 1 < sizeof recording->order)
        recording->order[recording->length++] = (char)letter;
}

static int yield_and_log(void *arg)
{
    int letter = *(char *)arg;
    for (int i = 0; i < TURNS; i++) {
        log_letter(letter);
        CONC_TRY(conc_yield());
    }
    return 0;
}

static int log_order(void *arg)
{
    char letters[TASKS];
    conc_group g = {0};
    (void)arg;
    for (int i = 0; i < TASKS; i++) {
        letters[i] = (char)('a' + i);
        CONC_TRY_IN(&g, conc_spawn(&g, yield_and_log, &letters[i]));
    }
    return conc_group_wait(&g);
}

static void run_seeded(uint64_t seed, conc_fn *fn, record *r)
{
    conc_options o = {.virtual_clock = true, .seed = seed};
    unsetenv("CONC_SEED");
    memset(r, 0, sizeof *r);
    recording = r;
    CHECK_INT(conc_run_with(&o, fn, NULL), 0);
}

static record first, second;

TEST(without_a_seed_ready_tasks_run_in_the_order_in_which_they_became_ready)
{
    run_seeded(0, log_order, &first);
    CHECK_STR(first.order, "abcdefghijklabcdefghijklabcdefghijklabcdefghijkl");
}

TEST(one_seed_gives_one_order)
{
    for (uint64_t seed = 1; seed <= 50; seed++) {
        run_seeded(seed, log_order, &first);
        run_seeded(seed, log_order, &second);
        CHECK_STR(first.order, second.order);
    }
}

TEST(different_seeds_give_different_orders)
{
    static record records[40];
    for (uint64_t i = 0; i < 40; i++) {
        run_seeded(i, log_order, &records[i]);
        for (uint64_t k = 0; k < i; k++)
            CHECK(strcmp(records[i].order, records[k].order) != 0);
    }
}

TEST(under_any_seed_each_task_has_all_its_turns)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        run_seeded(seed * 0x123456789abcdefu, log_order, &first);
        CHECK_INT(strlen(first.order), TASKS * TURNS);
        for (int letter = 'a'; letter < 'a' + TASKS; letter++) {
            int turns = 0;
            for (const char *p = first.order; (p = strchr(p, letter)); p++)
                turns++;
            CHECK_INT(turns, TURNS);
        }
    }
}

TEST(every_task_comes_first_and_last_under_some_seed)
{
    bool came_first[TASKS] = {false}, came_last[TASKS] = {false};
    for (uint64_t seed = 1; seed <= 400; seed++) {
        run_seeded(seed, log_order, &first);
        came_first[first.order[0] - 'a'] = true;
        came_last[first.order[TASKS * TURNS - 1] - 'a'] = true;
    }
    for (int i = 0; i < TASKS; i++)
        CHECK(came_first[i] && came_last[i]);
}

static void run_in_environment(const char *seed, uint64_t option, record *r)
{
    conc_options o = {.virtual_clock = true, .seed = option};
    setenv("CONC_SEED", seed, 1);
    memset(r, 0, sizeof *r);
    recording = r;
    CHECK_INT(conc_run_with(&o, log_order, NULL), 0);
}

TEST(the_seed_in_the_environment_overrides_the_option)
{
    run_seeded(7, log_order, &first);
    run_in_environment("7", 0, &second);
    CHECK_STR(second.order, first.order);
    run_in_environment("7", 99, &second);
    CHECK_STR(second.order, first.order);
    run_in_environment("8", 7, &second);
    CHECK(strcmp(second.order, first.order) != 0);
}

static int log_timer(void *arg)
{
    int letter = *(char *)arg;
    CONC_TRY(conc_sleep((letter - 'a') % 3 + 1));
    log_letter(letter);
    return 0;
}

static int log_timers(void *arg)
{
    char letters[TASKS];
    conc_group g = {0};
    (void)arg;
    for (int i = 0; i < TASKS; i++) {
        letters[i] = (char)('a' + i);
        CONC_TRY_IN(&g, conc_spawn(&g, log_timer, &letters[i]));
    }
    int rc = conc_group_wait(&g);
    CHECK_TIME(3);
    return rc;
}

TEST(no_seed_changes_the_order_of_time)
{
    for (uint64_t seed = 0; seed < 50; seed++) {
        run_seeded(seed, log_timers, &first);
        CHECK_INT(first.length, TASKS);
        for (int i = 0; i < TASKS; i++)
            CHECK_INT((first.order[i] - 'a') % 3, i / (TASKS / 3));
    }
}

static int take_posted(void *arg)
{
    (void)arg;
    return conc_settle();
}

static void log_posted(void *letter) { log_letter(*(char *)letter); }

static int log_posts(void *arg)
{
    static char letters[TASKS];
    for (int i = 0; i < TASKS; i++) {
        letters[i] = (char)('a' + i);
        CONC_TRY(conc_post(conc_loop_self(), log_posted, &letters[i]));
    }
    return take_posted(arg);
}

TEST(no_seed_changes_the_order_of_posts)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        run_seeded(seed, log_posts, &first);
        CHECK_STR(first.order, "abcdefghijkl");
    }
}

/* A few of all kinds of calls, with random sleeps and results. */
static int wander(void *arg)
{
    int letter = *(char *)arg;
    for (int i = 0; i < TURNS; i++) {
        log_letter(letter);
        int rc = conc_sleep(conc_random(0, 2));
        if (rc < 0)
            return rc;
        log_letter(letter);
        CONC_TRY(conc_yield());
    }
    return 0;
}

static int wander_in_time(void *arg)
{
    char letters[TASKS];
    conc_group g = {0};
    conc_scope s = {0};
    (void)arg;
    CONC_TRY(conc_scope_begin(&s, 5));
    for (int i = 0; i < TASKS; i++) {
        letters[i] = (char)('a' + i);
        CHECK_INT(conc_spawn(&g, wander, &letters[i]), 0);
    }
    int rc = conc_scope_end(&s, conc_group_wait(&g));
    CHECK(rc == 0 || rc == -ETIMEDOUT);
    for (int i = 0; i < 7; i++)
        recording->numbers[i] = conc_random(0, 1000);
    recording->numbers[7] = conc_now();
    return 0;
}

static void check_same(void)
{
    CHECK_STR(first.order, second.order);
    for (int i = 0; i < 8; i++)
        CHECK(first.numbers[i] == second.numbers[i]);
}

TEST(under_a_seed_a_program_with_random_times_repeats_itself)
{
    for (uint64_t seed = 1; seed <= 30; seed++) {
        run_seeded(seed, wander_in_time, &first);
        run_seeded(seed, wander_in_time, &second);
        check_same();
    }
}

TEST(on_the_virtual_clock_a_program_repeats_itself_without_a_seed)
{
    run_seeded(0, wander_in_time, &first);
    run_seeded(0, wander_in_time, &second);
    check_same();
}

static int draw(void *arg)
{
    double *numbers = arg;
    for (int i = 0; i < 100; i++) {
        numbers[i] = conc_random(-3, 5);
        CHECK(numbers[i] >= -3 && numbers[i] < 5);
    }
    CHECK(conc_random(2, 2) == 2);
    CHECK(conc_random(2, 1) == 2);
    return 0;
}

static void run_draw(uint64_t seed, bool virtual_clock, double *numbers)
{
    conc_options o = {.virtual_clock = virtual_clock, .seed = seed};
    unsetenv("CONC_SEED");
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run_with(&o, draw, numbers), 0);
}

TEST(random_numbers_repeat_under_a_seed_and_on_the_virtual_clock)
{
    double a[100], b[100];
    run_draw(5, false, a);
    run_draw(5, false, b);
    CHECK(memcmp(a, b, sizeof a) == 0);
    run_draw(6, false, b);
    CHECK(memcmp(a, b, sizeof a) != 0);
    run_draw(0, true, a);
    run_draw(0, true, b);
    CHECK(memcmp(a, b, sizeof a) == 0);
}

TEST(random_numbers_spread_over_their_range)
{
    double numbers[100];
    int low = 0;
    run_draw(3, true, numbers);
    for (int i = 0; i < 100; i++)
        low += numbers[i] < 1;
    CHECK(low > 20 && low < 80);
}

static int sleep_long(void *arg)
{
    (void)arg;
    for (int i = 1; i <= 1000; i++) {
        CONC_TRY(conc_sleep(100));
        CHECK_TIME(100.0 * i);
    }
    return 0;
}

TEST(a_hundred_thousand_virtual_seconds_take_no_time)
{
    double start = test_real_seconds();
    run_seeded(0, sleep_long, &first);
    run_seeded(9, sleep_long, &first);
    CHECK(test_real_seconds() - start < 5);
}

static int spawn_in_order(void *arg)
{
    char letters[TASKS];
    conc_task t[TASKS], *next;
    conc_group g = {0};
    (void)arg;
    memset(t, 0, sizeof t);
    for (int i = 0; i < TASKS; i++) {
        letters[i] = (char)('a' + i);
        CONC_TRY_IN(&g, conc_spawn_task(&g, &t[i], wander, &letters[i]));
    }
    while (CONC_TRY_IN(&g, conc_group_next(&g, &next)) == 1)
        log_letter('A' + (int)(next - t));
    return conc_group_wait(&g);
}

TEST(the_order_in_which_children_finish_repeats_too)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        run_seeded(seed, spawn_in_order, &first);
        run_seeded(seed, spawn_in_order, &second);
        check_same();
        CHECK_INT(first.length, TASKS * (TURNS * 2 + 1));
    }
}

TASK_TEST(a_random_number_is_between_its_bounds)
{
    int high = 0;
    for (int i = 0; i < 1000; i++) {
        double x = conc_random(-1.7e308, 1.7e308), y = conc_random(5, 5), z = conc_random(1, 2);
        CHECK(x >= -1.7e308 && x < 1.7e308 && y == 5 && z >= 1 && z < 2);
        high += x > 0;
    }
    CHECK(high > 400 && high < 600);
}
