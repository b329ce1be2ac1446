/* redis.h - hiredis in conc tasks: commands, pipelines and subscriptions that wait on the loop
 *
 *     #define CONC_STATIC
 *     #include "conc_sync.h"           // and conc_pool.h, if the server has a host name
 *     #include "redis.h"
 *
 *     static int app(void *arg)
 *     {
 *         CONC_AUTO(redis_client, c) = {.address = "127.0.0.1:6379"};
 *         CONC_AUTO(redis_reply, r) = NULL;
 *         CONC_TRY(redis_command(&c, NULL, "SET %s %d", "apples", 3));
 *         CONC_TRY(redis_command(&c, &r, "INCR apples"));
 *         printf("%lld apples\n", r->integer);
 *         return (void)arg, 0;
 *     }
 *     int main(void) { return conc_main(app, NULL); }
 *
 * Needs hiredis (Debian: libhiredis-dev), 0.14 or later: cc app.c -lhiredis
 *
 * Connection    A client has one connection, which its first command opens and a background task of
 *               the run reads. Any number of tasks of one loop may share the client: their commands
 *               share the connection, and each gets its own reply, in order. So a command that
 *               changes the connection (SELECT, AUTH, WATCH, MULTI alone) affects all of them, and
 *               one that blocks (BLPOP, XREAD BLOCK) delays all of them: use a separate client,
 *               with .blocking, for such commands.
 * Waiting       redis_command, redis_pipeline_run, redis_subscribe and the like, and
 *               redis_next_message wait: scopes, time limits and cancels apply. Without any of
 *               them, and without .timeout, they wait for a hanging server as long as it hangs.
 * Cancels       A command cancelled before its first byte was sent never reaches the server. Later,
 *               it may or may not run; its reply is dropped, and the client and other tasks
 *               continue. A .blocking client closes its connection, so that the server forgets the
 *               command: an element popped at that moment is lost.
 * Lost          If the connection is lost before the reply, a command returns -ECONNRESET: it may
 *               or may not have run. If none of its bytes was sent, it is sent again. The next
 *               command reconnects, with AUTH and SELECT, and waits between attempts: .attempts,
 *               .delay and .max_delay. Tasks that wait for the same connection share its failure.
 * Errors        -EIO           the server replied with an error
 *               -EACCES        the error was NOAUTH, WRONGPASS or NOPERM, or a reply to AUTH
 *               -ECONNRESET    see above; -ECONNREFUSED and others of conc_dial
 *               -EPROTO        the server sent a malformed or unsolicited reply
 *               -EMSGSIZE      a reply is longer than .reply_limit
 *               -ETIMEDOUT     .connect_timeout or .timeout expired, or a scope
 *               -EPIPE         the client was closed during the call
 *               -EBUSY         a second task uses a .blocking client or a subscription
 *               -EINVAL, -EPERM (not in a task, or in another run's), -ENOMEM, -ECANCELED
 *               After -EPROTO, -EMSGSIZE and -ETIMEDOUT the connection is closed, and its other
 *               commands return -ECONNRESET. The error's text is in conc_last_error(), separate for
 *               each task; a failed command's reply is also in *reply.
 * Not covered   TLS, RESP3, clusters, and replies nested deeper than hiredis reads (7 arrays in
 *               0.14). A client cannot be used in a forked child. Tasks that continue after main_fn
 *               has returned cannot connect. */
#ifndef REDIS_H
#define REDIS_H

#ifndef CONC_SYNC_H
#error "redis.h: include conc_sync.h before it"
#endif

#include <hiredis/hiredis.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* A hiredis reply, or NULL, with type (REDIS_REPLY_...), integer, str, len, elements, element. The
 * caller owns it: CONC_AUTO(redis_reply, r) = NULL, or redis_reply_free(&r). */
typedef redisReply *redis_reply;

/* Frees a reply and sets it to NULL. NULL is harmless. Returns 0. */
static inline int redis_reply_free(redis_reply *reply);

struct redis__link;

/* A connection to a server. The options come first; their strings are borrowed until redis_close.
 * All times are in seconds. */
typedef struct redis_client {
    const char *address;    /* "host:port" or "unix:/path"; NULL: "127.0.0.1:6379" */
    const char *user;       /* for AUTH, with a password; NULL: the server's default user */
    const char *password;   /* NULL: no AUTH */
    int database;           /* for SELECT */
    int attempts;           /* to connect, in one command; 0: 5 */
    double delay;           /* before the second attempt, then doubled, less up to half; 0: 0.1 */
    double max_delay;       /* the longest delay; 0: 2 */
    double connect_timeout; /* of each attempt, AUTH and SELECT included; 0: 5 */
    /* Closes the connection if the server sends nothing for so long while commands wait. A
     * subscription sends a PING first, and waits as long again. 0: no limit; a .blocking client has
     * none */
    double timeout;
    size_t reply_limit; /* bytes of a reply, as sent by the server; 0: 64 MiB */
    bool blocking;      /* one command at a time, which may block; a cancel disconnects */
    /* private */
    bool closing, listens;
    int calls, failure;
    unsigned failures;
    double pause, again_at;
    struct redis__link *link;
    conc_scope *attempt;
    conc_lock connecting;
    conc_event unused;
    char words[128];
} redis_client;

/* Sends a command and waits for its reply. The format is hiredis's: words separated by spaces; %s
 * takes a string, %b bytes and a size_t, both with any content, and %d, %lld, %f and so on take
 * numbers. *reply must be NULL or an earlier reply, which is freed; pass NULL if you do not need
 * the reply. -EINVAL: the command is not answered by exactly one reply (SUBSCRIBE and the like,
 * MONITOR, SYNC, PSYNC, CLIENT REPLY). */
