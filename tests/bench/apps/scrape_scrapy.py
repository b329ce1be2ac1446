"""scrape_scrapy.py PORT: the work of scrape_conc.c with Scrapy: 10 requests at once, no delay, pages into SQLite in batches.

A page's time is its download latency, which Scrapy measures up to the head of the answer, and that of its parsing."""
import sqlite3
import sys
import tempfile
import time
import urllib.parse

import scrapy
import scrapy.crawler
import scrapy.linkextractors
import scrapy.resolver

PORT = sys.argv[1]
HOSTS = [f"h{i}.localhost" for i in range(10)]
BATCH = 50


class Resolver(scrapy.resolver.CachingThreadedResolver):
    """All hosts are there."""

    def getHostByName(self, name, timeout=None):
        return super().getHostByName("127.0.0.1", timeout)


def canonical(url):
    """w3lib's canonicalize_url leaves dots in the path, and the case of the host."""
    parts = urllib.parse.urlsplit(url.strip())
    if parts.scheme not in ("http", "https"):
        return None
    path = urllib.parse.quote(urllib.parse.unquote(urllib.parse.urljoin("/", parts.path)), safe="/%:@!$&'()*+,;=~") or "/"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.lower().replace(".:", ":"), path, parts.query, ""))


class Spider(scrapy.Spider):
    name = "scraper"
    allowed_domains = HOSTS
    links = scrapy.linkextractors.LinkExtractor(process_value=canonical)
    times, count, letters = [], 0, 0

    def start_requests(self):
        for i, host in enumerate(HOSTS):
            yield scrapy.Request(f"http://{host}:{PORT}/page/{i}")

    def parse(self, response):
        began = time.monotonic()
        found = [link.url for link in self.links.extract_links(response)]
        title = response.xpath("//title/text()").get()
        Spider.count += 1
        Spider.letters += len(title)
        self.times.append(response.meta["download_latency"] + time.monotonic() - began)
        yield {"url": response.url, "title": title, "bytes": len(response.body)}
        for url in found:
            yield scrapy.Request(url)


class Save:
    def open_spider(self, spider):
        self.file = tempfile.NamedTemporaryFile(suffix=".db")
        self.db, self.batch = sqlite3.connect(self.file.name), []
        self.db.execute("CREATE TABLE urls (url TEXT PRIMARY KEY, title TEXT, bytes INTEGER)")

    def save(self):
        with self.db:
            self.db.executemany("INSERT INTO urls VALUES (?, ?, ?)", self.batch)
        self.batch.clear()

    def process_item(self, item, spider):
        self.batch.append((item["url"], item["title"], item["bytes"]))
        if len(self.batch) == BATCH:
            self.save()
        return item

    def close_spider(self, spider):
        self.save()
        self.db.close()
        self.file.close()


process = scrapy.crawler.CrawlerProcess({
    "CONCURRENT_REQUESTS": 10, "CONCURRENT_REQUESTS_PER_DOMAIN": 2, "DOWNLOAD_DELAY": 0, "ROBOTSTXT_OBEY": True,
    "ROBOTSTXT_USER_AGENT": "conc-scraper", "USER_AGENT": "conc-scraper", "DNS_RESOLVER": Resolver, "ITEM_PIPELINES": {Save: 1}, "LOG_ENABLED": False,
    "TELNETCONSOLE_ENABLED": False, "REQUEST_FINGERPRINTER_IMPLEMENTATION": "2.7",
    "TWISTED_REACTOR": "twisted.internet.epollreactor.EPollReactor"})
process.crawl(Spider)
wall, processor = time.monotonic(), time.process_time()
process.start()
wall, processor = time.monotonic() - wall, time.process_time() - processor
times = sorted(Spider.times)
p50, p99 = (1e3 * times[(len(times) - 1) * p // 100] for p in (50, 99))
print(f"{wall * 1e3:.3f} {processor * 1e3:.3f} {Spider.count}/{Spider.letters} {p50:.3f} {p99:.3f}")
