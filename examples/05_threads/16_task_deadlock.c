/* Deadlock of tasks. Threads that wait for each other's lock just hang. When tasks do, the run
   reports which task waits for which, and returns -EDEADLK. Try it: two tasks take locks A and B,
   one in the opposite order; then both in the same order, and both finish.

   cc 16_task_deadlock.c -o task_deadlock
   ./task_deadlock     # the report goes to standard error

   It prints ../expected/05_threads/16_task_deadlock.txt, besides the report.
   Hint: CONC_LOCKED(lock) { ... } holds it for a block. Between the two locks, wait, so that the
   other task takes its first one. */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_lock lock_a, lock_b;

typedef struct {
    const char *name;
    conc_lock *first, *second;
} task_args;

/* Your turn: give the task its name (conc_set_name), take the first lock, sleep for 0.1 s, take
   the second one too, and print "task1 has both locks", with its name. */
static int take_both(void *arg)
{
    task_args *t = arg;
    conc_set_name(conc_self(), t->name);
    CONC_LOCKED(t->first) {
        CONC_TRY(conc_sleep(0.1)); /* the other task takes its first lock, if it can */
        CONC_LOCKED(t->second) {
            printf("%s has both locks\n", t->name);
        }
    }
    return 0;
}

static int two_tasks(void *args) { return conc_map(take_both, args, 2, sizeof(task_args)); }

/* Your turn: run the two tasks (conc_run), and print what the run returned in words: the order,
   then "both finished" or conc_strerror(rc). */
static void run_two(const char *order, task_args *args)
{
    int rc = conc_run(two_tasks, args);
    printf("%s order: %s\n", order, rc == 0 ? "both finished" : conc_strerror(rc));
}

int main(void)
{
    task_args opposite[] = {{"task1", &lock_a, &lock_b}, {"task2", &lock_b, &lock_a}};
    task_args same[] = {{"task1", &lock_a, &lock_b}, {"task2", &lock_a, &lock_b}};
    run_two("Opposite", opposite);
    run_two("The same", same);
    return 0;
}
