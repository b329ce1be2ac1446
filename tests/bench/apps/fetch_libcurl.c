/* fetch_libcurl ADDRESS COUNT [reuse]: the work of fetch_conc.c with libcurl alone: its multi
 * interface, and a loop on epoll. Each request has its own easy handle, as with fetch.h; with reuse
 * there are 50, and each serves one request after the other. */
#include "measure.h"
#include <curl/curl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { AT_ONCE = 50, EVENTS = 64 };

typedef struct {
    char *data;
    size_t size, room;
} body;

static const char *address;
static bool reuse;
static CURLM *multi;
static int epoll;
static long timeout = -1; /* milliseconds until curl must be called; -1: never */
static double timeout_from;
static int next, count, answers;
static long long sum;

static void must(bool is_right, const char *what)
{
    if (is_right)
        return;
    fprintf(stderr, "fetch_libcurl: %s\n", what);
    exit(1);
}

/* ---- the loop ---- */

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *known)
{
    (void)easy;
    (void)arg;
    struct epoll_event e = {.data.fd = fd};
    if (what == CURL_POLL_REMOVE) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
        return 0;
    }
    if (what & CURL_POLL_IN)
        e.events |= EPOLLIN;
    if (what & CURL_POLL_OUT)
        e.events |= EPOLLOUT;
    must(epoll_ctl(epoll, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &e) == 0, "epoll_ctl");
    curl_multi_assign(multi, fd, &epoll);
    return 0;
}

static int on_timer(CURLM *same, long milliseconds, void *arg)
{
    (void)same;
    (void)arg;
    timeout = milliseconds;
    timeout_from = measure_clock(CLOCK_MONOTONIC);
    return 0;
}

static void act(curl_socket_t fd, int events)
{
    int running;
    CURLMcode code = curl_multi_socket_action(multi, fd, events, &running);
    must(code == CURLM_OK, curl_multi_strerror(code));
}

/* Milliseconds until curl must be called; -1: never. */
static int time_left(void)
{
    if (timeout <= 0)
        return (int)timeout;
    double left = timeout_from + (double)timeout - measure_clock(CLOCK_MONOTONIC);
    return left > 0 ? (int)left + 1 : 0;
}

static void wait_and_act(void)
{
    struct epoll_event ready[EVENTS];
    int n = epoll_wait(epoll, ready, EVENTS, time_left());
    for (int i = 0; i < n; i++) {
        int events = 0;
        if (ready[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
            events |= CURL_CSELECT_IN;
        if (ready[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
            events |= CURL_CSELECT_OUT;
        act(ready[i].data.fd, events);
    }
    if (time_left() == 0) {
        timeout = -1;
        act(CURL_SOCKET_TIMEOUT, 0);
    }
}

/* ---- the requests ---- */

static size_t on_body(char *bytes, size_t one, size_t n, void *arg)
{
    body *b = arg;
    (void)one;
    while (b->room - b->size <= n) {
        b->room = b->room ? b->room * 2 : 4096;
        b->data = realloc(b->data, b->room);
        must(b->data, "no memory");
    }
    memcpy(b->data + b->size, bytes, n);
    b->size += n;
    b->data[b->size] = 0;
    return n;
}

static CURL *new_handle(void)
{
    CURL *easy = curl_easy_init();
    body *b = calloc(1, sizeof *b);
    must(easy && b, "no memory");
    curl_easy_setopt(easy, CURLOPT_PRIVATE, b);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, b);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_ACCEPT_ENCODING, "");
    return easy;
}

static void begin(CURL *easy)
{
    char url[160];
    snprintf(url, sizeof url, "http://%s/%d", address, next++);
    curl_easy_setopt(easy, CURLOPT_URL, url);
    must(curl_multi_add_handle(multi, easy) == CURLM_OK, "curl_multi_add_handle");
}

static void end(CURL *easy)
{
    long status = 0;
    body *b = NULL;
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &b);
    answers += status == 200 && b->size == 1000;
    sum += b->data ? atoi(b->data) : 0;
    b->size = 0;
    curl_multi_remove_handle(multi, easy);
}

static void free_handle(CURL *easy)
{
    body *b = NULL;
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &b);
    free(b->data);
    free(b);
    curl_easy_cleanup(easy);
}

/* Begins the next request after one that has ended; returns how many fewer are in progress. */
static int go_on(CURL *easy)
{
    bool more = next < count;
    if (!more || !reuse) {
        free_handle(easy);
        easy = NULL;
    }
    if (!more)
        return 1;
    begin(easy ? easy : new_handle());
    return 0;
}

static void get_all(int n)
{
    int under_way = 0, left;
    next = answers = 0;
    sum = 0;
    count = n;
    for (; under_way < AT_ONCE && next < count; under_way++)
        begin(new_handle());
    while (under_way > 0) {
        CURLMsg *m;
        wait_and_act();
        while ((m = curl_multi_info_read(multi, &left))) {
            CURL *easy = m->easy_handle;
            must(m->data.result == CURLE_OK, curl_easy_strerror(m->data.result));
            end(easy);
            under_way -= go_on(easy);
        }
    }
}

int main(int argc, char **argv)
{
    bool valid = (argc == 3 || argc == 4) && atoi(argv[2]) > 0;
    if (!valid) {
        fprintf(stderr, "usage: fetch_libcurl ADDRESS COUNT [reuse]\n");
        return 2;
    }
    address = argv[1];
    reuse = argc == 4;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    multi = curl_multi_init();
    must(epoll >= 0 && multi, "it does not begin");
    curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long)AT_ONCE);
    get_all(10 * AT_ONCE); /* opens the connections */
    measure began = measure_begin();
    get_all(atoi(argv[2]));
    measure took = measure_end(began);
    measure_print(took, answers, sum);
    curl_multi_cleanup(multi);
    curl_global_cleanup();
    close(epoll);
}
