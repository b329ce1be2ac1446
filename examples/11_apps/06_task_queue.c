/* Task queue. Tasks wait in Redis. Workers on any number of machines, which need only the address
   of Redis, run them: by priority, at a given time, after other tasks, again after a failure.
   Workers may be killed and Redis restarted at any time: no task is lost, each is done at least
   once, and a task with a key takes effect exactly once.

   cc 06_task_queue.c -o tasks -lhiredis
   ./tasks             # its own Redis and five workers: priorities, retries, a worker is killed
   ./tasks --goal      # 50,000 tasks for five workers; the goal is 10,000 per second
   ./tasks --chaos     # kills and freezes workers, kills Redis, then checks the accounts

   Redis (7 or later) keeps the tasks in its append-only file. To have it write before it replies:
   redis-server --port 6380 --appendonly yes --appendfsync always
   export REDIS=127.0.0.1:6380
   ./tasks --worker                                  # as many as you like, on any machine
   ./tasks --enqueue deposit --data "ada 10" --key invoice-7
   ./tasks --enqueue primes --data 1000000 --id count --priority 2 --delay 1.5
   ./tasks --enqueue noop --after count --attempts 3
   ./tasks --metrics                                 # in Prometheus's text format
   ./tasks --dead                                    # the dead letters
   ./tasks --requeue all                             # or the id of one

   --help lists all options. The environment variable PASSWORD is Redis's password. It needs the
   real clock: the virtual one leaves other processes no time to answer. common/task_queue.h is the
   queue itself, and common/task_queue.lua.h its part in Redis. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/options.h"
#include "../common/redis_server.h"
#include "../common/task_queue.h"
#include <signal.h>

enum { WORKERS = 5 };

static struct {
    const char *enqueue, *data, *id, *key, *after, *requeue, *name, *queue, *redis;
    double priority, delay, at, attempts, count, slots, lease, timeout;
    bool worker, metrics, dead, goal, chaos, quiet, child;
} options = {.data = "",
             .queue = "tasks",
             .attempts = 5,
             .count = 1,
             .slots = 100,
             .lease = 5,
             .timeout = 5};

static task_queue queue_at(const char *address)
{
    const char *password = getenv("PASSWORD");
    return (task_queue){
        .redis = {.address = address, .password = password, .timeout = options.timeout},
        .name = options.queue};
}

/* ---- a worker: takes tasks, runs them at once, reports them in batches ---------------------- */

typedef struct {
    task_queue queue;
    char name[96];
    conc_group tasks;
    task_run *running[TASK_QUEUE_BATCH];
    int running_count;
    conc_event freed;    /* a slot */
    conc_queue finished; /* of task_run *; they wait to be reported */
    task_run *reported[TASK_QUEUE_BATCH];
    int reported_count; /* 0 when Redis has answered */
} worker;

typedef struct {
    worker *worker;
    task_run *run;
} job;

static int run_handler(task_run *r);

/* The pause doubles with each failure; jitter keeps tasks that failed together apart. */
static void fail(task_run *r)
{
    double pause = 0.2;
    for (int i = 0; i < r->failures && pause < 60; i++)
        pause *= 2;
    r->has_failed = true;
    r->pause = pause * conc_random(0.5, 1);
    snprintf(r->text, sizeof r->text, "%s", conc_last_error());
}

static void print_outcome(const worker *w, const task_run *r)
{
    if (r->has_failed)
        printf("  %s  %-10s failed: %s\n", w->name, r->id, r->text);
    else
        printf("  %s  %-10s done\n", w->name, r->id);
}

static void free_slot(worker *w, const task_run *r)
{
    int i = 0;
    while (w->running[i] != r)
        i++;
    w->running[i] = w->running[--w->running_count];
    conc_event_set(&w->freed);
}

/* A task that is cancelled because the worker ends is not reported: leave returns it. */
static int run_task(void *arg)
{
    job *j = arg;
    int rc = run_handler(j->run);
    free_slot(j->worker, j->run);
    if (rc == -ECANCELED) {
        task_run_free(j->run);
        return 0;
    }
    if (rc < 0)
        fail(j->run);
    if (!options.quiet)
        print_outcome(j->worker, j->run);
    return conc_queue_try_put(&j->worker->finished, &j->run);
}

