/* Web scraper. It visits several sites at once and politely: it obeys robots.txt, waits between two
   requests to a domain, and sends at most so many at once in all. It visits no page twice, tries
   again what may have failed by chance, and saves to SQLite, in batches, while it goes on. A page
   in the browser shows it live. Interrupted, it goes on where it was when it is started again.

   cc 03_web_scraper.c -o scraper -I/usr/include/libxml2 -lxml2 -lcurl -lhttp_parser -lsqlite3 -lcjson
   ./scraper                       # ten small sites of its own; open the address that it prints
   ./scraper --goal                # 1000 pages of 10 domains, 0.05 s between two of a domain
   ./scraper --goal --delay 1      # the same as politely as on the Internet: 100 s
   ./scraper http://example.com/ http://example.org/                      # saved in scraper.db
   sqlite3 scraper.db "SELECT state, reason, count(*) FROM urls GROUP BY state, reason"
   ./scraper --site 127.0.0.1:8003 # the sites alone: curl -H "Host: site0.localhost" localhost:8003

   Options: --db FILE, --delay SECONDS between two requests to a domain (1), --timeout SECONDS (10),
   --max-pages N of a domain (100), --at-once N requests in all (10), --listen ADDRESS for the page,
   which is 03_web_scraper.html or --page FILE; --stay: it is served until Ctrl+C; --connect-to
   ADDRESS: all hosts are there, and no proxy is used. It runs on the real clock: on the virtual one
   other processes have no time to answer. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/fetch.h"
#include "../common/html.h"
#include "../common/http.h"
#include "../common/robots.h"
#include "../common/sqlite.h"
#include <cjson/cJSON.h>
#include <getopt.h>
#include <libxml/hash.h>
#include <limits.h>
#include <sys/resource.h>

#define AGENT "conc-scraper"
#define RETRY_PAUSE 0.1 /* seconds, doubled each time */
#define LINGER 0.1      /* seconds that results wait for others, to be saved with them */
#define GRACE 5.0       /* seconds to save what is fetched when the program is interrupted */
#define TICK 0.25       /* seconds between two events for the page in the browser */

enum {
    WORKERS = 2, /* of a domain: one waits for its turn while the other one's page comes */
    ATTEMPTS = 3,
    LOST = 5, /* requests in a row without an answer: then a domain is left out */
    HOPS = 5, /* redirects from one URL to the next */
    MOST_DOMAINS = 100,
    MOST_URLS = 100,   /* that are kept of a domain, for each page that it may have */
    MOST_LINKS = 1000, /* of a page */
    MOST_REASONS = 64,
    LONGEST_PAUSE = 60, /* seconds that a domain may ask for */
    BODY_LIMIT = 1 << 20,
    ROBOTS_LIMIT = 500 << 10, /* bytes that RFC 9309 has everybody read */
    LARGE = 16 << 10,         /* a page of so many bytes is parsed in a thread */
    BATCH = 50                /* results in a transaction */
};

static struct {
    const char *db, *listen, *page, *connect_to;
    double delay, timeout;
    int max_pages, at_once;
    bool goal, stay, own;
} options = {.delay = -1, .at_once = 10};

/* What came of a URL. FOUND: nothing yet. */
enum state { FOUND, PAGE, REDIRECT, REFUSED, FAILED, STATES };

static const char *const state_names[STATES] = {"found", "page", "redirect", "refused", "failed"};

typedef struct domain {
    struct scraper *of;
    char host[128]; /* with its port, if it is not the scheme's own */
    char *start;
    robots robots;
    conc_queue frontier; /* of url *: what is to be visited */
    conc_lock turn;      /* of the task that waits until the next request may begin */
    conc_sem room;       /* for so many pages more */
    const char *phase;
    bool is_unreachable;
    int lost_in_a_row; /* requests without an answer */
    int urls, pages;   /* pages: those that are not saved yet, too */
    int saved[STATES];
    double delay, last_request, next_request, smallest_gap;
    double put_off; /* seconds, by Retry-After */
    int requests;
} domain;

/* It is kept to the end, so that no URL is visited twice. */
typedef struct url {
    domain *domain;
    int hops; /* redirects that led here */
    char text[];
} url;

typedef struct result {
    url *url; /* NULL: only URLs were found */
    enum state state;
    int status, attempts, bytes, links;
    double seconds; /* from the request to the links */
    char reason[48];
    char *title;
    url **found; /* they are new */
    int found_count;
} result;

/* How a URL is tried. */
typedef struct trial {
    int attempts;
    double began; /* the last of them */
} trial;

typedef struct tally {
    enum state state;
    char reason[48];
    int count;
} tally;

typedef struct scraper {
    fetch_client client;
    struct curl_slist *connect_to;
    sqlite_db db;
    domain *domains[MOST_DOMAINS];
    int domain_count;
    xmlHashTable *known;    /* all URLs, by their text */
    conc_sem permits;       /* for requests at once */
    conc_latch outstanding; /* URLs in the frontiers, and those that are being visited */
    conc_queue results;     /* to be saved */
    conc_event finished;
    conc_latch viewers;
    char *html; /* the page for the browser */
    int in_flight, most_in_flight, requests, batches, resumed;
    tally reasons[MOST_REASONS];
    int reason_count;
    double started, seconds, *times; /* times: of the pages of this run */
    int time_count;
} scraper;

static void result_free(result *r)
{
    free(r->title);
    free(r->found);
    *r = (result){0};
}
CONC_AUTO_TYPE(result, result_free);

static int judge(result *r, int rc, const fetch_response *response);
static int save_results(void *arg);

/* ---- a request: the turn of its domain, then a permit --------------------------------------- */

static double later(double a, double b) { return a > b ? a : b; }

static void note_request(domain *d)
{
    scraper *s = d->of;
    double now = conc_now(), gap = now - d->last_request;
    if (d->last_request > 0 && (d->smallest_gap == 0 || gap < d->smallest_gap))
        d->smallest_gap = gap;
    d->last_request = now;
    d->next_request = now + d->delay;
    s->requests++;
    d->requests++;
    if (++s->in_flight > s->most_in_flight)
        s->most_in_flight = s->in_flight;
}

/* The domain asks for a pause. */
static void put_off(domain *d, double pause)
{
    double until = later(d->next_request, conc_now() + pause);
    d->put_off += until - d->next_request;
    d->next_request = until;
}

/* The turn is held until the permit is there: else two requests that waited for permits could
 * begin at once. Meanwhile an answer may have put the next request off. */
static int await_turn(domain *d)
{
    CONC_LOCKED(&d->turn) {
        for (;;) {
            CONC_TRY(conc_sleep_until(d->next_request));
            CONC_TRY(conc_sem_acquire(&d->of->permits));
            if (conc_now() >= d->next_request)
                break;
            conc_sem_release(&d->of->permits);
        }
        note_request(d);
    }
    return 0;
}

