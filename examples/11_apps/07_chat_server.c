/* Chat server. Rooms over WebSockets: everyone in a room gets each message once and in order, with
   history, presence, and a limit per user. A returning client gets exactly what it missed; one that
   does not read is dropped without delaying others.

   cc -O2 07_chat_server.c -o chat -lwslay -lhttp_parser -lcjson -lssl -lcrypto
   ./chat                       # then open http://127.0.0.1:8080/ twice; --help lists the options
   ./chat --goal                # 1000 users, and the latency of their messages
   ./chat --load 127.0.0.1:8080 1000 10       # the same for 10 s against a running server
   openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem
   ./chat --certificate cert.pem --key key.pem   # https:// and wss://

   A client sends JSON, one object per message, to ws://127.0.0.1:8080/chat:
     {"type": "join", "room": "tea", "name": "Ann", "after": 1760000000017}
     {"type": "say", "room": "tea", "text": "Hello"}
     {"type": "leave", "room": "tea"}
   after is the id of the last message that the client has seen; without it, the client gets the
   whole history. It receives messages of these types:
     joined (room, members, complete), said (room, id, name, text, time), arrived and left (room,
     name), error (text). complete is false if the history does not reach back to after. */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/chat_load.h"
#include "../common/descriptors.h"
#include "../common/http.h"
#include "../common/log.h"
#include "../common/options.h"
#include "../common/page.h"
#include "../common/tls.h"
#include "../common/websocket.h"
#include <cjson/cJSON.h>

enum {
    NAME = 128,              /* bytes of a name, with its end */
    LONGEST_TEXT = 4000,     /* bytes */
    LONGEST_REQUEST = 32768, /* a text may be written with \u escapes */
    MOST_WAITING = 1 << 20,  /* bytes that wait for a client; more: it does not read */
    SYSTEM_BUFFER = 65536,   /* bytes that the system may keep for it in addition */
    MOST_ROOMS = 1000,
    ROOMS_OF_A_CLIENT = 20,
    HISTORY = 200 /* messages of a room that are kept */
};

static struct {
    const char *address, *page, *load;
    double rate, burst, ping, clients, seconds, server;
    bool quiet, goal, figures;
    tls_context tls;
} options = {.rate = 5, .burst = 10, .ping = 30, .clients = 1000, .seconds = 10};

/* ---- who and what there is ------------------------------------------------------------------ */

/* Written once, and shared by all queues and histories that it is in. */
typedef struct {
    int owners;
    int64_t id; /* grows in a room; 0: an event, which is not kept */
    size_t size;
    char text[];
} message;

typedef struct user {
    struct user *next;
    int clients; /* that use this name */
    conc_limiter limit;
    char name[NAME];
} user;

/* A user in a room, by one client. */
typedef struct member {
    struct member *next_in_room, *next_of_client;
    struct client *client;
    struct room *room;
} member;

typedef struct room {
    struct room *next;
    member *members;
    message *history[HISTORY]; /* a ring: the message with an id lies at id % HISTORY */
    int kept;
    int64_t next_id;
    char name[NAME];
} room;

typedef struct {
    room *rooms;
    user *users;
    int room_count, client_count;
    long said, dropped;
    void *page;
    size_t page_size;
    log_writer log;
} hub;

typedef struct client {
    hub *hub;
    websocket w;
    conc_group tasks;   /* one receives, one sends; cancelled if it does not read */
    conc_queue waiting; /* of message *, for the one that sends */
    size_t waiting_bytes;
    user *user; /* NULL: it has not joined any room yet */
    member *rooms;
    bool is_dropped;
} client;

static message *message_of(cJSON *json, int64_t id)
{
    char *text = cJSON_PrintUnformatted(json);
    size_t size = text ? strlen(text) : 0;
    message *m = text ? malloc(sizeof *m + size + 1) : NULL;
    if (m) {
        *m = (message){.owners = 1, .id = id, .size = size};
        memcpy(m->text, text, size + 1);
    }
    cJSON_free(text);
    cJSON_Delete(json);
    return m;
}

static void release(message *m)
{
    if (m && --m->owners == 0)
        free(m);
}

/* ---- publish and subscribe ------------------------------------------------------------------ */

/* This client gets the message in its turn. It does not wait: who does not read would hold the
 * whole room. */
