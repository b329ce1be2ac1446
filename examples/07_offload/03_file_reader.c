/* File reader. Read five large files in a pool's threads without freezing the loop: a heartbeat
   proves it every 0.5 s. Then print each file's lines and bytes.

   cc 03_file_reader.c -o reader
   ./reader
   CONC_CLOCK=virtual ./reader     # without waiting

   It prints ../expected/07_offload/03_file_reader.txt.
   Hint: fread blocks, so it belongs in a job of the pool: conc_pool_map, a thread per file. The
   heartbeat is endless: conc_group_cancel ends it when all files are read. */
#define CONC_STATIC
#include "../../conc_pool.h"

typedef struct {
    FILE *stream;
    size_t number, lines, bytes;
} file;

static int make_file(void *arg)
{
    file *f = arg;
    f->stream = tmpfile();
    if (!f->stream)
        return -errno;
    for (size_t i = 0; i < 20000 * f->number; i++)
        fprintf(f->stream, "This is line %zu\n", i);
    rewind(f->stream);
    return 0;
}

/* Your turn: read the file's stream in pieces of 65,536 bytes (fread), count its bytes and lines;
   after each piece block for 0.1 s, like a slow disk. An error is passed on. */
static int read_file(void *arg)
{
    file *f = arg;
    char piece[65536];
    size_t n;
    while ((n = fread(piece, 1, sizeof piece, f->stream)) > 0) {
        f->bytes += n;
        for (size_t i = 0; i < n; i++)
            f->lines += piece[i] == '\n';
        CONC_TRY(conc_block(0.1));
    }
    return ferror(f->stream) ? -EIO : 0;
}

static int heartbeat(void *arg)
{
    (void)arg;
    for (;; printf("heartbeat\n"))
        CONC_TRY(conc_sleep(0.5)); /* returns from here when the task is cancelled */
}

/* Your turn: read all files at once, in a pool of five threads, while heartbeat runs as a task. */
static int read_all(file *files, size_t count)
{
    conc_group g = {0};
    CONC_AUTO(conc_pool, pool) = {.threads = 5};
    CONC_TRY(conc_pool_open(&pool));
    CONC_TRY_IN(&g, conc_spawn(&g, heartbeat, NULL));
    CONC_TRY_IN(&g, conc_pool_map(&pool, read_file, files, count, sizeof *files));
    conc_group_cancel(&g);
    return conc_group_end(&g, 0);
}

static int app(void *arg)
{
    (void)arg;
    file files[5] = {{.number = 1}, {.number = 2}, {.number = 3}, {.number = 4}, {.number = 5}};
    for (int i = 0; i < 5; i++)
        CONC_TRY(conc_offload(make_file, &files[i]));
    CONC_TRY(read_all(files, 5));
    for (int i = 0; i < 5; i++) {
        printf("%zu lines, %zu bytes in file %d\n", files[i].lines, files[i].bytes, i + 1);
        fclose(files[i].stream);
    }
    return 0;
}

int main(void) { return conc_main(app, NULL); }