/* Takes as many tasks as there are free slots, and starts them: how many. */
static int take(worker *w, double *pause)
{
    task_run *runs[TASK_QUEUE_BATCH];
    int n = CONC_TRY(task_queue_take(&w->queue, w->name, (int)options.slots - w->running_count,
                                     options.lease, runs, pause));
    for (int i = 0; i < n; i++)
        w->running[w->running_count++] = runs[i];
    for (int i = 0; i < n; i++)
        CONC_TRY(CONC_SPAWN(&w->tasks, run_task, ((job){w, runs[i]})));
    return n;
}

static int take_tasks(worker *w)
{
    double pause;
    for (;;) {
        while (w->running_count >= (int)options.slots) {
            conc_event_clear(&w->freed);
            CONC_TRY(conc_event_wait(&w->freed));
        }
        if (CONC_TRY(take(w, &pause)) == 0)
            CONC_TRY(task_queue_wait(&w->queue, pause < 0.1 ? pause : 0.1)); /* or a lease ends */
    }
}

static int run_tasks(void *arg)
{
    worker *w = arg;
    CONC_TRY(conc_group_begin(&w->tasks));
    return conc_group_end(&w->tasks, take_tasks(w));
}

/* Reports the runs that have finished: how many. Those of a report without an answer stay, and are
   reported again: Redis ignores what it knows already. */
static int report(worker *w)
{
    while (w->reported_count < TASK_QUEUE_BATCH &&
           conc_queue_try_get(&w->finished, &w->reported[w->reported_count]) == 0)
        w->reported_count++;
    int n = w->reported_count;
    if (n > 0)
        CONC_TRY(task_queue_report(&w->queue, w->name, w->reported, n));
    while (w->reported_count > 0)
        task_run_free(w->reported[--w->reported_count]);
    return n;
}

/* Batches form by themselves: what finishes during one report is in the next. */
static int report_tasks(void *arg)
{
    worker *w = arg;
    for (;;) {
        CONC_TRY(conc_queue_get(&w->finished, &w->reported[0]));
        w->reported_count = 1;
        CONC_TRY(report(w));
    }
}

static int renew_leases(void *arg)
{
    worker *w = arg;
    for (;;) {
        CONC_TRY(conc_sleep(options.lease / 3));
        CONC_TRY(task_queue_renew(&w->queue, w->name, w->running, w->running_count));
    }
}

/* The input of a worker that this program has started ends with the program. */
static int watch_parent(void *arg)
{
    char byte;
    while (CONC_TRY(conc_read(STDIN_FILENO, &byte, 1)) > 0)
        continue;
    conc_group_cancel(arg);
    return 0;
}

static int work(worker *w)
{
    conc_group g = {0};
    if (options.child)
        CONC_TRY_IN(&g, conc_spawn(&g, watch_parent, &g));
    CONC_TRY_IN(&g, conc_spawn(&g, run_tasks, w));
    CONC_TRY_IN(&g, conc_spawn(&g, report_tasks, w));
    CONC_TRY_IN(&g, conc_spawn(&g, renew_leases, w));
    return conc_group_wait(&g);
}

/* Reports the rest, and returns the tasks that are not done to the queue. */
static int leave(void *arg)
{
    worker *w = arg;
    while (CONC_TRY(report(w)) > 0)
        continue;
    return task_queue_call(&w->queue, "tasks_leave", w->name, NULL);
}

static int worker_close(worker *w)
{
    task_run *r;
    while (conc_queue_try_get(&w->finished, &r) == 0)
        task_run_free(r);
    while (w->reported_count > 0)
        task_run_free(w->reported[--w->reported_count]);
    while (w->running_count > 0) /* they never began */
        task_run_free(w->running[--w->running_count]);
    conc_queue_destroy(&w->finished);
    return task_queue_close(&w->queue);
}

CONC_AUTO_TYPE(worker, worker_close);

