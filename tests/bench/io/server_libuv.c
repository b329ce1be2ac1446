/* server_libuv ADDRESS [pong|once]: the line server of server_raw.c with libuv: one buffer for all
 * reads, and answers written immediately with uv_try_write; only the rest is queued.
 *   cc -O2 server_libuv.c -o server_libuv -luv
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <uv.h>

enum { READ_SIZE = 16384, ANSWER_SIZE = 7, BACKLOG = 4096 };

typedef struct connection {
    uv_tcp_t tcp;
    uv_write_t rest;
} connection;

static bool once;
static char answers[READ_SIZE * ANSWER_SIZE];

static void check(int rc, const char *what)
{
    if (rc >= 0)
        return;
    fprintf(stderr, "%s: %s\n", what, uv_strerror(rc));
    exit(1);
}

static void closed(uv_handle_t *handle) { free(handle->data); }
static void drop(connection *c) { uv_close((uv_handle_t *)&c->tcp, closed); }

static void give_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    static char data[READ_SIZE];
    (void)handle;
    (void)suggested;
    *buffer = uv_buf_init(data, sizeof data);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer);

static void on_written(uv_write_t *rest, int status)
{
    connection *c = rest->data;
    if (uv_is_closing((uv_handle_t *)&c->tcp))
        return;
    if (status < 0 || once)
        drop(c);
    else
        uv_read_start((uv_stream_t *)&c->tcp, give_buffer, on_read);
}

static void queue_rest(connection *c, size_t begun, size_t size)
{
    uv_buf_t buffer = uv_buf_init(answers + begun % ANSWER_SIZE, (unsigned)(size - begun));
    c->rest.data = c;
    uv_read_stop((uv_stream_t *)&c->tcp);
    check(uv_write(&c->rest, (uv_stream_t *)&c->tcp, &buffer, 1, on_written), "uv_write");
}

static void write_answers(connection *c, size_t size)
{
    uv_buf_t buffer = uv_buf_init(answers, (unsigned)size);
    int n = uv_try_write((uv_stream_t *)&c->tcp, &buffer, 1);
    if (n == UV_EAGAIN)
        n = 0;
    if (n >= 0 && (size_t)n < size)
        queue_rest(c, (size_t)n, size);
    else if (n < 0 || once)
        drop(c);
}

static size_t count_lines(const char *data, size_t size)
{
    size_t lines = 0;
    for (const char *end = data + size; (data = memchr(data, '\n', (size_t)(end - data))) != NULL;
         data++)
        lines++;
    return lines;
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer)
{
    connection *c = stream->data;
    size_t lines = n > 0 ? count_lines(buffer->base, (size_t)n) : 0;
    if (n < 0)
        drop(c);
    else if (lines)
        write_answers(c, lines * ANSWER_SIZE);
}

static void on_connection(uv_stream_t *listener, int status)
{
    check(status, "accept");
    connection *c = calloc(1, sizeof *c);
    uv_tcp_init(listener->loop, &c->tcp);
    c->tcp.data = c;
    if (uv_accept(listener, (uv_stream_t *)&c->tcp) == 0)
        uv_read_start((uv_stream_t *)&c->tcp, give_buffer, on_read);
    else
        drop(c);
}

static void listen_at(uv_tcp_t *listener, const char *text)
{
    char host[64];
    int port, on = 1, size = sizeof(struct sockaddr_in);
    struct sockaddr_in address;
    uv_os_fd_t fd;
    if (sscanf(text, "%63[0-9.]:%d", host, &port) != 2)
        check(UV_EINVAL, text);
    check(uv_ip4_addr(host, port, &address), text);
    check(uv_tcp_init(uv_default_loop(), listener), "uv_tcp_init");
    check(uv_tcp_bind(listener, (struct sockaddr *)&address, 0), "bind");
    check(uv_listen((uv_stream_t *)listener, BACKLOG, on_connection), "listen");
    check(uv_fileno((uv_handle_t *)listener, &fd), "uv_fileno");
    /* accepted ones inherit it */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    uv_tcp_getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%s:%d\n", host, ntohs(address.sin_port));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    uv_tcp_t listener;
    once = argc > 2 && strcmp(argv[2], "once") == 0;
    for (size_t i = 0; i < sizeof answers; i++)
        answers[i] = "+PONG\r\n"[i % ANSWER_SIZE];
    listen_at(&listener, argc > 1 ? argv[1] : "127.0.0.1:0");
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
