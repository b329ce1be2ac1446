/* Producer and consumer: a queue between two tasks; the consumer waits for items, and an empty
 * one is the end.
 *   cc 07_producer_consumer.c -o producer && ./producer        (CONC_CLOCK=virtual ./producer
 *   takes no time)
 */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    char name[16]; /* "": the sentinel */
} item;

static int producer(void *queue)
{
    for (int i = 0; i < 10; i++) {
        item it = {""};
        snprintf(it.name, sizeof it.name, "item-%d", i);
        /* puts a copy; it would wait for a place if the queue had a capacity */
        CONC_TRY(conc_queue_put(queue, &it));
        CONC_TRY(conc_sleep(0.1));
    }
    /* conc_queue_close says the same without an item, to any number */
    return conc_queue_put(queue, &(item){""});
}

static int consumer(void *queue)
{
    for (;;) {
        item it;
        CONC_TRY(conc_queue_get(queue, &it));
        if (!it.name[0])
            return 0;
        printf("Processing %s\n", it.name);
    }
}

static int app(void *arg)
{
    (void)arg;
    double start = conc_now();
    CONC_AUTO(conc_queue, queue) = CONC_QUEUE(item, 0);
    CONC_TRY(CONC_GATHER(CONC_CALL(producer, &queue), CONC_CALL(consumer, &queue)));
    printf("All done after %.1f seconds\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
