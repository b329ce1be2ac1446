/* Batches. Process twelve items, 5 at a time: a batch's five concurrently, then the next batch. A
   generator emits each batch's results.

   cc 07_batches.c -o batches
   ./batches
   CONC_CLOCK=virtual ./batches     # without waiting

   It prints ../expected/08_data/07_batches.txt.
   Hint: conc_map(process_item, first, count, sizeof *first) is gather: it calls process_item with
   each of the count items from first on, concurrently, and waits for them. */
#define CONC_STATIC
#include "../../conc.h"

enum { ITEMS = 12, BATCH_SIZE = 5 };

typedef struct {
    int results[BATCH_SIZE], count;
} batch;

static double start;

static int process_item(void *n) /* item n takes n tenths of a second */
{
    CONC_TRY(conc_sleep(*(int *)n / 10.0));
    return *(int *)n *= *(int *)n;
}

/* Your turn: for each batch of the items 1 to 12: print "0.5 s: a batch of 5 starts", process its
   items all at once, and emit the batch. The last one has just 2 items. */
static int process_batch(conc_gen *g, void *arg)
{
    (void)arg;
    for (int first = 1; first <= ITEMS; first += BATCH_SIZE) {
        batch b = {.count = 0};
        for (int item = first; item <= ITEMS && b.count < BATCH_SIZE; item++)
            b.results[b.count++] = item;
        printf("%.1f s: a batch of %d starts\n", conc_now() - start, b.count);
        CONC_TRY(conc_map(process_item, b.results, (size_t)b.count, sizeof b.results[0]));
        CONC_TRY(conc_gen_emit(g, &b));
    }
    return 0;
}

static int app(void *arg)
{
    batch b;
    start = conc_now();
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, process_batch, arg, sizeof b));
    while (CONC_TRY(conc_gen_next(&g, &b)) > 0) {
        printf("%.1f s: results", conc_now() - start);
        for (int i = 0; i < b.count; i++)
            printf(" %d", b.results[i]);
        printf("\n");
    }
    return 0;
}

int main(void) { return conc_main(app, NULL); }
