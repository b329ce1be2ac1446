/* arena_client.h - players of arena_net.h that play by themselves: for tests, load and company
 *
 *     arena_client c = {.name = "Ada", .matches = 1, .by_udp = true,
 *                       .bot = {.random = 7, .skill = 50}};
 *     CONC_TRY(arena_client_dial(&c, "127.0.0.1:8080"));
 *     int rc = arena_client_play(&c);
 *     arena_client_close(&c);
 *
 * With .send and .receive of your own it plays over anything. What is lost on the way it asks for
 * again after a second. It looks only at the states that it is sent, as a person does.
 *
 * A ledger compares what the clients of a match have seen: at each tick all must have the same.
 *
 * arena_client_dial, _play and _close wait. Errors: -ECONNRESET (the server has ended it; its words
 * are in conc_last_error), and those of the network. Include conc_sync.h before; websocket.h's
 * libraries are needed.
 */
#ifndef ARENA_CLIENT_H
#define ARENA_CLIENT_H

#ifndef CONC_SYNC_H
#error "arena_client.h: include conc_sync.h first"
#endif

#include "arena_net.h"
#include "datagrams.h"
#include "websocket.h"
#include <unistd.h>

/* ---- what clients have seen ----------------------------------------------------------------- */

enum { ARENA_LEDGER_MATCHES = 1024, ARENA_LEDGER_TICKS = 4096 }; /* older matches are forgotten */

typedef struct arena_ledger {
    long same, different;            /* states compared with what the others have */
    long matches;                    /* players' matches that ended */
    long actions, seen;              /* that were sent in these; and were seen in a state */
    long states, whole;              /* that came; and those that were no difference */
    int match[ARENA_LEDGER_MATCHES]; /* private */
    uint32_t hashes[ARENA_LEDGER_MATCHES][ARENA_LEDGER_TICKS];
} arena_ledger;

static inline void arena_ledger_add(arena_ledger *l, int match, uint16_t tick, uint32_t hash)
{
    int row = match % ARENA_LEDGER_MATCHES;
    uint32_t *known = &l->hashes[row][tick % ARENA_LEDGER_TICKS];
    if (l->match[row] != match)
        memset(l->hashes[row], 0, sizeof l->hashes[row]);
    l->match[row] = match;
    if (*known == 0)
        *known = hash;
    if (*known == hash)
        l->same++;
    else
        l->different++;
}

/* ---- a client ------------------------------------------------------------------------------- */

/* What some try. */
typedef enum arena_temper {
    ARENA_HONEST,
    ARENA_SPEEDS,    /* drives five times as fast as it can */
    ARENA_TELEPORTS, /* is suddenly somewhere else */
    ARENA_TUNNELS,   /* drives on where a wall is */
    ARENA_SPAMS      /* fires in each tick */
} arena_temper;

enum { ARENA_CLIENT__AHEAD = 64 }; /* actions that may be on their way; a power of two */

typedef struct arena_client {
    /* options */
    char name[ARENA_NAME];
    int matches; /* to play; 0: for ever */
    bool by_udp; /* else by WebSocket */
    arena_bot bot;
    arena_temper temper;
    double delay;                               /* seconds it takes to answer a state */
    arena_ledger *ledger;                       /* NULL: none */
    int (*before_join)(struct arena_client *c); /* may wait; NULL: it plays whenever it can */
    int (*send)(struct arena_client *c, const packet *p);
    int (*receive)(struct arena_client *c, packet *p); /* waits: 1, or 0: the connection ended */
    void *user;

    int played; /* matches */

    /* private */
    packet in;
    int unanswered; /* questions, in a row */
    uint64_t token;
    arena_roster roster;           /* .match 0: in none */
    uint16_t acted;                /* the tick of the last action */
    uint16_t seen;                 /* the last action that a state has */
    uint16_t fired;                /* the last one with a shot */
    uint16_t placed;               /* the last one before the game moved the tank */
    int path[ARENA_CLIENT__AHEAD]; /* the way driven up to an action */
    arena_action action;
    snapshot_history states;
    conc_stream stream;
    websocket socket;
    datagram_client datagrams;
} arena_client;

/* Says HELLO with what it has, so a client that was cut off plays on. */
static inline int arena_client_hello(arena_client *c)
{
    packet out = {0};
    arena_hello hello = {.token = c->token};
    memcpy(hello.name, c->name, sizeof hello.name);
    packet_put(&out, 1, ARENA_HELLO);
    arena_put_hello(&out, &hello);
    return c->send(c, &out);
}

static inline int arena_client__say(arena_client *c, int type)
{
    packet out = {0};
    packet_put(&out, 1, (uint64_t)type);
    return c->send(c, &out);
}

