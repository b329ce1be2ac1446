/* Long lines. A server reports each line's length. It refuses lines of more than 80 bytes without
   ending the connection: the next line is answered again. Nor can a client fill the memory.

   cc 07_long_lines.c -o long_lines
   ./long_lines
   ./long_lines 127.0.0.1:7779     # serves until Ctrl+C: nc 127.0.0.1 7779

   It prints ../expected/09_io/07_long_lines.txt.
   Hint: .limit of a stream is the longest line. For a longer one, conc_stream_read_line returns
   -EMSGSIZE, and nothing is lost: read and drop the 80 available bytes, then read again. */
#define CONC_STATIC
#include "../../conc.h"
#include <string.h>

enum { LIMIT = 80 }; /* bytes of the longest line */

/* Your turn: as conc_stream_read_line, but if the line is too long, read it up to its end, and then
   return -EMSGSIZE: the next call reads the next line. */
static ssize_t read_short_line(conc_stream *s, char **line)
{
    char dropped[LIMIT];
    bool too_long = false;
    ssize_t n;
    while ((n = conc_stream_read_line(s, line)) == -EMSGSIZE) {
        CONC_TRY(conc_stream_read_full(s, dropped, sizeof dropped));
        too_long = true;
    }
    return n >= 0 && too_long ? -EMSGSIZE : n;
}

/* Your turn: answer each line with "3 bytes", its length, or with "too long", until the end. */
static int handle_client(int fd, void *arg)
{
    (void)arg;
    char *line = "";
    CONC_AUTO(conc_stream, peer) = {.limit = LIMIT};
    CONC_TRY(conc_stream_open(&peer, fd));
    while (line) {
        ssize_t n = read_short_line(&peer, &line);
        if (n == -EMSGSIZE)
            CONC_TRY(conc_stream_printf(&peer, "too long\n"));
        else if (CONC_TRY(n) >= 0 && line)
            CONC_TRY(conc_stream_printf(&peer, "%zd bytes\n", n));
    }
    return 0;
}

static int ask(const char *address)
{
    char *reply;
    CONC_AUTO(conc_stream, server) = {0};
    CONC_TRY(conc_stream_open(&server, CONC_TRY(conc_dial(address))));
    for (int length = 0; length <= 200; length += 40)
        CONC_TRY(conc_stream_printf(&server, "%0*d\n", length, 0));
    CONC_TRY(conc_stream_shutdown(&server)); /* the server reads the end */
    while (CONC_TRY(conc_stream_read_line(&server, &reply)) >= 0 && reply)
        printf("%s\n", reply);
    return 0;
}

static int serve(void *server) { return conc_serve(server); }

static int app(void *wanted)
{
    char address[120];
    static conc_server server = {.handler = handle_client};
    server.fd = CONC_TRY(conc_listen(wanted ? wanted : "localhost:0"));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    if (wanted) {
        printf("Serving at %s until Ctrl+C\n", address);
        return conc_serve(&server);
    }
    CONC_TRY(conc_spawn(NULL, serve, &server)); /* in the background, until the run ends */
    return ask(address);
}

int main(int argc, char **argv) { return conc_main(app, argc > 1 ? argv[1] : NULL); }
