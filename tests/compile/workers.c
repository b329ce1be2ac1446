/* A program whose constructors create what its jobs look for, and fork in a worker. conc is in
 * another file, or in a library. When its first worker has ended, another file has the program's
 * name. */
#include "all.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static int table, *heap;

__attribute__((constructor)) static void fill_table(void)
{
    table = 42;
    heap = malloc(sizeof *heap);
    if (heap)
        *heap = 43;
}

/* Both processes continue with the other constructors. */
__attribute__((constructor)) static void fork_a_helper(void)
{
    if (getenv("CONC__WORKER") && fork() < 0)
        abort();
}

static int looks(void *arg)
{
    *(pid_t *)arg = getpid();
    return heap ? table + *heap : -1;
}

static int looks_again(void *arg) { return looks(arg) + 1; }

static int find(conc_procs *p, pid_t *worker)
{
    int found = conc_procs_run(p, looks, worker, sizeof *worker);
    if (found != 85)
        printf("a worker found %d (%s)\n", found, conc_last_error());
    return found == 85 ? 0 : -EIO;
}

/* A function that is looked up while the program has no free descriptor. */
static int find_without_descriptors(conc_procs *p, pid_t *worker)
{
    struct rlimit limit, none;
    getrlimit(RLIMIT_NOFILE, &limit);
    none = limit;
    none.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &none);
    int found = conc_procs_run(p, looks_again, worker, sizeof *worker);
    setrlimit(RLIMIT_NOFILE, &limit);
    if (found != 86)
        printf("a worker found %d (%s)\n", found, conc_last_error());
    return found == 86 ? 0 : -EIO;
}

static int app(void *arg)
{
    const char *own = arg;
    pid_t worker = 0;
    CONC_AUTO(conc_procs, pool) = {.workers = 1};
    CONC_TRY(conc_procs_open(&pool));
    CONC_TRY(find(&pool, &worker));
    CONC_TRY(find_without_descriptors(&pool, &worker));
    if (own) {
        unlink(own);
        CONC_TRY(conc_file_write(own, "another file", 12));
    }
    kill(worker, SIGKILL);
    return find(&pool, &worker);
}

int main(int argc, char **argv) { return conc_main(app, argc > 1 ? argv[1] : NULL); }
