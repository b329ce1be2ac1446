/* test_shared.c - conc_shared_alloc: memory that workers of process pools see at the program's
 * addresses.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64, aarch64-bti, riscv64, poll, seeds, valgrind,
 * gcc-asan, single, clang, static (they start processes, which emulators cannot, and which older
 * versions of Valgrind cannot wait for)
 */
#define TEST_PROCESSES
#include "pool_test.h"

#include <sys/mman.h>

static int count_lines(const char *path, const char *word)
{
    char line[1000];
    int n = 0;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        n += strstr(line, word) != NULL;
    if (f)
        fclose(f);
    return n;
}

static int count_shared_mappings(void) { return count_lines("/proc/self/maps", "rw-s"); }

/* The test must leave no children, and as many descriptors and shared mappings as before. */
static void call_clean(void (*call)(void (*)(void)), void (*body)(void))
{
    int fds = test_count_fds(), mappings = count_shared_mappings();
    call(body);
    check_no_children();
    CHECK_INT(test_count_fds(), fds);
    CHECK_INT(count_shared_mappings(), mappings);
}

#define SHARED_TEST(name) CLEAN_TEST(name, test_in_task) /* in a task, on the virtual clock */

static void *shared(size_t size)
{
    void *p = conc_shared_alloc(size);
    CHECK(p != NULL);
    CHECK_INT((uintptr_t)p % _Alignof(max_align_t), 0);
    return p;
}

static bool is_filled(const unsigned char *p, size_t size, int with)
{
    for (size_t i = 0; i < size; i++)
        if (p[i] != (unsigned char)with)
            return false;
    return true;
}

#define OPEN(name, ...)                          \
    CONC_AUTO(conc_procs, name) = {__VA_ARGS__}; \
    CHECK_INT(conc_procs_open(&name), 0)

/* ---- jobs ---- */

/* A range of memory, and its expected contents. */
typedef struct stretch {
    unsigned char *at;
    size_t size;
    int has, gets;
} stretch;

static int overwrites(void *arg)
{
    stretch *s = arg;
    if (!is_filled(s->at, s->size, s->has))
        return -EBADMSG;
    memset(s->at, s->gets, s->size);
    return 5;
}

static int overwrite(conc_procs *p, unsigned char *at, size_t size, int has, int gets)
{
    stretch s = {at, size, has, gets};
    return conc_procs_run(p, overwrites, &s, sizeof s);
}

/* ---- blocks ---- */

THREAD_TEST(zero_and_too_many_bytes_cannot_be_allocated)
{
    CHECK(conc_shared_alloc(0) == NULL);
    CHECK(conc_shared_alloc(SIZE_MAX) == NULL);
    CHECK(conc_shared_alloc(SIZE_MAX - 4096) == NULL);
    CHECK(conc_shared_alloc(SIZE_MAX / 2) == NULL);
    conc_shared_free(NULL);
}

static int fails_to_share(void *arg)
{
    (void)arg;
    conc_fail(-EXDEV, "an earlier error");
    CHECK(conc_shared_alloc(0) == NULL);
    CHECK_STR(conc_last_error(), "0 bytes of shared memory");
    CHECK(conc_shared_alloc(SIZE_MAX / 2) == NULL);
    CHECK(strstr(conc_last_error(), " bytes of shared memory") != NULL);
    return 0;
}

THREAD_TEST(a_failed_allocation_is_the_latest_error)
{
    CHECK_INT(conc_run(fails_to_share, NULL), 0);
}

THREAD_TEST(errno_is_preserved)
{
    errno = 4711;
    CHECK(conc_shared_alloc(0) == NULL);
    CHECK(conc_shared_alloc(SIZE_MAX / 2) == NULL);
    conc_shared_free(shared(100));
    conc_shared_free(NULL);
    CHECK_INT(errno, 4711);
}

