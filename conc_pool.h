/* conc_pool.h - v0.1.0 - threads, processes, channels, files, names and child programs for
 * conc.h - MIT licence
 *
 * The counterparts of asyncio.to_thread, ThreadPoolExecutor, ProcessPoolExecutor and
 * create_subprocess_exec: the loop keeps running while other threads or processes block or compute.
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
 * Include this header instead of conc.h, which it includes itself. CONC_IMPLEMENTATION and
 * CONC_STATIC work as in conc.h. The file that defines CONC_IMPLEMENTATION must include this
 * header too, or the linker will not find its functions. If a program uses process pools, this
 * module must be in the executable or in a library it is linked with, not in one loaded later.
 *
 * Conventions, in addition to conc.h's
 *   Jobs      are plain functions that run outside the loop, in parallel with it and with each
 *             other. A job is not a task: calls that need a task return -EPERM, and conc_self()
 *             returns NULL. A job may call conc_run and everything in this module. In a job,
 *             conc_local_get returns the submitting task's values, conc_fail's text reaches the
 *             caller waiting for the job, and conc_block blocks the job's thread.
 *   Callers   may be tasks, which wait while the loop keeps running, or jobs and threads without a
 *             run, which block. In a posted function, a call that would wait returns -EPERM.
 *   Cancel    A queued job is removed from the queue. A running job is waited for even if its
 *             caller is cancelled, because its argument may be on the caller's stack; it is asked
 *             to stop. From then on, conc_job_cancelled() is true in the job. Its waits for
 *             channels, children, conc_block and room in a queue return -ECANCELED. A wait for
 *             another job passes the request on to that job and continues. The main_fn of a
 *             conc_run inside the job is cancelled. conc_shield hides the request from cleanup
 *             code. A job running in a process is killed.
 *   Clock     Virtual time stands still while jobs run, including jobs submitted by jobs. In a job,
 *             conc_block acts as a timer. A job waiting in a call to this module does not count as
 *             running, nor does one in a conc_run whose tasks are waiting only for channels. While
 *             a task is waiting for a running child program to end, for one of its pipes, or for
 *             the other end of a FIFO, the clock skips d seconds only after d real seconds: a time
 *             limit on a hung program still expires, but other programs take no virtual time.
 *   Forks     In a forked child, inherited pools are dead: calls return -EPERM, and closing a pool
 *             only frees its memory. The child cannot reach the parent's child programs, which keep
 *             running. A channel keeps its items but none of the parent's waiters.
 *
 * Environment: CONC__WORKER marks a worker process that this program started. Do not set it
 * yourself.
 *
 * Contents: >>pool >>offload >>procs >>channel >>shared >>files >>names >>child, then the
 * implementation, which lists its sections at its start, and the licence. */
#ifndef CONC_POOL_H
#define CONC_POOL_H

#include "conc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- >>pool --------------------------------------------------------------------------------- */

/* A thread pool. Set the first three fields before conc_pool_open. */
typedef struct conc_pool {
    /* maximum number; 0: one per processor. Each thread starts when it is first needed */
    int threads;
    /* maximum number of queued jobs; 0: no limit. Submitting more than that waits, except from the
     * pool's own jobs */
    int queue_limit;
    const char *name; /* the threads' name in debuggers, up to 15 bytes; NULL: "conc" */
    /* private */
    struct conc__job_queue *queue;
    unsigned users;
} conc_pool;

/* A submitted function. The caller owns the storage, which need not be initialized but must not
 * move until the job has ended or been withdrawn. All fields are private. */
typedef struct conc_job {
    conc_fn *fn;
    void *arg;
    struct conc__job_queue *queue;
    struct conc__waiter *waiters;
    struct conc__locals *locals;
    conc_loop *clock;
    uintptr_t state;
    unsigned slot;
    int result;
    struct conc__payload *payload;
    size_t size;
    char text[96];
} conc_job;

/* Opens the pool; no thread starts yet. Jobs run under the caller's current signal mask, except
 * that fault signals (SIGSEGV...) are unblocked. Child programs started by jobs get the mask that
 * the caller had outside its run. A job must leave its thread as it found it: if it does not
 * restore a changed mask, the next job runs under that mask. Errors: -EINVAL (NULL, negative
 * fields), -EBUSY (open), -ENOMEM. From anywhere. */
CONC_API int conc_pool_open(conc_pool *p);

/* Refuses new jobs except those from the pool's own jobs, waits until all jobs have ended, stops
 * the threads, and returns 0. If the calling task is cancelled, queued jobs are withdrawn and
 * running ones are asked to stop; the call still waits for the latter. If several callers close the
 * pool, all of them wait. Closing a pool twice, or one that was never opened, does nothing. Errors:
 * -EDEADLK (in a job of this pool), -EPERM (in a posted function). */
CONC_API int conc_pool_close(conc_pool *p);
CONC_API void conc__auto_conc_pool(conc_pool *p);

/* Runs fn(arg) on a pool thread and returns its result. In a job of the same pool, calls fn
 * directly. Waits. Errors if fn cannot be called: -ECANCELED, -EINVAL (NULL, not open), -EPIPE
 * (closed), -EAGAIN (no thread can be started), -ENOMEM, -EPERM. */
CONC_API int conc_pool_run(conc_pool *p, conc_fn *fn, void *arg) CONC_NODISCARD;

/* Queues fn(arg) for a thread of the pool and returns 0. Jobs start in submission order. Waits only
 * for room under a queue_limit; in a job of the same pool, or in a run inside such a job, it never
 * waits, and the queue may exceed its limit. Errors if the job cannot be submitted: as above, and
 * -EBUSY (j is queued or running). */
CONC_API int conc_pool_submit(conc_pool *p, conc_job *j, conc_fn *fn, void *arg) CONC_NODISCARD;

/* Calls fn with the address of each of the `count` elements of `size` bytes at args, in array
 * order; each thread handles one at a time. If size is 0, every call gets the pointer args itself.
 * Returns when all calls have ended. After the first error no more calls start, running ones are
 * asked to stop, and the error is returned. Waits. Errors as for conc_pool_run. */
CONC_API int conc_pool_map(conc_pool *p, conc_fn *fn, void *args, size_t count,
                           size_t size) CONC_NODISCARD;

/* The same, but calls fn for all elements whatever the calls return. Returns 0, or an error of its
 * own (-ECANCELED, -EPIPE...), which is then also the result of each element for which fn was not
 * called. Stores the `count` results in `results` (NULL: not wanted). */
CONC_API int conc_pool_map_all(conc_pool *p, conc_fn *fn, void *args, size_t count, size_t size,
                               int *results);

/* Waits until the job has ended or been withdrawn. Returns 0, with the job's result in *result
 * (NULL: not wanted) and its error text in conc_last_error. Any number of callers may wait.
 * Cancellation does not cut the wait short: it withdraws a queued job (result -ECANCELED), asks a
 * running one to stop, or kills it if it runs in a process, unless another caller that is not
 * cancelled is waiting too. In a thread of the job's pool, runs the job itself if it is still
 * queued. Errors: -EINVAL (never submitted), -EPERM (submitted in a process from which this one was
 * forked). */
CONC_API int conc_job_wait(conc_job *j, int *result) CONC_NODISCARD;

/* Withdraws the job if it is queued, asks it to stop if it is running, or kills it if it runs in a
 * process. Returns 0, -EALREADY (it had ended) or -EINVAL (never submitted). From anywhere. Not a
 * checkpoint. */
CONC_API int conc_job_cancel(conc_job *j);

/* Has the job ended or been withdrawn? From anywhere. */
CONC_API bool conc_job_done(const conc_job *j);

/* In a job: has it been asked to stop, with no conc_shield hiding the request? Elsewhere, returns
 * false. */
CONC_API bool conc_job_cancelled(void);

/* ---- >>offload ------------------------------------------------------------------------------ */

/* Like conc_pool_run, but on a pool that all runs share (asyncio.to_thread). The pool exists from
 * its first use until the last run ends. It has four more threads than there are processors, but at
 * most 32. Reading files, resolving names and starting child programs use other threads, and do not
 * wait for these jobs. In jobs and threads without a run, calls fn(arg) directly. */
CONC_API int conc_offload(conc_fn *fn, void *arg);

/* The same for a function that may hang: if cancelled, the call immediately returns -ECANCELED, the
 * job continues alone, and its result is lost. The job owns arg: whatever the call returns,
 * free_arg(arg) (NULL: not wanted) is called once, after the job, or immediately if fn is not
 * called. Such jobs have their own pool, as large as conc_offload's. An abandoned job occupies its
 * thread until it ends, in later runs too; if all threads hang, the call waits until one is free or
 * its task is cancelled. Neither the end of the run nor that of the program waits for an abandoned
 * job, and a library that contains conc is not unloaded before the job ends. */
CONC_API int conc_offload_abandon(conc_fn *fn, void *arg, void (*free_arg)(void *));

/* ---- >>procs -------------------------------------------------------------------------------- */

/* A process pool, for code that may crash or must be killed. Linux. Set the first four fields
 * before conc_procs_open.
 *
 * Each worker executes this program anew, but once all constructors have run it serves jobs instead
 * of calling main. So a worker sees globals as they were at program start, inherits only standard
 * output and error, and has the opener's environment and signal mask. It does not have what main
 * parsed from the arguments or stored in globals: a job gets its input from its bytes or from init.
 * Functions are sent as module, build and offset. If the program loaded the module later, the
 * worker loads it too; if the module's file has been replaced, the job fails with -ENOEXEC.
 * Standard output is flushed after each job. SIGINT and SIGTERM, which a terminal or a service
 * manager sends to all processes, do not stop workers; stopping them is up to the program. When the
 * program ends, so do its workers, and the processes forked by their jobs, which hold copies of the
 * jobs' data. */
typedef struct conc_procs {
    /* maximum number (up to 4096); 0: one per processor. Each worker starts when it is first
     * needed */
    int workers;
    size_t memory_limit; /* data bytes per worker (RLIMIT_DATA); 0: no limit */
    int max_jobs;        /* replace a worker after this many jobs; 0: never */
    /* called first in each worker; a negative result breaks the pool; NULL: none */
    int (*init)(void);
    /* private */
    struct conc__job_queue *queue;
    unsigned users;
} conc_procs;

/* Opens the pool, inside or outside a run. Errors: -EINVAL (NULL, negative fields), -EBUSY (open),
 * those of memfd_create, mmap and eventfd, -ENOMEM, -ENOTSUP (not Linux), -EPERM (a set-user-ID
 * program). */
CONC_API int conc_procs_open(conc_procs *p);

/* Like conc_pool_close, but if the calling task is cancelled, running jobs are killed. All workers
 * have ended when it returns. */
CONC_API int conc_procs_close(conc_procs *p);
CONC_API void conc__auto_conc_procs(conc_procs *p);

/* Runs fn in a worker, on a copy of the `size` bytes at arg, and returns its result. The copy is
 * aligned like max_align_t, and is copied back after fn returns. size is not limited. A time limit
 * around the call includes the wait for a free worker; to limit the job alone, run at most as many
 * jobs at a time as there are workers, as with conc_map_limit. Waits. Errors, which leave the bytes
 * at arg unchanged: -EOWNERDEAD (the worker died in fn; conc_last_error says how), -ECANCELED (if a
 * worker was already running fn, it is killed), -EAGAIN (no worker can be started now),
 * -ENOTRECOVERABLE (workers fail to start, or init failed; conc_last_error says why; only closing
 * and reopening the pool helps), -EINVAL, -EPIPE (closed), -ENOMEM, -EPERM. A worker's death fails
 * only its own job; a job that finds no idle worker gets a new one. */
CONC_API int conc_procs_run(conc_procs *p, conc_fn *fn, void *arg, size_t size) CONC_NODISCARD;

/* The same, but does not wait for the job. The bytes at arg belong to the job until it has
 * ended. */
CONC_API int conc_procs_submit(conc_procs *p, conc_job *j, conc_fn *fn, void *arg,
                               size_t size) CONC_NODISCARD;

/* Like conc_pool_map and conc_pool_map_all, but runs each element as conc_procs_run does. A worker
 * gets several elements at a time, as an array, but if an element kills its worker, only that
 * element fails. If size is 0, each call gets NULL. */
CONC_API int conc_procs_map(conc_procs *p, conc_fn *fn, void *args, size_t count,
                            size_t size) CONC_NODISCARD;
CONC_API int conc_procs_map_all(conc_procs *p, conc_fn *fn, void *args, size_t count, size_t size,
                                int *results);

/* A function that reads from `in` and writes to `out`. Returns the number of bytes written, or a
 * negative error. */
typedef ssize_t conc_procs_fn(const void *in, size_t in_size, void *out, size_t out_size);

/* Runs fn in a worker, on a copy of the `in_size` bytes at `in`, and returns fn's result, with that
 * many bytes in `out`, or -EMSGSIZE if fn returned more than out_size. Otherwise like
 * conc_procs_run. */
CONC_API ssize_t conc_procs_call(conc_procs *p, conc_procs_fn *fn, const void *in, size_t in_size,
                                 void *out, size_t out_size) CONC_NODISCARD;

/* ---- >>channel ------------------------------------------------------------------------------ */

/* A bounded queue between tasks of any loops, jobs and threads:
 *
 *     static conc_channel c = CONC_CHANNEL(int, 10);
 *
 * Senders and receivers are each served in order of arrival. */
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

/* Sends a copy of the item. Waits while the channel is full. Errors (nothing was sent): -EPIPE
 * (closed), -EINVAL (NULL, capacity 0, sizes that overflow), -ENOMEM (the first call allocates the
 * memory), -ECANCELED, -EPERM (in a posted function). */
CONC_API int conc_channel_send(conc_channel *c, const void *item) CONC_NODISCARD;

/* Receives the next item into *item. Waits while the channel is empty. Errors: -EPIPE (closed and
 * empty); the others as above. */
CONC_API int conc_channel_recv(conc_channel *c, void *item) CONC_NODISCARD;

/* Do the same, but return -EAGAIN instead of waiting. From anywhere. Not checkpoints. */
CONC_API int conc_channel_try_send(conc_channel *c, const void *item) CONC_NODISCARD;
CONC_API int conc_channel_try_recv(conc_channel *c, void *item) CONC_NODISCARD;

/* Ends sending: waiting senders get -EPIPE. Items in the channel can still be received. Closing
 * twice does nothing. From anywhere. */
CONC_API void conc_channel_close(conc_channel *c);

/* Closes the channel, drops its items and frees its memory. No other call may be using the channel.
 * It may be reused afterwards. From anywhere. */
CONC_API void conc_channel_destroy(conc_channel *c);
CONC_API void conc__auto_conc_channel(conc_channel *c);

/* ---- >>shared ------------------------------------------------------------------------------- */

/* Allocates zeroed memory that this process shares with the workers of process pools opened later,
 * at the same address in all of them. Release it with conc_shared_free in the process that
 * allocated it. Returns NULL if size is 0, if memory has run out, or if the system is not Linux.
 * From anywhere. Synchronize access with something that works across processes, such as C11 atomics
 * or PTHREAD_PROCESS_SHARED mutexes. */
CONC_API void *conc_shared_alloc(size_t size);
CONC_API void conc_shared_free(void *p);

/* ---- >>files -------------------------------------------------------------------------------- */

/* Files are read and written off the loop. Errors are the system's; exceeding the file size limit
 * (ulimit -f) returns -EFBIG and raises no SIGXFSZ. Once begun, work on a regular file is not cut
 * short, so -ECANCELED means that nothing was done. If the file can make a task wait for another
 * process (a FIFO, a terminal), or has no end (/dev/zero), cancellation ends the call, perhaps
 * after some bytes were transferred; in a thread without a run, the call blocks. */

/* Reads the whole file. Stores its size in *size (NULL: not wanted) and its bytes, NUL-terminated,
 * in *data; release them with conc_free. After an error, *data is NULL. Waits. */
CONC_API int conc_file_read(const char *path, void **data, size_t *size) CONC_NODISCARD;

/* Replaces the file with these bytes, whole or not at all: writes a new file with the permissions
 * of the old one, syncs it to disk, and renames it to path. If the old file cannot be replaced (a
 * mount point, a file in /proc, a directory that this program may not change), it is overwritten in
 * place, and an error may leave it partly written. If the new file cannot be given the old one's
 * group, its group permissions are reduced to those that others had too. Anything but a regular
 * file (a terminal, a pipe, /dev/null) is simply written to. Waits. */
CONC_API int conc_file_write(const char *path, const void *data, size_t size) CONC_NODISCARD;

/* Appends the bytes to the file, creating it if necessary. After an error some bytes may have been
 * appended. Waits. */
CONC_API int conc_file_append(const char *path, const void *data, size_t size) CONC_NODISCARD;

/* ---- >>names -------------------------------------------------------------------------------- */

/* Looks up a host name (or a numeric address) and a port, off the loop. Returns the number of TCP
 * addresses, and stores up to max of them in out. Waits; a cancel takes effect immediately. Errors:
 * -EADDRNOTAVAIL (no such name, or no reachable name server: conc_last_error says which), -EINVAL
 * (NULL, no such port), -ENOMEM, -ECANCELED. With this module, conc_dial and conc_listen also
 * accept names, and wait for the lookup; conc_dial tries all addresses of a name. */
CONC_API int conc_resolve(const char *host, const char *port, struct sockaddr_storage *out,
                          size_t max);

/* ---- >>child -------------------------------------------------------------------------------- */

enum {
    CONC_PIPE = -2, /* a pipe to or from the child */
    CONC_NULL = -3  /* /dev/null */
};

/* A child program. Set the fields above `pid` before conc_child_start; argv, env and dir need not
 * outlive that call. */
typedef struct conc_child {
    /* the program, searched for in PATH unless it contains a slash; its arguments; NULL */
    const char *const *argv;
    const char *const *env; /* "name=value"..., NULL; NULL: this program's */
    const char *dir;        /* working directory; NULL: this program's */
    /* each is 0 (inherit this program's), CONC_PIPE, CONC_NULL, or a descriptor, which the caller
     * keeps. conc_child_start replaces CONC_PIPE with this program's end of the pipe, for conc_read
     * and conc_write, and anything else with -1. conc_child_close closes that end; to end the
     * child's input earlier, conc_close it and set the field to -1. A socket, unless listening, is
     * set to the blocking mode that programs expect. This program then has it in blocking mode too,
     * but conc's calls work the same */
    int input, output, error;
    /* make the child lead its own process group, which all processes it starts join.
     * conc_child_kill and conc_child_close reach the whole group, even after the child itself has
     * ended, until it is closed. A terminal's Ctrl+C does not reach the child */
    bool group;
    /* seconds that conc_child_close waits between SIGTERM and SIGKILL; 0: immediate SIGKILL */
    double grace;
    int pid; /* set by conc_child_start */
    /* private */
    int pidfd, status, state;
    unsigned forks; /* conc__forks when the child was started */
    bool reaped;
    unsigned long long start_time;
    struct conc__child_process *process;
} conc_child;

/* Starts the program with the original signal mask and only these three descriptors. Waits. Errors:
 * -ENOENT (no such program or directory: conc_last_error says which), -EACCES and other system
 * errors, -EINVAL (NULL, no argv, a negative grace), -EBUSY (started and not closed), -ENOMEM. No
 * SIGCHLD handler is needed or disturbed. */
CONC_API int conc_child_start(conc_child *c);

/* Waits until the child has ended. Returns 0, with its status as from waitpid(2) in *status (NULL:
 * not wanted), for WIFEXITED, WEXITSTATUS and WTERMSIG. A cancel leaves the child running. Errors:
 * -EINVAL (not started), -ECHILD (it has ended, but this program ignores SIGCHLD or has reaped it
 * by other means), -EPERM (this is a forked process, and its parent started the child). */
CONC_API int conc_child_wait(conc_child *c, int *status);

/* Sends a signal to the child, or with .group to its whole group. Returns 0, -EALREADY (it has
 * ended), -EINVAL or -EPERM. Never signals another process that has reused the process id. */
CONC_API int conc_child_kill(conc_child *c, int signal);

/* Closes the pipes and terminates a child still running: with SIGKILL, or, if .grace is set, with
 * SIGTERM (and SIGCONT, in case it is stopped) and SIGKILL that many seconds later; its output can
 * be read until then. With .group this applies to the whole group, and the grace period ends early
 * only once the group's last process has ended. Waits until the child has ended, even if cancelled.
 * Returns 0. In a posted function, where it blocks the loop, there is no grace. If another caller
 * is closing the child, waits until it is closed. Callers waiting in conc_child_wait get the
 * child's status, and do not touch *c once it is closed. Closing a child twice, or one that was
 * never started, does nothing; in a forked process, it leaves the parent's child running. Error:
 * -EBUSY (another thread is starting it). */
CONC_API int conc_child_close(conc_child *c);

/* The input and output of conc_child_communicate. Zero the fields that you do not set. */
typedef struct conc_child_io {
    const void *in; /* the child's input */
    size_t in_size; /* in bytes; 0: empty input */
    size_t limit;   /* maximum size of out, and of error, in bytes; 0: no limit */
    /* bytes from the output and error pipes, NUL-terminated, to be released with conc_free whatever
     * the call returned; NULL without a pipe */
    char *out, *error;
    size_t out_size, error_size; /* without the NUL */
} conc_child_io;

/* Writes the input and reads all output concurrently, through whichever of the child's descriptors
 * are pipes, until all output is read and the child has ended. Returns 0, with the status as for
 * conc_child_wait. It is not an error if the child does not read its input. Waits. After -ECANCELED
 * the child keeps running, and *io holds the output so far and the unwritten input; call again to
 * continue. Errors: -EMSGSIZE (more than the limit; the child is closed), -ECHILD (all was read,
 * but the status is lost), -EINVAL (NULL, not started, input without a pipe), -ENOMEM, -EPERM, and
 * other system errors.
 *
 * conc_child_close discards the child's status and final output. To get both from a child that has
 * timed out, signal it and continue. Here talk calls conc_child_communicate; with .group, the
 * signals also reach other processes that hold the child's pipes:
 *
 *     int rc = conc_timeout(5, talk, &t);
 *     if (rc == -ETIMEDOUT) {
 *         conc_child_kill(&c, SIGTERM); // -EALREADY: it has just ended
 *         rc = conc_timeout(1, talk, &t);
 *     }
 *     if (rc == -ETIMEDOUT) {
 *         conc_child_kill(&c, SIGKILL);
 *         rc = talk(&t);
 *     } */
CONC_API int conc_child_communicate(conc_child *c, conc_child_io *io, int *status);
CONC_API void conc__auto_conc_child(conc_child *c);

#ifdef __cplusplus
}

extern "C++" { /* for C++ the macro is a function call, as in conc_sync.h */
struct conc__channel_options {
    size_t item_size = 0, capacity = 0;
};
constexpr conc_channel conc__make_channel(const conc__channel_options &o)
{
    conc_channel c{};
    c.item_size = o.item_size;
    c.capacity = o.capacity;
    return c;
}
}
#undef CONC_CHANNEL
/* clang-format off */
#define CONC_CHANNEL(type, ...) \
    conc__make_channel( \
        __extension__ conc__channel_options{.item_size = sizeof(type), .capacity = __VA_ARGS__})
/* clang-format on */
#endif

#endif /* CONC_POOL_H */

/* ===============================================================================================
 *  The implementation
 *
 *  job           a function submitted to a pool; its states are listed in >>queue
 *  job queue     the internals of a pool of either kind: a ring of queued jobs, the limit, and the
 *                worker threads, or the supervisor and its workers, that run the jobs
 *  worker thread a thread that runs the jobs of a conc_pool; it takes them in batches
 *  worker        a process that runs the jobs of a conc_procs; its states are in >>supervisor
 *  supervisor    the thread of a conc_procs that starts and watches the workers. It replaces a
 *                dead worker when jobs are queued and no worker is idle
 *  channel       memory that the supervisor shares with one worker; it holds one request or reply
 *                at a time (>>workers draws the messages). Unrelated to conc_channel
 *  program       the process that opened the pool, not its workers
 *  payload       what a job for a worker carries: bytes in and out, or elements of a map
 *  map           one call to conc_pool_map or a variant; runners are the jobs that work on it
 *  segment       memory that several processes map
 *  waiter        a task or thread waiting for another thread: a task's loop keeps running, a thread
 *                sleeps on its thread event
 *  job context   a job running on a thread, perhaps inside another job that is waiting for it
 *  cancel hook   a function called when a waiting job is asked to stop
 *  cancel layer  a map or a shield around part of a job, which adds or hides stop requests
 *  clock         a loop whose clock is virtual. Its at_work counts the jobs that hold the clock and
 *                so keep it from advancing; conc_loop_hold does something else
 *  shared pools  the thread pools that conc_offload, files, names and children use
 *  abandoned     a job that its task no longer awaits; its thread is lost to the pool until the job
 *                ends
 *  the mutex     the job queue's, if no other is named
 *
 *  Order of locks: a thread that holds one of these may lock those on the lines below it, but no
 *  other on the same line.
 *
 *    conc__cancel_hooks.mutex
 *    conc__shared_pools.mutex
 *    conc__job_queues_mutex
 *    a job queue's mutex; a conc_channel's mutex; conc__children_mutex
 *    conc__segments_mutex
 *    conc__live_runs.mutex (conc.h)
 *    a loop's mutex (of a run inside a job before that of its job's clock); a thread event's mutex
 *
 *  mapping_mutex, in a worker process, is held while mapping the segment, and during a fork. A
 *  thread that holds the mutex of a conc__semaphore (macOS), or another mutex of conc.h, locks
 *  nothing else.
 *
 *  Contents: >>systems >>waiting >>queue >>jobs >>threads >>pool >>map >>in_jobs >>offload
 *  >>channel >>select >>files >>names >>child >>shared >>functions >>workers >>supervisor >>procs
 *  >>init
 * ============================================================================================== */

#if (defined CONC_IMPLEMENTATION || defined CONC_STATIC) && !defined CONC__POOL_IMPLEMENTED
#define CONC__POOL_IMPLEMENTED

#include <dirent.h>
#include <netdb.h>
#include <semaphore.h>
#include <spawn.h>
#include <sys/wait.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#ifdef __APPLE__
#include <crt_externs.h>
#endif

/* ---- >>systems ------------------------------------------------------------------------------ */

/* System-dependent code: the Linux functions first, then their namesakes for macOS and other
 * systems. */

#ifdef __linux__

enum { CONC__O_PATH = 010000000 }; /* opens even a directory that this process may not list */

CONC__TINY void conc__name_thread(const char *name) { prctl(PR_SET_NAME, name); }

CONC__PRIVATE int conc__sync_file(int fd) { return conc__failure(fsync(fd)); }

/* Copies the access control list of the file at path. Returns false if the file has one that cannot
 * be copied. The group bits of its mode are then an upper bound on what the entries of the list
 * grant. */
CONC__PRIVATE bool conc__keep_list(int fd, const char *path)
{
    static const char name[] = "system.posix_acl_access";
    char list[1024];
    long n = syscall(SYS_getxattr, path, name, list, sizeof list);
    if (n < 0)
        return errno != ERANGE;
    return n == 0 || syscall(SYS_fsetxattr, fd, name, list, (size_t)n, 0) == 0;
}

/* Returns a close-on-exec descriptor for the process, or -1. */
CONC__PRIVATE int conc__pidfd(pid_t pid)
{
#ifdef SYS_pidfd_open
    return conc__not_standard((int)syscall(SYS_pidfd_open, pid, 0));
#else
    (void)pid;
    return -1;
#endif
}

CONC__PRIVATE int conc__pidfd_send(int pidfd, int number)
{
#ifdef SYS_pidfd_send_signal
    return conc__failure((int)syscall(SYS_pidfd_send_signal, pidfd, number, NULL, 0));
#else
    (void)pidfd, (void)number;
    return -ENOSYS;
#endif
}

#else

enum { CONC__O_PATH = O_RDONLY };

CONC__TINY void conc__name_thread(const char *name) { (void)name; }

/* On macOS, fsync leaves the bytes in the disk's cache, but not every file system supports
 * F_FULLFSYNC. */
CONC__PRIVATE int conc__sync_file(int fd)
{
#ifdef __APPLE__
    if (fcntl(fd, F_FULLFSYNC) >= 0)
        return 0;
#endif
    return conc__failure(fsync(fd));
}

CONC__TINY bool conc__keep_list(int fd, const char *path)
{
    (void)fd, (void)path;
    return true;
}

CONC__TINY int conc__pidfd(pid_t pid)
{
    (void)pid;
    return -1;
}

CONC__TINY int conc__pidfd_send(int pidfd, int number)
{
    (void)pidfd, (void)number;
    return -ENOSYS;
}

#endif

#ifdef __APPLE__

CONC__TINY void conc__cond_init(pthread_cond_t *c) { pthread_cond_init(c, NULL); }

/* Waits until c is signalled, or until conc__clock reaches `until`, which is `left` ns away. */
CONC__PRIVATE void conc__cond_wait(pthread_cond_t *c, pthread_mutex_t *m, int64_t until,
                                   int64_t left)
{
    struct timespec t = {(time_t)(left / 1000000000), (long)(left % 1000000000)};
    (void)until;
    pthread_cond_timedwait_relative_np(c, m, &t);
}

#else

CONC__PRIVATE void conc__cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attributes);
    pthread_condattr_destroy(&attributes);
}

CONC__PRIVATE void conc__cond_wait(pthread_cond_t *c, pthread_mutex_t *m, int64_t until,
                                   int64_t left)
{
    struct timespec t = {(time_t)(until / 1000000000), (long)(until % 1000000000)};
    (void)left;
    pthread_cond_timedwait(c, m, &t);
}

#endif

/* -- semaphores, because sem_init always fails on macOS -- */

#ifdef __APPLE__
typedef struct conc__semaphore {
    pthread_mutex_t mutex;
    pthread_cond_t posted;
    unsigned count; /* under the mutex */
} conc__semaphore;

CONC__PRIVATE void conc__semaphore_open(conc__semaphore *s)
{
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->posted, NULL);
    s->count = 0;
}

CONC__PRIVATE void conc__semaphore_close(conc__semaphore *s)
{
    pthread_cond_destroy(&s->posted);
    pthread_mutex_destroy(&s->mutex);
}

/* Signals under the mutex, because the woken thread may close the semaphore. */
CONC__PRIVATE void conc__semaphore_post(conc__semaphore *s)
{
    pthread_mutex_lock(&s->mutex);
    s->count++;
    pthread_cond_signal(&s->posted);
    pthread_mutex_unlock(&s->mutex);
}

CONC__PRIVATE void conc__semaphore_wait(conc__semaphore *s)
{
    pthread_mutex_lock(&s->mutex);
    while (!s->count)
        pthread_cond_wait(&s->posted, &s->mutex);
    s->count--;
    pthread_mutex_unlock(&s->mutex);
}
#else
typedef sem_t conc__semaphore;

CONC__PRIVATE void conc__semaphore_open(conc__semaphore *s) { sem_init(s, 0, 0); }
CONC__PRIVATE void conc__semaphore_close(conc__semaphore *s) { sem_destroy(s); }
CONC__PRIVATE void conc__semaphore_post(conc__semaphore *s) { sem_post(s); }

CONC__PRIVATE void conc__semaphore_wait(conc__semaphore *s)
{
    while (sem_wait(s) && errno == EINTR)
        continue;
}
#endif

/* ---- >>waiting ------------------------------------------------------------------------------ */

/* A flag on which a thread sleeps until another thread sets it. */
typedef struct conc__thread_event {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool set;
} conc__thread_event;

/* How a job ended. Each waiter gets its own copy, because the first one to continue may free or
 * reuse the job. */
typedef struct conc__job_outcome {
    int result;
    bool has_text;
    char text[96];
} conc__job_outcome;

/* A task or thread waiting for another thread, in a list of the object that it waits for. The
 * thread that wakes the waiter, or a cancel, removes it from the list, under the list's mutex; the
 * end of a job drops its whole list instead. A task's waiter has a conc__wait, too, by which its
 * loop wakes the task. */
typedef struct conc__waiter {
    struct conc__waiter *next, *prev; /* a ring */
    struct conc__waiter **list;
    conc_loop *loop; /* of the waiting task; NULL: a thread is waiting */
    conc__wait *wait;
    conc__post post;
    conc__thread_event *event;     /* of a waiting thread */
    void *item;                    /* the job awaited or submitted; a channel's item */
    conc__job_outcome *outcome;    /* receives the awaited job's outcome */
    bool *stop;                    /* set when the waiting task is cancelled; NULL: none */
    struct conc__job_queue *queue; /* the awaited job's */
    /* the process pool whose replies a waiting thread can collect; holds a reference. NULL: none */
    struct conc__job_queue *polls_queue;
    /* of the waiting job, if any; its clocks advance during the wait */
    struct conc__job_context *context;
    int result;
    bool gives_up;   /* it was cancelled, and wants its job to stop */
    bool is_counted; /* a worker thread that its job queue already counts as waiting */
    bool woken;      /* set when it is woken; after that, the list and its owner may be gone */
    /* selects: a case of conc_select, which is only notified; it sends or receives if no other case
     * came first. kept: an item, or room for one, is reserved for it until then */
    bool selects, kept;
} conc__waiter;

/* Protects the list of job queues. Job queues are freed under it, so a thread that has only a job
 * or a waiter must lock it before following the pointer to the job queue. */
static pthread_mutex_t conc__job_queues_mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned conc__forks; /* number of forks between the first process and this one */
static struct conc__job_queue *conc__job_queues;

/* Protects the state of all child programs, so that each is reaped once and never signalled after
 * that. */
static pthread_mutex_t conc__children_mutex = PTHREAD_MUTEX_INITIALIZER;

/* Locks a mutex that is held only briefly: spins before it sleeps. */
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

CONC__PRIVATE void conc__waiter_add(conc__waiter **list, conc__waiter *w)
{
    conc__waiter *first = *list;
    w->list = list;
    if (!first) {
        w->next = w->prev = w;
        *list = w;
        return;
    }
    w->next = first;
    w->prev = first->prev;
    w->prev->next = w->next->prev = w;
}

CONC__PRIVATE void conc__waiter_remove(conc__waiter *w)
{
    if (*w->list == w)
        *w->list = w->next == w ? NULL : w->next;
    w->prev->next = w->next;
    w->next->prev = w->prev;
}

CONC__PRIVATE void conc__thread_event_init(conc__thread_event *e)
{
    pthread_mutex_init(&e->mutex, NULL);
    conc__cond_init(&e->cond);
    e->set = false;
}

CONC__PRIVATE void conc__thread_event_set(conc__thread_event *e)
{
    pthread_mutex_lock(&e->mutex);
    e->set = true;
    pthread_cond_signal(&e->cond);
    pthread_mutex_unlock(&e->mutex);
}

/* Waits until the event is set, or until the time `until`. Returns whether it is set. */
CONC__PRIVATE bool conc__thread_event_wait(conc__thread_event *e, int64_t until)
{
    pthread_mutex_lock(&e->mutex);
    while (!e->set) {
        if (until == CONC__NEVER) {
            pthread_cond_wait(&e->cond, &e->mutex);
            continue;
        }
        int64_t left = until - conc__clock();
        if (left <= 0)
            break;
        conc__cond_wait(&e->cond, &e->mutex, until, left);
    }
    bool set = e->set;
    pthread_mutex_unlock(&e->mutex);
    return set;
}

CONC__PRIVATE void conc__thread_event_destroy(conc__thread_event *e)
{
    pthread_cond_destroy(&e->cond);
    pthread_mutex_destroy(&e->mutex);
}

CONC__PRIVATE void conc__thread_event_finish(conc__thread_event *e)
{
    conc__thread_event_wait(e, CONC__NEVER);
    conc__thread_event_destroy(e);
}

CONC__PRIVATE struct conc__job_context *conc__job_context_here(void);
CONC__PRIVATE void conc__job_contexts_hold_clocks(struct conc__job_context *ctx, bool at_work);
CONC__PRIVATE bool conc__job_context_has_clock(const struct conc__job_context *ctx);
CONC__PRIVATE void conc__worker_thread_idles(struct conc__job_context *ctx, bool idles);

CONC__PRIVATE void conc__waiter_posted(conc__post *p)
{
    conc__waiter *w = (conc__waiter *)(void *)((char *)p - offsetof(conc__waiter, post));
    conc__wake(conc__here, w->wait, w->result);
}

/* Sets the waiter's result. The caller holds the list's mutex, and must then call
 * conc__waiter_notify. */
CONC__PRIVATE void conc__waiter_set_result(conc__waiter *w, int result)
{
    /* do this now: the clocks could advance before the waiter runs */
    conc__job_contexts_hold_clocks(w->context, true);
    w->result = result;
    __atomic_store_n(&w->woken, true, __ATOMIC_RELEASE);
}

/* Like conc__waiter_set_result, but also removes the waiter from its list. */
CONC__PRIVATE void conc__waiter_complete(conc__waiter *w, int result)
{
    conc__waiter_remove(w);
    conc__waiter_set_result(w, result);
}

CONC__PRIVATE void conc__waiter_notify(conc__waiter *w)
{
    if (w->loop) /* the post cannot be refused: the run outlives its tasks */
        conc__post_to(w->loop, &w->post);
    else if (w->event) /* NULL: the waiter's own thread runs the job */
        conc__thread_event_set(w->event);
}

CONC__PRIVATE void conc__waiter_wake(conc__waiter *w, int result)
{
    conc__waiter_complete(w, result);
    conc__waiter_notify(w);
}

/* Spins briefly until *over is set, because sleeping and being woken takes longer. */
CONC__PRIVATE void conc__spin_for(const bool *over)
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

CONC__PRIVATE void conc__job_queue_spin_for(struct conc__job_queue *q, const bool *over);

/* A function to call when a waiting job is asked to stop. All hooks of the process are in one list.
 * A request sets a flag in the job, its job queue or its map; conc__run_cancel_hooks then finds the
 * waiting jobs that the request concerns. */
typedef struct conc__cancel_hook {
    struct conc__cancel_hook *next, *prev;
    /* NULL: no job is waiting, and the hook is in no list */
    const struct conc__job_context *context;
    void (*run)(struct conc__cancel_hook *self);
    bool called;
    unsigned forks;
} conc__cancel_hook;

static struct {
    pthread_mutex_t mutex;
    conc__cancel_hook *first;
} conc__cancel_hooks = {.mutex = PTHREAD_MUTEX_INITIALIZER};

CONC__PRIVATE bool conc__job_context_cancelled(const struct conc__job_context *ctx);
CONC__PRIVATE bool conc__job_context_in_process(const struct conc__job_context *ctx);
CONC__PRIVATE int64_t conc__shield_deadline(const struct conc__job_context *ctx);
CONC__PRIVATE void conc__worker_start_cancel_listener(void);

/* Calls the hooks of all jobs that have been asked to stop. A hook may pass the request on to
 * further jobs, so this repeats until no hook is left to call. */
CONC__PRIVATE void conc__run_cancel_hooks(void)
{
    pthread_mutex_lock(&conc__cancel_hooks.mutex);
    for (bool more = true; more;) {
        more = false;
        for (conc__cancel_hook *s = conc__cancel_hooks.first; s; s = s->next) {
            if (s->called || !conc__job_context_cancelled(s->context))
                continue;
            s->called = more = true;
            s->run(s);
        }
    }
    pthread_mutex_unlock(&conc__cancel_hooks.mutex);
}

/* Registers the hook of a job (ctx; NULL: none) that is about to wait. If the job has already been
 * asked to stop, calls the hook immediately. */
CONC__PRIVATE void conc__cancel_hook_add(conc__cancel_hook *s, const struct conc__job_context *ctx,
                                         void (*ask)(conc__cancel_hook *self))
{
    s->context = ctx;
    s->run = ask;
    if (!ctx)
        return;
    if (conc__job_context_in_process(ctx))
        conc__worker_start_cancel_listener();
    s->forks = conc__forks;
    pthread_mutex_lock(&conc__cancel_hooks.mutex);
    CONC__LIST_PREPEND(conc__cancel_hooks.first, s, next, prev);
    pthread_mutex_unlock(&conc__cancel_hooks.mutex);
    if (conc__job_context_cancelled(ctx))
        conc__run_cancel_hooks();
}

/* Removes the hook of a job that has stopped waiting. */
CONC__PRIVATE void conc__cancel_hook_remove(conc__cancel_hook *s)
{
    if (!s->context || s->forks != conc__forks) /* a fork has emptied the list */
        return;
    pthread_mutex_lock(&conc__cancel_hooks.mutex);
    CONC__LIST_REMOVE(conc__cancel_hooks.first, s, next, prev);
    pthread_mutex_unlock(&conc__cancel_hooks.mutex);
}

CONC__PRIVATE void conc__cancel_hooks_reset(void)
{
    pthread_mutex_init(&conc__cancel_hooks.mutex, NULL);
    conc__cancel_hooks.first = NULL;
}

/* Waits for the event, in the job of ctx (NULL: none). When the time limit of a shield expires, a
 * stop request that the shield hid takes effect. */
CONC__PRIVATE void conc__thread_event_wait_in_job(conc__thread_event *e,
                                                  const struct conc__job_context *ctx)
{
    while (!conc__thread_event_wait(e, conc__shield_deadline(ctx)))
        conc__run_cancel_hooks();
}

/* A thread waiting to be woken. */
typedef struct conc__thread_wait {
    conc__cancel_hook hook;
    conc__wait *wait;
} conc__thread_wait;

CONC__PRIVATE void conc__thread_wait_cancel(conc__cancel_hook *s)
{
    conc__wait *wait = ((conc__thread_wait *)(void *)s)->wait;
    const conc__waiter *w = wait->item;
    if (wait->kind->cancel && wait->kind->cancel(wait))
        conc__thread_event_set(w->event);
}

/* Makes the waiting job release its clocks. The job's cancel hook must already be registered, or a
 * clock could advance between a stop request and its effect. */
CONC__PRIVATE void conc__waiter_release_clocks(conc__waiter *w, pthread_mutex_t *mutex)
{
    pthread_mutex_lock(&conc__job_queues_mutex); /* if w is still waiting, keeps `mutex` alive */
    if (!__atomic_load_n(&w->woken, __ATOMIC_ACQUIRE)) {
        conc__lock_briefly(mutex);
        if (!w->woken)
            conc__job_contexts_hold_clocks(w->context, false);
        pthread_mutex_unlock(mutex);
    }
    pthread_mutex_unlock(&conc__job_queues_mutex);
}

CONC__PRIVATE int conc__wait_in_thread(conc__wait *wait, pthread_mutex_t *mutex)
{
    conc__waiter *w = wait->item;
    conc__thread_wait t = {.wait = wait};
    if (w->polls_queue)
        conc__job_queue_spin_for(w->polls_queue, &w->woken);
    else
        conc__spin_for(&w->woken);
    if (!__atomic_load_n(&w->woken, __ATOMIC_ACQUIRE)) {
        bool has_clock = conc__job_context_has_clock(w->context),
             idles = has_clock && !w->is_counted;
        conc__cancel_hook_add(&t.hook, w->context, conc__thread_wait_cancel);
        if (idles)
            conc__worker_thread_idles(w->context, true);
        if (has_clock)
            conc__waiter_release_clocks(w, mutex);
        conc__thread_event_wait_in_job(w->event, w->context);
        if (idles)
            conc__worker_thread_idles(w->context, false);
        conc__cancel_hook_remove(&t.hook);
    }
    conc__thread_event_finish(w->event);
    return w->result;
}

/* Refuses a call that may wait and was made in a posted function. */
CONC__COLD int conc__caller_refused(const char *call)
{
    return conc__misused(-EPERM, call, "only a task may call it", NULL);
}

/* Checks that `call` may wait here. Returns 0, with the caller's loop in *l (NULL: a thread or a
 * job), or -EPERM in a posted function. */
static inline int conc__caller(conc_loop **l, const char *call)
{
    *l = conc__here;
    if (CONC__UNLIKELY(*l && !(*l)->self))
        return conc__caller_refused(call);
    return 0;
}

/* Waits until another thread wakes the caller, and returns the result set by that thread. The
 * waiter is already in its list. The list's mutex and `outer` (NULL: none) are locked; this
 * function unlocks them. */
CONC__PRIVATE CONC__CALLED int conc__wait_outside(conc_loop *l, conc__waiter *w,
                                                  const conc__wait_kind *kind, const void *on,
                                                  pthread_mutex_t *mutex, pthread_mutex_t *outer)
{
    conc__wait wait = {.kind = kind, .on = on, .item = w};
    conc__thread_event event;
    if (!l)
        conc__thread_event_init(&event);
    w->loop = l;
    w->wait = &wait;
    w->post.run = conc__waiter_posted;
    w->event = &event;
    w->context = NULL;
    if (!l)
        w->context = conc__job_context_here();
    pthread_mutex_unlock(mutex);
    if (outer)
        pthread_mutex_unlock(outer);
    if (!l)
        return conc__wait_in_thread(&wait, mutex);
    conc__check_lost(l, __builtin_frame_address(0));
    wait.task = l->self;
    l->outside.awaited++;
    int rc = conc__park(l, &wait);
    l->outside.awaited--;
    return rc;
}

/* ---- >>queue -------------------------------------------------------------------------------- */

/* The states of a job, and what changes them. Once a job is DONE, its memory is the caller's again.
 *
 *   NEW       not submitted; the memory may hold anything. conc__job_init makes it PENDING
 *   PENDING   sealed, not LIVE: the submit call may be waiting for room under the limit. The thread
 *             that makes room makes it QUEUED; a cancel or a close makes it NEW again
 *   QUEUED    LIVE, and `slot` is its index in the ring. A worker thread takes it; the supervisor
 *             or a waiter sends it to a worker; a cancel makes it DONE
 *   TAKEN     `slot` is IN_BATCH, and the job is in a thread's batch[]. That thread, or one that
 *             steals the job, runs it; a cancel makes it DONE; if the thread is about to wait, it
 *             makes it QUEUED again
 *   RUNNING   in no batch, or a worker holds its request. It becomes DONE when its function returns
 *             or its worker ends, but QUEUED again if the worker had not begun it. A cancel sets
 *             CANCEL_REQUESTED, or kills the worker and makes it DONE
 *   ABANDONED RUNNING, and its task has given it up: it frees itself when DONE
 *   DONE      `result` is set, every waiter has a copy of the outcome, and the seal is broken
 */
enum {
    CONC__BATCH = 16, /* maximum number of jobs that a thread takes from the queue at a time */

    /* bits of a job's state, below its seal */
    CONC__JOB_LIVE = 1, /* accepted; before that no thread can wait for it */
    CONC__JOB_DONE = 2,
    CONC__JOB_WAITED = 4,           /* has or had waiters: it becomes DONE under the mutex */
    CONC__JOB_CANCEL_REQUESTED = 8, /* it has been asked to stop */
    CONC__JOB_HAS_TEXT = 16,        /* `text` belongs to its result */
    CONC__JOB_OWNED = 32,           /* it frees itself */
    CONC__JOB_ABANDONED = 64,       /* its task no longer waits for it */
    CONC__JOB_BLOCKED = 128,        /* it is waiting or in conc_block while its clock advances */

    CONC__JOB_HOLDS_CLOCK = 256, /* it keeps its clock from advancing */
    CONC__JOB_BITS = 0x1ff
};

#define CONC__IN_BATCH (1u << 31)    /* bit of a slot; the rest is thread * CONC__BATCH + index */
#define CONC__NO_SLOT UINT_MAX       /* neither in the ring nor in a batch */
#define CONC__POOL_CLOSED (1u << 31) /* bit of a pool's `users` */

/* A map or a shield around part of a job. Inside a map, the code is asked to stop when the map
 * stops, or when the job that called the map is asked to stop; a shield hides requests from
 * outside. */
typedef struct conc__cancel_layer {
    const struct conc__cancel_layer *outer;
    const bool *cancelled; /* set: everything inside must stop */
    bool shields;
    int64_t until;          /* a shield's end on the real clock; CONC__NEVER: none */
    const conc_job *sender; /* the job that called a map; NULL: none */
} conc__cancel_layer;

/* A job running on a thread, perhaps inside another one. */
typedef struct conc__job_context {
    struct conc__job_context *outer;
    conc_job *job;
    struct conc__worker_thread *thread; /* NULL: in a worker process */
    conc__locals *locals;
    const conc__cancel_layer *layer; /* innermost; NULL: none */
    /* in a worker process, its stop request; NULL: in a thread */
    const unsigned *cancel_flag;
    int text_rc;
    char text[96];
} conc__job_context;

typedef struct conc__worker_thread {
    struct conc__job_queue *queue;
    pthread_t id;
    int number;
    int nested; /* number of waits in runs inside its jobs */
    /* its job was abandoned, and the job queue has ended without it */
    bool detached;
    int batch_count; /* slots of batch[] in use */
    int finishing;   /* 1: counted in the job queue's `finishing` */
    /* the clock of the job that just ended; held until the thread has looked for its next job, so
     * that closing the pool, which waits for that, takes no virtual time. NULL: none */
    conc_loop *clock;
    bool holds_clock;
    void *pin; /* if detached, keeps this code loaded; NULL: not needed */
    void *signal_stack;
    const char *stack_low, *stack_high;
    _Atomic(conc_job *) batch[CONC__BATCH];
} conc__worker_thread;

/* Queued jobs that share a clock and together keep it stopped. */
typedef struct conc__queue_clock {
    conc_loop *clock;
    size_t jobs; /* 0: the slot is free */
} conc__queue_clock;

typedef struct conc__job_queue {
    struct conc__job_queue *next, *prev; /* list of all, under conc__job_queues_mutex */
    pthread_mutex_t mutex;
    /* has ring_size slots, a power of two; a slot is NULL where a job was withdrawn */
    conc_job **ring;
    size_t ring_size, head, tail;
    size_t queued; /* number of jobs in the ring; written under the mutex, also read without it */
    size_t limit;
    conc__queue_clock *clocks;
    int clock_slots, clocks_used; /* slots of clocks[] */
    conc__waiter *submitters;     /* waiting submit calls, with their jobs */
    conc__waiter *closer, *other_closers;
    bool closing, stopping, cancel_all, on_valgrind;
    bool closed;        /* it has ended, and the pool belongs to its owner again */
    bool stalled;       /* every thread is waiting or in conc_block: queued jobs hold no clocks */
    bool start_refused; /* the last thread start failed */
    unsigned forks;
    int references;                      /* held by the pool, its threads, and active callers */
    struct conc__supervisor *supervisor; /* NULL: a thread pool */
    conc_pool *shared; /* the shared pool it belongs to; NULL: one of the program's own pools */

    /* idle threads sleep on it. Its value is wakes_pending - posts_due, because it is posted only
     * after the mutex is unlocked */
    conc__semaphore work;
    conc__worker_thread **threads;
    int thread_slots; /* size of threads[] */
    int max_workers;  /* maximum number of threads, or of workers */
    /* numbers of threads */
    int abandoned;     /* threads lost to abandoned jobs */
    int nested;        /* threads waiting in a run inside a job */
    int waiting;       /* threads whose job is waiting for another */
    int started;       /* all threads; in a process pool: workers with a job */
    int starting;      /* threads that have not yet locked the mutex */
    int idle;          /* idle threads, spinning or asleep */
    int sleeping;      /* threads waiting for `work` */
    int wakes_pending; /* how many of the sleeping threads must wake but have not yet */
    int posts_due;     /* how many of those `work` has not yet been posted for */
    int spinning;
    int blocking; /* threads whose job is waiting or in conc_block while its clock advances */
    /* threads about to look for the next job; changed without the mutex */
    int finishing;
    unsigned misses; /* number of consecutive times a thread spun without success before sleeping */
    /* the signal mask of the pool's opener, without conc's changes, and whether SIGPIPE was
     * blocked */
    sigset_t mask;
    bool blocks_pipe;
    /* the thread that exited most recently: the next one to exit joins it */
    bool has_ended;
    pthread_t last_ended;
    pthread_cond_t ended; /* signalled when a thread exits */
    char name[16];
} conc__job_queue;

static pthread_key_t conc__job_context_key; /* the conc__job_context of a thread */
static bool conc__job_context_key_made;
/* A detached thread's pin, which keeps this code loaded. The key's destructor, dlclose, releases it
 * when the thread exits, because the code cannot unload itself. */
static pthread_key_t conc__pins;

#ifdef __linux__
static bool conc__pins_there;

typedef struct conc__code_location { /* Dl_info, which the system's header hides */
    const char *file;
    void *base;
    const char *symbol;
    void *address;
} conc__code_location;

extern int conc__find_code(const void *address, conc__code_location *place) __asm__("dladdr")
    __attribute__((weak));
extern void *conc__pin_module(const char *path, int flags) __asm__("dlopen") __attribute__((weak));
extern int conc__unpin_module(void *module) __asm__("dlclose") __attribute__((weak));

CONC__PRIVATE void conc__pins_begin(void)
{
    void (*unpin)(void *) = (void (*)(void *))(void (*)(void))conc__unpin_module;
    bool can_pin = conc__find_code && conc__pin_module && unpin;
    conc__pins_there = can_pin && pthread_key_create(&conc__pins, unpin) == 0;
}

/* Keeps the library that contains this code loaded until conc__unpin. Returns NULL if that is not
 * possible, or not needed because the program contains the code. */
CONC__PRIVATE void *conc__pin(void)
{
    enum { NOW = 2, ONLY_IF_LOADED = 4 }; /* RTLD_NOW, RTLD_NOLOAD */
    conc__code_location here;
    if (!conc__pins_there)
        return NULL;
    if (!conc__find_code((const void *)&conc__pins, &here) || !here.file)
        return NULL;
    return conc__pin_module(here.file, NOW | ONLY_IF_LOADED);
}

CONC__PRIVATE void conc__unpin(void *pin)
{
    if (pin)
        conc__unpin_module(pin);
}
#else
CONC__PRIVATE void conc__pins_begin(void) {}
CONC__PRIVATE void *conc__pin(void) { return NULL; }
CONC__PRIVATE void conc__unpin(void *pin) { (void)pin; }
#endif

/* A map. Several jobs, the runners, each take the next element of an array and call a function with
 * it, until none is left. */
typedef struct conc__map_call {
    conc_fn *fn;
    char *args;
    size_t count, size;
    int *results;
    bool keeps_going, stop;
    conc__cancel_layer layer;
    size_t next;    /* index of the first element not yet taken */
    size_t dropped; /* number of elements taken but never passed to the function */
    int error;      /* the first error */
} conc__map_call;

/* The payload of a job for a worker. */
typedef struct conc__payload {
    conc_procs_fn *call; /* NULL: call the job's own function with its own bytes */
    const void *in;
    void *out;
    size_t in_size, out_size;
    ssize_t returned;
    conc__map_call *map; /* of a runner, which has taken `left` elements, starting at `first` */
    size_t first, left;
} conc__payload;

/* Has the running job been asked to stop? */
CONC__PRIVATE bool conc__job_cancel_requested(const conc_job *j)
{
    return (__atomic_load_n(&j->state, __ATOMIC_RELAXED) & CONC__JOB_CANCEL_REQUESTED) ||
           __atomic_load_n(&j->queue->cancel_all, __ATOMIC_RELAXED);
}

/* Has the code inside these layers of the job (NULL: none) been asked to stop? */
CONC__PRIVATE bool conc__layers_cancelled(const conc__cancel_layer *layer, const conc_job *job)
{
    for (; layer; layer = layer->outer) {
        if (__atomic_load_n(layer->cancelled, __ATOMIC_RELAXED))
            return true;
        if (layer->shields)
            return layer->until != CONC__NEVER && conc__clock() >= layer->until;
        if (layer->sender == job)
            continue;
        if (job && conc__job_cancel_requested(job))
            return true;
        job = layer->sender; /* the other layers enclose the sender */
    }
    return job && conc__job_cancel_requested(job);
}

#ifdef __linux__ /* only process pools use it */
CONC__PRIVATE bool conc__map_cancelled(const conc__map_call *m)
{
    return __atomic_load_n(&m->stop, __ATOMIC_RELAXED) ||
           conc__layers_cancelled(m->layer.outer, m->layer.sender);
}
#endif

CONC__PRIVATE bool conc__job_context_in_process(const conc__job_context *ctx)
{
    return ctx->cancel_flag;
}

/* Has the code running in ctx been asked to stop? Any thread may call this while the code is
 * waiting. */
CONC__PRIVATE bool conc__job_context_cancelled(const conc__job_context *ctx)
{
    if (!ctx->cancel_flag)
        return conc__layers_cancelled(ctx->layer, ctx->job);
    if (conc__layers_cancelled(ctx->layer, NULL))
        return true;
    for (const conc__cancel_layer *layer = ctx->layer; layer; layer = layer->outer)
        if (layer->shields)
            return false;
    return __atomic_load_n(ctx->cancel_flag, __ATOMIC_RELAXED) != 0;
}

/* Returns the time when the next of the shields around the code in ctx ends, or CONC__NEVER. */
CONC__PRIVATE int64_t conc__shield_deadline(const conc__job_context *ctx)
{
    int64_t limit = CONC__NEVER;
    for (; ctx; ctx = ctx->outer)
        for (const conc__cancel_layer *layer = ctx->layer; layer; layer = layer->outer) {
            bool is_earlier = layer->shields && layer->until < limit;
            if (is_earlier && layer->until > conc__clock())
                limit = layer->until;
        }
    return limit;
}

/* Gives up the elements that a runner has taken but not begun; rc becomes their result. */
CONC__PRIVATE void conc__range_drop(conc__payload *p, int rc)
{
    if (!p || !p->map)
        return;
    conc__map_call *m = p->map;
    for (; p->left; p->left--, p->first++) {
        m->dropped++;
        if (m->results)
            m->results[p->first] = rc;
    }
}

CONC__PRIVATE void conc__supervisor_notify(struct conc__job_queue *q);
CONC__PRIVATE bool conc__supervisor_cancel(struct conc__job_queue *q, conc_job *j);
CONC__PRIVATE int conc__supervisor_start(struct conc__supervisor *h);
CONC__PRIVATE void conc__supervisor_free(struct conc__supervisor *h);
CONC__PRIVATE void conc__supervisor_close(conc_loop *l, struct conc__job_queue *q);
CONC__PRIVATE void conc__supervisor_spin_for(struct conc__job_queue *q, const bool *over);
CONC__PRIVATE struct conc__reply_poller *conc__reply_poller_open(conc_loop *l,
                                                                 struct conc__job_queue *q);
CONC__PRIVATE void conc__reply_poller_close(conc_loop *l, struct conc__reply_poller *v);

CONC__PRIVATE void conc__job_end(conc__job_queue *q, conc_job *j, int result,
                                 const conc__job_context *ctx, bool locked);

/* Returns a value that memory is unlikely to contain unless it holds a job. */
CONC__PRIVATE uintptr_t conc__job_seal(const conc_job *j)
{
    uint64_t hash = (uint64_t)(uintptr_t)j * 0x9e3779b97f4a7c15u;
    return ((uintptr_t)(hash ^ hash >> 29) & ~(uintptr_t)CONC__JOB_BITS) | (CONC__JOB_BITS + 1);
}

/* Returns the value that replaces the seal when the job has ended. It differs from the seal in all
 * bits, so overwriting one byte of a dead job on a stack cannot make it look alive. */
CONC__PRIVATE uintptr_t conc__job_broken_seal(const conc_job *j)
{
    return ~conc__job_seal(j) & ~(uintptr_t)CONC__JOB_BITS;
}

CONC__PRIVATE uintptr_t conc__job_state(const conc_job *j)
{
    return __atomic_load_n(&j->state, __ATOMIC_ACQUIRE);
}

/* Is the job being submitted, queued or running? */
CONC__PRIVATE bool conc__job_in_use(const conc_job *j)
{
    return (conc__job_state(j) & ~(uintptr_t)CONC__JOB_BITS) == conc__job_seal(j);
}

/* Like conc__job_in_use, but for memory that may be below the stack pointer. */
CONC__UNSANITIZED CONC__PRIVATE bool conc__job_handle_in_use(const void *job)
{
    const conc_job *j = job;
    if (CONC__MSAN || conc__on_valgrind())
        conc__mark_defined(&j->state, sizeof j->state);
    uintptr_t state = __atomic_load_n(&j->state, __ATOMIC_RELAXED);
    return (state & ~(uintptr_t)CONC__JOB_BITS) == conc__job_seal(j);
}

/* Has a job ever been submitted with this handle? */
static inline bool conc__is_job(const conc_job *j)
{
    if (!j)
        return false;
    uintptr_t state = conc__job_state(j), seal = conc__job_seal(j);
    if (state & CONC__JOB_DONE)
        seal = ~seal;
    bool is_sealed = !((state ^ seal) & ~(uintptr_t)CONC__JOB_BITS);
    return is_sealed && (state & (CONC__JOB_LIVE | CONC__JOB_DONE));
}

CONC__PRIVATE void conc__shared_pools_reset(void);

CONC__PRIVATE void conc__segments_lock(void);
CONC__PRIVATE void conc__segments_unlock(void);

/* How many times the fork handlers below have run for the current fork. They are registered twice
 * if a process was forked while its parent was registering them. */
static CONC_TLS _Thread_local int conc__fork_handler_depth;

/* Holds these mutexes during a fork. Otherwise another thread could hold one, and it would stay
 * locked in the child. */
CONC__PRIVATE void conc__pools_before_fork(void)
{
    if (conc__fork_handler_depth++)
        return;
    pthread_mutex_lock(&conc__job_queues_mutex);
    pthread_mutex_lock(&conc__children_mutex);
    conc__segments_lock();
}

CONC__PRIVATE void conc__pools_after_fork(void)
{
    if (--conc__fork_handler_depth)
        return;
    conc__segments_unlock();
    pthread_mutex_unlock(&conc__children_mutex);
    pthread_mutex_unlock(&conc__job_queues_mutex);
}

CONC__PRIVATE void conc__pools_in_forked_child(void)
{
    if (conc__fork_handler_depth == 1) {
        conc__forks++;
        conc__cancel_hooks_reset();
        conc__shared_pools_reset();
    }
    conc__pools_after_fork();
}

/* Called as the key's destructor if a job calls pthread_exit. */
CONC__COLD void conc__job_exited_thread(void *value)
{
    const conc__job_context *ctx = value;
    if (!ctx->thread)
        _exit(1); /* a worker process */
    fprintf(
        stderr,
        "conc: a job of the pool \"%s\" called pthread_exit, and conc cannot notify its waiters\n",
        ctx->thread->queue->name);
    abort();
}

CONC__PRIVATE void conc__job_queues_init(void)
{
    conc__job_context_key_made =
        pthread_key_create(&conc__job_context_key, conc__job_exited_thread) == 0;
    conc__pins_begin();
    pthread_atfork(conc__pools_before_fork, conc__pools_after_fork, conc__pools_in_forked_child);
}

CONC__PRIVATE void conc__job_queues_need(void)
{
    static atomic_int once;
    conc__once(&once, conc__job_queues_init);
}

/* Returns the job running on this thread, or NULL. */
CONC__PRIVATE conc__job_context *conc__job_context_here(void)
{
    conc__job_queues_need();
    if (!conc__job_context_key_made)
        return NULL;
    return pthread_getspecific(conc__job_context_key);
}

CONC__PRIVATE conc__job_queue *conc__job_queue_new(int most, int limit)
{
    conc__job_queue *q = conc__alloc(sizeof *q);
    if (!q)
        return NULL;
    memset(q, 0, sizeof *q);
    q->max_workers = most ? most : conc__processors();
    q->limit = (size_t)limit;
    q->references = 1;
    q->forks = conc__forks;
    q->on_valgrind = conc__on_valgrind();
    pthread_mutex_init(&q->mutex, NULL);
    pthread_cond_init(&q->ended, NULL);
    conc__semaphore_open(&q->work);
    pthread_mutex_lock(&conc__job_queues_mutex);
    CONC__LIST_PREPEND(conc__job_queues, q, next, prev);
    pthread_mutex_unlock(&conc__job_queues_mutex);
    return q;
}

/* Returns the number of queued jobs, for conc_get_stats. */
CONC__PRIVATE size_t conc__jobs_queued(void)
{
    size_t n = 0;
    pthread_mutex_lock(&conc__job_queues_mutex);
    for (const conc__job_queue *q = conc__job_queues; q; q = q->next)
        if (q->forks == conc__forks)
            n += __atomic_load_n(&q->queued, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&conc__job_queues_mutex);
    return n;
}

/* Frees the job queue. The caller holds conc__job_queues_mutex. */
CONC__PRIVATE void conc__job_queue_free(conc__job_queue *q)
{
    CONC__LIST_REMOVE(conc__job_queues, q, next, prev);
    conc__supervisor_free(q->supervisor);
    /* an inherited mutex might be held by one of the parent's threads */
    if (q->forks == conc__forks) {
        conc__semaphore_close(&q->work);
        pthread_cond_destroy(&q->ended);
        pthread_mutex_destroy(&q->mutex);
    }
    for (int i = 0; i < q->thread_slots; i++)
        conc_free(q->threads[i]);
    conc_free(q->threads);
    conc_free(q->ring);
    conc_free(q->clocks);
    conc_free(q);
}

/* Closes the gaps left by withdrawn jobs. */
CONC__PRIVATE void conc__job_ring_compact(conc__job_queue *q)
{
    size_t to = q->head;
    for (size_t from = q->head; from != q->tail; from++) {
        conc_job *j = q->ring[from & (q->ring_size - 1)];
        if (!j)
            continue;
        j->slot = (unsigned)to & ~CONC__IN_BATCH;
        q->ring[to++ & (q->ring_size - 1)] = j;
    }
    q->tail = to;
}

CONC__PRIVATE bool conc__queue_clocks_reserve(conc__job_queue *q)
{
    int slots = q->clock_slots ? q->clock_slots * 2 : 2;
    if (q->clocks_used < q->clock_slots)
        return true;
    conc__queue_clock *more = CONC_REALLOC(q->clocks, (size_t)slots * sizeof *more);
    if (!more)
        return false;
    memset(more + q->clock_slots, 0, (size_t)(slots - q->clock_slots) * sizeof *more);
    q->clocks = more;
    q->clock_slots = slots;
    return true;
}

/* Makes room for one more job. on_clock: the job has a clock. Returns false if memory has run
 * out. */
CONC__PRIVATE bool conc__job_ring_reserve(conc__job_queue *q, bool on_clock)
{
    if (on_clock && !conc__queue_clocks_reserve(q))
        return false;
    if (q->tail - q->head < q->ring_size)
        return true;
    if (q->queued < q->ring_size / 2) { /* with fewer gaps the ring would soon be full again */
        conc__job_ring_compact(q);
        return true;
    }
    size_t size = q->ring_size ? q->ring_size * 2 : 64;
    conc_job **bigger = NULL;
    if (size <= SIZE_MAX / sizeof *bigger)
        bigger = conc__alloc(size * sizeof *bigger);
    if (!bigger) {
        bool has_gaps = q->queued < q->ring_size;
        if (has_gaps)
            conc__job_ring_compact(q);
        return has_gaps;
    }
    for (size_t i = q->head; i != q->tail; i++)
        bigger[i & (size - 1)] = q->ring[i & (q->ring_size - 1)];
    conc_free(q->ring);
    q->ring = bigger;
    q->ring_size = size;
    return true;
}

/* Removes one holder of the clock. If it was the last, wakes the loop so that the clock
 * advances. */
CONC__PRIVATE void conc__clock_release(conc_loop *clock)
{
    if (atomic_fetch_sub_explicit(&clock->outside.at_work, 1, memory_order_release) != 1)
        return;
    pthread_mutex_lock(&clock->shared.mutex);
    if (clock->shared.asleep && !clock->shared.closed)
        conc__wake_up(clock);
    pthread_mutex_unlock(&clock->shared.mutex);
}

CONC__COLD void conc__job_hold_clock_now(conc_job *j, bool holds)
{
    const uintptr_t bit = CONC__JOB_HOLDS_CLOCK;
    if (!holds) {
        uintptr_t before = __atomic_fetch_and(&j->state, ~bit, __ATOMIC_RELAXED);
        if (before & bit)
            conc__clock_release(j->clock);
        return;
    }
    uintptr_t state = __atomic_load_n(&j->state, __ATOMIC_RELAXED);
    while (!(state & (bit | CONC__JOB_ABANDONED)))
        if (__atomic_compare_exchange_n(&j->state, &state, state | bit, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
            atomic_fetch_add_explicit(&j->clock->outside.at_work, 1, memory_order_relaxed);
            return;
        }
}

/* Makes the job hold its clock, or release it. An abandoned job never holds one. */
static inline void conc__job_hold_clock(conc_job *j, bool holds)
{
    if (CONC__UNLIKELY(j->clock != NULL))
        conc__job_hold_clock_now(j, holds);
}

/* Returns the clock's slot, or a free one if it has none. */
CONC__PRIVATE conc__queue_clock *conc__queue_clock_find(conc__job_queue *q, const conc_loop *clock)
{
    conc__queue_clock *unused = NULL;
    for (int i = 0; i < q->clock_slots; i++) {
        conc__queue_clock *k = &q->clocks[i];
        if (k->jobs && k->clock == clock)
            return k;
        if (!k->jobs)
            unused = k;
    }
    return unused;
}

/* Makes the ring hold the clock in place of the job, which has entered it. */
CONC__COLD void conc__queue_clock_add(conc__job_queue *q, conc_job *j)
{
    conc__queue_clock *k = conc__queue_clock_find(q, j->clock);
    k->clock = j->clock;
    if (k->jobs++ == 0) {
        q->clocks_used++;
        if (!q->stalled)
            atomic_fetch_add_explicit(&k->clock->outside.at_work, 1, memory_order_relaxed);
    }
    conc__job_hold_clock(j, false);
}

/* Makes the job hold its clock itself again, because it has left the ring. */
CONC__COLD void conc__queue_clock_remove(conc__job_queue *q, conc_job *j)
{
    conc__queue_clock *k = conc__queue_clock_find(q, j->clock);
    conc__job_hold_clock(j, true);
    if (--k->jobs)
        return;
    q->clocks_used--;
    if (!q->stalled)
        conc__clock_release(k->clock);
}

CONC__PRIVATE void conc__job_ring_put(conc__job_queue *q, conc_job *j, size_t at)
{
    j->slot = (unsigned)at & ~CONC__IN_BATCH;
    q->ring[at & (q->ring_size - 1)] = j;
    __atomic_store_n(&q->queued, q->queued + 1, __ATOMIC_RELAXED);
    if (CONC__UNLIKELY(j->clock != NULL))
        conc__queue_clock_add(q, j);
}

/* Updates the counts after a job has left the ring. */
static inline void conc__job_ring_removed(conc__job_queue *q, conc_job *j)
{
    __atomic_store_n(&q->queued, q->queued - 1, __ATOMIC_RELAXED);
    if (CONC__UNLIKELY(j->clock != NULL))
        conc__queue_clock_remove(q, j);
}

CONC__PRIVATE void conc__job_ring_push(conc__job_queue *q, conc_job *j)
{
    conc__job_ring_put(q, j, q->tail++);
}

/* Puts back a job that was in the ring and could not be run. */
CONC__PRIVATE void conc__job_ring_push_front(conc__job_queue *q, conc_job *j)
{
    conc__job_ring_put(q, j, --q->head);
}

/* Puts a new job into the ring. From then on, other threads can wait for it. */
CONC__PRIVATE void conc__job_queue_accept(conc__job_queue *q, conc_job *j)
{
    __atomic_store_n(&j->state, j->state | CONC__JOB_LIVE, __ATOMIC_RELEASE);
    conc__job_ring_push(q, j);
}

/* Queues the jobs of waiting submit calls while there is room under the limit. */
CONC__PRIVATE void conc__job_queue_admit(conc__job_queue *q)
{
    while (q->submitters && q->queued < q->limit) {
        conc__waiter *w = q->submitters;
        conc_job *j = w->item;
        if (!conc__job_ring_reserve(q, j->clock))
            break;
        conc__job_queue_accept(q, j);
        conc__waiter_wake(w, 0);
    }
}

CONC__PRIVATE conc_job *conc__job_ring_first(conc__job_queue *q)
{
    while (q->head != q->tail && !q->ring[q->head & (q->ring_size - 1)])
        q->head++;
    if (q->head == q->tail)
        return NULL;
    return q->ring[q->head & (q->ring_size - 1)];
}

CONC__PRIVATE conc_job *conc__job_ring_pop(conc__job_queue *q)
{
    conc_job *j = conc__job_ring_first(q);
    if (j) {
        q->head++;
        conc__job_ring_removed(q, j);
    }
    return j;
}

/* Is no job queued or running? A thread that is starting will find no job. The caller holds the
 * mutex. */
CONC__PRIVATE bool conc__job_queue_is_idle(const conc__job_queue *q)
{
    return !q->queued && q->idle + q->starting == q->started;
}

/* Wakes the closer if no job is queued or running. */
CONC__PRIVATE void conc__job_queue_notify_closer(conc__job_queue *q)
{
    if (q->closer && conc__job_queue_is_idle(q))
        conc__waiter_wake(q->closer, 0);
}

/* Withdraws the job if no thread has begun it. Returns whether it did. The caller holds the
 * mutex. */
CONC__PRIVATE bool conc__job_take_back(conc__job_queue *q, conc_job *j)
{
    if (j->slot == CONC__NO_SLOT)
        return false;
    if (j->slot & CONC__IN_BATCH) {
        unsigned at = j->slot & ~CONC__IN_BATCH;
        conc__worker_thread *t = q->threads[at / CONC__BATCH];
        conc_job *expected = j;
        if (!atomic_compare_exchange_strong(&t->batch[at % CONC__BATCH], &expected, NULL))
            return false;
        j->slot = CONC__NO_SLOT; /* the job may outlive that thread */
        return true;
    }
    size_t from_head = (j->slot - (unsigned)q->head) & ~CONC__IN_BATCH;
    conc_job **at = &q->ring[j->slot & (q->ring_size - 1)];
    if (from_head >= q->tail - q->head || *at != j)
        return false;
    *at = NULL;
    conc__job_ring_removed(q, j);
    conc__job_queue_admit(q);
    return true;
}

/* ---- >>jobs --------------------------------------------------------------------------------- */

CONC__PRIVATE int conc__worker_thread_start(conc__job_queue *q);
CONC__PRIVATE void conc__job_queue_update_stalled(conc__job_queue *q);
CONC__PRIVATE void conc__abandoned_release(conc_job *j);
CONC__PRIVATE void conc__original_mask(sigset_t *mask);

/* Does the job belong to a pool of this process? In a forked child the job that forked continues,
 * but its pool and clock are the parent's. */
CONC__PRIVATE bool conc__job_context_is_own(const conc__job_context *ctx)
{
    return ctx->thread && ctx->thread->queue->forks == conc__forks;
}

/* Returns the clock of the job in ctx, or NULL. */
CONC__PRIVATE conc_loop *conc__job_context_clock(const conc__job_context *ctx)
{
    return conc__job_context_is_own(ctx) ? ctx->job->clock : NULL;
}

/* Returns the clock for jobs that the caller submits, or NULL. */
CONC__PRIVATE conc_loop *conc__clock_here(void)
{
    conc_loop *l = conc__here;
    if (l)
        return l->clock.is_virtual ? l : NULL;
    const conc__job_context *ctx = conc__job_context_here();
    conc_loop *clock = ctx ? conc__job_context_clock(ctx) : NULL;
    if (!clock || (conc__job_state(ctx->job) & CONC__JOB_ABANDONED))
        return NULL;
    return clock;
}

CONC__PRIVATE void conc__job_init(conc_job *j, conc_fn *fn, void *arg, conc__payload *payload,
                                  uintptr_t flags)
{
    conc__locals **locals = conc__locals_here();
    j->fn = fn;
    j->arg = arg;
    j->waiters = NULL;
    j->payload = payload;
    j->locals = locals ? *locals : NULL;
    if (j->locals)
        __atomic_fetch_add(&j->locals->references, 1, __ATOMIC_RELAXED);
    j->clock = conc__clock_here();
    if (j->clock)
        conc_loop_hold(j->clock);
    __atomic_store_n(&j->state, conc__job_seal(j) | flags, __ATOMIC_RELAXED);
}

/* Undoes conc__job_init if the job was not accepted. */
CONC__PRIVATE void conc__job_undo_init(conc_job *j)
{
    conc__locals_release(j->locals);
    if (j->clock)
        conc_loop_release(j->clock);
    __atomic_store_n(&j->state, 0, __ATOMIC_RELAXED);
}

/* Copies the outcome of a job that has ended. */
CONC__PRIVATE void conc__job_outcome_read(conc__job_outcome *a, const conc_job *j, uintptr_t state)
{
    a->result = j->result;
    a->has_text = state & CONC__JOB_HAS_TEXT;
    if (a->has_text)
        memcpy(a->text, j->text, sizeof a->text);
}

/* Marks the job DONE, so its memory belongs to the owner again. Returns the waiters; their outcomes
 * are set, but they have yet to be notified. The caller holds the mutex. */
CONC__PRIVATE conc__waiter *conc__job_publish(conc_job *j, uintptr_t state)
{
    conc__waiter *first = j->waiters, *w = first;
    if (first)
        do {
            conc__job_outcome_read(w->outcome, j, state);
            conc__waiter_set_result(w, 0);
            w = w->next;
        } while (w != first);
    __atomic_store_n(&j->state, state, __ATOMIC_RELEASE);
    return first;
}

CONC__PRIVATE void conc__waiters_notify(conc__waiter *first)
{
    if (!first)
        return;
    conc__waiter *w = first;
    do {
        conc__waiter *next = w->next; /* a notified waiter might be gone */
        conc__waiter_notify(w);
        w = next;
    } while (w != first);
}

/* Drops the clock of a job that has ended. at_work: the job was holding it. */
CONC__PRIVATE void conc__clock_drop(conc_loop *clock, bool at_work)
{
    if (at_work)
        conc__clock_release(clock);
    conc_loop_release(clock);
}

/* Drops the clock of the thread's last job, once the thread has looked for its next job. The caller
 * holds the mutex. */
CONC__PRIVATE void conc__worker_thread_drop_clock(conc__worker_thread *t)
{
    conc_loop *clock = t->clock;
    t->clock = NULL;
    if (CONC__UNLIKELY(clock != NULL))
        conc__clock_drop(clock, t->holds_clock);
}

/* Drops the clock of a job that has ended, once its waiters have been notified. If the job's thread
 * is about to look for its next job, leaves that to the thread. ctx: where the job ran; NULL: it
 * was withdrawn. */
CONC__COLD void conc__job_drop_clock(const conc__job_context *ctx, conc_loop *clock, bool at_work)
{
    if (!ctx || !ctx->thread || !ctx->thread->finishing) {
        conc__clock_drop(clock, at_work);
        return;
    }
    ctx->thread->clock = clock;
    ctx->thread->holds_clock = at_work;
}

/* Ends a job that ran in ctx (NULL: it was withdrawn). locked: the caller holds the mutex. */
CONC__PRIVATE void conc__job_end(conc__job_queue *q, conc_job *j, int result,
                                 const conc__job_context *ctx, bool locked)
{
    conc_loop *clock = j->clock;
    uintptr_t state = conc__job_state(j), done = conc__job_broken_seal(j) | CONC__JOB_DONE;
    conc__locals_release(ctx ? ctx->locals : j->locals);
    j->result = result;
    if (ctx && ctx->text_rc == result && result < 0) {
        memcpy(j->text, ctx->text, sizeof j->text);
        done |= CONC__JOB_HAS_TEXT;
    }
    bool has_waiters = state & CONC__JOB_WAITED;
    if (has_waiters || !__atomic_compare_exchange_n(&j->state, &state, done, false,
                                                    __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
        if (!locked)
            conc__lock_briefly(&q->mutex);
        state = conc__job_state(j);
        if (state & CONC__JOB_ABANDONED) {
            q->abandoned--;
            conc__job_queue_update_stalled(q);
        }
        conc__waiter *waiters = conc__job_publish(j, done);
        if (!locked)
            pthread_mutex_unlock(&q->mutex);
        conc__waiters_notify(waiters);
    }
    if (CONC__UNLIKELY(clock != NULL))
        conc__job_drop_clock(ctx, clock, state & CONC__JOB_HOLDS_CLOCK);
    if (state & CONC__JOB_OWNED)
        conc__abandoned_release(j);
}

CONC__PRIVATE void conc__job_context_enter(conc__job_context *ctx, conc_job *j)
{
    ctx->job = j;
    ctx->locals = j->locals;
    ctx->layer = NULL;
    ctx->text_rc = 0;
}

/* Runs a job. last: it is the last of the thread's batch, and the thread checks the queue next. */
CONC__PRIVATE void conc__job_run(conc__job_queue *q, conc__job_context *ctx, conc_job *j, bool last)
{
    conc__job_context_enter(ctx, j);
    int rc = j->fn(j->arg);
    if (last) { /* before the job ends: its waiter may immediately submit the next one */
        ctx->thread->finishing = 1;
        __atomic_fetch_add(&q->finishing, 1, __ATOMIC_RELAXED);
    }
    conc__job_end(q, j, rc, ctx, false);
}

/* Makes the jobs running on a thread hold their clocks, or release them while the thread is waiting
 * or in conc_block. */
CONC__PRIVATE void conc__job_contexts_hold_clocks(conc__job_context *ctx, bool at_work)
{
    for (; ctx && conc__job_context_is_own(ctx); ctx = ctx->outer)
        conc__job_hold_clock(ctx->job, at_work);
}

/* Does any job running on the thread of ctx have a clock? */
CONC__PRIVATE bool conc__job_context_has_clock(const conc__job_context *ctx)
{
    for (; ctx; ctx = ctx->outer)
        if (conc__job_context_clock(ctx))
            return true;
    return false;
}

/* A job running inside another that is waiting for it. */
typedef struct conc__nested_job {
    conc__cancel_hook hook;
    conc__waiter waiter;
} conc__nested_job;

CONC__PRIVATE void conc__waiter_give_up(conc__waiter *w);

CONC__PRIVATE void conc__nested_job_cancel(conc__cancel_hook *s)
{
    conc__waiter_give_up(&((conc__nested_job *)(void *)s)->waiter);
}

/* Runs the job inside another job of the same thread. inside->waiter is in the job's list. */
CONC__PRIVATE void conc__job_run_nested(conc__job_queue *q, conc__job_context *outer, conc_job *j,
                                        conc__nested_job *inside)
{
    conc__job_context ctx = {.outer = outer, .thread = outer->thread};
    pthread_setspecific(conc__job_context_key, &ctx);
    conc__job_context_enter(&ctx, j);
    conc__cancel_hook_add(&inside->hook, outer, conc__nested_job_cancel);
    int rc = j->fn(j->arg);
    conc__cancel_hook_remove(&inside->hook);
    conc__job_end(q, j, rc, &ctx, false);
    pthread_setspecific(conc__job_context_key, outer);
}

/* Returns the caller's job context if the caller is in a job of this job queue, or in a run inside
 * one; otherwise NULL. */
CONC__PRIVATE conc__job_context *conc__job_context_in(const conc__job_queue *q)
{
    conc__job_context *ctx = conc__job_context_here();
    if (!ctx || !ctx->thread)
        return NULL;
    return ctx->thread->queue == q ? ctx : NULL;
}

/* Returns the maximum number of threads; the caller holds the mutex. A thread that is waiting in a
 * run inside a job does not count, because its wait may depend on this job queue alone. While there
 * are such threads, a thread that is waiting for another job does not count either, because one of
 * them might have that job. A thread with an abandoned job counts. */
CONC__PRIVATE int conc__job_queue_max_threads(const conc__job_queue *q)
{
    int most = q->max_workers + q->nested;
    if (q->nested)
        most += q->waiting;
    return most;
}

/* Records whether a task had to wake the thread to which it has just handed work. If the thread was
 * awake, the answer may arrive very soon, so the loop spins before sleeping. */
CONC__PRIVATE void conc__has_woken(bool woke)
{
    if (conc__here)
        conc__here->outside.woke = woke;
}

/* Makes sure that a thread takes the queued jobs. Returns an error if none can. The caller holds
 * the mutex. */
CONC__PRIVATE int conc__job_queue_wake_worker(conc__job_queue *q)
{
    if (q->supervisor) {
        conc__supervisor_notify(q);
        return 0;
    }
    conc__has_woken(false);
    if (!q->queued)
        return 0;
    int finishing = __atomic_load_n(&q->finishing, __ATOMIC_RELAXED);
    if (q->wakes_pending + q->starting + q->spinning + finishing > 0)
        return 0; /* that thread wakes another one if jobs are left */
    conc__has_woken(true);
    if (q->sleeping > q->wakes_pending) {
        q->wakes_pending++;
        q->posts_due++;
        return 0;
    }
    int rc = 0;
    if (q->started < conc__job_queue_max_threads(q))
        rc = conc__worker_thread_start(q);
    q->start_refused = rc != 0;
    conc__job_queue_update_stalled(q);
    bool others_can_come = q->started > q->abandoned + q->nested + q->waiting;
    if (others_can_come)
        return 0;
    return rc;
}

/* Updates `stalled`; the caller holds the mutex. While every thread is waiting, is in conc_block,
 * or has an abandoned job, queued jobs do not hold their clocks. */
CONC__PRIVATE void conc__job_queue_update_stalled(conc__job_queue *q)
{
    /* number of threads that could run queued jobs, or count in q->blocking */
    int able = q->max_workers - q->abandoned;
    if (!q->nested)
        able -= q->waiting;
    int there = q->started - q->abandoned - q->nested - q->waiting;
    if (q->start_refused && there < able)
        able = there;
    bool stalled = q->blocking + q->abandoned > 0 && q->blocking >= able;
    if (q->stalled == stalled)
        return;
    q->stalled = stalled;
    for (int i = 0; i < q->clock_slots; i++) {
        const conc__queue_clock *k = &q->clocks[i];
        if (k->jobs && stalled)
            conc__clock_release(k->clock);
        else if (k->jobs)
            atomic_fetch_add_explicit(&k->clock->outside.at_work, 1, memory_order_relaxed);
    }
}

/* Puts back the jobs in the thread's batch that it has not begun, because it will be busy for a
 * while. The caller holds the mutex. */
CONC__PRIVATE void conc__worker_thread_return_batch(conc__job_queue *q, conc__worker_thread *t)
{
    /* the jobs might have ended: do not look at their clocks */
    bool on_clock = q->clock_slots > 0;
    for (int i = t->batch_count - 1; i >= 0 && conc__job_ring_reserve(q, on_clock); i--) {
        conc_job *j = atomic_exchange_explicit(&t->batch[i], NULL, memory_order_acquire);
        if (j)
            conc__job_ring_push_front(q, j);
    }
}

CONC__PRIVATE void conc__job_queue_return_batches(conc__job_queue *q)
{
    for (int i = 0; i < q->thread_slots; i++)
        if (q->threads[i])
            conc__worker_thread_return_batch(q, q->threads[i]);
}

/* If more threads may start, puts the jobs that other threads have taken but not begun back in the
 * queue for them. The caller holds the mutex. */
CONC__PRIVATE void conc__job_queue_share_batches(conc__job_queue *q)
{
    if (q->started < conc__job_queue_max_threads(q))
        conc__job_queue_return_batches(q);
}

/* Counts a thread of this job queue that is about to wait (change: 1) or has finished waiting (-1).
 * The caller holds the mutex. own: the thread's job context; NULL: the caller is not such a thread.
 * Returns an error if no thread is left to run queued jobs. */
CONC__PRIVATE int conc__job_queue_count_waiting(conc__job_queue *q, const conc__job_context *own,
                                                const conc_loop *l, int change)
{
    if (!own)
        return 0;
    bool was_nested = own->thread->nested > 0;
    if (l)
        own->thread->nested += change;
    else
        q->waiting += change;
    q->nested += (own->thread->nested > 0) - was_nested;
    conc__job_queue_update_stalled(q);
    int rc = 0;
    if (change > 0) {
        conc__worker_thread_return_batch(q, own->thread);
        conc__job_queue_share_batches(q);
        if (q->queued)
            rc = conc__job_queue_wake_worker(q);
    }
    for (; q->posts_due; q->posts_due--)
        conc__semaphore_post(&q->work);
    return rc;
}

CONC__PRIVATE void conc__job_queue_uncount_waiting(conc__job_queue *q, const conc__job_context *own,
                                                   const conc_loop *l)
{
    if (!own)
        return;
    conc__lock_briefly(&q->mutex);
    conc__job_queue_count_waiting(q, own, l, -1);
    pthread_mutex_unlock(&q->mutex);
}

/* Unlocks before waking threads, which would otherwise block on the mutex. The caller ensures that
 * the job queue is not freed before this returns. */
CONC__PRIVATE void conc__job_queue_unlock(conc__job_queue *q)
{
    int calls = q->posts_due;
    q->posts_due = 0;
    pthread_mutex_unlock(&q->mutex);
    for (; calls; calls--)
        conc__semaphore_post(&q->work);
}

/* Queues the job. Returns 0, or an error that conc_last_error describes. The caller holds the
 * mutex. */
CONC__PRIVATE int conc__job_queue_add(conc__job_queue *q, conc_job *j)
{
    if (!conc__job_ring_reserve(q, j->clock))
        return conc__own_error(-ENOMEM);
    int rc = 0;
    if (q->supervisor)
        rc = conc__supervisor_start(q->supervisor);
    if (rc)
        return rc;
    conc__job_queue_accept(q, j);
    rc = conc__job_queue_wake_worker(q);
    if (rc && conc__job_take_back(q, j)) {
        conc__job_hold_clock(j, false);
        return conc__own_error(rc);
    }
    return 0;
}

/* Is the waiter still waiting? If so, locks its job queue. The caller holds
 * conc__job_queues_mutex. */
CONC__PRIVATE bool conc__lock_if_waiting(const conc__waiter *w, conc__job_queue *q)
{
    if (__atomic_load_n(&w->woken, __ATOMIC_ACQUIRE))
        return false;
    conc__lock_briefly(&q->mutex);
    if (!__atomic_load_n(&w->woken, __ATOMIC_ACQUIRE))
        return true;
    pthread_mutex_unlock(&q->mutex);
    return false;
}

CONC__PRIVATE bool conc__submit_cancel(conc__wait *wait)
{
    conc__waiter *w = wait->item;
    conc__job_queue *q = (conc__job_queue *)(uintptr_t)wait->on;
    pthread_mutex_lock(&conc__job_queues_mutex);
    bool waits = conc__lock_if_waiting(w, q);
    if (waits) {
        conc__waiter_complete(w, -ECANCELED);
        pthread_mutex_unlock(&q->mutex);
    }
    pthread_mutex_unlock(&conc__job_queues_mutex);
    return waits;
}

static const conc__wait_kind conc__waits_for_room = {.what = "waits for room in a pool's queue",
                                                     .cancel = conc__submit_cancel};

/* Enters a pool: its job queue is not freed before conc__pool_leave. Returns the job queue, or NULL
 * with an error in *rc. */
CONC__PRIVATE conc__job_queue *conc__pool_enter(conc__job_queue **queue, unsigned *users, int *rc)
{
    unsigned before = __atomic_fetch_add(users, 1, __ATOMIC_ACQUIRE);
    conc__job_queue *q = NULL;
    *rc = -EPIPE;
    if (!(before & CONC__POOL_CLOSED)) {
        q = __atomic_load_n(queue, __ATOMIC_ACQUIRE);
        *rc = q ? 0 : -EINVAL;
    }
    if (q && q->forks != conc__forks)
        *rc = -EPERM;
    if (*rc == 0)
        return q;
    __atomic_fetch_sub(users, 1, __ATOMIC_RELEASE);
    return NULL;
}

CONC__PRIVATE void conc__pool_leave(unsigned *users)
{
    __atomic_fetch_sub(users, 1, __ATOMIC_RELEASE);
}

/* Submits an initialized job and leaves the pool. Returns an error if the job was refused. A job of
 * this job queue, or a run inside one, never waits here, because other jobs might be waiting for
 * it; the queue may exceed its limit instead. */
CONC__PRIVATE int conc__job_queue_submit(conc__job_queue *q, unsigned *users, conc_loop *l,
                                         conc_job *j, const char *call)
{
    int rc;
    j->queue = q;
    conc__lock_briefly(&q->mutex);
    bool full = q->limit && q->queued >= q->limit, own = false;
    if (full || q->closing)
        own = conc__job_context_in(q);
    if (q->closing && !own) {
        rc = -EPIPE;
    } else if (!full || own) {
        rc = conc__job_queue_add(q, j);
    } else if (l && !l->self) {
        rc = -EPERM;
    } else {
        conc__waiter w = {.item = j};
        conc__waiter_add(&q->submitters, &w);
        conc__pool_leave(users);
        return conc__wait_result(
            conc__wait_outside(l, &w, &conc__waits_for_room, q, &q->mutex, NULL));
    }
    conc__job_queue_unlock(q);
    conc__pool_leave(users);
    if (rc == -EPERM)
        return conc__caller_refused(call);
    if (rc == -EPIPE)
        return conc__own_error(rc);
    return rc;
}

/* Ends a queued job, asks a running one to stop, or kills it. The caller holds the mutex. */
CONC__PRIVATE void conc__job_request_cancel(conc__job_queue *q, conc_job *j)
{
    bool ended;
    if (q->supervisor)
        ended = conc__supervisor_cancel(q, j);
    else
        ended = conc__job_take_back(q, j);
    if (ended) {
        conc__job_end(q, j, -ECANCELED, NULL, true);
        conc__job_queue_notify_closer(q);
        return;
    }
    uintptr_t state = conc__job_state(j);
    while (!(state & CONC__JOB_DONE))
        if (__atomic_compare_exchange_n(&j->state, &state, state | CONC__JOB_CANCEL_REQUESTED,
                                        false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return;
}

/* Was this process forked after the job was submitted and before it ended? If so, the job never
 * ends in this process. */
CONC__PRIVATE bool conc__job_is_inherited(const conc_job *j)
{
    if (!conc__forks)
        return false;
    bool own = false;
    pthread_mutex_lock(&conc__job_queues_mutex);
    for (const conc__job_queue *q = conc__job_queues; q && !own; q = q->next)
        own = q == j->queue && q->forks == conc__forks;
    bool ended = conc__job_state(j) & CONC__JOB_DONE; /* if so, its pool might have been freed */
    pthread_mutex_unlock(&conc__job_queues_mutex);
    return !own && !ended;
}

/* Adds a waiter to the job's list. Waiters that have given up follow the others. The caller holds
 * the mutex. */
CONC__PRIVATE void conc__job_add_waiter(conc_job *j, conc__waiter *w)
{
    bool goes_ahead = !w->gives_up && j->waiters && j->waiters->prev->gives_up;
    conc__waiter_add(&j->waiters, w);
    if (goes_ahead)
        j->waiters = w;
}

/* Does a waiter that has not given up want the result? The caller holds the mutex. */
CONC__PRIVATE bool conc__job_is_wanted(const conc_job *j)
{
    return j->waiters && !j->waiters->gives_up;
}

/* Cancels the job. If `alone` is set, does so only if no waiter wants its result. */
CONC__PRIVATE int conc__job_cancel(conc_job *j, bool alone)
{
    int rc = -EALREADY;
    pthread_mutex_lock(&conc__job_queues_mutex);
    if (!(conc__job_state(j) & CONC__JOB_DONE)) {
        conc__job_queue *q = j->queue;
        conc__lock_briefly(&q->mutex);
        if (!(conc__job_state(j) & CONC__JOB_DONE)) {
            if (!alone || !conc__job_is_wanted(j))
                conc__job_request_cancel(q, j);
            rc = 0;
        }
        pthread_mutex_unlock(&q->mutex);
    }
    pthread_mutex_unlock(&conc__job_queues_mutex);
    return rc;
}

CONC_API int conc_job_cancel(conc_job *j)
{
    if (!conc__is_job(j))
        return conc__misused(-EINVAL, __func__, "no job was submitted with this handle", NULL);
    if (conc__job_is_inherited(j))
        return conc__own_error(-EPERM);
    int rc = conc__job_cancel(j, false);
    if (rc)
        return conc__own_error(rc);
    conc__run_cancel_hooks();
    return 0;
}

CONC_API bool conc_job_done(const conc_job *j)
{
    return conc__is_job(j) && (conc__job_state(j) & CONC__JOB_DONE);
}

CONC_API bool conc_job_cancelled(void)
{
    const conc__job_context *ctx = conc__job_context_here();
    return ctx && conc__job_context_cancelled(ctx);
}

/* Cancels the waiter, and the job unless other waiters want its result. Uses the waiter's own
 * pointer to the job queue, because the job might be gone. */
CONC__PRIVATE void conc__waiter_give_up(conc__waiter *w)
{
    conc_job *j = w->item;
    pthread_mutex_lock(&conc__job_queues_mutex);
    if (conc__lock_if_waiting(w, w->queue)) {
        w->gives_up = true;
        conc__waiter_remove(w);
        conc__job_add_waiter(j, w);
        if (!conc__job_is_wanted(j))
            conc__job_request_cancel(w->queue, j);
        pthread_mutex_unlock(&w->queue->mutex);
    }
    pthread_mutex_unlock(&conc__job_queues_mutex);
}

/* Passes the stop request on to the job; the wait continues until the job ends. */
CONC__PRIVATE bool conc__job_wait_cancel(conc__wait *wait)
{
    conc__waiter *w = wait->item;
    if (w->stop)
        __atomic_store_n(w->stop, true, __ATOMIC_RELAXED);
    conc__waiter_give_up(w);
    if (w->loop) /* else conc__run_cancel_hooks has called this */
        conc__run_cancel_hooks();
    return false;
}

static const conc__wait_kind conc__waits_for_job = {.what = "waits for a job",
                                                    .cancel = conc__job_wait_cancel};

/* On a thread of the job's queue: runs the job if no thread has begun it. Returns whether it
 * did. */
CONC__PRIVATE bool conc__job_run_if_queued(conc__job_context *ctx, conc_job *j,
                                           conc__job_outcome *outcome)
{
    conc__job_queue *q = ctx->thread->queue;
    conc__nested_job inside = {.waiter = {.item = j, .queue = q, .outcome = outcome}};
    conc__lock_briefly(&q->mutex);
    bool mine = !(conc__job_state(j) & CONC__JOB_DONE) && conc__job_take_back(q, j);
    if (mine) {
        __atomic_fetch_or(&j->state, CONC__JOB_WAITED, __ATOMIC_RELAXED);
        conc__job_add_waiter(j, &inside.waiter);
    }
    pthread_mutex_unlock(&q->mutex);
    if (mine)
        conc__job_run_nested(q, ctx, j, &inside);
    return mine;
}

/* Waits for the job, with the given kind of wait. Returns the wait's result; if it is 0, the job
 * has ended, and its outcome is in *w->outcome. */
CONC__SWITCHES int conc__job_wait_as(conc_loop *l, conc_job *j, conc__waiter *w,
                                     const conc__wait_kind *kind)
{
    pthread_mutex_lock(&conc__job_queues_mutex);
    if (!(conc__job_state(j) & CONC__JOB_DONE)) {
        conc__job_queue *q = j->queue;
        conc__lock_briefly(&q->mutex);
        if (!(__atomic_fetch_or(&j->state, CONC__JOB_WAITED, __ATOMIC_ACQ_REL) & CONC__JOB_DONE)) {
            conc__job_context *own = conc__job_context_in(q); /* if not NULL, q outlives the wait */
            int rc = conc__job_queue_count_waiting(q, own, l, 1);
            if (rc && conc__job_take_back(q, j)) {
                conc__job_end(q, j, rc, NULL, true);
                conc__job_outcome_read(w->outcome, j, conc__job_state(j));
                conc__job_queue_count_waiting(q, own, l, -1);
                pthread_mutex_unlock(&q->mutex);
                pthread_mutex_unlock(&conc__job_queues_mutex);
                return 0;
            }
            struct conc__reply_poller *poller = NULL;
            w->item = j;
            w->queue = q;
            w->is_counted = own;
            if (q->supervisor && l) {
                poller = conc__reply_poller_open(l, q);
            } else if (q->supervisor) {
                w->polls_queue = q;
                q->references++;
            }
            conc__job_add_waiter(j, w);
            rc = conc__wait_outside(l, w, kind, j, &q->mutex, &conc__job_queues_mutex);
            conc__job_queue_uncount_waiting(q, own, l);
            conc__reply_poller_close(l, poller);
            return rc;
        }
        pthread_mutex_unlock(&q->mutex);
    }
    conc__job_outcome_read(w->outcome, j, conc__job_state(j));
    pthread_mutex_unlock(&conc__job_queues_mutex);
    return 0;
}

/* Waits until the job has ended. *stop (NULL: none) is set if the caller is cancelled. */
CONC__PRIVATE void conc__job_wait(conc_loop *l, conc_job *j, bool *stop, conc__job_outcome *outcome)
{
    conc__job_context *ctx = l ? NULL : conc__job_context_in(j->queue);
    if (ctx && conc__job_run_if_queued(ctx, j, outcome))
        return;
    bool gives_up = l && l->self->pending;
    if (gives_up) {
        if (stop)
            __atomic_store_n(stop, true, __ATOMIC_RELAXED);
        conc__job_cancel(j, true);
        conc__run_cancel_hooks();
    }
    conc__waiter w = {.stop = stop, .outcome = outcome, .gives_up = gives_up};
    conc__job_wait_as(l, j, &w, &conc__waits_for_job);
}

/* Sets the caller's latest error from a job's outcome, and returns the job's result. */
CONC__PRIVATE int conc__job_result(conc_loop *l, const conc__job_outcome *o)
{
    const char *text = o->has_text ? o->text : NULL;
    if (l && o->result < 0)
        conc__set_error(l->self, o->result, text, (conc__source){NULL, NULL});
    if (l)
        return o->result;
    if (text)
        return conc_fail(o->result, "%s", text);
    return conc__wait_result(o->result);
}

/* Returns 0 if the caller may wait for the job, which has not ended, or an error. */
CONC__PRIVATE int conc__job_may_wait(const conc_loop *l, const conc_job *j, const char *call)
{
    if (l && !l->self)
        return conc__caller_refused(call);
    for (conc__job_context *ctx = conc__job_context_here(); ctx; ctx = ctx->outer)
        if (ctx->job == j)
            return conc__misused(-EDEADLK, call, "a job would wait for itself", NULL);
    if (conc__job_is_inherited(j))
        return conc__own_error(-EPERM);
    return 0;
}

CONC_API CONC__CALLED int conc_job_wait(conc_job *j, int *result)
{
    conc__job_outcome outcome;
    if (!conc__is_job(j))
        return conc__misused(-EINVAL, __func__, "no job was submitted with this handle", NULL);
    bool was_done = conc__job_state(j) & CONC__JOB_DONE;
    int rc = 0;
    if (!was_done)
        rc = conc__job_may_wait(conc__here, j, __func__);
    if (rc)
        return rc;
    conc_loop *l = conc__of_task();
    if (was_done)
        conc__job_outcome_read(&outcome, j, conc__job_state(j));
    else
        conc__job_wait(l, j, NULL, &outcome);
    if (was_done && l)
        conc__spend_budget(l);
    rc = conc__job_result(l, &outcome);
    if (result)
        *result = rc;
    return 0;
}

/* ---- >>threads ------------------------------------------------------------------------------ */

CONC__PRIVATE void conc__worker_thread_assign(conc__worker_thread *t, unsigned slot, conc_job *j)
{
    j->slot = CONC__IN_BATCH | ((unsigned)t->number * CONC__BATCH + slot);
    atomic_store_explicit(&t->batch[slot], j, memory_order_release);
}

/* Returns how many jobs a thread takes at a time: several only if many are queued and all threads
 * are busy. A thread that becomes free steals jobs from batches before it sleeps; a sleeping or
 * unstarted one would not. */
CONC__PRIVATE size_t conc__job_queue_batch_size(const conc__job_queue *q)
{
    bool others_come = q->sleeping > q->wakes_pending || q->spinning;
    if (q->limit || others_come || q->started < conc__job_queue_max_threads(q))
        return 1;
    size_t n = q->queued / (2 * (size_t)q->started);
    if (n < 1)
        return 1;
    return n < CONC__BATCH ? n : CONC__BATCH;
}

/* Moves jobs from the queue into the thread's batch. Returns false if none is queued. */
CONC__PRIVATE bool conc__worker_thread_take_batch(conc__job_queue *q, conc__worker_thread *t)
{
    size_t n = conc__job_queue_batch_size(q);
    unsigned i = 0;
    while (i < n) {
        conc_job *j = conc__job_ring_pop(q);
        if (!j)
            break;
        conc__worker_thread_assign(t, i++, j);
        /* the job may block the thread while the clock advances: leave the rest in the queue */
        if (j->clock)
            break;
    }
    t->batch_count = (int)i;
    if (i)
        conc__job_queue_admit(q);
    return i > 0;
}

/* Takes a job that another thread has in its batch but has not begun. */
CONC__PRIVATE bool conc__worker_thread_steal(conc__job_queue *q, conc__worker_thread *t)
{
    for (int n = 0; n < q->thread_slots; n++) {
        conc__worker_thread *other = q->threads[n];
        for (int i = 0; i < CONC__BATCH && other && other != t; i++) {
            _Atomic(conc_job *) *at = &other->batch[i];
            conc_job *j = atomic_load_explicit(at, memory_order_relaxed);
            if (j)
                j = atomic_exchange_explicit(at, NULL, memory_order_acquire);
            if (j) {
                conc__worker_thread_assign(t, 0, j);
                t->batch_count = 1;
                return true;
            }
        }
    }
    return false;
}

/* Spins briefly before sleeping, if no other thread of the job queue is spinning. */
CONC__PRIVATE void conc__worker_thread_spin(conc__job_queue *q)
{
    bool found = false;
    if (q->spinning || !conc__should_spin(&q->misses))
        return;
    q->spinning++;
    pthread_mutex_unlock(&q->mutex);
    int64_t start = conc__clock();
    do {
        for (int i = 0; i < 32 && !found; i++) {
            conc__relax();
            found = __atomic_load_n(&q->queued, __ATOMIC_RELAXED) > 0;
        }
    } while (!found && conc__clock() - start < CONC__PATIENCE);
    conc__lock_briefly(&q->mutex);
    q->spinning--;
    if (found)
        q->misses = 0;
}

CONC__PRIVATE void conc__worker_thread_sleep(conc__job_queue *q)
{
    q->sleeping++;
    pthread_mutex_unlock(&q->mutex);
    conc__semaphore_wait(&q->work);
    conc__lock_briefly(&q->mutex);
    q->sleeping--;
    q->wakes_pending--;
}

CONC__PRIVATE bool conc__worker_thread_fill_batch(conc__job_queue *q, conc__worker_thread *t)
{
    return conc__worker_thread_take_batch(q, t) || conc__worker_thread_steal(q, t);
}

/* Waits for jobs. Returns false if the thread must exit, because the job queue is ending or there
 * are too many threads. The caller holds the mutex. */
CONC__PRIVATE bool conc__worker_thread_next(conc__job_queue *q, conc__worker_thread *t)
{
    while (q->started <= conc__job_queue_max_threads(q) && !conc__worker_thread_fill_batch(q, t)) {
        if (q->stopping)
            return false;
        q->idle++;
        conc__job_queue_notify_closer(q);
        conc__worker_thread_drop_clock(t);
        conc__worker_thread_spin(q);
        if (!q->queued && !q->stopping)
            conc__worker_thread_sleep(q);
        q->idle--;
    }
    if (t->batch_count)
        conc__worker_thread_drop_clock(t);
    if (q->queued)
        conc__job_queue_wake_worker(q);
    if (!t->batch_count && q->posts_due) {
        conc__semaphore_post(&q->work);
        q->posts_due--;
    }
    return t->batch_count > 0;
}

/* Drops a reference, and unlocks the mutex, which the caller holds. If the reference was the last
 * one, frees the job queue. */
CONC__PRIVATE void conc__job_queue_release(conc__job_queue *q)
{
    bool last = --q->references == 0;
    pthread_mutex_unlock(&q->mutex);
    if (last) {
        pthread_mutex_lock(&conc__job_queues_mutex);
        conc__job_queue_free(q);
        pthread_mutex_unlock(&conc__job_queues_mutex);
    }
}

/* Spins in a thread that is waiting for a job of a process pool, then drops the waiter's
 * reference. */
CONC__PRIVATE void conc__job_queue_spin_for(conc__job_queue *q, const bool *over)
{
    conc__supervisor_spin_for(q, over);
    conc__lock_briefly(&q->mutex);
    conc__job_queue_release(q);
}

/* Sets the signal mask for jobs: that of the pool's opener, but with fault signals unblocked. Gives
 * the thread a signal stack, because a job's own stack might be used up. */
CONC__PRIVATE void conc__worker_thread_set_signals(conc__worker_thread *t)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    stack_t stack = {0}, now;
    sigset_t mask = t->queue->mask;
    if (sigaltstack(NULL, &now) == 0 && now.ss_flags & CONC__SS_DISABLE)
        stack.ss_sp = t->signal_stack = conc__map_pages(CONC__SIGNAL_STACK);
    stack.ss_size = CONC__SIGNAL_STACK;
    if (t->signal_stack)
        sigaltstack(&stack, NULL);
    if (t->queue->blocks_pipe)
        sigaddset(&mask, SIGPIPE);
    for (size_t i = 0; i < CONC_LEN(faults); i++)
        sigdelset(&mask, faults[i]);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

CONC__PRIVATE void conc__worker_thread_clear_signals(conc__worker_thread *t)
{
    stack_t none = {.ss_flags = CONC__SS_DISABLE};
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    if (!t->signal_stack)
        return;
    sigaltstack(&none, NULL);
    conc__unmap_pages(t->signal_stack, CONC__SIGNAL_STACK);
}

/* Sets the address range where a fault counts as a stack overflow. */
CONC__PRIVATE void conc__worker_thread_find_stack(conc__worker_thread *t)
{
    enum { BELOW = 65536 }; /* how far below the stack one frame can reach */
    pthread_attr_t usual;
    size_t size = 0;
    if (pthread_attr_init(&usual))
        return;
    pthread_attr_getstacksize(&usual, &size);
    pthread_attr_destroy(&usual);
    t->stack_high = __builtin_frame_address(0);
    t->stack_low = t->stack_high - size;
    if ((uintptr_t)t->stack_low > BELOW)
        t->stack_low -= BELOW;
}

/* Called in a signal handler when the process is about to end. If the running job has used up its
 * thread's stack, reports that. */
CONC__COLD void conc__job_overflows(const char *address)
{
    const conc__job_context *ctx = NULL;
    if (conc__job_context_key_made)
        ctx = pthread_getspecific(conc__job_context_key);
    const conc__worker_thread *t = ctx ? ctx->thread : NULL;
    char text[256];
    if (!t || address < t->stack_low || address >= t->stack_high)
        return;
    conc__write_stderr(
        text,
        snprintf(text, sizeof text,
                 "conc: stack overflow: a job of the pool \"%s\" used all of its thread's "
                 "stack: raise it (ulimit -s), or keep large arrays elsewhere\n",
                 t->queue->name),
        sizeof text);
}

CONC__PRIVATE void conc__shared_pools_lock(const conc_pool *shared);
CONC__PRIVATE void conc__shared_pools_unlock(const conc_pool *shared);
CONC__PRIVATE void conc__shared_pool_count_detached(const conc_pool *shared, int threads);

/* Removes the exiting thread from the job queue, and joins the thread that exited before it. The
 * caller holds the mutex; this function unlocks it. */
CONC__PRIVATE void conc__worker_thread_end(conc__job_queue *q, conc__worker_thread *t)
{
    pthread_t before = q->last_ended;
    bool joins = q->has_ended && !t->detached;
    const conc_pool *shared = t->detached ? q->shared : NULL;
    void *pin = t->pin;
    if (!t->detached) {
        q->last_ended = pthread_self();
        q->has_ended = true;
    }
    q->started--;
    q->threads[t->number] = NULL;
    conc__job_queue_notify_closer(q);
    conc__worker_thread_drop_clock(t);
    pthread_cond_signal(&q->ended);
    conc_free(t);
    conc__job_queue_release(q);
    conc__shared_pools_lock(shared);
    conc__shared_pool_count_detached(shared, -1);
    conc__shared_pools_unlock(shared);
    if (joins)
        pthread_join(before, NULL);
    if (pin)
        pthread_setspecific(conc__pins, pin);
}

CONC__PRIVATE void conc__worker_thread_run_batch(conc__job_queue *q, conc__worker_thread *t,
                                                 conc__job_context *ctx)
{
    for (int i = 0; i < t->batch_count; i++) {
        conc_job *j = atomic_load_explicit(&t->batch[i], memory_order_relaxed);
        bool last = i + 1 >= t->batch_count;
        if (!last)
            __builtin_prefetch(atomic_load_explicit(&t->batch[i + 1], memory_order_relaxed), 1);
        if (j)
            j = atomic_exchange_explicit(&t->batch[i], NULL, memory_order_acquire);
        if (j)
            conc__job_run(q, ctx, j, last);
    }
}

CONC__PRIVATE void *conc__worker_thread_main(void *arg)
{
    conc__worker_thread *t = arg;
    conc__job_queue *q = t->queue;
    conc__job_context ctx = {.thread = t};
    conc__name_thread(q->name);
    conc__worker_thread_find_stack(t);
    pthread_setspecific(conc__job_context_key, &ctx);
    conc__worker_thread_set_signals(t);
    conc__lock_briefly(&q->mutex);
    q->starting--;
    while (conc__worker_thread_next(q, t)) {
        conc__job_queue_unlock(q);
        conc__worker_thread_run_batch(q, t, &ctx);
        conc__lock_briefly(&q->mutex);
        __atomic_fetch_sub(&q->finishing, t->finishing, __ATOMIC_RELAXED);
        t->finishing = t->batch_count = 0;
    }
    conc__worker_thread_clear_signals(t);
    pthread_setspecific(conc__job_context_key, NULL);
    conc__worker_thread_end(q, t);
    return NULL;
}

/* Returns the index of a free slot in threads[], or -ENOMEM. The caller holds the mutex. */
CONC__PRIVATE int conc__worker_thread_find_slot(conc__job_queue *q)
{
    int n = 0, slots = q->thread_slots ? q->thread_slots * 2 : 4;
    while (n < q->thread_slots && q->threads[n])
        n++;
    if (n < q->thread_slots)
        return n;
    conc__worker_thread **more = CONC_REALLOC(q->threads, (size_t)slots * sizeof *more);
    if (!more)
        return -ENOMEM;
    memset(more + n, 0, (size_t)(slots - n) * sizeof *more);
    q->threads = more;
    q->thread_slots = slots;
    return n;
}

/* Starts a thread. The caller holds the mutex. */
CONC__PRIVATE int conc__worker_thread_start(conc__job_queue *q)
{
    int n = conc__worker_thread_find_slot(q);
    if (n < 0)
        return n;
    conc__worker_thread *t = conc__alloc(sizeof *t);
    if (!t)
        return -ENOMEM;
    memset(t, 0, sizeof *t);
    t->queue = q;
    t->number = n;
    if (conc__quiet_thread(&t->id, NULL, conc__worker_thread_main, t)) {
        conc_free(t);
        return -EAGAIN;
    }
    q->threads[n] = t;
    q->started++;
    q->references++;
    q->starting++;
    return 0;
}

/* Lets the thread in this slot, if any, continue its abandoned job without the job queue. The
 * caller holds the mutex; this function unlocks it temporarily. */
CONC__PRIVATE void conc__worker_thread_detach(conc__job_queue *q, int slot)
{
    if (!q->threads[slot])
        return;
    pthread_mutex_unlock(&q->mutex); /* dlopen may wait for a lock */
    void *pin = conc__pin();
    conc__shared_pools_lock(q->shared);
    conc__lock_briefly(&q->mutex);
    conc__worker_thread *t = q->threads[slot];
    if (t) {
        pthread_detach(t->id);
        t->detached = true;
        t->pin = pin;
    }
    pthread_mutex_unlock(&q->mutex);
    if (t)
        conc__shared_pool_count_detached(q->shared, 1);
    conc__shared_pools_unlock(q->shared);
    if (!t)
        conc__unpin(pin);
    conc__lock_briefly(&q->mutex);
}

/* Stops the threads when only abandoned jobs are left, and detaches the threads of those jobs. */
CONC__PRIVATE void conc__worker_threads_end(conc__job_queue *q)
{
    conc__lock_briefly(&q->mutex);
    q->stopping = true;
    for (; q->wakes_pending < q->sleeping; q->wakes_pending++)
        conc__semaphore_post(&q->work);
    while (q->started > q->abandoned)
        pthread_cond_wait(&q->ended, &q->mutex);
    for (int i = 0; i < q->thread_slots; i++)
        conc__worker_thread_detach(q, i);
    bool joins = q->has_ended;
    pthread_t last = q->last_ended;
    q->has_ended = false;
    conc__job_queue_release(q);
    if (joins)
        pthread_join(last, NULL);
}

/* ---- >>pool --------------------------------------------------------------------------------- */

/* In a forked child: forgets the parent's job queue, and the users that were the parent's
 * threads. */
CONC__PRIVATE void conc__pool_forget(conc__job_queue **queue, unsigned *users)
{
    __atomic_store_n(queue, NULL, __ATOMIC_RELAXED);
    __atomic_store_n(users, 0, __ATOMIC_RELAXED);
}

/* Gives the pool a new job queue. `users` is not set to 0: it may still count callers that are
 * being refused. */
CONC__PRIVATE int conc__pool_publish(conc__job_queue **queue, unsigned *users, conc__job_queue *q)
{
    if (!q)
        return -ENOMEM;
    if (*queue)
        conc__pool_forget(queue, users);
    __atomic_store_n(queue, q, __ATOMIC_RELEASE);
    __atomic_fetch_and(users, ~CONC__POOL_CLOSED, __ATOMIC_RELEASE);
    return 0;
}

/* Is SIGPIPE blocked in this thread, by the caller or by its run? */
CONC__PRIVATE bool conc__pipe_is_blocked(void)
{
    sigset_t now;
    sigemptyset(&now);
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    return sigismember(&now, SIGPIPE) == 1;
}

CONC_API int conc_pool_open(conc_pool *p)
{
    bool is_valid = p && p->threads >= 0 && p->threads <= 1 << 16 && p->queue_limit >= 0;
    if (!is_valid)
        return conc__misused(-EINVAL, __func__, "no pool, or a number out of range", NULL);
    if (p->queue && p->queue->forks == conc__forks)
        return conc__misused(-EBUSY, __func__, "the pool is open", NULL);
    conc__job_queues_need();
    if (!conc__job_context_key_made)
        return conc__own_error(-EAGAIN);
    conc__job_queue *q = conc__job_queue_new(p->threads, p->queue_limit);
    if (q) {
        conc__copy(q->name, sizeof q->name, p->name ? p->name : "conc");
        conc__original_mask(&q->mask);
        q->blocks_pipe = conc__pipe_is_blocked();
    }
    return conc__wait_result(conc__pool_publish(&p->queue, &p->users, q));
}

/* Withdraws all jobs that have not begun, and asks running ones to stop. The caller holds the
 * mutex. */
CONC__PRIVATE void conc__job_queue_cancel_all(conc__job_queue *q)
{
    conc_job *j;
    __atomic_store_n(&q->cancel_all, true, __ATOMIC_RELAXED);
    while ((j = conc__job_ring_pop(q))) {
        conc__range_drop(j->payload, -ECANCELED);
        conc__job_end(q, j, -ECANCELED, NULL, true);
    }
    for (int i = 0; i < q->thread_slots; i++)
        for (int k = 0; k < CONC__BATCH && q->threads[i]; k++) {
            j = atomic_exchange(&q->threads[i]->batch[k], NULL);
            if (j)
                conc__job_end(q, j, -ECANCELED, NULL, true);
        }
    if (q->supervisor)
        conc__supervisor_cancel(q, NULL);
    conc__job_queue_admit(q);
    conc__job_queue_notify_closer(q);
}

CONC__PRIVATE bool conc__close_cancel(conc__wait *wait)
{
    conc__waiter *w = wait->item;
    conc__job_queue *q = (conc__job_queue *)(uintptr_t)wait->on;
    pthread_mutex_lock(&conc__job_queues_mutex);
    if (conc__lock_if_waiting(w, q)) {
        conc__job_queue_cancel_all(q);
        pthread_mutex_unlock(&q->mutex);
    }
    pthread_mutex_unlock(&conc__job_queues_mutex);
    if (w->loop) /* else conc__run_cancel_hooks has called this */
        conc__run_cancel_hooks();
    return false;
}

static const conc__wait_kind conc__waits_for_close = {
    .what = "closes a pool, and waits for its jobs", .cancel = conc__close_cancel};

/* Makes the job queue refuse new jobs, and cancels all jobs if the caller is cancelled. Returns
 * true if the caller is the first to close the job queue, and must end it. The caller holds the
 * mutex. */
CONC__PRIVATE bool conc__job_queue_close(conc_loop *l, conc__job_queue *q)
{
    bool first = !q->closing;
    q->closing = true;
    /* none of these submit calls is from a job of this job queue: such jobs do not wait for room */
    while (q->submitters)
        conc__waiter_wake(q->submitters, -EPIPE);
    if (l && l->self->pending) {
        conc__job_queue_cancel_all(q);
        pthread_mutex_unlock(&q->mutex);
        conc__run_cancel_hooks();
        conc__lock_briefly(&q->mutex);
    }
    return first;
}

/* Waits until all jobs have ended, or, unless the caller is the first closer, until the first one
 * is done. The caller holds the mutex; this function unlocks it. */
CONC__PRIVATE void conc__job_queue_await_end(conc_loop *l, conc__job_queue *q, bool first)
{
    conc__waiter w = {0};
    bool over = q->closed;
    conc__waiter **list = &q->other_closers;
    if (first) {
        over = conc__job_queue_is_idle(q);
        list = &q->closer;
    }
    if (over) {
        pthread_mutex_unlock(&q->mutex);
        return;
    }
    conc__waiter_add(list, &w);
    conc__wait_outside(l, &w, &conc__waits_for_close, q, &q->mutex, NULL);
}

/* Ends the job queue after all its jobs have ended. */
CONC__PRIVATE void conc__job_queue_end(conc__job_queue *q, conc__job_queue **queue, unsigned *users,
                                       void (*end)(conc__job_queue *q))
{
    int saved = errno;
    __atomic_fetch_or(users, CONC__POOL_CLOSED, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(users, __ATOMIC_ACQUIRE) != CONC__POOL_CLOSED)
        sched_yield();
    end(q);
    pthread_mutex_lock(&conc__job_queues_mutex);
    __atomic_store_n(queue, NULL, __ATOMIC_RELEASE); /* the pool belongs to its owner again */
    pthread_mutex_unlock(&conc__job_queues_mutex);
    conc__lock_briefly(&q->mutex);
    q->closed = true;
    while (q->other_closers)
        conc__waiter_wake(q->other_closers, 0);
    pthread_mutex_unlock(&q->mutex);
    errno = saved;
}

/* Returns the job queue to be closed, locked, with a reference for the caller. Once the first close
 * has returned, its caller may free the pool, so the other closers must not touch the pool again.
 * NULL: there is no job queue, or *rc is an error. */
CONC__PRIVATE conc__job_queue *conc__pool_acquire(conc__job_queue **queue, unsigned *users, int *rc)
{
    *rc = 0;
    pthread_mutex_lock(&conc__job_queues_mutex);
    conc__job_queue *q = __atomic_load_n(queue, __ATOMIC_ACQUIRE);
    bool own = q && conc__job_context_in(q);
    if (q && q->forks != conc__forks) {
        if (!own) /* else the job that forked is still using it */
            conc__job_queue_free(q);
        conc__pool_forget(queue, users);
        q = NULL;
    } else if (own) {
        *rc = -EDEADLK;
        q = NULL;
    }
    if (q) {
        conc__lock_briefly(&q->mutex);
        q->references++;
    }
    pthread_mutex_unlock(&conc__job_queues_mutex);
    return q;
}

CONC__PRIVATE int conc__pool_close(conc__job_queue **queue, unsigned *users,
                                   void (*end)(conc__job_queue *q), const char *call)
{
    conc_loop *l;
    int rc = conc__caller(&l, call);
    if (rc)
        return rc;
    conc__job_queue *q = conc__pool_acquire(queue, users, &rc);
    if (rc)
        return conc__misused(rc, call, "a job would wait for itself", NULL);
    if (!q)
        return 0;
    bool first = conc__job_queue_close(l, q);
    conc__job_queue_await_end(l, q, first);
    if (first && q->supervisor)
        conc__supervisor_close(l, q);
    if (first)
        conc__job_queue_end(q, queue, users, end);
    conc__lock_briefly(&q->mutex);
    conc__job_queue_release(q);
    return 0;
}

CONC_API CONC__CALLED int conc_pool_close(conc_pool *p)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__pool_close(&p->queue, &p->users, conc__worker_threads_end, __func__);
}

CONC_API void conc__auto_conc_pool(conc_pool *p) { conc_pool_close(p); }

/* Records rc, the reason why the pool could not be entered, as the caller's latest error, and
 * returns rc. */
CONC__COLD int conc__pool_refused(int rc, const char *call)
{
    if (rc == -EINVAL)
        return conc__misused(rc, call, "the pool is not open", NULL);
    return conc__own_error(rc);
}

/* Implements conc_pool_submit and conc_procs_submit. call: the public function's name. */
CONC__PRIVATE int conc__submit(conc__job_queue **queue, unsigned *users, conc_job *j, conc_fn *fn,
                               void *arg, size_t size, conc__payload *payload, const char *call)
{
    conc_loop *l = conc__here;
    if (!j || !fn || (size && !arg))
        return conc__misused(-EINVAL, call, "no job, no function, or no bytes", NULL);
    int rc = 0;
    conc__job_queue *q = conc__pool_enter(queue, users, &rc);
    if (!q)
        return conc__pool_refused(rc, call);
    if (CONC__MSAN || q->on_valgrind)
        conc__mark_defined(j, sizeof *j);
    if (conc__job_in_use(j) && !conc__job_is_inherited(j))
        rc = conc__misused(-EBUSY, call, "the job is in use", NULL);
    bool cancelled = l && l->self && l->self->pending;
    if (rc || cancelled) {
        /* before the task switches, or closing the pool on this thread would hang */
        conc__pool_leave(users);
        if (rc)
            return rc;
        return conc__checkpoint(l);
    }
    conc__job_init(j, fn, arg, payload, 0);
    j->size = size;
    rc = conc__job_queue_submit(q, users, l, j, call);
    if (rc)
        conc__job_undo_init(j);
    else if (l)
        CONC__HOOK(l, handle_lent(l, j, CONC__A_JOB));
    if (rc == 0 && l && l->self)
        conc__spend_budget(l);
    return rc;
}

CONC_API CONC__CALLED int conc_pool_submit(conc_pool *p, conc_job *j, conc_fn *fn, void *arg)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__submit(&p->queue, &p->users, j, fn, arg, 0, NULL, __func__);
}

/* The text of a job's or thread's latest error, saved while a function runs. */
typedef struct conc__saved_text {
    conc__job_context *context; /* NULL: a plain thread */
    int rc;
    char text[CONC__TEXT];
} conc__saved_text;

CONC__PRIVATE void conc__saved_text_swap(conc__saved_text *saved)
{
    char *current = conc__thread_text;
    size_t size = sizeof conc__thread_text;
    char text[CONC__TEXT];
    if (saved->context) {
        int rc = saved->rc;
        saved->rc = saved->context->text_rc;
        saved->context->text_rc = rc;
        current = saved->context->text;
        size = sizeof saved->context->text;
    }
    memcpy(text, current, size);
    memcpy(current, saved->text, size);
    memcpy(saved->text, text, size);
}

/* Calls fn(arg) directly; the caller is not a task. If fn fails without an error text, the default
 * text is set; if fn sets no error, the caller's latest error is unchanged. */
CONC__PRIVATE int conc__call_here(conc_fn *fn, void *arg)
{
    conc__saved_text older = {.context = conc__job_context_here()};
    const conc__job_context *ctx = older.context;
    conc__saved_text_swap(&older);
    int rc = fn(arg);
    bool has_text = *conc__thread_text != 0, is_of_rc = has_text;
    if (ctx) {
        has_text = ctx->text_rc != 0;
        is_of_rc = ctx->text_rc == rc;
    }
    bool failed = rc < 0 && rc != -ECANCELED;
    if (failed && !is_of_rc)
        conc__own_error(rc);
    else if (!has_text)
        conc__saved_text_swap(&older);
    return rc;
}

/* Runs a job and waits for it. In a job of the same pool, calls the function directly. */
CONC__PRIVATE int conc__pool_run(conc__job_queue **queue, unsigned *users, conc_fn *fn, void *arg,
                                 size_t size, conc__payload *payload, const char *call)
{
    conc_loop *l;
    conc_job j;
    conc__job_outcome outcome;
    int rc = conc__caller(&l, call);
    if (rc)
        return rc;
    const conc__job_context *own =
        l ? NULL : conc__job_context_in(__atomic_load_n(queue, __ATOMIC_ACQUIRE));
    if (own && fn && conc__job_context_is_own(own))
        return conc__call_here(fn, arg);
    j.state = 0;
    rc = conc__submit(queue, users, &j, fn, arg, size, payload, call);
    if (rc)
        return rc;
    conc__job_wait(l, &j, NULL, &outcome);
    return conc__job_result(l, &outcome);
}

CONC_API CONC__CALLED int conc_pool_run(conc_pool *p, conc_fn *fn, void *arg)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__pool_run(&p->queue, &p->users, fn, arg, 0, NULL, __func__);
}

/* ---- >>map ---------------------------------------------------------------------------------- */

/* Calls the map's function with one element and the runner's initial locals. */
CONC__PRIVATE int conc__map_call_element(conc__map_call *m, conc__job_context *ctx,
                                         conc__locals *base, size_t i)
{
    ctx->text_rc = 0; /* the text belongs to another element */
    ctx->locals = base;
    if (base)
        __atomic_fetch_add(&base->references, 1, __ATOMIC_RELAXED);
    int rc = m->fn(m->size ? m->args + i * m->size : m->args);
    conc__locals_release(ctx->locals); /* hides this call's settings from the next one */
    if (m->results)
        m->results[i] = rc;
    return rc;
}

CONC__PRIVATE int conc__map_runner(void *arg)
{
    conc__map_call *m = arg;
    conc__job_context *ctx = conc__job_context_here();
    const conc__cancel_layer *around = ctx->layer;
    conc__locals *base = ctx->locals;
    conc__saved_text older = {.context = ctx};
    /* the map's first error, if the call for one of this runner's elements returned it */
    int first_error = 0;
    conc__saved_text_swap(&older);
    ctx->layer = &m->layer;
    while (!first_error && !conc_job_cancelled()) {
        size_t i = __atomic_fetch_add(&m->next, 1, __ATOMIC_RELAXED);
        if (i >= m->count)
            break;
        int none = 0, rc = conc__map_call_element(m, ctx, base, i);
        bool fails = rc < 0 && !m->keeps_going;
        if (fails && __atomic_compare_exchange_n(&m->error, &none, rc, false, __ATOMIC_RELAXED,
                                                 __ATOMIC_RELAXED)) {
            __atomic_store_n(&m->stop, true, __ATOMIC_RELAXED);
            conc__run_cancel_hooks();
            first_error = rc;
        }
    }
    if (!first_error)
        conc__saved_text_swap(&older);
    else if (ctx->text_rc != first_error)
        conc__wait_result(first_error);
    ctx->layer = around;
    ctx->locals = base;
    return first_error;
}

/* Returns the map's result after all runners have ended. rc: why the function was not called for
 * some elements. */
CONC__PRIVATE int conc__map_result(conc__map_call *m, int rc)
{
    size_t taken = m->next < m->count ? m->next : m->count;
    if (!rc)
        rc = -ECANCELED;
    for (size_t i = taken; i < m->count && m->results; i++)
        m->results[i] = rc;
    if (m->error)
        return m->error;
    bool all_called = taken - m->dropped == m->count;
    return all_called ? 0 : rc;
}

CONC__PRIVATE int conc__map_refused(conc__map_call *m, int rc)
{
    for (size_t i = 0; i < m->count && m->results; i++)
        m->results[i] = rc;
    return rc;
}

/* A runner's job, and its payload if it runs in a worker. */
typedef struct conc__runner {
    conc_job job;
    conc__payload payload;
} conc__runner;

/* Submits up to n runners. Returns how many were accepted; *rc: why the next one was refused, or
 * 0. */
CONC__PRIVATE int conc__map_start(conc__job_queue **queue, unsigned *users, conc__map_call *m,
                                  bool processes, conc__runner *runners, int n, int *rc)
{
    int started = 0;
    *rc = 0;
    while (started < n) {
        conc__runner *r = &runners[started];
        r->job.state = 0;
        r->payload = (conc__payload){.map = m};
        if (processes)
            *rc =
                conc__submit(queue, users, &r->job, m->fn, NULL, 0, &r->payload, "conc_procs_map");
        else
            *rc =
                conc__submit(queue, users, &r->job, conc__map_runner, m, 0, NULL, "conc_pool_map");
        if (*rc)
            break;
        started++;
    }
    return started;
}

/* Waits for the runners. If one failed, returns its error and makes its text the caller's;
 * otherwise returns rc. */
CONC__PRIVATE int conc__map_wait(conc_loop *l, conc__map_call *m, conc__runner *runners, int n,
                                 int rc)
{
    for (int i = 0; i < n; i++) {
        conc__job_outcome outcome;
        conc__job_wait(l, &runners[i].job, &m->stop, &outcome);
        if (outcome.result < 0 && outcome.result != -ECANCELED)
            rc = conc__job_result(l, &outcome);
    }
    return rc;
}

CONC__PRIVATE void conc__map_init_layer(conc__map_call *m, const conc_loop *l)
{
    const conc__job_context *ctx = NULL;
    if (!l)
        ctx = conc__job_context_here();
    m->layer = (conc__cancel_layer){.cancelled = &m->stop, .until = CONC__NEVER};
    if (ctx && ctx->thread) {
        m->layer.sender = ctx->job;
        m->layer.outer = ctx->layer;
    }
}

/* Runs a map whose arguments are valid. own: the caller is a job of the same pool, and is also a
 * runner. */
CONC__PRIVATE int conc__map_run(conc_loop *l, conc__job_queue **queue, unsigned *users,
                                conc__map_call *m, int most, bool processes, bool own)
{
    conc__map_init_layer(m, l);
    conc__runner *runners = most ? conc__alloc((size_t)most * sizeof *runners) : NULL;
    if (most && !runners)
        return conc__map_refused(m, conc__own_error(-ENOMEM));
    int rc, started = conc__map_start(queue, users, m, processes, runners, most, &rc);
    if (own && m->count)
        conc__map_runner(m);
    rc = conc__map_wait(l, m, runners, started, rc);
    conc_free(runners);
    bool none_ran = !started && !own;
    if (rc && none_ran)
        return conc__map_refused(m, rc);
    return conc__map_result(m, rc);
}

CONC__PRIVATE int conc__pool_map(conc__job_queue **queue, unsigned *users, conc__map_call *m,
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
        return conc__misused(-EINVAL, call, "no elements, or an invalid number of them", NULL);
    conc__job_queue *q = conc__pool_enter(queue, users, &rc);
    if (!q)
        return conc__map_refused(m, conc__pool_refused(rc, call));
    bool processes = q->supervisor, own = !l && conc__job_context_in(q);
    int most = q->max_workers;
    if (m->count < (size_t)most)
        most = (int)m->count;
    if (own && m->count)
        most--;
    conc__pool_leave(users);
    if (l)
        rc = conc__checkpoint(l);
    if (rc)
        return conc__map_refused(m, rc);
    return conc__map_run(l, queue, users, m, most, processes, own);
}

CONC_API CONC__CALLED int conc_pool_map(conc_pool *p, conc_fn *fn, void *args, size_t count,
                                        size_t size)
{
    conc__map_call m = {.fn = fn, .args = args, .count = count, .size = size};
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__pool_map(&p->queue, &p->users, &m, __func__);
}

CONC_API CONC__CALLED int conc_pool_map_all(conc_pool *p, conc_fn *fn, void *args, size_t count,
                                            size_t size, int *results)
{
    conc__map_call m = {fn, args, count, size, results, .keeps_going = true};
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__pool_map(&p->queue, &p->users, &m, __func__);
}

/* ---- >>in_jobs ------------------------------------------------------------------------------ *
 *
 * What the calls of conc.h do in a job. */

CONC__PRIVATE conc__locals **conc__job_locals(void)
{
    conc__job_context *ctx = conc__job_context_here();
    return ctx ? &ctx->locals : NULL;
}

CONC__PRIVATE bool conc__job_fail(int rc, const char *text)
{
    conc__job_context *ctx = conc__job_context_here();
    if (!ctx)
        return false;
    ctx->text_rc = rc;
    conc__copy(ctx->text, sizeof ctx->text, text);
    return true;
}

CONC__PRIVATE const char *conc__job_error_text(void)
{
    conc__job_context *ctx = conc__job_context_here();
    if (!ctx)
        return NULL;
    if (ctx->text_rc >= 0)
        return "";
    return ctx->text;
}

/* Sets whether the job is waiting or in conc_block. An abandoned job does not count, because its
 * thread does not. The caller holds the mutex. */
CONC__PRIVATE void conc__job_set_blocked(conc__job_queue *q, conc_job *j, bool blocks)
{
    uintptr_t state = conc__job_state(j);
    if (blocks) {
        if (state & CONC__JOB_ABANDONED)
            return;
        __atomic_fetch_or(&j->state, CONC__JOB_BLOCKED, __ATOMIC_RELAXED);
        q->blocking++;
    } else {
        if (!(state & CONC__JOB_BLOCKED))
            return;
        __atomic_fetch_and(&j->state, ~(uintptr_t)CONC__JOB_BLOCKED, __ATOMIC_RELAXED);
        q->blocking--;
    }
    conc__job_queue_update_stalled(q);
}

/* Sets whether the thread is waiting or in conc_block while the clock advances. */
CONC__PRIVATE void conc__worker_thread_idles(conc__job_context *ctx, bool idles)
{
    conc__job_queue *q = ctx->thread->queue;
    conc__lock_briefly(&q->mutex);
    conc__job_set_blocked(q, ctx->job, idles);
    pthread_mutex_unlock(&q->mutex);
}

CONC__PRIVATE void conc__worker_thread_blocks(conc__job_context *ctx, bool blocks)
{
    conc__worker_thread_idles(ctx, blocks);
    conc__job_contexts_hold_clocks(ctx, !blocks);
}

/* A timer on a job's clock. Until it fires, a conc_block blocks the thread, or a shield hides
 * requests. The loop owns it from the time `arms` is posted until `over` is set and `disarms`, if
 * posted, has run. */
typedef struct conc__job_timer {
    conc__cancel_hook hook;
    conc__post arms, disarms;
    conc__timer timer;
    conc__ending ending;
    conc__thread_event over, disarmed; /* over: it has fired, was cut short, or the run is ending */
    conc__job_context *context;
    conc_loop *loop;
    int64_t ns;
    bool blocks, armed, was_over, is_cut;
    bool fired;  /* the time is up; this also ends a shield */
    bool leaves; /* `disarms` was posted */
} conc__job_timer;

/* In the loop: ends the use of a timer that has fired or been disarmed. */
CONC__PRIVATE void conc__job_timer_finish(conc__job_timer *t)
{
    conc__ending **at = &t->loop->run.endings;
    while (*at && *at != &t->ending)
        at = &(*at)->next;
    if (*at) /* NULL: the run has ended, and has removed it */
        *at = t->ending.next;
    t->armed = false;
    t->was_over = true;
    if (t->blocks)
        conc__worker_thread_blocks(t->context, false);
    conc__thread_event_set(&t->over);
}

CONC__PRIVATE void conc__job_timer_fired(conc__timer *timer)
{
    conc__job_timer *t =
        (conc__job_timer *)(void *)((char *)timer - offsetof(conc__job_timer, timer));
    bool blocks = t->blocks;
    __atomic_store_n(&t->fired, true, __ATOMIC_RELAXED);
    conc__job_timer_finish(t);
    if (!blocks)
        conc__run_cancel_hooks();
}

CONC__PRIVATE void conc__job_timer_run_ended(conc_loop *l, conc__ending *e)
{
    conc__job_timer *t = (conc__job_timer *)(void *)((char *)e - offsetof(conc__job_timer, ending));
    conc__disarm(l, &t->timer);
    conc__job_timer_finish(t);
}

CONC__PRIVATE void conc__job_timer_arm(conc__post *p)
{
    conc__job_timer *t = (conc__job_timer *)(void *)((char *)p - offsetof(conc__job_timer, arms));
    conc_loop *l = t->loop;
    if (t->is_cut) { /* before it was armed */
        conc__thread_event_set(&t->over);
        return;
    }
    conc__at_end(l, &t->ending, conc__job_timer_run_ended);
    t->armed = true;
    conc__arm(l, &t->timer, conc__later(l->clock.now, t->ns), conc__job_timer_fired);
    if (t->blocks)
        conc__worker_thread_blocks(t->context, true);
}

CONC__PRIVATE void conc__job_timer_disarm(conc__post *p)
{
    conc__job_timer *t =
        (conc__job_timer *)(void *)((char *)p - offsetof(conc__job_timer, disarms));
    t->is_cut = !t->was_over;
    if (t->armed) {
        conc__disarm(t->loop, &t->timer);
        conc__job_timer_finish(t);
    }
    conc__thread_event_set(&t->disarmed);
}

/* Asks the loop to disarm the timer, so that the conc_block ends early. */
CONC__PRIVATE void conc__job_timer_post_disarm(conc__cancel_hook *s)
{
    conc__job_timer *t = (conc__job_timer *)(void *)s;
    t->leaves = conc__post_to(t->loop, &t->disarms) == 0;
}

CONC__PRIVATE void conc__job_timer_make(conc__job_timer *t, conc__job_context *ctx, int64_t ns,
                                        bool blocks)
{
    *t = (conc__job_timer){.context = ctx, .loop = ctx->job->clock, .ns = ns, .blocks = blocks};
    t->arms.run = conc__job_timer_arm;
    t->disarms.run = conc__job_timer_disarm;
    conc__thread_event_init(&t->over);
    conc__thread_event_init(&t->disarmed);
}

/* Asks the loop to arm the timer. Returns false if the loop's run has ended. */
CONC__PRIVATE bool conc__job_timer_open(conc__job_timer *t)
{
    return conc__post_to(t->loop, &t->arms) == 0;
}

/* Waits until the loop is no longer using the timer. */
CONC__PRIVATE void conc__job_timer_close(conc__job_timer *t, bool was_opened)
{
    if (was_opened)
        conc__thread_event_wait(&t->over, CONC__NEVER);
    if (t->leaves)
        conc__thread_event_wait(&t->disarmed, CONC__NEVER);
    conc__thread_event_destroy(&t->over);
    conc__thread_event_destroy(&t->disarmed);
}

CONC__PRIVATE int conc__block_on_clock(conc__job_context *ctx, int64_t ns)
{
    conc__job_timer t;
    conc__job_timer_make(&t, ctx, ns, true);
    /* before the timer is armed: from then on the clock may advance, even while a stop request is
     * on its way to the loop */
    conc__cancel_hook_add(&t.hook, ctx, conc__job_timer_post_disarm);
    bool opened = conc__job_timer_open(&t);
    if (opened)
        conc__thread_event_wait_in_job(&t.over, ctx);
    conc__cancel_hook_remove(&t.hook);
    conc__job_timer_close(&t, opened);
    if (t.is_cut)
        return -ECANCELED;
    return 0;
}

/* A conc_block in a job, on the real clock. */
typedef struct conc__real_block {
    conc__cancel_hook hook;
    conc__thread_event cut;
} conc__real_block;

CONC__PRIVATE void conc__real_block_cancel(conc__cancel_hook *s)
{
    conc__thread_event_set(&((conc__real_block *)(void *)s)->cut);
}

CONC__PRIVATE int conc__block_in_real_time(conc__job_context *ctx, int64_t ns)
{
    conc__real_block d = {.hook = {.called = false}};
    int64_t end = conc__later(conc__clock(), ns);
    conc__thread_event_init(&d.cut);
    conc__cancel_hook_add(&d.hook, ctx, conc__real_block_cancel);
    for (;;) { /* repeats each time a shield's limit expires before the end */
        int64_t limit = conc__shield_deadline(ctx);
        if (limit >= end || conc__thread_event_wait(&d.cut, limit))
            break;
        conc__run_cancel_hooks();
    }
    bool cut = conc__thread_event_wait(&d.cut, end);
    conc__cancel_hook_remove(&d.hook);
    conc__thread_event_destroy(&d.cut);
    return cut ? -ECANCELED : 0;
}

/* Called on the thread of the loop that submitted a job: sets whether the job is waiting for a task
 * of that loop. If so, the job's clock advances, as in conc_block. */
CONC__PRIVATE void conc__job_waits(conc__job_context *ctx, const conc_loop *l, bool waits)
{
    if (ctx->thread && ctx->job->clock == l)
        conc__worker_thread_blocks(ctx, waits);
}

/* Implements conc_block in a job. Returns 1 if no job is running on this thread. */
CONC__PRIVATE int conc__job_block(int64_t ns)
{
    conc__job_context *ctx = conc__job_context_here();
    if (!ctx)
        return 1;
    if (conc__job_context_cancelled(ctx))
        return -ECANCELED;
    if (conc__job_context_clock(ctx))
        return conc__block_on_clock(ctx, ns);
    return conc__block_in_real_time(ctx, ns);
}

/* Calls fn(arg) inside a shield, in the job of ctx. */
CONC__PRIVATE int conc__job_run_shielded(conc__job_context *ctx, double grace, conc_fn *fn,
                                         void *arg)
{
    conc__job_timer t;
    bool limited = grace < CONC_FOREVER, on_clock = limited && conc__job_context_clock(ctx);
    bool opened = false, never = false;
    conc__cancel_layer shield = {
        .outer = ctx->layer, .cancelled = &never, .shields = true, .until = CONC__NEVER};
    if (on_clock) {
        conc__job_timer_make(&t, ctx, conc__ns(grace), false);
        opened = conc__job_timer_open(&t);
        shield.cancelled = &t.fired;
    } else if (limited) {
        shield.until = conc__later(conc__clock(), conc__ns(grace));
    }
    ctx->layer = &shield;
    int rc = conc__call_here(fn, arg);
    bool late = conc__layers_cancelled(&shield, NULL);
    ctx->layer = shield.outer;
    if (opened)
        conc__job_timer_post_disarm(&t.hook);
    if (on_clock)
        conc__job_timer_close(&t, opened);
    if (rc == -ECANCELED && late)
        return conc__own_error(-ETIMEDOUT);
    return rc;
}

/* Implements conc_shield in a job. Returns false if no job is running on this thread. */
CONC__PRIVATE bool conc__job_shield(double grace, conc_fn *fn, void *arg, int *rc)
{
    conc__job_context *ctx = conc__job_context_here();
    if (!ctx)
        return false;
    if (!fn)
        *rc = conc__misused(-EINVAL, "conc_shield", "no function", NULL);
    else if (__builtin_isnan(grace))
        *rc = conc__misused(-EINVAL, "conc_shield", "the time is not a number", NULL);
    else
        *rc = conc__job_run_shielded(ctx, grace, fn, arg);
    return true;
}

/* A run inside a job: its main_fn is cancelled if the job is asked to stop. */
typedef struct conc__run_inside {
    conc__cancel_hook hook;
    conc__ending ending;
    conc__post post;
    conc__timer limit; /* fires when the next of the shields around the run ends */
    conc_loop *loop;
} conc__run_inside;

CONC__PRIVATE void conc__run_inside_cancel(conc__post *p)
{
    const conc__run_inside *r =
        (conc__run_inside *)(void *)((char *)p - offsetof(conc__run_inside, post));
    if (!r->loop->run.winding_up)
        conc__task_cancel(r->loop, &r->loop->run.main);
}

CONC__PRIVATE void conc__run_inside_cancel_posted(conc__cancel_hook *s)
{
    conc__run_inside *r = (conc__run_inside *)(void *)s;
    conc__post_to(r->loop, &r->post); /* refused if the run is ending */
}

/* Called when the time limit of a shield around the run has expired on the real clock. Arms the
 * timer for the next shield, and passes on the requests that the shield hid. */
CONC__PRIVATE void conc__run_inside_late(conc__timer *t)
{
    conc__run_inside *r =
        (conc__run_inside *)(void *)((char *)t - offsetof(conc__run_inside, limit));
    int64_t next = conc__shield_deadline(r->hook.context);
    if (next != CONC__NEVER)
        conc__arm(r->loop, t, next, conc__run_inside_late);
    conc__run_cancel_hooks();
}

/* Does the same on the virtual clock. Returns the time when the next shield ends. */
CONC__PRIVATE int64_t conc__job_late(conc_loop *l)
{
    (void)l;
    conc__run_cancel_hooks();
    return conc__shield_deadline(conc__job_context_here());
}

/* Sets whether the tasks of a run inside a job are waiting only for channels. If so, the job
 * releases its clocks, as in conc__wait_in_thread. A thread waiting for jobs of its own pool does
 * not count, because another thread has replaced it. */
CONC__PRIVATE void conc__job_idles(conc_loop *l, bool idles)
{
    bool counts = !l->job.context->thread->nested;
    if (idles && counts)
        conc__worker_thread_idles(l->job.context, true);
    pthread_mutex_lock(&l->shared.mutex);
    bool changes = l->job.idles;
    if (idles)
        changes = !l->shared.posted;
    if (changes) {
        l->job.idles = idles;
        conc__job_contexts_hold_clocks(l->job.context, !idles);
    }
    pthread_mutex_unlock(&l->shared.mutex);
    if (!idles && counts)
        conc__worker_thread_idles(l->job.context, false);
}

CONC__PRIVATE void conc__job_goes_on(conc_loop *l)
{
    l->job.idles = false;
    conc__job_contexts_hold_clocks(l->job.context, true);
}

CONC__PRIVATE void conc__run_inside_ends(conc_loop *l, conc__ending *e)
{
    conc__run_inside *r =
        (conc__run_inside *)(void *)((char *)e - offsetof(conc__run_inside, ending));
    conc__cancel_hook_remove(&r->hook);
    conc__disarm(l, &r->limit);
    l->job.limit = CONC__NEVER;
    conc_free(r);
}

/* Called when a run begins. If it is inside a job, registers it, so that a request to stop the job
 * cancels main_fn. */
CONC__PRIVATE int conc__job_runs(conc_loop *l)
{
    conc__job_context *ctx = conc__job_context_here();
    if (!ctx || l->run.embedded) /* the host cancels an embedded loop itself */
        return 0;
    conc__run_inside *r = conc__alloc(sizeof *r);
    if (!r)
        return -ENOMEM;
    *r = (conc__run_inside){.loop = l, .post = {NULL, conc__run_inside_cancel}};
    conc__at_end(l, &r->ending, conc__run_inside_ends);
    l->job.context = NULL;
    if (conc__job_context_has_clock(ctx))
        l->job.context = ctx;
    int64_t limit = conc__shield_deadline(ctx);
    if (l->clock.is_virtual)
        l->job.limit = limit;
    else if (limit != CONC__NEVER)
        conc__arm(l, &r->limit, limit, conc__run_inside_late);
    if (conc__job_context_cancelled(ctx)) {
        r->hook.called = true;
        conc__task_cancel(l, &l->run.main);
    }
    conc__cancel_hook_add(&r->hook, ctx, conc__run_inside_cancel_posted);
    return 0;
}

/* ---- >>offload ------------------------------------------------------------------------------ */

/* The pools that all runs share. Each kind of job has its own pool, because offloaded jobs may wait
 * for a file, or for a child program that writes it, and must not occupy all the threads that could
 * do that. */
enum {
    CONC__OFFLOADED,
    CONC__ABANDONED,
    CONC__FILES,
    CONC__NAMES,
    CONC__STARTS, /* of child programs */
    CONC__SHARED_POOLS
};

/* The first run that uses a pool opens it; when the last run that used any of them ends, it closes
 * them all. The mutex protects everything except the job queues. */
static struct {
    pthread_mutex_t mutex;
    int runs;
    conc_pool pools[CONC__SHARED_POOLS];
    /* how many threads of ended job queues are still running abandoned jobs; the pool's current job
     * queue counts them as its own */
    int detached[CONC__SHARED_POOLS];
    /* in a forked child, the parent's job queues, which cannot be freed: the parent's threads might
     * have been changing them during the fork */
    conc__job_queue *inherited[CONC__SHARED_POOLS];
} conc__shared_pools = {.mutex = PTHREAD_MUTEX_INITIALIZER};

CONC__PRIVATE void conc__shared_pools_reset(void)
{
    pthread_mutex_init(&conc__shared_pools.mutex, NULL);
    conc__shared_pools.runs = 0;
    for (int i = 0; i < CONC__SHARED_POOLS; i++) {
        if (conc__shared_pools.pools[i].queue)
            conc__shared_pools.inherited[i] = conc__shared_pools.pools[i].queue;
        conc__shared_pools.pools[i] = (conc_pool){0};
        conc__shared_pools.detached[i] = 0;
    }
}

/* Wakes a thread for the queued jobs. If none can be started, the jobs end with the error. The
 * caller holds the mutex. */
CONC__PRIVATE void conc__job_queue_wake_or_fail(conc__job_queue *q)
{
    int rc = conc__job_queue_wake_worker(q);
    conc_job *first;
    if (!rc)
        return;
    while ((first = conc__job_ring_pop(q)))
        conc__job_end(q, first, rc, NULL, true);
}

/* Locks the shared pools' mutex. shared: NULL for the program's own pools, which do not need it. */
CONC__PRIVATE void conc__shared_pools_lock(const conc_pool *shared)
{
    if (shared)
        pthread_mutex_lock(&conc__shared_pools.mutex);
}

CONC__PRIVATE void conc__shared_pools_unlock(const conc_pool *shared)
{
    if (shared)
        pthread_mutex_unlock(&conc__shared_pools.mutex);
}

/* Adds threads detached from ended job queues to this job queue's counts, or (-1) removes one that
 * has exited. The caller holds the shared pools' mutex. */
CONC__PRIVATE void conc__job_queue_count_abandoned(conc__job_queue *q, int threads)
{
    conc__lock_briefly(&q->mutex);
    q->started += threads;
    q->abandoned += threads;
    conc__job_queue_update_stalled(q);
    conc__job_queue_wake_or_fail(q);
    conc__job_queue_unlock(q);
}

CONC__PRIVATE void conc__shared_pool_count_detached(const conc_pool *shared, int threads)
{
    if (!shared)
        return;
    conc__shared_pools.detached[shared - conc__shared_pools.pools] += threads;
    if (shared->queue)
        conc__job_queue_count_abandoned(shared->queue, threads);
}

CONC__PRIVATE void conc__shared_pools_end(conc_loop *l, conc__ending *e)
{
    conc__job_queue *queues[CONC__SHARED_POOLS] = {0};
    (void)l;
    conc_free(e);
    pthread_mutex_lock(&conc__shared_pools.mutex);
    conc__shared_pools.runs--;
    for (int i = 0; i < CONC__SHARED_POOLS && conc__shared_pools.runs == 0; i++) {
        queues[i] = conc__shared_pools.pools[i].queue;
        conc__shared_pools.pools[i] = (conc_pool){0};
    }
    pthread_mutex_unlock(&conc__shared_pools.mutex);
    for (int i = 0; i < CONC__SHARED_POOLS; i++)
        if (queues[i])
            conc__worker_threads_end(queues[i]);
}

/* Makes the run a user of the shared pools until it ends. */
CONC__PRIVATE int conc__shared_pools_use(conc_loop *l)
{
    for (const conc__ending *e = l->run.endings; e; e = e->next)
        if (e->end == conc__shared_pools_end)
            return 0;
    conc__ending *e = conc__alloc(sizeof *e);
    if (!e)
        return conc__own_error(-ENOMEM);
    conc__at_end(l, e, conc__shared_pools_end);
    pthread_mutex_lock(&conc__shared_pools.mutex);
    conc__shared_pools.runs++;
    pthread_mutex_unlock(&conc__shared_pools.mutex);
    return 0;
}

/* Opens a shared pool. The caller holds the shared pools' mutex. */
CONC__PRIVATE int conc__shared_pool_open(conc_pool *p, int which)
{
    static const char *const names[] = {"conc offload", "conc abandon", "conc files", "conc names",
                                        "conc children"};
    int n = conc__processors() + 4;
    p->threads = n < 32 ? n : 32;
    if (which == CONC__NAMES) /* a silent name server can block a thread for half a minute */
        p->threads = 64;
    p->name = names[which];
    int rc = conc_pool_open(p);
    if (rc)
        return rc;
    p->queue->shared = p;
    conc__job_queue_count_abandoned(p->queue, conc__shared_pools.detached[which]);
    return 0;
}

/* Returns the shared pool for this kind of job, for a task of l, or NULL with an error in *rc. */
CONC__PRIVATE conc_pool *conc__shared_pool(conc_loop *l, int which, int *rc)
{
    conc_pool *p = &conc__shared_pools.pools[which];
    *rc = conc__shared_pools_use(l);
    if (*rc)
        return NULL;
    if (__atomic_load_n(&p->queue, __ATOMIC_ACQUIRE))
        return p;
    pthread_mutex_lock(&conc__shared_pools.mutex);
    if (!p->queue)
        *rc = conc__shared_pool_open(p, which);
    pthread_mutex_unlock(&conc__shared_pools.mutex);
    if (*rc)
        return NULL;
    return p;
}

/* Implements conc_offload, in the given shared pool. call: the public function's name. */
CONC__PRIVATE CONC__CALLED int conc__offload(int which, conc_fn *fn, void *arg, const char *call)
{
    conc_loop *l;
    int rc = conc__caller(&l, call);
    if (rc)
        return rc;
    if (!fn)
        return conc__misused(-EINVAL, call, "no function", NULL);
    if (!l)
        return conc__call_here(fn, arg);
    conc_pool *p = conc__shared_pool(l, which, &rc);
    if (!p)
        return rc;
    return conc_pool_run(p, fn, arg);
}

CONC_API CONC__CALLED int conc_offload(conc_fn *fn, void *arg)
{
    return conc__offload(CONC__OFFLOADED, fn, arg, __func__);
}

/* A job that its task may abandon. */
typedef struct conc__abandoned {
    conc_job job;
    conc_fn *fn;
    void *arg;
    void (*free_arg)(void *);
    bool called;    /* fn was called */
    int references; /* held by the task and by the job */
} conc__abandoned;

CONC__PRIVATE void conc__abandoned_drop(conc__abandoned *a)
{
    if (__atomic_sub_fetch(&a->references, 1, __ATOMIC_ACQ_REL) == 0)
        conc_free(a);
}

/* Drops the job's own reference after it has ended or been withdrawn. */
CONC__PRIVATE void conc__abandoned_release(conc_job *j)
{
    conc__abandoned_drop((conc__abandoned *)(void *)j);
}

/* Calls fn(arg), then free_arg(arg), and keeps fn's error text; the caller is not a task. */
CONC__PRIVATE int conc__call_and_free(conc_fn *fn, void *arg, void (*free_arg)(void *))
{
    int rc = conc__call_here(fn, arg);
    conc__saved_text saved = {.context = conc__job_context_here()};
    if (free_arg) {
        conc__saved_text_swap(&saved);
        free_arg(arg);
        conc__saved_text_swap(&saved);
    }
    return rc;
}

CONC__PRIVATE int conc__abandoned_run(void *arg)
{
    conc__abandoned *a = arg;
    a->called = true;
    return conc__call_and_free(a->fn, a->arg, a->free_arg);
}

/* Lets the job continue alone. Its thread counts as lost until the job ends. The caller holds the
 * mutex. */
CONC__PRIVATE void conc__job_abandon(conc__job_queue *q, conc_job *j)
{
    conc__job_set_blocked(q, j, false);
    __atomic_fetch_or(&j->state, CONC__JOB_ABANDONED, __ATOMIC_RELAXED);
    conc__job_hold_clock(j, false);
    q->abandoned++;
    conc__job_queue_return_batches(q); /* other threads run what its thread has not begun */
    conc__job_queue_update_stalled(q);
    conc__job_queue_wake_or_fail(q);
}

/* Ends the wait of a cancelled task: withdraws the job if it is queued, or else abandons it. */
CONC__PRIVATE bool conc__abandon_cancel(conc__wait *wait)
{
    conc__waiter *w = wait->item;
    conc_job *j = w->item;
    conc__job_queue *q = w->queue;
    pthread_mutex_lock(&conc__job_queues_mutex);
    bool waits = conc__lock_if_waiting(w, q);
    if (waits) {
        conc__waiter_complete(w, -ECANCELED);
        conc__job_request_cancel(q, j);
        if (!(conc__job_state(j) & CONC__JOB_DONE)) /* else it was queued */
            conc__job_abandon(q, j);
        conc__job_queue_unlock(q);
    }
    pthread_mutex_unlock(&conc__job_queues_mutex);
    conc__run_cancel_hooks();
    return waits;
}

static const conc__wait_kind conc__waits_to_abandon = {
    .what = "waits for a job that it may abandon", .cancel = conc__abandon_cancel};

CONC__PRIVATE int conc__abandoned_submit(conc_loop *l, int which, conc__abandoned *a)
{
    int rc;
    conc_pool *p = conc__shared_pool(l, which, &rc);
    if (!p)
        return rc;
    conc__job_queue *q = conc__pool_enter(&p->queue, &p->users, &rc);
    if (!q)
        return rc;
    conc__job_init(&a->job, conc__abandoned_run, a, NULL, CONC__JOB_OWNED);
    rc = conc__job_queue_submit(q, &p->users, l, &a->job, NULL);
    if (rc)
        conc__job_undo_init(&a->job);
    return rc;
}

CONC__PRIVATE int conc__abandoned_wait(conc_loop *l, conc__abandoned *a)
{
    conc__job_outcome outcome;
    conc__waiter w = {.outcome = &outcome};
    int rc = conc__job_wait_as(l, &a->job, &w, &conc__waits_to_abandon);
    if (rc)
        return rc;
    return conc__job_result(l, &outcome);
}

CONC__PRIVATE int conc__offload_abandon(conc_loop *l, int which, conc_fn *fn, void *arg,
                                        void (*free_arg)(void *))
{
    conc__abandoned *a = conc__alloc(sizeof *a);
    int rc = -ENOMEM;
    if (a) {
        a->called = false;
        a->fn = fn;
        a->arg = arg;
        a->free_arg = free_arg;
        a->references = 2;
        rc = conc__abandoned_submit(l, which, a);
    } else {
        conc__own_error(rc);
    }
    if (rc) {
        conc_free(a);
        if (free_arg)
            free_arg(arg);
        return rc;
    }
    rc = conc__abandoned_wait(l, a);
    bool is_done = conc__job_state(&a->job) & CONC__JOB_DONE;
    bool was_taken_back = is_done && !a->called;
    if (was_taken_back && free_arg)
        free_arg(arg);
    conc__abandoned_drop(a);
    return rc;
}

/* Implements conc_offload_abandon, in the given shared pool. call: the public function's name. */
CONC__PRIVATE CONC__CALLED int conc__offload_for(int which, conc_fn *fn, void *arg,
                                                 void (*free_arg)(void *), const char *call)
{
    conc_loop *l;
    int rc = conc__caller(&l, call);
    if (rc == 0 && !fn)
        rc = conc__misused(-EINVAL, call, "no function", NULL);
    if (rc == 0 && l)
        rc = conc__checkpoint(l);
    if (rc == 0 && l)
        return conc__offload_abandon(l, which, fn, arg, free_arg);
    if (rc == 0)
        return conc__call_and_free(fn, arg, free_arg);
    if (free_arg)
        free_arg(arg);
    return rc;
}

CONC_API CONC__CALLED int conc_offload_abandon(conc_fn *fn, void *arg, void (*free_arg)(void *))
{
    return conc__offload_for(CONC__ABANDONED, fn, arg, free_arg, __func__);
}

/* ---- >>channel ------------------------------------------------------------------------------ */

/* The internals of a channel. Items and room may be reserved for notified cases of conc_select. A
 * receiver waits only if there is no unreserved item, a sender only if there is no unreserved
 * room. */
typedef struct conc__channel {
    pthread_mutex_t mutex;
    conc__waiter *senders, *receivers;
    conc__waiter *told;            /* cases for which an item or room is reserved */
    size_t kept_items, kept_rooms; /* how many are reserved */
    size_t head, count;
    bool closed;
    unsigned forks; /* conc__forks when this was created */
    _Alignas(max_align_t) char items[];
} conc__channel;

/* The internals of a channel that was closed when there was no memory for its own. */
static conc__channel conc__shut_channel = {.mutex = PTHREAD_MUTEX_INITIALIZER, .closed = true};

/* Creates the internals of a channel. size: of all items together, in bytes. Returns NULL if memory
 * has run out. */
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

/* Resets a channel that was used before this process was forked: its waiters are the parent's, and
 * its mutex might stay locked. Its items are kept; an item that a thread of the parent was copying
 * during the fork may be incomplete. */
CONC__COLD void conc__channel_take_over(conc__channel *inner)
{
    /* other threads of the child may call this at the same time */
    pthread_mutex_lock(&conc__job_queues_mutex);
    if (inner->forks != conc__forks) {
        pthread_mutex_init(&inner->mutex, NULL);
        inner->senders = inner->receivers = inner->told = NULL;
        inner->kept_items = inner->kept_rooms = 0;
        __atomic_store_n(&inner->forks, conc__forks, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&conc__job_queues_mutex);
}

/* Are the channel's item size and capacity valid? */
CONC__PRIVATE bool conc__channel_fits(const conc_channel *c)
{
    size_t size;
    return c && c->capacity && !__builtin_mul_overflow(c->item_size, c->capacity, &size) &&
           size <= SIZE_MAX / 2;
}

/* Returns the internals of a channel, which the first call creates, or NULL if memory has run
 * out. */
CONC__PRIVATE conc__channel *conc__channel_inner(conc_channel *c)
{
    conc__channel *inner = __atomic_load_n(&c->inner, __ATOMIC_ACQUIRE);
    if (inner)
        return inner;
    conc__job_queues_need(); /* so that forks are counted */
    conc__channel *made = conc__channel_make(c->item_size * c->capacity);
    if (!made)
        return NULL;
    if (__atomic_compare_exchange_n(&c->inner, &inner, made, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE))
        return made;
    conc__channel_free(made); /* another thread came first */
    return inner;
}

/* Returns the internals of a channel, locked, or NULL with an error in *rc. */
CONC__PRIVATE conc__channel *conc__channel_lock(conc_channel *c, int *rc)
{
    *rc = -EINVAL;
    if (!conc__channel_fits(c))
        return NULL;
    *rc = -ENOMEM;
    conc__channel *inner = conc__channel_inner(c);
    if (!inner)
        return NULL;
    *rc = 0;
    if (CONC__UNLIKELY(__atomic_load_n(&inner->forks, __ATOMIC_ACQUIRE) != conc__forks))
        conc__channel_take_over(inner);
    conc__lock_briefly(&inner->mutex);
    return inner;
}

CONC__PRIVATE bool conc__channel_cancel(conc__wait *wait)
{
    conc__waiter *w = wait->item;
    conc__channel *inner = (conc__channel *)(uintptr_t)wait->on;
    if (__atomic_load_n(&w->woken, __ATOMIC_ACQUIRE))
        return false;
    conc__lock_briefly(&inner->mutex);
    bool waits = !w->woken;
    if (waits)
        conc__waiter_complete(w, -ECANCELED);
    pthread_mutex_unlock(&inner->mutex);
    return waits;
}

static const conc__wait_kind conc__channel_sends = {.what = "sends into a full channel",
                                                    .cancel = conc__channel_cancel};
static const conc__wait_kind conc__channel_receives = {.what = "receives from an empty channel",
                                                       .cancel = conc__channel_cancel};

CONC__PRIVATE char *conc__channel_at(const conc_channel *c, conc__channel *inner, size_t i)
{
    size_t from_head = c->capacity - inner->head; /* slots from the head to the ring's end */
    return inner->items + (i < from_head ? inner->head + i : i - from_head) * c->item_size;
}

/* The warning is ignored as in conc__item_copy. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wnonnull"
CONC__PRIVATE void conc__channel_copy(const conc_channel *c, void *to, const void *from)
{
    if (c->item_size)
        memcpy(to, from, c->item_size);
}
#pragma GCC diagnostic pop

CONC__PRIVATE void conc__channel_append(const conc_channel *c, conc__channel *inner,
                                        const void *item)
{
    conc__channel_copy(c, conc__channel_at(c, inner, inner->count), item);
    inner->count++;
}

CONC__PRIVATE void conc__channel_remove(const conc_channel *c, conc__channel *inner, void *item)
{
    conc__channel_copy(c, item, conc__channel_at(c, inner, 0));
    inner->head = inner->head + 1 < c->capacity ? inner->head + 1 : 0;
    inner->count--;
}

/* Returns the list of waiting senders or receivers. */
CONC__PRIVATE conc__waiter **conc__channel_waiters(conc__channel *inner, bool senders)
{
    return senders ? &inner->senders : &inner->receivers;
}

/* Returns the counter of reserved rooms or items. */
CONC__PRIVATE size_t *conc__channel_kept(conc__channel *inner, bool rooms)
{
    return rooms ? &inner->kept_rooms : &inner->kept_items;
}

CONC__PRIVATE bool conc__channel_has_item(const conc__channel *inner)
{
    return inner->count > inner->kept_items;
}

CONC__PRIVATE bool conc__channel_has_room(const conc_channel *c, const conc__channel *inner)
{
    return inner->count + inner->kept_rooms < c->capacity;
}

/* Notifies a case of conc_select, and reserves an item or room for it. */
CONC__PRIVATE void conc__channel_keep(conc__channel *inner, conc__waiter *w, size_t *kept)
{
    ++*kept;
    w->kept = true;
    conc__waiter_complete(w, 0);
    conc__waiter_add(&inner->told, w);
    conc__waiter_notify(w);
}

/* Hands unreserved items and room to the waiters. */
CONC__PRIVATE void conc__channel_match(const conc_channel *c, conc__channel *inner)
{
    for (;;) {
        conc__waiter *w = NULL;
        bool receives = inner->receivers && conc__channel_has_item(inner);
        if (receives)
            w = inner->receivers;
        else if (conc__channel_has_room(c, inner))
            w = inner->senders;
        if (!w)
            break;
        if (w->selects) {
            conc__channel_keep(inner, w, conc__channel_kept(inner, !receives));
            continue;
        }
        if (receives)
            conc__channel_remove(c, inner, w->item);
        else
            conc__channel_append(c, inner, w->item);
        conc__waiter_wake(w, 0);
    }
    while (inner->closed && !inner->count && inner->receivers)
        conc__waiter_wake(inner->receivers, -EPIPE);
}

/* Sends an item. Returns 0, -EPIPE (closed) or -EAGAIN (full, or all room is reserved). */
CONC__PRIVATE int conc__channel_put(const conc_channel *c, conc__channel *inner, const void *item)
{
    conc__waiter *w = inner->receivers;
    if (inner->closed)
        return -EPIPE;
    if (w && !w->selects) {
        conc__channel_copy(c, w->item, item);
        conc__waiter_wake(w, 0);
        return 0;
    }
    if (!conc__channel_has_room(c, inner))
        return -EAGAIN;
    conc__channel_append(c, inner, item);
    if (w)
        conc__channel_match(c, inner);
    return 0;
}

/* Receives an item. Returns 0, -EPIPE (closed and empty) or -EAGAIN (empty, or all items are
 * reserved). */
CONC__PRIVATE int conc__channel_take(const conc_channel *c, conc__channel *inner, void *item)
{
    if (!conc__channel_has_item(inner)) {
        bool drained = inner->closed && !inner->count;
        return drained ? -EPIPE : -EAGAIN;
    }
    conc__channel_remove(c, inner, item);
    if (inner->senders || inner->receivers)
        conc__channel_match(c, inner);
    return 0;
}

CONC__FAST int conc__channel_try(const conc_channel *c, conc__channel *inner, void *item,
                                 bool sends)
{
    if (sends)
        return conc__channel_put(c, inner, item);
    return conc__channel_take(c, inner, item);
}

/* Waits until the item has been sent or received. The channel is locked; this function unlocks
 * it. */
CONC__FAST int conc__channel_wait(conc_loop *l, conc__channel *inner, void *item, bool sends)
{
    const conc__wait_kind *kind = sends ? &conc__channel_sends : &conc__channel_receives;
    conc__waiter w = {.item = item};
    conc__waiter_add(conc__channel_waiters(inner, sends), &w);
    if (l)
        l->outside.channel_waits++;
    int rc = conc__wait_outside(l, &w, kind, inner, &inner->mutex, NULL);
    if (l)
        l->outside.channel_waits--;
    return conc__wait_result(rc);
}

/* Sends or receives an item. waits: the call may wait. */
CONC__SWITCHES int conc__channel_move(conc_channel *c, void *item, bool sends, bool waits,
                                      const char *call)
{
    conc_loop *l = NULL;
    int rc = 0;
    if (waits)
        rc = conc__caller(&l, call);
    if (rc)
        return rc;
    if (!c || (c->item_size && !item))
        return conc__misused(-EINVAL, call, "no channel, or no item", NULL);
    if (l)
        rc = conc__checkpoint(l);
    else if (waits && conc_job_cancelled())
        rc = -ECANCELED;
    if (rc)
        return conc__wait_result(rc);
    conc__channel *inner = conc__channel_lock(c, &rc);
    if (rc == -EINVAL)
        return conc__misused(rc, call, "no capacity, or too much", NULL);
    if (!inner)
        return conc__wait_result(rc);
    rc = conc__channel_try(c, inner, item, sends);
    if (rc == -EAGAIN && waits)
        return conc__channel_wait(l, inner, item, sends);
    pthread_mutex_unlock(&inner->mutex);
    if (rc == 0 && l)
        conc__spend_budget(l);
    return conc__wait_result(rc);
}

CONC_API CONC__CALLED int conc_channel_send(conc_channel *c, const void *item)
{
    return conc__channel_move(c, (void *)(uintptr_t)item, true, true, __func__);
}

CONC_API CONC__CALLED int conc_channel_recv(conc_channel *c, void *item)
{
    return conc__channel_move(c, item, false, true, __func__);
}

CONC_API int conc_channel_try_send(conc_channel *c, const void *item)
{
    return conc__channel_move(c, (void *)(uintptr_t)item, true, false, __func__);
}

CONC_API CONC__CALLED int conc_channel_try_recv(conc_channel *c, void *item)
{
    return conc__channel_move(c, item, false, false, __func__);
}

CONC_API void conc_channel_close(conc_channel *c)
{
    int rc;
    conc__channel *inner = conc__channel_lock(c, &rc);
    if (rc == -ENOMEM) {
        conc__channel *none = NULL;
        bool is_closed = __atomic_compare_exchange_n(&c->inner, &none, &conc__shut_channel, false,
                                                     __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
        if (!is_closed) /* another thread has just created it */
            inner = conc__channel_lock(c, &rc);
    }
    if (!inner)
        return;
    inner->closed = true;
    while (inner->senders)
        conc__waiter_wake(inner->senders, -EPIPE);
    /* receivers keep waiting even if there are items, as long as all of them are reserved */
    conc__channel_match(c, inner);
    pthread_mutex_unlock(&inner->mutex);
}

/* Ends all waits and reservations; their result is -EPIPE. */
CONC__PRIVATE void conc__channel_drop(conc__channel *inner)
{
    conc__waiter *w;
    pthread_mutex_lock(&inner->mutex);
    while ((w = inner->told)) {
        conc__waiter_remove(w);
        w->kept = false;
        w->result = -EPIPE;
    }
    while (inner->receivers)
        conc__waiter_wake(inner->receivers, -EPIPE);
    pthread_mutex_unlock(&inner->mutex);
}

CONC_API void conc_channel_destroy(conc_channel *c)
{
    if (!c || !__atomic_load_n(&c->inner, __ATOMIC_ACQUIRE))
        return;
    conc_channel_close(c);
    conc__channel_drop(c->inner);
    conc__channel_free(c->inner);
    c->inner = NULL;
}

CONC_API void conc__auto_conc_channel(conc_channel *c) { conc_channel_destroy(c); }

/* ---- >>select ------------------------------------------------------------------------------- */

/* A waiting case of conc_select. It is in the list of the channel or job until another thread
 * notifies it (removes it from the list and posts it to the loop), or until the case ends. */
typedef struct conc__outside_wait {
    conc__outside it; /* must be first */
    conc__waiter waiter;
    bool ended;             /* the select is no longer waiting for it */
    conc__channel *inner;   /* of a channel case */
    conc__job_context *own; /* as in conc__job_wait_as */
    conc__job_outcome outcome;
} conc__outside_wait;

CONC__PRIVATE int conc__outside_check_job(const conc_job *j)
{
    if (!conc__is_job(j))
        return conc__misused(-EINVAL, "conc_select", "a job that was never submitted", NULL);
    if (conc_job_done(j))
        return 0;
    for (conc__job_context *ctx = conc__job_context_here(); ctx; ctx = ctx->outer)
        if (ctx->job == j)
            return conc__own_error(-EDEADLK);
    return 0;
}

CONC__PRIVATE int conc__outside_check(const conc__outside *o)
{
    int rc = 0;
    if (o->kind == CONC__CASE_ENDS)
        return conc__outside_check_job(o->object);
    conc_channel *c = o->object;
    if (!c || (c->item_size && !o->item))
        return conc__misused(-EINVAL, "conc_select", "no channel, or no item", NULL);
    conc__channel *inner = conc__channel_lock(c, &rc);
    if (inner)
        pthread_mutex_unlock(&inner->mutex);
    return conc__wait_result(rc);
}

/* Tries to send or receive, with the channel locked. */
CONC__PRIVATE int conc__outside_move(const conc__outside *o, conc__channel *inner)
{
    return conc__channel_try(o->object, inner, o->item, o->kind == CONC__CASE_SENDS);
}

/* Records the result of a case that was carried out. text: the error's text, or NULL. */
CONC__PRIVATE void conc__outside_happened(conc__outside *o, int result, const char *text)
{
    o->result = result;
    if (result < 0)
        conc__set_error(o->task, result, text, (conc__source){NULL, NULL});
}

CONC__PRIVATE void conc__outside_answered(conc__outside *o, const conc__job_outcome *a)
{
    conc__outside_happened(o, a->result, a->has_text ? a->text : NULL);
}

CONC__PRIVATE bool conc__outside_attempt(conc__outside *o)
{
    conc__job_outcome outcome;
    int rc;
    if (o->kind == CONC__CASE_ENDS) {
        const conc_job *j = o->object;
        if (!conc_job_done(j))
            return false;
        conc__job_outcome_read(&outcome, j, conc__job_state(j));
        conc__outside_answered(o, &outcome);
        return true;
    }
    conc__channel *inner = conc__channel_lock(o->object, &rc);
    if (inner) {
        rc = conc__outside_move(o, inner);
        pthread_mutex_unlock(&inner->mutex);
    }
    if (rc == -EAGAIN)
        return false;
    conc__outside_happened(o, rc, NULL);
    return true;
}

CONC__PRIVATE int conc__outside_begin_channel(conc__outside_wait *w)
{
    int rc;
    bool sends = w->it.kind == CONC__CASE_SENDS;
    conc__channel *inner = conc__channel_lock(w->it.object, &rc);
    if (!inner)
        return rc;
    w->inner = inner;
    rc = conc__outside_move(&w->it, inner);
    if (rc == -EAGAIN)
        conc__waiter_add(conc__channel_waiters(inner, sends), &w->waiter);
    pthread_mutex_unlock(&inner->mutex);
    if (rc == -EAGAIN)
        return 0;
    conc__outside_happened(&w->it, rc, NULL);
    return 1;
}

/* Adds the case to the waiters of the job, which has not ended. conc__job_queues_mutex and the job
 * queue's mutex are locked. */
CONC__PRIVATE int conc__outside_line_up(conc_loop *l, conc__outside_wait *w, conc_job *j)
{
    w->waiter.queue = j->queue;
    w->own = conc__job_context_in(w->waiter.queue);
    int rc = conc__job_queue_count_waiting(w->waiter.queue, w->own, l, 1);
    if (rc) {
        conc__job_queue_count_waiting(w->waiter.queue, w->own, l, -1);
        return rc;
    }
    w->waiter.item = j;
    conc__job_add_waiter(j, &w->waiter);
    return 0;
}

CONC__PRIVATE int conc__outside_begin_job(conc_loop *l, conc__outside_wait *w)
{
    conc_job *j = w->it.object;
    int rc = 1;
    pthread_mutex_lock(&conc__job_queues_mutex);
    if (!(conc__job_state(j) & CONC__JOB_DONE)) {
        conc__job_queue *q = j->queue;
        conc__lock_briefly(&q->mutex);
        if (!(__atomic_fetch_or(&j->state, CONC__JOB_WAITED, __ATOMIC_ACQ_REL) & CONC__JOB_DONE))
            rc = conc__outside_line_up(l, w, j);
        pthread_mutex_unlock(&q->mutex);
    }
    if (rc == 1)
        conc__job_outcome_read(&w->outcome, j, conc__job_state(j));
    pthread_mutex_unlock(&conc__job_queues_mutex);
    if (rc == 1)
        conc__outside_answered(&w->it, &w->outcome);
    return rc;
}

/* Releases what was reserved for the case. The caller holds the channel's mutex. */
CONC__PRIVATE void conc__outside_unkeep(conc__outside_wait *w)
{
    conc__waiter_remove(&w->waiter);
    --*conc__channel_kept(w->inner, w->it.kind == CONC__CASE_SENDS);
}

/* In the loop: carries out a case that another thread has notified. If the select is no longer
 * waiting for it, only frees it. */
CONC__PRIVATE void conc__outside_arrives(conc__post *p)
{
    conc__waiter *waiter = (conc__waiter *)(void *)((char *)p - offsetof(conc__waiter, post));
    conc__outside_wait *w =
        (conc__outside_wait *)(void *)((char *)waiter - offsetof(conc__outside_wait, waiter));
    int rc = waiter->result;
    if (w->ended) {
        w->it.notified(&w->it, false);
        conc_free(w);
        return;
    }
    if (w->it.kind == CONC__CASE_ENDS) {
        conc__job_queue_uncount_waiting(w->waiter.queue, w->own, waiter->loop);
        conc__outside_answered(&w->it, &w->outcome);
    } else if (waiter->kept) {
        conc__lock_briefly(&w->inner->mutex);
        conc__outside_unkeep(w);
        rc = conc__outside_move(&w->it, w->inner);
        conc__channel_match(w->it.object, w->inner);
        pthread_mutex_unlock(&w->inner->mutex);
    }
    if (w->it.kind != CONC__CASE_ENDS)
        conc__outside_happened(&w->it, rc, NULL);
    w->it.notified(&w->it, true);
    conc_free(w);
}

CONC__PRIVATE int conc__outside_begin(conc_loop *l, conc__outside *o, conc__outside **begun)
{
    conc__outside_wait *w = conc__alloc(sizeof *w);
    if (!w)
        return conc__own_error(-ENOMEM);
    *w = (conc__outside_wait){.it = *o};
    w->waiter.loop = l;
    w->waiter.post.run = conc__outside_arrives;
    w->waiter.outcome = &w->outcome;
    w->waiter.selects = true;
    int rc;
    if (o->kind == CONC__CASE_ENDS)
        rc = conc__outside_begin_job(l, w);
    else
        rc = conc__outside_begin_channel(w);
    if (rc == 0) {
        *begun = &w->it;
        return 0;
    }
    o->result = w->it.result;
    conc_free(w);
    return conc__wait_result(rc);
}

/* Removes the case from the channel's list, and hands what was reserved for it to other waiters.
 * Returns whether it had been notified. */
CONC__PRIVATE bool conc__outside_leave_channel(conc__outside_wait *w)
{
    conc__waiter *waiter = &w->waiter;
    bool woken = __atomic_load_n(&waiter->woken, __ATOMIC_ACQUIRE);
    if (woken && !waiter->kept)
        return true; /* the channel might be gone */
    conc__lock_briefly(&w->inner->mutex);
    woken = waiter->woken;
    if (waiter->kept) {
        waiter->kept = false;
        conc__outside_unkeep(w);
        conc__channel_match(w->it.object, w->inner);
    } else if (!woken) {
        conc__waiter_remove(waiter);
    }
    pthread_mutex_unlock(&w->inner->mutex);
    return woken;
}

CONC__PRIVATE bool conc__outside_leave_job(conc__outside_wait *w)
{
    pthread_mutex_lock(&conc__job_queues_mutex);
    bool waits = conc__lock_if_waiting(&w->waiter, w->waiter.queue);
    if (waits) {
        conc__waiter_remove(&w->waiter);
        pthread_mutex_unlock(&w->waiter.queue->mutex);
    }
    pthread_mutex_unlock(&conc__job_queues_mutex);
    conc__job_queue_uncount_waiting(w->waiter.queue, w->own, w->waiter.loop);
    return !waits;
}

CONC__PRIVATE bool conc__outside_end(conc__outside *o)
{
    conc__outside_wait *w = (conc__outside_wait *)(void *)o;
    bool told;
    if (o->kind == CONC__CASE_ENDS)
        told = conc__outside_leave_job(w);
    else
        told = conc__outside_leave_channel(w);
    w->ended = true;
    if (!told)
        conc_free(w);
    return told;
}

static const conc__outside_calls conc__outside_of_pool = {
    conc__outside_check, conc__outside_attempt, conc__outside_begin, conc__outside_end};

/* ---- >>files -------------------------------------------------------------------------------- */

/* The arguments and the results of one file call. */
typedef struct conc__file_call {
    const char *path;
    char *data;
    size_t size, room, written;
    bool may_wait; /* the caller is a task, which waits where a thread would block: see below */
    bool special;  /* a read of a non-regular file, which may have no end */
    bool progress; /* bytes were transferred since the last wait */
    int fd;        /* kept open while the call is waiting; -1: none */
} conc__file_call;

/* A FIFO without its other end, a terminal and the like could block a thread indefinitely. So a
 * task's call opens such files in non-blocking mode, and the job returns one of these where it
 * would block. The task then waits, until it can rerun the job or is cancelled. */
enum {
    CONC__FILE_WAITS = 1, /* until the descriptor is ready */
    CONC__FILE_ALONE,     /* until a reader opens the FIFO */
};

/* Returns a system call's result, or -errno if it failed. */
static inline int conc__or_errno(int result) { return result < 0 ? -errno : result; }

CONC__PRIVATE int conc__open_file(const char *path, int flags)
{
    int fd;
    do
        fd = open(path, flags | O_CLOEXEC | O_NOCTTY, 0666);
    while (fd < 0 && errno == EINTR);
    /* as descriptor 1 or 2, the file might get the program's output */
    return conc__or_errno(conc__not_standard(fd));
}

CONC__PRIVATE int conc__close_file(int fd, int rc)
{
    if (close(fd) == 0 || rc || errno == EINTR)
        return rc;
    return -errno;
}

/* Opens the file for a call, unless a previous attempt left it open. */
CONC__PRIVATE int conc__open_for(conc__file_call *f, int flags)
{
    if (f->fd >= 0)
        return f->fd;
    int extra = f->may_wait ? O_NONBLOCK : 0;
    int fd = conc__open_file(f->path, flags | extra);
    if (fd == -EAGAIN) /* another process holds a lease on a regular file */
        fd = conc__open_file(f->path, flags);
    return fd;
}

/* Closes the file when the job has finished with it, or keeps it open if the task must wait for
 * it. */
CONC__PRIVATE int conc__suspend_file(conc__file_call *f, int fd, int rc)
{
    if (f->may_wait && rc == -EAGAIN) {
        f->fd = fd;
        return CONC__FILE_WAITS;
    }
    f->fd = -1;
    return conc__close_file(fd, rc);
}

CONC__PRIVATE bool conc__file_reserve(conc__file_call *f)
{
    if (f->data && f->size + 1 < f->room)
        return true;
    size_t room = f->data ? f->room * 2 : f->room + 1;
    char *more = CONC_REALLOC(f->data, room);
    if (!more)
        return false;
    f->data = more;
    f->room = room;
    return true;
}

/* Reads to the end of the file, because the size from fstat may be wrong. */
CONC__PRIVATE int conc__read_all(int fd, conc__file_call *f)
{
    for (ssize_t n = 1; n;) {
        if (!conc__file_reserve(f))
            return -ENOMEM;
        n = read(fd, f->data + f->size, conc__at_once(f->room - f->size - 1));
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            f->size += (size_t)n;
            f->progress = true;
        }
        if (f->special && f->may_wait && conc_job_cancelled())
            return -ECANCELED;
    }
    f->data[f->size] = 0;
    return 0;
}

CONC__PRIVATE int conc__file_reads(void *arg)
{
    conc__file_call *f = arg;
    struct stat st = {0};
    bool begins = f->fd < 0;
    int saved = errno, fd = conc__open_for(f, O_RDONLY), rc = fd;
    if (fd >= 0 && begins) {
        bool sized = fstat(fd, &st) == 0 && st.st_size > 0;
        f->room = sized ? (size_t)st.st_size + 1 : 4096;
        f->special = !S_ISREG(st.st_mode);
    }
    /* a FIFO reads as empty until a writer opens it */
    bool waits_first = f->may_wait && begins && S_ISFIFO(st.st_mode);
    f->progress |= waits_first;
    if (waits_first)
        rc = conc__suspend_file(f, fd, -EAGAIN);
    else if (fd >= 0)
        rc = conc__suspend_file(f, fd, conc__read_all(fd, f));
    errno = saved;
    return rc;
}

/* Waits until the job can continue. The pause lets other processes run: a FIFO might have no other
 * end yet, and a file that is always ready might have no data. */
CONC__PRIVATE int conc__file_await(conc_loop *l, const conc__file_call *f, int events, bool alone,
                                   double *pause)
{
    int rc = 0;
    l->outside.process_waits++;
    if (alone || !f->progress) {
        rc = conc_sleep(*pause);
        if (*pause < 0.05)
            *pause *= 2;
    }
    if (rc == 0 && !alone)
        rc = conc_wait_fd(f->fd, events);
    l->outside.process_waits--;
    return rc;
}

/* Runs the job repeatedly until all the work is done. */
CONC__PRIVATE int conc__file_call_run(conc__file_call *f, conc_fn *fn, int events, const char *call)
{
    conc_loop *l = conc__of_task();
    double pause = 0.001;
    f->fd = -1;
    f->may_wait = l != NULL;
    int rc = conc__offload(CONC__FILES, fn, f, call);
    while (rc > 0) {
        rc = conc__file_await(l, f, events, rc == CONC__FILE_ALONE, &pause);
        f->progress = false;
        if (rc >= 0)
            rc = conc__offload(CONC__FILES, fn, f, call);
    }
    int saved = errno;
    if (f->fd >= 0)
        close(f->fd);
    errno = saved;
    return rc;
}

CONC_API CONC__CALLED int conc_file_read(const char *path, void **data, size_t *size)
{
    conc__file_call f = {.path = path};
    if (data)
        *data = NULL;
    if (!path || !data)
        return conc__own_error(-EINVAL);
    int rc = conc__file_call_run(&f, conc__file_reads, CONC_READABLE, __func__);
    if (rc) {
        conc_free(f.data);
        f.data = NULL;
    }
    *data = f.data;
    if (size)
        *size = f.data ? f.size : 0;
    return conc__system_failed(rc, path);
}

CONC__PRIVATE int conc__write_all(int fd, conc__file_call *f)
{
    while (f->written < f->size) {
        size_t left = conc__at_once(f->size - f->written);
        ssize_t n = conc__write_unharmed(fd, f->data + f->written, left);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            f->written += (size_t)n;
            f->progress = true;
        }
    }
    return 0;
}

CONC__PRIVATE int conc__write_to(const char *path, int flags, conc__file_call *f)
{
    int fd = conc__open_file(path, flags);
    if (fd < 0)
        return fd;
    return conc__close_file(fd, conc__write_all(fd, f));
}

/* Opens the directory that contains the file at path; *name: the file's name in it. */
CONC__PRIVATE int conc__open_directory(const char *path, const char **name)
{
    const char *slash = strrchr(path, '/');
    char directory[4096];
    const int flags = CONC__O_PATH | O_DIRECTORY;
    if (!slash) {
        *name = path;
        return conc__open_file(".", flags);
    }
    *name = slash + 1;
    if ((size_t)(slash - path) + 2 > sizeof directory)
        return -ENAMETOOLONG;
    conc__copy(directory, (size_t)(slash - path) + 2, path);
    return conc__open_file(directory, flags);
}

/* Creates a file under a new name, which it stores in `name`. Returns the descriptor. */
CONC__PRIVATE int conc__open_new(int directory, mode_t mode, char *name, size_t size)
{
    int fd = -1;
    uint64_t draw = (uint64_t)conc__clock() ^ (uint64_t)getpid() << 40 ^ (uint64_t)(uintptr_t)name;
    for (int tries = 0; tries < 100; tries++) {
        snprintf(name, size, ".conc-%08x", (unsigned)conc__random_bits(&draw));
        fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        bool again = fd < 0 && (errno == EEXIST || errno == EINTR);
        if (!again)
            break;
    }
    bool made = fd >= 0;
    fd = conc__not_standard(fd);
    int rc = conc__or_errno(fd);
    if (made && fd < 0)
        unlinkat(directory, name, 0);
    return rc;
}

/* Returns the mode for a replacement file, which may have another owner or group than the original.
 * It grants no new access: a new group gets what others had, and others lose what the old group was
 * denied, because its members are now among them. */
CONC__PRIVATE mode_t conc__mode_after(const struct stat *before, const struct stat *now,
                                      bool list_lost)
{
    unsigned mode = before->st_mode & 07777u, both = (mode >> 3) & mode & 07u;
    if (list_lost || now->st_gid != before->st_gid)
        mode = (mode & ~(S_ISGID | 077u)) | both << 3 | both;
    if (now->st_uid != before->st_uid)
        mode &= ~(unsigned)S_ISUID;
    return (mode_t)mode;
}

/* Gives the new file the owner, group and mode of the file at path, as far as permitted. */
CONC__PRIVATE int conc__copy_access(int fd, const char *path, const struct stat *before)
{
    struct stat now;
    if (fchown(fd, before->st_uid, before->st_gid) && fchown(fd, (uid_t)-1, before->st_gid)) {
        /* the file belonged to another user or group, and is now ours */
    }
    if (fstat(fd, &now) || fchmod(fd, conc__mode_after(before, &now, false)))
        return -errno;
    if (now.st_gid != before->st_gid || conc__keep_list(fd, path))
        return 0;
    return conc__or_errno(fchmod(fd, conc__mode_after(before, &now, true)));
}

/* Writes and syncs the new file. before: the file at path that it will replace; NULL: none. */
CONC__PRIVATE int conc__fill(int fd, const char *path, const struct stat *before,
                             conc__file_call *f)
{
    int rc = conc__write_all(fd, f);
    if (rc == 0 && before)
        rc = conc__copy_access(fd, path, before);
    if (rc == 0)
        rc = conc__sync_file(fd);
    return rc;
}

/* Atomically creates or replaces the file at path. before: the old file; NULL: none. */
CONC__PRIVATE int conc__replace(const char *path, const struct stat *before, conc__file_call *f)
{
    char name[32];
    const char *last;
    int directory = conc__open_directory(path, &last);
    if (directory < 0)
        return directory;
    int fd = conc__open_new(directory, before ? 0600 : 0666, name, sizeof name), rc = fd;
    if (fd >= 0) {
        rc = conc__close_file(fd, conc__fill(fd, path, before, f));
        if (rc == 0 && renameat(directory, name, directory, last))
            rc = -errno;
        if (rc)
            unlinkat(directory, name, 0);
    }
    close(directory);
    return rc;
}

/* Could writing in place succeed even though replacing the file failed with rc? The file might be
 * in /proc, a mount point, or in a directory that this program may not change. */
CONC__PRIVATE bool conc__cannot_replace(int rc)
{
    static const int errors[] = {EACCES, EPERM, EROFS, EBUSY, EXDEV, ENOENT, ENOTSUP, ENOSYS};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (rc == -errors[i])
            return true;
    return false;
}

CONC__PRIVATE int conc__write_in_place(const char *path, conc__file_call *f)
{
    f->written = 0;
    int fd = conc__open_file(path, O_WRONLY | O_TRUNC), rc = fd;
    if (fd < 0)
        return rc;
    rc = conc__write_all(fd, f);
    /* files in /proc cannot be synced */
    if (rc == 0 && fsync(fd) && errno != EINVAL && errno != EROFS)
        rc = -errno;
    return conc__close_file(fd, rc);
}

/* Writes to a file that is not regular. */
CONC__PRIVATE int conc__write_special(conc__file_call *f, bool is_fifo)
{
    int fd = conc__open_for(f, O_WRONLY);
    if (fd >= 0)
        return conc__suspend_file(f, fd, conc__write_all(fd, f));
    bool has_no_reader = fd == -ENXIO && is_fifo;
    if (has_no_reader && f->may_wait)
        return CONC__FILE_ALONE;
    return fd;
}

enum { CONC__PATH_ROOM = 4096 };

/* Replaces a link's path with its target's. target: a buffer of CONC__PATH_ROOM bytes. */
CONC__PRIVATE int conc__follow_link(char *path, char *target)
{
    ssize_t n = readlink(path, target, CONC__PATH_ROOM - 1);
    if (n < 0)
        return -errno;
    const char *slash = strrchr(path, '/');
    bool is_relative = n > 0 && target[0] != '/';
    size_t kept = is_relative && slash ? (size_t)(slash - path) + 1 : 0;
    if (kept + (size_t)n >= CONC__PATH_ROOM)
        return -ENAMETOOLONG;
    memcpy(path + kept, target, (size_t)n);
    path[kept + (size_t)n] = 0;
    return 0;
}

/* Follows a link whose target does not exist. Returns the target's path, to be released with
 * conc_free, or NULL with an error in *rc. */
CONC__PRIVATE char *conc__follow(const char *path, int *rc)
{
    enum { LINKS = 40 };
    char *at = conc__alloc((size_t)2 * CONC__PATH_ROOM);
    struct stat st;
    *rc = 0;
    if (!at)
        *rc = -ENOMEM;
    else if (strlen(path) >= CONC__PATH_ROOM)
        *rc = -ENAMETOOLONG;
    else
        strcpy(at, path);
    for (int links = 0; *rc == 0 && lstat(at, &st) == 0 && S_ISLNK(st.st_mode); links++)
        *rc = links < LINKS ? conc__follow_link(at, at + CONC__PATH_ROOM) : -ELOOP;
    if (*rc == 0)
        return at;
    conc_free(at);
    return NULL;
}

/* Replaces or creates the file. A symbolic link is kept: this replaces or creates its target. */
CONC__PRIVATE int conc__write_file(conc__file_call *f)
{
    struct stat before;
    int rc;
    bool exists = stat(f->path, &before) == 0;
    if (!exists && errno != ENOENT)
        return -errno;
    if (f->fd >= 0 || (exists && !S_ISREG(before.st_mode)))
        return conc__write_special(f, exists && S_ISFIFO(before.st_mode));
    if (!exists) {
        char *target = conc__follow(f->path, &rc);
        if (target)
            rc = conc__replace(target, NULL, f);
        conc_free(target);
        return rc;
    }
    char *real = realpath(f->path, NULL);
    if (real)
        rc = conc__replace(real, &before, f);
    else
        rc = -errno;
    if (conc__cannot_replace(rc))
        rc = conc__write_in_place(f->path, f);
    free(real);
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
    conc__file_call *f = arg;
    struct stat st = {0};
    int saved = errno, rc;
    bool special = stat(f->path, &st) == 0 && !S_ISREG(st.st_mode);
    if (special || f->fd >= 0)
        rc = conc__write_special(f, S_ISFIFO(st.st_mode));
    else
        rc = conc__write_to(f->path, O_WRONLY | O_APPEND | O_CREAT, f);
    errno = saved;
    return rc;
}

CONC__PRIVATE int conc__file_change(conc_fn *fn, const char *path, const void *data, size_t size,
                                    const char *call)
{
    conc__file_call f = {.path = path, .data = (char *)(uintptr_t)data, .size = size};
    if (!path || (!data && size))
        return conc__own_error(-EINVAL);
    if (!*path) /* otherwise the error would name the directory */
        return conc__system_failed(-ENOENT, path);
    return conc__system_failed(conc__file_call_run(&f, fn, CONC_WRITABLE, call), path);
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

enum { CONC__FOUND = 256 }; /* maximum number of addresses of a name that are used */

/* A name lookup. It may outlive the caller's wait. */
typedef struct conc__name_lookup {
    int references;
    char host[256], port[64];
    size_t max, count, kept;
    int code, error; /* getaddrinfo's result, and its errno */
    struct sockaddr_storage found[];
} conc__name_lookup;

CONC__PRIVATE void conc__name_lookup_release(void *arg)
{
    conc__name_lookup *q = arg;
    if (__atomic_sub_fetch(&q->references, 1, __ATOMIC_ACQ_REL) == 0)
        conc_free(q);
}

CONC__PRIVATE int conc__name_lookup_run(void *arg)
{
    conc__name_lookup *q = arg;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL;
    int saved = errno;
    q->code = getaddrinfo(q->host, q->port, &hints, &list);
    q->error = errno;
    if (q->code == 0) {
        for (struct addrinfo *a = list; a; a = a->ai_next, q->count++)
            if (q->kept < q->max && a->ai_addrlen <= sizeof q->found[0])
                memcpy(&q->found[q->kept++], a->ai_addr, a->ai_addrlen);
        freeaddrinfo(list);
    }
    errno = saved;
    return 0;
}

/* Fails with an error that says why there is no address. */
CONC__PRIVATE int conc__name_lookup_failed(const conc__name_lookup *q)
{
    switch (q->code) {
    case EAI_MEMORY: return conc__system_failed(-ENOMEM, q->host);
    case EAI_SERVICE: return conc_fail(-EINVAL, "%s: no such port", q->port);
    case EAI_SYSTEM:
        if (q->error > 0)
            return conc_fail(-q->error, "%s: %s", q->host, conc_strerror(-q->error));
    /* fall through */
    case 0: return conc_fail(-EADDRNOTAVAIL, "%s: no address", q->host);
    default: return conc_fail(-EADDRNOTAVAIL, "%s: %s", q->host, gai_strerror(q->code));
    }
}

/* Makes an empty string visible in an error text. */
CONC__PRIVATE const char *conc__visible(const char *text) { return *text ? text : "\"\""; }

/* Returns whether `port` is a number up to 65535 or might be a service name. */
CONC__PRIVATE bool conc__is_port(const char *port)
{
    in_port_t number;
    bool letter = (*port >= 'a' && *port <= 'z') || (*port >= 'A' && *port <= 'Z');
    return strlen(port) < sizeof((conc__name_lookup *)0)->port &&
           (letter || conc__parse_port(port, &number));
}

CONC__PRIVATE conc__name_lookup *conc__name_lookup_new(const char *host, const char *port,
                                                       size_t max)
{
    conc__name_lookup *q = conc__alloc(sizeof *q + max * sizeof q->found[0]);
    if (!q)
        return NULL;
    memset(q, 0, sizeof *q + max * sizeof q->found[0]);
    q->references = 2; /* the caller's, and the job's */
    q->max = max;
    strcpy(q->host, host);
    strcpy(q->port, port);
    return q;
}

/* Implements conc_resolve. Reports a misuse as one of `call`. */
CONC__PRIVATE CONC__CALLED int conc__resolve(const char *host, const char *port,
                                             struct sockaddr_storage *out, size_t max,
                                             const char *call)
{
    if (!host || !port || (max && !out))
        return conc__misused(-EINVAL, call, "no host, no port, or no room for the addresses", NULL);
    if (!conc__is_port(port))
        return conc_fail(-EINVAL, "%.40s: no such port", conc__visible(port));
    if (!*host || strlen(host) >= sizeof((conc__name_lookup *)0)->host)
        return conc_fail(-EADDRNOTAVAIL, "%.40s: no name", conc__visible(host));
    conc__name_lookup *q = conc__name_lookup_new(host, port, max < CONC__FOUND ? max : CONC__FOUND);
    if (!q)
        return conc__system_failed(-ENOMEM, host);
    int rc =
        conc__offload_for(CONC__NAMES, conc__name_lookup_run, q, conc__name_lookup_release, call);
    if (rc == -ENOMEM || rc == -EAGAIN) /* the lookup did not run */
        conc__system_failed(rc, host);
    if (rc == 0 && (q->code || !q->count))
        rc = conc__name_lookup_failed(q);
    if (rc == 0) {
        if (q->kept)
            memcpy(out, q->found, q->kept * sizeof *out);
        rc = (int)q->count;
    }
    conc__name_lookup_release(q);
    return rc;
}

CONC_API CONC__CALLED int conc_resolve(const char *host, const char *port,
                                       struct sockaddr_storage *out, size_t max)
{
    return conc__resolve(host, port, out, max, __func__);
}

/* Resolves "name:port" for conc_listen, and for conc_dial in a task. The caller has checked the
 * form of the text, and frees *found. */
CONC__PRIVATE int conc__resolve_name(const char *text, struct conc__address **found)
{
    char host[256];
    const char *colon = strrchr(text, ':');
    conc__copy(host, (size_t)(colon - text) + 1, text);
    struct sockaddr_storage *all = conc__alloc(CONC__FOUND * sizeof *all);
    *found = conc__alloc(CONC__FOUND * sizeof **found);
    int rc;
    if (all && *found)
        rc = conc__resolve(host, colon + 1, all, CONC__FOUND, "conc_listen");
    else
        rc = conc__system_failed(-ENOMEM, host);
    if (rc > CONC__FOUND)
        rc = CONC__FOUND;
    for (int i = 0; i < rc; i++) {
        (*found)[i].size = sizeof(struct sockaddr_in);
        if (all[i].ss_family == AF_INET6)
            (*found)[i].size = sizeof(struct sockaddr_in6);
        memcpy(&(*found)[i].as, &all[i], (*found)[i].size);
    }
    conc_free(all);
    return rc;
}

/* ---- >>child -------------------------------------------------------------------------------- */

/* The states of a child, under conc__children_mutex:
 *
 *   NONE       never started, or closed
 *   STARTS     conc_child_start is running: becomes RUNS, ENDED or LOST, or NONE if it fails
 *   RUNS       not reaped yet, so no other process can have its process id; becomes ENDED or LOST
 *              when a call finds that the child has ended
 *   ENDED      `status` says how. With .group it is reaped only when it is closed (unless `reaped`
 *              is set), so that its process id still names the group
 *   LOST       ended, but other code took its status
 *   INHERITED  started by a process that has since forked this one
 *
 * conc_child_close changes any state but STARTS to NONE. */
typedef enum conc__child_state {
    CONC__CHILD_NONE,
    CONC__CHILD_STARTS,
    CONC__CHILD_RUNS,
    CONC__CHILD_ENDED,
    CONC__CHILD_LOST,
    CONC__CHILD_INHERITED
} conc__child_state;

/* Returns the address of `environ`, which macOS hides from shared libraries. */
#ifdef __APPLE__
CONC__PRIVATE char ***conc__environ(void) { return _NSGetEnviron(); }
#else
extern char **environ;
CONC__PRIVATE char ***conc__environ(void) { return &environ; }
#endif

/* Copies an environment into one block, because the program might change its own while a child is
 * starting. Entry 0 points to `room` unused bytes; the environment begins at entry 1. Returns NULL
 * if memory has run out. */
CONC__PRIVATE char **conc__environment_copy(char *const *from, size_t room)
{
    size_t n = 0, bytes = room;
    for (; from && from[n]; n++)
        bytes += strlen(from[n]) + 1;
    char **env = conc__alloc((n + 2) * sizeof *env + bytes);
    if (!env)
        return NULL;
    char *text = (char *)(env + n + 2);
    env[0] = text;
    text += room;
    for (size_t i = 0; i < n; i++) {
        size_t size = strlen(from[i]) + 1;
        env[i + 1] = memcpy(text, from[i], size);
        text += size;
    }
    env[n + 1] = NULL;
    return env;
}

/* The C library declares these functions only if a program requests GNU extensions. macOS has had
 * the first one since 10.15. */
#ifdef __APPLE__
#define CONC__CHDIR_SYMBOL "_posix_spawn_file_actions_addchdir_np"
#else
#define CONC__CHDIR_SYMBOL "posix_spawn_file_actions_addchdir_np"
#endif
#define CONC__CHDIR_THERE __attribute__((weak))
#define CONC__CLOSE_FROM_THERE __attribute__((weak))
#ifdef __APPLE__
#undef CONC__CHDIR_THERE
#define CONC__CHDIR_THERE
#endif
#if defined __GLIBC__ && defined __GLIBC_PREREQ
#if __GLIBC_PREREQ(2, 29)
#undef CONC__CHDIR_THERE
#define CONC__CHDIR_THERE /* not weak, so that static programs link it */
#endif
#if __GLIBC_PREREQ(2, 34)
#undef CONC__CLOSE_FROM_THERE
#define CONC__CLOSE_FROM_THERE
#endif
#endif
#ifdef CONC__NO_SPAWN_CHDIR /* tests simulate a C library without it */
static int (*const conc__spawn_chdir)(posix_spawn_file_actions_t *a, const char *dir) = NULL;
#else
extern int conc__spawn_chdir(posix_spawn_file_actions_t *a,
                             const char *dir) __asm__(CONC__CHDIR_SYMBOL) CONC__CHDIR_THERE;
#endif

/* Stores in *mask the calling thread's signal mask as it was before conc changed it. */
CONC__PRIVATE void conc__original_mask(sigset_t *mask)
{
    conc_loop *l = conc__here;
    conc__job_context *ctx = conc__job_context_here();
    pthread_sigmask(SIG_SETMASK, NULL, mask);
    /* a job gets the mask of the thread that opened its pool, even if it has changed its own */
    if (ctx && ctx->thread) {
        *mask = ctx->thread->queue->mask;
        return;
    }
    if (l && !l->signals.pipe_was_blocked)
        sigdelset(mask, SIGPIPE);
    for (int number = 1; l && number < CONC__SIGNALS; number++)
        if (l->signals.unblocked & conc__signal_bit(number))
            sigaddset(mask, number);
}

/* -- child processes that a virtual clock waits for -- */

/* A child process, from its start to its close. Waiting calls keep the struct longer, because a
 * closed conc_child might be reused or gone. */
typedef struct conc__child_process {
    struct conc__child_process *next;
    unsigned forks;
    bool group;           /* counts as running while any process of its group is running */
    unsigned users;       /* references: the conc_child's, and one for each waiting call */
    bool closing, closed; /* a call is closing it; it has been closed */
    bool lost;            /* once closed: its status is unknown */
    int status;           /* once it is closed */
    pid_t pid;            /* 0: another child has the process id now */
    char name[64];
    dev_t devices[3];
    ino_t inodes[3];   /* of its pipes; 0: not a pipe */
    bool inherited[3]; /* this program holds the same end of the pipe */
} conc__child_process;

/* All child processes. Under conc__children_mutex. */
static conc__child_process *conc__child_processes;
static unsigned conc__child_start_count;

CONC__PRIVATE void conc__child_process_add(conc__child_process *p, pid_t pid)
{
    for (conc__child_process *other = conc__child_processes; other; other = other->next)
        if (other->pid == pid)
            other->pid = 0;
    p->forks = conc__forks;
    p->pid = pid;
    p->next = conc__child_processes;
    __atomic_store_n(&conc__child_processes, p, __ATOMIC_RELAXED);
    conc__child_start_count++;
}

/* Records the pipe, if any, that becomes the child's descriptor i. `fd` is the child's end, or -1
 * if the child inherits this program's descriptor i. */
CONC__PRIVATE void conc__child_process_note_pipe(conc__child_process *p, int i, int fd)
{
    struct stat st;
    if (fstat(fd < 0 ? i : fd, &st) || !S_ISFIFO(st.st_mode))
        return;
    p->devices[i] = st.st_dev;
    p->inodes[i] = st.st_ino;
    p->inherited[i] = fd < 0;
}

CONC__PRIVATE void conc__child_process_remove(conc__child_process *p)
{
    conc__child_process **at = &conc__child_processes;
    while (*at && *at != p)
        at = &(*at)->next;
    if (*at)
        __atomic_store_n(at, p->next, __ATOMIC_RELAXED);
}

CONC__PRIVATE void conc__child_process_release(conc__child_process *p)
{
    if (--p->users == 0)
        conc_free(p);
}

CONC__PRIVATE int conc__group_lives(pid_t group);

CONC__PRIVATE bool conc__child_process_runs(const conc__child_process *p)
{
    siginfo_t info;
    info.si_pid = 0;
    if (!p->pid || p->forks != conc__forks)
        return false;
    if (waitid(P_PID, (id_t)p->pid, &info, WEXITED | WNOHANG | WNOWAIT))
        return false;
    return !info.si_pid || (p->group && conc__group_lives(p->pid) == 1);
}

/* Does the child hold an end of the pipe of `fd`, so that the child could end a wait for `fd`? A
 * pipe that the child inherited counts only if `fd` is the opposite end, because other processes
 * feed an inherited input and read an inherited output. */
CONC__PRIVATE bool conc__child_process_has_pipe(const conc__child_process *p, int fd,
                                                const struct stat *st)
{
    for (int i = 0; i < 3; i++) {
        bool same = p->inodes[i] == st->st_ino && p->devices[i] == st->st_dev;
        if (!p->inodes[i] || !same)
            continue;
        int other_end = i ? O_RDONLY : O_WRONLY;
        if (!p->inherited[i] || (fcntl(fd, F_GETFL) & O_ACCMODE) == other_end)
            return true;
    }
    return false;
}

/* Is a task waiting on a running child's pipe? Stores the number of starts so far in *starts. */
CONC__PRIVATE bool conc__pipe_awaited(const conc_loop *l, unsigned *starts)
{
    bool found = false;
    int saved = errno;
    if (!__atomic_load_n(&conc__child_processes, __ATOMIC_RELAXED))
        return false;
    pthread_mutex_lock(&conc__children_mutex);
    *starts = conc__child_start_count;
    for (const conc__fd *f = l->fds.watched; f && !found; f = f->next) {
        struct stat st;
        bool pipe = fstat(f->number, &st) == 0 && S_ISFIFO(st.st_mode);
        for (const conc__child_process *p = conc__child_processes; p && pipe && !found; p = p->next)
            found = conc__child_process_has_pipe(p, f->number, &st) && conc__child_process_runs(p);
    }
    pthread_mutex_unlock(&conc__children_mutex);
    errno = saved;
    return found;
}

/* -- the start -- */

/* A conc_child_start call. The far end of each pipe is the child's, the near end this program's. */
typedef struct conc__child_start_call {
    conc_child *child;
    conc__child_process *process;
    char **env; /* this program's PATH, then the child's environment */
    int far_ends[3], near_ends[3];
    bool was_nonblocking[3]; /* a socket that conc made blocking */
    sigset_t mask;
    struct conc__spawn_setup *setup;
    pid_t pid;
    char about[96]; /* the subject of an error; "": the program */
} conc__child_start_call;

CONC__PRIVATE void conc__close_ends(int *ends)
{
    for (int i = 0; i < 3; i++) {
        if (ends[i] >= 0)
            close(ends[i]);
        ends[i] = -1;
    }
}

/* Opens both ends for the child's descriptor `number`. */
CONC__PRIVATE int conc__child_open_end(conc__child_start_call *s, int number, int wanted)
{
    int ends[2], rc = 0, *far_end = &s->far_ends[number];
    if (wanted == CONC_NULL) {
        rc = conc__open_file("/dev/null", number ? O_WRONLY : O_RDONLY);
        *far_end = rc;
    } else if (wanted == CONC_PIPE) {
        rc = conc__pipe(ends);
        if (rc == 0) {
            *far_end = ends[number != 0];
            s->near_ends[number] = ends[number == 0];
        }
    } else if (wanted > 0) {
        /* a copy, because another dup2 could overwrite a standard descriptor */
        *far_end = fcntl(wanted, F_DUPFD_CLOEXEC, 3);
        rc = conc__or_errno(*far_end);
    } else if (wanted < 0) {
        rc = -EINVAL;
    }
    if (rc >= 0)
        return 0;
    if (wanted)
        snprintf(s->about, sizeof s->about, "%.60s: its descriptor %d", s->process->name, number);
    return rc;
}

/* Returns this program's descriptor that becomes the child's descriptor `number`. */
CONC__PRIVATE int conc__child_far_end(const conc__child_start_call *s, int number)
{
    return s->far_ends[number] >= 0 ? s->far_ends[number] : number;
}

/* Sets a socket to blocking mode, which ordinary programs expect. Both processes share the mode,
 * but conc passes MSG_DONTWAIT anyway. A listener is left alone, because accept(2) has no such
 * flag. */
CONC__PRIVATE void conc__child_socket_set_blocking(conc__child_start_call *s, int number)
{
    int fd = conc__child_far_end(s, number), listens = 0;
    int flags = fcntl(fd, F_GETFL);
    socklen_t size = sizeof listens;
    if (flags < 0 || !(flags & O_NONBLOCK))
        return;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) || listens)
        return;
    s->was_nonblocking[number] = fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0;
}

/* Undoes conc__child_socket_set_blocking after a failed start. */
CONC__PRIVATE void conc__child_socket_restore(const conc__child_start_call *s, int number)
{
    int fd = conc__child_far_end(s, number);
    if (!s->was_nonblocking[number])
        return;
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0)
        fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/* The arguments of posix_spawn: the signal mask, and the descriptors. */
typedef struct conc__spawn_setup {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
} conc__spawn_setup;

/* Keeps the new program from inheriting descriptors >= `from`. */
#ifdef __APPLE__
CONC__PRIVATE int conc__close_others(conc__spawn_setup *s, int from)
{
    short flags = 0;
    int rc = posix_spawnattr_getflags(&s->attributes, &flags);
    if (rc == 0)
        rc = posix_spawnattr_setflags(&s->attributes, (short)(flags | POSIX_SPAWN_CLOEXEC_DEFAULT));
    for (int fd = 0; fd < from && rc == 0; fd++)
        if (conc__is_open(fd))
            rc = posix_spawn_file_actions_addinherit_np(&s->actions, fd);
    return rc;
}
#else
extern int conc__spawn_close_from(posix_spawn_file_actions_t *a, int from) __asm__(
    "posix_spawn_file_actions_addclosefrom_np") CONC__CLOSE_FROM_THERE;

CONC__PRIVATE int conc__close_others(conc__spawn_setup *s, int from)
{
    int (*close_from)(posix_spawn_file_actions_t *, int) = conc__spawn_close_from;
    int rc = 0;
    if (close_from)
        return close_from(&s->actions, from);
    for (int fd = from, most = (int)sysconf(_SC_OPEN_MAX); fd < most && fd < 65536 && rc == 0;
         fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags >= 0 && !(flags & FD_CLOEXEC))
            rc = posix_spawn_file_actions_addclose(&s->actions, fd);
    }
    return rc;
}
#endif

CONC__PRIVATE int conc__spawn_setup_open(conc__spawn_setup *s, const sigset_t *mask)
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

CONC__PRIVATE void conc__spawn_setup_close(conc__spawn_setup *s)
{
    posix_spawnattr_destroy(&s->attributes);
    posix_spawn_file_actions_destroy(&s->actions);
}

/* Returns an allocated array: this program's PATH, then the child's environment. */
CONC__PRIVATE char **conc__child_env(const conc_child *c)
{
    const char *search = getenv("PATH");
    if (!search)
        search = "/bin:/usr/bin";
    char *const *from = c->env ? (char *const *)(uintptr_t)c->env : *conc__environ();
    size_t size = strlen(search) + 1;
    char **env = conc__environment_copy(from, size);
    if (env)
        memcpy(env[0], search, size);
    return env;
}

/* Returns argv with the type that the exec functions take. */
CONC__PRIVATE char *const *conc__child_argv(const conc_child *c)
{
    return (char *const *)(uintptr_t)c->argv;
}

/* Tries to execute or spawn the file `name`. Returns 0, or a positive error number. */
typedef int conc__program_attempt(conc__child_start_call *s, const char *name);

/* After this error, could the program still be in another directory? */
CONC__PRIVATE bool conc__search_goes_on(int error)
{
    switch (error) {
    case EACCES:
    case ENOENT:
    case ENOTDIR:
    case ENODEV:
    case ESTALE:
    case ETIMEDOUT: return true;
    default: return false;
    }
}

/* Tries the program in each directory of this program's PATH. execvp would search the child's PATH,
 * and run files of unknown format with a shell. Returns 0, or the last error; EACCES takes
 * precedence over the others. Async-signal-safe. */
CONC__PRIVATE int conc__search_program(conc__child_start_call *s, conc__program_attempt *attempt)
{
    char path[4096];
    const char *name = s->child->argv[0];
    size_t size = strlen(name) + 1;
    int error = size <= NAME_MAX + 1 ? ENOENT : ENAMETOOLONG;
    if (!*name || strchr(name, '/'))
        return attempt(s, name);
    for (const char *at = s->env[0];; at++) {
        size_t n = strcspn(at, ":"), slash = n > 0;
        if (n + slash + size <= sizeof path) {
            memcpy(path, at, n);
            path[n] = '/';
            memcpy(path + n + slash, name, size);
            int rc = attempt(s, path);
            if (!conc__search_goes_on(rc))
                return rc;
            if (error != EACCES)
                error = rc;
        }
        at += n;
        if (!*at)
            return error;
    }
}

CONC__PRIVATE int conc__try_spawn(conc__child_start_call *s, const char *name)
{
    struct stat st;
    bool absent = stat(name, &st) && (errno == ENOENT || errno == ENOTDIR);
    if (absent && !s->child->dir) /* with .dir, the name may refer to another file */
        return errno;
    return posix_spawn(&s->pid, name, &s->setup->actions, &s->setup->attributes,
                       conc__child_argv(s->child), s->env + 1);
}

CONC__PRIVATE int conc__spawn_program(conc__child_start_call *s)
{
    const conc_child *c = s->child;
    conc__spawn_setup setup;
    int rc = conc__spawn_setup_open(&setup, &s->mask);
    if (rc)
        return -rc;
    if (c->group)
        posix_spawnattr_setflags(&setup.attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
    if (c->dir)
        rc = conc__spawn_chdir(&setup.actions, c->dir);
    for (int i = 0; i < 3 && rc == 0; i++)
        if (s->far_ends[i] >= 0)
            rc = posix_spawn_file_actions_adddup2(&setup.actions, s->far_ends[i], i);
    if (rc == 0)
        rc = conc__close_others(&setup, 3);
    s->setup = &setup;
    if (rc == 0)
        rc = conc__search_program(s, conc__try_spawn);
    conc__spawn_setup_close(&setup);
    return -rc;
}

CONC__PRIVATE int conc__try_execute(conc__child_start_call *s, const char *name)
{
    execve(name, conc__child_argv(s->child), s->env + 1);
    return errno;
}

/* Executes the program in the forked process, or returns an error number. Async-signal-safe. */
CONC__PRIVATE int conc__become_program(conc__child_start_call *s, int most)
{
    const conc_child *c = s->child;
    if (c->group && setpgid(0, 0))
        return errno;
    if (c->dir && chdir(c->dir))
        return errno;
    for (int i = 0; i < 3; i++)
        if (s->far_ends[i] >= 0 && dup2(s->far_ends[i], i) < 0)
            return errno;
    for (int fd = 3; fd < most; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags >= 0 && !(flags & FD_CLOEXEC))
            close(fd);
    }
    pthread_sigmask(SIG_SETMASK, &s->mask, NULL);
    return conc__search_program(s, conc__try_execute);
}

/* Keeps the program's signal handlers from running in the forked process, which shares open files
 * with this one. */
CONC__PRIVATE void conc__reset_handlers(void)
{
    for (int number = 1; number < CONC__SIGNALS; number++) {
        struct sigaction a;
        bool handled = sigaction(number, NULL, &a) == 0 && a.sa_handler != SIG_IGN;
        if (handled && a.sa_handler != SIG_DFL)
            signal(number, SIG_DFL);
    }
}

/* Reads the forked process's error from the pipe and, if there is one, reaps the process. Returns 0
 * if the process's exec has succeeded. */
CONC__PRIVATE int conc__read_fork_error(int fd, pid_t pid)
{
    int error = 0;
    ssize_t n;
    do
        n = read(fd, &error, sizeof error);
    while (n < 0 && errno == EINTR);
    if (n == 0)
        return 0;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    return n == sizeof error ? -error : -EIO;
}

/* Starts the program with fork, for C libraries whose posix_spawn cannot change the directory. */
CONC__PRIVATE int conc__fork_program(conc__child_start_call *s)
{
    int ends[2], most = (int)sysconf(_SC_OPEN_MAX), rc = conc__pipe(ends);
    sigset_t all, before;
    if (rc)
        return rc;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    s->pid = fork();
    if (s->pid == 0) {
        conc__reset_handlers();
        int error = conc__become_program(s, most > 0 && most < 65536 ? most : 65536);
        _exit(write(ends[1], &error, sizeof error) == sizeof error ? 127 : 126);
    }
    rc = conc__or_errno(s->pid);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(ends[1]);
    if (rc >= 0)
        rc = conc__read_fork_error(ends[0], s->pid);
    close(ends[0]);
    return rc;
}

/* Did the start fail with rc because of the directory? */
CONC__PRIVATE bool conc__dir_failed(const char *dir, int rc)
{
    struct stat st;
    if (!dir)
        return false;
    switch (-rc) {
    case ENOENT:
    case ENOTDIR:
    case EACCES:
    case ELOOP:
    case ENAMETOOLONG: return stat(dir, &st) || !S_ISDIR(st.st_mode) || access(dir, X_OK);
    default: return false;
    }
}

/* Names in `about` what a failed start was missing, unless that is the program itself. */
CONC__PRIVATE void conc__child_describe_failure(conc__child_start_call *s, int rc)
{
    const conc_child *c = s->child;
    const char *program = c->argv[0];
    bool is_path = strchr(program, '/') && (*program == '/' || !c->dir);
    if (conc__dir_failed(c->dir, rc))
        snprintf(s->about, sizeof s->about, "the directory %.70s", conc__visible(c->dir));
    else if (rc == -ENOENT && is_path && access(program, F_OK) == 0)
        snprintf(s->about, sizeof s->about, "the interpreter of %.60s", program);
}

CONC__PRIVATE int conc__child_start_job(void *arg)
{
    conc__child_start_call *s = arg;
    conc_child *c = s->child;
    int saved = errno, wanted[3] = {c->input, c->output, c->error}, rc = 0;
    int (*change)(posix_spawn_file_actions_t *, const char *) = conc__spawn_chdir;
    for (int i = 0; i < 3; i++)
        s->near_ends[i] = s->far_ends[i] = -1;
    for (int i = 0; i < 3 && rc == 0; i++)
        rc = conc__child_open_end(s, i, wanted[i]);
    for (int i = 0; i < 3 && rc == 0; i++)
        conc__child_socket_set_blocking(s, i);
    if (rc == 0) {
        if (c->dir && !change)
            rc = conc__fork_program(s);
        else
            rc = conc__spawn_program(s);
        if (rc)
            conc__child_describe_failure(s, rc);
    }
    for (int i = 2; i >= 0 && rc; i--)
        conc__child_socket_restore(s, i);
    for (int i = 0; i < 3; i++)
        conc__child_process_note_pipe(s->process, i, s->far_ends[i]);
    conc__close_ends(s->far_ends);
    if (rc)
        conc__close_ends(s->near_ends);
    errno = saved;
    return rc;
}

/* Returns the child's state. The caller holds conc__children_mutex. A start that was in progress in
 * the parent never ends in a forked process, so the state becomes NONE there. */
CONC__PRIVATE conc__child_state conc__child_state_of(conc_child *c)
{
    if (CONC__UNLIKELY(c->state && c->forks != conc__forks)) {
        if (c->state != CONC__CHILD_STARTS)
            return CONC__CHILD_INHERITED;
        c->state = CONC__CHILD_NONE;
    }
    return (conc__child_state)c->state;
}

CONC__PRIVATE conc__child_state conc__child_state_now(conc_child *c)
{
    pthread_mutex_lock(&conc__children_mutex);
    conc__child_state state = conc__child_state_of(c);
    pthread_mutex_unlock(&conc__children_mutex);
    return state;
}

/* Returns 0 if `call` can wait for the child or signal it, or else an error. */
CONC__PRIVATE int conc__child_usable(conc_child *c, const char *call)
{
    conc__child_state state = CONC__CHILD_NONE;
    if (c)
        state = conc__child_state_now(c);
    if (state == CONC__CHILD_NONE || state == CONC__CHILD_STARTS)
        return conc__misused(-EINVAL, call, "the child was not started", NULL);
    if (state == CONC__CHILD_INHERITED)
        return conc_fail(-EPERM, "the child belongs to the process that forked this one");
    return 0;
}

/* Changes NONE to STARTS. Returns false if the child has been started, or if another call is
 * starting it. */
CONC__PRIVATE bool conc__child_claim(conc_child *c)
{
    conc__job_queues_need(); /* so that forks are counted */
    pthread_mutex_lock(&conc__children_mutex);
    bool unused = conc__child_state_of(c) == CONC__CHILD_NONE;
    if (unused) {
        c->state = CONC__CHILD_STARTS;
        c->forks = conc__forks;
    }
    pthread_mutex_unlock(&conc__children_mutex);
    return unused;
}

CONC__PRIVATE void conc__child_set_state(conc_child *c, conc__child_state state)
{
    pthread_mutex_lock(&conc__children_mutex);
    c->state = (int)state;
    pthread_mutex_unlock(&conc__children_mutex);
}

/* -- process ids, where there is no pidfd -- */

#ifdef __linux__

/* A process as described by /proc. */
typedef struct conc__proc_stat {
    char state;
    int group;
    unsigned long long start_time; /* in clock ticks since the system was booted */
} conc__proc_stat;

/* Reads /proc/`number`/stat. Returns false if there is no such process, or if /proc is not
 * readable. */
CONC__PRIVATE bool conc__proc_stat_read(const char *number, conc__proc_stat *p)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%.20s/stat", number);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n < 0)
        return false;
    text[n] = 0;
    const char *at = strrchr(text, ')'); /* the program's name may contain any byte */
    return at && sscanf(at,
                        ") %c %*d %d %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
                        "%*s %llu",
                        &p->state, &p->group, &p->start_time) == 3;
}

CONC__PRIVATE unsigned long long conc__process_start_time(pid_t pid)
{
    conc__proc_stat p;
    char number[24];
    snprintf(number, sizeof number, "%d", (int)pid);
    return conc__proc_stat_read(number, &p) ? p.start_time : 0;
}

/* Returns 1 if a process of this group is alive, 0 if none is, or -1 if that is unknown. */
CONC__PRIVATE int conc__group_lives(pid_t group)
{
    int saved = errno, lives = 0;
    DIR *d = opendir("/proc");
    if (!d || conc__process_start_time(getpid()) == 0)
        lives = -1;
    while (lives == 0) {
        conc__proc_stat p;
        const struct dirent *e = readdir(d);
        if (!e)
            break;
        bool is_process = *e->d_name >= '1' && *e->d_name <= '9';
        if (is_process && conc__proc_stat_read(e->d_name, &p) && p.group == group)
            lives = p.state != 'Z' && p.state != 'X';
    }
    if (d)
        closedir(d);
    errno = saved;
    return lives;
}

#else

CONC__PRIVATE unsigned long long conc__process_start_time(pid_t pid)
{
    (void)pid;
    return 0; /* unknown */
}

/* Returns 1 if a process of this group is alive, 0 if none is, or -1 if that is unknown. macOS's
 * kill skips processes that have ended but are not reaped. */
CONC__PRIVATE int conc__group_lives(pid_t group)
{
#ifdef __APPLE__
    int saved = errno, lives = kill(-group, 0) == 0 || errno == EPERM;
    errno = saved;
    return lives;
#else
    (void)group;
    return -1;
#endif
}

#endif

/* Does the process id probably still belong to the child? Other code may have reaped the child, as
 * the kernel does if SIGCHLD is ignored. Two processes that started in the same hundredth of a
 * second cannot be told apart. */
CONC__PRIVATE bool conc__child_has_number(const conc_child *c)
{
    if (c->process->pid != c->pid)
        return false;
    return !c->start_time || conc__process_start_time(c->pid) == c->start_time;
}

/* -- the end -- */

/* Returns the signal that ended an unreaped child. */
#ifdef __APPLE__
extern int conc__process_facts(int pid, int kind, uint64_t of_the_dead, void *facts,
                               int size) __asm__("_proc_pidinfo");

/* macOS's waitid(2) does not report the signal, but another call returns the whole status. */
CONC__PRIVATE int conc__deadly_signal(const siginfo_t *info)
{
    enum { BASICS = 3, STATUS = 2, WORDS = 34 }; /* PROC_PIDTBSDINFO, struct proc_bsdinfo */
    uint32_t facts[WORDS] = {0};
    int size = (int)sizeof facts;
    bool known = conc__process_facts(info->si_pid, BASICS, 1, facts, size) == size;
    return known ? (int)(facts[STATUS] & 0x7f) : SIGKILL;
}
#else
CONC__PRIVATE int conc__deadly_signal(const siginfo_t *info) { return info->si_status & 0x7f; }
#endif

/* Converts the result of waitid(2) to a status as from waitpid(2). */
CONC__PRIVATE int conc__wait_status(const siginfo_t *info)
{
    if (info->si_code == CLD_EXITED)
        return (info->si_status & 0xff) << 8;
    int status = conc__deadly_signal(info);
    if (info->si_code == CLD_DUMPED)
        status |= 0x80;
    return status;
}

/* Are children reaped by waitpid(2)? macOS needs that, because its waitid(2) does not return the
 * whole status. */
#ifdef __APPLE__
enum { CONC__PLAIN_REAPING = 1 };
#else
enum { CONC__PLAIN_REAPING = 0 };
#endif

/* Implements conc__child_poll with waitpid(2), which always reaps a child that has ended. */
CONC__PRIVATE int conc__child_poll_waitpid(conc_child *c)
{
    int status;
    pid_t pid = waitpid(c->pid, &status, WNOHANG);
    if (pid < 0)
        return -1;
    if (pid == 0)
        return 0;
    c->status = status;
    c->reaped = true;
    return 1;
}

/* Returns 1 if the child has ended, 0 if it is running, -1 if there is no such child. A child that
 * has ended is reaped if `reap` is set, or if waitid(2) is refused. */
CONC__PRIVATE int conc__child_poll(conc_child *c, bool reap)
{
    enum { BY_PIDFD = 3 }; /* P_PIDFD, Linux 5.4 */
    siginfo_t info;
    int options = WEXITED | WNOHANG, rc = -1;
    bool by_pidfd = c->pidfd >= 0;
    if (!reap)
        options |= WNOWAIT;
    info.si_pid = 0;
    if (by_pidfd) {
        rc = waitid((idtype_t)BY_PIDFD, (id_t)c->pidfd, &info, options);
        by_pidfd = rc == 0 || errno == ECHILD;
    }
    if (!by_pidfd) {
        if (!conc__child_has_number(c))
            return -1;
        if (reap && CONC__PLAIN_REAPING)
            return conc__child_poll_waitpid(c);
        rc = waitid(P_PID, (id_t)c->pid, &info, options);
        if (rc && conc__refused(errno))
            return conc__child_poll_waitpid(c);
    }
    if (rc)
        return -1;
    if (!info.si_pid)
        return 0;
    c->status = conc__wait_status(&info);
    c->reaped = reap;
    return 1;
}

/* Checks whether the child has ended, and returns its state. Does not reap a group leader yet. The
 * caller holds conc__children_mutex. */
CONC__PRIVATE conc__child_state conc__child_update(conc_child *c)
{
    conc__child_state state = conc__child_state_of(c);
    if (state != CONC__CHILD_RUNS)
        return state;
    int saved = errno, ended = conc__child_poll(c, !c->group);
    errno = saved;
    if (!ended)
        return state;
    c->state = ended > 0 ? CONC__CHILD_ENDED : CONC__CHILD_LOST;
    c->reaped |= ended < 0;
    return (conc__child_state)c->state;
}

CONC__PRIVATE bool conc__child_ended(conc_child *c)
{
    pthread_mutex_lock(&conc__children_mutex);
    bool ended = conc__child_update(c) != CONC__CHILD_RUNS;
    pthread_mutex_unlock(&conc__children_mutex);
    return ended;
}

/* Fills in *c for a child that was started. The child may have ended by now; if SIGCHLD is ignored,
 * its process id may even belong to another process. A process forked by another thread sees all
 * changes to *c or none. */
CONC__PRIVATE void conc__child_started(conc_child *c, const conc__child_start_call *s)
{
    int saved = errno, pidfd = conc__pidfd(s->pid);
    bool gone = pidfd < 0 && errno == ESRCH;
    unsigned long long start_time = 0;
    if (pidfd < 0)
        start_time = conc__process_start_time(s->pid);
    pthread_mutex_lock(&conc__children_mutex);
    c->input = s->near_ends[0];
    c->output = s->near_ends[1];
    c->error = s->near_ends[2];
    c->pid = (int)s->pid;
    c->pidfd = pidfd;
    c->start_time = start_time;
    c->status = 0;
    c->reaped = false;
    conc__child_process_add(c->process, s->pid);
    gone = gone || conc__child_poll(c, false) < 0;
    if (gone)
        c->state = CONC__CHILD_LOST;
    else
        c->state = c->reaped ? CONC__CHILD_ENDED : CONC__CHILD_RUNS;
    pthread_mutex_unlock(&conc__children_mutex);
    errno = saved;
}

CONC_API int conc_child_start(conc_child *c)
{
    conc_loop *l;
    int rc = conc__caller(&l, __func__);
    if (rc)
        return rc;
    if (!c || !c->argv || !c->argv[0])
        return conc__misused(-EINVAL, __func__, "no child, or no program", NULL);
    if (!(c->grace >= 0))
        return conc__misused(-EINVAL, __func__, "grace is negative", NULL);
    conc__child_process *process = conc__alloc(sizeof *process);
    if (!process)
        return conc__own_error(-ENOMEM);
    if (!conc__child_claim(c)) {
        conc_free(process);
        return conc__own_error(-EBUSY);
    }
    *process = (conc__child_process){.users = 1, .group = c->group};
    snprintf(process->name, sizeof process->name, "%s", conc__visible(c->argv[0]));
    conc__child_start_call s = {.child = c, .process = process, .env = conc__child_env(c)};
    conc__original_mask(&s.mask);
    rc = -ENOMEM;
    if (s.env)
        rc = conc__offload(CONC__STARTS, conc__child_start_job, &s, __func__);
    conc_free(s.env);
    if (rc) {
        conc_free(process);
        conc__child_set_state(c, CONC__CHILD_NONE);
        return conc__system_failed(rc, *s.about ? s.about : c->argv[0]);
    }
    c->process = process;
    conc__child_started(c, &s);
    return 0;
}

/* Describes the child for an error text: its program and process id. */
CONC__PRIVATE void conc__child_about(conc_child *c, char *to, size_t size)
{
    *to = 0;
    pthread_mutex_lock(&conc__children_mutex);
    if (c->process)
        snprintf(to, size, "%.40s (process %d)", c->process->name, c->pid);
    pthread_mutex_unlock(&conc__children_mutex);
}

/* A wait for a child. */
typedef struct conc__child_wait {
    conc_child *child; /* not used once the process is closed */
    conc__child_process *process;
    int64_t until;    /* a thread's deadline, on the real clock */
    bool whole_group; /* wait until its whole group has ended */
    bool stubborn;    /* continue even though the job has been asked to stop */
    bool for_close;   /* wait until another call has closed it */
    double pause;
} conc__child_wait;

/* Has the child ended, or been closed? If not, sets *fd to its pidfd, which is readable once the
 * child ends, or to -1 if there is none. */
CONC__PRIVATE bool conc__child_is_gone(const conc__child_wait *w, int *fd)
{
    pthread_mutex_lock(&conc__children_mutex);
    bool gone = w->process->closed || conc__child_update(w->child) != CONC__CHILD_RUNS;
    *fd = gone ? -1 : w->child->pidfd;
    pthread_mutex_unlock(&conc__children_mutex);
    return gone;
}

CONC__PRIVATE bool conc__child_closed(const conc__child_wait *w)
{
    pthread_mutex_lock(&conc__children_mutex);
    bool closed = w->process->closed;
    pthread_mutex_unlock(&conc__children_mutex);
    return closed;
}

CONC__PRIVATE bool conc__child_wait_over(conc__child_wait *w)
{
    int fd;
    if (w->for_close)
        return conc__child_closed(w);
    if (!conc__child_is_gone(w, &fd))
        return false;
    return !w->whole_group || conc__group_lives(w->child->pid) != 1;
}

CONC__PRIVATE void conc__child_pause_longer(conc__child_wait *w)
{
    if (w->pause < 0.05)
        w->pause = w->pause > 0 ? w->pause * 2 : 0.0005;
}

/* Waits at most ns for the child's descriptor. Returns false if poll(2) refuses the descriptor. */
CONC__PRIVATE bool conc__child_poll_fd(int fd, int64_t ns)
{
    struct pollfd p = {fd, POLLIN, 0};
    int rc = poll(&p, 1, (int)((ns + 999999) / 1000000));
    bool refused = rc < 0 && errno != EINTR; /* after a signal the caller checks again */
    return !refused && !(p.revents & POLLNVAL);
}

/* Pauses a thread for a while, or until `fd` (-1: none) is readable. A job pauses only briefly, so
 * that it soon notices when it is asked to stop. */
CONC__PRIVATE int conc__child_pause_thread(conc__child_wait *w, int fd)
{
    enum { CHECK = 20000000, LONGEST = 1000000000 };
    bool asks = !w->stubborn && conc__job_context_here();
    int64_t left = w->until - conc__clock(), most = LONGEST;
    if (left <= 0)
        return -ETIMEDOUT;
    if (fd < 0)
        most = conc__ns(w->pause);
    else if (asks)
        most = CHECK;
    int64_t ns = left < most ? left : most;
    int saved = errno;
    bool polled = fd >= 0 && conc__child_poll_fd(fd, ns);
    if (!polled) {
        conc__thread_sleep(ns);
        conc__child_pause_longer(w);
    }
    errno = saved;
    return asks && conc_job_cancelled() ? -ECANCELED : 0;
}

/* Waits until the child may have ended, or for a while if it has no descriptor. */
CONC__PRIVATE int conc__child_pause(const conc_loop *l, conc__child_wait *w)
{
    int fd, rc, none;
    conc__child_is_gone(w, &fd);
    if (!l)
        return conc__child_pause_thread(w, fd);
    if (fd >= 0) {
        rc = conc_wait_fd(fd, CONC_READABLE);
        bool closed = rc == -EBADF && conc__child_is_gone(w, &none);
        if (rc >= 0 || closed)
            return 0;
        if (rc == -ECANCELED)
            return rc;
    }
    rc = conc_sleep(w->pause);
    conc__child_pause_longer(w);
    return rc;
}

/* Waits until conc__child_wait_over returns true. Returns 0, or an error. */
CONC__PRIVATE int conc__child_await(conc__child_wait *w)
{
    conc_loop *l = conc__of_task();
    int rc = 0;
    w->pause = 0.0005;
    if (w->for_close) /* the other call is about to return */
        w->pause = 0;
    if (l)
        l->outside.process_waits++;
    while (!conc__child_wait_over(w) && rc >= 0)
        rc = conc__child_pause(l, w);
    if (l)
        l->outside.process_waits--;
    if (rc >= 0 || conc__child_wait_over(w))
        return 0;
    return rc;
}

/* Begins a wait, which conc__child_wait_close ends. If another thread has just closed the child,
 * the process is NULL and no wait begins. */
CONC__PRIVATE conc__child_wait conc__child_wait_open(conc_child *c)
{
    conc__child_wait w = {.child = c, .until = CONC__NEVER};
    pthread_mutex_lock(&conc__children_mutex);
    w.process = c->process;
    if (w.process)
        w.process->users++;
    pthread_mutex_unlock(&conc__children_mutex);
    return w;
}

/* Ends a wait and stores the child's status. Returns 0, or -ECHILD if the status is lost. */
CONC__PRIVATE int conc__child_wait_close(conc__child_wait *w, int *status)
{
    pthread_mutex_lock(&conc__children_mutex);
    conc__child_process *p = w->process;
    bool lost = p->lost;
    *status = p->status;
    if (!p->closed) {
        lost = w->child->state == CONC__CHILD_LOST;
        *status = w->child->status;
    }
    conc__child_process_release(p);
    pthread_mutex_unlock(&conc__children_mutex);
    if (lost)
        return -ECHILD;
    return 0;
}

CONC_API CONC__CALLED int conc_child_wait(conc_child *c, int *status)
{
    conc_loop *l;
    int rc = conc__caller(&l, __func__), result;
    if (rc == 0)
        rc = conc__child_usable(c, __func__);
    if (rc == 0 && l)
        rc = conc__checkpoint(l);
    if (rc)
        return rc;
    char about[96];
    conc__child_about(c, about, sizeof about);
    conc__child_wait w = conc__child_wait_open(c);
    if (!w.process)
        return conc__own_error(-EINVAL);
    rc = conc__child_await(&w);
    int lost = conc__child_wait_close(&w, &result);
    if (rc == 0 && lost)
        rc = conc_fail(lost, "%s: its status is lost: SIGCHLD is ignored, or other code reaped it",
                       about);
    if (rc == 0 && status)
        *status = result;
    if (rc == 0 && l)
        conc__spend_budget(l);
    return rc;
}

/* -- signals -- */

/* Signals a child that is not reaped yet, or its group. The caller holds conc__children_mutex. */
CONC__PRIVATE int conc__child_send(const conc_child *c, int signal)
{
    if (c->group) {
        if (kill(-(pid_t)c->pid, signal) == 0)
            return 0;
        if (!conc__refused(errno)) /* if that is refused, signal at least the leader */
            return -errno;
    }
    if (c->pidfd >= 0) {
        int rc = conc__pidfd_send(c->pidfd, signal);
        if (!conc__refused(-rc))
            return rc;
    }
    if (!conc__child_has_number(c))
        return -ESRCH;
    return conc__or_errno(kill(c->pid, signal));
}

/* Signals the child or its group. Returns -EALREADY if the child has ended; with .group, only if it
 * was also reaped, because the group can then no longer be reached. */
CONC__PRIVATE int conc__child_signal(conc_child *c, int signal)
{
    int saved = errno, rc = -EALREADY;
    pthread_mutex_lock(&conc__children_mutex);
    conc__child_state state = conc__child_update(c);
    bool left = state == CONC__CHILD_ENDED && c->group && !c->reaped;
    if (left && conc__child_poll(c, false) < 0) { /* other code has reaped it */
        c->reaped = true;
        left = false;
    }
    if (state == CONC__CHILD_RUNS || left)
        rc = conc__child_send(c, signal);
    pthread_mutex_unlock(&conc__children_mutex);
    errno = saved;
    if (rc == -ESRCH)
        return -EALREADY;
    return rc;
}

CONC_API int conc_child_kill(conc_child *c, int signal)
{
    int rc = conc__child_usable(c, __func__);
    if (rc)
        return rc;
    bool over = c->group && conc__child_ended(c) && conc__group_lives(c->pid) == 0;
    rc = -EALREADY;
    if (!over)
        rc = conc__child_signal(c, signal);
    if (rc >= 0)
        return rc;
    char about[96];
    conc__child_about(c, about, sizeof about);
    if (rc == -EALREADY)
        return conc_fail(rc, "%s has ended", about);
    return conc__system_failed(rc, about);
}

/* -- closing -- */

/* Sends SIGTERM and waits up to the grace period. SIGCONT lets a stopped child handle SIGTERM. */
CONC__PRIVATE void conc__child_terminate_gently(conc_child *c)
{
    conc_loop *l = conc__of_task();
    conc__child_wait w = {
        .child = c, .process = c->process, .whole_group = c->group, .stubborn = true};
    conc_scope limit = {0};
    if (conc__child_signal(c, SIGTERM))
        return;
    conc__child_signal(c, SIGCONT);
    if (!l) {
        w.until = conc__later(conc__clock(), conc__ns(c->grace));
        conc__child_await(&w);
    } else if (conc_scope_begin(&limit, c->grace) == 0) {
        conc__child_await(&w);
        int rc = conc_scope_end(&limit, 0); /* a timeout is not the caller's error */
        (void)rc;
    }
}

/* Terminates the child and its group, and reaps the child. */
CONC__PRIVATE int conc__child_terminate(void *arg)
{
    conc_child *c = arg;
    conc__child_wait w = {
        .child = c, .process = c->process, .until = CONC__NEVER, .stubborn = true};
    bool in_post = conc__here && !conc__here->self; /* a wait would block the loop */
    if (c->grace > 0 && !in_post)
        conc__child_terminate_gently(c);
    conc__child_signal(c, SIGKILL);
    while (conc__child_await(&w))
        continue;
    pthread_mutex_lock(&conc__children_mutex);
    if (c->state == CONC__CHILD_ENDED && !c->reaped)
        conc__child_poll(c, true);
    pthread_mutex_unlock(&conc__children_mutex);
    return 0;
}

CONC__PRIVATE void conc__close_end(int *fd)
{
    if (*fd >= 0)
        conc_close(*fd);
    *fd = -1;
}

CONC__PRIVATE void conc__close_outputs(conc_child *c)
{
    conc__close_end(&c->output);
    conc__close_end(&c->error);
}

/* Waits until another call has closed the child. */
CONC__PRIVATE int conc__child_await_close(void *arg)
{
    conc__child_wait *w = arg;
    while (conc__child_await(w))
        continue;
    return 0;
}

CONC__PRIVATE void conc__child_join_close(conc_child *c, const conc_loop *l)
{
    conc__child_wait w = conc__child_wait_open(c);
    bool in_post = conc__here && !l; /* the closing call might be that of a task of this loop */
    int status;
    w.stubborn = w.for_close = true;
    if (!w.process)
        return;
    if (l)
        conc_shield(CONC_FOREVER, conc__child_await_close, &w);
    else if (!in_post)
        conc__child_await_close(&w);
    conc__child_wait_close(&w, &status);
}

/* Completes the close. Waiting calls are still using the process, which keeps the status for
 * them. */
CONC__PRIVATE void conc__child_reset(conc_child *c)
{
    pthread_mutex_lock(&conc__children_mutex);
    conc__child_process *p = c->process;
    p->closed = true;
    p->lost = c->state == CONC__CHILD_LOST;
    p->status = c->status;
    if (conc__child_state_of(c) == CONC__CHILD_INHERITED)
        p->users = 1; /* the other users are the parent's */
    conc__child_process_remove(p);
    conc__child_process_release(p);
    c->process = NULL;
    c->state = CONC__CHILD_NONE;
    pthread_mutex_unlock(&conc__children_mutex);
}

/* Stores the child's state. Returns true if this call must close the child, false if another call
 * does, or if there is nothing to close. */
CONC__PRIVATE bool conc__child_claim_close(conc_child *c, conc__child_state *state)
{
    pthread_mutex_lock(&conc__children_mutex);
    *state = conc__child_state_of(c);
    bool started = *state != CONC__CHILD_NONE && *state != CONC__CHILD_STARTS;
    bool first = started && (*state == CONC__CHILD_INHERITED || !c->process->closing);
    if (first)
        c->process->closing = true;
    pthread_mutex_unlock(&conc__children_mutex);
    return first;
}

CONC_API int conc_child_close(conc_child *c)
{
    conc_loop *l = conc__of_task();
    if (!c)
        return conc__own_error(-EINVAL);
    int saved = errno;
    conc__child_state state;
    bool first = conc__child_claim_close(c, &state);
    if (state == CONC__CHILD_NONE)
        return 0;
    if (state == CONC__CHILD_STARTS)
        return conc__own_error(-EBUSY);
    if (!first) {
        conc__child_join_close(c, l);
        errno = saved;
        return 0;
    }
    conc__close_end(&c->input);
    /* the outputs stay open during a grace period, in which a broken pipe could kill the child */
    if (!(c->grace > 0))
        conc__close_outputs(c);
    if (state != CONC__CHILD_INHERITED && l)
        conc_shield(CONC_FOREVER, conc__child_terminate, c);
    else if (state != CONC__CHILD_INHERITED)
        conc__child_terminate(c);
    conc__close_outputs(c);
    conc__close_end(&c->pidfd);
    conc__child_reset(c);
    errno = saved;
    return 0;
}

CONC_API void conc__auto_conc_child(conc_child *c) { conc_child_close(c); }

/* -- communicating -- */

/* A conc_child_communicate call. */
typedef struct conc__communication {
    conc_child *child;
    conc_child_io *io;
    int *status;
    size_t fed; /* number of bytes of io->in that were written */
    bool full;  /* there was more output than io->limit */
} conc__communication;

/* Writes the input and closes the pipe. The child need not read all of it. */
CONC__PRIVATE int conc__communicate_write(void *arg)
{
    conc__communication *t = arg;
    const char *in = t->io->in;
    while (t->fed < t->io->in_size) {
        ssize_t n = conc_write(t->child->input, in + t->fed, t->io->in_size - t->fed);
        if (n == -EPIPE || n == -ECONNRESET)
            break;
        if (n < 0)
            return (int)n;
        t->fed += (size_t)n;
    }
    t->fed = t->io->in_size;
    conc__close_end(&t->child->input);
    return 0;
}

/* Makes room for more output and a NUL. Returns the number of bytes that fit, or 0 if memory has
 * run out. With a limit, one extra byte fits, which reveals output beyond the limit. */
CONC__PRIVATE size_t conc__communicate_reserve(const conc__communication *t, char **data,
                                               size_t size, size_t *room)
{
    size_t limit = t->io->limit, more = *room < 4096 ? 4096 : *room * 2;
    if (size + 1 < *room)
        return *room - size - 1;
    bool is_limited = limit && limit < SIZE_MAX - 2;
    if (is_limited && more > limit + 2)
        more = (limit > size ? limit : size) + 2;
    char *bigger = CONC_REALLOC(*data, more);
    if (!bigger)
        return 0;
    bigger[size] = 0;
    *data = bigger;
    *room = more;
    return more - size - 1;
}

/* Reads a pipe to end of file, or fails if there is more than io->limit. */
CONC__PRIVATE int conc__communicate_read(conc__communication *t, int fd, char **data, size_t *size)
{
    size_t room = *data ? *size + 1 : 0, limit = t->io->limit;
    for (ssize_t n = 1; n > 0;) {
        size_t more = conc__communicate_reserve(t, data, *size, &room);
        if (!more)
            return conc__own_error(-ENOMEM);
        n = conc_read(fd, *data + *size, more);
        if (n < 0)
            return (int)n;
        *size += (size_t)n;
        (*data)[*size] = 0;
        if (limit && *size > limit) {
            *size = limit;
            (*data)[limit] = 0;
            bool first = !t->full;
            t->full = true;
            return first ? -EMSGSIZE : -ECANCELED; /* one error is enough */
        }
    }
    return 0;
}

CONC__PRIVATE int conc__communicate_read_output(void *arg)
{
    conc__communication *t = arg;
    return conc__communicate_read(t, t->child->output, &t->io->out, &t->io->out_size);
}

CONC__PRIVATE int conc__communicate_read_error(void *arg)
{
    conc__communication *t = arg;
    return conc__communicate_read(t, t->child->error, &t->io->error, &t->io->error_size);
}

/* Reads both outputs to end of file, and waits until the child has ended. If its status is lost,
 * sets *lost to -ECHILD and continues reading. */
CONC__PRIVATE int conc__communicate_read_all(conc__communication *t, int *lost)
{
    conc_group g = {0};
    int rc = conc_group_begin(&g);
    if (rc)
        return rc;
    if (t->child->output >= 0)
        rc = conc_spawn(&g, conc__communicate_read_output, t);
    if (t->child->error >= 0 && rc == 0)
        rc = conc_spawn(&g, conc__communicate_read_error, t);
    if (rc == 0)
        rc = conc_child_wait(t->child, t->status);
    if (rc == -ECHILD) {
        *lost = rc;
        rc = 0;
    }
    rc = conc_group_end(&g, rc);
    return rc;
}

/* Implements conc_child_communicate, in a task. Once all output is read and the child has ended,
 * the remaining input is dropped. */
CONC__PRIVATE int conc__communicate(void *arg)
{
    conc__communication *t = arg;
    conc_group g = {0};
    int lost = 0, rc = conc_group_begin(&g);
    if (rc)
        return rc;
    if (t->child->input >= 0)
        rc = conc_spawn(&g, conc__communicate_write, t);
    if (rc == 0)
        rc = conc__communicate_read_all(t, &lost);
    if (rc == 0)
        conc_group_cancel(&g);
    rc = conc_group_end(&g, rc);
    if (rc)
        return rc;
    conc__close_end(&t->child->input);
    return lost;
}

/* After a failed call, leaves the unwritten input in *io, for the next call. Closes a child whose
 * output exceeds the limit. */
CONC__PRIVATE int conc__communicate_finish(conc__communication *t, int rc)
{
    conc_child_io *io = t->io;
    if (rc < 0 && rc != -EMSGSIZE && rc != -ECHILD) {
        if (t->fed)
            io->in = (const char *)io->in + t->fed;
        io->in_size -= t->fed;
    }
    if (rc != -EMSGSIZE)
        return rc;
    char about[96];
    conc__child_about(t->child, about, sizeof about);
    rc = conc_fail(rc, "%s: more than %zu bytes of output", about, io->limit);
    conc_child_close(t->child);
    return rc;
}

CONC_API CONC__CALLED int conc_child_communicate(conc_child *c, conc_child_io *io, int *status)
{
    conc_loop *l;
    int rc = conc__caller(&l, __func__);
    if (rc == 0)
        rc = conc__child_usable(c, __func__);
    if (rc)
        return rc;
    if (!io || (io->in_size && !io->in))
        return conc__misused(-EINVAL, __func__, "nowhere to put the output, or no input", NULL);
    if (io->in_size && c->input < 0)
        return conc__misused(-EINVAL, __func__, "there is input, but no pipe for it", NULL);
    conc__communication t = {.child = c, .io = io, .status = status};
    if (!io->out)
        io->out_size = 0;
    if (!io->error)
        io->error_size = 0;
    if (l)
        rc = conc__communicate(&t);
    else
        rc = conc_run(conc__communicate, &t);
    return conc__communicate_finish(&t, rc);
}

/* ---- >>shared ------------------------------------------------------------------------------- */

#ifdef __linux__

#include <elf.h>
#include <sys/resource.h>

/* Memory with a descriptor, so that other processes can map it. Its size is sealed: no process can
 * shrink it while another is using it. */
typedef struct conc__segment {
    /* links the segments that conc_shared_alloc returned, or those to be unmapped */
    struct conc__segment *next;
    void *address;
    size_t size;
    int fd;
} conc__segment;

static pthread_mutex_t conc__segments_mutex = PTHREAD_MUTEX_INITIALIZER;
static conc__segment *conc__segments;

/* Maps `size` bytes of a segment, at `address` unless it is NULL. Returns NULL if that fails. */
CONC__PRIVATE void *conc__segment_map(int fd, void *address, size_t size, int protection, int more)
{
    enum { NOREPLACE = 0x100000 }; /* MAP_FIXED_NOREPLACE */
    int flags = MAP_SHARED | more;
    if (address)
        flags |= NOREPLACE;
    void *p = mmap(address, size, protection, flags, fd, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (!address || p == address)
        return p;
    munmap(p, size); /* the kernel does not know the flag */
    return NULL;
}

/* Returns an address that is most likely free in this program's other processes too, because it is
 * far from the kernel's usual mappings, or NULL if there is none. */
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
    uintptr_t away =
        ((uintptr_t)64 << 30) + (uintptr_t)(conc__random_bits(&draw) % ((uint64_t)64 << 30));
    if (here <= 2 * away)
        return NULL;
    return (void *)((here - away) & ~(uintptr_t)0xffff);
#else
    return NULL;
#endif
}

/* Fails with the errno that a system call has just set. The error text names the call, because a
 * sandbox might have refused it. */
CONC__COLD int conc__call_failed(const char *call)
{
    int rc = -errno;
    return conc_fail(rc, "%s: %s", call, strerror(-rc));
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

/* Returns a descriptor for `size` bytes of new memory. Fails if they exceed RLIMIT_FSIZE, because
 * the kernel would then send SIGXFSZ. */
CONC__PRIVATE int conc__segment_fd(size_t size)
{
    enum { CLOEXEC = 1, SEALABLE = 2, ADD_SEALS = 1033, SEAL = 1, SHRINK = 2, GROW = 4 };
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && size > limit.rlim_cur)
        return conc_fail(-EFBIG, "%zu bytes of shared memory exceed the file size limit", size);
    int fd = conc__not_standard((int)syscall(SYS_memfd_create, "conc", CLOEXEC | SEALABLE));
    if (fd < 0)
        return conc__call_failed("memfd_create");
    if (ftruncate(fd, (off_t)size)) {
        int rc = conc__call_failed("ftruncate of a memfd");
        close(fd);
        return rc;
    }
    /* if the kernel has no file seals, workers are trusted not to shrink it */
    fcntl(fd, ADD_SEALS, SEAL | SHRINK | GROW);
    return fd;
}

/* Creates and maps a segment. far_away: at an address most likely free in other processes. */
CONC__PRIVATE int conc__segment_open(conc__segment *s, size_t size, bool far_away)
{
    *s = (conc__segment){.fd = conc__segment_fd(size), .size = size};
    if (s->fd < 0) {
        int rc = s->fd;
        s->fd = -1;
        return rc;
    }
    for (int tries = 0; far_away && !s->address && tries < 4; tries++) {
        void *address = conc__far_address();
        if (address)
            s->address = conc__segment_map(s->fd, address, size, PROT_READ | PROT_WRITE, 0);
    }
    if (!s->address)
        s->address = conc__segment_map(s->fd, NULL, size, PROT_READ | PROT_WRITE, 0);
    if (s->address)
        return 0;
    int rc = conc__call_failed("mmap");
    conc__segment_close(s);
    return rc;
}

CONC_API void *conc_shared_alloc(size_t size)
{
    size_t page = conc__page();
    if (!size || size > SIZE_MAX / 4) {
        int rc = -ENOMEM;
        if (!size)
            rc = -EINVAL;
        conc_fail(rc, "%zu bytes of shared memory", size);
        return NULL;
    }
    int saved = errno;
    conc__segment *s = conc__alloc(sizeof *s);
    if (!s)
        conc_fail(-ENOMEM, "no memory for the record of a shared segment");
    else if (conc__segment_open(s, (size + page - 1) / page * page, true)) {
        conc_free(s);
        s = NULL;
    }
    errno = saved;
    if (!s)
        return NULL;
    conc__job_queues_need(); /* registers the fork handlers */
    pthread_mutex_lock(&conc__segments_mutex);
    s->next = conc__segments;
    conc__segments = s;
    pthread_mutex_unlock(&conc__segments_mutex);
    return s->address;
}

CONC_API void conc_shared_free(void *p)
{
    conc__segment **at = &conc__segments;
    int saved = errno;
    pthread_mutex_lock(&conc__segments_mutex);
    while (*at && (*at)->address != p)
        at = &(*at)->next;
    conc__segment *s = *at;
    if (s)
        *at = s->next;
    pthread_mutex_unlock(&conc__segments_mutex);
    if (s)
        conc__segment_close(s);
    conc_free(s);
    errno = saved;
}

CONC__PRIVATE void conc__segments_lock(void) { pthread_mutex_lock(&conc__segments_mutex); }
CONC__PRIVATE void conc__segments_unlock(void) { pthread_mutex_unlock(&conc__segments_mutex); }

/* ---- >>functions ---------------------------------------------------------------------------- */

/* Identifies a function to another process of the same program, where its address may differ. The
 * identity keeps a process with a different build of the module from calling whatever it has at
 * that offset. */
typedef struct conc__function_id {
    uint64_t offset;   /* in its module */
    uint64_t identity; /* the module's; 0: unknown */
    char module[4000]; /* a path; "": the program itself */
} conc__function_id;

#ifdef __LP64__
typedef Elf64_Phdr conc__module_part;
typedef Elf64_Dyn conc__module_entry;
#else
typedef Elf32_Phdr conc__module_part;
typedef Elf32_Dyn conc__module_entry;
#endif

typedef struct conc__module_info { /* struct dl_phdr_info, which the system's header hides */
    uintptr_t base;
    const char *name;
    const conc__module_part *parts;
    uint16_t count;
    /* how many modules have been loaded and unloaded so far; missing if the struct is smaller */
    unsigned long long loads, unloads;
} conc__module_info;

extern int conc__each_module(int (*fn)(conc__module_info *info, size_t size, void *arg),
                             void *arg) __asm__("dl_iterate_phdr");
extern void *conc__load_module(const char *path, int flags) __asm__("dlopen") __attribute__((weak));

typedef struct conc__module_search {
    int seen;
    uintptr_t address; /* the address to find; 0: find `path` */
    const char *path;
    bool found;
    uintptr_t base;
    uint64_t identity;
    char *name; /* a buffer of 4000 bytes for the path found; NULL: not wanted */
} conc__module_search;

CONC__PRIVATE bool conc__module_has(const conc__module_info *m, uintptr_t address)
{
    for (int i = 0; i < m->count; i++)
        if (m->parts[i].p_type == PT_LOAD &&
            address - m->base - m->parts[i].p_vaddr < m->parts[i].p_memsz)
            return true;
    return false;
}

/* FNV-1a, by Fowler, Noll and Vo. */
CONC__PRIVATE uint64_t conc__hash(const void *bytes, size_t n)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (const unsigned char *p = bytes; n; n--)
        hash = (hash ^ *p++) * 0x100000001b3u;
    return hash;
}

/* The file that is mapped at an address, according to /proc/self/maps. */
typedef struct conc__mapped_file {
    char line[4400];
    const char *path;  /* in the line; NULL: not found */
    uint64_t identity; /* a hash of its device and inode */
} conc__mapped_file;

CONC__PRIVATE void conc__find_mapped_file(uintptr_t address, conc__mapped_file *f)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    f->path = NULL;
    f->identity = 0;
    while (maps && !f->path && fgets(f->line, sizeof f->line, maps)) {
        char *end, *slash = strchr(f->line, '/');
        uintptr_t from = strtoul(f->line, &end, 16);
        uintptr_t to = *end == '-' ? strtoul(end + 1, &end, 16) : 0;
        if (!slash || address < from || address >= to)
            continue;
        for (int field = 0; field < 2 && *end; field++) /* skips the permissions and the offset */
            end += 1 + strcspn(end + 1, " ");
        char *last = slash;
        while (last > end && last[-1] == ' ')
            last--;
        f->identity = conc__hash(end, (size_t)(last - end));
        slash[strcspn(slash, "\n")] = 0;
        f->path = slash;
    }
    if (maps)
        fclose(maps);
}

/* Returns a hash of the build-id in these notes, or 0 if they contain none. */
CONC__PRIVATE uint64_t conc__build_id(const char *notes, size_t size, size_t align)
{
    enum { BUILD_ID = 3 }; /* NT_GNU_BUILD_ID */
    Elf64_Nhdr head;       /* the same in 32 bits */
    for (size_t at = 0; size - at > sizeof head;) {
        memcpy(&head, notes + at, sizeof head);
        size_t name = at + sizeof head;
        size_t value = (name + head.n_namesz + align - 1) / align * align;
        if (value > size || head.n_descsz > size - value)
            break;
        if (head.n_type == BUILD_ID && head.n_namesz == 4 && !memcmp(notes + name, "GNU", 4))
            return conc__hash(notes + value, head.n_descsz) | 1;
        at = (value + head.n_descsz + align - 1) / align * align;
        if (at > size)
            break;
    }
    return 0;
}

/* Returns a number that tells builds of a module apart: a hash of its build-id, or else of its
 * file's device and inode. Returns 0 if neither is known, because /proc is missing or no descriptor
 * is free. */
CONC__PRIVATE uint64_t conc__module_identity(const conc__module_info *m)
{
    conc__mapped_file file;
    for (int i = 0; i < m->count; i++) {
        const conc__module_part *part = &m->parts[i];
        const char *notes = (const char *)(m->base + part->p_vaddr);
        size_t align = part->p_align == 8 ? 8 : 4;
        uint64_t id = 0;
        if (part->p_type == PT_NOTE)
            id = conc__build_id(notes, part->p_memsz, align);
        if (id)
            return id;
    }
    for (int i = 0; i < m->count; i++)
        if (m->parts[i].p_type == PT_LOAD) {
            conc__find_mapped_file(m->base + m->parts[i].p_vaddr, &file);
            return file.identity;
        }
    return 0;
}

/* Returns the program's identity, cached because /proc might become inaccessible later. */
CONC__PRIVATE uint64_t conc__program_identity(const conc__module_info *m)
{
    static uint64_t kept;
    uint64_t identity = __atomic_load_n(&kept, __ATOMIC_RELAXED);
    if (!identity) {
        identity = conc__module_identity(m);
        __atomic_store_n(&kept, identity, __ATOMIC_RELAXED);
    }
    return identity;
}

CONC__PRIVATE int conc__module_look(conc__module_info *m, size_t size, void *arg)
{
    conc__module_search *s = arg;
    bool program = s->seen++ == 0; /* the first is the program */
    const char *path = "";
    char *real = NULL;
    conc__mapped_file file;
    (void)size;
    if (!program && m->name) {
        path = m->name;
        if (*path)
            real = realpath(path, NULL);
        if (real)
            path = real;
    }
    if (s->address)
        s->found = conc__module_has(m, s->address);
    else
        s->found = strcmp(path, s->path) == 0 && (*path || program);
    bool is_relative = *path && *path != '/'; /* to the directory from which it was loaded */
    if (s->found && s->address && is_relative) {
        conc__find_mapped_file(s->address, &file);
        if (file.path)
            path = file.path;
    }
    if (s->found) {
        s->base = m->base;
        if (program)
            s->identity = conc__program_identity(m);
        else
            s->identity = conc__module_identity(m);
        if (s->name)
            conc__copy(s->name, sizeof((conc__function_id *)0)->module, path);
    }
    free(real);
    return s->found;
}

/* Stores the id of a function. Returns false if the function is in no module. */
CONC__PRIVATE bool conc__function_id_of(uintptr_t fn, conc__function_id *out)
{
    conc__module_search s = {.address = fn, .name = out->module};
    int saved = errno;
    conc__each_module(conc__module_look, &s);
    out->offset = fn - s.base;
    out->identity = s.identity;
    errno = saved;
    return s.found;
}

/* Returns the address of the function, or 0 if its module cannot be loaded or is a different build;
 * conc_last_error says which. */
CONC__PRIVATE uintptr_t conc__function_address(const conc__function_id *f)
{
    enum { NOW = 2 }; /* RTLD_NOW */
    static conc__module_search last;
    static char module[sizeof f->module] = "?"; /* the path in `last` */
    if (strcmp(module, f->module) != 0) {
        conc__module_search s = {.path = f->module};
        conc__each_module(conc__module_look, &s);
        if (!s.found && conc__load_module && conc__load_module(f->module, NOW)) {
            s.seen = 0;
            conc__each_module(conc__module_look, &s);
        }
        if (!s.found) {
            conc_fail(-ENOEXEC, "%s cannot be loaded", f->module);
            return 0;
        }
        last = s;
        strcpy(module, f->module);
    }
    const char *name = *module ? module : "the program";
    if (f->identity == last.identity)
        return last.base + (uintptr_t)f->offset;
    if (f->identity)
        conc_fail(-ENOEXEC, "the worker loaded a different build of %s", name);
    else
        conc_fail(-ENOEXEC, "/proc/self/maps is needed to tell builds of %s apart", name);
    return 0;
}

/* How many modules have been loaded and unloaded so far. Function ids stay valid as long as the
 * counts do not change. */
typedef struct conc__module_counts {
    unsigned long long loads, unloads;
} conc__module_counts;

CONC__PRIVATE int conc__module_count(conc__module_info *m, size_t size, void *arg)
{
    if (size >= offsetof(conc__module_info, unloads) + sizeof m->unloads)
        *(conc__module_counts *)arg = (conc__module_counts){m->loads, m->unloads};
    return 1;
}

/* ---- >>workers ------------------------------------------------------------------------------ *
 *
 * A pool of processes
 *
 *   The supervisor, a thread of the program, starts the workers, watches them, and replaces those
 *   that die. A worker is a process that executes the same program but serves requests, one at a
 *   time, instead of calling main. It has a channel (memory shared with the program) and a socket:
 *
 *     program                                   worker
 *     ------------------------------------      ---------------------------------------------
 *     submit: the job is QUEUED
 *     takes the job from the queue
 *     channel: request, data up to SMALL
 *     socket:  a new segment for larger data
 *     channel: turn = WORKER, futex wake  -->  unseen = 0, calls the function
 *                                              channel: result, error text, data
 *     a poller sees it                    <--  channel: turn = PROGRAM
 *     or the supervisor wakes up          <--  socket: one byte, if no thread is polling
 *     copies the result: the job is DONE
 *     notifies the waiters
 *
 *     cancel: kills the worker, or for a
 *     map: channel: cancel, futex wake    -->  starts no more elements, calls cancel hooks
 *
 *   The loops of waiting tasks, and waiting threads, poll the channels briefly before they sleep.
 *   While both sides are awake no system call is needed. Only the supervisor copies data larger
 *   than SMALL.
 *
 *   The program does not trust what workers write. It uses only the result and the error text, how
 *   many elements of a map are done (at most as many as it sent), and the bytes in the areas that
 *   it gave out. Workers can only read the status page, which says whether threads of the program
 *   are polling.
 */

enum {
    CONC__DATA_ALIGNMENT = 64,
    CONC__CHANNEL_DATA = 8192, /* offset of a channel's data */
    CONC__SMALL = 256 * 1024,  /* data bytes that a channel holds */
    CONC__CHANNEL_SIZE = CONC__CHANNEL_DATA + CONC__SMALL,

    CONC__WORKER_SOCKET = 3, /* the socket's descriptor in a worker */

    /* a worker's exit status */
    CONC__EXIT_MOVED = 120,       /* an address of shared memory is in use */
    CONC__EXIT_OTHER_BUILD = 121, /* it loaded a different build of the module that contains conc */
    CONC__EXIT_TOO_LATE = 122,    /* it reached main, or a constructor that opens a pool */

    /* whose turn it is: only that side changes `turn`. A faulty job is unlikely to write one of
     * these values to `turn` or `unseen` by accident */
    CONC__TURN_PROGRAM = 0x3a91c6d5,
    CONC__TURN_WORKER = 0x4be27f18,
    CONC__TURN_QUIT = 0x6d05b3e9,
    CONC__UNSEEN = 0x27d84ca3,

    /* kinds of requests */
    CONC__REQUEST_INIT = 0,
    CONC__REQUEST_RUN,
    CONC__REQUEST_CALL,
    CONC__REQUEST_MAP
};

/* Written by the program while it has the turn. */
typedef struct conc__request {
    int kind;
    bool keeps_going;
    bool in_segment; /* otherwise the data is in the channel */
    /* sizes in bytes; the output follows the input. REQUEST_MAP: the size of an element, and the
     * number of elements */
    uint64_t in, out;
    uint64_t segment_size;    /* size of the segment for larger data; 0: none */
    uint64_t segment_version; /* if it changes, a new segment arrives through the socket */
    conc__function_id function;
} conc__request;

typedef struct conc__worker_channel {
    unsigned turn;   /* a futex */
    unsigned cancel; /* a futex: a new nonzero value asks the worker to stop */
    unsigned asleep; /* the worker is sleeping on `turn` */
    unsigned unseen; /* CONC__UNSEEN: the worker has not begun the request */
    /* REQUEST_MAP: conc__none_done plus the number of elements done; their results follow the
     * data */
    uint64_t done;
    int64_t result;
    int text_rc; /* the result that `text` belongs to; 0: none */
    char text[96];
    conc__request request;
} conc__worker_channel;

/* A channel's `done` starts at this value, because a faulty job might write small numbers there. */
static const uint64_t conc__none_done = 0x5b1d93e7c4a60000u;

_Static_assert(sizeof(conc__worker_channel) <= CONC__CHANNEL_DATA,
               "a channel's head must fit before its data");

/* A page shared with all workers of a pool, read-only for them. */
typedef struct conc__status_page {
    /* number of threads that are polling the channels: while there are any, a reply needs no
     * wake-up */
    unsigned pollers;
} conc__status_page;

/* A message to a worker through its socket. The first ones each pass memory to map, and START ends
 * the setup; later ones pass data segments. All but START carry a descriptor. */
typedef struct conc__setup_message {
    enum { CONC__SETUP_CHANNEL, CONC__SETUP_STATUS, CONC__SETUP_SHARED, CONC__SETUP_START } what;
    /* START: the program's process id, the limit of a worker's memory, the signal mask of jobs */
    int program;
    uint64_t memory_limit;
    sigset_t mask;
    void *address;
    size_t size;
    uint64_t version; /* of a data segment */
} conc__setup_message;

CONC__PRIVATE int conc__sockets(int ends[2])
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
        return conc__call_failed("socketpair");
    return conc__ends_not_standard(ends);
}

CONC__PRIVATE int conc__setup_send(int socket, const conc__setup_message *h, int fd)
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
    if (n < 0)
        return -errno;
    return 0;
}

/* Receives a message. Returns 1, 0 at end of file, or an error. Sets *fd to the descriptor passed,
 * or to -1. */
CONC__PRIVATE int conc__setup_receive(int socket, conc__setup_message *h, int *fd)
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
    int rc = n == (ssize_t)sizeof *h;
    if (n < 0)
        rc = -errno;
    *fd = -1;
    if (rc == 1 && m.msg_controllen >= CMSG_LEN(sizeof(int)))
        memcpy(fd, CMSG_DATA(&control.head), sizeof *fd);
    *fd = conc__not_standard(*fd); /* a job's output must not go to it */
    return rc;
}

CONC__PRIVATE void conc__futex_wait(unsigned *word, unsigned while_it_is)
{
    enum { WAIT = 0 }; /* FUTEX_WAIT */
    syscall(SYS_futex, word, WAIT, while_it_is, NULL, NULL, 0);
}

CONC__PRIVATE void conc__futex_wake(unsigned *word)
{
    enum { WAKE = 1 }; /* FUTEX_WAKE */
    syscall(SYS_futex, word, WAKE, 1, NULL, NULL, 0);
}

CONC__PRIVATE size_t conc__aligned(size_t n)
{
    return (n + CONC__DATA_ALIGNMENT - 1) / CONC__DATA_ALIGNMENT * CONC__DATA_ALIGNMENT;
}

/* The state of this process if it is a worker. */
static struct conc__worker_process {
    int pid, program; /* 0: not a worker */
    bool *own;        /* false in processes that a job forked; NULL: use getpid */
    bool listens;     /* a thread passes stop requests to waiting jobs */
    int socket;
    ino_t socket_file;
    conc__worker_channel *channel;
    const conc__status_page *status_page;
    char *segment;  /* the data segment; NULL: not mapped */
    int segment_fd; /* until the segment is mapped; 0: none */
    uint64_t segment_size, segment_version;
    pthread_mutex_t mapping_mutex; /* held to map the segment, and during a fork */
    void *copies[2]; /* during a fork: the new process's copies of channel and segment */
    conc__job_context context;
} conc__worker_process = {.mapping_mutex = PTHREAD_MUTEX_INITIALIZER};

/* A thread that ends this process when the program ends. */
typedef struct conc__program_watch {
    int program;   /* pidfd */
    unsigned runs; /* a futex: the thread has started and no longer uses this struct */
} conc__program_watch;

CONC__PRIVATE void *conc__program_watch_main(void *arg)
{
    conc__program_watch *w = arg;
    struct pollfd p = {w->program, POLLIN, 0};
    __atomic_store_n(&w->runs, 1, __ATOMIC_RELEASE);
    conc__futex_wake(&w->runs);
    while (poll(&p, 1, -1) < 0 && errno == EINTR)
        ;
    kill(getpid(), SIGKILL);
    return NULL;
}

/* Starts a detached thread with a small stack. Returns false if that fails. */
CONC__PRIVATE bool conc__small_thread(void *(*fn)(void *), void *arg)
{
    pthread_attr_t small;
    pthread_t id;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 * 1024);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    int rc = conc__quiet_thread(&id, &small, fn, arg);
    pthread_attr_destroy(&small);
    return rc == 0;
}

/* Starts the thread, and returns once it is running. A thread that is starting can hold an
 * allocator lock, which would stay locked in a process that a job forks at that moment. */
CONC__PRIVATE void conc__program_watch_start(int program)
{
    conc__program_watch w = {conc__pidfd(program), 0};
    if (w.program < 0 && errno == ESRCH)
        kill(getpid(), SIGKILL); /* the program has just ended */
    if (w.program < 0 || !conc__small_thread(conc__program_watch_main, &w))
        return;
    while (!__atomic_load_n(&w.runs, __ATOMIC_ACQUIRE))
        conc__futex_wait(&w.runs, 0);
}

/* Calls the hooks of waiting jobs when they are asked to stop. */
CONC__PRIVATE void *conc__cancel_listener_main(void *arg)
{
    unsigned *asked = arg, seen = 0;
    for (;;) {
        conc__futex_wait(asked, seen);
        seen = __atomic_load_n(asked, __ATOMIC_ACQUIRE);
        if (seen)
            conc__run_cancel_hooks();
    }
    return NULL;
}

/* Maps memory that the kernel clears in a forked process, however it was forked. This distinguishes
 * the worker from its children without a system call. */
CONC__PRIVATE void conc__worker_make_fork_marker(void)
{
    enum { WIPE_ON_FORK = 18 }; /* MADV_WIPEONFORK */
    size_t page = conc__page();
    int flags = MAP_PRIVATE | CONC__MAP_ANONYMOUS;
    bool *own = mmap(NULL, page, PROT_READ | PROT_WRITE, flags, -1, 0);
    if ((void *)own == MAP_FAILED)
        return;
    if (madvise(own, page, WIPE_ON_FORK)) {
        munmap(own, page);
        return;
    }
    *own = true;
    conc__worker_process.own = own;
}

/* Is this the worker itself, not a process that one of its jobs forked? */
CONC__PRIVATE bool conc__worker_is_original(void)
{
    const struct conc__worker_process *w = &conc__worker_process;
    if (w->own)
        return *w->own;
    return getpid() == w->pid;
}

/* Called when a job of a worker begins to wait. Only elements of a map can be asked to stop; the
 * first one that waits starts the listener thread. */
CONC__PRIVATE void conc__worker_start_cancel_listener(void)
{
    struct conc__worker_process *w = &conc__worker_process;
    const conc__request *r = &w->channel->request;
    bool may_be_cancelled = r->kind == CONC__REQUEST_MAP && !r->keeps_going;
    if (!may_be_cancelled || !conc__worker_is_original())
        return;
    if (__atomic_exchange_n(&w->listens, true, __ATOMIC_RELAXED))
        return;
    bool started = conc__small_thread(conc__cancel_listener_main, &w->channel->cancel);
    __atomic_store_n(&w->listens, started, __ATOMIC_RELAXED);
}

/* Returns the request's number of data bytes, but at most `most`, because a faulty job might have
 * overwritten it. */
CONC__PRIVATE size_t conc__request_bytes(const conc__request *r, size_t most)
{
    uint64_t bytes = r->in;
    if (r->kind == CONC__REQUEST_CALL)
        bytes = conc__aligned(r->in) + r->out;
    if (r->kind == CONC__REQUEST_MAP)
        bytes = conc__aligned(r->in * r->out) + r->out * sizeof(int);
    return bytes < most ? bytes : most;
}

/* Returns `size` bytes of private memory, the first `used` copied from `from`, or NULL if memory
 * has run out. */
CONC__PRIVATE void *conc__private_copy(const void *from, size_t size, size_t used)
{
    void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | CONC__MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return NULL;
    return memcpy(copy, from, used);
}

/* Called before a job forks. The new process gets copies of the memory shared with the program,
 * because it might still be running when that memory serves other jobs. */
CONC__PRIVATE void conc__worker_before_fork(void)
{
    struct conc__worker_process *w = &conc__worker_process;
    pthread_mutex_lock(&w->mapping_mutex);
    const conc__request *r = &w->channel->request;
    size_t used = 0;
    if (!r->in_segment)
        used = conc__request_bytes(r, CONC__SMALL);
    w->copies[0] = conc__private_copy(w->channel, CONC__CHANNEL_SIZE, CONC__CHANNEL_DATA + used);
    w->copies[1] = NULL;
    if (w->segment) {
        used = 0;
        if (r->in_segment)
            used = conc__request_bytes(r, w->segment_size);
        w->copies[1] = conc__private_copy(w->segment, w->segment_size, used);
    }
}

CONC__PRIVATE void conc__worker_after_fork(void)
{
    struct conc__worker_process *w = &conc__worker_process;
    if (w->copies[0])
        munmap(w->copies[0], CONC__CHANNEL_SIZE);
    if (w->copies[1])
        munmap(w->copies[1], w->segment_size);
    pthread_mutex_unlock(&w->mapping_mutex);
}

/* Replaces the memory with the copy, or unmaps it if there is no copy. */
CONC__PRIVATE void conc__worker_remap_copy(void *place, void *copy, size_t size)
{
    enum { MAY_MOVE = 1, FIXED = 2 }; /* MREMAP_MAYMOVE, MREMAP_FIXED */
    if (!place)
        return;
    bool moved = copy && syscall(SYS_mremap, copy, size, size, MAY_MOVE | FIXED, place) >= 0;
    if (!moved)
        munmap(place, size);
}

/* Called in a process that a job forked. The process must not outlive the program either. */
CONC__PRIVATE void conc__worker_in_forked_child(void)
{
    struct conc__worker_process *w = &conc__worker_process;
    conc__worker_remap_copy(w->channel, w->copies[0], CONC__CHANNEL_SIZE);
    conc__worker_remap_copy(w->segment, w->copies[1], w->segment_size);
    pthread_mutex_init(&w->mapping_mutex, NULL);
    w->listens = false;
    if (w->own)
        *w->own = false; /* an emulator might not clear it */
    if (w->program)
        conc__program_watch_start(w->program);
}

/* Makes sure that the worker dies when the program does. The kernel kills it when its parent, the
 * supervisor thread, ends, even if a job has executed another program. A thread of the worker also
 * watches the program, in case a job has changed the user. */
CONC__PRIVATE void conc__worker_tie_to_program(int program)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    conc__program_watch_start(program);
    pthread_atfork(conc__worker_before_fork, conc__worker_after_fork, conc__worker_in_forked_child);
    if (getppid() != program)
        _exit(0); /* the program has just ended */
}

/* Is the descriptor still the worker's socket? A job might have closed it and opened another
 * file. */
CONC__PRIVATE bool conc__worker_has_socket(void)
{
    const struct conc__worker_process *w = &conc__worker_process;
    struct stat st;
    return fstat(w->socket, &st) == 0 && st.st_ino == w->socket_file;
}

/* Wakes the program unless it is polling. If a job has closed the socket, this process exits, which
 * wakes the program too; the reply is not lost. */
CONC__PRIVATE void conc__worker_notify_program(void)
{
    const struct conc__worker_process *w = &conc__worker_process;
    if (__atomic_load_n(&w->status_page->pollers, __ATOMIC_SEQ_CST) > 0)
        return;
    bool told = conc__worker_has_socket() &&
                (send(w->socket, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 || errno == EAGAIN);
    if (!told)
        _exit(1);
}

CONC__PRIVATE void conc__worker_spin(const conc__worker_channel *c)
{
    for (int i = 0; i < 32; i++) {
        if (__atomic_load_n(&c->turn, __ATOMIC_RELAXED) != CONC__TURN_PROGRAM)
            return;
        conc__relax();
    }
}

/* Waits for a request. Returns false if the worker must exit. */
CONC__PRIVATE bool conc__worker_await_request(conc__worker_channel *c)
{
    int64_t start = conc__clock();
    for (;;) {
        unsigned turn = __atomic_load_n(&c->turn, __ATOMIC_ACQUIRE);
        if (turn != CONC__TURN_PROGRAM)
            return turn == CONC__TURN_WORKER;
        if (conc__several_processors() && conc__clock() - start < CONC__PATIENCE) {
            conc__worker_spin(c);
            continue;
        }
        __atomic_store_n(&c->asleep, 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&c->turn, __ATOMIC_SEQ_CST) == CONC__TURN_PROGRAM)
            conc__futex_wait(&c->turn, CONC__TURN_PROGRAM);
        __atomic_store_n(&c->asleep, 0, __ATOMIC_SEQ_CST);
    }
}

/* Receives the request's data segment, which replaces the previous one. Skips older segments that
 * are still in the socket. Returns false if that fails; a later request may try again. */
CONC__PRIVATE bool conc__worker_receive_segment(const conc__request *r)
{
    struct conc__worker_process *w = &conc__worker_process;
    conc__setup_message h = {.version = w->segment_version};
    if (w->segment)
        munmap(w->segment, w->segment_size);
    if (w->segment_fd > 0)
        close(w->segment_fd);
    w->segment = NULL;
    w->segment_fd = 0;
    w->segment_size = r->segment_size;
    while (r->segment_size && h.version != r->segment_version) {
        if (!conc__worker_has_socket())
            _exit(1); /* the worker that replaces this one has a socket */
        if (w->segment_fd > 0)
            close(w->segment_fd);
        if (conc__setup_receive(w->socket, &h, &w->segment_fd) != 1)
            return false;
    }
    w->segment_version = r->segment_version;
    return true;
}

/* Maps the segment on first use. */
CONC__PRIVATE void conc__worker_map_segment(const conc__request *r)
{
    struct conc__worker_process *w = &conc__worker_process;
    int more = r->kind == CONC__REQUEST_RUN ? CONC__MAP_POPULATE : 0;
    w->segment =
        conc__segment_map(w->segment_fd, NULL, w->segment_size, PROT_READ | PROT_WRITE, more);
    if (!w->segment)
        return;
    close(w->segment_fd);
    w->segment_fd = 0;
}

/* Returns the request's data, or NULL if its segment cannot be mapped. */
CONC__PRIVATE char *conc__worker_data(const conc__request *r)
{
    struct conc__worker_process *w = &conc__worker_process;
    bool is_current = r->segment_version == w->segment_version;
    bool is_mapped = w->segment || !r->in_segment;
    if (!is_current || !is_mapped) {
        pthread_mutex_lock(&w->mapping_mutex);
        is_current = is_current || conc__worker_receive_segment(r);
        if (is_current && r->in_segment && !w->segment)
            conc__worker_map_segment(r);
        pthread_mutex_unlock(&w->mapping_mutex);
        if (!is_current)
            return NULL;
    }
    return r->in_segment ? w->segment : (char *)w->channel + CONC__CHANNEL_DATA;
}

CONC__PRIVATE int64_t conc__worker_do_map(conc__worker_channel *c, conc_fn *fn, char *data)
{
    /* read before the calls, which might overwrite the request */
    const uint64_t size = c->request.in, count = c->request.out;
    const bool keeps_going = c->request.keeps_going;
    int *results = (int *)(void *)(data + conc__aligned(size * count));
    for (uint64_t i = 0; i < count && !__atomic_load_n(&c->cancel, __ATOMIC_RELAXED); i++) {
        int rc = fn(size ? data + i * size : NULL);
        if (!conc__worker_is_original())
            return 0;
        fflush(stdout); /* the next call might end this process */
        results[i] = rc;
        __atomic_store_n(&c->done, conc__none_done + i + 1, __ATOMIC_RELEASE);
        if (rc < 0 && !keeps_going)
            return rc;
    }
    return 0;
}

CONC__PRIVATE int64_t conc__worker_call(conc__worker_channel *c)
{
    const conc__request *r = &c->request;
    bool wanted = r->kind != CONC__REQUEST_INIT || r->function.offset;
    char *data = conc__worker_data(r);
    if (!wanted)
        return 0;
    if (!data)
        return conc_fail(-ENOMEM, "the worker cannot map the job's data: %s", strerror(errno));
    uintptr_t fn = conc__function_address(&r->function);
    if (!fn)
        return -ENOEXEC;
    switch (r->kind) {
    case CONC__REQUEST_INIT: return ((int (*)(void))fn)();
    case CONC__REQUEST_RUN: return ((conc_fn *)fn)(r->in ? data : NULL);
    case CONC__REQUEST_CALL:
        return ((conc_procs_fn *)fn)(data, r->in, data + conc__aligned(r->in), r->out);
    default: return conc__worker_do_map(c, (conc_fn *)fn, data);
    }
}

/* Handles the request and replies. A process that a job forked exits here if it returns from the
 * job. */
CONC__PRIVATE void conc__worker_do_request(void)
{
    struct conc__worker_process *w = &conc__worker_process;
    conc__worker_channel *c = w->channel;
    w->context.cancel_flag = &c->cancel;
    w->context.text_rc = 0;
    c->text_rc = 0;
    int64_t result = conc__worker_call(c);
    fflush(stdout);
    if (getpid() != w->pid)
        _exit(0);
    c->result = result;
    if (result < 0 && w->context.text_rc == (int)result) {
        memcpy(c->text, w->context.text, sizeof c->text);
        c->text_rc = w->context.text_rc;
    }
    __atomic_store_n(&c->turn, CONC__TURN_PROGRAM, __ATOMIC_SEQ_CST);
    conc__worker_notify_program();
}

/* Ignores SIGINT and SIGTERM, which a terminal or a service manager sends to all processes: the
 * program decides whether to end. A job that sends itself SIGTERM ends its worker. */
CONC__PRIVATE void conc__worker_signalled(int number, siginfo_t *info, void *context)
{
    (void)context;
    bool own = info->si_pid == getpid() && info->si_code <= 0;
    if (number != SIGTERM || !own)
        return;
    signal(SIGTERM, SIG_DFL);
    raise(SIGTERM);
}

/* Installs handlers instead of SIG_IGN, which programs that a job starts would inherit. */
CONC__PRIVATE void conc__worker_set_signals(const sigset_t *mask)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = conc__worker_signalled;
    action.sa_flags = SA_RESTART | SA_SIGINFO;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    pthread_sigmask(SIG_SETMASK, mask, NULL);
}

/* Serves requests until the worker must exit. */
CONC__PRIVATE void conc__worker_serve(const conc__setup_message *start)
{
    struct conc__worker_process *w = &conc__worker_process;
    struct stat st;
    w->pid = getpid();
    w->program = start->program;
    if (fstat(w->socket, &st) == 0)
        w->socket_file = st.st_ino;
    prctl(PR_SET_NAME, "conc worker");
    conc__worker_make_fork_marker();
    conc__worker_tie_to_program(start->program);
    if (start->memory_limit) {
        struct rlimit limit = {start->memory_limit, start->memory_limit};
        setrlimit(RLIMIT_DATA, &limit);
    }
    conc__job_queues_need();
    if (conc__job_context_key_made)
        pthread_setspecific(conc__job_context_key, &w->context);
    conc__worker_set_signals(&start->mask);
    while (conc__worker_await_request(w->channel)) {
        __atomic_store_n(&w->channel->unseen, 0, __ATOMIC_RELAXED);
        conc__worker_do_request();
    }
    fflush(NULL);
    _exit(0);
}

/* Receives what the program sends at startup. */
CONC__PRIVATE void conc__worker_receive_setup(const conc__setup_message *h, int fd)
{
    struct conc__worker_process *w = &conc__worker_process;
    switch (h->what) {
    case CONC__SETUP_CHANNEL:
        w->channel = conc__segment_map(fd, NULL, h->size, PROT_READ | PROT_WRITE, 0);
        break;
    case CONC__SETUP_STATUS:
        w->status_page = conc__segment_map(fd, NULL, h->size, PROT_READ, 0);
        break;
    default:
        if (conc__segment_map(fd, h->address, h->size, PROT_READ | PROT_WRITE, 0) != h->address)
            _exit(CONC__EXIT_MOVED);
        break;
    }
    close(fd);
}

/* Returns the supervisor's process id, according to the worker's socket, or -1 if it is unknown.
 * Processes that a worker's constructors start or fork inherit its environment and socket, but have
 * a different parent. */
CONC__PRIVATE int conc__supervisor_process(void)
{
    enum { PEERCRED = 17 }; /* SO_PEERCRED, which is not in POSIX */
    struct {                /* struct ucred, which the system's header hides */
        int pid;
        unsigned user, group;
    } peer;
    socklen_t size = sizeof peer;
    int rc = getsockopt(CONC__WORKER_SOCKET, SOL_SOCKET, PEERCRED, &peer, &size);
    if (rc)
        return -1;
    return peer.pid;
}

/* Runs this process as a worker. Never returns, so main is not called. */
CONC__COLD void conc__worker_main(void)
{
    struct conc__worker_process *w = &conc__worker_process;
    conc__setup_message h;
    int fd, program = conc__supervisor_process();
    if (program >= 0 && program != getppid())
        _exit(0); /* not the worker: one of its constructors has forked or started this process */
    w->socket = CONC__WORKER_SOCKET;
    fcntl(w->socket, F_SETFD, FD_CLOEXEC);
    while (conc__setup_receive(w->socket, &h, &fd) == 1) {
        if (h.what != CONC__SETUP_START)
            conc__worker_receive_setup(&h, fd);
        else if (w->channel && w->status_page)
            conc__worker_serve(&h);
        else
            break;
    }
    _exit(1);
}

/* Writes the environment entry that marks a process as a worker. It names conc__worker_main,
 * because a program can contain several copies of this file. */
CONC__PRIVATE bool conc__worker_mark(char *text, size_t size)
{
    conc__function_id f;
    if (!conc__function_id_of((uintptr_t)conc__worker_main, &f))
        return false;
    int n = snprintf(text, size, "CONC__WORKER=%llx.%llx.%s", (unsigned long long)f.offset,
                     (unsigned long long)f.identity, f.module);
    return n > 0 && (size_t)n < size;
}

typedef void conc__constructor(int argc, char **argv, char **env);

/* The constructors of a statically linked program; the linker provides the symbols. */
extern conc__constructor *conc__static_constructors[] __asm__("__init_array_start")
    __attribute__((weak, visibility("hidden")));
extern conc__constructor *conc__static_constructors_end[] __asm__("__init_array_end")
    __attribute__((weak, visibility("hidden")));

typedef struct conc__constructors {
    conc__constructor **first, **end;
} conc__constructors;

/* Finds the constructors of the first module, which is the program. */
CONC__PRIVATE int conc__constructors_look(conc__module_info *m, size_t size, void *arg)
{
    conc__constructors *c = arg;
    uintptr_t first = 0, bytes = 0;
    (void)size;
    for (int i = 0; i < m->count; i++) {
        if (m->parts[i].p_type != PT_DYNAMIC)
            continue;
        const conc__module_entry *e = (const conc__module_entry *)(m->base + m->parts[i].p_vaddr);
        for (; e->d_tag != DT_NULL; e++) {
            if (e->d_tag == DT_INIT_ARRAY)
                first = m->base + e->d_un.d_ptr;
            if (e->d_tag == DT_INIT_ARRAYSZ)
                bytes = e->d_un.d_val;
        }
    }
    if (first) {
        c->first = (conc__constructor **)first;
        c->end = c->first + bytes / sizeof *c->first;
    }
    return 1;
}

/* The program's last constructor, in a worker that does not serve requests yet. */
static conc__constructor *conc__last_constructor;

CONC__PRIVATE void conc__construct_and_serve(int argc, char **argv, char **env)
{
    conc__last_constructor(argc, argv, env);
    conc__last_constructor = NULL;
    conc__worker_main();
}

/* Replaces the program's last constructor, so that the worker serves once all constructors have
 * run, and jobs see their effects. `own` is the constructor that is running. */
CONC__PRIVATE void conc__worker_start_after_constructors(conc__constructor *own)
{
    conc__constructors c = {conc__static_constructors, conc__static_constructors_end};
    conc__each_module(conc__constructors_look, &c);
    bool none = !c.first || c.first == c.end;
    if (none || c.end[-1] == own)
        conc__worker_main();
    uintptr_t page = conc__page(), at = (uintptr_t)&c.end[-1] / page * page;
    if (mprotect((void *)at, page, PROT_READ | PROT_WRITE))
        _exit(1);
    conc__last_constructor = c.end[-1];
    c.end[-1] = conc__construct_and_serve;
}

/* Stores the identity in a mark, and returns how many of its bytes to compare. If the identity is
 * known, those bytes exclude the module's path, which may have changed. */
CONC__PRIVATE size_t conc__mark_part(const char *mark, uint64_t *identity)
{
    const char *dot = strchr(mark, '.');
    char *end = NULL;
    *identity = dot ? strtoull(dot + 1, &end, 16) : 0;
    if (*identity)
        return (size_t)(end - mark) + 1;
    return strlen(mark) + 1;
}

CONC__PRIVATE int conc__module_is(conc__module_info *m, size_t size, void *arg)
{
    const uint64_t *identity = arg;
    (void)size;
    return conc__module_identity(m) == *identity;
}

/* Called by the constructor `own`. If this process is a worker of this copy of conc, makes it serve
 * requests instead of calling main. If the mark names a module that is absent, exits, because the
 * program must not run in the worker's place. */
CONC__PRIVATE void conc__worker_check(conc__constructor *own)
{
    static char mark[4200];
    uint64_t identity;
    const char *given = getenv("CONC__WORKER");
    if (!given || getauxval(AT_SECURE) || !conc__worker_mark(mark, sizeof mark))
        return;
    size_t part = conc__mark_part(given, &identity);
    if (strncmp(given, strchr(mark, '=') + 1, part) == 0) {
        unsetenv("CONC__WORKER");
        conc__worker_start_after_constructors(own);
    } else if (identity && conc__supervisor_process() == getppid() &&
               !conc__each_module(conc__module_is, &identity)) {
        _exit(CONC__EXIT_OTHER_BUILD);
    }
}

/* ---- >>supervisor --------------------------------------------------------------------------- *
 *
 * The program's view of a worker's states, under the mutex
 *
 *   NONE      there is no process
 *   CREATING  the supervisor is starting its process, without the mutex
 *   STARTING  the process was started and is calling init
 *   IDLE      is waiting for a request; it has no job
 *   COPYING   data is being copied to it or from it: large data by the supervisor, without the
 *             mutex; small data by any thread under the mutex, so that no other thread sees this
 *             state
 *   BUSY      has a request; `awaited` while any thread may collect its reply
 *   LEAVING   was killed or told to quit
 *
 *   Any thread may make these changes:
 *
 *   STARTING  -> IDLE      init has returned
 *   IDLE      -> BUSY      it gets a small job
 *   BUSY      -> IDLE      it has replied to a small job
 *   BUSY      -> LEAVING   its job was cancelled, and it was killed
 *   IDLE      -> LEAVING   it has done max_jobs
 *
 *   Only the supervisor makes these:
 *
 *   NONE      -> CREATING  jobs are queued and no worker is idle; CREATING -> STARTING, or -> NONE
 *                          if the process cannot be started
 *   IDLE      -> COPYING   it gets a large job; COPYING -> BUSY when the data is copied
 *   BUSY      -> COPYING   it has replied to a large job; COPYING -> IDLE
 *   IDLE      -> LEAVING   the pool was closed
 *   any       -> NONE      its process has ended. A job that it had not begun is queued again; one
 *                          that it had begun fails with -EOWNERDEAD. In a map only the element
 *                          that was running fails, and the others are queued again
 */

typedef enum conc__worker_state {
    CONC__WORKER_NONE,
    CONC__WORKER_CREATING,
    CONC__WORKER_STARTING,
    CONC__WORKER_IDLE,
    CONC__WORKER_COPYING,
    CONC__WORKER_BUSY,
    CONC__WORKER_LEAVING
} conc__worker_state;

typedef struct conc__worker {
    conc__worker_state state;
    conc__worker_channel *channel; /* pollers load it without the mutex */
    bool awaited;                  /* any thread may collect its reply; read without the mutex */
    bool cancelled;                /* its job was cancelled while its data was being copied */
    bool proved;                   /* it has begun at least one job */
    int pid, pidfd, socket;
    unsigned poll_process, poll_socket; /* their indexes in the supervisor's polls; 0: none */
    conc__segment channel_memory, data;
    uint64_t data_version; /* changes with the segment */
    conc_job *job;
    int jobs;         /* number of jobs it was given */
    unsigned cancels; /* how often it has been asked to stop a map; wraps around to 1 */
    int64_t idle_since;
} conc__worker;

/* The id of a function, looked up once for many requests with the same function. */
typedef struct conc__function_cache {
    uintptr_t fn;
    conc__module_counts counts;
    conc__function_id function;
} conc__function_cache;

typedef struct conc__supervisor {
    conc__job_queue *queue;
    conc__segment status_memory;
    conc__status_page *status_page;
    int wake_fd; /* wakes the supervisor */
    bool wake_pending, runs, ending;
    pthread_t thread;
    conc__job_context context; /* the thread's own, for its error texts */
    sigset_t mask;             /* of the thread that opened the pool; for jobs */
    char **environment;        /* a copy made when the pool was opened, with the worker's mark */
    conc__function_id init;    /* offset 0: none */
    size_t memory_limit;
    int max_jobs;
    int starting;
    int failures; /* weighted count of consecutive workers that ended before beginning a job */
    int broken;   /* the error that all later jobs get if workers cannot start; 0: none */
    char why[96];
    conc__waiter *closer;  /* waits for the supervisor to exit */
    conc__segment *unused; /* channels of ended workers, which a thread may still be polling */
    conc__function_cache named;
    struct pollfd *polls; /* the first one is for wake_fd */
    unsigned poll_count;
    conc__worker workers[];
} conc__supervisor;

enum {
    /* no worker is started once `failures` reaches this: after 3 failures that are the program's
     * fault, or more if some might have external causes */
    CONC__FAILURES = 30,
    CONC__FAILURE = 10,
    CONC__MINOR_FAILURE = 1,
    CONC__ASK_AGAIN = 20 /* ms between checks where there is no descriptor to wait for */
};

CONC__PRIVATE void conc__supervisor_wake(conc__supervisor *s)
{
    uint64_t one = 1;
    if (!s->wake_pending && write(s->wake_fd, &one, sizeof one) < 0) {
        /* already woken */
    }
    s->wake_pending = true;
}

/* ---- Messages ---- */

/* Puts the function's id into the request. */
CONC__PRIVATE int conc__request_function(conc__supervisor *s, conc__worker *w, uintptr_t fn)
{
    conc__function_cache *named = &s->named;
    conc__function_id *to = &w->channel->request.function;
    conc__module_counts counts = {0, 0};
    int saved = errno;
    conc__each_module(conc__module_count, &counts);
    errno = saved;
    if (named->fn != fn || memcmp(&named->counts, &counts, sizeof counts)) {
        named->fn = 0;
        if (!conc__function_id_of(fn, &named->function))
            return -EINVAL;
        /* an unknown identity might be known later */
        named->fn = named->function.identity ? fn : 0;
        named->counts = counts;
    }
    /* copied every time, because a faulty job might have overwritten it */
    memcpy(to, &named->function,
           offsetof(conc__function_id, module) + strlen(named->function.module) + 1);
    return 0;
}

CONC__PRIVATE void conc__request_send(conc__worker *w)
{
    conc__worker_channel *c = w->channel;
    c->cancel = 0;
    c->unseen = CONC__UNSEEN;
    c->done = conc__none_done;
    __atomic_store_n(&c->turn, CONC__TURN_WORKER, __ATOMIC_SEQ_CST);
    __atomic_store_n(&w->awaited, true, __ATOMIC_RELEASE);
    bool asleep = __atomic_load_n(&c->asleep, __ATOMIC_SEQ_CST);
    if (asleep)
        conc__futex_wake(&c->turn);
    conc__has_woken(asleep);
}

CONC__PRIVATE bool conc__worker_has_replied(const conc__worker_channel *c)
{
    return __atomic_load_n(&c->turn, __ATOMIC_SEQ_CST) == CONC__TURN_PROGRAM;
}

/* Takes the next elements of a map for a runner: many at first, one at a time near the end. If the
 * map must stop, takes none, and drops those that were taken but not sent. */
CONC__PRIVATE void conc__range_take(const conc__supervisor *s, const conc_job *j)
{
    conc__payload *p = j->payload;
    conc__map_call *m = p->map;
    size_t left = m->count - m->next, most = 4096;
    size_t n = left / (2 * (size_t)s->queue->max_workers);
    if (conc__map_cancelled(m))
        conc__range_drop(p, -ECANCELED);
    if (p->left || conc__map_cancelled(m))
        return;
    if (m->size)
        most = (CONC__SMALL - CONC__DATA_ALIGNMENT) / (m->size + sizeof(int));
    if (s->max_jobs && most > (size_t)s->max_jobs)
        most = (size_t)s->max_jobs;
    if (n > most)
        n = most;
    if (n < 1 && left)
        n = 1;
    p->first = m->next;
    p->left = n;
    m->next += n;
}

/* Returns the offset of the elements' results, which follow their data. */
CONC__PRIVATE size_t conc__range_results(const conc__payload *p)
{
    return conc__aligned(p->left * p->map->size);
}

/* Returns how many data bytes the job's request needs, or SIZE_MAX if there are too many. */
CONC__PRIVATE size_t conc__job_bytes(const conc_job *j)
{
    const conc__payload *p = j->payload;
    if (!p)
        return j->size;
    if (p->map)
        return conc__range_results(p) + p->left * sizeof(int);
    if (p->in_size > SIZE_MAX / 4 || p->out_size > SIZE_MAX / 4)
        return SIZE_MAX;
    return conc__aligned(p->in_size) + p->out_size;
}

CONC__PRIVATE bool conc__job_is_large(const conc_job *j)
{
    return conc__job_bytes(j) > CONC__SMALL;
}

/* Returns the address of the job's data in the program. */
CONC__PRIVATE char *conc__job_data(const conc__worker *w, const conc_job *j)
{
    return conc__job_is_large(j) ? w->data.address : (char *)w->channel + CONC__CHANNEL_DATA;
}

/* Gives the worker a data segment of at least `size` bytes, or removes its segment if size is 0. */
CONC__PRIVATE int conc__worker_reserve_data(conc__worker *w, size_t size)
{
    enum { STEP = 1 << 20 };
    if (size > SIZE_MAX / 4)
        return conc_fail(-ENOMEM, "the data is too large");
    bool suffices = size <= w->data.size;
    if (!size)
        suffices = !w->data.size;
    if (suffices)
        return 0;
    conc__segment_close(&w->data);
    w->data.size = 0;
    w->data_version++;
    if (!size)
        return 0;
    int rc = conc__segment_open(&w->data, (size + STEP - 1) / STEP * STEP, false);
    conc__setup_message h = {.what = CONC__SETUP_SHARED, .version = w->data_version};
    if (rc == 0)
        rc = conc__setup_send(w->socket, &h, w->data.fd);
    bool gone = rc == -EPIPE || rc == -ECONNRESET || rc == -EBADF;
    if (rc == 0 || gone) /* the supervisor will notice that the worker has ended */
        return 0;
    conc__segment_close(&w->data);
    w->data.size = 0;
    if (rc == -EFBIG)
        return rc;
    return conc_fail(-ENOMEM, "no room for %zu bytes of data: %s", size, strerror(-rc));
}

/* Fills in the kind and the sizes of the job's request. Returns how many bytes to send; *from
 * points to them. */
CONC__PRIVATE size_t conc__request_describe(conc__request *r, const conc_job *j, const void **from)
{
    const conc__payload *p = j->payload;
    if (p && p->map) {
        const conc__map_call *m = p->map;
        r->kind = CONC__REQUEST_MAP;
        r->keeps_going = m->keeps_going;
        r->in = m->size;
        r->out = p->left;
        *from = m->args ? m->args + p->first * m->size : NULL;
        return p->left * m->size;
    }
    if (p) {
        r->kind = CONC__REQUEST_CALL;
        r->in = p->in_size;
        r->out = p->out_size;
        *from = p->in;
        return p->in_size;
    }
    r->kind = CONC__REQUEST_RUN;
    r->in = j->size;
    r->out = 0;
    *from = j->arg;
    return j->size;
}

/* Writes the job's request and data, except the id of its function. */
CONC__PRIVATE int conc__job_write_request(conc_job *j, conc__worker *w)
{
    bool large = conc__job_is_large(j);
    int rc = 0;
    if (large)
        rc = conc__worker_reserve_data(w, conc__job_bytes(j));
    if (rc)
        return rc;
    conc__request *r = &w->channel->request;
    const void *from;
    size_t bytes = conc__request_describe(r, j, &from);
    r->in_segment = large;
    r->segment_size = w->data.size;
    r->segment_version = w->data_version;
    if (bytes)
        memcpy(conc__job_data(w, j), from, bytes);
    return 0;
}

CONC__PRIVATE uintptr_t conc__job_function(const conc_job *j)
{
    const conc__payload *p = j->payload;
    if (p && p->map)
        return (uintptr_t)p->map->fn;
    if (p)
        return (uintptr_t)p->call;
    return (uintptr_t)j->fn;
}

/* ---- Results ---- */

/* Ends a worker's job. `text` is its error text, or "" if it has none. */
CONC__PRIVATE void conc__job_complete(conc__job_queue *q, conc_job *j, int result, const char *text)
{
    conc__job_context ctx = {.locals = j->locals};
    if (*text)
        ctx.text_rc = result;
    conc__copy(ctx.text, sizeof ctx.text, text);
    conc__job_end(q, j, result, &ctx, true);
    conc__job_queue_notify_closer(q);
}

/* Ends a job that no worker will run. */
CONC__PRIVATE void conc__job_complete_undone(conc__job_queue *q, conc_job *j, int rc,
                                             const char *text)
{
    if (j->payload && j->payload->map) {
        conc__map_call *m = j->payload->map;
        if (!m->keeps_going && !m->error && rc != -ECANCELED)
            m->error = rc;
        conc__range_drop(j->payload, rc);
    }
    conc__job_complete(q, j, rc, text);
}

/* Returns how many of the runner's elements its worker has done, or SIZE_MAX if an element has
 * overwritten the count. */
CONC__PRIVATE size_t conc__range_counted(const conc__worker *w)
{
    uint64_t done = __atomic_load_n(&w->channel->done, __ATOMIC_ACQUIRE) - conc__none_done;
    return done <= w->job->payload->left ? (size_t)done : SIZE_MAX;
}

/* Copies the bytes and results of the runner's first n elements, whose calls have returned. If one
 * of them is the first of the map to fail, sets the map's error and *error. */
CONC__PRIVATE void conc__range_done(const conc__worker *w, size_t n, int *error)
{
    conc__payload *p = w->job->payload;
    conc__map_call *m = p->map;
    const char *data = conc__job_data(w, w->job);
    const char *results = data + conc__range_results(p);
    if (m->size)
        memcpy(m->args + p->first * m->size, data, n * m->size);
    for (size_t i = 0; i < n; i++) {
        int rc;
        memcpy(&rc, results + i * sizeof rc, sizeof rc);
        if (m->results)
            m->results[p->first + i] = rc;
        if (rc < 0 && !m->error && !m->keeps_going)
            *error = m->error = rc;
    }
    p->first += n;
    p->left -= n;
}

/* Tells the map's workers to start no more elements, because one has failed. */
CONC__PRIVATE void conc__map_stop(conc__supervisor *s, conc__map_call *m)
{
    __atomic_store_n(&m->stop, true, __ATOMIC_RELAXED);
    for (int i = 0; i < s->queue->max_workers; i++) {
        conc__worker *w = &s->workers[i];
        bool is_mapping = w->state == CONC__WORKER_BUSY && w->job->payload;
        if (!is_mapping || w->job->payload->map != m)
            continue;
        w->cancels++;
        if (!w->cancels)
            w->cancels = 1;
        __atomic_store_n(&w->channel->cancel, w->cancels, __ATOMIC_RELEASE);
        conc__futex_wake(&w->channel->cancel);
    }
}

/* Handles the reply to a runner's request. Returns true if the runner has taken more elements. */
CONC__PRIVATE bool conc__runner_goes_on(conc__supervisor *s, conc__worker *w, int result,
                                        int *error)
{
    conc_job *j = w->job;
    conc__payload *p = j->payload;
    size_t done = conc__range_counted(w);
    if (done == SIZE_MAX)
        done = p->left;
    conc__range_done(w, done, error);
    if (result < 0 && done == 0 && !*error) { /* the function was not found */
        *error = result;
        p->map->error = result;
        conc__range_drop(p, result);
    }
    if (*error)
        conc__map_stop(s, p->map);
    conc__range_take(s, j);
    return p->left > 0;
}

/* Copies the output of a job that is not a runner, and returns its result. */
CONC__PRIVATE int conc__job_read_result(const conc__worker *w, int64_t result)
{
    const conc_job *j = w->job;
    conc__payload *p = j->payload;
    const char *data = conc__job_data(w, j);
    if (!p) {
        if (j->size)
            memcpy(j->arg, data, j->size);
        return (int)result;
    }
    p->returned = (ssize_t)result;
    if (p->returned > 0 && (size_t)p->returned > p->out_size)
        p->returned = -EMSGSIZE;
    else if (p->returned > 0)
        memcpy(p->out, data + conc__aligned(p->in_size), (size_t)p->returned);
    if (p->returned < 0)
        return (int)p->returned;
    return 0;
}

/* ---- States of a worker ---- */

CONC__PRIVATE void conc__worker_quit(conc__worker *w)
{
    w->state = CONC__WORKER_LEAVING;
    __atomic_store_n(&w->channel->turn, CONC__TURN_QUIT, __ATOMIC_SEQ_CST);
    conc__futex_wake(&w->channel->turn);
}

/* Makes a worker that has finished its job idle, or makes it quit after max_jobs jobs. */
CONC__PRIVATE void conc__worker_set_idle(conc__supervisor *s, conc__worker *w)
{
    w->job = NULL;
    w->cancelled = false;
    w->state = CONC__WORKER_IDLE;
    w->idle_since = conc__clock();
    s->queue->started--;
    if (s->max_jobs && w->jobs >= s->max_jobs)
        conc__worker_quit(w);
}

/* Gives the worker a job. Only the supervisor passes a large one, and it releases the mutex while
 * copying. */
CONC__PRIVATE void conc__worker_give_job(conc__supervisor *s, conc__worker *w, conc_job *j)
{
    conc__payload *p = j->payload;
    if (w->state == CONC__WORKER_IDLE)
        s->queue->started++;
    w->job = j;
    w->state = CONC__WORKER_COPYING;
    if (s->max_jobs && p && p->map)
        w->jobs += (int)p->left;
    else if (s->max_jobs)
        w->jobs++;
    bool large = conc__job_is_large(j);
    const char *text = "";
    int rc = conc__request_function(s, w, conc__job_function(j));
    if (rc) {
        text = "the function is not in any module of the program";
    } else if (!large) {
        rc = conc__job_write_request(j, w);
    } else {
        s->context.text_rc = 0;
        pthread_mutex_unlock(&s->queue->mutex);
        rc = conc__job_write_request(j, w);
        conc__lock_briefly(&s->queue->mutex);
        if (s->context.text_rc == rc)
            text = s->context.text;
    }
    if (rc == 0 && !w->cancelled) {
        w->state = CONC__WORKER_BUSY;
        conc__request_send(w);
        return;
    }
    conc__worker_set_idle(s, w);
    conc__job_complete_undone(s->queue, j, rc ? rc : -ECANCELED, text);
}

/* Returns the idle worker that was busy most recently: its data is still cached, and it may be
 * awake. */
CONC__PRIVATE conc__worker *conc__worker_find_idle(conc__supervisor *s)
{
    conc__worker *best = NULL;
    for (int i = 0; i < s->queue->max_workers; i++) {
        conc__worker *w = &s->workers[i];
        if (w->state == CONC__WORKER_IDLE && (!best || w->idle_since > best->idle_since))
            best = w;
    }
    return best;
}

CONC__PRIVATE conc__worker *conc__worker_find(conc__supervisor *s, conc__worker_state state)
{
    for (int i = 0; i < s->queue->max_workers; i++)
        if (s->workers[i].state == state)
            return &s->workers[i];
    return NULL;
}

/* Gives queued jobs to idle workers. If called from another thread, wakes the supervisor to do what
 * only the supervisor may do. */
CONC__PRIVATE void conc__supervisor_dispatch(conc__supervisor *s, bool is_supervisor)
{
    conc__job_queue *q = s->queue;
    conc_job *j;
    while ((j = conc__job_ring_first(q))) {
        if (s->broken) {
            conc__job_complete_undone(q, conc__job_ring_pop(q), s->broken, s->why);
            continue;
        }
        conc__worker *w = conc__worker_find_idle(s);
        bool maps = j->payload && j->payload->map;
        if (maps)
            conc__range_take(s, j);
        if (maps && !j->payload->left) {
            conc__job_complete(q, conc__job_ring_pop(q), 0, "");
            continue;
        }
        if (!w || (conc__job_is_large(j) && !is_supervisor))
            break;
        conc__worker_give_job(s, w, conc__job_ring_pop(q));
    }
    if (!q->queued || is_supervisor)
        return;
    bool may_start = conc__worker_find(s, CONC__WORKER_NONE) && s->starting < (int)q->queued;
    if (may_start || conc__worker_find(s, CONC__WORKER_IDLE))
        conc__supervisor_wake(s);
}

/* Copies an error text, which might not be NUL-terminated. */
CONC__PRIVATE void conc__reply_words(const conc__worker_channel *c, char text[96])
{
    memcpy(text, c->text, sizeof c->text);
    text[sizeof c->text - 1] = 0;
}

/* Records that the worker has begun a job. Workers can start, so earlier failures no longer
 * count. */
CONC__PRIVATE void conc__worker_mark_proved(conc__supervisor *s, conc__worker *w)
{
    if (!w->proved)
        s->failures = 0;
    w->proved = true;
}

/* Handles a worker's reply: copies the result, and ends the job or continues the runner. */
CONC__PRIVATE void conc__worker_replied(conc__supervisor *s, conc__worker *w)
{
    conc_job *j = w->job;
    const conc__worker_channel *c = w->channel;
    int64_t full_result = c->result;
    char text[sizeof c->text];
    int result = 0;
    conc__worker_mark_proved(s, w);
    conc__reply_words(c, text);
    if (j->payload && j->payload->map) {
        bool more = conc__runner_goes_on(s, w, (int)full_result, &result);
        bool worn_out = s->max_jobs && w->jobs >= s->max_jobs;
        if (more && !w->cancelled && !worn_out) {
            conc__worker_give_job(s, w, j);
            return;
        }
        bool another_does = more && !w->cancelled;
        if (another_does && conc__job_ring_reserve(s->queue, j->clock)) {
            conc__worker_set_idle(s, w);
            conc__job_ring_push(s->queue, j);
            return;
        }
        conc__range_drop(j->payload, -ECANCELED);
    } else {
        bool large = conc__job_is_large(j);
        w->state = CONC__WORKER_COPYING;
        if (large)
            pthread_mutex_unlock(&s->queue->mutex);
        result = conc__job_read_result(w, full_result);
        if (large)
            conc__lock_briefly(&s->queue->mutex);
    }
    if (result >= 0 || c->text_rc != result)
        text[0] = 0;
    conc__worker_set_idle(s, w);
    conc__job_complete(s->queue, j, result, text);
}

/* Handles the reply of a worker whose init has returned. */
CONC__PRIVATE void conc__worker_ready(conc__supervisor *s, conc__worker *w)
{
    const conc__worker_channel *c = w->channel;
    int rc = (int)c->result;
    s->starting--;
    w->state = CONC__WORKER_IDLE;
    w->idle_since = conc__clock();
    if (rc >= 0 || s->broken)
        return;
    char text[sizeof c->text];
    conc__reply_words(c, text);
    s->broken = -ENOTRECOVERABLE;
    snprintf(s->why, sizeof s->why, "init failed: %.80s", c->text_rc ? text : conc_strerror(rc));
}

/* Collects the workers' replies; other threads leave the replies to large jobs to the
 * supervisor. */
CONC__PRIVATE void conc__supervisor_collect(conc__supervisor *s, bool is_supervisor)
{
    for (int i = 0; i < s->queue->max_workers; i++) {
        conc__worker *w = &s->workers[i];
        bool waits = w->state == CONC__WORKER_BUSY || w->state == CONC__WORKER_STARTING;
        if (!waits || !conc__worker_has_replied(w->channel))
            continue;
        __atomic_store_n(&w->awaited, false, __ATOMIC_RELAXED);
        if (w->state == CONC__WORKER_STARTING)
            conc__worker_ready(s, w);
        else if (!is_supervisor && conc__job_is_large(w->job))
            conc__supervisor_wake(s);
        else
            conc__worker_replied(s, w);
    }
    conc__supervisor_dispatch(s, is_supervisor);
}

/* Signals the worker. No other process can have its process id, because only the supervisor reaps
 * it. Even if the program reaps all its children, the pidfd identifies the worker. */
CONC__PRIVATE void conc__worker_signal(const conc__worker *w, int number)
{
    if (w->pidfd >= 0) {
        int rc = conc__pidfd_send(w->pidfd, number);
        if (rc == 0 || rc == -ESRCH)
            return;
    }
    kill(w->pid, number);
}

/* Kills the worker if it is busy. Returns true if the caller must end its job. */
CONC__PRIVATE bool conc__worker_kill(conc__worker *w)
{
    if (w->state == CONC__WORKER_COPYING)
        w->cancelled = true; /* the supervisor ends the job once it has copied the data */
    if (w->state != CONC__WORKER_BUSY || conc__worker_has_replied(w->channel))
        return false;
    conc__worker_signal(w, SIGKILL);
    __atomic_store_n(&w->awaited, false, __ATOMIC_RELAXED);
    w->state = CONC__WORKER_LEAVING;
    return true;
}

/* Cancels a job, or all running jobs if j is NULL. Returns true if the caller must end j. */
CONC__PRIVATE bool conc__supervisor_cancel(conc__job_queue *q, conc_job *j)
{
    conc__supervisor *s = q->supervisor;
    if (j && conc__job_take_back(q, j)) {
        conc__range_drop(j->payload, -ECANCELED);
        return true;
    }
    for (int i = 0; i < q->max_workers; i++) {
        conc__worker *w = &s->workers[i];
        conc_job *its = w->job;
        if (!its || (j && its != j) || !conc__worker_kill(w))
            continue;
        if (its->payload && its->payload->map) {
            int error = 0;
            size_t done = conc__range_counted(w);
            conc__range_done(w, done == SIZE_MAX ? 0 : done, &error);
            conc__range_drop(its->payload, -ECANCELED);
        }
        w->job = NULL;
        q->started--;
        if (j)
            return true;
        conc__job_end(q, its, -ECANCELED, NULL, true);
    }
    return false;
}

/* ---- Starting workers ---- */

/* The command that executes this program again: the running file, even if its path now names
 * another file. If the program was started as an argument to the dynamic loader, the command is the
 * loader with its options and the program's path. */
typedef struct conc__own_program {
    const char *argv[20];
    char path[4096];
    char command[4096]; /* the command that started the program */
    conc__mapped_file file;
} conc__own_program;

CONC__PRIVATE int conc__first_module(conc__module_info *m, size_t size, void *arg)
{
    (void)size;
    for (int i = 0; i < m->count && !*(uintptr_t *)arg; i++)
        if (m->parts[i].p_type == PT_LOAD)
            *(uintptr_t *)arg = m->base + m->parts[i].p_vaddr;
    return 1;
}

/* Does the path lead to this file? */
CONC__PRIVATE bool conc__is_file(const char *path, const struct stat *file)
{
    struct stat st;
    return stat(path, &st) == 0 && st.st_dev == file->st_dev && st.st_ino == file->st_ino;
}

/* Copies the loader's options, which precede the program's path in its command. Returns how many
 * there are, or 0 if the program has overwritten the command. */
CONC__PRIVATE int conc__loader_options(conc__own_program *p, const struct stat *program, int room)
{
    int fd = conc__open_file("/proc/self/cmdline", O_RDONLY);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, p->command, sizeof p->command - 1);
    close(fd);
    if (n <= 0)
        return 0;
    p->command[n] = 0;
    const char *at = p->command + strlen(p->command) + 1;
    for (int i = 0; i < room && at < p->command + n; i++) {
        if (conc__is_file(at, program))
            return i;
        p->argv[1 + i] = at;
        at += strlen(at) + 1;
    }
    return 0;
}

/* Was the program started by the dynamic loader, as in `ld.so ./program`? If so, stores the program
 * file's stat(2) data in *mapped. */
CONC__PRIVATE bool conc__is_run_by_loader(const conc__own_program *p, struct stat *mapped)
{
    struct stat executed;
    const char *path = p->file.path;
    if (!path || stat("/proc/self/exe", &executed) || stat(path, mapped))
        return false;
    bool same_file = executed.st_dev == mapped->st_dev && executed.st_ino == mapped->st_ino;
    bool same_path = strcmp(path, p->path) == 0 || strstr(path, " (deleted)");
    return !same_file && !same_path;
}

CONC__PRIVATE void conc__own_program_find(conc__own_program *p)
{
    enum { OTHERS = 4 }; /* the loader, the program, the worker's name, and NULL */
    struct stat mapped;
    uintptr_t address = 0;
    ssize_t n = readlink("/proc/self/exe", p->path, sizeof p->path - 1);
    p->path[n > 0 ? n : 0] = 0;
    conc__each_module(conc__first_module, &address);
    conc__find_mapped_file(address, &p->file);
    int i = 0;
    p->argv[i++] = *p->path ? p->path : "/proc/self/exe";
    if (conc__is_run_by_loader(p, &mapped)) {
        i += conc__loader_options(p, &mapped, (int)(sizeof p->argv / sizeof p->argv[0]) - OTHERS);
        p->argv[i++] = p->file.path;
    }
    p->argv[i++] = "(conc worker)";
    p->argv[i] = NULL;
}

/* Opens a worker's standard input: /dev/null, or an empty pipe if that is missing after a
 * chroot. */
CONC__PRIVATE int conc__empty_input(void)
{
    int ends[2], fd = conc__open_file("/dev/null", O_RDONLY);
    if (fd >= 0)
        return fd;
    int rc = conc__pipe(ends);
    if (rc)
        return rc;
    close(ends[1]);
    return ends[0];
}

/* Starts the process with all signals blocked. The worker unblocks them once it has handlers,
 * because a terminal's interrupt reaches it too. */
CONC__PRIVATE int conc__worker_spawn(const conc__supervisor *s, int socket, int input, int *pid)
{
    conc__own_program program;
    conc__spawn_setup setup;
    pid_t child = 0;
    sigset_t all;
    sigfillset(&all);
    conc__own_program_find(&program);
    /* under Valgrind, executing the link would run Valgrind itself; reading it gives the program */
    const char *path = conc__on_valgrind() ? program.argv[0] : "/proc/self/exe";
    int rc = conc__spawn_setup_open(&setup, &all);
    if (rc)
        return -rc;
    rc = posix_spawn_file_actions_adddup2(&setup.actions, input, 0);
    if (rc == 0)
        rc = posix_spawn_file_actions_adddup2(&setup.actions, socket, CONC__WORKER_SOCKET);
    if (rc == 0)
        rc = conc__close_others(&setup, CONC__WORKER_SOCKET + 1);
    if (rc == 0)
        rc = posix_spawn(&child, path, &setup.actions, &setup.attributes,
                         (char *const *)(uintptr_t)program.argv, s->environment);
    conc__spawn_setup_close(&setup);
    *pid = child;
    return -rc;
}

/* Returns a copy of the environment, preceded by a worker's mark, or NULL if that fails. */
CONC__PRIVATE char **conc__worker_environment(void)
{
    static const size_t room = 4200; /* for the mark */
    char **env = conc__environment_copy(environ, room);
    if (!env || conc__worker_mark(env[0], room))
        return env;
    conc_free(env);
    return NULL;
}

CONC__PRIVATE int conc__worker_send_setup(const conc__supervisor *s, const conc__worker *w)
{
    conc__setup_message start = {.what = CONC__SETUP_START,
                                 .program = getpid(),
                                 .memory_limit = s->memory_limit,
                                 .mask = s->mask};
    int rc = conc__setup_send(
        w->socket,
        &(conc__setup_message){.what = CONC__SETUP_CHANNEL, .size = w->channel_memory.size},
        w->channel_memory.fd);
    if (rc == 0)
        rc = conc__setup_send(
            w->socket,
            &(conc__setup_message){.what = CONC__SETUP_STATUS, .size = s->status_memory.size},
            s->status_memory.fd);
    pthread_mutex_lock(&conc__segments_mutex);
    for (conc__segment *m = conc__segments; m && rc == 0; m = m->next)
        rc = conc__setup_send(w->socket,
                              &(conc__setup_message){.what = CONC__SETUP_SHARED,
                                                     .address = m->address,
                                                     .size = m->size},
                              m->fd);
    pthread_mutex_unlock(&conc__segments_mutex);
    if (rc)
        return rc;
    return conc__setup_send(w->socket, &start, -1);
}

/* Waits for the process to end. Returns its status as from waitpid(2), or -1 if it is unknown. */
CONC__PRIVATE int conc__worker_reap(const conc__worker *w)
{
    int status = -1;
    while (waitpid(w->pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status;
}

/* Closes the program's end of the socket. The shutdown closes it for the worker even if a process
 * that the program has forked holds a copy. */
CONC__PRIVATE void conc__worker_close_socket(conc__worker *w)
{
    if (w->socket >= 0) {
        shutdown(w->socket, SHUT_RDWR);
        close(w->socket);
    }
    w->socket = -1;
}

/* Starts the worker's process with `socket` as its end of the socket, and closes this process's
 * copy. */
CONC__PRIVATE int conc__worker_start_process(conc__supervisor *s, conc__worker *w, int socket)
{
    int input = conc__empty_input(), rc = input;
    if (input >= 0) {
        rc = conc__worker_spawn(s, socket, input, &w->pid);
        close(input);
    }
    close(socket);
    if (rc < 0)
        return conc_fail(rc, "posix_spawn of /proc/self/exe: %s", strerror(-rc));
    w->pidfd = conc__pidfd(w->pid); /* -1: the supervisor keeps checking whether it has ended */
    return 0;
}

/* Starts a worker. Its channel is new, because processes forked by the previous worker's jobs might
 * still write to the old one. */
CONC__PRIVATE int conc__worker_exec(conc__supervisor *s, conc__worker *w)
{
    int ends[2], rc = conc__segment_open(&w->channel_memory, CONC__CHANNEL_SIZE, false);
    if (rc)
        return rc;
    conc__worker_channel *c = w->channel_memory.address;
    __atomic_store_n(&w->channel, c, __ATOMIC_SEQ_CST);
    w->data_version = 0;
    w->jobs = 0;
    w->proved = false;
    rc = conc__sockets(ends);
    if (rc)
        return rc;
    c->request.kind = CONC__REQUEST_INIT;
    c->request.function = s->init;
    c->turn = CONC__TURN_WORKER;
    w->socket = ends[0];
    rc = conc__worker_start_process(s, w, ends[1]);
    if (rc)
        return rc;
    rc = conc__worker_send_setup(s, w);
    bool has_ended = rc == -EPIPE || rc == -ECONNRESET; /* the supervisor will notice */
    if (rc == 0 || has_ended)
        return 0;
    conc__worker_signal(w, SIGKILL); /* it must not serve without everything it needs */
    conc__worker_reap(w);
    return conc_fail(rc, "sendmsg to a worker: %s", strerror(-rc));
}

/* Releases the resources of a worker that has ended or could not be started. */
CONC__PRIVATE void conc__worker_clear(conc__supervisor *s, conc__worker *w)
{
    conc__segment *old = w->channel_memory.address ? conc__alloc(sizeof *old) : NULL;
    conc__worker_close_socket(w);
    if (w->pidfd >= 0)
        close(w->pidfd);
    w->pidfd = -1;
    w->pid = 0;
    conc__segment_close(&w->data);
    w->data.size = 0;
    __atomic_store_n(&w->awaited, false, __ATOMIC_RELAXED);
    __atomic_store_n(&w->channel, NULL, __ATOMIC_SEQ_CST);
    if (old) {
        *old = w->channel_memory;
        old->next = s->unused;
        s->unused = old;
    } /* if memory has run out it stays mapped, because a thread might be polling it */
    w->channel_memory = (conc__segment){.fd = -1};
    w->job = NULL;
    w->cancelled = false;
    w->state = CONC__WORKER_NONE;
}

/* Unmaps the channels of workers that have ended, unless a thread might be polling them. */
CONC__PRIVATE void conc__supervisor_unmap_channels(conc__supervisor *s, bool none_polls)
{
    conc__segment *old;
    if (!none_polls && __atomic_load_n(&s->status_page->pollers, __ATOMIC_SEQ_CST) > 0)
        return;
    while ((old = s->unused)) {
        s->unused = old->next;
        conc__segment_close(old);
        conc_free(old);
    }
}

/* Fails the queued jobs when no worker can be started, unless other workers can run them. */
CONC__PRIVATE void conc__supervisor_fail_queued(conc__supervisor *s, int rc, const char *why)
{
    for (int i = 0; i < s->queue->max_workers; i++)
        if (s->workers[i].state != CONC__WORKER_NONE)
            return;
    while (s->queue->queued)
        conc__job_complete_undone(s->queue, conc__job_ring_pop(s->queue), rc, why);
}

/* Starts the workers that are needed. */
CONC__PRIVATE void conc__supervisor_start_workers(conc__supervisor *s)
{
    conc__job_queue *q = s->queue;
    for (int i = 0; i < q->max_workers && !s->broken && s->failures < CONC__FAILURES; i++) {
        conc__worker *w = &s->workers[i];
        if (s->starting >= (int)q->queued || conc__worker_find(s, CONC__WORKER_IDLE))
            return;
        if (w->state != CONC__WORKER_NONE)
            continue;
        w->state = CONC__WORKER_CREATING;
        pthread_mutex_unlock(&q->mutex);
        int rc = conc__worker_exec(s, w);
        conc__lock_briefly(&q->mutex);
        if (rc == 0) {
            w->state = CONC__WORKER_STARTING;
            __atomic_store_n(&w->awaited, true, __ATOMIC_RELEASE);
            s->starting++;
            continue;
        }
        conc__worker_clear(s, w);
        char why[96];
        const char *text = s->context.text_rc == rc ? s->context.text : conc_strerror(rc);
        snprintf(why, sizeof why, "cannot start a worker: %.68s", text);
        conc__supervisor_fail_queued(s, -EAGAIN, why);
        return;
    }
}

/* ---- Ends of workers ---- */

CONC__PRIVATE void conc__describe_exit(int status, char *text, size_t size)
{
    if (status == -1)
        snprintf(text, size, "the worker died");
    else if (WIFSIGNALED(status))
        snprintf(text, size, "the worker died of signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) == CONC__EXIT_MOVED)
        snprintf(text, size, "the worker cannot map shared memory at its address");
    else if (WEXITSTATUS(status) == CONC__EXIT_OTHER_BUILD)
        snprintf(text, size,
                 "the worker loaded a different build of the module that contains conc");
    else if (WEXITSTATUS(status) == CONC__EXIT_TOO_LATE)
        snprintf(text, size, "conc is in a library loaded late, or a constructor opened a pool");
    else
        snprintf(text, size, "the worker exited with status %d", WEXITSTATUS(status));
}

/* Handles the death of a runner's worker. The element that was running is lost, and another worker
 * gets those after it. If it is unknown which one was running, all are lost. */
CONC__PRIVATE void conc__runner_lost(conc__supervisor *s, const conc__worker *w, const char *text)
{
    conc_job *j = w->job;
    conc__payload *p = j->payload;
    conc__map_call *m = p->map;
    int error = 0;
    size_t done = conc__range_counted(w);
    conc__range_done(w, done == SIZE_MAX ? 0 : done, &error);
    size_t left = p->left, lost = done == SIZE_MAX ? left : 1;
    if (left) {
        p->left = lost;
        conc__range_drop(p, -EOWNERDEAD);
        m->dropped -= lost; /* the lost ones were called */
        p->left = left - lost;
        if (!m->keeps_going && !m->error)
            m->error = error = -EOWNERDEAD;
    }
    if (error)
        conc__map_stop(s, m);
    bool stops = conc__map_cancelled(m) || s->queue->cancel_all;
    if (!stops && conc__job_ring_reserve(s->queue, j->clock)) {
        conc__job_ring_push(s->queue, j);
        return;
    }
    conc__range_drop(p, stops ? -ECANCELED : -EOWNERDEAD);
    conc__job_complete(s->queue, j, error, error == -EOWNERDEAD ? text : "");
}

/* Is there a worker that is starting or has started? */
CONC__PRIVATE bool conc__supervisor_has_workers(const conc__supervisor *s)
{
    for (int i = 0; i < s->queue->max_workers; i++) {
        conc__worker_state state = s->workers[i].state;
        if (state >= CONC__WORKER_STARTING && state <= CONC__WORKER_BUSY)
            return true;
    }
    return false;
}

/* Could the signal have come from outside, rather than from a fault of the program? */
CONC__PRIVATE bool conc__may_be_sent(int signal)
{
    switch (signal) {
    case SIGKILL:
    case SIGTERM:
    case SIGINT:
    case SIGHUP: return true;
    default: return false;
    }
}

/* Counts a worker that ended before it began a job, with less weight if the program might not be at
 * fault. After too many failures no more workers are started, and if none is left the pool is
 * broken. */
CONC__PRIVATE void conc__supervisor_count_failure(conc__supervisor *s, int status, const char *text)
{
    bool is_known = status != -1, is_minor = !is_known;
    if (is_known && WIFEXITED(status))
        is_minor = WEXITSTATUS(status) == CONC__EXIT_MOVED;
    else if (is_known && WIFSIGNALED(status))
        is_minor = conc__may_be_sent(WTERMSIG(status));
    if (is_minor)
        s->failures += CONC__MINOR_FAILURE;
    else
        s->failures += CONC__FAILURE;
    if (s->failures < CONC__FAILURES || s->broken || conc__supervisor_has_workers(s))
        return;
    s->broken = -ENOTRECOVERABLE;
    snprintf(s->why, sizeof s->why, "workers fail to start: %.70s", text);
}

/* Handles the end of a worker's process, whose job is queued again or fails. */
CONC__PRIVATE void conc__worker_ended(conc__supervisor *s, conc__worker *w)
{
    char text[96];
    conc__job_queue *q = s->queue;
    conc_job *j = w->job;
    bool begun = j && __atomic_load_n(&w->channel->unseen, __ATOMIC_RELAXED) != CONC__UNSEEN;
    int status = conc__worker_reap(w);
    conc__describe_exit(status, text, sizeof text);
    if (w->state == CONC__WORKER_STARTING)
        s->starting--;
    bool expected = w->state == CONC__WORKER_LEAVING;
    w->state = CONC__WORKER_LEAVING;
    if (begun)
        conc__worker_mark_proved(s, w);
    else if (!w->proved && !expected)
        conc__supervisor_count_failure(s, status, text);
    if (j) {
        q->started--;
        if (!begun && conc__job_ring_reserve(q, j->clock))
            conc__job_ring_push_front(q, j);
        else if (j->payload && j->payload->map)
            conc__runner_lost(s, w, text);
        else
            conc__job_complete(q, j, -EOWNERDEAD, text);
    }
    conc__worker_clear(s, w);
    if (s->failures >= CONC__FAILURES && !conc__supervisor_has_workers(s))
        s->failures = CONC__FAILURES - 1; /* no worker is left: try one more start */
    conc__job_queue_notify_closer(q);
}

CONC__PRIVATE bool conc__worker_has_ended(const conc__worker *w)
{
    siginfo_t info;
    info.si_pid = 0;
    if (waitid(P_PID, (id_t)w->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0)
        return info.si_pid != 0;
    if (!conc__refused(errno))
        return errno == ECHILD;
    if (w->pidfd >= 0)
        return conc__fd_ready(w->pidfd, CONC_READABLE) > 0;
    return waitpid(w->pid, NULL, WNOHANG) != 0; /* if it has ended, its status is lost */
}

/* ---- The supervisor ---- */

/* Releases the data segments of workers that have been idle for a second. Returns the number of
 * milliseconds until the next may be due, or -1 if there is none. */
CONC__PRIVATE int conc__supervisor_free_unused(conc__supervisor *s)
{
    enum { UNUSED = 1000 }; /* ms */
    int next = -1;
    for (int i = 0; i < s->queue->max_workers; i++) {
        conc__worker *w = &s->workers[i];
        if (w->state != CONC__WORKER_IDLE || !w->data.size)
            continue;
        if ((conc__clock() - w->idle_since) / 1000000 < UNUSED) {
            next = UNUSED;
            continue;
        }
        conc__worker_reserve_data(w, 0);
    }
    return next;
}

/* Discards the wake-ups in a worker's socket, and closes it if the worker has closed its end. */
CONC__PRIVATE void conc__worker_drain_socket(conc__worker *w)
{
    char some[8];
    ssize_t n;
    do
        n = recv(w->socket, some, sizeof some, MSG_DONTWAIT);
    while (n > 0);
    if (n == 0)
        conc__worker_close_socket(w);
}

/* Adds a descriptor to the poll set. Returns its index, or 0 if fd is negative. */
CONC__PRIVATE unsigned conc__supervisor_watch(conc__supervisor *s, int fd)
{
    if (fd < 0)
        return 0;
    s->polls[s->poll_count] = (struct pollfd){fd, POLLIN, 0};
    return s->poll_count++;
}

/* Polls the descriptors for at most `limit` milliseconds (-1: no limit). poll(2) refuses more
 * descriptors than RLIMIT_NOFILE, which may have been lowered since they were opened; if so, all of
 * them count as ready after a short sleep. */
CONC__PRIVATE void conc__supervisor_poll(conc__supervisor *s, int limit)
{
    if (poll(s->polls, s->poll_count, limit) >= 0 || errno == EINTR)
        return;
    poll(NULL, 0, CONC__ASK_AGAIN);
    for (unsigned i = 0; i < s->poll_count; i++)
        s->polls[i].revents = POLLIN;
}

/* Waits until a worker has replied or ended, or another thread wakes the supervisor. */
CONC__PRIVATE void conc__supervisor_wait(conc__supervisor *s, int limit)
{
    conc__job_queue *q = s->queue;
    uint64_t count;
    s->poll_count = 0;
    conc__supervisor_watch(s, s->wake_fd); /* index 0 */
    for (int i = 0; i < q->max_workers; i++) {
        conc__worker *w = &s->workers[i];
        w->poll_process = conc__supervisor_watch(s, w->pidfd);
        w->poll_socket = conc__supervisor_watch(s, w->socket);
        if (w->pid && w->pidfd < 0)
            limit = CONC__ASK_AGAIN;
    }
    pthread_mutex_unlock(&q->mutex);
    conc__supervisor_poll(s, limit);
    if (s->polls[0].revents && read(s->wake_fd, &count, sizeof count) < 0) {
        /* it was empty */
    }
    conc__lock_briefly(&q->mutex);
    s->wake_pending = false;
    for (int i = 0; i < q->max_workers; i++) {
        conc__worker *w = &s->workers[i];
        if (w->poll_socket && s->polls[w->poll_socket].revents)
            conc__worker_drain_socket(w);
    }
    conc__supervisor_collect(s, true); /* first, because a worker may have replied and then died */
    for (int i = 0; i < q->max_workers; i++) {
        conc__worker *w = &s->workers[i];
        bool asks = w->pid && (w->pidfd < 0 || s->polls[w->poll_process].revents);
        if (asks && conc__worker_has_ended(w))
            conc__worker_ended(s, w);
    }
}

/* Stops all workers, and kills those that do not exit within a second. */
CONC__PRIVATE void conc__supervisor_end_workers(conc__supervisor *s)
{
    int64_t start = conc__clock();
    for (;;) {
        bool any = false, late = conc__clock() - start > 1000000000;
        for (int i = 0; i < s->queue->max_workers; i++) {
            conc__worker *w = &s->workers[i];
            any |= w->pid != 0;
            if (w->pid && (late || w->state == CONC__WORKER_STARTING))
                conc__worker_signal(w, SIGKILL);
            if (w->state == CONC__WORKER_IDLE)
                conc__worker_quit(w);
        }
        if (!any)
            return;
        conc__supervisor_wait(s, 100);
    }
}

CONC__PRIVATE void *conc__supervisor_main(void *arg)
{
    conc__supervisor *s = arg;
    conc__job_queue *q = s->queue;
    prctl(PR_SET_NAME, "conc procs");
    pthread_setspecific(conc__job_context_key, &s->context);
    conc__lock_briefly(&q->mutex);
    while (!s->ending) {
        conc__supervisor_dispatch(s, true);
        conc__supervisor_start_workers(s);
        conc__supervisor_unmap_channels(s, false);
        conc__supervisor_collect(s, true); /* a reply may have come while no thread was polling */
        if (!s->ending)
            conc__supervisor_wait(s, conc__supervisor_free_unused(s));
    }
    conc__supervisor_end_workers(s);
    conc__waiter_wake(s->closer, 0);
    pthread_mutex_unlock(&q->mutex);
    pthread_setspecific(conc__job_context_key, NULL);
    return NULL;
}

CONC__PRIVATE void conc__supervisor_notify(conc__job_queue *q)
{
    conc__supervisor_dispatch(q->supervisor, false);
}

/* Starts the supervisor's thread for the first job. The caller holds the mutex. */
CONC__PRIVATE int conc__supervisor_start(conc__supervisor *s)
{
    if (s->runs)
        return 0;
    int rc = conc__quiet_thread(&s->thread, NULL, conc__supervisor_main, s);
    s->runs = rc == 0;
    if (rc)
        return conc_fail(-EAGAIN, "cannot start the pool's thread: %s", strerror(rc));
    return 0;
}

/* ---- >>procs -------------------------------------------------------------------------------- */

/* Polls a pool for replies that the loop's tasks are waiting for, before the loop goes to sleep. */
typedef struct conc__reply_poller {
    conc__idle_hook hook;
    conc__job_queue *queue;
    bool enabled; /* it counts among the pollers, so the channels stay mapped */
    int users;
} conc__reply_poller;

/* Is there a reply that any thread may collect? */
CONC__PRIVATE bool conc__reply_poller_sees(const conc__reply_poller *v)
{
    const conc__supervisor *s = v->queue->supervisor;
    for (int i = 0; i < v->queue->max_workers; i++) {
        const conc__worker *w = &s->workers[i];
        if (!__atomic_load_n(&w->awaited, __ATOMIC_ACQUIRE))
            continue;
        const conc__worker_channel *c = __atomic_load_n(&w->channel, __ATOMIC_SEQ_CST);
        if (c && conc__worker_has_replied(c))
            return true;
    }
    return false;
}

CONC__PRIVATE bool conc__reply_poller_poll(conc__idle_hook *o)
{
    conc__reply_poller *v = (conc__reply_poller *)(void *)o;
    if (v->enabled && !conc__reply_poller_sees(v))
        return false;
    conc__lock_briefly(&v->queue->mutex);
    bool sees = conc__reply_poller_sees(v);
    if (sees && !v->queue->supervisor->ending)
        conc__supervisor_collect(v->queue->supervisor, false);
    pthread_mutex_unlock(&v->queue->mutex);
    return sees;
}

CONC__PRIVATE void conc__reply_poller_enable(conc__idle_hook *o, bool on)
{
    conc__reply_poller *v = (conc__reply_poller *)(void *)o;
    unsigned *pollers = &v->queue->supervisor->status_page->pollers;
    if (on)
        __atomic_fetch_add(pollers, 1, __ATOMIC_SEQ_CST);
    else
        __atomic_fetch_sub(pollers, 1, __ATOMIC_SEQ_CST);
    v->enabled = on;
}

CONC__PRIVATE conc__reply_poller *conc__reply_poller_open(conc_loop *l, conc__job_queue *q)
{
    conc__reply_poller *v;
    for (conc__idle_hook *o = l->outside.idle_hooks; o; o = o->next) {
        v = (conc__reply_poller *)(void *)o;
        if (v->queue == q) {
            v->users++;
            return v;
        }
    }
    v = conc__alloc(sizeof *v);
    if (v) { /* else the supervisor collects the replies */
        *v = (conc__reply_poller){
            {l->outside.idle_hooks, conc__reply_poller_poll, conc__reply_poller_enable},
            q,
            false,
            1};
        q->references++;
        l->outside.idle_hooks = &v->hook;
    }
    return v;
}

CONC__PRIVATE void conc__reply_poller_close(conc_loop *l, conc__reply_poller *v)
{
    if (!v || --v->users)
        return;
    conc__idle_hook **at = &l->outside.idle_hooks;
    while (*at != &v->hook)
        at = &(*at)->next;
    *at = v->hook.next;
    conc__lock_briefly(&v->queue->mutex);
    conc__job_queue_release(v->queue);
    conc_free(v);
}

/* Lets a waiting thread collect replies itself for a short while. */
CONC__PRIVATE void conc__supervisor_spin_for(conc__job_queue *q, const bool *over)
{
    conc__reply_poller v = {.queue = q};
    int64_t end = conc__clock() + CONC__PATIENCE;
    if (!conc__several_processors())
        return;
    conc__reply_poller_enable(&v.hook, true);
    while (!__atomic_load_n(over, __ATOMIC_RELAXED) && conc__clock() < end) {
        for (int i = 0; i < 32; i++)
            conc__relax();
        conc__reply_poller_poll(&v.hook);
    }
    conc__reply_poller_enable(&v.hook, false);
    conc__reply_poller_poll(&v.hook);
}

CONC__PRIVATE void conc__supervisor_free(conc__supervisor *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->queue->max_workers; i++) {
        conc__worker *w = &s->workers[i];
        conc__segment_close(&w->channel_memory);
        conc__segment_close(&w->data);
        if (w->socket >= 0)
            close(w->socket);
        if (w->pidfd >= 0)
            close(w->pidfd);
    }
    conc__supervisor_unmap_channels(s, true);
    conc__segment_close(&s->status_memory);
    if (s->wake_fd >= 0)
        close(s->wake_fd);
    conc_free(s->environment);
    conc_free(s->polls);
    conc_free(s);
}

CONC__PRIVATE conc__supervisor *conc__supervisor_new(conc__job_queue *q)
{
    size_t most = (size_t)q->max_workers;
    conc__supervisor *s = conc__alloc(sizeof *s + most * sizeof s->workers[0]);
    if (!s)
        return NULL;
    memset(s, 0, sizeof *s + most * sizeof s->workers[0]);
    s->queue = q;
    s->wake_fd = s->status_memory.fd = -1;
    for (size_t i = 0; i < most; i++) {
        conc__worker *w = &s->workers[i];
        w->channel_memory.fd = w->data.fd = w->pidfd = w->socket = -1;
    }
    s->polls = conc__alloc((1 + 2 * most) * sizeof *s->polls);
    if (s->polls)
        return s;
    conc_free(s);
    return NULL;
}

CONC__PRIVATE int conc__supervisor_open(conc__supervisor *s, const conc_procs *p)
{
    s->memory_limit = p->memory_limit;
    s->max_jobs = p->max_jobs;
    conc__original_mask(&s->mask);
    if (p->init && !conc__function_id_of((uintptr_t)p->init, &s->init))
        return conc_fail(-EINVAL, "init is not in any module of the program");
    s->environment = conc__worker_environment();
    if (!s->environment)
        return -ENOMEM;
    int rc = conc__segment_open(&s->status_memory, conc__page(), false);
    if (rc)
        return rc;
    s->status_page = s->status_memory.address;
    s->wake_fd = conc__not_standard(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (s->wake_fd < 0)
        return conc__call_failed("eventfd2");
    return 0;
}

/* Creates the job queue and the supervisor of a process pool. Returns NULL and sets *rc if that
 * fails. */
CONC__PRIVATE conc__job_queue *conc__procs_new(const conc_procs *p, int *rc)
{
    *rc = -ENOMEM;
    if (!conc__job_context_key_made)
        return NULL;
    conc__job_queue *q = conc__job_queue_new(p->workers, 0);
    if (!q)
        return NULL;
    q->supervisor = conc__supervisor_new(q);
    if (q->supervisor)
        *rc = conc__supervisor_open(q->supervisor, p);
    if (*rc == 0)
        return q;
    pthread_mutex_lock(&conc__job_queues_mutex);
    conc__job_queue_free(q);
    pthread_mutex_unlock(&conc__job_queues_mutex);
    return NULL;
}

CONC_API int conc_procs_open(conc_procs *p)
{
    int rc;
    bool is_valid = p && p->workers >= 0 && p->workers <= 1 << 12 && p->max_jobs >= 0;
    if (!is_valid)
        return conc__misused(-EINVAL, __func__, "no pool, or negative fields", NULL);
    if (p->queue && p->queue->forks == conc__forks)
        return conc__misused(-EBUSY, __func__, "the pool is open", NULL);
    if (getauxval(AT_SECURE))
        return conc_fail(-EPERM, "a set-user-ID program cannot start worker processes");
    if (conc__last_constructor) /* its workers would open the pool too, and so on without end */
        _exit(CONC__EXIT_TOO_LATE);
    conc__job_queues_need();
    int saved = errno;
    conc__job_queue *q = conc__procs_new(p, &rc);
    if (rc == 0)
        rc = conc__pool_publish(&p->queue, &p->users, q);
    errno = saved;
    if (rc == -ENOMEM)
        return conc_fail(rc, "no memory for a process pool");
    return rc;
}

/* Joins the supervisor's thread and drops a reference to the job queue. All jobs and workers have
 * ended. */
CONC__PRIVATE void conc__procs_end(conc__job_queue *q)
{
    conc__supervisor *s = q->supervisor;
    if (s->runs)
        pthread_join(s->thread, NULL);
    conc__lock_briefly(&q->mutex);
    conc__job_queue_release(q);
}

/* Cancellation does not end this wait, because the workers are stopping anyway. */
static const conc__wait_kind conc__waits_for_workers = {
    .what = "closes a pool, and waits for its workers to exit"};

/* Stops the workers and waits until they have ended. */
CONC__PRIVATE void conc__supervisor_close(conc_loop *l, conc__job_queue *q)
{
    conc__lock_briefly(&q->mutex);
    q->supervisor->ending = true;
    if (!q->supervisor->runs) {
        pthread_mutex_unlock(&q->mutex);
        return;
    }
    conc__supervisor_wake(q->supervisor);
    conc__waiter w = {0};
    /* not the job queue's closer, which is woken while the workers are still running */
    conc__waiter_add(&q->supervisor->closer, &w);
    bool holds_clock = l && l->clock.is_virtual;
    if (holds_clock)
        atomic_fetch_add_explicit(&l->outside.at_work, 1, memory_order_relaxed);
    conc__wait_outside(l, &w, &conc__waits_for_workers, q, &q->mutex, NULL);
    if (holds_clock)
        conc__clock_release(l);
}

CONC_API CONC__CALLED int conc_procs_close(conc_procs *p)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__pool_close(&p->queue, &p->users, conc__procs_end, __func__);
}

CONC_API void conc__auto_conc_procs(conc_procs *p) { conc_procs_close(p); }

#else /* not Linux: no process pools */

typedef struct conc__reply_poller conc__reply_poller;
typedef struct conc__supervisor conc__supervisor;

CONC__PRIVATE void conc__segments_lock(void) {}
CONC__PRIVATE void conc__segments_unlock(void) {}
CONC__PRIVATE void conc__worker_start_cancel_listener(void) {}
CONC__PRIVATE int conc__supervisor_start(conc__supervisor *s) { return s ? -ENOTSUP : 0; }
CONC__PRIVATE void conc__supervisor_notify(conc__job_queue *q) { (void)q; }
CONC__PRIVATE void conc__supervisor_free(conc__supervisor *s) { (void)s; }
CONC__PRIVATE bool conc__supervisor_cancel(conc__job_queue *q, conc_job *j) { return q && !j; }
CONC__PRIVATE void conc__supervisor_close(conc_loop *l, conc__job_queue *q) { (void)l, (void)q; }
CONC__PRIVATE void conc__supervisor_spin_for(conc__job_queue *q, const bool *over)
{
    (void)q, (void)over;
}
CONC__PRIVATE conc__reply_poller *conc__reply_poller_open(conc_loop *l, conc__job_queue *q)
{
    (void)l, (void)q;
    return NULL;
}
CONC__PRIVATE void conc__reply_poller_close(conc_loop *l, conc__reply_poller *v)
{
    (void)l, (void)v;
}

CONC_API void *conc_shared_alloc(size_t size)
{
    (void)size;
    conc_fail(-ENOTSUP, "shared memory needs Linux");
    return NULL;
}
CONC_API void conc_shared_free(void *p) { (void)p; }
CONC_API int conc_procs_open(conc_procs *p)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc_fail(-ENOTSUP, "process pools need Linux");
}
CONC_API int conc_procs_close(conc_procs *p)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return 0;
}
CONC_API void conc__auto_conc_procs(conc_procs *p) { conc_procs_close(p); }

#endif

CONC_API CONC__CALLED int conc_procs_run(conc_procs *p, conc_fn *fn, void *arg, size_t size)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__pool_run(&p->queue, &p->users, fn, arg, size, NULL, __func__);
}

CONC_API CONC__CALLED int conc_procs_submit(conc_procs *p, conc_job *j, conc_fn *fn, void *arg,
                                            size_t size)
{
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__submit(&p->queue, &p->users, j, fn, arg, size, NULL, __func__);
}

/* Stands in for the function of a conc_procs_call's job; it is never called. */
CONC__PRIVATE int conc__call_job(void *arg)
{
    (void)arg;
    return 0;
}

CONC_API CONC__CALLED ssize_t conc_procs_call(conc_procs *p, conc_procs_fn *fn, const void *in,
                                              size_t in_size, void *out, size_t out_size)
{
    conc__payload payload = {
        .call = fn, .in = in, .in_size = in_size, .out = out, .out_size = out_size};
    if (!p || !fn || (in_size && !in) || (out_size && !out))
        return conc__own_error(-EINVAL);
    int rc = conc__pool_run(&p->queue, &p->users, conc__call_job, NULL, 0, &payload, __func__);
    if (rc < 0)
        return rc;
    return payload.returned;
}

CONC_API CONC__CALLED int conc_procs_map(conc_procs *p, conc_fn *fn, void *args, size_t count,
                                         size_t size)
{
    conc__map_call m = {.fn = fn, .args = args, .count = count, .size = size};
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__pool_map(&p->queue, &p->users, &m, __func__);
}

CONC_API CONC__CALLED int conc_procs_map_all(conc_procs *p, conc_fn *fn, void *args, size_t count,
                                             size_t size, int *results)
{
    conc__map_call m = {fn, args, count, size, results, .keeps_going = true};
    if (!p)
        return conc__misused(-EINVAL, __func__, "no pool", NULL);
    return conc__pool_map(&p->queue, &p->users, &m, __func__);
}

/* ---- >>init --------------------------------------------------------------------------------- */

static void conc__pool_init(int argc, char **argv, char **env)
{
    (void)argc, (void)argv, (void)env;
    conc__extended.outside = &conc__outside_of_pool;
    conc__extended.job_locals = conc__job_locals;
    conc__extended.job_block = conc__job_block;
    conc__extended.job_shield = conc__job_shield;
    conc__extended.job_runs = conc__job_runs;
    conc__extended.job_idles = conc__job_idles;
    conc__extended.job_goes_on = conc__job_goes_on;
    conc__extended.job_late = conc__job_late;
    conc__extended.job_fail = conc__job_fail;
    conc__extended.job_text = conc__job_error_text;
    conc__extended.job_here = conc__job_context_here;
    conc__extended.job_waits = conc__job_waits;
    conc__extended.job_cancelled = conc_job_cancelled;
    conc__extended.resolve = conc__resolve_name;
    conc__extended.jobs_queued = conc__jobs_queued;
    conc__extended.job_overflows = conc__job_overflows;
    conc__extended.job_in_use = conc__job_handle_in_use;
    conc__extended.pipe_awaited = conc__pipe_awaited;
#ifdef __linux__
    conc__worker_check(conc__pool_init);
#endif
}

#ifdef __linux__
/* A pointer instead of the constructor attribute: whole-program optimization would merge all
 * constructors into one function, and a worker could not tell which of them have yet to run. */
__attribute__((section(".init_array"),
               used)) static void (*conc__pool_constructor)(int argc, char **argv,
                                                            char **env) = conc__pool_init;
#else
__attribute__((constructor)) static void conc__pool_constructor(void)
{
    conc__pool_init(0, NULL, NULL);
}
#endif

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
