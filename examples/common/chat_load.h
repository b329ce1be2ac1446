/* chat_load.h - simulates many users of a chat server, and measures their messages' latency
 *
 *     chat_load l = {.address = "127.0.0.1:8080", .clients = 1000, .seconds = 10};
 *     CONC_TRY(chat_load_run(&l));
 *     printf("%ld of %ld arrived, 99 %% within %g s\n", l.received, l.expected, l.p99);
 *
 * Each user has a connection. They are in rooms of twenty, which are new each time. Once all have
 *   joined, each sends a message every second, and everyone in its room, itself included, must
 *   receive it once and in order. A latency is the time from the send call to one receipt; all
 *   users are in this process, and share its clock.
 * It works with any server of this protocol: WebSockets at /chat, one JSON object per message. A
 *   client sends {"type":"join","room":R,"name":N} and {"type":"say","room":R,"text":T}; it
 *   receives {"type":"joined"}, {"type":"said","id":I,"text":T}, {"type":"error","text":T}, and
 *   others, which are ignored. The id grows by one with each message of a room.
 * Include conc_sync.h before. Compile with -lcjson and websocket.h's libraries. */
#ifndef CHAT_LOAD_H
#define CHAT_LOAD_H

#ifndef CONC_SYNC_H
#error "chat_load.h: include conc_sync.h first"
#endif

#include "websocket.h"

#include <cjson/cJSON.h>
#include <unistd.h>

typedef struct chat_load {
    const char *address;
    int clients;
    double seconds;      /* duration; each user sends a message per second */
    bool shows_progress; /* prints how many have joined, if stdout is a terminal */
    pid_t server;        /* its process on this machine, to measure server_seconds; 0: none */
    /* results */
    long said, expected, received;
    long wrong;              /* received out of order, or of another room */
    int64_t sum;             /* over received messages: sender, number and position in the room */
    double p50, p99, latest; /* in seconds */
    double server_seconds;   /* processor time from the last join to the last message */
    /* private */
    conc_sem connecting;
    conc_barrier joined; /* all of them */
    conc_event talked;   /* all messages have been sent */
    conc_event over;     /* and all have been received */
    int talking, connected;
    bool has_failed;
    double before; /* the server's processor time when all had joined */
    double *latencies;
    long places; /* their number */
} chat_load;

/* Connects, talks and leaves. Returns 0, whatever was received, or the first error: a user could
 * not join within 5 s, was refused, or lost the connection. Waits at most 5 s for the last
 * messages. */
static inline int chat_load_run(chat_load *l);

/* ---- implementation ------------------------------------------------------------------------- */

enum { CHAT_LOAD__ROOM = 20, CHAT_LOAD__CONNECTING = 50, CHAT_LOAD__PATIENCE = 5 /* seconds */ };

typedef struct chat_load__user {
    chat_load *of;
    int index, heard[CHAT_LOAD__ROOM]; /* heard: the newest number of each user in the room */
    int64_t first_id, place;           /* id of the first message received; how many were
                                          received */
    char room[40];
    websocket w;
} chat_load__user;

/* Returns the server's processor time so far; 0 if it is not wanted or not available. */
static inline double chat_load__processor(const chat_load *l)
{
#if defined(_POSIX_CPUTIME) && _POSIX_CPUTIME >= 0
    clockid_t clock;
    struct timespec t;
    if (l->server && clock_getcpuclockid(l->server, &clock) == 0 && clock_gettime(clock, &t) == 0)
        return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
#endif
    (void)l;
    return 0;
}

static inline int chat_load__members(const chat_load *l, int room_number)
{
    int rest = l->clients - room_number * CHAT_LOAD__ROOM;
    return rest < CHAT_LOAD__ROOM ? rest : CHAT_LOAD__ROOM;
}

/* Sends messages with the text "INDEX NUMBER TIME". */
static inline int chat_load__talk(void *arg)
{
    chat_load__user *t = arg;
    chat_load *l = t->of;
    double start = conc_now() + (double)t->index / l->clients;
    for (int i = 0; i < (int)l->seconds; i++) {
        CONC_TRY(conc_sleep_until(start + i));
        CONC_TRY(websocket_printf(&t->w,
                                  "{\"type\":\"say\",\"room\":\"%s\","
                                  "\"text\":\"%d %d %.6f\"}",
                                  t->room, t->index, i + 1, conc_now()));
        l->said++;
        l->expected += chat_load__members(l, t->index / CHAT_LOAD__ROOM);
    }
    if (--l->talking == 0)
        conc_event_set(&l->talked);
    return 0;
}

static inline void chat_load__hear(chat_load__user *t, int64_t id, const char *text)
{
    chat_load *l = t->of;
    int from, number;
    double sent;
    bool is_ours = sscanf(text, "%d %d %lf", &from, &number, &sent) == 3 && from >= 0 &&
                   from / CHAT_LOAD__ROOM == t->index / CHAT_LOAD__ROOM;
    if (t->place == 0)
        t->first_id = id;
    bool is_next = id == t->first_id + t->place++;
    if (!is_ours || !is_next || number != ++t->heard[from % CHAT_LOAD__ROOM])
        l->wrong++;
    else if (l->received < l->places)
        l->latencies[l->received] = conc_now() - sent;
    if (is_ours)
        l->sum += from + number + id - t->first_id;
    if (++l->received == l->expected && l->talking == 0)
        conc_event_set(&l->over);
}

static inline const char *chat_load__text(const cJSON *json, const char *name)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, name));
}

