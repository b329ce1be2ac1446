/* task_queue.h - tasks that wait in Redis until a worker, in any process on any machine, runs them
 *
 *     CONC_AUTO(task_queue, q) = {.redis = {.address = "127.0.0.1:6379"}, .name = "tasks"};
 *     task_order order = {.kind = "deposit", .data = "ada 10", .id = "t1", .key = "invoice-7"};
 *     CONC_TRY(task_queue_add(&q, &order));
 *
 * and in a worker, which reports finished runs, and renews the leases of the others:
 *
 *     task_run *runs[TASK_QUEUE_BATCH];
 *     int n = CONC_TRY(task_queue_take(&q, "w1", 10, 5, runs, &pause));
 *     ... // run them
 *     CONC_TRY(task_queue_report(&q, "w1", runs, n));
 *
 * A task is done at least once: if its worker is silent for longer than the lease, another worker
 *   gets it. A task's effect, a Redis command, happens when the task is reported as done; of
 *   several tasks with the same key only one takes effect. All calls wait. They retry while Redis
 *   restarts, for a few seconds, or forever if .patient. They call functions in Redis, which are in
 *   task_queue.lua.h.
 * Needs Redis 7 or later, with an append-only file to survive restarts. Include conc_sync.h before,
 *   and conc_pool.h if the server has a host name. */
#ifndef TASK_QUEUE_H
#define TASK_QUEUE_H

#include "redis.h"
#include "task_queue.lua.h"

enum { TASK_QUEUE_BATCH = 500 }; /* maximum number of tasks per call */

typedef struct task_queue {
    redis_client redis; /* its options */
    const char *name;   /* all keys in Redis begin with it */
    bool patient;       /* after the first successful call, retry forever, whatever the error */
    /* private */
    bool is_loaded, has_answered;
    char complaint[160];
    redis_client news; /* a separate connection, because XREAD blocks it */
} task_queue;

/* What a producer wants done. Only .kind and .id are required; by default it runs as soon as
 * possible. */
typedef struct task_order {
    const char *kind, *data;
    const char *id;    /* two orders with the same id are one task */
    const char *key;   /* of several tasks with the same key only one takes effect */
    const char *after; /* ids, separated by commas, of the tasks that must be done before */
    int priority;      /* 0 to 2, the highest */
    int attempts;      /* before it becomes a dead letter; 0: 5 */
    double delay, at;  /* seconds from now; seconds since 1970. The later one applies */
    int count;         /* if more than 1: this many tasks, ID-1, ID-2, ..., with keys KEY-1, KEY-2,
                          ... */
} task_order;

/* A run of a task, by the worker that has taken it. */
typedef struct task_run {
    const char *id, *kind, *data;
    long long failures; /* of earlier runs */
    /* what to report */
    bool has_failed;
    double pause;   /* in seconds, before the next attempt */
    char text[160]; /* why it failed; or the task's effect, if any */
    /* private */
    const char *priority, *entry, *number;
    redis_reply reply; /* contains the texts */
} task_run;

/* Is this a valid name of a queue, worker, task or key? It has 1 to 64 letters, digits and -_.:/@+,
 * because it becomes part of Redis keys and metric labels. */
static inline bool task_queue_is_name(const char *text);

/* Adds tasks. Returns how many did not exist before. -EIO: .after names a task that does not exist.
 * -EINVAL: .id or .key is not a valid name. */
static inline int task_queue_add(task_queue *q, const task_order *o);

/* Takes up to `most` tasks and returns how many; the caller frees each with task_run_free. Sets
 * *pause to the seconds until the next task is due. After an error no task is lost: others take
 * them later. */
static inline int task_queue_take(task_queue *q, const char *worker, int most, double lease,
                                  task_run **runs, double *pause);
static inline void task_run_free(task_run *r);

/* Waits until a task is added, but at most this long. */
static inline int task_queue_wait(task_queue *q, double seconds);

