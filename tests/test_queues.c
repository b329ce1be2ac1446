/* test_queues.c - conc_queue: which task gets which item; none is lost, duplicated or out of
 * order, even if tasks are cancelled or close the queue. Running out of memory is in
 * test_queue_faults.c.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <inttypes.h>
#include <limits.h>
#include <pthread.h>

enum { UNDECIDED = 1000, UNTOUCHED = -77 }; /* neither a result of any call nor an item */

static bool int_less(const void *a, const void *b) { return *(const int *)a < *(const int *)b; }

/* A task that puts, gets or joins. */
typedef struct client {
    conc_queue *queue;
    int item;
    conc_task task;
    int rc, next; /* results of the call, and of the checkpoint after it */
    double at;
} client;

static int finish(client *c, int rc)
{
    c->rc = rc;
    c->at = conc_now();
    c->next = conc_yield();
    return 0;
}

static int puts_one(void *arg)
{
    client *c = arg;
    return finish(c, conc_queue_put(c->queue, &c->item));
}

static int gets_one(void *arg)
{
    client *c = arg;
    return finish(c, conc_queue_get(c->queue, &c->item));
}

static int joins(void *arg)
{
    client *c = arg;
    return finish(c, conc_queue_join(c->queue));
}

static void arrive(conc_group *g, conc_fn *fn, conc_queue *q, client *c, int item)
{
    *c = (client){.queue = q, .item = item, .rc = UNDECIDED, .next = UNDECIDED};
    CHECK_INT(conc_spawn_task(g, &c->task, fn, c), 0);
    CHECK_INT(conc_settle(), 0);
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

static void put(conc_queue *q, int item) { CHECK_INT(conc_queue_put(q, &item), 0); }

static int try_put(conc_queue *q, int item) { return conc_queue_try_put(q, &item); }

static void check_next(conc_queue *q, int expected)
{
    int item = UNTOUCHED;
    CHECK_INT(conc_queue_get(q, &item), 0);
    CHECK_INT(item, expected);
}

static void check_try_get_fails(conc_queue *q, int rc)
{
    int item = UNTOUCHED;
    CHECK_INT(conc_queue_try_get(q, &item), rc);
    CHECK_INT(item, UNTOUCHED);
}

static void check_empty(conc_queue *q)
{
    CHECK_INT(conc_queue_len(q), 0);
    check_try_get_fails(q, -EAGAIN);
}

static int put_zero(void *queue) { return conc_queue_put(queue, &(int){0}); }

static int get_here(void *queue) { return conc_queue_get(queue, &(int){0}); }

static int join_here(void *queue) { return conc_queue_join(queue); }

/* ---- order ---- */

TASK_TEST(each_kind_has_its_order)
{
    struct {
        conc_queue q;
        int expected[3];
    } cases[] = {
        {CONC_QUEUE(int, 0), {1, 3, 2}},
        {CONC_QUEUE(int, 3, .kind = CONC_QUEUE_FIFO), {1, 3, 2}},
        {CONC_QUEUE(int, 0, .kind = CONC_QUEUE_LIFO), {2, 3, 1}},
        {CONC_QUEUE(int, 3, .kind = CONC_QUEUE_LIFO), {2, 3, 1}},
        {CONC_QUEUE(int, 0, .kind = CONC_QUEUE_PRIORITY, .less = int_less), {1, 2, 3}},
        {CONC_QUEUE(int, 3, .less = int_less), {1, 2, 3}},
    };
    for (size_t i = 0; i < CONC_LEN(cases); i++) {
        conc_queue *q = &cases[i].q;
        for (int round = 0; round < 3; round++) {
            int items[] = {1, 3, 2};
            for (size_t k = 0; k < 3; k++) {
                put(q, items[k]);
                CHECK_INT(conc_queue_len(q), k + 1);
            }
            for (size_t k = 0; k < 3; k++) {
                check_next(q, cases[i].expected[k]);
                CHECK_INT(conc_queue_len(q), 2 - k);
            }
            check_empty(q);
        }
        conc_queue_destroy(q);
    }
}

typedef struct job {
    int urgency, number;
} job;

static bool more_urgent(const void *a, const void *b)
{
    const job *one = a, *other = b;
    return one->urgency > other->urgency;
}

TASK_TEST(a_hundred_thousand_items_come_out_sorted_and_equal_ones_in_the_order_of_their_puts)
{
    enum { N = 100000 };
    CONC_AUTO(conc_queue, q) = CONC_QUEUE(job, 0, .less = more_urgent);
    uint32_t random = 1;
    for (int i = 0; i < N; i++) {
        random = random * 1664525u + 1013904223u;
        CHECK_INT(conc_queue_try_put(&q, &(job){(int)(random >> 16) % 500, i}), 0);
    }
    CHECK_INT(conc_queue_len(&q), N);
    job last = {INT_MAX, -1}, j;
    for (int i = 0; i < N; i++) {
        CHECK_INT(conc_queue_try_get(&q, &j), 0);
        CHECK(j.urgency < last.urgency || (j.urgency == last.urgency && j.number > last.number));
        last = j;
    }
    check_empty(&q);
}

/* Random puts and gets, compared with an array in the order of the puts, which is searched for the
 * next item. */
static void check_beside_a_model(conc_queue *q, bool priority)
{
    static job model[512];
    size_t n = 0;
    for (int i = 0; i < 20000; i++) {
        bool putting =
            n == 0 || (n < CONC_LEN(model) && conc_random(0, 1) < (i / 1000 % 2 ? 0.4 : 0.6));
        job j = {(int)conc_random(0, 10), i};
        if (putting) {
            CHECK_INT(conc_queue_put(q, &j), 0);
            model[n++] = j;
        } else {
            size_t next = q->kind == CONC_QUEUE_LIFO ? n - 1 : 0;
            for (size_t k = 1; priority && k < n; k++)
                next = more_urgent(&model[k], &model[next]) ? k : next;
            CHECK_INT(conc_queue_get(q, &j), 0);
            CHECK_INT(j.number, model[next].number);
            CHECK_INT(j.urgency, model[next].urgency);
            memmove(&model[next], &model[next + 1], (--n - next) * sizeof model[0]);
        }
        CHECK_INT(conc_queue_len(q), n);
    }
    conc_queue_destroy(q);
}

TASK_TEST(any_mixture_of_puts_and_gets_keeps_the_order_of_the_kind)
{
    conc_queue fifo = CONC_QUEUE(job, 0), lifo = CONC_QUEUE(job, 0, .kind = CONC_QUEUE_LIFO);
    conc_queue priority = CONC_QUEUE(job, 0, .less = more_urgent),
               bounded = CONC_QUEUE(job, 512, .less = more_urgent);
    check_beside_a_model(&fifo, false);
    check_beside_a_model(&lifo, false);
    check_beside_a_model(&priority, true);
    check_beside_a_model(&bounded, true);
}

TASK_TEST(a_queue_may_grow_wherever_its_first_item_is)
{
    for (int shift = 0; shift < 70; shift++) {
        CONC_AUTO(conc_queue, q) = CONC_QUEUE(int, 0);
        /* some items always stay, so that the first index moves */
        for (int lying = 0; lying < 4; lying++) {
            int in = 0, out = 0;
            for (; in < lying; in++)
                put(&q, in);
            for (int i = 0; i < shift; i++) {
                put(&q, in++);
                check_next(&q, out++);
            }
            for (int i = 0; i < 150; i++)
                put(&q, in++);
            while (out < in)
                check_next(&q, out++);
            check_empty(&q);
        }
    }
}

TASK_TEST(without_a_capacity_there_is_no_limit)
{
    enum { N = 300000 };
    CONC_AUTO(conc_queue, q) = CONC_QUEUE(int, 0);
    for (int i = 0; i < N; i++)
        CHECK_INT(try_put(&q, i), 0);
    CHECK_INT(conc_queue_len(&q), N);
    for (int i = 0; i < N; i++)
        check_next(&q, i);
}

/* ---- items ---- */

/* Each byte of an item tells which item it is and which byte. */
static unsigned char byte_of(size_t item, size_t i)
{
    return (unsigned char)(item * 31 + i * 7 + (i >> 8));
}

static void fill(unsigned char *bytes, size_t size, size_t item)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = byte_of(item, i);
}

