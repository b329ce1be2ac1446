/* Cache. It keeps values that are slow to compute: in memory, with limits on entries and age, and
   in Redis, a second level that several processes share and through which they tell each other what
   is stale. However many tasks miss a key concurrently, one computation serves them all, and
   continues while any of them waits. (Two processes that miss it concurrently compute it once
   each.)

   cc 03_cache.c -o cache $(pkg-config --cflags --libs hiredis)
   ./cache                           # the cache alone, on the virtual clock
   redis-server --port 6380 --save '' --daemonize yes
   ./cache 127.0.0.1:6380            # and two processes that share the server
   ./cache --evict ABCAABDCE         # what is evicted when these keys are requested; room for 3
   ./cache --goal                    # hits a second; with cc -O2

   To start one such process, which reads commands (get KEY, invalidate PATTERN, stats); processes
   that run concurrently need different names:
   ./cache --node a 127.0.0.1:6380 */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/redis.h"
#include <fnmatch.h>
#include <sys/queue.h>

/* ---- the cache ---- */

enum {
    CACHE_KEY = 64,        /* bytes, the NUL included */
    CACHE_VALUE = 128,     /* bytes, the NUL included */
    CACHE_MOST_USES = 255, /* more are counted as so many */
};

/* Which entry is evicted when the cache is full: the least recently used, the least frequently used
   (of several the least recently used), or the one that expires first. */
typedef enum { CACHE_LRU, CACHE_LFU, CACHE_TTL } cache_policy;

/* Computes the value of a key, of less than CACHE_VALUE bytes. It may wait. arg has to last as long
   as the cache: the caller may be cancelled while the computation goes on for others. */
typedef int cache_factory(const char *key, void *arg, char *value);

/* COMPUTING  In the table; its task runs. Becomes READY; or GONE after an error, when it is
              invalidated, or when the last waiter is cancelled.
   READY      In the table and in both orders. Becomes GONE when it is evicted, expires or is
              invalidated.
   GONE       In no list. Freed with the last reference: the table, the computation and each waiter
              have one. */
typedef struct entry {
    SLIST_ENTRY(entry) in_bucket;
    TAILQ_ENTRY(entry) in_order, in_age;
    enum { COMPUTING, READY, GONE } state;
    int references, waiters, uses;
    double expires;
    struct cache *cache;
    cache_factory *factory;
    void *arg;
    conc_scope computing;
    conc_future computed;
    char key[CACHE_KEY], value[CACHE_VALUE];
} entry;

TAILQ_HEAD(entry_list, entry);
SLIST_HEAD(bucket, entry);

typedef struct {
    long gets, hits, misses, shared_hits, computations, failures;
    long stored, evictions, expirations, invalidations;
} cache_stats;

typedef struct cache {
    cache_policy policy;
    size_t max_size;                   /* entries; 0: 1000 */
    double ttl;                        /* seconds that an entry is valid; 0: 300 */
    int (*load)(entry *e, void *arg);  /* sets e->value and e->expires; NULL: call_factory */
    void *load_arg;                    /* for .load */
    void (*on_evict)(const char *key); /* called for each entry that makes room; may be NULL */
    cache_stats stats;
    /* private */
    size_t size; /* of the entries that are READY */
    struct bucket *buckets;
    struct entry_list order[CACHE_MOST_USES + 1]; /* by uses; in each the first is the next to go */
    struct entry_list age;                        /* the first expires first */
    conc_group computations;
} cache;

/* Opens the cache for this task and its children. The same task closes it. */
static int cache_open(cache *c)
{
    c->max_size = c->max_size ? c->max_size : 1000;
    c->ttl = c->ttl > 0 ? c->ttl : 300;
    c->buckets = calloc(c->max_size, sizeof *c->buckets);
    if (!c->buckets)
        return -ENOMEM;
    TAILQ_INIT(&c->age);
    for (int uses = 0; uses <= CACHE_MOST_USES; uses++)
        TAILQ_INIT(&c->order[uses]);
    return conc_group_begin(&c->computations);
}

static struct bucket *bucket_of(cache *c, const char *key)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    while (*key)
        hash = (hash ^ (unsigned char)*key++) * 16777619u;
    return &c->buckets[hash % c->max_size];
}

static entry *find(cache *c, const char *key)
{
    entry *e = SLIST_FIRST(bucket_of(c, key));
    while (e && strcmp(e->key, key) != 0)
        e = SLIST_NEXT(e, in_bucket);
    return e;
}

static void release(entry *e)
{
    if (--e->references == 0)
        free(e);
}

