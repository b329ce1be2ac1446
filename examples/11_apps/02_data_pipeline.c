/* Data pipeline. It fetches pages, 5 at a time, counts their words in processes, and stores the
   results in SQLite, one transaction per page. A page has a limit of 10 s, including retries.
   Failures are logged with their reasons, and the other pages continue.

   cc 02_data_pipeline.c -o pipeline -lcurl -lhttp_parser -lsqlite3
   ./pipeline                     # ten pages of its own service, four of them bad; 2 s per page
   ./pipeline --goal              # the same with 10 s per page, which one of them exceeds
   ./pipeline http://example.com http://example.org                     # stored in pipeline.db
   sqlite3 pipeline.db "SELECT * FROM documents"
   ./pipeline --sequential db=other.db http://example.com               # one after another

   Options: db=FILE, timeout=SECONDS for a page. The exit status is 1 if a page that you named
   failed. It needs the real clock: the virtual one leaves other processes no time to answer. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/fetch.h"
#include "../common/http.h"
#include "../common/sqlite.h"
#include "../common/utf8.h"

enum { AT_ONCE = 5, ATTEMPTS = 3, PAGES = 10, TOP = 5, WORD_SIZE = 32, BODY_LIMIT = 1 << 20 };

static struct {
    bool sequential, is_goal;
    double timeout;
    const char *db;
} options = {false, false, 10, NULL};

typedef struct {
    char text[WORD_SIZE];
    int count;
} word;

/* What a worker process finds out. It holds no pointers: it crosses to another process. */
typedef struct {
    int words, distinct;
    char checksum[17];
    word top[TOP]; /* the most frequent words; a count of 0: there are no more */
} statistics;

typedef struct {
    fetch_client *client;
    conc_procs *procs;
    sqlite_db *db;
    conc_sem permits; /* for requests */
    int in_flight, most_in_flight, count, finished, failed;
} pipeline;

typedef struct {
    pipeline *of;
    const char *url;
    fetch_response *response;
    statistics statistics;
    bool failed;
    int failures; /* failed attempts; the last attempt may have succeeded */
    char reasons[ATTEMPTS][80];
} page;

static ssize_t analyze(const void *text, size_t size, void *out, size_t out_size);

/* ---- fetch: a limit of requests and of time, retries ---------------------------------------- */

static int get_once(page *p)
{
    pipeline *l = p->of;
    const fetch_options request = {.timeout = CONC_FOREVER, .limit = BODY_LIMIT};
    if (++l->in_flight > l->most_in_flight)
        l->most_in_flight = l->in_flight;
    int rc = fetch(l->client, p->url, &request, p->response);
    l->in_flight--;
    int status = p->response->status;
    if (rc < 0 || status == 200)
        return rc;
    bool is_temporary = status >= 500 || status == 429 || status == 408;
    return conc_fail(is_temporary ? -EREMOTEIO : -ENOENT, "status %d", status);
}

/* Another attempt does not help against a 404, or a page that is too large. */
static bool may_retry(int rc)
{
    return rc == -EREMOTEIO || rc == -ECONNREFUSED || rc == -ECONNRESET || rc == -EHOSTUNREACH ||
           rc == -ENETUNREACH || rc == -EADDRNOTAVAIL;
}

/* The log gets all that is known, the database a reason that is the same in every run. */
static void log_failure(page *p, int rc)
{
    char *reason = p->reasons[p->failures++];
    const char *words = conc_last_error();
    if (rc == -EREMOTEIO || rc == -ENOENT)
        snprintf(reason, sizeof p->reasons[0], "status %d", p->response->status);
    else
        snprintf(reason, sizeof p->reasons[0], "%s", conc_strerror(rc));
    fprintf(stderr, "%s: attempt %d failed: %s\n", p->url, p->failures, words);
}

