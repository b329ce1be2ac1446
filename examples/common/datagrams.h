/* datagrams.h - UDP with a task per client, after verifying the client's address
 *
 *     static int serve_client(datagram_peer *peer, void *arg)
 *     {
 *         char data[1200];
 *         ssize_t n;
 *         (void)arg;
 *         while ((n = CONC_TRY(datagram_receive(peer, data, sizeof data))) > 0)
 *             datagram_send(peer, data, (size_t)n);
 *         return 0; // it was silent for too long
 *     }
 *     ...
 *     CONC_AUTO(datagrams, d) = {.handler = serve_client};
 *     int listener = CONC_TRY(datagrams_listen(&d, "127.0.0.1:8080")); // TCP: close it, too
 *     return datagrams_serve(&d);                      // until it is cancelled
 *
 * and a client:
 *
 *     CONC_AUTO(datagram_client, c) = {0};
 *     CONC_TRY(datagram_dial(&c, fd));                 // where this socket is connected to
 *     CONC_TRY(datagram_client_send(&c, "hello", 5));
 *     ssize_t n = CONC_TRY(datagram_client_receive(&c, data, sizeof data));
 *
 * Datagrams may be lost, duplicated and reordered, as on the network; each is received as sent or
 * not at all. They have 1 to DATAGRAM_MOST bytes, and the first byte must not be 0.
 *
 * Proof     Anyone can forge a datagram's sender, so an address becomes a peer only after returning
 *           a cookie, which only its owner receives. Until then the server stores nothing for it,
 *           and sends it less than it receives, so nobody can use the server to flood others.
 *           Cookies are HMACs with a secret of this process (OpenSSL: -lcrypto), and valid for 10
 *           to 20 s. The client's calls handle this, even if the server has forgotten the client:
 *           it then becomes a new peer.
 * Waiting   datagrams_serve, datagram_receive, datagram_dial, datagram_client_send and
 *           datagram_client_receive wait; datagram_send does not: if the socket's buffer is full,
 *           the data is lost. At most DATAGRAM_QUEUE datagrams wait for a peer's task; further ones
 *           are lost.
 * Errors    negative errno. -EMSGSIZE (too long, or empty), -ETIMEDOUT (no reply for 5 s),
 *           -ECONNREFUSED (no listener), and the system's. A handler's error goes to on_error, and
 *           serving continues.
 */
#ifndef DATAGRAMS_H
#define DATAGRAMS_H

#ifndef CONC_SYNC_H
#error "datagrams.h: include conc_sync.h first"
#endif

#include <errno.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    DATAGRAM_MOST = 1200, /* bytes that any network carries */
    DATAGRAM_QUEUE = 16,
    DATAGRAM__PEERS = 4096, /* buckets of the hash table of peers */
    DATAGRAM__HELLO = 32    /* bytes of a client's first datagram; the answer has 10 */
};

/* ---- the server ----------------------------------------------------------------------------- */

typedef struct datagram_address {
    struct sockaddr_storage socket;
    socklen_t size;
} datagram_address;

/* A client, valid in its handler. */
typedef struct datagram_peer {
    datagram_address address;
    double heard; /* when the newest datagram arrived */
    /* private */
    struct datagrams *of;
    struct datagram_peer *next;
    conc_queue inbox;
} datagram_peer;

typedef struct datagrams {
    /* options */
    int (*handler)(datagram_peer *peer, void *arg); /* runs in a separate task for each peer */
    void *arg;
    int limit;      /* maximum number of peers; 0: 4096. Further clients get no reply */
    double silence; /* seconds without a datagram that end datagram_receive with 0; 0: 30 */

    int count;          /* current number of peers */
    long lost, strange; /* datagrams dropped: the peer's queue was full; neither from a peer nor a
                           greeting */

    /* private */
    int fd; /* plus 1; 0: none */
    unsigned char secret[32];
    conc_group group;
    datagram_peer *peers[DATAGRAM__PEERS];
} datagrams;

/* Opens the socket on the address of a TCP listener. Returns 0 or the system's error, such as
 * -EADDRINUSE: another program has this UDP port. */
static inline int datagrams_open(datagrams *d, int listener);

/* Listens on a TCP port and opens the socket on the same UDP port. Returns the TCP listener, or an
 * error. For port 0 it finds a port that is free for both. */
