/* Database connection: opened, used, and always closed again, also when the work fails or is
 * cancelled: "async with".
 *   cc 01_db_connection.c -o connection && ./connection        (CONC_CLOCK=virtual ./connection
 *   takes no time)
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

static int db_disconnect(void *arg)
{
    connection *c = arg;
    say("Releasing connection...");
    c->open = false;
    return conc_sleep(0.5);
}

static int with_connection(conc_fn *work)
{
    connection c = {0};
    CONC_TRY(db_connect(&c)); /* __aenter__: failed or cancelled, it leaves nothing to release */
    int rc = work(&c);
    /* __aexit__: may wait, also in a cancelled task, at most 5 s */
    int closed = conc_shield(5, db_disconnect, &c);
    return rc < 0 ? rc : closed;
}

static int work(void *arg)
{
    connection *c = arg;
    if (!c->open)
        return conc_fail(-ENOTCONN, "the connection is closed");
    say("Using connection...");
    return conc_sleep(1);
}

static int failing_work(void *c)
{
    CONC_TRY(work(c));
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
        say(rc == -ETIMEDOUT ? "out of time" : rc < 0 ? conc_last_error() : "all well");
    }
    return 0;
}

int main(void) { return conc_main(app, NULL); }
