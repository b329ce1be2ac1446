/* test_postgres.c - examples/common/postgres.h against a real server: values, errors, streams,
 * limits, cancels in every call that waits, transactions, notifications, a restart, a server that
 * hangs; and against servers that send garbage, too much, or end early.
 *
 * Needs libpq (pkg-config). Programs: initdb and postgres, in /usr/lib/postgresql/VERSION/bin or
 * in PATH, and openssl; as root they run as the user postgres. Threads connect and send cancel
 * requests.
 */
#define TEST_SYNC
#define TEST_POOL
#include "server.h"

#include "postgres.h"

#include <dlfcn.h>
#include <glob.h>
#include <netdb.h>
#include <pthread.h>
#include <pwd.h>

/* ---- the server ---- */

typedef struct cluster {
    server server;
    char program[300], port[8], conninfo[128];
    const char *argv[8];
} cluster;

static server template; /* never started: initdb takes a second, so clusters are copies of it */
static cluster shared;  /* for all tests except those that stop a server */
static char template_data[96];
static char bin[256]; /* "": in PATH */
static pid_t parent;

static void give_up(const char *why)
{
    fprintf(stderr, "test_postgres: %s\n", why);
    exit(1);
}

static void find_programs(void)
{
    glob_t found;
    if (glob("/usr/lib/postgresql/*/bin/initdb", 0, NULL, &found) == 0) {
        snprintf(bin, sizeof bin, "%s", found.gl_pathv[found.gl_pathc - 1]);
        strrchr(bin, '/')[1] = 0;
    }
    globfree(&found);
}

static void choose_user(server *s)
{
    struct passwd *user = getuid() == 0 ? getpwnam("postgres") : NULL;
    if (getuid() == 0 && !user)
        give_up("PostgreSQL refuses root, and there is no user postgres");
    s->user = user ? user->pw_uid : 0;
    s->group = user ? user->pw_gid : 0;
}

static void run_to_end(const server *s, const char *const *argv)
{
    server once = *s;
    int status = -1;
    once.argv = argv;
    server_launch(&once);
    waitpid(once.pid, &status, 0);
    if (status)
        give_up("a program failed, see the log in the folder");
}

/* Before that it accepts connections and refuses them. */
static bool is_ready(const cluster *c)
{
    char path[128], text[512] = "";
    snprintf(path, sizeof path, "%s/data/postmaster.pid", c->server.folder);
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    return strstr(text, "\nready") != NULL;
}

static void start(cluster *c)
{
    server_launch(&c->server);
    while (!is_ready(c)) {
        if (waitpid(c->server.pid, NULL, WNOHANG) == c->server.pid)
            give_up("the server ended");
        usleep(2000);
    }
}

static void make_cluster(cluster *c)
{
    choose_user(&c->server);
    server_make_folder(&c->server);
    run_to_end(&c->server, (const char *const[]){"cp", "-a", template_data, ".", NULL});
    c->server.end_signal = SIGQUIT;
    c->server.port = server_free_port();
    snprintf(c->port, sizeof c->port, "%d", c->server.port);
    snprintf(c->program, sizeof c->program, "%spostgres", bin);
    snprintf(c->conninfo, sizeof c->conninfo,
             "host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=disable",
             c->server.port);
    const char *const argv[] = {c->program, "-D", "data",           "-p",
                                c->port,    "-k", c->server.folder, NULL};
    memcpy(c->argv, argv, sizeof argv);
    c->server.argv = c->argv;
    start(c);
}

static void tear_down(void)
{
    if (getpid() != parent)
        return;
    server_end(&shared.server);
    server_end(&template);
}

/* Creates the servers' data, without passwords except for the role "secret". */
static void make_template(void)
{
    static const char script[] =
        "\"$0initdb\" -D data -A trust -U postgres -E UTF8 --locale=C --no-sync && cd data &&"
        "openssl req -new -x509 -nodes -subj /CN=localhost -keyout server.key -out server.crt &&"
        "chmod 600 server.key &&"
        "printf '%s\\n' ssl=on fsync=off shared_buffers=16MB max_connections=40 "
        "\"listen_addresses='127.0.0.1'\" >>postgresql.conf &&"
        "sed -i '1i host all secret 127.0.0.1/32 scram-sha-256' pg_hba.conf &&"
        "echo \"CREATE ROLE secret LOGIN PASSWORD 'sesame'\" | \"$0postgres\" --single -D . "
        "postgres";
    choose_user(&template);
    server_make_folder(&template);
    snprintf(template_data, sizeof template_data, "%s/data", template.folder);
    run_to_end(&template, (const char *const[]){"sh", "-c", script, bin, NULL});
}

__attribute__((constructor)) static void set_up(void)
{
    static const char *const variables[] = {"PGHOST",     "PGHOSTADDR", "PGPORT",    "PGUSER",
                                            "PGDATABASE", "PGPASSWORD", "PGSERVICE", "PGOPTIONS"};
    for (size_t i = 0; i < CONC_LEN(variables); i++)
        unsetenv(variables[i]);
    parent = getpid();
    find_programs();
    atexit(tear_down);
    make_template();
    make_cluster(&shared);
}

/* ---- tests in a task, which leak no descriptor ---- */

static int call_body(void *arg)
{
    (*(void (**)(void))arg)();
    return 0;
}

static void ignore_failure(const conc_failure *f, void *user) { (void)f, (void)user; }

static void run_body(void (*body)(void))
{
    conc_options options = {.on_error = ignore_failure};
    int fds = test_count_fds();
    CHECK_INT(conc_run_with(&options, call_body, &body), 0);
    CHECK_INT(test_count_fds(), fds);
}

