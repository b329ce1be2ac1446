/* test_pool_faults.c - failing system calls in pools, channels, files, names and child programs:
 * the n-th call of each kind fails, for n = 1, 2, 3, ... until a small program completes without a
 * failure; then all calls from the n-th on fail. Each time every job has its result or an error,
 * refused functions were not called, arguments are unchanged after an error, no wait hangs, the
 * same pool works once the fault is gone, and nothing is leaked.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64, aarch64-bti, riscv64, poll, single, clang,
 * static, gcc-asan, valgrind (how tasks switch and wait is tested elsewhere; it starts many
 * processes, which emulators cannot) Seeds: 2 (jobs are threads and processes)
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAYBE_UNUSED __attribute__((unused))

/* Kinds of calls that can fail. */
typedef enum kind {
    MEMORY,
    MAPPING,
    SIZING, /* ftruncate */
    MEMFD,
    THREAD,
    KEY, /* pthread_key_create */
    EVENTFD,
    SOCKETS,
    SENDING,
    RECEIVING,
    SPAWN,
    ACTIONS, /* preparations of a spawn */
    PIDFD,
    PIPE,
    OPEN,
    FILE_WORK, /* reads, writes and other changes of regular files */
    RESOLVER,
    KINDS
} kind;

static const int error_of[KINDS] = {
    [MEMORY] = ENOMEM,   [MAPPING] = ENOMEM,    [SIZING] = ENOSPC,  [MEMFD] = ENFILE,
    [THREAD] = EAGAIN,   [KEY] = EAGAIN,        [EVENTFD] = EMFILE, [SOCKETS] = EMFILE,
    [SENDING] = ENOBUFS, [RECEIVING] = ENOBUFS, [SPAWN] = EAGAIN,   [ACTIONS] = ENOMEM,
    [PIDFD] = EMFILE,    [PIPE] = EMFILE,       [OPEN] = EMFILE,    [FILE_WORK] = EIO,
    [RESOLVER] = ENOMEM};

typedef struct fault {
    atomic_long calls;   /* since the last reset */
    atomic_long at;      /* the call that fails; 0: none */
    atomic_bool forever; /* and all after it */
    atomic_long injected;
} fault;

/* Shared with all workers, which find its path in the environment. */
static fault *faults;
static fault before_faults[KINDS];
static atomic_long live_allocations, mapped_bytes; /* of this process */

