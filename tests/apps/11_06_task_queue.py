#!/usr/bin/env python3
"""examples/11_apps/06_task_queue.c: workers on a real Redis, which are killed, frozen and stopped, as Redis is."""
import concurrent.futures
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import apps
from apps import check, until

os.environ.pop("REDIS", None)
os.environ.pop("PASSWORD", None)
TASKS = apps.compiled("11_apps/06_task_queue.c")


POOL = concurrent.futures.ThreadPoolExecutor(16)


def early(test):
    """A test that mostly waits starts immediately, in a thread."""
    is_wanted = all(word in test.__name__ for word in sys.argv[1:])
    return POOL.submit(test).result if is_wanted else test


class Queue:
    """A Redis with an append-only file, and the tests' operations on it."""

    def __init__(self, *options):
        port, where = apps.free_port(), apps.folder()
        argv = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", where, "--appendonly", "yes",
                "--appendfsync", "always", *options]
        self.server = apps.Server(argv, port, where)
        self.address = f"127.0.0.1:{port}"

    def __enter__(self):
        self.start()
        return self

    def start(self):
        self.server.start()
        until(lambda: self.cli("PING") in ("PONG", "NOAUTH Authentication required."), "Redis has read its file")

    def __exit__(self, *_):
        self.server.stop()

    def run(self, *words, **more):
        return apps.run(TASKS, *words, "--redis", self.address, **more).stdout

    def add(self, kind, data="", **options):
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return self.run("--enqueue", kind, "--data", data, *words).strip()

    def worker(self, name="w", *options, **more):
        return apps.started(TASKS, "--worker", "--redis", self.address, "--name", name, *options, **more)

    def cli(self, *words):
        done = subprocess.run(["redis-cli", "-p", str(self.server.port), *map(str, words)], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def metrics(self):
        return {name: float(value) for name, value in (line.split(" ") for line in self.run("--metrics").splitlines())}

    def state(self, task):
        return self.cli("HGET", f"tasks:task:{task}", "state")

    def until_state(self, task, *states):
        until(lambda: self.state(task) in states, f"{task} is {states}")

    def until_done(self, *names):
        for name in names:
            self.until_state(name, "done")


def said(process):
    return process.out.read_text()


def ended(process, *statuses):
    status = process.wait(timeout=20 * apps.SLOW)
    check(status in statuses, "status", status, said(process)[-2000:])


def finished(process):
    """Returns the tasks that the worker reports as done, in order."""
    return re.findall(r"^ +\S+ +(\S+) +done", said(process), re.MULTILINE)


def interrupted(process, how=signal.SIGINT, *more):
    process.send_signal(how)
    ended(process, 128 + how, *more)


# ---- what the exercise asks for ----


def test_priorities_are_the_order_of_one_worker():
    with Queue() as q:
        for name in ("a0", "b0", "c1", "d2", "e1", "f2"):
            q.add("noop", id=name, priority=name[1])
        with q.worker("w", "--slots", "1") as w:
            until(lambda: len(finished(w)) == 6, "all are done")
            check(finished(w) == ["d2", "f2", "c1", "e1", "a0", "b0"], finished(w))


@early
def test_a_task_does_not_run_before_its_time():
    with Queue() as q, q.worker("w", "--slots", "1") as w:
        now = int(q.cli("TIME").split()[0])
        q.add("noop", id="hours", at=now + 3600)
        q.add("noop", id="second", at=now + 2)
        q.add("noop", id="first", delay=0.6)
        q.add("noop", id="past", at=now - 3600)
        q.until_done("past", "first", "second")
        check(q.state("hours") == "delayed" and q.metrics()["tasks_delayed"] == 1, said(w))
        for name in ("first", "second"):
            at, end = q.cli("HMGET", f"tasks:task:{name}", "at", "ended").split()
            check(int(at) <= int(end), name, at, end)


@early
def test_dependencies_and_dead_letters():
    with Queue() as q:
        q.add("noop", id="a")
        q.add("fail", "badly", id="b", attempts=2)
        q.add("noop", id="c", after="a,b", priority=2)
        q.add("noop", id="d", after="a,c,a", priority=2)
        q.add("noop", id="e", after="a", priority=2, delay=0.1)
        with q.worker("w", "--slots", "1") as w:
            q.until_state("b", "dead")
            q.until_done("e")
            check([q.state(x) for x in "acd"] == ["done", "waiting", "waiting"], said(w))
            check(q.run("--dead") == "b: fail badly: failed 2 times: it always fails: badly\n", q.run("--dead"))
            m = q.metrics()
            check((m["tasks_dead"], m["tasks_waiting"], m["tasks_failed_total"], m["tasks_done_total"]) == (1, 2, 2, 2), m)
            q.cli("HSET", "tasks:task:b", "kind", "noop")  # it is mended
            check(q.run("--requeue", "nobody") == "0\n" and q.run("--requeue", "all") == "1\n")
            q.until_done(*"bcd")
            check(finished(w) == ["a", "e", "b", "c", "d"], finished(w))
            q.add("noop", id="f", after="d")  # which is done already
            q.until_done("f")
            m = q.metrics()
            check(m["tasks_dead"] == m["tasks_waiting"] == m["tasks_running"] == 0 and m["tasks_done_total"] == 6, m)
            check(q.run("--dead") == "" and q.cli("KEYS", "tasks:after:*") == "")
        done = apps.run(TASKS, "--enqueue", "noop", "--after", "a,nowhere", "--redis", q.address, status=1)
        check("there is no task nowhere to come after" in done.stderr, done.stderr)


@early
def test_retries_back_off_with_jitter():
    with Queue() as q, q.worker("w", "--quiet"):
        q.add("flaky", "3", id="flaky")
        q.add("fail", id="f", count=30, attempts=3)
        q.until_done("flaky")
        check(q.cli("HMGET", "tasks:task:flaky", "runs", "failures").split() == ["4", "3"])
        until(lambda: q.metrics()["tasks_dead"] == 30, "30 dead letters")
        m = q.metrics()
        check(m["tasks_failed_total"] == 93 and m["tasks_started_total"] == 94, m)
        q.add("fail", id="g", count=30, attempts=100)
        until(lambda: len(set(q.cli("ZRANGE", "tasks:delayed", 0, -1, "WITHSCORES").split()[1::2])) > 5, "they are due at different times")


def test_a_key_takes_effect_once_and_a_name_is_one_task():
    with Queue() as q, q.worker("w"):
        q.add("deposit", "ada 10", id="a", key="invoice-7")
        q.add("deposit", "ada 10", id="b", key="invoice-7")
        q.add("deposit", "ada 1", id="c")
        check("there is a task c already" in apps.run(TASKS, "--enqueue", "deposit", "--data", "ada 1", "--id", "c", "--redis", q.address).stderr)
        q.until_done("a", "b", "c")
        check(q.cli("HGET", "tasks:accounts", "ada") == "11", q.cli("HGETALL", "tasks:accounts"))
        m = q.metrics()
        check(m["tasks_suppressed_total"] == 1 and m["tasks_enqueued_total"] == 3, m)


def test_an_effect_that_fails_leaves_no_mark():
    with Queue() as q, q.worker("w"):
        q.cli("SET", "tasks:accounts", "a string")
        q.add("deposit", "ada 10", id="a", key="k", attempts=1)
        q.until_state("a", "dead")
        check("WRONGTYPE" in q.run("--dead") and q.cli("EXISTS", "tasks:effect:k") == "0", q.run("--dead"))
        q.cli("DEL", "tasks:accounts")
        q.run("--requeue", "a")
        q.until_done("a")
        check(q.cli("HGET", "tasks:accounts", "ada") == "10")


@early
def test_what_computes_does_not_lose_its_lease():
    with Queue() as q, q.worker("w", "--lease", "1"), q.worker("v", "--lease", "1"):
        q.add("primes", "3000000", id="long")
        q.add("primes", "100", id="short")
        q.until_done("short", "long")
        check(q.cli("HGET", "tasks:primes", "100") == "25" and q.cli("HGET", "tasks:primes", "3000000") == "216816")
        check(q.cli("HGET", "tasks:task:long", "runs") == "1", "it was taken over")


@early
def test_metrics():
    with Queue() as q:
        q.add("noop", id="x", count=1200)
        q.add("noop", delay=100)
        q.add("noop", priority=2)
        m = q.metrics()
        check(m['tasks_ready{priority="0"}'] == 1200 and m['tasks_ready{priority="2"}'] == 1 and m["tasks_delayed"] == 1, m)
        with q.worker("w", "--quiet"), q.worker("v", "--quiet"):
            until(lambda: q.metrics()["tasks_done_total"] == 1201, "all are done")
            m = q.metrics()
            shares = [m[f'tasks_done_by_worker_total{{worker="{name}"}}'] for name in "vw"]
            check(sum(shares) == 1201 and m["tasks_append_only_file"] == 1 and m["tasks_waited_seconds_count"] == 1201, m)
            until(lambda: q.metrics()["tasks_done_per_second"] > 0, "a rate")


@early
def test_the_goal():
    printed = apps.run(TASKS, "--goal", limit=120).stdout
    check("a second; the goal is 10000\n" in printed and "50000 enqueued, 50000 done" in printed, printed)
    shares = re.findall(r"^  w\d (\d+)$", printed, re.MULTILINE)
    check(len(shares) == 5 and sum(map(int, shares)) == 50000 and all(int(n) > 0 for n in shares), printed)


# ---- losses ----


@early
def test_chaos():
    done = apps.run(TASKS, "--chaos", limit=120)
    check(", one frozen; Redis killed 2 times" in done.stdout and "4000 enqueued, 4000 done, 0 dead" in done.stdout, done.stdout)
    check("2000 deposits with keys: 2000;" in done.stdout, done.stdout)


@early
def test_a_killed_workers_tasks_are_taken_over():
    with Queue() as q, q.worker("w", "--lease", "0.5") as w:
        q.add("sleep", "1000", id="s", count=5)
        until(lambda: q.metrics()["tasks_running"] == 5, "w has all")
        w.kill()
        for i in range(1, 6):
            q.cli("HSET", f"tasks:task:s-{i}", "data", "0")
        with q.worker("v", "--lease", "0.5"):
            q.until_done(*(f"s-{i}" for i in range(1, 6)))
        m = q.metrics()
        check(m["tasks_taken_over_total"] == 5 and m["tasks_started_total"] == 10 and m["tasks_repeated_total"] == 0, m)


@early
def test_poison_becomes_a_dead_letter():
    with Queue() as q:
        q.add("crash", id="poison", attempts=2)
        for _ in range(2):
            with q.worker("w", "--lease", "0.3") as w:
                ended(w, -signal.SIGKILL)
        with q.worker("w", "--lease", "0.3"):
            q.until_state("poison", "dead")
        check("its worker was lost" in q.run("--dead"), q.run("--dead"))


@early
def test_a_frozen_workers_tasks_are_done_twice_and_it_is_said():
    with Queue() as q, q.worker("w", "--lease", "2") as w:
        for name, key in (("a", {"key": "once"}), ("b", {})):
            q.add("deposit", f"{name} 1 {2.5 * apps.SLOW}", id=name, **key)
        until(lambda: q.metrics()["tasks_running"] == 2, "w has both")
        w.send_signal(signal.SIGSTOP)
        with q.worker("v", "--lease", "2"):
            q.until_done("a", "b")
            w.send_signal(signal.SIGCONT)
            until(lambda: q.metrics()["tasks_repeated_total"] >= 2, "both are reported again")
        check(q.metrics()["tasks_repeated_total"] == 2, q.metrics())
        check(q.cli("SMEMBERS", "tasks:repeated").split() in (["a", "b"], ["b", "a"]))
        check(q.cli("HMGET", "tasks:accounts", "a", "b").split() == ["1", "2"], q.cli("HGETALL", "tasks:accounts"))
        check(q.metrics()["tasks_done_total"] == 2)


@early
def test_redis_is_killed_and_nothing_is_forgotten():
    with Queue() as q:
        q.add("noop", id="x", count=1000)
        q.add("noop", id="last", after="x-1000", delay=1)
        q.server.stop()
        q.start()
        with q.worker("w", "--quiet", "--slots", "3", "--lease", "0.5") as w:
            until(lambda: int(q.cli("HGET", "tasks:counters", "done") or 0) > 100, "it works")
            q.server.stop()
            until(lambda: "trying again" in said(w), "the worker waits")
            q.start()
            until(lambda: q.metrics()["tasks_done_total"] == 1001, "all are done")
            check(q.state("last") == "done" and q.metrics()["tasks_enqueued_total"] == 1001, q.metrics())
            interrupted(w)


def test_a_new_redis_gets_the_functions():
    with Queue() as q, q.worker("w") as w:
        q.add("noop", id="a")
        q.until_done("a")
        q.cli("FUNCTION", "FLUSH")
        q.cli("FLUSHALL")
        q.add("noop", id="b")
        q.until_done("b")
        q.cli("FUNCTION", "FLUSH")
        q.cli("FLUSHALL")
        until(lambda: q.cli("FUNCTION", "LIST"), "the worker loads them")
        check(w.poll() is None, said(w))


@early
def test_redis_hangs():
    with Queue() as q, q.worker("w", "--quiet", "--timeout", "0.5") as w:
        q.add("noop", id="a")
        q.until_done("a")
        q.server.process.send_signal(signal.SIGSTOP)
        try:
            done = apps.run(TASKS, "--enqueue", "noop", "--timeout", "0.5", "--redis", q.address, status=1)
            check("redis" in done.stderr and "in time" in done.stderr or "no connection within" in done.stderr, done.stderr)
            until(lambda: "trying again" in said(w), "the worker waits")
        finally:
            q.server.process.send_signal(signal.SIGCONT)
        q.add("noop", id="b")
        q.until_done("b")


def test_redis_refuses_to_write():
    """Like Redis when its disk is full."""
    with Queue() as q, q.worker("w") as w:
        q.add("noop", id="a")
        q.until_done("a")
        q.cli("CONFIG", "SET", "min-replicas-to-write", 1)
        check("NOREPLICAS" in apps.run(TASKS, "--enqueue", "noop", "--id", "b", "--redis", q.address, status=1).stderr)
        until(lambda: "NOREPLICAS" in said(w), "the worker says so")
        q.cli("CONFIG", "SET", "min-replicas-to-write", 0)
        check(q.state("b") == "", "it is half there")
        q.add("noop", id="b")
        q.until_done("b")


def test_what_lies_in_redis():
    with Queue() as q, q.worker("w", "--lease", "0.3") as w:
        q.add("noop", id="a")
        q.until_done("a")
        q.cli("XADD", "tasks:ready:0", "*", "foo", "bar")
        q.cli("ZADD", "tasks:delayed", 1, "nobody")
        q.add("what", "is this", id="unknown", attempts=1)
        q.until_state("unknown", "dead")
        check("unknown kind what" in q.run("--dead"))
        until(lambda: q.cli("XLEN", "tasks:ready:0") == "0" and q.cli("ZCARD", "tasks:delayed") == "0", "the rest is thrown away")
        q.cli("SET", "tasks:workers", "a string")
        q.add("noop", id="b")
        until(lambda: "WRONGTYPE" in said(w), "the worker says what is wrong")
        q.cli("DEL", "tasks:workers")
        q.until_done("b")
        q.add("deposit", "", id="d", attempts=1)
        q.until_state("d", "dead")


# ---- interrupts ----


def test_an_interrupted_worker_gives_its_tasks_back():
    for how in (signal.SIGINT, signal.SIGTERM):
        with Queue() as q, q.worker("w", "--slots", "3") as w:
            q.add("sleep", "1000", id="s", count=5)
            until(lambda: q.metrics()["tasks_running"] == 3, "w has three")
            interrupted(w, how)
            m = q.metrics()
            check(m["tasks_running"] == 0 and m['tasks_ready{priority="0"}'] == 5, m, said(w))
            check(q.cli("HGET", "tasks:task:s-1", "failures") == "", "it counts as a failure")


def test_an_interrupted_producer_has_added_whole_batches():
    with Queue() as q:
        for least in (0, 1, 2000):
            q.cli("FLUSHALL")
            with apps.started(TASKS, "--enqueue", "noop", "--count", "1000000", "--redis", q.address) as process:
                until(lambda: int(q.cli("HGET", "tasks:counters", "enqueued") or 0) >= least, "it adds")
                interrupted(process, signal.SIGINT, -signal.SIGINT)  # it may not have begun
            both = "return {redis.call('HGET', 'tasks:counters', 'enqueued') or 0, redis.call('XLEN', 'tasks:ready:0')}"
            added, ready = map(int, q.cli("EVAL", both, 0).split())  # at once: the last batch may be on its way
            check(added % 500 == 0 and ready == added, added, ready)


def end_at(how, moment):
    where = apps.folder()
    with apps.started(TASKS, TMPDIR=where) as process:
        until(lambda: moment in said(process), moment)
        children = set(apps.children_of(process.pid, deep=True))
        process.send_signal(how)
        ended(process, 128 + how, -how, 0)
        until(lambda: not children & apps.processes().keys(), f"the children have ended after {moment}")
        check(not apps.left_in(where), "left after", moment, *apps.left_in(where))


@early
def test_the_end_at_any_moment_leaves_nothing_behind():
    for moment in ("", "Nine tasks", "high-1 ", "low-2 "):
        end_at(signal.SIGINT, moment)


@early
def test_the_end_at_later_moments_leaves_nothing_behind():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(end_at, (signal.SIGTERM, signal.SIGINT, signal.SIGINT), ("report ", "is killed", "Metrics")))


