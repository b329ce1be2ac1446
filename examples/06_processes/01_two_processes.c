/* Two processes. Process-1 and Process-2 run in parallel: each prints that it is starting, works
   for 2 s, and prints that it finished. Main waits for both. Memory is not shared: each process has
   its own counter, and main's stays 0.

   cc 01_two_processes.c -o two_processes
   ./two_processes

   It prints what ../expected/06_processes/01_two_processes.awk allows; either may be first.
   Hint: a conc_child is another program; here it is this program again, with an argument.
   conc_child_start starts it, conc_child_wait waits for it to end. Start both before waiting. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <sys/wait.h>
#include <unistd.h>

static int counter; /* each process has its own */

/* Your turn: what a child does. Print "Process Process-1 starting" with the name and flush that
   (fflush), count 1, sleep for 2 s, print "Process Process-1 finished, counter is 1"; return 0. */
static int worker(const char *name)
{
    printf("Process %s starting\n", name);
    fflush(stdout); /* in a file or pipe it would only be seen at the end */
    counter++;
    sleep(2);
    printf("Process %s finished, counter is %d\n", name, counter);
    return 0;
}

/* Your turn: start both, then wait for both. The status of each goes to *status1, *status2. */
static int run_both(conc_child *process1, conc_child *process2, int *status1, int *status2)
{
    CONC_TRY(conc_child_start(process1));
    CONC_TRY(conc_child_start(process2)); /* now both are at work */
    CONC_TRY(conc_child_wait(process1, status1));
    CONC_TRY(conc_child_wait(process2, status2)); /* only this task waits; the loop goes on */
    return 0;
}

static int app(void *program)
{
    const char *argv1[] = {program, "Process-1", NULL}, *argv2[] = {program, "Process-2", NULL};
    CONC_AUTO(conc_child, process1) = {.argv = argv1};
    CONC_AUTO(conc_child, process2) = {.argv = argv2};
    int status1 = -1, status2 = -1;
    CONC_TRY(run_both(&process1, &process2, &status1, &status2));
    printf("All processes completed, here counter is %d\n", counter);
    if (WIFEXITED(status1) && WIFEXITED(status2)) /* not killed by a signal */
        printf("Exit statuses: %d and %d\n", WEXITSTATUS(status1), WEXITSTATUS(status2));
    return 0;
}

int main(int argc, char **argv) { return argc == 2 ? worker(argv[1]) : conc_main(app, argv[0]); }
