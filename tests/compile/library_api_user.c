/* A program without its own implementation: conc comes from the shared library, which exports
 * it. */
#include "all.h"

int library_work(void *arg);

int main(void)
{
    int n = 0;
    return conc_run(library_work, &n) != 0 || n != 2;
}
