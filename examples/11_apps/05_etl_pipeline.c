/* ETL pipeline. It reads payments from CSV files, a table of SQLite and a TCP feed, all at once,
   checks and converts them in threads, and writes them to SQLite and to a file of JSON lines. The
   queues between the stages are bounded: a slow destination makes the sources pause. Kill it at any
   moment and start it again: each payment reaches both destinations exactly once.

   cc 05_etl_pipeline.c -o etl -lsqlite3 -lcjson
   ./etl                                    # makes its own sources; is killed three times
   ./etl --goal                             # 100,000 payments
   ./etl --make in 10010                    # writes in/shop-1.csv, in/shop-2.csv, in/orders.db
   ./etl --feed 127.0.0.1:7000 10010 &      # serves as many; ends when it is killed
   ./etl in/shop-1.csv in/shop-2.csv db=in/orders.db feed=127.0.0.1:7000 out=results
   head -2 results/payments.jsonl results/rejects.jsonl

   Options: out=FOLDER (results), threads=N (one per processor), health=SECONDS between two lines
   about its health (1; 0: none), timeout=SECONDS without a record from the feed (5). To see the
   stages wait for each other: slow=SECONDS delays each write to the JSON lines, work=SECONDS each
   batch in a thread. Bad records go to rejects.jsonl, with the reason. It runs on the real clock:
   on the virtual one other processes have no time to answer.

   Sources. A CSV file begins with the line id,customer,amount,currency,time; a record is a line,
   and fields may be quoted. The table is payments(id INTEGER PRIMARY KEY, customer, amount,
   currency, time). Both may grow at their end between two runs. The feed has to be able to resume:
   the client asks for a position with "FROM 17\n", and the feed sends the records from number 17
   on (the first is 0), each a JSON object on a line, and "END\n" after the last. If the connection
   ends before that, the client connects again, and asks for the first record it does not have. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/sqlite.h"
#include <cjson/cJSON.h>
#include <fcntl.h>
#include <locale.h>
#include <math.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <wchar.h>

enum {
    BATCH = 500,       /* records that travel together */
    BOUND = 8,         /* batches in a queue */
    LINE_LIMIT = 4096, /* bytes */
    EXCERPT = 200,     /* bytes that are kept of a bad line */
    JSON_LIMIT = 8192, /* bytes of a line that is written; names of files are escaped, too */
    ATTEMPTS = 5       /* in a row to get a record from the feed */
};

static struct {
    double slow, work, health, timeout, threads;
    const char *out;
    bool is_child; /* of this program: it ends when its parent does */
} options = {.health = 1, .timeout = 5};

typedef struct {
    char *data;
    size_t size, room;
} buffer;

/* A line as it was read, in its batch's text. */
typedef struct {
    int64_t position;
    size_t start, size;
} record;

typedef struct {
    int64_t position, id, cents, time; /* cents of a euro; seconds since 1970 */
    char customer[64], currency[4];
} payment;

/* The fields of a record before they are checked. The texts are in `line` or belong to `json`. */
typedef struct {
    double id, amount;                      /* NAN: there is none */
    const char *customer, *currency, *time; /* NULL: there is none */
    cJSON *json;
    char line[LINE_LIMIT + 1];
} draft;

typedef struct source {
    const char *name;                                 /* of its checkpoint */
    const char *where;                                /* a path or an address */
    int (*extract)(struct source *s);                 /* reads from .position to the end */
    const char *(*parse)(const char *line, draft *d); /* NULL, or what is wrong */
    struct pipeline *of;
    int64_t position;         /* CSV: a byte; SQLite: the last id; feed: the next record's number */
    int64_t loaded, rejected; /* of all runs */
    int64_t read;             /* of this run */
    double paused, silence;   /* seconds */
    int retries;
    bool is_paused, is_reading, at_end, in_long_line;
    char beginning[EXCERPT]; /* of the long line */
    FILE *file;
    sqlite_db *db;
    conc_stream *stream;
} source;

enum { LINES, REJECTS, FILES }; /* what is written beside the database */

/* Records of one source, in their order. It is filled, transformed, loaded, and filled again. */
typedef struct batch {
    source *from;
    int64_t next; /* the source's position after it */
    int count, good;
    record records[BATCH];
    buffer text;
    conc_job job; /* the transformation, and what comes of it */
    double seconds;
    payment payments[BATCH];
    buffer output[FILES];
} batch;

typedef struct {
    const char *name;
    char path[512];
    int fd;
    int64_t size, cut; /* size: up to the checkpoint, -1: there is none; cut: bytes behind it */
} output;

static const char *const file_names[FILES] = {"payments.jsonl", "rejects.jsonl"};

typedef struct pipeline {
    source *sources;
    batch *batches;
    int count, batch_count;                  /* of sources, of batches */
    conc_queue idle, extracted, transformed; /* of pointers to batches */
    conc_pool pool;
    sqlite_db db;
    output files[FILES];
    /* figures */
    size_t most_extracted, most_transformed;
    atomic_int working, most_working; /* threads that transform just now */
    double transforming, loading;     /* seconds */
    int commits, failed;              /* failed: sources */
    int64_t loaded, rejected;         /* of this run */
} pipeline;

static char *buffer_room(buffer *b, size_t size);

/* ---- load: two destinations and one checkpoint ----------------------------------------------
 *
 * The checkpoint is a table in the database. It says how far each source has been read, and how
 * long each file was then. It changes in the same transaction that inserts the payments, and that
 * transaction commits only when the files are on disk. So a batch counts from one moment on: the
 * COMMIT. A run that ends before it leaves, at worst, lines behind the checkpoint, and the next run
 * cuts them off and reads the same records again. If a power failure undoes the latest commits, it
 * takes their checkpoints back with them. */

typedef struct {
    pipeline *of;
    batch *batches[BOUND];
    int count;
} commit;