#define POSTGRES_TEST(name)               \
    static void name##_body(void);        \
    TEST(name) { run_body(name##_body); } \
    static void name##_body(void)

static void open_db(postgres_db *db)
{
    if (!db->conninfo)
        db->conninfo = shared.conninfo;
    if (!db->cancel_limit)
        db->cancel_limit = 60; /* a slow machine is no error */
    int rc = postgres_open(db);
    if (rc)
        test_fail(__FILE__, __LINE__, "postgres_open: %d, %s", rc, db->error);
}

/* Returns the first value of the first row. */
static const char *ask(postgres_db *db, const char *sql)
{
    static char text[256];
    CONC_AUTO(postgres_result, r) = {0};
    int rc = postgres_query(db, &r, sql);
    if (rc < 0)
        test_fail(__FILE__, __LINE__, "%s: %d, %s", sql, rc, db->error);
    snprintf(text, sizeof text, "%s", postgres_text(&r, 0) ? postgres_text(&r, 0) : "(NULL)");
    return text;
}

static void do_sql(postgres_db *db, const char *sql)
{
    int rc = postgres_query(db, NULL, sql);
    if (rc < 0)
        test_fail(__FILE__, __LINE__, "%s: %d, %s", sql, rc, db->error);
}

static void check_works(postgres_db *db) { CHECK_STR(ask(db, "SELECT 6 * 7"), "42"); }

/* A statement in its own task. */
typedef struct job {
    postgres_db *db;
    const char *sql;
    postgres_result *stream; /* postgres_next of it instead */
    int rc;
    conc_task task;
} job;

static int do_job(void *arg)
{
    job *j = arg;
    return j->rc = j->stream ? postgres_next(j->stream) : postgres_query(j->db, NULL, j->sql);
}

/* ---- values ---- */

POSTGRES_TEST(parameters_and_values)
{
    const char *name = "'; DROP TABLE \"drinks\"; --";
    int64_t number = 0;
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    open_db(&db);
    CHECK_INT(postgres_query(&db, &r, "SELECT $1::text AS name, $2::int + 1, $3::text, ''", name,
                             POSTGRES_INT(-43), NULL),
              1);
    CHECK_INT(r.count, 1);
    CHECK_STR(postgres_text(&r, 0), name);
    CHECK_STR(postgres_text(&r, 1), "-42");
    CHECK(postgres_text(&r, 2) == NULL);
    CHECK_STR(postgres_text(&r, 3), "");
    CHECK_INT(postgres_integer(&r, 1, &number), 0);
    CHECK_INT(number, -42);
    CHECK_INT(postgres_integer(&r, 0, &number), -EINVAL);
    CHECK_INT(postgres_integer(&r, 2, &number), -ENODATA);
    CHECK_INT(postgres_integer(&r, 9, &number), -ENODATA);
    CHECK(postgres_text(&r, 4) == NULL && postgres_text(&r, -1) == NULL);
    CHECK_INT(postgres_column(&r, "name"), 0);
    CHECK_INT(postgres_column(&r, "nobody"), -ENOENT);
    CHECK_INT(postgres_query(&db, &r, "SELECT 9223372036854775807, 9223372036854775808"), 1);
    CHECK_INT(postgres_integer(&r, 0, &number), 0);
    CHECK_INT(number, INT64_MAX);
    CHECK_INT(postgres_integer(&r, 1, &number), -ERANGE);
    CHECK_INT(postgres_result_close(&r), 0);
    CHECK_INT(postgres_result_close(&r), 0);
    CHECK(postgres_text(&r, 0) == NULL);
    CHECK_INT(postgres_next(&r), 0);
}

POSTGRES_TEST(a_value_of_the_old_result_can_be_a_parameter_of_the_new_one)
{
    char expected[16];
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    open_db(&db);
    CHECK_INT(postgres_query(&db, &r, "SELECT 1"), 1);
    for (int n = 2; n < 100; n++) {
        CHECK_INT(postgres_query(&db, &r, "SELECT $1::int + 1", postgres_text(&r, 0)), 1);
        snprintf(expected, sizeof expected, "%d", n);
        CHECK_STR(postgres_text(&r, 0), expected);
    }
    CHECK_INT(postgres_query(&db, &r, "SELECT 1 / 0"), -EINVAL);
    CHECK(postgres_text(&r, 0) == NULL);
}

POSTGRES_TEST(rows_come_in_order_and_are_counted)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    char expected[16];
    int rows = 0;
    open_db(&db);
    CHECK_INT(postgres_query(&db, NULL, "CREATE TEMP TABLE t (n int)"), 0);
    CHECK_INT(postgres_query(&db, NULL, "INSERT INTO t SELECT generate_series(1, 500)"), 500);
    CHECK_INT(postgres_query(&db, NULL, "UPDATE t SET n = -n WHERE n > $1", "400"), 100);
    CHECK_INT(postgres_query(&db, &r, "DELETE FROM t WHERE n < 0 RETURNING n"), 100);
    CHECK_INT(postgres_query(&db, &r, "SELECT n FROM t WHERE false"), 0);
    CHECK_INT(postgres_column(&r, "n"), 0);
    CHECK_INT(postgres_next(&r), 0);
    CHECK_INT(postgres_query(&db, &r, "SELECT n FROM t ORDER BY n"), 400);
    CHECK_STR(postgres_text(&r, 0), "1"); /* without a next it is the first row */
    for (; postgres_next(&r) > 0; rows++) {
        snprintf(expected, sizeof expected, "%d", rows + 1);
        CHECK_STR(postgres_text(&r, 0), expected);
    }
    CHECK_INT(rows, 400);
    CHECK(postgres_text(&r, 0) == NULL);
    CHECK_INT(postgres_next(&r), 0);
}

POSTGRES_TEST(large_values_go_both_ways)
{
    enum { SIZE = 8 << 20 };
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    char *big = malloc(SIZE + 1);
    open_db(&db);
    for (int i = 0; i < SIZE; i++)
        big[i] = (char)('a' + i % 23);
    big[SIZE] = 0;
    CHECK_INT(postgres_query(&db, &r, "SELECT $1::text || 'x', length($1)", big), 1);
    CHECK_STR(postgres_text(&r, 1), "8388608");
    CHECK(strncmp(postgres_text(&r, 0), big, SIZE) == 0);
    CHECK_STR(postgres_text(&r, 0) + SIZE, "x");
    free(big);
}

/* ---- errors ---- */

TEST(the_table_of_errors)
{
    static const struct {
        const char *sqlstate;
        int rc;
    } table[] = {
        {"23505", -EEXIST}, {"42P07", -EEXIST}, {"42701", -EEXIST},       {"40001", -EAGAIN},
        {"40P01", -EAGAIN}, {"53300", -EAGAIN}, {"55P03", -EAGAIN},       {"42P01", -ENOENT},
        {"3F000", -ENOENT}, {"28P01", -EACCES}, {"42501", -EACCES},       {"22003", -ERANGE},
        {"22012", -EINVAL}, {"23503", -EINVAL}, {"25P02", -EINVAL},       {"42601", -EINVAL},
        {"08P01", -EINVAL}, {"25006", -EROFS},  {"0A000", -ENOTSUP},      {"53100", -ENOSPC},
        {"53200", -ENOMEM}, {"57014", -EINTR},  {"57P03", -ECONNREFUSED}, {"08006", -EIO},
        {"P0001", -EIO},    {"40002", -EIO},    {"XX000", -EIO},          {"", -EIO},
    };
    for (size_t i = 0; i < CONC_LEN(table); i++)
        CHECK_INT(postgres__errno(table[i].sqlstate), table[i].rc);
}

static void check_error(postgres_db *db, const char *sql, int rc, const char *sqlstate)
{
    CHECK_INT(postgres_query(db, NULL, sql), rc);
    CHECK_STR(db->sqlstate, sqlstate);
    CHECK_CONTAINS(db->error, sqlstate);
    CHECK_CONTAINS(db->error, "in: ");
    CHECK_CONTAINS(conc_last_error(), sqlstate);
    CHECK(postgres_usable(db));
    check_works(db);
}

POSTGRES_TEST(errors_of_the_server_have_a_code_and_a_text)
{
    CONC_AUTO(postgres_db, db) = {0};
    open_db(&db);
    do_sql(&db, "CREATE TEMP TABLE t (n int UNIQUE CHECK (n > 0))");
    do_sql(&db, "INSERT INTO t VALUES (1)");
    check_error(&db, "INSERT INTO t VALUES (1)", -EEXIST, "23505");
    CHECK_STR(db.error, "duplicate key value violates unique constraint \"t_n_key\" [23505], in: "
                        "INSERT INTO t VALUES (1)");
    check_error(&db, "CREATE TEMP TABLE t (n int)", -EEXIST, "42P07");
    check_error(&db, "INSERT INTO t VALUES (-1)", -EINVAL, "23514");
    check_error(&db, "SELEKT 1", -EINVAL, "42601");
    check_error(&db, "SELECT 1; SELECT 2", -EINVAL, "42601");
    check_error(&db, "SELECT * FROM nowhere", -ENOENT, "42P01");
    check_error(&db, "SELECT 100000::smallint", -ERANGE, "22003");
    check_error(&db, "SELECT 1 / 0", -EINVAL, "22012");
    check_error(&db, "SELECT $1::int", -EINVAL, "08P01"); /* without its parameter */
    check_error(&db, "SELECT pg_read_file('/nothing/here')", -EIO, "58P01");
    check_error(&db, "DO $$ BEGIN RAISE EXCEPTION 'no\n  more'; END $$", -EIO, "P0001");
    CHECK_CONTAINS(db.error, "no more [P0001]");
    do_sql(&db, "SET statement_timeout = 20");
    check_error(&db, "SELECT pg_sleep(60)", -EINTR, "57014");
    do_sql(&db, "SET default_transaction_read_only = on");
    check_error(&db, "CREATE TABLE never (n int)", -EROFS, "25006");
    CHECK_INT(postgres_query(&db, NULL, NULL), -EINVAL);
    CHECK_STR(db.sqlstate, "");
    check_works(&db);
}

POSTGRES_TEST(transactions_that_can_be_tried_again)
{
    CONC_AUTO(postgres_db, one) = {0};
    CONC_AUTO(postgres_db, two) = {0};
    open_db(&one);
    open_db(&two);
    do_sql(&one, "CREATE TABLE again (n int)");
    do_sql(&one, "INSERT INTO again VALUES (1)");
    do_sql(&one, "BEGIN ISOLATION LEVEL REPEATABLE READ");
    CHECK_STR(ask(&one, "SELECT n FROM again"), "1");
    do_sql(&two, "UPDATE again SET n = 2");
    CHECK_INT(postgres_query(&one, NULL, "UPDATE again SET n = 3"), -EAGAIN);
    CHECK_STR(one.sqlstate, "40001");
    CHECK(!postgres_usable(&one)); /* its transaction has failed */
    do_sql(&one, "ROLLBACK");
    CHECK(postgres_usable(&one));
    do_sql(&one, "BEGIN");
    do_sql(&one, "LOCK TABLE again");
    CHECK_INT(postgres_query(&two, NULL, "LOCK TABLE again NOWAIT"), -EINVAL); /* no transaction */
    do_sql(&two, "BEGIN");
    CHECK_INT(postgres_query(&two, NULL, "LOCK TABLE again NOWAIT"), -EAGAIN);
    CHECK_STR(two.sqlstate, "55P03");
}

POSTGRES_TEST(errors_of_opening)
{
    char text[192];
    int port = server_free_port();
    CONC_AUTO(postgres_db, db) = {.conninfo = "host=127.0.0.1 gibberish"};
    CHECK_INT(postgres_open(&db), -EINVAL);
    CHECK_CONTAINS(db.error, "gibberish");
    db.conninfo = "hoost=127.0.0.1";
    CHECK_INT(postgres_open(&db), -EINVAL);
    CHECK_CONTAINS(db.error, "hoost");
    db.conninfo = text;
    snprintf(text, sizeof text, "host=127.0.0.1 port=%d", port);
    CHECK_INT(postgres_open(&db), -ECONNREFUSED);
    CHECK_CONTAINS(db.error, "127.0.0.1");
    CHECK_CONTAINS(conc_last_error(), "127.0.0.1");
    snprintf(text, sizeof text, "host=/nowhere port=%d", port);
    CHECK_INT(postgres_open(&db), -ECONNREFUSED);
    CHECK_CONTAINS(db.error, "/nowhere");
    snprintf(text, sizeof text, "%s dbname=nobodys", shared.conninfo);
    CHECK_INT(postgres_open(&db), -ENOENT);
    CHECK_STR(db.sqlstate, "3D000");
    CHECK_CONTAINS(db.error, "nobodys");
    snprintf(text, sizeof text, "%s user=nobody", shared.conninfo);
    CHECK_INT(postgres_open(&db), -EACCES);
    CHECK_STR(db.sqlstate, "28000");
    CHECK_INT(postgres_query(&db, NULL, "SELECT 1"), -ENOTCONN);
    CHECK(!postgres_usable(&db));
    db.conninfo = shared.conninfo; /* and afterwards it works */
    open_db(&db);
    check_works(&db);
    CHECK_INT(postgres_open(&db), -EINVAL);
    check_works(&db);
}

POSTGRES_TEST(too_many_connections)
{
    enum { MOST = 41 };
    static postgres_db dbs[MOST];
    int n = 0, rc = 0;
    for (; n < MOST && rc == 0; n++) {
        dbs[n].conninfo = shared.conninfo;
        rc = postgres_open(&dbs[n]);
    }
    CHECK_INT(rc, -EAGAIN);
    CHECK_STR(dbs[n - 1].sqlstate, "53300");
    while (n--)
        CHECK_INT(postgres_close(&dbs[n]), 0);
}

POSTGRES_TEST(a_list_of_hosts_is_tried_in_order_and_a_socket_in_a_folder_works)
{
    char text[192];
    CONC_AUTO(postgres_db, db) = {.conninfo = text};
    snprintf(text, sizeof text, "host=127.0.0.1,localhost port=%d,%d user=postgres",
             server_free_port(), shared.server.port);
    open_db(&db);
    check_works(&db);
    CHECK_INT(postgres_close(&db), 0);
    snprintf(text, sizeof text, "postgres://postgres@127.0.0.1:%d/postgres", shared.server.port);
    open_db(&db);
    check_works(&db);
    CHECK_INT(postgres_close(&db), 0);
    snprintf(text, sizeof text, "host=%s port=%d user=postgres", shared.server.folder,
             shared.server.port);
    open_db(&db);
    check_works(&db);
}

/* The later keyword counts. */
static const char *with(const char *words)
{
    static char text[256];
    snprintf(text, sizeof text, "%s %s", shared.conninfo, words);
    return text;
}

POSTGRES_TEST(a_password_and_tls)
{
    enum { SIZE = 1 << 20 };
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    char *big = calloc(1, SIZE + 1);
    int rows = 0;
    db.conninfo = with("user=secret sslmode=require");
    CHECK_INT(postgres_open(&db), -EACCES);
    CHECK_CONTAINS(db.error, "no password supplied");
    db.conninfo = with("user=secret sslmode=require password=wrong");
    CHECK_INT(postgres_open(&db), -EACCES);
    CHECK_STR(db.sqlstate, "28P01");
    CHECK(strstr(db.error, "wrong") == NULL);
    db.conninfo = with("user=secret sslmode=require password=sesame");
    open_db(&db);
    CHECK(PQsslInUse(db.conn));
    memset(big, 'x', SIZE);
    CHECK_INT(postgres_query(&db, &r, "SELECT $1 || 'y'", big), 1);
    CHECK(strncmp(postgres_text(&r, 0), big, SIZE) == 0);
    CHECK_STR(postgres_text(&r, 0) + SIZE, "y");
    CHECK_INT(postgres_stream(&db, &r, "SELECT n, $1::text FROM generate_series(1, 20) n", big), 0);
    for (; postgres_next(&r) > 0; rows++)
        CHECK_INT(PQgetlength(r.data, 0, 1), SIZE);
    CHECK_INT(rows, 20);
    job j = {.db = &db, .sql = "SELECT pg_sleep(60)"};
    CHECK_INT(conc_timeout(0.05, do_job, &j), -ETIMEDOUT);
    check_works(&db);
    CHECK_INT(postgres_stream(&db, &r, "SELECT generate_series(1, 1000000000)"), 0);
    CHECK_INT(postgres_next(&r), 1);
    CHECK_INT(postgres_result_close(&r), 0);
    check_works(&db);
    free(big);
}

static char noticed[128];
static void keep_notice(const char *text, void *user)
{
    CHECK(user == noticed);
    snprintf(noticed, sizeof noticed, "%s", text);
}

POSTGRES_TEST(notices_go_to_a_function)
{
    CONC_AUTO(postgres_db, db) = {.on_notice = keep_notice, .user = noticed};
    open_db(&db);
    do_sql(&db, "DROP TABLE IF EXISTS nobodys");
    CHECK_STR(noticed, "table \"nobodys\" does not exist, skipping");
    CHECK_STR(db.error, "");
    db.on_notice = NULL;
    do_sql(&db, "DROP TABLE IF EXISTS others");
    CHECK_CONTAINS(noticed, "nobodys");
}

POSTGRES_TEST(copy_is_refused_and_closes_the_connection)
{
    static const char *const copies[] = {"COPY t FROM STDIN",
                                         "COPY (SELECT generate_series(1, 1000000)) TO STDOUT"};
    for (int i = 0; i < 4; i++) {
        CONC_AUTO(postgres_db, db) = {0};
        CONC_AUTO(postgres_result, r) = {0};
        open_db(&db);
        do_sql(&db, "CREATE TEMP TABLE t (n int)");
        if (i < 2) {
            CHECK_INT(postgres_query(&db, NULL, copies[i]), -ENOTSUP);
        } else {
            CHECK_INT(postgres_stream(&db, &r, copies[i - 2]), 0);
            CHECK_INT(postgres_next(&r), -ENOTSUP);
        }
        CHECK_CONTAINS(db.error, "COPY");
        CHECK_CONTAINS(conc_last_error(), "COPY");
        CHECK_INT(postgres_ping(&db), -ENOTCONN);
        open_db(&db);
        check_works(&db);
    }
}

/* ---- streams and limits ---- */

POSTGRES_TEST(a_stream_returns_row_after_row)
{
    enum { ROWS = 20000 };
    CONC_AUTO(postgres_db, db) = {.result_limit = 1}; /* which is for whole results */
    CONC_AUTO(postgres_result, r) = {0};
    int64_t number = 0, rows = 0;
    open_db(&db);
    CHECK_INT(postgres_stream(&db, &r, "SELECT n, repeat('x', 100) FROM generate_series(1, $1) n",
                              POSTGRES_INT(ROWS)),
              0);
    CHECK(postgres_text(&r, 0) == NULL);
    while (postgres_next(&r) > 0) {
        CHECK_INT(postgres_integer(&r, 0, &number), 0);
        CHECK_INT(number, ++rows);
        CHECK_INT(r.count, rows);
        CHECK_INT(PQntuples(r.data), 1);
        CHECK_INT(postgres_query(&db, NULL, "SELECT 1"), -EBUSY);
        CHECK(!postgres_usable(&db));
    }
    CHECK_INT(rows, ROWS);
    CHECK_INT(postgres_next(&r), 0);
    CHECK(postgres_usable(&db));
    CHECK_INT(postgres_stream(&db, &r, "SELECT 1 WHERE false"), 0); /* r is used again */
    CHECK_INT(postgres_next(&r), 0);
    CHECK_INT(postgres_stream(&db, &r, "SELEKT"), 0);
    CHECK_INT(postgres_next(&r), -EINVAL);
    CHECK_STR(db.sqlstate, "42601");
    CHECK_INT(postgres_next(&r), 0);
    CHECK(postgres_usable(&db));
}

POSTGRES_TEST(an_error_in_the_middle_of_a_stream_comes_after_its_rows)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    int rc, rows = 0;
    open_db(&db);
    CHECK_INT(postgres_stream(&db, &r, "SELECT 1 / (1001 - n) FROM generate_series(1, 2000) n"), 0);
    while ((rc = postgres_next(&r)) > 0)
        rows++;
    CHECK_INT(rows, 1000);
    CHECK_INT(rc, -EINVAL);
    CHECK_STR(db.sqlstate, "22012");
    check_works(&db);
}

