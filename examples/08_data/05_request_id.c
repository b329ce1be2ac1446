/* Request id: each task has its own value of a variable that any function it calls can read, without an argument for it.
 *   cc 05_request_id.c -o request && ./request        (CONC_CLOCK=virtual ./request takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static conc_local request_id = {"request id"}; /* a ContextVar */

static void log_query(void) { printf("[%s] query done\n", (char *)conc_local_get(&request_id)); }

static int query(void)
{
    CONC_TRY(conc_sleep(1)); /* meanwhile the other tasks set theirs */
    log_query();
    return 0;
}

static int handle_request(void *id)
{
    printf("[%s] inherited\n", (char *)conc_local_get(&request_id));
    CONC_TRY(conc_local_set(&request_id, *(const char **)id)); /* this task's only */
    CONC_TRY(query());
    return query();
}

static int print_id(void *arg)
{
    (void)arg;
    log_query();
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    const char *ids[] = {"req-0", "req-1", "req-2"};
    CONC_TRY(conc_local_set(&request_id, "main"));
    CONC_TRY(CONC_MAP(handle_request, ids));
    log_query(); /* still main's own */

    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, print_id, NULL));             /* gets a copy here, */
    CONC_TRY_IN(&g, conc_local_set(&request_id, "main, later")); /* so this comes too late for it, */
    CONC_TRY_IN(&g, conc_group_wait(&g));                        /* though it runs only now */
    log_query();
    return 0;
}

int main(void) { return conc_main(app, NULL); }
