/* test_robots.c - examples/common/robots.h: groups, rules and their lengths, wildcards and escapes
 * of RFC 9309, and texts that are not a robots.txt.
 *
 * Needs -lcurl
 */
#include "../conc_test.h"

#include "robots.h"

static bool allows_agent(const char *text, const char *path, const char *agent)
{
    robots r = {0};
    CHECK_INT(robots_parse(&r, text, strlen(text), agent), 0);
    bool allowed = robots_allows(&r, path);
    robots_free(&r);
    return allowed;
}

static bool allows(const char *text, const char *path) { return allows_agent(text, path, "bot"); }

/* One rule for all. */
static bool rule_hits(const char *rule, const char *path)
{
    char text[256];
    snprintf(text, sizeof text, "User-agent: *\nDisallow: %s\n", rule);
    return !allows(text, path);
}

TEST(without_rules_all_is_allowed)
{
    robots r = {0};
    CHECK(robots_allows(&r, "/a"));
    CHECK(allows("", "/"));
    CHECK(allows("User-agent: *\nDisallow:\n", "/a"));
    CHECK(allows("<html><body>404: not found</body></html>", "/a"));
    CHECK(allows("Disallow: /\n", "/a")); /* belongs to no group */
    CHECK(allows("User-agent: other\nDisallow: /\n", "/a"));
    r.nothing_allowed = true;
    CHECK(!robots_allows(&r, "/a"));
    CHECK(robots_allows(&r, "/robots.txt"));
}

TEST(the_agents_own_groups_outrank_those_for_all)
{
    static const char text[] = "User-agent: *\nDisallow: /all\n\n"
                               "user-agent: Other\nUSER-AGENT: BOT/2.0\nDisallow: /own\n\n"
                               "User-agent: bots\nDisallow: /bots\n\n"
                               "User-agent: bot\nDisallow: /more\n";
    CHECK(allows(text, "/all"));
    CHECK(!allows(text, "/own"));
    CHECK(!allows(text, "/more"));
    CHECK(allows(text, "/bots"));
    CHECK(!allows_agent(text, "/own", "other"));
    CHECK(allows_agent(text, "/more", "other"));
    CHECK(!allows_agent(text, "/all", "third"));
    CHECK(allows_agent(text, "/own", "third"));
}

TEST(the_longest_rule_decides_and_allow_wins_a_tie)
{
    static const char text[] = "User-agent: *\nDisallow: /\nAllow: /a\nDisallow: /a/b\n"
                               "Allow: /a/b/*.html\nDisallow: /tie\nAllow: /tie\n";
    CHECK(!allows(text, "/x"));
    CHECK(allows(text, "/a/c"));
    CHECK(!allows(text, "/a/b/c"));
    CHECK(allows(text, "/a/b/c.html"));
    CHECK(allows(text, "/tie"));
    CHECK(allows("User-agent: *\nDisallow: /\nAllow: /$\n", "/"));
    CHECK(!allows("User-agent: *\nDisallow: /\nAllow: /$\n", "/a"));
}

TEST(a_rule_is_a_prefix_with_stars_and_an_end)
{
    CHECK(rule_hits("/fish", "/fish.html") && rule_hits("/fish", "/fishheads/yummy.html"));
    CHECK(!rule_hits("/fish", "/Fish.asp") && !rule_hits("/fish", "/catfish"));
    CHECK(!rule_hits("/fish/", "/fish") && rule_hits("/fish/", "/fish/salmon.htm"));
    CHECK(rule_hits("/*.php", "/folder/filename.php?parameters"));
    CHECK(!rule_hits("/*.php", "/windows.PHP"));
    CHECK(rule_hits("/*.php$", "/a.php") && rule_hits("/*.php$", "/a.php.php"));
    CHECK(!rule_hits("/*.php$", "/a.php?x") && !rule_hits("/*.php$", "/a.php5"));
    CHECK(rule_hits("/fish*.php", "/fishheads/catfish.php?x"));
    CHECK(rule_hits("*a*b*c$", "/abcabc") && !rule_hits("*a*b*c$", "/abcab"));
    CHECK(rule_hits("/*?", "/a?b") && !rule_hits("/*?", "/a"));
    CHECK(rule_hits("/**a", "/xa") && rule_hits("/*", "/") && rule_hits("*", "/a"));
    CHECK(!rule_hits("fish", "/fish")); /* is not a path */
}