POSTGRES_TEST(closing_a_stream_early_frees_the_connection)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    open_db(&db);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(postgres_stream(&db, &r, "SELECT generate_series(1, 1000000000)"), 0);
        CHECK_INT(postgres_next(&r), 1);
        CHECK_INT(postgres_stream(&db, &r, "SELECT 1"), -EBUSY);
        CHECK_INT(postgres_next(&r), 1);
        CHECK_STR(postgres_text(&r, 0), "2");
        CHECK_INT(postgres_result_close(&r), 0);
        check_works(&db);
    }
    CHECK_INT(postgres_stream(&db, &r, "SELECT pg_sleep(60)"), 0);
    CHECK_INT(postgres_result_close(&r), 0); /* before any answer */
    check_works(&db);
    CHECK_INT(postgres_stream(&db, &r, "SELECT pg_sleep(60)"), 0);
    CHECK_INT(postgres_close(&db), 0);
    CHECK_INT(postgres_next(&r), -ENOTCONN);
    CHECK_INT(postgres_next(&r), 0);
    open_db(&db);
    CHECK_STR(ask(&db, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' "
                       "AND state = 'active'"),
              "0");
}

POSTGRES_TEST(result_limit_ends_a_result_that_is_too_large)
{
    CONC_AUTO(postgres_db, db) = {.result_limit = 200000};
    CONC_AUTO(postgres_result, r) = {0};
    open_db(&db);
    CHECK_INT(postgres_query(&db, &r, "SELECT generate_series(1, 1000000000)"), -EMSGSIZE);
    CHECK_CONTAINS(db.error, "result_limit");
    CHECK(r.data == NULL);
    check_works(&db);
    CHECK_INT(postgres_query(&db, &r, "SELECT n, NULL, '' FROM generate_series(1, 1000) n"), 1000);
    for (int i = 1; i <= 1000; i++) {
        int64_t n = 0;
        CHECK_INT(postgres_next(&r), 1);
        CHECK_INT(postgres_integer(&r, 0, &n), 0);
        CHECK_INT(n, i);
        CHECK(postgres_text(&r, 1) == NULL);
        CHECK_STR(postgres_text(&r, 2), "");
    }
    CHECK_INT(postgres_next(&r), 0);
    CHECK_INT(postgres_query(&db, &r, "SELECT 1 / (500 - n) FROM generate_series(1, 1000) n"),
              -EINVAL);
    CHECK_INT(postgres_query(&db, &r, "SELECT 1 WHERE false"), 0);
    CHECK_INT(PQnfields(r.data), 1);
    CHECK_INT(postgres_query(&db, NULL, "CREATE TEMP TABLE t AS SELECT generate_series(1, 7)"), 7);
}

