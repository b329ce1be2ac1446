/* postgres.h - PostgreSQL for conc tasks: libpq without blocking the loop.
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
 *   Tasks      one task at a time may use a connection, others get -EBUSY; until all rows of a
 *              stream are read, every other statement gets -EBUSY. During a transaction the
 *              connection belongs to the task that began it.
 *   Values     parameters and values are text, as in psql; NULL is SQL's NULL. Parameters are never
 *              part of the SQL: '; DROP TABLE is just a strange name.
 *   Off-loop   threads do libpq's blocking work, with conc_offload_abandon: connecting (names,
 *              certificates, password and service files, hashes) and cancel requests.
 *   Limits     a cancel or a scope's time limit ends every call that waits. The call then sends the
 *              rest of the statement, cancels it on the server, and reads the rest of its reply,
 *              for at most .cancel_limit, shielded from further cancels:
 *              -ECANCELED  the statement had no effect, the connection is usable
 *              0 or more   the statement completed before the cancel arrived
 *              -ECANCELED with the connection closed: the server did not reply in time, and the
 *                          effect is unknown. The next call returns -ENOTCONN
 *   Lost       if the server or the network ends the connection, one call returns -ECONNRESET, the
 *              next ones -ENOTCONN. It is not reconnected automatically, because its transaction
 *              and settings are gone: postgres_open reopens it.
 *
 * Server errors, by SQLSTATE or its first characters; the first match applies:
 *     23505 23P01 42P07 42710 42P06 42P04 42701   -EEXIST        the row, table, ... exists
 *     40001 40P01 53300 55P03                     -EAGAIN        retry the (whole) transaction
 *     42P01 42703 42883 42704 3D000 3F000         -ENOENT        no such table, column, ...
 *     28 42501                                    -EACCES        password, privileges
 *     22003                                       -ERANGE        a number is too large
 *     25006                                       -EROFS         read-only transaction
 *     08P01 22 23 25 42                           -EINVAL        bad value, constraint, syntax
 *     0A -ENOTSUP, 53100 -ENOSPC, 53200 -ENOMEM
 *     57014                                       -EINTR         statement_timeout, or cancelled
 *                                                                by someone else
 *     57P                                         -ECONNREFUSED  the server is starting or stopping
 *     all that end the session                    -ECONNRESET
 *     others                                      -EIO
 *
 * Not covered
 *     COPY FROM STDIN and TO STDOUT: -ENOTSUP, and the connection is closed. Binary values,
 *     pipelines, several statements in one call (-EINVAL).
 *     connect_timeout, which only libpq's blocking calls support: use conc_timeout. A cancel
 *     request to a server that never replies occupies a thread. At most three such requests run per
 *     file that includes this; a connection that needs a fourth is closed without one. A TLS proxy
 *     that sends records of more than 8 KB may stall libpq's non-blocking reads, which do not
 *     report the unread part of a record; PostgreSQL itself sends none.
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

/* A connection. Do not move it while it is open. */
typedef struct postgres_db {
    /* libpq's connection string or URL: "host=db.example dbname=shop user=me", or
     * "postgres://me@db.example/shop"; NULL: the environment (PGHOST, ...). Borrowed until
     * postgres_open returns */
    const char *conninfo;
    size_t result_limit; /* bytes of memory for the rows of a postgres_query; 0: no limit */
    double cancel_limit; /* seconds to end a cancelled statement; 0: 5 */
    void (*on_notice)(const char *text, void *user); /* gets the server's notices; NULL: they are
                                                        dropped */
    void *user;
    /* to be read */
    char error[256];  /* the newest error; "" before the first */
    char sqlstate[6]; /* its SQLSTATE; "": not from the server */
    PGconn *conn;     /* for libpq's own functions that do not wait; NULL: not connected */
    /* private */
    bool inside, lost;
    uint64_t streams, stream; /* number of streams so far; number of the open one, 0: none */
    unsigned parts;           /* of replies, fetched so far */
    conc_task *owner;         /* of the transaction */
    char statement[64];
} postgres_db;

/* Rows, and a current row: at first the first one; postgres_next moves to the next. */
typedef struct postgres_result {
    int64_t count;  /* rows, or rows that the statement changed; in a stream: rows so far */
    PGresult *data; /* for libpq's own functions, borrowed; in a stream the newest row only */
    /* private */
    postgres_db *db; /* while its statement runs */
    PGresult *failure;
    int row, refused;
    uint64_t stream;
    bool moved, streams, stopping;
} postgres_result;

typedef int postgres_fn(postgres_db *db, void *arg);

