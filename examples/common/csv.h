/* csv.h - the fields of a line of CSV
 *
 *     char line[] = "7,\"Ng, \"\"Bo\"\"\",12.34", *fields[3];
 *     const char *fault = csv_split(line, fields, 3);
 *     if (!fault)
 *         printf("%s\n", fields[1]); // Ng, "Bo"
 *
 * and a file of such lines, from the position where an earlier run stopped:
 *
 *     CONC_AUTO(csv_file, f) = {.path = "goods.csv", .header = "id,name,price", .position = 0};
 *     while ((size = CONC_TRY(csv_next(&f, &line))) > 0)
 *         printf("at byte %lld: %s\n", (long long)f.start, line);
 *
 * Fields are separated by commas, and quoted as in RFC 4180, but without line ends within quotes.
 * Lines are passed without their end. The calls for files block: call them in a thread, with
 * conc_offload. Include conc.h before. */
#ifndef CSV_H
#define CSV_H

#ifndef CONC_VERSION
#error "csv.h: include conc.h first"
#endif

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Splits the line into exactly count fields. Changes the line; the fields point into it. Returns
 * NULL or an error text. */
static inline const char *csv_split(char *line, char **fields, size_t count);

typedef struct csv_file {
    const char *path, *header; /* the first line must begin with the header */
    int64_t position;          /* of the next line; 0: the one after the header */
    int64_t start;             /* of the line that was read */
    /* private */
    FILE *file;
    char *line;
    size_t room;
} csv_file;

/* Reads the next nonempty line, without its end. Returns its size; 0: there are no more. The last
 * line may lack its end. Errors have texts; -ESTALE: the file is shorter than the position. */
static inline ssize_t csv_next(csv_file *f, char **line);

static inline int csv_close(csv_file *f);
CONC_AUTO_TYPE(csv_file, csv_close);

/* ---- implementation ------------------------------------------------------------------------- */

/* Removes the quotes of the field at `from`. Returns where the field ends in the line, or NULL. */
static inline char *csv__unquote(char *from)
{
    char *to = from++;
    for (; *from && (*from != '"' || from[1] == '"'); from++) {
        from += *from == '"'; /* a doubled quote */
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

static inline int csv__open(csv_file *f)
{
    struct stat st;
    if (stat(f->path, &st) != 0)
        return conc_fail(-errno, "%s: %s", f->path, conc_strerror(-errno));
    if (!S_ISREG(st.st_mode)) /* a FIFO would wait for its other end */
        return conc_fail(-EINVAL, "%s is not a regular file", f->path);
    if (f->position > st.st_size)
        return conc_fail(-ESTALE, "%s is shorter than the part already read", f->path);
    f->file = fopen(f->path, "re");
    if (!f->file || fseeko(f->file, (off_t)f->position, SEEK_SET) != 0)
        return conc_fail(-errno, "%s: %s", f->path, conc_strerror(-errno));
    if (f->position > 0)
        return 0;
    ssize_t n = getline(&f->line, &f->room, f->file);
    if (n < 0 || strncmp(f->line, f->header, strlen(f->header)) != 0)
        return conc_fail(-EPROTO, "%s: the first line is not %s", f->path, f->header);
    f->position = n;
    return 0;
}

static inline ssize_t csv_next(csv_file *f, char **line)
{
    *line = NULL;
    ssize_t n = 0;
    if (!f->file)
        CONC_TRY(csv__open(f));
    while (n == 0) {
        n = getline(&f->line, &f->room, f->file);
        if (n < 0)
            return feof(f->file) ? 0 : conc_fail(-EIO, "%s cannot be read", f->path);
        f->start = f->position;
        f->position += n;
        n -= f->line[n - 1] == '\n';
        n -= n > 0 && f->line[n - 1] == '\r';
    }
    f->line[n] = 0;
    *line = f->line;
    return n;
}

static inline int csv_close(csv_file *f)
{
    free(f->line);
    if (f->file)
        fclose(f->file);
    f->file = NULL;
    f->line = NULL;
    return 0;
}

#endif