/* ---- cancels ---- */

/* Runs the job, cancels it once it waits, and returns its result. */
static int cancel_in(job *j)
{
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &j->task, do_job, j), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!conc_done(&j->task));
    CHECK_INT(conc_cancel(&j->task), 0);
    (void)!conc_group_wait(&g);
    return j->rc;
}

static void check_nothing_runs(postgres_db *db)
{
    CHECK_STR(ask(db, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' "
                      "AND state = 'active' AND pid <> pg_backend_pid()"),
              "0");
}

POSTGRES_TEST(a_cancel_ends_the_statement_on_the_server)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_db, other) = {0};
    open_db(&db);
    open_db(&other);
    for (int i = 0; i < 5; i++) {
        job j = {.db = &db, .sql = "SELECT pg_sleep(60)"};
        CHECK_INT(cancel_in(&j), -ECANCELED);
        check_nothing_runs(&other);
        CHECK(postgres_usable(&db));
        check_works(&db);
    }
    CHECK_STR(db.error, ""); /* a cancel is no error */
}

POSTGRES_TEST(a_time_limit_ends_the_statement_on_the_server)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_db, other) = {0};
    open_db(&db);
    open_db(&other);
    job j = {.db = &db, .sql = "SELECT pg_sleep(60)"};
    CHECK_INT(conc_timeout(0.05, do_job, &j), -ETIMEDOUT);
    check_nothing_runs(&other);
    check_works(&db);
    do_sql(&db, "CREATE TEMP TABLE t (n int)");
    j.sql = "INSERT INTO t VALUES (1)";
    CHECK_INT(conc_timeout(0, do_job, &j), -ETIMEDOUT); /* before it was sent */
    CHECK_STR(ask(&db, "SELECT count(*) FROM t"), "0");
}

/* A cancel at any moment: exactly what returned success was stored. */
POSTGRES_TEST(a_cancelled_insert_reports_whether_it_was_stored)
{
    enum { ROUNDS = 60 };
    int succeeded = 0, cancelled = 0;
    char count[16];
    CONC_AUTO(postgres_db, db) = {0};
    open_db(&db);
    do_sql(&db, "CREATE TEMP TABLE t (n int)");
    for (int i = 0; i < ROUNDS; i++) {
        job j = {.db = &db, .sql = "INSERT INTO t VALUES (1)"};
        conc_group g = {.keep_going = true};
        CHECK_INT(conc_spawn_task(&g, &j.task, do_job, &j), 0);
        for (int k = 0; k < i % 12; k++)
            CHECK_INT(i % 2 ? conc_yield() : conc_sleep(0.00003), 0);
        (void)conc_cancel(&j.task);
        (void)!conc_group_wait(&g);
        CHECK(j.rc == 1 || j.rc == -ECANCELED);
        succeeded += j.rc == 1;
        cancelled += j.rc == -ECANCELED;
        CHECK(postgres_usable(&db));
    }
    CHECK_INT(succeeded + cancelled, ROUNDS);
    CHECK(cancelled > 0); /* those before their start */
    snprintf(count, sizeof count, "%d", succeeded);
    CHECK_STR(ask(&db, "SELECT count(*) FROM t"), count);
}

/* Blocks the loop meanwhile, so that the answer is not read; but if the statement has not been sent
 * yet, the loop has to continue now and then. */
static void wait_for_row(PGconn *conn)
{
    enum { TRIES = 500 };
    int tries = 0;
    for (bool there = false; !there;) {
        if (++tries % TRIES == 0)
            CHECK_INT(conc_yield(), 0);
        PGresult *r = PQexec(conn, "SELECT 1 FROM over");
        CHECK_INT(PQresultStatus(r), PGRES_TUPLES_OK);
        there = PQntuples(r) > 0;
        PQclear(r);
    }
}

POSTGRES_TEST(a_cancel_that_comes_after_the_statement_was_executed_changes_nothing)
{
    CONC_AUTO(postgres_db, db) = {0};
    open_db(&db);
    do_sql(&db, "CREATE TABLE over (n int)");
    PGconn *conn = PQconnectdb(shared.conninfo);
    job j = {.db = &db, .sql = "INSERT INTO over VALUES (1)"};
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &j.task, do_job, &j), 0);
    while (!db.inside && !conc_done(&j.task))
        CHECK_INT(conc_yield(), 0);
    wait_for_row(conn);
    (void)conc_cancel(&j.task);
    (void)!conc_group_wait(&g);
    CHECK_INT(j.rc, 1);
    CHECK(postgres_usable(&db));
    PQfinish(conn);
}

POSTGRES_TEST(a_cancel_while_a_large_parameter_is_sent)
{
    enum { SIZE = 16 << 20 };
    CONC_AUTO(postgres_db, db) = {0};
    char *sql = malloc(SIZE + 64);
    open_db(&db);
    strcpy(sql, "SELECT pg_sleep(60), '");
    size_t used = strlen(sql);
    memset(sql + used, 'x', SIZE);
    strcpy(sql + used + SIZE, "'");
    job j = {.db = &db, .sql = sql};
    CHECK_INT(cancel_in(&j), -ECANCELED);
    check_works(&db);
    free(sql);
}

POSTGRES_TEST(a_cancel_in_next_loses_no_row)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_db, other) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    open_db(&db);
    open_db(&other);
    do_sql(&other, "SELECT pg_advisory_lock(7)");
    CHECK_INT(postgres_stream(&db, &r,
                              "SELECT 1 UNION ALL SELECT count(pg_advisory_lock_shared(7))::int + 1"
                              " UNION ALL SELECT 3"),
              0);
    for (int i = 0; i < 3; i++) { /* the first row is not sent before the second exists */
        job j = {.stream = &r};
        CHECK_INT(cancel_in(&j), -ECANCELED);
    }
    CHECK_INT(conc_timeout(0.01, do_job, &(job){.stream = &r}), -ETIMEDOUT);
    CHECK_INT(postgres_ping(&db), -EBUSY);
    do_sql(&other, "SELECT pg_advisory_unlock(7)");
    for (int i = 1; i <= 3; i++) {
        CHECK_INT(postgres_next(&r), 1);
        CHECK_INT(atoi(postgres_text(&r, 0)), i);
    }
    CHECK_INT(postgres_next(&r), 0);
    check_works(&db);
}

