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
import sys
import threading
import time
import urllib.request

import apps
import browser

TIMEOUT = 2 if apps.SANITIZE else 1  # of the sites' page that hangs; it is tried three times
PAGE = apps.TOP / "examples/11_apps/03_web_scraper.html"
REASONS = {  # of the host of bad pages
    ("failed", "Connection reset by peer"): 1, ("failed", "Protocol not supported"): 1, ("failed", "status 404"): 1,
    ("failed", "timeout"): 1, ("failed", "too large"): 1, ("redirect", "status 302"): 2, ("refused", "robots.txt"): 1}


@functools.cache
def program():
    return apps.compiled("11_apps/03_web_scraper.c")


def rows(db, sql):
    with contextlib.closing(sqlite3.connect(db)) as connection:
        return connection.execute(sql).fetchall()


def table(db):
    """Returns the database, which must be intact: {url: (state, reason, attempts)}."""
    apps.check(rows(db, "PRAGMA integrity_check") == [("ok",)], "the database is damaged")
    return {row[0]: row[1:] for row in rows(db, "SELECT url, state, reason, attempts FROM urls")}


def count_reasons(db):
    return {(state, reason): n for state, reason, n in
            rows(db, "SELECT state, reason, count(*) FROM urls WHERE reason <> '' GROUP BY state, reason")}


def count_pages(db):
    return dict(rows(db, "SELECT host, count(*) FROM urls WHERE state = 'page' GROUP BY host"))


def printed(out):
    """Returns the table that it prints: {host: numbers}."""
    numbers = re.compile(r"^(\S+:\d+) +((?:\d+ +){5}[\d.]+ +[\d.]+)$", re.M)
    return {m[1]: [float(x) for x in m[2].split()] for m in numbers.finditer(out)}


class Fake(http.server.ThreadingHTTPServer):
    """A site in this process: pages is {path: body, or a function of the handler}."""
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, pages, port=0):
        self.pages, self.log, self.times = pages, [], []
        super().__init__(("127.0.0.1", port), FakeHandler)

    def url(self, path="/", host="a"):
        return f"http://{host}.localhost:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        pass  # clients leave


class FakeHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.server.log.append(self.path)
        self.server.times.append(time.monotonic())
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
def fake(pages, port=0):
    server = Fake(pages, port)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def links(*targets):
    return "".join(f'<a href="{target}">x</a>' for target in targets).encode()


def paths_of(db):
    return {re.sub("^http://[^/]*", "", url): row for url, row in table(db).items()}


def scrape(server, *options, status=0, db=None):
    """Scrapes the fake site; returns the output and {path: (state, reason, attempts)}."""
    db = db or apps.folder() / "x.db"
    done = apps.run(program(), "--db", db, "--delay", 0, "--timeout", 5 * apps.SLOW, *options, server.url(), status=status)
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
    db, port = apps.folder() / "x.db", apps.free_port()
    options = ("--page", PAGE, "--listen", f"127.0.0.1:{port}", "--max-pages", 30, "--delay", 0.05, "--timeout", TIMEOUT)
    with apps.started(program(), *options, "--db", db, "--stay") as process, browser.Browser(width=360, dark=True) as page:
        page.open(f"http://127.0.0.1:{port}/")
        live = page.until(SHOWN, lambda shown: 0 < shown["sums"]["page"])
        apps.check(live["state"] in ("running", "finished"), live)
        shown = page.until(SHOWN, lambda shown: shown["state"] == "finished", 60)
        apps.check(shown["width"] == 360, "it fits a phone", shown["width"])
        apps.check({(state, reason): int(n) for reason, state, n in shown["reasons"]} == count_reasons(db) == REASONS, shown)
        apps.check(len(shown["hosts"]) == 11, shown["hosts"])
        for host, counts in shown["hosts"].items():
            saved = dict(rows(db, f"SELECT state, count(*) FROM urls WHERE host = '{host}' GROUP BY state"))
            apps.check({s: n for s, n in counts.items() if n} == saved, host, counts, saved)
        apps.check({s: n for s, n in shown["sums"].items() if n} ==
                   dict(rows(db, "SELECT state, count(*) FROM urls GROUP BY state")), shown["sums"])
        apps.check(not page.errors(), page.errors())
        process.send_signal(signal.SIGINT)
        apps.check(process.wait(30 * apps.SLOW) == 130)


