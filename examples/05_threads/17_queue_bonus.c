/* A queue of one's own. The same as 09_thread_queue.c, in plain threads, with a queue built from a
   lock, a condition and an array: put waits for a slot, get for an item, and join until every item
   put has been marked done.

   cc 17_queue_bonus.c -o own_queue
   ./own_queue

   It prints ../expected/05_threads/17_queue_bonus.txt.
   Hint: the array is a ring: the next item is at first, the next free slot at (first + count)
   modulo PLACES. Wait in a loop: before a thread reacquires the lock, another may be faster. */
#define _POSIX_C_SOURCE 200809L /* for nanosleep under -std=c11 */
#include <pthread.h>
#include <stdio.h>
#include <time.h>

enum { PLACES = 2 };

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const int *items[PLACES];
    int first, count, unfinished;
} queue;

/* Your turn: in the lock, wait while the queue is full; put the item in, count it as unfinished
   too, and wake those that wait. */
static void queue_put(queue *q, const int *item)
{
    pthread_mutex_lock(&q->lock);
    while (q->count == PLACES)
        pthread_cond_wait(&q->changed, &q->lock);
    q->items[(q->first + q->count) % PLACES] = item;
    q->count++;
    q->unfinished++;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

/* Your turn: in the lock, wait while the queue is empty; take the first item out, wake those that
   wait, and return the item. */
static const int *queue_get(queue *q)
{
    pthread_mutex_lock(&q->lock);
    while (q->count == 0)
        pthread_cond_wait(&q->changed, &q->lock);
    const int *item = q->items[q->first];
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

/* Your turn: in the lock, wait until no item is unfinished. */
static void queue_join(queue *q)
{
    pthread_mutex_lock(&q->lock);
    while (q->unfinished > 0)
        pthread_cond_wait(&q->changed, &q->lock);
    pthread_mutex_unlock(&q->lock);
}

static void *producer(void *arg)
{
    static const int numbers[] = {0, 1, 2, 3, 4};
    for (int i = 0; i < 5; i++)
        queue_put(arg, &numbers[i]); /* two of them at once; then it waits for places */
    return NULL;
}

static void *consumer(void *arg)
{
    const int *item;
    while ((item = queue_get(arg))) { /* NULL: the poison pill */
        nanosleep(&(struct timespec){0, 100000000}, NULL);
        printf("Consumed: %d\n", *item);
        queue_task_done(arg);
    }
    queue_task_done(arg); /* the pill, too */
    return NULL;
}

int main(void)
{
    queue q = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    pthread_t thread1, thread2;
    if (pthread_create(&thread1, NULL, producer, &q) != 0 ||
        pthread_create(&thread2, NULL, consumer, &q) != 0)
        return 1;
    pthread_join(thread1, NULL);
    queue_join(&q);
    printf("All items are done\n");
    queue_put(&q, NULL); /* behind all items */
    pthread_join(thread2, NULL);
    return 0;
}
