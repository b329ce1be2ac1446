/* sys/event.h - a stand-in for kqueue(2) on Linux, so that conc's use of it can be tested
 * without a Mac: compile with -DCONC__KQUEUE -Itests/kqueue. It has only what conc.h uses,
 * follows the manual of macOS, and has its known peculiarities:
 *   - closing a number removes its filters, although the file may be open elsewhere;
 *   - a change without EV_ADD of a filter that does not exist: ENOENT;
 *   - a change of an enabled filter polls again, and reports what was reported before;
 *   - each filter reports its own event: none wakes the other direction;
 *   - devices but terminals, and named pipes, are refused: EINVAL; so is a limit of some years;
 *   - the filter for writing of a pipe whose reader has gone is refused: EPIPE;
 *   - a wait that times out sometimes returns ETIMEDOUT;
 *   - a forked child does not have the queue.
 *
 * A queue is an epoll instance of two others, one for each filter. These have high numbers and
 * stay open for the next queue, because close(2) does not report that theirs was closed. */
#ifndef CONC_TEST_KQUEUE
#define CONC_TEST_KQUEUE

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { EVFILT_READ = -1, EVFILT_WRITE = -2 };
enum { EV_ADD = 1, EV_DELETE = 2, EV_ENABLE = 4, EV_CLEAR = 0x20, EV_DISPATCH = 0x80 };
enum { EV_EOF = 0x8000 };
#define EV_OOBAND 0x2000

struct kevent {
    uintptr_t ident;
    int16_t filter;
    uint16_t flags;
    uint32_t fflags;
    intptr_t data;
    void *udata;
};

enum { KQ_QUEUES = 1024, KQ_LEAST_NUMBER = 300 };

/* A filter of a descriptor. The instance knows whether it still exists. */
typedef struct kq_filter {
    uint32_t serial; /* changes with each EV_ADD of a filter that did not exist */
    uint16_t flags;
    bool enabled;
    void *udata;
} kq_filter;

typedef struct kq_queue {
    int number;
    int parts[2];          /* for reading, for writing */
    kq_filter *filters[2]; /* by number of the descriptor */
    size_t room;
} kq_queue;

static kq_queue kq_queues[KQ_QUEUES];
static int kq_count;
static pthread_mutex_t kq_mutex = PTHREAD_MUTEX_INITIALIZER;

/* Does an instance have this very file under this number? The query changes nothing. */
static bool kq_has(int instance, int number)
{
    struct epoll_event nothing = {.events = EPOLLONESHOT};
    int rc = epoll_ctl(instance, EPOLL_CTL_ADD, number, &nothing);
    if (rc == 0)
        epoll_ctl(instance, EPOLL_CTL_DEL, number, &nothing);
    return rc && errno == EEXIST;
}

/* Returns the queue of a number, which may be a copy of its own; NULL: there is none. */
static kq_queue *kq_find(int number)
{
    kq_queue *found = NULL;
    pthread_mutex_lock(&kq_mutex);
    for (int pass = 0; pass < 2; pass++) /* most numbers are no copies */
        for (int i = 0; i < kq_count && !found; i++) {
            bool may_be = pass || kq_queues[i].number == number;
            if (may_be && kq_has(number, kq_queues[i].parts[0]))
                found = &kq_queues[i];
        }
    pthread_mutex_unlock(&kq_mutex);
    return found;
}

/* Does what the kernel does when a number is closed, but not if the file stays open. */
static int kq_close(int number)
{
    int saved = errno;
    pthread_mutex_lock(&kq_mutex);
    for (int i = 0; i < 2 * kq_count; i++) {
        struct epoll_event nothing = {0};
        epoll_ctl(kq_queues[i / 2].parts[i % 2], EPOLL_CTL_DEL, number, &nothing);
    }
    pthread_mutex_unlock(&kq_mutex);
    errno = saved;
    return close(number);
}

static void kq_forget_in_child(void)
{
    for (int i = 0; i < kq_count; i++) {
        kq_queue *q = &kq_queues[i];
        if (kq_has(q->number, q->parts[0]))
            close(q->number);
        close(q->parts[0]);
        close(q->parts[1]);
        free(q->filters[0]);
        free(q->filters[1]);
        *q = (kq_queue){.number = -1};
    }
    kq_count = 0;
    pthread_mutex_init(&kq_mutex, NULL);
}

