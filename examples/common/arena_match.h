/* arena_match.h - a match of arena.h on the server: players' actions, and states sent to them
 *
 *     arena_match m = {.roster = {.match = 1, .ticks = 1200}, .counts = &counts};
 *     arena_match_seat(&m, "Ada", 1000);                 // for each player; slots are 0, 1, ...
 *     arena_match_start(&m, seed);
 *     ...
 *     arena_match_act(&m, slot, &action);                // performs or refuses an action
 *     CONC_TRY(arena_match_step(&m));                    // then a tick
 *     if (arena_match_write_state(&m, slot, &packet))    // for each player
 *         send(&packet);
 *     ...
 *     arena_match_answer(&m, slot, &report);             // a player has it, and acts again
 *
 * Each player gets the state as the difference from what it has, or whole after a loss. Plain C:
 * nothing here waits or reads a clock.
 */
#ifndef ARENA_MATCH_H
#define ARENA_MATCH_H

#include "arena_net.h"
#include "matchmaking.h"
#include <stdio.h>

/* Counts over all matches. */
typedef struct arena_counts {
    long states, whole, bytes; /* sent; `whole`: not as a difference */
    long wrong;                /* answers with a wrong hash */
    long refused[ARENA_REFUSALS];
} arena_counts;

typedef struct arena_seat {
    snapshot_view view; /* the states that the player has */
    uint16_t taken;     /* the number of its newest valid action */
    bool settled;       /* it has a state after the end that includes all its actions */
    int cheats;         /* impossible actions; one is forgiven every half second */
} arena_seat;

typedef struct arena_match {
    arena_roster roster; /* option: .match, .ticks */
    arena_counts *counts;
    arena state;
    snapshot_history history;
    arena_seat seats[ARENA_PLAYERS];
} arena_match;

static inline void arena_match_seat(arena_match *m, const char *name, int rating)
{
    int slot = m->roster.count++;
    m->roster.ratings[slot] = rating;
    snprintf(m->roster.names[slot], ARENA_NAME, "%s", name);
}

static inline void arena_match_start(arena_match *m, uint32_t seed)
{
    m->history.words = ARENA_WORDS;
    arena_start(&m->state, m->roster.count, seed);
}

/* Performs an action, or returns why it is refused. Counts either. */
static inline arena_refusal arena_match_act(arena_match *m, int slot, const arena_action *action)
{
    arena_refusal refusal = arena_act(&m->state, slot, action);
    m->counts->refused[refusal]++;
    m->seats[slot].cheats += refusal > ARENA_OLD;
    return refusal;
}

/* Advances the match by a tick. Returns 0 or -ENOMEM. Forgives a cheat now and then, because a bad
 * network may lose what would have made an action possible. */
static inline int arena_match_step(arena_match *m)
{
    for (int i = 0; m->state.tick % (ARENA_RATE / 2) == 0 && i < m->roster.count; i++)
        m->seats[i].cheats -= m->seats[i].cheats > 0;
    arena_step(&m->state);
    return snapshot_put(&m->history, m->state.tick, (const uint16_t *)&m->state);
}

static inline uint32_t arena_match_hash(const arena_match *m)
{
    return snapshot_hash_at(&m->history, m->state.tick);
}

/* Appends the roster. */
static inline void arena_match_write_start(const arena_match *m, int slot, packet *p)
{
    arena_roster roster = m->roster;
    roster.slot = slot;
    arena_put_roster(p, &roster);
}

/* Appends the newest state. Returns false if the player was sent it before, or does not answer. */
static inline bool arena_match_write_state(arena_match *m, int slot, packet *p)
{
    snapshot_view *view = &m->seats[slot].view;
    packet_put(p, 2, (uint64_t)m->roster.match);
    if (!snapshot_send(&m->history, view, p))
        return false;
    m->counts->states++;
    m->counts->whole += view->base == 0;
    m->counts->bytes += (long)p->size;
    return true;
}

/* Notes which state a player has. Returns true if its action counts; false: it has the final state
 * or a later one, so it knows that its action does not count. */
static inline bool arena_match_answer(arena_match *m, int slot, const arena_report *report)
{
    arena_seat *s = &m->seats[slot];
    int rc = snapshot_acknowledge(&m->history, &s->view, report->tick, report->hash);
    m->counts->wrong += rc < 0;
    if (report->tick < m->roster.ticks) {
        s->taken = report->action.number;
        return true;
    }
    const arena *seen = (const arena *)snapshot_at(&m->history, report->tick);
    if (rc == 1)
        s->settled = seen->players[slot].number >= s->taken;
    return false;
}

/* Returns the points, -1 for a player who has left, and the new ratings. Sets *winner to the slot
 * of the player with the most points. */
static inline arena_result arena_match_result(const arena_match *m, int *winner)
{
    arena_result r = {.match = m->roster.match, .count = m->roster.count};
    memcpy(r.ratings, m->roster.ratings, sizeof r.ratings);
    *winner = 0;
    for (int i = 0; i < r.count; i++) {
        r.scores[i] = m->state.players[i].here ? m->state.players[i].score : -1;
        if (r.scores[i] > r.scores[*winner])
            *winner = i;
    }
    matchmaking_rate(r.ratings, r.scores, r.count);
    for (int i = 0; i < r.count; i++)
        r.changes[i] = r.ratings[i] - m->roster.ratings[i];
    return r;
}

/* Writes the counts as text. Returns its length. */
static inline int arena_counts_write(const arena_counts *c, char *text, size_t size)
{
    int n = snprintf(text, size,
                     "states %ld, whole %ld, bytes each %ld, other hashes %ld\nrefused:", c->states,
                     c->whole, c->bytes / (c->states + (c->states == 0)), c->wrong);
    for (int i = ARENA_OLD; i < ARENA_REFUSALS; i++)
        n += snprintf(text + n, size - (size_t)n, " %s %ld%s", arena_refusal_names[i],
                      c->refused[i], i + 1 < ARENA_REFUSALS ? "," : "\n");
    return n;
}

#endif
