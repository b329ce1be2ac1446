/* Circuit breaker: after 5 failures nobody calls the service for 60 s; then one call tries it,
 * and decides for all.
 *   cc 08_circuit_breaker.c -o breaker && CONC_CLOCK=virtual ./breaker        (in real time it
 *   takes two minutes)
 */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    int threshold;
    double timeout;
    int failures;
    double last_failure;
    enum { CLOSED, OPEN, HALF_OPEN } state;
} circuit_breaker;

static int breaker_call(circuit_breaker *b, conc_fn *fn, void *arg)
{
    bool trial = b->state == OPEN && conc_now() >= b->last_failure + b->timeout;
    if (b->state != CLOSED && !trial)
        return conc_fail(-EAGAIN, "refused, the circuit is open");
    if (trial)
        /* set before the call waits: all others are refused until it returns */
        b->state = HALF_OPEN;
    int rc = fn(arg);
    if (!trial && b->state != CLOSED)
        return rc; /* it began before the circuit opened: old news */
    if (rc == -ECANCELED) {
        /* tells nothing about the service: the next call is the trial */
        b->state = trial ? OPEN : CLOSED;
    } else if (rc >= 0) {
        b->failures = 0;
        b->state = CLOSED;
    } else if (++b->failures >= b->threshold || trial) {
        b->last_failure = conc_now();
        b->state = OPEN;
    }
    return rc;
}

static circuit_breaker breaker = {.threshold = 5, .timeout = 60};
static int calls; /* that reached the service */
static bool up;
static double start;

static int service(void *arg)
{
    (void)arg;
    calls++;
    CONC_TRY(conc_sleep(1));
    return up ? 0 : conc_fail(-EIO, "the service is down");
}

static int client(void *arg)
{
    const char *states[] = {"closed", "open", "half open"};
    int rc = breaker_call(&breaker, service, arg);
    const char *text = rc < 0 ? conc_last_error() : "ok";
    printf("%7.3f s: %s (%s, call %d)\n", conc_now() - start, text, states[breaker.state], calls);
    return rc == -ECANCELED ? rc : 0;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    for (int i = 0; i < 6; i++) /* the sixth finds it open */
        CONC_TRY(client(NULL));
    CONC_TRY(conc_sleep_until(breaker.last_failure + 59.999));
    CONC_TRY(client(NULL));
    CONC_TRY(conc_sleep_until(breaker.last_failure + 60));
    CONC_TRY(client(NULL)); /* the trial fails */

    up = true;
    CONC_TRY(conc_sleep_until(breaker.last_failure + 60));
    CONC_TRY(conc_map(client, NULL, 3, 0)); /* three at once: one of them is the trial */
    return client(NULL);
}

int main(void) { return conc_main(app, NULL); }