static int request(domain *d, const char *target, const fetch_options *o, fetch_response *response,
                   trial *t)
{
    CONC_TRY(await_turn(d));
    t->attempts++;
    t->began = conc_now();
    int rc = fetch(&d->of->client, target, o, response);
    d->of->in_flight--;
    conc_sem_release(&d->of->permits);
    if (rc < 0)
        return rc;
    curl_off_t pause = 0;
    curl_easy_getinfo(response->curl, CURLINFO_RETRY_AFTER, &pause);
    if (pause > LONGEST_PAUSE)
        pause = LONGEST_PAUSE;
    if (pause > 0)
        put_off(d, (double)pause);
    return 0;
}

static bool may_pass(int rc, int status)
{
    static const int errors[] = {-ETIMEDOUT,   -ECONNREFUSED, -ECONNRESET,   -EHOSTUNREACH,
                                 -ENETUNREACH, -EPROTO,       -EADDRNOTAVAIL};
    for (size_t i = 0; i < CONC_LEN(errors); i++)
        if (rc == errors[i])
            return true;
    return rc >= 0 && (status >= 500 || status == 429 || status == 408);
}

/* The pause is random, so that requests that failed together do not come back together. */
static int request_again(domain *d, const char *target, const fetch_options *o,
                         fetch_response *response, trial *t)
{
    double pause = RETRY_PAUSE;
    for (;;) {
        int rc = request(d, target, o, response, t);
        if (!may_pass(rc, response->status) || t->attempts == ATTEMPTS)
            return rc;
        CONC_TRY(conc_sleep(pause * conc_random(0.5, 1)));
        pause *= 2;
    }
}

/* ---- a visit, and the tasks of a domain ----------------------------------------------------- */

/* What was found goes to the frontiers, the result to the saver. */
static int hand_over(scraper *s, result *r)
{
    for (int i = 0; i < r->found_count; i++) {
        CONC_TRY(conc_queue_try_put(&r->found[i]->domain->frontier, &r->found[i]));
        CONC_TRY(conc_latch_add(&s->outstanding, 1));
    }
    CONC_TRY(conc_queue_put(&s->results, r));
    *r = (result){0}; /* it is the saver's now */
    return 0;
}

static void leave_out(domain *d, const char *why)
{
    if (!d->is_unreachable)
        fprintf(stderr, "%s is left out: %s\n", d->host, why);
    d->is_unreachable = true;
    conc_set_exit_status(1);
}

/* A server that is down would make failures of all its pages. They stay FOUND, for a later run. */
static void note_answer(domain *d, int rc)
{
    d->lost_in_a_row = rc < 0 && rc != -EMSGSIZE ? d->lost_in_a_row + 1 : 0;
    if (d->lost_in_a_row == LOST)
        leave_out(d, conc_last_error());
}

/* 1: it is a page; 0: it is not. Errors are those of this program only, such as -ENOMEM. */
static int visit(url *u)
{
    domain *d = u->domain;
    const fetch_options o = {.timeout = options.timeout, .limit = BODY_LIMIT, .redirects = -1};
    CONC_AUTO(fetch_response, response) = {0};
    CONC_AUTO(result, r) = {.url = u, .state = REFUSED, .reason = "robots.txt"};
    trial t = {0};
    if (robots_allows(&d->robots, url_path(u->text))) {
        int rc = request_again(d, u->text, &o, &response, &t);
        if (rc == -ECANCELED)
            return rc;
        note_answer(d, rc);
        CONC_TRY(judge(&r, rc, &response));
        r.attempts = t.attempts;
        r.seconds = conc_now() - t.began;
    }
    int is_page = r.state == PAGE;
    d->pages += is_page;
    CONC_TRY(hand_over(d->of, &r));
    return is_page;
}

/* A page keeps its place in the room, anything else gives it back. When the domain has all its
 * pages, one place passes through all that wait; what they hold stays FOUND. */
static int visit_if_room(url *u)
{
    domain *d = u->domain;
    int rc = 0;
    CONC_TRY(conc_sem_acquire(&d->room));
    if (d->pages < options.max_pages && !d->is_unreachable)
        rc = visit(u);
    if (rc <= 0 || d->pages >= options.max_pages)
        conc_sem_release(&d->room);
    return rc;
}

static int work(void *arg)
{
    domain *d = arg;
    url *u;
    int rc;
    while ((rc = conc_queue_get(&d->frontier, &u)) >= 0) {
        CONC_TRY(visit_if_room(u));
        CONC_TRY(conc_latch_done(&d->of->outstanding));
    }
    return rc == -EPIPE ? 0 : rc;
}

/* RFC 9309: without a robots.txt all is allowed; as long as it cannot be had, nothing is. */
static int load_robots(domain *d)
{
    char target[URL_SIZE];
    trial t = {0};
    const fetch_options o = {.timeout = options.timeout, .limit = ROBOTS_LIMIT, .redirects = HOPS};
    CONC_AUTO(fetch_response, response) = {0};
    const char *path = strchr(strstr(d->start, "://") + 3, '/');
    snprintf(target, sizeof target, "%.*s/robots.txt", (int)(path - d->start), d->start);
    d->phase = "robots.txt";
    int rc = request_again(d, target, &o, &response, &t);
    if (rc == -ECANCELED)
        return rc;
    bool has_failed = response.status >= 500 || response.status == 429;
    if (has_failed)
        snprintf(response.error, sizeof response.error, "%.80s: status %d", target,
                 response.status);
    if (rc < 0 || has_failed)
        leave_out(d, response.error);
    else if (response.status < 300)
        CONC_TRY(robots_parse(&d->robots, response.body, response.size, AGENT));
    if (d->robots.crawl_delay > LONGEST_PAUSE)
        d->robots.crawl_delay = LONGEST_PAUSE;
    d->delay = later(d->delay, d->robots.crawl_delay);
    d->next_request = later(d->next_request, d->last_request + d->delay);
    return 0;
}

static int crawl_domain(void *arg)
{
    domain *d = arg;
    conc_group g = {0};
    CONC_TRY(load_robots(d));
    d->phase = "crawls";
    for (int i = 0; i < WORKERS; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, work, d));
    return conc_group_wait(&g);
}

/* No domain is finished before all are: another one may link to it. */
static int crawl(scraper *s)
{
    conc_group g = {0};
    for (int i = 0; i < s->domain_count; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, crawl_domain, s->domains[i]));
    CONC_TRY_IN(&g, conc_latch_wait(&s->outstanding));
    for (int i = 0; i < s->domain_count; i++)
        conc_queue_close(&s->domains[i]->frontier);
    return conc_group_wait(&g);
}

/* ---- the URLs that are known ----------------------------------------------------------------- */

static const char *host_of(const char *target) { return strstr(target, "://") + 3; }

static domain *domain_of(const scraper *s, const char *target)
{
    size_t length = (size_t)(url_path(target) - host_of(target));
    for (int i = 0; i < s->domain_count; i++) {
        domain *d = s->domains[i];
        if (strlen(d->host) == length && memcmp(d->host, host_of(target), length) == 0)
            return d;
    }
    return NULL;
}

/* A URL that was not known, or NULL. */
static url *get_to_know(scraper *s, domain *d, const char *target, int hops)
{
    if (d->urls >= MOST_URLS * options.max_pages || xmlHashLookup(s->known, BAD_CAST target))
        return NULL;
    url *u = malloc(sizeof *u + strlen(target) + 1);
    if (!u || xmlHashAddEntry(s->known, BAD_CAST target, u) != 0) {
        free(u);
        return NULL;
    }
    d->urls++;
    u->domain = d;
    u->hops = hops;
    strcpy(u->text, target);
    return u;
}

