/* test_channels.c - conc_channel: items go from any task, thread or job to any other, each exactly
 * once and in order, even if clients are cancelled, time out or close the channel meanwhile.
 *
 * Seeds: 2 (most of it happens between threads)
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, riscv64, poll, gcc-asan, single, clang,
 * static, valgrind (how tasks switch and wait is tested elsewhere)
 */
#define _GNU_SOURCE 1 /* syscall */
#define TEST_POOL
#include "io_test.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>

enum { UNDECIDED = 1000, UNTOUCHED = -77 }; /* neither a result of any call nor an item */

/* A sender or receiver: a task of this loop, a thread, a job, or the only task of another loop. */
typedef enum kind { TASK, THREAD, JOB, LOOP, KINDS } kind;

typedef struct client {
    conc_channel *channel;
    int item;
    conc_task task;
    pthread_t thread;
    conc_job job;
    conc_fn *fn;
    atomic_int tid; /* thread id of a client about to call; 0: not yet */
    atomic_int rc;  /* result of the call */
    int next;       /* result of the checkpoint after it */
} client;

static int finish(client *c, int rc)
{
    c->next = conc_yield();
    c->rc = rc;
    return 0;
}

static int sends_one(void *arg)
{
    client *c = arg;
    c->tid = (int)syscall(SYS_gettid);
    return finish(c, conc_channel_send(c->channel, &c->item));
}

static int receives_one(void *arg)
{
    client *c = arg;
    c->tid = (int)syscall(SYS_gettid);
    return finish(c, conc_channel_recv(c->channel, &c->item));
}

static void *in_thread(void *arg)
{
    client *c = arg;
    c->fn(c);
    return NULL;
}

static void *in_loop(void *arg)
{
    client *c = arg;
    int rc = conc_run(c->fn, c);
    if (rc != 0)
        c->rc = rc;
    return NULL;
}

/* Under Valgrind all threads but the running one sleep, wherever they are, so looking for sleeping
 * threads proves nothing. */
static bool sleepers_are_seen(void)
{
    const char *preloaded = getenv("LD_PRELOAD");
    return !preloaded || !strstr(preloaded, "vgpreload");
}

static bool sleeps(int tid)
{
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    ssize_t n = read(fd, text, sizeof text - 1);
    CHECK(n > 0);
    CHECK_INT(close(fd), 0);
    const char *name_end = strrchr(text, ')');
    CHECK(name_end != NULL);
    return name_end[2] == 'S';
}

/* Returns when the client's thread sleeps: only the channel can make it wait. */
static void wait_asleep(client *c)
{
    while (!c->tid || !sleeps(c->tid))
        sched_yield();
}

static void start_client(client *c, conc_fn *fn, conc_channel *channel, int item)
{
    *c = (client){.channel = channel, .item = item, .fn = fn, .rc = UNDECIDED, .next = UNDECIDED};
}

/* Starts a task and lets it run until it waits: that fixes the order of arrival. */
static void arrive(conc_group *g, conc_fn *fn, conc_channel *channel, client *c, int item)
{
    start_client(c, fn, channel, item);
    CHECK_INT(conc_spawn_task(g, &c->task, fn, c), 0);
    CHECK_INT(conc_settle(), 0);
}

static void arrive_as(kind k, conc_group *g, conc_pool *pool, client *c)
{
    switch (k) {
    case TASK:
        CHECK_INT(conc_spawn_task(g, &c->task, c->fn, c), 0);
        CHECK_INT(conc_settle(), 0);
        return;
    case JOB: CHECK_INT(conc_pool_submit(pool, &c->job, c->fn, c), 0); break;
    default: CHECK_INT(pthread_create(&c->thread, NULL, k == LOOP ? in_loop : in_thread, c), 0);
    }
    wait_asleep(c);
}

static void leave_as(kind k, client *c)
{
    while (c->rc == UNDECIDED) {
        CHECK_INT(conc_yield(), 0);
        sched_yield();
    }
    if (k == JOB)
        CHECK_INT(conc_job_wait(&c->job, NULL), 0);
    if (k == THREAD || k == LOOP)
        CHECK_INT(pthread_join(c->thread, NULL), 0);
}

static void check_waits(const client *c, int n)
{
    for (int i = 0; i < n; i++)
        CHECK_INT(c[i].rc, UNDECIDED);
}

/* Checks that each has rc, and items that count up from the first one's. */
static void check_clients(const client *c, int n, int rc, int first_item)
{
    for (int i = 0; i < n; i++) {
        CHECK_INT(c[i].rc, rc);
        CHECK_INT(c[i].item, first_item == UNTOUCHED ? UNTOUCHED : first_item + i);
    }
}

static int send_int(conc_channel *c, int item) { return conc_channel_send(c, &item); }
static int try_send(conc_channel *c, int item) { return conc_channel_try_send(c, &item); }

static void check_next(conc_channel *c, int expected)
{
    int item = UNTOUCHED;
    CHECK_INT(conc_channel_recv(c, &item), 0);
    CHECK_INT(item, expected);
}

static void check_try_next(conc_channel *c, int expected)
{
    int item = UNTOUCHED;
    CHECK_INT(conc_channel_try_recv(c, &item), 0);
    CHECK_INT(item, expected);
}

static void check_try_recv_fails(conc_channel *c, int rc)
{
    int item = UNTOUCHED;
    CHECK_INT(conc_channel_try_recv(c, &item), rc);
    CHECK_INT(item, UNTOUCHED);
}

static void check_empty(conc_channel *c) { check_try_recv_fails(c, -EAGAIN); }

static int send_here(void *arg)
{
    client *c = arg;
    int rc = conc_channel_send(c->channel, &c->item);
    c->rc = rc;
    return rc;
}

static int receive_here(void *arg)
{
    client *c = arg;
    int rc = conc_channel_recv(c->channel, &c->item);
    c->rc = rc;
    return rc;
}

static conc_stats stats(void)
{
    conc_stats s;
    conc_get_stats(&s);
    return s;
}

/* ---- order and capacity ---- */

TASK_TEST(items_come_out_in_the_order_in_which_they_went_in)
{
    for (size_t capacity = 1; capacity <= 5; capacity++) {
        conc_channel c = CONC_CHANNEL(int, capacity);
        int sent = 0, received = 0;
        for (int round = 0; round < 100; round++) {
            while (sent - received < (int)capacity)
                CHECK_INT(sent % 2 ? try_send(&c, sent) : send_int(&c, sent), 0), sent++;
            CHECK_INT(try_send(&c, -1), -EAGAIN);
            for (int n = 1 + round % (int)capacity; n > 0; n--, received++)
                received % 2 ? check_next(&c, received) : check_try_next(&c, received);
        }
        while (received < sent)
            check_next(&c, received++);
        check_empty(&c);
        conc_channel_destroy(&c);
    }
}

typedef struct odd {
    char bytes[3];
} odd;

TASK_TEST(items_of_any_size_are_copied_whole_and_no_byte_more)
{
    static const size_t sizes[] = {1, 3, 4, 7, 8, 9, 16, 1000, 100000};
    static char in[100000], out[100000 + 1];
    for (size_t s = 0; s < CONC_LEN(sizes); s++) {
        conc_channel c = {.item_size = sizes[s], .capacity = 3};
        for (char n = 0; n < 7; n++) {
            memset(in, n, sizes[s]);
            CHECK_INT(conc_channel_send(&c, in), 0);
            memset(in, 'x', sizes[s]);
            memset(out, 'y', sizeof out);
            CHECK_INT(conc_channel_recv(&c, out), 0);
            for (size_t i = 0; i < sizes[s]; i++)
                CHECK_INT(out[i], n);
            CHECK_INT(out[sizes[s]], 'y');
        }
        conc_channel_destroy(&c);
    }
    conc_channel c = CONC_CHANNEL(odd, 2);
    CHECK_INT(c.item_size, 3);
    CHECK_INT(c.capacity, 2);
}

