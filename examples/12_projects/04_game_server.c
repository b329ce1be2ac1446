/* A game server: tanks in an arena, matches of 4 to 8 players, 20 ticks a second. Clients connect
   by WebSocket (a browser) or UDP. The server alone decides what happens; a client sends its
   actions, receives changes, and is thrown out for impossible actions.

   cc 04_game_server.c -o game_server -lwslay -lcrypto -lhttp_parser
   ./game_server                              # open http://127.0.0.1:8080; bots play with you
   ./game_server --listen 0.0.0.0:8080 --match 120 --house 20
   ./game_server --bots 127.0.0.1:8080 50     # players for a server that runs
   ./game_server --simulate 7                 # virtual clock, no network: the same each time
   ./game_server --simulate 7 --every 1       # with the hash of each tick's state
   ./game_server --goal                       # 1000 players

   While it serves, /leaderboard and /stats show more. The parts specific to this game are in
   ../common: its rules (arena.h), its messages (arena_net.h), its bots (arena_client.h). */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/arena_load.h"
#include "../common/http.h"
#include "../common/log.h"
#include "../common/matchmaking.h"
#include "../common/options.h"
#include "../common/static_files.h"
#include "../common/ticker.h"
#include <sys/resource.h>

enum {
    PLAYERS = 4096, /* that are known: a power of two */
    ACTIONS = 32,   /* of a player, that wait for the next tick */
    CHEATS = 40,    /* refused actions that end a match for a player */
    EXCESS = 1000,  /* messages over the limit that end a session */
    ROUNDS = 4,     /* of match-making, a second */
    LEADERS = 10,
    HOUSE = 256 /* bots at most */
};

static const double READY = 1;    /* seconds before a match begins */
static const double ABSENCE = 10; /* seconds in which a player may come back */
static const double SILENCE = 5;  /* seconds until a client has gone that says nothing */
static const double OVERTIME = 5; /* seconds for the last actions to come in */

static const matchmaking_rules rules = {
    .least = ARENA_PLAYERS / 2, .most = ARENA_PLAYERS, .patience = 4, .band = 50, .widening = 50};

static struct {
    const char *listen, *bots, *page;
    double match, house, players, every, simulate; /* match: seconds; 0: as the command likes */
    bool goal, child;
    char **words;
} options = {.listen = "127.0.0.1:8080", .house = 7};

typedef struct match match;
typedef struct session session;

typedef struct player {
    char name[ARENA_NAME];
    uint64_t token; /* a secret, its low bits are the place in the table; 0: a free place */
    int rating, matches, wins;
    int held;         /* by matches that are not over */
    session *session; /* NULL: away since `left` */
    double left;
    conc_event back;
    match *match; /* NULL: none */
    int slot;
    conc_queue actions; /* for the next tick */
    snapshot_view view; /* the states that the client has */
    uint16_t taken;     /* the number of its newest action that was taken */
    bool settled;       /* it has a state after the end, with all its actions in it */
    arena_result result;
} player;

/* A client, as long as its connection lasts. */
struct session {
    packet_link *link;
    player *player;
    conc_group group;
    conc_event news;
    int due; /* bits, ARENA_WELCOME to ARENA_END: what to tell it next */
    conc_limiter messages;
    int excess;         /* messages that were too many */
    const char *reason; /* why the server ends it */
};

struct match {
    int here, refused[ARENA_PLAYERS];
    bool accused[ARENA_PLAYERS]; /* something was refused: that was said */
    player *players[ARENA_PLAYERS];
    arena_roster roster;
    arena state;
    snapshot_history history;
    ticker ticker;
    conc_group group; /* its tasks wait for those who are away */
};

static struct {
    player players[PLAYERS];
    matchmaking_ticket waiting[PLAYERS];
    double started;
    int wait_count, online, playing, matches;
    conc_event somebody_waits;
    conc_sem house; /* a permit: a bot of the house may join */
    conc_group games;
    datagrams udp;
    ticker_lateness late;
    long states, whole, bytes, desyncs, dropped, refused[ARENA_REFUSALS];
} server;