/* Reports outcomes. Returns how many tasks are newly done. Repeating a report is harmless. */
static inline int task_queue_report(task_queue *q, const char *worker, task_run *const *runs,
                                    int count);

/* Renews the leases of tasks that the worker still runs. */
static inline int task_queue_renew(task_queue *q, const char *worker, task_run *const *runs,
                                   int count);

/* Calls a function in Redis with at most one argument, and prints its result to `to` unless that is
 * NULL. tasks_metrics and tasks_dead return lines, tasks_requeue (an id, or "all") a number.
 * tasks_leave ends a worker, tasks_forget removes the queue. */
static inline int task_queue_call(task_queue *q, const char *function, const char *argument,
                                  FILE *to);

/* Runs other Redis commands, with the same retries. */
static inline int task_queue_run(task_queue *q, redis_pipeline *p);

/* Disconnects. Waits. */
static inline int task_queue_close(task_queue *q);
CONC_AUTO_TYPE(task_queue, task_queue_close);

/* ---- calls that are retried ------------------------------------------------------------------ */

static inline int task_queue__try(task_queue *q, redis_pipeline *p)
{
    if (!q->is_loaded)
        CONC_TRY(redis_command(&q->redis, NULL, "FUNCTION LOAD REPLACE %s", task_queue__library));
    int rc = redis_pipeline_run(&q->redis, p);
    q->is_loaded = rc != -EIO || !strstr(conc_last_error(), "Function not found");
    return rc;
}

static inline bool task_queue__may_repeat(const task_queue *q, int rc, int attempt)
{
    const char *words = conc_last_error();
    bool is_starting = strstr(words, "LOADING") || strstr(words, "Function not found");
    bool is_lost = rc == -ECONNRESET || rc == -ECONNREFUSED;
    bool is_ours = rc == -ECANCELED || rc == -EINVAL || rc == -ENOMEM;
    if (!q->patient && attempt == 20)
        return false;
    if (rc == -EIO && is_starting)
        return true;
    return q->has_answered && !is_ours && (q->patient || is_lost);
}

static inline void task_queue__complain_once(task_queue *q)
{
    const char *words = conc_last_error();
    if (strcmp(q->complaint, words) != 0)
        fprintf(stderr, "%s: %s; trying again\n", q->name, words);
    snprintf(q->complaint, sizeof q->complaint, "%s", words);
}

static inline int task_queue_run(task_queue *q, redis_pipeline *p)
{
    for (int attempt = 1;; attempt++) {
        int rc = task_queue__try(q, p);
        if (rc >= 0)
            break;
        if (rc == -ECONNREFUSED && !q->has_answered)
            return conc_fail(rc, "%s; to start one: redis-server --port 6379 --appendonly yes",
                             conc_last_error());
        if (!task_queue__may_repeat(q, rc, attempt))
            return rc;
        if (q->patient)
            task_queue__complain_once(q);
        CONC_TRY(conc_sleep(0.2 * conc_random(0.5, 1)));
    }
    q->has_answered = true;
    q->complaint[0] = 0;
    return 0;
}

static inline int task_queue_call(task_queue *q, const char *function, const char *argument,
                                  FILE *to)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add(&p, "FCALL %s 1 %s %s", function, q->name, argument));
    CONC_TRY(task_queue_run(q, &p));
    const redisReply *r = p.replies[0];
    if (to && r->type == REDIS_REPLY_INTEGER)
        fprintf(to, "%lld\n", r->integer);
    for (size_t i = 0; to && r->type == REDIS_REPLY_ARRAY && i < r->elements; i++)
        fprintf(to, "%s\n", r->element[i]->str ? r->element[i]->str : "");
    return 0;
}

static inline int task_queue_close(task_queue *q)
{
    redis_close(&q->news);
    return redis_close(&q->redis);
}

/* ---- calls with the arguments of many tasks ------------------------------------------------- */