TASK_TEST(items_without_a_size_are_counted)
{
    conc_channel c = {.capacity = 2};
    CHECK_INT(conc_channel_send(&c, NULL), 0);
    CHECK_INT(conc_channel_try_send(&c, &c), 0);
    CHECK_INT(conc_channel_try_send(&c, NULL), -EAGAIN);
    CHECK_INT(conc_channel_recv(&c, NULL), 0);
    CHECK_INT(conc_channel_try_recv(&c, NULL), 0);
    CHECK_INT(conc_channel_try_recv(&c, NULL), -EAGAIN);
    conc_channel_destroy(&c);
    conc_channel many = {.capacity = SIZE_MAX};
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_channel_send(&many, NULL), 0);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_channel_recv(&many, NULL), 0);
    CHECK_INT(conc_channel_try_recv(&many, NULL), -EAGAIN);
    conc_channel_destroy(&many);
}

static void check_all_four(conc_channel *c, const void *from, void *to, int rc)
{
    CHECK_INT(conc_channel_try_send(c, from), rc);
    CHECK_INT(conc_channel_try_recv(c, to), rc);
    CHECK_INT(conc_channel_send(c, from), rc);
    CHECK_INT(conc_channel_recv(c, to), rc);
}

TASK_TEST(invalid_channels_and_items_are_refused)
{
    char item[8] = "before";
    conc_channel zero = {0}, no_room = CONC_CHANNEL(int, 0);
    conc_channel overflows[] = {{.item_size = SIZE_MAX / 2 + 1, .capacity = 2},
                                {.item_size = 2, .capacity = SIZE_MAX / 2 + 1},
                                {.item_size = SIZE_MAX, .capacity = SIZE_MAX},
                                /* the product is 0 */
                                {.item_size = (size_t)1 << (sizeof(size_t) * 4),
                                 .capacity = (size_t)1 << (sizeof(size_t) * 4)}};
    check_all_four(NULL, item, item, -EINVAL);
    check_all_four(&zero, item, item, -EINVAL);
    check_all_four(&no_room, item, item, -EINVAL);
    for (size_t i = 0; i < CONC_LEN(overflows); i++)
        check_all_four(&overflows[i], item, item, -EINVAL);
    CHECK_STR(item, "before");
    conc_channel_close(NULL);
    conc_channel_destroy(NULL);
    conc_channel_close(&zero);
    conc_channel_destroy(&zero);
    conc_channel_destroy(&no_room);
}

TASK_TEST(a_call_without_an_item_is_refused_and_the_channel_still_works)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    CHECK_INT(conc_channel_send(&c, NULL), -EINVAL);
    CHECK_INT(conc_channel_try_send(&c, NULL), -EINVAL);
    check_empty(&c);
    CHECK_INT(try_send(&c, 1), 0);
    CHECK_INT(conc_channel_recv(&c, NULL), -EINVAL);
    CHECK_INT(conc_channel_try_recv(&c, NULL), -EINVAL);
    check_next(&c, 1);
    conc_channel_destroy(&c);
}

TASK_TEST(a_channel_that_is_too_large_accepts_nothing_and_can_be_closed_and_made_smaller)
{
    conc_channel c = {.item_size = (size_t)1 << (sizeof(size_t) * 8 - 8), .capacity = 16};
    char item = 'a';
    if (SANITIZED)
        return; /* sanitizers abort a program that requests so much */
    check_all_four(&c, &item, &item, -ENOMEM);
    conc_channel_close(&c);
    check_all_four(&c, &item, &item, -EPIPE);
    conc_channel_destroy(&c);
    c.item_size = 1;
    CHECK_INT(conc_channel_send(&c, &item), 0);
    CHECK_INT(conc_channel_recv(&c, &item), 0);
    CHECK_INT(item, 'a');
    conc_channel_destroy(&c);
}

TASK_TEST(the_error_text_of_a_closed_channel_replaces_older_ones)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    int item = 0;
    conc_channel_close(&c);
    CHECK_INT(conc_fail(-EPIPE, "older"), -EPIPE);
    CHECK_INT(conc_channel_send(&c, &item), -EPIPE);
    CHECK_STR(conc_last_error(), conc_strerror(-EPIPE));
    CHECK_INT(conc_fail(-EPIPE, "older"), -EPIPE);
    CHECK_INT(conc_channel_try_recv(&c, &item), -EPIPE);
    CHECK_STR(conc_last_error(), conc_strerror(-EPIPE));
    conc_channel_destroy(&c);
}

TASK_TEST(errno_is_preserved)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    errno = 77;
    check_empty(&c);
    CHECK_INT(send_int(&c, 1), 0);
    CHECK_INT(try_send(&c, 1), -EAGAIN);
    check_next(&c, 1);
    conc_channel_close(&c);
    CHECK_INT(send_int(&c, 1), -EPIPE);
    conc_channel_destroy(&c);
    CHECK_INT(errno, 77);
}

/* ---- waiting, in one loop ---- */

TASK_TEST(receivers_are_served_in_fifo_order)
{
    enum { N = 5 };
    conc_channel c = CONC_CHANNEL(int, 2);
    client r[N];
    conc_group g = {0};
    for (int i = 0; i < N; i++)
        arrive(&g, receives_one, &c, &r[i], UNTOUCHED);
    check_waits(r, N);
    for (int i = 0; i < N; i++) {
        CHECK_INT(send_int(&c, i), 0);
        check_empty(&c); /* the item already belongs to the receiver */
        CHECK_INT(conc_settle(), 0);
        check_clients(r, i + 1, 0, 0);
        check_waits(r + i + 1, N - i - 1);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    conc_channel_destroy(&c);
}

TASK_TEST(more_items_than_fit_go_to_receivers_that_wait)
{
    enum { N = 5 };
    conc_channel c = CONC_CHANNEL(int, 1);
    client r[N];
    conc_group g = {0};
    for (int i = 0; i < N; i++)
        arrive(&g, receives_one, &c, &r[i], UNTOUCHED);
    for (int i = 0; i < N; i++)
        CHECK_INT(try_send(&c, i), 0);
    CHECK_INT(try_send(&c, N), 0);
    CHECK_INT(try_send(&c, -1), -EAGAIN);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(r, N, 0, 0);
    check_next(&c, N);
    conc_channel_destroy(&c);
}

TASK_TEST(senders_are_served_in_fifo_order)
{
    enum { N = 5, CAPACITY = 2 };
    conc_channel c = CONC_CHANNEL(int, CAPACITY);
    client s[N];
    conc_group g = {0};
    for (int i = 0; i < CAPACITY; i++)
        CHECK_INT(try_send(&c, i), 0);
    for (int i = 0; i < N; i++)
        arrive(&g, sends_one, &c, &s[i], CAPACITY + i);
    check_waits(s, N);
    for (int i = 0; i < N; i++) {
        check_try_next(&c, i);
        CHECK_INT(try_send(&c, -1), -EAGAIN); /* the slot already belongs to the sender */
        CHECK_INT(conc_settle(), 0);
        check_clients(s, i + 1, 0, CAPACITY);
        check_waits(s + i + 1, N - i - 1);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = N; i < N + CAPACITY; i++)
        check_next(&c, i);
    check_empty(&c);
    conc_channel_destroy(&c);
}

static int sends_a_thousand(void *arg)
{
    for (int i = 0; i < 1000; i++)
        CONC_TRY(send_int(arg, i));
    return 0;
}

static int receives_a_thousand(void *arg)
{
    for (int i = 0; i < 1000; i++)
        check_next(arg, i);
    return 0;
}

TASK_TEST(two_tasks_pass_a_thousand_items_through_each_small_capacity)
{
    for (size_t capacity = 1; capacity <= 4; capacity++) {
        conc_channel c = CONC_CHANNEL(int, capacity);
        CHECK_INT(CONC_GATHER(CONC_CALL(sends_a_thousand, &c), CONC_CALL(receives_a_thousand, &c)),
                  0);
        check_empty(&c);
        conc_channel_destroy(&c);
    }
}

static int counts_turns(void *turns)
{
    for (;;) {
        CONC_TRY(conc_yield());
        ++*(int *)turns;
    }
}

TASK_TEST(a_task_that_never_has_to_wait_starves_no_other)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    int turns = 0;
    CHECK_INT(conc_spawn(NULL, counts_turns, &turns), 0);
    for (int i = 0; i < 10000; i++) {
        CHECK_INT(send_int(&c, i), 0);
        check_next(&c, i);
    }
    CHECK(turns > 10);
    conc_channel_destroy(&c);
}

