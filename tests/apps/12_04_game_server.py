#!/usr/bin/env python3
"""Tests of examples/12_projects/04_game_server.c."""
import base64
import collections
import concurrent.futures
import contextlib
import functools
import os
import re
import select
import signal
import socket
import struct
import sys
import time
import urllib.request

import apps
import browser

CHEATS = {"Dora 4": "too fast", "Hugo 8": "teleport", "Leo 12": "wall", "Dora 16": "reloads"}
WELCOME, LOBBY, START, STATE, END, BYE = 1, 2, 4, 8, 16, 32
WORDS = 230
PAGE = apps.TOP / "examples/12_projects/04_game_server.html"
LIMIT = 30 * apps.SLOW


@functools.cache
def program():
    return apps.compiled("12_projects/04_game_server.c")


WORKERS = concurrent.futures.ThreadPoolExecutor(3 if apps.SANITIZE else 8)
WORK = {}


def at_once(test):
    """These tests mostly wait: the first one starts all of them, and each waits for its own result."""
    def wait():
        for name, body in WORK.items():
            if not isinstance(body, concurrent.futures.Future) and (len(sys.argv) == 1 or name == test.__name__):
                WORK[name] = WORKERS.submit(body)
        WORK[test.__name__].result()
    WORK[test.__name__] = test
    return wait


# ---- a client of its own, that shares no code with the program ----


def fnv(words):
    value = 2166136261
    for byte in struct.pack(f"<{len(words)}H", *words):
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value


