/* Download manager, a bandwidth limit. Download five files concurrently over a line that carries
   100 MB a second in total: each download requests 5 MB at a time, and the first to request gets
   the next. All 865 MB take 8.65 s.

   cc 06_download_manager_bonus.c -o downloads
   ./downloads
   CONC_CLOCK=virtual ./downloads     # without waiting

   It prints ../expected/02_tasks/06_download_manager_bonus.txt.
   Hint: conc_limiter_acquire(&bandwidth, 5) waits until 5 tokens are available, and takes them. */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    const char *name;
    int size_mb;
} file;

static conc_limiter bandwidth = {.rate = 100, .burst = 5}; /* tokens a second, and at once */
static double start;

/* Your turn: for each 5 MB of the file take 5 tokens, then receive them, which takes 0.05 s. At
   the end print "0.20s: ✓ image.jpg downloaded", with the time since the start. */
static int download(void *arg)
{
    file *f = arg;
    for (int mb = 0; mb < f->size_mb; mb += 5) {
        CONC_TRY(conc_limiter_acquire(&bandwidth, 5));
        CONC_TRY(conc_sleep(0.05));
    }
    printf("%.2fs: ✓ %s downloaded\n", conc_now() - start, f->name);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    file files[] = {{"movie.mp4", 500},
                    {"music.mp3", 50},
                    {"document.pdf", 10},
                    {"image.jpg", 5},
                    {"archive.zip", 300}};
    start = conc_now();
    return CONC_MAP(download, files);
}

int main(void) { return conc_main(app, NULL); }
