/* Distributed web crawler. Worker processes share one frontier in Redis: which URLs are known,
   which are waiting, and which hosts may be asked now (common/frontier.h). Each canonical URL is
   fetched by one worker, once. Requests to a host are sent one at a time, with pauses. A worker may
   be killed at any time: the others take over its work. Pages and links are stored in SQLite.

 cc 02_web_crawler.c -o crawl -lcurl -lhiredis -lhttp_parser -lsqlite3 -lxml2 -I/usr/include/libxml2
   ./crawl                       # a site, a Redis and three workers of its own; one is killed
   ./crawl --goal                # 10,000 pages
   ./crawl --depth 2 http://example.com/                # stored in crawl.db
   sqlite3 crawl.db "SELECT depth, status, title, url FROM pages"
   ./crawl --redis 127.0.0.1:6379 http://example.com/   # a Redis that others can reach; then
   ./crawl --redis 127.0.0.1:6379 --worker              # one more worker, from another terminal
   ./crawl --site 8080           # only the site: http://h0.localhost:8080/page/0

   After Ctrl+C or a crash the same command resumes: pages in the database are not fetched again,
   even if Redis has lost everything. To start over, use another --db and an empty Redis. Workers on
   other machines have their own databases. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/fetch.h"
#include "../common/frontier.h"
#include "../common/html.h"
#include "../common/http.h"
#include "../common/options.h"
#include "../common/redis.h"
#include "../common/redis_server.h"
#include "../common/robots.h"
#include "../common/site.h"
#include "../common/sqlite.h"
#include <sys/prctl.h>

enum {
    TASKS = 16,               /* of a worker: so many hosts it asks at once */
    ATTEMPTS = 3,             /* to fetch a page; */
    MOST_TRIES = 6,           /* with those that ended with their worker */
    MAX_LINKS = 1000,         /* of a page */
    MOST_PAUSE = 30,          /* seconds, that a robots.txt may ask for */
    MOST_DEATHS = 100,        /* of a worker, before the supervisor gives up */
    ROBOTS_LIMIT = 512 * 1024 /* bytes */
};

static struct {
    const char *redis, *db, *site;
    char **seeds;
    bool is_goal, is_worker;
    double parent; /* the process that started this one; 0: it is not to end with it */
    double workers, kills, pages, hosts; /* negative: not set */
    double depth, per_host, delay, lease, timeout, size;
} options = {.workers = 3,
             .kills = -1,
             .pages = -1,
             .hosts = -1,
             .depth = -1,
             .per_host = -1,
             .delay = -1,
             .lease = -1,
             .timeout = -1,
             .size = 1 << 20};

/* The same for all workers: they read them from Redis. */
static const frontier_setting settings[] = {
    {"depth", &options.depth}, {"per-host", &options.per_host}, {"delay", &options.delay},
    {"lease", &options.lease}, {"timeout", &options.timeout},   {"size", &options.size}};

/* ---- a worker: each of its tasks leases a URL, fetches, extracts, stores, and adds the links - */

typedef struct {
    frontier *frontier;
    sqlite_db *db;
    fetch_client *client;
    conc_pool *pool;
    int requests;
} worker;

typedef struct {
    worker *of;
    frontier_url url;
    fetch_response response;
    /* what comes of it */
    int status;
    char title[256], error[96]; /* error: why there is no page; "" if there is one */
    char *links;                /* URLs, as a JSON array, which Redis and SQLite can read */
} page;

static int page_free(page *p)
{
    free(p->links);
    fetch_response_free(&p->response);
    return frontier_url_free(&p->url);
}
CONC_AUTO_TYPE(page, page_free);

static int extract(void *arg);
static int is_stored(page *p);
static int store(void *arg);

/* 0: there is an answer, or p->error says why not; 1: it is worth another attempt, or this process
   was stopped for so long that others may have its pages now. The host is released at once: it does
   not wait for this page's extraction. */
