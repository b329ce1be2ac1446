/* Database connection: opened, used, and always closed again, also when the work fails or is cancelled: "async with".
 *   cc 01_db_connection.c -o connection && ./connection        (CONC_CLOCK=virtual ./connection takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    bool open;
} connection;

static double start;

static void say(const char *what) { printf("%.1f s: %s\n", conc_now() - start, what); }

static int db_connect(connection *c)
{
    say("Acquiring connection...");
    CONC_TRY(conc_sleep(0.5));
    c->open = true;
    return 0;
}

static int db_disconnect(void *c)
{
    say("Releasing connection...");
    CONC_TRY(conc_sleep(0.5));
    ((connection *)c)->open = false;
    return 0;
}

static int with_connection(conc_fn *work)
{
    connection c = {0};
    CONC_TRY(db_connect(&c)); /* __aenter__; failed or cancelled, it leaves nothing to release */
    int rc = work(&c);
    int closed = conc_shield(5, db_disconnect, &c); /* __aexit__; waits even if cancelled, but no longer than 5 s */
    return rc < 0 ? rc : closed;
}

static int work(void *c)
{
    say(((connection *)c)->open ? "Using connection..." : "not open");
    return conc_sleep(1);
}

static int work_that_fails(void *c)
{
    CONC_TRY(work(c));
    return conc_fail(-EIO, "no such table");
}

static int use(void *arg)
{
    (void)arg;
    return with_connection(work);
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    CONC_TRY(with_connection(work));
    say("all well\n");

    start = conc_now();
    if (with_connection(work_that_fails) == -EIO)
        say(conc_last_error()), printf("\n");

    start = conc_now();
    if (conc_timeout(1, use, NULL) == -ETIMEDOUT)
        say("out of time");
    return 0;
}

int main(void) { return conc_main(app, NULL); }
