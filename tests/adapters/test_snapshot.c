/* test_snapshot.c - examples/common/snapshot.h: packets, and states as differences; arena.h's rules
 * over them; matchmaking.h. */
#include "../conc_test.h"

#include "arena.h"
#include "matchmaking.h"
#include "snapshot.h"

enum { WORDS = 300 };

static uint32_t luck = 1;

static uint32_t draw(uint32_t below) { return arena_random(&luck) % below; }

TEST(a_packet_returns_what_was_put)
{
    packet p = {0};
    packet_put(&p, 1, 0x1ff);
    packet_put(&p, 2, 0x1234);
    packet_put(&p, 8, 0x0123456789abcdef);
    packet_put_bytes(&p, "tea", 3);
    CHECK_INT(p.size, 14);
    CHECK_INT(p.data[1], 0x34); /* the low byte first */
    packet_reader r = {p.data, p.size, false};
    CHECK_INT(packet_get(&r, 1), 0xff);
    CHECK_INT(packet_get(&r, 2), 0x1234);
    CHECK(packet_get(&r, 8) == 0x0123456789abcdef);
    CHECK(memcmp(packet_get_bytes(&r, 3), "tea", 3) == 0);
    CHECK(!r.bad);
    CHECK_INT(packet_get(&r, 1), 0);
    CHECK(r.bad);
}

TEST(a_full_packet_returns_an_error_and_is_unchanged)
{
    packet p = {0};
    while (!p.full)
        packet_put(&p, 8, 7);
    CHECK_INT(p.size, PACKET_MAX / 8 * 8);
    packet_put(&p, 1, 1);
    CHECK_INT(p.size, PACKET_MAX / 8 * 8);
}

static void change(uint16_t *state, uint32_t most)
{
    for (uint32_t n = draw(most + 1); n > 0; n--)
        state[draw(WORDS)] = (uint16_t)draw(1 << 16);
}

TEST(a_client_that_loses_packets_has_the_right_state_whenever_it_has_one)
{
    snapshot_history sent = {.words = WORDS}, received = {.words = WORDS};
    uint16_t state[WORDS] = {0}, acked = 0;
    int came = 0, whole = 0;
    for (uint16_t tick = 1; tick < 3000; tick++) {
        packet p = {0};
        change(state, tick % 50 == 0 ? 400 : 20);
        CHECK_INT(snapshot_put(&sent, tick, state), 0);
        int base = snapshot_write(&sent, &p, tick, acked);
        whole += base == 0;
        bool lost = draw(10) == 0 || (tick % 500 > 400 && tick % 500 < 450) || p.full;
        if (lost)
            continue;
        packet_reader r = {p.data, p.size, false};
        CHECK_INT(snapshot_read(&received, &r), 1);
        CHECK(memcmp(snapshot_at(&received, tick), state, sizeof state) == 0);
        CHECK(snapshot_hash_at(&received, tick) == snapshot_hash(state, WORDS));
        r = (packet_reader){p.data, p.size, false};
        CHECK_INT(snapshot_read(&received, &r), 0); /* again: it is not newer */
        came++;
        if (draw(3) > 0)
            acked = tick;
    }
    CHECK(came > 2000);
    CHECK(whole >= 6 && whole < 300); /* after each long loss */
    snapshot_close(&sent);
    snapshot_close(&received);
    snapshot_close(&received);
}

TEST(a_base_that_the_client_does_not_have_is_an_error)
{
    snapshot_history sent = {.words = WORDS}, received = {.words = WORDS};
    uint16_t state[WORDS] = {1, 2, 3};
    packet p = {0};
    snapshot_put(&sent, 1, state);
    state[7] = 9;
    snapshot_put(&sent, 2, state);
    CHECK_INT(snapshot_write(&sent, &p, 2, 1), 1);
    packet_reader r = {p.data, p.size, false};
    CHECK_INT(snapshot_read(&received, &r), -ENOENT);
    CHECK_INT(received.newest, 0);
    snapshot_close(&sent);
    snapshot_close(&received);
}