static int get(page *p, double limit, int redirects)
{
    static const char *const headers[] = {"User-Agent: conc-crawler/1.0", NULL};
    const fetch_options o = {.headers = headers,
                             .timeout = options.timeout,
                             .limit = (size_t)limit,
                             .redirects = redirects};
    if (!frontier_holds(p->of->frontier))
        return 1;
    int rc = fetch(p->of->client, p->url.url, &o, &p->response);
    if (rc == -ECANCELED)
        return rc;
    p->of->requests++;
    p->status = p->response.status;
    bool is_busy = rc == 0 && (p->status >= 500 || p->status == 429);
    bool is_lost = rc == -ETIMEDOUT || rc == -ECONNREFUSED || rc == -ECONNRESET;
    if (rc == -EMSGSIZE)
        snprintf(p->error, sizeof p->error, "more than %.0f bytes", limit);
    else if (rc < 0)
        snprintf(p->error, sizeof p->error, "%s", conc_strerror(rc));
    else if (p->status >= 400)
        snprintf(p->error, sizeof p->error, "status %d", p->status);
    if (*p->error)
        fprintf(stderr, "worker %s: %s: %s, attempt %d\n", p->of->frontier->worker, p->url.url,
                p->error, p->url.tries);
    CONC_TRY(frontier_release(p->of->frontier, &p->url));
    return (is_busy || is_lost) && p->url.tries < ATTEMPTS;
}

/* If the server fails to answer, nothing is allowed: RFC 9309 says so. */
static int get_robots(page *p)
{
    CONC_AUTO(robots, rules) = {0};
    const char *text = "User-agent: *\nDisallow: /\n";
    if (CONC_TRY(get(p, ROBOTS_LIMIT, 5)))
        return 1;
    if (p->status >= 400 && p->status < 500 && p->status != 429)
        text = "";
    else if (p->status == 200 && p->response.body)
        text = p->response.body;
    CONC_TRY(robots_parse(&rules, text, strlen(text), "conc-crawler"));
    double pause = rules.crawl_delay < MOST_PAUSE ? rules.crawl_delay : MOST_PAUSE;
    return frontier_set_robots(p->of->frontier, &p->url, text, pause);
}

/* Redirects are links: the frontier decides when, and whether, their targets are fetched. */
static int get_page(page *p)
{
    CONC_AUTO(robots, rules) = {0};
    const char *text = p->url.robots;
    CONC_TRY(robots_parse(&rules, text, strlen(text), "conc-crawler"));
    if (!robots_allows(&rules, url_path(p->url.url)))
        snprintf(p->error, sizeof p->error, "forbidden by robots.txt");
    else if (p->url.tries > MOST_TRIES)
        snprintf(p->error, sizeof p->error, "its workers end");
    else if (CONC_TRY(get(p, options.size, -1)))
        return 1;
    return *p->error ? 0 : conc_pool_run(p->of->pool, extract, p);
}

/* A page whose row is there is not fetched again: its links are known. This happens if a worker was
   killed after it stored the page, if Redis has lost its data, or if the depth has become less. */
static int run_page(page *p)
{
    int again = 0;
    if (p->url.depth < 0) {
        again = CONC_TRY(get_robots(p));
    } else if (!CONC_TRY(is_stored(p))) {
        again = CONC_TRY(get_page(p));
        if (!again)
            CONC_TRY(sqlite_transaction(p->of->db, store, p));
    }
    return frontier_finish(p->of->frontier, &p->url, again, p->links ? p->links : "[]");
}

static int run_pages(void *arg)
{
    worker *w = arg;
    for (;;) {
        CONC_AUTO(page, p) = {.of = w};
        if (!CONC_TRY(frontier_lease(w->frontier, &p.url)))
            return 0;
        CONC_TRY(run_page(&p));
    }
}

static int run_tasks(worker *w)
{
    conc_group renewal = {0}, tasks = {0};
    CONC_TRY_IN(&renewal, conc_spawn(&renewal, frontier_renew, w->frontier));
    int rc = 0;
    for (int i = 0; i < TASKS && rc == 0; i++)
        rc = conc_spawn(&tasks, run_pages, w);
    rc = conc_group_end(&tasks, rc);
    conc_group_cancel(&renewal);
    return conc_group_end(&renewal, rc);
}

/* If a connection that was kept turns out to be dead, curl sends the request again at once: this
   would be a second request without a pause. */
static void keep_no_connection(CURL *curl, void *arg)
{
    (void)arg;
    curl_easy_setopt(curl, CURLOPT_FORBID_REUSE, 1L);
}

