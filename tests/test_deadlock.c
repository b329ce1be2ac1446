/* test_deadlock.c - every task waits forever: the report, -EDEADLK, and how everything unwinds. */
#include "conc_test.h"

static char report[65536];
static conc_task one, two, three;
static conc_group shared;
static int seen[8];

static conc_options on_virtual_clock(void) { return (conc_options){.virtual_clock = true}; }

static void run_into_deadlock(conc_fn *fn, void *arg)
{
    conc_options o = on_virtual_clock();
    CHECK_INT(conc_run_with(&o, fn, arg), -EDEADLK);
}

/* Runs fn in its own process, where it must succeed; stores its stderr in report. */
static void check_process(void (*fn)(void))
{
    int status = test_in_process(fn, report, sizeof report);
    if (status != 0)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, report);
}

/* Quiet: the test is not about the deadlock's report. */
static void check_deadlock(conc_fn *fn)
{
    int err = dup(2), null = open("/dev/null", O_WRONLY);
    CHECK(err >= 0 && null >= 0);
    dup2(null, 2);
    conc_options o = on_virtual_clock();
    int rc = conc_run_with(&o, fn, NULL);
    dup2(err, 2);
    close(err);
    close(null);
    CHECK_INT(rc, -EDEADLK);
}

static void check_nothing_reported(void)
{
    CHECK(strstr(report, TEST_FILE) == NULL && strstr(report, "eadlock") == NULL);
}

static void check_reported(const char *name, int line)
{
    char place[512];
    snprintf(place, sizeof place, "%s:%d", TEST_FILE, line);
    CHECK_CONTAINS(report, name);
    CHECK_CONTAINS(report, place);
}

static int forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int for_a_second(void *arg)
{
    (void)arg;
    return conc_sleep(1);
}

static int alpha(void *target) { return seen[0] = conc_join(target, NULL); }
static int beta(void *target) { return seen[1] = conc_join(target, NULL); }
static int gamma_(void *target) { return seen[2] = conc_join(target, NULL); }

static int line_of_alpha, line_of_beta;

static int main_of_cycle(void *arg)
{
    (void)arg;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &one, alpha, &two), 0), line_of_alpha = __LINE__;
    CHECK_INT(conc_spawn_task(&g, &two, beta, &one), 0), line_of_beta = __LINE__;
    int rc = conc_group_wait(&g);
    CHECK_INT(seen[0], -ECANCELED);
    CHECK_INT(seen[1], -ECANCELED);
    fprintf(stderr, "lines %d %d\n", line_of_alpha, line_of_beta);
    return rc;
}

static void cycle(void) { run_into_deadlock(main_of_cycle, NULL); }

TEST(two_tasks_that_join_each_other_are_reported_with_names_waits_and_locations)
{
    int a = 0, b = 0;
    check_process(cycle);
    const char *lines = strstr(report, "lines ");
    CHECK(lines && sscanf(lines, "lines %d %d", &a, &b) == 2);
    check_reported("alpha", a);
    check_reported("beta", b);
    CHECK_CONTAINS(report, "join");
    CHECK_CONTAINS(report, "group");
}

static int main_of_ring(void *arg)
{
    (void)arg;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &one, alpha, &two), 0);
    CHECK_INT(conc_spawn_task(&g, &two, beta, &three), 0);
    CHECK_INT(conc_spawn_task(&g, &three, gamma_, &one), 0);
    return conc_group_wait(&g);
}

static void ring(void) { run_into_deadlock(main_of_ring, NULL); }

TEST(a_ring_of_three_joins_is_reported)
{
    check_process(ring);
    CHECK_CONTAINS(report, "alpha");
    CHECK_CONTAINS(report, "beta");
    CHECK_CONTAINS(report, "gamma_");
}

static void sleep_alone(void) { run_into_deadlock(forever, NULL); }

TEST(an_endless_sleep_alone_is_a_deadlock)
{
    check_process(sleep_alone);
    CHECK_CONTAINS(report, "sleep");
}

static void sleep_alone_in_real_time(void)
{
    unsetenv("CONC_CLOCK");
    double start = test_real_seconds();
    CHECK_INT(conc_run(forever, NULL), -EDEADLK);
    CHECK(test_real_seconds() - start < 5);
}

TEST(a_deadlock_is_found_on_the_real_clock_too)
{
    check_process(sleep_alone_in_real_time);
    CHECK_CONTAINS(report, "sleep");
}

static int named(void *arg)
{
    conc_set_name(conc_self(), arg);
    return conc_sleep(CONC_FOREVER);
}

static int main_of_named(void *arg)
{
    (void)arg;
    conc_group g = {0};
    conc_set_name(conc_self(), "the first of all");
    CHECK_INT(conc_spawn(&g, named, "the philosopher"), 0);
    CHECK_INT(conc_spawn(NULL, named, "the barber"), 0);
    return conc_group_wait(&g);
}

