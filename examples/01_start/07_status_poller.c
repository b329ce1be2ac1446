/* Status poller: asks for a status every second; between two questions a heartbeat goes on, and
 * what you type is read.
 *   cc 07_status_poller.c -o poller && ./poller        (printf 'a\nb\n' | CONC_CLOCK=virtual
 *   ./poller takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"

static double start;
static double seconds(void) { return conc_now() - start; }

static int poll_status(void)
{
    for (int i = 0; i < 3; i++) {
        printf("%.1f s  status: pending\n", seconds());
        CONC_TRY(conc_sleep(1));
    }
    printf("%.1f s  status: ready\n", seconds());
    return 0;
}

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
    CONC_AUTO(conc_stream, input) = {0};
    CONC_TRY(conc_stream_open(&input, 0)); /* standard input: a terminal, a pipe or a file */
    while (CONC_TRY(conc_stream_read_line(&input, &line)) >= 0 && line)
        printf("%.1f s  you typed: %s\n", seconds(), line);
    /* Ctrl+D: nothing more to read, all else goes on */
    printf("%.1f s  end of input\n", seconds());
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, heartbeat, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, read_input, NULL));
    CONC_TRY_IN(&g, poll_status());
    conc_group_cancel(&g); /* ready: nobody needs the other two any more */
    return conc_group_wait(&g);
}

int main(void) { return conc_main(app, NULL); }