class WebSocket:
    """Messages over the necessary minimum of RFC 6455."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(f"GET /play HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(4096)
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        apps.check(b" 101 " in head, head)

    def read(self, n):
        while len(self.buffer) < n:
            more = self.socket.recv(4096)
            if not more:
                raise ConnectionError(1006, "no close")
            self.buffer += more
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def has_more(self):
        """Within a tenth of a second."""
        return bool(self.buffer or select.select([self.socket], [], [], 0.3)[0])

    def send(self, data, kind=2):
        size = bytes([128 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        self.socket.sendall(bytes([128 | kind]) + size + bytes(4) + data)

    def receive(self):
        """A message, or a zero for a ping; a close is an exception with its code and reason."""
        first, size = self.read(2)
        if size == 126:
            size = struct.unpack(">H", self.read(2))[0]
        data = self.read(size)
        if first & 15 == 8:
            raise ConnectionError(struct.unpack(">H", data[:2])[0], data[2:].decode())
        if first & 15 == 9:
            self.send(data, 10)
        return b"\0" if first & 15 == 9 else data

    def close(self):
        self.socket.close()


class Udp:
    """Datagrams, after the address was verified."""

    def __init__(self, port):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(LIMIT)
        self.socket.connect(("127.0.0.1", port))
        self.socket.send(b"\0\1" + bytes(30))
        answer = self.socket.recv(2000)
        apps.check(answer[:2] == b"\0\2" and len(answer) == 10, answer)
        self.socket.send((b"\0\1" + answer[2:]).ljust(32, b"\0"))
        apps.check(self.socket.recv(2000) == b"\0\3", "not ready")

    def send(self, data):
        self.socket.send(data)

    def receive(self):
        with contextlib.suppress(ConnectionRefusedError):  # what came before that is still there
            return self.socket.recv(2000)
        return self.socket.recv(2000)

    def has_more(self):
        return bool(select.select([self.socket], [], [], 0.3)[0])

    def close(self):
        self.socket.close()


class Client:
    """A player, and its knowledge of the game."""

    def __init__(self, port, how=WebSocket, name="Tess", token=0):
        self.link, self.token, self.match, self.states = how(port), token, 0, {0: [0] * WORDS}
        self.tick = self.number = self.slot = 0
        self.bases, self.seen = collections.Counter(), collections.Counter()
        self.hello(name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.link.close()

    def hello(self, name):
        data = name.encode()
        self.link.send(b"H\1" + struct.pack("<QB", self.token, len(data)) + data)
        self.until(WELCOME)

    def join(self):
        self.link.send(b"J")

    def act(self, dx=0, dy=0, fire=0, tick=None, number=None, moved=None):
        """Says where the tank is: there, and so much farther."""
        self.number = self.number + 1 if number is None else number
        me = self.me()
        tick = self.tick if tick is None else tick
        report = struct.pack("<HHIHHHHBB", self.match, tick, fnv(self.states[tick]) if tick else 0, self.number,
                             me["moved"] if moved is None else moved, me["x"] + dx, me["y"] + dy, 0, fire)
        self.link.send(b"A" + report)

    def me(self, slot=None):
        at = 6 + 28 * (self.slot if slot is None else slot)
        names = "here x y aim energy wait score losses number moved reach fired".split()
        return dict(zip(names, self.states[self.tick][at:at + 12]))

    def next(self):
        """Processes the next message, and returns its type."""
        data = self.link.receive()
        kind, r = data[0], data[1:]
        self.seen[kind] += 1
        if kind == WELCOME:
            self.token, self.rating = struct.unpack("<Qh", r)
        elif kind == LOBBY:
            self.lobby = struct.unpack("<HHH", r)
        elif kind == START:
            match, self.slot, self.ticks, self.count = struct.unpack_from("<HBHB", r)
            if match != self.match:
                self.match, self.states, self.tick = match, {0: [0] * WORDS}, 0
        elif kind == STATE:
            self.take(r)
        elif kind == END:
            self.result = [struct.unpack_from("<hhh", r, 3 + 6 * i) for i in range(r[2])]
        elif kind == BYE:
            self.reason = r.decode()
        return kind

    def take(self, r):
        match, tick, base, wanted = struct.unpack_from("<HHHI", r)
        words, at, i = list(self.states[base]), 10, 0
        while at < len(r):
            i, n, at = i + r[at], r[at + 1], at + 2
            words[i:i + n] = struct.unpack_from(f"<{n}H", r, at)
            i, at = i + n, at + 2 * n
        apps.check(match == self.match and len(words) == WORDS and fnv(words) == wanted, "another state at", tick)
        self.bases[base == 0] += 1
        if tick > self.tick:
            self.states[tick], self.tick = words, tick

    def until(self, kind, condition=lambda: True):
        """Takes messages, and answers states, until there is one of this kind; asks again if none comes."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            if not self.link.has_more():
                if self.token and self.tick:
                    self.act(number=self.number)
                elif self.token:
                    self.join()
                continue
            got = self.next()
            if got == kind and condition():
                return
            if got == STATE:
                self.act()
        raise apps.Wrong("in vain waited for", kind, self.seen)

    def play(self, tick):
        """Stands there until it has the state of that tick."""
        self.until(STATE, lambda: self.tick >= tick)
        self.act()


@contextlib.contextmanager
def served(*options):
    """The program as a server, with its port in .port."""
    with apps.started(program(), "--listen", "127.0.0.1:0", "--page", PAGE, *options) as process:
        apps.until(lambda: b"Listens on" in process.out.read_bytes(), "it listens")
        process.port = int(re.search(r"Listens on http://127.0.0.1:(\d+)", process.out.read_text())[1])
        yield process


def get(server, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=LIMIT) as answer:
        return answer.read().decode()


def stats(server):
    """{"dropped": 0, ...}"""
    return {name.strip(): int(value) for name, value in re.findall(r"([a-z ]+?) (\d+)\b", get(server, "/stats"))}


def stopped(process, status=130):
    process.send_signal(signal.SIGINT)
    apps.check(process.wait(LIMIT) == status, "exit status", process.returncode, process.out.read_text()[-2000:])
    return process.out.read_text()


# ---- the simulation: exact ----


@functools.cache
def simulation():
    return apps.run(program(), "--simulate", 7, "--every", 1).stdout


