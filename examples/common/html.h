/* html.h - HTML pages: their title, links and values, by libxml2
 *
 *     CONC_AUTO(html_page, page) = {.content_type = "text/html; charset=utf-8"};
 *     CONC_TRY(html_read(&page, "http://example.org/a", body, size));
 *     printf("%s, %zu links\n", page.title, page.link_count);
 *     printf("%s\n", html_value(&page, NULL, "//td[@class='price']"));
 *     CONC_AUTO(html_nodes, items) = {0};
 *     CONC_TRY(html_select(&page, NULL, "//li", &items));
 *     for (size_t i = 0; i < items.count; i++)
 *         printf("%s\n", html_value(&page, items.all[i], "a/@href"));
 *
 * Needs libxml2 and libcurl (for url.h): cc app.c -lcurl $(pkg-config --cflags --libs libxml-2.0)
 * (Debian: libxml2-dev, libcurl4-openssl-dev). conc.h comes first.
 *
 * A page may be anything: if it is not HTML, it has no links. Elements nested deeper than
 * max_depth, which would slow the parser down, end the page: everything before them is kept, and
 * .is_cut is true. So html_read's time is about proportional to the size: 10 ms per MiB. It never
 * reads files or the network.
 *
 * The links are those of <a> and <area>, in order, each once, in the canonical form of url.h,
 * relative to the page's <base> if it has one. References that are not URLs, and other schemes
 * (mailto:, javascript:, data:), are omitted and counted in .bad_links.
 *
 * No call waits, and all may be called anywhere. As html_read takes processor time, call it in a
 * pool: conc_pool_run(&pool, fn, arg). One thread at a time may use a page. If several threads use
 * libxml2, call html_init before the first of them starts. */
#ifndef HTML_H
#define HTML_H

#include "url.h"

#include <libxml/HTMLparser.h>
#include <libxml/hash.h>
#include <libxml/xpath.h>
#include <stdint.h>
#include <stdlib.h>

/* A page. Set the first fields. Strings are UTF-8, never NULL, and borrowed until the next
 * html_read or html_free. */
typedef struct html_page {
    /* the response's header; any type other than HTML gives an empty page; NULL: HTML */
    const char *content_type;
    const char *charset; /* NULL: the content_type's; if that is unknown: UTF-8 if the page is valid
                            UTF-8, else what the page declares, else Latin-1 */
    size_t max_links;    /* more are left out, and .is_cut is set; 0: 10,000 */
    int max_depth;       /* of nested elements; 0: 256 */
    /* what was found */
    const char *title; /* white space reduced to single spaces; "": none */
    char **links;
    size_t link_count, bad_links;
    bool nofollow; /* <meta name="robots"> asks not to follow the page's links, */
    bool noindex;  /* or not to index it */
    bool is_cut;
    bool is_broken;     /* mismatched tags, malformed attributes, or an empty page */
    bool is_misencoded; /* bytes that are invalid in its charset, or an unknown charset */
    xmlDoc *document;   /* for libxml2's own functions; NULL: an empty page */
    /* private */
    xmlXPathContext *xpath;
    char **values;
    size_t value_count;
    char type_charset[40];
} html_page;

/* Prepares libxml2 for threads. Harmless if repeated. */
static inline void html_init(void);

/* Parses a page of this canonical URL. A NUL must follow the bytes, as in fetch_response.body.
 * Frees what *p held first. Errors: -ENOMEM, -EFBIG (over 1 GiB). */
static inline int html_read(html_page *p, const char *url, const char *bytes, size_t size);

/* Returns the text of an XPath expression: of its first node, of an attribute, or of a function's
 * value; "" if there is none. White space is reduced to single spaces. `from` is the node to start
 * from; NULL: the document. The page owns the text until html_free. Returns NULL and sets
 * conc_last_error if memory runs out or the XPath is invalid. */
static inline const char *html_value(html_page *p, xmlNode *from, const char *xpath);

typedef struct html_nodes {
    xmlNode **all; /* in document order; owned by the page */
    size_t count;
    /* private */
    xmlXPathObject *object;
} html_nodes;

