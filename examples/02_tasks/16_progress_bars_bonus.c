/* Download manager, progress bars. Download three files concurrently, 100 MB a second each, and
   print a bar with the percentage whenever another quarter of a file has arrived.

   cc 16_progress_bars_bonus.c -o downloads
   ./downloads
   CONC_CLOCK=virtual ./downloads     # without waiting

   It prints ../expected/02_tasks/16_progress_bars_bonus.txt.
   Hint: printf("%.*s", n, "########") prints n of the characters, printf("%*s", n, "") n spaces. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *name;
    int size_mb;
} file;

/* Your turn: print "[##########          ]  50% music.mp3": a # for each 5 %, 20 places, and the
   percentage in 3 places. */
static void print_bar(const char *name, int percent)
{
    int filled = percent / 5;
    printf("[%.*s%*s] %3d%% %s\n", filled, "####################", 20 - filled, "", percent, name);
}

/* Your turn: receive the file in four parts, and print its bar after each. */
static int download(void *arg)
{
    file *f = arg;
    for (int percent = 25; percent <= 100; percent += 25) {
        CONC_TRY(conc_sleep(f->size_mb / 100.0 / 4));
        print_bar(f->name, percent);
    }
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    file files[] = {{"movie.mp4", 500}, {"music.mp3", 50}, {"archive.zip", 300}};
    return CONC_MAP(download, files);
}

int main(void) { return conc_main(app, NULL); }
