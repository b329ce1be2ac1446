/* Data pipeline. It fetches pages, 5 at a time, counts their words in processes, and stores the
   results in SQLite, each page in one transaction. A page has 10 s, with all its retries. What
   fails is logged, with the reason, and the other pages go on.

   cc 02_data_pipeline.c -o pipeline -lcurl -lhttp_parser -lsqlite3
   ./pipeline                                      # ten pages of its own service, some of them bad
   ./pipeline --goal                               # in sequence, then at once: the same tables
   ./pipeline http://example.com http://example.org                     # stored in pipeline.db
   sqlite3 pipeline.db "SELECT url, words FROM documents"
   ./pipeline --sequential db=other.db http://example.com               # one after another

   Options: db=FILE, timeout=SECONDS for a page, delay=SECONDS of each answer of the service. The
   exit status is 1 if a page that you named failed. `./pipeline --source` is the service alone, as
   a process of this program: it ends when its input does. It all runs on the real clock: on the
   virtual one, other processes have no time to answer. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/fetch.h"
#include "../common/http.h"
#include "../common/sqlite.h"
#include <locale.h>
#include <wchar.h>

enum {
    AT_ONCE = 5,
    ATTEMPTS = 3,
    PAGES = 10, /* of the service */
    TOP = 5,    /* words of a page that are stored */
    WORD_SIZE = 32,
    BODY_LIMIT = 1 << 20
};

static struct {
    bool sequential;
    double timeout, delay;
    const char *db;
} options = {false, 10, 0.2, NULL};

/* What a worker process finds out about a page. It has no pointers: it crosses processes. */
typedef struct {
    int bytes, words, distinct, top_count;
    double mean_length;
    char checksum[17];
    struct {
        char word[WORD_SIZE];
        int count;
    } top[TOP];
} statistics;

typedef struct {
    fetch_client client;
    conc_sem requests;
    conc_procs procs;
    sqlite_db db;
    int in_flight, most_in_flight, count, finished, failed;
} pipeline;

typedef struct {
    pipeline *of;
    const char *url;
    fetch_response *response;
    statistics statistics;
    bool failed;
    int failures; /* attempts that failed; the last attempt may have succeeded */
    char reasons[ATTEMPTS][64];
} page;

static ssize_t analyze(const void *text, size_t size, void *out, size_t out_size);

/* ---- fetch: a limit on requests, a limit of time, retries ----------------------------------- */

/* The text goes to the log, the short reason into the database. */
static void log_failure(page *p, int rc)
{
    char *reason = p->reasons[p->failures];
    if (p->failures == ATTEMPTS)
        return;
    p->failures++;
    if (rc == -EREMOTEIO || rc == -ENOENT)
        snprintf(reason, sizeof p->reasons[0], "status %d", p->response->status);
    else
        snprintf(reason, sizeof p->reasons[0], "%s", conc_strerror(rc));
    fprintf(stderr, "failed, attempt %d: %s\n", p->failures, conc_last_error());
}

static int get_once(page *p)
{
    pipeline *l = p->of;
    const fetch_options request = {.timeout = CONC_FOREVER, .limit = BODY_LIMIT};
    if (++l->in_flight > l->most_in_flight)
        l->most_in_flight = l->in_flight;
    int rc = fetch(&l->client, p->url, &request, p->response);
    l->in_flight--;
    int status = p->response->status;
    if (rc < 0 || status == 200)
        return rc;
    bool temporary = status >= 500 || status == 429 || status == 408;
    return conc_fail(temporary ? -EREMOTEIO : -ENOENT, "status %d of %s", status, p->url);
}

/* Another attempt may help. It would not against a 404, or a page that is too large. */
static bool is_temporary(int rc)
{
    return rc == -EREMOTEIO || rc == -ECONNREFUSED || rc == -ECONNRESET || rc == -EHOSTUNREACH ||
           rc == -ENETUNREACH || rc == -EADDRNOTAVAIL;
}

/* The pause doubles, and is random, so that retries do not come back all at the same moment. */
static int get_with_retries(page *p)
{
    double pause = 0.1;
    for (int attempt = 1;; attempt++) {
        int rc = get_once(p);
        if (rc >= 0 || rc == -ECANCELED)
            return rc;
        log_failure(p, rc);
        if (!is_temporary(rc) || attempt == ATTEMPTS)
            return rc;
        CONC_TRY(conc_sleep(pause * conc_random(0.5, 1)));
        pause *= 2;
    }
}