static int close_result(void *r)
{
    CHECK(conc_cancelled());
    return postgres_result_close(r);
}

POSTGRES_TEST(a_stream_is_closed_properly_in_a_cancelled_task)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    open_db(&db);
    CHECK_INT(postgres_stream(&db, &r, "SELECT pg_sleep(60)"), 0);
    CHECK_INT(conc_timeout(0, close_result, &r), 0);
    check_works(&db);
}

static int do_open(void *db) { return postgres_open(db); }

/* A listening socket that never accepts. */
POSTGRES_TEST(a_cancel_or_a_limit_while_connecting_leaves_nothing_open)
{
    char address[128], text[192];
    int fd = conc_listen("127.0.0.1:0"), fds = 0;
    CONC_AUTO(postgres_db, db) = {.conninfo = text};
    CHECK_INT(conc_address(fd, false, address, sizeof address), 0);
    snprintf(text, sizeof text, "host=127.0.0.1 port=%s", strrchr(address, ':') + 1);
    for (int i = 0; i < 3; i++) {
        conc_task task;
        conc_group g = {.keep_going = true};
        CHECK_INT(conc_spawn_task(&g, &task, do_open, &db), 0);
        CHECK_INT(conc_sleep(0.01), 0);
        CHECK_INT(postgres_query(&db, NULL, "SELECT 1"), -EBUSY);
        CHECK_INT(postgres_open(&db), -EBUSY);
        CHECK_INT(postgres_close(&db), -EBUSY);
        CHECK_INT(conc_cancel(&task), 0);
        int rc = 0;
        CHECK_INT(conc_join(&task, &rc), 0);
        CHECK_INT(rc, -ECANCELED);
        (void)!conc_group_wait(&g);
        CHECK_INT(conc_timeout(0.02, do_open, &db), -ETIMEDOUT);
        if (i == 0)
            fds = test_count_fds();
        CHECK_INT(test_count_fds(), fds);
    }
    CHECK_INT(postgres_query(&db, NULL, "SELECT 1"), -ENOTCONN);
    conc_close(fd);
}

/* Replaces libpq's name lookup, in a thread. */
static pthread_mutex_t name_server = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int lookups;

int getaddrinfo(const char *restrict host, const char *restrict port,
                const struct addrinfo *restrict hints, struct addrinfo **restrict out)
{
    typedef int function(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    function *real;
    void *found = dlsym((void *)-1L /* RTLD_NEXT */, "getaddrinfo");
    memcpy(&real, &found, sizeof real);
    if (!host || strcmp(host, "slow.example") != 0)
        return real(host, port, hints, out);
    lookups++;
    pthread_mutex_lock(&name_server);
    pthread_mutex_unlock(&name_server);
    return EAI_NONAME;
}

POSTGRES_TEST(a_name_server_that_does_not_answer_blocks_no_other_task)
{
    CONC_AUTO(postgres_db, slow) = {.conninfo = "host=slow.example user=postgres"};
    CONC_AUTO(postgres_db, db) = {0};
    conc_task task;
    conc_group g = {.keep_going = true};
    int rc = 0;
    pthread_mutex_lock(&name_server);
    CHECK_INT(conc_spawn_task(&g, &task, do_open, &slow), 0);
    while (!lookups)
        CHECK_INT(conc_sleep(0.001), 0);
    open_db(&db);
    check_works(&db);
    CHECK_INT(conc_cancel(&task), 0);
    CHECK_INT(conc_join(&task, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
    (void)!conc_group_wait(&g);
    pthread_mutex_unlock(&name_server);
    CHECK_INT(postgres_open(&slow), -ECONNREFUSED);
    CHECK_CONTAINS(slow.error, "slow.example");
}

/* ---- transactions ---- */

static int insert_one(postgres_db *db, void *arg)
{
    CONC_TRY(postgres_query(db, NULL, "INSERT INTO t VALUES ($1)", arg));
    return 7;
}

static int insert_and_fail(postgres_db *db, void *arg)
{
    CONC_TRY(insert_one(db, arg));
    return conc_fail(-EDOM, "changed my mind");
}

static int insert_twice(postgres_db *db, void *arg)
{
    CONC_TRY(insert_one(db, arg));
    return insert_one(db, arg);
}

static int hide_a_failure(postgres_db *db, void *arg)
{
    (void)insert_twice(db, arg);
    return 0;
}

static int nest(postgres_db *db, void *arg) { return postgres_transaction(db, insert_one, arg); }

static int leave_a_stream(postgres_db *db, void *arg)
{
    CONC_TRY(insert_one(db, "8"));
    return postgres_stream(db, arg, "SELECT generate_series(1, 1000000000)");
}

static int close_within(postgres_db *db, void *arg)
{
    CONC_TRY(insert_one(db, arg));
    return postgres_close(db);
}

POSTGRES_TEST(a_transaction_takes_effect_as_a_whole_or_not_at_all)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    open_db(&db);
    do_sql(&db, "CREATE TEMP TABLE t (n int UNIQUE DEFERRABLE INITIALLY IMMEDIATE)");
    CHECK_INT(postgres_transaction(&db, insert_one, "1"), 7);
    CHECK_INT(postgres_transaction(&db, insert_and_fail, "2"), -EDOM);
    CHECK_STR(conc_last_error(), "changed my mind");
    CHECK_INT(postgres_transaction(&db, insert_twice, "3"), -EEXIST);
    CHECK_STR(db.sqlstate, "23505");
    CHECK_CONTAINS(db.error, "INSERT INTO t");
    CHECK_INT(postgres_transaction(&db, hide_a_failure, "4"), -EIO);
    CHECK_INT(postgres_transaction(&db, nest, "5"), -EINVAL);
    CHECK_INT(postgres_transaction(&db, leave_a_stream, &r), -EBUSY);
    CHECK_INT(postgres_next(&r), -ENOTCONN);
    CHECK(postgres_usable(&db));
    CHECK_STR(ask(&db, "SELECT string_agg(n::text, ' ') FROM t"), "1");
    do_sql(&db, "ALTER TABLE t DROP CONSTRAINT t_n_key");
    do_sql(&db, "ALTER TABLE t ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED");
    CHECK_INT(postgres_transaction(&db, insert_twice, "6"), -EEXIST); /* COMMIT returns that */
    CHECK_STR(ask(&db, "SELECT string_agg(n::text, ' ') FROM t"), "1");
    do_sql(&db, "BEGIN");
    CHECK_INT(postgres_transaction(&db, insert_one, "9"), -EINVAL);
    do_sql(&db, "ROLLBACK");
    CHECK_INT(postgres_transaction(&db, NULL, NULL), -EINVAL);
    CHECK_INT(postgres_transaction(&db, close_within, "10"), -ENOTCONN);
}

static int insert_and_wait(postgres_db *db, void *sql)
{
    CONC_TRY(insert_one(db, "1"));
    return sql ? postgres_query(db, NULL, sql) : conc_sleep(CONC_FOREVER);
}

typedef struct transfer {
    postgres_db *db;
    char *sql;
    conc_task task;
    int rc;
} transfer;

static int do_transfer(void *arg)
{
    transfer *t = arg;
    return t->rc = postgres_transaction(t->db, insert_and_wait, t->sql);
}

POSTGRES_TEST(a_cancelled_transaction_is_rolled_back)
{
    char *waits[] = {NULL, "SELECT pg_sleep(60)"};
    CONC_AUTO(postgres_db, db) = {0};
    open_db(&db);
    do_sql(&db, "CREATE TEMP TABLE t (n int)");
    for (int i = 0; i < 6; i++) {
        transfer t = {.db = &db, .sql = waits[i % 2]};
        conc_group g = {.keep_going = true};
        CHECK_INT(conc_spawn_task(&g, &t.task, do_transfer, &t), 0);
        while (!db.owner || db.inside != (i % 2 == 1))
            CHECK_INT(conc_sleep(0.001), 0);
        CHECK(!postgres_usable(&db));
        CHECK_INT(postgres_query(&db, NULL, "SELECT 1"), -EBUSY); /* it belongs to the other task */
        CHECK_INT(postgres_transaction(&db, insert_one, "1"), -EBUSY);
        CHECK_INT(postgres_reset(&db), -EBUSY);
        CHECK_INT(postgres_close(&db), -EBUSY);
        (void)conc_cancel(&t.task);
        (void)!conc_group_wait(&g);
        CHECK_INT(t.rc, -ECANCELED);
        CHECK(postgres_usable(&db));
        CHECK_STR(ask(&db, "SELECT count(*) FROM t"), "0");
        CHECK_INT(conc_timeout(0.02, do_transfer, &t), -ETIMEDOUT);
        CHECK(postgres_usable(&db));
        CHECK_STR(ask(&db, "SELECT count(*) FROM t"), "0");
    }
}

/* The trigger makes COMMIT wait. */
POSTGRES_TEST(a_cancel_during_commit_reports_whether_it_was_committed)
{
    CONC_AUTO(postgres_db, db) = {0};
    open_db(&db);
    do_sql(&db, "CREATE TABLE slow (n int)");
    do_sql(&db, "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'");
    do_sql(&db, "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE "
                "INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slowly()");
    do_sql(&db, "CREATE TEMP TABLE t (n int)");
    transfer t = {.db = &db, .sql = "INSERT INTO slow VALUES (1)"};
    CHECK_INT(conc_timeout(0.1, do_transfer, &t), -ETIMEDOUT);
    CHECK_INT(t.rc, -ECANCELED);
    CHECK(postgres_usable(&db));
    CHECK_STR(ask(&db, "SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM slow)"), "0");
}

/* ---- notifications and health ---- */

typedef struct listener {
    postgres_db *db;
    PGnotify *got;
} listener;

static int listen_once(void *arg)
{
    listener *l = arg;
    return postgres_notification(l->db, &l->got);
}

static void check_notification(postgres_db *db, const char *channel, const char *text)
{
    PGnotify *n = NULL;
    CHECK_INT(postgres_notification(db, &n), 0);
    CHECK_STR(n->relname, channel);
    CHECK_STR(n->extra, text);
    PQfreemem(n);
}

POSTGRES_TEST(notifications_come_in_order_and_a_cancel_loses_none)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_db, other) = {0};
    listener l = {.db = &db};
    open_db(&db);
    open_db(&other);
    do_sql(&db, "LISTEN news");
    CHECK_INT(conc_timeout(0.01, listen_once, &l), -ETIMEDOUT);
    do_sql(&other, "NOTIFY news, 'first'");
    check_notification(&db, "news", "first");
    do_sql(&other, "NOTIFY news, 'second'");
    do_sql(&other, "NOTIFY news, 'third'");
    CHECK_INT(conc_timeout(0, listen_once, &l), -ETIMEDOUT);
    check_works(&db);
    check_notification(&db, "news", "second");
    check_notification(&db, "news", "third");
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, listen_once, &l), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(postgres_ping(&db), -EBUSY);
    do_sql(&other, "NOTIFY news, 'fourth'");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_STR(l.got->extra, "fourth");
    PQfreemem(l.got);
    CHECK_INT(postgres_notification(&db, NULL), -EINVAL);
}

