/* Comprehensions: what a generator hands out is collected in a list and a dictionary; and a
 * generator of batches of 5.
 *   cc 04_comprehensions.c -o comprehensions && ./comprehensions   (CONC_CLOCK=virtual
 *   ./comprehensions takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static void print_numbers(const char *what, const int *numbers, int count)
{
    printf("%s", what);
    for (int i = 0; i < count; i++)
        printf("%s%d", i ? ", " : ": ", numbers[i]);
    printf("\n");
}

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
    int list[sizeof word], length = 0, dictionary[26] = {0}; /* of letters; 0: not in it */
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, letters, word, sizeof letter));
    while (CONC_TRY(conc_gen_next(&g, &letter)) > 0) {
        int value = CONC_TRY(fetch(letter));
        list[length++] = value;           /* [await fetch(x) async for x in letters(word)] */
        dictionary[letter - 'a'] = value; /* {x: await fetch(x) async for x in letters(word)} */
    }
    print_numbers("List", list, length);
    for (int i = 0; i < 26; i++)
        if (dictionary[i])
            printf("Dictionary: %c is %d\n", 'a' + i, dictionary[i]);
    return 0;
}

enum { ITEMS = 12, BATCH = 5 };

typedef struct {
    int results[BATCH], count;
} batch;

static int square(void *n)
{
    CONC_TRY(conc_sleep(*(int *)n / 10.0));
    return *(int *)n *= *(int *)n;
}

static int batches(conc_gen *g, void *start)
{
    for (int first = 1; first <= ITEMS; first += BATCH) {
        batch b = {.count = 0};
        for (int i = first; i <= ITEMS && b.count < BATCH; i++)
            b.results[b.count++] = i;
        printf("%.1f s: a batch of %d starts\n", conc_now() - *(double *)start, b.count);
        CONC_TRY(conc_map(square, b.results, (size_t)b.count, sizeof b.results[0])); /* gather */
        CONC_TRY(conc_gen_emit(g, &b));
    }
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(list_and_dictionary());
    double start = conc_now();
    batch b;
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, batches, &start, sizeof b));
    while (CONC_TRY(conc_gen_next(&g, &b)) > 0) {
        printf("%.1f s: ", conc_now() - start);
        print_numbers("results", b.results, b.count);
    }
    return 0;
}

int main(void) { return conc_main(app, NULL); }
