/* checkpoint.h - line files that change together with an SQLite database
 *
 *     CONC_AUTO(checkpoint, c) = {.db = &db, .files = {"results/goods.jsonl"}};
 *     CONC_TRY(checkpoint_open(&c));
 *     CONC_TRY(checkpoint_get(&c, "shop.csv", &position)); // where to continue
 *     ...
 *     static int insert(void *arg) // the statements of the transaction
 *     {
 *         CONC_TRY(sqlite_exec(&db, "INSERT INTO goods VALUES (?)", sqlite_text("tea")));
 *         return checkpoint_set(&c, "shop.csv", position);
 *     }
 *     checkpoint_part part = {.file = 0, .data = line, .size = strlen(line)};
 *     CONC_TRY(checkpoint_commit(&c, &part, 1, insert, NULL));
 *
 * A table of the database, "checkpoints", holds the positions and the sizes of the files. They
 * change in the same transaction as the other tables, which commits only once the files are on
 * disk. So everything takes effect at the COMMIT. If a run ends before it, by SIGKILL or a full
 * disk, it leaves at worst bytes beyond the checkpoint, which checkpoint_open cuts off. If a power
 * failure undoes the latest commits, it also undoes their checkpoints.
 *
 * The files are locked: a second run gets -EBUSY. All calls wait. Errors have texts. Include
 * conc_pool.h, conc_sync.h and sqlite.h before; open the database first, and close it last. */
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#ifndef CONC_SQLITE_H
#error "checkpoint.h: include conc_pool.h, conc_sync.h and sqlite.h first"
#endif

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>

enum { CHECKPOINT_FILES = 4 };

typedef struct checkpoint {
    sqlite_db *db;
    const char *files[CHECKPOINT_FILES]; /* paths, up to the first NULL; their last parts are the
                                            names */
    double slow;                         /* seconds to delay each write to the files: for tests */
    /* to read */
    bool is_new; /* there was no checkpoint */
    int64_t cut; /* bytes that were cut off */
    /* private */
    int fds[CHECKPOINT_FILES], opened;
    int64_t sizes[CHECKPOINT_FILES]; /* up to the checkpoint */
} checkpoint;

/* Bytes for one of the files. */
typedef struct checkpoint_part {
    int file;
    const char *data;
    size_t size;
} checkpoint_part;

/* Opens the files and truncates them to the checkpoint. -EEXIST: there is no checkpoint, but a file
 * is not empty; -ESTALE: a file is shorter than its checkpoint. */
static inline int checkpoint_open(checkpoint *c);

/* Appends the parts in order while it calls fn(arg) in a transaction, and commits. After an error
 * the database is unchanged; call checkpoint_recover to truncate the files. */
static inline int checkpoint_commit(checkpoint *c, const checkpoint_part *parts, int count,
                                    conc_fn *fn, void *arg);
static inline int checkpoint_recover(void *c);

/* Reads the position set for this name; leaves *position unchanged if there is none. */
static inline int checkpoint_get(checkpoint *c, const char *name, int64_t *position);
static inline int checkpoint_set(checkpoint *c, const char *name, int64_t position);

static inline int checkpoint_close(checkpoint *c);
CONC_AUTO_TYPE(checkpoint, checkpoint_close);

/* ---- implementation ------------------------------------------------------------------------- */

static inline const char *checkpoint__name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static inline int checkpoint__fail(const checkpoint *c, int i)
{
    return conc_fail(-errno, "%s: %s", c->files[i], conc_strerror(-errno));
}

static inline int checkpoint_get(checkpoint *c, const char *name, int64_t *position)
{
    int rc = sqlite_number(c->db, position, "SELECT position FROM checkpoints WHERE name = ?",
                           sqlite_text(name));
    return rc == -ENOENT ? 0 : rc;
}

static inline int checkpoint_set(checkpoint *c, const char *name, int64_t position)
{
    return sqlite_exec(c->db, "INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", sqlite_text(name),
                       sqlite_int(position));
}

/* ---- opening and recovery */

