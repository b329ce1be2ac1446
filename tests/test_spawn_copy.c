/* test_spawn_copy.c - conc_spawn_copy and CONC_SPAWN: each task has its own copy of its argument
 * on its stack.
 *
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#include "conc_test.h"

typedef struct job {
    int id, weight;
} job;

static long sum;

static int add_job(void *arg)
{
    const job *j = arg;
    CONC_TRY(conc_yield());
    sum += j->id * 1000 + j->weight;
    return 0;
}

TASK_TEST(each_task_has_the_value_of_its_spawn)
{
    conc_group g = {0};
    sum = 0;
    for (int i = 1; i <= 3; i++)
        CHECK_INT(CONC_SPAWN(&g, add_job, (job){i, 10 * i}), 0);
    job j = {4, 40};
    CHECK_INT(CONC_SPAWN(&g, add_job, j), 0);
    j = (job){0, 0};
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(sum, 10100);
}

static int add_double(void *arg)
{
    sum += (long)*(double *)arg;
    return 0;
}

static int add_int(void *arg)
{
    sum += *(int *)arg;
    return 0;
}

static job made(int id) { return (job){id, 1}; }

TASK_TEST(a_value_may_be_any_number_or_struct)
{
    conc_group g = {0};
    const int three = 3;
    sum = 0;
    CHECK_INT(CONC_SPAWN(&g, add_int, three), 0);
    CHECK_INT(CONC_SPAWN(&g, add_int, three + 1), 0);
    CHECK_INT(CONC_SPAWN(&g, add_double, 5.0), 0);
    CHECK_INT(CONC_SPAWN(&g, add_job, made(2)), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(sum, 12 + 2001);
}

static int leave_a_job_behind(conc_group *g)
{
    job j = {7, 7};
    return conc_spawn_copy(g, add_job, &j, sizeof j);
}

TASK_TEST(the_value_need_not_exist_when_the_task_runs)
{
    conc_group g = {0};
    sum = 0;
    CHECK_INT(leave_a_job_behind(&g), 0);
    CHECK_INT(leave_a_job_behind(NULL), 0); /* in the background */
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(sum, 14014);
}

/* ---- sizes and alignments ---- */

enum { MOST = 16 * 1024 }; /* a quarter of 64 KiB */

static unsigned char pattern[MOST + 1];
static size_t wanted_size, wanted_alignment;
static int checked;

static void fill_pattern(void)
{
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (unsigned char)(i * 7 + i / 256);
}

/* Uses most of what the copy leaves of a small stack. */
static int use_the_stack(int deep)
{
    volatile char room[512];
    room[0] = room[511] = (char)deep;
    return deep ? use_the_stack(deep - 1) + room[0] - room[511] : conc_yield();
}

static int check_copy(void *arg)
{
    size_t size = wanted_size;
    CHECK_INT((uintptr_t)arg % wanted_alignment, 0);
    CHECK(memcmp(arg, pattern, size) == 0);
    CHECK_INT(use_the_stack(4), 0);
    CHECK(memcmp(arg, pattern, size) == 0);
    memset(arg, 0x55, size); /* it belongs to the task */
    checked++;
    return 0;
}

TASK_TEST(copies_of_all_sizes_are_aligned_for_their_types)
{
    size_t sizes[] = {0, 1, 7, 8, 63, 64, 96, 128, 1000, 1024, 4095, 4096, 8192, MOST - 1, MOST};
    fill_pattern();
    checked = 0;
    for (size_t i = 0; i < CONC_LEN(sizes); i++) {
        conc_group g = {.stack_size = 64 * 1024};
        size_t fit = sizes[i] & ~(sizes[i] - 1);
        wanted_size = sizes[i];
        wanted_alignment = fit > 4096 ? 4096 : fit < 64 ? 64 : fit;
        for (int k = 0; k < 3; k++)
            CHECK_INT(conc_spawn_copy(&g, check_copy, pattern, sizes[i]), 0);
        CHECK_INT(conc_group_wait(&g), 0);
    }
    CHECK_INT(checked, 3 * CONC_LEN(sizes));
}

typedef struct wide {
    _Alignas(256) char bytes[256];
} wide;

static int is_wide(void *arg)
{
    const wide *w = arg;
    CHECK_INT((uintptr_t)w % _Alignof(wide), 0);
    return w->bytes[0] == 'w' && w->bytes[255] == 'e' ? 0 : -EPROTO;
}

TASK_TEST(a_types_own_alignment_is_kept)
{
    conc_group g = {0};
    CHECK_INT(CONC_SPAWN(&g, is_wide, (wide){.bytes = {[0] = 'w', [255] = 'e'}}), 0);
    CHECK_INT(conc_group_wait(&g), 0);
}