/* Connects. Waits, without a limit of its own; a cancel leaves nothing open. Errors: -EINVAL (the
 * connection string, or already open), -ECONNREFUSED (no listener, no such host, no PostgreSQL, and
 * all else without a SQLSTATE), -EACCES (no password was given), the table above, -EBUSY,
 * -ENOMEM. */
static inline int postgres_open(postgres_db *db);

/* Closes the connection, which may be reopened. First cancels an open stream on the server, which
 * waits at most .cancel_limit; the server rolls a transaction back. Returns 0, even if it was never
 * opened. -EBUSY: another task is inside a call; nothing is closed. */
static inline int postgres_close(postgres_db *db);

/* postgres_query(&db, &r, "SELECT ... WHERE name = $1 AND price > $2", name, POSTGRES_INT(3))
 * executes one statement with its parameters, reads its whole reply, and returns the number of
 * rows, or of rows that it changed. r is zero or holds an earlier result, which is freed, and whose
 * values may be parameters; a NULL r drops the rows. Free r with postgres_result_close. Waits.
 * Errors: the table above, -EMSGSIZE (more than .result_limit: the statement is cancelled; a single
 * row is always read whole), -ECONNRESET, -ENOTCONN, -EBUSY, -EINVAL (no SQL). */
#define postgres_query(db, result, ...)                           \
    postgres__query((db), (result), POSTGRES__WORDS(__VA_ARGS__), \
                    sizeof POSTGRES__WORDS(__VA_ARGS__) / sizeof(const char *))

/* The same for large results: only sends the statement. postgres_next then reads one row after the
 * other, or returns the server's error. The connection is in use until the last row is read or
 * until postgres_result_close. Waits while the statement does not fit into the network's
 * buffers. */
#define postgres_stream(db, result, ...)                           \
    postgres__stream((db), (result), POSTGRES__WORDS(__VA_ARGS__), \
                     sizeof POSTGRES__WORDS(__VA_ARGS__) / sizeof(const char *))

/* Makes a parameter of a number; its text lives as long as the block around the call. */
#define POSTGRES_INT(n) postgres__int((char[24]){0}, (n))

/* Moves to the next row and returns 1, or 0 after the last one. In a stream it waits; a cancel
 * loses nothing, and the stream continues. Errors end the stream: the table above, -ECONNRESET;
 * -ENOTCONN: the connection was closed meanwhile. */
static inline int postgres_next(postgres_result *r);

/* Frees the rows. Cancels an open stream on the server, which waits at most .cancel_limit.
 * -ECONNRESET: that failed, and the connection was closed. -EBUSY: another task is inside a call of
 * this stream; nothing happens. */
static inline int postgres_result_close(postgres_result *r);

/* Returns a value of the current row, borrowed from the result. NULL: SQL's NULL, no row, no such
 * column. */
static inline const char *postgres_text(const postgres_result *r, int column);

/* Stores it in *value as a number. Errors: -ENODATA (NULL, no row, no such column), -EINVAL (not an
 * integer), -ERANGE. */
static inline int postgres_integer(const postgres_result *r, int column, int64_t *value);

/* Returns the number of the column with this name, or -ENOENT. */
static inline int postgres_column(const postgres_result *r, const char *name);

/* Runs fn(db, arg) between BEGIN and COMMIT. If it fails or is cancelled, it is rolled back,
 * shielded from cancels for .cancel_limit, and its error is returned; if the ROLLBACK fails, the
 * connection is closed. Waits. A cancel during COMMIT: 0 or more: it was committed; -ECANCELED and
 * still connected: it was not; -ECONNRESET, or not connected: unknown. Errors: those of fn and of
 * postgres_query; -EINVAL (already in a transaction); -EIO: a statement failed, but fn returned
 * success. After -EAGAIN the whole transaction may be retried. */
static inline int postgres_transaction(postgres_db *db, postgres_fn *fn, void *arg);

/* Waits for the next notification on a channel after "LISTEN channel": (*n)->relname and
 * (*n)->extra; free *n with PQfreemem. A cancel loses none. */
static inline int postgres_notification(postgres_db *db, PGnotify **n);

/* Can another task use the connection now: connected, no call in progress, no stream, no
 * transaction? After any error it tells whether the connection is still usable; it also detects
 * that the server has ended it. Costs two system calls and does not wait. */
static inline bool postgres_usable(postgres_db *db);

/* Checks that the server replies. Waits; errors as postgres_query. */
static inline int postgres_ping(postgres_db *db);

/* Makes the connection as good as new for the next user: ends a stream, rolls back a transaction,
 * and drops settings, prepared statements, temporary tables and locks (DISCARD ALL). Waits; errors
 * as postgres_query. */
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

/* Copies libpq's message as one line, without the location in the server's source. */
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

