/* log.h - a log that no task has to wait for
 *
 *     static log_writer lines = {.fd = 1};
 *
 *     CONC_TRY(conc_spawn(NULL, log_write, &lines)); // once, in the loop whose tasks log
 *     log_line(&lines, "%s has %d apples", name, n);
 *
 * log_line only stores the line in memory; the task log_write writes it. So a full pipe, a stopped
 *   terminal or a slow disk delays no other task. If more than .capacity bytes wait, the newest
 *   lines are dropped, and a line reports how many. After a write error, which log_write returns,
 *   logging stops; the program continues.
 * A log_writer belongs to one loop. Several loops may each have one for the same descriptor: whole
 *   lines are written, at most PIPE_BUF bytes at a time, so they do not mix in a pipe or a file.
 * At the end of a run log_flush writes the remaining lines: conc_shield(1, log_flush, &lines). */
#ifndef LOG_H
#define LOG_H

#ifndef CONC_SYNC_H
#error "log.h: include conc_sync.h first"
#endif

#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LOG_LINE = 512 }; /* maximum size of a line; the rest is cut off */

typedef struct log_writer {
    int fd;
    size_t capacity;    /* bytes that may wait; 0: 65,536 */
    bool shows_time;    /* begins each line with the local time, HH:MM:SS */
    bool shows_seconds; /* or with the seconds since .start, by conc_now */
    double start;
    /* private */
    char *data;
    size_t used;
    int dropped;
    bool failed;
    conc_event has_lines;
    conc_lock writing;
} log_writer;

/* Adds a line. Does not wait. May be called by any task or posted function of the loop. */
static inline void log_line(log_writer *l, const char *fmt, ...)
    __attribute__((__format__(__printf__, 2, 3)));
static inline void log_vline(log_writer *l, const char *fmt, va_list args);

/* The task that writes. It ends with an error of write(2), or when it is cancelled. */
static inline int log_write(void *writer);

/* Waits until all lines are written. */
static inline int log_flush(void *writer);

/* Frees the memory, and unwritten lines with it. */
static inline void log_close(log_writer *l);

/* ---- implementation ------------------------------------------------------------------------- */

static inline bool log__make_room(log_writer *l)
{
    l->capacity = l->capacity ? l->capacity : 65536;
    if (!l->data)
        l->data = malloc(l->capacity + LOG_LINE);
    return l->data && l->used < l->capacity && !l->failed;
}

static inline size_t log__write_time(const log_writer *l, char *out)
{
    struct tm local;
    time_t now = time(NULL);
    if (l->shows_seconds)
        return (size_t)snprintf(out, 24, "%8.2f s  ", conc_now() - l->start);
    return l->shows_time ? strftime(out, 16, "%H:%M:%S ", localtime_r(&now, &local)) : 0;
}

static inline void log_vline(log_writer *l, const char *fmt, va_list args)
{
    if (!log__make_room(l)) {
        l->dropped++;
        return;
    }
    size_t length = log__write_time(l, l->data + l->used);
    int n = vsnprintf(l->data + l->used + length, LOG_LINE - 1 - length, fmt, args);
    length += n < 0 ? 0 : (size_t)n;
    if (length > LOG_LINE - 2)
        length = LOG_LINE - 2;
    l->data[l->used + length] = '\n';
    l->used += length + 1;
    conc_event_set(&l->has_lines);
}

static inline void log_line(log_writer *l, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    log_vline(l, fmt, args);
    va_end(args);
}

/* Returns the length of the first lines that fit into PIPE_BUF bytes. */
static inline size_t log__piece(const log_writer *l)
{
    size_t n = l->used < PIPE_BUF ? l->used : PIPE_BUF;
    while (n > 0 && l->data[n - 1] != '\n')
        n--;
    return n;
}

/* After a cancel within a piece the next call writes the rest. */
static inline int log_flush(void *writer)
{
    log_writer *l = writer;
    CONC_LOCKED(&l->writing) {
        while (l->used > 0 && !l->failed) {
            ssize_t n = conc_write(l->fd, l->data, log__piece(l));
            l->failed = n < 0 && n != -ECANCELED;
            CONC_TRY((int)n);
            l->used -= (size_t)n;
            memmove(l->data, l->data + n, l->used);
        }
    }
    return 0;
}

static inline int log_write(void *writer)
{
    log_writer *l = writer;
    for (;;) {
        CONC_TRY(conc_event_wait(&l->has_lines));
        conc_event_clear(&l->has_lines);
        CONC_TRY(log_flush(l));
        if (l->dropped)
            log_line(l, "%d lines are lost: the log is read too slowly", l->dropped);
        l->dropped = 0;
    }
}

static inline void log_close(log_writer *l)
{
    free(l->data);
    l->data = NULL;
    l->used = 0;
}

#endif
