/* pool_test.h - shared by the tests of conc_pool.h: tests that check for leaks, and jobs that wait
 * at gates.
 *
 * Include it instead of conc_test.h, after defining
 *
 *     TEST_THREADS      for jobs in threads: allocations and thread starts can be made to fail,
 *                       and no thread may remain after a test. The file itself must define
 *                       CONC_MALLOC, CONC_REALLOC and CONC_FREE, so that it gets its own
 *                       implementation.
 *     TEST_PROCESSES    for jobs in processes: gates in shared memory
 *     TEST_SPAWN        for a file that defines its own posix_spawn, through which conc starts all
 *                       programs and workers; needs _GNU_SOURCE
 *
 * A file must define call_clean(call, body) before its first CLEAN_TEST: it calls body through
 * call and checks that nothing was leaked. TEST_THREADS provides one.
 */
#ifndef POOL_TEST_H
#define POOL_TEST_H

#ifdef TEST_THREADS
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

/* Failing allocations and threads: the n-th allocation fails (or all from the n-th on), and no
 * thread starts. */
static atomic_long allocations, live_allocations, failing_allocation; /* 0: none */
static atomic_bool failing_forever, no_threads;

static inline bool allocation_fails(void)
{
    long n = ++allocations, at = failing_allocation;
    return at && (n == at || (n > at && failing_forever));
}

static inline void *test_realloc(void *old, size_t n)
{
    void *p = allocation_fails() ? NULL : realloc(old, n);
    live_allocations += p && !old;
    return p;
}

static inline void test_free(void *p)
{
    live_allocations -= p != NULL;
    free(p);
}

static inline int test_pthread_create(pthread_t *t, const pthread_attr_t *attributes,
                                      void *(*fn)(void *), void *arg)
{
    return no_threads ? EAGAIN : pthread_create(t, attributes, fn, arg);
}

#define pthread_create test_pthread_create
#endif

#define TEST_POOL
#include "conc_test.h"

#include <dirent.h>
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { WAITING = 12345, MEGABYTE = 1024 * 1024 }; /* no call returns WAITING */

#ifdef TEST_SPAWN
#define SPAWN_PARAMETERS                                                     \
    pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, \
        const posix_spawnattr_t *attributes, char *const *argv, char *const *env

/* Calls the C library's posix_spawn. */
static int system_spawn(SPAWN_PARAMETERS)
{
    int (*spawn)(SPAWN_PARAMETERS);
    void *symbol = dlsym(RTLD_NEXT, "posix_spawn");
    memcpy(&spawn, &symbol, sizeof symbol);
    return spawn(pid, path, actions, attributes, argv, env);
}
#endif

/* ---- leak checks ---- */

static inline void nap(void) { nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL); }

static inline int count_threads(void)
{
    char line[256];
    int n = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Threads: %d", &n) == 1)
            break;
    if (f)
        fclose(f);
    return n;
}

/* Waits, because a thread is still counted for a moment after its end or join. */
static inline void check_threads(int n)
{
    for (int i = 0; i < 20000 && count_threads() != n; i++)
        nap();
    CHECK_INT(count_threads(), n);
}

static inline void check_no_children(void)
{
    CHECK_INT(waitpid(-1, NULL, WNOHANG), -1);
    CHECK_INT(errno, ECHILD);
}

static inline void just_call(void (*body)(void)) { body(); }

