/* Producer and consumer. One task puts item-0 to item-9 into a queue, one every 0.1 s, and then an
   empty item, which marks the end. The other takes them out and prints them.

   cc 07_producer_consumer.c -o producer
   ./producer
   CONC_CLOCK=virtual ./producer     # without waiting

   It prints ../expected/04_sync/07_producer_consumer.txt.
   Hint: conc_queue_put(q, &it) puts a copy into the queue, conc_queue_get(q, &it) waits for an item
   and copies it out. */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    char name[16]; /* "": the sentinel */
} item;

/* Your turn: put the ten items, 0.1 s after each, and then the sentinel. */
static int producer(void *queue)
{
    item it = {""}, sentinel = {""};
    for (int i = 0; i < 10; i++) {
        snprintf(it.name, sizeof it.name, "item-%d", i);
        CONC_TRY(conc_queue_put(queue, &it));
        CONC_TRY(conc_sleep(0.1));
    }
    return conc_queue_put(queue, &sentinel);
}

/* Your turn: take item after item until the sentinel comes, and print "Processing item-0". */
static int consumer(void *queue)
{
    for (;;) {
        item it;
        CONC_TRY(conc_queue_get(queue, &it));
        if (it.name[0] == '\0')
            return 0;
        printf("Processing %s\n", it.name);
    }
}

static int app(void *arg)
{
    (void)arg;
    double start = conc_now();
    CONC_AUTO(conc_queue, queue) = CONC_QUEUE(item, 0); /* 0: no limit */
    CONC_TRY(CONC_GATHER(CONC_CALL(producer, &queue), CONC_CALL(consumer, &queue)));
    printf("All done after %.1f seconds\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
