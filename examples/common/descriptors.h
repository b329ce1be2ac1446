/* descriptors.h - as many open files as the system allows, for programs with many connections
 *
 *     descriptors_allow_most();    // in main
 */
#ifndef DESCRIPTORS_H
#define DESCRIPTORS_H

#include <sys/resource.h>

/* Raises the limit to what any process may have without being root; if that fails it stays. */
static inline void descriptors_allow_most(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

#endif
