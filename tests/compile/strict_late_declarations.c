/* cc -std=c11, with a system header first: the declarations still compile. */
#include <string.h>

#include "all.h"

static int app(void *arg) { return (int)strlen(arg); }

int main(void) { return conc_run(app, "seven..") != 7; }
