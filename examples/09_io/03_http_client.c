/* HTTP client: libcurl speaks HTTP, the loop does its waiting. A task simply calls fetch(), and
 * many can do so at once.
 *   cc 03_http_client.c -o http_client -lcurl
 *   ./http_client                                           asks a little server of its own
 *   ./http_client http://localhost/ https://example.com/    asks for these
 */
#define CONC_STATIC
#include "../../conc.h"
#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

/* curl's transfers, and the connections it keeps for the next ones */
static CURLM *multi;
static long connections;              /* opened so far */
static struct curl_slist *connect_to; /* where to, instead of the URL's host: the little server */

/* ---- What a task calls ---------------------------------------------------------------------- */

typedef struct {
    char *body; /* release it with free() */
    size_t size;
} response;

typedef struct {
    conc_scope waiting; /* around fetch's wait, cancelled when the transfer has ended */
    CURLcode code;
    char text[CURL_ERROR_SIZE];
} transfer;

static CURL *request(const char *url, FILE *body, transfer *t)
{
    CURL *easy = curl_easy_init();
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, body);
    curl_easy_setopt(easy, CURLOPT_PRIVATE, t);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, t->text);
    curl_easy_setopt(easy, CURLOPT_FAILONERROR, 1L); /* status 400 and above */
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_CONNECT_TO, connect_to);
    return easy;
}

static int fetch(const char *url, response *out)
{
    *out = (response){0};
    FILE *body = open_memstream(&out->body, &out->size);
    if (!body)
        return -ENOMEM;
    transfer t = {.code = CURLE_FAILED_INIT};
    CURL *easy = request(url, body, &t);
    conc_scope_begin(&t.waiting, CONC_FOREVER);
    if (curl_multi_add_handle(multi, easy) != CURLM_OK)
        conc_scope_cancel(&t.waiting);
    /* 0: ended; -ECANCELED: nobody wants it any more */
    int rc = conc_scope_end(&t.waiting, conc_sleep(CONC_FOREVER));

    long opened = 0;
    curl_multi_remove_handle(multi, easy);
    curl_easy_getinfo(easy, CURLINFO_NUM_CONNECTS, &opened);
    connections += opened;
    curl_easy_cleanup(easy);
    fclose(body);
    if (rc == 0 && t.code != CURLE_OK)
        rc = conc_fail(-EIO, "%s", *t.text ? t.text : curl_easy_strerror(t.code));
    if (rc < 0) {
        free(out->body);
        *out = (response){0};
    }
    return rc;
}

/* ---- curl on the loop: it says which sockets and what time to wait for; a task for each waits,
 * then has it go on - */

static void go_on(curl_socket_t fd, int ready) /* curl works until it would have to wait */
{
    int count;
    CURLMsg *m;
    transfer *t;
    curl_multi_socket_action(multi, fd, ready, &count);
    while ((m = curl_multi_info_read(multi, &count))) {
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &t);
        t->code = m->data.result;
        conc_scope_cancel(&t->waiting);
    }
}

typedef struct {
    curl_socket_t fd;
    int events;         /* what to wait for; 0: nothing any more */
    conc_scope waiting; /* around the wait, cancelled when events changed */
} watch;

_Static_assert(CURL_POLL_IN == CONC_READABLE && CURL_POLL_OUT == CONC_WRITABLE,
               "curl's numbers are conc's");
_Static_assert(CURL_CSELECT_IN == CONC_READABLE && CURL_CSELECT_OUT == CONC_WRITABLE, "these, too");

static int watch_socket(void *arg)
{
    watch *w = arg;
    int ready = 0;
    while (w->events && ready >= 0) {
        w->waiting = (conc_scope){0};
        conc_scope_begin(&w->waiting, CONC_FOREVER);
        ready = conc_scope_end(&w->waiting, conc_wait_fd(w->fd, w->events));
        if (w->events && ready > 0)
            go_on(w->fd, ready);
    }
    if (w->events)
        curl_multi_assign(multi, w->fd, NULL);
    free(w);
    return ready < 0 ? ready : 0;
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *user, void *known)
{
    (void)easy, (void)user;
    watch *w = known ? known : calloc(1, sizeof *w);
    if (!known && (!w || conc_spawn(NULL, watch_socket, w) < 0)) {
        free(w);
        return -1;
    }
    w->fd = fd;
    w->events = what == CURL_POLL_REMOVE ? 0 : what;
    conc_scope_cancel(&w->waiting);
    curl_multi_assign(multi, fd, w->events ? w : NULL); /* known, the next time */
    return 0;
}

