/* A program for another C library: a little of every module, and of everything that depends on the
 * library most: stacks, threads, processes, names, programs and numbers. */
#define CONC_IMPLEMENTATION
#include "all.h"

#include <string.h>
#include <unistd.h>

static int constructed;
__attribute__((constructor)) static void construct(void) { constructed = 40; }

static conc_queue queue = CONC_QUEUE(int, 1);
static conc_lock lock;

static int puts_three(void *arg)
{
    (void)arg;
    for (int i = 1; i <= 3; i++) {
        CONC_TRY(conc_sleep(0.001));
        CONC_LOCKED(&lock)
            CONC_TRY(conc_queue_put(&queue, &i));
    }
    conc_queue_close(&queue);
    return 0;
}

static int use_tasks(void)
{
    int sum = 0, item;
    CONC_AUTO(conc_group, g) = {0};
    CONC_TRY(conc_spawn(&g, puts_three, NULL));
    while (conc_queue_get(&queue, &item) == 0)
        sum += item;
    int rc = conc_group_end(&g, 0);
    return rc || sum != 6 ? conc_fail(-EIO, "tasks: %d, %d", rc, sum) : 0;
}

static int serves_one(void *arg)
{
    char byte;
    int fd = CONC_TRY(conc_accept(*(int *)arg));
    ssize_t n = conc_read(fd, &byte, 1);
    if (n == 1)
        n = conc_write(fd, &byte, 1);
    conc_close(fd);
    return n == 1 ? 0 : -EIO;
}

static int use_sockets(void)
{
    char address[100], byte = 'x';
    int listener = CONC_TRY(conc_listen("localhost:0"));
    CONC_TRY(conc_address(listener, false, address, sizeof address));
    CONC_AUTO(conc_group, g) = {0};
    CONC_TRY(conc_spawn(&g, serves_one, &listener));
    int fd = CONC_TRY_IN(&g, conc_dial(address));
    CONC_TRY_IN(&g, (int)conc_write(fd, &byte, 1));
    byte = 0;
    CONC_TRY_IN(&g, (int)conc_read(fd, &byte, 1));
    conc_close(fd);
    int rc = conc_group_end(&g, 0);
    conc_close(listener);
    return rc || byte != 'x' ? conc_fail(-EIO, "sockets: %d, %d", rc, byte) : 0;
}

static int counts(void *arg) { return ++*(int *)arg + constructed; }

static int dies(void *arg)
{
    (void)arg;
    _exit(3);
}

static int use_threads(void)
{
    int numbers[100] = {0}, n = 1;
    CONC_AUTO(conc_pool, pool) = {.threads = 3};
    CONC_TRY(conc_pool_open(&pool));
    CONC_TRY(conc_pool_map(&pool, counts, numbers, 100, sizeof numbers[0]));
    int rc = conc_offload(counts, &n);
    for (int i = 0; i < 100; i++)
        n += numbers[i];
    return rc != 42 || n != 102 ? conc_fail(-EIO, "threads: %d, %d", rc, n) : 0;
}

static int use_processes(void)
{
    static char large[1 << 20];
    int n = 1;
    CONC_AUTO(conc_procs, pool) = {.workers = 2};
    CONC_TRY(conc_procs_open(&pool));
    int lost = conc_procs_run(&pool, dies, NULL, 0);
    int copied = conc_procs_run(&pool, counts, large, sizeof large);
    int rc = CONC_TRY(conc_procs_run(&pool, counts, &n, sizeof n));
    bool right = lost == -EOWNERDEAD && copied == 41 && rc == 42 && n == 2;
    return right ? 0 : conc_fail(-EIO, "processes: %d, %d, %d", lost, copied, rc);
}

static int use_programs(void)
{
    CONC_AUTO(conc_child, child) = {.argv = (const char *const[]){"sh", "-c", "cat; exit 7", NULL},
                                    .input = CONC_PIPE,
                                    .output = CONC_PIPE};
    conc_child_io io = {.in = "text", .in_size = 4};
    int status = 0;
    CONC_TRY(conc_child_start(&child));
    CONC_TRY(conc_child_communicate(&child, &io, &status));
    bool right = WIFEXITED(status) && WEXITSTATUS(status) == 7 && !strcmp(io.out, "text");
    conc_free(io.out);
    conc_free(io.error);
    return right ? 0 : conc_fail(-EIO, "a program: %d", status);
}

static int use_names(void)
{
    struct sockaddr_storage found[4];
    int n = conc_resolve("127.0.0.1", "80", found, 4);
    return n == 1 ? 0 : conc_fail(-EIO, "names: %d", n);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(use_tasks());
    CONC_TRY(use_sockets());
    CONC_TRY(use_threads());
    CONC_TRY(use_processes());
    CONC_TRY(use_programs());
    return use_names();
}

int main(void) { return conc_main(app, NULL); }
