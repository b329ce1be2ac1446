/* frontier.h - the URLs that a crawl by many processes has yet to fetch, kept in Redis
 *
 *     frontier f = {.redis = &client};
 *     double depth = 5, per_host = 1000, delay = 1, lease = 10;
 *     frontier_setting settings[] = {{"depth", &depth}, {"per-host", &per_host},
 *                                    {"delay", &delay}, {"lease", &lease}};
 *     CONC_TRY(frontier_begin(&f, settings, 4));          // one process starts the crawl
 *     CONC_TRY(frontier_add(&f, "http://example.org/"));
 *
 *     CONC_TRY(frontier_join(&f, settings, 4));           // each worker; frontier_renew in a task
 *     CONC_AUTO(frontier_url, u) = {0};
 *     while (CONC_TRY(frontier_lease(&f, &u))) {
 *         ... if frontier_holds(&f), fetch u.url; else finish it with `again` ...
 *         CONC_TRY(frontier_release(&f, &u));             // the host is free for others
 *         ... find the links ...
 *         CONC_TRY(frontier_finish(&f, &u, false, "[\"http://example.org/a\"]"));
 *     }
 *
 * Include conc_sync.h before. URLs must be canonical (url.h), so that each page has only one.
 *
 *   Once     A URL is known from when it was first added. Among all workers only one task at a time
 *            leases it, and once finished it is not leased again, with two exceptions. If its
 *            worker dies, the URL waits again when the worker's lease has expired; "taken over"
 *            counts this. If the URL turns out to be fewer links away than known, it is leased once
 *            more, because its links must be added again with smaller depths: so keep the links of
 *            each page, and do not fetch it again.
 *   Depth    The first URLs have depth 0. URLs deeper than "depth" are dropped. Shallower URLs are
 *            leased first, but a level need not be complete before the next; the final depths are
 *            exact anyway.
 *   Hosts    A host is a scheme, name and port, as for robots.txt. One URL at a time is fetched per
 *            host, and the next one no earlier than "delay" seconds after the release, or longer if
 *            frontier_set_robots says so. The first URL of each host is its /robots.txt, with depth
 *            -1. At most "per-host" URLs of a host are accepted, so a trap of endless URLs ends.
 *   Leases   Leases last "lease" seconds, and frontier_renew renews those of its worker. All times
 *            are Redis's. A report after the lease has expired has no effect, except for the links.
 *            Check frontier_holds before each request, so that a delayed worker sends none; only a
 *            request that is itself delayed can still go out late.
 *   Redis    Redis runs each call atomically. If the connection is lost, so that it is unknown
 *            whether a call ran, the call is repeated, which is always safe. With a persistent
 *            Redis (--appendonly yes) a crawl survives a restart of Redis.
 *   Errors   Those of redis.h; -EIO also if Redis does not know the crawl.
 *
 * All calls wait; any number of tasks of one loop may share a frontier. A cancelled frontier_lease
 * may have leased a URL: frontier_leave returns it. */
#ifndef FRONTIER_H
#define FRONTIER_H

#include "redis.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct frontier {
    redis_client *redis; /* borrowed */
    const char *name;    /* of the crawl: Redis may have several; NULL: "crawl" */
    /* to read */
    char worker[40]; /* set by frontier_join, unique */
    /* private */
    double lease_time, held_until;
    unsigned leases;
    conc_lock turn; /* one of the tasks that wait for a URL polls */
} frontier;

/* A number shared by all workers. */
typedef struct frontier_setting {
    const char *name;
    double *value;
} frontier_setting;

/* Starts or continues a crawl. The settings are "depth", "per-host", "delay" and "lease", and
 * whatever else the workers need to know. */
static inline int frontier_begin(frontier *f, const frontier_setting *settings, size_t count);

/* Adds a start URL, with depth 0. */
static inline int frontier_add(frontier *f, const char *url);

/* Makes this process a worker, and reads the settings. -ENOENT: one of them is missing. */
static inline int frontier_join(frontier *f, const frontier_setting *settings, size_t count);

