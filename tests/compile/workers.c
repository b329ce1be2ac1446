/* A program whose constructors make what its jobs look for. conc is in another file, or in a
 * library. When its first worker has ended, another file has the program's name. */
#include "all.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int table, *heap;

__attribute__((constructor)) static void fill_table(void)
{
    table = 42;
    heap = malloc(sizeof *heap);
    if (heap)
        *heap = 43;
}

static int looks(void *arg)
{
    *(pid_t *)arg = getpid();
    return heap ? table + *heap : -1;
}

static int find(conc_procs *p, pid_t *worker)
{
    int found = conc_procs_run(p, looks, worker, sizeof *worker);
    if (found != 85)
        printf("a worker found %d (%s)\n", found, conc_last_error());
    return found == 85 ? 0 : -EIO;
}

static int app(void *arg)
{
    const char *own = arg;
    pid_t worker = 0;
    CONC_AUTO(conc_procs, pool) = {.workers = 1};
    CONC_TRY(conc_procs_open(&pool));
    CONC_TRY(find(&pool, &worker));
    if (own) {
        unlink(own);
        CONC_TRY(conc_file_write(own, "another file", 12));
    }
    kill(worker, SIGKILL);
    return find(&pool, &worker);
}

int main(int argc, char **argv) { return conc_main(app, argc > 1 ? argv[1] : NULL); }
