/* test_wait_reports.c - every kind of wait, with every kind of owner, in a dump, in a deadlock
 * report, and in a trace.
 *
 * Not under: no-epoll, save-fpu, aarch64-bti, poll (which change nothing here)
 * Seeds: 0 (the order of the tasks is part of the output) */
#define TEST_SYNC
#define TEST_POOL
#include "conc_test.h"

#include <pthread.h>
#include <semaphore.h>
#include <sys/socket.h>

static conc_lock lock;
static conc_rwlock rwlock;
static conc_sem permits;
static conc_event event;
static conc_cond cond;
static conc_barrier barrier;
static conc_latch latch;
static conc_future future;
static conc_queue empty, full;
static conc_limiter limiter;
static conc_group crowded, family;
static conc_task sibling;
static conc_channel void_channel, full_channel;
static conc_pool pool;
static conc_job job, queued_job;
static conc_stream stream;
static int ends[2];
static sem_t gate, arrived;

/* ---- what the tasks wait for ---- */

static int for_ever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}
static int sleeps(void *arg)
{
    (void)arg;
    return conc_sleep(50);
}
static int settles(void *arg)
{
    (void)arg;
    return conc_settle();
}
static int wants_room(void *arg) { return conc_spawn(&crowded, for_ever, arg); }
static int starts(void *arg)
{
    conc_group g = {0};
    return conc_group_end(&g, conc_start(&g, for_ever, arg));
}
static int joins(void *arg)
{
    (void)arg;
    return conc_join(&sibling, NULL);
}
static int waits_for_a_group(void *arg)
{
    conc_group g = {0};
    CONC_TRY(conc_spawn(&g, for_ever, arg));
    return conc_group_wait(&g);
}
static int waits_for_the_next(void *arg)
{
    (void)arg;
    conc_task *t;
    return conc_group_next(&family, &t);
}
static int reads_a_pipe(void *arg)
{
    (void)arg;
    return conc_wait_fd(ends[0], CONC_READABLE);
}
static int writes_a_stream(void *arg)
{
    static char much[4 << 20];
    (void)arg;
    ssize_t n = conc_stream_write(&stream, much, sizeof much);
    return n < 0 ? (int)n : -ECANCELED;
}
static int receives(void *arg)
{
    (void)arg;
    return conc_wait_signal(SIGUSR1);
}
static int locks(void *arg)
{
    (void)arg;
    CONC_TRY(conc_lock_acquire(&lock));
    return conc_lock_release(&lock);
}
static int reads(void *arg)
{
    (void)arg;
    CONC_TRY(conc_rwlock_acquire_read(&rwlock));
    return conc_rwlock_release(&rwlock);
}
static int writes(void *arg)
{
    (void)arg;
    CONC_TRY(conc_rwlock_acquire_write(&rwlock));
    return conc_rwlock_release(&rwlock);
}
static int wants_a_permit(void *arg)
{
    (void)arg;
    return conc_sem_acquire(&permits);
}
static int waits_for_the_event(void *arg)
{
    (void)arg;
    return conc_event_wait(&event);
}
static int waits_for_the_condition(void *arg)
{
    (void)arg;
    CONC_TRY(conc_lock_acquire(&lock));
    int rc = conc_cond_wait(&cond, &lock);
    CHECK_INT(conc_lock_release(&lock), 0);
    return rc;
}
static int waits_at_the_barrier(void *arg)
{
    (void)arg;
    return conc_barrier_wait(&barrier);
}
static int waits_for_the_latch(void *arg)
{
    (void)arg;
    return conc_latch_wait(&latch);
}
static int waits_for_the_future(void *arg)
{
    (void)arg;
    return conc_future_wait(&future, NULL);
}
static int gets(void *arg)
{
    int item;
    (void)arg;
    return conc_queue_get(&empty, &item);
}
static int puts_one(void *arg)
{
    int item = 2;
    (void)arg;
    return conc_queue_put(&full, &item);
}
static int joins_the_queue(void *arg)
{
    (void)arg;
    return conc_queue_join(&full);
}
static int selects(void *arg)
{
    int item = 1;
    (void)arg;
    conc_case c[] = {CONC_CASE_GET(&empty, &item), CONC_CASE_PUT(&full, &item),
                     CONC_CASE_EVENT(&event), CONC_CASE_JOIN(&sibling)};
    return conc_select(c, CONC_LEN(c));
}
static int selects_of_outside(void *arg)
{
    (void)arg;
    conc_case c[] = {CONC_CASE_FD(ends[0], CONC_READABLE), CONC_CASE_AFTER(60)};
    return conc_select(c, CONC_LEN(c));
}
static int selects_of_many(void *arg)
{
    (void)arg;
    conc_case c[20];
    for (size_t i = 0; i < CONC_LEN(c); i++)
        c[i] = (conc_case)CONC_CASE_EVENT(&event);
    return conc_select(c, CONC_LEN(c));
}
static int is_limited(void *arg)
{
    (void)arg;
    return conc_limiter_acquire(&limiter, 1);
}
static int sends(void *arg)
{
    int item = 1;
    (void)arg;
    return conc_channel_send(&full_channel, &item);
}
static int receives_an_item(void *arg)
{
    int item;
    (void)arg;
    return conc_channel_recv(&void_channel, &item);
}
static int is_held(void *arg)
{
    (void)arg;
    sem_post(&arrived);
    return sem_wait(&gate);
}
static int is_quick(void *arg)
{
    (void)arg;
    return 0;
}
static int waits_for_a_job(void *arg)
{
    (void)arg;
    return conc_job_wait(&job, NULL);
}
static int submits_too_much(void *arg)
{
    static conc_job more;
    CONC_TRY(conc_pool_submit(&pool, &more, is_quick, arg));
    return conc_job_wait(&more, NULL);
}
static int closes_the_pool(void *arg)
{
    (void)arg;
    return conc_pool_close(&pool);
}
static void frees_nothing(void *arg) { (void)arg; }
static int abandons(void *arg) { return conc_offload_abandon(is_held, arg, frees_nothing); }

