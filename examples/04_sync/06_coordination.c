/* Coordination: a latch waits until all are ready, a barrier lets nobody on before the last is
 * there, and a condition hands items on through a buffer of two places, whose users wait while
 * it is full or empty.
 *   cc 06_coordination.c -o coordination && ./coordination        (CONC_CLOCK=virtual
 *   ./coordination takes no time)
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
    CONC_TRY(conc_latch_done(&not_ready)); /* one less; the runner goes on at once */
    CONC_TRY(conc_sleep(seconds));
    printf("%.0f s: runner %d is at the line\n", conc_now() - start, seconds);
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

static conc_lock lock;
static conc_cond changed;
static int buffer[2], count;

static int producer(void *items)
{
    for (int i = 1; i <= *(int *)items; i++)
        CONC_LOCKED(&lock) {
            /* a loop: until this has the lock again, another one may have filled it */
            while (count == 2)
                CONC_TRY(conc_cond_wait(&changed, &lock));
            buffer[count++] = i;
            printf("%.0f s: put %d, the buffer has %d\n", conc_now() - start, i, count);
            conc_cond_notify_all(&changed);
        }
    return 0;
}

static int consumer(void *items)
{
    for (int i = 1; i <= *(int *)items; i++) {
        CONC_LOCKED(&lock) {
            while (count == 0)
                CONC_TRY(conc_cond_wait(&changed, &lock));
            printf("%.0f s: took %d\n", conc_now() - start, buffer[0]);
            buffer[0] = buffer[1];
            count--;
            conc_cond_notify_all(&changed);
        }
        CONC_TRY(conc_sleep(1)); /* slow: it is the producer that has to wait */
    }
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    int seconds[] = {3, 1, 2}, items = 5;
    start = conc_now();
    CONC_TRY(conc_latch_add(&not_ready, CONC_LEN(seconds)));
    CONC_TRY(CONC_GATHER(CONC_CALL(starter, NULL), CONC_CALL(runner, &seconds[0]),
                         CONC_CALL(runner, &seconds[1]), CONC_CALL(runner, &seconds[2])));
    start = conc_now();
    return CONC_GATHER(CONC_CALL(consumer, &items), CONC_CALL(producer, &items));
}

int main(void) { return conc_main(app, NULL); }
