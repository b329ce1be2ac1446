/* Crypto aggregator. In each round it asks three exchanges for a price, concurrently, and averages
   the replies. A process computes a volatility index, which takes much processor time, from the
   latest averages; a row is added to a CSV file. It makes at most five calls per second, and a
   heartbeat shows that the loop never stalls.

   cc 01_crypto_aggregator.c -o aggregator -lcurl -lhttp_parser -lcjson -lm
   ./aggregator                       # four rounds, saved in prices.csv
   ./aggregator --goal                # the heartbeat continues while the index is computed
   CONC_CLOCK=virtual ./aggregator --limiter    # when each of 12 simultaneous calls gets its turn
   ./aggregator --exchange gamma 127.0.0.1:8003 # then: curl localhost:8003/price

   It starts the exchanges itself, as processes of this program, unless given an address:
   gamma=127.0.0.1:8003. gamma fails every third request. More options: rounds, interval (seconds
   between two rounds), timeout (seconds for an answer), paths (the number of random paths for the
   index) and file. It needs the real clock: the virtual one leaves other processes no time to
   reply. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/fetch.h"
#include "../common/http.h"
#include <cjson/cJSON.h>
#include <math.h>
#include <sys/stat.h>
#include <time.h>

enum {
    EXCHANGES = 3,
    MOST_ROUNDS = 1000,
    CALLS_PER_SECOND = 5,
    WINDOW = 64, /* averages that the index looks at */
    STEPS = 100, /* of each of its paths */
    ANSWER_LIMIT = 4096
};

#define BEAT 0.02 /* seconds between two heartbeats */
#define HEADER "time,average,volatility,alpha,beta,gamma\n"

static const char *const names[EXCHANGES] = {"alpha", "beta", "gamma"};

static struct {
    double rounds, interval, timeout, paths;
    const char *file, *address[EXCHANGES];
} options = {4, 1.5, 1, 200000, "prices.csv", {0}};

/* The prices of a round; 0: this exchange has not answered. */
typedef struct {
    int round;
    double average, prices[EXCHANGES];
} quotes;

/* An exchange, as it is seen from here. */
typedef struct {
    struct aggregator *of;
    char address[64];
    double price;       /* its last one */
    conc_child process; /* if it is ours */
} source;

/* What a worker gets, as a copy, and fills in. */
typedef struct {
    int count, paths;
    double averages[WINDOW], index;
} volatility;

/* A bucket that holds 3 tokens and gets 2 a second lets at most 3 + 2 calls through in any second:
 * a round can start all at once, and the limit of 5 holds. */
typedef struct {
    conc_limiter limiter;
    int calls;
    double times[MOST_ROUNDS * EXCHANGES];
} turnstile;

typedef struct {
    int beats, missed;
    int meanwhile; /* beats while an index was computed */
    bool computing;
} heart;

typedef struct aggregator {
    fetch_client client;
    source sources[EXCHANGES];
    turnstile turnstile;
    heart heart;
    conc_procs workers;
    volatility volatility;
    conc_queue to_store; /* of quotes */
    const char *lead;    /* what the file needs before its next row */
    int rows;
} aggregator;

/* ---- the exchanges: five calls a second, all at once in a round ----------------------------- */

static int take_turn(turnstile *t)
{
    CONC_TRY(conc_limiter_acquire(&t->limiter, 1));
    t->times[t->calls++] = conc_now();
    return 0;
}

static int most_in_a_second(const turnstile *t)
{
    int most = 0;
    for (int first = 0, last = 0; last < t->calls; last++) {
        while (t->times[last] - t->times[first] > 1)
            first++;
        if (last - first + 1 > most)
            most = last - first + 1;
    }
    return most;
}

static int read_price(const fetch_response *r, double *price)
{
    if (r->status != 200)
        return conc_fail(-EREMOTEIO, "status %d", r->status);
    cJSON *json = cJSON_ParseWithLength(r->body, r->size);
    const cJSON *item = cJSON_GetObjectItem(json, "price");
    double value = cJSON_IsNumber(item) ? item->valuedouble : 0;
    cJSON_Delete(json);
    if (!(value > 0 && value < 1e12))
        return conc_fail(-EPROTO, "the answer has no price");
    *price = value;
    return 0;
}

