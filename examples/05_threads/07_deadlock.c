/* Deadlock: each of two threads holds one lock and wants the other's. When both take the locks
 * in the same order, it cannot happen. Threads just hang; when tasks do, the run tells who waits
 * for whom, and ends with -EDEADLK.
 *   cc 07_deadlock.c -o deadlock && ./deadlock        (takes no time, CONC_CLOCK=virtual or not)
 */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <pthread.h>
#include <unistd.h>

static pthread_mutex_t mutex_a = PTHREAD_MUTEX_INITIALIZER, mutex_b = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t both;

typedef struct {
    pthread_mutex_t *first, *second;
    bool got_both;
} thread_args;

static void *opposite_order(void *arg)
{
    thread_args *t = arg;
    pthread_mutex_lock(t->first);
    pthread_barrier_wait(&both);                         /* each holds one */
    t->got_both = pthread_mutex_trylock(t->second) == 0; /* pthread_mutex_lock would never return */
    /* each has tried: only now one may let go */
    pthread_barrier_wait(&both);
    if (t->got_both)
        pthread_mutex_unlock(t->second);
    pthread_mutex_unlock(t->first);
    return NULL;
}

static void *same_order(void *arg)
{
    thread_args *t = arg;
    pthread_mutex_lock(t->first);
    pthread_mutex_lock(t->second);
    t->got_both = true;
    pthread_mutex_unlock(t->second);
    pthread_mutex_unlock(t->first);
    return NULL;
}

static int run_threads(const char *how, void *(*run)(void *), thread_args t1, thread_args t2)
{
    pthread_t thread1, thread2;
    CONC_TRY(-pthread_create(&thread1, NULL, run, &t1));
    CONC_TRY(-pthread_create(&thread2, NULL, run, &t2));
    pthread_join(thread1, NULL);
    pthread_join(thread2, NULL);
    printf("Threads, %s order: %s\n", how,
           t1.got_both && t2.got_both ? "both finished" : "deadlock detected");
    return 0;
}

static conc_lock lock_a, lock_b;

typedef struct {
    const char *name;
    conc_lock *first, *second;
} task_args;

static int task(void *arg)
{
    task_args *t = arg;
    conc_set_name(conc_self(), t->name);
    CONC_LOCKED(t->first) {
        CONC_TRY(conc_yield()); /* the other task takes its first lock now, if it can */
        CONC_LOCKED(t->second) {
            printf("%s has both locks\n", t->name);
        }
    }
    return 0;
}

static int two_tasks(void *args) { return conc_map(task, args, 2, sizeof(task_args)); }

int main(void)
{
    thread_args ab = {&mutex_a, &mutex_b, false}, ba = {&mutex_b, &mutex_a, false};
    if (pthread_barrier_init(&both, NULL, 2) != 0 ||
        run_threads("opposite", opposite_order, ab, ba) < 0 ||
        run_threads("the same", same_order, ab, ab) < 0)
        return 1;
    fflush(stdout);
    /* the report goes to stderr: here it is to be read in its place */
    dup2(STDOUT_FILENO, STDERR_FILENO);
    task_args opposite[] = {{"task1", &lock_a, &lock_b}, {"task2", &lock_b, &lock_a}};
    task_args same[] = {{"task1", &lock_a, &lock_b}, {"task2", &lock_a, &lock_b}};
    int rc = conc_run(two_tasks, opposite);
    printf("Tasks, opposite order: %s: %s\n", rc == -EDEADLK ? "-EDEADLK" : "not seen",
           conc_strerror(rc));
    rc = conc_run(two_tasks, same);
    printf("Tasks, the same order: %s\n", rc == 0 ? "both finished" : conc_strerror(rc));
    return rc < 0;
}
