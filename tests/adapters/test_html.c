/* test_html.c - examples/common/html.h: titles, links, values, charsets, and hostile pages.
 *
 * Needs libxml-2.0 (pkg-config)
 * Needs -lcurl
 */
#define TEST_SYNC
#define TEST_POOL
#include "../conc_test.h"

#include "conc_pool.h"

#include "html.h"

static void read_page(html_page *p, const char *text)
{
    CHECK_INT(html_read(p, "http://h/a/b", text, strlen(text)), 0);
}

/* The links, each followed by a space. */
static const char *links_of(const char *text)
{
    static char all[4096];
    html_page p = {0};
    all[0] = 0;
    read_page(&p, text);
    for (size_t i = 0; i < p.link_count; i++) {
        strcat(all, p.links[i]);
        strcat(all, " ");
    }
    html_free(&p);
    return all;
}

TEST(links_are_canonical_in_order_and_each_once)
{
    CHECK_STR(links_of("<a href=c>1</a><A HREF='/d#x'>2</A><area href=\"//x/\"><a href=./c>3</a>"),
              "http://h/a/c http://h/d http://x/ ");
    CHECK_STR(links_of("<a name=x>1</a><a href='?q&amp;r=1&#x41;'>2<a href=' e\n'>"),
              "http://h/a/b?q&r=1A http://h/a/e ");
    CHECK_STR(links_of("<base href=/z/><a href=c></a>"), "http://h/z/c ");
    CHECK_STR(links_of("<base href='data:x'><a href=c></a>"), "http://h/a/c ");
    CHECK_STR(links_of("<!-- <a href=c> --><script>'<a href=d>'</script><a href=e>"),
              "http://h/a/e ");
}

static const char *flags_of(const char *type, const char *text)
{
    static char flags[3];
    html_page p = {.content_type = type};
    read_page(&p, text);
    snprintf(flags, sizeof flags, "%s%s", p.is_broken ? "b" : "", p.is_misencoded ? "m" : "");
    html_free(&p);
    return flags;
}

TEST(broken_or_misencoded_pages_are_reported)
{
    CHECK_STR(flags_of(NULL, "<!DOCTYPE html><main><p>a<p>b<a href='x?a&b'>c</a></main>"), "");
    CHECK_STR(flags_of(NULL, "<b><i>a</b></i>"), "b");
    CHECK_STR(flags_of(NULL, "<a href=x <b>>c</a>"), "b");
    CHECK_STR(flags_of(NULL, ""), "b");
    CHECK_STR(flags_of("text/html; charset=utf-8", "<p>\xc3\xa9"), "");
    CHECK_STR(flags_of("text/html; charset=UTF-8", "<p>\xe9"), "m");
    CHECK_STR(flags_of("text/html; charset=latin1", "<p>\xe9"), "");
    CHECK_STR(flags_of("text/html; charset=x-klingon", "<p>a"), "m");
    CHECK_STR(flags_of("text/html", "<meta charset=x-klingon><p>\xe9"), "m");
}

TEST(invalid_utf_8_is_read_as_latin_1)
{
    html_page p = {.content_type = "text/html; charset=utf-8"};
    read_page(&p, "<title>caf\xe9</title>");
    CHECK_STR(p.title, "caf\xc3\xa9");
    html_free(&p);
}

TEST(malformed_links_are_counted)
{
    html_page p = {0};
    read_page(&p,
              "<a href='mailto:a@b'><a href='javascript:x'><a href='http://h:99999/'><a href=c>");
    CHECK_INT(p.link_count, 1);
    CHECK_INT(p.bad_links, 3);
    html_free(&p);
}

TEST(the_number_of_links_is_limited)
{
    char text[40000] = "";
    html_page p = {.max_links = 100};
    for (int i = 0; i < 1000; i++)
        sprintf(text + strlen(text), "<a href=%d></a><a href=%d></a>", i, i);
    read_page(&p, text);
    CHECK_INT(p.link_count, 100);
    CHECK_STR(p.links[99], "http://h/a/99");
    CHECK(p.is_cut);
    p.max_links = 0;
    read_page(&p, text);
    CHECK_INT(p.link_count, 1000);
    CHECK(!p.is_cut);
    html_free(&p);
}