static void post(client *c, message *m)
{
    if (c->is_dropped)
        return;
    bool has_room = m && c->waiting_bytes + m->size <= MOST_WAITING;
    if (has_room && conc_queue_try_put(&c->waiting, &m) == 0) {
        m->owners++;
        c->waiting_bytes += m->size;
        return;
    }
    c->is_dropped = true;
    c->hub->dropped++;
    conc_group_cancel(&c->tasks);
}

/* All of the room get it, and it is the sender's no more. */
static void publish(room *r, message *m)
{
    for (member *one = r->members; one; one = one->next_in_room)
        post(one->client, m);
    release(m);
}

/* The task of a client that sends what waits. */
static int send_messages(void *arg)
{
    client *c = arg;
    for (message *m = NULL;;) {
        CONC_TRY(conc_queue_get(&c->waiting, &m));
        int rc = websocket_send(&c->w, WEBSOCKET_TEXT, m->text, m->size);
        c->waiting_bytes -= m->size;
        release(m);
        if (rc == -ECANCELED)
            return rc;
        if (rc < 0) /* the connection is gone, as the task that receives will see, too */
            conc_group_cancel(&c->tasks);
    }
}

static cJSON *event(const char *type, const room *r, const char *name)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", type);
    cJSON_AddStringToObject(json, "room", r->name);
    if (name)
        cJSON_AddStringToObject(json, "name", name);
    return json;
}

/* ---- rooms: history and presence ------------------------------------------------------------ */

/* Forgets the oldest of the rooms in which nobody is: false if there is none. */
static bool forget_a_room(hub *h)
{
    room **oldest = NULL;
    for (room **at = &h->rooms; *at; at = &(*at)->next)
        if (!(*at)->members)
            oldest = at; /* new ones are put in front */
    if (!oldest)
        return false;
    room *r = *oldest;
    *oldest = r->next;
    for (int i = 0; i < HISTORY; i++)
        release(r->history[i]);
    free(r);
    h->room_count--;
    return true;
}

/* Ids begin with the time of day: so they grow, too, when the server starts anew, and a client that
 * comes back with an id of before is not taken for one that has seen everything. */
static room *room_of(hub *h, const char *name)
{
    for (room *r = h->rooms; r; r = r->next)
        if (strcmp(r->name, name) == 0)
            return r;
    if (h->room_count >= MOST_ROOMS && !forget_a_room(h))
        return NULL;
    room *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    snprintf(r->name, sizeof r->name, "%s", name);
    r->next_id = (int64_t)time(NULL) * 1000;
    r->next = h->rooms;
    h->rooms = r;
    h->room_count++;
    return r;
}

static void keep(room *r, message *m)
{
    message **place = &r->history[m->id % HISTORY];
    release(*place);
    *place = m;
    m->owners++;
    r->kept += r->kept < HISTORY;
}

static void post_history(client *c, const room *r, int64_t after)
{
    for (int64_t id = r->next_id - r->kept; id < r->next_id; id++)
        if (id > after)
            post(c, r->history[id % HISTORY]);
}

static member *member_of(const client *c, const char *room_name)
{
    for (member *m = c->rooms; room_name && m; m = m->next_of_client)
        if (strcmp(m->room->name, room_name) == 0)
            return m;
    return NULL;
}

/* Is the user there, with this client or another? */
static bool is_present(const room *r, const user *u)
{
    for (const member *m = r->members; m; m = m->next_in_room)
        if (m->client->user == u)
            return true;
    return false;
}

static cJSON *members_of(const room *r)
{
    cJSON *names = cJSON_CreateArray();
    for (const member *m = r->members; m; m = m->next_in_room) {
        const member *first = r->members; /* a user with two clients is one */
        while (first->client->user != m->client->user)
            first = first->next_in_room;
        if (first == m)
            cJSON_AddItemToArray(names, cJSON_CreateString(m->client->user->name));
    }
    return names;
}

/* There is no wait between these steps: no message comes twice, and none is left out. */
static int enter(client *c, room *r, int64_t after)
{
    member *m = malloc(sizeof *m);
    if (!m)
        return -ENOMEM;
    if (!is_present(r, c->user))
        publish(r, message_of(event("arrived", r, c->user->name), 0));
    *m = (member){r->members, c->rooms, c, r};
    r->members = c->rooms = m;
    cJSON *joined = event("joined", r, NULL);
    cJSON_AddItemToObject(joined, "members", members_of(r));
    cJSON_AddBoolToObject(joined, "complete", after < 0 || after + 1 >= r->next_id - r->kept);
    message *first = message_of(joined, 0);
    post(c, first);
    release(first);
    post_history(c, r, after);
    return 0;
}

