/* test_url.c - examples/common/url.h: spellings of one URL are normalized, and references are
 * resolved.
 *
 * Needs -lcurl
 */
#include "../conc_test.h"

#include "url.h"

static const char *canonical(const char *base, const char *reference)
{
    static char out[URL_SIZE];
    int rc = url_canonical(base, reference, out, sizeof out);
    CHECK_INT(rc < 0 ? 0 : rc, strlen(out));
    return rc < 0 ? conc_strerror(rc) : out;
}

TEST(spellings_of_one_url_become_one)
{
    static const char *const same[] = {
        "http://example.org/a~b",           "HTTP://EXAMPLE.ORG/a~b",
        "http://example.org:80/a~b",        "http://example.org/a%7eb",
        "http://example.org/%61%7Eb",       "http://example.org/x/../a~b",
        "http://example.org/./a~b#part",    "http://user:word@example.org/a~b",
        "http://example.org./a~b",          " \n http://example.org/a~b\t ",
        "http://exam\nple.org/a~b",         "http://example.org/x/%2E%2e/a~b",
        "http://example.org/../../../a~b#", "http://%65xample.org/a~b",
        "http://example.org:080/a~b",       "http://example.org/a~b?",
    };
    for (size_t i = 0; i < CONC_LEN(same); i++)
        CHECK_STR(canonical(NULL, same[i]), same[0]);
}

TEST(different_urls_stay_different)
{
    CHECK_STR(canonical(NULL, "http://h"), "http://h/");
    CHECK_STR(canonical(NULL, "http://h?q"), "http://h/?q");
    CHECK_STR(canonical(NULL, "https://h:443/"), "https://h/");
    CHECK_STR(canonical(NULL, "https://h:80/"), "https://h:80/");
    CHECK_STR(canonical(NULL, "http://h/A"), "http://h/A");
    CHECK_STR(canonical(NULL, "http://h/a/"), "http://h/a/");
    CHECK_STR(canonical(NULL, "http://h//a"), "http://h//a");
    CHECK_STR(canonical(NULL, "http://h/a%2fb"), "http://h/a%2Fb");
    CHECK_STR(canonical(NULL, "http://h/?b=2&a=1"), "http://h/?b=2&a=1");
    CHECK_STR(canonical(NULL, "http://h/?a=%26&b=+"), "http://h/?a=%26&b=+");
    CHECK_STR(canonical(NULL, "http://[::1]:80/"), "http://[::1]/");
}

TEST(invalid_characters_are_escaped)
{
    CHECK_STR(canonical(NULL, "http://h/a b"), "http://h/a%20b");
    CHECK_STR(canonical(NULL, "http://h/\"<>\\^`{|}"), "http://h/%22%3C%3E%5C%5E%60%7B%7C%7D");
    CHECK_STR(canonical(NULL, "http://h/\xc3\xa4?\xc3\xa4"), "http://h/%C3%A4?%C3%A4");
    CHECK_STR(canonical(NULL, "http://h/\x01\x7f%00%0A"), "http://h/%01%7F%00%0A");
    CHECK_STR(canonical(NULL, "http://h/%zz%4"), "http://h/%zz%4");
}

TEST(references_are_resolved)
{
    static const char base[] = "http://h:8080/a/b?q";
    CHECK_STR(canonical(base, "c"), "http://h:8080/a/c");
    CHECK_STR(canonical(base, "../c"), "http://h:8080/c");
    CHECK_STR(canonical(base, "./"), "http://h:8080/a/");
    CHECK_STR(canonical(base, "/c"), "http://h:8080/c");
    CHECK_STR(canonical(base, "//other/c"), "http://other/c");
    CHECK_STR(canonical(base, "?z"), "http://h:8080/a/b?z");
    CHECK_STR(canonical(base, "#top"), base);
    CHECK_STR(canonical(base, ""), base);
    CHECK_STR(canonical(base, "https://x/y"), "https://x/y");
    CHECK_STR(canonical(base, " c \n"), "http://h:8080/a/c");
}

TEST(malformed_urls_are_refused)
{
    static const char *const others[] = {"mailto:a@b", "javascript:x()", "ftp://h/", "tel:1"};
    char out[URL_SIZE], *huge = malloc(100001);
    for (size_t i = 0; i < CONC_LEN(others); i++) {
        CHECK_INT(url_canonical("http://h/", others[i], out, sizeof out), -EPROTONOSUPPORT);
        CHECK_STR(out, "");
    }
    CHECK_INT(url_canonical(NULL, "http://h:99999/", out, sizeof out), -EINVAL);
    CHECK_INT(url_canonical(NULL, "http://", out, sizeof out), -EINVAL);
    CHECK(url_canonical(NULL, "", out, sizeof out) < 0);
    CHECK(url_canonical(NULL, "/a", out, sizeof out) < 0);
    memset(huge, 'a', 100000);
    huge[100000] = 0;
    CHECK_INT(url_canonical("http://h/", huge, out, sizeof out), -ENAMETOOLONG);
    huge[URL_SIZE] = 0;
    CHECK_INT(url_canonical("http://h/", huge, out, sizeof out), -ENAMETOOLONG);
    huge[URL_SIZE - 20] = 0;
    CHECK(url_canonical("http://h/", huge, out, sizeof out) > 0);
    CHECK_INT(url_canonical("http://h/", "abc", out, 8), -ENAMETOOLONG);
    CHECK_STR(out, "");
    free(huge);
}

TEST(the_path_begins_behind_the_host)
{
    CHECK_STR(url_path("http://h:1/a?b"), "/a?b");
    CHECK_STR(url_path("https://h/"), "/");
}

TEST(canonical_urls_are_unchanged)
{
    char once[URL_SIZE], twice[URL_SIZE], text[64];
    uint64_t seed = 7;
    for (int round = 0; round < 20000; round++) {
        strcpy(text, "http://h/");
        for (int i = 9; i < 40; i++) {
            static const char alphabet[] = "ab/.%2?&=# ~eEfF:@\\\"\xc3\xa4\x01";
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            text[i] = alphabet[(seed >> 33) % (sizeof alphabet - 1)];
            text[i + 1] = 0;
        }
        if (url_canonical(NULL, text, once, sizeof once) < 0)
            continue;
        CHECK_INT(url_canonical(NULL, once, twice, sizeof twice), strlen(once));
        CHECK_STR(twice, once);
        for (const char *c = once; *c; c++)
            CHECK(*c > ' ' && *c < 0x7f && *c != '"' && *c != '\\');
    }
}
