/* Event: a thread waits until another one sets it. Once set it stays set, so nobody misses it
 * who comes late.
 *   cc 10_thread_event.c -o event && ./event
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_set;
} event;

#define EVENT                                                                  \
    {                                                                          \
        .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER \
    }

static event announced = EVENT, started = EVENT;

static void event_wait(event *e)
{
    pthread_mutex_lock(&e->lock);
    /* a condition alone forgets: who waits after the broadcast would wait for ever */
    while (!e->is_set)
        pthread_cond_wait(&e->changed, &e->lock);
    pthread_mutex_unlock(&e->lock);
}

static void event_set(event *e)
{
    pthread_mutex_lock(&e->lock);
    e->is_set = true;
    pthread_cond_broadcast(&e->changed); /* wakes all that wait */
    pthread_mutex_unlock(&e->lock);
}

static void *waiter(void *arg)
{
    printf("Waiting for event...\n");
    event_set(&started);
    event_wait(&announced);
    printf("Event received!\n");
    return arg;
}

static void *setter(void *arg)
{
    event_wait(&started); /* a sleep would only make it likely that the waiter is first */
    printf("Setting event...\n");
    event_set(&announced);
    return arg;
}

int main(void)
{
    pthread_t thread1, thread2;
    if (pthread_create(&thread1, NULL, waiter, NULL) != 0 ||
        pthread_create(&thread2, NULL, setter, NULL) != 0)
        return 1;
    pthread_join(thread1, NULL);
    pthread_join(thread2, NULL);
    return 0;
}