THREAD_TEST(a_block_is_all_zero_even_if_an_old_one_was_there)
{
    static const size_t sizes[] = {1, 8, 100, 4095, 4096, 4097, 65536, MEGABYTE + 1};
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < CONC_LEN(sizes); i++) {
            unsigned char *p = shared(sizes[i]);
            CHECK(is_filled(p, sizes[i], 0));
            memset(p, 0xff, sizes[i]);
            conc_shared_free(p);
        }
}

/* Sizes of all kinds, small ones more often. */
static size_t size_of(int i) { return (size_t)(i * 7919 % 97 + 1) * (i % 10 ? 1 : 100); }

SHARED_TEST(many_blocks_are_separate_and_visible_to_a_worker)
{
    enum { N = 150 };
    static unsigned char *p[N];
    for (int i = 0; i < N; i++) {
        p[i] = shared(size_of(i));
        memset(p[i], i, size_of(i));
    }
    for (int i = 0; i < N; i += 3) {
        conc_shared_free(p[i]);
        p[i] = NULL;
    }
    OPEN(pool, .workers = 1);
    for (int i = 0; i < N; i++)
        if (p[i])
            CHECK_INT(overwrite(&pool, p[i], size_of(i), i, i + 1), 5);
    for (int i = 0; i < N; i++)
        if (p[i]) {
            CHECK(is_filled(p[i], size_of(i), i + 1));
            conc_shared_free(p[i]);
        }
}

THREAD_TEST(freed_blocks_are_unmapped)
{
    int fds = test_count_fds(), mappings = count_shared_mappings();
    for (int i = 0; i < 500; i++)
        conc_shared_free(shared(i % 50 ? 4096 : 16 * MEGABYTE));
    CHECK_INT(test_count_fds(), fds);
    CHECK_INT(count_shared_mappings(), mappings);
}

static void *allocates_and_frees(void *arg)
{
    for (int i = 0; i < 300; i++) {
        unsigned char *p = conc_shared_alloc(size_of(i));
        if (!p || !is_filled(p, size_of(i), 0))
            return arg;
        memset(p, i, size_of(i));
        if (!is_filled(p, size_of(i), i))
            return arg;
        conc_shared_free(p);
    }
    return NULL;
}

THREAD_TEST(threads_allocate_and_free_at_the_same_time)
{
    pthread_t t[6];
    void *wrong;
    for (int i = 0; i < 6; i++)
        CHECK_INT(pthread_create(&t[i], NULL, allocates_and_frees, "wrong"), 0);
    for (int i = 0; i < 6; i++) {
        CHECK_INT(pthread_join(t[i], &wrong), 0);
        CHECK(wrong == NULL);
    }
}

static int allocates_in_a_job(void *arg) { return allocates_and_frees(arg) ? -EIO : 5; }

SHARED_TEST(jobs_of_both_kinds_of_pools_allocate_too)
{
    int n = 0;
    OPEN(pool, .workers = 2);
    CONC_AUTO(conc_pool, threads) = {.threads = 2};
    CHECK_INT(conc_pool_open(&threads), 0);
    CHECK_INT(conc_pool_run(&threads, allocates_in_a_job, &n), 5);
    CHECK_INT(conc_procs_run(&pool, allocates_in_a_job, &n, sizeof n), 5);
    CHECK_INT(conc_offload(allocates_in_a_job, &n), 5);
}

/* ---- pools ---- */

SHARED_TEST(one_process_writes_and_the_others_read)
{
    unsigned char *p = shared(100000);
    OPEN(pool, .workers = 2);
    CHECK_INT(overwrite(&pool, p, 100000, 0, 1), 5);
    CHECK(is_filled(p, 100000, 1));
    memset(p, 2, 100000); /* after the open, and after the worker has started */
    CHECK_INT(overwrite(&pool, p, 100000, 2, 3), 5);
    CHECK(is_filled(p, 100000, 3));
    OPEN(later, .workers = 1);
    CHECK_INT(overwrite(&later, p, 100000, 3, 4), 5);
    CHECK_INT(overwrite(&pool, p, 100000, 4, 5), 5);
    CHECK_INT(overwrite(&later, p, 100000, 5, 6), 5);
    conc_shared_free(p);
}

