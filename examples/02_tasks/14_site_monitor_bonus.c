/* Site checker, round by round. Check three websites every 5 s, however long the checks take, and
   print only changes. After 18 s the monitoring is cancelled.

   cc 14_site_monitor_bonus.c -o monitor
   ./monitor
   CONC_CLOCK=virtual ./monitor     # without waiting

   It prints ../expected/02_tasks/14_site_monitor_bonus.txt.
   Hint: a sleep of 5 s would add the checks' duration; conc_sleep_until does not. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *url;
    double seconds;     /* a check takes */
    const char *states; /* what the checks find: + online, - offline */
    bool online;        /* what is known */
} site;

static site sites[] = {{"google.com", 1, "++++", true},
                       {"github.com", 2, "+--+", true},
                       {"python.org", 1.5, "-+++", true}};
static int rounds;
static double start;

static int check_website(void *arg)
{
    site *s = arg;
    CONC_TRY(conc_sleep(s->seconds));
    bool online = *s->states++ == '+';
    if (online != s->online)
        printf("%.1f s: %s is now %s\n", conc_now() - start, s->url, online ? "online" : "offline");
    s->online = online;
    return 0;
}

/* Your turn: for ever, begin a round at start, start + 5 s, start + 10 s, ...: print
   "5.0 s: round 2" and check all sites at once. */
static int keep_checking(void *arg)
{
    (void)arg;
    for (rounds = 0;; rounds++) {
        CONC_TRY(conc_sleep_until(start + rounds * 5));
        printf("%.1f s: round %d\n", conc_now() - start, rounds + 1);
        CONC_TRY(CONC_MAP(check_website, sites));
    }
}

/* Your turn: let a task keep checking, cancel it after 18 s, and join it. When its result is
   -ECANCELED, print "Cancelled after 4 rounds". */
static int monitor(void *arg)
{
    (void)arg;
    conc_group g = {0};
    conc_task task = {0};
    int result = 0;
    start = conc_now();
    CONC_TRY_IN(&g, conc_spawn_task(&g, &task, keep_checking, NULL));
    CONC_TRY_IN(&g, conc_sleep(18));
    CONC_TRY_IN(&g, conc_cancel(&task));
    CONC_TRY_IN(&g, conc_join(&task, &result));
    if (result == -ECANCELED)
        printf("Cancelled after %d rounds\n", rounds);
    return conc_group_wait(&g);
}

int main(void) { return conc_main(monitor, NULL); }
