/* Inside the loop: spawned tasks stand in the ready queue, sleeping ones at the timers, and no
 * task interrupts one that does not wait. A thread does: it runs when the system likes.
 *   cc 05_loop_anatomy.c -o anatomy && ./anatomy        (CONC_CLOCK=virtual ./anatomy takes no
 *   time)
 */
#define CONC_STATIC
#include "../../conc.h"
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

static void show(const char *when)
{
    conc_stats s;
    conc_get_stats(&s);
    printf("%s: %zu ready, %zu at the timers\n", when, s.ready, s.timers);
}

static int fetch(void *number)
{
    printf("%d starts\n", *(int *)number);
    CONC_TRY(conc_sleep(2)); /* from the ready queue to the timers, and back to the queue's end */
    printf("%d done\n", *(int *)number);
    return 100 + *(int *)number;
}

/* 0, what it was */
static int set_flag(void *flag) { return atomic_exchange((atomic_int *)flag, 1); }
static void *set_in_thread(void *flag) { return set_flag(flag) ? flag : NULL; }

/* no checkpoint in here: the task keeps the loop */
static const char *busy_until_set(atomic_int *flag, long turns)
{
    while (!*flag && turns-- > 0) {
    }
    return *flag ? "yes" : "no";
}

static int app(void *arg)
{
    (void)arg;
    int numbers[] = {1, 2, 3}, result = 0;
    conc_task tasks[CONC_LEN(numbers)] = {0};
    conc_group g = {0};
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        CONC_TRY_IN(&g, conc_spawn_task(&g, &tasks[i], fetch, &numbers[i]));
    show("Spawned");
    CONC_TRY_IN(&g, conc_yield()); /* to the end of the ready queue: the three run first */
    show("Waiting");
    CONC_TRY_IN(&g, conc_join(&tasks[2], &result)); /* the handle is the future, too */
    printf("Result of 3: %d\n", result);

    atomic_int by_task = 0, by_thread = 0;
    CONC_TRY_IN(&g, conc_spawn(&g, set_flag, &by_task));
    printf("Interrupted by a task: %s\n", busy_until_set(&by_task, 1000000));
    CONC_TRY(conc_group_wait(&g)); /* only now it runs */
    pthread_t thread;
    CONC_TRY(-pthread_create(&thread, NULL, set_in_thread, &by_thread));
    printf("Interrupted by a thread: %s\n", busy_until_set(&by_thread, LONG_MAX));
    return -pthread_join(thread, NULL);
}

int main(void) { return conc_main(app, NULL); }