__attribute__((constructor(101))) static void find_faults(void)
{
    const char *path = getenv("TEST_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *p = fd < 0 ? MAP_FAILED
                     : mmap(NULL, sizeof before_faults, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    faults = p == MAP_FAILED ? before_faults : p;
    if (fd >= 0)
        close(fd);
}

static bool fails(kind k)
{
    fault *f = &faults[k];
    long call = atomic_fetch_add(&f->calls, 1) + 1, at = atomic_load(&f->at);
    if (at == 0 || call < at || (call > at && !atomic_load(&f->forever)))
        return false;
    atomic_fetch_add(&f->injected, 1);
    errno = error_of[k];
    return true;
}

MAYBE_UNUSED static void *faulty_malloc(size_t n)
{
    void *p = fails(MEMORY) ? NULL : malloc(n);
    atomic_fetch_add(&live_allocations, p != NULL);
    return p;
}

MAYBE_UNUSED static void *faulty_realloc(void *old, size_t n)
{
    void *p = fails(MEMORY) ? NULL : realloc(old, n);
    atomic_fetch_add(&live_allocations, p != NULL && old == NULL);
    return p;
}

MAYBE_UNUSED static void faulty_free(void *p)
{
    atomic_fetch_sub(&live_allocations, p != NULL);
    free(p);
}

MAYBE_UNUSED static void *faulty_mmap(void *at, size_t size, int protection, int flags, int fd,
                                      off_t offset)
{
    void *p = fails(MAPPING) ? MAP_FAILED : mmap(at, size, protection, flags, fd, offset);
    if (p != MAP_FAILED && !(flags & MAP_FIXED))
        atomic_fetch_add(&mapped_bytes, (long)size);
    return p;
}

MAYBE_UNUSED static int counting_munmap(void *at, size_t size)
{
    int rc = munmap(at, size);
    atomic_fetch_sub(&mapped_bytes, rc == 0 ? (long)size : 0);
    return rc;
}

MAYBE_UNUSED static long faulty_syscall(long number, ...)
{
    long a[6];
    va_list args;
    va_start(args, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(args, long);
    va_end(args);
    if ((number == SYS_memfd_create && fails(MEMFD)) ||
        (number == SYS_pidfd_open && fails(PIDFD)) || (number == SYS_pipe2 && fails(PIPE)))
        return -1;
    return syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

MAYBE_UNUSED static int faulty_open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? (mode_t)va_arg(args, int) : 0;
    va_end(args);
    return fails(OPEN) ? -1 : open(path, flags, mode);
}

MAYBE_UNUSED static int faulty_openat(int directory, const char *path, int flags, mode_t mode)
{
    return fails(OPEN) ? -1 : openat(directory, path, flags, mode);
}

static bool file_work_fails(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && fails(FILE_WORK);
}

MAYBE_UNUSED static ssize_t faulty_read(int fd, void *to, size_t n)
{
    return file_work_fails(fd) ? -1 : read(fd, to, n);
}

MAYBE_UNUSED static ssize_t faulty_write(int fd, const void *from, size_t n)
{
    return file_work_fails(fd) ? -1 : write(fd, from, n);
}

#define FAULTY(k, type, name, parameters, ...) \
    MAYBE_UNUSED static type faulty_##name parameters { return fails(k) ? -1 : name(__VA_ARGS__); }
#define FAULTY_BY_NUMBER(k, name, parameters, ...) /* returns the error's number */ \
    MAYBE_UNUSED static int faulty_##name parameters                                \
    {                                                                               \
        return fails(k) ? error_of[k] : name(__VA_ARGS__);                          \
    }

FAULTY(SIZING, int, ftruncate, (int fd, off_t size), fd, size)
FAULTY(EVENTFD, int, eventfd, (unsigned n, int flags), n, flags)
FAULTY(SOCKETS, int, socketpair, (int domain, int type, int protocol, int *ends), domain, type,
       protocol, ends)
FAULTY(SENDING, ssize_t, sendmsg, (int fd, const struct msghdr *m, int flags), fd, m, flags)
FAULTY(RECEIVING, ssize_t, recvmsg, (int fd, struct msghdr *m, int flags), fd, m, flags)
FAULTY(FILE_WORK, int, fsync, (int fd), fd)
FAULTY(FILE_WORK, int, fchmod, (int fd, mode_t mode), fd, mode)
FAULTY(FILE_WORK, int, renameat, (int d, const char *from, int e, const char *to), d, from, e, to)

FAULTY_BY_NUMBER(THREAD, pthread_create,
                 (pthread_t * t, const pthread_attr_t *a, void *(*fn)(void *), void *arg), t, a, fn,
                 arg)
FAULTY_BY_NUMBER(KEY, pthread_key_create, (pthread_key_t * key, void (*fn)(void *)), key, fn)
#define SPAWN_PARAMETERS                                                       \
    (pid_t * pid, const char *path, const posix_spawn_file_actions_t *actions, \
     const posix_spawnattr_t *attrs, char *const *argv, char *const *env)
FAULTY_BY_NUMBER(SPAWN, posix_spawn, SPAWN_PARAMETERS, pid, path, actions, attrs, argv, env)
FAULTY_BY_NUMBER(SPAWN, posix_spawnp, SPAWN_PARAMETERS, pid, path, actions, attrs, argv, env)
FAULTY_BY_NUMBER(ACTIONS, posix_spawn_file_actions_init, (posix_spawn_file_actions_t * actions),
                 actions)
FAULTY_BY_NUMBER(ACTIONS, posix_spawn_file_actions_adddup2,
                 (posix_spawn_file_actions_t * actions, int fd, int to), actions, fd, to)
FAULTY_BY_NUMBER(ACTIONS, posix_spawnattr_init, (posix_spawnattr_t * attrs), attrs)

MAYBE_UNUSED static int faulty_getaddrinfo(const char *host, const char *port,
                                           const struct addrinfo *hints, struct addrinfo **list)
{
    return fails(RESOLVER) ? EAI_MEMORY : getaddrinfo(host, port, hints, list);
}

#define CONC_MALLOC(n) faulty_malloc(n)
#define CONC_REALLOC(p, n) faulty_realloc((p), (n))
#define CONC_FREE(p) faulty_free(p)
#define mmap faulty_mmap
#define munmap counting_munmap
#define ftruncate faulty_ftruncate
#define syscall(...) faulty_syscall(__VA_ARGS__, 0L, 0L, 0L, 0L, 0L, 0L)
#define open faulty_open /* so are fields of this name */
#define openat faulty_openat
#define read faulty_read
#define write faulty_write
#define eventfd faulty_eventfd
#define socketpair faulty_socketpair
#define sendmsg faulty_sendmsg
#define recvmsg faulty_recvmsg
#define fsync faulty_fsync
#define fchmod faulty_fchmod
#define renameat faulty_renameat
#define pthread_create faulty_pthread_create
#define pthread_key_create faulty_pthread_key_create
#define posix_spawn faulty_posix_spawn
#define posix_spawnp faulty_posix_spawnp
#define posix_spawn_file_actions_init faulty_posix_spawn_file_actions_init
#define posix_spawn_file_actions_adddup2 faulty_posix_spawn_file_actions_adddup2
#define posix_spawnattr_init faulty_posix_spawnattr_init
#define getaddrinfo faulty_getaddrinfo

#define TEST_SECONDS 60
#define TEST_PROCESSES
#include "pool_test.h"

#undef mmap
#undef munmap
#undef ftruncate
#undef syscall
#undef open
#undef openat
#undef read
#undef write
#undef eventfd
#undef socketpair
#undef sendmsg
#undef recvmsg
#undef pthread_create

enum { N = 20, DONE = 7, LARGE = MEGABYTE };

/* ---- results of a run ---- */

static bool main_ran, whole; /* whole: no call was refused */

static long injected(void)
{
    long n = 0;
    for (int k = 0; k < KINDS; k++)
        n += atomic_load(&faults[k].injected);
    return n;
}

/* Ends the faults. */
static void heal(void)
{
    for (int k = 0; k < KINDS; k++)
        atomic_store(&faults[k].at, 0);
}

static bool is_refusal(long rc)
{
    bool known = rc == -EAGAIN || rc == -ENOMEM || rc == -ENOTRECOVERABLE;
    for (int k = 0; k < KINDS; k++)
        known |= atomic_load(&faults[k].injected) && rc == -error_of[k];
    return known && injected();
}

/* Did the call return what it should? It may be refused instead, but only after a fault. */
#define WORKED(rc, expected) worked(__LINE__, #rc, (rc), (expected))
static bool worked(int line, const char *what, long rc, long expected)
{
    if (rc == expected)
        return true;
    if (!is_refusal(rc))
        test_fail(__FILE__, line, "%s is %ld, and not %ld, after %ld faults (%s)", what, rc,
                  expected, injected(), conc_self() ? conc_last_error() : "no run");
    whole = false;
    return false;
}

/* The call's error has the latest error text. */
#define TOLD(call) told(__LINE__, #call, (conc_fail(-EXDEV, "an older error"), (call)))
static long told(int line, const char *what, long rc)
{
    bool silent = strcmp(conc_last_error(), "an older error") == 0;
    if (rc < 0 && rc != -ECANCELED && rc != -EXDEV && silent)
        test_fail(__FILE__, line, "%s is %ld, without words", what, rc);
    return rc;
}

/* The same for a call that has to succeed once the faults have ended. */
#define WORKS_WHEN_HEALED(call, expected)      \
    do {                                       \
        if (!WORKED(call, expected)) {         \
            heal();                            \
            CHECK_INT(call, (long)(expected)); \
        }                                      \
    } while (0)

typedef struct before {
    int fds, threads;
} before;

static void *does_nothing(void *arg) { return arg; }

/* A sanitizer may start its own thread with the program's first one. */
static before look_around(void)
{
    static bool looked;
    pthread_t first;
    if (!looked && count_threads() > 1) {
        CHECK_INT(pthread_create(&first, NULL, does_nothing, NULL), 0);
        CHECK_INT(pthread_join(first, NULL), 0);
        /* it is still counted for a moment after its end */
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    looked = true;
    return (before){test_count_fds(), count_threads()};
}

static bool all_is_back(const before *b)
{
    return atomic_load(&live_allocations) == 0 && atomic_load(&mapped_bytes) == 0 &&
           count_threads() == b->threads;
}

/* A thread is still counted for a moment after its end, and an abandoned job continues for a
 * while. */
static void check_nothing_is_left(const before *b)
{
    for (double end = test_real_seconds() + 10; !all_is_back(b) && test_real_seconds() < end;)
        nap();
    CHECK_INT(atomic_load(&live_allocations), 0);
    CHECK_INT(atomic_load(&mapped_bytes), 0);
    CHECK_INT(count_threads(), b->threads);
    CHECK_INT(test_count_fds(), b->fds);
    check_no_children();
}

static void share_faults(void)
{
    char path[64];
    int fd = (int)syscall(SYS_memfd_create, "faults", 1); /* MFD_CLOEXEC */
    CHECK(fd >= 0);
    CHECK_INT(ftruncate(fd, sizeof before_faults), 0);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), fd);
    setenv("TEST_FAULTS", path, 1);
    find_faults();
    CHECK(faults != before_faults);
}

static void fail_from(kind k, long at, bool forever)
{
    for (int i = 0; i < KINDS; i++) {
        atomic_store(&faults[i].calls, 0);
        atomic_store(&faults[i].injected, 0);
    }
    atomic_store(&faults[k].forever, forever);
    atomic_store(&faults[k].at, at);
}

/* Calls the program, in a run or by a thread without one; returns whether no call was refused. */
static bool call_program(conc_fn *program, bool in_run)
{
    conc_options o = {.virtual_clock = true};
    main_ran = false;
    whole = true;
    int rc = in_run ? conc_run_with(&o, program, NULL) : program(NULL);
    heal();
    if (main_ran)
        CHECK_INT(rc, DONE);
    else
        CHECK(is_refusal(rc));
    return main_ran && whole;
}

static void check_kind(conc_fn *program, bool in_run, kind k, bool forever)
{
    before b = look_around();
    long n = 0;
    bool good;
    do {
        fail_from(k, ++n, forever);
        good = call_program(program, in_run);
        check_nothing_is_left(&b);
    } while (injected() && n < 1000);
    CHECK_INT(injected(), 0);
    CHECK(good);
}

static void check_kinds(conc_fn *program, bool in_run, const kind *kinds, size_t count)
{
    signal(SIGCHLD, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    unsetenv("CONC_CLOCK");
    share_faults();
    for (size_t i = 0; i < count; i++) {
        check_kind(program, in_run, kinds[i], false);
        check_kind(program, in_run, kinds[i], true);
    }
}

#define CHECK_KINDS(program, in_run, ...)                   \
    check_kinds((program), (in_run), (kind[]){__VA_ARGS__}, \
                sizeof(kind[]){__VA_ARGS__} / sizeof(kind))

/* ---- jobs ---- */

static atomic_int *calls_seen; /* counts of jobs in processes; in shared memory */

typedef struct work {
    int number, calls;
    atomic_int *seen; /* NULL: the job is a thread's */
} work;

static int doubles(void *arg)
{
    work *w = arg;
    if (w->seen)
        atomic_fetch_add(w->seen, 1);
    w->calls++;
    w->number *= 2;
    return w->number;
}

static void fill(work *w)
{
    for (int i = 0; i < N; i++)
        w[i] = (work){i + 1, 0, calls_seen};
}

/* Was it called this many times? Without a call it is unchanged. */
static void check_work(const work *w, int i, int calls)
{
    CHECK_INT(w->calls, calls);
    CHECK_INT(w->number, calls ? 2 * (i + 1) : i + 1);
}

/* ---- thread pools ---- */

static void submit_many(conc_pool *p)
{
    conc_job jobs[N];
    bool taken[N];
    work w[N];
    fill(w);
    for (int i = 0; i < N; i++)
        taken[i] = WORKED(TOLD(conc_pool_submit(p, &jobs[i], doubles, &w[i])), 0);
    for (int i = 0; i < N; i++) {
        int result = WAITING;
        CHECK_INT(conc_job_wait(&jobs[i], &result), taken[i] ? 0 : -EINVAL);
        CHECK_INT(conc_job_done(&jobs[i]), taken[i]);
        CHECK_INT(result, taken[i] ? 2 * (i + 1) : WAITING);
        check_work(&w[i], i, taken[i]);
    }
}

static void run_some(conc_pool *p)
{
    for (int i = 0; i < 3; i++) {
        work w = {.number = i + 1};
        check_work(&w, i, WORKED(TOLD(conc_pool_run(p, doubles, &w)), 2 * (i + 1)));
    }
}

static void map_many(conc_pool *p)
{
    int results[N];
    work w[N];
    fill(w);
    bool good = WORKED(TOLD(conc_pool_map(p, doubles, w, N, sizeof w[0])), 0);
    for (int i = 0; i < N; i++) {
        CHECK(w[i].calls == 1 || !good);
        check_work(&w[i], i, w[i].calls > 0);
    }
    fill(w);
    for (int i = 0; i < N; i++)
        results[i] = WAITING;
    good = WORKED(TOLD(conc_pool_map_all(p, doubles, w, N, sizeof w[0], results)), 0);
    for (int i = 0; i < N; i++) {
        CHECK(w[i].calls == 1 || !good);
        check_work(&w[i], i, w[i].calls > 0);
        if (w[i].calls)
            CHECK_INT(results[i], w[i].number);
        else
            CHECK(results[i] == WAITING || results[i] == -ECANCELED || is_refusal(results[i]));
    }
}

/* Once the faults have ended, no call may be refused, although WORKED would let it pass. */
static void check_healthy(conc_pool *p)
{
    bool was_whole = whole;
    heal();
    whole = true;
    submit_many(p);
    map_many(p);
    run_some(p);
    CHECK(whole);
    whole = was_whole;
}

static int use_pools(void *arg)
{
    conc_pool pools[] = {{.threads = 3}, {.threads = 1, .queue_limit = 1}};
    (void)arg;
    main_ran = true;
    for (int i = 0; i < 2; i++) {
        WORKS_WHEN_HEALED(TOLD(conc_pool_open(&pools[i])), 0);
        submit_many(&pools[i]);
        map_many(&pools[i]);
        run_some(&pools[i]);
    }
    for (int i = 0; i < 2; i++) {
        check_healthy(&pools[i]);
        CHECK_INT(conc_pool_close(&pools[i]), 0);
    }
    return DONE;
}

TEST(thread_pools_are_refused_what_a_run_needs_and_threads)
{
    CHECK_KINDS(use_pools, true, MEMORY, MAPPING, THREAD, EVENTFD);
}

TEST(a_thread_without_a_run_is_refused_the_same) { CHECK_KINDS(use_pools, false, MEMORY, THREAD); }

/* Where jobs wait for the test. */
static atomic_int entered, opened, freed;

static int waits_for_gate(void *arg)
{
    (void)arg;
    atomic_fetch_add(&entered, 1);
    while (!atomic_load(&opened))
        nap();
    return 0;
}

/* ---- offload ---- */

static void *new_work(int number)
{
    work *w = malloc(sizeof *w);
    *w = (work){.number = number};
    return w;
}

static void free_work(void *arg)
{
    atomic_fetch_add(&freed, 1);
    free(arg);
}

static int waits_and_doubles(void *arg)
{
    waits_for_gate(NULL);
    return doubles(arg);
}

static atomic_int left; /* the task has left its job, or was refused it */

static int abandons(void *arg)
{
    int rc = conc_offload_abandon(waits_and_doubles, arg, free_work);
    atomic_store(&left, rc);
    return rc;
}

/* An abandoned job: its argument is freed when it ends, or immediately if it was refused. */
static void abandon_one(void)
{
    conc_group g = {.keep_going = true};
    void *arg = new_work(1);
    entered = opened = freed = 0;
    left = WAITING;
    if (!WORKED(conc_spawn(&g, abandons, arg), 0)) {
        free(arg);
        CHECK_INT(conc_group_wait(&g), 0);
        return;
    }
    while (!atomic_load(&entered) && atomic_load(&left) == WAITING)
        CHECK_INT(conc_yield(), 0);
    conc_group_cancel(&g);
    int rc = conc_group_wait(&g);
    CHECK(rc == 0 || is_refusal(rc));
    if (!WORKED(atomic_load(&left), -ECANCELED)) {
        CHECK_INT(atomic_load(&entered), 0);
        CHECK_INT(atomic_load(&freed), 1);
        return;
    }
    CHECK_INT(atomic_load(&freed), 0);
    atomic_store(&opened, 1);
    while (!atomic_load(&freed))
        nap();
}

static void offload_some(void)
{
    for (int i = 0; i < 3; i++) {
        work w = {.number = i + 1};
        check_work(&w, i, WORKED(TOLD(conc_offload(doubles, &w)), 2 * (i + 1)));
        freed = 0;
        (void)WORKED(TOLD(conc_offload_abandon(doubles, new_work(i + 1), free_work)), 2 * (i + 1));
        CHECK_INT(atomic_load(&freed), 1);
    }
}

static int use_offload(void *arg)
{
    (void)arg;
    main_ran = true;
    offload_some();
    abandon_one();
    offload_some();
    heal();
    bool was_whole = whole;
    whole = true;
    offload_some();
    abandon_one();
    CHECK(whole);
    whole = was_whole;
    return DONE;
}

TEST(offloaded_jobs_are_refused_what_they_need_and_free_their_arguments_once)
{
    CHECK_KINDS(use_offload, true, MEMORY, MAPPING, THREAD, EVENTFD);
}

static conc_pool lone = {.threads = 1};

/* On the only thread of its pool, which is unavailable while this waits. */
static int runs_in_run(void *arg) { return conc_pool_run(&lone, doubles, arg); }

static int has_run_inside(void *arg) { return conc_run(runs_in_run, arg); }

TEST(a_run_in_a_job_that_waits_for_its_own_pool_gets_a_thread_or_an_error)
{
    work w = {.number = 1};
    conc_job first;
    CHECK_INT(conc_pool_open(&lone), 0);
    CHECK_INT(conc_pool_submit(&lone, &first, doubles, &w), 0);
    CHECK_INT(conc_job_wait(&first, NULL), 0);
    w = (work){.number = 1};
    fail_from(THREAD, 1, true);
    int rc = conc_pool_run(&lone, has_run_inside, &w);
    if (rc == 2)
        check_work(&w, 0, 1);
    else
        CHECK_INT(rc, -EAGAIN);
    heal();
    w = (work){.number = 1};
    CHECK_INT(conc_pool_run(&lone, has_run_inside, &w), 2);
    CHECK_INT(conc_pool_close(&lone), 0);
}

static int offloads(void *arg) { return conc_offload_abandon(doubles, arg, NULL); }

/* Abandoned jobs occupy every thread. */
static int offload_behind_hanging_job(void *arg)
{
    conc_group g = {0};
    work w = {.number = 1};
    (void)arg;
    entered = opened = freed = 0;
    left = WAITING;
    CHECK_INT(conc_spawn(&g, abandons, new_work(1)), 0);
    while (!atomic_load(&entered))
        CHECK_INT(conc_yield(), 0);
    fail_from(THREAD, 1, true);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(atomic_load(&left), -ECANCELED);
    CHECK_INT(offloads(&w), -EAGAIN);
    check_work(&w, 0, 0);
    heal();
    CHECK_INT(conc_timeout(CONC_FOREVER, offloads, &w), 2);
    atomic_store(&opened, 1);
    while (!atomic_load(&freed))
        nap();
    return 0;
}

TEST(a_job_is_refused_when_all_threads_hang_in_abandoned_jobs)
{
    conc_options o = {.virtual_clock = true};
    before b = look_around();
    CHECK_INT(conc_run_with(&o, offload_behind_hanging_job, NULL), 0);
    check_nothing_is_left(&b);
}

static int use_without_keys(void *arg)
{
    conc_pool pool = {0};
    conc_procs procs = {.workers = 1};
    work w = {.number = 1};
    (void)arg;
    CHECK(is_refusal(conc_pool_open(&pool)));
    CHECK(is_refusal(conc_procs_open(&procs)));
    CHECK(is_refusal(conc_offload(doubles, &w)));
    check_work(&w, 0, 0);
    freed = 0;
    CHECK(is_refusal(conc_offload_abandon(doubles, new_work(1), free_work)));
    CHECK_INT(atomic_load(&freed), 1);
    CHECK(conc_job_cancelled() == false);
    return 0;
}

TEST(without_thread_specific_keys_there_are_no_pools)
{
    conc_options o = {.virtual_clock = true};
    before b = look_around();
    fail_from(KEY, 1, true);
    CHECK_INT(conc_run_with(&o, use_without_keys, NULL), 0);
    CHECK(injected() > 0);
    check_nothing_is_left(&b);
}

/* ---- failures of the system itself ---- */

/* As another user, who may have one thread. */
static int use_with_one_thread(void *arg)
{
    work w = {.number = 1};
    conc_pool pool = {.threads = 2};
    struct rlimit limit, none = {1, 1};
    (void)arg;
    CHECK_INT(getrlimit(RLIMIT_NPROC, &limit), 0);
    none.rlim_max = limit.rlim_max;
    CHECK_INT(setrlimit(RLIMIT_NPROC, &none), 0);
    CHECK_INT(conc_offload(doubles, &w), -EAGAIN);
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_run(&pool, doubles, &w), -EAGAIN);
    CHECK_INT(conc_pool_map(&pool, doubles, &w, 1, sizeof w), -EAGAIN);
    check_work(&w, 0, 0);
    CHECK_INT(setrlimit(RLIMIT_NPROC, &limit), 0);
    CHECK_INT(conc_pool_run(&pool, doubles, &w), 2);
    CHECK_INT(conc_offload(doubles, &w), 4);
    return conc_pool_close(&pool);
}

TEST(at_the_thread_limit_calls_fail_until_there_may_be_more)
{
    before b = look_around();
    if (geteuid() != 0 || setreuid(65432, 65432) != 0)
        return; /* limits do not apply to root, and others have processes already */
    CHECK_INT(conc_run(use_with_one_thread, NULL), 0);
    check_nothing_is_left(&b);
}

static void use_without_descriptors(conc_procs *p, conc_child *c)
{
    void *data = &data;
    size_t size = 1;
    CHECK_INT(conc_procs_open(p), -EMFILE);
    CHECK_INT(conc_child_start(c), -EMFILE);
    CHECK_INT(c->output, CONC_PIPE);
    CHECK_INT(conc_file_read("/dev/null", &data, &size), -EMFILE);
    CHECK(data == NULL && size == 0);
    CHECK_INT(conc_file_append("/dev/null", "x", 1), -EMFILE);
    CHECK(conc_shared_alloc(1) == NULL);
}

static int use_with_few_descriptors(void *arg)
{
    static const char *const true_program[] = {"true", NULL};
    const conc_child to_start = {.argv = true_program, .output = CONC_PIPE};
    conc_procs p = {.workers = 1};
    conc_child c = to_start;
    work w = {.number = 1};
    struct rlimit limit, none;
    void *data;
    int next = dup(0);
    (void)arg;
    CHECK_INT(close(next), 0);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK_INT(conc_offload(doubles, &w), 2);
    none = (struct rlimit){(rlim_t)next, limit.rlim_max};
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &none), 0);
    use_without_descriptors(&p, &c);
    for (int i = 1; i < 8; i++) { /* slightly later each time */
        none.rlim_cur = (rlim_t)(next + i);
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &none), 0);
        if (conc_procs_open(&p) == 0) {
            w = (work){.number = 1};
            int rc = conc_procs_run(&p, doubles, &w, sizeof w);
            CHECK(rc == 2 || rc == -EAGAIN || rc == -ENOTRECOVERABLE);
            check_work(&w, 0, rc == 2);
            CHECK_INT(conc_procs_close(&p), 0);
        }
        if (conc_child_start(&c) == 0)
            CHECK_INT(conc_child_close(&c), 0);
        c = to_start;
    }
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    w = (work){.number = 1};
    CHECK_INT(conc_procs_open(&p), 0);
    CHECK_INT(conc_procs_run(&p, doubles, &w, sizeof w), 2);
    CHECK_INT(conc_procs_close(&p), 0);
    CHECK_INT(conc_child_start(&c), 0);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(conc_file_read("/dev/null", &data, NULL), 0);
    conc_free(data);
    return 0;
}

