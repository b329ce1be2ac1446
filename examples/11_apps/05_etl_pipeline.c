/* ETL pipeline. It reads payments from CSV files, an SQLite table and a TCP feed, concurrently,
   checks and converts them in threads, and writes them to SQLite and a JSON lines file. The queues
   between the stages are bounded: a slow destination makes the sources pause. Kill it at any time
   and restart it: each payment reaches both destinations exactly once.

   cc 05_etl_pipeline.c -o etl -lsqlite3 -lcjson
   ./etl                                    # creates its own sources; is killed three times
   ./etl --goal                             # 100,000 payments
   ./etl shop.csv db=orders.db feed=127.0.0.1:7000 out=results
   head -2 results/payments.jsonl results/rejects.jsonl

   Options: out=FOLDER (results), health=SECONDS between two lines about its health (1; 0: none),
   timeout=SECONDS without a record from the feed (5), slow=SECONDS to delay each write to the JSON
   lines. Bad records go to rejects.jsonl, with the reason. It needs the real clock: the virtual one
   leaves other processes no time to answer.

   payment_sources.h describes the sources, payment.h their records, checkpoint.h how the two
   destinations change together. Between runs, you can add rows to the files and tables. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/sqlite.h"

#include "../common/checkpoint.h"
#include "../common/payment_sources.h"
#include "../common/temp_folder.h"
#include <stdatomic.h>

enum {
    BATCH = 500,       /* records that travel together, */
    TEXT = 128 * 1024, /* and the bytes of their lines */
    BOUND = 8          /* batches in a queue */
};

static struct {
    double slow, health, timeout;
    const char *out;
} options = {.health = 1, .timeout = 5, .out = "results"};

typedef struct source {
    const char *name;      /* of its checkpoint */
    const char *where;     /* a path or an address */
    conc_fn *extract;      /* reads from .position to the end */
    payment_reader *parse; /* a line */
    struct pipeline *of;
    int64_t position; /* CSV: a byte; SQLite: the last id; feed: the next record's number */
    bool is_paused, at_end;
    csv_file *csv; /* one of these three */
    sqlite_db *db;
    feed *feed;
    /* figures */
    int64_t read, loaded, rejected;
    double paused; /* seconds */
    int retries;
} source;

typedef struct {
    int64_t position;
    const char *line; /* its beginning, if it is too long */
    size_t size;
} record;

enum { LINES, REJECTS, FILES }; /* the files beside the database */

static const char *const file_names[FILES] = {"payments.jsonl", "rejects.jsonl"};

/* Records of one source, in their order. It is filled, transformed, loaded, and filled again. */
typedef struct batch {
    source *from;
    int64_t next; /* the source's position after it */
    int count, good;
    record records[BATCH];
    char text[TEXT];
    size_t used;
    conc_job job; /* the transformation, and what comes of it */
    double seconds;
    payment payments[BATCH];
    char *written[FILES]; /* what is to go to the files */
    size_t size[FILES];
} batch;

typedef struct pipeline {
    source *sources;
    batch *batches;
    int count, batch_count;                  /* of sources, of batches */
    conc_queue idle, extracted, transformed; /* of pointers to batches */
    conc_pool pool;
    char paths[FILES + 1][512]; /* of the files and the database */
    sqlite_db db;
    checkpoint checkpoint;
    /* figures */
    size_t most_extracted, most_transformed;
    atomic_int working, most_working; /* threads that transform just now */
    double transforming, loading;     /* seconds */
    int commits, failed;              /* failed: sources */
    int64_t loaded, rejected;
} pipeline;

/* ---- the stages ----------------------------------------------------------------------------- */

static int extract_all(void *pipeline);
static int transform(void *pipeline);
static int load(void *pipeline);
static int monitor(void *pipeline);

static int run_stages(pipeline *p)
{
    conc_group g = {0};
    CONC_TRY(conc_group_begin(&g));
    if (options.health > 0)
        CONC_TRY_IN(&g, conc_spawn(&g, monitor, p));
    int rc = CONC_GATHER(CONC_CALL(extract_all, p), CONC_CALL(transform, p), CONC_CALL(load, p));
    conc_group_cancel(&g);
    int ended = conc_group_wait(&g);
    return rc < 0 ? rc : ended;
}

