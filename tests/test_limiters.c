/* test_limiters.c - conc_limiter: which task gets tokens, and when, to the nanosecond of the
 * virtual clock.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>

enum { UNDECIDED = 1000 }; /* what no call returns */

#define SECOND INT64_C(1000000000)

typedef struct taker {
    conc_limiter *limiter;
    int n;
    conc_task task;
    int rc, next; /* results of the acquire, and of the checkpoint after it */
    int64_t at;   /* ns */
} taker;

static int64_t now_ns(void) { return (int64_t)(conc_now() * 1e9 + 0.5); }

static int takes(void *arg)
{
    taker *t = arg;
    t->rc = conc_limiter_acquire(t->limiter, t->n);
    t->at = now_ns();
    t->next = conc_yield();
    return 0;
}

/* Starts a task that asks for n tokens. */
static void arrive(conc_group *g, conc_limiter *l, taker *t, int n)
{
    *t = (taker){.limiter = l, .n = n, .rc = UNDECIDED, .next = UNDECIDED};
    CHECK_INT(conc_spawn_task(g, &t->task, takes, t), 0);
    CHECK_INT(conc_settle(), 0);
}

static void arrive_for_one(conc_group *g, conc_limiter *l, taker *takers, int count)
{
    for (int i = 0; i < count; i++)
        arrive(g, l, &takers[i], 1);
}

/* When the i-th token after a full bucket of one arrives: the first nanosecond not before i * per /
 * rate seconds. */
static int64_t due(int64_t i, int64_t rate, int64_t per)
{
    return (i * per * SECOND + rate - 1) / rate;
}

static int take_one(void *limiter) { return conc_limiter_acquire(limiter, 1); }

/* ---- rate, burst and per ---- */

TASK_TEST(one_task_gets_a_token_each_time_it_is_due)
{
    struct {
        int rate, per;
    } cases[] = {{3, 1}, {1, 1}, {7, 1}, {10, 1}, {1000, 1}, {1, 60}, {5, 60}, {30, 60}, {7, 3600}};
    for (size_t c = 0; c < CONC_LEN(cases); c++) {
        conc_limiter l = {.rate = cases[c].rate, .per = cases[c].per};
        int64_t begin = now_ns();
        for (int i = 0; i <= 200; i++) {
            CHECK_INT(conc_limiter_acquire(&l, 1), 0);
            CHECK_INT(now_ns() - begin, due(i, cases[c].rate, cases[c].per));
        }
        /* where a double still resolves nanoseconds */
        CHECK_INT(conc_sleep_until(ceil(conc_now())), 0);
    }
}

TASK_TEST(a_long_series_does_not_drift)
{
    conc_limiter l = {.rate = 3};
    for (int i = 0; i <= 30000; i++)
        CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    CHECK_INT(now_ns(), 10000 * SECOND);
}

TASK_TEST(a_burst_is_granted_at_once_and_the_rest_at_the_rate)
{
    conc_limiter l = {.rate = 10, .burst = 5};
    for (int i = 0; i < 5; i++)
        CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    CHECK_TIME(0);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), -EAGAIN);
    for (int i = 1; i <= 5; i++) {
        CHECK_INT(conc_limiter_acquire(&l, 1), 0);
        CHECK_TIME(0.1 * i);
    }
}

TASK_TEST(several_tokens_take_as_long_as_their_refill)
{
    conc_limiter l = {.rate = 2, .per = 10, .burst = 6};
    CHECK_INT(conc_limiter_acquire(&l, 4), 0); /* 2 left */
    CHECK_TIME(0);
    CHECK_INT(conc_limiter_acquire(&l, 6), 0);
    CHECK_TIME(20);
    CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    CHECK_TIME(25);
    CHECK_INT(conc_limiter_acquire(&l, 3), 0);
    CHECK_TIME(40);
}