TEST(garbage_changes_nothing)
{
    snapshot_history sent = {.words = WORDS}, received = {.words = WORDS};
    uint16_t state[WORDS] = {0};
    for (uint16_t tick = 1; tick < 2000; tick++) {
        packet p = {0};
        change(state, 30);
        snapshot_put(&sent, tick, state);
        snapshot_write(&sent, &p, tick, 0);
        for (uint32_t n = 1 + draw(3); n > 0; n--)
            p.data[draw((uint32_t)p.size)] ^= (unsigned char)(1 + draw(255));
        if (draw(2))
            p.size = draw((uint32_t)p.size + 1);
        packet_reader r = {p.data, p.size, false};
        int rc = snapshot_read(&received, &r);
        CHECK(rc <= 0 || snapshot_hash_at(&received, received.newest) ==
                             snapshot_hash(snapshot_at(&received, received.newest), WORDS));
        received.newest = 0;
    }
    snapshot_close(&sent);
    snapshot_close(&received);
}

TEST(an_honest_bot_is_never_refused_and_plays_the_same_again)
{
    uint32_t hashes[2];
    for (int round = 0; round < 2; round++) {
        arena a;
        arena_bot bots[ARENA_PLAYERS] = {0};
        arena_action actions[ARENA_PLAYERS] = {0};
        arena_start(&a, ARENA_PLAYERS, 5);
        for (int i = 0; i < ARENA_PLAYERS; i++)
            bots[i] = (arena_bot){.random = (uint32_t)i, .skill = 12 * i};
        for (int tick = 1; tick <= 1200; tick++) {
            for (int i = 0; i < ARENA_PLAYERS; i++) {
                actions[i].number++;
                actions[i].moved = a.players[i].moved;
                actions[i].x = a.players[i].x;
                actions[i].y = a.players[i].y;
                arena_think(&a, i, &bots[i], 1, &actions[i]);
                CHECK_INT(arena_act(&a, i, &actions[i]), ARENA_OK);
            }
            arena_step(&a);
        }
        int score = 0, losses = 0;
        for (int i = 0; i < ARENA_PLAYERS; i++) {
            score += a.players[i].score;
            losses += a.players[i].losses;
        }
        CHECK(score == losses && score > 20);
        hashes[round] = snapshot_hash((const uint16_t *)&a, ARENA_WORDS);
    }
    CHECK_INT(hashes[0], hashes[1]);
}

static arena_refusal act(arena *a, int dx, int dy, bool fire)
{
    arena_player *p = &a->players[0];
    arena_action action = {(uint16_t)(p->number + 1), p->moved, (uint16_t)(p->x + dx),
                           (uint16_t)(p->y + dy),     0,        fire};
    return arena_act(a, 0, &action);
}

