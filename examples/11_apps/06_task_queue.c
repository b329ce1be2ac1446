/* Task queue. Tasks wait in Redis, and workers on any number of machines, which know nothing but
   the address of Redis, carry them out: by priority, at a time, after other tasks, again after a
   failure. Workers may be killed and Redis restarted at any moment: no task is lost, each is done
   at least once, and a task with a key takes effect once.

   cc 06_task_queue.c -o tasks -lhiredis
   ./tasks             # its own Redis and five workers: priorities, retries, a worker is killed
   ./tasks --goal      # 50,000 tasks over five workers; the goal is 10,000 a second
   ./tasks --chaos     # workers are killed and frozen, Redis is killed; then the accounts

   Redis 7 or later keeps the tasks in its append-only file, here before it answers:
   redis-server --port 6380 --appendonly yes --appendfsync always
   export REDIS=127.0.0.1:6380
   ./tasks --worker                                  # as many as you like, and where you like
   ./tasks --enqueue deposit --data "ada 10" --key invoice-7
   ./tasks --enqueue primes --data 1000000 --id count --priority 2 --delay 1.5
   ./tasks --enqueue print --data "counted" --after count --attempts 3
   ./tasks --metrics                                 # in Prometheus's text format
   ./tasks --dead                                    # the dead letters
   ./tasks --requeue all                             # or the name of one

   --help lists all options. PASSWORD in the environment is for Redis. It runs on the real clock: on
   the virtual one other processes have no time to answer. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/options.h"
#include "../common/redis.h"
#include <signal.h>
#include <sys/random.h>
#include <sys/wait.h>

enum {
    WORKERS = 5,
    HIGHEST = 2, /* priority */
    BATCH = 500, /* tasks in one call */
    ATTEMPTS = 10,
    GRACE = 2, /* seconds for the last words of a worker that ends */
    DATA_LIMIT = 64 * 1024
};

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

typedef struct {
    redis_client redis;
    bool is_loaded, has_answered, is_worker;
    char complaint[160];
} queue;

typedef struct worker worker;

/* A task that a worker has taken. */
typedef struct task {
    struct task *next, *previous, *next_finished;
    worker *worker;
    redis_reply reply; /* the texts up to data are borrowed from it */
    const char *priority, *entry, *id, *run, *kind, *data;
    long long failures;
    bool has_failed;
    char text[160]; /* why it has failed; of a task that is done, its effect: a command of Redis */
    char pause[16]; /* in milliseconds, before the next attempt */
} task;

struct worker {
    queue queue;
    redis_client bell; /* tells of new tasks: on a connection of its own, as the command blocks */
    char name[96];
    bool is_idle;
    double pause; /* until a task is due, in seconds */
    conc_group running;
    int running_count;
    conc_event freed;       /* a slot */
    task *taken;            /* until they are reported: their leases are renewed */
    task *finished, **last; /* those of them that wait to be reported */
    conc_event has_finished;
};

static const char *library(void);
static int run_handler(task *t);

/* ---- calls of the queue's functions, which are in Redis ------------------------------------- */

static int queue_close(queue *q) { return redis_close(&q->redis); }

CONC_AUTO_TYPE(queue, queue_close);

static queue queue_on(const char *address)
{
    const char *password = getenv("PASSWORD");
    return (queue){.redis = {.address = address, .password = password, .timeout = options.timeout}};
}

static int try_call(queue *q, redis_pipeline *p)
{
    if (!q->is_loaded)
        CONC_TRY(redis_command(&q->redis, NULL, "FUNCTION LOAD REPLACE %s", library()));
    int rc = redis_pipeline_run(&q->redis, p);
    q->is_loaded = rc != -EIO || !strstr(conc_last_error(), "Function not found");
    return rc;
}

/* May the same call succeed a little later? */
static bool may_pass(const queue *q, int rc)
{
    const char *words = conc_last_error();
    if (rc == -EIO && (strstr(words, "LOADING") || strstr(words, "Function not found")))
        return true; /* Redis reads its file; or it is a new one, without functions */
    if (!q->has_answered || rc == -ECANCELED || rc == -EINVAL || rc == -ENOMEM)
        return false;
    return q->is_worker || rc == -ECONNRESET || rc == -ECONNREFUSED;
}

static void complain_once(queue *q)
{
    const char *words = conc_last_error();
    if (strcmp(q->complaint, words) != 0)
        fprintf(stderr, "tasks: %s; trying again\n", words);
    snprintf(q->complaint, sizeof q->complaint, "%s", words);
}

/* Sends the calls, and again until they are answered: it does no harm if a function is called twice
   with the same arguments. A worker that Redis has answered once does not give up. */
static int call(queue *q, redis_pipeline *p)
{
    for (int attempt = 1;; attempt++) {
        int rc = try_call(q, p);
        bool is_last = !q->is_worker && attempt == ATTEMPTS;
        if (rc == -ECONNREFUSED && !q->has_answered)
            return conc_fail(rc, "%s; to start one: redis-server --port 6379 --appendonly yes",
                             conc_last_error());
        if (rc < 0 && (is_last || !may_pass(q, rc)))
            return rc;
        if (rc >= 0) {
            q->has_answered = true;
            q->complaint[0] = 0;
            return 0;
        }
        if (q->is_worker)
            complain_once(q);
        CONC_TRY(conc_sleep(0.2 * conc_random(0.5, 1)));
    }
}

/* A call with many arguments: those of up to BATCH tasks. */
typedef struct {
    int count;
    const char *words[5 + BATCH * 9];
} arguments;

static void put(arguments *a, const char *word) { a->words[a->count++] = word; }

static void put_call(arguments *a, const char *function)
{
    a->count = 0;
    put(a, "FCALL");
    put(a, function);
    put(a, "1");
    put(a, options.queue);
}

static int add_call(redis_pipeline *p, arguments *a)
{
    return redis_pipeline_add_argv(p, a->count, a->words, NULL);
}

static int call_with(queue *q, arguments *a)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(add_call(&p, a));
    CONC_TRY(call(q, &p));
    return (int)p.replies[0]->integer;
}

/* ---- a worker: takes tasks, runs them at once, reports them in batches ---------------------- */

static void forget(task *t)
{
    *(t->previous ? &t->previous->next : &t->worker->taken) = t->next;
    if (t->next)
        t->next->previous = t->previous;
    redis_reply_free(&t->reply);
    free(t);
}

/* The pause doubles, and is random, so that tasks do not come back all at the same moment. */
static void fail_task(task *t)
{
    double pause = 0.2;
    for (int i = 0; i < t->failures && pause < 60; i++)
        pause *= 2;
    t->has_failed = true;
    snprintf(t->pause, sizeof t->pause, "%.0f", pause * 1000 * conc_random(0.5, 1));
    snprintf(t->text, sizeof t->text, "%s", conc_last_error());
}

