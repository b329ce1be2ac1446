/* scrape_conc ADDRESS: crawls the sites of examples/11_apps/03_web_scraper.c, which run at ADDRESS,
 * with that scraper: 10 requests at once, no delay, into an SQLite file. */
#define main scraper_main
#include "../../../examples/11_apps/03_web_scraper.c"
#undef main
#include "measure.h"

static int crawl_and_save(scraper *s)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, save_results, s));
    CONC_TRY_IN(&g, load(s));
    CONC_TRY_IN(&g, crawl(s));
    conc_queue_close(&s->results);
    return conc_group_wait(&g);
}

static int bench(void *arg)
{
    char *none[] = {NULL};
    int64_t letters = 0; /* of the titles: the pages differ by the port in their links */
    CONC_AUTO(scraper, s) = {0};
    (void)arg;
    CONC_TRY(scraper_open(&s, none));
    measure began = measure_begin();
    CONC_TRY(crawl_and_save(&s));
    measure took = measure_end(began);
    CONC_TRY(
        sqlite_number(&s.db, &letters, "SELECT sum(length(title)) FROM urls WHERE state = 'page'"));
    qsort(s.times, (size_t)s.time_count, sizeof *s.times, by_size);
    measure_print_with(took, s.time_count, letters, percentile(&s, 50), percentile(&s, 99));
    return 0;
}

int main(int argc, char **argv)
{
    char path[] = "/tmp/conc-scrape-XXXXXX";
    int fd = argc == 2 ? mkstemp(path) : -1;
    if (fd < 0) {
        fprintf(stderr, "usage: scrape_conc ADDRESS\n");
        return 2;
    }
    close(fd);
    options.connect_to = argv[1];
    options.delay = 0;
    options.max_pages = 1000;
    set_defaults(true);
    options.db = path;
    html_init();
    int status = conc_main(bench, NULL);
    unlink(path);
    return status;
}
