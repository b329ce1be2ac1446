/* sqlite.h - SQLite databases for conc tasks, without blocking the loop.
 *
 * Every database call runs in a thread, with conc_offload, while its task waits. A cancel or a time
 * limit interrupts the statement. Failed transactions roll back by themselves.
 *
 *     static int app(void *arg)
 *     {
 *         (void)arg;
 *         CONC_AUTO(sqlite_db, db) = {.wal = true};
 *         CONC_TRY(sqlite_open(&db, "shop.db"));
 *         CONC_TRY(sqlite_exec(&db, "CREATE TABLE IF NOT EXISTS goods (name TEXT, price REAL)"));
 *         CONC_TRY(sqlite_exec(&db, "INSERT INTO goods VALUES (?, ?)", sqlite_text("tea"),
 *                              sqlite_real(2.5)));
 *         CONC_AUTO(sqlite_rows, rows) = {0};
 *         CONC_TRY(sqlite_query(&db, &rows, "SELECT name, price FROM goods"));
 *         while (CONC_TRY(sqlite_next(&rows)))
 *             printf("%s costs %.2f\n", rows.row[0].text, rows.row[1].real);
 *         return 0;
 *     }
 *
 * Include conc_pool.h and conc_sync.h (or the single conc.h) first. Compile with -lsqlite3
 * (Debian: libsqlite3-dev); SQLite 3.20 or later, built with threads, which is the default.
 *
 *   Tasks     Any number of tasks of one run may use a connection: they take turns, first come,
 *             first served. Parallel work needs separate connections.
 *   Waiting   Every call waits, except sqlite_next on rows in memory, sqlite_rows_close on fully
 *             read rows, and the calls that make a value. -ECANCELED means that the call had no
 *             effect, except for a text of several statements outside a transaction: those before
 *             the interrupted one took effect.
 *   Cancel    The thread checks every 1000 steps of SQLite's machine whether its task is cancelled.
 *             So the interrupt cannot hit a later statement, as sqlite3_interrupt from the loop
 *             could, and the thread never outlives the call. If the statement completed, its result
 *             is returned in spite of the cancel. SQLite does not check within a step: count(*) of
 *             a whole table, CREATE INDEX's sort, disk work at a commit. A hanging disk (a network
 *             file system) delays the task until it recovers. A cancelled INSERT, UPDATE or DELETE
 *             rolls back the whole transaction, if any: that is SQLite's rule.
 *   Busy      If another connection or process has locked the database, the task sleeps and
 *             retries, for .busy_timeout seconds of the loop's clock; no thread waits.
 *   Errors    Negative errno; the connection's .error describes the newest one, with the database,
 *             SQLite's message, and the statement (except for -ECANCELED), as does conc_last_error.
 *             .code is SQLite's own code.
 *                 -EBUSY            others held the lock until .busy_timeout had passed
 *                 -EEXIST           this value of a UNIQUE or PRIMARY KEY exists already
 *                 -EDOM             another constraint: NOT NULL, CHECK, FOREIGN KEY; wrong type
 *                 -EINVAL           an error in the SQL, too few or many values, bad arguments
 *                 -EBADMSG          not a database, or a damaged one
 *                 -ENOSPC           the disk is full
 *                 -EROFS            read-only
 *                 -ENOENT, -EACCES, -EISDIR...   the file cannot be opened
 *                 -EMSGSIZE         the rows need more memory than .limit, or a value is too long
 *                 -ENOTRECOVERABLE  the enclosing transaction was rolled back after an error
 *                 -EBADF            the connection is not open
 *                 -EPERM            not in a task; rows of another task; after a fork
 *                 -EIO, -ENOMEM, -EAGAIN (no thread) and those of the system
 *   Forks     A forked child opens its own connections.
 *   Not here  Backup, incremental blobs, your own SQL functions: sqlite_call. One large transaction
 *             is much faster than many small ones, in SQLite and here. */
#ifndef CONC_SQLITE_H
#define CONC_SQLITE_H

#if !defined CONC_POOL_H || !defined CONC_SYNC_H
#error "sqlite.h: include conc_pool.h and conc_sync.h first, or the single conc.h"
#endif

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- values --------------------------------------------------------------------------------- */

/* An SQL value: a parameter, or a column of a row. */
typedef struct sqlite_value {
    int type;        /* SQLITE_INTEGER, SQLITE_FLOAT, SQLITE_TEXT, SQLITE_BLOB or SQLITE_NULL */
    size_t size;     /* bytes of text or blob */
    int64_t integer; /* both are set for INTEGER and FLOAT; otherwise 0 */
    double real;
    const char *text; /* TEXT and BLOB, followed by a NUL; otherwise "" */
} sqlite_value;

/* Parameters. Text and bytes are borrowed until the call with the parameter returns. A NULL text is
 * SQL's NULL. */
static inline sqlite_value sqlite_int(int64_t n)
{
    return (sqlite_value){SQLITE_INTEGER, 0, n, (double)n, ""};
}

static inline sqlite_value sqlite_real(double x)
{
    return (sqlite_value){SQLITE_FLOAT, 0, 0, x, ""};
}

static inline sqlite_value sqlite_null(void) { return (sqlite_value){SQLITE_NULL, 0, 0, 0, ""}; }

