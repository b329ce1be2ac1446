/* redis_server.h - a redis-server of the program's own, for as long as it is wanted
 *
 *     CONC_AUTO(redis_server, server) = {0};
 *     CONC_TRY(redis_server_start(&server));
 *     CONC_AUTO(redis_client, c) = {.address = server.address};
 *
 * It listens on a Unix socket in a new folder below /tmp, and keeps nothing on the disk. It ends
 * with the close, or with this program, even if that is killed; a terminal's Ctrl+C does not reach
 * it. Include conc_pool.h and conc_sync.h before. */
#ifndef REDIS_SERVER_H
#define REDIS_SERVER_H

#ifndef CONC_POOL_H
#error "redis_server.h: include conc_pool.h and conc_sync.h first"
#endif

#include "redis.h"

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct redis_server {
    char folder[32];  /* the program may have files of its own in it; all of it is removed */
    char address[64]; /* "unix:/tmp/..." */
    /* private */
    conc_child child;
} redis_server;

/* Starts it, and waits until it answers: 0. -ENOENT, with words: there is no redis-server here. */
static inline int redis_server_start(redis_server *s);

/* Ends it and removes the folder: 0. Waits. Twice, or without a start, it does nothing. */
static inline int redis_server_stop(redis_server *s);
CONC_AUTO_TYPE(redis_server, redis_server_stop);

/* ---- implementation ------------------------------------------------------------------------- */

/* The shell's `cat` ends when this program does, because nobody else has the other end of its
 * input; then the shell ends the server and removes the folder. */
static inline int redis_server_start(redis_server *s)
{
    static const char script[] = "redis-server \"$@\" <&- & cat; kill $!; wait; rm -rf \"$0\"";
    char path[48];
    const char *const probe_argv[] = {"redis-server", "--version", NULL};
    const char *const argv[] = {
        "/bin/sh", "-c",     script, s->folder,      "--port", "0", "--unixsocket",
        path,      "--save", "",     "--appendonly", "no",     NULL};
    CONC_AUTO(conc_child, probe) = {.argv = probe_argv, .output = CONC_NULL};
    if (conc_child_start(&probe) < 0)
        return conc_fail(-ENOENT,
                         "there is no redis-server here: install it, or name one that runs");
    snprintf(s->folder, sizeof s->folder, "/tmp/conc-redis-XXXXXX");
    if (!mkdtemp(s->folder)) {
        int rc = -errno;
        *s->folder = 0;
        return conc_fail(rc, "/tmp: no folder can be made: %s", conc_strerror(rc));
    }
    snprintf(path, sizeof path, "%s/socket", s->folder);
    snprintf(s->address, sizeof s->address, "unix:%s", path);
    s->child = (conc_child){.argv = argv, .dir = s->folder, .group = true};
    s->child.input = CONC_PIPE;
    s->child.output = CONC_NULL;
    CONC_TRY(conc_child_start(&s->child));
    CONC_AUTO(redis_client, c) = {.address = s->address, .attempts = 10, .delay = 0.02};
    return redis_command(&c, NULL, "PING");
}

/* The folder is flat. */
static inline void redis_server__remove(const char *folder)
{
    DIR *dir = opendir(folder);
    char path[320];
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        unlink(path); /* not "." and ".." */
    }
    if (dir)
        closedir(dir);
    rmdir(folder);
}

static inline int redis_server_stop(redis_server *s)
{
    int rc = conc_child_close(&s->child);
    if (*s->folder)
        redis_server__remove(s->folder);
    *s->folder = 0;
    return rc;
}

#endif
