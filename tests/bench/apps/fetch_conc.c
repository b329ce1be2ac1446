/* fetch_conc ADDRESS COUNT: COUNT requests with fetch.h, 50 at a time, over connections that stay
 * open. */
#define CONC_STATIC
#include "../../../conc_sync.h"
#include "../../../examples/common/fetch.h"
#include "measure.h"

enum { AT_ONCE = 50 };

typedef struct {
    fetch_client client;
    const char *address;
    int next, count, answers; /* of the requests */
    long long sum;            /* of the numbers in the answers */
} work;

static int get(work *w, int number)
{
    char url[160];
    CONC_AUTO(fetch_response, r) = {0};
    snprintf(url, sizeof url, "http://%s/%d", w->address, number);
    CONC_TRY(fetch(&w->client, url, NULL, &r));
    w->answers += r.status == 200 && r.size == 1000;
    w->sum += atoi(r.body);
    return 0;
}

static int get_some(void *arg)
{
    work *w = arg;
    while (w->next < w->count)
        CONC_TRY(get(w, w->next++));
    return 0;
}

static int get_all(work *w, int count)
{
    conc_group g = {0};
    w->next = w->answers = 0;
    w->sum = 0;
    w->count = count;
    for (int i = 0; i < AT_ONCE; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, get_some, w));
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    char **argv = arg;
    work w = {.address = argv[1], .client = {.per_host = AT_ONCE}};
    int rc = get_all(&w, 10 * AT_ONCE); /* opens the connections */
    measure began = measure_begin();
    if (rc == 0)
        rc = get_all(&w, atoi(argv[2]));
    measure took = measure_end(began);
    fetch_close(&w.client);
    CONC_TRY(rc);
    measure_print(took, w.answers, w.sum);
    return 0;
}

int main(int argc, char **argv)
{
    bool valid = argc == 3 && atoi(argv[2]) > 0;
    if (valid)
        return conc_main(app, argv);
    fprintf(stderr, "usage: fetch_conc ADDRESS COUNT\n");
    return 2;
}
