/* Unseen errors: a task that nobody waits for fails, and is reported all the same; another one
 * is joined, and is not.
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

static int app(void *arg)
{
    (void)arg;
    static conc_task report;
    int result = 0;
    /* fire and forget: a background task without a handle */
    CONC_TRY(conc_spawn(NULL, send_mail, NULL));
    CONC_TRY(conc_spawn_task(NULL, &report, write_report, NULL));
    CONC_TRY(conc_join(&report, &result));
    if (result < 0)
        printf("joined: %s failed: %s\n", conc_name(&report), conc_error_text(&report));
    printf("the app ends without a look at the mail\n");
    return 0;
}

/* Called for each error that no join, group or result collected: of a background task when it
 * fails, or if it has a handle at the end of the run, as until then a task may join it. Without a
 * hook of your own the report goes to stderr. */
static void log_error(const conc_failure *f, void *reports)
{
    printf("on_error: %s failed: %s\n", f->task, f->text);
    ++*(int *)reports;
}

int main(void)
{
    int reports = 0,
        rc = conc_run_with(&(conc_options){.on_error = log_error, .user = &reports}, app, NULL);
    printf("errors that nobody saw: %d\n", reports);
    return rc < 0;
}
