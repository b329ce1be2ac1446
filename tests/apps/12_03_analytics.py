#!/usr/bin/env python3
"""Tests of examples/12_projects/03_analytics.c."""
import bisect
import collections
import concurrent.futures
import contextlib
import http.client
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import apps
import browser

PROGRAM = apps.compiled("12_projects/03_analytics.c")
PAGE = apps.TOP / "examples" / "12_projects" / "03_analytics.html"
FIGURES = ("count", "sum", "min", "max", "mean", "p50", "p95", "p99", "distinct")
DEFAULTS = {"tumbling": 5, "sliding": 10, "slide": 1, "gap": 4, "delay": 1, "lateness": 3, "idle": 2, "ahead": 60}

SEEDS = int(os.environ.get("SEEDS", 4))  # of random streams, for each test: more of them by hand
WORKERS = concurrent.futures.ThreadPoolExecutor(3 if apps.SANITIZE else 6)
WORK = {}


def at_once(test):
    """These tests mostly wait: the first one starts all of them, and each waits for its own result."""
    def wait():
        for name, body in WORK.items():
            if not isinstance(body, concurrent.futures.Future) and all(word in name for word in sys.argv[1:]):
                WORK[name] = WORKERS.submit(body)
        WORK[test.__name__].result()
    WORK[test.__name__] = test
    return wait


Event = collections.namedtuple("Event", "series user value time")
Window = collections.namedtuple("Window", "kind key start end figures revised")


# ---- what the windows must be: computed anew from all events, for each window from its events alone ----

def us(seconds):
    return round(seconds * 1e6)


class Expected:
    """Reads what the sources sent, (arrival, source, line) with line None at a source's end, and knows all windows."""

    def __init__(self, records, **options):
        self.o = {**DEFAULTS, **options}
        self.malformed = self.ahead = 0
        self.late, self.too_late = collections.Counter(), collections.Counter()
        self.newest = {}  # by source
        self.mark = -math.inf
        self.marks, self.came = [], {}  # marks: at each record; came: at which one a window's first late event did
        self.on_time, self.late_ones = collections.defaultdict(list), collections.defaultdict(list)  # (kind, key, start, end)
        self.sessions = collections.defaultdict(list)  # by user: [start, end, events, when it was last closed]
        for arrival, source, line in records:
            self.take(arrival, source, line)

    def advance(self, now):
        promises = [max(newest, now - self.o["idle"]) for newest in self.newest.values()] or [now - self.o["idle"]]
        self.mark = max(self.mark, min([now, *promises]) - self.o["delay"])
        self.marks.append(us(self.mark))

    def take(self, now, source, line):
        event = parse(line, now) if line is not None else None
        if line is not None and not event:
            self.malformed += 1
            return
        self.advance(now)
        if line is None:
            self.newest.pop(source, None)
            return
        if event.time > now + self.o["ahead"]:
            self.ahead += 1
            return
        self.newest[source] = max(self.newest.get(source, -math.inf), min(event.time, now))
        self.put_fixed("tumbling", event, us(self.o["tumbling"]), us(self.o["tumbling"]))
        self.put_fixed("sliding", event, us(self.o["sliding"]), us(self.o["slide"]))
        if event.user:
            self.put_session(event)

    def put_fixed(self, kind, event, size, slide):
        start = us(event.time) // slide * slide
        was_late = False
        while start > us(event.time) - size:
            end = start + size
            window = (kind, event.series, start, end)
            if end + us(self.o["lateness"]) <= us_of_mark(self.mark):
                self.too_late[kind] += 1
            elif end <= us_of_mark(self.mark):
                self.came.setdefault(window, len(self.marks))
                self.late_ones[window].append(event)
                was_late = True
            else:
                self.on_time[window].append(event)
            start -= slide
        self.late[kind] += was_late

    def put_session(self, event):
        mark, lateness = us_of_mark(self.mark), us(self.o["lateness"])
        start, end = us(event.time), us(event.time) + us(self.o["gap"])
        kept = [s for s in self.sessions[event.user] if s[1] + lateness > mark]
        touched = [s for s in kept if s[0] < end and start < s[1]]
        if not touched and end + lateness <= mark:
            self.too_late["session"] += 1
            return
        whole = [min([start] + [s[0] for s in touched]), max([end] + [s[1] for s in touched]),
                 [e for s in touched for e in s[2]] + [event]]
        self.late["session"] += whole[1] <= mark or any(s[1] <= mark for s in touched)
        self.sessions[event.user] = [s for s in self.sessions[event.user] if s not in touched] + [whole]

    def closings(self):
        """What is printed of tumbling and sliding windows: a list of (window, its events, revised)."""
        found = []
        for window in {**self.on_time, **self.late_ones}:
            on_time, late = self.on_time.get(window, []), self.late_ones.get(window, [])
            first = on_time or late[:1]
            found.append((window, first, False))
            if len(on_time) + len(late) > len(first):
                found.append((window, on_time + late, True))
        return found

    def final_sessions(self):
        return [(("session", user, s[0], s[1]), s[2]) for user, all_of in self.sessions.items() for s in all_of]


