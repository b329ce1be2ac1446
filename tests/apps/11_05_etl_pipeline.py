#!/usr/bin/env python3
"""Tests of examples/11_apps/05_etl_pipeline.c."""
import collections
import concurrent.futures
import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading

import apps

PROGRAM = apps.compiled("11_apps/05_etl_pipeline.c")
BOUND, BATCH = 8, 500
RATES = {"EUR": 1, "USD": 0.92, "GBP": 1.17, "CHF": 1.04}
TIME = "2024-02-29T13:14:15Z", 1709212455
LONG = 30 * apps.SLOW
HEADER = "id,customer,amount,currency,time\n"


# ---- sources ----

def payment(number):
    """(id, customer, amount, currency, time)"""
    return number, f"Customer {number % 97}", number % 10_000 + 0.5, sorted(RATES)[number % 4], TIME[0]


def loaded(fields):
    """Its loaded form: (id, customer, cents, currency, time)"""
    number, customer, amount, currency, _ = fields
    return number, customer, int(amount * RATES[currency] * 100 + 0.5), currency, TIME[1]


def as_json(fields):
    return json.dumps(dict(zip(("id", "customer", "amount", "currency", "time"), fields)), ensure_ascii=False)


class Sources:
    """Two CSV files, a table and a feed of this many records each; wanted: {(source, position): loaded record}."""

    def __init__(self, count, feed=None):
        feed = count if feed is None else feed
        self.folder, self.wanted = apps.folder(), {}
        self.out = self.folder / "results"
        for i, name in enumerate(("a.csv", "b.csv")):
            text = HEADER
            for k in range(count):
                fields = payment(i * 1_000_000 + k + 1)
                self.wanted[name, len(text)] = loaded(fields)
                text += ",".join(map(str, fields)) + "\n"
            (self.folder / name).write_text(text)
        with contextlib.closing(sqlite3.connect(self.folder / "c.db")) as db, db:
            db.execute("CREATE TABLE payments (id INTEGER PRIMARY KEY, customer, amount, currency, time)")
            rows = [payment(2_000_000 + k + 1) for k in range(count)]
            db.executemany("INSERT INTO payments VALUES (?, ?, ?, ?, ?)", rows)
        self.wanted.update({("c.db", row[0]): loaded(row) for row in rows})
        self.words = ["a.csv", "b.csv", "db=c.db"]
        rows = [payment(3_000_000 + k + 1) for k in range(feed)]
        self.feed = Feed([as_json(row).encode() + b"\n" for row in rows])
        self.words.append(f"feed={self.feed.address}")
        self.wanted.update({("feed", k): loaded(row) for k, row in enumerate(rows)})

    def run(self, *options, **more):
        return apps.run(PROGRAM, *self.words, *options, cwd=self.folder, **more)

    def started(self, *options, **more):
        return apps.started(PROGRAM, *self.words, *options, cwd=self.folder, **more)

    def check(self, rejects=()):
        """Each payment is in both destinations once, and no line is torn."""
        check_once(self.out, self.wanted, rejects)