static inline sqlite_value sqlite_text(const char *text)
{
    if (!text)
        return sqlite_null();
    return (sqlite_value){SQLITE_TEXT, strlen(text), 0, 0, text};
}

static inline sqlite_value sqlite_blob(const void *bytes, size_t size)
{
    return (sqlite_value){SQLITE_BLOB, size, 0, 0, bytes};
}

/* ---- connections ---------------------------------------------------------------------------- */

enum { SQLITE__CACHE = 16 }; /* prepared statements that a connection keeps */

/* A connection. Set the first fields before sqlite_open. */
typedef struct sqlite_db {
    bool read_only;          /* nothing is written; the file must exist */
    bool must_exist;         /* else a missing file is created */
    bool wal;                /* write-ahead log: readers and a writer do not block each other */
    bool foreign_keys;       /* enforced */
    const char *synchronous; /* "OFF", "NORMAL", "FULL" or "EXTRA"; NULL: SQLite's default */
    double busy_timeout;     /* seconds to wait for locks of others; 0: 5 s; negative: none */
    /* to read */
    char error[320]; /* the newest error of a call on this connection; "" before the first */
    int code;        /* its extended result code; 0: not an error of SQLite */
    int64_t last_id; /* the rowid of the last INSERT: read it before the task waits again */
    sqlite3 *handle; /* for sqlite_call; NULL: not open */
    /* private */
    conc_lock lock;                     /* held by the task whose turn it is, */
    int holds;                          /* for so many calls, transactions and open rows */
    int level;                          /* of nested transactions */
    pid_t pid;                          /* of the process that opened it */
    unsigned opens;                     /* how often it was opened */
    char name[100];                     /* the path, for errors */
    sqlite3_stmt *running;              /* the statement that a thread is stepping */
    sqlite3_stmt *cache[SQLITE__CACHE]; /* idle statements, most recently used first, then NULL */
} sqlite_db;

/* Opens or creates the database and reads its first page. ":memory:" is a private database of this
 * connection. After an error it is closed. Waits. Further errors: -EBUSY (already open), -EINVAL
 * (options), -ENOTSUP (no .wal on this file system, or an SQLite without threads). */
static inline int sqlite_open(sqlite_db *db, const char *path);

/* Closes the connection when earlier callers have had their turn; later ones get -EBADF, as do rows
 * that the task has open. Waits, and a cancel does not cut that short. Closing it twice, or
 * unopened, does nothing. May be called outside a run when no task uses it. -EBUSY: the task is in
 * a transaction of this connection. */
static inline int sqlite_close(sqlite_db *db);
CONC_AUTO_TYPE(sqlite_db, sqlite_close);

/* Checks whether the connection still works. -ESTALE: the file was removed or renamed. Reads one
 * page. Waits. */
static inline int sqlite_ping(sqlite_db *db);

/* ---- statements ----------------------------------------------------------------------------- */

/* Runs one or more statements, drops their rows, and returns how many rows were changed. The values
 * replace the ?s in order. Waits.
 *     int sqlite_exec(sqlite_db *db, const char *sql, sqlite_value...); */
#define sqlite_exec(db, ...) \
    sqlite__exec((db), sqlite__first(__VA_ARGS__, 0), sqlite__values(__VA_ARGS__))

/* The rows of a statement. Initialise it to zero except for the options. It belongs to the task
 * that queries. */
typedef struct sqlite_rows {
    int batch;    /* rows fetched at a time, for large results; 0: all */
    size_t limit; /* bytes of memory for all rows, or for those of a batch; 0: 64 MiB */
    /* to read */
    const sqlite_value *row;  /* the current row: valid until the next sqlite_next */
    int columns;              /* values in a row */
    size_t count;             /* rows in memory: all[0] to all[count - 1] */
    const sqlite_value **all; /* all[0][2]: the third value of the first row */
    /* private */
    sqlite_db *db;
    sqlite3_stmt *statement; /* NULL: SQLite has no more rows */
    unsigned opens;          /* the connection's at the query */
    struct sqlite__block *blocks;
    size_t next, room, bytes;
} sqlite_rows;

/* Runs a statement and fetches its rows. Frees what an earlier query left in *rows. Waits. With
 * .batch, if the statement only reads, it fetches the first batch only; the task then holds the
 * connection until the last row is fetched or until sqlite_rows_close. The task may use the
 * connection meanwhile. If it writes, put the query and the writes in one sqlite_transaction:
 * otherwise they fail with -EBUSY at once if others have written since the query began. If the rows
 * exceed .limit, returns -EMSGSIZE, and undoes a statement that writes, along with its transaction
 * if any.
 *     int sqlite_query(sqlite_db *db, sqlite_rows *rows, const char *sql, sqlite_value...); */
#define sqlite_query(db, rows, ...) \
    sqlite__query((db), (rows), sqlite__first(__VA_ARGS__, 0), sqlite__values(__VA_ARGS__))

/* Sets rows->row to the next row and returns 1, or 0 if there are no more. Waits if a batch must be
 * fetched. An error, even -ECANCELED, closes the rows. -EINVAL: no query; -EPERM: another task's
 * query. */
static inline int sqlite_next(sqlite_rows *rows);

/* Ends the query and frees the rows; options stay. A cancel does not cut it short. Closing twice,
 * or without a query, does nothing. -EPERM: another task's query, which continues. */
static inline int sqlite_rows_close(sqlite_rows *rows);
CONC_AUTO_TYPE(sqlite_rows, sqlite_rows_close);

