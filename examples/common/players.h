/* players.h - the players whom a server knows: secret tokens, ratings, the best of them
 *
 *     static players all;
 *     player_account *a = players_find(&all, token);   // who comes again
 *     if (!a)
 *         a = players_add(&all);                       // who is new; NULL: all places are in use
 *     a->users++;                                      // keeps the place, until it is 0 again
 *
 * Of more than PLAYERS_MOST the one who has been away longest loses its place. An account's index
 * is a - all.accounts. Plain C with OpenSSL's random numbers (-lcrypto).
 */
#ifndef PLAYERS_H
#define PLAYERS_H

#include <float.h>
#include <openssl/rand.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    PLAYERS_MOST = 4096, /* a power of two */
    PLAYERS_NAME = 25,   /* bytes, with the NUL */
    PLAYERS_BEST = 10
};

typedef struct player_account {
    uint64_t token; /* a secret; its low bits are the index; 0: a free place */
    char name[PLAYERS_NAME];
    int rating, matches, wins;
    int users;   /* connections, matches: the place is in use */
    double left; /* when the last connection ended, which the caller sets; none did: DBL_MAX */
} player_account;

typedef struct players {
    player_account accounts[PLAYERS_MOST];
} players;

/* NULL: there is none. */
static inline player_account *players_find(players *p, uint64_t token)
{
    player_account *a = &p->accounts[token % PLAYERS_MOST];
    return token != 0 && a->token == token ? a : NULL;
}

static inline player_account *players_add(players *p)
{
    player_account *best = NULL;
    uint64_t secret;
    for (player_account *a = p->accounts; a < p->accounts + PLAYERS_MOST; a++)
        if (a->users == 0 && (!best || a->left < best->left))
            best = a;
    if (!best || RAND_bytes((unsigned char *)&secret, sizeof secret) != 1)
        return NULL;
    secret = (secret | PLAYERS_MOST) / PLAYERS_MOST * PLAYERS_MOST; /* not 0 */
    secret += (uint64_t)(best - p->accounts);
    *best = (player_account){.token = secret, .rating = 1000, .left = DBL_MAX};
    return best;
}

/* A match is over. */
static inline void players_credit(player_account *a, int rating_change, bool has_won)
{
    a->rating += rating_change;
    a->matches++;
    a->wins += has_won;
}

static inline int players__compare(const void *a, const void *b)
{
    const player_account *x = *(player_account *const *)a, *y = *(player_account *const *)b;
    if (x->rating != y->rating)
        return x->rating > y->rating ? -1 : 1;
    return (x > y) - (x < y);
}

/* Writes a line for each of the best who have played: rank, rating, matches, matches won, name. Its
 * length; lines that have no room are cut. */
static inline int players_write_best(players *p, char *text, size_t size)
{
    static player_account *best[PLAYERS_MOST];
    int n = 0, used = 0;
    for (player_account *a = p->accounts; a < p->accounts + PLAYERS_MOST; a++)
        if (a->matches > 0)
            best[n++] = a;
    qsort(best, (size_t)n, sizeof best[0], players__compare);
    for (int i = 0; i < n && i < PLAYERS_BEST && used < (int)size; i++)
        used += snprintf(text + used, size - (size_t)used, "%d\t%d\t%d\t%d\t%s\n", i + 1,
                         best[i]->rating, best[i]->matches, best[i]->wins, best[i]->name);
    return used;
}

#endif
