/* Who interrupts whom. A busy function does not wait: it counts until a flag is set, or for a
   million rounds. A task that would set the flag gets no turn before the function ends (tasks are
   cooperative); a thread does (threads are preemptive).

   cc 10_who_interrupts.c -o interrupts
   ./interrupts

   It prints ../expected/01_start/10_who_interrupts.txt.
   Hint: a spawned task runs when its spawner waits: at the latest in conc_group_wait. */
#define CONC_STATIC
#include "../../conc.h"
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

/* 0, what it was */
static int set_flag(void *flag) { return atomic_exchange((atomic_int *)flag, 1); }

static void *set_in_thread(void *flag) { return set_flag(flag) ? flag : NULL; }

/* There is no checkpoint in here: the calling task keeps the loop. */
static void be_busy(const char *name, atomic_int *flag, long rounds)
{
    while (!*flag && rounds-- > 0) {
    }
    printf("Interrupted by a %s: %s\n", name, *flag ? "yes" : "no");
}

/* Your turn: spawn a task that runs set_flag(&flag), be busy for a million rounds, and wait for the
   task. Then print "The task has run now" if the flag is set. */
static int with_a_task(void)
{
    atomic_int flag = 0;
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, set_flag, &flag));
    be_busy("task", &flag, 1000000);
    CONC_TRY(conc_group_wait(&g));
    printf("The task has %s\n", flag ? "run now" : "not run");
    return 0;
}

/* Your turn: start a thread that runs set_in_thread(&flag), be busy for LONG_MAX rounds, and wait
   for the thread. */
static int with_a_thread(void)
{
    atomic_int flag = 0;
    pthread_t thread;
    CONC_TRY(-pthread_create(&thread, NULL, set_in_thread, &flag));
    be_busy("thread", &flag, LONG_MAX);
    return -pthread_join(thread, NULL);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(with_a_task());
    return with_a_thread();
}

int main(void) { return conc_main(app, NULL); }
