/* A game server: tanks in an arena, matches of 4 to 8 players, 20 ticks a second. Its clients come
   by WebSocket (a browser) or UDP. The server alone decides what happens; a client says what it
   does, is told what is different now, and is thrown out if it does what nobody can.

   cc 04_game_server.c -o game_server -lwslay -lcrypto -lhttp_parser
   ./game_server                              # open http://127.0.0.1:8080; bots play with you
   ./game_server --listen 0.0.0.0:8080 --match 120 --house 20
   ./game_server --bots 127.0.0.1:8080 50     # players for a server that runs
   ./game_server --simulate 7                 # virtual clock, no network: the same each time
   ./game_server --simulate 7 --every 1       # with the hash of each tick's state
   ./game_server --goal                       # 1000 players

   While it serves, /leaderboard and /stats say more. What another game would have in another way
   is in ../common: its rules (arena.h), its messages (arena_net.h), its bots (arena_client.h). */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/arena_client.h"
#include "../common/arena_net.h"
#include "../common/datagrams.h"
#include "../common/http.h"
#include "../common/log.h"
#include "../common/matchmaking.h"
#include "../common/options.h"
#include "../common/ticker.h"
#include "../common/websocket.h"
#include <sys/resource.h>

enum {
    PLAYERS = 4096, /* that are known: a power of two */
    ACTIONS = 32,   /* of a player, that wait for the next tick */
    WINDOW = 10,    /* ticks that a client may be behind until it gets no more states */
    CHEATS = 40,    /* refused actions that end a match for a player */
    EXCESS = 1000,  /* messages over the limit that end a session */
    ROUNDS = 4,     /* of match-making, a second */
    LEADERS = 10,
    HOUSE = 256 /* bots at most */
};

static const double READY = 1;    /* seconds before a match begins */
static const double ABSENCE = 10; /* seconds in which a player may come back */
static const double SILENCE = 5;  /* seconds until a client of UDP has gone */
static const double OVERTIME = 5; /* seconds for the last actions to come in */

static const matchmaking_rules rules = {
    .least = ARENA_PLAYERS / 2, .most = ARENA_PLAYERS, .patience = 4, .band = 50, .widening = 50};

static struct {
    const char *listen, *bots, *page;
    double match; /* seconds; 0: as the command likes */
    double house, players, every, simulate, seed;
    bool goal, child;
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
    bool waiting, house; /* for a match; a bot of the house */
    match *match;        /* NULL: none */
    int slot;
    conc_queue actions; /* for the next tick */
    uint16_t acked;     /* the newest tick whose state the client has; 0: none */
    int sent, answered; /* the ticks of the newest state that was sent, and that was answered */
    uint16_t taken;     /* the number of its newest action that was taken */
    bool settled;       /* it has a state after the end, with all its actions in it */
    arena_result result;
} player;

/* A client, as long as its connection lasts. */
struct session {
    int (*send)(session *s, const packet *p); /* may wait */
    void *to;                                 /* the websocket, the peer of UDP, or the bot */
    player *player;
    conc_group group;
    conc_event news;
    int due; /* bits, ARENA_WELCOME to ARENA_END: what to tell it next */
    conc_limiter messages;
    int excess;         /* messages that were too many */
    const char *reason; /* why it ends */
};

