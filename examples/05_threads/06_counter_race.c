/* A counter race. Two threads add 1 to the same counter 100,000 times each: see that it does not
   reach 200,000, and fix it, once with a lock, once with an atomic.

   cc 06_counter_race.c -o race
   ./race
   cc -DPLAIN -g -fsanitize=thread 06_counter_race.c -o race_plain && ./race_plain
       # the same with a plain int: ThreadSanitizer names the lines where two threads meet

   It prints what ../expected/05_threads/06_counter_race.awk allows: what is lost differs.
   Hint: pthread_mutex_lock, pthread_mutex_unlock; atomic_fetch_add(&atomic_counter, 1). */
#define _POSIX_C_SOURCE 200809L /* for nanosleep under -std=c11 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

enum { TIMES = 100000 };

#ifdef PLAIN
static int counter; /* for two threads at once this is undefined: anything may happen */
#else
static atomic_int counter; /* here each read and each write is whole, but not the two together */
#endif
static atomic_int atomic_counter;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* counter += 1 is three steps; the system may stop a thread between any two of them, as it is
   stopped here for a millisecond, every thousandth time. */
static void add_one(int i)
{
    int value = counter;
    if (i % 1000 == 0)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    counter = value + 1; /* what the other thread wrote meanwhile is lost */
}

static void *without_lock(void *arg)
{
    for (int i = 0; i < TIMES; i++)
        add_one(i);
    return arg;
}

/* Your turn: the same, but each add_one in the lock; return arg. */
static void *with_lock(void *arg)
{
    for (int i = 0; i < TIMES; i++) {
        pthread_mutex_lock(&lock);
        add_one(i);
        pthread_mutex_unlock(&lock);
    }
    return arg;
}

/* Your turn: add to atomic_counter, all three steps in one and without a lock; return arg. */
static void *with_atomic(void *arg)
{
    for (int i = 0; i < TIMES; i++)
        atomic_fetch_add(&atomic_counter, 1);
    return arg;
}

static void run_two(const char *how, void *(*increment)(void *))
{
    pthread_t thread1, thread2;
    counter = 0;
    if (pthread_create(&thread1, NULL, increment, NULL) != 0 ||
        pthread_create(&thread2, NULL, increment, NULL) != 0)
        return;
    pthread_join(thread1, NULL);
    pthread_join(thread2, NULL);
    int total = counter + atomic_counter;
    printf("%s: Final counter: %d, lost: %d\n", how, total, 2 * TIMES - total);
}

int main(void)
{
    run_two("Without a lock", without_lock);
    run_two("With a lock", with_lock);
    run_two("With an atomic", with_atomic);
    return 0;
}