static void check_bytes(const unsigned char *bytes, size_t size, size_t item)
{
    for (size_t i = 0; i < size; i++)
        CHECK_INT(bytes[i], byte_of(item, i));
    CHECK_INT(bytes[size], 0xee); /* no more than there are */
}

typedef struct parcel {
    conc_queue *queue;
    unsigned char *bytes;
    int rc;
} parcel;

static int sends(void *arg)
{
    parcel *p = arg;
    p->rc = conc_queue_put(p->queue, p->bytes);
    return 0;
}

static int receives(void *arg)
{
    parcel *p = arg;
    p->rc = conc_queue_get(p->queue, p->bytes);
    return 0;
}

/* Through the queue, to a task that waits, and from a task that waits. */
static void check_items_of(conc_queue *q, unsigned char *in, unsigned char *out)
{
    size_t n = 5, size = q->item_size;
    conc_group g = {0};
    parcel late = {q, in, UNDECIDED}, early = {q, out, UNDECIDED};
    for (size_t i = 0; i < n; i++) {
        fill(in, size, i);
        CHECK_INT(conc_queue_put(q, in), 0);
    }
    fill(in, size, n);
    CHECK_INT(conc_spawn(&g, sends, &late), 0); /* it is full */
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(late.rc, UNDECIDED);
    for (size_t i = 0; i <= n; i++) {
        memset(out, 0xee, size + 1);
        CHECK_INT(conc_queue_get(q, out), 0);
        check_bytes(out, size,
                    q->kind == CONC_QUEUE_LIFO ? (i == 0   ? n - 1
                                                  : i == 1 ? n
                                                           : n - i)
                                               : i);
    }
    memset(out, 0xee, size + 1);
    CHECK_INT(conc_spawn(&g, receives, &early), 0);
    CHECK_INT(conc_settle(), 0);
    fill(in, size, 99);
    CHECK_INT(conc_queue_put(q, in), 0);
    memset(in, 0, size); /* the put has its own copy */
    CHECK_INT(conc_group_wait(&g), 0);
    check_bytes(out, size, 99);
    CHECK_INT(late.rc + early.rc, 0);
}

static bool never_less(const void *a, const void *b)
{
    (void)a, (void)b;
    return false;
}

TASK_TEST(items_of_any_size_arrive_whole)
{
    size_t sizes[] = {1,  2,  3,  5,  7,  8,   9,   15,   16,   17,
                      24, 31, 33, 63, 65, 100, 255, 1000, 4097, 100003};
    for (size_t i = 0; i < CONC_LEN(sizes); i++) {
        unsigned char *in = malloc(sizes[i] + 1), *out = malloc(sizes[i] + 1);
        conc_queue queues[] = {
            {.item_size = sizes[i], .capacity = 5},
            {.item_size = sizes[i], .capacity = 5, .kind = CONC_QUEUE_LIFO},
            /* all equal: FIFO order */
            {.item_size = sizes[i], .capacity = 5, .less = never_less},
        };
        CHECK(in && out);
        for (size_t k = 0; k < CONC_LEN(queues); k++) {
            check_items_of(&queues[k], in, out);
            conc_queue_destroy(&queues[k]);
        }
        free(in);
        free(out);
    }
}

typedef struct odd {
    char before;
    long double number;
    char after[19];
} odd;

static bool odd_less(const void *a, const void *b)
{
    const odd *one = a, *other = b;
    CHECK_INT((uintptr_t)one % _Alignof(odd), 0);
    CHECK_INT((uintptr_t)other % _Alignof(odd), 0);
    return one->number < other->number;
}

TASK_TEST(items_are_compared_at_aligned_addresses)
{
    CONC_AUTO(conc_queue, q) = CONC_QUEUE(odd, 0, .less = odd_less);
    for (int i = 0; i < 101; i++) {
        odd o = {.before = 'b', .number = (i * 37 % 101) * 0.5L};
        snprintf(o.after, sizeof o.after, "item %d", i * 37 % 101);
        CHECK_INT(conc_queue_put(&q, &o), 0);
    }
    for (int i = 0; i < 101; i++) {
        odd o;
        char text[19];
        CHECK_INT(conc_queue_get(&q, &o), 0);
        snprintf(text, sizeof text, "item %d", i);
        CHECK(o.before == 'b' && o.number == i * 0.5L);
        CHECK_STR(o.after, text);
    }
}

TASK_TEST(items_of_no_size_are_only_counted)
{
    conc_queue q = {.capacity = 3}, zero = {0};
    client c;
    conc_group g = {0};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_queue_put(&q, NULL), 0);
    CHECK_INT(conc_queue_try_put(&q, NULL), -EAGAIN);
    CHECK_INT(conc_queue_len(&q), 3);
    CHECK_INT(conc_queue_get(&q, NULL), 0);
    CHECK_INT(conc_queue_try_get(&q, NULL), 0);
    CHECK_INT(conc_queue_len(&q), 1);
    conc_queue_destroy(&q);

    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_queue_put(&zero, NULL), 0);
    CHECK_INT(conc_queue_len(&zero), 1000);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_queue_get(&zero, NULL), 0);
    CHECK_INT(conc_queue_try_get(&zero, NULL), -EAGAIN);
    arrive(&g, gets_one, &zero, &c, UNTOUCHED);
    CHECK_INT(conc_queue_put(&zero, &(int){5}), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&c, 1, 0, UNTOUCHED);
    conc_queue_destroy(&zero);
}

