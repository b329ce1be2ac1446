/* Comprehensions. A generator emits the letters of "banana", one every 0.1 s. Make a list and a
   dictionary of fetch's result for each: [await fetch(x) async for x in letters("banana")] and {x:
   await fetch(x) async for x in letters("banana")}.

   cc 04_comprehensions.c -o comprehensions
   ./comprehensions

   It prints ../expected/08_data/04_comprehensions.txt.
   Hint: C has no comprehensions: use a loop around conc_gen_next. Open a new generator for each. A
   dictionary of letters is an array: dictionary[letter - 'a']. */
#define CONC_STATIC
#include "../../conc.h"

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

/* Your turn: append what fetch returns for each letter of the word to the list, and return how many
   there are. An error is passed on. */
static int list_of(char *word, int *list)
{
    char letter;
    int length = 0;
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, letters, word, sizeof letter));
    while (CONC_TRY(conc_gen_next(&g, &letter)) > 0)
        list[length++] = CONC_TRY(fetch(letter));
    return length;
}

/* Your turn: set the dictionary's entry of each letter of the word to what fetch returns for it. */
static int dictionary_of(char *word, int *dictionary)
{
    char letter;
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, letters, word, sizeof letter));
    while (CONC_TRY(conc_gen_next(&g, &letter)) > 0)
        dictionary[letter - 'a'] = CONC_TRY(fetch(letter));
    return 0;
}

static int app(void *arg)
{
    char word[] = "banana";
    int list[sizeof word], dictionary[26] = {0}; /* 0: not in it */
    double start = conc_now();
    (void)arg;
    int length = CONC_TRY(list_of(word, list));
    CONC_TRY(dictionary_of(word, dictionary));
    for (int i = 0; i < length; i++)
        printf("list[%d] is %d\n", i, list[i]);
    for (int i = 0; i < 26; i++)
        if (dictionary[i])
            printf("dictionary['%c'] is %d\n", 'a' + i, dictionary[i]);
    printf("It took %.1f s\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