/* Stores the first number of the first row in *number. -ENOENT: there is no row. Waits.
 *     int sqlite_number(sqlite_db *db, int64_t *number, const char *sql, sqlite_value...); */
#define sqlite_number(db, number, ...) \
    sqlite__number((db), (number), sqlite__first(__VA_ARGS__, 0), sqlite__values(__VA_ARGS__))

/* ---- transactions --------------------------------------------------------------------------- */

/* Runs fn(arg), in this task, between BEGIN IMMEDIATE (BEGIN, with .read_only) and COMMIT, and
 * returns its result. If fn or COMMIT fails, or the task is cancelled before COMMIT is done,
 * everything is rolled back. The task holds the connection meanwhile, even while fn waits for
 * something else, so a task that fn spawns and waits for must not use it. Inside another
 * transaction of the same task it is a savepoint: if fn fails, what fn did is undone, and the outer
 * transaction can continue. A BEGIN by hand is undone and returns -EINVAL. Waits. */
static inline int sqlite_transaction(sqlite_db *db, conc_fn *fn, void *arg);

/* Runs fn(handle, arg) in a thread, for anything that has no function here. fn returns an SQLite
 * code or a negative errno, and must leave no statement open. A cancel interrupts its statements;
 * between them it may poll conc_job_cancelled(). Waits. */
typedef int sqlite_fn(sqlite3 *handle, void *arg);
static inline int sqlite_call(sqlite_db *db, sqlite_fn *fn, void *arg);

/* ==== implementation ============================================================================
 *
 * The task that holds db->lock owns the connection. It either runs on the loop, or waits while one
 * thread runs its job, so neither *db nor SQLite needs another lock. conc_offload always waits for
 * a running job, so everything the job uses may be on the task's stack.
 *
 * Outside sqlite_transaction SQLite is never in a transaction: sqlite__settle ensures that. */

/* The first macro argument, and the others with a terminator. The terminator is a struct, so a
 * plain number or string among the values does not compile, instead of filling a field of a
 * value. */
#define sqlite__first(first, ...) first
#define sqlite__rest(first, ...) __VA_ARGS__
#define sqlite__values(...) ((const sqlite_value[]){sqlite__rest(__VA_ARGS__, ((sqlite_value){0}))})

#ifndef SQLITE__STEPS
#define SQLITE__STEPS 1000 /* of SQLite's machine between two checks for a cancel */
#endif

/* Memory for rows. */
typedef struct sqlite__block {
    struct sqlite__block *next;
    size_t used, size;
    sqlite_value space[];
} sqlite__block;

/* A job for a thread, and its result. */
typedef struct sqlite__call {
    sqlite_db *db;
    const char *sql;            /* the statements still to run */
    const sqlite_value *values; /* and their values */
    sqlite_rows *rows;          /* where rows go; NULL: they are dropped */
    sqlite_fn *fn;
    void *arg;
    bool once; /* do not retry if the database is locked */
    int changes;
    int code; /* SQLite's, of the error */
    char message[160];
} sqlite__call;

/* ---- errors */

static inline int sqlite__errno(sqlite3 *handle, int code)
{
    static const struct {
        int code, rc;
    } known[] = {{SQLITE_CONSTRAINT_UNIQUE, -EEXIST},
                 {SQLITE_CONSTRAINT_PRIMARYKEY, -EEXIST},
                 {SQLITE_CONSTRAINT_ROWID, -EEXIST},
                 {SQLITE_READONLY_DBMOVED, -ESTALE},
                 {SQLITE_ABORT_ROLLBACK, -ENOTRECOVERABLE},
                 {SQLITE_ERROR, -EINVAL},
                 {SQLITE_PERM, -EACCES},
                 {SQLITE_BUSY, -EBUSY},
                 {SQLITE_LOCKED, -EBUSY},
                 {SQLITE_PROTOCOL, -EBUSY},
                 {SQLITE_NOMEM, -ENOMEM},
                 {SQLITE_READONLY, -EROFS},
                 {SQLITE_INTERRUPT, -EINTR},
                 {SQLITE_CORRUPT, -EBADMSG},
                 {SQLITE_NOTADB, -EBADMSG},
                 {SQLITE_FULL, -ENOSPC},
                 {SQLITE_TOOBIG, -EMSGSIZE},
                 {SQLITE_CONSTRAINT, -EDOM},
                 {SQLITE_MISMATCH, -EDOM},
                 {SQLITE_MISUSE, -EINVAL},
                 {SQLITE_NOLFS, -EFBIG},
                 {SQLITE_AUTH, -EACCES},
                 {SQLITE_RANGE, -EINVAL}};
    int kind = code & 0xff;
    if (kind == SQLITE_INTERRUPT && conc_job_cancelled())
        return -ECANCELED;
    if (kind == SQLITE_CANTOPEN && sqlite3_system_errno(handle) > 0)
        return -sqlite3_system_errno(handle);
    for (size_t i = 0; i < CONC_LEN(known); i++)
        if (known[i].code == code || known[i].code == kind)
            return known[i].rc;
    return -EIO;
}

/* In the thread: keeps SQLite's error message for the task. */
static inline int sqlite__failed(sqlite__call *c, int code)
{
    c->code = code;
    snprintf(c->message, sizeof c->message, "%s", sqlite3_errmsg(c->db->handle));
    return sqlite__errno(c->db->handle, code);
}

