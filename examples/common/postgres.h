/* postgres.h - PostgreSQL for conc: libpq's calls, waiting instead of blocking the loop.
 *
 *     #define CONC_STATIC
 *     #include "conc_pool.h"
 *     #include "postgres.h"
 *
 *     static int app(void *arg)
 *     {
 *         CONC_AUTO(postgres_db, db) = {.conninfo = "host=127.0.0.1 dbname=shop"};
 *         CONC_AUTO(postgres_result, r) = {0};
 *         CONC_TRY(postgres_open(&db));
 *         CONC_TRY(postgres_query(&db, &r, "SELECT name FROM drinks WHERE price < $1", arg));
 *         while (CONC_TRY(postgres_next(&r)) > 0)
 *             printf("%s\n", postgres_text(&r, 0));
 *         return 0;
 *     }
 *     int main(void) { return conc_main(app, "3.50"); }
 *
 *     cc app.c -o app $(pkg-config --cflags --libs libpq)     # Debian: libpq-dev
 *
 * Conventions
 *   Results    0 or a count, or a negative errno. The newest error's text is in db.error and
 *              conc_last_error, the server's SQLSTATE in db.sqlstate.
 *   Tasks      a connection is for one task at a time: another gets -EBUSY, and so does every task
 *              until a stream's rows are all read. During a transaction the connection belongs to
 *              the task that began it.
 *   Values     parameters and values are text, as psql shows them; NULL is SQL's NULL. Parameters
 *              are never part of the SQL: '; DROP TABLE is just a strange name.
 *   Off-loop   threads do libpq's blocking work, with conc_offload_abandon: everything to connect
 *              (names, certificates, password and service files, hashes), and cancel requests.
 *   Limits     a cancel, or a scope's limit, reaches every call marked as waiting. The statement is
 *              then sent completely, cancelled on the server, and the rest of its reply is read,
 *              which may take .cancel_limit, hidden from further cancels:
 *              -ECANCELED  the statement has had no effect, and the connection can be used
 *              0 or more   it ended before the cancel arrived, and counts
 *              -ECANCELED and the connection is closed, the effect unknown: the server did not
 *                          reply in that time. The next call is -ENOTCONN
 *   Lost       a connection that the server or the network ended is -ECONNRESET once, then
 *              -ENOTCONN. It is then closed, and is not reconnected automatically, because its
 *              transaction and settings are gone: postgres_open reopens it.
 *
 * Server errors, by SQLSTATE or its first characters; the first match applies
 *     23505 23P01 42P07 42710 42P06 42P04 42701   -EEXIST        such a row, table, ... is there
 *     40001 40P01 53300 55P03                     -EAGAIN        try (the transaction) again
 *     42P01 42703 42883 42704 3D000 3F000         -ENOENT        no such table, column, ...
 *     28 42501                                    -EACCES        password, privileges
 *     22003                                       -ERANGE        a number is too large
 *     25006                                       -EROFS         read-only transaction
 *     08P01 22 23 25 42                           -EINVAL        bad value, constraint, syntax
 *     0A -ENOTSUP, 53100 -ENOSPC, 53200 -ENOMEM
 *     57014                                       -EINTR         statement_timeout, or cancelled
 *                                                                by someone else
 *     57P                                         -ECONNREFUSED  the server starts or stops
 *     all that end the session                    -ECONNRESET
 *     others                                      -EIO
 *
 * Not covered
 *     COPY FROM STDIN and TO STDOUT: -ENOTSUP, and the connection is closed. Binary values,
 *     pipelines, several statements in one call (-EINVAL).
 *     connect_timeout, which only libpq's blocking calls support: use conc_timeout. A cancel
 *     request to a server that never replies occupies a thread, at most three per file that
 *     includes this; a connection that needs a fourth is closed without one. A TLS proxy that sends
 *     records of more than 8 KB may stall libpq's non-blocking reads, which do not report that part
 *     of one is left; PostgreSQL itself sends none.
 */
#ifndef POSTGRES_H
#define POSTGRES_H

#ifndef CONC_POOL_H
#error "include conc_pool.h, or the single conc.h, before postgres.h"
#endif

#include <libpq-fe.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* A connection. It stays where it is while it is open. */
typedef struct postgres_db {
    /* libpq's connection string or URL: "host=db.example dbname=shop user=me", or
     * "postgres://me@db.example/shop"; NULL: the environment (PGHOST, ...). Borrowed until
     * postgres_open returned */
    const char *conninfo;
    size_t result_limit; /* bytes of memory for the rows of a postgres_query; 0: no limit */
    double cancel_limit; /* seconds that ending a cancelled statement may take; 0: 5 */
    void (*on_notice)(const char *text, void *user); /* of the server; NULL: they are dropped */
    void *user;
    /* to be read */
    char error[256];  /* the newest error in words, "" before the first */
    char sqlstate[6]; /* its SQLSTATE; "": it did not come from the server */
    PGconn *conn;     /* for libpq's own functions that do not wait; NULL: not connected */
    /* private */
    bool inside, lost;
    uint64_t streams, stream; /* how many there were; the number of the open one, 0: none */
    unsigned parts;           /* of answers */
    conc_task *owner;         /* of the transaction */
    char statement[64];
} postgres_db;