/* ---- waiting ---- */

TASK_TEST(a_put_into_a_full_queue_waits_for_a_get)
{
    conc_queue q = CONC_QUEUE(int, 2);
    client c;
    conc_group g = {0};
    put(&q, 1);
    put(&q, 2);
    CHECK_INT(try_put(&q, 9), -EAGAIN);
    arrive(&g, puts_one, &q, &c, 3);
    CHECK_INT(conc_sleep(2), 0);
    check_waits(&c, 1);
    CHECK_INT(conc_queue_len(&q), 2);
    check_next(&q, 1);
    CHECK_INT(conc_queue_len(&q), 2); /* its item is in the queue already */
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.rc, 0);
    CHECK(c.at == 2);
    check_next(&q, 2);
    check_next(&q, 3);
    check_empty(&q);
    conc_queue_destroy(&q);
}

TASK_TEST(getters_are_served_in_fifo_order)
{
    conc_queue q = CONC_QUEUE(int, 0);
    client c[10];
    conc_group g = {0};
    for (int i = 0; i < 10; i++)
        arrive(&g, gets_one, &q, &c[i], UNTOUCHED);
    for (int i = 0; i < 10; i++)
        put(&q, i);
    CHECK_INT(conc_queue_len(&q), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(c, 10, 0, 0);
    conc_queue_destroy(&q);
}

TASK_TEST(an_item_belongs_to_the_getter_that_waits_for_it)
{
    conc_queue q = CONC_QUEUE(int, 1);
    client c;
    conc_group g = {0};
    arrive(&g, gets_one, &q, &c, UNTOUCHED);
    put(&q, 1);
    CHECK_INT(conc_queue_len(&q), 0);
    check_try_get_fails(&q, -EAGAIN);
    CHECK_INT(try_put(&q, 2), 0); /* there is room: the first item is not in the queue */
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&c, 1, 0, 1);
    check_next(&q, 2);
    conc_queue_destroy(&q);
}

TASK_TEST(room_belongs_to_the_putter_that_waits_for_it)
{
    conc_queue q = CONC_QUEUE(int, 1);
    client c[2];
    conc_group g = {0};
    put(&q, 1);
    for (int i = 0; i < 2; i++)
        arrive(&g, puts_one, &q, &c[i], 2 + i);
    check_next(&q, 1);
    CHECK_INT(try_put(&q, 9), -EAGAIN);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(c[0].rc, 0);
    check_waits(&c[1], 1);
    CHECK_INT(try_put(&q, 9), -EAGAIN);
    check_next(&q, 2);
    check_next(&q, 3);
    CHECK_INT(conc_group_wait(&g), 0);
    check_empty(&q);
    conc_queue_destroy(&q);
}

TASK_TEST(two_gets_at_once_let_two_putters_in)
{
    conc_queue q = CONC_QUEUE(int, 2);
    client c[2];
    conc_group g = {0};
    put(&q, 1);
    put(&q, 2);
    for (int i = 0; i < 2; i++)
        arrive(&g, puts_one, &q, &c[i], 3 + i);
    for (int i = 1; i <= 4; i++)
        check_next(&q, i);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(c, 2, 0, 3);
    check_empty(&q);
    conc_queue_destroy(&q);
}

TASK_TEST(a_waiting_putter_has_not_put_yet_however_urgent_its_item)
{
    conc_queue priority = CONC_QUEUE(int, 1, .less = int_less),
               lifo = CONC_QUEUE(int, 1, .kind = CONC_QUEUE_LIFO);
    conc_queue *queues[] = {&priority, &lifo};
    for (size_t i = 0; i < CONC_LEN(queues); i++) {
        conc_queue *q = queues[i];
        client c[2];
        conc_group g = {0};
        put(q, 5);
        arrive(&g, puts_one, q, &c[0], 3);
        arrive(&g, puts_one, q, &c[1], 1); /* the most urgent, but second in line */
        check_next(q, 5);
        check_next(q, 3);
        check_next(q, 1);
        CHECK_INT(conc_group_wait(&g), 0);
        conc_queue_destroy(q);
    }
}

TASK_TEST(a_getter_that_waits_gets_the_first_item_however_urgent_the_second)
{
    conc_queue q = CONC_QUEUE(int, 0, .less = int_less);
    client c;
    conc_group g = {0};
    arrive(&g, gets_one, &q, &c, UNTOUCHED);
    put(&q, 5);
    put(&q, 1);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&c, 1, 0, 5);
    check_next(&q, 1);
    check_empty(&q);
    conc_queue_destroy(&q);
}

typedef struct flow {
    conc_queue *queue;
    int count, sum;
} flow;

static int produces(void *arg)
{
    flow *f = arg;
    for (int i = 1; i <= f->count; i++)
        CONC_TRY(conc_queue_put(f->queue, &i));
    conc_queue_close(f->queue);
    return 0;
}

static int consumes_in_order(void *arg)
{
    flow *f = arg;
    int item, rc;
    for (; (rc = conc_queue_get(f->queue, &item)) == 0; f->sum += item)
        CHECK_INT(item, ++f->count);
    return rc == -EPIPE ? 0 : rc;
}

TASK_TEST(a_producer_and_a_consumer_share_one_slot)
{
    conc_queue q = CONC_QUEUE(int, 1);
    flow in = {&q, 5000, 0}, out = {&q, 0, 0};
    CHECK_INT(CONC_GATHER(CONC_CALL(produces, &in), CONC_CALL(consumes_in_order, &out)), 0);
    CHECK_INT(out.count, 5000);
    CHECK_INT(out.sum, 5000 * 5001 / 2);
    conc_queue_destroy(&q);
}

static int raises(void *flag)
{
    *(bool *)flag = true;
    return 0;
}

TASK_TEST(a_loop_that_never_has_to_wait_lets_others_run)
{
    bool flag = false;
    int n = 0;
    conc_queue q = CONC_QUEUE(int, 0);
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, raises, &flag), 0);
    for (; !flag && n < 100000; n++) {
        put(&q, n);
        check_next(&q, n);
    }
    CHECK(flag && n < 10000);
    CHECK_INT(conc_group_wait(&g), 0);
    conc_queue_destroy(&q);
}

/* ---- cancels and time limits ---- */

