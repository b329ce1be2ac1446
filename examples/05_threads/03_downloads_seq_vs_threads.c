/* Downloads, one by one and in threads. Three downloads take 2 s each: 6 s one after the other, 2 s
   with a thread each. Time both. Then the same with five of 1 s: 5 s, 1 s.

   cc 03_downloads_seq_vs_threads.c -o downloads
   ./downloads
   CONC_CLOCK=virtual ./downloads     # without waiting

   It prints what ../expected/05_threads/03_downloads_seq_vs_threads.awk allows.
   Hint: a pool with as many threads as downloads runs all in parallel; conc_pool_map calls download
   with the address of each element, and returns when all are done. */
#define CONC_STATIC
#include "../../conc_pool.h"

typedef struct {
    const char *url;
    double seconds;
} job;

static int download(void *arg)
{
    job *j = arg;
    printf("Downloading %s...\n", j->url);
    CONC_TRY(conc_block(j->seconds)); /* simulates the network; blocks its thread, as sleep does */
    printf("Done: %s\n", j->url);
    return 0;
}

/* Your turn: download one after the other. An error is passed on. */
static int sequential(job *jobs, size_t count)
{
    for (size_t i = 0; i < count; i++)
        CONC_TRY(download(&jobs[i]));
    return 0;
}

/* Your turn: download all at once, in a pool of so many threads. */
static int threaded(job *jobs, size_t count)
{
    CONC_AUTO(conc_pool, pool) = {.threads = (int)count};
    CONC_TRY(conc_pool_open(&pool));
    return conc_pool_map(&pool, download, jobs, count, sizeof jobs[0]);
}

static int compare(job *jobs, size_t count)
{
    double start = conc_now();
    CONC_TRY(sequential(jobs, count));
    double middle = conc_now();
    printf("Sequential: %.1f seconds\n", middle - start);
    CONC_TRY(threaded(jobs, count));
    printf("Threads: %.1f seconds\n", conc_now() - middle);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    job three[] = {{"url1", 2}, {"url2", 2}, {"url3", 2}};
    job five[] = {{"url1", 1}, {"url2", 1}, {"url3", 1}, {"url4", 1}, {"url5", 1}};
    CONC_TRY(compare(three, CONC_LEN(three)));
    return compare(five, CONC_LEN(five));
}

int main(void) { return conc_main(app, NULL); }