static inline int redis_command(redis_client *c, redis_reply *reply, const char *format, ...);

/* The same for argc words with any content. sizes NULL: the words are strings. */
static inline int redis_command_argv(redis_client *c, redis_reply *reply, int argc,
                                     const char **argv, const size_t *sizes);

/* Disconnects and frees what the client owns. Calls of other tasks return -EPIPE, and redis_close
 * waits for them; a cancel does not cut that short. Closing a client twice, or an unused one, is
 * harmless; a closed client may be reused. May be called in a task or outside a run. */
static inline int redis_close(redis_client *c);

/* Several commands sent together, with no other task's commands in between. For a transaction,
 * begin with MULTI and end with EXEC, whose reply holds the results; if a command is invalid, EXEC
 * fails and none of them runs. */
typedef struct redis_pipeline {
    redis_reply *replies; /* after a run: `count` of them, owned by the pipeline */
    int count;            /* number of commands */
    /* private */
    char *bytes;
    size_t size, room;
    int reply_count;
} redis_pipeline;

/* Adds a command for redis_pipeline_run to send. -EINVAL and -ENOMEM leave the pipeline unchanged.
 * Does not wait; may be called anywhere. */
static inline int redis_pipeline_add(redis_pipeline *p, const char *format, ...);
static inline int redis_pipeline_add_argv(redis_pipeline *p, int argc, const char **argv,
                                          const size_t *sizes);

/* Sends the commands and waits for all replies. If some of them are errors, returns -EIO or -EACCES
 * for the first one. After any other error missing replies are NULL. A second run sends the
 * commands again and frees the earlier replies. */
static inline int redis_pipeline_run(redis_client *c, redis_pipeline *p);

/* Frees the commands and replies. The pipeline may be used again. */
static inline int redis_pipeline_close(redis_pipeline *p);

/* Subscribed channels, on a separate connection: redis_subscription s = {.from = &c}. One task at a
 * time may use it, others get -EBUSY. Close it before the run ends. */
typedef struct redis_subscription {
    const redis_client *from; /* its options are copied at the first subscribe */
    /* private */
    redis_client own;
    bool missed, pinged;
    struct redis__topic *topics;
    size_t topic_count;
    redis_reply current; /* the message that the caller has borrowed */
    conc_queue waiting;  /* messages that arrived while a call waited for something else */
} redis_subscription;

/* A message, valid until the next redis_next_message or the close. */
typedef struct redis_message {
    const char *channel;
    const char *pattern; /* that matched the channel; NULL: subscribed to the channel itself */
    const char *data;    /* ends with a NUL, which is not counted */
    size_t size;
} redis_message;

/* Subscribes to a channel, or to all channels that match a pattern ("news.*"). Returns 0 when the
 * server has confirmed it. A failure or a cancel leaves other subscriptions in place, but closes
 * the connection, unless the server refused; the next call reconnects. */
static inline int redis_subscribe(redis_subscription *s, const char *channel);
static inline int redis_subscribe_pattern(redis_subscription *s, const char *pattern);

/* Unsubscribes, even if an error is returned. Returns 0 when the server has confirmed it. Messages
 * that arrived before are still delivered. -ENOENT: not subscribed. */
static inline int redis_unsubscribe(redis_subscription *s, const char *channel);
static inline int redis_unsubscribe_pattern(redis_subscription *s, const char *pattern);

/* Waits for the next message. -ECONNRESET: the connection was lost and all subscriptions were
 * renewed; messages sent in between are missing, and the next call continues. If reconnecting
 * fails, that error is returned (-ENOTCONN if the new connection was lost at once), and the next
 * call tries again. A cancel loses no message. -EINVAL: there is no subscription. */
static inline int redis_next_message(redis_subscription *s, redis_message *m);

/* Like redis_close. */
static inline int redis_subscription_close(redis_subscription *s);

CONC_AUTO_TYPE(redis_reply, redis_reply_free);
CONC_AUTO_TYPE(redis_client, redis_close);
CONC_AUTO_TYPE(redis_pipeline, redis_pipeline_close);
CONC_AUTO_TYPE(redis_subscription, redis_subscription_close);

/* ---- replies ---- */

/* One or more commands sent together. It is in a link's list until all replies have arrived. */
typedef struct redis__request {
    struct redis__request *next, *prev;
    redisReply **replies; /* `count` slots; NULL: its task gave up, the replies are dropped */
    int count, got;
    bool done;
    int rc;
    conc_event ended;
    size_t size, sent;
    char bytes[];
} redis__request;

#if HIREDIS_MAJOR < 1
typedef int redis__count;
#else
typedef size_t redis__count;
#endif

/* A connection. It lives until the client, its two tasks, and all tasks that wait for a reply have
 * released it. Once it is lost, `error` is not 0, fd is closed, and the list of requests is
 * empty. */
typedef struct redis__link {
    int fd, refs, error;
    bool answered;
    conc_loop *loop;
    redis__request *first, *last;
    redis__request *unsent; /* the first one that is not completely sent */
    conc_event wanted;      /* there is something to send, or the link is lost */
    conc_scope *patience;   /* the receiver's: it expires after `timeout` */
    double timeout;
    redisReader *reader;
    size_t limit, reply_bytes, elements;
    bool too_many;
    redisReplyObjectFunctions functions;
    void *(*create_array)(const redisReadTask *, redis__count);
    char name[72], words[128];
    char in[16384], out[16384];
} redis__link;