TEST(impossible_moves_are_refused)
{
    arena a;
    arena_start(&a, 2, 1);
    arena_player *p = &a.players[0];
    p->x = 100 * ARENA_UNIT;
    p->y = 220 * ARENA_UNIT;
    arena_step(&a);
    CHECK_INT(act(&a, ARENA_REACH + 1, 0, false), ARENA_TELEPORT);
    CHECK_INT(p->x, 100 * ARENA_UNIT);
    CHECK_INT(act(&a, 200 - ARENA_RADIUS, 0, false), ARENA_OK);
    CHECK_INT(act(&a, ARENA_REACH - 50, 0, false), ARENA_TOO_FAST);
    for (int i = 0; i < 20; i++)
        arena_step(&a);
    CHECK_INT(act(&a, (240 - 15) * ARENA_UNIT - p->x, 0, false), ARENA_TELEPORT);
    while (p->x + ARENA_RADIUS + ARENA_SPEED < 240 * ARENA_UNIT) {
        CHECK_INT(act(&a, ARENA_SPEED, 0, false), ARENA_OK);
        arena_step(&a);
    }
    for (int i = 0; i < 20; i++)
        arena_step(&a);
    CHECK_INT(act(&a, ARENA_SPEED, 0, false), ARENA_WALL);
    CHECK_INT(act(&a, 80 * ARENA_UNIT, 0, false), ARENA_WALL); /* through it */
    CHECK_INT(act(&a, 0, 0, true), ARENA_OK);
    CHECK_INT(act(&a, 0, 0, true), ARENA_RELOADS);
    for (int i = 0; i < ARENA_RELOAD; i++)
        arena_step(&a);
    CHECK_INT(act(&a, 0, 0, true), ARENA_OK);
    arena_action old = {p->number, p->moved, p->x, p->y, 0, false};
    CHECK_INT(arena_act(&a, 0, &old), ARENA_OLD);
    arena_action unaware = {(uint16_t)(p->number + 1), (uint16_t)(p->moved - 1), 0, 0, 0, true};
    CHECK_INT(arena_act(&a, 0, &unaware), ARENA_OK);
    CHECK(p->x != 0);
    CHECK_INT(arena_act(&a, 7, &unaware), ARENA_OLD); /* that slot is empty */
}

static const matchmaking_rules rules = {4, 8, 4, 50, 50};

TEST(all_players_of_a_match_accept_each_other)
{
    matchmaking_ticket tickets[200], *found;
    int n = 200, players = 0;
    for (int i = 0; i < n; i++)
        tickets[i] = (matchmaking_ticket){NULL, i, 800 + (int)draw(600), draw(100) / 10.0};
    for (double now = 10; now < 60 && n > 0; now += 0.25) {
        int size;
        while ((size = matchmaking_pick(&rules, tickets, n, now, &found)) > 0) {
            CHECK(size >= 4 && size <= 8);
            for (int i = 0; i < size; i++)
                CHECK(found[size - 1].rating - found[0].rating <=
                      matchmaking_band(&rules, &found[i], now));
            n = matchmaking_remove(tickets, n, found, size);
            players += size;
        }
    }
    CHECK_INT(players + n, 200);
    CHECK(n < 4);
}

TEST(the_longest_waiting_player_comes_first_and_a_small_match_only_after_some_time)
{
    matchmaking_ticket tickets[17], *found;
    for (int i = 0; i < 17; i++)
        tickets[i] = (matchmaking_ticket){NULL, i, 1000, i == 11 ? 0 : 1};
    CHECK_INT(matchmaking_pick(&rules, tickets, 17, 1, &found), 8);
    bool in = false;
    for (int i = 0; i < 8; i++)
        in = in || found[i].id == 11;
    CHECK(in);
    CHECK_INT(matchmaking_pick(&rules, tickets, 7, 4, &found), 0);
    CHECK_INT(matchmaking_pick(&rules, tickets, 7, 5, &found), 7);
    CHECK_INT(matchmaking_pick(&rules, tickets, 3, 99, &found), 0);
    CHECK_INT(matchmaking_pick(&rules, tickets, 0, 99, &found), 0);
}

TEST(ratings_are_only_moved_between_players)
{
    int ratings[] = {1000, 1000, 1400, 600}, scores[] = {3, 1, 1, 5};
    matchmaking_rate(ratings, scores, 4);
    CHECK_INT(ratings[0] + ratings[1] + ratings[2] + ratings[3], 4000);
    CHECK(ratings[3] > 630 && ratings[2] < 1370 && ratings[0] > ratings[1]);
    int equals[] = {1000, 1000}, draws[] = {2, 2};
    matchmaking_rate(equals, draws, 2);
    CHECK_INT(equals[0], 1000);
    int sure[] = {1500, 1000}, wins[] = {2, 1};
    matchmaking_rate(sure, wins, 2);
    CHECK_INT(sure[0], 1500); /* it was expected */
}
