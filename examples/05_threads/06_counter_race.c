/* A counter race: "counter += 1" reads, adds and writes. When two threads read the same value,
 * an increment is lost. A lock cures it, and so does an atomic. C has no GIL: threads compute at
 * the same time, and gain time, and lose more.
 *   cc 06_counter_race.c -o race && ./race        (./race --free leaves the race to chance:
 *   other numbers in each run)
 */
#define _POSIX_C_SOURCE 200809L /* barriers, also under -std=c11 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { TIMES = 100000 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t both;
static int counter;
/* a race for a plain int is undefined in C: compilers may even hide it */
static atomic_int unguarded;
static atomic_int ready;

static int read_counter(void) { return atomic_load_explicit(&unguarded, memory_order_relaxed); }
static void write_counter(int value)
{
    atomic_store_explicit(&unguarded, value, memory_order_relaxed);
}

static void *without_lock(void *arg)
{
    ready++;
    while (ready < 2) { /* until the other one is really running, too */
    }
    for (int i = 0; i < TIMES; i++)
        write_counter(read_counter() + 1); /* what "counter += 1" is */
    return arg;
}

static void *without_lock_once(void *arg)
{
    int value = read_counter();
    pthread_barrier_wait(&both); /* both have read the same value */
    write_counter(value + 1);
    pthread_barrier_wait(&both); /* both have written the same value */
    for (int i = 1; i < TIMES; i++) {
        pthread_mutex_lock(&lock);
        write_counter(read_counter() + 1);
        pthread_mutex_unlock(&lock);
    }
    return arg;
}

static void *with_lock(void *arg)
{
    for (int i = 0; i < TIMES; i++) {
        pthread_mutex_lock(&lock);
        counter += 1;
        pthread_mutex_unlock(&lock);
    }
    return arg;
}

static void *with_atomic(void *arg)
{
    for (int i = 0; i < TIMES; i++)
        atomic_fetch_add(&unguarded, 1); /* all of it in one step, without a lock */
    return arg;
}

static int run_two(const char *how, void *(*increment)(void *))
{
    pthread_t thread1, thread2;
    counter = 0;
    unguarded = 0;
    if (pthread_create(&thread1, NULL, increment, NULL) != 0 ||
        pthread_create(&thread2, NULL, increment, NULL) != 0)
        return -1;
    pthread_join(thread1, NULL);
    pthread_join(thread2, NULL);
    int total = counter + unguarded;
    printf("%s: Final counter: %d, lost: %d\n", how, total, 2 * TIMES - total);
    return 0;
}

int main(int argc, char **argv)
{
    if (pthread_barrier_init(&both, NULL, 2) != 0)
        return 1;
    if (argc > 1 && strcmp(argv[1], "--free") == 0)
        return run_two("Without a lock", without_lock) < 0;
    return run_two("One time without the lock", without_lock_once) < 0 ||
           run_two("With a lock", with_lock) < 0 || run_two("With an atomic", with_atomic) < 0;
}
