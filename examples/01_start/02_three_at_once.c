/* Three at once: gather starts all, waits for all, and the results stand in the order of the calls.
 *   cc 02_three_at_once.c -o three && ./three        (CONC_CLOCK=virtual ./three takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *url;
    double delay;
    char data[32];
} request;

static int fetch_data(void *arg)
{
    request *r = arg;
    printf("Fetching %s...\n", r->url);
    CONC_TRY(conc_sleep(r->delay)); /* while this one waits, the others run */
    printf("Fetched %s\n", r->url);
    snprintf(r->data, sizeof r->data, "Data from %s", r->url);
    return 0;
}

static int fetch_three(double delay1, double delay2, double delay3)
{
    request a = {"url1", delay1, ""}, b = {"url2", delay2, ""}, c = {"url3", delay3, ""};
    double start = conc_now();
    CONC_TRY(CONC_GATHER(CONC_CALL(fetch_data, &a), CONC_CALL(fetch_data, &b),
                         CONC_CALL(fetch_data, &c)));
    printf("All tasks completed: %s, %s, %s\n", a.data, b.data, c.data);
    printf("%.1f seconds\n", conc_now() - start);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(fetch_three(2, 2, 2)); /* 2 s, not 6 s */
    printf("\n");
    CONC_TRY(fetch_three(2, 1, 3)); /* as long as the slowest */
    return 0;
}

int main(void) { return conc_main(app, NULL); }
