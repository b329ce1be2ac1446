/* Web scraper. It visits several sites concurrently and politely: it obeys robots.txt, pauses
   between two requests to a domain, and limits concurrent requests overall. It visits no page
   twice, retries transient failures, and saves to SQLite as it goes. A page in the browser shows
   the progress live. After Ctrl+C the same command resumes.

   cc 03_web_scraper.c -o scraper -I/usr/include/libxml2 -lxml2 -lcurl -lhttp_parser -lsqlite3
   ./scraper                       # ten small sites of its own; open the address that it prints
   ./scraper --goal                # 1000 pages of 10 domains, 0.05 s between requests to a domain
   ./scraper --goal --delay 1      # the same, as polite as on the Internet: 100 s
   ./scraper http://example.com/ http://example.org/                      # saved in scraper.db
   sqlite3 scraper.db "SELECT state, reason, count(*) FROM urls GROUP BY state, reason"
   ./scraper --site 127.0.0.1:8003 # only the sites: http://h0.localhost:8003/page/0

   It needs the real clock: the virtual one leaves other processes no time to answer. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/events.h"
#include "../common/fetch.h"
#include "../common/html.h"
#include "../common/http.h"
#include "../common/options.h"
#include "../common/robots.h"
#include "../common/site.h"
#include "../common/sqlite.h"
#include "../common/static_files.h"

#define AGENT "conc-scraper" /* for robots.txt, too */
#define RETRY_PAUSE 0.1      /* seconds, doubled each time */
#define LINGER 0.1           /* seconds that a result waits for others, to be saved with them */
#define TICK 0.25            /* seconds between two events for the page in the browser */

static const char *const headers[] = {"User-Agent: " AGENT "/1.0", NULL};

enum {
    ATTEMPTS = 3,
    MOST_LOST = 5, /* URLs in a row without an answer: then a domain is left out */
    MOST_DOMAINS = 100,
    MOST_URLS = 100, /* to remember of a domain, for each page that it may have */
    MOST_LINKS = 1000,
    LONGEST_PAUSE = 60, /* seconds that a domain may ask for */
    BODY_LIMIT = 1 << 20,
    ROBOTS_LIMIT = 500 << 10, /* bytes that RFC 9309 has everybody read */
    MOST_RESULTS = 50,        /* that wait to be saved */
    SITES = 10,
    SITE_PAGES = 1500 /* of all own sites together */
};

static struct {
    const char *db, *listen, *page, *site;
    char **urls;
    double delay, timeout, max_pages, at_once;
    bool is_goal, stays;
} options = {.delay = -1, .at_once = 10};

/* What came of a URL. FOUND: nothing yet. */
enum state { FOUND, PAGE, REDIRECT, REFUSED, FAILED, STATES };

static const char *const state_names[STATES] = {"found", "page", "redirect", "refused", "failed"};

typedef struct domain {
    struct scraper *of;
    char host[128]; /* with its port, unless that is the scheme's own */
    char start[URL_SIZE];
    robots robots;
    conc_queue frontier; /* of url *: to be visited */
    bool is_left_out;
    int lost_in_a_row, urls, pages;
    int saved[STATES]; /* rows of the database, as of the last count_saved */
    double delay, last_request, next_request, smallest_gap;
} domain;

typedef struct url {
    domain *domain;
    char text[];
} url;

typedef struct result {
    url *url; /* NULL: only URLs were found */
    enum state state;
    int status, attempts, bytes, links;
    double seconds; /* from the last request to the links */
    char reason[48];
    char *title;
    char *found; /* new URLs, in JSON */
} result;

typedef struct scraper {
    fetch_client client;
    sqlite_db db;
    domain *domains; /* MOST_DOMAINS */
    int domain_count;
    xmlHashTable *known;    /* url * of each URL, so that none is visited twice */
    conc_sem permits;       /* for requests at once */
    conc_latch outstanding; /* URLs that wait in the frontiers or are being visited */
    conc_queue results;     /* to be saved */
    conc_event finished;
    conc_latch viewers;
    int in_flight, most_in_flight, requests;
    double started, seconds;
} scraper;

