#!/usr/bin/env python3
"""Tests of examples/12_projects/02_web_crawler.c."""
import collections
import concurrent.futures
import contextlib
import http.server
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import apps

PROGRAM = apps.compiled("12_projects/02_web_crawler.c")
LONG = 60 * apps.SLOW


class Web(http.server.ThreadingHTTPServer):
    """A web in this process. pages: {"host/path": body, or (status, headers, body), or function(handler, count)}."""
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, pages):
        self.pages, self.lock, self.calls, self.spans = pages, threading.Lock(), collections.Counter(), collections.defaultdict(list)
        self.total = 0
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, page):
        host, path = page.split("/", 1)
        return f"http://{host}.localhost:{self.server_port}/{path}"

    def links(self, *pages):
        return "".join(f"<a href='{self.url(page)}'>x</a>" for page in pages)

    def handle_error(self, request, client_address):
        pass  # clients leave


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, begin = self.server, time.monotonic()
        host = self.headers["Host"].split(".")[0]
        page = host + self.path
        with server.lock:
            server.calls[page] += 1
            server.total += 1
            count = server.calls[page]
        answer = server.pages.get(page)
        if callable(answer):
            answer = answer(self, count)
        if answer is None:
            answer = (404, {}, "no")
        if isinstance(answer, bytes):  # not HTTP
            self.wfile.write(answer)
            self.close_connection = True
            return
        status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
        with server.lock:  # before the answer is sent: the next request may come at once
            server.spans[host].append((begin, time.monotonic()))
        self.send_response(status)
        for name, value in {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode() if isinstance(body, str) else body)

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def web(pages):
    with Web(pages) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def options(**more):
    """The crawler's arguments: without a pause, and with short leases."""
    values = {"delay": 0, "lease": 1 * apps.SLOW, "timeout": 5 * apps.SLOW, "workers": 2, **more}
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]


def rows(where, server=None):
    """{page: row} and {source: {targets}}, without scheme and port."""
    def short(url):
        return re.sub(r"http://([^.]*)\.localhost:\d+", r"\1", url)
    with contextlib.closing(sqlite3.connect(where / "crawl.db")) as db:
        apps.check(db.execute("PRAGMA integrity_check").fetchone() == ("ok",))
        db.row_factory = sqlite3.Row
        pages = {short(row["url"]): dict(row) for row in db.execute("SELECT * FROM pages")}
        links = collections.defaultdict(set)
        for source, target in db.execute("SELECT * FROM links"):
            links[short(source)].add(short(target))
    apps.check(links.keys() <= pages.keys(), "links without a page", links.keys() - pages.keys())
    return pages, links


def counts(text):
    return {name: int(n) for n, name in re.findall(r"^ +(\d+) (.*)$", text, re.MULTILINE)}


def crawl(server, *seeds, where=None, status=0, **more):
    return apps.run(PROGRAM, *options(**more), *map(server.url, seeds), cwd=where, status=status, limit=60)


# ---- its own site ----

def test_by_itself_it_crawls_its_own_site_though_a_worker_is_killed():
    done = apps.run(PROGRAM, limit=60)
    apps.check("0 rows differ from the site's graph" in done.stdout, done.stdout)
    apps.check("300 of 300 pages asked for" in done.stdout and " 0 forbidden ones" in done.stdout, done.stdout)
    apps.check(re.search(r"was killed \(signal 9\): another one takes its place", done.stderr), done.stderr)
    found = counts(done.stdout)
    apps.check(found["Connection reset by peer"] == found["Protocol not supported"] == found["more than 1048576 bytes"] == 1, found)
    apps.check(found["timed out"] == found["status 404"] == found["forbidden by robots.txt"] == 1, found)
    gap = float(re.search(r"at least ([\d.]+) ms", done.stdout)[1])
    apps.check(gap >= 20, "a host was asked again too soon:", gap)


def test_the_goal_10000_pages_once_each_but_for_those_of_killed_workers():
    done = apps.run(PROGRAM, "--goal", "--delay", 0.005, limit=100)
    apps.check("0 rows differ from the site's graph" in done.stdout, done.stdout)
    apps.check("10000 of 10000 pages asked for" in done.stdout and " 0 forbidden ones" in done.stdout, done.stdout)
    apps.check(done.stderr.count("was killed (signal 9)") == 3, done.stderr)
    again = int(re.search(r"(\d+) of them again", done.stdout)[1])
    apps.check(again <= counts(done.stdout)["taken over"], done.stdout)
    apps.check(float(re.search(r"at least ([\d.]+) ms", done.stdout)[1]) >= 5, done.stdout)


