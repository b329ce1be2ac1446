/* snapshot.h - a game's state over a network: packets, and states as differences
 *
 *     snapshot_history sent = {.words = 3};                // on the server
 *     snapshot_view view = {0};                            // one for each client
 *     snapshot_put(&sent, tick, state);                    // each tick
 *     packet p = {0};
 *     if (snapshot_send(&sent, &view, &p))
 *         send(&p);
 *     ...
 *     snapshot_acknowledge(&sent, &view, tick, hash);      // what the client has
 *
 *     snapshot_history received = {.words = 3};            // on the client
 *     packet_reader r = {p.data, p.size};
 *     if (snapshot_read(&received, &r) == 1)
 *         draw(snapshot_at(&received, received.newest)); // then acknowledges received.newest
 *
 * A state is an array of 16-bit words, such as a struct with only uint16_t fields. A packet has the
 * words that differ from a state that the client has acknowledged, so a lost, duplicated or late
 * packet needs no repair: the next one is a difference from an older state. A client that has
 * acknowledged none of the last SNAPSHOT_HISTORY states gets the whole state, as the difference
 * from zeros. Each state is sent with a hash, so that any mismatch is detected.
 *
 * Plain C that allocates only a history's states; nothing here waits or needs conc. The bytes are
 * the same on all machines: numbers are little-endian. Ticks are 1 to 65,535.
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

enum { PACKET_MAX = 1200 /* bytes that any network carries in a datagram */ };

typedef struct packet {
    unsigned char data[PACKET_MAX];
    size_t size;
    bool full; /* something did not fit and is missing: do not send it */
} packet;

/* The unread rest of a packet. The caller owns the bytes. */
typedef struct packet_reader {
    const unsigned char *data;
    size_t size;
    bool bad; /* a read went beyond the end; reads since then return 0 */
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

/* Reads the next n bytes. Returns a pointer to them, or NULL if fewer are left. */
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

/* Reads the next number; 0 if it is missing. */
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
    SNAPSHOT_HISTORY = 32, /* states kept: 1.6 s at 20 ticks a second */
    SNAPSHOT_WINDOW = 10   /* ticks that a client may be behind before sending pauses */
};

typedef struct snapshot_history {
    size_t words; /* option: size of a state, the same on both sides */

    uint16_t newest; /* the newest tick; 0: none yet */

    /* private */
    uint16_t tick[SNAPSHOT_HISTORY];
    uint32_t hash[SNAPSHOT_HISTORY];
    uint16_t *states;
} snapshot_history;

/* Returns FNV-1a of the words' bytes, low byte first. */
static inline uint32_t snapshot_hash(const uint16_t *state, size_t words)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < words; i++) {
        hash = (hash ^ (state[i] & 0xff)) * 16777619u;
        hash = (hash ^ (state[i] >> 8)) * 16777619u;
    }
    return hash;
}

/* Stores a copy of a tick's state in place of the oldest one. Returns 0 or -ENOMEM. */
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

/* Returns the state of this tick, valid until the next put or read; NULL: it is not kept. */
static inline const uint16_t *snapshot_at(const snapshot_history *h, uint16_t tick)
{
    size_t slot = tick % SNAPSHOT_HISTORY;
    bool kept = tick != 0 && h->tick[slot] == tick;
    return kept ? h->states + slot * h->words : NULL;
}

/* Returns the hash of this tick's state, or 0 if it is not kept. */
static inline uint32_t snapshot_hash_at(const snapshot_history *h, uint16_t tick)
{
    return snapshot_at(h, tick) ? h->hash[tick % SNAPSHOT_HISTORY] : 0;
}

static inline uint16_t snapshot__word(const uint16_t *state, size_t i)
{
    return state ? state[i] : 0;
}

/* Appends a kept state: tick, base, hash; then runs: how many words equal those of the base, how
 * many differ, and the latter's values. base is the tick of a state that the client has; if it is
 * not kept, or 0, the whole state is written. Returns the base used; 0: the whole state. */
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

/* What a client has of a history. All zero: nothing. */
typedef struct snapshot_view {
    uint16_t base;           /* base of the newest state that was sent; 0: sent whole */
    uint16_t acked;          /* the newest tick whose state the client has; 0: none */
    uint16_t sent, answered; /* the ticks of the newest state sent, and of the newest one
                                answered */
} snapshot_view;

/* Has the client not answered for SNAPSHOT_WINDOW ticks? */
static inline bool snapshot_is_behind(const snapshot_view *v)
{
    return v->sent > v->answered + SNAPSHOT_WINDOW;
}

/* Appends the newest state, as the difference from what the client has. Returns false if the client
 * was sent it before, or is behind: states that it has no time for would queue up on the way, and
 * it would see the past. */
static inline bool snapshot_send(const snapshot_history *h, snapshot_view *v, packet *p)
{
    if (h->newest <= v->sent || snapshot_is_behind(v))
        return false;
    v->sent = h->newest;
    v->base = snapshot_write(h, p, h->newest, v->acked);
    return true;
}

/* Notes that the client has the state of this tick, with this hash; tick 0: it has none. Returns 1;
 * 0 if the state is not kept, and -EBADMSG if the hash differs: then the next state is sent
 * whole. */
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

/* Applies the runs to a copy of the base. Returns 0 or -EBADMSG. */
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

/* Reads a state that snapshot_write wrote, up to the packet's end, and stores it. Returns 1; 0 if
 * it is not newer than the newest, and was ignored. Errors change nothing: -ENOENT (its base is not
 * kept: acknowledge 0), -EBADMSG (malformed, or the hash differs), -ENOMEM. */
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

/* Frees all states, also before another match. Harmless on an all-zero history. */
static inline int snapshot_close(snapshot_history *h)
{
    free(h->states);
    *h = (snapshot_history){.words = h->words};
    return 0;
}

#endif
