#!/usr/bin/env python3
"""Runs the programs for a long time, with peers that stall, send garbage, reset and vanish, and reports growth. Run it by
hand; CI does not:

    tests/soak.py 600                    each program for ten minutes, one after the other
    tests/soak.py 600 chat framework     only those
    tests/soak.py 600 --at-once chat framework game

Every second client of a server behaves well, and its replies are checked. The scraper also has a site that misbehaves, the ETL
pipeline a feed that does, and the task queue producers and workers that are killed; at the end their results are checked. For
each program it prints memory (resident KiB), descriptors, threads and processes after the first fifth of the time and at the
end, and how many peers of each kind there were. Exit status 1: a result was wrong or missing, or a figure has grown by more
than a tenth.
"""
import contextlib
import http.server
import importlib
import json
import os
import pathlib
import random
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "apps"))

import apps  # noqa: E402

UPGRADE = (b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
           b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")


def test_of(name):
    """Imports the test's module without running it."""
    apps.main = lambda _: None
    return importlib.import_module(name)


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=10)


class Soak:
    """A program under test: `arguments` start it, and `kinds` are what its clients do; the first must always work."""

    def __init__(self, name, source, *arguments, page=("/", b"<html"), websocket=None):
        self.name, self.source, self.arguments, self.page, self.websocket = name, source, arguments, page, websocket
        self.counts, self.wrong, self.lock = {}, [], threading.Lock()
        self.over = threading.Event()

    def count(self, kind):
        with self.lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1

    def fail(self, why):
        with self.lock:
            self.wrong.append(why)

    # ---- clients of a server ----

    def served(self, random_):
        """The client that behaves well."""
        path, part = self.page
        with connect(self.port) as s:
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while piece := s.recv(65536):
                answer += piece
        if not answer.startswith(b"HTTP/1.1 200") or part not in answer:
            self.fail(answer[:200])

    def garbage(self, random_):
        with connect(self.port) as s:
            s.sendall(random_.randbytes(random_.randrange(1, 20000)))
            s.settimeout(0.05)
            with contextlib.suppress(OSError):
                s.recv(1000)

    def stalls(self, random_):
        with connect(self.port) as s:
            s.sendall(b"GET / HTTP/1.1\r\nHo"[:random_.randrange(18)])
            self.over.wait(random_.uniform(0, 3))

    def resets(self, random_):
        s = connect(self.port)
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * random_.randrange(1, 30))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()

    def vanishes(self, random_):
        """Vanishes in the middle of a WebSocket, or of a request."""
        with connect(self.port) as s:
            s.sendall(UPGRADE % (self.websocket or b"/"))
            s.settimeout(0.2)
            with contextlib.suppress(OSError):
                s.recv(1000)
            if self.websocket:
                s.sendall(bytes([0x81, 0x85, 1, 2, 3, 4]) + random_.randbytes(random_.randrange(6)))

    def reads_nothing(self, random_):
        with connect(self.port) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.sendall(UPGRADE % self.websocket if self.websocket else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            self.over.wait(random_.uniform(0, 3))

    def kinds(self):
        return self.served, (self.garbage, self.stalls, self.resets, self.vanishes, self.reads_nothing)

    def client(self, seed):
        random_ = random.Random(seed)
        good, others = self.kinds()
        while not self.over.is_set():
            for kind in (good, random_.choice(others)):
                try:
                    kind(random_)
                    self.count(kind.__name__)
                except OSError as error:
                    if kind == good and not self.over.is_set():
                        self.fail(repr(error))
            self.over.wait(0.02)

    # ---- figures ----

    def family(self):
        """Returns the server's process and its children."""
        found, parents = {self.process.pid}, {}
        for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(status.parent.name)] = int(status.read_text().rsplit(")", 1)[1].split()[1])
        while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
            found |= more
        return found

    def figures(self):
        memory = descriptors = threads = 0
        pids = self.family()
        for pid in pids:
            with contextlib.suppress(OSError):
                status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
                memory += int(status.get("VmRSS", "0 kB").split()[0])
                threads += int(status["Threads"])
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        return {"KiB": memory, "descriptors": descriptors, "threads": threads, "processes": len(pids)}

    def quiet_figures(self):
        """Returns the least of several measurements, once the clients' connections are closed."""
        some = []
        for _ in range(20):
            some.append(self.figures())
            time.sleep(0.2)
        return {key: min(figures[key] for figures in some) for key in some[0]}

    def phase(self, seconds):
        self.over.clear()
        threads = [threading.Thread(target=self.client, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.5)
        self.over.set()
        for thread in threads:
            thread.join()

    # ---- the run ----

    def prepare(self):
        """Starts what the program needs; returns its arguments."""
        page = (HERE.parent / "examples" / self.source).with_suffix(".html")
        return [word.format(address=f"127.0.0.1:{self.port}", page=page) for word in self.arguments]

    def is_ready(self):
        return apps.answers(self.port)

    def finish(self):
        """Ends the program, and checks its results."""
        self.process.terminate()
        self.process.wait()

    def run(self, seconds):
        self.seconds, self.port, self.folder = seconds, apps.free_port(), apps.folder()
        self.program = apps.compiled(self.source, "-O2")
        words = self.prepare()
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen([str(self.program), *map(str, words)], cwd=self.folder, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, start_new_session=True)
        last = None
        try:
            apps.until(lambda: self.is_ready() or self.process.poll() is not None, f"{self.name} is ready")
            self.phase(self.seconds / 5)
            first = self.quiet_figures()
            self.phase(self.seconds * 4 / 5)
            if self.process.poll() is None:
                last = self.quiet_figures()
                self.finish()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        return self.report(first, last)

    def report(self, first, last):
        if last is None:
            print(f"{self.name}: it ended with exit code {self.process.returncode}\n{(self.folder / 'log').read_text()[-2000:]}")
            return False
        clients = ", ".join(f"{n} {kind}" for kind, n in sorted(self.counts.items()))
        print(f"{self.name}: {self.seconds} s: {clients}; wrong: {len(self.wrong)}", flush=True)
        grown = False
        for key, before in first.items():
            more = key != "KiB of Redis" and last[key] > before * 1.1 + (200 if key == "KiB" else 0)
            grown |= more
            print(f"    {key}: {before} -> {last[key]}" + (": GROWN" if more else ""), flush=True)
        for wrong in self.wrong[:3]:
            print(f"    {wrong}", flush=True)
        return not grown and not self.wrong


class Scraper(Soak):
    """Ten domains of 600 pages, each of which links to the next; some replies fail. The scraper's dashboard has clients."""

    PAGES = 600

    def prepare(self):
        domains = self.domains = [f"{letter}.localhost" for letter in "abcdefghij"]
        soak = self

        class Site(http.server.BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm, timeout = "HTTP/1.1", True, 20

            def log_message(self, *_):
                pass

            def do_GET(self):
                kind = random.randrange(20) if self.path != "/robots.txt" else 19
                self.close_connection = kind < 4
                soak.count(("site stalls", "site resets", "site sends garbage", "site cuts a page")[kind] if kind < 4 else "pages")
                if kind == 0:
                    soak.over.wait(3)
                elif kind == 1:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif kind == 2:
                    self.wfile.write(random.randbytes(3000))
                else:
                    self.send_page(cut=kind == 3)

            def send_page(self, cut):
                page = int(self.path[1:]) if self.path[1:].isdigit() else 0
                body = b"".join(b"<a href=/%d>next</a>" % (page + i) for i in (1, 2, 3) if page + i < soak.PAGES)
                if self.path == "/robots.txt":
                    body = b"User-agent: *\nDisallow: /never\n"
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body) + cut))
                self.end_headers()
                self.wfile.write(body)

        site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
        site.handle_error = lambda *_: None
        threading.Thread(target=site.serve_forever, daemon=True).start()
        delay = 0.8 * self.seconds / self.PAGES
        return [*super().prepare(), "--delay", delay, "--max-pages", self.PAGES, "--timeout", 2, "--stay", "--db", "soak.db",
                *(f"http://{domain}:{site.server_port}/" for domain in domains)]

    def finish(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        with contextlib.closing(sqlite3.connect(self.folder / "soak.db")) as db:
            states = dict(db.execute("SELECT state, count(*) FROM urls GROUP BY state"))
            if db.execute("SELECT count(DISTINCT url) - count(*) FROM urls").fetchone() != (0,) or states.get("page", 0) < 1000:
                self.fail(f"scraped: {states}")
        self.counts["URLs scraped"] = states.get("page", 0)


class Pipeline(Soak):
    """A feed that stalls, sends garbage, cuts lines and resets."""

    def prepare(self):
        self.test = test_of("11_05_etl_pipeline")
        self.next, self.ends = 0, False
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, daemon=True).start()
        (self.folder / "a.csv").write_text(self.test.HEADER)
        return ["a.csv", f"feed=127.0.0.1:{self.port}", "out=results", "timeout=2"]

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.feed, args=(connection,), daemon=True).start()

    def feed(self, connection):
        with contextlib.suppress(OSError), connection:
            asked = connection.makefile("rb").readline().split()
            if not asked:  # the program has given up
                return
            at = int(asked[1])
            self.count("connections of the feed")
            while not self.ends:
                kind = random.randrange(200)
                if kind < 3:
                    self.count(("feed stalls", "feed resets", "feed cuts a line")[kind])
                if kind == 0:
                    time.sleep(3)
                elif kind == 1:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                elif kind == 2:
                    connection.sendall(self.line(at)[:20])
                    return
                connection.sendall(b"".join(self.line(k) for k in range(at, at + 50)))
                at += 50
                self.next = max(self.next, at)
                time.sleep(0.02)
            connection.sendall(b"".join(self.line(k) for k in range(at, self.next)) + b"END\n")

    def line(self, k):
        if k % 100 == 99:
            return b"garbage %d \xff\n" % k
        return self.test.as_json(self.test.payment(k + 1)).encode() + b"\n"

    def is_ready(self):
        return self.next > 0

    def client(self, seed):
        self.over.wait()

    def finish(self):
        self.ends = True
        status = self.process.wait(60)
        found = [json.loads(line) for name in ("payments.jsonl", "rejects.jsonl")
                 for line in (self.folder / "results" / name).read_text(errors="replace").splitlines()]
        positions = sorted(row["position"] for row in found)
        self.counts["records loaded"] = len(positions)
        if status != 0 or positions != list(range(self.next)):
            self.fail(f"status {status}: {len(positions)} records of {self.next}, {len(set(positions))} of them different")


