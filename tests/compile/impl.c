/* The implementation and nothing else: what other files are linked with, and what nm is asked about. */
#define CONC_IMPLEMENTATION
#include "conc.h"