THREAD_TEST(the_address_is_the_same_in_pool_after_pool)
{
    enum { POOLS = 20 };
    unsigned char *small = shared(10), *large = shared(3 * MEGABYTE);
    for (int i = 0; i < POOLS; i++) {
        OPEN(pool, .workers = 1);
        CHECK_INT(overwrite(&pool, small, 10, i, i + 1), 5);
        CHECK_INT(overwrite(&pool, large, 3 * MEGABYTE, i, i + 1), 5);
    }
    CHECK(is_filled(small, 10, POOLS) && is_filled(large, 3 * MEGABYTE, POOLS));
    conc_shared_free(small);
    conc_shared_free(large);
}

SHARED_TEST(a_worker_that_was_replaced_sees_the_memory_too)
{
    unsigned char *p = shared(100);
    OPEN(pool, .workers = 1);
    for (int i = 0; i < 5; i++) {
        CHECK_INT(overwrite(&pool, p, 100, i, i + 1), 5);
        CHECK_INT(conc_procs_run(&pool, kills_itself, NULL, 0), -EOWNERDEAD);
    }
    CHECK(is_filled(p, 100, 5));
    conc_shared_free(p);
}

SHARED_TEST(a_pool_continues_when_an_unused_block_is_freed)
{
    unsigned char *kept = shared(100), *freed = shared(100);
    OPEN(pool, .workers = 1);
    CHECK_INT(overwrite(&pool, kept, 100, 0, 1), 5);
    conc_shared_free(freed);
    CHECK_INT(overwrite(&pool, kept, 100, 1, 2), 5);
    CHECK_INT(conc_procs_run(&pool, kills_itself, NULL, 0), -EOWNERDEAD);
    /* a new worker, which no longer finds it */
    CHECK_INT(overwrite(&pool, kept, 100, 2, 3), 5);
    conc_shared_free(kept);
}

SHARED_TEST(a_pool_opens_when_all_blocks_are_freed_before_its_first_worker_starts)
{
    unsigned char *freed = shared(100), *later;
    OPEN(pool, .workers = 1);
    conc_shared_free(freed);
    later = shared(100);
    CHECK_INT(conc_procs_run(&pool, kills_itself, NULL, 0), -EOWNERDEAD);
    close_pool(&pool);
    OPEN(other, .workers = 1);
    CHECK_INT(overwrite(&other, later, 100, 0, 1), 5);
    CHECK(is_filled(later, 100, 1));
    conc_shared_free(later);
}

SHARED_TEST(a_large_block_is_shared_as_a_whole)
{
    size_t size = 100 * (size_t)MEGABYTE;
    unsigned char *p = shared(size);
    OPEN(pool, .workers = 1);
    for (size_t at = 0; at < size; at += 20 * (size_t)MEGABYTE - 1)
        CHECK_INT(overwrite(&pool, p + at, 1, 0, 7), 5);
    CHECK_INT(overwrite(&pool, p + size - 1, 1, 0, 8), 5);
    for (size_t at = 0; at < size; at += 20 * (size_t)MEGABYTE - 1)
        CHECK_INT(p[at], 7);
    CHECK_INT(p[size - 1], 8);
    conc_shared_free(p);
}

SHARED_TEST(shared_memory_does_not_count_in_a_workers_memory_limit)
{
    size_t size = 128 * (size_t)MEGABYTE;
    if (SANITIZED)
        return;
    unsigned char *p = shared(size);
    OPEN(pool, .workers = 1, .memory_limit = 64 * (size_t)MEGABYTE);
    CHECK_INT(overwrite(&pool, p, size, 0, 1), 5);
    CHECK_INT(p[size - 1], 1);
    conc_shared_free(p);
}

/* A worker's own memory, and the program's, in a pool that the worker opens. */
static int opens_a_pool(void *arg)
{
    stretch *s = arg;
    unsigned char *own = conc_shared_alloc(1000);
    CONC_AUTO(conc_procs, pool) = {.workers = 1};
    if (!own)
        return -ENOMEM;
    CONC_TRY(conc_procs_open(&pool));
    CONC_TRY(overwrite(&pool, own, 1000, 0, 9));
    bool written = is_filled(own, 1000, 9);
    conc_procs_close(&pool);
    conc_shared_free(own);
    memset(s->at, s->gets, s->size);
    return written ? 6 : -EBADMSG;
}

