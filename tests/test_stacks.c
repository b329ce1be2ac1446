/* test_stacks.c - stacks of tasks and generators: sizes, overflow, large numbers, freeing and
 * reuse.
 *
 * Seeds: 10 (hardly anything depends on the order of tasks)
 */
#include "conc_test.h"

#include <alloca.h>
#include <sys/mman.h>

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SANITIZED true
#elif defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define SANITIZED true
#endif
#endif
#ifndef SANITIZED
#define SANITIZED false
#endif

/* Sanitizers support at most 8,000 threads and fibers. */
enum { SMALLEST = 16384, ROUNDS = SANITIZED ? 5000 : 100000, DEFAULT_SIZE = 256 * 1024 };

static conc_stats stats(void)
{
    conc_stats s;
    conc_get_stats(&s);
    return s;
}

static int count_and_wait(void *arg)
{
    CONC_TRY(conc_yield());
    CONC_TRY(conc_sleep(1));
    ++*(int *)arg;
    return 0;
}

static int sleep_forever(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

/* Writes and reads size bytes of stack, a page at a time, with a wait in the middle. */
__attribute__((noinline)) static int use_stack(size_t size)
{
    volatile char *room = alloca(size);
    for (size_t i = 0; i < size; i += 1024)
        room[i] = (char)(i / 1024);
    CONC_TRY(conc_sleep(1));
    for (size_t i = 0; i < size; i += 1024)
        CHECK_INT(room[i], (char)(i / 1024));
    return 0;
}

static int use_bytes(void *size) { return use_stack(*(size_t *)size); }

TASK_TEST(tasks_run_on_stacks_of_every_size_from_16384_on)
{
    size_t sizes[] = {SMALLEST, SMALLEST + 1, 20000, 65536, DEFAULT_SIZE, 1 << 20, 8 << 20};
    for (size_t i = 0; i < CONC_LEN(sizes); i++) {
        int n = 0;
        conc_group g = {.stack_size = sizes[i]};
        for (int k = 0; k < 20; k++)
            CHECK_INT(conc_spawn(&g, count_and_wait, &n), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(n, 20);
    }
}

TASK_TEST(a_task_can_use_the_requested_stack)
{
    size_t sizes[] = {64 * 1024, DEFAULT_SIZE, 1 << 20, 8 << 20};
    for (size_t i = 0; i < CONC_LEN(sizes); i++) {
        size_t used = sizes[i] - 16384;
        conc_group g = {.stack_size = sizes[i]};
        for (int k = 0; k < 3; k++)
            CHECK_INT(conc_spawn(&g, use_bytes, &used), 0);
        CHECK_INT(conc_group_wait(&g), 0);
    }
}

static int spawn_with_large_frame(void *arg)
{
    size_t used = 1000000;
    conc_group g = {0};
    (void)arg;
    CONC_TRY(conc_spawn(&g, use_bytes, &used));
    CONC_TRY_IN(&g, use_stack(used));
    return conc_group_wait(&g);
}

TEST(the_stack_size_of_a_run_is_that_of_its_tasks)
{
    conc_options o = {.virtual_clock = true, .stack_size = 1 << 20};
    unsetenv("CONC_STACK");
    CHECK_INT(conc_run_with(&o, spawn_with_large_frame, NULL), 0);
}

TEST(the_stack_size_in_the_environment_overrides_that_of_the_run)
{
    conc_options o = {.virtual_clock = true, .stack_size = 16384};
    setenv("CONC_STACK", "1048576", 1);
    CHECK_INT(conc_run_with(&o, spawn_with_large_frame, NULL), 0);
}

static int use_main_stack(void *arg)
{
    size_t used = 200 * 1024;
    return use_bytes(arg ? arg : &used);
}

TEST(main_gets_the_default_stack_even_when_tasks_get_less)
{
    conc_options o = {.virtual_clock = true, .stack_size = SMALLEST};
    unsetenv("CONC_STACK");
    CHECK_INT(conc_run_with(&o, use_main_stack, NULL), 0);
}

static int fail_plainly(void *arg)
{
    (void)arg;
    return -EIO;
}

static int fail_in_words(void *arg)
{
    (void)arg;
    return conc_fail(-EPROTO, "line %d", 12);
}

static void check_failure(const conc_failure *f, void *user)
{
    CHECK(f->rc == -EIO || f->rc == -EPROTO);
    CHECK_STR(f->text, f->rc == -EIO ? conc_strerror(-EIO) : "line 12");
    ++*(int *)user;
}

static conc_task plain, worded;

static int fail_in_a_group(void *arg)
{
    int rc;
    (void)arg;
    conc_group g = {.keep_going = true, .stack_size = SMALLEST};
    CHECK_INT(conc_spawn(&g, fail_plainly, NULL), 0);
    CHECK_INT(conc_spawn(&g, fail_in_words, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, &plain, fail_plainly, NULL), 0);
    CHECK_INT(conc_spawn_task(&g, &worded, fail_in_words, NULL), 0);
    CHECK_INT(conc_join(&plain, &rc), 0);
    CHECK_INT(rc, -EIO);
    CHECK_INT(conc_join(&worded, &rc), 0);
    CHECK_INT(rc, -EPROTO);
    CHECK_STR(conc_error_text(&worded), "line 12");
    rc = conc_group_wait(&g);
    CHECK(rc == -EIO || rc == -EPROTO);
    CHECK_STR(conc_last_error(), rc == -EIO ? conc_strerror(-EIO) : "line 12");
    CHECK_INT(g.error_count, 4);
    return 0;
}

static int fail_in_the_background(void *arg)
{
    (void)arg;
    CHECK_INT(conc_spawn(NULL, fail_plainly, NULL), 0);
    CHECK_INT(conc_spawn(NULL, fail_in_words, NULL), 0);
    CHECK_INT(conc_spawn_task(NULL, &plain, fail_plainly, NULL), 0);
    CHECK_INT(conc_spawn_task(NULL, &worded, fail_in_words, NULL), 0);
    return conc_yield();
}

TEST(tasks_on_the_smallest_stacks_may_fail_with_and_without_a_text)
{
    int reports = 0;
    conc_options o = {
        .virtual_clock = true, .stack_size = SMALLEST, .on_error = check_failure, .user = &reports};
    unsetenv("CONC_STACK");
    CHECK_INT(conc_run_with(&o, fail_in_the_background, NULL), 0);
    CHECK_INT(reports, 4);
    CHECK_INT(conc_run_with(&o, fail_in_a_group, NULL), 0);
}

static int format_a_number(void *arg)
{
    char text[64];
    _Alignas(16) char aligned[16];
    CHECK_INT((uintptr_t)aligned % 16, 0);
    CONC_TRY(conc_yield());
    snprintf(text, sizeof text, "%.3f %Lf", *(double *)arg, (long double)1.5);
    CHECK_STR(text, "2.250 1.500000");
    return 0;
}

TASK_TEST(stacks_are_aligned_as_the_abi_requires)
{
    double number = 2.25;
    size_t sizes[] = {16384, 16385, 16391, 20000, DEFAULT_SIZE};
    for (size_t i = 0; i < CONC_LEN(sizes); i++) {
        conc_group g = {.stack_size = sizes[i] + 16384};
        CHECK_INT(conc_spawn(&g, format_a_number, &number), 0);
        CHECK_INT(conc_group_wait(&g), 0);
    }
}

static int keep_errno(void *arg)
{
    int mine = *(int *)arg;
    CHECK_INT(errno, 0);
    for (int i = 0; i < 10; i++) {
        errno = mine + i;
        CONC_TRY(i % 2 ? conc_yield() : conc_sleep(1));
        CHECK_INT(errno, mine + i);
    }
    return 0;
}

TASK_TEST(each_task_has_its_own_errno)
{
    int numbers[] = {100, 200, 300};
    errno = 0;
    CHECK_INT(CONC_MAP(keep_errno, numbers), 0);
    CHECK_INT(errno, 0);
}

/* ---- overflow */

__attribute__((noinline)) static int recurse(int depth)
{
    volatile char room[512];
    room[0] = (char)depth;
    int rc = depth > 0 ? recurse(depth - 1) : 0;
    return rc + room[0];
}

static int overflow(void *arg)
{
    (void)arg;
    return recurse(100000000);
}

static size_t overflow_size;

static int spawn_overflow(void *arg)
{
    conc_group g = {.stack_size = overflow_size};
    CHECK_INT(conc_spawn(&g, sleep_forever, arg), 0);
    CHECK_INT(conc_spawn(&g, overflow, arg), 0);
    CHECK_INT(conc_spawn(&g, sleep_forever, arg), 0);
    return conc_group_wait(&g);
}

static void run_overflow(void)
{
    conc_options o = {.virtual_clock = true};
    (void)conc_run_with(&o, spawn_overflow, NULL);
}

static int overflow_main(void *arg) { return overflow(arg); }

static void run_overflow_main(void)
{
    conc_options o = {.virtual_clock = true};
    (void)conc_run_with(&o, overflow_main, NULL);
}

static int overflow_body(conc_gen *g, void *arg)
{
    (void)g;
    return overflow(arg);
}

static int open_overflow(void *arg)
{
    int item;
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, overflow_body, arg, sizeof item), 0);
    return conc_gen_next(&g, &item);
}

