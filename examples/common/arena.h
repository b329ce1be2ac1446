/* arena.h - the rules of a game: tanks in an arena, for 2 to 8 players
 *
 *     arena a;
 *     arena_start(&a, 8, seed);
 *     for (;;) {
 *         refusal = arena_act(&a, slot, &action);       // for each action that arrived
 *         arena_step(&a);                               // then a tick
 *     }
 *
 * Players drive and fire shells. After three hits a tank is gone for a while, and whoever hit it
 * last gets a point. Repair kits appear occasionally. The player with the most points at the end
 * wins.
 *
 * Players report where they are (their own screens show it immediately), and the rules decide
 * whether that is possible: a tank can have moved as far as it could have driven since its last
 * report. So a player whose network stutters for up to half a second can catch up, and nobody is
 * faster than the others. A refused move puts the tank back and increments its `moved`; actions
 * sent before the player knew of it carry the old `moved`, and are ignored.
 *
 * The state consists of integers in 16-bit words, so the same start and the same actions produce
 * the same state, bit for bit, on every machine. snapshot.h sends it. Lengths are in sixteenths of
 * a unit; the arena is 1280 by 720 units. Directions are 256ths of a turn, from east via south.
 * Plain C without allocation.
 */
#ifndef ARENA_H
#define ARENA_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum {
    ARENA_RATE = 20, /* ticks per second */
    ARENA_PLAYERS = 8,
    ARENA_SHELLS = 4, /* of a player, in flight */
    ARENA_UNIT = 16,
    ARENA_TURN = 256, /* directions */
    ARENA_WIDTH = 1280 * ARENA_UNIT,
    ARENA_HEIGHT = 720 * ARENA_UNIT,
    ARENA_RADIUS = 16 * ARENA_UNIT,        /* of a tank */
    ARENA_SPEED = 10 * ARENA_UNIT,         /* per tick */
    ARENA_ALLOWED = ARENA_SPEED * 17 / 16, /* for differing clocks */
    ARENA_REACH = 10 * ARENA_ALLOWED,      /* how far a silent player may catch up */
    ARENA_SHELL_SPEED = 30 * ARENA_UNIT,
    ARENA_SHELL_LIFE = 24, /* ticks */
    ARENA_RELOAD = 6,      /* ticks between two shots */
    ARENA_ENERGY = 3,
    ARENA_MOST_ENERGY = 5,
    ARENA_ABSENCE = 30, /* ticks until a tank returns */
    ARENA_SHIELD = 20,  /* ticks for which nothing then hits it */
    ARENA_KIT_EVERY = 160
};

typedef struct arena_shell {
    uint16_t tick, x, y, aim; /* when and where it was fired; tick 0: there is none */
} arena_shell;

typedef struct arena_player {
    uint16_t here;   /* 0: the player has left, or the slot is unused */
    uint16_t x, y;   /* of the centre */
    uint16_t aim;    /* a direction */
    uint16_t energy; /* 0: gone for `wait` ticks */
    uint16_t wait;   /* if energy is not 0: ticks of the shield */
    uint16_t score, losses;
    uint16_t number; /* of the last action processed */
    uint16_t moved;  /* how often the rules, not the player, have moved the tank */
    uint16_t reach;  /* how far away the next report may be */
    uint16_t fired;  /* the tick of the last shot; 0: none */
    arena_shell shells[ARENA_SHELLS];
} arena_player;

typedef struct arena {
    uint16_t tick; /* 0 at the start */
    uint16_t random_low, random_high;
    uint16_t kit_x, kit_y; /* 0: there is none */
    uint16_t kit_tick;     /* when the next one appears */
    arena_player players[ARENA_PLAYERS];
} arena;

enum { ARENA_WORDS = sizeof(arena) / sizeof(uint16_t) };

/* An action of a player. */
typedef struct arena_action {
    uint16_t number; /* 1, 2, ... */
    uint16_t moved;  /* of the player's tank in the newest state that it has */
    uint16_t x, y, aim;
    bool fire;
} arena_action;