static int open_db(sqlite_db *db)
{
    CONC_TRY(sqlite_open(db, options.db));
    return sqlite_exec(db, "CREATE TABLE IF NOT EXISTS pages"
                           " (url TEXT PRIMARY KEY, depth, status, bytes, title, error);"
                           "CREATE TABLE IF NOT EXISTS links (source TEXT, target TEXT,"
                           " PRIMARY KEY (source, target)) WITHOUT ROWID");
}

/* However it ends, its URLs are given back; if it is killed, they come back when its lease ends. */
static int work(void *arg)
{
    CONC_AUTO(redis_client, redis) = {.address = options.redis, .attempts = 10, .timeout = 10};
    CONC_AUTO(sqlite_db, db) = {.wal = true, .synchronous = "NORMAL", .busy_timeout = 30};
    CONC_AUTO(fetch_client, client) = {.configure = keep_no_connection};
    CONC_AUTO(conc_pool, pool) = {.threads = 2};
    frontier f = {.redis = &redis};
    worker w = {.frontier = &f, .db = &db, .client = &client, .pool = &pool};
    (void)arg;
    html_init();
    CONC_TRY(frontier_join(&f, settings, CONC_LEN(settings)));
    CONC_TRY(open_db(&db));
    CONC_TRY(conc_pool_open(&pool));
    int rc = run_tasks(&w);
    char words[160];
    snprintf(words, sizeof words, "worker %s: %s", f.worker, conc_last_error());
    conc_shield(2, frontier_leave, &f);
    fprintf(stderr, "worker %s: %d requests\n", f.worker, w.requests);
    if (rc == 0 || rc == -ECANCELED)
        return rc;
    return conc_fail(rc, "%s", words); /* whatever became of the leave */
}

/* ---- extraction, in a thread of the pool; the database --------------------------------------- */

static int extract(void *arg)
{
    page *p = arg;
    const fetch_response *r = &p->response;
    const char *target = fetch_header(r, "location"), *comma = "";
    char url[URL_SIZE];
    size_t size;
    FILE *f = open_memstream(&p->links, &size);
    CONC_AUTO(html_page, html) = {.content_type = fetch_header(r, "content-type"),
                                  .max_links = MAX_LINKS};
    if (!f)
        return -ENOMEM;
    int rc = html_read(&html, p->url.url, r->body, r->size);
    snprintf(p->title, sizeof p->title, "%s", html.title);
    fputc('[', f);
    for (size_t i = 0; i < html.link_count && !html.nofollow; i++, comma = ",")
        fprintf(f, "%s\"%s\"", comma, html.links[i]);
    bool is_redirect = p->status / 100 == 3 && target;
    if (is_redirect && url_canonical(p->url.url, target, url, sizeof url) > 0)
        fprintf(f, "%s\"%s\"", comma, url);
    fputc(']', f);
    return fclose(f) ? -ENOMEM : rc;
}

/* 1: it is, and p->links are its links. */
static int is_stored(page *p)
{
    sqlite_db *db = p->of->db;
    sqlite_value url = sqlite_text(p->url.url), depth = sqlite_int(p->url.depth);
    CONC_AUTO(sqlite_rows, rows) = {0};
    CONC_TRY(sqlite_query(db, &rows,
                          "SELECT depth, (SELECT json_group_array(target) FROM links"
                          " WHERE source = url) FROM pages WHERE url = ?",
                          url));
    if (!CONC_TRY(sqlite_next(&rows)))
        return 0;
    p->links = strdup(rows.row[1].text);
    if (!p->links)
        return -ENOMEM;
    if (rows.row[0].integer != p->url.depth)
        CONC_TRY(sqlite_exec(db, "UPDATE pages SET depth = ? WHERE url = ?", depth, url));
    return 1;
}

/* In a transaction. If this worker was held up, and another one has stored the page, the newer row
   counts. */
static int store(void *arg)
{
    page *p = arg;
    sqlite_db *db = p->of->db;
    sqlite_value url = sqlite_text(p->url.url), bytes = sqlite_int((int64_t)p->response.size);
    sqlite_value error = sqlite_text(*p->error ? p->error : NULL);
    CONC_TRY(sqlite_exec(db, "DELETE FROM links WHERE source = ?", url));
    CONC_TRY(sqlite_exec(db, "INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?, ?, ?)", url,
                         sqlite_int(p->url.depth), sqlite_int(p->status), bytes,
                         sqlite_text(p->title), error));
    return sqlite_exec(db, "INSERT OR IGNORE INTO links SELECT ?, value FROM json_each(?)", url,
                       sqlite_text(p->links ? p->links : "[]"));
}