TASK_TEST(waiting_forever_on_a_channel_lets_time_pass)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    client r;
    conc_group g = {0};
    arrive(&g, receives_one, &c, &r, UNTOUCHED);
    CHECK_INT(conc_sleep(100), 0);
    CHECK_TIME(100);
    CHECK_INT(send_int(&c, 5), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&r, 1, 0, 5);
    CHECK_TIME(100);
    conc_channel_destroy(&c);
}

/* ---- closing ---- */

TASK_TEST(a_closed_channel_is_drained_and_accepts_nothing)
{
    conc_channel c = CONC_CHANNEL(int, 4);
    for (int i = 0; i < 3; i++)
        CHECK_INT(send_int(&c, i), 0);
    conc_channel_close(&c);
    CHECK_INT(send_int(&c, 9), -EPIPE);
    CHECK_INT(try_send(&c, 9), -EPIPE);
    conc_channel_close(&c);
    check_next(&c, 0);
    check_try_next(&c, 1);
    check_next(&c, 2);
    for (int i = 0; i < 3; i++) {
        int item = UNTOUCHED;
        check_try_recv_fails(&c, -EPIPE);
        CHECK_INT(conc_channel_recv(&c, &item), -EPIPE);
        CHECK_INT(item, UNTOUCHED);
        CHECK_INT(send_int(&c, 9), -EPIPE);
    }
    conc_channel_destroy(&c);
}

TASK_TEST(a_channel_that_was_closed_before_its_first_use_is_closed)
{
    conc_channel c = CONC_CHANNEL(int, 4);
    int item = UNTOUCHED;
    conc_channel_close(&c);
    check_all_four(&c, &item, &item, -EPIPE);
    CHECK_INT(item, UNTOUCHED);
    conc_channel_destroy(&c);
}

TASK_TEST(a_close_wakes_all_receivers)
{
    conc_channel c = CONC_CHANNEL(int, 4);
    client r[5];
    conc_group g = {0};
    for (int i = 0; i < 5; i++)
        arrive(&g, receives_one, &c, &r[i], UNTOUCHED);
    conc_channel_close(&c);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(r, 5, -EPIPE, UNTOUCHED);
    conc_channel_destroy(&c);
}

TASK_TEST(a_close_wakes_all_senders_and_takes_none_of_their_items)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    client s[5];
    conc_group g = {0};
    CHECK_INT(send_int(&c, 0), 0);
    for (int i = 0; i < 5; i++)
        arrive(&g, sends_one, &c, &s[i], 10 + i);
    conc_channel_close(&c);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(s, 5, -EPIPE, 10);
    check_next(&c, 0);
    check_try_recv_fails(&c, -EPIPE);
    conc_channel_destroy(&c);
}

TASK_TEST(items_handed_over_before_the_close_belong_to_the_waiters)
{
    conc_channel in = CONC_CHANNEL(int, 1), out = CONC_CHANNEL(int, 1);
    client r[2], s[2];
    conc_group g = {0};
    CHECK_INT(send_int(&out, 0), 0);
    for (int i = 0; i < 2; i++) {
        arrive(&g, receives_one, &in, &r[i], UNTOUCHED);
        arrive(&g, sends_one, &out, &s[i], 1 + i);
    }
    CHECK_INT(try_send(&in, 5), 0);
    conc_channel_close(&in);
    check_try_next(&out, 0);
    conc_channel_close(&out);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&r[0], 1, 0, 5);
    check_clients(&r[1], 1, -EPIPE, UNTOUCHED);
    CHECK_INT(s[0].rc, 0);
    CHECK_INT(s[1].rc, -EPIPE);
    check_next(&out, 1);
    check_try_recv_fails(&out, -EPIPE);
    conc_channel_destroy(&in);
    conc_channel_destroy(&out);
}

/* ---- destroying ---- */

TASK_TEST(a_destroyed_channel_is_like_new)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    conc_channel_destroy(&c);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(send_int(&c, 10 + i), 0);
        CHECK_INT(send_int(&c, 20 + i), 0);
        CHECK_INT(try_send(&c, 0), -EAGAIN);
        if (i == 1)
            conc_channel_close(&c);
        conc_channel_destroy(&c);
        CHECK_INT(c.item_size, sizeof(int));
        CHECK_INT(c.capacity, 2);
        check_empty(&c);
    }
    conc_channel_destroy(&c);
    conc_channel_destroy(&c);
    c.capacity = 3;
    c.item_size = 1;
    for (char x = 'a'; x < 'd'; x++)
        CHECK_INT(conc_channel_send(&c, &x), 0);
    CHECK_INT(conc_channel_try_send(&c, "d"), -EAGAIN);
    char text[4] = "";
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_channel_recv(&c, text + i), 0);
    CHECK_STR(text, "abc");
    conc_channel_destroy(&c);
}

static int leaves_early(conc_channel **where)
{
    CONC_AUTO(conc_channel, c) = CONC_CHANNEL(int, 2);
    CONC_AUTO(conc_channel, never_used) = CONC_CHANNEL(int, 2);
    *where = &c;
    CHECK(*where != &never_used);
    CHECK_INT(send_int(&c, 1), 0);
    return 7;
}

TASK_TEST(a_channel_of_a_block_is_destroyed_at_its_end)
{
    conc_channel *where = NULL;
    for (int i = 0; i < 100; i++)
        CHECK_INT(leaves_early(&where), 7); /* sanitizers would find a leak */
}

/* ---- cancels: a grant before a cancel stands, and a cancelled call has no effect ---- */

TASK_TEST(a_cancel_before_the_call_lets_only_tries_succeed)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    int item = UNTOUCHED;
    conc_scope s = {0};
    CHECK_INT(send_int(&c, 1), 0);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(send_int(&c, 2), -ECANCELED);
    CHECK_INT(conc_channel_recv(&c, &item), -ECANCELED);
    CHECK_INT(item, UNTOUCHED);
    CHECK_INT(try_send(&c, 3), 0);
    check_try_next(&c, 1);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    check_next(&c, 3);
    check_empty(&c);
    conc_channel_destroy(&c);
}

TASK_TEST(an_item_that_was_sent_before_the_cancel_is_received)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    client r[2];
    conc_group g = {0};
    for (int i = 0; i < 2; i++)
        arrive(&g, receives_one, &c, &r[i], UNTOUCHED);
    CHECK_INT(try_send(&c, 5), 0);
    CHECK_INT(conc_cancel(&r[0].task), 0);
    CHECK_INT(conc_settle(), 0);
    check_clients(r, 1, 0, 5);
    CHECK_INT(r[0].next, -ECANCELED);
    check_waits(r + 1, 1);
    check_empty(&c);
    CHECK_INT(try_send(&c, 6), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(r, 2, 0, 5);
    CHECK_INT(r[1].next, 0);
    conc_channel_destroy(&c);
}