static int worker_app(void *arg)
{
    CONC_AUTO(worker, w) = {.queue = queue_at(options.redis),
                            .finished = CONC_QUEUE(task_run *, 0)};
    CONC_AUTO(redis_pipeline, ping) = {0};
    char host[64] = "";
    (void)arg;
    w.queue.patient = true;
    gethostname(host, sizeof host - 1);
    snprintf(w.name, sizeof w.name, "%s-%d", host, (int)getpid());
    if (options.name)
        snprintf(w.name, sizeof w.name, "%s", options.name);
    CONC_TRY(redis_pipeline_add(&ping, "PING"));
    CONC_TRY(task_queue_run(&w.queue, &ping)); /* fails without a Redis; later calls wait for it */
    int rc = work(&w);
    conc_shield(2, leave, &w);
    return rc;
}

/* ---- what tasks do -------------------------------------------------------------------------- */

static int run_noop(task_run *r) { return (void)r, 0; }

static int run_sleep(task_run *r) { return conc_sleep(atof(r->data)); }

static int run_fail(task_run *r) { return conc_fail(-EIO, "it always fails: %s", r->data); }

/* Fails as often as its data says. */
static int run_flaky(task_run *r)
{
    bool fails = r->failures < atoi(r->data);
    return fails ? conc_fail(-EIO, "attempt %lld fails", r->failures + 1) : 0;
}

/* Kills each worker that runs it. */
static int run_crash(task_run *r) { return (void)r, raise(SIGKILL); }

/* The data is "ACCOUNT AMOUNT", or "ACCOUNT AMOUNT SECONDS" for a task that takes a while. Redis
   changes the account and marks the task as done in one step. */
static int run_deposit(task_run *r)
{
    char account[32];
    int amount;
    double seconds = 0;
    if (sscanf(r->data, "%31s %d %lf", account, &amount, &seconds) < 2)
        return conc_fail(-EINVAL, "deposit: not %s", r->data);
    CONC_TRY(conc_sleep(seconds));
    snprintf(r->text, sizeof r->text, "HINCRBY %s:accounts %s %d", options.queue, account, amount);
    return 0;
}

static int count_primes(void *arg)
{
    int count = 0, below = *(int *)arg;
    for (int n = 2; n < below && !conc_job_cancelled(); n++) {
        bool is_prime = true;
        for (int i = 2; is_prime && i <= n / i; i++)
            is_prime = n % i != 0;
        count += is_prime;
    }
    return conc_job_cancelled() ? -ECANCELED : count;
}

/* Computes in a thread: on the loop it would delay the renewal of leases. */
static int run_primes(task_run *r)
{
    int below = atoi(r->data), count = CONC_TRY(conc_offload(count_primes, &below));
    snprintf(r->text, sizeof r->text, "HSET %s:primes %d %d", options.queue, below, count);
    return 0;
}

static const struct {
    const char *name;
    int (*run)(task_run *r);
} kinds[] = {{"noop", run_noop},     {"sleep", run_sleep}, {"deposit", run_deposit},
             {"primes", run_primes}, {"flaky", run_flaky}, {"fail", run_fail},
             {"crash", run_crash}};

/* An unknown kind is a failure, which is retried: another worker may know the kind. */
static int run_handler(task_run *r)
{
    for (size_t i = 0; i < CONC_LEN(kinds); i++)
        if (strcmp(kinds[i].name, r->kind) == 0)
            return kinds[i].run(r);
    return conc_fail(-ENOSYS, "unknown kind %s", r->kind);
}

/* ---- commands ------------------------------------------------------------------------------- */

static int enqueue(task_queue *q)
{
    char id[17];
    unsigned long long number;
    if (getentropy(&number, sizeof number) < 0)
        return -errno;
    snprintf(id, sizeof id, "%016llx", number);
    const task_order o = {.kind = options.enqueue,
                          .data = options.data,
                          .id = options.id ? options.id : id,
                          .key = options.key,
                          .after = options.after,
                          .priority = (int)options.priority,
                          .attempts = (int)options.attempts,
                          .delay = options.delay,
                          .at = options.at,
                          .count = (int)options.count};
    if (CONC_TRY(task_queue_add(q, &o)) == 0)
        fprintf(stderr, "tasks: there is a task %s already\n", o.id);
    printf("%s\n", o.id);
    return 0;
}

