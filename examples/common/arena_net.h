/* arena_net.h - the network messages of arena.h's game, one per packet
 *
 * A message begins with its type, one byte. Each is self-contained, because messages may be lost,
 * duplicated or late. The player sends HELLO until it gets a WELCOME, JOIN once a second until a
 * START, then an ACTION for each STATE. The server repeats nothing on its own: a player that misses
 * something asks again, and gets the newest.
 *
 *     HELLO    protocol version, a token or 0, a name
 *     JOIN     nothing: wants to play, or is still connected
 *     ACTION   match, the newest tick it has and its hash, and an arena_action
 *     QUIT     nothing: stops playing
 *
 *     WELCOME  the token, which identifies the player when it reconnects; the rating
 *     LOBBY    how many players are connected, how many wait, and the accepted band of ratings
 *     START    the roster: who plays
 *     STATE    match, and an arena as snapshot.h encodes it
 *     END      the result
 *     BYE      the reason for ending the connection
 *
 * arena_put_X appends what follows the type; arena_get_X reads it, and returns false if it is
 * malformed.
 */
#ifndef ARENA_NET_H
#define ARENA_NET_H

#include "arena.h"
#include "snapshot.h"
#include "utf8.h"

enum {
    ARENA_VERSION = 1,
    ARENA_NAME = 25 /* bytes of a name, with the NUL */
};

/* The types. Those of the server are bits, for a set of messages due to a player. */
enum { ARENA_HELLO = 'H', ARENA_JOIN = 'J', ARENA_ACTION = 'A', ARENA_QUIT = 'Q' };
enum {
    ARENA_WELCOME = 1,
    ARENA_LOBBY = 2,
    ARENA_START = 4,
    ARENA_STATE = 8,
    ARENA_END = 16,
    ARENA_BYE = 32
};

typedef struct arena_hello {
    uint64_t token;
    char name[ARENA_NAME]; /* UTF-8 */
} arena_hello;

typedef struct arena_report {
    int match;
    uint16_t tick;
    uint32_t hash;
    arena_action action;
} arena_report;

typedef struct arena_roster {
    int match, slot, ticks, count; /* slot: the recipient's */
    int ratings[ARENA_PLAYERS];
    char names[ARENA_PLAYERS][ARENA_NAME];
} arena_roster;

typedef struct arena_result {
    int match, count; /* count 0: the player was removed from the match */
    int scores[ARENA_PLAYERS], ratings[ARENA_PLAYERS], changes[ARENA_PLAYERS];
} arena_result;

static inline void arena__put_name(packet *p, const char *name)
{
    packet_put(p, 1, strlen(name));
    packet_put_bytes(p, name, strlen(name));
}

/* Returns the size of a text's first character, if it is UTF-8 and printable; else 0. */
static inline size_t arena__character(const char *text)
{
    unsigned char first = (unsigned char)text[0];
    bool is_late_control = first == 0xc2 && (unsigned char)text[1] < 0xa0;
    bool is_control = first < ' ' || first == 127 || is_late_control;
    return is_control ? 0 : utf8_length(text);
}

/* Reads a name. Bytes that are not UTF-8, and control characters, become question marks. */
static inline void arena__get_name(packet_reader *r, char *name)
{
    char text[256] = "";
    size_t n = packet_get(r, 1), used = 0;
    const unsigned char *data = packet_get_bytes(r, n);
    if (data)
        memcpy(text, data, n);
    for (size_t i = 0; data && i < n;) {
        size_t size = arena__character(text + i), least = size + (size == 0);
        if (used + least >= ARENA_NAME)
            break;
        memcpy(name + used, size ? text + i : "?", least);
        used += least;
        i += least;
    }
    name[used] = 0;
}

static inline void arena_put_hello(packet *p, const arena_hello *h)
{
    packet_put(p, 1, ARENA_VERSION);
    packet_put(p, 8, h->token);
    arena__put_name(p, h->name);
}

