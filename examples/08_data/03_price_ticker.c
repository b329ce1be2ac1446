/* Price ticker: a generator of prices without an end; the consumer stops below 97.00 and closes it.
 *   cc 03_price_ticker.c -o ticker && ./ticker
 *   CONC_CLOCK=virtual ./ticker                   takes no time
 *   CONC_RANDOM=2 CONC_CLOCK=virtual ./ticker     other random numbers
 */
#define CONC_STATIC
#include "../../conc.h"
#include <stdlib.h>

static double start;

static int stock_prices(conc_gen *g, void *arg)
{
    int rc = 0, cents = 10000;
    (void)arg;
    for (int i = 1; rc == 0; i++) {
        /* not a sleep of 0.5 s: the consumer's time would come on top */
        rc = conc_sleep_until(start + 0.5 * i);
        if (rc < 0)
            break;
        cents += (int)conc_random(-200, 100);
        rc = conc_gen_emit(g, &cents); /* -ECANCELED: the consumer wants no more */
    }
    printf("%.1f s: ticker closed\n", conc_now() - start);
    return rc;
}

static int app(void *arg)
{
    (void)arg;
    int cents, threshold = 9700;
    CONC_AUTO(conc_gen, ticker) = {0};
    CONC_TRY(conc_gen_open(&ticker, stock_prices, NULL, sizeof cents));
    start = conc_now();
    while (CONC_TRY(conc_gen_next(&ticker, &cents)) > 0) {
        printf("%.1f s: %d.%02d\n", conc_now() - start, cents / 100, cents % 100);
        if (cents < threshold)
            break;
    }
    /* now, its clean-up included; CONC_AUTO would do it when the function returns */
    CONC_TRY(conc_gen_close(&ticker));
    printf("%.1f s: stopped, the price is below %d.%02d\n", conc_now() - start, threshold / 100,
           threshold % 100);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