TASK_TEST(an_idle_bucket_fills_up_to_the_burst_and_no_further)
{
    conc_limiter l = {.rate = 10, .burst = 3}, one = {.rate = 10};
    CHECK_INT(conc_limiter_acquire(&l, 3), 0);
    CHECK_INT(conc_sleep(0.25), 0); /* 2.5 tokens */
    CHECK_INT(conc_limiter_try_acquire(&l, 3), -EAGAIN);
    CHECK_INT(conc_limiter_try_acquire(&l, 2), 0);
    CHECK_INT(conc_sleep(1e6), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_limiter_try_acquire(&l, 1), 0);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), -EAGAIN);
    CHECK_INT(conc_limiter_try_acquire(&one, 1), 0); /* not used before now */
    CHECK_INT(conc_limiter_try_acquire(&one, 1), -EAGAIN);
    CHECK_TIME(1e6 + 0.25);
}

TASK_TEST(a_part_of_a_token_is_kept)
{
    conc_limiter l = {.rate = 1, .burst = 2.5};
    CHECK_INT(conc_limiter_acquire(&l, 2), 0); /* 0.5 left */
    CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    CHECK_TIME(0.5);
    CHECK_INT(conc_sleep(0.25), 0);
    CHECK_INT(conc_limiter_acquire(&l, 2), 0);
    CHECK_TIME(2.5);
    CHECK_INT(conc_sleep(100), 0);
    CHECK_INT(conc_limiter_try_acquire(&l, 2), 0);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), -EAGAIN);
}

TASK_TEST(a_try_takes_available_tokens_and_none_if_there_are_too_few)
{
    conc_limiter l = {.rate = 1, .burst = 4};
    CHECK_INT(conc_limiter_try_acquire(&l, 3), 0);
    for (int i = 0; i < 10; i++)
        CHECK_INT(conc_limiter_try_acquire(&l, 2), -EAGAIN);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), 0);
    CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    CHECK_TIME(1);
}

TASK_TEST(a_try_one_nanosecond_early_is_early)
{
    conc_limiter l = {.rate = 3};
    CHECK_INT(conc_limiter_try_acquire(&l, 1), 0);
    CHECK_INT(conc_sleep(0.333333333), 0);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), -EAGAIN);
    CHECK_INT(conc_sleep(1e-9), 0);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), 0);
}

TASK_TEST(a_rate_finer_than_the_clock_works)
{
    conc_limiter l = {.rate = 1e15, .burst = 1000};
    for (int i = 0; i < 5000; i++)
        CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    CHECK(now_ns() <= 5000);
}

TASK_TEST(a_rate_near_zero_gives_nothing_after_the_burst)
{
    conc_limiter limiters[] = {
        {.rate = 1e-9}, {.rate = 1e-12}, {.rate = 1e-300}, {.rate = 1, .per = CONC_FOREVER}};
    for (size_t i = 0; i < CONC_LEN(limiters); i++) {
        conc_limiter *l = &limiters[i];
        CHECK_INT(conc_limiter_acquire(l, 1), 0);
        CHECK_INT(conc_limiter_try_acquire(l, 1), -EAGAIN);
        CHECK_INT(conc_timeout(1e6, take_one, l), -ETIMEDOUT);
        CHECK_INT(conc_limiter_try_acquire(l, 1), -EAGAIN);
    }
    CHECK_TIME(4e6);
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
    conc_limiter l = {.rate = 1, .burst = 1e6};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, raises, &flag), 0);
    for (; !flag && n < 100000; n++)
        CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    CHECK(flag && n < 10000);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- several waiters ---- */

TASK_TEST(waiters_are_served_in_fifo_order)
{
    conc_limiter l = {.rate = 3};
    taker t[20];
    conc_group g = {0};
    arrive_for_one(&g, &l, t, 20);
    CHECK_TIME(0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 20; i++) {
        CHECK_INT(t[i].rc, 0);
        CHECK_INT(t[i].at, due(i, 3, 1));
    }
}

/* 20 tasks wait at a limiter of 3 a second; at these times the tasks with these numbers are
 * cancelled. The others get the tokens as they arrive, as if the cancelled ones had never
 * waited. */
