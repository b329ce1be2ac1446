/* test_procs.c - conc_procs and its jobs: data to and from workers, which processes exist, what
 * they see of the program, and what a cancel does to them. Crashes are in test_procs_faults.c.
 *
 * Jobs report through their bytes, their results and shared memory, and wait at gates in it. Each
 * test must leave no children, and as many threads and descriptors as before.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64, aarch64-bti, riscv64, poll, seeds, valgrind,
 * gcc-asan, single, clang, static (they start processes, which emulators cannot, and which older
 * versions of Valgrind cannot wait for)
 */
#define _GNU_SOURCE 1 /* RTLD_NEXT */
#define TEST_PROCESSES
#define TEST_SPAWN
#include "pool_test.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>

/* ---- processes and threads ---- */

static int count_children(void)
{
    int n = 0;
    DIR *d = opendir("/proc");
    for (struct dirent *e; d && (e = readdir(d));)
        n += atoi(e->d_name) > 0 && parent_of(atoi(e->d_name)) == getpid();
    closedir(d);
    return n;
}

static void call_clean(void (*call)(void (*)(void)), void (*body)(void))
{
    int fds = test_count_fds(), threads = count_threads();
    signal(SIGPIPE, SIG_DFL);
    gates = conc_shared_alloc(GATES * sizeof *gates);
    CHECK(gates != NULL);
    call(body);
    conc_shared_free(gates);
    check_no_children();
    CHECK_INT(test_count_fds(), fds);
    /* otherwise there may be one more, because sanitizers start their own thread with the program's
     * first */
    if (!SANITIZED)
        check_threads(threads);
}

/* ---- jobs ---- */

static int returns_seven(void *arg)
{
    (void)arg;
    return 7;
}

static int finds_nothing(void *arg) { return arg ? -EINVAL : 7; }

static int adds_one(void *arg) { return ++*(int *)arg; }

/* A job at its own gate. */
typedef struct held {
    visit v; /* belongs to the job until it has ended */
    gate *gate;
    conc_job job;
} held;

/* Submits it, and returns when it runs. */
static void occupy(conc_procs *p, held *h, int rc)
{
    h->gate = new_gate();
    h->v = (visit){.gate = h->gate, .stays = true, .rc = rc};
    CHECK_INT(conc_procs_submit(p, &h->job, visits, &h->v, sizeof h->v), 0);
    CHECK(reaches(&h->gate->entered, 1));
}

static void let_go(held *h) { atomic_store(&h->gate->opened, 1); }

static void end_held(held *h, int rc)
{
    let_go(h);
    CHECK_INT(result_of(&h->job), rc);
}

static void check_healthy(conc_procs *p) { CHECK_INT(run_numbered(p, returns, 4711), 4711); }

/* A caller of one function. */
typedef struct caller {
    conc_fn *how;
    conc_procs *pool;
    conc_job *job;
    conc_fn *fn;
    void *arg;
    size_t size, count;
    double limit; /* time limit, in seconds; 0: none */
    int *results;
    int rc, result;
    int next; /* result of its next checkpoint */
    char text[128];
    conc_task task;
} caller;

static int by_run(void *arg)
{
    caller *c = arg;
    return conc_procs_run(c->pool, c->fn, c->arg, c->size);
}

static int by_wait(void *arg)
{
    caller *c = arg;
    return conc_job_wait(c->job, &c->result);
}

static int by_map(void *arg)
{
    caller *c = arg;
    return conc_procs_map(c->pool, c->fn, c->arg, c->count, c->size);
}

static int by_map_all(void *arg)
{
    caller *c = arg;
    return conc_procs_map_all(c->pool, c->fn, c->arg, c->count, c->size, c->results);
}

static int by_close(void *arg)
{
    caller *c = arg;
    return conc_procs_close(c->pool);
}

static int calls_once(void *arg)
{
    caller *c = arg;
    c->rc = c->result = WAITING;
    c->rc = c->limit > 0 ? conc_timeout(c->limit, c->how, c) : c->how(c);
    snprintf(c->text, sizeof c->text, "%s", conc_last_error());
    c->next = conc_sleep(0);
    return 0;
}

static void start(conc_group *g, caller *c)
{
    CHECK_INT(conc_spawn_task(g, &c->task, calls_once, c), 0);
    CHECK_INT(conc_yield(), 0);
}

static void end(conc_group *g) { CHECK_INT(conc_group_wait(g), 0); }

static void cancel_and_join(caller *c)
{
    CHECK_INT(conc_cancel(&c->task), 0);
    CHECK_INT(conc_join(&c->task, NULL), 0);
}

#define OPEN(name, ...)                                     \
    CONC_AUTO(conc_procs, name) = {.workers = __VA_ARGS__}; \
    CHECK_INT(conc_procs_open(&name), 0)

/* ---- results ---- */

/* Facts about where a job runs. */
typedef struct place {
    pid_t pid;
    bool no_task, no_loop, not_cancelled, not_asked, no_deadline;
    int slept, yielded, spawned, ran;
} place;

static int looks_around(void *arg)
{
    place *p = arg;
    p->pid = getpid();
    p->no_task = conc_self() == NULL;
    p->no_loop = conc_loop_self() == NULL;
    p->not_cancelled = !conc_cancelled();
    p->not_asked = !conc_job_cancelled();
    p->no_deadline = conc_deadline() == CONC_FOREVER;
    p->slept = conc_sleep(1);
    p->yielded = conc_yield();
    p->spawned = conc_spawn(NULL, returns_seven, NULL);
    p->ran = conc_run(returns_seven, NULL);
    return 42;
}

static void check_place(const place *p)
{
    CHECK(p->pid > 0 && p->pid != getpid());
    CHECK(p->no_task && p->no_loop && p->not_cancelled && p->not_asked && p->no_deadline);
    CHECK_INT(p->slept, -EPERM);
    CHECK_INT(p->yielded, -EPERM);
    CHECK_INT(p->spawned, -EPERM);
    CHECK_INT(p->ran, 7);
}

PROCS_TEST(a_job_runs_in_another_process_and_is_no_task)
{
    place p = {0};
    OPEN(pool, 2);
    CHECK_INT(conc_procs_run(&pool, looks_around, &p, sizeof p), 42);
    check_place(&p);
    CHECK_TIME(0);
}

static ssize_t turns_round(const void *in, size_t in_size, void *out, size_t out_size)
{
    for (size_t i = 0; i < in_size && i < out_size; i++)
        ((char *)out)[i] = ((const char *)in)[in_size - 1 - i];
    return (ssize_t)in_size;
}

/* A little of everything: returns 0, or the line of a mistake. */
static int uses_all_calls(void *arg)
{
    conc_procs *pool = arg;
    int numbers[3] = {10, 20, 30}, results[3] = {0}, n = 5, result = WAITING;
    char out[4] = "";
    conc_job j;
    place p = {0};
    if (conc_procs_run(pool, looks_around, &p, sizeof p) != 42 || p.pid == getpid() || p.ran != 7)
        return __LINE__;
    if (conc_procs_submit(pool, &j, adds_one, &n, sizeof n) || conc_job_wait(&j, &result) ||
        result != 6 || n != 6)
        return __LINE__;
    if (conc_procs_map(pool, adds_one, numbers, 3, sizeof(int)) || numbers[2] != 31)
        return __LINE__;
    if (conc_procs_map_all(pool, adds_one, numbers, 3, sizeof(int), results) || results[1] != 22)
        return __LINE__;
    if (conc_procs_call(pool, turns_round, "abc", 3, out, sizeof out) != 3 ||
        strcmp(out, "cba") != 0)
        return __LINE__;
    return 0;
}

THREAD_TEST(a_plain_thread_uses_a_pool_too)
{
    OPEN(pool, 2);
    CHECK_INT(uses_all_calls(&pool), 0);
}

PROCS_TEST(a_job_of_a_thread_pool_uses_a_process_pool)
{
    conc_job jobs[8];
    OPEN(pool, 2);
    CONC_AUTO(conc_pool, threads) = {.threads = 4};
    CHECK_INT(conc_pool_open(&threads), 0);
    for (int i = 0; i < 8; i++)
        CHECK_INT(conc_pool_submit(&threads, &jobs[i], uses_all_calls, &pool), 0);
    for (int i = 0; i < 8; i++)
        CHECK_INT(result_of(&jobs[i]), 0);
    CHECK_INT(conc_offload(uses_all_calls, &pool), 0);
}

THREAD_TEST(threads_and_runs_use_one_pool_at_the_same_time)
{
    side s[4];
    OPEN(pool, 2);
    for (int i = 0; i < 4; i++) {
        s[i] = (side){uses_all_calls, &pool, .in_run = i % 2, .real_clock = true};
        side_start(&s[i]);
    }
    for (int i = 0; i < 4; i++)
        CHECK_INT(side_end(&s[i]), 0);
}

PROCS_TEST(three_hundred_tasks_use_a_pool_at_the_same_time)
{
    enum { N = 300 };
    static caller c[N];
    static int numbers[N];
    conc_group g = {0};
    OPEN(pool, 2);
    for (int i = 0; i < N; i++) {
        numbers[i] = i;
        c[i] = (caller){by_run, .pool = &pool, .fn = adds_one, .arg = &numbers[i],
                        .size = sizeof(int)};
        CHECK_INT(conc_spawn_task(&g, &c[i].task, calls_once, &c[i]), 0);
    }
    end(&g);
    for (int i = 0; i < N; i++) {
        CHECK_INT(c[i].rc, i + 1);
        CHECK_INT(numbers[i], i + 1);
    }
}

/* Bytes of a pattern, preceded by their number, if it fits. */
static unsigned char byte_at(size_t i) { return (unsigned char)(i ^ i >> 8 ^ i >> 16); }

static void fill(unsigned char *data, size_t n)
{
    for (size_t i = 0; i < n; i++)
        data[i] = byte_at(i);
}

static bool is_filled(const unsigned char *data, size_t n, unsigned char with)
{
    for (size_t i = 0; i < n; i++)
        if (data[i] != (byte_at(i) ^ with))
            return false;
    return true;
}

typedef struct bulk {
    size_t n;
    unsigned char data[];
} bulk;

/* Checks all bytes and inverts them. */
static int inverts(void *arg)
{
    bulk *b = arg;
    if (!is_filled(b->data, b->n, 0))
        return -EBADMSG;
    for (size_t i = 0; i < b->n; i++)
        b->data[i] ^= 0xff;
    return (int)(b->n % 1000);
}

static void check_bulk(conc_procs *p, size_t n)
{
    bulk *b = malloc(sizeof *b + n + 16);
    CHECK(b != NULL);
    b->n = n;
    fill(b->data, n);
    memset(b->data + n, 0x5a, 16);
    CHECK_INT(conc_procs_run(p, inverts, b, sizeof *b + n), (int)(n % 1000));
    CHECK(is_filled(b->data, n, 0xff));
    for (int i = 0; i < 16; i++)
        CHECK_INT(b->data[n + (size_t)i], 0x5a);
    free(b);
}

PROCS_TEST(data_of_any_size_goes_to_the_worker_and_comes_back)
{
    static const size_t edges[] = {64,    256,    4096,   16384,  32768,
                                   65536, 131072, 212992, 262144, MEGABYTE};
    OPEN(pool, 1);
    for (size_t i = 0; i < CONC_LEN(edges); i++)
        for (size_t around = 0; around < 3; around++)
            check_bulk(&pool, edges[i] + around - 1 - sizeof(bulk));
    for (size_t n = 0; n < 70; n++)
        check_bulk(&pool, n);
    check_bulk(&pool, 10 * MEGABYTE);
    check_bulk(&pool, 10 * MEGABYTE + 1);
    check_bulk(&pool, 1);
}

static int says_one_byte(void *arg)
{
    unsigned char *byte = arg;
    return (*byte)++;
}

PROCS_TEST(one_byte_is_data_and_so_is_none)
{
    unsigned char bytes[] = {1, 255, 3};
    OPEN(pool, 1);
    CHECK_INT(conc_procs_run(&pool, says_one_byte, &bytes[1], 1), 255);
    CHECK(bytes[0] == 1 && bytes[1] == 0 && bytes[2] == 3);
    CHECK_INT(conc_procs_run(&pool, returns_seven, NULL, 0), 7);
    CHECK_INT(conc_procs_run(&pool, returns_seven, bytes, 0), 7);
    CHECK(bytes[0] == 1 && bytes[1] == 0 && bytes[2] == 3);
}

static int tells_alignment(void *arg) { return (int)((uintptr_t)arg % _Alignof(max_align_t)); }

PROCS_TEST(the_bytes_are_aligned_for_anything_in_the_worker)
{
    char bytes[100];
    max_align_t elements[20];
    int results[20];
    OPEN(pool, 2);
    for (size_t i = 0; i < 20; i++)
        CHECK_INT(conc_procs_run(&pool, tells_alignment, bytes + i, 13 + i), 0);
    CHECK_INT(conc_procs_map_all(&pool, tells_alignment, elements, 20, sizeof elements[0], results),
              0);
    for (int i = 0; i < 20; i++)
        CHECK_INT(results[i], 0);
}