typedef struct frontier_url {
    const char *url;    /* valid until the next lease or frontier_url_free */
    const char *robots; /* the host's robots.txt; "" if there is none */
    int depth;          /* -1: this is the robots.txt, for frontier_set_robots */
    int tries;          /* leases since it was last finished, this one included; returned ones do
                           not count */
    /* private */
    redis_reply reply;
    char owner[64];
} frontier_url;
static inline int frontier_url_free(frontier_url *u);
CONC_AUTO_TYPE(frontier_url, frontier_url_free);

/* Waits for a URL that may be fetched now and returns 1, or 0 if the crawl is over, because no URL
 * is waiting or leased. */
static inline int frontier_lease(frontier *f, frontier_url *u);

/* Are the leases of this worker certainly still valid? No if the process was stopped for longer
 * than they last (SIGSTOP, a sleeping machine): others may have its URLs. Does not wait. */
static inline bool frontier_holds(const frontier *f);

/* Call this when the host has responded, or failed to: it begins the pause. Do not call it if no
 * request was sent. It has no effect for robots.txt: there frontier_finish releases the host, when
 * its rules are known. */
static inline int frontier_release(frontier *f, const frontier_url *u);

/* Stores the host's robots.txt and its pause in seconds. */
static inline int frontier_set_robots(frontier *f, const frontier_url *u, const char *text,
                                      double pause);

/* Finishes a URL and adds links, a JSON array of URLs. With `again` the URL waits once more, as
 * after a temporary error. */
static inline int frontier_finish(frontier *f, const frontier_url *u, bool again,
                                  const char *links);

/* A task that renews the worker's leases until it is cancelled. */
static inline int frontier_renew(void *frontier);

/* Gives back all leases of this worker. Call it at the end, in conc_shield. */
static inline int frontier_leave(void *frontier);

/* Reads a counter: "duplicates", "too deep", "too many of a host", "taken over" or "given back". */
static inline int frontier_count(frontier *f, const char *what, long long *count);

/* Counts the hosts with waiting URLs and the leased URLs; 0: the crawl is over. */
static inline int frontier_waiting(frontier *f, long long *hosts);

/* ---- the program in Redis -------------------------------------------------------------------

   NAME:depth    URL -> depth, of all known URLs
   NAME:queue:H  waiting URLs of host H, by depth
   NAME:hosts    hosts with waiting URLs and none being fetched, by the time of the next request
   NAME:asking   host -> URL being fetched from it
   NAME:ready    host -> the earliest time of its next request
   NAME:leases   owner, which is a worker and a number -> URL
   NAME:workers  workers, by the time when their leases expire
   NAME:tries    URL -> how often it was leased since it was last finished
   NAME:known    host -> how many of its URLs were added, including those over the limit
   NAME:robots   host -> robots.txt
   NAME:pauses   host -> seconds, of its robots.txt
   NAME:settings, NAME:counts */