TEST(without_descriptors_there_are_errors_until_there_are_some)
{
    before b = look_around();
    signal(SIGCHLD, SIG_DFL);
    CHECK_INT(conc_run(use_with_few_descriptors, NULL), 0);
    check_nothing_is_left(&b);
}

/* ---- channels ---- */

static conc_channel channel = CONC_CHANNEL(int, 2);

/* The first use of the channel may be refused; the channel is then still new. Returns 0, or the
 * line of a wrong result. */
static int again(int rc)
{
    if (!is_refusal(rc))
        return rc;
    heal();
    return -EINTR;
}

static void *sends(void *arg)
{
    int *wrong = arg;
    for (int i = 0; i < N && !*wrong; i++) {
        int rc;
        while ((rc = again(conc_channel_send(&channel, &i))) == -EINTR)
            ;
        *wrong = rc ? __LINE__ : 0;
    }
    conc_channel_close(&channel);
    return NULL;
}

static void *receives(void *arg)
{
    int *wrong = arg, rc, item;
    for (int i = 0; i <= N && !*wrong; i++) {
        while ((rc = again(conc_channel_recv(&channel, &item))) == -EINTR)
            ;
        if (i < N)
            *wrong = rc || item != i ? __LINE__ : 0;
        else
            *wrong = rc != -EPIPE ? __LINE__ : 0;
    }
    return NULL;
}