def target(pages, i, k):
    """The site's graph, once more."""
    if k < 4:
        return 4 * i + 1 + k if 4 * i + 1 + k < pages else None
    return ((i * 7 + k) * 0x9E3779B97F4A7C15 % 2**64 >> 32) % pages


def test_the_rows_are_the_graph_as_far_as_the_depth_limit():
    where, pages, hosts, depth = apps.folder(), 200, 7, 2
    with apps.redis() as redis:
        done = apps.run(PROGRAM, *options(redis=f"127.0.0.1:{redis.port}", db="crawl.db", pages=pages, hosts=hosts, depth=depth,
                                          kills=0, workers=3, timeout=0.3 * apps.SLOW), cwd=where)
    depths, order = {0: 0}, [0]
    for i in order:
        for j in (target(pages, i, k) for k in range(7)) if depths[i] < depth else ():
            if j is not None and j not in depths:
                depths[j] = depths[i] + 1
                order.append(j)
    apps.check(1 < len(depths) < pages, depths)
    found, links = rows(where)
    graph = {page: row for page, row in found.items() if "/page/" in page}
    apps.check({page: (row["depth"], row["title"], row["status"]) for page, row in graph.items()} ==
               {f"h{i % hosts}/page/{i}": (d, f"Page {i}", 200) for i, d in depths.items()}, graph)
    for i in depths:
        expected = {f"h{j % hosts}/page/{j}" for j in (target(pages, i, k) for k in range(7)) if j is not None}
        apps.check(links[f"h{i % hosts}/page/{i}"] == expected, i, links[f"h{i % hosts}/page/{i}"], expected)
    apps.check(counts(done.stdout)["too deep"] > 0 and "0 rows differ" in done.stdout, done.stdout)


# ---- webs of this test ----

def test_each_canonical_url_is_fetched_once_over_all_workers():
    spelled = ["http:/a~b", "http:/%61%7Eb", "http:/x/../a~b", "HTTP:/./a~b#part", "/%7e/../%61~b?", "http:/y/./%2e%2E/a%7eb "]
    hosts = [f"h{i}" for i in range(5)]
    with web({"one/a~b": "<title>\n one  page</title>"}) as server:
        names = [("one", "One", "ONE")[i % 3] + (".localhost", ".LocalHost.")[i % 2] + f":{server.server_port}" for i in range(6)]
        page = "".join(f"<a href='{way.replace(':/', f'://{name}/', 1) if ':' in way else f'//{name}{way}'}'>" for way, name in zip(spelled, names))
        page += server.links("one/a~b", *(f"{host}/{m}" for host in hosts for m in range(5)))
        server.pages.update({f"{host}/{n}": page for host in hosts for n in range(5)})
        where = apps.folder()
        crawl(server, "h0/0", where=where, workers=4)
        expected = set(server.pages) | {f"{host}/robots.txt" for host in ("one", *hosts)}
        apps.check(server.calls == dict.fromkeys(expected, 1), server.calls)
    found, links = rows(where)
    apps.check(found.keys() == server.pages.keys() and found["one/a~b"]["title"] == "one page", found)
    apps.check(links["h3/3"] == set(server.pages), links["h3/3"])


def test_a_shorter_way_found_later_makes_depths_exact_without_another_fetch():
    gate = threading.Event()

    def slow(handler, _):
        gate.wait(LONG)
        return server.links("t/t")

    def target_page(handler, _):
        gate.set()  # it was found by the long way
        return server.links("u/u")
    with web({"slow/x": slow, "t/t": target_page, "u/u": "end"}) as server:
        server.pages.update({"r/": server.links("slow/x", "a/a"), "a/a": server.links("b/b"), "b/b": server.links("t/t")})
        where = apps.folder()
        crawl(server, "r/", where=where, depth=3, timeout=30)
        apps.check(all(n == 1 for n in server.calls.values()), server.calls)
    depths = {page: row["depth"] for page, row in rows(where)[0].items()}
    apps.check(depths == {"r/": 0, "slow/x": 1, "a/a": 1, "b/b": 2, "t/t": 2, "u/u": 3}, depths)


