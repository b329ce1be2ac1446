/* Coordination, a condition. A buffer has two slots: the producer waits while it is full, two
   consumers while it is empty. This is how a bounded queue works.

   cc 09_bounded_buffer.c -o buffer
   ./buffer
   CONC_CLOCK=virtual ./buffer     # without waiting

   It prints ../expected/04_sync/09_bounded_buffer.txt.
   Hint: conc_cond_wait(&changed, &lock) releases the lock while it waits. Call it in a loop: when
   it returns, another task may have been faster. conc_cond_notify_all wakes all waiters. */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_lock lock;
static conc_cond changed;    /* an item was put or taken */
static int buffer[6], count; /* two places; if more are used, that is seen, and nothing breaks */
static double start;

static void pop(void)
{
    printf("%.0f s: took %d\n", conc_now() - start, count > 0 ? buffer[0] : 0); /* 0: nothing */
    buffer[0] = buffer[1];
    if (count > 0)
        count--;
}

/* Your turn: with the lock, wait while the buffer is full, store the item at buffer[count], and
   print "1 s: put 1, the buffer has 1"; then notify. */
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

/* Your turn: with the lock, wait while the buffer is empty, pop an item, and notify. */
static int take(void)
{
    CONC_LOCKED(&lock) {
        while (count == 0)
            CONC_TRY(conc_cond_wait(&changed, &lock));
        pop();
        conc_cond_notify_all(&changed);
    }
    return 0;
}

static int producer(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(1)); /* now both consumers wait */
    for (int item = 1; item <= 6; item++)
        CONC_TRY(put(item));
    return 0;
}

static int consumer(void *arg)
{
    (void)arg;
    for (int i = 0; i < 3; i++) {
        CONC_TRY(take());
        CONC_TRY(conc_sleep(2));
    }
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    return CONC_GATHER(CONC_CALL(consumer, NULL), CONC_CALL(consumer, NULL),
                       CONC_CALL(producer, NULL));
}

int main(void) { return conc_main(app, NULL); }