/* Adds the URL to those found, if it is new: its domain, or NULL for one that is not ours. */
static domain *discover(scraper *s, result *r, const char *target, int hops)
{
    domain *d = domain_of(s, target);
    url *u = d ? get_to_know(s, d, target, hops) : NULL;
    if (!u)
        return d;
    url **longer = realloc(r->found, (size_t)(r->found_count + 1) * sizeof(url *));
    if (longer) {
        r->found = longer;
        r->found[r->found_count++] = u;
    }
    return d;
}

/* ---- what came of a visit ------------------------------------------------------------------- */

static void set_state(result *r, enum state state, const char *reason)
{
    r->state = state;
    snprintf(r->reason, sizeof r->reason, "%s", reason);
}

/* The target is a URL as any other: its domain has its rules and its turns. */
static void judge_redirect(result *r, const char *location)
{
    char target[URL_SIZE];
    scraper *s = r->url->domain->of;
    domain *d = NULL;
    if (r->url->hops == HOPS) {
        set_state(r, FAILED, "too many redirects");
        return;
    }
    if (url_canonical(r->url->text, location, target, sizeof target) >= 0)
        d = discover(s, r, target, r->url->hops + 1);
    if (!d)
        set_state(r, REDIRECT, "redirect to another host");
    else if (d == r->url->domain && !robots_allows(&d->robots, url_path(target)))
        set_state(r, REDIRECT, "redirect to a disallowed path");
    else
        set_state(r, REDIRECT, "redirect");
}

typedef struct page_job {
    html_page *page;
    const char *url;
    const fetch_response *response;
} page_job;

static int parse(void *arg)
{
    page_job *job = arg;
    return html_read(job->page, job->url, job->response->body, job->response->size);
}

/* A large page is parsed in a thread: the loop goes on. */
static int read_page(result *r, const fetch_response *response, const char *type)
{
    CONC_AUTO(html_page, page) = {.content_type = type, .max_links = MOST_LINKS};
    page_job job = {&page, r->url->text, response};
    CONC_TRY(response->size < LARGE ? parse(&job) : conc_offload(parse, &job));
    for (size_t i = 0; i < page.link_count; i++)
        discover(r->url->domain->of, r, page.links[i], 0);
    set_state(r, PAGE, "");
    r->bytes = (int)response->size;
    r->links = (int)page.link_count;
    r->title = strdup(page.title);
    if (page.is_misencoded)
        set_state(r, PAGE, "wrong encoding");
    else if (page.is_broken)
        set_state(r, PAGE, "broken HTML");
    else if (page.is_cut)
        set_state(r, PAGE, "too deep, or too many links");
    return r->title ? 0 : -ENOMEM;
}

static int judge_answer(result *r, const fetch_response *response)
{
    char *location = NULL, *type = NULL, words[20];
    curl_easy_getinfo(response->curl, CURLINFO_REDIRECT_URL, &location);
    curl_easy_getinfo(response->curl, CURLINFO_CONTENT_TYPE, &type);
    r->status = response->status;
    if (location) {
        judge_redirect(r, location);
    } else if (response->status != 200) {
        snprintf(words, sizeof words, "status %d", response->status);
        set_state(r, FAILED, words);
    } else if (!type || !xmlStrcasestr(BAD_CAST type, BAD_CAST "html")) {
        set_state(r, FAILED, "not HTML");
    } else {
        return read_page(r, response, type);
    }
    return 0;
}

static int judge(result *r, int rc, const fetch_response *response)
{
    if (rc >= 0)
        return judge_answer(r, response);
    if (rc == -EMSGSIZE)
        set_state(r, FAILED, "too large");
    else if (rc == -ETIMEDOUT)
        set_state(r, FAILED, "timeout");
    else
        set_state(r, FAILED, conc_strerror(rc));
    return 0;
}

/* ---- the database: results in batches, a transaction each ----------------------------------- */

typedef struct batch {
    scraper *of;
    int count;
    result results[BATCH];
} batch;

static void batch_free(batch *b)
{
    for (int i = 0; i < b->count; i++)
        result_free(&b->results[i]);
    b->count = 0;
}
CONC_AUTO_TYPE(batch, batch_free);

static int create_table(sqlite_db *db)
{
    return sqlite_exec(db, "CREATE TABLE IF NOT EXISTS urls"
                           " (id INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE, host TEXT NOT NULL,"
                           " hops INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'found',"
                           " reason TEXT NOT NULL DEFAULT '', status INTEGER, attempts INTEGER,"
                           " bytes INTEGER, links INTEGER, seconds REAL, title TEXT)");
}

/* Runs a statement with these values: an SQLite code. */
static int step(sqlite3_stmt *statement, const sqlite_value *values, int count)
{
    for (int i = 0; i < count; i++) {
        const sqlite_value *v = &values[i];
        if (v->type == SQLITE_INTEGER)
            sqlite3_bind_int64(statement, i + 1, v->integer);
        else if (v->type == SQLITE_FLOAT)
            sqlite3_bind_double(statement, i + 1, v->real);
        else if (v->type == SQLITE_TEXT)
            sqlite3_bind_text(statement, i + 1, v->text, (int)v->size, SQLITE_STATIC);
        else
            sqlite3_bind_null(statement, i + 1);
    }
    int code = sqlite3_step(statement);
    sqlite3_reset(statement);
    return code == SQLITE_DONE ? SQLITE_OK : code;
}

static int insert(sqlite3_stmt *statement, const url *u)
{
    const sqlite_value values[] = {sqlite_text(u->text), sqlite_text(u->domain->host),
                                   sqlite_int(u->hops)};
    return step(statement, values, CONC_LEN(values));
}

static int update(sqlite3_stmt *statement, const result *r)
{
    const sqlite_value values[] = {sqlite_text(state_names[r->state]),
                                   sqlite_text(r->reason),
                                   sqlite_int(r->status),
                                   sqlite_int(r->attempts),
                                   sqlite_int(r->bytes),
                                   sqlite_int(r->links),
                                   sqlite_real(r->seconds),
                                   sqlite_text(r->title),
                                   sqlite_text(r->url->text)};
    return step(statement, values, CONC_LEN(values));
}

/* A page may be in line behind one that it leads to, which is then inserted twice. */
static int write_result(sqlite3_stmt *inserting, sqlite3_stmt *updating, const result *r)
{
    int code = SQLITE_OK;
    if (r->url)
        code = insert(inserting, r->url);
    if (r->url && code == SQLITE_OK)
        code = update(updating, r);
    for (int i = 0; i < r->found_count && code == SQLITE_OK; i++)
        code = insert(inserting, r->found[i]);
    return code;
}

