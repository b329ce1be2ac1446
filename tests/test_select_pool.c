/* test_select_pool.c - conc_select with channels and jobs, which other threads make ready: exactly
 * one case happens, and no item is lost or duplicated, whatever happens at the same time.
 *
 * Seeds: 2 (most of it happens between threads)
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, riscv64, poll, gcc-asan, single, clang,
 * static, valgrind (how tasks switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#define TEST_POOL
#include "conc_test.h"

#include <pthread.h>
#include <stdatomic.h>

enum { UNDECIDED = 1000, UNTOUCHED = -77 };

/* A task that selects between a channel and an event. */
typedef struct client {
    conc_channel *channel;
    conc_event *event;
    bool sends;
    int item, rc, result;
    conc_task task;
} client;

static int selects(void *arg)
{
    client *k = arg;
    conc_event never = {0};
    conc_event *event = k->event ? k->event : &never;
    conc_case in[] = {CONC_CASE_EVENT(event), CONC_CASE_RECV(k->channel, &k->item)};
    conc_case out[] = {CONC_CASE_EVENT(event), CONC_CASE_SEND(k->channel, &k->item)};
    conc_case *c = k->sends ? out : in;
    k->rc = conc_select(c, 2);
    k->result = k->rc >= 0 ? c[k->rc].result : UNDECIDED;
    return 0;
}

static int receives(void *arg)
{
    client *k = arg;
    k->rc = conc_channel_recv(k->channel, &k->item);
    return 0;
}

static int sends(void *arg)
{
    client *k = arg;
    k->rc = conc_channel_send(k->channel, &k->item);
    return 0;
}

static void arrive(conc_group *g, client *k, conc_fn *fn)
{
    k->rc = k->result = UNDECIDED;
    CHECK_INT(conc_spawn_task(g, &k->task, fn, k), 0);
    CHECK_INT(conc_settle(), 0);
}

TASK_TEST(a_channel_that_is_ready_happens_at_once)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    int x = 5, y = UNTOUCHED;
    conc_case in[] = {CONC_CASE_RECV(&c, &y), CONC_CASE_AFTER(0)};
    conc_case out[] = {CONC_CASE_SEND(&c, &x), CONC_CASE_AFTER(0)};
    CHECK_INT(conc_select(in, 2), 1);
    CHECK_INT(y, UNTOUCHED);
    CHECK_INT(conc_select(out, 2), 0);
    CHECK_INT(out[0].result, 0);
    CHECK_INT(conc_select(out, 2), 1);
    CHECK_INT(conc_select(in, 2), 0);
    CHECK_INT(y, 5);
    conc_channel_close(&c);
    CHECK_INT(conc_select(in, 2), 0);
    CHECK_INT(in[0].result, -EPIPE);
    CHECK_INT(conc_select(out, 2), 0);
    CHECK_INT(out[0].result, -EPIPE);
    conc_channel_destroy(&c);
}

TASK_TEST(selects_and_receivers_are_served_in_fifo_order)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    conc_group g = {0};
    client k[4] = {{.channel = &c}, {.channel = &c}, {.channel = &c}, {.channel = &c}};
    for (int i = 0; i < 4; i++)
        arrive(&g, &k[i], i % 2 ? receives : selects);
    for (int i = 0; i < 4; i++)
        CHECK_INT(conc_channel_send(&c, &i), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 4; i++) {
        CHECK_INT(k[i].item, i);
        CHECK_INT(k[i].rc, i % 2 ? 0 : 1);
    }
    conc_channel_destroy(&c);
}

TASK_TEST(selects_and_senders_are_served_in_fifo_order)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    conc_group g = {0};
    client k[4];
    int got, full = 0;
    CHECK_INT(conc_channel_send(&c, &full), 0);
    for (int i = 0; i < 4; i++) {
        k[i] = (client){.channel = &c, .sends = true, .item = i + 1};
        arrive(&g, &k[i], i % 2 ? sends : selects);
    }
    for (int i = 0; i < 5; i++) {
        CHECK_INT(conc_channel_recv(&c, &got), 0);
        CHECK_INT(got, i);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    conc_channel_destroy(&c);
}

