/* test_sqlite.c - examples/common/sqlite.h: values, rows, transactions, locks of other processes,
 * cancels at every point, files that are full, damaged, missing or removed, crashes in the middle
 * of writing.
 *
 * Needs -lsqlite3
 */
#define TEST_SYNC
#define TEST_POOL
#include "../conc_test.h"

#include "conc_pool.h"
#include "conc_sync.h"

#include "sqlite.h"

#include <math.h>
#include <semaphore.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* ---- each test has its own folder ---- */

static char folder[64];

static void leave_folder(void)
{
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(chdir("/") == 0);
    CHECK_INT(system(command), 0);
}

static void enter_folder(void)
{
    strcpy(folder, "/tmp/conc-sqlite-XXXXXX");
    CHECK(mkdtemp(folder) != NULL);
    CHECK(chdir(folder) == 0);
}

static int run_body(void *arg)
{
    test_task *t = arg;
    t->body();
    return 0;
}

static void in_folder(void (*body)(void), bool virtual_clock)
{
    test_task t = {body};
    conc_options options = {.virtual_clock = virtual_clock};
    enter_folder();
    int fds = test_count_fds();
    CHECK_INT(conc_run_with(&options, run_body, &t), 0);
    CHECK_INT(test_count_fds(), fds);
    leave_folder();
}

