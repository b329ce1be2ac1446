/* test_frontier.c - examples/common/frontier.h and redis_server.h: which worker gets which URL,
 * and when, with a real Redis; workers that die, lost replies, depths that decrease.
 *
 * Needs -lhiredis
 */
#define TEST_SYNC
#define TEST_POOL
#include "../conc_test.h"

#include "conc_pool.h"
#include "conc_sync.h"

#include "frontier.h"
#include "redis_server.h"

/* ---- each test has its own crawl on a real server ---- */

static double depth, per_host, delay, lease, other;
static const frontier_setting settings[] = {{"depth", &depth},
                                            {"per-host", &per_host},
                                            {"delay", &delay},
                                            {"lease", &lease},
                                            {"other", &other}};
static redis_server server;
static redis_client client;

static void begin(frontier *f)
{
    f->redis = &client;
    CHECK_INT(frontier_begin(f, settings, CONC_LEN(settings)), 0);
    CHECK_INT(frontier_join(f, settings, CONC_LEN(settings)), 0);
}

static int run_body(void *arg)
{
    test_task *t = arg;
    depth = 5, per_host = 100, delay = 0, lease = 10, other = 0.25;
    CHECK_INT(redis_server_start(&server), 0);
    client = (redis_client){.address = server.address};
    t->body();
    CHECK_INT(redis_close(&client), 0);
    CHECK_INT(redis_server_stop(&server), 0);
    return redis_server_stop(&server);
}

