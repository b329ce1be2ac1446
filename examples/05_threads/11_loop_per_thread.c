/* A loop per thread. One loop uses one processor. Here four threads have a loop each, with its own
   listener, and all listen on the same port: the system assigns each client to one of them. Twelve
   clients ask for squares; count how many are served.

   cc 11_loop_per_thread.c -o loops
   ./loops

   It prints ../expected/05_threads/11_loop_per_thread.txt.
   Hint: conc_run starts a loop in the thread that calls it, here in a job of a pool; conc_serve
   runs until it is cancelled. */
#define CONC_STATIC
#include "../../conc_pool.h"

enum { LOOPS = 4 };

typedef struct {
    int listener, clients;
} loop;

static char address[80];
static const conc_listen_options shared = {.reuse_port = true};

/* Your turn: count the client for this loop, which arg points to; read an int from fd
   (conc_read_full), and write its square back (conc_write_full). */
static int answer(int fd, void *arg)
{
    int n;
    loop *l = arg;
    l->clients++; /* without a lock: the tasks of one loop run one at a time */
    CONC_TRY(conc_read_full(fd, &n, sizeof n));
    n *= n;
    return (int)CONC_TRY(conc_write_full(fd, &n, sizeof n));
}

static int serve(void *arg)
{
    loop *l = arg;
    return conc_serve(&(conc_server){.fd = l->listener, .handler = answer, .arg = l});
}

/* Your turn: run serve, with the same argument, on a loop of this thread's own. */
static int own_loop(void *arg) { return conc_run(serve, arg); }

static int run_loops(void *loops)
{
    CONC_AUTO(conc_pool, pool) = {.threads = LOOPS};
    CONC_TRY(conc_pool_open(&pool));
    return conc_pool_map(&pool, own_loop, loops, LOOPS, sizeof(loop));
}

static int ask(void *number)
{
    int fd = CONC_TRY(conc_dial(address));
    ssize_t rc = conc_write_full(fd, number, sizeof(int));
    if (rc >= 0)
        rc = conc_read_full(fd, number, sizeof(int));
    conc_close(fd);
    return (int)rc;
}

static int ask_in_time(void *number) { return conc_timeout(5, ask, number); }

static int app(void *arg)
{
    loop loops[LOOPS] = {0};
    int numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, served = 0;
    conc_group g = {0};
    for (int i = 0; i < LOOPS; i++) {
        loops[i].listener = CONC_TRY(conc_listen_with(i ? address : arg, &shared));
        CONC_TRY(conc_address(loops[i].listener, false, address, sizeof address));
    }
    CONC_TRY_IN(&g, conc_spawn(&g, run_loops, loops));
    CONC_TRY_IN(&g, CONC_MAP(ask_in_time, numbers));
    conc_group_cancel(&g); /* the jobs, and the runs in them, are asked to end */
    CONC_TRY(conc_group_end(&g, 0));
    for (int i = 0; i < LOOPS; i++) {
        conc_close(loops[i].listener);
        served += loops[i].clients;
    }
    printf("%d loops have served %d clients; the last got %d\n", LOOPS, served, numbers[11]);
    return 0;
}

int main(void) { return conc_main(app, "127.0.0.1:0"); }
