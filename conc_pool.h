/* conc_pool.h - v0.1.0 - threads, processes, channels, files, names and child programs for
 * conc.h - MIT licence
 *
 * What asyncio.to_thread, ThreadPoolExecutor, ProcessPoolExecutor and create_subprocess_exec are
 * to a Python program: the loop goes on while something blocks or computes.
 *
 *     static int load(void *path)    // runs on a thread of the pool, and may block
 *     {
 *         return count_words(path);
 *     }
 *     static int app(void *arg)
 *     {
 *         (void)arg;
 *         CONC_AUTO(conc_pool, pool) = {.threads = 4};
 *         CONC_TRY(conc_pool_open(&pool));
 *         int words = CONC_TRY(conc_pool_run(&pool, load, "a.txt")); // only this task waits
 *         words += CONC_TRY(conc_offload(load, "b.txt"));            // on a shared pool
 *         CONC_AUTO(conc_procs, procs) = {.workers = 2};
 *         CONC_TRY(conc_procs_open(&procs));
 *         return conc_procs_run(&procs, crunch, &words, sizeof words); // a crash is -EOWNERDEAD
 *     }
 *
 * Include it where you include conc.h, which it includes itself; CONC_IMPLEMENTATION and
 * CONC_STATIC are the same. A program that uses process pools has this module in itself or in a
 * library it is linked with, not in one it loads later.
 *
 * Conventions, beside conc.h's
 *   Jobs      are plain functions that run outside the loop, at the same time as it and each
 *             other. A job is no task: what is for tasks is -EPERM there, and conc_self() NULL;
 *             but it may call conc_run, and all of this module. conc_local_get finds what the
 *             task that sent the job had set, conc_fail's words go to who waits for it, and
 *             conc_block blocks its thread.
 *   Calling   from tasks, which wait while the loop goes on; from jobs and threads without a
 *             run, which block. In a posted function what would wait is -EPERM.
 *   Cancel    a job that runs is waited for even when its caller is cancelled, as its argument
 *             may live on that stack. It can ask conc_job_cancelled(). One that is still in the
 *             queue is taken back. One in a process is killed.
 *   Clock     virtual time stands still while jobs run, and conc_block in one of them is a
 *             timer; that holds for the jobs of a job, too. A job that waits in a call of this
 *             module does not run.
 *   Forks     in a forked child inherited pools are dead: -EPERM, and closing them only frees
 *             memory. A channel has what lay in it, and none of the parent's waiters.
 *
 * Environment: CONC__WORKER marks a worker process that this program started; it is not to be
 * set by hand.
 *
 * Contents: >>pool >>offload >>procs >>channel >>shared >>files >>names >>child, then the
 * implementation, whose sections are listed where it starts, and the licence. */
#ifndef CONC_POOL_H
#define CONC_POOL_H

#include "conc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- >>pool --------------------------------------------------------------------------------- */

/* A pool of threads. The first three fields are yours to set before conc_pool_open. */
typedef struct conc_pool {
    /* at most; 0: one for each processor. They start when they are first needed */
    int threads;
    int queue_limit;  /* jobs that may lie in the queue; a submit above it waits; 0: no limit */
    const char *name; /* of its threads, for debuggers, 15 bytes; NULL: "conc" */
    /* private */
    struct conc__crew *crew;
    unsigned users;
} conc_pool;

/* A function that was submitted. Storage of yours, of any content, that stays where it is until
 * the job ended or was taken back. Private. */
typedef struct conc_job {
    conc_fn *fn;
    void *arg;
    struct conc__crew *crew;
    struct conc__waiter *waiters;
    struct conc__locals *locals;
    conc_loop *clock;
    uintptr_t state;
    unsigned place;
    int result;
    struct conc__parcel *parcel;
    size_t size;
    char text[96];
} conc_job;

/* Opens the pool; no thread starts yet. Errors: -EINVAL (NULL, negative fields), -EBUSY (open),
 * -ENOMEM. From anywhere. */
CONC_API int conc_pool_open(conc_pool *p);

/* Refuses new jobs (but from the pool's own), waits for all there are, and ends the threads: 0.
 * When its task is cancelled, the jobs in the queue are taken back and those that run are asked
 * to end, and it still waits for these. Who closes it meanwhile waits too. Closing twice, or
 * what was never opened, does nothing. -EDEADLK: in a job of this pool; -EPERM: in a posted
 * function. */
CONC_API int conc_pool_close(conc_pool *p);
CONC_API void conc__auto_conc_pool(conc_pool *p);

/* fn(arg) on a thread of the pool: its result. In a job of the same pool it is simply called.
 * Waits. Errors, fn was not called: -ECANCELED, -EINVAL (NULL, not open), -EPIPE (closed),
 * -EAGAIN (no thread can be started), -ENOMEM, -EPERM. */
CONC_API int conc_pool_run(conc_pool *p, conc_fn *fn, void *arg) CONC_NODISCARD;

/* Has fn(arg) called by a thread of the pool, first come, first served, and returns: 0. Waits
 * only for a place under a queue_limit; a job of the pool runs another one meanwhile. Errors,
 * the job is not submitted: as above, and -EBUSY (j is in the queue or runs). */
CONC_API int conc_pool_submit(conc_pool *p, conc_job *j, conc_fn *fn, void *arg) CONC_NODISCARD;

/* fn on each of count elements of size bytes, with the address of the element, in the order of
 * the array and as many at once as there are threads; size 0: every call gets args itself.
 * Returns when all have ended. The first error keeps the rest from starting, and is returned.
 * Waits. Errors as for conc_pool_run. */
CONC_API int conc_pool_map(conc_pool *p, conc_fn *fn, void *args, size_t count,
                           size_t size) CONC_NODISCARD;

/* The same for all of them, whatever they return: 0, or an error (-ECANCELED, -EPIPE...), and
 * then those that were not called have this result too. results (NULL: not wanted) has count
 * places. */
CONC_API int conc_pool_map_all(conc_pool *p, conc_fn *fn, void *args, size_t count, size_t size,
                               int *results);

/* Waits until the job has ended or was taken back: 0, and its result in *result (NULL: not
 * wanted), its words in conc_last_error. Any number may wait. A cancel does not cut it short: it
 * takes the job back (result -ECANCELED), asks it to end when it runs, and kills it when it runs
 * in a process; but not while others wait for it too. A thread of the pool runs the job itself
 * if it is still in the queue. -EINVAL: never submitted. */
CONC_API int conc_job_wait(conc_job *j, int *result) CONC_NODISCARD;

/* Takes the job back when it is in the queue, asks it to end when it runs (and kills it in a
 * process): 0. -EALREADY: it had ended; -EINVAL: never submitted. From anywhere. Not a
 * checkpoint. */
CONC_API int conc_job_cancel(conc_job *j);

/* Has it ended, or was it taken back? From anywhere. */
CONC_API bool conc_job_done(const conc_job *j);

/* In a job: was it asked to end? Elsewhere false. */
CONC_API bool conc_job_cancelled(void);

/* ---- >>offload ------------------------------------------------------------------------------ */

/* conc_pool_run on a pool that all runs share (asyncio.to_thread), from its first use to the end
 * of the last run; it has four threads more than there are processors, at most 32. In jobs and
 * threads without a run fn(arg) is simply called. */
CONC_API int conc_offload(conc_fn *fn, void *arg);

/* The same for what may hang: a cancel returns -ECANCELED at once, the job goes on alone, and
 * nobody learns its result. arg is the job's: free_arg(arg) (NULL: not wanted) is called once,
 * after the job, or at once if fn was not called, whatever is returned. Neither the run's nor
 * the program's end waits for such a job. */
CONC_API int conc_offload_abandon(conc_fn *fn, void *arg, void (*free_arg)(void *));

/* ---- >>procs -------------------------------------------------------------------------------- */

/* A pool of processes, for what may crash or must be killed. Linux. The first four fields are
 * yours to set before conc_procs_open.
 *
 * Workers are this program executed anew, taken over before main: they see globals as at the
 * program's start, inherit standard output and error and nothing else, and get functions by
 * module and offset (a library that was loaded later is loaded in them too). Standard output is
 * flushed after each job. They ignore SIGINT, and end with their parent. */
typedef struct conc_procs {
    /* at most (4096); 0: one for each processor. They start when they are first needed */
    int workers;
    size_t memory_limit; /* bytes of data that a worker may have (RLIMIT_DATA); 0: no limit */
    /* forked instead, at open, with globals and descriptors as they are then, but no input */
    bool fork;
    /* called first in each worker; a negative result breaks the pool; NULL: nothing */
    int (*init)(void);
    /* private */
    struct conc__crew *crew;
    unsigned users;
} conc_procs;

/* Opens the pool, in a run or outside. Errors: -EINVAL (NULL, negative workers), -EBUSY (open;
 * or .fork and the process has other threads), -EAGAIN and others of pthread_create, fork, mmap
 * and socketpair, -ENOMEM, -ENOTSUP (not Linux), -EPERM (a set-user-ID program, without .fork). */
CONC_API int conc_procs_open(conc_procs *p);

/* As conc_pool_close; jobs that run are killed when its task is cancelled. When it returns all
 * workers have ended. */
CONC_API int conc_procs_close(conc_procs *p);
CONC_API void conc__auto_conc_procs(conc_procs *p);

/* fn in a worker, on a copy of the size bytes at arg, aligned as max_align_t, which comes back
 * when fn returned: its result. Any size. Waits. Errors, arg is as before: -EOWNERDEAD (the
 * worker died in fn; conc_last_error says of what), -ECANCELED (a worker that was in fn is
 * killed), -EAGAIN (no worker can be started now) and -ENOTRECOVERABLE (none comes up, or init
 * failed; conc_last_error says why, and closing and opening the pool is what is left), -EINVAL,
 * -EPIPE (closed), -ENOMEM, -EPERM. A worker that dies costs only its own job, and is replaced. */
CONC_API int conc_procs_run(conc_procs *p, conc_fn *fn, void *arg, size_t size) CONC_NODISCARD;

/* The same without waiting for it; the bytes at arg are the job's until it ended. */
CONC_API int conc_procs_submit(conc_procs *p, conc_job *j, conc_fn *fn, void *arg,
                               size_t size) CONC_NODISCARD;

/* As conc_pool_map and conc_pool_map_all, each element as in conc_procs_run. Elements go to a
 * worker several at a time, as an array; one that kills its worker costs only itself. With size
 * 0 each call gets NULL. */
CONC_API int conc_procs_map(conc_procs *p, conc_fn *fn, void *args, size_t count,
                            size_t size) CONC_NODISCARD;
CONC_API int conc_procs_map_all(conc_procs *p, conc_fn *fn, void *args, size_t count, size_t size,
                                int *results);

/* Bytes in, bytes out: returns how many it wrote to out, or a negative error. */
typedef ssize_t conc_procs_fn(const void *in, size_t in_size, void *out, size_t out_size);

/* fn in a worker, on a copy of in: what it returned, and that many bytes in out. -EMSGSIZE: it
 * returned more than out_size. Otherwise as conc_procs_run. */
CONC_API ssize_t conc_procs_call(conc_procs *p, conc_procs_fn *fn, const void *in, size_t in_size,
                                 void *out, size_t out_size) CONC_NODISCARD;

/* ---- >>channel ------------------------------------------------------------------------------ */

/* A bounded queue between any tasks of any loops, jobs and threads: static conc_channel c =
 * CONC_CHANNEL(int, 10); First come, first served, on both sides. */
typedef struct conc_channel {
    size_t item_size; /* bytes; 0: items are only counted */
    size_t capacity;  /* at least 1 */
    /* private */
    struct conc__channel *inner;
} conc_channel;

#define CONC_CHANNEL(type, ...)                            \
    {                                                      \
        .item_size = sizeof(type), .capacity = __VA_ARGS__ \
    }

/* Sends a copy of the item. Waits while the channel is full. Errors, nothing was sent: -EPIPE
 * (closed), -EINVAL (NULL, capacity 0, sizes that overflow), -ENOMEM (the first call takes the
 * memory), -ECANCELED, -EPERM (in a posted function). */
CONC_API int conc_channel_send(conc_channel *c, const void *item) CONC_NODISCARD;

/* Takes the next item into *item. Waits while there is none. -EPIPE: closed, and all items
 * taken. Errors as above. */
CONC_API int conc_channel_recv(conc_channel *c, void *item) CONC_NODISCARD;

/* The same from anywhere, but -EAGAIN instead of waiting. Not checkpoints. */
CONC_API int conc_channel_try_send(conc_channel *c, const void *item) CONC_NODISCARD;
CONC_API int conc_channel_try_recv(conc_channel *c, void *item) CONC_NODISCARD;

/* No more sends: who waits gets -EPIPE. What lies in it can still be received. Closing twice
 * does nothing. From anywhere. */
CONC_API void conc_channel_close(conc_channel *c);

/* Closes it, drops what lies in it, and frees its memory: once nobody else uses it. It is then
 * as new. From anywhere. */
CONC_API void conc_channel_destroy(conc_channel *c);
CONC_API void conc__auto_conc_channel(conc_channel *c);

/* ---- >>shared ------------------------------------------------------------------------------- */

/* Memory, all zero, that process pools opened later see at the same address: what one process
 * writes the others read. Release it with conc_shared_free, in the process that allocated it.
 * NULL: size 0, no memory, not Linux. From anywhere. Locks in it have to be made for several
 * processes: C11 atomics, PTHREAD_PROCESS_SHARED. */
CONC_API void *conc_shared_alloc(size_t size);
CONC_API void conc_shared_free(void *p);

/* ---- >>files -------------------------------------------------------------------------------- */

/* Files are read and written off the loop. Errors are the system's. What has begun is waited
 * for; -ECANCELED means that nothing was done. */

/* The whole file: its size in *size (NULL: not wanted), its bytes with a NUL behind them in
 * *data, to be released with conc_free. After an error *data is NULL. Waits. */
CONC_API int conc_file_read(const char *path, void **data, size_t *size) CONC_NODISCARD;

/* Makes the file anew with these bytes, whole or not at all: a new file with the permissions of
 * the old one, on disk before it is renamed to path. What is not a regular file (a terminal, a
 * pipe, /dev/null) is written to. Waits. */
CONC_API int conc_file_write(const char *path, const void *data, size_t size) CONC_NODISCARD;

/* Adds the bytes at the end, and makes the file when there is none. After an error some may have
 * been added. Waits. */
CONC_API int conc_file_append(const char *path, const void *data, size_t size) CONC_NODISCARD;

/* ---- >>names -------------------------------------------------------------------------------- */

/* Looks up a host name (or a numeric address) and a port, off the loop: how many TCP addresses
 * there are, of which up to max are in out. Waits; a cancel returns at once. Errors:
 * -EADDRNOTAVAIL (no such name, or nobody could be asked: conc_last_error says which), -EINVAL
 * (NULL, no such port), -ENOMEM, -ECANCELED. With this module conc_dial and conc_listen know
 * names too, and wait for that; conc_dial tries all addresses of a name. */
CONC_API int conc_resolve(const char *host, const char *port, struct sockaddr_storage *out,
                          size_t max);

/* ---- >>child -------------------------------------------------------------------------------- */

enum {
    CONC_PIPE = -2, /* a pipe to or from the child */
    CONC_NULL = -3  /* /dev/null */
};

/* Another program. The first fields are yours to set before conc_child_start. */
typedef struct conc_child {
    /* the program, looked for in PATH unless it has a slash, its arguments, NULL */
    const char *const *argv;
    const char *const *env; /* "name=value"..., NULL; NULL: this program's */
    const char *dir;        /* where it runs; NULL: here */
    int input, output,
        /* 0: this program's; CONC_PIPE, CONC_NULL, or a descriptor, which stays yours. After the
         * start the near end of a pipe, else -1, for conc_read and conc_write. conc_child_close
         * closes it; to end the child's input sooner, conc_close it and set it to -1. A socket
         * is set to blocking, as programs expect it, for this program too, where conc's calls do
         * not mind; a socket that listens is not */
        error;
    int pid; /* set by conc_child_start */
    /* private */
    int pidfd, status, state;
} conc_child;

/* Starts the program, with the original signal mask and no descriptors but these three. Waits.
 * Errors: -ENOENT (no such program or directory), -EACCES and others of the system's, -EINVAL
 * (NULL, no argv), -EBUSY (started and not closed). No SIGCHLD handler is needed or disturbed. */
CONC_API int conc_child_start(conc_child *c);

/* Waits until it has ended: 0, and its status as of waitpid(2) in *status (NULL: not wanted):
 * WIFEXITED, WEXITSTATUS, WTERMSIG. A cancel leaves it running. -EINVAL: not started. */
CONC_API int conc_child_wait(conc_child *c, int *status);

/* Sends it a signal: 0, -EALREADY (it has ended), -EINVAL. Never to another process that has its
 * number by now. */
CONC_API int conc_child_kill(conc_child *c, int signal);

/* Closes the pipes, kills the child if it still runs, and waits for its end, which a cancel does
 * not cut short: 0. Closing twice, or what was never started, does nothing. -EBUSY: somebody is
 * just starting it. */
CONC_API int conc_child_close(conc_child *c);
CONC_API void conc__auto_conc_child(conc_child *c);

#ifdef __cplusplus
}
#endif

#endif /* CONC_POOL_H */

/* ===============================================================================================
 * *
 *  The implementation
 *
 *  A crew is a queue of jobs and those who do them: the threads of a conc_pool, or the processes
 *  of a conc_procs. Whoever waits for one of them is a task, whose loop goes on, or a thread,
 *  which sleeps; both are conc__waiters.
 *
 *  A process is reached through its desk, memory that it shares with this one: whoever has a job
 *  for it writes that there, and whoever waits for one reads the answer; the pool's manager, a
 *  thread, does so when nobody is awake, starts workers, and buries them. Between two that are
 *  awake nothing goes through the kernel.
 *
 *  Contents: >>waiting >>crew >>jobs >>threads >>pool >>mapping >>blocking >>offloading
 *  >>channel >>files >>names >>children >>shared >>functions >>workers >>hub >>manager >>zygote
 *  >>procs >>beginning
 * ============================================================================================== */

#if (defined CONC_IMPLEMENTATION || defined CONC_STATIC) && !defined CONC__POOL_IMPLEMENTED
#define CONC__POOL_IMPLEMENTED

#include <netdb.h>
#include <semaphore.h>
#include <spawn.h>
#include <sys/wait.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

/* ---- >>waiting ------------------------------------------------------------------------------ */

/* Where a thread sleeps until another one opens it. */
typedef struct conc__gate {
    pthread_mutex_t mutex;
    pthread_cond_t opened;
    bool open;
} conc__gate;

/* Somebody who waits for another thread. It stands in a list, and whoever wakes it takes it out,
 * under the list's mutex. */
typedef struct conc__waiter {
    struct conc__waiter *next, *prev; /* a ring */
    struct conc__waiter **list;
    conc_loop *loop; /* a task's; NULL: a thread */
    conc__wait *wait;
    conc__post post;
    conc__gate *gate; /* a thread's */
    void *item;       /* what the wait is for, or where its item comes from or goes to */
    bool *stop;       /* set when the waiting task is cancelled; NULL: nothing */
    /* a thread's: a crew of processes, whose replies it may take; it has a reference */
    struct conc__crew *looks_at;
    struct conc__frame *frame; /* a job's: its clock goes on meanwhile */
    int result;
    bool own;  /* of the crew that it waits for: one of its jobs waits */
    bool over; /* it was woken: nothing of the list's owner is to be touched any more */
} conc__waiter;

/* Over every crew's mutex: a crew is freed under it. For who has a job or waiter, and does not
 * know whether the crew that it belonged to is still there. */
static pthread_mutex_t conc__crews = PTHREAD_MUTEX_INITIALIZER;
static unsigned conc__forks; /* how many forks this process descends from */
static struct conc__crew *conc__all_crews;

/* What holds these mutexes takes less time than to fall asleep. */
CONC__PRIVATE void conc__lock_briefly(pthread_mutex_t *mutex)
{
    if (pthread_mutex_trylock(mutex) == 0)
        return;
    for (int i = 0; i < 200 && conc__several_processors(); i++) {
        conc__relax();
        if (i % 8 == 0 && pthread_mutex_trylock(mutex) == 0)
            return;
    }
    pthread_mutex_lock(mutex);
}

CONC__PRIVATE void conc__line_up(conc__waiter **list, conc__waiter *w)
{
    conc__waiter *first = *list;
    w->list = list;
    w->next = first ? first : w;
    w->prev = first ? first->prev : w;
    w->prev->next = w->next->prev = w;
    if (!first)
        *list = w;
}

CONC__PRIVATE void conc__step_out(conc__waiter *w)
{
    if (*w->list == w)
        *w->list = w->next == w ? NULL : w->next;
    w->prev->next = w->next;
    w->next->prev = w->prev;
}

CONC__PRIVATE void conc__gate_open(conc__gate *g)
{
    pthread_mutex_lock(&g->mutex);
    g->open = true;
    pthread_cond_signal(&g->opened);
    pthread_mutex_unlock(&g->mutex);
}

CONC__PRIVATE void conc__gate_pass(conc__gate *g)
{
    pthread_mutex_lock(&g->mutex);
    while (!g->open)
        pthread_cond_wait(&g->opened, &g->mutex);
    pthread_mutex_unlock(&g->mutex);
    pthread_cond_destroy(&g->opened);
    pthread_mutex_destroy(&g->mutex);
}

CONC__PRIVATE struct conc__frame *conc__frame_here(void);
CONC__PRIVATE void conc__frames_at_work(struct conc__frame *f, bool at_work);

CONC__PRIVATE void conc__waiter_arrives(conc__post *p)
{
    conc__waiter *w = (conc__waiter *)(void *)((char *)p - offsetof(conc__waiter, post));
    conc__wake(conc__here, w->wait, w->result);
}

/* Under the list's mutex: the waiter is told its result; tell it then by conc__waiter_call that
 * there is one. */
CONC__PRIVATE void conc__waiter_answer(conc__waiter *w, int result)
{
    /* here, not when it runs: the clock could go on until then */
    conc__frames_at_work(w->frame, true);
    w->result = result;
    __atomic_store_n(&w->over, true, __ATOMIC_RELEASE);
}

/* The same, and it is out of the list. */
CONC__PRIVATE void conc__waiter_decide(conc__waiter *w, int result)
{
    conc__step_out(w);
    conc__waiter_answer(w, result);
}

CONC__PRIVATE void conc__waiter_call(conc__waiter *w)
{
    if (w->loop)
        /* it cannot be refused: the run lasts as long as its tasks */
        conc__post_to(w->loop, &w->post);
    else
        conc__gate_open(w->gate);
}

CONC__PRIVATE void conc__waiter_wake(conc__waiter *w, int result)
{
    conc__waiter_decide(w, result);
    conc__waiter_call(w);
}

/* A thread looks a little for what it waits for before it sleeps. */
CONC__PRIVATE void conc__look_for(const bool *over)
{
    if (!conc__several_processors())
        return;
    for (int64_t end = conc__clock() + CONC__PATIENCE; conc__clock() < end;)
        for (int i = 0; i < 32; i++) {
            if (__atomic_load_n(over, __ATOMIC_RELAXED))
                return;
            conc__relax();
        }
}

CONC__PRIVATE void conc__crew_look_for(struct conc__crew *c, const bool *over);

/* A call that would wait, in a posted function. */
CONC__COLD int conc__caller_refused(const char *call)
{
    return conc__misused(-EPERM, call, "only a task may call it", NULL);
}

/* At the start of `call`, which may wait: 0 and the caller's loop (NULL: a thread or a job), or
 * -EPERM (a posted function). */
static inline int conc__caller(conc_loop **l, const char *call)
{
    *l = conc__here;
    return CONC__UNLIKELY(*l && !(*l)->self) ? conc__caller_refused(call) : 0;
}

/* The caller waits until it is woken: the result. It stands in the list already; unlock(mutex)
 * lets others come. */
CONC__SWITCHES int conc__wait_outside(conc_loop *l, conc__waiter *w, const conc__wait_kind *kind,
                                      const void *on, pthread_mutex_t *mutex,
                                      pthread_mutex_t *outer)
{
    conc__wait wait = {.kind = kind, .on = on, .item = w};
    conc__gate gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    w->loop = l;
    w->wait = &wait;
    w->post.run = conc__waiter_arrives;
    w->gate = &gate;
    w->frame = l ? NULL : conc__frame_here();
    conc__frames_at_work(w->frame, false);
    pthread_mutex_unlock(mutex);
    if (outer)
        pthread_mutex_unlock(outer);
    if (!l) {
        if (w->looks_at)
            conc__crew_look_for(w->looks_at, &w->over);
        else
            conc__look_for(&w->over);
        conc__gate_pass(&gate);
        return w->result;
    }
    conc__find_lost(l, __builtin_frame_address(0));
    wait.task = l->self;
    l->awaited++;
    int rc = conc__park(l, &wait);
    l->awaited--;
    return rc;
}

/* ---- >>crew --------------------------------------------------------------------------------- */

