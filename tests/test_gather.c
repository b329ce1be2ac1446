/* Gather and map: all calls run at once, each result is stored in its place, and no call is left
 * running. */
#include "conc_test.h"

#include <limits.h>

typedef struct work {
    double seconds, cleanup;
    int rc, cut_rc;
    int slept;
    double ended;
} work;

static int sleeps(void *arg) { return conc_sleep(*(double *)arg); }

static int works(void *arg)
{
    work *w = arg;
    w->slept = conc_sleep(w->seconds);
    if (w->slept < 0 && w->cleanup > 0)
        conc_shield(CONC_FOREVER, sleeps, &w->cleanup);
    w->ended = conc_now();
    if (w->slept < 0)
        return w->cut_rc ? w->cut_rc : w->slept;
    return w->rc;
}

static int counts(void *arg)
{
    ++*(int *)arg;
    return 0;
}

static int doubles(void *arg)
{
    int *value = arg;
    CONC_TRY(conc_sleep(1));
    return *value *= 2;
}

/* ---- gather ---- */

TASK_TEST(results_are_in_the_order_of_the_calls)
{
    work w[] = {{.seconds = 3, .rc = 30}, {.seconds = 1, .rc = 10}, {.seconds = 2, .rc = 20}};
    conc_call calls[] = {CONC_CALL(works, &w[0]), CONC_CALL(works, &w[1]), CONC_CALL(works, &w[2])};
    CHECK_INT(conc_gather(calls, CONC_LEN(calls)), 0);
    CHECK_TIME(3); /* all at once */
    CHECK_INT(calls[0].result, 30);
    CHECK_INT(calls[1].result, 10);
    CHECK_INT(calls[2].result, 20);
    CHECK_INT(conc_gather_all(calls, CONC_LEN(calls)), 0);
    CHECK_TIME(6);
    CHECK_INT(calls[0].result, 30);
    CHECK_STR(calls[0].text, "");
}

