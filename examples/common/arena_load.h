/* arena_load.h - many players of arena_client.h, to test a server
 *
 *     static arena_ledger ledger;
 *     arena_crowd crowd = {.address = "127.0.0.1:8080", .count = 1000, .matches = 1, &ledger};
 *     CONC_TRY(arena_crowd_run(&crowd));        // over the network, every second one by UDP
 *     return arena_goal_run(&crowd, 10);        // the same with a server started for it
 *
 *     static arena_house house = {.count = 7, .serve = serve_pair};
 *     conc_spawn(&g, arena_house_run, &house);
 *     arena_house_call(&house, 3);              // three of them play a match
 *
 *     static arena_simulation s = {.seed = 7, .serve = serve_pair};
 *     CONC_TRY(arena_simulation_run(&s));       // on the virtual clock: the same each time
 *
 * All calls wait. Include conc_pool.h and conc_sync.h before.
 */
#ifndef ARENA_LOAD_H
#define ARENA_LOAD_H

#ifndef CONC_POOL_H
#error "arena_load.h: include conc_pool.h first"
#endif

#include "arena_client.h"
#include <signal.h>

/* ---- over the network ----------------------------------------------------------------------- */

typedef struct arena_crowd {
    const char *address;
    int count, matches; /* clients; matches that each of them plays, 0: forever */
    arena_ledger *ledger;
} arena_crowd;

static inline int arena__run_member(void *client)
{
    arena_client *c = client;
    int rc = arena_client_dial(c);
    if (rc >= 0)
        rc = arena_client_play(c);
    arena_client_close(c);
    return rc;
}

static inline int arena__run_members(const arena_crowd *crowd)
{
    conc_group g = {0};
    for (int i = 0; i < crowd->count; i++) {
        arena_client c = {.address = crowd->address, .matches = crowd->matches};
        c.by_udp = i % 2;
        c.ledger = crowd->ledger;
        arena_client_name(&c, i, 0);
        CONC_TRY_IN(&g, CONC_SPAWN(&g, arena__run_member, c));
        CONC_TRY_IN(&g, conc_sleep(0.001)); /* not all at once */
    }
    return conc_group_wait(&g);
}

static inline int arena__show_progress(void *arg)
{
    const arena_ledger *l = arg;
    for (int seconds = 5;; seconds += 5) {
        CONC_TRY(conc_sleep(5));
        printf("%d s: %ld states, %ld differ, %ld matches over for a player\n", seconds, l->states,
               l->different, l->matches);
        fflush(stdout);
    }
}

/* Lets the crowd play, and prints its progress. */
static inline int arena_crowd_run(arena_crowd *crowd)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, arena__show_progress, crowd->ledger));
    int rc = arena__run_members(crowd);
    conc_group_cancel(&g);
    return conc_group_end(&g, rc);
}

/* ---- the goal ------------------------------------------------------------------------------- */

/* Reads the server's /stats. */
static inline int arena__ask_server(const char *address, char *text, size_t size)
{
    static const char request[] = "GET /stats HTTP/1.0\r\n\r\n";
    int fd = CONC_TRY(conc_dial(address));
    ssize_t n = conc_write_full(fd, request, sizeof request - 1);
    if (n >= 0)
        n = conc_read_full(fd, text, size - 1);
    conc_close(fd);
    text[CONC_TRY(n)] = 0;
    return 0;
}

static inline int arena__judge(const arena_crowd *crowd)
{
    char text[2000];
    const arena_ledger *l = crowd->ledger;
    CONC_TRY(arena__ask_server(crowd->address, text, sizeof text));
    const char *stats = strstr(text, "\r\n\r\n");
    bool all = l->matches == crowd->count && l->seen == l->actions;
    bool same = l->same > 0 && l->different == 0 && strstr(text, "other hashes 0\n");
    printf("\n%ld players have played a match to its end (goal: %d)\n", l->matches, crowd->count);
    printf("%ld actions, %ld acknowledged (goal: all)\n", l->actions, l->seen);
    printf("%ld states, %ld differ from those of others in the match (goal: 0)\n", l->states,
           l->different);
    printf("The server: %s", stats ? stats + 4 : "nothing\n");
    return all && same ? 0 : conc_fail(-EPROTO, "the counts are wrong");
}

/* A task for the server of arena_goal_run: ends the server at the end of its standard input, that
 * is, when its parent process ends for whatever reason. */
static inline int arena_end_with_input(void *arg)
{
    char byte;
    (void)arg;
    CONC_TRY(conc_read(0, &byte, 1));
    return raise(SIGTERM);
}

/* Starts a server and lets the crowd play there. The server is this program with the options
 * --child, --listen, --house and --match; it must print "Listens on http://ADDRESS " and run
 * arena_end_with_input. Prints how many played, and whether all of them saw the same states.
 * -EPROTO: they did not. */
static inline int arena_goal_run(arena_crowd *crowd, double seconds)
{
    char text[2000] = "", address[64] = "", match[32];
    size_t used = 0;
    const char *const argv[] = {
        "/proc/self/exe", "--child", "--listen=127.0.0.1:0", "--house=7", "--match", match, NULL};
    CONC_AUTO(conc_child,
              server) = {.argv = argv, .input = CONC_PIPE, .output = CONC_PIPE, .grace = 5};
    snprintf(match, sizeof match, "%g", seconds);
    CONC_TRY(conc_child_start(&server));
    const char *line;
    while (!(line = strstr(text, "Listens on http://"))) {
        ssize_t n = CONC_TRY(conc_read(server.output, text + used, sizeof text - 1 - used));
        if (n == 0)
            return conc_fail(-ECHILD, "the server did not start");
        used += (size_t)n;
    }
    sscanf(line, "Listens on http://%63s", address); /* the rest of the line has arrived with it */
    crowd->address = address;
    printf("%d bots, half of them by UDP, play a match of %g s\n", crowd->count, seconds);
    CONC_TRY(arena_crowd_run(crowd));
    return arena__judge(crowd);
}