PROCS_TEST(a_result_is_handed_over_whatever_it_is)
{
    int values[] = {0,       1,          42,         INT_MAX,     -1,
                    -EIO,    -ECANCELED, -ETIMEDOUT, -EOWNERDEAD, -ENOTRECOVERABLE,
                    INT_MIN, -EPIPE,     -EAGAIN};
    int results[CONC_LEN(values)];
    OPEN(pool, 2);
    for (size_t i = 0; i < CONC_LEN(values); i++) {
        conc_job j;
        CHECK_INT(run_numbered(&pool, returns, values[i]), values[i]);
        CHECK_INT(conc_procs_submit(&pool, &j, returns, &values[i], sizeof(int)), 0);
        CHECK_INT(result_of(&j), values[i]);
        CHECK_INT(conc_yield(), 0);
    }
    CHECK_INT(conc_procs_map_all(&pool, returns, values, CONC_LEN(values), sizeof(int), results),
              0);
    for (size_t i = 0; i < CONC_LEN(values); i++)
        CHECK_INT(results[i], values[i]);
    check_healthy(&pool);
}

static int counts_and_fails(void *arg)
{
    ++*(int *)arg;
    return -EIO;
}

PROCS_TEST(bytes_that_a_job_wrote_come_back_with_an_error_too)
{
    int n = 5, results[1];
    OPEN(pool, 1);
    CHECK_INT(conc_procs_run(&pool, counts_and_fails, &n, sizeof n), -EIO);
    CHECK_INT(n, 6);
    CHECK_INT(conc_procs_map_all(&pool, counts_and_fails, &n, 1, sizeof n, results), 0);
    CHECK_INT(n, 7);
    CHECK_INT(results[0], -EIO);
}

PROCS_TEST(errno_is_preserved)
{
    OPEN(pool, 1);
    errno = 4711;
    check_healthy(&pool);
    CHECK_INT(errno, 4711);
    close_pool(&pool);
    CHECK_INT(errno, 4711);
}

/* ---- error texts ---- */

typedef struct failure {
    int rc, rc_of_words;
    char words[200];
} failure;

static int fails(void *arg)
{
    failure *f = arg;
    if (f->words[0])
        conc_fail(f->rc_of_words, "%s", f->words);
    return f->rc;
}

#define LONG_WORDS                                                                                 \
    "a hundred bytes: 6789 123456789 123456789 123456789 123456789 123456789 123456789 123456789 " \
    "123456789"

static failure failures[] = {{-EPROTO, -EPROTO, "line 12: no colon"},
                             {-EIO, 0, ""},
                             {-EIO, -EPROTO, "for another error"},
                             {-EIO, -EIO, LONG_WORDS},
                             {7, 0, ""}};

static void check_words(size_t i, const char *text)
{
    if (i == 0)
        CHECK_STR(text, "line 12: no colon");
    else if (i == 3)
        CHECK(strlen(text) >= 90 && strncmp(text, LONG_WORDS, strlen(text)) == 0);
    else if (i < 4)
        CHECK_STR(text, conc_strerror(-EIO));
}

PROCS_TEST(the_error_text_comes_with_the_result)
{
    OPEN(pool, 1);
    for (size_t i = 0; i < CONC_LEN(failures); i++) {
        conc_job j;
        CHECK_INT(conc_procs_run(&pool, fails, &failures[i], sizeof failures[i]), failures[i].rc);
        check_words(i, conc_last_error());
        CHECK_INT(conc_procs_submit(&pool, &j, fails, &failures[i], sizeof failures[i]), 0);
        CHECK_INT(run_numbered(&pool, returns, -ENOENT), -ENOENT);
        CHECK_STR(conc_last_error(), conc_strerror(-ENOENT));
        CHECK_INT(result_of(&j), failures[i].rc);
        check_words(i, conc_last_error());
    }
}