#define CLEAN_TEST(name, call)                         \
    static void body_of_##name(void);                  \
    TEST(name) { call_clean((call), body_of_##name); } \
    static void body_of_##name(void)
#define THREAD_TEST(name) CLEAN_TEST(name, just_call) /* in a thread without a run */

/* ---- tasks, threads and jobs ---- */

static inline void turn(int n)
{
    for (int i = 0; i < n; i++)
        CHECK_INT(conc_yield(), 0);
}

static inline int run_virtual(conc_fn *fn, void *arg)
{
    conc_options options = {.virtual_clock = true};
    return conc_run_with(&options, fn, arg);
}

/* Another thread, which calls fn(arg) in its own run, or without a run. */
typedef struct side {
    conc_fn *fn;
    void *arg;
    bool in_run, real_clock;
    int rc;
    pthread_t thread;
} side;

static inline void *side_main(void *arg)
{
    side *s = arg;
    if (s->in_run)
        s->rc = s->real_clock ? conc_run(s->fn, s->arg) : run_virtual(s->fn, s->arg);
    else
        s->rc = s->fn(s->arg);
    return NULL;
}

static inline void side_start(side *s)
{
    CHECK_INT(pthread_create(&s->thread, NULL, side_main, s), 0);
}

static inline int side_end(side *s)
{
    CHECK_INT(pthread_join(s->thread, NULL), 0);
    return s->rc;
}

static inline int returns(void *arg) { return *(int *)arg; }

static inline int result_of(conc_job *j)
{
    int result = WAITING;
    CHECK_INT(conc_job_wait(j, &result), 0);
    CHECK(conc_job_done(j));
    return result;
}

/* ---- the test's own directory ---- */

static char directory[64];

static inline void make_directory(void)
{
    snprintf(directory, sizeof directory, "%s/conc_XXXXXX", P_tmpdir);
    CHECK(mkdtemp(directory) != NULL);
}

/* Returns a path in it, valid for eight calls. */
static inline const char *path_of(const char *name)
{
    static char paths[8][PATH_MAX];
    static int next;
    char *path = paths[next++ % 8];
    CHECK((size_t)snprintf(path, sizeof paths[0], "%s/%s", directory, name) < sizeof paths[0]);
    return path;
}

static inline int count_names(const char *path)
{
    int n = 0;
    DIR *d = opendir(path);
    CHECK(d != NULL);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(d);
    return n;
}

static inline void make_file(const char *path, const void *data, size_t size, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_INT(write(fd, data, size), size);
    CHECK_INT(fchmod(fd, mode), 0);
    CHECK_INT(close(fd), 0);
}

/* ---- child programs ---- */

/* Does this process exist, and is it not a zombie? */
static inline bool process_lives(int pid)
{
    char path[64], text[512] = "";
    int saved = errno;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    text[n] = 0;
    if (f)
        fclose(f);
    errno = saved;
    const char *name_ends = strrchr(text, ')');
    return name_ends && name_ends[2] != 'Z' && name_ends[2] != 'X';
}

static inline void check_process_ends(int pid)
{
    for (int i = 0; i < 20000 && process_lives(pid); i++)
        nap();
    CHECK(!process_lives(pid));
}

/* Starts the child with this process number, whose process has been reaped. Returns false, with the
 * child closed, if the system does not allow it. */
static inline bool start_with_number(conc_child *c, int pid)
{
    conc_child fresh = *c;
    for (int i = 0; i < 10; i++) {
        FILE *f = fopen("/proc/sys/kernel/ns_last_pid", "w");
        bool written = f && fprintf(f, "%d", pid - 1) > 0;
        if (f && fclose(f) != 0)
            written = false;
        if (!written)
            return false;
        CHECK_INT(conc_child_start(c), 0);
        if (c->pid == pid)
            return true;
        CHECK_INT(conc_child_close(c), 0);
        *c = fresh;
    }
    return false;
}

/* If SIGCHLD is ignored, a child's number is free as soon as it ends: a process that reuses it must
 * be neither waited for nor signalled. */
static inline void check_reused_number(bool group)
{
    static const char *const ends[] = {"true", NULL}, *const stays[] = {"cat", NULL};
    conc_child a = {.argv = ends, .group = group};
    conc_child b = {.argv = stays, .input = CONC_PIPE, .group = group};
    CHECK_INT(conc_child_start(&a), 0);
    for (int i = 0; i < 400 && kill(a.pid, 0) == 0; i++) /* or a third process reuses the number */
        nap();
    if (start_with_number(&b, a.pid)) {
        CHECK_INT(conc_child_wait(&a, NULL), -ECHILD);
        CHECK_INT(conc_child_kill(&a, SIGKILL), -EALREADY);
        CHECK_INT(conc_child_close(&a), 0);
        CHECK(process_lives(b.pid));
        CHECK_INT(conc_write(b.input, "x", 1), 1);
    }
    CHECK_INT(conc_child_close(&b), 0);
    CHECK_INT(conc_child_close(&a), 0);
}

#ifdef TEST_THREADS
/* ---- jobs in threads ---- */

static inline void *tell_id(void *id)
{
    *(long *)id = syscall(SYS_gettid);
    return NULL;
}

/* Returns how many threads there are without conc's, after one thread has come and gone, because
 * sanitizers start their own with the first. */
static inline int base_threads(void)
{
    long id = 0;
    char path[64];
    pthread_t t;
    CHECK_INT(pthread_create(&t, NULL, tell_id, &id), 0);
    CHECK_INT(pthread_join(t, NULL), 0);
    snprintf(path, sizeof path, "/proc/self/task/%ld", id);
    while (access(path, F_OK) == 0)
        nap();
    return count_threads();
}

static int base; /* the number of threads */

static inline void call_clean(void (*call)(void (*)(void)), void (*body)(void))
{
    int fds = test_count_fds();
    base = base_threads();
    call(body);
    CHECK_INT(test_count_fds(), fds);
    check_threads(base);
    CHECK_INT(live_allocations, 0);
}

/* No job is left in the loop, and time moves on. */
static inline void check_loop(void)
{
    conc_stats s;
    double now = conc_now();
    conc_get_stats(&s);
    CHECK_INT(s.tasks, 1);
    CHECK_INT(s.timers, 0);
    CHECK_INT(s.holds, 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_TIME(now + 1);
}

/* A growing count that threads can wait for, as a gate. */
typedef struct counter {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int n;
} counter;

#define COUNTER                                                                \
    {                                                                          \
        .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER \
    }

static inline int count_up(counter *c)
{
    pthread_mutex_lock(&c->lock);
    int n = ++c->n;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return n;
}

static inline void count_wait(counter *c, int n)
{
    pthread_mutex_lock(&c->lock);
    while (c->n < n)
        pthread_cond_wait(&c->changed, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

static inline int count_now(counter *c)
{
    pthread_mutex_lock(&c->lock);
    int n = c->n;
    pthread_mutex_unlock(&c->lock);
    return n;
}

static atomic_int calls;

static inline int counts(void *arg)
{
    (void)arg;
    return 1 + atomic_fetch_add(&calls, 1);
}
#endif

#ifdef TEST_PROCESSES
/* ---- jobs in processes ---- */

/* otherwise ThreadSanitizer makes each worker sleep for a second before it exits */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "atexit_sleep_ms=0"; }

static inline void in_real_task(void (*body)(void))
{
    test_task t = {body};
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(test_call_body, &t), 0);
}

#define PROCS_TEST(name) CLEAN_TEST(name, test_in_task) /* in a task, on the virtual clock */
#define REAL_TEST(name) CLEAN_TEST(name, in_real_task)  /* in a task, on the real clock */

static inline pid_t parent_of(pid_t pid)
{
    char path[64];
    int parent = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    if (f && fscanf(f, "%*d (%*[^)]) %*c %d", &parent) != 1)
        parent = 0;
    if (f)
        fclose(f);
    return parent;
}

static inline bool has_ended(pid_t pid)
{
    for (double end = test_real_seconds() + 5; test_real_seconds() < end; nap())
        if (kill(pid, 0) != 0 && errno == ESRCH)
            return true;
    return false;
}

/* Where jobs wait for the test or for each other. Shared memory, allocated before any pool. */
typedef struct gate {
    atomic_int entered, opened;
} gate;

enum { GATES = 64 };
static gate *gates; /* allocated by the file's call_clean */
static int gates_used;

static inline gate *new_gate(void)
{
    CHECK(gates_used < GATES);
    return &gates[gates_used++];
}

static inline bool reaches(const atomic_int *n, int least)
{
    for (double end = test_real_seconds() + 10; atomic_load(n) < least; nap())
        if (test_real_seconds() > end)
            return false;
    return true;
}

/* Where a job runs. It waits until `meet` jobs are at its gate, and if it stays, until the gate
 * opens. */
typedef struct visit {
    pid_t pid;
    gate *gate; /* NULL: the job does not wait */
    int meet;
    bool stays;
    int rc;
} visit;

static inline int visits(void *arg)
{
    visit *v = arg;
    v->pid = getpid();
    if (v->gate)
        atomic_fetch_add(&v->gate->entered, 1);
    while (v->gate && (atomic_load(&v->gate->entered) < v->meet ||
                       (v->stays && !atomic_load(&v->gate->opened))))
        nap();
    return v->rc;
}

static inline pid_t worker_of(conc_procs *p)
{
    visit v = {0};
    CHECK_INT(conc_procs_run(p, visits, &v, sizeof v), 0);
    CHECK(v.pid > 0 && v.pid != getpid());
    return v.pid;
}

static inline int run_numbered(conc_procs *p, conc_fn *fn, int number)
{
    return conc_procs_run(p, fn, &number, sizeof number);
}

static inline int kills_itself(void *arg)
{
    (void)arg;
    return kill(getpid(), SIGKILL);
}

static inline void close_pool(conc_procs *p) { CHECK_INT(conc_procs_close(p), 0); }
#endif

#endif
