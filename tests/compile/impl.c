/* The implementation and nothing else: what other files are linked with, those of ../run.py too. */
#define CONC_IMPLEMENTATION
#include "all.h"
