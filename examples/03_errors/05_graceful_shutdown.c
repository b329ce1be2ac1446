/* Graceful shutdown: Ctrl+C cancels the work, which cleans up; only then the program ends.
 *   cc 05_graceful_shutdown.c -o shutdown && ./shutdown        (and now press Ctrl+C)
 *   ./shutdown 3600                                            the clean-up hangs: a second
 *   Ctrl+C kills
 * The exit status is 128 + the signal's number: 130 after Ctrl+C (SIGINT), 143 after `kill`
 * (SIGTERM).
 */
#define CONC_STATIC
#include "../../conc.h"
#include <stdlib.h>

static int clean_up(void *seconds)
{
    printf("Cleaning up...\n");
    return conc_sleep(*(double *)seconds); /* saves its work, says goodbye to its peers */
}

static int background_task(void *seconds)
{
    int rc = 0;
    for (int i = 1; i <= 60 && rc == 0; i++) {
        printf("working: %d of 60\n", i);
        rc = conc_sleep(1); /* Ctrl+C arrives here, as -ECANCELED */
    }
    /* finally: with Ctrl+C hidden from it, but no longer than 10 s */
    CONC_TRY(conc_shield(10, clean_up, seconds));
    printf("Cleanup complete\n");
    return rc; /* -ECANCELED: the program ends as interrupted */
}

static int app(void *seconds)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, background_task, seconds));
    return conc_group_wait(&g); /* returns when the task has ended, its clean-up included */
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    return conc_main(app, &seconds);
}