static void print_outcome(const task *t)
{
    if (t->has_failed)
        printf("  %s  %-10s failed: %s\n", t->worker->name, t->id, t->text);
    else
        printf("  %s  %-10s done\n", t->worker->name, t->id);
}

/* What is cut short, as the worker ends, is not reported: the worker gives it back. */
static void finish_task(task *t, int rc)
{
    worker *w = t->worker;
    w->running_count--;
    conc_event_set(&w->freed);
    if (rc == -ECANCELED) {
        forget(t);
        return;
    }
    if (rc < 0)
        fail_task(t);
    if (!options.quiet)
        print_outcome(t);
    *w->last = t;
    w->last = &t->next_finished;
    conc_event_set(&w->has_finished);
}

static int run_task(void *arg)
{
    finish_task(arg, run_handler(arg));
    return 0;
}

/* i: an integer, s: a string, a: an array, ?: anything */
static bool is_array(const redisReply *r, const char *types)
{
    bool is_right = r->type == REDIS_REPLY_ARRAY && r->elements == strlen(types);
    for (size_t i = 0; is_right && types[i]; i++) {
        int type = r->element[i]->type;
        is_right = (types[i] == 'i' && type == REDIS_REPLY_INTEGER) ||
                   (types[i] == 's' && type == REDIS_REPLY_STRING) || types[i] == '?' ||
                   (types[i] == 'a' && type == REDIS_REPLY_ARRAY);
    }
    return is_right;
}

/* Takes the task's reply out of the batch. */
static int start_task(worker *w, redisReply **reply)
{
    if (!is_array(*reply, "ssssssi"))
        return conc_fail(-EPROTO, "Redis answers with what is no task");
    task *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    redisReply **part = (*reply)->element;
    *t = (task){.worker = w, .reply = *reply, .next = w->taken};
    *reply = NULL;
    t->priority = part[0]->str;
    t->entry = part[1]->str;
    t->id = part[2]->str;
    t->run = part[3]->str;
    t->kind = part[4]->str;
    t->data = part[5]->str;
    t->failures = part[6]->integer;
    if (t->next)
        t->next->previous = t;
    w->taken = t;
    w->running_count++;
    int rc = conc_spawn(&w->running, run_task, t);
    if (rc < 0)
        finish_task(t, rc);
    return 0;
}

/* Takes as many tasks as there are free slots, and starts them. If the answer is lost, they come
   back when their leases end. */
static int take(worker *w)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add(&p, "FCALL tasks_take 1 %s %s %d %d", options.queue, w->name,
                                (int)options.slots - w->running_count,
                                (int)(options.lease * 1000)));
    CONC_TRY(call(&w->queue, &p));
    const redisReply *r = p.replies[0];
    if (!is_array(r, "ia"))
        return conc_fail(-EPROTO, "Redis answers with what is no batch of tasks");
    w->pause = (double)r->element[0]->integer / 1000;
    w->is_idle = r->element[1]->elements == 0;
    for (size_t i = 0; i < r->element[1]->elements; i++)
        CONC_TRY(start_task(w, &r->element[1]->element[i]));
    return 0;
}

/* Returns when there may be a task: one is added, or is due, or the last look was 0.1 s ago. */
static int wait_for_tasks(void *arg)
{
    worker *w = arg;
    int milliseconds = w->pause < 0.1 ? 1 + (int)(w->pause * 1000) : 100;
    const char *q = options.queue;
    int rc = redis_command(&w->bell, NULL,
                           "XREAD COUNT 1 BLOCK %d STREAMS %s:ready:2 %s:ready:1 %s:ready:0 $ $ $",
                           milliseconds, q, q, q);
    return rc < 0 ? conc_sleep(0.1) : 0;
}

static int take_tasks(worker *w)
{
    for (;;) {
        conc_event_clear(&w->freed);
        if (w->running_count >= (int)options.slots) {
            CONC_TRY(conc_event_wait(&w->freed));
            continue;
        }
        CONC_TRY(take(w));
        int rc = w->is_idle ? conc_timeout(options.timeout, wait_for_tasks, w) : 0;
        CONC_TRY(rc == -ETIMEDOUT ? 0 : rc);
    }
}

static int run_tasks(void *arg)
{
    worker *w = arg;
    CONC_TRY(conc_group_begin(&w->running));
    return conc_group_end(&w->running, take_tasks(w));
}

static void put_run(arguments *a, const task *t)
{
    put(a, t->priority);
    put(a, t->entry);
    put(a, t->id);
    put(a, t->run);
}

/* What Redis has not answered stays, and is reported again: it knows the runs it has heard of. */
static int report(worker *w)
{
    arguments a;
    int count = 0;
    put_call(&a, "tasks_finish");
    put(&a, w->name);
    for (task *t = w->finished; t && count < BATCH; t = t->next_finished, count++) {
        put_run(&a, t);
        put(&a, t->has_failed ? "failed" : "done");
        put(&a, t->text);
        put(&a, t->pause);
    }
    CONC_TRY(call_with(&w->queue, &a));
    while (count-- > 0) {
        task *t = w->finished;
        w->finished = t->next_finished;
        forget(t);
    }
    if (!w->finished)
        w->last = &w->finished;
    return 0;
}

/* Batches make themselves: what finishes while one is under way goes into the next. */
static int report_tasks(void *arg)
{
    worker *w = arg;
    for (;;) {
        conc_event_clear(&w->has_finished);
        if (w->finished)
            CONC_TRY(report(w));
        else
            CONC_TRY(conc_event_wait(&w->has_finished));
    }
}

/* Reports the rest, and gives back what is not done. */
static int leave(void *arg)
{
    worker *w = arg;
    CONC_AUTO(redis_pipeline, p) = {0};
    while (w->finished)
        CONC_TRY(report(w));
    CONC_TRY(redis_pipeline_add(&p, "FCALL tasks_leave 1 %s %s", options.queue, w->name));
    return call(&w->queue, &p);
}