SHARED_TEST(a_worker_shares_memory_with_its_own_workers)
{
    stretch s = {shared(100), 100, 0, 7};
    OPEN(pool, .workers = 1);
    CHECK_INT(conc_procs_run(&pool, opens_a_pool, &s, sizeof s), 6);
    CHECK(is_filled(s.at, 100, 7));
    conc_shared_free(s.at);
}

/* ---- several at once ---- */

enum { WORKERS = 4, ROUNDS = 5000 };

typedef struct counters {
    atomic_int here, counted; /* here: how many have begun */
    pthread_mutex_t mutex;
    int guarded, low, high; /* both halves of a number that has to change atomically */
    bool torn;
} counters;

static void meet(counters *c)
{
    atomic_fetch_add(&c->here, 1);
    while (atomic_load(&c->here) < WORKERS)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

static int counts(void *arg)
{
    counters *c = *(counters **)arg;
    meet(c);
    for (int i = 0; i < ROUNDS; i++)
        atomic_fetch_add(&c->counted, 1);
    return 0;
}

static int counts_under_lock(void *arg)
{
    counters *c = *(counters **)arg;
    meet(c);
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&c->mutex);
        c->torn |= c->low != -c->high;
        c->guarded++;
        c->low++;
        c->high--;
        pthread_mutex_unlock(&c->mutex);
    }
    return 0;
}

static void init_mutex(counters *c)
{
    pthread_mutexattr_t a;
    CHECK_INT(pthread_mutexattr_init(&a), 0);
    CHECK_INT(pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED), 0);
    CHECK_INT(pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST), 0);
    CHECK_INT(pthread_mutex_init(&c->mutex, &a), 0);
    CHECK_INT(pthread_mutexattr_destroy(&a), 0);
}

/* As many of them at once as there are workers. */
static void run_at_once(conc_fn *fn, counters *c)
{
    counters *args[WORKERS] = {c, c, c, c};
    OPEN(pool, .workers = WORKERS);
    CHECK_INT(conc_procs_map(&pool, fn, args, WORKERS, sizeof args[0]), 0);
}

static void count_at_once(void)
{
    counters *c = shared(sizeof *c);
    run_at_once(counts, c);
    CHECK_INT(atomic_load(&c->counted), WORKERS * ROUNDS);
    conc_shared_free(c);
}

SHARED_TEST(workers_count_together_with_atomics) { count_at_once(); }

SHARED_TEST(workers_take_turns_with_a_mutex_for_several_processes)
{
    counters *c = shared(sizeof *c);
    init_mutex(c);
    run_at_once(counts_under_lock, c);
    CHECK_INT(c->guarded, WORKERS * ROUNDS);
    CHECK(!c->torn);
    CHECK_INT(pthread_mutex_destroy(&c->mutex), 0);
    conc_shared_free(c);
}

static int dies_with_the_lock(void *arg)
{
    counters *c = *(counters **)arg;
    pthread_mutex_lock(&c->mutex);
    return kill(getpid(), SIGKILL);
}

SHARED_TEST(a_robust_mutex_reports_that_its_owner_died)
{
    counters *c = shared(sizeof *c);
    init_mutex(c);
    OPEN(pool, .workers = 1);
    CHECK_INT(conc_procs_run(&pool, dies_with_the_lock, &c, sizeof c), -EOWNERDEAD);
    CHECK_INT(pthread_mutex_lock(&c->mutex), EOWNERDEAD);
    CHECK_INT(pthread_mutex_consistent(&c->mutex), 0);
    CHECK_INT(pthread_mutex_unlock(&c->mutex), 0);
    close_pool(&pool);
    CHECK_INT(pthread_mutex_destroy(&c->mutex), 0);
    conc_shared_free(c);
}
