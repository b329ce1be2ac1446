/* Comprehensions: what a generator hands out is collected into a list and a dictionary; and a generator of batches of 5.
 *   cc 04_comprehensions.c -o comprehensions && ./comprehensions   (CONC_CLOCK=virtual ./comprehensions takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static double start;

static int letters(conc_gen *g, void *word)
{
    for (const char *letter = word; *letter; letter++) {
        CONC_TRY(conc_sleep(0.1));
        CONC_TRY(conc_gen_emit(g, letter));
    }
    return 0;
}

static int fetch(char letter)
{
    CONC_TRY(conc_sleep(0.1));
    return letter - 'a' + 1;
}

static int list_and_dictionary(void)
{
    char word[] = "banana", letter;
    int list[sizeof word], length = 0, dictionary['z' + 1] = {0}; /* by letter; 0: not in it */
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, letters, word, sizeof letter));
    while (CONC_TRY(conc_gen_next(&g, &letter)) > 0) {
        list[length] = CONC_TRY(fetch(letter));   /* [await fetch(x) async for x in letters()] */
        dictionary[(int)letter] = list[length++]; /* {x: await fetch(x) async for x in letters()} */
    }
    printf("List:");
    for (int i = 0; i < length; i++)
        printf(" %d", list[i]);
    printf("\nDictionary:");
    for (int key = 'a'; key <= 'z'; key++)
        if (dictionary[key])
            printf(" %c: %d", key, dictionary[key]);
    printf("\n");
    return 0;
}

enum { ITEMS = 12, BATCH = 5 };

typedef struct {
    int results[BATCH], count;
} batch;

static int square(void *n)
{
    CONC_TRY(conc_sleep(*(int *)n / 10.0));
    *(int *)n *= *(int *)n;
    return 0;
}

static int batches(conc_gen *g, void *arg)
{
    (void)arg;
    for (int i = 0; i < ITEMS; i += BATCH) {
        batch b = {.count = i + BATCH <= ITEMS ? BATCH : ITEMS - i};
        for (int k = 0; k < b.count; k++)
            b.results[k] = i + k + 1;
        printf("%.1f s: a batch of %d starts\n", conc_now() - start, b.count);
        CONC_TRY(conc_map(square, b.results, (size_t)b.count, sizeof b.results[0])); /* gather */
        CONC_TRY(conc_gen_emit(g, &b));
    }
    return 0;
}

static int print_batches(void)
{
    batch b;
    start = conc_now();
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, batches, NULL, sizeof b));
    while (CONC_TRY(conc_gen_next(&g, &b)) > 0) {
        printf("%.1f s: results", conc_now() - start);
        for (int k = 0; k < b.count; k++)
            printf(" %d", b.results[k]);
        printf("\n");
    }
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(list_and_dictionary());
    return print_batches();
}

int main(void) { return conc_main(app, NULL); }
