/* Forgotten tasks. Two tasks run in the background. When the run ends, the one that saves a file is
   cancelled ("Task was destroyed but it is pending"); the failing one is only reported ("Task
   exception was never retrieved"). Start them in a group, and wait.

   cc 11_forgotten_tasks.c -o waiting
   ./waiting

   It prints ../expected/01_start/11_forgotten_tasks.txt.
   Hint: in a conc_group g = {.keep_going = true} an error does not cancel the other tasks. */
#define CONC_STATIC
#include "../../conc.h"

static int save(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(1));
    printf("  saved\n");
    return 0;
}

static int send_mail(void *arg)
{
    (void)arg;
    return conc_fail(-ECONNREFUSED, "the mail server is down");
}

static int in_background(void *arg)
{
    (void)arg;
    CONC_TRY(conc_spawn(NULL, save, NULL)); /* NULL: a background task, of no group */
    CONC_TRY(conc_spawn(NULL, send_mail, NULL));
    return 0;
}

/* Your turn: start save and send_mail in a group in which one failure does not cancel the other
   task. Return what the wait for the group returns. */
static int in_a_group(void *arg)
{
    (void)arg;
    conc_group g = {.keep_going = true};
    CONC_TRY_IN(&g, conc_spawn(&g, save, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, send_mail, NULL));
    return conc_group_wait(&g);
}

/* Called for an error that no join, group or gather got; without it they go to stderr. */
static void on_error(const conc_failure *f, void *user)
{
    (void)user;
    printf("  reported: %s\n", f->text);
}

static void run(const char *title, conc_fn *fn)
{
    printf("%s:\n", title);
    int rc = conc_run_with(&(conc_options){.on_error = on_error}, fn, NULL);
    printf("  the run's result: %s\n", rc < 0 ? conc_last_error() : "0");
}

int main(void)
{
    run("In the background", in_background);
    run("In a group", in_a_group);
    return 0;
}
