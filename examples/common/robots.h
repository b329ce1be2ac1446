/* robots.h - what robots.txt allows, according to RFC 9309
 *
 *     CONC_AUTO(robots, r) = {0};
 *     CONC_TRY(robots_parse(&r, text, size, "mybot"));
 *     if (robots_allows(&r, "/a?b")) // path and query: url_path(url) of url.h
 *         ... // and wait r.crawl_delay seconds between two requests
 *
 * Needs libcurl, for url.h: cc app.c -lcurl. conc.h comes first.
 *
 * The rules are those of all groups that name the agent, ignoring case, or else those of the groups
 * for "*". The longest matching rule decides; if two are equally long, Allow. "*" stands for any
 * bytes, "$" at the end of a rule for the end of the path. Escapes are compared as in RFC 9309: %7E
 * is "~", and "ä" is %C3%A4. /robots.txt itself is always allowed. A text that is not a robots.txt,
 * such as an HTML page, has no rules: everything is allowed. Text beyond 500 KiB is ignored.
 *
 * If robots.txt cannot be fetched, RFC 9309 says: with a status from 400 to 499, there are no
 * rules; with 500 or above, or an unreachable server, nothing is allowed: set .nothing_allowed.
 *
 * No call waits. All may be called anywhere, even in a pool's thread. */
#ifndef ROBOTS_H
#define ROBOTS_H

#include "url.h"

#include <stdlib.h>

typedef struct robots {
    bool nothing_allowed; /* set it if the server failed to send robots.txt */
    double crawl_delay;   /* seconds, from "Crawl-delay", which is not in the RFC; 0: not given */
    size_t count;         /* of the rules */
    /* private */
    struct robots__rule *rules;
} robots;

/* Reads the rules for this agent, a name of letters, digits, "-" and "_". Frees what r held before.
 * Returns 0 or -ENOMEM. */
static inline int robots_parse(robots *r, const char *text, size_t size, const char *agent);

/* May the agent request this path with its query? "" is "/". An all-zero r allows everything. */
static inline bool robots_allows(const robots *r, const char *path);

/* Frees the rules. Harmless if repeated. */
static inline int robots_free(robots *r);
CONC_AUTO_TYPE(robots, robots_free);

/* ---- implementation ------------------------------------------------------------------------- */

enum { ROBOTS__LIMIT = 500 * 1024, ROBOTS__PATH = URL_SIZE * 3 };

typedef struct robots__rule {
    size_t length;
    bool allows, is_whole; /* is_whole: it ended with "$" */
    char *pattern;
} robots__rule;

/* The reader's state. Consecutive "User-agent" lines begin one group together. */
typedef struct robots__reader {
    robots *r;
    const char *agent;
    bool named;    /* reads the agent's own groups, else those of "*" */
    bool found;    /* such a group was found */
    bool applies;  /* the current group is one of them */
    bool in_names; /* the previous line was a "User-agent" */
} robots__reader;

static inline int robots_free(robots *r)
{
    for (size_t i = 0; i < r->count; i++)
        free(r->rules[i].pattern);
    free(r->rules);
    r->rules = NULL;
    r->count = 0;
    return 0;
}

/* Adds a rule. In a rule "*" and "$" are special; a path's own "*" and "$" match %2A and %24. */
static inline int robots__add(robots *r, const char *value, size_t n, bool allows)
{
    char pattern[ROBOTS__PATH];
    bool is_whole = n > 0 && value[n - 1] == '$';
    int length = url__normalize(value, n - is_whole, "$", pattern, sizeof pattern);
    bool is_path = *value == '/' || *value == '*';
    if (n == 0 || !is_path || length < 0) /* an empty rule has no effect */
        return 0;
    robots__rule *rules = realloc(r->rules, (r->count + 1) * sizeof *rules);
    if (!rules)
        return -ENOMEM;
    r->rules = rules;
    rules[r->count] = (robots__rule){(size_t)length + is_whole, allows, is_whole, strdup(pattern)};
    if (!rules[r->count].pattern)
        return -ENOMEM;
    r->count++;
    return 0;
}

/* Does a "User-agent" line name the agent? The version is ignored: "mybot/1.0" is "mybot". */
static inline bool robots__names(const robots__reader *d, const char *value, size_t n)
{
    size_t length = 0;
    if (!d->named)
        return n == 1 && *value == '*';
    while (length < n &&
           (isalnum((unsigned char)value[length]) || value[length] == '-' || value[length] == '_'))
        length++;
    return length == strlen(d->agent) && strncasecmp(value, d->agent, length) == 0;
}

