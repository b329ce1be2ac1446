/* test_barriers.c - conc_barrier: parties that continue together, each with its own index, round
 * after round.
 *
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, poll, riscv64, gcc-asan (how tasks
 * switch and wait is tested elsewhere)
 */
#define TEST_SYNC
#include "conc_test.h"

#include <limits.h>
#include <pthread.h>

enum { UNDECIDED = 1000 }; /* no call returns this */

typedef struct party {
    conc_barrier *barrier;
    conc_task task;
    int rc, next; /* results of the wait, and of the checkpoint after it */
    double at;
} party;

static int waits(void *arg)
{
    party *p = arg;
    p->rc = conc_barrier_wait(p->barrier);
    p->at = conc_now();
    p->next = conc_yield();
    return 0;
}

/* Makes tasks arrive at the barrier, in this order. */
static void arrive(conc_group *g, conc_barrier *b, party *parties, int n)
{
    for (int i = 0; i < n; i++) {
        parties[i] = (party){.barrier = b, .rc = UNDECIDED, .next = UNDECIDED};
        CHECK_INT(conc_spawn_task(g, &parties[i].task, waits, &parties[i]), 0);
        CHECK_INT(conc_settle(), 0);
    }
}

static int wait_here(void *barrier) { return conc_barrier_wait(barrier); }

/* Checks that these have the indices 0 to n - 1 once each, and the last one n - 1. */
static void check_indices(const party *parties, int n)
{
    bool seen[64] = {false};
    for (int i = 0; i < n; i++) {
        CHECK(parties[i].rc >= 0 && parties[i].rc < n);
        CHECK(!seen[parties[i].rc]);
        seen[parties[i].rc] = true;
    }
    CHECK_INT(parties[n - 1].rc, n - 1);
}

static void check_undecided(const party *parties, int n)
{
    for (int i = 0; i < n; i++)
        CHECK_INT(parties[i].rc, UNDECIDED);
}

/* ---- filling ---- */

TASK_TEST(all_parties_continue_together_each_with_its_index)
{
    for (int n = 2; n <= 10; n++) {
        conc_barrier b = CONC_BARRIER(n);
        party p[10];
        conc_group g = {0};
        double begin = conc_now();
        arrive(&g, &b, p, n - 1);
        CHECK_INT(conc_sleep(1), 0);
        check_undecided(p, n - 1);
        arrive(&g, &b, &p[n - 1], 1);
        CHECK_INT(conc_group_wait(&g), 0);
        check_indices(p, n);
        for (int i = 0; i < n; i++)
            CHECK(p[i].at == begin + 1);
    }
}

TASK_TEST(one_party_never_waits)
{
    conc_barrier b = CONC_BARRIER(1);
    for (int i = 0; i < 5; i++)
        CHECK_INT(conc_barrier_wait(&b), 0);
    CHECK_TIME(0);
}

static int raises(void *flag)
{
    *(bool *)flag = true;
    return 0;
}