/* In the thread: an error that is not SQLite's. */
static inline int sqlite__refuse(sqlite__call *c, int rc, const char *words)
{
    snprintf(c->message, sizeof c->message, "%s", words);
    return rc;
}

/* In the task: sets db->error and the task's last error. */
static inline int sqlite__say(sqlite__call *c, int rc)
{
    sqlite_db *db = c->db;
    const char *words = c->message[0] ? c->message : conc_last_error();
    if (rc == -ECANCELED)
        return rc;
    db->code = c->code;
    const char *name = db->name[0] ? db->name : "sqlite";
    int n = snprintf(db->error, sizeof db->error, "%s: %s", name, words);
    if (c->sql && *c->sql)
        snprintf(db->error + n, sizeof db->error - (size_t)n, ", in: %.50s", c->sql);
    return conc_fail(rc, "%s", db->error);
}

/* In the task: reports an error that did not occur in a thread. */
static inline int sqlite__fail(sqlite_db *db, int rc, const char *words)
{
    sqlite__call c = {.db = db};
    if (!db)
        return conc_fail(rc, "sqlite: %s", words);
    return sqlite__say(&c, sqlite__refuse(&c, rc, words));
}

/* ---- turns and threads */

static inline bool sqlite__is_mine(sqlite_db *db)
{
    return conc_self() && conc_lock_owner(&db->lock) == conc_self();
}

static inline void sqlite__let_go(sqlite_db *db)
{
    if (--db->holds == 0)
        conc_lock_release(&db->lock);
}

/* Waits for the task's turn. sqlite__let_go ends it. */
static inline int sqlite__hold(sqlite_db *db)
{
    if (!db)
        return sqlite__fail(db, -EINVAL, "the connection is NULL");
    if (!sqlite__is_mine(db))
        CONC_TRY(conc_lock_acquire(&db->lock));
    db->holds++;
    int rc = 0;
    if (!db->handle)
        rc = sqlite__fail(db, -EBADF, "the connection is not open");
    else if (db->pid != getpid())
        rc = sqlite__fail(db, -EPERM, "the connection belongs to the parent process");
    if (rc < 0)
        sqlite__let_go(db);
    return rc;
}

/* Runs the job in a thread, and retries while others hold the database's lock. */
static inline int sqlite__run(sqlite__call *c, conc_fn *job)
{
    double limit = c->db->busy_timeout == 0 ? 5 : c->db->busy_timeout;
    double end = -1, pause = 0.001;
    for (;;) {
        c->code = 0;
        c->message[0] = 0;
        int rc = conc_offload(job, c);
        if (end < 0)
            end = conc_now() + limit; /* the statement's own time does not count */
        double left = end - conc_now();
        bool locked = (c->code & 0xff) == SQLITE_BUSY && c->code != SQLITE_BUSY_SNAPSHOT;
        if (rc >= 0 || !locked || c->once || left <= 0)
            return rc < 0 ? sqlite__say(c, rc) : rc;
        double nap = pause * conc_random(0.5, 1); /* random, so that waiters do not retry in step */
        CONC_TRY(conc_sleep(nap < left ? nap : left));
        pause = pause < 0.03 ? 2 * pause : pause;
    }
}

/* A function that must run in any case. */
typedef struct sqlite__duty {
    void (*fn)(void *arg);
    void *arg;
    bool done;
} sqlite__duty;

static inline int sqlite__do_duty(void *duty)
{
    sqlite__duty *d = duty;
    d->fn(d->arg);
    d->done = true;
    return 0;
}

static inline int sqlite__offload_duty(void *duty) { return conc_offload(sqlite__do_duty, duty); }

/* Runs fn(arg) in a thread, even if the task is cancelled, or on the loop if there is no thread. */
static inline void sqlite__must(void (*fn)(void *arg), void *arg)
{
    sqlite__duty d = {.fn = fn, .arg = arg};
    conc_shield(CONC_FOREVER, sqlite__offload_duty, &d);
    if (!d.done)
        fn(arg);
}

static inline void sqlite__roll_back(void *call)
{
    sqlite__call *c = call;
    if (!sqlite3_get_autocommit(c->db->handle)) /* else SQLite has rolled back, after an error */
        sqlite3_exec(c->db->handle, c->sql, NULL, NULL, NULL);
}

/* sqlite__run, unless SQLite has already ended the task's transaction. */
static inline int sqlite__run_inside(sqlite__call *c, conc_fn *job)
{
    if (c->db->level == 0 || !sqlite3_get_autocommit(c->db->handle))
        return sqlite__run(c, job);
    if (conc_cancelled())
        return -ECANCELED;
    return sqlite__fail(c->db, -ENOTRECOVERABLE, "the transaction is over");
}

/* The same for the program's own statements, which must leave no transaction open. */
static inline int sqlite__settle(sqlite__call *c, conc_fn *job)
{
    int rc = sqlite__run_inside(c, job);
    if (c->db->level > 0 || sqlite3_get_autocommit(c->db->handle))
        return rc;
    sqlite__must(sqlite__roll_back, &(sqlite__call){.db = c->db, .sql = "ROLLBACK"});
    if (rc < 0)
        return rc;
    return sqlite__fail(c->db, -EINVAL, "BEGIN by hand: use sqlite_transaction");
}

