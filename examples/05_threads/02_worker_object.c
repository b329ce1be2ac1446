/* A thread class. A worker thread is an object that contains the thread, a name, a number and a
   result. Thread-1 (with the number 3) and Thread-2 (4) run in parallel: each prints that it is
   running, works for 2 s, stores its number's square as its result, and prints that it finished.

   cc 02_worker_object.c -o worker
   ./worker

   It prints what ../expected/05_threads/02_worker_object.awk allows; either may be first.
   Hint: in a class derived from threading.Thread, self is implicit. Here it is the argument that
   pthread_create passes to the function. The result is available after the join, not before. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

typedef struct {
    pthread_t thread;
    const char *name;
    int number, result;
} worker_thread;

/* Your turn: print "Thread Thread-1 is running", sleep for 2 s, set the result to the square of
   the number, print "Thread Thread-1 finished", with the worker's own name; return NULL. */
static void *worker_run(void *self)
{
    worker_thread *w = self;
    printf("Thread %s is running\n", w->name);
    sleep(2);
    w->result = w->number * w->number; /* no lock: it is read after the join */
    printf("Thread %s finished\n", w->name);
    return NULL;
}

/* Your turn: start a thread that runs worker_run with this worker: 0, or what pthread_create
   returns. */
static int worker_start(worker_thread *w)
{
    return pthread_create(&w->thread, NULL, worker_run, w);
}

/* Your turn: wait until the worker's thread has ended. */
static void worker_join(worker_thread *w) { pthread_join(w->thread, NULL); }

int main(void)
{
    worker_thread thread1 = {.name = "Thread-1", .number = 3};
    worker_thread thread2 = {.name = "Thread-2", .number = 4};
    if (worker_start(&thread1) != 0 || worker_start(&thread2) != 0)
        return 1;
    worker_join(&thread1);
    worker_join(&thread2);
    printf("Results: %d and %d\n", thread1.result, thread2.result);
    return 0;
}