static int ask(void *arg)
{
    source *s = arg;
    char url[128];
    const fetch_options request = {
        .timeout = options.timeout, .limit = ANSWER_LIMIT, .redirects = -1};
    CONC_AUTO(fetch_response, r) = {0};
    snprintf(url, sizeof url, "http://%s/price", s->address);
    CONC_TRY(take_turn(&s->of->turnstile));
    int rc = fetch(&s->of->client, url, &request, &r);
    const char *why = strstr(r.error, ": "); /* behind the URL */
    if (rc < 0)
        return conc_fail(rc, "%s", why ? why + 2 : conc_strerror(rc));
    return read_price(&r, &s->price);
}

/* The number of exchanges that have answered. An error of one does not cancel the others. */
static int fetch_round(aggregator *a, quotes *q)
{
    conc_call calls[EXCHANGES];
    int count = 0;
    for (int i = 0; i < EXCHANGES; i++)
        calls[i] = (conc_call)CONC_CALL(ask, &a->sources[i]);
    CONC_TRY(conc_gather_all(calls, EXCHANGES));
    for (int i = 0; i < EXCHANGES; i++) {
        if (calls[i].result < 0) {
            printf("round %d: without %s: %s\n", q->round, names[i], calls[i].text);
            continue;
        }
        q->prices[i] = a->sources[i].price;
        q->average += q->prices[i];
        count++;
    }
    if (count > 0)
        q->average /= count;
    return count;
}

static int fetch_rounds(void *arg)
{
    aggregator *a = arg;
    double start = conc_now();
    for (int i = 0; i < (int)options.rounds; i++) {
        quotes q = {.round = i + 1};
        CONC_TRY(conc_sleep_until(start + i * options.interval));
        int count = CONC_TRY(fetch_round(a, &q));
        if (count > 0) {
            printf("round %d: average %.4f of %d\n", q.round, q.average, count);
            CONC_TRY(conc_queue_put(&a->to_store, &q));
        } else {
            printf("round %d: no exchange answers, nothing is written\n", q.round);
        }
        fflush(stdout);
    }
    conc_queue_close(&a->to_store); /* what it holds is still stored */
    return 0;
}

/* ---- the volatility index: in a process of its own, while the next round is fetched --------- */

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state >> 16;
}

/* A bootstrap: the standard deviation over random paths of past changes, in percent a round. */
static int compute_index(void *arg)
{
    volatility *v = arg;
    double changes[WINDOW], sum = 0, squares = 0;
    int count = v->count - 1;
    uint64_t random = 88172645463325252; /* the same numbers each time: a result can be repeated */
    v->index = 0;
    if (count < 1)
        return 0;
    for (int i = 0; i < count; i++)
        changes[i] = log(v->averages[i + 1] / v->averages[i]);
    for (int path = 0; path < v->paths; path++) {
        double end = 0;
        for (int step = 0; step < STEPS; step++)
            end += changes[next_random(&random) % (unsigned)count];
        sum += end;
        squares += end * end;
    }
    double mean = sum / v->paths;
    v->index = 100 * sqrt(fmax(0, squares / v->paths - mean * mean) / STEPS);
    return 0;
}

static int compute_in_process(aggregator *a)
{
    a->heart.computing = true;
    int rc = conc_procs_run(&a->workers, compute_index, &a->volatility, sizeof a->volatility);
    a->heart.computing = false;
    return rc;
}

static void add_average(volatility *v, double average)
{
    if (v->count == WINDOW)
        memmove(v->averages, v->averages + 1, --v->count * sizeof average);
    v->averages[v->count++] = average;
}

/* ---- the file: whole rows or nothing -------------------------------------------------------- */

