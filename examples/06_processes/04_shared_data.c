/* Shared data. Five processes add 1 to the COUNT of a shared dictionary, and to a shared value.
   Both must reach 5. Reading, adding and writing without a lock loses some: see that first.

   cc 04_shared_data.c -o shared
   ./shared

   It prints what ../expected/06_processes/04_shared_data.awk allows: what is lost differs.
   Hint: conc_shared_alloc returns memory that workers started later share. The lock in it works
   between processes. For the value atomic_fetch_add will do, without a lock. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <pthread.h>
#include <stdatomic.h>

enum { PROCESSES = 5 };
enum { COUNT, KEYS }; /* the keys of the dictionary */

typedef struct {
    pthread_mutex_t lock;
    atomic_int dict[KEYS], value;
} shared;

static int add_without_lock(void *arg)
{
    shared *s = *(shared **)arg;
    int count = s->dict[COUNT], value = s->value;
    CONC_TRY(conc_block(0.2)); /* meanwhile others read the same */
    s->dict[COUNT] = count + 1;
    s->value = value + 1;
    return 0;
}

/* Your turn: add 1 to dict[COUNT] in the lock (pthread_mutex_lock), and 1 to the value by an
   atomic; return 0. */
static int add_with_lock(void *arg)
{
    shared *s = *(shared **)arg; /* a worker gets a copy of its argument: here of the pointer */
    pthread_mutex_lock(&s->lock);
    s->dict[COUNT] = s->dict[COUNT] + 1;
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_add(&s->value, 1);
    return 0;
}

/* Your turn: set dict[COUNT] and the value to 0, call add five times, each in a worker of its own
   (with the address of each place of an array of five times s), and print both. */
static int five_processes(const char *how, conc_fn *add, shared *s)
{
    shared *each[PROCESSES] = {s, s, s, s, s};
    CONC_AUTO(conc_procs, pool) = {.workers = PROCESSES};
    CONC_TRY(conc_procs_open(&pool));
    s->dict[COUNT] = 0;
    s->value = 0;
    CONC_TRY(conc_procs_map(&pool, add, each, PROCESSES, sizeof each[0]));
    printf("%s: Final count (dict): %d\n", how, s->dict[COUNT]);
    printf("%s: Final count (value): %d\n", how, s->value);
    return 0;
}

static int app(void *s)
{
    CONC_TRY(five_processes("Without a lock", add_without_lock, s));
    return five_processes("With a lock", add_with_lock, s);
}

int main(void)
{
    pthread_mutexattr_t for_processes;
    shared *s = conc_shared_alloc(sizeof *s);
    if (!s)
        return 1;
    pthread_mutexattr_init(&for_processes);
    pthread_mutexattr_setpshared(&for_processes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&s->lock, &for_processes);
    int status = conc_main(app, s);
    conc_shared_free(s);
    return status;
}