def test_a_host_is_asked_for_one_page_at_a_time_with_a_pause_over_all_workers():
    def page(handler, _):
        time.sleep(0.01)
        return server.links(*(f"h{i}/{n}" for i in range(2) for n in range(8)))
    with web({f"h{i}/{n}": page for i in range(2) for n in range(8)}) as server:
        server.pages["slow/robots.txt"] = "User-agent: *\nCrawl-delay: 0.5\n"
        server.pages.update({f"slow/{n}": server.links(f"slow/{n + 1}") for n in range(3)})
        crawl(server, "h0/0", "h1/0", "slow/0", workers=4, delay=0.1)
        apps.check(len(server.spans["h0"]) == len(server.spans["h1"]) == 9 and len(server.spans["slow"]) == 5, server.spans)
        for host, pause in (("h0", 0.1), ("h1", 0.1), ("slow", 0.5)):
            spans = sorted(server.spans[host])
            for (_, end), (begin, _) in list(zip(spans, spans[1:]))[host == "slow":]:
                apps.check(begin - end >= pause - 0.001, host, "was asked again after", begin - end)


def test_robots_txt_is_fetched_first_and_once_and_obeyed():
    pages = {f"{host}/{path}": "x" for host in ("rules", "none", "broken", "gone") for path in ("a", "private/a", "private/ok")}
    pages.update({"rules/robots.txt": "User-agent: conc-crawler\nDisallow: /private/\nAllow: /private/ok\n\nUser-agent: *\nDisallow: /\n",
                  "broken/robots.txt": (503, {}, "busy"), "gone/robots.txt": b"what?\r\n\r\n"})
    with web(pages) as server:
        server.pages["s/"] = server.links(*pages)
        where = apps.folder()
        crawl(server, "s/", where=where, workers=3)
        calls = server.calls
    apps.check(all(calls[f"{host}/robots.txt"] == 1 for host in ("rules", "none", "gone", "s")) and calls["broken/robots.txt"] == 3, calls)
    asked = {page for page in calls if "robots.txt" not in page}
    apps.check(asked == {"s/", "rules/a", "rules/private/ok", "none/a", "none/private/a", "none/private/ok"}, asked)
    found = rows(where)[0]
    refused = {page for page, row in found.items() if row["error"] == "forbidden by robots.txt"}
    apps.check(refused == set(pages) - {"rules/robots.txt", "broken/robots.txt", "gone/robots.txt"} - asked, refused)


def test_redirects_are_links_and_bad_answers_are_rows():
    big = "<title>big</title>" + "x" * 30000
    with web({}) as server:
        server.pages.update({
            "a/to": (302, {"Location": "http://b.localhost:%d/there#x" % server.server_port}, ""), "b/there": "<title>there</title>",
            "b/robots.txt": "User-agent: *\nDisallow: /no\n", "a/no": (301, {"Location": server.url("b/no")}, ""), "b/no": "never",
            "a/1": (307, {"Location": "/2"}, ""), "a/2": (308, {"Location": "1"}, ""), "a/bad": (302, {"Location": "mailto:x"}, ""),
            "a/big": big, "a/big2": (200, {"Content-Length": "100000000"}, big), "a/png": (200, {"Content-Type": "image/png"}, "<a href=/never>"),
            "a/noise": b"\x01\x02\r\n\r\n", "a/close": b"", "a/flaky": lambda handler, n: (503, {}, "") if n < 3 else "<title>well</title>",
            "a/down": (500, {}, ""), "a/deep": "<b>" * 100000, "a/nofollow": "<meta name=robots content=nofollow><a href=/never>",
            "a/links": "".join(f"<a href='mailto:{i}'>" for i in range(500)), "a/utf": (200, {}, "<title>s\xfc\xdf</title>".encode("latin-1")),
            "a/quote": "<a href='/\"\\ \x01'>", "a/%22%5C%20%01": "<title>'; DROP TABLE pages; --</title>"})
        server.pages["s/"] = server.links(*(page for page in server.pages if page.startswith("a/")))
        where = apps.folder()
        crawl(server, "s/", where=where, size=20000)
        calls = server.calls
    found, links = rows(where)
    errors = {page: row["error"] for page, row in found.items() if row["error"]}
    apps.check(errors == {"b/no": "forbidden by robots.txt", "a/big": "more than 20000 bytes", "a/big2": "more than 20000 bytes", "a/down": "status 500",
                          "a/noise": "Protocol not supported", "a/close": "Connection reset by peer", "a/deep": "more than 20000 bytes"}, errors)
    apps.check(calls["a/flaky"] == calls["a/down"] == calls["a/close"] == 3 and calls["a/noise"] == calls["a/1"] == calls["b/there"] == 1, calls)
    apps.check("b/no" not in calls and "a/never" not in calls, calls)
    apps.check(links["a/to"] == {"b/there"} and links["a/1"] == {"a/2"} and links["a/2"] == {"a/1"} and not links["a/bad"], links)
    apps.check(found["a/to"]["status"] == 302 and found["b/there"]["depth"] == 2 and found["a/flaky"]["title"] == "well", found)
    apps.check(found["a/utf"]["title"] == "s\xfc\xdf" and found["a/%22%5C%20%01"]["title"] == "'; DROP TABLE pages; --", found)


