#!/usr/bin/env python3
"""examples/10_patterns/03_cache.c: the cache alone, exactly, and nodes that share a real Redis, or a false one."""
import contextlib
import os
import pathlib
import queue
import random
import signal
import socket
import subprocess
import threading

import apps
from apps import check, until

os.environ.pop("REDIS", None)
CACHE = apps.compiled("10_patterns/03_cache.c")

ALONE = """\
Eviction: 3 places, gets ABCAABDCE
  LRU evicts C A B
  gets 9 = hits 3 + misses 6; computations 6, 0 failed or stopped
  stored 6 = there 3 + evicted 3 + expired 0 + invalidated 0
  LFU evicts C D C
  gets 9 = hits 3 + misses 6; computations 6, 0 failed or stopped
  stored 6 = there 3 + evicted 3 + expired 0 + invalidated 0
  TTL evicts A B
  gets 9 = hits 4 + misses 5; computations 5, 0 failed or stopped
  stored 5 = there 3 + evicted 2 + expired 0 + invalidated 0
Expiry: max_size 1000, ttl 300 s
  after 299.999 s: user:1, answer 1
  after 300 s: gone
  after 1000 more keys: 1000 there, 0 evicted
  after 1001: 1000 there, 1 evicted
  gets 1004 = hits 1 + misses 1003; computations 1002, 0 failed or stopped
  stored 1002 = there 1000 + evicted 1 + expired 1 + invalidated 0
Stampede: 1000 tasks miss one key at once
  naive: 1000 computations, 1000 served in 5.00 s
  cache: 1 computation, 1000 served in 0.05 s
  gets 1000 = hits 0 + misses 1000; computations 1, 0 failed or stopped
  stored 1 = there 1 + evicted 0 + expired 0 + invalidated 0
Failure: the database is down while 100 tasks wait
  0 served, 1 computation; the first and the last are told: the database is down, the database is down
  the next get: 1 served, user:1, answer 1
  gets 101 = hits 0 + misses 101; computations 2, 1 failed or stopped
  stored 1 = there 1 + evicted 0 + expired 0 + invalidated 0
Cancel: 5 tasks wait for one computation
  5 cancelled: 5 stopped, 0 served; queries begun 1, finished 0
  4 cancelled: 4 stopped, 1 served; queries begun 2, finished 1
  gets 10 = hits 0 + misses 10; computations 2, 1 failed or stopped
  stored 1 = there 1 + evicted 0 + expired 0 + invalidated 0
Warming: 8 keys, 5 at once
  8 warm in 0.10 s, by 8 queries
Invalidation: user:* takes 4, and leaves page:1 superuser:1 user page:user:1
  a get from before it: user:1, answer 9; from after it: user:1, answer 10; kept: user:1, answer 10
  gets 19 = hits 5 + misses 14; computations 10, 0 failed or stopped
  stored 9 = there 5 + evicted 0 + expired 0 + invalidated 4
"""

SHARED = """\
a: ready
b: ready
a: invalidated *: 0 gone
b: told by a that * is invalid: 0 gone
a: from the source: user:1 as a read it, 1
a: from memory: user:1 as a read it, 1
b: from Redis: user:1 as a read it, 1
b: from memory: user:1 as a read it, 1
b: from the source: page:1 as b read it, 1
a: invalidated user:*: 1 gone
b: told by a that user:* is invalid: 1 gone
b: from the source: user:1 as b read it, 2
b: from memory: page:1 as b read it, 1
a: from Redis: user:1 as b read it, 2
a: 1 from Redis
  gets 3 = hits 1 + misses 2; computations 1, 0 failed or stopped
  stored 2 = there 1 + evicted 0 + expired 0 + invalidated 1
b: 1 from Redis
  gets 5 = hits 2 + misses 3; computations 2, 0 failed or stopped
  stored 3 = there 2 + evicted 0 + expired 0 + invalidated 1
"""


def test_the_cache_alone_prints_exactly_this():
    done = apps.run(CACHE)
    alone, hint = done.stdout[:len(ALONE)], done.stdout[len(ALONE):]
    check(alone == ALONE, alone)
    check("redis-server --port" in hint and not done.stderr, hint, done.stderr)


