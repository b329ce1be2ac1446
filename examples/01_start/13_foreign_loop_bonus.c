/* A loop that is running already. A game, a window toolkit or a notebook has its own loop ("This
   event loop is already running"; nest_asyncio). conc_run would block it until the last task has
   ended. Run the tasks step by step instead, one step per frame of the game.

   cc 13_foreign_loop_bonus.c -o game
   ./game

   It prints ../expected/01_start/13_foreign_loop_bonus.txt.
   Hint: conc_embed_begin, conc_embed_step and conc_embed_end; a step returns 1 while more remains.
   (To wait for input between the steps: conc_embed_fd and conc_embed_timeout.) */
#define CONC_STATIC
#include "../../conc.h"

static int pictures;

static void draw_picture(void)
{
    pictures++;
    conc_block(0.02); /* 50 pictures a second */
}

static int load_level(void *name)
{
    for (int part = 1; part <= 3; part++) {
        CONC_TRY(conc_sleep(0.1));
        printf("%s: part %d loaded\n", (char *)name, part);
    }
    return 42;
}

/* Your turn: begin a run of load_level("Castle"). Draw a picture, make a step, and so on, until the
   run is over. End it, and return its result. */
static int play(void)
{
    conc_embed e = {0};
    int more;
    CONC_TRY(conc_embed_begin(&e, NULL, load_level, "Castle"));
    do {
        draw_picture();
        more = conc_embed_step(&e);
    } while (more == 1);
    return conc_embed_end(&e);
}

int main(void)
{
    int result = play();
    printf("The result is %d, and the game %s\n", result, pictures > 0 ? "went on" : "froze");
    return 0;
}