class Feed:
    """A feed as the program's first comment describes it. cut: lines after which a connection ends, in the middle of the next;
    endless: a line without an end."""

    def __init__(self, lines, cut=None, endless=False, end=b"END\n"):
        self.lines, self.cut, self.endless, self.end = lines, cut, endless, end
        self.asked, self.sent, self.port = [], 0, 0
        self.listen()
        self.address = f"127.0.0.1:{self.port}"

    def listen(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def stop(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with contextlib.suppress(OSError), connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            asked = connection.makefile("rb").readline()
            if not asked:  # the program was killed
                return
            position = int(re.fullmatch(rb"FROM (\d+)\n", asked)[1])
            self.asked.append(position)
            last = len(self.lines) if self.cut is None else min(position + self.cut, len(self.lines))
            while self.endless:
                connection.sendall(b"x" * 10_000)
            for i in range(position, last, 10):
                connection.sendall(b"".join(self.lines[i:min(i + 10, last)]))
                self.sent = max(self.sent, min(i + 10, last))
            if last < len(self.lines):
                connection.sendall(self.lines[last][:20])
            elif self.end is None:
                connection.recv(1)  # it hangs
            else:
                connection.sendall(self.end)


# ---- destinations ----

def table(out):
    with contextlib.closing(sqlite3.connect(out / "payments.db")) as db:
        apps.check(db.execute("PRAGMA integrity_check").fetchone() == ("ok",))
        return db.execute("SELECT source, position, id, customer, cents, currency, time FROM payments").fetchall()


def checkpoints(out):
    with contextlib.closing(sqlite3.connect(out / "payments.db")) as db:
        return {name: position for name, position, *_ in db.execute("SELECT * FROM checkpoints")}


def lines(path):
    text = path.read_bytes()
    apps.check(not text or text.endswith(b"\n"), path, "ends in the middle of a line")
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


def check_once(out, wanted, rejects=()):
    rows = table(out)
    apps.check({row[:2]: row[2:] for row in rows} == wanted and len(rows) == len(wanted), len(rows), "rows,", len(wanted))
    found = [(*row.values(),) for row in lines(out / "payments.jsonl")]
    apps.check(len(found) == len(wanted) and {row[:2]: row[2:] for row in found} == wanted, len(found), "lines,", len(wanted))
    order = collections.defaultdict(list)
    for row in found:
        order[row[0]].append(row[1])
    apps.check(all(positions == sorted(positions) for positions in order.values()), "not in the order of the sources")
    found = [(row["source"], row["position"], row["reason"]) for row in lines(out / "rejects.jsonl")]
    more, fewer = sorted(set(found) - set(rejects)), sorted(set(rejects) - set(found))
    apps.check(sorted(found) == sorted(rejects), "rejected", more[:5], "instead of", fewer[:5])


def check_consistent(out):
    """No line is beyond the checkpoint, and there are as many lines as rows."""
    if not (out / "rejects.jsonl").exists():
        return
    found = checkpoints(out)
    for name in ("payments.jsonl", "rejects.jsonl"):
        apps.check((out / name).stat().st_size == found.get(name, 0), name, found)
    apps.check(len(lines(out / "payments.jsonl")) == len(table(out)))


# ---- bad records ----

BAD_CSV = [
    ('1,"A",1.5,EUR', "too few fields"),
    (f'1,"A",1.5,EUR,{TIME[0]},x', "too many fields"),
    (f'1,"A,1.5,EUR,{TIME[0]}', "a quote is not closed"),
    (f'1,"A"b,1.5,EUR,{TIME[0]}', "a quote in the middle of a field"),
    (f'1,A"b,1.5,EUR,{TIME[0]}', "a quote in the middle of a field"),
    (f"x,A,1.5,EUR,{TIME[0]}", "the id is not a whole number"),
    (f"1.5,A,1.5,EUR,{TIME[0]}", "the id is not a whole number"),
    (f",A,1.5,EUR,{TIME[0]}", "the id is not a whole number"),
    (f"1,A,0x10,EUR,{TIME[0]}", "the amount is not a number, or out of range"),
    (f"1,A,inf,EUR,{TIME[0]}", "the amount is not a number, or out of range"),
    (f"1,A,-1,EUR,{TIME[0]}", "the amount is not a number, or out of range"),
    (f"1,A,1e300,EUR,{TIME[0]}", "the amount is not a number, or out of range"),
    (f"1,A,1,XYZ,{TIME[0]}", "the currency is unknown"),
    ("1,A,1,EUR,2023-02-29T00:00:00Z", "the time is not valid"),
    ("1,A,1,EUR,2024-02-29T25:00:00Z", "the time is not valid"),
    ("1,A,1,EUR,yesterday", "the time is not valid"),
    ("1,A,1,EUR,2024-02-29T13:14:15Z and more", "the time is not valid"),
    (f"1,  ,1,EUR,{TIME[0]}", "the customer has no name"),
    (f"1,{'n' * 64},1,EUR,{TIME[0]}", "the customer's name is too long"),
    (f"1,caf\udce9,1,EUR,{TIME[0]}", "the customer's name is not UTF-8"),
    (f"1,\udced\udca0\udc80,1,EUR,{TIME[0]}", "the customer's name is not UTF-8"),  # a surrogate
    (f"1,\udcf4\udc90\udc80\udc80,1,EUR,{TIME[0]}", "the customer's name is not UTF-8"),  # beyond the last character
    (f"1,\udcc0\udcaf,1,EUR,{TIME[0]}", "the customer's name is not UTF-8"),  # a longer form
    ("1,A\0,1,EUR,x", "the line contains a NUL"),
    ("1," + "x" * 4096, "the line is too long"),
    ("1," + "x" * 100_000, "the line is too long"),
    ("\udcff" * 300, "too few fields"),
]
GOOD_CSV = {f'7,"Ng, ""Bo""",12.34,EUR,{TIME[0]}': (7, 'Ng, "Bo"', 1234, "EUR", TIME[1]),
            f"8, Zoë ,1e2,USD,{TIME[0]}\r": (8, "Zoë", 9200, "USD", TIME[1]),
            f'"9","A","1.005","GBP","{TIME[0]}"': (9, "A", 118, "GBP", TIME[1])}
BAD_JSON = [
    ("", "this is not JSON"), ("}", "this is not JSON"), ("[1]", "this is not a JSON object"), ("{} x", "this is not JSON"),
    ("{}", "the id is not a whole number"),
    ('{"id": "1"}', "the id is not a whole number"),
    ('{"id": 1}', "a field is missing, or is not text"),
    ('{"id": 1, "customer": 5, "amount": 1, "currency": "EUR", "time": "x"}', "a field is missing, or is not text"),
    ('{"id": 1, "customer": "A", "amount": "1", "currency": "EUR", "time": "x"}', "the amount is not a number, or out of range"),
    ('{"id": 1, "customer": "A\\u0000", "amount": 1, "currency": "EUR", "time": "x"}', "the line contains a NUL"),
    ("{" + " " * 4096 + "}", "the line is too long"), ("x" * 300_000, "the line is too long"),
    ("[" * 2000, "this is not JSON"), ("END ", "this is not JSON"), ("\x01\x02\udcff", "this is not JSON"),
]


def test_bad_records_are_counted_and_kept_and_nothing_else_is_lost():
    folder, wanted, rejects, position = apps.folder(), {}, [], 0
    raw = HEADER.encode()
    for i, (bad, reason) in enumerate(BAD_CSV):
        for line in (list(GOOD_CSV)[i % 3], bad, ""):
            if line == bad:
                rejects.append(("x.csv", len(raw), reason))
            elif line:
                wanted["x.csv", len(raw)] = GOOD_CSV[line]
            raw += line.encode(errors="surrogateescape") + b"\n"
    (folder / "x.csv").write_bytes(raw[:-2])  # the last good line has no end
    feed = []
    for bad, reason in BAD_JSON:
        wanted["feed", len(feed)] = loaded(payment(len(feed) + 1))
        rejects.append(("feed", len(feed) + 1, reason))
        feed += [as_json(payment(len(feed) + 1)).encode() + b"\n", bad.encode(errors="surrogateescape") + b"\n"]
    rows = [(-5, "A", 1.5, "EUR", TIME[0], "the id is not a whole number"),
            (8, None, 1.5, "EUR", TIME[0], "a field is missing, or is not text"),
            (0, "A", 1.5, "EUR", TIME[0], "the id is not a whole number"),
            (1, b"caf\xe9", 1.5, "EUR", TIME[0], "the customer's name is not UTF-8"),
            (2, "A", "much", "EUR", TIME[0], "the amount is not a number, or out of range"),
            (3, "A", b"12", "EUR", TIME[0], "the amount is not a number, or out of range"),
            (4, "A", float("inf"), "EUR", TIME[0], "this is not JSON"),
            (5, "x" * 5000, 1.5, "EUR", TIME[0], "the line is too long"), (6, "B", 2, "CHF", TIME[0], None),
            (7, 12, 2, "CHF", TIME[0], None)]
    with contextlib.closing(sqlite3.connect(folder / "x.db")) as db, db:
        db.execute("CREATE TABLE payments (id INTEGER PRIMARY KEY, customer, amount, currency, time)")
        db.executemany("INSERT INTO payments VALUES (?, ?, ?, ?, ?)", (row[:5] for row in rows))
    rejects += [("x.db", row[0], row[5]) for row in rows if row[5]]
    wanted.update({("x.db", row[0]): loaded((row[0], str(row[1]), *row[2:5])) for row in rows if not row[5]})
    words = ["x.csv", "db=x.db", f"feed={Feed(feed).address}"]
    done = apps.run(PROGRAM, *words, cwd=folder)
    check_once(folder / "results", wanted, rejects)
    apps.check(f"{len(wanted)} loaded, {len(rejects)} rejected" in done.stdout, done.stdout)
    texts = {(row["source"], row["position"]): row["text"] for row in lines(folder / "results/rejects.jsonl")}
    apps.check(texts["feed", 15] == "{} x" or "{} x" in texts.values(), texts)
    apps.check(all(len(text.encode()) <= 200 for text in texts.values()))
    done = apps.run(PROGRAM, *words, cwd=folder)  # again: there is nothing new
    check_once(folder / "results", wanted, rejects)
    apps.check("0 loaded, 0 rejected" in done.stdout, done.stdout)
    with open(folder / "x.csv", "ab") as more:  # but now there is
        more.write(f"\n77,New,1,EUR,{TIME[0]}\n".encode())
    apps.run(PROGRAM, *words, cwd=folder)
    wanted["x.csv", len(raw) - 1] = (77, "New", 100, "EUR", TIME[1])
    check_once(folder / "results", wanted, rejects)


# ---- the stages ----

def test_all_sources_at_once_into_both_destinations_in_threads():
    sources = Sources(5000)
    done = sources.run()
    sources.check()
    threads = re.search(r"at most (\d+) threads at once", done.stdout)
    apps.check(int(threads[1]) >= min(2, os.cpu_count()) and "20000 loaded, 0 rejected" in done.stdout, done.stdout)
    for name in ("a.csv", "b.csv", "c.db", "feed"):
        apps.check(re.search(rf"^{name} +5000 +5000 +0 ", done.stdout, re.M), name, done.stdout)
    apps.check(sources.feed.asked == [0], sources.feed.asked)


def health(process):
    """[(the two queues, the line)]"""
    found = re.findall(r"^(.*queues (\d+)/8, (\d+)/8; .*)$", process.out.read_text(), re.M)
    return [((int(a), int(b)), line) for line, a, b in found]


def test_a_slow_destination_makes_the_sources_pause():
    sources = Sources((3 * BOUND + 8) * BATCH, feed=26_000)  # none ends, even if one alone fills both queues
    with sources.started("slow=60", "health=0.05") as process:
        everyone = "; a.csv pauses; b.csv pauses; c.db pauses; feed pauses"
        apps.until(lambda: any(everyone in line for _, line in health(process)), "all sources pause")
        seen, sent = len(health(process)), -1
        while sent != sources.feed.sent:  # until the buffers of the kernel are full
            sent, seen = sources.feed.sent, seen + 4
            apps.until(lambda: len(health(process)) > seen, "the next health lines")
        apps.check(all(everyone in line and queues == (BOUND, BOUND) for queues, line in health(process)[-3:]),
                   process.out.read_text()[-1000:])
        apps.check("; nothing loaded for" in process.out.read_text())
        apps.check(all(a <= BOUND and b <= BOUND for (a, b), _ in health(process)), "a queue is too long")
        most = (3 * BOUND + 5) * BATCH + 1_000_000 // len(sources.feed.lines[0])
        apps.check(sent < most < len(sources.feed.lines), "the sender was not held back:", sent, "of at most", most)
    done = sources.run("slow=0.02", "health=0.02")  # slow, but not forever
    sources.check()
    apps.check("; destinations are slower; " in done.stdout, done.stdout)
    apps.check("at most 8 of 8 batches waited" in done.stdout and "; ok\n" in done.stdout, done.stdout)


# ---- recovery ----

def size(out):
    with contextlib.suppress(FileNotFoundError):
        return (out / "payments.jsonl").stat().st_size
    return 0


def test_killed_at_ten_random_moments_each_payment_comes_once():
    seed = int(os.environ.get("SEED", random.randrange(10_000)))
    moments = random.Random(seed)
    sources = Sources(3000, feed=12_000)
    sources.feed.lines.append(b"bad\n")
    whole = sum(len(json.dumps((*key, *row), ensure_ascii=False)) + 60 for key, row in sources.wanted.items())
    kills = 0
    for moment in [*sorted(moments.uniform(0, 0.9) for _ in range(9)), 0.95]:  # at the last the feed has been loaded from
        with sources.started("slow=0.03") as process:
            apps.until(lambda: size(sources.out) >= moment * whole or process.poll() is not None, "it has come so far")
            kills += process.poll() is None
            process.kill()
            process.wait()
    sources.run()
    apps.check(kills >= 5, "seed", seed, "killed", kills)
    try:
        sources.check([("feed", 12_000, "this is not JSON")])
    except apps.Wrong as wrong:
        raise apps.Wrong(f"SEED={seed}: {wrong}") from None
    asked = sources.feed.asked
    apps.check(asked == sorted(asked) and asked[-1] > 0, "seed", seed, asked)


def test_ctrl_c_at_any_moment_leaves_nothing_half_written():
    sources = Sources(5000)
    for moment in (0, 1, 300_000, 1_000_000, 2_000_000):
        with sources.started("slow=0.02", "health=0.01") as process:
            if moment:
                apps.until(lambda: size(sources.out) >= moment or process.poll() is not None, moment)
            process.send_signal(signal.SIGINT)
            status = process.wait(LONG)
            apps.check(status in (0, 130, -signal.SIGINT), moment, status, process.out.read_text())
            apps.check(not apps.children_of(process.pid))
        check_consistent(sources.out)
    sources.run()
    sources.check()


def limited(count):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))


