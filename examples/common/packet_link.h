/* packet_link.h - exchanges packets of snapshot.h over any transport
 *
 *     packet_link l = packet_link_websocket(&ws); // or _peer: a server's side of UDP; or
 *     packet p;                                   // _datagrams: a client's
 *     while (CONC_TRY(l.receive(&l, &p)) > 0)
 *         CONC_TRY(l.send(&l, &p));
 *
 * A packet_pair is a link within the process, for bots and tests. It loses packets like a network,
 * but reproducibly.
 *
 *     packet_pair pair = {.loss = 0.03};
 *     packet_pair_open(&pair);                    // then pair.server and pair.client are links
 *
 * A link does not own its transport: close that yourself. Include conc_sync.h before.
 */
#ifndef PACKET_LINK_H
#define PACKET_LINK_H

#include "datagrams.h"
#include "snapshot.h"
#include "websocket.h"

typedef struct packet_link {
    /* sends a packet and may wait; returns 0, though the packet may be lost, or an error */
    int (*send)(struct packet_link *l, const packet *p);
    /* waits for a packet; returns 1, 0 if the other side is gone, or an error */
    int (*receive)(struct packet_link *l, packet *p);
    int (*end)(struct packet_link *l, const char *reason); /* NULL: nothing to do */
    void *to;
    int bye; /* UDP: the first byte of the packet with the reason */
} packet_link;

/* Ends the link and tells the other side why. Waits at most a second, shielded from cancels. */
static inline int packet_link_end(packet_link *l, const char *reason)
{
    conc_scope s = {0};
    CONC_TRY(conc_scope_begin(&s, 1));
    conc_scope_shield(&s, true);
    return conc_scope_end(&s, l->end ? l->end(l, reason) : 0);
}

/* ---- WebSocket ------------------------------------------------------------------------------ */

static inline int packet_link__send_frame(packet_link *l, const packet *p)
{
    return websocket_send(l->to, WEBSOCKET_BINARY, p->data, p->size);
}

static inline int packet_link__receive_frame(packet_link *l, packet *p)
{
    websocket_message m;
    int rc = websocket_receive(l->to, &m);
    p->size = 0;
    p->full = false;
    if (rc == 1)
        packet_put_bytes(p, m.data, m.size);
    return rc;
}

static inline int packet_link__end_frames(packet_link *l, const char *reason)
{
    return websocket_end(l->to, 1008, reason);
}

static inline packet_link packet_link_websocket(websocket *ws)
{
    return (packet_link){packet_link__send_frame, packet_link__receive_frame,
                         packet_link__end_frames, ws, 0};
}

/* ---- UDP ------------------------------------------------------------------------------------ */

static inline int packet_link__send_to_peer(packet_link *l, const packet *p)
{
    return datagram_send(l->to, p->data, p->size);
}

static inline int packet_link__receive_from_peer(packet_link *l, packet *p)
{
    p->size = (size_t)CONC_TRY(datagram_receive(l->to, p->data, sizeof p->data));
    return p->size > 0;
}

static inline int packet_link__end_peer(packet_link *l, const char *reason)
{
    packet p = {.size = 0};
    packet_put(&p, 1, (uint64_t)l->bye);
    packet_put_bytes(&p, reason, strlen(reason));
    return l->send(l, &p);
}

static inline packet_link packet_link_peer(datagram_peer *peer, int bye)
{
    return (packet_link){packet_link__send_to_peer, packet_link__receive_from_peer,
                         packet_link__end_peer, peer, bye};
}

static inline int packet_link__send_datagram(packet_link *l, const packet *p)
{
    return datagram_client_send(l->to, p->data, p->size);
}

static inline int packet_link__receive_datagram(packet_link *l, packet *p)
{
    p->size = (size_t)CONC_TRY(datagram_client_receive(l->to, p->data, sizeof p->data));
    return 1;
}

static inline packet_link packet_link_datagrams(datagram_client *c)
{
    return (packet_link){packet_link__send_datagram, packet_link__receive_datagram, NULL, c, 0};
}

/* ---- within the process --------------------------------------------------------------------- */

enum { PACKET_PAIR__ROOM = 8 /* packets that can wait; then the sender waits */ };

typedef struct packet_pair {
    /* options */
    double loss;   /* share of packets that are lost */
    uint32_t luck; /* seed that decides which */

    packet_link server, client;

    /* private */
    bool cut;
    conc_queue to_server, to_client;
} packet_pair;

static inline int packet_pair__send(packet_link *l, const packet *p)
{
    packet_pair *pair = l->to;
    bool lost = pair->cut;
    if (!lost) {
        pair->luck = pair->luck * 1664525u + 1013904223u;
        lost = (pair->luck >> 8) % 1000 < pair->loss * 1000;
    }
    if (lost)
        return 0;
    return conc_queue_put(l == &pair->server ? &pair->to_client : &pair->to_server, p);
}

static inline int packet_pair__receive(packet_link *l, packet *p)
{
    packet_pair *pair = l->to;
    CONC_TRY(conc_queue_get(l == &pair->server ? &pair->to_server : &pair->to_client, p));
    return p->size > 0;
}

static inline void packet_pair_open(packet_pair *pair)
{
    pair->server = (packet_link){packet_pair__send, packet_pair__receive, NULL, pair, 0};
    pair->client = pair->server;
    pair->to_server = (conc_queue)CONC_QUEUE(packet, PACKET_PAIR__ROOM);
    pair->to_client = (conc_queue)CONC_QUEUE(packet, PACKET_PAIR__ROOM);
}

/* Cuts the link or restores it. While it is cut, nothing arrives; the server's receive returns 0
 * once. -EAGAIN: the server's queue is full, so it does not notice the cut. */
static inline int packet_pair_cut(packet_pair *pair, bool cut)
{
    const packet nothing = {.size = 0};
    pair->cut = cut;
    return cut ? conc_queue_try_put(&pair->to_server, &nothing) : 0;
}

static inline int packet_pair_close(packet_pair *pair)
{
    conc_queue_destroy(&pair->to_server);
    conc_queue_destroy(&pair->to_client);
    return 0;
}

#endif
