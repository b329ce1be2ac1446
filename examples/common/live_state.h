/* live_state.h - sends a changing text, such as JSON, to pages in the browser
 *
 *     CONC_TRY(live_state_set(&state, text)); // malloc'ed; the state takes ownership
 *     ...
 *     return live_state_push(&state, &websocket); // each new text, until the page closes
 *     return live_state_send(&state, http);       // the newest text, as the response to a GET
 *
 * A slow page misses some texts, but does not delay others: each page gets copies, so a text may be
 * replaced while it is being sent. Include conc_sync.h before. */
#ifndef LIVE_STATE_H
#define LIVE_STATE_H

#include "websocket.h"

typedef struct live_state {
    char *text;
    conc_event changed; /* set briefly when there is a new text */
} live_state;

typedef struct live_state__page {
    live_state *of;
    websocket *socket;
} live_state__page;

/* Replaces the text, which it owns from then on. Returns 0, or -ENOMEM if it is NULL. */
static inline int live_state_set(live_state *s, char *text)
{
    free(s->text);
    s->text = text;
    conc_event_set(&s->changed);
    conc_event_clear(&s->changed);
    return text ? 0 : -ENOMEM;
}

static inline int live_state_send(const live_state *s, http_connection *http)
{
    CONC_TRY(http_set_header(http, "Content-Type", "application/json"));
    char *text = strdup(s->text);
    int rc = text ? http_respond(http, 200, text, strlen(text)) : -ENOMEM;
    free(text);
    return rc;
}

static inline int live_state__send_all(void *arg)
{
    live_state__page *p = arg;
    for (;;) {
        char *text = strdup(p->of->text);
        int rc = text ? websocket_printf(p->socket, "%s", text) : -ENOMEM;
        free(text);
        CONC_TRY(rc);
        CONC_TRY(conc_event_wait(&p->of->changed));
    }
}

/* Sends each new text until the page closes. Receives only to notice the close. */
static inline int live_state_push(live_state *s, websocket *w)
{
    live_state__page p = {s, w};
    websocket_message m;
    conc_group g = {0};
    int rc = 1;
    CONC_TRY_IN(&g, conc_spawn(&g, live_state__send_all, &p));
    while (rc > 0)
        rc = websocket_receive(w, &m);
    conc_group_cancel(&g);
    return conc_group_end(&g, rc);
}

static inline void live_state_close(live_state *s)
{
    free(s->text);
    s->text = NULL;
}

#endif