static log_writer out = {.fd = 1};

static void say(const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log_line(&out, "%8.2f s  %s", conc_now() - server.started, text);
}

/* A client gets the newest of what it is due, as soon as it has taken what was sent before. */
static void notify(player *p, int what)
{
    if (p->session) {
        p->session->due |= what;
        conc_event_set(&p->session->news);
    }
}

/* ---- a match: a task that ticks -------------------------------------------------------------- */

static void drop_out(match *m, player *p, const char *why)
{
    say("match %d: %s %s", m->roster.match, p->name, why);
    arena_leave(&m->state, p->slot);
    p->match = NULL;
    p->result = (arena_result){.match = m->roster.match};
    m->here--;
    notify(p, ARENA_END);
}

/* Does what the player has sent since the last tick, as far as that is possible. */
static void act(match *m, int slot)
{
    player *p = m->players[slot];
    arena_action action;
    while (p->match == m && conc_queue_try_get(&p->actions, &action) == 0) {
        arena_refusal refusal = arena_act(&m->state, slot, &action);
        server.refused[refusal]++;
        if (refusal <= ARENA_OLD)
            continue;
        if (!m->accused[slot])
            say("match %d: %s: refused: %s", m->roster.match, p->name,
                arena_refusal_names[refusal]);
        m->accused[slot] = true;
        if (++m->refused[slot] == CHEATS)
            drop_out(m, p, "is out: too many impossible actions");
    }
    bool forgives = m->state.tick % (ARENA_RATE / 2) == 0 && m->refused[slot] > 0;
    m->refused[slot] -= forgives; /* a bad network may lose what would have made it possible */
}

/* The actions are done in the order of the slots, whoever was first: so the same actions make the
 * same state. */
static int tick(match *m)
{
    for (int i = 0; i < m->roster.count; i++)
        act(m, i);
    arena_step(&m->state);
    CONC_TRY(snapshot_put(&m->history, m->state.tick, (const uint16_t *)&m->state));
    for (int i = 0; i < m->roster.count; i++)
        if (m->players[i]->match == m)
            notify(m->players[i], ARENA_STATE);
    if (options.every > 0 && m->state.tick % (int)options.every == 0)
        say("match %d: tick %d, hash %08x", m->roster.match, m->state.tick,
            snapshot_hash_at(&m->history, m->state.tick));
    return 0;
}

typedef struct absence {
    match *match;
    player *player;
} absence;

static int wait_until_back(void *p) { return conc_event_wait(&((player *)p)->back); }

/* The tank of a player whose connection is gone stands where it is, and can be hit. */
static int await_return(void *arg)
{
    const absence *a = arg;
    int rc = conc_timeout(ABSENCE, wait_until_back, a->player);
    if (rc == 0)
        say("match %d: %s is back", a->match->roster.match, a->player->name);
    if (rc != -ETIMEDOUT)
        return rc;
    if (a->player->match == a->match)
        drop_out(a->match, a->player, "has not come back");
    return 0;
}

static int watch(match *m, player *p)
{
    say("match %d: %s is away", m->roster.match, p->name);
    return CONC_SPAWN(&m->group, await_return, ((absence){m, p}));
}

/* From here on the player's actions are for this match. */
static int enter(match *m, int slot)
{
    player *p = m->players[slot];
    arena_action old;
    while (conc_queue_try_get(&p->actions, &old) == 0)
        continue;
    p->match = m;
    p->slot = slot;
    p->view = (snapshot_view){0};
    p->taken = 0;
    p->settled = false;
    notify(p, ARENA_START);
    return p->session ? 0 : watch(m, p);
}

/* The last actions may still be on their way when time is up: all of them count. */
static bool is_over(const match *m)
{
    int over_by = m->state.tick - m->roster.ticks;
    bool settled = true;
    for (int i = 0; i < m->roster.count; i++) {
        const player *p = m->players[i];
        settled = settled && (p->match != m || !p->session || p->settled);
    }
    return m->here == 0 || over_by >= OVERTIME * ARENA_RATE || (over_by >= 0 && settled);
}