def us_of_mark(mark):
    return mark if math.isinf(mark) else us(mark)


def parse(line, now):
    match = re.fullmatch(r"([\w.-]{1,47})((?:;[^ ]*)?) +([-+.0-9eE]+) +([-+.0-9eE]+)\r?", line, re.ASCII)
    try:
        value, when = float(match[3]), float(match[4])
    except (TypeError, ValueError):
        return None
    tag = re.search(r";user=([^; ]*)", match[2])
    if tag and not re.fullmatch(r"[\w.-]{1,47}", tag[1], re.ASCII) or max(abs(value), abs(when)) > 1e12:
        return None
    return Event(match[1], tag[1] if tag else None, value, now if when == -1 else when)


def check_figures(events, figures, what, item):
    """Against all of the window's events: exact, but percentiles within 1 %, and more than 64 different items within 8 %."""
    values = sorted(e.value for e in events)
    n = len(values)
    total = math.fsum(values)
    apps.check(figures["count"] == n, what, "count", figures["count"], "not", n)
    for name, exact in (("sum", total), ("min", values[0]), ("max", values[-1]), ("mean", total / n)):
        apps.check(math.isclose(figures[name], exact, rel_tol=1e-9, abs_tol=1e-9), what, name, figures[name], "not", exact)
    for p in (50, 95, 99):
        exact = values[math.floor(p / 100 * (n - 1))]
        apps.check(math.isclose(figures[f"p{p}"], exact, rel_tol=0.0100001, abs_tol=1e-6), what, p, figures[f"p{p}"], "not", exact)
    different = len({item(e) for e in events} - {None})
    error = 0 if different <= 64 else 0.08
    apps.check(abs(figures["distinct"] - different) <= error * different, what, "distinct", figures["distinct"], "not", different)


# ---- replays: on the virtual clock ----

def replay(records, **options):
    path = apps.folder() / "events.txt"
    path.write_text("".join(f"{now:.6f} {source}{'' if line is None else ' ' + line}\n" for now, source, line in records))
    return apps.run(PROGRAM, "--replay", path, *(f"--{name}={value}" for name, value in options.items())).stdout


def printed_windows(text):
    found = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in ("tumbling", "sliding", "session") and len(words) >= 22:
            figures = {name: float(value) for name, value in zip(words[4:22:2], words[5:22:2])}
            found.append(Window(words[0], words[1], us(float(words[2])), us(float(words[3])), figures, words[-1] == "revised"))
    return found


def check_replay(records, **options):
    expected, text = Expected(records, **options), replay(records, **options)
    windows = printed_windows(text)
    fixed = {(w[:4], w.revised): w.figures for w in windows if w.kind != "session"}
    closings = expected.closings()
    apps.check(len(fixed) == len([w for w in windows if w.kind != "session"]) == len(closings), "windows are closed twice")
    for window, events, revised in closings:
        apps.check((window, revised) in fixed, "missing:", window, revised)
        check_figures(events, fixed[window, revised], (window, revised), lambda e: e.user)
    last = {}  # a revised session replaces those within it
    for w in windows:
        if w.kind == "session":
            for other in [o for o in last if w.revised and o[1] == w.key and w.start <= o[2] and o[3] <= w.end]:
                del last[other]
            apps.check(w[:4] not in last, "closed twice:", w)
            last[w[:4]] = w.figures
    sessions = expected.final_sessions()
    apps.check(sorted(last) == sorted(s for s, _ in sessions), "sessions:", sorted(last), "not", sorted(s for s, _ in sessions))
    for session, events in sessions:
        check_figures(events, last[session], session, lambda e: e.series)
    for kind in ("tumbling", "sliding", "session"):
        counts = re.search(rf"^{kind}: \d+ windows; events: (\d+) late, (\d+) too late, 0 refused$", text, re.MULTILINE)
        apps.check(counts, "no counts of", kind, text[-1000:])
        found, wanted = (int(counts[1]), int(counts[2])), (expected.late[kind], expected.too_late[kind])
        apps.check(found == wanted, kind, "late, too late:", found, "not", wanted)
    sums = [sum(map(int, re.findall(rf"(\d+) {word}", text))) for word in ("malformed", "ahead")]
    apps.check(sums == [expected.malformed, expected.ahead], "malformed, ahead:", sums)
    return expected, text


