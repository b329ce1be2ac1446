/* dash_conc COUNT USERS ORDERS RECOMMENDATIONS NOTIFICATIONS [whole]: COUNT dashboards, 20 at a
 * time, each of four calls at once to these services. With "whole" they are those of
 * examples/11_apps/04_orchestrator.c, with its time limits, retries, circuit breakers, cache
 * (which has none of them yet) and traces; without, only the calls and their JSON, as in the
 * other programs that do this work. */
#define main orchestrator_main
#define measure orchestrator_measure
#include "../../../examples/11_apps/04_orchestrator.c"
#undef main
#undef measure
#include "measure.h"

enum { AT_ONCE = 20 };

typedef struct {
    orchestrator o;
    bool whole;
    int next, end, count;
    long long sum; /* of the users in the answers */
    double *times; /* milliseconds of each dashboard */
} work;

typedef struct {
    work *w;
    int index, user;
    cJSON *data;
} one_call;

static int get_data(void *arg)
{
    one_call *c = arg;
    const service *s = &c->w->o.services[c->index];
    char url[128];
    CONC_AUTO(fetch_response, r) = {0};
    snprintf(url, sizeof url, "http://%s/%s/%d", s->address, s->name, c->user);
    CONC_TRY(fetch(&c->w->o.client, url, NULL, &r));
    c->data = cJSON_ParseWithLength(r.body, r.size);
    return c->data ? 0 : conc_fail(-EPROTO, "%s: no JSON", url);
}

static int get_four(work *w, int user, cJSON **json)
{
    one_call calls[SERVICES];
    for (int i = 0; i < SERVICES; i++)
        calls[i] = (one_call){w, i, user, NULL};
    CONC_TRY(CONC_MAP(get_data, calls));
    *json = cJSON_CreateObject();
    for (int i = 0; i < SERVICES; i++)
        cJSON_AddItemToObject(*json, w->o.services[i].name, calls[i].data);
    return 0;
}

/* The whole orchestrator wraps a service's reply in "data". */
static long long sum_users(const cJSON *json)
{
    long long sum = 0;
    for (int i = 0; i < SERVICES; i++) {
        const cJSON *item = cJSON_GetObjectItem(json, catalogue[i].name);
        const cJSON *data = cJSON_GetObjectItem(item, "data");
        sum += cJSON_GetObjectItem(data ? data : item, "user")->valueint;
    }
    return sum;
}

static int get_one(work *w, int number)
{
    cJSON *json = NULL;
    double began = conc_now();
    int rc =
        w->whole ? get_dashboard(&w->o, number, NULL, true, &json) : get_four(w, number, &json);
    CONC_TRY(rc);
    char *text = cJSON_PrintUnformatted(json);
    free(text);
    w->times[number % w->count] = 1e3 * (conc_now() - began);
    w->sum += sum_users(json);
    cJSON_Delete(json);
    return 0;
}

static int get_some(void *arg)
{
    work *w = arg;
    while (w->next < w->end)
        CONC_TRY(get_one(w, w->next++));
    return 0;
}

/* Starting with the number `first`. */
static int get_all(work *w, int first)
{
    conc_group g = {0};
    w->next = first;
    w->end = first + w->count;
    w->sum = 0;
    for (int i = 0; i < AT_ONCE; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, get_some, w));
    return conc_group_wait(&g);
}

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int bench(void *arg)
{
    work *w = arg;
    CONC_TRY(orchestrator_open(&w->o));
    CONC_TRY(get_all(w, w->count)); /* opens the connections */
    measure began = measure_begin();
    CONC_TRY(get_all(w, 0));
    measure took = measure_end(began);
    qsort(w->times, (size_t)w->count, sizeof *w->times, by_time);
    measure_print_with(took, w->count, w->sum, w->times[(w->count - 1) * 50 / 100],
                       w->times[(w->count - 1) * 99 / 100]);
    return orchestrator_close(&w->o);
}

int main(int argc, char **argv)
{
    work w = {.whole = argc == 7, .count = argc > 5 ? atoi(argv[1]) : 0};
    w.times = calloc((size_t)(w.count > 0 ? w.count : 1), sizeof *w.times);
    if (w.count <= 0 || !w.times) {
        fprintf(stderr, "usage: dash_conc COUNT ADDRESS ADDRESS ADDRESS ADDRESS [whole]\n");
        return 2;
    }
    for (int i = 0; i < SERVICES; i++)
        options.address[i] = argv[2 + i];
    options.trace = "/dev/null";
    int status = conc_main(bench, &w);
    free(w.times);
    return status;
}