static int run_match(match *m)
{
    for (int i = 0; i < m->roster.count; i++)
        CONC_TRY(enter(m, i));
    for (;;) {
        CONC_TRY(ticker_wait(&m->ticker));
        if (is_over(m))
            return 0;
        CONC_TRY(tick(m));
    }
}

/* Those who are not there any more come last. */
static arena_result rate(match *m)
{
    arena_result r = {.match = m->roster.match, .count = m->roster.count};
    int best = 0;
    for (int i = 0; i < r.count; i++) {
        const arena_player *state = &m->state.players[i];
        r.scores[i] = state->here ? state->score : -1;
        r.ratings[i] = m->players[i]->rating;
        if (r.scores[i] > r.scores[best])
            best = i;
    }
    matchmaking_rate(r.ratings, r.scores, r.count);
    for (int i = 0; i < r.count; i++) {
        player *p = m->players[i];
        r.changes[i] = r.ratings[i] - p->rating;
        p->rating = r.ratings[i];
        p->matches++;
        p->wins += r.scores[i] >= 0 && r.scores[i] == r.scores[best];
    }
    say("match %d: over after %d ticks, hash %08x; %s has won with %d points", r.match,
        m->state.tick, snapshot_hash_at(&m->history, m->state.tick),
        r.scores[best] < 0 ? "nobody" : m->players[best]->name, m->state.players[best].score);
    return r;
}

static int play(void *arg)
{
    match *m = arg;
    arena_result result = {.match = m->roster.match}; /* of nobody: it has failed */
    server.playing++;
    int rc = conc_group_begin(&m->group);
    if (rc == 0) {
        rc = run_match(m);
        conc_group_cancel(&m->group);
        rc = conc_group_end(&m->group, rc);
    }
    if (rc == 0)
        result = rate(m);
    for (int i = 0; i < m->roster.count; i++) {
        player *p = m->players[i];
        p->held--;
        if (p->match == m) {
            p->match = NULL;
            p->result = result;
            notify(p, ARENA_END);
        }
    }
    server.playing--;
    snapshot_close(&m->history);
    free(m);
    return rc;
}

/* ---- match-making ---------------------------------------------------------------------------- */

static uint32_t seed_of(int match)
{
    if (options.simulate > 0)
        return (uint32_t)options.simulate + (uint32_t)match;
    return (uint32_t)conc_random(0, UINT32_MAX);
}

static int start_match(const matchmaking_ticket *tickets, int count)
{
    match *m = calloc(1, sizeof *m);
    if (!m)
        return -ENOMEM;
    int id = ++server.matches;
    m->here = count;
    m->roster =
        (arena_roster){.match = id, .ticks = (int)(options.match * ARENA_RATE), .count = count};
    for (int i = 0; i < count; i++) {
        player *p = m->players[i] = tickets[i].player;
        p->held++;
        m->roster.ratings[i] = p->rating;
        memcpy(m->roster.names[i], p->name, ARENA_NAME);
    }
    arena_start(&m->state, count, seed_of(id));
    m->history.words = ARENA_WORDS;
    m->ticker = (ticker){.interval = 1.0 / ARENA_RATE, .late = &server.late};
    /* the ticks of many matches are spread over time: at once, most of them would be late */
    ticker_start(&m->ticker, READY + (id % 16 + 0.5) * m->ticker.interval / 16);
    say("match %d: %d players, ratings %d to %d (band %.0f)", id, count, tickets[0].rating,
        tickets[count - 1].rating, matchmaking_narrowest(&rules, tickets, count, conc_now()));
    return conc_spawn(&server.games, play, m);
}

/* When somebody has waited for a second, as many bots of the house join as are missing. */
static void ask_the_house(void)
{
    double now = conc_now();
    bool in_need = now - matchmaking_oldest(server.waiting, server.wait_count, now) > 1;
    int missing = rules.most - server.wait_count - server.house.permits;
    for (; in_need && missing > 0; missing--)
        conc_sem_release(&server.house);
    while (server.wait_count == 0 && conc_sem_try_acquire(&server.house) == 0)
        continue; /* nobody needs it any more */
}