static void note_length(size_t *most, const conc_queue *q)
{
    if (conc_queue_len(q) > *most)
        *most = conc_queue_len(q);
}

/* Backpressure: while the queue is full, the put waits, and the source reads nothing. Files and
 * databases do not mind. The feed's bytes fill the buffers of its socket, and then its sender waits
 * too. */
static int hand_over(batch *b)
{
    source *s = b->from;
    pipeline *p = s->of;
    double start = conc_now();
    if (b->count == 0)
        return conc_queue_try_put(&p->idle, &b);
    b->next = s->position;
    s->read += b->count;
    s->is_paused = conc_queue_len(&p->extracted) == BOUND;
    int rc = conc_queue_put(&p->extracted, &b);
    s->is_paused = false;
    s->paused += conc_now() - start;
    note_length(&p->most_extracted, &p->extracted);
    return rc;
}

/* fill(batch) reads records until the batch is full, or sets at_end. Records that it reads before
 * an error count. */
static int extract(source *s, conc_fn *fill)
{
    while (!s->at_end) {
        batch *b;
        CONC_TRY(conc_queue_get(&s->of->idle, &b));
        b->from = s;
        b->count = 0;
        b->used = 0;
        int rc = fill(b);
        CONC_TRY(hand_over(b));
        CONC_TRY(rc);
    }
    return 0;
}

static int extract_source(void *arg)
{
    source *s = arg;
    int rc = s->extract(s);
    if (rc >= 0 || rc == -ECANCELED)
        return rc;
    s->of->failed++;
    fprintf(stderr, "etl: %s: %s; the other sources go on\n", s->name, conc_last_error());
    return 0;
}

static int extract_all(void *arg)
{
    pipeline *p = arg;
    int rc = conc_map_all(extract_source, p->sources, (size_t)p->count, sizeof *p->sources, NULL);
    conc_queue_close(&p->extracted);
    return rc;
}

static int transform_batch(void *batch);

/* Batches are transformed in parallel, but stay in order: the next stage takes them one by one, and
 * waits for the job of each. */
static int transform(void *arg)
{
    pipeline *p = arg;
    batch *b;
    int rc;
    while ((rc = conc_queue_get(&p->extracted, &b)) == 0) {
        CONC_TRY(conc_pool_submit(&p->pool, &b->job, transform_batch, b));
        CONC_TRY(conc_queue_put(&p->transformed, &b));
        note_length(&p->most_transformed, &p->transformed);
    }
    conc_queue_close(&p->transformed);
    return rc == -EPIPE ? 0 : rc;
}

typedef struct {
    pipeline *of;
    batch *batches[BOUND];
    int count;
} commit;

static int load_batches(commit *c);

/* All batches that are ready share a commit: the slower commits are, the more each one does. */
static int load(void *arg)
{
    pipeline *p = arg;
    commit c = {.of = p};
    int rc;
    while ((rc = conc_queue_get(&p->transformed, &c.batches[0])) == 0) {
        c.count = 1;
        while (c.count < BOUND && conc_queue_try_get(&p->transformed, &c.batches[c.count]) == 0)
            c.count++;
        CONC_TRY(load_batches(&c));
    }
    return rc == -EPIPE ? 0 : rc;
}

/* ---- load: two destinations, one transaction ------------------------------------------------ */

static int insert_payments(sqlite3_stmt *s, const batch *b)
{
    int code = sqlite3_bind_text(s, 1, b->from->name, -1, SQLITE_STATIC);
    for (const payment *p = b->payments; p < b->payments + b->good && code == SQLITE_OK; p++) {
        sqlite3_bind_int64(s, 2, p->position);
        sqlite3_bind_int64(s, 3, p->id);
        sqlite3_bind_text(s, 4, p->customer, -1, SQLITE_STATIC);
        sqlite3_bind_int64(s, 5, p->cents);
        sqlite3_bind_text(s, 6, p->currency, -1, SQLITE_STATIC);
        sqlite3_bind_int64(s, 7, p->time);
        sqlite3_step(s);
        code = sqlite3_reset(s);
    }
    return code;
}