TASK_TEST(an_item_that_came_with_another_case_goes_to_the_next_receiver)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    conc_event e = {0};
    conc_group g = {0};
    client first = {.channel = &c, .event = &e, .item = UNTOUCHED}, next = {.channel = &c};
    int x = 9;
    arrive(&g, &first, selects);
    arrive(&g, &next, receives);
    CHECK_INT(conc_channel_try_send(&c, &x), 0);
    conc_event_set(&e);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(first.rc, 0);
    CHECK_INT(first.item, UNTOUCHED);
    CHECK_INT(next.rc, 0);
    CHECK_INT(next.item, 9);
    conc_channel_destroy(&c);
}

TASK_TEST(room_that_came_with_another_case_goes_to_the_next_sender)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    conc_event e = {0};
    conc_group g = {0};
    client first = {.channel = &c, .event = &e, .sends = true, .item = 1};
    client next = {.channel = &c, .item = 2};
    int x = 0;
    CHECK_INT(conc_channel_send(&c, &x), 0);
    arrive(&g, &first, selects);
    arrive(&g, &next, sends);
    CHECK_INT(conc_channel_try_recv(&c, &x), 0);
    conc_event_set(&e);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(first.rc, 0);
    CHECK_INT(conc_channel_try_recv(&c, &x), 0);
    CHECK_INT(x, 2);
    CHECK_INT(conc_channel_try_recv(&c, &x), -EAGAIN);
    conc_channel_destroy(&c);
}

TASK_TEST(a_cancelled_select_leaves_the_item_in_transit)
{
    conc_channel c = CONC_CHANNEL(int, 2);
    conc_group g = {0};
    client k = {.channel = &c, .item = UNTOUCHED};
    int x = 9, got = 0;
    arrive(&g, &k, selects);
    CHECK_INT(conc_channel_try_send(&c, &x), 0);
    CHECK_INT(conc_cancel(&k.task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(k.rc, -ECANCELED);
    CHECK_INT(k.item, UNTOUCHED);
    CHECK_INT(conc_channel_try_recv(&c, &got), 0);
    CHECK_INT(got, 9);
    conc_channel_destroy(&c);
}

TASK_TEST(a_close_wakes_a_select_and_a_kept_item_is_still_received)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    conc_group g = {0};
    client k[2] = {{.channel = &c}, {.channel = &c}};
    int x = 9;
    arrive(&g, &k[0], selects);
    arrive(&g, &k[1], selects);
    CHECK_INT(conc_channel_try_send(&c, &x), 0);
    conc_channel_close(&c);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(k[0].result, 0);
    CHECK_INT(k[0].item, 9);
    CHECK_INT(k[1].rc, 1);
    CHECK_INT(k[1].result, -EPIPE);
    conc_channel_destroy(&c);
}

TASK_TEST(a_destroyed_channel_is_left_by_all_selects)
{
    conc_channel c = CONC_CHANNEL(int, 1);
    conc_group g = {0};
    client k[2] = {{.channel = &c}, {.channel = &c}};
    int x = 9;
    arrive(&g, &k[0], selects);
    arrive(&g, &k[1], selects);
    CHECK_INT(conc_channel_try_send(&c, &x), 0);
    conc_channel_destroy(&c);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(k[0].result, -EPIPE);
    CHECK_INT(k[1].result, -EPIPE);
}

TASK_TEST(cases_without_a_channel_an_item_or_a_job_are_refused)
{
    conc_channel c = CONC_CHANNEL(int, 1), none = CONC_CHANNEL(int, 0);
    conc_job never = {0};
    int x = 0;
    CHECK_INT(conc_select((conc_case[]){CONC_CASE_RECV(NULL, &x)}, 1), -EINVAL);
    CHECK_INT(conc_select((conc_case[]){CONC_CASE_SEND(&c, NULL)}, 1), -EINVAL);
    CHECK_INT(conc_select((conc_case[]){CONC_CASE_RECV(&none, &x)}, 1), -EINVAL);
    CHECK_INT(conc_select((conc_case[]){CONC_CASE_JOB(NULL)}, 1), -EINVAL);
    CHECK_INT(conc_select((conc_case[]){CONC_CASE_JOB(&never)}, 1), -EINVAL);
    conc_channel_destroy(&c);
}

/* ---- jobs ---- */

static conc_channel go = CONC_CHANNEL(int, 1);

static int waits_and_fails(void *arg)
{
    int x;
    (void)arg;
    CONC_TRY(conc_channel_recv(&go, &x));
    return x ? conc_fail(-EPROTO, "job %d failed", x) : 7;
}

static int selects_jobs(void *arg)
{
    conc_pool pool = {.threads = 1};
    conc_job job, queued;
    int x = 3;
    (void)arg;
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_submit(&pool, &job, waits_and_fails, NULL), 0);
    conc_case c[] = {CONC_CASE_JOB(&job), CONC_CASE_AFTER(0.01)};
    CHECK_INT(conc_select(c, 2), 1);
    CHECK(!conc_job_done(&job)); /* and continues */
    c[1] = (conc_case)CONC_CASE_AFTER(CONC_FOREVER);
    CHECK_INT(conc_channel_send(&go, &x), 0);
    CHECK_INT(conc_select(c, 2), 0);
    CHECK_INT(c[0].result, -EPROTO);
    CHECK_STR(conc_last_error(), "job 3 failed");
    conc_fail(-EIO, "something else");
    CHECK_INT(conc_select(c, 2), 0); /* again, immediately */
    CHECK_INT(c[0].result, -EPROTO);
    CHECK_STR(conc_last_error(), "job 3 failed");
    CHECK_INT(conc_pool_submit(&pool, &job, waits_and_fails, NULL), 0);
    CHECK_INT(conc_pool_submit(&pool, &queued, waits_and_fails, NULL), 0);
    CHECK_INT(conc_job_cancel(&queued), 0); /* behind the other */
    c[0] = (conc_case)CONC_CASE_JOB(&queued);
    CHECK_INT(conc_select(c, 2), 0);
    CHECK_INT(c[0].result, -ECANCELED);
    CHECK_INT(conc_channel_send(&go, &x), 0);
    CHECK_INT(conc_pool_close(&pool), 0);
    return 0;
}

