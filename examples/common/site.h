/* site.h - a web site of any size, with bad hosts and a known graph, to test crawlers
 *
 *     site s = {.pages = 10000, .hosts = 50};
 *     CONC_TRY(site_listen(&s, "127.0.0.1:0"));   // sets s.port
 *     return site_serve(&s);                      // until cancelled
 *
 * Compile with -lhttp_parser. conc.h comes first.
 *
 * Page i is http://hH.localhost:PORT/page/i, where H is i modulo hosts; libcurl and browsers
 * resolve names below localhost themselves. Its title is "Page i". It links to its children, 4i+1
 * to 4i+4, so that all pages can be reached from page 0, and to three pseudo-random others, the
 * same in each run; URLs are spelled in several ways. http://bad.localhost:PORT/ links to a page
 * that hangs, one that closes early, garbage instead of HTTP, an endless one, two that redirect to
 * each other, one that fails at first, one that robots.txt forbids, one that does not exist, and to
 * trap.localhost, where each page links to two deeper ones, endlessly.
 *
 * /log on any host counts the requests: site_read_log parses it. */
#ifndef SITE_H
#define SITE_H

#include "http.h"

enum { SITE_CHILDREN = 4, SITE_LINKS = 7 };

/* An SQLite query that counts the rows of pages (url, depth, title, ...) and links (source, target)
 * that are missing or unexpected. ?1 is site_graph's JSON, ?2 the pattern (GLOB) of the pages'
 * URLs. */
static const char site_compare[] =
    "WITH g AS (SELECT value AS v FROM json_each(?1)),"
    " p1 AS (SELECT json_extract(v, '$.url'), json_extract(v, '$.depth'),"
    "  json_extract(v, '$.title') FROM g),"
    " p2 AS (SELECT url, depth, title FROM pages WHERE url GLOB ?2),"
    " l1 AS (SELECT json_extract(v, '$.url'), l.value FROM g, json_each(v, '$.links') l),"
    " l2 AS (SELECT source, target FROM links WHERE source GLOB ?2)"
    " SELECT (SELECT count(*) FROM (SELECT * FROM p1 EXCEPT SELECT * FROM p2))"
    " + (SELECT count(*) FROM (SELECT * FROM p2 EXCEPT SELECT * FROM p1))"
    " + (SELECT count(*) FROM (SELECT * FROM l1 EXCEPT SELECT * FROM l2))"
    " + (SELECT count(*) FROM (SELECT * FROM l2 EXCEPT SELECT * FROM l1))";

typedef struct site {
    int pages, hosts; /* set them; the same for all calls */
    int port;         /* set by site_listen; set it yourself for site_url and site_graph alone */
    /* private */
    int fd;
    int *requests;       /* for each page */
    double *last;        /* for each host: the time of the last request */
    double smallest_gap; /* seconds between two requests to a host */
    int forbidden;       /* requests that robots.txt forbids */
    int flaky;           /* requests for the page that fails at first */
} site;

/* Listens on the address. Errors: -ENOMEM and those of conc_listen. */
static inline int site_listen(site *s, const char *address);

/* Serves until cancelled. Can be spawned: conc_spawn(&g, site_serve, &s). Waits. */
static inline int site_serve(void *site);

/* Writes the URL of page i, in the canonical form of url.h. */
static inline void site_url(const site *s, int i, char *url, size_t size);

/* Returns the page that link k of page i leads to, k from 0 to SITE_LINKS - 1; -1: none. */
static inline int site_target(const site *s, int i, int k);

/* Stores the graph up to depth links from page 0 as JSON in *json, which the caller frees. A link
 * may occur more than once. -ENOMEM.
 *     [{"url": "...", "depth": 0, "title": "Page 0", "links": ["...", ...]}, ...] */
static inline int site_graph(const site *s, int depth, char **json);

/* The content of /log. */
typedef struct site_log {
    int pages, requests; /* requested pages of the graph; requests for them */
    int forbidden;
    double gap; /* shortest time between two requests to a host, in seconds */
} site_log;
static inline int site_read_log(const char *text, site_log *log);

/* The same, in the process that serves the site. */
static inline void site_count(const site *s, site_log *log);

/* ---- the graph ------------------------------------------------------------------------------ */

static inline void site_url(const site *s, int i, char *url, size_t size)
{
    snprintf(url, size, "http://h%d.localhost:%d/page/%d", i % s->hosts, s->port, i);
}

static inline int site_target(const site *s, int i, int k)
{
    int child = SITE_CHILDREN * i + 1 + k;
    if (k < SITE_CHILDREN)
        return child < s->pages ? child : -1;
    uint64_t hash = (uint64_t)(i * SITE_LINKS + k) * 0x9e3779b97f4a7c15;
    return (int)((hash >> 32) % (uint64_t)s->pages);
}