/* On the virtual clock: waiting for a lock takes no real time. */
#define DB_TEST(name)                            \
    static void name##_body(void);               \
    TEST(name) { in_folder(name##_body, true); } \
    static void name##_body(void)
#define REAL_DB_TEST(name)                        \
    static void name##_body(void);                \
    TEST(name) { in_folder(name##_body, false); } \
    static void name##_body(void)

static long long number(sqlite_db *db, const char *sql)
{
    int64_t n = -1;
    int rc = sqlite_number(db, &n, sql);
    if (rc < 0)
        test_fail(__FILE__, __LINE__, "%s: %d, %s", sql, rc, db->error);
    return n;
}

static void open_table(sqlite_db *db)
{
    if (!db->synchronous)
        db->synchronous = "OFF"; /* a test machine's disk may be slow */
    CHECK_INT(sqlite_open(db, "test.db"), 0);
    CHECK_INT(sqlite_exec(db, "CREATE TABLE IF NOT EXISTS t (n INTEGER UNIQUE)"), 0);
}

static int insert(sqlite_db *db, int n)
{
    return sqlite_exec(db, "INSERT INTO t VALUES (?)", sqlite_int(n));
}

/* ---- an SQL function that waits for the test: gate() ---- */

static conc_channel entered = CONC_CHANNEL(int, 1000);
static sem_t gate;

static void wait_at_gate(sqlite3_context *context, int n, sqlite3_value **values)
{
    (void)n, (void)values;
    CHECK_INT(conc_channel_try_send(&entered, &(int){1}), 0);
    while (sem_wait(&gate))
        continue;
    sqlite3_result_int(context, 1);
}

static int make_gate(sqlite3 *handle, void *arg)
{
    (void)arg;
    return sqlite3_create_function(handle, "gate", 0, SQLITE_UTF8, NULL, wait_at_gate, NULL, NULL);
}

static void open_gated(sqlite_db *db)
{
    open_table(db);
    CHECK_INT(sem_init(&gate, 0, 0), 0);
    CHECK_INT(sqlite_call(db, make_gate, NULL), 0);
}

static void wait_until_entered(void)
{
    int one;
    CHECK_INT(conc_channel_recv(&entered, &one), 0);
}

static void end_gate(void) { conc_channel_destroy(&entered); }

/* A statement as a task, and its result. */
typedef struct job {
    sqlite_db *db;
    const char *sql;
    int rc;
} job;

static int run_job(void *arg)
{
    job *j = arg;
    j->rc = sqlite_exec(j->db, j->sql);
    return 0;
}

#define ENDLESS_GATED "WITH RECURSIVE c(x) AS (SELECT gate() UNION ALL SELECT x + 1 FROM c) "

/* ---- values and rows ---- */

DB_TEST(values_of_every_type_come_back)
{
    sqlite_db db = {0};
    sqlite_rows rows = {0};
    static const char utf8[] = "gr\303\274n", nul[] = {'a', 0, 'b', 0};
    CHECK_INT(sqlite_open(&db, ":memory:"), 0);
    CHECK_INT(sqlite_query(&db, &rows, "SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?", sqlite_int(INT64_MIN),
                           sqlite_int(INT64_MAX), sqlite_real(0.5), sqlite_text(utf8),
                           sqlite_text(""), sqlite_text(NULL), sqlite_blob(nul, 3),
                           sqlite_blob(NULL, 0), sqlite_null()),
              0);
    CHECK_INT(rows.columns, 9);
    CHECK_INT(rows.count, 1);
    CHECK_INT(sqlite_next(&rows), 1);
    const sqlite_value *v = rows.row;
    static const int types[] = {SQLITE_INTEGER, SQLITE_INTEGER, SQLITE_FLOAT,
                                SQLITE_TEXT,    SQLITE_TEXT,    SQLITE_NULL,
                                SQLITE_BLOB,    SQLITE_BLOB,    SQLITE_NULL};
    static const size_t sizes[] = {0, 0, 0, 5, 0, 0, 3, 0, 0};
    for (int i = 0; i < 9; i++) {
        CHECK_INT(v[i].type, types[i]);
        CHECK_INT(v[i].size, sizes[i]);
        CHECK_INT(v[i].text[v[i].size], 0);
    }
    CHECK(v[0].integer == INT64_MIN && v[1].integer == INT64_MAX);
    CHECK(v[2].real == 0.5 && v[2].integer == 0);
    CHECK(v[0].real == (double)INT64_MIN);
    CHECK_STR(v[3].text, utf8);
    CHECK(memcmp(v[6].text, nul, 4) == 0);
    CHECK_INT(sqlite_next(&rows), 0);
    CHECK(rows.row == NULL);
    CHECK_INT(sqlite_next(&rows), 0);
    CHECK_INT(sqlite_rows_close(&rows), 0);
    CHECK_INT(sqlite_rows_close(&rows), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(a_row_can_be_given_as_parameters)
{
    sqlite_db db = {0};
    sqlite_rows rows = {0};
    CHECK_INT(sqlite_open(&db, ":memory:"), 0);
    CHECK_INT(sqlite_exec(&db, "CREATE TABLE a (x, y); CREATE TABLE b (x, y)"), 0);
    CHECK_INT(sqlite_exec(&db, "INSERT INTO a VALUES (?, ?)", sqlite_text("tea"), sqlite_real(2.5)),
              1);
    CHECK_INT(sqlite_query(&db, &rows, "SELECT * FROM a"), 0);
    while (sqlite_next(&rows) == 1)
        CHECK_INT(sqlite_exec(&db, "INSERT INTO b VALUES (?, ?)", rows.row[0], rows.row[1]), 1);
    CHECK_INT(number(&db, "SELECT count(*) FROM b WHERE x = 'tea' AND y = 2.5"), 1);
    CHECK_INT(sqlite_rows_close(&rows), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(exec_returns_how_many_rows_were_changed)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_exec(&db, "INSERT INTO t VALUES (1), (2), (3)"), 3);
    CHECK_INT(db.last_id, 3);
    CHECK_INT(sqlite_exec(&db, "CREATE TABLE u (n)"), 0);
    CHECK_INT(sqlite_exec(&db, "UPDATE t SET n = n + 10 WHERE n > ?", sqlite_int(1)), 2);
    CHECK_INT(sqlite_exec(&db, "SELECT * FROM t"), 0);
    CHECK_INT(sqlite_exec(&db, "DELETE FROM t WHERE n > 100"), 0);
    CHECK_INT(sqlite_exec(&db, "DELETE FROM t"), 3);
    CHECK_INT(sqlite_exec(&db, ""), 0);
    CHECK_INT(sqlite_exec(&db, " -- nothing"), 0);
    CHECK_INT(sqlite_exec(&db,
                          "INSERT INTO t VALUES (?), (?);\n INSERT INTO u VALUES (?);"
                          "UPDATE t SET n = -n; -- the end",
                          sqlite_int(7), sqlite_int(8), sqlite_int(9)),
              5);
    CHECK_INT(number(&db, "SELECT sum(n) FROM t"), -15);
    CHECK_INT(number(&db, "SELECT sum(n) FROM u"), 9);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(statements_before_the_error_take_effect)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_exec(&db, "INSERT INTO t VALUES (1); INSERT INTO t VALUES (1); "
                               "INSERT INTO t VALUES (2)"),
              -EEXIST);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 1);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(rows_are_all_in_memory)
{
    sqlite_db db = {0};
    sqlite_rows rows = {0};
    open_table(&db);
    for (int i = 0; i < 100; i++)
        CHECK_INT(insert(&db, i), 1);
    CHECK_INT(sqlite_query(&db, &rows, "SELECT n, 'row ' || n FROM t WHERE n >= ? ORDER BY n",
                           sqlite_int(10)),
              0);
    CHECK_INT(rows.count, 90);
    CHECK_INT(rows.all[89][0].integer, 99);
    CHECK_INT(sqlite_exec(&db, "DELETE FROM t"), 100);
    int n = 10;
    for (char text[20]; sqlite_next(&rows) == 1; n++) {
        snprintf(text, sizeof text, "row %d", n);
        CHECK_INT(rows.row[0].integer, n);
        CHECK_STR(rows.row[1].text, text);
    }
    CHECK_INT(n, 100);
    CHECK_INT(sqlite_query(&db, &rows, "SELECT n FROM t"), 0); /* in the same rows */
    CHECK_INT(rows.count, 0);
    CHECK_INT(sqlite_next(&rows), 0);
    CHECK_INT(sqlite_rows_close(&rows), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

#define COUNT_TO "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT ?) "

DB_TEST(more_rows_than_the_limit_have_no_effect)
{
    sqlite_db db = {0};
    sqlite_rows rows = {.limit = 10000};
    open_table(&db);
    CHECK_INT(sqlite_query(&db, &rows, COUNT_TO "SELECT n FROM c", sqlite_int(1000)), -EMSGSIZE);
    CHECK_CONTAINS(db.error, "test.db: the rows exceed the memory limit, in: WITH");
    CHECK_INT(rows.limit, 10000);
    CHECK_INT(sqlite_query(&db, &rows, "SELECT zeroblob(20000)"), -EMSGSIZE);
    CHECK_INT(sqlite_query(&db, &rows, "INSERT INTO t " COUNT_TO "SELECT n FROM c RETURNING n",
                           sqlite_int(1000)),
              -EMSGSIZE);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
    CHECK_INT(sqlite_query(&db, &rows, "INSERT INTO t " COUNT_TO "SELECT n FROM c RETURNING n",
                           sqlite_int(9)),
              0);
    CHECK_INT(rows.count, 9);
    CHECK_INT(sqlite_rows_close(&rows), 0);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 9);
    CHECK_INT(sqlite_close(&db), 0);
}

/* ---- batches ---- */

static int insert_1000(void *arg)
{
    sqlite_db *db = arg;
    for (int i = 0; i < 1000; i++)
        CHECK_INT(insert(db, i), 1);
    return 0;
}

DB_TEST(a_large_result_comes_in_batches)
{
    sqlite_db db = {0};
    sqlite_rows rows = {.batch = 64};
    open_table(&db);
    CHECK_INT(sqlite_transaction(&db, insert_1000, &db), 0);
    CHECK_INT(sqlite_query(&db, &rows, "SELECT n FROM t WHERE n >= ? ORDER BY n", sqlite_int(0)),
              0);
    CHECK_INT(rows.count, 64);
    int n = 0;
    for (; sqlite_next(&rows) == 1; n++) {
        CHECK(rows.count <= 64);
        CHECK_INT(rows.row[0].integer, n);
        if (n % 100 == 0) /* the task has the connection */
            CHECK_INT(sqlite_exec(&db, "UPDATE t SET n = ? WHERE n = ?", sqlite_int(-1 - n),
                                  sqlite_int(n)),
                      1);
    }
    CHECK_INT(n, 1000);
    CHECK_INT(number(&db, "SELECT count(*) FROM t WHERE n < 0"), 10);
    CHECK_INT(sqlite_next(&rows), 0);
    CHECK_INT(sqlite_rows_close(&rows), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(a_batch_also_ends_at_the_limit_of_memory)
{
    sqlite_db db = {0};
    sqlite_rows rows = {.batch = 1000, .limit = 100000};
    CHECK_INT(sqlite_open(&db, ":memory:"), 0);
    CHECK_INT(sqlite_query(&db, &rows, COUNT_TO "SELECT zeroblob(30000) FROM c", sqlite_int(100)),
              0);
    int n = 0;
    for (; sqlite_next(&rows) == 1; n++)
        CHECK(rows.count <= 4);
    CHECK_INT(n, 100);
    CHECK_INT(sqlite_query(&db, &rows, "SELECT 1 UNION ALL SELECT zeroblob(100000)"), -EMSGSIZE);
    CHECK_INT(sqlite_next(&rows), -EINVAL);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(the_connection_is_free_when_the_rows_are_closed)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_transaction(&db, insert_1000, &db), 0);
    sqlite_rows rows = {.batch = 10};
    job other = {&db, "INSERT INTO t VALUES (1000)", 99};
    CHECK_INT(sqlite_query(&db, &rows, "SELECT n FROM t"), 0);
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, run_job, &other), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(sqlite_next(&rows), 1);
    CHECK_INT(other.rc, 99); /* waits for its turn */
    CHECK_INT(sqlite_rows_close(&rows), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(other.rc, 1);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(close_ends_the_rows_that_its_task_has_open)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_transaction(&db, insert_1000, &db), 0);
    sqlite_rows a = {.batch = 1}, b = {.batch = 1}, c = {0};
    CHECK_INT(sqlite_query(&db, &a, "SELECT n FROM t"), 0);
    CHECK_INT(sqlite_query(&db, &b, "SELECT n FROM t"), 0);
    CHECK_INT(sqlite_query(&db, &c, "SELECT n FROM t"), 0);
    int fds = test_count_fds();
    CHECK_INT(sqlite_close(&db), 0);
    CHECK_INT(test_count_fds(), fds - 1);
    CHECK_INT(sqlite_next(&a), 1);
    CHECK_INT(sqlite_next(&a), -EBADF);
    CHECK_INT(sqlite_next(&a), -EINVAL);
    CHECK_INT(sqlite_open(&db, "test.db"), 0); /* it is not the statement that b was opened on */
    CHECK_INT(sqlite_next(&b), 1);
    CHECK_INT(sqlite_next(&b), -EBADF);
    CHECK_INT(sqlite_rows_close(&b), 0);
    int n = 0;
    for (; sqlite_next(&c) == 1; n++) /* all in memory */
        CHECK_INT(c.row[0].integer, n);
    CHECK_INT(n, 1000);
    CHECK_INT(sqlite_rows_close(&c), 0);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 1000);
    CHECK_INT(sqlite_close(&db), 0);
}

static int use_foreign_rows(void *arg)
{
    sqlite_rows *rows = arg;
    for (int i = 0; i < 10; i++)
        CHECK_INT(sqlite_next(rows), 1); /* in memory */
    CHECK_INT(sqlite_next(rows), -EPERM);
    CHECK_INT(sqlite_rows_close(rows), -EPERM);
    return 0;
}

DB_TEST(batches_belong_to_the_task_of_the_query)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_transaction(&db, insert_1000, &db), 0);
    sqlite_rows rows = {.batch = 10};
    CHECK_INT(sqlite_query(&db, &rows, "SELECT n FROM t"), 0);
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, use_foreign_rows, &rows), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(sqlite_next(&rows), 1);
    CHECK_INT(rows.row[0].integer, 10);
    CHECK_INT(sqlite_rows_close(&rows), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(one_statement_can_be_open_twice)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_transaction(&db, insert_1000, &db), 0);
    sqlite_rows a = {.batch = 1}, b = {.batch = 1};
    for (int round = 0; round < 2; round++) {
        CHECK_INT(sqlite_query(&db, &a, "SELECT n FROM t WHERE n < 3"), 0);
        CHECK_INT(sqlite_query(&db, &b, "SELECT n FROM t WHERE n < 3"), 0);
        for (int i = 0; i < 3; i++) {
            CHECK_INT(sqlite_next(&a), 1);
            CHECK_INT(sqlite_next(&b), 1);
            CHECK_INT(a.row[0].integer, i);
            CHECK_INT(b.row[0].integer, i);
        }
        CHECK_INT(sqlite_next(&a), 0);
        CHECK_INT(sqlite_next(&b), 0);
    }
    CHECK_INT(sqlite_rows_close(&a), 0);
    CHECK_INT(sqlite_rows_close(&b), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

/* ---- errors ---- */

DB_TEST(errors_have_a_number_and_a_text)
{
    static const struct {
        const char *sql;
        int rc, code;
        const char *words;
    } wrong[] = {
        {"INSERT INTO p VALUES (1, 1)", -EEXIST, SQLITE_CONSTRAINT_PRIMARYKEY,
         "test.db: UNIQUE constraint failed: p.id, in: INSERT INTO p VALUES (1, 1)"},
        {"INSERT INTO p VALUES (2, 1)", -EEXIST, SQLITE_CONSTRAINT_UNIQUE,
         "test.db: UNIQUE constraint failed: p.u, in: INSERT INTO p VALUES (2, 1)"},
        {"INSERT INTO c VALUES (5, 1)", -EDOM, SQLITE_CONSTRAINT_FOREIGNKEY,
         "test.db: FOREIGN KEY constraint failed, in: INSERT INTO c VALUES (5, 1)"},
        {"INSERT INTO c VALUES (1, NULL)", -EDOM, SQLITE_CONSTRAINT_NOTNULL,
         "test.db: NOT NULL constraint failed: c.n, in: INSERT INTO c VALUES (1, NULL)"},
        {"INSERT INTO c VALUES (1, -1)", -EDOM, SQLITE_CONSTRAINT_CHECK,
         "test.db: CHECK constraint failed: n > 0, in: INSERT INTO c VALUES (1, -1)"},
        {"INSERT INTO p VALUES ('x', 3)", -EDOM, SQLITE_MISMATCH,
         "test.db: datatype mismatch, in: INSERT INTO p VALUES ('x', 3)"},
        {"SELEC 1", -EINVAL, SQLITE_ERROR, "test.db: near \"SELEC\": syntax error, in: SELEC 1"},
        {"SELECT * FROM none", -EINVAL, SQLITE_ERROR,
         "test.db: no such table: none, in: SELECT * FROM none"},
        {"SELECT zeroblob(2000000000)", -EMSGSIZE, SQLITE_TOOBIG,
         "test.db: string or blob too big, in: SELECT zeroblob(2000000000)"},
    };
    sqlite_db db = {.foreign_keys = true};
    CHECK_INT(sqlite_open(&db, "test.db"), 0);
    CHECK_INT(sqlite_exec(&db, "CREATE TABLE p (id INTEGER PRIMARY KEY, u UNIQUE); "
                               "CREATE TABLE c (p REFERENCES p, n NOT NULL CHECK (n > 0)); "
                               "INSERT INTO p VALUES (1, 1)"),
              1);
    CHECK_STR(db.error, "");
    for (size_t i = 0; i < CONC_LEN(wrong); i++) {
        CHECK_INT(sqlite_exec(&db, wrong[i].sql), wrong[i].rc);
        CHECK_INT(db.code, wrong[i].code);
        CHECK_STR(db.error, wrong[i].words);
        CHECK_STR(conc_last_error(), wrong[i].words);
    }
    CHECK_INT(number(&db, "SELECT count(*) FROM p"), 1);
    CHECK_INT(number(&db, "SELECT count(*) FROM c"), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(invalid_arguments_are_refused)
{
    sqlite_db db = {0}, closed = {0};
    sqlite_rows rows = {0};
    int64_t n;
    open_table(&db);
    CHECK_INT(sqlite_open(NULL, "x"), -EINVAL);
    CHECK_INT(sqlite_open(&closed, NULL), -EINVAL);
    CHECK_INT(sqlite_open(&db, "test.db"), -EBUSY);
    CHECK_INT(sqlite_exec(NULL, "SELECT 1"), -EINVAL);
    CHECK_INT(sqlite_exec(&db, NULL), -EINVAL);
    CHECK_INT(sqlite_query(&db, NULL, "SELECT 1"), -EINVAL);
    CHECK_INT(sqlite_query(&db, &rows, NULL), -EINVAL);
    CHECK_INT(sqlite_query(&db, &rows, ""), -EINVAL);
    CHECK_INT(sqlite_query(&db, &rows, "SELECT 1; SELECT 2"), -EINVAL);
    CHECK_INT(sqlite_next(NULL), -EINVAL);
    CHECK_INT(sqlite_next(&rows), -EINVAL);
    CHECK_INT(sqlite_rows_close(NULL), 0);
    CHECK_INT(sqlite_number(&db, &n, "SELECT n FROM t"), -ENOENT);
    CHECK_STR(db.error, "test.db: there is no row");
    CHECK_INT(sqlite_call(&db, NULL, NULL), -EINVAL);
    CHECK_INT(sqlite_transaction(&db, NULL, NULL), -EINVAL);
    CHECK_INT(sqlite_close(NULL), 0);
    CHECK_INT(sqlite_close(&closed), 0);
    CHECK_INT(sqlite_exec(&closed, "SELECT 1"), -EBADF);
    CHECK_STR(closed.error, "sqlite: the connection is not open");
    CHECK_INT(sqlite_query(&closed, &rows, "SELECT 1"), -EBADF);
    CHECK_INT(sqlite_ping(&closed), -EBADF);
    CHECK_INT(sqlite_call(&closed, make_gate, NULL), -EBADF);
    CHECK_INT(sqlite_transaction(&closed, insert_1000, NULL), -EBADF);
    closed.synchronous = "SOMETIMES; DROP TABLE t";
    CHECK_INT(sqlite_open(&closed, "x"), -EINVAL);
    closed.synchronous = NULL;
    closed.busy_timeout = NAN;
    CHECK_INT(sqlite_open(&closed, "x"), -EINVAL);
    CHECK(access("x", F_OK) != 0);
    CHECK_INT(sqlite_close(&db), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(too_few_or_many_values_are_an_error_before_the_statement_runs)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_exec(&db, "INSERT INTO t VALUES (?)"), -EINVAL);
    CHECK_STR(db.error, "test.db: too few values, in: INSERT INTO t VALUES (?)");
    CHECK_INT(sqlite_exec(&db, "INSERT INTO t VALUES (?)", sqlite_int(1), sqlite_int(2)), -EINVAL);
    CHECK_INT(sqlite_exec(&db, "INSERT INTO t VALUES (1)", sqlite_int(1)), -EINVAL);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
    CHECK_INT(sqlite_exec(&db, "INSERT INTO t VALUES (?1 + ?1)", sqlite_int(2)), 1);
    CHECK_INT(number(&db, "SELECT n FROM t"), 4);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(begin_by_hand_is_undone)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_exec(&db, "BEGIN"), -EINVAL);
    CHECK_STR(db.error, "test.db: BEGIN by hand: use sqlite_transaction");
    CHECK_INT(sqlite_exec(&db, "BEGIN; INSERT INTO t VALUES (1)"), -EINVAL);
    CHECK_INT(sqlite_exec(&db, "BEGIN; INSERT INTO t VALUES (2); nonsense"), -EINVAL);
    CHECK_CONTAINS(db.error, "syntax error, in:  nonsense");
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
    CHECK_INT(sqlite_exec(&db, "BEGIN; INSERT INTO t VALUES (3); COMMIT"), 1);
    CHECK_INT(number(&db, "SELECT n FROM t"), 3);
    CHECK_INT(sqlite_close(&db), 0);
}

static sqlite_db kept;

static int open_kept(void *arg)
{
    (void)arg;
    open_table(&kept);
    return insert(&kept, 1);
}

TEST(outside_a_task_everything_but_close_is_refused)
{
    sqlite_rows rows = {0};
    enter_folder();
    int fds = test_count_fds();
    CHECK_INT(sqlite_open(&kept, "test.db"), -EPERM);
    CHECK_INT(conc_run(open_kept, NULL), 1);
    CHECK_INT(sqlite_exec(&kept, "SELECT 1"), -EPERM);
    CHECK_INT(sqlite_query(&kept, &rows, "SELECT 1"), -EPERM);
    CHECK_INT(sqlite_ping(&kept), -EPERM);
    CHECK_INT(sqlite_close(&kept), 0);
    CHECK_INT(sqlite_close(&kept), 0);
    CHECK_INT(test_count_fds(), fds);
    leave_folder();
}

static int leave_rows_open(void *arg)
{
    sqlite_rows *rows = arg;
    open_table(&kept);
    CHECK_INT(sqlite_transaction(&kept, insert_1000, &kept), 0);
    return sqlite_query(&kept, rows, "SELECT n FROM t");
}

TEST(rows_that_were_left_open_do_no_harm_after_the_run)
{
    sqlite_rows rows = {.batch = 1};
    for (int first = 0; first < 2; first++) {
        enter_folder();
        CHECK_INT(conc_run(leave_rows_open, &rows), 0);
        if (first)
            CHECK_INT(sqlite_rows_close(&rows), 0);
        CHECK_INT(sqlite_close(&kept), 0);
        CHECK_INT(sqlite_rows_close(&rows), 0);
        CHECK_INT(conc_run(open_kept, NULL), -EEXIST); /* the connection is usable */
        CHECK_INT(sqlite_close(&kept), 0);
        leave_folder();
    }
}

DB_TEST(a_block_closes_what_it_declares)
{
    int fds = test_count_fds();
    {
        CONC_AUTO(sqlite_db, db) = {0};
        CONC_AUTO(sqlite_rows, rows) = {.batch = 1};
        open_table(&db);
        CHECK_INT(insert(&db, 1), 1);
        CHECK_INT(insert(&db, 2), 1);
        CHECK_INT(sqlite_query(&db, &rows, "SELECT n FROM t"), 0);
    }
    CHECK_INT(test_count_fds(), fds);
}

/* ---- transactions ---- */

typedef struct change {
    sqlite_db *db;
    int first;  /* inserts it and the next number */
    int rc;     /* and returns this */
    double nap; /* after a sleep of so many seconds */
    struct change *inner;
    int inner_rc;
} change;

static int insert_two(void *arg)
{
    change *c = arg;
    CONC_TRY(insert(c->db, c->first));
    if (c->inner)
        c->inner_rc = sqlite_transaction(c->db, insert_two, c->inner);
    if (c->nap > 0)
        CONC_TRY(conc_sleep(c->nap));
    CONC_TRY(insert(c->db, c->first + 1));
    return c->rc;
}

static int transact(void *arg)
{
    change *c = arg;
    return sqlite_transaction(c->db, insert_two, c);
}

DB_TEST(a_transaction_takes_effect_as_a_whole_or_not_at_all)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(transact(&(change){.db = &db, .first = 10, .rc = 7}), 7);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 2);
    CHECK_INT(transact(&(change){.db = &db, .first = 20, .rc = -EIO}), -EIO);
    CHECK_INT(transact(&(change){.db = &db, .first = 9}), -EEXIST); /* there is a 10 */
    CHECK_CONTAINS(conc_last_error(), "UNIQUE constraint failed: t.n");
    CHECK_INT(conc_timeout(0.5, transact, &(change){.db = &db, .first = 30, .nap = 1}), -ETIMEDOUT);
    CHECK_TIME(0.5);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 2);
    CHECK_INT(insert(&db, 30), 1);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(a_transaction_in_another_is_a_savepoint)
{
    sqlite_db db = {0};
    open_table(&db);
    change inmost = {.db = &db, .first = 30}, inner = {.db = &db, .first = 20, .inner = &inmost},
           outer = {.db = &db, .first = 10, .inner = &inner};
    inner.rc = -EIO;
    CHECK_INT(transact(&outer), 0);
    CHECK_INT(outer.inner_rc, -EIO);
    CHECK_INT(inner.inner_rc, 0);
    CHECK_INT(number(&db, "SELECT sum(n) FROM t"), 21);
    CHECK_INT(sqlite_exec(&db, "DELETE FROM t"), 2);
    inner.rc = 0;
    CHECK_INT(transact(&outer), 0);
    CHECK_INT(number(&db, "SELECT sum(n) FROM t"), 21 + 41 + 61);
    CHECK_INT(sqlite_exec(&db, "DELETE FROM t"), 6);
    outer.rc = -EIO;
    CHECK_INT(transact(&outer), -EIO);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(tasks_take_turns_with_transactions)
{
    sqlite_db db = {0};
    open_table(&db);
    change both[] = {{.db = &db, .first = 10, .nap = 1}, {.db = &db, .first = 20, .nap = 1}};
    CHECK_INT(CONC_MAP(transact, both), 0);
    CHECK_TIME(2);
    CHECK_INT(number(&db, "SELECT sum(n) FROM t"), 21 + 41);
    CHECK_INT(sqlite_close(&db), 0);
}

static int insert_orphan(void *db)
{
    CHECK_INT(sqlite_exec(db, "INSERT INTO c VALUES (5)"), 1);
    return 0;
}

DB_TEST(a_commit_that_fails_rolls_back)
{
    sqlite_db db = {.foreign_keys = true};
    CHECK_INT(sqlite_open(&db, "test.db"), 0);
    CHECK_INT(sqlite_exec(&db, "CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE c "
                               "(p REFERENCES p DEFERRABLE INITIALLY DEFERRED)"),
              0);
    CHECK_INT(sqlite_transaction(&db, insert_orphan, &db), -EDOM);
    CHECK_STR(db.error, "test.db: FOREIGN KEY constraint failed, in: COMMIT");
    CHECK_INT(number(&db, "SELECT count(*) FROM c"), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

static int close_inside(void *db) { return sqlite_close(db); }
static int commit_by_hand(void *db)
{
    CHECK_INT(insert(db, 1), 1);
    CHECK_INT(sqlite_exec(db, "COMMIT"), 0);
    CHECK_INT(insert(db, 2), -ENOTRECOVERABLE);
    return 0;
}

DB_TEST(misuse_inside_a_transaction_is_refused)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_transaction(&db, close_inside, &db), -EBUSY);
    CHECK_INT(sqlite_transaction(&db, commit_by_hand, &db), -ENOTRECOVERABLE);
    CHECK_STR(db.error, "test.db: the transaction is over");
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 1);
    CHECK_INT(sqlite_close(&db), 0);
}

static int fill(void *arg)
{
    sqlite_db *db = arg;
    int rc;
    do
        rc = sqlite_exec(db, "INSERT INTO f VALUES (zeroblob(2000))");
    while (rc == 1);
    return rc;
}

static int fill_and_go_on(void *db)
{
    CHECK_INT(fill(db), -ENOSPC);
    CHECK_INT(insert(db, 1), -ENOTRECOVERABLE); /* it would be alone */
    return 0;
}

DB_TEST(a_full_disk_is_an_error_that_leaves_nothing_behind)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_exec(&db, "CREATE TABLE f (b); PRAGMA max_page_count = 20"), 0);
    CHECK_INT(sqlite_transaction(&db, fill, &db), -ENOSPC);
    CHECK_STR(db.error, "test.db: database or disk is full, in: INSERT INTO f VALUES "
                        "(zeroblob(2000))");
    CHECK_INT(number(&db, "SELECT count(*) FROM f"), 0);
    CHECK_INT(sqlite_transaction(&db, fill_and_go_on, &db), -ENOTRECOVERABLE);
    CHECK_INT(number(&db, "SELECT (SELECT count(*) FROM f) + (SELECT count(*) FROM t)"), 0);
    CHECK_INT(fill(&db), -ENOSPC);
    CHECK(number(&db, "SELECT count(*) FROM f") > 5);
    CHECK_INT(sqlite_exec(&db, "PRAGMA max_page_count = 1000"), 0);
    CHECK_INT(insert(&db, 1), 1);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(a_file_size_limit_is_an_error)
{
    sqlite_db db = {0};
    struct rlimit limit, before;
    open_table(&db);
    CHECK_INT(sqlite_exec(&db, "CREATE TABLE f (b)"), 0);
    signal(SIGXFSZ, SIG_IGN);
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    limit = before;
    limit.rlim_cur = 100000;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK_INT(fill(&db), -EIO);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK_CONTAINS(db.error, "test.db: disk I/O error, in: INSERT INTO f");
    long long n = number(&db, "SELECT count(*) FROM f");
    CHECK(n > 5);
    CHECK_INT(sqlite_exec(&db, "INSERT INTO f VALUES (1)"), 1);
    CHECK_INT(number(&db, "SELECT count(*) FROM f"), n + 1);
    CHECK_INT(sqlite_close(&db), 0);
}

/* ---- cancels and time limits ---- */

DB_TEST(a_cancel_interrupts_the_statement_and_not_the_next)
{
    sqlite_db db = {0};
    open_gated(&db);
    job slow = {&db, ENDLESS_GATED "SELECT count(*) FROM c", 0};
    conc_group g = {0};
    conc_task t;
    CHECK_INT(conc_spawn_task(&g, &t, run_job, &slow), 0);
    wait_until_entered();
    CHECK_INT(conc_cancel(&t), 0);
    sem_post(&gate);
    CHECK_INT(insert(&db, 1), 1);
    CHECK_INT(slow.rc, -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 1);
    CHECK_STR(db.error, "");
    CHECK_INT(sqlite_close(&db), 0);
    end_gate();
}

DB_TEST(a_completed_statement_takes_effect_although_its_task_was_cancelled)
{
    sqlite_db db = {0};
    open_gated(&db);
    job slow = {&db, "INSERT INTO t SELECT gate()", 0};
    conc_group g = {0};
    conc_task t;
    CHECK_INT(conc_spawn_task(&g, &t, run_job, &slow), 0);
    wait_until_entered();
    CHECK_INT(conc_cancel(&t), 0);
    sem_post(&gate);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(slow.rc, 1);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 1);
    CHECK_INT(sqlite_close(&db), 0);
    end_gate();
}

/* A statement that runs until a limit ends it. */
static int endless_query(void *db)
{
    sqlite_rows rows = {0};
    return sqlite_query(db, &rows, COUNT_TO "SELECT sum(n) FROM c", sqlite_int(-1));
}
static int endless_insert(void *db)
{
    return sqlite_exec(db, "INSERT INTO t " COUNT_TO "SELECT n + 10 FROM c", sqlite_int(-1));
}
static int insert_and_endless(void *db)
{
    CHECK_INT(insert(db, 1), 1);
    return endless_insert(db);
}
static int endless_transaction(void *db) { return sqlite_transaction(db, insert_and_endless, db); }
static int endless_batch(void *db)
{
    sqlite_rows rows = {.batch = 1};
    CHECK_INT(sqlite_query(db, &rows, COUNT_TO "SELECT n FROM c WHERE n = 1", sqlite_int(-1)), 0);
    CHECK_INT(sqlite_next(&rows), 1);
    int rc = sqlite_next(&rows);
    CHECK_INT(sqlite_next(&rows), -EINVAL);
    return rc;
}
static int poll_for_cancel(sqlite3 *handle, void *arg)
{
    (void)handle, (void)arg;
    while (!conc_job_cancelled())
        usleep(100);
    return -ECANCELED;
}
static int endless_call(void *db) { return sqlite_call(db, poll_for_cancel, NULL); }

REAL_DB_TEST(a_time_limit_ends_whatever_runs)
{
    conc_fn *endless[] = {endless_query, endless_insert, endless_transaction, endless_batch,
                          endless_call};
    sqlite_db db = {0};
    open_table(&db);
    for (size_t i = 0; i < CONC_LEN(endless); i++) {
        CHECK_INT(conc_timeout(0.05, endless[i], &db), -ETIMEDOUT);
        CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
        CHECK_INT(db.lock.owner == NULL, 1);
    }
    CHECK_STR(db.error, "");
    CHECK_INT(insert(&db, 1), 1);
    CHECK_INT(sqlite_close(&db), 0);
}

static int go_on_after_the_limit(void *db)
{
    CHECK_INT(insert(db, 1), 1);
    CHECK_INT(conc_timeout(0.05, endless_query, db), -ETIMEDOUT); /* it only reads: no harm */
    CHECK_INT(insert(db, 2), 1);
    CHECK_INT(conc_timeout(0.05, endless_insert, db), -ETIMEDOUT);
    CHECK_INT(insert(db, 3), -ENOTRECOVERABLE);
    return 0;
}

REAL_DB_TEST(a_limit_on_a_statement_that_writes_ends_its_transaction)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_transaction(&db, go_on_after_the_limit, &db), -ENOTRECOVERABLE);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

