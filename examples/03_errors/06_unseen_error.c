/* Unseen errors: a task that nobody waits for fails, and is reported all the same; who joins a task learns of it instead.
 *   cc 06_unseen_error.c -o unseen && ./unseen        (CONC_CLOCK=virtual ./unseen takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static int send_mail(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "mail");
    CONC_TRY(conc_sleep(1));
    return conc_fail(-EIO, "the mailbox is full");
}

static int write_report(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "report");
    CONC_TRY(conc_sleep(2));
    return conc_fail(-ENOSPC, "no paper left");
}

static int joined(void)
{
    conc_group g = {.keep_going = true};
    conc_task task = {0};
    int result = 0;
    CONC_TRY_IN(&g, conc_spawn_task(&g, &task, write_report, NULL));
    CONC_TRY_IN(&g, conc_join(&task, &result));
    if (result < 0)
        printf("joined: %s failed: %s\n", conc_name(&task), conc_error_text(&task));
    return conc_group_wait(&g); /* the group says it, too: its result is the first error */
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(conc_spawn(NULL, send_mail, NULL)); /* fire and forget: in the background, and nobody has a handle */
    if (joined() < 0)
        printf("from the group: %s\n", conc_last_error());
    printf("the app ends without a look at the mail\n");
    return 0;
}

static void log_error(const conc_failure *f, void *reports) /* without it the report goes to stderr */
{
    printf("on_error: %s failed: %s\n", f->task, f->text);
    ++*(int *)reports;
}

int main(void)
{
    int reports = 0;
    int rc = conc_run_with(&(conc_options){.on_error = log_error, .user = &reports}, app, NULL);
    printf("%d unseen error\n", reports);
    return rc < 0;
}
