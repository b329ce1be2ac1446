/* One by one, or together. The same three waits of 2, 1 and 3 s: blocking, as ordinary programs
   wait; one call after the other; and together. Time each. Then answer 100 requests together, of
   0.1 s each.

   cc 04_one_by_one_vs_together.c -o compare
   ./compare
   CONC_CLOCK=virtual ./compare     # without waiting

   It prints ../expected/01_start/04_one_by_one_vs_together.txt.
   Hint: one by one it takes the sum of the waits, together only the longest of them. */
#define CONC_STATIC
#include "../../conc.h"

static double delays[] = {2, 1, 3};

static int work(void *delay) { return conc_sleep(*(double *)delay); }

static int blocking(void)
{
    for (size_t i = 0; i < CONC_LEN(delays); i++)
        CONC_TRY(conc_block(delays[i])); /* as sleep(2) of the C library: no other task can run */
    return 0;
}

/* Your turn: call work with the address of each delay, one after the other. Other tasks can run
   during these waits, but there are none. */
static int one_by_one(void)
{
    for (size_t i = 0; i < CONC_LEN(delays); i++)
        CONC_TRY(work(&delays[i]));
    return 0;
}

/* Your turn: call work with the address of each delay, all at once. */
static int together(void) { return CONC_MAP(work, delays); }

static int answer(void *count)
{
    CONC_TRY(conc_sleep(0.1));
    ++*(int *)count; /* safe: tasks of one loop never run at the same time */
    return 0;
}

/* Your turn: 100 calls of answer at once, each with count. */
static int a_hundred(int *count) { return conc_map(answer, count, 100, 0); }

static int app(void *arg)
{
    (void)arg;
    const char *names[] = {"Blocking", "One by one", "Together"};
    int (*ways[])(void) = {blocking, one_by_one, together};
    for (size_t i = 0; i < CONC_LEN(ways); i++) {
        double start = conc_now();
        CONC_TRY(ways[i]());
        printf("%-11s %.3f seconds\n", names[i], conc_now() - start);
    }
    int count = 0;
    double start = conc_now();
    CONC_TRY(a_hundred(&count));
    printf("%d requests answered in %.3f seconds\n", count, conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