/* Cancels a task when SQLite polls for the n-th time, after each step of its virtual machine. */
typedef struct cut {
    sqlite_db *db;
    conc_loop *loop;
    conc_task task;
    conc_fn *fn;
    int at, asked, rc;
} cut;

static void cancel_task(void *arg) { conc_cancel(&((cut *)arg)->task); }

static int ask(void *arg)
{
    cut *c = arg;
    if (++c->asked == c->at) {
        CHECK_INT(conc_post(c->loop, cancel_task, c), 0);
        while (!conc_job_cancelled())
            usleep(10);
    }
    return sqlite__asks(c->db);
}

static int ask_always(sqlite3 *handle, void *arg)
{
    sqlite3_progress_handler(handle, 1, ask, arg);
    return 0;
}

static int run_cut(void *arg)
{
    cut *c = arg;
    c->rc = c->fn(c->db);
    return 0;
}

static int insert_one(void *db) { return insert(db, 1); }
static int insert_returning(void *db)
{
    sqlite_rows rows = {0};
    int rc = sqlite_query(db, &rows, "INSERT INTO t VALUES (1) RETURNING n");
    CHECK_INT(rows.count, rc == 0);
    CHECK_INT(sqlite_rows_close(&rows), 0);
    return rc;
}
static int insert_in_transaction(void *db) { return transact(&(change){.db = db, .first = 1}); }
static int insert_nested(void *db)
{
    change inner = {.db = db, .first = 10}, outer = {.db = db, .first = 1, .inner = &inner};
    int rc = transact(&outer);
    return rc ? rc : outer.inner_rc;
}

