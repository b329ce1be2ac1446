/* snapshot.h - a game's state over a network: packets, and states as differences
 *
 *     snapshot_history sent = {.words = 3};                // the server's
 *     snapshot_view view = {0};                            // one for each client
 *     snapshot_put(&sent, tick, state);                    // each tick
 *     packet p = {0};
 *     if (snapshot_send(&sent, &view, &p))
 *         send(&p);
 *     ...
 *     snapshot_acknowledge(&sent, &view, tick, hash);      // what the client says that it has
 *
 *     snapshot_history received = {.words = 3};            // the client's
 *     packet_reader r = {p.data, p.size};
 *     if (snapshot_read(&received, &r) == 1)
 *         draw(snapshot_at(&received, received.newest)); // then acknowledges received.newest
 *
 * A state is an array of 16-bit words: a struct with only uint16_t fields is one. It is sent as the
 * words that differ from a state that the client has acknowledged, so a lost, duplicated or late
 * packet needs no repair: the next one is a difference from an older state. A client that has
 * acknowledged nothing, or none of the last SNAPSHOT_HISTORY states, gets the whole state, as the
 * difference from zeros. A hash accompanies each state, so that any mismatch is detected.
 *
 * Plain C that allocates only a history's states; nothing here waits, and conc is not needed. The
 * bytes are the same on all machines: numbers are little-endian. Ticks are 1 to 65,535.
 */
#ifndef SNAPSHOT_H
#define SNAPSHOT_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- packets -------------------------------------------------------------------------------- */

enum { PACKET_MAX = 1200 /* bytes: what any network carries in one datagram */ };

typedef struct packet {
    unsigned char data[PACKET_MAX];
    size_t size;
    bool full; /* something had no room and is missing: do not send it */
} packet;

/* What is left to read. It is a view: the bytes are the caller's. */
typedef struct packet_reader {
    const unsigned char *data;
    size_t size;
    bool bad; /* more was asked for than there is; what was read since is 0 */
} packet_reader;

/* Appends n bytes. */
static inline void packet_put_bytes(packet *p, const void *data, size_t n)
{
    p->full = p->full || n > PACKET_MAX - p->size;
    if (p->full)
        return;
    memcpy(p->data + p->size, data, n);
    p->size += n;
}

/* Appends the low `bytes` bytes of a number, 1 to 8. */
static inline void packet_put(packet *p, int bytes, uint64_t value)
{
    unsigned char text[8];
    for (int i = 0; i < bytes; i++)
        text[i] = (unsigned char)(value >> (8 * i));
    packet_put_bytes(p, text, (size_t)bytes);
}

/* Takes the next n bytes: where they are, or NULL if there are not as many. */
static inline const unsigned char *packet_get_bytes(packet_reader *r, size_t n)
{
    const unsigned char *data = r->data;
    r->bad = r->bad || n > r->size;
    if (r->bad)
        return NULL;
    r->data += n;
    r->size -= n;
    return data;
}

/* Takes the next number; 0 if it is not there. */
static inline uint64_t packet_get(packet_reader *r, int bytes)
{
    const unsigned char *data = packet_get_bytes(r, (size_t)bytes);
    uint64_t value = 0;
    for (int i = 0; data && i < bytes; i++)
        value |= (uint64_t)data[i] << (8 * i);
    return value;
}

/* ---- states --------------------------------------------------------------------------------- */

enum {
    SNAPSHOT_HISTORY = 32, /* states that are kept: 1.6 s at 20 ticks a second */
    SNAPSHOT_WINDOW = 10   /* ticks that a client may be behind until it is sent no more */
};

typedef struct snapshot_history {
    size_t words; /* option: of a state; the same on both sides */

    uint16_t newest; /* the newest tick; 0: none yet */

    /* private */
    uint16_t tick[SNAPSHOT_HISTORY];
    uint32_t hash[SNAPSHOT_HISTORY];
    uint16_t *states;
} snapshot_history;

/* FNV-1a of the words' bytes, the low one first. */
static inline uint32_t snapshot_hash(const uint16_t *state, size_t words)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < words; i++) {
        hash = (hash ^ (state[i] & 0xff)) * 16777619u;
        hash = (hash ^ (state[i] >> 8)) * 16777619u;
    }
    return hash;
}

/* Keeps a copy of a tick's state in place of the oldest one: 0, or -ENOMEM. */
static inline int snapshot_put(snapshot_history *h, uint16_t tick, const uint16_t *state)
{
    size_t slot = tick % SNAPSHOT_HISTORY, size = h->words * sizeof *state;
    if (!h->states)
        h->states = calloc(SNAPSHOT_HISTORY, size);
    if (!h->states)
        return -ENOMEM;
    memcpy(h->states + slot * h->words, state, size);
    h->tick[slot] = tick;
    h->hash[slot] = snapshot_hash(state, h->words);
    h->newest = tick;
    return 0;
}

/* The state of this tick; NULL: it is not kept. Valid until the next put or read. */
static inline const uint16_t *snapshot_at(const snapshot_history *h, uint16_t tick)
{
    size_t slot = tick % SNAPSHOT_HISTORY;
    bool kept = tick != 0 && h->tick[slot] == tick;
    return kept ? h->states + slot * h->words : NULL;
}