/* Why an action was refused. */
typedef enum {
    ARENA_OK,
    ARENA_OLD,      /* arrived late or twice: no fault of the player */
    ARENA_TOO_FAST, /* farther than the tank can have driven */
    ARENA_TELEPORT, /* farther than any tank can drive in half a second */
    ARENA_WALL,     /* in or through one, or outside */
    ARENA_RELOADS,  /* fired while reloading */
    ARENA_REFUSALS
} arena_refusal;

static const char *const arena_refusal_names[ARENA_REFUSALS] = {"ok",       "old",  "too fast",
                                                                "teleport", "wall", "reloads"};

/* ---- geometry ------------------------------------------------------------------------------- */

typedef struct arena_wall {
    int x, y, width, height; /* in units */
} arena_wall;

static const arena_wall arena_walls[] = {{240, 140, 40, 160},  {240, 420, 40, 160},
                                         {1000, 140, 40, 160}, {1000, 420, 40, 160},
                                         {540, 190, 200, 40},  {540, 490, 200, 40}};

enum { ARENA_WALLS = sizeof arena_walls / sizeof arena_walls[0] };

static const int arena__starts[ARENA_PLAYERS][2] = {
    {80, 80}, {1200, 640}, {1200, 80}, {80, 640}, {640, 100}, {640, 620}, {80, 360}, {1200, 360}};
static const int arena__kits[][2] = {{640, 360}, {400, 360}, {880, 360}, {640, 280}, {640, 440}};

/* Returns 1024 times the sine of a direction. */
static inline int arena_sine(int aim)
{
    static const int quarter[] = {
        0,   25,  50,  75,  100, 125,  150,  175,  200,  224,  249,  273,  297,  321, 345, 369, 392,
        415, 438, 460, 483, 505, 526,  548,  569,  590,  610,  630,  650,  669,  688, 706, 724, 742,
        759, 775, 792, 807, 822, 837,  851,  865,  878,  891,  903,  915,  926,  936, 946, 955, 964,
        972, 980, 987, 993, 999, 1004, 1009, 1013, 1016, 1019, 1021, 1023, 1024, 1024};
    int part = aim & 63;
    switch (aim & 192) {
    case 0: return quarter[part];
    case 64: return quarter[64 - part];
    case 128: return -quarter[part];
    default: return -quarter[64 - part];
    }
}

static inline int arena_cosine(int aim) { return arena_sine(aim + 64); }

/* Returns the direction closest to (dx, dy). */
static inline int arena_direction(int dx, int dy)
{
    int best = 0;
    int64_t most = INT64_MIN;
    for (int aim = 0; aim < ARENA_TURN; aim++) {
        int64_t along = (int64_t)arena_cosine(aim) * dx + (int64_t)arena_sine(aim) * dy;
        if (along > most) {
            most = along;
            best = aim;
        }
    }
    return best;
}

/* Returns the length of (dx, dy), rounded up. */
static inline int arena_distance(int dx, int dy)
{
    int64_t square = (int64_t)dx * dx + (int64_t)dy * dy, low = 0, high = 65536;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (middle * middle < square)
            low = middle + 1;
        else
            high = middle;
    }
    return (int)low;
}

/* Is there room for a circle of this radius? */
static inline bool arena_is_free(int x, int y, int radius)
{
    bool inside =
        x >= radius && y >= radius && x <= ARENA_WIDTH - radius && y <= ARENA_HEIGHT - radius;
    for (int i = 0; inside && i < ARENA_WALLS; i++) {
        const arena_wall *w = &arena_walls[i];
        int left = w->x * ARENA_UNIT - radius, top = w->y * ARENA_UNIT - radius;
        int right = left + w->width * ARENA_UNIT + 2 * radius;
        int bottom = top + w->height * ARENA_UNIT + 2 * radius;
        inside = x <= left || x >= right || y <= top || y >= bottom;
    }
    return inside;
}

/* Can a circle move there in a straight line? */
static inline bool arena_is_clear(int x, int y, int to_x, int to_y, int radius)
{
    int steps = arena_distance(to_x - x, to_y - y) / ARENA_RADIUS + 1;
    for (int i = 1; i <= steps; i++)
        if (!arena_is_free(x + (to_x - x) * i / steps, y + (to_y - y) * i / steps, radius))
            return false;
    return true;
}

