/* Rate limiter. A service allows a number of requests a second, and refuses more with 429. A client
   that respects the limit is never refused. One that does not waits longer after each refusal, and
   still gets all its replies.

   cc 01_rate_limiter.c -o rate_limiter -lcurl -lhttp_parser
   ./rate_limiter             # starts a service of its own
   ./rate_limiter --exact     # only the part without a service, on the virtual clock
   ./rate_limiter --goal      # 25 requests, 10 a second, a burst of 10: figures beside the goal

   The service alone, and the clients in another terminal:

   ./rate_limiter --serve 127.0.0.1:8080
   ./rate_limiter http://127.0.0.1:8080

   conc_limiter is a token bucket. Each request takes a token and returns none: time refills the
   bucket. So, unlike with a semaphore, there is nothing to release and no block to leave. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/fetch.h"
#include "../common/http.h"
#include <signal.h>

enum { CALLS = 1000, LONGEST_RETRY_AFTER = 60 /* s; a service that asks for more is given up */ };

/* What the service allows; each tier has a bucket of its own. */
typedef struct {
    const char *name;
    conc_limiter limiter;
} tier;

static tier tiers[] = {{"free", {.rate = 10, .per = 1, .burst = 20}},
                       {"pro", {.rate = 50, .per = 1, .burst = 100}},
                       {"batch", {.rate = 300, .per = 60, .burst = 20}}};

/* A client of one tier, and what it keeps to. */
typedef struct {
    const char *tier;
    int calls;            /* how many it makes */
    conc_limiter limiter; /* so many a second */
    conc_sem at_once;     /* so many under way */
    bool untuned;         /* it keeps to nothing */
    int answered, refused, failed;
    int asked, last_turn; /* the first to ask gets the first token */
    int sent;
    double sent_at[CALLS];
} client;

/* Of the burst that the service allows, half is for their bursts, half for what is under way: why
   is told below, at attempt. */
static const client limited[] = {
    {"free", 25, .limiter = {.rate = 10, .per = 1, .burst = 10}, .at_once = CONC_SEM(10)},
    {"pro", 150, .limiter = {.rate = 50, .per = 1, .burst = 50}, .at_once = CONC_SEM(50)},
    {"batch", 20, .limiter = {.rate = 300, .per = 60, .burst = 10}, .at_once = CONC_SEM(10)}};

static void note_start(client *c)
{
    if (c->sent < CALLS)
        c->sent_at[c->sent++] = conc_now();
}

static double last_start(const client *c) { return c->sent_at[c->sent - 1] - c->sent_at[0]; }

/* ---- retries -------------------------------------------------------------------------------- */

typedef struct {
    double first; /* seconds to wait after the first failure; doubles after each */
    int tries;
} retry_policy;

/* What is random only adds: the service gets the time it asks for, and clients that were refused
   together do not come back together. */
static double back_off(const retry_policy *p, int failures, double retry_after)
{
    double wait = p->first * (1 << (failures - 1));
    if (wait < retry_after)
        wait = retry_after;
    return wait * conc_random(1, 1.5);
}

/* Repeats attempt while it returns -EAGAIN: "later". Only for requests that may reach the service
   twice, such as a GET: when an answer is lost, nobody knows whether the request was. */
static int with_retries(const retry_policy *p, int (*attempt)(void *arg, double *retry_after),
                        void *arg)
{
    for (int failures = 1;; failures++) {
        double retry_after = 0;
        int rc = attempt(arg, &retry_after);
        if (rc != -EAGAIN)
            return rc;
        if (failures == p->tries || retry_after > LONGEST_RETRY_AFTER)
            return conc_fail(-EAGAIN, "gave up after %d of %d tries: %s", failures, p->tries,
                             conc_last_error());
        CONC_TRY(conc_sleep(back_off(p, failures, retry_after)));
    }
}

/* ---- the client ----------------------------------------------------------------------------- */

typedef struct {
    client *client;
    int number;
} call;

static const char *service = ""; /* its URL */
static fetch_client http = {.per_host = 100};
static int answered, wanted; /* by all clients */

static void show_progress(void)
{
    answered++;
    if (isatty(STDOUT_FILENO))
        printf("\r  %d of %d answered%s", answered, wanted, answered == wanted ? "\n" : "");
    else if (answered % 20 == 0)
        printf("  %d of %d answered\n", answered, wanted);
    fflush(stdout);
}

