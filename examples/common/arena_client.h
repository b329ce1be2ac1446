/* arena_client.h - bots that play over arena_net.h: for tests, for load, and as opponents
 *
 *     arena_client c = {.name = "Ada", .matches = 1, .by_udp = true, .address = "127.0.0.1:8080",
 *                       .bot = {.random = 7, .skill = 50}};
 *     CONC_TRY(arena_client_dial(&c));
 *     int rc = arena_client_play(&c);
 *     arena_client_close(&c);
 *
 * With a .link of your own it plays over any transport. It requests lost data again after a second.
 * It sees only the states that it receives, as a person does.
 *
 * A ledger compares the states that the clients of a match have seen: at each tick they must be
 * equal.
 *
 * arena_client_dial, _play and _close wait. Errors: -ECONNRESET (the server closed it; its text is
 * in conc_last_error), and network errors. Include conc_sync.h before; websocket.h's libraries are
 * needed.
 */
#ifndef ARENA_CLIENT_H
#define ARENA_CLIENT_H

#ifndef CONC_SYNC_H
#error "arena_client.h: include conc_sync.h first"
#endif

#include "arena_net.h"
#include "packet_link.h"

/* ---- what clients have seen ----------------------------------------------------------------- */

enum { ARENA_LEDGER_MATCHES = 1024, ARENA_LEDGER_TICKS = 4096 }; /* older matches are forgotten */