/* ---- the supervisor: starts workers, and another one for each that was killed ---------------- */

typedef struct {
    frontier *frontier;
    sqlite_db *db;
    conc_child *workers[64]; /* those that run; else NULL */
    int kills;               /* so far */
} crew;

static int keep_worker(void *arg)
{
    conc_child **running = arg;
    char parent[12];
    int status = 0;
    const char *const argv[] = {"/proc/self/exe", "--worker", "--redis", options.redis, "--db",
                                options.db,       "--parent", parent,    NULL};
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    for (int deaths = 0; deaths < MOST_DEATHS; deaths++) {
        CONC_AUTO(conc_child, child) = {.argv = argv, .group = true, .grace = 5};
        CONC_TRY(conc_child_start(&child));
        *running = &child;
        int rc = conc_child_wait(&child, &status);
        *running = NULL;
        CONC_TRY(rc);
        bool was_asked = WIFEXITED(status) && WEXITSTATUS(status) >= 128; /* to end */
        if (was_asked || (WIFEXITED(status) && WEXITSTATUS(status) == 0))
            return 0;
        if (WIFEXITED(status))
            return conc_fail(-ECHILD, "a worker failed: its words are above");
        fprintf(stderr, "process %d was killed (signal %d): another one takes its place\n",
                child.pid, WTERMSIG(status));
    }
    return conc_fail(-ECHILD, "workers are killed all the time");
}

static int run_workers(crew *c)
{
    conc_group g = {0};
    for (int i = 0; i < (int)options.workers; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, keep_worker, &c->workers[i]));
    return conc_group_wait(&g);
}

/* To see what happens then: kills any one of the workers, at moments spread over the crawl. */
static void kill_one(crew *c, int64_t stored)
{
    conc_child *one = c->workers[(int)conc_random(0, options.workers)];
    double due = options.pages * (c->kills + 1) / (options.kills + 1);
    if (c->kills >= options.kills || (double)stored < due || !one)
        return;
    fprintf(stderr, "process %d is killed now\n", one->pid);
    conc_child_kill(one, SIGKILL);
    c->kills++;
}

/* One line that counts up on a terminal; a line a second elsewhere. */
static int watch(void *arg)
{
    crew *c = arg;
    bool is_terminal = isatty(STDOUT_FILENO);
    int64_t stored = 0, shown = -1;
    for (int tick = 1;; tick++) {
        CONC_TRY(conc_sleep(0.1));
        CONC_TRY(sqlite_number(c->db, &stored, "SELECT count(*) FROM pages"));
        kill_one(c, stored);
        bool is_due = is_terminal || tick % 10 == 0;
        if (!is_due || stored == shown)
            continue;
        shown = stored;
        printf(is_terminal ? "\r%lld pages" : "%lld pages\n", (long long)stored);
        fflush(stdout);
    }
}

static int report(const crew *c)
{
    static const char *const counts[] = {"duplicates", "too deep", "too many of a host",
                                         "taken over", "given back"};
    CONC_AUTO(sqlite_rows, rows) = {0};
    long long count;
    CONC_TRY(sqlite_query(c->db, &rows,
                          "SELECT coalesce(error, 'fetched'), count(*) FROM pages"
                          " GROUP BY 1 ORDER BY 2 DESC, 1"));
    printf(isatty(STDOUT_FILENO) ? "\n%s:\n" : "%s:\n", options.db);
    while (CONC_TRY(sqlite_next(&rows)))
        printf("%8lld %s\n", (long long)rows.row[1].integer, rows.row[0].text);
    printf("the frontier:\n");
    for (size_t i = 0; i < CONC_LEN(counts); i++) {
        CONC_TRY(frontier_count(c->frontier, counts[i], &count));
        printf("%8lld %s\n", count, counts[i]);
    }
    return 0;
}

