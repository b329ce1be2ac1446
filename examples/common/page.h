/* page.h - a program's web page, and a check that requests come from it
 *
 *     void *page;
 *     size_t size;
 *     CONC_TRY(page_read(options.page, __FILE__, &page, &size));
 *     ...
 *     CONC_TRY(page_send(http, page, size));
 *     conc_free(page);
 *
 * The page is the file that an option names, or else (NULL) the source file's name with .html
 * instead of .c, next to the source or in the current folder. Include conc_pool.h before. */
#ifndef PAGE_H
#define PAGE_H

#ifndef CONC_POOL_H
#error "page.h: include conc_pool.h first"
#endif

#include "http.h"

/* Reads the page, to be freed with conc_free. An error's text mentions --page. Waits. */
static inline int page_read(const char *option, const char *source, void **page, size_t *size);

/* Answers a request with the page. */
static inline int page_send(http_connection *http, const void *page, size_t size);

/* Does the request come from another site's page in a visitor's browser? Such a page must not open
 * a WebSocket. */
static inline bool page_is_foreign(const http_connection *http);

/* ---- implementation ------------------------------------------------------------------------- */

static inline int page_read(const char *option, const char *source, void **page, size_t *size)
{
    char path[1024];
    const char *slash = strrchr(source, '/');
    size_t folder = slash ? (size_t)(slash + 1 - source) : 0;
    snprintf(path, sizeof path, "%.*s.html", (int)strlen(source) - 2, source);
    int rc = conc_file_read(option ? option : path, page, size);
    if (rc < 0 && !option)
        rc = conc_file_read(path + folder, page, size);
    if (rc < 0 && rc != -ECANCELED)
        return conc_fail(rc, "no page: %s; --page FILE says where it is", conc_last_error());
    return rc;
}

static inline int page_send(http_connection *http, const void *page, size_t size)
{
    CONC_TRY(http_set_header(http, "Content-Type", "text/html; charset=utf-8"));
    return http_respond(http, 200, page, size);
}

static inline bool page_is_foreign(const http_connection *http)
{
    const char *origin = http_header(http, "Origin"), *host = origin ? strstr(origin, "://") : NULL;
    return origin && !(host && strcasecmp(host + 3, http->host) == 0);
}

#endif
