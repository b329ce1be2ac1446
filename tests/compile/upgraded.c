/* A program with conc in a library, whose directory link points elsewhere after its first worker
 * has ended: to another build, or to a copy of the same build. */
#include "all.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int number(void *arg)
{
    *(pid_t *)arg = getpid();
    return 42;
}

static int app(void *arg)
{
    char **words = arg;
    pid_t worker = 0;
    CONC_AUTO(conc_procs, pool) = {.workers = 1};
    CONC_TRY(conc_procs_open(&pool));
    CONC_TRY(conc_procs_run(&pool, number, &worker, sizeof worker));
    CONC_TRY(unlink(words[1]));
    CONC_TRY(symlink(words[2], words[1]));
    kill(worker, SIGKILL);
    int rc = conc_procs_run(&pool, number, &worker, sizeof worker);
    bool refused = rc == -ENOTRECOVERABLE && strstr(conc_last_error(), "a different build");
    bool as_expected = strcmp(words[3], "copy") == 0 ? rc == 42 : refused;
    if (!as_expected)
        printf("the new worker: %d (%s)\n", rc, conc_last_error());
    return as_expected ? 0 : -EIO;
}

int main(int argc, char **argv)
{
    if (getenv("CONC__WORKER") || argc < 4) {
        puts("main runs in a worker");
        return 1;
    }
    return conc_main(app, argv);
}