static inline int redis_reply_free(redis_reply *reply)
{
    if (*reply)
        freeReplyObject(*reply);
    *reply = NULL;
    return 0;
}

static inline int redis__no_memory(void) { return conc_fail(-ENOMEM, "redis: out of memory"); }

static inline double redis__or(double option, double otherwise)
{
    return option > 0 ? option : otherwise;
}

/* hiredis allocates an array as soon as it has read its length. Each element takes at least 3
 * bytes, so an array that must exceed the limit is refused before it is allocated. */
static inline void *redis__create_array(const redisReadTask *task, redis__count n)
{
    redis__link *l = task->privdata;
    l->elements += (size_t)n;
    l->too_many = l->elements > l->limit / 3;
    return l->too_many ? NULL : l->create_array(task, n);
}

static inline int redis__reader_open(redis__link *l)
{
    l->reader = redisReaderCreate();
    if (!l->reader)
        return redis__no_memory();
    l->functions = *l->reader->fn;
    l->create_array = l->functions.createArray;
    l->functions.createArray = redis__create_array;
    l->reader->fn = &l->functions;
    l->reader->privdata = l;
    return 0;
}

/* Parses a reply from what was read. Returns 1, 0 if it is incomplete, or an error. */
static inline int redis__parse(redis__link *l, redisReply **reply)
{
    void *found = NULL;
    if (redisReaderGetReply(l->reader, &found) != REDIS_OK && !l->too_many)
        return conc_fail(l->reader->err == REDIS_ERR_OOM ? -ENOMEM : -EPROTO, "%s",
                         l->reader->errstr);
    size_t rest = found ? l->reader->len - l->reader->pos : 0;
    *reply = found;
    if (l->too_many || l->reply_bytes - rest > l->limit) {
        redis_reply_free(reply);
        return conc_fail(-EMSGSIZE, "a reply is longer than %zu bytes", l->limit);
    }
    if (!found)
        return 0;
    l->reply_bytes = rest;
    l->elements = 0;
    return 1;
}

/* Sets how long the receiver waits for more bytes. */
static inline void redis__set_patience(redis__link *l)
{
    if (l->patience && l->timeout > 0)
        conc_scope_set_timeout(l->patience, l->first ? l->timeout : CONC_FOREVER);
}

/* Waits for a reply, which the caller then owns. A cancel loses nothing. */
static inline int redis__read_reply(redis__link *l, redisReply **reply)
{
    int rc;
    while ((rc = redis__parse(l, reply)) == 0) {
        if (l->error)
            return l->error;
        ssize_t n = CONC_TRY(conc_read(l->fd, l->in, sizeof l->in));
        if (n == 0)
            return conc_fail(-ECONNRESET, "the server closed the connection");
        if (redisReaderFeed(l->reader, l->in, (size_t)n) != REDIS_OK)
            return redis__no_memory();
        l->reply_bytes += (size_t)n;
        redis__set_patience(l);
    }
    return rc < 0 ? rc : 0;
}

/* Returns 0, or the error that an error reply to this command stands for. */
static inline int redis__check(const redisReply *reply, const char *command, int length)
{
    static const char *const access[] = {"NOAUTH", "WRONGPASS", "NOPERM"};
    int rc = -EIO;
    if (reply->type != REDIS_REPLY_ERROR)
        return 0;
    for (size_t i = 0; i < CONC_LEN(access); i++)
        if (strncmp(reply->str, access[i], strlen(access[i])) == 0)
            rc = -EACCES;
    return conc_fail(rc, "%.*s: %s", length, command, reply->str);
}

/* ---- links ---- */

static inline void redis__release(redis__link *l)
{
    if (--l->refs)
        return;
    redisReaderFree(l->reader);
    free(l);
}

/* Wakes the task of a request that has left the list, or frees the request if the task gave up. */
static inline void redis__end(redis__request *r, int rc)
{
    if (!r->replies) {
        free(r);
        return;
    }
    r->rc = rc;
    r->done = true;
    conc_event_set(&r->ended);
}

/* Closes a connection that was lost or is no longer wanted. The first request gets the error, the
 * others -ECONNRESET, and requests of which nothing was sent -EAGAIN; but -EPIPE goes to all. */
static inline void redis__lose(redis__link *l, int rc, const char *words)
{
    redis__request *r = l->first;
    if (l->error)
        return;
    snprintf(l->words, sizeof l->words, "%s: %s", l->name, words);
    l->error = rc;
    l->first = l->last = l->unsent = NULL;
    conc_close(l->fd);
    conc_event_set(&l->wanted);
    while (r) {
        redis__request *next = r->next;
        bool again = !r->sent && rc != -EPIPE;
        redis__end(r, again ? -EAGAIN : rc);
        rc = rc == -EPIPE ? rc : -ECONNRESET;
        r = next;
    }
}

static inline void redis__unlink(redis__link *l, redis__request *r)
{
    *(r->prev ? &r->prev->next : &l->first) = r->next;
    *(r->next ? &r->next->prev : &l->last) = r->prev;
    if (l->unsent == r)
        l->unsent = r->next;
}

/* May the next reply belong to this request? Its last reply may not arrive before all of it is
 * sent. */
static inline bool redis__is_due(const redis__request *r)
{
    bool is_last = r->got + 1 == r->count;
    return r->sent == r->size || (r->sent && !is_last);
}

/* Gives a reply to the first request. A server that refuses the connection sends an unrequested
 * reply. */
