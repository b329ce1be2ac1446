/* matchmaking.h - matches players by ratings, in bands that widen with waiting; updates ratings
 *
 *     matchmaking_queue q = {.rules = {.least = 4, .most = 8, .band = 50, .widening = 50}};
 *     matchmaking_join(&q, player, id, rating, now);        // repeating it changes nothing
 *     matchmaking_leave(&q, player);
 *     matchmaking_ticket match[8];
 *     while ((size = matchmaking_next(&q, now, match)) > 0)
 *         start(match, size);                               // match[0] to match[size - 1]
 *
 * A player accepts opponents whose ratings are within a band, which is narrow at first and widens
 * while the player waits. All players of a match accept each other. Plain C without allocation.
 */
#ifndef MATCHMAKING_H
#define MATCHMAKING_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct matchmaking_rules {
    int least, most; /* players of a match */
    double patience; /* seconds to wait for a full match; then `least` players suffice */
    double band;     /* initial distance between ratings */
    double widening; /* of the band, per second */
} matchmaking_rules;

typedef struct matchmaking_ticket {
    void *player;
    int id, rating; /* id: breaks ties, so that matches are reproducible */
    double since;   /* when the player began to wait */
} matchmaking_ticket;

/* Returns the largest difference in rating that the player accepts now. */
static inline double matchmaking_band(const matchmaking_rules *r, const matchmaking_ticket *t,
                                      double now)
{
    return r->band + r->widening * (now - t->since);
}

static inline int matchmaking__by_rating(const void *a, const void *b)
{
    const matchmaking_ticket *x = a, *y = b;
    if (x->rating != y->rating)
        return x->rating < y->rating ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Returns the narrowest band of these n players, which all of them accept. */
static inline double matchmaking_narrowest(const matchmaking_rules *r, const matchmaking_ticket *t,
                                           int n, double now)
{
    double narrowest = matchmaking_band(r, t, now);
    for (int i = 1; i < n; i++)
        if (matchmaking_band(r, &t[i], now) < narrowest)
            narrowest = matchmaking_band(r, &t[i], now);
    return narrowest;
}

/* Returns when the first of these began to wait; `now`: there are none. */
static inline double matchmaking_oldest(const matchmaking_ticket *t, int n, double now)
{
    for (int i = 0; i < n; i++)
        if (t[i].since < now)
            now = t[i].since;
    return now;
}

/* Sorts the n tickets and finds a match. Returns how many players it has and sets *match to the
 * first of them, within t; 0: there is none now. Prefers full matches, and among those the one with
 * the longest wait; a smaller match needs a player whose patience is over. */
static inline int matchmaking_pick(const matchmaking_rules *r, matchmaking_ticket *t, int n,
                                   double now, matchmaking_ticket **match)
{
    qsort(t, (size_t)n, sizeof *t, matchmaking__by_rating);
    for (int size = r->most; size >= r->least; size--) {
        double best = now + 1;
        for (int i = 0; i + size <= n; i++) {
            int distance = t[i + size - 1].rating - t[i].rating; /* lowest to highest */
            bool fits = matchmaking_narrowest(r, t + i, size, now) >= distance;
            double oldest = matchmaking_oldest(t + i, size, now);
            bool ready = size == r->most || now - oldest >= r->patience;
            if (fits && ready && oldest < best) {
                best = oldest;
                *match = t + i;
            }
        }
        if (best <= now)
            return size;
    }
    return 0;
}

/* Removes a picked match from the n tickets. Returns how many are left. */
static inline int matchmaking_remove(matchmaking_ticket *t, int n, matchmaking_ticket *match,
                                     int size)
{
    int behind = n - (int)(match - t) - size;
    memmove(match, match + size, (size_t)behind * sizeof *t);
    return n - size;
}

/* ---- the queue ------------------------------------------------------------------------------- */

enum { MATCHMAKING_MOST = 4096 };

typedef struct matchmaking_queue {
    matchmaking_rules rules;
    int count;
    matchmaking_ticket tickets[MATCHMAKING_MOST];
} matchmaking_queue;

/* Returns the player's ticket, or NULL if the player does not wait. */
static inline matchmaking_ticket *matchmaking_find(matchmaking_queue *q, const void *player)
{
    for (int i = 0; i < q->count; i++)
        if (q->tickets[i].player == player)
            return &q->tickets[i];
    return NULL;
}

static inline void matchmaking_join(matchmaking_queue *q, void *player, int id, int rating,
                                    double now)
{
    if (q->count < MATCHMAKING_MOST && !matchmaking_find(q, player))
        q->tickets[q->count++] = (matchmaking_ticket){player, id, rating, now};
}

static inline void matchmaking_leave(matchmaking_queue *q, const void *player)
{
    matchmaking_ticket *t = matchmaking_find(q, player);
    if (t)
        q->count = matchmaking_remove(q->tickets, q->count, t, 1);
}

/* Takes a match out of the queue. Returns how many players it has; 0: there is none now. */
static inline int matchmaking_next(matchmaking_queue *q, double now, matchmaking_ticket *match)
{
    matchmaking_ticket *first = NULL;
    int size = matchmaking_pick(&q->rules, q->tickets, q->count, now, &first);
    if (size == 0)
        return 0;
    memcpy(match, first, (size_t)size * sizeof *match);
    q->count = matchmaking_remove(q->tickets, q->count, first, size);
    return size;
}

/* Returns how many players a full match lacks, once a player has waited for more than `patience`
 * seconds; else 0. */
static inline int matchmaking_lacks(const matchmaking_queue *q, double now, double patience)
{
    bool waits = now - matchmaking_oldest(q->tickets, q->count, now) > patience;
    return waits ? q->rules.most - q->count : 0;
}

/* ---- ratings -------------------------------------------------------------------------------- */

/* Updates ratings by Elo's rule in integers, with a linear expected score (a lead of 400 points
 * always wins). Each pair of players counts as one game, won by the higher score. What one player
 * gains, another loses. */
static inline void matchmaking_rate(int *ratings, const int *scores, int n)
{
    enum { LEAD = 400, MOST = 32 /* points for beating all, among equals */ };
    int before[64];
    if (n < 2 || n > 64)
        return;
    memcpy(before, ratings, (size_t)n * sizeof *ratings);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++) {
            int lead = before[i] - before[j];
            int result = (scores[i] > scores[j]) - (scores[i] < scores[j]);
            if (lead > LEAD)
                lead = LEAD;
            if (lead < -LEAD)
                lead = -LEAD;
            int points = MOST * (result * LEAD - lead) / (LEAD * (n - 1));
            ratings[i] += points;
            ratings[j] -= points;
        }
}

#endif
