/* sql_conc URL COUNT: COUNT inserts at once, each in its own task, over ten connections to
 * PostgreSQL that wait in a queue. */
#define CONC_STATIC
#include "../../../conc_pool.h"
#include "../../../conc_sync.h"
#include "../../../examples/common/postgres.h"
#include "measure.h"

enum { CONNECTIONS = 10 };

static postgres_db connections[CONNECTIONS];
static conc_queue pool = CONC_QUEUE(postgres_db *, CONNECTIONS);

typedef struct {
    int64_t id, amount;
} payment;

static int insert(postgres_db *db, payment *p)
{
    CONC_AUTO(postgres_result, r) = {0};
    CONC_TRY(postgres_query(db, &r, "INSERT INTO payments VALUES ($1, $2) RETURNING amount",
                            POSTGRES_INT(p->id), POSTGRES_INT(p->id % 1000)));
    return postgres_integer(&r, 0, &p->amount);
}

static int pay(void *arg)
{
    postgres_db *db;
    CONC_TRY(conc_queue_get(&pool, &db));
    int rc = insert(db, arg);
    CONC_TRY(conc_queue_try_put(&pool, &db)); /* there is room for it */
    return rc;
}

/* Payments with the numbers from first on, all at once. */
static int pay_all(payment *payments, int count, int first, int64_t *sum)
{
    for (int i = 0; i < count; i++)
        payments[i] = (payment){.id = first + i};
    CONC_TRY(conc_map(pay, payments, (size_t)count, sizeof *payments));
    *sum = 0;
    for (int i = 0; i < count; i++)
        *sum += payments[i].amount;
    return 0;
}

static int check(int count, int64_t sum)
{
    int64_t rows = 0, amounts = 0;
    CONC_AUTO(postgres_result, r) = {0};
    CONC_TRY(postgres_query(&connections[0], &r,
                            "SELECT count(*), sum(amount) FROM payments WHERE id <= $1",
                            POSTGRES_INT(count)));
    CONC_TRY(postgres_integer(&r, 0, &rows));
    CONC_TRY(postgres_integer(&r, 1, &amounts));
    if (rows != count || amounts != sum)
        return conc_fail(-EBADMSG, "the table has %d rows", (int)rows);
    return 0;
}

/* Twice; the second time counts. */
static int measure_both(payment *payments, int count)
{
    int64_t sum;
    CONC_TRY(pay_all(payments, count, count + 1, &sum));
    measure began = measure_begin();
    CONC_TRY(pay_all(payments, count, 1, &sum));
    measure took = measure_end(began);
    CONC_TRY(check(count, sum));
    measure_print(took, count, sum);
    return 0;
}

static int connect_to(void *db) { return postgres_open(db); }

static int app(void *arg)
{
    char **argv = arg;
    int count = atoi(argv[2]);
    for (int i = 0; i < CONNECTIONS; i++)
        connections[i].conninfo = argv[1];
    CONC_TRY(CONC_MAP(connect_to, connections));
    for (int i = 0; i < CONNECTIONS; i++)
        CONC_TRY(CONC_PUT(&pool, &connections[i]));
    CONC_TRY(postgres_query(&connections[0], NULL, "TRUNCATE payments"));
    payment *payments = calloc((size_t)count, sizeof *payments);
    int rc = payments ? measure_both(payments, count) : -ENOMEM;
    free(payments);
    for (int i = 0; i < CONNECTIONS; i++)
        CONC_TRY(postgres_close(&connections[i]));
    return rc;
}

int main(int argc, char **argv)
{
    bool valid = argc == 3 && atoi(argv[2]) > 0;
    if (!valid) {
        fprintf(stderr, "usage: sql_conc URL COUNT\n");
        return 2;
    }
    return conc_main(app, argv);
}