def run_limited(sources, count):
    return subprocess.run(apps.command(PROGRAM, *sources.words), cwd=sources.folder, capture_output=True, text=True,
                          env=apps.environment(), timeout=LONG, preexec_fn=limited(count))


def test_a_full_disk_is_said_and_the_next_run_goes_on():
    sources = Sources(8000)
    rejects = [("feed", 8000 + k, "this is not JSON") for k in range(8000)]
    sources.feed.lines += [b"x" * 300 + b"\n"] * 8000
    failed = 0
    for limit in (1_000_000, 2_000_000, 2_500_000):
        done = run_limited(sources, limit)
        failed += done.returncode
        apps.check(done.returncode == 1 and "the next run goes on" in done.stderr, limit, done.returncode, done.stderr)
        apps.check(re.search(r"results/payments\.(jsonl|db): |results/rejects.jsonl: ", done.stderr), done.stderr)
        check_consistent(sources.out)
    sources.run()
    sources.check(rejects)


def test_a_file_that_cannot_grow_any_more():
    sources = Sources(0)
    sources.feed.lines += [b"x" * 300 + b"\n"] * 8000  # only rejects.jsonl grows
    done = run_limited(sources, 500_000)
    apps.check(done.returncode == 1 and "results/rejects.jsonl: File too large" in done.stderr, done.stderr)
    check_consistent(sources.out)
    sources.run()
    sources.check([("feed", k, "this is not JSON") for k in range(8000)])


