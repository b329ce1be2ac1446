/* etl_conc IN FEED OUT: the ETL pipeline of the course, from the sources that etl_sources has
 * written to the folder IN and from the feed at the address FEED, to the folder OUT, which is
 * new. It runs twice, into two folders there; the second time counts. */
#define main etl_main
#include "../../../examples/11_apps/05_etl_pipeline.c"
#undef main

#include "measure.h"

/* Loads all records into the folder; returns what is in both destinations then. */
static int bench_run(char **words, const char *out, measure *took, payment_sum *t)
{
    source sources[PAYMENT_SOURCES] = {0};
    payment_sum lines;
    CONC_AUTO(pipeline, p) = {.sources = sources, .count = PAYMENT_SOURCES};
    options.out = out;
    for (int i = 0; i < PAYMENT_SOURCES; i++)
        read_word(words[i], &sources[i]);
    measure began = measure_begin();
    CONC_TRY(run_pipeline(&p));
    *took = measure_end(began);
    CONC_TRY(payment_sum_table(&p.db, t));
    CONC_TRY(payment_sum_lines(p.paths[LINES], &lines));
    return memcmp(t, &lines, sizeof lines) == 0 ? 0 : conc_fail(-EPROTO, "the destinations differ");
}

static int bench_twice(void *arg)
{
    char **argv = arg, words[PAYMENT_SOURCES][256], out[2][256];
    char *sources[PAYMENT_SOURCES] = {words[0], words[1], words[2], words[3]};
    measure took;
    payment_sum t;
    options.health = 0;
    snprintf(words[0], sizeof words[0], "%s/shop-1.csv", argv[1]);
    snprintf(words[1], sizeof words[1], "%s/shop-2.csv", argv[1]);
    snprintf(words[2], sizeof words[2], "db=%s/orders.db", argv[1]);
    snprintf(words[3], sizeof words[3], "feed=%s", argv[2]);
    snprintf(out[0], sizeof out[0], "%s/first", argv[3]);
    snprintf(out[1], sizeof out[1], "%s/second", argv[3]);
    int result = dup(STDOUT_FILENO); /* the pipeline's figures are for people */
    if (result < 0 || !freopen("/dev/null", "w", stdout))
        return -errno;
    CONC_TRY(bench_run(sources, out[0], &took, &t));
    CONC_TRY(bench_run(sources, out[1], &took, &t));
    fflush(stdout);
    dup2(result, STDOUT_FILENO);
    measure_print(took, (int)t.count, (long long)t.sum);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && mkdir(argv[3], 0777) == 0)
        return conc_main(bench_twice, argv);
    fprintf(stderr, "usage: etl_conc IN FEED OUT, where OUT is a new folder\n");
    return 2;
}
