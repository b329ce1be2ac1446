/* Lost update, find the bug. Two tasks add 50 apples each to one dictionary, one by one, and the
   result is 50 instead of 100. Find out when an apple is lost, and fix it with a lock.

   cc 02_lost_update.c -o lost_update
   ./lost_update
   cc -DBROKEN 02_lost_update.c -o lost_update && ./lost_update     # shows the bug

   It prints ../expected/04_sync/02_lost_update.txt.
   Hint: where can the other task run, and what has this one read before? A static conc_lock is
   ready to use; CONC_LOCKED(&lock) { ... } holds it for a block. */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <string.h>

static struct {
    const char *key;
    int value;
} dictionary[] = {{"pears", 0}, {"apples", 0}};

static int *value_of(const char *key)
{
    size_t i = 0;
    while (strcmp(dictionary[i].key, key) != 0)
        i++;
    return &dictionary[i].value;
}

#ifdef BROKEN
static int add_one(const char *key)
{
    int value = *value_of(key);
    CONC_TRY(conc_yield()); /* any call that waits */
    *value_of(key) = value + 1;
    return 0;
}
#else
static conc_lock lock;

static int add_one(const char *key)
{
    CONC_LOCKED(&lock) { /* from the read to the write: the other task waits for both */
        int value = *value_of(key);
        CONC_TRY(conc_yield()); /* any call that waits */
        *value_of(key) = value + 1;
    }
    return 0;
}
#endif

static int add_fifty(void *key)
{
    for (int i = 0; i < 50; i++)
        CONC_TRY(add_one(key));
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    char key[] = "apples";
    CONC_TRY(CONC_GATHER(CONC_CALL(add_fifty, key), CONC_CALL(add_fifty, key)));
    printf("Two tasks, 50 apples each: %d\n", *value_of(key));
    return 0;
}

int main(void) { return conc_main(app, NULL); }
