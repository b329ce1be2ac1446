/* The header before CONC_IMPLEMENTATION, and twice with it. */
#include "conc.h"

static int app(void *arg)
{
    (void)arg;
    return conc_yield();
}

#include "conc.h"

#define CONC_IMPLEMENTATION
#include "conc.h"

int main(void) { return conc_run(app, NULL); }

#include "conc.h"