/* Finds the nodes of an XPath expression. Frees what *n held first. -EINVAL: invalid XPath, or its
 * value is not a set of nodes; -ENOMEM. */
static inline int html_select(html_page *p, xmlNode *from, const char *xpath, html_nodes *n);
static inline int html_nodes_free(html_nodes *n);

/* Frees everything. Harmless if repeated; the page may be used again. */
static inline int html_free(html_page *p);

CONC_AUTO_TYPE(html_page, html_free);
CONC_AUTO_TYPE(html_nodes, html_nodes_free);

/* ---- implementation ------------------------------------------------------------------------- */

enum { HTML__LINKS = 10000, HTML__DEPTH = 256 };

#if LIBXML_VERSION >= 21200
typedef const xmlError html__error;
#else
typedef xmlError html__error;
#endif

/* The state of the parser's callbacks; the parser context points to it. */
typedef struct html__parse {
    html_page *page;
    int depth;
    startElementSAXFunc start;
} html__parse;

static inline void html_init(void) { xmlInitParser(); }

static inline int html__no_memory(void) { return conc_fail(-ENOMEM, "html: out of memory"); }

/* Ends the page at max_depth: deep nesting makes the parser's time grow with the square of the
 * size. */
static inline void html__start_element(void *arg, const xmlChar *name, const xmlChar **attributes)
{
    htmlParserCtxt *parser = arg;
    html__parse *h = parser->_private;
    if (parser->nameNr >= h->depth) {
        h->page->is_cut = true;
        xmlStopParser(parser);
        return;
    }
    h->start(arg, name, attributes);
}

static inline bool html__is_html(const html_page *p)
{
    const char *type = p->content_type;
    return !type || strncasecmp(type, "text/html", 9) == 0 ||
           strncasecmp(type, "application/xhtml+xml", 21) == 0;
}

/* Copies the charset of "text/html; charset=utf-8" into name; "": none. */
static inline void html__charset_of(const char *type, char *name, size_t size)
{
    const xmlChar *found = xmlStrcasestr((const xmlChar *)type, (const xmlChar *)"charset=");
    const char *value = "";
    if (found)
        value = (const char *)found + 8;
    if (*value == '"')
        value++;
    snprintf(name, size, "%.*s", (int)strcspn(value, "\"; "), value);
}

/* Returns the charset to read the page with. Bytes that are declared as UTF-8 but are not are read
 * as Latin-1. */
static inline const char *html__charset(html_page *p, const char *bytes)
{
    xmlCharEncodingHandler *known = NULL;
    const char *name = p->charset;
    bool is_utf8 = xmlCheckUTF8((const unsigned char *)bytes);
    if (!name && p->content_type) {
        html__charset_of(p->content_type, p->type_charset, sizeof p->type_charset);
        name = p->type_charset;
    }
    if (name)
        known = xmlFindCharEncodingHandler(name);
    if (!known) {
        p->is_misencoded = name && *name;
        return is_utf8 ? "UTF-8" : NULL;
    }
    xmlCharEncCloseFunc(known);
    p->is_misencoded = xmlParseCharEncoding(name) == XML_CHAR_ENCODING_UTF8 && !is_utf8;
    return p->is_misencoded ? "ISO-8859-1" : name;
}

/* Notes an error. Ignores two kinds: libxml2 does not know the tags of HTML 5, and a lone "&" is
 * common in URLs. */
static inline void html__note_error(void *arg, html__error *error)
{
    html_page *p = arg;
    switch (error->code) {
    case XML_HTML_UNKNOWN_TAG:
    case XML_ERR_ENTITYREF_SEMICOL_MISSING: break;
    case XML_ERR_INVALID_ENCODING:
    case XML_ERR_UNKNOWN_ENCODING:
    case XML_ERR_UNSUPPORTED_ENCODING:
    case XML_I18N_CONV_FAILED: p->is_misencoded = true; break;
    default: p->is_broken = true; break;
    }
}