/* In a thread: one way there and back for all, not one for each statement. */
static int write_batch(sqlite3 *handle, void *arg)
{
    const batch *b = arg;
    sqlite3_stmt *inserting = NULL, *updating = NULL;
    int code = sqlite3_prepare_v2(
        handle, "INSERT INTO urls (url, host, hops) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", -1,
        &inserting, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_prepare_v2(handle,
                                  "UPDATE urls SET state = ?, reason = ?, status = ?, attempts = ?,"
                                  " bytes = ?, links = ?, seconds = ?, title = ? WHERE url = ?",
                                  -1, &updating, NULL);
    for (int i = 0; i < b->count && code == SQLITE_OK; i++)
        code = write_result(inserting, updating, &b->results[i]);
    sqlite3_finalize(inserting);
    sqlite3_finalize(updating);
    return code;
}

/* In a transaction: a result and the URLs that were found there are saved together. */
static int save(void *arg)
{
    batch *b = arg;
    return sqlite_call(&b->of->db, write_batch, b);
}

static void count_reason(scraper *s, enum state state, const char *reason, int count)
{
    int i = 0;
    while (i < s->reason_count &&
           (s->reasons[i].state != state || strcmp(s->reasons[i].reason, reason) != 0))
        i++;
    if (i == MOST_REASONS)
        return;
    if (i == s->reason_count)
        s->reason_count++;
    s->reasons[i].state = state;
    s->reasons[i].count += count;
    snprintf(s->reasons[i].reason, sizeof s->reasons[i].reason, "%s", reason);
}

static void count_saved(scraper *s, const result *r)
{
    for (int i = 0; i < r->found_count; i++)
        r->found[i]->domain->saved[FOUND]++;
    if (!r->url)
        return;
    r->url->domain->saved[FOUND]--;
    r->url->domain->saved[r->state]++;
    if (r->reason[0])
        count_reason(s, r->state, r->reason, 1);
    if (r->state == PAGE)
        s->times[s->time_count++] = r->seconds;
}

/* What the page in the browser shows is counted here: it is what the database has. */
static int save_batch(void *arg)
{
    batch *b = arg;
    CONC_TRY(sqlite_transaction(&b->of->db, save, b));
    b->of->batches++;
    for (int i = 0; i < b->count; i++)
        count_saved(b->of, &b->results[i]);
    batch_free(b);
    return 0;
}

/* Waits for a result, and then a little for others. */
static int fill_batch(batch *b)
{
    conc_queue *results = &b->of->results;
    CONC_TRY(conc_queue_get(results, &b->results[0]));
    b->count = 1;
    for (double end = conc_now() + LINGER; b->count < BATCH; b->count++) {
        conc_case next[] = {CONC_CASE_GET(results, &b->results[b->count]),
                            CONC_CASE_AFTER(end - conc_now())};
        if (conc_select(next, CONC_LEN(next)) != 0 || next[0].result < 0)
            break; /* also if this task is cancelled: what is there is saved first */
    }
    return 0;
}

static int save_rest(void *arg)
{
    CONC_AUTO(batch, b) = {.of = arg};
    while (conc_queue_try_get(&b.of->results, &b.results[b.count]) == 0)
        if (++b.count == BATCH)
            CONC_TRY(save_batch(&b));
    return b.count ? save_batch(&b) : 0;
}

/* A cancel does not cut a transaction short, and what is in line is saved as well. */
static int save_results(void *arg)
{
    for (;;) {
        CONC_AUTO(batch, b) = {.of = arg};
        int rc = fill_batch(&b);
        if (rc == -EPIPE)
            return 0;
        if (rc >= 0)
            rc = conc_shield(GRACE, save_batch, &b);
        if (rc == -ECANCELED)
            CONC_TRY(conc_shield(GRACE, save_rest, arg));
        CONC_TRY(rc);
    }
}

static int sum_saved(const scraper *s, enum state state)
{
    int sum = 0;
    for (int i = 0; i < s->domain_count; i++)
        sum += s->domains[i]->saved[state];
    return sum;
}

/* Goes on where an earlier run ended. */
static int load_row(scraper *s, const sqlite_value *row)
{
    const char *target = row[0].text;
    domain *d = strstr(target, "://") && url_path(target) ? domain_of(s, target) : NULL;
    url *u = d ? get_to_know(s, d, target, (int)row[3].integer) : NULL;
    int state = FOUND;
    if (!u)
        return 0; /* of a domain that this run is not about */
    while (state < STATES - 1 && strcmp(row[1].text, state_names[state]) != 0)
        state++;
    s->resumed++;
    d->saved[state]++;
    d->pages += state == PAGE;
    if (row[2].text[0])
        count_reason(s, state, row[2].text, 1);
    if (state != FOUND)
        return 0;
    CONC_TRY(conc_latch_add(&s->outstanding, 1));
    return conc_queue_try_put(&d->frontier, &u);
}

static int load(scraper *s)
{
    CONC_AUTO(sqlite_rows, rows) = {.batch = 1000};
    CONC_TRY(sqlite_open(&s->db, options.db));
    CONC_TRY(create_table(&s->db));
    CONC_TRY(sqlite_query(&s->db, &rows, "SELECT url, state, reason, hops FROM urls ORDER BY id"));
    while (CONC_TRY(sqlite_next(&rows)))
        CONC_TRY(load_row(s, rows.row));
    for (int i = 0; i < s->domain_count; i++) {
        domain *d = s->domains[i];
        CONC_AUTO(result, r) = {0};
        d->room.permits = d->pages < options.max_pages ? options.max_pages - d->pages : 1;
        discover(s, &r, d->start, 0);
        CONC_TRY(hand_over(s, &r));
    }
    if (s->resumed)
        printf("goes on: %d URLs are known, %d pages are saved\n", s->resumed, sum_saved(s, PAGE));
    return 0;
}

/* ---- live: a page in the browser, a line on the terminal ------------------------------------ */

static double elapsed(const scraper *s)
{
    return conc_event_is_set(&s->finished) ? s->seconds : conc_now() - s->started;
}

static const char *phase_of(const scraper *s, const domain *d)
{
    if (d->is_unreachable)
        return "left out";
    if (d->saved[PAGE] >= options.max_pages)
        return "complete";
    return conc_event_is_set(&s->finished) ? "done" : d->phase;
}

static cJSON *domain_json(const scraper *s, const domain *d)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "host", d->host);
    cJSON_AddStringToObject(json, "phase", phase_of(s, d));
    for (int i = 0; i < STATES; i++)
        cJSON_AddNumberToObject(json, state_names[i], d->saved[i]);
    cJSON_AddNumberToObject(json, "delay", d->delay);
    cJSON_AddNumberToObject(json, "smallestGap", d->smallest_gap);
    return json;
}

static char *snapshot(const scraper *s)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddBoolToObject(json, "finished", conc_event_is_set(&s->finished));
    cJSON_AddNumberToObject(json, "seconds", elapsed(s));
    cJSON_AddNumberToObject(json, "average", s->time_count / later(elapsed(s), 1e-3));
    cJSON_AddNumberToObject(json, "maxPages", options.max_pages);
    cJSON_AddNumberToObject(json, "requests", s->requests);
    cJSON_AddNumberToObject(json, "inFlight", s->in_flight);
    cJSON_AddNumberToObject(json, "mostInFlight", s->most_in_flight);
    cJSON_AddNumberToObject(json, "atOnce", options.at_once);
    cJSON *domains = cJSON_AddArrayToObject(json, "domains");
    for (int i = 0; i < s->domain_count; i++)
        cJSON_AddItemToArray(domains, domain_json(s, s->domains[i]));
    cJSON *reasons = cJSON_AddArrayToObject(json, "reasons");
    for (int i = 0; i < s->reason_count; i++) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "state", state_names[s->reasons[i].state]);
        cJSON_AddStringToObject(item, "reason", s->reasons[i].reason);
        cJSON_AddNumberToObject(item, "count", s->reasons[i].count);
        cJSON_AddItemToArray(reasons, item);
    }
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}

