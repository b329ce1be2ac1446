/* test_windows.c - windows.h: windows and late events by hand, the aggregates compared with all
 * values, and random streams, of which no event may be lost uncounted.
 *
 * Needs -lm
 */
#include "../conc_test.h"
#include "windows.h"

/* The closed windows, as "a 0-10: 3 sum 6, ..."; * marks a revised one. */
static char closed[4096];

static void write_down(const window *w, void *arg)
{
    (void)arg;
    size_t n = strlen(closed);
    snprintf(closed + n, sizeof closed - n, "%s%s %g-%g: %llu sum %g%s", n ? ", " : "", w->key,
             w->start, w->end, (unsigned long long)w->values.count, w->values.sum,
             w->revised ? "*" : "");
}

static const char *closings(windows *w, double mark)
{
    closed[0] = 0;
    windows_advance(w, mark);
    return closed;
}

static void add(windows *w, double time, double value)
{
    CHECK_INT(windows_add(w, "a", time, value, NULL), 0);
}

TEST(a_tumbling_window_closes_when_the_watermark_reaches_its_end)
{
    windows w = {.size = 10, .closed = write_down};
    add(&w, 0, 1);
    add(&w, 9.999999, 2);
    add(&w, 10, 4);
    CHECK_STR(closings(&w, 9.999999), "");
    CHECK_STR(closings(&w, 10), "a 0-10: 2 sum 3");
    CHECK_STR(closings(&w, 10), "");
    CHECK_STR(closings(&w, 5), "");
    CHECK_STR(closings(&w, INFINITY), "a 10-20: 1 sum 4");
    windows_close(&w);
    windows_close(&w);
}

TEST(windows_before_1970_begin_at_multiples_of_the_slide_too)
{
    windows w = {.size = 10, .closed = write_down};
    add(&w, -1, 1);
    add(&w, -10, 2);
    add(&w, -10.5, 4);
    CHECK_STR(closings(&w, INFINITY), "a -20--10: 1 sum 4, a -10-0: 2 sum 3");
    windows_close(&w);
}

TEST(an_event_is_in_all_sliding_windows_that_cover_it)
{
    windows w = {.size = 3, .slide = 1, .closed = write_down};
    add(&w, 4.5, 1);
    add(&w, 5, 2);
    CHECK_STR(closings(&w, INFINITY),
              "a 2-5: 1 sum 1, a 3-6: 2 sum 3, a 4-7: 2 sum 3, a 5-8: 1 sum 2");
    windows_close(&w);
}

TEST(a_slide_longer_than_the_size_leaves_gaps)
{
    windows w = {.size = 1, .slide = 10, .closed = write_down};
    add(&w, 0.5, 1);
    add(&w, 5, 2);
    CHECK_STR(closings(&w, INFINITY), "a 0-1: 1 sum 1");
    CHECK_INT(w.too_late, 0);
    windows_close(&w);
}

TEST(a_late_event_revises_its_window_at_the_end_of_the_lateness)
{
    windows w = {.size = 10, .lateness = 5, .closed = write_down};
    add(&w, 1, 1);
    CHECK_STR(closings(&w, 12), "a 0-10: 1 sum 1");
    add(&w, 2, 2);
    add(&w, 3, 4);
    CHECK_INT(w.late, 2);
    CHECK_STR(closings(&w, 14.9), "");
    CHECK_STR(closings(&w, 15), "a 0-10: 3 sum 7*");
    add(&w, 4, 8);
    CHECK_INT(w.too_late, 1);
    CHECK_STR(closings(&w, INFINITY), "");
    windows_close(&w);
}

TEST(events_that_are_too_late_are_counted_once_for_each_window)
{
    windows w = {.size = 4, .slide = 1, .lateness = 1, .closed = write_down};
    windows_advance(&w, 10);
    add(&w, 5, 1); /* in 2-6 to 5-9: all are gone */
    CHECK_INT(w.too_late, 4);
    add(&w, 7, 1); /* in 4-8, 5-9, which are gone, 6-10, which is closed, and 7-11 */
    CHECK_INT(w.too_late, 6);
    CHECK_INT(w.late, 1);
    CHECK_STR(closings(&w, 10), "a 6-10: 1 sum 1");
    CHECK_STR(closings(&w, INFINITY), "a 7-11: 1 sum 1");
    windows_close(&w);
}