static int result_free(result *r)
{
    free(r->title);
    free(r->found);
    *r = (result){0};
    return 0;
}
CONC_AUTO_TYPE(result, result_free);

static int load(scraper *s);
static int judge(result *r, int rc, const fetch_response *response);
static int save_results(void *arg);

/* ---- a request: first the domain's delay, then a permit ------------------------------------- */

static void note_request(domain *d)
{
    scraper *s = d->of;
    double now = conc_now(), gap = now - d->last_request;
    if (d->last_request > 0 && (d->smallest_gap == 0 || gap < d->smallest_gap))
        d->smallest_gap = gap;
    d->last_request = now;
    d->next_request = now + d->delay;
    s->requests++;
    if (++s->in_flight > s->most_in_flight)
        s->most_in_flight = s->in_flight;
}

static double shorter(double a, double b) { return a < b ? a : b; }

/* The server may ask for a pause, with Retry-After. */
static void put_off(domain *d, const fetch_response *response)
{
    curl_off_t seconds = 0;
    curl_easy_getinfo(response->curl, CURLINFO_RETRY_AFTER, &seconds);
    double until = conc_now() + shorter((double)seconds, LONGEST_PAUSE);
    if (seconds > 0 && until > d->next_request)
        d->next_request = until;
}

/* A domain has one task, so its requests follow each other. */
static int request(domain *d, const char *target, const fetch_options *o, fetch_response *response)
{
    scraper *s = d->of;
    CONC_TRY(conc_sleep_until(d->next_request));
    CONC_PERMIT(&s->permits) {
        note_request(d);
        int rc = fetch(&s->client, target, o, response);
        s->in_flight--;
        if (rc == 0)
            put_off(d, response);
        return rc;
    }
    return 0;
}

static bool may_pass(int rc, int status)
{
    static const int errors[] = {-ETIMEDOUT,   -ECONNREFUSED, -ECONNRESET,   -EHOSTUNREACH,
                                 -ENETUNREACH, -EPROTO,       -EADDRNOTAVAIL};
    for (size_t i = 0; i < CONC_LEN(errors); i++)
        if (rc == errors[i])
            return true;
    return rc == 0 && (status >= 500 || status == 429 || status == 408);
}

/* The pause is random, so that requests that failed together do not come back together. */
static int request_again(domain *d, const char *target, const fetch_options *o,
                         fetch_response *response, int *attempts)
{
    for (double pause = RETRY_PAUSE;; pause *= 2) {
        int rc = request(d, target, o, response);
        if (++*attempts == ATTEMPTS || !may_pass(rc, response->status))
            return rc;
        CONC_TRY(conc_sleep(pause * conc_random(0.5, 1)));
    }
}

/* ---- a domain: its robots.txt, then page after page ----------------------------------------- */

static void leave_out(domain *d)
{
    fprintf(stderr, "%s is left out: %s\n", d->host, conc_last_error());
    d->is_left_out = true;
    conc_set_exit_status(1);
}

/* RFC 9309: without a robots.txt all is allowed; as long as the server fails, nothing is. */
static int load_robots(domain *d)
{
    char target[URL_SIZE + 16];
    int attempts = 0;
    const fetch_options o = {
        .headers = headers, .timeout = options.timeout, .limit = ROBOTS_LIMIT, .redirects = 5};
    CONC_AUTO(fetch_response, r) = {0};
    snprintf(target, sizeof target, "%.*s/robots.txt", (int)(url_path(d->start) - d->start),
             d->start);
    int rc = request_again(d, target, &o, &r, &attempts);
    if (rc == -ECANCELED)
        return rc;
    if (r.status >= 500 || r.status == 429)
        rc = conc_fail(-EPROTO, "%.100s: status %d", target, r.status);
    if (rc < 0)
        leave_out(d);
    else if (r.status < 300)
        CONC_TRY(robots_parse(&d->robots, r.body, r.size, AGENT));
    double asked = shorter(d->robots.crawl_delay, LONGEST_PAUSE);
    if (asked > d->delay) {
        d->delay = asked;
        d->next_request = d->last_request + asked;
    }
    return 0;
}

