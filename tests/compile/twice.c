/* The header before CONC_IMPLEMENTATION, and twice with it. */
#include "all.h"

static int app(void *arg)
{
    (void)arg;
    return conc_yield();
}

#include "all.h"

#define CONC_IMPLEMENTATION
#include "all.h"

int main(void) { return conc_run(app, NULL); }

#include "all.h"