TASK_TEST(a_cancelled_getter_takes_nothing_and_the_next_is_served)
{
    for (int victim = 0; victim < 3; victim++) {
        conc_queue q = CONC_QUEUE(int, 0);
        client c[3];
        conc_group g = {0};
        int items = 0;
        for (int i = 0; i < 3; i++)
            arrive(&g, gets_one, &q, &c[i], UNTOUCHED);
        CHECK_INT(conc_cancel(&c[victim].task), 0);
        put(&q, 1);
        put(&q, 2);
        put(&q, 3); /* for no task */
        CHECK_INT(conc_group_wait(&g), 0);
        check_clients(&c[victim], 1, -ECANCELED, UNTOUCHED);
        for (int i = 0; i < 3; i++)
            if (i != victim)
                check_clients(&c[i], 1, 0, ++items);
        check_next(&q, 3);
        check_empty(&q);
        conc_queue_destroy(&q);
    }
}

TASK_TEST(a_getter_that_is_cancelled_after_the_put_has_its_item)
{
    conc_queue q = CONC_QUEUE(int, 0);
    client c;
    conc_group g = {0};
    arrive(&g, gets_one, &q, &c, UNTOUCHED);
    put(&q, 1);
    put(&q, 2);
    CHECK_INT(conc_cancel(&c.task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&c, 1, 0, 1);
    CHECK_INT(c.next, -ECANCELED);
    CHECK_INT(conc_queue_len(&q), 1);
    check_next(&q, 2);
    conc_queue_destroy(&q);
}

TASK_TEST(a_cancelled_putter_puts_nothing_and_the_next_succeeds)
{
    conc_queue q = CONC_QUEUE(int, 1);
    client c[3];
    conc_group g = {0};
    put(&q, 1);
    for (int i = 0; i < 3; i++)
        arrive(&g, puts_one, &q, &c[i], 2 + i);
    CHECK_INT(conc_cancel(&c[0].task), 0);
    check_next(&q, 1);
    CHECK_INT(conc_cancel(&c[1].task), 0); /* too late: its item is in the queue */
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(c[0].rc, -ECANCELED);
    CHECK_INT(c[1].rc, 0);
    CHECK_INT(c[1].next, -ECANCELED);
    check_waits(&c[2], 1);
    check_next(&q, 3);
    check_next(&q, 4);
    CHECK_INT(conc_group_wait(&g), 0);
    check_empty(&q);
    conc_queue_destroy(&q);
}

TASK_TEST(calls_of_a_cancelled_task_change_nothing)
{
    conc_queue q = CONC_QUEUE(int, 2);
    conc_scope s = {0};
    int item = UNTOUCHED;
    put(&q, 1);
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_queue_get(&q, &item), -ECANCELED);
    CHECK_INT(item, UNTOUCHED);
    CHECK_INT(conc_queue_put(&q, &item), -ECANCELED);
    CHECK_INT(conc_queue_join(&q), -ECANCELED);
    CHECK_INT(conc_queue_len(&q), 1);
    CHECK_INT(try_put(&q, 2), 0); /* these are no checkpoints */
    CHECK_INT(conc_queue_try_get(&q, &item), 0);
    CHECK_INT(item, 1);
    CHECK_INT(conc_queue_task_done(&q), 0);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    check_next(&q, 2);
    CHECK_INT(conc_queue_task_done(&q), 0);
    CHECK_INT(conc_queue_join(&q), 0);
    conc_queue_destroy(&q);
}

TASK_TEST(a_call_that_times_out_leaves_the_queue_unchanged)
{
    conc_queue q = CONC_QUEUE(int, 1);
    CHECK_INT(conc_timeout(1, get_here, &q), -ETIMEDOUT);
    put(&q, 1);
    CHECK_INT(conc_queue_len(&q), 1);
    CHECK_INT(conc_timeout(1, put_zero, &q), -ETIMEDOUT);
    CHECK_INT(conc_queue_len(&q), 1);
    check_next(&q, 1);
    check_empty(&q);
    CHECK_INT(conc_timeout(1, join_here, &q), -ETIMEDOUT);
    CHECK_INT(conc_queue_task_done(&q), 0);
    /* the put that was cancelled does not count */
    CHECK_INT(conc_queue_task_done(&q), -EOVERFLOW);
    CHECK_TIME(3);
    conc_queue_destroy(&q);
}

static int gets_within_a_second(void *arg)
{
    client *c = arg;
    conc_scope s = {0};
    CONC_TRY(conc_scope_begin(&s, 1));
    c->rc = conc_queue_get(c->queue, &c->item);
    c->rc = conc_scope_end(&s, c->rc);
    return 0;
}

TASK_TEST(the_first_of_a_put_and_a_time_limit_decides)
{
    conc_queue q = CONC_QUEUE(int, 0);
    client late, in_time;
    conc_group g = {0};
    arrive(&g, gets_within_a_second, &q, &late, UNTOUCHED);
    CHECK_INT(conc_block(2), 0);
    put(&q, 1);
    CHECK_INT(conc_settle(), 0);
    check_clients(&late, 1, -ETIMEDOUT, UNTOUCHED);
    check_next(&q, 1);

    arrive(&g, gets_within_a_second, &q, &in_time, UNTOUCHED);
    put(&q, 2);
    CHECK_INT(conc_block(2), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&in_time, 1, 0, 2);
    conc_queue_destroy(&q);
}

/* ---- task_done and join ---- */