/* Sets what has to come before the next row. Runs on a thread. */
static int inspect_file(void *arg)
{
    aggregator *a = arg;
    struct stat s = {0};
    FILE *file = NULL;
    a->lead = HEADER;
    if (stat(options.file, &s) == 0 && S_ISREG(s.st_mode) && s.st_size > 0)
        file = fopen(options.file, "r");
    if (!file)
        return 0; /* if rows cannot be added, that is told when one is */
    fseek(file, -1, SEEK_END);
    a->lead = fgetc(file) == '\n' ? "" : "\n"; /* "\n": another program left half a row */
    fclose(file);
    return 0;
}

/* After an error, such as a full disk, a part of the row may be in the file: it is cut off. */
static int append(void *arg)
{
    const char *text = arg;
    struct stat before = {0};
    bool existed = stat(options.file, &before) == 0;
    int rc = conc_file_append(options.file, text, strlen(text));
    bool may_cut = rc < 0 && (!existed || S_ISREG(before.st_mode));
    if (may_cut && truncate(options.file, before.st_size) < 0 && errno != ENOENT)
        fprintf(stderr, "%s: half a row may be left\n", options.file);
    return rc;
}

static int store(aggregator *a, const quotes *q, bool has_index)
{
    char row[512], when[32], index[32] = "", prices[EXCHANGES][32] = {""};
    time_t now = time(NULL);
    struct tm utc;
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    if (has_index)
        snprintf(index, sizeof index, "%.4f", a->volatility.index);
    for (int i = 0; i < EXCHANGES; i++)
        if (q->prices[i] > 0)
            snprintf(prices[i], sizeof prices[i], "%.2f", q->prices[i]);
    snprintf(row, sizeof row, "%s%s,%.4f,%s,%s,%s,%s\n", a->lead, when, q->average, index,
             prices[0], prices[1], prices[2]);
    CONC_TRY(conc_shield(5, append, row)); /* Ctrl+C does not cut it in two */
    a->lead = "";
    a->rows++;
    printf("round %d: volatility index %s\n", q->round, has_index ? index : "unknown");
    fflush(stdout);
    return 0;
}

static int analyse_and_store(void *arg)
{
    aggregator *a = arg;
    quotes q;
    int rc;
    while ((rc = conc_queue_get(&a->to_store, &q)) == 0) {
        add_average(&a->volatility, q.average);
        rc = compute_in_process(a);
        if (rc == -ECANCELED)
            return rc;
        if (rc < 0) /* the prices are worth keeping without it */
            printf("round %d: no index: %s\n", q.round, conc_last_error());
        CONC_TRY(store(a, &q, rc >= 0));
    }
    return rc == -EPIPE ? 0 : rc; /* -EPIPE: that was the last round */
}

/* ---- the heartbeat -------------------------------------------------------------------------- */

/* What a blocked loop makes it miss, it does not make up for. */
static int beat(void *arg)
{
    heart *h = arg;
    double next = conc_now();
    for (;;) {
        next += BEAT;
        CONC_TRY(conc_sleep_until(next));
        int missed = (int)((conc_now() - next) / BEAT);
        next += missed * BEAT;
        h->missed += missed;
        h->beats++;
        h->meanwhile += h->computing;
    }
}

/* ---- an exchange: a process of this program ------------------------------------------------- */

typedef struct {
    int index, requests;
    double price;
    const char *address;
} exchange;

static int quote(http_connection *http, void *arg)
{
    exchange *e = arg;
    if (strcmp(http->path, "/price") != 0)
        return http_printf(http, 404, "There is only /price\n");
    bool fails = e->index == EXCHANGES - 1 && ++e->requests % 3 == 2;
    CONC_TRY(conc_sleep(conc_random(0.05, 0.3)));
    if (fails)
        return http_printf(http, 503, "Out of order\n");
    e->price *= conc_random(0.99, 1.01);
    CONC_TRY(http_set_header(http, "Content-Type", "application/json"));
    return http_printf(http, 200, "{\"exchange\": \"%s\", \"price\": %.2f}\n", names[e->index],
                       e->price);
}

static int connection(int fd, void *arg)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection, http) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&http, quote, arg);
}

