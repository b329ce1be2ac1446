/* Task group. Load a user (1 s), load the orders (they fail after 2 s) and send a mail (3 s) in one
   group: the failure cancels the siblings still running, here the mail. The group waits for all,
   and reports how many failed and the first failure; further failures go to on_error.

   cc 02_task_group.c -o siblings
   ./siblings

   It prints ../expected/03_errors/02_task_group.txt.
   Hint: conc_spawn(&g, function, NULL) three times, then conc_group_wait(&g). Afterwards
   g.error_count is the number of failures, and conc_last_error() the first one's text. */
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

/* Your turn: wait for 3 s, print "3 s: mail sent", return 0. If the wait is cancelled, print
   "2 s: mail cancelled", and return conc_fail(-EIO, "mail: no room for the draft"): the clean-up
   fails, too. */
static int send_mail(void *arg)
{
    (void)arg;
    int rc = conc_sleep(3);
    if (rc == -ECANCELED) {
        printf("%.0f s: mail cancelled\n", conc_now() - start);
        return conc_fail(-EIO, "mail: no room for the draft");
    }
    printf("%.0f s: mail sent\n", conc_now() - start);
    return rc;
}

/* Your turn: note the start; begin the three in a group, and wait. If there are failures, print
   "2 s: 2 failures, first " and the first one's words. Return 0. */
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

/* Called for each error that is not the result of a join, a group or a gather. */
static void also_failed(const conc_failure *f, void *user)
{
    (void)user;
    printf("Also failed: %s\n", f->text);
}

int main(void) { return conc_run_with(&(conc_options){.on_error = also_failed}, app, NULL) < 0; }