/* A server that is down would make failures of all its pages. They stay FOUND, for a later run. */
static void note_answer(domain *d, int rc)
{
    d->lost_in_a_row = rc < 0 && rc != -EMSGSIZE ? d->lost_in_a_row + 1 : 0;
    if (d->lost_in_a_row == MOST_LOST)
        leave_out(d);
}

static int visit(url *u)
{
    domain *d = u->domain;
    const fetch_options o = {
        .headers = headers, .timeout = options.timeout, .limit = BODY_LIMIT, .redirects = -1};
    CONC_AUTO(fetch_response, response) = {0};
    CONC_AUTO(result, r) = {.url = u, .state = REFUSED, .reason = "robots.txt"};
    if (robots_allows(&d->robots, url_path(u->text))) {
        int rc = request_again(d, u->text, &o, &response, &r.attempts);
        if (rc == -ECANCELED)
            return rc;
        note_answer(d, rc);
        CONC_TRY(judge(&r, rc, &response));
        r.seconds = conc_now() - d->last_request;
    }
    d->pages += r.state == PAGE;
    CONC_TRY(conc_queue_put(&d->of->results, &r));
    r = (result){0}; /* the saver has it now */
    return 0;
}

/* When the domain has all its pages, the rest of its frontier stays FOUND. */
static int crawl_domain(void *arg)
{
    domain *d = arg;
    url *u;
    int rc;
    CONC_TRY(load_robots(d));
    while ((rc = conc_queue_get(&d->frontier, &u)) >= 0) {
        if (d->pages < (int)options.max_pages && !d->is_left_out)
            CONC_TRY(visit(u));
        CONC_TRY(conc_latch_done(&d->of->outstanding));
    }
    return rc == -EPIPE ? 0 : rc;
}

/* No domain is finished before all are: another one may link to it. */
static int crawl(scraper *s)
{
    conc_group g = {0};
    CONC_TRY(load(s));
    for (int i = 0; i < s->domain_count; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, crawl_domain, &s->domains[i]));
    CONC_TRY_IN(&g, conc_latch_wait(&s->outstanding));
    for (int i = 0; i < s->domain_count; i++)
        conc_queue_close(&s->domains[i].frontier);
    return conc_group_wait(&g);
}

/* However the crawl ends, the saver goes on until all results are saved. */
static int crawl_and_save(scraper *s)
{
    conc_group g = {0};
    s->started = conc_now();
    CONC_TRY_IN(&g, conc_spawn(&g, save_results, s));
    int rc = crawl(s);
    conc_queue_close(&s->results);
    return conc_group_end(&g, rc);
}

/* ---- the URLs that are known ---------------------------------------------------------------- */

/* That of a canonical URL; NULL: it is not among those of this run. */
static domain *find_domain(scraper *s, const char *target)
{
    const char *host = strstr(target, "://");
    if (!host) /* a row that another program has made */
        return NULL;
    host += 3;
    size_t length = (size_t)(url_path(target) - host);
    for (domain *d = s->domains; d < s->domains + s->domain_count; d++)
        if (strlen(d->host) == length && memcmp(d->host, host, length) == 0)
            return d;
    return NULL;
}

/* A new URL; NULL: it is known, belongs to no domain of ours, or the domain has too many. */
static url *remember(scraper *s, const char *target)
{
    domain *d = find_domain(s, target);
    bool is_full = d && d->urls >= MOST_URLS * (int)options.max_pages;
    if (!d || is_full || xmlHashLookup(s->known, BAD_CAST target))
        return NULL;
    url *u = malloc(sizeof *u + strlen(target) + 1);
    if (!u || xmlHashAddEntry(s->known, BAD_CAST target, u) != 0) {
        free(u);
        return NULL;
    }
    d->urls++;
    u->domain = d;
    strcpy(u->text, target);
    return u;
}

static int enqueue(url *u)
{
    CONC_TRY(conc_latch_add(&u->domain->of->outstanding, 1));
    return conc_queue_try_put(&u->domain->frontier, &u);
}