/* The pause doubles, and is random, so that retries do not come back all at the same moment. */
static int get_page(void *arg)
{
    page *p = arg;
    double pause = 0.1;
    for (int attempt = 1;; attempt++) {
        int rc = get_once(p);
        if (!may_retry(rc) || attempt == ATTEMPTS)
            return rc;
        log_failure(p, rc);
        CONC_TRY(conc_sleep(pause * conc_random(0.5, 1)));
        pause *= 2;
    }
}

/* ---- process and store ---------------------------------------------------------------------- */

static int process(page *p)
{
    const fetch_response *r = p->response;
    statistics *s = &p->statistics;
    if (options.sequential)
        return (int)analyze(r->body, r->size, s, sizeof *s);
    return (int)conc_procs_call(p->of->procs, analyze, r->body, r->size, s, sizeof *s);
}

static int create_tables(sqlite_db *db)
{
    return sqlite_exec(db, "CREATE TABLE IF NOT EXISTS documents"
                           " (url PRIMARY KEY, bytes, words, distinct_words, checksum);"
                           "CREATE TABLE IF NOT EXISTS words"
                           " (url, word, count, PRIMARY KEY (url, word));"
                           "CREATE TABLE IF NOT EXISTS failures"
                           " (url, attempt, reason, PRIMARY KEY (url, attempt))");
}

/* In a transaction: all rows of a page appear together, in place of those of an earlier run. */
static int store(void *arg)
{
    page *p = arg;
    sqlite_db *db = p->of->db;
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
    for (int i = 0; i < TOP && s->top[i].count; i++)
        CONC_TRY(sqlite_exec(db, "INSERT INTO words VALUES (?, ?, ?)", url,
                             sqlite_text(s->top[i].text), sqlite_int(s->top[i].count)));
    return sqlite_exec(db, "INSERT INTO documents VALUES (?, ?, ?, ?, ?)", url,
                       sqlite_int((int64_t)p->response->size), sqlite_int(s->words),
                       sqlite_int(s->distinct), sqlite_text(s->checksum));
}

static void report(const page *p)
{
    pipeline *l = p->of;
    l->failed += p->failed;
    printf("%2d of %d: %s: %d words; %s\n", ++l->finished, l->count, p->url, p->statistics.words,
           p->failed ? p->reasons[p->failures - 1] : "stored");
    fflush(stdout);
}

/* ---- the pipeline --------------------------------------------------------------------------- */

/* All stages of a page. If the page fails, that is stored; if the database fails, the run ends. The
 * permit, and the time of the page, are for the fetch alone: while a worker counts the words of
 * this page, the next one is fetched. */
static int run_page(void *arg)
{
    page *p = arg;
    int rc = 0;
    CONC_AUTO(fetch_response, response) = {0};
    p->response = &response;
    CONC_PERMIT(&p->of->permits) {
        rc = conc_timeout(options.timeout, get_page, p);
    }
    if (rc >= 0)
        rc = process(p);
    if (rc == -ECANCELED)
        return rc;
    p->failed = rc < 0;
    if (p->failed)
        log_failure(p, rc);
    CONC_TRY(sqlite_transaction(p->of->db, store, p));
    report(p);
    return 0;
}

static int run_pipeline(pipeline *l, char **urls)
{
    CONC_AUTO(fetch_client, client) = {0};
    CONC_AUTO(conc_procs, procs) = {0};
    CONC_AUTO(sqlite_db, db) = {0};
    l->client = &client;
    l->procs = &procs;
    l->db = &db;
    l->permits = (conc_sem){.permits = AT_ONCE};
    CONC_TRY(conc_procs_open(&procs));
    CONC_TRY(sqlite_open(&db, options.db));
    CONC_TRY(create_tables(&db));
    page *pages = calloc((size_t)l->count, sizeof *pages);
    if (!pages)
        return -ENOMEM;
    for (int i = 0; i < l->count; i++)
        pages[i] = (page){.of = l, .url = urls[i]};
    int rc = 0;
    if (!options.sequential)
        rc = conc_map(run_page, pages, (size_t)l->count, sizeof *pages);
    for (int i = 0; options.sequential && i < l->count && rc >= 0; i++)
        rc = run_page(&pages[i]);
    free(pages);
    return rc;
}