# ---- the feed ----

def test_the_feed_ends_connections_in_the_middle_of_lines():
    sources = Sources(3000)
    sources.feed.cut = 700
    done = sources.run()
    sources.check()
    apps.check(sources.feed.asked == [0, 700, 1400, 2100, 2800], sources.feed.asked)
    apps.check(re.search(r"^feed +3000 .* 4$", done.stdout, re.M), done.stdout)


def test_the_feed_is_away_for_a_while():
    sources = Sources(3000)
    sources.feed.stop()
    with sources.started("health=0.01") as process:
        apps.until(lambda: "feed is tried again" in process.out.read_text(), "it tries")
        sources.feed.listen()
        apps.check(process.wait(LONG) == 0, process.out.read_text())
    sources.check()


def fail_for_good(how, words):
    sources = Sources(1000, feed=0)
    if how == "refuses":
        sources.feed.stop()
    elif how == "hangs":
        sources.feed.end = None
    elif how == "never ends":
        sources.feed.endless = True
    else:
        sources.feed.end = b""
    done = sources.run("timeout=0.5", status=1)
    apps.check(words in done.stderr and sources.feed.address in done.stderr, how, done.stderr)
    apps.check("1 of 4 sources failed" in done.stderr and "the other sources go on" in done.stderr, how, done.stderr)
    sources.check()