POSTGRES_TEST(reset_makes_a_connection_like_new)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_result, r) = {0};
    open_db(&db);
    CHECK(postgres_usable(&db));
    CHECK_INT(postgres_ping(&db), 0);
    do_sql(&db, "SET work_mem = '1MB'");
    do_sql(&db, "CREATE TEMP TABLE t (n int)");
    do_sql(&db, "BEGIN");
    do_sql(&db, "CREATE TABLE never (n int)");
    CHECK(!postgres_usable(&db));
    CHECK_INT(postgres_ping(&db), 0);
    CHECK_INT(postgres_stream(&db, &r, "SELECT generate_series(1, 1000000000)"), 0);
    CHECK_INT(postgres_reset(&db), 0);
    CHECK(postgres_usable(&db));
    CHECK_STR(ask(&db, "SHOW work_mem"), "4MB");
    CHECK_INT(postgres_query(&db, NULL, "SELECT * FROM t"), -ENOENT);
    CHECK_INT(postgres_query(&db, NULL, "SELECT * FROM never"), -ENOENT);
}

POSTGRES_TEST(usable_notices_that_the_server_has_closed_the_connection)
{
    CONC_AUTO(postgres_db, db) = {0};
    CONC_AUTO(postgres_db, other) = {0};
    open_db(&db);
    open_db(&other);
    CHECK_INT(postgres_query(&other, NULL, "SELECT pg_terminate_backend($1, 10000)",
                             POSTGRES_INT(PQbackendPID(db.conn))),
              1);
    CHECK(!postgres_usable(&db));
    CHECK_STR(db.sqlstate, "57P01");
    CHECK_CONTAINS(db.error, "terminating connection due to administrator command");
    CHECK_INT(postgres_query(&db, NULL, "SELECT 1"), -ENOTCONN);
    CHECK_CONTAINS(conc_last_error(), "administrator");
    open_db(&db);
    CHECK_INT(postgres_query(&db, NULL, "SELECT pg_terminate_backend(pg_backend_pid())"),
              -ECONNRESET);
    CHECK_STR(db.sqlstate, "57P01");
    CHECK_INT(postgres_query(&db, NULL, "SELECT 1"), -ENOTCONN);
    open_db(&db);
    check_works(&db);
}

/* ---- a server that restarts or hangs ---- */

static cluster own;

static int wait_in_transaction(postgres_db *db, void *arg)
{
    (void)arg;
    return postgres_query(db, NULL, "SELECT pg_sleep(60)");
}

static int do_wait_in_transaction(void *db)
{
    return postgres_transaction(db, wait_in_transaction, NULL);
}

static void restart_body(void)
{
    CONC_AUTO(postgres_db, idle) = {.conninfo = own.conninfo};
    CONC_AUTO(postgres_db, reading) = {.conninfo = own.conninfo};
    CONC_AUTO(postgres_db, working) = {.conninfo = own.conninfo};
    CONC_AUTO(postgres_result, r) = {0};
    conc_task task;
    conc_group g = {.keep_going = true};
    int rc = 0, rows = 0;
    open_db(&idle), open_db(&reading), open_db(&working);
    do_sql(&idle, "CREATE TABLE kept (n int)");
    CHECK_INT(postgres_stream(&reading, &r, "SELECT generate_series(1, 1000000000)"), 0);
    CHECK_INT(postgres_next(&r), 1);
    CHECK_INT(conc_spawn_task(&g, &task, do_wait_in_transaction, &working), 0);
    CHECK_INT(conc_settle(), 0);
    server_stop(&own.server, SIGQUIT);
    CHECK_INT(conc_join(&task, &rc), 0);
    CHECK_INT(rc, -ECONNRESET);
    (void)!conc_group_wait(&g);
    while ((rc = postgres_next(&r)) > 0)
        rows++;
    CHECK_INT(rc, -ECONNRESET);
    CHECK(rows < 1000000000);
    CHECK_INT(postgres_query(&idle, NULL, "SELECT 1"), -ECONNRESET);
    CHECK_INT(postgres_query(&idle, NULL, "SELECT 1"), -ENOTCONN);
    CHECK(!postgres_usable(&working));
    CHECK_INT(postgres_ping(&working), -ENOTCONN);
    CHECK_INT(postgres_open(&idle), -ECONNREFUSED);
    start(&own);
    CHECK_INT(postgres_ping(&idle), -ENOTCONN); /* nothing reconnects unless asked */
    open_db(&idle);
    CHECK_STR(ask(&idle, "SELECT count(*) FROM kept"), "0");
}

TEST(a_restart_in_the_middle)
{
    make_cluster(&own);
    run_body(restart_body);
    server_end(&own.server);
}

/* Stops or continues the server and the processes that serve connections. */
static void signal_all(const int *pids, size_t n, int number)
{
    server_signal(&own.server, number);
    for (size_t i = 0; i < n; i++)
        CHECK(kill(pids[i], number) == 0);
}

enum { HUNG = 6 };

static int do_ping(void *db) { return postgres_ping(db); }
static int do_close_result(void *r) { return postgres_result_close(r); }

