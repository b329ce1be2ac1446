/* What CONC_PUT takes, and, with a macro defined, what it refuses. */
#include "all.h"

int put(int n);

int put(int n)
{
    conc_queue numbers = CONC_QUEUE(int, 10);
#ifdef ADDRESS
    return CONC_PUT(&numbers, &n);
#elif defined STRING
    return CONC_PUT(&numbers, "text");
#elif defined SIZE
    return CONC_PUT(&numbers, (long long)n);
#else
    return CONC_PUT(&numbers, n);
#endif
}