/* ---- in the server's process ---------------------------------------------------------------- */

typedef struct arena_local {
    arena_client client;
    packet_pair pair;
} arena_local;

static inline void arena_local_open(arena_local *l, int index, uint32_t seed)
{
    arena_client_name(&l->client, index, seed);
    l->pair.luck = l->client.bot.random + 1;
    l->client.link = &l->pair.client;
    packet_pair_open(&l->pair);
}

static inline int arena_local_close(arena_local *l)
{
    packet_pair_close(&l->pair);
    return arena_client_close(&l->client);
}

enum { ARENA_HOUSE_MOST = 256 };

/* Bots that play when players need opponents. */
typedef struct arena_house {
    /* options */
    int count;
    conc_fn *serve; /* the server's task for each bot; gets its packet_pair */

    /* private */
    conc_sem calls; /* each permit lets a bot play a match */
    arena_local bots[ARENA_HOUSE_MOST];
} arena_house;

typedef struct arena__member {
    arena_house *house;
    arena_local *bot;
} arena__member;

static inline int arena__play_when_called(void *arg)
{
    const arena__member *m = arg;
    for (;;) {
        CONC_TRY(conc_sem_acquire(&m->house->calls));
        m->bot->client.matches++;
        CONC_TRY(arena_client_play(&m->bot->client));
    }
}

/* Sets how many more bots are needed now. */
static inline void arena_house_call(arena_house *h, int count)
{
    for (int missing = count - h->calls.permits; missing > 0; missing--)
        conc_sem_release(&h->calls);
    while (h->calls.permits > count && conc_sem_try_acquire(&h->calls) == 0)
        continue;
}

/* Runs the bots, as a task. */
static inline int arena_house_run(void *house)
{
    arena_house *h = house;
    conc_group g = {0};
    for (int i = 0; i < h->count; i++) {
        arena_local *bot = &h->bots[i];
        arena_local_open(bot, i, (uint32_t)conc_random(0, UINT32_MAX));
        CONC_TRY_IN(&g, conc_spawn(&g, h->serve, &bot->pair));
        CONC_TRY_IN(&g, CONC_SPAWN(&g, arena__play_when_called, ((arena__member){h, bot})));
    }
    int rc = conc_group_wait(&g);
    for (int i = 0; i < h->count; i++)
        arena_local_close(&h->bots[i]);
    return rc;
}

/* ---- a simulation --------------------------------------------------------------------------- */

enum { ARENA_SIMULATED = 20 };

typedef struct arena_simulation {
    /* options */
    uint32_t seed;
    conc_fn *serve; /* the server's task for each player; gets its packet_pair */

    arena_local players[ARENA_SIMULATED];
    arena_ledger ledger;
} arena_simulation;

typedef struct arena__outage {
    arena_local *player;
    double after, length;
} arena__outage;

static inline int arena__cut_off(void *arg)
{
    const arena__outage *o = arg;
    CONC_TRY(conc_sleep(o->after));
    CONC_TRY(packet_pair_cut(&o->player->pair, true));
    CONC_TRY(conc_sleep(o->length));
    CONC_TRY(packet_pair_cut(&o->player->pair, false));
    return arena_client_hello(&o->player->client);
}

static inline int arena__simulate(arena_simulation *s)
{
    static const arena_temper tempers[ARENA_SIMULATED] = {
        [3] = ARENA_SPEEDS, [7] = ARENA_TELEPORTS, [11] = ARENA_TUNNELS, [15] = ARENA_SPAMS};
    conc_group g = {0};
    for (int i = 0; i < ARENA_SIMULATED; i++) {
        arena_local *l = &s->players[i];
        arena_local_open(l, i, s->seed);
        l->pair.loss = 0.03;
        l->client.temper = tempers[i];
        l->client.delay = 0.010 + 0.00093 * i; /* different times, so that the order of tasks does
                                                  not matter */
        l->client.ledger = &s->ledger;
        CONC_TRY_IN(&g, conc_spawn(&g, s->serve, &l->pair));
        CONC_TRY_IN(&g, conc_spawn(&g, arena_client_play, &l->client));
        CONC_TRY_IN(&g, conc_sleep(0.101));
    }
    CONC_TRY_IN(&g, CONC_SPAWN(&g, arena__cut_off, ((arena__outage){&s->players[4], 6.01, 5})));
    CONC_TRY_IN(&g, CONC_SPAWN(&g, arena__cut_off, ((arena__outage){&s->players[9], 7.01, 12})));
    CONC_TRY_IN(&g, conc_sleep(60));
    conc_group_cancel(&g);
    return conc_group_wait(&g);
}

/* Prints the result. */
static inline void arena_simulation_report(const arena_simulation *s)
{
    printf("%ld states received, %ld differ\n", s->ledger.states, s->ledger.different);
}

/* Simulates twenty players for a minute: four of them cheat, two are cut off, and all lose packets.
 * A client's .token may be set before. -EPROTO: they have seen different states. */
static inline int arena_simulation_run(arena_simulation *s)
{
    int rc = arena__simulate(s);
    for (int i = 0; i < ARENA_SIMULATED; i++)
        arena_local_close(&s->players[i]);
    if (rc == 0 && (s->ledger.different > 0 || s->ledger.same == 0))
        return conc_fail(-EPROTO, "the hashes differ");
    return rc;
}

#endif
