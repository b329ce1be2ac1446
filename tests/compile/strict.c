/* cc -std=c11: if conc.h comes first, the implementation has what it needs of POSIX. */
#define CONC_IMPLEMENTATION
#include "all.h"

#include <string.h>

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(0.001));
    return strcmp(conc_version(), CONC_VERSION) == 0 ? 7 : -EPROTO;
}

int main(void) { return conc_run(app, NULL) != 7; }