def test_the_same_seed_gives_the_same_state_at_each_tick_in_any_order_of_the_tasks():
    apps.check(len(re.findall(r"tick \d+, hash [0-9a-f]{8}", simulation())) > 3000, simulation()[-3000:])
    apps.check(" 0 differ\n" in simulation(), simulation()[-300:])
    for seed in range(1, 5):
        apps.check(apps.run(program(), "--simulate", 7, "--every", 1, CONC_SEED=seed).stdout == simulation(), "CONC_SEED", seed)
    apps.check(apps.run(program(), "--simulate", 8, "--every", 1).stdout != simulation(), "another seed plays the same")


def test_the_states_are_the_same_with_every_compiler():
    apps.check("match 1: tick 400, hash 41a2a8e1\n" in simulation(), re.findall(r"match 1: tick 400.*", simulation()))


def test_players_of_a_match_are_within_the_rating_bands_of_all_of_them():
    matches = re.findall(r"match \d+: (\d+) players, ratings (\d+) to (\d+) \(band (\d+)\)", simulation())
    apps.check(len(matches) > 5, matches)
    for players, low, high, band in matches:
        apps.check(4 <= int(players) <= 8 and int(high) - int(low) <= int(band), players, low, high, band)
    bands = {int(band) for *_, band in matches}
    apps.check(min(bands) < 100 < max(bands), "bands do not widen", bands)


def test_the_leaderboard_is_in_the_order_of_ratings():
    rows = re.findall(r"^(\d+)\t(\d+)\t(\d+)\t(\d+)\t(.+)$", simulation(), re.MULTILINE)
    apps.check([int(rank) for rank, *_ in rows] == list(range(1, 11)), rows)
    ratings = [int(rating) for _, rating, *_ in rows]
    apps.check(ratings == sorted(ratings, reverse=True) and all(int(won) <= int(matches) for _, _, matches, won, _ in rows), rows)


def test_impossible_moves_are_refused_and_honest_players_are_not():
    accused = collections.defaultdict(set)
    for name, refusal in re.findall(r"match \d+: (.+?): refused: (.+)", simulation()):
        accused[name].add(refusal)
    apps.check(set(accused) == set(CHEATS), accused)
    apps.check(all(CHEATS[name] in refusals for name, refusals in accused.items()), accused)
    counts = dict(re.findall(r" (too fast|teleport|wall|reloads) (\d+)", simulation()))
    apps.check(len(counts) == 4 and all(int(count) > 10 for count in counts.values()), counts)
    out = set(re.findall(r"match \d+: (.+) is out: too many impossible actions", simulation()))
    apps.check({"Dora 4", "Dora 16"} <= out <= set(CHEATS), out)


def test_a_player_who_returns_within_ten_seconds_goes_on():
    times = {(name, what): float(at) for at, name, what in
             re.findall(r"([\d.]+) s  match \d+: (.+?) (is away|is back|has not come back)\n", simulation())}
    apps.check(round(times["Emil 5", "is back"] - times["Emil 5", "is away"], 2) == 5, times)
    apps.check(round(times["Jon 10", "has not come back"] - times["Jon 10", "is away"], 2) == 10, times)


# ---- the goal ----


@at_once
def test_goal():
    players = 200 if apps.SANITIZE else 1000
    for _ in range(3):
        done = apps.run(program(), "--goal", "--players", players, "--match", 4, status=None)
        late = re.search(r"late by ([\d.]+) ms \(p50\), ([\d.]+) ms \(p99\)", done.stdout)
        is_busy = late and (float(late[1]) > 50 or float(late[2]) > 250)  # ticks were late because others used the processors
        if done.returncode == 0 or not is_busy:
            break
    apps.check(done.returncode == 0, done.stdout, done.stderr)
    apps.check(f"\n{players} players have played a match to its end" in done.stdout, done.stdout)
    actions, acknowledged = map(int, re.search(r"(\d+) actions, (\d+) acknowledged", done.stdout).groups())
    apps.check(actions == acknowledged > 0, done.stdout)
    apps.check(re.search(r"\n[1-9]\d+ states, 0 differ from", done.stdout), done.stdout)
    apps.check("other hashes 0\n" in done.stdout, done.stdout)
    apps.check(re.search(r"ticks \d+, late by [\d.]+ ms \(p50\), [\d.]+ ms \(p99\)", done.stdout), done.stdout)