#define FRONTIER_TEST(name)                   \
    static void name##_body(void);            \
    TEST(name)                                \
    {                                         \
        test_task t = {name##_body};          \
        int fds = test_count_fds();           \
        CHECK_INT(conc_run(run_body, &t), 0); \
        CHECK_INT(test_count_fds(), fds);     \
    }                                         \
    static void name##_body(void)

static long long count(frontier *f, const char *what)
{
    long long n = -1;
    CHECK_INT(frontier_count(f, what, &n), 0);
    return n;
}

/* Leases the next URL, which must be this one; path "": the crawl is over. */
#define CHECK_LEASE(f, u, url_)                            \
    do {                                                   \
        CHECK_INT(frontier_lease((f), (u)), *(url_) != 0); \
        if (*(url_))                                       \
            CHECK_STR((u)->url, (url_));                   \
    } while (0)

/* Leases the robots.txt, and finishes it. */
static void pass_robots(frontier *f, const char *url)
{
    CONC_AUTO(frontier_url, u) = {0};
    CHECK_LEASE(f, &u, url);
    CHECK_INT(u.depth, -1);
    CHECK_INT(frontier_set_robots(f, &u, "rules", 0), 0);
    CHECK_INT(frontier_finish(f, &u, false, "[]"), 0);
}

/* No worker gets a URL within this time. */
static void check_none(frontier *f, double s)
{
    CONC_AUTO(frontier_url, u) = {0};
    conc_scope scope = {0};
    CHECK_INT(conc_scope_begin(&scope, s), 0);
    CHECK_INT(conc_scope_end(&scope, frontier_lease(f, &u)), -ETIMEDOUT);
}

FRONTIER_TEST(a_crawl_from_begin_to_end)
{
    frontier f = {0};
    CONC_AUTO(frontier_url, u) = {0};
    long long hosts = -1;
    begin(&f);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    pass_robots(&f, "http://h/robots.txt");
    CHECK_LEASE(&f, &u, "http://h/a");
    CHECK_INT(u.depth, 0);
    CHECK_INT(u.tries, 1);
    CHECK_STR(u.robots, "rules");
    CHECK_INT(
        frontier_finish(&f, &u, false, "[\"http://h/b\",\"http://h/a\",\"http://h/robots.txt\"]"),
        0);
    CHECK_LEASE(&f, &u, "http://h/b");
    CHECK_INT(u.depth, 1);
    CHECK_INT(frontier_waiting(&f, &hosts), 0);
    CHECK_INT(hosts, 1);
    CHECK_INT(frontier_finish(&f, &u, false, "[]"), 0);
    CHECK_INT(frontier_waiting(&f, &hosts), 0);
    CHECK_INT(hosts, 0);
    CHECK_LEASE(&f, &u, "");
    CHECK_INT(count(&f, "duplicates"), 3);
}

FRONTIER_TEST(joining_needs_an_existing_crawl_with_its_settings)
{
    frontier f = {.redis = &client, .name = "other"};
    frontier_setting missing = {"missing", &other};
    CHECK_INT(frontier_join(&f, settings, 1), -EIO);
    CHECK(strstr(conc_last_error(), "there is no other in this Redis") != NULL);
    CHECK_INT(frontier_add(&f, "http://h/"), -EIO);
    begin(&f);
    other = 0;
    CHECK_INT(frontier_join(&f, settings, CONC_LEN(settings)), 0);
    CHECK(other == 0.25);
    CHECK_INT(frontier_join(&f, &missing, 1), -ENOENT);
}

FRONTIER_TEST(one_url_of_a_host_at_a_time_and_a_pause)
{
    frontier f = {0};
    CONC_AUTO(frontier_url, u) = {0};
    CONC_AUTO(frontier_url, v) = {0};
    delay = 0.3;
    begin(&f);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    CHECK_INT(frontier_add(&f, "http://h/b"), 0);
    CHECK_LEASE(&f, &u, "http://h/robots.txt");
    CHECK_INT(frontier_release(&f, &u), 0); /* without effect */
    check_none(&f, 0.1);
    CHECK_INT(frontier_leave(&f), 0); /* the cancelled lease may have one */
    CHECK_LEASE(&f, &u, "http://h/robots.txt");
    CHECK_INT(u.tries, 1);
    double start = conc_now();
    CHECK_INT(frontier_finish(&f, &u, false, "[]"), 0);
    CHECK_LEASE(&f, &u, "http://h/a");
    CHECK(conc_now() - start >= 0.299);
    start = conc_now();
    CHECK_INT(frontier_release(&f, &u), 0);
    CHECK_INT(frontier_release(&f, &u), 0);
    CHECK_LEASE(&f, &v, "http://h/b"); /* while a is not finished */
    CHECK(conc_now() - start >= 0.299);
    CHECK_INT(frontier_finish(&f, &u, false, "[\"http://h/c\"]"), 0);
    start = conc_now();
    CHECK_INT(frontier_finish(&f, &v, false, "[]"), 0); /* no request was made: no pause */
    CHECK_LEASE(&f, &u, "http://h/c");
    CHECK(conc_now() - start < 0.25 || SANITIZED);
}

FRONTIER_TEST(the_pause_of_robots_txt_applies_if_it_is_longer)
{
    frontier f = {0};
    CONC_AUTO(frontier_url, u) = {0};
    begin(&f);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    CHECK_LEASE(&f, &u, "http://h/robots.txt");
    CHECK_INT(frontier_set_robots(&f, &u, "", 0.3), 0);
    double start = conc_now();
    CHECK_INT(frontier_finish(&f, &u, false, "[]"), 0);
    CHECK_LEASE(&f, &u, "http://h/a");
    CHECK(conc_now() - start >= 0.299);
}

FRONTIER_TEST(robots_txt_that_is_to_be_fetched_again_still_comes_first)
{
    frontier f = {0};
    CONC_AUTO(frontier_url, u) = {0};
    begin(&f);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    for (int i = 1; i <= 3; i++) {
        CHECK_LEASE(&f, &u, "http://h/robots.txt");
        CHECK_INT(u.tries, i);
        CHECK_INT(frontier_release(&f, &u), 0);
        CHECK_INT(frontier_finish(&f, &u, i < 3, "[]"), 0);
    }
    CHECK_LEASE(&f, &u, "http://h/a");
}

FRONTIER_TEST(urls_beyond_the_depth_or_the_limit_are_dropped)
{
    frontier f = {0};
    CONC_AUTO(frontier_url, u) = {0};
    depth = 1, per_host = 3;
    begin(&f);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    pass_robots(&f, "http://h/robots.txt");
    CHECK_LEASE(&f, &u, "http://h/a");
    CHECK_INT(frontier_finish(&f, &u, false, "[\"http://h/b\",\"http://h/c\",\"http://h/d\"]"), 0);
    CHECK_LEASE(&f, &u, "http://h/b");
    CHECK_INT(frontier_finish(&f, &u, false, "[\"http://h/e\",\"http://x/\"]"), 0);
    CHECK_LEASE(&f, &u, "http://h/c");
    CHECK_INT(frontier_finish(&f, &u, false, "[]"), 0);
    CHECK_LEASE(&f, &u, "");
    CHECK_INT(count(&f, "too many of a host"), 1);
    CHECK_INT(count(&f, "too deep"), 2);
}

FRONTIER_TEST(a_decreased_depth_is_passed_on)
{
    frontier f = {0};
    CONC_AUTO(frontier_url, a) = {0};
    CONC_AUTO(frontier_url, b) = {0};
    CONC_AUTO(frontier_url, u) = {0};
    begin(&f);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    CHECK_INT(frontier_add(&f, "http://i/b"), 0);
    for (int i = 0; i < 2; i++) { /* of both hosts, in any order */
        CHECK_INT(frontier_lease(&f, &u), 1);
        CHECK_INT(frontier_finish(&f, &u, false, "[]"), 0);
    }
    CHECK_INT(frontier_lease(&f, &a), 1);
    CHECK_INT(frontier_lease(&f, &b), 1);
    CHECK_INT(frontier_finish(&f, &a, false, "[\"http://j/c\"]"), 0);
    pass_robots(&f, "http://j/robots.txt");
    CHECK_LEASE(&f, &u, "http://j/c");
    CHECK_INT(frontier_finish(&f, &u, false, "[\"http://k/d\"]"), 0);
    pass_robots(&f, "http://k/robots.txt");
    CHECK_LEASE(&f, &u, "http://k/d");
    CHECK_INT(u.depth, 2);
    CHECK_INT(frontier_finish(&f, &b, false, "[\"http://k/d\"]"), 0); /* while it is leased */
    CHECK_INT(frontier_finish(&f, &u, false, "[\"http://k/e\"]"), 0);
    CHECK_LEASE(&f, &u, "http://k/d"); /* once more, with its new depth */
    CHECK_INT(u.depth, 1);
    CHECK_INT(frontier_finish(&f, &u, false, "[\"http://k/e\"]"), 0);
    CHECK_LEASE(&f, &u, "http://k/e");
    CHECK_INT(u.depth, 2);
    CHECK_INT(frontier_finish(&f, &u, false, "[]"), 0);
    CHECK_LEASE(&f, &u, "");
}

FRONTIER_TEST(a_dead_workers_urls_are_taken_over)
{
    frontier dead = {0}, f = {0};
    CONC_AUTO(frontier_url, u) = {0};
    CONC_AUTO(frontier_url, v) = {0};
    lease = 0.3, delay = 0.2;
    begin(&dead);
    begin(&f);
    CHECK(strcmp(dead.worker, f.worker) != 0);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    CHECK_LEASE(&dead, &u, "http://h/robots.txt");
    double start = conc_now();
    CHECK_LEASE(&f, &v, "http://h/robots.txt"); /* with the pause: a request may have been made */
    CHECK(conc_now() - start >= 0.499);
    CHECK_INT(v.tries, 2);
    CHECK_INT(count(&f, "taken over"), 1);
    /* it was only slow; its result now has no effect apart from the links */
    CHECK_INT(frontier_release(&dead, &u), 0);
    CHECK_INT(frontier_finish(&dead, &u, true, "[\"http://i/b\"]"), 0);
    CHECK_LEASE(&f, &u, "http://i/robots.txt");
    CHECK_INT(frontier_finish(&f, &v, false, "[]"), 0);
}

FRONTIER_TEST(renewed_leases_stay_valid)
{
    frontier f = {0}, g = {0};
    CONC_AUTO(frontier_url, u) = {0};
    conc_group renewal = {0};
    lease = 0.3;
    begin(&f);
    begin(&g);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    CHECK_LEASE(&f, &u, "http://h/robots.txt");
    CHECK_INT(conc_spawn(&renewal, frontier_renew, &f), 0);
    check_none(&g, 0.8);
    CHECK_INT(count(&g, "taken over"), 0);
    conc_group_cancel(&renewal);
    CHECK_INT(conc_group_wait(&renewal), 0);
}

FRONTIER_TEST(a_delayed_worker_notices_its_lost_lease)
{
    frontier f = {0};
    CONC_AUTO(frontier_url, u) = {0};
    conc_group renewal = {0};
    lease = 0.3;
    begin(&f);
    CHECK(!frontier_holds(&f));
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    CHECK_LEASE(&f, &u, "http://h/robots.txt");
    CHECK(frontier_holds(&f));
    CHECK_INT(conc_spawn(&renewal, frontier_renew, &f), 0);
    CHECK_INT(conc_sleep(0.5), 0);
    CHECK(frontier_holds(&f));
    CHECK_INT(conc_block(0.4), 0);
    CHECK(!frontier_holds(&f));
    CHECK_INT(frontier_finish(&f, &u, true, "[]"), 0);
    CHECK_LEASE(&f, &u, "http://h/robots.txt");
    CHECK(frontier_holds(&f));
    conc_group_cancel(&renewal);
    CHECK_INT(conc_group_wait(&renewal), 0);
}

FRONTIER_TEST(a_worker_returns_its_leases)
{
    frontier f = {0}, g = {0};
    CONC_AUTO(frontier_url, u) = {0};
    begin(&f);
    begin(&g);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    CHECK_LEASE(&f, &u, "http://h/robots.txt");
    CHECK_INT(frontier_leave(&f), 0);
    CHECK_INT(frontier_leave(&f), 0);
    CHECK_LEASE(&g, &u, "http://h/robots.txt");
    CHECK_INT(u.tries, 1);
    CHECK_INT(count(&g, "given back"), 1);
}

/* Like frontier__call when the connection is lost after the call ran. */
FRONTIER_TEST(a_call_may_be_repeated)
{
    frontier f = {0};
    CONC_AUTO(frontier_url, u) = {0};
    CONC_AUTO(redis_reply, r) = NULL;
    begin(&f);
    CHECK_INT(frontier_add(&f, "http://h/a"), 0);
    CHECK_LEASE(&f, &u, "http://h/robots.txt");
    CHECK_INT(FRONTIER__CALL(&f, &r, "lease", u.owner), 0);
    CHECK_STR(r->element[0]->str, "http://h/robots.txt");
    CHECK_INT(r->element[2]->integer, 1);
    for (int i = 0; i < 2; i++)
        CHECK_INT(frontier_finish(&f, &u, false, "[]"), 0);
    CHECK_LEASE(&f, &u, "http://h/a");
    for (int i = 0; i < 2; i++)
        CHECK_INT(frontier_release(&f, &u), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(frontier_finish(&f, &u, true, "[]"), 0);
    CHECK_LEASE(&f, &u, "http://h/a");
    CHECK_INT(u.tries, 2);
    CHECK_INT(frontier_finish(&f, &u, false, "[]"), 0);
    CHECK_LEASE(&f, &u, "");
}

FRONTIER_TEST(the_connection_breaks_again_and_again)
{
    frontier f = {0};
    CONC_AUTO(frontier_url, u) = {0};
    int urls = 0;
    begin(&f);
    CHECK_INT(frontier_add(&f, "http://h/0"), 0);
    while (frontier_lease(&f, &u)) {
        char links[64];
        CONC_AUTO(redis_client, killer) = {.address = server.address};
        snprintf(links, sizeof links, "[\"http://h/%d\",\"http://h/%d\"]", 2 * urls, 2 * urls + 1);
        urls++;
        CHECK_INT(redis_command(&killer, NULL, "CLIENT KILL TYPE normal SKIPME yes"), 0);
        CHECK_INT(frontier_finish(&f, &u, false, urls < 20 ? links : "[]"), 0);
    }
    CHECK(urls > 10);
}

/* ---- many tasks of several workers at once */

enum { SITE_PAGES = 400, SITE_HOSTS = 7 };

static int fetched[SITE_PAGES];
static bool busy[SITE_HOSTS];

static int worker_task(void *arg)
{
    frontier *f = arg;
    CONC_AUTO(frontier_url, u) = {0};
    while (CONC_TRY(frontier_lease(f, &u))) {
        char links[256];
        int host = u.url[7] - 'a', i = -1;
        CHECK(!busy[host]);
        busy[host] = true;
        CONC_TRY(conc_sleep(conc_random(0, 0.002)));
        busy[host] = false;
        CONC_TRY(frontier_release(f, &u));
        strcpy(links, "[]");
        if (u.depth >= 0) {
            i = atoi(u.url + 9);
            fetched[i]++;
            int j[] = {(2 * i + 1) % SITE_PAGES, (2 * i + 2) % SITE_PAGES, i * 7 % SITE_PAGES};
            snprintf(links, sizeof links, "[\"http://%c/%d\",\"http://%c/%d\",\"http://%c/%d\"]",
                     'a' + j[0] % SITE_HOSTS, j[0], 'a' + j[1] % SITE_HOSTS, j[1],
                     'a' + j[2] % SITE_HOSTS, j[2]);
        }
        CONC_TRY(frontier_finish(f, &u, false, links));
    }
    return 0;
}

FRONTIER_TEST(each_url_once_and_no_host_twice_at_a_time)
{
    frontier f[3] = {{0}};
    conc_group g = {0};
    depth = 1000, per_host = 1000;
    for (int i = 0; i < 3; i++)
        begin(&f[i]);
    CHECK_INT(frontier_add(&f[0], "http://a/0"), 0);
    for (int i = 0; i < 12; i++)
        CHECK_INT(conc_spawn(&g, worker_task, &f[i % 3]), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < SITE_PAGES; i++)
        CHECK(fetched[i] >= 1 && fetched[i] <= 3); /* again only if the depth has decreased */
}

static int start_nothing(void *arg)
{
    redis_server s = {0};
    (void)arg;
    CHECK_INT(redis_server_start(&s), -ENOENT);
    CHECK(strstr(conc_last_error(), "there is no redis-server here") != NULL);
    return redis_server_stop(&s);
}

TEST(without_a_redis_server_there_is_an_error)
{
    setenv("PATH", "/nowhere", 1);
    CHECK_INT(conc_run(start_nothing, NULL), 0);
}