def stream(seed, count=400):
    """Events of three sources: out of order, late, too late, from the future; with pauses, garbage, and sources that end."""
    draw = random.Random(seed)
    now, records, users = 1000.0, [], draw.choice((3, 30, 400))
    names = ["tcp/1", "udp", "websocket/1"]
    for i in range(count):
        now += draw.choice((0, 0, 0.001, 0.05, 0.3, draw.random(), draw.choice((0, 0, 0, 15))))
        now = round(now, 6)
        source = draw.choice(names)
        kind = draw.random()
        behind = draw.choice((0, draw.random(), 2 * draw.random(), 6 * draw.random(), 14 * draw.random()))
        when = now - behind + (draw.choice((0, 0.5, 50, 1e6)) if kind < 0.1 else 0)
        value = draw.choice((draw.randrange(1, 4000) / 64, -draw.randrange(1, 4000) / 64, 0, draw.randrange(1 << 20)))
        user = f";user=u{draw.randrange(users)}" if draw.random() < 0.9 else ""
        line = f"{draw.choice('ab')}{user} {value!r} {when:.3f}"
        if kind > 0.97:
            line = draw.choice(("garbage", "a 1", "a b c", "a nan 1000", "a 1e99 1000", "a;user= 1 1000", "a 0x10 1", "a 1 inf"))
        if kind > 0.995:
            line, names[names.index(source)] = None, f"tcp/{i + 2}"
        records.append((now, source, line))
    return records


def test_windows_of_random_streams_equal_those_computed_from_all_events():
    for seed in range(SEEDS):
        check_replay(stream(seed))


def test_windows_of_other_sizes_equal_those_computed_from_all_events():
    for seed in range(100, 100 + SEEDS):
        draw = random.Random(seed)
        slide = draw.choice((0.5, 1, 2.5, 3))
        check_replay(stream(seed, 250), tumbling=draw.choice((0.1, 1, 7)), slide=slide, sliding=slide * draw.choice((1, 2, 7)) + draw.choice((0, 0.3)),
                     gap=draw.choice((0.2, 1, 10)), delay=draw.choice((0, 0.5, 2)), lateness=draw.choice((0, 1, 5)),
                     idle=draw.choice((0, 1, 5)), ahead=draw.choice((0, 1, 100)))


def test_thousands_of_different_users():
    records = [(1000 + i / 5000, "udp", f"a;user=u{i * 7919 % 2000} {i % 640 / 64} {1000 + i / 5000:.3f}") for i in range(4000)]
    check_replay(records, gap=0.5)



def crossings(expected, series, figure, above, below):
    """What an alert must do: [(fires or clears, end of the window)]. It sees windows as they close first, and none that is older
    than one that it has seen."""
    closings = []
    for window, events, revised in expected.closings():
        closed = bisect.bisect_left(expected.marks, window[3]) if window in expected.on_time else expected.came[window]
        if window[:2] == ("sliding", series) and not revised:
            closings.append((closed, window[3], [e.value for e in events]))
    found, firing, newest = [], False, 0
    for _, end, values in sorted(closings):
        if end < newest:
            continue
        newest = end
        value = {"count": len, "sum": sum, "max": max}[figure](values)
        if value < below if firing else value > above:
            firing = not firing
            found.append(("fires" if firing else "clears", f"{end / 1e6:.3f}"))
    return found


def test_alerts_fire_once_a_crossing():
    fired = 0
    for seed in range(200, 204):
        expected, text = check_replay(stream(seed), alerts="a count 12 8, b max 60 55,b sum 100000 1000")
        for series, figure, above, below in (("a", "count", 12, 8), ("b", "max", 60, 55), ("b", "sum", 100000, 1000)):
            found = re.findall(rf"^alert (\w+): {series} {figure} is \S+ at (\S+)$", text, re.MULTILINE)
            wanted = crossings(expected, series, figure, above, below)
            apps.check(found == wanted, series, figure, found, "not", wanted)
            fired += len(found)
    apps.check(fired > 20, "only", fired, "crossings")


def test_an_alert_between_its_thresholds_stays_as_it_is():
    counts = [5, 9, 11, 9, 9, 11, 9, 7, 9, 11]  # above 10 it fires, below 8 it clears
    records = [(1000.5 + i, "tcp/1", f"a {n} {1000.5 + i}") for i, n in enumerate(counts)]
    found = re.findall(r"^alert (.*)$", replay(records, alerts="a sum 10 8", sliding=1), re.MULTILINE)
    apps.check(found == ["fires: a sum is 11 at 1003.000", "clears: a sum is 7 at 1008.000", "fires: a sum is 11 at 1010.000"], found)


def test_an_event_from_the_future_does_not_make_others_late():
    records = [(1000 + i / 10, "tcp/1", f"a 1 {1000 + i / 10}") for i in range(100)]
    records[20:20] = [(1002, "tcp/2", "a 1 1061.9"), (1002, "tcp/2", "a 1 5000"), (1002, "tcp/2", "a 1 99999999999"), (1002, "tcp/1", "a 1 1030")]
    expected, _ = check_replay(records)
    apps.check(expected.ahead == 2 and not sum(expected.too_late.values()) + sum(expected.late.values()), expected.ahead, expected.late)