/* Puts new URLs into the frontiers, and into the result, which saves them with the page. */
static int discover(scraper *s, result *r, char *const *links, size_t count)
{
    size_t size;
    const char *comma = "";
    int rc = 0;
    FILE *found = open_memstream(&r->found, &size);
    if (!found)
        return -ENOMEM;
    fputc('[', found);
    for (size_t i = 0; i < count && rc == 0; i++) {
        url *u = remember(s, links[i]);
        if (!u)
            continue;
        fprintf(found, "%s[\"%s\",\"%s\"]", comma, u->text, u->domain->host);
        comma = ",";
        rc = enqueue(u);
    }
    fputc(']', found);
    return fclose(found) ? -ENOMEM : rc;
}

/* ---- what came of a visit ------------------------------------------------------------------- */

static int set_state(result *r, enum state state, const char *reason)
{
    r->state = state;
    snprintf(r->reason, sizeof r->reason, "%s", reason);
    return 0;
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

static int read_page(result *r, const fetch_response *response, const char *type)
{
    CONC_AUTO(html_page, page) = {.content_type = type, .max_links = MOST_LINKS};
    page_job job = {&page, r->url->text, response};
    CONC_TRY(conc_offload(parse, &job)); /* a large page would hold up the loop */
    CONC_TRY(discover(r->url->domain->of, r, page.links, page.link_count));
    r->bytes = (int)response->size;
    r->links = (int)page.link_count;
    r->title = strdup(page.title);
    set_state(r, PAGE, "");
    return r->title ? 0 : -ENOMEM;
}

/* The target is a URL as any other: its domain has its rules and its delay. */
static int follow(result *r, const char *location)
{
    char target[URL_SIZE], *links[] = {target};
    if (url_canonical(r->url->text, location, target, sizeof target) < 0)
        return 0;
    return discover(r->url->domain->of, r, links, 1);
}

static int judge_answer(result *r, const fetch_response *response)
{
    char *location = NULL, *type = NULL, words[20];
    curl_easy_getinfo(response->curl, CURLINFO_CONTENT_TYPE, &type);
    curl_easy_getinfo(response->curl, CURLINFO_REDIRECT_URL, &location);
    r->status = response->status;
    snprintf(words, sizeof words, "status %d", r->status);
    if (location) {
        set_state(r, REDIRECT, words);
        return follow(r, location);
    }
    if (r->status != 200)
        return set_state(r, FAILED, words);
    if (!type || !xmlStrcasestr(BAD_CAST type, BAD_CAST "html"))
        return set_state(r, FAILED, "not HTML");
    return read_page(r, response, type);
}

static int judge(result *r, int rc, const fetch_response *response)
{
    if (rc == 0)
        return judge_answer(r, response);
    if (rc == -EMSGSIZE)
        return set_state(r, FAILED, "too large");
    if (rc == -ETIMEDOUT)
        return set_state(r, FAILED, "timeout");
    return set_state(r, FAILED, conc_strerror(rc));
}

/* ---- the database --------------------------------------------------------------------------- */

static int open_db(sqlite_db *db)
{
    CONC_TRY(sqlite_open(db, options.db));
    return sqlite_exec(db, "CREATE TABLE IF NOT EXISTS urls"
                           " (url TEXT PRIMARY KEY, host TEXT, state TEXT DEFAULT 'found',"
                           " reason TEXT DEFAULT '', status INTEGER, attempts INTEGER,"
                           " bytes INTEGER, links INTEGER, seconds REAL, title TEXT);"
                           "CREATE INDEX IF NOT EXISTS urls_by_state ON urls (host, state)");
}

static int save_page(sqlite_db *db, const result *r)
{
    return sqlite_exec(db, "INSERT OR REPLACE INTO urls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                       sqlite_text(r->url->text), sqlite_text(r->url->domain->host),
                       sqlite_text(state_names[r->state]), sqlite_text(r->reason),
                       sqlite_int(r->status), sqlite_int(r->attempts), sqlite_int(r->bytes),
                       sqlite_int(r->links), sqlite_real(r->seconds), sqlite_text(r->title));
}

/* A page may be saved before one that leads to it: then its row is there already. */
static int save_found(sqlite_db *db, const result *r)
{
    return sqlite_exec(db,
                       "INSERT OR IGNORE INTO urls (url, host) SELECT json_extract(value, '$[0]'),"
                       " json_extract(value, '$[1]') FROM json_each(?)",
                       sqlite_text(r->found));
}

typedef struct batch {
    scraper *of;
    result *first;
} batch;

/* In a transaction: a page and the URLs that were found there are saved together. */
static int save_batch(void *arg)
{
    batch *b = arg;
    sqlite_db *db = &b->of->db;
    do {
        CONC_AUTO(result, r) = *b->first;
        *b->first = (result){0};
        if (r.url)
            CONC_TRY(save_page(db, &r));
        if (r.found)
            CONC_TRY(save_found(db, &r));
    } while (conc_queue_try_get(&b->of->results, b->first) == 0);
    return 0;
}

static int save_until_closed(void *arg)
{
    CONC_AUTO(result, first) = {0};
    batch b = {.of = arg, .first = &first};
    int rc;
    while ((rc = conc_queue_get(&b.of->results, &first)) == 0) {
        CONC_TRY(conc_sleep(LINGER)); /* others share its transaction */
        CONC_TRY(sqlite_transaction(&b.of->db, save_batch, &b));
    }
    return rc == -EPIPE ? 0 : rc;
}

/* After Ctrl+C what was fetched is saved, too: crawl_and_save closes the queue. */
static int save_results(void *arg) { return conc_shield(CONC_FOREVER, save_until_closed, arg); }

static enum state state_of(const char *name)
{
    int state = FOUND;
    while (state < STATES - 1 && strcmp(name, state_names[state]) != 0)
        state++;
    return state;
}

/* Reads d->saved from the database. */
static int count_saved(void *arg)
{
    scraper *s = arg;
    CONC_AUTO(sqlite_rows, rows) = {0};
    CONC_TRY(
        sqlite_query(&s->db, &rows, "SELECT url, state, count(*) FROM urls GROUP BY host, state"));
    for (domain *d = s->domains; d < s->domains + s->domain_count; d++)
        memset(d->saved, 0, sizeof d->saved);
    while (CONC_TRY(sqlite_next(&rows))) {
        domain *d = find_domain(s, rows.row[0].text);
        if (d)
            d->saved[state_of(rows.row[1].text)] = (int)rows.row[2].integer;
    }
    return 0;
}

static int sum_saved(const scraper *s, enum state state)
{
    int sum = 0;
    for (int i = 0; i < s->domain_count; i++)
        sum += s->domains[i].saved[state];
    return sum;
}

static int load_row(scraper *s, const sqlite_value *row)
{
    url *u = remember(s, row[0].text);
    if (!u)
        return 0;
    enum state state = state_of(row[1].text);
    u->domain->pages += state == PAGE;
    return state == FOUND ? enqueue(u) : 0;
}

/* Goes on where an earlier run ended. */
static int load(scraper *s)
{
    CONC_AUTO(sqlite_rows, rows) = {.batch = 1000};
    CONC_AUTO(result, r) = {0};
    char *starts[MOST_DOMAINS];
    CONC_TRY(count_saved(s));
    CONC_TRY(sqlite_query(&s->db, &rows, "SELECT url, state FROM urls ORDER BY rowid"));
    while (CONC_TRY(sqlite_next(&rows)))
        CONC_TRY(load_row(s, rows.row));
    if (xmlHashSize(s->known) > 0)
        printf("goes on: %d URLs are known, %d pages are saved\n", xmlHashSize(s->known),
               sum_saved(s, PAGE));
    for (int i = 0; i < s->domain_count; i++)
        starts[i] = s->domains[i].start;
    CONC_TRY(discover(s, &r, starts, (size_t)s->domain_count));
    CONC_TRY(conc_queue_put(&s->results, &r));
    r = (result){0};
    return 0;
}

/* ---- live: a page in the browser, a line on the terminal ------------------------------------ */

static double elapsed(const scraper *s)
{
    return conc_event_is_set(&s->finished) ? s->seconds : conc_now() - s->started;
}

static const char *phase_of(const domain *d)
{
    if (d->is_left_out)
        return "left out";
    return d->saved[PAGE] < (int)options.max_pages ? "crawls" : "complete";
}

static void print_domain(const domain *d, FILE *out)
{
    fprintf(out, "{\"host\":\"%s\",\"phase\":\"%s\",\"delay\":%g,\"smallestGap\":%g", d->host,
            phase_of(d), d->delay, d->smallest_gap);
    for (int i = 0; i < STATES; i++)
        fprintf(out, ",\"%s\":%d", state_names[i], d->saved[i]);
    fprintf(out, "}");
}

/* The counts are those of the database. */
static int print_snapshot(FILE *out, void *arg)
{
    scraper *s = arg;
    CONC_AUTO(sqlite_rows, reasons) = {0};
    CONC_TRY(count_saved(s));
    CONC_TRY(sqlite_query(&s->db, &reasons,
                          "SELECT json_group_array(json_object('state', state, 'reason', reason,"
                          " 'count', n)) FROM (SELECT state, reason, count(*) AS n FROM urls"
                          " WHERE reason <> '' GROUP BY state, reason)"));
    CONC_TRY(sqlite_next(&reasons));
    fprintf(out, "{\"finished\":%s,\"seconds\":%g,\"average\":%g,\"maxPages\":%g,",
            conc_event_is_set(&s->finished) ? "true" : "false", elapsed(s),
            sum_saved(s, PAGE) / (elapsed(s) + 1e-3), options.max_pages);
    fprintf(out, "\"inFlight\":%d,\"mostInFlight\":%d,\"atOnce\":%g,\"reasons\":%s,\"domains\":[",
            s->in_flight, s->most_in_flight, options.at_once, reasons.row[0].text);
    for (int i = 0; i < s->domain_count; i++) {
        fputs(i ? "," : "", out);
        print_domain(&s->domains[i], out);
    }
    fputs("]}", out);
    return 0;
}

static int answer_browser(http_connection *http, void *arg)
{
    scraper *s = arg;
    if (strcmp(http->path, "/") == 0 && options.page)
        return static_files_answer_file(http, options.page, NULL);
    if (strcmp(http->path, "/events") != 0)
        return http_printf(http, 404, "There are / and /events; --page FILE names the page\n");
    CONC_TRY(conc_latch_add(&s->viewers, 1));
    int rc = events_send(http, TICK, &s->finished, print_snapshot, s);
    conc_latch_done(&s->viewers);
    return rc;
}

static int serve_browser(int fd, void *s)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, answer_browser, s);
}