static int write_all(const output *f, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(f->fd, data, size);
        if (n < 0 && errno != EINTR)
            return conc_fail(-errno, "%s: %s", f->path, conc_strerror(-errno));
        data += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static int write_files(void *arg) /* in a thread */
{
    commit *c = arg;
    for (int i = 0; i < FILES; i++) {
        const output *f = &c->of->files[i];
        for (int k = 0; k < c->count; k++) {
            const buffer *b = &c->batches[k]->output[i];
            CONC_TRY(write_all(f, b->data, b->size));
        }
        if (fdatasync(f->fd) != 0)
            return conc_fail(-errno, "%s: %s", f->path, conc_strerror(-errno));
    }
    return conc_block(options.slow);
}

static int write_destination(void *arg) { return conc_offload(write_files, arg); }

static int insert_payments(sqlite3_stmt *s, const batch *b)
{
    int code = sqlite3_bind_text(s, 1, b->from->name, -1, SQLITE_STATIC);
    for (const payment *p = b->payments; p < b->payments + b->good && code == SQLITE_OK; p++) {
        sqlite3_bind_int64(s, 2, p->position);
        sqlite3_bind_int64(s, 3, p->id);
        sqlite3_bind_text(s, 4, p->customer, -1, SQLITE_STATIC);
        sqlite3_bind_int64(s, 5, p->cents);
        sqlite3_bind_text(s, 6, p->currency, -1, SQLITE_STATIC);
        sqlite3_bind_int64(s, 7, p->time);
        sqlite3_step(s);
        code = sqlite3_reset(s);
    }
    return code;
}

static int insert(sqlite3 *db, void *arg) /* in a thread */
{
    commit *c = arg;
    sqlite3_stmt *s = NULL;
    int code =
        sqlite3_prepare_v2(db, "INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?)", -1, &s, NULL);
    for (int i = 0; i < c->count && code == SQLITE_OK; i++)
        code = insert_payments(s, c->batches[i]);
    sqlite3_finalize(s);
    return code;
}

static int set_checkpoint(pipeline *p, const char *name, int64_t position, const batch *b)
{
    static const char sql[] = "INSERT INTO checkpoints VALUES (?, ?, ?, ?) ON CONFLICT (name) DO "
                              "UPDATE SET position = excluded.position, loaded = loaded + "
                              "excluded.loaded, rejected = rejected + excluded.rejected";
    int good = b ? b->good : 0;
    int bad = b ? b->count - b->good : 0;
    return sqlite_exec(&p->db, sql, sqlite_text(name), sqlite_int(position), sqlite_int(good),
                       sqlite_int(bad));
}

static int set_checkpoints(const commit *c)
{
    for (int i = 0; i < c->count; i++)
        CONC_TRY(
            set_checkpoint(c->of, c->batches[i]->from->name, c->batches[i]->next, c->batches[i]));
    for (int i = 0; i < FILES; i++) {
        int64_t size = c->of->files[i].size;
        for (int k = 0; k < c->count; k++)
            size += (int64_t)c->batches[k]->output[i].size;
        CONC_TRY(set_checkpoint(c->of, c->of->files[i].name, size, NULL));
    }
    return 0;
}

static int write_both(void *arg) /* in a transaction: COMMIT comes after it */
{
    commit *c = arg;
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, write_destination, c));
    CONC_TRY_IN(&g, sqlite_call(&c->of->db, insert, c));
    CONC_TRY_IN(&g, set_checkpoints(c));
    return conc_group_wait(&g);
}

static int load_batches(commit *c)
{
    pipeline *p = c->of;
    int rc;
    for (int i = 0; i < c->count; i++) {
        CONC_TRY(conc_job_wait(&c->batches[i]->job, &rc));
        CONC_TRY(rc);
    }
    double start = conc_now();
    CONC_TRY(sqlite_transaction(&p->db, write_both, c));
    p->loading += conc_now() - start;
    p->commits++;
    for (int i = 0; i < c->count; i++) {
        batch *b = c->batches[i];
        p->loaded += b->good;
        p->rejected += b->count - b->good;
        b->from->loaded += b->good;
        b->from->rejected += b->count - b->good;
        p->transforming += b->seconds;
        for (int k = 0; k < FILES; k++)
            p->files[k].size += (int64_t)b->output[k].size;
        CONC_TRY(conc_queue_try_put(&p->idle, &b));
    }
    return 0;
}

/* All batches that are ready share a commit: the slower commits are, the more each one does. */
static int load(void *arg)
{
    pipeline *p = arg;
    commit c = {.of = p};
    int rc;
    while ((rc = conc_queue_get(&p->transformed, &c.batches[0])) == 0) {
        c.count = 1;
        while (c.count < BOUND && conc_queue_try_get(&p->transformed, &c.batches[c.count]) == 0)
            c.count++;
        CONC_TRY(load_batches(&c));
    }
    return rc == -EPIPE ? 0 : rc;
}

/* ---- recovery: back to the checkpoint ------------------------------------------------------- */

static int open_file(void *arg) /* in a thread */
{
    output *f = arg;
    struct stat st;
    f->fd = open(f->path, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0666);
    if (f->fd < 0 || fstat(f->fd, &st) != 0)
        return conc_fail(-errno, "%s: %s", f->path, conc_strerror(-errno));
    if (!S_ISREG(st.st_mode))
        return conc_fail(-EINVAL, "%s is not a regular file", f->path);
    if (flock(f->fd, LOCK_EX | LOCK_NB) != 0)
        return conc_fail(-EBUSY, "%s: another run is writing to it", f->path);
    return 0;
}

static int cut_file(void *arg) /* in a thread */
{
    output *f = arg;
    struct stat st;
    if (fstat(f->fd, &st) != 0)
        return -errno;
    if (f->size < 0 && st.st_size > 0)
        return conc_fail(-EEXIST, "%s is not empty, and has no checkpoint", f->path);
    if (st.st_size < f->size)
        return conc_fail(-ESTALE, "%s is shorter than its checkpoint says", f->path);
    f->size = f->size < 0 ? 0 : f->size;
    f->cut = st.st_size - f->size;
    if (ftruncate(f->fd, f->size) != 0 || lseek(f->fd, f->size, SEEK_SET) < 0)
        return conc_fail(-errno, "%s: %s", f->path, conc_strerror(-errno));
    return 0;
}

static void set_position(pipeline *p, const sqlite_value *row)
{
    for (int i = 0; i < FILES; i++)
        if (strcmp(row[0].text, p->files[i].name) == 0)
            p->files[i].size = row[1].integer;
    for (source *s = p->sources; s < p->sources + p->count; s++)
        if (strcmp(row[0].text, s->name) == 0) {
            s->position = row[1].integer;
            s->loaded = row[2].integer;
            s->rejected = row[3].integer;
        }
}

/* Goes back to the checkpoint: before a run, and after one that failed. */
static int recover(void *arg)
{
    pipeline *p = arg;
    CONC_AUTO(sqlite_rows, rows) = {0};
    CONC_TRY(sqlite_query(&p->db, &rows, "SELECT * FROM checkpoints"));
    while (CONC_TRY(sqlite_next(&rows)))
        set_position(p, rows.row);
    for (int i = 0; i < FILES; i++) {
        output *f = &p->files[i];
        bool is_new = f->size < 0;
        CONC_TRY(conc_offload(cut_file, f));
        if (is_new)
            CONC_TRY(set_checkpoint(p, f->name, 0, NULL)); /* before the first byte */
    }
    return 0;
}

static int open_destinations(pipeline *p)
{
    static const char tables[] =
        "CREATE TABLE IF NOT EXISTS payments (source TEXT, position INTEGER, id INTEGER, customer "
        "TEXT, cents INTEGER, currency TEXT, time INTEGER, PRIMARY KEY (source, position)) "
        "WITHOUT ROWID; CREATE TABLE IF NOT EXISTS checkpoints (name TEXT PRIMARY KEY, position "
        "INTEGER, loaded INTEGER, rejected INTEGER)";
    char path[512];
    if (mkdir(options.out, 0777) != 0 && errno != EEXIST)
        return conc_fail(-errno, "%s: %s", options.out, conc_strerror(-errno));
    for (int i = 0; i < FILES; i++) {
        p->files[i] = (output){.name = file_names[i], .fd = -1, .size = -1};
        snprintf(p->files[i].path, sizeof path, "%s/%s", options.out, file_names[i]);
        CONC_TRY(conc_offload(open_file, &p->files[i]));
    }
    snprintf(path, sizeof path, "%s/payments.db", options.out);
    p->db = (sqlite_db){.wal = true, .synchronous = "NORMAL"};
    CONC_TRY(sqlite_open(&p->db, path));
    CONC_TRY(sqlite_exec(&p->db, tables));
    return recover(p);
}

