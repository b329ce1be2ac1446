/* Echo server: a task for each connection sends back what it receives, and waits while its peer
 * does not read.
 *   cc 01_echo_server.c -o echo && ./echo        with clients of its own, which check what comes
 *   back ./echo 127.0.0.1:7777                        serves until Ctrl+C: try nc 127.0.0.1 7777
 *   ./echo unix:echo.sock                        on a Unix socket: nc -U echo.sock
 */
#define CONC_STATIC
#include "../../conc.h"
#include <string.h>

static int handle_client(int fd, void *arg)
{
    (void)arg;
    char data[1024];
    ssize_t n;
    CONC_AUTO(conc_stream, peer) = {0}; /* closed when the function returns */
    CONC_TRY(conc_stream_open(&peer, fd));
    /* what there is; 0 at the end */
    while ((n = CONC_TRY(conc_stream_read(&peer, data, sizeof data))) > 0) {
        CONC_TRY(conc_stream_write(&peer, data, (size_t)n));
        /* drain: when the peer does not read, we do not read either */
        CONC_TRY(conc_stream_flush(&peer));
    }
    return 0;
}

typedef struct {
    const char *address;
    int number, same;
} client;

static int talk(void *arg)
{
    client *c = arg;
    char said[32], *heard;
    CONC_AUTO(conc_stream, server) = {0};
    CONC_TRY(conc_stream_open(&server, CONC_TRY(conc_dial(c->address))));
    for (int i = 1; i <= 100; i++) {
        snprintf(said, sizeof said, "client %d, line %d", c->number, i);
        CONC_TRY(conc_stream_printf(&server, "%s\n", said));
        CONC_TRY(conc_stream_read_line(&server, &heard));
        c->same += heard && strcmp(heard, said) == 0;
    }
    return 0;
}

typedef struct {
    conc_stream *server;
    int fd;
    size_t sent, received;
    bool enough;
} flood;

static int send_much(void *arg)
{
    flood *f = arg;
    static const char block[65536];
    while (!f->enough)
        f->sent += (size_t)CONC_TRY(conc_stream_write(f->server, block, sizeof block));
    CONC_TRY(conc_stream_flush(f->server));
    /* the end for the server; the other direction stays open */
    return shutdown(f->fd, SHUT_WR) ? -errno : 0;
}

static int read_late(flood *f)
{
    char data[65536];
    ssize_t n;
    CONC_TRY(conc_settle()); /* until everybody waits: so the writer does, and the server's task */
    printf("A client that does not read has to wait with writing\n");
    f->enough = true;
    while ((n = CONC_TRY(conc_stream_read(f->server, data, sizeof data))) > 0)
        f->received += (size_t)n;
    return 0;
}

static int flow_control(const char *address)
{
    CONC_AUTO(conc_stream, server) = {0};
    flood f = {.server = &server, .fd = CONC_TRY(conc_dial(address))};
    CONC_TRY(conc_stream_open(&server, f.fd));
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, send_much, &f));
    CONC_TRY_IN(&g, read_late(&f));
    CONC_TRY(conc_group_wait(&g));
    printf("When it reads, %s comes back\n", f.received == f.sent ? "every byte" : "not all");
    return 0;
}

static int serve(void *server) { return conc_serve(server); }

static int demonstrate(conc_server *server, const char *address)
{
    client clients[5];
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, serve, server));
    for (int i = 0; i < 5; i++)
        clients[i] = (client){address, i + 1, 0};
    CONC_TRY_IN(&g, CONC_MAP(talk, clients));
    for (int i = 0; i < 5; i++)
        printf("Client %d: %d of 100 lines came back\n", clients[i].number, clients[i].same);
    CONC_TRY_IN(&g, flow_control(address));
    conc_group_cancel(&g); /* the server goes on for ever otherwise */
    return conc_group_wait(&g);
}

static int app(void *wanted)
{
    char address[120];
    conc_server server = {.fd = CONC_TRY(conc_listen(wanted ? wanted : "localhost:0")),
                          .handler = handle_client};
    /* with the port that the system chose for 0 */
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    if (!wanted)
        return demonstrate(&server, address);
    printf("Echoing at %s until Ctrl+C\n", address);
    return conc_serve(&server);
}

int main(int argc, char **argv) { return conc_main(app, argc > 1 ? argv[1] : NULL); }