TASK_TEST(an_empty_gather_is_done_at_once)
{
    int counted = 0, results[1] = {7};
    conc_call calls[] = {CONC_CALL(counts, &counted)};
    CHECK_INT(conc_gather(calls, 0), 0);
    CHECK_INT(conc_gather(NULL, 0), 0);
    CHECK_INT(conc_gather_all(calls, 0), 0);
    CHECK_INT(conc_map(counts, &counted, 0, sizeof counted), 0);
    CHECK_INT(conc_map_all(counts, &counted, 0, sizeof counted, results), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(counted, 0);
    CHECK_INT(results[0], 7);
}

static void gather_nothing(int expected)
{
    CHECK_INT(conc_gather(NULL, 0), expected);
    CHECK_INT(conc_gather_all(NULL, 0), expected);
    CHECK_INT(conc_map(counts, NULL, 0, sizeof(int)), expected);
    CHECK_INT(conc_map_all(counts, NULL, 0, sizeof(int), NULL), expected);
}

TASK_TEST(an_empty_gather_does_not_switch_but_is_a_checkpoint)
{
    int counted = 0;
    conc_group g = {0};
    conc_stats before, after;
    CHECK_INT(conc_spawn(&g, counts, &counted), 0);
    conc_get_stats(&before);
    gather_nothing(0);
    conc_get_stats(&after);
    CHECK_INT(after.switches, before.switches);
    CHECK_INT(after.passes, before.passes);
    CHECK_INT(counted, 0);
    conc_group_cancel(&g);
    gather_nothing(-ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(counted, 1);
}

TASK_TEST(the_same_call_twice_runs_twice)
{
    int counted = 0;
    conc_call calls[] = {CONC_CALL(counts, &counted), CONC_CALL(counts, &counted)};
    CHECK_INT(conc_gather(calls, 2), 0);
    CHECK_INT(counted, 2);
    CHECK_INT(conc_gather(calls, 2), 0);
    CHECK_INT(counted, 4);
}

TASK_TEST(the_first_error_cancels_the_rest_and_is_returned)
{
    work w[] = {{.seconds = 9},
                {.seconds = 9, .cleanup = 2},
                {.seconds = 1, .rc = -EIO},
                {.seconds = 9, .cleanup = 1, .cut_rc = 4},
                {.seconds = 9, .cut_rc = -EPIPE}};
    conc_call calls[CONC_LEN(w)];
    for (size_t i = 0; i < CONC_LEN(w); i++)
        calls[i] = (conc_call)CONC_CALL(works, &w[i]);
    CHECK_INT(conc_gather(calls, CONC_LEN(calls)), -EIO);
    CHECK_TIME(3); /* including clean-up */
    CHECK(w[0].ended == 1 && w[1].ended == 3 && w[3].ended == 2);
    CHECK_INT(calls[0].result, -ECANCELED);
    CHECK_INT(calls[1].result, -ECANCELED);
    CHECK_INT(calls[2].result, -EIO);
    CHECK_INT(calls[3].result, 4);
    CHECK_INT(calls[4].result, -EPIPE);
    CHECK(!conc_cancelled());
    CHECK_INT(conc_sleep(1), 0);
}

TASK_TEST(the_first_error_is_the_first_in_time)
{
    work w[] = {{.seconds = 2, .rc = -EIO}, {.seconds = 1, .rc = -EPIPE}};
    CHECK_INT(CONC_GATHER(CONC_CALL(works, &w[0]), CONC_CALL(works, &w[1])), -EPIPE);
    CHECK_TIME(1);
}

static int fails_with_words(void *arg)
{
    CONC_TRY(conc_yield());
    return conc_fail(-EPROTO, "%s", (char *)arg);
}

static int fails_without_words(void *arg)
{
    (void)arg;
    return -ENOSPC;
}

static int mends_itself(void *arg)
{
    (void)arg;
    conc_fail(-EIO, "a passing trouble");
    return 3;
}

TASK_TEST(every_call_has_its_error_text)
{
    char long_text[121];
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = 0;
    conc_call calls[] = {CONC_CALL(fails_with_words, "the milk is sour"),
                         CONC_CALL(fails_without_words, NULL), CONC_CALL(mends_itself, NULL),
                         CONC_CALL(fails_with_words, long_text)};
    for (size_t i = 0; i < CONC_LEN(calls); i++)
        strcpy(calls[i].text, "from before");
    CHECK_INT(conc_gather_all(calls, CONC_LEN(calls)), 0);
    CHECK_INT(calls[0].result, -EPROTO);
    CHECK_STR(calls[0].text, "the milk is sour");
    CHECK_STR(calls[1].text, conc_strerror(-ENOSPC));
    CHECK_INT(calls[2].result, 3);
    CHECK_STR(calls[2].text, "");
    CHECK_INT(strlen(calls[3].text), sizeof calls[3].text - 1);
    CHECK_INT(strncmp(calls[3].text, long_text, sizeof calls[3].text - 1), 0);
}

TASK_TEST(the_caller_gets_the_text_of_the_first_error)
{
    CHECK_STR(conc_last_error(), "");
    CHECK_INT(
        CONC_GATHER(CONC_CALL(fails_with_words, "sour milk"), CONC_CALL(sleeps, &(double){9})),
        -EPROTO);
    CHECK_STR(conc_last_error(), "sour milk");
    CHECK_INT(conc_map(fails_with_words, "no sugar", 1, 0), -EPROTO);
    CHECK_STR(conc_last_error(), "no sugar");
}

/* ---- gather_all ---- */

TASK_TEST(a_gather_of_all_waits_for_all_whatever_they_return)
{
    work w[] = {{.seconds = 1, .rc = -EIO}, {.seconds = 3, .rc = 8}, {.seconds = 2, .rc = -EPIPE}};
    conc_call calls[] = {CONC_CALL(works, &w[0]), CONC_CALL(works, &w[1]), CONC_CALL(works, &w[2])};
    CHECK_INT(conc_gather_all(calls, CONC_LEN(calls)), 0);
    CHECK_TIME(3);
    CHECK_INT(calls[0].result, -EIO);
    CHECK_INT(calls[1].result, 8);
    CHECK_INT(calls[2].result, -EPIPE);
    CHECK_STR(calls[1].text, "");
    CHECK_INT(conc_sleep(1), 0);
}

static conc_task *found;

static int can_be_found(void *arg)
{
    found = conc_self();
    return conc_sleep(*(double *)arg);
}

static int cancels_the_found(void *arg)
{
    CONC_TRY(conc_sleep(*(double *)arg));
    return conc_cancel(found);
}

TASK_TEST(a_gather_of_all_keeps_the_cancel_of_one_call_to_itself)
{
    work w = {.seconds = 5, .rc = 2};
    conc_call calls[] = {CONC_CALL(can_be_found, &(double){9}),
                         CONC_CALL(cancels_the_found, &(double){1}), CONC_CALL(works, &w)};
    CHECK_INT(conc_gather_all(calls, CONC_LEN(calls)), 0);
    CHECK_INT(calls[0].result, -ECANCELED);
    CHECK_INT(calls[1].result, 0);
    CHECK_INT(calls[2].result, 2);
    CHECK_TIME(5);
    CHECK(!conc_cancelled());
}

/* ---- map ---- */

TASK_TEST(a_map_hands_out_the_addresses_of_the_elements)
{
    int numbers[] = {1, 2, 3, 4, 5};
    double naps[] = {1, 4, 2};
    CHECK_INT(CONC_MAP(doubles, numbers), 0);
    CHECK_TIME(1);
    for (int i = 0; i < 5; i++)
        CHECK_INT(numbers[i], 2 * (i + 1));
    CHECK_INT(conc_map(doubles, numbers + 1, 2, 2 * sizeof numbers[0]), 0); /* every other one */
    CHECK_INT(numbers[1], 8);
    CHECK_INT(numbers[2], 6);
    CHECK_INT(numbers[3], 16);
    CHECK_INT(CONC_MAP(sleeps, naps), 0);
    CHECK_TIME(6);
}

static int results_counted;

static int counts_for_all(void *arg)
{
    CHECK(arg == NULL);
    results_counted++;
    return 0;
}

TASK_TEST(a_size_of_zero_hands_the_same_to_every_call)
{
    int counted = 0, results[4] = {9, 9, 9, 9};
    CHECK_INT(conc_map(counts, &counted, 10, 0), 0);
    CHECK_INT(counted, 10);
    CHECK_INT(conc_map_all(counts, &counted, 4, 0, results), 0);
    CHECK_INT(counted, 14);
    CHECK_INT(results[0] + results[1] + results[2] + results[3], 0);
    CHECK_INT(conc_map(counts_for_all, NULL, 3, 0), 0);
    CHECK_INT(results_counted, 3);
}

TASK_TEST(the_first_error_of_a_map_cancels_the_rest)
{
    work w[] = {{.seconds = 9, .cleanup = 1}, {.seconds = 1, .rc = -EIO}, {.seconds = 9}};
    CHECK_INT(CONC_MAP(works, w), -EIO);
    CHECK_TIME(2);
    CHECK_INT(w[0].slept, -ECANCELED);
    CHECK_INT(w[2].slept, -ECANCELED);
    CHECK(w[2].ended == 1);
}

TASK_TEST(a_map_of_all_puts_every_result_in_its_place)
{
    work w[] = {{.seconds = 3, .rc = 3},
                {.seconds = 1, .rc = -EIO},
                {.seconds = 2, .rc = -EPIPE},
                {.rc = 4}};
    int results[4] = {9, 9, 9, 9};
    CHECK_INT(CONC_MAP_ALL(works, w, results), 0);
    CHECK_TIME(3);
    CHECK_INT(results[0], 3);
    CHECK_INT(results[1], -EIO);
    CHECK_INT(results[2], -EPIPE);
    CHECK_INT(results[3], 4);
    w[1].rc = w[2].rc = 0;
    CHECK_INT(CONC_MAP_ALL(works, w, NULL), 0);
    CHECK_TIME(6);
}

/* ---- ways to write it ---- */

typedef struct pair {
    int a, b;
} pair;

static int adds(void *arg)
{
    pair *p = arg;
    CONC_TRY(conc_sleep(1));
    return p->a + p->b;
}

TASK_TEST(arguments_may_have_commas)
{
    conc_call calls[] = {CONC_CALL(adds, &(pair){1, 2}),
                         CONC_CALL(adds, &(pair){.a = 30, .b = 12})};
    int results[2] = {0};
    CHECK_INT(conc_gather(calls, CONC_LEN(calls)), 0);
    CHECK_INT(calls[0].result, 3);
    CHECK_INT(calls[1].result, 42);
    CHECK_INT(CONC_GATHER(CONC_CALL(adds, &(pair){1, 2}), CONC_CALL(adds, &(pair){3, -4})), -1);
    CHECK_INT(conc_gather(
                  (conc_call[]){CONC_CALL(adds, &(pair){1, 2}), CONC_CALL(adds, &(pair){3, 4})}, 2),
              0);
    CHECK_INT(conc_map(adds, (pair[]){{1, 2}, {3, 4}, {5, 6}}, 3, sizeof(pair)), 0);
    CHECK_INT(CONC_MAP(adds, ((pair[]){{1, 2}, {3, 4}})), 0);
    CHECK_INT(CONC_MAP_ALL(adds, ((pair[]){{1, 2}, {3, -14}}), results), 0);
    CHECK_INT(results[0], 3);
    CHECK_INT(results[1], -11);
    CHECK_TIME(6);
}

static int gathers_two(void *arg)
{
    work *w = arg;
    return CONC_GATHER(CONC_CALL(works, &w[0]), CONC_CALL(works, &w[1]));
}

TASK_TEST(gathers_may_be_nested)
{
    work w[3][2] = {{{.seconds = 1}, {.seconds = 2}},
                    {{.seconds = 3}, {.seconds = 4}},
                    {{.seconds = 5}, {.seconds = 6}}};
    CHECK_INT(CONC_MAP(gathers_two, w), 0);
    CHECK_TIME(6);
    w[1][0].rc = -EIO; /* at 3 s: it cancels its neighbour, then the other pairs */
    conc_call calls[] = {CONC_CALL(gathers_two, w[0]), CONC_CALL(gathers_two, w[1]),
                         CONC_CALL(gathers_two, w[2])};
    CHECK_INT(conc_gather(calls, CONC_LEN(calls)), -EIO);
    CHECK_TIME(9);
    CHECK_INT(calls[0].result, 0);
    CHECK_INT(calls[1].result, -EIO);
    CHECK_INT(calls[2].result, -ECANCELED);
    CHECK_INT(w[1][1].slept, -ECANCELED);
    CHECK_INT(w[2][0].slept + w[2][1].slept, 2 * -ECANCELED);
}

TASK_TEST(an_error_of_a_gather_is_no_error_of_the_group_around_it)
{
    work outside = {.seconds = 5}, inside = {.seconds = 1, .rc = -EIO};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, works, &outside), 0);
    CHECK_INT(CONC_GATHER(CONC_CALL(works, &inside), CONC_CALL(sleeps, &(double){9})), -EIO);
    CHECK_TIME(1);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(outside.slept, 0);
}

