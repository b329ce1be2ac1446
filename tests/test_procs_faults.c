/* test_procs_faults.c - process pools whose workers crash, are killed, stopped or orphaned, and
 * programs that reap other code's children: at most one job is lost, and nothing hangs or is
 * leaked.
 *
 * PROCS_FAULT_JOBS=100000 in the environment makes the test with the killer long.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64, aarch64-bti, riscv64, poll, seeds, valgrind,
 * gcc-asan, single, clang, static (they start processes, which emulators cannot, and which older
 * versions of Valgrind cannot wait for)
 */
#define TEST_PROCESSES
#include "pool_test.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { VICTIMS = 32 };

/* Shared memory, allocated before any pool. */
static struct shared {
    gate gates[GATES];
    atomic_int victims[VICTIMS]; /* workers that ran a job */
} * shared;

static void call_clean(void (*call)(void (*)(void)), void (*body)(void))
{
    int fds = test_count_fds();
    signal(SIGPIPE, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    CHECK_INT(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}), 0);
    shared = conc_shared_alloc(sizeof *shared);
    CHECK(shared != NULL);
    gates = shared->gates;
    call(body);
    conc_shared_free(shared);
    check_no_children();
    CHECK_INT(test_count_fds(), fds);
}

static void check_healthy(conc_procs *p)
{
    for (int i = 0; i < 3; i++)
        CHECK_INT(run_numbered(p, returns, 4711 + i), 4711 + i);
}

/* Two workers of the pool, at the same time. */
static void find_two(conc_procs *p, pid_t pid[2])
{
    gate *at = new_gate();
    visit v[2] = {{.gate = at, .meet = 2}, {.gate = at, .meet = 2}};
    CHECK_INT(conc_procs_map(p, visits, v, 2, sizeof v[0]), 0);
    CHECK(v[0].pid != v[1].pid);
    pid[0] = v[0].pid;
    pid[1] = v[1].pid;
}

#define OPEN(name, ...)                          \
    CONC_AUTO(conc_procs, name) = {__VA_ARGS__}; \
    CHECK_INT(conc_procs_open(&name), 0)

/* ---- deaths ---- */

enum { BY_SIGNAL, BY_FAULT, BY_ABORT, BY_EXIT, BY_LATE_EXIT, BY_THREAD_EXIT, BY_OVERFLOW };

typedef struct death {
    int how, number; /* the signal, or the exit status */
    int touched;
} death;

static int recurses(volatile char *above)
{
    volatile char here[1024];
    here[0] = *above;
    return here[0] ? 1 : recurses(here) + here[1];
}

/* Ways to die that sanitizers do not catch. */
static int dies(void *arg)
{
    death *d = arg;
    volatile int *nowhere;
    d->touched = 1; /* no other process sees that */
    signal(SIGSEGV, SIG_DFL);
    switch (d->how) {
    case BY_SIGNAL: kill(getpid(), d->number); break;
    case BY_FAULT:
        nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *nowhere = 1;
        break;
    case BY_ABORT: abort();
    case BY_EXIT: _exit(d->number);
    case BY_LATE_EXIT: exit(d->number);
    case BY_THREAD_EXIT: pthread_exit(NULL);
    case BY_OVERFLOW:
        setrlimit(RLIMIT_STACK, &(struct rlimit){MEGABYTE, RLIM_INFINITY});
        return recurses(&(volatile char){0});
    }
    return 0;
}

static const death deaths[] = {
    {BY_SIGNAL, SIGSEGV, 0}, {BY_FAULT, SIGSEGV, 0},  {BY_ABORT, SIGABRT, 0},
    {BY_SIGNAL, SIGKILL, 0}, {BY_SIGNAL, SIGTERM, 0}, {BY_SIGNAL, SIGPIPE, 0},
    {BY_EXIT, 3, 0},         {BY_EXIT, 0, 0},         {BY_EXIT, 255, 0},
    {BY_LATE_EXIT, 7, 0},    {BY_THREAD_EXIT, -1, 0}, {BY_OVERFLOW, SIGSEGV, 0}};

static void check_words(const death *d, const char *text)
{
    char status[32];
    snprintf(status, sizeof status, "status %d", d->number);
    if (d->how == BY_EXIT || d->how == BY_LATE_EXIT)
        CHECK_CONTAINS(text, status);
    else if (d->number > 0)
        CHECK_CONTAINS(text, strsignal(d->number));
}

static void check_deaths(conc_procs *p)
{
    gate *at = new_gate();
    visit v = {.gate = at, .stays = true, .rc = 3};
    conc_job held, j;
    CHECK_INT(conc_procs_submit(p, &held, visits, &v, sizeof v), 0);
    CHECK(reaches(&at->entered, 1));
    for (size_t i = 0; i < CONC_LEN(deaths); i++) {
        death d = deaths[i];
        CHECK_INT(conc_procs_run(p, dies, &d, sizeof d), -EOWNERDEAD);
        if (conc_self())
            check_words(&d, conc_last_error());
        CHECK_INT(conc_procs_submit(p, &j, dies, &d, sizeof d), 0);
        CHECK_INT(result_of(&j), -EOWNERDEAD);
        if (conc_self())
            check_words(&d, conc_last_error());
        CHECK_INT(d.touched, 0);
        check_healthy(p);
    }
    CHECK(!conc_job_done(&held));
    atomic_store(&at->opened, 1);
    CHECK_INT(result_of(&held), 3);
}

PROCS_TEST(a_job_that_dies_is_an_error_with_the_cause_and_costs_no_other_job)
{
    OPEN(pool, .workers = 2);
    check_deaths(&pool);
}

THREAD_TEST(a_job_of_a_plain_thread_that_dies_is_an_error_too)
{
    OPEN(pool, .workers = 2);
    check_deaths(&pool);
}

