/* test_graphite.c - graphite.h: lines, valid and invalid.
 *
 * Needs -lm
 */
#include "../conc_test.h"
#include "graphite.h"

static graphite_line line;

static bool reads(const char *text) { return graphite_read(text, strlen(text), &line); }

TEST(a_line_has_a_name_a_tag_a_value_and_a_time)
{
    CHECK(reads("login.eu-1;user=ada_2 -83.5 1700000000.25"));
    CHECK_STR(line.name, "login.eu-1");
    CHECK_STR(line.tag, "ada_2");
    CHECK(line.value == -83.5 && line.time == 1700000000.25);
    CHECK(reads("a 1e3 -1\r"));
    CHECK_STR(line.tag, "");
    CHECK(line.value == 1000 && line.time == -1);
    CHECK(reads("a;host=x;user=bob;more=z  1   2"));
    CHECK_STR(line.tag, "bob");
    CHECK(reads("a;host=x 1 2"));
    CHECK_STR(line.tag, "");
}

TEST(malformed_lines_are_refused)
{
    static const char *const bad[] = {"",          " ",           "a",
                                      "a 1",       "a 1 2 3",     "a b 2",
                                      "a 1 b",     "a nan 1",     "a inf 1",
                                      "a 1 -inf",  "a 0x10 1",    "a 1e13 1",
                                      "a 1 -1e13", "a 1e999 1",   "a 1. .",
                                      "a 1 1e",    "a\t1\t1",     ";user=x 1 1",
                                      "a;user= 1", "a;user= 1 1", "a;user=\xc3\xa9 1 1",
                                      "<b> 1 1",   "a,b 1 1",     "a 1 1\r\r"};
    char text[1000];
    for (size_t i = 0; i < CONC_LEN(bad); i++)
        CHECK(!reads(bad[i]));
    CHECK(!graphite_read("a 1 2\0 ", 7, &line));
    snprintf(text, sizeof text, "%048d 1 2", 0);
    CHECK(!reads(text));
    CHECK(reads(text + 1));
    snprintf(text, sizeof text, "a 1 %0508d", 0);
    CHECK(!reads(text));
    CHECK(graphite_read("a 1 2 and more", 5, &line)); /* only this many bytes are examined */
}
