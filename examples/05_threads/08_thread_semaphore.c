/* Semaphore. Five threads want in, and a semaphore lets two in at a time. Each prints when it has
   acquired the semaphore, stays for a second, prints that it releases it, and leaves.

   cc 08_thread_semaphore.c -o semaphore
   ./semaphore     # takes 3 s: two, two and one

   It prints what ../expected/05_threads/08_thread_semaphore.awk allows; the system chooses.
   Hint: sem_init(&s, 0, 2) makes two permits, sem_wait waits for a permit and takes it, sem_post
   returns one. */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <unistd.h>

enum { THREADS = 5 };

static sem_t semaphore;

typedef struct {
    pthread_t thread;
    char name[20];
} worker_args;

/* Your turn: in the semaphore, print "Thread-0 acquired semaphore" with the worker's name, sleep
   for a second, print "Thread-0 released semaphore"; return NULL. */
static void *worker(void *arg)
{
    worker_args *w = arg;
    sem_wait(&semaphore);
    printf("%s acquired semaphore\n", w->name);
    sleep(1);
    printf("%s released semaphore\n", w->name);
    sem_post(&semaphore); /* after the line: a thread that comes in prints its own behind it */
    return NULL;
}

/* Your turn: start the five threads, then wait for all of them. */
static int run_all(worker_args *workers)
{
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&workers[i].thread, NULL, worker, &workers[i]) != 0)
            return 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    return 0;
}

int main(void)
{
    worker_args workers[THREADS];
    sem_init(&semaphore, 0, 2); /* allows two threads at a time */
    for (int i = 0; i < THREADS; i++)
        snprintf(workers[i].name, sizeof workers[i].name, "Thread-%d", i);
    return run_all(workers);
}
