/* A game server: tanks in an arena, matches of 4 to 8 players, 20 ticks a second. Clients connect
   by WebSocket (a browser) or UDP. Only the server decides what happens; a client sends its
   actions, receives changes, and is disconnected after impossible actions.

   cc 04_game_server.c -o game_server -lwslay -lcrypto -lhttp_parser
   ./game_server                              # open http://127.0.0.1:8080; bots play with you
   ./game_server --listen 0.0.0.0:8080 --match 120 --house 20
   ./game_server --bots 127.0.0.1:8080 50     # players for a running server
   ./game_server --simulate 7                 # virtual clock, no network: reproducible
   ./game_server --simulate 7 --every 1       # with the hash of each tick's state
   ./game_server --goal                       # 1000 players

   While it runs, /leaderboard and /stats show more. The parts specific to this game are in
   ../common: its rules (arena.h), its messages (arena_net.h), its bots (arena_client.h). */
#define CONC_STATIC
#include "../../conc_pool.h"
#include "../../conc_sync.h"
#include "../common/arena_load.h"
#include "../common/arena_match.h"
#include "../common/descriptors.h"
#include "../common/http.h"
#include "../common/log.h"
#include "../common/matchmaking.h"
#include "../common/options.h"
#include "../common/players.h"
#include "../common/static_files.h"
#include "../common/ticker.h"

enum {
    ACTIONS = 32,  /* of a player that wait for the next tick */
    CHEATS = 40,   /* impossible actions that end a match for a player */
    EXCESS = 1000, /* messages over the limit that end a session */
    ROUNDS = 4     /* of match-making, a second */
};

static const double READY = 1;    /* seconds before a match begins */
static const double ABSENCE = 10; /* seconds in which a player may come back */
static const double SILENCE = 5;  /* seconds until a client has gone that says nothing */
static const double OVERTIME = 5; /* seconds for the last actions to come in */

static struct {
    const char *listen, *bots, *page;
    double match, house, players, every, simulate; /* 0: as the command likes; match: seconds */
    bool goal, child;
    char **words;
} options = {.listen = "127.0.0.1:8080", .house = 7};

typedef struct match match;
typedef struct session session;

typedef struct player {
    player_account *account;
    session *session; /* NULL: away */
    conc_event back;
    match *match; /* NULL: none */
    int slot;
    arena_result result;
} player;

/* A client, as long as its connection lasts. */
struct session {
    packet_link *link;
    player *player; /* NULL: has not said HELLO */
    conc_group group;
    conc_event news;
    int due; /* bits, ARENA_WELCOME to ARENA_END: what to tell it next */
    conc_limiter messages;
    int excess;      /* messages that were too many */
    char reason[64]; /* why the server ends it */
};

struct match {
    arena_match game;
    player *players[ARENA_PLAYERS];
    conc_queue actions[ARENA_PLAYERS]; /* for the next tick */
    int here;
    ticker ticker;
    conc_group group; /* its tasks wait for those who are away */
};

static struct {
    players known;
    player players[PLAYERS_MOST];
    matchmaking_queue waiting;
    conc_event somebody_waits;
    arena_house house;
    datagrams udp;
    int online, playing, matches;
    long dropped;
    ticker_lateness late;
    arena_counts counts;
} server = {.waiting.rules = {4, ARENA_PLAYERS, .patience = 4, .band = 50, .widening = 50}};

static log_writer out = {.fd = 1, .shows_seconds = true};

static double or_else(double value, double otherwise) { return value > 0 ? value : otherwise; }

/* A client gets the newest of what it is due, as soon as it has taken what was sent before. */
static void notify(player *p, int what)
{
    if (p->session) {
        p->session->due |= what;
        conc_event_set(&p->session->news);
    }
}

/* ---- a match: a task that ticks -------------------------------------------------------------- */

static void leave_match(player *p, const arena_result *result)
{
    p->match = NULL;
    p->result = *result;
    notify(p, ARENA_END);
}

static void drop_out(player *p, const char *why)
{
    match *m = p->match;
    log_line(&out, "match %d: %s %s", m->game.roster.match, p->account->name, why);
    arena_leave(&m->game.state, p->slot);
    m->here--;
    leave_match(p, &(arena_result){.match = m->game.roster.match});
}