/* Removes it from the table. Tasks that wait for its computation still get the result. */
static void drop(entry *e)
{
    cache *c = e->cache;
    if (e->state == GONE)
        return;
    SLIST_REMOVE(bucket_of(c, e->key), e, entry, in_bucket);
    if (e->state == READY) {
        TAILQ_REMOVE(&c->order[e->uses], e, in_order);
        TAILQ_REMOVE(&c->age, e, in_age);
        c->size--;
    }
    e->state = GONE;
    release(e);
}

static void drop_expired(cache *c)
{
    double now = conc_now();
    entry *oldest = TAILQ_FIRST(&c->age);
    for (; oldest && oldest->expires <= now; oldest = TAILQ_FIRST(&c->age)) {
        c->stats.expirations++;
        drop(oldest);
    }
}

static void evict(cache *c)
{
    int uses = 0;
    while (TAILQ_EMPTY(&c->order[uses]))
        uses++;
    entry *victim = TAILQ_FIRST(&c->order[uses]);
    if (c->policy == CACHE_TTL)
        victim = TAILQ_FIRST(&c->age);
    if (c->on_evict)
        c->on_evict(victim->key);
    c->stats.evictions++;
    drop(victim);
}

static void count_use(cache *c, entry *e)
{
    TAILQ_REMOVE(&c->order[e->uses], e, in_order);
    if (c->policy == CACHE_LFU && e->uses < CACHE_MOST_USES)
        e->uses++;
    TAILQ_INSERT_TAIL(&c->order[e->uses], e, in_order);
}

/* The value is there: from now on gets are hits. */
static void keep(cache *c, entry *e)
{
    drop_expired(c);
    while (c->size >= c->max_size)
        evict(c);
    entry *older = TAILQ_LAST(&c->age, entry_list);
    while (older && older->expires > e->expires)
        older = TAILQ_PREV(older, entry_list, in_age);
    if (older)
        TAILQ_INSERT_AFTER(&c->age, older, e, in_age);
    else
        TAILQ_INSERT_HEAD(&c->age, e, in_age);
    TAILQ_INSERT_TAIL(&c->order[0], e, in_order);
    e->state = READY;
    c->size++;
    c->stats.stored++;
}

static int call_factory(entry *e)
{
    cache_stats *stats = &e->cache->stats;
    stats->computations++;
    int rc = e->factory(e->key, e->arg, e->value);
    if (rc < 0)
        stats->failures++;
    e->expires = conc_now() + e->cache->ttl;
    return rc < 0 ? rc : 0;
}

/* The task of a computation. It belongs to the cache: the caller that began it may be cancelled. */
static int compute(void *arg)
{
    entry *e = arg;
    cache *c = e->cache;
    int rc = -ECANCELED;
    if (e->waiters) { /* else all of them were cancelled before it began */
        CONC_TRY(conc_scope_begin(&e->computing, CONC_FOREVER));
        rc = conc_scope_end(&e->computing, c->load ? c->load(e, c->load_arg) : call_factory(e));
    }
    if (rc < 0)
        drop(e); /* the next get computes anew */
    else if (e->state == COMPUTING)
        keep(c, e);
    if (rc == -ECANCELED) /* for waiters this is an error, and no cancel of theirs */
        rc = conc_fail(-EPIPE, "the computation was cancelled");
    conc_future_set(&e->computed, rc, NULL);
    release(e);
    return 0;
}

static int start(cache *c, const char *key, cache_factory *factory, void *arg, entry **started)
{
    entry *e = calloc(1, sizeof *e);
    if (!e)
        return -ENOMEM;
    *e = (entry){.cache = c, .factory = factory, .arg = arg, .references = 2};
    if (snprintf(e->key, CACHE_KEY, "%s", key) >= CACHE_KEY) {
        free(e);
        return conc_fail(-EMSGSIZE, "a key of more than %d bytes", CACHE_KEY - 1);
    }
    int rc = conc_spawn(&c->computations, compute, e);
    if (rc < 0) {
        free(e);
        return rc;
    }
    SLIST_INSERT_HEAD(bucket_of(c, key), e, in_bucket);
    *started = e;
    return 0;
}

/* The last waiter to be cancelled stops the computation. */
static int wait_for(entry *e, char *value)
{
    e->references++;
    e->waiters++;
    int rc = conc_future_wait(&e->computed, NULL);
    e->waiters--;
    if (rc == 0)
        memcpy(value, e->value, CACHE_VALUE);
    if (e->waiters == 0 && !conc_future_is_set(&e->computed)) {
        drop(e); /* a get that comes now begins another computation */
        conc_scope_cancel(&e->computing);
    }
    release(e);
    return rc;
}

/* The value of a key, CACHE_VALUE bytes: from memory, which does not wait, else computed. An error
   of the factory is returned to all that wait for it, and not kept. factory NULL: -ENOENT. */
