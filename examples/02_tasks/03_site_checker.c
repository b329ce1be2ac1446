/* Site checker: five random checks at once, and a report made of their results.
 *   cc 03_site_checker.c -o checker && ./checker
 *   CONC_CLOCK=virtual ./checker                   takes no time
 *   CONC_RANDOM=2 CONC_CLOCK=virtual ./checker     other random numbers
 */
#define CONC_STATIC
#include "../../conc.h"
#include <stdlib.h>

static int check_website(void *arg)
{
    const char *url = *(const char **)arg;
    printf("Checking %s...\n", url);
    CONC_TRY(conc_sleep(conc_random(1, 3)));
    bool online = conc_random(0, 1) < 0.8;
    printf("%s %s is %s\n", online ? "✅" : "❌", url, online ? "online" : "offline");
    return online;
}

static int monitor_websites(void *arg)
{
    (void)arg;
    const char *websites[] = {"google.com", "github.com", "stackoverflow.com", "python.org",
                              "asyncio-docs.com"};
    int results[CONC_LEN(websites)], total = CONC_LEN(websites), online = 0;
    double start = conc_now();
    /* gather(..., return_exceptions=True) */
    CONC_TRY(CONC_MAP_ALL(check_website, websites, results));
    for (int i = 0; i < total; i++)
        online += results[i] == 1;
    printf("\n=== Website Status Report ===\n");
    printf("Online: %d/%d\n", online, total);
    printf("Offline: %d/%d\n", total - online, total);
    printf("Response time: %.1f seconds\n", conc_now() - start);
    return 0;
}

int main(void) { return conc_main(monitor_websites, NULL); }
