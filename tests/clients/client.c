/* client COMMAND: what no tool at hand does, for tests/clients.sh and tests/bench/run_io.sh.
 * Knows nothing of conc.
 *   once ADDRESS REQUESTS CONNECTIONS
 *       one request a connection, CONNECTIONS of them at a time, against a server that closes
 *       after its answer; prints how many a second
 *   idle ADDRESS CONNECTIONS
 *       opens them, has one request answered on each, prints "N held", and holds them until its
 *       input ends. Meanwhile it does what lines of its input tell: "ask" has one more answered
 *       on each ("N answered"), "end" waits until the server has closed each ("N ended")
 *   pile ADDRESS LINES
 *       has one answered, sends as many more as it can without reading an answer, then reads and
 *       sends the rest. All answers have to come before it closes its side, and nothing after
 *       them; prints how many lines it had sent when it began to read
 *   cpu PID
 *       the nanoseconds of processor time that this process has used so far, all threads, user
 *       and system
 * ADDRESS is "127.0.0.1:PORT" or "unix:PATH". What is not as expected ends it with a message and
 * exit status 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 64, BATCH = 256, ANSWER_SIZE = 7 };
static const char question[] = "PING\r\n", answer[] = "+PONG\r\n";
static union {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_un un;
} server;

_Noreturn static void fail(const char *what)
{
    fprintf(stderr, "client: %s: %s\n", what, errno ? strerror(errno) : "not as expected");
    exit(1);
}

static void parse_address(const char *text)
{
    char host[64];
    unsigned short port;
    if (strncmp(text, "unix:", 5) == 0 && strlen(text + 5) < sizeof server.un.sun_path) {
        server.un.sun_family = AF_UNIX;
        memcpy(server.un.sun_path, text + 5, strlen(text + 5));
        return;
    }
    if (sscanf(text, "%63[0-9.]:%hu", host, &port) != 2 ||
        inet_pton(AF_INET, host, &server.in.sin_addr) != 1)
        fail(text);
    server.in.sin_family = AF_INET;
    server.in.sin_port = htons(port);
}

static void raise_limit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static int dial(void)
{
    int fd = socket(server.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    socklen_t size = server.any.sa_family == AF_UNIX ? sizeof server.un : sizeof server.in;
    if (fd < 0 || connect(fd, &server.any, size) != 0)
        fail("connect");
    if (server.any.sa_family == AF_INET)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void ask(int fd)
{
    if (send(fd, question, sizeof question - 1, MSG_NOSIGNAL) != sizeof question - 1)
        fail("send");
}

/* Closes with a reset, so that no port stays in TIME_WAIT and there are always enough. */
static void hang_up(int fd)
{
    struct linger none = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    close(fd);
}

/* ---- once ----------------------------------------------------------------------------------- */

typedef struct slot {
    int fd;
    size_t size; /* of what was received */
    char received[ANSWER_SIZE + 1];
} slot;

static void start(slot *s, int epoll)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    s->fd = dial();
    s->size = 0;
    ask(s->fd);
    epoll_ctl(epoll, EPOLL_CTL_ADD, s->fd, &event);
}

/* Returns whether the connection has ended as it should: with the whole answer, and nothing after
 * it. */
static bool receive(slot *s)
{
    ssize_t n = recv(s->fd, s->received + s->size, sizeof s->received - s->size, 0);
    if (n < 0)
        fail("recv");
    s->size += (size_t)n;
    if (s->size > ANSWER_SIZE ||
        (n == 0 && (s->size < ANSWER_SIZE || memcmp(s->received, answer, ANSWER_SIZE) != 0)))
        fail("the answer");
    if (n == 0)
        hang_up(s->fd);
    return n == 0;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void once(long requests, long connections)
{
    struct epoll_event events[EVENTS];
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    slot *slots = calloc((size_t)connections, sizeof *slots);
    long started = 0, ended = 0;
    double begin = seconds();
    for (; started < connections && started < requests; started++)
        start(&slots[started], epoll);
    while (ended < requests) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (!receive(events[i].data.ptr))
                continue;
            ended++;
            if (started < requests) {
                start(events[i].data.ptr, epoll);
                started++;
            }
        }
    }
    printf("%.1f\n", (double)requests / (seconds() - begin));
    free(slots);
}

/* ---- idle ----------------------------------------------------------------------------------- */

static void expect_answer(int fd)
{
    char received[ANSWER_SIZE];
    errno = 0;
    if (recv(fd, received, ANSWER_SIZE, MSG_WAITALL) != ANSWER_SIZE ||
        memcmp(received, answer, ANSWER_SIZE) != 0)
        fail("the answer");
}

