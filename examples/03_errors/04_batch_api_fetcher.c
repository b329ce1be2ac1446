/* Batch API fetcher. Fetch ten users concurrently. Number 4 fails, number 5 hangs: abandon each
   request after 2 s, and let no error end the batch. Print the successful ones, and the others'
   errors.

   cc 04_batch_api_fetcher.c -o fetcher
   ./fetcher

   It prints ../expected/03_errors/04_batch_api_fetcher.txt.
   Hint: conc_gather_all(calls, n) calls calls[i].fn(calls[i].arg) for each i, concurrently. */
#define CONC_STATIC
#include "../../conc.h"

enum { USERS = 10 };

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

/* Your turn: fetch the user with a limit of 2 s: the result is -ETIMEDOUT when they are over. */
static int fetch_in_time(void *u) { return conc_timeout(2, fetch_user, u); }

/* Your turn: fetch all users at once and in time, the result of users[i] in calls[i].result. Wait
   for all; an error of one is no error of the batch. */
static int fetch_batch(user users[USERS], conc_call calls[USERS])
{
    for (int i = 0; i < USERS; i++)
        calls[i] = (conc_call)CONC_CALL(fetch_in_time, &users[i]);
    return conc_gather_all(calls, USERS);
}

static int app(void *arg)
{
    (void)arg;
    user users[USERS] = {{0}};
    conc_call calls[USERS] = {{0}};
    for (int i = 0; i < USERS; i++)
        users[i].id = i + 1;
    double start = conc_now();
    CONC_TRY(fetch_batch(users, calls));

    int ok = 0;
    for (int i = 0; i < USERS; i++) {
        ok += calls[i].result == 0;
        if (calls[i].result == -ETIMEDOUT)
            printf("#%d timed out\n", users[i].id);
        else if (calls[i].result < 0)
            printf("#%d failed: %s\n", users[i].id, calls[i].text);
        else
            printf("#%d %s\n", users[i].id, users[i].name);
    }
    printf("%d of %d succeeded in %.1f seconds\n", ok, USERS, conc_now() - start);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
