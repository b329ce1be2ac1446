/* Three a second: twenty requests through a semaphore of 3. That alone limits how many run at
 * once; it becomes a rate when each request keeps its permit for the whole second.
 *   cc 04_three_per_second.c -o three && ./three        (CONC_CLOCK=virtual ./three takes no time)
 */
#define CONC_STATIC
#include "../../conc_sync.h"

enum { REQUESTS = 20 };

static conc_sem permits = CONC_SEM(3);
static double starts[REQUESTS];
static int started;

static int request(void)
{
    int n = started++;
    starts[n] = conc_now();
    CONC_TRY(conc_sleep(0.1));
    return n;
}

static int request_at_once(void *arg)
{
    (void)arg;
    CONC_PERMIT(&permits) {
        CONC_TRY(request());
    }
    return 0;
}

/* conc_limiter does the same without keeping back the answer. */
static int request_a_second(void *arg)
{
    (void)arg;
    CONC_PERMIT(&permits) {
        int n = CONC_TRY(request());
        /* the answer is here; the permit stays until its second is over */
        CONC_TRY(conc_sleep_until(starts[n] + 1));
    }
    return 0;
}

static void report(const char *permit, double start)
{
    int most = 0;
    printf("A permit for %s:", permit);
    for (int i = 0; i < REQUESTS; i++) {
        int within = 0; /* the starts in the second that begins with this one */
        for (int k = i; k < REQUESTS && starts[k] < starts[i] + 1; k++)
            within++;
        if (within > most)
            most = within;
        if (i == 0 || starts[i] > starts[i - 1] + 0.05)
            printf("\n%.1f s:", starts[i] - start);
        printf(" #%d", i + 1);
    }
    printf("\nUp to %d in one second\n", most);
}

static int send_requests(const char *permit, conc_fn *client)
{
    double start = conc_now();
    started = 0;
    CONC_TRY(conc_map(client, NULL, REQUESTS, 0));
    report(permit, start);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(send_requests("a request", request_at_once));
    return send_requests("a second", request_a_second);
}

int main(void) { return conc_main(app, NULL); }