def test_old_events_hold_no_window_open_for_long():
    records = [(1000 + i / 10, *pair) for i in range(200) for pair in (("tcp/1", f"a 1 {1000 + i / 10}"), ("udp", f"b 1 {i}"))]
    expected, _ = check_replay(records)
    apps.check(expected.too_late["tumbling"] == 200 and expected.mark == 1019.9 - 2 - 1, expected.too_late, expected.mark)


# ---- live ----

class Live:
    """The engine, its addresses, and what it prints."""

    def __init__(self, process):
        self.process, self.out = process, process.out
        apps.until(lambda: "Listening" in self.text() or process.poll() is not None, "it listens")
        addresses = re.search(r"http://(\S+)/; events to tcp (\S+), udp (\S+) or", self.text())
        apps.check(addresses, self.text())
        self.url = "http://" + addresses[1]
        self.http, self.tcp, self.udp = (("127.0.0.1", int(a.rsplit(":", 1)[1])) for a in addresses.groups())

    def text(self):
        return self.out.read_text(errors="replace")

    def state(self):
        try:
            with urllib.request.urlopen(self.url + "/state", timeout=20) as answer:
                return json.load(answer)
        except (OSError, http.client.HTTPException) as error:
            raise apps.Wrong(f"no state: {error!r}; status {self.process.poll()}; {self.text()}") from None

    def transport(self, name):
        return next(t for t in self.state()["transports"] if t["name"] == name)

    def until(self, condition, what):
        apps.until(lambda: condition(self.state()), what)


@contextlib.contextmanager
def live(*arguments, serve=True, **options):
    addresses = {"listen": "127.0.0.1:0", "tcp": "127.0.0.1:0", "udp": "127.0.0.1:0", "page": PAGE, **options}
    words = [f"--{name}={value}" for name, value in addresses.items()] + ["--serve"] * serve
    with apps.started(PROGRAM, *words, *arguments) as process:
        yield Live(process)


class WebSocket:
    """A client that sends text, and reads messages of any size, without fragments."""

    def __init__(self, address, path, origin=None):
        self.socket = socket.create_connection(address, timeout=20)
        lines = [f"GET {path} HTTP/1.1", f"Host: {address[0]}:{address[1]}", "Upgrade: websocket", "Connection: Upgrade",
                 "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="] + [f"Origin: {origin}"] * bool(origin)
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self.head = b""
        while not self.head.endswith(b"\r\n\r\n"):
            self.head += self.socket.recv(1) or b"\r\n\r\n"
        self.status = int(self.head.split()[1])

    def send(self, text, opcode=1):
        data = text if isinstance(text, bytes) else text.encode()
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        self.socket.sendall(bytes([0x80 | opcode]) + size + bytes(4) + data)  # a mask of zeros

    def read(self, n):
        data = b""
        while len(data) < n:
            more = self.socket.recv(n - len(data))
            apps.check(more, "the WebSocket has ended")
            data += more
        return data

    def receive(self):
        size = self.read(2)[1]
        if size >= 126:
            size = int.from_bytes(self.read(2 if size == 126 else 8), "big")
        return self.read(size).decode()


def send_tcp(address, text):
    with socket.create_connection(address) as s:
        s.sendall(text if isinstance(text, bytes) else text.encode())


def recorded(path):
    records = [line.rstrip("\n").split(" ", 2) for line in path.read_text().splitlines()]
    return [(float(r[0]), r[1], r[2] if len(r) > 2 else None) for r in records]


QUICK = {"tumbling": 1, "sliding": 2, "slide": 0.5, "gap": 1, "delay": 0.2, "lateness": 0.5, "idle": 0.4, "refresh": 0.1}


def send_from_all(engine, count):
    """Events over TCP, UDP and a WebSocket, some of them late, too late and malformed."""
    draw = random.Random(5)
    udp, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.create_connection(engine.tcp)
    ws = WebSocket(engine.http, "/events")
    for i in range(count):
        line = f"{'ab'[i % 2]};user=u{draw.randrange(5)} {draw.randrange(6400) / 64} {time.time() - draw.choice((0, 0, 0.1, 0.6, 3)):.3f}"
        if i % 30 == 29:
            line = draw.choice(("garbage", "a;user= 1 1", f"a 1 {time.time() + 1e6:.3f}"))
        if i % 3 == 0:
            tcp.sendall(line.encode() + b"\n")
        elif i % 3 == 1:
            udp.sendto(line.encode(), engine.udp)
        else:
            ws.send(line)
        time.sleep(0.005)
    for s in (udp, tcp, ws.socket):
        s.close()


def cells(row):
    return [float(text.replace(",", "")) for text in row]


