/* server_raw ADDRESS [pong|once]: the line server without any library, as efficient as epoll
 * allows: level-triggered, one read of up to 16 KB per event, one write with the answers to all
 * lines read, and nothing copied. ADDRESS is "127.0.0.1:PORT". Prints the address, a port of 0
 * filled in.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_SIZE = 16384, EVENTS = 1024, ANSWER_SIZE = 7 };

typedef struct connection {
    int fd;
    bool blocked; /* waits until it can write, and does not read */
    size_t owed;  /* bytes of answers that are still to be written */
} connection;

static bool once;
static int epoll;
static char answers[READ_SIZE * ANSWER_SIZE];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int listen_at(const char *text)
{
    char host[64];
    unsigned short port;
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (sscanf(text, "%63[0-9.]:%hu", host, &port) != 2 ||
        inet_pton(AF_INET, host, &address.sin_addr) != 1)
        fail(text);
    address.sin_port = htons(port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    /* accepted ones inherit it */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, SOMAXCONN) != 0)
        fail("listen");
    getsockname(fd, (struct sockaddr *)&address, &size);
    printf("%s:%d\n", host, ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void watch(int operation, int fd, uint32_t events, void *data)
{
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epoll, operation, fd, &event) != 0)
        fail("epoll_ctl");
}

static void drop(connection *c)
{
    close(c->fd);
    free(c);
}

static void accept_one(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    connection *c = calloc(1, sizeof *c);
    c->fd = fd;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN, c);
}

static void write_answers(connection *c)
{
    size_t begun = (ANSWER_SIZE - c->owed % ANSWER_SIZE) % ANSWER_SIZE;
    ssize_t n = send(c->fd, answers + begun, c->owed, MSG_NOSIGNAL);
    if ((n < 0 && errno != EAGAIN) || once) {
        drop(c);
        return;
    }
    c->owed -= n > 0 ? (size_t)n : 0;
    if (c->blocked != (c->owed > 0)) {
        c->blocked = c->owed > 0;
        watch(EPOLL_CTL_MOD, c->fd, c->blocked ? EPOLLOUT : EPOLLIN, c);
    }
}

static size_t count_lines(const char *data, size_t size)
{
    size_t lines = 0;
    for (const char *end = data + size; (data = memchr(data, '\n', (size_t)(end - data))) != NULL;
         data++)
        lines++;
    return lines;
}

static void read_lines(connection *c)
{
    static char data[READ_SIZE];
    ssize_t n = recv(c->fd, data, sizeof data, 0);
    if (n > 0) {
        c->owed = count_lines(data, (size_t)n) * ANSWER_SIZE;
        if (c->owed)
            write_answers(c);
    } else if (n == 0 || errno != EAGAIN) {
        drop(c);
    }
}

int main(int argc, char **argv)
{
    static struct epoll_event events[EVENTS];
    once = argc > 2 && strcmp(argv[2], "once") == 0;
    for (size_t i = 0; i < sizeof answers; i++)
        answers[i] = "+PONG\r\n"[i % ANSWER_SIZE];
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_at(argc > 1 ? argv[1] : "127.0.0.1:0");
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            connection *c = events[i].data.ptr;
            if (!c)
                accept_one(listener);
            else if (c->blocked)
                write_answers(c);
            else
                read_lines(c);
        }
    }
}