static int insert(sqlite3 *db, void *arg) /* in a thread */
{
    static const char sql[] = "INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?)";
    commit *c = arg;
    sqlite3_stmt *s = NULL;
    int code = sqlite3_prepare_v2(db, sql, -1, &s, NULL);
    for (int i = 0; i < c->count && code == SQLITE_OK; i++)
        code = insert_payments(s, c->batches[i]);
    sqlite3_finalize(s);
    return code;
}

static int insert_batches(void *arg) /* in a transaction */
{
    commit *c = arg;
    CONC_TRY(sqlite_call(&c->of->db, insert, c));
    for (batch **b = c->batches; b < c->batches + c->count; b++)
        CONC_TRY(checkpoint_set(&c->of->checkpoint, (*b)->from->name, (*b)->next));
    return 0;
}

/* Writes to both destinations at the same time. */
static int commit_batches(commit *c)
{
    pipeline *p = c->of;
    checkpoint_part parts[FILES * BOUND];
    int count = 0;
    double start = conc_now();
    for (int i = 0; i < c->count; i++)
        for (int k = 0; k < FILES; k++) {
            const batch *b = c->batches[i];
            parts[count++] = (checkpoint_part){k, b->written[k], b->size[k]};
        }
    CONC_TRY(checkpoint_commit(&p->checkpoint, parts, count, insert_batches, c));
    p->loading += conc_now() - start;
    p->commits++;
    return 0;
}

/* The batch is loaded, and free for other records. */
static int release(pipeline *p, batch *b)
{
    int bad = b->count - b->good;
    p->loaded += b->good;
    p->rejected += bad;
    b->from->loaded += b->good;
    b->from->rejected += bad;
    p->transforming += b->seconds;
    return conc_queue_try_put(&p->idle, &b);
}

static int load_batches(commit *c)
{
    int rc;
    for (int i = 0; i < c->count; i++) {
        CONC_TRY(conc_job_wait(&c->batches[i]->job, &rc));
        CONC_TRY(rc);
    }
    CONC_TRY(commit_batches(c));
    for (int i = 0; i < c->count; i++)
        CONC_TRY(release(c->of, c->batches[i]));
    return 0;
}

static int open_destinations(pipeline *p)
{
    static const char table[] =
        "CREATE TABLE IF NOT EXISTS payments (source TEXT, position INTEGER, id INTEGER, customer "
        "TEXT, cents INTEGER, currency TEXT, time INTEGER, PRIMARY KEY (source, position)) "
        "WITHOUT ROWID";
    if (mkdir(options.out, 0777) != 0 && errno != EEXIST)
        return conc_fail(-errno, "%s: %s", options.out, conc_strerror(-errno));
    for (int i = 0; i < FILES; i++) {
        snprintf(p->paths[i], sizeof p->paths[i], "%s/%s", options.out, file_names[i]);
        p->checkpoint.files[i] = p->paths[i];
    }
    snprintf(p->paths[FILES], sizeof p->paths[FILES], "%s/payments.db", options.out);
    p->db = (sqlite_db){.wal = true, .synchronous = "NORMAL"};
    p->checkpoint.db = &p->db;
    p->checkpoint.slow = options.slow;
    CONC_TRY(sqlite_open(&p->db, p->paths[FILES]));
    CONC_TRY(sqlite_exec(&p->db, table));
    CONC_TRY(checkpoint_open(&p->checkpoint));
    for (source *s = p->sources; s < p->sources + p->count; s++)
        CONC_TRY(checkpoint_get(&p->checkpoint, s->name, &s->position));
    return 0;
}

/* ---- extract: each kind of source ----------------------------------------------------------- */

static bool has_room(const batch *b) { return b->count < BATCH && TEXT - b->used > PAYMENT_LINE; }

static void add_record(batch *b, int64_t position, const char *line, size_t size)
{
    size_t kept = size > PAYMENT_LINE ? PAYMENT_EXCERPT : size;
    char *to = b->text + b->used;
    memcpy(to, line, kept);
    to[kept] = 0;
    b->used += kept + 1;
    b->records[b->count++] = (record){position, to, size};
}

static int read_csv(void *arg) /* in a thread: the disk may be slow */
{
    batch *b = arg;
    source *s = b->from;
    char *line;
    while (has_room(b) && !s->at_end) {
        ssize_t n = CONC_TRY(csv_next(s->csv, &line));
        s->at_end = n == 0;
        if (n > 0)
            add_record(b, s->csv->start, line, (size_t)n);
        s->position = s->csv->position;
    }
    return 0;
}

