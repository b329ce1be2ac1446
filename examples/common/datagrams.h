/* datagrams.h - UDP for a server that does not know its clients: addresses that are proven
 *
 *     datagrams d = {0};
 *     CONC_TRY(datagrams_open(&d, listener));              // on the port of a TCP listener
 *     for (;;) {
 *         datagram_address from;
 *         ssize_t n = CONC_TRY(datagrams_receive(&d, buffer, sizeof buffer, &from));
 *         if (!is_known(&from) && !datagrams_is_cookie(&d, &from, cookie_in(buffer)))
 *             datagrams_send(&d, &from, answer, size);     // with datagrams_cookie(&d, &from)
 *         ...
 *
 * Anybody can send a datagram in another one's name. A cookie proves an address: only who receives
 * what is sent there can return it. Nothing is kept for addresses that have not, and no answer to
 * them should be longer than what they sent: then the server is of no use for a flood. Cookies are
 * HMACs (OpenSSL, -lcrypto) with a secret of this process, and hold for 10 to 20 s.
 */
#ifndef DATAGRAMS_H
#define DATAGRAMS_H

#ifndef CONC_VERSION
#error "datagrams.h: include conc.h first"
#endif

#include <errno.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <string.h>
#include <sys/socket.h>

/* Compare with datagrams_is_same. */
typedef struct datagram_address {
    struct sockaddr_storage socket;
    socklen_t size;
} datagram_address;

typedef struct datagrams {
    /* private */
    bool open;
    int fd;
    unsigned char secret[32];
} datagrams;

/* Opens a socket for datagrams on the address of a listener of TCP: 0, or an error of the system,
 * -EADDRINUSE if another program has that port of UDP. */
static inline int datagrams_open(datagrams *d, int listener)
{
    datagram_address here = {.size = sizeof here.socket};
    int room = 4 << 20; /* or as much as the system allows: many clients may send at once */
    if (RAND_bytes(d->secret, sizeof d->secret) != 1)
        return conc_fail(-EIO, "no random numbers");
    if (getsockname(listener, (struct sockaddr *)&here.socket, &here.size) < 0)
        return -errno;
    d->fd = socket(here.socket.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (d->fd < 0)
        return -errno;
    d->open = true;
    setsockopt(d->fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (bind(d->fd, (struct sockaddr *)&here.socket, here.size) < 0)
        return conc_fail(-errno, "the port of UDP: %s", strerror(errno));
    return 0;
}

/* Waits for a datagram: its size; what has no room in buf is cut off. */
static inline ssize_t datagrams_receive(datagrams *d, void *buf, size_t size,
                                        datagram_address *from)
{
    *from = (datagram_address){.size = sizeof from->socket};
    return conc_recvfrom(d->fd, buf, size, 0, (struct sockaddr *)&from->socket, &from->size);
}

/* Sends without waiting. What the system has no room for is lost, as it may be on its way. */
static inline void datagrams_send(datagrams *d, const datagram_address *to, const void *data,
                                  size_t size)
{
    conc_sendto(d->fd, data, size, MSG_DONTWAIT, (const struct sockaddr *)&to->socket, to->size);
}

static inline bool datagrams_is_same(const datagram_address *a, const datagram_address *b)
{
    return a->size == b->size && memcmp(&a->socket, &b->socket, a->size) == 0;
}

static inline uint64_t datagrams__cookie(const datagrams *d, const datagram_address *a,
                                         int64_t when)
{
    unsigned char text[sizeof a->socket + sizeof when], hash[EVP_MAX_MD_SIZE];
    uint64_t cookie = 0;
    memcpy(text, &when, sizeof when);
    memcpy(text + sizeof when, &a->socket, sizeof a->socket);
    HMAC(EVP_sha256(), d->secret, sizeof d->secret, text, sizeof text, hash, NULL);
    memcpy(&cookie, hash, sizeof cookie);
    return cookie;
}

static inline uint64_t datagrams_cookie(const datagrams *d, const datagram_address *a)
{
    return datagrams__cookie(d, a, (int64_t)(conc_now() / 10));
}

static inline bool datagrams_is_cookie(const datagrams *d, const datagram_address *a,
                                       uint64_t cookie)
{
    int64_t now = (int64_t)(conc_now() / 10);
    return cookie == datagrams__cookie(d, a, now) || cookie == datagrams__cookie(d, a, now - 1);
}

/* Closes the socket. Twice, or if it was never opened, it does nothing. */
static inline int datagrams_close(datagrams *d)
{
    int rc = d->open ? conc_close(d->fd) : 0;
    d->open = false;
    return rc;
}

#endif