TEST(escapes_are_compared_by_their_meaning)
{
    CHECK(rule_hits("/a%7Eb", "/a~b") && rule_hits("/a~b", "/a%7eb"));
    CHECK(rule_hits("/\xe3\x83\x84", "/%E3%83%84") && rule_hits("/%e3%83%84", "/\xe3\x83\x84"));
    CHECK(!rule_hits("/a%2Fb", "/a/b") && rule_hits("/a%2fb", "/a%2Fb"));
    CHECK(rule_hits("/a-%2A.html", "/a-*.html") && !rule_hits("/a-%2A.html", "/a-x.html"));
    CHECK(rule_hits("/a-%24", "/a-$") && rule_hits("/a$b", "/a$b") && !rule_hits("/a$b", "/a"));
}

TEST(lines_may_have_any_line_end_and_comments)
{
    CHECK(!allows("\xef\xbb\xbfUser-agent: *\r\nDisallow: /a # not this\r\n", "/a"));
    CHECK(!allows("User-agent: *\rDisallow: /a\r", "/a"));
    CHECK(!allows("# Disallow: /x\n \t user-AGENT \t:\t * \n\n disallow : /a", "/a"));
    CHECK(!allows("User-agent: *\nSitemap: http://h/x\nUnknown: 1\nno colon\nDisallow: /a", "/a"));
    CHECK(!allows("User-agent: bot\n\nSitemap: http://h/x\nUser-agent: x\nDisallow: /a", "/a"));
    CHECK(allows("User-agent: bot\nCrawl-delay: 1\nUser-agent: x\nDisallow: /a", "/a"));
}

TEST(the_crawl_delay_is_that_of_the_group)
{
    static const char text[] = "User-agent: *\nCrawl-delay: 9\nUser-agent: bot\nCrawl-delay: 2.5\n"
                               "Crawl-delay: 1\n";
    robots r = {0};
    CHECK_INT(robots_parse(&r, text, strlen(text), "bot"), 0);
    CHECK(r.crawl_delay == 2.5);
    CHECK_INT(robots_parse(&r, text, strlen(text), "x"), 0);
    CHECK(r.crawl_delay == 9);
    CHECK_INT(robots_parse(&r, "Crawl-delay: 3", 14, "x"), 0);
    CHECK(r.crawl_delay == 0);
    CHECK_INT(robots_parse(&r, "User-agent: *\nCrawl-delay: -x\n", 30, "x"), 0);
    CHECK(r.crawl_delay == 0);
    robots_free(&r);
    robots_free(&r);
}

TEST(text_beyond_the_limits_is_ignored)
{
    enum { SIZE = 600 * 1024 };
    char *text = malloc(SIZE + 1), *path = malloc(100001);
    robots r = {0};
    memset(text, 'x', SIZE);
    text[SIZE] = 0;
    memcpy(text, "User-agent: *\nDisallow: /a\nDisallow: /", 38);
    memcpy(text + SIZE - 20, "\nDisallow: /b\n", 14);
    CHECK_INT(robots_parse(&r, text, SIZE, "bot"), 0);
    CHECK_INT(r.count, 1);
    CHECK(!robots_allows(&r, "/a") && robots_allows(&r, "/b"));
    memset(path, '/', 100000);
    path[100000] = 0;
    CHECK(!robots_allows(&r, path)); /* cannot be compared, but there are rules */
    free(text);
    free(path);
    robots_free(&r);
}

TEST(no_rule_takes_exponential_time)
{
    char text[2048] = "User-agent: *\nDisallow: /", path[2000] = "/";
    for (int i = 0; i < 500; i++)
        strcat(text, "*a");
    strcat(text, "b");
    for (int i = 1; i < 1900; i++)
        path[i] = 'a';
    CHECK(allows(text, path));
}

TEST(any_bytes_are_read)
{
    static const char *const words[] = {"User-agent:", "Disallow:", "Allow:", "*",
                                        "bot",         "/",         "$",      "%2",
                                        "\n",          "\r",        "#",      "\0\xff"};
    uint64_t seed = 3;
    for (int round = 0; round < 20000; round++) {
        char text[256];
        size_t size = 0;
        robots r = {0};
        while (size < 200) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            const char *w = words[(seed >> 33) % CONC_LEN(words)];
            size_t n = *w ? strlen(w) : 2;
            memcpy(text + size, w, n);
            size += n;
        }
        char *exact = malloc(size); /* a sanitizer detects reads behind it */
        memcpy(exact, text, size);
        CHECK_INT(robots_parse(&r, exact, size, "bot"), 0);
        free(exact);
        robots_allows(&r, "/a*$%2");
        robots_free(&r);
    }
}