static inline int datagrams_listen(datagrams *d, const char *address);

/* Serves until it is cancelled or the socket fails; then cancels the handlers and waits for them.
 * Can be spawned as a task. */
static inline int datagrams_serve(void *d);

/* Closes the socket. Harmless if repeated, or if it was never opened. */
static inline int datagrams_close(datagrams *d);
CONC_AUTO_TYPE(datagrams, datagrams_close);

/* Waits for the peer's next datagram and returns its size; truncates it to buf. Returns 0 if the
 * peer was silent for .silence. */
static inline ssize_t datagram_receive(datagram_peer *peer, void *buf, size_t size);

/* Sends a datagram. Returns 0, though it may be lost. */
static inline int datagram_send(datagram_peer *peer, const void *data, size_t size);

/* ---- a client ------------------------------------------------------------------------------- */

typedef struct datagram_client {
    /* private */
    int fd; /* plus 1; 0: none */
    uint64_t cookie;
} datagram_client;

/* Opens a UDP socket to the address to which the socket `like` is connected (by TCP, for example),
 * and waits until the server has verified the client's address. */
static inline int datagram_dial(datagram_client *c, int like);

/* Sends a datagram. Returns 0, though it may be lost; it is lost if the server has forgotten this
 * address. */
static inline int datagram_client_send(datagram_client *c, const void *data, size_t size);

/* Waits for the next datagram and returns its size. There is no time limit: as datagrams may be
 * lost, set one and send again. */
static inline ssize_t datagram_client_receive(datagram_client *c, void *buf, size_t size);

static inline int datagram_client_close(datagram_client *c);
CONC_AUTO_TYPE(datagram_client, datagram_client_close);

/* ---- implementation ------------------------------------------------------------------------- */

/* A datagram that begins with 0 is a control message of this file. Its second byte is its type;
 * cookies have 8 bytes:
 *   client  HELLO, a cookie or 0, zeros   32 bytes
 *   server  COOKIE, a cookie              10 bytes: send HELLO with it
 *   server  READY                          2 bytes: this address is a peer
 *   server  FORGOTTEN                      2 bytes: it is not, though it sent data */
enum { DATAGRAM__IS_HELLO = 1, DATAGRAM__IS_COOKIE, DATAGRAM__IS_READY, DATAGRAM__IS_FORGOTTEN };

typedef struct datagram__item {
    size_t size;
    unsigned char data[DATAGRAM_MOST];
} datagram__item;