def test_the_program_is_killed():
    with apps.started(TASKS, "--goal", TMPDIR=apps.folder()) as process:
        until(lambda: len(apps.children_of(process.pid, deep=True)) == 7, "five workers, a shell and Redis run")
        children = set(apps.children_of(process.pid, deep=True))
        process.kill()
        until(lambda: not children & apps.processes().keys(), "the children end, too")


# ---- arguments, no server, other servers ----


@early
def test_the_demonstration():
    printed = apps.run(TASKS).stdout
    lines = [line.split() for line in printed.splitlines()]
    done = [line[1] for line in lines if line[2:] == ["done"]]
    check(set(done) == {*(f"{p}-{i}" for p in ("low", "normal", "high") for i in (1, 2, 3)), "download", "parse", "report", "later",
                        "flaky", "pay", "pay-again", "long"}, printed)
    check(done.index("download") < done.index("parse") < done.index("report"), printed)
    for words in ("has the task long, and is killed; so is Redis\n", "has ended; another takes its place\n",
                  "hopeless: fail for show: failed 3 times: it always fails: for show\n", "tasks_done_total 17\n",
                  "tasks_suppressed_total 1\n", "tasks_taken_over_total 1\n", "tasks_dead 1\n"):
        check(words in printed, words, "is not in", printed)


