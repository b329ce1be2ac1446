/* A loop per thread: four threads, each with a run and a listener of its own, serve one port;
 * the system gives every connection to one of them. What a loop's tasks share needs no lock;
 * between the loops there are channels.
 *   cc 11_loop_per_thread.c -o loops && ./loops
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <string.h>

enum { THREADS = 4, CLIENTS = 12, LINES = 50 };

static const conc_listen_options shared = {.reuse_port = true};
static conc_channel ready = {.capacity = THREADS}; /* of items without content */
static conc_channel counts = CONC_CHANNEL(int, THREADS);
static conc_channel stop = {.capacity = 1}; /* nothing is sent: its close tells all loops */

static int handle_client(int fd, void *arg)
{
    char *line;
    ++*(int *)arg; /* this loop's count: its tasks touch it one at a time */
    CONC_AUTO(conc_stream, peer) = {0};
    CONC_TRY(conc_stream_open(&peer, fd));
    while (CONC_TRY(conc_stream_read_line(&peer, &line)) >= 0 && line) {
        CONC_TRY(conc_stream_printf(&peer, "%s\n", line));
        CONC_TRY(conc_stream_flush(&peer));
    }
    return 0;
}

static int serve(void *server) { return conc_serve(server); }

static int serve_until_stop(void *address)
{
    int clients = 0;
    conc_server server = {.fd = CONC_TRY(conc_listen_with(address, &shared)),
                          .handler = handle_client,
                          .arg = &clients};
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, serve, &server));
    CONC_TRY_IN(&g, conc_channel_send(&ready, NULL));
    int rc = conc_channel_recv(&stop, NULL); /* this task waits, its thread serves */
    conc_group_cancel(&g);
    CONC_TRY(conc_group_end(&g, rc == -EPIPE ? 0 : rc)); /* closed: as it should be */
    CONC_TRY(conc_close(server.fd));
    return conc_channel_send(&counts, &clients);
}

static int own_loop(void *address) /* on a thread of the pool */
{
    int rc = conc_run(serve_until_stop, address);
    conc_channel_close(&stop); /* when one loop fails, all end */
    return rc;
}

static int four_loops(void *address)
{
    CONC_AUTO(conc_pool, pool) = {.threads = THREADS};
    CONC_TRY(conc_pool_open(&pool));
    return conc_pool_map(&pool, own_loop, address, THREADS, 0);
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
    for (int i = 1; i <= LINES; i++) {
        snprintf(said, sizeof said, "client %d, line %d", c->number, i);
        CONC_TRY(conc_stream_printf(&server, "%s\n", said));
        CONC_TRY(conc_stream_read_line(&server, &heard));
        c->same += heard && strcmp(heard, said) == 0;
    }
    return 0;
}

static int be_clients(const char *address, int any)
{
    client clients[CLIENTS];
    for (int i = 0; i < THREADS; i++)
        CONC_TRY(conc_channel_recv(&ready, NULL));
    CONC_TRY(conc_close(any)); /* it has kept the port until now, and would get connections too */
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = (client){address, i + 1, 0};
    CONC_TRY(CONC_MAP(talk, clients));
    for (int i = 0; i < CLIENTS; i++)
        printf("Client %d: %d of %d lines came back\n", clients[i].number, clients[i].same, LINES);
    return 0;
}

static int app(void *any_port)
{
    char address[120];
    int clients, sum = 0;
    int any = CONC_TRY(conc_listen_with(any_port, &shared));
    CONC_TRY(conc_address(any, false, address, sizeof address));
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, four_loops, address));
    int rc = be_clients(address, any);
    conc_channel_close(&stop);
    CONC_TRY(conc_group_end(&g, rc));
    for (int i = 0; i < THREADS; i++, sum += clients)
        /* which loop had how many is up to the system */
        CONC_TRY(conc_channel_recv(&counts, &clients));
    printf("%d loops have served %d clients\n", THREADS, sum);
    return 0;
}

int main(void) { return conc_main(app, "127.0.0.1:0"); }