static int send_snapshot(http_connection *http, const scraper *s)
{
    char *text = snapshot(s);
    if (!text)
        return -ENOMEM;
    int rc = http_write(http, "data: ", 6);
    if (rc >= 0)
        rc = http_write(http, text, strlen(text));
    if (rc >= 0)
        rc = http_write(http, "\n\n", 2);
    free(text);
    return rc < 0 ? rc : http_flush(http);
}

/* Server-sent events: a snapshot every TICK, and the last one at the end. */
static int send_events(http_connection *http, scraper *s)
{
    bool is_last = false;
    CONC_TRY(http_set_header(http, "Content-Type", "text/event-stream"));
    CONC_TRY(http_set_header(http, "Cache-Control", "no-store"));
    CONC_TRY(http_begin(http, 200, -1));
    while (!is_last) {
        conc_case next[] = {CONC_CASE_EVENT(&s->finished), CONC_CASE_AFTER(TICK)};
        is_last = conc_event_is_set(&s->finished);
        CONC_TRY(send_snapshot(http, s));
        if (!is_last)
            CONC_TRY(conc_select(next, CONC_LEN(next)));
    }
    return http_end(http);
}

static int answer_browser(http_connection *http, void *arg)
{
    scraper *s = arg;
    if (strcmp(http->path, "/events") == 0) {
        CONC_TRY(conc_latch_add(&s->viewers, 1));
        int rc = send_events(http, s);
        conc_latch_done(&s->viewers);
        return rc;
    }
    if (strcmp(http->path, "/") != 0 || !s->html)
        return http_printf(http, 404, "There are / and /events; --page FILE names the page\n");
    CONC_TRY(http_set_header(http, "Content-Type", "text/html; charset=utf-8"));
    CONC_TRY(http_set_header(http, "Content-Security-Policy",
                             "default-src 'none'; style-src 'unsafe-inline'; script-src "
                             "'unsafe-inline'; connect-src 'self'; img-src data:"));
    return http_respond(http, 200, s->html, strlen(s->html));
}

static int progress(void *arg)
{
    scraper *s = arg;
    bool is_terminal = isatty(STDOUT_FILENO);
    for (;;) {
        CONC_TRY(conc_sleep(is_terminal ? TICK : 1));
        printf("%s%d of %d pages, %d refused, %d failed, %d requests under way%s",
               is_terminal ? "\r" : "", sum_saved(s, PAGE), s->domain_count * options.max_pages,
               sum_saved(s, REFUSED), sum_saved(s, FAILED), s->in_flight,
               is_terminal ? "   " : "\n");
        fflush(stdout);
    }
}

/* ---- a server, for the page in the browser and for the sites -------------------------------- */

typedef struct server {
    const char *what;
    int (*answer)(http_connection *http, void *arg);
    void *arg;
    int fd;
} server;

static int connection(int fd, void *arg)
{
    server *s = arg;
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, s->answer, s->arg);
}

static int server_open(server *s, const char *address)
{
    char actual[64];
    s->fd = CONC_TRY(conc_listen(address));
    CONC_TRY(conc_address(s->fd, false, actual, sizeof actual));
    printf("%s: http://%s/\n", s->what, actual);
    fflush(stdout);
    return 0;
}

static int serve(void *arg)
{
    server *s = arg;
    conc_server all = {.fd = s->fd, .handler = connection, .arg = s, .limit = 256};
    return conc_serve(&all);
}

/* ---- the sites: ten hosts of one process, whose pages and traps are known ------------------- */

enum {
    SITES = 10,
    SITE_PAGES = 150 /* and what is linked from its first page */
};

static struct {
    bool is_plain, is_quiet, is_child; /* plain: without traps */
    double crawl_delay;
} site_options;

/* What the first page of a site links to, beside other pages; -1: of every site. */
static const struct {
    int site;
    const char *path;
} traps[] = {
    {-1, "/private/diary"},
    {-1, "/private/open/door"},
    {0, "/hang"},
    {1, "/large"},
    {1, "/book"},
    {2, "/moved"},
    {2, "/moved/private"},
    {2, "/moved/away"},
    {2, "/moved/round"},
    {2, "/moved/far/0"},
    {4, "/missing"},
    {4, "/gone"},
    {5, "/broken"},
    {6, "/latin1"},
    {6, "/klingon"},
    {6, "/utf16"},
    {7, "/error"},
    {7, "/flaky"},
    {8, "/busy"},
    {8, "/overloaded"},
    {9, "/file.pdf"},
    {9, "/picture.png"},
    {9, "/picture.png?large"},
    {9, "/cut"},
};

/* The port is that of the request's Host; links without one would lead elsewhere. */
typedef struct site {
    int number;
    const char *port; /* ":8003", or "" or ":80", which mean the same */
} site;

/* The same URL in six spellings. */
static void write_link(FILE *out, const site *s, int page)
{
    static const struct {
        const char *scheme, *domain, *path, *fragment;
    } spellings[] = {{"", "", "/page/", ""},           {"http://", ".localhost", "/page/", ""},
                     {"", "", "/page/../page/./", ""}, {"HTTP://", ".LocalHost", "/page/", "#top"},
                     {"", "", "/%70age/", ""},         {"//", ".localhost", "/page/", ""}};
    size_t i = (size_t)page % CONC_LEN(spellings);
    fprintf(out, "<li><a href=\"%s", spellings[i].scheme);
    if (*spellings[i].scheme)
        fprintf(out, "site%d%s%s", s->number, spellings[i].domain, s->port);
    fprintf(out, "%s%d%s\">Page %d</a>\n", spellings[i].path, page, spellings[i].fragment, page);
}

/* A tree: three pages hang on each. */
static void write_links(FILE *out, const site *s, int page)
{
    for (size_t i = 0; page == 0 && !site_options.is_plain && i < CONC_LEN(traps); i++)
        if (traps[i].site == s->number || traps[i].site == -1)
            fprintf(out, "<li><a href='%s'>%s</a>\n", traps[i].path, traps[i].path + 1);
    for (int child = 3 * page + 1; child <= 3 * page + 3 && child < SITE_PAGES; child++)
        write_link(out, s, child);
    fprintf(
        out,
        "<li><a href='/'>Home</a> <a href='#top'>top</a> <a href='mailto:a@b.example'>mail</a>\n"
        "<a href='http://site%d.localhost%s/page/%d'>a neighbour</a>\n"
        "<a href='http://elsewhere.localhost/'>elsewhere</a>\n",
        (s->number + 1) % SITES, s->port, 1 + page % (SITE_PAGES - 1));
}

