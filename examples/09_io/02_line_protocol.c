/* Line protocol. A server that keeps a number for each letter: it answers "SET a 3", "ADD a 4" and
   "GET a" with the number, "QUIT" with "BYE". Each is a line, however packets are split.

   cc 02_line_protocol.c -o line_protocol
   ./line_protocol
   ./line_protocol 127.0.0.1:7778     # serves until Ctrl+C: nc 127.0.0.1 7778, or telnet

   It prints ../expected/09_io/02_line_protocol.txt.
   Hint: conc_stream_read_line waits for a whole line; at the end line is NULL. sscanf with "%3s
   %1[a-z] %lf" parses a command, and returns how many of the three it found. */
#define CONC_STATIC
#include "../../conc.h"
#include <string.h>

static double numbers[26]; /* no lock: no task waits between looking and changing */

/* Your turn: do what the line says, and write the answer to the stream: the letter's number as "%g"
   has it, or "ERROR" if it is none of SET, ADD, GET. */
static int execute(conc_stream *peer, const char *line)
{
    char command[4] = "", key[2] = "a";
    double number;
    int words = sscanf(line, "%3s %1[a-z] %lf", command, key, &number);
    double *value = &numbers[*key - 'a'];
    if (words == 3 && strcmp(command, "SET") == 0)
        *value = number;
    else if (words == 3 && strcmp(command, "ADD") == 0)
        *value += number;
    else if (words != 2 || strcmp(command, "GET") != 0)
        return (int)conc_stream_printf(peer, "ERROR\n");
    return (int)conc_stream_printf(peer, "%g\n", *value);
}

/* Your turn: execute the lines of this client until "QUIT", which is answered with "BYE", or until
   the end. */
static int handle_client(int fd, void *arg)
{
    (void)arg;
    char *line;
    CONC_AUTO(conc_stream, peer) = {0};
    CONC_TRY(conc_stream_open(&peer, fd));
    while (CONC_TRY(conc_stream_read_line(&peer, &line)) >= 0 && line && strcmp(line, "QUIT"))
        CONC_TRY(execute(&peer, line));
    if (line)
        CONC_TRY(conc_stream_printf(&peer, "BYE\n"));
    return conc_stream_close(&peer);
}

static int ask(const char *address)
{
    const char *packets[] = {"SET", " a ", "3\n", "ADD a 4\nEAT a\nGET a\nQUIT\n"};
    char *answer;
    CONC_AUTO(conc_stream, server) = {0};
    CONC_TRY(conc_stream_open(&server, CONC_TRY(conc_dial(address))));
    for (size_t i = 0; i < CONC_LEN(packets); i++) {
        CONC_TRY(conc_stream_printf(&server, "%s", packets[i]));
        CONC_TRY(conc_stream_flush(&server));
        CONC_TRY(conc_sleep(0.1)); /* so that each is a packet of its own */
    }
    while (CONC_TRY(conc_stream_read_line(&server, &answer)) >= 0 && answer)
        printf("%s\n", answer);
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