static int fill_from_csv(void *b) { return conc_offload(read_csv, b); }

static int extract_csv(void *arg)
{
    source *s = arg;
    CONC_AUTO(csv_file, csv) = {
        .path = s->where, .header = "id,customer,amount,currency,time", .position = s->position};
    s->csv = &csv;
    return extract(s, fill_from_csv);
}

/* A column of SQLite may hold anything: each row becomes a line of JSON, which is then checked like
 * any other. */
static int fill_from_sqlite(void *arg)
{
    static const char page[] =
        "SELECT id, json_object('id', id, 'customer', substr(CAST(customer AS TEXT), 1, ?1), "
        "'amount', iif(typeof(amount) IN ('integer', 'real'), amount, "
        "substr(CAST(amount AS TEXT), 1, ?1)), 'currency', substr(CAST(currency AS TEXT), 1, ?1), "
        "'time', substr(CAST(time AS TEXT), 1, ?1)) FROM payments WHERE id > ?2 ORDER BY id "
        "LIMIT ?3";
    batch *b = arg;
    source *s = b->from;
    CONC_AUTO(sqlite_rows, rows) = {0};
    CONC_TRY(sqlite_query(s->db, &rows, page, sqlite_int(PAYMENT_LINE), sqlite_int(s->position),
                          sqlite_int(BATCH)));
    s->at_end = rows.count == 0;
    while (has_room(b) && CONC_TRY(sqlite_next(&rows))) {
        add_record(b, rows.row[0].integer, rows.row[1].text, rows.row[1].size);
        s->position = rows.row[0].integer;
    }
    return 0;
}

static int extract_sqlite(void *arg)
{
    source *s = arg;
    CONC_AUTO(sqlite_db, db) = {.read_only = true};
    s->db = &db;
    CONC_TRY(sqlite_open(&db, s->where));
    return extract(s, fill_from_sqlite);
}

static int read_record(batch *b)
{
    source *s = b->from;
    char *line;
    ssize_t n = CONC_TRY(feed_next(s->feed, &line));
    s->at_end = n == 0;
    if (n > 0)
        add_record(b, s->position, line, (size_t)n - 1);
    s->position = s->feed->position;
    return 0;
}

static int read_more(void *arg)
{
    batch *b = arg;
    while (has_room(b) && !b->from->at_end)
        CONC_TRY(read_record(b));
    return 0;
}

/* A record waits at most 0.1 s for its batch to fill up. */
static int fill_from_feed(void *b)
{
    CONC_TRY(read_record(b));
    int rc = conc_timeout(0.1, read_more, b);
    return rc == -ETIMEDOUT ? 0 : rc;
}

static int extract_feed(void *arg)
{
    source *s = arg;
    CONC_AUTO(feed, f) = {.address = s->where, .timeout = options.timeout, .position = s->position};
    s->feed = &f;
    int rc = extract(s, fill_from_feed);
    s->retries = f.retries;
    s->feed = NULL;
    return rc;
}

/* ---- transform ------------------------------------------------------------------------------ */

static int transform_record(batch *b, const record *r, FILE *const *files)
{
    payment *p = &b->payments[b->good];
    const char *fault;
    if (r->size > PAYMENT_LINE)
        fault = "the line is too long";
    else if (strlen(r->line) != r->size)
        fault = "the line contains a NUL";
    else
        fault = b->from->parse(r->line, p);
    if (fault)
        return payment_print_reject(b->from->name, r->position, r->line, r->size, fault,
                                    files[REJECTS]);
    p->position = r->position;
    b->good++;
    return payment_print(p, b->from->name, files[LINES]);
}

static int transform_records(batch *b)
{
    FILE *files[FILES];
    bool is_good = true;
    b->good = 0;
    for (int k = 0; k < FILES; k++) {
        free(b->written[k]);
        b->written[k] = NULL;
        files[k] = open_memstream(&b->written[k], &b->size[k]);
        is_good = is_good && files[k];
    }
    for (int i = 0; i < b->count && is_good; i++)
        is_good = transform_record(b, &b->records[i], files) == 0;
    for (int k = 0; k < FILES; k++)
        if (files[k] && fclose(files[k]) != 0)
            is_good = false;
    return is_good ? 0 : -ENOMEM;
}

