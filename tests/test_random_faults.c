/* test_random_faults.c - the random programs of test_random_programs.c with an allocator and stack
 * mappings that fail now and then.
 *
 * A call that returns -ENOMEM must have no effect, which the model checks: a refused spawn leaves
 * its group unchanged, and a fresh one fresh; a slot under a limit goes to the next waiter; no
 * child of a gather runs; a local keeps its value. A call may return it only if an allocation
 * failed, and at the end all memory must be freed.
 *
 * Not under: ucontext, save-fpu, aarch64, aarch64-bti, riscv64, seeds (the programs have their own
 * seeds; emulators have little memory for large stacks)
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

static bool refuses(void);
static long live_allocations, mapped_bytes;

static inline void *refusing_realloc(void *old, size_t n)
{
    void *p = refuses() ? NULL : realloc(old, n);
    live_allocations += p && !old;
    return p;
}

static inline void counting_free(void *p)
{
    live_allocations -= p != NULL;
    free(p);
}

static inline void *refusing_mmap(void *at, size_t size, int protection, int flags, int fd,
                                  off_t offset)
{
    void *p = refuses() ? MAP_FAILED : mmap(at, size, protection, flags, fd, offset);
    mapped_bytes += p == MAP_FAILED || flags & MAP_FIXED ? 0 : (long)size;
    return p;
}

static inline int counting_munmap(void *at, size_t size)
{
    mapped_bytes -= (long)size;
    return munmap(at, size);
}

#define CONC_MALLOC(n) refusing_realloc(NULL, (n))
#define CONC_REALLOC(p, n) refusing_realloc((p), (n))
#define CONC_FREE(p) counting_free(p)
#define mmap refusing_mmap
#define munmap counting_munmap
#define RANDOM_FAULTS

#include "test_random_programs.c"

static bool refuses(void)
{
    if (!random_faults.on || random_pick(&random_faults.random, 4))
        return false;
    random_faults.refused++;
    errno = ENOMEM;
    return true;
}

static void run_without_memory(uint64_t seed, uint64_t order)
{
    long allocations = live_allocations, bytes = mapped_bytes;
    run_program(seed, order);
    EXPECT_INT(live_allocations, allocations);
    EXPECT_INT(mapped_bytes, bytes);
}

TEST(random_programs_without_memory_agree_with_the_model_and_repeat_themselves)
{
    run_programs_of(run_without_memory, RANDOM_MIXED);
}
