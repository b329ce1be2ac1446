#!/usr/bin/env python3
"""Tests of examples/11_apps/03_web_scraper.c."""
import collections
import concurrent.futures
import contextlib
import functools
import http.server
import json
import re
import signal
import socket
import sqlite3
import threading
import urllib.request

import apps
import browser

TIMEOUT = 2 if apps.SANITIZE else 1  # of the sites' page that hangs; it is tried three times
PAGE = apps.TOP / "examples/11_apps/03_web_scraper.html"
HOSTS = [f"site{i}.localhost" for i in range(10)]
REASONS = {  # of the ten sites, each with 100 pages
    ("failed", "Connection reset by peer"): 1, ("failed", "not HTML"): 1, ("failed", "status 404"): 1,
    ("failed", "status 410"): 1, ("failed", "status 429"): 1, ("failed", "status 500"): 1, ("failed", "timeout"): 1,
    ("failed", "too large"): 1, ("failed", "too many redirects"): 1, ("page", "broken HTML"): 1, ("page", "wrong encoding"): 2,
    ("redirect", "redirect"): 7, ("redirect", "redirect to a disallowed path"): 1,
    ("redirect", "redirect to another host"): 1, ("refused", "robots.txt"): 11}


@functools.cache
def program():
    return apps.compiled("11_apps/03_web_scraper.c")


@functools.cache
def background():
    """What takes some seconds runs beside the other tests."""
    program()
    pool = concurrent.futures.ThreadPoolExecutor(2)
    return pool.submit(run_goal), pool.submit(run_demo)


def goal():
    return background()[0].result()


def demo():
    return background()[1].result()


def rows(db, sql):
    with contextlib.closing(sqlite3.connect(db)) as connection:
        return connection.execute(sql).fetchall()


def table(db):
    """The database, which has to be whole: {url: (state, reason, attempts)}."""
    apps.check(rows(db, "PRAGMA integrity_check") == [("ok",)], "the database is damaged")
    return {row[0]: row[1:] for row in rows(db, "SELECT url, state, reason, attempts FROM urls")}


def count_reasons(db):
    return {(state, reason): n for state, reason, n in
            rows(db, "SELECT state, reason, count(*) FROM urls WHERE reason <> '' GROUP BY state, reason")}


def count_pages(db):
    return dict(rows(db, "SELECT host, count(*) FROM urls WHERE state = 'page' GROUP BY host"))


def printed(out):
    """The table that it prints: {host: numbers}, then {(state, reason): count}."""
    numbers = re.compile(r"^(\S+:?\d*) +((?:\d+ +){5}[\d.]+ +[\d.]+)$", re.M)
    hosts = {m[1]: [float(x) for x in m[2].split()] for m in numbers.finditer(out)}
    reasons = {(m[2], m[3]): int(m[1]) for m in re.finditer(r"^ *(\d+) (page|redirect|refused|failed): (.+)$", out, re.M)}
    return hosts, reasons


class Sites:
    """The ten sites, in a process of the program, which logs every request."""

    def __init__(self, process):
        self.process = process
        apps.until(lambda: "http://" in process.out.read_text(), "the sites listen")
        self.address = re.search(r"http://(\S+)/\n", process.out.read_text())[1]

    def requests(self):
        lines = self.process.out.read_text().splitlines()[1:]
        return ["http://" + line.replace(" ", "", 1) for line in lines]


@contextlib.contextmanager
def sites(*options):
    with apps.started(program(), "--site", "127.0.0.1:0", *options) as process:
        yield Sites(process)


class Fake(http.server.ThreadingHTTPServer):
    """A site in this process: pages is {path: body, or a function of the handler}."""
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, pages):
        self.pages, self.log = pages, []
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.address = f"127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients leave


class FakeHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.server.log.append(self.path)
        page = self.server.pages.get(self.path)
        if callable(page):
            page(self)
        elif page is None:
            self.send(404, b"")
        else:
            self.send(200, page)

    def send(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def raw(self, data):
        with contextlib.suppress(OSError):
            self.wfile.write(data)
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def fake(pages):
    server = Fake(pages)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def links(*targets):
    return "".join(f'<a href="{target}">x</a>' for target in targets).encode()


def paths_of(db):
    return {url.removeprefix("http://a.example"): row for url, row in table(db).items()}


def scrape(server, *options, status=0, start="/", db=None):
    """Scrapes the fake site: its output and {path: (state, reason, attempts)}."""
    db = db or apps.folder() / "x.db"
    done = apps.run(program(), "--connect-to", server.address, "--db", db, "--delay", 0, "--timeout", 5 * apps.SLOW, *options,
                    f"http://a.example{start}", status=status)
    return done, paths_of(db)


# ---- the page in the browser ----

SHOWN = """return {state: document.querySelector("#state").textContent,
    sums: Object.fromEntries(["page", "redirect", "refused", "failed", "found"].map(
        (s) => [s, +document.getElementById(s).textContent])),
    hosts: Object.fromEntries([...document.querySelectorAll(".card")].map((c) => [c.dataset.host, Object.fromEntries(
        ["page", "redirect", "refused", "failed", "found"].map(
            (s) => [s, +c.querySelector(`[data-is=${s}]`).textContent]))])),
    reasons: [...document.querySelectorAll("#reasons tr")].map((r) => [...r.cells].map((c) => c.textContent)),
    width: document.documentElement.scrollWidth}"""


def test_the_page_is_live_and_shows_at_the_end_what_the_database_has():
    background()
    db, port = apps.folder() / "x.db", apps.free_port()
    options = ("--page", PAGE, "--listen", f"127.0.0.1:{port}", "--max-pages", 30, "--delay", 0.05, "--timeout", TIMEOUT)
    with apps.started(program(), *options, "--db", db, "--stay") as process, browser.Browser(width=360, dark=True) as page:
        page.open(f"http://127.0.0.1:{port}/")
        live = page.until(SHOWN, lambda shown: 0 < shown["sums"]["page"])
        apps.check(live["state"] in ("running", "finished"), live)
        shown = page.until(SHOWN, lambda shown: shown["state"] == "finished", 60)
        apps.check(shown["width"] == 360, "it fits a phone", shown["width"])
        apps.check({(state, reason): int(n) for reason, state, n in shown["reasons"]} == count_reasons(db) == REASONS, shown)
        for host in HOSTS:
            saved = dict(rows(db, f"SELECT state, count(*) FROM urls WHERE host = '{host}' GROUP BY state"))
            apps.check({s: n for s, n in shown["hosts"][host].items() if n} == saved, host, shown["hosts"][host], saved)
        apps.check({s: n for s, n in shown["sums"].items() if n} ==
                   dict(rows(db, "SELECT state, count(*) FROM urls GROUP BY state")), shown["sums"])
        apps.check(not page.errors(), page.errors())
        process.send_signal(signal.SIGINT)
        apps.check(process.wait(30 * apps.SLOW) == 130)


def test_a_viewer_gets_the_last_event_and_a_lost_one_does_no_harm():
    with fake({"/": links(*(f"/{i}" for i in range(40))), **{f"/{i}": b"<p>x" for i in range(40)}}) as server:
        port = apps.free_port()
        options = ("--connect-to", server.address, "--listen", f"127.0.0.1:{port}", "--page", PAGE, "--delay", 0.02)
        with apps.started(program(), *options, "--db", ":memory:", "http://a.example/") as process:
            apps.until(lambda: apps.answers(port), "it listens")
            with socket.create_connection(("127.0.0.1", port)) as lost:
                lost.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
                lost.recv(100)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/events", timeout=30 * apps.SLOW) as events:
                apps.check(events.headers["Content-Type"] == "text/event-stream")
                last = json.loads(events.read().split(b"data: ")[-1])
            apps.check(last["finished"] and last["domains"][0]["page"] == 41, last)
            apps.check(process.wait(30 * apps.SLOW) == 0, process.out.read_text())


# ---- the goal: 1000 pages of 10 domains; every kind of failure ----

def run_goal():
    """--goal on sites with a log: its output, its database, the requests."""
    db = apps.folder() / "goal.db"
    with sites() as s:
        out = apps.run(program(), "--goal", "--delay", 0.02, "--timeout", TIMEOUT, "--db", db, "--connect-to", s.address).stdout
        return out, db, s.requests()


def test_goal():
    out, db, _ = goal()
    apps.check(count_pages(db) == {host: 100 for host in HOSTS}, count_pages(db))
    hosts, reasons = printed(out)
    apps.check(count_reasons(db) == REASONS == reasons, count_reasons(db), reasons)
    apps.check(re.search(r"^1000 pages of 10 domains in [\d.]+ s; \d+ requests, at most 10 at once", out, re.M), out)
    words = r"the goal: 1000 pages; 100 requests to each domain, 0.02 s apart, take 2.0 s; the \d+ to site8.localhost, with " \
            r"the pauses that it asked for, ([\d.]+) s"
    said = re.search(words, out)
    apps.check(said and 4 < float(said[1]) < 6.5, "Retry-After: 1, three times or four", out)
    for host in HOSTS:
        states = dict(rows(db, f"SELECT state, count(*) FROM urls WHERE host = '{host}' GROUP BY state"))
        apps.check(hosts[host][:5] == [states.get(s, 0) for s in ("page", "redirect", "refused", "failed", "found")], host)


def test_no_domain_is_asked_faster_than_its_delay():
    hosts, _ = printed(goal()[0])
    apps.check(all(gap >= delay == 0.02 for *_, delay, gap in hosts.values()) and len(hosts) == 10, hosts)


def test_disallowed_paths_are_never_requested():
    _, db, requests = goal()
    paths = collections.Counter(url.split("/", 3)[3] for url in requests)
    apps.check(paths["robots.txt"] == 10 and paths["private/open/door"] == 10, paths)
    apps.check(paths["private/diary"] == 1 and paths["private/room"] == 0, "but at site 4, which has no robots.txt", paths)
    apps.check(paths["picture.png"] == 0 and paths["picture.png?large"] == 1, "a pattern with * and $", paths)
    first = {}
    for url in requests:
        first.setdefault(url.split("/")[2], url)
    apps.check(all(url.endswith("/robots.txt") for url in first.values()), "robots.txt comes first", first)


def test_no_page_is_requested_twice():
    _, db, requests = goal()
    attempts = {url: row[2] for url, row in table(db).items()}
    again = {url: n for url, n in collections.Counter(requests).items() if n != attempts.get(url, 1)}
    apps.check(not again, again)
    apps.check(sorted(url.split("/", 3)[3] for url, n in attempts.items() if n and n > 1) ==
               ["busy", "cut", "error", "flaky", "hang", "overloaded"], attempts)
    found = {url for url, row in table(db).items() if row[0] == "found"}
    apps.check(not found & set(requests) and len(found) > 400, "those over --max-pages are left")


# ---- what it shows by itself ----

def run_demo():
    return apps.run(program(), "--page", PAGE, "--delay", 0.05, "--timeout", TIMEOUT)


def test_what_it_shows_by_itself():
    out = demo().stdout
    hosts, reasons = printed(out)
    apps.check({host: numbers[0] for host, numbers in hosts.items()} == {host: 20 for host in HOSTS}, out)
    apps.check(reasons == REASONS and not demo().stderr, reasons, demo().stderr)
    apps.check(hosts[HOSTS[3]][5:][0] == 0.1 and hosts[HOSTS[3]][6] >= 0.1, "its Crawl-delay is obeyed", hosts)
    apps.check(re.search(r"^\d+ of 200 pages, \d+ refused, \d+ failed, \d+ requests under way$", out, re.M), out)


def test_without_its_page_it_says_so_and_goes_on():
    with fake({"/": b"<p>x"}) as server:
        done, table = scrape(server, "--listen", "127.0.0.1:0", "--page", "/none")
        apps.check("No page for the browser: /none: No such file" in done.stderr and table["/"][0] == "page", done.stderr)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            done = apps.run(program(), "--db", ":memory:", "--listen", f"127.0.0.1:{taken.getsockname()[1]}", "http://a.example/",
                            status=1)
            apps.check("Address already in use" in done.stderr, done.stderr)


# ---- robots.txt ----

def test_groups_and_patterns_of_robots_txt():
    robots = b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /\r\n\r\nuser-agent: CONC-Scraper/2 # us\r\nUser-Agent: other\r\n" \
             b"Disallow: /a\nAllow: /a/b\nDisallow: /a/b/c\nDisallow: /*?q=\nDisallow: /%7Eann\nDisallow: /end$\nAllow:\n" \
             b"nonsense\n: x\nDisallow : /caf\xc3\xa9\n\nUser-agent: conc-scraper\nDisallow: /second\n" \
             b"User-agent: third\nDisallow: /x"
    allowed = ["/x", "/a/b", "/a/b/d", "/end/s", "/b?p=q"]
    refused = ["/a", "/ab", "/a/b/c/d", "/b?q=1", "/%7eann/", "/end", "/caf%C3%A9", "/second/1"]
    with fake({"/": links(*allowed, *refused), "/robots.txt": robots, **{path: b"<p>x" for path in allowed}}) as server:
        _, table = scrape(server)
        apps.check(sorted(server.log) == sorted(["/robots.txt", "/", *allowed]), server.log)
        apps.check(sum(row[:2] == ("refused", "robots.txt") for row in table.values()) == len(refused), table)


def test_a_robots_txt_that_fails_keeps_the_scraper_out():
    pages = {"/": b"<p>x", "/robots.txt": lambda handler: handler.send(503, b"")}
    with fake(pages) as server:
        db = apps.folder() / "x.db"
        done, table = scrape(server, status=1, db=db)
        apps.check(server.log == ["/robots.txt"] * 3 and table == {"/": ("found", "", None)}, server.log, table)
        apps.check("a.example is left out: http://a.example/robots.txt: status 503" in done.stderr, done.stderr)
        del pages["/robots.txt"]
        _, table = scrape(server, db=db)
        apps.check(table["/"][0] == "page", "later it goes on", table)


# ---- how many at once ----

def test_so_many_requests_at_once_of_all_domains_and_no_more():
    """Each request waits until there are three at once."""
    three, lock, counts = threading.Event(), threading.Lock(), [0, 0]

    def page(handler):
        with lock:
            counts[0] += 1
            counts[1] = max(counts)
            if counts[0] == 3:
                three.set()
        three.wait(20 * apps.SLOW)
        with lock:
            counts[0] -= 1
        handler.send(200, links(*(f"/{i}" for i in range(10))))
    with fake({"/": page, **{f"/{i}": page for i in range(10)}}) as server:
        done = apps.run(program(), "--connect-to", server.address, "--db", ":memory:", "--delay", 0, "--at-once", 3,
                        *(f"http://{host}.example/" for host in "abcde"))
        apps.check("55 pages of 5 domains" in done.stdout and "at most 3 at once" in done.stdout and counts == [0, 3],
                   done.stdout, counts)


# ---- URLs ----

def test_one_page_has_many_spellings():
    spellings = ["/b", "/./b", "/x/../b", "b", "//a.example/b", "http://a.example/b", "HTTP://A.EXAMPLE:80/b", "/b#top", "/%62",
                 " /b ", "http://me:pw@a.example/b"]
    others = ["mailto:a@b", "javascript:b()", "#b", "ftp://a.example/b", "http://other.example/", "data:,b", "http://",
              "/" + "x" * 3000]
    with fake({"/": links(*spellings, *others), "/b": links("/", "?", "./")}) as server:
        _, table = scrape(server)
        apps.check(sorted(server.log) == ["/", "/b", "/robots.txt"] and len(table) == 2, server.log, table)


# ---- what sites do ----

def test_failures_that_pass_are_tried_again_and_others_not():
    def flaky(status):
        left = [status, status]
        return lambda handler: handler.send(left.pop() if left else 200, b"<p>x")
    pages = {"/500": flaky(500), "/429": flaky(429), "/403": flaky(403),
             "/garbage": lambda h: h.raw(b"\x00garbage\r\n\r\n"),
             "/closes": lambda h: h.raw(b""), "/much": lambda h: h.send(200, b"x" * (2 << 20)),
             "/204": lambda h: h.send(204, b""), "/type": lambda h: h.send(200, b"", Content_Type="image/png"),
             "/empty": b"", "/deep": b"<div>" * 100000,
             "/nul": b"<title>a\0b</title><a href=/x>"}
    with fake({"/": links(*pages), **pages}) as server:
        _, table = scrape(server)
        wanted = {"/": ("page", "", 1), "/500": ("page", "", 3), "/429": ("page", "", 3), "/403": ("failed", "status 403", 1),
                  "/much": ("failed", "too large", 1), "/204": ("failed", "status 204", 1), "/type": ("failed", "not HTML", 1),
                  "/empty": ("page", "broken HTML", 1), "/deep": ("page", "too deep, or too many links", 1)}
        apps.check({path: table[path] for path in wanted} == wanted, table)
        apps.check(table["/garbage"][0] == table["/closes"][0] == "failed" and table["/closes"][2] == 3, table)
        apps.check(collections.Counter(server.log)["/closes"] >= 3, server.log)


def test_a_page_that_hangs_costs_its_time_limit():
    gate = threading.Event()
    with fake({"/": links("/hang", "/b"), "/hang": lambda h: gate.wait(60 * apps.SLOW), "/b": b"<p>x"}) as server:
        _, table = scrape(server, "--timeout", 0.2 * apps.SLOW)
        gate.set()
        apps.check(table["/hang"] == ("failed", "timeout", 3) and table["/b"][0] == "page", table)


def test_titles_are_text_whatever_the_encoding():
    with sites("--quiet") as s:
        db = apps.folder() / "x.db"
        apps.run(program(), "--connect-to", s.address, "--db", db, "--delay", 0, "http://site6.localhost/")
        titles = dict(rows(db, "SELECT url, title FROM urls WHERE title IS NOT NULL"))
        apps.check(titles["http://site6.localhost/latin1"] == "Café" and titles["http://site6.localhost/utf16"] == "é", titles)
        apps.check(titles["http://site6.localhost/"] == "Site 6, page 0", titles)


# ---- interrupted, and started again ----

def tree(count, at=2):
    return {"/" if i == 0 else f"/{i}": links(*(f"/{j}" for j in range(at * i + 1, at * i + at + 1) if j < count)) or b"<p>x"
            for i in range(count)}


def started_scraper(server, db, *options):
    return apps.started(program(), "--connect-to", server.address, "--db", db, "--timeout", 5 * apps.SLOW, *options,
                        "http://a.example/")


def test_ctrl_c_at_any_moment_and_the_second_start_goes_on():
    for moment in (0, 1, 2, 25, 60):
        db = apps.folder() / "x.db"
        with fake(tree(80)) as server:
            with started_scraper(server, db, "--delay", 0.01) as process:
                apps.until(lambda: db.exists() and len(server.log) >= moment, moment)
                process.send_signal(signal.SIGINT)
                apps.check(process.wait(30 * apps.SLOW) == 130, moment, process.out.read_text())
                apps.check("the same command goes on" in process.out.read_text(), moment, process.out.read_text())
            known = table(db) if rows(db, "SELECT 1 FROM sqlite_master") else {}
            before = {url for url, row in known.items() if row[0] == "page"}
            asked, server.log[:] = list(server.log), []
            apps.check(len(asked) - 1 - len(before) <= 3, "what was fetched is saved", moment, len(asked), len(before))
            done, after = scrape(server, db=db)
            again = {"http://a.example" + path for path in server.log} & before
            saved = len(before)
            apps.check(not saved or f"{saved} pages are saved" in done.stdout, done.stdout)
            apps.check(not again, "pages that were saved are not requested again", moment, again)
            apps.check(len(after) == 80 and all(row[0] == "page" for row in after.values()), moment, after)
            apps.check(printed(done.stdout)[0]["a.example"][0] == 80, done.stdout)


def test_killed_in_the_middle_it_goes_on_as_well():
    db = apps.folder() / "x.db"
    with fake(tree(80)) as server:
        with started_scraper(server, db, "--delay", 0.01) as process:
            apps.until(lambda: db.exists() and len(server.log) > 40, "some pages")
            process.kill()
            process.wait()
        apps.check(len(table(db)) > 0)
        _, after = scrape(server, db=db)
        apps.check(len(after) == 80 and all(row[0] == "page" for row in after.values()), after)


def test_more_pages_may_be_wanted_later():
    with fake({"/": links(*(f"/{i}" for i in range(500)))}) as server:
        apps.check(len(scrape(server, "--max-pages", 1)[1]) == 100, "100 URLs are kept for a page")
    with fake(tree(60, 10)) as server:
        db = apps.folder() / "x.db"
        for most in (1, 30, 30, 100):
            server.log.clear()
            _, urls = scrape(server, "--max-pages", most, db=db)
            pages = sum(row[0] == "page" for row in urls.values())
            apps.check(pages == min(most, 60) and sum(row[0] == "failed" for row in urls.values()) == 0, most, pages)
        apps.check(len(server.log) == 31, "30 pages were there before", server.log)


def test_no_process_is_left():
    for moment in ("dashboard", "refused"):
        with apps.started(program(), "--page", PAGE) as process:
            apps.until(lambda: moment in process.out.read_text(), moment)
            children = apps.children_of(process.pid)
            apps.check(children, "the sites are a process")
            process.send_signal(signal.SIGINT)
            apps.check(process.wait(30 * apps.SLOW) == 130, process.out.read_text())
            apps.check(all(apps.is_gone(pid) for pid in children), children)
    with apps.started(program(), "--page", PAGE) as process:
        apps.until(lambda: apps.children_of(process.pid), "the sites are a process")
        children = apps.children_of(process.pid)
        process.kill()
        apps.until(lambda: all(apps.is_gone(pid) for pid in children), "they end with the scraper")


# ---- servers and disks that fail ----

def test_a_server_that_is_missing():
    db = apps.folder() / "x.db"
    done = apps.run(program(), "--delay", 0, "--db", db, f"http://127.0.0.1:{apps.free_port()}/", status=1)
    apps.check("is left out: " in done.stderr and "Couldn't connect" in done.stderr, done.stderr)
    apps.check([row[0] for row in table(db).values()] == ["found"], table(db))


def test_sites_that_stop_for_a_while():
    db = apps.folder() / "x.db"
    with sites("--quiet", "--plain") as s:
        options = ("--connect-to", s.address, "--db", db, "--max-pages", 10, "--timeout", 0.2 * apps.SLOW, "--delay", 0.02)
        with apps.started(program(), *options, "http://site1.localhost/", "http://site2.localhost/") as process:
            apps.until(lambda: db.exists() and rows(db, "SELECT 1 FROM sqlite_master") and count_pages(db), "some pages")
            s.process.send_signal(signal.SIGSTOP)
            apps.until(lambda: ("failed", "timeout") in count_reasons(db), "a time limit passes")
            s.process.send_signal(signal.SIGCONT)
            apps.check(process.wait(60 * apps.SLOW) == 0, process.out.read_text())
        states = dict(rows(db, "SELECT state, count(*) FROM urls GROUP BY state"))
        hosts, _ = printed(process.out.read_text())
        apps.check(sum(numbers[0] for numbers in hosts.values()) == states["page"] == 20 and states["failed"], hosts, states)


def test_sites_that_are_killed_are_left_out_and_a_later_run_goes_on():
    db = apps.folder() / "x.db"
    pages = tree(60, 20)
    with fake(pages) as server:
        with started_scraper(server, db, "--delay", 0.01) as process:
            apps.until(lambda: len(server.log) > 20, "some pages")
            server.shutdown()
            server.server_close()
            pages.update({path: lambda handler: handler.raw(b"") for path in pages})
            apps.check(process.wait(60 * apps.SLOW) == 1, process.out.read_text())
            said = process.out.read_text()
            apps.check(said.count("a.example is left out: ") == 1, said)
    states = dict(rows(db, "SELECT state, count(*) FROM urls GROUP BY state"))
    apps.check(5 <= states["failed"] <= 7 and states["found"] > 5, states)
    with fake(tree(60, 20)) as server:
        _, after = scrape(server, db=db)
        apps.check(sum(row[0] == "page" for row in after.values()) == 60 - states["failed"], after)


def test_a_database_that_cannot_be_written():
    def scrape_into(server, db):
        return apps.run(program(), "--connect-to", server.address, "--db", db, "--delay", 0, "http://a.example/", status=1)
    with fake(tree(400)) as server:
        done = scrape_into(server, "/nonexistent/x.db")
        apps.check("unable to open database file" in done.stderr or "No such file" in done.stderr, done.stderr)
        garbage = apps.folder() / "garbage.db"
        garbage.write_bytes(b"no database " * 100)
        done = scrape_into(server, garbage)
        apps.check("not a database" in done.stderr and garbage.read_bytes() == b"no database " * 100, done.stderr)
        full = apps.folder() / "full.db"
        limited = ("sh", "-c", 'trap "" XFSZ; ulimit -f 50; exec "$@"', "sh", program())
        done = apps.run(*limited, "--connect-to", server.address, "--db", full, "--delay", "0.005", "http://a.example/", status=1)
        apps.check("full.db" in done.stderr and len(done.stderr) < 1500, done.stderr)
        whole = table(full)
        apps.check(0 < len(whole) < 400, len(whole))
        _, after = scrape(server, "--max-pages", 400, db=full)
        apps.check(len(after) == 400, "with room again it goes on", len(after))


def test_bad_arguments():
    for words in (["--x"], ["--delay"], ["--delay", "x"], ["--delay", "-1"], ["--max-pages", "0"], ["--max-pages", "1.5"],
                  ["--at-once", "0"], ["--timeout", "0"], ["--goal", "http://a.example/"], ["--site", "127.0.0.1:0", "x"]):
        done = apps.run(program(), *words, status=2)
        apps.check("scraper: " in done.stderr, words, done.stderr)
    for url in ("x:", "ftp://a.example/", "http://"):
        done = apps.run(program(), "--db", ":memory:", url, status=1)
        apps.check("not a URL" in done.stderr, done.stderr)
    done = apps.run(program(), "--db", ":memory:", "http://a.example/", "http://A.example/b", status=1)
    apps.check("was named before" in done.stderr, done.stderr)


apps.main(globals())
