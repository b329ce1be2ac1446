/* What CONC_PUT accepts, and, with a macro defined, what it refuses (objects: in C++, like
 * CONC_SPAWN). */
#include "all.h"

int put(int n);

int put(int n)
{
    conc_queue numbers = CONC_QUEUE(int, 10);
#ifdef ADDRESS
    return CONC_PUT(&numbers, &n);
#elif defined STRING
    return CONC_PUT(&numbers, n ? "text" : "");
#elif defined SIZE
    return CONC_PUT(&numbers, (long long)n);
#elif defined SPAWN_OBJECT
    conc_queue_close(&numbers);
    return CONC_SPAWN(NULL, NULL, std::string("text"));
#elif defined PUT_OBJECT
    return CONC_PUT(&numbers, std::string("text"));
#else
    conc_queue names = CONC_QUEUE(const char *, 10);
    const char *name = "a name";
    return CONC_PUT(&numbers, n) | CONC_PUT(&names, name) | CONC_PUT(&names, "text");
#endif
}