TEST(an_ended_job_is_chosen_with_its_result_and_error_text)
{
    CHECK_INT(conc_run(selects_jobs, NULL), 0);
}

/* ---- many at once ---- */

enum { SENDERS = 3, ITEMS = 2000 };

static conc_channel busy = CONC_CHANNEL(int, 4);
static atomic_int senders_left;
static int seen[SENDERS * ITEMS];

static void *sends_many(void *arg)
{
    int first = *(int *)arg;
    for (int i = first; i < first + ITEMS; i++)
        CHECK_INT(conc_channel_send(&busy, &i), 0);
    if (--senders_left == 0)
        conc_channel_close(&busy);
    return NULL;
}

/* Items, short limits and the end of a job arrive in any order. */
static int selects_many(void *arg)
{
    int item;
    (void)arg;
    for (int i = 0;; i++) {
        conc_case c[] = {CONC_CASE_RECV(&busy, &item), CONC_CASE_AFTER(i % 3 ? 1e-5 : 1)};
        item = UNTOUCHED;
        int rc = conc_select(c, 2);
        CHECK(rc >= 0);
        if (rc == 0 && c[0].result == -EPIPE)
            return 0;
        if (rc == 0)
            seen[item]++;
        else
            CHECK_INT(item, UNTOUCHED);
    }
}

static int selects_from_threads(void *arg)
{
    pthread_t threads[SENDERS];
    int firsts[SENDERS];
    conc_group g = {0};
    (void)arg;
    senders_left = SENDERS;
    for (int i = 0; i < SENDERS; i++) {
        firsts[i] = i * ITEMS;
        CHECK_INT(pthread_create(&threads[i], NULL, sends_many, &firsts[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        CHECK_INT(conc_spawn(&g, selects_many, NULL), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < SENDERS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < SENDERS * ITEMS; i++)
        CHECK_INT(seen[i], 1);
    conc_channel_destroy(&busy);
    return 0;
}

TEST(each_item_of_several_threads_arrives_once)
{
    CHECK_INT(conc_run(selects_from_threads, NULL), 0);
}