static int cache_get(cache *c, const char *key, cache_factory *factory, void *arg, char *value)
{
    drop_expired(c);
    entry *e = find(c, key);
    c->stats.gets++;
    if (e && e->state == READY) {
        c->stats.hits++;
        count_use(c, e);
        memcpy(value, e->value, CACHE_VALUE);
        return 0;
    }
    c->stats.misses++;
    if (!e && !factory)
        return conc_fail(-ENOENT, "%s is not in the cache", key);
    if (!e)
        CONC_TRY(start(c, key, factory, arg, &e));
    return wait_for(e, value);
}

/* Removes the keys that match a pattern of the shell ("user:*"), and returns how many there were.
   Later gets do not join a computation that has begun, as it may have read the old value. */
static int cache_invalidate(cache *c, const char *pattern)
{
    long before = c->stats.invalidations;
    drop_expired(c);
    for (size_t i = 0; i < c->max_size; i++)
        for (entry *e = SLIST_FIRST(&c->buckets[i]), *next; e; e = next) {
            next = SLIST_NEXT(e, in_bucket);
            if (fnmatch(pattern, e->key, 0) != 0)
                continue;
            if (e->state == READY)
                c->stats.invalidations++;
            drop(e);
        }
    return (int)(c->stats.invalidations - before);
}

typedef struct {
    cache *cache;
    const char *key;
    cache_factory *factory;
    void *arg;
    int failed;
} warm_up;

static int warm_one(void *arg)
{
    warm_up *w = arg;
    char value[CACHE_VALUE];
    int rc = cache_get(w->cache, w->key, w->factory, w->arg, value);
    w->failed = rc < 0;
    return rc == -ECANCELED ? rc : 0;
}

/* Computes n keys before anybody asks for them, at most `limit` at once, and returns how many
   succeeded. One that fails does not stop the others. */
static int cache_warm(cache *c, const char *const *keys, int n, int limit, cache_factory *factory,
                      void *arg)
{
    int warm = 0;
    warm_up *all = calloc((size_t)n, sizeof *all);
    if (!all)
        return -ENOMEM;
    for (int i = 0; i < n; i++)
        all[i] = (warm_up){c, keys[i], factory, arg, 0};
    int rc = conc_map_limit(limit, warm_one, all, (size_t)n, sizeof *all);
    for (int i = 0; i < n; i++)
        warm += !all[i].failed;
    free(all);
    return rc < 0 ? rc : warm;
}

/* Cancels the computations, waits for them, and frees all entries. */
static int cache_close(cache *c)
{
    if (!c->buckets)
        return 0;
    conc_group_cancel(&c->computations);
    int rc = conc_group_wait(&c->computations);
    for (size_t i = 0; i < c->max_size; i++)
        while (!SLIST_EMPTY(&c->buckets[i]))
            drop(SLIST_FIRST(&c->buckets[i]));
    free(c->buckets);
    c->buckets = NULL;
    return rc;
}

CONC_AUTO_TYPE(cache, cache_close);

/* Every get is a hit or a miss; every entry that was stored is still there or went somewhere. */
static bool adds_up(const cache *c)
{
    const cache_stats *s = &c->stats;
    long gone = s->evictions + s->expirations + s->invalidations;
    return s->hits + s->misses == s->gets && s->stored == (long)c->size + gone;
}

static void print_stats(const cache *c)
{
    const cache_stats *s = &c->stats;
    printf("  gets %ld = hits %ld + misses %ld; computations %ld, %ld failed or stopped\n", s->gets,
           s->hits, s->misses, s->computations, s->failures);
    printf("  stored %ld = there %zu + evicted %ld + expired %ld + invalidated %ld%s\n", s->stored,
           c->size, s->evictions, s->expirations, s->invalidations, adds_up(c) ? "" : ": WRONG");
}

/* ---- part one: the cache alone, in front of a database, on the virtual clock ---- */

typedef struct {
    conc_sem connections;
    bool down;
    int queries, answers;
} database;

static int query(const char *key, void *arg, char *value)
{
    database *d = arg;
    CONC_PERMIT(&d->connections) {
        d->queries++;
        CONC_TRY(conc_sleep(0.050));
        if (d->down)
            return conc_fail(-EIO, "the database is down");
        snprintf(value, CACHE_VALUE, "%s, answer %d", key, ++d->answers);
    }
    return 0;
}

static database *new_database(void)
{
    static database d;
    d = (database){.connections = CONC_SEM(10)};
    return &d;
}

static void print_evicted(const char *key) { printf(" %s", key); }

/* One get a second of each letter. */
static int evictions(cache_policy policy, const char *letters)
{
    static const char *const names[] = {"LRU", "LFU", "TTL"};
    char value[CACHE_VALUE];
    CONC_AUTO(cache, c) = {.policy = policy, .max_size = 3, .on_evict = print_evicted};
    CONC_TRY(cache_open(&c));
    printf("  %s evicts", names[policy]);
    for (; *letters; letters++) {
        CONC_TRY(cache_get(&c, (char[]){*letters, 0}, query, new_database(), value));
        CONC_TRY(conc_sleep(1));
    }
    printf("\n");
    print_stats(&c);
    return 0;
}

