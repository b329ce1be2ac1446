#!/usr/bin/env python3
"""examples/10_patterns/02_connection_pool.c: its rules, its goal, and that no operation is lost or duplicated, whatever happens
to the database meanwhile."""
import atexit
import contextlib
import itertools
import os
import re
import select
import signal
import socket
import subprocess
import threading

import apps

POOL = apps.compiled("10_patterns/02_connection_pool.c")
CLOSING = contextlib.ExitStack()
atexit.register(CLOSING.close)
SERVERS = []
LIMIT = 4 if apps.SANITIZE else 1.5  # seconds, for hanging calls

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
  the turn of the next in line                                  2
  the turn of the last in line                                  3
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


# Payments from number 100 on wait while another session holds advisory lock 1.
GATE = """
CREATE FUNCTION public.pass() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id >= 100 THEN
        PERFORM pg_advisory_xact_lock_shared(1);
    END IF;
    RETURN NEW;
END $$;
CREATE FUNCTION public.build() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE made record;
BEGIN
    FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table' LOOP
        EXECUTE format('CREATE TRIGGER gate BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION public.pass()',
                       made.object_identity);
    END LOOP;
END $$;
CREATE EVENT TRIGGER gates ON ddl_command_end WHEN TAG IN ('CREATE SCHEMA') EXECUTE FUNCTION public.build();
"""


def server():
    """One PostgreSQL server for all tests."""
    if not SERVERS:
        SERVERS.append(CLOSING.enter_context(apps.postgres()))
        sql(GATE)
    return SERVERS[0]


def psql():
    return ["psql", "-XAtq", server().conninfo + " connect_timeout=5"]


def sql(text):
    """Returns the server's answer; "" if there is none."""
    return subprocess.run([*psql(), "-c", text], capture_output=True, text=True).stdout.strip()


def schemas():
    return sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'conc_pool%'")


def backends():
    """Returns the program's connections that wait in the middle of a payment."""
    return [int(pid) for pid in sql("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'").split()]