TASK_TEST(invalid_arguments_are_refused_before_anything_runs)
{
    int counted = 0, results[2] = {7, 7};
    conc_call calls[] = {CONC_CALL(counts, &counted), CONC_CALL(NULL, &counted)};
    CHECK_INT(conc_gather(calls, 2), -EINVAL);
    CHECK_INT(conc_gather_all(calls, 2), -EINVAL);
    CHECK_INT(conc_gather(NULL, 2), -EINVAL);
    CHECK_INT(conc_gather_all(NULL, 2), -EINVAL);
    CHECK_INT(conc_map(NULL, &counted, 1, sizeof counted), -EINVAL);
    CHECK_INT(conc_map(counts, NULL, 1, sizeof counted), -EINVAL);
    CHECK_INT(conc_map_all(NULL, &counted, 1, sizeof counted, results), -EINVAL);
    CHECK_INT(conc_map_all(counts, NULL, 1, sizeof counted, results), -EINVAL);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(counted, 0);
}

TASK_TEST(a_thousand_calls_may_be_gathered)
{
    static int numbers[1000], results[1000];
    for (int i = 0; i < 1000; i++)
        numbers[i] = i;
    CHECK_INT(CONC_MAP_ALL(doubles, numbers, results), 0);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(results[i], 2 * i);
    CHECK_TIME(1);
}

