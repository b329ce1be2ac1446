/* A program that loads late.c's library while it is running. Its workers reach main, but must not
 * have their own workers. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
    int (*work)(void) = NULL;
    const char *depth = getenv("LATE_DEPTH");
    if (depth && depth[0] == '2') {
        puts("a worker of a worker");
        return 1;
    }
    setenv("LATE_DEPTH", depth ? "2" : "1", 1);
    void *library = dlopen(getenv("LATE_LIBRARY"), RTLD_NOW);
    void *symbol = library ? dlsym(library, "late_work") : NULL;
    if (!symbol) {
        puts(dlerror());
        return 1;
    }
    memcpy(&work, &symbol, sizeof work);
    return work() ? 1 : 0;
}