static void check_hung(postgres_db *dbs)
{
    char *big = malloc((16 << 20) + 1);
    memset(big, 'x', 16 << 20);
    big[16 << 20] = 0;
    CONC_AUTO(postgres_result, r) = {0};
    job insert = {.db = &dbs[0], .sql = "INSERT INTO t VALUES (1)"};
    CHECK_INT(conc_timeout(0.02, do_job, &insert), -ETIMEDOUT);
    CHECK(dbs[0].conn == NULL);
    CHECK_CONTAINS(dbs[0].error, "did not end");
    CHECK_INT(postgres_query(&dbs[0], NULL, "SELECT 1"), -ENOTCONN);
    transfer t = {.db = &dbs[1], .sql = "INSERT INTO t VALUES (2)"};
    CHECK_INT(conc_timeout(0.02, do_transfer, &t), -ETIMEDOUT);
    CHECK(dbs[1].conn == NULL);
    CHECK_INT(postgres_stream(&dbs[2], &r, "SELECT 1"), 0);
    CHECK_INT(conc_timeout(0.02, do_job, &(job){.stream = &r}), -ETIMEDOUT);
    CHECK(dbs[2].conn != NULL); /* a row that does not arrive is no reason */
    CHECK_INT(conc_timeout(0.02, do_close_result, &r), -ECONNRESET);
    CHECK(dbs[2].conn == NULL);
    CHECK_INT(conc_timeout(0.02, do_ping, &dbs[3]), -ETIMEDOUT); /* a fourth cancel request */
    CHECK(dbs[3].conn == NULL);
    insert = (job){.db = &dbs[4], .sql = big};
    CHECK_INT(conc_timeout(0.02, do_job, &insert), -ETIMEDOUT);
    CHECK(dbs[4].conn == NULL);
    CHECK_INT(conc_timeout(0.02, do_open, &dbs[0]), -ETIMEDOUT);
    CHECK(dbs[0].conn == NULL);
    CHECK_INT(postgres_stream(&dbs[5], &r, "SELECT 1"), 0);
    CHECK_INT(postgres_close(&dbs[5]), 0);
    free(big);
}

/* The threads that requested a cancel have ended, and closed their connections. */
static void wait_for_requests(void)
{
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_channel_send(postgres__requests(), NULL), 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_channel_try_recv(postgres__requests(), NULL), 0);
}

static void hang_body(void)
{
    postgres_db dbs[HUNG] = {0};
    int pids[HUNG];
    CONC_AUTO(postgres_db, other) = {0};
    for (int i = 0; i < HUNG; i++) {
        dbs[i] = (postgres_db){.conninfo = own.conninfo, .cancel_limit = 0.1};
        open_db(&dbs[i]);
        pids[i] = PQbackendPID(dbs[i].conn);
    }
    do_sql(&dbs[0], "CREATE TABLE t (n int)");
    signal_all(pids, HUNG, SIGSTOP);
    check_hung(dbs);
    open_db(&other); /* no other task is held up */
    job j = {.db = &other, .sql = "SELECT pg_sleep(60)"};
    signal_all(pids, HUNG, SIGCONT);
    CHECK_INT(cancel_in(&j), -ECANCELED); /* the threads are free again */
    check_works(&other);
    wait_for_requests();
    open_db(&dbs[0]);
    check_works(&dbs[0]);
    for (int i = 0; i < HUNG; i++)
        postgres_close(&dbs[i]);
}

TEST(a_server_that_hangs_blocks_no_task_beyond_the_limits)
{
    make_cluster(&own);
    run_body(hang_body);
    server_end(&own.server);
}

/* ---- servers that misbehave ---- */

/* What a false server sends: at the start of a connection, after a statement, and then
 * endlessly. */
typedef struct script {
    const char *hello;
    size_t hello_size;
    const char *answer;
    size_t answer_size;
    const char *flood;
    size_t flood_size;
    bool stays; /* until the client leaves */
} script;

#define OK "R\0\0\0\10\0\0\0\0" /* authentication */
#define READY "Z\0\0\0\5I"
#define SCRIPT(a, b, ...)                                                                 \
    {                                                                                     \
        .hello = a, .hello_size = sizeof a - 1, .answer = b, .answer_size = sizeof b - 1, \
        __VA_ARGS__                                                                       \
    }

static int misbehave(int fd, void *arg)
{
    const script *s = arg;
    char buffer[4096];
    CONC_TRY(conc_read(fd, buffer, sizeof buffer));
    CONC_TRY(conc_write_full(fd, s->hello, s->hello_size));
    if (s->answer_size)
        CONC_TRY(conc_read(fd, buffer, sizeof buffer));
    CONC_TRY(conc_write_full(fd, s->answer, s->answer_size));
    while (s->flood)
        CONC_TRY(conc_write_full(fd, s->flood, s->flood_size));
    while (s->stays && CONC_TRY(conc_read(fd, buffer, sizeof buffer)) > 0)
        continue;
    return 0;
}

static int serve_script(void *server) { return conc_serve(server); }

/* Opens, and executes a statement if that succeeded; returns the first error. */
static int try_script(const script *s, postgres_db *db, bool stream)
{
    char address[128], text[192];
    conc_server server = {
        .fd = conc_listen("127.0.0.1:0"), .handler = misbehave, .arg = (void *)(uintptr_t)s};
    conc_group g = {.keep_going = true};
    CONC_AUTO(postgres_result, r) = {0};
    CHECK_INT(conc_address(server.fd, false, address, sizeof address), 0);
    snprintf(text, sizeof text, "host=127.0.0.1 port=%s user=me sslmode=disable gssencmode=disable",
             strrchr(address, ':') + 1);
    CHECK_INT(conc_spawn(&g, serve_script, &server), 0);
    db->conninfo = text;
    int rc = postgres_open(db);
    if (rc == 0 && stream) {
        rc = postgres_stream(db, &r, "SELECT 1");
        while (rc == 0 || rc == 1)
            rc = postgres_next(&r);
    } else if (rc == 0) {
        rc = postgres_query(db, &r, "SELECT 1");
    }
    CHECK_INT(postgres_result_close(&r), 0);
    CHECK_INT(postgres_close(db), 0);
    conc_group_cancel(&g);
    (void)!conc_group_wait(&g);
    conc_close(server.fd);
    db->conninfo = NULL;
    return rc;
}

POSTGRES_TEST(a_server_that_is_not_postgresql_is_an_error)
{
    static const script scripts[] = {
        SCRIPT("", ""),                                         /* closes at once */
        SCRIPT("HTTP/1.1 400 Bad Request\r\n\r\n", ""),         /* another protocol */
        SCRIPT("R\0\0", ""),                                    /* closes in the middle */
        SCRIPT("R\377\377\377\377\0\0\0\0", "", .stays = true), /* an impossible length */
        SCRIPT("R\0\0\0\10\0\0\0\143", "", .stays = true),      /* an unknown kind of password */
        SCRIPT(OK, ""),                                         /* closes before it is ready */
        SCRIPT(OK "Qwertyuiopasdfghjkl", "", .stays = true),
        SCRIPT("E\0\0\0\40garbage in an error message\0\0", ""),
    };
    for (size_t i = 0; i < CONC_LEN(scripts); i++) {
        postgres_db db = {0};
        CHECK_INT(try_script(&scripts[i], &db, false), -ECONNREFUSED);
        CHECK(db.error[0] != 0);
        CHECK_STR(db.sqlstate, "");
    }
    static const script password = SCRIPT("R\0\0\0\10\0\0\0\3", "", .stays = true);
    postgres_db db = {0};
    CHECK_INT(try_script(&password, &db, false), -EACCES);
    CHECK_CONTAINS(db.error, "password");
}

POSTGRES_TEST(garbage_instead_of_an_answer)
{
    static const script scripts[] = {
        SCRIPT(OK READY, "\0\0\0\0\0\0\0\0", .stays = true),
        SCRIPT(OK READY, "HTTP/1.1 400 Bad Request\r\n\r\n", .stays = true),
        SCRIPT(OK READY, "?\0\0\0\4", .stays = true), /* an unknown message */
        SCRIPT(OK READY, "1\0\0\0\4"
                         "2\0\0\0\4"
                         "D\0\0\0\6\0\1"),  /* a row without columns, half */
        SCRIPT(OK READY, "T\0\0\0\7\0\1x"), /* a description cut short */
        SCRIPT(OK READY, "Z\0\0\1\0I"),     /* closes in a message */
        SCRIPT(OK READY, "E\0\0\0\5\0"),    /* an empty error */
    };
    for (size_t i = 0; i < 2 * CONC_LEN(scripts); i++) {
        postgres_db db = {.cancel_limit = 0.1};
        int rc = try_script(&scripts[i / 2], &db, i % 2);
        if (rc != -ECONNRESET)
            test_fail(__FILE__, __LINE__, "script %zu: %d, %s", i / 2, rc, db.error);
        CHECK(db.error[0] != 0);
    }
    static const script replication = SCRIPT(OK READY, "W\0\0\0\7\0\0\0", .stays = true);
    postgres_db db = {0};
    CHECK_INT(try_script(&replication, &db, false), -ENOTSUP);
}