static int use_channel(void *arg)
{
    pthread_t threads[2];
    int wrong[2] = {0, 0}, item = 1;
    (void)arg;
    main_ran = true;
    CHECK_INT(pthread_create(&threads[0], NULL, sends, &wrong[0]), 0);
    CHECK_INT(pthread_create(&threads[1], NULL, receives, &wrong[1]), 0);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    CHECK_INT(wrong[0], 0);
    CHECK_INT(wrong[1], 0);
    conc_channel_destroy(&channel);

    WORKS_WHEN_HEALED(TOLD(conc_channel_try_send(&channel, &item)), 0);
    item = 0;
    CHECK_INT(conc_channel_try_recv(&channel, &item), 0);
    CHECK_INT(item, 1);
    conc_channel_destroy(&channel);

    conc_channel_close(&channel); /* also without memory for it */
    CHECK_INT(conc_channel_send(&channel, &item), -EPIPE);
    CHECK_INT(conc_channel_try_recv(&channel, &item), -EPIPE);
    conc_channel_close(&channel);
    conc_channel_destroy(&channel);

    heal();
    CHECK_INT(conc_channel_send(&channel, &item), 0);
    CHECK_INT(conc_channel_recv(&channel, &item), 0);
    conc_channel_destroy(&channel);
    return DONE;
}