static inline int arena_client__join(arena_client *c)
{
    if (c->before_join)
        CONC_TRY(c->before_join(c));
    return arena_client__say(c, ARENA_JOIN);
}

/* Its action, and that it has the state of this tick; 0: it needs a whole one. */
static inline int arena_client__report(arena_client *c, uint16_t tick)
{
    packet out = {0};
    arena_report report = {c->roster.match, tick, snapshot_hash_at(&c->states, tick), c->action};
    packet_put(&out, 1, ARENA_ACTION);
    arena_put_report(&out, &report);
    return c->send(c, &out);
}

/* Says whatever makes up for what may have been lost; if that is in vain, HELLO: perhaps the server
 * has given it up. */
static inline int arena_client__ask(arena_client *c)
{
    if (!c->token || c->unanswered++ >= 2)
        return arena_client_hello(c);
    if (c->roster.match)
        return arena_client__report(c, c->states.newest);
    return arena_client__join(c);
}

static inline void arena_client__cheat(arena_client *c, const arena_player *me)
{
    arena_action *a = &c->action;
    bool now = me->energy > 0 && arena_random(&c->bot.random) % 8 == 0;
    int way = ARENA_SPEED;
    if (c->temper == ARENA_SPEEDS)
        way *= 5;
    if (c->temper == ARENA_SPAMS)
        a->fire = true;
    if (c->temper == ARENA_TELEPORTS && now)
        a->x = a->y = ARENA_WIDTH / 4;
    if (c->temper == ARENA_SPEEDS || (c->temper == ARENA_TUNNELS && now)) {
        a->x = (uint16_t)(a->x + arena_cosine(a->aim) * way / 1024);
        a->y = (uint16_t)(a->y + arena_sine(a->aim) * way / 1024);
    }
}

/* Decides on the next action. It goes no farther ahead of the state than the state allows, and
 * fires again only when it has seen its last shot: whatever the network does, this is possible. */
static inline void arena_client__decide(arena_client *c, const arena *state, int ticks)
{
    const arena_player *me = &state->players[c->roster.slot];
    arena_action *a = &c->action, before = *a;
    uint16_t known = c->seen > c->placed ? c->seen : c->placed;
    int *path = c->path, mask = ARENA_CLIENT__AHEAD - 1;
    arena_think(state, c->roster.slot, &c->bot, ticks < 10 ? ticks : 10, a);
    int way = arena_distance(a->x - before.x, a->y - before.y);
    if (path[before.number & mask] - path[known & mask] + way > me->reach) {
        a->x = before.x;
        a->y = before.y;
        way = 0;
    }
    a->number++;
    path[a->number & mask] = path[before.number & mask] + way;
    a->fire = a->fire && c->fired <= c->seen;
    arena_client__cheat(c, me);
    if (a->fire)
        c->fired = a->number;
}

/* Answers the newest state. */
static inline int arena_client__act(arena_client *c)
{
    uint16_t tick = c->states.newest;
    arena state;
    memcpy(&state, snapshot_at(&c->states, tick), sizeof state);
    const arena_player *me = &state.players[c->roster.slot];
    c->seen = me->number;
    if (c->action.number < me->number)
        c->action.number = me->number; /* it was here before */
    if (c->action.moved != me->moved) {
        c->action.moved = me->moved;
        c->action.x = me->x;
        c->action.y = me->y;
        c->placed = c->action.number;
    }
    bool too_late = tick + ARENA_RATE / 2 > c->roster.ticks;
    bool too_far = c->action.number - c->seen >= ARENA_CLIENT__AHEAD - 1;
    if (too_late || too_far)
        return arena_client__report(c, tick); /* says the last action again */
    arena_client__decide(c, &state, tick - c->acted);
    c->acted = tick;
    return arena_client__report(c, tick);
}

static inline int arena_client__on_state(arena_client *c, packet_reader *r)
{
    if ((int)packet_get(r, 2) != c->roster.match)
        return arena_client__say(c, ARENA_JOIN); /* START was lost */
    bool whole = r->size > 3 && r->data[2] == 0 && r->data[3] == 0;
    int rc = snapshot_read(&c->states, r);
    if (rc == -ENOENT || rc == -EBADMSG)
        return arena_client__report(c, 0);
    if (rc <= 0)
        return rc;
    if (c->ledger) {
        uint16_t tick = c->states.newest;
        arena_ledger_add(c->ledger, c->roster.match, tick, snapshot_hash_at(&c->states, tick));
        c->ledger->states++;
        c->ledger->whole += whole;
    }
    CONC_TRY(conc_sleep(c->delay));
    return arena_client__act(c);
}