static inline int html__parse_document(html_page *p, const char *url, const char *bytes,
                                       size_t size)
{
    const int options = HTML_PARSE_RECOVER | HTML_PARSE_NOERROR | HTML_PARSE_NOWARNING |
                        HTML_PARSE_NONET | HTML_PARSE_COMPACT;
    htmlParserCtxt *parser = htmlNewParserCtxt();
    if (!parser)
        return html__no_memory();
    html__parse h = {.page = p, .depth = HTML__DEPTH, .start = parser->sax->startElement};
    if (p->max_depth > 0)
        h.depth = p->max_depth;
    parser->_private = &h;
    parser->sax->startElement = html__start_element;
    const char *charset = html__charset(p, bytes);
    xmlSetStructuredErrorFunc(p, html__note_error); /* for this thread */
    p->document = htmlCtxtReadMemory(parser, bytes, (int)size, url, charset, options);
    xmlSetStructuredErrorFunc(NULL, NULL);
    p->is_broken = p->is_broken || !p->document;
    bool has_memory = parser->lastError.code != XML_ERR_NO_MEMORY;
    htmlFreeParserCtxt(parser);
    return has_memory ? 0 : html__no_memory();
}

/* ---- values */

/* Reduces white space to single spaces, in place. */
static inline char *html__squeeze(char *text)
{
    char *to = text;
    for (const char *c = text; *c; c++) {
        bool is_space = strchr(" \t\r\n\f", *c) != NULL;
        if (!is_space)
            *to++ = *c;
        else if (to > text && to[-1] != ' ')
            *to++ = ' ';
    }
    if (to > text && to[-1] == ' ')
        to--;
    *to = 0;
    return text;
}

/* Keeps libxml2 from printing XPath errors. */
static inline void html__ignore(void *arg, html__error *error) { (void)arg, (void)error; }

static inline xmlXPathObject *html__evaluate(html_page *p, xmlNode *from, const char *xpath)
{
    xmlXPathObject *found = NULL;
    if (!p->xpath)
        p->xpath = xmlXPathNewContext(p->document);
    if (!p->xpath) {
        html__no_memory();
        return NULL;
    }
    p->xpath->error = html__ignore;
    p->xpath->node = from;
    if (!from)
        p->xpath->node = (xmlNode *)p->document;
    found = xmlXPathEvalExpression((const xmlChar *)xpath, p->xpath);
    if (!found)
        conc_fail(-EINVAL, "%.80s: not an XPath expression", xpath);
    return found;
}

/* Stores the text until html_free. */
static inline const char *html__keep(html_page *p, char *text)
{
    char **values = text ? realloc(p->values, (p->value_count + 1) * sizeof *values) : NULL;
    if (!values) {
        free(text);
        html__no_memory();
        return NULL;
    }
    p->values = values;
    return values[p->value_count++] = text;
}

static inline const char *html_value(html_page *p, xmlNode *from, const char *xpath)
{
    if (!p->document)
        return "";
    xmlXPathObject *found = html__evaluate(p, from, xpath);
    if (!found)
        return NULL;
    xmlChar *text = xmlXPathCastToString(found);
    char *copy = text ? strdup((const char *)text) : NULL;
    xmlFree(text);
    xmlXPathFreeObject(found);
    return html__keep(p, copy ? html__squeeze(copy) : NULL);
}

static inline int html_nodes_free(html_nodes *n)
{
    if (n->object)
        xmlXPathFreeObject(n->object);
    *n = (html_nodes){0};
    return 0;
}

static inline int html_select(html_page *p, xmlNode *from, const char *xpath, html_nodes *n)
{
    html_nodes_free(n);
    if (!p->document)
        return 0;
    xmlXPathObject *found = html__evaluate(p, from, xpath);
    if (!found)
        return -EINVAL;
    if (found->type != XPATH_NODESET) {
        xmlXPathFreeObject(found);
        return conc_fail(-EINVAL, "%.80s: the value is not a set of nodes", xpath);
    }
    n->object = found;
    if (found->nodesetval) {
        n->all = found->nodesetval->nodeTab;
        n->count = (size_t)found->nodesetval->nodeNr;
    }
    return 0;
}

/* ---- links */

