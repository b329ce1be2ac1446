/* test_watermark.c - watermark.h: watermarks of sources, and their relation to the clock.
 *
 * Needs -lm
 */
#include "../conc_test.h"
#include "watermark.h"

TEST(the_watermark_is_the_least_that_the_sources_promise)
{
    watermark m = {.delay = 1, .idle = 10, .ahead = 5};
    watermark_source a = {0}, b = {0};
    CHECK(watermark_advance(&m, 100) == 89);
    CHECK_INT(watermark_see(&m, &a, 99, 100), 0);
    CHECK(watermark_advance(&m, 100) == 98);
    CHECK_INT(watermark_see(&m, &b, 95, 100), 0);
    CHECK(watermark_advance(&m, 100) == 98); /* it never falls */
    CHECK_INT(watermark_see(&m, &a, 104, 104), 0);
    CHECK(watermark_advance(&m, 104) == 98);
    CHECK(watermark_advance(&m, 112) == 101); /* b is silent */
    watermark_forget(&m, &b);
    watermark_forget(&m, &b);
    CHECK(watermark_advance(&m, 112) == 103);
    watermark_forget(&m, &a);
    CHECK(watermark_advance(&m, 120) == 109);
}

TEST(events_from_the_future_promise_no_more_than_the_clock)
{
    watermark m = {.delay = 0, .idle = 10, .ahead = 5};
    watermark_source a = {0};
    CHECK_INT(watermark_see(&m, &a, 105, 100), 0);
    CHECK(watermark_advance(&m, 100) == 100);
    CHECK_INT(watermark_see(&m, &a, 105.1, 100), -ERANGE);
    CHECK_INT(watermark_see(&m, &a, NAN, 100), -ERANGE);
    CHECK_INT(watermark_see(&m, &a, INFINITY, 100), -ERANGE);
    CHECK_INT(m.ahead_count, 3);
    watermark_forget(&m, &a);
}