static int show_evictions(void *letters)
{
    printf("Eviction: 3 places, gets %s\n", (char *)letters);
    for (cache_policy policy = CACHE_LRU; policy <= CACHE_TTL; policy++)
        CONC_TRY(evictions(policy, letters));
    return 0;
}

static int show_expiry(void)
{
    char value[CACHE_VALUE], key[CACHE_KEY];
    CONC_AUTO(cache, c) = {0};
    CONC_TRY(cache_open(&c));
    printf("Expiry: max_size %zu, ttl %g s\n", c.max_size, c.ttl);
    CONC_TRY(cache_get(&c, "user:1", query, new_database(), value));
    double stored = conc_now();
    CONC_TRY(conc_sleep_until(stored + 299.999));
    printf("  after 299.999 s: %s\n", cache_get(&c, "user:1", NULL, NULL, value) ? "gone" : value);
    CONC_TRY(conc_sleep_until(stored + 300));
    printf("  after 300 s: %s\n", cache_get(&c, "user:1", NULL, NULL, value) ? "gone" : value);
    for (int i = 0; i < 1001; i++) {
        snprintf(key, sizeof key, "page:%d", i);
        CONC_TRY(cache_get(&c, key, query, new_database(), value));
        if (i == 999)
            printf("  after 1000 more keys: %zu there, %ld evicted\n", c.size, c.stats.evictions);
    }
    printf("  after 1001: %zu there, %ld evicted\n", c.size, c.stats.evictions);
    print_stats(&c);
    return 0;
}

/* A task that gets a key, with or without a cache. */
typedef struct {
    cache *cache;
    database *database;
    int rc;
    char value[CACHE_VALUE], text[CACHE_VALUE];
} getter;

static int get_key(void *arg)
{
    getter *g = arg;
    g->rc = g->cache ? cache_get(g->cache, "user:1", query, g->database, g->value)
                     : query("user:1", g->database, g->value);
    if (g->rc < 0)
        snprintf(g->text, sizeof g->text, "%s", conc_last_error());
    return g->rc == -ECANCELED ? g->rc : 0;
}

/* n tasks miss one key at once: how many got a value. */
static int stampede(getter *getters, int n, cache *c, database *d)
{
    int served = 0;
    for (int i = 0; i < n; i++)
        getters[i] = (getter){.cache = c, .database = d};
    CONC_TRY(conc_map_all(get_key, getters, (size_t)n, sizeof *getters, NULL));
    for (int i = 0; i < n; i++)
        served += getters[i].rc == 0;
    return served;
}

enum { CROWD = 1000 };

static int show_stampede(void)
{
    static getter getters[CROWD];
    CONC_AUTO(cache, c) = {0};
    CONC_TRY(cache_open(&c));
    printf("Stampede: %d tasks miss one key at once\n", CROWD);
    database *d = new_database();
    double began = conc_now();
    int served = CONC_TRY(stampede(getters, CROWD, NULL, d));
    printf("  naive: %d computations, %d served in %.2f s\n", d->queries, served,
           conc_now() - began);
    d = new_database();
    began = conc_now();
    served = CONC_TRY(stampede(getters, CROWD, &c, d));
    printf("  cache: %d computation, %d served in %.2f s\n", d->queries, served,
           conc_now() - began);
    print_stats(&c);
    return 0;
}

static int show_failure(void)
{
    getter getters[100], again;
    CONC_AUTO(cache, c) = {0};
    CONC_TRY(cache_open(&c));
    printf("Failure: the database is down while 100 tasks wait\n");
    database *d = new_database();
    d->down = true;
    int served = CONC_TRY(stampede(getters, 100, &c, d));
    printf("  %d served, %d computation; the first and the last are told: %s, %s\n", served,
           d->queries, getters[0].text, getters[99].text);
    d->down = false;
    served = CONC_TRY(stampede(&again, 1, &c, d));
    printf("  the next get: %d served, %s\n", served, again.value);
    print_stats(&c);
    return 0;
}

/* Five tasks wait for one computation, and so many are cancelled, the one that began it first. */
static int cancel_some(cache *c, database *d, int cancelled)
{
    getter getters[5];
    conc_task tasks[5];
    conc_group g = {.keep_going = true};
    for (int i = 0; i < 5; i++) {
        getters[i] = (getter){.cache = c, .database = d};
        CONC_TRY_IN(&g, conc_spawn_task(&g, &tasks[i], get_key, &getters[i]));
    }
    CONC_TRY_IN(&g, conc_sleep(0.020));
    for (int i = 0; i < cancelled; i++)
        conc_cancel(&tasks[i]);
    CONC_TRY(conc_group_wait(&g));
    int served = 0, stopped = 0;
    for (int i = 0; i < 5; i++) {
        served += getters[i].rc == 0;
        stopped += getters[i].rc == -ECANCELED;
    }
    printf("  %d cancelled: %d stopped, %d served; queries begun %d, finished %d\n", cancelled,
           stopped, served, d->queries, d->answers);
    return 0;
}