typedef struct task_queue__arguments {
    int count;
    const char *words[5 + TASK_QUEUE_BATCH * 9];
} task_queue__arguments;

static inline void task_queue__put(task_queue__arguments *a, const char *word)
{
    a->words[a->count++] = word ? word : "";
}

static inline void task_queue__begin(task_queue__arguments *a, const task_queue *q,
                                     const char *function)
{
    a->count = 0;
    task_queue__put(a, "FCALL");
    task_queue__put(a, function);
    task_queue__put(a, "1");
    task_queue__put(a, q->name);
}

static inline int task_queue__send(task_queue *q, task_queue__arguments *a)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add_argv(&p, a->count, a->words, NULL));
    CONC_TRY(task_queue_run(q, &p));
    return (int)p.replies[0]->integer;
}

typedef char task_queue__name[80];

/* Makes "NAME-7" for number 7 of several. A missing name stays missing. */
static inline const char *task_queue__number(task_queue__name to, const char *name, int number)
{
    if (!name || !number)
        return name;
    snprintf(to, sizeof(task_queue__name), "%s-%d", name, number);
    return to;
}

static inline int task_queue__add_batch(task_queue *q, const task_order *o, int first, int count)
{
    char priority[12], attempts[12], delay[32], at[32];
    task_queue__name ids[TASK_QUEUE_BATCH], keys[TASK_QUEUE_BATCH];
    task_queue__arguments a;
    snprintf(priority, sizeof priority, "%d", o->priority);
    snprintf(attempts, sizeof attempts, "%d", o->attempts ? o->attempts : 5);
    snprintf(delay, sizeof delay, "%.3f", o->delay);
    snprintf(at, sizeof at, "%.3f", o->at);
    task_queue__begin(&a, q, "tasks_add");
    for (int i = 0; i < count; i++) {
        int number = o->count > 1 ? first + i : 0;
        task_queue__put(&a, task_queue__number(ids[i], o->id, number));
        task_queue__put(&a, o->kind);
        task_queue__put(&a, o->data);
        task_queue__put(&a, task_queue__number(keys[i], o->key, number));
        task_queue__put(&a, o->after);
        task_queue__put(&a, priority);
        task_queue__put(&a, attempts);
        task_queue__put(&a, delay);
        task_queue__put(&a, at);
    }
    return task_queue__send(q, &a);
}

static inline bool task_queue_is_name(const char *text)
{
    static const char letters[] = "-_.:/@+0123456789"
                                  "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    size_t size = text ? strlen(text) : 0;
    return size > 0 && size <= 64 && strspn(text, letters) == size;
}

static inline int task_queue_add(task_queue *q, const task_order *o)
{
    bool is_key_right = !o->key || task_queue_is_name(o->key);
    if (!task_queue_is_name(o->id) || !is_key_right)
        return conc_fail(-EINVAL,
                         "task_queue_add: an id or key has invalid characters, or too many");
    int added = 0, count = o->count > 1 ? o->count : 1;
    for (int first = 1; first <= count; first += TASK_QUEUE_BATCH) {
        int rest = count - first + 1;
        int n = rest < TASK_QUEUE_BATCH ? rest : TASK_QUEUE_BATCH;
        added += CONC_TRY(task_queue__add_batch(q, o, first, n));
    }
    return added;
}

static inline void task_queue__put_run(task_queue__arguments *a, const task_run *r)
{
    task_queue__put(a, r->priority);
    task_queue__put(a, r->entry);
    task_queue__put(a, r->id);
    task_queue__put(a, r->number);
}