/* ---- before and after the wait ---- */

static int main_has_the_lock(void) { return conc_lock_acquire(&lock); }
static int main_writes(void) { return conc_rwlock_acquire_write(&rwlock); }
static int main_reads(void) { return conc_rwlock_acquire_read(&rwlock); }

static int takes_all_and_ends(void *arg)
{
    char name[] = "the deceased";
    (void)arg;
    conc_set_name(conc_self(), name);
    CONC_TRY(conc_lock_acquire(&lock));
    return conc_rwlock_acquire_write(&rwlock);
}

static int an_ended_task_has_all(void)
{
    conc_group g = {0};
    conc_task *t = malloc(sizeof *t);
    CHECK(t != NULL);
    CHECK_INT(conc_spawn_task(&g, t, takes_all_and_ends, NULL), 0);
    int rc = conc_group_wait(&g);
    free(t); /* so that ASan detects an access */
    return rc;
}

static int an_ended_task_had_the_same_storage(void)
{
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, takes_all_and_ends, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    return conc_spawn(NULL, for_ever, NULL); /* on the same stack */
}

static int a_crowd(void)
{
    crowded.limit = 1;
    return conc_spawn(&crowded, for_ever, NULL);
}
static int a_sibling(void) { return conc_spawn_task(NULL, &sibling, for_ever, NULL); }
static int a_family(void) { return conc_spawn_task(&family, &sibling, for_ever, NULL); }
static int a_pipe(void) { return pipe(ends); }
static int a_stream_that_is_busy(void)
{
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    CHECK_INT(conc_stream_open(&stream, ends[0]), 0);
    return conc_spawn(NULL, writes_a_stream, NULL);
}
static int a_barrier(void) { return barrier.parties = 3, 0; }
static int a_latch(void) { return conc_latch_add(&latch, 7); }
static int queues(void)
{
    int item = 1;
    empty = (conc_queue)CONC_QUEUE(int, 1);
    full = (conc_queue)CONC_QUEUE(int, 1);
    return conc_queue_put(&full, &item);
}
static int queues_and_a_sibling(void)
{
    CHECK_INT(a_sibling(), 0);
    return queues();
}
static int an_empty_bucket(void)
{
    limiter = (conc_limiter){.rate = 1, .per = 100};
    return conc_limiter_acquire(&limiter, 1);
}
static int channels(void)
{
    int item = 1;
    void_channel = (conc_channel)CONC_CHANNEL(int, 1);
    full_channel = (conc_channel)CONC_CHANNEL(int, 1);
    return conc_channel_send(&full_channel, &item);
}
static int a_pool_at_work(void)
{
    pool = (conc_pool){.threads = 1, .queue_limit = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_submit(&pool, &job, is_held, NULL), 0);
    sem_wait(&arrived);
    return conc_pool_submit(&pool, &queued_job, is_quick, NULL);
}
static void open_gate(void) { sem_post(&gate); }

