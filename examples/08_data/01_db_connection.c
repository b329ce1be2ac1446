/* Database connection. Connect (0.5 s), work (1 s), disconnect (0.5 s). Always disconnect, even if
   the work fails or a time limit cancels it. This is Python's "async with".

   cc 01_db_connection.c -o connection
   ./connection
   CONC_CLOCK=virtual ./connection     # without waiting

   It prints ../expected/08_data/01_db_connection.txt.
   Hint: in a cancelled task every wait returns immediately; conc_shield(5, db_disconnect, NULL)
   calls db_disconnect so that it can still wait, at most 5 s. */
#define CONC_STATIC
#include "../../conc.h"

static double start;

static void say(const char *what) { printf("%.1f s: %s\n", conc_now() - start, what); }

static int db_connect(void)
{
    say("Acquiring connection...");
    return conc_sleep(0.5);
}

/* Your turn: say "Releasing connection...", and take 0.5 s. */
static int db_disconnect(void *arg)
{
    (void)arg;
    say("Releasing connection...");
    return conc_sleep(0.5);
}

/* Your turn: connect, work, disconnect. An error of the work, or else of the disconnect, is passed
   on. If it cannot connect, there is nothing to disconnect. */
static int with_connection(conc_fn *work)
{
    CONC_TRY(db_connect());                           /* __aenter__ */
    int rc = work(NULL);                              /* no CONC_TRY: it would return from here */
    int closed = conc_shield(5, db_disconnect, NULL); /* __aexit__ */
    return rc < 0 ? rc : closed;
}

static int work(void *arg)
{
    (void)arg;
    say("Using connection...");
    return conc_sleep(1);
}

static int failing_work(void *arg)
{
    CONC_TRY(work(arg));
    return conc_fail(-EIO, "no such table");
}

static int use(void *arg) { return (void)arg, with_connection(work); }
static int use_and_fail(void *arg) { return (void)arg, with_connection(failing_work); }
static int use_too_long(void *arg) { return conc_timeout(1, use, arg); }

static int app(void *arg)
{
    conc_fn *uses[] = {use, use_and_fail, use_too_long};
    for (size_t i = 0; i < CONC_LEN(uses); i++) {
        start = conc_now();
        int rc = uses[i](arg);
        say(rc < 0 ? conc_last_error() : "all well");
    }
    return 0;
}

int main(void) { return conc_main(app, NULL); }
