/* Queue. A producer puts the numbers 0 to 4 into a queue, one every half second; a consumer takes
   them out. When the producer has ended, a poison pill tells the consumer to stop.

   cc 09_thread_queue.c -o producer_consumer
   ./producer_consumer
   CONC_CLOCK=virtual ./producer_consumer     # without waiting

   It prints ../expected/05_threads/09_thread_queue.txt.
   Hint: conc_channel_send(&q, &item) puts, conc_channel_recv(&q, &item) gets; they wait for a slot
   and for an item. The items are pointers here, so NULL can be the pill. */
#define CONC_STATIC
#include "../../conc_pool.h"

static int numbers[] = {0, 1, 2, 3, 4};

/* Your turn: print "Produced: 0", put a pointer to that number, block this thread for half a
   second; and so on, until the 4. */
static int producer(void *arg)
{
    conc_channel *q = arg;
    for (size_t i = 0; i < CONC_LEN(numbers); i++) {
        int *item = &numbers[i];
        printf("Produced: %d\n", *item); /* before the put: after it the consumer may be faster */
        CONC_TRY(conc_channel_send(q, &item));
        CONC_TRY(conc_block(0.5));
    }
    return 0;
}

/* Your turn: take items and print "Consumed: 0" with the number, until the item is NULL. */
static int consumer(void *arg)
{
    conc_channel *q = arg;
    int *item;
    for (;;) {
        CONC_TRY(conc_channel_recv(q, &item));
        if (!item)
            return 0; /* the poison pill */
        printf("Consumed: %d\n", *item);
    }
}

static int app(void *arg)
{
    (void)arg;
    double start = conc_now();
    int *pill = NULL;
    conc_job produce, consume;
    CONC_AUTO(conc_channel, q) = CONC_CHANNEL(int *, 10);
    CONC_AUTO(conc_pool, pool) = {.threads = 2};
    CONC_TRY(conc_pool_open(&pool));
    CONC_TRY(conc_pool_submit(&pool, &produce, producer, &q));
    CONC_TRY(conc_pool_submit(&pool, &consume, consumer, &q));
    CONC_TRY(conc_job_wait(&produce, NULL));
    CONC_TRY(conc_channel_send(&q, &pill)); /* behind all items */
    CONC_TRY(conc_job_wait(&consume, NULL));
    printf("%.1f seconds\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
