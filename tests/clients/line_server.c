/* line_server ADDRESS [pong|once|late|echo]: answers lines, for tests/clients.sh and
 * tests/bench/run_io.sh.
 *   pong   "+PONG" for each line: what redis-benchmark -t ping_inline asks for
 *   once   the same for one line, and then it closes the connection
 *   late   as once, but the handler goes on for a while, when the descriptor's number is another
 *          connection's already
 *   echo   the line itself
 * Prints the address that it listens on (a port of 0 filled in). SIGTERM or SIGINT ends it: it
 * prints how many lines it answered, and exits with 128 + the signal's number.
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include <string.h>

typedef int conversation(conc_stream *s);
static size_t answered;

static int pong(conc_stream *s)
{
    char *line;
    while (CONC_TRY(conc_stream_read_line(s, &line)) >= 0 && line) {
        CONC_TRY(conc_stream_write(s, "+PONG\r\n", 7));
        answered++;
    }
    return 0;
}

static int once(conc_stream *s)
{
    char *line;
    CONC_TRY(conc_stream_read_line(s, &line));
    if (!line)
        return 0;
    CONC_TRY(conc_stream_write(s, "+PONG\r\n", 7));
    answered++;
    return 0;
}

static int echo(conc_stream *s)
{
    char *line;
    ssize_t length;
    while ((length = CONC_TRY(conc_stream_read_line(s, &line))) >= 0 && line) {
        CONC_TRY(conc_stream_write(s, line, (size_t)length));
        CONC_TRY(conc_stream_write(s, "\n", 1));
        answered++;
    }
    return 0;
}

typedef struct mode {
    const char *name;
    conversation *talk;
    double late; /* seconds from closing the connection to the handler's end */
} mode;

static const mode modes[] = {
    {"pong", pong, 0}, {"once", once, 0}, {"late", once, 0.01}, {"echo", echo, 0}};

static int serve(int fd, void *arg)
{
    const mode *m = *(const mode *const *)arg;
    conc_stream s = {0};
    CONC_TRY(conc_stream_open(&s, fd));
    int rc = m->talk(&s), closed = conc_stream_close(&s);
    if (m->late > 0)
        CONC_TRY(conc_sleep(m->late));
    if (rc >= 0)
        rc = closed;
    return rc == -ECONNRESET || rc == -EPIPE ? 0 : rc; /* clients may disappear at any time */
}

typedef struct options {
    const char *address;
    const mode *mode;
} options;

static const mode *find_mode(const char *name)
{
    for (size_t i = 0; i < CONC_LEN(modes); i++)
        if (strcmp(modes[i].name, name) == 0)
            return &modes[i];
    return NULL;
}

static int app(void *arg)
{
    options *o = arg;
    char address[120];
    int fd = CONC_TRY(conc_listen(o->address));
    CONC_TRY(conc_address(fd, false, address, sizeof address));
    printf("%s\n", address);
    fflush(stdout);
    conc_server server = {.fd = fd, .handler = serve, .arg = &o->mode};
    int rc = conc_serve(&server);
    conc_close(fd);
    return rc;
}

int main(int argc, char **argv)
{
    options o = {argv[1], find_mode(argc > 2 ? argv[2] : "pong")};
    if (argc < 2 || !o.mode) {
        fprintf(stderr, "usage: %s ADDRESS [pong|once|late|echo]\n", argv[0]);
        return 2;
    }
    int status = conc_main(app, &o);
    printf("%zu lines answered\n", answered);
    return status;
}
