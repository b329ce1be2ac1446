/* lines.h - passes each line of a stream, a packet or a message to a function
 *
 *     static int take(const char *line, size_t n, bool is_whole, void *arg);
 *
 *     CONC_TRY(lines_read(&stream, take, arg));         // until the end of the stream
 *     CONC_TRY(lines_split(packet, size, take, arg));
 *
 * take gets each line without its "\n"; an error that it returns ends the call. The last line of a
 * packet may lack its end. In a stream this means that the sender has gone in the middle of a line:
 * is_whole is false. A line over the stream's limit is an error. Include conc.h before. */
#ifndef LINES_H
#define LINES_H

#include <stdbool.h>
#include <string.h>

typedef int lines_take(const char *line, size_t n, bool is_whole, void *arg);

static inline int lines_split(const char *text, size_t size, lines_take *take, void *arg)
{
    while (size > 0) {
        const char *end = memchr(text, '\n', size);
        size_t n = end ? (size_t)(end - text) : size, used = n + (end != NULL);
        if (n > 0)
            CONC_TRY(take(text, n, true, arg));
        text += used;
        size -= used;
    }
    return 0;
}

static inline int lines_read(conc_stream *stream, lines_take *take, void *arg)
{
    for (;;) {
        char *line;
        size_t n = (size_t)CONC_TRY(conc_stream_read_until(stream, "\n", 1, &line));
        if (n == 0)
            return 0;
        bool is_whole = line[n - 1] == '\n';
        CONC_TRY(take(line, n - is_whole, is_whole, arg));
    }
}

#endif
