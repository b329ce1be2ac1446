/* Tasks with frames of every shape, which the compiler addresses by stack, frame or base pointer,
 * wait in calls that are inlined into them, and must find their variables unchanged.
 * FRAMES_WITH_ALL: in every kind of call; otherwise in a few. */
#define CONC_STATIC
#if __has_include("conc_sync.h") /* else conc.h is the single file, with all of it */
#include "conc_sync.h"
#else
#include "conc.h"
#endif
#if defined FRAMES_WITH_ALL && __has_include("conc_pool.h")
#include "conc_pool.h"
#endif

#include <stdio.h>
#include <string.h>

enum { TASKS = 3, ROUNDS = 2 };

static conc_lock lock;
static conc_barrier barrier = CONC_BARRIER(TASKS);
static const char *wrong; /* what changed a task's variables */

/* Neither inlined nor known to the compiler: its argument must be in memory. */
__attribute__((noinline)) static void uses(void *memory)
{
    __asm__ volatile("" : : "r"(memory) : "memory");
}

static bool holds(const char *memory, size_t size, long id)
{
    for (size_t i = 0; i < size; i++)
        if (memory[i] != (char)id)
            return false;
    return true;
}

static int emits(conc_gen *g, void *arg)
{
    long id = (long)(intptr_t)arg;
    _Alignas(64) char aligned[64];
    char sized[id + 8];
    memset(aligned, (int)id, sizeof aligned);
    memset(sized, (int)id, sizeof sized);
    uses(aligned);
    uses(sized);
    for (int i = 0; i < ROUNDS; i++) {
        CONC_TRY(conc_yield());
        CONC_TRY(conc_gen_emit(g, &aligned[i]));
        if (!holds(aligned, sizeof aligned, id) || !holds(sized, sizeof sized, id))
            wrong = "conc_gen_emit";
    }
    return 0;
}

/* Shapes of frames: variables that are filled with an id, and a check that they are unchanged. */
#define PLAIN                                       \
    long numbers[4] = {id, id + 1, id + 2, id + 3}; \
    double halves[4] = {(double)id / 2, 1, 2, 3};   \
    bool is_right = true;
#define PLAIN_HOLDS \
    (numbers[0] == id && numbers[3] == id + 3 && halves[0] * 2 == (double)id && halves[3] > 2)

/* For this one x86-64 and RISC-V have a base pointer, */
#define ALIGNED                               \
    _Alignas(64) char aligned[64];            \
    char sized[id + 8];                       \
    bool is_right = true;                     \
    memset(aligned, (int)id, sizeof aligned); \
    memset(sized, (int)id, sizeof sized);     \
    uses(aligned);                            \
    uses(sized);
#define ALIGNED_HOLDS (holds(aligned, sizeof aligned, id) && holds(sized, sizeof sized, id))

/* for this one AArch64, and x86-64 with AVX, whose vectors need more than the stack's alignment. */
#define LARGE                                       \
    char large[512];                                \
    double doubles[8];                              \
    char *sized = __builtin_alloca((size_t)id + 8); \
    bool is_right = true;                           \
    memset(large, (int)id, sizeof large);           \
    memset(sized, (int)id, (size_t)id + 8);         \
    uses(large);                                    \
    uses(sized);                                    \
    for (int d = 0; d < 8; d++)                     \
        doubles[d] = (double)id;                    \
    uses(doubles);
#define LARGE_HOLDS                                                        \
    (holds(large, sizeof large, id) && holds(sized, (size_t)id + 8, id) && \
     doubles[0] * 3 == (double)id * 3 && doubles[7] * 3 == (double)id * 3)

/* Returns from the function that has the frame, which is what CONC_TRY does elsewhere. */
#define TRY(call)      \
    do {               \
        if (call < 0)  \
            return -1; \
    } while (0)

#define IN_FRAME(shape, name, ...)                       \
    static int name##_##shape(void *arg)                 \
    {                                                    \
        long id = (long)(intptr_t)arg;                   \
        shape;                                           \
        for (int i = 0; i < ROUNDS; i++) {               \
            __VA_ARGS__;                                 \
            is_right = is_right && shape##_HOLDS;        \
        }                                                \
        if (!is_right)                                   \
            wrong = #name " in a frame that is " #shape; \
        return 0;                                        \
    }
#define IN_FRAMES(name, ...)             \
    IN_FRAME(PLAIN, name, __VA_ARGS__)   \
    IN_FRAME(ALIGNED, name, __VA_ARGS__) \
    IN_FRAME(LARGE, name, __VA_ARGS__)
#define ALL(name) name##_PLAIN, name##_ALIGNED, name##_LARGE

IN_FRAMES(yields, TRY(conc_yield()))
IN_FRAMES(sleeps, TRY(conc_sleep(0.001)))
IN_FRAMES(locks, TRY(conc_lock_acquire(&lock)); TRY(conc_yield()); TRY(conc_lock_release(&lock)))
IN_FRAMES(meets, TRY(conc_barrier_wait(&barrier)))
IN_FRAMES(generates, char item; conc_gen g = {0};
          TRY(conc_gen_open(&g, emits, (void *)(intptr_t)id, sizeof item));
          while (conc_gen_next(&g, &item) == 1) if (item != (char)id) is_right = false;
          conc_gen_close(&g))