class Tasks(Soak):
    """Five workers on one Redis, one of which is killed and replaced at times; producers, some killed. The figures are
    those of the first worker; memory includes Redis."""

    def prepare(self):
        test = test_of("11_06_task_queue")
        self.queue = test.Queue()
        self.queue.start()
        self.workers = [self.worker(i) for i in range(1, 5)]
        return ["--worker", "--redis", self.queue.address, "--name", "w0", "--quiet"]

    def worker(self, i):
        return subprocess.Popen([str(self.program), "--worker", "--redis", self.queue.address, "--name", f"w{i}", "--quiet"],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def is_ready(self):
        return True

    def add(self, *words, kill=None):
        command = [str(self.program), "--enqueue", "noop", "--count", "50", "--redis", self.queue.address, *words]
        producer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kill is not None:
            time.sleep(kill)
            producer.kill()
        return producer.wait()

    def produces(self, random_):
        if self.add("--priority", str(random_.randrange(3))) != 0:
            self.fail("a producer failed")

    def is_killed(self, random_):
        self.add(kill=random_.uniform(0, 0.02))

    def garbage(self, random_):
        with socket.create_connection(("127.0.0.1", self.queue.server.port)) as s:
            s.sendall(random_.randbytes(random_.randrange(1, 2000)))

    def kills_a_worker(self, random_):
        with self.lock:
            i = random_.randrange(4)
            self.workers[i].kill()
            self.workers[i].wait()
            self.workers[i] = self.worker(i + 1)

    def kinds(self):
        return self.produces, (*[self.is_killed, self.garbage] * 5, self.kills_a_worker)

    def client(self, seed):
        if seed < 2:
            super().client(seed)

    def figures(self):
        memory = int(self.queue.cli("INFO", "memory").split("used_memory:")[1].split()[0]) // 1024
        return {**super().figures(), "KiB of Redis": memory}

    def quiet_figures(self):
        def all_done():
            metrics = self.queue.metrics()
            return metrics["tasks_done_total"] == metrics["tasks_enqueued_total"]

        apps.until(all_done, "all tasks are done")
        return super().quiet_figures()

    def finish(self):
        metrics = self.queue.metrics()
        for name in ("done", "taken_over", "repeated", "dead"):
            self.counts[f"tasks {name}"] = int(metrics[f"tasks_{name}_total"])
        if metrics["tasks_done_total"] != metrics["tasks_enqueued_total"] or metrics["tasks_dead"]:
            self.fail(str(metrics))
        for worker in [self.process, *self.workers]:
            worker.send_signal(signal.SIGINT)
            worker.wait()
        self.queue.server.stop()


PAGE = ("--page", "{page}")
SOAKS = [
    Scraper("scraper", "11_apps/03_web_scraper.c", "--listen", "{address}", *PAGE),
    Soak("orchestrator", "11_apps/04_orchestrator.c", "--gateway", "{address}", page=("/dashboard/7", b"")),
    Pipeline("etl", "11_apps/05_etl_pipeline.c"),
    Tasks("tasks", "11_apps/06_task_queue.c"),
    Soak("chat", "11_apps/07_chat_server.c", "--listen", "{address}", "--quiet", *PAGE, websocket=b"/chat"),
    Soak("framework", "12_projects/01_web_framework.c", "--listen", "{address}", page=("/users/1", b"Ada"), websocket=b"/socket"),
    Soak("analytics", "12_projects/03_analytics.c", "--listen", "{address}", *PAGE, websocket=b"/live"),
    Soak("game", "12_projects/04_game_server.c", "--listen", "{address}", "--house", "8", *PAGE, websocket=b"/play"),
]


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background, and programs inherit that
    seconds, words = float(sys.argv[1]), [word for word in sys.argv[2:] if not word.startswith("-")]
    chosen = [soak for soak in SOAKS if not words or soak.name in words]
    if "--at-once" not in sys.argv:
        return 0 if all([soak.run(seconds) for soak in chosen]) else 1
    good = []
    threads = [threading.Thread(target=lambda soak=soak: good.append(soak.run(seconds))) for soak in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0 if len(good) == len(chosen) and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