/* ---- cancels and limits ---- */

typedef struct gatherer {
    work works[3];
    conc_call calls[3];
    int (*how)(conc_call *calls, size_t n);
    int rc, after;
    double ended;
} gatherer;

static int gather_first(conc_call *calls, size_t n) { return conc_gather(calls, n); }
static int gather_all(conc_call *calls, size_t n) { return conc_gather_all(calls, n); }

static int gathers(void *arg)
{
    gatherer *g = arg;
    for (int i = 0; i < 3; i++)
        g->calls[i] = (conc_call)CONC_CALL(works, &g->works[i]);
    g->rc = g->how(g->calls, 3);
    g->ended = conc_now();
    g->after = conc_sleep(1);
    return g->rc;
}

/* Runs it in its own task, and cancels that after a second. */
static void cancel_after_a_second(gatherer *who)
{
    conc_task t;
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &t, gathers, who), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_join(&t, NULL), 0);
    CHECK_INT(conc_group_wait(&g), who->rc == -ECANCELED ? 0 : who->rc);
}

TASK_TEST(a_cancel_of_the_caller_reaches_all_calls_and_waits_for_them)
{
    int (*hows[])(conc_call *, size_t) = {gather_first, gather_all};
    for (size_t i = 0; i < CONC_LEN(hows); i++) {
        double start = conc_now();
        gatherer g = {
            .works = {{.seconds = 9}, {.seconds = 9, .cleanup = 2}, {.seconds = 0.5, .rc = 6}},
            .how = hows[i]};
        cancel_after_a_second(&g);
        CHECK_INT(g.rc, -ECANCELED);
        CHECK_INT(g.after, -ECANCELED);
        CHECK(g.ended - start == 3);
        CHECK_INT(g.calls[0].result, -ECANCELED);
        CHECK_INT(g.calls[1].result, -ECANCELED);
        CHECK_INT(g.calls[2].result, 6);
        CHECK_STR(g.calls[0].text, conc_strerror(-ECANCELED));
    }
}