def test_the_counts_are_the_same_in_another_order_of_the_tasks():
    for seed in range(1, 6):
        lines = apps.run(CACHE, CONC_SEED=seed).stdout.splitlines()
        kept = [line for line in ALONE.splitlines() if line.startswith(("  gets", "  stored", "  cache:", "  naive:"))]
        check([line for line in lines if line in kept] == kept, seed, *lines)


def evicted(policy, letters, places=3):
    """The model: a dictionary, and the entry that the policy would evict."""
    entries, gone = {}, []
    for now, letter in enumerate(letters):
        if letter in entries:
            entries[letter].update(used=now, uses=entries[letter]["uses"] + 1)
            continue
        if len(entries) == places:
            order = {"LRU": lambda e: e["used"], "LFU": lambda e: (e["uses"], e["used"]), "TTL": lambda e: e["born"]}[policy]
            gone.append(min(entries, key=lambda name: order(entries[name])))
            del entries[gone[-1]]
        entries[letter] = {"used": now, "uses": 0, "born": now}
    return gone


def test_evictions_are_those_of_a_model():
    chance = random.Random(15)
    for _ in range(20):
        letters = "".join(chance.choices("ABCDEFG", k=100))
        printed = [line.split() for line in apps.run(CACHE, "--evict", letters).stdout.splitlines() if "evicts" in line]
        check(printed == [[policy, "evicts", *evicted(policy, letters)] for policy in ("LRU", "LFU", "TTL")], letters, printed)


def test_the_goal():
    printed = apps.run(CACHE, "--goal").stdout
    check("goal 1 computation, measured 1\n" in printed and "hits a second: goal 1.0 million, measured" in printed, printed)
    check("gets 2001000 = hits 2000001 + misses 999; computations 999, 0 failed" in printed, printed)


def test_wrong_arguments_and_a_missing_server():
    for arguments in (["--what"], ["a", "b"], ["--node", "a"]):
        check("ADDRESS" in apps.run(CACHE, *arguments, status=1).stderr, arguments)
    nobody = f"127.0.0.1:{apps.free_port()}"
    for arguments in ([nobody], ["--node", "a", nobody], ["127.0.0.1"]):
        done = apps.run(CACHE, *arguments, status=1)
        check("to start one: redis-server --port" in done.stderr, done.stderr)
    check("Connection refused" in apps.run(CACHE, REDIS=nobody, status=1).stderr)


def test_a_full_disk():
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(apps.command(CACHE), env=apps.environment(), stdout=full, stderr=subprocess.PIPE, text=True)
    check(done.returncode == 1 and "could not be written" in done.stderr, done.returncode, done.stderr)


def test_two_nodes_share_redis():
    with apps.redis() as server:
        for more in ({}, {"CONC_CLOCK": "virtual"}):
            done = apps.run(CACHE, REDIS=f"127.0.0.1:{server.port}", **more)
            shared = done.stdout.split("Two nodes share Redis\n")[1]
            check(shared == SHARED and not done.stderr, shared, done.stderr)