enum {
    CONC__BATCH = 16, /* jobs that a thread takes out of the queue at once */

    /* a job's state, below its seal */
    CONC__JOB_LIVE = 1, /* it was accepted: until then nobody can wait for it */
    CONC__JOB_DONE = 2,
    CONC__JOB_WAITED = 4,    /* somebody waits: the end is told under the crew's mutex */
    CONC__JOB_ASKED = 8,     /* to end */
    CONC__JOB_WORDS = 16,    /* text is its error's */
    CONC__JOB_OWNED = 32,    /* it frees itself */
    CONC__JOB_LEFT = 64,     /* its task has left it alone */
    CONC__JOB_BLOCKED = 128, /* it is in conc_block on a virtual clock */
    CONC__JOB_AT_WORK = 256, /* its virtual clock stands still for it */
    CONC__JOB_BITS = 0x1ff
};

#define CONC__IN_BATCH (1u << 31)    /* of a job's place: it is thread * CONC__BATCH + slot */
#define CONC__NO_PLACE UINT_MAX      /* it was taken out by who runs it, or ends it */
#define CONC__POOL_CLOSED (1u << 31) /* of a pool's users */

/* What runs on a thread: a job, and inside it perhaps another one. */
typedef struct conc__frame {
    struct conc__frame *outer;
    conc_job *job;
    struct conc__thread *thread; /* NULL: in a worker process */
    conc__locals *locals;
    const struct conc__mapping *mapping; /* of which it is a runner */
    /* where a worker process is asked to end; NULL: this is a thread */
    const unsigned *asked;
    int text_rc;
    char text[96];
} conc__frame;

typedef struct conc__thread {
    struct conc__crew *crew;
    pthread_t id;
    int number;
    int nested; /* waits in runs inside its jobs */
    bool busy, left_behind;
    int filled;    /* slots of batch[] that it was given */
    int finishing; /* 1: it is counted among those */
    sigset_t mask; /* of who started it: its own lets nothing through */
    _Atomic(conc_job *) batch[CONC__BATCH];
} conc__thread;

typedef struct conc__crew {
    struct conc__crew *next; /* of all, under conc__crews */
    pthread_mutex_t mutex;
    conc_job **queue; /* a ring; NULL where a job was taken back */
    size_t room, head, tail;
    size_t queued; /* without the gaps; written under the mutex, looked at without */
    size_t limit;
    conc__waiter *places; /* submits that wait, with their jobs */
    conc__waiter *closer, *other_closers;
    bool closing, stopping, ask_all, on_valgrind;
    bool stalled; /* all threads are in conc_block on a virtual clock */
    unsigned forks;
    int references;        /* to free it: the pool's and those of threads that were left behind */
    struct conc__hub *hub; /* NULL: a crew of threads */

    /* what threads sleep on; it has `wakes`, but for `calls`, which are due once the mutex is
     * free */
    sem_t work;
    conc__thread **threads;
    int slots; /* of threads[] */
    int most, lost, nested, waiting, started, coming, idle, sleeping, wakes, calls, spinning,
        blocking;
    /* threads that end their job, and then look into the queue; changed without the mutex */
    int finishing;
    unsigned misses; /* how often in a row a thread looked for work in vain before it slept */
    char name[16];
} conc__crew;

static pthread_key_t conc__frames; /* the frame of the job that runs on a thread */
static bool conc__frames_there;

/* Some jobs, the runners, call a function on all elements of an array; each takes the next that
 * nobody has. */
typedef struct conc__mapping {
    conc_fn *fn;
    char *args;
    size_t count, size;
    int *results;
    bool keeps_going, stop;
    /* the job that maps: when it is asked to end, the mapping is; NULL: none */
    const conc_job *sender;
    const struct conc__mapping *around; /* the one of which it is an element */
    size_t next;                        /* not taken yet */
    size_t dropped;                     /* taken, and then not called */
    int error;                          /* the first */
} conc__mapping;

/* What a job for a process carries. */
typedef struct conc__parcel {
    conc_procs_fn *call; /* NULL: the job's own function, on its own bytes */
    const void *in;
    void *out;
    size_t in_size, out_size;
    ssize_t returned;
    conc__mapping *mapping; /* a runner's; these elements are its own: */
    size_t first, left;
} conc__parcel;

/* Was the job, which runs, asked to end? */
CONC__PRIVATE bool conc__job_asked(const conc_job *j)
{
    return (__atomic_load_n(&j->state, __ATOMIC_RELAXED) & CONC__JOB_ASKED) ||
           __atomic_load_n(&j->crew->ask_all, __ATOMIC_RELAXED);
}

CONC__PRIVATE bool conc__map_stops(const conc__mapping *m)
{
    for (; m; m = m->around)
        if (__atomic_load_n(&m->stop, __ATOMIC_RELAXED) ||
            (m->sender && conc__job_asked(m->sender)))
            return true;
    return false;
}

/* What is left of a runner's elements will not be called any more. */
CONC__PRIVATE void conc__range_drop(conc__parcel *p, int rc)
{
    conc__mapping *m = p ? p->mapping : NULL;
    for (; m && p->left; p->left--, p->first++) {
        m->dropped++;
        if (m->results)
            m->results[p->first] = rc;
    }
}

CONC__PRIVATE void conc__hub_rouse(struct conc__crew *c);
CONC__PRIVATE bool conc__hub_cancel(struct conc__crew *c, conc_job *j);
CONC__PRIVATE int conc__hub_begin(struct conc__hub *h);
CONC__PRIVATE void conc__hub_free(struct conc__hub *h);
CONC__PRIVATE void conc__hub_close(conc_loop *l, struct conc__crew *c);
CONC__PRIVATE void conc__hub_look_for(struct conc__crew *c, const bool *over);
CONC__PRIVATE struct conc__view *conc__view_open(conc_loop *l, struct conc__crew *c);
CONC__PRIVATE void conc__view_close(conc_loop *l, struct conc__view *v);

CONC__PRIVATE void conc__crew_end_job(conc__crew *c, conc_job *j, int result,
                                      const conc__frame *frame, bool locked);

/* What no storage has by chance where a job is not. */
CONC__PRIVATE uintptr_t conc__job_seal(const conc_job *j)
{
    uint64_t hash = (uint64_t)(uintptr_t)j * 0x9e3779b97f4a7c15u;
    return ((uintptr_t)(hash ^ hash >> 29) & ~(uintptr_t)CONC__JOB_BITS) | (CONC__JOB_BITS + 1);
}

/* Once it has ended: else what is left of a job on a stack would be one again when a byte of it
 * is overwritten. */
CONC__PRIVATE uintptr_t conc__job_broken_seal(const conc_job *j)
{
    return ~conc__job_seal(j) & ~(uintptr_t)CONC__JOB_BITS;
}

CONC__PRIVATE uintptr_t conc__job_state(const conc_job *j)
{
    return __atomic_load_n(&j->state, __ATOMIC_ACQUIRE);
}

/* Is it being submitted, in the queue, or does it run? */
CONC__PRIVATE bool conc__job_in_use(const conc_job *j)
{
    return (conc__job_state(j) & ~(uintptr_t)CONC__JOB_BITS) == conc__job_seal(j);
}

/* The same of memory that may be a stack's below its pointer. */
CONC__UNSANITIZED CONC__PRIVATE bool conc__handle_is_at_work(const void *job)
{
    const conc_job *j = job;
    uintptr_t state = __atomic_load_n(&j->state, __ATOMIC_RELAXED);
    return (state & ~(uintptr_t)CONC__JOB_BITS) == conc__job_seal(j);
}

/* Was it ever submitted? */
static inline bool conc__is_job(const conc_job *j)
{
    uintptr_t state = j ? conc__job_state(j) : 0;
    uintptr_t seal = state & CONC__JOB_DONE ? ~conc__job_seal(j) : conc__job_seal(j);
    return (state & (CONC__JOB_LIVE | CONC__JOB_DONE)) &&
           !((state ^ seal) & ~(uintptr_t)CONC__JOB_BITS);
}

CONC__PRIVATE void conc__offloads_forget(void);

CONC__PRIVATE void conc__forget_crews(void)
{
    conc__forks++;
    conc__offloads_forget();
    pthread_mutex_unlock(&conc__crews);
}

CONC__PRIVATE void conc__keep_crews(void) { pthread_mutex_lock(&conc__crews); }
CONC__PRIVATE void conc__let_crews(void) { pthread_mutex_unlock(&conc__crews); }

/* A job has ended its thread. */
CONC__COLD void conc__frame_lost(void *value)
{
    const conc__frame *f = value;
    if (!f->thread)
        _exit(1); /* a worker process */
    fprintf(stderr,
            "conc: a job of the pool \"%s\" called pthread_exit, and nobody can tell who waits for "
            "it\n",
            f->thread->crew->name);
    abort();
}

CONC__PRIVATE void conc__crews_begin(void)
{
    conc__frames_there = pthread_key_create(&conc__frames, conc__frame_lost) == 0;
    pthread_atfork(conc__keep_crews, conc__let_crews, conc__forget_crews);
}

CONC__PRIVATE void conc__crews_need(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, conc__crews_begin);
}

/* The job that runs on this thread; NULL: none. */
CONC__PRIVATE conc__frame *conc__frame_here(void)
{
    conc__crews_need();
    return conc__frames_there ? pthread_getspecific(conc__frames) : NULL;
}

CONC__PRIVATE conc__crew *conc__crew_new(int most, int limit)
{
    conc__crew *c = conc__alloc(sizeof *c);
    if (!c)
        return NULL;
    memset(c, 0, sizeof *c);
    c->most = most ? most : conc__processors();
    c->limit = (size_t)limit;
    c->references = 1;
    c->forks = conc__forks;
    c->on_valgrind = conc__on_valgrind();
    pthread_mutex_init(&c->mutex, NULL);
    sem_init(&c->work, 0, 0);
    pthread_mutex_lock(&conc__crews);
    c->next = conc__all_crews;
    conc__all_crews = c;
    pthread_mutex_unlock(&conc__crews);
    return c;
}

/* For conc_get_stats. */
CONC__PRIVATE size_t conc__jobs_queued(void)
{
    size_t n = 0;
    pthread_mutex_lock(&conc__crews);
    for (const conc__crew *c = conc__all_crews; c; c = c->next)
        n += c->forks == conc__forks ? __atomic_load_n(&c->queued, __ATOMIC_RELAXED) : 0;
    pthread_mutex_unlock(&conc__crews);
    return n;
}

/* Under conc__crews. */
CONC__PRIVATE void conc__crew_free(conc__crew *c)
{
    conc__crew **at = &conc__all_crews;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    conc__hub_free(c->hub);
    /* else other threads may have had them, when the process forked */
    if (c->forks == conc__forks) {
        sem_destroy(&c->work);
        pthread_mutex_destroy(&c->mutex);
    }
    for (int i = 0; i < c->slots; i++)
        conc_free(c->threads[i]);
    conc_free(c->threads);
    conc_free(c->queue);
    conc_free(c);
}

CONC__PRIVATE bool conc__backlog_has_room(conc__crew *c)
{
    if (c->tail - c->head < c->room)
        return true;
    size_t room = c->room ? c->room * 2 : 64;
    conc_job **bigger =
        room > SIZE_MAX / sizeof *bigger ? NULL : conc__alloc(room * sizeof *bigger);
    if (!bigger)
        return false;
    for (size_t i = c->head; i != c->tail; i++)
        bigger[i & (room - 1)] = c->queue[i & (c->room - 1)];
    conc_free(c->queue);
    c->queue = bigger;
    c->room = room;
    return true;
}

/* The virtual clock has one less to stand still for. */
CONC__PRIVATE void conc__clock_off_work(conc_loop *clock)
{
    if (atomic_fetch_sub_explicit(&clock->at_work, 1, memory_order_release) != 1)
        return;
    pthread_mutex_lock(&clock->mutex);
    if (clock->asleep && !clock->closed)
        conc__wake_up(clock);
    pthread_mutex_unlock(&clock->mutex);
}