/* The time of a page begins with its turn: it does not pay for those before it. */
static int get_in_time(page *p)
{
    conc_scope limit = {0};
    CONC_TRY(conc_scope_begin(&limit, options.timeout));
    int rc = conc_scope_end(&limit, get_with_retries(p));
    if (rc == -ETIMEDOUT && limit.expired) {
        conc_fail(rc, "no answer within %g s of %s", options.timeout, p->url);
        log_failure(p, rc);
    }
    return rc;
}

/* ---- process and store ---------------------------------------------------------------------- */

static int process(page *p)
{
    const fetch_response *r = p->response;
    statistics *s = &p->statistics;
    ssize_t rc = 0;
    if (options.sequential)
        rc = analyze(r->body, r->size, s, sizeof *s);
    else
        rc = conc_procs_call(&p->of->procs, analyze, r->body, r->size, s, sizeof *s);
    if (rc < 0 && rc != -ECANCELED) {
        conc_fail((int)rc, "%s: %s", conc_last_error(), p->url);
        log_failure(p, (int)rc);
    }
    return (int)rc;
}

static int create_tables(sqlite_db *db)
{
    return sqlite_exec(
        db, "CREATE TABLE IF NOT EXISTS documents (url TEXT PRIMARY KEY, bytes INTEGER,"
            " words INTEGER, distinct_words INTEGER, mean_length REAL, checksum TEXT);"
            "CREATE TABLE IF NOT EXISTS words (url TEXT, word TEXT, count INTEGER,"
            " PRIMARY KEY (url, word));"
            "CREATE TABLE IF NOT EXISTS failures (url TEXT, attempt INTEGER, reason TEXT,"
            " PRIMARY KEY (url, attempt))");
}

/* In a transaction: the rows of a page appear together, in place of those of an earlier run. */
static int store(void *arg)
{
    page *p = arg;
    sqlite_db *db = &p->of->db;
    const statistics *s = &p->statistics;
    sqlite_value url = sqlite_text(p->url);
    CONC_TRY(sqlite_exec(db, "DELETE FROM documents WHERE url = ?", url));
    CONC_TRY(sqlite_exec(db, "DELETE FROM words WHERE url = ?", url));
    CONC_TRY(sqlite_exec(db, "DELETE FROM failures WHERE url = ?", url));
    for (int i = 0; i < p->failures; i++)
        CONC_TRY(sqlite_exec(db, "INSERT INTO failures VALUES (?, ?, ?)", url, sqlite_int(i + 1),
                             sqlite_text(p->reasons[i])));
    if (p->failed)
        return 0;
    for (int i = 0; i < s->top_count; i++)
        CONC_TRY(sqlite_exec(db, "INSERT INTO words VALUES (?, ?, ?)", url,
                             sqlite_text(s->top[i].word), sqlite_int(s->top[i].count)));
    return sqlite_exec(db, "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?)", url,
                       sqlite_int(s->bytes), sqlite_int(s->words), sqlite_int(s->distinct),
                       sqlite_real(s->mean_length), sqlite_text(s->checksum));
}

static void report(const page *p)
{
    pipeline *l = p->of;
    l->finished++;
    l->failed += p->failed;
    if (isatty(STDOUT_FILENO))
        printf("\r%d of %d%s", l->finished, l->count, l->finished == l->count ? "\n" : "");
    else
        printf("%d of %d: %s\n", l->finished, l->count, p->url);
    fflush(stdout);
}

/* ---- the pipeline --------------------------------------------------------------------------- */

/* All stages of a page. A page that fails is stored as such; a database that fails ends the run. */
static int run_page(void *arg)
{
    page *p = arg;
    CONC_AUTO(fetch_response, response) = {0};
    int rc = 0;
    p->response = &response;
    CONC_PERMIT(&p->of->requests) {
        rc = get_in_time(p);
    }
    if (rc >= 0)
        rc = process(p); /* without a permit: the next page is fetched meanwhile */
    if (rc == -ECANCELED)
        return rc;
    p->failed = rc < 0;
    CONC_TRY(sqlite_transaction(&p->of->db, store, p));
    report(p);
    return 0;
}

static int run_pages(pipeline *l, page *pages)
{
    if (!options.sequential)
        return conc_map(run_page, pages, (size_t)l->count, sizeof *pages);
    for (int i = 0; i < l->count; i++)
        CONC_TRY(run_page(&pages[i]));
    return 0;
}

