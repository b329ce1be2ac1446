/* Coffee shop. Make three drinks concurrently: an Espresso takes 3 s, a Latte 5 s, a Cappuccino 4
   s. Print when each starts and is ready, then the total time: that of the slowest.

   cc 01_coffee_shop.c -o coffee_shop
   ./coffee_shop
   CONC_CLOCK=virtual ./coffee_shop     # without waiting

   It prints ../expected/02_tasks/01_coffee_shop.txt.
   Hint: CONC_GATHER(CONC_CALL(f, &x), CONC_CALL(g, &y)) calls f(&x) and g(&y) concurrently. */
#define CONC_STATIC
#include "../../conc.h"

/* As a Python function that returns "Espresso": here the name goes to *name. */
static int make_espresso(void *name)
{
    printf("Starting to make Espresso...\n");
    CONC_TRY(conc_sleep(3));
    printf("Espresso is ready!\n");
    *(const char **)name = "Espresso";
    return 0;
}

/* Your turn: make a Latte in the same way, in 5 seconds. */
static int make_latte(void *name)
{
    printf("Starting to make Latte...\n");
    CONC_TRY(conc_sleep(5));
    printf("Latte is ready!\n");
    *(const char **)name = "Latte";
    return 0;
}

/* Your turn: make a Cappuccino, in 4 seconds. */
static int make_cappuccino(void *name)
{
    printf("Starting to make Cappuccino...\n");
    CONC_TRY(conc_sleep(4));
    printf("Cappuccino is ready!\n");
    *(const char **)name = "Cappuccino";
    return 0;
}

/* Your turn: make all three at once, and print "All drinks prepared in 5.0 seconds". */
static int coffee_shop(void *arg)
{
    (void)arg;
    const char *names[3];
    double start = conc_now();
    CONC_TRY(CONC_GATHER(CONC_CALL(make_espresso, &names[0]), CONC_CALL(make_latte, &names[1]),
                         CONC_CALL(make_cappuccino, &names[2])));
    printf("All drinks prepared in %.1f seconds\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(coffee_shop, NULL); }