static void cut_everywhere(conc_fn *fn, int rows)
{
    sqlite_db db = {0};
    open_table(&db);
    cut c = {.db = &db, .loop = conc_loop_self(), .fn = fn};
    int cancelled = 0, done = 0, asked = 0;
    CHECK_INT(sqlite_call(&db, ask_always, &c), 0);
    for (int at = 1; at <= asked + 1; at++) {
        conc_group g = {0};
        c.asked = 0;
        c.at = at;
        CHECK_INT(conc_spawn_task(&g, &c.task, run_cut, &c), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        asked = c.asked;
        c.at = 0;
        CHECK(c.rc >= 0 || c.rc == -ECANCELED);
        CHECK_INT(number(&db, "SELECT count(*) FROM t"), c.rc < 0 ? 0 : rows);
        CHECK(sqlite_exec(&db, "DELETE FROM t") >= 0);
        c.rc < 0 ? cancelled++ : done++;
    }
    CHECK(cancelled > 2 && done > 0);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(a_cancelled_insert_has_no_effect_wherever_it_is) { cut_everywhere(insert_one, 1); }
DB_TEST(a_cancelled_insert_returning_has_no_effect) { cut_everywhere(insert_returning, 1); }
DB_TEST(a_cancelled_transaction_has_no_effect) { cut_everywhere(insert_in_transaction, 2); }
DB_TEST(a_cancelled_nested_transaction_has_no_effect) { cut_everywhere(insert_nested, 4); }

/* Every call that waits. */
static int call_exec(void *db) { return insert(db, 1); }
static int call_query(void *db)
{
    sqlite_rows rows = {0};
    int rc = sqlite_query(db, &rows, "INSERT INTO t VALUES (2) RETURNING n");
    sqlite_rows_close(&rows);
    return rc;
}
static int call_batches(void *db)
{
    sqlite_rows rows = {.batch = 1};
    int rc = sqlite_query(db, &rows, "SELECT 1 UNION SELECT 2");
    sqlite_rows_close(&rows);
    return rc;
}
static int call_number(void *db)
{
    int64_t n;
    return sqlite_number(db, &n, "SELECT 1");
}
static int call_ping(void *db) { return sqlite_ping(db); }
static int call_call(void *db) { return sqlite_call(db, make_gate, NULL); }
static int call_transaction(void *db) { return transact(&(change){.db = db, .first = 3}); }

static conc_fn *const calls[] = {call_exec, call_query, call_batches,    call_number,
                                 call_ping, call_call,  call_transaction};

DB_TEST(a_cancelled_task_does_nothing)
{
    sqlite_db db = {0}, never = {0};
    open_table(&db);
    for (size_t i = 0; i < CONC_LEN(calls); i++)
        CHECK_INT(conc_timeout(0, calls[i], &db), -ETIMEDOUT);
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 0), 0);
    CHECK_INT(sqlite_open(&never, "never.db"), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    CHECK(!never.handle && access("never.db", F_OK) != 0);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
    for (size_t i = 0; i < CONC_LEN(calls); i++)
        CHECK(calls[i](&db) >= 0);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 4);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(a_cancel_ends_the_wait_for_a_turn)
{
    sqlite_db db = {0};
    open_gated(&db);
    job slow = {&db, "SELECT gate()", 99};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, run_job, &slow), 0);
    wait_until_entered();
    for (size_t i = 0; i < CONC_LEN(calls); i++) {
        cut c = {.db = &db, .fn = calls[i]};
        conc_group one = {0};
        CHECK_INT(conc_spawn(&one, run_cut, &c), 0);
        CHECK_INT(conc_settle(), 0);
        conc_group_cancel(&one);
        CHECK_INT(conc_group_wait(&one), 0);
        CHECK_INT(c.rc, -ECANCELED);
        CHECK_INT(slow.rc, 99);
    }
    sem_post(&gate);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(slow.rc, 0);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
    CHECK_INT(sqlite_close(&db), 0);
    end_gate();
}