def test_traps_end_at_the_limits_and_a_hanging_host_holds_no_other():
    def trap(handler, _):
        return "".join(f"<a href='{handler.path}{i}/'>" for i in range(3))

    def hang(handler, _):
        gate.wait(LONG)
        return b""
    gate = threading.Event()

    class Trap(dict):
        def get(self, page):
            return trap if page.startswith("trap/") and "robots" not in page else super().get(page)
    with web(Trap({f"h/{n}": "x" for n in range(20)})) as server:
        server.pages.update({"hang/x": hang, "s/": server.links("trap/", "hang/x", *(f"h/{n}" for n in range(20)))})
        where = apps.folder()
        done = crawl(server, "s/", where=where, depth=50, per_host=40, timeout=0.4 * apps.SLOW)
        gate.set()
        trapped = [page for page in server.calls if page.startswith("trap/") and "robots" not in page]
        apps.check(len(trapped) == 40, len(trapped))
        apps.check(server.calls["hang/x"] == 3 and rows(where)[0]["hang/x"]["error"] == "timed out", server.calls)
        apps.check(counts(done.stdout)["too many of a host"] > 0 and sum(page.startswith("h/") for page in server.calls) == 21, done.stdout)
        done = crawl(server, "trap/", depth=3, workers=1)
        apps.check(counts(done.stdout)["fetched"] == 40 and counts(done.stdout)["too deep"] == 81, done.stdout)


# ---- kills, pauses, restarts ----

def workers_of(pid):
    """Returns the process numbers of the workers."""
    found = []
    for child in apps.children_of(pid, deep=True):
        with contextlib.suppress(OSError):
            if b"--worker" in open(f"/proc/{child}/cmdline", "rb").read().split(b"\0"):
                found.append(child)
    return found


def crawler(server, *seeds, where, **more):
    return apps.started(PROGRAM, *options(**more), *map(server.url, seeds), cwd=where)


def ended(process, status=0):
    apps.check(process.wait(LONG) == status, process.returncode, process.out.read_text()[-3000:])
    return process.out.read_text()


def test_what_a_killed_worker_had_is_taken_over_and_the_pause_holds():
    def held(handler, count):
        if count == 1:
            asked.set()
            gate.wait(LONG)
        return "<title>at last</title>"
    asked, gate = threading.Event(), threading.Event()
    with web({"a/held": held, "b/": "x"}) as server:
        server.pages["a/"] = server.links("a/held", "b/")
        where = apps.folder()
        with crawler(server, "a/", where=where, workers=1, timeout=60) as process:
            apps.check(asked.wait(LONG))
            worker, = workers_of(process.pid)
            os.kill(worker, signal.SIGKILL)
            said = ended(process)
            gate.set()
        again = sum(server.calls.values()) - len(server.calls)
        apps.check(1 <= again <= counts(said)["taken over"] <= 2 and "was killed (signal 9)" in said, said)
        apps.check(server.calls["a/held"] == 2, server.calls)
    apps.check(rows(where)[0]["a/held"]["title"] == "at last")


def test_a_page_that_ends_its_workers_is_given_up():
    def deadly(handler, _):
        with contextlib.suppress(ValueError):
            os.kill(*workers_of(process.pid), signal.SIGKILL)
        return b""
    with web({"a/": deadly}) as server:
        where = apps.folder()
        with crawler(server, "a/", where=where, workers=1, lease=0.1, delay=0) as process:
            said = ended(process)
        apps.check(rows(where)[0]["a/"]["error"] == "its workers end" and server.calls["a/"] == 6, said, server.calls)