static int make_matches(void *arg)
{
    matchmaking_ticket *found = NULL;
    int count;
    (void)arg;
    for (;;) {
        CONC_TRY(conc_event_wait(&server.somebody_waits));
        CONC_TRY(conc_sleep_until((int64_t)(conc_now() * ROUNDS + 1) / (double)ROUNDS));
        while ((count = matchmaking_pick(&rules, server.waiting, server.wait_count, conc_now(),
                                         &found)) > 0) {
            CONC_TRY(start_match(found, count));
            server.wait_count = matchmaking_remove(server.waiting, server.wait_count, found, count);
        }
        ask_the_house();
        if (server.wait_count == 0)
            conc_event_clear(&server.somebody_waits);
    }
}

static matchmaking_ticket *ticket_of(const player *p)
{
    return matchmaking_find(server.waiting, server.wait_count, p);
}

static void stop_waiting(const player *p)
{
    matchmaking_ticket *t = ticket_of(p);
    if (t)
        server.wait_count = matchmaking_remove(server.waiting, server.wait_count, t, 1);
}

/* ---- a session: what a client is told -------------------------------------------------------- */

static bool write_state(packet *p, player *to)
{
    const match *m = to->match;
    packet_put(p, 2, (uint64_t)m->roster.match);
    if (!snapshot_send(&m->history, &to->view, p))
        return false;
    server.states++;
    server.whole += to->view.base == 0;
    server.bytes += (long)p->size;
    return true;
}

/* false: there is no such news, or not now. */
static bool write_news(packet *p, int what, player *to)
{
    const matchmaking_ticket *t = ticket_of(to);
    arena_roster roster;
    if (!to->match && (what == ARENA_START || what == ARENA_STATE))
        return false;
    p->size = 0;
    packet_put(p, 1, (uint64_t)what);
    switch (what) {
    case ARENA_WELCOME: arena_put_welcome(p, to->token, to->rating); break;
    case ARENA_LOBBY:
        arena_put_lobby(p, server.online, server.wait_count,
                        t ? matchmaking_band(&rules, t, conc_now()) : 0);
        break;
    case ARENA_START:
        roster = to->match->roster;
        roster.slot = to->slot;
        arena_put_roster(p, &roster);
        break;
    case ARENA_STATE: return write_state(p, to);
    case ARENA_END: arena_put_result(p, &to->result); break;
    }
    return true;
}

/* Sends a client its news. One that reads slowly misses states: it holds up no match, and nothing
 * piles up for it. */
static int tell(void *arg)
{
    session *s = arg;
    packet p = {0};
    for (;;) {
        CONC_TRY(conc_event_wait(&s->news));
        conc_event_clear(&s->news);
        for (int what = ARENA_WELCOME; what <= ARENA_END; what *= 2) {
            bool due = s->due & what;
            s->due &= ~what;
            if (due && s->player && write_news(&p, what, s->player) &&
                s->link->send(s->link, &p) < 0)
                return 0; /* whoever receives from it learns why */
        }
    }
}

/* ---- a session: what a client says ----------------------------------------------------------- */

static player *find_player(uint64_t token)
{
    player *p = &server.players[token % PLAYERS];
    return token != 0 && p->token == token ? p : NULL;
}

/* A new player in a free place, or in that of who has been away longest; NULL: all are here. */
static player *add_player(void)
{
    player *best = NULL;
    uint64_t secret;
    for (player *p = server.players; p < server.players + PLAYERS; p++)
        if (!p->session && p->held == 0 && (!best || p->left < best->left))
            best = p;
    if (!best || RAND_bytes((unsigned char *)&secret, sizeof secret) != 1)
        return NULL;
    conc_queue_destroy(&best->actions);
    *best = (player){.token = (secret | PLAYERS) / PLAYERS * PLAYERS,
                     .rating = 1000,
                     .left = CONC_FOREVER,
                     .actions = CONC_QUEUE(arena_action, ACTIONS)};
    best->token += (uint64_t)(best - server.players);
    return best;
}