static void leave(client *c, member *m)
{
    room *r = m->room;
    member **at = &r->members, **of_client = &c->rooms;
    while (*at != m)
        at = &(*at)->next_in_room;
    *at = m->next_in_room;
    while (*of_client != m)
        of_client = &(*of_client)->next_of_client;
    *of_client = m->next_of_client;
    free(m);
    if (!is_present(r, c->user))
        publish(r, message_of(event("left", r, c->user->name), 0));
}

/* ---- users ---------------------------------------------------------------------------------- */

/* A user without clients is kept until the limit is as new: it does not help to come back. */
static void forget_users(hub *h)
{
    user **at = &h->users;
    while (*at) {
        user *u = *at;
        bool is_new = u->clients == 0 && !conc_limiter_try_acquire(&u->limit, (int)options.burst);
        if (!is_new) {
            at = &u->next;
            continue;
        }
        *at = u->next;
        free(u);
    }
}

static user *user_of(hub *h, const char *name)
{
    forget_users(h);
    user *u = h->users;
    while (u && strcmp(u->name, name) != 0)
        u = u->next;
    if (!u) {
        u = calloc(1, sizeof *u);
        if (!u)
            return NULL;
        snprintf(u->name, sizeof u->name, "%s", name);
        u->limit = (conc_limiter){.rate = options.rate, .burst = options.burst};
        u->next = h->users;
        h->users = u;
    }
    u->clients++;
    return u;
}

/* ---- what a client asks for: NULL, or what is wrong with it --------------------------------- */

static const char *text_of(const cJSON *json, const char *name, size_t most)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, name));
    return text && *text && strlen(text) <= most ? text : NULL;
}

static bool is_printable(const char *text)
{
    while (text && *text)
        if ((unsigned char)*text++ < ' ')
            return false;
    return text;
}

static const char *join(client *c, const cJSON *json)
{
    const cJSON *after = cJSON_GetObjectItemCaseSensitive(json, "after");
    const char *room_name = text_of(json, "room", NAME - 1);
    const char *name = c->user ? c->user->name : text_of(json, "name", NAME - 1);
    int count = 0;
    if (!is_printable(room_name) || !is_printable(name))
        return "A room and a name have 1 to 127 bytes, and no control characters.";
    if (member_of(c, room_name))
        return "You are in that room.";
    for (member *m = c->rooms; m; m = m->next_of_client)
        count++;
    room *r = count < ROOMS_OF_A_CLIENT ? room_of(c->hub, room_name) : NULL;
    if (!r)
        return "There are too many rooms.";
    if (!c->user)
        c->user = user_of(c->hub, name);
    bool is_id = cJSON_IsNumber(after) && after->valuedouble >= 0 && after->valuedouble < 1e15;
    if (!c->user || enter(c, r, is_id ? (int64_t)after->valuedouble : -1))
        return "The server is out of memory.";
    if (!options.quiet)
        log_line(&c->hub->log, "%s joins %s", name, room_name);
    return NULL;
}

static const char *say(client *c, const cJSON *json)
{
    member *in = member_of(c, text_of(json, "room", NAME - 1));
    const char *text = text_of(json, "text", LONGEST_TEXT);
    if (!in)
        return "You are not in that room.";
    if (!text)
        return "A text has 1 to 4000 bytes.";
    if (conc_limiter_try_acquire(&c->user->limit, 1))
        return "You are too fast: wait a little.";
    cJSON *said = event("said", in->room, c->user->name);
    cJSON_AddNumberToObject(said, "id", (double)in->room->next_id);
    cJSON_AddStringToObject(said, "text", text);
    cJSON_AddNumberToObject(said, "time", (double)time(NULL));
    message *m = message_of(said, in->room->next_id);
    if (!m)
        return "The server is out of memory.";
    in->room->next_id++;
    c->hub->said++;
    keep(in->room, m);
    publish(in->room, m);
    return NULL;
}