static int command_app(void *arg)
{
    CONC_AUTO(task_queue, q) = queue_at(options.redis);
    (void)arg;
    if (options.enqueue)
        return enqueue(&q);
    if (options.requeue)
        return task_queue_call(&q, "tasks_requeue", options.requeue, stdout);
    return task_queue_call(&q, options.dead ? "tasks_dead" : "tasks_metrics", "", stdout);
}

/* ---- a Redis and five workers of its own ---------------------------------------------------- */

typedef struct fleet fleet;

typedef struct {
    fleet *of;
    char name[8];
    conc_child process;
} member;

struct fleet {
    int (*play)(fleet *f);
    const char *slots, *lease; /* of the workers */
    bool is_quiet;
    redis_server server; /* not started if the program was given an address */
    const char *address;
    char name[32]; /* of the queue: a Redis that was given may have others */
    task_queue control;
    conc_group group;
    member members[WORKERS];
    int kills, restarts;
};

static int fleet_open(fleet *f)
{
    f->server.durable = true;
    f->address = options.redis;
    if (!f->address) {
        CONC_TRY(redis_server_start(&f->server));
        f->address = f->server.address;
    }
    snprintf(f->name, sizeof f->name, "tasks-%d", (int)getpid());
    options.queue = f->name;
    f->control = queue_at(f->address);
    return 0;
}

static int fleet_close(fleet *f)
{
    task_queue_close(&f->control);
    return redis_server_stop(&f->server);
}

CONC_AUTO_TYPE(fleet, fleet_close);

/* Starts the worker again whenever it has ended. */
static int supervise(void *arg)
{
    member *m = arg;
    const fleet *f = m->of;
    const char *verbosity = f->is_quiet ? "--quiet" : NULL;
    const char *argv[] = {"/proc/self/exe", "--worker", "--child", "--name",  m->name,
                          "--redis",        f->address, "--queue", f->name,   "--slots",
                          f->slots,         "--lease",  f->lease,  verbosity, NULL};
    for (;;) {
        m->process = (conc_child){.argv = argv, .input = CONC_PIPE, .group = true, .grace = 5};
        CONC_TRY(conc_child_start(&m->process));
        int rc = conc_child_wait(&m->process, NULL);
        conc_child_close(&m->process);
        CONC_TRY(rc);
        if (!f->is_quiet)
            printf("  %s  has ended; another takes its place\n", m->name);
        CONC_TRY(conc_sleep(0.1));
    }
}

static int start_workers(fleet *f)
{
    for (int i = 0; i < WORKERS; i++) {
        member *m = &f->members[i];
        m->of = f;
        snprintf(m->name, sizeof m->name, "w%d", i + 1);
        CONC_TRY(conc_spawn(&f->group, supervise, m));
    }
    return 0;
}

static int forget(void *arg)
{
    fleet *f = arg;
    return task_queue_call(&f->control, "tasks_forget", "", NULL);
}

static int fleet_app(void *arg)
{
    CONC_AUTO(fleet, f) = *(fleet *)arg;
    CONC_TRY(fleet_open(&f));
    CONC_TRY(forget(&f)); /* what an earlier process with the same number has left */
    CONC_TRY(conc_group_begin(&f.group));
    int rc = f.play(&f);
    conc_group_cancel(&f.group);
    rc = conc_group_end(&f.group, rc);
    if (options.redis)
        conc_shield(5, forget, &f);
    return rc;
}

/* The number, or the number of elements, that a command of Redis returns. In the command the first
   %s is the name of the queue, the second is the word. */
static int ask(fleet *f, const char *command, const char *word)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add(&p, command, f->name, word));
    CONC_TRY(task_queue_run(&f->control, &p));
    const redisReply *r = p.replies[0];
    if (r->type == REDIS_REPLY_ARRAY)
        return (int)r->elements;
    return r->str ? atoi(r->str) : (int)r->integer;
}

static int count(fleet *f, const char *what) { return ask(f, "HGET %s:counters %s", what); }

