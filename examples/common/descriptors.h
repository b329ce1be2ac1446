/* descriptors.h - raises the limit of open files, for programs with many connections
 *
 *     descriptors_allow_most();    // in main
 */
#ifndef DESCRIPTORS_H
#define DESCRIPTORS_H

#include <sys/resource.h>

/* Raises the soft limit of open files to the hard limit, if possible. */
static inline void descriptors_allow_most(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

#endif