/* Ends a session, whose player has another one. */
static void replace_session(session *s)
{
    s->reason = "you play elsewhere";
    s->player->session = NULL;
    s->player = NULL;
    server.online--;
    conc_group_cancel(&s->group);
}

static void connect_player(session *s, player *p)
{
    if (p->session)
        replace_session(p->session);
    p->session = s;
    p->view = (snapshot_view){0};
    s->player = p;
    server.online++;
    conc_event_set(&p->back);
}

static int on_hello(session *s, packet_reader *r)
{
    arena_hello hello;
    if (!arena_get_hello(r, &hello))
        return conc_fail(-EBADMSG, "HELLO");
    player *p = s->player ? s->player : find_player(hello.token);
    if (!p)
        p = add_player();
    if (!p) {
        s->reason = "the server is full";
        return -EUSERS;
    }
    if (p->session != s)
        connect_player(s, p);
    if (!p->match)
        snprintf(p->name, sizeof p->name, "%s", hello.name[0] ? hello.name : "Nobody");
    notify(p, p->match ? ARENA_WELCOME | ARENA_START : ARENA_WELCOME);
    return 0;
}

static int on_join(player *p)
{
    if (!p->match && !ticket_of(p)) {
        server.waiting[server.wait_count++] =
            (matchmaking_ticket){p, (int)(p - server.players), p->rating, conc_now()};
        conc_event_set(&server.somebody_waits);
    }
    p->view.answered = p->view.sent; /* what it was sent may be lost */
    notify(p, p->match ? ARENA_START : ARENA_LOBBY);
    return 0;
}

/* The client has this state: the next one is sent as the difference from that. */
static void acknowledge(player *p, const arena_report *report)
{
    const match *m = p->match;
    bool was_behind = snapshot_is_behind(&p->view);
    int rc = snapshot_acknowledge(&m->history, &p->view, report->tick, report->hash);
    server.desyncs += rc < 0;
    if (was_behind)
        notify(p, ARENA_STATE);
    if (rc == 1 && report->tick >= m->roster.ticks) {
        const arena *seen = (const arena *)snapshot_at(&m->history, report->tick);
        p->settled = seen->players[p->slot].number >= p->taken;
    }
}

static int on_action(player *p, packet_reader *r)
{
    arena_report report;
    if (!arena_get_report(r, &report))
        return conc_fail(-EBADMSG, "ACTION");
    if (!p->match || p->match->roster.match != report.match) {
        notify(p, p->match ? ARENA_START : ARENA_END);
        return 0;
    }
    acknowledge(p, &report);
    if (report.tick >= p->match->roster.ticks)
        return 0; /* the client knows that time is up */
    if (conc_queue_try_put(&p->actions, &report.action) < 0)
        server.dropped++;
    else
        p->taken = report.action.number;
    return 0;
}

static int on_message(session *s, const packet *p)
{
    packet_reader r = {p->data, p->size, false};
    int type = (int)packet_get(&r, 1);
    if (conc_limiter_try_acquire(&s->messages, 1) < 0) {
        server.dropped++;
        if (++s->excess < EXCESS)
            return 0;
        s->reason = "too many messages";
        return -EPERM;
    }
    if (type == ARENA_HELLO)
        return on_hello(s, &r);
    if (type == ARENA_JOIN && s->player)
        return on_join(s->player);
    if (type == ARENA_ACTION && s->player)
        return on_action(s->player, &r);
    if (type != ARENA_QUIT || !s->player)
        return conc_fail(-EBADMSG, "a message of type %d", type);
    stop_waiting(s->player);
    return 0;
}

/* ---- a session, from the first message to the last ------------------------------------------- */

static int receive_messages(session *s)
{
    packet p;
    int rc;
    while ((rc = s->link->receive(s->link, &p)) > 0)
        CONC_TRY(on_message(s, &p));
    return rc;
}

/* The client has gone. */
static void disconnect_player(player *p)
{
    stop_waiting(p);
    p->session = NULL;
    p->left = conc_now();
    server.online--;
    conc_event_clear(&p->back);
    if (p->match && !conc_cancelled() && watch(p->match, p) < 0)
        say("%s is not waited for: %s", p->name, conc_last_error());
}