static int show_cancel(void)
{
    CONC_AUTO(cache, c) = {0};
    CONC_TRY(cache_open(&c));
    printf("Cancel: 5 tasks wait for one computation\n");
    database *d = new_database();
    CONC_TRY(cancel_some(&c, d, 5));
    CONC_TRY(cancel_some(&c, d, 4));
    print_stats(&c);
    return 0;
}

static int show_invalidation(void)
{
    static const char *const keys[] = {"user:1", "user:2",      "user:3", "user:10",
                                       "page:1", "superuser:1", "user",   "page:user:1"};
    char value[CACHE_VALUE];
    conc_task task;
    conc_group g = {0};
    CONC_AUTO(cache, c) = {0};
    CONC_TRY(cache_open(&c));
    database *d = new_database();
    printf("Warming: %d keys, 5 at once\n", (int)CONC_LEN(keys));
    double began = conc_now();
    int warm = CONC_TRY(cache_warm(&c, keys, CONC_LEN(keys), 5, query, d));
    printf("  %d warm in %.2f s, by %d queries\n", warm, conc_now() - began, d->queries);
    printf("Invalidation: user:* takes %d, and leaves", cache_invalidate(&c, "user:*"));
    for (size_t i = 0; i < CONC_LEN(keys); i++)
        if (cache_get(&c, keys[i], NULL, NULL, value) == 0)
            printf(" %s", keys[i]);
    getter early = {.cache = &c, .database = d}, late = early;
    CONC_TRY(conc_spawn_task(&g, &task, get_key, &early));
    CONC_TRY_IN(&g, conc_sleep(0.020));
    cache_invalidate(&c, "user:*");
    CONC_TRY_IN(&g, get_key(&late));
    CONC_TRY(conc_group_wait(&g));
    printf("\n  a get from before it: %s; from after it: %s; kept: %s\n", early.value, late.value,
           cache_get(&c, "user:1", NULL, NULL, value) ? "none" : value);
    print_stats(&c);
    return 0;
}

static int part_one(void *letters)
{
    CONC_TRY(show_evictions(letters));
    CONC_TRY(show_expiry());
    CONC_TRY(show_stampede());
    CONC_TRY(show_failure());
    CONC_TRY(show_cancel());
    return show_invalidation();
}

/* ---- the second level: Redis, shared by all nodes ---- */

/* In Redis each key has PREFIX before it. GENERATION counts invalidations: a value that was
   computed while one took place may be old, and is not stored. */
#define PREFIX "conc-cache:"
#define GENERATION "conc-cache-generation"
#define CHANNEL "conc-cache-invalidations"
#define HOW_TO_START "; to start one: redis-server --port 6380 --save '' --daemonize yes"

typedef struct {
    const char *name;
    cache memory;
    redis_client redis;
    redis_subscription others; /* tell what they invalidate */
    bool lost;
    double again_at;
    conc_group listener;
} node;

/* An error of Redis is no error of the cache: memory goes on alone, and tries again in a second. */
static int go_on_alone(node *n, int rc)
{
    if (rc == -ECANCELED)
        return rc;
    if (!n->lost)
        printf("%s: memory goes on alone: %s\n", n->name, conc_last_error());
    n->lost = true;
    n->again_at = conc_now() + 1;
    return 0;
}

static void is_back(node *n)
{
    if (n->lost)
        printf("%s: Redis is back\n", n->name);
    n->lost = false;
}

static int fetch(node *n, redis_pipeline *p, const char *key)
{
    CONC_TRY(redis_pipeline_add(p, "GET " PREFIX "%s", key));
    CONC_TRY(redis_pipeline_add(p, "PTTL " PREFIX "%s", key));
    CONC_TRY(redis_pipeline_add(p, "GET " GENERATION));
    CONC_TRY(redis_pipeline_run(&n->redis, p));
    bool right = p->replies[1]->type == REDIS_REPLY_INTEGER;
    return right ? 0 : conc_fail(-EPROTO, "PTTL replied with something else than a number");
}

/* Stores the value if nobody has invalidated anything since the generation was read. */
static int store(node *n, const entry *e, const redisReply *generation)
{
    static const char script[] = "return (redis.call('GET', KEYS[2]) or '') == ARGV[1] and "
                                 "redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])";
    const char *seen = generation->type == REDIS_REPLY_STRING ? generation->str : "";
    return redis_command(&n->redis, NULL, "EVAL %s 2 " PREFIX "%s " GENERATION " %s %s %lld",
                         script, e->key, seen, e->value, (long long)(n->memory.ttl * 1000));
}