static void expect_end(int fd)
{
    char byte;
    errno = 0;
    if (recv(fd, &byte, 1, 0) != 0)
        fail("the end");
}

/* In batches, because a server with too many waiting connections drops some. */
static void ask_all(int *fds, long count)
{
    for (long first = 0; first < count; first += BATCH) {
        long end = first + BATCH < count ? first + BATCH : count;
        for (long i = first; i < end; i++) {
            if (fds[i] < 0)
                fds[i] = dial();
            ask(fds[i]);
        }
        for (long i = first; i < end; i++)
            expect_answer(fds[i]);
    }
}

static void say(long count, const char *what)
{
    printf("%ld %s\n", count, what);
    fflush(stdout);
}

static void idle(long count)
{
    int *fds = malloc((size_t)count * sizeof *fds);
    for (long i = 0; i < count; i++)
        fds[i] = -1;
    ask_all(fds, count);
    say(count, "held");
    for (char line[16]; fgets(line, sizeof line, stdin);) {
        if (strcmp(line, "ask\n") == 0) {
            ask_all(fds, count);
            say(count, "answered");
        } else if (strcmp(line, "end\n") == 0) {
            for (long i = 0; i < count; i++)
                expect_end(fds[i]);
            say(count, "ended");
        }
    }
    for (long i = 0; i < count; i++)
        hang_up(fds[i]);
    free(fds);
}

/* ---- pile ----------------------------------------------------------------------------------- */

enum { QUESTION_SIZE = sizeof question - 1, PIECE = 60000, PAUSE = 200 };

static char questions[PIECE + QUESTION_SIZE], answers[PIECE + ANSWER_SIZE];

static void fill_patterns(void)
{
    for (size_t i = 0; i < sizeof questions; i++)
        questions[i] = question[i % QUESTION_SIZE];
    for (size_t i = 0; i < sizeof answers; i++)
        answers[i] = answer[i % ANSWER_SIZE];
}

static size_t send_some(int fd, size_t sent, size_t all)
{
    size_t size = all - sent < PIECE ? all - sent : PIECE;
    ssize_t n = send(fd, questions + sent % QUESTION_SIZE, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN)
        fail("send");
    return n > 0 ? (size_t)n : 0;
}

static size_t receive_some(int fd, size_t received)
{
    static char data[PIECE];
    errno = 0;
    ssize_t n = recv(fd, data, sizeof data, 0);
    if (n <= 0 || memcmp(data, answers + received % ANSWER_SIZE, (size_t)n) != 0)
        fail("the answer");
    return (size_t)n;
}

/* A pause means that the server accepts no more: it has to wait until its answers are read. */
static void pile(long lines)
{
    int fd = dial();
    size_t all = (size_t)lines * QUESTION_SIZE, due = (size_t)lines * ANSWER_SIZE, sent = 0,
           received = 0, first = 0;
    fill_patterns();
    ask(fd);
    expect_answer(fd); /* from here on the server waits for more */
    while (received < due) {
        bool reads = first || sent == all;
        struct pollfd p = {fd, (short)((sent < all ? POLLOUT : 0) | (reads ? POLLIN : 0)), 0};
        if (poll(&p, 1, reads ? -1 : PAUSE) == 0)
            first = sent;
        if (p.revents & POLLOUT)
            sent += send_some(fd, sent, all);
        else if (p.revents)
            received += receive_some(fd, received);
    }
    shutdown(fd, SHUT_WR);
    expect_end(fd);
    printf("%zu\n", (first ? first : sent) / QUESTION_SIZE);
}

/* ---- cpu ------------------------------------------------------------------------------------ */

static void cpu(int pid)
{
    clockid_t clock;
    struct timespec t;
    errno = clock_getcpuclockid(pid, &clock);
    if (errno || clock_gettime(clock, &t) != 0)
        fail("the process");
    printf("%lld\n", (long long)t.tv_sec * 1000000000 + t.tv_nsec);
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "";
    raise_limit();
    if (argc > 3)
        parse_address(argv[2]);
    if (argc == 5 && strcmp(command, "once") == 0)
        once(atol(argv[3]), atol(argv[4]));
    else if (argc == 4 && strcmp(command, "idle") == 0)
        idle(atol(argv[3]));
    else if (argc == 4 && strcmp(command, "pile") == 0)
        pile(atol(argv[3]));
    else if (argc == 3 && strcmp(command, "cpu") == 0)
        cpu(atoi(argv[2]));
    else
        return fprintf(stderr, "usage: see the first comment of client.c\n"), 2;
    return 0;
}