static int run_urls(pipeline *l, int count, char *const *urls)
{
    page *pages = calloc((size_t)count, sizeof *pages);
    if (!pages)
        return -ENOMEM;
    l->count = count;
    l->finished = l->failed = 0;
    for (int i = 0; i < count; i++)
        pages[i] = (page){.of = l, .url = urls[i]};
    int rc = run_pages(l, pages);
    free(pages);
    return rc;
}

static int use_utf8(void) { return setlocale(LC_CTYPE, "C.UTF-8") ? 0 : -ENOENT; }

static int pipeline_open(pipeline *l)
{
    l->requests.permits = AT_ONCE;
    l->procs.init = use_utf8; /* each worker is this program anew, before main */
    CONC_TRY(use_utf8());
    CONC_TRY(conc_procs_open(&l->procs));
    CONC_TRY(sqlite_open(&l->db, options.db ? options.db : ":memory:"));
    return create_tables(&l->db);
}

static int pipeline_close(pipeline *l)
{
    fetch_close(&l->client);
    conc_procs_close(&l->procs);
    return sqlite_close(&l->db);
}

CONC_AUTO_TYPE(pipeline, pipeline_close);

/* ---- CPU work, in a worker process ---------------------------------------------------------- */

typedef struct {
    const char *at;
    int length;
} slice;

static int compare(const void *a, const void *b)
{
    const slice *x = a, *y = b;
    int order = memcmp(x->at, y->at, (size_t)(x->length < y->length ? x->length : y->length));
    return order ? order : x->length - y->length;
}

static bool is_text(const char *text, size_t size)
{
    mbstate_t state = {0};
    for (size_t i = 0, n = 0; i < size; i += n) {
        n = mbrlen(text + i, size - i, &state);
        if (n == 0 || n > size - i) /* a NUL, or not UTF-8 */
            return false;
    }
    return true;
}

/* Finds words of letters and digits, also those that are not ASCII: how many. */
static int split(char *text, size_t size, slice *words)
{
    int count = 0;
    bool inside = false;
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        bool is_letter = isalnum(c) || c >= 0x80;
        text[i] = (char)tolower(c);
        if (is_letter && !inside)
            words[count++] = (slice){text + i, 0};
        if (is_letter)
            words[count - 1].length++;
        inside = is_letter;
    }
    return count;
}

/* Keeps the most frequent words; of equal ones the first in the alphabet. */
static void rank(statistics *s, slice word, int count)
{
    int i = s->top_count;
    if (word.length >= WORD_SIZE || (i == TOP && count <= s->top[TOP - 1].count))
        return;
    if (i == TOP)
        i--;
    else
        s->top_count++;
    for (; i > 0 && s->top[i - 1].count < count; i--)
        s->top[i] = s->top[i - 1];
    snprintf(s->top[i].word, WORD_SIZE, "%.*s", word.length, word.at);
    s->top[i].count = count;
}

static void count_words(statistics *s, slice *words)
{
    int64_t letters = 0;
    qsort(words, (size_t)s->words, sizeof *words, compare);
    for (int i = 0, next = 0; i < s->words; i = next) {
        while (next < s->words && compare(&words[next], &words[i]) == 0)
            next++;
        s->distinct++;
        letters += (int64_t)(next - i) * words[i].length;
        rank(s, words[i], next - i);
    }
    s->mean_length = s->words ? (double)letters / s->words : 0;
}

static ssize_t analyze(const void *text, size_t size, void *out, size_t out_size)
{
    statistics s = {.bytes = (int)size};
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    if (!is_text(text, size) || out_size < sizeof s)
        return conc_fail(-EILSEQ, "not a text in UTF-8");
    char *copy = malloc(size + 1);
    slice *words = malloc((size / 2 + 1) * sizeof *words);
    if (copy && words) {
        memcpy(copy, text, size);
        for (size_t i = 0; i < size; i++)
            hash = (hash ^ (unsigned char)copy[i]) * 1099511628211u;
        snprintf(s.checksum, sizeof s.checksum, "%016llx", (unsigned long long)hash);
        s.words = split(copy, size, words);
        count_words(&s, words);
        memcpy(out, &s, sizeof s);
    }
    bool done = copy && words;
    free(copy);
    free(words);
    return done ? (ssize_t)sizeof s : -ENOMEM;
}

/* ---- the service: a process of this program ------------------------------------------------- */

static int send_text(http_connection *http, uint32_t seed)
{
    static const char *const words[] = {"the",  "task",  "waits", "loop",
                                        "runs", "pages", "Tee",   "ß"};
    CONC_TRY(http_begin(http, 200, -1));
    for (int i = 0; i < 20000; i++) {
        seed = seed * 1664525 + 1013904223;
        const char *word = words[seed >> 29 & seed >> 26];
        CONC_TRY(http_write(http, word, strlen(word)));
        CONC_TRY(http_write(http, " ", 1));
    }
    return http_end(http);
}

