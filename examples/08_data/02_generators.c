/* Generators. A generator emits one item after the other; its consumer takes the next when ready.
   Write one that counts from 0 to 4, with a pause of 0.5 s after each, and print them.

   cc 02_generators.c -o generators
   ./generators
   CONC_CLOCK=virtual ./generators     # without waiting

   It prints ../expected/08_data/02_generators.txt.
   Hint: conc_gen_emit(g, &i) is "yield i"; while (CONC_TRY(conc_gen_next(&g, &value)) > 0) is
   "async for value in g". */
#define CONC_STATIC
#include "../../conc.h"

static double start;

/* Your turn: emit 0, 1, 2 ... as long as they are less than *n, and sleep 0.5 s after each. */
static int counter(conc_gen *g, void *n)
{
    for (int i = 0; i < *(int *)n; i++) {
        CONC_TRY(conc_gen_emit(g, &i)); /* goes on when the consumer wants the next */
        CONC_TRY(conc_sleep(0.5));
    }
    return 0;
}

/* Your turn: print each number that counter hands out: "0.5 s: Received: 1". */
static int app(void *arg)
{
    int n = 5, value;
    (void)arg;
    start = conc_now();
    CONC_AUTO(conc_gen, g) = {0}; /* it is closed when the function returns */
    CONC_TRY(conc_gen_open(&g, counter, &n, sizeof value));
    while (CONC_TRY(conc_gen_next(&g, &value)) > 0)
        printf("%.1f s: Received: %d\n", conc_now() - start, value);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