/* Computes the shell's position so many quarters of a tick after the shot. */
static inline void arena_shell_at(const arena_shell *s, int quarters, int *x, int *y)
{
    *x = s->x + arena_cosine(s->aim) * ARENA_SHELL_SPEED / 1024 * quarters / 4;
    *y = s->y + arena_sine(s->aim) * ARENA_SHELL_SPEED / 1024 * quarters / 4;
}

/* ---- the rules ------------------------------------------------------------------------------ */

static inline uint32_t arena_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Puts a tank at the starting position that is farthest from the others. */
static inline void arena__place(arena *a, int slot)
{
    arena_player *p = &a->players[slot];
    int best = 0, most = -1;
    for (int i = 0; i < ARENA_PLAYERS; i++) {
        int x = arena__starts[i][0] * ARENA_UNIT, y = arena__starts[i][1] * ARENA_UNIT;
        int nearest = ARENA_WIDTH * 2;
        for (int j = 0; j < ARENA_PLAYERS; j++) {
            const arena_player *other = &a->players[j];
            int distance = arena_distance(other->x - x, other->y - y);
            if (j != slot && other->energy > 0 && distance < nearest)
                nearest = distance;
        }
        if (nearest > most) {
            most = nearest;
            best = i;
        }
    }
    p->x = (uint16_t)(arena__starts[best][0] * ARENA_UNIT);
    p->y = (uint16_t)(arena__starts[best][1] * ARENA_UNIT);
    p->aim = (uint16_t)arena_direction(ARENA_WIDTH / 2 - p->x, ARENA_HEIGHT / 2 - p->y);
    p->energy = ARENA_ENERGY;
    p->wait = ARENA_SHIELD;
    p->reach = ARENA_REACH;
    p->moved++;
}

/* Starts a match. The seed decides who starts where, and where kits appear. */
static inline void arena_start(arena *a, int players, uint32_t seed)
{
    *a = (arena){.kit_tick = ARENA_KIT_EVERY};
    int first = (int)(arena_random(&seed) % (uint32_t)players);
    for (int i = 0; i < players; i++) {
        int slot = (first + i) % players;
        a->players[slot].here = 1;
        arena__place(a, slot);
    }
    a->random_low = (uint16_t)seed;
    a->random_high = (uint16_t)(seed >> 16);
}

/* Removes a player for good, except for the score. */
static inline void arena_leave(arena *a, int slot)
{
    a->players[slot] =
        (arena_player){.score = a->players[slot].score, .losses = a->players[slot].losses};
}

static inline bool arena_may_fire(const arena *a, const arena_player *p)
{
    return p->energy > 0 && (p->fired == 0 || a->tick - p->fired >= ARENA_RELOAD);
}

static inline arena_refusal arena__drive(arena_player *p, const arena_action *action)
{
    int distance = arena_distance(action->x - p->x, action->y - p->y);
    if (distance > ARENA_REACH)
        return ARENA_TELEPORT;
    if (distance > p->reach)
        return ARENA_TOO_FAST;
    /* Actions in between may be lost, so that the line cuts a corner: check the centre only. */
    bool clear = arena_is_free(action->x, action->y, ARENA_RADIUS) &&
                 arena_is_clear(p->x, p->y, action->x, action->y, 0);
    if (!clear)
        return ARENA_WALL;
    p->x = action->x;
    p->y = action->y;
    p->reach = (uint16_t)(p->reach - distance);
    return ARENA_OK;
}

static inline arena_refusal arena__fire(arena *a, arena_player *p)
{
    if (!arena_may_fire(a, p))
        return ARENA_RELOADS;
    for (int i = 0; i < ARENA_SHELLS; i++)
        if (p->shells[i].tick == 0) {
            /* 0 means no shot, so a shot in tick 0 counts as tick 1 */
            p->fired = (uint16_t)(a->tick + (a->tick == 0));
            p->shells[i] = (arena_shell){p->fired, p->x, p->y, p->aim};
            break;
        }
    return ARENA_OK;
}

/* Lets a player drive, turn and fire. A refused move leaves the tank in place and increments
 * `moved`. */