/* Rows, and the one that is shown: the first, then that which postgres_next moved to. */
typedef struct postgres_result {
    int64_t count;  /* rows, or rows that the statement changed; of a stream: rows so far */
    PGresult *data; /* for libpq's own functions, borrowed; a stream has its newest row alone */
    /* private */
    postgres_db *db; /* while its statement runs */
    PGresult *failure;
    int row, refused;
    uint64_t stream;
    bool moved, streams, stopping;
} postgres_result;

typedef int postgres_fn(postgres_db *db, void *arg);

/* Connects. Waits, without its own limit; a cancel leaves nothing open. Errors: -EINVAL
 * (the connection string, or open already), -ECONNREFUSED (nobody there, no such host, no
 * PostgreSQL, and all else without a SQLSTATE), -EACCES (no password was given), the table above,
 * -EBUSY, -ENOMEM. */
static inline int postgres_open(postgres_db *db);

/* Closes the connection, which may be used again after another open. An open stream is ended on
 * the server first, which waits as a cancel does (.cancel_limit); a transaction is rolled back.
 * 0, also if it was never opened. -EBUSY: another task is inside a call; nothing is closed. */
static inline int postgres_close(postgres_db *db);

/* postgres_query(&db, &r, "SELECT ... WHERE name = $1 AND price > $2", name, POSTGRES_INT(3));
 * Executes one statement with its parameters, reads its whole answer, and returns the number of
 * rows, or of rows that it changed. r (NULL: not wanted) is zero, or was used before: its old rows
 * are released, and may be parameters. It is released with postgres_result_close. Waits. Errors:
 * the table above, -EMSGSIZE (more than .result_limit: the statement is cancelled; a single row is
 * always read whole), -ECONNRESET, -ENOTCONN, -EBUSY, -EINVAL (no SQL). */
#define postgres_query(db, result, ...)                           \
    postgres__query((db), (result), POSTGRES__WORDS(__VA_ARGS__), \
                    sizeof POSTGRES__WORDS(__VA_ARGS__) / sizeof(const char *))

/* The same for large results: sends the statement, and postgres_next brings one row after the
 * other, and the server's error if it fails. Until the last one, or postgres_result_close, the
 * connection is in use. Waits while the statement does not fit into the network's buffers. */
#define postgres_stream(db, result, ...)                           \
    postgres__stream((db), (result), POSTGRES__WORDS(__VA_ARGS__), \
                     sizeof POSTGRES__WORDS(__VA_ARGS__) / sizeof(const char *))

/* A number as a parameter; it lives as long as the block around the call. */
#define POSTGRES_INT(n) postgres__int((char[24]){0}, (n))

/* Shows the next row: 1; 0 after the last one. Of a stream it waits, and a cancel loses nothing:
 * the stream goes on. Errors end the stream: the table above, -ECONNRESET; -ENOTCONN: the
 * connection was closed meanwhile. */
static inline int postgres_next(postgres_result *r);

/* Releases the rows. A stream is ended on the server, which waits as a cancel does: 0, or
 * -ECONNRESET if the connection had to be closed for that. -EBUSY: another task is inside a
 * call of this stream; nothing happens. */
static inline int postgres_result_close(postgres_result *r);

/* A value of the row that is shown, borrowed from the result. NULL: SQL's NULL, no row, no such
 * column. */
static inline const char *postgres_text(const postgres_result *r, int column);

/* The same as a number. Errors: -ENODATA (NULL, no row, no such column), -EINVAL (no whole
 * number), -ERANGE. */
static inline int postgres_integer(const postgres_result *r, int column, int64_t *value);

/* The number of the column with that name, or -ENOENT. */
static inline int postgres_column(const postgres_result *r, const char *name);

/* fn(db, arg) between BEGIN and COMMIT. If it fails or is cancelled, there is a ROLLBACK, hidden
 * from cancels (.cancel_limit), and its error is returned; if that fails, the connection is
 * closed. Waits. A cancel during COMMIT: 0 or more, and it was committed; -ECANCELED and still
 * connected: it was not; -ECONNRESET, or no longer connected: nobody knows. Errors: those of fn
 * and of postgres_query; -EINVAL (in a transaction already); -EIO: a statement failed, and fn
 * returned success all the same. After -EAGAIN the whole may be tried again. */