/* ---- rows in memory */

static inline void sqlite__drop_rows(sqlite_rows *r)
{
    for (sqlite__block *b = r->blocks; b; b = r->blocks) {
        r->blocks = b->next;
        free(b);
    }
    r->row = NULL;
    r->count = r->next = r->bytes = 0;
}

/* Allocates size bytes in the newest block, or in a new one. */
static inline void *sqlite__room(sqlite_rows *r, size_t size)
{
    sqlite__block *b = r->blocks;
    size = (size + 15) & ~(size_t)15;
    if (!b || b->size - b->used < size) {
        size_t room = size > 65536 ? size : 65536;
        b = malloc(sizeof *b + room);
        if (!b)
            return NULL;
        *b = (sqlite__block){.next = r->blocks, .size = room};
        r->blocks = b;
    }
    b->used += size;
    r->bytes += size;
    return (char *)b->space + b->used - size;
}

/* Makes room for a row in all[]. */
static inline int sqlite__place(sqlite_rows *r)
{
    if (r->count < r->room)
        return 0;
    size_t room = r->room ? 2 * r->room : 16;
    void *all = realloc((void *)r->all, room * sizeof *r->all);
    if (!all)
        return -ENOMEM;
    r->all = all;
    r->room = room;
    return 0;
}

/* Returns column i of the statement's row. Copies its text to *bytes and advances *bytes. */
static inline sqlite_value sqlite__column(sqlite3_stmt *s, int i, char **bytes)
{
    sqlite_value v = {.type = sqlite3_column_type(s, i), .text = ""};
    if (v.type == SQLITE_INTEGER || v.type == SQLITE_FLOAT) {
        v.integer = sqlite3_column_int64(s, i);
        v.real = sqlite3_column_double(s, i);
    } else if (v.type != SQLITE_NULL) {
        const void *from = sqlite3_column_blob(s, i);
        v.size = (size_t)sqlite3_column_bytes(s, i);
        v.text = *bytes;
        if (v.size)
            memcpy(*bytes, from, v.size);
        (*bytes)[v.size] = 0;
        *bytes += v.size + 1;
    }
    return v;
}

/* Returns the bytes that the statement's row takes, or 0 if memory ran out. */
static inline size_t sqlite__row_size(sqlite3_stmt *s, int columns)
{
    size_t size = (size_t)columns * sizeof(sqlite_value);
    for (int i = 0; i < columns; i++) {
        int type = sqlite3_column_type(s, i);
        if (type == SQLITE_TEXT && !sqlite3_column_text(s, i)) /* converts it to UTF-8 */
            return 0;
        if (type == SQLITE_TEXT || type == SQLITE_BLOB)
            size += (size_t)sqlite3_column_bytes(s, i) + 1;
    }
    return size;
}

static inline size_t sqlite__limit(const sqlite_rows *r) { return r->limit ? r->limit : 64 << 20; }

/* Copies the statement's row into c->rows. */
static inline int sqlite__keep_row(sqlite__call *c, sqlite3_stmt *s, bool batched)
{
    sqlite_rows *r = c->rows;
    size_t size = sqlite__row_size(s, r->columns), used = batched ? 0 : r->bytes;
    if (!size)
        return -ENOMEM;
    if (size > sqlite__limit(r) || used > sqlite__limit(r) - size)
        return sqlite__refuse(c, -EMSGSIZE, "the rows exceed the memory limit");
    sqlite_value *row = sqlite__place(r) ? NULL : sqlite__room(r, size);
    if (!row)
        return -ENOMEM;
    char *bytes = (char *)(row + r->columns);
    for (int i = 0; i < r->columns; i++)
        row[i] = sqlite__column(s, i, &bytes);
    r->all[r->count++] = row;
    return 0;
}

/* ---- statements, in a thread */

/* Returns an idle statement with this text, or a new one. NULL: an error, or no SQL is left. */
static inline sqlite3_stmt *sqlite__prepare(sqlite__call *c, const char **tail, int *code)
{
    sqlite3_stmt *s = NULL, **cache = c->db->cache;
    for (size_t i = 0; i < SQLITE__CACHE && cache[i]; i++) {
        if (strcmp(sqlite3_sql(cache[i]), c->sql) != 0)
            continue;
        s = cache[i];
        memmove(cache + i, cache + i + 1, (SQLITE__CACHE - 1 - i) * sizeof *cache);
        cache[SQLITE__CACHE - 1] = NULL;
        *tail = c->sql + strlen(c->sql);
        return s;
    }
    *code = sqlite3_prepare_v3(c->db->handle, c->sql, -1, SQLITE_PREPARE_PERSISTENT, &s, tail);
    return s;
}

static inline void sqlite__put_back(sqlite_db *db, sqlite3_stmt *s)
{
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    sqlite3_finalize(db->cache[SQLITE__CACHE - 1]); /* the least recently used */
    memmove(db->cache + 1, db->cache, (SQLITE__CACHE - 1) * sizeof *db->cache);
    db->cache[0] = s;
}