static void names(void) { run_into_deadlock(main_of_named, NULL); }

TEST(the_report_uses_the_names_that_tasks_were_given)
{
    check_process(names);
    CHECK_CONTAINS(report, "the first of all");
    CHECK_CONTAINS(report, "the philosopher");
    CHECK_CONTAINS(report, "the barber");
}

static int returns_success(void *arg)
{
    (void)arg;
    seen[0] = conc_sleep(CONC_FOREVER);
    return 5;
}

TEST(a_deadlocked_run_returns_edeadlk_whatever_main_returns)
{
    check_deadlock(returns_success);
    CHECK_INT(seen[0], -ECANCELED);
}

static int through_shields(void *arg)
{
    int depth = *(int *)arg - 1;
    if (depth > 0)
        return conc_shield(CONC_FOREVER, through_shields, &depth);
    seen[0]++;
    seen[1] = conc_sleep(CONC_FOREVER);
    seen[2] = conc_shield(CONC_FOREVER, forever, NULL);
    seen[3] = conc_shield(10, for_a_second, NULL);
    seen[4] = conc_yield();
    seen[5] = conc_cancelled();
    return seen[1];
}

static int main_with_shields(void *arg)
{
    int depth = 4;
    conc_group g = {0};
    (void)arg;
    CHECK_INT(conc_spawn(&g, through_shields, &depth), 0);
    int rc = conc_group_wait(&g);
    CHECK_TIME(0);
    return rc;
}

TEST(a_deadlock_unwinds_even_through_shields)
{
    check_deadlock(main_with_shields);
    CHECK_INT(seen[0], 1);
    for (int i = 1; i < 5; i++)
        CHECK_INT(seen[i], -ECANCELED);
    CHECK_INT(seen[5], true);
}

static int shielded(void *arg) { return seen[0] = conc_shield(CONC_FOREVER, forever, arg); }

static int main_shielded_in_a_cancelled_scope(void *arg)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    return conc_scope_end(&s, shielded(arg));
}

static int main_that_leaves_a_shielded_task(void *arg)
{
    CHECK_INT(conc_spawn(NULL, shielded, arg), 0);
    return conc_yield();
}

static int main_of_a_cancelled_group_with_a_shield(void *arg)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, shielded, arg), 0);
    CHECK_INT(conc_yield(), 0);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

TEST(a_deadlock_unwinds_through_a_shield_in_a_cancelled_scope)
{
    conc_fn *mains[] = {main_shielded_in_a_cancelled_scope, main_that_leaves_a_shielded_task,
                        main_of_a_cancelled_group_with_a_shield};
    for (size_t i = 0; i < CONC_LEN(mains); i++) {
        seen[0] = 0;
        check_deadlock(mains[i]);
        CHECK_INT(seen[0], -ECANCELED);
    }
}

static int count_cleaned(void *arg)
{
    int rc = conc_sleep(CONC_FOREVER);
    (void)arg;
    CHECK_INT(rc, -ECANCELED);
    CHECK_INT(conc_sleep(1), -ECANCELED);
    seen[0]++;
    return rc;
}

static int main_of_a_thousand(void *arg)
{
    (void)arg;
    conc_group g = {0}, inner = {0};
    for (int i = 0; i < 500; i++)
        CHECK_INT(conc_spawn(&g, count_cleaned, NULL), 0);
    for (int i = 0; i < 500; i++)
        CHECK_INT(conc_spawn(&inner, count_cleaned, NULL), 0);
    return conc_group_end(&g, conc_group_end(&inner, conc_sleep(CONC_FOREVER)));
}

TEST(a_thousand_tasks_in_a_deadlock_all_clean_up)
{
    int fds = test_count_fds();
    check_deadlock(main_of_a_thousand);
    CHECK_INT(seen[0], 1000);
    CHECK_INT(test_count_fds(), fds);
}

static int spawns_afterwards(void *arg)
{
    (void)arg;
    conc_group g = {0};
    CHECK_INT(conc_group_begin(&g), 0);
    seen[0] = conc_sleep(CONC_FOREVER);
    seen[1] = conc_spawn(&g, forever, NULL);
    seen[2] = conc_spawn(NULL, forever, NULL);
    return conc_group_end(&g, -ECANCELED);
}

TEST(after_a_deadlock_nothing_new_is_started)
{
    check_deadlock(spawns_afterwards);
    for (int i = 0; i < 3; i++)
        CHECK_INT(seen[i], -ECANCELED);
}

static int spawn_into_full_group(void *arg)
{
    int rc = conc_spawn(&shared, forever, arg);
    seen[0] = rc;
    return rc;
}