static int answer(http_connection *http, void *arg)
{
    static unsigned flaky;
    static const char garbage[] = "\x89PNG\r\n\x1a\n\0\0\0";
    const char *path = http->path;
    (void)arg;
    CONC_TRY(conc_sleep(strcmp(path, "/hang") == 0 ? CONC_FOREVER : options.delay));
    if (strncmp(path, "/text/", 6) == 0)
        return send_text(http, (uint32_t)atoi(path + 6));
    if (strcmp(path, "/garbage") == 0)
        return http_respond(http, 200, garbage, sizeof garbage);
    if (strcmp(path, "/flaky") == 0 && ++flaky % ATTEMPTS)
        return http_printf(http, 500, "Try again\n");
    if (strcmp(path, "/flaky") == 0)
        return send_text(http, 0);
    if (strcmp(path, "/huge") != 0)
        return http_printf(http, 404, "There is no %s\n", path);
    CONC_TRY(http_begin(http, 200, -1));
    for (int i = 0; i < BODY_LIMIT; i++) /* 5 times the limit */
        CONC_TRY(http_write(http, "much ", 5));
    return http_end(http);
}

static int connection(int fd, void *arg)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, answer, arg);
}

static int serve(void *arg)
{
    conc_server server = {.handler = connection, .arg = arg, .limit = 100};
    char address[64];
    server.fd = CONC_TRY(conc_listen("127.0.0.1:0"));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    printf("%s\n", address);
    fflush(stdout);
    return conc_serve(&server);
}

/* It ends when its input does: its parent has ended, however that happened. */
static int source(void *arg)
{
    char byte;
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, serve, arg));
    while (CONC_TRY_IN(&g, conc_read(STDIN_FILENO, &byte, 1)) > 0)
        continue;
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

/* Starts the service, and makes the addresses of its pages. */
static int start_source(conc_child *c, char urls[PAGES][96])
{
    static const char *const paths[PAGES] = {"text/1", "hang",   "text/2",  "missing", "flaky",
                                             "text/3", "text/4", "garbage", "huge",    "text/5"};
    char delay[32], address[64] = "";
    const char *argv[] = {"/proc/self/exe", "--source", delay, NULL};
    snprintf(delay, sizeof delay, "delay=%g", options.delay);
    *c = (conc_child){.argv = argv, .input = CONC_PIPE, .output = CONC_PIPE, .group = true};
    CONC_TRY(conc_child_start(c));
    ssize_t n = CONC_TRY(conc_read(c->output, address, sizeof address - 1)); /* written at once */
    if (n == 0)
        return conc_fail(-ECHILD, "the service does not start");
    address[strcspn(address, "\n")] = 0;
    for (int i = 0; i < PAGES; i++)
        snprintf(urls[i], 96, "http://%s/%s", address, paths[i]);
    return 0;
}

/* The service is near: no proxy. */
static void go_straight(CURL *curl, void *arg)
{
    (void)arg;
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
}

/* ---- what it shows -------------------------------------------------------------------------- */

static int print_tables(sqlite_db *db)
{
    CONC_AUTO(sqlite_rows, rows) = {0};
    CONC_TRY(sqlite_query(db, &rows,
                          "SELECT url, words || ' words, ' || distinct_words || ' distinct, most: '"
                          " || coalesce((SELECT word FROM words w WHERE w.url = d.url"
                          " ORDER BY count DESC, word LIMIT 1), '-') FROM documents d "
                          "UNION ALL SELECT url, 'failed: ' || reason FROM failures f WHERE attempt"
                          " = (SELECT max(attempt) FROM failures g WHERE g.url = f.url)"
                          " AND url NOT IN (SELECT url FROM documents)"));
    while (CONC_TRY(sqlite_next(&rows)))
        printf("  %-32s %s\n", rows.row[0].text, rows.row[1].text);
    return 0;
}

typedef struct {
    int count;
    char **urls;
} arguments;

