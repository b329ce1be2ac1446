/* payment_sources.h - payment sources with a known sum, to test pipelines
 *
 *     int64_t count = 10010;                               // records per source
 *     CONC_TRY(payment_make_sources("in", count));         // in/shop-1.csv, shop-2.csv, orders.db
 *     int fd = CONC_TRY(conc_listen("127.0.0.1:0"));
 *     CONC_TRY(payment_serve_feed(fd, count));             // the fourth source, until cancelled
 *     CONC_TRY(payment_sum_sources(count, &sum));          // what a pipeline should have loaded
 *
 * A CSV file begins with the line id,customer,amount,currency,time. The table is payments(id
 * INTEGER PRIMARY KEY, customer, amount, currency, time). The feed is one of feed.h. One in 1001
 * records is bad.
 *
 * All of these wait. Include conc_pool.h and sqlite.h before. */
#ifndef PAYMENT_SOURCES_H
#define PAYMENT_SOURCES_H

#ifndef CONC_SQLITE_H
#error "payment_sources.h: include conc_pool.h, conc_sync.h and sqlite.h first"
#endif

#include "feed.h"
#include "payment.h"

#include <sys/stat.h>

enum { PAYMENT_SOURCES = 4, PAYMENT_SPACING = 1001 /* one record in so many is bad */ };

/* A checksum of payments, which changes if one is missing or duplicated. */
typedef struct payment_sum {
    int64_t count, sum; /* sum: of id * cents % 1000003 */
} payment_sum;

/* Creates three sources of count records in the folder, and the folder if necessary. */
static inline int payment_make_sources(const char *folder, int64_t count);

/* Serves the fourth source to each client of this listening socket, and logs requests on stderr. */
static inline int payment_serve_feed(int fd, int64_t count);

/* Sum up the good records of all four sources; the columns id and cents of a database's table
 * payments; the lines of a file, in the format of payment_print. Every line must be JSON. */
static inline int payment_sum_sources(int64_t count, payment_sum *sum);
static inline int payment_sum_table(sqlite_db *db, payment_sum *sum);
static inline int payment_sum_lines(const char *path, payment_sum *sum);

/* ---- implementation ------------------------------------------------------------------------- */

typedef struct payment__make {
    const char *path;
    int source;
    int64_t count;
    sqlite_db *db;
    payment_sum *sum;
} payment__make;

static const char payment__csv[] = "%lld,\"%s\",%s,%s,%s\n";
static const char payment__sql[] = "INSERT INTO payments VALUES (%lld, '%s', '%s', '%s', '%s')";
static const char payment__json[] = "{\"id\": %lld, \"customer\": \"%s\", \"amount\": %s, "
                                    "\"currency\": \"%s\", \"time\": \"%s\"}\n";

/* Formats record i of a source in one of these formats. Returns its size. */
static inline int payment__format(char line[300], const char *format, int source, int64_t i)
{
    static const char *const customers[] = {"Ada Lovelace", "Ng, Bo", "Zoë Quinn", " Li "};
    static const char *const currencies[] = {"EUR", "USD", "GBP", "CHF"};
    char amount[24], time[24];
    uint64_t key = (uint64_t)i * PAYMENT_SOURCES + (uint64_t)source + 1;
    uint64_t x = key * 0x9e3779b97f4a7c15u;
    const char *currency = currencies[x / 8 % CONC_LEN(currencies)];
    bool is_bad = i % PAYMENT_SPACING == PAYMENT_SPACING - 1;
    int fault = is_bad ? (int)(i / PAYMENT_SPACING % 3) : -1;
    snprintf(amount, sizeof amount, "%u.%02u", (unsigned)(x >> 44) + 1, (unsigned)(x >> 20) % 100);
    snprintf(time, sizeof time, "2024-%02u-%02uT%02u:30:00Z", 1 + (unsigned)(x >> 16) % 12,
             1 + (unsigned)(x >> 24) % 28, (unsigned)(x >> 32) % 24);
    if (fault == 0)
        snprintf(amount, sizeof amount, "\"much\"");
    if (fault == 1)
        currency = "XYZ";
    if (fault == 2)
        snprintf(time, sizeof time, "2023-02-29T12:00:00Z");
    return snprintf(line, 300, format, source * 1000000000LL + i + 1,
                    customers[x % CONC_LEN(customers)], amount, currency, time);
}

/* ---- files and a table */

