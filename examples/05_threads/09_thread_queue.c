/* Queue: one thread produces, another one consumes, and a poison pill ends it. The queue is a
 * lock, a condition and a ring of places; who puts waits for a place, who gets for an item, who
 * joins until all items were worked on.
 *   cc 09_thread_queue.c -o queue && ./queue
 */
#include <pthread.h>
#include <stdio.h>

enum { PLACES = 4 };

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int *items[PLACES];
    int first, count, unfinished;
} queue;

static void queue_put(queue *q, int *item)
{
    pthread_mutex_lock(&q->lock);
    /* a loop: until this has the lock again, another thread may have been faster */
    while (q->count == PLACES)
        pthread_cond_wait(&q->changed, &q->lock);
    q->items[(q->first + q->count++) % PLACES] = item;
    q->unfinished++;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

static int *queue_get(queue *q)
{
    pthread_mutex_lock(&q->lock);
    while (q->count == 0)
        pthread_cond_wait(&q->changed, &q->lock);
    int *item = q->items[q->first];
    q->first = (q->first + 1) % PLACES;
    q->count--;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
    return item;
}

static void queue_task_done(queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->unfinished--;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

static void queue_join(queue *q)
{
    pthread_mutex_lock(&q->lock);
    while (q->unfinished > 0)
        pthread_cond_wait(&q->changed, &q->lock);
    pthread_mutex_unlock(&q->lock);
}

static void *producer(void *q)
{
    static int items[] = {0, 1, 2, 3, 4};
    for (int i = 0; i < 5; i++) {
        /* before the put: after it the consumer may be faster with its line */
        printf("Produced: %d\n", items[i]);
        queue_put(q, &items[i]);
        /* until the consumer is done with it: this, not a sleep, makes the lines alternate */
        queue_join(q);
    }
    return NULL;
}

static void *consumer(void *q)
{
    int *item;
    while ((item = queue_get(q)) != NULL) { /* NULL: the poison pill */
        printf("Consumed: %d\n", *item);
        queue_task_done(q);
    }
    return NULL;
}

int main(void)
{
    queue q = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    pthread_t producer_thread, consumer_thread;
    if (pthread_create(&producer_thread, NULL, producer, &q) != 0 ||
        pthread_create(&consumer_thread, NULL, consumer, &q) != 0)
        return 1;
    pthread_join(producer_thread, NULL);
    queue_put(&q, NULL); /* behind all items */
    pthread_join(consumer_thread, NULL);
    return 0;
}
