/* Batch API fetcher: ten users at once; one request fails, one hangs and is given up after 2 s,
 * the batch goes on.
 *   cc 04_batch_api_fetcher.c -o fetcher && ./fetcher        (CONC_CLOCK=virtual ./fetcher takes
 *   no time)
 */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    int id;
    char name[16];
} user;

static int fetch_user(void *arg)
{
    user *u = arg;
    if (u->id == 5)
        CONC_TRY(conc_sleep(CONC_FOREVER)); /* hangs */
    CONC_TRY(conc_sleep(0.1 * u->id));
    if (u->id == 4)
        return conc_fail(-EIO, "the server is on fire");
    snprintf(u->name, sizeof u->name, "User %d", u->id);
    return 0;
}

static int fetch_in_time(void *u) { return conc_timeout(2, fetch_user, u); }

static int fetch_batch(void *arg)
{
    (void)arg;
    user users[10] = {0};
    conc_call calls[CONC_LEN(users)];
    for (int i = 0; i < 10; i++) {
        users[i].id = i + 1;
        calls[i] = (conc_call)CONC_CALL(fetch_in_time, &users[i]);
    }
    double start = conc_now();
    CONC_TRY(conc_gather_all(calls, CONC_LEN(calls)));

    int ok = 0;
    for (int i = 0; i < 10; i++) {
        ok += calls[i].result == 0;
        if (calls[i].result == -ETIMEDOUT)
            printf("#%d timed out\n", users[i].id);
        else if (calls[i].result < 0)
            printf("#%d failed: %s\n", users[i].id, calls[i].text);
        else
            printf("#%d %s\n", users[i].id, users[i].name);
    }
    conc_stats s;
    conc_get_stats(&s);
    printf("%d of 10 succeeded in %.1f seconds, %zu task is left\n", ok, conc_now() - start,
           s.tasks);
    return 0;
}

int main(void) { return conc_main(fetch_batch, NULL); }