static inline int redis__deliver(redis__link *l, redisReply *reply)
{
    redis__request *r = l->first;
    if (!r || !redis__is_due(r)) {
        int rc = conc_fail(-EPROTO, "an unrequested reply: %s", reply->str ? reply->str : "");
        freeReplyObject(reply);
        return rc;
    }
    if (r->replies)
        r->replies[r->got] = reply;
    else
        freeReplyObject(reply);
    l->answered = true;
    if (++r->got == r->count) {
        redis__unlink(l, r);
        redis__end(r, 0);
    }
    redis__set_patience(l);
    return 0;
}

static inline int redis__receiver(void *arg)
{
    redis__link *l = arg;
    redisReply *reply;
    conc_scope patience = {0};
    int rc = conc_scope_begin(&patience, CONC_FOREVER);
    l->patience = &patience;
    redis__set_patience(l);
    while (rc == 0) {
        rc = redis__read_reply(l, &reply);
        if (rc == 0)
            rc = redis__deliver(l, reply);
    }
    l->patience = NULL;
    rc = conc_scope_end(&patience, rc);
    const char *words = conc_last_error();
    if (patience.expired && rc == -ETIMEDOUT)
        words = "the server did not answer in time";
    else if (rc == -ECANCELED)
        words = "the run ends";
    redis__lose(l, rc == -ECANCELED ? -ECONNRESET : rc, words);
    redis__release(l);
    return 0;
}

/* Copies the next bytes to send into l->out. Returns how many. */
static inline size_t redis__fill(redis__link *l)
{
    size_t n = 0;
    for (redis__request *r = l->unsent; r && n < sizeof l->out; r = l->unsent) {
        size_t rest = r->size - r->sent, room = sizeof l->out - n;
        size_t count = rest < room ? rest : room;
        memcpy(l->out + n, r->bytes + r->sent, count);
        n += count;
        r->sent += count;
        if (r->sent == r->size)
            l->unsent = r->next;
    }
    return n;
}

/* After a write error it only shuts the socket down, so the receiver can still read the server's
 * last words. */
static inline int redis__sender(void *arg)
{
    redis__link *l = arg;
    bool ended = false;
    while (!ended && !l->error) {
        size_t n = redis__fill(l);
        if (n > 0) {
            ended = conc_write_full(l->fd, l->out, n) != (ssize_t)n;
        } else {
            ended = conc_event_wait(&l->wanted) != 0;
            conc_event_clear(&l->wanted);
        }
    }
    if (!l->error)
        shutdown(l->fd, SHUT_RDWR);
    redis__release(l);
    return 0;
}

/* ---- connecting ---- */

/* Sends a command while nobody else uses the link. The caller then waits for the reply. */
static inline int redis__send(redis__link *l, char *bytes, int size)
{
    if (size < 0)
        return redis__no_memory();
    ssize_t n = conc_write_full(l->fd, bytes, (size_t)size);
    redisFreeCommand(bytes);
    if (n < 0 || n == size)
        return n < 0 ? (int)n : 0;
    redis__lose(l, -ECONNRESET, "only part of a command was sent");
    return conc_cancelled() ? -ECANCELED : conc_fail(-ECONNRESET, "the connection was lost");
}

static inline int redis__greeting(redis__link *l, const char *name, char *bytes, int size)
{
    redis_reply reply = NULL;
    CONC_TRY(redis__send(l, bytes, size));
    CONC_TRY(redis__read_reply(l, &reply));
    int rc = redis__check(reply, name, (int)strlen(name));
    redis_reply_free(&reply);
    l->answered = true;
    return rc;
}

static inline int redis__greet(const redis_client *c, redis__link *l)
{
    char *bytes = NULL;
    int size = 0;
    if (c->user)
        size = redisFormatCommand(&bytes, "AUTH %s %s", c->user, c->password);
    else if (c->password)
        size = redisFormatCommand(&bytes, "AUTH %s", c->password);
    if (size) {
        int rc = redis__greeting(l, "AUTH", bytes, size);
        CONC_TRY(rc == -EIO ? -EACCES : rc);
    }
    if (!c->database)
        return 0;
    size = redisFormatCommand(&bytes, "SELECT %d", c->database);
    return redis__greeting(l, "SELECT", bytes, size);
}

static inline int redis__start(const redis_client *c, redis__link *l)
{
    if (c->listens)
        return 0;
    CONC_TRY(conc_spawn(NULL, redis__sender, l));
    l->refs++;
    CONC_TRY(conc_spawn(NULL, redis__receiver, l));
    l->refs++;
    return 0;
}

static inline const char *redis__address(const redis_client *c)
{
    return c->address ? c->address : "127.0.0.1:6379";
}

/* Makes one attempt to connect. */
static inline int redis__open(redis_client *c)
{
    int fd = CONC_TRY(conc_dial(redis__address(c)));
    redis__link *l = calloc(1, sizeof *l);
    if (!l) {
        conc_close(fd);
        return redis__no_memory();
    }
    l->fd = fd;
    l->refs = 1;
    l->loop = conc_loop_self();
    l->limit = c->reply_limit ? c->reply_limit : (size_t)64 << 20;
    l->timeout = c->blocking ? 0 : c->timeout;
    snprintf(l->name, sizeof l->name, "redis %s", redis__address(c));
    int rc = redis__reader_open(l);
    if (rc == 0)
        rc = redis__greet(c, l);
    if (rc == 0)
        rc = redis__start(c, l);
    if (rc == 0) {
        c->link = l;
        return 0;
    }
    redis__lose(l, rc, conc_last_error());
    if (rc != -ECANCELED)
        conc_fail(rc, "%s", l->words);
    redis__release(l);
    return rc;
}

