/* Two threads: started with their arguments, at work at the same time, and joined. When a thread
 * runs is up to the system; here each waits for its turn, so that the output is the same every
 * time. A sleep would only make it likely.
 *   cc 01_two_threads.c -o two_threads && ./two_threads
 */
#include <pthread.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t next_turn = PTHREAD_COND_INITIALIZER;
static int turn;

static void begin_turn(int number)
{
    pthread_mutex_lock(&lock);
    while (turn != number)
        pthread_cond_wait(&next_turn, &lock); /* lets go of the lock while it waits */
}

static void end_turn(void)
{
    turn++;
    pthread_cond_broadcast(&next_turn);
    pthread_mutex_unlock(&lock);
}

typedef struct {
    const char *name;
    int number, delay;
} worker_args;

static void *worker(void *arg) /* the one argument of a thread: more of them go into a struct */
{
    worker_args *w = arg;
    begin_turn(w->number);
    printf("Worker %s starting\n", w->name);
    end_turn();
    begin_turn(1 + w->delay); /* turns 0 and 1 are those of the starts */
    printf("Worker %s finished\n", w->name);
    end_turn();
    return NULL;
}

static void *print_numbers(void *arg)
{
    for (int i = 0; i < 5; i++) {
        begin_turn(2 * i);
        printf("Number: %d\n", i);
        end_turn();
    }
    return arg;
}

static void *print_letters(void *arg)
{
    for (int i = 0; i < 5; i++) {
        begin_turn(2 * i + 1);
        printf("Letter: %c\n", "ABCDE"[i]);
        end_turn();
    }
    return arg;
}

static int run_two(void *(*run1)(void *), void *arg1, void *(*run2)(void *), void *arg2)
{
    pthread_t thread1, thread2;
    turn = 0;
    if (pthread_create(&thread1, NULL, run1, arg1) != 0 ||
        pthread_create(&thread2, NULL, run2, arg2) != 0)
        return -1;
    /* without the joins main would return, and that ends all threads, done or not; */
    pthread_join(thread1, NULL);
    pthread_join(thread2, NULL); /* their arguments would be gone even before */
    return 0;
}

int main(void)
{
    worker_args alice = {"Alice", 0, 2}, bob = {"Bob", 1, 1};
    if (run_two(worker, &alice, worker, &bob) < 0 ||
        run_two(print_numbers, NULL, print_letters, NULL) < 0)
        return 1;
    printf("Done!\n");
    return 0;
}