typedef struct leaver {
    double at;
    int who;
} leaver;

static void check_grants_are_on_time(const leaver *leavers, int n)
{
    conc_limiter l = {.rate = 3};
    taker t[20];
    conc_group g = {0};
    int served = 0, left = 0;
    int64_t begin = now_ns();
    arrive_for_one(&g, &l, t, 20);
    for (int i = 0; i < n; i++) {
        CHECK_INT(conc_sleep_until((double)begin / 1e9 + leavers[i].at), 0);
        CHECK_INT(conc_cancel(&t[leavers[i].who].task), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 20; i++) {
        if (t[i].rc == 0)
            CHECK_INT(t[i].at - begin, due(served++, 3, 1));
        else {
            CHECK_INT(t[i].rc, -ECANCELED);
            left++;
        }
    }
    CHECK_INT(left, n);
    CHECK_INT(conc_limiter_acquire(&l, 1), 0); /* nor did the series end late */
    CHECK_INT(now_ns() - begin, due(served, 3, 1));
    CHECK_INT(conc_sleep_until(ceil(conc_now())), 0);
}

TASK_TEST(grants_come_on_time_whichever_waiters_leave)
{
    static const leaver first[] = {{0, 1}}, last[] = {{0, 19}}, middle[] = {{0.5, 10}},
                        head[] = {{0.5, 2}};
    static const leaver in_turn[] = {{0, 1},   {0, 2},   {0, 3},  {0.1, 4},
                                     {0.4, 6}, {0.7, 8}, {0.7, 9}};
    static const leaver backwards[] = {{0, 19},   {0, 18},   {0.5, 17}, {0.6, 16},
                                       {1.5, 15}, {1.5, 14}, {2, 13}};
    static const leaver mixed[] = {{0, 10},  {0.1, 1},  {0.2, 19}, {0.3, 2},
                                   {0.4, 4}, {0.9, 12}, {1.2, 8},  {2.1, 18}};
    static const leaver just_before[] = {{0.3, 1}, {0.333333333, 2}, {0.6666666, 4}};
    check_grants_are_on_time(first, 1);
    check_grants_are_on_time(last, 1);
    check_grants_are_on_time(middle, 1);
    check_grants_are_on_time(head, 1);
    check_grants_are_on_time(in_turn, CONC_LEN(in_turn));
    check_grants_are_on_time(backwards, CONC_LEN(backwards));
    check_grants_are_on_time(mixed, CONC_LEN(mixed));
    check_grants_are_on_time(just_before, CONC_LEN(just_before));
}

TASK_TEST(all_but_any_one_may_leave_in_any_order)
{
    for (int round = 0; round < 40; round++) {
        leaver leavers[18];
        int who[19];
        for (int i = 0; i < 19; i++)
            who[i] = i + 1; /* task 0 has its token before any can leave */
        for (int i = 0; i < 18; i++) {
            int at = i + (int)conc_random(0, 19 - i), other = who[at];
            who[at] = who[i];
            who[i] = other;
            leavers[i] = (leaver){0.01 * i, other};
        }
        check_grants_are_on_time(leavers, 18);
    }
}

TASK_TEST(all_may_leave_and_no_token_is_charged)
{
    conc_limiter l = {.rate = 3};
    taker t[20];
    conc_group g = {0};
    CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    arrive_for_one(&g, &l, t, 20);
    CHECK_INT(conc_sleep(0.1), 0);
    for (int i = 0; i < 20; i++)
        CHECK_INT(conc_cancel(&t[i].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(0.1);
    CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    CHECK_INT(now_ns(), due(1, 3, 1));
}

TASK_TEST(a_wait_that_times_out_takes_nothing)
{
    conc_limiter l = {.rate = 1};
    CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_timeout(0.25, take_one, &l), -ETIMEDOUT);
    CHECK_TIME(0.75);
    CHECK_INT(conc_timeout(1, take_one, &l), 0);
    CHECK_TIME(1);
}

TASK_TEST(a_try_while_a_task_waits_fails_although_there_are_enough_tokens)
{
    conc_limiter l = {.rate = 2, .burst = 5};
    taker t;
    conc_group g = {0};
    CHECK_INT(conc_limiter_acquire(&l, 5), 0);
    arrive(&g, &l, &t, 5);
    CHECK_INT(conc_sleep(2), 0);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), -EAGAIN); /* there are 4 */
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(t.at, 5 * SECOND / 2);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), -EAGAIN);
}