static void run_overflow_body(void)
{
    conc_options o = {.virtual_clock = true};
    (void)conc_run_with(&o, open_overflow, NULL);
}

TEST(an_overflow_of_a_stack_dies_and_corrupts_nothing)
{
    size_t sizes[] = {16384, 65536, DEFAULT_SIZE, 1 << 20};
    if (SANITIZED)
        return; /* they report it in their own way */
    for (size_t i = 0; i < CONC_LEN(sizes); i++) {
        overflow_size = sizes[i];
        CHECK_DIES(run_overflow, SIGSEGV, "");
    }
}

TEST(an_overflow_of_the_stacks_of_main_and_of_a_generator_dies_too)
{
    if (SANITIZED)
        return;
    CHECK_DIES(run_overflow_main, SIGSEGV, "");
    CHECK_DIES(run_overflow_body, SIGSEGV, "");
}

/* ---- many */

/* Twenty thousand, or fewer if that takes long or is repeated often. */
static int many(void) { return SANITIZED || test_seeded() ? 2000 : 20000; }

TASK_TEST(twenty_thousand_tasks_sleep_at_once)
{
    int n = 0;
    conc_group g = {0};
    for (int i = 0; i < many(); i++)
        CHECK_INT(conc_spawn(&g, count_and_wait, &n), 0);
    CHECK_INT(conc_settle(), 0);
    conc_stats s = stats();
    CHECK_INT(s.tasks, many() + 1);
    CHECK_INT(s.timers, many());
    CHECK_INT(s.ready, 0);
    CHECK_INT(n, 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(n, many());
    CHECK_TIME(1);
    CHECK_INT(stats().tasks, 1);
}

TASK_TEST(twenty_thousand_tasks_on_the_smallest_stacks_sleep_at_once)
{
    int n = 0;
    conc_group g = {.stack_size = SMALLEST};
    for (int i = 0; i < many(); i++)
        CHECK_INT(conc_spawn(&g, count_and_wait, &n), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(n, many());
}

TASK_TEST(stacks_are_freed_after_a_burst)
{
    int n = 0;
    conc_stats before = stats(), peak, after;
    conc_group g = {0}, h = {0};
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_spawn(&g, count_and_wait, &n), 0);
    CHECK_INT(conc_settle(), 0);
    peak = stats();
    CHECK_INT(peak.stacks, before.stacks + 1000);
    CHECK(peak.stack_bytes >= before.stack_bytes + (size_t)1000 * 16384);
    CHECK_INT(conc_group_wait(&g), 0);
    after = stats();
    CHECK_INT(after.stacks, before.stacks);
    CHECK(after.stacks_kept <= before.stacks_kept + 1000);
    CHECK(after.stack_bytes <= peak.stack_bytes);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_spawn(&h, count_and_wait, &n), 0);
    CHECK_INT(conc_group_wait(&h), 0);
    CHECK(stats().stack_bytes <= peak.stack_bytes);
    CHECK_INT(n, 2000);
}

