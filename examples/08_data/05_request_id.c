/* Request id. Three requests are handled concurrently. query takes no argument, and prints the id
   of its request: each task has its own, so that none overwrites another's.

   cc 05_request_id.c -o request
   ./request
   CONC_CLOCK=virtual ./request     # without waiting

   It prints ../expected/08_data/05_request_id.txt.
   Hint: a conc_local is a ContextVar: conc_local_set(&request_id, "x") sets this task's value, and
   conc_local_get(&request_id) returns it. A new task starts with its parent's value. */
#define CONC_STATIC
#include "../../conc.h"

static conc_local request_id = {"request id"};

/* Your turn: print "[req-0] what", where req-0 is this task's request id. */
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

/* Your turn: say "request handler starts"; then set this task's request id to the string that id
   points to, and query twice. */
static int handle_request(void *id)
{
    say("request handler starts");
    CONC_TRY(conc_local_set(&request_id, *(const char **)id));
    CONC_TRY(query());
    return query();
}

static int child(void *arg)
{
    (void)arg;
    say("is inherited by a child");
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
    CONC_TRY_IN(&g, conc_spawn(&g, child, NULL)); /* it runs in conc_group_wait */
    CONC_TRY_IN(&g, conc_local_set(&request_id, "main, later"));
    CONC_TRY(conc_group_wait(&g));
    say("is the parent's");
    return 0;
}

int main(void) { return conc_main(app, NULL); }