/* ---- extract: any source -------------------------------------------------------------------- */

static int batch_add(batch *b, int64_t position, const char *text, size_t size)
{
    size_t kept = size > LINE_LIMIT ? EXCERPT : size;
    char *room = buffer_room(&b->text, kept + 1);
    if (!room)
        return -ENOMEM;
    memcpy(room, text, kept);
    room[kept] = 0;
    b->records[b->count++] = (record){position, b->text.size, size};
    b->text.size += kept + 1;
    return 0;
}

/* Backpressure: while the queue is full, the put waits, and the source reads nothing. Files and
 * databases do not mind. The feed's bytes fill the buffers of its socket, and then its sender waits
 * too. */
static int hand_over(batch *b)
{
    source *s = b->from;
    pipeline *p = s->of;
    double start = conc_now();
    if (b->count == 0)
        return conc_queue_try_put(&p->idle, &b);
    b->next = s->position;
    s->read += b->count;
    s->is_paused = conc_queue_len(&p->extracted) == BOUND;
    int rc = conc_queue_put(&p->extracted, &b);
    s->is_paused = false;
    s->paused += conc_now() - start;
    if (conc_queue_len(&p->extracted) > p->most_extracted)
        p->most_extracted = conc_queue_len(&p->extracted);
    return rc;
}

/* fill(batch) reads records until the batch is full, or sets at_end. Records that it reads before
 * an error count. */
static int extract(source *s, conc_fn *fill)
{
    s->is_reading = true;
    while (!s->at_end) {
        batch *b;
        CONC_TRY(conc_queue_get(&s->of->idle, &b));
        b->from = s;
        b->count = 0;
        b->text.size = 0;
        int rc = fill(b);
        CONC_TRY(hand_over(b));
        CONC_TRY(rc);
    }
    return 0;
}

static int extract_source(void *arg)
{
    source *s = arg;
    int rc = s->extract(s);
    s->is_reading = false;
    if (rc >= 0 || rc == -ECANCELED)
        return rc;
    s->of->failed++;
    fprintf(stderr, "etl: %s: %s; the other sources go on\n", s->name, conc_last_error());
    return 0;
}

static int extract_all(void *arg)
{
    pipeline *p = arg;
    int rc = conc_map_all(extract_source, p->sources, (size_t)p->count, sizeof *p->sources, NULL);
    conc_queue_close(&p->extracted);
    return rc;
}

/* ---- extract: each kind of source ----------------------------------------------------------- */

static int read_csv(void *arg) /* in a thread: the disk may be slow */
{
    batch *b = arg;
    source *s = b->from;
    char line[LINE_LIMIT + 1];
    while (b->count < BATCH && !s->at_end) {
        int64_t start = s->position;
        size_t size = 0;
        int c;
        while ((c = getc_unlocked(s->file)) != EOF && c != '\n') {
            if (size < sizeof line)
                line[size] = (char)c;
            size++;
        }
        s->position += (int64_t)size + (c == '\n');
        s->at_end = c == EOF;
        if (size > 0 && size <= LINE_LIMIT && line[size - 1] == '\r')
            size--;
        if (size > 0) /* empty lines are skipped */
            CONC_TRY(batch_add(b, start, line, size));
    }
    return ferror(s->file) ? conc_fail(-EIO, "%s cannot be read", s->where) : 0;
}

static int fill_from_csv(void *b) { return conc_offload(read_csv, b); }

static int open_csv(void *arg) /* in a thread */
{
    static const char header[] = "id,customer,amount,currency,time";
    source *s = arg;
    struct stat st;
    char line[sizeof header + 4] = "";
    if (stat(s->where, &st) != 0)
        return conc_fail(-errno, "%s: %s", s->where, conc_strerror(-errno));
    if (!S_ISREG(st.st_mode)) /* a FIFO would block */
        return conc_fail(-EINVAL, "%s is not a regular file", s->where);
    s->file = fopen(s->where, "re");
    if (!s->file)
        return conc_fail(-errno, "%s: %s", s->where, conc_strerror(-errno));
    if (s->position > st.st_size)
        return conc_fail(-ESTALE, "%s is shorter than what was read of it", s->where);
    if (s->position > 0)
        return fseeko(s->file, (off_t)s->position, SEEK_SET) == 0 ? 0 : -errno;
    if (!fgets(line, sizeof line, s->file) || strncmp(line, header, strlen(header)) != 0)
        return conc_fail(-EPROTO, "%s: the first line is not %s", s->where, header);
    s->position = (int64_t)strlen(line);
    return 0;
}

static int extract_csv(source *s)
{
    int rc = conc_offload(open_csv, s);
    if (rc >= 0)
        rc = extract(s, fill_from_csv);
    if (s->file)
        fclose(s->file);
    s->file = NULL;
    return rc;
}

/* A column of SQLite may hold anything: each row becomes a line of JSON, which is then checked like
 * any other. */
static int fill_from_sqlite(void *arg)
{
    static const char page[] =
        "SELECT id, json_object('id', id, 'customer', substr(CAST(customer AS TEXT), 1, ?1), "
        "'amount', iif(typeof(amount) IN ('integer', 'real'), amount, "
        "substr(CAST(amount AS TEXT), 1, ?1)), 'currency', substr(CAST(currency AS TEXT), 1, ?1), "
        "'time', substr(CAST(time AS TEXT), 1, ?1)) FROM payments WHERE id > ?2 ORDER BY id "
        "LIMIT ?3";
    batch *b = arg;
    source *s = b->from;
    CONC_AUTO(sqlite_rows, rows) = {0};
    CONC_TRY(sqlite_query(s->db, &rows, page, sqlite_int(LINE_LIMIT), sqlite_int(s->position),
                          sqlite_int(BATCH)));
    s->at_end = rows.count < BATCH;
    while (CONC_TRY(sqlite_next(&rows))) {
        CONC_TRY(batch_add(b, rows.row[0].integer, rows.row[1].text, rows.row[1].size));
        s->position = rows.row[0].integer;
    }
    return 0;
}

static int extract_sqlite(source *s)
{
    CONC_AUTO(sqlite_db, db) = {.read_only = true};
    s->db = &db;
    CONC_TRY(sqlite_open(&db, s->where));
    return extract(s, fill_from_sqlite);
}