static int request(const call *k, double *retry_after)
{
    client *c = k->client;
    char url[300], expected[40];
    fetch_options o = {.timeout = 2, .limit = 1000};
    CONC_AUTO(fetch_response, r) = {0};
    snprintf(url, sizeof url, "%s/%s/%d", service, c->tier, k->number);
    snprintf(expected, sizeof expected, "%s %d\n", c->tier, k->number);
    note_start(c);
    int rc = fetch(&http, url, &o, &r);
    if (rc == -ECONNREFUSED || rc == -ECONNRESET || rc == -ETIMEDOUT) {
        c->failed++;
        return conc_fail(-EAGAIN, "%s", r.error);
    }
    CONC_TRY(rc);
    if (r.status == 429 || r.status == 503) {
        const char *seconds = fetch_header(&r, "retry-after"); /* or a date, which counts as 0 */
        *(r.status == 429 ? &c->refused : &c->failed) += 1;
        *retry_after = seconds ? atof(seconds) : 0;
        return conc_fail(-EAGAIN, "%s: status %d, Retry-After: %s", url, r.status,
                         seconds ? seconds : "none");
    }
    if (r.status != 200 || strcmp(r.body, expected) != 0)
        return conc_fail(-EPROTO, "%s: status %d, and not the answer to this", url, r.status);
    c->answered++;
    show_progress();
    return 0;
}

/* A tuned client is never refused if
       its burst + its requests at once <= the service's burst,
   and the rates are the same, however long the network takes: in any time t the service sees the
   requests that are under way when t begins, and those that the limiter lets go, burst + rate * t.
   With a limiter alone, a network that holds requests up makes a larger burst of them. The permit
   comes first, because a request that has its token has to go at once. */
static int attempt(void *arg, double *retry_after)
{
    call *k = arg;
    if (k->client->untuned)
        return request(k, retry_after);
    CONC_PERMIT(&k->client->at_once) {
        CONC_TRY(conc_limiter_acquire(&k->client->limiter, 1));
        return request(k, retry_after);
    }
    return 0;
}

static int make_call(void *arg)
{
    static const retry_policy policy = {.first = 0.1, .tries = 6};
    return with_retries(&policy, attempt, arg);
}

static int make_calls(void *arg)
{
    client *c = arg;
    conc_group g = {0};
    for (int i = 0; i < c->calls; i++)
        CONC_TRY_IN(&g, CONC_SPAWN(&g, make_call, ((call){c, i})));
    return conc_group_wait(&g);
}

/* Runs the clients at once, and says what became of their calls. A service that failed may refuse
   even those that keep to the limit: what they gave up may be under way. */
static int run_clients(const char *what, client *clients, size_t n)
{
    answered = wanted = 0;
    for (client *c = clients; c < clients + n; c++)
        wanted += c->calls;
    printf("%s\n", what);
    int rc = conc_map(make_calls, clients, n, sizeof *clients);
    if (rc < 0 && isatty(STDOUT_FILENO))
        printf("\n"); /* after the progress */
    CONC_TRY(rc);
    for (client *c = clients; c < clients + n; c++) {
        printf("  %-6s %d calls, %d answered, %d times 429, %d failures, in %.1f s\n", c->tier,
               c->calls, c->answered, c->refused, c->failed, last_start(c));
        if (c->answered != c->calls || (c->refused > 0 && !c->untuned && c->failed == 0))
            conc_set_exit_status(1);
    }
    return 0;
}

/* ---- the service ---------------------------------------------------------------------------- */

static int answer_for(http_connection *h, tier *t, int number)
{
    char seconds[20];
    if (conc_limiter_try_acquire(&t->limiter, 1) == 0) {
        CONC_TRY(conc_sleep(0.01)); /* the work */
        return http_printf(h, 200, "%s %d\n", t->name, number);
    }
    snprintf(seconds, sizeof seconds, "%d", 1 + (int)(t->limiter.per / t->limiter.rate));
    CONC_TRY(http_set_header(h, "Retry-After", seconds));
    return http_printf(h, 429, "too many requests\n");
}

