/* Growth: ten times as many tasks take about ten times as much work, and not a hundred times. The
 * work is counted in basic blocks of conc's own code, so nothing else on the machine matters.
 *
 * Needs -fsanitize-coverage=trace-pc
 * Not under: seeds (they change nothing here)
 */
#define CONC_STACK_SIZE (32 * 1024) /* and an implementation of its own, which counts */
#define TEST_SYNC
#include "conc_test.h"

static long blocks;

/* The compiler puts a call of this in front of every basic block. */
void __sanitizer_cov_trace_pc(void);
#ifdef __clang__
__attribute__((no_sanitize("coverage")))
#else
__attribute__((no_sanitize_coverage))
#endif
void __sanitizer_cov_trace_pc(void)
{
    blocks++;
}

enum { MOST = 10000 };
static int many; /* how many of each to make; at most MOST */

static void ignore_failure(const conc_failure *f, void *user)
{
    (void)f;
    (void)user;
}

static long count_blocks(conc_fn *fn, int n)
{
    conc_options options = {.virtual_clock = true, .on_error = ignore_failure};
    many = n;
    blocks = 0;
    CHECK_INT(conc_run_with(&options, fn, NULL), 0);
    return blocks;
}

static void check_grows_evenly(conc_fn *fn, int n)
{
    long few = count_blocks(fn, n), more = count_blocks(fn, 10 * n);
    CHECK(few > n);
    if (more > 20 * few)
        test_fail(__FILE__, __LINE__, "%d take %ld blocks, and %d take %ld", n, few, 10 * n, more);
}

#define GROWTH_TEST(name, fn, n) \
    TEST(name) { check_grows_evenly((fn), (n)); }

/* ---- failed background tasks ---- */

static conc_task tasks[MOST];

static int fails(void *arg)
{
    (void)arg;
    return -EIO;
}

static int returns_zero(void *arg)
{
    (void)arg;
    return 0;
}

static int spawn_failures(conc_fn *fn)
{
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_spawn_task(NULL, &tasks[i], fn, NULL));
    return conc_settle();
}

static int joins_failures_from_the_last(void *arg)
{
    (void)arg;
    CONC_TRY(spawn_failures(fails));
    for (int i = many; i-- > 0;)
        CONC_TRY(conc_join(&tasks[i], NULL));
    return 0;
}

static int spawns_beside_failures(void *arg)
{
    (void)arg;
    CONC_TRY(spawn_failures(fails));
    for (int i = 0; i < many; i++) {
        conc_task t;
        CONC_TRY(conc_spawn_task(NULL, &t, returns_zero, NULL));
        CONC_TRY(conc_join(&t, NULL));
    }
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_join(&tasks[i], NULL));
    return 0;
}

GROWTH_TEST(joins_of_failed_background_tasks, joins_failures_from_the_last, 1000)
GROWTH_TEST(spawns_and_joins_beside_failed_background_tasks, spawns_beside_failures, 1000)

/* ---- open generators, each of which consumes the next ---- */

static conc_gen chain[MOST];
static int first_closed;
static bool closed_any;

static int passes_on_from_the_next(conc_gen *g, void *arg)
{
    long i = (long)(intptr_t)arg;
    int item = (int)i, rc = i + 1 < many ? conc_gen_next(&chain[i + 1], &item) : 1;
    while (rc == 1) {
        rc = conc_gen_emit(g, &item);
        if (rc == 0)
            rc = i + 1 < many ? conc_gen_next(&chain[i + 1], &item) : 1;
    }
    if (!closed_any)
        first_closed = (int)i;
    closed_any = true;
    return rc;
}

static int opens_a_chain(int from, int step)
{
    int item;
    closed_any = false;
    first_closed = -1;
    memset(chain, 0, sizeof chain);
    for (int k = 0, i = from; k < many; k++, i += step)
        CONC_TRY(
            conc_gen_open(&chain[i], passes_on_from_the_next, (void *)(intptr_t)i, sizeof item));
    return conc_gen_next(&chain[0], &item) == 1 ? 0 : -EIO;
}

static int opens_a_chain_from_the_first(void *arg) { return arg ? 0 : opens_a_chain(0, 1); }
static int opens_a_chain_from_the_last(void *arg) { return arg ? 0 : opens_a_chain(many - 1, -1); }

TEST(closing_a_chain_of_generators_at_the_runs_end)
{
    check_grows_evenly(opens_a_chain_from_the_first, 100);
    CHECK_INT(first_closed, 0);
    check_grows_evenly(opens_a_chain_from_the_last, 100);
    CHECK_INT(first_closed, 0);
}

/* ---- locals ---- */

static conc_local keys[MOST];

static int gets_them_all(void *arg)
{
    for (int i = 0; i < many; i++)
        if (conc_local_get(&keys[i]) != arg)
            return -EINVAL;
    return 0;
}

static int sets_locals(void *arg)
{
    (void)arg;
    for (int i = 0; i < many; i++)
        CONC_TRY(conc_local_set(&keys[i], &many));
    return gets_them_all(&many);
}

static int sets_locals_between_spawns(void *arg)
{
    (void)arg;
    for (int i = 0; i < many; i++) {
        CONC_TRY(conc_local_set(&keys[i], &many));
        CONC_TRY(conc_spawn(NULL, returns_zero, NULL)); /* shares them */
    }
    CONC_TRY(conc_settle());
    return gets_them_all(&many);
}

GROWTH_TEST(locals, sets_locals, 1000)
GROWTH_TEST(locals_that_every_task_shares, sets_locals_between_spawns, 500)
