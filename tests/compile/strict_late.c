/* cc -std=c11, with a system header first: the implementation refuses to compile, and the message
 * says what to do. With cc -std=gnu11 and plain cc the order makes no difference.
 */
#include <string.h>

#define CONC_IMPLEMENTATION
#include "all.h"

static int app(void *arg) { return (int)strlen(arg); }

int main(void) { return conc_run(app, "seven..") != 7; }