def test_a_feed_that_fails_for_good_does_not_stop_the_other_sources():
    cases = {"refuses": "Connection refused", "hangs": "no record for 0.5 s", "never ends": "",
             "closes": "the connection ended"}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(fail_for_good, *zip(*cases.items())))


# ---- refusals ----

def test_what_cannot_be_read_or_written_is_said():
    sources = Sources(10)
    where = sources.folder
    os.mkfifo(where / "fifo")
    (where / "other.csv").write_text("a,b\n1,2\n")
    (where / "empty.csv").write_text("")
    sqlite3.connect(where / "empty.db").close()
    for word, words in (("none.csv", "No such file"), (".", "is not a regular file"), ("fifo", "is not a regular file"),
                        ("other.csv", "the first line is not"), ("empty.csv", "the first line is not"),
                        ("db=none.db", "none.db"), ("db=a.csv", "not a database"), ("db=empty.db", "no such table"),
                        ("feed=here", "here")):
        done = apps.run(PROGRAM, word, "out=x", cwd=where, status=1)
        apps.check(words in done.stderr, word, done.stderr)
    for word in ("out=none/x", "out=a.csv"):
        apps.check("etl" not in apps.run(PROGRAM, "a.csv", word, cwd=where, status=1).stdout)
    for words in (["--x"], ["slow=x", "a.csv"], ["a.csv", "./a.csv"], ["payments.jsonl"], ["feed="], ["slow=-1"]):
        apps.check("bad arguments" in apps.run(PROGRAM, *words, cwd=where, status=2).stderr, words)