static double delay = CONC_FOREVER; /* until curl wants to go on */
static conc_scope timer;            /* around the sleep of that length */

static int watch_timer(void *arg)
{
    (void)arg;
    for (;;) {
        timer = (conc_scope){0};
        conc_scope_begin(&timer, delay);
        int rc = conc_scope_end(&timer, conc_sleep(CONC_FOREVER));
        if (rc != -ETIMEDOUT)
            return rc;
        delay = CONC_FOREVER;
        go_on(CURL_SOCKET_TIMEOUT, 0);
    }
}

static int on_timer(CURLM *m, long milliseconds, void *user)
{
    (void)m, (void)user;
    delay = milliseconds < 0 ? CONC_FOREVER : (double)milliseconds / 1000;
    conc_scope_set_timeout(&timer, delay); /* no effect while nobody sleeps */
    return 0;
}

/* ---- The exercise --------------------------------------------------------------------------- */

typedef struct {
    const char *url;
    response response;
} page;

static int get(void *p) { return fetch(((page *)p)->url, &((page *)p)->response); }
static int get_in_time(void *p) { return conc_timeout(5, get, p); }

static void show(const conc_call *call, const page *p)
{
    if (call->result < 0)
        printf("Error fetching %s: %s\n", p->url, call->text);
    else
        printf("%s: %zu bytes, %.60s\n", p->url, p->response.size, p->response.body);
    /* JSON, with cJSON: cJSON *json = cJSON_ParseWithLength(p->response.body, p->response.size); */
}

static int fetch_all(char **urls, size_t count)
{
    conc_call calls[count];
    page pages[count];
    for (size_t i = 0; i < count; i++) {
        pages[i] = (page){.url = urls[i]};
        calls[i] = (conc_call)CONC_CALL(get_in_time, &pages[i]);
    }
    int rc = conc_gather_all(calls, count); /* an error is a result like any other */
    for (size_t i = 0; i < count; i++) {
        if (rc == 0)
            show(&calls[i], &pages[i]);
        free(pages[i].response.body);
    }
    return rc;
}

static int answer(int fd, void *arg) /* each after a second, but for the one that hangs */
{
    (void)arg;
    char *line, path[40] = "";
    CONC_AUTO(conc_stream, peer) = {0};
    CONC_TRY(conc_stream_open(&peer, fd));
    while (CONC_TRY(conc_stream_read_line(&peer, &line)) >= 0 && line) {
        if (sscanf(line, "GET %39s", path) == 1 || *line)
            continue; /* an empty line ends the request */
        CONC_TRY(conc_sleep(strcmp(path, "/hangs") ? 1 : CONC_FOREVER));
        const char *status = strcmp(path, "/broken") ? "200 OK" : "500 Internal Server Error";
        CONC_TRY(conc_stream_printf(&peer,
                                    "HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n{\"path\": \"%s\"}",
                                    status, strlen(path) + 12, path));
    }
    return 0;
}

static int serve(void *server) { return conc_serve(server); }

static int demonstrate(void)
{
    char address[120], there[130];
    char *urls[] = {"http://demo/users/1", "http://demo/users/2", "http://demo/users/3",
                    "http://demo/broken", "http://demo/hangs"};
    static conc_server server = {.handler = answer}; /* it stays longer than this function */
    server.fd = CONC_TRY(conc_listen("localhost:0"));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    snprintf(there, sizeof there, "::%s", address);
    connect_to = curl_slist_append(NULL, there);
    CONC_TRY(conc_spawn(NULL, serve, &server)); /* in the background, until the run ends */

    for (size_t count = CONC_LEN(urls); count >= 3; count -= 2) {
        double start = conc_now();
        connections = 0;
        CONC_TRY(fetch_all(urls, count));
        printf("%zu requests, %ld new connections, %.0f s\n", count, connections,
               conc_now() - start);
    }
    return 0;
}

static int app(void *arg)
{
    char **urls = arg;
    size_t count = 0;
    while (urls[count])
        count++;
    if (count > 100)
        return conc_fail(-E2BIG, "%zu URLs are too many", count);
    CONC_TRY(conc_spawn(NULL, watch_timer, NULL));
    return count ? fetch_all(urls, count) : demonstrate();
}

int main(int argc, char **argv)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
    multi = curl_multi_init();
    curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
    int status = conc_main(app, argc > 0 ? argv + 1 : argv);
    curl_multi_cleanup(multi); /* after the run: no task waits for curl any more */
    curl_slist_free_all(connect_to);
    curl_global_cleanup();
    return status;
}