TASK_TEST(a_join_waits_until_as_many_were_done_as_were_put)
{
    conc_queue q = CONC_QUEUE(int, 0);
    client c[3];
    conc_group g = {0};
    CHECK_INT(conc_queue_join(&q), 0); /* no item was put yet */
    put(&q, 1);
    CHECK_INT(try_put(&q, 2), 0);
    for (int i = 0; i < 3; i++)
        arrive(&g, joins, &q, &c[i], 0);
    check_next(&q, 1);
    check_next(&q, 2);
    CHECK_INT(conc_queue_task_done(&q), 0);
    put(&q, 3);
    CHECK_INT(conc_queue_task_done(&q), 0);
    CHECK_INT(conc_sleep(1), 0);
    check_waits(c, 3);
    CHECK_INT(conc_cancel(&c[0].task), 0);
    check_next(&q, 3);
    CHECK_INT(conc_queue_task_done(&q), 0);
    put(&q, 4); /* the queue stays unchanged */
    CHECK_INT(conc_cancel(&c[1].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c[0].rc, -ECANCELED);
    CHECK_INT(c[1].rc, 0);
    CHECK_INT(c[1].next, -ECANCELED);
    CHECK_INT(c[2].rc, 0);
    CHECK_INT(conc_timeout(1, join_here, &q), -ETIMEDOUT);
    conc_queue_destroy(&q);
}

TASK_TEST(more_task_dones_than_puts_are_refused)
{
    conc_queue q = CONC_QUEUE(int, 1);
    client getter, putter;
    conc_group g = {0};
    CHECK_INT(conc_queue_task_done(&q), -EOVERFLOW);
    arrive(&g, gets_one, &q, &getter, UNTOUCHED);
    put(&q, 1); /* an item that was handed over counts as well */
    CHECK_INT(conc_queue_task_done(&q), 0);
    CHECK_INT(conc_queue_task_done(&q), -EOVERFLOW);
    put(&q, 2);
    arrive(&g, puts_one, &q, &putter, 3);
    CHECK_INT(conc_queue_task_done(&q), 0);
    CHECK_INT(conc_queue_task_done(&q), -EOVERFLOW); /* a putter that waits has not put its item */
    check_next(&q, 2);
    CHECK_INT(conc_queue_task_done(&q), 0); /* now it has */
    CHECK_INT(conc_queue_task_done(&q), -EOVERFLOW);
    CHECK_INT(conc_queue_join(&q), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    conc_queue_destroy(&q);
}

static int works_through(void *arg)
{
    flow *f = arg;
    for (;;) {
        int item;
        CONC_TRY(conc_queue_get(f->queue, &item));
        CONC_TRY(conc_sleep(1));
        f->sum += item;
        CONC_TRY(conc_queue_task_done(f->queue));
    }
}

TASK_TEST(a_join_ends_when_the_workers_have_done_all)
{
    conc_queue q = CONC_QUEUE(int, 0);
    flow f = {.queue = &q};
    conc_group workers = {0};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&workers, works_through, &f), 0);
    for (int i = 1; i <= 10; i++)
        put(&q, i);
    CHECK_INT(conc_queue_join(&q), 0);
    CHECK_TIME(4);
    CHECK_INT(f.sum, 55);
    conc_group_cancel(&workers);
    CHECK_INT(conc_group_wait(&workers), 0);
    conc_queue_destroy(&q);
}

/* ---- close ---- */

static void check_closed_and_empty(conc_queue *q)
{
    int item = UNTOUCHED;
    CHECK_INT(conc_queue_put(q, &item), -EPIPE);
    CHECK_INT(conc_queue_try_put(q, &item), -EPIPE);
    CHECK_INT(conc_queue_get(q, &item), -EPIPE);
    check_try_get_fails(q, -EPIPE);
    CHECK_INT(item, UNTOUCHED);
    CHECK_INT(conc_queue_len(q), 0);
}

TASK_TEST(closing_an_empty_queue_wakes_its_getters)
{
    conc_queue q = CONC_QUEUE(int, 0);
    client c[3];
    conc_group g = {0};
    for (int i = 0; i < 3; i++)
        arrive(&g, gets_one, &q, &c[i], UNTOUCHED);
    conc_queue_close(&q);
    conc_queue_close(&q);
    CHECK_INT(conc_cancel(&c[1].task), 0); /* too late */
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(c, 3, -EPIPE, UNTOUCHED);
    CHECK_INT(c[1].next, -ECANCELED);
    check_closed_and_empty(&q);
    CHECK_INT(conc_queue_join(&q), 0);
    conc_queue_destroy(&q);
}

TASK_TEST(items_in_a_closed_queue_can_still_be_taken)
{
    conc_queue queues[] = {CONC_QUEUE(int, 2), CONC_QUEUE(int, 2, .kind = CONC_QUEUE_LIFO),
                           CONC_QUEUE(int, 2, .less = int_less)};
    for (size_t i = 0; i < CONC_LEN(queues); i++) {
        conc_queue *q = &queues[i];
        client putter[2], joiner;
        conc_group g = {0};
        put(q, 1);
        put(q, 2);
        for (int k = 0; k < 2; k++)
            arrive(&g, puts_one, q, &putter[k], 3 + k);
        arrive(&g, joins, q, &joiner, 0);
        conc_queue_close(q);
        CHECK_INT(try_put(q, 9), -EPIPE);
        CHECK_INT(conc_settle(), 0);
        check_clients(putter, 2, -EPIPE, 3);
        check_waits(&joiner, 1);
        CHECK_INT(conc_queue_len(q), 2);
        check_next(q, q->kind == CONC_QUEUE_LIFO ? 2 : 1);
        CHECK_INT(try_put(q, 9), -EPIPE); /* although there is room */
        check_next(q, q->kind == CONC_QUEUE_LIFO ? 1 : 2);
        check_closed_and_empty(q);
        CHECK_INT(conc_queue_task_done(q), 0);
        CHECK_INT(conc_sleep(1), 0);
        check_waits(&joiner, 1);
        CHECK_INT(conc_queue_task_done(q), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(joiner.rc, 0);
        CHECK_INT(conc_queue_task_done(q), -EOVERFLOW);
        conc_queue_destroy(q);
    }
}

TASK_TEST(grants_before_the_close_are_kept)
{
    conc_queue q = CONC_QUEUE(int, 1);
    client getter, putter;
    conc_group g = {0};
    arrive(&g, gets_one, &q, &getter, UNTOUCHED);
    put(&q, 1);
    put(&q, 2);
    conc_queue_close(&q);
    CHECK_INT(conc_settle(), 0);
    check_clients(&getter, 1, 0, 1);
    check_next(&q, 2);
    conc_queue_destroy(&q);

    q = (conc_queue)CONC_QUEUE(int, 1);
    put(&q, 3);
    arrive(&g, puts_one, &q, &putter, 4);
    check_next(&q, 3);
    conc_queue_close(&q);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(putter.rc, 0);
    check_next(&q, 4);
    check_closed_and_empty(&q);
    conc_queue_destroy(&q);
}

/* ---- destroy ---- */

TASK_TEST(destroying_a_queue_wakes_all_waiters_and_drops_its_items)
{
    conc_queue full = CONC_QUEUE(int, 1), empty = CONC_QUEUE(int, 1);
    client putter, joiner, getter[2];
    conc_group g = {0};
    put(&full, 1);
    arrive(&g, puts_one, &full, &putter, 2);
    arrive(&g, joins, &full, &joiner, 0);
    for (int i = 0; i < 2; i++)
        arrive(&g, gets_one, &empty, &getter[i], UNTOUCHED);
    put(&empty, 3); /* the first getter's */
    conc_queue_destroy(&full);
    conc_queue_destroy(&empty);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&putter, 1, -EPIPE, 2);
    check_clients(&joiner, 1, -EPIPE, 0);
    check_clients(&getter[0], 1, 0, 3);
    check_clients(&getter[1], 1, -EPIPE, UNTOUCHED);
    check_closed_and_empty(&full);
    check_closed_and_empty(&empty);
    conc_queue_destroy(&full);
    conc_queue_close(&full);
    check_closed_and_empty(&full);
}