/* Receives messages until one of this type. */
static inline int chat_load__listen(chat_load__user *t, const char *type)
{
    websocket_message m;
    while (CONC_TRY(websocket_receive(&t->w, &m)) > 0) {
        cJSON *json = cJSON_ParseWithLength(m.data, m.size);
        const char *got = chat_load__text(json, "type"), *text = chat_load__text(json, "text");
        bool is_it = got && strcmp(got, type) == 0, is_said = got && strcmp(got, "said") == 0;
        bool is_error = got && strcmp(got, "error") == 0;
        const cJSON *id = cJSON_GetObjectItemCaseSensitive(json, "id");
        if (is_said && text)
            chat_load__hear(t, cJSON_IsNumber(id) ? (int64_t)id->valuedouble : 0, text);
        int rc = is_error ? conc_fail(-EPROTO, "the server said: %.80s", text ? text : "") : 0;
        cJSON_Delete(json);
        if (rc || is_it)
            return rc;
    }
    return conc_fail(-ECONNRESET, "the server closed with %d", t->w.close_code);
}

static inline int chat_load__connect(void *arg)
{
    chat_load__user *t = arg;
    chat_load *l = t->of;
    CONC_TRY(conc_stream_open(t->w.stream, CONC_TRY(conc_dial(l->address))));
    CONC_TRY(websocket_connect(&t->w, "/chat", l->address));
    snprintf(t->room, sizeof t->room, "load %d %d", (int)getpid(), t->index / CHAT_LOAD__ROOM);
    CONC_TRY(websocket_printf(&t->w, "{\"type\":\"join\",\"room\":\"%s\",\"name\":\"user %d\"}",
                              t->room, t->index));
    CONC_TRY(chat_load__listen(t, "joined"));
    if (++l->connected % 100 == 0 && l->shows_progress && isatty(STDOUT_FILENO)) {
        printf("\r%d users have joined\r", l->connected);
        fflush(stdout);
    }
    return 0;
}

static inline int chat_load__come_in(chat_load__user *t)
{
    chat_load *l = t->of;
    CONC_PERMIT(&l->connecting) {
        int rc = conc_timeout(CHAT_LOAD__PATIENCE, chat_load__connect, t);
        if (rc == -ETIMEDOUT)
            conc_fail(rc, "%s did not answer for %d s", l->address, CHAT_LOAD__PATIENCE);
        CONC_TRY(rc);
    }
    CONC_TRY(conc_barrier_wait(&l->joined));
    if (l->before < 0) /* the first to continue */
        l->before = chat_load__processor(l);
    return 0;
}

static inline int chat_load__be_a_user(void *arg)
{
    char words[128];
    conc_stream stream = {0};
    chat_load__user t = *(chat_load__user *)arg;
    conc_group g = {0};
    t.w.stream = &stream;
    int rc = chat_load__come_in(&t);
    if (rc >= 0)
        rc = conc_spawn(&g, chat_load__talk, &t);
    if (rc >= 0)
        rc = conc_group_end(&g, chat_load__listen(&t, "never"));
    snprintf(words, sizeof words, "%s", conc_last_error());
    websocket_close(&t.w);
    bool is_first = rc < 0 && !t.of->has_failed; /* report only the first error */
    t.of->has_failed = rc < 0;
    return is_first ? conc_fail(rc, "%s", words) : -ECANCELED;
}

static inline int chat_load__compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline int chat_load__await_rest(void *arg)
{
    return conc_event_wait(&((chat_load *)arg)->over);
}

static inline void chat_load__sort(chat_load *l)
{
    long n = l->received < l->places ? l->received : l->places;
    if (n == 0)
        return;
    qsort(l->latencies, (size_t)n, sizeof(double), chat_load__compare);
    l->p50 = l->latencies[n / 2];
    l->p99 = l->latencies[n * 99 / 100];
    l->latest = l->latencies[n - 1];
}

static inline int chat_load__run(chat_load *l)
{
    conc_group users = {0};
    int rc = 0;
    for (int i = 0; rc == 0 && i < l->clients; i++)
        rc = CONC_SPAWN(&users, chat_load__be_a_user, (chat_load__user){.of = l, .index = i});
    if (rc == 0)
        rc = conc_event_wait(&l->talked);
    if (rc == 0 && l->received < l->expected)
        rc = conc_timeout(CHAT_LOAD__PATIENCE, chat_load__await_rest, l);
    l->server_seconds = chat_load__processor(l) - l->before;
    if (rc == 0 || rc == -ETIMEDOUT)
        conc_group_cancel(&users);
    return conc_group_end(&users, rc == -ETIMEDOUT ? 0 : rc);
}

static inline int chat_load_run(chat_load *l)
{
    *l = (chat_load){.address = l->address,
                     .clients = l->clients,
                     .seconds = l->seconds,
                     .shows_progress = l->shows_progress,
                     .server = l->server,
                     .before = -1,
                     .connecting = CONC_SEM(CHAT_LOAD__CONNECTING),
                     .joined = CONC_BARRIER(l->clients),
                     .talking = l->clients};
    l->places = (long)l->clients * CHAT_LOAD__ROOM * (long)l->seconds;
    l->latencies = calloc((size_t)l->places, sizeof(double));
    if (!l->latencies)
        return -ENOMEM;
    int rc = chat_load__run(l);
    chat_load__sort(l);
    free(l->latencies);
    l->latencies = NULL;
    return rc;
}

#endif
