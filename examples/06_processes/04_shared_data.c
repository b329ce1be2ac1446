/* Shared data: processes have a memory each; what is to be shared is allocated as such, and
 * needs the care that threads need: a lock that is made for several processes, or an atomic.
 * Without, five processes that add 1 make 1.
 *   cc 04_shared_data.c -o shared && ./shared
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { PROCESSES = 5 };

/* no pointers but to this very memory, which has the same address in each process */
typedef struct {
    struct {
        char key[16]; /* "": free */
        atomic_int value;
    } dict[8];
    atomic_int value;
    pthread_mutex_t lock;
    pthread_barrier_t all;
} shared;

/* there is one more key than are used, so it ends */
static atomic_int *item(shared *s, const char *key)
{
    int i = 0;
    while (*s->dict[i].key && strcmp(s->dict[i].key, key) != 0)
        i++;
    return &s->dict[i].value;
}

static int add_without_lock(void *arg)
{
    shared *s = *(shared **)arg;
    int count = *item(s, "count"), value = s->value;
    pthread_barrier_wait(&s->all); /* all five have read, none has written */
    *item(s, "count") = count + 1;
    s->value = value + 1;
    return 0;
}

static int add_with_lock(void *arg)
{
    shared *s = *(shared **)arg;
    pthread_barrier_wait(&s->all); /* all five are at work */
    pthread_mutex_lock(&s->lock);
    *item(s, "count") = *item(s, "count") + 1;
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_add(&s->value, 1); /* one step: no lock needed */
    return 0;
}

static int five_processes(const char *how, conc_fn *add, conc_procs *pool, shared *s)
{
    /* a job gets a copy of its argument: here of the pointer */
    shared *each[PROCESSES] = {s, s, s, s, s};
    strcpy(s->dict[0].key, "count");
    s->dict[0].value = s->value = 0;
    CONC_TRY(conc_procs_map(pool, add, each, PROCESSES, sizeof each[0]));
    printf("%s:\n", how);
    printf("Final count (dict): %d\n", *item(s, "count"));
    printf("Final count (value): %d\n", s->value);
    return 0;
}

static int app(void *s)
{
    /* opened after the memory was allocated */
    CONC_AUTO(conc_procs, pool) = {.workers = PROCESSES};
    CONC_TRY(conc_procs_open(&pool));
    CONC_TRY(five_processes("Read, then write", add_without_lock, &pool, s));
    return five_processes("With a lock, and with an atomic", add_with_lock, &pool, s);
}

static int prepare(shared *s)
{
    pthread_mutexattr_t for_lock;
    pthread_barrierattr_t for_all;
    pthread_mutexattr_init(&for_lock);
    pthread_mutexattr_setpshared(&for_lock, PTHREAD_PROCESS_SHARED);
    pthread_barrierattr_init(&for_all);
    pthread_barrierattr_setpshared(&for_all, PTHREAD_PROCESS_SHARED);
    int error = pthread_mutex_init(&s->lock, &for_lock);
    return error ? error : pthread_barrier_init(&s->all, &for_all, PROCESSES);
}

int main(void)
{
    shared *s = conc_shared_alloc(sizeof *s);
    if (!s || prepare(s) != 0)
        return 1;
    int status = conc_main(app, s);
    conc_shared_free(s);
    return status;
}
