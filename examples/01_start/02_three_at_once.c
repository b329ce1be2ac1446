/* Three at once. Fetch url1, url2 and url3 concurrently, and print the three results, in call
   order, and the seconds taken: first with 2 s each (that takes 2 s, not 6), then with 2, 1 and 3 s
   (as long as the slowest).

   cc 02_three_at_once.c -o three
   ./three
   CONC_CLOCK=virtual ./three     # without waiting

   It prints ../expected/01_start/02_three_at_once.txt.
   Hint: CONC_GATHER(CONC_CALL(f, &x), CONC_CALL(f, &y)) makes the calls and waits for all. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *url;
    double delay;
    char data[32]; /* the result: what a function returns is an int, for errors and counts */
} request;

/* Your turn: say "Fetching url1...", wait for the delay, say "Fetched url1", and put "Data from
   url1" into r->data; each with the name of this request. */
static int fetch_data(void *arg)
{
    request *r = arg;
    printf("Fetching %s...\n", r->url);
    CONC_TRY(conc_sleep(r->delay)); /* while this one waits, the others run */
    printf("Fetched %s\n", r->url);
    snprintf(r->data, sizeof r->data, "Data from %s", r->url);
    return 0;
}

/* Your turn: fetch url1, url2 and url3 at once, with these delays. Then print "All tasks
   completed: " and the three data with commas between, and the time: "2.0 seconds". */
static int fetch_three(double delay1, double delay2, double delay3)
{
    request a = {"url1", delay1, ""}, b = {"url2", delay2, ""}, c = {"url3", delay3, ""};
    double start = conc_now();
    CONC_TRY(CONC_GATHER(CONC_CALL(fetch_data, &a), CONC_CALL(fetch_data, &b),
                         CONC_CALL(fetch_data, &c)));
    printf("All tasks completed: %s, %s, %s\n", a.data, b.data, c.data);
    printf("%.1f seconds\n", conc_now() - start);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(fetch_three(2, 2, 2));
    printf("\n");
    return fetch_three(2, 1, 3);
}

int main(void) { return conc_main(app, NULL); }
