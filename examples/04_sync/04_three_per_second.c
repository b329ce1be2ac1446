/* Three a second. Send 20 requests to a service that allows three a second. A semaphore of 3 lets
   all start in one second, unless each permit is held for a second. A token bucket (conc_limiter)
   allows its burst and its rate: with 3 for both, five start in the first second, then three.

   cc 04_three_per_second.c -o three
   ./three
   CONC_CLOCK=virtual ./three     # without waiting

   It prints ../expected/04_sync/04_three_per_second.txt.
   Hint: conc_sleep_until(t + 1) inside the block of CONC_PERMIT keeps the permit until then. */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_sem permits = CONC_SEM(3);
static conc_limiter bucket = {.rate = 3, .burst = 3};
static double starts[20];
static int started;

static int request(void)
{
    starts[started++] = conc_now();
    return conc_sleep(0.1);
}

static int permit_for_request(void *arg)
{
    (void)arg;
    CONC_PERMIT(&permits) {
        CONC_TRY(request());
    }
    return 0;
}

/* Your turn: send the request with a permit, and keep the permit until a second has passed since it
   was sent. */
static int permit_for_second(void *arg)
{
    (void)arg;
    CONC_PERMIT(&permits) {
        double sent = conc_now();
        CONC_TRY(request());
        CONC_TRY(conc_sleep_until(sent + 1));
    }
    return 0;
}

/* Your turn: take a token from the bucket (conc_limiter_acquire), then send the request. */
static int token_for_request(void *arg)
{
    (void)arg;
    CONC_TRY(conc_limiter_acquire(&bucket, 1));
    return request();
}

static int send_all(const char *how, conc_fn *send)
{
    double start = conc_now();
    int most = 0;
    started = 0;
    CONC_TRY(conc_map(send, NULL, 20, 0));
    for (int i = 0, k = 0; i < started; i++) { /* k: the first within the same second */
        while (starts[i] - starts[k] > 0.999)
            k++;
        if (most < i - k + 1)
            most = i - k + 1;
    }
    printf("%s: up to %d in one second\n", how, most);
    for (int i = 0; i < started; i++)
        printf("%.1f%s", starts[i] - start, i < started - 1 ? " " : "\n");
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(send_all("A permit for a request", permit_for_request));
    CONC_TRY(send_all("A permit for a second", permit_for_second));
    return send_all("A token for a request", token_for_request);
}

int main(void) { return conc_main(app, NULL); }
