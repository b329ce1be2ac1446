/* Download manager, failures and retries. A connection breaks after some MB. Use up to three
   connections per file, and resume where the last one broke: wait 1 s before the second, 2 s before
   the third. If one file fails, the other continues.

   cc 17_download_retries_bonus.c -o downloads
   ./downloads
   CONC_CLOCK=virtual ./downloads     # without waiting

   It prints ../expected/02_tasks/17_download_retries_bonus.txt.
   Hint: fetch returns -ECONNRESET if the connection broke, 0 if the file is complete. */
#define CONC_STATIC
#include "../../conc.h"

typedef struct {
    const char *name;
    int size_mb, done_mb;
    int breaks_at[3]; /* MB that are there when each connection ends */
} file;

static int fetch(file *f, int connection)
{
    CONC_TRY(conc_sleep((f->breaks_at[connection] - f->done_mb) / 100.0));
    f->done_mb = f->breaks_at[connection];
    return f->done_mb < f->size_mb ? -ECONNRESET : 0;
}

/* Your turn: fetch the file with up to three connections (0, 1 and 2). When one breaks and another
   follows, print "music.mp3: connection lost at 20 MB, again in 1 s", and wait. In the end print
   "✓ archive.zip: 300 of 300 MB", or "✗ music.mp3: 20 of 50 MB". */
static int download(void *arg)
{
    file *f = arg;
    int connection = 0, rc = fetch(f, 0);
    while (rc == -ECONNRESET && connection < 2) {
        connection++;
        printf("%s: connection lost at %d MB, again in %d s\n", f->name, f->done_mb, connection);
        CONC_TRY(conc_sleep(connection));
        rc = fetch(f, connection);
    }
    printf("%s %s: %d of %d MB\n", rc == 0 ? "✓" : "✗", f->name, f->done_mb, f->size_mb);
    return rc;
}

static int app(void *arg)
{
    (void)arg;
    file files[] = {{"archive.zip", 300, 0, {100, 250, 300}}, {"music.mp3", 50, 0, {20, 20, 20}}};
    int results[CONC_LEN(files)];
    return CONC_MAP_ALL(download, files, results);
}

int main(void) { return conc_main(app, NULL); }
