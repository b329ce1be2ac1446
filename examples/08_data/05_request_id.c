/* Request id: a variable of which each task has its own value, so that functions need no
 * argument to know it.
 *   cc 05_request_id.c -o request && ./request        (CONC_CLOCK=virtual ./request takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static conc_local request_id = {"request id"}; /* a ContextVar */

static void say(const char *what)
{
    printf("[%s] %s\n", (char *)conc_local_get(&request_id), what);
}

static int query(void)
{
    CONC_TRY(conc_sleep(1)); /* meanwhile the other tasks set their ids */
    say("query done");
    return 0;
}

static int handle_request(void *id)
{
    /* with the value of the task that spawned it */
    say("request handler starts");
    CONC_TRY(conc_local_set(&request_id, *(const char **)id)); /* this task's only */
    CONC_TRY(query());
    return query();
}

static int child(void *arg)
{
    (void)arg;
    say("is the child's: it has the value of its spawn");
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    const char *ids[] = {"req-0", "req-1", "req-2"};
    CONC_TRY(conc_local_set(&request_id, "main"));
    CONC_TRY(CONC_MAP(handle_request, ids));
    say("is unchanged");

    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, child, NULL));
    /* before the child runs, but after its spawn */
    CONC_TRY_IN(&g, conc_local_set(&request_id, "main, later"));
    CONC_TRY(conc_group_wait(&g));
    say("is the parent's");
    return 0;
}

int main(void) { return conc_main(app, NULL); }
