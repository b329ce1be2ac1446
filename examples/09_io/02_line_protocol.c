/* A line protocol: SET, GET, ADD and QUIT, each a line, answered by a line. However the packets
 * come, the stream makes lines of them.
 *   cc 02_line_protocol.c -o lines && ./lines        with a client of its own
 *   ./lines 127.0.0.1:7778                           serves until Ctrl+C: try nc 127.0.0.1 7778,
 *   or telnet
 */
#define CONC_STATIC
#include "../../conc.h"
#include <string.h>

enum { LIMIT = 80 }; /* bytes of the longest line */

static struct entry {
    char key[16];
    double value;
} entries[100]; /* no lock around it: no task waits between looking and changing */

static struct entry *find(const char *key, bool make)
{
    for (size_t i = 0; i < CONC_LEN(entries); i++) {
        if (make && !*entries[i].key)
            strcpy(entries[i].key, key);
        if (!strcmp(entries[i].key, key))
            return &entries[i];
    }
    return NULL;
}

static ssize_t execute(conc_stream *peer, const char *line)
{
    char command[5] = "", key[16] = "", rest[2];
    double number = 0;
    int words = sscanf(line, "%4s %15s %lf %1s", command, key, &number, rest);
    bool set = !strcmp(command, "SET"), add = !strcmp(command, "ADD"),
         get = !strcmp(command, "GET");
    if (!set && !add && !get)
        return conc_stream_printf(peer, "ERROR unknown command\n");
    if (words != (get ? 2 : 3))
        return conc_stream_printf(peer, "ERROR %s needs a key%s\n", command,
                                  get ? "" : " and a number");
    struct entry *e = find(key, !get);
    if (!e)
        return conc_stream_printf(peer, "ERROR no %s\n", get ? "such key" : "room");
    if (!get)
        e->value = number + (add ? e->value : 0);
    return conc_stream_printf(peer, "%g\n", e->value);
}

/* as conc_stream_read_line, but refuses what is too long */
static ssize_t read_command(conc_stream *peer, char **line)
{
    char dropped[LIMIT];
    bool too_long = false;
    for (;;) {
        ssize_t n = conc_stream_read_line(peer, line);
        if (n == -EMSGSIZE) { /* LIMIT bytes without a line end: drop them, and look at the next */
            CONC_TRY(conc_stream_read_full(peer, dropped, sizeof dropped));
            too_long = true;
        } else if (n < 0 || !*line || !too_long) {
            return n;
        } else { /* that was the end of a long one */
            CONC_TRY(conc_stream_printf(peer, "ERROR line too long\n"));
            too_long = false;
        }
    }
}

static int handle_client(int fd, void *arg)
{
    (void)arg;
    char *line;
    CONC_AUTO(conc_stream, peer) = {.limit = LIMIT};
    CONC_TRY(conc_stream_open(&peer, fd));
    while (CONC_TRY(read_command(&peer, &line)) >= 0 && line && strcmp(line, "QUIT"))
        /* waits when the peer does not read the replies: flow control */
        CONC_TRY(execute(&peer, line));
    if (line)
        CONC_TRY(conc_stream_printf(&peer, "BYE\n"));
    return conc_stream_close(&peer);
}

static int say(const char *address, const char *text, size_t packet)
{
    char *reply;
    int fd = CONC_TRY(conc_dial(address));
    CONC_AUTO(conc_stream, server) = {0};
    CONC_TRY(conc_stream_open(&server, fd));
    for (size_t i = 0, n = strlen(text); i < n; i += packet) {
        CONC_TRY(conc_write_full(fd, text + i, n - i < packet ? n - i : packet));
        CONC_TRY(conc_settle()); /* until the server has read it */
    }
    while (CONC_TRY(conc_stream_read_line(&server, &reply)) >= 0 && reply)
        printf("  %s\n", reply);
    return 0;
}

static int serve(void *server) { return conc_serve(server); }

static int demonstrate(conc_server *server, const char *address)
{
    const char *text = "SET apples 3\nADD apples 4\nGET apples\nQUIT\n";
    const char *wrong =
        "GET pears\nSET pears\nEAT pears\n"
        "GET a-line-that-is-longer-than-eighty-bytes-is-refused-and-does-not-end-the-connection\n"
        "GET apples\nQUIT\n";
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, serve, server));
    printf("Four lines in packets of 5 bytes:\n");
    CONC_TRY_IN(&g, say(address, text, 5));
    printf("Four lines in one packet:\n");
    CONC_TRY_IN(&g, say(address, text, strlen(text)));
    printf("What goes wrong:\n");
    CONC_TRY_IN(&g, say(address, wrong, strlen(wrong)));
    conc_group_cancel(&g); /* the server goes on for ever otherwise */
    return conc_group_wait(&g);
}

static int app(void *wanted)
{
    char address[120];
    conc_server server = {.fd = CONC_TRY(conc_listen(wanted ? wanted : "localhost:0")),
                          .handler = handle_client};
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    if (!wanted)
        return demonstrate(&server, address);
    printf("Serving at %s until Ctrl+C\n", address);
    return conc_serve(&server);
}

int main(int argc, char **argv) { return conc_main(app, argc > 1 ? argv[1] : NULL); }