TASK_TEST(an_item_that_was_sent_after_the_cancel_goes_to_the_next)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    client r[2];
    conc_group g = {0};
    for (int i = 0; i < 2; i++)
        arrive(&g, receives_one, &c, &r[i], UNTOUCHED);
    CHECK_INT(conc_cancel(&r[0].task), 0);
    CHECK_INT(try_send(&c, 5), 0);
    CHECK_INT(try_send(&c, 6), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&r[0], 1, -ECANCELED, UNTOUCHED);
    check_clients(&r[1], 1, 0, 5);
    check_next(&c, 6);
    conc_channel_destroy(&c);
}

TASK_TEST(an_item_that_was_taken_before_the_cancel_is_sent)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    client s[2];
    conc_group g = {0};
    CHECK_INT(try_send(&c, 0), 0);
    for (int i = 0; i < 2; i++)
        arrive(&g, sends_one, &c, &s[i], 1 + i);
    check_try_next(&c, 0);
    CHECK_INT(conc_cancel(&s[0].task), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(s[0].rc, 0);
    CHECK_INT(s[0].next, -ECANCELED);
    check_waits(s + 1, 1);
    check_try_next(&c, 1);
    CHECK_INT(conc_group_wait(&g), 0);
    check_next(&c, 2);
    check_empty(&c);
    conc_channel_destroy(&c);
}

TASK_TEST(an_item_of_a_sender_that_was_cancelled_is_never_seen)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    client s[3];
    conc_group g = {0};
    CHECK_INT(try_send(&c, 0), 0);
    for (int i = 0; i < 3; i++)
        arrive(&g, sends_one, &c, &s[i], 1 + i);
    CHECK_INT(conc_cancel(&s[0].task), 0);
    CHECK_INT(conc_cancel(&s[1].task), 0);
    check_try_next(&c, 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(s[0].rc, -ECANCELED);
    CHECK_INT(s[1].rc, -ECANCELED);
    CHECK_INT(s[2].rc, 0);
    check_next(&c, 3);
    check_empty(&c);
    conc_channel_destroy(&c);
}

/* The same with a time limit. */
typedef struct limited {
    conc_channel channel;
    bool sends;
    double limit, other_at; /* when the limit passes, and when the other side calls */
    client c;
} limited;

static int with_limit(void *arg)
{
    limited *l = arg;
    int rc = conc_timeout(l->limit, l->sends ? send_here : receive_here, &l->c);
    return rc == -ETIMEDOUT ? 0 : rc;
}

static int other_side(void *arg)
{
    limited *l = arg;
    int item = UNTOUCHED;
    CONC_TRY(conc_sleep_until(l->other_at));
    CHECK_INT(l->sends ? conc_channel_try_recv(&l->channel, &item) : try_send(&l->channel, 5), 0);
    return 0;
}

