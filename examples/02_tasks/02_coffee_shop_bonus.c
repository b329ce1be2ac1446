/* Coffee shop, customers and random times. Make three drinks concurrently, each for a customer, and
   each in a random time of 2 to 6 s. Print the total time.

   cc 02_coffee_shop_bonus.c -o coffee_shop
   ./coffee_shop
   CONC_CLOCK=virtual CONC_RANDOM=2 ./coffee_shop     # without waiting; 3: other times

   It prints other times in each run; ../expected/02_tasks/02_coffee_shop_bonus.awk checks it.
   Hint: conc_random(2, 6) is a number from 2 to 6. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *drink, *customer;
} order;

/* Your turn: print "Starting to make Latte for Bob...", take a random time, and print
   "Bob, your Latte is ready! (3.1s)" with that time. */
static int make_drink(void *arg)
{
    order *o = arg;
    double seconds = conc_random(2, 6);
    printf("Starting to make %s for %s...\n", o->drink, o->customer);
    CONC_TRY(conc_sleep(seconds));
    printf("%s, your %s is ready! (%.1fs)\n", o->customer, o->drink, seconds);
    return 0;
}

/* Your turn: make all orders at once, and print "All drinks prepared in 5.3 seconds". */
static int coffee_shop(void *arg)
{
    (void)arg;
    order orders[] = {{"Espresso", "Alice"}, {"Latte", "Bob"}, {"Cappuccino", "Charlie"}};
    double start = conc_now();
    CONC_TRY(CONC_MAP(make_drink, orders));
    printf("All drinks prepared in %.1f seconds\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(coffee_shop, NULL); }
