/* Site checker, retries. Check each website up to three times: after the first failure wait 1 s,
   after the second 2 s. Print each failure, and the final outcome.

   cc 04_site_checker_bonus.c -o checker
   ./checker
   CONC_CLOCK=virtual ./checker     # without waiting

   It prints ../expected/02_tasks/04_site_checker_bonus.txt.
   Hint: a plain loop over the attempts will do: a call that waits is a plain call. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *url;
    double seconds; /* a check takes */
    int failures;   /* so many checks find it offline, the next ones online */
} site;

static int check_website(site *s)
{
    CONC_TRY(conc_sleep(s->seconds));
    return s->failures-- <= 0; /* 1: online, 0: offline */
}

static void report(const site *s, bool online, int attempts)
{
    if (online)
        printf("✅ %s is online, attempts: %d\n", s->url, attempts);
    else
        printf("❌ %s is offline, attempts: %d\n", s->url, attempts);
}

/* Your turn: check the website until it is online, three times at most. After a failure print
   "github.com: attempt 1 failed, again in 1 s" and wait; report the result of the last. */
static int check_with_retries(void *arg)
{
    site *s = arg;
    int attempt = 1, online = CONC_TRY(check_website(s));
    while (!online && attempt < 3) {
        printf("%s: attempt %d failed, again in %d s\n", s->url, attempt, attempt);
        CONC_TRY(conc_sleep(attempt));
        attempt++;
        online = CONC_TRY(check_website(s));
    }
    report(s, online, attempt);
    return online;
}

static int app(void *arg)
{
    (void)arg;
    site sites[] = {{"google.com", 0.5, 0}, {"github.com", 1, 2}, {"python.org", 1.2, 9}};
    return CONC_MAP(check_with_retries, sites);
}

int main(void) { return conc_main(app, NULL); }