static ssize_t dies_in_a_call(const void *in, size_t in_size, void *out, size_t out_size)
{
    death d;
    memset(out, 1, out_size);
    memcpy(&d, in, in_size);
    return dies(&d);
}

PROCS_TEST(a_call_that_dies_is_an_error_and_its_bytes_are_unchanged)
{
    char out[100] = {0};
    OPEN(pool, .workers = 1);
    for (size_t i = 0; i < CONC_LEN(deaths); i += 4) {
        CHECK_INT(
            conc_procs_call(&pool, dies_in_a_call, &deaths[i], sizeof deaths[i], out, sizeof out),
            -EOWNERDEAD);
        check_words(&deaths[i], conc_last_error());
        CHECK_INT(out[0] + out[99], 0);
    }
    check_healthy(&pool);
}

PROCS_TEST(a_hundred_jobs_that_die_one_after_another_do_not_wear_a_pool_out)
{
    enum { N = SANITIZED ? 20 : 100 };
    conc_job jobs[N];
    death d[N];
    OPEN(pool, .workers = 2);
    for (int i = 0; i < N; i++) {
        d[i] = deaths[(size_t)i % CONC_LEN(deaths)];
        CHECK_INT(conc_procs_submit(&pool, &jobs[i], dies, &d[i], sizeof d[i]), 0);
    }
    for (int i = 0; i < N; i++)
        CHECK_INT(result_of(&jobs[i]), -EOWNERDEAD);
    check_healthy(&pool);
}

/* An element of a map: dies, or counts its number up. */
typedef struct element {
    int number;
    bool deadly;
    death death;
    gate *gate;
} element;

static int counts_or_dies(void *arg)
{
    element *e = arg;
    atomic_fetch_add(&e->gate->entered, 1);
    e->number++;
    return e->deadly ? dies(&e->death) : e->number;
}

static void check_map(int workers, int every)
{
    enum { N = 200 };
    static element e[N];
    static int results[N];
    gate *at = new_gate();
    OPEN(pool, .workers = workers);
    for (int i = 0; i < N; i++)
        e[i] = (element){i, i % every == every / 2, deaths[(size_t)i % CONC_LEN(deaths)], at};
    CHECK_INT(conc_procs_map_all(&pool, counts_or_dies, e, N, sizeof e[0], results), 0);
    for (int i = 0; i < N; i++) {
        CHECK_INT(results[i], e[i].deadly ? -EOWNERDEAD : i + 1);
        CHECK_INT(e[i].number, e[i].deadly ? i : i + 1);
    }
    CHECK_INT(atomic_load(&at->entered), N); /* each of them once */
    check_healthy(&pool);
}

PROCS_TEST(elements_of_a_map_that_die_cost_only_themselves)
{
    check_map(2, 13);
    check_map(1, 99);
}

PROCS_TEST(an_element_that_dies_keeps_the_rest_of_a_map_from_starting)
{
    enum { N = 1000, DEADLY = 7 };
    static element e[N];
    gate *at = new_gate();
    OPEN(pool, .workers = 1);
    for (int i = 0; i < N; i++)
        e[i] = (element){i, i == DEADLY, deaths[1], at};
    CHECK_INT(conc_procs_map(&pool, counts_or_dies, e, N, sizeof e[0]), -EOWNERDEAD);
    check_words(&deaths[1], conc_last_error());
    CHECK_INT(atomic_load(&at->entered), DEADLY + 1);
    for (int i = 0; i < N; i++)
        CHECK_INT(e[i].number, i < DEADLY ? i + 1 : i);
    check_healthy(&pool);
}

/* ---- in the middle of large data ---- */

typedef struct bomb {
    long delay; /* ns */
    size_t n;
    unsigned char data[];
} bomb;

static void *explodes(void *arg)
{
    struct timespec delay = {0, *(long *)arg};
    nanosleep(&delay, NULL);
    kill(getpid(), SIGKILL);
    return NULL;
}

/* Leaves a thread behind that kills the process a little later, during its result or the next
 * job. */
static int primes(void *arg)
{
    static long delay;
    bomb *b = arg;
    pthread_t t;
    delay = b->delay;
    memset(b->data, 7, b->n);
    return pthread_create(&t, NULL, explodes, &delay) ? -EAGAIN : 5;
}

static int sums_up(void *arg)
{
    bomb *b = arg;
    size_t sum = 0;
    for (size_t i = 0; i < b->n; i++)
        sum += b->data[i];
    return sum == 3 * b->n ? 6 : -EBADMSG;
}

static void check_data(const bomb *b, int value)
{
    for (size_t i = 0; i < b->n; i += 997)
        CHECK_INT(b->data[i], value);
}

PROCS_TEST(a_worker_that_dies_while_large_data_is_on_its_way_is_an_error_or_nothing)
{
    enum { N = 10 * MEGABYTE };
    bomb *b = malloc(sizeof *b + N);
    CHECK(b != NULL);
    OPEN(pool, .workers = 1);
    b->n = N;
    for (long delay = 1; delay < 8000000; delay = delay * 2 + 50000) {
        memset(b->data, 3, N);
        b->delay = delay;
        int rc = conc_procs_run(&pool, primes, b, sizeof *b + N);
        CHECK(rc == 5 || rc == -EOWNERDEAD);
        check_data(b, rc == 5 ? 7 : 3);
        memset(b->data, 3, N);
        rc = conc_procs_run(&pool, sums_up, b, sizeof *b + N);
        CHECK(rc == 6 || rc == -EOWNERDEAD);
        check_data(b, 3);
    }
    for (int i = 0; i < 20; i++) { /* the last bomb may still be there */
        nap();
        int rc = run_numbered(&pool, returns, i);
        CHECK(rc == i || rc == -EOWNERDEAD);
    }
    free(b);
}

/* ---- other ways to lose a worker ---- */

