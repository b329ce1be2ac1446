#!/usr/bin/env python3
"""examples/10_patterns/01_rate_limiter.c: its exact part, byte for byte; its clients with its own service, which is killed,
stopped and restarted, and with services of this test, which count requests and misbehave."""
import collections
import concurrent.futures
import contextlib
import fcntl
import http.client
import http.server
import os
import pty
import random
import re
import signal
import socket
import subprocess
import termios
import threading
import time

import apps

PROGRAM = apps.compiled("10_patterns/01_rate_limiter.c")


def clients(text):
    """{(section, tier): (calls, answered, refused, failed)} of what the program prints."""
    found, section = {}, ""
    for line in text.splitlines():
        if line.startswith("A client"):
            section = "untuned" if "all at once" in line else "tuned"
        row = re.fullmatch(r"  (\w+) +(\d+) calls, (\d+) answered, (\d+) times 429, (\d+) failures, in .* s", line)
        if row:
            found[section, row[1]] = tuple(map(int, row.groups()[1:]))
    return found


def all_answered(text):
    """The clients made all their calls, and those that obey the limit were not refused."""
    found = clients(text)
    apps.check({key: (row[0], row[1]) for key, row in found.items()} == {
        ("untuned", "free"): (40, 40), ("tuned", "free"): (25, 25), ("tuned", "pro"): (150, 150),
        ("tuned", "batch"): (20, 20)}, "the calls and answers are", found, text)
    return found


def text_of(process):
    return process.out.read_text(encoding="utf-8")


def children(pid):
    return [int(word) for word in subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True,
                                                 text=True).stdout.split()]


def runs(pid):
    """Is the process running? A zombie is not."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
    return False


def at_the_same_time(*functions):
    with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
        for done in [pool.submit(function) for function in functions]:
            done.result()


POOL = concurrent.futures.ThreadPoolExecutor(20)
SLOW_TESTS, BEGUN = [], {}


def slow(test):
    """These wait more than they work, so all start when the first is called."""
    def result():
        if not BEGUN:
            BEGUN.update({test: POOL.submit(test) for test in SLOW_TESTS})
        BEGUN[test].result()
    SLOW_TESTS.append(test)
    return result


# ---- the exact part

EXACT = """\
Tokens of three tiers, all asked for at once
  free   25, the last after 1500 ms, 19 in one second at most
  pro    150, the last after 2000 ms, 99 in one second at most
  batch  20, the last after 2000 ms, 14 in one second at most
The first of these, 10 a second with a burst of 10, all starts (ms)
  0 0 0 0 0 0 0 0 0 0 100 200 300 400 500 600 700 800 900 1000 1100 1200 1300 1400 1500
A semaphore of 10, and requests of 100 ms: 100 start in one second
Of four at one a second the third gives up at 1500 ms: the fourth has its turn
  0 1000 2000
