/* A library that can only block. fgets blocks its thread until there is a line. Here another task
   of the same loop writes that line: on the loop, fgets would wait forever.

   cc 04_blocking_reader.c -o blocking_reader
   ./blocking_reader

   It prints ../expected/07_offload/04_blocking_reader.txt.
   Hint: conc_offload, as in 01_blocking_call.c. In a thread a call may block. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <unistd.h>

typedef struct {
    int read_end, write_end; /* of a pipe */
    char line[40];
} mail;

static int read_line(void *arg)
{
    mail *m = arg;
    FILE *in = fdopen(m->read_end, "r");
    if (!in)
        return -errno;
    bool got = fgets(m->line, sizeof m->line, in);
    fclose(in);
    return got ? 0 : conc_fail(-EIO, "no mail");
}

/* Your turn: call read_line off the loop, with the mail, then print "reader: " and its line. */
static int reader(void *arg)
{
    mail *m = arg;
    CONC_TRY(conc_offload(read_line, m));
    printf("reader: %s", m->line);
    return 0;
}

/* Your turn: print "writer: a call blocks, and I am still here", write "done\n" to the pipe's
   write_end (conc_write_full), and close that. */
static int writer(void *arg)
{
    mail *m = arg;
    printf("writer: a call blocks, and I am still here\n");
    ssize_t rc = conc_write_full(m->write_end, "done\n", 5);
    conc_close(m->write_end);
    return rc < 0 ? (int)rc : 0;
}

static int app(void *arg)
{
    (void)arg;
    int fds[2];
    if (pipe(fds) < 0)
        return -errno;
    mail m = {.read_end = fds[0], .write_end = fds[1]};
    return CONC_GATHER(CONC_CALL(reader, &m), CONC_CALL(writer, &m));
}

int main(void) { return conc_main(app, NULL); }
