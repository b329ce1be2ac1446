/* HTTP client. Ask a server for four users concurrently, decode each JSON reply, and print the
   names. libcurl's calls block, so a thread makes each. How many requests are in progress at most?

   cc 03_http_client.c -o http_client -lcurl -lcjson
   ./http_client
   ./http_client localhost:8080 # asks that server, not its own little one

   It prints ../expected/09_io/03_http_client.txt.
   Hint: conc_offload(get, user) calls get(user) in a thread. The JSON calls: cJSON_Parse,
   cJSON_GetObjectItem, cJSON_GetStringValue (they take NULL, and return it), cJSON_Delete. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <cjson/cJSON.h>
#include <curl/curl.h>

static const char *server;  /* its address */
static int in_flight, peak; /* requests */

/* Your turn: copy the string "name" of the JSON in body to name, which has room for 80 bytes. If
   there is none: conc_fail(-EPROTO, "no name in the answer"). */
static int decode(const char *body, char *name)
{
    cJSON *json = cJSON_Parse(body);
    char *value = cJSON_GetStringValue(cJSON_GetObjectItem(json, "name"));
    int rc = value ? snprintf(name, 80, "%s", value) : conc_fail(-EPROTO, "no name in the answer");
    cJSON_Delete(json);
    return rc;
}

static int get(void *user) /* it blocks; the user's name takes the place of the number */
{
    char url[220], body[1000] = "";
    snprintf(url, sizeof url, "http://%s/users/%s", server, (char *)user);
    FILE *stream = fmemopen(body, sizeof body - 1, "w"); /* its last byte stays 0 */
    CURL *curl = curl_easy_init();
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, stream);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, 3L);
    CURLcode code = curl_easy_perform(curl);
    curl_easy_cleanup(curl);
    fclose(stream);
    if (code != CURLE_OK)
        return conc_fail(-EIO, "%s", curl_easy_strerror(code));
    return decode(body, user);
}

/* Your turn: get this user in a thread, and count the request in in_flight and peak. If it fails,
   the others go on: write "Error fetching: no name in the answer", with conc_last_error, to the 80
   bytes of user, and return 0. */
static int fetch(void *user)
{
    peak = ++in_flight > peak ? in_flight : peak;
    if (conc_offload(get, user) < 0)
        snprintf(user, 80, "Error fetching: %s", conc_last_error());
    in_flight--;
    return 0;
}

static int answer(int fd, void *format)
{
    char request[1000], *user = request + 11;         /* "GET /users/1 HTTP..." */
    CONC_TRY(conc_read(fd, request, sizeof request)); /* so short a one comes in one piece */
    return dprintf(fd, format, *user < '4' ? "name" : "error", *user);
}

static int serve(void *own) { return conc_serve(own); }

static int app(void *address)
{
    char users[][80] = {"1", "2", "3", "4"}, own_address[120];
    static conc_server own = {0, answer, "HTTP/1.0 200 OK\r\n\r\n{\"%s\": \"User %c\"}", 0, NULL};
    own.fd = CONC_TRY(conc_listen("localhost:0"));
    CONC_TRY(conc_address(own.fd, false, own_address, sizeof own_address));
    CONC_TRY(conc_spawn(NULL, serve, &own)); /* in the background, until the run ends */
    server = address ? address : own_address;
    CONC_TRY(CONC_MAP(fetch, users));
    for (size_t i = 0; i < CONC_LEN(users); i++)
        printf("/users/%zu: %s\n", i + 1, users[i]);
    printf("At most %d requests at once\n", peak);
    return 0;
}

int main(int argc, char **argv) { return conc_main(app, argc > 1 ? argv[1] : NULL); }