static int main_of_full_group(void *arg)
{
    (void)arg;
    shared.limit = 1;
    CHECK_INT(conc_spawn(&shared, spawn_into_full_group, NULL), 0);
    return conc_group_wait(&shared);
}

TEST(a_child_that_waits_for_room_in_its_own_full_group_is_a_deadlock)
{
    check_deadlock(main_of_full_group);
    CHECK_INT(seen[0], -ECANCELED);
}

static int main_of_silent_start(void *arg)
{
    (void)arg;
    conc_group g = {0};
    seen[0] = conc_start(&g, forever, NULL);
    return conc_group_end(&g, seen[0]);
}

TEST(a_start_that_is_never_answered_is_a_deadlock)
{
    check_deadlock(main_of_silent_start);
    CHECK_INT(seen[0], -ECANCELED);
}

static int emit_never(conc_gen *g, void *arg)
{
    (void)g, (void)arg;
    return seen[0] = conc_sleep(CONC_FOREVER);
}

static int main_of_generator(void *arg)
{
    int item;
    (void)arg;
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, emit_never, NULL, sizeof item));
    return seen[1] = conc_gen_next(&g, &item);
}

TEST(a_generator_that_waits_forever_is_a_deadlock)
{
    check_deadlock(main_of_generator);
    CHECK_INT(seen[0], -ECANCELED);
    CHECK_INT(seen[1], -ECANCELED);
}

static int add_up(void *arg)
{
    CONC_TRY(conc_sleep(3));
    return ++*(int *)arg;
}

TEST(after_a_deadlock_the_next_run_is_unaffected)
{
    int n = 0;
    conc_options o = on_virtual_clock();
    for (int i = 1; i <= 3; i++) {
        check_deadlock(forever);
        CHECK_INT(conc_run_with(&o, add_up, &n), i);
    }
}

/* ---- what is no deadlock */

static int cancel_both(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(1e6));
    CHECK_INT(conc_cancel(&one), 0);
    return 0;
}

static int main_of_rescued(void *arg)
{
    (void)arg;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &one, alpha, &two), 0);
    CHECK_INT(conc_spawn_task(&g, &two, beta, &one), 0);
    CHECK_INT(conc_spawn(&g, cancel_both, NULL), 0);
    int rc = conc_group_wait(&g);
    CHECK_INT(seen[0], -ECANCELED);
    CHECK_INT(seen[1], 0);
    return rc;
}

static void rescued(void)
{
    conc_options o = on_virtual_clock();
    CHECK_INT(conc_run_with(&o, main_of_rescued, NULL), 0);
}

TEST(while_a_timer_is_armed_nothing_is_a_deadlock)
{
    check_process(rescued);
    check_nothing_reported();
}

static int main_with_limit(void *arg)
{
    (void)arg;
    return conc_timeout(1e6, forever, NULL) == -ETIMEDOUT ? 0 : -EIO;
}

static void limited(void)
{
    conc_options o = on_virtual_clock();
    CHECK_INT(conc_run_with(&o, main_with_limit, NULL), 0);
}

TEST(an_endless_sleep_under_a_time_limit_is_no_deadlock)
{
    check_process(limited);
    check_nothing_reported();
}

static int leave_background_behind(void *arg)
{
    (void)arg;
    for (int i = 0; i < 10; i++)
        CHECK_INT(conc_spawn(NULL, count_cleaned, NULL), 0);
    CHECK_INT(conc_sleep(1), 0);
    return 4;
}

static void background(void)
{
    conc_options o = on_virtual_clock();
    CHECK_INT(conc_run_with(&o, leave_background_behind, NULL), 4);
    CHECK_INT(seen[0], 10);
}

TEST(background_tasks_that_wait_forever_when_main_returns_are_no_deadlock)
{
    check_process(background);
    check_nothing_reported();
}

static int main_that_settles(void *arg)
{
    (void)arg;
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &one, alpha, &two), 0);
    CHECK_INT(conc_spawn_task(&g, &two, beta, &one), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_settle(), 0);
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static void settled(void)
{
    conc_options o = on_virtual_clock();
    CHECK_INT(conc_run_with(&o, main_that_settles, NULL), 0);
}

TEST(a_settle_while_all_others_wait_forever_is_no_deadlock)
{
    check_process(settled);
    check_nothing_reported();
}

static int main_joins_itself(void *arg)
{
    (void)arg;
    CHECK_INT(conc_join(conc_self(), NULL), -EDEADLK);
    return conc_sleep(1);
}

TEST(a_task_joining_itself_is_refused_and_no_deadlock)
{
    conc_options o = on_virtual_clock();
    CHECK_INT(conc_run_with(&o, main_joins_itself, NULL), 0);
}