static int do_nothing(void *arg)
{
    ++*(int *)arg;
    return 0;
}

TASK_TEST(a_hundred_thousand_tasks_one_after_another_need_the_memory_of_one)
{
    int n = 0;
    conc_group g = {0};
    conc_task t = {0};
    CHECK_INT(conc_spawn_task(&g, &t, do_nothing, &n), 0);
    CHECK_INT(conc_join(&t, NULL), 0);
    conc_stats before = stats();
    for (int i = 1; i < ROUNDS; i++) {
        CHECK_INT(conc_spawn_task(&g, &t, do_nothing, &n), 0);
        CHECK_INT(conc_join(&t, NULL), 0);
    }
    conc_stats after = stats();
    CHECK_INT(n, ROUNDS);
    CHECK_INT(after.spawned - before.spawned, ROUNDS - 1);
    CHECK_INT(after.stacks, before.stacks);
    CHECK_INT(after.stack_bytes, before.stack_bytes);
    CHECK_INT(conc_group_wait(&g), 0);
}

/* ---- after a burst */

enum { BURST = 3000, LIVES_ON = 64, NEVER_DROPPED = 16 };
static char *stack_of[BURST];
static bool burst_over;

static int take_part(void *arg)
{
    int i = (int)(intptr_t)arg;
    stack_of[i] = __builtin_frame_address(0);
    CONC_TRY(conc_sleep(0.001));
    return i % LIVES_ON == 0 ? conc_sleep(CONC_FOREVER) : 0;
}

