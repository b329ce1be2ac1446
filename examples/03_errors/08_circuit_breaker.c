/* Circuit breaker. After 5 consecutive failures no call reaches the service for 60 s: the circuit
   is open. Then it is half open: one trial call decides for all; the others are refused until it
   returns. Success closes the circuit, a failure opens it again.

   cc 08_circuit_breaker.c -o breaker
   CONC_CLOCK=virtual ./breaker     # in real time it takes two minutes

   It prints ../expected/03_errors/08_circuit_breaker.txt.
   Hint: set the state to half open before the trial waits. A cancelled call proves nothing: after a
   cancelled trial the next call is the trial. A refused call returns -EAGAIN. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    int threshold, failures;
    double timeout, opened;
    enum { CLOSED, OPEN, HALF_OPEN } state;
} circuit_breaker;

/* Your turn: refuse or call fn(arg), as the state says; then set the state, the failures in a row,
   and when the circuit opened. Return what fn returned. */
static int breaker_call(circuit_breaker *b, conc_fn *fn, void *arg)
{
    bool trial = b->state == OPEN && conc_now() >= b->opened + b->timeout;
    if (b->state != CLOSED && !trial)
        return -EAGAIN;
    b->state = trial ? HALF_OPEN : CLOSED;
    int rc = fn(arg);
    if (!trial && b->state != CLOSED)
        return rc; /* it began before the circuit opened: old news */
    if (rc == -ECANCELED) {
        b->state = trial ? OPEN : CLOSED; /* the next call is the trial */
    } else if (rc >= 0) {
        b->failures = 0;
        b->state = CLOSED;
    } else if (++b->failures >= b->threshold) {
        b->opened = conc_now();
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
    return up ? 0 : -ECONNREFUSED;
}

static int client(void *arg)
{
    const char *states[] = {"closed", "open", "half open"};
    int rc = breaker_call(&breaker, service, arg);
    printf("%7.3f s: %s (%s, %d calls)\n", conc_now() - start, rc < 0 ? conc_strerror(rc) : "ok",
           states[breaker.state], calls);
    return rc == -ECANCELED ? rc : 0;
}

static int app(void *arg)
{
    start = conc_now();
    CONC_TRY(conc_map_limit(1, client, arg, 6, 0));      /* the sixth finds it open */
    CONC_TRY(conc_sleep_until(breaker.opened + 59.999)); /* still refused */
    CONC_TRY(client(arg));
    CONC_TRY(conc_sleep_until(breaker.opened + 60)); /* the trial fails */
    CONC_TRY(client(arg));
    CONC_TRY(conc_sleep_until(breaker.opened + 60));
    up = conc_timeout(0.5, client, arg) < 0; /* a trial that is cancelled; one of three is next */
    return conc_map(client, arg, 3, 0);
}

int main(void) { return conc_main(app, NULL); }