/* Runs both; the limit is armed first or last. Returns whether the waiting one was served. */
static bool meet(limited *l, bool limit_first)
{
    conc_group g = {0};
    start_client(&l->c, NULL, &l->channel, l->sends ? 1 : UNTOUCHED);
    CHECK_INT(conc_spawn(&g, limit_first ? with_limit : other_side, l), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn(&g, limit_first ? other_side : with_limit, l), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(l->c.rc == 0 || l->c.rc == -ECANCELED);
    return l->c.rc == 0;
}

/* conc_block passes the limit without letting another task run */
static void pass_the_limit(bool sends, bool limit_first)
{
    limited l = {.channel = CONC_CHANNEL(int, 1), .sends = sends, .limit = 1};
    conc_group g = {0};
    int item = UNTOUCHED;
    if (sends)
        CHECK_INT(try_send(&l.channel, 0), 0);
    start_client(&l.c, NULL, &l.channel, sends ? 1 : UNTOUCHED);
    CHECK_INT(conc_spawn(&g, with_limit, &l), 0);
    CHECK_INT(conc_settle(), 0);
    if (limit_first)
        CHECK_INT(conc_block(2), 0);
    CHECK_INT(sends ? conc_channel_try_recv(&l.channel, &item) : try_send(&l.channel, 5), 0);
    if (!limit_first)
        CHECK_INT(conc_block(2), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(l.c.rc, limit_first ? -ECANCELED : 0);
    CHECK_INT(l.c.item, sends ? 1 : limit_first ? UNTOUCHED : 5);
    if (sends != limit_first)
        check_try_next(&l.channel, sends ? 1 : 5);
    check_empty(&l.channel);
    conc_channel_destroy(&l.channel);
}

TASK_TEST(the_first_of_a_deadline_and_the_other_side_counts)
{
    for (int i = 0; i < 4; i++)
        pass_the_limit(i / 2, i % 2);
}

TASK_TEST(an_item_and_a_deadline_in_the_same_moment_leave_the_item_in_one_place)
{
    for (int i = 0; i < 6; i++) {
        double now = conc_now();
        limited l = {.channel = CONC_CHANNEL(int, 1),
                     .limit = 1,
                     .other_at = now + (i < 2   ? 1
                                        : i < 4 ? 0.5
                                                : 1.5)};
        bool served = meet(&l, i % 2);
        CHECK(i < 2 || served == (i < 4));
        CHECK_INT(l.c.item, served ? 5 : UNTOUCHED);
        served ? check_empty(&l.channel) : check_try_next(&l.channel, 5);
        conc_channel_destroy(&l.channel);
        CHECK_INT(conc_sleep_until(now + 2), 0);
    }
}

TASK_TEST(room_and_a_deadline_in_the_same_moment_leave_the_item_in_one_place)
{
    for (int i = 0; i < 6; i++) {
        double now = conc_now();
        limited l = {.channel = CONC_CHANNEL(int, 1),
                     .sends = true,
                     .limit = 1,
                     .other_at = now + (i < 2   ? 1
                                        : i < 4 ? 0.5
                                                : 1.5)};
        CHECK_INT(try_send(&l.channel, 0), 0);
        bool served = meet(&l, i % 2);
        CHECK(i < 2 || served == (i < 4));
        served ? check_try_next(&l.channel, 1) : (void)0;
        check_empty(&l.channel);
        conc_channel_destroy(&l.channel);
        CHECK_INT(conc_sleep_until(now + 2), 0);
    }
}

TASK_TEST(ten_thousand_waits_that_time_out_leave_nothing_behind)
{
    conc_channel empty = CONC_CHANNEL(int, 1), full = CONC_CHANNEL(int, 1);
    client r = {.channel = &empty}, s = {.channel = &full};
    CHECK_INT(try_send(&full, 1), 0);
    CHECK_INT(conc_timeout(1, receive_here, &r), -ETIMEDOUT);
    conc_stats before = stats();
    for (int i = 0; i < 5000; i++) {
        CHECK_INT(conc_timeout(1.0 / 64, receive_here, &r), -ETIMEDOUT);
        CHECK_INT(conc_timeout(1.0 / 64, send_here, &s), -ETIMEDOUT);
    }
    conc_stats after = stats();
    CHECK_INT(after.timers, before.timers);
    CHECK_INT(after.holds, before.holds);
    CHECK_INT(after.stack_bytes, before.stack_bytes);
    check_next(&full, 1);
    check_empty(&full);
    CHECK_INT(try_send(&empty, 2), 0);
    check_next(&empty, 2);
    conc_channel_destroy(&empty);
    conc_channel_destroy(&full);
}

/* ---- posted functions ---- */

typedef struct posted {
    conc_channel *empty, *full, *half;
    bool ran;
} posted;

static void try_in_a_post(void *arg)
{
    posted *p = arg;
    int item = UNTOUCHED;
    CHECK_INT(conc_channel_recv(p->empty, &item), -EPERM);
    CHECK_INT(send_int(p->full, 9), -EPERM);
    CHECK_INT(conc_channel_recv(p->half, &item), -EPERM);
    CHECK_INT(send_int(p->half, 9), -EPERM);
    CHECK_INT(item, UNTOUCHED);
    check_try_recv_fails(p->empty, -EAGAIN);
    CHECK_INT(try_send(p->full, 9), -EAGAIN);
    check_try_next(p->half, 1);
    CHECK_INT(try_send(p->half, 2), 0);
    p->ran = true;
}

TASK_TEST(a_posted_function_tries_but_never_waits)
{
    conc_channel empty = CONC_CHANNEL(int, 1), full = CONC_CHANNEL(int, 1),
                 half = CONC_CHANNEL(int, 2);
    posted p = {&empty, &full, &half, false};
    CHECK_INT(send_int(&full, 1), 0);
    CHECK_INT(send_int(&half, 1), 0);
    CHECK_INT(conc_post(conc_loop_self(), try_in_a_post, &p), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(p.ran);
    check_next(&full, 1);
    check_next(&half, 2);
    check_empty(&full);
    check_empty(&half);
    conc_channel_destroy(&empty);
    conc_channel_destroy(&full);
    conc_channel_destroy(&half);
}

static void serve_in_a_post(void *arg)
{
    posted *p = arg;
    CHECK_INT(try_send(p->empty, 6), 0);
    check_try_next(p->full, 1);
    conc_channel_close(p->half);
    p->ran = true;
}

TASK_TEST(a_posted_function_serves_waiting_clients)
{
    conc_channel empty = CONC_CHANNEL(int, 1), full = CONC_CHANNEL(int, 1),
                 half = CONC_CHANNEL(int, 2);
    posted p = {&empty, &full, &half, false};
    client c[3];
    conc_group g = {0};
    CHECK_INT(send_int(&full, 1), 0);
    arrive(&g, receives_one, &empty, &c[0], UNTOUCHED);
    arrive(&g, sends_one, &full, &c[1], 7);
    arrive(&g, receives_one, &half, &c[2], UNTOUCHED);
    check_waits(c, 3);
    CHECK_INT(conc_post(conc_loop_self(), serve_in_a_post, &p), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&c[0], 1, 0, 6);
    check_clients(&c[1], 1, 0, 7);
    check_clients(&c[2], 1, -EPIPE, UNTOUCHED);
    check_next(&full, 7);
    conc_channel_destroy(&empty);
    conc_channel_destroy(&full);
    conc_channel_destroy(&half);
}

/* ---- between threads ---- */

TEST(a_thread_without_a_run_uses_a_channel_too)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    CHECK_INT(send_int(&c, 1), 0);
    CHECK_INT(try_send(&c, 2), 0);
    CHECK_INT(try_send(&c, 3), -EAGAIN);
    check_next(&c, 1);
    check_try_next(&c, 2);
    check_empty(&c);
    conc_channel_close(&c);
    CHECK_INT(send_int(&c, 1), -EPIPE);
    conc_channel_destroy(&c);
}

/* Clients of all kinds, two of each, call one after another. */
enum { CROWD = 2 * KINDS };

static void crowd_arrives(conc_group *g, conc_pool *pool, client *c, conc_fn *fn,
                          conc_channel *channel, int first)
{
    CHECK_INT(conc_pool_open(pool), 0);
    for (int i = 0; i < CROWD; i++) {
        start_client(&c[i], fn, channel, first == UNTOUCHED ? UNTOUCHED : first + i);
        arrive_as((kind)(i % KINDS), g, pool, &c[i]);
        check_waits(c, i + 1);
    }
}

static void crowd_leaves(conc_group *g, conc_pool *pool, client *c)
{
    for (int i = 0; i < CROWD; i++)
        leave_as((kind)(i % KINDS), &c[i]);
    CHECK_INT(conc_group_wait(g), 0);
    CHECK_INT(conc_pool_close(pool), 0);
}

TASK_TEST(tasks_threads_jobs_and_other_loops_receive_in_fifo_order)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    client r[CROWD];
    conc_group g = {0};
    conc_pool pool = {.threads = 2};
    if (!sleepers_are_seen())
        return;
    crowd_arrives(&g, &pool, r, receives_one, &c, UNTOUCHED);
    for (int i = 0; i < CROWD; i++)
        CHECK_INT(try_send(&c, i), 0);
    crowd_leaves(&g, &pool, r);
    check_clients(r, CROWD, 0, 0);
    check_empty(&c);
    conc_channel_destroy(&c);
}

TASK_TEST(tasks_threads_jobs_and_other_loops_send_in_fifo_order)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    client s[CROWD];
    conc_group g = {0};
    conc_pool pool = {.threads = 2};
    if (!sleepers_are_seen())
        return;
    CHECK_INT(try_send(&c, 0), 0);
    CHECK_INT(try_send(&c, 1), 0);
    crowd_arrives(&g, &pool, s, sends_one, &c, 2);
    for (int i = 0; i < CROWD + 2; i++)
        check_try_next(&c, i);
    crowd_leaves(&g, &pool, s);
    check_clients(s, CROWD, 0, 2);
    check_empty(&c);
    conc_channel_destroy(&c);
}

TASK_TEST(a_close_wakes_tasks_threads_jobs_and_other_loops)
{
    for (int side = 0; side < 2; side++) {
        conc_channel c = CONC_CHANNEL(int, 1);
        client all[CROWD];
        conc_group g = {0};
        conc_pool pool = {.threads = 2};
        if (side)
            CHECK_INT(try_send(&c, 0), 0);
        crowd_arrives(&g, &pool, all, side ? sends_one : receives_one, &c, side ? 1 : UNTOUCHED);
        conc_channel_close(&c);
        crowd_leaves(&g, &pool, all);
        check_clients(all, CROWD, -EPIPE, side ? 1 : UNTOUCHED);
        if (side)
            check_try_next(&c, 0);
        check_try_recv_fails(&c, -EPIPE);
        conc_channel_destroy(&c);
    }
}

TASK_TEST(cancelled_tasks_among_many_receivers_strand_none)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    client r[CROWD];
    conc_group g = {0};
    conc_pool pool = {.threads = 2};
    int next = 0;
    if (!sleepers_are_seen())
        return;
    crowd_arrives(&g, &pool, r, receives_one, &c, UNTOUCHED);
    for (int i = 0; i < CROWD; i++)
        i % KINDS == TASK ? CHECK_INT(conc_cancel(&r[i].task), 0) : CHECK_INT(try_send(&c, i), 0);
    crowd_leaves(&g, &pool, r);
    for (int i = 0; i < CROWD; i++, next++)
        check_clients(&r[i], 1, i % KINDS == TASK ? -ECANCELED : 0,
                      i % KINDS == TASK ? UNTOUCHED : next);
    check_empty(&c);
    conc_channel_destroy(&c);
}

/* A thread that sends once the loop's thread sleeps. */
typedef struct late_sender {
    conc_channel *channel;
    int tid;
    int rc;
} late_sender;

static void *sends_to_a_sleeper(void *arg)
{
    late_sender *l = arg;
    int item = 6;
    while (!sleeps(l->tid))
        sched_yield();
    l->rc = conc_channel_send(l->channel, &item);
    return NULL;
}

static int receives_from_late_sender(void *arg)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    late_sender l = {&c, (int)syscall(SYS_gettid), UNDECIDED};
    pthread_t thread;
    (void)arg;
    CHECK_INT(pthread_create(&thread, NULL, sends_to_a_sleeper, &l), 0);
    check_next(&c, 6);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(l.rc, 0);
    CHECK_INT(stats().holds, 0);
    conc_channel_destroy(&c);
    return 3;
}