/* Finds the pages' depths by breadth-first search; -1: deeper. Stores the pages in order[] as they
 * are found. Returns how many. */
static inline int site__find_depths(const site *s, int depth, int *depths, int *order)
{
    int found = 1;
    for (int i = 0; i < s->pages; i++)
        depths[i] = -1;
    order[0] = depths[0] = 0;
    for (int first = 0; first < found && depths[order[first]] < depth; first++) {
        for (int k = 0; k < SITE_LINKS; k++) {
            int j = site_target(s, order[first], k);
            if (j < 0 || depths[j] >= 0)
                continue;
            depths[j] = depths[order[first]] + 1;
            order[found++] = j;
        }
    }
    return found;
}

static inline void site__print(const site *s, FILE *f, int i, int depth)
{
    char url[96];
    site_url(s, i, url, sizeof url);
    fprintf(f, "{\"url\":\"%s\",\"depth\":%d,\"title\":\"Page %d\",\"links\":[", url, depth, i);
    const char *comma = "";
    for (int k = 0; k < SITE_LINKS; k++) {
        if (site_target(s, i, k) < 0)
            continue;
        site_url(s, site_target(s, i, k), url, sizeof url);
        fprintf(f, "%s\"%s\"", comma, url);
        comma = ",";
    }
    fprintf(f, "]}");
}

static inline int site_graph(const site *s, int depth, char **json)
{
    size_t size;
    int *depths = malloc(2 * (size_t)s->pages * sizeof *depths), *order = depths + s->pages;
    FILE *f = depths ? open_memstream(json, &size) : NULL;
    if (!f) {
        free(depths);
        return conc_fail(-ENOMEM, "site: out of memory");
    }
    int found = site__find_depths(s, depth, depths, order);
    for (int i = 0; i < found; i++) {
        fputc(i ? ',' : '[', f);
        site__print(s, f, order[i], depths[order[i]]);
    }
    fputc(']', f);
    free(depths);
    return fclose(f) ? conc_fail(-ENOMEM, "site: out of memory") : 0;
}

/* ---- answers -------------------------------------------------------------------------------- */

static inline int site__send_link(site *s, http_connection *http, int j, int spelling)
{
    static const char *const ways[] = {
        "<li><a href='http://h%d.localhost:%d/page/%d'>",
        "<li><a href=//h%d.localhost:%d/page/%d#x>",
        "<LI><A HREF=\"HTTP://H%d.LocalHost:%d/./page/%d?\">",
        "<li><a href=' http://h%d.localhost.:%d/x/../%%70age/%d\n'>"};
    char text[128];
    int n = snprintf(text, sizeof text, ways[spelling % 4], j % s->hosts, s->port, j);
    return http_write(http, text, (size_t)n);
}

static inline int site__send_page(site *s, http_connection *http, int i)
{
    char head[64];
    int n = snprintf(head, sizeof head, "<title>Page %d</title><ul>", i);
    s->requests[i]++;
    CONC_TRY(http_begin(http, 200, -1));
    CONC_TRY(http_write(http, head, (size_t)n));
    for (int k = 0; k < SITE_LINKS; k++)
        if (site_target(s, i, k) >= 0)
            CONC_TRY(site__send_link(s, http, site_target(s, i, k), i + k));
    return http_end(http);
}

/* Sends zeros until the client leaves. */
static inline int site__send_endless(http_connection *http)
{
    static const char zeros[65536];
    CONC_TRY(http_begin(http, 200, -1));
    for (;;)
        CONC_TRY(http_write(http, zeros, sizeof zeros));
}

/* Sends a body that is shorter than its Content-Length, so that the connection ends. */
static inline int site__send_half(http_connection *http)
{
    CONC_TRY(http_begin(http, 200, 1000));
    CONC_TRY(http_write(http, "<a href=nowhere>", 16));
    return http_flush(http);
}

static inline int site__send_garbage(http_connection *http)
{
    CONC_TRY(conc_stream_printf(http->stream, "\x16\x03\x01 garbage\r\n\r\n"));
    return http_printf(http, 200, "behind it\n");
}

static inline int site__redirect(http_connection *http, const char *target)
{
    CONC_TRY(http_set_header(http, "Location", target));
    return http_respond(http, 302, "", 0);
}

