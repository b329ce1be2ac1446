/* test_queue_faults.c - queues that run out of memory: the put returns -ENOMEM, and the queue is
 * unchanged. This implementation allocates through functions that fail on demand.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define MAYBE_UNUSED __attribute__((unused))

static long countdown; /* allocations that still succeed while refusing */
static bool refusing;
static size_t largest = SIZE_MAX;      /* larger allocations are refused */
static long refused, live_allocations; /* live: malloc'ed and not freed */

static bool refuses(size_t n)
{
    bool no = n > largest || (refusing && countdown-- <= 0);
    refused += no;
    return no;
}

MAYBE_UNUSED static void *choosy_malloc(size_t n)
{
    void *p = refuses(n) ? NULL : malloc(n);
    live_allocations += p != NULL;
    return p;
}

MAYBE_UNUSED static void *choosy_realloc(void *old, size_t n)
{
    void *p = refuses(n) ? NULL : realloc(old, n);
    live_allocations += p != NULL && old == NULL;
    return p;
}

MAYBE_UNUSED static void choosy_free(void *p)
{
    live_allocations -= p != NULL;
    free(p);
}

#define CONC_MALLOC(n) choosy_malloc(n)
#define CONC_REALLOC(p, n) choosy_realloc((p), (n))
#define CONC_FREE(p) choosy_free(p)

#define TEST_SYNC
#include "conc_test.h"

enum { UNTOUCHED = -77 };

static bool int_less(const void *a, const void *b) { return *(const int *)a < *(const int *)b; }

enum { KINDS = 3 };

static conc_queue queue_of(int kind)
{
    conc_queue queues[KINDS] = {CONC_QUEUE(int, 0), CONC_QUEUE(int, 0, .kind = CONC_QUEUE_LIFO),
                                CONC_QUEUE(int, 0, .less = int_less)};
    return queues[kind];
}

static void refuse_after(long n)
{
    refusing = true;
    countdown = n;
    refused = 0;
}

/* Items count up, so FIFO and priority queues return the first one in the queue, and LIFO queues
 * the last. */
static void check_all_come_out(conc_queue *q, int first, int last)
{
    for (int i = first; i <= last; i++) {
        int item = UNTOUCHED;
        CHECK_INT(conc_queue_try_get(q, &item), 0);
        CHECK_INT(item, q->kind == CONC_QUEUE_LIFO ? last - (i - first) : i);
        CHECK_INT(conc_queue_task_done(q), 0);
    }
    CHECK_INT(conc_queue_len(q), 0);
    CHECK_INT(conc_queue_task_done(q), -EOVERFLOW); /* refused items do not count */
}

/* Puts 200 items after `shift` others have passed through, so that the first one has another index;
 * n allocations succeed on the way, then two puts are refused, then all succeed. Returns whether
 * there was a refusal. */
static bool check_growth(int kind, long nth, int shift)
{
    conc_queue q = queue_of(kind);
    int in = 0, out = 0;
    for (; in < 3; in++)
        CHECK_INT(conc_queue_put(&q, &in), 0);
    for (; kind != CONC_QUEUE_LIFO && out < shift; in++, out++) {
        int item;
        CHECK_INT(conc_queue_put(&q, &in), 0);
        CHECK_INT(conc_queue_get(&q, &item), 0);
        CHECK_INT(item, out);
        CHECK_INT(conc_queue_task_done(&q), 0);
    }
    refuse_after(nth);
    for (int end = in + 200; in < end;) {
        size_t length = conc_queue_len(&q);
        int rc = in % 2 ? conc_queue_put(&q, &in) : conc_queue_try_put(&q, &in);
        if (rc == 0) {
            in++;
            continue;
        }
        CHECK_INT(rc, -ENOMEM);
        CHECK_INT(conc_queue_try_put(&q, &in), -ENOMEM);
        CHECK_INT(conc_queue_len(&q), length);
        refusing = false;
    }
    refusing = false;
    check_all_come_out(&q, out, in - 1);
    conc_queue_destroy(&q);
    return refused > 0;
}

TASK_TEST(a_queue_that_cannot_grow_is_unchanged_and_grows_later)
{
    long before = live_allocations;
    for (int kind = 0; kind < KINDS; kind++) {
        for (int shift = 0; shift < 20; shift++) {
            long nth = 0;
            while (check_growth(kind, nth, shift))
                nth++;
            CHECK(nth > 1 && nth < 100);
            CHECK_INT(live_allocations, before);
        }
    }
}

TASK_TEST(the_first_put_may_be_refused_too)
{
    for (int kind = 0; kind < KINDS; kind++) {
        conc_queue q = queue_of(kind);
        int item = 5;
        refuse_after(0);
        for (int i = 0; i < 3; i++)
            CHECK_INT(conc_queue_put(&q, &item), -ENOMEM);
        CHECK_INT(conc_queue_len(&q), 0);
        CHECK_INT(conc_queue_try_get(&q, &item), -EAGAIN);
        CHECK_INT(conc_queue_join(&q), 0);
        refusing = false;
        CHECK_INT(conc_queue_put(&q, &item), 0);
        check_all_come_out(&q, 5, 5);
        conc_queue_destroy(&q);
    }
}