struct match {
    int id, count, here, refused[ARENA_PLAYERS];
    bool accused[ARENA_PLAYERS]; /* something was refused: that was said */
    player *players[ARENA_PLAYERS];
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
    void *page;
    size_t page_size;
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

static void drop_out(match *m, int slot, const char *why)
{
    player *p = m->players[slot];
    say("match %d: %s %s", m->id, p->name, why);
    arena_leave(&m->state, slot);
    p->match = NULL;
    p->result = (arena_result){.match = m->id};
    m->here--;
    notify(p, ARENA_END);
}

static void act(match *m, int slot)
{
    player *p = m->players[slot];
    arena_action action;
    while (p->match == m && conc_queue_try_get(&p->actions, &action) == 0) {
        arena_refusal refusal = arena_act(&m->state, slot, &action);
        server.refused[refusal]++;
        bool impossible = refusal > ARENA_OLD;
        if (impossible && !m->accused[slot])
            say("match %d: %s: refused: %s", m->id, p->name, arena_refusal_names[refusal]);
        m->accused[slot] = m->accused[slot] || impossible;
        if (impossible && ++m->refused[slot] == CHEATS)
            drop_out(m, slot, "is out: too many impossible actions");
    }
    bool forgives = m->state.tick % (ARENA_RATE / 2) == 0 && m->refused[slot] > 0;
    m->refused[slot] -= forgives; /* a bad network may lose what would have made it possible */
}

/* What came since the last tick is done in the order of the slots, whoever was first: so the same
 * actions make the same state. */
static int tick(match *m)
{
    for (int i = 0; i < m->count; i++)
        act(m, i);
    arena_step(&m->state);
    CONC_TRY(snapshot_put(&m->history, m->state.tick, (const uint16_t *)&m->state));
    for (int i = 0; i < m->count; i++)
        if (m->players[i]->match == m)
            notify(m->players[i], ARENA_STATE);
    if (options.every > 0 && m->state.tick % (int)options.every == 0)
        say("match %d: tick %d, hash %08x", m->id, m->state.tick,
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
        say("match %d: %s is back", a->match->id, a->player->name);
    if (rc == -ETIMEDOUT && a->player->match == a->match)
        drop_out(a->match, a->player->slot, "has not come back");
    return rc == -ETIMEDOUT ? 0 : rc;
}

static int watch(match *m, player *p)
{
    say("match %d: %s is away", m->id, p->name);
    return CONC_SPAWN(&m->group, await_return, ((absence){m, p}));
}

/* The last actions may still be on their way when time is up: all of them count. */
static bool is_over(const match *m)
{
    int left = (int)((options.match + OVERTIME) * ARENA_RATE) - m->state.tick;
    bool settled = true;
    for (int i = 0; i < m->count; i++) {
        const player *p = m->players[i];
        settled = settled && (p->match != m || !p->session || p->settled);
    }
    return m->here == 0 || left <= 0 || (left <= OVERTIME * ARENA_RATE && settled);
}

/* From here on the player's actions are for this match. */
static int enter(match *m, int slot)
{
    player *p = m->players[slot];
    arena_action old;
    while (conc_queue_try_get(&p->actions, &old) == 0)
        ;
    p->match = m;
    p->slot = slot;
    p->acked = 0;
    p->sent = p->answered = p->taken = 0;
    p->settled = false;
    p->waiting = false;
    notify(p, ARENA_START);
    return p->session ? 0 : watch(m, p);
}

static int run_match(match *m)
{
    for (int i = 0; i < m->count; i++)
        CONC_TRY(enter(m, i));
    for (;;) {
        CONC_TRY(ticker_wait(&m->ticker));
        if (is_over(m))
            return 0;
        CONC_TRY(tick(m));
    }
}

/* Those who are not there any more come last. */
static void finish(match *m)
{
    arena_result r = {.match = m->id, .count = m->count};
    int best = 0;
    for (int i = 0; i < m->count; i++) {
        const arena_player *state = &m->state.players[i];
        r.scores[i] = state->here ? state->score : -1;
        r.ratings[i] = m->players[i]->rating;
        if (r.scores[i] > r.scores[best])
            best = i;
    }
    matchmaking_rate(r.ratings, r.scores, m->count);
    for (int i = 0; i < m->count; i++) {
        player *p = m->players[i];
        r.changes[i] = r.ratings[i] - p->rating;
        p->rating = r.ratings[i];
        p->matches++;
        p->wins += r.scores[i] >= 0 && r.scores[i] == r.scores[best];
    }
    for (int i = 0; i < m->count; i++) {
        m->players[i]->result = r;
        if (m->players[i]->match == m)
            notify(m->players[i], ARENA_END);
    }
    const char *winner = r.scores[best] < 0 ? "nobody" : m->players[best]->name;
    say("match %d: over after %d ticks, hash %08x; %s has won with %d points", m->id, m->state.tick,
        snapshot_hash_at(&m->history, m->state.tick), winner, m->state.players[best].score);
}

static int play(void *arg)
{
    match *m = arg;
    server.playing++;
    int rc = conc_group_begin(&m->group);
    if (rc == 0) {
        rc = run_match(m);
        conc_group_cancel(&m->group);
        rc = conc_group_end(&m->group, rc);
    }
    if (rc == 0)
        finish(m);
    for (int i = 0; i < m->count; i++) {
        m->players[i]->held--;
        if (m->players[i]->match == m && rc < 0 && rc != -ECANCELED)
            drop_out(m, i, "is out: the match has failed");
        if (m->players[i]->match == m)
            m->players[i]->match = NULL;
    }
    server.playing--;
    snapshot_close(&m->history);
    free(m);
    return rc;
}

/* ---- match-making ---------------------------------------------------------------------------- */

static uint64_t random_bits(void)
{
    uint64_t bits;
    while (RAND_bytes((unsigned char *)&bits, sizeof bits) != 1)
        ;
    return bits;
}

static int start_match(const matchmaking_ticket *tickets, int count)
{
    match *m = calloc(1, sizeof *m);
    if (!m)
        return -ENOMEM;
    *m = (match){.id = ++server.matches, .count = count, .here = count};
    uint32_t seed = (uint32_t)options.seed + (uint32_t)m->id;
    arena_start(&m->state, count, options.seed > 0 ? seed : (uint32_t)random_bits());
    m->history.words = ARENA_WORDS;
    m->ticker = (ticker){.interval = 1.0 / ARENA_RATE, .late = &server.late};
    /* the ticks of many matches are spread over time: at once, most of them would be late */
    ticker_start(&m->ticker, READY + (m->id % 16 + 0.5) * m->ticker.interval / 16);
    double band = CONC_FOREVER;
    for (int i = 0; i < count; i++) {
        m->players[i] = tickets[i].player;
        m->players[i]->held++;
        double accepts = matchmaking_band(&rules, &tickets[i], conc_now());
        if (accepts < band)
            band = accepts;
    }
    say("match %d: %d players, ratings %d to %d (band %.0f)", m->id, count, tickets[0].rating,
        tickets[count - 1].rating, band);
    return conc_spawn(&server.games, play, m);
}

static void stop_waiting(player *p)
{
    for (int i = 0; i < server.wait_count; i++)
        if (server.waiting[i].player == p)
            server.waiting[i] = server.waiting[--server.wait_count];
    p->waiting = false;
}

/* When somebody has waited for a second, as many bots of the house join as are missing. */
static void ask_the_house(void)
{
    double since = CONC_FOREVER;
    for (int i = 0; i < server.wait_count; i++) {
        const player *p = server.waiting[i].player;
        if (!p->house && server.waiting[i].since < since)
            since = server.waiting[i].since;
    }
    int missing = rules.most - server.wait_count - server.house.permits;
    for (; missing > 0 && conc_now() - since > 1; missing--)
        conc_sem_release(&server.house);
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

/* ---- a session: what a client says, and what it is told -------------------------------------- */

static void write_start(packet *p, const player *to)
{
    const match *m = to->match;
    arena_roster r = {m->id, to->slot, (int)(options.match * ARENA_RATE), m->count, {0}, {{0}}};
    for (int i = 0; i < m->count; i++) {
        r.ratings[i] = m->players[i]->rating;
        memcpy(r.names[i], m->players[i]->name, ARENA_NAME);
    }
    arena_put_roster(p, &r);
}

static void write_state(packet *p, player *to)
{
    const match *m = to->match;
    to->sent = m->state.tick;
    packet_put(p, 2, (uint64_t)m->id);
    server.whole += snapshot_write(&m->history, p, m->state.tick, to->acked) == 0;
    server.bytes += (long)p->size;
    server.states++;
}

static void write_lobby(packet *p, const player *to)
{
    double band = 0;
    for (int i = 0; i < server.wait_count; i++)
        if (server.waiting[i].player == to)
            band = matchmaking_band(&rules, &server.waiting[i], conc_now());
    packet_put(p, 2, (uint64_t)server.online);
    packet_put(p, 2, (uint64_t)server.wait_count);
    packet_put(p, 2, (uint64_t)band);
}

/* A client that is slow to answer gets fewer states. What it has no time for would pile up on the
 * way to it, and it would see the past. */
static bool may_send_state(const player *p)
{
    return p->match && p->match->state.tick > p->sent && p->sent <= p->answered + WINDOW;
}

/* false: there is no such news, or not now. */
static bool write_news(packet *p, int what, player *to)
{
    if (what == ARENA_START && !to->match)
        return false;
    if (what == ARENA_STATE && !may_send_state(to))
        return false;
    p->size = 0;
    packet_put(p, 1, (uint64_t)what);
    if (what == ARENA_WELCOME) {
        packet_put(p, 8, to->token);
        packet_put(p, 2, (uint64_t)to->rating);
    } else if (what == ARENA_LOBBY) {
        write_lobby(p, to);
    } else if (what == ARENA_START) {
        write_start(p, to);
    } else if (what == ARENA_STATE) {
        write_state(p, to);
    } else {
        arena_put_result(p, &to->result);
    }
    return !p->full;
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
            if (due && s->player && write_news(&p, what, s->player) && s->send(s, &p) < 0)
                return 0; /* whoever receives from it learns why */
        }
    }
}

static player *find_player(uint64_t token)
{
    player *p = &server.players[token % PLAYERS];
    return token != 0 && p->token == token ? p : NULL;
}

/* Which of two places is given to a new player: a free one, else one of a player who has never
 * played, else of the one who has been away longest. */
static bool is_worth_less(const player *a, const player *b)
{
    if (!a->token != !b->token)
        return !a->token;
    if (!a->matches != !b->matches)
        return !a->matches;
    return a->left < b->left;
}

/* A new player; NULL: all places are those of players who are here. */
static player *add_player(void)
{
    player *best = NULL;
    for (player *p = server.players; p < server.players + PLAYERS; p++)
        if (!p->session && p->held == 0 && (!best || is_worth_less(p, best)))
            best = p;
    if (!best)
        return NULL;
    conc_queue_destroy(&best->actions);
    *best = (player){.rating = 1000, .actions = CONC_QUEUE(arena_action, ACTIONS)};
    while (best->token < PLAYERS)
        best->token = random_bits() / PLAYERS * PLAYERS + (uint64_t)(best - server.players);
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
    if (p->session != s) {
        if (p->session)
            replace_session(p->session);
        p->session = s;
        p->acked = 0;
        p->sent = p->answered = 0;
        s->player = p;
        server.online++;
        conc_event_set(&p->back);
    }
    if (!p->match)
        snprintf(p->name, sizeof p->name, "%s", hello.name[0] ? hello.name : "Nobody");
    notify(p, p->match ? ARENA_WELCOME | ARENA_START : ARENA_WELCOME);
    return 0;
}

static int on_join(player *p)
{
    if (!p->match && !p->waiting) {
        p->waiting = true;
        server.waiting[server.wait_count++] =
            (matchmaking_ticket){p, (int)(p - server.players), p->rating, conc_now()};
        conc_event_set(&server.somebody_waits);
    }
    p->answered = p->sent; /* what it was sent may be lost */
    notify(p, p->match ? ARENA_START : ARENA_LOBBY);
    return 0;
}

/* Whoever has the state of this tick knows that time is up. */
static bool is_late(int tick) { return tick >= options.match * ARENA_RATE; }

/* The client says which state it has: the next one is sent as the difference from that. */
static void acknowledge(player *p, const arena_report *report)
{
    const snapshot_history *h = &p->match->history;
    bool was_held_back = p->sent > p->answered + WINDOW;
    if (report->tick > p->answered || report->tick == 0)
        p->answered = report->tick ? report->tick : p->sent;
    if (was_held_back)
        notify(p, ARENA_STATE);
    const uint16_t *words = snapshot_at(h, report->tick);
    arena state;
    if (!words || snapshot_hash_at(h, report->tick) != report->hash) {
        server.desyncs += words != NULL;
        p->acked = 0;
        return;
    }
    memcpy(&state, words, sizeof state);
    if (report->tick > p->acked)
        p->acked = report->tick;
    if (is_late(report->tick))
        p->settled = state.players[p->slot].number >= p->taken;
}

static int on_action(player *p, packet_reader *r)
{
    arena_report report;
    if (!arena_get_report(r, &report))
        return conc_fail(-EBADMSG, "ACTION");
    if (!p->match || p->match->id != report.match) {
        notify(p, p->match ? ARENA_START : ARENA_END);
        return 0;
    }
    acknowledge(p, &report);
    if (is_late(report.tick))
        return 0;
    if (conc_queue_try_put(&p->actions, &report.action) < 0)
        server.dropped++;
    else
        p->taken = report.action.number;
    return 0;
}

static int on_message(session *s, const void *data, size_t size)
{
    packet_reader r = {data, size, false};
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

/* The client has gone. */
static void leave(session *s)
{
    player *p = s->player;
    if (!p)
        return;
    stop_waiting(p);
    s->player = NULL;
    p->session = NULL;
    p->left = conc_now();
    server.online--;
    conc_event_clear(&p->back);
    if (p->match && !conc_cancelled() && watch(p->match, p) < 0)
        say("%s is not waited for: %s", p->name, conc_last_error());
}

static session new_session(int (*send)(session *, const packet *), void *to)
{
    session s = {.send = send, .to = to};
    s.messages = (conc_limiter){.rate = 3 * ARENA_RATE, .burst = 6 * ARENA_RATE};
    return s;
}

/* Runs a session until receive returns or it is replaced; s->reason is for the client then. */
static int run_session(session *s, int (*receive)(session *s))
{
    CONC_TRY(conc_group_begin(&s->group));
    int rc = conc_spawn(&s->group, tell, s);
    if (rc >= 0)
        rc = receive(s);
    conc_group_cancel(&s->group);
    rc = conc_group_end(&s->group, rc);
    if (conc_cancelled())
        s->reason = "the server stops";
    else if (rc == -EBADMSG)
        s->reason = "a message was malformed";
    if (s->reason && s->player && !conc_cancelled())
        say("%s: the session ends: %s", s->player->name, s->reason);
    leave(s);
    return rc;
}

/* ---- clients by WebSocket, and the page ------------------------------------------------------ */

static int send_frame(session *s, const packet *p)
{
    return websocket_send(s->to, WEBSOCKET_BINARY, p->data, p->size);
}

static int receive_frames(session *s)
{
    websocket_message m;
    int rc;
    while ((rc = websocket_receive(s->to, &m)) == 1)
        CONC_TRY(on_message(s, m.data, m.size));
    return rc;
}

static int end_websocket(void *arg)
{
    session *s = arg;
    return websocket_end(s->to, 1008, s->reason);
}

/* Whatever befalls the connection ends the session, and nothing else. */
static int play_by_websocket(http_connection *http)
{
    CONC_AUTO(websocket, ws) = {.max_message = 256, .ping_interval = SILENCE / 2};
    session s = new_session(send_frame, &ws);
    if (websocket_accept(&ws, http) < 0)
        return 0;
    int rc = run_session(&s, receive_frames);
    if (s.reason)
        conc_shield(1, end_websocket, &s);
    return rc == -ECANCELED ? rc : 0;
}

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
    if (strcmp(http->method, "GET") != 0)
        return http_printf(http, 405, "GET only\n");
    if (strcmp(http->path, "/leaderboard") == 0)
        return http_printf(http, 200, "%.*s", write_leaderboard(text, sizeof text), text);
    if (strcmp(http->path, "/stats") == 0)
        return http_printf(http, 200, "%.*s", write_stats(text, sizeof text), text);
    if (strcmp(http->path, "/") != 0 || !server.page)
        return http_printf(http, 404, "There are %s/play, /leaderboard and /stats\n",
                           server.page ? "/, " : "");
    CONC_TRY(http_set_header(http, "Content-Type", "text/html; charset=utf-8"));
    return http_respond(http, 200, server.page, server.page_size);
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

/* ---- clients by UDP -------------------------------------------------------------------------- */

static int send_datagram(session *s, const packet *p)
{
    datagram_peer *peer = s->to;
    if (conc_now() > peer->heard + 2)
        return 0; /* it may have vanished: nobody gets much that did not ask */
    return datagram_send(peer, p->data, p->size);
}

static int receive_datagrams(session *s)
{
    packet p;
    ssize_t n;
    while ((n = datagram_receive(s->to, p.data, sizeof p.data)) > 0)
        CONC_TRY(on_message(s, p.data, (size_t)n));
    return (int)n;
}

static int play_by_udp(datagram_peer *peer, void *arg)
{
    session s = new_session(send_datagram, peer);
    packet bye = {0};
    (void)arg;
    int rc = run_session(&s, receive_datagrams);
    if (s.reason) {
        packet_put(&bye, 1, ARENA_BYE);
        packet_put_bytes(&bye, s.reason, strlen(s.reason));
        datagram_send(peer, bye.data, bye.size);
    }
    return rc == -ECANCELED ? rc : 0;
}

static int serve_udp(void *arg)
{
    (void)arg;
    return datagrams_serve(&server.udp);
}

/* ---- bots inside this process: those of the house, and of the simulation --------------------- */

typedef struct insider {
    arena_local local;
    session session;
    bool house;
    int rating; /* to begin with; 0: as everybody's */
} insider;

/* A session that was cut off hears nothing before the next HELLO. */
static int hear_insider(void *to, const void *data, size_t size)
{
    session *s = to;
    bool known = s->player || *(const char *)data == ARENA_HELLO;
    return known ? on_message(s, data, size) : 0;
}

static int send_to_insider(session *s, const packet *p) { return arena_local_push(s->to, p); }

/* A bot of the house needs a permit, unless it has joined and only asks how things are. */
static int before_insider_joins(arena_client *c)
{
    insider *i = c->user; /* its first member */
    player *p = i->session.player;
    bool has_joined = p && (p->waiting || p->match);
    if (i->house && !has_joined)
        CONC_TRY(conc_sem_acquire(&server.house));
    if (p && p->matches == 0 && i->rating > 0)
        p->rating = i->rating;
    if (p)
        p->house = i->house;
    return 0;
}

static int play_inside(session *s) { return arena_client_play(&((arena_local *)s->to)->client); }

static int run_insider(void *arg)
{
    insider *i = arg;
    i->session = new_session(send_to_insider, &i->local);
    i->local.session = &i->session;
    i->local.deliver = hear_insider;
    i->local.client.before_join = before_insider_joins;
    arena_local_open(&i->local);
    int rc = run_session(&i->session, play_inside);
    arena_local_close(&i->local);
    return rc;
}

/* ---- the server ------------------------------------------------------------------------------ */

/* The page lies beside this source, or in the current folder. Bots play without it, too. */
static int load_page(void)
{
    char path[4096];
    const char *slash = strrchr(__FILE__, '/'), *name = "04_game_server.html";
    int folder = slash ? (int)(slash - __FILE__) + 1 : 0;
    if (options.page) {
        int rc = conc_file_read(options.page, &server.page, &server.page_size);
        return rc < 0 ? conc_fail(rc, "the page %s: %s", options.page, conc_strerror(rc)) : 0;
    }
    snprintf(path, sizeof path, "%.*s%s", folder, __FILE__, name);
    int rc = conc_file_read(path, &server.page, &server.page_size);
    if (rc == -ENOENT)
        rc = conc_file_read(name, &server.page, &server.page_size);
    if (rc < 0)
        log_line(&out, "No page: %s: %s; --page says where it is", path, conc_strerror(rc));
    return rc == -ECANCELED ? rc : 0;
}

static int report(void *arg)
{
    (void)arg;
    for (long before = 0;; before = server.late.ticks) {
        CONC_TRY(conc_sleep(10));
        if (server.late.ticks > before)
            say("%d players, %d matches; ticks late by %.1f ms (p50), %.1f ms (p99)", server.online,
                server.playing, 1000 * ticker_percentile(&server.late, 0.5),
                1000 * ticker_percentile(&server.late, 0.99));
    }
}

/* The input of a child ends when the parent does, whatever ended that. */
static int end_with_parent(void *arg)
{
    char byte;
    (void)arg;
    CONC_TRY(conc_read(0, &byte, 1));
    return conc_fail(-EPIPE, "the parent has ended");
}

static int run_server(int listener)
{
    static insider bots[HOUSE];
    conc_server http = {.fd = listener, .handler = serve_http, .limit = PLAYERS};
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, make_matches, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, serve_udp, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, report, NULL));
    if (options.child)
        CONC_TRY_IN(&g, conc_spawn(&g, end_with_parent, NULL));
    for (int i = 0; i < options.house; i++) {
        arena_client_name(&bots[i].local.client, i, (uint32_t)random_bits());
        bots[i].house = true;
        CONC_TRY_IN(&g, conc_spawn(&g, run_insider, &bots[i]));
    }
    return conc_group_end(&g, conc_serve(&http));
}

