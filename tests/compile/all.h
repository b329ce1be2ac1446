/* Every module: conc.h is the first of them, or the single file that contains all. */
#include "conc.h"
#if __has_include("conc_sync.h")
#include "conc_sync.h"
#endif
#if __has_include("conc_pool.h")
#include "conc_pool.h"
#endif
