/* utf8.h - checks whether a text is UTF-8
 *
 *     if (!utf8_is_valid(name))
 *         return "the name is not UTF-8";
 *
 * The Unicode standard's table of well-formed sequences decides: no surrogates, nothing beyond
 * U+10FFFF, no overlong forms. No call waits; all may be called anywhere. */
#ifndef UTF8_H
#define UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Returns the length of the character at s, a NUL-terminated text; 0: it is invalid. */
static inline size_t utf8_length(const char *s);

static inline bool utf8_is_valid(const char *text);

/* ---- implementation ------------------------------------------------------------------------- */

static inline size_t utf8_length(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned char low = 0x80, high = 0xBF;
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return 0;
    size_t n = 2u + (s[0] >= 0xE0) + (s[0] >= 0xF0);
    if (s[0] == 0xE0)
        low = 0xA0;
    if (s[0] == 0xED)
        high = 0x9F;
    if (s[0] == 0xF0)
        low = 0x90;
    if (s[0] == 0xF4)
        high = 0x8F;
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < n; i++)
        if (s[i] < 0x80 || s[i] > 0xBF)
            return 0;
    return n;
}

static inline bool utf8_is_valid(const char *text)
{
    while (*text) {
        size_t n = utf8_length(text);
        if (n == 0)
            return false;
        text += n;
    }
    return true;
}

#endif