/* Waits before the next attempt, longer after each failure. */
static inline int redis__back_off(redis_client *c)
{
    double most = redis__or(c->max_delay, 2), wait = c->again_at - conc_now();
    if (wait > 0)
        CONC_TRY(conc_sleep(wait < most ? wait : most));
    c->pause = c->pause > 0 ? 2 * c->pause : redis__or(c->delay, 0.1);
    if (c->pause > most)
        c->pause = most;
    c->again_at = conc_now() + c->pause * conc_random(0.5, 1);
    return 0;
}

/* Might another attempt succeed? */
static inline bool redis__is_passing(int rc)
{
    switch (rc) {
    case 0:
    case -ECANCELED:
    case -EACCES:
    case -EINVAL:
    case -EIO:
    case -ENOMEM: return false;
    default: return true;
    }
}

static inline int redis__attempt(redis_client *c)
{
    int rc, left = c->attempts > 0 ? c->attempts : 5;
    double limit = redis__or(c->connect_timeout, 5);
    do {
        conc_scope s = {0};
        CONC_TRY(redis__back_off(c));
        CONC_TRY(conc_scope_begin(&s, limit));
        rc = conc_scope_end(&s, redis__open(c));
        if (s.expired && rc == -ETIMEDOUT)
            conc_fail(rc, "redis %s: no connection within %g s", redis__address(c), limit);
    } while (redis__is_passing(rc) && --left > 0);
    return rc;
}

static inline bool redis__is_linked(const redis_client *c) { return c->link && !c->link->error; }

/* Closes and releases the connection. */
static inline void redis__disconnect(redis_client *c, int rc, const char *words)
{
    if (!c->link)
        return;
    redis__lose(c->link, rc, words);
    if (c->link->answered)
        c->pause = c->again_at = 0;
    redis__release(c->link);
    c->link = NULL;
}

/* Connects. The caller holds the lock; redis_close cancels the scope. */
static inline int redis__connect_here(redis_client *c)
{
    conc_scope s = {0};
    redis__disconnect(c, -ECONNRESET, "");
    CONC_TRY(conc_scope_begin(&s, CONC_FOREVER));
    c->attempt = &s;
    int rc = conc_scope_end(&s, redis__attempt(c));
    c->attempt = NULL;
    if (rc < 0 && rc != -ECANCELED) {
        c->failures++;
        c->failure = rc;
        snprintf(c->words, sizeof c->words, "%s", conc_last_error());
    }
    return rc;
}

/* Connects unless connected. All tasks that wait for the same attempt share its failure. */
static inline int redis__connect(redis_client *c)
{
    unsigned failures = c->failures;
    if (redis__is_linked(c))
        return 0;
    CONC_LOCKED(&c->connecting) {
        if (!c->closing && c->failures != failures)
            return conc_fail(c->failure, "%s", c->words);
        if (!c->closing && !redis__is_linked(c))
            CONC_TRY(redis__connect_here(c));
    }
    return c->closing ? conc_fail(-EPIPE, "redis: the client was closed") : 0;
}

/* ---- the client ---- */

static inline int redis__leave(redis_client *c, int rc)
{
    if (--c->calls == 0)
        conc_event_set(&c->unused);
    return rc;
}

/* Begins a call, which redis__leave ends. */
static inline int redis__enter(redis_client *c)
{
    bool negative = c->database < 0 || c->attempts < 0 || c->delay < 0 || c->max_delay < 0 ||
                    c->connect_timeout < 0 || c->timeout < 0;
    bool elsewhere = redis__is_linked(c) && c->link->loop != conc_loop_self();
    if (!conc_self() || elsewhere)
        return conc_fail(-EPERM, "redis: not in a task of the client's run");
    if (negative || (c->user && !c->password))
        return conc_fail(-EINVAL, "redis: a negative option, or a user without a password");
    if (c->closing)
        return conc_fail(-EPIPE, "redis: the client was closed");
    if (c->blocking && c->calls)
        return conc_fail(-EBUSY,
                         "redis: another task uses this connection, which is for one at a time");
    conc_event_clear(&c->unused);
    c->calls++;
    return 0;
}

/* Detaches a request from its task, which gives up. */
static inline void redis__give_up(const redis_client *c, redis__link *l, redis__request *r)
{
    r->replies = NULL;
    if (!r->sent) {
        redis__unlink(l, r);
        free(r);
    } else if (c->blocking) {
        redis__lose(l, -ECONNRESET, "a command was cancelled");
    }
    if (!l->first)
        redis__set_patience(l);
}

static inline void redis__append(redis__link *l, redis__request *r)
{
    r->prev = l->last;
    *(l->last ? &l->last->next : &l->first) = r;
    l->last = r;
    if (!l->unsent)
        l->unsent = r;
    if (l->first == r)
        redis__set_patience(l);
    conc_event_set(&l->wanted);
}

/* Sends commands on the current connection and waits for their replies. */
static inline int redis__ask(redis_client *c, const redis__request *what, const char *bytes)
{
    redis__link *l = c->link;
    if (conc_cancelled())
        return conc_yield(); /* -ECANCELED, and nothing was sent */
    redis__request *r = malloc(sizeof *r + what->size);
    if (!r)
        return redis__no_memory();
    *r = *what;
    memcpy(r->bytes, bytes, r->size);
    l->refs++;
    redis__append(l, r);
    int rc = conc_event_wait(&r->ended);
    if (r->done) { /* even if a cancel arrived at the same time */
        rc = r->rc;
        free(r);
    } else {
        redis__give_up(c, l, r);
    }
    if (rc < 0 && rc != -ECANCELED)
        conc_fail(rc, "%s", l->words);
    redis__release(l);
    return rc;
}