static char *page_text(const site *s, int page, size_t paragraphs)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return NULL;
    fprintf(out,
            "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Site %d, page "
            "%d</title></head>\n<body><main><h1>Page %d</h1>\n",
            s->number, page, page);
    for (size_t i = 0; i < paragraphs; i++)
        fprintf(out, "<p>A page of a site that is there to be read, paragraph %zu.</p>\n", i);
    fprintf(out, "<ul>\n");
    write_links(out, s, page);
    fprintf(out, "</ul></main></body></html>\n");
    return fclose(out) == 0 ? text : NULL;
}

static int send_page(http_connection *http, const site *s, int page, size_t paragraphs)
{
    char *text = page_text(s, page, paragraphs);
    if (!text)
        return -ENOMEM;
    int rc = http_set_header(http, "Content-Type", "text/html; charset=utf-8");
    if (rc >= 0)
        rc = http_respond(http, 200, text, strlen(text));
    free(text);
    return rc;
}

static int send_robots(http_connection *http, const site *s)
{
    if (s->number == 4)
        return http_printf(http, 404, "There is none: all is allowed\n");
    if (s->number == 5) /* the group for this scraper counts, not that for all */
        return http_printf(http, 200,
                           "User-agent: *\nDisallow: /\n\nUser-agent: other\nUser-agent: %s\n"
                           "Allow: /private/open\nDisallow: /private # and all below\n",
                           AGENT);
    if (s->number == 3 && site_options.crawl_delay > 0)
        return http_printf(http, 200,
                           "User-agent: *\nCrawl-delay: %g\nDisallow: /private/\n"
                           "Allow: /private/open/\n",
                           site_options.crawl_delay);
    return http_printf(http, 200,
                       "User-agent: other\nDisallow: /\n\nUser-agent: *\nDisallow: /private/\n"
                       "Disallow: /*.png$\nAllow: /private/open/\n");
}

static int send_typed(http_connection *http, const char *type, const char *body, size_t size)
{
    CONC_TRY(http_set_header(http, "Content-Type", type));
    return http_respond(http, 200, body, size);
}

static int send_redirect(http_connection *http, const char *path)
{
    char target[80];
    int number = atoi(path + strcspn(path, "0123456789"));
    snprintf(target, sizeof target, "/moved/here");
    if (strcmp(path, "/moved/private") == 0)
        snprintf(target, sizeof target, "/private/room");
    if (strcmp(path, "/moved/away") == 0)
        snprintf(target, sizeof target, "http://elsewhere.localhost/");
    if (strcmp(path, "/moved/round") == 0)
        snprintf(target, sizeof target, "/moved/round");
    if (strncmp(path, "/moved/far/", 11) == 0)
        snprintf(target, sizeof target, "/moved/far/%d", number + 1);
    CONC_TRY(http_set_header(http, "Location", target));
    return http_respond(http, 302, "", 0);
}

static int send_text_trap(http_connection *http, const char *path)
{
    static const char broken[] = "<title>Broken</title><p><b>bold<i>both</b></i><table><td>"
                                 "<a href=/behind>behind</a></div>";
    static const char latin1[] = "<title>Caf\xe9</title><p>Caf\xe9 <a href=/behind>behind</a>";
    static const char utf16[] = "<\0t\0i\0t\0l\0e\0>\0\xe9\0<\0/\0t\0i\0t\0l\0e\0>\0";
    if (strcmp(path, "/broken") == 0)
        return send_typed(http, "text/html", broken, sizeof broken - 1);
    if (strcmp(path, "/latin1") == 0)
        return send_typed(http, "text/html; charset=utf-8", latin1, sizeof latin1 - 1);
    if (strcmp(path, "/klingon") == 0)
        return send_typed(http, "text/html; charset=x-klingon", "<title>Qapla'</title>", 21);
    if (strcmp(path, "/utf16") == 0)
        return send_typed(http, "text/html; charset=\"UTF-16LE\"", utf16, sizeof utf16 - 1);
    if (strcmp(path, "/file.pdf") == 0)
        return send_typed(http, "application/pdf", "%PDF-1.7\n", 9);
    return http_printf(http, 404, "There is no %s\n", path);
}

/* Says that more comes than does. */
static int send_half(http_connection *http)
{
    CONC_TRY(http_set_header(http, "Content-Type", "text/html"));
    CONC_TRY(http_begin(http, 200, 10000));
    CONC_TRY(http_write(http, "<p>half", 7));
    CONC_TRY(http_flush(http));
    http_end(http); /* cuts it short */
    return 0;
}

static int send_trap(http_connection *http, const site *s, const char *path)
{
    static int flaky, busy;
    bool is_busy = strcmp(path, "/overloaded") == 0 || (strcmp(path, "/busy") == 0 && ++busy % 2);
    if (strcmp(path, "/hang") == 0)
        CONC_TRY(conc_sleep(30));
    if (strcmp(path, "/large") == 0)
        return send_page(http, s, 0, 40000);
    if (strcmp(path, "/book") == 0)
        return send_page(http, s, SITE_PAGES, 4000);
    if (strcmp(path, "/cut") == 0)
        return send_half(http);
    if (strcmp(path, "/error") == 0 || (strcmp(path, "/flaky") == 0 && ++flaky % 3))
        return http_printf(http, 500, "An error\n");
    if (is_busy)
        CONC_TRY(http_set_header(http, "Retry-After", "1"));
    if (is_busy)
        return http_printf(http, 429, "Too many requests\n");
    if (strcmp(path, "/gone") == 0)
        return http_printf(http, 410, "It was here\n");
    if (strncmp(path, "/moved", 6) == 0 && strcmp(path, "/moved/here") != 0)
        return send_redirect(http, path);
    static const char *const pages[] = {"/private/", "/moved/here", "/flaky",
                                        "/busy",     "/behind",     "/picture.png"};
    for (size_t i = 0; i < CONC_LEN(pages); i++)
        if (strncmp(path, pages[i], strlen(pages[i])) == 0)
            return send_page(http, s, SITE_PAGES, 3);
    return send_text_trap(http, path);
}

static int answer_site(http_connection *http, void *arg)
{
    int page = 0, end = 0;
    const char *port = strchr(http->host, ':');
    site s = {-1, port ? port : ":80"};
    (void)arg;
    sscanf(http->host, "site%d.localhost", &s.number);
    if (!site_options.is_quiet) {
        printf("%s %s\n", http->host, http->target);
        fflush(stdout);
    }
    if (s.number < 0 || s.number >= SITES)
        return http_printf(http, 404, "There are site0.localhost to site%d\n", SITES - 1);
    if (strcmp(http->path, "/robots.txt") == 0)
        return send_robots(http, &s);
    bool is_page = sscanf(http->path, "/page/%d%n", &page, &end) == 1 && !http->path[end];
    if (strcmp(http->path, "/") == 0 || (is_page && page >= 0 && page < SITE_PAGES))
        return send_page(http, &s, page, 10 + (size_t)page % 20);
    return send_trap(http, &s, http->path);
}

