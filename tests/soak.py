#!/usr/bin/env python3
"""Runs the servers among the programs for long, with clients that come, stall, send garbage, reset and vanish, and says what
has grown. By hand, not in CI:

    tests/soak.py 600                    each server for ten minutes, one after the other
    tests/soak.py 600 chat framework     only those
    tests/soak.py 600 --at-once chat framework game

Every other client is served all the time, and what it is sent is checked. At the end it prints, for each server, the memory
(resident KiB), the descriptors, the threads and the children after the first fifth of the time and at the end, and how many
clients of each kind there were. Exit status 1: an answer was wrong or missing, or something has grown by more than a tenth.
"""
import contextlib
import os
import pathlib
import random
import socket
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


class Server:
    """A program that listens where it is told; `page`: a path that a GET must find, and what its answer contains."""

    def __init__(self, source, *arguments, page=("/", b"<html"), websocket=None):
        self.source, self.arguments, self.page, self.websocket = source, arguments, page, websocket


PAGE = ("--page", "{page}")
SERVERS = {
    "orchestrator": Server("11_apps/04_orchestrator.c", "--gateway", "{address}", page=("/dashboard/7", b"")),
    "chat": Server("11_apps/07_chat_server.c", "--listen", "{address}", "--quiet", *PAGE, websocket=b"/chat"),
    "framework": Server("12_projects/01_web_framework.c", "--listen", "{address}", page=("/users/1", b"Ada"),
                        websocket=b"/socket"),
    "analytics": Server("12_projects/03_analytics.c", "--listen", "{address}", *PAGE, websocket=b"/live"),
    "game": Server("12_projects/04_game_server.c", "--listen", "{address}", "--house", "8", *PAGE, websocket=b"/play"),
}


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=10)


class Soak:
    def __init__(self, name, server, seconds):
        self.name, self.server, self.seconds = name, server, seconds
        self.counts, self.wrong, self.lock = {}, [], threading.Lock()
        self.over = threading.Event()

    def count(self, kind):
        with self.lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1

    def served(self, random_):
        """The client that must be served."""
        path, part = self.server.page
        with connect(self.port) as s:
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while piece := s.recv(65536):
                answer += piece
        if not answer.startswith(b"HTTP/1.1 200") or part not in answer:
            with self.lock:
                self.wrong.append(answer[:200])

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
        """In the middle of a WebSocket, or of a request."""
        with connect(self.port) as s:
            s.sendall(UPGRADE % (self.server.websocket or b"/"))
            s.settimeout(0.2)
            with contextlib.suppress(OSError):
                s.recv(1000)
            if self.server.websocket:
                s.sendall(bytes([0x81, 0x85, 1, 2, 3, 4]) + random_.randbytes(random_.randrange(6)))

    def reads_nothing(self, random_):
        with connect(self.port) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.sendall(UPGRADE % self.server.websocket if self.server.websocket else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            self.over.wait(random_.uniform(0, 3))

    def client(self, seed):
        random_ = random.Random(seed)
        others = (self.garbage, self.stalls, self.resets, self.vanishes, self.reads_nothing)
        while not self.over.is_set():
            for kind in (self.served, random_.choice(others)):
                try:
                    kind(random_)
                    self.count(kind.__name__)
                except OSError as error:
                    if kind == self.served and not self.over.is_set():
                        with self.lock:
                            self.wrong.append(repr(error))
            self.over.wait(0.02)

    def family(self):
        """The server's process and its children."""
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
        """When the clients' connections are closed: the smallest of some."""
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

    def run(self):
        self.port = apps.free_port()
        program = apps.compiled(self.server.source, "-O2")
        page = (HERE.parent / "examples" / self.server.source).with_suffix(".html")
        words = [word.format(address=f"127.0.0.1:{self.port}", page=page) for word in self.server.arguments]
        where = apps.folder()
        with open(where / "log", "wb") as log:
            self.process = subprocess.Popen([str(program), *words], cwd=where, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            apps.until(lambda: apps.answers(self.port) or self.process.poll() is not None, f"{self.name} listens")
            self.phase(self.seconds / 5)
            first = self.quiet_figures()
            self.phase(self.seconds * 4 / 5)
            last = self.quiet_figures() if self.process.poll() is None else None
        finally:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait()
        return self.report(first, last, where)

    def report(self, first, last, where):
        if last is None:
            print(f"{self.name}: it has ended: {self.process.returncode}\n{(where / 'log').read_text()[-2000:]}")
            return False
        clients = ", ".join(f"{n} {kind}" for kind, n in sorted(self.counts.items()))
        print(f"{self.name}: {self.seconds} s: {clients}; wrong: {len(self.wrong)}", flush=True)
        grown = False
        for key, before in first.items():
            more = last[key] > before * 1.1 + (200 if key == "KiB" else 0)
            grown |= more
            print(f"    {key}: {before} -> {last[key]}" + (": GROWN" if more else ""), flush=True)
        for wrong in self.wrong[:3]:
            print(f"    {wrong}", flush=True)
        return not grown and not self.wrong


def main():
    words = [word for word in sys.argv[2:] if not word.startswith("-")]
    chosen = [Soak(name, server, float(sys.argv[1])) for name, server in SERVERS.items() if not words or name in words]
    if "--at-once" not in sys.argv:
        return 0 if all([soak.run() for soak in chosen]) else 1
    good = []
    threads = [threading.Thread(target=lambda soak=soak: good.append(soak.run())) for soak in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0 if len(good) == len(chosen) and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
