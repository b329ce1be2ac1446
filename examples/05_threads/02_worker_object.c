/* An object that is a thread: a struct with the thread, its data and its result in it, and a run
 * function of its own. Whoever joins it may read the result.
 *   cc 02_worker_object.c -o worker && ./worker
 */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>

/* What all such objects have in common: threading.Thread */
typedef struct thread {
    void (*run)(struct thread *self);
    pthread_t handle;
} thread;

static void *call_run(void *self)
{
    ((thread *)self)->run(self);
    return NULL;
}

static int thread_start(thread *t) { return pthread_create(&t->handle, NULL, call_run, t); }
static int thread_join(thread *t) { return pthread_join(t->handle, NULL); }

/* One kind of them: class WorkerThread(threading.Thread) */
typedef struct {
    thread base; /* first, so that a pointer to it is one to the worker */
    const char *name;
    int number, result;
    sem_t running, work; /* here work is something that comes from outside */
} worker_thread;

static void worker_run(thread *self)
{
    worker_thread *w = (worker_thread *)self;
    printf("Thread %s is running\n", w->name);
    sem_post(&w->running);
    sem_wait(&w->work);
    w->result = w->number * w->number; /* no lock: nobody looks before the join */
    printf("Thread %s finished\n", w->name);
}

static int worker_start(worker_thread *w, const char *name, int number)
{
    *w = (worker_thread){.base.run = worker_run, .name = name, .number = number};
    if (sem_init(&w->running, 0, 0) < 0 || sem_init(&w->work, 0, 0) < 0 ||
        thread_start(&w->base) != 0)
        return -1;
    sem_wait(&w->running); /* when this returns it runs for sure */
    return 0;
}

static void worker_finish(worker_thread *w)
{
    sem_post(&w->work);
    thread_join(&w->base);
    sem_destroy(&w->running);
    sem_destroy(&w->work);
}

int main(void)
{
    worker_thread thread1, thread2;
    if (worker_start(&thread1, "Thread-1", 3) < 0 || worker_start(&thread2, "Thread-2", 4) < 0)
        return 1;
    worker_finish(&thread1);
    worker_finish(&thread2);
    printf("Results: %d and %d\n", thread1.result, thread2.result);
    return 0;
}
