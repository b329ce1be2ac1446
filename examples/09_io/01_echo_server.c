/* Echo server. Send back whatever a client sends, and serve many concurrently. Without an address
   it has five clients of its own: each sends a hundred lines, and compares the replies.

   cc 01_echo_server.c -o echo_server
   ./echo_server
   ./echo_server 127.0.0.1:7777     # serves until Ctrl+C; in another terminal: nc 127.0.0.1 7777

   It prints ../expected/09_io/01_echo_server.txt.
   Hint: conc_serve calls handle_client for each connection, in its own task. conc_stream_read
   returns available data, and 0 at the end; conc_stream_flush is drain. */
#define CONC_STATIC
#include "../../conc.h"
#include <string.h>

/* Your turn: open a stream on fd; until the end comes, read at most 1024 bytes, write these, and
   flush: that waits while the client does not read. An error is returned. */
static int handle_client(int fd, void *arg)
{
    (void)arg;
    char data[1024];
    ssize_t n;
    CONC_AUTO(conc_stream, peer) = {0}; /* closed when the function returns */
    CONC_TRY(conc_stream_open(&peer, fd));
    while ((n = CONC_TRY(conc_stream_read(&peer, data, sizeof data))) > 0) {
        CONC_TRY(conc_stream_write(&peer, data, (size_t)n));
        CONC_TRY(conc_stream_flush(&peer));
    }
    return 0;
}

static char address[120];

typedef struct {
    int number, same;
} client;

static int talk(void *arg)
{
    client *c = arg;
    char said[40], *heard = said;
    CONC_AUTO(conc_stream, server) = {0};
    CONC_TRY(conc_stream_open(&server, CONC_TRY(conc_dial(address))));
    for (int i = 1; i <= 100 && heard; i++) {
        snprintf(said, sizeof said, "client %d, line %d", c->number, i);
        CONC_TRY(conc_stream_printf(&server, "%s\n", said));
        CONC_TRY(conc_stream_read_line(&server, &heard));
        c->same += heard && strcmp(heard, said) == 0;
    }
    return 0;
}

static int serve(void *server) { return conc_serve(server); }

static int app(void *wanted)
{
    client clients[] = {{1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}};
    conc_server server = {.handler = handle_client};
    conc_group g = {0};
    server.fd = CONC_TRY(conc_listen(wanted ? wanted : "localhost:0"));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address)); /* 0 became a port */
    CONC_TRY_IN(&g, conc_spawn(&g, serve, &server));
    if (wanted) {
        printf("Echoing at %s until Ctrl+C\n", address);
        return conc_group_wait(&g);
    }
    CONC_TRY_IN(&g, CONC_MAP(talk, clients));
    for (size_t i = 0; i < CONC_LEN(clients); i++)
        printf("Client %d: %d of 100 lines came back\n", clients[i].number, clients[i].same);
    conc_group_cancel(&g); /* the server has no end of its own */
    return conc_group_wait(&g);
}

int main(int argc, char **argv) { return conc_main(app, argc > 1 ? argv[1] : NULL); }
