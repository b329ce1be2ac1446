/* Coffee shop: three drinks at once take as long as the slowest, 5 s, not 12 s.
 *   cc 01_coffee_shop.c -o coffee_shop && ./coffee_shop        (CONC_CLOCK=virtual ./coffee_shop
 *   takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *name;
    double seconds;
} drink;

static int make_drink(void *arg)
{
    drink *d = arg;
    conc_set_name(conc_self(), d->name);
    printf("Starting to make %s...\n", d->name);
    CONC_TRY(conc_sleep(d->seconds));
    printf("%s is ready!\n", d->name);
    return 0;
}

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