/* As a child it ends when its input does: its parent has ended, however that happened. */
static int site_app(void *address)
{
    char byte;
    server s = {.what = "ten sites", .answer = answer_site};
    conc_group g = {0};
    CONC_TRY(server_open(&s, address));
    CONC_TRY_IN(&g, conc_spawn(&g, serve, &s));
    while (site_options.is_child && CONC_TRY_IN(&g, conc_read(STDIN_FILENO, &byte, 1)) > 0)
        continue;
    if (site_options.is_child)
        conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static int start_sites(conc_child *child, char *address, size_t size)
{
    char line[128] = "", delay[32];
    const char *argv[] = {"/proc/self/exe", "--child",     "--quiet", "--crawl-delay", delay,
                          "--site",         "127.0.0.1:0", NULL};
    snprintf(delay, sizeof delay, "%g", options.goal ? 0 : 2 * options.delay);
    *child = (conc_child){.argv = argv, .input = CONC_PIPE, .output = CONC_PIPE, .group = true};
    CONC_TRY(conc_child_start(child));
    CONC_TRY(conc_read(child->output, line, sizeof line - 1)); /* it is written at once */
    const char *found = strstr(line, "://");
    if (!found)
        return conc_fail(-ECHILD, "the sites do not start");
    snprintf(address, size, "%.*s", (int)strcspn(found + 3, "/"), found + 3);
    return 0;
}

/* ---- the run -------------------------------------------------------------------------------- */

static void configure(CURL *curl, void *arg)
{
    const scraper *s = arg;
    curl_easy_setopt(curl, CURLOPT_USERAGENT, AGENT "/1.0");
    if (!s->connect_to)
        return;
    curl_easy_setopt(curl, CURLOPT_CONNECT_TO, s->connect_to);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
}

/* What a redirect leads to belongs to the visit before. */
static bool is_more_urgent(const void *a, const void *b)
{
    return (*(url *const *)a)->hops > (*(url *const *)b)->hops;
}

static int add_domain(scraper *s, const char *text)
{
    char target[URL_SIZE];
    if (url_canonical(NULL, text, target, sizeof target) < 0)
        return conc_fail(-EINVAL, "not a URL of http: or https:: %.100s", text);
    size_t length = (size_t)(url_path(target) - host_of(target));
    if (domain_of(s, target))
        return conc_fail(-EINVAL, "%s: this domain was named before", text);
    if (s->domain_count == MOST_DOMAINS || length >= sizeof s->domains[0]->host)
        return conc_fail(-E2BIG, "too many domains, or too long a name: %.100s", text);
    domain *d = calloc(1, sizeof *d);
    if (!d)
        return -ENOMEM;
    s->domains[s->domain_count++] = d;
    d->of = s;
    d->start = strdup(target);
    d->delay = options.delay;
    d->phase = "begins";
    d->frontier = (conc_queue)CONC_QUEUE(url *, 0, .less = is_more_urgent);
    memcpy(d->host, host_of(target), length);
    return d->start ? 0 : -ENOMEM;
}

static int add_domains(scraper *s, char **urls)
{
    char text[40];
    for (int i = 0; urls[i]; i++)
        CONC_TRY(add_domain(s, urls[i]));
    for (int i = 0; !urls[0] && i < SITES; i++) {
        snprintf(text, sizeof text, "http://site%d.localhost/", i);
        CONC_TRY(add_domain(s, text));
    }
    return 0;
}

/* The page lies beside this file, or beside the program. */
static void load_html(scraper *s)
{
    static const char name[] = "03_web_scraper.html";
    char path[2][PATH_MAX + sizeof name] = {__FILE__};
    void *html = NULL;
    ssize_t n = readlink("/proc/self/exe", path[1], PATH_MAX);
    path[1][n > 0 ? n : 0] = 0;
    int rc = -ENOENT;
    for (int i = 0; i < 2 && rc < 0; i++) {
        char *slash = strrchr(path[i], '/');
        strcpy(slash ? slash + 1 : path[i], name);
        rc = conc_file_read(options.page ? options.page : path[i], &html, NULL);
    }
    s->html = html;
    if (rc < 0)
        fprintf(stderr, "No page for the browser: %s; --page FILE says where it is\n",
                conc_last_error());
}

static void free_url(void *u, const xmlChar *text)
{
    (void)text;
    free(u);
}

static int scraper_close(scraper *s)
{
    int rc = sqlite_close(&s->db);
    result r;
    while (conc_queue_try_get(&s->results, &r) == 0)
        result_free(&r);
    conc_queue_destroy(&s->results);
    for (int i = 0; i < s->domain_count; i++) {
        domain *d = s->domains[i];
        robots_free(&d->robots);
        conc_queue_destroy(&d->frontier);
        free(d->start);
        free(d);
    }
    fetch_close(&s->client);
    xmlHashFree(s->known, free_url);
    curl_slist_free_all(s->connect_to);
    conc_free(s->html);
    free(s->times);
    return rc;
}
CONC_AUTO_TYPE(scraper, scraper_close);

static int scraper_open(scraper *s, char **urls)
{
    char rule[160];
    s->permits = (conc_sem){.permits = options.at_once};
    s->results = (conc_queue)CONC_QUEUE(result, BATCH);
    s->known = xmlHashCreate(0);
    s->client = (fetch_client){.configure = configure, .arg = s, .per_host = options.at_once};
    CONC_TRY(add_domains(s, urls));
    s->times = calloc((size_t)(s->domain_count * options.max_pages), sizeof *s->times);
    if (!s->known || !s->times)
        return -ENOMEM;
    if (options.connect_to) {
        snprintf(rule, sizeof rule, "::%s", options.connect_to);
        s->connect_to = curl_slist_append(NULL, rule);
    }
    return 0;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of the pages of this run, so many of 100 took no longer, in milliseconds. */
static double percentile(const scraper *s, int percent)
{
    return s->time_count ? 1e3 * s->times[(s->time_count - 1) * percent / 100] : 0;
}

static double processor_time(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void report(scraper *s)
{
    printf("%s%-24s %6s %9s %8s %7s %6s %7s %9s\n", isatty(STDOUT_FILENO) ? "\r\033[K" : "",
           "domain", "pages", "redirects", "refused", "failed", "found", "delay", "least gap");
    for (int i = 0; i < s->domain_count; i++) {
        const domain *d = s->domains[i];
        printf("%-24s %6d %9d %8d %7d %6d %7.3f %9.3f\n", d->host, d->saved[PAGE],
               d->saved[REDIRECT], d->saved[REFUSED], d->saved[FAILED], d->saved[FOUND], d->delay,
               d->smallest_gap);
    }
    for (int i = 0; i < s->reason_count; i++)
        printf("%6d %s: %s\n", s->reasons[i].count, state_names[s->reasons[i].state],
               s->reasons[i].reason);
    qsort(s->times, (size_t)s->time_count, sizeof *s->times, by_size);
    printf("%d pages of %d domains in %.3f s; %d requests, at most %d at once; %d transactions\n",
           s->time_count, s->domain_count, s->seconds, s->requests, s->most_in_flight, s->batches);
    printf("a page: %.2f ms, and %.2f ms for 99 of 100; %.3f ms of processor time\n",
           percentile(s, 50), percentile(s, 99),
           1e3 * processor_time() / (s->time_count ? s->time_count : 1));
    fflush(stdout);
}

/* Nothing can be faster than the domain that takes longest by its own rules. */
static double least_time(const domain *d) { return (d->requests - 1) * d->delay + d->put_off; }

/* Each count is that of the database, and nobody was asked too fast. */
static int check_goal(scraper *s)
{
    int64_t rows;
    const domain *slowest = s->domains[0];
    CONC_TRY(sqlite_number(&s->db, &rows, "SELECT count(*) FROM urls WHERE state = 'page'"));
    bool is_right = s->most_in_flight <= options.at_once;
    for (int i = 0; i < s->domain_count; i++) {
        const domain *d = s->domains[i];
        bool is_polite = d->smallest_gap == 0 || d->smallest_gap >= d->delay;
        is_right = is_right && is_polite && d->saved[PAGE] == options.max_pages;
        if (least_time(d) > least_time(slowest))
            slowest = d;
    }
    int wanted = s->domain_count * options.max_pages;
    printf("the goal: %d pages; %d requests to each domain, %g s apart, take %.1f s; the %d to %s, "
           "with"
           " the pauses that it asked for, %.1f s\n",
           wanted, options.max_pages, options.delay, (options.max_pages - 1) * options.delay,
           slowest->requests, slowest->host, least_time(slowest));
    return is_right && rows == wanted ? 0 : conc_fail(-EPROTO, "the counts are wrong");
}

static int wait_for_viewers(void *arg)
{
    scraper *s = arg;
    return conc_latch_wait(&s->viewers);
}

static int finish(scraper *s)
{
    s->seconds = elapsed(s);
    conc_event_set(&s->finished);
    report(s);
    if (options.goal)
        CONC_TRY(check_goal(s));
    if (options.stay)
        CONC_TRY(conc_sleep(CONC_FOREVER));
    int rc = conc_timeout(1, wait_for_viewers, s); /* they get the last event */
    return rc == -ETIMEDOUT ? 0 : rc;
}

/* The saver goes on until all is saved, whatever ends the crawl. */
static int run(scraper *s, server *dashboard)
{
    conc_group g = {0};
    conc_task saver = {0}, line = {0};
    CONC_TRY_IN(&g, conc_spawn_task(&g, &saver, save_results, s));
    CONC_TRY_IN(&g, conc_spawn_task(&g, &line, progress, s));
    if (options.listen)
        CONC_TRY_IN(&g, conc_spawn(&g, serve, dashboard));
    CONC_TRY_IN(&g, load(s));
    s->started = conc_now();
    CONC_TRY_IN(&g, crawl(s));
    conc_queue_close(&s->results);
    CONC_TRY_IN(&g, conc_join(&saver, NULL));
    conc_cancel(&line);
    CONC_TRY_IN(&g, conc_join(&line, NULL));
    int rc = finish(s);
    if (rc >= 0)
        conc_group_cancel(&g);
    return conc_group_end(&g, rc);
}

static int app(void *urls)
{
    char address[64];
    CONC_AUTO(scraper, s) = {0};
    CONC_AUTO(conc_child, sites) = {0};
    server dashboard = {.what = "dashboard", .answer = answer_browser, .arg = &s};
    if (options.own) {
        CONC_TRY(start_sites(&sites, address, sizeof address));
        options.connect_to = address;
    }
    CONC_TRY(scraper_open(&s, urls));
    if (options.listen) {
        load_html(&s);
        CONC_TRY(server_open(&dashboard, options.listen));
    }
    int rc = run(&s, &dashboard);
    if (rc == -ECANCELED && !conc_event_is_set(&s.finished))
        printf("\nstopped; %d pages are saved in %s, and the same command goes on\n",
               sum_saved(&s, PAGE), options.db);
    return rc;
}

/* ---- main ----------------------------------------------------------------------------------- */

/* clang-format off */
static const struct option long_options[] = {
    {"goal", no_argument, NULL, 'g'},        {"site", required_argument, NULL, 's'},
    {"plain", no_argument, NULL, 'p'},       {"crawl-delay", required_argument, NULL, 'w'},
    {"quiet", no_argument, NULL, 'q'},       {"db", required_argument, NULL, 'b'},
    {"child", no_argument, NULL, 'c'},       {"listen", required_argument, NULL, 'l'},
    {"stay", no_argument, NULL, 'k'},        {"page", required_argument, NULL, 'h'},
    {"delay", required_argument, NULL, 'd'}, {"connect-to", required_argument, NULL, 'o'},
    {"timeout", required_argument, NULL, 't'}, {"max-pages", required_argument, NULL, 'm'},
    {"at-once", required_argument, NULL, 'a'}, {NULL, 0, NULL, 0},
};
/* clang-format on */

static bool read_number(const char *text, double least, double most, double *number)
{
    char *end;
    *number = strtod(text, &end);
    return *text && !*end && *number >= least && *number <= most;
}

static bool read_count(const char *text, int most, int *count)
{
    double number;
    bool is_valid = read_number(text, 1, most, &number);
    *count = is_valid ? (int)number : 0;
    return is_valid && number == *count;
}

static bool set_option(int option, char *value, char **address)
{
    switch (option) {
    case 'g': return options.goal = true;
    case 'p': return site_options.is_plain = true;
    case 'q': return site_options.is_quiet = true;
    case 'c': return site_options.is_child = true;
    case 'k': return options.stay = true;
    case 's': *address = value; return true;
    case 'b': options.db = value; return true;
    case 'l': options.listen = value; return true;
    case 'h': options.page = value; return true;
    case 'o': options.connect_to = value; return true;
    case 'w': return read_number(value, 0, 3600, &site_options.crawl_delay);
    case 'd': return read_number(value, 0, 3600, &options.delay);
    case 't': return read_number(value, 0.001, 3600, &options.timeout);
    case 'm': return read_count(value, 100000, &options.max_pages);
    case 'a': return read_count(value, 1000, &options.at_once);
    default: return false;
    }
}

/* What was not said. Its own sites take fewer pages and shorter pauses. */
static void set_defaults(bool is_own)
{
    bool is_demo = is_own && !options.goal;
    options.own = is_own && !options.connect_to;
    if (options.delay < 0)
        options.delay = is_own ? 0.05 : 1;
    if (options.timeout <= 0)
        options.timeout = is_own ? 1 : 10;
    if (!options.max_pages)
        options.max_pages = is_demo ? 20 : 100;
    if (!options.db)
        options.db = is_own ? ":memory:" : "scraper.db";
    if (!options.listen && is_demo)
        options.listen = "127.0.0.1:0";
}

int main(int argc, char **argv)
{
    char *address = NULL; /* of the sites, if that is all there is to do */
    bool is_valid = true;
    int option;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1)
        is_valid = set_option(option, optarg, &address) && is_valid;
    bool is_own = optind == argc;
    if (!is_valid || (!is_own && (options.goal || address))) {
        fprintf(stderr, "scraper: bad arguments: the program's first lines say what there is\n");
        return 2;
    }
    set_defaults(is_own);
    html_init();
    int status = address ? conc_main(site_app, address) : conc_main(app, argv + optind);
    xmlCleanupParser();
    return status;
}