def cli(redis, *words):
    return subprocess.run(["redis-cli", "-p", str(redis.port), *words], capture_output=True, text=True).stdout.strip()


def test_a_stopped_worker_that_goes_on_does_no_harm():
    def held(handler, count):
        if count == 1:
            asked.set()
            gate.wait(LONG)
        return server.links("a/next")
    asked, gate = threading.Event(), threading.Event()
    with web({"a/": held, "a/next": "<title>next</title>"}) as server, apps.redis() as redis:
        where = apps.folder()
        with crawler(server, "a/", where=where, workers=2, redis=f"127.0.0.1:{redis.port}", timeout=60, lease=0.5) as process:
            apps.check(asked.wait(LONG))
            stopped = int(re.search(r"\d+\.(\d+) \d+\n.*/$", cli(redis, "hgetall", "crawl:leases"))[1])
            os.kill(stopped, signal.SIGSTOP)
            apps.until(lambda: cli(redis, "hget", "crawl:counts", "taken over") == "1", "the other one takes over")
            apps.until(lambda: server.calls["a/"] == 2, "it asks for the page")
            gate.set()
            os.kill(stopped, signal.SIGCONT)
            said = ended(process)
        apps.check(counts(said)["taken over"] == 1 and server.calls["a/next"] == 1, said, server.calls)
    found, links = rows(where)
    apps.check(found.keys() == {"a/", "a/next"} and links["a/"] == {"a/next"}, found)


def test_one_more_worker_joins_and_one_is_asked_to_leave():
    gate = threading.Event()

    def held(handler, _):
        gate.wait(LONG)
        return server.links(*(f"h{i}/{n}" for i in range(8) for n in range(30)))
    with web({f"h{i}/{n}": "x" for i in range(8) for n in range(30)}) as server, apps.redis() as redis:
        server.pages["s/"] = held
        where, address = apps.folder(), f"127.0.0.1:{redis.port}"
        alone = apps.run(PROGRAM, "--worker", "--redis", address, cwd=where, status=1)
        apps.check("there is no crawl in this Redis" in alone.stderr, alone.stderr)
        with crawler(server, "s/", where=where, workers=2, redis=address, timeout=60) as process:
            apps.until(lambda: server.calls["s/"] == 1 and len(workers_of(process.pid)) == 2, "the first page is asked for")
            with apps.started(PROGRAM, "--worker", "--redis", address, cwd=where) as extra:
                apps.until(lambda: extra.poll() is None and cli(redis, "zcard", "crawl:workers") == "3", "it has joined")
                os.kill(workers_of(process.pid)[0], signal.SIGTERM)
                gate.set()
                said = ended(process)
                ended(extra)
                apps.check(re.search(r"worker [\d.]+: [1-9]\d* requests", extra.out.read_text()), extra.out.read_text())
        apps.check("was killed" not in said and counts(said)["taken over"] == 0, said)
        apps.check(rows(where)[0].keys() == server.pages.keys())


def redis_with_a_file():
    port, where = apps.free_port(), apps.folder()
    return apps.serving(apps.Server(["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes",
                                     "--appendfsync", "no", "--dir", where], port, where))


def big_web(hold):
    """10 hosts of 12 partly linked pages each. After so many requests it answers none until server.go is set."""
    names = [f"h{i}/{n}" for n in range(12) for i in range(10)]
    server = Web({})
    server.go = threading.Event()

    def page(k):
        def answer(handler, _):
            if server.total > hold:
                server.go.wait(LONG)
            return server.links(*(names[(k * 3 + i) % len(names)] for i in range(1, 4)), names[(k * 7) % len(names)])
        return answer
    server.pages = {name: page(k) for k, name in enumerate(names)}
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server, names


def reached(server, names):
    """Returns the pages that can be reached from the first one, and their depths."""
    number = {name: k for k, name in enumerate(names)}
    depths, order = {names[0]: 0}, [names[0]]
    for name in order:
        k = number[name]
        for other in [names[(k * 3 + i) % len(names)] for i in range(1, 4)] + [names[(k * 7) % len(names)]]:
            if other not in depths:
                depths[other] = depths[name] + 1
                order.append(other)
    return depths


def check_crawled(server, names, where, again):
    found = rows(where)[0]
    depths = reached(server, names)
    apps.check({page: row["depth"] for page, row in found.items()} == depths, found.keys() ^ depths.keys())
    apps.check(all(row["status"] == 200 for row in found.values()), found)
    more = sum(server.calls[page] - 1 for page in depths)
    apps.check(all(server.calls[page] for page in depths) and more <= again, "fetched again:", more, "of", again)


