"""etl_python.py IN FEED OUT: the work of etl_conc.c with asyncio, sqlite3, csv, json and a pool of processes.

The same sources, checks, reasons, destinations and checkpoints: a transaction of SQLite commits when the files are on the
disk. Queues of 8 batches of 500 records bound it. Batches are transformed in processes, and loaded in threads.
"""
import asyncio
import calendar
import concurrent.futures
import csv
import datetime
import json
import math
import os
import pathlib
import sqlite3
import sys
import time

BATCH, BOUND, LINE_LIMIT, EXCERPT = 500, 8, 4096, 200
RATES = {"EUR": 1, "USD": 0.92, "GBP": 1.17, "CHF": 1.04}
FIELDS = ("id", "customer", "amount", "currency", "time")
PAGE = """SELECT id, json_object('id', id, 'customer', customer, 'amount', amount, 'currency', currency, 'time', time)
          FROM payments WHERE id > ? ORDER BY id LIMIT ?"""


# ---- transform: in a process ----

class Bad(Exception):
    """The reason why a record is refused."""


def number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_csv(line):
    try:
        fields = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise Bad(str(error)) from None
    if len(fields) != len(FIELDS):
        raise Bad("too few or too many fields")
    return number(fields[0]), fields[1], number(fields[2]), fields[3], fields[4]


def parse_json(line):
    try:
        record = json.loads(line)
    except ValueError:
        raise Bad("this is not JSON") from None
    if not isinstance(record, dict):
        raise Bad("this is not a JSON object")
    return tuple(map(record.get, FIELDS))


def convert(number, customer, amount, currency, text):
    if not isinstance(number, (int, float)) or not 1 <= number <= 1e15 or number != int(number):
        raise Bad("the id is not a whole number")
    if not (isinstance(customer, str) and isinstance(currency, str) and isinstance(text, str)):
        raise Bad("a field is missing, or is not text")
    if not isinstance(amount, (int, float)) or not 0 < amount <= 1e9:
        raise Bad("the amount is not a number, or out of range")
    if currency not in RATES:
        raise Bad("the currency is unknown")
    try:
        moment = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        raise Bad("the time is not valid") from None
    customer = customer.strip(" ")
    if not 0 < len(customer.encode()) < 64:
        raise Bad("the customer's name is missing or too long")
    return int(number), customer, int(amount * RATES[currency] * 100 + 0.5), currency, calendar.timegm(moment.timetuple())


def transform(name, parse, records):
    """(rows for SQLite, bytes of payments.jsonl, bytes of rejects.jsonl)"""
    rows, lines, rejects = [], [], []
    for position, line in records:
        try:
            if len(line) > LINE_LIMIT:
                raise Bad("the line is too long")
            row = (name, position, *convert(*parse(line.decode())))
        except (Bad, UnicodeDecodeError) as reason:
            text = line[:EXCERPT].decode(errors="replace")
            rejects.append(json.dumps({"source": name, "position": position, "reason": str(reason), "text": text}))
        else:
            rows.append(row)
            lines.append(json.dumps(dict(zip(("source", "position", "id", "customer", "cents", "currency", "time"), row)),
                                    ensure_ascii=False))
    return rows, *("".join(line + "\n" for line in file).encode() for file in (lines, rejects))


# ---- extract: each source gives batches of (position, line), and its own position after them ----

async def read_csv(path, position=0):
    def read(file):
        records, at = [], file.tell()
        for line in file:
            records.append((at, line.rstrip(b"\r\n")))
            at += len(line)
            if len(records) == BATCH:
                break
        file.seek(at)
        return records, at
    with open(path, "rb") as file:
        if not position and file.readline().strip() != ",".join(FIELDS).encode():
            raise ValueError(f"{path}: the first line is wrong")
        file.seek(position or file.tell())
        while True:
            records, at = await asyncio.to_thread(read, file)
            if not records:
                return
            yield records, at


async def read_table(path, position=-2**63):
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        while rows := await asyncio.to_thread(lambda: db.execute(PAGE, (position, BATCH)).fetchall()):
            position = rows[-1][0]
            yield [(number, line.encode()) for number, line in rows], position
    finally:
        db.close()