@early
def test_a_given_redis_is_left_as_it_was():
    with Queue() as q:
        q.add("noop", id="mine")
        before = sorted(q.cli("KEYS", "*").split())
        printed = apps.run(TASKS, REDIS=q.address).stdout
        check("tasks_done_total 17\n" in printed, printed)
        check(sorted(q.cli("KEYS", "*").split()) == before, q.cli("KEYS", "*"))


def test_wrong_arguments():
    for words in (["--what"], ["what"], ["--enqueue"], ["--requeue"], ["--priority", "3"], ["--worker", "--slots", "0"],
                  ["--worker", "--lease", ""], ["--enqueue", "noop", "--delay", "-1"], ["--enqueue", "noop", "--delay", "nan"],
                  ["--enqueue", "noop", "--id", "a,b"], ["--enqueue", "noop", "--id", ""], ["--enqueue", "noop", "--key", "a b"],
                  ["--worker", "--name", "x" * 65], ["--worker", "--goal"], ["--metrics", "--dead"]):
        check(apps.run(TASKS, *words, status=2).stderr, words)
    check("--lease SECONDS" in apps.run(TASKS, "--help").stdout)


@early
def test_no_redis():
    nobody = f"127.0.0.1:{apps.free_port()}"
    commands = (["--worker"], ["--enqueue", "noop"], ["--metrics"], ["--dead"], ["--requeue", "all"], [], ["--goal"], ["--chaos"])
    running = [subprocess.Popen(apps.command(TASKS, *words, "--redis", nobody), env=apps.environment(), stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True) for words in commands]
    for words, process in zip(commands, running):
        wrong = process.communicate(timeout=30 * apps.SLOW)[1]
        check(process.returncode == 1 and "to start one: redis-server" in wrong, words, process.returncode, wrong)
    path = apps.folder()
    (path / "setarch").symlink_to(shutil.which("setarch"))  # which the test itself needs
    done = apps.run(TASKS, status=1, PATH=path)
    check("there is no redis-server here" in done.stderr, done.stderr)