static inline int task_queue_report(task_queue *q, const char *worker, task_run *const *runs,
                                    int count)
{
    char pauses[TASK_QUEUE_BATCH][24];
    task_queue__arguments a;
    task_queue__begin(&a, q, "tasks_finish");
    task_queue__put(&a, worker);
    for (int i = 0; i < count; i++) {
        snprintf(pauses[i], sizeof pauses[i], "%.0f", runs[i]->pause * 1000);
        task_queue__put_run(&a, runs[i]);
        task_queue__put(&a, runs[i]->has_failed ? "failed" : "done");
        task_queue__put(&a, runs[i]->text);
        task_queue__put(&a, pauses[i]);
    }
    return task_queue__send(q, &a);
}

static inline int task_queue_renew(task_queue *q, const char *worker, task_run *const *runs,
                                   int count)
{
    task_queue__arguments a;
    task_queue__begin(&a, q, "tasks_renew");
    task_queue__put(&a, worker);
    for (int i = 0; i < count; i++)
        task_queue__put_run(&a, runs[i]);
    return task_queue__send(q, &a);
}

/* ---- taking tasks --------------------------------------------------------------------------- */

/* Is the reply an array with elements of these types? i: integer, s: string, a: array. */
static inline bool task_queue__is_array(const redisReply *r, const char *types)
{
    static const char letters[16] = {
        [REDIS_REPLY_INTEGER] = 'i', [REDIS_REPLY_STRING] = 's', [REDIS_REPLY_ARRAY] = 'a'};
    if (r->type != REDIS_REPLY_ARRAY || r->elements != strlen(types))
        return false;
    for (size_t i = 0; types[i]; i++)
        if (letters[r->element[i]->type & 15] != types[i])
            return false;
    return true;
}

static inline void task_run_free(task_run *r)
{
    redis_reply_free(&r->reply);
    free(r);
}

/* Makes a run of a task's reply, which it moves out of the batch. */
static inline int task_queue__start_run(redisReply **reply, task_run **run)
{
    if (!task_queue__is_array(*reply, "ssssssi"))
        return conc_fail(-EPROTO, "Redis did not return a task");
    redisReply **part = (*reply)->element;
    task_run *r = *run = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    *r = (task_run){.reply = *reply,
                    .priority = part[0]->str,
                    .entry = part[1]->str,
                    .id = part[2]->str,
                    .number = part[3]->str,
                    .kind = part[4]->str,
                    .data = part[5]->str,
                    .failures = part[6]->integer};
    *reply = NULL;
    return 0;
}

static inline int task_queue_take(task_queue *q, const char *worker, int most, double lease,
                                  task_run **runs, double *pause)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add(&p, "FCALL tasks_take 1 %s %s %d %d", q->name, worker, most,
                                (int)(lease * 1000)));
    CONC_TRY(task_queue_run(q, &p));
    if (!task_queue__is_array(p.replies[0], "ia"))
        return conc_fail(-EPROTO, "Redis did not return a batch of tasks");
    redisReply **part = p.replies[0]->element;
    *pause = (double)part[0]->integer / 1000;
    int rc = 0, n = 0;
    for (; rc >= 0 && n < most && n < (int)part[1]->elements; n++)
        rc = task_queue__start_run(&part[1]->element[n], &runs[n]);
    if (rc >= 0)
        return n;
    while (--n > 0)
        task_run_free(runs[n - 1]);
    return rc;
}

/* An error only causes a sleep: the next task_queue_take meets it, too, and retries. */
static inline int task_queue_wait(task_queue *q, double seconds)
{
    conc_scope s = {0};
    if (!q->news.blocking)
        q->news = (redis_client){.address = q->redis.address, .password = q->redis.password};
    q->news.blocking = true;
    CONC_TRY(conc_scope_begin(&s, seconds + 5));
    int rc = redis_command(&q->news, NULL,
                           "XREAD COUNT 1 BLOCK %d STREAMS %s:ready:2 %s:ready:1 %s:ready:0 $ $ $",
                           1 + (int)(seconds * 1000), q->name, q->name, q->name);
    rc = conc_scope_end(&s, rc);
    return rc < 0 && rc != -ECANCELED ? conc_sleep(seconds) : rc;
}

#endif