/* ---- the table ---- */

enum { ALSO_A_DEADLOCK = 1, NEEDS_A_CANCEL = 2, NEEDS_A_GATE = 4 };

typedef struct row {
    const char *words, *span; /* in a dump, and as a span of a trace */
    conc_fn *waits;
    int (*before)(void); /* runs in main_fn; NULL: nothing */
    int how;
} row;

static const row rows[] = {
    {"sleeps for another ", "sleeps", sleeps, NULL, NEEDS_A_CANCEL},
    {"sleeps forever", "sleeps", for_ever, NULL, ALSO_A_DEADLOCK},
    {"waits until all other tasks are waiting", NULL, settles, NULL, 0},
    {"waits for room under its group's limit", "waits for room under its group's limit", wants_room,
     a_crowd, ALSO_A_DEADLOCK},
    {"waits for the start of for_ever at ", "waits for a start", starts, NULL, ALSO_A_DEADLOCK},
    {"joins for_ever at ", "joins", joins, a_sibling, ALSO_A_DEADLOCK},
    {"waits for 1 child of the group at ", "waits for its children", waits_for_a_group, NULL,
     ALSO_A_DEADLOCK},
    {"waits for the next to finish of 1 child of", "waits for its next child", waits_for_the_next,
     a_family, ALSO_A_DEADLOCK},
    {" to be readable", "waits for a descriptor", reads_a_pipe, a_pipe, NEEDS_A_CANCEL},
    {"waits for its turn to write to descriptor ", "waits for its turn to write", writes_a_stream,
     a_stream_that_is_busy, NEEDS_A_CANCEL},
    {"waits for a signal", "waits for a signal", receives, NULL, NEEDS_A_CANCEL},
    {"waits for a lock that main acquired at ", "waits for a lock", locks, main_has_the_lock,
     ALSO_A_DEADLOCK},
    {"by a task that has ended", "waits for a lock", locks, an_ended_task_has_all, ALSO_A_DEADLOCK},
    {"by a task that has ended", "waits for a lock", locks, an_ended_task_had_the_same_storage,
     ALSO_A_DEADLOCK},
    {"waits for a rwlock to write that main acquired at ", "waits for a rwlock", writes,
     main_writes, ALSO_A_DEADLOCK},
    {"waits for a rwlock to read that main acquired at ", "waits for a rwlock", reads, main_writes,
     ALSO_A_DEADLOCK},
    {"waits for a rwlock to write, held by 1 reader", "waits for a rwlock", writes, main_reads,
     ALSO_A_DEADLOCK},
    {"by a task that has ended", "waits for a rwlock", reads, an_ended_task_has_all,
     ALSO_A_DEADLOCK},
    {"by a task that has ended", "waits for a rwlock", writes, an_ended_task_had_the_same_storage,
     ALSO_A_DEADLOCK},
    {"waits for a semaphore permit", "waits for a semaphore permit", wants_a_permit, NULL,
     ALSO_A_DEADLOCK},
    {"waits for an event", "waits for an event", waits_for_the_event, NULL, ALSO_A_DEADLOCK},
    {"waits for a condition", "waits for a condition", waits_for_the_condition, NULL,
     ALSO_A_DEADLOCK},
    {"waits at a barrier, 1 of 3 have arrived", "waits at a barrier", waits_at_the_barrier,
     a_barrier, ALSO_A_DEADLOCK},
    {"waits for a latch with a count of 7", "waits for a latch", waits_for_the_latch, a_latch,
     ALSO_A_DEADLOCK},
    {"waits for a future", "waits for a future", waits_for_the_future, NULL, ALSO_A_DEADLOCK},
    {"waits to get from a queue (0 items)", "waits to get from a queue", gets, queues,
     ALSO_A_DEADLOCK},
    {"waits to put into a queue (1 items)", "waits to put into a queue", puts_one, queues,
     ALSO_A_DEADLOCK},
    {"waits for a queue's items to be done (1 left)", "waits for a queue's items to be done",
     joins_the_queue, queues, ALSO_A_DEADLOCK},
    {"waits for the first of a queue's item, room in a queue, an event, for_ever at ",
     "waits for the first of several", selects, queues_and_a_sibling, ALSO_A_DEADLOCK},
    {", 60 s", "waits for the first of several", selects_of_outside, a_pipe, NEEDS_A_CANCEL},
    {", an event, and 12 more [", "waits for the first of several", selects_of_many, NULL,
     ALSO_A_DEADLOCK},
    {"waits for a limiter of 1 in 100 s, for 1", "waits for a limiter", is_limited, an_empty_bucket,
     NEEDS_A_CANCEL},
    {"sends into a full channel", "sends into a full channel", sends, channels, NEEDS_A_CANCEL},
    {"receives from an empty channel", "receives from an empty channel", receives_an_item, channels,
     NEEDS_A_CANCEL},
    {"waits for a job", "waits for a job", waits_for_a_job, a_pool_at_work, NEEDS_A_GATE},
    {"waits for room in a pool's queue", "waits for room in a pool's queue", submits_too_much,
     a_pool_at_work, NEEDS_A_GATE},
    {"closes a pool, and waits for its jobs", "closes a pool, and waits for its jobs",
     closes_the_pool, a_pool_at_work, NEEDS_A_GATE},
    {"waits for a job that it may abandon", "waits for a job that it may abandon", abandons, NULL,
     NEEDS_A_CANCEL | NEEDS_A_GATE},
};