def test_destinations_that_are_not_its_own():
    sources = Sources(2000)
    sources.out.mkdir()
    (sources.out / "payments.jsonl").write_text("mine\n")
    apps.check("is not empty, and has no checkpoint" in sources.run(status=1).stderr)
    apps.check((sources.out / "payments.jsonl").read_text() == "mine\n")
    (sources.out / "payments.jsonl").unlink()
    with sources.started("slow=60", "health=0.01") as process:
        apps.until(lambda: health(process), "it runs")
        apps.check("another run is writing to it" in sources.run(status=1).stderr)
    sources.run()
    sources.check()
    whole = (sources.out / "payments.jsonl").read_bytes()
    with open(sources.out / "payments.jsonl", "ab") as torn:
        torn.write(b'{"source": "a.cs')
    apps.check("16 bytes behind the checkpoint are cut off" in sources.run().stdout)
    sources.check()
    (sources.out / "payments.jsonl").write_bytes(whole[:-100])
    apps.check("is shorter than its checkpoint says" in sources.run(status=1).stderr)


# ---- by itself ----

def test_the_goal():
    done = apps.run(PROGRAM, "--goal")
    apps.check("100000 loaded, 100 rejected" in done.stdout, done.stdout)
    sums = re.findall(r"^(?:in|out): .*$", done.stdout, re.M)
    apps.check("in:  100000 payments, checksum 49966257358, and 100 bad records" in sums, sums)
    apps.check("out: 100000, 49966257358 in payments.db; 100000, 49966257358 in payments.jsonl; 100 in rejects.jsonl" in sums, sums)
    apps.check(re.search(r"^\d+ payments a minute; the goal: 100000$", done.stdout, re.M), done.stdout)


def test_alone_it_is_killed_three_times_and_loses_nothing():
    done = apps.run(PROGRAM)
    apps.check(done.stdout.count("SIGKILL") == 3 and done.stdout.count("goes on after") >= 1, done.stdout)
    apps.check("out: 40000, 19997361526 in payments.db; 40000, 19997361526 in payments.jsonl; 40 in" in done.stdout, done.stdout)
    apps.check(" pauses" in done.stdout and done.stderr.count("feed: lines from ") >= 2, done.stdout, done.stderr)


def interrupt_alone(moment):
    where = apps.folder()
    with apps.started(PROGRAM, TMPDIR=where) as process:
        apps.until(lambda: moment in process.out.read_text(), moment)
        children = apps.children_of(process.pid, deep=True)
        apps.check(len(list(where.glob("etl*/payments.db"))) == 1, moment)
        process.send_signal(signal.SIGINT)
        apps.check(process.wait(LONG) == 130, process.out.read_text())
        apps.check(all(map(apps.is_gone, children)), children)
    apps.check(not apps.left_in(where), moment, *apps.left_in(where))


def test_ctrl_c_alone_leaves_no_folder_and_no_process():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(interrupt_alone, ("loaded", "SIGKILL", "goes on after")))


def test_no_child_outlives_it():
    with apps.started(PROGRAM, TMPDIR=apps.folder()) as process:
        apps.until(lambda: "loaded" in process.out.read_text(), "it runs")
        children = apps.children_of(process.pid, deep=True)
        process.kill()
        process.wait()
        apps.until(lambda: all(map(apps.is_gone, children)), "the children end")


def beside(test):
    """Starts a test that mostly waits, next to the others."""
    return POOL.submit(test).result


POOL = concurrent.futures.ThreadPoolExecutor(6)
for name, test in list(globals().items()):
    if name.startswith("test_") and all(word in name for word in sys.argv[1:]):
        globals()[name] = beside(test)

apps.main(globals())
