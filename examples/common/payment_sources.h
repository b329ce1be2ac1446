/* payment_sources.h - sources of payments whose sum is known: to try pipelines on
 *
 *     int64_t count = 10010;                               // records of each source
 *     CONC_TRY(payment_make_sources("in", count));         // in/shop-1.csv, shop-2.csv, orders.db
 *     int fd = CONC_TRY(conc_listen("127.0.0.1:0"));
 *     CONC_TRY(payment_serve_feed(fd, count));             // the fourth, until it is cancelled
 *     CONC_TRY(payment_sum_sources(count, &sum));          // what a pipeline should have loaded
 *
 * A CSV file begins with the line id,customer,amount,currency,time. The table is payments(id INTEGER
 * PRIMARY KEY, customer, amount, currency, time). The feed can resume: its client asks for a position
 * with "FROM 17\n", and it sends the records from number 17 on (the first is 0), each a JSON object
 * on a line, and "END\n" after the last. One of 1001 records is bad.
 *
 * All of these wait. Include conc_pool.h and sqlite.h before. */
#ifndef PAYMENT_SOURCES_H
#define PAYMENT_SOURCES_H

#ifndef CONC_SQLITE_H
#error "payment_sources.h: include conc_pool.h, conc_sync.h and sqlite.h first"
#endif

#include "payment.h"

#include <sys/socket.h>
#include <sys/stat.h>

enum { PAYMENT_SOURCES = 4, PAYMENT_SPACING = 1001 /* of bad records */ };

/* A payment that is missing, or there twice, changes the sum. */
typedef struct payment_sum {
    int64_t count, sum; /* of id * cents % 1000003 */
} payment_sum;

/* Makes the folder, if it is not there, and three sources of count records in it: 0. */
static inline int payment_make_sources(const char *folder, int64_t count);

/* Serves the fourth to each client of this listening socket, and says on stderr what it is asked
 * for. */
static inline int payment_serve_feed(int fd, int64_t count);

/* The good records of all four: 0. */
static inline int payment_sum_sources(int64_t count, payment_sum *sum);

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

/* Record i of a source in one of these formats: its size. */
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

/* ---- the feed */

static inline int payment__send(conc_stream *s, int64_t from, int64_t count)
{
    char line[300];
    for (int64_t i = from; i < count; i++) {
        int n = payment__format(line, payment__json, PAYMENT_SOURCES - 1, i);
        CONC_TRY(conc_stream_write(s, line, (size_t)n)); /* waits while the client does */
    }
    CONC_TRY(conc_stream_printf(s, "END\n"));
    return conc_stream_flush(s);
}

static inline int payment__answer(int fd, void *arg)
{
    const int room = 65536; /* so that a client that pauses is felt soon */
    char *line;
    long long from;
    CONC_AUTO(conc_stream, s) = {0};
    CONC_TRY(conc_stream_open(&s, fd));
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    CONC_TRY(conc_stream_read_line(&s, &line));
    if (!line || sscanf(line, "FROM %lld", &from) != 1 || from < 0)
        return conc_fail(-EPROTO, "no FROM and a position");
    fprintf(stderr, "feed: asked for %lld and on\n", from);
    int rc = payment__send(&s, from, *(int64_t *)arg);
    return rc == -ECANCELED ? rc : 0; /* clients may leave */
}

static inline int payment_serve_feed(int fd, int64_t count)
{
    conc_server server = {.fd = fd, .handler = payment__answer, .arg = &count};
    return conc_serve(&server);
}

/* ---- the sum */

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

#endif
