#!/usr/bin/env python3
"""Tests of examples/11_apps/02_data_pipeline.c."""
import collections
import concurrent.futures
import contextlib
import hashlib
import http.server
import os
import pathlib
import re
import signal
import socket
import sqlite3
import threading

import apps

PROGRAM = apps.compiled("11_apps/02_data_pipeline.c")
TABLES = ("documents", "words", "failures")
OWN = {"text/1", "text/2", "text/3", "text/4", "text/5", "flaky"}  # those of its own pages that are good
LONG = 30 * apps.SLOW  # seconds: for what ends sooner


def rows(path, table):
    """As a sorted list, without the port of the service."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        apps.check(db.execute("PRAGMA integrity_check").fetchone() == ("ok",))
        found = db.execute(f"SELECT * FROM {table}").fetchall()
    return sorted((re.sub(r"http://[^/]*/", "", row[0]), *row[1:]) for row in found)


def tables(path):
    return {table: rows(path, table) for table in TABLES}


def failures(path):
    """{page: [reasons]}"""
    found = collections.defaultdict(list)
    for page, attempt, reason in rows(path, "failures"):
        found[page].append(reason)
        apps.check(len(found[page]) == attempt, page, attempt)
    return found


class Source(http.server.ThreadingHTTPServer):
    """A service in this process; answer(handler, how many requests of this path there were) sends anything."""
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer):
        self.answer, self.lock, self.calls = answer, threading.Lock(), collections.Counter()
        self.in_flight = self.most_in_flight = 0
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request, client_address):
        pass  # clients leave


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, path = self.server, self.path[1:]
        with server.lock:
            server.calls[path] += 1
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
            count = server.calls[path]
        try:
            status, body = server.answer(self, count)
        finally:
            with server.lock:
                server.in_flight -= 1  # before the answer is sent: the client's next request may come at once
        if status:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:  # not HTTP
            self.wfile.write(body)
            self.close_connection = True

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def source(answer):
    with Source(answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def pipeline(*words, where=None, **more):
    """Runs it on URLs, with more time per page than needed."""
    if not any(word.startswith("timeout=") for word in words):
        words = (f"timeout={LONG}", *words)
    return apps.run(PROGRAM, *words, cwd=where, no_proxy="*", **more)


# ---- its own pages ----

def test_its_own_pages_at_once_and_in_sequence_give_the_same_tables():
    where = apps.folder()
    with contextlib.ExitStack() as stack:
        runs = {name: stack.enter_context(apps.started(PROGRAM, *words, f"timeout={4 if apps.SLOW == 1 else 10}", f"db={name}", cwd=where))
                for name, words in (("at_once", ("--goal",)), ("in_sequence", ("--sequential",)))}
        for name, process in runs.items():
            apps.check(process.wait(2 * LONG) == 0, name, process.out.read_text())
        said = runs["at_once"].out.read_text()
        apps.check("6 stored, 4 failed, at most 5 requests at once" in said and "the goal: 6 stored, 4 failed" in said, said)
        said = runs["in_sequence"].out.read_text()
        apps.check("6 stored, 4 failed, at most 1 requests at once" in said, said)
    found = tables(where / "at_once")
    apps.check(found == tables(where / "in_sequence"), found)
    apps.check({row[0] for row in found["documents"]} == OWN, found)
    failed = failures(where / "at_once")
    apps.check({page: len(reasons) for page, reasons in failed.items()} ==
               {"flaky": 2, "missing": 1, "garbage": 1, "huge": 1, "hang": 1}, failed)
    apps.check(failed["flaky"] == ["status 500"] * 2 and failed["missing"] == ["status 404"], failed)
    apps.check(failed["hang"] == ["timed out"], failed)


# ---- pages of this test ----

def fnv(data):
    value = 14695981039346656037
    for byte in data:
        value = (value ^ byte) * 1099511628211 % 2**64
    return f"{value:016x}"


def test_the_words_are_counted_right_in_processes():
    bodies = {"empty": b"", "spaces": b" \n\t ", "one": b"One", "many": b"b a, B!c-a;d e f'a " * 1000, "long": b"x" * 40 + b" y",
              "accents": "Süß süß été".encode(), "digits": b"1 22 1 22 22"}
    bodies["big"] = " ".join(hashlib.md5(str(i % 5000).encode()).hexdigest()[:6] for i in range(30_000)).encode()
    where = apps.folder()
    with source(lambda handler, _: (200, bodies[handler.path[1:]])) as server:
        pipeline(*(server.url(name) for name in bodies), where=where)
    found, top = tables(where / "pipeline.db"), collections.defaultdict(dict)
    for page, word, count in found["words"]:
        top[page][word] = count
    apps.check(len(found["documents"]) == len(bodies) and not found["failures"], found)
    for page, size, words, distinct, checksum in found["documents"]:
        text = "".join(c.lower() if c.isascii() else c for c in bodies[page].decode())
        counts = collections.Counter(word for word in re.findall(r"[^\W_]+", text) if len(word.encode()) < 32)
        first = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0].encode()))[:5])
        apps.check((size, words, distinct) == (len(bodies[page]), sum(counts.values()), len(counts)), page, size, words, distinct)
        apps.check(top[page] == first, page, top[page], first)
        apps.check(checksum == fnv(bodies[page]), page, checksum)


def test_five_requests_at_once_and_no_more():
    barrier = threading.Barrier(5)

    def answer(handler, _):
        barrier.wait(LONG)  # for each other: fewer than five would wait in vain
        return 200, b"a b c"
    with source(answer) as server:
        done = pipeline(*(server.url(i) for i in range(10)))
        apps.check(server.most_in_flight == 5, server.most_in_flight)
        apps.check("10 stored, 0 failed, at most 5 requests at once" in done.stdout, done.stdout)


def test_retries_and_the_log_of_what_failed():
    bad = {"500": (500, b""), "503": (503, b""), "429": (429, b""), "404": (404, b""), "301": (301, b""), "latin": (200, b"caf\xe9"),
           "binary": (200, b"a\0b"), "noise": (0, b"\x01\x02 what is this?\r\n\r\n"), "empty": (0, b""), "huge": (200, b"x" * (2 << 20))}
    attempts = {"500": 3, "503": 3, "429": 3, "empty": 3, "once": 1, "twice": 2, "refused": 3}

    def answer(handler, count):
        page = handler.path[1:]
        if page in ("once", "twice"):
            return (503, b"") if count <= attempts[page] else (200, b"well")
        return bad[page]
    where = apps.folder()
    with source(answer) as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        urls = [*map(server.url, bad), server.url("once"), server.url("twice"), f"http://127.0.0.1:{unused.getsockname()[1]}/refused"]
        done = pipeline(*urls, where=where, status=1)
        calls = dict(server.calls)
    failed = failures(where / "pipeline.db")
    apps.check({page: len(reasons) for page, reasons in failed.items()} == {**dict.fromkeys(bad, 1), **attempts}, failed)
    apps.check(calls["once"] == 2 and calls["twice"] == 3 and calls["503"] == 3 and calls["404"] == 1 and calls["huge"] == 1, calls)
    apps.check(failed["429"] == ["status 429"] * 3 and failed["404"] == ["status 404"], failed)
    apps.check(failed["refused"] == ["Connection refused"] * 3, failed)
    apps.check({row[0] for row in rows(where / "pipeline.db", "documents")} == {"once", "twice"})
    for url in urls:
        apps.check(f"{url}: attempt 1 failed: " in done.stderr, url, done.stderr)
    apps.check("2 stored, 11 failed" in done.stdout, done.stdout)


def test_a_later_run_replaces_the_rows_of_a_page():
    where, bodies = apps.folder(), iter([(200, b"a b c"), (404, b""), (200, b"c d")])
    with source(lambda handler, _: next(bodies)) as server:
        for status, documents, words, failed in ((0, 1, 3, 0), (1, 0, 0, 1), (0, 1, 2, 0)):
            pipeline(server.url("page"), where=where, status=status)
            found = tables(where / "pipeline.db")
            apps.check([len(found[table]) for table in TABLES] == [documents, words, failed], found)


def test_a_database_that_fails_ends_the_run_with_words():
    with source(lambda handler, _: (200, b"a b")) as server:
        for path, words in (("/nowhere/x.db", "unable to open"), (str(pathlib.Path(__file__)), "not a database")):
            done = pipeline(server.url("page"), f"db={path}", status=1)
            apps.check(words in done.stderr and path in done.stderr, path, done.stderr)
    for words in (["--x"], ["timeout=x"], ["timeout=-1"], ["--goal", "http://127.0.0.1/"]):
        done = apps.run(PROGRAM, *words, status=2)
        apps.check("bad arguments" in done.stderr, words, done.stderr)


# ---- the end ----

def check_whole(path):
    """Each page has all its rows or none."""
    found = tables(path)
    words = collections.Counter(row[0] for row in found["words"])
    apps.check(words == {row[0]: 5 for row in found["documents"]}, found)
    apps.check({row[0] for row in found["documents"]} <= OWN, found)


def end_at(end, moment):
    path = apps.folder() / "pages.db"
    with apps.started(PROGRAM, "timeout=1000", f"db={path}") as process:
        apps.until(lambda: apps.children_of(process.pid) and moment in process.out.read_text(), moment)
        children = set(apps.children_of(process.pid))
        process.send_signal(end)
        status = process.wait(LONG)
        said = process.out.read_text()
        apps.check(status == (-end if end == signal.SIGKILL else 128 + end), moment, status, said)
        if end == signal.SIGKILL:
            apps.until(lambda: not children & apps.processes().keys(), "they end, too")
        apps.check(not children & apps.processes().keys(), end, moment, children)
    if path.exists() and moment:
        check_whole(path)


def test_the_end_at_any_moment_leaves_whole_rows_and_no_process():
    moments = ((signal.SIGINT, ""), (signal.SIGINT, " 1 of"), (signal.SIGTERM, " 5 of"), (signal.SIGINT, " 9 of"), (signal.SIGKILL, " 4 of"))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(end_at, *zip(*moments)))


def test_the_service_and_the_workers_are_killed():
    path = apps.folder() / "pages.db"
    with apps.started(PROGRAM, "timeout=1000", f"db={path}") as process:
        apps.until(lambda: " 9 of" in process.out.read_text(), "one page hangs")
        children = set(apps.children_of(process.pid))
        apps.check(len(children) > 1, children)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        apps.check(process.wait(LONG) == 0)
        said = process.out.read_text()
        apps.check("6 stored, 4 failed" in said and "hang: attempt 1 failed" in said, said)
    check_whole(path)
    apps.check(failures(path)["hang"], "no reason")


apps.main(globals())