static void receive_from_late_sender(void)
{
    conc_options virtual = {.virtual_clock = true};
    for (int i = 0; i < 20; i++) {
        CHECK_INT(conc_run(receives_from_late_sender, NULL), 3);
        CHECK_INT(conc_run_with(&virtual, receives_from_late_sender, NULL), 3);
    }
}

TEST(a_loop_whose_only_task_waits_on_a_channel_is_no_deadlock)
{
    static char text[4096];
    CHECK_INT(test_in_process(receive_from_late_sender, text, sizeof text), 0);
    CHECK_STR(text, "");
}

static void *sends_one_in_thread(void *arg)
{
    sends_one(arg);
    return NULL;
}

TEST(a_run_inside_a_loop_of_another_kind_is_woken_by_an_item)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    conc_embed e = {0};
    client r, s;
    start_client(&r, NULL, &c, UNTOUCHED);
    start_client(&s, NULL, &c, 5);
    int rc = conc_embed_begin(&e, NULL, receives_one, &r);
    if (rc == -ENOTSUP)
        return; /* it waits with poll(2) */
    CHECK_INT(rc, 0);
    while (conc_embed_timeout(&e) == 0)
        CHECK_INT(conc_embed_step(&e), 1);
    CHECK_INT(r.rc, UNDECIDED);
    CHECK_INT(pthread_create(&s.thread, NULL, sends_one_in_thread, &s), 0);
    struct pollfd p = {.fd = conc_embed_fd(&e), .events = POLLIN};
    do
        CHECK_INT(poll(&p, 1, conc_embed_timeout(&e) == 0 ? 0 : -1) >= 0, 1);
    while (conc_embed_step(&e));
    CHECK_INT(conc_embed_end(&e), 0);
    CHECK_INT(pthread_join(s.thread, NULL), 0);
    check_clients(&r, 1, 0, 5);
    CHECK_INT(s.rc, 0);
    conc_channel_destroy(&c);
}

/* Two clients that pass a ball; each is a separate loop or a plain thread. */
typedef struct player {
    conc_channel *from, *to;
    int rounds, wrong;
    pthread_t thread;
} player;

static int plays(void *arg)
{
    player *p = arg;
    for (int i = 0, ball = 0; i < p->rounds; i++) {
        CONC_TRY(conc_channel_recv(p->from, &ball));
        p->wrong += ball != i;
        CONC_TRY(conc_channel_send(p->to, &i));
    }
    return 0;
}

static void *plays_in_loop(void *arg)
{
    player *p = arg;
    p->wrong += conc_run(plays, p) != 0;
    return NULL;
}

static void *plays_in_thread(void *arg)
{
    player *p = arg;
    p->wrong += plays(p) != 0;
    return NULL;
}

static int bounces(void *arg)
{
    player *p = arg;
    for (int i = 0; i < p->rounds; i++) {
        CONC_TRY(conc_channel_send(p->to, &i));
        check_next(p->from, i);
    }
    return 0;
}

TEST(two_loops_and_a_loop_and_a_thread_pass_a_ball_two_thousand_times)
{
    void *(*const players[])(void *) = {plays_in_loop, plays_in_thread};
    for (size_t i = 0; i < CONC_LEN(players); i++) {
        conc_channel to = CONC_CHANNEL(int, 1), from = CONC_CHANNEL(int, 1);
        player other = {&to, &from, 2000, 0, pthread_self()},
               me = {&from, &to, 2000, 0, pthread_self()};
        CHECK_INT(pthread_create(&other.thread, NULL, players[i], &other), 0);
        CHECK_INT(conc_run(bounces, &me), 0);
        CHECK_INT(pthread_join(other.thread, NULL), 0);
        CHECK_INT(other.wrong, 0);
        conc_channel_destroy(&to);
        conc_channel_destroy(&from);
    }
}

static int job_answers(void *arg)
{
    player *p = arg;
    int question = UNTOUCHED;
    CONC_TRY(conc_channel_recv(p->from, &question));
    question *= 2;
    return conc_channel_send(p->to, &question);
}

static int job_answers_in_a_run(void *arg) { return conc_run(job_answers, arg); }

TASK_TEST(a_job_answers_through_channels_with_and_without_its_own_loop)
{
    conc_fn *const jobs[] = {job_answers, job_answers_in_a_run};
    conc_pool pool = {.threads = 1};
    CHECK_INT(conc_pool_open(&pool), 0);
    for (size_t i = 0; i < CONC_LEN(jobs); i++) {
        conc_channel to = CONC_CHANNEL(int, 1), from = CONC_CHANNEL(int, 1);
        player p = {.from = &to, .to = &from};
        conc_job j;
        int rc = UNDECIDED;
        CHECK_INT(conc_pool_submit(&pool, &j, jobs[i], &p), 0);
        for (int n = 0; n < 100; n++)
            CHECK_INT(conc_yield(), 0);
        CHECK(!conc_job_done(&j));
        CHECK_INT(send_int(&to, 21), 0);
        check_next(&from, 42);
        CHECK_INT(conc_job_wait(&j, &rc), 0);
        CHECK_INT(rc, 0);
        conc_channel_destroy(&to);
        conc_channel_destroy(&from);
    }
    CHECK_INT(conc_pool_close(&pool), 0);
}

/* ---- the first use, by many threads at once ---- */

enum { FIRST_USERS = 12 };

static conc_channel at_first_use = CONC_CHANNEL(int, 2); /* static, as most channels are */

typedef struct first_user {
    pthread_barrier_t *barrier;
    conc_channel *channel;
    int number, rounds, sum, errors;
    pthread_t thread;
} first_user;

static int uses_first(void *arg)
{
    first_user *u = arg;
    int item = u->number, rc = u->number % 2 ? conc_channel_send(u->channel, &item)
                                             : conc_channel_recv(u->channel, &item);
    if (u->number % 2 == 0 && rc == 0)
        u->sum += item;
    return rc;
}