static int serve(void *arg)
{
    exchange *e = arg;
    char actual[64];
    conc_server server = {.handler = connection, .arg = e, .limit = 64};
    server.fd = CONC_TRY(conc_listen(e->address));
    CONC_TRY(conc_address(server.fd, false, actual, sizeof actual));
    printf("%s listens on %s\n", names[e->index], actual);
    fflush(stdout);
    return conc_serve(&server);
}

/* It ends when its input does: then its parent has ended, however that happened. */
static int exchange_app(void *arg)
{
    char byte;
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, serve, arg));
    while (CONC_TRY_IN(&g, conc_read(0, &byte, 1)) > 0)
        continue;
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static int start_exchange(source *s, const char *name)
{
    char line[128] = "";
    const char *argv[] = {"/proc/self/exe", "--exchange", name, "127.0.0.1:0", NULL};
    s->process = (conc_child){.argv = argv, .input = CONC_PIPE, .output = CONC_PIPE, .group = true};
    CONC_TRY(conc_child_start(&s->process));
    CONC_TRY(conc_read(s->process.output, line, sizeof line - 1)); /* it is written at once */
    if (sscanf(line, "%*s listens on %63s", s->address) != 1)
        return conc_fail(-ECHILD, "the exchange %s does not start", name);
    return 0;
}

/* ---- putting it together -------------------------------------------------------------------- */

static int aggregator_open(aggregator *a)
{
    a->turnstile.limiter = (conc_limiter){.rate = CALLS_PER_SECOND - EXCHANGES, .burst = EXCHANGES};
    a->to_store = (conc_queue)CONC_QUEUE(quotes, 4);
    a->volatility.paths = (int)options.paths;
    a->workers.workers = 1;
    CONC_TRY(conc_procs_open(&a->workers));
    CONC_TRY(conc_offload(inspect_file, a));
    for (int i = 0; i < EXCHANGES; i++) {
        source *s = &a->sources[i];
        s->of = a;
        if (options.address[i])
            snprintf(s->address, sizeof s->address, "%s", options.address[i]);
        else
            CONC_TRY(start_exchange(s, names[i]));
    }
    return 0;
}

static int aggregator_close(aggregator *a)
{
    fetch_close(&a->client);
    conc_procs_close(&a->workers);
    conc_queue_destroy(&a->to_store);
    for (int i = 0; i < EXCHANGES; i++)
        conc_child_close(&a->sources[i].process);
    return 0;
}

CONC_AUTO_TYPE(aggregator, aggregator_close);

/* Fetching, and what is done with the prices, side by side: an error of one ends the other. */
static int run_rounds(aggregator *a)
{
    CONC_TRY(CONC_GATHER(CONC_CALL(fetch_rounds, a), CONC_CALL(analyse_and_store, a)));
    int most = most_in_a_second(&a->turnstile);
    printf("%d calls, at most %d in a second (limit: %d)\n", a->turnstile.calls, most,
           CALLS_PER_SECOND);
    printf("%d heartbeats, %d of them while an index was computed, %d missed\n", a->heart.beats,
           a->heart.meanwhile, a->heart.missed);
    printf("%d rows in %s\n", a->rows, options.file);
    if (a->rows == 0)
        return conc_fail(-ENODATA, "no exchange has answered in any round");
    return 0;
}

/* ---- the goal: no freeze under load --------------------------------------------------------- */

/* The same index twice. On the loop is the bug: nothing else runs meanwhile. */
static int compare(aggregator *a)
{
    static const char *const where[] = {"on the loop", "in a process"};
    volatility *v = &a->volatility;
    double index[2];
    int beats[2];
    for (int i = 0; i < WINDOW; i++)
        add_average(v, conc_random(99, 101));
    for (int i = 0; i < 2; i++) {
        double start = conc_now();
        int before = a->heart.beats;
        CONC_TRY(i ? compute_in_process(a) : compute_index(v));
        beats[i] = a->heart.beats - before;
        index[i] = v->index;
        printf("%-14s %.3f s, %d heartbeats meanwhile\n", where[i], conc_now() - start, beats[i]);
        fflush(stdout);
    }
    v->count = 0;
    a->heart = (heart){.beats = 0};
    bool right = beats[0] == 0 && beats[1] > 0 && index[0] == index[1];
    return right ? 0 : conc_fail(-EPROTO, "the counts are wrong");
}

