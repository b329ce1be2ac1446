/* udp.h - UDP sockets for tasks, with a count of what the kernel dropped
 *
 *     #include "conc_pool.h"
 *     #include "udp.h"
 *
 *     int fd = CONC_TRY(udp_listen("127.0.0.1:2003"));
 *     char packet[2048];
 *     uint64_t dropped = 0;
 *     for (;;) {
 *         ssize_t n = CONC_TRY(udp_receive(fd, packet, sizeof packet, &dropped));
 *         ...
 *     }
 *
 * A receiver that is slower than its senders loses packets: the kernel drops those that do not fit
 * into the socket's buffer. Linux counts them (SO_RXQ_OVFL), and reports the count with the next
 * packet; elsewhere the count stays 0.
 *
 * Addresses are written as for conc_listen: "127.0.0.1:2003", "[::1]:2003", "localhost:0".
 * conc_address tells the port chosen for 0. conc_close closes the socket. Errors are negative
 * errnos; address errors have a text in conc_last_error.
 */
#ifndef UDP_H
#define UDP_H

#ifndef CONC_VERSION
#error "udp.h: include conc_pool.h first"
#endif

#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* Returns a socket that receives packets sent to the address, or a negative errno. */
static inline int udp_listen(const char *address);

/* Returns a socket with which conc_send sends to the address, one packet per call. If nothing
 * receives there, a later call may return -ECONNREFUSED. */
static inline int udp_dial(const char *address);

/* Waits for a packet, adds a NUL, and returns its length; longer packets are truncated to size - 1
 * bytes. Sets *dropped to the number of packets that the kernel has dropped so far. */
static inline ssize_t udp_receive(int fd, char *packet, size_t size, uint64_t *dropped);

/* ---- implementation ------------------------------------------------------------------------- */

static inline int udp__resolve(const char *address, struct sockaddr_storage *out)
{
    char host[256];
    const char *colon = strrchr(address, ':');
    size_t n = colon ? (size_t)(colon - address) : 0;
    if (!colon || n == 0 || n >= sizeof host)
        return conc_fail(-EINVAL, "\"%s\" is no address, such as host:port", address);
    bool bracketed = address[0] == '[' && address[n - 1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)(bracketed ? n - 2 : n), address + bracketed);
    int found = conc_resolve(host, colon + 1, out, 1);
    return found == 0 ? -EADDRNOTAVAIL : found;
}

static inline socklen_t udp__size(const struct sockaddr_storage *a)
{
    return a->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
}

static inline int udp__open(const char *address,
                            int (*attach)(int, const struct sockaddr *, socklen_t))
{
    struct sockaddr_storage to;
    CONC_TRY(udp__resolve(address, &to));
    int fd = socket(to.ss_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || attach(fd, (struct sockaddr *)&to, udp__size(&to)) < 0) {
        int rc = -errno;
        if (fd >= 0)
            conc_close(fd);
        return conc_fail(rc, "%s: %s", address, conc_strerror(rc));
    }
    return fd;
}

static inline int udp_listen(const char *address)
{
    int fd = CONC_TRY(udp__open(address, bind));
#ifdef SO_RXQ_OVFL
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof on);
#endif
    return fd;
}

static inline int udp_dial(const char *address) { return udp__open(address, connect); }

/* Updates *dropped. The kernel's counter has 32 bits and wraps. */
static inline void udp__count(struct msghdr *m, uint64_t *dropped)
{
#ifdef SO_RXQ_OVFL
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
            uint32_t count;
            memcpy(&count, CMSG_DATA(c), sizeof count);
            *dropped += (uint32_t)(count - (uint32_t)*dropped);
        }
#else
    (void)m;
    (void)dropped;
#endif
}

static inline ssize_t udp_receive(int fd, char *packet, size_t size, uint64_t *dropped)
{
    union {
        struct cmsghdr header; /* for the alignment */
        char bytes[CMSG_SPACE(sizeof(uint32_t))];
    } control;
    struct iovec io = {packet, size - 1};
    for (;;) {
        CONC_TRY(conc_wait_fd(fd, CONC_READABLE)); /* first, so that each packet is a checkpoint */
        struct msghdr m = {.msg_iov = &io,
                           .msg_iovlen = 1,
                           .msg_control = &control,
                           .msg_controllen = sizeof control};
        ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);
        if (n >= 0) {
            udp__count(&m, dropped);
            packet[n] = 0;
            return n;
        }
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
            return -errno;
    }
}

#endif
