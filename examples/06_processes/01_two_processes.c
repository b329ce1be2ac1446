/* Two processes: started with their arguments, at work at the same time, and joined; each ends
 * with a status. Memory is not shared: what a process changes, no other one sees. Each is this
 * program once more, with an argument.
 *   cc 01_two_processes.c -o two_processes && ./two_processes
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int counter; /* each process has its own */

static int worker(int number) /* what a child does: Process(target=worker, args=(number,)) */
{
    counter += number;
    printf("Process-%d starting\n", number);
    fflush(stdout); /* what goes into a pipe would lie in its buffer until the end */
    /* the work: lasts until the parent closes this pipe, so that it is the parent who says when */
    getchar();
    printf("Process-%d finished, counter is %d\n", number, counter);
    return counter;
}

static int print_line(int fd) /* a child writes a line at once */
{
    char line[80];
    int n = (int)CONC_TRY(conc_read(fd, line, sizeof line));
    printf("%.*s", n, line);
    return 0;
}

static int start(conc_child *process)
{
    CONC_TRY(conc_child_start(process));
    return print_line(process->output);
}

static int join(conc_child *process, const char *name)
{
    int status;
    CONC_TRY(conc_close(process->input));
    process->input = -1; /* closed already */
    CONC_TRY(print_line(process->output));
    CONC_TRY(conc_child_wait(process, &status)); /* this task waits; the loop goes on */
    if (!WIFEXITED(status))
        return conc_fail(-EIO, "%s was killed by signal %d", name, WTERMSIG(status));
    printf("%s ended with exit status %d\n", name, WEXITSTATUS(status));
    return 0;
}

static int app(void *program)
{
    const char *argv1[] = {program, "1", NULL}, *argv2[] = {program, "2", NULL};
    CONC_AUTO(conc_child, process1) = {.argv = argv1, .input = CONC_PIPE, .output = CONC_PIPE};
    CONC_AUTO(conc_child, process2) = {.argv = argv2, .input = CONC_PIPE, .output = CONC_PIPE};
    counter = 100;
    CONC_TRY(start(&process1));
    CONC_TRY(start(&process2)); /* now both are at work */
    CONC_TRY(join(&process1, "Process-1"));
    CONC_TRY(join(&process2, "Process-2"));
    if (process1.pid != process2.pid && process1.pid != getpid() && process2.pid != getpid())
        printf("Three processes, three pids; here counter is still %d\n", counter);
    printf("All processes completed\n");
    return 0;
}

int main(int argc, char **argv)
{
    return argc == 2 ? worker(atoi(argv[1])) : conc_main(app, argv[0]);
}
