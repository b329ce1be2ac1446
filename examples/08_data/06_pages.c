/* Pages. Fetch a hundred pages one after the other, and process each. Each page is fetched only
   when needed: while one is processed, the generator rests.

   cc 06_pages.c -o pages
   ./pages
   CONC_CLOCK=virtual ./pages     # without waiting

   It prints ../expected/08_data/06_pages.txt.
   Hint: the generator is 02_generators.c again, with a struct as item: conc_gen_open's last
   argument is the item size. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    int number;
    char text[32];
} page;

static int fetched, processed; /* pages */

static int fetch_page(page *p, int number)
{
    CONC_TRY(conc_sleep(0.05));
    p->number = number;
    snprintf(p->text, sizeof p->text, "text of page %d", number);
    fetched++;
    return 0;
}

static int process_page(const page *p)
{
    CONC_TRY(conc_sleep(0.05));
    if (p->number % 20 == 1 || p->number == 100)
        printf("Processed: %s; %d are fetched\n", p->text, fetched);
    processed++;
    return 0;
}

/* Your turn: fetch page 1, hand it out, fetch page 2, hand it out, and so on until *total. */
static int paginated_fetch(conc_gen *g, void *total)
{
    page p;
    for (int number = 1; number <= *(int *)total; number++) {
        CONC_TRY(fetch_page(&p, number));
        CONC_TRY(conc_gen_emit(g, &p));
    }
    return 0;
}

/* Your turn: process each page of paginated_fetch, of 100. */
static int process_all(void)
{
    int total = 100;
    page p;
    CONC_AUTO(conc_gen, g) = {0};
    CONC_TRY(conc_gen_open(&g, paginated_fetch, &total, sizeof p));
    while (CONC_TRY(conc_gen_next(&g, &p)) > 0)
        CONC_TRY(process_page(&p));
    return 0;
}

static int app(void *arg)
{
    double start = conc_now();
    (void)arg;
    CONC_TRY(process_all());
    printf("%d pages in %.0f s\n", processed, conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