def test_a_viewer_gets_the_last_event_and_a_lost_one_does_no_harm():
    with fake({"/": links(*(f"/{i}" for i in range(40))), **{f"/{i}": b"<p>x" for i in range(40)}}) as server:
        port = apps.free_port()
        options = ("--listen", f"127.0.0.1:{port}", "--page", PAGE, "--delay", 0.02)
        with apps.started(program(), *options, "--db", ":memory:", server.url()) as process:
            apps.until(lambda: apps.answers(port), "it listens")
            with socket.create_connection(("127.0.0.1", port)) as lost:
                lost.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
                lost.recv(100)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/events", timeout=30 * apps.SLOW) as events:
                apps.check(events.headers["Content-Type"] == "text/event-stream")
                last = json.loads(events.read().split(b"data: ")[-1])
            apps.check(last["finished"] and last["domains"][0]["page"] == 41, last)
            apps.check(process.wait(30 * apps.SLOW) == 0, process.out.read_text())


# ---- the goal: 1000 pages of 10 domains ----

def test_goal():
    db = apps.folder() / "goal.db"
    out = apps.run(program(), "--goal", "--delay", 0.02, "--db", db).stdout
    pages, hosts = count_pages(db), printed(out)
    apps.check(len(pages) == 10 and set(pages.values()) == {100}, pages)
    apps.check({host: numbers[1] for host, numbers in hosts.items()} == pages, out)
    apps.check(all(gap >= delay == 0.02 for *_, delay, gap in hosts.values()), "no domain is asked too fast", hosts)
    apps.check(re.search(r"^1000 pages of 10 domains in [\d.]+ s; 1010 requests, at most ([1-9]|10) at once", out, re.M), out)
    apps.check("the goal: 1000 pages; the sites were asked for 1000, 1000 times" in out, "no page twice", out)


def test_crawl_delay_and_retry_after_are_obeyed():
    left = [429]

    def busy(handler):
        handler.send(left.pop() if left else 200, b"<p>x", Retry_After="1")
    with fake({"/": links("/busy"), "/busy": busy, "/robots.txt": b"User-agent: *\nCrawl-delay: 0.3\n"}) as server:
        done, table = scrape(server)
        gaps = [b - a for a, b in zip(server.times, server.times[1:])]
        apps.check(len(gaps) == 3 and gaps[2] >= 1, gaps)
        delay, gap = list(printed(done.stdout).values())[0][5:]
        apps.check(gap >= delay == 0.3 and table["/busy"] == ("page", "", 2), done.stdout, table)


# ---- what it shows by itself ----

def test_what_it_shows_by_itself():
    out = apps.run(program(), "--page", PAGE, "--delay", 0.05, "--timeout", TIMEOUT).stdout
    pages = {host: numbers[1] for host, numbers in printed(out).items()}
    apps.check(sorted(pages.values()) == [2] + [20] * 10, "two of the host of bad pages", out)
    apps.check(re.search(r"^\d+ of 220 pages, \d+ refused, \d+ failed, \d+ requests under way$", out, re.M), out)


def test_without_its_page_it_says_so_and_goes_on():
    with fake({"/": b"<p>x"}) as server:
        _, table = scrape(server, "--listen", "127.0.0.1:0", "--page", "/none")
        apps.check(table["/"][0] == "page", table)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            done = apps.run(program(), "--db", ":memory:", "--listen", f"127.0.0.1:{taken.getsockname()[1]}", server.url(), status=1)
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
        apps.check(f"is left out: {server.url('/robots.txt')}: status 503" in done.stderr, done.stderr)
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
        done = apps.run(program(), "--db", ":memory:", "--delay", 0, "--at-once", 3, *(server.url("/", host) for host in "abcde"))
        apps.check("55 pages of 5 domains" in done.stdout and "at most 3 at once" in done.stdout and counts == [0, 3],
                   done.stdout, counts)


