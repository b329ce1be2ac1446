/* CONC_SPAWN with values, and with the pointer that ../run.sh defines. */
#include "all.h"

struct job {
    const char *url;
    double weight;
};

static int number = 3, array[3];

static int function(void *arg)
{
    (void)arg;
    return number + array[0];
}

#ifdef __cplusplus
extern "C" int main(void);
#endif
int main(void)
{
    const struct job job = {"a", 0};
    int rc = CONC_SPAWN(NULL, function, job);
    rc += CONC_SPAWN(NULL, function, number) + CONC_SPAWN(NULL, function, array[1]);
    rc += CONC_SPAWN(NULL, function, 7) + CONC_SPAWN(NULL, function, job.weight);
#ifdef POINTER
    rc += CONC_SPAWN(NULL, function, POINTER);
#endif
    return rc;
}