static const char frontier__program[] =
    "local r, name, op, owner, now = redis.call, ARGV[1], ARGV[2], ARGV[3], redis.call('TIME')\n"
    "now = now[1] + now[2] / 1e6\n"
    "local function k(key) return name .. ':' .. key end\n"
    "local function setting(key) return tonumber(r('HGET', k'settings', key)) end\n"
    "local function count(what) r('HINCRBY', k'counts', what, 1) end\n"
    "local function host_of(url) return string.match(url, '^%a+://[^/]+') end\n"
    "local function worker_of(owner) return string.match(owner, '^%S+') end\n"

    "local function schedule(host)\n"
    "  local waits = r('EXISTS', k'queue:' .. host) == 1\n"
    "  if waits and r('HEXISTS', k'asking', host) == 0 then\n"
    "    r('ZADD', k'hosts', r('HGET', k'ready', host) or 0, host)\n"
    "  else r('ZREM', k'hosts', host) end\n"
    "end\n"
    "local function enqueue(url, depth)\n"
    "  r('ZADD', k'queue:' .. host_of(url), depth, url)\n"
    "  schedule(host_of(url))\n"
    "end\n"
    "local function release(url, was_asked)\n"
    "  local host = host_of(url)\n"
    "  if r('HGET', k'asking', host) ~= url then return end\n"
    "  r('HDEL', k'asking', host)\n"
    "  if was_asked then\n"
    "    local pause = tonumber(r('HGET', k'pauses', host) or 0)\n"
    "    r('HSET', k'ready', host, now + math.max(pause, setting('delay')))\n"
    "  end\n"
    "  schedule(host)\n"
    "end\n"

    "local function is_leased(url)\n"
    "  for _, leased in ipairs(r('HVALS', k'leases')) do\n"
    "    if leased == url then return true end\n"
    "  end\n"
    "end\n"
    "local function add(url, depth)\n"
    "  local known, host = tonumber(r('HGET', k'depth', url)), host_of(url)\n"
    "  if known and known <= depth then return count('duplicates') end\n"
    "  if depth > setting('depth') then return count('too deep') end\n"
    "  if not known then\n"
    "    local n = r('HINCRBY', k'known', host, 1)\n"
    "    if n > setting('per-host') then return count('too many of a host') end\n"
    "    if n == 1 then\n" /* before the host's other URLs */
    "      r('HSET', k'depth', host .. '/robots.txt', -1)\n"
    "      enqueue(host .. '/robots.txt', -1)\n"
    "    end\n"
    "  end\n"
    "  r('HSET', k'depth', url, depth)\n"
    "  if not known or not is_leased(url) then enqueue(url, depth) end\n"
    "end\n"

    "local function take_back(worker, what)\n"
    "  local leases = r('HGETALL', k'leases')\n"
    "  for i = 1, #leases, 2 do\n"
    "    if worker_of(leases[i]) == worker then\n"
    "      local url = leases[i + 1]\n"
    "      r('HDEL', k'leases', leases[i])\n"
    "      release(url, true)\n" /* a request may have been sent */
    "      enqueue(url, r('HGET', k'depth', url))\n"
    "      if op == 'leave' then r('HINCRBY', k'tries', url, -1) end\n"
    "      count(what)\n"
    "    end\n"
    "  end\n"
    "  r('ZREM', k'workers', worker)\n"
    "end\n"
    "local function renew(worker)\n"
    "  r('ZADD', k'workers', now + setting('lease'), worker)\n"
    "  for _, dead in ipairs(r('ZRANGEBYSCORE', k'workers', '-inf', now)) do\n"
    "    take_back(dead, 'taken over')\n"
    "  end\n"
    "end\n"

    "local function lease()\n"
    "  local url = r('HGET', k'leases', owner)\n" /* set if an earlier reply was lost */
    "  local host, at = unpack(r('ZRANGE', k'hosts', 0, 0, 'WITHSCORES'))\n"
    "  if not url then\n"
    "    if not host and r('HLEN', k'leases') == 0 then return {} end\n"
    "    local wait = host and at - now or 1\n"
    "    if wait > 0 then return {tostring(wait)} end\n"
    "    url = r('ZPOPMIN', k'queue:' .. host)[1]\n"
    "    r('HSET', k'leases', owner, url)\n"
    "    r('HSET', k'asking', host, url)\n"
    "    r('HINCRBY', k'tries', url, 1)\n"
    "    schedule(host)\n"
    "  end\n"
    "  return {url, tonumber(r('HGET', k'depth', url)), tonumber(r('HGET', k'tries', url)),\n"
    "          r('HGET', k'robots', host_of(url)) or ''}\n"
    "end\n"

    /* If the depth has become smaller meanwhile, the caller has stored the old one: lease it once
     * more. */
    "local function finish(url, depth, again, links)\n"
    "  local new_depth = tonumber(r('HGET', k'depth', url) or depth)\n"
    "  if r('HGET', k'leases', owner) == url then\n"
    "    r('HDEL', k'leases', owner)\n"
    "    if again == '1' or new_depth < tonumber(depth) then enqueue(url, new_depth) end\n"
    "    release(url, new_depth < 0)\n"
    "    if again == '0' then r('HDEL', k'tries', url) end\n"
    "  end\n"
    "  for _, link in ipairs(cjson.decode(links)) do add(link, new_depth + 1) end\n"
    "end\n"

    "if op == 'begin' then return r('HSET', k'settings', unpack(ARGV, 3)) end\n"
    "if r('EXISTS', k'settings') == 0 then\n"
    "  return redis.error_reply('ERR there is no ' .. name .. ' in this Redis')\n"
    "end\n"
    "if op == 'add' then return add(ARGV[3], 0) end\n"
    "if op == 'join' then return r('HINCRBY', k'counts', 'workers', 1) end\n"
    "if op == 'setting' or op == 'count' then return r('HGET', k(op .. 's'), ARGV[3]) end\n"
    "if op == 'waiting' then return r('ZCARD', k'hosts') + r('HLEN', k'leases') end\n"
    "if op == 'robots' then\n"
    "  r('HSET', k'robots', host_of(ARGV[4]), ARGV[5])\n"
    "  return r('HSET', k'pauses', host_of(ARGV[4]), ARGV[6])\n"
    "end\n"
    "if op == 'leave' then return take_back(owner, 'given back') end\n"
    "if op == 'finish' then return finish(unpack(ARGV, 4)) end\n"
    "if op == 'release' then\n"
    "  local url = r('HGET', k'leases', owner)\n"
    "  if url and tonumber(r('HGET', k'depth', url)) >= 0 then release(url, true) end\n"
    "  return\n"
    "end\n"
    "renew(worker_of(owner))\n"
    "if op == 'lease' then return lease() end\n";

