/* matchmaking.h - matches players: rating bands that widen with waiting, and ratings after a match
 *
 *     matchmaking_queue q = {.rules = {.least = 4, .most = 8, .band = 50, .widening = 50}};
 *     matchmaking_join(&q, player, id, rating, now);        // the same again changes nothing
 *     matchmaking_leave(&q, player);
 *     matchmaking_ticket match[8];
 *     while ((size = matchmaking_next(&q, now, match)) > 0)
 *         start(match, size);                               // match[0] to match[size - 1]
 *
 * A player accepts opponents whose ratings are within a band, narrow at first and wider while they
 * wait. All players of a match accept each other. Plain C without allocation.
 */
#ifndef MATCHMAKING_H
#define MATCHMAKING_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct matchmaking_rules {
    int least, most; /* players of a match */
    double patience; /* seconds that a full match is waited for; then `least` are enough */
    double band;     /* of ratings, at first */
    double widening; /* of the band, a second */
} matchmaking_rules;

typedef struct matchmaking_ticket {
    void *player;
    int id, rating; /* id: decides between equals, so that the same tickets make the same matches */
    double since;   /* when the player began to wait */
} matchmaking_ticket;

/* The farthest rating that the player accepts now. */
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

/* The narrowest band of these: what all of them accept. */
static inline double matchmaking_narrowest(const matchmaking_rules *r, const matchmaking_ticket *t,
                                           int n, double now)
{
    double narrowest = matchmaking_band(r, t, now);
    for (int i = 1; i < n; i++)
        if (matchmaking_band(r, &t[i], now) < narrowest)
            narrowest = matchmaking_band(r, &t[i], now);
    return narrowest;
}

/* When the first of these began to wait; `now`: there are none. */
static inline double matchmaking_oldest(const matchmaking_ticket *t, int n, double now)
{
    for (int i = 0; i < n; i++)
        if (t[i].since < now)
            now = t[i].since;
    return now;
}

/* Sorts the n tickets and finds a match: how many players it has, and in *match the first of them,
 * within t; 0: there is none now. Full matches come first, and of these the one whose player has
 * waited longest; a smaller one needs a player without patience. */
static inline int matchmaking_pick(const matchmaking_rules *r, matchmaking_ticket *t, int n,
                                   double now, matchmaking_ticket **match)
{
    qsort(t, (size_t)n, sizeof *t, matchmaking__by_rating);
    for (int size = r->most; size >= r->least; size--) {
        double best = now + 1;
        for (int i = 0; i + size <= n; i++) {
            int distance = t[i + size - 1].rating - t[i].rating; /* of the first and the last */
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

/* Takes a match that was picked out of the n tickets: how many are left. */
static inline int matchmaking_remove(matchmaking_ticket *t, int n, matchmaking_ticket *match,
                                     int size)
{
    int behind = n - (int)(match - t) - size;
    memmove(match, match + size, (size_t)behind * sizeof *t);
    return n - size;
}

/* ---- those who wait -------------------------------------------------------------------------- */

enum { MATCHMAKING_MOST = 4096 };

typedef struct matchmaking_queue {
    matchmaking_rules rules;
    int count;
    matchmaking_ticket tickets[MATCHMAKING_MOST];
} matchmaking_queue;

/* The player's ticket; NULL: it does not wait. */
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

/* Takes a match out of the queue: how many players it has; 0: there is none now. */
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

/* How many players a full match lacks, once somebody has waited for so many seconds; else 0. */
static inline int matchmaking_lacks(const matchmaking_queue *q, double now, double patience)
{
    bool waits = now - matchmaking_oldest(q->tickets, q->count, now) > patience;
    return waits ? q->rules.most - q->count : 0;
}

/* ---- ratings -------------------------------------------------------------------------------- */

/* Elo's rule in whole numbers, with a straight line for the expected score (a lead of 400 points:
 * always wins): each two players of a match count as one game between them, won by the higher
 * score. What one gains another loses. */
static inline void matchmaking_rate(int *ratings, const int *scores, int n)
{
    enum { LEAD = 400, MOST = 32 /* points for a win over all, of equals */ };
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
