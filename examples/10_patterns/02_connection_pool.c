/* Connection pool. A thousand concurrent operations share ten connections to a database. A task
   acquires a handle, and its connection goes back to the pool however the block ends. The pool
   replaces worn, old or broken connections, checks idle ones, limits queueing time, and reconnects
   while the server restarts. Each operation records a payment; afterwards each must be in the table
   once, or have failed with an error.

   cc 02_connection_pool.c -o pool -lsqlite3 $(pkg-config --cflags --libs libpq)
   ./pool                                                     # SQLite, in a temporary folder
   DATABASE="host=127.0.0.1 port=5433 user=postgres" ./pool   # and PostgreSQL
   ./pool --goal                                              # measures 1000 operations at once
   ./pool "host=127.0.0.1 port=5433 user=postgres"            # PostgreSQL alone
   ./pool "host=127.0.0.1 port=5433 user=postgres" 50000 60   # 50000 operations, at most 60 s each

   Restart the server during the last command: the operations wait, and none is lost or doubled. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/postgres.h"
#include "../common/sqlite.h"
#include <sys/resource.h>
#include <sys/socket.h>

/* ---- the pool ---- */

/* What the pool needs to know of a kind of connection, which has size bytes, zero at first. */
typedef struct driver {
    size_t size;
    int (*open)(void *conn, const char *address); /* waits; after an error nothing is open */
    bool (*usable)(void *conn); /* as far as this side knows: open, and nothing under way */
    int (*check)(void *conn);   /* waits: does the other side answer? */
    int (*close)(void *conn);   /* waits */
} driver;

/* A place for a connection. The one who has taken it from the queue owns it. */
typedef struct slot {
    bool open;
    int uses;
    double opened, returned; /* when */
    max_align_t conn[];
} slot;

typedef struct pool {
    const driver *driver;
    const char *address;
    int size;               /* connections at most; they are opened when they are needed */
    int max_uses;           /* of one connection, which is then replaced; 0: no limit */
    double max_age;         /* the same in seconds */
    double check_after;     /* a connection that has idled so long is checked first */
    double acquire_timeout; /* in line; 0: no limit */
    double connect_timeout; /* of an attempt to connect, and of a check; 0: no limit */
    int connect_attempts;
    /* to read */
    int in_use, most_in_use, open, most_open;
    int acquired, returned, connected, recycled, checked, unhealthy, refused;
    char words[160]; /* of the newest attempt to connect that failed */
    /* private */
    int slots;
    bool closing;
    conc_queue free; /* slots, the last used first; tasks wait for them first come, first served */
} pool;

/* A task's hold on a connection: CONC_AUTO(handle, h) = {0}; then pool_acquire(&p, &h). */
typedef struct handle {
    void *conn; /* NULL: none */
    pool *pool;
    slot *slot;
} handle;

static double limit(double seconds) { return seconds > 0 ? seconds : CONC_FOREVER; }

/* May the same call succeed soon? */
static bool is_passing(int rc)
{
    static const int known[] = {-ECONNREFUSED, -ECONNRESET, -ENOTCONN, -ETIMEDOUT, -EAGAIN, -EBUSY};
    for (size_t i = 0; i < CONC_LEN(known); i++)
        if (rc == known[i])
            return true;
    return false;
}

static void disconnect(handle *h)
{
    if (!h->slot->open)
        return;
    h->pool->driver->close(h->slot->conn);
    h->slot->open = false;
    h->pool->open--;
}

static int connect_once(void *arg)
{
    handle *h = arg;
    return h->pool->driver->open(h->slot->conn, h->pool->address);
}

/* Connects, with longer and longer pauses between the attempts. */
static int connect_again(handle *h)
{
    pool *p = h->pool;
    double pause = 0.1;
    int rc;
    for (int n = 1; (rc = conc_timeout(limit(p->connect_timeout), connect_once, h)) < 0; n++) {
        if (rc != -ECANCELED) {
            p->refused++;
            snprintf(p->words, sizeof p->words, "%s", conc_last_error());
        }
        if (!is_passing(rc) || n >= p->connect_attempts)
            return rc;
        CONC_TRY(conc_sleep(pause * conc_random(0.5, 1)));
        pause = pause < 1 ? pause * 2 : pause;
    }
    h->slot->open = true;
    h->slot->uses = 0;
    h->slot->opened = conc_now();
    p->connected++;
    if (++p->open > p->most_open)
        p->most_open = p->open;
    return 0;
}