static inline int postgres_transaction(postgres_db *db, postgres_fn *fn, void *arg);

/* Waits for the next notification on a channel that was asked for with "LISTEN channel":
 * (*n)->relname and (*n)->extra, to be released with PQfreemem. A cancel loses none. */
static inline int postgres_notification(postgres_db *db, PGnotify **n);

/* May another task have it now: connected, nobody inside, no stream, no transaction? After any
 * error it tells whether the connection can go on, and it sees that the server has ended it. Costs
 * two system calls and does not wait. */
static inline bool postgres_usable(postgres_db *db);

/* Asks the server, which has to answer. Waits; errors as postgres_query. */
static inline int postgres_ping(postgres_db *db);

/* As new for the next user: ends a stream, rolls back a transaction, and drops settings, prepared
 * statements, temporary tables, locks (DISCARD ALL). Waits; errors as postgres_query. */
static inline int postgres_reset(postgres_db *db);

CONC_AUTO_TYPE(postgres_db, postgres_close);
CONC_AUTO_TYPE(postgres_result, postgres_result_close);

/* ---- errors --------------------------------------------------------------------------------- */

#define POSTGRES__WORDS(...) ((const char *const[]){__VA_ARGS__})

static inline int postgres__errno(const char *sqlstate)
{
    static const struct {
        char codes[48];
        int rc;
    } table[] = {
        {"23505 23P01 42P07 42710 42P06 42P04 42701", -EEXIST},
        {"40001 40P01 53300 55P03", -EAGAIN},
        {"42P01 42703 42883 42704 3D000 3F000", -ENOENT},
        {"28 42501", -EACCES},
        {"22003", -ERANGE},
        {"25006", -EROFS},
        {"08P01 22 23 25 42", -EINVAL},
        {"0A", -ENOTSUP},
        {"53100", -ENOSPC},
        {"53200", -ENOMEM},
        {"57014", -EINTR},
        {"57P", -ECONNREFUSED},
    };
    for (size_t i = 0; i < CONC_LEN(table); i++)
        for (const char *code = table[i].codes; *code; code += strspn(code, " ")) {
            size_t n = strcspn(code, " ");
            if (strncmp(code, sqlstate, n) == 0)
                return table[i].rc;
            code += n;
        }
    return -EIO;
}

/* Copies libpq's words as one line, without the place in the server's source. */
static inline void postgres__words(char *to, size_t size, const char *from)
{
    const char *location = strstr(from, "LOCATION:");
    size_t left = location ? (size_t)(location - from) : strlen(from), n = 0;
    for (; left && n < size - 1; left--, from++) {
        bool space = strchr(" \t\n", *from) != NULL;
        bool again = n == 0 || to[n - 1] == ' ';
        if (!space || !again)
            to[n++] = *from;
        if (space && !again)
            to[n - 1] = ' ';
    }
    n -= n && to[n - 1] == ' ';
    to[n] = 0;
}

/* Keeps an error for the reader, and returns rc. */
static inline int postgres__fail(postgres_db *db, int rc, const char *sqlstate, const char *text)
{
    char words[sizeof db->error];
    postgres__words(words, sizeof words, text);
    snprintf(db->sqlstate, sizeof db->sqlstate, "%s", sqlstate);
    size_t used = (size_t)snprintf(db->error, sizeof db->error, "%s", words);
    if (*sqlstate)
        used += (size_t)snprintf(db->error + used, sizeof db->error - used, " [%s]", sqlstate);
    if (db->statement[0] && used < sizeof db->error)
        snprintf(db->error + used, sizeof db->error - used, ", in: %s", db->statement);
    return conc_fail(rc, "%s", db->error);
}

/* Closes the connection, which is no longer usable. The words that the server sent last say more
 * than libpq's. */
static inline int postgres__lose(postgres_db *db, const char *text)
{
    if (!db->lost)
        postgres__fail(db, -ECONNRESET, "", text);
    PQfinish(db->conn);
    db->conn = NULL;
    db->stream = 0;
    db->lost = true;
    return conc_fail(-ECONNRESET, "%s", db->error);
}

static inline int postgres__broken(postgres_db *db)
{
    const char *text = PQerrorMessage(db->conn);
    return postgres__lose(db, text[0] ? text : "the connection was lost");
}

static inline const char *postgres__field(const PGresult *error, int field)
{
    const char *text = PQresultErrorField(error, field);
    return text ? text : "";
}

/* After an error of this severity the server ends the session. libpq's own errors, which have no
 * SQLSTATE, mean that it no longer understands the server. */
