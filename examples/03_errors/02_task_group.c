/* Task group: the first failure cancels the siblings; the group waits for all of them, and no
 * failure gets lost.
 *   cc 02_task_group.c -o group && ./group        (CONC_CLOCK=virtual ./group takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static double start;

static int load_user(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(1));
    printf("%.0f s: user loaded\n", conc_now() - start);
    return 0;
}

static int load_orders(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(2));
    return conc_fail(-EPROTO, "orders: no such table");
}

static int send_mail(void *arg)
{
    (void)arg;
    int rc = conc_sleep(3);
    if (rc == -ECANCELED) {
        printf("%.0f s: mail cancelled\n", conc_now() - start);
        return conc_fail(-EIO, "mail: no room for the draft"); /* its clean-up fails, too */
    }
    printf("mail sent\n");
    return rc;
}

/* called for each error that is nobody's result */
static void also_failed(const conc_failure *f, void *text) { snprintf(text, 64, "%s", f->text); }

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, load_user, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, load_orders, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, send_mail, NULL));
    if (conc_group_wait(&g) < 0)
        printf("%.0f s: %d failures, first %s\n", conc_now() - start, g.error_count,
               conc_last_error());
    return 0;
}

int main(void)
{
    char text[64] = "";
    int rc = conc_run_with(&(conc_options){.on_error = also_failed, .user = text}, app, NULL);
    printf("Also failed: %s\n", text);
    return rc < 0;
}
