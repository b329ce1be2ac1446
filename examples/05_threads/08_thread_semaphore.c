/* Semaphore: of five threads two at a time get in; whoever comes then waits until one of them
 * leaves.
 *   cc 08_thread_semaphore.c -o semaphore && ./semaphore
 */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>

enum { THREADS = 5, PERMITS = 2 };

static sem_t semaphore; /* allows 2 threads at a time */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int inside, peak;

typedef struct {
    char name[16];
    pthread_t thread;
    /* it has printed a line; it may leave: so that main, not chance, makes the order */
    sem_t said, leave;
} worker_args;

static void count(int more)
{
    pthread_mutex_lock(&lock);
    inside += more;
    if (inside > peak)
        peak = inside;
    pthread_mutex_unlock(&lock);
}

static void *worker(void *arg)
{
    worker_args *w = arg;
    if (sem_trywait(&semaphore) < 0) { /* sem_wait alone would do: this is only to tell who waits */
        printf("%s waits\n", w->name);
        sem_post(&w->said);
        sem_wait(&semaphore);
    }
    count(1);
    printf("%s acquired semaphore\n", w->name);
    sem_post(&w->said);
    sem_wait(&w->leave); /* the work */
    printf("%s released semaphore\n", w->name);
    count(-1);
    sem_post(&semaphore);
    return NULL;
}

static int start(worker_args *w, int number)
{
    snprintf(w->name, sizeof w->name, "Thread-%d", number);
    if (sem_init(&w->said, 0, 0) < 0 || sem_init(&w->leave, 0, 0) < 0 ||
        pthread_create(&w->thread, NULL, worker, w) != 0)
        return -1;
    sem_wait(&w->said); /* it is inside, or waits */
    return 0;
}

static void finish(worker_args *w)
{
    sem_post(&w->leave);
    pthread_join(w->thread, NULL);
    sem_destroy(&w->said);
    sem_destroy(&w->leave);
}

int main(void)
{
    worker_args workers[THREADS];
    if (sem_init(&semaphore, 0, PERMITS) < 0)
        return 1;
    for (int i = 0; i < THREADS; i++) {
        if (start(&workers[i], i) < 0)
            return 1;
        if (i >= PERMITS) { /* two are inside: the oldest one makes room */
            finish(&workers[i - PERMITS]);
            sem_wait(&workers[i].said);
        }
    }
    for (int i = THREADS - PERMITS; i < THREADS; i++)
        finish(&workers[i]);
    sem_destroy(&semaphore);
    printf("At most %d at once\n", peak);
    return 0;
}
