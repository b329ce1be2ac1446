/* temp_folder.h - a private folder, removed with the files in it
 *
 *     CONC_AUTO(temp_folder, box) = {0};
 *     CONC_TRY(temp_folder_make(&box, "etl"));
 *     printf("%s\n", box.path); // $TMPDIR/etlAb12Cd, or below /tmp
 *
 * No call waits. Include conc.h before. */
#ifndef TEMP_FOLDER_H
#define TEMP_FOLDER_H

#ifndef CONC_VERSION
#error "temp_folder.h: include conc.h first"
#endif

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct temp_folder {
    char path[256];
} temp_folder;

/* Makes a new folder whose name begins with `name`. Errors have texts. */
static inline int temp_folder_make(temp_folder *f, const char *name);

/* Removes the folder and the files in it. Fails if it contains a folder. Harmless if repeated, or
 * without a folder. */
static inline int temp_folder_remove(temp_folder *f);
CONC_AUTO_TYPE(temp_folder, temp_folder_remove);

/* ---- implementation ------------------------------------------------------------------------- */

static inline int temp_folder_make(temp_folder *f, const char *name)
{
    const char *parent = getenv("TMPDIR");
    snprintf(f->path, sizeof f->path, "%s/%sXXXXXX", parent ? parent : "/tmp", name);
    if (mkdtemp(f->path))
        return 0;
    int rc = -errno;
    f->path[0] = 0;
    return conc_fail(rc, "cannot make a temporary folder: %s", conc_strerror(rc));
}

static inline int temp_folder_remove(temp_folder *f)
{
    if (!f->path[0])
        return 0;
    DIR *dir = opendir(f->path);
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir))
        unlinkat(dirfd(dir), e->d_name, 0); /* fails for "." and ".." */
    if (dir)
        closedir(dir);
    int rc = rmdir(f->path) == 0 ? 0 : -errno;
    f->path[0] = 0;
    return rc;
}

#endif
