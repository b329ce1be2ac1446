/* url.h - URLs in canonical form, with libcurl's URL API
 *
 *     char url[URL_SIZE];
 *     CONC_TRY(url_canonical("http://example.org/a/b", "../c?x=%7e#top", url, sizeof url));
 *     // "http://example.org/c?x=~", and url_path(url) is "/c?x=~"
 *
 * Needs libcurl 7.80 or later: cc app.c -lcurl. conc.h comes first.
 *
 * Equivalent spellings of a URL become the same bytes, so that a set contains each page once:
 * scheme and host in lower case, no default port, no user, no dot at the end of the host, no
 * fragment, no "." or ".." in the path, "/" for an empty path, no "?" without a query; %7e is "~",
 * and other escapes have capital letters; anything not allowed in a URL is escaped. Non-ASCII names
 * are in punycode if libcurl supports it. The result is ASCII without spaces, quotes and
 * backslashes, so it can be used in JSON unchanged. The order of a query's parts, and names such as
 * "index.html", may matter to the server, and are left alone.
 *
 * No call waits. All may be called anywhere, even in a pool's thread. */
#ifndef URL_H
#define URL_H

#ifndef CONC_VERSION
#error "url.h: include conc.h first"
#endif

#include <ctype.h>
#include <curl/curl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { URL_SIZE = 2048 }; /* bytes, enough for nearly all URLs and the NUL */

/* Writes to out the canonical form of a URL, or of a reference in a page whose canonical URL is
 * base (NULL: none). Returns its length. Ignores surrounding white space. Errors: -EPROTONOSUPPORT
 * (neither http: nor https:), -EINVAL (not a URL), -ENAMETOOLONG (out is too small), -ENOMEM; *out
 * is then "". */
static inline int url_canonical(const char *base, const char *reference, char *out, size_t size);

/* Returns where path and query of a canonical URL begin, after scheme, host and port. */
static inline const char *url_path(const char *url);

/* ---- implementation ------------------------------------------------------------------------- */

/* Escapes characters that a URL may not contain, and those in `also`; unescapes what need not be
 * escaped. Returns the length, or -ENAMETOOLONG. */
static inline int url__normalize(const char *in, size_t n, const char *also, char *out, size_t size)
{
    static const char hex[] = "0123456789ABCDEF", bad[] = "\"<>\\^`{|}";
    size_t length = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)in[i];
        bool is_escape = c == '%' && i + 2 < n && isxdigit((unsigned char)in[i + 1]) &&
                         isxdigit((unsigned char)in[i + 2]);
        if (length + 4 > size)
            return -ENAMETOOLONG;
        if (is_escape) {
            const char digits[] = {in[i + 1], in[i + 2], 0};
            c = (unsigned char)strtoul(digits, NULL, 16);
            i += 2;
        }
        bool is_plain = c < 0x80 && (isalnum(c) || (c && strchr("-._~", c)));
        bool must_escape = c <= ' ' || c >= 0x7f || strchr(bad, c) || strchr(also, c);
        if (is_plain || (!is_escape && !must_escape)) {
            out[length++] = (char)c;
        } else {
            out[length++] = '%';
            out[length++] = hex[c >> 4];
            out[length++] = hex[c & 15];
        }
    }
    out[length] = 0;
    return (int)length;
}

/* Cleans a reference as browsers do: drops surrounding spaces, line ends, tabs, and the
 * fragment. */
static inline int url__clean(const char *reference, char *out, size_t size)
{
    char text[URL_SIZE * 2];
    size_t n = 0;
    for (const char *c = reference; *c && *c != '#'; c++) {
        bool is_dropped = strchr("\t\r\n", *c) || (n == 0 && *c == ' ');
        if (is_dropped)
            continue;
        if (n == sizeof text)
            return -ENAMETOOLONG;
        text[n++] = *c;
    }
    while (n > 0 && text[n - 1] == ' ')
        n--;
    return url__normalize(text, n, "", out, size);
}

static inline int url__error(CURLUcode code)
{
    if (code == CURLUE_OUT_OF_MEMORY)
        return -ENOMEM;
    return code == CURLUE_UNSUPPORTED_SCHEME ? -EPROTONOSUPPORT : -EINVAL;
}

/* Sets the host in lower case, without a dot at its end. */
static inline CURLUcode url__set_host(CURLU *u)
{
    char *host = NULL;
    CURLUcode code = curl_url_get(u, CURLUPART_HOST, &host, 0);
    if (code != CURLUE_OK)
        return code;
    size_t n = strlen(host);
    if (n > 1 && host[n - 1] == '.')
        host[n - 1] = 0;
    for (char *c = host; *c; c++)
        *c = (char)tolower((unsigned char)*c);
    code = curl_url_set(u, CURLUPART_HOST, host, 0);
    curl_free(host);
    return code;
}

static inline CURLUcode url__resolve(CURLU *u, const char *base, const char *reference)
{
    CURLUcode code = CURLUE_OK;
    if (base)
        code = curl_url_set(u, CURLUPART_URL, base, 0);
    if (code == CURLUE_OK && (*reference || !base)) /* a fragment alone means the page itself */
        code = curl_url_set(u, CURLUPART_URL, reference, 0);
    if (code == CURLUE_OK)
        code = url__set_host(u);
    if (code == CURLUE_OK)
        code = curl_url_set(u, CURLUPART_FRAGMENT, NULL, 0);
    if (code == CURLUE_OK)
        code = curl_url_set(u, CURLUPART_USER, NULL, 0);
    if (code == CURLUE_OK)
        code = curl_url_set(u, CURLUPART_PASSWORD, NULL, 0);
    return code;
}

static inline int url__write(CURLU *u, char *out, size_t size)
{
    unsigned flags = CURLU_NO_DEFAULT_PORT;
    char *url = NULL;
#ifdef CURLU_PUNYCODE
    flags |= CURLU_PUNYCODE;
#endif
    CURLUcode code = curl_url_get(u, CURLUPART_URL, &url, flags);
    if (code != CURLUE_OK)
        return url__error(code);
    int rc = url__normalize(url, strlen(url), "", out, size);
    bool is_http = strncmp(url, "http://", 7) == 0 || strncmp(url, "https://", 8) == 0;
    curl_free(url);
    return is_http ? rc : -EPROTONOSUPPORT;
}

static inline int url_canonical(const char *base, const char *reference, char *out, size_t size)
{
    char clean[URL_SIZE * 2];
    *out = 0;
    int rc = url__clean(reference, clean, sizeof clean);
    if (rc >= 0) {
        CURLU *u = curl_url();
        CURLUcode code = u ? url__resolve(u, base, clean) : CURLUE_OUT_OF_MEMORY;
        rc = code == CURLUE_OK ? url__write(u, out, size) : url__error(code);
        curl_url_cleanup(u);
    }
    if (rc < 0)
        *out = 0;
    return rc < 0 ? conc_fail(rc, "%.80s: %s", reference, conc_strerror(rc)) : rc;
}

static inline const char *url_path(const char *url)
{
    const char *host = strstr(url, "://");
    return host ? host + 3 + strcspn(host + 3, "/?") : url;
}

#endif