def check_shown(values, events, window):
    shown = dict(zip(("count", "sum", "min", "mean", "max", "p50", "p95", "p99", "distinct"), values))
    exact = sorted(e.value for e in events)
    for name, value in (("count", len(events)), ("sum", sum(exact)), ("min", exact[0]), ("mean", sum(exact) / len(exact)), ("max", exact[-1]),
                        ("distinct", len({e.user for e in events}))):
        apps.check(abs(shown[name] - value) <= 0.051, "the page shows of", window, name, shown[name], "not", value)
    for p in (50, 95, 99):
        value = exact[math.floor(p / 100 * (len(exact) - 1))]
        apps.check(abs(shown[f"p{p}"] - value) <= 0.051 + 0.01 * value, "the page shows of", window, p, shown[f"p{p}"], "not", value)


def check_card(shown, final, size):
    """Three digits of the figures of the newest sliding window of the series a."""
    window = max((w for w in final if w[:2] == ("sliding", "a")), key=lambda w: w[3])
    values = sorted(e.value for e in final[window])
    percentiles = [values[math.floor(p / 100 * (len(values) - 1))] for p in (50, 95, 99)]
    wanted = [len(values) / size, *percentiles, len({e.user for e in final[window]})]
    for text, value in zip(shown, wanted):
        apps.check(abs(float(text) - value) <= 0.016 * value + 0.006, "the card shows", shown, "not", wanted)


@at_once
def test_the_page_shows_what_is_computed_from_the_raw_input():
    record = apps.folder() / "record.txt"
    with live(record=record, alerts="a count 10 5", **QUICK) as engine, browser.Browser(1200, 1600) as page:
        page.open(engine.url)
        send_from_all(engine, 240)
        last = max(r[0] for r in recorded(record))
        engine.until(lambda state: state["watermark"] > last + 2.6, "all windows are closed")
        now = engine.state()["now"]
        page.until("return latest.now", lambda shown: shown and shown > now)
        rows = page.run("""return [...document.querySelectorAll('#tumbling tbody tr')].map(tr =>
            [tr.dataset.key, +tr.dataset.start, ...[...tr.cells].slice(2).map(td => td.textContent)])""")
        card = page.run("return [...document.querySelectorAll('[data-series=a] dd')].map(dd => dd.textContent)")
        sources = page.run("return [...document.querySelectorAll('#sources tbody tr')].map(tr => [...tr.cells].map(td => td.textContent))")
        late = page.run("return [...document.querySelectorAll('#late tbody tr')].map(tr => [...tr.cells].map(td => td.textContent))")
        sessions = page.run("return [...document.querySelectorAll('#sessions li')].map(li => [li.dataset.key, li.lastChild.textContent])")
        state = engine.state()
        apps.check(not page.errors(), page.errors())
    expected = Expected(recorded(record), **QUICK)
    final = {}
    for window, events, _ in expected.closings():  # the revised one comes last
        final[window] = events
    tumbling = sorted((w for w in final if w[0] == "tumbling"), key=lambda w: (-w[2], w[1]))[:12]
    apps.check([(r[0], us(r[1])) for r in rows] == [(w[1], w[2]) for w in tumbling], rows, "not", tumbling)
    for row, window in zip(rows, tumbling):
        check_shown(cells(row[2:]), final[window], window)
    check_card(card, final, QUICK["sliding"])
    apps.check(len(state["sliding"]["rows"]) == len([w for w in final if w[0] == "sliding"]), "sliding windows are missing")
    for row in state["sliding"]["rows"]:
        window = ("sliding", row["key"], us(row["start"]), us(row["end"]))
        check_figures(final[window], dict(zip(FIGURES, row["figures"])), window, lambda e: e.user)
    wanted = [[kind, str(expected.late[kind]), str(expected.too_late[kind]), "0"] for kind in ("tumbling", "sliding", "session")]
    apps.check(late == wanted and int(late[0][2]) > 10, late, "not", wanted)
    events = sum(line is not None for _, _, line in recorded(record)) - expected.ahead
    shown = {row[0]: sum(cells(row[1:])) for row in sources[:6]}
    apps.check(shown["events"] == events and shown["too far ahead of the clock"] == expected.ahead > 0, sources, "not", events)
    apps.check(shown["lines that are no events"] == 240 - expected.ahead - events > 0, sources)
    wanted = sorted(expected.final_sessions(), key=lambda s: (-s[0][3], s[0][1]))[:10]
    apps.check([s[0] for s in sessions] == [s[1] for s, _ in wanted], sessions, "not", wanted)
    for (_, shown), (session, events) in zip(sessions, wanted):
        count, seconds = re.fullmatch(r"(\d+) in ([\d.]+) s", shown).groups()
        apps.check(int(count) == len(events) and abs(float(seconds) - (session[3] - session[2]) / 1e6) < 0.051, shown, session)
    check_replay(recorded(record), **QUICK)