static int read_feed(void *arg)
{
    batch *b = arg;
    source *s = b->from;
    char *line, part[LINE_LIMIT];
    while (b->count < BATCH && !s->at_end) {
        ssize_t n = conc_stream_read_until(s->stream, "\n", 1, &line);
        if (n == -EMSGSIZE) { /* drop this part, but keep the beginning of the line */
            CONC_TRY(conc_stream_read_full(s->stream, part, sizeof part));
            if (!s->in_long_line)
                memcpy(s->beginning, part, EXCERPT);
            s->in_long_line = true;
            continue;
        }
        if (CONC_TRY(n) == 0 || line[n - 1] != '\n') /* half a line does not count */
            return conc_fail(-ECONNRESET, "%s: the connection ended", s->where);
        if (s->in_long_line)
            CONC_TRY(batch_add(b, s->position++, s->beginning, LINE_LIMIT + 1));
        else if (strcmp(line, "END\n") == 0)
            s->at_end = true;
        else
            CONC_TRY(batch_add(b, s->position++, line, (size_t)n - 1));
        s->in_long_line = false;
    }
    return 0;
}

/* A record waits at most 0.1 s for its batch to fill up. */
static int fill_from_feed(void *arg)
{
    batch *b = arg;
    source *s = b->from;
    double start = conc_now();
    int rc = conc_timeout(0.1, read_feed, b);
    s->silence = b->count ? 0 : s->silence + conc_now() - start;
    if (rc != -ETIMEDOUT)
        return rc;
    if (s->silence < options.timeout)
        return 0;
    return conc_fail(-ETIMEDOUT, "%s: no record for %g s", s->where, options.timeout);
}

static int dial(void *arg)
{
    source *s = arg;
    const int room = 65536; /* the kernel's buffer is a queue too: bound it */
    int fd = CONC_TRY(conc_dial(s->where));
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    return fd;
}

static int follow_feed(source *s)
{
    CONC_AUTO(conc_stream, stream) = {.limit = LINE_LIMIT};
    int fd = conc_timeout(options.timeout, dial, s);
    if (fd == -ETIMEDOUT)
        return conc_fail(fd, "%s: no connection in %g s", s->where, options.timeout);
    CONC_TRY(fd);
    CONC_TRY(conc_stream_open(&stream, fd));
    s->stream = &stream;
    s->in_long_line = false;
    s->silence = 0;
    CONC_TRY(conc_stream_printf(&stream, "FROM %lld\n", (long long)s->position));
    CONC_TRY(conc_stream_flush(&stream));
    return extract(s, fill_from_feed);
}

static int extract_feed(source *s)
{
    int failures = 0;
    for (;;) {
        int64_t before = s->position;
        int rc = follow_feed(s);
        s->is_reading = false;
        failures = s->position > before ? 1 : failures + 1;
        bool is_final = rc >= 0 || rc == -ECANCELED || rc == -ENOMEM || rc == -EINVAL;
        if (is_final || failures == ATTEMPTS)
            return rc;
        s->retries++;
        double pause = 0.05 * (1 << failures);
        CONC_TRY(conc_sleep(pause * conc_random(0.5, 1)));
    }
}

/* ---- transform: in threads, and still in order ---------------------------------------------- */

static const char *parse_csv(const char *line, draft *d);
static const char *parse_json(const char *line, draft *d);
static const char *convert(const draft *d, payment *p);
static int write_payment(batch *b, const payment *p);
static int write_reject(batch *b, const record *r, const char *fault);

static int transform_record(batch *b, const record *r)
{
    const char *line = b->text.data + r->start, *fault = NULL;
    payment *p = &b->payments[b->good];
    draft d;
    d.json = NULL;
    if (r->size > LINE_LIMIT)
        fault = "the line is too long";
    else if (strlen(line) != r->size)
        fault = "the line contains a NUL";
    else
        fault = b->from->parse(line, &d);
    if (!fault)
        fault = convert(&d, p);
    cJSON_Delete(d.json);
    if (fault)
        return write_reject(b, r, fault);
    p->position = r->position;
    b->good++;
    return write_payment(b, p);
}

static int transform_batch(void *arg) /* in a thread */
{
    batch *b = arg;
    pipeline *p = b->from->of;
    double start = conc_now();
    int rc = 0, working = atomic_fetch_add(&p->working, 1) + 1;
    int most = atomic_load(&p->most_working);
    while (working > most && !atomic_compare_exchange_weak(&p->most_working, &most, working))
        continue;
    b->good = 0;
    b->output[LINES].size = b->output[REJECTS].size = 0;
    for (int i = 0; i < b->count && rc >= 0; i++)
        rc = transform_record(b, &b->records[i]);
    if (rc >= 0)
        rc = conc_block(options.work);
    b->seconds = conc_now() - start;
    atomic_fetch_sub(&p->working, 1);
    return rc;
}

/* Batches are transformed in parallel, but stay in order: the next stage takes them one by one, and
 * waits for the job of each. */
static int transform(void *arg)
{
    pipeline *p = arg;
    batch *b;
    int rc;
    while ((rc = conc_queue_get(&p->extracted, &b)) == 0) {
        CONC_TRY(conc_pool_submit(&p->pool, &b->job, transform_batch, b));
        CONC_TRY(conc_queue_put(&p->transformed, &b));
        if (conc_queue_len(&p->transformed) > p->most_transformed)
            p->most_transformed = conc_queue_len(&p->transformed);
    }
    conc_queue_close(&p->transformed);
    return rc == -EPIPE ? 0 : rc;
}

/* ---- health and figures --------------------------------------------------------------------- */

static void print_health(const pipeline *p, double rate, double stalled)
{
    size_t first = conc_queue_len(&p->extracted), second = conc_queue_len(&p->transformed);
    char state[256] = "ok";
    if (stalled > 5 * options.health)
        snprintf(state, sizeof state, "nothing loaded for %.1f s", stalled);
    else if (first == BOUND)
        snprintf(state, sizeof state, "destinations are slower");
    for (const source *s = p->sources; s < p->sources + p->count; s++) {
        size_t n = strlen(state);
        if (s->is_paused)
            snprintf(state + n, sizeof state - n, "; %s pauses", s->name);
        else if (s->retries && !s->is_reading && !s->at_end)
            snprintf(state + n, sizeof state - n, "; %s is tried again", s->name);
    }
    char line[400];
    snprintf(line, sizeof line, "%lld loaded, %.0f/s, %lld rejected; queues %zu/%d, %zu/%d; %s",
             (long long)p->loaded, rate, (long long)p->rejected, first, BOUND, second, BOUND,
             state);
    if (isatty(STDOUT_FILENO))
        printf("\r%-79.79s", line); /* the next one overwrites it */
    else
        printf("%s\n", line);
    fflush(stdout);
}

static int monitor(void *arg)
{
    pipeline *p = arg;
    double last = conc_now();
    for (;;) {
        int64_t before = p->loaded;
        double start = conc_now();
        CONC_TRY(conc_sleep(options.health));
        double now = conc_now();
        if (p->loaded > before)
            last = now;
        print_health(p, (double)(p->loaded - before) / (now - start), now - last);
    }
}

