/* Thread pool: however many jobs, it has a few threads for them. Jobs are submitted and waited
 * for; a map does both for an array; the end of the block closes the pool, which waits for all.
 * C has no GIL: computing jobs gain from it, too.
 *   cc 04_thread_pool.c -o pool && ./pool        (CONC_CLOCK=virtual ./pool takes no time)
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <pthread.h>
#include <stdatomic.h>

static atomic_int done, workers;
static _Thread_local bool counted; /* every thread has its own */

static int work(void *seconds)
{
    if (!counted)
        workers++;
    counted = true;
    CONC_TRY(conc_block(*(double *)seconds)); /* blocks this thread; the loop goes on */
    done++;
    return 0;
}

static int task(void *arg)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t next_turn = PTHREAD_COND_INITIALIZER;
    static int turn;
    int n = *(int *)arg;
    pthread_mutex_lock(&lock);
    /* jobs are begun in the order of the submits, but threads print when the system likes */
    while (turn != n)
        pthread_cond_wait(&next_turn, &lock);
    printf("Task %d starting\n", turn++);
    pthread_cond_broadcast(&next_turn);
    pthread_mutex_unlock(&lock);
    CONC_TRY(work(&(double){1}));
    return n;
}

static int download(void *url)
{
    int n = *(int *)url;
    CONC_TRY(work(&(double){1.2 - 0.2 * n})); /* the last one is the first to be done */
    printf("Done: url%d\n", n);
    return 100 * n;
}

static int five_tasks(conc_pool *pool)
{
    static int numbers[] = {0, 1, 2, 3, 4}, results[CONC_LEN(numbers)];
    static conc_job futures[CONC_LEN(numbers)];
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        CONC_TRY(conc_pool_submit(pool, &futures[i], task, &numbers[i]));
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        CONC_TRY(conc_job_wait(&futures[i], &results[i])); /* results[i] = futures[i].result() */
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        printf("Task %d completed\n", results[i]);
    return 0;
}

static int ten_for_the_close(conc_pool *pool)
{
    static double seconds = 1;
    static conc_job jobs[10];
    for (size_t i = 0; i < CONC_LEN(jobs); i++)
        CONC_TRY(conc_pool_submit(pool, &jobs[i], work, &seconds));
    return 0;
}

static int downloads(conc_pool *pool)
{
    int urls[] = {1, 2, 3, 4, 5}, sizes[CONC_LEN(urls)];
    CONC_TRY(conc_pool_map_all(pool, download, urls, CONC_LEN(urls), sizeof urls[0], sizes));
    for (size_t i = 0; i < CONC_LEN(urls); i++)
        printf("url%d: %d bytes\n", urls[i], sizes[i]);
    return 0;
}

static int a_thousand(conc_pool *pool) /* in ten threads: a thousand would be too many */
{
    double seconds = 0.01;
    return conc_pool_map(pool, work, &seconds, 1000, 0); /* all with the same argument */
}

static int with_pool(int threads, int (*block)(conc_pool *pool))
{
    double start = conc_now();
    done = 0;
    workers = 0;
    {
        /* with ThreadPoolExecutor(max_workers=threads) as pool: */
        CONC_AUTO(conc_pool, pool) = {.threads = threads};
        CONC_TRY(conc_pool_open(&pool));
        CONC_TRY(block(&pool));
    }
    printf("%d jobs by %d workers in %.0f s\n", done, workers, conc_now() - start);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(with_pool(3, five_tasks));
    CONC_TRY(with_pool(5, ten_for_the_close));
    CONC_TRY(with_pool(5, downloads));
    return with_pool(10, a_thousand);
}

int main(void) { return conc_main(app, NULL); }
