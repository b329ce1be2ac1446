#!/usr/bin/env python3
"""Tests of examples/12_projects/03_analytics.c."""
import collections
import contextlib
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import time
import urllib.request

import apps

PROGRAM = apps.compiled("12_projects/03_analytics.c")
PAGE = apps.TOP / "examples" / "12_projects" / "03_analytics.html"
FIGURES = ("count", "sum", "min", "max", "mean", "p50", "p95", "p99", "distinct")
DEFAULTS = {"tumbling": 5, "sliding": 10, "slide": 1, "gap": 4, "delay": 1, "lateness": 3, "idle": 2, "ahead": 60}

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
        self.on_time, self.late_ones = collections.defaultdict(list), collections.defaultdict(list)  # (kind, key, start, end)
        self.sessions = collections.defaultdict(list)  # by user: [start, end, events, when it was last closed]
        for arrival, source, line in records:
            self.take(arrival, source, line)

    def advance(self, now):
        promises = [max(newest, now - self.o["idle"]) for newest in self.newest.values()] or [now - self.o["idle"]]
        self.mark = max(self.mark, min([now, *promises]) - self.o["delay"])

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
    last = {}  # a revised session replaces those that lie within it
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
        counts = re.search(rf"^{kind} +\d+ windows, late (\d+), too late (\d+), refused 0$", text, re.MULTILINE)
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
    for seed in range(1 if apps.SANITIZE else 10):
        check_replay(stream(seed))


def test_windows_of_other_sizes_equal_those_computed_from_all_events():
    for seed in range(100, 112):
        draw = random.Random(seed)
        slide = draw.choice((0.5, 1, 2.5, 3))
        check_replay(stream(seed, 250), tumbling=draw.choice((0.1, 1, 7)), slide=slide, sliding=slide * draw.choice((1, 2, 7)) + draw.choice((0, 0.3)),
                     gap=draw.choice((0.2, 1, 10)), delay=draw.choice((0, 0.5, 2)), lateness=draw.choice((0, 1, 5)),
                     idle=draw.choice((0, 1, 5)), ahead=draw.choice((0, 1, 100)))


def test_thousands_of_different_users():
    records = [(1000 + i / 5000, "udp", f"a;user=u{i * 7919 % 9000} {i % 640 / 64} {1000 + i / 5000:.3f}") for i in range(10000)]
    check_replay(records, gap=0.5)


if __name__ == "__main__":
    apps.main(globals())