@at_once
def test_the_goals_server_ends_with_it_whatever_ends_it():
    for wait, how, status in ((0, signal.SIGINT, 130), (0.3, signal.SIGINT, 130), (1.5, signal.SIGTERM, 143), (1, signal.SIGKILL, -9)):
        with apps.started(program(), "--goal", "--players", 20) as process:
            children = []
            apps.until(lambda: children.extend(apps.children_of(process.pid)) or children, "the server runs")
            time.sleep(wait)
            process.send_signal(how)
            apps.check(process.wait(LIMIT) == status, "exit status", process.returncode, process.out.read_text())
            apps.until(lambda: all(map(apps.is_gone, children)), "the server is gone")


# ---- a server ----


@at_once
def test_one_player_gets_bots_a_match_a_result_and_a_place_on_the_leaderboard():
    with served("--match", 2) as server, Client(server.port, name="Zoë \x1b[31m\x9b 你好你好你") as client:
        client.join()
        client.until(START)
        apps.check(client.count == 8 and client.ticks == 40, client.count, client.ticks)
        client.until(END)
        apps.check(len(client.result) == 8 and sum(change for *_, change in client.result) == 0, client.result)
        apps.check(client.bases[True] <= 2 and client.bases[False] > 10, "whole states and differences", client.bases)
        rows = [line.split("\t") for line in get(server, "/leaderboard").splitlines()]
        apps.check(len(rows) == 8 and any(name == "Zoë ?[31m?? 你好你" for *_, name in rows), rows)
        apps.check([int(row[1]) for row in rows] == sorted((int(row[1]) for row in rows), reverse=True), rows)
        for row in rows:
            apps.check(row[2] == "1", row)
        apps.check("over after 4" in stopped(server), server.out.read_text())


@at_once
def test_a_client_that_has_lost_states_gets_a_whole_one_and_that_is_right():
    for how in (WebSocket, Udp):
        with served("--match", 100) as server, Client(server.port, how) as client:
            client.join()
            client.until(START)
            for _ in range(3):  # on a busy machine the client may lag behind the states that are kept
                client.bases.clear()
                client.play(10)
                if client.bases[False] > 5:
                    break
            apps.check(client.bases[False] > 5, client.bases)
            for _ in range(3):
                before = client.tick
                client.bases.clear()
                while client.tick < before + 5:  # it claims to have the latest state, and gets the difference from that
                    if client.next() == STATE:
                        client.act()
                if client.bases[True] == 0:
                    break
            apps.check(client.bases[True] == 0 and client.bases[False] > 0, client.bases)
            client.act(tick=0)
            while client.bases[True] == 0:  # it claims to have none
                if client.next() == STATE:
                    client.act(tick=0)
            time.sleep(3.2)  # it acknowledges nothing for longer than states are kept
            while client.link.has_more():
                client.next()
            apps.check(client.tick < before + 40, "states pile up for a client that does not answer", client.tick)
            client.act()
            client.until(STATE, lambda: client.bases[True] >= 2)
            stopped(server)


@at_once
def test_impossible_moves_of_a_client_change_nothing_but_its_count():
    with served("--match", 100) as server, Client(server.port) as client:
        client.join()
        client.until(START)
        client.play(25)
        me = client.me()
        way = 160 if me["x"] < 10000 else -160
        for dx, dy, fire, wanted in ((way * 30, 0, 0, "teleport"), (way * 10, 0, 0, None), (way * 10, 0, 0, "too fast"),
                                     (0, -me["y"] if me["y"] < 6000 else 11520 - me["y"], 0, None)):
            count, number = stats(server), client.number + 1
            before = client.me()
            client.act(dx, dy, fire)
            client.until(STATE, lambda: client.me()["number"] >= number)
            after = client.me()
            if wanted:
                apps.check(stats(server)[wanted] == count[wanted] + 1, wanted, stats(server))
                apps.check(after["moved"] == before["moved"] + 1, before, after)
                apps.check(abs(after["x"] - before["x"]) < 10, before, after)
        count = stats(server)
        for _ in range(3):
            client.act(fire=1)
        client.until(STATE, lambda: client.me()["number"] >= client.number)
        apps.check(stats(server)["reloads"] >= count["reloads"] + 2, stats(server))
        stopped(server)


