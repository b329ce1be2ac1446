/* Hello, Goodbye. Greet Alice: "Hello, Alice!", wait a second, "Goodbye, Alice!"; then greet Bob in
   the same way. Print how long both took, and "Done", which the program's task passes to main.

   cc 01_hello_goodbye.c -o hello
   ./hello
   CONC_CLOCK=virtual ./hello     # without waiting

   It prints ../expected/01_start/01_hello_goodbye.txt.
   Hint: conc_sleep(1) waits for a second; conc_now() is the time in seconds, a double.
   CONC_TRY(call) returns the call's error, if any, from your function. */
#define CONC_STATIC /* the implementation of conc is in this very file; README.md has other ways */
#include "../../conc.h"

/* Your turn: greet, wait for a second, say goodbye, return 0. An error is passed on. */
static int say_hello(void *name)
{
    printf("Hello, %s!\n", (char *)name);
    CONC_TRY(conc_sleep(1)); /* simulates input or output */
    printf("Goodbye, %s!\n", (char *)name);
    return 0;
}

/* Your turn: greet Alice, then Bob, print "2.0 seconds", and leave "Done" in *result. */
static int app(void *result)
{
    double start = conc_now();
    CONC_TRY(say_hello("Alice")); /* the call is the await: one after the other */
    CONC_TRY(say_hello("Bob"));
    printf("%.1f seconds\n", conc_now() - start);
    *(const char **)result = "Done";
    return 0;
}

int main(void)
{
    const char *result = "";
    int status = conc_main(app, &result); /* runs app on an event loop, as asyncio.run does */
    printf("%s\n", result);
    return status;
}
