/* Three a second: twenty requests through a semaphore of 3. That alone limits how many run at once; it becomes a rate
 * when each request keeps its permit for the whole second.
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
    starts[started++] = conc_now();
    return conc_sleep(0.1);
}

static int request_at_once(void *arg)
{
    (void)arg;
    CONC_PERMIT(&permits) { CONC_TRY(request()); }
    return 0;
}

static int request_a_second(void *arg)
{
    (void)arg;
    CONC_PERMIT(&permits)
    {
        double start = conc_now();
        CONC_TRY(request());
        CONC_TRY(conc_sleep_until(start + 1)); /* the answer is here; the permit stays until its second is over */
    }
    return 0; /* conc_limiter does this without a second's delay of the answer: see 10_patterns */
}

static void report(double start)
{
    int most = 0;
    for (int i = 0; i < REQUESTS; i++) {
        int within = 0; /* the starts in the second that begins with this one */
        for (int k = i; k < REQUESTS && starts[k] < starts[i] + 1; k++)
            within++;
        if (within > most)
            most = within;
        bool first = i == 0 || starts[i] >= starts[i - 1] + 0.05;
        if (first)
            printf("%s%.1f s:", i ? "\n" : "", starts[i] - start);
        printf(" #%d", i + 1);
    }
    printf("\nUp to %d in one second\n\n", most);
}

static int app(void *arg)
{
    (void)arg;
    conc_fn *clients[] = {request_at_once, request_a_second};
    for (size_t i = 0; i < CONC_LEN(clients); i++) {
        double start = conc_now();
        started = 0;
        CONC_TRY(conc_map(clients[i], NULL, REQUESTS, 0));
        report(start);
    }
    return 0;
}

int main(void) { return conc_main(app, NULL); }
