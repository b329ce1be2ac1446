/* The declarations alone. */
#include "all.h"
