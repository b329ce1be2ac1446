/* Database. SQLite's calls block, so the database has its own thread for them: the loop continues.
   Ten tasks insert ten rows each, concurrently; a statement takes 0.01 s here, as on a slow disk.

   cc 04_database.c -o database -lsqlite3
   ./database
   CONC_CLOCK=virtual ./database     # without waiting

   It prints ../expected/09_io/04_database.txt.
   Hint: conc_pool_run(&thread, execute_here, &s) calls execute_here(&s) in the pool's thread, and
   waits for it. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include <sqlite3.h>

static sqlite3 *db;
static conc_pool thread = {.threads = 1}; /* one connection can do one thing at a time */

typedef struct {
    const char *sql;
    int values[2]; /* one for each ? in it */
    int result;    /* the first number of the first row */
} statement;

static int execute_here(void *arg) /* it blocks */
{
    statement *s = arg;
    sqlite3_stmt *prepared = NULL;
    CONC_TRY(conc_block(0.01));
    int code = sqlite3_prepare_v2(db, s->sql, -1, &prepared, NULL);
    for (int i = 0; code == SQLITE_OK && i < sqlite3_bind_parameter_count(prepared); i++)
        code = sqlite3_bind_int(prepared, i + 1, s->values[i]);
    if (code == SQLITE_OK)
        code = sqlite3_step(prepared);
    if (code == SQLITE_ROW)
        s->result = sqlite3_column_int(prepared, 0);
    bool done = code == SQLITE_ROW || code == SQLITE_DONE;
    int rc = done ? 0 : conc_fail(-EIO, "%s", sqlite3_errmsg(db));
    sqlite3_finalize(prepared);
    return rc;
}

/* Your turn: execute the statement in the database's thread, and return its result. */
static int execute(statement s)
{
    CONC_TRY(conc_pool_run(&thread, execute_here, &s));
    return s.result;
}

/* Your turn: insert the rows (*task, 0) to (*task, 9): "INSERT INTO numbers VALUES (?, ?)". */
static int insert_ten(void *task)
{
    for (int i = 0; i < 10; i++)
        CONC_TRY(execute((statement){"INSERT INTO numbers VALUES (?, ?)", {*(int *)task, i}, 0}));
    return 0;
}

static int ticker(void *arg)
{
    (void)arg;
    for (;; printf("The loop goes on\n"))
        CONC_TRY(conc_sleep(0.3));
}

static int app(void *arg)
{
    int tasks[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    double start = conc_now();
    CONC_TRY(sqlite3_open(":memory:", &db) == SQLITE_OK ? 0 : -ENOMEM);
    CONC_TRY(conc_pool_open(&thread));
    CONC_TRY(conc_spawn(NULL, ticker, arg)); /* in the background */
    CONC_TRY(execute((statement){.sql = "CREATE TABLE numbers (task INTEGER, number INTEGER)"}));
    CONC_TRY(CONC_MAP(insert_ten, tasks));
    int rows = CONC_TRY(execute((statement){.sql = "SELECT count(*) FROM numbers"}));
    printf("%d rows after %.1f s\n", rows, conc_now() - start);
    CONC_TRY(conc_pool_close(&thread));
    sqlite3_close(db);
    return 0;
}

int main(void) { return conc_main(app, NULL); }