static inline arena_refusal arena_act(arena *a, int slot, const arena_action *action)
{
    arena_player *p = &a->players[slot];
    if (!p->here || (int16_t)(uint16_t)(action->number - p->number) <= 0)
        return ARENA_OLD;
    p->number = action->number;
    if (p->energy == 0 || action->moved != p->moved)
        return ARENA_OK; /* sent before the player knew of it */
    arena_refusal refusal = arena__drive(p, action);
    p->aim = action->aim % ARENA_TURN;
    if (refusal == ARENA_OK && action->fire)
        refusal = arena__fire(a, p);
    else if (refusal != ARENA_OK)
        p->moved++;
    return refusal;
}

static inline void arena__hit(arena_player *p, arena_player *by)
{
    if (--p->energy > 0)
        return;
    p->wait = ARENA_ABSENCE;
    p->losses++;
    by->score++;
}

/* Returns the slot of the player whom a shell at (x, y) hits, or -1. */
static inline int arena__target(const arena *a, const arena_player *by, int x, int y)
{
    for (int i = 0; i < ARENA_PLAYERS; i++) {
        const arena_player *p = &a->players[i];
        bool vulnerable = p != by && p->energy > 0 && p->wait == 0;
        if (vulnerable && arena_distance(p->x - x, p->y - y) <= ARENA_RADIUS)
            return i;
    }
    return -1;
}

static inline void arena__fly(arena *a, arena_player *by, arena_shell *s)
{
    int age = a->tick - s->tick, x, y;
    for (int quarters = 4 * age - 3; quarters <= 4 * age; quarters++) {
        arena_shell_at(s, quarters, &x, &y);
        int target = arena__target(a, by, x, y);
        if (target >= 0)
            arena__hit(&a->players[target], by);
        if (target >= 0 || !arena_is_free(x, y, 0) || age >= ARENA_SHELL_LIFE) {
            *s = (arena_shell){0};
            return;
        }
    }
}

static inline void arena__kit(arena *a)
{
    uint32_t random = a->random_low | (uint32_t)a->random_high << 16;
    if (a->kit_x == 0 && a->tick >= a->kit_tick) {
        const int *place = arena__kits[arena_random(&random) % 5];
        a->kit_x = (uint16_t)(place[0] * ARENA_UNIT);
        a->kit_y = (uint16_t)(place[1] * ARENA_UNIT);
        a->random_low = (uint16_t)random;
        a->random_high = (uint16_t)(random >> 16);
    }
    for (int i = 0; a->kit_x && i < ARENA_PLAYERS; i++) {
        arena_player *p = &a->players[i];
        bool takes = p->energy > 0 && p->energy < ARENA_MOST_ENERGY &&
                     arena_distance(p->x - a->kit_x, p->y - a->kit_y) < 2 * ARENA_RADIUS;
        if (takes) {
            p->energy++;
            a->kit_x = a->kit_y = 0;
            a->kit_tick = (uint16_t)(a->tick + ARENA_KIT_EVERY);
        }
    }
}

/* Advances the game by a tick: shells fly, missing tanks return, all may drive on. */
static inline void arena_step(arena *a)
{
    a->tick++;
    for (int i = 0; i < ARENA_PLAYERS; i++)
        for (int j = 0; j < ARENA_SHELLS; j++)
            if (a->players[i].shells[j].tick)
                arena__fly(a, &a->players[i], &a->players[i].shells[j]);
    for (int i = 0; i < ARENA_PLAYERS; i++) {
        arena_player *p = &a->players[i];
        bool returns = p->here && p->energy == 0 && p->wait <= 1;
        p->reach = p->here ? (uint16_t)(p->reach + ARENA_ALLOWED) : 0;
        if (p->reach > ARENA_REACH)
            p->reach = ARENA_REACH;
        if (p->wait > 0)
            p->wait--;
        if (returns)
            arena__place(a, i);
    }
    arena__kit(a);
}

/* ---- a player of its own -------------------------------------------------------------------- */

typedef struct arena_bot {
    uint32_t random; /* its seed */
    int skill;       /* 0 to 100: how often it fires when it can, and how well it aims */
    int turn;        /* private: direction around its target, 1 or -1 */
    int tick, x[ARENA_PLAYERS], y[ARENA_PLAYERS]; /* private: positions at that tick */
} arena_bot;

