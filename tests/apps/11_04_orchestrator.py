#!/usr/bin/env python3
"""Tests of examples/11_apps/04_orchestrator.c."""
import collections
import concurrent.futures
import contextlib
import functools
import http.client
import http.server
import json
import re
import signal
import socket
import threading
import time

import apps

NAMES = ("users", "orders", "recommendations", "notifications")
FALLBACKS = {"users": ["Guest"], "orders": [], "recommendations": ["the bestsellers"], "notifications": []}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@functools.cache
def program():
    return apps.compiled("11_apps/04_orchestrator.c")


class Fake(http.server.ThreadingHTTPServer):
    """A service in this process: answer(handler) sends anything."""
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer=None):
        self.calls, self.answer = [], answer or Fake.well
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.address = f"127.0.0.1:{self.server_port}"

    def well(self, handler):
        handler.send(200, json.dumps({"path": handler.path}).encode())

    def handle_error(self, request, client_address):
        pass  # clients leave


class FakeHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.calls.append((self.path, dict(self.headers)))
        self.server.answer(self.server, self)

    def send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def fakes(**answers):
    """The four, each with its answer."""
    servers = {name: Fake(answers.get(name)) for name in NAMES}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield servers
    finally:
        for server in servers.values():
            server.shutdown()
            server.server_close()


def get(address, path, **headers):
    """The status and the body."""
    connection = http.client.HTTPConnection(*address.split(":"), timeout=30 * apps.SLOW)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def address_of(process):
    """Returns the address that it prints."""
    said = r"listens on (\S+)\n"
    apps.until(lambda: re.search(said, process.out.read_text()) or process.poll() is not None, "it listens")
    found = re.search(said, process.out.read_text())
    apps.check(found, process.out.read_text())
    return found[1]


class Gateway:
    def __init__(self, process, trace):
        self.process, self.trace, self.address = process, trace, address_of(process)

    def dashboard(self, user, **headers):
        status, body = get(self.address, f"/dashboard/{user}", **headers)
        apps.check(status == 200, status, body)
        return json.loads(body)

    def health(self):
        return json.loads(get(self.address, "/health")[1])

    def at_once(self, users):
        with concurrent.futures.ThreadPoolExecutor(len(users)) as pool:
            return list(pool.map(self.dashboard, users))


@contextlib.contextmanager
def gateway(addresses=None, **options):
    """The gateway, with services at these addresses: servers of ours, or "HOST:PORT"; otherwise with its own."""
    trace = apps.folder() / "traces.jsonl"
    where = {name: getattr(a, "address", a) for name, a in (addresses or {}).items()}
    options = {"delay": 0.01, "trace": trace, "timeout": 10 * apps.SLOW, "deadline": 30 * apps.SLOW, **options, **where}
    words = [f"{name}={value}" for name, value in options.items()]
    with apps.started(program(), "--gateway", "127.0.0.1:0", *words) as process:
        yield Gateway(process, trace)


@contextlib.contextmanager
def service(name, address="127.0.0.1:0", **options):
    words = [f"{key}={value}" for key, value in {"delay": 0.01, "trace": "/dev/null", **options}.items()]
    with apps.started(program(), "--service", name, address, *words) as process:
        process.address = address_of(process)
        yield process


def spans_of(path):
    """Returns all spans of the file, which must contain only whole lines in OTLP format; each with its process."""
    spans = []
    text = path.read_text()
    apps.check(text.endswith("\n"), "the last line is cut short")
    for line in text.splitlines():
        (resource,) = json.loads(line)["resourceSpans"]
        (about,) = resource["resource"]["attributes"]
        apps.check(about["key"] == "service.name", about)
        (scope,) = resource["scopeSpans"]
        apps.check(scope["scope"]["name"] == "conc", scope)
        for span in scope["spans"]:
            apps.check(re.fullmatch("[0-9a-f]{32}", span["traceId"]), span)
            apps.check(re.fullmatch("[0-9a-f]{16}", span["spanId"]), span)
            apps.check(re.fullmatch("[0-9]{19}", span["startTimeUnixNano"]), span)
            apps.check(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]), span)
            apps.check(span["kind"] in (1, 2, 3) and isinstance(span["attributes"], list), span)
            spans.append({**span, "process": about["value"]["stringValue"]})
    apps.check(len({span["spanId"] for span in spans}) == len(spans), "span ids are not unique")
    return spans


