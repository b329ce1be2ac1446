/* http_server: answers GET /N with N followed by spaces, 1000 bytes in all. Prints its address, and
 * ends when stdin does. */
#define CONC_STATIC
#include "../../../conc.h"
#include "../../../examples/common/http.h"

static int answer(http_connection *http, void *arg)
{
    (void)arg;
    char body[1001];
    snprintf(body, sizeof body, "%-1000d", atoi(http->path + 1));
    return http_respond(http, 200, body, sizeof body - 1);
}

static int serve(int fd, void *arg)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, answer, arg);
}

static int listen_and_serve(void *arg)
{
    (void)arg;
    char address[120];
    conc_server server = {.handler = serve};
    server.fd = CONC_TRY(conc_listen("127.0.0.1:0"));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    printf("%s\n", address);
    fflush(stdout);
    return conc_serve(&server);
}

static int app(void *arg)
{
    char bytes[100];
    CONC_TRY(conc_spawn(NULL, listen_and_serve, arg));
    while (CONC_TRY(conc_read(STDIN_FILENO, bytes, sizeof bytes)) > 0)
        continue;
    return 0;
}

int main(void) { return conc_main(app, NULL); }
