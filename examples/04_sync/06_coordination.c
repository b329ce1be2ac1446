/* Coordination: a latch waits until all are ready, a barrier lets nobody on before the last is there, and a condition
 * makes a buffer of two places whose users wait while it is full or empty: two of them link a pipeline's stages.
 *   cc 06_coordination.c -o coordination && ./coordination        (CONC_CLOCK=virtual ./coordination takes no time)
 */
#define CONC_STATIC
#include "../../conc_sync.h"

static double start;

static conc_latch not_ready;
static conc_barrier line = CONC_BARRIER(3);

static int runner(void *arg)
{
    int seconds = *(int *)arg;
    CONC_TRY(conc_sleep(seconds));
    printf("%.0f s: runner %d is ready\n", conc_now() - start, seconds);
    CONC_TRY(conc_latch_done(&not_ready));
    CONC_TRY(conc_barrier_wait(&line));
    printf("%.0f s: runner %d is off\n", conc_now() - start, seconds);
    return 0;
}

static int starter(void *arg)
{
    (void)arg;
    CONC_TRY(conc_latch_wait(&not_ready));
    printf("%.0f s: all are ready\n", conc_now() - start);
    return 0;
}

typedef struct {
    conc_lock lock;
    conc_cond changed;
    int items[2], count;
} buffer;

static int put(buffer *b, int item)
{
    CONC_LOCKED(&b->lock)
    {
        while (b->count == 2) /* in a loop: when it has the lock again, others may have been there before */
            CONC_TRY(conc_cond_wait(&b->changed, &b->lock));
        b->items[b->count++] = item;
        conc_cond_notify_all(&b->changed);
    }
    return 0;
}

static int take(buffer *b)
{
    int item = 0;
    CONC_LOCKED(&b->lock)
    {
        while (b->count == 0)
            CONC_TRY(conc_cond_wait(&b->changed, &b->lock));
        item = b->items[0];
        b->items[0] = b->items[1];
        b->count--;
        conc_cond_notify_all(&b->changed);
    }
    return item;
}

static buffer numbers, squares;

static int make(void *arg)
{
    (void)arg;
    for (int i = 5; i >= 0; i--) { /* 0 is the end */
        CONC_TRY(put(&numbers, i));
        printf("%.0f s: put %d, the buffer has %d\n", conc_now() - start, i, numbers.count);
    }
    return 0;
}

static int square(void *arg)
{
    (void)arg;
    for (int n = 1; n > 0;) {
        n = CONC_TRY(take(&numbers));
        CONC_TRY(put(&squares, n * n));
    }
    return 0;
}

static int print(void *arg)
{
    (void)arg;
    for (int n; (n = CONC_TRY(take(&squares))) > 0;) {
        CONC_TRY(conc_sleep(1)); /* the slowest stage: those before it wait */
        printf("%.0f s: got %d\n", conc_now() - start, n);
    }
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    int seconds[] = {3, 1, 2};
    start = conc_now();
    CONC_TRY(conc_latch_add(&not_ready, CONC_LEN(seconds)));
    CONC_TRY(CONC_GATHER(CONC_CALL(starter, NULL), CONC_CALL(runner, &seconds[0]), CONC_CALL(runner, &seconds[1]),
                         CONC_CALL(runner, &seconds[2])));
    start = conc_now();
    return CONC_GATHER(CONC_CALL(make, NULL), CONC_CALL(square, NULL), CONC_CALL(print, NULL));
}

int main(void) { return conc_main(app, NULL); }