#ifdef FRAMES_WITH_ALL
static conc_sem sem = CONC_SEM(1);
static conc_queue queue = CONC_QUEUE(char, 1);
static conc_rwlock rwlock;
static conc_cond cond;
static conc_event event;
static conc_latch latch;
static conc_limiter limiter = {.rate = 1000};
static conc_channel channel = CONC_CHANNEL(char, 1);
static int ends[2]; /* of a pipe */

static int child(void *arg)
{
    (void)arg;
    return conc_yield();
}

static int announces(void *arg)
{
    (void)arg;
    CONC_TRY(conc_yield());
    return conc_started(0);
}

static int job(void *arg)
{
    (void)arg;
    return 0;
}

IN_FRAMES(counts, TRY(conc_sem_acquire(&sem)); TRY(conc_yield()); TRY(conc_sem_release(&sem)))
IN_FRAMES(queues, char item = 1; TRY(conc_queue_put(&queue, &item)); TRY(conc_yield());
          TRY(conc_queue_get(&queue, &item)))
IN_FRAMES(reads, char byte = 1; TRY(conc_write(ends[1], &byte, 1)); TRY(conc_yield());
          TRY(conc_read(ends[0], &byte, 1)))
IN_FRAMES(groups, conc_group g = {.limit = 1}; conc_spawn(&g, child, NULL);
          conc_spawn(&g, child, NULL); TRY(conc_group_wait(&g)))
IN_FRAMES(writes, TRY(conc_rwlock_acquire_write(&rwlock)); TRY(conc_yield());
          TRY(conc_rwlock_release(&rwlock)))
IN_FRAMES(notifies, if (id == TASKS) TRY(conc_settle()); TRY(conc_lock_acquire(&lock));
          if (id < TASKS) TRY(conc_cond_wait(&cond, &lock)); else conc_cond_notify_all(&cond);
          TRY(conc_lock_release(&lock)))
IN_FRAMES(
    happens, if (id == TASKS) {
        TRY(conc_settle());
        conc_event_set(&event);
        conc_event_clear(&event);
    } else TRY(conc_event_wait(&event)))
IN_FRAMES(latches, TRY(conc_latch_add(&latch, 1)); TRY(conc_yield()); TRY(conc_latch_done(&latch));
          TRY(conc_latch_wait(&latch)))
IN_FRAMES(limits, TRY(conc_limiter_acquire(&limiter, 1)))
IN_FRAMES(selects, conc_case after = CONC_CASE_AFTER(0.001); TRY(conc_select(&after, 1)))
IN_FRAMES(waits, TRY(conc_wait_fd(ends[1], CONC_WRITABLE)))
IN_FRAMES(joins, conc_task t; conc_group g = {0}; conc_spawn_task(&g, &t, child, NULL);
          conc_join(&t, NULL); TRY(conc_group_wait(&g)))
IN_FRAMES(starts, conc_group g = {0}; conc_start(&g, announces, NULL); TRY(conc_group_wait(&g)))
IN_FRAMES(gathers, TRY(CONC_GATHER(CONC_CALL(child, NULL), CONC_CALL(child, NULL))))
IN_FRAMES(times, TRY(conc_timeout(1, child, NULL)))
IN_FRAMES(sends, char item = 1; TRY(conc_channel_send(&channel, &item)); TRY(conc_yield());
          TRY(conc_channel_recv(&channel, &item)))
IN_FRAMES(offloads, TRY(conc_offload(job, NULL)))
#endif

static conc_fn *const all[] = {
    ALL(yields),  ALL(sleeps),  ALL(locks),  ALL(meets),   ALL(generates),
#ifdef FRAMES_WITH_ALL
    ALL(counts),  ALL(queues),  ALL(reads),  ALL(groups),  ALL(writes),    ALL(notifies),
    ALL(happens), ALL(latches), ALL(limits), ALL(selects), ALL(waits),     ALL(joins),
    ALL(starts),  ALL(gathers), ALL(times),  ALL(sends),   ALL(offloads),
#endif
};

static int app(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < CONC_LEN(all); i++) {
        conc_group g = {0};
        for (long id = 1; id <= TASKS; id++)
            CONC_TRY_IN(&g, conc_spawn(&g, all[i], (void *)(intptr_t)id));
        CONC_TRY(conc_group_wait(&g));
    }
    return 0;
}

int main(void)
{
#ifdef FRAMES_WITH_ALL
    if (pipe(ends) != 0)
        return 1;
#endif
    int rc = conc_run(app, NULL);
    if (rc)
        fprintf(stderr, "the run returned %d: %s\n", rc, conc_last_error());
    if (wrong)
        fprintf(stderr, "%s: a variable has changed\n", wrong);
    return rc != 0 || wrong;
}