/* Waits until so many tasks are done or dead. */
static int wait_for(fleet *f, int total)
{
    while (CONC_TRY(count(f, "done")) + CONC_TRY(count(f, "dead")) < total)
        CONC_TRY(conc_sleep(0.02));
    return 0;
}

/* Prints what became of the tasks: how many were done twice. */
static int print_counts(fleet *f, int total)
{
    int enqueued = CONC_TRY(count(f, "enqueued")), done = CONC_TRY(count(f, "done"));
    int dead = CONC_TRY(count(f, "dead")), taken_over = CONC_TRY(count(f, "taken_over"));
    int repeated = CONC_TRY(count(f, "repeated"));
    printf("%d enqueued, %d done, %d dead; %d taken over, %d done twice\n", enqueued, done, dead,
           taken_over, repeated);
    bool is_right = enqueued == total && done == total;
    return is_right ? repeated : conc_fail(-EPROTO, "the counts are wrong");
}

/* ---- the demonstration ---------------------------------------------------------------------- */

static int show_priorities(fleet *f)
{
    const task_order orders[] = {{"sleep", "0.1", "low", .count = 3},
                                 {"sleep", "0.1", "normal", .count = 3, .priority = 1},
                                 {"sleep", "0.1", "high", .count = 3, .priority = 2}};
    printf(
        "Nine tasks, the lowest priority first, and then five workers, one task at a time each\n");
    for (size_t i = 0; i < CONC_LEN(orders); i++)
        CONC_TRY(task_queue_add(&f->control, &orders[i]));
    CONC_TRY(start_workers(f));
    return wait_for(f, 9);
}

static int show_rules(fleet *f)
{
    const task_order orders[] = {
        {"sleep", "0.1", .id = "download"},
        {"sleep", "0.1", .id = "parse", .after = "download"},
        {"sleep", "0.1", .id = "report", .after = "download,parse", .priority = 2},
        {"noop", "", .id = "later", .delay = 1},
        {"flaky", "2", .id = "flaky"},
        {"fail", "for show", .id = "hopeless", .attempts = 3},
        {"deposit", "ada 10", .id = "pay", .key = "invoice-7"},
        {"deposit", "ada 10", .id = "pay-again", .key = "invoice-7"},
    };
    printf("Tasks after others, one in a second, one that fails twice, one that always fails, and\n"
           "two with the same key\n");
    for (size_t i = 0; i < CONC_LEN(orders); i++)
        CONC_TRY(task_queue_add(&f->control, &orders[i]));
    return wait_for(f, 9 + (int)CONC_LEN(orders));
}

/* Kills the worker that has the task, and Redis. */
static int show_losses(fleet *f)
{
    CONC_TRY(task_queue_add(&f->control, &(task_order){"sleep", "0.5", .id = "long"}));
    int i = 0;
    while (CONC_TRY(ask(f, "XPENDING %s:ready:0 workers - + 1 %s", f->members[i].name)) == 0)
        i = (i + 1) % WORKERS;
    member *m = &f->members[i];
    printf("The worker %s has the task long, and is killed%s\n", m->name,
           options.redis ? "" : "; so is Redis");
    CONC_TRY(conc_child_kill(&m->process, SIGKILL));
    if (!options.redis)
        CONC_TRY(redis_server_restart(&f->server));
    return wait_for(f, 18);
}

static int show(fleet *f)
{
    CONC_TRY(show_priorities(f));
    CONC_TRY(show_rules(f));
    CONC_TRY(show_losses(f));
    printf("Dead letters\n");
    CONC_TRY(task_queue_call(&f->control, "tasks_dead", "", stdout));
    printf("Metrics\n");
    return task_queue_call(&f->control, "tasks_metrics", "", stdout);
}

/* ---- the goal ------------------------------------------------------------------------------- */

enum { GOAL_TASKS = 50000, GOAL_RATE = 10000 };

/* Prints what each worker has done: how many have done something. */
static int print_shares(fleet *f)
{
    int shares = 0;
    for (const member *m = f->members; m < f->members + WORKERS; m++) {
        int done = CONC_TRY(ask(f, "HGET %s:workers %s", m->name));
        printf("  %s %d\n", m->name, done);
        shares += done > 0;
    }
    return shares;
}