def test_redis_is_killed_and_started_again():
    server, names = big_web(60)
    with redis_with_a_file() as redis:
        where = apps.folder()
        with crawler(server, names[0], where=where, redis=f"127.0.0.1:{redis.port}", depth=100, lease=5, timeout=60) as process:
            for n in (20, 60):
                apps.until(lambda: server.total > n, f"{n} pages")
                redis.restart()
            server.go.set()
            said = ended(process)
        check_crawled(server, names, where, counts(said)["taken over"])
    server.shutdown()


def test_redis_loses_all_and_a_second_start_goes_on_from_the_database():
    server, names = big_web(60)
    with apps.redis() as redis:
        where, address = apps.folder(), f"127.0.0.1:{redis.port}"
        with crawler(server, names[0], where=where, redis=address, depth=100) as process:
            apps.until(lambda: server.total > 60, "60 pages")
            redis.restart()  # keeps nothing
            said = ended(process, 1)
            server.go.set()
            apps.check("there is no crawl in this Redis" in said and "a worker failed" in said, said)
        stored, asked = len(rows(where)[0]), sum(server.calls.values())
        apps.check(20 < stored < len(names), stored)
        crawl_again = apps.run(PROGRAM, *options(redis=address, depth=100), server.url(names[0]), cwd=where)
        check_crawled(server, names, where, 32)  # what was in flight
        apps.check(sum(server.calls.values()) < asked + len(names) - stored + 20, crawl_again.stdout)
        calls = dict(server.calls)
        done = apps.run(PROGRAM, *options(redis=address, depth=100), server.url(names[0]), cwd=where)
        apps.check(calls == server.calls, "a finished crawl asks for nothing", done.stdout)
    server.shutdown()


def catches(pid, number):
    """Does the process have a handler for this signal?"""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"SigCgt:\s*(\w+)", status.read())[1], 16) >> (number - 1) & 1


def interrupted_at(moment):
    server, names = big_web(moment)
    with redis_with_a_file() as redis:
        where, address = apps.folder(), f"127.0.0.1:{redis.port}"
        with crawler(server, names[0], where=where, redis=address, depth=100) as process:
            apps.until(lambda: server.total >= moment and catches(process.pid, signal.SIGINT), moment)
            children = apps.children_of(process.pid, deep=True)
            process.send_signal(signal.SIGINT)
            said = ended(process, 130)
            apps.check(all(map(apps.is_gone, children)), "children are left", children, said)
        server.go.set()
        given_back, leases = cli(redis, "hget", "crawl:counts", "given back"), cli(redis, "hlen", "crawl:leases")
        apps.check(leases == "0", "leases are left", leases)
        before = len(rows(where)[0]) if moment > 1 else 0
        done = apps.run(PROGRAM, *options(redis=address, depth=100), server.url(names[0]), cwd=where)
        check_crawled(server, names, where, int(given_back or 0) + counts(done.stdout)["taken over"])
        apps.check(before <= len(names))
    server.shutdown()


def test_ctrl_c_at_any_moment_and_a_second_start_goes_on():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(interrupted_at, (0, 1, 15, 60, 110)))


def test_no_process_is_left_if_the_supervisor_is_killed():
    with apps.started(PROGRAM, "--kills", 0, "--delay", 1) as process:
        apps.until(lambda: len(workers_of(process.pid)) == 3, "three workers")
        children = apps.children_of(process.pid, deep=True)
        process.kill()
        process.wait()
        apps.until(lambda: all(map(apps.is_gone, children)), "they are gone, too")


def test_workers_that_are_asked_to_leave_leave_the_rest_for_later():
    server, names = big_web(40)
    with apps.redis() as redis:
        where, more = apps.folder(), {"redis": f"127.0.0.1:{redis.port}", "depth": 100}
        with crawler(server, names[0], where=where, **more) as process:
            apps.until(lambda: server.total > 40, "40 pages")
            for worker in workers_of(process.pid):
                os.kill(worker, signal.SIGTERM)
            said = ended(process, 1)
            apps.check(re.search(r"URLs of \d+ hosts wait: start it again", said) and "was killed" not in said, said)
        server.go.set()
        apps.run(PROGRAM, *options(**more), server.url(names[0]), cwd=where)
        check_crawled(server, names, where, sum(int(cli(redis, "hget", "crawl:counts", what) or 0) for what in ("given back", "taken over")))
    server.shutdown()