TASK_TEST(an_error_outranks_the_cancel_of_the_caller)
{
    gatherer g = {
        .works = {{.seconds = 9}, {.seconds = 9, .cleanup = 2, .cut_rc = -EIO}, {.seconds = 9}},
        .how = gather_first};
    cancel_after_a_second(&g);
    CHECK_INT(g.rc, -EIO);
    CHECK_INT(g.after, -ECANCELED); /* not yet seen */
    CHECK_INT(g.calls[1].result, -EIO);
}

TASK_TEST(a_cancelled_caller_gathers_nothing)
{
    int counted = 0, results[1];
    conc_scope s = {0};
    conc_call calls[] = {CONC_CALL(counts, &counted)};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_gather(calls, 1), -ECANCELED);
    CHECK_INT(conc_gather_all(calls, 1), -ECANCELED);
    CHECK_INT(conc_map(counts, &counted, 1, 0), -ECANCELED);
    CHECK_INT(conc_map_all(counts, &counted, 1, 0, results), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(counted, 0);
}

TASK_TEST(a_gather_that_times_out_returns_when_its_calls_have_cleaned_up)
{
    gatherer g = {.works = {{.seconds = 9, .cleanup = 2}, {.seconds = 1, .rc = 5}, {.seconds = 9}},
                  .how = gather_first};
    CHECK_INT(conc_timeout(4, gathers, &g), -ETIMEDOUT);
    CHECK_TIME(6);
    CHECK_INT(g.calls[1].result, 5);
    CHECK(g.works[2].ended == 4);
    CHECK_INT(conc_sleep(1), 0);
}

