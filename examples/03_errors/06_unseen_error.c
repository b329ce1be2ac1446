/* Unseen errors. A server starts two tasks. Both fail, but its log does not show this: two places
   swallow an error. Find them, and make the log show both errors, with their times.

   cc 06_unseen_error.c -o unseen
   cc -DBROKEN 06_unseen_error.c -o swallowed     # with the bugs
   CONC_CLOCK=virtual ./unseen

   It prints ../expected/03_errors/06_unseen_error.txt.
   Hint: conc_join(&task, &result) stores a task's result, conc_error_text(&task) returns its error;
   a conc_failure has .task and .text. */
#define CONC_STATIC
#include "../../conc.h"

static double start;

static void log_line(const char *level, const char *task, const char *text)
{
    printf("%5.3f %-5s %s: %s\n", conc_now() - start, level, task, text);
}

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

/* Called for each error that no join, group or gather got: without a hook they go to stderr. */
static void on_error(const conc_failure *f, void *user)
{
    (void)user;
#ifdef BROKEN
    (void)f;
#else
    log_line("ERROR", f->task, f->text);
#endif
}

static int server(void *arg)
{
    (void)arg;
    static conc_task report;
    start = conc_now();
    CONC_TRY(conc_spawn(NULL, send_mail, NULL)); /* fire and forget: no join */
    CONC_TRY(conc_spawn_task(NULL, &report, write_report, NULL));
#ifdef BROKEN
    CONC_TRY(conc_join(&report, NULL));
#else
    int result = 0;
    CONC_TRY(conc_join(&report, &result));
    if (result < 0)
        log_line("ERROR", conc_name(&report), conc_error_text(&report));
#endif
    CONC_TRY(conc_sleep(1));
    log_line("INFO", "server", "ends");
    return 0;
}

int main(void) { return conc_run_with(&(conc_options){.on_error = on_error}, server, NULL) < 0; }