# ---- what is missing, hangs or is full ----

def test_a_full_disk_is_an_error_in_words_and_a_second_start_goes_on():
    server, names = big_web(1000)
    where = apps.folder()
    words = [str(word) for word in options(workers=2, depth=100)]
    with apps.started("/bin/sh", "-c", 'trap "" XFSZ; ulimit -f 150; exec "$@"', "sh", PROGRAM, *words, server.url(names[0]), cwd=where) as process:
        said = ended(process, 1)
        apps.check("crawl.db" in said and re.search("disk (is full|I/O error)", said) and "a worker failed" in said, said)
    stored = len(rows(where)[0])
    apps.check(0 < stored < len(names), stored)
    crawl(server, names[0], where=where, depth=100)
    check_crawled(server, names, where, 40)
    server.shutdown()


def test_a_redis_that_hangs_is_an_error_in_words():
    server, names = big_web(20)
    with apps.redis() as redis:
        with crawler(server, names[0], where=apps.folder(), redis=f"127.0.0.1:{redis.port}", depth=100) as process:
            apps.until(lambda: server.total > 20, "20 pages")
            os.kill(redis.process.pid, signal.SIGSTOP)  # a worker waits ten seconds
            server.go.set()
            said = ended(process, 1)
    server.shutdown()
    apps.check("a worker failed" in said and re.search(r"worker [\d.]+: redis .*: the server did not answer in time", said), said)


def test_what_is_missing_or_wrong_is_said():
    where, port = apps.folder(), apps.free_port()
    done = apps.run(PROGRAM, "--redis", f"127.0.0.1:{port}", "http://h.localhost/", cwd=where, status=1)
    apps.check("refused" in done.stderr and str(port) in done.stderr, done.stderr)
    empty = apps.folder()
    if apps.SANITIZE:
        (empty / "setarch").symlink_to(shutil.which("setarch"))
    done = apps.run(PROGRAM, status=1, PATH=empty)
    apps.check("there is no redis-server here" in done.stderr, done.stderr)
    done = apps.run(PROGRAM, "--db", "/nowhere/x.db", "http://h.localhost/", status=1)
    apps.check("/nowhere/x.db" in done.stderr and "unable to open" in done.stderr, done.stderr)
    done = apps.run(PROGRAM, "ftp://h/", status=1)
    apps.check("ftp://h/" in done.stderr, done.stderr)
    for words in (["--x"], ["--depth", "x"], ["--workers", "0"], ["--workers", "1000"], ["--delay", "-1"], ["--redis"]):
        done = apps.run(PROGRAM, *words, status=2)
        apps.check("--help lists the options" in done.stderr, words, done.stderr)
    done = apps.run(PROGRAM, "--help")
    apps.check("--redis ADDRESS" in done.stdout and "URL..." in done.stdout, done.stdout)
    apps.check(not list(where.iterdir()) or [path.name for path in where.iterdir()] == ["crawl.db"], list(where.iterdir()))


def test_a_redis_that_sends_garbage_is_an_error_in_words():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def babble():
            with contextlib.suppress(OSError):
                while True:
                    peer = listener.accept()[0]
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    peer.close()
        threading.Thread(target=babble, daemon=True).start()
        done = apps.run(PROGRAM, "--redis", f"127.0.0.1:{listener.getsockname()[1]}", "http://h.localhost/", status=1)
        apps.check("redis" in done.stderr, done.stderr)
        listener.shutdown(socket.SHUT_RDWR)


def beside(test):
    """Starts a test that mostly waits, next to the others."""
    future = POOL.submit(test)
    return future.result


POOL = concurrent.futures.ThreadPoolExecutor(8)
for slow in (test_a_redis_that_hangs_is_an_error_in_words, test_by_itself_it_crawls_its_own_site_though_a_worker_is_killed,
             test_traps_end_at_the_limits_and_a_hanging_host_holds_no_other, test_what_a_killed_worker_had_is_taken_over_and_the_pause_holds,
             test_a_host_is_asked_for_one_page_at_a_time_with_a_pause_over_all_workers, test_what_is_missing_or_wrong_is_said):
    if all(word in slow.__name__ for word in sys.argv[1:]):
        globals()[slow.__name__] = beside(slow)

apps.main(globals())