/* ---- limited concurrency ---- */

static int at_once, most_at_once, begun;

static int is_counted(void *arg)
{
    double *seconds = arg;
    begun++;
    at_once++;
    most_at_once = at_once > most_at_once ? at_once : most_at_once;
    int rc = conc_sleep(*seconds < 0 ? 1 : *seconds);
    at_once--;
    return *seconds < 0 && rc == 0 ? conc_fail(-EIO, "element %d", (int)-*seconds) : rc;
}

static void start_counting(void) { at_once = most_at_once = begun = 0; }

TASK_TEST(a_map_with_a_limit_begins_the_next_when_one_has_ended)
{
    double seconds[] = {3, 1, 1, 2, 1};
    start_counting();
    CHECK_INT(CONC_MAP_LIMIT(2, is_counted, seconds), 0);
    CHECK_TIME(4); /* 3 and 1; then 1, 2 and 1, beside and after them */
    CHECK_INT(most_at_once, 2);
    CHECK_INT(begun, 5);
    start_counting();
    CHECK_INT(conc_map_limit(1, is_counted, seconds, 3, sizeof seconds[0]), 0);
    CHECK_TIME(4 + 5);
    CHECK_INT(most_at_once, 1);
}

TASK_TEST(a_limit_of_zero_or_above_the_count_limits_nothing)
{
    double seconds[] = {1, 1, 1};
    int limits[] = {0, 3, 4, INT_MAX};
    for (size_t i = 0; i < CONC_LEN(limits); i++) {
        start_counting();
        CHECK_INT(CONC_MAP_LIMIT(limits[i], is_counted, seconds), 0);
        CHECK_TIME(1 + (double)i);
        CHECK_INT(most_at_once, 3);
    }
    CHECK_INT(conc_map_limit(2, is_counted, NULL, 0, 8), 0);
    CHECK_INT(conc_map_limit(-1, is_counted, seconds, 3, sizeof seconds[0]), -EINVAL);
    CHECK_INT(conc_map_limit(2, NULL, seconds, 3, sizeof seconds[0]), -EINVAL);
    CHECK_INT(conc_map_limit(2, is_counted, NULL, 3, sizeof seconds[0]), -EINVAL);
}

TASK_TEST(after_an_error_a_map_with_a_limit_begins_no_more)
{
    double seconds[] = {5, -7, 5, 5};
    start_counting();
    CHECK_INT(CONC_MAP_LIMIT(2, is_counted, seconds), -EIO);
    CHECK_TIME(1);
    CHECK_INT(begun, 2);
    CHECK_INT(at_once, 0);
    CHECK_STR(conc_last_error(), "element 7");
}

TASK_TEST(a_map_with_a_limit_is_cut_short_by_a_cancel)
{
    double seconds[] = {2, 2, 2, 2, 2, 2};
    conc_scope s = {0};
    start_counting();
    CHECK_INT(conc_scope_begin(&s, 3), 0);
    int rc = CONC_MAP_LIMIT(2, is_counted, seconds);
    CHECK_INT(rc, -ECANCELED);
    CHECK_INT(conc_scope_end(&s, rc), -ETIMEDOUT);
    CHECK_TIME(3);
    CHECK_INT(begun, 4);
    CHECK_INT(at_once, 0);
}

TASK_TEST(a_map_with_a_limit_needs_stacks_for_its_limit_alone)
{
    static char elements[5000];
    conc_stats before, after;
    int counted = 0;
    conc_get_stats(&before);
    CHECK_INT(conc_map_limit(3, counts, &counted, sizeof elements, 0), 0);
    conc_get_stats(&after);
    CHECK_INT(counted, sizeof elements);
    CHECK(after.peak <= before.peak + 3);
}

