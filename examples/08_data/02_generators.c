/* Generators: a function that can wait hands out one item after the other, and goes on only when
 * the next is wanted.
 *   cc 02_generators.c -o generators && ./generators        (CONC_CLOCK=virtual ./generators
 *   takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static int counter(conc_gen *g, void *n)
{
    for (int i = 0; i < *(int *)n; i++) {
        CONC_TRY(conc_gen_emit(g, &i)); /* yield */
        CONC_TRY(conc_sleep(0.5));
    }
    return 0;
}

static int count(void)
{
    int n = 5, value;
    CONC_AUTO(conc_gen, g) = {0}; /* closed when the function returns */
    CONC_TRY(conc_gen_open(&g, counter, &n, sizeof value));
    while (CONC_TRY(conc_gen_next(&g, &value)) > 0) /* async for */
        printf("Received: %d\n", value);
    return 0;
}

typedef struct {
    int number;
    char text[32];
} page;

static int fetched; /* pages */

static int fetch_page(page *p, int number)
{
    CONC_TRY(conc_sleep(0.01));
    p->number = number;
    snprintf(p->text, sizeof p->text, "text of page %d", number);
    fetched++;
    return 0;
}

static int pages(conc_gen *g, void *total)
{
    page p;
    for (int i = 1; i <= *(int *)total; i++) {
        CONC_TRY(fetch_page(&p, i));
        CONC_TRY(conc_gen_emit(g, &p));
    }
    return 0;
}

static int read_pages(void)
{
    int total = 100, in_order = 0, too_early = 0;
    page p;
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, pages, &total, sizeof p));
    while (CONC_TRY(conc_gen_next(&g, &p)) > 0) {
        /* process_page: as long as that takes, the next page is not fetched */
        CONC_TRY(conc_sleep(0.01));
        in_order += p.number == in_order + 1;
        too_early += fetched > p.number;
        if (p.number == 1 || p.number == total)
            printf("Processed: %s\n", p.text);
    }
    printf("%d pages in order, %d of them fetched too early\n", in_order, too_early);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(count());
    return read_pages();
}

int main(void) { return conc_main(app, NULL); }
