/* Downloads one after the other take as long as all of them; each in a thread of its own, as
 * long as the longest. The network is simulated: a second has passed when all downloads that are
 * under way wait for it. C has no GIL: what computes gains from threads just as what waits, up
 * to the number of processors.
 *   cc 03_downloads_seq_vs_threads.c -o downloads && ./downloads
 */
#define _POSIX_C_SOURCE 200809L /* barriers, also under -std=c11 */
#include <pthread.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t next_turn = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t next_second;
static int turn, under_way, peak, seconds;

typedef struct {
    pthread_t thread;
    int url, takes;
    /* its turns to print: threads have no order of their own, this output is to have one */
    int start, end;
} download;

static void print_in_turn(int number, int more, const char *format, int url)
{
    pthread_mutex_lock(&lock);
    while (turn != number)
        pthread_cond_wait(&next_turn, &lock);
    under_way += more;
    if (under_way > peak)
        peak = under_way;
    printf(format, url);
    turn++;
    pthread_cond_broadcast(&next_turn);
    pthread_mutex_unlock(&lock);
}

static void *run_download(void *arg)
{
    download *d = arg;
    print_in_turn(d->start, 1, "Downloading url%d...\n", d->url);
    for (int s = 0; s < d->takes; s++)
        if (pthread_barrier_wait(&next_second) == PTHREAD_BARRIER_SERIAL_THREAD)
            seconds++; /* one of them counts it */
    print_in_turn(d->end, -1, "Done: url%d\n", d->url);
    return NULL;
}

static int sequential(int count, int takes)
{
    for (int i = 0; i < count; i++)
        run_download(&(download){.url = i + 1, .takes = takes, .start = 2 * i, .end = 2 * i + 1});
    return 0;
}

static int threaded(int count, int takes)
{
    download downloads[5];
    for (int i = 0; i < count; i++) {
        downloads[i] = (download){.url = i + 1, .takes = takes, .start = i, .end = count + i};
        if (pthread_create(&downloads[i].thread, NULL, run_download, &downloads[i]) != 0)
            return -1;
    }
    for (int i = 0; i < count; i++)
        pthread_join(downloads[i].thread, NULL); /* wait for all threads to finish */
    return 0;
}

static int measure(const char *how, int (*run)(int count, int takes), int count, int takes,
                   int at_once)
{
    turn = peak = seconds = 0;
    if (pthread_barrier_init(&next_second, NULL, (unsigned)at_once) != 0 || run(count, takes) < 0)
        return -1;
    pthread_barrier_destroy(&next_second);
    printf("%s: %d s, at most %d at once\n", how, seconds, peak);
    return seconds;
}

static int compare(int count, int takes)
{
    int first = measure("Sequential", sequential, count, takes, 1);
    int then = measure("Threads", threaded, count, takes, count);
    if (first < 0 || then < 0)
        return -1;
    printf("%.1fx faster\n", (double)first / then);
    return 0;
}

/* three of 2 s each, then five of 1 s */
int main(void) { return compare(3, 2) < 0 || compare(5, 1) < 0; }