def test_a_password():
    with Queue("--requirepass", "secret") as q:
        for password in ({}, {"PASSWORD": "wrong"}):
            wrong = apps.run(TASKS, "--metrics", "--redis", q.address, status=1, **password).stderr
            check("NOAUTH" in wrong or "WRONGPASS" in wrong, wrong)
        check("tasks_done_total 0" in q.run("--metrics", PASSWORD="secret"))


@contextlib.contextmanager
def no_redis(answer):
    """A server that answers each read with these bytes; None: it closes."""
    def serve(connection):
        with connection, contextlib.suppress(OSError):
            while connection.recv(65536) and answer is not None:
                connection.sendall(answer)

    def accept(listener):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@early
def test_a_server_that_is_no_redis():
    answers = (b"garbage\r\n", b"+OK\r\n", b":1\r\n", b"*2\r\n:1\r\n*1\r\n:5\r\n", b"*2\r\n:1\r\n*1\r\n*1\r\n$1\r\nx\r\n", b"$-1\r\n", b"*-1\r\n",
               b"-ERR unknown command\r\n", None)
    for answer in answers:
        with no_redis(answer) as address:
            apps.run(TASKS, "--worker", "--timeout", "0.5", "--redis", address, status=1)
            for words in (["--enqueue", "noop"], ["--enqueue", "noop", "--count", "2"], ["--metrics"]):
                done = apps.run(TASKS, *words, "--timeout", "0.5", "--redis", address, status=None)
                check(done.returncode in (0, 1) and (done.returncode == 0 or done.stderr), answer, words, done)


def test_a_full_disk():
    with Queue() as q, open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(apps.command(TASKS, "--metrics", "--redis", q.address), env=apps.environment(), stdout=full,
                              stderr=subprocess.PIPE, text=True)
        check(done.returncode == 1 and "could not be written" in done.stderr, done.returncode, done.stderr)


apps.main(globals())