TASK_TEST(a_large_request_at_the_head_is_not_starved_by_small_ones)
{
    conc_limiter l = {.rate = 1, .burst = 10};
    taker large, small[30];
    conc_group g = {0};
    CHECK_INT(conc_limiter_acquire(&l, 8), 0); /* 2 left */
    arrive(&g, &l, &large, 10);
    for (int i = 0; i < 30; i++) {
        arrive(&g, &l, &small[i], 1);
        CHECK_INT(conc_sleep(0.1), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(large.at, 8 * SECOND);
    for (int i = 0; i < 30; i++)
        CHECK_INT(small[i].at, (9 + i) * SECOND);
}

TASK_TEST(the_cancel_of_a_large_request_lets_small_ones_through_at_once)
{
    conc_limiter l = {.rate = 1, .burst = 10};
    taker large, small[4];
    conc_group g = {0};
    CHECK_INT(conc_limiter_acquire(&l, 8), 0);
    arrive(&g, &l, &large, 10);
    arrive_for_one(&g, &l, small, 4);
    CHECK_INT(conc_sleep(0.5), 0); /* 2.5 tokens */
    CHECK_INT(conc_cancel(&large.task), 0);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), -EAGAIN);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(large.rc, -ECANCELED);
    int64_t expected[] = {SECOND / 2, SECOND / 2, SECOND, 2 * SECOND};
    for (int i = 0; i < 4; i++)
        CHECK_INT(small[i].at, expected[i]);
}

static int takes_within_its_time(void *arg)
{
    taker *t = arg;
    conc_scope s = {0};
    CONC_TRY(conc_scope_begin(&s, 0.5));
    t->rc = conc_limiter_acquire(t->limiter, t->n);
    return conc_scope_end(&s, t->rc) == -ETIMEDOUT ? 0 : -EPROTO;
}

TASK_TEST(the_time_limit_of_a_large_request_lets_small_ones_through_at_once)
{
    conc_limiter l = {.rate = 1, .burst = 10};
    taker large = {.limiter = &l, .n = 10}, small[3];
    conc_group g = {0};
    CHECK_INT(conc_limiter_acquire(&l, 8), 0);
    CHECK_INT(conc_spawn(&g, takes_within_its_time, &large), 0);
    CHECK_INT(conc_settle(), 0);
    arrive_for_one(&g, &l, small, 3);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(large.rc, -ECANCELED);
    int64_t expected[] = {SECOND / 2, SECOND / 2, SECOND};
    for (int i = 0; i < 3; i++)
        CHECK_INT(small[i].at, expected[i]);
}

