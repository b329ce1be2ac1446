/* No run. A function that waits is called in main, where no loop runs: the wait is refused. Call
   it in a run.

   cc 14_no_run_bonus.c -o norun
   ./norun

   It prints ../expected/01_start/14_no_run_bonus.txt.
   Hint: conc_run(function, arg) is conc_main for programs that also do other things. */
#define CONC_STATIC
#include "../../conc.h"

static int answer(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(1));
    return 42;
}

static int wrong(void) { return answer(NULL); }

/* Your turn: call answer(NULL) in a run, and return its result. */
static int right(void) { return conc_run(answer, NULL); }

int main(void)
{
    int rc = wrong();
    printf("wrong: %s\n", rc == -EPERM ? "-EPERM, not in a run" : "no error");
    rc = right();
    printf("right: %d\n", rc);
    return 0;
}