/* A listener, and UDP on the same port. Another program may have that port of UDP: if the system
 * chose it (port 0), the next choice may be better. */
static int open_sockets(void)
{
    size_t n = strlen(options.listen);
    int tries = n > 2 && strcmp(options.listen + n - 2, ":0") == 0 ? 20 : 1;
    for (;;) {
        int listener = CONC_TRY(conc_listen(options.listen));
        int rc = datagrams_open(&server.udp, listener);
        if (rc == 0)
            return listener;
        datagrams_close(&server.udp);
        conc_close(listener);
        if (rc != -EADDRINUSE || --tries == 0)
            return rc;
    }
}

static int serve(void *arg)
{
    char text[1000];
    (void)arg;
    server.udp = (datagrams){.handler = play_by_udp, .silence = SILENCE};
    int listener = CONC_TRY(open_sockets());
    CONC_TRY(conc_address(listener, false, text, sizeof text));
    server.started = conc_now();
    CONC_TRY(conc_spawn(NULL, log_write, &out));
    CONC_TRY(load_page());
    log_line(&out, "Listens on http://%s and, on the same port, by UDP. Ctrl+C ends it", text);
    server.games.keep_going = true;
    CONC_TRY(conc_group_begin(&server.games));
    int rc = conc_group_end(&server.games, run_server(listener));
    datagrams_close(&server.udp);
    conc_close(listener);
    conc_free(server.page);
    write_stats(text, sizeof text);
    log_line(&out, "%.*s", (int)strlen(text) - 1, text);
    conc_shield(1, log_flush, &out);
    log_close(&out);
    return rc;
}