static inline bool postgres__is_fatal(const PGresult *error)
{
    const char *severity = postgres__field(error, PG_DIAG_SEVERITY_NONLOCALIZED);
    if (!*postgres__field(error, PG_DIAG_SQLSTATE))
        return true;
    return strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0;
}

static inline int postgres__server_error(postgres_db *db, const PGresult *error)
{
    const char *sqlstate = postgres__field(error, PG_DIAG_SQLSTATE);
    const char *text = postgres__field(error, PG_DIAG_MESSAGE_PRIMARY);
    bool fatal = postgres__is_fatal(error);
    int rc = fatal ? -ECONNRESET : postgres__errno(sqlstate);
    postgres__fail(db, rc, sqlstate, *text ? text : PQresultErrorMessage(error));
    db->lost = fatal;
    return fatal ? postgres__lose(db, "") : rc;
}

static inline void postgres__notice(void *arg, const PGresult *notice)
{
    postgres_db *db = arg;
    bool fatal = *postgres__field(notice, PG_DIAG_SQLSTATE) && postgres__is_fatal(notice);
    const char *text = postgres__field(notice, PG_DIAG_MESSAGE_PRIMARY);
    if (fatal) { /* why the connection ends, which libpq will see next */
        postgres__fail(db, -ECONNRESET, postgres__field(notice, PG_DIAG_SQLSTATE), text);
        db->lost = true;
    } else if (db->on_notice) {
        db->on_notice(text, db->user);
    }
}

/* ---- opening and closing -------------------------------------------------------------------- */

/* A connection on its way. The task and each job hold it, as a cancel leaves the job alone. */
typedef struct postgres__opening {
    int holders;
    char *conninfo;
    PGconn *conn;
} postgres__opening;

