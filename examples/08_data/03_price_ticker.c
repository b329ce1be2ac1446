/* Price ticker. An endless generator: a random stock price every 0.5 s, starting at 100.00, each
   2.00 less to 1.00 more than the last. Print each price; stop below 97.00, and close the ticker.

   cc 03_price_ticker.c -o ticker
   ./ticker
   CONC_RANDOM=2 CONC_CLOCK=virtual ./ticker     # other numbers, without waiting

   It prints something else each time; ../expected/08_data/03_price_ticker.awk checks it.
   Hint: conc_random(-200, 100) draws a number. After conc_gen_close the generator's conc_gen_emit
   returns -ECANCELED, so it can still say goodbye; Python's "break" alone closes it only later. */
#define CONC_STATIC
#include "../../conc.h"

static double start;

static void print_price(int cents)
{
    printf("%.1f s: %d.%02d\n", conc_now() - start, cents / 100, cents % 100);
}

/* Your turn: emit a price, an int in cents, every 0.5 s until an error comes (being closed is one).
   Then print "3.0 s: ticker closed", with the seconds since the start, and return the error. */
static int stock_prices(conc_gen *g, void *arg)
{
    int rc = 0, cents = 10000;
    (void)arg;
    for (int i = 1; rc == 0; i++) {
        /* not conc_sleep(0.5): the time that the consumer takes would come on top */
        rc = conc_sleep_until(start + 0.5 * i);
        cents += (int)conc_random(-200, 100);
        if (rc == 0)
            rc = conc_gen_emit(g, &cents);
    }
    printf("%.1f s: ticker closed\n", conc_now() - start);
    return rc;
}

/* Your turn: print each price with print_price. Stop after the first that is below 97.00: close the
   ticker there and then, not when the function returns. */
static int watch_prices(void)
{
    int cents;
    CONC_AUTO(conc_gen, ticker) = {0};
    CONC_TRY(conc_gen_open(&ticker, stock_prices, NULL, sizeof cents));
    while (CONC_TRY(conc_gen_next(&ticker, &cents)) > 0) {
        print_price(cents);
        if (cents < 9700)
            break;
    }
    CONC_TRY(conc_gen_close(&ticker));
    printf("%.1f s: stopped, the price is below 97.00\n", conc_now() - start);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    return watch_prices();
}

int main(void) { return conc_main(app, NULL); }