typedef struct client {
    conc_queue *queue;
    int item, rc;
} client;

static int gets_one(void *arg)
{
    client *c = arg;
    c->rc = conc_queue_get(c->queue, &c->item);
    return 0;
}

static int puts_one(void *arg)
{
    client *c = arg;
    c->rc = conc_queue_put(c->queue, &c->item);
    return 0;
}

TASK_TEST(handing_an_item_to_a_waiter_needs_no_memory)
{
    for (int kind = 0; kind < KINDS; kind++) {
        conc_queue q = queue_of(kind);
        client c = {&q, UNTOUCHED, 1};
        conc_group g = {0};
        CHECK_INT(conc_spawn(&g, gets_one, &c), 0);
        CHECK_INT(conc_settle(), 0);
        refuse_after(0);
        CHECK_INT(conc_queue_put(&q, &(int){7}), 0);
        CHECK_INT(conc_queue_put(&q, &(int){8}), -ENOMEM);
        CHECK_INT(conc_group_wait(&g), 0);
        refusing = false;
        CHECK_INT(c.rc, 0);
        CHECK_INT(c.item, 7);
        conc_queue_destroy(&q);
    }
}

TASK_TEST(a_putter_that_waited_for_room_needs_no_memory)
{
    for (int kind = 0; kind < KINDS; kind++) {
        conc_queue q = queue_of(kind);
        client c = {&q, 6, 1};
        conc_group g = {0};
        int item;
        q.capacity = 5;
        for (int i = 1; i <= 5; i++)
            CHECK_INT(conc_queue_put(&q, &i), 0);
        CHECK_INT(conc_spawn(&g, puts_one, &c), 0);
        CHECK_INT(conc_settle(), 0);
        refuse_after(0);
        for (int i = 0; i < 6; i++)
            CHECK_INT(conc_queue_get(&q, &item), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        refusing = false;
        CHECK_INT(c.rc, 0);
        conc_queue_destroy(&q);
    }
}

TASK_TEST(sizes_that_overflow_are_refused)
{
    size_t sizes[] = {SIZE_MAX,          SIZE_MAX - 7,      SIZE_MAX / 2,
                      SIZE_MAX / 2 + 1,  SIZE_MAX / 4 + 1,  SIZE_MAX / 8 + 1,
                      SIZE_MAX / 16 + 2, SIZE_MAX / 32 + 1, SIZE_MAX / 64 + 1};
    int item = 0;
    largest = 1 << 20;
    for (size_t i = 0; i < CONC_LEN(sizes); i++) {
        for (int kind = 0; kind < KINDS; kind++) {
            conc_queue q = queue_of(kind);
            q.item_size = sizes[i];
            CHECK_INT(conc_queue_put(&q, &item), -ENOMEM);
            CHECK_INT(conc_queue_try_put(&q, &item), -ENOMEM);
            CHECK_INT(conc_queue_len(&q), 0);
            conc_queue_destroy(&q);
        }
    }
    largest = SIZE_MAX;
}

TASK_TEST(a_capacity_costs_nothing_before_it_is_used)
{
    largest = 1 << 20;
    size_t capacities[] = {1000000, SIZE_MAX / 8, SIZE_MAX};
    for (size_t i = 0; i < CONC_LEN(capacities); i++) {
        for (int kind = 0; kind < KINDS; kind++) {
            conc_queue q = queue_of(kind);
            q.capacity = capacities[i];
            for (int k = 0; k < 1000; k++)
                CHECK_INT(conc_queue_put(&q, &k), 0);
            check_all_come_out(&q, 0, 999);
            conc_queue_destroy(&q);
        }
    }
    largest = SIZE_MAX;
}

static int returns_early(void)
{
    CONC_AUTO(conc_queue, q) = CONC_QUEUE(int, 0, .less = int_less);
    for (int i = 0; i < 100; i++)
        CONC_TRY(conc_queue_put(&q, &i));
    return 0;
}

TASK_TEST(a_queues_memory_is_freed_when_its_block_ends)
{
    long before = live_allocations;
    CHECK_INT(returns_early(), 0);
    CHECK_INT(live_allocations, before);
    for (long n = 0, rc = -ENOMEM; rc == -ENOMEM; n++) {
        CHECK(n < 100);
        refuse_after(n);
        rc = returns_early();
        refusing = false;
        CHECK_INT(live_allocations, before);
    }
}

TASK_TEST(a_destroyed_queue_holds_no_memory_however_often_it_is_destroyed)
{
    long before = live_allocations;
    for (int kind = 0; kind < KINDS; kind++) {
        conc_queue q = queue_of(kind);
        for (int i = 0; i < 100; i++)
            CHECK_INT(conc_queue_put(&q, &i), 0);
        CHECK(live_allocations > before);
        conc_queue_destroy(&q);
        CHECK_INT(live_allocations, before);
        conc_queue_destroy(&q);
        CHECK_INT(conc_queue_try_put(&q, &(int){1}), -EPIPE);
        CHECK_INT(live_allocations, before);
    }
}
