/* A server for a test of an adapter: a program on a free loopback port, with its own folder. It is
 * started before any run, by fork and exec, so it needs nothing of conc; a test may kill, stop,
 * continue and restart it in the middle of a run. It dies with the test's process, and server_end
 * removes its folder. */
#ifndef SERVER_H
#define SERVER_H

#include "../conc_test.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct server {
    const char *const *argv; /* ends with NULL; argv[0] is searched for in PATH */
    int port;                /* on 127.0.0.1; 0: none */
    uid_t user;              /* the user to run it as; 0: this process's */
    gid_t group;
    /* the signal that ends it; 0: SIGKILL. A server with shared memory cleans up then */
    int end_signal;
    char folder[64]; /* for its data and its log */
    pid_t pid;       /* 0: it is not running */
} server;

/* Returns a free loopback port below those that the system gives to clients, so that no connection
 * takes it meanwhile. */
static inline int server_free_port(void)
{
    enum { FIRST = 15000, COUNT = 17000 };
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0;
    static unsigned next;
    if (!next)
        next = (unsigned)getpid() * 7919u;
    CHECK(fd >= 0);
    while (!port) {
        next = next * 1664525u + 1013904223u;
        a.sin_port = htons((uint16_t)(FIRST + next / 65536 % COUNT));
        if (bind(fd, (struct sockaddr *)&a, sizeof a) == 0)
            port = ntohs(a.sin_port);
    }
    close(fd);
    return port;
}

static inline void server_make_folder(server *s)
{
    strcpy(s->folder, "/tmp/conc-server-XXXXXX");
    CHECK(mkdtemp(s->folder) != NULL);
    if (s->user)
        CHECK(chown(s->folder, s->user, s->group) == 0);
}

static inline bool server_answers(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool answers = fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0;
    close(fd);
    return answers;
}

static inline void server_exec(const server *s)
{
    int log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0666);
    dup2(open("/dev/null", O_RDONLY), 0);
    dup2(log, 1);
    dup2(log, 2);
    for (int fd = 3; fd < 256; fd++)
        close(fd);
    if (s->user && (setgid(s->group) || setuid(s->user)))
        _exit(126);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a change of user clears it */
    execvp(s->argv[0], (char **)(uintptr_t)s->argv);
    _exit(127);
}

/* Starts it, in its folder. It may take a while until it answers: see server_wait. */
static inline void server_launch(server *s)
{
    fflush(NULL);
    s->pid = fork();
    CHECK(s->pid >= 0);
    if (s->pid == 0) {
        if (chdir(s->folder) == 0)
            server_exec(s);
        _exit(125);
    }
}

/* Blocks this thread until its port accepts connections. The test's own limit ends it. */
static inline void server_wait(const server *s)
{
    while (!server_answers(s->port)) {
        int status;
        if (waitpid(s->pid, &status, WNOHANG) == s->pid)
            test_fail(__FILE__, __LINE__, "%s ended with status 0x%x; see %s/log", s->argv[0],
                      (unsigned)status, s->folder);
        usleep(2000);
    }
}

static inline void server_start(server *s)
{
    server_launch(s);
    server_wait(s);
}

static inline void server_signal(const server *s, int number) { CHECK(kill(s->pid, number) == 0); }

/* Ends it with this signal. Its folder stays, for the next server_start. */
static inline void server_stop(server *s, int number)
{
    if (s->pid <= 0)
        return;
    kill(s->pid, number);
    while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    s->pid = 0;
}

/* Kills it immediately, like a crash. */
static inline void server_kill(server *s) { server_stop(s, SIGKILL); }

static inline void server_end(server *s)
{
    char command[96];
    server_stop(s, s->end_signal ? s->end_signal : SIGKILL);
    if (!s->folder[0])
        return;
    snprintf(command, sizeof command, "rm -rf '%s'", s->folder);
    CHECK_INT(system(command), 0);
    s->folder[0] = 0;
}

#endif
