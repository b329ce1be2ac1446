/* The declarations alone. */
#include "conc.h"