static int block_thread(void *arg)
{
    (void)arg;
    while (sem_wait(&gate))
        continue;
    return 0;
}
static int offload_blocker(void *arg) { return conc_offload(block_thread, arg); }

DB_TEST(a_cancel_ends_the_wait_for_a_thread)
{
    enum { BLOCKERS = 40 }; /* more than there are threads */
    sqlite_db db = {0};
    open_gated(&db);
    conc_group blockers = {0};
    for (int i = 0; i < BLOCKERS; i++)
        CHECK_INT(conc_spawn(&blockers, offload_blocker, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    for (size_t i = 0; i < CONC_LEN(calls); i++) {
        cut c = {.db = &db, .fn = calls[i]};
        conc_group one = {0};
        CHECK_INT(conc_spawn(&one, run_cut, &c), 0);
        CHECK_INT(conc_settle(), 0);
        conc_group_cancel(&one);
        CHECK_INT(conc_group_wait(&one), 0);
        CHECK_INT(c.rc, -ECANCELED);
    }
    for (int i = 0; i < BLOCKERS; i++)
        sem_post(&gate);
    CHECK_INT(conc_group_wait(&blockers), 0);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
    CHECK_INT(sqlite_close(&db), 0);
    end_gate();
}

/* ---- closing ---- */

static int close_db(void *db) { return sqlite_close(db); }

DB_TEST(close_waits_for_the_statement_and_those_behind_it_find_nothing)
{
    sqlite_db db = {0};
    open_gated(&db);
    job slow = {&db, "INSERT INTO t SELECT gate()", 99}, before = {&db, "SELECT 1", 99},
        behind = {&db, "SELECT 1", 99};
    conc_group g = {0};
    conc_task closer;
    CHECK_INT(conc_spawn(&g, run_job, &slow), 0);
    wait_until_entered();
    CHECK_INT(conc_spawn(&g, run_job, &before), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn_task(&g, &closer, close_db, &db), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_spawn(&g, run_job, &behind), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!conc_done(&closer));
    sem_post(&gate);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(slow.rc, 1);
    CHECK_INT(before.rc, 0);
    CHECK_INT(behind.rc, -EBADF);
    CHECK(!db.handle);
    open_table(&db); /* again */
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 1);
    CHECK_INT(sqlite_close(&db), 0);
    end_gate();
}

DB_TEST(close_works_in_a_cancelled_task_and_after_a_cancelled_statement)
{
    sqlite_db db = {0};
    sqlite_rows rows = {.batch = 1};
    open_gated(&db);
    job slow = {&db, ENDLESS_GATED "SELECT count(*) FROM c", 0};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, run_job, &slow), 0);
    wait_until_entered();
    conc_group_cancel(&g);
    sem_post(&gate);
    CHECK_INT(sqlite_close(&db), 0); /* in the group, so cancelled */
    CHECK(!db.handle);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(slow.rc, -ECANCELED);
    open_table(&db);
    CHECK_INT(sqlite_query(&db, &rows, "SELECT 1 UNION SELECT 2"), 0);
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 0), 0);
    CHECK_INT(sqlite_rows_close(&rows), 0);
    CHECK_INT(sqlite_close(&db), 0);
    CHECK_INT(conc_scope_end(&s, 0), 0);
    CHECK(!db.handle);
    end_gate();
}

