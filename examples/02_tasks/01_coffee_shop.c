/* Coffee shop. Make three drinks at once: an Espresso takes 3 s, a Latte 5 s, a Cappuccino 4 s.
   Print when each starts and when it is ready, then how long all took: the time of the slowest.

   cc 01_coffee_shop.c -o coffee_shop
   ./coffee_shop
   CONC_CLOCK=virtual ./coffee_shop     # the same, without the waiting

   It prints what stands in ../expected/02_tasks/01_coffee_shop.txt.
   Hint: CONC_MAP calls a function with a pointer to each element of an array, all at once. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *name;
    double seconds;
} drink;

/* Your turn: say that the drink is started, wait for its seconds, say that it is ready. */
static int make_drink(void *arg)
{
    drink *d = arg;
    conc_set_name(conc_self(), d->name);
    printf("Starting to make %s...\n", d->name);
    CONC_TRY(conc_sleep(d->seconds));
    printf("%s is ready!\n", d->name);
    return 0;
}

/* Your turn: make all drinks of the menu at once, and print the seconds that it took. */
static int coffee_shop(void *arg)
{
    (void)arg;
    drink menu[] = {{"Espresso", 3}, {"Latte", 5}, {"Cappuccino", 4}};
    double start = conc_now();
    CONC_TRY(CONC_MAP(make_drink, menu));
    printf("All drinks prepared in %.1f seconds\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(coffee_shop, NULL); }