static int serve_dashboard(void *s)
{
    char address[64];
    conc_server server = {.handler = serve_browser, .arg = s, .limit = 256};
    server.fd = CONC_TRY(conc_listen(options.listen));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    printf("dashboard: http://%s/\n", address);
    fflush(stdout);
    return conc_serve(&server);
}

static int show_progress(void *arg)
{
    scraper *s = arg;
    bool is_terminal = isatty(STDOUT_FILENO);
    for (;;) {
        CONC_TRY(conc_sleep(is_terminal ? TICK : 1));
        CONC_TRY(count_saved(s));
        printf("%s%d of %g pages, %d refused, %d failed, %d requests under way%s",
               is_terminal ? "\r" : "", sum_saved(s, PAGE), s->domain_count * options.max_pages,
               sum_saved(s, REFUSED), sum_saved(s, FAILED), s->in_flight,
               is_terminal ? "   " : "\n");
        fflush(stdout);
    }
}

/* ---- the run -------------------------------------------------------------------------------- */

static void report(scraper *s)
{
    printf("\n%-24s %8s %8s %8s %8s %8s %8s %9s\n", "domain", "found", "pages", "redirect",
           "refused", "failed", "delay", "least gap");
    for (domain *d = s->domains; d < s->domains + s->domain_count; d++) {
        printf("%-24s", d->host);
        for (int state = 0; state < STATES; state++)
            printf(" %8d", d->saved[state]);
        printf(" %8.3f %9.3f\n", d->delay, d->smallest_gap);
    }
    printf("%d pages of %d domains in %.3f s; %d requests, at most %d at once\n",
           sum_saved(s, PAGE), s->domain_count, s->seconds, s->requests, s->most_in_flight);
    fflush(stdout);
}

