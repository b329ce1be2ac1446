/* Lost update: two tasks count in one dictionary, each reads, waits and writes; then a lock
 * around the three.
 *   cc 02_lost_update.c -o lost_update && ./lost_update        (takes no time,
 *   CONC_CLOCK=virtual or not)
 */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <string.h>

static struct {
    const char *key;
    int value;
} dictionary[] = {{"apples", 0}, {"pears", 0}};

static conc_lock lock;

static int *value_of(const char *key)
{
    size_t i = 0;
    while (strcmp(dictionary[i].key, key) != 0)
        i++;
    return &dictionary[i].value;
}

static int add_one(const char *key)
{
    int value = *value_of(key);
    CONC_TRY(conc_yield()); /* any call that waits: the other task reads the same value now */
    *value_of(key) = value + 1;
    return 0; /* without a wait in between nobody else can run, and no lock is needed */
}

static int count_broken(void *key)
{
    for (int i = 0; i < 50; i++)
        CONC_TRY(add_one(key));
    return 0;
}

static int count_fixed(void *key)
{
    for (int i = 0; i < 50; i++)
        CONC_LOCKED(&lock) {
            CONC_TRY(add_one(key));
        }
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    char broken[] = "apples", fixed[] = "pears";
    CONC_TRY(CONC_GATHER(CONC_CALL(count_broken, broken), CONC_CALL(count_broken, broken)));
    printf("Two tasks, 50 each, without a lock: %d\n", *value_of(broken));
    CONC_TRY(CONC_GATHER(CONC_CALL(count_fixed, fixed), CONC_CALL(count_fixed, fixed)));
    printf("Two tasks, 50 each, with a lock: %d\n", *value_of(fixed));
    return 0;
}

int main(void) { return conc_main(app, NULL); }