/* The .load of the memory level: from Redis, or else by the factory, and then into Redis too. */
static int load_shared(entry *e, void *arg)
{
    node *n = arg;
    CONC_AUTO(redis_pipeline, p) = {0};
    if (n->lost && conc_now() < n->again_at)
        return call_factory(e);
    int rc = fetch(n, &p, e->key);
    if (rc < 0) {
        CONC_TRY(go_on_alone(n, rc));
        return call_factory(e);
    }
    is_back(n);
    const redisReply *found = p.replies[0];
    double left = (double)p.replies[1]->integer / 1000;
    if (found->type == REDIS_REPLY_STRING && found->len < CACHE_VALUE && left > 0) {
        n->memory.stats.shared_hits++;
        snprintf(e->value, CACHE_VALUE, "%s", found->str);
        e->expires = conc_now() + (left < n->memory.ttl ? left : n->memory.ttl);
        return 0;
    }
    CONC_TRY(call_factory(e));
    rc = store(n, e, p.replies[2]);
    return rc < 0 ? go_on_alone(n, rc) : 0;
}

static int delete_key(node *n, const redisReply *key)
{
    if (key->type != REDIS_REPLY_STRING)
        return conc_fail(-EPROTO, "SCAN replied with a key that is none");
    return redis_command(&n->redis, NULL, "DEL %b", key->str, key->len);
}

static int delete_shared(node *n, const char *pattern)
{
    char cursor[24] = "0";
    CONC_AUTO(redis_reply, r) = NULL;
    do {
        int rc =
            redis_command(&n->redis, &r, "SCAN %s MATCH " PREFIX "%s COUNT 1000", cursor, pattern);
        CONC_TRY(rc);
        bool right = r->type == REDIS_REPLY_ARRAY && r->elements == 2;
        if (!right || r->element[0]->type != REDIS_REPLY_STRING)
            return conc_fail(-EPROTO, "SCAN replied with something else than a list");
        snprintf(cursor, sizeof cursor, "%s", r->element[0]->str);
        for (size_t i = 0; i < r->element[1]->elements; i++)
            CONC_TRY(delete_key(n, r->element[1]->element[i]));
    } while (strcmp(cursor, "0") != 0);
    return 0;
}

/* Invalidates here, in Redis and in the other nodes; returns how many entries went here. The
   generation changes first, so that no old value is stored from now on. The others are told last,
   when they cannot read an old value any more. */
static int invalidate_everywhere(node *n, const char *pattern)
{
    int gone = cache_invalidate(&n->memory, pattern);
    int rc = redis_command(&n->redis, NULL, "INCR " GENERATION);
    if (rc >= 0)
        rc = delete_shared(n, pattern);
    if (rc >= 0)
        rc = redis_command(&n->redis, NULL, "PUBLISH " CHANNEL " %s/%s", n->name, pattern);
    gone += cache_invalidate(&n->memory, pattern); /* what was read meanwhile */
    if (rc < 0 && rc != -ECANCELED)
        return conc_fail(rc, "only here, other nodes were not told: %s", conc_last_error());
    return rc < 0 ? rc : gone;
}

static void told(node *n, const redis_message *m)
{
    const char *slash = strchr(m->data, '/');
    size_t length = slash ? (size_t)(slash - m->data) : 0;
    bool own = length == strlen(n->name) && strncmp(m->data, n->name, length) == 0;
    if (slash && !own)
        printf("%s: told by %.*s that %s is invalid: %d gone\n", n->name, (int)length, m->data,
               slash + 1, cache_invalidate(&n->memory, slash + 1));
}

/* Listens to the others. After a loss of the connection nobody knows what they said meanwhile: any
   entry may be invalid. */
static int listen_to_others(void *arg)
{
    node *n = arg;
    for (;;) {
        redis_message m;
        int rc = redis_next_message(&n->others, &m);
        if (rc == 0) {
            told(n, &m);
        } else if (rc == -ECONNRESET) {
            is_back(n);
            printf("%s: missed what the others said: %d gone\n", n->name,
                   cache_invalidate(&n->memory, "*"));
        } else {
            CONC_TRY(go_on_alone(n, rc));
            CONC_TRY(conc_sleep(0.2));
        }
    }
}

/* ---- a node: a process that reads commands ---- */

static int read_source(const char *key, void *arg, char *value)
{
    static int reads;
    CONC_TRY(conc_sleep(0.100));
    snprintf(value, CACHE_VALUE, "%s as %s read it, %d", key, ((node *)arg)->name, ++reads);
    return 0;
}