PROCS_TEST(a_map_returns_the_text_of_the_first_error)
{
    failure two[] = {{7, 0, ""}, {-EPROTO, -EPROTO, "line 12: no colon"}};
    OPEN(pool, 1);
    CHECK_INT(conc_procs_map(&pool, fails, two, 2, sizeof two[0]), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
}

static ssize_t fails_to_answer(const void *in, size_t in_size, void *out, size_t out_size)
{
    (void)in, (void)in_size, (void)out, (void)out_size;
    return conc_fail(-EPROTO, "line 12: no colon");
}

PROCS_TEST(a_call_returns_the_error_text)
{
    char out[8];
    OPEN(pool, 1);
    CHECK_INT(conc_procs_call(&pool, fails_to_answer, "in", 2, out, sizeof out), -EPROTO);
    CHECK_STR(conc_last_error(), "line 12: no colon");
}

/* ---- misuse ---- */

THREAD_TEST(a_pool_has_to_be_open)
{
    int n = 0, results[1];
    conc_job j;
    conc_procs pool = {0}, negative = {.workers = -1};
    for (int again = 0, expected = -EINVAL; again < 2; again++, expected = -EPIPE) {
        CHECK_INT(conc_procs_run(&pool, returns, &n, sizeof n), expected);
        CHECK_INT(conc_procs_submit(&pool, &j, returns, &n, sizeof n), expected);
        CHECK_INT(conc_procs_map(&pool, returns, &n, 1, sizeof n), expected);
        CHECK_INT(conc_procs_map_all(&pool, returns, &n, 1, sizeof n, results), expected);
        CHECK_INT(conc_procs_call(&pool, turns_round, &n, sizeof n, &n, sizeof n), expected);
        if (again)
            break;
        close_pool(&pool); /* was never opened */
        CHECK_INT(conc_procs_open(&pool), 0);
        CHECK_INT(conc_procs_open(&pool), -EBUSY);
        check_healthy(&pool);
        close_pool(&pool);
        close_pool(&pool);
    }
    CHECK_INT(conc_procs_open(&pool), 0); /* anew */
    check_healthy(&pool);
    close_pool(&pool);
    CHECK_INT(conc_procs_open(&negative), -EINVAL);
    close_pool(&negative);
    CHECK_INT(conc_procs_open(NULL), -EINVAL);
}

static void check_senseless(conc_procs *p)
{
    int n = 3;
    conc_job j;
    CHECK_INT(conc_procs_run(p, NULL, &n, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_run(NULL, returns, &n, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_run(p, returns, NULL, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_submit(p, NULL, returns, &n, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_submit(p, &j, NULL, &n, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_submit(p, &j, returns, NULL, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_submit(NULL, &j, returns, &n, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_map(p, NULL, &n, 1, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_map(p, returns, NULL, 1, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_map(p, returns, &n, SIZE_MAX / 2, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_map_all(p, returns, &n, SIZE_MAX, SIZE_MAX, NULL), -EINVAL);
    CHECK_INT(conc_procs_map(NULL, returns, &n, 1, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_call(p, NULL, &n, sizeof n, &n, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_call(p, turns_round, NULL, sizeof n, &n, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_call(p, turns_round, &n, sizeof n, NULL, sizeof n), -EINVAL);
    CHECK_INT(conc_procs_call(NULL, turns_round, &n, sizeof n, &n, sizeof n), -EINVAL);
    CHECK_INT(n, 3);
}

PROCS_TEST(invalid_calls_are_refused)
{
    OPEN(pool, 1);
    check_senseless(&pool);
    check_healthy(&pool);
}

THREAD_TEST(invalid_calls_of_a_thread_are_refused)
{
    OPEN(pool, 1);
    check_senseless(&pool);
    check_healthy(&pool);
}

THREAD_TEST(data_that_exceeds_all_memory_is_an_error)
{
    char byte = 0;
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 8, SIZE_MAX / 2, SIZE_MAX / 4};
    OPEN(pool, 1);
    for (size_t i = 0; i < CONC_LEN(sizes) && !SANITIZED; i++) {
        int rc = conc_procs_run(&pool, returns_seven, &byte, sizes[i]);
        CHECK(rc == -ENOMEM || rc == -EINVAL);
    }
    for (size_t i = 0; i < CONC_LEN(sizes) && !SANITIZED; i++) {
        ssize_t rc = conc_procs_call(&pool, turns_round, &byte, 1, &byte, sizes[i]);
        /* the file need not be that large until so much is written */
        CHECK(rc == -ENOMEM || rc == -EINVAL || rc == 1);
    }
    check_healthy(&pool);
}

PROCS_TEST(a_job_in_use_is_busy_and_any_other_storage_is_fine)
{
    static const int patterns[] = {0x00, 0x01, 0x5a, 0x80, 0xff};
    int n = 1;
    held h;
    conc_job queued;
    OPEN(pool, 1);
    for (size_t i = 0; i < CONC_LEN(patterns); i++) {
        memset(&queued, patterns[i], sizeof queued);
        CHECK_INT(conc_procs_submit(&pool, &queued, adds_one, &n, sizeof n), 0);
        CHECK_INT(result_of(&queued), 2 + (int)i);
    }
    occupy(&pool, &h, 7);
    CHECK_INT(conc_procs_submit(&pool, &queued, adds_one, &n, sizeof n), 0);
    CHECK_INT(conc_procs_submit(&pool, &queued, adds_one, &n, sizeof n), -EBUSY);
    CHECK_INT(conc_procs_submit(&pool, &h.job, adds_one, &n, sizeof n), -EBUSY);
    CHECK(!conc_job_done(&queued) && !conc_job_done(&h.job));
    end_held(&h, 7);
    CHECK_INT(result_of(&queued), 7);
    CHECK_INT(n, 7);
}

static struct {
    conc_procs *pool;
    conc_job job;
    int n, ran, mapped, closed, waited;
    ssize_t called;
    int submitted;
} posted;

static void calls_in_a_post(void *arg)
{
    (void)arg;
    posted.ran = conc_procs_run(posted.pool, returns, &posted.n, sizeof posted.n);
    posted.mapped = conc_procs_map(posted.pool, returns, &posted.n, 1, sizeof posted.n);
    posted.called = conc_procs_call(posted.pool, turns_round, "a", 1, &posted.n, sizeof posted.n);
    posted.submitted =
        conc_procs_submit(posted.pool, &posted.job, returns, &posted.n, sizeof posted.n);
    posted.waited = conc_job_wait(&posted.job, NULL);
    posted.closed = conc_procs_close(posted.pool);
}

PROCS_TEST(a_posted_function_submits_and_does_not_wait)
{
    OPEN(pool, 1);
    posted.pool = &pool;
    posted.n = 5;
    CHECK_INT(conc_post(conc_loop_self(), calls_in_a_post, NULL), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(posted.ran, -EPERM);
    CHECK_INT(posted.mapped, -EPERM);
    CHECK_INT(posted.called, -EPERM);
    CHECK_INT(posted.waited, -EPERM);
    CHECK_INT(posted.closed, -EPERM);
    CHECK_INT(posted.submitted, 0);
    CHECK_INT(result_of(&posted.job), 5);
}

/* ---- maps ---- */

static int squares(void *arg)
{
    int *n = arg, value = *n;
    *n = value * value;
    return value;
}

PROCS_TEST(a_map_gives_every_result_in_the_order_of_the_array)
{
    enum { N = 1000 };
    static int numbers[N], results[N];
    OPEN(pool, 3);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++)
            numbers[i] = i;
        CHECK_INT(round ? conc_procs_map_all(&pool, squares, numbers, N, sizeof(int), results)
                        : conc_procs_map(&pool, squares, numbers, N, sizeof(int)),
                  0);
        for (int i = 0; i < N; i++)
            CHECK_INT(numbers[i], i * i);
    }
    for (int i = 0; i < N; i++)
        CHECK_INT(results[i], i);
}

PROCS_TEST(a_map_of_nothing_does_nothing)
{
    int n = 3, results[5] = {0};
    OPEN(pool, 2);
    CHECK_INT(conc_procs_map(&pool, adds_one, &n, 0, sizeof n), 0);
    CHECK_INT(conc_procs_map(&pool, adds_one, NULL, 0, sizeof n), 0);
    CHECK_INT(conc_procs_map_all(&pool, adds_one, NULL, 0, 0, NULL), 0);
    CHECK_INT(count_children(), 0);
    CHECK_INT(conc_procs_map(&pool, finds_nothing, NULL, 5, 0), 0); /* five elements of no bytes */
    CHECK_INT(conc_procs_map_all(&pool, finds_nothing, &n, 5, 0, results), 0);
    CHECK_INT(results[0] + results[1] + results[2] + results[3] + results[4], 35);
    CHECK_INT(conc_procs_map_all(&pool, adds_one, &n, 1, sizeof n, NULL), 0);
    CHECK_INT(n, 4);
}

PROCS_TEST(large_elements_are_mapped_too)
{
    enum { N = 5, SIZE = 2 * MEGABYTE + 16 };
    char *all = calloc(N, SIZE);
    CHECK(all != NULL);
    OPEN(pool, 2);
    for (int i = 0; i < N; i++) {
        bulk *b = (bulk *)(void *)(all + (size_t)i * SIZE);
        b->n = SIZE - sizeof *b;
        fill(b->data, b->n);
    }
    CHECK_INT(conc_procs_map(&pool, inverts, all, N, SIZE), 0);
    for (int i = 0; i < N; i++)
        CHECK(
            is_filled(((bulk *)(void *)(all + (size_t)i * SIZE))->data, SIZE - sizeof(bulk), 0xff));
    free(all);
}

/* An element of a map: counts itself at the gate, and fails or succeeds. */
static int enters(void *arg)
{
    visit *v = arg;
    atomic_fetch_add(&v->gate->entered, 1);
    v->pid = getpid();
    return v->rc;
}

static visit *elements(gate *g, int count)
{
    visit *v = calloc((size_t)count, sizeof *v);
    CHECK(v != NULL);
    for (int i = 0; i < count; i++)
        v[i].gate = g;
    return v;
}

PROCS_TEST(the_first_error_keeps_the_rest_of_a_map_from_starting)
{
    enum { N = 2000, FAILING = 6 };
    gate *at = new_gate();
    visit *v = elements(at, N);
    v[FAILING].rc = -EDOM;
    OPEN(pool, 1);
    CHECK_INT(conc_procs_map(&pool, enters, v, N, sizeof *v), -EDOM);
    CHECK_INT(atomic_load(&at->entered), FAILING + 1);
    for (int i = 0; i < N; i++)
        CHECK_INT(v[i].pid != 0, i <= FAILING);
    check_healthy(&pool);
    free(v);
}

PROCS_TEST(an_error_keeps_other_workers_from_starting_the_rest_of_a_map)
{
    enum { N = 20000 };
    gate *at = new_gate();
    visit *v = elements(at, N);
    v[0].rc = -EDOM;
    OPEN(pool, 3);
    CHECK_INT(conc_procs_map(&pool, enters, v, N, sizeof *v), -EDOM);
    CHECK(atomic_load(&at->entered) < N);
    free(v);
}

PROCS_TEST(elements_that_wait_for_a_busy_worker_are_not_begun_after_an_error)
{
    enum { N = 2000 };
    gate *at = new_gate();
    visit *v = elements(at, N);
    held other;
    v[0].rc = -EDOM;
    OPEN(pool, 2);
    occupy(&pool, &other, 5);
    CHECK_INT(conc_procs_map(&pool, enters, v, N, sizeof *v),
              -EDOM); /* before the other job ends */
    CHECK_INT(atomic_load(&at->entered), 1);
    end_held(&other, 5);
    check_healthy(&pool);
    CHECK_INT(atomic_load(&at->entered), 1);
    free(v);
}

/* An element that waits in one of several ways, or fails while others wait. */
typedef struct waiting_element {
    gate *gate;
    enum { FAILS, BLOCKS, RECEIVES, RUNS, SHIELDS } way;
    int result;
} waiting_element;

static int sleeps_long(void *arg) { return conc_sleep(*(double *)arg); }

static int blocks(void *arg) { return conc_block(*(double *)arg); }

static int waits_or_fails(void *arg)
{
    waiting_element *e = arg;
    conc_channel none = CONC_CHANNEL(int, 1);
    double seconds = 600;
    int item;
    if (e->way == FAILS)
        return reaches(&e->gate->entered, 1) ? -EDOM : -EIO;
    atomic_fetch_add(&e->gate->entered, 1);
    switch (e->way) {
    case RECEIVES: e->result = conc_channel_recv(&none, &item); break;
    case RUNS: e->result = conc_run(sleeps_long, &seconds); break;
    case SHIELDS:
        seconds = 0.05;
        e->result = conc_shield(CONC_FOREVER, blocks, &seconds);
        break;
    default: e->result = conc_block(seconds);
    }
    conc_channel_destroy(&none);
    return e->result;
}

PROCS_TEST(the_first_error_of_a_map_ends_the_waits_of_elements_in_other_workers)
{
    OPEN(pool, 2);
    for (int i = 0; i < 12; i++) {
        waiting_element e[2] = {{.gate = new_gate()}};
        e[1] = e[0];
        e[i % 2].way = BLOCKS + i % 4;
        CHECK_INT(conc_procs_map(&pool, waits_or_fails, e, 2, sizeof e[0]), -EDOM);
        CHECK_INT(e[i % 2].result, e[i % 2].way == SHIELDS ? 0 : -ECANCELED);
        double briefly = 0.001;
        CHECK_INT(conc_procs_run(&pool, blocks, &briefly, sizeof briefly), 0);
    }
}

PROCS_TEST(a_map_of_all_continues_after_errors)
{
    enum { N = 500 };
    static int results[N];
    gate *at = new_gate();
    visit *v = elements(at, N);
    OPEN(pool, 3);
    for (int i = 0; i < N; i++)
        v[i].rc = i % 3 ? i : -i - 1;
    CHECK_INT(conc_procs_map_all(&pool, enters, v, N, sizeof *v, results), 0);
    CHECK_INT(atomic_load(&at->entered), N);
    for (int i = 0; i < N; i++)
        CHECK_INT(results[i], v[i].rc);
    free(v);
}

/* One of many maps and calls that share the workers. */
typedef struct mapper {
    conc_procs *pool;
    int index, wrong;
} mapper;

static int maps_often(void *arg)
{
    enum { N = 70 };
    mapper *m = arg;
    int numbers[N], results[N];
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < N; i++)
            numbers[i] = m->index * 1000 + i;
        int rc = round % 2 ? conc_procs_map(m->pool, squares, numbers, N, sizeof(int))
                           : conc_procs_map_all(m->pool, squares, numbers, N, sizeof(int), results);
        for (int i = 0, was; i < N; i++) {
            was = m->index * 1000 + i;
            m->wrong += rc != 0 || numbers[i] != was * was || (round % 2 == 0 && results[i] != was);
        }
        m->wrong += run_numbered(m->pool, adds_one, round) != round + 1;
    }
    return 0;
}

PROCS_TEST(many_maps_share_the_workers)
{
    mapper m[12];
    side s[2];
    OPEN(pool, 3);
    for (int i = 0; i < 12; i++)
        m[i] = (mapper){&pool, i, 0};
    for (int i = 0; i < 2; i++) {
        s[i] = (side){maps_often, &m[10 + i], .in_run = i, .real_clock = true};
        side_start(&s[i]);
    }
    CHECK_INT(conc_map(maps_often, m, 10, sizeof m[0]), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(side_end(&s[i]), 0);
    for (int i = 0; i < 12; i++)
        CHECK_INT(m[i].wrong, 0);
}

PROCS_TEST(two_hundred_thousand_elements_are_mapped)
{
    enum { N = 200000 };
    int *numbers = calloc(N, sizeof *numbers), *results = malloc(N * sizeof *results);
    CHECK(numbers && results);
    OPEN(pool, 2);
    CHECK_INT(conc_procs_map_all(&pool, adds_one, numbers, N, sizeof *numbers, results), 0);
    for (int i = 0; i < N; i++)
        if (numbers[i] != 1 || results[i] != 1)
            test_fail(__FILE__, __LINE__, "element %d is %d, its result %d", i, numbers[i],
                      results[i]);
    free(numbers);
    free(results);
}

PROCS_TEST(a_map_has_as_many_elements_at_work_as_there_are_workers)
{
    enum { N = 3 };
    gate *at = new_gate();
    visit *v = elements(at, N);
    OPEN(pool, N);
    for (int i = 0; i < N; i++)
        v[i].meet = N;
    CHECK_INT(conc_procs_map(&pool, visits, v, N, sizeof *v), 0);
    CHECK(v[0].pid != v[1].pid && v[1].pid != v[2].pid && v[0].pid != v[2].pid);
    free(v);
}

/* ---- calls with bytes in and out ---- */

PROCS_TEST(a_call_takes_and_returns_bytes)
{
    char out[10] = "unchanged";
    OPEN(pool, 1);
    CHECK_INT(conc_procs_call(&pool, turns_round, "hello", 5, out, sizeof out), 5);
    CHECK_STR(out, "ollehnged"); /* the other bytes are unchanged */
    CHECK_INT(conc_procs_call(&pool, turns_round, "a", 1, out, 1), 1);
    CHECK_STR(out, "allehnged");
    CHECK_INT(conc_procs_call(&pool, turns_round, NULL, 0, NULL, 0), 0);
    CHECK_INT(conc_procs_call(&pool, turns_round, "", 0, out, sizeof out), 0);
    CHECK_STR(out, "allehnged");
}

static ssize_t returns_number(const void *in, size_t in_size, void *out, size_t out_size)
{
    ssize_t n;
    (void)in_size;
    memcpy(&n, in, sizeof n);
    for (size_t i = 0; i < out_size; i++)
        ((unsigned char *)out)[i] = byte_at(i);
    return n;
}

static ssize_t call_for(conc_procs *p, ssize_t number, void *out, size_t out_size)
{
    return conc_procs_call(p, returns_number, &number, sizeof number, out, out_size);
}

PROCS_TEST(a_call_that_returns_more_than_fits_is_too_large)
{
    unsigned char out[100];
    OPEN(pool, 1);
    CHECK_INT(call_for(&pool, 101, out, 100), -EMSGSIZE);
    CHECK_INT(call_for(&pool, 100, out, 100), 100);
    CHECK(is_filled(out, 100, 0));
    CHECK_INT(call_for(&pool, 1, NULL, 0), -EMSGSIZE);
    CHECK_INT(call_for(&pool, SSIZE_MAX, out, 100), -EMSGSIZE);
    CHECK_INT(conc_procs_call(&pool, turns_round, "hello", 5, out, 4), -EMSGSIZE);
    check_healthy(&pool);
}

PROCS_TEST(a_call_that_fails_returns_its_error)
{
    unsigned char out[100];
    OPEN(pool, 1);
    CHECK_INT(call_for(&pool, -EILSEQ, out, 100), -EILSEQ);
    CHECK_INT(call_for(&pool, -1, NULL, 0), -1);
    CHECK_INT(call_for(&pool, -EOWNERDEAD, out, 100), -EOWNERDEAD);
    check_healthy(&pool);
}

PROCS_TEST(a_call_returns_megabytes_for_a_few_bytes_and_vice_versa)
{
    enum { N = 10 * MEGABYTE };
    unsigned char *data = malloc(N), *back = malloc(N);
    CHECK(data && back);
    OPEN(pool, 1);
    for (ssize_t n = N - 1; n > 0; n /= 7) {
        memset(back, 0, N);
        CHECK_INT(call_for(&pool, n, back, N), n);
        CHECK(is_filled(back, (size_t)n, 0) && back[n] == 0);
    }
    fill(data, N);
    CHECK_INT(conc_procs_call(&pool, turns_round, data, N, back, N), N);
    for (size_t i = 0; i < N; i++)
        if (back[i] != data[N - 1 - i])
            test_fail(__FILE__, __LINE__, "byte %zu is wrong", i);
    CHECK_INT(conc_procs_call(&pool, turns_round, data, N, back, 1), -EMSGSIZE);
    free(data);
    free(back);
}

/* ---- which processes ---- */

static int count_different(const visit *v, size_t n)
{
    int different = 0;
    for (size_t i = 0, k; i < n; i++) {
        for (k = 0; k < i && v[k].pid != v[i].pid; k++)
            ;
        different += k == i;
    }
    return different;
}

/* Runs `count` jobs, the first of which wait until `workers` of them run. Returns whether they ran
 * in that many processes, none of them this one. */
static void check_crowd(conc_procs *p, int workers, size_t count)
{
    conc_job *jobs = calloc(count, sizeof *jobs);
    visit *v = calloc(count, sizeof *v);
    CHECK(jobs && v);
    for (size_t i = 0; i < count; i++)
        CHECK_INT(conc_procs_submit(p, &jobs[i], visits, &v[i], sizeof v[i]), 0);
    for (size_t i = 0; i < count; i++) {
        CHECK_INT(result_of(&jobs[i]), 0);
        CHECK(v[i].pid > 0 && v[i].pid != getpid());
    }
    CHECK(count_different(v, count) <= workers);
    free(jobs);
    free(v);
}

static void check_meeting(conc_procs *p, gate *g, int workers)
{
    conc_job jobs[64];
    visit v[64];
    int n = workers < 64 ? workers : 64;
    for (int i = 0; i < n; i++) {
        v[i] = (visit){.gate = g, .meet = n};
        CHECK_INT(conc_procs_submit(p, &jobs[i], visits, &v[i], sizeof v[i]), 0);
    }
    for (int i = 0; i < n; i++)
        CHECK_INT(result_of(&jobs[i]), 0);
    CHECK_INT(count_different(v, (size_t)n), n);
}

PROCS_TEST(many_jobs_run_in_as_many_processes_as_there_are_workers)
{
    gate *at = new_gate();
    OPEN(pool, 4);
    check_meeting(&pool, at, 4);
    check_crowd(&pool, 4, 200);
    CHECK_INT(count_children(), 4);
    close_pool(&pool);
}

THREAD_TEST(a_pool_has_one_worker_for_each_processor_by_default)
{
    gate *at = new_gate();
    conc_procs pool = {0};
    CHECK_INT(conc_procs_open(&pool), 0);
    check_meeting(&pool, at, (int)sysconf(_SC_NPROCESSORS_ONLN));
    close_pool(&pool);
}

PROCS_TEST(jobs_one_after_another_use_one_process)
{
    OPEN(pool, 4);
    pid_t first = worker_of(&pool);
    for (int i = 0; i < 50; i++)
        CHECK_INT(worker_of(&pool), first);
    CHECK_INT(count_children(), 1);
}

PROCS_TEST(workers_start_when_they_are_first_needed)
{
    held h[3];
    OPEN(pool, 3);
    CHECK_INT(count_children(), 0);
    for (int i = 0; i < 3; i++) {
        occupy(&pool, &h[i], i);
        CHECK_INT(count_children(), i + 1);
    }
    for (int i = 0; i < 3; i++)
        end_held(&h[i], i);
}

THREAD_TEST(a_pool_that_was_not_used_closes_and_so_does_one_whose_worker_only_begins)
{
    conc_job j;
    int n = 3;
    for (int i = 0; i < 10; i++) {
        OPEN(unused, 2);
        OPEN(pool, 2);
        CHECK_INT(conc_procs_submit(&pool, &j, adds_one, &n, sizeof n), 0);
        close_pool(&pool);
        CHECK(conc_job_done(&j));
        CHECK_INT(n, 4 + i);
    }
}

/* A line of the log that jobs write together. */
typedef struct entry {
    gate *gate;
    int *log, number;
} entry;

static int notes(void *arg)
{
    entry *e = arg;
    e->log[atomic_fetch_add(&e->gate->entered, 1)] = e->number;
    return 0;
}

PROCS_TEST(jobs_run_in_fifo_order)
{
    enum { N = 300 };
    static conc_job jobs[N];
    static entry e[N];
    gate *at = new_gate();
    int *log = conc_shared_alloc(N * sizeof *log);
    CHECK(log != NULL);
    OPEN(pool, 1);
    for (int i = 0; i < N; i++) {
        e[i] = (entry){at, log, i};
        CHECK_INT(conc_procs_submit(&pool, &jobs[i], notes, &e[i], sizeof e[i]), 0);
    }
    for (int i = N - 1; i >= 0; i--)
        CHECK_INT(result_of(&jobs[i]), 0);
    for (int i = 0; i < N; i++)
        CHECK_INT(log[i], i);
    close_pool(&pool);
    conc_shared_free(log);
}

/* ---- runs and threads ---- */

static int uses_pool_twice(void *arg)
{
    conc_procs *pool = arg;
    visit v = {0};
    CONC_TRY(conc_procs_run(pool, visits, &v, sizeof v));
    return uses_all_calls(pool) ? -EIO : (int)v.pid;
}

THREAD_TEST(a_pool_is_opened_before_a_run_and_used_by_two)
{
    OPEN(pool, 1);
    int first = conc_run(uses_pool_twice, &pool);
    CHECK(first > 0);
    CHECK_INT(conc_run(uses_pool_twice, &pool), first);
    CHECK_INT(worker_of(&pool), first);
}

static conc_procs left_open;

static int submits_and_returns(void *arg)
{
    held *h = arg;
    h->gate = new_gate();
    h->v = (visit){.gate = h->gate, .stays = true, .rc = 3};
    return conc_procs_submit(&left_open, &h->job, visits, &h->v, sizeof h->v);
}

THREAD_TEST(a_job_outlives_the_run_that_submitted_it)
{
    held h[2];
    conc_options virtual_clock = {.virtual_clock = true};
    left_open.workers = 2;
    CHECK_INT(conc_procs_open(&left_open), 0);
    CHECK_INT(conc_run(submits_and_returns, &h[0]), 0);
    CHECK_INT(conc_run_with(&virtual_clock, submits_and_returns, &h[1]), 0);
    for (int i = 0; i < 2; i++)
        end_held(&h[i], 3);
    close_pool(&left_open);
}

static int opens_and_leaves(void *arg)
{
    (void)arg;
    left_open.workers = 2;
    CONC_TRY(conc_procs_open(&left_open));
    return uses_all_calls(&left_open);
}

THREAD_TEST(a_pool_that_a_run_opened_outlives_it)
{
    CHECK_INT(conc_run(opens_and_leaves, NULL), 0);
    CHECK_INT(uses_all_calls(&left_open), 0);
    close_pool(&left_open);
}

static int submits_held(void *arg)
{
    caller *c = arg;
    visit *v = c->arg;
    return conc_procs_open(c->pool) ? -EIO
                                    : conc_procs_submit(c->pool, c->job, visits, v, sizeof *v);
}

THREAD_TEST(workers_live_on_when_the_thread_that_opened_the_pool_has_ended)
{
    conc_procs pool = {.workers = 2};
    conc_job j;
    gate *at = new_gate();
    visit v = {.gate = at, .stays = true, .rc = 5};
    caller c = {.pool = &pool, .job = &j, .arg = &v};
    side opener = {submits_held, &c, .in_run = false};
    side_start(&opener);
    CHECK(reaches(&at->entered, 1));
    CHECK_INT(side_end(&opener), 0);
    CHECK_INT(uses_all_calls(&pool), 0);
    CHECK(!conc_job_done(&j));
    atomic_store(&at->opened, 1);
    CHECK_INT(result_of(&j), 5);
    close_pool(&pool);
}

PROCS_TEST(the_loop_continues_while_jobs_run)
{
    conc_group g = {0};
    OPEN(pool, 1);
    gate *at = new_gate();
    visit v = {.gate = at, .stays = true, .rc = 5};
    caller c = {by_run, .pool = &pool, .fn = visits, .arg = &v, .size = sizeof v};
    start(&g, &c);
    for (int i = 0; i < 10; i++)
        CHECK_INT(conc_yield(), 0);
    CHECK(reaches(&at->entered, 1));
    CHECK_INT(c.rc, WAITING);
    atomic_store(&at->opened, 1);
    end(&g);
    CHECK_INT(c.rc, 5);
    CHECK_TIME(0); /* which stood still for the job */
    close_pool(&pool);
}

static int uses_the_module(void *arg)
{
    static const char *const argv[] = {"true", NULL};
    int n = *(int *)arg, status = -1;
    CONC_AUTO(conc_pool, threads) = {.threads = 2};
    CONC_AUTO(conc_procs, procs) = {.workers = 1};
    CONC_AUTO(conc_child, child) = {.argv = argv};
    CONC_TRY(conc_pool_open(&threads));
    CONC_TRY(conc_pool_run(&threads, adds_one, &n));
    CONC_TRY(conc_procs_open(&procs));
    CONC_TRY(conc_procs_run(&procs, adds_one, &n, sizeof n));
    CONC_TRY(conc_offload(adds_one, &n));
    CONC_TRY(conc_run(adds_one, &n));
    CONC_TRY(conc_child_start(&child));
    CONC_TRY(conc_child_wait(&child, &status));
    return status ? -EIO : n;
}

PROCS_TEST(a_job_may_use_its_own_pools_and_runs_and_programs)
{
    OPEN(pool, 1);
    CHECK_INT(run_numbered(&pool, uses_the_module, 10), 14);
    CHECK_INT(run_numbered(&pool, uses_the_module, 20), 24);
}

static int asks_for_the_mark(void *arg)
{
    FILE *f = popen("echo ${CONC__WORKER-unset}", "r");
    bool read = f && fgets(arg, 64, f);
    return f && pclose(f) == 0 && read ? 0 : -EIO;
}

PROCS_TEST(programs_that_a_job_starts_are_no_workers)
{
    char text[64] = "";
    OPEN(pool, 1);
    CHECK_INT(conc_procs_run(&pool, asks_for_the_mark, text, sizeof text), 0);
    CHECK_STR(text, "unset\n");
    CHECK(getenv("CONC__WORKER") == NULL);
}

static void uses_an_inherited_pool(void)
{
    int n = 1;
    conc_job j;
    conc_procs *pool = posted.pool;
    CHECK_INT(conc_procs_run(pool, returns, &n, sizeof n), -EPERM);
    CHECK_INT(conc_procs_submit(pool, &j, returns, &n, sizeof n), -EPERM);
    CHECK_INT(conc_procs_map(pool, returns, &n, 1, sizeof n), -EPERM);
    close_pool(pool);
    CHECK_INT(conc_procs_open(pool), 0); /* a new one */
    check_healthy(pool);
    close_pool(pool);
    check_no_children();
}

THREAD_TEST(in_a_forked_child_an_inherited_pool_is_dead)
{
    char text[4096];
    held h;
    OPEN(pool, 2);
    occupy(&pool, &h, 3);
    pid_t before = worker_of(&pool);
    posted.pool = &pool;
    if (test_in_process(uses_an_inherited_pool, text, sizeof text))
        test_fail(__FILE__, __LINE__, "%s", text);
    CHECK_INT(worker_of(&pool), before);
    end_held(&h, 3);
}

/* A child of the program that keeps its inherited descriptors open until it is killed. */
static void forked_child_main(void)
{
    for (;;)
        pause();
}

static atomic_int forks_at_start;  /* when a program is started next: -1; then the child */
static atomic_int signal_at_start; /* a signal that it receives on starting; 0: none */

int posix_spawn(SPAWN_PARAMETERS)
{
    if (atomic_load(&forks_at_start) == -1) {
        pid_t child = fork();
        if (child == 0)
            forked_child_main();
        atomic_store(&forks_at_start, child);
    }
    int rc = system_spawn(pid, path, actions, attributes, argv, env);
    if (rc == 0 && atomic_load(&signal_at_start))
        kill(*pid, atomic_load(&signal_at_start));
    return rc;
}

static void end_forked_child(pid_t child)
{
    CHECK(child > 0);
    CHECK_INT(kill(child, SIGKILL), 0);
    CHECK_INT(waitpid(child, NULL, 0), child);
}

THREAD_TEST(a_worker_starts_although_the_program_forks_at_that_moment)
{
    OPEN(pool, 1);
    atomic_store(&forks_at_start, -1);
    check_healthy(&pool);
    end_forked_child(atomic_load(&forks_at_start));
}

/* Like those of a terminal or a service manager, which all processes receive. */
THREAD_TEST(workers_that_start_leave_signals_to_the_program)
{
    static const int numbers[] = {SIGINT, SIGTERM};
    for (int i = 0; i < 20; i++) {
        OPEN(pool, 2);
        atomic_store(&signal_at_start, numbers[i % 2]);
        CHECK_INT(run_numbered(&pool, adds_one, i), i + 1);
        atomic_store(&signal_at_start, 0);
    }
}

static int counts_jobs(void *arg)
{
    static int jobs;
    (void)arg;
    return ++jobs;
}

THREAD_TEST(a_worker_is_replaced_after_max_jobs)
{
    CONC_AUTO(conc_procs, pool) = {.workers = 1, .max_jobs = 3};
    int results[8];
    CHECK_INT(conc_procs_open(&pool), 0);
    for (int i = 0; i < 10; i++)
        CHECK_INT(conc_procs_run(&pool, counts_jobs, NULL, 0), i % 3 + 1);
    CHECK_INT(conc_procs_run(&pool, counts_jobs, NULL, 0), 2);
    CHECK_INT(conc_procs_run(&pool, counts_jobs, NULL, 0), 3);
    CHECK_INT(conc_procs_map_all(&pool, counts_jobs, NULL, 8, 0, results), 0);
    for (int i = 0; i < 8; i++) {
        CHECK(results[i] >= 1 && results[i] <= 3);
        CHECK_INT(results[i], i % 3 + 1);
    }
}

THREAD_TEST(no_worker_has_a_negative_number_of_jobs)
{
    conc_procs pool = {.workers = 1, .max_jobs = -1};
    CHECK_INT(conc_procs_open(&pool), -EINVAL);
}

static int reads_environment(void *arg)
{
    const char *value = getenv(arg);
    return value ? atoi(value) : -ENOENT;
}

static void *changes_environment(void *arg)
{
    char value[4096];
    memset(value, 'x', sizeof value - 1);
    value[sizeof value - 1] = 0;
    for (int i = 0; !atomic_load((atomic_bool *)arg); i++) {
        char name[16];
        snprintf(name, sizeof name, "V%d", i % 200);
        if (i / 200 % 2)
            unsetenv(name);
        else
            setenv(name, value + i % 4000, 1);
    }
    return NULL;
}

/* The environment is copied when the pool is opened. */
THREAD_TEST(workers_have_the_openers_environment_even_if_that_changes_later)
{
    char name[] = "PROCS_TEST_VALUE";
    atomic_bool stop = false;
    pthread_t changer;
    setenv(name, "7", 1);
    OPEN(pool, 1);
    setenv(name, "8", 1);
    CHECK_INT(pthread_create(&changer, NULL, changes_environment, &stop), 0);
    for (int i = 0; i < 20; i++) {
        CHECK_INT(conc_procs_run(&pool, reads_environment, name, sizeof name), 7);
        CHECK_INT(kill(worker_of(&pool), SIGKILL), 0);
    }
    atomic_store(&stop, true);
    CHECK_INT(pthread_join(changer, NULL), 0);
    unsetenv(name);
}

PROCS_TEST(memory_above_the_file_size_limit_is_an_error_with_a_text)
{
    enum { SIZE = 4 * MEGABYTE };
    struct rlimit limit, low;
    char *bytes = calloc(1, SIZE);
    CHECK(bytes != NULL);
    OPEN(pool, 1);
    check_healthy(&pool);
    CHECK_INT(getrlimit(RLIMIT_FSIZE, &limit), 0);
    low = (struct rlimit){MEGABYTE, limit.rlim_max};
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &low), 0);
    CHECK_INT(conc_procs_run(&pool, returns_seven, bytes, SIZE), -EFBIG);
    CHECK(conc_shared_alloc(SIZE) == NULL);
    check_healthy(&pool);
    low.rlim_cur = 4096;
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &low), 0);
    CHECK_INT(kill(worker_of(&pool), SIGKILL), 0);
    CHECK_INT(conc_procs_run(&pool, returns_seven, NULL, 0), -EAGAIN);
    CHECK_CONTAINS(conc_last_error(), "file size limit");
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
    check_healthy(&pool);
    free(bytes);
}

static int blocked_signal(void *arg)
{
    sigset_t mask;
    (void)arg;
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    return sigismember(&mask, SIGUSR2) * 2 + sigismember(&mask, SIGUSR1);
}

THREAD_TEST(jobs_have_the_signal_mask_of_the_opener)
{
    sigset_t mask, before;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    CHECK_INT(pthread_sigmask(SIG_SETMASK, &mask, &before), 0);
    OPEN(pool, 1);
    sigaddset(&mask, SIGUSR1);
    CHECK_INT(pthread_sigmask(SIG_SETMASK, &mask, NULL), 0);
    CHECK_INT(conc_procs_run(&pool, blocked_signal, NULL, 0), 2);
    CHECK_INT(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
}

/* ---- globals, init and libraries ---- */

static int global = 5;

static int counts_global(void *arg)
{
    (void)arg;
    return global++;
}

static int run_counts(conc_procs *p) { return conc_procs_run(p, counts_global, NULL, 0); }

PROCS_TEST(workers_see_globals_as_at_the_start_of_the_program_and_keep_their_own)
{
    global = 100;
    OPEN(pool, 1);
    global = 200;
    CHECK_INT(run_counts(&pool), 5);
    CHECK_INT(run_counts(&pool), 6);
    CHECK_INT(run_counts(&pool), 7);
    CHECK_INT(global, 200);
}

static int constructed;

__attribute__((constructor)) static void construct(void) { constructed = 5; }

static int tells_constructed(void *arg)
{
    (void)arg;
    return constructed;
}

THREAD_TEST(constructors_have_run_before_the_jobs_of_a_worker)
{
    OPEN(pool, 1);
    CHECK_INT(conc_procs_run(&pool, tells_constructed, NULL, 0), 5);
}

static int inits;

static int init_counts(void)
{
    inits++;
    global = 1000;
    return 1; /* no error */
}

static int tells_inits(void *arg)
{
    visit *v = arg;
    visits(v);
    v->rc = inits;
    return global;
}

PROCS_TEST(init_is_called_once_in_each_worker_before_its_jobs)
{
    enum { N = 20 };
    conc_job jobs[N];
    visit v[N];
    gate *at = new_gate();
    CONC_AUTO(conc_procs, pool) = {.workers = 3, .init = init_counts};
    CHECK_INT(conc_procs_open(&pool), 0);
    for (int i = 0; i < N; i++) {
        v[i] = (visit){.gate = at, .meet = 3};
        CHECK_INT(conc_procs_submit(&pool, &jobs[i], tells_inits, &v[i], sizeof v[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        CHECK_INT(result_of(&jobs[i]), 1000);
        CHECK_INT(v[i].rc, 1);
    }
    CHECK_INT(count_different(v, N), 3);
    CHECK_INT(inits, 0);
    close_pool(&pool);
}

static int init_fails(void) { return conc_fail(-EACCES, "no licence"); }
static int init_fails_silently(void) { return -EACCES; }
static int init_crashes(void) { return kill(getpid(), SIGKILL); }
static int init_leaves(void) { _exit(9); }

/* Queued jobs, and later ones, return the error, and nothing hangs. */
static void check_broken(int (*init)(void), const char *words)
{
    enum { N = 20 };
    conc_job jobs[N];
    int n = 3, results[N], many[N] = {0};
    conc_procs pool = {.workers = 2, .init = init};
    CHECK_INT(conc_procs_open(&pool), 0);
    for (int i = 0; i < N; i++) {
        int rc = conc_procs_submit(&pool, &jobs[i], adds_one, &n, sizeof n);
        CHECK_INT(rc ? rc : result_of(&jobs[i]), -ENOTRECOVERABLE);
        CHECK_CONTAINS(conc_last_error(), words);
    }
    CHECK_INT(conc_procs_run(&pool, adds_one, &n, sizeof n), -ENOTRECOVERABLE);
    CHECK_CONTAINS(conc_last_error(), words);
    CHECK_INT(conc_procs_map(&pool, adds_one, &n, 1, sizeof n), -ENOTRECOVERABLE);
    CHECK_CONTAINS(conc_last_error(), words);
    CHECK_INT(conc_procs_map_all(&pool, adds_one, many, N, sizeof(int), results), -ENOTRECOVERABLE);
    for (int i = 0; i < N; i++)
        CHECK_INT(results[i], -ENOTRECOVERABLE);
    CHECK_INT(many[0] + n, 3);
    close_pool(&pool);
    check_no_children();
}

PROCS_TEST(a_failing_init_breaks_the_pool)
{
    check_broken(init_fails, "no licence");
    check_broken(init_fails_silently, "");
}

PROCS_TEST(a_worker_that_dies_in_init_breaks_the_pool)
{
    check_broken(init_crashes, "");
    check_broken(init_leaves, "");
}

/* The gate is passed in the environment, because init has no argument. */
static int init_fails_at_gate(void)
{
    void *p = NULL;
    sscanf(getenv("TEST_GATE"), "%p", &p);
    gate *g = p;
    atomic_fetch_add(&g->entered, 1);
    while (!atomic_load(&g->opened))
        nap();
    return conc_fail(-EACCES, "no licence");
}

/* The first worker starts, and no other does. */
static int init_works_once(void)
{
    void *p = NULL;
    sscanf(getenv("TEST_GATE"), "%p", &p);
    gate *g = p;
    if (atomic_fetch_add(&g->entered, 1) > 0)
        _exit(9);
    return 0;
}

static int dies_at_gate(void *arg)
{
    gate *at = *(gate **)arg;
    while (!atomic_load(&at->opened))
        nap();
    _exit(3);
}

PROCS_TEST(a_pool_breaks_when_its_last_worker_dies_and_no_other_starts)
{
    conc_job jobs[3];
    char text[32];
    int n = 3;
    gate *at = new_gate();
    conc_procs pool = {.workers = 2, .init = init_works_once};
    snprintf(text, sizeof text, "%p", (void *)at);
    setenv("TEST_GATE", text, 1);
    CHECK_INT(conc_procs_open(&pool), 0);
    CHECK_INT(conc_procs_submit(&pool, &jobs[0], dies_at_gate, &at, sizeof at), 0);
    CHECK(reaches(&at->entered, 1));
    for (int i = 1; i < 3; i++)
        CHECK_INT(conc_procs_submit(&pool, &jobs[i], adds_one, &n, sizeof n), 0);
    CHECK(reaches(&at->entered, 4));
    atomic_store(&at->opened, 1);
    CHECK_INT(result_of(&jobs[0]), -EOWNERDEAD);
    for (int i = 1; i < 3; i++) {
        CHECK_INT(result_of(&jobs[i]), -ENOTRECOVERABLE);
        CHECK_CONTAINS(conc_last_error(), "status 9");
    }
    close_pool(&pool);
}

/* Afterwards the worker cannot tell the program that it has replied. */
static int init_closes_its_socket(void)
{
    struct stat st;
    for (int fd = 3; fd < 100; fd++)
        if (fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode))
            close(fd);
    return 0;
}

PROCS_TEST(workers_that_end_after_init_and_before_a_job_break_the_pool)
{
    conc_job job;
    int n = 3;
    conc_procs pool = {.workers = 2, .init = init_closes_its_socket};
    CHECK_INT(conc_procs_open(&pool), 0);
    CHECK_INT(conc_procs_submit(&pool, &job, adds_one, &n, sizeof n), 0);
    while (!conc_job_done(&job)) /* no call into conc watches the workers meanwhile */
        nap();
    CHECK_INT(result_of(&job), -ENOTRECOVERABLE);
    CHECK_CONTAINS(conc_last_error(), "status 1");
    close_pool(&pool);
}

PROCS_TEST(jobs_that_are_queued_when_the_pool_breaks_get_its_error)
{
    enum { N = 100 };
    static conc_job jobs[N];
    char text[32];
    int n = 3;
    gate *at = new_gate();
    conc_procs pool = {.workers = 2, .init = init_fails_at_gate};
    snprintf(text, sizeof text, "%p", (void *)at);
    setenv("TEST_GATE", text, 1);
    CHECK_INT(conc_procs_open(&pool), 0);
    for (int i = 0; i < N; i++)
        CHECK_INT(conc_procs_submit(&pool, &jobs[i], adds_one, &n, sizeof n), 0);
    CHECK(reaches(&at->entered, 1));
    atomic_store(&at->opened, 1);
    for (int i = 0; i < N; i++) {
        CHECK_INT(result_of(&jobs[i]), -ENOTRECOVERABLE);
        CHECK_CONTAINS(conc_last_error(), "no licence");
    }
    close_pool(&pool);
    CHECK_INT(n, 3);
    pool.init = NULL;
    CHECK_INT(conc_procs_open(&pool), 0);
    check_healthy(&pool);
    close_pool(&pool);
}

/* Compiles this text to a library in a new directory, or in the existing one. Returns false if
 * there is no compiler. */
static bool make_library(const char *name, const char *text)
{
    char command[600];
    if (!directory[0])
        make_directory();
    FILE *f = fopen(path_of("source.c"), "w");
    CHECK(f != NULL);
    CHECK(fputs(text, f) >= 0);
    CHECK_INT(fclose(f), 0);
    snprintf(command, sizeof command, "cc -shared -fPIC -o %s/%s %s/source.c 2>%s/errors",
             directory, name, directory, directory);
    return system(command) == 0;
}

static conc_fn *load_job(const char *path)
{
    conc_fn *fn = NULL;
    void *library = dlopen(path, RTLD_NOW),
         *symbol = library ? dlsym(library, "library_job") : NULL;
    if (!symbol)
        test_fail(__FILE__, __LINE__, "%s", dlerror());
    memcpy(&fn, &symbol, sizeof fn);
    return fn;
}

static void remove_directory(void)
{
    static const char *const names[] = {"source.c", "errors", "one.so", "two.so"};
    for (size_t i = 0; i < CONC_LEN(names); i++)
        unlink(path_of(names[i]));
    CHECK_INT(rmdir(directory), 0);
}

#define LIBRARY(number)                                                                           \
    "static int calls; int library_job(void *arg) { return *(int *)arg * " #number " + calls++; " \
    "}\n"

THREAD_TEST(functions_of_libraries_that_were_loaded_meanwhile_run_in_workers)
{
    if (make_library("one.so", LIBRARY(10)) && make_library("two.so", LIBRARY(100))) {
        conc_fn *one = load_job(path_of("one.so")), *two = NULL;
        for (int round = 0; round < 2; round++) {
            OPEN(pool, 1);
            CHECK_INT(run_numbered(&pool, one, 7), 70);
            CHECK_INT(run_numbered(&pool, one, 8), 81); /* the worker keeps it */
            two = load_job(path_of("two.so"));
            CHECK_INT(run_numbered(&pool, two, 7), 700);
            CHECK_INT(run_numbered(&pool, returns, 7), 7);
            CHECK_INT(run_numbered(&pool, one, 9), 92);
        }
    }
    remove_directory();
}

THREAD_TEST(a_library_that_the_worker_cannot_load_is_an_error_of_that_job)
{
    if (make_library("one.so", LIBRARY(10))) {
        conc_fn *fn = load_job(path_of("one.so"));
        CHECK_INT(unlink(path_of("one.so")), 0);
        OPEN(pool, 1);
        CHECK(run_numbered(&pool, fn, 7) < 0);
        check_healthy(&pool);
    }
    remove_directory();
}

PROCS_TEST(a_library_that_was_replaced_is_an_error_of_its_jobs)
{
    if (make_library("one.so", LIBRARY(10))) {
        conc_fn *fn = load_job(path_of("one.so"));
        OPEN(pool, 2);
        CHECK_INT(run_numbered(&pool, fn, 7), 70);
        CHECK_INT(unlink(path_of("one.so")), 0);
        if (make_library("one.so", "int before(void) { return 1; }\n" LIBRARY(1000))) {
            CHECK_INT(run_numbered(&pool, fn, 7), 71); /* the worker has the program's library */
            CHECK_INT(kill(worker_of(&pool), SIGKILL), 0);
            CHECK_INT(run_numbered(&pool, fn, 7), -ENOEXEC);
            CHECK_CONTAINS(conc_last_error(), "a different build");
        }
        check_healthy(&pool);
    }
    remove_directory();
}

THREAD_TEST(workers_find_a_library_by_its_relative_path_when_the_program_has_changed_its_directory)
{
    if (make_library("one.so", LIBRARY(10))) {
        CHECK_INT(chdir(directory), 0);
        conc_fn *fn = load_job("./one.so");
        OPEN(pool, 1);
        CHECK_INT(chdir("/"), 0);
        CHECK_INT(run_numbered(&pool, fn, 7), 70);
    }
    remove_directory();
}

THREAD_TEST(a_function_in_no_module_is_an_error)
{
    void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    conc_fn *fn = NULL;
    CHECK(page != MAP_FAILED);
    memcpy(&fn, &page, sizeof fn);
    OPEN(pool, 1);
    CHECK(run_numbered(&pool, fn, 7) < 0);
    check_healthy(&pool);
    munmap(page, 4096);
}

PROCS_TEST(the_error_of_a_function_in_no_module_names_it)
{
    void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    conc_fn *fn = NULL;
    CHECK(page != MAP_FAILED);
    memcpy(&fn, &page, sizeof fn);
    OPEN(pool, 1);
    CHECK_INT(run_numbered(&pool, fn, 7), -EINVAL);
    CHECK_CONTAINS(conc_last_error(), "not in any module");
    munmap(page, 4096);
}

/* ---- what workers inherit ---- */

typedef struct descriptors {
    dev_t devices[3];
    ino_t numbers[3]; /* files that the parent has open */
    int open, kept_over_exec, of_the_parent;
} descriptors;

static int lists_descriptors(void *arg)
{
    descriptors *d = arg;
    struct stat s;
    for (int fd = 3; fd < 1024; fd++) {
        int flags = fcntl(fd, F_GETFD);
        d->open += flags >= 0;
        d->kept_over_exec += flags >= 0 && !(flags & FD_CLOEXEC);
        for (int i = 0; i < 3 && flags >= 0; i++)
            if (fstat(fd, &s) == 0 && s.st_dev == d->devices[i] && s.st_ino == d->numbers[i])
                d->of_the_parent++;
    }
    return 0;
}

PROCS_TEST(workers_inherit_no_other_descriptors)
{
    int fds[3], ends[2];
    descriptors d = {0};
    struct stat s;
    CHECK_INT(pipe(ends), 0);
    fds[0] = fcntl(ends[0], F_DUPFD, 200); /* none of these is close-on-exec */
    fds[1] = fcntl(ends[1], F_DUPFD, 3);
    fds[2] = open("/", O_RDONLY);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(fstat(fds[i], &s), 0);
        d.devices[i] = s.st_dev;
        d.numbers[i] = s.st_ino;
    }
    OPEN(pool, 1);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_procs_run(&pool, lists_descriptors, &d, sizeof d), 0);
        CHECK_INT(d.of_the_parent, 0);
        CHECK_INT(d.kept_over_exec, 0);
        CHECK(d.open < 20);
    }
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    close(ends[0]);
    close(ends[1]);
}

typedef struct standard {
    dev_t devices[3];
    ino_t numbers[3];
    char first;
    int got;
} standard;

static int looks_at_standard(void *arg)
{
    standard *s = arg;
    struct stat t;
    for (int fd = 0; fd < 3; fd++)
        if (fstat(fd, &t) == 0) {
            s->devices[fd] = t.st_dev;
            s->numbers[fd] = t.st_ino;
        }
    s->got = (int)read(0, &s->first, 1);
    return 0;
}

/* Replaces this descriptor with another one; restore() undoes that. */
static int replace(int fd, int by)
{
    int kept = fcntl(fd, F_DUPFD_CLOEXEC, 200);
    by >= 0 ? dup2(by, fd) : close(fd);
    return kept;
}

static void restore(int fd, int kept)
{
    dup2(kept, fd);
    close(kept);
}

static void check_standard(void)
{
    int ends[2];
    standard here = {0}, there = {0};
    char own;
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(write(ends[1], "x", 1), 1);
    int kept = replace(0, ends[0]);
    conc_procs pool = {.workers = 1};
    CHECK_INT(conc_procs_open(&pool), 0);
    CHECK_INT(conc_procs_run(&pool, looks_at_standard, &there, sizeof there), 0);
    close_pool(&pool);
    CHECK_INT(read(0, &own, 1), 1); /* it still exists */
    close(ends[1]);
    looks_at_standard(&here);
    restore(0, kept);
    close(ends[0]);
    CHECK_INT(there.got, 0); /* at the former end of the file */
    CHECK(there.numbers[0] && there.numbers[0] != here.numbers[0]);
    for (int fd = 1; fd < 3; fd++)
        CHECK(here.devices[fd] == there.devices[fd] && here.numbers[fd] == there.numbers[fd]);
}

PROCS_TEST(workers_have_the_standard_output_and_error_and_an_empty_input) { check_standard(); }

static int prints_or_dies(void *arg)
{
    const int *number = arg;
    if (*number % 2)
        return kill(getpid(), SIGKILL);
    return printf("%d\n", *number) < 0 ? -EIO : 0;
}

PROCS_TEST(an_elements_output_is_kept_when_the_next_one_dies)
{
    enum { N = 20 };
    int ends[2], numbers[N], n = 0, next;
    CHECK_INT(pipe(ends), 0);
    for (int i = 0; i < N; i++)
        numbers[i] = i;
    fflush(stdout);
    int kept = replace(1, ends[1]);
    close(ends[1]);
    conc_procs pool = {.workers = 1};
    int rc = conc_procs_open(&pool);
    if (rc == 0)
        rc = conc_procs_map_all(&pool, prints_or_dies, numbers, N, sizeof numbers[0], NULL);
    close_pool(&pool);
    restore(1, kept);
    CHECK_INT(rc, 0);
    FILE *printed = fdopen(ends[0], "r");
    CHECK(printed != NULL);
    for (; fscanf(printed, "%d", &next) == 1; n++)
        CHECK_INT(next, 2 * n);
    fclose(printed);
    CHECK_INT(n, N / 2);
}

static int adds_one_and_prints(void *arg)
{
    printf("what goes nowhere, and should not go to where the worker and the program meet");
    fprintf(stderr, "%*d", 10000, 1);
    return adds_one(arg);
}

/* Standard descriptors are closed, and jobs print. Returns 6. */
static int run_without_standard(void)
{
    int kept[3], rc, n = 0;
    conc_procs pool = {.workers = 2};
    for (int fd = 0; fd < 3; fd++)
        kept[fd] = replace(fd, -1);
    rc = conc_procs_open(&pool);
    for (int i = 0; i < 6 && rc == i; i++)
        rc = conc_procs_run(&pool, adds_one_and_prints, &n, sizeof n);
    conc_procs_close(&pool);
    for (int fd = 0; fd < 3; fd++)
        restore(fd, kept[fd]);
    return rc;
}

THREAD_TEST(a_program_without_standard_descriptors_has_workers_too)
{
    CHECK_INT(run_without_standard(), 6);
}

THREAD_TEST(a_program_without_an_environment_has_workers_too)
{
    CHECK_INT(clearenv(), 0);
    OPEN(pool, 1);
    check_healthy(&pool);
    CHECK_INT(run_numbered(&pool, uses_the_module, 10), 14);
}

static int uses_stack(void *arg)
{
    volatile char bytes[MEGABYTE];
    for (size_t i = 0; i < sizeof bytes; i += 1000)
        bytes[i] = 1;
    return bytes[0] + bytes[MEGABYTE / 1000 * 1000] + *(int *)arg;
}

PROCS_TEST(jobs_have_a_whole_stack)
{
    OPEN(pool, 1);
    CHECK_INT(run_numbered(&pool, uses_stack, 5), 7);
}

typedef struct dispositions {
    /* the first signal that is blocked, or whose action is not the default; those left to the
     * program have handlers */
    int blocked, other;
} dispositions;

/* Do sanitizers catch this signal? */
static bool is_fault(int number)
{
    return number == SIGSEGV || number == SIGBUS || number == SIGFPE || number == SIGILL ||
           number == SIGABRT || number == SIGTRAP || number == SIGSYS;
}

static int looks_at_signals(void *arg)
{
    dispositions *d = arg;
    sigset_t mask;
    struct sigaction a;
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    for (int i = 1; i < 65; i++) {
        if (!d->blocked && sigismember(&mask, i) == 1)
            d->blocked = i;
        if (sigaction(i, NULL, &a) || (SANITIZED && is_fault(i)))
            continue;
        bool left = i == SIGINT || i == SIGTERM;
        if (!d->other && (left ? a.sa_handler == SIG_IGN : a.sa_handler != SIG_DFL))
            d->other = i;
    }
    return 0;
}

static void on_signal(int number) { (void)number; }

static void check_signals(void)
{
    dispositions d = {0};
    for (int i = 1; i < 65; i++) /* fails for some */
        if (!is_fault(i))
            signal(i, SIG_DFL);
    signal(SIGUSR1, on_signal);
    signal(SIGTERM, on_signal);
    CONC_AUTO(conc_procs, pool) = {.workers = 1};
    CHECK_INT(conc_procs_open(&pool), 0);
    CHECK_INT(conc_procs_run(&pool, looks_at_signals, &d, sizeof d), 0);
    CHECK_INT(d.blocked, 0); /* not the signals that the run blocks */
    CHECK_INT(d.other, 0);
}

PROCS_TEST(signals_have_their_default_actions_in_workers) { check_signals(); }

/* A handler after which no system call is restarted. */
static void disturb(long microseconds)
{
    struct sigaction action = {.sa_flags = 0};
    action.sa_handler = on_signal;
    CHECK_INT(sigaction(SIGALRM, &action, NULL), 0);
    struct itimerval timer = {{0, microseconds}, {0, microseconds}};
    CHECK_INT(setitimer(ITIMER_REAL, &timer, NULL), 0);
}

static void check_disturbed(void)
{
    disturb(500);
    for (int i = 0; i < 5; i++) {
        OPEN(pool, 2);
        CHECK_INT(uses_all_calls(&pool), 0);
        check_bulk(&pool, MEGABYTE);
        for (int k = 0; k < 50; k++)
            CHECK_INT(run_numbered(&pool, adds_one, k), k + 1);
    }
    disturb(0);
}

THREAD_TEST(system_calls_that_signals_interrupt_are_made_again) { check_disturbed(); }
REAL_TEST(system_calls_that_signals_interrupt_in_a_run_are_made_again) { check_disturbed(); }

static int interrupts_itself(void *arg)
{
    (void)arg;
    return kill(getpid(), SIGINT) || raise(SIGINT) ? -EIO : 3;
}

PROCS_TEST(workers_leave_the_signals_of_a_terminal_and_a_service_manager_to_the_program)
{
    OPEN(pool, 1);
    pid_t worker = worker_of(&pool);
    CHECK_INT(conc_procs_run(&pool, interrupts_itself, NULL, 0), 3);
    CHECK_INT(kill(worker, SIGINT), 0);
    CHECK_INT(kill(worker, SIGTERM), 0);
    CHECK_INT(worker_of(&pool), worker);
}

static int runs_kill(void *arg)
{
    (void)arg;
    int status = system("kill -INT $$; exit 7");
    return WIFSIGNALED(status) ? WTERMSIG(status) : -EIO;
}

PROCS_TEST(programs_that_a_job_starts_do_not_ignore_signals)
{
    OPEN(pool, 1);
    CHECK_INT(conc_procs_run(&pool, runs_kill, NULL, 0), SIGINT);
}

static int sees_limit(void *arg)
{
    size_t *size = arg;
    char *volatile p = malloc(*size);
    bool there = p != NULL;
    if (there)
        memset(p, 1, *size);
    free(p);
    return there;
}

static void check_memory_limit(void)
{
    size_t small = 16 * MEGABYTE, large = 256 * (size_t)MEGABYTE;
    struct rlimit before, after;
    getrlimit(RLIMIT_DATA, &before);
    CONC_AUTO(conc_procs, pool) = {.workers = 1, .memory_limit = 128 * (size_t)MEGABYTE};
    CHECK_INT(conc_procs_open(&pool), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_procs_run(&pool, sees_limit, &small, sizeof small), 1);
        CHECK_INT(conc_procs_run(&pool, sees_limit, &large, sizeof large), 0);
    }
    getrlimit(RLIMIT_DATA, &after);
    CHECK_INT(before.rlim_cur, after.rlim_cur); /* not this process's */
    OPEN(unlimited, 1);
    CHECK_INT(conc_procs_run(&unlimited, sees_limit, &large, sizeof large), 1);
}

PROCS_TEST(workers_have_no_more_memory_than_the_limit)
{
    if (!SANITIZED)
        check_memory_limit();
}

/* ---- output ---- */

/* Returns what fn, in another process, writes to standard output. */
static int output_of(void (*fn)(void), char *text, size_t size)
{
    int out[2], status;
    size_t length = 0;
    CHECK_INT(pipe(out), 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(out[1], 1);
        close(out[0]);
        close(out[1]);
        fn();
        fflush(NULL);
        _exit(0);
    }
    close(out[1]);
    for (ssize_t n; (n = read(out[0], text + length, size - 1 - length)) > 0;)
        length += (size_t)n;
    text[length] = 0;
    close(out[0]);
    CHECK_INT(waitpid(child, &status, 0), child);
    return status;
}

static int prints(void *arg)
{
    int *n = arg;
    printf("job %d.", *n);
    return *n == 3 ? -EIO : 0;
}

static void prints_in_jobs(void)
{
    conc_procs pool = {.workers = 1};
    printf("before.");
    if (conc_procs_open(&pool))
        _exit(3);
    for (int i = 1; i < 5; i++)
        if (run_numbered(&pool, prints, i) > 0)
            _exit(4);
    printf("between.");
    int numbers[] = {5, 6, 7};
    if (conc_procs_map(&pool, prints, numbers, 3, sizeof(int)))
        _exit(5);
    if (conc_procs_close(&pool))
        _exit(6);
    printf("after.");
}

/* The output of each worker and of the program appears once, and in order. */
static void check_printing(void)
{
    char text[1000], own[1000] = "", jobs[1000] = "";
    CHECK_INT(output_of(prints_in_jobs, text, sizeof text), 0);
    for (char *rest = text, *word; (word = strtok_r(rest, ".", &rest));) {
        strcat(strncmp(word, "job", 3) ? own : jobs, word);
        strcat(strncmp(word, "job", 3) ? own : jobs, ".");
    }
    CHECK_STR(own, "before.between.after.");
    CHECK_STR(jobs, "job 1.job 2.job 3.job 4.job 5.job 6.job 7.");
}

THREAD_TEST(jobs_output_appears_once_and_in_order) { check_printing(); }

static void prints_and_waits(void)
{
    char text[1000] = "";
    int out[2], n = 1;
    if (pipe(out))
        _exit(3);
    int kept = replace(1, out[1]);
    conc_procs pool = {.workers = 1};
    if (conc_procs_open(&pool) || conc_procs_run(&pool, prints, &n, sizeof n))
        _exit(4);
    restore(1, kept);
    if (read(out[0], text, sizeof text - 1) != 6 || strcmp(text, "job 1.") != 0)
        _exit(5);
    conc_procs_close(&pool);
}

THREAD_TEST(a_jobs_output_precedes_its_result)
{
    char text[1000];
    CHECK_INT(output_of(prints_and_waits, text, sizeof text), 0);
}

static int floods(void *arg)
{
    static char bytes[MEGABYTE];
    memset(bytes, 'x', sizeof bytes);
    for (size_t written = 0; written < sizeof bytes;) {
        ssize_t n = write(2, bytes + written, sizeof bytes - written);
        if (n < 0)
            return -errno;
        written += (size_t)n;
    }
    return *(int *)arg;
}

/* Reads what the job writes until it ends. */
static size_t drain_until_done(int fd, conc_job *j)
{
    static char bytes[65536];
    size_t sum = 0;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    for (bool done = false, last; !done; done = last) {
        last = conc_job_done(j);
        for (ssize_t n; (n = read(fd, bytes, sizeof bytes)) > 0;)
            sum += (size_t)n;
        nap();
    }
    return sum;
}

PROCS_TEST(a_worker_that_floods_standard_error_delays_no_other)
{
    int ends[2], seven = 7, others[20];
    conc_job j;
    CHECK_INT(pipe(ends), 0);
    conc_procs pool = {.workers = 2};
    int kept = replace(2, ends[1]);
    int rc = conc_procs_open(&pool);
    rc = rc ? rc : conc_procs_submit(&pool, &j, floods, &seven, sizeof seven);
    for (int i = 0; i < 20 && !rc; i++)
        others[i] = run_numbered(&pool, returns, i);
    bool done = conc_job_done(&j);
    size_t sum = drain_until_done(ends[0], &j);
    restore(2, kept);
    CHECK_INT(rc, 0);
    for (int i = 0; i < 20; i++)
        CHECK_INT(others[i], i);
    CHECK(!done); /* no task had read yet */
    CHECK_INT(result_of(&j), 7);
    CHECK_INT(sum, MEGABYTE);
    close_pool(&pool);
    close(ends[0]);
    close(ends[1]);
}

/* ---- cancels ---- */

REAL_TEST(a_job_that_times_out_is_killed_and_its_worker_replaced)
{
    conc_group g = {0};
    held other;
    OPEN(pool, 2);
    occupy(&pool, &other, 3);
    for (int i = 0; i < 3; i++) {
        gate *at = new_gate();
        visit v = {.gate = at, .stays = true};
        int n = 5;
        pid_t before = worker_of(&pool);
        caller c = {by_run, .pool = &pool, .fn = visits, .arg = &v, .size = sizeof v, .limit = 0.1};
        CHECK_INT(calls_once(&c), 0);
        CHECK_INT(c.rc, -ETIMEDOUT);
        CHECK_INT(c.next, 0);
        CHECK_INT(v.pid, 0); /* as before */
        CHECK_INT(atomic_load(&at->entered), 1);
        CHECK(has_ended(before));
        CHECK_INT(conc_procs_run(&pool, adds_one, &n, sizeof n), 6);
        CHECK(worker_of(&pool) != before);
    }
    end_held(&other, 3);
    end(&g);
}

PROCS_TEST(a_caller_that_is_cancelled_has_its_job_killed)
{
    conc_group g = {0};
    OPEN(pool, 1);
    gate *at = new_gate();
    visit v = {.gate = at, .stays = true};
    pid_t before = worker_of(&pool);
    caller c = {by_run, .pool = &pool, .fn = visits, .arg = &v, .size = sizeof v};
    start(&g, &c);
    CHECK(reaches(&at->entered, 1));
    cancel_and_join(&c);
    CHECK_INT(c.rc, -ECANCELED);
    CHECK_INT(v.pid, 0);
    CHECK(has_ended(before));
    CHECK(worker_of(&pool) != before);
    end(&g);
    close_pool(&pool);
}

PROCS_TEST(a_queued_job_whose_caller_is_cancelled_never_runs_and_costs_no_worker)
{
    conc_group g = {0};
    held h;
    OPEN(pool, 1);
    pid_t before = worker_of(&pool);
    occupy(&pool, &h, 3);
    gate *at = new_gate();
    visit v = {.gate = at};
    caller c = {by_run, .pool = &pool, .fn = visits, .arg = &v, .size = sizeof v};
    start(&g, &c);
    cancel_and_join(&c);
    CHECK_INT(c.rc, -ECANCELED);
    CHECK(!conc_job_done(&h.job));
    end_held(&h, 3);
    CHECK_INT(worker_of(&pool), before);
    CHECK_INT(atomic_load(&at->entered), 0);
    end(&g);
    close_pool(&pool);
}

static conc_procs *pool_of_cancelled;

static int calls_while_cancelled(void *arg)
{
    visit *v = arg;
    conc_job j;
    int results[2] = {0}, n;
    visit two[2] = {*v, *v};
    CHECK_INT(conc_sleep(100), -ECANCELED);
    CHECK_INT(conc_procs_run(pool_of_cancelled, visits, v, sizeof *v), -ECANCELED);
    CHECK_INT(conc_procs_submit(pool_of_cancelled, &j, visits, v, sizeof *v), -ECANCELED);
    CHECK_INT(conc_procs_map(pool_of_cancelled, visits, two, 2, sizeof *v), -ECANCELED);
    CHECK_INT(conc_procs_map_all(pool_of_cancelled, visits, two, 2, sizeof *v, results),
              -ECANCELED);
    CHECK(results[0] == -ECANCELED && results[1] == -ECANCELED);
    CHECK_INT(conc_procs_call(pool_of_cancelled, turns_round, "a", 1, &n, sizeof n), -ECANCELED);
    return 0;
}

PROCS_TEST(an_already_cancelled_task_starts_nothing)
{
    conc_group g = {0};
    conc_task t;
    gate *at = new_gate();
    visit v = {.gate = at};
    OPEN(pool, 2);
    pool_of_cancelled = &pool;
    CHECK_INT(conc_spawn_task(&g, &t, calls_while_cancelled, &v), 0);
    CHECK_INT(conc_yield(), 0);
    CHECK_INT(conc_cancel(&t), 0);
    end(&g);
    CHECK_INT(atomic_load(&at->entered), 0);
    CHECK_INT(count_children(), 0);
    close_pool(&pool);
}

typedef struct transfer {
    conc_procs *pool;
    bulk *data;
    size_t size;
} transfer;

static int transfers(void *arg)
{
    transfer *t = arg;
    return conc_procs_run(t->pool, inverts, t->data, t->size);
}

/* At every moment of a large transfer: the bytes are unchanged or the result, and only the
 * caller's. */
REAL_TEST(large_jobs_are_cancelled_at_any_time)
{
    enum { N = 4 * MEGABYTE };
    OPEN(pool, 2);
    for (int i = 0; i < 40; i++) {
        bulk *b = malloc(sizeof *b + N);
        CHECK(b != NULL);
        b->n = N;
        fill(b->data, N);
        transfer t = {&pool, b, sizeof *b + N};
        int rc = conc_timeout(0.0003 * i, transfers, &t);
        CHECK(rc == -ETIMEDOUT || rc == N % 1000);
        CHECK(is_filled(b->data, N, rc == -ETIMEDOUT ? 0 : 0xff));
        free(b);
    }
    check_bulk(&pool, N);
}

static int cancels_job(void *arg) { return conc_job_cancel(arg); }

PROCS_TEST(a_job_that_runs_is_killed_by_a_cancel_from_anywhere)
{
    OPEN(pool, 2);
    for (int from_thread = 0; from_thread < 2; from_thread++) {
        held h;
        side s = {cancels_job, &h.job, .in_run = false};
        occupy(&pool, &h, 3);
        if (from_thread)
            side_start(&s);
        CHECK_INT(from_thread ? side_end(&s) : conc_job_cancel(&h.job), 0);
        CHECK_INT(result_of(&h.job), -ECANCELED);
        CHECK_INT(h.v.pid, 0);
        CHECK_INT(conc_job_cancel(&h.job), -EALREADY);
        check_healthy(&pool);
    }
}

THREAD_TEST(a_cancel_takes_a_queued_job_back)
{
    held h;
    int n = 3;
    conc_job queued, next;
    conc_job never;
    OPEN(pool, 1);
    memset(&never, 0, sizeof never);
    CHECK_INT(conc_job_cancel(&never), -EINVAL);
    CHECK_INT(conc_job_cancel(NULL), -EINVAL);
    CHECK(!conc_job_done(&never));
    pid_t before = worker_of(&pool);
    occupy(&pool, &h, 3);
    CHECK_INT(conc_procs_submit(&pool, &queued, adds_one, &n, sizeof n), 0);
    CHECK_INT(conc_procs_submit(&pool, &next, adds_one, &n, sizeof n), 0);
    CHECK_INT(conc_job_cancel(&queued), 0);
    CHECK(conc_job_done(&queued));
    CHECK_INT(conc_job_cancel(&queued), -EALREADY);
    CHECK_INT(result_of(&queued), -ECANCELED);
    end_held(&h, 3);
    CHECK_INT(result_of(&next), 4);
    CHECK_INT(conc_job_cancel(&next), -EALREADY);
    CHECK_INT(n, 4);
    CHECK_INT(worker_of(&pool), before);
}

PROCS_TEST(many_jobs_are_cancelled_right_after_their_submit)
{
    enum { N = 200 };
    static conc_job jobs[N];
    static int numbers[N];
    OPEN(pool, 2);
    for (int i = 0; i < N; i++) {
        numbers[i] = i;
        CHECK_INT(conc_procs_submit(&pool, &jobs[i], adds_one, &numbers[i], sizeof(int)), 0);
        int rc = i % 4 ? conc_job_cancel(&jobs[i]) : 0;
        CHECK(rc == 0 || rc == -EALREADY);
    }
    for (int i = 0; i < N; i++) {
        int result = result_of(&jobs[i]);
        CHECK(result == i + 1 || (result == -ECANCELED && i % 4));
        CHECK_INT(numbers[i], result == i + 1 ? i + 1 : i);
    }
    check_healthy(&pool);
}

PROCS_TEST(a_cancelled_waiter_has_its_job_killed_unless_others_wait)
{
    conc_group g = {0};
    held h;
    OPEN(pool, 1);
    occupy(&pool, &h, 3);
    caller c[2] = {{by_wait, .job = &h.job}, {by_wait, .job = &h.job}};
    start(&g, &c[0]);
    start(&g, &c[1]);
    CHECK_INT(conc_cancel(&c[0].task), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(c[0].rc, WAITING); /* and it is not cut short */
    CHECK(!conc_job_done(&h.job));
    let_go(&h);
    end(&g);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(c[i].rc, 0);
        CHECK_INT(c[i].result, 3);
        CHECK_INT(c[i].next, i ? 0 : -ECANCELED);
    }
}

PROCS_TEST(the_only_waiter_of_a_job_has_it_killed_when_cancelled)
{
    conc_group g = {0};
    held h;
    OPEN(pool, 1);
    pid_t before = worker_of(&pool);
    occupy(&pool, &h, 3);
    caller c = {by_wait, .job = &h.job};
    start(&g, &c);
    cancel_and_join(&c);
    CHECK_INT(c.rc, 0);
    CHECK_INT(c.result, -ECANCELED);
    CHECK(has_ended(before));
    check_healthy(&pool);
    end(&g);
}

/* A map whose first element stays forever: the others are behind it, or in another worker. */
static void check_map_cancel(conc_fn *how, int workers)
{
    enum { N = 50 };
    int results[N];
    conc_group g = {0};
    gate *at = new_gate();
    visit *v = elements(at, N);
    for (int i = 0; i < N; i++) {
        v[i].stays = true;
        results[i] = WAITING;
    }
    OPEN(pool, workers);
    caller c = {how,        .pool = &pool,     .fn = visits, .arg = v, .size = sizeof *v,
                .count = N, .results = results};
    start(&g, &c);
    CHECK(reaches(&at->entered, workers));
    cancel_and_join(&c);
    CHECK_INT(c.rc, -ECANCELED);
    CHECK_INT(atomic_load(&at->entered), workers);
    for (int i = 0; i < N && how == by_map_all; i++)
        CHECK_INT(results[i], -ECANCELED);
    check_healthy(&pool);
    end(&g);
    free(v);
}

PROCS_TEST(a_map_that_is_cancelled_starts_no_more_and_kills_what_runs)
{
    check_map_cancel(by_map, 1);
    check_map_cancel(by_map, 2);
}

PROCS_TEST(a_map_of_all_that_is_cancelled_starts_no_more_and_kills_what_runs)
{
    check_map_cancel(by_map_all, 1);
    check_map_cancel(by_map_all, 2);
}

static int visits_in_pool(void *arg)
{
    return conc_procs_run(pool_of_cancelled, visits, arg, sizeof(visit));
}
static int fails_in_pool(void *arg)
{
    return run_numbered(pool_of_cancelled, returns, *(int *)arg);
}

PROCS_TEST(an_error_in_a_group_ends_its_other_jobs)
{
    OPEN(pool, 2);
    gate *at = new_gate();
    visit v = {.gate = at, .stays = true};
    pool_of_cancelled = &pool;
    CHECK_INT(CONC_GATHER(CONC_CALL(visits_in_pool, &v), CONC_CALL(fails_in_pool, &(int){-EDOM})),
              -EDOM);
    check_healthy(&pool);
    close_pool(&pool);
}

/* ---- closing ---- */

typedef struct closing {
    conc_procs *pool;
    atomic_int begun;
} closing;

static int closes(void *arg)
{
    closing *c = arg;
    atomic_store(&c->begun, 1);
    return conc_procs_close(c->pool);
}

THREAD_TEST(a_close_waits_for_all_jobs_and_refuses_new_ones)
{
    enum { N = 50 };
    conc_job jobs[N], refused;
    int numbers[N], n = 0, rc = 0;
    held h;
    conc_procs pool = {.workers = 2};
    CHECK_INT(conc_procs_open(&pool), 0);
    occupy(&pool, &h, 3);
    for (int i = 0; i < N; i++) {
        numbers[i] = i;
        CHECK_INT(conc_procs_submit(&pool, &jobs[i], adds_one, &numbers[i], sizeof(int)), 0);
    }
    closing c = {.pool = &pool};
    side s = {closes, &c, .in_run = false};
    side_start(&s);
    CHECK(reaches(&c.begun, 1));
    for (double until = test_real_seconds() + 5; rc >= 0 && test_real_seconds() < until;) {
        memset(&refused, 0, sizeof refused);
        rc = conc_procs_submit(&pool, &refused, adds_one, &n, sizeof n);
        rc = rc ? rc : result_of(&refused); /* it was accepted, so it runs */
    }
    CHECK_INT(rc, -EPIPE);
    CHECK(!conc_job_done(&h.job));
    let_go(&h);
    CHECK_INT(side_end(&s), 0);
    check_no_children();
    CHECK_INT(result_of(&h.job), 3);
    for (int i = 0; i < N; i++) {
        CHECK(conc_job_done(&jobs[i]));
        CHECK_INT(result_of(&jobs[i]), i + 1);
    }
}

typedef struct submitter {
    conc_procs *pool;
    atomic_int *done; /* jobs, of all of them */
    int wrong;
} submitter;

static int submits_until_closed(void *arg)
{
    submitter *s = arg;
    for (int i = 0;; i++) {
        conc_job j;
        int n = i, rc = conc_procs_submit(s->pool, &j, adds_one, &n, sizeof n);
        if (rc)
            return rc;
        s->wrong += conc_job_wait(&j, &rc) != 0 || rc != i + 1 || n != i + 1;
        atomic_fetch_add(s->done, 1);
    }
}

THREAD_TEST(a_close_while_others_submit)
{
    for (int round = 0; round < 5; round++) {
        atomic_int done = 0;
        side sides[4];
        submitter s[4];
        conc_procs pool = {.workers = 2};
        CHECK_INT(conc_procs_open(&pool), 0);
        for (int i = 0; i < 4; i++) {
            s[i] = (submitter){&pool, &done, 0};
            sides[i] = (side){submits_until_closed, &s[i], .in_run = i % 2, .real_clock = true};
            side_start(&sides[i]);
        }
        CHECK(reaches(&done, 20 * round));
        close_pool(&pool);
        check_no_children();
        for (int i = 0; i < 4; i++) {
            CHECK_INT(side_end(&sides[i]), -EPIPE);
            CHECK_INT(s[i].wrong, 0);
        }
    }
}

PROCS_TEST(a_close_in_a_cancelled_task_takes_queued_jobs_back_and_kills_those_that_run)
{
    enum { N = 20 };
    conc_group g = {0};
    conc_job jobs[N];
    int n = 3;
    held h[2];
    conc_procs pool = {.workers = 2};
    CHECK_INT(conc_procs_open(&pool), 0);
    occupy(&pool, &h[0], 3);
    occupy(&pool, &h[1], 4);
    for (int i = 0; i < N; i++)
        CHECK_INT(conc_procs_submit(&pool, &jobs[i], adds_one, &n, sizeof n), 0);
    caller c = {by_close, .pool = &pool};
    start(&g, &c);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(c.rc, WAITING);
    cancel_and_join(&c);
    CHECK_INT(c.rc, 0);
    CHECK_INT(c.next, -ECANCELED);
    check_no_children();
    for (int i = 0; i < N; i++)
        CHECK_INT(result_of(&jobs[i]), -ECANCELED);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(result_of(&h[i].job), -ECANCELED);
    }
    CHECK_INT(n, 3);
    end(&g);
}

PROCS_TEST(a_close_that_is_cancelled_while_the_workers_end_does_not_block_the_loop)
{
    conc_group g = {0};
    conc_procs pool = {.workers = 1};
    CHECK_INT(conc_procs_open(&pool), 0);
    pid_t worker = worker_of(&pool);
    /* it ends when it is continued, or when it is killed a second later */
    CHECK_INT(kill(worker, SIGSTOP), 0);
    caller c = {by_close, .pool = &pool};
    start(&g, &c);
    CHECK_INT(conc_cancel(&c.task), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(c.rc, WAITING);
    CHECK_INT(kill(worker, SIGCONT), 0);
    end(&g);
    CHECK_INT(c.rc, 0);
    CHECK_INT(c.next, -ECANCELED);
    check_no_children();
}

/* Uses a pool that is opened and closed meanwhile; returns 0, or an unexpected result. */
typedef struct guest {
    conc_procs *pool;
    atomic_bool *leaves;
} guest;

static int comes_and_goes(void *arg)
{
    const guest *g = arg;
    int rc = 0;
    while (!atomic_load(g->leaves) && (rc == 0 || rc == -EPIPE))
        rc = conc_procs_map(g->pool, returns, NULL, 0, sizeof(int));
    return rc == -EPIPE ? 0 : rc;
}

THREAD_TEST(a_pool_is_opened_again_while_others_are_refused)
{
    enum { ROUNDS = 2000 };
    atomic_bool leave = false;
    conc_procs pool = {.workers = 1};
    guest g = {&pool, &leave};
    side sides[2];
    CHECK_INT(conc_procs_open(&pool), 0);
    for (int i = 0; i < 2; i++) {
        sides[i] = (side){comes_and_goes, &g, .in_run = false};
        side_start(&sides[i]);
    }
    for (int i = 0; i < ROUNDS; i++) {
        close_pool(&pool);
        CHECK_INT(conc_procs_open(&pool), 0);
    }
    atomic_store(&leave, true);
    for (int i = 0; i < 2; i++)
        CHECK_INT(side_end(&sides[i]), 0);
    check_healthy(&pool);
    close_pool(&pool);
}

static int leaves_the_block(void *arg)
{
    held *h = arg;
    CONC_AUTO(conc_procs, pool) = {.workers = 1};
    CONC_TRY(conc_procs_open(&pool));
    occupy(&pool, h, 3);
    return conc_sleep(100);
}

REAL_TEST(a_task_that_timed_out_leaves_its_block_and_closes_the_pool)
{
    held h;
    CHECK_INT(conc_timeout(0.1, leaves_the_block, &h), -ETIMEDOUT);
    check_no_children();
    CHECK(conc_job_done(&h.job));
    CHECK_INT(result_of(&h.job), -ECANCELED);
}

PROCS_TEST(a_close_waits_for_jobs_that_tasks_wait_for)
{
    conc_group g = {0};
    gate *at = new_gate();
    visit v = {.gate = at, .stays = true, .rc = 9};
    conc_procs pool = {.workers = 1};
    CHECK_INT(conc_procs_open(&pool), 0);
    caller c[2] = {{by_run, .pool = &pool, .fn = visits, .arg = &v, .size = sizeof v},
                   {by_close, .pool = &pool}};
    start(&g, &c[0]);
    CHECK(reaches(&at->entered, 1));
    start(&g, &c[1]);
    CHECK_INT(c[1].rc, WAITING);
    atomic_store(&at->opened, 1);
    end(&g);
    CHECK_INT(c[0].rc, 9);
    CHECK_INT(c[1].rc, 0);
}

PROCS_TEST(a_jobs_result_remains_when_the_pool_is_closed)
{
    conc_job j;
    failure f = failures[0];
    conc_procs pool = {.workers = 1};
    CHECK_INT(conc_procs_open(&pool), 0);
    CHECK_INT(conc_procs_submit(&pool, &j, fails, &f, sizeof f), 0);
    close_pool(&pool);
    memset(&pool, 0x55, sizeof pool);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(result_of(&j), -EPROTO);
        CHECK_STR(conc_last_error(), "line 12: no colon");
    }
    CHECK_INT(conc_job_cancel(&j), -EALREADY);
}

/* ---- without descriptors ---- */

/* For every number of descriptors that may still be opened: an open or a run that fails, but none
 * that hangs, and no leak. */
THREAD_TEST(a_shortage_of_descriptors_is_an_error)
{
    struct rlimit limit, low;
    int n = 0, fds = test_count_fds(), worked = 0;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int room = 0; room < 12; room++) {
        low = (struct rlimit){(rlim_t)(fds + room), limit.rlim_max};
        conc_procs pool = {.workers = 1};
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &low), 0);
        int rc = conc_procs_open(&pool),
            ran = rc ? rc : conc_procs_run(&pool, adds_one, &n, sizeof n);
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
        close_pool(&pool);
        CHECK(ran < 0 || ran == n);
        worked += ran > 0;
        CHECK_INT(test_count_fds(), fds);
        check_no_children();
    }
    CHECK(worked > 0);
}

/* poll refuses more entries than there may be descriptors. */
THREAD_TEST(a_pool_may_have_more_workers_than_there_may_be_descriptors)
{
    enum { N = 40 };
    struct rlimit limit, low;
    int many[N], results[N], n = 0;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    low = (struct rlimit){(rlim_t)test_count_fds() + 40, limit.rlim_max};
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &low), 0);
    conc_procs pool = {.workers = 200, .max_jobs = 3};
    CHECK_INT(conc_procs_open(&pool), 0);
    for (int i = 0; i < N; i++)
        many[i] = i;
    CHECK_INT(conc_procs_map_all(&pool, adds_one, many, N, sizeof(int), results), 0);
    for (int i = 0; i < N; i++)
        CHECK_INT(results[i], i + 1);
    low.rlim_cur = 3; /* below the number that is open already */
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &low), 0);
    for (int i = 0; i < 4; i++) {
        int rc = conc_procs_run(&pool, adds_one, &n, sizeof n); /* by the remaining workers */
        CHECK(rc == n || rc == -EAGAIN);
    }
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    int before = n;
    CHECK_INT(conc_procs_run(&pool, adds_one, &n, sizeof n), before + 1);
    close_pool(&pool);
    check_no_children();
}