static int closes_descriptors(void *arg)
{
    for (int fd = 3; fd < 256; fd++)
        close(fd);
    return *(int *)arg;
}

PROCS_TEST(a_job_that_closes_all_descriptors_hangs_no_other)
{
    OPEN(pool, .workers = 1);
    int rc = run_numbered(&pool, closes_descriptors, 5);
    CHECK(rc == 5 || rc == -EOWNERDEAD);
    for (int i = 0; i < 10; i++) {
        rc = run_numbered(&pool, returns, i);
        CHECK(rc == i || rc == -EOWNERDEAD);
    }
    CHECK_INT(run_numbered(&pool, returns, 9), 9);
}

static int becomes_another_program(void *arg)
{
    (void)arg;
    return execlp("sleep", "sleep", "1000", (char *)NULL);
}

REAL_TEST(a_job_that_becomes_another_program_ends_with_its_time)
{
    OPEN(pool, .workers = 1);
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 0.3), 0);
    int rc = conc_scope_end(&s, conc_procs_run(&pool, becomes_another_program, NULL, 0));
    CHECK(rc == -ETIMEDOUT || rc == -EOWNERDEAD);
    check_healthy(&pool);
}

static int becomes_a_short_program(void *arg)
{
    (void)arg;
    return execlp("true", "true", (char *)NULL);
}

PROCS_TEST(a_job_that_becomes_a_program_that_ends_is_lost)
{
    OPEN(pool, .workers = 1);
    CHECK_INT(conc_procs_run(&pool, becomes_a_short_program, NULL, 0), -EOWNERDEAD);
    check_healthy(&pool);
}

/* A process that inherits everything from its parent, and stays until the gate is opened. */
static void stay_behind(gate *g)
{
    atomic_fetch_add(&g->entered, 1);
    while (!atomic_load(&g->opened))
        nap();
    atomic_fetch_add(&g->entered, 1);
    _exit(0);
}

static int leaves_a_child_and_dies(void *arg)
{
    gate *g = *(gate **)arg;
    if (fork() == 0)
        stay_behind(g);
    while (!atomic_load(&g->entered))
        nap();
    return kill(getpid(), SIGKILL);
}

PROCS_TEST(a_worker_that_dies_is_not_kept_alive_by_its_children)
{
    gate *at = new_gate();
    OPEN(pool, .workers = 1);
    CHECK_INT(conc_procs_run(&pool, leaves_a_child_and_dies, &at, sizeof at), -EOWNERDEAD);
    check_healthy(&pool);
    close_pool(&pool);
    CHECK_INT(atomic_load(&at->entered), 1);
    atomic_store(&at->opened, 1);
    CHECK(reaches(&at->entered, 2));
}

static int leaves_a_child(void *arg)
{
    gate *g = *(gate **)arg;
    pid_t child = fork();
    if (child == 0)
        stay_behind(g);
    while (!atomic_load(&g->entered))
        nap();
    return child > 0 ? 5 : -EAGAIN;
}

PROCS_TEST(a_child_that_a_job_leaves_behind_does_not_hold_up_the_close)
{
    gate *at = new_gate();
    OPEN(pool, .workers = 1);
    CHECK_INT(conc_procs_run(&pool, leaves_a_child, &at, sizeof at), 5);
    check_healthy(&pool);
    close_pool(&pool);
    CHECK_INT(atomic_load(&at->entered), 1);
    atomic_store(&at->opened, 1);
    CHECK(reaches(&at->entered, 2));
}

/* ---- jobs that leave their process ---- */

typedef struct identity {
    gate *gate;
    int value, pid;
} identity;

static int becomes_a_daemon(void *arg)
{
    identity *i = arg;
    if (daemon(1, 1))
        return -EIO;
    atomic_store(&i->gate->entered, getpid());
    while (!atomic_load(&i->gate->opened))
        nap();
    i->value = 666;
    i->pid = getpid();
    return 666;
}

static int doubles_slowly(void *arg)
{
    identity *i = arg;
    atomic_store(&i->gate->opened, 1); /* the daemon now returns from its job */
    for (int n = 0; n < 50 && kill(atomic_load(&i->gate->entered), 0) == 0; n++)
        nap();
    i->value *= 2;
    i->pid = getpid();
    return 42;
}

PROCS_TEST(a_process_that_a_job_has_become_answers_for_no_other_job)
{
    gate *at = new_gate();
    identity first = {at, 1, 0}, second = {at, 21, 0};
    OPEN(pool, .workers = 1);
    CHECK_INT(conc_procs_run(&pool, becomes_a_daemon, &first, sizeof first), -EOWNERDEAD);
    CHECK_INT(first.value, 1);
    CHECK(reaches(&at->entered, 2));
    int daemon = atomic_load(&at->entered);
    CHECK_INT(conc_procs_run(&pool, doubles_slowly, &second, sizeof second), 42);
    CHECK_INT(second.value, 42);
    CHECK(second.pid != daemon);
    CHECK(has_ended(daemon));
}

static int comes_back_twice(void *arg)
{
    pid_t child = fork();
    if (child)
        waitpid(child, NULL, 0);
    return *(int *)arg + (child ? 1 : 1000);
}

PROCS_TEST(a_jobs_child_that_returns_from_the_job_ends)
{
    OPEN(pool, .workers = 1);
    for (int i = 0; i < 20; i++)
        CHECK_INT(run_numbered(&pool, comes_back_twice, i), i + 1);
    check_healthy(&pool);
}

/* An element of a map that forks in one of several ways, and whose child returns from it. */
typedef struct forking_element {
    gate *gate;
    int number, way;
} forking_element;

static int element_comes_back_twice(void *arg)
{
    forking_element *e = arg;
    pid_t child = 1;
    atomic_fetch_add(&e->gate->entered, 1);
    if (e->way == 1)
        child = fork();
#ifdef SYS_fork
    if (e->way == 2)
        child = (pid_t)syscall(SYS_fork);
#endif
    if (child == 0)
        return -EIO;
    waitpid(-1, NULL, 0);
    return e->number;
}

