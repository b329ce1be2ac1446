/* Site checker. Check five websites concurrently: google.com, github.com, stackoverflow.com,
   python.org, asyncio-docs.com. A check takes 1 to 3 s; 80 % find the site online. Then report.

   cc 03_site_checker.c -o checker
   ./checker
   CONC_CLOCK=virtual CONC_RANDOM=2 ./checker     # without waiting; 3: other numbers

   It prints something else in each run; ../expected/02_tasks/03_site_checker.awk checks it.
   Hint: conc_random(0, 1) is less than 0.8 in 80 % of cases. CONC_MAP_ALL(f, array, results) calls
   f with a pointer to each element, concurrently, and stores the results. */
#define CONC_STATIC
#include "../../conc.h"

/* Your turn: print "Checking google.com...", wait 1 to 3 s, print "✅ google.com is online" or
   "❌ google.com is offline". Return 1 if it is online, else 0. arg points to an element of the
   array of names: const char *url = *(const char **)arg; */
static int check_website(void *arg)
{
    const char *url = *(const char **)arg;
    printf("Checking %s...\n", url);
    CONC_TRY(conc_sleep(conc_random(1, 3)));
    bool online = conc_random(0, 1) < 0.8;
    if (online)
        printf("✅ %s is online\n", url);
    else
        printf("❌ %s is offline\n", url);
    return online;
}

static void report(int online, int total, double seconds)
{
    printf("\n=== Website Status Report ===\n");
    printf("Online: %d/%d\n", online, total);
    printf("Offline: %d/%d\n", total - online, total);
    printf("Response time: %.1f seconds\n", seconds);
}

/* Your turn: check all websites at once, count the online ones, and report. */
static int monitor_websites(void *arg)
{
    (void)arg;
    const char *websites[] = {"google.com", "github.com", "stackoverflow.com", "python.org",
                              "asyncio-docs.com"};
    int results[CONC_LEN(websites)], total = CONC_LEN(websites), online = 0;
    double start = conc_now();
    CONC_TRY(CONC_MAP_ALL(check_website, websites, results));
    for (int i = 0; i < total; i++)
        online += results[i] == 1; /* a negative result is an error */
    report(online, total, conc_now() - start);
    return 0;
}

int main(void) { return conc_main(monitor_websites, NULL); }
