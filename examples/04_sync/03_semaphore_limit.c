/* Semaphore: twelve downloads are started at once, no more than 5 (then 10) are under way, and
 * each waits for its turn.
 *   cc 03_semaphore_limit.c -o semaphore && ./semaphore        (CONC_CLOCK=virtual ./semaphore
 *   takes no time)
 */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_sem downloads;
static int inside, peak;
static double start;

static int download(void *arg)
{
    int number = *(int *)arg;
    /* async with: given back when the block is left, however that happens */
    CONC_PERMIT(&downloads) {
        if (++inside > peak)
            peak = inside;
        printf("%.0f s: download %d starts, %d under way\n", conc_now() - start, number, inside);
        int rc = conc_sleep(1 + number % 3);
        inside--;
        CONC_TRY(rc);
    }
    return 0;
}

static int download_all(int limit)
{
    int numbers[12];
    for (int i = 0; i < 12; i++)
        numbers[i] = i + 1;
    downloads = (conc_sem)CONC_SEM(limit);
    peak = 0;
    start = conc_now();
    printf("A semaphore of %d:\n", limit);
    CONC_TRY(CONC_MAP(download, numbers));
    printf("%.0f s: 12 done, at most %d at once\n", conc_now() - start, peak);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(download_all(5));
    return download_all(10);
}

int main(void) { return conc_main(app, NULL); }