TASK_TEST(a_destroyed_queue_may_be_freed_before_its_waiters_run)
{
    conc_queue *q = malloc(sizeof *q), *full = malloc(sizeof *full);
    client c[4];
    conc_group g = {0};
    CHECK(q && full);
    *q = (conc_queue)CONC_QUEUE(int, 1);
    *full = (conc_queue)CONC_QUEUE(int, 1);
    arrive(&g, gets_one, q, &c[0], UNTOUCHED);
    arrive(&g, gets_one, q, &c[1], UNTOUCHED);
    put(full, 1);
    arrive(&g, puts_one, full, &c[2], 2);
    arrive(&g, joins, full, &c[3], 0);
    conc_queue_destroy(q);
    conc_queue_destroy(full);
    free(q);
    free(full);
    CHECK_INT(conc_cancel(&c[1].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 4; i++)
        CHECK_INT(c[i].rc, -EPIPE);
}

static int leaves_the_block(conc_group *g, client *c, bool early)
{
    CONC_AUTO(conc_queue, q) = CONC_QUEUE(odd, 3);
    CHECK_INT(conc_queue_put(&q, &(odd){.number = 1}), 0);
    arrive(g, joins, &q, c, 0);
    if (early)
        return 1;
    CHECK_INT(conc_queue_put(&q, &(odd){.number = 2}), 0);
    return 2;
}

TASK_TEST(an_auto_queue_ends_with_its_block)
{
    for (int i = 0; i < 2; i++) {
        client c;
        conc_group g = {0};
        CHECK_INT(leaves_the_block(&g, &c, i == 0), 1 + i);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(c.rc, -EPIPE);
    }
}

TASK_TEST(an_auto_queue_that_was_never_used_ends_too)
{
    CONC_AUTO(conc_queue, q) = CONC_QUEUE(int, 3);
    CONC_AUTO(conc_queue, zero) = {0};
    CONC_AUTO(conc_queue, senseless) = {.kind = 99};
    CHECK_INT(conc_queue_len(&q) + conc_queue_len(&zero) + conc_queue_len(&senseless), 0);
}

TASK_TEST(a_destroyed_queue_can_be_used_again)
{
    conc_queue q = {0};
    for (int i = 0; i < 5; i++) {
        q = (conc_queue)CONC_QUEUE(int, 2);
        put(&q, 7);
        put(&q, i);
        check_next(&q, 7);
        CHECK_INT(conc_queue_task_done(&q), 0);
        conc_queue_destroy(&q);
    }
}

/* ---- any program ---- */

enum { PRODUCERS = 4, CONSUMERS = 4, ITEMS = 150 };

typedef struct market {
    conc_queue queue;
    int producers_left, put, got;
    int last[PRODUCERS]; /* number of the latest item that came out, by its producer */
    bool out[PRODUCERS][ITEMS];
    bool in[PRODUCERS][ITEMS];
} market;

typedef struct trader {
    market *market;
    int who;
} trader;

/* Filters an expected result of a call with a time limit: 0, -ETIMEDOUT or -EPIPE. */
static int puts_in_a_hurry(market *m, job *j)
{
    conc_scope s = {0};
    CONC_TRY(conc_scope_begin(&s, conc_random(0, 1)));
    return conc_scope_end(&s, conc_queue_put(&m->queue, j));
}

static int gets_in_a_hurry(market *m, job *j)
{
    conc_scope s = {0};
    CONC_TRY(conc_scope_begin(&s, conc_random(0, 1)));
    int rc = conc_queue_get(&m->queue, j);
    if (rc == 0) {
        CHECK(!m->out[j->urgency][j->number]);
        m->out[j->urgency][j->number] = true;
        m->got++;
    }
    return conc_scope_end(&s, rc);
}

static int trades_in(void *arg)
{
    trader *t = arg;
    market *m = t->market;
    for (int i = 0; i < ITEMS; i++) {
        int rc = puts_in_a_hurry(m, &(job){t->who, i});
        CHECK(rc == 0 || rc == -ETIMEDOUT);
        m->in[t->who][i] = rc == 0;
        m->put += rc == 0;
        if (conc_random(0, 1) < 0.5)
            CONC_TRY(conc_sleep(conc_random(0, 0.5)));
    }
    if (--m->producers_left == 0)
        conc_queue_close(&m->queue);
    return 0;
}

static int trades_out(void *arg)
{
    trader *t = arg;
    int rc;
    do {
        job j = {UNTOUCHED, UNTOUCHED};
        rc = gets_in_a_hurry(t->market, &j);
        CHECK(rc == 0 || rc == -ETIMEDOUT || rc == -EPIPE);
        if (rc != 0)
            CHECK_INT(j.number, UNTOUCHED);
        else
            CHECK_INT(conc_queue_task_done(&t->market->queue), 0);
        if (conc_random(0, 1) < 0.5)
            CONC_TRY(conc_sleep(conc_random(0, 0.5)));
    } while (rc != -EPIPE);
    return 0;
}

static void check_market(conc_queue q)
{
    static market m;
    trader traders[PRODUCERS + CONSUMERS];
    conc_group g = {0};
    m = (market){.queue = q, .producers_left = PRODUCERS};
    for (int i = 0; i < PRODUCERS + CONSUMERS; i++) {
        traders[i] = (trader){&m, i};
        CHECK_INT(conc_spawn(&g, i < PRODUCERS ? trades_in : trades_out, &traders[i]), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_queue_join(&m.queue), 0);
    CHECK_INT(m.got, m.put);
    CHECK(m.put > ITEMS);
    for (int p = 0; p < PRODUCERS; p++)
        for (int i = 0; i < ITEMS; i++)
            CHECK_INT(m.out[p][i], m.in[p][i]);
    conc_queue_destroy(&m.queue);
}

TASK_TEST(each_item_comes_out_once_whichever_calls_time_out)
{
    for (size_t capacity = 0; capacity <= 3; capacity++) {
        check_market((conc_queue)CONC_QUEUE(job, capacity));
        check_market((conc_queue)CONC_QUEUE(job, capacity, .kind = CONC_QUEUE_LIFO));
        check_market((conc_queue)CONC_QUEUE(job, capacity, .less = more_urgent));
    }
}

static int consumes_impatiently(void *arg)
{
    market *m = arg;
    int rc;
    do {
        job j;
        rc = gets_in_a_hurry(m, &j);
        if (rc == 0) {
            CHECK(j.number > m->last[j.urgency]);
            m->last[j.urgency] = j.number;
        }
    } while (rc != -EPIPE);
    return 0;
}

TASK_TEST(one_consumer_sees_the_items_of_each_producer_in_their_order)
{
    static market m = {
        .queue = CONC_QUEUE(job, 2), .producers_left = PRODUCERS, .last = {-1, -1, -1, -1}};
    trader traders[PRODUCERS];
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, consumes_impatiently, &m), 0);
    for (int i = 0; i < PRODUCERS; i++) {
        traders[i] = (trader){&m, i};
        CHECK_INT(conc_spawn(&g, trades_in, &traders[i]), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(m.got, m.put);
    conc_queue_destroy(&m.queue);
}

/* ---- outside tasks ---- */

static int takes_one_and_leaves_two(void *queue)
{
    check_next(queue, 1);
    put(queue, 4);
    return conc_queue_task_done(queue);
}

TEST(a_queue_works_before_between_and_after_runs)
{
    static conc_queue q = CONC_QUEUE(int, 3);
    int item = UNTOUCHED;
    check_empty(&q);
    for (int i = 1; i <= 3; i++)
        CHECK_INT(try_put(&q, i), 0);
    CHECK_INT(try_put(&q, 9), -EAGAIN);
    CHECK_INT(conc_queue_put(&q, &item), -EPERM);
    CHECK_INT(conc_queue_get(&q, &item), -EPERM);
    CHECK_INT(conc_queue_join(&q), -EPERM);
    CHECK_INT(item, UNTOUCHED);
    CHECK_INT(conc_run(takes_one_and_leaves_two, &q), 0);
    CHECK_INT(conc_queue_len(&q), 3);
    for (int i = 2; i <= 4; i++) {
        CHECK_INT(conc_queue_try_get(&q, &item), 0);
        CHECK_INT(item, i);
        CHECK_INT(conc_queue_task_done(&q), 0);
    }
    CHECK_INT(conc_queue_task_done(&q), -EOVERFLOW);
    CHECK_INT(try_put(&q, 1), 0);
    CHECK_INT(conc_run(takes_one_and_leaves_two, &q), 0);
    conc_queue_close(&q);
    CHECK_INT(try_put(&q, 9), -EPIPE);
    CHECK_INT(conc_queue_try_get(&q, &item), 0);
    check_try_get_fails(&q, -EPIPE);
    conc_queue_destroy(&q);
    check_try_get_fails(&q, -EPIPE);
}

typedef struct posted {
    conc_queue *queue;
    int rc[6];
} posted;

static void call_from_a_post(void *arg)
{
    posted *p = arg;
    int item = UNTOUCHED;
    p->rc[0] = conc_queue_put(p->queue, &item);
    p->rc[1] = conc_queue_get(p->queue, &item);
    p->rc[2] = conc_queue_join(p->queue);
    p->rc[3] = try_put(p->queue, 1);
    p->rc[4] = try_put(p->queue, 2);
    p->rc[5] = conc_queue_task_done(p->queue);
}

static void take_in_a_post(void *arg)
{
    posted *p = arg;
    int item = UNTOUCHED;
    p->rc[0] = conc_queue_try_get(p->queue, &item);
    p->rc[1] = item;
    conc_queue_close(p->queue);
}

static void destroy_in_a_post(void *queue) { conc_queue_destroy(queue); }

TASK_TEST(posted_functions_may_do_all_but_wait)
{
    conc_queue q = CONC_QUEUE(int, 1);
    client getter, putter[2], last;
    posted p = {.queue = &q};
    conc_group g = {0};
    arrive(&g, gets_one, &q, &getter, UNTOUCHED);
    CHECK_INT(conc_post(conc_loop_self(), call_from_a_post, &p), 0);
    CHECK_INT(conc_sleep(1), 0);
    for (int i = 0; i < 6; i++)
        CHECK_INT(p.rc[i], i < 3 ? -EPERM : 0);
    check_clients(&getter, 1, 0, 1);

    for (int i = 0; i < 2; i++)
        arrive(&g, puts_one, &q, &putter[i], 3 + i);
    CHECK_INT(conc_post(conc_loop_self(), take_in_a_post, &p), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(p.rc[0], 0);
    CHECK_INT(p.rc[1], 2);
    CHECK_INT(putter[0].rc, 0);
    CHECK_INT(putter[1].rc, -EPIPE);

    arrive(&g, joins, &q, &last, 0);
    CHECK_INT(conc_post(conc_loop_self(), destroy_in_a_post, &q), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(last.rc, -EPIPE);
}

typedef struct visit {
    conc_queue *empty, *full;
    int rc[3], item;
} visit;

static void *call_from_a_thread(void *arg)
{
    visit *v = arg;
    v->rc[0] = try_put(v->empty, 7);
    v->rc[1] = conc_queue_try_get(v->full, &v->item);
    v->rc[2] = conc_queue_task_done(v->full);
    conc_queue_close(v->empty);
    conc_queue_close(v->full);
    return NULL;
}

TASK_TEST(another_threads_calls_change_nothing_while_a_task_waits)
{
    conc_queue empty = CONC_QUEUE(int, 1), full = CONC_QUEUE(int, 1);
    client getter, putter, joiner;
    visit v = {.empty = &empty, .full = &full, .item = UNTOUCHED};
    pthread_t thread;
    conc_group g = {0};
    put(&full, 1);
    arrive(&g, gets_one, &empty, &getter, UNTOUCHED);
    arrive(&g, puts_one, &full, &putter, 2);
    arrive(&g, joins, &full, &joiner, 0);
    CHECK_INT(pthread_create(&thread, NULL, call_from_a_thread, &v), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(v.rc[i], -EPERM);
    CHECK_INT(v.item, UNTOUCHED);
    CHECK_INT(conc_sleep(1), 0);
    check_waits(&getter, 1);
    check_waits(&putter, 1);
    check_waits(&joiner, 1);
    CHECK_INT(conc_queue_len(&full), 1);
    put(&empty, 5);
    check_next(&full, 1);
    check_next(&full, 2);
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_queue_task_done(&full), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    check_clients(&getter, 1, 0, 5);
    CHECK_INT(putter.rc + joiner.rc, 0);
    conc_queue_destroy(&empty);
    conc_queue_destroy(&full);
}

static int gets_forever(void *queue)
{
    CHECK_INT(get_here(queue), -ECANCELED);
    return 0;
}

static void get_from_nobody(void)
{
    conc_queue q = CONC_QUEUE(int, 0);
    int item = UNTOUCHED;
    CHECK_INT(conc_run(gets_forever, &q), -EDEADLK);
    CHECK_INT(try_put(&q, 1), 0); /* no task waits any more */
    CHECK_INT(conc_queue_try_get(&q, &item), 0);
    CHECK_INT(item, 1);
    conc_queue_destroy(&q);
}

TEST(a_get_that_no_task_can_serve_is_a_deadlock)
{
    static char text[16384];
    int status = test_in_process(get_from_nobody, text, sizeof text);
    if (status != 0)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, text);
    CHECK_CONTAINS(text, "queue");
}

/* ---- misuse ---- */

TASK_TEST(invalid_kinds_are_refused)
{
    conc_queue queues[] = {
        CONC_QUEUE(int, 3, .kind = CONC_QUEUE_PRIORITY),
        CONC_QUEUE(int, 3, .kind = CONC_QUEUE_LIFO, .less = int_less),
        CONC_QUEUE(int, 3, .kind = -1),
        CONC_QUEUE(int, 3, .kind = 3),
        CONC_QUEUE(int, 3, .kind = 3, .less = int_less),
    };
    for (size_t i = 0; i < CONC_LEN(queues); i++) {
        conc_queue *q = &queues[i];
        int item = UNTOUCHED;
        CHECK_INT(conc_queue_put(q, &item), -EINVAL);
        CHECK_INT(conc_queue_try_put(q, &item), -EINVAL);
        CHECK_INT(conc_queue_get(q, &item), -EINVAL);
        CHECK_INT(conc_queue_try_get(q, &item), -EINVAL);
        CHECK_INT(item, UNTOUCHED);
        CHECK_INT(conc_queue_len(q), 0);
        conc_queue_destroy(q);
    }
    CHECK_TIME(0);
}

TASK_TEST(a_null_queue_is_refused)
{
    int item = UNTOUCHED;
    CHECK_INT(conc_queue_put(NULL, &item), -EINVAL);
    CHECK_INT(conc_queue_try_put(NULL, &item), -EINVAL);
    CHECK_INT(conc_queue_get(NULL, &item), -EINVAL);
    CHECK_INT(conc_queue_try_get(NULL, &item), -EINVAL);
    CHECK_INT(conc_queue_task_done(NULL), -EINVAL);
    CHECK_INT(conc_queue_join(NULL), -EINVAL);
    CHECK_INT(conc_queue_len(NULL), 0);
    conc_queue_close(NULL);
    conc_queue_destroy(NULL);
    CHECK_INT(item, UNTOUCHED);
}

TASK_TEST(a_null_item_is_refused)
{
    conc_queue q = CONC_QUEUE(int, 3);
    CHECK_INT(conc_queue_put(&q, NULL), -EINVAL);
    CHECK_INT(conc_queue_try_put(&q, NULL), -EINVAL);
    put(&q, 1);
    CHECK_INT(conc_queue_get(&q, NULL), -EINVAL);
    CHECK_INT(conc_queue_try_get(&q, NULL), -EINVAL);
    CHECK_INT(conc_queue_len(&q), 1);
    check_next(&q, 1);
    conc_queue_destroy(&q);
}

/* ---- a queue that is destroyed while its items are being processed ---- */

static int works_on_one(void *arg)
{
    int item;
    CONC_TRY(conc_queue_get(arg, &item));
    CONC_TRY(conc_sleep(2));
    return conc_queue_task_done(arg);
}

static int joins_the_queue(void *arg) { return conc_queue_join(arg); }

TASK_TEST(items_in_flight_stay_in_the_count_of_a_destroyed_queue)
{
    conc_queue q = CONC_QUEUE(int, 10);
    conc_task joiner;
    conc_group g = {.keep_going = true};
    for (int i = 0; i < 5; i++)
        CHECK_INT(conc_queue_put(&q, &i), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_spawn(&g, works_on_one, &q), 0);
    CHECK_INT(conc_spawn_task(&g, &joiner, joins_the_queue, &q), 0);
    CHECK_INT(conc_sleep(1), 0);
    conc_queue_destroy(&q);
    CHECK_INT(conc_queue_len(&q), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(conc_done(&joiner));
    CHECK_INT(conc_queue_join(&q), 0); /* with the two in flight */
    CHECK_TIME(2);
    conc_queue_destroy(&q);
    CHECK_INT(conc_queue_task_done(&q), -EOVERFLOW);
    CHECK_INT(conc_group_wait(&g), -EPIPE);
    CHECK_INT(g.error_count, 1); /* from the joiner that waited at that moment */
}

/* ---- puts of plain values ---- */

typedef struct order {
    const char *what;
    int amount;
} order;

TASK_TEST(a_value_is_put_without_a_variable_for_it)
{
    conc_queue numbers = CONC_QUEUE(int, 10), orders = CONC_QUEUE(order, 10);
    int n = 3, evaluated = 0;
    order o;
    CHECK_INT(CONC_PUT(&numbers, n), 0);
    CHECK_INT(CONC_PUT(&numbers, n + ++evaluated), 0);
    CHECK_INT(CONC_PUT(evaluated++ ? &orders : NULL, (order){"tea", 2}), 0);
    CHECK_INT(evaluated, 2);
    CHECK_INT(conc_queue_get(&numbers, &n), 0);
    CHECK_INT(n, 3);
    CHECK_INT(conc_queue_get(&numbers, &n), 0);
    CHECK_INT(n, 4);
    CHECK_INT(conc_queue_get(&orders, &o), 0);
    CHECK_STR(o.what, "tea");
    CHECK_INT(o.amount, 2);
    conc_queue_destroy(&numbers);
    CHECK_INT(CONC_PUT(&numbers, n), -EPIPE);
    conc_queue_destroy(&orders);
}

TASK_TEST(a_pointer_is_put_into_a_queue_of_pointers)
{
    conc_queue names = CONC_QUEUE(const char *, 10);
    char buffer[] = "a buffer";
    const char *name = "a name", *got;
    CHECK_INT(CONC_PUT(&names, name), 0);
    CHECK_INT(CONC_PUT(&names, "a string"), 0);
    CHECK_INT(CONC_PUT(&names, buffer), 0);
    CHECK_INT(conc_queue_get(&names, &got), 0);
    CHECK(got == name);
    CHECK_INT(conc_queue_get(&names, &got), 0);
    CHECK_STR(got, "a string");
    CHECK_INT(conc_queue_get(&names, &got), 0);
    CHECK(got == buffer);
    conc_queue_destroy(&names);
}

TASK_TEST(a_value_of_another_size_is_refused_with_both_sizes)
{
    conc_queue q = CONC_QUEUE(int, 10);
    conc_queue *volatile hidden = &q; /* otherwise this would not compile */
    CHECK_INT(CONC_PUT(hidden, (char)1), -EINVAL);
    CHECK_STR(conc_last_error(), "an item of 1 bytes for a queue of items of 4");
    CHECK_INT(conc_queue_len(&q), 0);
    conc_queue_destroy(&q);
}