static inline int datagrams_open(datagrams *d, int listener)
{
    datagram_address here = {.size = sizeof here.socket};
    int room = 4 << 20; /* or as much as the system allows, because many may send at once */
    if (RAND_bytes(d->secret, sizeof d->secret) != 1)
        return conc_fail(-EIO, "no random numbers");
    if (getsockname(listener, (struct sockaddr *)&here.socket, &here.size) < 0)
        return -errno;
    d->fd = socket(here.socket.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0) + 1;
    if (d->fd == 0)
        return -errno;
    setsockopt(d->fd - 1, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (bind(d->fd - 1, (struct sockaddr *)&here.socket, here.size) < 0)
        return conc_fail(-errno, "the UDP port: %s", strerror(errno));
    return 0;
}

static inline int datagrams_listen(datagrams *d, const char *address)
{
    const char *port = strrchr(address, ':');
    for (int tries = port && strcmp(port, ":0") == 0 ? 20 : 1;; tries--) {
        int listener = CONC_TRY(conc_listen(address));
        int rc = datagrams_open(d, listener);
        if (rc == 0)
            return listener;
        datagrams_close(d);
        conc_close(listener);
        if (rc != -EADDRINUSE || tries == 1)
            return rc;
    }
}

static inline uint64_t datagram__mac(const datagrams *d, const datagram_address *a, int64_t when)
{
    unsigned char text[sizeof a->socket + sizeof when], hash[EVP_MAX_MD_SIZE];
    uint64_t cookie = 0;
    memcpy(text, &when, sizeof when);
    memcpy(text + sizeof when, &a->socket, sizeof a->socket);
    HMAC(EVP_sha256(), d->secret, sizeof d->secret, text, sizeof text, hash, NULL);
    memcpy(&cookie, hash, sizeof cookie);
    return cookie;
}

/* Finds the link to the peer with this address, or the end of its bucket, by FNV-1a. The system
 * fills in the address, so its unused bytes must be zero. */
static inline datagram_peer **datagram__place(datagrams *d, const datagram_address *a)
{
    const unsigned char *bytes = (const unsigned char *)&a->socket;
    uint32_t hash = 2166136261u;
    for (socklen_t i = 0; i < a->size; i++)
        hash = (hash ^ bytes[i]) * 16777619u;
    datagram_peer **place = &d->peers[hash % DATAGRAM__PEERS];
    while (*place && memcmp(&(*place)->address.socket, &a->socket, sizeof a->socket) != 0)
        place = &(*place)->next;
    return place;
}

static inline void datagram__answer(datagrams *d, const datagram_address *to, const void *data,
                                    size_t size)
{
    /* not conc_sendto: it sends nothing in a cancelled task, which may want to say goodbye */
    ssize_t n = sendto(d->fd - 1, data, size, MSG_DONTWAIT | MSG_NOSIGNAL,
                       (const struct sockaddr *)&to->socket, to->size);
    (void)n; /* a full buffer loses it */
}

static inline int datagram__run_peer(void *arg)
{
    datagram_peer *peer = arg, **place;
    datagrams *d = peer->of;
    int rc = d->handler(peer, d->arg);
    place = datagram__place(d, &peer->address);
    *place = peer->next;
    d->count--;
    conc_queue_destroy(&peer->inbox);
    free(peer);
    return rc;
}

static inline int datagram__add_peer(datagrams *d, const datagram_address *from)
{
    if (d->count >= (d->limit > 0 ? d->limit : DATAGRAM__PEERS))
        return -EUSERS;
    datagram_peer *peer = calloc(1, sizeof *peer);
    if (!peer)
        return -ENOMEM;
    peer->address = *from;
    peer->of = d;
    peer->heard = conc_now();
    peer->inbox = (conc_queue)CONC_QUEUE(datagram__item, DATAGRAM_QUEUE);
    int rc = conc_spawn(&d->group, datagram__run_peer, peer);
    if (rc < 0) {
        free(peer);
        return rc;
    }
    *datagram__place(d, from) = peer;
    d->count++;
    return 0;
}

static inline void datagram__say(datagrams *d, const datagram_address *to, int what)
{
    const unsigned char text[] = {0, (unsigned char)what};
    datagram__answer(d, to, text, sizeof text);
}

/* Handles HELLO: sends the address a cookie, or makes it a peer if it returned a valid one. */
static inline void datagram__on_hello(datagrams *d, const datagram_address *from, uint64_t theirs)
{
    int64_t now = (int64_t)(conc_now() / 10);
    uint64_t cookie = datagram__mac(d, from, now);
    unsigned char answer[10] = {0, DATAGRAM__IS_COOKIE};
    if (theirs != cookie && theirs != datagram__mac(d, from, now - 1)) {
        memcpy(answer + 2, &cookie, sizeof cookie);
        datagram__answer(d, from, answer, sizeof answer);
    } else if (*datagram__place(d, from) || datagram__add_peer(d, from) == 0) {
        datagram__say(d, from, DATAGRAM__IS_READY);
    }
}

static inline void datagram__take(datagrams *d, const datagram_address *from,
                                  const datagram__item *in)
{
    datagram_peer *peer = *datagram__place(d, from);
    uint64_t cookie;
    if (in->size == DATAGRAM__HELLO && in->data[0] == 0 && in->data[1] == DATAGRAM__IS_HELLO) {
        memcpy(&cookie, in->data + 2, sizeof cookie);
        datagram__on_hello(d, from, cookie);
    } else if (in->size == 0 || in->data[0] == 0 || !peer) {
        d->strange++;
        if (in->size > 2 && !peer)
            datagram__say(d, from, DATAGRAM__IS_FORGOTTEN);
    } else {
        peer->heard = conc_now();
        d->lost += conc_queue_try_put(&peer->inbox, in) < 0;
    }
}

static inline int datagram__serve(datagrams *d)
{
    datagram__item in;
    for (;;) {
        datagram_address from = {.size = sizeof from.socket};
        ssize_t n = conc_recvfrom(d->fd - 1, in.data, sizeof in.data, 0,
                                  (struct sockaddr *)&from.socket, &from.size);
        in.size = (size_t)CONC_TRY(n);
        datagram__take(d, &from, &in);
    }
}

static inline int datagrams_serve(void *arg)
{
    datagrams *d = arg;
    d->group.keep_going = true;
    CONC_TRY(conc_group_begin(&d->group));
    return conc_group_end(&d->group, datagram__serve(d));
}

static inline int datagrams_close(datagrams *d)
{
    int rc = d->fd > 0 ? conc_close(d->fd - 1) : 0;
    d->fd = 0;
    return rc;
}

static inline ssize_t datagram_receive(datagram_peer *peer, void *buf, size_t size)
{
    datagram__item in;
    double silence = peer->of->silence > 0 ? peer->of->silence : 30;
    conc_case cases[] = {CONC_CASE_GET(&peer->inbox, &in), CONC_CASE_AFTER(silence)};
    if (CONC_TRY(conc_select(cases, CONC_LEN(cases))) == 1)
        return 0;
    if (size > in.size)
        size = in.size;
    memcpy(buf, in.data, size);
    return (ssize_t)size;
}

static inline int datagram_send(datagram_peer *peer, const void *data, size_t size)
{
    if (size == 0 || size > DATAGRAM_MOST)
        return -EMSGSIZE;
    datagram__answer(peer->of, &peer->address, data, size);
    return 0;
}

static inline int datagram__hello(datagram_client *c)
{
    unsigned char hello[DATAGRAM__HELLO] = {0, DATAGRAM__IS_HELLO};
    memcpy(hello + 2, &c->cookie, sizeof c->cookie);
    ssize_t n = conc_send(c->fd - 1, hello, sizeof hello, 0);
    return n < 0 ? (int)n : 0;
}

/* Handles control messages and returns their type; 0: the datagram is for the caller. */
static inline int datagram__filter(datagram_client *c, const datagram__item *in)
{
    int what = in->size >= 2 && in->data[0] == 0 ? in->data[1] : 0;
    if (what == DATAGRAM__IS_COOKIE && in->size == 2 + sizeof c->cookie)
        memcpy(&c->cookie, in->data + 2, sizeof c->cookie);
    if (what == DATAGRAM__IS_COOKIE || what == DATAGRAM__IS_FORGOTTEN)
        CONC_TRY(datagram__hello(c));
    return what;
}

static inline int datagram__await_ready(void *arg)
{
    datagram_client *c = arg;
    datagram__item in;
    do {
        in.size = (size_t)CONC_TRY(conc_recv(c->fd - 1, in.data, sizeof in.data, 0));
    } while (CONC_TRY(datagram__filter(c, &in)) != DATAGRAM__IS_READY);
    return 0;
}

static inline int datagram_dial(datagram_client *c, int like)
{
    datagram_address to = {.size = sizeof to.socket};
    int rc = -ETIMEDOUT;
    if (getpeername(like, (struct sockaddr *)&to.socket, &to.size) < 0)
        return -errno;
    c->fd = socket(to.socket.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0) + 1;
    if (c->fd == 0 || connect(c->fd - 1, (struct sockaddr *)&to.socket, to.size) < 0)
        return conc_fail(-errno, "UDP: %s", strerror(errno));
    for (int i = 0; i < 10 && rc == -ETIMEDOUT; i++) {
        CONC_TRY(datagram__hello(c));
        rc = conc_timeout(0.5, datagram__await_ready, c);
    }
    return rc == -ETIMEDOUT ? conc_fail(rc, "UDP: there is no answer") : rc;
}

static inline int datagram_client_send(datagram_client *c, const void *data, size_t size)
{
    if (size == 0 || size > DATAGRAM_MOST)
        return -EMSGSIZE;
    ssize_t n = conc_send(c->fd - 1, data, size, 0);
    return n < 0 ? (int)n : 0;
}

static inline ssize_t datagram_client_receive(datagram_client *c, void *buf, size_t size)
{
    datagram__item in;
    do {
        in.size = (size_t)CONC_TRY(conc_recv(c->fd - 1, in.data, sizeof in.data, 0));
    } while (CONC_TRY(datagram__filter(c, &in)) != 0);
    if (size > in.size)
        size = in.size;
    memcpy(buf, in.data, size);
    return (ssize_t)size;
}

static inline int datagram_client_close(datagram_client *c)
{
    int rc = c->fd > 0 ? conc_close(c->fd - 1) : 0;
    c->fd = 0;
    return rc;
}

#endif