@contextlib.contextmanager
def busy(limit=60):
    """The program in the middle of its operations on PostgreSQL: 100 are done, and ten wait for a lock until process.unlock()
    is called."""
    server()
    with subprocess.Popen(psql(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as locker:
        locker.stdin.write("SELECT 'locked' FROM pg_advisory_lock(1);\n")
        locker.stdin.flush()
        try:
            apps.check(locker.stdout.readline() == "locked\n", "no lock")
            with apps.started(POOL, "--goal", server().conninfo, 1000, limit) as process:
                apps.until(lambda: len(backends()) == 10, "ten wait for the lock")
                process.unlock = locker.stdin.close
                yield process
        finally:
            locker.kill()


def progresses(process):
    before = process.out.read_text()
    apps.until(lambda: process.out.read_text() != before, "a line of progress")


def figure(out, what):
    found = re.search(rf"^  {re.escape(what)} +(-?\d+)(.*)$", out, re.MULTILINE)
    apps.check(found, "no figure:", what, "in", out)
    apps.check(not found[2], found[0], "\n", out)
    return int(found[1])


def end(process, status):
    """Returns the program's output when it ends; it must end with this status."""
    code = process.wait(timeout=60 * apps.SLOW)
    out = process.out.read_text()
    apps.check(code == status, "status", code, "\n", out[-3000:])
    return out


def accounted(out):
    """Each operation is done or failed with a text, and each connection was returned; returns how many are done and failed."""
    done, failed = figure(out, "done, with the right answer"), figure(out, "failed")
    apps.check(done + failed == 1000, out)
    apps.check(figure(out, "connections in use at most") == 10, out)
    apps.check(figure(out, "open beyond the size of the pool") == 0, out)
    apps.check(not failed or re.search(r"^    operation \d+: \S", out, re.MULTILINE), out)
    figure(out, "returned, of those acquired")
    return done, failed


def all_done(process):
    """The program ends well, and all operations are done. How many connections were opened, were broken, and how many attempts to
    connect failed."""
    out = end(process, 0)
    apps.check(accounted(out) == (1000, 0) and figure(out, "rows in the table") == 1000, out)
    apps.check(not schemas(), "left behind:", schemas())
    return map(int, re.search(r"opened (\d+) times, (\d+) were broken, (\d+) attempts", out).groups())


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
    with busy() as process:
        server().stop(signal.SIGQUIT)
        progresses(process)
        server().start()
        opened, broken, attempts = all_done(process)
        apps.check(opened == 20 and broken == 10 and attempts > 0, opened, broken, attempts)


def test_connections_are_killed_in_the_middle():
    with busy() as process:
        for _ in range(2):
            killed = backends()
            sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            apps.until(lambda: len(backends()) == 10 and not set(backends()) & set(killed), "new connections")
        process.unlock()
        opened, broken, _ = all_done(process)
        apps.check(opened == 30 and broken == 20, opened, broken)


def test_answers_are_lost():
    """Between program and server: each 100th payment reaches the server, and its answer is lost with the connection."""
    server()
    numbers = itertools.count(1)

    def forward(client):
        with client, socket.create_connection(("127.0.0.1", server().port)) as upstream:
            while (ready := select.select([client, upstream], [], [])[0]):
                data = ready[0].recv(65536)
                if not data:
                    return
                if ready[0] is client:
                    lost = b"INSERT INTO payments" in data and next(numbers) % 100 == 0
                    upstream.sendall(data)
                    if lost:
                        upstream.recv(65536)
                        return
                else:
                    client.sendall(data)

    def accept(listener):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=forward, args=[listener.accept()[0]], daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=[listener], daemon=True).start()
        port = listener.getsockname()[1]
        out = apps.run(POOL, "--goal", f"host=127.0.0.1 port={port} user=postgres sslmode=disable gssencmode=disable").stdout
    apps.check(accounted(out) == (1000, 0) and figure(out, "rows in the table") == 1000, out)
    broken = int(re.search(r"(\d+) were broken", out)[1])
    apps.check(next(numbers) == 1011 and broken == 10, broken, out)


def test_the_server_is_gone_for_good():
    with busy(LIMIT) as process:
        server().stop(signal.SIGQUIT)
        out = end(process, 1)
        server().start()
    apps.until(lambda: sql("SELECT 1"), "the server is ready")
    done, failed = accounted(out)
    apps.check(done == 100 and failed, out)
    apps.check(re.search(r"attempts to connect failed\n    .*Connection refused", out), out)
    apps.check("the table is left behind: connection to server" in out, out)
    apps.check(f"failed: the payments could not be looked up within {LIMIT} s" in out, out)
    rows = int(sql(f"SELECT count(*) FROM conc_pool_{process.pid}.payments"))
    sql(f"DROP SCHEMA conc_pool_{process.pid} CASCADE")
    apps.check(rows == done, done, "done,", rows, "rows")


def test_payments_hang_and_are_cancelled():
    with busy(LIMIT) as process:
        apps.until(lambda: "measured" in process.out.read_text(), "the limit")
        process.unlock()
        out = end(process, 1)
    done, failed = accounted(out)
    apps.check(failed and f": not done within {LIMIT} s" in out, out)
    apps.check(figure(out, "rows in the table") == done, out)
    apps.check("opened 10 times, 0 were broken" in out, out)


def test_connections_hang():
    """A stopped server process does not even take a cancel: the connection is given up."""
    with busy(LIMIT) as process:
        stopped = backends()
        try:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            apps.until(lambda: "measured" in process.out.read_text(), "the limit")
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        out = end(process, 1)
    done, failed = accounted(out)
    apps.check(failed and f": not done within {LIMIT} s" in out, out)
    apps.check(figure(out, "rows in the table") == done and not schemas(), out)


def test_connections_hang_for_a_while():
    with busy() as process:
        stopped = backends()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        process.unlock()
        progresses(process)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        opened, broken, _ = all_done(process)
        apps.check(opened == 10 and broken == 0, opened, broken)


def interrupt(process):
    process.send_signal(signal.SIGINT)
    return end(process, 130)


def test_interrupted_on_sqlite():
    for moment in "*/*", "*/pool.db", "*/*-wal":
        where = apps.folder()
        with apps.started(POOL, TMPDIR=where) as process:
            apps.until(lambda: list(where.glob(moment)), moment)
            interrupt(process)
        apps.check(not list(where.iterdir()), "left behind:", *where.rglob("*"))


def test_interrupted_on_postgresql():
    with apps.started(POOL, server().conninfo) as process:
        apps.until(schemas, "the schema")
        interrupt(process)
    apps.check(not schemas(), "left behind:", schemas())
    with busy() as process:
        interrupt(process)
    apps.check(not schemas(), "left behind:", schemas())


def test_no_server():
    done = apps.run(POOL, f"host=127.0.0.1 port={apps.free_port()} user=postgres", status=1)
    apps.check("Connection refused" in done.stderr, done.stderr)
    done = apps.run(POOL, "nonsense", status=1)
    apps.check("nonsense" in done.stderr, done.stderr)


def test_what_is_no_server():
    """The server sends garbage, or too much; it closes early; it hangs."""
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
    for spoil, words in (removed, "unable to open database file"), (garbage, "file is not a database"):
        where = apps.folder()
        with apps.started(POOL, TMPDIR=where) as process:
            apps.until(lambda: "connections for 7 uses" in process.out.read_text(), "the first line")
            spoil(next(where.glob("*/pool.db")))
            out = end(process, 1)
            apps.check(re.search(f"conc: app at .*pool.db: {words}", out), spoil.__name__, out)
        apps.check(not list(where.iterdir()), "left behind:", *where.rglob("*"))


def test_the_disk_is_full():
    where = apps.folder()
    done = apps.run("sh", "-c", f"trap '' XFSZ; ulimit -f 300; exec {POOL} --goal", status=1, TMPDIR=where)
    out = done.stdout + done.stderr
    apps.check(re.search(r"operation \d+: .*(I/O|full)", out), out)
    done, failed = accounted(out)
    apps.check(failed and figure(out, "rows in the table") == done, out)
    apps.check(not list(where.iterdir()), "left behind:", *where.rglob("*"))


def test_arguments():
    for words in ["--nonsense"], ["--goal", "--goal"], ["dbname=x", "0"], ["dbname=x", "5", "nan"], ["dbname=x", "5", "5", "5"]:
        apps.check("usage" in apps.run(POOL, *words, status=2).stderr, words)


apps.main(globals())