static const char *answer_request(client *c, const cJSON *json)
{
    const char *type = text_of(json, "type", NAME);
    member *in = member_of(c, text_of(json, "room", NAME - 1));
    if (!type)
        return "That is no JSON object with a type.";
    if (strcmp(type, "join") == 0)
        return join(c, json);
    if (strcmp(type, "say") == 0)
        return say(c, json);
    if (strcmp(type, "leave") != 0)
        return "The types are join, say and leave.";
    if (!in)
        return "You are not in that room.";
    leave(c, in);
    return NULL;
}

/* ---- a connection --------------------------------------------------------------------------- */

static int receive_messages(client *c)
{
    websocket_message m;
    while (CONC_TRY(websocket_receive(&c->w, &m)) > 0) {
        if (m.type != WEBSOCKET_TEXT)
            return websocket_end(&c->w, 1003, "only text is spoken here");
        cJSON *json = cJSON_ParseWithLength(m.data, m.size);
        const char *fault = answer_request(c, json);
        cJSON_Delete(json);
        if (!fault)
            continue;
        cJSON *error = cJSON_CreateObject();
        cJSON_AddStringToObject(error, "type", "error");
        cJSON_AddStringToObject(error, "text", fault);
        message *reply = message_of(error, 0);
        post(c, reply);
        release(reply);
    }
    return 0;
}

static void log_end(client *c, bool is_stopping)
{
    const char *name = c->user ? c->user->name : "somebody";
    if (options.quiet)
        return;
    if (c->is_dropped)
        log_line(&c->hub->log, "%s is dropped: does not read", name);
    else if (is_stopping)
        log_line(&c->hub->log, "%s is sent away", name);
    else if (*c->w.error)
        log_line(&c->hub->log, "%s is gone: %s", name, c->w.error);
    else
        log_line(&c->hub->log, "%s is gone: closed with %d", name, c->w.close_code);
}

/* The server stops: clients know from 1001 that they may come back. */
static int send_away(void *c) { return websocket_end(&((client *)c)->w, 1001, "the server stops"); }

static int close_client(void *c) { return websocket_close(&((client *)c)->w); }

static int chat(http_connection *http, hub *h)
{
    client c = {.hub = h, .waiting = CONC_QUEUE(message *, 0)};
    c.w = (websocket){.max_message = LONGEST_REQUEST, .ping_interval = options.ping};
    c.w.close_timeout = 2;
    message *left;
    if (websocket_accept(&c.w, http))
        return 0;
    h->client_count++;
    int rc = conc_spawn(&c.tasks, send_messages, &c);
    if (rc == 0)
        rc = receive_messages(&c);
    if (rc >= 0)
        conc_group_cancel(&c.tasks);
    bool is_stopping = conc_group_end(&c.tasks, rc) == -ECANCELED;
    while (c.rooms)
        leave(&c, c.rooms);
    if (is_stopping)
        conc_shield(2, send_away, &c);
    log_end(&c, is_stopping);
    if (c.user)
        c.user->clients--;
    while (conc_queue_try_get(&c.waiting, &left) == 0)
        release(left);
    conc_queue_destroy(&c.waiting);
    h->client_count--;
    conc_timeout(c.is_dropped ? 0 : 2, close_client, &c);
    return is_stopping ? -ECANCELED : 0;
}

/* ---- HTTP ----------------------------------------------------------------------------------- */

static int send_page(http_connection *http, const hub *h)
{
    if (!h->page)
        return http_printf(http, 404, "The server has no page; --page FILE says where it is.\n");
    CONC_TRY(http_set_header(http, "Content-Security-Policy",
                             "default-src 'none'; style-src 'unsafe-inline'; "
                             "script-src 'unsafe-inline'; connect-src 'self'; img-src data:"));
    return page_send(http, h->page, h->page_size);
}

static int answer(http_connection *http, void *arg)
{
    hub *h = arg;
    bool is_chat = strcmp(http->path, "/chat") == 0;
    if (is_chat && page_is_foreign(http))
        return http_printf(http, 403, "This page is of another site.\n");
    if (is_chat)
        return chat(http, h);
    if (strcmp(http->method, "GET") != 0 && strcmp(http->method, "HEAD") != 0)
        return http_printf(http, 405, "There is only GET here.\n");
    if (strcmp(http->path, "/") == 0)
        return send_page(http, h);
    if (strcmp(http->path, "/status") == 0)
        return http_printf(http, 200, "clients %d\nrooms %d\nmessages %ld\ndropped %ld\n",
                           h->client_count, h->room_count, h->said, h->dropped);
    return http_printf(http, 404, "There is /, /chat and /status.\n");
}