static int renew_leases(void *arg)
{
    worker *w = arg;
    arguments a;
    for (;;) {
        CONC_AUTO(redis_pipeline, p) = {0};
        CONC_TRY(conc_sleep(options.lease / 3));
        for (const task *t = w->taken; t;) {
            put_call(&a, "tasks_renew");
            put(&a, w->name);
            for (int i = 0; i < BATCH && t; i++, t = t->next)
                put_run(&a, t);
            CONC_TRY(add_call(&p, &a));
        }
        if (p.count)
            CONC_TRY(call(&w->queue, &p));
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

/* Is there a Redis at all? If not, the worker ends; later it waits. */
static int greet(worker *w)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add(&p, "PING"));
    return call(&w->queue, &p);
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

static int worker_close(worker *w)
{
    while (w->taken)
        forget(w->taken);
    redis_close(&w->bell);
    return queue_close(&w->queue);
}

CONC_AUTO_TYPE(worker, worker_close);

static int worker_app(void *arg)
{
    CONC_AUTO(worker, w) = {.queue = queue_on(options.redis)};
    char host[64] = "";
    (void)arg;
    w.bell = w.queue.redis;
    w.bell.blocking = true;
    w.queue.is_worker = true;
    w.last = &w.finished;
    gethostname(host, sizeof host - 1);
    snprintf(w.name, sizeof w.name, "%s-%d", host, (int)getpid());
    if (options.name)
        snprintf(w.name, sizeof w.name, "%s", options.name);
    CONC_TRY(greet(&w));
    int rc = work(&w);
    conc_shield(GRACE, leave, &w);
    return rc;
}

/* ---- what tasks do -------------------------------------------------------------------------- */

static int run_noop(task *t) { return (void)t, 0; }

static int run_print(task *t)
{
    printf("%s\n", t->data);
    return 0;
}

static int run_sleep(task *t)
{
    char *end;
    double seconds = strtod(t->data, &end);
    bool is_right = end > t->data && !*end && seconds >= 0;
    return is_right ? conc_sleep(seconds) : conc_fail(-EINVAL, "sleep: not %s", t->data);
}

static int run_fail(task *t) { return conc_fail(-EIO, "it always fails: %s", t->data); }

/* Fails as often as its data says. */
static int run_flaky(task *t)
{
    bool fails = t->failures < atoi(t->data);
    return fails ? conc_fail(-EIO, "attempt %lld fails", t->failures + 1) : 0;
}

/* Poison: it kills each worker that runs it. */
static int run_crash(task *t) { return (void)t, raise(SIGKILL); }

/* "ACCOUNT AMOUNT", or "ACCOUNT AMOUNT SECONDS" that it takes. Redis changes the account at the
   moment at which it learns that the task is done. */
static int run_deposit(task *t)
{
    char account[32];
    int amount;
    double seconds = 0;
    if (sscanf(t->data, "%31s %d %lf", account, &amount, &seconds) < 2)
        return conc_fail(-EINVAL, "deposit: not %s", t->data);
    CONC_TRY(conc_sleep(seconds));
    snprintf(t->text, sizeof t->text, "HINCRBY %s:accounts %s %d", options.queue, account, amount);
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

/* What computes, does so in a thread: on the loop it would keep the leases from being renewed. */
static int run_primes(task *t)
{
    int below = atoi(t->data), count = CONC_TRY(conc_offload(count_primes, &below));
    snprintf(t->text, sizeof t->text, "HSET %s:primes %d %d", options.queue, below, count);
    return 0;
}

static const struct {
    const char *name;
    int (*run)(task *t);
} kinds[] = {{"noop", run_noop},       {"print", run_print},   {"sleep", run_sleep},
             {"deposit", run_deposit}, {"primes", run_primes}, {"flaky", run_flaky},
             {"fail", run_fail},       {"crash", run_crash}};

/* A kind that this worker does not know fails: there may be a worker that knows it. */
static int run_handler(task *t)
{
    for (size_t i = 0; i < CONC_LEN(kinds); i++)
        if (strcmp(kinds[i].name, t->kind) == 0)
            return kinds[i].run(t);
    return conc_fail(-ENOSYS, "unknown kind %s", t->kind);
}

/* ---- the queue, in Redis: functions in Lua, each of which happens as a whole or not at all ---

   tasks:task:ID    a hash, the task: state (waiting, delayed, ready, done, dead), kind, data, ...
   tasks:ready:P    a stream for each priority. A task in it that a worker has taken is pending, in
                    the stream's consumer group, until the worker reports what became of it
   tasks:delayed    tasks by the time before which they may not run, in milliseconds
   tasks:waiting    tasks that come after others, which tasks:after:OTHER names
   tasks:dead       tasks that failed too often, by time
   tasks:effect:KEY the task with this key that has taken effect

   The clock is that of Redis. Any call may be repeated when its answer was lost. */

/* clang-format off */
#define LUA(...) #__VA_ARGS__
static const char library_text[] = "#!lua name=conc_tasks\n" LUA(
local keep = 3600 /* seconds for which a task that is done, and its key, are known */
local highest = 2

local function now()
    local time = redis.call("TIME")
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function count(q, what, n)
    if n ~= 0 then redis.call("HINCRBY", q .. ":counters", what, n or 1) end
end

/* Puts a task that nothing holds back but time where it waits: its new state. */
local function place(q, id, priority, at, time)
    if at > time then
        redis.call("ZADD", q .. ":delayed", at, id)
        return "delayed"
    end
    redis.call("XADD", q .. ":ready:" .. priority, "*", "id", id)
    return "ready"
end

local function schedule(q, id, at)
    local task = q .. ":task:" .. id
    local priority = redis.call("HGET", task, "priority")
    redis.call("HSET", task, "state", place(q, id, priority, at, now()))
end

local function ready(q, id) schedule(q, id, 0) end

/* Takes the entry out of the stream: false if somebody has done that before. */
local function remove(q, priority, entry)
    local stream = q .. ":ready:" .. priority
    redis.call("XDEL", stream, entry)
    return redis.call("XACK", stream, "workers", entry) == 1
end

local function is_dead(q, id, why)
    local task = q .. ":task:" .. id
    local failures = redis.call("HINCRBY", task, "failures", 1)
    redis.call("HSET", task, "error", why)
    if failures < tonumber(redis.call("HGET", task, "attempts")) then return false end
    redis.call("HSET", task, "state", "dead")
    redis.call("ZADD", q .. ":dead", now(), id)
    count(q, "dead")
    return true
end

/* Those of the other tasks that are not done, and their number; or an error. */
local function not_done(q, others)
    local left, n = {}, 0
    for other in string.gmatch(others, "[^,]+") do
        local state = redis.call("HGET", q .. ":task:" .. other, "state")
        if not state then return nil, "NOTASK there is no task " .. other .. " to come after" end
        if state ~= "done" and not left[other] then
            left[other] = true
            n = n + 1
        end
    end
    return left, n
end

local function add_one(q, time, id, kind, data, key, after, priority, attempts, delay, at)
    local task = q .. ":task:" .. id
    if redis.call("EXISTS", task) == 1 then return 0 end
    local left, n = not_done(q, after)
    if not left then return nil, n end
    local state = "waiting"
    at = math.floor(math.max(at * 1000, time + delay * 1000))
    if n == 0 then
        state = place(q, id, priority, at, time)
    else
        redis.call("SADD", q .. ":waiting", id)
    end
    for other in pairs(left) do
        redis.call("SADD", q .. ":after:" .. other, id)
        redis.call("HSET", q .. ":task:" .. other, "followed", 1)
    end
    redis.call("HSET", task, "state", state, "kind", kind, "data", data, "key", key,
               "priority", priority, "attempts", attempts, "at", at, "left", n)
    return 1
end

local function add(keys, args)
    local q, time, sum = keys[1], now(), 0
    for i = 1, #args, 9 do
        local added, error = add_one(q, time, unpack(args, i, i + 8))
        if error then
            count(q, "enqueued", sum)
            return redis.error_reply(error)
        end
        sum = sum + added
    end
    count(q, "enqueued", sum)
    return sum
end

/* Makes ready what is due: how many milliseconds until the next will be. */
local function make_ready(q, limit)
    for _, id in ipairs(redis.call("ZRANGE", q .. ":delayed", "-inf", now(), "BYSCORE",
                                   "LIMIT", 0, limit)) do
        redis.call("ZREM", q .. ":delayed", id)
        if redis.call("HGET", q .. ":task:" .. id, "state") == "delayed" then ready(q, id) end
    end
    local next = redis.call("ZRANGE", q .. ":delayed", 0, 0, "WITHSCORES")
    return next[2] and math.max(0, next[2] - now()) or 1e9
end

/* Adds to the batch what a worker needs to know of a task. */
local function start(q, priority, e, batch, is_lost)
    local entry, id = e[1], e[2][2]
    local task = q .. ":task:" .. id
    local t = redis.call("HMGET", task, "state", "kind", "data", "failures")
    if is_lost and t[1] == "ready" then count(q, "taken_over") end
    if t[1] ~= "ready" or (is_lost and is_dead(q, id, "its worker was lost")) then
        return remove(q, priority, entry)
    end
    local run = redis.call("HINCRBY", task, "runs", 1)
    local failures = (t[4] or 0) + (is_lost and 1 or 0)
    batch[#batch + 1] = {tostring(priority), entry, id, tostring(run), t[2], t[3], failures}
    batch.waited = batch.waited + batch.now - string.match(entry, "%d+")
end

/* Up to `want` tasks, the highest priority first; before those, what a worker had that has not
   renewed its lease. One worker in each quarter of a lease looks for these. */
local function take(keys, args)
    local q, worker, want, lease = keys[1], args[1], tonumber(args[2]), tonumber(args[3])
    local pause, batch = make_ready(q, want), {now = now(), waited = 0}
    local looks = redis.call("SET", q .. ":looks", worker, "NX", "PX", math.ceil(lease / 4))
    for priority = highest, 0, -1 do
        local stream = q .. ":ready:" .. priority
        redis.pcall("XGROUP", "CREATE", stream, "workers", 0, "MKSTREAM")
        local lost = looks and #batch < want and redis.call("XAUTOCLAIM", stream, "workers",
            worker, lease, 0, "COUNT", want - #batch)[2]
        for _, e in ipairs(lost or {}) do start(q, priority, e, batch, true) end
    end
    for priority = highest, 0, -1 do
        local found = #batch < want and redis.call("XREADGROUP", "GROUP", "workers", worker,
            "COUNT", want - #batch, "STREAMS", q .. ":ready:" .. priority, ">")
        for _, e in ipairs(found and found[1][2] or {}) do start(q, priority, e, batch) end
    end
    if looks then redis.call("ZREMRANGEBYSCORE", q .. ":seen", 0, batch.now - keep * 1000) end
    count(q, "started", #batch)
    count(q, "waited_ms", batch.waited)
    redis.call("ZADD", q .. ":seen", batch.now, worker)
    return {math.floor(pause), batch}
end

/* The worker is alive; a run counts if it is the task's newest. */
local function renew(keys, args)
    local q, worker = keys[1], args[1]
    for i = 2, #args, 4 do
        local priority, entry, id, run = unpack(args, i, i + 3)
        if redis.call("HGET", q .. ":task:" .. id, "runs") == run then
            redis.call("XCLAIM", q .. ":ready:" .. priority, "workers", worker, 0, entry, "JUSTID")
        end
    end
    return 1
end

/* The effect is a command of Redis. It and the mark that it has happened come together. */
local function take_effect(q, id, key, effect)
    local mark = q .. ":effect:" .. key
    if effect == "" then return end
    if key ~= "" and redis.call("EXISTS", mark) == 1 then return count(q, "suppressed") end
    local words = {}
    for word in string.gmatch(effect, "%S+") do words[#words + 1] = word end
    local reply = redis.pcall(unpack(words))
    if type(reply) == "table" and reply.err then return reply.err end
    if key ~= "" then redis.call("SET", mark, id, "EX", keep) end
end

local function release_followers(q, id)
    for _, other in ipairs(redis.call("SMEMBERS", q .. ":after:" .. id)) do
        local task = q .. ":task:" .. other
        if redis.call("HINCRBY", task, "left", -1) == 0 then
            redis.call("SREM", q .. ":waiting", other)
            schedule(q, other, tonumber(redis.call("HGET", task, "at")))
        end
    end
    redis.call("DEL", q .. ":after:" .. id)
end

/* A task may be done twice, when its first worker was taken for dead and was not. Returns 1 if it
   was not done yet, and an error of the effect, if there is one. */
local function done(q, time, id, run, effect)
    local task = q .. ":task:" .. id
    local t = redis.call("HMGET", task, "state", "run", "key", "followed", "again:" .. run)
    if not t[1] or t[2] == run or t[5] then return 0 end /* it is known */
    local error = take_effect(q, id, t[3], effect)
    if t[1] == "done" then
        count(q, "repeated")
        redis.call("SADD", q .. ":repeated", id)
        redis.call("HSET", task, "again:" .. run, 1)
        return 0
    end
    if error then return 0, error end
    redis.call("HSET", task, "state", "done", "run", run, "ended", time)
    redis.call("EXPIRE", task, keep)
    if t[1] == "delayed" then redis.call("ZREM", q .. ":delayed", id) end
    if t[1] == "dead" then redis.call("ZREM", q .. ":dead", id) end
    if t[4] then release_followers(q, id) end
    return 1
end

local function failed(q, time, priority, entry, id, run, why, pause)
    local t = redis.call("HMGET", q .. ":task:" .. id, "state", "runs")
    if t[1] ~= "ready" then return remove(q, priority, entry) end
    if t[2] ~= run or not remove(q, priority, entry) then return end
    count(q, "failed")
    if not is_dead(q, id, why) then schedule(q, id, time + pause) end
end

local function count_done(q, worker, time, n)
    local second = q .. ":second:" .. math.floor(time / 1000)
    if n == 0 then return end
    count(q, "done", n)
    redis.call("HINCRBY", q .. ":workers", worker, n)
    redis.call("INCRBY", second, n)
    redis.call("EXPIRE", second, 15)
end

/* What became of runs. */
local function finish(keys, args)
    local q, worker, time, sum, entries = keys[1], args[1], now(), 0, {}
    for i = 2, #args, 7 do
        local priority, entry, id, run, outcome, text, pause = unpack(args, i, i + 6)
        local new, error = 0, text
        if outcome == "done" then new, error = done(q, time, id, run, text) end
        sum = sum + new
        if error then
            failed(q, time, priority, entry, id, run, error, tonumber(pause) or 1000)
        else
            entries[priority] = entries[priority] or {}
            table.insert(entries[priority], entry)
        end
    end
    for priority, list in pairs(entries) do
        local stream = q .. ":ready:" .. priority
        redis.call("XACK", stream, "workers", unpack(list))
        redis.call("XDEL", stream, unpack(list))
    end
    count_done(q, worker, time, sum)
    return sum
end

local function give_back(q, priority, entry)
    local e = redis.call("XRANGE", q .. ":ready:" .. priority, entry, entry)[1]
    local id = e and e[2][2] or ""
    remove(q, priority, entry)
    if redis.call("HGET", q .. ":task:" .. id, "state") == "ready" then ready(q, id) end
end

local function leave(keys, args)
    local q, worker = keys[1], args[1]
    for priority = highest, 0, -1 do
        local stream = q .. ":ready:" .. priority
        local taken
        repeat
            taken = redis.pcall("XPENDING", stream, "workers", "-", "+", 1000, worker)
            for _, e in ipairs(taken) do give_back(q, priority, e[1]) end
        until #taken == 0
        redis.pcall("XGROUP", "DELCONSUMER", stream, "workers", worker)
    end
    redis.call("ZREM", q .. ":seen", worker)
    return true
end

local function dead(keys)
    local lines = {}
    for _, id in ipairs(redis.call("ZRANGE", keys[1] .. ":dead", 0, -1)) do
        local t = redis.call("HMGET", keys[1] .. ":task:" .. id, "kind", "data", "failures",
                             "error")
        lines[#lines + 1] = string.format("%s: %s %s: failed %s times: %s", id, t[1] or "?",
                                          t[2] or "?", t[3] or "?", t[4] or "?")
    end
    return lines
end

local function requeue(keys, args)
    local q, n, ids = keys[1], 0, {args[1]}
    if args[1] == "all" then ids = redis.call("ZRANGE", q .. ":dead", 0, -1) end
    for _, id in ipairs(ids) do
        if redis.call("ZREM", q .. ":dead", id) == 1 then
            redis.call("HSET", q .. ":task:" .. id, "failures", 0)
            ready(q, id)
            n = n + 1
        end
    end
    return n
end

local function metrics(keys)
    local q, lines, running = keys[1], {}, 0
    local function line(name, value) lines[#lines + 1] = "tasks_" .. name .. " " .. value end
    local function counter(name) return redis.call("HGET", q .. ":counters", name) or 0 end
    for _, name in ipairs({"enqueued", "started", "done", "repeated", "failed", "taken_over",
                           "suppressed", "dead"}) do
        line(name .. "_total", counter(name))
    end
    for priority = highest, 0, -1 do
        local stream = q .. ":ready:" .. priority
        local pending = redis.pcall("XPENDING", stream, "workers")[1] or 0
        line("ready{priority=\"" .. priority .. "\"}", redis.call("XLEN", stream) - pending)
        running = running + pending
    end
    line("running", running)
    line("delayed", redis.call("ZCARD", q .. ":delayed"))
    line("waiting", redis.call("SCARD", q .. ":waiting"))
    line("dead", redis.call("ZCARD", q .. ":dead"))
    local recent, second = 0, redis.call("TIME")[1]
    for i = 1, 10 do recent = recent + (redis.call("GET", q .. ":second:" .. second - i) or 0) end
    line("done_per_second", recent / 10)
    line("waited_seconds_sum", counter("waited_ms") / 1000)
    line("waited_seconds_count", counter("started"))
    for _, worker in ipairs(redis.call("ZRANGE", q .. ":seen", 0, -1)) do
        local label = "{worker=\"" .. worker .. "\"}"
        line("done_by_worker_total" .. label, redis.call("HGET", q .. ":workers", worker) or 0)
        line("worker_seen_seconds_ago" .. label,
             (now() - redis.call("ZSCORE", q .. ":seen", worker)) / 1000)
    end
    line("append_only_file", string.match(redis.call("INFO", "persistence"), "aof_enabled:(%d)"))
    return lines
end

local function forget(keys)
    local cursor = "0"
    repeat
        local found = redis.call("SCAN", cursor, "MATCH", keys[1] .. ":*", "COUNT", 1000)
        cursor = found[1]
        if #found[2] > 0 then redis.call("UNLINK", unpack(found[2])) end
    until cursor == "0"
    return {}
end

redis.register_function("tasks_add", add)
redis.register_function("tasks_take", take)
redis.register_function("tasks_renew", renew)
redis.register_function("tasks_finish", finish)
redis.register_function("tasks_leave", leave)
redis.register_function("tasks_dead", dead)
redis.register_function("tasks_requeue", requeue)
redis.register_function("tasks_metrics", metrics)
redis.register_function("tasks_forget", forget)
);
/* clang-format on */

static const char *library(void) { return library_text; }

/* ---- commands ------------------------------------------------------------------------------- */

/* What a producer wants done. What is NULL is not wanted; times are in seconds. */
typedef struct {
    const char *kind, *data, *id, *key, *after, *priority, *attempts, *delay, *at;
} order;

static const char *or_else(const char *text, const char *otherwise)
{
    return text ? text : otherwise;
}

static void put_order(arguments *a, const order *o)
{
    put(a, o->id);
    put(a, o->kind);
    put(a, or_else(o->data, ""));
    put(a, or_else(o->key, ""));
    put(a, or_else(o->after, ""));
    put(a, or_else(o->priority, "0"));
    put(a, or_else(o->attempts, "5"));
    put(a, or_else(o->delay, "0"));
    put(a, or_else(o->at, "0"));
}

/* Adds up to BATCH tasks: how many of them were not there yet. One that comes after a task that is
   not there is refused, and so are those behind it. */
static int enqueue(queue *q, const order *orders, int count)
{
    arguments a;
    put_call(&a, "tasks_add");
    for (int i = 0; i < count; i++)
        put_order(&a, &orders[i]);
    return call_with(q, &a);
}

typedef struct {
    order orders[BATCH];
    char ids[BATCH][160], keys[BATCH][160];
} batch;

/* The tasks ID-1 to ID-count. With a key, each has one of its own: KEY-1 ... */
static int enqueue_range(queue *q, batch *b, const order *o, int count)
{
    for (int done = 0; done < count; done += BATCH) {
        int n = count - done < BATCH ? count - done : BATCH;
        for (int i = 0; i < n; i++) {
            snprintf(b->ids[i], sizeof b->ids[i], "%s-%d", o->id, done + i + 1);
            snprintf(b->keys[i], sizeof b->keys[i], "%s-%d", or_else(o->key, ""), done + i + 1);
            b->orders[i] = *o;
            b->orders[i].id = b->ids[i];
            b->orders[i].key = o->key ? b->keys[i] : NULL;
        }
        CONC_TRY(enqueue(q, b->orders, n));
    }
    return count;
}

static int enqueue_many(queue *q, const order *o, int count)
{
    batch *b = malloc(sizeof *b);
    int rc = b ? enqueue_range(q, b, o, count) : -ENOMEM;
    free(b);
    return rc;
}

static void make_id(char id[17])
{
    unsigned char bytes[8] = {0};
    while (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        continue;
    for (size_t i = 0; i < sizeof bytes; i++)
        sprintf(id + 2 * i, "%02x", bytes[i]);
}

static int enqueue_app(void *arg)
{
    char id[17], priority[8], attempts[8], delay[32], at[32];
    order o = {options.enqueue, options.data, options.id, options.key, options.after,
               priority,        attempts,     delay,      at};
    CONC_AUTO(queue, q) = queue_on(options.redis);
    (void)arg;
    make_id(id);
    o.id = or_else(options.id, id);
    snprintf(priority, sizeof priority, "%d", (int)options.priority);
    snprintf(attempts, sizeof attempts, "%d", (int)options.attempts);
    snprintf(delay, sizeof delay, "%.3f", options.delay);
    snprintf(at, sizeof at, "%.3f", options.at);
    if (strlen(o.data) > DATA_LIMIT)
        return conc_fail(-EMSGSIZE, "the data is longer than %d bytes", DATA_LIMIT);
    if (options.count > 1)
        CONC_TRY(enqueue_many(&q, &o, (int)options.count));
    else if (CONC_TRY(enqueue(&q, &o, 1)) == 0)
        fprintf(stderr, "tasks: there is a task %s already\n", o.id);
    printf("%s\n", o.id);
    return 0;
}

/* Calls the function, and prints its lines, or its number. */
static int print_call(queue *q, const char *function, const char *argument)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add(&p, "FCALL %s 1 %s %s", function, options.queue, argument));
    CONC_TRY(call(q, &p));
    const redisReply *r = p.replies[0];
    if (r->type == REDIS_REPLY_INTEGER)
        printf("%lld\n", r->integer);
    for (size_t i = 0; r->type == REDIS_REPLY_ARRAY && i < r->elements; i++)
        printf("%s\n", or_else(r->element[i]->str, ""));
    return 0;
}

static int print_app(void *arg)
{
    CONC_AUTO(queue, q) = queue_on(options.redis);
    return print_call(&q, arg, or_else(options.requeue, ""));
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
    char folder[256], address[64], queue[32];
    conc_child redis; /* not started if the program was given an address */
    queue control;
    conc_group group;
    member members[WORKERS];
};

/* The shell between this program and Redis ends Redis when this program ends, however that is. */
static int start_redis(fleet *f)
{
    static const char script[] = "redis-server \"$@\" & read end; kill -9 $!";
    const char *port = strrchr(f->address, ':') + 1;
    const char *argv[] = {"sh",     "-c", script,         "sh",      "--bind",        "127.0.0.1",
                          "--port", port, "--dir",        f->folder, "--logfile",     "log",
                          "--save", "",   "--appendonly", "yes",     "--appendfsync", "always",
                          NULL};
    f->redis = (conc_child){.argv = argv, .input = CONC_PIPE, .group = true, .grace = 5};
    return conc_child_start(&f->redis);
}

static int restart_redis(fleet *f)
{
    CONC_TRY(conc_child_kill(&f->redis, SIGKILL));
    CONC_TRY(conc_child_close(&f->redis));
    return start_redis(f);
}

static int check_installed(void)
{
    const char *argv[] = {"redis-server", "--version", NULL};
    CONC_AUTO(conc_child, version) = {.argv = argv, .output = CONC_NULL};
    int rc = conc_child_start(&version);
    if (rc == -ENOENT)
        return conc_fail(rc, "redis-server is not installed; to use one that runs elsewhere: "
                             "--redis HOST:6379");
    return rc < 0 ? rc : conc_child_wait(&version, NULL);
}

static int open_own_redis(fleet *f)
{
    const char *temporary = getenv("TMPDIR");
    CONC_TRY(check_installed());
    snprintf(f->folder, sizeof f->folder, "%s/conc-tasks-XXXXXX", temporary ? temporary : "/tmp");
    if (!mkdtemp(f->folder)) {
        int rc = conc_fail(-errno, "%s: %s", f->folder, strerror(errno));
        f->folder[0] = 0;
        return rc;
    }
    int fd = CONC_TRY(conc_listen("127.0.0.1:0")); /* a free port */
    int rc = conc_address(fd, false, f->address, sizeof f->address);
    conc_close(fd);
    CONC_TRY(rc);
    return start_redis(f);
}

/* Its queue has a name of its own, as a Redis may have others. */
static int fleet_open(fleet *f)
{
    snprintf(f->queue, sizeof f->queue, "tasks-%d", (int)getpid());
    options.queue = f->queue;
    if (options.redis)
        snprintf(f->address, sizeof f->address, "%s", options.redis);
    else
        CONC_TRY(open_own_redis(f));
    f->control = queue_on(f->address);
    f->control.redis.attempts = options.redis ? 5 : 100; /* its own is just starting */
    f->control.redis.max_delay = 0.1;
    return print_call(&f->control, "tasks_forget", "");
}

static int clean_up(void *arg)
{
    fleet *f = arg;
    const char *argv[] = {"rm", "-rf", f->folder, NULL};
    CONC_AUTO(conc_child, child) = {.argv = argv};
    if (!f->folder[0])
        return f->control.has_answered ? print_call(&f->control, "tasks_forget", "") : 0;
    queue_close(&f->control);
    conc_child_close(&f->redis);
    CONC_TRY(conc_child_start(&child));
    return conc_child_wait(&child, NULL);
}

static int fleet_close(fleet *f)
{
    conc_shield(10, clean_up, f);
    queue_close(&f->control);
    return conc_child_close(&f->redis);
}

CONC_AUTO_TYPE(fleet, fleet_close);

static int run_member(member *m, int *status)
{
    const fleet *f = m->of;
    const char *argv[] = {"/proc/self/exe", "--worker", "--child", "--name", m->name,
                          "--redis",        f->address, "--queue", f->queue, "--slots",
                          f->slots,         "--lease",  f->lease,  NULL,     NULL};
    if (f->is_quiet)
        argv[CONC_LEN(argv) - 2] = "--quiet";
    m->process = (conc_child){.argv = argv, .input = CONC_PIPE, .group = true, .grace = 5};
    CONC_TRY(conc_child_start(&m->process));
    int rc = conc_child_wait(&m->process, status);
    conc_child_close(&m->process);
    return rc;
}

/* Starts the worker again whenever it has been killed. */
static int supervise(void *arg)
{
    member *m = arg;
    int status;
    for (int ends = 0; ends < ATTEMPTS;) {
        CONC_TRY(run_member(m, &status));
        ends += !WIFSIGNALED(status);
        if (!m->of->is_quiet)
            printf("  %s  has ended; another takes its place\n", m->name);
        CONC_TRY(conc_sleep(0.1));
    }
    return conc_fail(-ECHILD, "the worker %s ends again and again", m->name);
}

static int start_workers(fleet *f)
{
    for (int i = 0; i < WORKERS; i++) {
        f->members[i].of = f;
        snprintf(f->members[i].name, sizeof f->members[i].name, "w%d", i + 1);
        CONC_TRY(conc_spawn(&f->group, supervise, &f->members[i]));
    }
    return 0;
}

static int fleet_app(void *arg)
{
    CONC_AUTO(fleet, f) = *(fleet *)arg;
    CONC_TRY(fleet_open(&f));
    CONC_TRY(conc_group_begin(&f.group));
    int rc = f.play(&f);
    conc_group_cancel(&f.group);
    return conc_group_end(&f.group, rc);
}

/* ---- waiting, with progress ----------------------------------------------------------------- */

typedef struct {
    long long enqueued, done, repeated, taken_over, dead;
} counts;

static int get_counts(fleet *f, counts *c)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    long long *numbers[] = {&c->enqueued, &c->done, &c->repeated, &c->taken_over};
    CONC_TRY(redis_pipeline_add(&p, "ZCARD %s:dead", f->queue));
    CONC_TRY(
        redis_pipeline_add(&p, "HMGET %s:counters enqueued done repeated taken_over", f->queue));
    CONC_TRY(call(&f->control, &p));
    c->dead = p.replies[0]->integer;
    if (!is_array(p.replies[1], "????"))
        return conc_fail(-EPROTO, "Redis answers with what are no counts");
    for (size_t i = 0; i < CONC_LEN(numbers); i++)
        *numbers[i] = atoll(or_else(p.replies[1]->element[i]->str, ""));
    return 0;
}

static void show_progress(const counts *c, int total, double *next)
{
    bool is_terminal = isatty(STDOUT_FILENO);
    if (conc_now() < *next)
        return;
    *next = conc_now() + (is_terminal ? 0.1 : 1);
    printf(is_terminal ? "%lld of %d\r" : "%lld of %d\n", c->done, total);
}

/* Until so many are done, or dead. */
static int wait_for(fleet *f, int total, bool has_progress, counts *c)
{
    double next = conc_now() + 1;
    for (;;) {
        CONC_TRY(get_counts(f, c));
        if (c->done + c->dead >= total)
            return 0;
        if (has_progress)
            show_progress(c, total, &next);
        CONC_TRY(conc_sleep(0.02));
    }
}

/* ---- what it shows by itself ---------------------------------------------------------------- */

static int show_priorities(fleet *f)
{
    const order orders[] = {{"sleep", "0.1", "low", .priority = "0"},
                            {"sleep", "0.1", "normal", .priority = "1"},
                            {"sleep", "0.1", "high", .priority = "2"}};
    printf(
        "Nine tasks, the lowest priority first, and then five workers, one task at a time each\n");
    for (size_t i = 0; i < CONC_LEN(orders); i++)
        CONC_TRY(enqueue_many(&f->control, &orders[i], 3));
    CONC_TRY(start_workers(f));
    counts c = {0};
    return wait_for(f, 9, false, &c);
}

static int show_rules(fleet *f)
{
    const order orders[] = {
        {"sleep", "0.1", .id = "download"},
        {"sleep", "0.1", .id = "parse", .after = "download"},
        {"sleep", "0.1", .id = "report", .after = "download,parse", .priority = "2"},
        {"noop", .id = "later", .delay = "1"},
        {"flaky", "2", .id = "flaky"},
        {"fail", "for show", .id = "hopeless", .attempts = "3"},
        {"deposit", "ada 10", .id = "pay", .key = "invoice-7"},
        {"deposit", "ada 10", .id = "pay-again", .key = "invoice-7"},
    };
    printf("Tasks after others, one in a second, one that fails twice, one that always fails, and\n"
           "two with the same key\n");
    CONC_TRY(enqueue(&f->control, orders, (int)CONC_LEN(orders)));
    counts c = {0};
    return wait_for(f, 9 + (int)CONC_LEN(orders), false, &c);
}

/* Kills the worker that has the task, and Redis. */
static int show_losses(fleet *f)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(enqueue(&f->control, &(order){"sleep", "0.5", .id = "long"}, 1));
    CONC_TRY(redis_pipeline_add(&p, "XPENDING %s:ready:0 workers - + 1", f->queue));
    do
        CONC_TRY(call(&f->control, &p));
    while (!is_array(p.replies[0], "a"));
    if (!is_array(p.replies[0]->element[0], "ssii"))
        return conc_fail(-EPROTO, "Redis answers with what is no pending task");
    const char *name = p.replies[0]->element[0]->element[1]->str;
    printf("The worker %s has the task long, and is killed%s\n", name,
           f->folder[0] ? "; so is Redis" : "");
    for (int i = 0; i < WORKERS; i++)
        if (strcmp(f->members[i].name, name) == 0)
            CONC_TRY(conc_child_kill(&f->members[i].process, SIGKILL));
    if (f->folder[0])
        CONC_TRY(restart_redis(f));
    counts c = {0};
    return wait_for(f, 18, false, &c);
}

static int show(fleet *f)
{
    CONC_TRY(show_priorities(f));
    CONC_TRY(show_rules(f));
    CONC_TRY(show_losses(f));
    printf("Dead letters\n");
    CONC_TRY(print_call(&f->control, "tasks_dead", ""));
    printf("Metrics\n");
    return print_call(&f->control, "tasks_metrics", "");
}

/* ---- the goal ------------------------------------------------------------------------------- */

enum { GOAL_TASKS = 50000, GOAL_RATE = 10000 };

static int enqueue_goal(void *arg)
{
    fleet *f = arg;
    return enqueue_many(&f->control, &(order){"noop", .id = "t"}, GOAL_TASKS);
}

/* How many workers have done something. */
static int print_shares(fleet *f)
{
    int shares = 0;
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add(&p, "HGETALL %s:workers", f->queue));
    CONC_TRY(call(&f->control, &p));
    const redisReply *r = p.replies[0];
    for (size_t i = 0; i + 1 < r->elements; i += 2, shares++)
        printf("  %s %s\n", or_else(r->element[i]->str, ""), or_else(r->element[i + 1]->str, ""));
    return shares;
}

static int wait_for_workers(fleet *f)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add(&p, "ZCARD %s:seen", f->queue));
    for (;;) {
        CONC_TRY(call(&f->control, &p));
        if (p.replies[0]->integer == WORKERS)
            return 0;
        CONC_TRY(conc_sleep(0.02));
    }
}

