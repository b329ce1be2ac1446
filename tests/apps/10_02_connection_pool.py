#!/usr/bin/env python3
"""examples/10_patterns/02_connection_pool.c: its rules, its goal, and no operation lost or doubled whatever happens to the
database meanwhile."""
import atexit
import contextlib
import os
import re
import signal
import socket
import subprocess
import threading

import apps

POOL = apps.compiled("10_patterns/02_connection_pool.c")
CLOSING = contextlib.ExitStack()
atexit.register(CLOSING.close)
SERVERS = []

RULES = """\
  connections for 7 uses, if 3 wear one out                     3
  connections after the next use, as the last is too old        4
  operations that failed                                        1
  returned, of those acquired                                   9
  attempts to connect to a server that starts                   3
  checks of a connection that has idled                         1
  connections found broken, and replaced                        1
  waits in line that reached their limit                        1
    no connection was free within 0.05 s
  waits in line that were cancelled                             1
  waits in line that the next one has ended well                1
"""
ACCOUNT = """\
  operations at once                                         1000
  done, with the right answer                                1000
  failed                                                        0
  connections in use at most                                   10
  open beyond the size of the pool                              0
  returned, of those acquired                                1000
  opened 10 times, 0 were broken, 0 attempts to connect failed
  done, but not in the table                                    0
  rows in the table                                          1000
"""


def server():
    """One PostgreSQL server for all tests."""
    if not SERVERS:
        SERVERS.append(CLOSING.enter_context(apps.postgres()))
    return SERVERS[0]


def sql(text, port=None):
    """What the server answers, "" if it does not."""
    conninfo = f"host=127.0.0.1 port={port or server().port} user=postgres dbname=postgres connect_timeout=5"
    return subprocess.run(["psql", "-XAtq", conninfo, "-c", text], capture_output=True, text=True).stdout.strip()


def schemas():
    return sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'conc_pool%'")


def paid(process):
    """How many payments the program has made."""
    return int(sql(f"SELECT count(*) FROM conc_pool_{process.pid}.payments") or 0)


def figure(out, what):
    found = re.search(rf"^  {re.escape(what)} +(-?\d+)(.*)$", out, re.MULTILINE)
    apps.check(found, "no figure:", what, "in", out)
    apps.check(not found[2], found[0], "\n", out)
    return int(found[1])


def end(process, status):
    """What the program printed when it ends; it has to end with that status."""
    code = process.wait(timeout=60 * apps.SLOW)
    out = process.out.read_text()
    apps.check(status is None or code == status, "status", code, "\n", out[-3000:])
    return out


def accounted(out, operations):
    """Each operation is done or failed, those done are in the table, and each connection came back."""
    done, failed = figure(out, "done, with the right answer"), figure(out, "failed")
    apps.check(done + failed == operations, out)
    apps.check(figure(out, "connections in use at most") == 10, out)
    apps.check(figure(out, "open beyond the size of the pool") == 0, out)
    figure(out, "returned, of those acquired")
    apps.check("failed" not in out or failed == 0 or re.search(r"^    operation \d+: \S", out, re.MULTILINE), out)
    return done, failed


@contextlib.contextmanager
def busy(operations, limit=60, before=200):
    """The program in the middle of its operations on PostgreSQL."""
    with apps.started(POOL, "--goal", server().conninfo, operations, limit) as process:
        apps.until(lambda: paid(process) > before or process.poll() is not None, "payments")
        apps.check(process.poll() is None, "it has ended already:", process.out.read_text())
        yield process


def test_the_rules_and_a_thousand_operations_on_sqlite():
    for seed in "", 1, 2:
        out = apps.run(POOL, CONC_CLOCK="virtual", CONC_SEED=seed).stdout
        start = "SQLite: 1000 operations over 10 connections\n" + RULES + ACCOUNT + "PostgreSQL: none is named."
        apps.check(out.startswith(start), out)
        apps.check("initdb" in out, out)


def test_the_same_on_both_databases():
    where = apps.folder()
    out = apps.run(POOL, DATABASE=server().conninfo, TMPDIR=where).stdout
    expected = "".join(f"{name}: 1000 operations over 10 connections\n{RULES}{ACCOUNT}" for name in ("SQLite", "PostgreSQL"))
    apps.check(out == expected, out)
    apps.check(not list(where.iterdir()) and not schemas(), "something is left behind")


def test_goal():
    out = apps.run(POOL, "--goal", DATABASE=server().conninfo).stdout
    goals = re.findall(r"goal: 1000 at once; measured: 1000 at once, \d+ a second, peak memory \d+\.\d MB", out)
    apps.check(len(goals) == 2 and out.count(ACCOUNT) == 2, out)
    print("\n".join(goals))


def test_the_server_is_restarted_in_the_middle():
    with busy(10000) as process:
        server().restart(signal.SIGQUIT)
        out = end(process, 0)
        apps.check(accounted(out, 10000) == (10000, 0), out)
        apps.check(figure(out, "rows in the table") == 10000, out)
        figures = re.search(r"opened (\d+) times, (\d+) were broken, (\d+) attempts", out)
        apps.check(int(figures[1]) >= 20 and int(figures[3]) > 0, out)


def test_connections_are_killed_in_the_middle():
    with busy(10000) as process:
        for _ in range(3):
            before = paid(process)
            sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%payments%' AND "
                "pid <> pg_backend_pid()")
            apps.until(lambda: paid(process) > before or process.poll() is not None, "payments go on")
        out = end(process, 0)
        apps.check(accounted(out, 10000) == (10000, 0), out)
        apps.check(int(re.search(r"(\d+) were broken", out)[1]) > 0, out)