static int obey_get(node *n, const char *key)
{
    char value[CACHE_VALUE];
    cache_stats *now = &n->memory.stats, before = *now;
    CONC_TRY(cache_get(&n->memory, key, read_source, n, value));
    const char *from = "memory";
    if (now->shared_hits > before.shared_hits)
        from = "Redis";
    else if (now->computations > before.computations)
        from = "the source";
    printf("%s: from %s: %s\n", n->name, from, value);
    return 0;
}

static int obey(node *n, char *line)
{
    char *argument = line + strcspn(line, " ");
    int rc = 0;
    if (*argument)
        *argument++ = 0;
    if (strcmp(line, "get") == 0) {
        rc = obey_get(n, argument);
    } else if (strcmp(line, "invalidate") == 0) {
        rc = invalidate_everywhere(n, argument);
        if (rc >= 0)
            printf("%s: invalidated %s: %d gone\n", n->name, argument, rc);
    } else if (strcmp(line, "stats") == 0) {
        printf("%s: %ld from Redis\n", n->name, n->memory.stats.shared_hits);
        print_stats(&n->memory);
    } else {
        printf("%s: get KEY, invalidate PATTERN or stats, not %s\n", n->name, line);
    }
    if (rc < 0 && rc != -ECANCELED)
        printf("%s: %s\n", n->name, conc_last_error());
    return rc == -ECANCELED ? rc : 0;
}

static int node_open(node *n, const char *name, const char *address)
{
    n->name = name;
    n->memory.load = load_shared;
    n->memory.load_arg = n;
    n->redis = (redis_client){.address = address,
                              .attempts = 1,
                              .delay = 0.05,
                              .max_delay = 0.2,
                              .connect_timeout = 1,
                              .timeout = 1,
                              .reply_limit = 1 << 20};
    n->others.from = &n->redis;
    CONC_TRY(cache_open(&n->memory));
    int rc = redis_subscribe(&n->others, CHANNEL);
    if (rc == 0)
        rc = redis_command(&n->redis, NULL, "PING");
    if (rc < 0 && rc != -ECANCELED)
        return conc_fail(rc, "%s" HOW_TO_START, conc_last_error());
    return rc < 0 ? rc : conc_spawn(&n->listener, listen_to_others, n);
}

static int node_close(node *n)
{
    conc_group_cancel(&n->listener);
    int rc = conc_group_wait(&n->listener);
    cache_close(&n->memory);
    redis_subscription_close(&n->others);
    redis_close(&n->redis);
    return rc;
}

CONC_AUTO_TYPE(node, node_close);

static int node_main(void *arg)
{
    char **argv = arg, *line;
    CONC_AUTO(node, n) = {0};
    CONC_AUTO(conc_stream, commands) = {.limit = 4096};
    CONC_TRY(node_open(&n, argv[2], argv[3]));
    CONC_TRY(conc_stream_open(&commands, STDIN_FILENO));
    printf("%s: ready\n", n.name);
    for (;;) {
        CONC_TRY(conc_stream_read_line(&commands, &line));
        if (!line)
            return 0;
        CONC_TRY(obey(&n, line));
    }
}

/* ---- part two: two nodes, each a process of this program ---- */

typedef struct {
    conc_child process;
    conc_stream output;
} peer;

static int peer_close(peer *p)
{
    conc_stream_close(&p->output);
    return conc_child_close(&p->process);
}

CONC_AUTO_TYPE(peer, peer_close);

/* Passes on so many lines of the node. */
static int hear(peer *p, int lines)
{
    char *line;
    while (lines-- > 0) {
        CONC_TRY(conc_stream_read_line(&p->output, &line));
        if (!line)
            return conc_fail(-EPIPE, "a node has ended");
        printf("%s\n", line);
    }
    return 0;
}

static int tell(peer *p, const char *command)
{
    char line[CACHE_KEY];
    int size = snprintf(line, sizeof line, "%s\n", command);
    ssize_t rc = conc_write_full(p->process.input, line, (size_t)size);
    if (rc == -EPIPE)
        return conc_fail(-EPIPE, "a node has ended");
    return rc < 0 ? (int)rc : 0;
}

static int peer_open(peer *p, const char *name, const char *address)
{
    const char *argv[] = {"/proc/self/exe", "--node", name, address, NULL};
    p->process = (conc_child){.argv = argv, .input = CONC_PIPE, .output = CONC_PIPE};
    CONC_TRY(conc_child_start(&p->process));
    CONC_TRY(conc_stream_open(&p->output, p->process.output));
    p->process.output = -1; /* the stream has it */
    return hear(p, 1);
}

