/* A map on a pool. Five threads fetch five files in parallel; the first takes 1 s, each later one
   0.2 s less than the one before, so the last finishes first. The results are still in file order.
   Print when each is done, then the sizes in order, then the seconds.

   cc 13_pool_map.c -o pool_map
   CONC_CLOCK=virtual ./pool_map # or without, in real time

   It prints ../expected/05_threads/13_pool_map.txt.
   Hint: conc_pool_map_all(pool, fn, array, count, size of an element, results) calls fn with the
   address of each element; results is an array of int of the same length. */
#define CONC_STATIC
#include "../../conc_pool.h"

/* Your turn: with the number n of the file that arg points to, block this thread for
   1.2 - 0.2 * n seconds, print "Done: url1" with n, and return the size, 100 * n. */
static int download(void *arg)
{
    int n = *(int *)arg;
    CONC_TRY(conc_block(1.2 - 0.2 * n));
    printf("Done: url%d\n", n);
    return 100 * n;
}

/* Your turn: download files 1 to 5 by a map on the pool, then print the size of each. */
static int five_downloads(conc_pool *pool)
{
    int urls[] = {1, 2, 3, 4, 5}, sizes[CONC_LEN(urls)];
    CONC_TRY(conc_pool_map_all(pool, download, urls, CONC_LEN(urls), sizeof urls[0], sizes));
    for (size_t i = 0; i < CONC_LEN(urls); i++)
        printf("url%d: %d bytes\n", urls[i], CONC_TRY(sizes[i]));
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    double start = conc_now();
    CONC_AUTO(conc_pool, pool) = {.threads = 5};
    CONC_TRY(conc_pool_open(&pool));
    CONC_TRY(five_downloads(&pool));
    printf("%.1f seconds\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