TASK_TEST(a_request_behind_the_head_may_leave_too)
{
    conc_limiter l = {.rate = 1, .burst = 4};
    taker t[4];
    conc_group g = {0};
    CHECK_INT(conc_limiter_acquire(&l, 4), 0);
    int wanted[] = {2, 4, 1, 1};
    for (int i = 0; i < 4; i++)
        arrive(&g, &l, &t[i], wanted[i]);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_cancel(&t[1].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(t[0].at, 2 * SECOND);
    CHECK_INT(t[1].rc, -ECANCELED);
    CHECK_INT(t[2].at, 3 * SECOND);
    CHECK_INT(t[3].at, 4 * SECOND);
}

TASK_TEST(a_cancel_right_after_the_grant_comes_too_late)
{
    conc_limiter l = {.rate = 1};
    taker t[2];
    conc_group g = {0};
    CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    arrive_for_one(&g, &l, t, 2);
    CHECK_INT(conc_block(1), 0); /* what is due meanwhile has happened */
    CHECK_INT(conc_cancel(&t[0].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(t[0].rc, 0);
    CHECK_INT(t[0].next, -ECANCELED);
    CHECK_INT(t[1].rc, 0);
    CHECK_INT(t[1].at, 2 * SECOND);
}

TASK_TEST(a_blocked_loop_makes_grants_late_but_never_more_than_the_burst)
{
    conc_limiter l = {.rate = 4, .burst = 2};
    taker t[6];
    conc_group g = {0};
    CHECK_INT(conc_limiter_acquire(&l, 2), 0);
    arrive_for_one(&g, &l, t, 6);
    CHECK_INT(conc_block(10), 0); /* 40 tokens, of which the bucket holds 2 */
    CHECK_INT(conc_group_wait(&g), 0);
    int64_t expected[] = {10000, 10000, 10250, 10500, 10750, 11000};
    for (int i = 0; i < 6; i++)
        CHECK_INT(t[i].at, expected[i] * (SECOND / 1000));
}

enum { MANY = 10000 };

static int takes_and_ends(void *arg)
{
    taker *t = arg;
    t->rc = conc_limiter_acquire(t->limiter, 1);
    t->at = now_ns();
    return 0;
}

static void have_many_wait(conc_group *g, conc_limiter *l, taker *takers)
{
    CHECK_INT(conc_limiter_acquire(l, 1), 0);
    for (int i = 0; i < MANY; i++) {
        takers[i] = (taker){.limiter = l, .rc = UNDECIDED};
        CHECK_INT(conc_spawn_task(g, &takers[i].task, takes_and_ends, &takers[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
}

TASK_TEST(ten_thousand_wait_and_each_grant_wakes_one)
{
    static taker t[MANY];
    conc_stats before, after;
    conc_limiter l = {.rate = 1000};
    conc_group g = {.stack_size = 16384};
    have_many_wait(&g, &l, t);
    conc_get_stats(&before);
    CHECK_INT(before.tasks, MANY + 1);
    CHECK(before.timers <= 1); /* the first waiter's */
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(10);
    conc_get_stats(&after);
    CHECK(after.switches - before.switches < 3 * MANY);
    CHECK(after.passes - before.passes < 3 * MANY);
    CHECK_INT(after.timers, 0);
    int64_t last = 0;
    for (int i = 0; i < MANY; i++) {
        CHECK_INT(t[i].rc, 0);
        last = t[i].at > last ? t[i].at : last;
    }
    CHECK_INT(last, 10 * SECOND);
}

TASK_TEST(ten_thousand_may_leave_from_either_end)
{
    static taker t[MANY];
    conc_limiter l = {.rate = 1};
    conc_group g = {.stack_size = 16384};
    have_many_wait(&g, &l, t);
    for (int i = 0; i < MANY / 2; i++) {
        CHECK_INT(conc_cancel(&t[i].task), 0);
        if (i < MANY / 2 - 1)
            CHECK_INT(conc_cancel(&t[MANY - 1 - i].task), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0); /* only one of them is left */
    CHECK_TIME(1);
    CHECK_INT(t[MANY / 2].rc, 0);
    CHECK_INT(t[MANY / 2].at, SECOND);
}

/* ---- any program: what the bucket guarantees ---- */

enum { CUSTOMERS = 8, VISITS = 60 };

typedef struct sale {
    double at;
    int n;
} sale;

typedef struct customer {
    conc_limiter *limiter;
    sale *sales;
    int *count;
} customer;

static int buys_now_and_then(void *arg)
{
    customer *c = arg;
    for (int i = 0; i < VISITS; i++) {
        taker t = {.limiter = c->limiter, .n = 1 + (int)conc_random(0, 5)};
        conc_scope s = {0};
        CONC_TRY(conc_sleep(conc_random(0, 3)));
        CONC_TRY(conc_scope_begin(&s, conc_random(0, 6)));
        int rc = conc_random(0, 1) < 0.3 ? conc_limiter_try_acquire(t.limiter, t.n)
                                         : conc_limiter_acquire(t.limiter, t.n);
        if (rc == 0) /* time stands still between a grant and here */
            c->sales[(*c->count)++] = (sale){conc_now(), t.n};
        rc = conc_scope_end(&s, rc);
        CHECK(rc == 0 || rc == -ETIMEDOUT || rc == -EAGAIN);
    }
    return 0;
}

TASK_TEST(no_more_tokens_are_taken_than_the_burst_and_the_refill)
{
    static sale sales[CUSTOMERS * VISITS];
    int count = 0;
    conc_limiter l = {.rate = 2, .burst = 6};
    customer customers[CUSTOMERS];
    for (int i = 0; i < CUSTOMERS; i++)
        customers[i] = (customer){&l, sales, &count};
    CHECK_INT(CONC_MAP(buys_now_and_then, customers), 0);
    CHECK(count > CUSTOMERS * VISITS / 10);
    for (int from = 0; from < count; from++) {
        double taken = 0;
        for (int to = from; to < count; to++) {
            taken += sales[to].n;
            CHECK(taken <= 6 + 2 * (sales[to].at - sales[from].at) + 1e-6);
        }
    }
}

TASK_TEST(one_task_gets_exactly_the_buckets_tokens)
{
    conc_limiter l = {.rate = 5, .per = 2, .burst = 4};
    double tokens = 4, at = 0;
    for (int i = 0; i < 1000; i++) {
        int n = 1 + (int)conc_random(0, 4);
        CHECK_INT(conc_sleep(conc_random(0, 2)), 0);
        tokens = fmin(4, tokens + (conc_now() - at) * 2.5);
        double wait = tokens >= n ? 0 : (n - tokens) / 2.5;
        at = conc_now();
        CHECK_INT(conc_limiter_acquire(&l, n), 0);
        CHECK(fabs(conc_now() - at - wait) < 1e-8);
        tokens += (conc_now() - at) * 2.5 - n;
        at = conc_now();
    }
}

/* ---- runs, other places to call from, and misuse ---- */

static int64_t takes_since[4];

static int takes_four(void *limiter)
{
    for (int i = 0; i < 4; i++) {
        CONC_TRY(conc_limiter_acquire(limiter, 1));
        takes_since[i] = now_ns();
    }
    return 0;
}

TEST(in_a_second_run_whose_clock_restarts_at_zero_no_task_waits_for_the_first_ones_time)
{
    conc_limiter l = {.rate = 3};
    conc_options o = {.virtual_clock = true};
    for (int run = 0; run < 3; run++) {
        CHECK_INT(conc_run_with(&o, takes_four, &l), 0);
        CHECK(takes_since[0] <= due(1, 3, 1)); /* the time of one token at most */
        for (int i = 1; i < 4; i++)
            CHECK(llabs(takes_since[i] - takes_since[0] - due(i, 3, 1)) <= 1);
    }
}

static int comes_late(void *limiter)
{
    CONC_TRY(conc_sleep(1e6));
    return takes_four(limiter);
}

static int takes_all_at_once(void *limiter) { return conc_limiter_try_acquire(limiter, 5); }

TEST(a_clock_that_jumps_back_grants_at_most_a_burst_and_blocks_no_task_forever)
{
    conc_limiter l = {.rate = 1, .burst = 5};
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, comes_late, &l), 0);
    CHECK_INT(conc_run_with(&o, takes_four, &l), 0);
    CHECK(takes_since[3] <= 4 * SECOND);
    CHECK_INT(conc_run_with(&o, takes_four, &l), 0);
    CHECK_INT(conc_run_with(&o, takes_all_at_once, &l), -EAGAIN);
}

typedef struct posted {
    conc_limiter *limiter;
    int tried, tried_again, acquired;
} posted;

static void call_from_a_post(void *arg)
{
    posted *p = arg;
    p->tried = conc_limiter_try_acquire(p->limiter, 2);
    p->tried_again = conc_limiter_try_acquire(p->limiter, 2);
    p->acquired = conc_limiter_acquire(p->limiter, 1);
}

TASK_TEST(a_posted_function_tries_but_does_not_wait)
{
    conc_limiter l = {.rate = 1, .burst = 3};
    posted p = {.limiter = &l};
    CHECK_INT(conc_post(conc_loop_self(), call_from_a_post, &p), 0);
    CHECK_INT(conc_sleep(0.5), 0);
    CHECK_INT(p.tried, 0);
    CHECK_INT(p.tried_again, -EAGAIN);
    CHECK_INT(p.acquired, -EPERM);
}

TEST(outside_a_run_there_is_no_clock)
{
    conc_limiter l = {.rate = 1};
    CHECK_INT(conc_limiter_acquire(&l, 1), -EPERM);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), -EPERM);
    CHECK_INT(conc_run(take_one, &l), 0);
    CHECK_INT(conc_limiter_acquire(&l, 1), -EPERM);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), -EPERM);
}

TASK_TEST(a_cancelled_task_takes_nothing)
{
    conc_limiter l = {.rate = 1};
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 0), 0);
    CHECK_INT(conc_limiter_acquire(&l, 1), -ECANCELED);
    CHECK_INT(conc_limiter_try_acquire(&l, 1), 0); /* no checkpoint */
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
}