static inline int checkpoint__open_files(void *arg) /* in a thread */
{
    checkpoint *c = arg;
    for (int i = 0; i < CHECKPOINT_FILES && c->files[i]; i++) {
        c->fds[i] = open(c->files[i], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        if (c->fds[i] < 0)
            return checkpoint__fail(c, i);
        c->opened++;
        if (flock(c->fds[i], LOCK_EX | LOCK_NB) != 0)
            return conc_fail(-EBUSY, "%s: another run is writing to it", c->files[i]);
    }
    return 0;
}

static inline int checkpoint__cut_files(void *arg) /* in a thread */
{
    checkpoint *c = arg;
    struct stat st;
    for (int i = 0; i < c->opened; i++) {
        if (fstat(c->fds[i], &st) != 0)
            return checkpoint__fail(c, i);
        if (c->is_new && st.st_size > 0)
            return conc_fail(-EEXIST, "%s is not empty, and has no checkpoint", c->files[i]);
        if (st.st_size < c->sizes[i])
            return conc_fail(-ESTALE, "%s is shorter than its checkpoint says", c->files[i]);
        if (ftruncate(c->fds[i], c->sizes[i]) != 0)
            return checkpoint__fail(c, i);
        c->cut += st.st_size - c->sizes[i];
    }
    return 0;
}

static inline int checkpoint_recover(void *arg)
{
    checkpoint *c = arg;
    int64_t rows = 0;
    CONC_TRY(sqlite_number(c->db, &rows, "SELECT count(*) FROM checkpoints"));
    c->is_new = rows == 0;
    for (int i = 0; i < c->opened; i++)
        CONC_TRY(checkpoint_get(c, checkpoint__name(c->files[i]), &c->sizes[i]));
    CONC_TRY(conc_offload(checkpoint__cut_files, c));
    for (int i = 0; i < c->opened && c->is_new; i++) /* before the first byte */
        CONC_TRY(checkpoint_set(c, checkpoint__name(c->files[i]), 0));
    return 0;
}

static inline int checkpoint_open(checkpoint *c)
{
    CONC_TRY(sqlite_exec(c->db, "CREATE TABLE IF NOT EXISTS checkpoints (name TEXT PRIMARY KEY, "
                                "position INTEGER)"));
    CONC_TRY(conc_offload(checkpoint__open_files, c));
    return checkpoint_recover(c);
}

static inline int checkpoint_close(checkpoint *c)
{
    while (c->opened > 0)
        close(c->fds[--c->opened]);
    return 0;
}

/* ---- committing */

typedef struct checkpoint__commit {
    checkpoint *of;
    const checkpoint_part *parts;
    int count;
    conc_fn *fn;
    void *arg;
    int64_t sizes[CHECKPOINT_FILES]; /* afterwards */
} checkpoint__commit;

static inline int checkpoint__write(const checkpoint *c, const checkpoint_part *part)
{
    for (size_t done = 0; done < part->size;) {
        ssize_t n = write(c->fds[part->file], part->data + done, part->size - done);
        if (n < 0 && errno != EINTR)
            return checkpoint__fail(c, part->file);
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static inline int checkpoint__write_parts(void *arg) /* in a thread */
{
    const checkpoint__commit *m = arg;
    for (int i = 0; i < m->count; i++)
        CONC_TRY(checkpoint__write(m->of, &m->parts[i]));
    for (int i = 0; i < m->of->opened; i++)
        if (fdatasync(m->of->fds[i]) != 0)
            return checkpoint__fail(m->of, i);
    return conc_block(m->of->slow);
}

static inline int checkpoint__offload(void *m) { return conc_offload(checkpoint__write_parts, m); }

static inline int checkpoint__write_both(void *arg) /* in a transaction */
{
    checkpoint__commit *m = arg;
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, checkpoint__offload, m));
    CONC_TRY_IN(&g, m->fn(m->arg));
    for (int i = 0; i < m->of->opened; i++)
        CONC_TRY_IN(&g, checkpoint_set(m->of, checkpoint__name(m->of->files[i]), m->sizes[i]));
    return conc_group_wait(&g);
}

static inline int checkpoint_commit(checkpoint *c, const checkpoint_part *parts, int count,
                                    conc_fn *fn, void *arg)
{
    checkpoint__commit m = {.of = c, .parts = parts, .count = count, .fn = fn, .arg = arg};
    memcpy(m.sizes, c->sizes, sizeof m.sizes);
    for (int i = 0; i < count; i++)
        m.sizes[parts[i].file] += (int64_t)parts[i].size;
    CONC_TRY(sqlite_transaction(c->db, checkpoint__write_both, &m));
    memcpy(c->sizes, m.sizes, sizeof m.sizes);
    return 0;
}

#endif