static int check(void *arg)
{
    handle *h = arg;
    h->pool->checked++;
    return h->pool->driver->check(h->slot->conn);
}

/* Makes the connection of a slot fit for its next user. */
static int prepare(handle *h)
{
    pool *p = h->pool;
    slot *s = h->slot;
    double now = conc_now();
    bool worn = p->max_uses > 0 && s->uses >= p->max_uses;
    bool old = p->max_age > 0 && now - s->opened >= p->max_age;
    if (s->open && (worn || old)) {
        p->recycled++;
        disconnect(h);
    }
    int rc = 0;
    if (s->open && !p->driver->usable(s->conn))
        rc = -ENOTCONN;
    else if (s->open && now - s->returned >= p->check_after)
        rc = conc_timeout(limit(p->connect_timeout), check, h);
    if (rc == -ECANCELED)
        return rc;
    if (rc < 0) {
        p->unhealthy++;
        disconnect(h);
    }
    return s->open ? 0 : connect_again(h);
}

/* Gives the connection to the first in line, or back. Never waits. */
static int pool_release(handle *h)
{
    handle had = *h;
    if (!had.pool)
        return 0;
    *h = (handle){0};
    if (had.conn) {
        had.slot->uses++;
        had.slot->returned = conc_now();
    }
    had.pool->in_use--;
    had.pool->returned++;
    return conc_queue_try_put(&had.pool->free, &had.slot);
}
CONC_AUTO_TYPE(handle, pool_release);

static int next_free(void *arg)
{
    handle *h = arg;
    return conc_queue_get(&h->pool->free, &h->slot);
}

/* Waits in line for a connection. -ETIMEDOUT: none was free in time; -ESHUTDOWN: the pool is
   closed; or the reason why the database is out of reach. After an error *h has none. */
static int pool_acquire(pool *p, handle *h)
{
    if (h->pool)
        return conc_fail(-EBUSY, "the handle has a connection already");
    if (p->closing || !p->slots)
        return conc_fail(-ESHUTDOWN, "the pool is closed");
    handle got = {.pool = p};
    int rc = conc_timeout(limit(p->acquire_timeout), next_free, &got);
    if (rc == -ETIMEDOUT)
        return conc_fail(rc, "no connection was free within %g s", p->acquire_timeout);
    CONC_TRY(rc);
    p->acquired++;
    if (++p->in_use > p->most_in_use)
        p->most_in_use = p->in_use;
    rc = prepare(&got);
    if (rc < 0) {
        pool_release(&got);
        return rc;
    }
    got.conn = got.slot->conn;
    *h = got;
    return 0;
}

/* fn(arg, conn) with a connection. If that is lost, fn is called again with a new one, three times
   at most: so it has to be idempotent, as what the lost one has done is not known. */
static int pool_execute(pool *p, int (*fn)(void *arg, void *conn), void *arg)
{
    CONC_AUTO(handle, h) = {0};
    CONC_TRY(pool_acquire(p, &h));
    int rc = fn(arg, h.conn);
    for (int n = 1; n < 3 && is_passing(rc); n++) {
        CONC_TRY(prepare(&h));
        rc = fn(arg, h.conn);
    }
    return rc;
}

static int pool_open(pool *p)
{
    p->free = (conc_queue)CONC_QUEUE(slot *, 0, .kind = CONC_QUEUE_LIFO);
    for (; p->slots < p->size; p->slots++) {
        slot *s = calloc(1, sizeof *s + p->driver->size);
        int rc = s ? conc_queue_try_put(&p->free, &s) : -ENOMEM;
        if (rc < 0) {
            free(s);
            return rc;
        }
    }
    return 0;
}

static int close_each(void *arg)
{
    handle h = {.pool = arg};
    for (; h.pool->slots > 0; h.pool->slots--) {
        CONC_TRY(next_free(&h));
        disconnect(&h);
        free(h.slot);
    }
    return 0;
}

/* Closes each connection once it is free; those who are in line come first. Waits. */
static int pool_close(pool *p)
{
    p->closing = true;
    int rc = conc_shield(CONC_FOREVER, close_each, p);
    conc_queue_destroy(&p->free);
    return rc;
}
CONC_AUTO_TYPE(pool, pool_close);

/* ---- the operations: payments, a thousand at once ---- */