static int answer(http_connection *h, void *arg)
{
    char name[16];
    int number;
    (void)arg;
    if (sscanf(h->path, "/%15[a-z]/%9d", name, &number) == 2)
        for (tier *t = tiers; t < tiers + CONC_LEN(tiers); t++)
            if (strcmp(t->name, name) == 0)
                return answer_for(h, t, number);
    return http_printf(h, 404, "there is no such tier\n");
}

static int serve_connection(int fd, void *arg)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection, h) = {.stream = &stream};
    CONC_TRY(conc_stream_open(&stream, fd));
    return http_serve(&h, answer, arg);
}

/* The input of a service ends when the client has ended that started it. */
static int end_with_input(void *arg)
{
    char byte;
    (void)arg;
    while (CONC_TRY(conc_read(STDIN_FILENO, &byte, 1)) > 0)
        ;
    return raise(SIGTERM);
}

static int serve(void *address)
{
    char actual[120];
    conc_server server = {.handler = serve_connection};
    if (!address)
        CONC_TRY(conc_spawn(NULL, end_with_input, NULL));
    server.fd = CONC_TRY(conc_listen(address ? address : "127.0.0.1:0"));
    CONC_TRY(conc_address(server.fd, false, actual, sizeof actual));
    printf("http://%s\n", actual);
    return conc_serve(&server);
}

/* This program again, as the service: its address is its first line. */
static int start_service(conc_child *child)
{
    static char url[130];
    ssize_t n;
    CONC_TRY(conc_child_start(child));
    n = CONC_TRY(conc_read(child->output, url, sizeof url - 1));
    if (n == 0)
        return conc_fail(-EPROTO, "the service ended at once");
    url[strcspn(url, "\n")] = '\0';
    service = url;
    return 0;
}

/* ---- the exact part: limiters alone, on the virtual clock ----------------------------------- */

static int take_token(void *arg)
{
    client *c = arg;
    int turn = ++c->asked;
    CONC_TRY(conc_limiter_acquire(&c->limiter, 1));
    if (turn < c->last_turn)
        return conc_fail(-EPROTO, "%d got its token after %d", turn, c->last_turn);
    c->last_turn = turn;
    note_start(c);
    return 0;
}

/* In any time t a bucket gives burst + rate * t at most. */
static int take_tokens(void *arg)
{
    client *c = arg;
    CONC_TRY(conc_map(take_token, c, (size_t)c->calls, 0));
    for (int i = 0; i < c->sent; i++)
        for (int j = i; j < c->sent; j++) {
            double t = c->sent_at[j] - c->sent_at[i];
            if (j - i + 1 > c->limiter.burst + c->limiter.rate / c->limiter.per * t + 1e-6)
                return conc_fail(-EPROTO, "the bucket gave %d in %g s", j - i + 1, t);
        }
    return 0;
}

static int take_permit(void *arg)
{
    client *c = arg;
    CONC_PERMIT(&c->at_once) {
        note_start(c);
        CONC_TRY(conc_sleep(0.1)); /* the request */
    }
    return 0;
}

static int most_in_a_second(const client *c)
{
    int most = 0;
    for (int i = 0, first = 0; i < c->sent; i++) {
        while (c->sent_at[i] - c->sent_at[first] > 1 - 1e-6)
            first++;
        if (most < i - first + 1)
            most = i - first + 1;
    }
    return most;
}

static void print_starts(const char *what, const client *c)
{
    printf("%s\n ", what);
    for (int i = 0; i < c->sent; i++)
        printf(" %.0f", (c->sent_at[i] - c->sent_at[0]) * 1e3);
    printf("\n");
}

static int give_up(void)
{
    static client c = {.limiter = {.rate = 1, .per = 1, .burst = 1}};
    conc_group g = {0};
    conc_task third;
    CONC_TRY_IN(&g, conc_spawn(&g, take_token, &c));
    CONC_TRY_IN(&g, conc_spawn(&g, take_token, &c));
    CONC_TRY_IN(&g, conc_spawn_task(&g, &third, take_token, &c));
    CONC_TRY_IN(&g, conc_spawn(&g, take_token, &c));
    CONC_TRY_IN(&g, conc_sleep(1.5));
    conc_cancel(&third);
    CONC_TRY(conc_group_wait(&g));
    print_starts("Of four at one a second the third gives up at 1500 ms: the fourth has its turn",
                 &c);
    return 0;
}