/* ---- the simulation -------------------------------------------------------------------------- */

enum { SIMULATED = 20 };

static arena_ledger ledger; /* of what clients in this process have seen */

typedef struct outage {
    insider *insider;
    double after, length;
} outage;

static int simulate_outage(void *arg)
{
    const outage *o = arg;
    CONC_TRY(conc_sleep(o->after));
    o->insider->local.cut = true;
    leave(&o->insider->session);
    CONC_TRY(conc_sleep(o->length));
    o->insider->local.cut = false;
    return arena_client_hello(&o->insider->local.client);
}

static void show_simulation(const insider *bots)
{
    char text[2000];
    long lost = 0;
    for (int i = 0; i < SIMULATED; i++)
        lost += bots[i].local.lost;
    int n = write_leaderboard(text, sizeof text);
    printf("\nrank\trating\tmatches\twon\tname\n%.*s\n", n, text);
    n = write_stats(text, sizeof text);
    printf("%.*s%ld packets lost; of %ld states that came %ld were whole; %ld differ\n", n, text,
           lost, ledger.states, ledger.whole, ledger.different);
}

/* Twenty players for a minute: four of them cheat, two are cut off, and all lose packets. */
static int simulate_players(insider *bots)
{
    static const arena_temper tempers[SIMULATED] = {
        [3] = ARENA_SPEEDS, [7] = ARENA_TELEPORTS, [11] = ARENA_TUNNELS, [15] = ARENA_SPAMS};
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, make_matches, NULL));
    for (int i = 0; i < SIMULATED; i++) {
        arena_client *c = &bots[i].local.client;
        arena_client_name(c, i, (uint32_t)options.seed);
        c->temper = tempers[i];
        c->delay = 0.010 + 0.00093 * i; /* no two at once: the order of tasks decides nothing */
        c->ledger = &ledger;
        bots[i].rating = 900 + i * 53 % 400;
        bots[i].local.loss = 0.03;
        CONC_TRY_IN(&g, conc_spawn(&g, run_insider, &bots[i]));
        CONC_TRY_IN(&g, conc_sleep(0.101));
    }
    CONC_TRY_IN(&g, CONC_SPAWN(&g, simulate_outage, ((outage){&bots[4], 6.01, 5})));
    CONC_TRY_IN(&g, CONC_SPAWN(&g, simulate_outage, ((outage){&bots[9], 7.01, 12})));
    CONC_TRY_IN(&g, conc_sleep(60));
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