class Node:
    """A process `cache --node`: commands go in, lines come out."""

    def __init__(self, name, port):
        self.process = subprocess.Popen(apps.command(CACHE, "--node", name, f"127.0.0.1:{port}"), env=apps.environment(),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.name, self.lines, self.seen = name, queue.Queue(), []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def send(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def until(self, *words):
        """Returns the next line that contains one of these words; skips the lines before it."""
        while True:
            try:
                line = self.lines.get(timeout=20 * apps.SLOW)
            except queue.Empty:
                line = None
            check(line is not None, self.name, "never said", words, "but", *self.seen[-9:])
            self.seen.append(line)
            if any(word in line for word in words):
                return line

    def ask(self, command, word=": "):
        self.send(command)
        return self.until(word)

    def get(self, key):
        return self.ask(f"get {key}", ": from ")

    def ended(self):
        self.process.stdin.close()
        return self.process.wait(timeout=20 * apps.SLOW)


def has(line, words):
    check(words in line, words, "is not in:", line)


@contextlib.contextmanager
def nodes(port, *names):
    started = [Node(name, port) for name in names]
    try:
        for node in started:
            node.until("ready")
        yield started if len(started) > 1 else started[0]
        for node in started:
            check(node.ended() == 0, node.name, *node.seen)
    finally:
        for node in started:
            node.process.kill()
            node.process.wait()


def ask_redis(server, *words):
    return subprocess.run(["redis-cli", "-p", str(server.port), *words], capture_output=True, text=True, check=True).stdout.strip()


def misses(server):
    """Returns how often Redis was asked for a key that it does not have."""
    return int(ask_redis(server, "INFO", "stats").split("keyspace_misses:")[1].split()[0])


def test_memory_goes_on_without_redis_and_finds_it_again():
    with apps.redis() as server, nodes(server.port, "a", "b") as (a, b):
        a.get("user:1")
        has(b.get("user:1"), "from Redis")
        server.stop()
        a.until("memory goes on alone: ")
        has(a.get("user:1"), "from memory: user:1 as a read it, 1")
        has(a.get("user:2"), "from the source")
        has(a.get("user:2"), "from memory")
        has(a.ask("invalidate user:2", "told: "), "only here, other nodes were not told: ")
        has(a.get("user:2"), "from the source")
        has(b.get("user:1"), "from memory")
        server.start()
        a.until("missed what the others said: 2 gone")
        b.until("missed what the others said: 1 gone")
        until(lambda: "from Redis" in b.get("user:1") or ask_redis(server, "GET", "conc-cache:user:1"), "Redis is used again")
        a.ask("invalidate user:*", "invalidated")
        b.until("told by a that user:* is invalid")


def test_redis_hangs():
    with apps.redis() as server, nodes(server.port, "a") as a:
        a.get("user:1")
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            has(a.get("user:1"), "from memory")
            has(a.get("user:2"), "from the source: user:2")
            has(a.get("user:2"), "from memory")
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        until(lambda: "from the source" in a.get(f"page:{random.random()}") and ask_redis(server, "KEYS", "conc-cache:page*"),
              "Redis is used again")


def test_what_lies_in_redis():
    with apps.redis() as server, nodes(server.port, "a") as a:
        ask_redis(server, "RPUSH", "conc-cache:list", "x")
        has(a.get("list"), "from the source")
        check("WRONGTYPE" in "".join(a.seen), *a.seen)
        ask_redis(server, "SET", "conc-cache:long", "x" * 128, "PX", "100000")
        ask_redis(server, "SET", "conc-cache:fits", "x" * 127, "PX", "100000")
        has(a.get("long"), "from the source")
        until(lambda: "Redis" in a.get(f"page:{random.random()}") or ask_redis(server, "KEYS", "conc-cache:page*"), "Redis is asked again")
        has(a.get("fits"), "from Redis: xxx")
        ask_redis(server, "SET", "conc-cache:young", "old", "PX", "700")
        has(a.get("young"), "from Redis: old")  # and no longer valid here than there
        until(lambda: "from the source" in a.get("young"), "the age in Redis counts")
        check(0 < int(ask_redis(server, "PTTL", "conc-cache:young")) <= 300000)


def test_a_value_is_not_shared_that_was_invalidated_while_it_was_computed():
    with apps.redis() as server, nodes(server.port, "a", "b") as (a, b):
        before = misses(server)
        b.send("get user:1")
        until(lambda: misses(server) > before, "b computes")
        a.ask("invalidate user:*", "invalidated")
        b.until("from the source")
        check(ask_redis(server, "GET", "conc-cache:user:1") == "", "the old value is in Redis")
        has(b.get("user:1"), "from the source: user:1 as b read it, 2")


def test_wrong_commands():
    with apps.redis() as server, nodes(server.port, "a") as a:
        has(a.ask("get " + 64 * "x"), "a key of more than 63 bytes")
        has(a.get(63 * "x"), "from the source")
        has(a.ask("what"), "not what")
        has(a.ask(""), "not ")
        has(a.ask("stats", "gets"), "gets 2 = hits 0 + misses 2")
    with apps.redis() as server:
        a = Node("a", server.port)
        a.send("x" * 5000)
        a.until("node_main")
        check(a.ended() == 1)


@contextlib.contextmanager
def no_redis(answer):
    """A server that answers PING and SUBSCRIBE like Redis, and everything else with these bytes."""
    def serve(connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                if b"PING" in data:
                    connection.sendall(b"+PONG\r\n")
                elif b"SUBSCRIBE" in data and answer is not None:
                    connection.sendall(b"*3\r\n$9\r\nsubscribe\r\n$24\r\nconc-cache-invalidations\r\n:1\r\n")
                elif answer:
                    connection.sendall(answer)
                else:
                    break

    def accept(listener):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_garbage_too_much_and_early_closes():
    for answer in (b"garbage\r\n", b"$2000000\r\n" + b"x" * 2000000, b":1\r\n:1\r\n:1\r\n", b"*1\r\n:1\r\n" * 3, b"$-1\r\n" * 3,
                   b"$1\r\nx\r\n" * 3, b"*2\r\n$1\r\n0\r\n*1\r\n:5\r\n", b""):
        with no_redis(answer) as port, nodes(port, "a") as a:
            has(a.get("user:1"), "from the source")
            has(a.get("user:1"), "from memory")
            a.ask("invalidate user:*", "told: ")
            has(a.get("user:1"), "from the source")
    with no_redis(None) as port:
        check("to start one" in apps.run(CACHE, "--node", "a", f"127.0.0.1:{port}", status=1).stderr)


def of_group(process):
    """Returns the running processes of its group, except itself."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rsplit(")", 1)[1].split()[:3]
            if int(group) == process.pid and state not in "ZX" and stat.parent.name != str(process.pid):
                found.append(int(stat.parent.name))
    return found


def test_an_interrupt_at_any_moment_leaves_nothing_behind():
    with apps.redis() as server:
        for moment in ("Two nodes", "a: ready", "b: ready", "told by a", "from memory", "a: 1 from Redis"):
            with apps.started(CACHE, f"127.0.0.1:{server.port}") as process:
                until(lambda: moment in process.out.read_text() or process.poll() is not None, moment)
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)
                status = process.wait(timeout=20 * apps.SLOW)
                ended_before = (0, -signal.SIGINT)
                check(status in (130, *ended_before), moment, "status", status, process.out.read_text()[-500:])
                until(lambda: not of_group(process), f"the nodes have ended after {moment}")


def test_an_interrupt_ends_a_node_in_the_middle_of_a_get():
    with apps.redis() as server:
        for command in ("", "get user:1\n"):
            node = Node("a", server.port)
            node.until("ready")
            before = misses(server)
            node.process.stdin.write(command)
            node.process.stdin.flush()
            until(lambda: not command or misses(server) > before, "the node computes")
            node.process.send_signal(signal.SIGINT)
            check(node.process.wait(timeout=20 * apps.SLOW) == 130, *node.seen)


def test_redis_is_lost_during_a_computation():
    with apps.redis() as server, nodes(server.port, "a") as a:
        before = misses(server)
        a.send("get user:1")
        until(lambda: misses(server) > before, "the node computes")
        server.stop()
        has(a.until(": from "), "from the source: user:1 as a read it, 1")
        has(a.get("user:1"), "from memory: user:1 as a read it, 1")
        has(a.ask("stats", "gets"), "gets 2 = hits 1 + misses 1; computations 1, 0 failed")


def test_a_node_is_killed():
    with apps.redis() as server, apps.started(CACHE, f"127.0.0.1:{server.port}") as process:
        until(lambda: "b: ready" in process.out.read_text(), "both nodes are there")
        os.kill(of_group(process)[-1], signal.SIGKILL)
        check(process.wait(timeout=20 * apps.SLOW) == 1, process.out.read_text()[-500:])
        check("a node has ended" in process.out.read_text(), process.out.read_text()[-500:])
        until(lambda: not of_group(process), "the other node has ended")


apps.main(globals())
