/* graphite.h - a line of Graphite's plaintext protocol
 *
 *     graphite_line g;
 *     if (graphite_read("login;user=ada 83.5 1700000000.25", 33, &g))
 *         printf("%s %s: %g at %.3f\n", g.name, g.tag, g.value, g.time);
 *
 * A line is NAME[;TAG=VALUE...] NUMBER TIME, with spaces between. It is read without its end; a \r
 * at the end is skipped. Names and the tag's value consist of at most 47 letters, digits, '_', '-'
 * and '.'. Numbers are decimal, with a magnitude of at most 1e12: no NaN, infinity or hexadecimal.
 * TIME is in seconds since 1970, with a fraction; -1 means now, which the caller must fill in. Only
 * the tag named GRAPHITE_TAG ("user" unless defined before) is read; others are skipped. */
#ifndef GRAPHITE_H
#define GRAPHITE_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef GRAPHITE_TAG
#define GRAPHITE_TAG "user"
#endif

enum { GRAPHITE_NAME = 48, GRAPHITE_LINE = 512 }; /* with a NUL */

typedef struct graphite_line {
    char name[GRAPHITE_NAME], tag[GRAPHITE_NAME]; /* tag "": none */
    double value, time;
} graphite_line;

/* Parses a line of n bytes. Returns false if they are not a line; *out is then undefined. */
static inline bool graphite_read(const char *text, size_t n, graphite_line *out);

/* Writes a line, without its end, that reads back exactly. */
static inline void graphite_write(const graphite_line *g, char out[GRAPHITE_LINE]);

/* Parses a number as above. */
static inline bool graphite_number(const char *text, double *out);

/* Copies a name as above, of n bytes, to out, which has room for GRAPHITE_NAME. */
static inline bool graphite_name(const char *text, size_t n, char *out);

/* ---- implementation ------------------------------------------------------------------------- */

static inline bool graphite_number(const char *text, double *out)
{
    char *end;
    if (!text || !*text || text[strspn(text, "+-.0123456789eE")])
        return false;
    *out = strtod(text, &end);
    return !*end && fabs(*out) <= 1e12;
}

static inline bool graphite_name(const char *text, size_t n, char *out)
{
    static const char valid[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
    if (n == 0 || n >= GRAPHITE_NAME || strspn(text, valid) < n)
        return false;
    memcpy(out, text, n);
    out[n] = 0;
    return true;
}

static inline bool graphite__words(char *text, graphite_line *out)
{
    char *rest, *name = strtok_r(text, " ", &rest), *value = strtok_r(NULL, " ", &rest);
    char *time = strtok_r(NULL, " ", &rest);
    if (!time || strtok_r(NULL, " ", &rest))
        return false;
    const char *tag = strstr(name, ";" GRAPHITE_TAG "=");
    if (tag)
        tag += strlen(";" GRAPHITE_TAG "=");
    out->tag[0] = 0;
    if (tag && !graphite_name(tag, strcspn(tag, ";"), out->tag))
        return false;
    return graphite_name(name, strcspn(name, ";"), out->name) &&
           graphite_number(value, &out->value) && graphite_number(time, &out->time);
}

static inline bool graphite_read(const char *text, size_t n, graphite_line *out)
{
    char copy[GRAPHITE_LINE];
    if (n > 0 && text[n - 1] == '\r')
        n--;
    if (n >= sizeof copy || memchr(text, 0, n))
        return false;
    memcpy(copy, text, n);
    copy[n] = 0;
    return graphite__words(copy, out);
}

static inline void graphite_write(const graphite_line *g, char out[GRAPHITE_LINE])
{
    snprintf(out, GRAPHITE_LINE, "%s%s%s %.17g %.17g", g->name,
             g->tag[0] ? ";" GRAPHITE_TAG "=" : "", g->tag, g->value, g->time);
}

#endif