static void *uses_first_in_thread(void *arg)
{
    first_user *u = arg;
    for (int i = 0; i < u->rounds; i++) {
        pthread_barrier_wait(u->barrier);
        u->errors += (u->number % 4 < 2 ? uses_first(u) : conc_run(uses_first, u)) != 0;
        if (pthread_barrier_wait(u->barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
            conc_channel_destroy(u->channel);
    }
    return NULL;
}

TEST(many_threads_at_once_may_be_the_first_to_use_a_static_channel)
{
    enum { ROUNDS = 50 };
    pthread_barrier_t barrier;
    first_user u[FIRST_USERS];
    int sum = 0, expected = 0;
    CHECK_INT(pthread_barrier_init(&barrier, NULL, FIRST_USERS), 0);
    for (int i = 0; i < FIRST_USERS; i++) {
        u[i] = (first_user){&barrier, &at_first_use, i, ROUNDS, 0, 0, pthread_self()};
        CHECK_INT(pthread_create(&u[i].thread, NULL, uses_first_in_thread, &u[i]), 0);
    }
    for (int i = 0; i < FIRST_USERS; i++) {
        CHECK_INT(pthread_join(u[i].thread, NULL), 0);
        CHECK_INT(u[i].errors, 0);
        sum += u[i].sum;
        expected += i % 2 ? i * ROUNDS : 0;
    }
    CHECK_INT(sum, expected);
    pthread_barrier_destroy(&barrier);
}

/* ---- many loops and threads, with cancels and time limits ---- */

enum {
    LOOPS = 4,
    SENDERS = LOOPS + 1
}; /* each loop has a task that sends and one that receives, and so have two threads */

typedef struct numbered {
    int sender, number;
} numbered;

typedef struct stress {
    conc_channel channel;
    int each, receivers; /* items per sender; 1: only one receives */
    atomic_int senders_left, wrong, cut_short, received;
    atomic_uchar *seen;
} stress;

typedef struct worker {
    stress *s;
    int number;
    bool plain; /* a thread without a run */
    uint64_t random;
    conc_scope *scope; /* a call that a cancel may hit */
    int last[SENDERS];
} worker;

static unsigned random_below(worker *w, unsigned n)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(w->random >> 33) % n;
}

/* Makes one call in its own scope, which may be cancelled or time out, and returns its result. */
static int call_in_scope(worker *w, numbered *item, bool send)
{
    conc_scope s = {0};
    unsigned kind_of_limit = random_below(w, 8);
    double limit = kind_of_limit < 5    ? CONC_FOREVER
                   : kind_of_limit == 5 ? 0
                                        : random_below(w, 50) * 1e-6;
    if (conc_scope_begin(&s, limit) != 0)
        return -EINVAL;
    w->scope = &s;
    int rc =
        send ? conc_channel_send(&w->s->channel, item) : conc_channel_recv(&w->s->channel, item);
    w->scope = NULL;
    if (conc_scope_end(&s, rc) == -ECANCELED) /* nothing outside is cancelled */
        return -EINVAL;
    w->s->cut_short += rc == -ECANCELED;
    return rc;
}

static int call_in_thread(worker *w, numbered *item, bool send)
{
    if (random_below(w, 2))
        return send ? conc_channel_send(&w->s->channel, item)
                    : conc_channel_recv(&w->s->channel, item);
    int rc = send ? conc_channel_try_send(&w->s->channel, item)
                  : conc_channel_try_recv(&w->s->channel, item);
    if (rc == -EAGAIN)
        sched_yield();
    return rc == -EAGAIN ? -ECANCELED : rc;
}

static int call_until_it_is_done(worker *w, numbered *item, bool send)
{
    for (int rc;;)
        if ((rc = w->plain ? call_in_thread(w, item, send) : call_in_scope(w, item, send)) !=
            -ECANCELED)
            return rc;
}

static int sends_numbers(void *arg)
{
    worker *w = arg;
    for (int i = 0; i < w->s->each; i++) {
        numbered item = {w->number, i};
        w->s->wrong += call_until_it_is_done(w, &item, true) != 0;
    }
    if (--w->s->senders_left == 0)
        conc_channel_close(&w->s->channel);
    return 0;
}

static void judge(worker *w, const numbered *item)
{
    stress *s = w->s;
    if (item->sender < 0 || item->sender >= SENDERS || item->number < 0 ||
        item->number >= s->each) {
        s->wrong++;
        return;
    }
    s->wrong += s->seen[item->sender * s->each + item->number]++ != 0;
    s->wrong += s->receivers == 1 ? item->number != w->last[item->sender] + 1
                                  : item->number <= w->last[item->sender];
    w->last[item->sender] = item->number;
    s->received++;
}

static int receives_numbers(void *arg)
{
    worker *w = arg;
    for (int i = 0; i < SENDERS; i++)
        w->last[i] = -1;
    for (;;) {
        numbered item = {-1, -1};
        int rc = call_until_it_is_done(w, &item, false);
        if (rc == 0)
            judge(w, &item);
        else {
            w->s->wrong += rc != -EPIPE;
            return 0;
        }
    }
}

static int cancels_now_and_then(void *arg)
{
    worker *w = arg;
    for (;;) {
        CONC_TRY(conc_sleep(random_below(&w[0], 200) * 1e-6));
        conc_scope *s = w[random_below(&w[0], 2)].scope;
        if (s)
            conc_scope_cancel(s);
    }
}

static int works_in_loop(void *arg)
{
    worker *w = arg; /* a sender and a receiver */
    conc_group g = {0};
    CONC_TRY(conc_spawn(NULL, cancels_now_and_then, w));
    CONC_TRY_IN(&g, conc_spawn(&g, sends_numbers, &w[0]));
    if (w[1].number < w->s->receivers)
        CONC_TRY_IN(&g, conc_spawn(&g, receives_numbers, &w[1]));
    return conc_group_wait(&g);
}

static void *loop_works(void *arg)
{
    worker *w = arg;
    w->s->wrong += conc_run(works_in_loop, w) != 0;
    return NULL;
}

static void *thread_sends(void *arg)
{
    sends_numbers(arg);
    return NULL;
}

static void *thread_receives(void *arg)
{
    receives_numbers(arg);
    return NULL;
}

static void stress_a_channel(size_t capacity, int each, int receivers)
{
    pthread_t threads[LOOPS + 2];
    worker w[LOOPS + 1][2];
    stress s = {.channel = CONC_CHANNEL(numbered, capacity), .each = each, .receivers = receivers};
    s.senders_left = SENDERS;
    s.seen = calloc((size_t)(SENDERS * each), sizeof *s.seen);
    CHECK(s.seen != NULL);
    for (int i = 0; i <= LOOPS; i++)
        for (int k = 0; k < 2; k++)
            w[i][k] = (worker){
                .s = &s, .number = i, .plain = i == LOOPS, .random = (uint64_t)(2 * i + k) * 12345};
    for (int i = 0; i < LOOPS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, loop_works, w[i]), 0);
    CHECK_INT(pthread_create(&threads[LOOPS], NULL, thread_sends, &w[LOOPS][0]), 0);
    if (receivers > 1)
        CHECK_INT(pthread_create(&threads[LOOPS + 1], NULL, thread_receives, &w[LOOPS][1]), 0);
    for (int i = 0; i < LOOPS + 1 + (receivers > 1); i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    CHECK_INT(s.wrong, 0);
    CHECK_INT(s.received, SENDERS * each);
    CHECK(s.cut_short > 0);
    check_try_recv_fails(&s.channel, -EPIPE);
    free(s.seen);
    conc_channel_destroy(&s.channel);
}

/* Outside a real machine fewer are enough, because it is slow there. */
static int items(int n) { return getenv("TEST_ONCE") || test_seeded() ? n / 10 : n; }

TEST(each_of_a_hundred_thousand_items_between_four_loops_and_two_threads_arrives_once_and_in_order)
{
    unsetenv("CONC_CLOCK");
    stress_a_channel(16, items(20000), SENDERS);
}

TEST(one_slot_keeps_the_order_of_five_senders_to_one_receiver)
{
    unsetenv("CONC_CLOCK");
    stress_a_channel(1, items(2000), 1);
}

/* ---- a close while others send and receive ---- */

typedef struct closing {
    conc_channel channel;
    atomic_int sent, received, wrong;
} closing;

static int sends_until_closed(void *arg)
{
    closing *c = arg;
    int rc;
    while ((rc = conc_channel_send(&c->channel, &(int){1})) == 0)
        c->sent++;
    c->wrong += rc != -EPIPE;
    return 0;
}

static int receives_until_closed(void *arg)
{
    closing *c = arg;
    int rc, item = 0;
    while ((rc = conc_channel_recv(&c->channel, &item)) == 0)
        c->received += item;
    c->wrong += rc != -EPIPE;
    return 0;
}

static void *sends_until_closed_in_thread(void *arg)
{
    sends_until_closed(arg);
    return NULL;
}

static int both_until_closed(void *arg)
{
    return CONC_GATHER(CONC_CALL(sends_until_closed, arg), CONC_CALL(receives_until_closed, arg));
}

static void *both_until_closed_in_loop(void *arg)
{
    closing *c = arg;
    c->wrong += conc_run(both_until_closed, c) != 0;
    return NULL;
}

TEST(only_items_sent_before_a_close_from_elsewhere_are_received)
{
    for (int round = 0; round < 30; round++) {
        closing c = {.channel = CONC_CHANNEL(int, (size_t)(1 + round % 3))};
        pthread_t t[4];
        for (int i = 0; i < 4; i++)
            CHECK_INT(pthread_create(
                          &t[i], NULL,
                          i % 2 ? both_until_closed_in_loop : sends_until_closed_in_thread, &c),
                      0);
        while (c.received < 20 * round)
            sched_yield();
        conc_channel_close(&c.channel);
        for (int i = 0; i < 4; i++)
            CHECK_INT(pthread_join(t[i], NULL), 0);
        CHECK_INT(c.wrong, 0);
        CHECK_INT(c.received, c.sent);
        conc_channel_destroy(&c.channel);
    }
}

/* ---- a loop in each thread, sharing one port ---- */

enum { SERVERS = 4, CONNECTIONS = 200 };

static conc_channel ready = CONC_CHANNEL(int, 1), counts = CONC_CHANNEL(int, 1),
                    stop = CONC_CHANNEL(int, 1);

typedef struct share {
    char address[120];
    int served;
    int rc;
    pthread_t thread;
} share;

static int echoes(int fd, void *arg)
{
    share *s = arg;
    char buf[256];
    s->served++;
    for (ssize_t n; (n = CONC_TRY(conc_read(fd, buf, sizeof buf))) > 0;)
        CONC_TRY(conc_write_full(fd, buf, (size_t)n));
    return 0;
}

static int serves(void *arg)
{
    conc_server *server = arg;
    return conc_serve(server);
}

static int serves_share(void *arg)
{
    share *s = arg;
    int nothing;
    int fd = CONC_TRY(conc_listen_with(s->address, &(conc_listen_options){.reuse_port = true}));
    conc_server server = {.fd = fd, .handler = echoes, .arg = s};
    conc_group g = {0};
    int rc = conc_spawn(&g, serves, &server);
    if (rc == 0)
        rc = conc_channel_send(&ready, &fd);
    if (rc == 0 && (rc = conc_channel_recv(&stop, &nothing)) == -EPIPE)
        rc = 0;
    conc_group_cancel(&g);
    rc = conc_group_end(&g, rc);
    conc_close(fd);
    return rc < 0 ? rc : conc_channel_send(&counts, &s->served);
}

static void *share_runs(void *arg)
{
    share *s = arg;
    s->rc = conc_run(serves_share, s);
    return NULL;
}

static int asks(void *address)
{
    static const char question[] = "how many?";
    char answer[sizeof question] = "";
    int fd = CONC_TRY(conc_dial(address));
    CHECK_INT(conc_write_full(fd, question, sizeof question), sizeof question);
    CHECK_INT(conc_read_full(fd, answer, sizeof answer), sizeof answer);
    CHECK_STR(answer, question);
    return conc_close(fd);
}

static int asks_all(void *arg)
{
    share *shares = arg;
    int fd = CONC_TRY(conc_listen_with("127.0.0.1:0", &(conc_listen_options){.reuse_port = true})),
        sum = 0;
    char address[120];
    CHECK_INT(conc_address(fd, false, address, sizeof address), 0);
    for (int i = 0; i < SERVERS; i++) {
        snprintf(shares[i].address, sizeof shares[i].address, "%s", address);
        shares[i].rc = UNDECIDED;
        CHECK_INT(pthread_create(&shares[i].thread, NULL, share_runs, &shares[i]), 0);
    }
    for (int i = 0; i < SERVERS; i++)
        CHECK_INT(conc_channel_recv(&ready, &(int){0}), 0);
    CHECK_INT(conc_close(fd), 0); /* it has kept the port; no client has connected yet */
    for (int i = 0; i < CONNECTIONS / 20; i++)
        CHECK_INT(conc_map(asks, address, 20, 0), 0);
    conc_channel_close(&stop);
    for (int i = 0; i < SERVERS; i++) {
        int n = 0;
        CHECK_INT(conc_channel_recv(&counts, &n), 0);
        sum += n;
    }
    return sum;
}

TEST(loops_in_several_threads_serve_one_port_and_report_through_channels)
{
    static share shares[SERVERS];
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(asks_all, shares), CONNECTIONS);
    for (int i = 0; i < SERVERS; i++) {
        CHECK_INT(pthread_join(shares[i].thread, NULL), 0);
        CHECK_INT(shares[i].rc, 0);
    }
    conc_channel_destroy(&ready);
    conc_channel_destroy(&counts);
    conc_channel_destroy(&stop);
}

