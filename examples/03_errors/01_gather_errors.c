/* Errors in a gather: by the first one the rest is cancelled; or all are waited for, errors
 * being results like others.
 *   cc 01_gather_errors.c -o errors && ./errors        (CONC_CLOCK=virtual ./errors takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static double start;

static int steady_operation(void *arg)
{
    (void)arg;
    int rc = conc_sleep(1);
    printf("%.1f s: the steady one is %s\n", conc_now() - start,
           rc == -ECANCELED ? "cancelled" : "done");
    return rc < 0 ? rc : 42;
}

static int risky_operation(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(0.5));
    return conc_fail(-EIO, "something broke");
}

static int safe_task(void *arg) /* deals with the error itself, so nobody else sees it */
{
    int rc = risky_operation(arg);
    if (rc < 0 && rc != -ECANCELED) { /* a cancel is no error of ours: pass it on */
        printf("%.1f s: Error: %s\n", conc_now() - start, conc_last_error());
        return 0;
    }
    return rc;
}

static int app(void *arg)
{
    (void)arg;
    conc_call first[] = {CONC_CALL(steady_operation, NULL), CONC_CALL(risky_operation, NULL)};
    start = conc_now();
    if (conc_gather(first, CONC_LEN(first)) < 0)
        printf("%.1f s: gather failed: %s\n", conc_now() - start, conc_last_error());

    conc_call all[] = {CONC_CALL(steady_operation, NULL), CONC_CALL(risky_operation, NULL)};
    start = conc_now();
    /* return_exceptions=True: 0, whatever they returned */
    CONC_TRY(conc_gather_all(all, CONC_LEN(all)));
    for (size_t i = 0; i < CONC_LEN(all); i++)
        if (all[i].result < 0)
            printf("Call %zu: %s\n", i + 1, all[i].text);
        else
            printf("Call %zu: %d\n", i + 1, all[i].result);

    start = conc_now();
    CONC_TRY(CONC_GATHER(CONC_CALL(steady_operation, NULL), CONC_CALL(safe_task, NULL)));
    printf("%.1f s: all well\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