def count_attempts(spans, process="orchestrator"):
    return sum(span["kind"] == 3 and span["process"] == process for span in spans)


# ---- by itself ----

def test_what_it_shows_by_itself():
    where = apps.folder()
    out = apps.run(program(), "delay=0.05", "timeout=20", "deadline=50", cwd=where).stdout
    dashboards = re.findall(r"User (\d): (\d) calls\n  users +(\w+) .*\n  orders +(\w+) +(half open|\w+) +(.*)\n", out)
    apps.check(dashboards == [
        ("1", "4", "live", "live", "closed", '{"user":1,"items":["tea","cups"]}'),
        ("1", "0", "cached", "cached", "closed", '{"user":1,"items":["tea","cups"]}'),
        ("2", "6", "live", "fallback", "closed", "[]"),
        ("3", "5", "live", "fallback", "open", "[]"),
        ("4", "3", "live", "fallback", "open", "[]"),
        ("5", "4", "live", "live", "closed", '{"user":5,"items":["tea","cups"]}')], out)
    first, failed = out.split("\nTrace ")[1:]
    names = collections.Counter(re.findall(r"^( *)(\w+): (\w+)", first, re.MULTILINE))
    apps.check(names[("", "orchestrator", "dashboard")] == 1, first)
    for name in NAMES:
        apps.check(names[("      ", name, "GET")] == 1, first)
    apps.check(names[("    ", "orchestrator", "GET")] == 4 and sum(names.values()) == 13 and "!" not in first, first)
    bars = dict(re.findall(r"^ *(\w+: \w+) .*?\|(.*)\|", failed, re.MULTILINE))
    apps.check("!" in bars["orchestrator: orders"] and "!" not in bars["users: GET"], failed)
    apps.check(all(len(bar) == 44 for bar in bars.values()), failed)
    spans_of(where / "traces.jsonl")


def test_goal():
    out = apps.run(program(), "--goal").stdout
    apps.check(re.fullmatch(r"""Four services, 0\.500 s each
in sequence  [0-9.]+ s, 4 calls, 1 at once
at once      [0-9.]+ s, 4 calls, 4 at once \(goal: 0\.500 s\)
cached       [0-9.]+ s, 0 calls
""", out), out)


def test_goal_with_a_service_that_is_missing():
    done = apps.run(program(), "--goal", "delay=0.01", f"orders=127.0.0.1:{apps.free_port()}", status=1)
    apps.check("the counts are wrong" in done.stderr, done.stderr)


# ---- requirement 1: in parallel ----

def test_four_services_are_asked_at_once():
    """Each answers only when all four have been asked."""
    barrier = threading.Barrier(4, timeout=20 * apps.SLOW)

    def answer(server, handler):
        barrier.wait()
        server.well(handler)
    with fakes(**{name: answer for name in NAMES}) as servers, gateway(servers) as g:
        dashboard = g.dashboard(7)
        for name in NAMES:
            apps.check(dashboard[name] == {"source": "live", "data": {"path": f"/{name}/7"}}, dashboard)
        apps.check(g.health()["mostInFlight"] == 4, g.health())


def test_many_dashboards_at_once():
    with gateway(delay=0.1) as g:
        dashboards = g.at_once(range(40))
        for user, dashboard in enumerate(dashboards):
            apps.check(dashboard["user"] == user and all(dashboard[name]["source"] == "live" for name in NAMES), dashboard)
        apps.check([g.health()[name]["calls"] for name in NAMES] == [40] * 4, g.health())
        spans = spans_of(g.trace)
        apps.check(len(spans) == 40 * 13 and len({span["traceId"] for span in spans}) == 40, len(spans))