TASK_TEST(a_loop_at_a_barrier_of_one_lets_others_run)
{
    bool flag = false;
    int n = 0;
    conc_barrier b = CONC_BARRIER(1);
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, raises, &flag), 0);
    for (; !flag && n < 100000; n++)
        CHECK_INT(conc_barrier_wait(&b), 0);
    CHECK(flag && n < 10000);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(a_surplus_party_waits_for_the_next_round)
{
    conc_barrier b = CONC_BARRIER(3);
    party p[6];
    conc_group g = {0};
    arrive(&g, &b, p, 5);
    check_indices(p, 3);
    check_undecided(&p[3], 2);
    arrive(&g, &b, &p[5], 1);
    check_indices(&p[3], 3);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- rounds ---- */

enum { PARTIES = 4, ROUNDS = 50 };

typedef struct runner {
    conc_barrier *barrier;
    int *arrivals; /* arrivals in each round */
    int *indices;  /* indices of each round, a bit each */
} runner;

static int runs_rounds(void *arg)
{
    runner *r = arg;
    for (int i = 0; i < ROUNDS; i++) {
        r->arrivals[i]++;
        int index = CONC_TRY(conc_barrier_wait(r->barrier));
        CHECK_INT(r->arrivals[i], PARTIES); /* none is ahead of a party that has still to arrive */
        r->indices[i] |= 1 << index;
    }
    return 0;
}

TASK_TEST(a_barrier_serves_round_after_round)
{
    conc_barrier b = CONC_BARRIER(PARTIES);
    int arrivals[ROUNDS] = {0}, indices[ROUNDS] = {0};
    runner runners[PARTIES];
    for (int i = 0; i < PARTIES; i++)
        runners[i] = (runner){&b, arrivals, indices};
    CHECK_INT(CONC_MAP(runs_rounds, runners), 0);
    for (int i = 0; i < ROUNDS; i++)
        CHECK_INT(indices[i], (1 << PARTIES) - 1);
}

TASK_TEST(the_last_to_arrive_begins_the_next_round_if_it_returns_at_once)
{
    conc_barrier b = CONC_BARRIER(2);
    party p[2];
    conc_group g = {0};
    arrive(&g, &b, p, 1);
    CHECK_INT(conc_barrier_wait(&b), 1);
    CHECK_INT(conc_timeout(1, wait_here, &b), -ETIMEDOUT);
    CHECK_INT(p[0].rc, 0);
    CHECK(p[0].at == 0);
    arrive(&g, &b, &p[1], 1);
    CHECK_INT(conc_barrier_wait(&b), 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(p[1].rc, 0);
}

/* ---- cancels and time limits ---- */

TASK_TEST(a_party_cancelled_while_it_waits_leaves_as_if_it_had_not_arrived)
{
    for (int victim = 0; victim < 3; victim++) {
        conc_barrier b = CONC_BARRIER(4);
        party p[5], all[4];
        conc_group g = {0};
        int n = 0;
        arrive(&g, &b, p, 3);
        CHECK_INT(conc_cancel(&p[victim].task), 0);
        arrive(&g, &b, &p[3], 1); /* replaces it */
        check_undecided(&p[3], 1);
        arrive(&g, &b, &p[4], 1);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(p[victim].rc, -ECANCELED);
        for (int i = 0; i < 5; i++)
            if (i != victim)
                all[n++] = p[i];
        check_indices(all, 4);
    }
}

TASK_TEST(all_parties_may_leave_before_the_barrier_is_full)
{
    conc_barrier b = CONC_BARRIER(3);
    party p[5];
    conc_group g = {0};
    arrive(&g, &b, p, 2);
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_cancel(&p[i].task), 0);
    arrive(&g, &b, &p[2], 3);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(p[0].rc, -ECANCELED);
    CHECK_INT(p[1].rc, -ECANCELED);
    check_indices(&p[2], 3);
}

TASK_TEST(a_party_that_timed_out_leaves_as_if_it_had_not_arrived)
{
    conc_barrier b = CONC_BARRIER(2);
    party p;
    conc_group g = {0};
    CHECK_INT(conc_timeout(1, wait_here, &b), -ETIMEDOUT);
    arrive(&g, &b, &p, 1);
    CHECK_INT(conc_sleep(1), 0);
    check_undecided(&p, 1);
    CHECK_INT(conc_timeout(1, wait_here, &b), 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(p.rc, 0);
    CHECK_TIME(2);
}

TASK_TEST(a_cancel_after_the_last_arrival_comes_too_late)
{
    conc_barrier b = CONC_BARRIER(3);
    party p[2];
    conc_group g = {0};
    arrive(&g, &b, p, 2);
    CHECK_INT(conc_barrier_wait(&b), 2);
    CHECK_INT(conc_cancel(&p[0].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(p[0].rc + p[1].rc, 1);
    CHECK(p[0].rc >= 0 && p[1].rc >= 0);
    CHECK_INT(p[0].next, -ECANCELED);
    CHECK_INT(p[1].next, 0);

    conc_group next = {0};
    arrive(&next, &b, p, 2);
    CHECK_INT(conc_barrier_wait(&b), 2); /* neither broken nor partly full */
    CHECK_INT(conc_group_wait(&next), 0);
}

TASK_TEST(a_cancelled_task_does_not_arrive)
{
    conc_barrier b = CONC_BARRIER(2), alone = CONC_BARRIER(1);
    conc_scope s = {0};
    party p;
    conc_group g = {0};
    arrive(&g, &b, &p, 1);
    CHECK_INT(conc_scope_begin(&s, 0), 0);
    CHECK_INT(conc_barrier_wait(&b), -ECANCELED);
    CHECK_INT(conc_barrier_wait(&alone), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    CHECK_INT(conc_sleep(1), 0);
    check_undecided(&p, 1);
    CHECK_INT(conc_barrier_wait(&b), 1);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* Arrives again and again, with short time limits. */
typedef struct visitor {
    conc_barrier *barrier;
    int *passed; /* by index */
} visitor;

static int comes_and_goes(void *arg)
{
    visitor *v = arg;
    for (int i = 0; i < 100; i++) {
        int rc = conc_timeout(conc_random(0, 2), wait_here, v->barrier);
        if (rc >= 0)
            v->passed[rc]++;
        else
            CHECK_INT(rc, -ETIMEDOUT);
        CONC_TRY(conc_sleep(conc_random(0, 1)));
    }
    return 0;
}

TASK_TEST(each_full_round_gave_each_index_once_however_many_left)
{
    conc_barrier b = CONC_BARRIER(7);
    int passed[7] = {0};
    visitor visitors[12];
    for (size_t i = 0; i < CONC_LEN(visitors); i++)
        visitors[i] = (visitor){&b, passed};
    CHECK_INT(CONC_MAP(comes_and_goes, visitors), 0);
    CHECK(passed[0] > 0);
    for (int i = 1; i < 7; i++)
        CHECK_INT(passed[i], passed[0]);

    party p[6];
    conc_group g = {0};
    arrive(&g, &b, p, 6); /* no party was left waiting */
    check_undecided(p, 6);
    CHECK_INT(conc_barrier_wait(&b), 6);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- outside tasks, and misuse ---- */

TASK_TEST(a_barrier_without_parties_is_refused)
{
    int parties[] = {0, -1, INT_MIN};
    for (size_t i = 0; i < CONC_LEN(parties); i++) {
        conc_barrier b = CONC_BARRIER(parties[i]);
        CHECK_INT(conc_barrier_wait(&b), -EINVAL);
        CHECK_INT(conc_barrier_wait(&b), -EINVAL);
    }
    conc_barrier zero = {0};
    CHECK_INT(conc_barrier_wait(&zero), -EINVAL);
    CHECK_INT(conc_barrier_wait(NULL), -EINVAL);
    CHECK_TIME(0);
}

static int refused = UNDECIDED;

static void wait_in_a_post(void *barrier) { refused = conc_barrier_wait(barrier); }

TASK_TEST(a_posted_function_is_no_party)
{
    conc_barrier b = CONC_BARRIER(2);
    party p;
    conc_group g = {0};
    arrive(&g, &b, &p, 1);
    CHECK_INT(conc_post(conc_loop_self(), wait_in_a_post, &b), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(refused, -EPERM);
    check_undecided(&p, 1);
    CHECK_INT(conc_barrier_wait(&b), 1);
    CHECK_INT(conc_group_wait(&g), 0);
}

static void *runs_in_a_thread(void *barrier)
{
    conc_options o = {.virtual_clock = true};
    refused = conc_run_with(&o, wait_here, barrier);
    return NULL;
}

TASK_TEST(a_task_of_another_loop_is_no_party)
{
    pthread_t thread;
    conc_barrier b = CONC_BARRIER(2);
    party p;
    conc_group g = {0};
    arrive(&g, &b, &p, 1);
    CHECK_INT(pthread_create(&thread, NULL, runs_in_a_thread, &b), 0);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(refused, -EPERM);
    CHECK_INT(conc_sleep(1), 0);
    check_undecided(&p, 1);
    CHECK_INT(conc_barrier_wait(&b), 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(p.rc, 0);
}

static int fills_it(void *barrier)
{
    party p[2];
    conc_group g = {0};
    arrive(&g, barrier, p, 1);
    check_undecided(p, 1);
    arrive(&g, barrier, &p[1], 1);
    check_indices(p, 2);
    return conc_group_wait(&g);
}

static void wait_for_too_few(void)
{
    static conc_barrier b = CONC_BARRIER(2);
    CHECK_INT(conc_barrier_wait(&b), -EPERM);
    CHECK_INT(conc_run(wait_here, &b), -EDEADLK);
    CHECK_INT(conc_barrier_wait(&b), -EPERM);
    for (int i = 0; i < 2; i++)
        CHECK_INT(conc_run(fills_it, &b), 0);
}

TEST(too_few_parties_are_a_deadlock_and_the_next_run_starts_afresh)
{
    static char text[16384];
    int status = test_in_process(wait_for_too_few, text, sizeof text);
    if (status != 0)
        test_fail(__FILE__, __LINE__, "status 0x%x, stderr:\n%s", (unsigned)status, text);
    CHECK_CONTAINS(text, "barrier");
}