TEST(a_channel_without_memory_is_like_new_and_its_first_users_can_retry)
{
    for (int i = 0; i < 20; i++) /* the order varies */
        CHECK_KINDS(use_channel, false, MEMORY);
}

/* ---- files ---- */

static void check_file(const char *name, const char *bytes, size_t size)
{
    static char buffer[65536];
    int fd = open(path_of(name), O_RDONLY);
    CHECK(fd >= 0);
    CHECK_INT(read(fd, buffer, sizeof buffer), size);
    CHECK(memcmp(buffer, bytes, size) == 0);
    close(fd);
}

static void put_file(const char *name, const char *text)
{
    int fd = open(path_of(name), O_WRONLY | O_CREAT | O_TRUNC, 0640);
    CHECK(fd >= 0);
    CHECK_INT(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static void check_read(const char *name, const char *bytes, size_t size)
{
    void *data = &data;
    size_t got = 1;
    if (WORKED(TOLD(conc_file_read(path_of(name), &data, &got)), 0)) {
        CHECK_INT(got, size);
        CHECK(memcmp(data, bytes, size) == 0);
    } else {
        CHECK_INT(got, 0);
        CHECK(data == NULL);
    }
    conc_free(data);
}

static void write_and_read(void)
{
    static char bytes[20000];
    struct stat st;
    memset(bytes, 'x', sizeof bytes);
    put_file("old", "before");
    if (WORKED(TOLD(conc_file_write(path_of("old"), bytes, sizeof bytes)), 0))
        check_file("old", bytes, sizeof bytes);
    else
        check_file("old", "before", 6);
    CHECK_INT(stat(path_of("old"), &st), 0);
    CHECK_INT(st.st_mode & 07777, 0640);
    CHECK_INT(count_names(directory), 1);
    bool made = WORKED(TOLD(conc_file_write(path_of("new"), bytes, sizeof bytes)), 0);
    CHECK_INT(count_names(directory), 1 + made);
    if (made) {
        check_file("new", bytes, sizeof bytes);
        check_read("new", bytes, sizeof bytes);
    }
    put_file("old", "before");
    if (WORKED(TOLD(conc_file_append(path_of("old"), " after", 6)), 0))
        check_read("old", "before after", 12);
    unlink(path_of("old"));
    unlink(path_of("new"));
    CHECK_INT(count_names(directory), 0);
}

static int use_files(void *arg)
{
    (void)arg;
    main_ran = true;
    write_and_read();
    bool was_whole = whole;
    heal();
    whole = true;
    write_and_read();
    CHECK(whole);
    whole = was_whole;
    return DONE;
}

static void in_new_directory(void (*fn)(void))
{
    make_directory();
    umask(022);
    fn();
    rmdir(directory);
}

static void check_files_in_run(void)
{
    CHECK_KINDS(use_files, true, MEMORY, THREAD, OPEN, FILE_WORK);
}
static void check_files_in_thread(void) { CHECK_KINDS(use_files, false, MEMORY, OPEN, FILE_WORK); }

TEST(a_file_that_cannot_be_written_is_unchanged_and_no_other_is_left)
{
    in_new_directory(check_files_in_run);
}

TEST(the_same_without_a_run) { in_new_directory(check_files_in_thread); }

/* ---- names ---- */

static void resolve_some(void)
{
    struct sockaddr_storage out[4];
    int rc = (int)TOLD(conc_resolve("127.0.0.1", "80", out, 4));
    if (WORKED(rc, 1)) {
        CHECK_INT(out[0].ss_family, AF_INET);
        CHECK_INT(ntohs(((struct sockaddr_in *)&out[0])->sin_port), 80);
    }
    rc = (int)TOLD(conc_resolve("localhost", "80", out, 4));
    (void)WORKED(rc, rc > 0 ? rc : 1);
}

/* Names in conc_dial and conc_listen. */
static void dial_some(void)
{
    char address[120], name[160];
    int fd = (int)TOLD(conc_listen("localhost:0")), peer;
    if (!WORKED(fd, fd >= 0 ? fd : 0))
        return;
    CHECK_INT(conc_address(fd, false, address, sizeof address), 0);
    snprintf(name, sizeof name, "localhost%s", strrchr(address, ':'));
    peer = (int)TOLD(conc_dial(name));
    if (WORKED(peer, peer >= 0 ? peer : 0))
        CHECK_INT(conc_close(peer), 0);
    CHECK_INT(conc_close(fd), 0);
}

static int use_names(void *arg)
{
    (void)arg;
    main_ran = true;
    resolve_some();
    if (conc_self())
        dial_some();
    bool was_whole = whole;
    heal();
    whole = true;
    resolve_some();
    if (conc_self())
        dial_some();
    CHECK(whole);
    whole = was_whole;
    return DONE;
}

TEST(a_name_that_cannot_be_looked_up_is_an_error)
{
    CHECK_KINDS(use_names, true, MEMORY, THREAD, EVENTFD, RESOLVER);
}

TEST(a_name_is_looked_up_without_a_run_too) { CHECK_KINDS(use_names, false, MEMORY, RESOLVER); }

/* ---- child programs ---- */

static const char *const cat[] = {"sh", "-c", "cat; echo wrong >&2; exit 3", NULL};

static void check_reads(int fd, const char *expected)
{
    char text[64] = "";
    size_t n = 0, wanted = strlen(expected);
    while (n < wanted) {
        ssize_t got = conc_read(fd, text + n, sizeof text - 1 - n);
        if (!WORKED(got, got > 0 ? got : 1)) {
            heal();
            continue;
        }
        n += (size_t)got;
    }
    CHECK_STR(text, expected);
    WORKS_WHEN_HEALED(conc_read(fd, text, 1), 0);
}

/* In a run through conc, outside of one through the system. */
static void talk_to(conc_child *c)
{
    int status = 0;
    WORKS_WHEN_HEALED(conc_write(c->input, "hello", 5), 5);
    CHECK_INT(conc_close(c->input), 0);
    c->input = -1;
    check_reads(c->output, "hello");
    check_reads(c->error, "wrong\n");
    WORKS_WHEN_HEALED(TOLD(conc_child_wait(c, &status)), 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
    CHECK_INT(conc_child_kill(c, SIGTERM), -EALREADY);
    CHECK_INT(conc_child_close(c), 0);
}

static int use_children(void *arg)
{
    (void)arg;
    main_ran = true;
    conc_child c = {.argv = cat, .input = CONC_PIPE, .output = CONC_PIPE, .error = CONC_PIPE};
    conc_child null = {.argv = cat, .input = CONC_NULL, .output = CONC_NULL, .error = CONC_NULL};
    if (!WORKED(TOLD(conc_child_start(&c)), 0)) {
        CHECK_INT(c.input, CONC_PIPE);
        CHECK_INT(c.output, CONC_PIPE);
        CHECK_INT(c.error, CONC_PIPE);
        CHECK_INT(c.pid, 0);
        CHECK_INT(conc_child_wait(&c, NULL), -EINVAL);
        CHECK_INT(conc_child_kill(&c, SIGTERM), -EINVAL);
        CHECK_INT(conc_child_close(&c), 0);
        heal();
        CHECK_INT(conc_child_start(&c), 0);
    }
    talk_to(&c);
    WORKS_WHEN_HEALED(TOLD(conc_child_start(&null)), 0);
    CHECK_INT(conc_child_close(&null), 0);
    heal();
    c.input = c.output = c.error = CONC_PIPE;
    CHECK_INT(conc_child_start(&c), 0);
    talk_to(&c);
    return DONE;
}

TEST(a_child_program_that_cannot_be_started_leaves_nothing)
{
    CHECK_KINDS(use_children, true, MEMORY, THREAD, PIPE, OPEN, SPAWN, ACTIONS, PIDFD);
}

/* ---- shared memory ---- */

static int use_shared(void *arg)
{
    static const char zeros[LARGE];
    (void)arg;
    main_ran = true;
    for (int i = 0; i < 4; i++) {
        size_t size = i % 2 ? LARGE : 1;
        errno = 77;
        char *p = conc_shared_alloc(size);
        CHECK_INT(errno, 77);
        if (!WORKED(p ? 0 : -ENOMEM, 0)) {
            if (i == 2)
                heal();
            continue;
        }
        CHECK(memcmp(p, zeros, size) == 0);
        memset(p, 1, size);
        conc_shared_free(p);
    }
    heal();
    char *p = conc_shared_alloc(LARGE);
    CHECK(p != NULL);
    conc_shared_free(p);
    return DONE;
}

TEST(a_failed_shared_allocation_is_null)
{
    CHECK_KINDS(use_shared, false, MEMORY, MAPPING, SIZING, MEMFD);
}

/* ---- process pools ---- */

/* A job was done exactly once, or was not done, and its bytes are unchanged. */
static void check_far_work(const work *w, int i, bool done)
{
    check_work(w, i, done);
    CHECK_INT(atomic_exchange(calls_seen, 0), done);
}

static bool broken; /* no worker started, several times: this pool stays unusable */

static bool far_worked(int line, long rc, long expected)
{
    broken |= rc == -ENOTRECOVERABLE;
    return worked(line, "a job in a process", rc, expected);
}
#define FAR_WORKED(rc, expected) far_worked(__LINE__, (rc), (expected))

static void run_far(conc_procs *p, int times)
{
    for (int i = 0; i < times; i++) {
        work w = {i + 1, 0, calls_seen};
        check_far_work(&w, i, FAR_WORKED(conc_procs_run(p, doubles, &w, sizeof w), 2 * (i + 1)));
    }
}

static void submit_far(conc_procs *p)
{
    conc_job jobs[N];
    bool taken[N];
    work w[N];
    int done = 0;
    fill(w);
    for (int i = 0; i < N; i++)
        taken[i] = FAR_WORKED(conc_procs_submit(p, &jobs[i], doubles, &w[i], sizeof w[i]), 0);
    for (int i = 0; i < N; i++) {
        int result = WAITING;
        CHECK_INT(conc_job_wait(&jobs[i], &result), taken[i] ? 0 : -EINVAL);
        bool good = taken[i] && FAR_WORKED(result, 2 * (i + 1));
        check_work(&w[i], i, good);
        done += good;
    }
    CHECK_INT(atomic_exchange(calls_seen, 0), done);
}

static void map_far(conc_procs *p)
{
    int results[N], done = 0;
    work w[N];
    fill(w);
    bool good = FAR_WORKED(conc_procs_map(p, doubles, w, N, sizeof w[0]), 0);
    for (int i = 0; i < N; i++) {
        CHECK(w[i].calls == 1 || !good);
        check_work(&w[i], i, w[i].calls > 0);
        done += w[i].calls;
    }
    CHECK_INT(atomic_exchange(calls_seen, 0), done);
    fill(w);
    for (int i = done = 0; i < N; i++)
        results[i] = WAITING;
    (void)FAR_WORKED(conc_procs_map_all(p, doubles, w, N, sizeof w[0], results), 0);
    for (int i = 0; i < N; i++) {
        check_work(&w[i], i, w[i].calls > 0);
        done += w[i].calls;
        if (w[i].calls)
            CHECK_INT(results[i], w[i].number);
        else
            CHECK(results[i] == WAITING || results[i] == -ECANCELED ||
                  !FAR_WORKED(results[i], WAITING));
    }
    CHECK_INT(atomic_exchange(calls_seen, 0), done);
}

static int inverts(void *arg)
{
    unsigned char *p = arg;
    for (int i = 0; i < LARGE; i++)
        p[i] ^= 0xff;
    return 1;
}

static ssize_t answers(const void *in, size_t in_size, void *out, size_t out_size)
{
    if (out_size < 2 * in_size)
        return -EMSGSIZE;
    memcpy(out, in, in_size);
    memcpy((char *)out + in_size, in, in_size);
    return (ssize_t)(2 * in_size);
}

static void send_much(conc_procs *p)
{
    static unsigned char bytes[LARGE];
    char out[20] = "";
    memset(bytes, 1, sizeof bytes);
    bool good = FAR_WORKED(conc_procs_run(p, inverts, bytes, sizeof bytes), 1);
    for (int i = 0; i < LARGE; i++)
        if (bytes[i] != (good ? 0xfe : 1))
            test_fail(__FILE__, __LINE__, "byte %d is %d", i, bytes[i]);
    good = FAR_WORKED(conc_procs_call(p, answers, "many", 4, out, sizeof out - 1), 8);
    CHECK_STR(out, good ? "manymany" : "");
}

static void use_far_pool(void)
{
    conc_procs p = {.workers = 2};
    broken = false;
    calls_seen = conc_shared_alloc(sizeof *calls_seen);
    if (!WORKED(calls_seen ? 0 : -ENOMEM, 0)) {
        heal();
        calls_seen = conc_shared_alloc(sizeof *calls_seen);
    }
    WORKS_WHEN_HEALED(conc_procs_open(&p), 0);
    run_far(&p, 10);
    submit_far(&p);
    map_far(&p);
    send_much(&p);
    heal();
    work probe = {1, 0, calls_seen}; /* workers that were starting may still fail */
    check_far_work(&probe, 0, FAR_WORKED(conc_procs_run(&p, doubles, &probe, sizeof probe), 2));
    if (broken) {
        CHECK_INT(conc_procs_run(&p, doubles, NULL, 0), -ENOTRECOVERABLE);
        CHECK_INT(conc_procs_close(&p), 0);
        CHECK_INT(conc_procs_open(&p), 0);
    }
    bool was_whole = whole;
    whole = true;
    run_far(&p, 3);
    map_far(&p);
    send_much(&p);
    CHECK(whole);
    whole = was_whole;
    CHECK_INT(conc_procs_close(&p), 0);
    conc_shared_free(calls_seen);
}

static int use_procs(void *arg)
{
    (void)arg;
    main_ran = true;
    use_far_pool();
    return DONE;
}

TEST(processes_are_refused_memory) { CHECK_KINDS(use_procs, true, MEMORY); }

TEST(processes_are_refused_mappings) { CHECK_KINDS(use_procs, true, MAPPING, SIZING, MEMFD); }

TEST(processes_are_refused_threads_and_descriptors)
{
    CHECK_KINDS(use_procs, true, THREAD, EVENTFD, SOCKETS, SENDING, RECEIVING, PIDFD);
}

TEST(processes_are_refused) { CHECK_KINDS(use_procs, true, SPAWN, ACTIONS); }

TEST(processes_of_a_thread_without_a_run_are_refused_what_they_need)
{
    CHECK_KINDS(use_procs, false, MEMORY, THREAD, SENDING, PIDFD, SPAWN);
}