@at_once
def test_the_page_shows_simulated_sources_and_connects_again():
    port = apps.free_port()
    with live(serve=False, rate=100, **{**QUICK, "gap": 0.1, "listen": f"127.0.0.1:{port}"}) as engine, browser.Browser(360, 800, dark=True) as page:
        page.open(engine.url)
        page.until("return document.querySelectorAll('.card').length", 3)
        page.until("return [...document.querySelector('#sources').rows[3].cells].slice(1).every(td => +td.textContent > 20)", True)
        page.until("return document.querySelectorAll('#sessions li').length", lambda n: n > 2)
        wide = page.run("return [document.documentElement.scrollWidth, innerWidth]")
        apps.check(wide[0] <= wide[1] and not page.errors(), wide, page.errors())
        engine.process.send_signal(signal.SIGINT)
        apps.check(engine.process.wait(20) == 130, engine.text())
        apps.check("tumbling: " in engine.text() and "error" not in engine.text(), engine.text())
        page.until("return document.getElementById('status').textContent", lambda text: text.startswith("disconnected"))
        with live(**{**QUICK, "listen": f"127.0.0.1:{port}"}) as again:
            page.until("return document.getElementById('status').textContent", "live")
            page.until("return document.getElementById('empty').hidden", False)
            send_tcp(again.tcp, f"a 1 {time.time()}\n")
            page.until("return document.querySelectorAll('.card').length", 1)
            page.type(".card svg", "\ue012")  # the left arrow
            page.until("return document.querySelector('.readout').textContent", lambda text: "1 events, p50 1" in text)


@at_once
def test_fast_tcp_senders_are_held_up():
    lines = b"".join(f"a;user=u{i % 7} {i % 64} -1\n".encode() for i in range(400000))
    with live(limit=3000, **QUICK) as engine, socket.create_connection(engine.tcp) as s:
        s.setblocking(False)
        sent = 0
        while True:  # as much as the buffers hold, and no more: the engine does not read ahead
            try:
                sent += s.send(lines[sent:sent + 65536])
            except BlockingIOError:
                break
        held = engine.transport("tcp")
        apps.check(sent < len(lines) and held["events"] < 300000, sent, held)
        s.setblocking(True)
        whole = lines[:sent].count(b"\n")
        s.sendall(lines[sent:sent + 20 - len(lines[:sent].rpartition(b"\n")[2])] * 0)
        engine.until(lambda state: state["transports"][0]["held"] > 0.3 and state["transports"][0]["events"] > 2000, "it is held up")
        rate = engine.transport("tcp")["rate"]
        apps.check(rate < 3500, "the limit is exceeded:", rate)
        memory = int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{engine.process.pid}/status").read())[1])
        apps.check(apps.SANITIZE or memory < 30000, "it has", memory, "KiB")
        apps.check(whole > 3000, whole)


@at_once
def test_no_event_of_a_held_up_sender_is_lost():
    with live(limit=10000, **QUICK) as engine:
        send_tcp(engine.tcp, b"".join(f"a {i % 64} -1\n".encode() for i in range(12000)))
        engine.until(lambda state: state["transports"][0]["events"] == 12000 and state["transports"][0]["connections"] == 0, "all have come")
        apps.check(engine.transport("tcp")["held"] > 0.3 and engine.transport("tcp")["malformed"] == 0, engine.transport("tcp"))


