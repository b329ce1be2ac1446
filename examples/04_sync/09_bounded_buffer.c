/* Coordination, a condition. A buffer has two places: the producer waits while it is full, the
   consumer while it is empty. That is how a queue with a capacity is made.

   cc 09_bounded_buffer.c -o buffer
   ./buffer
   CONC_CLOCK=virtual ./buffer     # the same, without the waiting

   It prints what stands in ../expected/04_sync/09_bounded_buffer.txt.
   Hint: conc_cond_wait(&changed, &lock) gives the lock back while it waits. Call it in a loop: when
   it returns, another task may have been faster. conc_cond_notify_all wakes those that wait. */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_lock lock;
static conc_cond changed; /* somebody has put or taken */
static int buffer[2], count;
static double start;

/* Your turn: with the lock, wait while the buffer is full, put the item behind the others, print
   "0 s: put 1, the buffer has 1", and notify. */
static int put(int item)
{
    CONC_LOCKED(&lock) {
        while (count == 2)
            CONC_TRY(conc_cond_wait(&changed, &lock));
        buffer[count++] = item;
        printf("%.0f s: put %d, the buffer has %d\n", conc_now() - start, item, count);
        conc_cond_notify_all(&changed);
    }
    return 0;
}

/* Your turn: with the lock, wait while the buffer is empty, take the first item, print
   "1 s: took 1", and notify. */
static int take(void)
{
    CONC_LOCKED(&lock) {
        while (count == 0)
            CONC_TRY(conc_cond_wait(&changed, &lock));
        printf("%.0f s: took %d\n", conc_now() - start, buffer[0]);
        buffer[0] = buffer[1];
        count--;
        conc_cond_notify_all(&changed);
    }
    return 0;
}

static int producer(void *arg)
{
    (void)arg;
    for (int item = 1; item <= 5; item++) {
        if (item == 4)
            CONC_TRY(conc_sleep(4)); /* the buffer is empty by then */
        CONC_TRY(put(item));
    }
    return 0;
}

static int consumer(void *arg)
{
    (void)arg;
    for (int i = 0; i < 5; i++) {
        CONC_TRY(conc_sleep(1));
        CONC_TRY(take());
    }
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    return CONC_GATHER(CONC_CALL(consumer, NULL), CONC_CALL(producer, NULL));
}

int main(void) { return conc_main(app, NULL); }