/* ---- names ---- */

static char names[4][64];

static int tells_its_name(void *arg)
{
    snprintf(arg, sizeof names[0], "%s", conc_name(conc_self()));
    return 0;
}

static int tells_two_names(void *arg)
{
    tells_its_name(arg);
    conc_set_name(conc_self(), "renamed");
    conc_set_name(conc_self(), "renamed again");
    return tells_its_name((char *)arg + sizeof names[0]);
}

TASK_TEST(gathered_tasks_have_the_name_of_their_function)
{
    conc_call calls[] = {CONC_CALL(tells_its_name, names[0]),
                         {.fn = tells_its_name, .arg = names[1], .name = "by another name"},
                         {.fn = tells_its_name, .arg = names[2]}};
    CHECK_INT(conc_gather(calls, CONC_LEN(calls)), 0);
    CHECK_STR(names[0], "tells_its_name");
    CHECK_STR(names[1], "by another name");
    CHECK_CONTAINS(names[2], "conc_gather at ");
    CHECK_INT(
        CONC_GATHER(CONC_CALL(tells_two_names, names[0]), CONC_CALL(tells_its_name, names[2])), 0);
    CHECK_STR(names[0], "tells_two_names");
    CHECK_STR(names[1], "renamed again");
    CHECK_STR(names[2], "tells_its_name");
}

/* ---- reports ---- */

static int reports, last_reported;
static char reported_task[64];

static void count_reports(const conc_failure *f, void *user)
{
    (void)user;
    reports++;
    last_reported = f->rc;
    snprintf(reported_task, sizeof reported_task, "%s", f->task);
}

static int gathers_two_errors(void *arg)
{
    (void)arg;
    work w[] = {{.seconds = 1, .rc = -EIO}, {.seconds = 9, .cut_rc = -EPIPE}};
    conc_call calls[] = {CONC_CALL(works, &w[0]), CONC_CALL(works, &w[1])};
    CHECK_INT(conc_gather(calls, 2), -EIO);
    CHECK_INT(calls[1].result, -EPIPE);
    CHECK_INT(conc_gather_all(calls, 2), 0);
    return 0;
}

static int maps_two_errors(void *arg)
{
    int *results = arg;
    work w[] = {{.seconds = 1, .rc = -EIO}, {.seconds = 9, .cut_rc = -EPIPE}};
    CHECK_INT(results ? CONC_MAP_ALL(works, w, results) : CONC_MAP(works, w), results ? 0 : -EIO);
    return 0;
}

TEST(a_stored_error_is_not_reported)
{
    conc_options options = {.virtual_clock = true, .on_error = count_reports};
    CHECK_INT(conc_run_with(&options, gathers_two_errors, NULL), 0);
    CHECK_INT(conc_run_with(&options, maps_two_errors, (int[2]){0}), 0);
    CHECK_INT(reports, 0);
}

static int gathers_two_errors_without_a_place(void *arg)
{
    (void)arg;
    work w[] = {{.seconds = 1, .rc = -EIO}, {.seconds = 9, .cut_rc = -EPIPE}};
    CHECK_INT(CONC_GATHER(CONC_CALL(works, &w[0]), CONC_CALL(works, &w[1])), -EIO);
    return 0;
}

TEST(an_error_that_is_not_stored_is_reported_once)
{
    conc_options options = {.virtual_clock = true, .on_error = count_reports};
    CHECK_INT(conc_run_with(&options, maps_two_errors, NULL), 0);
    CHECK_INT(reports, 1);
    CHECK_INT(last_reported, -EPIPE);
    last_reported = 0;
    CHECK_INT(conc_run_with(&options, gathers_two_errors_without_a_place, NULL), 0);
    CHECK_INT(reports, 2);
    CHECK_INT(last_reported, -EPIPE);
    CHECK_STR(reported_task, "works");
}