static void print_figures(const pipeline *p, double seconds)
{
    if (isatty(STDOUT_FILENO))
        printf("\r%79s\r", "");
    printf("%-16s %9s %9s %9s %8s %7s\n", "source", "read now", "loaded", "rejected", "paused",
           "retries");
    for (const source *s = p->sources; s < p->sources + p->count; s++)
        printf("%-16.16s %9lld %9lld %9lld %6.2f s %7d\n", s->name, (long long)s->read,
               (long long)s->loaded, (long long)s->rejected, s->paused, s->retries);
    printf(
        "transform: at most %zu of %d batches waited; at most %d threads at once, %.2f s in all\n",
        p->most_extracted, BOUND, atomic_load(&p->most_working), p->transforming);
    printf("load: at most %zu of %d batches waited; %d commits, %.2f s\n", p->most_transformed,
           BOUND, p->commits, p->loading);
    printf("%lld loaded, %lld rejected in %.2f s: %.0f a minute\n", (long long)p->loaded,
           (long long)p->rejected, seconds, (double)(p->loaded + p->rejected) / seconds * 60);
    fflush(stdout);
}

/* ---- the pipeline --------------------------------------------------------------------------- */

/* There is one batch for each place where one can be, so the queues are the only bound. */
static int open_queues(pipeline *p)
{
    int count = p->count + 3 * BOUND + 1;
    p->idle = (conc_queue)CONC_QUEUE(batch *, (size_t)count);
    p->extracted = (conc_queue)CONC_QUEUE(batch *, BOUND);
    p->transformed = (conc_queue)CONC_QUEUE(batch *, BOUND);
    p->batches = calloc((size_t)count, sizeof *p->batches);
    if (!p->batches)
        return -ENOMEM;
    p->batch_count = count;
    for (batch *b = p->batches; b < p->batches + count; b++)
        CONC_TRY(conc_queue_put(&p->idle, &b));
    p->pool = (conc_pool){.threads = (int)options.threads};
    return conc_pool_open(&p->pool);
}

static int pipeline_close(pipeline *p)
{
    conc_pool_close(&p->pool); /* no job uses a batch any more */
    for (batch *b = p->batches; b < p->batches + p->batch_count; b++) {
        free(b->text.data);
        for (int k = 0; k < FILES; k++)
            free(b->output[k].data);
    }
    free(p->batches);
    conc_queue_destroy(&p->idle);
    conc_queue_destroy(&p->extracted);
    conc_queue_destroy(&p->transformed);
    sqlite_close(&p->db);
    for (int i = 0; i < FILES; i++)
        if (p->files[i].name && p->files[i].fd >= 0)
            close(p->files[i].fd);
    return 0;
}

CONC_AUTO_TYPE(pipeline, pipeline_close);

static int run_stages(pipeline *p)
{
    conc_group g = {0};
    CONC_TRY(conc_group_begin(&g));
    if (options.health > 0)
        CONC_TRY_IN(&g, conc_spawn(&g, monitor, p));
    int rc = CONC_GATHER(CONC_CALL(extract_all, p), CONC_CALL(transform, p), CONC_CALL(load, p));
    conc_group_cancel(&g);
    int ended = conc_group_wait(&g);
    return rc < 0 ? rc : ended;
}

static int run_pipeline(pipeline *p)
{
    double start = conc_now();
    int64_t before = 0;
    CONC_TRY(open_queues(p));
    CONC_TRY(open_destinations(p));
    for (source *s = p->sources; s < p->sources + p->count; s++) {
        s->of = p;
        before += s->loaded;
    }
    int64_t bytes = p->files[LINES].cut + p->files[REJECTS].cut;
    if (before + bytes > 0)
        printf("goes on after %lld payments; %lld bytes behind the checkpoint are cut off\n",
               (long long)before, (long long)bytes);
    int rc = run_stages(p);
    if (rc < 0) {
        char words[160];
        snprintf(words, sizeof words, "%s", conc_last_error());
        conc_shield(5, recover, p);
        print_figures(p, conc_now() - start);
        return conc_fail(rc, "%s; what was loaded stays, and the next run goes on", words);
    }
    print_figures(p, conc_now() - start);
    if (p->failed)
        return conc_fail(-EREMOTEIO, "%d of %d sources failed", p->failed, p->count);
    return 0;
}

/* ---- parse: a line to a draft --------------------------------------------------------------- */

/* Takes the field at *at, without its quotes. *at becomes the next field; NULL: there is none. */
static const char *split_field(char **at, char **field)
{
    char *c = *at, *to = c;
    *field = c;
    if (*c != '"') {
        c += strcspn(c, ",\"");
        to = c;
    } else {
        for (c++; *c && (*c != '"' || c[1] == '"'); c++) {
            c += *c == '"'; /* a quote is doubled */
            *to++ = *c;
        }
        if (*c++ != '"')
            return "a quote is not closed";
    }
    if (*c && *c != ',')
        return "a quote in the middle of a field";
    *at = *c ? c + 1 : NULL;
    *to = 0;
    return NULL;
}

static double parse_number(const char *text)
{
    char *end;
    double number = strtod(text, &end); /* it would also take a hexadecimal one */
    bool is_number = *text && !*end && strspn(text, "0123456789.+-eE") == strlen(text);
    return is_number ? number : NAN;
}

static const char *parse_csv(const char *line, draft *d)
{
    char *fields[5], *at = strcpy(d->line, line);
    for (size_t i = 0; i < CONC_LEN(fields); i++) {
        const char *fault = at ? split_field(&at, &fields[i]) : "too few fields";
        if (fault)
            return fault;
    }
    d->id = parse_number(fields[0]);
    d->customer = fields[1];
    d->amount = parse_number(fields[2]);
    d->currency = fields[3];
    d->time = fields[4];
    return at ? "too many fields" : NULL;
}

static const char *parse_json(const char *line, draft *d)
{
    cJSON *json = d->json = cJSON_ParseWithOpts(line, NULL, true);
    if (!json)
        return "this is not JSON";
    if (!cJSON_IsObject(json))
        return "this is not a JSON object";
    if (strstr(line, "\\u0000")) /* a text in C ends there */
        return "the line contains a NUL";
    d->id = cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(json, "id"));
    d->customer = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "customer"));
    d->amount = cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(json, "amount"));
    d->currency = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "currency"));
    d->time = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "time"));
    return NULL;
}

/* ---- convert: a draft to a payment ---------------------------------------------------------- */

/* The C library takes more than Unicode has. */
static bool is_utf8(const char *text)
{
    mbstate_t state = {0};
    wchar_t c;
    for (size_t n; (n = mbrtowc(&c, text, MB_CUR_MAX, &state)) != 0; text += n) {
        bool is_unicode = n <= 4 && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
        if (!is_unicode)
            return false;
    }
    return true;
}

/* "2024-02-29T13:14:15Z". timegm turns February 30 into March 1, which is another text. */
static bool parse_time(const char *text, int64_t *time)
{
    struct tm t = {0};
    char same[32];
    if (sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2dZ", &t.tm_year, &t.tm_mon, &t.tm_mday, &t.tm_hour,
               &t.tm_min, &t.tm_sec) != 6)
        return false;
    t.tm_year -= 1900;
    t.tm_mon--;
    *time = timegm(&t);
    strftime(same, sizeof same, "%Y-%m-%dT%H:%M:%SZ", &t);
    return strcmp(same, text) == 0;
}

