/* A blocking call off the loop: conc_offload has a thread make the call; its task waits, and all
 * the others go on.
 *   cc 01_blocking_call.c -o blocking && ./blocking        (CONC_CLOCK=virtual ./blocking takes
 *   no time)
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <unistd.h>

static double start;
static double seconds(void) { return conc_now() - start; }

static int blocking_io(void *result) /* a plain function: it knows nothing of tasks */
{
    CONC_TRY(conc_block(1)); /* stands for time.sleep(1) */
    *(const char **)result = "done";
    return 0;
}

static int sync_in_async(void *arg)
{
    (void)arg;
    const char *result;
    /* await loop.run_in_executor(None, blocking_io) */
    CONC_TRY(conc_offload(blocking_io, &result));
    printf("%.1f s  %s\n", seconds(), result);
    return 0;
}

static int ticker(void *arg)
{
    (void)arg;
    for (int i = 1; i <= 2; i++) {
        CONC_TRY(conc_sleep(0.4));
        printf("%.1f s  another task goes on\n", seconds());
    }
    return 0;
}

typedef struct {
    int read_end, write_end;
    char line[40];
} mail;

/* the C library can only block; getaddrinfo() and most libraries are of this kind */
static int read_line(void *arg)
{
    mail *m = arg;
    FILE *in = fdopen(m->read_end, "r");
    if (!in)
        return -errno;
    /* on the loop it would never return: nobody could write */
    bool got = fgets(m->line, sizeof m->line, in);
    fclose(in);
    return got ? 0 : conc_fail(-EIO, "no mail");
}

static int reader(void *arg)
{
    mail *m = arg;
    CONC_TRY(conc_offload(read_line, m));
    printf("reader: %s", m->line);
    return 0;
}

static int writer(void *arg)
{
    mail *m = arg;
    printf("writer: the call blocks, and I am still here\n");
    ssize_t n = conc_write_full(m->write_end, "done\n", 5);
    close(m->write_end);
    return (int)n;
}

static int app(void *arg)
{
    start = conc_now();
    CONC_TRY(CONC_GATHER(CONC_CALL(sync_in_async, arg), CONC_CALL(ticker, arg)));
    int fds[2];
    if (pipe(fds) < 0)
        return -errno;
    mail m = {.read_end = fds[0], .write_end = fds[1]};
    return CONC_GATHER(CONC_CALL(reader, &m), CONC_CALL(writer, &m));
}

int main(void) { return conc_main(app, NULL); }