/* ---- other processes ---- */

static int other_fd; /* to a process that executes SQL on test.db, and answers with SQLite's code */

static void be_the_other(int fd)
{
    sqlite3 *handle = NULL;
    char sql[200];
    ssize_t n;
    while ((n = read(fd, sql, sizeof sql)) > 0) {
        int code = handle ? SQLITE_OK : sqlite3_open("test.db", &handle);
        code = code ? code : sqlite3_exec(handle, sql, NULL, NULL, NULL);
        if (write(fd, &code, sizeof code) != sizeof code)
            break;
    }
    _exit(0);
}

static void other(const char *sql)
{
    char line[200] = "";
    int code = -1;
    snprintf(line, sizeof line, "%s", sql);
    CHECK(write(other_fd, line, sizeof line) == sizeof line);
    CHECK(read(other_fd, &code, sizeof code) == sizeof code);
    CHECK_INT(code, SQLITE_OK);
}

static void with_other(void (*body)(void))
{
    int ends[2], status;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
    enter_folder();
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(ends[0]);
        be_the_other(ends[1]);
    }
    close(ends[1]);
    other_fd = ends[0];
    test_in_task(body);
    close(other_fd);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    leave_folder();
}

#define OTHER_TEST(name)                    \
    static void name##_body(void);          \
    TEST(name) { with_other(name##_body); } \
    static void name##_body(void)

OTHER_TEST(the_call_waits_for_another_processs_lock)
{
    sqlite_db db = {0};
    open_table(&db);
    other("BEGIN IMMEDIATE");
    job j = {&db, "INSERT INTO t VALUES (1)", 99};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, run_job, &j), 0);
    CHECK_INT(conc_sleep(4), 0);
    CHECK_INT(j.rc, 99);
    other("COMMIT");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(j.rc, 1);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 1);
    CHECK_INT(sqlite_close(&db), 0);
}

OTHER_TEST(the_wait_for_a_lock_has_a_limit)
{
    sqlite_db db = {0};
    open_table(&db);
    other("BEGIN IMMEDIATE");
    CHECK_INT(insert(&db, 1), -EBUSY);
    CHECK_TIME(5);
    CHECK_STR(db.error, "test.db: database is locked, in: INSERT INTO t VALUES (?)");
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0); /* reading works */
    CHECK_INT(transact(&(change){.db = &db, .first = 1}), -EBUSY);
    CHECK_TIME(10);
    CHECK_INT(conc_timeout(1, transact, &(change){.db = &db, .first = 1}), -ETIMEDOUT);
    CHECK_TIME(11);
    CHECK_INT(conc_timeout(1, call_exec, &db), -ETIMEDOUT);
    CHECK_TIME(12);
    CHECK_INT(sqlite_close(&db), 0);
    db.busy_timeout = 0.25;
    CHECK_INT(sqlite_open(&db, "test.db"), 0);
    CHECK_INT(insert(&db, 1), -EBUSY);
    CHECK_TIME(12.25);
    CHECK_INT(sqlite_close(&db), 0);
    db.busy_timeout = -1;
    CHECK_INT(sqlite_open(&db, "test.db"), 0);
    CHECK_INT(insert(&db, 1), -EBUSY);
    CHECK_TIME(12.25);
    other("COMMIT");
    CHECK_INT(insert(&db, 1), 1);
    CHECK_INT(sqlite_close(&db), 0);
}