static inline int arena_client__on_start(arena_client *c, packet_reader *r)
{
    arena_roster roster = {0};
    if (!arena_get_roster(r, &roster) || roster.match == c->roster.match)
        return 0;
    c->roster = roster;
    c->acted = c->seen = c->fired = c->placed = 0;
    c->action = (arena_action){0};
    return snapshot_close(&c->states);
}

static inline int arena_client__on_end(arena_client *c, packet_reader *r)
{
    arena_result result = {0};
    if (!arena_get_result(r, &result) || result.match != c->roster.match || !result.match)
        return 0; /* it was told before */
    c->roster.match = 0;
    c->played++;
    if (c->ledger) {
        c->ledger->matches++;
        c->ledger->actions += c->action.number;
        c->ledger->seen += c->seen;
    }
    return c->played == c->matches ? 0 : arena_client__join(c);
}

static inline int arena_client__on_message(arena_client *c)
{
    packet_reader r = {c->in.data, c->in.size, false};
    c->unanswered = 0;
    switch (packet_get(&r, 1)) {
    case ARENA_WELCOME: c->token = packet_get(&r, 8); return arena_client__ask(c);
    case ARENA_START: return arena_client__on_start(c, &r);
    case ARENA_STATE: return arena_client__on_state(c, &r);
    case ARENA_END: return arena_client__on_end(c, &r);
    case ARENA_BYE:
        return conc_fail(-ECONNRESET, "%s: %.*s", c->name, (int)r.size, (const char *)r.data);
    default: return 0;
    }
}

static inline int arena_client__receive(void *arg)
{
    arena_client *c = arg;
    return c->receive(c, &c->in);
}

/* Plays as many matches as are wanted: 0 or an error. */
static inline int arena_client_play(arena_client *c)
{
    c->states.words = ARENA_WORDS;
    CONC_TRY(arena_client__ask(c));
    while (c->matches == 0 || c->played < c->matches) {
        int rc = conc_timeout(1 + c->delay, arena_client__receive, c);
        if (rc == -ETIMEDOUT)
            rc = arena_client__ask(c);
        else if (rc > 0)
            rc = arena_client__on_message(c);
        else if (rc == 0)
            rc = conc_fail(-ECONNRESET, "%s: the server has closed the connection", c->name);
        CONC_TRY(rc);
    }
    CONC_TRY(arena_client__say(c, ARENA_QUIT));
    return c->socket.stream ? websocket_end(&c->socket, 1000, NULL) : 0;
}

/* ---- over a network ------------------------------------------------------------------------- */

static inline int arena_client__send_frame(arena_client *c, const packet *p)
{
    return websocket_send(&c->socket, WEBSOCKET_BINARY, p->data, p->size);
}

static inline int arena_client__receive_frame(arena_client *c, packet *p)
{
    websocket_message m;
    int rc = websocket_receive(&c->socket, &m);
    p->size = 0;
    if (rc == 1)
        packet_put_bytes(p, m.data, m.size);
    if (rc == 0 && c->socket.close_reason[0])
        return conc_fail(-ECONNRESET, "%s: %s", c->name, c->socket.close_reason);
    return rc;
}

static inline int arena_client__send_datagram(arena_client *c, const packet *p)
{
    return datagram_client_send(&c->datagrams, p->data, p->size);
}

static inline int arena_client__receive_datagram(arena_client *c, packet *p)
{
    ssize_t n = datagram_client_receive(&c->datagrams, p->data, sizeof p->data);
    p->size = (size_t)CONC_TRY(n);
    return 1;
}

/* Connects to a server. Call arena_client_close, whatever comes of it. */
static inline int arena_client_dial(arena_client *c, const char *address)
{
    int fd = CONC_TRY(conc_dial(address));
    if (c->by_udp) {
        int rc = datagram_dial(&c->datagrams, fd); /* UDP, to where TCP has gone */
        conc_close(fd);
        c->send = arena_client__send_datagram;
        c->receive = arena_client__receive_datagram;
        return rc;
    }
    CONC_TRY(conc_stream_open(&c->stream, fd));
    c->socket.stream = &c->stream;
    c->send = arena_client__send_frame;
    c->receive = arena_client__receive_frame;
    return websocket_connect(&c->socket, "/play", address);
}

/* Releases all. Twice, or on an all-zero object, it does nothing. */
static inline int arena_client_close(arena_client *c)
{
    websocket_close(&c->socket);
    conc_stream_close(&c->stream);
    datagram_client_close(&c->datagrams);
    return snapshot_close(&c->states);
}