static inline int redis__call(redis_client *c, redisReply **replies, int count, const char *bytes,
                              size_t size)
{
    redis__request what = {.replies = replies, .count = count, .size = size};
    int rc = -EAGAIN;
    CONC_TRY(redis__enter(c));
    while (rc == -EAGAIN) {
        rc = redis__connect(c);
        if (rc == 0)
            rc = redis__ask(c, &what, bytes);
    }
    return redis__leave(c, rc);
}

/* Returns the name of a command that hiredis formatted, "*2\r\n$3\r\nGET\r\n...", or NULL. */
static inline const char *redis__name(const char *bytes, int *length)
{
    const char *name = strstr(bytes, "\r\n$");
    if (name)
        name = strchr(name + 3, '\n');
    *length = name ? (int)strcspn(name + 1, "\r") : 0;
    return name ? name + 1 : NULL;
}

/* Checks whether a command that hiredis formatted may be sent. */
static inline int redis__check_command(const char *bytes, long long size)
{
    static const char *const refused[] = {
        "SUBSCRIBE\r",    "PSUBSCRIBE\r",
        "SSUBSCRIBE\r",   "UNSUBSCRIBE\r",
        "PUNSUBSCRIBE\r", "SUNSUBSCRIBE\r",
        "MONITOR\r",      "SYNC\r",
        "PSYNC\r",        "CLIENT\r\n$5\r\nREPLY\r",
    };
    int length;
    if (size < 0)
        return size == -1 ? redis__no_memory()
                          : conc_fail(-EINVAL, "redis: the format of a command is wrong");
    const char *name = redis__name(bytes, &length);
    if (!name)
        return conc_fail(-EINVAL, "redis: an empty command");
    for (size_t i = 0; i < CONC_LEN(refused); i++)
        if (strncasecmp(name, refused[i], strlen(refused[i])) == 0)
            return conc_fail(-EINVAL,
                             "redis: %.*s: its replies would be mistaken for those to others",
                             length, name);
    return 0;
}

/* Sends a command that hiredis formatted, and frees it. */
static inline int redis__command(redis_client *c, redis_reply *reply, char *bytes, long long size)
{
    redis_reply got = NULL;
    int length, rc = redis__check_command(bytes, size);
    if (rc == 0)
        rc = redis__call(c, &got, 1, bytes, (size_t)size);
    if (rc == 0) {
        const char *name = redis__name(bytes, &length);
        rc = redis__check(got, name, length);
    }
    redisFreeCommand(bytes);
    if (reply) {
        redis_reply_free(reply);
        *reply = got;
    } else {
        redis_reply_free(&got);
    }
    return rc;
}

static inline int redis_command(redis_client *c, redis_reply *reply, const char *format, ...)
{
    va_list args;
    char *bytes = NULL;
    if (!c || !format)
        return conc_fail(-EINVAL, "redis_command: no client, or no format");
    va_start(args, format);
    int size = redisvFormatCommand(&bytes, format, args);
    va_end(args);
    return redis__command(c, reply, bytes, size);
}

static inline int redis_command_argv(redis_client *c, redis_reply *reply, int argc,
                                     const char **argv, const size_t *sizes)
{
    char *bytes = NULL;
    if (!c || argc < 1 || !argv)
        return conc_fail(-EINVAL, "redis_command_argv: no client, or no words");
    long long size = redisFormatCommandArgv(&bytes, argc, argv, sizes);
    return redis__command(c, reply, bytes, size);
}

static inline int redis__wait_until_unused(void *arg)
{
    redis_client *c = arg;
    return c->calls ? conc_event_wait(&c->unused) : 0;
}

static inline int redis_close(redis_client *c)
{
    if (!c)
        return 0;
    c->closing = true;
    if (c->attempt)
        conc_scope_cancel(c->attempt);
    if (c->link)
        redis__lose(c->link, -EPIPE, "the client was closed");
    if (conc_self())
        conc_shield(CONC_FOREVER, redis__wait_until_unused, c);
    redis__disconnect(c, -EPIPE, "");
    c->closing = false;
    return 0;
}

/* ---- pipelines ---- */

static inline void redis__free_replies(redis_pipeline *p)
{
    for (int i = 0; i < p->reply_count; i++)
        redis_reply_free(&p->replies[i]);
    free(p->replies);
    p->replies = NULL;
    p->reply_count = 0;
}

static inline int redis__reserve(redis_pipeline *p, size_t size)
{
    size_t room = p->room;
    while (room < size)
        room = room ? 2 * room : 256;
    char *grown = room > p->room ? realloc(p->bytes, room) : p->bytes;
    if (!grown)
        return redis__no_memory();
    p->bytes = grown;
    p->room = room;
    return 0;
}

/* Adds a command that hiredis formatted, and frees it. */
static inline int redis__add(redis_pipeline *p, char *bytes, long long size)
{
    int rc = redis__check_command(bytes, size);
    if (rc == 0)
        rc = redis__reserve(p, p->size + (size_t)size);
    if (rc == 0) {
        memcpy(p->bytes + p->size, bytes, (size_t)size);
        p->size += (size_t)size;
        p->count++;
    }
    redisFreeCommand(bytes);
    return rc;
}