/* Does what the player has sent since the last tick, as far as that is possible. */
static void act(match *m, int slot)
{
    player *p = m->players[slot];
    arena_seat *seat = &m->game.seats[slot];
    arena_action action;
    while (p->match == m && conc_queue_try_get(&m->actions[slot], &action) == 0) {
        arena_refusal refusal = arena_match_act(&m->game, slot, &action);
        if (refusal > ARENA_OLD && seat->cheats == 1)
            log_line(&out, "match %d: %s: refused: %s", m->game.roster.match, p->account->name,
                     arena_refusal_names[refusal]);
        if (seat->cheats >= CHEATS)
            drop_out(p, "is out: too many impossible actions");
    }
}

/* The actions are done in the order of the slots, whoever was first: so the same actions make the
 * same state. */
static int tick(match *m)
{
    for (int i = 0; i < m->game.roster.count; i++) {
        act(m, i);
        if (m->players[i]->match == m)
            notify(m->players[i], ARENA_STATE); /* which is written when this task waits */
    }
    CONC_TRY(arena_match_step(&m->game));
    if (options.every > 0 && m->game.state.tick % (int)options.every == 0)
        log_line(&out, "match %d: tick %d, hash %08x", m->game.roster.match, m->game.state.tick,
                 arena_match_hash(&m->game));
    return 0;
}

/* The tank of a player whose connection is gone stands where it is, and can be hit. */
static int await_return(void *arg)
{
    player *p = arg;
    match *m = p->match;
    conc_case cases[] = {CONC_CASE_EVENT(&p->back), CONC_CASE_AFTER(ABSENCE)};
    int which = CONC_TRY(conc_select(cases, CONC_LEN(cases)));
    if (m && which == 0)
        log_line(&out, "match %d: %s is back", m->game.roster.match, p->account->name);
    else if (m && p->match == m)
        drop_out(p, "has not come back");
    return 0;
}

static int watch(player *p)
{
    log_line(&out, "match %d: %s is away", p->match->game.roster.match, p->account->name);
    return conc_spawn(&p->match->group, await_return, p);
}

static int enter(match *m, int slot)
{
    player *p = m->players[slot];
    p->match = m;
    p->slot = slot;
    notify(p, ARENA_START);
    return p->session ? 0 : watch(p);
}

/* The last actions may still be on their way when time is up: all of them count. */
static bool is_over(const match *m)
{
    int over_by = m->game.state.tick - m->game.roster.ticks;
    bool settled = true;
    for (int i = 0; i < m->game.roster.count; i++) {
        const player *p = m->players[i];
        settled = settled && (p->match != m || !p->session || m->game.seats[i].settled);
    }
    return m->here == 0 || over_by >= OVERTIME * ARENA_RATE || (over_by >= 0 && settled);
}

static int run_match(match *m)
{
    for (int i = 0; i < m->game.roster.count; i++)
        CONC_TRY(enter(m, i));
    for (;;) {
        CONC_TRY(ticker_wait(&m->ticker));
        if (is_over(m))
            return 0;
        CONC_TRY(tick(m));
    }
}

static arena_result rate(match *m)
{
    int winner;
    arena_result r = arena_match_result(&m->game, &winner);
    int most = r.scores[winner];
    for (int i = 0; i < r.count; i++)
        players_credit(m->players[i]->account, r.changes[i], most >= 0 && r.scores[i] == most);
    log_line(&out, "match %d: over after %d ticks, hash %08x; %s has won with %d points", r.match,
             m->game.state.tick, arena_match_hash(&m->game),
             most < 0 ? "nobody" : m->players[winner]->account->name, most);
    return r;
}

static int play(void *arg)
{
    match *m = arg;
    arena_result result = {.match = m->game.roster.match}; /* of nobody: it has failed */
    server.playing++;
    CONC_TRY(conc_group_begin(&m->group));
    int rc = run_match(m);
    conc_group_cancel(&m->group);
    rc = conc_group_end(&m->group, rc);
    if (rc == 0)
        result = rate(m);
    for (int i = 0; i < m->game.roster.count; i++) {
        conc_queue_destroy(&m->actions[i]);
        m->players[i]->account->users--;
        if (m->players[i]->match == m)
            leave_match(m->players[i], &result);
    }
    server.playing--;
    snapshot_close(&m->game.history);
    free(m);
    return rc;
}

/* ---- match-making ---------------------------------------------------------------------------- */