CONC__COLD void conc__job_clock(conc_job *j, bool at_work)
{
    uintptr_t state = __atomic_load_n(&j->state, __ATOMIC_RELAXED);
    if (!at_work &&
        (__atomic_fetch_and(&j->state, ~(uintptr_t)CONC__JOB_AT_WORK, __ATOMIC_RELAXED) &
         CONC__JOB_AT_WORK))
        conc__clock_off_work(j->clock);
    while (at_work && !(state & (CONC__JOB_AT_WORK | CONC__JOB_LEFT)))
        if (__atomic_compare_exchange_n(&j->state, &state, state | CONC__JOB_AT_WORK, false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            atomic_fetch_add_explicit(&j->clock->at_work, 1, memory_order_relaxed);
            return;
        }
}

/* The job's virtual clock, if it has one, stands still for it from here on, or no longer. Never
 * for one that was left. */
static inline void conc__job_at_work(conc_job *j, bool at_work)
{
    if (CONC__UNLIKELY(j->clock != NULL))
        conc__job_clock(j, at_work);
}

CONC__PRIVATE void conc__backlog_put(conc__crew *c, conc_job *j, size_t at)
{
    j->place = (unsigned)at & ~CONC__IN_BATCH;
    c->queue[at & (c->room - 1)] = j;
    __atomic_store_n(&c->queued, c->queued + 1, __ATOMIC_RELAXED);
    conc__job_at_work(j, !c->stalled);
}

CONC__PRIVATE void conc__backlog_push(conc__crew *c, conc_job *j)
{
    conc__backlog_put(c, j, c->tail++);
}

/* It was in the queue, and could not be done. */
CONC__PRIVATE void conc__backlog_push_back(conc__crew *c, conc_job *j)
{
    conc__backlog_put(c, j, --c->head);
}

/* The job is in the queue for the first time: from here on others can wait for it. */
CONC__PRIVATE void conc__backlog_accept(conc__crew *c, conc_job *j)
{
    __atomic_store_n(&j->state, j->state | CONC__JOB_LIVE, __ATOMIC_RELEASE);
    conc__backlog_push(c, j);
}

/* A place has become free: it is given to the first submit that waits. */
CONC__PRIVATE void conc__backlog_fill(conc__crew *c)
{
    while (c->places && c->queued < c->limit && conc__backlog_has_room(c)) {
        conc__waiter *w = c->places;
        conc__backlog_accept(c, w->item);
        conc__waiter_wake(w, 0);
    }
}

CONC__PRIVATE conc_job *conc__backlog_first(conc__crew *c)
{
    while (c->head != c->tail && !c->queue[c->head & (c->room - 1)])
        c->head++;
    return c->head == c->tail ? NULL : c->queue[c->head & (c->room - 1)];
}

CONC__PRIVATE conc_job *conc__backlog_pop(conc__crew *c)
{
    conc_job *j = conc__backlog_first(c);
    if (j) {
        c->head++;
        __atomic_store_n(&c->queued, c->queued - 1, __ATOMIC_RELAXED);
    }
    return j;
}

/* The crew is closing, and has nothing to do any more. */
CONC__PRIVATE void conc__crew_settled(conc__crew *c)
{
    if (c->closer && !c->queued && c->idle == c->started)
        conc__waiter_wake(c->closer, 0);
}

/* Under the mutex: takes the job back if nobody has begun it. */
CONC__PRIVATE bool conc__crew_take_back(conc__crew *c, conc_job *j)
{
    if (j->place == CONC__NO_PLACE)
        return false;
    if (j->place & CONC__IN_BATCH) {
        unsigned at = j->place & ~CONC__IN_BATCH;
        conc__thread *t = c->threads[at / CONC__BATCH];
        conc_job *expected = j;
        if (!atomic_compare_exchange_strong(&t->batch[at % CONC__BATCH], &expected, NULL))
            return false;
        j->place = CONC__NO_PLACE; /* it may outlast that thread */
        return true;
    }
    size_t from_head = (j->place - (unsigned)c->head) & ~CONC__IN_BATCH;
    conc_job **at = &c->queue[j->place & (c->room - 1)];
    if (from_head >= c->tail - c->head || *at != j)
        return false;
    *at = NULL;
    __atomic_store_n(&c->queued, c->queued - 1, __ATOMIC_RELAXED);
    conc__backlog_fill(c);
    return true;
}

/* ---- >>jobs --------------------------------------------------------------------------------- */

CONC__PRIVATE int conc__thread_start(conc__crew *c);
CONC__PRIVATE void conc__crew_stall(conc__crew *c);
CONC__PRIVATE void conc__abandoned_release(conc_job *j);
CONC__PRIVATE void conc__original_mask(sigset_t *mask);

/* The virtual clock that stands still for what the caller sends; NULL: none. */
CONC__PRIVATE conc_loop *conc__clock_here(void)
{
    const conc_loop *l = conc__here;
    const conc__frame *f = l ? NULL : conc__frame_here();
    if (l)
        return l->virtual_clock ? conc__here : NULL;
    return f && f->thread && !(conc__job_state(f->job) & CONC__JOB_LEFT) ? f->job->clock : NULL;
}

CONC__PRIVATE void conc__job_begin(conc_job *j, conc_fn *fn, void *arg, conc__parcel *parcel,
                                   uintptr_t flags)
{
    conc__locals **locals = conc__locals_here();
    j->fn = fn;
    j->arg = arg;
    j->waiters = NULL;
    j->parcel = parcel;
    j->locals = locals ? *locals : NULL;
    if (j->locals)
        __atomic_fetch_add(&j->locals->references, 1, __ATOMIC_RELAXED);
    j->clock = conc__clock_here();
    if (j->clock)
        conc_loop_hold(j->clock);
    __atomic_store_n(&j->state, conc__job_seal(j) | flags, __ATOMIC_RELAXED);
}

/* It was not accepted. */
CONC__PRIVATE void conc__job_refuse(conc_job *j)
{
    conc__locals_release(j->locals);
    if (j->clock)
        conc_loop_release(j->clock);
    __atomic_store_n(&j->state, 0, __ATOMIC_RELAXED);
}

/* Under the mutex: the job has ended. Who waits is still to be called; the job's memory is its
 * owner's again. */
CONC__PRIVATE conc__waiter *conc__job_settle(conc_job *j, uintptr_t state)
{
    conc__waiter *first = j->waiters, *w = first;
    if (first)
        do {
            conc__waiter_answer(w, 0);
            w = w->next;
        } while (w != first);
    __atomic_store_n(&j->state, state, __ATOMIC_RELEASE);
    return first;
}

CONC__PRIVATE void conc__call_all(conc__waiter *first)
{
    for (conc__waiter *w = first, *next; w; w = next == first ? NULL : next) {
        next = w->next;
        conc__waiter_call(w);
    }
}

/* frame: it ran there; NULL: it was taken back. */
CONC__PRIVATE void conc__crew_end_job(conc__crew *c, conc_job *j, int result,
                                      const conc__frame *frame, bool locked)
{
    conc_loop *clock = j->clock;
    uintptr_t state = conc__job_state(j), done = conc__job_broken_seal(j) | CONC__JOB_DONE;
    conc__locals_release(frame ? frame->locals : j->locals);
    j->result = result;
    if (frame && frame->text_rc == result && result < 0) {
        memcpy(j->text, frame->text, sizeof j->text);
        done |= CONC__JOB_WORDS;
    }
    if ((state & CONC__JOB_WAITED) ||
        !__atomic_compare_exchange_n(&j->state, &state, done, false, __ATOMIC_RELEASE,
                                     __ATOMIC_RELAXED)) {
        if (!locked)
            conc__lock_briefly(&c->mutex);
        state = conc__job_state(j);
        if (state & CONC__JOB_LEFT) {
            c->lost--;
            conc__crew_stall(c);
        }
        conc__waiter *waiters = conc__job_settle(j, done);
        if (!locked)
            pthread_mutex_unlock(&c->mutex);
        conc__call_all(waiters);
    }
    if (state & CONC__JOB_AT_WORK)
        conc__clock_off_work(clock);
    if (clock)
        conc_loop_release(clock);
    if (state & CONC__JOB_OWNED)
        conc__abandoned_release(j);
}

/* last: the thread has no other to do, and will look into the queue. */
CONC__PRIVATE void conc__job_run(conc__crew *c, conc__frame *frame, conc_job *j, bool last)
{
    frame->job = j;
    frame->locals = j->locals;
    frame->mapping = NULL;
    frame->text_rc = 0;
    conc__job_at_work(j, true); /* it may have come out of a queue that did not hold the clock */
    int rc = j->fn(j->arg);
    if (last) { /* before the end is told: who hears of it may send the next */
        frame->thread->finishing = 1;
        __atomic_fetch_add(&c->finishing, 1, __ATOMIC_RELAXED);
    }
    conc__crew_end_job(c, j, rc, frame, false);
}

/* A thread that waits, or is in conc_block, does nothing: its jobs do not hold their clocks
 * meanwhile. */
CONC__PRIVATE void conc__frames_at_work(conc__frame *f, bool at_work)
{
    for (; f && f->thread; f = f->outer)
        conc__job_at_work(f->job, at_work);
}

/* Inside another job of the same thread. */
CONC__PRIVATE void conc__job_run_inside(conc__crew *c, conc__frame *outer, conc_job *j)
{
    conc__frame frame = {.outer = outer, .thread = outer->thread};
    pthread_setspecific(conc__frames, &frame);
    conc__job_run(c, &frame, j, false);
    pthread_setspecific(conc__frames, outer);
}

/* Is the caller on a thread of this crew, in a job or in a run inside one? */
CONC__PRIVATE conc__frame *conc__frame_of(const conc__crew *c)
{
    conc__frame *f = conc__frame_here();
    return f && f->thread && f->thread->crew == c ? f : NULL;
}

/* Under the mutex: how many threads the crew may have. Those do not count that are lost to a job
 * which was abandoned, or that wait, in a run inside a job, for what only this crew does. While
 * there are such, those do not count either that wait for a job of another thread: it may be one
 * of these. */
CONC__PRIVATE int conc__crew_most(const conc__crew *c)
{
    return c->most + c->lost + c->nested + (c->nested ? c->waiting : 0);
}

/* A task of this thread has sent something to somebody who was asleep, or was awake: then an
 * answer may come at once. */
CONC__PRIVATE void conc__has_woken(bool woke)
{
    if (conc__here)
        conc__here->woke = woke;
}

/* Under the mutex: somebody comes for what lies in the queue. */
CONC__PRIVATE int conc__crew_rouse(conc__crew *c)
{
    if (c->hub) {
        conc__hub_rouse(c);
        return 0;
    }
    conc__has_woken(false);
    if (!c->queued ||
        c->wakes + c->coming + c->spinning + __atomic_load_n(&c->finishing, __ATOMIC_RELAXED) > 0)
        return 0; /* who comes calls the next if there is more */
    conc__has_woken(true);
    if (c->sleeping > c->wakes) {
        c->wakes++;
        c->calls++;
        return 0;
    }
    int rc = c->started < conc__crew_most(c) ? conc__thread_start(c) : 0;
    /* else nobody is left who could come */
    return c->started > c->lost + c->nested + c->waiting ? 0 : rc;
}

/* Under the mutex: while every thread of a crew is in conc_block, what lies in the queue does
 * not hold the clock. */
CONC__PRIVATE void conc__crew_stall(conc__crew *c)
{
    /* threads that could do what is in the queue, or are in conc_block */
    int able = c->most - (c->nested ? 0 : c->waiting);
    bool stalled = c->blocking > 0 && c->blocking >= able;
    if (c->stalled == stalled)
        return;
    c->stalled = stalled;
    for (size_t i = c->head; i != c->tail; i++) {
        conc_job *j = c->queue[i & (c->room - 1)];
        if (j)
            conc__job_at_work(j, !stalled);
    }
}

/* Under the mutex: what the thread took and has not begun is for others, as it will be a while. */
CONC__PRIVATE void conc__thread_unload(conc__crew *c, conc__thread *t)
{
    for (int i = t->filled - 1; i >= 0 && conc__backlog_has_room(c); i--) {
        conc_job *j = atomic_exchange_explicit(&t->batch[i], NULL, memory_order_acquire);
        if (j)
            conc__backlog_push_back(c, j);
    }
}

/* Under the mutex: there may be more threads than before, for what the others have not begun. */
CONC__PRIVATE void conc__crew_share(conc__crew *c)
{
    for (int i = 0; i < c->slots && c->started < conc__crew_most(c); i++)
        if (c->threads[i])
            conc__thread_unload(c, c->threads[i]);
}

/* Under the mutex: a thread of the crew, if it is one, is going to wait; with one -1 it has
 * waited. An error: nobody is left who could do what it waits for. */
CONC__PRIVATE int conc__crew_spare(conc__crew *c, const conc__frame *own, const conc_loop *l,
                                   int one)
{
    if (!own)
        return 0;
    bool was_nested = own->thread->nested > 0;
    *(l ? &own->thread->nested : &c->waiting) += one;
    c->nested += (own->thread->nested > 0) - was_nested;
    conc__crew_stall(c);
    if (one > 0) {
        conc__thread_unload(c, own->thread);
        conc__crew_share(c);
    }
    int rc = c->queued && one > 0 ? conc__crew_rouse(c) : 0;
    for (; c->calls; c->calls--)
        sem_post(&c->work);
    return rc;
}

CONC__PRIVATE void conc__crew_spare_back(conc__crew *c, const conc__frame *own, const conc_loop *l)
{
    if (!own)
        return;
    conc__lock_briefly(&c->mutex);
    conc__crew_spare(c, own, l, -1);
    pthread_mutex_unlock(&c->mutex);
}

/* Unlocks, and only then wakes those who shall come: else they would at once wait for the mutex.
 * The crew is there until this returns, as its caller knows. */
CONC__PRIVATE void conc__crew_unlock(conc__crew *c)
{
    int calls = c->calls;
    c->calls = 0;
    pthread_mutex_unlock(&c->mutex);
    for (; calls; calls--)
        sem_post(&c->work);
}

/* Under the mutex, below the limit. */
CONC__PRIVATE int conc__crew_queue(conc__crew *c, conc_job *j)
{
    int rc = conc__backlog_has_room(c) ? c->hub ? conc__hub_begin(c->hub) : 0 : -ENOMEM;
    if (rc)
        return rc;
    conc__backlog_accept(c, j);
    rc = conc__crew_rouse(c);
    if (rc && conc__crew_take_back(c, j)) {
        conc__job_at_work(j, false);
        return rc;
    }
    return 0;
}

/* Under conc__crews: does the waiter still wait? Then the crew is locked. */
CONC__PRIVATE bool conc__still_waits(const conc__waiter *w, conc__crew *c)
{
    if (__atomic_load_n(&w->over, __ATOMIC_ACQUIRE))
        return false;
    conc__lock_briefly(&c->mutex);
    if (!__atomic_load_n(&w->over, __ATOMIC_ACQUIRE))
        return true;
    pthread_mutex_unlock(&c->mutex);
    return false;
}

CONC__PRIVATE bool conc__place_cancel(conc__wait *wait)
{
    conc__waiter *w = wait->item;
    conc__crew *c = (conc__crew *)(uintptr_t)wait->on;
    pthread_mutex_lock(&conc__crews);
    bool waits = conc__still_waits(w, c);
    if (waits) {
        conc__waiter_decide(w, -ECANCELED);
        pthread_mutex_unlock(&c->mutex);
    }
    pthread_mutex_unlock(&conc__crews);
    return waits;
}

static const conc__wait_kind conc__wants_place = {.what = "waits for a place in a pool's queue",
                                                  .cancel = conc__place_cancel};

/* Enters a pool: its crew cannot be freed until conc__pool_leave. NULL: *rc says why. */
CONC__PRIVATE conc__crew *conc__pool_enter(conc__crew **crew, unsigned *users, int *rc)
{
    unsigned before = __atomic_fetch_add(users, 1, __ATOMIC_ACQUIRE);
    conc__crew *c = before & CONC__POOL_CLOSED ? NULL : __atomic_load_n(crew, __ATOMIC_ACQUIRE);
    *rc = c ? c->forks == conc__forks ? 0 : -EPERM : before & CONC__POOL_CLOSED ? -EPIPE : -EINVAL;
    if (*rc == 0)
        return c;
    __atomic_fetch_sub(users, 1, __ATOMIC_RELEASE);
    return NULL;
}

CONC__PRIVATE void conc__pool_leave(unsigned *users)
{
    __atomic_fetch_sub(users, 1, __ATOMIC_RELEASE);
}

/* In a job of the crew: makes a place in the queue by doing what is first in it. */
CONC__PRIVATE void conc__crew_help(conc__crew *c, conc__frame *frame)
{
    conc_job *first = conc__backlog_pop(c);
    if (first) {
        conc__backlog_fill(c);
        pthread_mutex_unlock(&c->mutex);
        conc__job_run_inside(c, frame, first);
        conc__lock_briefly(&c->mutex);
    }
}

/* Has the crew do the job, which was begun; leaves the pool. An error: it was refused. */
CONC__PRIVATE int conc__crew_submit(conc__crew *c, unsigned *users, conc_loop *l, conc_job *j,
                                    const char *call)
{
    /* which with a run inside the job cannot help */
    conc__frame *own = c->limit ? conc__frame_of(c) : NULL;
    int rc;
    j->crew = c;
    conc__lock_briefly(&c->mutex);
    while (own && !l && c->queued >= c->limit)
        conc__crew_help(c, own);
    if (c->closing && !own && !(own = conc__frame_of(c))) {
        rc = -EPIPE;
    } else if (c->limit && c->queued >= c->limit && l && !l->self) {
        rc = -EPERM;
    } else if (c->limit && c->queued >= c->limit && (rc = conc__crew_spare(c, own, l, 1)) != 0) {
        conc__crew_spare(c, own, l, -1);
    } else if (c->limit && c->queued >= c->limit) {
        conc__waiter w = {.item = j, .own = own};
        conc__line_up(&c->places, &w);
        conc__pool_leave(users);
        rc = conc__wait_outside(l, &w, &conc__wants_place, c, &c->mutex, NULL);
        conc__crew_spare_back(c, own, l);
        return rc;
    } else {
        rc = conc__crew_queue(c, j);
    }
    conc__crew_unlock(c);
    conc__pool_leave(users);
    return rc == -EPERM ? conc__caller_refused(call) : rc;
}

/* Asks a job to end that has not, in the queue or not, under its crew's mutex. */
CONC__PRIVATE void conc__job_ask(conc__crew *c, conc_job *j)
{
    if (c->hub ? conc__hub_cancel(c, j) : conc__crew_take_back(c, j)) {
        conc__crew_end_job(c, j, -ECANCELED, NULL, true);
        conc__crew_settled(c);
    } else if (!(conc__job_state(j) & CONC__JOB_DONE)) {
        uintptr_t state = __atomic_load_n(&j->state, __ATOMIC_RELAXED);
        while (!(state & CONC__JOB_DONE) &&
               !__atomic_compare_exchange_n(&j->state, &state, state | CONC__JOB_ASKED, false,
                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            ;
    }
}

/* alone: only if nobody waits for it. */
CONC__PRIVATE int conc__job_cancel(conc_job *j, bool alone)
{
    int rc = -EALREADY;
    pthread_mutex_lock(&conc__crews);
    if (!(conc__job_state(j) & CONC__JOB_DONE)) {
        conc__crew *c = j->crew;
        conc__lock_briefly(&c->mutex);
        if (!(conc__job_state(j) & CONC__JOB_DONE)) {
            if (!alone || !j->waiters)
                conc__job_ask(c, j);
            rc = 0;
        }
        pthread_mutex_unlock(&c->mutex);
    }
    pthread_mutex_unlock(&conc__crews);
    return rc;
}

CONC_API int conc_job_cancel(conc_job *j)
{
    int rc = conc__is_job(j) ? conc__job_cancel(j, false) : -EINVAL;
    return rc ? conc__own_error(rc) : 0;
}

CONC_API bool conc_job_done(const conc_job *j)
{
    return conc__is_job(j) && (conc__job_state(j) & CONC__JOB_DONE);
}

CONC_API bool conc_job_cancelled(void)
{
    conc__frame *f = conc__frame_here();
    if (!f)
        return false;
    if (f->asked)
        return __atomic_load_n(f->asked, __ATOMIC_RELAXED);
    return conc__job_asked(f->job) || conc__map_stops(f->mapping);
}

/* The waiting task is cancelled: so is the job, if nobody else waits; the wait goes on. */
CONC__PRIVATE bool conc__job_wait_cancel(conc__wait *wait)
{
    conc__waiter *w = wait->item;
    conc_job *j = w->item;
    pthread_mutex_lock(&conc__crews);
    if (w->stop)
        __atomic_store_n(w->stop, true, __ATOMIC_RELAXED);
    if (!__atomic_load_n(&w->over, __ATOMIC_ACQUIRE)) {
        conc__crew *c = j->crew;
        if (conc__still_waits(w, c)) {
            if (w->next == w)
                conc__job_ask(c, j);
            pthread_mutex_unlock(&c->mutex);
        }
    }
    pthread_mutex_unlock(&conc__crews);
    return false;
}

static const conc__wait_kind conc__wants_job = {.what = "waits for a job",
                                                .cancel = conc__job_wait_cancel};

/* In a thread of the crew: runs the job here if it is still in the queue. */
CONC__PRIVATE void conc__job_claim(conc__frame *frame, conc_job *j)
{
    conc__crew *c = frame->thread->crew;
    conc__lock_briefly(&c->mutex);
    bool mine = !(conc__job_state(j) & CONC__JOB_DONE) && conc__crew_take_back(c, j);
    pthread_mutex_unlock(&c->mutex);
    if (mine)
        conc__job_run_inside(c, frame, j);
}

/* Waits in the job's line with a wait of this kind: the wait's result, 0 when the job has ended. */
CONC__SWITCHES int conc__job_wait_as(conc_loop *l, conc_job *j, conc__waiter *w,
                                     const conc__wait_kind *kind)
{
    pthread_mutex_lock(&conc__crews);
    if (!(conc__job_state(j) & CONC__JOB_DONE)) {
        conc__crew *c = j->crew;
        conc__lock_briefly(&c->mutex);
        if (!(__atomic_fetch_or(&j->state, CONC__JOB_WAITED, __ATOMIC_ACQ_REL) & CONC__JOB_DONE)) {
            conc__frame *own = conc__frame_of(c); /* then the crew outlives the wait */
            int rc = conc__crew_spare(c, own, l, 1);
            if (rc && conc__crew_take_back(c, j)) {
                conc__crew_end_job(c, j, rc, NULL, true);
                conc__crew_spare(c, own, l, -1);
                pthread_mutex_unlock(&c->mutex);
                pthread_mutex_unlock(&conc__crews);
                return 0;
            }
            struct conc__view *view = l && c->hub ? conc__view_open(l, c) : NULL;
            w->item = j;
            w->looks_at = !l && c->hub ? c : NULL;
            c->references += w->looks_at != NULL;
            conc__line_up(&j->waiters, w);
            rc = conc__wait_outside(l, w, kind, j, &c->mutex, &conc__crews);
            conc__crew_spare_back(c, own, l);
            conc__view_close(l, view);
            return rc;
        }
        pthread_mutex_unlock(&c->mutex);
    }
    pthread_mutex_unlock(&conc__crews);
    return 0;
}

/* Waits until the job has ended. stop (NULL: nothing) is set when that is to be soon. */
CONC__PRIVATE void conc__job_wait(conc_loop *l, conc_job *j, bool *stop)
{
    conc__frame *frame = l ? NULL : conc__frame_of(j->crew);
    if (frame)
        conc__job_claim(frame, j);
    if (l && l->self->pending) {
        if (stop)
            __atomic_store_n(stop, true, __ATOMIC_RELAXED);
        conc__job_cancel(j, true);
    }
    if (conc__job_state(j) & CONC__JOB_DONE)
        return;
    conc__waiter w = {.stop = stop};
    conc__job_wait_as(l, j, &w, &conc__wants_job);
}

/* What a job that ended hands to the caller. */
CONC__PRIVATE int conc__job_result(conc_loop *l, const conc_job *j)
{
    const char *words = conc__job_state(j) & CONC__JOB_WORDS ? j->text : NULL;
    conc__frame *frame = l || !words ? NULL : conc__frame_here();
    if (l && j->result < 0)
        conc__tell(l->self, j->result, words, (conc__source){NULL, NULL});
    if (frame) { /* so that it can pass them on */
        memcpy(frame->text, j->text, sizeof frame->text);
        frame->text_rc = j->result;
    }
    return j->result;
}

CONC_API CONC__CALLED int conc_job_wait(conc_job *j, int *result)
{
    conc_loop *l = conc__here;
    if (!conc__is_job(j))
        return conc__own_error(-EINVAL);
    bool was_done = conc__job_state(j) & CONC__JOB_DONE;
    if (!was_done && l && !l->self)
        return conc__caller_refused("conc_job_wait");
    for (conc__frame *f = was_done ? NULL : conc__frame_here(); f; f = f->outer)
        if (f->job == j)
            return conc__own_error(-EDEADLK);
    l = conc__of_task();
    if (!was_done)
        conc__job_wait(l, j, NULL);
    else if (l)
        conc__quick(l);
    int rc = conc__job_result(l, j);
    if (result)
        *result = rc;
    return 0;
}

/* ---- >>threads ------------------------------------------------------------------------------ */

CONC__PRIVATE void conc__thread_take(conc__thread *t, unsigned slot, conc_job *j)
{
    j->place = CONC__IN_BATCH | ((unsigned)t->number * CONC__BATCH + slot);
    atomic_store_explicit(&t->batch[slot], j, memory_order_release);
}

/* Takes jobs out of the queue: more than one when there are many and all threads are busy, as
 * these come and take them from here before they sleep. Whoever sleeps already, or is not there,
 * would not. */
CONC__PRIVATE bool conc__thread_batch(conc__crew *c, conc__thread *t)
{
    bool others = c->sleeping > c->wakes || c->spinning || c->started < conc__crew_most(c);
    size_t n = c->limit || others ? 1 : c->queued / (2 * (size_t)c->started);
    unsigned i = 0;
    n = n < 1 ? 1 : n > CONC__BATCH ? CONC__BATCH : n;
    for (conc_job *j; i < n && (j = conc__backlog_pop(c));) {
        conc__thread_take(t, i++, j);
        /* it may block the thread while the clock goes on: the others stay in the queue */
        if (j->clock)
            break;
    }
    t->filled = (int)i;
    if (i)
        conc__backlog_fill(c);
    return i > 0;
}

/* Takes one that another thread has not begun. */
CONC__PRIVATE bool conc__thread_steal(conc__crew *c, conc__thread *t)
{
    for (int n = 0; n < c->slots; n++)
        for (int i = 0; i < CONC__BATCH && c->threads[n] && c->threads[n] != t; i++) {
            _Atomic(conc_job *) *at = &c->threads[n]->batch[i];
            conc_job *j = atomic_load_explicit(at, memory_order_relaxed);
            if (j && (j = atomic_exchange_explicit(at, NULL, memory_order_acquire))) {
                conc__thread_take(t, 0, j);
                t->filled = 1;
                return true;
            }
        }
    return false;
}

/* Looks a little before it sleeps, if no other thread of the crew does. */
CONC__PRIVATE void conc__thread_look(conc__crew *c)
{
    bool found = false;
    if (c->spinning || !conc__looks(&c->misses))
        return;
    c->spinning++;
    pthread_mutex_unlock(&c->mutex);
    int64_t start = conc__clock();
    do {
        for (int i = 0; i < 32 && !found; i++) {
            conc__relax();
            found = __atomic_load_n(&c->queued, __ATOMIC_RELAXED) > 0;
        }
    } while (!found && conc__clock() - start < CONC__PATIENCE);
    conc__lock_briefly(&c->mutex);
    c->spinning--;
    c->misses = found ? 0 : c->misses;
}

CONC__PRIVATE void conc__thread_sleep(conc__crew *c)
{
    c->sleeping++;
    pthread_mutex_unlock(&c->mutex);
    while (sem_wait(&c->work) && errno == EINTR)
        ;
    conc__lock_briefly(&c->mutex);
    c->sleeping--;
    c->wakes--;
}

/* Under the mutex: waits for something to do. False: the crew ends. */
CONC__PRIVATE bool conc__thread_next(conc__crew *c, conc__thread *t)
{
    while (c->started <= conc__crew_most(c) && !conc__thread_batch(c, t) &&
           !conc__thread_steal(c, t)) {
        if (c->stopping)
            return false;
        c->idle++;
        t->busy = false;
        conc__crew_settled(c);
        conc__thread_look(c);
        if (!c->queued && !c->stopping)
            conc__thread_sleep(c);
        c->idle--;
        t->busy = true;
    }
    if (c->queued)
        conc__crew_rouse(c);
    if (!t->filled && c->calls)
        sem_post(&c->work), c->calls--;
    return t->filled > 0; /* else there are more threads than there need to be */
}

/* Under the mutex: somebody no longer needs the crew. */
CONC__PRIVATE void conc__crew_release(conc__crew *c)
{
    bool last = --c->references == 0;
    pthread_mutex_unlock(&c->mutex);
    if (last) {
        pthread_mutex_lock(&conc__crews);
        conc__crew_free(c);
        pthread_mutex_unlock(&conc__crews);
    }
}

/* A thread that waits for a crew of processes; gives its reference back. */
CONC__PRIVATE void conc__crew_look_for(conc__crew *c, const bool *over)
{
    conc__hub_look_for(c, over);
    conc__lock_briefly(&c->mutex);
    conc__crew_release(c);
}

CONC__PRIVATE void *conc__thread_main(void *arg)
{
    conc__thread *t = arg;
    conc__crew *c = t->crew;
    conc__frame frame = {.thread = t};
#ifdef __linux__
    prctl(PR_SET_NAME, c->name);
#endif
    pthread_setspecific(conc__frames, &frame);
    conc__lock_briefly(&c->mutex);
    c->coming--;
    while (conc__thread_next(c, t)) {
        conc__crew_unlock(c);
        for (int i = 0; i < t->filled; i++) {
            conc_job *j = atomic_load_explicit(&t->batch[i], memory_order_relaxed);
            if (i + 1 < t->filled)
                __builtin_prefetch(atomic_load_explicit(&t->batch[i + 1], memory_order_relaxed), 1);
            if (j && (j = atomic_exchange_explicit(&t->batch[i], NULL, memory_order_acquire)))
                conc__job_run(c, &frame, j, i + 1 >= t->filled);
        }
        conc__lock_briefly(&c->mutex);
        __atomic_fetch_sub(&c->finishing, t->finishing, __ATOMIC_RELAXED);
        t->finishing = t->filled = 0;
    }
    pthread_setspecific(conc__frames, NULL);
    c->started--;
    conc__crew_settled(c);
    if (!c->stopping) { /* there are more than there need to be, and nobody will join it */
        pthread_detach(t->id);
        c->threads[t->number] = NULL;
        conc_free(t);
    }
    conc__crew_release(c);
    return NULL;
}

/* Under the mutex: a free one of threads[]; negative: there is no memory. */
CONC__PRIVATE int conc__thread_slot(conc__crew *c)
{
    int n = 0, slots = c->slots ? c->slots * 2 : 4;
    while (n < c->slots && c->threads[n])
        n++;
    if (n < c->slots)
        return n;
    conc__thread **more = CONC_REALLOC(c->threads, (size_t)slots * sizeof *more);
    if (!more)
        return -ENOMEM;
    memset(more + n, 0, (size_t)(slots - n) * sizeof *more);
    c->threads = more;
    c->slots = slots;
    return n;
}

/* Under the mutex. */
CONC__PRIVATE int conc__thread_start(conc__crew *c)
{
    int n = conc__thread_slot(c);
    conc__thread *t = n >= 0 ? conc__alloc(sizeof *t) : NULL;
    if (!t)
        return -ENOMEM;
    memset(t, 0, sizeof *t);
    t->crew = c;
    t->number = n;
    t->busy = true;
    conc__original_mask(&t->mask);
    if (conc__quiet_thread(&t->id, NULL, conc__thread_main, t)) {
        conc_free(t);
        return -EAGAIN;
    }
    c->threads[n] = t;
    c->started++;
    c->references++;
    c->coming++;
    return 0;
}

/* Ends the threads, which have nothing to do; those that still have are left behind. */
CONC__PRIVATE void conc__threads_end(conc__crew *c)
{
    conc__lock_briefly(&c->mutex);
    c->stopping = true;
    for (; c->wakes < c->sleeping; c->wakes++)
        sem_post(&c->work);
    for (int i = 0; i < c->slots; i++) {
        conc__thread *t = c->threads[i];
        if (t && (t->left_behind = t->busy))
            pthread_detach(t->id);
    }
    for (int i = 0; i < c->slots; i++) {
        conc__thread *t = c->threads[i];
        if (t && !t->left_behind) {
            pthread_mutex_unlock(&c->mutex);
            pthread_join(t->id, NULL);
            conc__lock_briefly(&c->mutex);
        }
    }
    conc__crew_release(c);
}

/* ---- >>pool --------------------------------------------------------------------------------- */

/* In a forked child: forgets the parent's crew, and users that were threads of the parent. */
CONC__PRIVATE void conc__pool_disown(conc__crew **crew, unsigned *users)
{
    __atomic_store_n(crew, NULL, __ATOMIC_RELAXED);
    __atomic_store_n(users, 0, __ATOMIC_RELAXED);
}

/* The users are not set to none: those may still be counted who were just refused. */
CONC__PRIVATE int conc__pool_opens(conc__crew **crew, unsigned *users, conc__crew *c)
{
    if (!c)
        return -ENOMEM;
    if (*crew)
        conc__pool_disown(crew, users);
    __atomic_store_n(crew, c, __ATOMIC_RELEASE);
    __atomic_fetch_and(users, ~CONC__POOL_CLOSED, __ATOMIC_RELEASE);
    return 0;
}

CONC_API int conc_pool_open(conc_pool *p)
{
    if (!p || p->threads < 0 || p->queue_limit < 0 || p->threads > 1 << 16)
        return conc__own_error(-EINVAL);
    if (p->crew && p->crew->forks == conc__forks)
        return conc__own_error(-EBUSY);
    conc__crews_need();
    if (!conc__frames_there)
        return -EAGAIN;
    conc__crew *c = conc__crew_new(p->threads, p->queue_limit);
    if (c)
        conc__copy(c->name, sizeof c->name, p->name ? p->name : "conc");
    return conc__pool_opens(&p->crew, &p->users, c);
}

/* Takes back all that is in the queue, and asks to end what runs. Under the mutex. */
CONC__PRIVATE void conc__crew_ask_all(conc__crew *c)
{
    __atomic_store_n(&c->ask_all, true, __ATOMIC_RELAXED);
    for (conc_job *j; (j = conc__backlog_pop(c));) {
        conc__range_drop(j->parcel, -ECANCELED);
        conc__crew_end_job(c, j, -ECANCELED, NULL, true);
    }
    for (int i = 0; i < c->slots; i++)
        for (int k = 0; k < CONC__BATCH && c->threads[i]; k++) {
            conc_job *j = atomic_exchange(&c->threads[i]->batch[k], NULL);
            if (j)
                conc__crew_end_job(c, j, -ECANCELED, NULL, true);
        }
    if (c->hub)
        conc__hub_cancel(c, NULL);
    conc__backlog_fill(c);
    conc__crew_settled(c);
}

CONC__PRIVATE bool conc__close_cancel(conc__wait *wait)
{
    conc__waiter *w = wait->item;
    conc__crew *c = (conc__crew *)(uintptr_t)wait->on;
    pthread_mutex_lock(&conc__crews);
    if (conc__still_waits(w, c)) {
        conc__crew_ask_all(c);
        pthread_mutex_unlock(&c->mutex);
    }
    pthread_mutex_unlock(&conc__crews);
    return false;
}

/* Submits that wait are refused, but for those of the crew's own jobs. */
CONC__PRIVATE void conc__places_close(conc__crew *c)
{
    conc__waiter *w = c->places, *last = w ? w->prev : NULL, *next;
    for (bool more = w; more; w = next) {
        next = w->next;
        more = w != last;
        if (!w->own)
            conc__waiter_wake(w, -EPIPE);
    }
}

static const conc__wait_kind conc__wants_end = {.what = "closes a pool, and waits for its jobs",
                                                .cancel = conc__close_cancel};

/* Refuses new jobs, and waits for all there are. False: somebody else does that; the pool was
 * left, and that one has closed it. */
CONC__PRIVATE bool conc__crew_close(conc_loop *l, conc__crew *c, unsigned *users)
{
    conc__waiter w = {0};
    conc__lock_briefly(&c->mutex);
    bool first = !c->closing;
    c->closing = true;
    conc__places_close(c);
    if (l && l->self->pending)
        conc__crew_ask_all(c);
    if (!first)
        conc__pool_leave(users);
    if (!first || c->queued || c->idle < c->started) {
        conc__line_up(first ? &c->closer : &c->other_closers, &w);
        conc__wait_outside(l, &w, &conc__wants_end, c, &c->mutex, NULL);
    } else {
        pthread_mutex_unlock(&c->mutex);
    }
    return first;
}

/* The crew has done everything: ends it. */
CONC__PRIVATE void conc__crew_end(conc__crew **crew, unsigned *users, void (*end)(conc__crew *c))
{
    conc__crew *c = *crew;
    int saved = errno;
    conc__lock_briefly(&c->mutex);
    /* for those who close it too: they are told when all is over, and have left the pool to us */
    c->references++;
    pthread_mutex_unlock(&c->mutex);
    __atomic_fetch_or(users, CONC__POOL_CLOSED, __ATOMIC_ACQ_REL);
    /* the 1 is the closer */
    while (__atomic_load_n(users, __ATOMIC_ACQUIRE) != (CONC__POOL_CLOSED | 1))
        sched_yield();
    end(c);
    conc__pool_leave(users);
    __atomic_store_n(crew, NULL, __ATOMIC_RELEASE); /* the pool is its owner's again */
    conc__lock_briefly(&c->mutex);
    while (c->other_closers)
        conc__waiter_wake(c->other_closers, 0);
    conc__crew_release(c);
    errno = saved;
}

CONC__PRIVATE int conc__pool_close(conc__crew **crew, unsigned *users, void (*end)(conc__crew *c),
                                   const char *call)
{
    conc_loop *l;
    int rc = conc__caller(&l, call);
    if (rc)
        return rc;
    conc__crew *c = conc__pool_enter(crew, users, &rc);
    if (!c) {
        if (rc == -EPERM && *crew) { /* a parent's */
            pthread_mutex_lock(&conc__crews);
            if (!conc__frame_of(*crew)) /* else the job that has forked still looks at it */
                conc__crew_free(*crew);
            pthread_mutex_unlock(&conc__crews);
            conc__pool_disown(crew, users);
        }
        return 0;
    }
    if (conc__frame_of(c)) {
        conc__pool_leave(users);
        return -EDEADLK;
    }
    if (!conc__crew_close(l, c, users))
        return 0;
    if (c->hub)
        conc__hub_close(l, c);
    conc__crew_end(crew, users, end);
    return 0;
}

CONC_API CONC__CALLED int conc_pool_close(conc_pool *p)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__pool_close(&p->crew, &p->users, conc__threads_end, __func__);
}

CONC_API void conc__auto_conc_pool(conc_pool *p) { conc_pool_close(p); }

/* conc_pool_submit or conc_procs_submit, for `call`; NULL: no mistake is possible. */
CONC__PRIVATE int conc__submit(conc__crew **crew, unsigned *users, conc_job *j, conc_fn *fn,
                               void *arg, size_t size, conc__parcel *parcel, const char *call)
{
    conc_loop *l = conc__here;
    if (!j || !fn || (size && !arg))
        return conc__own_error(-EINVAL);
    int rc = 0;
    conc__crew *c = conc__pool_enter(crew, users, &rc);
    if (!c)
        return conc__own_error(rc);
    if (CONC__MSAN || c->on_valgrind)
        conc__excuse(j, sizeof *j);
    if (conc__job_in_use(j))
        rc = conc__misused(-EBUSY, call, "the job is in use", NULL);
    if (rc || (l && l->self && l->self->pending)) {
        /* before the task switches: who closes the pool on this thread waits for it */
        conc__pool_leave(users);
        return rc ? rc : conc__checkpoint(l);
    }
    conc__job_begin(j, fn, arg, parcel, 0);
    j->size = size;
    rc = conc__crew_submit(c, users, l, j, call);
    if (rc)
        conc__job_refuse(j);
    else if (l && l->debug)
        conc__lend_handle(l, j, CONC__A_JOB);
    if (rc == 0 && l && l->self)
        conc__quick(l);
    return rc;
}

CONC_API CONC__CALLED int conc_pool_submit(conc_pool *p, conc_job *j, conc_fn *fn, void *arg)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__submit(&p->crew, &p->users, j, fn, arg, 0, NULL, __func__);
}

/* Runs a job, and waits for it. In a job of the same pool the function is simply called. */
CONC__PRIVATE int conc__crew_run(conc__crew **crew, unsigned *users, conc_fn *fn, void *arg,
                                 size_t size, conc__parcel *parcel, const char *call)
{
    conc_loop *l;
    conc_job j;
    int rc = conc__caller(&l, call);
    if (rc)
        return rc;
    if (!l && fn && conc__frame_of(__atomic_load_n(crew, __ATOMIC_ACQUIRE)))
        return fn(arg);
    j.state = 0;
    rc = conc__submit(crew, users, &j, fn, arg, size, parcel, call);
    if (rc)
        return rc;
    conc__job_wait(l, &j, NULL);
    return conc__job_result(l, &j);
}

CONC_API CONC__CALLED int conc_pool_run(conc_pool *p, conc_fn *fn, void *arg)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__crew_run(&p->crew, &p->users, fn, arg, 0, NULL, __func__);
}

