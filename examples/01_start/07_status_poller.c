/* Status poller. Ask for a status every second, until it is "ready". In between, print a heartbeat
   every 0.4 s, and read typed lines.

   cc 07_status_poller.c -o poller
   ./poller     # and now type some lines, or press Ctrl+D
   printf 'a\nb\n' | CONC_CLOCK=virtual ./poller     # without waiting

   It prints ../expected/01_start/07_status_poller.txt, if nothing is typed.
   Hint: one task for the heartbeat, one for the input; conc_group_cancel(&g) ends them. */
#define CONC_STATIC
#include "../../conc.h"
#include <string.h>
#include <unistd.h>

static double start;
static double seconds(void) { return conc_now() - start; }

static const char *get_status(void) { return seconds() < 3 ? "pending" : "ready"; }

/* Your turn: print "0.0 s  status: pending" with the time and the status; return 0 if that was
   "ready" (strcmp), else wait for a second and ask again. */
static int poll_status(void)
{
    for (;;) {
        const char *status = get_status();
        printf("%.1f s  status: %s\n", seconds(), status);
        if (strcmp(status, "ready") == 0)
            return 0;
        CONC_TRY(conc_sleep(1));
    }
}

/* Your turn: print "0.4 s  heartbeat" every 0.4 s, for ever: a cancel ends it. */
static int heartbeat(void *arg)
{
    (void)arg;
    for (;;) {
        CONC_TRY(conc_sleep(0.4));
        printf("%.1f s  heartbeat\n", seconds());
    }
}

static int read_input(void *arg)
{
    (void)arg;
    char *line;
    /* CONC_AUTO: the object is closed when the block is left, however that happens */
    CONC_AUTO(conc_stream, input) = {0};
    CONC_TRY(conc_stream_open(&input, STDIN_FILENO)); /* a terminal, a pipe or a file */
    while (CONC_TRY(conc_stream_read_line(&input, &line)) >= 0 && line)
        printf("%.1f s  you typed: %s\n", seconds(), line);
    printf("%.1f s  end of input\n", seconds()); /* Ctrl+D: all else goes on */
    return 0;
}

/* Your turn: note the start. Spawn heartbeat and read_input in a group, and poll the status. When
   it is ready, cancel the group, and wait for it. */
static int app(void *arg)
{
    (void)arg;
    conc_group g = {0};
    start = conc_now();
    CONC_TRY_IN(&g, conc_spawn(&g, heartbeat, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, read_input, NULL));
    CONC_TRY_IN(&g, poll_status());
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

int main(void) { return conc_main(app, NULL); }