/* The database has each page of the site once, and nobody was asked too fast. */
static int check_goal(scraper *s, const site *own)
{
    site_log log;
    const int wanted = SITES * (int)options.max_pages;
    site_count(own, &log);
    bool is_polite = log.forbidden == 0 && s->most_in_flight <= (int)options.at_once;
    for (int i = 0; i < s->domain_count; i++)
        is_polite = is_polite && s->domains[i].smallest_gap >= s->domains[i].delay;
    bool is_complete = sum_saved(s, PAGE) == wanted && log.pages == wanted;
    printf("the goal: %d pages; the sites were asked for %d, %d times; %g requests and robots.txt,"
           " %g s apart, take %.1f s\n",
           wanted, log.pages, log.requests, options.max_pages, options.delay,
           options.max_pages * options.delay);
    if (is_complete && is_polite && log.requests == wanted)
        return 0;
    return conc_fail(-EPROTO, "the counts are wrong");
}

static int wait_for_viewers(void *arg)
{
    scraper *s = arg;
    return conc_latch_wait(&s->viewers);
}

static int finish(scraper *s, const site *own)
{
    s->seconds = elapsed(s);
    CONC_TRY(count_saved(s));
    conc_event_set(&s->finished);
    report(s);
    if (options.is_goal)
        CONC_TRY(check_goal(s, own));
    if (options.stays)
        CONC_TRY(conc_sleep(CONC_FOREVER));
    int rc = conc_timeout(1, wait_for_viewers, s); /* they get the last event */
    return rc == -ETIMEDOUT ? 0 : rc;
}