static int measure(fleet *f)
{
    counts c = {0};
    CONC_TRY(start_workers(f));
    CONC_TRY(wait_for_workers(f));
    double start = conc_now();
    CONC_TRY(conc_spawn(&f->group, enqueue_goal, f));
    CONC_TRY(wait_for(f, GOAL_TASKS, true, &c));
    double seconds = conc_now() - start;
    printf("%d tasks in %.2f s over %d workers: %.0f a second; the goal is %d\n", GOAL_TASKS,
           seconds, WORKERS, GOAL_TASKS / seconds, GOAL_RATE);
    int shares = CONC_TRY(print_shares(f));
    printf("%lld enqueued, %lld done, %lld done twice, %lld dead\n", c.enqueued, c.done, c.repeated,
           c.dead);
    bool is_right = c.enqueued == GOAL_TASKS && c.done == GOAL_TASKS && shares == WORKERS;
    return is_right ? 0 : conc_fail(-EPROTO, "the counts are wrong");
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

typedef struct {
    fleet *of;
    int kills, restarts;
} reaper;

static int kill_workers(void *arg)
{
    reaper *r = arg;
    for (;;) {
        CONC_TRY(conc_sleep(conc_random(0.1, 0.4)));
        member *m = &r->of->members[(int)conc_random(1, WORKERS)];
        r->kills += conc_child_kill(&m->process, SIGKILL) == 0;
    }
}

static int kill_redis(void *arg)
{
    reaper *r = arg;
    while (r->of->folder[0] && r->restarts < 2) {
        CONC_TRY(conc_sleep(1.2));
        CONC_TRY(restart_redis(r->of));
        r->restarts++;
    }
    return 0;
}

static int run_chaos(reaper *r, counts *c)
{
    fleet *f = r->of;
    conc_group g = {0};
    const order keyed = {"deposit", "keyed 1 0.05", .id = "keyed", .key = "k", .attempts = "100"};
    const order plain = {"deposit", "plain 1 0.05", .id = "plain", .attempts = "100"};
    CONC_TRY(start_workers(f));
    CONC_TRY_IN(&g, conc_spawn(&g, kill_workers, r));
    CONC_TRY_IN(&g, conc_spawn(&g, kill_redis, r));
    CONC_TRY_IN(&g, conc_spawn(&g, freeze, f));
    CONC_TRY_IN(&g, enqueue_many(&f->control, &keyed, CHAOS_TASKS / 2));
    CONC_TRY_IN(&g, enqueue_many(&f->control, &plain, CHAOS_TASKS / 2));
    CONC_TRY_IN(&g, wait_for(f, CHAOS_TASKS, true, c));
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static int chaos(fleet *f)
{
    counts c = {0};
    reaper r = {.of = f};
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(run_chaos(&r, &c));
    CONC_TRY(redis_pipeline_add(&p, "HMGET %s:accounts keyed plain", f->queue));
    CONC_TRY(call(&f->control, &p));
    if (!is_array(p.replies[0], "ss"))
        return conc_fail(-EPROTO, "Redis has lost the accounts");
    int keyed = atoi(p.replies[0]->element[0]->str);
    int plain = atoi(p.replies[0]->element[1]->str);
    printf("%d workers killed, one frozen; Redis killed %d times\n", r.kills, r.restarts);
    printf("%lld enqueued, %lld done, %lld dead; %lld taken over, %lld done twice\n", c.enqueued,
           c.done, c.dead, c.taken_over, c.repeated);
    printf("%d deposits with keys: %d; %d without: %d\n", CHAOS_TASKS / 2, keyed, CHAOS_TASKS / 2,
           plain);
    bool is_right = c.done == CHAOS_TASKS && keyed == CHAOS_TASKS / 2 && plain >= CHAOS_TASKS / 2 &&
                    plain <= CHAOS_TASKS / 2 + c.repeated;
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
    OPTIONS_NUMBER("priority", "N", &options.priority, 0, HIGHEST, "2 comes before 1 before 0"),
    OPTIONS_NUMBER("delay", "SECONDS", &options.delay, 0, 1e9, "do it so much later"),
    OPTIONS_NUMBER("at", "TIME", &options.at, 0, 1e11, "do it then: seconds since 1970"),
    OPTIONS_TEXT("after", "NAMES", &options.after, "do it after these, with commas between them"),
    OPTIONS_NUMBER("attempts", "N", &options.attempts, 1, 1e6, "default: 5"),
    OPTIONS_NUMBER("count", "N", &options.count, 1, 1e8, "add so many such tasks"),
    OPTIONS_TEXT("name", "NAME", &options.name,
                 "of the worker, its own; default: host and process"),
    OPTIONS_NUMBER("slots", "N", &options.slots, 1, 10000, "tasks at once; default: 100"),
    OPTIONS_NUMBER("lease", "SECONDS", &options.lease, 0.1, 3600,
                   "after which a silent worker is taken for dead; default: 5"),
    OPTIONS_FLAG("quiet", &options.quiet, "the worker prints no outcomes"),
    OPTIONS_FLAG("child", &options.child, "the worker ends when its input does"),
};

/* Names stand in keys of Redis and in labels of metrics, and commas between them. NULL is right. */
static bool is_name(const char *text, size_t most, bool is_list)
{
    static const char letters[] = ",-_.:/@+0123456789abcdefghijklmnopqrstuvwxyz"
                                  "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    if (!text)
        return true;
    size_t size = strlen(text);
    return size > 0 && size <= most && strspn(text, letters + !is_list) == size;
}

static bool are_right(void)
{
    int commands = options.goal + options.chaos + options.worker + !!options.enqueue +
                   options.metrics + options.dead + !!options.requeue;
    return commands <= 1 && is_name(options.queue, 64, false) && is_name(options.name, 64, false) &&
           is_name(options.id, 128, false) && is_name(options.key, 128, false) &&
           is_name(options.after, 4096, true) && is_name(options.requeue, 128, false);
}

static int run_command(void)
{
    static fleet demo = {.play = show, .slots = "1", .lease = "1"};
    static fleet goal = {.play = measure, .slots = "500", .lease = "5", .is_quiet = true};
    static fleet losses = {.play = chaos, .slots = "20", .lease = "1", .is_quiet = true};
    if (options.worker)
        return conc_main(worker_app, NULL);
    if (options.enqueue)
        return conc_main(enqueue_app, NULL);
    if (options.metrics)
        return conc_main(print_app, "tasks_metrics");
    if (options.dead)
        return conc_main(print_app, "tasks_dead");
    if (options.requeue)
        return conc_main(print_app, "tasks_requeue");
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
        fprintf(stderr, "tasks: two commands, or a name with other characters than -_.:/@+, "
                        "letters and digits\n");
        return 2;
    }
    status = run_command();
    bool is_written = fflush(stdout) == 0 && !ferror(stdout);
    if (!is_written)
        fprintf(stderr, "tasks: the output could not be written\n");
    return status || is_written ? status : 1;
}