TEST(title_and_robots)
{
    html_page p = {0};
    read_page(&p, "<title> A\n  B &amp; \t </title><meta name=ROBOTS content='NoFollow, x'>");
    CHECK_STR(p.title, "A B &");
    CHECK(p.nofollow && !p.noindex);
    read_page(&p, "<meta name=robots content=none>");
    CHECK_STR(p.title, "");
    CHECK(p.nofollow && p.noindex);
    read_page(&p, "<meta name=viewport content='none nofollow'>");
    CHECK(!p.nofollow && !p.noindex);
    html_free(&p);
}

TEST(values_and_nodes)
{
    html_page p = {0};
    html_nodes n = {0};
    read_page(&p, "<ul><li class=x><a href=1> a  b </a><li><a href=2>c</a></ul><p>text");
    CHECK_STR(html_value(&p, NULL, "//li/a"), "a b");
    CHECK_STR(html_value(&p, NULL, "//li[2]/a/@href"), "2");
    CHECK_STR(html_value(&p, NULL, "count(//li)"), "2");
    CHECK_STR(html_value(&p, NULL, "//none"), "");
    CHECK_INT(html_select(&p, NULL, "//li", &n), 0);
    CHECK_INT(n.count, 2);
    CHECK_STR(html_value(&p, n.all[1], "a"), "c");
    CHECK_STR(html_value(&p, n.all[0], "string(@class)"), "x");
    CHECK_INT(html_select(&p, n.all[0], "a", &n), 0);
    CHECK_INT(n.count, 1);
    CHECK_INT(html_select(&p, NULL, "//none", &n), 0);
    CHECK_INT(n.count, 0);
    html_nodes_free(&n);
    html_free(&p);
}

static int no_xpath(void *arg)
{
    html_page p = {0};
    html_nodes n = {0};
    (void)arg;
    read_page(&p, "<p>");
    CHECK(html_value(&p, NULL, "//[") == NULL);
    CHECK(strstr(conc_last_error(), "//[") != NULL);
    CHECK_INT(html_select(&p, NULL, "//li[", &n), -EINVAL);
    CHECK_INT(html_select(&p, NULL, "count(//p)", &n), -EINVAL);
    CHECK(strstr(conc_last_error(), "not a set of nodes") != NULL);
    html_free(&p);
    return 0;
}
TEST(a_malformed_xpath_is_refused) { CHECK_INT(conc_run(no_xpath, NULL), 0); }

TEST(charsets)
{
    html_page p = {0};
    read_page(&p, "<title>s\xc3\xbc\xc3\x9f</title>");
    CHECK_STR(p.title, "s\xc3\xbc\xc3\x9f");
    read_page(&p, "<title>s\xfc\xdf</title>");
    CHECK_STR(p.title, "s\xc3\xbc\xc3\x9f");
    read_page(&p, "<meta charset=koi8-r><title>\xc1</title>");
    CHECK_STR(p.title, "\xd0\xb0");
    p.charset = "ISO-8859-2";
    read_page(&p, "<title>\xb1</title>");
    CHECK_STR(p.title, "\xc4\x85");
    p.charset = "no-such-charset";
    read_page(&p, "<title>\xc3\xbc</title>");
    CHECK_STR(p.title, "\xc3\xbc");
    html_free(&p);
}

TEST(content_types)
{
    html_page p = {.content_type = "Text/HTML; Charset=\"iso-8859-2\"; x=y"};
    read_page(&p, "<title>\xb1</title>");
    CHECK_STR(p.title, "\xc4\x85");
    p.content_type = "application/xhtml+xml;charset=koi8-r";
    read_page(&p, "<title>\xc1</title>");
    CHECK_STR(p.title, "\xd0\xb0");
    p.charset = "utf-8";
    read_page(&p, "<title>\xc3\xbc</title>");
    CHECK_STR(p.title, "\xc3\xbc");
    p.charset = NULL;
    p.content_type = "text/html; charset=";
    read_page(&p, "<title>\xc3\xbc</title>");
    CHECK_STR(p.title, "\xc3\xbc");
    p.content_type = "image/png";
    read_page(&p, "<title>x</title><a href=c>");
    CHECK_STR(p.title, "");
    CHECK_INT(p.link_count, 0);
    html_free(&p);
}