static int run(scraper *s, site *own)
{
    conc_group g = {0};
    conc_task progress = {0};
    if (own->hosts)
        CONC_TRY_IN(&g, conc_spawn(&g, site_serve, own));
    if (options.listen)
        CONC_TRY_IN(&g, conc_spawn(&g, serve_dashboard, s));
    CONC_TRY_IN(&g, conc_spawn_task(&g, &progress, show_progress, s));
    CONC_TRY_IN(&g, crawl_and_save(s));
    conc_cancel(&progress);
    CONC_TRY_IN(&g, finish(s, own));
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

/* Adds the domain of this URL. */
static int add_domain(scraper *s, const char *text)
{
    if (!s->domains)
        s->domains = calloc(MOST_DOMAINS, sizeof *s->domains);
    if (!s->domains)
        return -ENOMEM;
    if (s->domain_count == MOST_DOMAINS)
        return conc_fail(-E2BIG, "more than %d domains", MOST_DOMAINS);
    domain *d = &s->domains[s->domain_count];
    *d = (domain){.of = s, .delay = options.delay};
    d->frontier = (conc_queue)CONC_QUEUE(url *, 0);
    if (url_canonical(NULL, text, d->start, sizeof d->start) < 0)
        return conc_fail(-EINVAL, "not a URL of http: or https:: %.100s", text);
    const char *host = strstr(d->start, "://") + 3;
    size_t length = (size_t)(url_path(d->start) - host);
    if (length >= sizeof d->host)
        return conc_fail(-EINVAL, "too long a name: %.100s", text);
    if (find_domain(s, d->start))
        return conc_fail(-EINVAL, "%s: this domain was named before", text);
    memcpy(d->host, host, length);
    s->domain_count++;
    return 0;
}

/* --goal has no use for the host of bad pages. */
static int add_own_domains(scraper *s, const site *own)
{
    char start[96];
    for (int i = 0; i < own->hosts; i++) {
        site_url(own, i, start, sizeof start);
        CONC_TRY(add_domain(s, start));
    }
    snprintf(start, sizeof start, "http://bad.localhost:%d/", own->port);
    return options.is_goal ? 0 : add_domain(s, start);
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
        robots_free(&s->domains[i].robots);
        conc_queue_destroy(&s->domains[i].frontier);
    }
    free(s->domains);
    fetch_close(&s->client);
    xmlHashFree(s->known, free_url);
    return rc;
}
CONC_AUTO_TYPE(scraper, scraper_close);