@at_once
def test_doubled_and_late_actions_are_passed_over():
    with served("--match", 100) as server, Client(server.port, Udp) as client:
        client.join()
        client.until(START)
        client.play(25)
        before, old = client.me(), stats(server)["old"]
        client.act(number=client.number + 10)
        newest = client.number
        for number in (newest, newest - 3, newest - 9):
            client.act(dx=500, number=number)
        client.number = newest
        client.until(STATE, lambda: client.me()["number"] >= newest)
        apps.until(lambda: stats(server)["old"] >= old + 3, "they are counted")
        apps.check(client.me()["x"] == before["x"] or client.me()["energy"] == 0, client.me(), before)
        stopped(server)


def play_on(first, second):
    with served("--match", 100) as server, Client(server.port, first) as client:
        client.join()
        client.until(START)
        client.play(10)
        if first is WebSocket:
            client.link.close()
            apps.until(lambda: "Tess is away" in server.out.read_text(), "that is noticed")
        with Client(server.port, second, token=client.token) as again:
            again.until(STATE)
            apps.check((again.slot, again.match) == (client.slot, client.match), "another place")
            again.number = again.me()["number"]
            apps.check(again.number > 3 and again.me()["here"], again.me())
            again.play(again.tick + 5)
            apps.check(again.me()["number"] > 8, again.me())
            if first is Udp:  # the old one is still there: it is replaced
                client.until(BYE)
                apps.check(client.reason == "you play elsewhere", client.reason)
            else:
                apps.until(lambda: "Tess is back" in server.out.read_text(), "that is said")
        stopped(server)


@at_once
def test_a_player_plays_on_over_a_new_websocket():
    play_on(WebSocket, WebSocket)


@at_once
def test_a_player_of_udp_plays_on_by_websocket():
    play_on(Udp, WebSocket)


@at_once
def test_a_player_of_a_websocket_plays_on_by_udp():
    play_on(WebSocket, Udp)


@at_once
def test_garbage_by_udp_is_answered_with_less_and_reaches_nobody():
    with served("--match", 100) as server, Client(server.port, Udp) as client, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        client.join()
        client.until(START)
        client.play(10)
        stranger.connect(("127.0.0.1", server.port))
        stranger.settimeout(0.3)
        sent = got = 0
        for data in [b"", b"\0", b"\0\1", b"A", b"H\1" + struct.pack("<QB", client.token, 0), b"J", os.urandom(40), bytes(1200),
                     b"\0\1" + os.urandom(30), b"\0\1" + bytes(30), b"A" + os.urandom(18), os.urandom(9000)]:
            sent += len(data)
            stranger.send(data)
            with contextlib.suppress(TimeoutError):
                answer = stranger.recv(2000)
                got += len(answer)
                apps.check(len(answer) <= len(data) and answer[:1] == b"\0" and len(answer) <= 10, data, answer)
        apps.check(got < sent / 10, sent, got)
        for data in (b"A", b"Z", b"H", b"H\7" + bytes(9), b"A" + os.urandom(30)):  # from the player itself
            client.link.send(data)
            with contextlib.suppress(ConnectionError):
                kind = client.next()
                if kind == BYE:
                    break
        apps.until(lambda: stats(server)["strange"] > 0, "it is counted")
        stopped(server)


