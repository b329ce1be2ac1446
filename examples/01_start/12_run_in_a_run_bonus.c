/* A run inside a run. A task needs the result of a function that waits, and begins a run for it.
   That fails: "asyncio.run() cannot be called from a running event loop". There already is a loop:
   just call the function.

   cc 12_run_in_a_run_bonus.c -o nested
   ./nested

   It prints ../expected/01_start/12_run_in_a_run_bonus.txt.
   Hint: in C there is no `await` to write: the call waits, as conc_sleep does. */
#define CONC_STATIC
#include "../../conc.h"

static int inner(void *answer)
{
    CONC_TRY(conc_sleep(1));
    *(int *)answer = 42;
    return 0;
}

static int wrong(int *answer) { return conc_run(inner, answer); }

/* Your turn: have inner fill in the answer; return its error or 0. */
static int right(int *answer) { return inner(answer); }

static int outer(void *arg)
{
    (void)arg;
    int answer = 0;
    int rc = wrong(&answer);
    printf("wrong: %s, the answer is %d\n", rc == -EBUSY ? "-EBUSY" : "no error", answer);
    rc = right(&answer);
    printf("right: %s, the answer is %d\n", rc < 0 ? conc_last_error() : "no error", answer);
    return 0;
}

int main(void) { return conc_main(outer, NULL); }
