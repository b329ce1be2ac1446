/* Download manager, the bonus challenges: a shared bandwidth limit, pause and resume, progress
 * bars, and retries.
 *   cc 06_download_manager_bonus.c -o downloads && ./downloads        (CONC_CLOCK=virtual
 *   ./downloads takes no time)
 */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    const char *name;
    double size_mb, done_mb;
} file;

static const file movie = {"movie.mp4", 500, 0}, music = {"music.mp3", 50, 0},
                  archive = {"archive.zip", 300, 0}, document = {"document.pdf", 10, 0},
                  image = {"image.jpg", 5, 0};
static double start; /* of the challenge */

static int receive(file *f, double mb)
{
    CONC_TRY(conc_sleep(mb / 100)); /* 100 MB a second */
    f->done_mb += mb;
    return 0;
}

/* 1. A bandwidth limit: 100 MB a second for all downloads together */

static conc_limiter bandwidth = {.rate = 100, .burst = 5};

static int download_limited(void *arg)
{
    file *f = arg;
    while (f->done_mb < f->size_mb) {
        CONC_TRY(conc_limiter_acquire(&bandwidth, 5)); /* who asked first gets the next 5 MB */
        CONC_TRY(receive(f, 5));
    }
    printf("%.2fs: ✓ %s downloaded\n", conc_now() - start, f->name);
    return 0;
}

static int bandwidth_limit(void)
{
    file files[] = {movie, music, document, image, archive};
    printf("=== Bandwidth Limit ===\n");
    start = conc_now();
    return CONC_MAP(download_limited, files);
}

/* 2. Pause and resume */

static conc_event paused, resumed; /* never both: a download waits for either */

static void set_paused(bool on)
{
    conc_event_clear(on ? &resumed : &paused);
    conc_event_set(on ? &paused : &resumed);
}

static int download_with_pauses(void *arg)
{
    file *f = arg;
    for (;;) {
        double begin = conc_now();
        conc_case next[] = {CONC_CASE_EVENT(&paused),
                            CONC_CASE_AFTER((f->size_mb - f->done_mb) / 100)};
        int which = CONC_TRY(conc_select(next, CONC_LEN(next)));
        f->done_mb += (conc_now() - begin) * 100;
        printf("%.1fs: %s %s at %.0f MB\n", conc_now() - start, f->name, which ? "done" : "paused",
               f->done_mb);
        if (which == 1)
            return 0;
        CONC_TRY(conc_event_wait(&resumed));
        printf("%.1fs: %s resumed at %.0f MB\n", conc_now() - start, f->name, f->done_mb);
    }
}

static int pause_and_resume(void)
{
    file f = movie;
    conc_group g = {0};
    printf("\n=== Pause and Resume ===\n");
    start = conc_now();
    CONC_TRY_IN(&g, conc_spawn(&g, download_with_pauses, &f));
    CONC_TRY_IN(&g, conc_sleep(1.5));
    set_paused(true);
    CONC_TRY_IN(&g, conc_sleep(0.5));
    set_paused(true); /* changes nothing */
    CONC_TRY_IN(&g, conc_sleep(1.5));
    set_paused(false);
    return conc_group_wait(&g);
}

/* 3. Progress bars: the downloads tell a queue, and one task prints */

static conc_queue progress = CONC_QUEUE(file, 0);

static int download_with_progress(void *arg)
{
    file *f = arg;
    while (f->done_mb < f->size_mb) {
        CONC_TRY(receive(f, f->size_mb / 4));
        CONC_TRY(conc_queue_put(&progress, f)); /* a copy of what it is now */
    }
    return 0;
}

static int progress_bars(void)
{
    file files[] = {movie, music, archive}, f;
    conc_group g = {0};
    printf("\n=== Progress Bars ===\n");
    for (size_t i = 0; i < CONC_LEN(files); i++)
        CONC_TRY_IN(&g, conc_spawn(&g, download_with_progress, &files[i]));
    for (size_t left = CONC_LEN(files); left > 0; left -= f.done_mb >= f.size_mb) {
        CONC_TRY_IN(&g, conc_queue_get(&progress, &f));
        int percent = (int)(f.done_mb * 100 / f.size_mb), bar = percent / 5;
        printf("[%.*s%*s] %3d%% %s\n", bar, "####################", 20 - bar, "", percent, f.name);
    }
    conc_queue_destroy(&progress);
    return conc_group_wait(&g);
}

/* 4. Failures and retries: each connection goes on where the last one broke */

typedef struct {
    file file;
    double ends[3]; /* MB at which each connection ends */
} unreliable;

static int fetch(file *f, double end)
{
    while (f->done_mb < end)
        CONC_TRY(receive(f, 10));
    return f->done_mb < f->size_mb ? -ECONNRESET : 0;
}

static int download_with_retries(void *arg)
{
    unreliable *u = arg;
    file *f = &u->file;
    int rc, attempt = 1;
    while ((rc = fetch(f, u->ends[attempt - 1])) == -ECONNRESET && attempt < 3) {
        printf("%s: connection lost at %.0f MB, again in %d s\n", f->name, f->done_mb, attempt);
        CONC_TRY(conc_sleep(attempt++));
    }
    printf("%s %s: %.0f of %.0f MB, attempts: %d\n", rc ? "✗" : "✓", f->name, f->done_mb,
           f->size_mb, attempt);
    return rc;
}

static int failures_and_retries(void)
{
    unreliable files[] = {{archive, {100, 250, 300}}, {music, {20, 20, 20}}};
    int results[CONC_LEN(files)];
    printf("\n=== Failures and Retries ===\n");
    /* one that fails does not cancel the other */
    return CONC_MAP_ALL(download_with_retries, files, results);
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(bandwidth_limit());
    CONC_TRY(pause_and_resume());
    CONC_TRY(progress_bars());
    return failures_and_retries();
}

int main(void) { return conc_main(app, NULL); }