static inline int redis_pipeline_add(redis_pipeline *p, const char *format, ...)
{
    va_list args;
    char *bytes = NULL;
    if (!p || !format)
        return conc_fail(-EINVAL, "redis_pipeline_add: no pipeline, or no format");
    va_start(args, format);
    int size = redisvFormatCommand(&bytes, format, args);
    va_end(args);
    return redis__add(p, bytes, size);
}

static inline int redis_pipeline_add_argv(redis_pipeline *p, int argc, const char **argv,
                                          const size_t *sizes)
{
    char *bytes = NULL;
    if (!p || argc < 1 || !argv)
        return conc_fail(-EINVAL, "redis_pipeline_add_argv: no pipeline, or no words");
    long long size = redisFormatCommandArgv(&bytes, argc, argv, sizes);
    return redis__add(p, bytes, size);
}

static inline int redis_pipeline_run(redis_client *c, redis_pipeline *p)
{
    if (!c || !p || !p->count)
        return conc_fail(-EINVAL, "redis_pipeline_run: no client, or no commands");
    redis__free_replies(p);
    p->replies = calloc((size_t)p->count, sizeof *p->replies);
    if (!p->replies)
        return redis__no_memory();
    p->reply_count = p->count;
    CONC_TRY(redis__call(c, p->replies, p->count, p->bytes, p->size));
    for (int i = 0; i < p->count; i++) {
        char name[32];
        int length = snprintf(name, sizeof name, "command %d", i);
        CONC_TRY(redis__check(p->replies[i], name, length));
    }
    return 0;
}

static inline int redis_pipeline_close(redis_pipeline *p)
{
    if (!p)
        return 0;
    redis__free_replies(p);
    free(p->bytes);
    *p = (redis_pipeline){0};
    return 0;
}

/* ---- subscriptions ---- */

/* A channel or a pattern. */
typedef struct redis__topic {
    bool is_pattern;
    char *name;
} redis__topic;

/* Is the reply an array of `count` elements that begins with this word? */
static inline bool redis__is(const redisReply *r, const char *word, size_t count)
{
    bool is_list = r->type == REDIS_REPLY_ARRAY && r->elements == count;
    return is_list && r->element[0]->type == REDIS_REPLY_STRING &&
           strcasecmp(r->element[0]->str, word) == 0;
}

static inline bool redis__is_message(const redisReply *r)
{
    if (!redis__is(r, "message", 3) && !redis__is(r, "pmessage", 4))
        return false;
    for (size_t i = 0; i < r->elements; i++)
        if (r->element[i]->type != REDIS_REPLY_STRING)
            return false;
    return true;
}

/* Waits for the server's next reply. Sends a PING after `timeout`, and fails after another. */
static inline int redis__hear(redis_subscription *s, redisReply **reply)
{
    for (;;) {
        conc_scope limit = {0};
        CONC_TRY(conc_scope_begin(&limit, redis__or(s->own.timeout, CONC_FOREVER)));
        int rc = conc_scope_end(&limit, redis__read_reply(s->own.link, reply));
        if (rc == 0)
            s->pinged = false;
        if (rc != -ETIMEDOUT || !limit.expired)
            return rc;
        if (s->pinged)
            return conc_fail(rc, "the server did not answer in time");
        char *bytes = NULL;
        int size = redisFormatCommand(&bytes, "PING");
        CONC_TRY(redis__send(s->own.link, bytes, size));
        s->pinged = true;
    }
}

/* Closes an unusable connection; the next call reconnects. */
static inline int redis__give_up_link(const redis_subscription *s, int rc)
{
    redis__lose(s->own.link, -ECONNRESET, "");
    return rc;
}

/* Sends (P)(UN)SUBSCRIBE, and waits until the server has confirmed it. */
static inline int redis__confirm(redis_subscription *s, const char *verb, const char *name)
{
    redisReply *reply;
    char *bytes = NULL;
    int size = redisFormatCommand(&bytes, "%s %s", verb, name);
    CONC_TRY(redis__send(s->own.link, bytes, size));
    for (;;) {
        CONC_TRY(redis__hear(s, &reply));
        int rc = redis__check(reply, verb, (int)strlen(verb));
        bool is_answer = rc < 0 || redis__is(reply, verb, 3);
        s->own.link->answered = true;
        bool kept = redis__is_message(reply) && conc_queue_try_put(&s->waiting, &reply) == 0;
        s->missed |= redis__is_message(reply) && !kept;
        if (!kept)
            freeReplyObject(reply);
        if (is_answer)
            return rc;
    }
}

/* The same, but an error that is not the server's closes the connection. */
static inline int redis__tell(redis_subscription *s, bool subscribes, redis__topic topic)
{
    static const char *const verbs[2][2] = {{"UNSUBSCRIBE", "SUBSCRIBE"},
                                            {"PUNSUBSCRIBE", "PSUBSCRIBE"}};
    int rc = redis__confirm(s, verbs[topic.is_pattern][subscribes], topic.name);
    bool refused = rc == -EIO || rc == -EACCES;
    return rc < 0 && !refused ? redis__give_up_link(s, rc) : rc;
}

/* Reconnects if necessary, and subscribes to everything again. */
static inline int redis__renew(redis_subscription *s)
{
    if (redis__is_linked(&s->own))
        return 0;
    s->missed = s->topic_count && (s->missed || s->own.link);
    s->pinged = false;
    CONC_TRY(redis__connect(&s->own));
    for (size_t i = 0; i < s->topic_count; i++) {
        int rc = redis__tell(s, true, s->topics[i]);
        if (rc < 0)
            return redis__give_up_link(s, rc);
    }
    return 0;
}

