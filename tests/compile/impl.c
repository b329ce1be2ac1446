/* The implementation and nothing else, which other files are linked with, including those of
 * ../run.py. */
#define CONC_IMPLEMENTATION
#include "all.h"