static int transform_batch(void *arg) /* in a thread */
{
    batch *b = arg;
    pipeline *p = b->from->of;
    double start = conc_now();
    int working = atomic_fetch_add(&p->working, 1) + 1;
    int most = atomic_load(&p->most_working);
    while (working > most && !atomic_compare_exchange_weak(&p->most_working, &most, working))
        continue;
    int rc = transform_records(b);
    b->seconds = conc_now() - start;
    atomic_fetch_sub(&p->working, 1);
    return rc;
}

/* ---- health and figures --------------------------------------------------------------------- */

static void print_health(const pipeline *p, double rate, double stalled)
{
    size_t first = conc_queue_len(&p->extracted), second = conc_queue_len(&p->transformed);
    printf("%lld loaded, %.0f/s, %lld rejected; queues %zu/%d, %zu/%d", (long long)p->loaded, rate,
           (long long)p->rejected, first, BOUND, second, BOUND);
    if (stalled > 5 * options.health)
        printf("; nothing loaded for %.1f s", stalled);
    else
        printf("; %s", first == BOUND ? "destinations are slower" : "ok");
    for (const source *s = p->sources; s < p->sources + p->count; s++) {
        if (s->is_paused)
            printf("; %s pauses", s->name);
        else if (s->feed && s->feed->is_away)
            printf("; %s is tried again", s->name);
    }
    printf("\n");
    fflush(stdout);
}

static int monitor(void *arg)
{
    pipeline *p = arg;
    double last = conc_now();
    for (;;) {
        int64_t before = p->loaded;
        double start = conc_now();
        CONC_TRY(conc_sleep(options.health));
        double now = conc_now();
        if (p->loaded > before)
            last = now;
        print_health(p, (double)(p->loaded - before) / (now - start), now - last);
    }
}

static void print_figures(const pipeline *p, double seconds)
{
    printf("%-16s %9s %9s %9s %8s %7s\n", "source", "read", "loaded", "rejected", "paused",
           "retries");
    for (const source *s = p->sources; s < p->sources + p->count; s++)
        printf("%-16.16s %9lld %9lld %9lld %6.2f s %7d\n", s->name, (long long)s->read,
               (long long)s->loaded, (long long)s->rejected, s->paused, s->retries);
    printf("transform: at most %zu of %d batches waited; at most %d threads at once, %.2f s\n",
           p->most_extracted, BOUND, atomic_load(&p->most_working), p->transforming);
    printf("load: at most %zu of %d batches waited; %d commits, %.2f s\n", p->most_transformed,
           BOUND, p->commits, p->loading);
    printf("%lld loaded, %lld rejected in %.2f s: %.0f a minute\n", (long long)p->loaded,
           (long long)p->rejected, seconds, (double)(p->loaded + p->rejected) / seconds * 60);
    fflush(stdout);
}

/* ---- the pipeline --------------------------------------------------------------------------- */

/* There is one batch for each place where one can be, so the queues are the only bound. */
static int open_queues(pipeline *p)
{
    int count = p->count + 3 * BOUND + 1;
    p->idle = (conc_queue)CONC_QUEUE(batch *, (size_t)count);
    p->extracted = (conc_queue)CONC_QUEUE(batch *, BOUND);
    p->transformed = (conc_queue)CONC_QUEUE(batch *, BOUND);
    p->batches = calloc((size_t)count, sizeof *p->batches);
    if (!p->batches)
        return -ENOMEM;
    p->batch_count = count;
    for (batch *b = p->batches; b < p->batches + count; b++)
        CONC_TRY(conc_queue_put(&p->idle, &b));
    return conc_pool_open(&p->pool);
}

static int pipeline_close(pipeline *p)
{
    conc_pool_close(&p->pool); /* no job uses a batch any more */
    for (batch *b = p->batches; b < p->batches + p->batch_count; b++)
        for (int k = 0; k < FILES; k++)
            free(b->written[k]);
    free(p->batches);
    conc_queue_destroy(&p->idle);
    conc_queue_destroy(&p->extracted);
    conc_queue_destroy(&p->transformed);
    sqlite_close(&p->db);
    checkpoint_close(&p->checkpoint);
    return 0;
}

CONC_AUTO_TYPE(pipeline, pipeline_close);