/* The hash of this tick's state; 0 if it is not kept. */
static inline uint32_t snapshot_hash_at(const snapshot_history *h, uint16_t tick)
{
    return snapshot_at(h, tick) ? h->hash[tick % SNAPSHOT_HISTORY] : 0;
}

static inline uint16_t snapshot__word(const uint16_t *state, size_t i)
{
    return state ? state[i] : 0;
}

/* Appends a kept state: tick, base, hash; then runs: how many words are as in the base, how many
 * follow, these. base is the tick of a state that the client has; if it is not kept, or 0, the
 * whole state is written. Returns the base that was taken; 0: the whole state. */
static inline uint16_t snapshot_write(const snapshot_history *h, packet *p, uint16_t tick,
                                      uint16_t base)
{
    const uint16_t *state = snapshot_at(h, tick), *old = snapshot_at(h, base);
    size_t i = 0;
    if (!old)
        base = 0;
    packet_put(p, 2, tick);
    packet_put(p, 2, base);
    packet_put(p, 4, snapshot_hash_at(h, tick));
    while (state && i < h->words) {
        size_t same = i, end;
        while (i < h->words && i - same < 255 && state[i] == snapshot__word(old, i))
            i++;
        for (end = i; end < h->words && end - i < 255; end++)
            if (state[end] == snapshot__word(old, end))
                break;
        if (i == h->words)
            break;
        packet_put(p, 1, i - same);
        packet_put(p, 1, end - i);
        for (; i < end; i++)
            packet_put(p, 2, state[i]);
    }
    return base;
}

/* What a client has of a history. A new one, all zero, has nothing. */
typedef struct snapshot_view {
    uint16_t base;           /* of the newest state that was sent; 0: it was sent whole */
    uint16_t acked;          /* the newest tick whose state the client has; 0: none */
    uint16_t sent, answered; /* the ticks of the newest state that was sent, and was answered */
} snapshot_view;

/* Whether the client has not answered for SNAPSHOT_WINDOW ticks. */
static inline bool snapshot_is_behind(const snapshot_view *v)
{
    return v->sent > v->answered + SNAPSHOT_WINDOW;
}

/* Appends the newest state, as the difference from what the client has. false: it was sent it, or
 * is behind: what it has no time for would pile up on the way to it, and it would see the past. */
static inline bool snapshot_send(const snapshot_history *h, snapshot_view *v, packet *p)
{
    if (h->newest <= v->sent || snapshot_is_behind(v))
        return false;
    v->sent = h->newest;
    v->base = snapshot_write(h, p, h->newest, v->acked);
    return true;
}

/* The client says that it has the state of this tick, with this hash; tick 0: it has none. Returns
 * 1; 0: that is not kept, and it gets a whole one next; -EBADMSG: the same, as the hash differs. */
static inline int snapshot_acknowledge(const snapshot_history *h, snapshot_view *v, uint16_t tick,
                                       uint32_t hash)
{
    bool is_kept = snapshot_at(h, tick), is_same = is_kept && snapshot_hash_at(h, tick) == hash;
    if (tick == 0)
        v->answered = v->sent;
    else if (tick > v->answered)
        v->answered = tick;
    if (!is_same)
        v->acked = 0;
    else if (tick > v->acked)
        v->acked = tick;
    return is_kept && !is_same ? -EBADMSG : is_same;
}

/* Applies the runs to a copy of the base: 0, or -EBADMSG. */
static inline int snapshot__apply(packet_reader *r, uint16_t *state, size_t words)
{
    size_t i = 0;
    while (r->size > 0 && !r->bad) {
        i += packet_get(r, 1);
        for (size_t n = packet_get(r, 1); n > 0; n--, i++) {
            if (i >= words || r->bad)
                return -EBADMSG;
            state[i] = (uint16_t)packet_get(r, 2);
        }
    }
    return r->bad ? -EBADMSG : 0;
}

/* Reads to the packet's end what snapshot_write wrote, and keeps the state: 1; 0: it is not newer
 * than the newest, and was left. Errors, after which nothing has changed: -ENOENT (its base is not
 * kept: acknowledge 0), -EBADMSG (malformed, or the hash is another), -ENOMEM. */
static inline int snapshot_read(snapshot_history *h, packet_reader *r)
{
    uint16_t tick = (uint16_t)packet_get(r, 2), base = (uint16_t)packet_get(r, 2);
    uint32_t hash = (uint32_t)packet_get(r, 4);
    size_t size = h->words * sizeof(uint16_t);
    const uint16_t *old = snapshot_at(h, base);
    if (r->bad || tick == 0)
        return -EBADMSG;
    if (tick <= h->newest)
        return 0;
    if (base != 0 && !old)
        return -ENOENT;
    uint16_t *state = calloc(1, size);
    if (!state)
        return -ENOMEM;
    if (old)
        memcpy(state, old, size);
    int rc = snapshot__apply(r, state, h->words);
    if (rc == 0 && snapshot_hash(state, h->words) != hash)
        rc = -EBADMSG;
    if (rc == 0)
        rc = snapshot_put(h, tick, state);
    free(state);
    return rc < 0 ? rc : 1;
}

/* Forgets all states: for the next match. Harmless on an all-zero history. */
static inline int snapshot_close(snapshot_history *h)
{
    free(h->states);
    *h = (snapshot_history){.words = h->words};
    return 0;
}

#endif
