/* Graceful shutdown. A background task works for a minute. Ctrl+C cancels it: it cleans up for a
   second, and prints "Cleanup complete" before the program ends, with exit status 130. The program
   simulates Ctrl+C itself, after 3.5 s; with an argument it leaves that to you.

   cc 05_graceful_shutdown.c -o graceful
   ./graceful
   ./graceful 1     # press Ctrl+C; the clean-up takes 1 s
   ./graceful 3600     # the clean-up hangs: a second Ctrl+C kills
   It prints ../expected/03_errors/05_graceful_shutdown.txt.
   Hint: conc_shield(10, clean_up, arg) hides the cancel from clean_up, so that it can wait. */
#define CONC_STATIC
#include "../../conc.h"
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static int clean_up(void *seconds)
{
    printf("Cleaning up...\n");
    CONC_TRY(conc_sleep(*(double *)seconds)); /* saves its work, says goodbye to its peers */
    printf("Cleanup complete\n");
    return 0;
}

/* Your turn: print "working: 1 of 60", wait for a second, and so on, until an error ends a wait:
   Ctrl+C arrives as -ECANCELED. Then or after 60 rounds clean up, for 10 s at most. Return the
   error of the wait, or 0. */
static int background_task(void *seconds)
{
    int rc = 0;
    for (int i = 1; i <= 60 && rc == 0; i++) {
        printf("working: %d of 60\n", i);
        rc = conc_sleep(1);
    }
    CONC_TRY(conc_shield(10, clean_up, seconds)); /* finally: */
    return rc;
}

static int app(void *seconds)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, background_task, seconds));
    return conc_group_wait(&g); /* returns when the task has ended, its clean-up included */
}

static int press_ctrl_c(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(3.5));
    printf("^C\n");
    return kill(getpid(), SIGINT) < 0 ? -errno : 0;
}

static int rehearsal(void *seconds)
{
    return CONC_GATHER(CONC_CALL(app, seconds), CONC_CALL(press_ctrl_c, NULL));
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    if (argc > 1)
        return conc_main(app, &seconds);
    signal(SIGINT, SIG_DFL); /* in the background a shell's commands ignore it */
    printf("Exit status %d\n", conc_main(rehearsal, &seconds));
    return 0;
}