static int resident_pages(int i)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *at = (char *)((uintptr_t)stack_of[i] / page * page);
    unsigned char in_memory;
    return mincore(at, page, (void *)&in_memory) == 0 && (in_memory & 1);
}

static int spawn_burst(conc_group *g)
{
    for (int i = 0; i < BURST; i++)
        CONC_TRY(conc_spawn(g, take_part, (void *)(intptr_t)i));
    return conc_sleep(0.01);
}

TASK_TEST(a_bursts_stack_memory_is_freed_although_some_tasks_live_on)
{
    conc_group g = {.stack_size = SMALLEST};
    conc_stats s;
    int resident = 0;
    CHECK_INT(spawn_burst(&g), 0);
    for (int i = 0; i < 40; i++)
        CHECK_INT(conc_sleep(1), 0);
    for (int i = 0; i < BURST; i++)
        resident += i % LIVES_ON != 0 && resident_pages(i);
    CHECK(resident <= NEVER_DROPPED);
    s = stats();
    CHECK_INT(s.tasks, 1 + (BURST + LIVES_ON - 1) / LIVES_ON);
    CHECK_INT(s.stacks, s.tasks);
    CHECK(s.stacks_kept <= NEVER_DROPPED);
    size_t bytes = s.stack_bytes;
    CHECK_INT(spawn_burst(&g), 0); /* on the same stacks */
    CHECK(stats().stack_bytes <= bytes + bytes / 8);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 40; i++)
        CHECK_INT(conc_sleep(1), 0);
    CHECK(stats().stack_bytes <= bytes / 2);
}

static int sleep_after_a_burst(void *arg)
{
    conc_group g = {.stack_size = SMALLEST};
    conc_stats before, after;
    (void)arg;
    CHECK_INT(spawn_burst(&g), 0);
    CHECK_INT(conc_sleep(1.5), 0);
    before = stats();
    CHECK_INT(conc_sleep(0.6), 0);
    after = stats();
    CHECK(after.polls - before.polls <= 3);
    CHECK(after.stacks_kept <= NEVER_DROPPED);
    burst_over = true;
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

TEST(an_idle_loop_sleeps_after_a_burst)
{
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(sleep_after_a_burst, NULL), 0);
    CHECK(burst_over);
}

