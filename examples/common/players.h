/* players.h - the players that a server knows: secret tokens, ratings, the best players
 *
 *     static players all;
 *     player_account *a = players_find(&all, token);   // a returning player
 *     if (!a)
 *         a = players_add(&all);                       // a new one; NULL: all slots are in use
 *     a->users++;                                      // keeps the slot until it is 0 again
 *
 * When all PLAYERS_MOST slots are taken, a new player replaces the one who has been away longest.
 * An account's index is a - all.accounts. Plain C with OpenSSL's random numbers (-lcrypto).
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
    uint64_t token; /* a secret; its low bits are the index; 0: a free slot */
    char name[PLAYERS_NAME];
    int rating, matches, wins;
    int users;   /* connections and matches that use the slot */
    double left; /* when the last connection ended, set by the caller; none has ended: DBL_MAX */
} player_account;

typedef struct players {
    player_account accounts[PLAYERS_MOST];
} players;

/* Returns the account with this token, or NULL. */
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

/* Records the result of a match. */
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

/* Writes a line for each of the best players with a match: rank, rating, matches, wins, name.
 * Returns the text's length; lines that do not fit are cut off. */
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
