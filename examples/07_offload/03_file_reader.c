/* File reader: five large files are read by the threads of a pool, and the loop goes on. Every
 * piece is reported to a task through a channel with one place, so no file can be finished
 * unless that task runs, too.
 *   cc 03_file_reader.c -o reader && ./reader        makes five files, reads and removes them
 *   ./reader *.c                                     lines and bytes of these, as wc -lc has them
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *path;
    size_t lines, bytes;
} file;

static conc_channel pieces = CONC_CHANNEL(size_t, 1);

static int read_file(void *arg) /* in a thread: it may block */
{
    file *f = arg;
    char piece[65536];
    size_t n;
    int rc = 0;
    FILE *in = fopen(f->path, "rb");
    if (!in)
        return conc_fail(-errno, "%s: %s", f->path, conc_strerror(-errno));
    while (rc >= 0 && (n = fread(piece, 1, sizeof piece, in)) > 0) {
        f->bytes += n;
        for (const char *p = piece; (p = memchr(p, '\n', n - (size_t)(p - piece))); p++)
            f->lines++;
        rc = conc_channel_send(&pieces, &n); /* blocks this thread until there is a place */
    }
    if (ferror(in))
        rc = conc_fail(-EIO, "%s: cannot be read", f->path);
    fclose(in);
    /* Ctrl+C: nobody receives any more, or will want the counts */
    return conc_job_cancelled() ? -ECANCELED : rc;
}

static int heartbeat(void *arg) /* on the loop */
{
    (void)arg;
    size_t n, bytes = 0;
    int rc, beats = 0;
    while ((rc = conc_channel_recv(&pieces, &n)) >= 0) {
        bytes += n;
        for (; bytes >= (size_t)(beats + 1) << 20; beats++)
            printf("heartbeat: %d MiB read\n", beats + 1);
    }
    conc_channel_close(&pieces);  /* after a cancel no thread is to wait for this task */
    return rc == -EPIPE ? 0 : rc; /* it was closed: all files are read */
}

static int read_all(file *files, size_t count)
{
    conc_group g = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 5};
    CONC_TRY(conc_pool_open(&pool));
    CONC_TRY_IN(&g, conc_spawn(&g, heartbeat, NULL));
    CONC_TRY_IN(&g, conc_pool_map(&pool, read_file, files, count, sizeof *files));
    conc_channel_close(&pieces);
    CONC_TRY(conc_group_wait(&g));
    for (size_t i = 0; i < count; i++)
        printf("%zu %zu %s\n", files[i].lines, files[i].bytes, files[i].path);
    return 0;
}

static int make_file(void *arg)
{
    file *f = arg;
    size_t size = 0;
    char *text = malloc(1 << 20);
    if (!text)
        return -ENOMEM;
    for (int i = 0; size < (1 << 20) - 100; i++)
        size += (size_t)sprintf(text + size, "%s, line %d\n", f->path, i);
    int rc = conc_file_write(f->path, text, size);
    free(text);
    return rc;
}

static int demonstrate(void)
{
    file files[] = {{"1.txt", 0, 0},
                    {"22.txt", 0, 0},
                    {"333.txt", 0, 0},
                    {"4444.txt", 0, 0},
                    {"55555.txt", 0, 0}};
    char folder[] = "/tmp/file_reader_XXXXXX";
    if (!mkdtemp(folder) || chdir(folder) < 0)
        return -errno;
    int rc = CONC_MAP(make_file, files);
    if (rc == 0)
        rc = read_all(files, CONC_LEN(files));
    for (size_t i = 0; i < CONC_LEN(files); i++)
        unlink(files[i].path);
    rmdir(folder);
    return rc;
}

static int read_these(char **paths, size_t count)
{
    file files[count];
    for (size_t i = 0; i < count; i++)
        files[i] = (file){.path = paths[i]};
    return read_all(files, count);
}

static int app(void *arg)
{
    char **paths = arg;
    size_t count = 0;
    while (paths[count])
        count++;
    int rc = count ? read_these(paths, count) : demonstrate();
    conc_channel_destroy(&pieces);
    return rc;
}

int main(int argc, char **argv) { return conc_main(app, argc > 0 ? argv + 1 : argv); }