TASK_TEST(stacks_that_are_used_now_and_then_stay)
{
    int n = 0;
    conc_stats before, after;
    for (int round = 0; round < 30; round++) {
        conc_group g = {.stack_size = SMALLEST};
        for (int i = 0; i < 100; i++)
            CHECK_INT(conc_spawn(&g, do_nothing, &n), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(conc_sleep(0.05), 0);
        if (round == 0)
            before = stats();
    }
    after = stats();
    CHECK_INT(after.stack_bytes, before.stack_bytes);
    CHECK_INT(after.stacks_kept, before.stacks_kept);
}

/* ---- reuse */

typedef struct placed {
    double seconds;
    char *at;
} placed;

static int note_place(void *arg)
{
    placed *p = arg;
    p->at = __builtin_frame_address(0);
    return conc_sleep(p->seconds);
}

static bool on_one_stack(const placed *a, const placed *b)
{
    intptr_t distance = (intptr_t)a->at - (intptr_t)b->at;
    return distance > -(DEFAULT_SIZE / 2) && distance < DEFAULT_SIZE / 2;
}

TASK_TEST(the_last_freed_stack_is_reused_first)
{
    placed old[3] = {{1, NULL}, {2, NULL}, {3, NULL}}, young[3] = {{9, NULL}, {9, NULL}, {9, NULL}};
    conc_group g = {.stack_size = DEFAULT_SIZE};
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_spawn(&g, note_place, &old[i]), 0);
    CHECK_INT(conc_sleep(5), 0);
    CHECK(!on_one_stack(&old[0], &old[1]) && !on_one_stack(&old[1], &old[2]) &&
          !on_one_stack(&old[0], &old[2]));
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_spawn(&g, note_place, &young[i]), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(on_one_stack(&young[i], &old[2 - i]));
    }
    CHECK_INT(conc_group_wait(&g), 0);
}

static int fill_and_leave(void *arg)
{
    size_t size = *(size_t *)arg;
    memset(alloca(size), 0xa5, size);
    return conc_yield();
}

TASK_TEST(a_reused_stack_serves_whatever_its_last_task_left_on_it)
{
    size_t size = 100000;
    int n = 0;
    for (int i = 0; i < 50; i++) {
        conc_group g = {0};
        CHECK_INT(conc_spawn(&g, fill_and_leave, &size), 0);
        CHECK_INT(conc_spawn(&g, count_and_wait, &n), 0);
        CHECK_INT(conc_spawn(&g, use_bytes, &size), 0);
        CHECK_INT(conc_group_wait(&g), 0);
    }
    CHECK_INT(n, 50);
}

/* ---- generators */

static int emit_from_large_frames(conc_gen *g, void *arg)
{
    for (int i = 0; i < 3; i++) {
        CONC_TRY(use_stack(*(size_t *)arg));
        CONC_TRY(conc_gen_emit(g, &i));
    }
    return 0;
}

TASK_TEST(a_generator_has_a_stack_of_the_runs_size_while_it_is_open)
{
    size_t size = DEFAULT_SIZE - 32768;
    int item = 0, sum = 0;
    conc_stats before = stats();
    conc_gen g = {0};
    CHECK_INT(conc_gen_open(&g, emit_from_large_frames, &size, sizeof item), 0);
    while (conc_gen_next(&g, &item) == 1) {
        sum += item;
        CHECK_INT(stats().stacks, before.stacks + 1);
    }
    CHECK_INT(sum, 3);
    CHECK_INT(conc_gen_close(&g), 0);
    CHECK_INT(stats().stacks, before.stacks);
    CHECK_INT(stats().generators, before.generators);
}

static int emit_one(conc_gen *g, void *arg)
{
    int one = 1;
    (void)arg;
    return conc_gen_emit(g, &one);
}

TASK_TEST(a_thousand_open_generators_free_their_stacks)
{
    static conc_gen gens[1000];
    int item;
    conc_stats before = stats();
    for (int i = 0; i < 1000; i++) {
        CHECK_INT(conc_gen_open(&gens[i], emit_one, NULL, sizeof item), 0);
        CHECK_INT(conc_gen_next(&gens[i], &item), 1);
    }
    CHECK_INT(stats().stacks, before.stacks + 1000);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(conc_gen_close(&gens[i]), 0);
    CHECK_INT(stats().stacks, before.stacks);
    CHECK_INT(stats().generators, 0);
}