/* The worker exists already. */
PROCS_TEST(the_error_of_large_data_tells_why_there_is_no_room)
{
    enum { LARGE = 2 * MEGABYTE };
    struct rlimit files, sizes, low;
    int *data = calloc(1, LARGE);
    CHECK(data != NULL);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &files), 0);
    CHECK_INT(getrlimit(RLIMIT_FSIZE, &sizes), 0);
    OPEN(pool, 1);
    CHECK_INT(conc_procs_run(&pool, adds_one, data, sizeof *data), 1);
    low = (struct rlimit){3, files.rlim_max};
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &low), 0);
    CHECK_INT(conc_procs_run(&pool, adds_one, data, LARGE), -ENOMEM);
    CHECK_CONTAINS(conc_last_error(), "Too many open files");
    CHECK_INT(conc_procs_map(&pool, adds_one, data, 1, LARGE), -ENOMEM);
    CHECK_CONTAINS(conc_last_error(), "Too many open files");
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &files), 0);
    low = (struct rlimit){1000, sizes.rlim_max};
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &low), 0);
    CHECK_INT(conc_procs_run(&pool, adds_one, data, LARGE), -EFBIG);
    CHECK_CONTAINS(conc_last_error(), "file size limit");
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &sizes), 0);
    CHECK_INT(conc_procs_run(&pool, adds_one, data, LARGE), 2);
    free(data);
}
