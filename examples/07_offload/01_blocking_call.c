/* A blocking call off the loop. blocking_io blocks for a second, then returns "done". Call it from
   a task so that another task, a ticker every 0.4 s, keeps running.

   cc 01_blocking_call.c -o blocking
   ./blocking
   CONC_CLOCK=virtual ./blocking     # without waiting

   It prints ../expected/07_offload/01_blocking_call.txt.
   Hint: conc_offload(fn, arg) calls fn(arg) in a thread; this task waits for it, the loop
   continues. In Python: await loop.run_in_executor(None, blocking_io). */
#define CONC_STATIC
#include "../../conc_pool.h"

static double start;

static int blocking_io(void *result) /* a plain function: it knows nothing of tasks */
{
    CONC_TRY(conc_block(1)); /* stands for time.sleep(1), getaddrinfo(), a library that blocks */
    *(const char **)result = "done";
    return 0;
}

/* Your turn: get the result of blocking_io, a const char *, without holding the loop, and print
   "1.0 s: done" with the seconds since the start and the result. */
static int sync_in_async(void *arg)
{
    (void)arg;
    const char *result;
    CONC_TRY(conc_offload(blocking_io, &result));
    printf("%.1f s: %s\n", conc_now() - start, result);
    return 0;
}

/* Your turn: two times, sleep for 0.4 s and print "0.4 s: another task goes on" with the seconds
   since the start. */
static int ticker(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2; i++) {
        CONC_TRY(conc_sleep(0.4));
        printf("%.1f s: another task goes on\n", conc_now() - start);
    }
    return 0;
}

static int app(void *arg)
{
    start = conc_now();
    return CONC_GATHER(CONC_CALL(sync_in_async, arg), CONC_CALL(ticker, arg));
}

int main(void) { return conc_main(app, NULL); }
