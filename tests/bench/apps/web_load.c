/* web_load: a client of the web servers that apps.sh compares; they answer GET /users/N.
 *   web_load ADDRESS COUNT        asks COUNT times on 64 connections, and compares each answer: prints
 *                                 milliseconds, and how many were right
 *   web_load ADDRESS COUNT RATE   the same at RATE a second, whether answers come or not; prints the
 *                                 milliseconds within which 50 % and 99 % of the answers came
 *   web_load ADDRESS idle COUNT   opens COUNT connections, asks once on each, prints "open", and keeps
 *                                 them until stdin ends */
#define CONC_STATIC
#include "../../../conc_pool.h"
#include "../../../examples/common/load.h"

static const char *const targets[] = {"/users/1", "/users/2", "/users/3"};
static const char *const expected[] = {
    "{\"id\":1,\"name\":\"Ada\",\"email\":\"ada@example.org\",\"age\":36}",
    "{\"id\":2,\"name\":\"Grace\",\"email\":\"grace@example.org\",\"age\":85}",
    "{\"id\":3,\"name\":\"Edsger\",\"email\":\"edsger@example.org\",\"age\":72}",
};
enum { TARGETS = 3, CONNECTIONS = 64 };

static struct {
    const char *address;
    int count, asked, right;
    double rate, start, *latencies;
} job;

/* Returns 1 if the answer is right, 0 if not. */
static int ask_once(conc_stream *stream, int i)
{
    CONC_TRY(conc_stream_printf(stream, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n",
                                targets[i % TARGETS]));
    int is_right = CONC_TRY(load__compare(stream, expected[i % TARGETS]));
    job.right += is_right;
    return is_right;
}

/* Request i is due at start + i / rate. Its latency begins there, even if no connection was
 * free. */
static int ask_at_rate(void *arg)
{
    (void)arg;
    CONC_AUTO(conc_stream, stream) = {0};
    int fd = CONC_TRY(conc_dial(job.address));
    CONC_TRY(conc_stream_open(&stream, fd));
    while (job.asked < job.count) {
        int i = job.asked++;
        double due = job.start + i / job.rate;
        if (due > conc_now())
            CONC_TRY(conc_sleep_until(due));
        CONC_TRY(ask_once(&stream, i));
        job.latencies[i] = conc_now() - due;
    }
    return 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int run_at_rate(void)
{
    conc_group g = {0};
    job.latencies = calloc((size_t)job.count, sizeof *job.latencies);
    job.start = conc_now() + 0.1;
    for (int i = 0; i < CONNECTIONS; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, ask_at_rate, NULL));
    CONC_TRY(conc_group_wait(&g));
    qsort(job.latencies, (size_t)job.count, sizeof *job.latencies, by_value);
    printf("%.3f %.3f %d\n", job.latencies[job.count / 2] * 1e3,
           job.latencies[job.count - 1 - job.count / 100] * 1e3, job.right);
    free(job.latencies);
    return 0;
}

static int keep_open(void *arg)
{
    (void)arg;
    CONC_AUTO(conc_stream, stream) = {0};
    int fd = CONC_TRY(conc_dial(job.address));
    CONC_TRY(conc_stream_open(&stream, fd));
    if (CONC_TRY(ask_once(&stream, job.asked++)) == 0)
        return conc_fail(-EBADMSG, "a wrong answer");
    if (job.right == job.count) {
        printf("open\n");
        fflush(stdout);
    }
    return conc_sleep(CONC_FOREVER);
}

static int keep_all_open(void)
{
    char byte;
    conc_group g = {0};
    for (int i = 0; i < job.count; i++)
        CONC_TRY_IN(&g, conc_spawn(&g, keep_open, NULL));
    while (CONC_TRY_IN(&g, conc_read(STDIN_FILENO, &byte, 1)) > 0)
        continue;
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static int app(void *arg)
{
    char **argv = arg;
    load l = {
        .address = argv[1], .targets = targets, .expected = expected, .target_count = TARGETS};
    job.address = argv[1];
    job.count = atoi(argv[2]);
    if (strcmp(argv[2], "idle") == 0) {
        job.count = atoi(argv[3]);
        return keep_all_open();
    }
    if (argv[3]) {
        job.rate = atof(argv[3]);
        return run_at_rate();
    }
    l.requests = job.count;
    l.connections = CONNECTIONS;
    CONC_TRY(load_run(&l));
    printf("%.3f %d\n", l.seconds * 1e3, l.right);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc >= 3 && argc <= 4)
        return conc_main(app, argv);
    fprintf(stderr, "usage: web_load ADDRESS COUNT [RATE], or: web_load ADDRESS idle COUNT\n");
    return 2;
}