typedef struct arena_ledger {
    long same, different;            /* states compared with those of the others */
    long matches;                    /* ended matches, counted per player */
    long actions, seen;              /* in these matches: actions sent; of them seen in a state */
    long states;                     /* received */
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

/* How a client cheats. */
typedef enum arena_temper {
    ARENA_HONEST,
    ARENA_SPEEDS,    /* drives five times as fast as it can */
    ARENA_TELEPORTS, /* jumps to another place */
    ARENA_TUNNELS,   /* drives through walls */
    ARENA_SPAMS      /* fires in each tick */
} arena_temper;

enum { ARENA_CLIENT__AHEAD = 64 }; /* actions that may be unacknowledged; a power of two */

typedef struct arena_client {
    /* options */
    char name[ARENA_NAME];
    int matches;         /* matches to play; 0: forever */
    const char *address; /* to dial */
    bool by_udp;         /* else by WebSocket */
    arena_bot bot;
    arena_temper temper;
    double delay;         /* seconds before it answers a state */
    arena_ledger *ledger; /* NULL: none */
    packet_link *link;    /* arena_client_dial makes one */
    uint64_t token;       /* of a player known to the server; 0: a new player */

    int played; /* matches */

    /* private */
    packet in;
    int unanswered;                /* requests without a reply, in a row */
    bool is_known;                 /* the server has sent WELCOME */
    arena_roster roster;           /* .match 0: not in a match */
    uint16_t acted;                /* the tick of the last action */
    uint16_t seen;                 /* the last action included in a state */
    uint16_t fired;                /* the last action with a shot */
    uint16_t placed;               /* the last action before the rules moved the tank */
    int path[ARENA_CLIENT__AHEAD]; /* the distance driven up to each action */
    arena_action action;
    snapshot_history states;
    packet_link network;
    conc_stream stream;
    websocket socket;
    datagram_client datagrams;
} arena_client;

/* Sets the client's name and habits, which depend on the seed and the index. */
static inline void arena_client_name(arena_client *c, int index, uint32_t seed)
{
    static const char *const names[] = {"Ada",   "Bela", "Cleo", "Dora", "Emil", "Finn",
                                        "Greta", "Hugo", "Iris", "Jon",  "Kira", "Leo"};
    snprintf(c->name, sizeof c->name, "%s %d", names[index % 12], index + 1);
    c->bot.random = seed + (uint32_t)index * 2654435761u;
    c->bot.skill = 20 + index * 37 % 61;
}

/* Sends HELLO with its token, so that a disconnected client can continue. */
static inline int arena_client_hello(arena_client *c)
{
    packet out = {0};
    arena_hello hello = {.token = c->token};
    memcpy(hello.name, c->name, sizeof hello.name);
    packet_put(&out, 1, ARENA_HELLO);
    arena_put_hello(&out, &hello);
    return c->link->send(c->link, &out);
}

static inline int arena_client__say(arena_client *c, int type)
{
    packet out = {0};
    packet_put(&out, 1, (uint64_t)type);
    return c->link->send(c->link, &out);
}

/* Sends the current action and acknowledges the state of this tick; tick 0 requests a whole
 * state. */
static inline int arena_client__report(arena_client *c, uint16_t tick)
{
    packet out = {0};
    arena_report report = {c->roster.match, tick, snapshot_hash_at(&c->states, tick), c->action};
    packet_put(&out, 1, ARENA_ACTION);
    arena_put_report(&out, &report);
    return c->link->send(c->link, &out);
}

/* Repeats the message that may have been lost. If there is still no reply, sends HELLO: perhaps the
 * server has dropped the client. */
static inline int arena_client__ask(arena_client *c)
{
    if (!c->is_known || c->unanswered++ >= 2)
        return arena_client_hello(c);
    if (c->roster.match)
        return arena_client__report(c, c->states.newest);
    return arena_client__say(c, ARENA_JOIN);
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

/* Decides on the next action. To be possible whatever the network does, it drives no farther ahead
 * of the state than the state allows, and fires only after the last shot has appeared in a
 * state. */
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
        c->action.number = me->number; /* a client that returned */
    if (c->action.moved != me->moved) {
        c->action.moved = me->moved;
        c->action.x = me->x;
        c->action.y = me->y;
        c->placed = c->action.number;
    }
    bool too_late = tick + ARENA_RATE / 2 > c->roster.ticks;
    bool too_far = c->action.number - c->seen >= ARENA_CLIENT__AHEAD - 1;
    if (too_late || too_far)
        return arena_client__report(c, tick); /* repeats the last action */
    arena_client__decide(c, &state, tick - c->acted);
    c->acted = tick;
    return arena_client__report(c, tick);
}

static inline int arena_client__on_state(arena_client *c, packet_reader *r)
{
    if ((int)packet_get(r, 2) != c->roster.match)
        return arena_client__say(c, ARENA_JOIN); /* START was lost */
    int rc = snapshot_read(&c->states, r);
    if (rc == -ENOENT || rc == -EBADMSG)
        return arena_client__report(c, 0);
    if (rc <= 0)
        return rc;
    if (c->ledger) {
        uint16_t tick = c->states.newest;
        arena_ledger_add(c->ledger, c->roster.match, tick, snapshot_hash_at(&c->states, tick));
        c->ledger->states++;
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
        return 0; /* a repeated message */
    c->roster.match = 0;
    c->played++;
    if (c->ledger) {
        c->ledger->matches++;
        c->ledger->actions += c->action.number;
        c->ledger->seen += c->seen;
    }
    return c->played == c->matches ? 0 : arena_client__say(c, ARENA_JOIN);
}

static inline int arena_client__on_message(arena_client *c)
{
    packet_reader r = {c->in.data, c->in.size, false};
    c->unanswered = 0;
    switch (packet_get(&r, 1)) {
    case ARENA_WELCOME:
        c->token = packet_get(&r, 8);
        c->is_known = true;
        return arena_client__ask(c);
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
    return c->link->receive(c->link, &c->in);
}

/* Plays .matches matches. Can be called or spawned. */
static inline int arena_client_play(void *client)
{
    arena_client *c = client;
    c->states.words = ARENA_WORDS;
    CONC_TRY(arena_client__ask(c));
    while (c->matches == 0 || c->played < c->matches) {
        int rc = conc_timeout(1 + c->delay, arena_client__receive, c);
        if (rc == -ETIMEDOUT)
            rc = arena_client__ask(c);
        else if (rc > 0)
            rc = arena_client__on_message(c);
        else if (rc == 0)
            rc = conc_fail(-ECONNRESET, "%s: the server has closed the connection: %s", c->name,
                           c->socket.close_reason);
        CONC_TRY(rc);
    }
    CONC_TRY(arena_client__say(c, ARENA_QUIT));
    return c->socket.stream ? websocket_end(&c->socket, 1000, NULL) : 0;
}

/* ---- over a network ------------------------------------------------------------------------- */

/* Connects to a server. Call arena_client_close even after an error. */
static inline int arena_client_dial(arena_client *c)
{
    int fd = CONC_TRY(conc_dial(c->address));
    if (c->by_udp) {
        int rc = datagram_dial(&c->datagrams, fd); /* to the address that TCP has reached */
        conc_close(fd);
        c->network = packet_link_datagrams(&c->datagrams);
        c->link = &c->network;
        return rc;
    }
    CONC_TRY(conc_stream_open(&c->stream, fd));
    c->socket.stream = &c->stream;
    c->network = packet_link_websocket(&c->socket);
    c->link = &c->network;
    return websocket_connect(&c->socket, "/play", c->address);
}

/* Closes and frees everything. Harmless if repeated, or on an all-zero object. */
static inline int arena_client_close(arena_client *c)
{
    websocket_close(&c->socket);
    conc_stream_close(&c->stream);
    datagram_client_close(&c->datagrams);
    return snapshot_close(&c->states);
}

#endif
