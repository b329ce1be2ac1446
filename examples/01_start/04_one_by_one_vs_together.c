/* The same work three ways: blocking and one by one cost the sum of the waits, together only the
 * longest.
 *   cc 04_one_by_one_vs_together.c -o compare && ./compare        (CONC_CLOCK=virtual ./compare
 *   takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static double delays[] = {2, 1, 3};

static int task(void *delay) { return conc_sleep(*(double *)delay); }

static int blocking(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < CONC_LEN(delays); i++)
        CONC_TRY(conc_block(delays[i])); /* what an ordinary program does: nothing else can run */
    return 0;
}

static int one_by_one(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < CONC_LEN(delays); i++)
        CONC_TRY(task(&delays[i])); /* others could run, but nobody started any */
    return 0;
}

static int together(void *arg)
{
    (void)arg;
    return CONC_MAP(task, delays);
}

static int answer(void *count)
{
    CONC_TRY(conc_sleep(0.1));
    ++*(int *)count; /* safe: tasks of one loop never run at the same time */
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    const char *names[] = {"Blocking", "One by one", "Together"};
    conc_fn *ways[] = {blocking, one_by_one, together};
    for (size_t i = 0; i < CONC_LEN(ways); i++) {
        double start = conc_now();
        CONC_TRY(ways[i](NULL));
        printf("%-11s %.3f seconds\n", names[i], conc_now() - start);
    }
    int count = 0;
    double start = conc_now();
    CONC_TRY(conc_map(answer, &count, 100, 0)); /* a hundred calls, each with &count */
    printf("%d requests answered in %.3f seconds\n", count, conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