# ---- URLs ----

def test_one_page_has_many_spellings():
    port = apps.free_port()
    spellings = ["/b", "/./b", "/x/../b", "b", f"//a.localhost:{port}/b", f"HTTP://A.LOCALHOST:{port}/b", "/b#top", "/%62",
                 " /b ", f"http://me:pw@a.localhost:{port}/b"]
    others = ["mailto:a@b", "javascript:b()", "#b", "ftp://a.localhost/b", "http://other.localhost/", "data:,b", "http://",
              "/" + "x" * 3000]
    with fake({"/": links(*spellings, *others), "/b": links("/", "?", "./")}, port) as server:
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
                  "/empty": ("page", "", 1), "/deep": ("page", "", 1)}
        apps.check({path: table[path] for path in wanted} == wanted, table)
        apps.check(table["/garbage"][0] == table["/closes"][0] == "failed" and table["/closes"][2] == 3, table)
        apps.check(collections.Counter(server.log)["/closes"] >= 3, server.log)


def test_a_page_that_hangs_costs_its_time_limit():
    gate = threading.Event()
    with fake({"/": links("/hang", "/b"), "/hang": lambda h: gate.wait(60 * apps.SLOW), "/b": b"<p>x"}) as server:
        _, table = scrape(server, "--timeout", 0.5 * apps.SLOW)
        gate.set()
        apps.check(table["/hang"] == ("failed", "timeout", 3) and table["/b"][0] == "page", table)


def test_titles_are_text_whatever_the_encoding():
    pages = {"/utf8": "<title>Café</title>".encode(), "/latin1": "<title>Café</title>".encode("latin-1"),
             "/utf16": lambda h: h.send(200, "<title>Café</title>".encode("utf-16-le"), Content_Type="text/html; charset=UTF-16LE")}
    with fake({"/": links(*pages), **pages}) as server:
        db = apps.folder() / "x.db"
        scrape(server, db=db)
        apps.check(rows(db, "SELECT count(*) FROM urls WHERE title = 'Café'") == [(3,)], rows(db, "SELECT url, title FROM urls"))


# ---- interrupted, and started again ----

def tree(count, at=2):
    return {"/" if i == 0 else f"/{i}": links(*(f"/{j}" for j in range(at * i + 1, at * i + at + 1) if j < count)) or b"<p>x"
            for i in range(count)}


def started_scraper(server, db, *options):
    return apps.started(program(), "--db", db, "--timeout", 5 * apps.SLOW, *options, server.url())


def test_ctrl_c_at_any_moment_and_the_second_start_goes_on():
    for moment in (0, 1, 25, 60):
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
            again = {server.url(path) for path in server.log} & before
            saved = len(before)
            apps.check(not saved or f"{saved} pages are saved" in done.stdout, done.stdout)
            apps.check(not again, "pages that were saved are not requested again", moment, again)
            apps.check(len(after) == 80 and all(row[0] == "page" for row in after.values()), moment, after)
            apps.check(list(printed(done.stdout).values())[0][1] == 80, done.stdout)


def test_killed_in_the_middle_it_goes_on_as_well():
    db = apps.folder() / "x.db"
    with fake(tree(80)) as server:
        with started_scraper(server, db, "--delay", 0.01) as process:
            apps.until(lambda: len(server.log) > 40 and count_pages(db), "some pages")
            process.kill()
            process.wait()
        apps.check(count_pages(db), "the pages are lost")
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


def test_ctrl_c_in_the_demo():
    with apps.started(program(), "--page", PAGE) as process:
        apps.until(lambda: "refused" in process.out.read_text(), "it crawls")
        process.send_signal(signal.SIGINT)
        apps.check(process.wait(30 * apps.SLOW) == 130, process.out.read_text())


# ---- servers and disks that fail ----