POSTGRES_TEST(a_server_that_sends_endlessly)
{
#define FLOOD(text) .flood = text, .flood_size = sizeof text - 1
#define COLUMN "T\0\0\0\32\0\1x\0\0\0\0\0\0\0\0\0\0\27\0\4\377\377\377\377\0\0"
    static const script scripts[] = {
        SCRIPT(OK READY, COLUMN, FLOOD("D\0\0\0\13\0\1\0\0\0\0017")), /* rows: "7" */
        SCRIPT(OK READY, "?", FLOOD("?\0\0\0\4")),
        SCRIPT(OK READY, COLUMN, FLOOD(COLUMN)),
        SCRIPT(OK READY, COLUMN, FLOOD("N\0\0\0\14Mhello\0\0")),
    };
    static const int results[] = {-EMSGSIZE, -ECONNRESET, -ETIMEDOUT, -ETIMEDOUT};
    for (size_t i = 0; i < CONC_LEN(scripts); i++) {
        postgres_db db = {.cancel_limit = 0.1, .result_limit = 20000};
        conc_scope s = {0};
        CHECK_INT(conc_scope_begin(&s, results[i] == -ETIMEDOUT ? 0.1 : CONC_FOREVER), 0);
        int rc = try_script(&scripts[i], &db, false);
        CHECK_INT(conc_scope_end(&s, rc), results[i]);
    }
    wait_for_requests();
}

/* ---- many statements at once ---- */

enum { CALLS = 1000, CONNECTIONS = 10 };

typedef struct crowd {
    conc_queue free; /* of connections */
    int64_t sum;
    int busy, done;
    postgres_db dbs[CONNECTIONS];
} crowd;

static int call_from_pool(void *arg)
{
    crowd *c = arg;
    postgres_db *db;
    int64_t number = 0;
    int n = c->done++;
    CONC_AUTO(postgres_result, r) = {0};
    CONC_TRY(conc_queue_get(&c->free, &db));
    CHECK_INT(postgres_query(db, &r, "SELECT $1::int", POSTGRES_INT(n)), 1);
    CHECK_INT(postgres_integer(&r, 0, &number), 0);
    CHECK_INT(number, n); /* not another task's answer */
    c->sum += number;
    CHECK(postgres_usable(db));
    return conc_queue_put(&c->free, &db);
}

static int call_on_one(void *arg)
{
    crowd *c = arg;
    int rc = postgres_query(&c->dbs[0], NULL, "SELECT pg_sleep(0.01)");
    CHECK(rc == 1 || rc == -EBUSY);
    c->busy += rc == -EBUSY;
    return 0;
}

static int open_one(void *db)
{
    open_db(db);
    return 0;
}

POSTGRES_TEST(a_thousand_calls_at_once)
{
    static crowd c;
    c = (crowd){.free = CONC_QUEUE(postgres_db *, CONNECTIONS)};
    CHECK_INT(CONC_MAP(open_one, c.dbs), 0);
    for (int i = 0; i < CONNECTIONS; i++)
        CHECK_INT(conc_queue_put(&c.free, &(postgres_db *){&c.dbs[i]}), 0);
    CHECK_INT(conc_map(call_from_pool, &c, CALLS, 0), 0);
    CHECK_INT(c.sum, CALLS * (CALLS - 1) / 2);
    CHECK_INT(conc_queue_len(&c.free), CONNECTIONS);
    CHECK_INT(conc_map(call_on_one, &c, CALLS, 0), 0);
    CHECK_INT(c.busy, CALLS - 1);
    for (int i = 0; i < CONNECTIONS; i++)
        CHECK_INT(postgres_close(&c.dbs[i]), 0);
    conc_queue_destroy(&c.free);
}

/* ---- misuse ---- */

TEST(invalid_arguments_and_calls_outside_a_run)
{
    postgres_db db = {0};
    postgres_result r = {0};
    int64_t number;
    CHECK_INT(postgres_open(&db), -EPERM);
    CHECK_INT(postgres_query(&db, &r, "SELECT 1"), -EPERM);
    CHECK_INT(postgres_stream(&db, &r, "SELECT 1"), -EPERM);
    CHECK_INT(postgres_next(&r), 0);
    CHECK_INT(postgres_close(&db), 0);
    CHECK_INT(postgres_close(NULL), 0);
    CHECK_INT(postgres_result_close(&r), 0);
    CHECK_INT(postgres_result_close(NULL), 0);
    CHECK(!postgres_usable(&db) && !postgres_usable(NULL));
    CHECK(postgres_text(NULL, 0) == NULL);
    CHECK_INT(postgres_integer(NULL, 0, &number), -ENODATA);
    CHECK_INT(postgres_column(NULL, "name"), -ENOENT);
    CHECK_INT(postgres_column(&r, NULL), -ENOENT);
}

POSTGRES_TEST(invalid_arguments)
{
    postgres_db db = {0};
    postgres_result r = {0};
    CHECK_INT(postgres_open(NULL), -EINVAL);
    CHECK_INT(postgres_query(NULL, NULL, "SELECT 1"), -EINVAL);
    CHECK_INT(postgres_next(NULL), -EINVAL);
    CHECK_INT(postgres_reset(NULL), -EINVAL);
    CHECK_INT(postgres_ping(NULL), -EINVAL);
    CHECK_INT(postgres_transaction(NULL, insert_one, NULL), -EINVAL);
    CHECK_INT(postgres_query(&db, NULL, "SELECT 1"), -ENOTCONN);
    CHECK_INT(postgres_ping(&db), -ENOTCONN);
    CHECK_INT(postgres_reset(&db), -ENOTCONN);
    CHECK_INT(postgres_transaction(&db, insert_one, "1"), -ENOTCONN);
    open_db(&db);
    CHECK_INT(postgres_stream(&db, NULL, "SELECT 1"), -EINVAL);
    CHECK_INT(postgres_stream(&db, &r, NULL), -EINVAL);
    CHECK_INT(postgres_next(&r), 0);
    CHECK_INT(postgres_stream(&db, &r, "SELECT 1"), 0);
    CHECK_INT(postgres_query(&db, &r, "SELECT 1"), -EBUSY);
    CHECK_INT(postgres_close(&db), 0);
    CHECK_INT(postgres_close(&db), 0);
    CHECK_INT(postgres_result_close(&r), 0);
}

/* A stream outlives its run: the rest is closed without waiting. */
static postgres_db left;
static postgres_result left_rows;

static void leave_open(void)
{
    open_db(&left);
    CHECK_INT(postgres_stream(&left, &left_rows, "SELECT pg_sleep(60)"), 0);
}

TEST(closing_after_the_run)
{
    int fds = test_count_fds();
    void (*body)(void) = leave_open;
    CHECK_INT(conc_run(call_body, &body), 0);
    CHECK_INT(postgres_result_close(&left_rows), -ECONNRESET);
    CHECK_INT(postgres_close(&left), 0);
    CHECK_INT(test_count_fds(), fds);
}

/* ---- the loop is not blocked ---- */

static void use(const char *conninfo)
{
    CONC_AUTO(postgres_db, db) = {.conninfo = conninfo};
    CONC_AUTO(postgres_result, r) = {0};
    open_db(&db);
    do_sql(&db, "CREATE TEMP TABLE t (n int)");
    CHECK_INT(postgres_transaction(&db, insert_one, "1"), 7);
    CHECK_INT(postgres_query(&db, &r, "SELECT n, repeat('x', 100) FROM generate_series(1, 1000) n"),
              1000);
    CHECK_INT(postgres_stream(&db, &r, "SELECT generate_series(1, 5000)"), 0);
    while (postgres_next(&r) > 0)
        continue;
    job j = {.db = &db, .sql = "SELECT pg_sleep(60)"};
    CHECK_INT(conc_timeout(0.02, do_job, &j), -ETIMEDOUT);
    check_works(&db);
}

static void ordinary_use(void)
{
    use(shared.conninfo);
    use(with("user=secret sslmode=require password=sesame"));
}

static void debug_run(void)
{
    void (*body)(void) = ordinary_use;
    conc_options options = {.debug = true, .slow_step = SANITIZED ? 0.1 : 0.01};
    CHECK_INT(conc_run_with(&options, call_body, &body), 0);
}

/* A busy machine looks like a slow step, but a call that blocks is slow each time. */
TEST(debug_mode_sees_no_slow_step)
{
    char text[16384];
    for (int tries = 1;; tries++) {
        CHECK_INT(test_in_process(debug_run, text, sizeof text), 0);
        if (!strstr(text, "the loop"))
            break;
        if (tries == 20)
            test_fail(__FILE__, __LINE__, "a step is slow each time: %s", text);
    }
    CHECK(strstr(text, "left open") == NULL);
}