/* ---- implementation ------------------------------------------------------------------------- */

enum { FRONTIER__WORDS = 64 };
#define FRONTIER__POLL 0.02 /* seconds; hosts may be released, and URLs added, meanwhile */

static inline const char *frontier__name(const frontier *f) { return f->name ? f->name : "crawl"; }

/* Calls the program in Redis. Retries if the connection is lost, or while Redis loads its data
 * after a restart. */
static inline int frontier__call(frontier *f, redis_reply *reply, size_t argc, const char **argv)
{
    const char *words[FRONTIER__WORDS] = {"EVAL", frontier__program, "0", frontier__name(f)};
    if (argc + 4 > FRONTIER__WORDS)
        return conc_fail(-E2BIG, "frontier: too many settings");
    memcpy(words + 4, argv, argc * sizeof *argv);
    for (;;) {
        int rc = redis_command_argv(f->redis, reply, (int)argc + 4, words, NULL);
        bool is_loading = rc == -EIO && strstr(conc_last_error(), "LOADING");
        if (rc != -ECONNRESET && !is_loading)
            return rc;
        CONC_TRY(conc_sleep(0.1));
    }
}
#define FRONTIER__CALL(f, reply, ...)                                   \
    frontier__call(f, reply, CONC_LEN(((const char *[]){__VA_ARGS__})), \
                   (const char *[]){__VA_ARGS__})

static inline int frontier_begin(frontier *f, const frontier_setting *settings, size_t count)
{
    char values[FRONTIER__WORDS / 2][32];
    const char *words[FRONTIER__WORDS] = {"begin"};
    for (size_t i = 0; i < count && i < FRONTIER__WORDS / 2 - 1; i++) {
        snprintf(values[i], sizeof values[i], "%.17g", *settings[i].value);
        words[2 * i + 1] = settings[i].name;
        words[2 * i + 2] = values[i];
    }
    return frontier__call(f, NULL, 2 * count + 1, words);
}

static inline int frontier_add(frontier *f, const char *url)
{
    return FRONTIER__CALL(f, NULL, "add", url);
}

static inline int frontier__read(frontier *f, const char *name, double *value)
{
    CONC_AUTO(redis_reply, r) = NULL;
    CONC_TRY(FRONTIER__CALL(f, &r, "setting", name));
    if (r->type != REDIS_REPLY_STRING)
        return conc_fail(-ENOENT, "there is no %s in this Redis with a %s", frontier__name(f),
                         name);
    *value = strtod(r->str, NULL);
    return 0;
}

