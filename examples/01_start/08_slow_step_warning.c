/* Slow steps: in debug mode a task that holds the loop for more than 0.1 s is reported, with the
 * place of its spawn.
 *   cc 08_slow_step_warning.c -o slow && ./slow        (CONC_CLOCK=virtual ./slow takes no time)
 *   ./slow --read                     blocks for real, until you press Enter; meanwhile you are
 *   told where it stands
 * This program asks for debug mode itself; CONC_DEBUG=1 in the environment does so for any, and
 * CONC_DEBUG=0 forbids it.
 */
#define CONC_STATIC
#include "../../conc.h"
#include <string.h>
#include <unistd.h>

static int draw_icon(void *arg)
{
    (void)arg;
    return conc_block(0.05); /* stands for a computation: too short for a warning */
}

static int draw_poster(void *arg)
{
    (void)arg;
    return conc_block(0.3); /* nobody else runs meanwhile: this is the slow step */
}

/* the same work in six steps; conc_offload would move it off the loop */
static int draw_poster_in_strips(void *arg)
{
    (void)arg;
    for (int strip = 0; strip < 6; strip++) {
        CONC_TRY(conc_block(0.05));
        CONC_TRY(conc_yield());
    }
    return 0;
}

static int ask(void *arg)
{
    char answer[80];
    (void)arg;
    printf("Press Enter: ");
    fflush(stdout);
    /* the bug: conc_read lets the others run */
    return read(STDIN_FILENO, answer, sizeof answer) < 0 ? -errno : 0;
}

typedef enum { SLOW, IN_STRIPS, BLOCKING } way;

static int draw(void *arg)
{
    way how = *(way *)arg;
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, draw_icon, NULL));
    if (how == SLOW)
        CONC_TRY_IN(&g, conc_spawn(&g, draw_poster, NULL));
    if (how == IN_STRIPS)
        CONC_TRY_IN(&g, conc_spawn(&g, draw_poster_in_strips, NULL));
    if (how == BLOCKING)
        CONC_TRY_IN(&g, conc_spawn(&g, ask, NULL));
    return conc_group_wait(&g);
}

static int run(const char *title, bool debug, way how)
{
    conc_options options = {.debug = debug, .slow_step = 0.1}; /* 0.1 is the default */
    printf("%s\n", title);
    fflush(stdout); /* the warnings go to stderr */
    return conc_run_with(&options, draw, &how);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--read") == 0)
        return run("A call that blocks, in debug mode:", true, BLOCKING) < 0;
    return run("A slow step, and no debug mode:", false, SLOW) < 0 ||
           run("A slow step, in debug mode:", true, SLOW) < 0 ||
           run("The same work in strips, in debug mode:", true, IN_STRIPS) < 0;
}