static int serve_stream(conc_stream *stream, hub *h)
{
    CONC_AUTO(http_connection, http) = {.stream = stream};
    return http_serve(&http, answer, h);
}

static int serve_client(int fd, void *arg)
{
    int size = SYSTEM_BUFFER;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (options.tls.certificate_file) {
        CONC_AUTO(tls_connection, t) = {0};
        if (tls_accept(&t, &options.tls, fd))
            return 0; /* such as a client that does not trust the certificate */
        return serve_stream(&t.stream, arg);
    }
    conc_stream stream = {0};
    CONC_TRY(conc_stream_open(&stream, fd));
    return serve_stream(&stream, arg);
}

/* ---- the server: until SIGINT or SIGTERM ---------------------------------------------------- */

/* Without --page the server also runs if there is no page. */
static int read_page(hub *h)
{
    int rc = page_read(options.page, __FILE__, &h->page, &h->page_size);
    if (rc == 0 || options.page || rc == -ECANCELED)
        return rc;
    if (!options.quiet)
        fprintf(stderr, "chat: %s\n", conc_last_error());
    return 0;
}

static void hub_close(hub *h)
{
    while (h->users) {
        user *u = h->users;
        h->users = u->next;
        free(u);
    }
    while (forget_a_room(h))
        continue;
    conc_free(h->page);
    log_close(&h->log);
}

CONC_AUTO_TYPE(hub, hub_close);

static int accept_clients(void *server) { return conc_serve(server); }

static int serve(void *arg)
{
    static const int stops[] = {SIGINT, SIGTERM};
    char address[120];
    conc_group serving = {0};
    CONC_AUTO(hub, h) = {.log.fd = STDOUT_FILENO};
    CONC_AUTO(conc_group, logging) = {0}; /* ends before what it logs to */
    CONC_AUTO(conc_signals, signals) = {0};
    conc_server server = {.handler = serve_client, .arg = &h};
    const conc_listen_options many = {.backlog = 1024};
    bool is_tls = options.tls.certificate_file;
    (void)arg;
    CONC_TRY(conc_signals_open(&signals, stops, CONC_LEN(stops)));
    CONC_TRY(read_page(&h));
    server.fd = CONC_TRY(conc_listen_with(options.address, &many));
    CONC_TRY(conc_address(server.fd, false, address, sizeof address));
    log_line(&h.log, "chat listens on %s://%s/, and for WebSockets on %s://%s/chat",
             is_tls ? "https" : "http", address, is_tls ? "wss" : "ws", address);
    CONC_TRY(log_flush(&h.log));
    CONC_TRY(conc_spawn(&logging, log_write, &h.log));
    CONC_TRY_IN(&serving, conc_spawn(&serving, accept_clients, &server));
    int signal = conc_signals_next(&signals);
    conc_signals_close(&signals); /* a second Ctrl+C ends the program at once */
    conc_group_cancel(&serving);
    int rc = conc_group_end(&serving, signal < 0 ? signal : 0);
    conc_close(server.fd);
    log_line(&h.log, "chat stops: %ld messages, %ld clients dropped", h.said, h.dropped);
    conc_shield(1, log_flush, &h.log);
    return rc;
}

/* ---- the load, and the goal: a server as a process of this program, and the load ------------ */

static void tell(const chat_load *l)
{
    printf("%d users said %ld messages in %g s\n", l->clients, l->said, l->seconds);
    printf("deliveries  goal: %ld; measured: %ld, of which %ld wrong or out of order\n",
           l->expected, l->received, l->wrong);
    printf("latency     goal: p99 under 100 ms; measured: p50 %.2f ms, p99 %.2f ms, at most "
           "%.2f ms\n",
           l->p50 * 1e3, l->p99 * 1e3, l->latest * 1e3);
    if (l->server)
        printf("processor   the server's: %.1f ms, %.2f us a delivery\n", l->server_seconds * 1e3,
               l->received ? l->server_seconds * 1e6 / (double)l->received : 0);
}