@at_once
def test_garbage_by_websocket_ends_that_connection_only():
    with served("--match", 100) as server, Client(server.port) as client:
        client.join()
        client.until(START)
        for data, kind, code in ((b"", 2, 1008), (b"Z", 2, 1008), (b"A", 2, 1008), (b"H\2" + bytes(9), 2, 1008), (b"J", 2, 1008),
                                 (b"\xff\xff", 1, 1007), (bytes(300), 2, 1009), (b"x", 3, 1002)):
            link = WebSocket(server.port)
            link.send(data, kind)
            try:
                link.receive()
                raise apps.Wrong("no close", data)
            except ConnectionError as close:
                apps.check(close.args[0] == code, data, close.args, "not", code)
            link.close()
        links = [WebSocket(server.port) for _ in range(5)]
        for link in links:
            link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            link.close()
        client.play(client.tick + 10)
        apps.until(lambda: stats(server)["players"] == 8, "only the client and the bots are left")
        stopped(server)


@at_once
def test_a_client_that_stalls_or_floods_holds_up_nobody():
    with served("--match", 100) as server, Client(server.port, name="Quick") as quick, Client(server.port, name="Slow") as slow:
        quick.join()
        slow.join()
        quick.until(START)
        slow.until(START)
        apps.check(quick.match == slow.match, "two matches")
        slow.link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(OSError):  # floods, and reads nothing
            slow.link.socket.settimeout(0.2)
            for _ in range(2000):
                slow.link.send(b"J")
        start = quick.tick
        quick.play(start + 40)
        apps.until(lambda: "Slow: the session ends: too many messages" in server.out.read_text(), "the flood is ended")
        apps.check("other hashes 0\n" in get(server, "/stats"), get(server, "/stats"))
        stopped(server)


@at_once
def test_a_server_that_stops_says_so_and_prints_what_was():
    with served("--match", 100) as server, Client(server.port) as web, Client(server.port, Udp) as udp:
        web.join()
        udp.join()
        web.until(START)
        udp.until(START)
        server.send_signal(signal.SIGTERM)
        udp.until(BYE)
        apps.check(udp.reason == "the server stops", udp.reason)
        try:
            web.until(BYE)
        except ConnectionError as close:
            apps.check(close.args == (1008, "the server stops"), close.args)
        web.link.close()
        apps.check(server.wait(LIMIT) == 143, server.returncode)
        apps.check(re.search(r"refused: old \d+, too fast \d+", server.out.read_text()), server.out.read_text())


@at_once
def test_a_server_that_was_stopped_and_goes_on_does_not_hurry():
    with served("--match", 4) as server:
        with apps.started(program(), "--bots", f"127.0.0.1:{server.port}", 16) as bots:
            apps.until(lambda: stats(server)["matches"] == 2, "two matches run")
            time.sleep(0.5)
            server.send_signal(signal.SIGSTOP)
            time.sleep(2)
            server.send_signal(signal.SIGCONT)
            apps.until(lambda: "match 2: over" in server.out.read_text(), "the matches end")
            apps.check("other hashes 0\n" in get(server, "/stats"), get(server, "/stats"))
            apps.check(stats(server)["ticks"] >= 160, stats(server))
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
            apps.check(bots.wait(LIMIT) == 1, "bots without a server", bots.out.read_text())
            apps.check(re.search(r"refused|reset|closed|no answer", bots.out.read_text()), bots.out.read_text())


def test_what_cannot_work_is_said():
    port = apps.free_port()
    done = apps.run(program(), "--bots", f"127.0.0.1:{port}", 3, status=1)
    apps.check("refused" in done.stderr, done.stderr)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = apps.run(program(), "--listen", f"127.0.0.1:{taken.getsockname()[1]}", status=1)
        apps.check("in use" in done.stderr, done.stderr)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        done = apps.run(program(), "--listen", f"127.0.0.1:{taken.getsockname()[1]}", status=1)
        apps.check("in use" in done.stderr, done.stderr)
    done = apps.run(program(), "--listen", "127.0.0.1:0", "--page", "/none", status=1)
    apps.check("/none" in done.stderr, done.stderr)
    for bad in (["--match", "0"], ["--wrong"], ["--players"], ["--simulate", "x"], ["more"]):
        done = apps.run(program(), *bad, status=2)
        apps.check(done.stderr and not done.stdout, done.stderr)
    apps.check("--simulate SEED" in apps.run(program(), "--help").stdout, "help")