/* 0: there is none. */
static double find_rate(const char *currency)
{
    static const struct {
        char name[4];
        double rate;
    } known[] = {{"EUR", 1}, {"USD", 0.92}, {"GBP", 1.17}, {"CHF", 1.04}};
    for (size_t i = 0; i < CONC_LEN(known); i++)
        if (strcmp(known[i].name, currency) == 0)
            return known[i].rate;
    return 0;
}

static const char *convert_customer(const char *text, payment *p)
{
    size_t start = strspn(text, " "), end = strlen(text);
    while (end > start && text[end - 1] == ' ')
        end--;
    if (end == start)
        return "the customer has no name";
    if (end - start >= sizeof p->customer)
        return "the customer's name is too long";
    snprintf(p->customer, sizeof p->customer, "%.*s", (int)(end - start), text + start);
    return is_utf8(p->customer) ? NULL : "the customer's name is not UTF-8";
}

static const char *convert(const draft *d, payment *p)
{
    if (!(d->id >= 1 && d->id <= 1e15) || d->id != (double)(int64_t)d->id)
        return "the id is not a whole number";
    if (!d->customer || !d->currency || !d->time)
        return "a field is missing, or is not text";
    if (!(d->amount > 0 && d->amount <= 1e9))
        return "the amount is not a number, or out of range";
    double rate = find_rate(d->currency);
    if (rate == 0)
        return "the currency is unknown";
    if (!parse_time(d->time, &p->time))
        return "the time is not valid";
    p->id = (int64_t)d->id;
    p->cents = (int64_t)(d->amount * rate * 100 + 0.5);
    snprintf(p->currency, sizeof p->currency, "%s", d->currency);
    return convert_customer(d->customer, p);
}

/* ---- write JSON lines ----------------------------------------------------------------------- */

/* Room for size more bytes; NULL: no memory. */
static char *buffer_room(buffer *b, size_t size)
{
    if (b->room - b->size < size) {
        size_t room = 2 * b->room + size;
        char *data = realloc(b->data, room);
        if (!data)
            return NULL;
        b->data = data;
        b->room = room;
    }
    return b->data + b->size;
}

static int buffer_close(buffer *b)
{
    free(b->data);
    *b = (buffer){0};
    return 0;
}

CONC_AUTO_TYPE(buffer, buffer_close);

static int print_json(buffer *b, cJSON *json)
{
    char *room = buffer_room(b, JSON_LIMIT);
    bool is_printed = room && cJSON_PrintPreallocated(json, room, JSON_LIMIT - 1, false);
    cJSON_Delete(json);
    if (!is_printed)
        return -ENOMEM;
    size_t size = strlen(room);
    room[size++] = '\n';
    b->size += size;
    return 0;
}

static int write_payment(batch *b, const payment *p)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "source", b->from->name);
    cJSON_AddNumberToObject(json, "position", (double)p->position);
    cJSON_AddNumberToObject(json, "id", (double)p->id);
    cJSON_AddStringToObject(json, "customer", p->customer);
    cJSON_AddNumberToObject(json, "cents", (double)p->cents);
    cJSON_AddStringToObject(json, "currency", p->currency);
    cJSON_AddNumberToObject(json, "time", (double)p->time);
    return print_json(&b->output[LINES], json);
}

/* The line, or its beginning; what JSON cannot hold becomes a question mark. */
static int write_reject(batch *b, const record *r, const char *fault)
{
    char text[EXCERPT + 1] = "";
    size_t size = r->size < EXCERPT ? r->size : EXCERPT;
    memcpy(text, b->text.data + r->start, size);
    for (char *nul; (nul = memchr(text, 0, size)) != NULL;)
        *nul = '?';
    while (size-- > 0 && !is_utf8(text)) /* from the end: the cut may have hit a character */
        if (text[size] & 0x80)
            text[size] = '?';
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "source", b->from->name);
    cJSON_AddNumberToObject(json, "position", (double)r->position);
    cJSON_AddStringToObject(json, "reason", fault);
    cJSON_AddStringToObject(json, "text", text);
    return print_json(&b->output[REJECTS], json);
}

/* ---- sources that it makes itself: two CSV files, a table, a feed --------------------------- */

enum { OWN = 4, FEED = 3, SPACING = 1001 }; /* one of SPACING records is bad */

static const char csv_head[] = "id,customer,amount,currency,time\n";
static const char csv_format[] = "%lld,\"%s\",%s,%s,%s\n";
static const char sql_head[] = "CREATE TABLE payments (id INTEGER PRIMARY KEY, customer, amount "
                               "NUMERIC, currency, time); INSERT INTO payments VALUES ";
static const char sql_format[] = "(%lld, '%s', '%s', '%s', '%s'),";
static const char json_format[] = "{\"id\": %lld, \"customer\": \"%s\", \"amount\": %s, "
                                  "\"currency\": \"%s\", \"time\": \"%s\"}\n";

/* Prints record i of an own source, by one of these formats, at the end of the buffer. */
static int print_record(buffer *b, const char *format, int source, int64_t i)
{
    static const char *const customers[] = {"Ada Lovelace", "Ng, Bo", "Zoë Quinn", " Li "};
    static const char *const currencies[] = {"EUR", "USD", "GBP", "CHF"};
    char amount[24], time[24], *room = buffer_room(b, LINE_LIMIT);
    uint64_t x = ((uint64_t)i * OWN + (uint64_t)source + 1) * 0x9e3779b97f4a7c15u;
    const char *currency = currencies[x / 8 % CONC_LEN(currencies)];
    int64_t fault = i % SPACING == SPACING - 1 ? i / SPACING % 3 : -1;
    snprintf(amount, sizeof amount, "%u.%02u", (unsigned)(x >> 44) + 1, (unsigned)(x >> 20) % 100);
    snprintf(time, sizeof time, "2024-%02u-%02uT%02u:30:00Z", 1 + (unsigned)(x >> 16) % 12,
             1 + (unsigned)(x >> 24) % 28, (unsigned)(x >> 32) % 24);
    if (fault == 0)
        snprintf(amount, sizeof amount, "\"much\"");
    if (fault == 1)
        currency = "XYZ";
    if (fault == 2)
        snprintf(time, sizeof time, "2023-02-29T12:00:00Z");
    if (!room)
        return -ENOMEM;
    b->size += (size_t)snprintf(room, LINE_LIMIT, format, source * 1000000000LL + i + 1,
                                customers[x % CONC_LEN(customers)], amount, currency, time);
    return 0;
}

static int print_records(buffer *b, const char *head, const char *format, int source, int64_t count)
{
    char *room = buffer_room(b, LINE_LIMIT);
    if (!room)
        return -ENOMEM;
    b->size += (size_t)snprintf(room, LINE_LIMIT, "%s", head);
    for (int64_t i = 0; i < count; i++) {
        if (i % 1000 == 0) /* Ctrl+C gets its turn */
            CONC_TRY(conc_yield());
        CONC_TRY(print_record(b, format, source, i));
    }
    return 0;
}

static int make_csv(const char *name, int source, int64_t count)
{
    CONC_AUTO(buffer, b) = {0};
    CONC_TRY(print_records(&b, csv_head, csv_format, source, count));
    return conc_file_write(name, b.data, b.size);
}