static int measure(fleet *f)
{
    CONC_TRY(start_workers(f));
    while (CONC_TRY(ask(f, "ZCARD %s:seen", "")) < WORKERS)
        CONC_TRY(conc_sleep(0.02));
    double start = conc_now();
    CONC_TRY(task_queue_add(&f->control, &(task_order){"noop", .id = "t", .count = GOAL_TASKS}));
    CONC_TRY(wait_for(f, GOAL_TASKS));
    double seconds = conc_now() - start;
    printf("%d tasks in %.2f s over %d workers: %.0f a second; the goal is %d\n", GOAL_TASKS,
           seconds, WORKERS, GOAL_TASKS / seconds, GOAL_RATE);
    CONC_TRY(print_counts(f, GOAL_TASKS));
    bool is_shared = CONC_TRY(print_shares(f)) == WORKERS;
    return is_shared ? 0 : conc_fail(-EPROTO, "a worker has done nothing");
}

/* ---- chaos ---------------------------------------------------------------------------------- */

enum { CHAOS_TASKS = 4000 };

/* A worker that is stopped for longer than a lease is taken for dead, and then goes on. */
static int freeze(void *arg)
{
    fleet *f = arg;
    CONC_TRY(conc_sleep(0.7));
    CONC_TRY(conc_child_kill(&f->members[0].process, SIGSTOP));
    CONC_TRY(conc_sleep(2.5));
    return conc_child_kill(&f->members[0].process, SIGCONT);
}

static int kill_workers(void *arg)
{
    fleet *f = arg;
    for (;;) {
        CONC_TRY(conc_sleep(conc_random(0.1, 0.4)));
        member *m = &f->members[(int)conc_random(1, WORKERS)];
        f->kills += conc_child_kill(&m->process, SIGKILL) == 0;
    }
}

static int kill_redis(void *arg)
{
    fleet *f = arg;
    while (!options.redis && f->restarts < 2) {
        CONC_TRY(conc_sleep(1.2));
        CONC_TRY(redis_server_restart(&f->server));
        f->restarts++;
    }
    return 0;
}