@at_once
def test_bots_that_have_to_wait_for_others_play_all_the_same():
    with served("--match", 4) as server, Client(server.port) as client:
        client.join()
        while client.next() != START and (client.seen[LOBBY] == 0 or client.lobby[1] < 8):
            client.join()
            time.sleep(0.02)
        client.link.send(b"Q")  # the bots have come because of it: they wait for the eighth
        apps.until(lambda: "over after" in server.out.read_text(), "a match ends")
        apps.check("over after 8" in stopped(server), server.out.read_text())


# ---- the page ----


@at_once
def test_the_page_plays_a_match_with_keys():
    with served("--match", 5) as server, browser.Browser() as page:
        page.open(f"http://127.0.0.1:{server.port}/")
        page.until("return document.querySelector('#status').textContent.includes('rating')")
        page.type("#name", "Rosa <b>")
        page.click("#go")
        page.until("return game.phase", "match")
        page.until("return game.tick > 5")
        before = page.run("return [mine.x, mine.y]")
        page.run("for (const code of ['KeyD', 'KeyS', 'KeyA', 'Space']) dispatchEvent(new KeyboardEvent('keydown', {code}))")
        page.until(f"return mine.x !== {before[0]} || mine.y !== {before[1]}")
        page.until("return me.fired > 0")
        page.until("return document.querySelectorAll('#scores li').length", 8)
        page.until("return game.phase", "end")
        apps.check(page.run("return game.wrong") == 0 and page.run("return game.states") > 30, "states")
        page.until("return document.querySelectorAll('#results li').length", 8)
        apps.check("Rosa <b>" in page.run("return document.querySelector('#results').textContent"), "its name")
        apps.check(page.run("return document.querySelector('#results b')") is None, "a name is HTML")
        counts = stats(server)
        apps.check(all(counts[name] == 0 for name in ("too fast", "teleport", "wall", "reloads", "other hashes")), counts)
        page.click("#go")
        page.until("return game.phase", "waiting")
        apps.check(not page.errors(), page.errors())
        apps.check("over after" in stopped(server), "no match")


@at_once
def test_the_page_on_a_phone_comes_back_after_a_reload_and_has_pads():
    with served("--match", 100) as server, browser.Browser(width=360, height=740, dark=True) as page:
        page.open(f"http://127.0.0.1:{server.port}/")
        page.until("return document.querySelector('#status').textContent.includes('rating')")
        page.click("#go")
        page.until("return game.phase === 'match' && game.tick > 5")
        slot = page.run("return game.slot")
        page.open(f"http://127.0.0.1:{server.port}/")
        page.until("return game.phase === 'match' && game.states > 5")
        apps.check(page.run("return [game.slot, game.wrong]") == [slot, 0], "another place")
        number = page.run("return mine.number")
        page.until(f"return me.number > {number}")
        before = page.run("return [mine.x, mine.y]")
        towards = 30 if before[0] < 10240 else -30
        for finger, (pad, dx) in enumerate((("drive", towards), ("aim", 30))):
            x, y = page.run(f"const b = document.querySelector('#{pad}').getBoundingClientRect(); return [b.x + 80, b.y + 70]")
            for kind, points in (("touchStart", [x]), ("touchMove", [x + dx])):
                page.devtools("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": at, "y": y, "id": finger} for at in points])
            page.until("return me.fired > 0" if pad == "aim" else f"return Math.abs(mine.x - {before[0]}) > 400")
            page.devtools("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        apps.check(page.run("return document.documentElement.scrollWidth") <= 360, "too wide for a phone")
        apps.check(page.run("return getComputedStyle(document.querySelector('#pads')).display") == "flex", "no pads")
        apps.check(not page.errors(), page.errors())
        stopped(server)
        page.until("return document.querySelector('#status').textContent", "no connection; trying again")


apps.main(globals())