/* ---- >>mapping ------------------------------------------------------------------------------ */

CONC__PRIVATE int conc__map_runner(void *arg)
{
    conc__mapping *m = arg;
    conc__frame *frame = conc__frame_here();
    const conc__mapping *around = frame->mapping;
    conc__locals *base = frame->locals;
    int mine = 0;
    frame->mapping = m;
    while (!conc_job_cancelled()) {
        size_t i = __atomic_fetch_add(&m->next, 1, __ATOMIC_RELAXED);
        if (i >= m->count)
            break;
        int none = 0;
        frame->locals = base;
        if (base)
            __atomic_fetch_add(&base->references, 1, __ATOMIC_RELAXED);
        int rc = m->fn(m->size ? m->args + i * m->size : m->args);
        conc__locals_release(frame->locals); /* what one call sets the next does not see */
        if (m->results)
            m->results[i] = rc;
        if (rc < 0 && !m->keeps_going &&
            __atomic_compare_exchange_n(&m->error, &none, rc, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
            __atomic_store_n(&m->stop, true, __ATOMIC_RELAXED);
            mine = rc;
        }
    }
    frame->mapping = around;
    frame->locals = base;
    return mine;
}

/* What the map returns, when all runners have ended; rc: why some of them have not run. */
CONC__PRIVATE int conc__map_result(conc__mapping *m, int rc)
{
    size_t taken = m->next < m->count ? m->next : m->count;
    rc = rc ? rc : -ECANCELED;
    for (size_t i = taken; i < m->count && m->results; i++)
        m->results[i] = rc;
    return m->error ? m->error : taken - m->dropped < m->count ? rc : 0;
}

CONC__PRIVATE int conc__map_refused(conc__mapping *m, int rc)
{
    for (size_t i = 0; i < m->count && m->results; i++)
        m->results[i] = rc;
    return rc;
}

/* A runner, and what it carries where it runs in a process. */
typedef struct conc__runner {
    conc_job job;
    conc__parcel parcel;
} conc__runner;

/* Starts up to n runners: how many there are, and *rc why not all. */
CONC__PRIVATE int conc__map_start(conc__crew **crew, unsigned *users, conc__mapping *m,
                                  bool processes, conc__runner *runners, int n, int *rc)
{
    int started = 0;
    for (*rc = 0; started < n && *rc == 0; started += *rc == 0) {
        conc__runner *r = &runners[started];
        r->job.state = 0;
        r->parcel = (conc__parcel){.mapping = m};
        *rc = processes ? conc__submit(crew, users, &r->job, m->fn, NULL, 0, &r->parcel, NULL)
                        : conc__submit(crew, users, &r->job, conc__map_runner, m, 0, NULL, NULL);
    }
    return started;
}

/* Waits for the runners: the error of one of them, or rc. The words of the first error are those
 * of who met it. */
CONC__PRIVATE int conc__map_wait(conc_loop *l, conc__mapping *m, conc__runner *runners, int n,
                                 int rc)
{
    for (int i = 0; i < n; i++) {
        conc_job *j = &runners[i].job;
        conc__job_wait(l, j, &m->stop);
        if (j->result < 0 && j->result != -ECANCELED)
            rc = conc__job_result(l, j);
    }
    return rc;
}

CONC__PRIVATE int conc__crew_map(conc__crew **crew, unsigned *users, conc__mapping *m,
                                 const char *call)
{
    conc_loop *l;
    int rc = conc__caller(&l, call);
    if (rc)
        return rc;
    bool results_fit = !m->results || conc__is_array(m->results, m->count, sizeof *m->results);
    if (!m->fn)
        return conc__misused(-EINVAL, call, "no function", NULL);
    if (!conc__is_array(m->args, m->count, m->size) || !results_fit)
        return conc__misused(-EINVAL, call, "no elements, or an impossible number of them", NULL);
    conc__crew *c = conc__pool_enter(crew, users, &rc);
    if (!c)
        return conc__map_refused(m, conc__own_error(rc));
    bool processes = c->hub, own = !l && conc__frame_of(c);
    int most = (m->count < (size_t)c->most ? (int)m->count : c->most) - (own && m->count);
    conc__pool_leave(users);
    if (l && (rc = conc__checkpoint(l)))
        return conc__map_refused(m, rc);
    const conc__frame *frame = l ? NULL : conc__frame_here();
    if (frame && frame->thread) {
        m->sender = frame->job;
        m->around = frame->mapping;
    }
    conc__runner *runners = most ? conc__alloc((size_t)most * sizeof *runners) : NULL;
    if (most && !runners)
        return conc__map_refused(m, -ENOMEM);
    int started = conc__map_start(crew, users, m, processes, runners, most, &rc);
    if (own && m->count)
        conc__map_runner(m);
    rc = conc__map_wait(l, m, runners, started, rc);
    conc_free(runners);
    if (rc && !started && !own)
        return conc__map_refused(m, rc);
    return conc__map_result(m, rc);
}

CONC_API CONC__CALLED int conc_pool_map(conc_pool *p, conc_fn *fn, void *args, size_t count,
                                        size_t size)
{
    conc__mapping m = {.fn = fn, .args = args, .count = count, .size = size};
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__crew_map(&p->crew, &p->users, &m, __func__);
}

CONC_API CONC__CALLED int conc_pool_map_all(conc_pool *p, conc_fn *fn, void *args, size_t count,
                                            size_t size, int *results)
{
    conc__mapping m = {fn, args, count, size, results, .keeps_going = true};
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__crew_map(&p->crew, &p->users, &m, __func__);
}

/* ---- >>blocking ----------------------------------------------------------------------------- */

CONC__PRIVATE conc__locals **conc__job_locals(void)
{
    conc__frame *f = conc__frame_here();
    return f ? &f->locals : NULL;
}

CONC__PRIVATE void conc__job_fail(int rc, const char *fmt, va_list args)
{
    conc__frame *f = conc__frame_here();
    int saved = errno;
    if (f) {
        f->text_rc = rc;
        vsnprintf(f->text, sizeof f->text, fmt, args);
    }
    errno = saved;
}

CONC__PRIVATE const char *conc__job_words(void)
{
    conc__frame *f = conc__frame_here();
    if (!f)
        return NULL;
    return f->text_rc < 0 ? f->text : "";
}

/* A job is in conc_block on a virtual clock: a timer of its loop opens the gate. */
typedef struct conc__block {
    conc__post post;
    conc__timer timer;
    conc__ending ending;
    conc__gate gate;
    conc__frame *frame;
    int64_t ns;
} conc__block;

/* Under the mutex: the job is in conc_block, or no longer. One that was left is not counted, as
 * its thread is not. */
CONC__PRIVATE void conc__crew_blocks(conc__crew *c, conc_job *j, bool blocks)
{
    uintptr_t state = conc__job_state(j);
    if (blocks ? state & CONC__JOB_LEFT : !(state & CONC__JOB_BLOCKED))
        return;
    if (blocks)
        __atomic_fetch_or(&j->state, CONC__JOB_BLOCKED, __ATOMIC_RELAXED);
    else
        __atomic_fetch_and(&j->state, ~(uintptr_t)CONC__JOB_BLOCKED, __ATOMIC_RELAXED);
    c->blocking += blocks ? 1 : -1;
    conc__crew_stall(c);
}

CONC__PRIVATE void conc__thread_blocks(conc__frame *f, bool blocks)
{
    conc__crew *c = f->thread->crew;
    conc__lock_briefly(&c->mutex);
    conc__crew_blocks(c, f->job, blocks);
    pthread_mutex_unlock(&c->mutex);
    conc__frames_at_work(f, !blocks);
}

CONC__PRIVATE void conc__block_over(conc__block *b)
{
    conc__thread_blocks(b->frame, false);
    conc__gate_open(&b->gate);
}

CONC__PRIVATE void conc__block_fires(conc__timer *t)
{
    conc__block *b = (conc__block *)(void *)((char *)t - offsetof(conc__block, timer));
    conc__ending **at = &conc__here->endings;
    while (*at != &b->ending)
        at = &(*at)->next;
    *at = b->ending.next;
    conc__block_over(b);
}

CONC__PRIVATE void conc__block_ends(conc_loop *l, conc__ending *e)
{
    conc__block *b = (conc__block *)(void *)((char *)e - offsetof(conc__block, ending));
    conc__disarm(l, &b->timer);
    conc__block_over(b);
}

CONC__PRIVATE void conc__block_begins(conc__post *p)
{
    conc__block *b = (conc__block *)(void *)p;
    conc_loop *l = b->frame->job->clock;
    b->ending = (conc__ending){l->endings, conc__block_ends};
    l->endings = &b->ending;
    conc__arm(l, &b->timer, conc__later(l->now, b->ns), conc__block_fires);
    conc__thread_blocks(b->frame, true);
}

CONC__PRIVATE bool conc__job_block(int64_t ns)
{
    conc__frame *f = conc__frame_here();
    if (!f)
        return false;
    conc__block b = {.post = {NULL, conc__block_begins}, .ns = ns};
    if (f->thread && f->job->clock) {
        b.gate = (conc__gate){PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
        b.frame = f;
        if (conc__post_to(f->job->clock, &b.post) == 0)
            conc__gate_pass(&b.gate);
        return true;
    }
    for (int64_t end = conc__later(conc__clock(), ns), left; (left = end - conc__clock()) > 0;)
        conc__doze(left);
    return true;
}

/* ---- >>offloading --------------------------------------------------------------------------- */

/* The pool that all runs share: opened by the first that uses it, closed by the last. Under the
 * mutex but for the pool. */
typedef struct conc__shared_pool {
    pthread_mutex_t mutex;
    int runs;
    /* a parent's, which its threads may have been changing when the process forked: it stays */
    conc__crew *inherited;
    conc_pool pool;
} conc__shared_pool;

static conc__shared_pool conc__offloads = {.mutex = PTHREAD_MUTEX_INITIALIZER};

CONC__PRIVATE void conc__offloads_forget(void)
{
    conc__crew *before =
        conc__offloads.pool.crew ? conc__offloads.pool.crew : conc__offloads.inherited;
    conc__offloads = (conc__shared_pool){.mutex = PTHREAD_MUTEX_INITIALIZER, .inherited = before};
}

CONC__PRIVATE void conc__offloads_end(conc_loop *l, conc__ending *e)
{
    (void)l;
    conc_free(e);
    pthread_mutex_lock(&conc__offloads.mutex);
    if (--conc__offloads.runs == 0) {
        conc__crew *c = conc__offloads.pool.crew;
        conc__offloads.pool = (conc_pool){0};
        conc__threads_end(c);
    }
    pthread_mutex_unlock(&conc__offloads.mutex);
}

CONC__PRIVATE int conc__offloads_begin(conc_loop *l)
{
    conc__ending *e = conc__alloc(sizeof *e);
    int n = conc__processors() + 4, rc = 0;
    if (!e)
        return -ENOMEM;
    pthread_mutex_lock(&conc__offloads.mutex);
    if (conc__offloads.runs == 0) {
        conc__offloads.pool = (conc_pool){.threads = n < 32 ? n : 32, .name = "conc offload"};
        rc = conc_pool_open(&conc__offloads.pool);
    }
    conc__offloads.runs += rc == 0;
    pthread_mutex_unlock(&conc__offloads.mutex);
    if (rc) {
        conc_free(e);
        return rc;
    }
    *e = (conc__ending){l->endings, conc__offloads_end};
    l->endings = e;
    return 0;
}

/* The shared pool, for a task of l. */
CONC__PRIVATE conc_pool *conc__offloads_of(conc_loop *l, int *rc)
{
    *rc = 0;
    for (const conc__ending *e = l->endings; e; e = e->next)
        if (e->end == conc__offloads_end)
            return &conc__offloads.pool;
    *rc = conc__offloads_begin(l);
    return *rc ? NULL : &conc__offloads.pool;
}

/* conc_offload, for `call`. */
CONC__PRIVATE CONC__CALLED int conc__offload(conc_fn *fn, void *arg, const char *call)
{
    conc_loop *l;
    int rc = conc__caller(&l, call);
    if (rc)
        return rc;
    if (!fn)
        return conc__misused(-EINVAL, call, "no function", NULL);
    if (!l)
        return fn(arg);
    conc_pool *p = conc__offloads_of(l, &rc);
    return p ? conc_pool_run(p, fn, arg) : rc;
}

CONC_API CONC__CALLED int conc_offload(conc_fn *fn, void *arg)
{
    return conc__offload(fn, arg, __func__);
}

/* A job that its task may leave. */
typedef struct conc__abandoned {
    conc_job job;
    conc_fn *fn;
    void *arg;
    void (*free_arg)(void *);
    bool called;    /* fn was */
    int references; /* the task's, and the job's */
} conc__abandoned;

CONC__PRIVATE void conc__abandoned_drop(conc__abandoned *a)
{
    if (__atomic_sub_fetch(&a->references, 1, __ATOMIC_ACQ_REL) == 0)
        conc_free(a);
}

/* The job has ended, or was taken back. */
CONC__PRIVATE void conc__abandoned_release(conc_job *j)
{
    conc__abandoned_drop((conc__abandoned *)(void *)j);
}

CONC__PRIVATE int conc__abandoned_run(void *arg)
{
    conc__abandoned *a = arg;
    a->called = true;
    int rc = a->fn(a->arg);
    if (a->free_arg)
        a->free_arg(a->arg);
    return rc;
}

/* Under the mutex: the job runs on, alone. Its thread is lost to the crew, which may have
 * another one for what waits. */
CONC__PRIVATE void conc__job_leave(conc__crew *c, conc_job *j)
{
    conc__crew_blocks(c, j, false);
    __atomic_fetch_or(&j->state, CONC__JOB_LEFT, __ATOMIC_RELAXED);
    conc__job_at_work(j, false);
    c->lost++;
    conc__crew_stall(c);
    conc__crew_share(c);
    int rc = conc__crew_rouse(c);
    for (conc_job *first; rc && (first = conc__backlog_pop(c));) /* nobody comes for it */
        conc__crew_end_job(c, first, rc, NULL, true);
}

/* The task leaves, and the job with it unless it runs. */
CONC__PRIVATE bool conc__abandon_cancel(conc__wait *wait)
{
    conc__waiter *w = wait->item;
    conc_job *j = w->item;
    pthread_mutex_lock(&conc__crews);
    conc__crew *c = j->crew;
    bool waits = conc__still_waits(w, c);
    if (waits) {
        conc__waiter_decide(w, -ECANCELED);
        conc__job_ask(c, j);
        if (!(conc__job_state(j) & CONC__JOB_DONE)) /* else it was in the queue */
            conc__job_leave(c, j);
        conc__crew_unlock(c);
    }
    pthread_mutex_unlock(&conc__crews);
    return waits;
}

static const conc__wait_kind conc__wants_until_cancel = {
    .what = "waits for a job that it would leave", .cancel = conc__abandon_cancel};

CONC__PRIVATE int conc__abandoned_submit(conc_loop *l, conc__abandoned *a)
{
    int rc;
    conc_pool *p = conc__offloads_of(l, &rc);
    conc__crew *c = p ? conc__pool_enter(&p->crew, &p->users, &rc) : NULL;
    if (!c)
        return rc;
    conc__job_begin(&a->job, conc__abandoned_run, a, NULL, CONC__JOB_OWNED);
    rc = conc__crew_submit(c, &p->users, l, &a->job, NULL);
    if (rc)
        conc__job_refuse(&a->job);
    return rc;
}

CONC__PRIVATE int conc__abandoned_wait(conc_loop *l, conc__abandoned *a)
{
    conc__waiter w = {0};
    int rc = conc__job_wait_as(l, &a->job, &w, &conc__wants_until_cancel);
    return rc ? rc : conc__job_result(l, &a->job);
}

CONC__PRIVATE int conc__offload_abandon(conc_loop *l, conc_fn *fn, void *arg,
                                        void (*free_arg)(void *))
{
    conc__abandoned *a = conc__alloc(sizeof *a);
    int rc = a ? 0 : -ENOMEM;
    if (a) {
        a->called = false;
        a->fn = fn;
        a->arg = arg;
        a->free_arg = free_arg;
        a->references = 2;
        rc = conc__abandoned_submit(l, a);
    }
    if (rc) {
        conc_free(a);
        if (free_arg)
            free_arg(arg);
        return rc;
    }
    rc = conc__abandoned_wait(l, a);
    if ((conc__job_state(&a->job) & CONC__JOB_DONE) && !a->called && free_arg)
        free_arg(arg);
    conc__abandoned_drop(a);
    return rc;
}

/* conc_offload_abandon, for `call`. */
CONC__PRIVATE CONC__CALLED int conc__offload_for(conc_fn *fn, void *arg, void (*free_arg)(void *),
                                                 const char *call)
{
    conc_loop *l;
    int rc = conc__caller(&l, call);
    if (rc == 0 && !fn)
        rc = conc__misused(-EINVAL, call, "no function", NULL);
    if (rc == 0 && l)
        rc = conc__checkpoint(l);
    if (rc == 0 && l)
        return conc__offload_abandon(l, fn, arg, free_arg);
    if (rc == 0)
        rc = fn(arg);
    if (free_arg)
        free_arg(arg);
    return rc;
}

CONC_API CONC__CALLED int conc_offload_abandon(conc_fn *fn, void *arg, void (*free_arg)(void *))
{
    return conc__offload_for(fn, arg, free_arg, __func__);
}

/* ---- >>channel ------------------------------------------------------------------------------ */

/* Who waits to receive is there only while it is empty, and who waits to send only while it is
 * full. */
typedef struct conc__channel {
    pthread_mutex_t mutex;
    conc__waiter *senders, *receivers;
    size_t head, count;
    bool closed;
    unsigned forks; /* how many forks the process descended from when this was made */
    _Alignas(max_align_t) char items[];
} conc__channel;

/* Of a channel that was closed when there was no memory for it. */
static conc__channel conc__shut_channel = {.mutex = PTHREAD_MUTEX_INITIALIZER, .closed = true};

/* size: of its items. NULL: no memory. */
CONC__PRIVATE conc__channel *conc__channel_make(size_t size)
{
    conc__channel *made = conc__alloc(sizeof *made + size);
    if (made) {
        memset(made, 0, sizeof *made);
        pthread_mutex_init(&made->mutex, NULL);
        made->forks = conc__forks;
    }
    return made;
}

CONC__PRIVATE void conc__channel_free(conc__channel *inner)
{
    if (inner == &conc__shut_channel)
        return;
    pthread_mutex_destroy(&inner->mutex);
    conc_free(inner);
}

/* The first call in a forked child, for a channel that the parent used: its waiters are the
 * parent's, and its mutex may be locked for ever. What lay in it stays; an item that a thread of
 * the parent was copying when the process forked may be incomplete. */
CONC__COLD void conc__channel_take_over(conc__channel *inner)
{
    pthread_mutex_lock(&conc__crews); /* other threads of the child may come, too */
    if (inner->forks != conc__forks) {
        pthread_mutex_init(&inner->mutex, NULL);
        inner->senders = inner->receivers = NULL;
        __atomic_store_n(&inner->forks, conc__forks, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&conc__crews);
}

/* What is behind a channel, locked; made by the first call. NULL: *rc says why. */
CONC__PRIVATE conc__channel *conc__channel_lock(conc_channel *c, int *rc)
{
    size_t size = 0;
    conc__channel *inner = c ? __atomic_load_n(&c->inner, __ATOMIC_ACQUIRE) : NULL;
    *rc = !c || !c->capacity || __builtin_mul_overflow(c->item_size, c->capacity, &size) ||
                  size > SIZE_MAX / 2
              ? -EINVAL
              : 0;
    if (*rc)
        return NULL;
    if (!inner) {
        conc__crews_need(); /* so that forks are counted */
        conc__channel *made = conc__channel_make(size);
        *rc = made ? 0 : -ENOMEM;
        if (!made)
            return NULL;
        if (__atomic_compare_exchange_n(&c->inner, &inner, made, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE))
            inner = made;
        else /* another thread was first */
            conc__channel_free(made);
    }
    if (CONC__UNLIKELY(__atomic_load_n(&inner->forks, __ATOMIC_ACQUIRE) != conc__forks))
        conc__channel_take_over(inner);
    conc__lock_briefly(&inner->mutex);
    return inner;
}

CONC__PRIVATE bool conc__channel_cancel(conc__wait *wait)
{
    conc__waiter *w = wait->item;
    conc__channel *inner = (conc__channel *)(uintptr_t)wait->on;
    if (__atomic_load_n(&w->over, __ATOMIC_ACQUIRE))
        return false;
    conc__lock_briefly(&inner->mutex);
    bool waits = !w->over;
    if (waits)
        conc__waiter_decide(w, -ECANCELED);
    pthread_mutex_unlock(&inner->mutex);
    return waits;
}

static const conc__wait_kind conc__channel_sends = {.what = "sends into a full channel",
                                                    .cancel = conc__channel_cancel};
static const conc__wait_kind conc__channel_receives = {.what = "receives from an empty channel",
                                                       .cancel = conc__channel_cancel};

CONC__PRIVATE char *conc__channel_at(const conc_channel *c, conc__channel *inner, size_t i)
{
    size_t from_head = c->capacity - inner->head; /* places before the ring's end */
    return inner->items + (i < from_head ? inner->head + i : i - from_head) * c->item_size;
}

CONC__PRIVATE void conc__channel_copy(const conc_channel *c, void *to, const void *from)
{
    if (c->item_size)
        memcpy(to, from, c->item_size);
}

/* 0, -EPIPE, or -EAGAIN: it is full. */
CONC__PRIVATE int conc__channel_put(const conc_channel *c, conc__channel *inner, const void *item)
{
    conc__waiter *w = inner->receivers;
    if (inner->closed)
        return -EPIPE;
    if (w) {
        conc__channel_copy(c, w->item, item);
        conc__waiter_wake(w, 0);
    } else if (inner->count < c->capacity) {
        conc__channel_copy(c, conc__channel_at(c, inner, inner->count++), item);
    } else {
        return -EAGAIN;
    }
    return 0;
}

/* 0, -EPIPE, or -EAGAIN: it is empty. */
CONC__PRIVATE int conc__channel_take(const conc_channel *c, conc__channel *inner, void *item)
{
    conc__waiter *w = inner->senders;
    if (!inner->count)
        return inner->closed ? -EPIPE : -EAGAIN;
    conc__channel_copy(c, item, conc__channel_at(c, inner, 0));
    inner->head = inner->head + 1 < c->capacity ? inner->head + 1 : 0;
    inner->count--;
    if (w) {
        conc__channel_copy(c, conc__channel_at(c, inner, inner->count++), w->item);
        conc__waiter_wake(w, 0);
    }
    return 0;
}

/* The whole of a send or a receive. */
CONC__SWITCHES int conc__channel_move(conc_channel *c, void *item, bool sends, bool waits)
{
    const char *call = sends ? "conc_channel_send" : "conc_channel_recv";
    conc_loop *l = NULL;
    int rc = waits ? conc__caller(&l, call) : 0;
    if (rc == 0 && (!c || (c->item_size && !item)))
        rc = -EINVAL;
    if (rc == 0 && l)
        rc = conc__checkpoint(l);
    conc__channel *inner = rc ? NULL : conc__channel_lock(c, &rc);
    if (!inner)
        return conc__came_to(rc);
    rc = sends ? conc__channel_put(c, inner, item) : conc__channel_take(c, inner, item);
    if (rc == -EAGAIN && waits) {
        conc__waiter w = {.item = item};
        conc__line_up(sends ? &inner->senders : &inner->receivers, &w);
        rc = conc__wait_outside(l, &w, sends ? &conc__channel_sends : &conc__channel_receives,
                                inner, &inner->mutex, NULL);
        return conc__came_to(rc);
    }
    pthread_mutex_unlock(&inner->mutex);
    if (rc == 0 && l)
        conc__quick(l);
    return conc__came_to(rc);
}

CONC_API CONC__CALLED int conc_channel_send(conc_channel *c, const void *item)
{
    return conc__channel_move(c, (void *)(uintptr_t)item, true, true);
}

CONC_API CONC__CALLED int conc_channel_recv(conc_channel *c, void *item)
{
    return conc__channel_move(c, item, false, true);
}

CONC_API int conc_channel_try_send(conc_channel *c, const void *item)
{
    return conc__channel_move(c, (void *)(uintptr_t)item, true, false);
}

CONC_API CONC__CALLED int conc_channel_try_recv(conc_channel *c, void *item)
{
    return conc__channel_move(c, item, false, false);
}

CONC_API void conc_channel_close(conc_channel *c)
{
    int rc;
    conc__channel *inner = conc__channel_lock(c, &rc), *none = NULL;
    if (rc == -ENOMEM && !__atomic_compare_exchange_n(&c->inner, &none, &conc__shut_channel, false,
                                                      __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        inner = conc__channel_lock(c, &rc);
    if (!inner)
        return;
    inner->closed = true;
    while (inner->receivers)
        conc__waiter_wake(inner->receivers, -EPIPE);
    while (inner->senders)
        conc__waiter_wake(inner->senders, -EPIPE);
    pthread_mutex_unlock(&inner->mutex);
}

CONC_API void conc_channel_destroy(conc_channel *c)
{
    if (!c || !__atomic_load_n(&c->inner, __ATOMIC_ACQUIRE))
        return;
    conc_channel_close(c);
    conc__channel_free(c->inner);
    c->inner = NULL;
}

CONC_API void conc__auto_conc_channel(conc_channel *c) { conc_channel_destroy(c); }

/* ---- >>files -------------------------------------------------------------------------------- */

/* What a file call is asked for, and what came of it. */
typedef struct conc__file_call {
    const char *path;
    char *data;
    size_t size;
} conc__file_call;

CONC__PRIVATE int conc__open_file(const char *path, int flags)
{
    int fd;
    do
        fd = open(path, flags | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    fd = conc__not_standard(fd); /* else what the program prints meanwhile may go into the file */
    return fd < 0 ? -errno : fd;
}

CONC__PRIVATE int conc__close_file(int fd, int rc)
{
    return close(fd) && rc == 0 && errno != EINTR ? -errno : rc;
}

/* Reads to the end, whatever size the file is said to have. */
CONC__PRIVATE int conc__read_all(int fd, conc__file_call *f)
{
    struct stat st;
    size_t room = fstat(fd, &st) == 0 && st.st_size > 0 ? (size_t)st.st_size + 1 : 4096;
    for (ssize_t n = 1; n;) {
        if (!f->data || f->size + 1 >= room) {
            room = f->data ? room * 2 : room + 1;
            char *more = CONC_REALLOC(f->data, room);
            if (!more)
                return -ENOMEM;
            f->data = more;
        }
        n = read(fd, f->data + f->size, room - f->size - 1);
        if (n < 0 && errno != EINTR)
            return -errno;
        f->size += n > 0 ? (size_t)n : 0;
    }
    f->data[f->size] = 0;
    return 0;
}

CONC__PRIVATE int conc__file_reads(void *arg)
{
    conc__file_call *f = arg;
    int saved = errno, fd = conc__open_file(f->path, O_RDONLY);
    int rc = fd < 0 ? fd : conc__close_file(fd, conc__read_all(fd, f));
    if (rc) {
        conc_free(f->data);
        f->data = NULL;
    }
    errno = saved;
    return rc;
}

CONC_API CONC__CALLED int conc_file_read(const char *path, void **data, size_t *size)
{
    conc__file_call f = {path, NULL, 0};
    if (data)
        *data = NULL;
    if (!path || !data)
        return conc__own_error(-EINVAL);
    int rc = conc__offload(conc__file_reads, &f, __func__);
    *data = f.data;
    if (size)
        *size = f.data ? f.size : 0;
    return conc__system_failed(rc, path);
}

CONC__PRIVATE int conc__write_all(int fd, const conc__file_call *f)
{
    for (size_t done = 0; done < f->size;) {
        ssize_t n = write(fd, f->data + done, f->size - done);
        if (n < 0 && errno != EINTR)
            return -errno;
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

CONC__PRIVATE int conc__write_to(const char *path, int flags, const conc__file_call *f)
{
    int fd = conc__open_file(path, flags);
    return fd < 0 ? fd : conc__close_file(fd, conc__write_all(fd, f));
}

/* The directory of path, and the name of the file in it. */
CONC__PRIVATE int conc__open_directory(const char *path, const char **name)
{
    const char *slash = strrchr(path, '/');
    char directory[4096];
    int flags = O_RDONLY;
#ifdef __linux__
    flags = 010000000; /* O_PATH: also where it may not be listed */
#endif
    *name = slash ? slash + 1 : path;
    if (!slash || (size_t)(slash - path) + 2 > sizeof directory)
        return slash ? -ENAMETOOLONG : conc__open_file(".", flags | O_DIRECTORY);
    conc__copy(directory, (size_t)(slash - path) + 2, path);
    return conc__open_file(directory, flags | O_DIRECTORY);
}

/* Opens a file of a new name: the descriptor, and its name. */
CONC__PRIVATE int conc__open_new(int directory, mode_t mode, char *name, size_t size)
{
    int fd = -1;
    uint64_t draw = (uint64_t)conc__clock() ^ (uint64_t)getpid() << 40 ^ (uint64_t)(uintptr_t)name;
    for (int tries = 0; fd < 0 && tries < 100 && (tries == 0 || errno == EEXIST || errno == EINTR);
         tries++) {
        snprintf(name, size, ".conc-%08x", (unsigned)conc__mix(&draw));
        fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    }
    bool made = fd >= 0;
    fd = conc__not_standard(fd);
    int rc = fd < 0 ? -errno : fd;
    if (made && fd < 0)
        unlinkat(directory, name, 0);
    return rc;
}

/* Fills the new file; before: the one that it will replace, NULL: none. */
CONC__PRIVATE int conc__fill(int fd, const struct stat *before, const conc__file_call *f)
{
    int rc = conc__write_all(fd, f);
    if (rc == 0 && before) {
        if (fchown(fd, before->st_uid, before->st_gid) && fchown(fd, (uid_t)-1, before->st_gid)) {
            /* it was somebody else's, and is ours from now on */
        }
        rc = fchmod(fd, before->st_mode & 07777) ? -errno : 0;
    }
    return rc == 0 && fsync(fd) ? -errno : rc;
}

/* Makes path a file with these bytes in one step. */
CONC__PRIVATE int conc__replace(const char *path, const struct stat *before,
                                const conc__file_call *f)
{
    char name[32];
    const char *last;
    int directory = conc__open_directory(path, &last);
    if (directory < 0)
        return directory;
    int fd = conc__open_new(directory, before ? 0600 : 0666, name, sizeof name),
        rc = fd < 0 ? fd : 0;
    if (rc == 0) {
        rc = conc__close_file(fd, conc__fill(fd, before, f));
        if (rc == 0 && renameat(directory, name, directory, last))
            rc = -errno;
        if (rc)
            unlinkat(directory, name, 0);
    }
    close(directory);
    return rc;
}

/* Of a pipe whose reader has left nobody is killed. */
CONC__PRIVATE int conc__write_special(const conc__file_call *f)
{
    sigset_t pipe_signal, before, pending;
    sigemptyset(&pipe_signal);
    sigemptyset(&pending);
    sigaddset(&pipe_signal, SIGPIPE);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
    int rc = conc__write_to(f->path, O_WRONLY, f);
    if (rc == -EPIPE && !sigismember(&pending, SIGPIPE))
        conc__signal_discard(SIGPIPE);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

/* Follows a link that leads to nothing: the name of what it would lead to, for conc_free. NULL:
 * *rc says why. */
CONC__PRIVATE char *conc__follow(const char *path, int *rc)
{
    enum { ROOM = 4096, LINKS = 40 };
    char *at = conc__alloc(2 * ROOM), *target = at ? at + ROOM : NULL;
    struct stat st;
    *rc = !at ? -ENOMEM : strlen(path) >= ROOM ? -ENAMETOOLONG : 0;
    if (*rc == 0)
        strcpy(at, path);
    for (int links = 0; *rc == 0 && lstat(at, &st) == 0 && S_ISLNK(st.st_mode); links++) {
        ssize_t n = readlink(at, target, ROOM - 1);
        char *slash = strrchr(at, '/');
        size_t stays = n > 0 && target[0] != '/' && slash ? (size_t)(slash - at) + 1 : 0;
        if (n < 0 || links == LINKS || stays + (size_t)n >= ROOM)
            *rc = n < 0 ? -errno : links == LINKS ? -ELOOP : -ENAMETOOLONG;
        else
            memcpy(at + stays, target, (size_t)n), at[stays + (size_t)n] = 0;
    }
    if (*rc == 0)
        return at;
    conc_free(at);
    return NULL;
}

/* A link stays one: what it leads to is replaced, or made. */
CONC__PRIVATE int conc__write_file(const conc__file_call *f)
{
    struct stat before;
    bool there = stat(f->path, &before) == 0;
    int rc = there || errno == ENOENT ? 0 : -errno;
    if (rc)
        return rc;
    if (there && !S_ISREG(before.st_mode))
        return conc__write_special(f);
    char *real = there ? realpath(f->path, NULL) : NULL,
         *followed = there ? NULL : conc__follow(f->path, &rc);
    if (there && !real)
        rc = -errno;
    if (rc == 0)
        rc = conc__replace(there ? real : followed, there ? &before : NULL, f);
    free(real);
    conc_free(followed);
    return rc;
}

CONC__PRIVATE int conc__file_writes(void *arg)
{
    int saved = errno, rc = conc__write_file(arg);
    errno = saved;
    return rc;
}

CONC__PRIVATE int conc__file_appends(void *arg)
{
    const conc__file_call *f = arg;
    struct stat st;
    int saved = errno;
    bool special = stat(f->path, &st) == 0 && !S_ISREG(st.st_mode);
    int rc = special ? conc__write_special(f)
                     : conc__write_to(f->path, O_WRONLY | O_APPEND | O_CREAT, f);
    errno = saved;
    return rc;
}

CONC__PRIVATE int conc__file_change(conc_fn *fn, const char *path, const void *data, size_t size,
                                    const char *call)
{
    conc__file_call f = {path, (char *)(uintptr_t)data, size};
    if (!path || (!data && size))
        return conc__own_error(-EINVAL);
    if (!*path) /* not that the directory "" cannot be written to */
        return conc__system_failed(-ENOENT, path);
    return conc__system_failed(conc__offload(fn, &f, call), path);
}

CONC_API int conc_file_write(const char *path, const void *data, size_t size)
{
    return conc__file_change(conc__file_writes, path, data, size, __func__);
}

CONC_API int conc_file_append(const char *path, const void *data, size_t size)
{
    return conc__file_change(conc__file_appends, path, data, size, __func__);
}

/* ---- >>names -------------------------------------------------------------------------------- */

enum { CONC__FOUND = 256 }; /* addresses of a name: no answer has more */

/* A question to the resolver. It may outlive who asked. */
typedef struct conc__question {
    int references;
    char host[256], port[64];
    size_t max, count, kept;
    int code, error; /* getaddrinfo's, and errno with it */
    struct sockaddr_storage found[];
} conc__question;

CONC__PRIVATE void conc__question_drop(void *arg)
{
    conc__question *q = arg;
    if (__atomic_sub_fetch(&q->references, 1, __ATOMIC_ACQ_REL) == 0)
        conc_free(q);
}

CONC__PRIVATE int conc__ask_resolver(void *arg)
{
    conc__question *q = arg;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL;
    int saved = errno;
    q->code = getaddrinfo(q->host, q->port, &hints, &list);
    q->error = errno;
    for (struct addrinfo *a = q->code ? NULL : list; a; a = a->ai_next, q->count++)
        if (q->kept < q->max && a->ai_addrlen <= sizeof q->found[0])
            memcpy(&q->found[q->kept++], a->ai_addr, a->ai_addrlen);
    if (q->code == 0)
        freeaddrinfo(list);
    errno = saved;
    return 0;
}

/* In words, for who asked. */
CONC__PRIVATE int conc__no_answer(const conc__question *q)
{
    switch (q->code) {
    case EAI_MEMORY: return -ENOMEM;
    case EAI_SERVICE: return conc_fail(-EINVAL, "%s: no such port", q->port);
    case EAI_SYSTEM:
        if (q->error > 0)
            return conc_fail(-q->error, "%s: %s", q->host, conc_strerror(-q->error));
    /* fall through */
    case 0: return conc_fail(-EADDRNOTAVAIL, "%s: no address", q->host);
    default: return conc_fail(-EADDRNOTAVAIL, "%s: %s", q->host, gai_strerror(q->code));
    }
}

/* A number up to 65535, or the name of a service. */
CONC__PRIVATE bool conc__is_port(const char *port)
{
    in_port_t number;
    bool letter = (*port >= 'a' && *port <= 'z') || (*port >= 'A' && *port <= 'Z');
    return strlen(port) < sizeof((conc__question *)0)->port &&
           (letter || conc__parse_port(port, &number));
}

/* conc_resolve, for `call`. */
CONC__PRIVATE CONC__CALLED int conc__resolve(const char *host, const char *port,
                                             struct sockaddr_storage *out, size_t max,
                                             const char *call)
{
    if (!host || !port || (max && !out))
        return conc__misused(-EINVAL, call, "no host, no port, or nowhere to put them", NULL);
    if (!conc__is_port(port))
        return conc_fail(-EINVAL, "%.40s: no such port", *port ? port : "\"\"");
    if (!*host || strlen(host) >= sizeof((conc__question *)0)->host)
        return conc_fail(-EADDRNOTAVAIL, "%.40s: no name", *host ? host : "\"\"");
    max = max < 256 ? max : 256;
    conc__question *q = conc__alloc(sizeof *q + max * sizeof q->found[0]);
    if (!q)
        return -ENOMEM;
    memset(q, 0, sizeof *q + max * sizeof q->found[0]);
    q->references = 2;
    q->max = max;
    strcpy(q->host, host);
    strcpy(q->port, port);
    int rc = conc__offload_for(conc__ask_resolver, q, conc__question_drop, call);
    if (rc == 0 && (q->code || !q->count))
        rc = conc__no_answer(q);
    if (rc == 0) {
        if (q->kept)
            memcpy(out, q->found, q->kept * sizeof *out);
        rc = (int)q->count;
    }
    conc__question_drop(q);
    return rc;
}

CONC_API CONC__CALLED int conc_resolve(const char *host, const char *port,
                                       struct sockaddr_storage *out, size_t max)
{
    return conc__resolve(host, port, out, max, __func__);
}

/* For conc_listen, and for conc_dial in a task: "name:port", which was found to be well-formed. */
CONC__PRIVATE int conc__resolve_name(const char *text, struct conc__address **found)
{
    char host[256];
    const char *colon = strrchr(text, ':');
    conc__copy(host, (size_t)(colon - text) + 1, text);
    struct sockaddr_storage *all = conc__alloc(CONC__FOUND * sizeof *all);
    *found = conc__alloc(CONC__FOUND * sizeof **found);
    int rc =
        all && *found ? conc__resolve(host, colon + 1, all, CONC__FOUND, "conc_listen") : -ENOMEM;
    rc = rc < CONC__FOUND ? rc : CONC__FOUND;
    for (int i = 0; i < rc; i++) {
        bool six = all[i].ss_family == AF_INET6;
        (*found)[i].size = six ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
        memcpy(&(*found)[i].as, &all[i], (*found)[i].size);
    }
    conc_free(all);
    return rc;
}

/* ---- >>children ----------------------------------------------------------------------------- */

enum { CONC__CHILD_RUNS = 1, CONC__CHILD_ENDED, CONC__CHILD_LOST, CONC__CHILD_STARTS };

extern char **environ;

/* Where the C library has them, which hides them from programs that do not ask for GNU's
 * extensions. */
#define CONC__CHDIR_THERE __attribute__((weak))
#define CONC__CLOSE_FROM_THERE __attribute__((weak))
#if defined __GLIBC__ && defined __GLIBC_PREREQ
#if __GLIBC_PREREQ(2, 29)
#undef CONC__CHDIR_THERE
#define CONC__CHDIR_THERE /* so that a static program has it too */
#endif
#if __GLIBC_PREREQ(2, 34)
#undef CONC__CLOSE_FROM_THERE
#define CONC__CLOSE_FROM_THERE
#endif
#endif
extern int conc__spawn_close_from(posix_spawn_file_actions_t *a, int from) __asm__(
    "posix_spawn_file_actions_addclosefrom_np") CONC__CLOSE_FROM_THERE;
extern int conc__spawn_chdir(posix_spawn_file_actions_t *a, const char *dir) __asm__(
    "posix_spawn_file_actions_addchdir_np") CONC__CHDIR_THERE;

/* Over the state of all children: a process is reaped once, and not signalled after that. */
static pthread_mutex_t conc__children = PTHREAD_MUTEX_INITIALIZER;

/* The mask that the program had before conc changed it. */
CONC__PRIVATE void conc__original_mask(sigset_t *mask)
{
    conc_loop *l = conc__here;
    conc__frame *f = conc__frame_here();
    pthread_sigmask(SIG_SETMASK, NULL, mask);
    if (f && f->thread) { /* a pool's own thread lets nothing through, whatever runs on it */
        *mask = f->thread->mask;
        return;
    }
    if (l && !l->pipe_was_blocked)
        sigdelset(mask, SIGPIPE);
    for (int number = 1; l && number < CONC__SIGNALS; number++)
        if (l->unblocked & conc__signal_bit(number))
            sigaddset(mask, number);
}

/* A start on its way: for each of the three descriptors the child's end, and this program's. */
typedef struct conc__child_starting {
    conc_child *child;
    const char *path; /* NULL: argv[0], looked for in PATH */
    int far_ends[3], near_ends[3];
    bool was_free[3]; /* a socket that did not block before */
    sigset_t mask;
    pid_t pid;
} conc__child_starting;

CONC__PRIVATE void conc__close_ends(int *ends)
{
    for (int i = 0; i < 3; i++) {
        if (ends[i] >= 0)
            close(ends[i]);
        ends[i] = -1;
    }
}

/* The ends of what the child shall have as its descriptor `number`. */
CONC__PRIVATE int conc__child_end(conc__child_starting *s, int number, int wanted)
{
    int ends[2], rc = 0, *far_end = &s->far_ends[number];
    if (wanted == CONC_NULL) {
        *far_end = conc__open_file("/dev/null", number ? O_WRONLY : O_RDONLY);
        rc = *far_end < 0 ? *far_end : 0;
    } else if (wanted == CONC_PIPE) {
        rc = conc__pipe(ends);
        if (rc == 0) {
            *far_end = ends[number != 0];
            s->near_ends[number] = ends[number == 0];
        }
    } else if (wanted > 0) { /* a copy: a standard descriptor may be replaced before it is used */
        *far_end = fcntl(wanted, F_DUPFD_CLOEXEC, 3);
        rc = *far_end < 0 ? -errno : 0;
    } else if (wanted < 0) {
        rc = -EINVAL;
    }
    return rc;
}

/* Ordinary programs do not expect that their input or output does not block, and a socket's mode
 * is the same in both processes. conc itself never relies on it (MSG_DONTWAIT), but for a
 * listener, which accept(2) has no such flag for. */
CONC__PRIVATE void conc__child_socket_blocks(conc__child_starting *s, int number)
{
    int fd = s->far_ends[number] >= 0 ? s->far_ends[number] : number, listens = 0;
    int flags = fcntl(fd, F_GETFL);
    socklen_t size = sizeof listens;
    if (flags < 0 || !(flags & O_NONBLOCK) ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) || listens)
        return;
    s->was_free[number] = fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0;
}

/* Nothing was started. */
CONC__PRIVATE void conc__child_socket_as_before(const conc__child_starting *s, int number)
{
    int fd = s->far_ends[number] >= 0 ? s->far_ends[number] : number;
    int flags = s->was_free[number] ? fcntl(fd, F_GETFL) : -1;
    if (flags >= 0)
        fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

CONC__PRIVATE int conc__close_others(posix_spawn_file_actions_t *actions, int from)
{
    int (*close_from)(posix_spawn_file_actions_t *, int) = conc__spawn_close_from;
    int rc = 0;
    if (close_from)
        return close_from(actions, from);
    for (int fd = from, most = (int)sysconf(_SC_OPEN_MAX); fd < most && fd < 65536 && rc == 0;
         fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags >= 0 && !(flags & FD_CLOEXEC))
            rc = posix_spawn_file_actions_addclose(actions, fd);
    }
    return rc;
}

/* What posix_spawn is told: which signals to block, and which files to change. */
typedef struct conc__spawning {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
} conc__spawning;

CONC__PRIVATE int conc__spawning_open(conc__spawning *s, const sigset_t *mask)
{
    int rc = posix_spawn_file_actions_init(&s->actions);
    if (rc)
        return rc;
    rc = posix_spawnattr_init(&s->attributes);
    if (rc) {
        posix_spawn_file_actions_destroy(&s->actions);
        return rc;
    }
    posix_spawnattr_setsigmask(&s->attributes, mask);
    posix_spawnattr_setflags(&s->attributes, POSIX_SPAWN_SETSIGMASK);
    return 0;
}

CONC__PRIVATE void conc__spawning_close(conc__spawning *s)
{
    posix_spawnattr_destroy(&s->attributes);
    posix_spawn_file_actions_destroy(&s->actions);
}

CONC__PRIVATE int conc__spawn_program(conc__child_starting *s)
{
    const conc_child *c = s->child;
    char *const *argv = (char *const *)(uintptr_t)c->argv, *const *env =
                                                               (char *const *)(uintptr_t)c->env;
    int (*change)(posix_spawn_file_actions_t *, const char *) = conc__spawn_chdir;
    conc__spawning how;
    int rc = conc__spawning_open(&how, &s->mask);
    if (rc)
        return -rc;
    if (c->dir)
        rc = change ? change(&how.actions, c->dir) : ENOTSUP;
    for (int i = 0; i < 3 && rc == 0; i++)
        if (s->far_ends[i] >= 0)
            rc = posix_spawn_file_actions_adddup2(&how.actions, s->far_ends[i], i);
    if (rc == 0)
        rc = conc__close_others(&how.actions, 3);
    if (rc == 0)
        rc = s->path ? posix_spawn(&s->pid, s->path, &how.actions, &how.attributes, argv,
                                   env ? env : environ)
                     : posix_spawnp(&s->pid, argv[0], &how.actions, &how.attributes, argv,
                                    env ? env : environ);
    conc__spawning_close(&how);
    return -rc;
}

CONC__PRIVATE int conc__pidfd(pid_t pid)
{
#if defined __linux__ && defined SYS_pidfd_open
    return conc__not_standard((int)syscall(SYS_pidfd_open, pid, 0)); /* close-on-exec by itself */
#else
    (void)pid;
    return -1;
#endif
}

CONC__PRIVATE int conc__child_starts(void *arg)
{
    conc__child_starting *s = arg;
    conc_child *c = s->child;
    int saved = errno, wanted[3] = {c->input, c->output, c->error}, rc = 0;
    for (int i = 0; i < 3; i++)
        s->near_ends[i] = s->far_ends[i] = -1;
    for (int i = 0; i < 3 && rc == 0; i++)
        rc = conc__child_end(s, i, wanted[i]);
    for (int i = 0; i < 3 && rc == 0; i++)
        conc__child_socket_blocks(s, i);
    if (rc == 0)
        rc = conc__spawn_program(s);
    for (int i = 2; i >= 0 && rc; i--)
        conc__child_socket_as_before(s, i);
    conc__close_ends(s->far_ends);
    if (rc)
        conc__close_ends(s->near_ends);
    errno = saved;
    return rc;
}

/* False: it was started, or is being. */
CONC__PRIVATE bool conc__child_claim(conc_child *c)
{
    int none = 0;
    return __atomic_compare_exchange_n(&c->state, &none, CONC__CHILD_STARTS, false,
                                       __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

/* Was it started, and not closed? */
CONC__PRIVATE bool conc__child_is_there(const conc_child *c)
{
    int state = c ? __atomic_load_n(&c->state, __ATOMIC_ACQUIRE) : 0;
    return state && state != CONC__CHILD_STARTS;
}

CONC_API int conc_child_start(conc_child *c)
{
    conc_loop *l;
    int rc = conc__caller(&l, __func__);
    if (rc == 0 && (!c || !c->argv || !c->argv[0]))
        rc = -EINVAL;
    if (rc == 0 && !conc__child_claim(c))
        rc = -EBUSY;
    if (rc)
        return conc__own_error(rc);
    conc__child_starting s = {.child = c};
    conc__original_mask(&s.mask);
    rc = conc_offload(conc__child_starts, &s);
    if (rc) {
        __atomic_store_n(&c->state, 0, __ATOMIC_RELEASE);
        return conc__system_failed(rc, c->argv[0]);
    }
    c->input = s.near_ends[0];
    c->output = s.near_ends[1];
    c->error = s.near_ends[2];
    c->pid = (int)s.pid;
    int saved = errno;
    c->pidfd = conc__pidfd(s.pid); /* it is not reaped before, so the number is its own */
    errno = saved;
    c->status = 0;
    __atomic_store_n(&c->state, CONC__CHILD_RUNS, __ATOMIC_RELEASE);
    return 0;
}

/* Has it ended? Then it is reaped. */
CONC__PRIVATE bool conc__child_ended(conc_child *c)
{
    int saved = errno;
    pthread_mutex_lock(&conc__children);
    if (c->state == CONC__CHILD_RUNS) {
        int status;
        pid_t pid;
        do
            pid = waitpid(c->pid, &status, WNOHANG);
        while (pid < 0 && errno == EINTR);
        if (pid > 0)
            c->status = status;
        if (pid)
            c->state = pid > 0 ? CONC__CHILD_ENDED : CONC__CHILD_LOST;
    }
    bool ended = c->state != CONC__CHILD_RUNS;
    pthread_mutex_unlock(&conc__children);
    errno = saved;
    return ended;
}

/* Waits a little, where there is no descriptor to wait on, or for it. */
CONC__PRIVATE int conc__child_pause(const conc_loop *l, const conc_child *c, double *pause)
{
    if (c->pidfd >= 0 && l && l->self)
        return conc_wait_fd(c->pidfd, CONC_READABLE);
    if (c->pidfd >= 0) {
        struct pollfd p = {c->pidfd, POLLIN, 0};
        int saved = errno;
        poll(&p, 1, -1);
        errno = saved;
        return 0;
    }
    *pause = *pause < 0.05 ? *pause * 2 : *pause;
    if (l && l->self)
        return conc_sleep(*pause);
    conc__doze(conc__ns(*pause));
    return 0;
}

CONC__PRIVATE int conc__child_await(conc_child *c)
{
    double pause = 0.0005;
    int rc = 0;
    while (!conc__child_ended(c) && rc >= 0)
        rc = conc__child_pause(conc__here, c, &pause);
    return rc < 0 && !conc__child_ended(c) ? rc : 0;
}

CONC_API CONC__CALLED int conc_child_wait(conc_child *c, int *status)
{
    conc_loop *l;
    int rc = conc__caller(&l, __func__);
    if (rc == 0 && !conc__child_is_there(c))
        return conc__misused(-EINVAL, __func__, "no child was started there", NULL);
    if (rc == 0 && l)
        rc = conc__checkpoint(l);
    if (rc == 0)
        rc = conc__child_await(c);
    if (rc == 0 && c->state == CONC__CHILD_LOST)
        rc = conc_fail(
            -ECHILD, "its status is lost: the program ignores SIGCHLD, or waits for all children");
    if (rc == 0 && status)
        *status = c->status;
    if (rc == 0 && l)
        conc__quick(l);
    return rc;
}

/* -EALREADY: it has ended. */
CONC__PRIVATE int conc__child_signal(conc_child *c, int signal)
{
    if (conc__child_ended(c))
        return -EALREADY;
    int saved = errno, rc = -EALREADY;
    pthread_mutex_lock(&conc__children);
    if (c->state == CONC__CHILD_RUNS)
        rc = kill(c->pid, signal) ? -errno : 0;
    pthread_mutex_unlock(&conc__children);
    errno = saved;
    return rc;
}

CONC_API int conc_child_kill(conc_child *c, int signal)
{
    int rc = conc__child_is_there(c) ? conc__child_signal(c, signal) : -EINVAL;
    if (rc == -EALREADY)
        return conc__own_error(rc);
    return conc__system_failed(rc, NULL);
}

CONC__PRIVATE int conc__child_await_all(void *arg)
{
    while (conc__child_await(arg))
        ;
    return 0;
}

CONC__PRIVATE void conc__close_end(int *fd)
{
    if (*fd >= 0)
        conc_close(*fd);
    *fd = -1;
}

CONC_API int conc_child_close(conc_child *c)
{
    conc_loop *l = conc__here;
    if (!c)
        return conc__own_error(-EINVAL);
    if (!conc__child_is_there(c))
        return c->state ? -EBUSY : 0;
    conc__close_end(&c->input);
    conc__close_end(&c->output);
    conc__close_end(&c->error);
    conc__child_signal(c, SIGKILL);
    if (l && l->self)
        conc_shield(CONC_FOREVER, conc__child_await_all, c);
    else
        conc__child_await_all(c);
    conc__close_end(&c->pidfd);
    c->state = 0;
    return 0;
}

CONC_API void conc__auto_conc_child(conc_child *c) { conc_child_close(c); }

/* ---- >>shared ------------------------------------------------------------------------------- */

#ifdef __linux__

#include <elf.h>
#include <linux/futex.h>
#include <sys/resource.h>

/* A piece of memory that has a descriptor, so that other processes can map it. */
typedef struct conc__segment {
    struct conc__segment *next; /* of those that the program allocated */
    void *address;
    size_t size;
    int fd;
} conc__segment;

static pthread_mutex_t conc__segments_mutex = PTHREAD_MUTEX_INITIALIZER;
static conc__segment *conc__segments;

/* Maps size bytes of a segment, here if address is not NULL. at_once: all of it is going to be
 * used. */
CONC__PRIVATE void *conc__segment_map(int fd, void *address, size_t size, bool at_once)
{
    enum { HERE = 0x100000 }; /* MAP_FIXED_NOREPLACE */
    int flags = MAP_SHARED | (at_once ? CONC__MAP_POPULATE : 0) | (address ? HERE : 0);
    void *p = mmap(address, size, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (!address || p == address)
        return p;
    munmap(p, size); /* a kernel that does not know the flag */
    return NULL;
}

/* An address that another process of this program has most likely free too: not where mappings
 * are usually put. */
CONC__PRIVATE void *conc__far_address(void)
{
#ifdef __LP64__
    static uint64_t draws;
    uint64_t draw = (uint64_t)conc__clock() + __atomic_add_fetch(&draws, 1, __ATOMIC_RELAXED);
    uintptr_t here =
        (uintptr_t)mmap(NULL, conc__page(), PROT_NONE, MAP_PRIVATE | CONC__MAP_ANONYMOUS, -1, 0);
    if ((void *)here == MAP_FAILED)
        return NULL;
    munmap((void *)here, conc__page());
    uintptr_t away = ((uintptr_t)64 << 30) + (uintptr_t)(conc__mix(&draw) % ((uint64_t)64 << 30));
    return here > 2 * away ? (void *)((here - away) & ~(uintptr_t)0xffff) : NULL;
#else
    return NULL;
#endif
}

/* A system call failed, which says errno: its words name it, as a sandbox may refuse it. */
CONC__COLD int conc__call_failed(const char *call)
{
    int rc = -errno;
    return conc_fail(rc, "%s: %s", call, strerror(-rc));
}

/* far_away: where other processes have most likely nothing. */
CONC__PRIVATE int conc__segment_open(conc__segment *s, size_t size, bool far_away)
{
    enum { CLOEXEC = 1 }; /* MFD_CLOEXEC */
    s->fd = conc__not_standard((int)syscall(SYS_memfd_create, "conc", CLOEXEC));
    if (s->fd < 0)
        return conc__call_failed("memfd_create");
    s->size = size;
    bool sized = ftruncate(s->fd, (off_t)size) == 0;
    s->address = NULL;
    for (int tries = 0; sized && far_away && !s->address && tries < 4; tries++) {
        void *address = conc__far_address();
        s->address = address ? conc__segment_map(s->fd, address, size, false) : NULL;
    }
    if (sized && !s->address)
        s->address = conc__segment_map(s->fd, NULL, size, false);
    if (s->address)
        return 0;
    int rc = -errno;
    close(s->fd);
    s->fd = -1;
    return rc;
}

CONC__PRIVATE void conc__segment_close(conc__segment *s)
{
    if (s->address)
        munmap(s->address, s->size);
    if (s->fd >= 0)
        close(s->fd);
    s->address = NULL;
    s->fd = -1;
}

/* Makes it larger or smaller; its address may change. On failure it is as before. */
CONC__PRIVATE bool conc__segment_resize(conc__segment *s, size_t size, bool at_once)
{
    if (size > s->size && ftruncate(s->fd, (off_t)size))
        return false;
    void *p = conc__segment_map(s->fd, NULL, size, at_once);
    if (!p)
        return false;
    munmap(s->address, s->size);
    if (size < s->size && ftruncate(s->fd, (off_t)size)) {
        /* the memory comes back later */
    }
    s->address = p;
    s->size = size;
    return true;
}

CONC_API void *conc_shared_alloc(size_t size)
{
    size_t page = conc__page();
    conc__segment *s = size && size < SIZE_MAX / 4 ? conc__alloc(sizeof *s) : NULL;
    int saved = errno;
    if (s && conc__segment_open(s, (size + page - 1) / page * page, true)) {
        conc_free(s);
        s = NULL;
    }
    errno = saved;
    if (!s)
        return NULL;
    pthread_mutex_lock(&conc__segments_mutex);
    s->next = conc__segments;
    conc__segments = s;
    pthread_mutex_unlock(&conc__segments_mutex);
    return s->address;
}

CONC_API void conc_shared_free(void *p)
{
    conc__segment **at = &conc__segments, *s;
    int saved = errno;
    pthread_mutex_lock(&conc__segments_mutex);
    while ((s = *at) && s->address != p)
        at = &s->next;
    if (s)
        *at = s->next;
    pthread_mutex_unlock(&conc__segments_mutex);
    if (s)
        conc__segment_close(s);
    conc_free(s);
    errno = saved;
}

/* ---- >>functions ---------------------------------------------------------------------------- */

/* A function in words that another process of the same program understands: addresses differ
 * there. */
typedef struct conc__function {
    uint64_t offset;   /* in its module */
    char module[4000]; /* a path; "": the program itself */
} conc__function;

typedef struct conc__module_info { /* struct dl_phdr_info, which the system's header hides */
    uintptr_t base;
    const char *name;
#ifdef __LP64__
    const Elf64_Phdr *parts;
#else
    const Elf32_Phdr *parts;
#endif
    uint16_t count;
} conc__module_info;

extern int conc__each_module(int (*fn)(conc__module_info *info, size_t size, void *arg),
                             void *arg) __asm__("dl_iterate_phdr");
extern void *conc__load_module(const char *path, int flags) __asm__("dlopen") __attribute__((weak));

typedef struct conc__module_search {
    int seen;
    uintptr_t address; /* looked for; 0: a path is */
    const char *path;
    uintptr_t base;
    bool found;
    char *name; /* 4000 bytes for the path that was found */
} conc__module_search;

CONC__PRIVATE bool conc__module_has(const conc__module_info *m, uintptr_t address)
{
    for (int i = 0; i < m->count; i++)
        if (m->parts[i].p_type == PT_LOAD &&
            address - m->base - m->parts[i].p_vaddr < m->parts[i].p_memsz)
            return true;
    return false;
}

/* The path of the file that is mapped at this address; if that cannot be told, the one that is
 * given. */
CONC__PRIVATE const char *conc__mapped_file(uintptr_t address, char *line, size_t size,
                                            const char *otherwise)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    const char *found = NULL;
    while (maps && !found && fgets(line, (int)size, maps)) {
        char *end, *slash = strchr(line, '/');
        uintptr_t from = strtoul(line, &end, 16), to = *end == '-' ? strtoul(end + 1, NULL, 16) : 0;
        if (slash && from <= address && address < to) {
            slash[strcspn(slash, "\n")] = 0;
            found = slash;
        }
    }
    if (maps)
        fclose(maps);
    return found ? found : otherwise;
}

CONC__PRIVATE int conc__module_look(conc__module_info *m, size_t size, void *arg)
{
    conc__module_search *s = arg;
    /* the first is the program */
    char *real = s->seen++ && m->name && *m->name ? realpath(m->name, NULL) : NULL;
    const char *path = real ? real : s->seen > 1 && m->name ? m->name : "";
    char line[4400];
    (void)size;
    s->found = s->address ? conc__module_has(m, s->address)
                          : strcmp(path, s->path) == 0 && (*path || s->seen == 1);
    /* the directory was changed since it was loaded */
    if (s->found && *path && *path != '/' && s->address)
        path = conc__mapped_file(s->address, line, sizeof line, path);
    if (s->found) {
        s->base = m->base;
        if (s->name)
            conc__copy(s->name, sizeof((conc__function *)0)->module, path);
    }
    free(real);
    return s->found;
}

/* False: it is in no module. */
CONC__PRIVATE bool conc__function_name(uintptr_t fn, conc__function *out)
{
    conc__module_search s = {.address = fn, .name = out->module};
    int saved = errno;
    conc__each_module(conc__module_look, &s);
    out->offset = fn - s.base;
    errno = saved;
    return s.found;
}

/* 0: its module is not there and cannot be loaded. */
CONC__PRIVATE uintptr_t conc__function_find(const conc__function *f)
{
    enum { NOW = 2 }; /* RTLD_NOW */
    static uintptr_t base;
    static char module[sizeof f->module] = "?"; /* of the last one */
    if (strcmp(module, f->module) != 0) {
        conc__module_search s = {.path = f->module};
        conc__each_module(conc__module_look, &s);
        if (!s.found && conc__load_module && conc__load_module(f->module, NOW)) {
            s.seen = 0;
            conc__each_module(conc__module_look, &s);
        }
        if (!s.found)
            return 0;
        base = s.base;
        strcpy(module, f->module);
    }
    return base + (uintptr_t)f->offset;
}

/* ---- >>workers ------------------------------------------------------------------------------ */

enum {
    /* bytes that are copied by whoever sends a job, and not by the manager */
    CONC__SMALL = 128 * 1024,
    CONC__DESK_DATA = 8192, /* where a desk's data begins */
    CONC__DESK_SIZE = CONC__DESK_DATA + CONC__SMALL,
    CONC__MOVED = 120,   /* a worker's exit status: an address that it needs is taken */
    CONC__FAILURES = 30, /* so many tenths of a worker may not come up in a row */

    /* a desk's state, which its worker and the parent change in turn */
    CONC__DESK_REPLY = 0, /* the parent's turn; at the start too */
    CONC__DESK_REQUEST = 1,
    CONC__DESK_QUIT = 2,

    /* kinds of requests */
    CONC__ASK_INIT = 0,
    CONC__ASK_RUN,
    CONC__ASK_CALL,
    CONC__ASK_MAP
};

/* What a worker and its parent share: one request at a time. */
typedef struct conc__desk {
    unsigned state;  /* a futex */
    unsigned asleep; /* the worker waits in the kernel */
    unsigned asked;  /* the job is to end */
    unsigned begun;  /* the worker has seen the request */
    int kind;
    bool keeps_going;
    int parent;
    uint64_t memory_limit;
    uint64_t size; /* of the desk */
    /* bytes; ASK_MAP: of each element, and how many there are. out's place is behind in's */
    uint64_t in, out;
    int64_t result;
    /* ASK_MAP: elements whose function returned; their results stand behind the data */
    uint64_t done;
    int words; /* the result that text belongs to; 0: none */
    char text[96];
    conc__function function;
} conc__desk;

_Static_assert(sizeof(conc__desk) <= CONC__DESK_DATA, "a desk's head has to fit");

/* What all workers of a pool share with the parent. */
typedef struct conc__board {
    unsigned replies; /* how many there were */
    unsigned lookers; /* threads of the parent that look at the replies: nobody needs to be woken */
} conc__board;

/* A message to a worker that starts: a descriptor, and what it is. */
typedef struct conc__handing {
    enum {
        CONC__HAND_DESK,
        CONC__HAND_BOARD,
        CONC__HAND_BELL,
        CONC__HAND_SHARED,
        CONC__HAND_FORK,
        CONC__HAND_REAP
    } what;
    int number; /* a process or its status */
    void *address;
    size_t size;
} conc__handing;

CONC__PRIVATE int conc__sockets(int ends[2])
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
        return -errno;
    return conc__ends_not_standard(ends);
}

/* The other end comes to the end of what was sent. A close alone would not do: a process that
 * the program has forked may have a copy of the socket. */
CONC__PRIVATE void conc__hang_up(int socket)
{
    shutdown(socket, SHUT_RDWR);
    close(socket);
}

CONC__PRIVATE int conc__hand(int socket, const conc__handing *h, int fd)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec part = {(void *)(uintptr_t)h, sizeof *h};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        m.msg_control = control.room;
        m.msg_controllen = sizeof control.room;
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    }
    ssize_t n;
    do
        n = sendmsg(socket, &m, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

/* 1, 0 at the end, or an error. *fd: -1 if none came. */
CONC__PRIVATE int conc__handed(int socket, conc__handing *h, int *fd)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {h, sizeof *h};
    struct msghdr m = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.room,
                       .msg_controllen = sizeof control.room};
    ssize_t n;
    do
        n = recvmsg(socket, &m, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    *fd = -1;
    if (n == (ssize_t)sizeof *h && m.msg_controllen >= CMSG_LEN(sizeof(int)))
        memcpy(fd, CMSG_DATA(&control.head), sizeof *fd);
    int rc = n < 0 ? -errno : n == (ssize_t)sizeof *h;
    *fd = conc__not_standard(*fd); /* else a job that prints would write into it */
    return rc;
}

CONC__PRIVATE void conc__futex_wait(unsigned *word, unsigned while_it_is)
{
    syscall(SYS_futex, word, FUTEX_WAIT, while_it_is, NULL, NULL, 0);
}

CONC__PRIVATE void conc__futex_wake(unsigned *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

CONC__PRIVATE size_t conc__aligned(size_t n) { return (n + 63) / 64 * 64; }

/* In a worker: what it works with. */
typedef struct conc__worker {
    conc__segment desk;
    conc__board *board;
    int bell;
    conc__frame frame;
} conc__worker;

/* In a worker: ends it when the parent has ended. */
CONC__PRIVATE void *conc__watch_parent(void *arg)
{
    struct pollfd p = {(int)(intptr_t)arg, POLLIN, 0};
    while (poll(&p, 1, -1) < 0 && errno == EINTR)
        ;
    kill(getpid(), SIGKILL);
    return NULL;
}

CONC__PRIVATE void conc__begin_to_watch(int parent)
{
    pthread_attr_t small;
    pthread_t id;
    int fd = conc__pidfd(parent);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 * 1024);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    if (fd < 0 || conc__quiet_thread(&id, &small, conc__watch_parent, (void *)(intptr_t)fd))
        /* the next best: it goes with the thread that started it */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    pthread_attr_destroy(&small);
    if (fd < 0 ? getppid() != parent : kill(parent, 0) != 0 && errno == ESRCH)
        _exit(0); /* it has ended meanwhile */
}

CONC__PRIVATE conc__desk *conc__desk_of(const conc__segment *s) { return s->address; }

CONC__PRIVATE void conc__worker_tells(conc__worker *w)
{
    uint64_t one = 1;
    __atomic_fetch_add(&w->board->replies, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&w->board->lookers, __ATOMIC_SEQ_CST) == 0 &&
        write(w->bell, &one, sizeof one) < 0 && errno != EAGAIN)
        _exit(1); /* the job has closed it: the end is heard all the same */
}

/* Until there is a request: false when the worker is to end. */
CONC__PRIVATE bool conc__worker_awaits(conc__worker *w)
{
    conc__desk *d = conc__desk_of(&w->desk);
    int64_t start = conc__clock();
    unsigned state;
    while ((state = __atomic_load_n(&d->state, __ATOMIC_ACQUIRE)) == CONC__DESK_REPLY) {
        bool looks = conc__several_processors() && conc__clock() - start < CONC__PATIENCE;
        for (int i = 0;
             i < 32 && looks && __atomic_load_n(&d->state, __ATOMIC_RELAXED) == CONC__DESK_REPLY;
             i++)
            conc__relax();
        if (looks)
            continue;
        __atomic_store_n(&d->asleep, 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&d->state, __ATOMIC_SEQ_CST) == CONC__DESK_REPLY)
            conc__futex_wait(&d->state, CONC__DESK_REPLY);
        __atomic_store_n(&d->asleep, 0, __ATOMIC_SEQ_CST);
    }
    return state == CONC__DESK_REQUEST;
}

CONC__PRIVATE void conc__worker_maps(conc__desk *d, conc_fn *fn, char *data)
{
    int *results = (int *)(void *)(data + conc__aligned(d->in * d->out));
    for (uint64_t i = 0; i < d->out && !__atomic_load_n(&d->asked, __ATOMIC_RELAXED); i++) {
        int rc = fn(d->in ? data + i * d->in : NULL);
        results[i] = rc;
        __atomic_store_n(&d->done, i + 1, __ATOMIC_RELEASE);
        if (rc < 0 && !d->keeps_going) {
            d->result = rc;
            break;
        }
    }
}

/* Does what the desk asks for. */
CONC__PRIVATE void conc__worker_works(conc__worker *w)
{
    conc__desk *d = conc__desk_of(&w->desk);
    d->words = 0;
    if (d->size > w->desk.size) { /* the parent made it larger */
        void *p = conc__segment_map(w->desk.fd, NULL, d->size, d->kind == CONC__ASK_RUN);
        if (!p) {
            d->result = -ENOMEM;
            return;
        }
        munmap(w->desk.address, w->desk.size);
        w->desk.address = d = p;
        w->desk.size = d->size;
    }
    uintptr_t fn =
        d->function.offset || d->kind != CONC__ASK_INIT ? conc__function_find(&d->function) : 0;
    char *data = (char *)d + CONC__DESK_DATA;
    w->frame.asked = &d->asked;
    w->frame.text_rc = 0;
    d->result = 0;
    if (!fn)
        d->result = d->kind == CONC__ASK_INIT && !d->function.offset
                        ? 0
                        : conc_fail(-ENOEXEC, "%s cannot be loaded", d->function.module);
    else if (d->kind == CONC__ASK_INIT)
        d->result = ((int (*)(void))fn)();
    else if (d->kind == CONC__ASK_RUN)
        d->result = ((conc_fn *)fn)(d->in ? data : NULL);
    else if (d->kind == CONC__ASK_CALL)
        d->result = ((conc_procs_fn *)fn)(data, d->in, data + conc__aligned(d->in), d->out);
    else
        conc__worker_maps(d, (conc_fn *)fn, data);
    fflush(stdout);
    if (d->result < 0 && w->frame.text_rc == (int)d->result) {
        memcpy(d->text, w->frame.text, sizeof d->text);
        d->words = w->frame.text_rc;
    }
}

/* The whole life of a worker. */
CONC__PRIVATE void conc__worker_serves(conc__worker *w)
{
    conc__desk *d = conc__desk_of(&w->desk);
    sigset_t none;
    sigemptyset(&none);
    /* the terminal's, for all of its processes: the parent decides what to do */
    signal(SIGINT, SIG_IGN);
    prctl(PR_SET_NAME, "conc worker");
    conc__begin_to_watch(d->parent);
    if (d->memory_limit) {
        struct rlimit limit = {d->memory_limit, d->memory_limit};
        setrlimit(RLIMIT_DATA, &limit);
    }
    conc__crews_need();
    if (conc__frames_there)
        pthread_setspecific(conc__frames, &w->frame);
    while (conc__worker_awaits(w)) {
        __atomic_store_n(&d->begun, 1, __ATOMIC_RELAXED);
        conc__worker_works(w);
        d = conc__desk_of(&w->desk);
        __atomic_store_n(&d->state, CONC__DESK_REPLY, __ATOMIC_SEQ_CST);
        conc__worker_tells(w);
    }
    fflush(NULL);
    _exit(0);
}

/* Takes one thing that the parent hands over. */
CONC__PRIVATE void conc__worker_takes(conc__worker *w, const conc__handing *h, int fd)
{
    switch (h->what) {
    case CONC__HAND_DESK:
        w->desk = (conc__segment){
            .fd = fd, .size = h->size, .address = conc__segment_map(fd, NULL, h->size, false)};
        break;
    case CONC__HAND_BOARD:
        w->board = conc__segment_map(fd, NULL, h->size, false);
        close(fd);
        break;
    case CONC__HAND_BELL: w->bell = fd; break;
    default:
        if (conc__segment_map(fd, h->address, h->size, false) != h->address)
            _exit(CONC__MOVED);
        close(fd);
        break;
    }
}

/* This program was started as a worker: it never gets to main. */
CONC__COLD void conc__worker_main(int socket)
{
    conc__worker w = {.bell = -1};
    conc__handing h;
    int fd, rc;
    fcntl(socket, F_SETFD, FD_CLOEXEC);
    while ((rc = conc__handed(socket, &h, &fd)) == 1)
        conc__worker_takes(&w, &h, fd);
    close(socket);
    if (rc == 0 && w.desk.address && w.board)
        conc__worker_serves(&w);
    _exit(1);
}

/* Which function of which module a worker has to begin with: in a program there may be several
 * copies of this file. */
CONC__PRIVATE void conc__worker_mark(char *text, size_t size)
{
    conc__function f;
    conc__function_name((uintptr_t)conc__worker_main, &f);
    snprintf(text, size, "CONC__WORKER=%llx", (unsigned long long)f.offset);
}

typedef void conc__constructor(int argc, char **argv, char **env);

/* The program's constructors, where the linker says where they are. */
extern conc__constructor *conc__constructors[] __asm__("__init_array_start")
    __attribute__((weak, visibility("hidden")));
extern conc__constructor *conc__constructors_end[] __asm__("__init_array_end")
    __attribute__((weak, visibility("hidden")));

/* Runs those behind this one, as they would have been: jobs see what they made. */
CONC__PRIVATE void conc__construct(conc__constructor *own, int argc, char **argv, char **env)
{
    conc__constructor **at = conc__constructors, **end = conc__constructors_end;
    while (at && at < end && *at != own)
        at++;
    for (at += at && at < end; at && at < end; at++)
        (*at)(argc, argv, env);
}

/* Before main: own is the constructor that calls this. */
CONC__PRIVATE void conc__worker_check(conc__constructor *begins, int argc, char **argv, char **env)
{
    const char *mark = getenv("CONC__WORKER");
    char own[64];
    if (!mark || getauxval(AT_SECURE))
        return;
    conc__worker_mark(own, sizeof own);
    if (strcmp(strchr(own, '=') + 1, mark) == 0) {
        unsetenv("CONC__WORKER");
        conc__construct(begins, argc, argv, env);
        conc__worker_main(3);
    }
}

/* ---- >>hub ---------------------------------------------------------------------------------- */

typedef enum conc__place_state {
    CONC__EMPTY,
    CONC__COMING, /* its init has not replied */
    CONC__FREE,
    CONC__LOADING, /* the manager copies, outside the mutex */
    CONC__BUSY,
    CONC__LEAVING /* was told to end, or killed */
} conc__place_state;

/* A worker, seen from the parent. */
typedef struct conc__station {
    conc__place_state state;
    conc__segment desk;
    int pid, pidfd;
    conc_job *job;
    bool cancelled; /* the job is, while it is loaded or unloaded */
    int64_t since;  /* it has been free since then */
} conc__station;

/* The workers of a pool of processes, and the thread that starts and buries them, copies what is
 * large, and sends jobs when nobody else looks. All under the crew's mutex. */
typedef struct conc__hub {
    conc__crew *crew;
    conc__segment board;
    int bell;
    bool rung, manages, ending, forks;
    pthread_t manager;
    sigset_t mask;
    int zygote, zygote_pid; /* .fork: a process that forks the workers */
    int failures;           /* workers in a row that did not come up */
    int broken;
    char why[96];
    int (*init)(void);
    size_t memory_limit;
    int coming;
    conc__waiter *closer; /* waits for the manager's end */
    struct pollfd *polls;
    conc__station stations[];
} conc__hub;

CONC__PRIVATE conc__board *conc__board_of(const conc__hub *h) { return h->board.address; }

CONC__PRIVATE void conc__hub_ring(conc__hub *h)
{
    uint64_t one = 1;
    if (!h->rung && write(h->bell, &one, sizeof one) < 0) {
        /* it is rung already */
    }
    h->rung = true;
}

CONC__PRIVATE int conc__desk_set(conc__desk *d, uintptr_t fn, int kind)
{
    d->kind = kind;
    d->asked = d->begun = 0;
    d->done = 0;
    d->in = d->out = 0;
    d->function.offset = 0;
    d->function.module[0] = 0;
    return fn && !conc__function_name(fn, &d->function) ? -EINVAL : 0;
}

CONC__PRIVATE void conc__desk_send(conc__desk *d)
{
    __atomic_store_n(&d->state, CONC__DESK_REQUEST, __ATOMIC_SEQ_CST);
    bool asleep = __atomic_load_n(&d->asleep, __ATOMIC_SEQ_CST);
    if (asleep)
        conc__futex_wake(&d->state);
    conc__has_woken(asleep);
}

/* The elements that a runner gets next: at first many, at last one by one. */
CONC__PRIVATE void conc__range_take(const conc__hub *h, const conc_job *j)
{
    conc__parcel *p = j->parcel;
    conc__mapping *m = p->mapping;
    size_t left = m->count - m->next,
           most = m->size ? CONC__SMALL / 2 / (m->size + sizeof(int)) : 4096;
    size_t n = left / (2 * (size_t)h->crew->most);
    if (p->left || conc__map_stops(m))
        return;
    n = n > most ? most : n;
    n = n < 1 && left ? 1 : n;
    p->first = m->next;
    p->left = n;
    m->next += n;
}

/* How many bytes the job's request takes on a desk. */
CONC__PRIVATE size_t conc__job_bytes(const conc_job *j)
{
    const conc__parcel *p = j->parcel;
    if (!p)
        return j->size;
    if (!p->mapping)
        return conc__aligned(p->in_size) + p->out_size;
    return conc__aligned(p->left * p->mapping->size) + p->left * sizeof(int);
}

/* Writes the job's request on the desk. */
CONC__PRIVATE int conc__job_load(const conc_job *j, conc__station *s)
{
    const conc__parcel *p = j->parcel;
    size_t bytes = conc__job_bytes(j), needed = CONC__DESK_DATA + bytes;
    if (bytes > SIZE_MAX / 4)
        return -ENOMEM;
    if (needed > s->desk.size &&
        !conc__segment_resize(&s->desk, (needed + (1 << 20) - 1) >> 20 << 20, !p))
        return -ENOMEM;
    conc__desk *d = conc__desk_of(&s->desk);
    char *data = (char *)d + CONC__DESK_DATA;
    bool maps = p && p->mapping;
    int rc = conc__desk_set(d,
                            p && !maps ? (uintptr_t)p->call
                            : maps     ? (uintptr_t)p->mapping->fn
                                       : (uintptr_t)j->fn,
                            maps ? CONC__ASK_MAP
                            : p  ? CONC__ASK_CALL
                                 : CONC__ASK_RUN);
    d->size = s->desk.size;
    if (maps) {
        d->in = p->mapping->size;
        d->out = p->left;
        d->keeps_going = p->mapping->keeps_going;
        if (d->in)
            memcpy(data, p->mapping->args + p->first * d->in, p->left * d->in);
    } else {
        const void *from = p ? p->in : j->arg;
        d->in = p ? p->in_size : j->size;
        d->out = p ? p->out_size : 0;
        if (d->in)
            memcpy(data, from, d->in);
    }
    return rc;
}

CONC__PRIVATE void conc__station_free(conc__hub *h, conc__station *s)
{
    s->job = NULL;
    s->cancelled = false;
    s->state = CONC__FREE;
    s->since = conc__clock();
    h->crew->started--;
}

/* The job that the station had is over: result, and words if they are not "". */
CONC__PRIVATE void conc__job_over(conc__crew *c, conc_job *j, int result, const char *words)
{
    conc__frame f = {.locals = j->locals, .text_rc = *words ? result : 0};
    conc__copy(f.text, sizeof f.text, words);
    conc__crew_end_job(c, j, result, &f, true);
    conc__crew_settled(c);
}

/* The same for a job that no worker does any more. */
CONC__PRIVATE void conc__job_undone(conc__crew *c, conc_job *j, int rc, const char *words)
{
    if (j->parcel && j->parcel->mapping) {
        conc__mapping *m = j->parcel->mapping;
        if (!m->keeps_going && !m->error && rc != -ECANCELED)
            m->error = rc;
        conc__range_drop(j->parcel, rc);
    }
    conc__job_over(c, j, rc, words);
}

/* The first n of a runner's elements have returned: their bytes, results, and the first error. */
CONC__PRIVATE void conc__range_done(conc__parcel *p, conc__desk *d, size_t n, int *error)
{
    conc__mapping *m = p->mapping;
    const char *data = (const char *)d + CONC__DESK_DATA;
    const int *results = (const int *)(const void *)(data + conc__aligned(d->in * d->out));
    n = n < p->left ? n : p->left;
    if (m->size)
        memcpy(m->args + p->first * m->size, data, n * m->size);
    for (size_t i = 0; i < n; i++) {
        if (m->results)
            m->results[p->first + i] = results[i];
        if (results[i] < 0 && !m->error && !m->keeps_going)
            *error = m->error = results[i];
    }
    p->first += n;
    p->left -= n;
}

/* An error of one element keeps the rest from starting. */
CONC__PRIVATE void conc__mapping_stop(conc__hub *h, conc__mapping *m)
{
    __atomic_store_n(&m->stop, true, __ATOMIC_RELAXED);
    for (int i = 0; i < h->crew->most; i++) {
        conc__station *s = &h->stations[i];
        if (s->state == CONC__BUSY && s->job->parcel && s->job->parcel->mapping == m)
            __atomic_store_n(&conc__desk_of(&s->desk)->asked, 1, __ATOMIC_RELAXED);
    }
}

/* A runner's request was answered. True: there is more for it to do. */
CONC__PRIVATE bool conc__runner_goes_on(conc__hub *h, conc_job *j, conc__desk *d, int *error)
{
    conc__parcel *p = j->parcel;
    conc__range_done(p, d, (size_t)d->done, error);
    if (d->result < 0 && d->done == 0 && !*error) /* the function was not found */
        conc__range_drop(p, p->mapping->error = *error = (int)d->result);
    if (*error)
        conc__mapping_stop(h, p->mapping);
    if (conc__map_stops(p->mapping))
        conc__range_drop(p, -ECANCELED);
    conc__range_take(h, j);
    return p->left > 0;
}

/* Is there more to copy than should be done by whoever comes? */
CONC__PRIVATE bool conc__job_is_large(const conc_job *j)
{
    return conc__job_bytes(j) > CONC__SMALL;
}

/* Sends the job, which was loaded, or tells why it could not be. */
CONC__PRIVATE void conc__station_send(conc__hub *h, conc__station *s, int rc)
{
    if (rc == 0 && !s->cancelled) {
        s->state = CONC__BUSY;
        conc__desk_send(conc__desk_of(&s->desk));
        return;
    }
    conc_job *j = s->job;
    rc = rc ? rc : -ECANCELED;
    conc__station_free(h, s);
    conc__job_undone(h->crew, j, rc, "");
}

/* Gives the station a job. Large ones only from the manager, which unlocks meanwhile. */
CONC__PRIVATE void conc__station_begin(conc__hub *h, conc__station *s, conc_job *j)
{
    if (s->state == CONC__FREE)
        h->crew->started++;
    s->job = j;
    s->state = CONC__LOADING;
    bool large = conc__job_is_large(j);
    if (large)
        pthread_mutex_unlock(&h->crew->mutex);
    int rc = conc__job_load(j, s);
    if (large)
        conc__lock_briefly(&h->crew->mutex);
    conc__station_send(h, s, rc);
}

/* The worker that was busy last: what it needs is in its processor's caches, and it may not
 * sleep yet. */
CONC__PRIVATE conc__station *conc__station_idle(conc__hub *h)
{
    conc__station *best = NULL;
    for (int i = 0; i < h->crew->most; i++) {
        conc__station *s = &h->stations[i];
        if (s->state == CONC__FREE && (!best || s->since > best->since))
            best = s;
    }
    return best;
}

CONC__PRIVATE conc__station *conc__station_in(conc__hub *h, conc__place_state state)
{
    for (int i = 0; i < h->crew->most; i++)
        if (h->stations[i].state == state)
            return &h->stations[i];
    return NULL;
}

/* Sends what is in the queue to those who are free; calls the manager for what only it does. */
CONC__PRIVATE void conc__hub_send(conc__hub *h, bool manager)
{
    conc__crew *c = h->crew;
    conc__station *s;
    for (conc_job *j; (j = conc__backlog_first(c));) {
        if (h->broken) {
            conc__job_undone(c, conc__backlog_pop(c), h->broken, h->why);
            continue;
        }
        s = conc__station_idle(h);
        if (j->parcel && j->parcel->mapping)
            conc__range_take(h, j);
        if (!s || (conc__job_is_large(j) && !manager))
            break;
        conc__backlog_pop(c);
        if (j->parcel && j->parcel->mapping && !j->parcel->left)
            conc__job_over(c, j, 0, "");
        else
            conc__station_begin(h, s, j);
    }
    if (c->queued && !manager &&
        (conc__station_in(h, CONC__FREE) ||
         (conc__station_in(h, CONC__EMPTY) && h->coming < (int)c->queued)))
        conc__hub_ring(h);
}

CONC__PRIVATE void *conc__manager_main(void *arg);

CONC__PRIVATE void conc__hub_rouse(conc__crew *c) { conc__hub_send(c->hub, false); }

/* Under the mutex, before the first job. */
CONC__PRIVATE int conc__hub_begin(conc__hub *h)
{
    if (h->manages)
        return 0;
    conc__original_mask(&h->mask);
    int rc = conc__quiet_thread(&h->manager, NULL, conc__manager_main, h);
    h->manages = rc == 0;
    return -rc;
}

CONC__PRIVATE void conc__station_unload(conc_job *j, conc__desk *d)
{
    conc__parcel *p = j->parcel;
    const char *data = (const char *)d + CONC__DESK_DATA;
    if (!p) {
        if (j->size)
            memcpy(j->arg, data, j->size);
        return;
    }
    p->returned = (ssize_t)d->result;
    if (p->returned > 0 && (size_t)p->returned > p->out_size)
        p->returned = -EMSGSIZE;
    else if (p->returned > 0)
        memcpy(p->out, data + conc__aligned(p->in_size), (size_t)p->returned);
}

/* The worker has replied, and what it wrote is to be copied. */
CONC__PRIVATE void conc__station_replied(conc__hub *h, conc__station *s)
{
    conc_job *j = s->job;
    conc__desk *d = conc__desk_of(&s->desk);
    int result = 0;
    if (j->parcel && j->parcel->mapping) {
        if (conc__runner_goes_on(h, j, d, &result) && !s->cancelled) {
            conc__station_begin(h, s, j);
            return;
        }
        conc__range_drop(j->parcel, -ECANCELED);
    } else {
        bool large = conc__job_is_large(j);
        s->state = CONC__LOADING;
        if (large)
            pthread_mutex_unlock(&h->crew->mutex);
        conc__station_unload(j, d);
        if (large)
            conc__lock_briefly(&h->crew->mutex);
        result =
            j->parcel ? j->parcel->returned < 0 ? (int)j->parcel->returned : 0 : (int)d->result;
    }
    char words[96];
    conc__copy(words, sizeof words, result < 0 && d->words == result ? d->text : "");
    conc__station_free(h, s);
    conc__job_over(h->crew, j, result, words);
}

/* A worker's init has returned. */
CONC__PRIVATE void conc__station_ready(conc__hub *h, conc__station *s)
{
    const conc__desk *d = conc__desk_of(&s->desk);
    h->coming--;
    h->failures = 0;
    s->state = CONC__FREE;
    s->since = conc__clock();
    if (d->result < 0 && !h->broken) {
        h->broken = -ENOTRECOVERABLE;
        snprintf(h->why, sizeof h->why, "init failed: %.80s",
                 d->words ? d->text : conc_strerror((int)d->result));
    }
}

/* Takes the replies. */
CONC__PRIVATE void conc__hub_collect(conc__hub *h, bool manager)
{
    for (int i = 0; i < h->crew->most; i++) {
        conc__station *s = &h->stations[i];
        if ((s->state != CONC__BUSY && s->state != CONC__COMING) ||
            __atomic_load_n(&conc__desk_of(&s->desk)->state, __ATOMIC_ACQUIRE) != CONC__DESK_REPLY)
            continue;
        if (s->state == CONC__COMING)
            conc__station_ready(h, s);
        else if (!manager && conc__job_is_large(s->job))
            conc__hub_ring(h);
        else
            conc__station_replied(h, s);
    }
    conc__hub_send(h, manager);
}

/* Kills the worker; its job is over for the caller if this returns true. */
CONC__PRIVATE bool conc__station_kill(conc__station *s)
{
    if (s->state == CONC__LOADING)
        s->cancelled = true; /* whoever copies ends it */
    if (s->state != CONC__BUSY ||
        __atomic_load_n(&conc__desk_of(&s->desk)->state, __ATOMIC_ACQUIRE) == CONC__DESK_REPLY)
        return false;
    kill(s->pid, SIGKILL);
    s->state = CONC__LEAVING;
    return true;
}

/* The job is cancelled (NULL: all of them): true when it is over with that. */
CONC__PRIVATE bool conc__hub_cancel(conc__crew *c, conc_job *j)
{
    conc__hub *h = c->hub;
    if (j && conc__crew_take_back(c, j)) {
        conc__range_drop(j->parcel, -ECANCELED);
        return true;
    }
    for (int i = 0; i < c->most; i++) {
        conc__station *s = &h->stations[i];
        conc_job *its = s->job;
        if (!its || (j && its != j) || !conc__station_kill(s))
            continue;
        if (its->parcel && its->parcel->mapping) {
            int error = 0;
            conc__desk *d = conc__desk_of(&s->desk);
            conc__range_done(its->parcel, d, (size_t)__atomic_load_n(&d->done, __ATOMIC_ACQUIRE),
                             &error);
            conc__range_drop(its->parcel, -ECANCELED);
        }
        s->job = NULL;
        c->started--;
        if (j)
            return true;
        conc__crew_end_job(c, its, -ECANCELED, NULL, true);
    }
    return false;
}

/* ---- >>manager ------------------------------------------------------------------------------ */

/* This program's path; where it was replaced, the way to what runs. */
CONC__PRIVATE void conc__own_path(char *path, size_t size)
{
    static const char deleted[] = " (deleted)";
    ssize_t n = readlink("/proc/self/exe", path, size - 1);
    path[n > 0 ? n : 0] = 0;
    size_t end = strlen(path), tail = sizeof deleted - 1;
    if (n <= 0 || (end > tail && strcmp(path + end - tail, deleted) == 0))
        conc__copy(path, size, "/proc/self/exe");
}

CONC__PRIVATE int conc__spawn_worker(const conc__hub *h, const char *path, char **env, int socket,
                                     int *pid)
{
    char *argv[] = {(char *)(uintptr_t)path, (char *)(uintptr_t) "(conc worker)", NULL};
    conc__spawning how;
    pid_t child = 0;
    int rc = conc__spawning_open(&how, &h->mask);
    if (rc)
        return -rc;
    rc = posix_spawn_file_actions_adddup2(&how.actions, socket, 3);
    if (rc == 0)
        rc = posix_spawn_file_actions_addopen(&how.actions, 0, "/dev/null", O_RDONLY, 0);
    if (rc == 0)
        rc = conc__close_others(&how.actions, 4);
    if (rc == 0)
        rc = posix_spawn(&child, path, &how.actions, &how.attributes, argv, env);
    conc__spawning_close(&how);
    *pid = child;
    return -rc;
}

/* The environment with a worker's mark, for conc_free. */
CONC__PRIVATE char **conc__worker_environment(char *mark)
{
    size_t n = 0;
    while (environ && environ[n])
        n++;
    char **env = conc__alloc((n + 2) * sizeof *env);
    if (env) {
        if (n)
            memcpy(env + 1, environ, n * sizeof *env);
        env[0] = mark;
        env[n + 1] = NULL;
    }
    return env;
}

CONC__PRIVATE int conc__hand_all(const conc__hub *h, const conc__station *s, int socket)
{
    int rc = conc__hand(socket, &(conc__handing){.what = CONC__HAND_DESK, .size = s->desk.size},
                        s->desk.fd);
    if (rc == 0)
        rc = conc__hand(socket, &(conc__handing){.what = CONC__HAND_BOARD, .size = h->board.size},
                        h->board.fd);
    if (rc == 0)
        rc = conc__hand(socket, &(conc__handing){.what = CONC__HAND_BELL}, h->bell);
    pthread_mutex_lock(&conc__segments_mutex);
    for (conc__segment *m = conc__segments; m && rc == 0; m = m->next)
        rc = conc__hand(socket, &(conc__handing){CONC__HAND_SHARED, 0, m->address, m->size}, m->fd);
    pthread_mutex_unlock(&conc__segments_mutex);
    return rc;
}

/* Starts this program anew as a worker. */
CONC__PRIVATE int conc__worker_exec(const conc__hub *h, conc__station *s)
{
    char path[4096], mark[64];
    int ends[2], rc = conc__sockets(ends);
    if (rc)
        return rc;
    conc__own_path(path, sizeof path);
    conc__worker_mark(mark, sizeof mark);
    char **env = conc__worker_environment(mark);
    rc = env ? conc__spawn_worker(h, path, env, ends[1], &s->pid) : -ENOMEM;
    conc_free(env);
    close(ends[1]);
    /* it must not serve with what it got */
    if (rc == 0 && (rc = conc__hand_all(h, s, ends[0])) != 0) {
        kill(s->pid, SIGKILL);
        while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    conc__hang_up(ends[0]);
    return rc;
}

/* Has the zygote end, if it has not. */
CONC__PRIVATE void conc__zygote_leave(conc__hub *h)
{
    if (h->zygote >= 0)
        conc__hang_up(h->zygote);
    h->zygote = -1;
}

/* The zygote's answer to a question; if it cannot be had, the zygote is given up. */
CONC__PRIVATE int conc__zygote_asked(conc__hub *h, conc__handing *told, int fd)
{
    int none, rc = h->zygote < 0 ? -ECHILD : conc__hand(h->zygote, told, fd);
    bool gone = rc == -EPIPE || rc == -ECONNRESET;
    if (gone || (rc == 0 && conc__handed(h->zygote, told, &none) != 1)) {
        conc__zygote_leave(h);
        rc = -ECHILD;
    }
    return rc;
}

/* Has the zygote fork a worker. */
CONC__PRIVATE int conc__worker_fork(conc__hub *h, conc__station *s)
{
    conc__handing told = {.what = CONC__HAND_FORK, .size = s->desk.size};
    int rc = conc__zygote_asked(h, &told, s->desk.fd);
    rc = rc ? rc : told.number;
    s->pid = rc > 0 ? rc : 0;
    return rc < 0 ? rc : 0;
}

/* Starts a worker, outside the mutex: the station is marked. call: the system call that failed,
 * NULL: it was none. */
CONC__PRIVATE int conc__worker_start(conc__hub *h, conc__station *s, const char **call)
{
    *call = "memfd_create";
    int rc = s->desk.address ? 0 : conc__segment_open(&s->desk, CONC__DESK_SIZE, false);
    if (rc)
        return rc;
    conc__desk *d = conc__desk_of(&s->desk);
    d->asleep = 0;
    d->parent = getpid();
    d->memory_limit = h->memory_limit;
    d->size = s->desk.size;
    *call = NULL;
    rc = conc__desk_set(d, (uintptr_t)h->init, CONC__ASK_INIT);
    if (rc)
        return rc;
    __atomic_store_n(&d->state, CONC__DESK_REQUEST, __ATOMIC_SEQ_CST);
    rc = h->forks ? conc__worker_fork(h, s) : conc__worker_exec(h, s);
    if (rc)
        return rc;
    *call = "pidfd_open";
    s->pidfd = conc__pidfd(s->pid);
    if (s->pidfd >= 0)
        return 0;
    rc = -errno;
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    return rc;
}

/* No worker comes up: nobody is to wait for one. */
CONC__PRIVATE void conc__hub_fails(conc__hub *h, int rc, const char *why)
{
    for (int i = 0; i < h->crew->most; i++)
        if (h->stations[i].state != CONC__EMPTY)
            return; /* the others go on */
    if (h->forks && h->zygote < 0) {
        rc = h->broken = -ENOTRECOVERABLE;
        why = "the process that forks the workers has ended";
        conc__copy(h->why, sizeof h->why, why);
    }
    while (h->crew->queued)
        conc__job_undone(h->crew, conc__backlog_pop(h->crew), rc, why);
}

/* Starts the workers that are needed. */
CONC__PRIVATE void conc__hub_staff(conc__hub *h)
{
    conc__crew *c = h->crew;
    for (int i = 0; i < c->most && !h->broken && h->failures < CONC__FAILURES &&
                    h->coming < (int)c->queued && !conc__station_in(h, CONC__FREE);
         i++) {
        conc__station *s = &h->stations[i];
        if (s->state != CONC__EMPTY)
            continue;
        s->state = CONC__LEAVING; /* not to be looked at */
        pthread_mutex_unlock(&c->mutex);
        const char *call;
        int rc = conc__worker_start(h, s, &call);
        conc__lock_briefly(&c->mutex);
        s->state = rc ? CONC__EMPTY : CONC__COMING;
        h->coming += rc == 0;
        if (rc) {
            char why[96];
            if (call)
                snprintf(why, sizeof why, "no worker can be started: %s: %.40s", call,
                         strerror(-rc));
            else
                snprintf(why, sizeof why, "no worker can be started: %.60s", conc_strerror(rc));
            conc__hub_fails(h, rc == -EINVAL ? -EINVAL : -EAGAIN, why);
            break;
        }
    }
}

/* How the worker ended: its status as of waitpid, -1 if nobody knows. */
CONC__PRIVATE int conc__worker_reap(conc__hub *h, const conc__station *s)
{
    int status = -1;
    conc__handing told = {.what = CONC__HAND_REAP, .number = s->pid};
    if (!h->forks) {
        while (waitpid(s->pid, &status, 0) < 0 && errno == EINTR)
            ;
        return status;
    }
    return conc__zygote_asked(h, &told, -1) == 0 ? told.number : status;
}

CONC__PRIVATE void conc__death_in_words(int status, char *words, size_t size)
{
    if (status == -1)
        snprintf(words, size, "the worker died");
    else if (WIFSIGNALED(status))
        snprintf(words, size, "the worker died of signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(words, size, "the worker exited with status %d", WEXITSTATUS(status));
}

/* The worker of a runner died: the element it was at is lost, those behind it are for the next
 * worker. */
CONC__PRIVATE void conc__runner_bereaved(conc__hub *h, conc_job *j, conc__desk *d,
                                         const char *words)
{
    conc__parcel *p = j->parcel;
    conc__mapping *m = p->mapping;
    int error = 0;
    conc__range_done(p, d, (size_t)d->done, &error);
    size_t left = p->left;
    if (left) {
        p->left = 1;
        conc__range_drop(p, -EOWNERDEAD);
        m->dropped--; /* it was called */
        p->left = left - 1;
        if (!m->keeps_going && !m->error)
            m->error = error = -EOWNERDEAD;
    }
    if (error)
        conc__mapping_stop(h, m);
    bool stops = conc__map_stops(m) || h->crew->ask_all;
    if (stops || !conc__backlog_has_room(h->crew)) {
        conc__range_drop(p, stops ? -ECANCELED : -EOWNERDEAD);
        conc__job_over(h->crew, j, error, error == -EOWNERDEAD ? words : "");
    } else {
        conc__backlog_push(h->crew, j);
    }
}

/* So many workers have not come up that no more are started; without any the pool is broken. */
CONC__PRIVATE void conc__hub_judge(conc__hub *h, const char *words)
{
    if (h->failures < CONC__FAILURES || h->broken || conc__station_in(h, CONC__FREE) ||
        conc__station_in(h, CONC__BUSY) || conc__station_in(h, CONC__LOADING) ||
        conc__station_in(h, CONC__COMING))
        return;
    h->broken = -ENOTRECOVERABLE;
    snprintf(h->why, sizeof h->why, "workers do not come up: %.60s", words);
}

/* The worker has ended. */
CONC__PRIVATE void conc__station_bury(conc__hub *h, conc__station *s)
{
    char words[96];
    conc_job *j = s->job;
    conc__desk *d = conc__desk_of(&s->desk);
    bool came = s->state != CONC__COMING;
    int status = conc__worker_reap(h, s);
    close(s->pidfd);
    s->pidfd = -1;
    s->job = NULL;
    s->cancelled = false;
    s->state = CONC__EMPTY;
    conc__death_in_words(status, words, sizeof words);
    if (!came) {
        bool chance = status == -1 || (WIFEXITED(status) ? WEXITSTATUS(status) == CONC__MOVED
                                                         : WTERMSIG(status) == SIGKILL);
        h->coming--;
        h->failures += chance ? 1 : 10;
    }
    conc__hub_judge(h, words);
    if (!j)
        return;
    h->crew->started--;
    if (!__atomic_load_n(&d->begun, __ATOMIC_RELAXED) && conc__backlog_has_room(h->crew))
        conc__backlog_push_back(h->crew, j);
    else if (j->parcel && j->parcel->mapping)
        conc__runner_bereaved(h, j, d, words);
    else
        conc__job_over(h->crew, j, -EOWNERDEAD, words);
    conc__crew_settled(h->crew);
}

/* Desks that large jobs have left large are given back when they were not used for a while. */
CONC__PRIVATE int conc__hub_trim(conc__hub *h)
{
    enum { UNUSED = 1000 }; /* ms */
    int next = -1;
    for (int i = 0; i < h->crew->most; i++) {
        conc__station *s = &h->stations[i];
        if (s->state != CONC__FREE || s->desk.size <= CONC__DESK_SIZE + (1 << 20))
            continue;
        if ((conc__clock() - s->since) / 1000000 >= UNUSED)
            conc__segment_resize(&s->desk, CONC__DESK_SIZE, false);
        else
            next = UNUSED;
    }
    return next;
}

/* Waits until something happens: a worker died, or somebody rang. */
CONC__PRIVATE void conc__hub_wait(conc__hub *h, int limit)
{
    conc__crew *c = h->crew;
    nfds_t n = 1;
    uint64_t count;
    h->polls[0] = (struct pollfd){h->bell, POLLIN, 0};
    for (int i = 0; i < c->most; i++)
        if (h->stations[i].pidfd >= 0)
            h->polls[n++] = (struct pollfd){h->stations[i].pidfd, POLLIN, 0};
    pthread_mutex_unlock(&c->mutex);
    poll(h->polls, n, limit);
    if (h->polls[0].revents && read(h->bell, &count, sizeof count) < 0) {
        /* somebody else has read it */
    }
    conc__lock_briefly(&c->mutex);
    h->rung = false;
    conc__hub_collect(h, true); /* who has replied has replied, though it died then */
    for (nfds_t k = 1; k < n; k++)
        for (int i = 0; i < c->most && h->polls[k].revents; i++)
            if (h->stations[i].pidfd == h->polls[k].fd)
                conc__station_bury(h, &h->stations[i]);
}

/* Has all workers end, and kills those that do not within a second. */
CONC__PRIVATE void conc__hub_dismiss(conc__hub *h)
{
    int64_t start = conc__clock();
    for (;;) {
        bool any = false, late = conc__clock() - start > 1000000000;
        for (int i = 0; i < h->crew->most; i++) {
            conc__station *s = &h->stations[i];
            if (s->pidfd < 0)
                continue;
            any = true;
            if (late || s->state == CONC__COMING)
                kill(s->pid, SIGKILL);
            if (s->state == CONC__FREE) {
                conc__desk *d = conc__desk_of(&s->desk);
                s->state = CONC__LEAVING;
                __atomic_store_n(&d->state, CONC__DESK_QUIT, __ATOMIC_SEQ_CST);
                conc__futex_wake(&d->state);
            }
        }
        if (!any)
            return;
        conc__hub_wait(h, 100);
    }
}

CONC__PRIVATE void *conc__manager_main(void *arg)
{
    conc__hub *h = arg;
    conc__crew *c = h->crew;
    prctl(PR_SET_NAME, "conc procs");
    conc__lock_briefly(&c->mutex);
    while (!h->ending) {
        conc__hub_send(h, true);
        conc__hub_staff(h);
        conc__hub_collect(h, true); /* a reply may have come while nobody looked at its station */
        if (!h->ending)
            conc__hub_wait(h, conc__hub_trim(h));
    }
    conc__hub_dismiss(h);
    conc__waiter_wake(h->closer, 0);
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

/* ---- >>zygote ------------------------------------------------------------------------------- */

/* With .fork the workers are forked by a process that was forked at open and has one thread: the
 * parent may have many by then. It does what it is told, and ends with the parent. */

CONC__PRIVATE int conc__zygote_forks(const conc__hub *h, const conc__handing *told, int fd)
{
    pid_t child = fork();
    if (child)
        return child < 0 ? -errno : child;
    conc__worker w = {.bell = h->bell, .board = h->board.address};
    close(h->zygote);
    w.desk = (conc__segment){
        .fd = fd, .size = told->size, .address = conc__segment_map(fd, NULL, told->size, false)};
    if (w.desk.address)
        conc__worker_serves(&w);
    _exit(1);
}

/* What the program does on signals, and its input, are not for its workers. */
CONC__PRIVATE void conc__zygote_settles(void)
{
    struct sigaction action;
    for (int number = 1; number < 65; number++)
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_IGN &&
            action.sa_handler != SIG_DFL)
            signal(number, SIG_DFL);
    signal(SIGINT, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    int null = open("/dev/null", O_RDONLY);
    if (null > 0) {
        dup2(null, 0);
        close(null);
    }
}

CONC__COLD void conc__zygote_main(const conc__hub *h, int parent)
{
    struct pollfd polls[2] = {{h->zygote, POLLIN, 0}, {conc__pidfd(parent), POLLIN, 0}};
    prctl(PR_SET_NAME, "conc zygote");
    conc__zygote_settles();
    for (;;) {
        conc__handing h2;
        int fd, status = -1;
        if ((poll(polls, 2, -1) < 0 && errno != EINTR) || polls[1].revents)
            _exit(0);
        if (!polls[0].revents)
            continue;
        if (conc__handed(h->zygote, &h2, &fd) != 1)
            _exit(0);
        if (h2.what == CONC__HAND_FORK)
            h2.number = conc__zygote_forks(h, &h2, fd);
        else
            h2.number = waitpid(h2.number, &status, 0) < 0 ? -1 : status;
        if (fd >= 0)
            close(fd);
        if (conc__hand(h->zygote, &h2, -1) == 0)
            continue;
        if (h2.what == CONC__HAND_FORK && h2.number > 0) /* nobody learns its number */
            kill(h2.number, SIGKILL);
        _exit(1); /* the parent hears that */
    }
}

/* Has the process another thread? */
CONC__PRIVATE bool conc__has_threads(void)
{
    struct stat st;
    /* ".", "..", this one, and watchdogs */
    unsigned own = 3u + (unsigned)atomic_load(&conc__debug_runs);
    return stat("/proc/self/task", &st) == 0 && st.st_nlink > own;
}

CONC__PRIVATE int conc__zygote_start(conc__hub *h)
{
    int ends[2], parent = getpid(), rc = conc__has_threads() ? -EBUSY : conc__sockets(ends);
    if (rc)
        return rc;
    fflush(NULL); /* else each worker would write it too */
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t mask = h->mask;
        close(ends[0]);
        h->zygote = ends[1];
        pthread_sigmask(SIG_SETMASK, &mask, NULL);
        conc__zygote_main(h, parent);
    }
    rc = pid < 0 ? -errno : 0;
    close(ends[1]);
    h->zygote = ends[0];
    h->zygote_pid = pid > 0 ? (int)pid : 0;
    if (rc) {
        close(ends[0]);
        h->zygote = -1;
    }
    return rc;
}

/* ---- >>procs -------------------------------------------------------------------------------- */

/* What a loop with tasks that wait for a process looks at before it falls asleep. */
typedef struct conc__view {
    conc__lookout lookout;
    conc__crew *crew;
    unsigned seen; /* of the board's replies */
    int users;
} conc__view;

CONC__PRIVATE bool conc__view_look(conc__lookout *o)
{
    conc__view *v = (conc__view *)(void *)o;
    unsigned replies = __atomic_load_n(&conc__board_of(v->crew->hub)->replies, __ATOMIC_SEQ_CST);
    if (replies == v->seen)
        return false;
    v->seen = replies;
    conc__lock_briefly(&v->crew->mutex);
    if (!v->crew->hub->ending)
        conc__hub_collect(v->crew->hub, false);
    pthread_mutex_unlock(&v->crew->mutex);
    return true;
}

CONC__PRIVATE void conc__view_watch(conc__lookout *o, bool on)
{
    conc__view *v = (conc__view *)(void *)o;
    __atomic_fetch_add(&conc__board_of(v->crew->hub)->lookers, on ? 1u : -1u, __ATOMIC_SEQ_CST);
}

CONC__PRIVATE conc__view *conc__view_open(conc_loop *l, conc__crew *c)
{
    conc__view *v;
    for (conc__lookout *o = l->lookouts; o; o = o->next) {
        v = (conc__view *)(void *)o;
        if (v->crew == c) {
            v->users++;
            return v;
        }
    }
    v = conc__alloc(sizeof *v);
    if (v) { /* else the manager takes the replies */
        *v = (conc__view){{l->lookouts, conc__view_look, conc__view_watch}, c, 0, 1};
        v->seen = __atomic_load_n(&conc__board_of(c->hub)->replies, __ATOMIC_SEQ_CST) - 1;
        c->references++;
        l->lookouts = &v->lookout;
    }
    return v;
}

CONC__PRIVATE void conc__view_close(conc_loop *l, conc__view *v)
{
    if (!v || --v->users)
        return;
    conc__lookout **at = &l->lookouts;
    while (*at != &v->lookout)
        at = &(*at)->next;
    *at = v->lookout.next;
    conc__lock_briefly(&v->crew->mutex);
    conc__crew_release(v->crew);
    conc_free(v);
}

/* A thread that waits takes the replies itself for a little while. */
CONC__PRIVATE void conc__hub_look_for(conc__crew *c, const bool *over)
{
    conc__view v = {.crew = c};
    int64_t end = conc__clock() + CONC__PATIENCE;
    if (!conc__several_processors())
        return;
    conc__view_watch(&v.lookout, true);
    while (!__atomic_load_n(over, __ATOMIC_RELAXED) && conc__clock() < end) {
        for (int i = 0; i < 32; i++)
            conc__relax();
        conc__view_look(&v.lookout);
    }
    conc__view_watch(&v.lookout, false);
    conc__view_look(&v.lookout);
}

CONC__PRIVATE void conc__hub_free(conc__hub *h)
{
    for (int i = 0; h && i < h->crew->most; i++)
        conc__segment_close(&h->stations[i].desk);
    if (h) {
        conc__segment_close(&h->board);
        if (h->bell >= 0)
            close(h->bell);
        if (h->zygote >= 0)
            close(h->zygote);
        conc_free(h->polls);
    }
    conc_free(h);
}

CONC__PRIVATE conc__hub *conc__hub_new(conc__crew *c, const conc_procs *p)
{
    size_t most = (size_t)c->most;
    conc__hub *h = conc__alloc(sizeof *h + most * sizeof h->stations[0]);
    if (!h)
        return NULL;
    memset(h, 0, sizeof *h + most * sizeof h->stations[0]);
    h->crew = c;
    h->init = p->init;
    h->memory_limit = p->memory_limit;
    h->forks = p->fork;
    h->bell = h->zygote = h->board.fd = -1;
    for (size_t i = 0; i < most; i++)
        h->stations[i].desk.fd = h->stations[i].pidfd = -1;
    h->polls = conc__alloc((most + 1) * sizeof *h->polls);
    if (h->polls)
        return h;
    conc_free(h);
    return NULL;
}

typedef struct conc__opening_hub {
    conc__hub *hub;
    int rc;
} conc__opening_hub;

CONC__PRIVATE void conc__hub_open_zygote(conc_loop *l, void *arg)
{
    conc__opening_hub *o = arg;
    (void)l;
    o->rc = conc__zygote_start(o->hub);
}

CONC__PRIVATE int conc__hub_open(conc__hub *h)
{
    int rc = conc__segment_open(&h->board, conc__page(), false);
    if (rc)
        return rc;
    h->bell = conc__not_standard(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (h->bell < 0)
        return conc__call_failed("eventfd2");
    conc__original_mask(&h->mask);
    conc__opening_hub o = {h, 0};
    if (h->forks && conc__here) /* on the thread's own stack: it becomes that of the workers */
        conc__on_loop(conc__here, conc__hub_open_zygote, &o);
    else if (h->forks)
        conc__hub_open_zygote(NULL, &o);
    return o.rc;
}

CONC_API int conc_procs_open(conc_procs *p)
{
    if (!p || p->workers < 0 || p->workers > 1 << 12)
        return conc__own_error(-EINVAL);
    if (p->crew && p->crew->forks == conc__forks)
        return conc__own_error(-EBUSY);
    if (!p->fork && getauxval(AT_SECURE))
        return -EPERM;
    conc__crews_need();
    int saved = errno;
    conc__crew *c = conc__frames_there ? conc__crew_new(p->workers, 0) : NULL;
    conc__hub *h = c ? conc__hub_new(c, p) : NULL;
    int rc = h ? conc__hub_open(h) : -ENOMEM;
    if (c)
        c->hub = h;
    if (rc && c) {
        pthread_mutex_lock(&conc__crews);
        conc__crew_free(c);
        pthread_mutex_unlock(&conc__crews);
    }
    if (rc == 0)
        rc = conc__pool_opens(&p->crew, &p->users, c);
    errno = saved;
    return rc;
}

/* The jobs are done: the workers end, then the manager, then the zygote. */
CONC__PRIVATE void conc__procs_end(conc__crew *c)
{
    conc__hub *h = c->hub;
    if (h->manages)
        pthread_join(h->manager, NULL);
    conc__zygote_leave(h);
    while (h->zygote_pid && waitpid(h->zygote_pid, NULL, 0) < 0 && errno == EINTR)
        ;
    for (int i = 0; i < c->most; i++)
        conc__segment_close(&h->stations[i].desk);
    conc__lock_briefly(&c->mutex);
    conc__crew_release(c);
}

/* A cancel changes nothing: the workers are to end at once already. */
static const conc__wait_kind conc__wants_no_workers = {
    .what = "closes a pool, and waits for its workers' end"};

/* Has the workers end, and waits for that. */
CONC__PRIVATE void conc__hub_close(conc_loop *l, conc__crew *c)
{
    conc__lock_briefly(&c->mutex);
    c->hub->ending = true;
    if (!c->hub->manages) {
        pthread_mutex_unlock(&c->mutex);
        return;
    }
    conc__hub_ring(c->hub);
    conc__waiter w = {0};
    /* not the crew's: whatever settles there, the workers have not ended */
    conc__line_up(&c->hub->closer, &w);
    conc__wait_outside(l, &w, &conc__wants_no_workers, c, &c->mutex, NULL);
}

CONC_API CONC__CALLED int conc_procs_close(conc_procs *p)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__pool_close(&p->crew, &p->users, conc__procs_end, __func__);
}

CONC_API void conc__auto_conc_procs(conc_procs *p) { conc_procs_close(p); }

#else /* not Linux: there are no pools of processes */

typedef struct conc__view conc__view;

CONC__PRIVATE void conc__worker_check(void (*begins)(int, char **, char **), int argc, char **argv,
                                      char **env)
{
    (void)begins, (void)argc, (void)argv, (void)env;
}
CONC__PRIVATE int conc__hub_begin(conc__hub *h) { return h ? -ENOTSUP : 0; }
CONC__PRIVATE void conc__hub_rouse(conc__crew *c) { (void)c; }
CONC__PRIVATE void conc__hub_free(conc__hub *h) { (void)h; }
CONC__PRIVATE bool conc__hub_cancel(conc__crew *c, conc_job *j) { return c && !j; }
CONC__PRIVATE void conc__hub_close(conc_loop *l, conc__crew *c) { (void)l, (void)c; }
CONC__PRIVATE void conc__hub_look_for(conc__crew *c, const bool *over) { (void)c, (void)over; }
CONC__PRIVATE conc__view *conc__view_open(conc_loop *l, conc__crew *c)
{
    return l && c ? NULL : NULL;
}
CONC__PRIVATE void conc__view_close(conc_loop *l, conc__view *v) { (void)l, (void)v; }

CONC_API void *conc_shared_alloc(size_t size) { return size ? NULL : NULL; }
CONC_API void conc_shared_free(void *p) { (void)p; }
CONC_API int conc_procs_open(conc_procs *p) { return p ? -ENOTSUP : -EINVAL; }
CONC_API int conc_procs_close(conc_procs *p) { return p ? 0 : -EINVAL; }
CONC_API void conc__auto_conc_procs(conc_procs *p) { conc_procs_close(p); }

#endif

CONC_API CONC__CALLED int conc_procs_run(conc_procs *p, conc_fn *fn, void *arg, size_t size)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__crew_run(&p->crew, &p->users, fn, arg, size, NULL, __func__);
}

CONC_API CONC__CALLED int conc_procs_submit(conc_procs *p, conc_job *j, conc_fn *fn, void *arg,
                                            size_t size)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__submit(&p->crew, &p->users, j, fn, arg, size, NULL, __func__);
}

/* The job of a conc_procs_call is not called itself. */
CONC__PRIVATE int conc__call_job(void *arg)
{
    (void)arg;
    return 0;
}

CONC_API CONC__CALLED ssize_t conc_procs_call(conc_procs *p, conc_procs_fn *fn, const void *in,
                                              size_t in_size, void *out, size_t out_size)
{
    conc__parcel parcel = {
        .call = fn, .in = in, .in_size = in_size, .out = out, .out_size = out_size};
    if (!p || !fn || (in_size && !in) || (out_size && !out))
        return conc__own_error(-EINVAL);
    int rc = conc__crew_run(&p->crew, &p->users, conc__call_job, NULL, 0, &parcel, __func__);
    return rc < 0 ? rc : parcel.returned;
}

CONC_API CONC__CALLED int conc_procs_map(conc_procs *p, conc_fn *fn, void *args, size_t count,
                                         size_t size)
{
    conc__mapping m = {.fn = fn, .args = args, .count = count, .size = size};
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__crew_map(&p->crew, &p->users, &m, __func__);
}

CONC_API CONC__CALLED int conc_procs_map_all(conc_procs *p, conc_fn *fn, void *args, size_t count,
                                             size_t size, int *results)
{
    conc__mapping m = {fn, args, count, size, results, .keeps_going = true};
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__crew_map(&p->crew, &p->users, &m, __func__);
}

/* ---- >>beginning ---------------------------------------------------------------------------- */

/* The C library hands a constructor what main gets. */
__attribute__((constructor)) static void conc__pool_begins(int argc, char **argv, char **env)
{
    conc__extended.job_locals = conc__job_locals;
    conc__extended.job_block = conc__job_block;
    conc__extended.job_fail = conc__job_fail;
    conc__extended.job_words = conc__job_words;
    conc__extended.resolve = conc__resolve_name;
    conc__extended.jobs_queued = conc__jobs_queued;
    conc__extended.job_in_use = conc__handle_is_at_work;
    conc__worker_check(conc__pool_begins, argc, argv, env);
}

#endif /* CONC_IMPLEMENTATION */

/* ---- >>licence ------------------------------------------------------------------------------- *
 *
 * MIT License
 *
 * Copyright (c) 2026 the conc authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software
 * and associated documentation files (the "Software"), to deal in the Software without
 * restriction, including without limitation the rights to use, copy, modify, merge, publish,
 * distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
 * Software is furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or
 * substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING
 * BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
 * NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
 * DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 */
