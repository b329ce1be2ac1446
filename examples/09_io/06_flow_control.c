/* Flow control. A client writes as much as it can to an echo server, and reads nothing. Soon it
   must wait: the server waits in its own write, and stops reading. When the client finally reads,
   every byte comes back.

   cc 06_flow_control.c -o flow_control
   ./flow_control
   CONC_CLOCK=virtual ./flow_control     # without waiting

   It prints ../expected/09_io/06_flow_control.txt.
   Hint: conc_stream_write waits while there is no room, and returns how many bytes it wrote. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    conc_stream *server;
    size_t sent, received;
    bool enough;
} flood;

static int handle_client(int fd, void *arg)
{
    (void)arg;
    char data[1024];
    ssize_t n;
    CONC_AUTO(conc_stream, peer) = {0};
    CONC_TRY(conc_stream_open(&peer, fd));
    while ((n = CONC_TRY(conc_stream_read(&peer, data, sizeof data))) > 0) {
        CONC_TRY(conc_stream_write(&peer, data, (size_t)n));
        CONC_TRY(conc_stream_flush(&peer)); /* waits while the client does not read */
    }
    return 0;
}

/* Your turn: write the block until enough is true, and add up in sent what was written; then end
   the writing half (conc_stream_shutdown), so that the server reads the end. */
static int send_much(void *arg)
{
    flood *f = arg;
    static const char block[65536];
    while (!f->enough)
        f->sent += (size_t)CONC_TRY(conc_stream_write(f->server, block, sizeof block));
    return conc_stream_shutdown(f->server);
}

/* Your turn: sleep for 1 s, then look for another second whether sent still grows, and print "The
   writer waits" or "The writer goes on". Then set enough, and add up in received what comes back
   until the end. */
static int read_late(void *arg)
{
    flood *f = arg;
    char data[65536];
    ssize_t n;
    CONC_TRY(conc_sleep(1));
    size_t before = f->sent;
    CONC_TRY(conc_sleep(1));
    printf("The writer %s\n", f->sent == before ? "waits" : "goes on");
    f->enough = true;
    while ((n = CONC_TRY(conc_stream_read(f->server, data, sizeof data))) > 0)
        f->received += (size_t)n;
    return 0;
}

static int serve(void *server) { return conc_serve(server); }

static int app(void *arg)
{
    (void)arg;
    char address[120];
    CONC_AUTO(conc_stream, stream) = {0};
    flood f = {.server = &stream};
    static conc_server server = {.handler = handle_client};
    server.fd = CONC_TRY(conc_listen("localhost:0"));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    CONC_TRY(conc_spawn(NULL, serve, &server)); /* in the background, until the run ends */
    CONC_TRY(conc_stream_open(&stream, CONC_TRY(conc_dial(address))));
    CONC_TRY(CONC_GATHER(CONC_CALL(send_much, &f), CONC_CALL(read_late, &f)));
    bool all = f.sent > 0 && f.received == f.sent;
    printf("%s came back\n", all ? "Every byte" : "Not all");
    return 0;
}

int main(void) { return conc_main(app, NULL); }
