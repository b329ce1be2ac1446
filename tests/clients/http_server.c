/* http_server ADDRESS: just enough HTTP/1.1, with persistent connections, for curl and wrk in
 * tests/clients.sh. GET and HEAD of / is "hello, world"; POST of / echoes the body; anything else
 * is an error, as it should be. Prints the address that it listens on (a port of 0 filled in).
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { LONGEST_BODY = 1000000 };

typedef struct request {
    char method[16], path[256];
    char *body;
    size_t size; /* of the body */
    int minor;   /* HTTP/1.minor */
    bool keep;   /* whether the connection stays open after the answer */
} request;

static int answer(conc_stream *s, const request *r, const char *status, const char *body,
                  size_t size)
{
    CONC_TRY(conc_stream_printf(
        s, "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n%s\r\n", status, size,
        r->keep ? "" : "Connection: close\r\n"));
    if (strcmp(r->method, "HEAD") != 0)
        CONC_TRY(conc_stream_write(s, body, size));
    return 0;
}

static int answer_request(conc_stream *s, const request *r)
{
    static const char hello[] = "hello, world\n", nothing[] = "not found\n";
    bool get = strcmp(r->method, "GET") == 0 || strcmp(r->method, "HEAD") == 0,
         post = strcmp(r->method, "POST") == 0;
    if (!get && !post)
        return answer(s, r, "501 Not Implemented", "", 0);
    if (strcmp(r->path, "/") != 0)
        return answer(s, r, "404 Not Found", nothing, sizeof nothing - 1);
    return get ? answer(s, r, "200 OK", hello, sizeof hello - 1)
               : answer(s, r, "200 OK", r->body, r->size);
}

/* Parses the first line; returns 1 if it is valid, 0 if not. */
static int parse_request(request *r, const char *line)
{
    *r = (request){.keep = false};
    int fields = sscanf(line, "%15s %255s HTTP/1.%1d", r->method, r->path, &r->minor);
    r->keep = fields == 3 && r->minor >= 1;
    return fields == 3;
}

static void parse_header(request *r, const char *line)
{
    if (strncasecmp(line, "Content-Length:", 15) == 0)
        r->size = strtoul(line + 15, NULL, 10);
    if (strcasecmp(line, "Connection: close") == 0)
        r->keep = false;
    if (strcasecmp(line, "Connection: keep-alive") == 0)
        r->keep = true;
}

/* 1: the headers were read; 0: the client closed the connection before their end. */
static int read_headers(conc_stream *s, request *r)
{
    char *line;
    while (CONC_TRY(conc_stream_read_line(s, &line)) >= 0 && line) {
        if (!*line)
            return 1;
        parse_header(r, line);
    }
    return 0;
}

/* The same for a body; the caller frees it. */
static int read_body(conc_stream *s, request *r)
{
    r->body = malloc(r->size + 1);
    if (!r->body)
        return -ENOMEM;
    return CONC_TRY(conc_stream_read_full(s, r->body, r->size)) == (ssize_t)r->size;
}

/* Serves one request; returns 1 if another may follow on this connection. */
static int converse(conc_stream *s, request *r)
{
    char *line;
    CONC_TRY(conc_stream_read_line(s, &line));
    if (!line)
        return 0;
    if (!parse_request(r, line))
        return answer(s, r, "400 Bad Request", "", 0);
    if (CONC_TRY(read_headers(s, r)) == 0)
        return 0;
    if (r->size > LONGEST_BODY) {
        r->keep = false;
        return answer(s, r, "413 Content Too Large", "", 0);
    }
    if (CONC_TRY(read_body(s, r)) == 0)
        return 0;
    CONC_TRY(answer_request(s, r));
    return r->keep;
}

static int serve(int fd, void *arg)
{
    (void)arg;
    conc_stream s = {0};
    CONC_TRY(conc_stream_open(&s, fd));
    int rc = 1;
    while (rc == 1) {
        request r = {.keep = false};
        rc = converse(&s, &r);
        free(r.body);
    }
    int closed = conc_stream_close(&s);
    if (rc >= 0)
        rc = closed;
    return rc == -ECONNRESET || rc == -EPIPE ? 0 : rc; /* clients may disappear at any time */
}

static int app(void *arg)
{
    char address[120];
    int fd = CONC_TRY(conc_listen(arg));
    CONC_TRY(conc_address(fd, false, address, sizeof address));
    printf("%s\n", address);
    fflush(stdout);
    conc_server server = {.fd = fd, .handler = serve};
    int rc = conc_serve(&server);
    conc_close(fd);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s ADDRESS\n", argv[0]);
        return 2;
    }
    int status = conc_main(app, argv[1]);
    printf("ended\n");
    return status;
}