/* Returns the direction in which a bot wants to drive: to a kit if it needs one, else towards its
 * target and, when near, around it. */
static inline int arena__course(const arena *a, arena_bot *b, const arena_player *p,
                                const arena_player *target)
{
    int dx = target->x - p->x, dy = target->y - p->y;
    if (b->turn == 0 || arena_random(&b->random) % 40 == 0)
        b->turn = arena_random(&b->random) % 2 ? 1 : -1;
    if (a->kit_x && p->energy < ARENA_ENERGY)
        return arena_direction(a->kit_x - p->x, a->kit_y - p->y);
    if (arena_distance(dx, dy) > 260 * ARENA_UNIT)
        return arena_direction(dx, dy);
    return arena_direction(dx, dy) + ARENA_TURN / 4 * b->turn;
}

static inline const arena_player *arena__nearest(const arena *a, const arena_player *p)
{
    const arena_player *best = NULL;
    int least = 0;
    for (int i = 0; i < ARENA_PLAYERS; i++) {
        const arena_player *other = &a->players[i];
        int distance = arena_distance(other->x - p->x, other->y - p->y);
        if (other != p && other->energy > 0 && (!best || distance < least)) {
            best = other;
            least = distance;
        }
    }
    return best;
}

/* Moves the bot for `ticks` ticks along its course, or in the next direction that is clear. */
static inline void arena__go(arena_bot *b, arena_action *action, int course, int ticks)
{
    for (int i = 0; i < 16; i++) {
        int aim = course + b->turn * i * ARENA_TURN / 16, way = ARENA_SPEED * ticks;
        int x = action->x + arena_cosine(aim) * way / 1024;
        int y = action->y + arena_sine(aim) * way / 1024;
        if (arena_is_clear(action->x, action->y, x, y, ARENA_RADIUS)) {
            action->x = (uint16_t)x;
            action->y = (uint16_t)y;
            return;
        }
    }
}

/* Returns where to aim to hit the target if it keeps moving as before, with an error that depends
 * on the bot's skill. */
static inline int arena__aim(const arena *a, arena_bot *b, const arena_player *target, int dx,
                             int dy)
{
    int i = (int)(target - a->players), ticks = a->tick - b->tick;
    int flight = arena_distance(dx, dy) / ARENA_SHELL_SPEED, spread = 1 + (100 - b->skill) / 4;
    int ahead_x = target->x - b->x[i], ahead_y = target->y - b->y[i];
    if (ticks > 0 && arena_distance(ahead_x, ahead_y) <= ticks * ARENA_ALLOWED) {
        dx += ahead_x * flight / ticks;
        dy += ahead_y * flight / ticks;
    }
    int error = (int)(arena_random(&b->random) % (uint32_t)(2 * spread + 1)) - spread;
    return (arena_direction(dx, dy) + error + ARENA_TURN) % ARENA_TURN;
}

static inline void arena__remember(const arena *a, arena_bot *b)
{
    b->tick = a->tick;
    for (int i = 0; i < ARENA_PLAYERS; i++) {
        b->x[i] = a->players[i].x;
        b->y[i] = a->players[i].y;
    }
}

/* Decides what the bot in this slot does now, `ticks` ticks after its last action. *action has
 * number, moved, x and y set; (x, y) is where the bot believes it is, which may be ahead of the
 * state. */
static inline void arena_think(const arena *a, int slot, arena_bot *b, int ticks,
                               arena_action *action)
{
    const arena_player *p = &a->players[slot], *target = arena__nearest(a, p);
    action->aim = p->aim;
    action->fire = false;
    if (p->energy > 0 && target) {
        arena__go(b, action, arena__course(a, b, p, target), ticks);
        int dx = target->x - action->x, dy = target->y - action->y;
        bool in_range = arena_distance(dx, dy) < 600 * ARENA_UNIT && target->wait == 0 &&
                        arena_is_clear(action->x, action->y, target->x, target->y, 0);
        action->aim = (uint16_t)arena__aim(a, b, target, dx, dy);
        action->fire = in_range && arena_may_fire(a, p) &&
                       (int)(arena_random(&b->random) % 150) < 20 + b->skill;
    }
    arena__remember(a, b);
}

#endif