static inline int html__add_link(html_page *p, xmlHashTable *seen, const char *url, size_t *room)
{
    if (xmlHashLookup(seen, (const xmlChar *)url))
        return 0;
    if (p->link_count == *room) {
        *room = *room ? 2 * *room : 16;
        char **links = realloc(p->links, *room * sizeof *links);
        if (!links)
            return html__no_memory();
        p->links = links;
    }
    char *copy = strdup(url);
    if (!copy)
        return html__no_memory();
    p->links[p->link_count++] = copy;
    if (xmlHashAddEntry(seen, (const xmlChar *)url, copy) < 0)
        return html__no_memory();
    return 0;
}

static inline int html__add_links(html_page *p, const char *base, const html_nodes *hrefs,
                                  xmlHashTable *seen)
{
    size_t room = 0, max = p->max_links ? p->max_links : HTML__LINKS;
    for (size_t i = 0; i < hrefs->count; i++) {
        char url[URL_SIZE];
        xmlChar *href = xmlNodeGetContent(hrefs->all[i]);
        if (!href)
            return html__no_memory();
        int rc = url_canonical(base, (const char *)href, url, sizeof url);
        xmlFree(href);
        if (rc == -ENOMEM)
            return rc;
        if (rc < 0) {
            p->bad_links++;
            continue;
        }
        if (p->link_count == max) {
            p->is_cut = true;
            return 0;
        }
        CONC_TRY(html__add_link(p, seen, url, &room));
    }
    return 0;
}

static inline int html__read_links(html_page *p, const char *url)
{
    char base[URL_SIZE];
    CONC_AUTO(html_nodes, hrefs) = {0};
    const char *href = html_value(p, NULL, "//base/@href");
    if (!href)
        return -ENOMEM;
    if (!*href || url_canonical(url, href, base, sizeof base) < 0)
        snprintf(base, sizeof base, "%s", url);
    CONC_TRY(html_select(p, NULL, "//a/@href | //area/@href", &hrefs));
    xmlHashTable *seen = xmlHashCreate((int)(hrefs.count < 16 ? 16 : hrefs.count));
    if (!seen)
        return html__no_memory();
    int rc = html__add_links(p, base, &hrefs, seen);
    xmlHashFree(seen, NULL);
    return rc;
}

/* ---- reading and freeing */

/* Does the text contain the word, in any case? */
static inline bool html__contains(const char *text, const char *word)
{
    return xmlStrcasestr((const xmlChar *)text, (const xmlChar *)word) != NULL;
}

static inline int html__read_head(html_page *p)
{
    const char *robots = html_value(p, NULL,
                                    "//meta[translate(@name, 'ROBTS', 'robts')='robots']"
                                    "/@content");
    p->title = html_value(p, NULL, "//title");
    if (!p->title || !robots)
        return -ENOMEM;
    bool is_none = html__contains(robots, "none");
    p->nofollow = is_none || html__contains(robots, "nofollow");
    p->noindex = is_none || html__contains(robots, "noindex");
    return 0;
}

static inline int html_free(html_page *p)
{
    for (size_t i = 0; i < p->link_count; i++)
        free(p->links[i]);
    for (size_t i = 0; i < p->value_count; i++)
        free(p->values[i]);
    free(p->links);
    free(p->values);
    xmlXPathFreeContext(p->xpath);
    xmlFreeDoc(p->document);
    *p = (html_page){.content_type = p->content_type,
                     .charset = p->charset,
                     .max_links = p->max_links,
                     .max_depth = p->max_depth,
                     .title = ""};
    return 0;
}

static inline int html_read(html_page *p, const char *url, const char *bytes, size_t size)
{
    html_free(p);
    p->is_broken = size == 0;
    if (size > 1 << 30)
        return conc_fail(-EFBIG, "html: a page of %zu bytes", size);
    if (size == 0 || !html__is_html(p))
        return 0;
    int rc = html__parse_document(p, url, bytes, size);
    if (rc == 0 && p->document)
        rc = html__read_head(p);
    if (rc == 0 && p->document)
        rc = html__read_links(p, url);
    if (rc < 0)
        html_free(p);
    return rc;
}

#endif
