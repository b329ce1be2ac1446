/* Transaction. Either all of its statements take effect, or none. Tasks insert two rows each, in a
   transaction; a failed or cancelled one is rolled back and leaves nothing behind.

   cc 08_transaction.c -o transaction -lsqlite3
   ./transaction
   CONC_CLOCK=virtual ./transaction     # without waiting

   It prints ../expected/09_io/08_transaction.txt.
   Hint: there is one connection, so one transaction at a time: CONC_LOCKED(&lock) { ... }. In a
   cancelled task nothing waits, not even ROLLBACK: conc_shield(5, roll_back, NULL) lets it. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include <sqlite3.h>

static sqlite3 *db;
static conc_lock lock; /* around a transaction */

static int print_count(void *arg, int columns, char **values, char **names)
{
    (void)arg, (void)columns, (void)names;
    return printf("%s rows\n", values[0]) < 0;
}

static int execute_here(void *sql) /* it blocks */
{
    int code = sqlite3_exec(db, sql, print_count, NULL, NULL);
    return code == SQLITE_OK ? 0 : conc_fail(-EIO, "%s", sqlite3_errmsg(db));
}

static int execute(char *sql) { return conc_offload(execute_here, sql); }

static int roll_back(void *arg) { return (void)arg, execute("ROLLBACK"); }

/* Your turn: under the lock, execute "BEGIN", call body, and execute "COMMIT". If body or the
   commit fails, roll back, and return the error. */
static int transaction(conc_fn *body, void *arg)
{
    CONC_LOCKED(&lock) {
        CONC_TRY(execute("BEGIN"));
        int rc = body(arg);
        if (rc == 0)
            rc = execute("COMMIT");
        if (rc < 0)
            conc_shield(5, roll_back, NULL);
        CONC_TRY(rc);
    }
    return 0;
}

static int insert_two(void *statements)
{
    char **sql = statements;
    CONC_TRY(execute(sql[0]));
    CONC_TRY(conc_sleep(1)); /* another task could come between */
    return execute(sql[1]);
}

static int inserter(void *statements) { return transaction(insert_two, statements); }

static int report(const char *what, int rc)
{
    printf("%s: %s, ", what, rc < 0 ? conc_last_error() : "done");
    return execute("SELECT count(*) FROM t");
}

static int app(void *arg)
{
    char *good[][2] = {{"INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)"},
                       {"INSERT INTO t VALUES (3)", "INSERT INTO t VALUES (4)"}};
    char *twice[] = {"INSERT INTO t VALUES (5)", "INSERT INTO t VALUES (5)"};
    (void)arg;
    CONC_TRY(sqlite3_open(":memory:", &db) == SQLITE_OK ? 0 : -ENOMEM);
    CONC_TRY(execute("CREATE TABLE t (number INTEGER UNIQUE)"));
    CONC_TRY(report("Two at once", CONC_MAP(inserter, good)));
    CONC_TRY(report("The same row twice", inserter(twice)));
    CONC_TRY(report("Half a second", conc_timeout(0.5, inserter, twice)));
    sqlite3_close(db);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