static char text[1 << 20];
static char trace_path[64];

static void dump(void)
{
    FILE *out = fmemopen(text, sizeof text, "w");
    CHECK(out != NULL);
    conc_dump(out);
    CHECK_INT(fclose(out), 0);
}

static int waits_a_moment(void *arg)
{
    (void)arg;
    CONC_TRY(conc_lock_acquire(&lock));
    return conc_lock_release(&lock);
}

/* Produces a report in which an owner is alive, so that whatever conc remembers of it could mislead
 * the next report. */
static void look_at_a_living_owner(void)
{
    conc_group g = {0};
    CHECK_INT(conc_lock_acquire(&lock), 0);
    CHECK_INT(conc_spawn(&g, waits_a_moment, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    dump();
    CHECK_CONTAINS(text, "that main acquired at ");
    CHECK_INT(conc_lock_release(&lock), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

static void close_group(conc_group *g)
{
    conc_group_cancel(g);
    (void)!conc_group_wait(g);
}

/* Opens what the row needs in the order in which it is closed. */
static int waits_as_the_row(void *arg)
{
    const row *r = arg;
    conc_group g = {0};
    look_at_a_living_owner();
    CHECK_INT(r->before ? r->before() : 0, 0);
    CHECK_INT(conc_spawn(&g, r->waits, NULL), 0);
    if (*trace_path) {
        CHECK_INT(conc_settle(), 0);
        dump();
        CHECK_CONTAINS(text, r->words);
    }
    if (r->how & NEEDS_A_GATE)
        open_gate();
    if (r->how & NEEDS_A_CANCEL || *trace_path)
        conc_group_cancel(&g);
    int rc = conc_group_wait(&g);
    close_group(&family);
    close_group(&crowded);
    if (conc_lock_owner(&lock) == conc_self())
        CHECK_INT(conc_lock_release(&lock), 0);
    if (pool.queue)
        CHECK_INT(conc_pool_close(&pool), 0);
    conc_channel_destroy(&full_channel);
    conc_channel_destroy(&void_channel);
    conc_queue_destroy(&full);
    return rc;
}

static const row *at;

static void run_with_a_trace(void)
{
    conc_options o = {.trace = trace_path};
    sem_init(&gate, 0, 0);
    sem_init(&arrived, 0, 0);
    CHECK_INT(conc_run_with(&o, waits_as_the_row, (void *)(uintptr_t)at), 0);
}

static void run_into_a_deadlock(void)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, waits_as_the_row, (void *)(uintptr_t)at), -EDEADLK);
}

static void run_in_debug_mode(void)
{
    conc_options o = {.virtual_clock = true, .debug = true};
    CHECK_INT(conc_run_with(&o, waits_as_the_row, (void *)(uintptr_t)at), -EDEADLK);
}

static void check_process(void (*fn)(void))
{
    int status = test_in_process(fn, text, sizeof text);
    if (status)
        test_fail(__FILE__, __LINE__, "%s: status 0x%x, stderr:\n%s", at->words, (unsigned)status,
                  text);
}

TEST(every_kind_of_wait_is_in_a_dump_and_a_span_of_a_trace)
{
    for (at = rows; at < rows + CONC_LEN(rows); at++) {
        char span[128];
        snprintf(trace_path, sizeof trace_path, "/tmp/conc-test-XXXXXX");
        int fd = mkstemp(trace_path);
        CHECK(fd >= 0);
        check_process(run_with_a_trace);
        ssize_t n = read(fd, text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        close(fd);
        unlink(trace_path);
        snprintf(span, sizeof span, "{\"name\":\"%s\",\"ph\":\"X\"",
                 at->span ? at->span : "running");
        CHECK_CONTAINS(text, span);
    }
}

TEST(every_kind_of_wait_that_may_last_forever_is_in_the_report_of_a_deadlock)
{
    for (at = rows; at < rows + CONC_LEN(rows); at++)
        if (at->how & ALSO_A_DEADLOCK) {
            check_process(run_into_a_deadlock);
            CHECK_CONTAINS(text, at->words);
            check_process(run_in_debug_mode);
            CHECK_CONTAINS(text, at->words);
        }
}

/* ---- owners in other runs ---- */

static int takes_the_lock(void *held)
{
    CHECK_INT(conc_lock_acquire(&lock), 0);
    sem_post(&arrived);
    if (held)
        sem_wait(&gate);
    return 0;
}

static void *runs_in_a_thread(void *held)
{
    CHECK_INT(conc_run(takes_the_lock, held), 0);
    return NULL;
}

/* The condition's wait releases the lock, to another run, and acquires it again. */
static int wants_it_back_from_another_run(void *held)
{
    pthread_t thread;
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, waits_for_the_condition, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(pthread_create(&thread, NULL, runs_in_a_thread, held), 0);
    sem_wait(&arrived);
    if (!held)
        CHECK_INT(pthread_join(thread, NULL), 0);
    conc_cond_notify_all(&cond);
    int rc = conc_group_wait(&g);
    if (held) {
        sem_post(&gate);
        CHECK_INT(pthread_join(thread, NULL), 0);
    }
    return rc;
}

static void *other_run_lasts;

static void run_beside_another(void)
{
    conc_options o = {.virtual_clock = true};
    sem_init(&gate, 0, 0);
    sem_init(&arrived, 0, 0);
    CHECK_INT(conc_run_with(&o, wants_it_back_from_another_run, other_run_lasts), -EDEADLK);
}

TEST(an_owner_in_another_run_is_reported_and_not_accessed)
{
    static const row other = {.words = "waits to reacquire a lock acquired at "};
    at = &other;
    for (int lasts = 0; lasts < 2; lasts++) {
        other_run_lasts = lasts ? &gate : NULL;
        check_process(run_beside_another);
        CHECK_CONTAINS(text, at->words);
        CHECK_CONTAINS(text, " by a task of another run");
    }
}
