/* Download manager. Download five files one after the other, then the same files concurrently: 100
   MB take 1 s. Print the time of each, the total time, and the speedup.

   cc 05_download_manager.c -o downloads
   ./downloads
   CONC_CLOCK=virtual ./downloads     # without waiting

   It prints ../expected/02_tasks/05_download_manager.txt.
   Hint: conc_map(f, files, count, sizeof *files) calls f with a pointer to each file, concurrently.
   CONC_MAP cannot tell how many files a parameter points to. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *name;
    int size_mb;
    double time; /* seconds that the download took */
} file;

static int decimals(double s) { return (int)(s * 100 + 0.5) % 10 ? 2 : 1; } /* 0.05, but 0.1 */

/* Your turn: print "Downloading movie.mp4 (500MB)...", take as long as the size says, leave the
   time in f->time, and print "✓ movie.mp4 downloaded in 5.0s" (printf("%.*fs", decimals(t), t)). */
static int download_file(void *arg)
{
    file *f = arg;
    double start = conc_now();
    printf("Downloading %s (%dMB)...\n", f->name, f->size_mb);
    CONC_TRY(conc_sleep(f->size_mb / 100.0));
    f->time = conc_now() - start;
    printf("✓ %s downloaded in %.*fs\n", f->name, decimals(f->time), f->time);
    return 0;
}

static int sequential_download(file *files, size_t count, double *time)
{
    double start = conc_now();
    printf("=== Sequential Download ===\n");
    for (size_t i = 0; i < count; i++)
        CONC_TRY(download_file(&files[i]));
    *time = conc_now() - start;
    printf("Sequential total: %.*f seconds\n", decimals(*time), *time);
    return 0;
}

/* Your turn: the same at once, under an empty line and "=== Parallel Download ===". */
static int parallel_download(file *files, size_t count, double *time)
{
    double start = conc_now();
    printf("\n=== Parallel Download ===\n");
    CONC_TRY(conc_map(download_file, files, count, sizeof *files));
    *time = conc_now() - start;
    printf("Parallel total: %.*f seconds\n", decimals(*time), *time);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    file files[] = {{"movie.mp4", 500, 0},
                    {"music.mp3", 50, 0},
                    {"document.pdf", 10, 0},
                    {"image.jpg", 5, 0},
                    {"archive.zip", 300, 0}};
    double sequential = 0, parallel = 0;
    CONC_TRY(sequential_download(files, CONC_LEN(files), &sequential));
    CONC_TRY(parallel_download(files, CONC_LEN(files), &parallel));
    printf("\n=== Performance Summary ===\n");
    printf("Sequential: %.2f seconds\n", sequential);
    printf("Parallel: %.2f seconds\n", parallel);
    printf("Speed improvement: %.2fx faster\n", sequential / parallel);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