/* A kind of database. */
typedef struct database {
    const char *name;
    driver driver;
    /* Runs SQL with numbers for its $1 and $2; *n is the first of its result. */
    int (*number)(void *conn, int64_t *n, const char *sql, int64_t one, int64_t two);
    int (*cut)(void *conn);       /* breaks it, as a network does that drops idle connections */
    int (*create)(void *address); /* a place for the table, and the table */
    int (*drop)(void *address);
} database;

#define CREATE "CREATE TABLE payments (id BIGINT PRIMARY KEY, amount BIGINT NOT NULL)"
#define COUNT "SELECT count(*) FROM payments WHERE id BETWEEN $1 AND $2"
/* Idempotent: an earlier call may have had its effect, and lost its answer. */
#define PAY                                 \
    "INSERT INTO payments VALUES ($1, $2) " \
    "ON CONFLICT (id) DO UPDATE SET amount = payments.amount RETURNING amount"

typedef struct payment payment;

typedef struct shop {
    const database *db;
    const char *address;
    pool *pool;
    bool goal;
    int count; /* of payments */
    payment *payments;
    double limit; /* seconds for each */
    conc_barrier start;
    int at_once, most_at_once, done, failed;
    bool wrong; /* a figure is not what it has to be */
} shop;

struct payment {
    shop *shop;
    int64_t id, amount, found; /* found: afterwards, in the table */
    int rc;
    char words[160]; /* of its error */
};

static int pay(void *arg, void *conn)
{
    const payment *p = arg;
    int64_t amount = 0;
    CONC_TRY(p->shop->db->number(conn, &amount, PAY, p->id, p->amount));
    if (amount != p->amount)
        return conc_fail(-EBADMSG, "payment %d is %d", (int)p->id, (int)amount);
    return 0;
}

/* A task. Its error is kept, and the others go on. */
static int operation(void *arg)
{
    payment *p = arg;
    shop *s = p->shop;
    if (++s->at_once > s->most_at_once)
        s->most_at_once = s->at_once;
    CONC_TRY(conc_barrier_wait(&s->start));
    conc_scope scope = {0};
    CONC_TRY(conc_scope_begin(&scope, s->limit));
    p->rc = conc_scope_end(&scope, pool_execute(s->pool, pay, p));
    s->at_once--;
    if (p->rc == -ECANCELED)
        return p->rc;
    if (p->rc == -ETIMEDOUT && scope.expired)
        conc_fail(p->rc, "not done within %g s", s->limit);
    if (p->rc < 0)
        snprintf(p->words, sizeof p->words, "%s", conc_last_error());
    *(p->rc < 0 ? &s->failed : &s->done) += 1;
    return 0;
}

static int progress(void *arg)
{
    const shop *s = arg;
    bool terminal = isatty(STDERR_FILENO);
    const char *format = terminal ? "\r%d of %d done, %d failed " : "%d of %d done, %d failed\n";
    while (conc_sleep(terminal ? 0.1 : 1) == 0)
        fprintf(stderr, format, s->done, s->count, s->failed);
    if (terminal)
        fprintf(stderr, "\r%40s\r", "");
    return -ECANCELED;
}

static int pay_all(shop *s)
{
    CONC_AUTO(conc_group, side) = {0};
    CONC_TRY(conc_spawn(&side, progress, s));
    for (int i = 0; i < s->count; i++)
        s->payments[i] = (payment){.shop = s, .id = i, .amount = i % 97 + 1};
    return conc_map(operation, s->payments, (size_t)s->count, sizeof *s->payments);
}

/* ---- the account of them all ---- */

static void expect(shop *s, const char *what, int64_t is, int64_t should_be)
{
    printf("  %-56s %6lld", what, (long long)is);
    if (is != should_be)
        printf(", but it has to be %lld", (long long)should_be);
    printf("\n");
    s->wrong = s->wrong || is != should_be;
}

static void report(shop *s)
{
    const pool *p = s->pool;
    expect(s, "operations at once", s->most_at_once, s->count);
    expect(s, "done, with the right answer", s->done, s->count - s->failed);
    printf("  %-56s %6d\n", "failed", s->failed);
    for (int i = 0, shown = 0; i < s->count && shown < 3; i++)
        if (s->payments[i].rc < 0 && ++shown)
            printf("    operation %d: %s\n", i, s->payments[i].words);
    expect(s, "connections in use at most", p->most_in_use, p->size);
    expect(s, "open beyond the size of the pool", p->most_open > p->size, 0);
    expect(s, "returned, of those acquired", p->returned, p->acquired);
    printf("  opened %d times, %d were broken, %d attempts to connect failed\n", p->connected,
           p->unhealthy, p->refused);
    if (p->refused)
        printf("    %s\n", p->words);
}