static int start_match(conc_group *matches, const matchmaking_ticket *tickets, int count)
{
    double band = matchmaking_narrowest(&server.waiting.rules, tickets, count, conc_now());
    match *m = calloc(1, sizeof *m);
    if (!m)
        return -ENOMEM;
    int id = m->game.roster.match = ++server.matches;
    m->game.roster.ticks = (int)(options.match * ARENA_RATE);
    m->game.counts = &server.counts;
    for (m->here = 0; m->here < count; m->here++) {
        player *p = m->players[m->here] = tickets[m->here].player;
        p->account->users++;
        m->actions[m->here] = (conc_queue)CONC_QUEUE(arena_action, ACTIONS);
        arena_match_seat(&m->game, p->account->name, p->account->rating);
    }
    double seed = options.simulate > 0 ? options.simulate + id : conc_random(0, UINT32_MAX);
    arena_match_start(&m->game, (uint32_t)seed);
    m->ticker = (ticker){.interval = 1.0 / ARENA_RATE, .late = &server.late};
    /* the ticks of many matches are spread over time: at once, most of them would be late */
    ticker_start(&m->ticker, READY + (id % 16 + 0.5) * m->ticker.interval / 16);
    log_line(&out, "match %d: %d players, ratings %d to %d (band %.0f)", id, count,
             tickets[0].rating, tickets[count - 1].rating, band);
    return conc_spawn(matches, play, m);
}

static int make_matches(void *arg)
{
    conc_group matches = {.keep_going = true};
    matchmaking_ticket found[ARENA_PLAYERS];
    int count;
    (void)arg;
    for (;;) {
        CONC_TRY_IN(&matches, conc_event_wait(&server.somebody_waits));
        double next_round = (int64_t)(conc_now() * ROUNDS + 1) / (double)ROUNDS;
        CONC_TRY_IN(&matches, conc_sleep_until(next_round));
        while ((count = matchmaking_next(&server.waiting, conc_now(), found)) > 0)
            CONC_TRY_IN(&matches, start_match(&matches, found, count));
        /* when somebody has waited for a second, as many bots join as are missing */
        arena_house_call(&server.house, matchmaking_lacks(&server.waiting, conc_now(), 1));
        if (server.waiting.count == 0)
            conc_event_clear(&server.somebody_waits);
    }
}

/* ---- a session: what a client is told -------------------------------------------------------- */

/* false: there is no such news, or not now. */
static bool write_news(packet *p, int what, const player *to)
{
    const matchmaking_ticket *t = matchmaking_find(&server.waiting, to);
    match *m = to->match;
    p->size = 0;
    packet_put(p, 1, (uint64_t)what);
    if (what == ARENA_WELCOME)
        arena_put_welcome(p, to->account->token, to->account->rating);
    else if (what == ARENA_LOBBY)
        arena_put_lobby(p, server.online, server.waiting.count,
                        t ? matchmaking_band(&server.waiting.rules, t, conc_now()) : 0);
    else if (what == ARENA_END)
        arena_put_result(p, &to->result);
    else if (m && what == ARENA_START)
        arena_match_write_start(&m->game, to->slot, p);
    else
        return m && arena_match_write_state(&m->game, to->slot, p);
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
        int what = s->due & -s->due; /* the lowest bit: the first of these */
        s->due &= ~what;
        if (what == 0)
            conc_event_clear(&s->news);
        else if (s->player && write_news(&p, what, s->player) && s->link->send(s->link, &p) < 0)
            return 0; /* whoever receives from it learns why */
    }
}

/* ---- a session: what a client says ----------------------------------------------------------- */

/* A player has one session: another one ends. In its match it gets whole states. */
static void connect_player(session *s, player *p)
{
    session *old = p->session;
    if (old) {
        snprintf(old->reason, sizeof old->reason, "you play elsewhere");
        old->player = NULL;
        conc_group_cancel(&old->group);
    } else {
        p->account->users++;
        server.online++;
    }
    if (p->match)
        p->match->game.seats[p->slot].view = (snapshot_view){0};
    p->session = s;
    s->player = p;
    conc_event_set(&p->back);
}

static void disconnect_player(player *p)
{
    matchmaking_leave(&server.waiting, p);
    p->session = NULL;
    p->account->users--;
    p->account->left = conc_now();
    server.online--;
    conc_event_clear(&p->back);
    if (p->match && !conc_cancelled() && watch(p) < 0)
        log_line(&out, "%s is not waited for: %s", p->account->name, conc_last_error());
}

static int on_hello(session *s, packet_reader *r)
{
    arena_hello hello;
    if (!arena_get_hello(r, &hello))
        return conc_fail(-EBADMSG, "HELLO is malformed");
    player_account *a = s->player ? s->player->account : players_find(&server.known, hello.token);
    if (!a)
        a = players_add(&server.known);
    if (!a)
        return conc_fail(-EBADMSG, "the server is full");
    player *p = &server.players[a - server.known.accounts];
    p->account = a;
    if (p->session != s)
        connect_player(s, p);
    if (!p->match)
        snprintf(a->name, sizeof a->name, "%s", hello.name[0] ? hello.name : "Nobody");
    notify(p, ARENA_WELCOME | ARENA_START);
    return 0;
}