static int say_goodbye(void *arg)
{
    session *s = arg;
    return s->link->end(s->link, s->reason);
}

/* Runs until the client leaves, or does what ends it. Whatever befalls the connection ends the
 * session, and nothing else. */
static int run_session(packet_link *link)
{
    session s = {.link = link};
    s.messages = (conc_limiter){.rate = 3 * ARENA_RATE, .burst = 6 * ARENA_RATE};
    CONC_TRY(conc_group_begin(&s.group));
    int rc = conc_spawn(&s.group, tell, &s);
    if (rc >= 0)
        rc = receive_messages(&s);
    conc_group_cancel(&s.group);
    rc = conc_group_end(&s.group, rc);
    if (conc_cancelled())
        s.reason = "the server stops";
    else if (rc == -EBADMSG)
        s.reason = "a message was malformed";
    if (s.player) {
        if (s.reason && !conc_cancelled())
            say("%s: the session ends: %s", s.player->name, s.reason);
        disconnect_player(s.player);
    }
    if (s.reason)
        conc_shield(1, say_goodbye, &s);
    return rc == -ECANCELED ? rc : 0;
}

static int play_by_websocket(http_connection *http)
{
    CONC_AUTO(websocket, ws) = {.max_message = 256, .ping_interval = SILENCE / 2};
    packet_link link = packet_link_websocket(&ws);
    return websocket_accept(&ws, http) < 0 ? 0 : run_session(&link);
}

static int play_by_udp(datagram_peer *peer, void *arg)
{
    packet_link link = packet_link_peer(peer, ARENA_BYE);
    (void)arg;
    return run_session(&link);
}

/* One after the other, with a bot in this process. */
static int play_by_pair(void *arg)
{
    packet_pair *pair = arg;
    for (;;)
        CONC_TRY(run_session(&pair->server));
}

/* A bot of the house plays a match whenever it is asked to. */
static int play_for_the_house(void *arg)
{
    arena_local *bot = arg;
    for (;;) {
        CONC_TRY(conc_sem_acquire(&server.house));
        bot->client.matches++;
        CONC_TRY(arena_client_play(&bot->client));
    }
}

/* ---- pages ----------------------------------------------------------------------------------- */

static int by_rating(const void *a, const void *b)
{
    const player *x = *(player *const *)a, *y = *(player *const *)b;
    if (x->rating != y->rating)
        return x->rating > y->rating ? -1 : 1;
    return (x > y) - (x < y);
}

/* A line for each of the best: rank, rating, matches, matches won, name. */
static int write_leaderboard(char *text, size_t size)
{
    static player *all[PLAYERS];
    int n = 0, used = 0;
    for (player *p = server.players; p < server.players + PLAYERS; p++)
        if (p->matches > 0)
            all[n++] = p;
    qsort(all, (size_t)n, sizeof all[0], by_rating);
    for (int i = 0; i < n && i < LEADERS; i++)
        used += snprintf(text + used, size - (size_t)used, "%d\t%d\t%d\t%d\t%s\n", i + 1,
                         all[i]->rating, all[i]->matches, all[i]->wins, all[i]->name);
    return used;
}

static int write_stats(char *text, size_t size)
{
    double p50 = ticker_percentile(&server.late, 0.5), p99 = ticker_percentile(&server.late, 0.99);
    int n = snprintf(text, size,
                     "players %d, waiting %d, matches %d of %d\n"
                     "ticks %ld, late by %.1f ms (p50), %.1f ms (p99)\n"
                     "states %ld, whole %ld, bytes each %ld, other hashes %ld\n"
                     "dropped %ld, strange %ld, refused:",
                     server.online, server.wait_count, server.playing, server.matches,
                     server.late.ticks, 1000 * p50, 1000 * p99, server.states, server.whole,
                     server.states ? server.bytes / server.states : 0, server.desyncs,
                     server.dropped + server.udp.lost, server.udp.strange);
    for (int i = ARENA_OLD; i < ARENA_REFUSALS; i++)
        n += snprintf(text + n, size - (size_t)n, " %s %ld%s", arena_refusal_names[i],
                      server.refused[i], i + 1 < ARENA_REFUSALS ? "," : "\n");
    return n;
}

