/* Site checker, the bonus challenges: retries, a time limit, the response time of each site, and
 * checks round by round.
 *   cc 04_site_checker_bonus.c -o checker && ./checker
 *   CONC_CLOCK=virtual ./checker                   takes no time
 *   CONC_RANDOM=2 CONC_CLOCK=virtual ./checker     other random numbers
 */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <stdlib.h>

typedef struct {
    const char *url;
    double seconds;     /* a check takes */
    const char *states; /* what the checks find: + online, - offline; the last one stays */
} site;

static int check_website(void *arg) /* 1: online, 0: offline */
{
    site *s = arg;
    CONC_TRY(conc_sleep(s->seconds));
    bool online = *s->states == '+';
    if (s->states[1])
        s->states++;
    return online;
}

static const char *state(int online) { return online ? "online" : "offline"; }
static const char *mark(int online) { return online ? "✅" : "❌"; }

/* 1. Retries */

static int check_with_retries(void *arg)
{
    site *s = arg;
    int online, attempt = 1;
    while (!(online = CONC_TRY(check_website(s))) && attempt < 3) {
        printf("%s: attempt %d failed, again in %d s\n", s->url, attempt, attempt);
        CONC_TRY(conc_sleep(attempt++));
    }
    printf("%s %s is %s, attempts: %d\n", mark(online), s->url, state(online), attempt);
    return online;
}

static int retries(void)
{
    site sites[] = {{"google.com", 0.5, "+"}, {"github.com", 1, "--+"}, {"python.org", 1.2, "-"}};
    printf("=== Retries ===\n");
    return CONC_MAP(check_with_retries, sites);
}

/* 2. A time limit, and 3. the response time of each site */

static int check_in_time(void *arg)
{
    site *s = arg;
    double start = conc_now();
    int rc = conc_timeout(3, check_website, s); /* wait_for */
    double ms = (conc_now() - start) * 1000;
    if (rc == -ETIMEDOUT) {
        printf("❌ %s: timeout (%.0f ms)\n", s->url, ms);
        return 0;
    }
    CONC_TRY(rc);
    printf("%s %s is %s (%.0f ms)\n", mark(rc), s->url, state(rc), ms);
    return rc;
}

static int time_limit(void)
{
    site sites[] = {
        {"google.com", 1.5, "+"}, {"hanging.com", CONC_FOREVER, "+"}, {"github.com", 2.5, "-"}};
    printf("\n=== Time Limit ===\n");
    return CONC_MAP(check_in_time, sites);
}

static int response_times(void)
{
    site sites[] = {{"google.com", 0, "+"}, {"github.com", 0, "+"}, {"stackoverflow.com", 0, "-"}};
    printf("\n=== Response Times ===\n");
    for (size_t i = 0; i < CONC_LEN(sites); i++)
        sites[i].seconds = conc_random(1, 3);
    return CONC_MAP(check_in_time, sites);
}

/* 4. Continuous monitoring */

typedef struct {
    int rounds;
    conc_event seen_enough;
} monitor;

static int keep_checking(void *arg)
{
    monitor *m = arg;
    site sites[] = {{"google.com", 1, "+"}, {"github.com", 2, "+--+"}, {"python.org", 1.5, "-+"}};
    int found[CONC_LEN(sites)], known[CONC_LEN(sites)] = {1, 1, 1}; /* online, as far as we know */
    double start = conc_now();
    for (;;) {
        /* sleep(5) would add the time that the checks take */
        CONC_TRY(conc_sleep_until(start + m->rounds * 5));
        m->rounds++;
        printf("%.0f s: round %d\n", conc_now() - start, m->rounds);
        CONC_TRY(CONC_MAP_ALL(check_website, sites, found));
        for (size_t i = 0; i < CONC_LEN(sites); i++) {
            if (found[i] != known[i])
                printf("%.0f s: %s is now %s\n", conc_now() - start, sites[i].url, state(found[i]));
            known[i] = found[i];
        }
        if (m->rounds == 4)
            conc_event_set(&m->seen_enough);
    }
}

static int monitoring(void)
{
    monitor m = {0};
    conc_task task = {0};
    conc_group g = {0};
    int result = 0;
    printf("\n=== Monitoring ===\n");
    CONC_TRY_IN(&g, conc_spawn_task(&g, &task, keep_checking, &m));
    CONC_TRY_IN(&g, conc_event_wait(&m.seen_enough));
    CONC_TRY_IN(&g, conc_cancel(&task));
    CONC_TRY_IN(&g, conc_join(&task, &result));
    printf("Monitoring %s after %d rounds\n", result == -ECANCELED ? "cancelled" : "ended",
           m.rounds);
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(retries());
    CONC_TRY(time_limit());
    CONC_TRY(response_times());
    return monitoring();
}

int main(void) { return conc_main(app, NULL); }