/* ---- jobs that are asked to stop ---- */

/* Waits, and then tries what the channel still has. */
typedef struct asked {
    conc_channel *channel;
    bool sends;
    atomic_int tid;
    int rc, again, tried, shielded;
} asked;

static int moves_one(void *arg)
{
    asked *a = arg;
    int item = 7;
    return a->sends ? conc_channel_send(a->channel, &item) : conc_channel_recv(a->channel, &item);
}

static int tries_one(void *arg)
{
    asked *a = arg;
    int item = 7;
    return a->sends ? conc_channel_try_send(a->channel, &item)
                    : conc_channel_try_recv(a->channel, &item);
}

static int moves_until_asked(void *arg)
{
    asked *a = arg;
    a->tid = (int)syscall(SYS_gettid);
    a->rc = moves_one(a);
    while (!conc_job_cancelled()) /* until the channel was changed, too */
        sched_yield();
    a->again = moves_one(a);
    a->shielded = conc_shield(1, moves_one, a);
    a->tried = tries_one(a);
    return 0;
}

/* The other side acts after the job's wait has ended. */
static void end_a_job_that_waits(bool sends)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    conc_pool pool = {.threads = 1};
    conc_job j;
    asked a = {.channel = &c, .sends = sends};
    int item = 0;
    for (int i = 0; i < 2 && sends; i++)
        CHECK_INT(conc_channel_try_send(&c, &i), 0);
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_submit(&pool, &j, moves_until_asked, &a), 0);
    while (!a.tid || (sleepers_are_seen() && !sleeps(a.tid)))
        sched_yield();
    CHECK_INT(conc_job_cancel(&j), 0);
    CHECK_INT(conc_yield(), 0);
    /* these items are for the shield and the try: a job that was asked to stop is refused */
    for (int i = 1; i <= 2; i++)
        CHECK_INT(sends ? conc_channel_recv(&c, &item) : conc_channel_send(&c, &i), 0);
    CHECK_INT(conc_job_wait(&j, NULL), 0);
    CHECK_INT(a.rc, -ECANCELED);
    CHECK_INT(a.again, -ECANCELED);
    CHECK_INT(a.shielded, 0);
    CHECK_INT(a.tried, 0);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_channel_try_recv(&c, &item), sends ? 0 : -EAGAIN);
        CHECK_INT(item, sends ? 7 : 0);
    }
    CHECK_INT(conc_pool_close(&pool), 0);
    conc_channel_destroy(&c);
}

TASK_TEST(a_job_that_is_asked_to_stop_receives_only_in_a_shield) { end_a_job_that_waits(false); }

TASK_TEST(a_job_that_is_asked_to_stop_sends_only_in_a_shield) { end_a_job_that_waits(true); }

TASK_TEST(an_item_that_was_handed_over_before_the_request_belongs_to_the_job)
{
    for (int i = 0; i < 200; i++) {
        conc_channel c = CONC_CHANNEL(int, 1);
        conc_pool pool = {.threads = 1};
        conc_job j;
        asked a = {.channel = &c};
        int item = i;
        CHECK_INT(conc_pool_open(&pool), 0);
        CHECK_INT(conc_pool_submit(&pool, &j, moves_one, &a), 0);
        CHECK_INT(conc_channel_send(&c, &item), 0);
        (void)conc_job_cancel(&j);
        int result = UNDECIDED;
        CHECK_INT(conc_job_wait(&j, &result), 0);
        CHECK(result == 0 || result == -ECANCELED);
        CHECK_INT(conc_channel_try_recv(&c, &item), result == 0 ? -EAGAIN : 0);
        CHECK_INT(item, i);
        CHECK_INT(conc_pool_close(&pool), 0);
        conc_channel_destroy(&c);
    }
}