static int scraper_open(scraper *s)
{
    s->permits = (conc_sem){.permits = (int)options.at_once};
    s->results = (conc_queue)CONC_QUEUE(result, MOST_RESULTS);
    s->known = xmlHashCreate(0);
    return s->known ? open_db(&s->db) : -ENOMEM;
}

static int app(void *arg)
{
    CONC_AUTO(scraper, s) = {0};
    site own = {.pages = SITE_PAGES};
    (void)arg;
    for (char **word = options.urls; *word; word++)
        CONC_TRY(add_domain(&s, *word));
    if (s.domain_count == 0) {
        own.hosts = SITES;
        CONC_TRY(site_listen(&own, "127.0.0.1:0"));
        CONC_TRY(add_own_domains(&s, &own));
    }
    int rc = scraper_open(&s);
    if (rc == 0)
        rc = run(&s, &own);
    bool goes_on = rc == -ECANCELED && *options.urls && !conc_event_is_set(&s.finished);
    if (!goes_on)
        return rc;
    conc_shield(1, count_saved, &s);
    printf("\nstopped; %d pages are saved in %s, and the same command goes on\n",
           sum_saved(&s, PAGE), options.db);
    return rc;
}

/* ---- main ----------------------------------------------------------------------------------- */

static int serve_sites(void *arg)
{
    site sites = {.pages = SITE_PAGES, .hosts = SITES};
    (void)arg;
    CONC_TRY(site_listen(&sites, options.site));
    printf("ten sites: http://h0.localhost:%d/page/0\n", sites.port);
    fflush(stdout);
    return site_serve(&sites);
}

static const options_field fields[] = {
    OPTIONS_WORDS("URL...", &options.urls, "one for each domain; without any: sites of its own"),
    OPTIONS_FLAG("goal", &options.is_goal, "1000 pages of the own sites"),
    OPTIONS_TEXT("db", "FILE", &options.db, "default: scraper.db; for the own sites none"),
    OPTIONS_NUMBER("delay", "S", &options.delay, 0, 3600,
                   "between two requests to a domain; default: 1"),
    OPTIONS_NUMBER("timeout", "S", &options.timeout, 0.001, 3600, "for a page; default: 10"),
    OPTIONS_NUMBER("max-pages", "N", &options.max_pages, 1, 100000, "of a domain; default: 100"),
    OPTIONS_NUMBER("at-once", "N", &options.at_once, 1, 1000, "requests in all; default: 10"),
    OPTIONS_TEXT("listen", "ADDRESS", &options.listen, "serve the page that shows it live"),
    OPTIONS_TEXT("page", "FILE", &options.page, "that page; default: 03_web_scraper.html"),
    OPTIONS_FLAG("stay", &options.stays, "serve it until Ctrl+C"),
    OPTIONS_TEXT("site", "ADDRESS", &options.site, "be the sites, and nothing else")};

/* The own sites take shorter pauses; without --goal also fewer pages. */
static void set_defaults(bool is_own)
{
    bool is_demo = is_own && !options.is_goal;
    if (options.delay < 0)
        options.delay = is_own ? 0.05 : 1;
    if (options.timeout <= 0)
        options.timeout = is_demo ? 1 : 10;
    if (options.max_pages < 1)
        options.max_pages = is_demo ? 20 : 100;
    if (!options.db)
        options.db = is_own ? ":memory:" : "scraper.db";
    if (!options.listen && is_demo)
        options.listen = "127.0.0.1:0";
    if (!options.page)
        options.page = static_files_beside(__FILE__, "03_web_scraper.html");
}

int main(int argc, char **argv)
{
    int status = options_read(fields, CONC_LEN(fields), argc, argv, "scraper [options] [URL...]",
                              "Scrapes web sites politely.");
    if (status >= 0)
        return status;
    set_defaults(!*options.urls);
    if (options.is_goal && *options.urls) {
        fprintf(stderr, "scraper: --goal is about the own sites\n");
        return 2;
    }
    setenv("no_proxy", "localhost,127.0.0.1", 0);
    html_init();
    status = conc_main(options.site ? serve_sites : app, NULL);
    xmlCleanupParser();
    return status;
}