static int crawl(crew *c)
{
    conc_group g = {0};
    char url[URL_SIZE];
    double start = conc_now();
    CONC_TRY(open_db(c->db));
    CONC_TRY(frontier_begin(c->frontier, settings, CONC_LEN(settings)));
    for (char **seed = options.seeds; *seed; seed++) {
        CONC_TRY(url_canonical(NULL, *seed, url, sizeof url));
        CONC_TRY(frontier_add(c->frontier, url));
    }
    CONC_TRY_IN(&g, conc_spawn(&g, watch, c));
    int rc = run_workers(c);
    conc_group_cancel(&g);
    CONC_TRY(conc_group_end(&g, rc));
    CONC_TRY(report(c));
    printf("%d workers, %.1f s\n", (int)options.workers, conc_now() - start);
    long long hosts;
    CONC_TRY(frontier_waiting(c->frontier, &hosts));
    return hosts ? conc_fail(-EAGAIN, "URLs of %lld hosts wait: start it again", hosts) : 0;
}

/* ---- its own site: a process of this program, and is all that was stored right? -------------- */

static int run_site(void *arg)
{
    site s = {.pages = (int)options.pages, .hosts = (int)options.hosts};
    char address[64];
    (void)arg;
    snprintf(address, sizeof address, "127.0.0.1:%s", options.site);
    CONC_TRY(site_listen(&s, address));
    printf("http://h0.localhost:%d/page/0 http://bad.localhost:%d/\n", s.port, s.port);
    fflush(stdout);
    return site_serve(&s);
}

static int start_site(conc_child *child, site *s)
{
    static char line[160], *seeds[3];
    char pages[16], hosts[16], parent[16];
    const char *const argv[] = {"/proc/self/exe", "--site", "0",        "--pages", pages,
                                "--hosts",        hosts,    "--parent", parent,    NULL};
    snprintf(pages, sizeof pages, "%.0f", options.pages);
    snprintf(hosts, sizeof hosts, "%.0f", options.hosts);
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    *child = (conc_child){.argv = argv, .output = CONC_PIPE, .group = true};
    CONC_TRY(conc_child_start(child));
    if (CONC_TRY(conc_read(child->output, line, sizeof line - 1)) == 0)
        return conc_fail(-ECHILD, "the site does not start");
    seeds[0] = strtok(line, " \n");
    seeds[1] = strtok(NULL, " \n");
    options.seeds = seeds;
    s->port = atoi(strrchr(seeds[0], ':') + 1);
    return 0;
}

static int read_log(const site *s, site_log *log)
{
    CONC_AUTO(fetch_client, client) = {0};
    CONC_AUTO(fetch_response, r) = {0};
    char url[64];
    snprintf(url, sizeof url, "http://127.0.0.1:%d/log", s->port);
    CONC_TRY(fetch(&client, url, NULL, &r));
    return site_read_log(r.body, log);
}

static int check(const crew *c, const site *s)
{
    site_log log;
    int64_t wrong = 0;
    long long taken_over;
    char *graph = NULL, urls[64];
    snprintf(urls, sizeof urls, "*:%d/page/*", s->port);
    CONC_TRY(read_log(s, &log));
    CONC_TRY(frontier_count(c->frontier, "taken over", &taken_over));
    CONC_TRY(site_graph(s, (int)options.depth, &graph));
    int rc = sqlite_number(c->db, &wrong, site_compare, sqlite_text(graph), sqlite_text(urls));
    free(graph);
    CONC_TRY(rc);
    int again = log.requests - log.pages;
    printf("the site: %d of %d pages asked for, %d of them again after a kill, %d forbidden ones;"
           " at least %.1f ms between two requests to a host\n",
           log.pages, s->pages, again, log.forbidden, log.gap * 1000);
    printf("%lld rows differ from the site's graph\n", (long long)wrong);
    bool is_right = wrong == 0 && again <= taken_over && log.forbidden == 0;
    return is_right ? 0 : conc_fail(-EPROTO, "the counts are wrong");
}

/* What is not named is started: Redis, which keeps nothing on the disk, as the database is enough
   to go on; and the site, whose rows go to Redis's folder then. */