/* A batched statement outlives the call, so SQLite must copy the value. */
static inline int sqlite__bind_one(sqlite3_stmt *s, int i, const sqlite_value *v, bool batched)
{
    sqlite3_destructor_type keep = batched ? SQLITE_TRANSIENT : SQLITE_STATIC;
    switch (v->type) {
    case SQLITE_INTEGER: return sqlite3_bind_int64(s, i, v->integer);
    case SQLITE_FLOAT: return sqlite3_bind_double(s, i, v->real);
    case SQLITE_TEXT: return sqlite3_bind_text64(s, i, v->text, v->size, keep, SQLITE_UTF8);
    case SQLITE_BLOB: return sqlite3_bind_blob64(s, i, v->size ? v->text : "", v->size, keep);
    default: return sqlite3_bind_null(s, i);
    }
}

/* Binds the statement's values; the remaining ones are for the statements after it. */
static inline int sqlite__bind(sqlite__call *c, sqlite3_stmt *s, bool last, bool batched)
{
    int n = sqlite3_bind_parameter_count(s), have = 0;
    while (c->values[have].type && (have < n || last))
        have++;
    if (have != n)
        return sqlite__refuse(c, -EINVAL, have < n ? "too few values" : "too many values");
    for (int i = 0; i < n; i++) {
        int code = sqlite__bind_one(s, i + 1, &c->values[i], batched);
        if (code != SQLITE_OK)
            return sqlite__failed(c, code);
    }
    return 0;
}

/* Steps the statement. Returns 0 at its end, 1 when a batch is full. */
static inline int sqlite__step(sqlite__call *c, sqlite3_stmt *s, bool batched)
{
    sqlite_rows *r = c->rows;
    int code = SQLITE_DONE, rc = 0;
    bool full = false;
    c->db->running = s;
    while (rc == 0 && !full && (code = sqlite3_step(s)) == SQLITE_ROW) {
        rc = r ? sqlite__keep_row(c, s, batched) : 0;
        full = r && batched && (r->count >= (size_t)r->batch || r->bytes >= sqlite__limit(r));
    }
    if (rc < 0 && !sqlite3_stmt_readonly(s)) {
        sqlite3_interrupt(c->db->handle); /* the next step fails, and undoes what the statement has
                                             written */
        sqlite3_step(s);
    }
    c->db->running = NULL;
    if (rc < 0 || full)
        return rc < 0 ? rc : 1;
    return code == SQLITE_DONE ? 0 : sqlite__failed(c, code);
}

/* Runs the next statement. */
static inline int sqlite__run_one(sqlite__call *c)
{
    const char *tail = c->sql;
    int code = SQLITE_OK, before = sqlite3_total_changes(c->db->handle);
    sqlite3_stmt *s = sqlite__prepare(c, &tail, &code);
    bool last = tail[strspn(tail, " \t\r\n;")] == 0;
    if (code != SQLITE_OK)
        return sqlite__failed(c, code);
    if (c->rows && (!s || !last)) {
        sqlite3_finalize(s);
        return sqlite__refuse(c, -EINVAL, "a query is one statement");
    }
    if (s) {
        bool batched = c->rows && c->rows->batch > 0 && sqlite3_stmt_readonly(s);
        int rc = sqlite__bind(c, s, last, batched);
        if (c->rows)
            c->rows->columns = sqlite3_column_count(s);
        if (rc == 0)
            rc = sqlite__step(c, s, batched);
        if (rc == 1)
            c->rows->statement = s;
        else
            sqlite__put_back(c->db, s);
        if (rc < 0)
            return rc;
        if (sqlite3_total_changes(c->db->handle) != before)
            c->changes += sqlite3_changes(c->db->handle);
    }
    c->sql = tail;
    c->values += s ? sqlite3_bind_parameter_count(s) : 0;
    return 0;
}

static inline int sqlite__run_all(void *call)
{
    sqlite__call *c = call;
    int rc;
    if (c->rows)
        sqlite__drop_rows(c->rows); /* of the previous attempt */
    do
        rc = sqlite__run_one(c);
    while (rc == 0 && *c->sql);
    return rc;
}

/* Should the statement be interrupted? SQLite calls this in the thread, also after the last step:
 * then the statement is no longer busy, has had its effect, and must not be interrupted. */
static inline int sqlite__asks(void *arg)
{
    sqlite_db *db = arg;
    return conc_job_cancelled() && (!db->running || sqlite3_stmt_busy(db->running));
}

/* ---- statements, in a task */

static inline int sqlite__statement(sqlite_db *db, sqlite_rows *r, const char *sql,
                                    const sqlite_value *values)
{
    CONC_TRY(sqlite__hold(db));
    sqlite__call c = {.db = db, .sql = sql ? sql : "", .values = values, .rows = r};
    int rc = sql ? sqlite__settle(&c, sqlite__run_all)
                 : sqlite__fail(db, -EINVAL, "the statement is NULL");
    if (c.changes)
        db->last_id = sqlite3_last_insert_rowid(db->handle);
    if (rc < 0 || !r || !r->statement)
        sqlite__let_go(db); /* else the open rows hold it */
    return rc < 0 ? rc : c.changes;
}

static inline int sqlite__exec(sqlite_db *db, const char *sql, const sqlite_value *values)
{
    return sqlite__statement(db, NULL, sql, values);
}

static inline int sqlite__query(sqlite_db *db, sqlite_rows *rows, const char *sql,
                                const sqlite_value *values)
{
    if (!rows)
        return sqlite__fail(db, -EINVAL, "the rows are NULL");
    CONC_TRY(sqlite_rows_close(rows));
    int rc = sqlite__statement(db, rows, sql, values);
    if (rc < 0) {
        sqlite_rows_close(rows);
        return rc;
    }
    rows->db = db;
    rows->opens = db->opens;
    return 0;
}