PROCS_TEST(an_elements_child_that_returns_from_it_runs_no_other_element)
{
    enum { N = 300 };
    static forking_element e[N];
    static int results[N];
    gate *at = new_gate();
    OPEN(pool, .workers = 2);
    for (int i = 0; i < N; i++)
        e[i] = (forking_element){at, i, i % 7};
    CHECK_INT(conc_procs_map_all(&pool, element_comes_back_twice, e, N, sizeof e[0], results), 0);
    for (int i = 0; i < N; i++)
        CHECK_INT(results[i], i);
    CHECK_INT(atomic_load(&at->entered), N); /* each of them once */
    check_healthy(&pool);
}

/* Jobs of one worker, with data that is copied into its channel, or that has its own memory. */
typedef struct leaver {
    gate *gate;
    size_t size; /* of all */
    unsigned char data[];
} leaver;

static bool holds(const leaver *l, unsigned char value)
{
    for (size_t i = 0; i < l->size - offsetof(leaver, data); i++)
        if (l->data[i] != value)
            return false;
    return true;
}

static void fill(leaver *l, unsigned char value)
{
    memset(l->data, value, l->size - offsetof(leaver, data));
}

/* When the next job has begun, the child continues with the data with which it was forked. */
static int leaves_a_writer(void *arg)
{
    leaver *l = arg;
    gate *at = l->gate;
    pid_t child = fork();
    if (child)
        return child > 0 ? 7 : -EAGAIN;
    while (!atomic_load(&at->opened))
        nap();
    bool intact = holds(l, 1);
    fill(l, 3);
    atomic_store(&at->entered, intact ? 1 : 2);
    _exit(0);
}

static int stands_by(void *arg)
{
    leaver *l = arg;
    atomic_store(&l->gate->opened, 1);
    waitpid(-1, NULL, 0);
    bool intact = holds(l, 2);
    fill(l, 4);
    return intact ? atomic_load(&l->gate->entered) : -EIO;
}

static void check_forked_data(size_t size)
{
    gate *at = new_gate();
    leaver *l = malloc(size);
    CHECK(l != NULL);
    *l = (leaver){.gate = at, .size = size};
    OPEN(pool, .workers = 1);
    fill(l, 1);
    CHECK_INT(conc_procs_run(&pool, leaves_a_writer, l, size), 7);
    CHECK(holds(l, 1));
    fill(l, 2);
    CHECK_INT(conc_procs_run(&pool, stands_by, l, size), 1);
    CHECK(holds(l, 4));
    check_healthy(&pool);
    free(l);
}

PROCS_TEST(a_process_that_a_job_forked_has_its_own_copy_of_the_data)
{
    check_forked_data(1000);
    check_forked_data(3 * MEGABYTE);
}

/* ---- jobs that overwrite memory ---- */