static void kq_watch_forks(void) { pthread_atfork(NULL, NULL, kq_forget_in_child); }

/* Creates an instance with a number that no test counts. */
static int kq_part(void)
{
    int low = epoll_create1(EPOLL_CLOEXEC);
    int high = low < 0 ? -1 : fcntl(low, F_DUPFD_CLOEXEC, KQ_LEAST_NUMBER);
    if (high < 0)
        return low;
    close(low);
    return high;
}

static bool kq_open_parts(kq_queue *q)
{
    q->parts[0] = kq_part();
    q->parts[1] = kq_part();
    return q->parts[0] >= 0 && q->parts[1] >= 0;
}

/* Returns an unused queue. The parts of a closed one may hold files forever, so they are opened
 * anew. */
static kq_queue *kq_unused(void)
{
    for (int i = 0; i < kq_count; i++) {
        kq_queue *q = &kq_queues[i];
        if (!kq_has(q->number, q->parts[0])) {
            close(q->parts[0]);
            close(q->parts[1]);
            return q;
        }
    }
    return kq_count < KQ_QUEUES ? &kq_queues[kq_count++] : NULL;
}

static int kqueue(void)
{
    static pthread_once_t forks = PTHREAD_ONCE_INIT;
    pthread_once(&forks, kq_watch_forks);
    int number = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    if (number < 0)
        return -1;
    pthread_mutex_lock(&kq_mutex);
    kq_queue *q = kq_unused();
    bool made = q && kq_open_parts(q);
    if (made) {
        q->number = number;
        for (int i = 0; i < 2; i++) {
            event.data.fd = i;
            epoll_ctl(number, EPOLL_CTL_ADD, q->parts[i], &event);
        }
    }
    pthread_mutex_unlock(&kq_mutex);
    if (made)
        return number;
    close(number);
    errno = EMFILE;
    return -1;
}

/* What kqueue returns for a descriptor without a filter: 0, or an error. */
static int kq_refusal(int number, int part)
{
    struct stat st;
    char path[32], name[8] = "";
    struct pollfd p = {number, 0, 0};
    if (fstat(number, &st))
        return EBADF;
    if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) {
        fprintf(stderr, "kqueue would never report the end of a regular file\n");
        abort();
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", number);
    ssize_t length = readlink(path, name, sizeof name - 1);
    bool named_pipe = S_ISFIFO(st.st_mode) && length > 0 && strncmp(name, "pipe:", 5) != 0;
    if (named_pipe || (S_ISCHR(st.st_mode) && !isatty(number)))
        return EINVAL;
    bool broken = S_ISFIFO(st.st_mode) && poll(&p, 1, 0) == 1 && p.revents & POLLERR;
    return part == 1 && broken ? EPIPE : 0;
}

static bool kq_grow(kq_queue *q, size_t room)
{
    if (room <= q->room)
        return true;
    for (int i = 0; i < 2; i++) {
        kq_filter *more = realloc(q->filters[i], room * 2 * sizeof *more);
        if (!more)
            return false;
        memset(more + q->room, 0, (room * 2 - q->room) * sizeof *more);
        q->filters[i] = more;
    }
    q->room = room * 2;
    return true;
}

static int kq_control(const kq_queue *q, int part, int what, int number)
{
    const kq_filter *k = &q->filters[part][number];
    struct epoll_event event = {.data.u64 = (uint64_t)k->serial << 32 | (uint32_t)number};
    event.events = part ? EPOLLOUT : EPOLLIN | EPOLLRDHUP;
    event.events |= k->flags & EV_CLEAR ? (uint32_t)EPOLLET : 0;
    event.events |= k->flags & EV_DISPATCH ? (uint32_t)EPOLLONESHOT : 0;
    return epoll_ctl(q->parts[part], what, number, &event);
}

/* Makes one change; returns 0, or an error. */
static int kq_change(kq_queue *q, const struct kevent *c)
{
    static uint32_t serials; /* a race may assign one twice, to different queues */
    int number = (int)c->ident, part = c->filter == EVFILT_READ ? 0 : 1;
    if (fcntl(number, F_GETFD) < 0)
        return EBADF;
    if (!kq_grow(q, (size_t)number + 1))
        return ENOMEM;
    kq_filter *k = &q->filters[part][number];
    bool there = kq_has(q->parts[part], number);
    if (!there && !(c->flags & EV_ADD))
        return ENOENT;
    if (c->flags & EV_DELETE)
        return kq_control(q, part, EPOLL_CTL_DEL, number) ? errno : 0;
    if (!there) {
        int refusal = kq_refusal(number, part);
        if (refusal)
            return refusal;
        *k = (kq_filter){.serial = ++serials, .flags = c->flags};
    }
    k->udata = c->udata;
    k->enabled |= c->flags & (EV_ADD | EV_ENABLE);
    int what = there ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    return k->enabled && kq_control(q, part, what, number) ? errno : 0;
}