static int count(void *arg, void *conn)
{
    payment *p = arg;
    return p->shop->db->number(conn, &p->found, COUNT, p->id, p->id);
}

static int look_up(void *arg) { return pool_execute(((payment *)arg)->shop->pool, count, arg); }

/* Looks up each payment, and compares with what its task was told. */
static int audit(void *arg)
{
    shop *s = arg;
    int64_t lost = 0, unseen = 0, rows = 0;
    CONC_TRY(conc_map(look_up, s->payments, (size_t)s->count, sizeof *s->payments));
    for (const payment *p = s->payments; p < s->payments + s->count; p++) {
        lost += p->rc >= 0 && !p->found;
        unseen += p->rc < 0 && p->found;
    }
    CONC_AUTO(handle, h) = {0};
    CONC_TRY(pool_acquire(s->pool, &h));
    CONC_TRY(s->db->number(h.conn, &rows, COUNT, INT_MIN, INT_MAX));
    expect(s, "done, but not in the table", lost, 0);
    expect(s, "rows in the table", rows, s->done + unseen);
    return 0;
}

/* ---- the rules of the pool, one by one ---- */

static pool pool_of(const shop *s, int size)
{
    return (pool){.driver = &s->db->driver,
                  .address = s->address,
                  .size = size,
                  .check_after = 1,
                  .connect_timeout = 5,
                  .connect_attempts = 10};
}

static int look(void *arg, void *conn)
{
    int64_t n;
    return ((shop *)arg)->db->number(conn, &n, COUNT, 0, 0);
}

static int misspell(void *arg, void *conn)
{
    int64_t n;
    return ((shop *)arg)->db->number(conn, &n, "SELECT nothing FROM nowhere WHERE $1 < $2", 0, 0);
}

static int show_recycling(shop *s)
{
    CONC_AUTO(pool, p) = pool_of(s, 1);
    CONC_TRY(pool_open(&p));
    p.max_uses = 3;
    for (int i = 0; i < 7; i++)
        CONC_TRY(pool_execute(&p, look, s));
    expect(s, "connections for 7 uses, if 3 wear one out", p.connected, 3);
    p.max_age = 0.05;
    CONC_TRY(conc_sleep(2 * p.max_age));
    CONC_TRY(pool_execute(&p, look, s));
    expect(s, "connections after the next use, as the last is too old", p.connected, 4);
    expect(s, "operations that failed", pool_execute(&p, misspell, s) < 0, 1);
    expect(s, "returned, of those acquired", p.returned, p.acquired);
    return 0;
}

static int refusals, (*real_open)(void *conn, const char *address);

static int open_late(void *conn, const char *address)
{
    if (refusals++ < 2)
        return conc_fail(-ECONNREFUSED, "the server starts");
    return real_open(conn, address);
}

static int show_health(shop *s)
{
    driver late = s->db->driver;
    real_open = late.open;
    late.open = open_late;
    refusals = 0;
    CONC_AUTO(pool, p) = pool_of(s, 1);
    CONC_AUTO(handle, h) = {0};
    p.driver = &late;
    p.check_after = 0.1;
    CONC_TRY(pool_open(&p));
    CONC_TRY(pool_acquire(&p, &h));
    expect(s, "attempts to connect to a server that starts", p.refused + p.connected, 3);
    void *conn = h.conn;
    pool_release(&h);
    CONC_TRY(conc_sleep(2 * p.check_after));
    CONC_TRY(pool_execute(&p, look, s));
    expect(s, "checks of a connection that has idled", p.checked, 1);
    s->db->cut(conn);
    CONC_TRY(pool_execute(&p, look, s));
    expect(s, "connections found broken, and replaced", p.unhealthy, 1);
    return 0;
}

/* Returns its turn. */
static int wait_in_line(void *arg)
{
    CONC_AUTO(handle, h) = {0};
    CONC_TRY(pool_acquire(arg, &h));
    return h.pool->acquired;
}