static int simulate(void *arg)
{
    static insider bots[SIMULATED];
    (void)arg;
    CONC_TRY(conc_spawn(NULL, log_write, &out));
    CONC_TRY(conc_group_begin(&server.games));
    int rc = simulate_players(bots);
    conc_group_cancel(&server.games);
    CONC_TRY(conc_group_end(&server.games, rc));
    conc_shield(1, log_flush, &out);
    log_close(&out);
    show_simulation(bots);
    bool wrong = ledger.different > 0 || ledger.same == 0;
    return wrong ? conc_fail(-EPROTO, "the hashes differ") : 0;
}

/* ---- players over the network, and the goal -------------------------------------------------- */

static int play_as_bots(void *arg)
{
    arena_crowd crowd = {options.bots, (int)options.players, 0, &ledger};
    (void)arg;
    return arena_crowd_run(&crowd);
}

/* A server of its own, and what it prints. */
typedef struct server_process {
    conc_child process;
    char output[1 << 20];
    size_t size;
    conc_event started;
} server_process;

static int collect_output(void *arg)
{
    server_process *s = arg;
    ssize_t n = 1;
    while (n > 0 && s->size < sizeof s->output - 1) {
        n = conc_read(s->process.output, s->output + s->size, sizeof s->output - 1 - s->size);
        s->size += n > 0 ? (size_t)n : 0;
        if (n <= 0 || strstr(s->output, " by UDP"))
            conc_event_set(&s->started); /* the line with the address is there, or none will be */
    }
    return n < 0 ? (int)n : 0;
}

