/* Errors in a gather. Call a steady operation (1 s, result 42) and a risky one (fails after 0.5 s)
   concurrently, three times: the first error cancels the rest; or all results and errors are
   collected; or the risky one is made safe: a wrapper function handles the error.

   cc 01_gather_errors.c -o errors
   ./errors

   It prints ../expected/03_errors/01_gather_errors.txt.
   Hint: conc_gather(calls, n), conc_gather_all(calls, n); afterwards calls[i].result is a result
   or a negative error, and calls[i].text the error's text. conc_last_error() also returns it. */
#define CONC_STATIC
#include "../../conc.h"

static double start;

static int steady_operation(void *arg)
{
    (void)arg;
    int rc = conc_sleep(1);
    const char *end = rc == -ECANCELED ? "cancelled" : "done";
    printf("%.1f s: the steady one is %s\n", conc_now() - start, end);
    return rc < 0 ? rc : 42;
}

static int risky_operation(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(0.5));
    return conc_fail(-EIO, "something broke");
}

/* Your turn: call both at once. If an error comes out, print "0.5 s: gather failed: " and its
   words, conc_last_error(); return 0 all the same. */
static int first_error(void)
{
    if (CONC_GATHER(CONC_CALL(steady_operation, NULL), CONC_CALL(risky_operation, NULL)) < 0)
        printf("%.1f s: gather failed: %s\n", conc_now() - start, conc_last_error());
    return 0;
}

/* Your turn: call both at once, let neither error cancel the other call (return_exceptions=True),
   and print for each call "Call 1: " and its result, or its error. */
static int every_result(void)
{
    conc_call calls[] = {CONC_CALL(steady_operation, NULL), CONC_CALL(risky_operation, NULL)};
    CONC_TRY(conc_gather_all(calls, CONC_LEN(calls)));
    for (size_t i = 0; i < CONC_LEN(calls); i++)
        if (calls[i].result < 0)
            printf("Call %zu: %s\n", i + 1, calls[i].text);
        else
            printf("Call %zu: %d\n", i + 1, calls[i].result);
    return 0;
}

/* Your turn: call the risky operation. If it fails, print "0.5 s: Error: " and its error, and
   return 0: the gather sees no error. A cancel (-ECANCELED) is no error: pass it on. */
static int safe_task(void *arg)
{
    int rc = risky_operation(arg);
    if (rc >= 0 || rc == -ECANCELED)
        return rc;
    printf("%.1f s: Error: %s\n", conc_now() - start, conc_last_error());
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    CONC_TRY(first_error());
    start = conc_now();
    CONC_TRY(every_result());
    start = conc_now();
    CONC_TRY(CONC_GATHER(CONC_CALL(steady_operation, NULL), CONC_CALL(safe_task, NULL)));
    printf("%.1f s: all is well\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
