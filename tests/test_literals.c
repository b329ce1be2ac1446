/* test_literals.c - function-like macros accept compound literals, whose commas would separate
 * arguments: as the last argument, and as any other where C allows it.
 *
 * Not under: ucontext, no-epoll, save-fpu, poll, seeds (the preprocessor's work is the same) */
#define TEST_SYNC
#define TEST_POOL
#include "conc_test.h"

typedef struct pair {
    int first, second;
} pair;

static int sum(void *arg)
{
    const pair *p = arg;
    return p->first + p->second;
}

static int sum_in_a_task(void *arg) { return conc_started(0) == 0 ? sum(arg) : -EIO; }

/* A task's literals live as long as the block that waits for it. Those with commas need
 * parentheses, except in the last argument. */
TASK_TEST(spawns_take_compound_literals)
{
    conc_group *g;
    conc_task t;
    g = &(conc_group){.limit = 9, .keep_going = true};
    CHECK_INT(
        conc_spawn(((conc_group *[]){NULL, g}[1]), ((conc_fn *[]){NULL, sum}[1]), &(pair){1, 2}),
        0);
    CHECK_INT(conc_spawn_task((conc_group *[]){g}[0], (conc_task *[]){&t}[0], sum, &(pair){3, 4}),
              0);
    CHECK_INT(conc_spawn_copy(g, sum, &(pair){5, 6}, (size_t[]){0, sizeof(pair)}[1]), 0);
    CHECK_INT(conc_spawn_copy(((conc_group *[]){NULL, g}[1]), ((conc_fn *[]){NULL, sum}[1]),
                              &(pair){5, 6}, sizeof(pair)),
              0);
    CHECK_INT(CONC_SPAWN(g, sum, (pair){7, 8}), 0);
    CHECK_INT(CONC_SPAWN(((conc_group *[]){NULL, g}[1]), ((conc_fn *[]){NULL, sum}[1]),
                         (pair){.first = 7, .second = 8}),
              0);
    CHECK_INT(conc_start(((conc_group *[]){NULL, g}[1]), sum_in_a_task, &(pair){9, 10}), 0);
    CHECK_INT(conc_group_wait((conc_group *[]){NULL, g}[1]), 0);
    CHECK_INT(conc_loop_run(((conc_loop *[]){NULL, conc_loop_self()}[1]), sum, &(pair){1, 2}),
              -EDEADLK);
}

TASK_TEST(gathers_and_maps_take_compound_literals)
{
    int results[2] = {0, 0};
    conc_call calls[] = {CONC_CALL(sum, &(pair){1, 2}),
                         CONC_CALL(((conc_fn *[]){NULL, sum}[1]), &(pair){3, 4})};
    CHECK_INT(conc_gather((conc_call *[]){NULL, calls}[1], 2), 0);
    CHECK_INT(calls[1].result, 7);
    CHECK_INT(conc_gather_all((conc_call[]){CONC_CALL(sum, &(pair){1, 2})}, 1), 0);
    CHECK_INT(CONC_GATHER(CONC_CALL(sum, &(pair){1, 2}), CONC_CALL(sum, &(pair){3, 4})), 0);
    CHECK_INT(conc_map(sum, (pair[]){{1, 2}, {3, 4}}, 2, sizeof(pair)), 0);
    CHECK_INT(conc_map_limit((int[]){1}[0], sum, (pair[]){{1, 2}, {3, 4}}, 2, sizeof(pair)), 0);
    CHECK_INT(CONC_MAP_LIMIT(((int[]){0, 1}[1]), sum, (pair[]){{1, 2}, {3, 4}}), 0);
    CHECK_INT(
        conc_map_all(sum, (pair[]){{1, 2}, {3, 4}}, 2, sizeof(pair), (int *[]){NULL, results}[1]),
        0);
    CHECK_INT(results[1], 7);
}

TASK_TEST(queues_channels_signals_and_semaphores_take_compound_literals)
{
    conc_queue q = CONC_QUEUE(pair, (size_t[]){0, 3}[1], .kind = (int[]){0, CONC_QUEUE_LIFO}[1]);
    conc_sem s = CONC_SEM((int[]){0, 1}[1], .max = (int[]){0, 1}[1]);
    conc_channel c = CONC_CHANNEL(pair, (size_t[]){0, 3}[1]);
    conc_signals signals = {0};
    pair got;
    CHECK_INT(conc_queue_put(&q, &(pair){1, 2}), 0);
    CHECK_INT(conc_queue_get(&q, &got), 0);
    CHECK_INT(got.second, 2);
    CHECK_INT(conc_sem_release(&s), -EOVERFLOW);
    CHECK_INT(conc_channel_send(&c, &(pair){3, 4}), 0);
    CHECK_INT(conc_channel_recv(&c, &got), 0);
    CHECK_INT(got.second, 4);
    CHECK_INT(conc_signals_open((conc_signals *[]){&signals}[0], (int[]){SIGUSR1, SIGALRM}, 2), 0);
    CHECK_INT(conc_signals_close(&signals), 0);
    conc_queue_destroy(&q);
    conc_channel_destroy(&c);
}

static int status_of(void *arg)
{
    conc_set_exit_status(((pair *)arg)->second);
    return 0;
}

TEST(conc_main_takes_a_compound_literal)
{
    CHECK_INT(conc_main(((conc_fn *[]){NULL, status_of}[1]), &(pair){1, 7}), 7);
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