static inline redis__topic *redis__find(const redis_subscription *s, redis__topic topic)
{
    for (size_t i = 0; i < s->topic_count; i++) {
        redis__topic *n = &s->topics[i];
        if (n->is_pattern == topic.is_pattern && strcmp(n->name, topic.name) == 0)
            return n;
    }
    return NULL;
}

static inline int redis__remember(redis_subscription *s, redis__topic topic)
{
    redis__topic *grown = realloc(s->topics, (s->topic_count + 1) * sizeof *grown);
    char *name = strdup(topic.name);
    if (grown)
        s->topics = grown;
    if (!grown || !name) {
        free(name);
        return redis__no_memory();
    }
    s->topics[s->topic_count++] = (redis__topic){topic.is_pattern, name};
    return 0;
}

static inline void redis__forget(redis_subscription *s, redis__topic *n)
{
    free(n->name);
    *n = s->topics[--s->topic_count];
}

static inline int redis__subscribe(redis_subscription *s, redis__topic topic)
{
    CONC_TRY(redis__renew(s));
    if (redis__find(s, topic))
        return 0;
    CONC_TRY(redis__remember(s, topic));
    int rc = redis__tell(s, true, topic);
    if (rc < 0)
        redis__forget(s, &s->topics[s->topic_count - 1]);
    return rc;
}

static inline int redis__unsubscribe(redis_subscription *s, redis__topic topic)
{
    redis__topic *found = redis__find(s, topic);
    if (!found)
        return conc_fail(-ENOENT, "redis: not subscribed to %s", topic.name);
    redis__forget(s, found);
    return redis__is_linked(&s->own) ? redis__tell(s, false, topic) : 0;
}

/* Begins a call, which redis__leave ends. */
static inline int redis__enter_subscription(redis_subscription *s, const void *argument)
{
    if (!s || !s->from || !argument)
        return conc_fail(-EINVAL, "redis: no subscription, no client in it, or no name");
    const redis_client *c = s->from;
    s->waiting.item_size = sizeof(redisReply *);
    if (!s->own.listens)
        s->own = (redis_client){.address = c->address,
                                .user = c->user,
                                .password = c->password,
                                .attempts = c->attempts,
                                .delay = c->delay,
                                .max_delay = c->max_delay,
                                .connect_timeout = c->connect_timeout,
                                .timeout = c->timeout,
                                .reply_limit = c->reply_limit,
                                .blocking = true,
                                .listens = true};
    return redis__enter(&s->own);
}

static inline int redis__change(redis_subscription *s, const char *name, bool is_pattern,
                                int (*change)(redis_subscription *, redis__topic))
{
    CONC_TRY(redis__enter_subscription(s, name));
    int rc = change(s, (redis__topic){is_pattern, (char *)(uintptr_t)name});
    return redis__leave(&s->own, rc);
}

static inline int redis_subscribe(redis_subscription *s, const char *channel)
{
    return redis__change(s, channel, false, redis__subscribe);
}

static inline int redis_subscribe_pattern(redis_subscription *s, const char *pattern)
{
    return redis__change(s, pattern, true, redis__subscribe);
}

static inline int redis_unsubscribe(redis_subscription *s, const char *channel)
{
    return redis__change(s, channel, false, redis__unsubscribe);
}

static inline int redis_unsubscribe_pattern(redis_subscription *s, const char *pattern)
{
    return redis__change(s, pattern, true, redis__unsubscribe);
}

/* Waits for the next message, which the caller then owns. */
static inline int redis__next(redis_subscription *s, redisReply **message)
{
    for (;;) {
        if (conc_queue_try_get(&s->waiting, message) == 0)
            return 0;
        if (!s->topic_count)
            return conc_fail(-EINVAL, "redis: there is no subscription");
        int rc = redis__renew(s);
        if (rc == -ECONNRESET) /* which tells the caller that the connection was renewed */
            return conc_fail(-ENOTCONN, "%s", conc_last_error());
        CONC_TRY(rc);
        if (s->missed) {
            s->missed = false;
            return conc_fail(-ECONNRESET, "redis: the connection was lost, and messages with it");
        }
        rc = redis__hear(s, message);
        if (rc == -ECANCELED)
            return rc;
        if (rc < 0)
            redis__give_up_link(s, rc);
        else if (redis__is_message(*message))
            return 0;
        else
            freeReplyObject(*message);
    }
}

static inline int redis_next_message(redis_subscription *s, redis_message *m)
{
    CONC_TRY(redis__enter_subscription(s, m));
    redis_reply_free(&s->current);
    int rc = redis__leave(&s->own, redis__next(s, &s->current));
    if (rc < 0)
        return rc;
    redisReply **part = s->current->element;
    bool is_pattern = s->current->elements == 4;
    *m = (redis_message){.pattern = is_pattern ? part[1]->str : NULL,
                         .channel = part[is_pattern + 1]->str,
                         .data = part[is_pattern + 2]->str,
                         .size = part[is_pattern + 2]->len};
    return 0;
}

static inline int redis_subscription_close(redis_subscription *s)
{
    if (!s)
        return 0;
    redis_close(&s->own);
    redis_reply_free(&s->current);
    while (s->topic_count)
        redis__forget(s, &s->topics[0]);
    while (conc_queue_try_get(&s->waiting, &s->current) == 0)
        redis_reply_free(&s->current);
    conc_queue_destroy(&s->waiting);
    free(s->topics);
    *s = (redis_subscription){.from = s->from};
    return 0;
}

#endif
