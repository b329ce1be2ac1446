/* Hello, Goodbye: the smallest program. A task waits where it stands, and returns a result as
 * any function does.
 *   cc 01_hello_goodbye.c -o hello && ./hello        (CONC_CLOCK=virtual ./hello takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static int say_hello(void *name)
{
    printf("Hello, %s!\n", (char *)name);
    CONC_TRY(conc_sleep(1)); /* simulates input or output */
    printf("Goodbye, %s!\n", (char *)name);
    return 0;
}

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
    int status = conc_main(app, &result); /* asyncio.run */
    printf("%s\n", result);
    return status;
}
