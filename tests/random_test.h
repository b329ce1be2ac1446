/* random_test.h - shared by the tests with random programs: numbers from a seed, reports that name
 * the program, a log, and the loop over seeds.
 *
 * A seed determines a program. Each program runs twice and must log the same steps both times,
 * unless it declares that it differs. A failure names the seed. To repeat by hand:
 *
 *     RANDOM_PROGRAMS=100000 RANDOM_FIRST=1 ./test_random_x      many programs, starting with this
 *     seed
 *     RANDOM_PROGRAMS=1 RANDOM_FIRST=4711 RANDOM_LOG=1 ./test_random_x      one program, with its
 *     log
 *
 * CK_RUN_CASE=name picks one test of the file.
 */
#ifndef RANDOM_TEST_H
#define RANDOM_TEST_H

#ifndef TEST_SECONDS
#define TEST_SECONDS 120
#endif
#include "conc_test.h"

#include <inttypes.h>

#define NEVER INT64_MAX

/* The current program. */
static struct random_program {
    uint64_t seed, log;
    bool verbose;
    bool differs; /* uses threads or the network: its steps need not repeat */
} random_program;

/* ---- reports that name the program ---- */

#define EXPECT_INT(actual, expected) \
    random_expect_int(__FILE__, __LINE__, #actual, (long long)(actual), (long long)(expected))
#define EXPECT(condition) \
    ((condition) ? (void)0 : random_fail(__FILE__, __LINE__, "not true: " #condition))

static inline void random_fail(const char *file, int line, const char *what)
{
    test_fail(file, line, "program %" PRIu64 ": %s", random_program.seed, what);
}

static inline void random_expect_int(const char *file, int line, const char *what, long long actual,
                                     long long expected)
{
    if (actual != expected)
        test_fail(file, line, "program %" PRIu64 ": %s is %lld, not %lld", random_program.seed,
                  what, actual, expected);
}

static inline void random_say_seed_and_die(int signal_number)
{
    char text[80];
    int n = snprintf(text, sizeof text, "program %" PRIu64 ": signal %d\n", random_program.seed,
                     signal_number);
    if (write(2, text, (size_t)n) < 0)
        _exit(2);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

/* ---- the log ---- */

/* A step of task number `who` at that time, in ns. */
static inline void random_log(int64_t now, int who, const char *what, int which, long long value)
{
    random_program.log = (random_program.log ^ (uint64_t)now ^ (uint64_t)value ^
                          (uint64_t)who << 32 ^ (uint64_t)which << 40 ^ (uint64_t)what[0] << 56) *
                         UINT64_C(0x100000001b3);
    if (random_program.verbose)
        fprintf(stderr, "%14.9f  task %d: %s %d: %lld\n", (double)now * 1e-9, who, what, which,
                value);
}

/* ---- random numbers: each task of a program has its own source ---- */

static inline uint64_t random_draw(uint64_t *source)
{
    uint64_t z = *source += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static inline int random_pick(uint64_t *source, int n)
{
    return (int)(random_draw(source) % (uint64_t)n);
}

static inline uint64_t random_source(uint64_t seed) { return seed * UINT64_C(0x2545f4914f6cdd1d); }

/* ---- time, in whole nanoseconds ---- */

static inline double random_seconds(int64_t ns)
{
    return ns == NEVER ? CONC_FOREVER : (double)ns / 1e9;
}

static inline int64_t random_now(void) { return (int64_t)(conc_now() * 1e9 + 0.5); }

/* ---- running programs ---- */

/* The order in which ready tasks run. */
typedef enum random_order { RANDOM_FIFO, RANDOM_SHUFFLED, RANDOM_MIXED } random_order;

/* Runs the program with this seed; `order` is for conc_options.seed. */
typedef void random_fn(uint64_t seed, uint64_t order);

static inline uint64_t random_environment(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static inline uint64_t random_run(random_fn *run, uint64_t seed, uint64_t order)
{
    random_program.seed = seed;
    random_program.log = 0;
    run(seed, order);
    return random_program.log;
}

static inline void random_prepare(void)
{
    const char *factor = getenv("CK_TIMEOUT_MULTIPLIER");
    random_program.verbose = getenv("RANDOM_LOG") != NULL;
    signal(SIGABRT, random_say_seed_and_die);
    signal(SIGALRM, random_say_seed_and_die);
    if (!getenv("RANDOM_PROGRAMS"))
        alarm((TEST_SECONDS - 5) * (unsigned)(factor ? atoi(factor) : 1));
}

/* Runs `count` programs (or RANDOM_PROGRAMS) twice each, and returns their number: fewer under
 * Valgrind, which is slow, and under CONC_SEED, where each value selects others. */
static inline uint64_t random_repeat(uint64_t count, random_order how, random_fn *run)
{
    uint64_t first = random_environment("RANDOM_FIRST", 1);
    bool by_hand = getenv("RANDOM_PROGRAMS") != NULL;
    int fds = test_count_fds();
    if (test_on_valgrind())
        count /= 4;
    if (test_seeded() && !by_hand) {
        count /= 10;
        first += count * random_environment("CONC_SEED", 0);
    }
    count = random_environment("RANDOM_PROGRAMS", count);
    random_prepare();
    for (uint64_t seed = first; seed < first + count; seed++) {
        bool shuffled = how == RANDOM_SHUFFLED || (how == RANDOM_MIXED && seed % 2 == 0);
        uint64_t order = shuffled ? seed | UINT64_C(1) << 40 : 0;
        uint64_t once = random_run(run, seed, order), again = random_run(run, seed, order);
        EXPECT(once == again || random_program.differs);
        EXPECT_INT(test_count_fds(), fds);
    }
    return count;
}

/* Runs ten programs, each with this many orders of ready tasks. */
static inline void random_repeat_orders(uint64_t orders, random_fn *run)
{
    uint64_t first = random_environment("RANDOM_FIRST", 1);
    random_prepare();
    if (test_seeded()) /* CONC_SEED determines the order */
        orders = 1;
    for (uint64_t seed = first; seed < first + 10; seed++)
        for (uint64_t order = 0; order < orders; order++)
            (void)random_run(run, seed, order);
}

#endif