/* In the current folder. */
static int make_sources(int64_t count)
{
    CONC_AUTO(buffer, b) = {0};
    CONC_AUTO(sqlite_db, db) = {0};
    CONC_TRY(make_csv("shop-1.csv", 0, count));
    CONC_TRY(make_csv("shop-2.csv", 1, count));
    CONC_TRY(print_records(&b, sql_head, sql_format, 2, count));
    b.data[b.size - 1] = 0; /* the comma after the last one */
    unlink("orders.db");
    CONC_TRY(sqlite_open(&db, "orders.db"));
    return sqlite_exec(&db, b.data);
}

typedef struct {
    const char *where; /* a folder, or the feed's address */
    int64_t count;     /* records of each source */
} own;

static int make(void *arg)
{
    own *o = arg;
    if ((mkdir(o->where, 0777) != 0 && errno != EEXIST) || chdir(o->where) != 0)
        return conc_fail(-errno, "%s: %s", o->where, conc_strerror(-errno));
    return make_sources(o->count);
}

/* ---- the feed: a process of this program ---------------------------------------------------- */

static int send_records(conc_stream *s, int64_t *i, int64_t count)
{
    CONC_AUTO(buffer, b) = {0};
    for (; *i < count; ++*i) {
        b.size = 0;
        CONC_TRY(print_record(&b, json_format, FEED, *i));
        CONC_TRY(conc_stream_write(s, b.data, b.size)); /* waits while the client does */
    }
    CONC_TRY(conc_stream_printf(s, "END\n"));
    return conc_stream_flush(s);
}

static int answer_feed(int fd, void *arg)
{
    own *o = arg;
    const int room = 65536;
    char *line;
    long long from;
    CONC_AUTO(conc_stream, s) = {0};
    CONC_TRY(conc_stream_open(&s, fd));
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    CONC_TRY(conc_stream_read_line(&s, &line));
    if (!line || sscanf(line, "FROM %lld", &from) != 1 || from < 0)
        return conc_fail(-EPROTO, "no FROM and a position");
    double start = conc_now();
    int64_t i = from;
    int rc = send_records(&s, &i, o->count);
    fprintf(stderr, "%sfeed: asked for %lld and on, sent %lld in %.2f s\n",
            isatty(STDERR_FILENO) ? "\n" : "", from, (long long)i - from, conc_now() - start);
    return rc == -ECANCELED ? rc : 0; /* clients may leave */
}

/* A child ends with its parent, however that ends. */
static int watch_parent(void *arg)
{
    char byte;
    (void)arg;
    while (CONC_TRY(conc_read(STDIN_FILENO, &byte, 1)) > 0)
        continue;
    _exit(0);
}

static int serve_feed(void *arg)
{
    own *o = arg;
    char address[120];
    conc_server server = {.handler = answer_feed, .arg = o, .limit = 100};
    if (options.is_child)
        CONC_TRY(conc_spawn(NULL, watch_parent, NULL));
    server.fd = CONC_TRY(conc_listen(o->where));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    printf("%s\n", address);
    fflush(stdout);
    return conc_serve(&server);
}

/* ---- are both destinations right? ----------------------------------------------------------- */

/* A payment that is missing, or there twice, changes the sum. */
typedef struct {
    int64_t count, sum;
} total;

static int sum_sources(total *t, int64_t count)
{
    CONC_AUTO(buffer, b) = {0};
    for (int64_t i = 0; i < OWN * count; i++) {
        draft d;
        payment p;
        b.size = 0;
        if (i % 1000 == 0)
            CONC_TRY(conc_yield());
        CONC_TRY(print_record(&b, json_format, (int)(i / count), i % count));
        bool is_good = !parse_json(b.data, &d) && !convert(&d, &p);
        cJSON_Delete(d.json);
        t->count += is_good;
        t->sum += is_good ? p.id * p.cents % 1000003 : 0;
    }
    return 0;
}

/* A line that is not whole is an error. path NULL: of the table. */
static int sum(pipeline *p, total *t, const char *path)
{
    static const char table[] = "SELECT count(*), sum(id * cents % 1000003) FROM payments";
    static const char lines[] =
        "SELECT count(*), sum((value->>'id') * (value->>'cents') % 1000003) FROM json_each('[' || "
        "replace(trim(CAST(? AS TEXT), char(10)), char(10), ',') || ']')";
    void *text = NULL;
    size_t size;
    CONC_AUTO(sqlite_rows, rows) = {0};
    if (path)
        CONC_TRY(conc_file_read(path, &text, &size));
    int rc = path ? sqlite_query(&p->db, &rows, lines, sqlite_blob(text, size))
                  : sqlite_query(&p->db, &rows, table);
    conc_free(text);
    if (rc >= 0)
        *t = (total){rows.all[0][0].integer, rows.all[0][1].integer};
    return rc;
}

static int check_destinations(pipeline *p, int64_t count)
{
    total wanted = {0}, table, lines, rejects;
    CONC_TRY(sum_sources(&wanted, count));
    CONC_TRY(sum(p, &table, NULL));
    CONC_TRY(sum(p, &lines, p->files[LINES].path));
    CONC_TRY(sum(p, &rejects, p->files[REJECTS].path));
    long long bad = (long long)(OWN * count - wanted.count);
    printf("in:  %lld payments, checksum %lld, and %lld bad records\n", (long long)wanted.count,
           (long long)wanted.sum, bad);
    printf("out: %lld, %lld in payments.db; %lld, %lld in payments.jsonl; %lld in rejects.jsonl\n",
           (long long)table.count, (long long)table.sum, (long long)lines.count,
           (long long)lines.sum, (long long)rejects.count);
    bool is_right = memcmp(&wanted, &table, sizeof wanted) == 0 &&
                    memcmp(&wanted, &lines, sizeof wanted) == 0 && rejects.count == bad;
    return is_right ? 0 : conc_fail(-EPROTO, "the destinations differ from the sources");
}

/* ---- what it shows by itself, in a folder that it removes ----------------------------------- */

typedef struct {
    char folder[256], address[128];
    source sources[OWN];
    conc_child feed;
} show;

static int show_close(show *s)
{
    static const char *const files[] = {"shop-1.csv",      "shop-2.csv",     "orders.db",
                                        "payments.jsonl",  "rejects.jsonl",  "payments.db",
                                        "payments.db-wal", "payments.db-shm"};
    conc_child_close(&s->feed);
    for (size_t i = 0; s->folder[0] && i < CONC_LEN(files); i++)
        unlink(files[i]);
    return s->folder[0] ? rmdir(s->folder) : 0;
}

CONC_AUTO_TYPE(show, show_close);

static bool set_source(source *s, char *word);

