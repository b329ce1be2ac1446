/* Included before an example (cc -include log_draws.h): every random number it draws goes to
 * stderr, after its limits. */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

static double log_draw(double low, double high)
{
    double x = conc_random(low, high);
    fprintf(stderr, "%g %g %.17g\n", low, high, x);
    return x;
}

#define conc_random log_draw