async def read_feed(address, position=0):
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"FROM %d\n" % position)
    try:
        records = []
        while (line := await reader.readline()) != b"END\n":
            if not line.endswith(b"\n"):
                raise ConnectionError(f"{address}: the connection ended")
            records.append((position, line[:-1]))
            position += 1
            if len(records) == BATCH:
                yield records, position
                records = []
        if records:
            yield records, position
    finally:
        writer.close()


# ---- the pipeline ----

class Pipeline:
    def __init__(self, out, pool):
        self.pool, self.transformed = pool, asyncio.Queue(BOUND)
        out.mkdir()
        self.db = sqlite3.connect(out / "payments.db", check_same_thread=False, isolation_level=None)
        self.db.executescript("""
            PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
            CREATE TABLE payments (source TEXT, position INTEGER, id INTEGER, customer TEXT, cents INTEGER, currency TEXT,
                                   time INTEGER, PRIMARY KEY (source, position)) WITHOUT ROWID;
            CREATE TABLE checkpoints (name TEXT PRIMARY KEY, position INTEGER)""")
        self.files = [open(out / name, "wb", buffering=0) for name in ("payments.jsonl", "rejects.jsonl")]

    async def extract(self, name, parse, batches):
        """The queue bounds what is in the pool and behind it."""
        loop = asyncio.get_running_loop()
        async for records, position in batches:
            job = loop.run_in_executor(self.pool, transform, name, parse, records)
            await self.transformed.put((name, position, job))

    def insert(self, batches):
        for _, _, (rows, _, _) in batches:
            self.db.executemany("INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def write(self, batches):
        for i, file in enumerate(self.files):
            data = b"".join(result[1 + i] for _, _, result in batches)
            while data:
                data = data[file.write(data):]
            os.fdatasync(file.fileno())

    async def commit(self, batches):
        self.db.execute("BEGIN IMMEDIATE")
        try:
            await asyncio.gather(asyncio.to_thread(self.insert, batches), asyncio.to_thread(self.write, batches))
            positions = [(name, position) for name, position, _ in batches]
            positions += [(pathlib.Path(file.name).name, file.tell()) for file in self.files]
            self.db.executemany("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", positions)
            await asyncio.to_thread(self.db.execute, "COMMIT")
        except BaseException:
            self.db.execute("ROLLBACK")
            raise

    async def load(self):
        """All batches that are there share a commit."""
        at_end = False
        while not at_end:
            ready = [await self.transformed.get()]
            while len(ready) < BOUND and not self.transformed.empty():
                ready.append(self.transformed.get_nowait())
            at_end = ready[-1] is None
            batches = [(name, position, await job) for name, position, job in ready[:len(ready) - at_end]]
            if batches:
                await self.commit(batches)

    async def extract_all(self, folder, feed):
        await asyncio.gather(
            self.extract("shop-1.csv", parse_csv, read_csv(folder / "shop-1.csv")),
            self.extract("shop-2.csv", parse_csv, read_csv(folder / "shop-2.csv")),
            self.extract("orders.db", parse_json, read_table(folder / "orders.db")),
            self.extract("feed", parse_json, read_feed(feed)))
        await self.transformed.put(None)

    async def run(self, folder, feed):
        await asyncio.gather(self.extract_all(folder, feed), self.load())

    def totals(self):
        """Of both destinations, which have to be equal."""
        found = [json.loads(line) for line in open(self.files[0].name, encoding="utf-8")]
        in_file = len(found), sum(row["id"] * row["cents"] % 1000003 for row in found)
        in_table = self.db.execute("SELECT count(*), sum(id * cents % 1000003) FROM payments").fetchone()
        if in_file != in_table:
            sys.exit("the destinations differ")
        return in_table


def processor_time(pool):
    """Seconds of this process and of the workers; the clock of another process has its number in it."""
    workers = (time.clock_gettime(~pid << 3 | 2) for pid in pool._processes)
    return time.process_time() + sum(workers)


async def main(folder, feed, out):
    pathlib.Path(out).mkdir()
    with concurrent.futures.ProcessPoolExecutor() as pool:
        for name in ("first", "second"):  # what counts is the second time
            pipeline = Pipeline(pathlib.Path(out, name), pool)
            wall, processor = time.monotonic(), processor_time(pool)
            await pipeline.run(pathlib.Path(folder), feed)
            wall, processor = time.monotonic() - wall, processor_time(pool) - processor
    count, total = pipeline.totals()
    print(f"{wall * 1e3:.3f} {processor * 1e3:.3f} {count}/{total}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