/* Overwrites all memory that the process shares with another and may write to. */
static void overwrite_what_is_shared(unsigned char with)
{
    static char line[5000];
    FILE *maps = fopen("/proc/self/maps", "r");
    unsigned long from, to;
    char access[5];
    while (maps && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %4s", &from, &to, access) == 3 && !strcmp(access, "rw-s"))
            memset((void *)from, with, to - from);
    if (maps)
        fclose(maps);
}

static int overwrites(void *arg)
{
    overwrite_what_is_shared(*(unsigned char *)arg);
    return 5;
}

static int overwrites_and_dies(void *arg)
{
    overwrite_what_is_shared(*(unsigned char *)arg);
    return kill(getpid(), SIGKILL);
}

static int run_overwriting(void *arg)
{
    struct {
        conc_procs *pool;
        conc_fn *fn;
        unsigned char with;
    } *o = arg;
    unsigned char bytes[1000] = {o->with};
    int results[50];
    unsigned char elements[50][16] = {{0}};
    for (int i = 0; i < 50; i++)
        elements[i][0] = o->with;
    (void)conc_procs_map_all(o->pool, o->fn, elements, 50, sizeof elements[0], results);
    return conc_procs_run(o->pool, o->fn, bytes, sizeof bytes);
}

/* Whatever such a job returns, the program and other jobs continue. */
REAL_TEST(a_job_that_overwrites_all_shared_memory_costs_at_most_its_own_result)
{
    OPEN(pool, .workers = 2);
    for (int with = 0; with < 256; with += with ? 127 : 1) {
        struct {
            conc_procs *pool;
            conc_fn *fn;
            unsigned char with;
        } o = {&pool, with % 2 ? overwrites : overwrites_and_dies, (unsigned char)with};
        (void)conc_timeout(0.5, run_overwriting, &o);
        for (int i = 0; i < 20; i++) {
            int rc = run_numbered(&pool, returns, i);
            CHECK(rc == i || rc == -EOWNERDEAD);
        }
        check_healthy(&pool);
    }
}

/* The same if its worker has done no job before, and if the next one has done none either. */
REAL_TEST(a_job_that_overwrites_all_shared_memory_and_dies_is_lost)
{
    for (int with = 0; with < 256; with++) {
        unsigned char bytes[1000] = {(unsigned char)with};
        if (with > 2 && with < 253)
            continue;
        OPEN(pool, .workers = 1);
        for (int i = 0; i < 5; i++)
            CHECK_INT(conc_procs_run(&pool, overwrites_and_dies, bytes, sizeof bytes), -EOWNERDEAD);
        check_healthy(&pool);
    }
}

/* The first of several elements that a worker gets at once. */
static int overwrites_or_returns(void *arg)
{
    const unsigned char *with = arg;
    return with[1] ? 0 : overwrites_and_dies(arg);
}

REAL_TEST(an_element_that_overwrites_all_shared_memory_and_dies_is_lost)
{
    enum { N = 20 };
    static const unsigned char values[] = {0, 1, 0xa5, 0xff};
    OPEN(pool, .workers = 1);
    for (size_t i = 0; i < sizeof values; i++) {
        unsigned char elements[N][2];
        int results[N];
        for (int k = 0; k < N; k++) {
            elements[k][0] = values[i];
            elements[k][1] = k > 0;
        }
        CHECK_INT(conc_procs_map_all(&pool, overwrites_or_returns, elements, N, sizeof elements[0],
                                     results),
                  0);
        CHECK_INT(results[0], -EOWNERDEAD);
        CHECK_INT(results[N - 1], 0);
        check_healthy(&pool);
    }
}

static int overwrites_and_stays(void *arg)
{
    static gate *at;
    at = *(gate **)arg;
    overwrite_what_is_shared(0);
    atomic_store(&at->entered, 1);
    while (!atomic_load(&at->opened))
        nap();
    return 5;
}

THREAD_TEST(a_job_that_overwrites_all_shared_memory_has_ended_when_it_returns)
{
    gate *at = new_gate(), *bytes = at; /* of the job's */
    conc_job first, second;
    int number = 4711;
    OPEN(pool, .workers = 1);
    CHECK_INT(conc_procs_submit(&pool, &first, overwrites_and_stays, &bytes, sizeof bytes), 0);
    CHECK(reaches(&at->entered, 1));
    CHECK_INT(conc_procs_submit(&pool, &second, returns, &number, sizeof number), 0);
    for (int i = 0; i < 50; i++) /* the pool's thread meanwhile processes what arrived */
        nap();
    CHECK(!conc_job_done(&first) && !conc_job_done(&second));
    atomic_store(&at->opened, 1);
    CHECK_INT(result_of(&first), 5);
    CHECK_INT(result_of(&second), 4711);
}

static int shrinks_what_is_shared(void *arg)
{
    (void)arg;
    int failed = 0;
    for (int fd = 3; fd < 100; fd++)
        failed |= fcntl(fd, F_GETFD) >= 0 && ftruncate(fd, 0) == 0;
    return failed;
}

PROCS_TEST(no_job_makes_shared_memory_smaller)
{
    OPEN(pool, .workers = 1);
    CHECK_INT(conc_procs_run(&pool, shrinks_what_is_shared, NULL, 0), 0);
    check_healthy(&pool);
}

static int stops_itself(void *arg)
{
    gate *g = *(gate **)arg;
    atomic_fetch_add(&g->entered, 1);
    return kill(getpid(), SIGSTOP);
}

static int run_stops_itself(void *arg)
{
    gate *at = new_gate();
    return conc_procs_run(arg, stops_itself, &at, sizeof at);
}

REAL_TEST(a_job_that_stops_itself_times_out)
{
    OPEN(pool, .workers = 1);
    for (int i = 0; i < 2; i++) {
        pid_t before = worker_of(&pool);
        CHECK_INT(conc_timeout(0.1, run_stops_itself, &pool), -ETIMEDOUT);
        CHECK(has_ended(before));
        CHECK(worker_of(&pool) != before);
    }
    check_healthy(&pool);
}

THREAD_TEST(a_job_whose_worker_was_stopped_resumes_when_it_is_continued)
{
    gate *at = new_gate(), *bytes = at; /* of the job's */
    conc_job j;
    OPEN(pool, .workers = 1);
    pid_t worker = worker_of(&pool);
    CHECK_INT(conc_procs_submit(&pool, &j, stops_itself, &bytes, sizeof bytes), 0);
    CHECK(reaches(&at->entered, 1));
    while (!conc_job_done(&j)) {
        CHECK_INT(kill(worker, SIGCONT), 0);
        nap();
    }
    CHECK_INT(result_of(&j), 0);
    CHECK_INT(worker_of(&pool), worker);
}

PROCS_TEST(submits_do_not_wait_for_workers_that_are_stopped)
{
    enum { N = 10000 };
    static conc_job jobs[N];
    static int numbers[N];
    pid_t pid[2];
    OPEN(pool, .workers = 2);
    find_two(&pool, pid);
    for (int i = 0; i < 2; i++)
        CHECK_INT(kill(pid[i], SIGSTOP), 0);
    for (int i = 0; i < N; i++) {
        numbers[i] = i;
        CHECK_INT(conc_procs_submit(&pool, &jobs[i], returns, &numbers[i], sizeof(int)), 0);
    }
    CHECK(!conc_job_done(&jobs[N - 1]));
    for (int i = 0; i < 2; i++)
        CHECK_INT(kill(pid[i], SIGCONT), 0);
    for (int i = 0; i < N; i++)
        CHECK_INT(result_of(&jobs[i]), i);
}

REAL_TEST(an_idle_worker_that_was_killed_costs_no_job)
{
    OPEN(pool, .workers = 1);
    for (int i = 0; i < 10; i++) {
        CHECK_INT(kill(worker_of(&pool), SIGKILL), 0);
        CHECK_INT(run_numbered(&pool, returns, i), i); /* it did not die in that */
        if (i % 2)
            CHECK_INT(conc_sleep(0.005), 0);
    }
}

/* ---- a killer ---- */

static atomic_bool killer_stops;
static atomic_int kills;

static bool is_worker(pid_t pid)
{
    pid_t parent = pid > 0 ? parent_of(pid) : 0;
    return parent > 0 && (parent == getpid() || parent_of(parent) == getpid());
}

/* Stopped workers would keep their jobs forever. */
static void kill_stopped(void)
{
    char line[512], state = 0;
    DIR *processes = opendir("/proc");
    for (struct dirent *e; processes && (e = readdir(processes));) {
        pid_t pid = atoi(e->d_name);
        snprintf(line, sizeof line, "/proc/%d/stat", pid);
        FILE *f = pid > 0 && parent_of(pid) == getpid() ? fopen(line, "r") : NULL;
        const char *name_end = f && fgets(line, sizeof line, f) ? strrchr(line, ')') : NULL;
        state = name_end ? name_end[2] : 0;
        if (f)
            fclose(f);
        if (state == 'T')
            kill(pid, SIGKILL);
    }
    closedir(processes);
}

/* Kills workers that have run a job, at any time. */
static void *kills_at_random(void *arg)
{
    unsigned random = 12345;
    (void)arg;
    for (int i = 0; !atomic_load(&killer_stops); i++) {
        if (i % 32 == 0)
            kill_stopped();
        random = random * 1103515245 + 12345;
        pid_t pid = atomic_load(&shared->victims[(random >> 16) % VICTIMS]);
        if (is_worker(pid)) {
            kill(pid, SIGKILL);
            atomic_fetch_add(&kills, 1);
        }
        nanosleep(&(struct timespec){.tv_nsec = (random >> 8) % 4000000}, NULL);
    }
    return NULL;
}

typedef struct victim {
    struct shared *shared;
    int number, rc;
    bool alone; /* no other job's data is next to it */
    size_t n;   /* bytes that are used */
    unsigned char data[40000];
} victim;

enum { DAEMON, CHILD, CLOSE, STOP, EXEC, OVERWRITE, NONE };

static void close_everything(void)
{
    for (int fd = 0; fd < 200; fd++)
        close(fd);
}

/* What the job does to its process, in a few cases of 1024. */
static unsigned mischief_of(const victim *v)
{
    unsigned kind = (unsigned)v->number * 2654435761u >> 22;
    return kind == OVERWRITE && !v->alone ? NONE : kind;
}

static void do_mischief(unsigned kind)
{
    switch (kind) {
    case DAEMON: (void)!daemon(1, 1); break;
    case CHILD:
        if (fork() == 0)
            for (;;)
                pause(); /* it ends with the program, or does not use its worker's channel */
        break;
    case CLOSE: close_everything(); break;
    case STOP: kill(getpid(), SIGSTOP); break; /* the killer finds it */
    case EXEC: execlp("true", "true", (char *)NULL); break;
    case OVERWRITE:
        overwrite_what_is_shared(0xa5);
        kill(getpid(), SIGKILL);
        break;
    default: break;
    }
}

static int offers_itself(void *arg)
{
    victim *v = arg;
    atomic_store(&v->shared->victims[v->number % VICTIMS], getpid());
    for (size_t i = 0; i < v->n; i++)
        v->data[i]++;
    int number = v->number;
    do_mischief(mischief_of(v));
    return number;
}

static void check_victim(const victim *v)
{
    bool right = v->rc == v->number;
    CHECK(right || v->rc == -EOWNERDEAD);
    for (size_t i = 0; i < v->n; i += 101)
        CHECK_INT(v->data[i], right);
}

static int run_victims(conc_procs *p, victim *v, int n, bool as_map)
{
    static conc_job jobs[200];
    static int results[200];
    int lost = 0;
    if (as_map)
        CHECK_INT(conc_procs_map_all(p, offers_itself, v, (size_t)n, sizeof *v, results), 0);
    for (int i = 0; i < n && !as_map; i++)
        CHECK_INT(
            conc_procs_submit(p, &jobs[i], offers_itself, &v[i], offsetof(victim, data) + v[i].n),
            0);
    for (int i = 0; i < n; i++) {
        v[i].rc = as_map ? results[i] : result_of(&jobs[i]);
        unsigned mischief = mischief_of(&v[i]);
        bool own = mischief < NONE && mischief != CHILD;
        check_victim(&v[i]);
        lost += v[i].rc < 0 && !own;
    }
    return lost;
}

static void check_killer(void)
{
    enum { ROUND = 200 };
    const char *wanted = getenv("PROCS_FAULT_JOBS");
    int jobs = wanted ? atoi(wanted) : 1 << 30, lost = 0, done = 0;
    double begun = test_real_seconds();
    victim *v = malloc(ROUND * sizeof *v);
    pthread_t killer;
    CHECK(v != NULL);
    OPEN(pool, .workers = 3);
    check_healthy(&pool);
    CHECK_INT(pthread_create(&killer, NULL, kills_at_random, NULL), 0);
    for (; done < jobs && (wanted || test_real_seconds() - begun < 1); done += ROUND) {
        for (int i = 0; i < ROUND; i++) {
            v[i] = (victim){.shared = shared,
                            .number = done + i,
                            .alone = done / ROUND % 4 != 3,
                            .n = i % 16 ? (size_t)i % 50 : sizeof v->data};
            memset(v[i].data, 0, sizeof v[i].data);
        }
        lost += run_victims(&pool, v, ROUND, done / ROUND % 4 == 3);
    }
    atomic_store(&killer_stops, true);
    CHECK_INT(pthread_join(killer, NULL), 0);
    if (wanted)
        printf("%d jobs, %d kills, %d jobs lost\n", done, atomic_load(&kills), lost);
    CHECK(kills > 0);
    CHECK(lost <= kills);
    check_healthy(&pool);
    close_pool(&pool);
    free(v);
}

PROCS_TEST(while_workers_are_killed_and_leave_at_random_every_job_is_done_or_lost)
{
    check_killer();
}

/* ---- programs that reap other code's children ---- */

static void *reaps(void *stop)
{
    while (!atomic_load((atomic_bool *)stop))
        if (waitpid(-1, NULL, WNOHANG) <= 0)
            nap();
    return NULL;
}

/* Jobs, some of which die while nobody can tell why. */
static void check_unreaped(conc_procs *p)
{
    for (int i = 0; i < 60; i++) {
        death d = deaths[(size_t)i % CONC_LEN(deaths)];
        if (i % 5 == 2)
            CHECK_INT(conc_procs_run(p, dies, &d, sizeof d), -EOWNERDEAD);
        else
            CHECK_INT(run_numbered(p, returns, i), i);
    }
}

static void check_reaper(void)
{
    atomic_bool stop = false;
    pthread_t reaper;
    OPEN(pool, .workers = 2);
    CHECK_INT(pthread_create(&reaper, NULL, reaps, &stop), 0);
    check_unreaped(&pool);
    close_pool(&pool);
    atomic_store(&stop, true);
    CHECK_INT(pthread_join(reaper, NULL), 0);
}

THREAD_TEST(a_program_that_reaps_all_children_does_not_hang_a_pool) { check_reaper(); }

static void check_ignored(int flags)
{
    struct sigaction ignore = {.sa_flags = flags}, old;
    ignore.sa_handler = flags ? SIG_DFL : SIG_IGN;
    CHECK_INT(sigaction(SIGCHLD, &ignore, &old), 0);
    OPEN(pool, .workers = 2);
    check_unreaped(&pool);
    close_pool(&pool);
    CHECK_INT(sigaction(SIGCHLD, &old, NULL), 0);
}

THREAD_TEST(a_program_that_ignores_its_children_does_not_hang_a_pool)
{
    check_ignored(0);
    check_ignored(SA_NOCLDWAIT);
}

static atomic_int children_ended;

static void on_child(int number)
{
    (void)number;
    int saved = errno;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        atomic_fetch_add(&children_ended, 1);
    errno = saved;
}

REAL_TEST(a_handler_that_reaps_all_children_does_not_hang_a_pool)
{
    signal(SIGCHLD, on_child);
    OPEN(pool, .workers = 2);
    check_unreaped(&pool);
    close_pool(&pool);
    signal(SIGCHLD, SIG_DFL);
}

/* ---- parents that die ---- */

/* Shared by the test and the process that it kills, which has its own pools. */
static struct middle {
    bool leaves_child;
    atomic_int ready, may_end, left;
    pid_t workers[2], child;
} * middle;

static void leave_child(void)
{
    pid_t pid = fork();
    if (pid)
        middle->child = pid;
    if (pid)
        return;
    while (!atomic_load(&middle->may_end))
        nap();
    _exit(0);
}

/* A child, and a process in its own session whose parent has ended. */
static int leaves_two(void *arg)
{
    pid_t child = fork(), other = child > 0 ? fork() : 0;
    if (child > 0 && other > 0)
        return waitpid(other, NULL, 0) == other ? *(int *)arg : -EIO;
    if (child > 0 && (setsid() < 0 || fork()))
        _exit(0);
    for (;;)
        pause();
}

/* One worker is idle, and one runs a job that hangs; jobs have left processes behind. */
static void be_killed(void)
{
    conc_job j;
    conc_procs pool = {.workers = 2};
    shared = conc_shared_alloc(sizeof *shared);
    if (!shared || conc_procs_open(&pool))
        _exit(3);
    if (run_numbered(&pool, leaves_two, 5) != 5)
        _exit(5);
    find_two(&pool, middle->workers);
    gate *at = new_gate();
    visit v = {.gate = at, .stays = true};
    if (conc_procs_submit(&pool, &j, visits, &v, sizeof v) || !reaches(&at->entered, 1))
        _exit(4);
    if (middle->leaves_child)
        leave_child();
    atomic_store(&middle->ready, 1);
    pause();
}

/* Reaps what it can; all children but this one have ended within the time limit. */
static bool all_end(pid_t but, double seconds)
{
    double until = test_real_seconds() + seconds;
    siginfo_t info;
    for (; test_real_seconds() < until; nap()) {
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        bool others = waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && !but;
        if (but)
            others = kill(middle->workers[0], 0) == 0 || kill(middle->workers[1], 0) == 0;
        if (!others)
            return true;
    }
    return false;
}

static void check_orphans(bool leaves_child)
{
    CHECK_INT(prctl(PR_SET_CHILD_SUBREAPER, 1), 0); /* the orphans are ours */
    middle = mmap(NULL, sizeof *middle, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(middle != MAP_FAILED);
    middle->leaves_child = leaves_child;
    pid_t pid = fork();
    if (pid == 0) {
        be_killed();
        _exit(0);
    }
    CHECK(reaches(&middle->ready, 1));
    CHECK_INT(kill(pid, SIGKILL), 0);
    CHECK(all_end(middle->child, SANITIZED ? 3 : 1));
    atomic_store(&middle->may_end, 1);
    CHECK(all_end(0, 5));
    munmap(middle, sizeof *middle);
}

THREAD_TEST(workers_end_when_the_program_is_killed) { check_orphans(false); }
THREAD_TEST(a_forked_child_that_lives_on_does_not_keep_workers) { check_orphans(true); }

static void be_left(void)
{
    static conc_procs pool = {.workers = 2};
    static visit v = {.stays = true};
    static conc_job j;
    shared = conc_shared_alloc(sizeof *shared);
    if (!shared || conc_procs_open(&pool))
        _exit(3);
    find_two(&pool, middle->workers);
    gate *at = v.gate = new_gate();
    if (conc_procs_submit(&pool, &j, visits, &v, sizeof v) || !reaches(&at->entered, 1))
        _exit(4);
    exit(0); /* without a close, a job still running */
}

THREAD_TEST(workers_end_when_the_program_ends_without_a_close)
{
    CHECK_INT(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    middle = mmap(NULL, sizeof *middle, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(middle != MAP_FAILED);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        be_left();
    CHECK(all_end(0, 10));
    CHECK(middle->workers[0] > 0);
    munmap(middle, sizeof *middle);
}

/* ---- everything at once ---- */

/* Uses a pool at random: a task, or a thread without a run. */
typedef struct actor {
    conc_procs *pool;
    gate *gate; /* never opened */
    unsigned random;
    int rounds;
    bool in_task;
    int wrong; /* the line of a mistake; 0: none */
    int rc, way;
} actor;

static unsigned draw(actor *a, unsigned below)
{
    a->random = a->random * 1103515245 + 12345;
    return (a->random >> 16) % below;
}

static void expect(actor *a, bool right, int line)
{
    if (!right && !a->wrong)
        a->wrong = line;
}

#define EXPECT(a, condition) expect((a), (condition), __LINE__)

static int act_run(void *arg)
{
    actor *a = arg;
    int n = (int)draw(a, 1000), rc = run_numbered(a->pool, returns, n);
    return rc == n ? 1 : rc;
}

static int act_large(void *arg)
{
    actor *a = arg;
    size_t n = draw(a, 4) * 100000 + 1;
    bomb *b = malloc(sizeof *b + n);
    if (!b)
        return -ENOMEM;
    b->n = n;
    memset(b->data, 3, n);
    int rc = conc_procs_run(a->pool, sums_up, b, sizeof *b + n);
    free(b);
    return rc == 6 ? 1 : rc;
}

static int act_hang(void *arg)
{
    actor *a = arg;
    visit v = {.gate = a->gate, .stays = true};
    return conc_procs_run(a->pool, visits, &v, sizeof v);
}

static int act_die(void *arg)
{
    actor *a = arg;
    death d = deaths[draw(a, CONC_LEN(deaths))];
    int rc = conc_procs_run(a->pool, dies, &d, sizeof d);
    return rc == -EOWNERDEAD ? 1 : rc;
}

/* Of all elements each was done, died, or was not begun. */
static int act_map(void *arg)
{
    enum { N = 60 };
    actor *a = arg;
    element e[N];
    int results[N];
    for (int i = 0; i < N; i++)
        e[i] = (element){i, draw(a, 40) == 0, deaths[draw(a, CONC_LEN(deaths))], a->gate};
    int rc = conc_procs_map_all(a->pool, counts_or_dies, e, N, sizeof e[0], results);
    for (int i = 0; i < N; i++) {
        EXPECT(a, results[i] == (e[i].deadly ? -EOWNERDEAD : i + 1) ||
                      (rc == -ECANCELED && results[i] == rc));
        EXPECT(a, e[i].number == i + (results[i] == i + 1));
    }
    return rc == 0 ? 1 : rc;
}

static int act_cancel(void *arg)
{
    actor *a = arg;
    visit v = {.gate = a->gate, .stays = draw(a, 2), .rc = 4};
    conc_job j;
    int result = WAITING, rc = conc_procs_submit(a->pool, &j, visits, &v, sizeof v);
    if (rc)
        return rc;
    for (unsigned i = draw(a, 3) * 100; i > 0 && !conc_job_done(&j); i--)
        ;
    rc = conc_job_cancel(&j);
    EXPECT(a, rc == 0 || rc == -EALREADY);
    EXPECT(a, conc_job_wait(&j, &result) == 0);
    return result == 4 || result == -ECANCELED ? 1 : result;
}

static void act(actor *a)
{
    static conc_fn *const ways[] = {act_run, act_run,    act_run, act_run, act_large,
                                    act_map, act_cancel, act_die, act_hang};
    a->way = (int)draw(a, CONC_LEN(ways) - !a->in_task);
    conc_fn *way = ways[a->way];
    bool limited = way == act_hang || (a->in_task && draw(a, 4) == 0);
    int rc = limited ? conc_timeout(0.0005 * draw(a, 20), way, a) : way(a);
    a->rc = rc;
    EXPECT(a, (rc == 1 && way != act_hang) || (rc == -ETIMEDOUT && limited));
}

static int acts(void *arg)
{
    actor *a = arg;
    for (int i = 0; i < a->rounds && !a->wrong; i++)
        act(a);
    return 0;
}

enum { TASKS = 4, THREADS = 2 };

static int acts_in_tasks(void *arg) { return conc_map(acts, arg, TASKS, sizeof(actor)); }

static void *acts_in_run(void *arg)
{
    ((actor *)arg)->wrong += conc_run(acts_in_tasks, arg) ? __LINE__ : 0;
    return NULL;
}

static void *acts_in_thread(void *arg)
{
    acts(arg);
    return NULL;
}

/* Two runs, each with tasks, and threads without a run. */
static void run_random_program(gate *never, unsigned seed)
{
    actor a[2 * TASKS + THREADS];
    pthread_t t[2 + THREADS];
    OPEN(pool, .workers = 1 + (int)(seed % 3));
    for (int i = 0; i < (int)CONC_LEN(a); i++)
        a[i] =
            (actor){&pool, never, seed * 1000003 + (unsigned)i * 7919, 6, i < 2 * TASKS, 0, 0, 0};
    for (int i = 0; i < 2; i++)
        CHECK_INT(pthread_create(&t[i], NULL, acts_in_run, &a[i * TASKS]), 0);
    for (int i = 0; i < THREADS; i++)
        CHECK_INT(pthread_create(&t[2 + i], NULL, acts_in_thread, &a[2 * TASKS + i]), 0);
    for (int i = 0; i < 2 + THREADS; i++)
        CHECK_INT(pthread_join(t[i], NULL), 0);
    for (int i = 0; i < (int)CONC_LEN(a); i++)
        if (a[i].wrong)
            test_fail(__FILE__, a[i].wrong, "seed %u, actor %d, way %d, result %d", seed, i,
                      a[i].way, a[i].rc);
}

THREAD_TEST(in_random_programs_every_job_has_its_result_or_never_ran)
{
    unsetenv("CONC_CLOCK");
    gate *never = new_gate();
    unsigned seed = (unsigned)time(NULL) % 1000000 * 1000;
    for (double begun = test_real_seconds(); test_real_seconds() - begun < 1.5; seed++)
        run_random_program(never, seed);
}