TEST(events_less_than_the_gap_apart_are_a_session)
{
    windows w = {.gap = 5, .closed = write_down};
    add(&w, 0, 1);
    add(&w, 4.9, 2);
    add(&w, 9.9, 4); /* 5 s later: another one */
    CHECK_STR(closings(&w, INFINITY), "a 0-9.9: 2 sum 3, a 9.9-14.9: 1 sum 4");
    windows_close(&w);
}

TEST(an_event_between_two_sessions_joins_them)
{
    windows w = {.gap = 5, .closed = write_down};
    add(&w, 0, 1);
    add(&w, 8, 2);
    add(&w, 4, 4);
    CHECK_STR(closings(&w, INFINITY), "a 0-13: 3 sum 7");
    windows_close(&w);
}

TEST(a_late_event_opens_a_closed_session_again)
{
    windows w = {.gap = 5, .lateness = 10, .closed = write_down};
    add(&w, 0, 1);
    CHECK_STR(closings(&w, 6), "a 0-5: 1 sum 1");
    add(&w, 3, 2);
    CHECK_STR(closings(&w, 7.9), "");
    CHECK_STR(closings(&w, 8), "a 0-8: 2 sum 3*");
    add(&w, -4, 4); /* it stays closed, and is revised at the end of its lateness */
    CHECK_STR(closings(&w, 17.9), "");
    CHECK_STR(closings(&w, 18), "a -4-8: 3 sum 7*");
    CHECK_INT(w.late, 2);
    add(&w, 2, 8);
    CHECK_INT(w.too_late, 1);
    windows_close(&w);
}

TEST(keys_have_their_own_windows_up_to_max_keys)
{
    windows w = {.size = 10, .max_keys = 2, .closed = write_down};
    CHECK_INT(windows_add(&w, "a", 1, 1, NULL), 0);
    CHECK_INT(windows_add(&w, "b", 1, 2, NULL), 0);
    CHECK_INT(windows_add(&w, "c", 1, 4, NULL), -ENOSPC);
    CHECK_INT(w.refused, 1);
    closings(&w, 10);
    CHECK_CONTAINS(closed, "a 0-10: 1 sum 1");
    CHECK_CONTAINS(closed, "b 0-10: 1 sum 2");
    CHECK_INT(windows_add(&w, "c", 11, 4, NULL), 0); /* there is room again */
    windows_close(&w);
}

TEST(invalid_numbers_and_options_are_refused)
{
    windows w = {.size = 10};
    const double bad[] = {NAN, INFINITY, -INFINITY, 1.1e12, -1.1e12};
    for (size_t i = 0; i < CONC_LEN(bad); i++) {
        CHECK_INT(windows_add(&w, "a", bad[i], 1, NULL), -EINVAL);
        CHECK_INT(windows_add(&w, "a", 1, bad[i], NULL), -EINVAL);
    }
    windows_advance(&w, NAN);
    CHECK_INT(windows_add(&w, "a", -1e12, 1e12, NULL), 0);
    windows_close(&w);
    const windows wrong[] = {{.size = 0},
                             {.size = -1},
                             {.size = NAN},
                             {.size = 1e300},
                             {.size = 1, .slide = -1},
                             {.size = 1, .slide = 1e-5},
                             {.gap = -1},
                             {.gap = NAN},
                             {.gap = INFINITY},
                             {.size = 1, .lateness = -1},
                             {.size = 1, .lateness = CONC_FOREVER}};
    for (size_t i = 0; i < CONC_LEN(wrong); i++) {
        w = wrong[i];
        CHECK_INT(windows_add(&w, "a", 1, 1, NULL), -EINVAL);
        windows_close(&w);
    }
}

/* ---- aggregates ---- */

enum { VALUES = 5000 };
static double values[VALUES];
static int value_count;
static summary last; /* of which only the figures are valid */
static double percentiles[101], different;