static inline int robots__line(robots__reader *d, const char *key, size_t k, const char *value,
                               size_t n)
{
    bool is_agent = k == 10 && strncasecmp(key, "user-agent", k) == 0;
    if (is_agent) {
        bool is_ours = robots__names(d, value, n);
        d->applies = is_ours || (d->in_names && d->applies);
        d->found |= is_ours;
        d->in_names = true;
        return 0;
    }
    bool is_allow = k == 5 && strncasecmp(key, "allow", k) == 0;
    bool is_disallow = k == 8 && strncasecmp(key, "disallow", k) == 0;
    bool is_delay = k == 11 && strncasecmp(key, "crawl-delay", k) == 0;
    if (is_allow || is_disallow || is_delay)
        d->in_names = false; /* other lines, such as "Sitemap", do not end the names */
    if (!d->applies)
        return 0;
    if (is_delay) {
        double delay = strtod(value, NULL); /* a line end or a NUL follows */
        if (delay > d->r->crawl_delay)
            d->r->crawl_delay = delay;
    }
    return is_allow || is_disallow ? robots__add(d->r, value, n, is_allow) : 0;
}

static inline bool robots__is_space(char c) { return c == ' ' || c == '\t'; }

/* Splits a line "key : value # comment" and handles it. */
static inline int robots__split(robots__reader *d, const char *line, const char *end)
{
    const char *comment = memchr(line, '#', (size_t)(end - line));
    if (comment)
        end = comment;
    const char *colon = memchr(line, ':', (size_t)(end - line));
    if (!colon)
        return 0;
    const char *key_end = colon, *value = colon + 1;
    while (line < key_end && robots__is_space(*line))
        line++;
    while (key_end > line && robots__is_space(key_end[-1]))
        key_end--;
    while (value < end && robots__is_space(*value))
        value++;
    while (end > value && robots__is_space(end[-1]))
        end--;
    return robots__line(d, line, (size_t)(key_end - line), value, (size_t)(end - value));
}

static inline int robots__read(robots__reader *d, const char *text, const char *end)
{
    while (text < end) {
        const char *line = text;
        while (text < end && *text != '\n' && *text != '\r')
            text++;
        CONC_TRY(robots__split(d, line, text));
        text++;
    }
    return 0;
}

static inline int robots_parse(robots *r, const char *text, size_t size, const char *agent)
{
    robots_free(r);
    r->crawl_delay = 0;
    size_t used = size < ROBOTS__LIMIT ? size : ROBOTS__LIMIT;
    char *copy = malloc(used + 1); /* with a NUL, for strtod */
    if (!copy)
        return conc_fail(-ENOMEM, "robots.txt: out of memory");
    memcpy(copy, text, used);
    copy[used] = 0;
    const char *first = copy;
    if (used >= 3 && memcmp(copy, "\xef\xbb\xbf", 3) == 0)
        first += 3;
    robots__reader named = {.r = r, .agent = agent, .named = true};
    int rc = robots__read(&named, first, copy + used);
    if (rc == 0 && !named.found) {
        robots__reader others = {.r = r, .agent = agent};
        rc = robots__read(&others, first, copy + used);
    }
    free(copy);
    if (rc < 0)
        robots_free(r);
    return rc < 0 ? conc_fail(rc, "robots.txt: %s", conc_strerror(rc)) : 0;
}

/* Does the rule match the path? After a "*" it tries the shortest match first, and backtracks only
 * to the last "*". So however many a rule has, it takes at most its length times the path's. */
static inline bool robots__matches(const robots__rule *rule, const char *path)
{
    const char *p = rule->pattern, *star = NULL, *again = NULL;
    for (;;) {
        if (*p == '*') {
            star = ++p;
            again = path;
        } else if (!*p && (!rule->is_whole || !*path)) {
            return true;
        } else if (*p && *p == *path) {
            p++;
            path++;
        } else if (star && *again) {
            p = star;
            path = ++again;
        } else {
            return false;
        }
    }
}

static inline bool robots_allows(const robots *r, const char *path)
{
    char normal[ROBOTS__PATH];
    const robots__rule *longest = NULL;
    if (url__normalize(path, strlen(path), "*$", normal, sizeof normal) < 0)
        return r->count == 0 && !r->nothing_allowed; /* longer than any useful URL */
    if (strcmp(normal, "/robots.txt") == 0)
        return true;
    if (r->nothing_allowed)
        return false;
    for (size_t i = 0; i < r->count; i++) {
        const robots__rule *rule = &r->rules[i];
        bool is_longer = !longest || rule->length > longest->length;
        bool is_milder = longest && rule->length == longest->length && rule->allows;
        if ((is_longer || is_milder) && robots__matches(rule, *normal ? normal : "/"))
            longest = rule;
    }
    return !longest || longest->allows;
}

#endif