@at_once
def test_what_the_kernel_drops_of_udp_is_counted():
    with live(**QUICK) as engine, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        line = b"a 1 -1\n" * 20
        engine.process.send_signal(signal.SIGSTOP)
        for _ in range(3000):
            s.sendto(line, engine.udp)
        engine.process.send_signal(signal.SIGCONT)
        apps.until(lambda: engine.transport("udp")["events"] > 0, "events come")
        s.sendto(line, engine.udp)  # the count comes with the next packet
        apps.until(lambda: engine.transport("udp")["events"] // 20 + engine.transport("udp")["dropped"] == 3001, "all are counted")
        apps.check(engine.transport("udp")["dropped"] > 100, engine.transport("udp"))


@at_once
def test_udp_packets_that_the_engine_has_no_time_for_are_dropped_and_counted():
    with live(limit=2000, **QUICK) as engine, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _ in range(5000):
            s.sendto(b"a 1 -1\n", engine.udp)
        apps.until(lambda: engine.transport("udp")["events"] >= 1024, "the queue is empty again")
        s.sendto(b"a 1 -1\n", engine.udp)
        apps.until(lambda: engine.transport("udp")["events"] + engine.transport("udp")["dropped"] == 5001, "all are counted")
        udp = engine.transport("udp")
        apps.check(udp["dropped"] > 1000 and udp["held"] > 0, udp)


GARBAGE = [b"\n", b"\0\0\0\n", b"a 1 \xff\n", b"a\x001 2 3\n", b"a nan 1\n", b"a inf 1\n", b"a -inf 1\n", b"a 1 nan\n", b"a 0x1p4 1\n",
           b"a 1e400 1\n", b"a 1 1e400\n", b"a 1e13 1\n", b"a 1 -1e13\n", b"a 1\n", b"a 1 2 3\n", b"a\t1\t2\n", b" \n", b"x" * 48 + b" 1 1\n",
           b"a;user=" + b"y" * 48 + b" 1 1\n", b"a;user=<b> 1 1\n", b"<script> 1 1\n", b"\xc3\xa9 1 1\n", b"a " + b"9" * 400 + b" 1\n", b"% 1 1\n"]


@at_once
def test_garbage_is_counted_and_harms_nobody():
    with live(**QUICK) as engine:
        good = lambda: f"ok 1 {time.time():.3f}\r\n".encode()
        send_tcp(engine.tcp, b"".join(line + good() for line in GARBAGE) + b"a 1 12345")  # half a line at the end
        engine.until(lambda state: state["transports"][0]["malformed"] == len(GARBAGE) + 1, "all are counted")
        apps.check(engine.transport("tcp")["events"] == len(GARBAGE), engine.transport("tcp"))
        with socket.create_connection(engine.tcp) as s:  # a line without an end ends the connection, not the engine
            with contextlib.suppress(ConnectionError):
                s.sendall(b"z" * 100000)
                while s.recv(100):
                    pass
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(b"", engine.udp)
            s.sendto(b"".join(GARBAGE[1:]) + good() + b"half", engine.udp)
        engine.until(lambda state: state["transports"][1]["malformed"] == len(GARBAGE), "those of UDP are counted")
        ws = WebSocket(engine.http, "/events")
        ws.send(b"garbage\n" + good() + b"a 1")
        ws.send(b"\0\1\2", opcode=2)
        engine.until(lambda state: state["transports"][2]["malformed"] == 3, "those of the WebSocket are counted")
        ws.send(b"\xff\xfe")  # text that is no UTF-8: closed with 1007
        apps.check(ws.read(4)[2:] == (1007).to_bytes(2, "big"), "it is not closed")
        huge = WebSocket(engine.http, "/events")
        huge.socket.sendall(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(5))  # a message of a terabyte
        apps.check(huge.read(4)[2:] == (1009).to_bytes(2, "big"), "it is not closed")
        engine.until(lambda state: state["sliding"]["rows"] and all(r["key"] == "ok" for r in state["sliding"]["rows"]), "only good series")
        text = engine.text()
        apps.check(all(c.isprintable() or c == "\n" for c in text), "control characters in the log")
        apps.check(engine.process.poll() is None, text)


@at_once
def test_huge_numbers_stay_numbers():
    with live(**QUICK) as engine:
        send_tcp(engine.tcp, "".join(f"a {value} {time.time():.3f}\n" for value in ("1e12", "-1e12", "1e-300", "-0", "0.0000001", "999999999999")))
        engine.until(lambda state: state["tumbling"]["rows"], "a window closes")
        figures = dict(zip(FIGURES, engine.state()["tumbling"]["rows"][0]["figures"]))
        apps.check(figures["count"] == 6 and figures["max"] == 1e12 and figures["min"] == -1e12, figures)


@at_once
def test_sources_that_come_and_go():
    with live(refresh=0.1) as engine:
        for _ in range(300):
            send_tcp(engine.tcp, "a 1 -1\n")
        engine.until(lambda state: state["transports"][0]["events"] == 300 and state["transports"][0]["connections"] == 0, "all have come and gone")
        many = [socket.create_connection(engine.tcp) for _ in range(100)]  # of which 64 are served at once
        for s in many:
            s.sendall(b"b 1 -1\n")
            s.close()
        engine.until(lambda state: state["transports"][0]["events"] == 400, "100 more")
        with contextlib.ExitStack() as stack:  # a reset is no failure
            s = stack.enter_context(socket.create_connection(engine.tcp))
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        engine.until(lambda state: state["transports"][0]["connections"] == 0, "it is gone")
        apps.check(engine.process.poll() is None, engine.text())


@at_once
def test_a_source_of_its_own_connects_again():
    tcp = f"127.0.0.1:{apps.free_port()}"
    with apps.started(PROGRAM, "--source=tcp", f"--tcp={tcp}", "--rate=200") as source:
        apps.until(lambda: "reconnecting" in source.out.read_text(), "it has found nobody")
        for _ in range(2):
            with live(tcp=tcp, refresh=0.1) as engine:
                engine.until(lambda state: state["transports"][0]["events"] > 10, "events come")
        source.send_signal(signal.SIGINT)
        apps.check(source.wait(20) == 130)


@at_once
def test_a_page_from_elsewhere_may_not_connect():
    with live() as engine:
        for path in ("/live", "/events"):
            apps.check(WebSocket(engine.http, path, "http://evil.example").status == 403, path)
            apps.check(WebSocket(engine.http, path, engine.url).status == 101, path)
        for path, status in (("/", 200), ("/state", 200), ("/nothing", 404), ("/live", 426)):
            try:
                found = urllib.request.urlopen(engine.url + path, timeout=20).status
            except urllib.error.HTTPError as error:
                found = error.code
            apps.check(found == status, path, found)


@at_once
def test_a_dashboard_that_does_not_read_holds_nobody_up():
    with live(**QUICK) as engine:
        deaf = WebSocket(engine.http, "/live")
        good = WebSocket(engine.http, "/live")
        for i in range(3):
            send_tcp(engine.tcp, "".join(f"s{j} 1 -1\n" for j in range(60)))
            now = json.loads(good.receive())["now"]
        apps.until(lambda: json.loads(good.receive())["transports"][0]["events"] == 180, "the other one gets states")
        deaf.socket.close()
        apps.check(json.loads(good.receive())["now"] > now)


@at_once
def test_too_many_series_and_users_are_refused_and_counted():
    with live(gap=100, lateness=100, tumbling=100, sliding=100, slide=100, refresh=0.1) as engine:
        send_tcp(engine.tcp, "".join(f"s{i};user=u{i} 1 -1\n" for i in range(10500)))
        engine.until(lambda state: state["transports"][0]["events"] == 10500, "all have come")
        state = engine.state()
        apps.check([state[kind]["refused"] for kind in ("tumbling", "sliding", "session")] == [10500 - 64, 10500 - 64, 500], state["session"]["refused"])


@at_once
def test_goal_counts_all_events():
    count = 100000 // apps.SLOW
    text = apps.run(PROGRAM, "--goal", "--count", count, limit=60).stdout
    found = re.findall(r"^(\w+): (\d+) events counted in windows, (\d+) too late; (\d+) expected$", text, re.MULTILINE)
    wanted = [("tumbling", count), ("sliding", 10 * count), ("session", count)]
    apps.check([(kind, int(n) + int(late)) for kind, n, late, _ in found] == wanted, text)
    apps.check("events a second, each in 12 windows; the goal is 100000" in text, text)


@at_once
def test_what_is_wrong_is_said_in_words():
    def fails(status, words, *arguments):
        done = apps.run(PROGRAM, *arguments, status=status)
        apps.check(words in done.stderr and "\n\n" not in done.stderr, arguments, done.stderr)

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        taken = f"127.0.0.1:{s.getsockname()[1]}"
        fails(1, "Address already in use", "--serve", "--listen", taken, "--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--page", PAGE)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        taken = f"127.0.0.1:{s.getsockname()[1]}"
        fails(1, "Address already in use", "--serve", "--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--udp", taken, "--page", PAGE)
    fails(1, "--page FILE says where it is", "--page", "nowhere.html")
    fails(1, "is not: SERIES FIGURE ABOVE BELOW", "--alerts", "a p95 1")
    fails(1, "is not: SERIES FIGURE ABOVE BELOW", "--alerts", "a p95 1 2")
    fails(1, "more than 8", "--alerts", ",".join(["a p95 2 1"] * 9))
    fails(1, "more than 1000 times", "--slide", "0.001")
    fails(2, "is out of range", "--idle", "-1")
    fails(2, "needs a number", "--idle", "nan")
    fails(2, "is not an option", "--nonsense")
    fails(1, "nowhere.txt", "--replay", "nowhere.txt")
    fails(1, "No such file", "--record", "nowhere/file", "--page", PAGE)
    for text in ("nonsense\n", "1000 tcp/1 a 1 1000\nnan tcp/1\n", "1000 other/1 a 1 1000\n"):
        path = apps.folder() / "file"
        path.write_text(text)
        fails(1, str(path), "--replay", path)
    apps.check("--lateness SECONDS" in apps.run(PROGRAM, "--help").stdout)


@at_once
def test_a_full_disk_ends_the_record_and_nothing_else():
    with live(record="/dev/full", **QUICK) as engine:
        send_tcp(engine.tcp, "a 1 -1\n" * 100)
        apps.until(lambda: "/dev/full: No space left on device; nothing more is recorded" in engine.text(), "it is said")
        send_tcp(engine.tcp, "a 1 -1\n")
        engine.until(lambda state: state["transports"][0]["events"] == 101, "the engine goes on")


@at_once
def test_an_interrupt_ends_it_at_any_moment():
    for number, what in ((signal.SIGINT, "Listening"), (signal.SIGTERM, "has connected"), (signal.SIGINT, "websocket/1")):
        with live(serve=False, rate=1000) as engine:
            apps.until(lambda: what in engine.text(), what)
            threads = len(os.listdir(f"/proc/{engine.process.pid}/task"))
            engine.process.send_signal(number)
            apps.check(engine.process.wait(20) == 128 + number, engine.text())
            apps.check("sliding: " in engine.text() and threads, engine.text())
    with apps.started(PROGRAM, "--goal") as process:
        apps.until(lambda: "events\n" in process.out.read_text(), "it counts")
        process.send_signal(signal.SIGINT)
        apps.check(process.wait(20) == 130, process.out.read_text())


if __name__ == "__main__":
    apps.main(globals())