static int on_join(player *p)
{
    int index = (int)(p - server.players);
    if (p->match) {
        snapshot_view *view = &p->match->game.seats[p->slot].view;
        view->answered = view->sent; /* what it was sent may be lost */
    } else {
        matchmaking_join(&server.waiting, p, index, p->account->rating, conc_now());
        conc_event_set(&server.somebody_waits);
    }
    notify(p, p->match ? ARENA_START : ARENA_LOBBY);
    return 0;
}

static int on_action(player *p, packet_reader *r)
{
    arena_report report;
    if (!arena_get_report(r, &report))
        return conc_fail(-EBADMSG, "ACTION is malformed");
    if (!p->match || p->match->game.roster.match != report.match)
        notify(p, p->match ? ARENA_START : ARENA_END);
    else if (arena_match_answer(&p->match->game, p->slot, &report))
        server.dropped += conc_queue_try_put(&p->match->actions[p->slot], &report.action) < 0;
    return 0;
}

static int on_message(session *s, const packet *p)
{
    packet_reader r = {p->data, p->size, false};
    int type = (int)packet_get(&r, 1);
    if (conc_limiter_try_acquire(&s->messages, 1) < 0) {
        server.dropped++;
        return ++s->excess < EXCESS ? 0 : conc_fail(-EBADMSG, "too many messages");
    }
    if (type == ARENA_HELLO)
        return on_hello(s, &r);
    if (type == ARENA_JOIN && s->player)
        return on_join(s->player);
    if (type == ARENA_ACTION && s->player)
        return on_action(s->player, &r);
    if (type != ARENA_QUIT || !s->player)
        return conc_fail(-EBADMSG, "a message of type %d", type);
    matchmaking_leave(&server.waiting, s->player);
    return 0;
}

static int receive_messages(session *s)
{
    packet p;
    int rc;
    while ((rc = s->link->receive(s->link, &p)) > 0)
        CONC_TRY(on_message(s, &p));
    return rc;
}

/* Runs until the client leaves, or does what ends it. Whatever befalls the connection ends the
 * session, and nothing else. */
static int run_session(packet_link *link)
{
    session s = {.link = link, .messages = {.rate = 3 * ARENA_RATE, .burst = 6 * ARENA_RATE}};
    CONC_TRY_IN(&s.group, conc_spawn(&s.group, tell, &s));
    int rc = receive_messages(&s);
    if (rc == -EBADMSG)
        snprintf(s.reason, sizeof s.reason, "%s", conc_last_error());
    conc_group_cancel(&s.group);
    rc = conc_group_end(&s.group, rc);
    if (conc_cancelled())
        snprintf(s.reason, sizeof s.reason, "the server stops");
    else if (*s.reason && s.player)
        log_line(&out, "%s: the session ends: %s", s.player->account->name, s.reason);
    if (s.player)
        disconnect_player(s.player);
    if (*s.reason)
        packet_link_end(link, s.reason);
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

/* One session after the other, with a bot in this process. */
static int play_by_pair(void *pair)
{
    for (;;)
        CONC_TRY(run_session(&((packet_pair *)pair)->server));
}

/* ---- the server ------------------------------------------------------------------------------ */

static int write_stats(char *text, size_t size)
{
    int n = snprintf(text, size,
                     "players %d, waiting %d, matches %d of %d\n"
                     "ticks %ld, late by %.1f ms (p50), %.1f ms (p99)\n"
                     "dropped %ld, strange %ld\n",
                     server.online, server.waiting.count, server.playing, server.matches,
                     server.late.ticks, 1000 * ticker_percentile(&server.late, 0.5),
                     1000 * ticker_percentile(&server.late, 0.99), server.dropped + server.udp.lost,
                     server.udp.strange);
    return n + arena_counts_write(&server.counts, text + n, size - (size_t)n);
}

static int answer(http_connection *http, void *arg)
{
    char text[2000];
    (void)arg;
    if (strcmp(http->path, "/play") == 0)
        return play_by_websocket(http);
    if (strcmp(http->path, "/leaderboard") == 0)
        return http_printf(http, 200, "%.*s", players_write_best(&server.known, text, sizeof text),
                           text);
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

static int run_server(int listener)
{
    conc_server http = {.fd = listener, .handler = serve_http, .limit = PLAYERS_MOST};
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, make_matches, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, datagrams_serve, &server.udp));
    if (options.child)
        CONC_TRY_IN(&g, conc_spawn(&g, arena_end_with_input, NULL));
    server.house.count = (int)options.house;
    server.house.serve = play_by_pair;
    CONC_TRY_IN(&g, conc_spawn(&g, arena_house_run, &server.house));
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
    out.start = conc_now();
    options.match = or_else(options.match, 60);
    CONC_TRY(conc_spawn(NULL, log_write, &out));
    log_line(&out, "Listens on http://%s and, on the same port, by UDP. Ctrl+C ends it", text);
    int rc = run_server(listener);
    datagrams_close(&server.udp);
    conc_close(listener);
    log_line(&out, "%.*s", write_stats(text, sizeof text) - 1, text);
    conc_shield(1, log_flush, &out);
    log_close(&out);
    return rc;
}

