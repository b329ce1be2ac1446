/* events.h - live page updates: server-sent events on a connection of http.h
 *
 *     static int print(FILE *out, void *arg) // one line
 *     {
 *         return fprintf(out, "{\"pages\":%d}", *(int *)arg) < 0 ? -EIO : 0;
 *     }
 *     static int answer(http_connection *http, void *pages)
 *     {
 *         return events_send(http, 0.25, &finished, print, pages);
 *     }
 *
 * In the page: new EventSource("/events").onmessage = (event) => show(JSON.parse(event.data)); The
 * browser reconnects when the connection ends, unless the page closes its EventSource. Include
 * conc_sync.h before. Compile with -lhttp_parser. */
#ifndef EVENTS_H
#define EVENTS_H

#ifndef CONC_SYNC_H
#error "events.h: include conc_sync.h first"
#endif

#include "http.h"

/* Sends an event every `pause` seconds, the first one now, and a last one when `finished` is set.
 * print writes the event's data, and may wait. Its errors, and those of http_write (the client
 * left), end the response. */
static inline int events_send(http_connection *http, double pause, conc_event *finished,
                              int (*print)(FILE *out, void *arg), void *arg);

/* ---- implementation ------------------------------------------------------------------------- */

static inline int events__send_one(http_connection *http, int (*print)(FILE *out, void *arg),
                                   void *arg)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return conc_fail(-ENOMEM, "events: out of memory");
    fputs("data: ", out);
    int rc = print(out, arg);
    fputs("\n\n", out);
    if (fclose(out))
        rc = conc_fail(-ENOMEM, "events: out of memory");
    if (rc >= 0)
        rc = http_write(http, text, size);
    free(text);
    return rc < 0 ? rc : http_flush(http);
}

static inline int events_send(http_connection *http, double pause, conc_event *finished,
                              int (*print)(FILE *out, void *arg), void *arg)
{
    bool is_last = false;
    CONC_TRY(http_set_header(http, "Content-Type", "text/event-stream"));
    CONC_TRY(http_set_header(http, "Cache-Control", "no-store"));
    CONC_TRY(http_begin(http, 200, -1));
    while (!is_last) {
        conc_case next[] = {CONC_CASE_EVENT(finished), CONC_CASE_AFTER(pause)};
        is_last = conc_event_is_set(finished);
        CONC_TRY(events__send_one(http, print, arg));
        if (!is_last)
            CONC_TRY(conc_select(next, CONC_LEN(next)));
    }
    return http_end(http);
}

#endif