static inline int frontier_join(frontier *f, const frontier_setting *settings, size_t count)
{
    CONC_AUTO(redis_reply, r) = NULL;
    CONC_TRY(frontier__read(f, "lease", &f->lease_time));
    for (size_t i = 0; i < count; i++)
        CONC_TRY(frontier__read(f, settings[i].name, settings[i].value));
    CONC_TRY(FRONTIER__CALL(f, &r, "join"));
    snprintf(f->worker, sizeof f->worker, "%lld.%d", r->integer, (int)getpid());
    return 0;
}

static inline int frontier_url_free(frontier_url *u)
{
    redis_reply_free(&u->reply);
    *u = (frontier_url){0};
    return 0;
}

static inline bool frontier_holds(const frontier *f) { return conc_now() < f->held_until; }

/* Tries to lease a URL, which also renews the worker's leases. */
static inline int frontier__lease(frontier *f, frontier_url *u)
{
    double asked = conc_now();
    CONC_TRY(FRONTIER__CALL(f, &u->reply, "lease", u->owner));
    f->held_until = asked + f->lease_time;
    return 0;
}

/* Each lease has a separate owner, which distinguishes a repeated call from the next one. */
static inline int frontier_lease(frontier *f, frontier_url *u)
{
    snprintf(u->owner, sizeof u->owner, "%s %u", f->worker, ++f->leases);
    CONC_LOCKED(&f->turn) {
        CONC_TRY(frontier__lease(f, u));
        while (u->reply->elements == 1) {
            double wait = strtod(u->reply->element[0]->str, NULL);
            CONC_TRY(conc_sleep(wait < FRONTIER__POLL ? wait : FRONTIER__POLL));
            CONC_TRY(frontier__lease(f, u));
        }
    }
    redisReply **r = u->reply->element;
    if (u->reply->elements == 0)
        return 0;
    u->url = r[0]->str;
    u->depth = (int)r[1]->integer;
    u->tries = (int)r[2]->integer;
    u->robots = r[3]->str;
    return 1;
}

static inline int frontier_release(frontier *f, const frontier_url *u)
{
    return FRONTIER__CALL(f, NULL, "release", u->owner);
}

static inline int frontier_set_robots(frontier *f, const frontier_url *u, const char *text,
                                      double pause)
{
    char seconds[32];
    snprintf(seconds, sizeof seconds, "%.6f", pause);
    return FRONTIER__CALL(f, NULL, "robots", u->owner, u->url, text, seconds);
}

static inline int frontier_finish(frontier *f, const frontier_url *u, bool again, const char *links)
{
    char depth[12];
    snprintf(depth, sizeof depth, "%d", u->depth);
    return FRONTIER__CALL(f, NULL, "finish", u->owner, u->url, depth, again ? "1" : "0", links);
}

static inline int frontier_renew(void *arg)
{
    frontier *f = arg;
    for (;;) {
        CONC_TRY(conc_sleep(f->lease_time / 3));
        double asked = conc_now();
        CONC_TRY(FRONTIER__CALL(f, NULL, "renew", f->worker));
        f->held_until = asked + f->lease_time;
    }
}

static inline int frontier_leave(void *arg)
{
    frontier *f = arg;
    return FRONTIER__CALL(f, NULL, "leave", f->worker);
}

static inline int frontier_count(frontier *f, const char *what, long long *count)
{
    CONC_AUTO(redis_reply, r) = NULL;
    CONC_TRY(FRONTIER__CALL(f, &r, "count", what));
    *count = r->type == REDIS_REPLY_STRING ? atoll(r->str) : 0;
    return 0;
}

static inline int frontier_waiting(frontier *f, long long *hosts)
{
    CONC_AUTO(redis_reply, r) = NULL;
    CONC_TRY(FRONTIER__CALL(f, &r, "waiting"));
    *hosts = r->integer;
    return 0;
}

#endif
