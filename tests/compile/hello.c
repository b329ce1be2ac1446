/* The smallest program. Everything that it calls of the implementation may be inlined into main. */
#define CONC_STATIC
#include "conc.h"

static int app(void *arg)
{
    (void)arg;
    return conc_sleep(0.01);
}

int main(void) { return conc_run(app, NULL); }
