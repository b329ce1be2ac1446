/* Site checker, timeouts. Check three websites concurrently, each for 3 s at most: one never
   replies. Print each response time in milliseconds, or that it timed out.

   cc 13_check_in_time_bonus.c -o checker
   ./checker
   CONC_CLOCK=virtual ./checker     # without waiting

   It prints ../expected/02_tasks/13_check_in_time_bonus.txt.
   Hint: conc_timeout(3, f, x) returns what f(x) returns, or -ETIMEDOUT after 3 seconds. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *url;
    double seconds; /* a check takes */
    bool online;
} site;

static int check_website(void *arg)
{
    site *s = arg;
    CONC_TRY(conc_sleep(s->seconds));
    return s->online;
}

/* Your turn: check the website, for 3 s at most, and measure the time. Print one line, such as
   "✅ google.com is online (1500 ms)", "❌ github.com is offline (2500 ms)" or
   "❌ hanging.com: timeout (3000 ms)". */
static int check_in_time(void *arg)
{
    site *s = arg;
    double start = conc_now();
    int result = conc_timeout(3, check_website, s);
    double ms = (conc_now() - start) * 1000;
    if (result == -ETIMEDOUT)
        return printf("❌ %s: timeout (%.0f ms)\n", s->url, ms);
    if (CONC_TRY(result) == 1)
        return printf("✅ %s is online (%.0f ms)\n", s->url, ms);
    return printf("❌ %s is offline (%.0f ms)\n", s->url, ms);
}

static int app(void *arg)
{
    (void)arg;
    site sites[] = {
        {"google.com", 1.5, true}, {"hanging.com", 9e9, true}, {"github.com", 2.5, false}};
    return CONC_MAP(check_in_time, sites);
}

int main(void) { return conc_main(app, NULL); }
