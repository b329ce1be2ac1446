/* scrape_conc PORT: crawls the sites of examples/11_apps/03_web_scraper.c, which run at that port,
 * with that scraper: 10 requests at once, no delay, into an SQLite file. */
#define main scraper_main
#include "../../../examples/11_apps/03_web_scraper.c"
#undef main
#include "measure.h"

/* The time in milliseconds that this many of 100 pages did not exceed. */
static int percentile(scraper *s, int percent, double *ms)
{
    int64_t us = 0;
    CONC_TRY(sqlite_number(&s->db, &us,
                           "SELECT CAST(seconds * 1e6 AS INTEGER) FROM urls WHERE state = 'page'"
                           " ORDER BY seconds LIMIT 1 OFFSET"
                           " (SELECT (count(*) - 1) * ? / 100 FROM urls WHERE state = 'page')",
                           sqlite_int(percent)));
    *ms = (double)us / 1e3;
    return 0;
}

static int bench(void *port)
{
    site sites = {.hosts = SITES, .port = atoi(port)};
    int64_t letters = 0; /* of the titles */
    double p50, p99;
    CONC_AUTO(scraper, s) = {0};
    CONC_TRY(add_own_domains(&s, &sites));
    CONC_TRY(scraper_open(&s));
    measure began = measure_begin();
    CONC_TRY(crawl_and_save(&s));
    measure took = measure_end(began);
    CONC_TRY(count_saved(&s));
    int pages = sum_saved(&s, PAGE);
    CONC_TRY(
        sqlite_number(&s.db, &letters, "SELECT sum(length(title)) FROM urls WHERE state = 'page'"));
    CONC_TRY(percentile(&s, 50, &p50));
    CONC_TRY(percentile(&s, 99, &p99));
    measure_print_with(took, pages, letters, p50, p99);
    return 0;
}

int main(int argc, char **argv)
{
    char path[] = "/tmp/conc-scrape-XXXXXX";
    int fd = argc == 2 ? mkstemp(path) : -1;
    if (fd < 0) {
        fprintf(stderr, "usage: scrape_conc PORT\n");
        return 2;
    }
    close(fd);
    options.is_goal = true;
    options.delay = 0;
    options.max_pages = 1000;
    set_defaults(true);
    options.db = path;
    html_init();
    int status = conc_main(bench, argv[1]);
    unlink(path);
    return status;
}