/* ---- in the server's own process ------------------------------------------------------------- */

/* A client whose packets go through memory, where they can be lost as in a network. Call
 * arena_local_open, then arena_client_play(&l.client), then arena_local_close. */
typedef struct arena_local {
    /* options */
    arena_client client;
    void *session;
    int (*deliver)(void *session, const void *data, size_t size); /* to the server */
    double loss; /* this part of all packets does not arrive */
    bool cut;    /* none does */

    long lost;

    /* private */
    uint32_t luck;
    conc_queue inbox;
} arena_local;

static inline bool arena_local__loses(arena_local *l)
{
    bool lost = l->cut || arena_random(&l->luck) % 1000 < l->loss * 1000;
    l->lost += lost;
    return lost;
}

static inline int arena_local__send(arena_client *c, const packet *p)
{
    arena_local *l = c->user;
    return arena_local__loses(l) ? 0 : l->deliver(l->session, p->data, p->size);
}

static inline int arena_local__receive(arena_client *c, packet *p)
{
    arena_local *l = c->user;
    CONC_TRY(conc_queue_get(&l->inbox, p));
    return 1;
}

static inline void arena_local_open(arena_local *l)
{
    l->client.user = l;
    l->client.send = arena_local__send;
    l->client.receive = arena_local__receive;
    l->luck = l->client.bot.random + 1;
    l->inbox = (conc_queue)CONC_QUEUE(packet, 8);
}

/* The server's packets to this client; waits while many have not been taken. */
static inline int arena_local_push(arena_local *l, const packet *p)
{
    return arena_local__loses(l) ? 0 : conc_queue_put(&l->inbox, p);
}

static inline int arena_local_close(arena_local *l)
{
    conc_queue_destroy(&l->inbox);
    return arena_client_close(&l->client);
}

/* ---- many ------------------------------------------------------------------------------------ */

typedef struct arena_crowd {
    const char *address;
    int count, matches; /* clients, every second one by UDP; what each of them plays, 0: for ever */
    arena_ledger *ledger;
} arena_crowd;

/* Gives the client a name, and habits that the seed and the index decide. */
static inline void arena_client_name(arena_client *c, int index, uint32_t seed)
{
    static const char *const names[] = {"Ada",   "Bela", "Cleo", "Dora", "Emil", "Finn",
                                        "Greta", "Hugo", "Iris", "Jon",  "Kira", "Leo"};
    snprintf(c->name, sizeof c->name, "%s %d", names[index % 12], index + 1);
    c->bot.random = seed + (uint32_t)index * 2654435761u;
    c->bot.skill = 20 + index * 37 % 61;
}

typedef struct arena__member {
    const arena_crowd *crowd;
    int index;
} arena__member;

static inline int arena__run_member(void *arg)
{
    const arena__member *m = arg;
    arena_client *c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    arena_client_name(c, m->index, 0);
    c->by_udp = m->index % 2;
    c->matches = m->crowd->matches;
    c->ledger = m->crowd->ledger;
    int rc = arena_client_dial(c, m->crowd->address);
    if (rc >= 0)
        rc = arena_client_play(c);
    arena_client_close(c);
    free(c);
    return rc;
}

/* One line that counts up on a terminal, else a line now and then. */
static inline int arena__show_progress(void *arg)
{
    const arena_ledger *l = arg;
    double start = conc_now();
    bool terminal = isatty(1);
    const char *form = "%.0f s: %ld states, %ld differ, %ld matches over for a player\n";
    if (terminal)
        form = "\r%.0f s: %ld states, %ld differ, %ld matches over for a player ";
    for (;;) {
        CONC_TRY(conc_sleep(terminal ? 0.5 : 5));
        printf(form, conc_now() - start, l->states, l->different, l->matches);
        fflush(stdout);
    }
}

static inline int arena__run_members(void *arg)
{
    const arena_crowd *crowd = arg;
    conc_group g = {0};
    for (int i = 0; i < crowd->count; i++) {
        CONC_TRY_IN(&g, CONC_SPAWN(&g, arena__run_member, ((arena__member){crowd, i})));
        CONC_TRY_IN(&g, conc_sleep(0.001)); /* no crowd at the door */
    }
    return conc_group_wait(&g);
}

/* Lets them play, and prints how far they are: 0, or the first error. Waits. */
static inline int arena_crowd_run(arena_crowd *crowd)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, arena__show_progress, crowd->ledger));
    int rc = arena__run_members(crowd);
    conc_group_cancel(&g);
    rc = conc_group_end(&g, rc);
    if (isatty(1))
        putchar('\n');
    return rc;
}

#endif