static inline int sqlite__next_batch(void *call)
{
    sqlite__call *c = call;
    sqlite_rows *r = c->rows;
    sqlite__drop_rows(r);
    int rc = sqlite__step(c, r->statement, true);
    if (rc != 1) {
        sqlite__put_back(c->db, r->statement);
        r->statement = NULL;
    }
    return rc;
}

/* Is the connection still the one that was queried? */
static inline bool sqlite__is_open(const sqlite_rows *rows)
{
    return rows->db->handle && rows->db->opens == rows->opens;
}

static inline int sqlite__fetch(sqlite_rows *rows)
{
    sqlite__call c = {.db = rows->db, .rows = rows, .once = true};
    if (!sqlite__is_open(rows))
        return sqlite__fail(rows->db, -EBADF, "the connection of these rows was closed");
    c.sql = sqlite3_sql(rows->statement);
    int rc = sqlite__run_inside(&c, sqlite__next_batch);
    if (!rows->statement)
        sqlite__let_go(rows->db);
    return rc;
}

static inline int sqlite_next(sqlite_rows *rows)
{
    if (!rows || !rows->db)
        return conc_fail(-EINVAL, "sqlite: the rows belong to no query");
    if (rows->next == rows->count && rows->statement) {
        if (sqlite__is_open(rows) && !sqlite__is_mine(rows->db))
            return sqlite__fail(rows->db, -EPERM, "these rows belong to another task");
        int rc = sqlite__fetch(rows);
        if (rc < 0) {
            sqlite_rows_close(rows);
            return rc;
        }
    }
    bool more = rows->next < rows->count;
    rows->row = more ? rows->all[rows->next++] : NULL;
    return more;
}

static inline void sqlite__end_batches(void *arg)
{
    sqlite_rows *rows = arg;
    sqlite__put_back(rows->db, rows->statement);
}

static inline int sqlite_rows_close(sqlite_rows *rows)
{
    if (!rows)
        return 0;
    bool open = rows->statement && sqlite__is_open(rows);
    if (open && conc_loop_self() && !sqlite__is_mine(rows->db))
        return sqlite__fail(rows->db, -EPERM, "these rows belong to another task");
    if (open) {
        sqlite__must(sqlite__end_batches, rows);
        sqlite__let_go(rows->db);
    }
    sqlite__drop_rows(rows);
    free((void *)rows->all);
    *rows = (sqlite_rows){.batch = rows->batch, .limit = rows->limit};
    return 0;
}

static inline int sqlite__number(sqlite_db *db, int64_t *number, const char *sql,
                                 const sqlite_value *values)
{
    sqlite_rows rows = {0};
    int rc = sqlite__query(db, &rows, sql, values);
    if (rc == 0 && (!rows.count || !rows.columns))
        rc = sqlite__fail(db, -ENOENT, "there is no row");
    else if (rc == 0)
        *number = rows.all[0][0].integer;
    sqlite_rows_close(&rows);
    return rc;
}

static inline int sqlite__call_here(void *call)
{
    sqlite__call *c = call;
    int rc = c->fn(c->db->handle, c->arg);
    return rc > 0 ? sqlite__failed(c, rc) : rc;
}

static inline int sqlite_call(sqlite_db *db, sqlite_fn *fn, void *arg)
{
    if (!fn)
        return sqlite__fail(db, -EINVAL, "the function is NULL");
    CONC_TRY(sqlite__hold(db));
    sqlite__call c = {.db = db, .fn = fn, .arg = arg, .once = true};
    int rc = sqlite__settle(&c, sqlite__call_here);
    sqlite__let_go(db);
    return rc;
}

static inline int sqlite__ping_here(void *call)
{
    sqlite__call *c = call;
    int moved = 0;
    sqlite3_file_control(c->db->handle, "main", SQLITE_FCNTL_HAS_MOVED, &moved);
    if (moved)
        return sqlite__refuse(c, -ESTALE, "the file was removed or renamed");
    return sqlite__run_all(c);
}

static inline int sqlite_ping(sqlite_db *db)
{
    CONC_TRY(sqlite__hold(db));
    sqlite__call c = {.db = db, .sql = "PRAGMA schema_version", .values = sqlite__values("")};
    int rc = sqlite__settle(&c, sqlite__ping_here);
    sqlite__let_go(db);
    return rc;
}

/* ---- transactions */

/* BEGIN, COMMIT and the like. */
static inline int sqlite__control(sqlite_db *db, const char *sql)
{
    sqlite__call c = {.db = db, .sql = sql, .values = sqlite__values("")};
    return sqlite__run_inside(&c, sqlite__run_all);
}

static inline int sqlite_transaction(sqlite_db *db, conc_fn *fn, void *arg)
{
    if (!fn)
        return sqlite__fail(db, -EINVAL, "the function is NULL");
    CONC_TRY(sqlite__hold(db));
    bool inner = db->level > 0;
    const char *begin = db->read_only ? "BEGIN" : "BEGIN IMMEDIATE";
    sqlite__call undo = {.db = db, .sql = inner ? "ROLLBACK TO x; RELEASE x" : "ROLLBACK"};
    int rc = sqlite__control(db, inner ? "SAVEPOINT x" : begin);
    if (rc == 0) {
        db->level++;
        rc = fn(arg);
        int done = rc < 0 ? rc : sqlite__control(db, inner ? "RELEASE x" : "COMMIT");
        if (done < 0) {
            sqlite__must(sqlite__roll_back, &undo);
            rc = done;
        }
        db->level--;
    }
    sqlite__let_go(db);
    return rc;
}