static int supervise(void *arg)
{
    CONC_AUTO(redis_server, server) = {0};
    CONC_AUTO(conc_child, child) = {0};
    CONC_AUTO(redis_client, redis) = {.address = options.redis, .timeout = 10};
    CONC_AUTO(sqlite_db, db) = {.wal = true, .synchronous = "NORMAL", .busy_timeout = 30};
    frontier f = {.redis = &redis};
    crew c = {.frontier = &f, .db = &db};
    site s = {.pages = (int)options.pages, .hosts = (int)options.hosts};
    bool *is_own = arg;
    char path[128];
    if (!options.redis) {
        CONC_TRY(redis_server_start(&server));
        redis.address = options.redis = server.address;
    }
    snprintf(path, sizeof path, "%s/crawl.db", *is_own && *server.folder ? server.folder : ".");
    if (!options.db)
        options.db = path;
    if (*is_own)
        CONC_TRY(start_site(&child, &s));
    CONC_TRY(crawl(&c));
    return *is_own ? check(&c, &s) : 0;
}

/* ---- options --------------------------------------------------------------------------------- */

static const options_field fields[] = {
    OPTIONS_WORDS("URL...", &options.seeds, "where to begin; without any: a site of its own"),
    OPTIONS_TEXT("redis", "ADDRESS", &options.redis, "default: a redis-server of its own"),
    OPTIONS_TEXT("db", "FILE", &options.db, "default: crawl.db; for the own site a temporary one"),
    OPTIONS_NUMBER("workers", "N", &options.workers, 1, 64, "processes; default: 3"),
    OPTIONS_NUMBER("depth", "N", &options.depth, 0, 1e6, "links from the first URLs; default: 5"),
    OPTIONS_NUMBER("per-host", "N", &options.per_host, 1, 1e9, "URLs of a host; default: 1000"),
    OPTIONS_NUMBER("delay", "S", &options.delay, 0, 3600, "between requests to a host; default: 1"),
    OPTIONS_NUMBER("timeout", "S", &options.timeout, 0.01, 3600, "for a page; default: 10"),
    OPTIONS_NUMBER("size", "BYTES", &options.size, 1, 1e9, "of a page at most; default: 1 MiB"),
    OPTIONS_NUMBER("lease", "S", &options.lease, 0.1, 3600,
                   "then the others have what a dead worker had; default: 5"),
    OPTIONS_FLAG("worker", &options.is_worker, "be one more worker of the crawl at --redis"),
    OPTIONS_FLAG("goal", &options.is_goal, "10,000 pages of the own site"),
    OPTIONS_TEXT("site", "PORT", &options.site, "be the site that is made up"),
    OPTIONS_NUMBER("pages", "N", &options.pages, 1, 1e7, "of the site; default: 300"),
    OPTIONS_NUMBER("hosts", "N", &options.hosts, 1, 1e5, "of the site; default: 10"),
    OPTIONS_NUMBER("kills", "N", &options.kills, 0, 50, "of workers, on the own site; default: 1"),
    OPTIONS_NUMBER("parent", "PID", &options.parent, 1, 1e9,
                   "end with the process that started it")};

static void set_default(double *option, double value)
{
    if (*option < 0)
        *option = value;
}

/* The own site is near, and may be asked often. */
static void set_defaults(bool is_own)
{
    set_default(&options.pages, options.is_goal ? 10000 : 300);
    set_default(&options.hosts, options.is_goal ? 50 : 10);
    set_default(&options.kills, options.is_goal ? 3 : is_own);
    set_default(&options.depth, is_own ? 20 : 5);
    set_default(&options.per_host, is_own ? options.pages / options.hosts + 50 : 1000);
    set_default(&options.delay, is_own ? 0.02 : 1);
    set_default(&options.timeout, is_own ? 1 : 10);
    set_default(&options.lease, is_own ? 1 : 5);
}

int main(int argc, char **argv)
{
    int status = options_read(fields, CONC_LEN(fields), argc, argv, "crawl [options] [URL...]",
                              "Crawls web sites with several processes.");
    bool is_own = status < 0 && !*options.seeds && !options.is_worker;
    if (status >= 0)
        return status;
    set_defaults(is_own);
    if (options.parent > 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (options.parent > 0 && getppid() != (pid_t)options.parent) /* it has ended before that */
        return 1;
    if (options.is_worker && !options.db)
        options.db = "crawl.db";
    setenv("no_proxy", "localhost,127.0.0.1", 0);
    if (options.site)
        return conc_main(run_site, NULL);
    if (options.is_worker)
        return conc_main(work, NULL);
    return conc_main(supervise, &is_own);
}