static int answer(http_connection *http, void *arg)
{
    char text[2000];
    (void)arg;
    if (strcmp(http->path, "/play") == 0)
        return play_by_websocket(http);
    if (strcmp(http->path, "/leaderboard") == 0)
        return http_printf(http, 200, "%.*s", write_leaderboard(text, sizeof text), text);
    if (strcmp(http->path, "/stats") == 0)
        return http_printf(http, 200, "%.*s", write_stats(text, sizeof text), text);
    if (strcmp(http->path, "/") == 0 && options.page)
        return static_files_answer_file(http, options.page, NULL);
    return http_printf(http, 404, "There are /, /play, /leaderboard and /stats\n");
}

static int serve_http(int fd, void *arg)
{
    conc_stream stream = {0};
    CONC_AUTO(http_connection,
              http) = {.stream = &stream, .max_body = 1, .idle_timeout = 10, .head_timeout = 5};
    CONC_TRY(conc_stream_open(&stream, fd));
    int rc = http_serve(&http, answer, arg);
    return rc == -ECANCELED ? rc : 0; /* a broken connection is no news */
}

/* ---- the server ------------------------------------------------------------------------------ */

/* The input of a child ends when the parent does, whatever ended that. */
static int end_with_parent(void *arg)
{
    char byte;
    (void)arg;
    CONC_TRY(conc_read(0, &byte, 1));
    return raise(SIGTERM);
}

static int run_server(int listener)
{
    static arena_local house[HOUSE];
    conc_server http = {.fd = listener, .handler = serve_http, .limit = PLAYERS};
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, make_matches, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, datagrams_serve, &server.udp));
    if (options.child)
        CONC_TRY_IN(&g, conc_spawn(&g, end_with_parent, NULL));
    for (int i = 0; i < options.house; i++) {
        arena_local_open(&house[i], i, (uint32_t)conc_random(0, UINT32_MAX));
        CONC_TRY_IN(&g, conc_spawn(&g, play_by_pair, &house[i].pair));
        CONC_TRY_IN(&g, conc_spawn(&g, play_for_the_house, &house[i]));
    }
    return conc_group_end(&g, conc_serve(&http));
}

static int serve(void *arg)
{
    char text[1000];
    (void)arg;
    if (options.page && access(options.page, R_OK) < 0)
        return conc_fail(-errno, "the page %s: %s", options.page, strerror(errno));
    server.udp = (datagrams){.handler = play_by_udp, .silence = SILENCE};
    int listener = CONC_TRY(datagrams_listen(&server.udp, options.listen));
    CONC_TRY(conc_address(listener, false, text, sizeof text));
    server.started = conc_now();
    CONC_TRY(conc_spawn(NULL, log_write, &out));
    log_line(&out, "Listens on http://%s and, on the same port, by UDP. Ctrl+C ends it", text);
    server.games.keep_going = true;
    CONC_TRY(conc_group_begin(&server.games));
    int rc = conc_group_end(&server.games, run_server(listener));
    datagrams_close(&server.udp);
    conc_close(listener);
    write_stats(text, sizeof text);
    log_line(&out, "%.*s", (int)strlen(text) - 1, text);
    conc_shield(1, log_flush, &out);
    log_close(&out);
    return rc;
}

/* ---- players for a server's tests ------------------------------------------------------------ */

static void show_simulation(const arena_simulation *s)
{
    char text[2000];
    const arena_ledger *l = &s->ledger;
    int n = write_leaderboard(text, sizeof text);
    printf("\nrank\trating\tmatches\twon\tname\n%.*s\n", n, text);
    n = write_stats(text, sizeof text);
    printf("%.*s%ld packets lost; of %ld states that came %ld were whole; %ld differ\n", n, text,
           s->lost, l->states, l->whole, l->different);
}