Refused: tried again after 1 s, 2 s, 4 s, "Retry-After: 10", and jitter
"""


def test_tokens_burst_tiers_semaphore_and_a_cancelled_waiter_exactly():
    out = apps.run(PROGRAM, "--exact").stdout
    apps.check(out.startswith(EXACT), out)


def test_back_off_doubles_and_honours_retry_after_with_jitter_above_it():
    drawn = set()
    for seed in range(1, 6):
        out = apps.run(PROGRAM, "--exact", CONC_RANDOM=seed).stdout
        apps.check(out.startswith(EXACT), out)
        at = [int(word) for word in out.splitlines()[-1].split()]
        waits = [b - a for a, b in zip(at, at[1:])]
        apps.check(at[0] == 0 and len(waits) == 4, out)
        for wait, least in zip(waits, (1000, 2000, 4000, 10000)):
            apps.check(least <= wait <= 1.5 * least, "a wait of", wait, out)
        drawn.add(tuple(waits))
    apps.check(len(drawn) == 5, "the jitter is the same for all seeds:", drawn)


def test_tokens_are_given_in_the_order_of_asking_in_any_order_of_tasks():
    for seed in range(1, 6):
        out = apps.run(PROGRAM, "--exact", CONC_SEED=seed).stdout  # fails if one overtakes another
        apps.check(out.splitlines()[:6] == EXACT.splitlines()[:6], out)


# ---- the service

def get(connection, path):
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.getheader("Retry-After"), answer.read().decode()


@contextlib.contextmanager
def own_service():
    port = apps.free_port()
    server = apps.Server(apps.command(PROGRAM, "--serve", f"127.0.0.1:{port}"), port, apps.folder())
    with apps.serving(server):
        yield server


def test_the_service_limits_each_tier_for_itself():
    with own_service() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        begin, answered, refused = time.monotonic(), 0, 0
        while refused == 0:
            status, retry_after, body = get(connection, f"/batch/{answered}")
            if status == 429:
                refused += 1
                apps.check(retry_after == "1", "Retry-After is", retry_after)
            else:
                apps.check((status, body) == (200, f"batch {answered}\n"), status, body)
                answered += 1
        most = 20 + 5 * (time.monotonic() - begin)
        apps.check(20 <= answered <= most, answered, "requests answered, of", most)
        apps.check(get(connection, "/pro/7")[::2] == (200, "pro 7\n"), "pro waits for batch")
        for path in ("/gold/1", "/free", "/", "/free/x"):
            apps.check(get(connection, path)[0] == 404, path, "is found")


# ---- the clients with their own service

@slow
def test_untuned_is_refused_and_loses_nothing_and_tuned_is_never_refused():
    found = all_answered(apps.run(PROGRAM).stdout)
    apps.check(found["untuned", "free"][2] >= 10, "refused:", found)
    apps.check([row[2] for key, row in found.items() if key[0] == "tuned"] == [0, 0, 0], "429:", found)


@slow
def test_a_service_that_is_restarted_twice_in_the_middle():
    with own_service() as server, apps.started(PROGRAM, f"http://127.0.0.1:{server.port}") as process:
        for line in ("20 of 40 answered", "60 of 195 answered"):
            apps.until(lambda: line in text_of(process), line)
            server.restart()
        apps.check(process.wait(60 * apps.SLOW) == 0, text_of(process))
        all_answered(text_of(process))


@slow
def test_a_service_that_hangs_in_the_middle():
    with own_service() as server, apps.started(PROGRAM, f"http://127.0.0.1:{server.port}") as process:
        apps.until(lambda: "60 of 195 answered" in text_of(process), "the second half")
        os.killpg(server.process.pid, signal.SIGSTOP)
        time.sleep(2.5)  # longer than the client's time limit
        os.killpg(server.process.pid, signal.SIGCONT)
        apps.check(process.wait(60 * apps.SLOW) == 0, text_of(process))
        found = all_answered(text_of(process))
        apps.check(sum(row[3] for row in found.values()) > 0, "nothing was without an answer:", found)


@slow
def test_a_service_that_is_killed_for_good():
    with apps.started(PROGRAM) as process:
        apps.until(lambda: "20 of 40 answered" in text_of(process), "the middle")
        os.kill(*children(process.pid), signal.SIGKILL)
        apps.check(process.wait(60 * apps.SLOW) == 1, text_of(process))
        apps.check(re.search("gave up after 6 of 6 tries: http://.*/free/", text_of(process)), text_of(process))


@slow
def test_goal():
    out = apps.run(PROGRAM, "--goal").stdout
    apps.check(out.startswith(EXACT), out)
    for row in (r"answered +25 +25", r"429 +0 +0", r"most in one second +19 +\d+ +19",
                r"the last one starts after +1.500 s +\d+.\d{3} s +1.500 s"):
        apps.check(re.search(rf"^  {row}$", out, re.MULTILINE), row, "is not in", out)


@slow
def test_interrupted_anywhere_nothing_is_left():
    def interrupt(line, how, *statuses):
        with apps.started(PROGRAM) as process:
            apps.until(lambda: line in text_of(process), line)
            apps.until(lambda: children(process.pid) or process.poll() is not None, "the service runs")
            services = children(process.pid)
            os.kill(process.pid, how)
            apps.check(process.wait(30 * apps.SLOW) in statuses, process.returncode, text_of(process))
            apps.until(lambda: not any(map(runs, services)), f"the service ends after {how}")
    at_the_same_time(lambda: interrupt("Refused", signal.SIGINT, 130),
                     lambda: interrupt("20 of 40", signal.SIGINT, 130),
                     lambda: interrupt("free ", signal.SIGTERM, 143),
                     lambda: interrupt("20 of 195", signal.SIGINT, 130),
                     lambda: interrupt("20 of 40", signal.SIGKILL, -signal.SIGKILL))


@slow
def test_on_a_terminal_progress_is_one_line_and_control_c_ends_all():
    master, slave = pty.openpty()
    process = subprocess.Popen(apps.command(PROGRAM), stdin=slave, stdout=slave, stderr=slave, env=apps.environment(),
                               start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(slave)
    seen, services = b"", []
    with contextlib.suppress(OSError):  # EIO: all have closed the terminal
        while piece := os.read(master, 10000):
            seen += piece
            if b"\r  20 of 40 answered" in seen and not services:
                services = children(process.pid)
                os.write(master, b"\x03")
    apps.check(process.wait(30 * apps.SLOW) == 130, process.returncode, seen)
    apps.check(services and not any(map(runs, services)), "the service is left")
    apps.check(seen.count(b"\n\r  1 of 40 answered\r  2 of 40 answered") == 1 and seen.endswith(b"\n"), "progress:", seen)
    os.close(master)


def test_the_service_is_interrupted():
    with own_service() as server:
        os.kill(server.process.pid, signal.SIGINT)
        apps.check(server.process.wait(30 * apps.SLOW) == 130, "status", server.process.returncode)


# ---- services of this test

class Counting(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        _, tier, number = self.path.split("/")
        self.server.behave(self, tier, int(number))

    def say(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, tier, number):
        self.server.answered[tier, number] += 1
        self.say(200, f"{tier} {number}\n".encode())

    def log_message(self, *_):
        pass


class Threads(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 300

    def handle_error(self, *_):
        pass  # the client left


@contextlib.contextmanager
def service(behave):
    server = Threads(("127.0.0.1", 0), Counting)
    server.behave, server.answered, server.asked = behave, collections.Counter(), collections.defaultdict(list)
    server.over = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


@slow
def test_each_request_is_answered_once_and_none_comes_back_too_early():
    def refuse_twice_and_hang_once(request, tier, number):
        asked, server = request.server.asked[tier, number], request.server
        asked.append(time.monotonic())
        if tier == "free" and number % 4 == 0 and len(asked) < 3:
            request.say(429, b"later\n", Retry_After=1)
            asked[-1] = time.monotonic()
        elif tier == "pro" and number == 5 and len(asked) == 1:
            server.over.wait()  # no answer at all
        elif tier == "pro" and number == 6 and len(asked) == 1:
            request.close_connection = True  # nor here
            request.connection.shutdown(socket.SHUT_RDWR)
        elif tier == "batch" and number == 3 and len(asked) == 1:
            request.say(429, b"later\n", Retry_After="Fri, 31 Dec 1999 23:59:59 GMT")
        elif tier == "batch" and number == 4 and len(asked) == 1:
            request.say(429, b"later\n")
        elif tier == "batch" and number == 5 and len(asked) == 1:
            request.say(503, b"later\n", Retry_After="1")
        else:
            request.answer(tier, number)

    with service(refuse_twice_and_hang_once) as server:
        done = apps.run(PROGRAM, server.url)
        found = all_answered(done.stdout)
        apps.check(found["untuned", "free"][2] == 20, "refused:", found)
        apps.check(found["tuned", "pro"][2:] in ((0, 1), (0, 2)), "without an answer:", found)  # curl retries one by itself
        apps.check(found["tuned", "batch"][2:] == (2, 1), "refused, failed:", found)
        apps.check(len(server.answered) == 40 + 150 + 20, "answered:", len(server.answered))
        apps.check(all(n == (2 if tier == "free" and number < 25 else 1)
                       for (tier, number), n in server.answered.items()), server.answered)
        for (tier, number), asked in server.asked.items():
            if (tier, number) == ("batch", 5):
                apps.check(asked[1] - asked[0] > 0.99, "after 503 it came back after", asked[1] - asked[0])
            for k in range(2) if tier == "free" and number % 4 == 0 else ():
                apps.check(asked[k + 1] - asked[k] > 0.99, "after 429 it came back after", asked[k + 1] - asked[k])


@slow
def test_tuned_is_never_refused_by_another_bucket_behind_a_network_that_delays():
    rates = {"free": (10, 20), "pro": (50, 100), "batch": (5, 20)}
    buckets, lock, delays = {tier: (burst, 0) for tier, (_, burst) in rates.items()}, threading.Lock(), random.Random(1)

    def bucket(request, tier, number):
        with lock:
            delay = delays.choice((0, 0, 0.05, 0.3))
        time.sleep(delay)
        with lock:
            (tokens, before), now, (rate, burst) = buckets[tier], time.monotonic(), rates[tier]
            tokens = min(burst, tokens + rate * (now - before))
            buckets[tier] = (tokens - (tokens >= 1), now)
        if tokens >= 1:
            request.answer(tier, number)
        else:
            request.say(429, b"later\n", Retry_After="1")

    with service(bucket) as server:
        found = all_answered(apps.run(PROGRAM, server.url).stdout)
        apps.check(found["untuned", "free"][2] >= 10, found)
        apps.check([found["tuned", tier][2] for tier in rates] == [0, 0, 0], found)
        apps.check(sum(server.answered.values()) == 40 + 25 + 150 + 20, server.answered)


@slow
def test_a_tuned_client_that_is_refused_is_an_error():
    def refuse_one(request, tier, number):
        request.server.asked[tier, number].append(0)
        if tier == "pro" and number == 7 and len(request.server.asked[tier, number]) == 1:
            request.say(429, b"later\n")
        else:
            request.answer(tier, number)

    with service(refuse_one) as server:
        found = all_answered(apps.run(PROGRAM, server.url, status=1).stdout)
        apps.check(found["tuned", "pro"][2] == 1, found)


def fails(behave, words):
    with service(behave) as server:
        done = apps.run(PROGRAM, server.url, status=1)
        apps.check(re.search(words, done.stderr), words, "is not in", done.stderr)


@slow
def test_what_is_no_answer_is_an_error_in_words():
    def garbage(request, *_):
        request.wfile.write(b"\0\1\2 this is no HTTP\r\n\r\n" * 100)
        request.close_connection = True
    at_the_same_time(
        lambda: fails(lambda request, tier, number: request.answer(tier, number + 1), "status 200, and not the answer"),
        lambda: fails(lambda request, *_: request.say(500, b"broken"), "status 500, and not the answer"),
        lambda: fails(lambda request, *_: request.say(200, b"x" * 2000), "free"),
        lambda: fails(lambda request, *_: request.say(429, b"", Retry_After=3600), "gave up after 1 of 6 .*Retry-After: 3600"),
        lambda: fails(lambda request, *_: request.say(429, b"", Retry_After="inf"), "gave up after 1 of 6 .*Retry-After: inf"),
        lambda: fails(garbage, "free"))


@slow
def test_no_service_bad_arguments_and_a_full_disk_are_told_in_words():
    done = apps.run(PROGRAM, f"http://127.0.0.1:{apps.free_port()}", status=1)
    apps.check("gave up after 6 of 6 tries" in done.stderr and "onnect" in done.stderr, done.stderr)
    done = apps.run(PROGRAM, "--serve", "nonsense", status=1)
    apps.check("nonsense: malformed address" in done.stderr, done.stderr)
    apps.check("usage:" in apps.run(PROGRAM, "--nonsense", status=2).stderr, "no usage")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(apps.command(PROGRAM, "--exact"), stdout=full, stderr=subprocess.PIPE, text=True)
    apps.check(done.returncode == 1 and "output cannot be written" in done.stderr, done)


apps.main(globals())