static int run_pipeline(pipeline *p)
{
    double start = conc_now();
    char words[160];
    CONC_TRY(open_queues(p));
    CONC_TRY(open_destinations(p));
    for (source *s = p->sources; s < p->sources + p->count; s++)
        s->of = p;
    if (!p->checkpoint.is_new)
        printf("goes on after the last commit; %lld bytes behind the checkpoint are cut off\n",
               (long long)p->checkpoint.cut);
    int rc = run_stages(p);
    snprintf(words, sizeof words, "%s", rc < 0 ? conc_last_error() : "");
    if (rc < 0)
        conc_shield(5, checkpoint_recover, &p->checkpoint);
    print_figures(p, conc_now() - start);
    if (rc < 0)
        return conc_fail(rc, "%s; what was loaded stays, and the next run goes on", words);
    if (p->failed)
        return conc_fail(-EREMOTEIO, "%d of %d sources failed", p->failed, p->count);
    return 0;
}

/* ---- are both destinations right? ----------------------------------------------------------- */

static int check_destinations(pipeline *p, int64_t count)
{
    payment_sum wanted, table, lines, rejects;
    CONC_TRY(payment_sum_sources(count, &wanted));
    CONC_TRY(payment_sum_table(&p->db, &table));
    CONC_TRY(payment_sum_lines(p->paths[LINES], &lines));
    CONC_TRY(payment_sum_lines(p->paths[REJECTS], &rejects));
    int64_t bad = PAYMENT_SOURCES * count - wanted.count;
    printf("in:  %lld payments, checksum %lld, and %lld bad records\n", (long long)wanted.count,
           (long long)wanted.sum, (long long)bad);
    printf("out: %lld, %lld in payments.db; %lld, %lld in payments.jsonl; %lld in rejects.jsonl\n",
           (long long)table.count, (long long)table.sum, (long long)lines.count,
           (long long)lines.sum, (long long)rejects.count);
    bool is_right = memcmp(&wanted, &table, sizeof wanted) == 0 &&
                    memcmp(&wanted, &lines, sizeof wanted) == 0 && rejects.count == bad;
    return is_right ? 0 : conc_fail(-EPROTO, "the destinations differ from the sources");
}

/* ---- what it shows by itself ---------------------------------------------------------------- */

/* Sources of its own in a new folder, which becomes the current one. */
typedef struct {
    temp_folder folder;
    int listener;
    int64_t count;
    char feed[128];
    source sources[PAYMENT_SOURCES];
} show;

static int serve_show(void *arg)
{
    show *s = arg;
    return payment_serve_feed(s->listener, s->count);
}

static bool read_word(char *word, source *s);

static int show_open(show *s, int64_t count)
{
    char address[120];
    char *words[] = {"shop-1.csv", "shop-2.csv", "db=orders.db", s->feed};
    options.out = ".";
    s->count = count;
    CONC_TRY(temp_folder_make(&s->folder, "etl"));
    if (chdir(s->folder.path) != 0)
        return conc_fail(-errno, "%s: %s", s->folder.path, conc_strerror(-errno));
    CONC_TRY(payment_make_sources(".", count));
    s->listener = CONC_TRY(conc_listen("127.0.0.1:0"));
    CONC_TRY(conc_address(s->listener, false, address, sizeof address));
    snprintf(s->feed, sizeof s->feed, "feed=%s", address);
    for (int i = 0; i < PAYMENT_SOURCES; i++)
        read_word(words[i], &s->sources[i]);
    return conc_spawn(NULL, serve_show, s);
}

static off_t size_of_lines(void)
{
    struct stat st;
    return stat("payments.jsonl", &st) == 0 ? st.st_size : 0;
}

/* Kills the program at a random moment after it has written more payments. */
static int run_and_kill(show *s)
{
    off_t size = size_of_lines();
    const char *argv[] = {"/proc/self/exe", "out=.",        "slow=0.1", "health=0.2", "shop-1.csv",
                          "shop-2.csv",     "db=orders.db", s->feed,    NULL};
    CONC_AUTO(conc_child, child) = {.argv = argv, .group = true};
    CONC_TRY(conc_child_start(&child));
    while (size_of_lines() <= size && conc_child_kill(&child, 0) == 0)
        CONC_TRY(conc_sleep(0.01));
    CONC_TRY(conc_sleep(conc_random(0, 0.4)));
    CONC_TRY(conc_child_close(&child));
    printf("SIGKILL\n");
    fflush(stdout);
    return 0;
}

