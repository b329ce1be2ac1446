#!/usr/bin/env python3
"""Tests of examples/12_projects/04_game_server.c."""
import functools
import re

import apps


@functools.cache
def program():
    return apps.compiled("12_projects/04_game_server.c")


def test_the_same_seed_gives_the_same_state_at_each_tick_in_any_order_of_the_tasks():
    first = apps.run(program(), "--simulate", 7, "--every", 1).stdout
    apps.check(len(re.findall(r"tick \d+, hash [0-9a-f]{8}", first)) > 3000, first[-3000:])
    for seed in range(1, 6):
        apps.check(apps.run(program(), "--simulate", 7, "--every", 1, CONC_SEED=seed).stdout == first, "CONC_SEED", seed)
    apps.check(apps.run(program(), "--simulate", 8, "--every", 1).stdout != first, "another seed plays the same")


def test_goal():
    players = 200 if apps.SANITIZE else 1000
    done = apps.run(program(), "--goal", "--players", players, "--match", 4)
    apps.check(f"\n{players} players have played a match to its end" in done.stdout, done.stdout)
    actions, acknowledged = map(int, re.search(r"(\d+) actions, (\d+) acknowledged", done.stdout).groups())
    apps.check(actions == acknowledged > players * 10, done.stdout)
    apps.check(re.search(r"\n[1-9]\d+ states, 0 differ from", done.stdout), done.stdout)
    apps.check(re.search(r"matches 0 of %d\n" % (players // 8), done.stdout), done.stdout)
    apps.check("other hashes 0\n" in done.stdout, done.stdout)


apps.main(globals())
