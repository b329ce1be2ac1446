/* Slow steps. Debug mode reports on stderr any task that blocks the loop for more than 0.1 s. Draw
   a poster in one step of 0.3 s, and again in six strips; only the first is reported.

   cc 08_slow_step_warning.c -o slow
   ./slow
   CONC_DEBUG=0 ./slow     # no reports; CONC_DEBUG=1 switches them on, in any program
   ./slow --read # blocks until you press Enter; meanwhile a report says where

   It prints one report. ../expected/01_start/08_slow_step_warning.awk checks it.
   Hint: conc_options options = {.debug = true}; conc_run_with takes its address, fn and NULL. */
#define CONC_STATIC
#include "../../conc.h"
#include <string.h>
#include <unistd.h>

static int draw_icon(void *arg)
{
    (void)arg;
    return conc_block(0.05); /* stands for a computation: too short for a report */
}

/* Your turn: print "poster drawn" after a computation of 0.3 s: conc_block(0.3) stands for it. */
static int draw_poster(void *arg)
{
    (void)arg;
    CONC_TRY(conc_block(0.3)); /* no other task runs now: this is the slow step */
    printf("poster drawn\n");
    return 0;
}

/* Your turn: six computations of 0.05 s, with a conc_yield() after each, so that the others may
   run; then print "strips drawn". */
static int draw_strips(void *arg)
{
    (void)arg;
    for (int strip = 0; strip < 6; strip++) {
        CONC_TRY(conc_block(0.05));
        CONC_TRY(conc_yield()); /* conc_offload would move the work off the loop */
    }
    printf("strips drawn\n");
    return 0;
}

static int ask(void *arg)
{
    char answer[80];
    (void)arg;
    printf("Press Enter: ");
    fflush(stdout);
    ssize_t size = read(STDIN_FILENO, answer, sizeof answer); /* conc_read would not block */
    return size < 0 ? -errno : 0;
}

static int draw(void *arg)
{
    (void)arg;
    double start = conc_now();
    CONC_TRY(CONC_GATHER(CONC_CALL(draw_icon, NULL), CONC_CALL(draw_poster, NULL),
                         CONC_CALL(draw_strips, NULL)));
    printf("%.2f seconds\n", conc_now() - start);
    return 0;
}

/* Your turn: run fn as the first task of a new loop, in debug mode. */
static int run_in_debug_mode(conc_fn *fn)
{
    conc_options options = {.debug = true}; /* .slow_step = 0.1 is the default */
    return conc_run_with(&options, fn, NULL);
}

int main(int argc, char **argv)
{
    bool reading = argc > 1 && strcmp(argv[1], "--read") == 0;
    return run_in_debug_mode(reading ? ask : draw) < 0;
}