static void remember(const window *w, void *arg)
{
    (void)arg;
    last = w->values;
    for (int p = 0; p <= 100; p++)
        percentiles[p] = summary_percentile(&w->values, p);
    different = distinct_count(&w->items);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void check_percentiles(void)
{
    windows w = {.size = 10, .closed = remember};
    double sum = 0;
    for (int i = 0; i < value_count; i++) {
        CHECK_INT(windows_add(&w, "a", 1, values[i], NULL), 0);
        sum += values[i];
    }
    windows_advance(&w, INFINITY);
    qsort(values, (size_t)value_count, sizeof values[0], by_value);
    CHECK_INT(last.count, value_count);
    CHECK(last.min == values[0] && last.max == values[value_count - 1] && last.sum == sum);
    for (int p = 0; p <= 100; p++) {
        double exact = values[(int)floor(p / 100.0 * (value_count - 1))];
        CHECK(fabs(percentiles[p] - exact) <= 0.01 * fabs(exact) * (1 + 1e-9) + 1e-6);
    }
    windows_close(&w);
}

static unsigned long long state = 1;

static double draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) / 9007199254740992.0;
}

TEST(percentiles_are_within_one_percent)
{
    for (value_count = 1; value_count < 40; value_count++) {
        for (int i = 0; i < value_count; i++)
            values[i] = exp(20 * draw() - 5);
        check_percentiles();
    }
    value_count = VALUES;
    for (int i = 0; i < VALUES; i++) /* all magnitudes, signs, and zero */
        values[i] = draw() < 0.1 ? 0 : (draw() < 0.4 ? -1 : 1) * pow(10, 19 * draw() - 7);
    check_percentiles();
    value_count = 6;
    memcpy(values, (double[]){-1e12, 1e12, 1e-300, -0.0, 1e-6, -1e-6}, 6 * sizeof values[0]);
    check_percentiles();
}

static double distinct_of(int count, int times)
{
    windows w = {.size = 10, .closed = remember};
    char item[32];
    for (int i = 0; i < count * times; i++) {
        snprintf(item, sizeof item, "user %d", i % count);
        CHECK_INT(windows_add(&w, "a", 1, 1, item), 0);
    }
    windows_advance(&w, INFINITY);
    windows_close(&w);
    return different;
}

TEST(up_to_64_items_are_counted_exactly)
{
    for (int n = 1; n <= 64; n += 7)
        CHECK(distinct_of(n, 3) == n);
}

TEST(more_items_are_estimated_within_four_standard_errors)
{
    for (int n = 65; n < 300000; n = n * 7 / 5) {
        double found = distinct_of(n, 1);
        CHECK(fabs(found - n) < 4 * 1.04 / 64 * n);
    }
}

TEST(joined_sessions_have_the_figures_of_both)
{
    windows w = {.gap = 1, .closed = remember};
    char item[32];
    for (int i = 0; i < 2000; i++) {
        snprintf(item, sizeof item, "%d", i % 1000);
        CHECK_INT(windows_add(&w, "a", i % 2 ? 0 : 1.5, i, item), 0);
    }
    CHECK_INT(windows_add(&w, "a", 0.9, -5, "0"), 0);
    windows_advance(&w, INFINITY);
    CHECK_INT(last.count, 2001);
    CHECK(last.min == -5 && last.max == 1999 && last.sum == 1999 * 1000 - 5);
    CHECK(fabs(percentiles[50] - 999) < 10 && fabs(different - 1000) < 65);
    windows_close(&w);
}

/* ---- random streams ---- */

static double kept; /* events in final windows: the latest closing of each counts */

static void sum_up(const window *w, void *arg)
{
    static double before[64];
    double *at = &before[(size_t)llround(w->start) % 64];
    kept += (double)w->values.count - (w->revised ? *at : 0);
    *at = (double)w->values.count;
    (void)arg;
}

TEST(each_event_is_in_all_its_windows_or_counted_as_too_late)
{
    for (int seed = 1; seed < 200; seed++) {
        windows w = {.size = 10, .slide = 2, .lateness = 4, .closed = sum_up};
        state = (unsigned long long)seed;
        kept = 0;
        for (int i = 0; i < 500; i++) {
            double now = i / 5.0;
            windows_advance(&w, now - 1);
            add(&w, now - 25 * draw() * draw(), 1);
        }
        windows_advance(&w, INFINITY);
        CHECK(kept + (double)w.too_late == 500 * 5);
        CHECK(w.too_late > 0 && w.late > 0);
        windows_close(&w);
    }
}
