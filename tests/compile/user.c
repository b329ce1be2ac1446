/* A program as users write it: variables that a call sets, and CONC_TRY around the call. */
#ifndef CONC_IMPLEMENTATION
#define CONC_STATIC
#endif
#if __has_include("conc_pool.h") /* else conc.h is the single file, with all of it */
#include "conc_pool.h"
#include "conc_sync.h"
#else
#include "conc.h"
#endif
#include <stdio.h>

static conc_queue queue = CONC_QUEUE(int, 10);
static conc_future future;
static conc_lock lock;
static conc_sem sem = CONC_SEM(1);
static conc_channel channel = CONC_CHANNEL(int, 10);

static int child(void *arg)
{
    const int *n = arg;
    CONC_LOCKED(&lock) {
        CONC_TRY(conc_yield());
    }
    CONC_PERMIT(&sem) {
        CONC_TRY(conc_yield());
    }
    for (int i = 0; i < 2; i++) {
        CONC_TRY(conc_queue_put(&queue, n));
        CONC_TRY(conc_channel_send(&channel, n));
    }
    return conc_future_set(&future, *n, &queue);
}

static int job(void *arg) { return *(int *)arg; }

static int emits(conc_gen *g, void *arg) { return conc_gen_emit(g, arg); }

static int tasks(void *arg)
{
    conc_group g = {0};
    conc_task t, *next;
    int result;
    CONC_TRY_IN(&g, conc_spawn_task(&g, &t, child, arg));
    CONC_TRY_IN(&g, conc_join(&t, &result));
    CONC_TRY_IN(&g, conc_spawn_task(&g, &t, job, arg));
    if (CONC_TRY_IN(&g, conc_group_next(&g, &next)) == 1)
        printf("%s %d\n", conc_name(next), result);
    return conc_group_wait(&g);
}

static int items(void *arg)
{
    int item, first, second, third, fourth;
    void *value;
    conc_gen g = {0};
    CONC_TRY(conc_gen_open(&g, emits, arg, sizeof item));
    int more = CONC_TRY(conc_gen_next(&g, &item));
    CONC_TRY(conc_gen_close(&g));
    CONC_TRY(conc_queue_get(&queue, &first));
    CONC_TRY(conc_queue_try_get(&queue, &second));
    CONC_TRY(conc_channel_recv(&channel, &third));
    CONC_TRY(conc_channel_try_recv(&channel, &fourth));
    int rc = CONC_TRY(conc_future_wait(&future, &value));
    int sum = first + second + third + fourth + rc;
    return more && value ? sum + item : sum;
}

static int one_of_several(void)
{
    int item;
    conc_case cases[] = {CONC_CASE_GET(&queue, &item), CONC_CASE_AFTER(0.1)};
    int which = CONC_TRY(conc_select(cases, CONC_LEN(cases)));
    return which == 0 ? item : 0;
}

static int sockets(void)
{
    char address[100], bytes[10], *line;
    conc_stream s = {0};
    int fd = CONC_TRY(conc_listen("127.0.0.1:0"));
    CONC_TRY(conc_address(fd, false, address, sizeof address));
    int here = CONC_TRY(conc_dial(address)), there = CONC_TRY(conc_accept(fd));
    CONC_TRY(conc_write_full(here, "1\n2\n", 4));
    ssize_t n = CONC_TRY(conc_read_full(there, bytes, 2));
    CONC_TRY(conc_stream_open(&s, there));
    ssize_t length = CONC_TRY(conc_stream_read_line(&s, &line));
    printf("%s %.*s %s\n", address, (int)n, bytes, length && line ? line : "");
    CONC_TRY(conc_stream_close(&s));
    CONC_TRY(conc_close(here));
    return conc_close(fd);
}

static int pools(void *arg)
{
    conc_pool p = {.threads = 1};
    conc_job j;
    int result, status;
    void *data;
    size_t size;
    struct sockaddr_storage found[2];
    const char *const argv[] = {"true", NULL};
    conc_child c = {.argv = argv};
    CONC_TRY(conc_pool_open(&p));
    CONC_TRY(conc_pool_submit(&p, &j, job, arg));
    CONC_TRY(conc_job_wait(&j, &result));
    CONC_TRY(conc_pool_close(&p));
    CONC_TRY(conc_child_start(&c));
    CONC_TRY(conc_child_wait(&c, &status));
    CONC_TRY(conc_child_close(&c));
    CONC_TRY(conc_file_read("/dev/null", &data, &size));
    int n = CONC_TRY(conc_resolve("127.0.0.1", "80", found, CONC_LEN(found)));
    printf("%d %d %zu %p %d\n", result, status, size, data, n ? found[0].ss_family : 0);
    conc_free(data);
    return 0;
}

static int app(void *arg)
{
    conc_scope s = {0};
    CONC_TRY(conc_scope_begin(&s, 10));
    CONC_TRY_IN(&s, tasks(arg));
    CONC_TRY_IN(&s, items(arg));
    CONC_TRY_IN(&s, one_of_several());
    CONC_TRY_IN(&s, sockets());
    CONC_TRY_IN(&s, pools(arg));
    return conc_scope_end(&s, 0);
}

int main(void)
{
    int number = 3;
    return conc_main(app, &number);
}