static bool kq_is_socket(int number)
{
    struct stat st;
    return fstat(number, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* Can the socket send no more? A stream reveals that when sending no bytes. */
static bool kq_sends_no_more(int number)
{
    int kind = 0;
    socklen_t size = sizeof kind;
    bool stream = getsockopt(number, SOL_SOCKET, SO_TYPE, &kind, &size) == 0 && kind == SOCK_STREAM;
    return stream && send(number, "", 0, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EPIPE;
}

/* Is it an event for kqueue, too? If so, stores it in *out. */
static bool kq_translate(kq_queue *q, int part, const struct epoll_event *e, struct kevent *out)
{
    int number = (int)(uint32_t)e->data.u64;
    kq_filter *k = &q->filters[part][number];
    uint32_t end = part ? EPOLLHUP : EPOLLHUP | EPOLLRDHUP;
    if (k->serial != e->data.u64 >> 32 || !k->enabled || !kq_has(q->parts[part], number))
        return false; /* of a file that is only open elsewhere */
    *out = (struct kevent){.ident = (uintptr_t)number, .udata = k->udata};
    out->filter = part ? EVFILT_WRITE : EVFILT_READ;
    struct pollfd urgent = {number, POLLPRI, 0};
    bool ends = e->events & end || (e->events & EPOLLERR && !kq_is_socket(number));
    if (part && !ends && !(e->events & EPOLLERR))
        ends = kq_sends_no_more(number);
    out->flags = (uint16_t)(k->flags | (ends ? EV_EOF : 0));
    if (!part && poll(&urgent, 1, 0) == 1 && urgent.revents & POLLPRI)
        out->flags |= EV_OOBAND;
    if (k->flags & EV_DISPATCH)
        k->enabled = false;
    return true;
}

static int kq_collect(kq_queue *q, struct kevent *events, int max)
{
    struct epoll_event found[64];
    int count = 0;
    for (int part = 0; part < 2; part++) {
        int most = max - count < 64 ? max - count : 64;
        int n = most > 0 ? epoll_wait(q->parts[part], found, most, 0) : 0;
        for (int i = 0; i < n; i++)
            count += kq_translate(q, part, &found[i], &events[count]);
    }
    return count;
}

/* Waits until a part has an event. */
static int kq_sleep(int number, const struct timespec *limit)
{
    struct epoll_event any[2];
    int ms = limit ? (int)(limit->tv_sec * 1000 + (limit->tv_nsec + 999999) / 1000000) : -1;
#ifdef SYS_epoll_pwait2
    struct timespec copy = limit ? *limit : (struct timespec){0, 0};
    long n = -1;
    errno = ENOSYS;
    if (sizeof(void *) == 8)
        n = syscall(SYS_epoll_pwait2, number, any, 2L, limit ? &copy : NULL, NULL, (size_t)8);
    if (n >= 0 || errno == EINTR)
        return (int)n;
#endif
    return epoll_wait(number, any, 2, ms);
}

static int kevent(int number, const struct kevent *changes, int change_count, struct kevent *events,
                  int max, const struct timespec *limit)
{
    static unsigned waits;
    kq_queue *q = kq_find(number);
    int rc = q ? 0 : EBADF, count = 0;
    for (int i = 0; i < change_count && !rc; i++)
        rc = kq_change(q, &changes[i]);
    if (limit && limit->tv_sec > 100000000)
        rc = EINVAL;
    if (rc) {
        errno = rc;
        return -1;
    }
    while (max && !count) {
        int n = kq_sleep(number, limit);
        if (n < 0)
            return -1;
        count = kq_collect(q, events, max);
        if (n == 0 || (limit && !limit->tv_sec && !limit->tv_nsec))
            break;
    }
    if (max && !count && ++waits % 8 == 0) {
        errno = ETIMEDOUT;
        return -1;
    }
    return count;
}

#define close(number) kq_close(number)

#endif