static int demo(void *arg)
{
    show *s = arg;
    CONC_AUTO(pipeline, p) = {.sources = s->sources, .count = PAYMENT_SOURCES};
    options.slow = 0.1;
    options.health = 0.2;
    CONC_TRY(show_open(s, 10 * PAYMENT_SPACING));
    for (int i = 0; i < 3; i++)
        CONC_TRY(run_and_kill(s));
    CONC_TRY(run_pipeline(&p));
    return check_destinations(&p, s->count);
}

static int goal(void *arg)
{
    show *s = arg;
    CONC_AUTO(pipeline, p) = {.sources = s->sources, .count = PAYMENT_SOURCES};
    CONC_TRY(show_open(s, 25 * PAYMENT_SPACING));
    double start = conc_now();
    CONC_TRY(run_pipeline(&p));
    double minutes = (conc_now() - start) / 60;
    CONC_TRY(check_destinations(&p, s->count));
    printf("%.0f payments a minute; the goal: 100000\n", (double)p.loaded / minutes);
    return 0;
}

/* ---- main ----------------------------------------------------------------------------------- */

static int app(void *arg)
{
    CONC_AUTO(pipeline, p) = {.sources = arg};
    while (p.sources[p.count].where)
        p.count++;
    return run_pipeline(&p);
}

static bool read_seconds(const char *text, double *seconds)
{
    char *end;
    *seconds = strtod(text, &end);
    return *text && !*end && *seconds >= 0 && *seconds <= 3600;
}

/* Takes an option, or fills in a source. */
static bool read_word(char *word, source *s)
{
    static const struct {
        const char *prefix;
        double *seconds;
        source source;
    } kinds[] = {
        {"slow=", &options.slow, {0}},
        {"health=", &options.health, {0}},
        {"timeout=", &options.timeout, {0}},
        {"out=", NULL, {0}},
        {"db=", NULL, {.extract = extract_sqlite, payment_read_json, .position = INT64_MIN}},
        {"feed=", NULL, {.extract = extract_feed, payment_read_json, .name = "feed"}},
        {"", NULL, {.extract = extract_csv, payment_read_csv}},
    };
    size_t i = 0;
    while (strncmp(word, kinds[i].prefix, strlen(kinds[i].prefix)) != 0)
        i++;
    const char *value = word + strlen(kinds[i].prefix), *slash = strrchr(value, '/');
    if (kinds[i].seconds)
        return read_seconds(value, kinds[i].seconds);
    *s = kinds[i].source;
    if (!s->extract)
        options.out = value;
    else
        s->where = value;
    if (!s->name)
        s->name = slash ? slash + 1 : value;
    return *value && *s->name;
}

/* A checkpoint has the name of its source or file: no two may share one. */
static bool is_new_name(const source *sources, const source *s)
{
    for (int i = 0; i < FILES; i++)
        if (strcmp(s->name, file_names[i]) == 0)
            return false;
    for (; sources < s; sources++)
        if (strcmp(s->name, sources->name) == 0)
            return false;
    return true;
}

static bool read_words(char **words, source *sources)
{
    source *next = sources;
    for (; *words; words++) {
        if (**words == '-' || !read_word(*words, next))
            return false;
        if (!next->where) /* an option */
            continue;
        if (!is_new_name(sources, next))
            return false;
        next++;
    }
    *next = (source){0};
    return next > sources;
}

static int run_show(conc_fn *fn)
{
    static show s;
    int status = conc_main(fn, &s);
    temp_folder_remove(&s.folder);
    return status;
}

static int run(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (argc == 1)
        return run_show(demo);
    if (argc == 2 && strcmp(mode, "--goal") == 0)
        return run_show(goal);
    source *sources = calloc((size_t)argc, sizeof *sources);
    if (sources && read_words(argv + 1, sources))
        return conc_main(app, sources);
    fprintf(stderr, "etl: bad arguments: the program's first lines say what there is\n");
    return 2;
}

int main(int argc, char **argv)
{
    signal(SIGXFSZ, SIG_IGN); /* a file that would become too large is an error of write */
    return run(argc, argv);
}