static int simulate(void *arg)
{
    static arena_simulation s = {.serve = play_by_pair};
    conc_group g = {0};
    (void)arg;
    s.seed = (uint32_t)options.simulate;
    for (int i = 0; i < ARENA_SIMULATED; i++) {
        player *p = add_player();
        p->rating = 900 + i * 53 % 400;
        s.players[i].client.token = p->token;
    }
    CONC_TRY(conc_spawn(NULL, log_write, &out));
    CONC_TRY(conc_group_begin(&server.games));
    CONC_TRY_IN(&server.games, conc_spawn(&g, make_matches, NULL));
    int rc = arena_simulation_run(&s);
    conc_group_cancel(&g);
    conc_group_cancel(&server.games);
    rc = conc_group_end(&g, rc);
    CONC_TRY(conc_group_end(&server.games, rc));
    conc_shield(1, log_flush, &out);
    log_close(&out);
    show_simulation(&s);
    return 0;
}

static arena_ledger ledger; /* of what the clients have seen */

static int play_as_bots(void *arg)
{
    arena_crowd crowd = {options.bots, (int)options.players, 0, &ledger};
    (void)arg;
    return arena_crowd_run(&crowd);
}

static int goal(void *arg)
{
    char match[32];
    const char *argv[] = {"/proc/self/exe", "--child", "--listen", "127.0.0.1:0", "--house", "0",
                          "--match",        match,     NULL};
    arena_crowd crowd = {.count = (int)options.players, .matches = 1, .ledger = &ledger};
    (void)arg;
    snprintf(match, sizeof match, "%g", options.match);
    return arena_goal_run(argv, &crowd);
}

/* ---- main ------------------------------------------------------------------------------------ */

static const options_field fields[] = {
    OPTIONS_TEXT("listen", "ADDRESS", &options.listen, "default: 127.0.0.1:8080"),
    OPTIONS_NUMBER("match", "SECONDS", &options.match, 2, 200, "how long a match is; 60"),
    OPTIONS_NUMBER("house", "N", &options.house, 0, HOUSE, "bots that join when one waits; 7"),
    OPTIONS_TEXT("page", "FILE", &options.page, "default: 04_game_server.html"),
    OPTIONS_NUMBER("every", "N", &options.every, 1, 65535, "print the hash of each Nth tick"),
    OPTIONS_TEXT("bots", "ADDRESS", &options.bots, "only players, for a server that runs"),
    OPTIONS_NUMBER("players", "N", &options.players, 1, PLAYERS, "for --bots (50), --goal (1000)"),
    OPTIONS_NUMBER("simulate", "SEED", &options.simulate, 1, INT32_MAX, "no network, no time"),
    OPTIONS_FLAG("goal", &options.goal, "a server, and 1000 players"),
    OPTIONS_FLAG("child", &options.child, "end when the standard input does"),
    OPTIONS_WORDS("N", &options.words, "as --players N, for --bots"),
};

/* Many connections need many descriptors. */
static void raise_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int run(double players, double seconds, conc_fn *program)
{
    if (!(options.players > 0))
        options.players = players;
    if (!(options.match > 0))
        options.match = seconds;
    return conc_main(program, NULL);
}

int main(int argc, char **argv)
{
    int status = options_read(fields, CONC_LEN(fields), argc, argv, "game_server [options]",
                              "Serves a game at http://127.0.0.1:8080, with bots to play with.");
    if (status >= 0)
        return status;
    if (options.words[0] && (!options.bots || atoi(options.words[0]) < 1)) {
        fprintf(stderr, "game_server: %s is no option; --help lists them\n", options.words[0]);
        return 2;
    }
    if (options.simulate > 0) {
        setenv("CONC_CLOCK", "virtual", 1);
        return run(0, 20, simulate);
    }
    raise_limit();
    if (options.words[0])
        options.players = atoi(options.words[0]);
    if (options.bots)
        return run(50, 60, play_as_bots);
    if (options.goal)
        return run(1000, 10, goal);
    if (!options.page)
        options.page = static_files_beside(__FILE__, "04_game_server.html");
    return run(0, 60, serve);
}