static int show_open(show *s, int64_t count)
{
    char text[24], line[120] = "";
    const char *argv[] = {"/proc/self/exe", "--child", "--feed", "127.0.0.1:0", text, NULL};
    snprintf(text, sizeof text, "%lld", (long long)count);
    const char *parent = getenv("TMPDIR");
    if (!parent)
        parent = "/tmp";
    snprintf(s->folder, sizeof s->folder, "%s/etlXXXXXX", parent);
    if (!mkdtemp(s->folder) || chdir(s->folder) != 0) {
        s->folder[0] = 0;
        return conc_fail(-errno, "%s: %s", parent, conc_strerror(-errno));
    }
    options.out = ".";
    CONC_TRY(make_sources(count));
    s->feed = (conc_child){.argv = argv, .group = true, .input = CONC_PIPE, .output = CONC_PIPE};
    CONC_TRY(conc_child_start(&s->feed));
    CONC_TRY(conc_read(s->feed.output, line, sizeof line - 1)); /* it is written at once */
    if (!line[0])
        return conc_fail(-ECHILD, "the feed does not start");
    snprintf(s->address, sizeof s->address, "feed=%.*s", (int)strcspn(line, "\n"), line);
    char *words[OWN] = {"shop-1.csv", "shop-2.csv", "db=orders.db", s->address};
    for (int i = 0; i < OWN; i++)
        set_source(&s->sources[i], words[i]);
    return 0;
}

static int run_and_kill(show *s)
{
    const char *argv[] = {"/proc/self/exe", "--child",    "out=.",        "slow=0.1", "health=0.2",
                          "shop-1.csv",     "shop-2.csv", "db=orders.db", s->address, NULL};
    CONC_AUTO(conc_child, child) = {.argv = argv, .group = true, .input = CONC_PIPE};
    CONC_TRY(conc_child_start(&child));
    CONC_TRY(conc_sleep(conc_random(0.2, 0.6)));
    CONC_TRY(conc_child_close(&child));
    printf("%sSIGKILL\n", isatty(STDOUT_FILENO) ? "\n" : "");
    fflush(stdout);
    return 0;
}

static int demo(void *arg)
{
    const int64_t count = 20 * SPACING;
    CONC_AUTO(show, s) = {0};
    CONC_AUTO(pipeline, p) = {.sources = s.sources, .count = OWN};
    (void)arg;
    options.slow = 0.1;
    options.health = 0.2;
    CONC_TRY(show_open(&s, count));
    for (int i = 0; i < 3; i++)
        CONC_TRY(run_and_kill(&s));
    CONC_TRY(run_pipeline(&p));
    return check_destinations(&p, count);
}

static int goal(void *arg)
{
    const int64_t count = 25 * SPACING;
    CONC_AUTO(show, s) = {0};
    CONC_AUTO(pipeline, p) = {.sources = s.sources, .count = OWN};
    (void)arg;
    CONC_TRY(show_open(&s, count));
    double start = conc_now();
    CONC_TRY(run_pipeline(&p));
    double minutes = (conc_now() - start) / 60;
    CONC_TRY(check_destinations(&p, count));
    printf("%.0f payments a minute; the goal: 100000\n", (double)p.loaded / minutes);
    return 0;
}

/* ---- main ----------------------------------------------------------------------------------- */

static int app(void *arg)
{
    CONC_AUTO(pipeline, p) = {.sources = arg};
    while (p.sources[p.count].where)
        p.count++;
    if (options.is_child)
        CONC_TRY(conc_spawn(NULL, watch_parent, NULL));
    return run_pipeline(&p);
}

static bool set_source(source *s, char *word)
{
    static const struct {
        const char *prefix;
        source source;
    } kinds[] = {
        {"db=", {.extract = extract_sqlite, .parse = parse_json, .position = INT64_MIN}},
        {"feed=", {.extract = extract_feed, .parse = parse_json, .name = "feed"}},
        {"", {.extract = extract_csv, .parse = parse_csv}},
    };
    size_t i = 0;
    while (strncmp(word, kinds[i].prefix, strlen(kinds[i].prefix)) != 0)
        i++;
    *s = kinds[i].source;
    s->where = word + strlen(kinds[i].prefix);
    const char *slash = strrchr(s->where, '/');
    if (!s->name)
        s->name = slash ? slash + 1 : s->where;
    return *s->name && *s->where;
}

/* A checkpoint has the name of its source or file: no two may share one. */
static bool set_sources(source *sources, int count, char **words)
{
    for (int i = 0; i < count; i++) {
        if (words[i][0] == '-' || !set_source(&sources[i], words[i]))
            return false;
        for (int k = 0; k < FILES; k++)
            if (strcmp(sources[i].name, file_names[k]) == 0)
                return false;
        for (int k = 0; k < i; k++)
            if (strcmp(sources[i].name, sources[k].name) == 0)
                return false;
    }
    return count > 0;
}

static bool set_number(double *number, const char *text, double most)
{
    char *end;
    *number = strtod(text, &end);
    return *text && !*end && *number >= 0 && *number <= most;
}

/* Takes name=value: 1, or -1 if the value is wrong; 0: there is no such option. */
static int set_option(const char *word)
{
    static const struct {
        const char *name;
        double *number, most;
    } numbers[] = {{"slow=", &options.slow, 60},
                   {"work=", &options.work, 60},
                   {"health=", &options.health, 3600},
                   {"timeout=", &options.timeout, 3600},
                   {"threads=", &options.threads, 256}};
    bool is_out = strncmp(word, "out=", 4) == 0;
    if (is_out)
        options.out = word + 4;
    for (size_t i = 0; i < CONC_LEN(numbers); i++) {
        size_t size = strlen(numbers[i].name);
        if (strncmp(word, numbers[i].name, size) == 0)
            return set_number(numbers[i].number, word + size, numbers[i].most) ? 1 : -1;
    }
    return is_out;
}

static int refuse(void)
{
    fprintf(stderr, "etl: bad arguments: the program's first lines say what there is\n");
    return 2;
}

static int run(int count, char **words)
{
    const char *first = count ? words[0] : "";
    double number = 0;
    bool has_count = count == 3 && set_number(&number, words[2], 1e9);
    own o = {has_count ? words[1] : NULL, (int64_t)number};
    if (count == 0)
        return conc_main(demo, NULL);
    if (count == 1 && strcmp(first, "--goal") == 0)
        return conc_main(goal, NULL);
    if (has_count && strcmp(first, "--feed") == 0)
        return conc_main(serve_feed, &o);
    if (has_count && strcmp(first, "--make") == 0)
        return conc_main(make, &o);
    source *sources = calloc((size_t)count + 1, sizeof *sources);
    bool is_valid = sources && set_sources(sources, count, words);
    int status = is_valid ? conc_main(app, sources) : refuse();
    free(sources);
    return status;
}

int main(int argc, char **argv)
{
    int count = 0, option = 0;
    options.out = "results";
    signal(SIGXFSZ, SIG_IGN); /* a file that would become too large is an error of write */
    if (!setlocale(LC_CTYPE, "C.UTF-8")) {
        fprintf(stderr, "etl: there is no locale C.UTF-8\n");
        return 1;
    }
    for (int i = 1; i < argc && option >= 0; i++) {
        option = set_option(argv[i]);
        if (strcmp(argv[i], "--child") == 0)
            options.is_child = true;
        else if (option == 0)
            argv[++count] = argv[i];
    }
    return option < 0 ? refuse() : run(count, argv + 1);
}