static inline int site__send_bad(site *s, http_connection *http)
{
    static const char index[] = "<a href=hang>1<a href=close>2<a href=garbage>3<a href=endless>4"
                                "<a href=loop/1>5<a href=flaky>6<a href=private/x>7<a href=no>8"
                                "<a href='http://trap.localhost:%d/'>9";
    const char *path = http->path;
    if (strcmp(path, "/") == 0)
        return http_printf(http, 200, index, s->port);
    if (strcmp(path, "/hang") == 0)
        return conc_sleep(CONC_FOREVER);
    if (strcmp(path, "/close") == 0)
        return site__send_half(http);
    if (strcmp(path, "/garbage") == 0)
        return site__send_garbage(http);
    if (strcmp(path, "/endless") == 0)
        return site__send_endless(http);
    if (strncmp(path, "/loop/", 6) == 0)
        return site__redirect(http, path[6] == '1' ? "/loop/2" : "/loop/1");
    if (strcmp(path, "/flaky") == 0)
        return http_printf(http, s->flaky++ ? 200 : 503, "<title>Flaky</title>");
    s->forbidden += strncmp(path, "/private/", 9) == 0;
    return http_printf(http, 404, "not found\n");
}

static inline void site_count(const site *s, site_log *log)
{
    *log = (site_log){.forbidden = s->forbidden, .gap = s->smallest_gap};
    for (int i = 0; i < s->pages; i++) {
        log->pages += s->requests[i] > 0;
        log->requests += s->requests[i];
    }
}

static inline int site__send_log(site *s, http_connection *http)
{
    site_log log;
    site_count(s, &log);
    return http_printf(http, 200, "%d %d %d %.6f\n", log.pages, log.requests, log.forbidden,
                       log.gap);
}

static inline int site_read_log(const char *text, site_log *log)
{
    int n = sscanf(text, "%d %d %d %lf", &log->pages, &log->requests, &log->forbidden, &log->gap);
    return n == 4 ? 0 : conc_fail(-EPROTO, "not a log of a site: %.40s", text);
}

/* Returns the number of a host; bad hosts follow the others; -1: unknown. */
static inline int site__host(const site *s, const char *name)
{
    int host = -1;
    if (strncmp(name, "bad.", 4) == 0)
        return s->hosts;
    if (strncmp(name, "trap.", 5) == 0)
        return s->hosts + 1;
    bool is_host = sscanf(name, "h%d.", &host) == 1 && host >= 0 && host < s->hosts;
    return is_host ? host : -1;
}

static inline int site__answer(http_connection *http, void *arg)
{
    site *s = arg;
    int host = site__host(s, http->host), page = -1;
    if (strcmp(http->path, "/log") == 0)
        return site__send_log(s, http);
    if (host < 0)
        return http_printf(http, 404, "no such host\n");
    double now = conc_now(), gap = now - s->last[host];
    if (gap < s->smallest_gap)
        s->smallest_gap = gap;
    s->last[host] = now;
    if (strcmp(http->path, "/robots.txt") == 0)
        return http_printf(http, 200, "User-agent: *\nDisallow: /private/\n");
    CONC_TRY(http_set_header(http, "Content-Type", "text/html; charset=utf-8"));
    if (host == s->hosts)
        return site__send_bad(s, http);
    if (host > s->hosts)
        return http_printf(http, 200, "<a href='%s1/'>1<a href='%s2/'>2", http->path, http->path);
    bool is_page = sscanf(http->path, "/page/%d", &page) == 1 && page >= 0 && page < s->pages;
    if (!is_page || page % s->hosts != host)
        return http_printf(http, 404, "not found\n");
    return site__send_page(s, http, page);
}

static inline int site__connection(int fd, void *arg)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    int rc = http_serve(&http, site__answer, arg);
    return rc == -EINVAL ? 0 : rc; /* from site__send_half */
}

/* ---- serving -------------------------------------------------------------------------------- */

static inline int site_listen(site *s, const char *address)
{
    char where[64];
    s->requests = calloc((size_t)s->pages, sizeof *s->requests);
    s->last = malloc((size_t)(s->hosts + 2) * sizeof *s->last);
    if (!s->requests || !s->last)
        return conc_fail(-ENOMEM, "site: out of memory");
    for (int i = 0; i < s->hosts + 2; i++)
        s->last[i] = -CONC_FOREVER;
    s->smallest_gap = CONC_FOREVER;
    s->fd = CONC_TRY(conc_listen(address));
    CONC_TRY(conc_address(s->fd, false, where, sizeof where));
    s->port = atoi(strrchr(where, ':') + 1);
    return 0;
}

static inline int site_serve(void *arg)
{
    site *s = arg;
    conc_server server = {.fd = s->fd, .handler = site__connection, .arg = s};
    int rc = conc_serve(&server);
    free(s->requests);
    free(s->last);
    s->requests = NULL;
    s->last = NULL;
    return rc;
}

#endif