/* ---- the CPU's work, in a worker process ---------------------------------------------------- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Of equal counts, the first in the alphabet. */
static int by_count(const void *a, const void *b)
{
    const word *x = a, *y = b;
    return x->count == y->count ? strcmp(x->text, y->text) : y->count - x->count;
}

/* Ends each word of the text with a NUL: how many. What is longer than a word's room is none. */
static int split(char *text, char **words)
{
    int count = 0;
    for (char *c = text; *c; c++) {
        bool is_letter = isalnum((unsigned char)*c) || *c & 0x80;
        *c = is_letter ? (char)tolower((unsigned char)*c) : ' ';
    }
    for (char *rest, *w = strtok_r(text, " ", &rest); w; w = strtok_r(NULL, " ", &rest))
        if (strlen(w) < WORD_SIZE)
            words[count++] = w;
    return count;
}

static void count_words(statistics *s, char **words, word *counts)
{
    qsort(words, (size_t)s->words, sizeof *words, by_text);
    for (int i = 0; i < s->words; i++) {
        if (i == 0 || strcmp(words[i], words[i - 1]) != 0)
            snprintf(counts[s->distinct++].text, sizeof counts->text, "%s", words[i]);
        counts[s->distinct - 1].count++;
    }
    qsort(counts, (size_t)s->distinct, sizeof *counts, by_count);
    memcpy(s->top, counts, sizeof s->top);
}

static ssize_t analyze(const void *text, size_t size, void *out, size_t out_size)
{
    statistics *s = memset(out, 0, out_size);
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const unsigned char *)text)[i]) * 1099511628211u;
    snprintf(s->checksum, sizeof s->checksum, "%016llx", (unsigned long long)hash);
    char *copy = calloc(size + 1, 1), **words = malloc((size / 2 + 1) * sizeof *words);
    word *counts = calloc(size / 2 + TOP, sizeof *counts);
    bool has_memory = copy && words && counts;
    bool is_text = false;
    if (has_memory) {
        memcpy(copy, text, size);
        is_text = strlen(copy) == size && utf8_is_valid(copy);
    }
    if (is_text) {
        s->words = split(copy, words);
        count_words(s, words, counts);
    }
    free(copy);
    free(words);
    free(counts);
    if (!has_memory)
        return -ENOMEM;
    return is_text ? (ssize_t)sizeof *s : conc_fail(-EILSEQ, "not a text in UTF-8");
}

/* ---- the service: a process of this program ------------------------------------------------- */

/* Words in the order of a random generator. */
static int send_text(http_connection *http, uint32_t seed, int count)
{
    static const char words[][8] = {"the ",  "task ", "waits ", "loop ",
                                    "runs ", "page ", "Tee ",   "süß "};
    CONC_TRY(http_begin(http, 200, -1));
    for (int i = 0; i < count; i++) {
        seed = seed * 1664525 + 1013904223;
        CONC_TRY(http_write(http, words[seed >> 29], strlen(words[seed >> 29])));
    }
    return http_end(http);
}

static int answer(http_connection *http, void *arg)
{
    static const char garbage[] = "\x89PNG\r\n\x1a\n";
    static int requests; /* of the flaky page */
    const char *path = http->path;
    (void)arg;
    CONC_TRY(conc_sleep(strcmp(path, "/hang") == 0 ? CONC_FOREVER : 0.1));
    if (strncmp(path, "/text/", 6) == 0)
        return send_text(http, (uint32_t)atoi(path + 6), 20000);
    if (strcmp(path, "/huge") == 0)
        return send_text(http, 0, BODY_LIMIT);
    if (strcmp(path, "/garbage") == 0)
        return http_respond(http, 200, garbage, sizeof garbage);
    if (strcmp(path, "/flaky") != 0)
        return http_printf(http, 404, "There is no %s\n", path);
    if (++requests < ATTEMPTS)
        return http_printf(http, 500, "Try again\n");
    return send_text(http, 0, 20000);
}

static int connection(int fd, void *arg)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, answer, arg);
}