static inline int payment__write_csv(void *arg) /* in a thread */
{
    const payment__make *m = arg;
    char line[300];
    FILE *file = fopen(m->path, "we");
    if (!file)
        return conc_fail(-errno, "%s: %s", m->path, conc_strerror(-errno));
    fputs("id,customer,amount,currency,time\n", file);
    for (int64_t i = 0; i < m->count && !conc_job_cancelled(); i++) {
        payment__format(line, payment__csv, m->source, i);
        fputs(line, file);
    }
    return fclose(file) == 0 ? 0 : conc_fail(-errno, "%s: %s", m->path, conc_strerror(-errno));
}

static inline int payment__insert(sqlite3 *db, void *arg) /* in a thread */
{
    const payment__make *m = arg;
    char line[300];
    int code = SQLITE_OK;
    for (int64_t i = 0; i < m->count && code == SQLITE_OK; i++) {
        payment__format(line, payment__sql, m->source, i);
        code = sqlite3_exec(db, line, NULL, NULL, NULL);
    }
    return code;
}

static inline int payment__fill_table(void *arg) /* in a transaction */
{
    payment__make *m = arg;
    CONC_TRY(sqlite_exec(m->db, "CREATE TABLE payments (id INTEGER PRIMARY KEY, customer, "
                                "amount NUMERIC, currency, time)"));
    return sqlite_call(m->db, payment__insert, m);
}

static inline int payment__make_table(payment__make *m)
{
    CONC_AUTO(sqlite_db, db) = {0};
    m->db = &db;
    unlink(m->path);
    CONC_TRY(sqlite_open(&db, m->path));
    return sqlite_transaction(&db, payment__fill_table, m);
}

static inline int payment_make_sources(const char *folder, int64_t count)
{
    char paths[3][512];
    static const char *const names[] = {"shop-1.csv", "shop-2.csv", "orders.db"};
    payment__make all[3];
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        return conc_fail(-errno, "%s: %s", folder, conc_strerror(-errno));
    for (int i = 0; i < 3; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]);
        all[i] = (payment__make){.path = paths[i], .source = i, .count = count};
    }
    CONC_TRY(conc_offload(payment__write_csv, &all[0]));
    CONC_TRY(conc_offload(payment__write_csv, &all[1]));
    return payment__make_table(&all[2]);
}

static inline int payment__print_for_feed(char *line, size_t size, int64_t i, void *arg)
{
    (void)size;
    (void)arg;
    return payment__format(line, payment__json, PAYMENT_SOURCES - 1, i);
}

static inline int payment_serve_feed(int fd, int64_t count)
{
    feed_server server = {.fd = fd, .count = count, .print = payment__print_for_feed};
    return feed_serve(&server);
}

/* ---- sums */

static inline int payment__add_up(void *arg) /* in a thread */
{
    payment__make *m = arg;
    char line[300];
    payment p;
    *m->sum = (payment_sum){0};
    for (int64_t i = 0; i < PAYMENT_SOURCES * m->count && !conc_job_cancelled(); i++) {
        payment__format(line, payment__json, (int)(i / m->count), i % m->count);
        if (!payment_read_json(line, &p)) {
            m->sum->count++;
            m->sum->sum += p.id * p.cents % 1000003;
        }
    }
    return 0;
}

static inline int payment_sum_sources(int64_t count, payment_sum *sum)
{
    payment__make m = {.count = count, .sum = sum};
    return conc_offload(payment__add_up, &m);
}

static inline int payment__query_sum(sqlite_db *db, const char *sql, sqlite_value value,
                                     payment_sum *sum)
{
    CONC_AUTO(sqlite_rows, rows) = {0};
    CONC_TRY(sqlite_query(db, &rows, sql, value));
    *sum = (payment_sum){rows.all[0][0].integer, rows.all[0][1].integer};
    return 0;
}

static inline int payment_sum_table(sqlite_db *db, payment_sum *sum)
{
    static const char sql[] = "SELECT count(*), sum(id * cents % ?) FROM payments";
    return payment__query_sum(db, sql, sqlite_int(1000003), sum);
}

static inline int payment_sum_lines(const char *path, payment_sum *sum)
{
    static const char sql[] =
        "SELECT count(*), sum((value->>'id') * (value->>'cents') % 1000003) FROM json_each('[' || "
        "replace(trim(CAST(? AS TEXT), char(10)), char(10), ',') || ']')";
    void *text;
    size_t size;
    CONC_AUTO(sqlite_db, db) = {0};
    CONC_TRY(sqlite_open(&db, ":memory:"));
    CONC_TRY(conc_file_read(path, &text, &size));
    int rc = payment__query_sum(&db, sql, sqlite_blob(text, size), sum);
    conc_free(text);
    return rc;
}

#endif