static int show_waiting(shop *s)
{
    CONC_AUTO(pool, p) = pool_of(s, 1);
    CONC_AUTO(handle, h) = {0};
    CONC_TRY(pool_open(&p));
    CONC_TRY(pool_acquire(&p, &h));
    p.acquire_timeout = 0.05;
    expect(s, "waits in line that reached their limit", wait_in_line(&p) == -ETIMEDOUT, 1);
    printf("    %s\n", conc_last_error());
    p.acquire_timeout = 0;
    conc_task line[3] = {0};
    int turns[3];
    conc_group g = {0};
    for (int i = 0; i < 3; i++) {
        CONC_TRY_IN(&g, conc_spawn_task(&g, &line[i], wait_in_line, &p));
        CONC_TRY_IN(&g, conc_settle());
    }
    conc_cancel(&line[0]);
    pool_release(&h);
    for (int i = 0; i < 3; i++)
        CONC_TRY_IN(&g, conc_join(&line[i], &turns[i]));
    CONC_TRY(conc_group_wait(&g));
    expect(s, "waits in line that were cancelled", turns[0] == -ECANCELED, 1);
    expect(s, "the turn of the next in line", turns[1], 2);
    expect(s, "the turn of the last in line", turns[2], 3);
    return 0;
}

/* ---- SQLite ---- */

static int lite_open(void *conn, const char *path)
{
    sqlite_db *db = conn;
    *db = (sqlite_db){.must_exist = true, .wal = true, .synchronous = "NORMAL", .busy_timeout = 30};
    return sqlite_open(db, path);
}

static bool lite_usable(void *conn)
{
    sqlite3 *handle = ((sqlite_db *)conn)->handle;
    return handle && sqlite3_get_autocommit(handle); /* no transaction is open */
}

static int lite_check(void *conn) { return sqlite_ping(conn); }
static int lite_close(void *conn) { return sqlite_close(conn); }

static int lite_number(void *conn, int64_t *n, const char *sql, int64_t one, int64_t two)
{
    return sqlite_number((sqlite_db *)conn, n, sql, sqlite_int(one), sqlite_int(two));
}

static int lite_drop(void *path)
{
    static const char *const ends[] = {"-wal", "-shm", ""};
    char name[200];
    for (size_t i = 0; i < CONC_LEN(ends); i++) {
        snprintf(name, sizeof name, "%s%s", (char *)path, ends[i]);
        unlink(name);
    }
    *strrchr(name, '/') = 0;
    rmdir(name);
    return 0;
}

/* path: of a file in a folder whose name ends with XXXXXX, which becomes a new one. */
static int lite_create(void *path)
{
    char *slash = strrchr(path, '/');
    *slash = 0;
    if (!mkdtemp(path))
        return conc_fail(-errno, "%s: %s", (char *)path, conc_strerror(-errno));
    *slash = '/';
    sqlite_db db = {.wal = true};
    int rc = sqlite_open(&db, path);
    if (rc >= 0)
        rc = sqlite_exec(&db, CREATE);
    sqlite_close(&db);
    if (rc < 0)
        lite_drop(path);
    return rc;
}

static const database sqlite = {
    "SQLite",    {sizeof(sqlite_db), lite_open, lite_usable, lite_check, lite_close},
    lite_number, lite_close,
    lite_create, lite_drop};

/* ---- PostgreSQL: in a schema of this run, so no table of others is touched ---- */

/* sql has a %d for the number of the schema. */
static int pg_run(postgres_db *db, const char *sql)
{
    char text[200];
    snprintf(text, sizeof text, sql, (int)getpid());
    return postgres_query(db, NULL, text);
}

static int pg_open(void *conn, const char *conninfo)
{
    postgres_db *db = conn;
    *db = (postgres_db){.conninfo = conninfo, .cancel_limit = 1};
    CONC_TRY(postgres_open(db));
    int rc = pg_run(db, "SET search_path TO conc_pool_%d");
    if (rc < 0)
        postgres_close(db);
    return rc;
}

static bool pg_usable(void *conn) { return postgres_usable(conn); }
static int pg_check(void *conn) { return postgres_ping(conn); }
static int pg_close(void *conn) { return postgres_close(conn); }
static int pg_cut(void *conn) { return shutdown(PQsocket(((postgres_db *)conn)->conn), SHUT_RDWR); }

static int pg_number(void *conn, int64_t *n, const char *sql, int64_t one, int64_t two)
{
    postgres_result r = {0};
    int rc = postgres_query((postgres_db *)conn, &r, sql, POSTGRES_INT(one), POSTGRES_INT(two));
    if (rc >= 0)
        rc = postgres_integer(&r, 0, n);
    postgres_result_close(&r);
    return rc;
}

static int pg_once(const char *conninfo, const char *sql)
{
    postgres_db db = {0};
    CONC_TRY(pg_open(&db, conninfo));
    int rc = pg_run(&db, sql);
    postgres_close(&db);
    return rc;
}