TASK_TEST(invalid_limiters_are_refused)
{
    conc_limiter limiters[] = {{0},           {.burst = 5},           {.rate = -1},
                               {.rate = NAN}, {.rate = 1, .per = -1}, {.rate = 1, .burst = -1}};
    for (size_t i = 0; i < CONC_LEN(limiters); i++) {
        CHECK_INT(conc_limiter_acquire(&limiters[i], 1), -EINVAL);
        CHECK_INT(conc_limiter_try_acquire(&limiters[i], 1), -EINVAL);
    }
    CHECK_INT(conc_limiter_acquire(NULL, 1), -EINVAL);
    CHECK_INT(conc_limiter_try_acquire(NULL, 1), -EINVAL);
    CHECK_TIME(0);
}

TASK_TEST(impossible_numbers_of_tokens_are_refused_at_once)
{
    conc_limiter plain = {.rate = 1}, wide = {.rate = 1, .burst = 2.5},
                 narrow = {.rate = 1, .burst = 0.5};
    struct {
        conc_limiter *limiter;
        int n;
    } cases[] = {{&plain, 2},       {&plain, 0}, {&plain, -1}, {&plain, INT_MIN},
                 {&plain, INT_MAX}, {&wide, 3},  {&narrow, 1}};
    for (size_t i = 0; i < CONC_LEN(cases); i++) {
        CHECK_INT(conc_limiter_acquire(cases[i].limiter, cases[i].n), -EINVAL);
        CHECK_INT(conc_limiter_try_acquire(cases[i].limiter, cases[i].n), -EINVAL);
    }
    CHECK_TIME(0);
    CHECK_INT(conc_limiter_try_acquire(&plain, 1), 0); /* no token was taken */
    CHECK_INT(conc_limiter_try_acquire(&wide, 2), 0);
}

static int refused = UNDECIDED;

static void *runs_in_a_thread(void *limiter)
{
    conc_options o = {.virtual_clock = true};
    refused = conc_run_with(&o, take_one, limiter);
    return NULL;
}

TASK_TEST(a_task_of_another_loop_may_not_wait_with_those_of_this_one)
{
    pthread_t thread;
    conc_limiter l = {.rate = 1};
    taker t;
    conc_group g = {0};
    CHECK_INT(conc_limiter_acquire(&l, 1), 0);
    arrive(&g, &l, &t, 1);
    CHECK_INT(pthread_create(&thread, NULL, runs_in_a_thread, &l), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(refused, -EPERM);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(t.at, SECOND);
}
