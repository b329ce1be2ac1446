/* redis_server.h - a private redis-server, which ends with the program
 *
 *     CONC_AUTO(redis_server, server) = {0};
 *     CONC_TRY(redis_server_start(&server));
 *     CONC_AUTO(redis_client, c) = {.address = server.address};
 *
 * It listens on a Unix socket in a new folder below $TMPDIR or /tmp, and keeps nothing on disk,
 * unless .durable. It ends with redis_server_stop or with this program, even if that is killed; a
 * terminal's Ctrl+C does not reach it. Include conc_pool.h and conc_sync.h before. */
#ifndef REDIS_SERVER_H
#define REDIS_SERVER_H

#ifndef CONC_POOL_H
#error "redis_server.h: include conc_pool.h and conc_sync.h first"
#endif

#include "redis.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct redis_server {
    bool durable;      /* writes each command to an append-only file on disk before it replies */
    char folder[80];   /* may hold files of the program; removed with all its content */
    char address[112]; /* "unix:/tmp/..." */
    /* private */
    conc_child child;
} redis_server;

/* Starts the server and waits until it answers. -ENOENT: redis-server is not installed. */
static inline int redis_server_start(redis_server *s);

/* Kills the server, as a power failure would, and restarts it with what a .durable one has kept. It
 * may take a while until it answers. Waits. */
static inline int redis_server_restart(redis_server *s);

/* Ends the server and removes the folder. Waits. Harmless if repeated, or without a start. */
static inline int redis_server_stop(redis_server *s);
CONC_AUTO_TYPE(redis_server, redis_server_stop);

/* ---- implementation ------------------------------------------------------------------------- */

/* Starts a shell that starts the server. When this program ends, the shell's `read` meets the end
 * of its input, because only this program has the pipe's other end; then the shell ends the server
 * and removes the folder. */
static inline int redis_server__launch(redis_server *s)
{
    static const char script[] = "redis-server \"$@\" <&- & read end; kill $!; wait; rm -rf \"$0\"";
    const char *path = s->address + strlen("unix:"), *appends = s->durable ? "yes" : "no";
    const char *const argv[] = {
        "/bin/sh",       "-c",     script,   s->folder, "--port",       "0",
        "--unixsocket",  path,     "--save", "",        "--appendonly", appends,
        "--appendfsync", "always", NULL};
    s->child = (conc_child){.argv = argv, .dir = s->folder, .group = true};
    s->child.input = CONC_PIPE;
    s->child.output = CONC_NULL;
    return conc_child_start(&s->child);
}

/* Makes the folder. The path of a socket can have at most 107 bytes. */
static inline int redis_server__make_folder(redis_server *s)
{
    const char *parent = getenv("TMPDIR");
    if (!parent || strlen(parent) > 60)
        parent = "/tmp";
    snprintf(s->folder, sizeof s->folder, "%s/conc-redis-XXXXXX", parent);
    if (mkdtemp(s->folder))
        return 0;
    int rc = -errno;
    *s->folder = 0;
    return conc_fail(rc, "%s: no folder can be made: %s", parent, conc_strerror(rc));
}

static inline int redis_server_start(redis_server *s)
{
    const char *const argv[] = {"redis-server", "--version", NULL};
    CONC_AUTO(conc_child, probe) = {.argv = argv, .output = CONC_NULL};
    if (conc_child_start(&probe) < 0)
        return conc_fail(-ENOENT,
                         "there is no redis-server here: install it, or name a running one");
    CONC_TRY(redis_server__make_folder(s));
    snprintf(s->address, sizeof s->address, "unix:%s/socket", s->folder);
    CONC_TRY(redis_server__launch(s));
    CONC_AUTO(redis_client, c) = {.address = s->address, .attempts = 10, .delay = 0.02};
    return redis_command(&c, NULL, "PING");
}

static inline int redis_server_restart(redis_server *s)
{
    conc_child_kill(&s->child, SIGKILL); /* before the close, to which the shell would react */
    CONC_TRY(conc_child_close(&s->child));
    return redis_server__launch(s);
}

/* Removes the folder's content, and closes the folder. */
static inline void redis_server__empty(int folder)
{
    DIR *dir = fdopendir(folder);
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        bool is_link = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
        bool is_folder = !is_link && e->d_type == DT_DIR;
        if (is_folder)
            redis_server__empty(openat(folder, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
        if (!is_link)
            unlinkat(folder, e->d_name, is_folder ? AT_REMOVEDIR : 0);
    }
    if (dir)
        closedir(dir);
}

static inline int redis_server_stop(redis_server *s)
{
    int rc = conc_child_close(&s->child);
    if (*s->folder) {
        redis_server__empty(open(s->folder, O_RDONLY | O_DIRECTORY));
        rmdir(s->folder);
    }
    *s->folder = 0;
    return rc;
}

#endif