/* ---- open and close */

static inline int sqlite__open_here(void *call)
{
    sqlite__call *c = call;
    sqlite_db *db = c->db;
    errno = 0; /* SQLite does not set errno for every failure to open */
    int flags = db->must_exist ? 0 : SQLITE_OPEN_CREATE;
    flags = db->read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE | flags;
    int code = sqlite3_open_v2(c->arg, &db->handle, flags | SQLITE_OPEN_NOMUTEX, NULL);
    if (code != SQLITE_OK) {
        int rc = sqlite__failed(c, code);
        sqlite3_close(db->handle);
        db->handle = NULL;
        return rc;
    }
    sqlite3_extended_result_codes(db->handle, true);
    sqlite3_progress_handler(db->handle, SQLITE__STEPS, sqlite__asks, db);
    return 0;
}

static inline void sqlite__close_here(void *arg)
{
    sqlite_db *db = arg;
    for (sqlite3_stmt *s; (s = sqlite3_next_stmt(db->handle, NULL)) != NULL;)
        sqlite3_finalize(s);
    memset(db->cache, 0, sizeof db->cache);
    sqlite3_close_v2(db->handle);
    db->handle = NULL;
}

static inline int sqlite__check_options(sqlite_db *db)
{
    static const char *const known[] = {"OFF", "NORMAL", "FULL", "EXTRA"};
    bool valid = !db->synchronous;
    for (size_t i = 0; i < CONC_LEN(known) && !valid; i++)
        valid = strcmp(db->synchronous, known[i]) == 0;
    if (!valid)
        return sqlite__fail(db, -EINVAL, ".synchronous is not one of SQLite's values");
    if (db->busy_timeout != db->busy_timeout)
        return sqlite__fail(db, -EINVAL, ".busy_timeout is not a number");
    if (!sqlite3_threadsafe())
        return sqlite__fail(db, -ENOTSUP, "this SQLite was built without threads");
    return 0;
}

/* Sets the options of an open connection. Reads the file, so that garbage is noticed here. */
static inline int sqlite__configure(sqlite_db *db)
{
    char sql[160];
    snprintf(sql, sizeof sql, "PRAGMA foreign_keys=%d; %s%s; PRAGMA schema_version",
             db->foreign_keys, db->synchronous ? "PRAGMA synchronous=" : "",
             db->synchronous ? db->synchronous : "");
    CONC_TRY(sqlite_exec(db, sql));
    if (!db->wal || db->read_only)
        return 0;
    sqlite_rows rows = {0};
    CONC_TRY(sqlite_query(db, &rows, "PRAGMA journal_mode=WAL"));
    const char *mode = rows.count ? rows.all[0][0].text : "";
    int rc = 0;
    if (strcmp(mode, "wal") != 0 && strcmp(mode, "memory") != 0)
        rc = sqlite__fail(db, -ENOTSUP, "WAL is not possible here");
    sqlite_rows_close(&rows);
    return rc;
}

static inline int sqlite_open(sqlite_db *db, const char *path)
{
    if (!db || !path)
        return sqlite__fail(db, -EINVAL, "the connection or the path is NULL");
    CONC_TRY(sqlite__check_options(db));
    if (!sqlite__is_mine(db))
        CONC_TRY(conc_lock_acquire(&db->lock));
    db->holds++;
    int rc = db->handle ? sqlite__fail(db, -EBUSY, "the connection is open already") : 0;
    if (rc == 0) {
        sqlite__call c = {.db = db, .arg = (void *)(uintptr_t)path};
        snprintf(db->name, sizeof db->name, "%s", path);
        db->pid = getpid();
        db->opens++;
        rc = sqlite__run(&c, sqlite__open_here);
        rc = rc ? rc : sqlite__configure(db);
        if (rc < 0 && db->handle)
            sqlite__must(sqlite__close_here, db);
    }
    sqlite__let_go(db);
    return rc;
}

static inline int sqlite__close_in_turn(void *arg)
{
    sqlite_db *db = arg;
    if (!sqlite__is_mine(db)) /* else the task has open rows */
        CONC_TRY(conc_lock_acquire(&db->lock));
    if (db->handle)
        sqlite__must(sqlite__close_here, db);
    db->holds = 0;
    return conc_lock_release(&db->lock);
}

static inline int sqlite_close(sqlite_db *db)
{
    if (!db)
        return 0;
    if (db->pid != getpid() && db->handle) { /* the files are the parent's: leave them alone */
        db->handle = NULL;
        memset(db->cache, 0, sizeof db->cache);
        return -EPERM;
    }
    if (sqlite__is_mine(db) && db->level > 0)
        return sqlite__fail(db, -EBUSY, "the task is in a transaction");
    if (conc_loop_self())
        return conc_shield(CONC_FOREVER, sqlite__close_in_turn, db);
    if (db->handle)
        sqlite__close_here(db);
    db->lock = (conc_lock){0}; /* its owner may have ended without closing its rows */
    db->holds = db->level = 0;
    return 0;
}

#endif