static inline bool arena_get_hello(packet_reader *r, arena_hello *h)
{
    bool same = packet_get(r, 1) == ARENA_VERSION;
    h->token = packet_get(r, 8);
    arena__get_name(r, h->name);
    return same && !r->bad;
}

static inline void arena_put_welcome(packet *p, uint64_t token, int rating)
{
    packet_put(p, 8, token);
    packet_put(p, 2, (uint64_t)rating);
}

static inline void arena_put_lobby(packet *p, int here, int waiting, double band)
{
    packet_put(p, 2, (uint64_t)here);
    packet_put(p, 2, (uint64_t)waiting);
    packet_put(p, 2, (uint64_t)band);
}

static inline void arena_put_report(packet *p, const arena_report *a)
{
    packet_put(p, 2, (uint64_t)a->match);
    packet_put(p, 2, a->tick);
    packet_put(p, 4, a->hash);
    packet_put(p, 2, a->action.number);
    packet_put(p, 2, a->action.moved);
    packet_put(p, 2, a->action.x);
    packet_put(p, 2, a->action.y);
    packet_put(p, 1, a->action.aim);
    packet_put(p, 1, a->action.fire);
}

static inline bool arena_get_report(packet_reader *r, arena_report *a)
{
    a->match = (int)packet_get(r, 2);
    a->tick = (uint16_t)packet_get(r, 2);
    a->hash = (uint32_t)packet_get(r, 4);
    a->action.number = (uint16_t)packet_get(r, 2);
    a->action.moved = (uint16_t)packet_get(r, 2);
    a->action.x = (uint16_t)packet_get(r, 2);
    a->action.y = (uint16_t)packet_get(r, 2);
    a->action.aim = (uint16_t)packet_get(r, 1);
    a->action.fire = packet_get(r, 1) != 0;
    return !r->bad && r->size == 0;
}

static inline void arena_put_roster(packet *p, const arena_roster *s)
{
    packet_put(p, 2, (uint64_t)s->match);
    packet_put(p, 1, (uint64_t)s->slot);
    packet_put(p, 2, (uint64_t)s->ticks);
    packet_put(p, 1, (uint64_t)s->count);
    for (int i = 0; i < s->count; i++) {
        packet_put(p, 2, (uint64_t)s->ratings[i]);
        arena__put_name(p, s->names[i]);
    }
}

static inline bool arena_get_roster(packet_reader *r, arena_roster *s)
{
    s->match = (int)packet_get(r, 2);
    s->slot = (int)packet_get(r, 1);
    s->ticks = (int)packet_get(r, 2);
    s->count = (int)packet_get(r, 1);
    if (s->count > ARENA_PLAYERS || s->slot >= s->count)
        return false;
    for (int i = 0; i < s->count; i++) {
        s->ratings[i] = (int16_t)packet_get(r, 2);
        arena__get_name(r, s->names[i]);
    }
    return !r->bad;
}

static inline void arena_put_result(packet *p, const arena_result *s)
{
    packet_put(p, 2, (uint64_t)s->match);
    packet_put(p, 1, (uint64_t)s->count);
    for (int i = 0; i < s->count; i++) {
        packet_put(p, 2, (uint64_t)s->scores[i]);
        packet_put(p, 2, (uint64_t)s->ratings[i]);
        packet_put(p, 2, (uint64_t)s->changes[i]);
    }
}

static inline bool arena_get_result(packet_reader *r, arena_result *s)
{
    s->match = (int)packet_get(r, 2);
    s->count = (int)packet_get(r, 1);
    for (int i = 0; i < s->count && i < ARENA_PLAYERS; i++) {
        s->scores[i] = (int16_t)packet_get(r, 2);
        s->ratings[i] = (int16_t)packet_get(r, 2);
        s->changes[i] = (int16_t)packet_get(r, 2);
    }
    return !r->bad;
}

#endif