static int app(void *arg)
{
    arguments *a = arg;
    char own[PAGES][96], *own_urls[PAGES];
    CONC_AUTO(conc_child, child) = {0};
    CONC_AUTO(pipeline, l) = {0};
    CONC_TRY(pipeline_open(&l));
    if (a->count) {
        CONC_TRY(run_urls(&l, a->count, a->urls));
        conc_set_exit_status(l.failed > 0);
    } else {
        l.client.configure = go_straight;
        CONC_TRY(start_source(&child, own));
        for (int i = 0; i < PAGES; i++)
            own_urls[i] = own[i];
        CONC_TRY(run_urls(&l, PAGES, own_urls));
    }
    CONC_TRY(print_tables(&l.db));
    printf("%d stored, %d failed; at most %d requests at once\n", l.count - l.failed, l.failed,
           l.most_in_flight);
    return 0;
}

/* The rows that only one of the two runs has. */
static int count_differences(sqlite_db *db, const char *table, int64_t *count)
{
    char sql[400];
    snprintf(sql, sizeof sql,
             "SELECT count(*) FROM (SELECT * FROM (SELECT * FROM %s EXCEPT SELECT * FROM first_%s)"
             " UNION ALL SELECT * FROM (SELECT * FROM first_%s EXCEPT SELECT * FROM %s))",
             table, table, table, table);
    int64_t n = 0;
    CONC_TRY(sqlite_number(db, &n, sql));
    *count += n;
    return 0;
}

static int timed_run(pipeline *l, char **urls, bool sequential, double *seconds)
{
    double start = conc_now();
    options.sequential = sequential;
    l->most_in_flight = 0;
    CONC_TRY(run_urls(l, PAGES, urls));
    *seconds = conc_now() - start;
    return 0;
}

static int goal(void *arg)
{
    char own[PAGES][96], *urls[PAGES];
    double sequential, at_once;
    int64_t differences = 0;
    CONC_AUTO(conc_child, child) = {0};
    CONC_AUTO(pipeline, l) = {.client.configure = go_straight};
    (void)arg;
    CONC_TRY(pipeline_open(&l));
    CONC_TRY(start_source(&child, own));
    for (int i = 0; i < PAGES; i++)
        urls[i] = own[i];
    CONC_TRY(timed_run(&l, urls, true, &sequential));
    CONC_TRY(sqlite_exec(&l.db, "ALTER TABLE documents RENAME TO first_documents;"
                                "ALTER TABLE words RENAME TO first_words;"
                                "ALTER TABLE failures RENAME TO first_failures"));
    CONC_TRY(create_tables(&l.db));
    CONC_TRY(timed_run(&l, urls, false, &at_once));
    CONC_TRY(count_differences(&l.db, "documents", &differences));
    CONC_TRY(count_differences(&l.db, "words", &differences));
    CONC_TRY(count_differences(&l.db, "failures", &differences));
    printf("                              goal  measured\n");
    printf("requests at once, at most        5  %8d\n", l.most_in_flight);
    printf("pages stored                     6  %8d\n", l.count - l.failed);
    printf("pages failed, and logged         4  %8d\n", l.failed);
    printf("rows unlike the sequential run   0  %8d\n", (int)differences);
    printf("in sequence %.2f s, at once %.2f s; a page that hangs is given %g s\n", sequential,
           at_once, options.timeout);
    bool right = l.most_in_flight == AT_ONCE && l.failed == 4 && differences == 0;
    return right ? 0 : conc_fail(-EPROTO, "the counts are wrong");
}

/* ---- main ----------------------------------------------------------------------------------- */

static bool read_seconds(const char *text, double *seconds)
{
    char *end = NULL;
    *seconds = strtod(text, &end);
    return *text && !*end && *seconds >= 0 && *seconds <= 1e6;
}

static bool set_option(const char *word)
{
    if (strcmp(word, "--sequential") == 0)
        options.sequential = true;
    else if (strncmp(word, "db=", 3) == 0 && word[3])
        options.db = word + 3;
    else if (strncmp(word, "timeout=", 8) == 0)
        return read_seconds(word + 8, &options.timeout);
    else if (strncmp(word, "delay=", 6) == 0)
        return read_seconds(word + 6, &options.delay);
    else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    conc_fn *command = app;
    arguments a = {0, argv};
    bool valid = true;
    if (argc == 1)
        options.timeout = 2; /* long enough to see it */
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--goal") == 0)
            command = goal;
        else if (strcmp(argv[i], "--source") == 0)
            command = source;
        else if (strstr(argv[i], "://"))
            argv[a.count++] = argv[i]; /* over those that were read already */
        else
            valid = valid && set_option(argv[i]);
    }
    if (!valid || (a.count && command != app)) {
        fprintf(stderr, "pipeline: bad arguments: the program's first lines say what there is\n");
        return 2;
    }
    if (a.count && !options.db)
        options.db = "pipeline.db";
    return conc_main(command, &a);
}