static int judge(const server_process *s)
{
    const char *stats = strstr(s->output, "\nplayers ");
    bool all = ledger.matches == (long)options.players && ledger.seen == ledger.actions;
    bool same = ledger.same > 0 && ledger.different == 0;
    bool agreed = stats && strstr(stats, "other hashes 0\n");
    printf("\n%ld players have played a match to its end (goal: %.0f)\n", ledger.matches,
           options.players);
    printf("%ld actions, %ld acknowledged (goal: all)\n", ledger.actions, ledger.seen);
    printf("%ld states, %ld differ from what others of the match have (goal: 0)\n", ledger.states,
           ledger.different);
    printf("The server: %s", stats ? stats + 1 : "nothing\n");
    return all && same && agreed ? 0 : conc_fail(-EPROTO, "the counts are wrong");
}

static int run_goal(server_process *s)
{
    char address[64] = "";
    arena_crowd crowd = {address, (int)options.players, 1, &ledger};
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, collect_output, s));
    CONC_TRY_IN(&g, conc_event_wait(&s->started));
    const char *line = strstr(s->output, "Listens on http://");
    if (!line || sscanf(line, "Listens on http://%63s", address) != 1)
        return conc_group_end(&g, conc_fail(-ECHILD, "the server does not start"));
    printf("%.0f bots, half of them by UDP, play a match of %.0f s\n", options.players,
           options.match);
    CONC_TRY_IN(&g, arena_crowd_run(&crowd));
    CONC_TRY_IN(&g, conc_child_kill(&s->process, SIGTERM));
    CONC_TRY(conc_group_wait(&g));
    return judge(s);
}

