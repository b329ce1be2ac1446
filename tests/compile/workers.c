/* A program whose constructors make what its jobs look for. conc is in another file, or in a library. */
#include "all.h"

#include <stdlib.h>

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
    (void)arg;
    return heap ? table + *heap : -1;
}

static int app(void *arg)
{
    (void)arg;
    CONC_AUTO(conc_procs, pool) = {.workers = 1};
    CONC_TRY(conc_procs_open(&pool));
    int found = conc_procs_run(&pool, looks, NULL, 0);
    if (found != 85)
        printf("the worker found %d (%s)\n", found, conc_last_error());
    return found == 85 ? 0 : -EIO;
}

int main(void) { return conc_main(app, NULL); }
