/* Semaphore. Start twelve downloads, but let at most 5 run at a time; then the same with 10. The
   others wait, in order.

   cc 03_semaphore_limit.c -o semaphore
   ./semaphore
   CONC_CLOCK=virtual ./semaphore     # without waiting

   It prints ../expected/04_sync/03_semaphore_limit.txt.
   Hint: CONC_PERMIT(&downloads) { ... } waits for a permit, and returns it when the block is
   left. */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_sem downloads;
static int under_way, most;
static double start;

static int fetch(int number)
{
    under_way++;
    if (under_way > most)
        most = under_way;
    printf("%.0f s: download %d, %d under way\n", conc_now() - start, number, under_way);
    CONC_TRY(conc_sleep(1 + number % 3));
    under_way--;
    return 0;
}

/* Your turn: fetch the number, with a permit of the semaphore. */
static int download(void *arg)
{
    int *number = arg;
    CONC_PERMIT(&downloads) {
        CONC_TRY(fetch(*number));
    }
    return 0;
}

static int download_all(int limit)
{
    int numbers[12];
    for (int i = 0; i < 12; i++)
        numbers[i] = i + 1;
    downloads = (conc_sem)CONC_SEM(limit);
    most = 0;
    start = conc_now();
    printf("A semaphore of %d:\n", limit);
    CONC_TRY(CONC_MAP(download, numbers));
    printf("%.0f s: 12 done, at most %d at once\n", conc_now() - start, most);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(download_all(5));
    return download_all(10);
}

int main(void) { return conc_main(app, NULL); }