# ---- requirement 2: the circuit breaker ----

def test_a_killed_service_opens_its_circuit_and_its_return_closes_it():
    with fakes() as servers, contextlib.ExitStack() as stack:
        orders = stack.enter_context(service("orders"))
        g = stack.enter_context(gateway({**servers, "orders": orders.address}, open=1e6))
        apps.check(g.dashboard(1)["orders"]["source"] == "live")
        orders.kill()
        orders.wait()
        for user, calls, circuit in ((2, 4, "closed"), (3, 6, "open"), (4, 6, "open")):
            dashboard = g.dashboard(user)
            apps.check(dashboard["orders"]["source"] == "fallback" and dashboard["orders"]["data"] == [], dashboard)
            apps.check(all(dashboard[name]["source"] == "live" for name in NAMES if name != "orders"), dashboard)
            health = g.health()["orders"]
            apps.check((health["calls"], health["circuit"]) == (calls, circuit), health)
        apps.check(dashboard["orders"]["why"] == "the circuit is open", dashboard)


def test_a_circuit_closes_after_a_trial_and_opens_again_after_a_failed_one():
    with fakes() as servers, contextlib.ExitStack() as stack:
        orders = stack.enter_context(service("orders"))
        g = stack.enter_context(gateway({**servers, "orders": orders.address}, open=0))
        orders.kill()
        orders.wait()
        g.dashboard(1), g.dashboard(2)  # each call above the fifth is a trial, and fails
        apps.check(g.health()["orders"]["circuit"] == "open" and g.health()["orders"]["calls"] == 6, g.health())
        stack.enter_context(service("orders", orders.address))
        apps.check(g.dashboard(3)["orders"]["source"] == "live")
        apps.check(g.health()["orders"]["circuit"] == "closed", g.health())


def test_one_trial_at_a_time():
    """Half open: during the trial all others are refused."""
    gate, trial = threading.Event(), threading.Event()

    def answer(server, handler):
        if len(server.calls) > 6:
            trial.set()
            gate.wait(20 * apps.SLOW)
            server.well(handler)
        else:
            handler.send(500, b"")
    with fakes(orders=answer) as servers, gateway(servers, open=0) as g:
        g.dashboard(1), g.dashboard(2)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(g.dashboard, 3)
            apps.check(trial.wait(20 * apps.SLOW))
            apps.check(g.health()["orders"]["circuit"] == "half open", g.health())
            for dashboard in g.at_once([4, 5, 6]):
                apps.check(dashboard["orders"]["why"] == "the circuit is open", dashboard)
            gate.set()
            apps.check(first.result()["orders"]["source"] == "live")
        apps.check(len(servers["orders"].calls) == 7)


# ---- requirement 3: the cache ----

def test_the_second_request_is_served_from_the_cache():
    with fakes() as servers, gateway(servers) as g:
        first, second = g.dashboard(7), g.dashboard(7)
        for name in NAMES:
            apps.check(second[name] == {"source": "cached", "data": first[name]["data"]}, second)
            apps.check(len(servers[name].calls) == 1)
        apps.check(g.dashboard(7 + 64)["users"]["data"] == {"path": "/users/71"})  # of the same slot
        apps.check(g.dashboard(7)["users"]["source"] == "live")


def test_an_old_answer_is_asked_for_again_and_better_than_none():
    with fakes() as servers, gateway(servers, ttl=0) as g:
        apps.check(g.dashboard(7)["orders"]["source"] == "live" and g.dashboard(7)["orders"]["source"] == "live")
        servers["orders"].answer = lambda server, handler: handler.send(503, b"")
        orders = g.dashboard(7)["orders"]
        apps.check(orders == {"source": "stale", "why": "orders: status 503", "data": {"path": "/orders/7"}}, orders)


