/* test_alert.c - alert.h: crossings, hysteresis, and invalid rules.
 *
 * Needs -lm
 */
#include "../conc_test.h"
#include "alert.h"

static alert a;

/* What it does for each of these values, one a second: f fires, c clears, - nothing. */
static const char *changes(const double *values, size_t n)
{
    static char found[32];
    CHECK(alert_read("checkout p95 10 8", &a));
    for (size_t i = 0; i < n; i++)
        found[i] = "-fc"[alert_see(&a, (double)i, values[i])];
    found[n] = 0;
    return found;
}

#define CHANGES(...) \
    changes((double[]){__VA_ARGS__}, sizeof((double[]){__VA_ARGS__}) / sizeof(double))

TEST(it_fires_once_per_crossing_and_clears_below_the_lower_threshold)
{
    CHECK_STR(CHANGES(9, 10, 10.1, 20, 9, 11, 8, 7.9, 9, 10, 11), "--f----c--f");
    CHECK(a.firing && a.since == 10 && a.until == 7 && a.peak == 11);
    CHECK_STR(CHANGES(11, 12, 9, 1), "f--c");
    CHECK(!a.firing && a.since == 0 && a.until == 3 && a.peak == 12);
    CHECK_STR(CHANGES(NAN, INFINITY, NAN, -INFINITY), "-f-c");
}

TEST(a_value_that_is_not_newer_is_ignored)
{
    CHECK(alert_read("a count 10 10", &a));
    CHECK_INT(alert_see(&a, -5, 11), ALERT_FIRES);
    CHECK_INT(alert_see(&a, -5, 1), ALERT_NOTHING);
    CHECK_INT(alert_see(&a, -6, 1), ALERT_NOTHING);
    CHECK_INT(alert_see(&a, NAN, 1), ALERT_NOTHING);
    CHECK_INT(alert_see(&a, -4, 1), ALERT_CLEARS);
}

TEST(a_rule_has_four_parts)
{
    CHECK(alert_read(" login  count 2e3 -1.5 ", &a));
    CHECK_STR(a.key, "login");
    CHECK_STR(a.figure, "count");
    CHECK(a.above == 2000 && a.below == -1.5);
    static const char *const bad[] = {"",          "a",         "a p95",       "a p95 1",
                                      "a p95 1 2", "a p95 x 1", "a p95 2 1 x", "a p95 nan 1"};
    for (size_t i = 0; i < CONC_LEN(bad); i++)
        CHECK(!alert_read(bad[i], &a));
}