TASK_TEST(more_than_a_quarter_of_the_stack_is_refused)
{
    conc_group g = {.stack_size = 64 * 1024}, small = {.stack_size = 16 * 1024};
    fill_pattern();
    wanted_size = MOST / 4;
    wanted_alignment = 4096;
    CHECK_INT(conc_spawn_copy(&g, check_copy, pattern, MOST + 1), -EINVAL);
    CHECK_INT(conc_spawn_copy(&g, check_copy, NULL, 1), -EINVAL);
    CHECK_INT(conc_spawn_copy(&g, NULL, pattern, 1), -EINVAL);
    CHECK_INT(conc_spawn_copy(&g, check_copy, pattern, SIZE_MAX), -EINVAL);
    CHECK_INT(conc_group_begin(&g), 0); /* it is as fresh as before */
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_spawn_copy(&g, check_copy, pattern, 1), -EINVAL); /* closed */
    CHECK_INT(conc_spawn_copy(&small, check_copy, pattern, MOST / 4 + 1), -EINVAL);
    CHECK_INT(conc_spawn_copy(&small, check_copy, pattern, MOST / 4), 0);
    CHECK_INT(conc_group_wait(&small), 0);
}

TEST(outside_a_run_nothing_is_spawned)
{
    CHECK_INT(conc_spawn_copy(NULL, add_job, pattern, 1), -EPERM);
    CHECK_INT(CONC_SPAWN(NULL, add_job, (job){1, 2}), -EPERM);
}

/* ---- where spawns differ ---- */

TASK_TEST(under_a_limit_the_value_is_copied_when_there_is_room)
{
    conc_group g = {.limit = 2};
    sum = 0;
    for (int i = 0; i < 10; i++)
        CHECK_INT(CONC_SPAWN(&g, add_job, (job){i, 0}), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(sum, 45000);
}

static void post_spawns(void *group) { CHECK_INT(CONC_SPAWN(group, add_job, (job){3, 4}), 0); }

TASK_TEST(a_posted_function_may_spawn_a_copy)
{
    conc_group g = {0};
    sum = 0;
    CHECK_INT(conc_group_begin(&g), 0);
    CHECK_INT(conc_post(conc_loop_self(), post_spawns, &g), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(sum, 3004);
}

static int open_group_in(void *arg)
{
    conc_group *inner = arg; /* in the copy, on this task's own stack */
    CONC_TRY(conc_spawn(inner, add_int, &(int){1}));
    return conc_group_wait(inner);
}

TASK_TEST(the_copy_may_be_used_like_any_object)
{
    conc_group g = {0};
    sum = 0;
    for (int i = 0; i < 100; i++)
        CHECK_INT(CONC_SPAWN(&g, open_group_in, (conc_group){.limit = 2}), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(sum, 100);
}

static int get_name(void *arg)
{
    CHECK_CONTAINS(conc_name(conc_self()), "get_name at ");
    CHECK_CONTAINS(conc_name(conc_self()), TEST_FILE);
    return *(int *)arg;
}

TASK_TEST(the_tasks_name_is_its_function_and_the_location)
{
    conc_group g = {0};
    CHECK_INT(CONC_SPAWN(&g, get_name, -EPROTO), 0);
    CHECK_INT(conc_group_wait(&g), -EPROTO);
    CHECK_CONTAINS(conc_last_error(), strerror(EPROTO));
}

/* One after the other, and many at once, with and without copies: the stacks are reused. */
TASK_TEST(stacks_with_copies_are_used_again_for_any_task)
{
    fill_pattern();
    for (int round = 0; round < 20; round++) {
        conc_group g = {0};
        sum = checked = 0;
        for (int i = 0; i < 50; i++) {
            wanted_size = 3000;
            wanted_alignment = 8;
            CHECK_INT(conc_spawn_copy(&g, check_copy, pattern, 3000), 0);
            CHECK_INT(conc_spawn(&g, add_job, &(job){1, 1}), 0);
            CHECK_INT(CONC_SPAWN(&g, add_job, (job){1, 1}), 0);
            if (round % 2)
                CHECK_INT(conc_sleep(1), 0);
        }
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(checked, 50);
        CHECK_INT(sum, 100 * 1001);
    }
}

static int try_to_spawn(void *arg)
{
    conc_group *g = arg;
    CONC_TRY(CONC_SPAWN(g, add_job, (job){CONC_TRY((int[]){5, 6}[1]), 0}));
    return CONC_TRY_IN(g, CONC_SPAWN(g, add_job, (job){1, 0}));
}

TASK_TEST(a_spawn_of_a_value_may_be_inside_a_try)
{
    conc_group g = {0};
    sum = 0;
    CHECK_INT(try_to_spawn(&g), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(sum, 7000);
}
