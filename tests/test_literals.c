/* test_literals.c - what looks like a function and is a macro takes a compound literal, whose
 * commas would be those between arguments: as its last argument, and as any other where C has a
 * way.
 *
 * Not under: ucontext, no-epoll, save-fpu, poll, seeds (the preprocessor's work is the same) */
#define TEST_SYNC
#include "conc_test.h"

typedef struct pair {
    int first, second;
} pair;

static int sum(void *arg)
{
    const pair *p = arg;
    return p->first + p->second;
}

static int emit_pair(conc_gen *g, void *arg) { return conc_gen_emit(g, arg); }

TASK_TEST(scopes_groups_generators_and_maps_take_compound_literals)
{
    conc_gen g = {0};
    pair got = {0, 0};
    int results[2];
    conc_group *group = &(conc_group){.limit = 1, .keep_going = true};
    CHECK_INT(conc_group_begin(&(conc_group){.limit = -1, .keep_going = true}), -EINVAL);
    CHECK_INT(conc_scope_begin(&(conc_scope){.state = 2, .place = ""}, 1), -EINVAL);
    CHECK_INT(conc_spawn(group, sum, &(pair){1, 2}), 0);
    CHECK_INT(conc_group_wait(group), 0);
    CHECK_INT(conc_gen_open(&g, emit_pair, &(pair){3, 4}, sizeof got), 0);
    CHECK_INT(conc_gen_next(&g, &got), 1);
    CHECK_INT(got.second, 4);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK_INT(CONC_LEN((int[]){1, 2, 3}), 3);
    CHECK_INT(CONC_MAP(sum, (pair[]){{1, 2}, {3, 4}}), 0);
    CHECK_INT(CONC_MAP_ALL(sum, ((pair[]){{1, 2}, {3, 4}}), (int *[]){NULL, results}[1]), 0);
    CHECK_INT(results[1], 7);
    CHECK_INT(conc_stream_open(&(conc_stream){.limit = 1, .buffer_size = 2}, -1), -EBADF);
    CHECK_INT(conc_serve(&(conc_server){.fd = -1, .handler = NULL}), -EINVAL);
}

static int try_literals(void)
{
    conc_scope s = {0};
    CONC_TRY((int[]){-EIO, 0}[1]);
    CONC_TRY(conc_scope_begin(&s, 1));
    return conc_scope_end(&s, CONC_TRY_IN(&s, (pair){5, 6}.second));
}

static int lock_literals(void)
{
    int blocks = 0;
    CONC_LOCKED(&(conc_lock){.owner = NULL, .serial = 0})
        blocks++;
    CONC_PERMIT(&(conc_sem){.permits = 1, .max = 1})
        blocks++;
    return blocks;
}

TASK_TEST(locks_semaphores_barriers_and_tries_take_compound_literals)
{
    conc_barrier b = CONC_BARRIER((int[]){0, 1}[1]);
    CHECK_INT(lock_literals(), 2);
    CHECK_INT(try_literals(), 6);
    CHECK_INT(conc_barrier_wait(&b), 0);
    CHECK_INT(conc_lock_acquire(&(conc_lock){.owner = NULL, .serial = 0}), 0);
    CHECK_INT(conc_lock_try_acquire(&(conc_lock){.owner = NULL, .serial = 0}), 0);
    CHECK_INT(conc_lock_release(&(conc_lock){.owner = NULL, .serial = 0}), -EPERM);
    CHECK_INT(conc_rwlock_acquire_read(&(conc_rwlock){.writer = NULL, .serial = 0}), 0);
    CHECK_INT(conc_rwlock_acquire_write(&(conc_rwlock){.writer = NULL, .serial = 0}), 0);
    CHECK_INT(conc_rwlock_try_acquire_read(&(conc_rwlock){.writer = NULL, .serial = 0}), 0);
    CHECK_INT(conc_rwlock_try_acquire_write(&(conc_rwlock){.writer = NULL, .serial = 0}), 0);
}

TASK_TEST(the_cases_of_a_select_take_compound_literals)
{
    conc_queue q = CONC_QUEUE(pair, 1);
    pair got = {0, 0};
    conc_case put[] = {CONC_CASE_PUT(&q, &(pair){1, 2})};
    conc_case get[] = {CONC_CASE_GET(&q, (pair *[]){NULL, &got}[1])};
    conc_case time[] = {CONC_CASE_AFTER((double[]){1, 0}[1])};
    conc_case event[] = {CONC_CASE_EVENT(&(conc_event){.set = true, .waits = {NULL, NULL}})};
    conc_case join[] = {CONC_CASE_JOIN((conc_task *[]){NULL, conc_self()}[1])};
    conc_case fd[] = {CONC_CASE_FD(-1, (int[]){0, CONC_READABLE}[1])};
    CHECK_INT(conc_select(put, 1), 0);
    CHECK_INT(conc_select(get, 1), 0);
    CHECK_INT(got.second, 2);
    CHECK_INT(conc_select(time, 1), 0);
    CHECK_INT(conc_select(event, 1), 0);
    CHECK_INT(conc_select(join, 1), -EDEADLK);
    CHECK_INT(conc_select(fd, 1), -EBADF);
    conc_queue_destroy(&q);
}
