/* recording.h - records the lines of several sources in a file, with their arrival times
 *
 *     recording_write(file, now, "tcp/1", "login 83.5 -1");
 *     recording_write(file, now, "tcp/1", ""); // the source has ended
 *
 *     recording_line l;
 *     CONC_AUTO(conc_gen, lines) = {0};
 *     CONC_TRY(recording_open(&lines, "events.txt"));
 *     while (CONC_TRY(conc_gen_next(&lines, &l)) > 0)
 *         printf("%.6f %s %s\n", l.time, l.source, l.text);
 *
 * A line of the file is TIME SOURCE TEXT. A time in whole microseconds is read back exactly, so a
 * recording can be replayed exactly on the virtual clock. Include conc.h before. */
#ifndef RECORDING_H
#define RECORDING_H

#ifndef CONC_VERSION
#error "recording.h: include conc.h first"
#endif

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct recording_line {
    double time;
    char source[48], text[512]; /* text "": the source has ended */
} recording_line;

/* Writes a line. Check for errors with fflush. */
static inline void recording_write(FILE *file, double time, const char *source, const char *text);

/* Opens a generator of all lines of a file. Borrows the path. -EINVAL: a line is malformed. */
static inline int recording_open(conc_gen *lines, const char *path);

/* ---- implementation ------------------------------------------------------------------------- */

static inline void recording_write(FILE *file, double time, const char *source, const char *text)
{
    fprintf(file, "%.6f %s%s%s\n", time, source, *text ? " " : "", text);
}

static inline int recording__read(conc_gen *lines, FILE *file, const char *path)
{
    char text[640], time[48], *end;
    for (int number = 1; fgets(text, sizeof text, file); number++) {
        recording_line l = {0};
        int words = sscanf(text, "%47s %47s %511[^\n]", time, l.source, l.text);
        l.time = strtod(time, &end);
        bool is_line = words >= 2 && *end == 0 && l.time == l.time;
        if (!is_line)
            return conc_fail(-EINVAL, "%s: line %d is not: TIME SOURCE LINE", path, number);
        CONC_TRY(conc_gen_emit(lines, &l));
    }
    return ferror(file) ? -EIO : 0;
}

static inline int recording__read_all(conc_gen *lines, void *path)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return conc_fail(-errno, "%s: %s", (const char *)path, strerror(errno));
    int rc = recording__read(lines, file, path);
    fclose(file);
    return rc;
}

static inline int recording_open(conc_gen *lines, const char *path)
{
    return conc_gen_open(lines, recording__read_all, (void *)path, sizeof(recording_line));
}

#endif
