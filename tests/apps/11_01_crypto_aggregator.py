#!/usr/bin/env python3
"""Tests of examples/11_apps/01_crypto_aggregator.c."""
import contextlib
import csv
import functools
import http.server
import os
import pathlib
import re
import signal
import socket
import threading

import apps

NAMES = ("alpha", "beta", "gamma")
HEADER = ["time", "average", "volatility", *NAMES]
FAST = "paths=100"


@functools.cache
def program():
    return apps.compiled("11_apps/01_crypto_aggregator.c")


class Exchange(http.server.ThreadingHTTPServer):
    """An exchange in this process: answer(number of the call) returns a status and a body, or None to hang."""
    daemon_threads = True

    def __init__(self, answer):
        self.calls, self.answer = [], answer
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request, client_address):
        pass  # clients leave


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.calls.append(self.path)
        answer = self.server.answer(len(self.server.calls))
        if answer is None:
            self.close_connection = True
            return
        status, body = answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def exchanges(*answers):
    """The arguments with their addresses, and the exchanges."""
    servers = [Exchange(answer) for answer in answers]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield [f"{name}=127.0.0.1:{server.server_port}" for name, server in zip(NAMES, servers)], servers
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def price(value):
    return lambda call: (200, b'{"price": %d}' % value)


def says(body, status=200):
    return lambda call: (status, body)


def rows_of(path):
    """Returns all rows of the file, which must have one header and whole rows with the right averages."""
    text = path.read_text()
    apps.check(text.endswith("\n"), "half a row:", text[-200:])
    header, *rows = csv.reader(text.splitlines())
    apps.check(header == HEADER, header)
    for row in rows:
        apps.check(len(row) == len(HEADER) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row[0]), row)
        prices = [float(text) for text in row[3:] if text]
        apps.check(prices and abs(sum(prices) / len(prices) - float(row[1])) < 1e-4, row)
        apps.check(float(row[2]) >= 0, row)
    return rows


def calls_in_a_second(out):
    return int(re.search(r"at most (\d+) in a second \(limit: 5\)", out)[1])


def test_the_goal_with_its_own_exchanges():
    """Two rounds as fast as the limit allows; gamma fails in the second. The program checks its heartbeats."""
    where = apps.folder()
    out = apps.run(program(), "--goal", "rounds=2", cwd=where).stdout
    apps.check("on the loop" in out and "0 heartbeats meanwhile" in out, out)
    alive = re.search(r"in a process +\S+ s, (\d+) heartbeats", out)
    apps.check(int(alive[1]) > 0, out)
    apps.check("6 calls, " in out and calls_in_a_second(out) <= 5, out)
    apps.check(re.findall("without.*", out) == ["without gamma: status 503"], out)
    rows = rows_of(where / "prices.csv")
    apps.check([[bool(text) for text in row[3:]] for row in rows] == [[True] * 3, [True, True, False]], rows)


def test_the_limit_exactly():
    done = apps.run(program(), "--limiter", CONC_CLOCK="virtual")
    times = [0, 0, 0] + [i / 2 for i in range(1, 10)]
    lines = [f"{t:.1f} s: call {i + 1}" for i, t in enumerate(times)]
    apps.check(done.stdout == "\n".join([*lines, "at most 5 in a second (limit: 5)\n"]), done.stdout)


def test_all_are_asked_at_once_and_bad_answers_are_left_out():
    """No exchange answers a call before all have got it. The index is that of the averages 150, 300, 150."""
    barrier, arrivals = threading.Barrier(3), []

    def together(answer):
        def wait(call):
            arrivals.append(answer)
            barrier.wait(20 * apps.SLOW)
            return answer(call)
        return wait
    bad = [says(b"", 500), says(b'{"price": -1}'), says(b"<html>")]
    alpha = together(lambda call: price((100, 300, 100)[call - 1])(call))
    beta = together(lambda call: price((200, 300, 200)[call - 1])(call))
    gamma = together(lambda call: bad[call - 1](call))
    where = apps.folder()
    with exchanges(alpha, beta, gamma) as (words, _):
        out = apps.run(program(), *words, "rounds=3", "interval=0", "paths=2000", f"timeout={20 * apps.SLOW}", cwd=where).stdout
    apps.check(len(arrivals) == 9 and all(len(set(arrivals[i:i + 3])) == 3 for i in (0, 3, 6)), "round by round", arrivals)
    apps.check(calls_in_a_second(out) <= 5 and "9 calls, " in out, out)
    for said in ("round 1: without gamma: status 500", "round 2: without gamma: the answer has no price",
                 "round 3: without gamma: the answer has no price", "round 1: average 150.0000 of 2",
                 "round 2: average 300.0000 of 2"):
        apps.check(said + "\n" in out, said, out)
    rows = rows_of(where / "prices.csv")
    apps.check([row[1] for row in rows] == ["150.0000", "300.0000", "150.0000"] and all(row[5] == "" for row in rows), rows)
    apps.check(rows[0][2] == "0.0000" and abs(float(rows[2][2]) - 69.3) < 5, rows)  # 100 log 2


