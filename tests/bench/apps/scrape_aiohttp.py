"""scrape_aiohttp.py PORT: the work of scrape_conc.c with aiohttp, lxml, urllib.robotparser and sqlite3: 10 requests at
once, no delay; batches of pages are saved in a thread."""
import asyncio
import sqlite3
import sys
import tempfile
import time
import urllib.parse
import urllib.robotparser

import aiohttp
import aiohttp.abc
import lxml.html

HOSTS = [f"h{i}.localhost:{sys.argv[1]}" for i in range(10)]
AT_ONCE, WORKERS, BATCH = 10, 2, 50


class Loopback(aiohttp.abc.AbstractResolver):
    """All hosts are there."""

    async def resolve(self, host, port=0, family=0):
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self):
        pass


def canonical(base, href):
    parts = urllib.parse.urlsplit(urllib.parse.urljoin(base, href.strip()))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    host = parts.hostname.rstrip(".") + (f":{parts.port}" if parts.port not in (None, 80, 443) else "")
    path = urllib.parse.urljoin("/", parts.path)  # without dot segments
    path = urllib.parse.quote(urllib.parse.unquote(path), safe="/%:@!$&'()*+,;=~") or "/"
    return urllib.parse.urlunsplit((parts.scheme, host, path, parts.query, ""))


class Scraper:
    def __init__(self, session, db):
        self.session, self.db = session, db
        self.permits, self.known, self.outstanding = asyncio.Semaphore(AT_ONCE), set(), 0
        self.frontiers = {host: asyncio.Queue() for host in HOSTS}
        self.results, self.finished, self.robots = asyncio.Queue(2 * BATCH), asyncio.Event(), {}
        self.times, self.count, self.letters = [], 0, 0

    def discover(self, url):
        frontier = self.frontiers.get(urllib.parse.urlsplit(url).netloc)
        if frontier is not None and url not in self.known:
            self.known.add(url)
            self.outstanding += 1
            frontier.put_nowait(url)
            return [url]
        return []

    async def visit(self, host, url):
        if not self.robots[host].can_fetch("conc-scraper", url):
            return
        async with self.permits:
            began = time.monotonic()
            async with self.session.get(url) as response:
                body = await response.read()
        if response.status != 200:
            return
        page = lxml.html.document_fromstring(body, base_url=url)
        links = {link for link in (canonical(url, href) for href in page.xpath("//a/@href")) if link}
        title = page.findtext(".//title")
        found = [link for link in links for link in self.discover(link)]
        self.times.append(time.monotonic() - began)
        self.count += 1
        self.letters += len(title)
        await self.results.put((url, title, len(body), found))

    async def work(self, host):
        while True:
            url = await self.frontiers[host].get()
            await self.visit(host, url)
            self.outstanding -= 1
            if self.outstanding == 0:
                self.finished.set()

    async def crawl_domain(self, host):
        self.robots[host] = urllib.robotparser.RobotFileParser()
        async with self.permits, self.session.get(f"http://{host}/robots.txt") as response:
            self.robots[host].parse((await response.text()).splitlines())
        await asyncio.gather(*(self.work(host) for _ in range(WORKERS)))

    def save(self, batch):
        with self.db:
            for url, title, size, found in batch:
                self.db.executemany("INSERT OR IGNORE INTO urls (url) VALUES (?)", [(link,) for link in found])
                self.db.execute("INSERT INTO urls VALUES (?, 'page', ?, ?) ON CONFLICT (url) DO UPDATE SET state = 'page', "
                                "title = excluded.title, bytes = excluded.bytes", (url, title, size))

    async def save_results(self):
        while True:
            batch = [await self.results.get()]
            while len(batch) < BATCH and not self.results.empty():
                batch.append(self.results.get_nowait())
            await asyncio.to_thread(self.save, batch)
            for _ in batch:
                self.results.task_done()

    async def run(self):
        saver = asyncio.create_task(self.save_results())
        for i, host in enumerate(HOSTS):
            self.discover(f"http://{host}/page/{i}")
        tasks = [asyncio.create_task(self.crawl_domain(host)) for host in HOSTS]
        await self.finished.wait()
        await self.results.join()
        for task in (*tasks, saver):
            task.cancel()
        await asyncio.gather(*tasks, saver, return_exceptions=True)


async def main(address):
    connector = aiohttp.TCPConnector(resolver=Loopback(), limit=0)
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        db = sqlite3.connect(file.name, check_same_thread=False)
        db.execute("CREATE TABLE urls (url TEXT PRIMARY KEY, state TEXT DEFAULT 'found', title TEXT, bytes INTEGER)")
        async with aiohttp.ClientSession(connector=connector) as session:
            scraper = Scraper(session, db)
            wall, processor = time.monotonic(), time.process_time()
            await scraper.run()
            wall, processor = time.monotonic() - wall, time.process_time() - processor
        times = sorted(scraper.times)
        p50, p99 = (1e3 * times[(len(times) - 1) * p // 100] for p in (50, 99))
        print(f"{wall * 1e3:.3f} {processor * 1e3:.3f} {scraper.count}/{scraper.letters} {p50:.3f} {p99:.3f}")


asyncio.run(main(sys.argv[1]))