/* Stores an error in db and as the task's last error. Returns rc. */
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

/* Closes an unusable connection. If the server has sent a fatal error, its text is kept, because it
 * says more than libpq's. */
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

/* Does the error end the session? libpq's own errors, which have no SQLSTATE, mean that it cannot
 * parse the server's data any more. */
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
    if (fatal) { /* the reason for the end that libpq will notice next */
        postgres__fail(db, -ECONNRESET, postgres__field(notice, PG_DIAG_SQLSTATE), text);
        db->lost = true;
    } else if (db->on_notice) {
        db->on_notice(text, db->user);
    }
}

/* ---- opening and closing -------------------------------------------------------------------- */

/* A connection being opened. The task and each job hold a reference, because a cancel abandons the
 * job. */
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
    PQsetErrorVerbosity(o->conn, PQERRORS_VERBOSE); /* else its messages lack the SQLSTATE */
    return PQstatus(o->conn) == CONNECTION_BAD ? PGRES_POLLING_FAILED : PGRES_POLLING_WRITING;
}

/* libpq reports why it could not connect only as text: "FATAL: 3D000: database ...". */
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

/* Is another task inside a call, or does it have a transaction open? */
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

/* Waits for data from the server and reads it. */
static inline int postgres__read(postgres_db *db)
{
    CONC_TRY(conc_wait_fd(PQsocket(db->conn), CONC_READABLE));
    return PQconsumeInput(db->conn) ? 0 : postgres__broken(db);
}

/* Sends what libpq has buffered. Reads meanwhile, because the server does not read while its own
 * reply is stuck. */
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

/* Gets the next part of the reply, NULL after the last. Parts that have already arrived need no
 * wait, so it yields to other tasks from time to time. */
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

/* Refuses the reply: the statement fails with rc, and is cancelled if it still runs. */
static inline int postgres__refuse(postgres_result *r, int rc, const char *text)
{
    r->refused = rc;
    postgres__fail(r->db, rc, "", text);
    return r->stopping ? 0 : rc;
}

/* Appends a row to the result. */
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

/* Closes the connection: libpq cannot reliably leave COPY FROM STDIN if the statement is cancelled
 * at that moment, and a later statement would get a wrong reply. */
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

/* Handles a part of the reply, which it owns. Returns 1 if it is a row for the reader of a
 * stream. */
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
            break; /* the rows were appended before */
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

/* Reads the next row for the reader of a stream. Returns 1, or 0 at the end of the reply. */
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

/* Reads the whole reply, or the rest of one that was interrupted. */
static inline int postgres__collect(void *r)
{
    int rc;
    while ((rc = postgres__next_row(r)) > 0)
        continue;
    return rc;
}

/* Limits the cancel requests in progress: each occupies a thread until the server replies. */
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
    (void)counted; /* this request was counted */
}

/* Asks the server to cancel the running statement. On return the server has handled the request, so
 * it cannot hit a later statement. */
static inline int postgres__request_cancel(postgres_db *db)
{
    CONC_TRY(conc_channel_send(postgres__requests(), NULL));
    PGcancel *cancel = PQgetCancel(db->conn);
    return conc_offload_abandon(postgres__request_here, cancel, postgres__request_drop);
}

/* Cancels the statement and reads the rest of its reply. A request that arrives before the server
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

/* Is a reply not read to its end? */
static inline bool postgres__is_active(const postgres_db *db)
{
    return PQtransactionStatus(db->conn) == PQTRANS_ACTIVE;
}

static inline double postgres__cancel_limit(const postgres_db *db)
{
    return db->cancel_limit > 0 ? db->cancel_limit : 5;
}

/* Ends a statement early. Returns `why`, or 0 if the statement had completed before the cancel
 * arrived. */
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

/* Ends a call that has read its reply. rc is 0 or the error that cut it short. */
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

/* Begins a statement. If it returns 0, the task is inside a call. Frees the old rows of r after
 * sending, because the parameters may be among them. */
static inline int postgres__start(postgres_db *db, postgres_result *r, bool streams,
                                  const char *const *words, size_t n)
{
    if (r->db && r->db->stream == r->stream)
        return conc_fail(-EBUSY, "postgres: this result has an open stream: close it first");
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

/* Ends the open stream, if any, without using its postgres_result, which may be gone. */
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
        return conc_fail(-EINVAL, "column %d is not an integer: %s", column, text);
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
        return conc_fail(-EINVAL, "postgres_notification: no pointer for it");
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
    /* twice: the server's last message, then the end */
    bool alive = PQconsumeInput(db->conn) && PQconsumeInput(db->conn);
    (void)PQisBusy(db->conn); /* handles notices that arrived */
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