static int app(void *arg)
{
    const bool *is_goal = arg;
    conc_group g = {0};
    CONC_AUTO(aggregator, a) = {0};
    CONC_TRY(aggregator_open(&a));
    CONC_TRY_IN(&g, conc_spawn(&g, beat, &a.heart));
    if (*is_goal) {
        options.interval = 0; /* the limit alone holds the rounds back */
        CONC_TRY_IN(&g, compare(&a));
    }
    CONC_TRY_IN(&g, run_rounds(&a));
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

/* ---- the limit alone ------------------------------------------------------------------------ */

static int take_and_tell(void *arg)
{
    turnstile *t = arg;
    CONC_TRY(take_turn(t));
    printf("%.1f s: call %d\n", t->times[t->calls - 1] - t->times[0], t->calls);
    fflush(stdout);
    return 0;
}

static int limiter_app(void *arg)
{
    turnstile t = {.limiter = {.rate = CALLS_PER_SECOND - EXCHANGES, .burst = EXCHANGES}};
    (void)arg;
    CONC_TRY(conc_map(take_and_tell, &t, 12, 0));
    int most = most_in_a_second(&t);
    printf("at most %d in a second (limit: %d)\n", most, CALLS_PER_SECOND);
    return most <= CALLS_PER_SECOND ? 0 : conc_fail(-EPROTO, "the limit was passed");
}

/* ---- main ----------------------------------------------------------------------------------- */

static int find_exchange(const char *name)
{
    for (int i = 0; i < EXCHANGES; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

/* Cuts name=value in two: false if there is no such option. */
static bool set_option(char *name)
{
    static const struct {
        const char *name;
        double *value, least, most;
    } numbers[] = {{"rounds", &options.rounds, 1, MOST_ROUNDS},
                   {"interval", &options.interval, 0, 1e6},
                   {"timeout", &options.timeout, 1e-3, 1e6},
                   {"paths", &options.paths, 1, 1e9}};
    char *value = strchr(name, '='), *end = NULL;
    *value++ = 0;
    double number = strtod(value, &end);
    int index = find_exchange(name);
    if (index >= 0)
        options.address[index] = value;
    if (strcmp(name, "file") == 0)
        options.file = value;
    if (index >= 0 || strcmp(name, "file") == 0)
        return *value != 0;
    for (size_t i = 0; *value && !*end && i < CONC_LEN(numbers); i++)
        if (strcmp(name, numbers[i].name) == 0) {
            *numbers[i].value = number;
            return number >= numbers[i].least && number <= numbers[i].most;
        }
    return false;
}

static int run(int count, char **words)
{
    const char *command = count ? words[0] : "";
    bool is_goal = strcmp(command, "--goal") == 0;
    exchange e = {.price = 27000};
    if (count == 0 || (count == 1 && is_goal))
        return conc_main(app, &is_goal);
    if (count == 1 && strcmp(command, "--limiter") == 0)
        return conc_main(limiter_app, NULL);
    if (count == 3 && strcmp(command, "--exchange") == 0) {
        e.index = find_exchange(words[1]);
        e.address = words[2];
        if (e.index >= 0)
            return conc_main(exchange_app, &e);
    }
    fprintf(stderr, "aggregator: bad arguments: the program's first lines say what there is\n");
    return 2;
}

int main(int argc, char **argv)
{
    int count = 0;
    setenv("no_proxy", "*", 1); /* the exchanges are near */
    for (int i = 1; i < argc; i++) {
        bool is_option = argv[i][0] != '-' && strchr(argv[i], '=');
        if (!is_option || !set_option(argv[i]))
            argv[count++] = argv[i]; /* any other argument belongs to the command */
    }
    return run(count, argv);
}
