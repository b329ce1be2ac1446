/* Site checker, the bonus challenges: retries, a time limit, the response time of each site, and checks round by round.
 *   cc 04_site_checker_bonus.c -o checker && ./checker        (CONC_CLOCK=virtual ./checker takes no time)
 *   EX_SEED=1 CONC_CLOCK=virtual ./checker                    other random numbers
 */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <stdlib.h>

typedef struct {
    const char *url;
    double seconds;     /* a check takes */
    const char *states; /* what the checks find: + online, - offline; the last one stays */
    int known;          /* what the round before found: '+', '-', or 0 for nothing yet */
} site;

static int check_website(void *arg) /* 1: online, 0: offline */
{
    site *s = arg;
    CONC_TRY(conc_sleep(s->seconds));
    char state = *s->states;
    if (s->states[1])
        s->states++;
    return state == '+';
}

/* 1. Retries */

static int check_with_retries(void *arg)
{
    site *s = arg;
    int attempt = 1, most = 3;
    while (!CONC_TRY(check_website(s)) && attempt < most) {
        printf("%s: attempt %d failed, again in %d s\n", s->url, attempt, attempt);
        CONC_TRY(conc_sleep(attempt++));
    }
    bool online = *s->states == '+';
    printf("%s %s is %s after %d attempt%s\n", online ? "✅" : "❌", s->url, online ? "online" : "offline", attempt,
           attempt == 1 ? "" : "s");
    return online;
}