static int goal(void *arg)
{
    static server_process s;
    char match[32];
    const char *argv[] = {"/proc/self/exe", "--child", "--listen", "127.0.0.1:0", "--house", "0",
                          "--match",        match,     NULL};
    (void)arg;
    snprintf(match, sizeof match, "%g", options.match);
    s.process = (conc_child){.argv = argv, .input = CONC_PIPE, .output = CONC_PIPE, .grace = 5};
    int rc = conc_child_start(&s.process);
    if (rc >= 0)
        rc = run_goal(&s);
    conc_child_close(&s.process);
    return rc;
}

/* ---- main ------------------------------------------------------------------------------------ */

static const options_field fields[] = {
    OPTIONS_TEXT("listen", "ADDRESS", &options.listen, "default: 127.0.0.1:8080"),
    OPTIONS_NUMBER("match", "SECONDS", &options.match, 2, 200, "how long a match is; 60"),
    OPTIONS_NUMBER("house", "N", &options.house, 0, HOUSE, "bots that join when one waits; 7"),
    OPTIONS_TEXT("page", "FILE", &options.page, "default: 04_game_server.html"),
    OPTIONS_NUMBER("seed", "SEED", &options.seed, 1, INT32_MAX, "of matches; default: random"),
    OPTIONS_NUMBER("every", "N", &options.every, 1, 65535, "print the hash of each Nth tick"),
    OPTIONS_TEXT("bots", "ADDRESS", &options.bots, "only players, for a server that runs"),
    OPTIONS_NUMBER("players", "N", &options.players, 1, PLAYERS, "for --bots (50), --goal (1000)"),
    OPTIONS_NUMBER("simulate", "SEED", &options.simulate, 1, INT32_MAX, "no network, no time"),
    OPTIONS_FLAG("goal", &options.goal, "a server, and 1000 players"),
    OPTIONS_FLAG("child", &options.child, "end when the standard input does"),
};