OTHER_TEST(a_reader_delays_a_commit_but_not_in_wal_mode)
{
    sqlite_db db = {0};
    open_table(&db);
    other("BEGIN; SELECT count(*) FROM t");
    CHECK_INT(insert(&db, 1), -EBUSY);
    CHECK_TIME(5);
    CHECK_INT(transact(&(change){.db = &db, .first = 1}), -EBUSY);
    CHECK_TIME(10);
    CHECK_STR(db.error, "test.db: database is locked, in: COMMIT");
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
    other("COMMIT");
    CHECK_INT(transact(&(change){.db = &db, .first = 1}), 0);
    CHECK_INT(sqlite_close(&db), 0);
    db.wal = true;
    CHECK_INT(sqlite_open(&db, "test.db"), 0);
    other("BEGIN; SELECT count(*) FROM t");
    CHECK_INT(insert(&db, 3), 1);
    CHECK_TIME(10);
    other("COMMIT");
    CHECK_INT(sqlite_close(&db), 0);
}

static int open_wal(void *db) { return sqlite_open(db, "test.db"); }

OTHER_TEST(open_waits_for_locks_and_leaves_nothing_open)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_close(&db), 0);
    int fds = test_count_fds();
    other("BEGIN EXCLUSIVE");
    db.wal = true;
    CHECK_INT(open_wal(&db), -EBUSY);
    CHECK_TIME(5);
    CHECK_INT(conc_timeout(1, open_wal, &db), -ETIMEDOUT);
    CHECK_TIME(6);
    CHECK(!db.handle);
    CHECK_INT(test_count_fds(), fds);
    other("COMMIT");
    CHECK_INT(open_wal(&db), 0);
    CHECK_INT(sqlite_close(&db), 0);
    CHECK_TIME(6);
}

OTHER_TEST(waiting_for_a_lock_occupies_no_thread)
{
    enum { CONNECTIONS = 50 }; /* more than there are threads */
    static sqlite_db dbs[CONNECTIONS];
    static change changes[CONNECTIONS];
    open_table(&dbs[0]);
    for (int i = 0; i < CONNECTIONS; i++) {
        if (i > 0)
            CHECK_INT(sqlite_open(&dbs[i], "test.db"), 0);
        changes[i] = (change){.db = &dbs[i], .first = 10 * i, .nap = 0.01};
    }
    other("BEGIN IMMEDIATE");
    conc_group g = {0};
    for (int i = 0; i < CONNECTIONS; i++)
        CHECK_INT(conc_spawn(&g, transact, &changes[i]), 0);
    CHECK_INT(conc_sleep(1), 0);
    sqlite_db free = {0};
    CHECK_INT(sqlite_open(&free, "free.db"), 0);
    CHECK_INT(sqlite_exec(&free, "CREATE TABLE t (n)"), 0);
    CHECK_TIME(1);
    CHECK_INT(sqlite_close(&free), 0);
    other("COMMIT");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(number(&dbs[0], "SELECT count(*) FROM t"), 2 * CONNECTIONS);
    for (int i = 0; i < CONNECTIONS; i++)
        CHECK_INT(sqlite_close(&dbs[i]), 0);
}

/* ---- files ---- */

static void write_bytes(const char *path, long at, int byte, size_t size)
{
    FILE *f = fopen(path, at ? "r+" : "w");
    CHECK(f && fseek(f, at, SEEK_SET) == 0);
    for (size_t i = 0; i < size; i++)
        CHECK(putc(byte, f) == byte);
    CHECK(fclose(f) == 0);
}

DB_TEST(garbage_is_not_a_database)
{
    sqlite_db db = {.wal = true};
    int fds = test_count_fds();
    write_bytes("garbage.db", 0, 'x', 10000);
    CHECK_INT(sqlite_open(&db, "garbage.db"), -EBADMSG);
    CHECK_CONTAINS(db.error, "garbage.db: file is not a database");
    CHECK_INT(db.code, SQLITE_NOTADB);
    CHECK(!db.handle);
    CHECK_INT(sqlite_exec(&db, "SELECT 1"), -EBADF);
    CHECK_INT(test_count_fds(), fds);
    write_bytes("empty.db", 0, 'x', 0);
    CHECK_INT(sqlite_open(&db, "empty.db"), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(a_damaged_database_is_reported)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_transaction(&db, insert_1000, &db), 0);
    CHECK_INT(sqlite_close(&db), 0);
    write_bytes("test.db", 4096, 0x55, 4096);
    CHECK_INT(sqlite_open(&db, "test.db"), 0);
    CHECK_INT(sqlite_exec(&db, "SELECT sum(n) FROM t NOT INDEXED"), -EBADMSG);
    CHECK_STR(db.error, "test.db: database disk image is malformed, in: SELECT sum(n) FROM t NOT "
                        "INDEXED");
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(files_that_cannot_be_opened_are_errors)
{
    sqlite_db db = {0}, strict = {.must_exist = true}, reader = {.read_only = true, .wal = true};
    CHECK_INT(sqlite_open(&db, "none/test.db"), -ENOENT);
    CHECK_STR(db.error, "none/test.db: unable to open database file");
    CHECK_INT(sqlite_open(&strict, "test.db"), -ENOENT);
    CHECK_INT(sqlite_open(&reader, "test.db"), -ENOENT);
    CHECK(access("test.db", F_OK) != 0);
    CHECK_INT(mkdir("directory", 0777), 0);
    CHECK_INT(sqlite_open(&db, "directory"), -EISDIR);
    open_table(&db);
    CHECK_INT(sqlite_open(&strict, "test.db"), 0);
    CHECK_INT(sqlite_open(&reader, "test.db"), 0);
    CHECK_INT(insert(&strict, 1), 1);
    CHECK_INT(insert(&reader, 2), -EROFS);
    CHECK_STR(reader.error,
              "test.db: attempt to write a readonly database, in: INSERT INTO t VALUES (?)");
    CHECK_INT(transact(&(change){.db = &reader, .first = 3}), -EROFS);
    CHECK_INT(sqlite_transaction(&reader, call_number, &reader), 0);
    CHECK_INT(number(&reader, "SELECT count(*) FROM t"), 1);
    CHECK_INT(sqlite_close(&db), 0);
    CHECK_INT(sqlite_close(&strict), 0);
    CHECK_INT(sqlite_close(&reader), 0);
    if (geteuid() == 0) /* may write everywhere */
        return;
    CHECK_INT(chmod("test.db", 0444), 0);
    CHECK_INT(sqlite_open(&db, "test.db"), 0);
    CHECK_INT(insert(&db, 2), -EROFS);
    CHECK_INT(sqlite_close(&db), 0);
}

DB_TEST(options_are_set)
{
    sqlite_db db = {.wal = true, .foreign_keys = true, .synchronous = "OFF"}, plain = {0},
              memory = {.wal = true};
    CHECK_INT(sqlite_open(&db, "test.db"), 0);
    CHECK_INT(number(&db, "PRAGMA foreign_keys"), 1);
    CHECK_INT(number(&db, "PRAGMA synchronous"), 0);
    CHECK_INT(number(&db, "SELECT journal_mode = 'wal' FROM pragma_journal_mode"), 1);
    CHECK_INT(sqlite_close(&db), 0);
    CHECK_INT(sqlite_open(&plain, "plain.db"), 0);
    CHECK_INT(number(&plain, "PRAGMA foreign_keys"), 0);
    CHECK_INT(number(&plain, "PRAGMA synchronous"), 2);
    CHECK_INT(sqlite_close(&plain), 0);
    CHECK_INT(sqlite_open(&memory, ":memory:"), 0);
    CHECK_INT(sqlite_close(&memory), 0);
}

DB_TEST(a_ping_reports_whether_the_connection_works)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_ping(&db), 0);
    CHECK_INT(sqlite_ping(&db), 0);
    CHECK_INT(rename("test.db", "other.db"), 0);
    CHECK_INT(sqlite_ping(&db), -ESTALE);
    CHECK_CONTAINS(db.error, "test.db: the file was removed or renamed");
    CHECK_INT(rename("other.db", "test.db"), 0);
    CHECK_INT(sqlite_ping(&db), 0);
    CHECK_INT(unlink("test.db"), 0);
    CHECK_INT(sqlite_ping(&db), -ESTALE);
    CHECK_INT(sqlite_close(&db), 0);
    CHECK_INT(sqlite_open(&db, ":memory:"), 0);
    CHECK_INT(sqlite_ping(&db), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

static int return_it(sqlite3 *handle, void *rc)
{
    (void)handle;
    return *(int *)rc;
}
static int fail_it(sqlite3 *handle, void *rc)
{
    (void)handle;
    return conc_fail(*(int *)rc, "no luck");
}
static int begin_it(sqlite3 *handle, void *arg)
{
    (void)arg;
    return sqlite3_exec(handle, "BEGIN; INSERT INTO t VALUES (1)", NULL, NULL, NULL);
}

DB_TEST(a_user_function_runs_in_the_thread)
{
    sqlite_db db = {0};
    open_table(&db);
    CHECK_INT(sqlite_call(&db, return_it, &(int){0}), 0);
    CHECK_INT(sqlite_call(&db, return_it, &(int){SQLITE_FULL}), -ENOSPC);
    CHECK_INT(sqlite_call(&db, return_it, &(int){SQLITE_BUSY}), -EBUSY);
    CHECK_TIME(0);
    CHECK_INT(sqlite_call(&db, return_it, &(int){-EXDEV}), -EXDEV);
    CHECK_CONTAINS(db.error, strerror(EXDEV));
    CHECK_INT(sqlite_call(&db, fail_it, &(int){-EXDEV}), -EXDEV);
    CHECK_STR(db.error, "test.db: no luck");
    CHECK_INT(sqlite_call(&db, begin_it, NULL), -EINVAL);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 0);
    CHECK_INT(sqlite_close(&db), 0);
}