def test_more_bad_exchanges():
    """One hangs, one hangs up, one sends too much; no exchange is there. None of them stops the one that answers."""
    gate = threading.Event()
    closed = f"gamma=127.0.0.1:{apps.free_port()}"
    for answer, why in ((lambda call: gate.wait(20 * apps.SLOW), "no complete answer"), (lambda call: None, "Empty reply"),
                        (says(b" " * 100000), "larger than"), (says(b"[" * 4000), "no price"), (None, "connect")):
        where = apps.folder()
        with exchanges(price(100), price(200), answer or price(1)) as (words, _):
            out = apps.run(program(), *words, *([] if answer else [closed]), "rounds=1", f"timeout={0.3 * apps.SLOW}", FAST,
                           cwd=where).stdout
            gate.set()
            gate.clear()
        apps.check(why in out and "round 1: without gamma: " in out and "round 1: average 150.0000 of 2\n" in out, why, out)
        (row,) = rows_of(where / "prices.csv")
        apps.check(row[3:] == ["100.00", "200.00", ""], row)


def test_all_failing_writes_nothing():
    where = apps.folder()
    with exchanges(*[says(b"", 503)] * 3) as (words, servers):
        done = apps.run(program(), *words, "rounds=1", FAST, cwd=where, status=1)
        apps.check([server.calls for server in servers] == [["/price"]] * 3)
    apps.check(done.stdout.count("status 503") == 3, done.stdout)
    apps.check("round 1: no exchange answers, nothing is written" in done.stdout, done.stdout)
    apps.check("no exchange has answered" in done.stderr and not list(where.iterdir()), done.stderr)


def test_rows_are_added_to_the_file():
    """Under one header; half a row that another program left does not spoil the next."""
    where = apps.folder()
    file = where / "other.csv"
    with exchanges(*map(price, (1, 2, 3))) as (words, _):
        words += ["rounds=1", FAST, f"file={file}"]
        apps.run(program(), *words)
        apps.run(program(), *words)
        apps.check(len(rows_of(file)) == 2, file.read_text())
        with open(file, "a") as half:
            half.write("2026-01")
        apps.run(program(), *words)
        lines = file.read_text().splitlines()
        apps.check(lines[3] == "2026-01" and lines[4].endswith(",2.0000,0.0000,1.00,2.00,3.00"), lines)
        done = apps.run(program(), *words, "file=/dev/full", status=1)
        apps.check("No space left" in done.stderr, done.stderr)
        done = apps.run(program(), *words, f"file={where}/none/x", status=1)
        apps.check("No such file" in done.stderr, done.stderr)


def test_ctrl_c_leaves_whole_rows_and_no_process():
    moments = ("", "round 1: average", "round 1: volatility")
    with contextlib.ExitStack() as stack:
        folders = [apps.folder() for _ in moments]
        runs = [stack.enter_context(apps.started(program(), "rounds=100", "interval=0", cwd=where)) for where in folders]
        for process, moment, where in zip(runs, moments, folders):
            apps.until(lambda: apps.children_of(process.pid, deep=True) and moment in process.out.read_text(), moment)
            children = apps.children_of(process.pid, deep=True)
            process.send_signal(signal.SIGINT)
            apps.check(process.wait(30 * apps.SLOW) == 130, moment, process.out.read_text())
            apps.until(lambda: all(map(apps.is_gone, children)), "all have ended")
            said, file = process.out.read_text(), where / "prices.csv"
            rows = rows_of(file) if file.exists() else []
            apps.check(len(rows) - said.count(": volatility index") in (0, 1), rows, said)


def test_processes_die():
    """A killed worker costs an index, a killed exchange its prices; exchanges end with the program, even if it is killed."""
    where = apps.folder()
    with exchanges(price(1), price(2)) as (words, _), \
            apps.started(program(), *words, "rounds=100", "interval=0", "paths=1000000000", cwd=where) as process:
        def of_kind(is_exchange):
            found = []
            for pid in apps.children_of(process.pid, deep=True):
                with contextlib.suppress(OSError):  # it has just ended
                    command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                    found += [pid] if (b"--exchange" in command) == is_exchange else []
            return found

        def worker_is_missed():
            for pid in of_kind(False):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return "volatility index unknown" in process.out.read_text()
        apps.until(lambda: "round 1: average" in process.out.read_text(), "round 1")
        for pid in of_kind(True):
            os.kill(pid, signal.SIGKILL)
        apps.until(lambda: "round 2: without gamma: Failed to connect" in process.out.read_text(), "gamma is missed")
        apps.until(worker_is_missed, "a row without an index")
        children = apps.children_of(process.pid, deep=True)
        process.kill()
        apps.until(lambda: all(map(apps.is_gone, children)), "they end")


def test_bad_arguments():
    for words in (["x"], ["--x"], ["rounds=0"], ["rounds=x"], ["interval=-1"], ["interval=nan"], ["x=1"], ["file="],
                  ["--exchange", "x", "y"]):
        done = apps.run(program(), *words, status=2)
        apps.check("bad arguments" in done.stderr, words, done.stderr)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = apps.run(program(), "--exchange", "beta", f"127.0.0.1:{taken.getsockname()[1]}", status=1)
        apps.check("in use" in done.stderr, done.stderr)


apps.main(globals())