static double or_default(double value, double otherwise) { return value > 0 ? value : otherwise; }

/* Many connections need many descriptors. */
static void raise_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int run(void)
{
    if (options.simulate > 0) {
        options.seed = options.simulate;
        options.match = or_default(options.match, 20);
        setenv("CONC_CLOCK", "virtual", 1);
        return conc_main(simulate, NULL);
    }
    raise_limit();
    if (options.bots) {
        options.players = or_default(options.players, 50);
        return conc_main(play_as_bots, NULL);
    }
    options.match = or_default(options.match, options.goal ? 10 : 60);
    options.players = or_default(options.players, 1000);
    if (options.goal)
        return conc_main(goal, NULL);
    return conc_main(serve, NULL);
}

int main(int argc, char **argv)
{
    char *words[16] = {NULL};
    int count = 0;
    for (int i = 0; i < argc && count < 14; i++) {
        bool is_count = i > 2 && strcmp(argv[i - 2], "--bots") == 0 && argv[i][0] != '-';
        if (is_count) /* --bots ADDRESS N */
            words[count++] = "--players";
        words[count++] = argv[i];
    }
    int status = options_read(fields, CONC_LEN(fields), count, words, "game_server [options]",
                              "Serves a game at http://127.0.0.1:8080, with bots to play with.");
    return status >= 0 ? status : run();
}