/* ---- crashes and forks ---- */

static int fill_and_die(void *arg)
{
    sqlite_db *db = arg;
    for (int i = 0; i < 300; i++)
        CHECK_INT(sqlite_exec(db, "INSERT INTO f VALUES (zeroblob(2000))"), 1);
    CHECK_INT(sqlite_exec(db, "UPDATE t SET n = -n"), 1000);
    kill(getpid(), SIGKILL);
    return 0;
}

static int die_in_a_transaction(void *arg)
{
    sqlite_db db = {.wal = *(bool *)arg};
    open_table(&db);
    CHECK_INT(sqlite_exec(&db, "CREATE TABLE f (b); PRAGMA cache_size = 5"), 0);
    CHECK_INT(sqlite_transaction(&db, insert_1000, &db), 0);
    return sqlite_transaction(&db, fill_and_die, &db);
}

static int look_after_the_crash(void *arg)
{
    sqlite_db db = {.wal = *(bool *)arg};
    CHECK_INT(sqlite_open(&db, "test.db"), 0);
    CHECK_INT(number(&db, "SELECT count(*) FROM t WHERE n >= 0"), 1000);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 1000);
    CHECK_INT(number(&db, "SELECT count(*) FROM f"), 0);
    CHECK_INT(number(&db, "SELECT integrity_check = 'ok' FROM pragma_integrity_check"), 1);
    return sqlite_close(&db);
}

static void crash(bool wal)
{
    int status;
    enter_folder();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        _exit(conc_run(die_in_a_transaction, &wal) != 0);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    struct stat file; /* it had begun to write */
    CHECK(stat(wal ? "test.db-wal" : "test.db-journal", &file) == 0 && file.st_size > 10000);
    CHECK(wal || (stat("test.db", &file) == 0 && file.st_size > 600000));
    CHECK_INT(conc_run(look_after_the_crash, &wal), 0);
    leave_folder();
}

TEST(a_process_killed_in_a_transaction_leaves_nothing_of_it) { crash(false); }
TEST(the_same_in_wal_mode) { crash(true); }

static int use_kept(void *arg)
{
    (void)arg;
    return insert(&kept, 2);
}

TEST(a_forked_child_cannot_use_the_connection)
{
    int status;
    enter_folder();
    kept.wal = true;
    CHECK_INT(conc_run(open_kept, NULL), 1);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        CHECK_INT(conc_run(use_kept, NULL), -EPERM);
        CHECK_INT(sqlite_close(&kept), -EPERM);
        CHECK_INT(sqlite_close(&kept), 0);
        CHECK_INT(conc_run(open_kept, NULL), -EEXIST); /* its own */
        CHECK_INT(sqlite_close(&kept), 0);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_INT(status, 0);
    CHECK_INT(conc_run(use_kept, NULL), 1);
    CHECK_INT(sqlite_close(&kept), 0);
    leave_folder();
}

/* ---- many at once ---- */

static int insert_element(void *arg)
{
    change *c = arg;
    int rc = insert(c->db, c->first);
    return rc == 1 ? 0 : rc;
}

DB_TEST(a_thousand_calls_at_once_on_one_connection)
{
    static change changes[1000];
    sqlite_db db = {.synchronous = "OFF"};
    open_table(&db);
    for (int i = 0; i < 1000; i++)
        changes[i] = (change){.db = &db, .first = i};
    CHECK_INT(CONC_MAP(insert_element, changes), 0);
    CHECK_INT(number(&db, "SELECT count(*) FROM t"), 1000);
    if (!test_seeded())
        CHECK_INT(number(&db, "SELECT count(*) FROM t WHERE n = rowid - 1"), 1000);
    CHECK_INT(sqlite_close(&db), 0);
}

REAL_DB_TEST(a_thousand_calls_over_ten_connections)
{
    static change changes[1000];
    sqlite_db dbs[10];
    for (int i = 0; i < 10; i++) {
        dbs[i] = (sqlite_db){.wal = true, .synchronous = "NORMAL"};
        CHECK_INT(sqlite_open(&dbs[i], "test.db"), 0);
    }
    CHECK_INT(sqlite_exec(&dbs[0], "CREATE TABLE t (n INTEGER UNIQUE)"), 0);
    for (int i = 0; i < 1000; i++)
        changes[i] = (change){.db = &dbs[i % 10], .first = i};
    CHECK_INT(CONC_MAP(insert_element, changes), 0);
    for (int i = 0; i < 10; i++) {
        CHECK_INT(number(&dbs[i], "SELECT count(*) FROM t"), 1000);
        CHECK_INT(sqlite_close(&dbs[i]), 0);
    }
    CHECK(access("test.db-wal", F_OK) != 0); /* the last close cleans up */
}

REAL_DB_TEST(ten_connections_open_a_new_file_at_once)
{
    sqlite_db dbs[10];
    for (int i = 0; i < 10; i++)
        dbs[i] = (sqlite_db){.wal = true};
    CHECK_INT(CONC_MAP(open_wal, dbs), 0);
    for (int i = 0; i < 10; i++)
        CHECK_INT(sqlite_close(&dbs[i]), 0);
}

/* ---- the loop is never blocked ---- */

static void nap(sqlite3_context *context, int n, sqlite3_value **values)
{
    (void)n, (void)values;
    usleep(300000);
    sqlite3_result_int(context, 1);
}

static int make_nap(sqlite3 *handle, void *arg)
{
    (void)arg;
    usleep(300000);
    return sqlite3_create_function(handle, "nap", 0, SQLITE_UTF8, NULL, nap, NULL, NULL);
}

static int use_slow_calls(void *arg)
{
    (void)arg;
    sqlite_db db = {0};
    sqlite_rows rows = {.batch = 1};
    int64_t n;
    open_table(&db);
    CHECK_INT(sqlite_call(&db, make_nap, NULL), 0);
    CHECK_INT(sqlite_exec(&db, "INSERT INTO t SELECT nap()"), 1);
    CHECK_INT(sqlite_query(&db, &rows, COUNT_TO "SELECT nap() FROM c", sqlite_int(3)), 0);
    CHECK_INT(sqlite_next(&rows), 1);
    CHECK_INT(sqlite_next(&rows), 1);
    CHECK_INT(sqlite_rows_close(&rows), 0);
    CHECK_INT(sqlite_number(&db, &n, "SELECT nap()"), 0);
    return sqlite_close(&db);
}

static void run_debugging(void)
{
    conc_options options = {.debug = true, .slow_step = 0.15};
    CHECK_INT(conc_run_with(&options, use_slow_calls, NULL), 0);
}

TEST(debug_mode_reports_no_slow_steps)
{
    static char text[10000];
    enter_folder();
    CHECK_INT(test_in_process(run_debugging, text, sizeof text), 0);
    CHECK(strstr(text, "blocked the loop") == NULL);
    leave_folder();
}