static int part_two(void *address)
{
    static const struct {
        int node;
        const char *command;
        int lines, lines_of_other;
    } steps[] = {{0, "invalidate *", 1, 1},      {0, "get user:1", 1, 0}, {0, "get user:1", 1, 0},
                 {1, "get user:1", 1, 0},        {1, "get user:1", 1, 0}, {1, "get page:1", 1, 0},
                 {0, "invalidate user:*", 1, 1}, {1, "get user:1", 1, 0}, {1, "get page:1", 1, 0},
                 {0, "get user:1", 1, 0},        {0, "stats", 3, 0},      {1, "stats", 3, 0}};
    CONC_AUTO(peer, a) = {0};
    CONC_AUTO(peer, b) = {0};
    peer *peers[] = {&a, &b};
    CONC_TRY(peer_open(&a, "a", address));
    CONC_TRY(peer_open(&b, "b", address));
    for (size_t i = 0; i < CONC_LEN(steps); i++) {
        CONC_TRY(tell(peers[steps[i].node], steps[i].command));
        CONC_TRY(hear(peers[steps[i].node], steps[i].lines));
        CONC_TRY(hear(peers[!steps[i].node], steps[i].lines_of_other));
    }
    return 0;
}

/* ---- the goal: hits of the memory level, and one computation for all that miss ---- */

enum { HITS = 2000000, KEYS = 1000, HITS_A_SECOND = 1000000 };

/* Gets all keys, which are not there yet, and then HITS times one that is: hits a second. */
static int count_hits(cache *c, database *d)
{
    static char keys[KEYS][CACHE_KEY];
    static const char *names[KEYS];
    char value[CACHE_VALUE];
    for (int i = 0; i < KEYS; i++) {
        snprintf(keys[i], CACHE_KEY, "user:%d", i);
        names[i] = keys[i];
    }
    d->connections = (conc_sem)CONC_SEM(KEYS);
    CONC_TRY(cache_warm(c, names, KEYS, KEYS, query, d));
    double began = conc_now();
    for (int i = 0; i < HITS; i++) {
        CONC_TRY(cache_get(c, keys[i % KEYS], query, d, value));
        if (i % 10000 == 0) /* a hit does not wait: this lets Ctrl+C through */
            CONC_TRY(conc_yield());
    }
    return (int)(HITS / (conc_now() - began));
}

static int goal(void *arg)
{
    static getter getters[CROWD];
    database *d = new_database();
    CONC_AUTO(cache, c) = {0};
    CONC_TRY(cache_open(&c));
    int served = CONC_TRY(stampede(getters, CROWD, &c, d));
    printf("%d tasks miss one key at once: goal 1 computation, measured %d\n", served, d->queries);
    bool shared = served == CROWD && d->queries == 1;
    c.stats = (cache_stats){.stored = 1};
    int rate = CONC_TRY(count_hits(&c, d));
    printf("hits a second: goal %.1f million, measured %.1f million\n", HITS_A_SECOND / 1e6,
           rate / 1e6);
    print_stats(&c);
    bool counted = c.stats.hits == HITS + 1 && c.stats.misses == KEYS - 1;
    if (!shared || !counted || !adds_up(&c))
        return conc_fail(-EIO, "the counts are wrong");
    return (void)arg, 0;
}

/* ---- main ---- */

static int run_on_virtual_clock(conc_fn *fn, char *arg)
{
    conc_options o = {.virtual_clock = true};
    int rc = conc_run_with(&o, fn, arg);
    if (rc < 0)
        fprintf(stderr, "cache: %s\n", conc_last_error());
    else if (ferror(stdout))
        fprintf(stderr, "cache: the output could not be written\n");
    return rc < 0 || ferror(stdout);
}

int main(int argc, char **argv)
{
    char *address = argc == 2 ? argv[1] : getenv("REDIS");
    setvbuf(stdout, NULL, _IOLBF, 0); /* line by line, also into a file or a pipe */
    if (argc == 4 && strcmp(argv[1], "--node") == 0)
        return conc_main(node_main, argv);
    if (argc == 3 && strcmp(argv[1], "--evict") == 0)
        return run_on_virtual_clock(show_evictions, argv[2]);
    if (argc == 2 && strcmp(argv[1], "--goal") == 0)
        return conc_main(goal, NULL);
    if (argc > 2 || (argc == 2 && argv[1][0] == '-')) {
        fprintf(stderr, "cache: [ADDRESS], --evict LETTERS, --goal or --node NAME ADDRESS\n");
        return 1;
    }
    if (run_on_virtual_clock(part_one, "ABCAABDCE") != 0)
        return 1;
    if (!address) {
        printf("Two processes that share a server: ./cache 127.0.0.1:6380%s\n", HOW_TO_START);
        return 0;
    }
    printf("Two nodes share Redis\n");
    unsetenv("CONC_CLOCK"); /* a server has a clock of its own */
    return conc_main(part_two, address);
}
