/* A database: SQLite can only block, so its calls are made off the loop. Ten tasks insert at
 * once, each in a transaction of its own; one that is cancelled in the middle leaves nothing
 * behind.
 *   cc 04_database.c -o database -lsqlite3 && ./database
 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include <sqlite3.h>

static sqlite3 *db;               /* one connection */
static conc_lock has_transaction; /* whose transaction it is */

/* ---- What a task calls ---------------------------------------------------------------------- */

typedef struct {
    const char *sql;
    const int *values; /* one for each ? in it */
    int result;        /* the first number of the first row */
} statement;

static int execute_here(void *arg) /* in a thread */
{
    statement *s = arg;
    sqlite3_stmt *prepared = NULL;
    int code = sqlite3_prepare_v2(db, s->sql, -1, &prepared, NULL);
    for (int i = 1; code == SQLITE_OK && i <= sqlite3_bind_parameter_count(prepared); i++)
        code = sqlite3_bind_int(prepared, i, s->values[i - 1]);
    if (code == SQLITE_OK)
        code = sqlite3_step(prepared);
    if (code == SQLITE_ROW)
        s->result = sqlite3_column_int(prepared, 0);
    int rc =
        code == SQLITE_ROW || code == SQLITE_DONE ? 0 : conc_fail(-EIO, "%s", sqlite3_errmsg(db));
    sqlite3_finalize(prepared);
    return rc;
}

static int execute(const char *sql, const int *values)
{
    statement s = {.sql = sql, .values = values};
    CONC_TRY(conc_offload(execute_here, &s));
    return s.result;
}

static int roll_back(void *arg) { return (void)arg, execute("ROLLBACK", NULL); }

static int transaction(conc_fn *body, void *arg)
{
    CONC_LOCKED(&has_transaction) {
        CONC_TRY(execute("BEGIN", NULL));
        int rc = body(arg);
        if (rc >= 0)
            rc = execute("COMMIT", NULL);
        if (rc < 0)
            conc_shield(5, roll_back, NULL); /* failed or cancelled: this is done all the same */
        CONC_TRY(rc);
    }
    return 0;
}

/* ---- The exercise --------------------------------------------------------------------------- */

static int count_rows(void) { return execute("SELECT count(*) FROM numbers", NULL); }

static int insert_ten(void *task)
{
    for (int i = 0; i < 10; i++) {
        int values[] = {*(int *)task, i};
        CONC_TRY(execute("INSERT INTO numbers VALUES (?, ?)", values));
    }
    return 0;
}

static int inserter(void *task) { return transaction(insert_ten, task); }

static int insert_and_hang(void *inserted)
{
    CONC_TRY(insert_ten(&(int){10}));
    printf("%d rows in the transaction\n", CONC_TRY(count_rows()));
    conc_event_set(inserted);
    return conc_sleep(CONC_FOREVER);
}

static int hanging_inserter(void *inserted) { return transaction(insert_and_hang, inserted); }

static int insert_twice(void *task)
{
    CONC_TRY(insert_ten(task));
    return insert_ten(task); /* the same rows once more: "UNIQUE" forbids it */
}

static int use_database(void *arg)
{
    (void)arg;
    int tasks[10], again = 11;
    conc_event inserted = {0};
    conc_group g = {0};
    CONC_TRY(execute("CREATE TABLE numbers (task INTEGER, number INTEGER, UNIQUE (task, number))",
                     NULL));

    for (int i = 0; i < 10; i++)
        tasks[i] = i;
    CONC_TRY(CONC_MAP(inserter, tasks));
    printf("Ten tasks, ten rows each: %d rows\n", CONC_TRY(count_rows()));

    CONC_TRY_IN(&g, conc_spawn(&g, hanging_inserter, &inserted));
    CONC_TRY_IN(&g, conc_event_wait(&inserted));
    conc_group_cancel(&g);
    CONC_TRY(conc_group_wait(&g));
    printf("Cancelled: %d rows\n", CONC_TRY(count_rows()));

    if (transaction(insert_twice, &again) < 0)
        printf("Failed, \"%s\": ", conc_last_error());
    printf("%d rows\n", CONC_TRY(count_rows()));
    return 0;
}

static int app(void *arg)
{
    if (sqlite3_open(":memory:", &db) != SQLITE_OK)
        return conc_fail(-EIO, "%s", sqlite3_errmsg(db));
    int rc = use_database(arg);
    sqlite3_close(db);
    return rc;
}

int main(void) { return conc_main(app, NULL); }