def test_the_server_is_gone_for_good():
    with busy(10000, limit=2) as process:
        server().stop(signal.SIGQUIT)
        out = end(process, 1)
        server().start()
        apps.until(lambda: sql("SELECT 1"), "the server is ready")
        done, failed = accounted(out, 10000)
        apps.check(done and failed, out)
        apps.check("the table is left behind: connection to server" in out, out)
        apps.check("failed: the payments could not be looked up within 2 s" in out, out)
        name = f"conc_pool_{process.pid}"
        rows = int(sql(f"SELECT count(*) FROM {name}.payments"))
        apps.check(done <= rows <= done + 10, done, "done", rows, "rows")
        sql(f"DROP SCHEMA {name} CASCADE")


def backends():
    return [int(pid) for pid in sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND "
                                    "pid <> pg_backend_pid()").split()]


def test_connections_hang():
    with busy(5000, limit=2) as process:
        stopped = backends()
        try:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            out = end(process, 1)
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        done, failed = accounted(out, 5000)
        apps.check("not done within 2 s" in out, out)
        rows = figure(out, "rows in the table")
        apps.check(done <= rows <= done + len(stopped), out)


def test_connections_hang_for_a_while():
    with busy(5000) as process:
        stopped = backends()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        before = process.out.read_text()
        apps.until(lambda: process.out.read_text().count("\n") > before.count("\n"), "a line of progress")
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        out = end(process, 0)
        apps.check(accounted(out, 5000) == (5000, 0), out)


def interrupt(process):
    process.send_signal(signal.SIGINT)
    return end(process, 130)


def test_interrupted_on_sqlite():
    moments = [lambda files: files, lambda files: any(f.endswith("-wal") for f in files)]
    for moment in moments:
        where = apps.folder()
        with apps.started(POOL, TMPDIR=where) as process:
            apps.until(lambda: moment([str(f) for f in where.rglob("*")]), "the moment")
            interrupt(process)
        apps.check(not list(where.iterdir()), "left behind:", *where.rglob("*"))


def test_interrupted_on_postgresql():
    for before in 0, 500:
        with busy(20000, before=before) as process:
            interrupt(process)
        apps.check(not schemas(), "left behind:", schemas())
    with apps.started(POOL, server().conninfo) as process:
        apps.until(schemas, "the schema")
        interrupt(process)
    apps.check(not schemas(), "left behind:", schemas())


def test_no_server():
    done = apps.run(POOL, f"host=127.0.0.1 port={apps.free_port()} user=postgres", status=1)
    apps.check("Connection refused" in done.stderr, done.stderr)
    done = apps.run(POOL, "nonsense", status=1)
    apps.check("nonsense" in done.stderr, done.stderr)


def test_what_is_no_server():
    """It sends garbage, or too much of it; it closes early; it hangs."""
    def closes(s): s.close()
    def garbage(s): s.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), s.recv(1), s.close()
    def hangs(s): s.recv(10000)
    def too_much(s):
        with contextlib.suppress(OSError):
            while True:
                s.sendall(b"E\x7f\xff\xff\xff" + b"x" * 65536)
    for serve in closes, garbage, hangs, too_much:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            kept = []

            def accept():
                with contextlib.suppress(OSError):
                    while True:
                        kept.append(listener.accept()[0])
                        serve(kept[-1])
            threading.Thread(target=accept, daemon=True).start()
            port = listener.getsockname()[1]
            done = apps.run(POOL, f"host=127.0.0.1 port={port} user=postgres sslmode=disable gssencmode=disable", 10, 0.5, status=1)
            apps.check(done.stderr.startswith("conc: app at"), serve.__name__, done.stderr)
            listener.shutdown(socket.SHUT_RDWR)
            for s in kept:
                s.close()


def test_the_sqlite_file_is_spoilt():
    def removed(path): path.unlink()

    def garbage(path):
        for file in path, path.with_name("pool.db-wal"):
            file.write_bytes(b"garbage" * 10000)
    for spoil, words in (removed, "unable to open database file"), (garbage, "malformed|not a database"):
        where = apps.folder()
        with apps.started(POOL, TMPDIR=where) as process:
            apps.until(lambda: "connections for 7 uses" in process.out.read_text(), "the first line")
            spoil(next(where.glob("*/pool.db")))
            out = end(process, 1)
            apps.check(re.search(f"conc: app at .*: ({words})", out), spoil.__name__, out)
        apps.check(not list(where.iterdir()), "left behind:", *where.rglob("*"))


def test_the_disk_is_full():
    where = apps.folder()
    done = apps.run("sh", "-c", f"trap '' XFSZ; ulimit -f 300; exec {POOL} --goal", status=1, TMPDIR=where)
    out = done.stdout + done.stderr
    apps.check(re.search(r"operation \d+: .*(I/O|full)", out), out)
    done, failed = accounted(out, 1000)
    apps.check(failed and figure(out, "rows in the table") == done, out)
    apps.check(not list(where.iterdir()), "left behind:", *where.rglob("*"))


def test_arguments():
    for words in ["--nonsense"], ["--goal", "--goal"], ["dbname=x", "0"], ["dbname=x", "5", "nan"], ["dbname=x", "5", "5", "5"]:
        apps.check("usage" in apps.run(POOL, *words, status=2).stderr, words)


apps.main(globals())