def test_a_server_that_is_missing():
    db = apps.folder() / "x.db"
    done = apps.run(program(), "--delay", 0, "--db", db, f"http://127.0.0.1:{apps.free_port()}/", status=1)
    apps.check("is left out: " in done.stderr and "Couldn't connect" in done.stderr, done.stderr)
    apps.check([row[0] for row in table(db).values()] == ["found"], table(db))


def test_sites_that_stop_for_a_while():
    db, port = apps.folder() / "x.db", apps.free_port()
    with apps.started(program(), "--site", f"127.0.0.1:{port}") as sites:
        apps.until(lambda: apps.answers(port), "the sites listen")
        options = ("--db", db, "--max-pages", 10, "--timeout", 0.2 * apps.SLOW, "--delay", 0.2)
        starts = (f"http://h{i}.localhost:{port}/page/{i}" for i in range(10))
        with apps.started(program(), *options, *starts) as process:
            apps.until(lambda: db.exists() and rows(db, "SELECT 1 FROM sqlite_master") and count_pages(db), "some pages")
            sites.send_signal(signal.SIGSTOP)
            apps.until(lambda: ("failed", "timeout") in count_reasons(db), "a time limit passes")
            sites.send_signal(signal.SIGCONT)
            apps.check(process.wait(60 * apps.SLOW) == 0, process.out.read_text())
        states = dict(rows(db, "SELECT state, count(*) FROM urls GROUP BY state"))
        pages = sum(numbers[1] for numbers in printed(process.out.read_text()).values())
        apps.check(pages == states["page"] == 100 and states["failed"], pages, states)


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
            apps.check(said.count(" is left out: ") == 1, said)
    states = dict(rows(db, "SELECT state, count(*) FROM urls GROUP BY state"))
    apps.check(5 <= states["failed"] <= 7 and states["found"] > 5, states)
    with fake(tree(60, 20), server.server_port) as server:
        _, after = scrape(server, db=db)
        apps.check(sum(row[0] == "page" for row in after.values()) == 60 - states["failed"], after)


def test_a_database_that_cannot_be_written():
    def scrape_into(server, db):
        return apps.run(program(), "--db", db, "--delay", 0, server.url(), status=1)
    with fake(tree(400)) as server:
        done = scrape_into(server, "/nonexistent/x.db")
        apps.check("unable to open database file" in done.stderr or "No such file" in done.stderr, done.stderr)
        garbage = apps.folder() / "garbage.db"
        garbage.write_bytes(b"no database " * 100)
        done = scrape_into(server, garbage)
        apps.check("not a database" in done.stderr and garbage.read_bytes() == b"no database " * 100, done.stderr)
        full = apps.folder() / "full.db"
        limited = ("sh", "-c", 'trap "" XFSZ; ulimit -f 50; exec "$@"', "sh", program())
        done = apps.run(*limited, "--db", full, "--delay", "0.005", server.url(), status=1)
        apps.check("full.db" in done.stderr and len(done.stderr) < 1500, done.stderr)
        whole = table(full)
        apps.check(0 < len(whole) < 400, len(whole))
        _, after = scrape(server, "--max-pages", 400, db=full)
        apps.check(len(after) == 400, "with room again it goes on", len(after))


def test_bad_arguments():
    for words in (["--x"], ["--delay"], ["--delay", "x"], ["--delay", "-1"], ["--max-pages", "0"], ["--at-once", "0"],
                  ["--timeout", "0"], ["--goal", "http://a.example/"]):
        done = apps.run(program(), *words, status=2)
        apps.check("scraper: " in done.stderr, words, done.stderr)
    for url in ("x:", "ftp://a.example/", "http://"):
        done = apps.run(program(), "--db", ":memory:", url, status=1)
        apps.check("not a URL" in done.stderr, done.stderr)
    done = apps.run(program(), "--db", ":memory:", "http://a.example/", "http://A.example/b", status=1)
    apps.check("was named before" in done.stderr, done.stderr)


program()
POOL = concurrent.futures.ThreadPoolExecutor(8)
for name, test in list(globals().items()):
    if name.startswith("test_") and all(word in name for word in sys.argv[1:]):
        globals()[name] = POOL.submit(test).result

apps.main(globals())