static int fail_four_times(void *arg, double *retry_after)
{
    client *c = arg;
    note_start(c);
    *retry_after = c->sent == 4 ? 10 : 0;
    return c->sent < 5 ? -EAGAIN : 0;
}

static int retry(void)
{
    static client c;
    const retry_policy policy = {.first = 1, .tries = 5};
    CONC_TRY(with_retries(&policy, fail_four_times, &c));
    print_starts("Refused: tried again after 1 s, 2 s, 4 s, \"Retry-After: 10\", and jitter", &c);
    return 0;
}

static int exact_part(void *arg)
{
    client *c = arg;
    static client ten_at_once = {.at_once = CONC_SEM(10)};
    CONC_TRY(conc_map(take_tokens, c, CONC_LEN(limited), sizeof *c));
    printf("Tokens of three tiers, all asked for at once\n");
    for (size_t i = 0; i < CONC_LEN(limited); i++)
        printf("  %-6s %d, the last after %.0f ms, %d in one second at most\n", c[i].tier,
               c[i].sent, last_start(&c[i]) * 1e3, most_in_a_second(&c[i]));
    print_starts("The first of these, 10 a second with a burst of 10, all starts (ms)", c);
    CONC_TRY(conc_map(take_permit, &ten_at_once, 200, 0));
    printf("A semaphore of 10, and requests of 100 ms: %d start in one second\n",
           most_in_a_second(&ten_at_once));
    CONC_TRY(give_up());
    return retry();
}

/* ---- the program ---------------------------------------------------------------------------- */

static client exact[CONC_LEN(limited)], tuned[CONC_LEN(limited)];

static void print_goal(void)
{
    printf("25 requests, 10 a second, burst 10   virtual clock   service      goal\n");
    printf("  answered                           %13s%10d        25\n", "", tuned->answered);
    printf("  429                                %13s%10d         0\n", "", tuned->refused);
    printf("  most in one second                 %13d%10d        19\n", most_in_a_second(exact),
           most_in_a_second(tuned));
    printf("  the last one starts after          %11.3f s%8.3f s   1.500 s\n", last_start(exact),
           last_start(tuned));
    if (most_in_a_second(exact) != 19)
        conc_set_exit_status(1);
}

static int app(void *goal)
{
    static client untuned = {"free", 40, .untuned = true};
    const char *const argv[] = {"/proc/self/exe", "--serve", NULL};
    CONC_AUTO(conc_child, child) = {.argv = argv, .input = CONC_PIPE, .output = CONC_PIPE};
    memcpy(tuned, limited, sizeof tuned);
    if (!*service)
        CONC_TRY(start_service(&child));
    if (*(bool *)goal) {
        CONC_TRY(run_clients("A client of 10 a second", tuned, 1));
        print_goal();
        return 0;
    }
    CONC_TRY(run_clients("A client that asks for all at once", &untuned, 1));
    CONC_TRY(conc_sleep(2)); /* it left an empty bucket; now that is full */
    return run_clients("A client of each tier that keeps to its limit", tuned, CONC_LEN(tuned));
}

static int usage(void)
{
    fprintf(stderr, "usage: rate_limiter [--exact | --goal | --serve ADDRESS | http://ADDRESS]\n");
    return 2;
}

static int run(const char *how, char *address)
{
    conc_options virtual = {.virtual_clock = true, .random = 1};
    bool goal = strcmp(how, "--goal") == 0;
    if (strcmp(how, "--serve") == 0)
        return conc_main(serve, address);
    if (strncmp(how, "http://", 7) == 0) {
        service = how;
        return conc_main(app, &goal);
    }
    if (*how && !goal && strcmp(how, "--exact") != 0)
        return usage();
    memcpy(exact, limited, sizeof exact);
    if (conc_run_with(&virtual, exact_part, exact) < 0) {
        fprintf(stderr, "rate_limiter: %s\n", conc_last_error());
        return 1;
    }
    return !*how || goal ? conc_main(app, &goal) : 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    int status = run(argc > 1 ? argv[1] : "", argc > 1 ? argv[2] : NULL);
    fetch_close(&http);
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    fprintf(stderr, "rate_limiter: its output cannot be written\n");
    return 1;
}
