/* traffic.h - simulated events of a service with users, sent over TCP, UDP and a WebSocket
 *
 *     static traffic t = {.tcp = "localhost:2003", .udp = "localhost:2003",
 *                         .websocket = "localhost:8080", .rate = 40};
 *     CONC_TRY(conc_spawn(NULL, traffic_run, &t));
 *
 * Checkouts are sent over TCP, searches over UDP, logins over a WebSocket at /events, each as a
 * line of Graphite's protocol (graphite.h). Users come and go; checkouts are slow for 8 of 30
 * seconds; events arrive out of order, and some late. If a connection fails, the source reports it
 * on stderr and reconnects. Compile with -lm and websocket.h's libraries. */
#ifndef TRAFFIC_H
#define TRAFFIC_H

#ifndef CONC_POOL_H
#error "traffic.h: include conc_pool.h first"
#endif

#include "udp.h"
#include "websocket.h"

#include <math.h>
#include <time.h>

typedef struct traffic {
    const char *tcp, *udp, *websocket; /* addresses */
    const char *kinds;                 /* which of them, "tcp,udp,websocket"; NULL: all */
    double rate, count; /* per source: events per second, 0: as fast as possible; events, 0:
                           endless */
} traffic;

/* Sends all events. */
static inline int traffic_send(void *traffic);

/* The same in a thread with its own loop, so it does not load the caller's. */
static inline int traffic_run(void *traffic);

/* ---- implementation ------------------------------------------------------------------------- */

enum { TRAFFIC__LINE = 128 };

typedef struct traffic__source {
    const traffic *of;
    const char *kind, *address, *series;
    double typical; /* value */
    int (*send)(struct traffic__source *s, conc_gen *lines);
} traffic__source;

static inline void traffic__make_line(const traffic__source *s, char *line)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    double now = (double)t.tv_sec + (double)t.tv_nsec / 1e9;
    double delay = conc_random(0, 100) < 1 ? conc_random(0, 12) : conc_random(0, 0.4);
    double value = s->typical;
    if (strcmp(s->series, "checkout") == 0 && fmod(now, 30) < 8)
        value *= 4;
    value *= exp((conc_random(-1, 1) + conc_random(-1, 1) + conc_random(-1, 1)) / 3);
    int user = (int)(fmod(floor(now / 6), 20) * 2 + conc_random(0, 6)) % 40;
    snprintf(line, TRAFFIC__LINE, "%s;user=user%02d %.2f %.3f\n", s->series, user, value,
             now - delay);
}

static inline int traffic__make_lines(conc_gen *lines, void *source)
{
    const traffic *t = ((traffic__source *)source)->of;
    char line[TRAFFIC__LINE];
    for (double i = 0; t->count == 0 || i < t->count; i++) {
        if (t->rate > 0)
            CONC_TRY(conc_sleep(conc_random(0, 2) / t->rate));
        traffic__make_line(source, line);
        CONC_TRY(conc_gen_emit(lines, line));
    }
    return 0;
}

static inline int traffic__over_tcp(traffic__source *source, conc_gen *lines)
{
    char line[TRAFFIC__LINE];
    CONC_AUTO(conc_stream, s) = {0};
    CONC_TRY(conc_stream_open(&s, CONC_TRY(conc_dial(source->address))));
    while (CONC_TRY(conc_gen_next(lines, line)) > 0) {
        CONC_TRY(conc_stream_write(&s, line, strlen(line)));
        if (source->of->rate > 0)
            CONC_TRY(conc_stream_flush(&s));
    }
    return conc_stream_close(&s);
}

static inline int traffic__over_udp(traffic__source *source, conc_gen *lines)
{
    char line[TRAFFIC__LINE];
    int rc = 1, fd = CONC_TRY(udp_dial(source->address));
    while (rc > 0) {
        rc = conc_gen_next(lines, line);
        if (rc > 0)
            rc = (int)conc_send(fd, line, strlen(line), 0);
    }
    conc_close(fd);
    return rc;
}

static inline int traffic__over_websocket(traffic__source *source, conc_gen *lines)
{
    char line[TRAFFIC__LINE];
    conc_stream s = {0};
    CONC_AUTO(websocket, w) = {.stream = &s};
    CONC_TRY(conc_stream_open(&s, CONC_TRY(conc_dial(source->address))));
    CONC_TRY(websocket_connect(&w, "/events", source->address));
    while (CONC_TRY(conc_gen_next(lines, line)) > 0)
        CONC_TRY(websocket_printf(&w, "%s", line));
    return websocket_end(&w, 1000, NULL);
}

static inline int traffic__run_source(void *arg)
{
    traffic__source *s = arg;
    CONC_AUTO(conc_gen, lines) = {0};
    CONC_TRY(conc_gen_open(&lines, traffic__make_lines, s, TRAFFIC__LINE));
    for (;;) {
        int rc = s->send(s, &lines);
        if (rc >= 0 || rc == -ECANCELED)
            return rc;
        fprintf(stderr, "source %s: %s; reconnecting in a second\n", s->kind, conc_last_error());
        CONC_TRY(conc_sleep(1));
    }
}

static inline int traffic_send(void *arg)
{
    const traffic *t = arg;
    traffic__source sources[] = {
        {t, "tcp", t->tcp, "checkout", 80, traffic__over_tcp},
        {t, "udp", t->udp, "search", 25, traffic__over_udp},
        {t, "websocket", t->websocket, "login", 50, traffic__over_websocket}};
    conc_group g = {0};
    CONC_TRY(conc_group_begin(&g));
    for (size_t i = 0; i < CONC_LEN(sources); i++)
        if (!t->kinds || strstr(t->kinds, sources[i].kind))
            CONC_TRY_IN(&g, conc_spawn(&g, traffic__run_source, &sources[i]));
    return conc_group_wait(&g);
}

static inline int traffic__in_thread(void *arg) { return conc_run(traffic_send, arg); }

static inline int traffic_run(void *arg) { return conc_offload(traffic__in_thread, arg); }

#endif