static int run_load(const char *address)
{
    chat_load l = {.address = address, .clients = (int)options.clients};
    l.seconds = options.seconds;
    l.server = (pid_t)options.server;
    l.shows_progress = !options.figures;
    CONC_TRY(chat_load_run(&l));
    if (options.figures)
        printf("%ld %lld %.3f %.3f %.3f\n", l.received, (long long)l.sum, l.server_seconds * 1e3,
               l.p50 * 1e3, l.p99 * 1e3);
    else
        tell(&l);
    bool is_right = l.received == l.expected && l.wrong == 0 && l.said > 0;
    return is_right ? 0 : conc_fail(-EBADMSG, "messages are missing, or wrong");
}

static int load_app(void *arg)
{
    (void)arg;
    return run_load(options.load);
}

static int goal(void *arg)
{
    char line[200] = "", address[64];
    const char *const argv[] = {"/proc/self/exe", "--listen", "127.0.0.1:0", "--quiet", NULL};
    CONC_AUTO(conc_child, server) = {.argv = argv, .output = CONC_PIPE, .grace = 5};
    (void)arg;
    CONC_TRY(conc_child_start(&server));
    CONC_TRY(conc_read(server.output, line, sizeof line - 1)); /* it is written at once */
    if (sscanf(line, "chat listens on http://%63[^/]", address) != 1)
        return conc_fail(-ECHILD, "the server does not start: %s", line);
    return run_load(address);
}

/* ---- options -------------------------------------------------------------------------------- */

static const options_field fields[] = {
    OPTIONS_TEXT("listen", "ADDRESS", &options.address, "default: 127.0.0.1:8080"),
    OPTIONS_TEXT("page", "FILE", &options.page, "for /; default: 07_chat_server.html"),
    OPTIONS_TEXT("certificate", "FILE", &options.tls.certificate_file, "serves https and wss"),
    OPTIONS_TEXT("key", "FILE", &options.tls.key_file, "of the certificate, if it is not in it"),
    OPTIONS_NUMBER("rate", "N", &options.rate, 0.001, 1e6,
                   "messages a second of a user; default: 5"),
    OPTIONS_NUMBER("burst", "N", &options.burst, 1, 1e6, "of them at once; default: 10"),
    OPTIONS_NUMBER("ping", "SECONDS", &options.ping, 0.01, 1e6,
                   "until a silent client gets a ping, and then until it is gone; default: 30"),
    OPTIONS_FLAG("quiet", &options.quiet, "logs nothing but where it listens"),
    OPTIONS_TEXT("load", "ADDRESS", &options.load, "talks to a server that runs, and measures"),
    OPTIONS_NUMBER("clients", "N", &options.clients, 1, 60000, "of the load; default: 1000"),
    OPTIONS_NUMBER("seconds", "N", &options.seconds, 1, 1e6, "of the load; default: 10"),
    OPTIONS_NUMBER("server", "PID", &options.server, 1, 1e9,
                   "its process: the load tells its processor time, too"),
    OPTIONS_FLAG("figures", &options.figures,
                 "of the load, for a program: received, sum, ms of the server, p50, p99"),
    OPTIONS_FLAG("goal", &options.goal, "starts a server for the load, and ends"),
};

static const char about[] = "Serves chat rooms until SIGINT or SIGTERM, and then ends with 0. 1: "
                            "an error, or a load whose\n"
                            "messages did not all arrive. 2: bad arguments.";

int main(int argc, char **argv)
{
    char *load_words[] = {argv[0], "--load", NULL, "--clients", NULL, "--seconds", NULL, NULL};
    if (argc == 5 && strcmp(argv[1], "--load") == 0) { /* --load ADDRESS CLIENTS SECONDS */
        for (int i = 2; i < 5; i++)
            load_words[2 * i - 2] = argv[i];
        argv = load_words;
        argc = 7;
    }
    int status = options_read(fields, CONC_LEN(fields), argc, argv, "chat [options]", about);
    if (status >= 0)
        return status;
    if (options.tls.certificate_file && tls_context_open_server(&options.tls))
        return fprintf(stderr, "chat: %s\n", options.tls.error), 1;
    descriptors_allow_most();
    if (!options.address)
        options.address = "127.0.0.1:8080";
    if (options.goal)
        return conc_main(goal, NULL);
    if (options.load)
        return conc_main(load_app, NULL);
    status = conc_main(serve, NULL);
    tls_context_close(&options.tls);
    return status;
}