/* One statement, so there is either all of it or nothing. */
static int pg_create(void *conninfo)
{
    return pg_once(conninfo, "CREATE SCHEMA conc_pool_%d " CREATE);
}

static int pg_drop(void *conninfo)
{
    return pg_once(conninfo, "DROP SCHEMA IF EXISTS conc_pool_%d CASCADE");
}

static const database postgres = {
    "PostgreSQL", {sizeof(postgres_db), pg_open, pg_usable, pg_check, pg_close},
    pg_number,    pg_cut,
    pg_create,    pg_drop};

/* ---- the program ---- */

typedef struct options {
    bool goal;
    int count;
    double limit;
    char *path, *conninfo; /* of the databases; NULL: not this one */
} options;

static int trade(shop *s)
{
    CONC_AUTO(pool, p) = pool_of(s, 10);
    s->pool = &p;
    CONC_TRY(pool_open(&p));
    if (!s->goal) {
        CONC_TRY(show_recycling(s));
        CONC_TRY(show_health(s));
        CONC_TRY(show_waiting(s));
    }
    double start = conc_now();
    CONC_TRY(pay_all(s));
    double seconds = conc_now() - start;
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    if (s->goal)
        printf("  goal: 1000 at once; measured: %d at once, %.0f a second, peak memory %.1f MB\n",
               s->most_at_once, s->done / seconds, (double)use.ru_maxrss / 1024);
    report(s);
    int rc = conc_timeout(s->limit, audit, s);
    if (rc == -ETIMEDOUT)
        return conc_fail(rc, "the payments could not be looked up within %g s", s->limit);
    return rc;
}

/* Makes a place for the table, and removes it in any case. */
static int serve(const database *db, char *address, const options *o)
{
    shop s = {.db = db, .address = address, .goal = o->goal, .count = o->count, .limit = o->limit};
    s.start.parties = s.count;
    printf("%s: %d operations over 10 connections\n", db->name, s.count);
    int rc = conc_timeout(s.limit, db->create, address);
    if (rc < 0 && rc != -ECANCELED)
        return rc;
    s.payments = calloc((size_t)s.count, sizeof *s.payments);
    if (rc >= 0)
        rc = s.payments ? trade(&s) : -ENOMEM;
    free(s.payments);
    char words[256];
    snprintf(words, sizeof words, "%s", conc_last_error());
    if (conc_shield(3, db->drop, address) < 0)
        fprintf(stderr, "pool: the table is left behind: %s\n", conc_last_error());
    if (s.wrong || s.failed)
        conc_set_exit_status(1);
    return rc < 0 ? conc_fail(rc, "%s", words) : 0;
}

static int app(void *arg)
{
    const options *o = arg;
    if (o->path)
        CONC_TRY(serve(&sqlite, o->path, o));
    if (o->conninfo)
        return serve(&postgres, o->conninfo, o);
    printf("PostgreSQL: none is named. To start one, as any user but root:\n"
           "  PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); initdb -D /tmp/pg -U postgres\n"
           "  pg_ctl -D /tmp/pg -o '-p 5433 -k /tmp' -l /tmp/pg/log start\n"
           "  DATABASE='host=127.0.0.1 port=5433 user=postgres' ./pool\n");
    return 0;
}

/* [--goal] [CONNINFO [OPERATIONS [SECONDS]]] */
static bool parse(options *o, char **argv)
{
    o->goal = *argv && strcmp(*argv, "--goal") == 0;
    argv += o->goal;
    if (*argv)
        o->conninfo = *argv++;
    if (*argv)
        o->count = atoi(*argv++);
    if (*argv)
        o->limit = atof(*argv++);
    bool is_option = o->conninfo && o->conninfo[0] == '-';
    return !*argv && !is_option && o->count > 0 && o->limit > 0;
}

int main(int argc, char **argv)
{
    options o = {.count = 1000, .limit = 30};
    if (!parse(&o, argv + (argc > 0))) {
        fprintf(stderr, "usage: pool [--goal] [CONNINFO [OPERATIONS [SECONDS]]]\n");
        return 2;
    }
    const char *folder = getenv("TMPDIR");
    char path[180];
    snprintf(path, sizeof path, "%s/poolXXXXXX/pool.db", folder ? folder : "/tmp");
    if (!o.conninfo) {
        o.path = path;
        o.conninfo = getenv("DATABASE");
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    return conc_main(app, &o);
}