TEST(an_empty_page_and_one_that_is_not_html)
{
    html_page p = {0};
    CHECK_INT(html_free(&p), 0);
    CHECK_INT(html_read(&p, "http://h/", "", 0), 0);
    CHECK_STR(p.title, "");
    CHECK_STR(html_value(&p, NULL, "//a"), "");
    CHECK_INT(html_read(&p, "http://h/", "\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 16), 0);
    CHECK_INT(p.link_count, 0);
    read_page(&p, " ");
    read_page(&p, "{\"a\": \"<b\"}");
    CHECK_INT(p.link_count, 0);
    CHECK_INT(html_read(&p, "http://h/", "<a href=c>\0<a href=d>", 21), 0);
    CHECK(p.link_count >= 1);
    html_free(&p);
    html_free(&p);
}

/* Repeats the text n times. */
static char *repeat(const char *first, const char *text, size_t n)
{
    size_t size = strlen(text);
    char *all = malloc(strlen(first) + n * size + 1), *end = stpcpy(all, first);
    for (size_t i = 0; i < n; i++)
        end = stpcpy(end, text);
    return all;
}

TEST(deep_pages_end_at_the_limit)
{
    static const char *const bad[] = {"<div>",    "<b>",           "<table><tr><td>",
                                      "<ul><li>", "<font><i></p>", "<a href=x><div>"};
    for (size_t i = 0; i < CONC_LEN(bad); i++) {
        char *text = repeat("<a href=c>link</a>", bad[i], 200000);
        html_page p = {0};
        read_page(&p, text);
        if (!p.is_cut)
            test_fail(__FILE__, __LINE__, "%s is not cut", bad[i]);
        CHECK(p.link_count >= 1);
        CHECK_STR(p.links[0], "http://h/a/c");
        html_free(&p);
        free(text);
    }
}

TEST(a_limit_of_the_caller)
{
    html_page p = {.max_depth = 10};
    read_page(&p, "<b><b><b><b><a href=c></a></b></b></b></b>");
    CHECK(!p.is_cut);
    read_page(&p, "<b><b><b><b><b><b><b><b><b><b><b><a href=c></a>");
    CHECK(p.is_cut);
    CHECK_INT(p.link_count, 0);
    html_free(&p);
}

TEST(large_pages_of_all_kinds)
{
    static const char *const bad[] = {
        "<",      "<!",        "&amp;",    "<a href=",        "<!--x-->", "</b>",   "<a href=\"",
        "<p a=b", "<br><hr/>", "\xff\xfe", "<a href=c>x</a>", "<title>",  "<p><b>", "<base href=/>",
        "<?x",    "]]>"};
    for (size_t i = 0; i < CONC_LEN(bad); i++) {
        char *text = repeat("", bad[i], 1000000 / strlen(bad[i]));
        html_page p = {0};
        read_page(&p, text);
        CHECK(p.link_count <= 10000);
        html_free(&p);
        free(text);
    }
}

TEST(any_bytes_are_read)
{
    static const char *const words[] = {"<a href=",   "'",      "\"",   ">",        "<",    "/",
                                        "<title>",    "</",     "a",    "\xc3\xa4", "\xff", "&#0;",
                                        "<base href", "<meta ", "<!--", "-->",      "=",    "\n"};
    uint64_t seed = 5;
    for (int round = 0; round < 3000; round++) {
        char text[600] = "";
        for (int i = 0; i < 50; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            strcat(text, words[(seed >> 33) % CONC_LEN(words)]);
        }
        html_page p = {0};
        char *exact = strdup(text);
        read_page(&p, exact);
        free(exact);
        html_free(&p);
    }
}

/* ---- in a pool's threads */

static int read_in_thread(void *arg)
{
    html_page p = {0};
    int *links = arg;
    CHECK_INT(html_read(&p, "http://h/", "<a href=c>1</a><a href=d>2</a>", 30), 0);
    *links = (int)p.link_count;
    return html_free(&p);
}

static int read_in_pool(void *arg)
{
    int links[200] = {0};
    conc_pool pool = {.threads = 4};
    (void)arg;
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_map(&pool, read_in_thread, links, CONC_LEN(links), sizeof *links), 0);
    for (size_t i = 0; i < CONC_LEN(links); i++)
        CHECK_INT(links[i], 2);
    return conc_pool_close(&pool);
}

TEST(threads_read_pages_at_once)
{
    html_init();
    CHECK_INT(conc_run(read_in_pool, NULL), 0);
}