static inline void postgres__opening_drop(void *arg)
{
    postgres__opening *o = arg;
    if (__atomic_sub_fetch(&o->holders, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    PQfinish(o->conn);
    free(o->conninfo);
    free(o);
}

static inline int postgres__poll_here(void *arg) /* it blocks */
{
    postgres__opening *o = arg;
    if (o->conn)
        return (int)PQconnectPoll(o->conn);
    o->conn = PQconnectStart(o->conninfo);
    if (!o->conn)
        return -ENOMEM;
    PQsetErrorVerbosity(o->conn, PQERRORS_VERBOSE); /* else no SQLSTATE is in its words */
    return PQstatus(o->conn) == CONNECTION_BAD ? PGRES_POLLING_FAILED : PGRES_POLLING_WRITING;
}

/* libpq says why it could not connect in words alone: "FATAL:  3D000: database ...". */
static inline int postgres__refused(postgres_db *db, PGconn *conn)
{
    const char *words = PQerrorMessage(conn), *colon = strstr(words, ":  ");
    char sqlstate[6] = "";
    if (colon && strlen(colon) > 8 && colon[8] == ':')
        memcpy(sqlstate, colon + 3, 5);
    int rc = sqlstate[0] ? postgres__errno(sqlstate) : -ECONNREFUSED;
    if (PQconnectionNeedsPassword(conn))
        rc = -EACCES;
    return postgres__fail(db, rc, sqlstate, words);
}

static inline int postgres__handshake(postgres_db *db, postgres__opening *o)
{
    for (;;) {
        __atomic_add_fetch(&o->holders, 1, __ATOMIC_RELAXED);
        int next = CONC_TRY(conc_offload_abandon(postgres__poll_here, o, postgres__opening_drop));
        if (next == PGRES_POLLING_OK)
            return 0;
        if (next == PGRES_POLLING_FAILED)
            return postgres__refused(db, o->conn);
        bool reads = next == PGRES_POLLING_READING;
        CONC_TRY(conc_wait_fd(PQsocket(o->conn), reads ? CONC_READABLE : CONC_WRITABLE));
    }
}

static inline int postgres__check_conninfo(postgres_db *db)
{
    char *text = NULL;
    PQconninfoOption *options = PQconninfoParse(db->conninfo ? db->conninfo : "", &text);
    int rc = options ? 0 : postgres__fail(db, -EINVAL, "", text ? text : "no memory");
    PQconninfoFree(options);
    PQfreemem(text);
    return rc;
}

static inline int postgres__connect(postgres_db *db)
{
    CONC_TRY(postgres__check_conninfo(db));
    postgres__opening *o = calloc(1, sizeof *o);
    if (!o)
        return -ENOMEM;
    *o = (postgres__opening){.holders = 1, .conninfo = strdup(db->conninfo ? db->conninfo : "")};
    int rc = o->conninfo ? postgres__handshake(db, o) : -ENOMEM;
    if (rc == 0) {
        db->conn = o->conn;
        o->conn = NULL;
        db->lost = false;
        PQsetErrorVerbosity(db->conn, PQERRORS_DEFAULT);
        PQsetNoticeReceiver(db->conn, postgres__notice, db);
        rc = PQsetnonblocking(db->conn, 1) == 0 ? 0 : postgres__broken(db);
    }
    postgres__opening_drop(o);
    return rc;
}

static inline int postgres_open(postgres_db *db)
{
    if (!db)
        return conc_fail(-EINVAL, "postgres_open: no postgres_db");
    if (!conc_self())
        return conc_fail(-EPERM, "postgres_open: outside a task");
    if (db->inside)
        return conc_fail(-EBUSY, "postgres_open: another task uses this connection");
    if (db->conn)
        return conc_fail(-EINVAL, "postgres_open: it is open already");
    db->statement[0] = 0;
    db->inside = true;
    int rc = postgres__connect(db);
    db->inside = false;
    return rc;
}

/* ---- waiting -------------------------------------------------------------------------------- */

/* Is another task inside a call, or has it a transaction open? */
static inline bool postgres__is_others(const postgres_db *db)
{
    return db->inside || (db->owner && db->owner != conc_self());
}

/* Begins a call: the connection is this task's while db->inside is set. */
static inline int postgres__enter(postgres_db *db, uint64_t stream)
{
    if (!db)
        return conc_fail(-EINVAL, "postgres: no postgres_db");
    if (!conc_self())
        return conc_fail(-EPERM, "postgres: outside a task");
    if (postgres__is_others(db))
        return conc_fail(-EBUSY, "postgres: another task uses this connection");
    if (db->stream != stream && db->conn)
        return conc_fail(-EBUSY, "postgres: a stream is not read to its end, nor closed");
    if (!db->conn)
        return conc_fail(-ENOTCONN, "not connected%s%s", db->lost ? ": " : "",
                         db->lost ? db->error : "");
    if (conc_cancelled())
        return conc_yield(); /* -ECANCELED */
    db->inside = true;
    return 0;
}

/* Waits until something came from the server, and takes it in. */
static inline int postgres__read(postgres_db *db)
{
    CONC_TRY(conc_wait_fd(PQsocket(db->conn), CONC_READABLE));
    return PQconsumeInput(db->conn) ? 0 : postgres__broken(db);
}

/* Sends all that libpq still holds. The server may have to be read from meanwhile: it does not
 * read while its own answer is stuck. */
static inline int postgres__flush(postgres_db *db)
{
    int left;
    while ((left = PQflush(db->conn)) > 0) {
        int events = CONC_TRY(conc_wait_fd(PQsocket(db->conn), CONC_READABLE | CONC_WRITABLE));
        if ((events & CONC_READABLE) && !PQconsumeInput(db->conn))
            return postgres__broken(db);
    }
    return left ? postgres__broken(db) : 0;
}

/* The next part of the answer, NULL after the last. Parts that lie ready need no wait: then the
 * other tasks get their turn from time to time. */
static inline int postgres__fetch(postgres_db *db, PGresult **part)
{
    if (++db->parts % 64 == 0)
        CONC_TRY(conc_yield());
    CONC_TRY(postgres__flush(db));
    while (PQisBusy(db->conn))
        CONC_TRY(postgres__read(db));
    *part = PQgetResult(db->conn);
    return 0;
}

/* ---- one statement -------------------------------------------------------------------------- */

/* The answer is not taken: the statement fails with rc, and is ended if it is not yet. */
static inline int postgres__refuse(postgres_result *r, int rc, const char *text)
{
    r->refused = rc;
    postgres__fail(r->db, rc, "", text);
    return r->stopping ? 0 : rc;
}

/* Adds a row to those before. */
static inline int postgres__append(postgres_result *r, PGresult *one)
{
    if (r->refused)
        return 0;
    if (!r->data)
        r->data = PQcopyResult(one, PG_COPYRES_ATTRS | PG_COPYRES_TUPLES);
    else
        for (int i = 0, row = PQntuples(r->data); i < PQnfields(one); i++) {
            int length = PQgetisnull(one, 0, i) ? -1 : PQgetlength(one, 0, i);
            if (!PQsetvalue(r->data, row, i, PQgetvalue(one, 0, i), length))
                return postgres__refuse(r, -ENOMEM, "no memory for another row");
        }
    if (!r->data)
        return postgres__refuse(r, -ENOMEM, "no memory for a row");
    if (PQresultMemorySize(r->data) > r->db->result_limit)
        return postgres__refuse(r, -EMSGSIZE, "the rows are larger than result_limit");
    return 0;
}

/* The connection is closed: libpq cannot leave COPY FROM STDIN for sure if the statement is
 * cancelled at that moment, and a later statement would get a wrong answer. */
static inline int postgres__refuse_copy(postgres_db *db)
{
    postgres__lose(db, "COPY FROM STDIN and TO STDOUT are not supported here");
    return conc_fail(-ENOTSUP, "%s", db->error);
}

static inline void postgres__show(postgres_result *r, PGresult *part)
{
    PQclear(r->data);
    r->data = part;
    r->row = 0;
}

/* Takes a part of the answer: 1 if it is a row for the reader of a stream. */
static inline int postgres__take(postgres_result *r, PGresult *part)
{
    int rc = 0;
    switch (PQresultStatus(part)) {
    case PGRES_SINGLE_TUPLE:
        if (!r->streams) {
            rc = postgres__append(r, part);
            break;
        }
        postgres__show(r, part);
        r->count++;
        return 1;
    case PGRES_TUPLES_OK:
    case PGRES_COMMAND_OK:
    case PGRES_EMPTY_QUERY:
        if (r->data && !r->streams)
            break; /* the rows came before */
        postgres__show(r, part);
        return 0;
    case PGRES_COPY_IN:
    case PGRES_COPY_OUT:
    case PGRES_COPY_BOTH: rc = postgres__refuse_copy(r->db); break;
    default:
        if (postgres__is_fatal(part)) {
            rc = postgres__server_error(r->db, part);
        } else if (!r->failure) {
            r->failure = part;
            return 0;
        }
    }
    PQclear(part);
    return rc;
}

/* The next row for the reader of a stream: 1; 0: the answer was read to its end. */
static inline int postgres__next_row(postgres_result *r)
{
    for (;;) {
        PGresult *part;
        CONC_TRY(postgres__fetch(r->db, &part));
        if (!part)
            return 0;
        if (CONC_TRY(postgres__take(r, part)) > 0)
            return 1;
    }
}

/* Reads the whole reply; continues one that was cut short before. */
static inline int postgres__collect(void *r)
{
    int rc;
    while ((rc = postgres__next_row(r)) > 0)
        continue;
    return rc;
}

/* How many cancel requests may be under way: each one keeps a thread until the server answered. */
static inline conc_channel *postgres__requests(void)
{
    static conc_channel requests = {.capacity = 3}; /* it only counts */
    return &requests;
}

static inline int postgres__request_here(void *cancel) /* it blocks */
{
    char text[256];
    return PQcancel(cancel, text, sizeof text) ? 0 : conc_fail(-EIO, "%s", text);
}

static inline void postgres__request_drop(void *cancel)
{
    PQfreeCancel(cancel);
    int counted = conc_channel_try_recv(postgres__requests(), NULL);
    (void)counted; /* this one was */
}

/* Asks the server to cancel the running statement. It has done so on return: no later statement
 * can be hit. */
static inline int postgres__request_cancel(postgres_db *db)
{
    CONC_TRY(conc_channel_send(postgres__requests(), NULL));
    PGcancel *cancel = PQgetCancel(db->conn);
    return conc_offload_abandon(postgres__request_here, cancel, postgres__request_drop);
}

/* Cancels the statement and reads the rest of its answer. A request that comes before the server
 * has begun the statement has no effect, so it is repeated. */
static inline int postgres__stop(void *arg)
{
    postgres_result *r = arg;
    int rc;
    CONC_TRY(postgres__flush(r->db));
    do {
        CONC_TRY(postgres__request_cancel(r->db));
        rc = conc_timeout(0.5, postgres__collect, r);
    } while (rc == -ETIMEDOUT);
    return rc;
}

/* Is an answer not read to its end? */
static inline bool postgres__is_active(const postgres_db *db)
{
    return PQtransactionStatus(db->conn) == PQTRANS_ACTIVE;
}

static inline double postgres__cancel_limit(const postgres_db *db)
{
    return db->cancel_limit > 0 ? db->cancel_limit : 5;
}

/* Ends a statement early. Returns why, or 0 if it was over before its cancel came. */
static inline int postgres__abort(postgres_result *r, int why)
{
    postgres_db *db = r->db;
    double limit = postgres__cancel_limit(db);
    r->stopping = true;
    (void)conc_shield(limit, postgres__stop, r);
    if (postgres__is_active(db))
        postgres__lose(db, "the server did not end a statement that was cancelled");
    bool was_over = db->conn && why == -ECANCELED && !r->streams;
    const char *sqlstate = r->failure ? postgres__field(r->failure, PG_DIAG_SQLSTATE) : "";
    if (was_over && strcmp(sqlstate, "57014") != 0)
        return 0;
    PQclear(r->failure);
    r->failure = NULL;
    return why;
}

/* Ends a call that read its answer, with rc: 0, or what cut it short. */
static inline int postgres__finish(postgres_result *r, int rc)
{
    postgres_db *db = r->db;
    if (postgres__is_active(db))
        rc = postgres__abort(r, rc);
    if (r->failure && rc == 0)
        rc = postgres__server_error(db, r->failure);
    PQclear(r->failure);
    r->failure = NULL;
    r->db = NULL;
    db->stream = 0;
    db->inside = false;
    if (rc == 0 && r->refused)
        rc = r->refused;
    return rc && rc == r->refused ? conc_fail(rc, "%s", db->error) : rc;
}

static inline int postgres__send(postgres_db *db, const char *const *words, size_t n)
{
    db->statement[0] = 0;
    if (!words[0])
        return postgres__fail(db, -EINVAL, "", "there is no SQL");
    postgres__words(db->statement, sizeof db->statement, words[0]);
    if (PQsendQueryParams(db->conn, words[0], (int)n - 1, NULL, words + 1, NULL, NULL, 0))
        return 0;
    bool broken = PQstatus(db->conn) == CONNECTION_BAD;
    return broken ? postgres__broken(db)
                  : postgres__fail(db, -EINVAL, "", PQerrorMessage(db->conn));
}

/* Begins a statement: the connection is this task's if it returns 0. The rows that r has are
 * released after it was sent, as its parameters may be among them. */
static inline int postgres__start(postgres_db *db, postgres_result *r, bool streams,
                                  const char *const *words, size_t n)
{
    if (r->db && r->db->stream == r->stream)
        return conc_fail(-EBUSY, "postgres: a stream lives in this result: close it first");
    CONC_TRY(postgres__enter(db, 0));
    int rc = postgres__send(db, words, n);
    if (rc < 0) {
        db->inside = false;
        return rc;
    }
    if (streams || db->result_limit)
        PQsetSingleRowMode(db->conn);
    PQclear(r->data);
    *r = (postgres_result){.db = db, .streams = streams};
    return 0;
}

static inline int postgres__count(postgres_result *r)
{
    int64_t rows = PQntuples(r->data), changed = 0;
    if (r->data)
        changed = strtoll(PQcmdTuples(r->data), NULL, 10);
    r->count = rows ? rows : changed;
    return r->count < INT_MAX ? (int)r->count : INT_MAX;
}

static inline int postgres__query(postgres_db *db, postgres_result *result,
                                  const char *const *words, size_t n)
{
    postgres_result own = {0}, *r = result ? result : &own;
    CONC_TRY(postgres__start(db, r, false, words, n));
    int rc = postgres__finish(r, postgres__collect(r));
    if (rc == 0)
        rc = postgres__count(r);
    if (rc < 0 || !result)
        postgres_result_close(r);
    return rc;
}

/* ---- streams -------------------------------------------------------------------------------- */

static inline int postgres__stream(postgres_db *db, postgres_result *r, const char *const *words,
                                   size_t n)
{
    if (!r)
        return conc_fail(-EINVAL, "postgres_stream: no postgres_result");
    CONC_TRY(postgres__start(db, r, true, words, n));
    int rc = postgres__flush(db);
    if (rc < 0)
        return postgres__finish(r, rc);
    db->stream = r->stream = ++db->streams;
    db->inside = false;
    return 0;
}

static inline int postgres_next(postgres_result *r)
{
    if (!r)
        return conc_fail(-EINVAL, "postgres_next: no postgres_result");
    postgres_db *db = r->db;
    if (!db) {
        r->row += r->moved;
        r->moved = true;
        return r->row < PQntuples(r->data);
    }
    if (r->stream != db->stream) {
        r->db = NULL;
        return conc_fail(-ENOTCONN, "postgres_next: the stream's connection was closed");
    }
    CONC_TRY(postgres__enter(db, r->stream));
    int rc = postgres__next_row(r);
    if (rc > 0 || (rc == -ECANCELED && db->conn)) {
        db->inside = false;
        return rc;
    }
    return postgres__finish(r, rc);
}

/* Ends the stream that is open, if one is, without its result: that may be gone. */
static inline int postgres__end_stream(postgres_db *db)
{
    postgres_result rest = {.db = db, .streams = true};
    if (!db->stream)
        return 0;
    db->inside = true;
    (void)postgres__finish(&rest, 0);
    PQclear(rest.data);
    return db->conn ? 0 : -ECONNRESET;
}

static inline int postgres_result_close(postgres_result *r)
{
    if (!r)
        return 0;
    bool is_open = r->db && r->db->stream == r->stream;
    if (is_open && r->db->inside)
        return conc_fail(-EBUSY, "postgres_result_close: another task reads this stream");
    int rc = is_open ? postgres__end_stream(r->db) : 0;
    PQclear(r->data);
    *r = (postgres_result){0};
    return rc;
}

static inline int postgres_close(postgres_db *db)
{
    if (!db)
        return 0;
    if (postgres__is_others(db))
        return conc_fail(-EBUSY, "postgres_close: another task uses this connection");
    postgres__end_stream(db);
    PQfinish(db->conn);
    db->conn = NULL;
    db->lost = false;
    return 0;
}

/* ---- values --------------------------------------------------------------------------------- */

static inline const char *postgres__int(char text[24], long long n)
{
    snprintf(text, 24, "%lld", n);
    return text;
}

static inline const char *postgres_text(const postgres_result *r, int column)
{
    if (!r || r->row >= PQntuples(r->data) || column < 0 || column >= PQnfields(r->data))
        return NULL;
    bool null = PQgetisnull(r->data, r->row, column);
    return null ? NULL : PQgetvalue(r->data, r->row, column);
}

static inline int postgres_integer(const postgres_result *r, int column, int64_t *value)
{
    const char *text = postgres_text(r, column);
    char *end;
    if (!text)
        return conc_fail(-ENODATA, "column %d has no value", column);
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (end == text || *end)
        return conc_fail(-EINVAL, "column %d is no whole number: %s", column, text);
    if (errno == ERANGE)
        return conc_fail(-ERANGE, "column %d is too large: %s", column, text);
    *value = n;
    return 0;
}

static inline int postgres_column(const postgres_result *r, const char *name)
{
    int column = r && name ? PQfnumber(r->data, name) : -1;
    return column >= 0 ? column : conc_fail(-ENOENT, "no column %s", name ? name : "(NULL)");
}

/* ---- transactions --------------------------------------------------------------------------- */

static inline bool postgres__in_transaction(const postgres_db *db)
{
    PGTransactionStatusType status = PQtransactionStatus(db->conn);
    return status == PQTRANS_INTRANS || status == PQTRANS_INERROR;
}

static inline int postgres__roll_back(void *arg)
{
    postgres_db *db = arg;
    postgres__end_stream(db);
    return postgres__in_transaction(db) ? postgres_query(db, NULL, "ROLLBACK") : 0;
}

static inline int postgres__commit(postgres_db *db)
{
    if (db->stream)
        return conc_fail(-EBUSY, "postgres_transaction: a stream was left open");
    if (PQtransactionStatus(db->conn) == PQTRANS_INERROR)
        return postgres__fail(db, -EIO, "25P02", "a statement of the transaction has failed");
    return postgres_query(db, NULL, "COMMIT");
}

static inline int postgres_transaction(postgres_db *db, postgres_fn *fn, void *arg)
{
    if (!db || !fn)
        return conc_fail(-EINVAL, "postgres_transaction: no postgres_db, or no function");
    if (postgres__in_transaction(db) && !postgres__is_others(db))
        return conc_fail(-EINVAL, "postgres_transaction: in a transaction already");
    CONC_TRY(postgres_query(db, NULL, "BEGIN"));
    db->owner = conc_self();
    int rc = fn(db, arg);
    int committed = rc < 0 ? rc : postgres__commit(db);
    if (committed < 0) {
        double limit = postgres__cancel_limit(db);
        rc = committed;
        if (conc_shield(limit, postgres__roll_back, db) < 0 && db->conn)
            postgres__lose(db, "the transaction could not be rolled back");
    }
    db->owner = NULL;
    return rc;
}

/* ---- notifications and health --------------------------------------------------------------- */

static inline int postgres_notification(postgres_db *db, PGnotify **n)
{
    if (!n)
        return conc_fail(-EINVAL, "postgres_notification: no place for it");
    CONC_TRY(postgres__enter(db, 0));
    int rc = 0;
    db->statement[0] = 0;
    while (rc == 0 && !(*n = PQnotifies(db->conn)))
        rc = postgres__read(db);
    db->inside = false;
    return rc;
}

static inline bool postgres_usable(postgres_db *db)
{
    if (!db || !db->conn || db->inside || db->stream || db->owner)
        return false;
    db->statement[0] = 0;
    /* twice: the server's last words, then the end */
    bool alive = PQconsumeInput(db->conn) && PQconsumeInput(db->conn);
    (void)PQisBusy(db->conn); /* it looks at what came: notices */
    if (!alive || db->lost)
        postgres__broken(db);
    return PQtransactionStatus(db->conn) == PQTRANS_IDLE;
}

static inline int postgres_ping(postgres_db *db) { return postgres_query(db, NULL, ""); }

static inline int postgres_reset(postgres_db *db)
{
    CONC_TRY(postgres__enter(db, db ? db->stream : 0));
    db->inside = false;
    CONC_TRY(postgres__roll_back(db));
    return postgres_query(db, NULL, "DISCARD ALL");
}

#endif