/* ---- players for its tests ------------------------------------------------------------------- */

static int simulate(void *arg)
{
    static arena_simulation s = {.serve = play_by_pair};
    char text[2000];
    (void)arg;
    s.seed = (uint32_t)options.simulate;
    options.match = or_else(options.match, 20);
    for (int i = 0; i < ARENA_SIMULATED; i++) {
        player_account *a = players_add(&server.known);
        a->rating = 900 + i * 53 % 400;
        s.players[i].client.token = a->token;
    }
    CONC_TRY(conc_spawn(NULL, log_write, &out));
    CONC_TRY(conc_spawn(NULL, make_matches, NULL));
    int rc = arena_simulation_run(&s);
    conc_shield(1, log_flush, &out);
    log_close(&out);
    printf("\nrank\trating\tmatches\twon\tname\n%.*s\n",
           players_write_best(&server.known, text, sizeof text), text);
    printf("%.*s", write_stats(text, sizeof text), text);
    arena_simulation_report(&s);
    return rc;
}

static arena_ledger ledger; /* of what the clients have seen */

static int play_as_bots(void *arg)
{
    arena_crowd crowd = {options.bots, (int)or_else(options.players, 50), 0, &ledger};
    (void)arg;
    return arena_crowd_run(&crowd);
}

static int goal(void *arg)
{
    arena_crowd crowd = {NULL, (int)or_else(options.players, 1000), 1, &ledger};
    (void)arg;
    return arena_goal_run(&crowd, or_else(options.match, 10));
}

/* ---- main ------------------------------------------------------------------------------------ */

static const options_field fields[] = {
    OPTIONS_TEXT("listen", "ADDRESS", &options.listen, "default: 127.0.0.1:8080"),
    OPTIONS_NUMBER("match", "SECONDS", &options.match, 2, 200, "how long a match is; 60"),
    OPTIONS_NUMBER("house", "N", &options.house, 0, ARENA_HOUSE_MOST, "bots for company; 7"),
    OPTIONS_TEXT("page", "FILE", &options.page, "default: 04_game_server.html"),
    OPTIONS_NUMBER("every", "N", &options.every, 1, 65535, "print the hash of each Nth tick"),
    OPTIONS_TEXT("bots", "ADDRESS", &options.bots, "only players, for a server that runs"),
    OPTIONS_NUMBER("players", "N", &options.players, 1, PLAYERS_MOST, "bots: 50, goal: 1000"),
    OPTIONS_NUMBER("simulate", "SEED", &options.simulate, 1, INT32_MAX, "no network, no time"),
    OPTIONS_FLAG("goal", &options.goal, "a server, and 1000 players"),
    OPTIONS_FLAG("child", &options.child, "end when the standard input does"),
    OPTIONS_WORDS("N", &options.words, "as --players N, for --bots"),
};

int main(int argc, char **argv)
{
    int status = options_read(fields, CONC_LEN(fields), argc, argv, "game_server [options]",
                              "Serves a game at http://127.0.0.1:8080, with bots to play with.");
    if (status >= 0)
        return status;
    if (options.words[0])
        options.players = atof(options.words[0]);
    if (options.words[0] && (!options.bots || options.players < 1)) {
        fprintf(stderr, "game_server: %s is not an option; --help lists them\n", options.words[0]);
        return 2;
    }
    if (options.simulate > 0) {
        setenv("CONC_CLOCK", "virtual", 1);
        return conc_main(simulate, NULL);
    }
    descriptors_allow_most();
    if (options.bots)
        return conc_main(play_as_bots, NULL);
    if (options.goal)
        return conc_main(goal, NULL);
    if (!options.page)
        options.page = static_files_beside(__FILE__, "04_game_server.html");
    return conc_main(serve, NULL);
}