static int serve(void *server) { return conc_serve(server); }

/* It ends when its input does: its parent has ended, however that happened. */
static int source(void *arg)
{
    conc_server server = {.handler = connection, .arg = arg, .limit = 100};
    conc_group g = {0};
    char address[64], byte;
    server.fd = CONC_TRY(conc_listen("127.0.0.1:0"));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    printf("%s\n", address);
    fflush(stdout);
    CONC_TRY_IN(&g, conc_spawn(&g, serve, &server));
    while (CONC_TRY_IN(&g, conc_read(STDIN_FILENO, &byte, 1)) > 0)
        continue;
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

/* ---- what it shows by itself ---------------------------------------------------------------- */

/* With a group of its own, the service does not get the terminal's Ctrl+C: the program ends it. */
static int run_own_pages(pipeline *l)
{
    static const char *const paths[PAGES] = {"text/1", "hang",   "text/2",  "missing", "flaky",
                                             "text/3", "text/4", "garbage", "huge",    "text/5"};
    static const char *const argv[] = {"/proc/self/exe", "--source", NULL};
    char address[64] = "", text[PAGES][96], *urls[PAGES];
    CONC_AUTO(conc_child, child) = {.argv = argv, .group = true};
    child.input = child.output = CONC_PIPE;
    setenv("no_proxy", "*", 1); /* the service is near */
    CONC_TRY(conc_child_start(&child));
    if (CONC_TRY(conc_read(child.output, address, sizeof address - 1)) == 0)
        return conc_fail(-ECHILD, "the service does not start");
    address[strcspn(address, "\n")] = 0;
    for (int i = 0; i < PAGES; i++) {
        snprintf(text[i], sizeof text[i], "http://%s/%s", address, paths[i]);
        urls[i] = text[i];
    }
    l->count = PAGES;
    return run_pipeline(l, urls);
}

static int app(void *arg)
{
    char **urls = arg;
    double start = conc_now();
    pipeline l = {0};
    while (urls[l.count])
        l.count++;
    bool is_own = l.count == 0;
    CONC_TRY(is_own ? run_own_pages(&l) : run_pipeline(&l, urls));
    int stored = l.count - l.failed, at_once = options.sequential ? 1 : AT_ONCE;
    printf("%d stored, %d failed, at most %d requests at once, %.1f s\n", stored, l.failed,
           l.most_in_flight, conc_now() - start);
    if (!is_own)
        conc_set_exit_status(l.failed > 0);
    if (!options.is_goal)
        return 0;
    printf("the goal: 6 stored, 4 failed, at most %d requests at once; a page has %g s\n", at_once,
           options.timeout);
    bool is_right = stored == 6 && l.failed == 4 && l.most_in_flight == at_once;
    return is_right ? 0 : conc_fail(-EPROTO, "the counts are wrong");
}

int main(int argc, char **argv)
{
    int count = 0;
    bool is_valid = true;
    char *end = NULL;
    if (argc > 1 && strcmp(argv[1], "--source") == 0)
        return conc_main(source, NULL);
    if (argc == 1)
        options.timeout = 2; /* nobody likes to wait for the page that hangs */
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--sequential") == 0)
            options.sequential = true;
        else if (strcmp(argv[i], "--goal") == 0)
            options.is_goal = true;
        else if (strncmp(argv[i], "db=", 3) == 0)
            options.db = argv[i] + 3;
        else if (strncmp(argv[i], "timeout=", 8) == 0)
            options.timeout = strtod(argv[i] + 8, &end);
        else if (argv[i][0] != '-')
            argv[count++] = argv[i]; /* over a word that was read already */
        else
            is_valid = false;
    }
    if (!is_valid || (end && *end) || !(options.timeout > 0) || (options.is_goal && count)) {
        fprintf(stderr, "pipeline: bad arguments: the program's first lines say what there is\n");
        return 2;
    }
    argv[count] = NULL;
    if (!options.db)
        options.db = count ? "pipeline.db" : ":memory:";
    return conc_main(app, argv);
}
