/* Event. A waiter waits for an event, a setter sets it after 2 s. Once set it stays set, so a late
   waiter, which comes after both, does not wait. Print the seconds at the end.

   cc 10_thread_event.c -o waiter_and_setter
   ./waiter_and_setter

   It prints ../expected/05_threads/10_thread_event.txt.
   Hint: pthread_cond_wait releases the lock while it waits, and reacquires it before returning. A
   broadcast wakes only threads that are already waiting, so check is_set before each wait. */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool is_set; /* these three are the event */

/* Your turn: in the lock, wait for the condition as long as the event is not set. */
static void event_wait(void)
{
    pthread_mutex_lock(&lock);
    while (!is_set)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

/* Your turn: in the lock, set the event, and wake all that wait (pthread_cond_broadcast). */
static void event_set(void)
{
    pthread_mutex_lock(&lock);
    is_set = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void *waiter(void *arg)
{
    printf("Waiting for event...\n");
    event_wait();
    printf("Event received!\n");
    return arg;
}

/* Your turn: sleep for 2 s, print "Setting event...", set it; return arg. */
static void *setter(void *arg)
{
    sleep(2);
    printf("Setting event...\n");
    event_set();
    return arg;
}

int main(void)
{
    pthread_t thread1, thread2;
    time_t start = time(NULL);
    if (pthread_create(&thread1, NULL, waiter, NULL) != 0 ||
        pthread_create(&thread2, NULL, setter, NULL) != 0)
        return 1;
    pthread_join(thread1, NULL);
    pthread_join(thread2, NULL);
    waiter(NULL); /* late: it is set already */
    printf("%s\n", time(NULL) - start >= 2 ? "After 2 s" : "Too early");
    return 0;
}
