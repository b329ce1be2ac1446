/* Arguments for a thread. Two workers start together: Alice works for 2 s, Bob for 1 s. Each prints
   when it starts and finishes.

   cc 12_thread_arguments.c -o arguments
   ./arguments

   It prints what ../expected/05_threads/12_thread_arguments.awk allows; either may start first.
   Hint: a thread's function has one argument, a pointer. Put its data into a struct, which must
   live until the thread has ended. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

typedef struct {
    const char *name;
    unsigned delay; /* seconds */
} worker_args;

/* Your turn: print "Worker Alice starting", sleep for the delay, print "Worker Alice finished",
   with the name from the arguments; return NULL. */
static void *worker(void *arg)
{
    worker_args *w = arg;
    printf("Worker %s starting\n", w->name);
    sleep(w->delay);
    printf("Worker %s finished\n", w->name);
    return NULL;
}

/* Your turn: start a thread for each of the two, and wait for both. */
static int run_both(worker_args *first, worker_args *second)
{
    pthread_t thread1, thread2;
    if (pthread_create(&thread1, NULL, worker, first) != 0 ||
        pthread_create(&thread2, NULL, worker, second) != 0)
        return 1;
    pthread_join(thread1, NULL); /* before this function returns: the arguments are main's */
    pthread_join(thread2, NULL);
    return 0;
}

int main(void)
{
    worker_args alice = {"Alice", 2}, bob = {"Bob", 1};
    return run_both(&alice, &bob);
}