static int run_chaos(fleet *f)
{
    const int half = CHAOS_TASKS / 2;
    const task_order keyed = {"deposit", "keyed 1 0.05",  "keyed",
                              "k",       .attempts = 100, .count = half};
    const task_order plain = {"deposit", "plain 1 0.05", "plain", .attempts = 100, .count = half};
    conc_group g = {0};
    CONC_TRY(start_workers(f));
    CONC_TRY_IN(&g, conc_spawn(&g, kill_workers, f));
    CONC_TRY_IN(&g, conc_spawn(&g, kill_redis, f));
    CONC_TRY_IN(&g, conc_spawn(&g, freeze, f));
    CONC_TRY_IN(&g, task_queue_add(&f->control, &keyed));
    CONC_TRY_IN(&g, task_queue_add(&f->control, &plain));
    CONC_TRY_IN(&g, wait_for(f, CHAOS_TASKS));
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static int chaos(fleet *f)
{
    const int half = CHAOS_TASKS / 2;
    CONC_TRY(run_chaos(f));
    printf("%d workers killed, one frozen; Redis killed %d times\n", f->kills, f->restarts);
    int repeated = CONC_TRY(print_counts(f, CHAOS_TASKS));
    int keyed = CONC_TRY(ask(f, "HGET %s:accounts %s", "keyed"));
    int plain = CONC_TRY(ask(f, "HGET %s:accounts %s", "plain"));
    printf("%d deposits with keys: %d; %d without: %d\n", half, keyed, half, plain);
    bool is_right = keyed == half && plain >= half && plain <= half + repeated;
    return is_right ? 0 : conc_fail(-EPROTO, "the accounts are wrong");
}

/* ---- main ----------------------------------------------------------------------------------- */

static const options_field fields[] = {
    OPTIONS_FLAG("goal", &options.goal, "50,000 tasks, and their rate"),
    OPTIONS_FLAG("chaos", &options.chaos, "kill workers and Redis, and compare the accounts"),
    OPTIONS_FLAG("worker", &options.worker, "do tasks until Ctrl+C"),
    OPTIONS_TEXT("enqueue", "KIND", &options.enqueue, "add a task, and print its name"),
    OPTIONS_FLAG("metrics", &options.metrics, "print figures of the queue"),
    OPTIONS_FLAG("dead", &options.dead, "list the tasks that failed too often"),
    OPTIONS_TEXT("requeue", "NAME", &options.requeue, "try a dead one again, or all"),
    OPTIONS_TEXT("redis", "ADDRESS", &options.redis, "default: REDIS in the environment"),
    OPTIONS_TEXT("queue", "NAME", &options.queue, "default: tasks"),
    OPTIONS_NUMBER("timeout", "SECONDS", &options.timeout, 0.5, 3600, "of Redis; default: 5"),
    OPTIONS_TEXT("data", "TEXT", &options.data, "of the task"),
    OPTIONS_TEXT("id", "NAME", &options.id, "of the task; two of one name are one task"),
    OPTIONS_TEXT("key", "NAME", &options.key, "tasks with the same key take effect once"),
    OPTIONS_NUMBER("priority", "N", &options.priority, 0, 2, "2 comes before 1 before 0"),
    OPTIONS_NUMBER("delay", "SECONDS", &options.delay, 0, 1e9, "do it so much later"),
    OPTIONS_NUMBER("at", "TIME", &options.at, 0, 1e11, "do it then: seconds since 1970"),
    OPTIONS_TEXT("after", "NAMES", &options.after, "do it after these, with commas between them"),
    OPTIONS_NUMBER("attempts", "N", &options.attempts, 1, 1e6, "default: 5"),
    OPTIONS_NUMBER("count", "N", &options.count, 1, 1e8, "add so many such tasks"),
    OPTIONS_TEXT("name", "NAME", &options.name,
                 "of the worker, its own; default: host and process"),
    OPTIONS_NUMBER("slots", "N", &options.slots, 1, TASK_QUEUE_BATCH,
                   "tasks at once; default: 100"),
    OPTIONS_NUMBER("lease", "SECONDS", &options.lease, 0.1, 3600,
                   "after which a silent worker is taken for dead; default: 5"),
    OPTIONS_FLAG("quiet", &options.quiet, "the worker prints no outcomes"),
    OPTIONS_FLAG("child", &options.child, "the worker ends when its input does"),
};

static bool are_right(void)
{
    const char *names[] = {options.queue, options.name, options.id, options.key};
    int commands = options.goal + options.chaos + options.worker + !!options.enqueue +
                   options.metrics + options.dead + !!options.requeue;
    for (size_t i = 0; i < CONC_LEN(names); i++)
        if (names[i] && !task_queue_is_name(names[i]))
            return false;
    return commands <= 1;
}

static int run_command(void)
{
    static fleet demo = {.play = show, .slots = "1", .lease = "1"};
    static fleet goal = {.play = measure, .slots = "500", .lease = "5", .is_quiet = true};
    static fleet losses = {.play = chaos, .slots = "20", .lease = "1", .is_quiet = true};
    bool has_command = options.enqueue || options.metrics || options.dead || options.requeue;
    if (options.worker)
        return conc_main(worker_app, NULL);
    if (has_command)
        return conc_main(command_app, NULL);
    if (options.goal)
        return conc_main(fleet_app, &goal);
    return conc_main(fleet_app, options.chaos ? &losses : &demo);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* the workers write there, too */
    options.redis = getenv("REDIS");
    int status = options_read(fields, CONC_LEN(fields), argc, argv, "tasks [command] [options]",
                              "A task queue on Redis. Without a command it shows what it can.");
    if (status >= 0)
        return status;
    if (!are_right()) {
        fprintf(stderr, "tasks: two commands, or a name of more than 64 characters, or with "
                        "others than -_.:/@+, letters and digits\n");
        return 2;
    }
    status = run_command();
    bool is_written = fflush(stdout) == 0 && !ferror(stdout);
    if (!is_written)
        fprintf(stderr, "tasks: the output could not be written\n");
    return status || is_written ? status : 1;
}