def test_equal_requests_at_once_make_one_call():
    with fakes() as servers, gateway(servers) as g:
        g.at_once([7] * 8)
        apps.check([len(servers[name].calls) for name in NAMES] == [1, 1, 1, 1])


# ---- requirements 4 and 5: failures, time limits, retries ----

def raw(data):
    """The connection receives these bytes, and ends."""
    def answer(server, handler):
        with contextlib.suppress(OSError):
            handler.wfile.write(data)
            handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
    return answer


def body(data):
    return lambda server, handler: handler.send(200, data)


BAD = {
    "closes at once": raw(b""),
    "garbage": raw(b"\x00\xff garbage\r\n\r\n"),
    "cut short": raw(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"a":'),
    "no JSON": body(b"<html>"),
    "empty": body(b""),
    "too much": body(b'"' + b"x" * 100000 + b'"'),
    "nested deeply": body(b"[" * 60000),
    "broken": lambda server, handler: handler.send(500, b"{}"),
}


def test_bad_answers_are_tried_again_and_lead_to_the_fallback():
    kinds = list(BAD)
    for four in (kinds[:4], kinds[4:]):
        of = dict(zip(NAMES, four))
        with fakes(**{name: BAD[what] for name, what in of.items()}) as servers, gateway(servers) as g:
            dashboard, health = g.dashboard(1), g.health()
            for name, what in of.items():
                item = dashboard[name]
                apps.check(item["source"] == "fallback" and item["data"] == FALLBACKS[name] and item["why"], what, item)
                apps.check(health[name]["calls"] == 3, what, health)
            apps.check(count_attempts(spans_of(g.trace)) == 12, four)


def test_a_failure_that_passes_is_not_seen():
    def answer(server, handler):
        if len(server.calls) < 3:
            handler.send(503, b"")
        else:
            server.well(handler)
    with fakes(orders=answer) as servers, gateway(servers) as g:
        apps.check(g.dashboard(1)["orders"]["source"] == "live")
        apps.check(len(servers["orders"].calls) == 3 and g.health()["orders"]["circuit"] == "closed", g.health())


def test_a_refusal_is_not_tried_again():
    with fakes(orders=lambda server, handler: handler.send(404, b"")) as servers, gateway(servers) as g:
        for user in range(6):
            orders = g.dashboard(user)["orders"]
            apps.check(orders == {"source": "fallback", "why": "orders: status 404", "data": []}, orders)
        apps.check(len(servers["orders"].calls) == 6 and g.health()["orders"]["circuit"] == "closed", g.health())


def test_a_service_hangs():
    """The service is stopped: every attempt hits its time limit, and then all of them the deadline."""
    with fakes() as servers, service("orders") as orders:
        addresses = {**servers, "orders": orders.address}
        with gateway(addresses, timeout=0.1) as g, gateway(addresses, deadline=0.2) as late:
            orders.send_signal(signal.SIGSTOP)
            for one, calls, why in ((g, 3, "within 0.1 s"), (late, 1, "timed out")):
                dashboard = one.dashboard(1)
                apps.check(dashboard["orders"]["source"] == "fallback", dashboard)
                apps.check(why in dashboard["orders"]["why"], dashboard)
                apps.check(one.health()["orders"]["calls"] == calls, one.health())
            orders.send_signal(signal.SIGCONT)
            apps.until(lambda: late.dashboard(2)["orders"]["source"] != "fallback", "it is back")


def test_an_answer_that_is_nested_deeply_is_passed_on():
    deep = b"[" * 900 + b"]" * 900
    with fakes(orders=body(deep)) as servers, gateway(servers) as g:
        for source in ("live", "cached"):
            status, text = get(g.address, "/dashboard/1")
            apps.check(status == 200 and source in text and text.count("[") == 900, status, text[:200])


# ---- requirement 6: tracing ----

def test_every_call_continues_the_trace():
    """The parent of a service's span is the span of the call; the root's is the caller's."""
    with gateway() as g:
        for _ in range(2):
            dashboard = g.dashboard(7, traceparent=f"00-{TRACE}-{PARENT}-01")
            apps.check(dashboard["traceId"] == TRACE, dashboard)
        spans = spans_of(g.trace)
    apps.check({span["traceId"] for span in spans} == {TRACE}, spans)
    of_id = {span["spanId"]: span for span in spans}
    roots = [span for span in spans if span["name"] == "dashboard"]
    apps.check([span["parentSpanId"] for span in roots] == [PARENT, PARENT], roots)
    kinds = collections.Counter()
    for span in spans:
        kinds[span["process"], span["kind"]] += 1
        if span not in roots:
            parent = of_id[span["parentSpanId"]]
            apps.check(parent["kind"] == {1: 2, 3: 1, 2: 3}[span["kind"]], span, parent)
            apps.check(int(parent["startTimeUnixNano"]) <= int(span["startTimeUnixNano"]), span, parent)
            apps.check(int(parent["endTimeUnixNano"]) >= int(span["endTimeUnixNano"]), span, parent)
    apps.check(kinds == {("orchestrator", 1): 8, ("orchestrator", 2): 2, ("orchestrator", 3): 4,
                         **{(name, 2): 1 for name in NAMES}}, kinds)


def test_the_header_names_the_span_of_its_call():
    with fakes() as servers, gateway(servers) as g:
        trace = g.dashboard(7)["traceId"]
        calls = {span["spanId"] for span in spans_of(g.trace) if span["kind"] == 3}
        headers = [headers["traceparent"].split("-") for name in NAMES for _, headers in servers[name].calls]
        apps.check({parent for _, _, parent, _ in headers} == calls, headers, calls)
        apps.check(all(words[:2] == ["00", trace] and words[3] == "01" for words in headers), headers)


def test_a_bad_traceparent_begins_a_new_trace():
    bad = ["", "00", f"00-{TRACE}-{PARENT}", f"ff-{TRACE}-{PARENT}-01", f"00-{TRACE.upper()}-{PARENT}-01",
           f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{PARENT}-0x", f"00-{TRACE}_{PARENT}-01",
           f"00-{TRACE}-{PARENT}_01", f"00-{TRACE}-{PARENT}-01-more", "x" * 55]
    with fakes() as servers, gateway(servers) as g:
        traces = [g.dashboard(1, traceparent=text)["traceId"] for text in bad]
        apps.check(len({*traces, TRACE, TRACE.upper()}) == len(bad) + 2, traces)
        roots = [span for span in spans_of(g.trace) if span["name"] == "dashboard"]
        apps.check(all("parentSpanId" not in span for span in roots), roots)


def test_spans_tell_what_failed():
    with fakes(orders=BAD["broken"]) as servers, gateway(servers) as g:
        g.dashboard(1)
        spans = spans_of(g.trace)
    failed = [span for span in spans if span["status"].get("code") == 2]
    apps.check(sorted(span["name"] for span in failed) == ["GET", "GET", "GET", "orders"], failed)
    codes = [a["value"]["intValue"] for span in failed for a in span["attributes"] if a["key"] == "http.response.status_code"]
    apps.check(codes == ["500"] * 3, codes)


def test_a_full_disk_costs_the_trace_alone():
    with fakes() as servers, gateway(servers, trace="/dev/full") as g:
        for user in (1, 2):
            apps.check(g.dashboard(user)["users"]["source"] == "live")
        said = g.process.out.read_text()
        apps.check(said.count("no trace:") == 1 and "No space left" in said, said)


def test_the_chart_is_of_the_last_request_or_the_one_named():
    with fakes() as servers, gateway(servers) as g:
        ids = [g.dashboard(user)["traceId"] for user in (1, 2)]
        with open(g.trace, "a") as file:
            file.write('\n{"resourceSpans":[{"res\n[]\n{"resourceSpans":3}\n')  # a line that was cut short, others
        apps.check(apps.run(program(), "--chart", g.trace).stdout.startswith(f"Trace {ids[1]}\n"))
        apps.check(apps.run(program(), "--chart", g.trace, ids[0]).stdout.startswith(f"Trace {ids[0]}\n"))
        done = apps.run(program(), "--chart", g.trace, TRACE, status=1)
        apps.check("there is no such trace" in done.stderr, done.stderr)
        done = apps.run(program(), "--chart", g.trace.with_name("none"), status=1)
        apps.check("No such file" in done.stderr, done.stderr)


# ---- the end ----

def test_ctrl_c_lets_the_answer_that_has_begun_be_sent():
    gate = threading.Event()

    def answer(server, handler):
        gate.wait(20 * apps.SLOW)
        server.well(handler)
    with fakes(orders=answer) as servers, gateway(servers) as g, contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        host, port = g.address.split(":")
        idle = stack.enter_context(socket.create_connection((host, port), timeout=20 * apps.SLOW))
        running = pool.submit(g.dashboard, 1)
        apps.until(lambda: servers["orders"].calls, "it is asked")
        g.process.send_signal(signal.SIGINT)
        apps.check(idle.recv(1) == b"")  # it is closed: the signal has come
        gate.set()
        apps.check(running.result()["orders"]["source"] == "live")
        apps.check(g.process.wait(30 * apps.SLOW) == 130)
        spans_of(g.trace)


def test_ctrl_c_at_any_moment_leaves_no_service_and_no_half_line():
    for moment in ("at once", "calls", "orders is killed", "User 3"):
        where = apps.folder()
        with apps.started(program(), "delay=0.2", cwd=where) as process:
            if moment == "at once":
                apps.until(lambda: apps.children_of(process.pid), "a child")
            elif moment != "at once":
                apps.until(lambda: moment in process.out.read_text(), moment)
            children = apps.children_of(process.pid)
            process.send_signal(signal.SIGINT)
            apps.check(process.wait(30 * apps.SLOW) == 130, moment, process.out.read_text())
            apps.check(all(apps.is_gone(pid) for pid in children) and children, moment, children)
        if (where / "traces.jsonl").exists():
            spans_of(where / "traces.jsonl")


def test_services_end_with_their_orchestrator():
    with gateway(delay=100) as g, concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(g.dashboard, 1)
        apps.until(lambda: g.health()["mostInFlight"] == 4, "all are at work")
        children = apps.children_of(g.process.pid)
        apps.check(len(children) == 4, children)
        g.process.kill()
        apps.until(lambda: all(apps.is_gone(pid) for pid in children), "they end", 5)


def test_bad_requests_and_arguments():
    with fakes() as servers, gateway(servers) as g:
        for path in ("/", "/dashboard", "/dashboard/", "/dashboard/x", "/dashboard/-1", "/dashboard/1x", "/dashboard/99999999999"):
            status, text = get(g.address, path)
            apps.check(status == 404, path, status, text)
        done = apps.run(program(), "--gateway", g.address, status=1)
        apps.check("Address already in use" in done.stderr, done.stderr)
    with service("orders") as orders:
        apps.check(get(orders.address, "/orders/7") == (200, '{"user": 7, "items": ["tea", "cups"]}\n'))
        apps.check(get(orders.address, "/users/7")[0] == 404)
    for words in (["x"], ["--x"], ["--gateway"], ["delay=x"], ["delay=-1"], ["delay="], ["x=1"], ["--service", "x", "y"],
                  ["--chart"], ["a", "b", "c", "d", "e"]):
        done = apps.run(program(), *words, status=2)
        apps.check("bad arguments" in done.stderr, words, done.stderr)


apps.main(globals())
