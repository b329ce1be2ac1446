/* csv.h - the fields of a line of CSV
 *
 *     char line[] = "7,\"Ng, \"\"Bo\"\"\",12.34", *fields[3];
 *     const char *fault = csv_split(line, fields, 3);
 *     if (!fault)
 *         printf("%s\n", fields[1]); // Ng, "Bo"
 *
 * Fields are separated by commas, and quoted as RFC 4180 says, but a line end within quotes is not
 * possible: the line comes without its end. No call waits; all may be called from anywhere. */
#ifndef CSV_H
#define CSV_H

#include <stddef.h>
#include <string.h>

/* Splits the line, which it changes, into exactly count fields, which point into it: NULL, or in
 * words what is wrong. */
static inline const char *csv_split(char *line, char **fields, size_t count);

/* ---- implementation ------------------------------------------------------------------------- */

/* Takes the quotes off the field at `from`: the end of the field in the line, or NULL. */
static inline char *csv__unquote(char *from)
{
    char *to = from++;
    for (; *from && (*from != '"' || from[1] == '"'); from++) {
        from += *from == '"'; /* a quote is doubled */
        *to++ = *from;
    }
    if (!*from)
        return NULL;
    *to = 0;
    return from + 1;
}

static inline const char *csv_split(char *line, char **fields, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!line)
            return "too few fields";
        fields[i] = line;
        char *end = *line == '"' ? csv__unquote(line) : line + strcspn(line, ",\"");
        if (!end)
            return "a quote is not closed";
        if (*end && *end != ',')
            return "a quote in the middle of a field";
        line = *end ? end + 1 : NULL;
        *end = 0;
    }
    return line ? "too many fields" : NULL;
}

#endif
